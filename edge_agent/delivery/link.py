"""The agent's line to the broker: sends what waits in the outbox, publishes the agent's status, brings commands.

One thread, the one in `Link.run`, owns the connection and reads the outbox. Other threads only leave work for it: a
document to be published, a reply, the wish for a subscription.

Even an acknowledged message is lost when the broker is killed before it has stored it or passed it on, so a new
connection begins with those acknowledged in the last seconds of the one before; `edge_agent.delivery.shipment` has the
rest of how alerts are sent. Commands are only collected here; what they mean, and whether they may be given, is
`edge_agent.control`'s knowledge. A reply is sent once and not stored: whoever misses it repeats the command, which is
then answered and not executed again.
"""

import logging
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from edge_agent.contract.broker import BrokerConfig
from edge_agent.contract.commands import MAX_COMMAND
from edge_agent.contract.messages import Status, encode, topic
from edge_agent.culprit import REPLY, STATUS, Culprit, Key, LeftOut
from edge_agent.delivery.outbox import ASIDE_S, Outbox
from edge_agent.delivery.shipment import ALERT, Shipment, ShipmentCounts
from edge_agent.mqtt import Acknowledged, Connected, Connection, ConnectionEnded, Dialer, Event, Incoming, Subscribed
from edge_agent.reconnect import ConnectionCounts, Reconnecter

__all__ = ["BrokerConfig", "Incoming", "Link", "LinkCounts"]

logger = logging.getLogger(__name__)

_POLL_S = 0.25  # how late a set ``stop`` may be noticed
_GOODBYE_S = 0.8  # how long the last alerts and the last status may take
_MAX_INCOMING = 1_048_576  # bytes of a packet that the broker may send us
_MAX_COMMANDS = 64  # commands, and replies, that may wait
_DOCUMENT = "document"  # the kind of these messages for `Culprit`
_MAX_CORRELATION = 256  # bytes of correlation data that a reply gives back


@dataclass
class LinkCounts(ShipmentCounts, ConnectionCounts):
    """Counters since the start; ``refused`` includes refusals of the agent's own documents."""

    commands: int = 0  # messages on the topics that are subscribed to
    commands_lost: int = 0  # of those, dropped since too many waited
    replies: int = 0
    # dropped since too many waited or the broker takes none so large, refused, or under way when the connection ended
    replies_lost: int = 0
    documents_set_aside: int = 0  # documents, and replies, that were not published as too large for the broker


@dataclass(frozen=True, eq=False)
class _Document:
    """A retained message: the broker holds it until the next on its topic."""

    topic: str
    payload: bytes
    qos: Literal[0, 1]
    expires_s: int | None


@dataclass
class _Line:
    """One connection and the state of the exchange on it; the next connection begins with a new one."""

    connection: Connection
    shipment: Shipment
    filters: dict[str, bool] = field(default_factory=dict)  # subscribed to (True), or no longer
    replies: dict[int, int] = field(default_factory=dict)  # message id -> bytes of those under way
    others: dict[int, tuple[Key, int]] = field(default_factory=dict)  # the same of status and documents, with bytes
    documents: dict[str, _Document] = field(default_factory=dict)  # `Link.retain`'s as last looked at
    published: dict[str, _Document] = field(default_factory=dict)  # of those, what was published
    logged: set[str] = field(default_factory=set)  # refusals


class Link:
    """Carries ``outbox`` to the broker of ``config`` for ``gateway``, whose agent has version ``agent``.

    Raises BrokerError when the TLS or password files cannot be used. ``connected``, ``protocol`` ("5", "3.1.1" or ""),
    ``trouble`` (why nothing moves, "" when all is well) and ``counts`` may be read from any thread. ``filters`` are the
    topic filters that are subscribed to (True) or no longer (False), as by `subscribe`; `received` hands out what comes
    on them. A ``guest`` only sends what waits in the outbox: with that word behind its id it is another client than the
    agent, whose connection, session, status and commands it leaves alone.
    """

    def __init__(
        self,
        config: BrokerConfig,
        outbox: Outbox,
        *,
        gateway: str,
        agent: str,
        filters: Mapping[str, bool] = MappingProxyType({}),
        guest: str = "",
    ) -> None:
        self.config, self.counts = config, LinkCounts()
        self._outbox, self._gateway, self._agent, self._boot = outbox, gateway, agent, str(uuid.uuid4())
        self._status_topic = topic(gateway, "status", config.base)
        self._problem = ""  # what is wrong on the connection at hand
        self._guest = bool(guest)
        suffix = f"-{guest}" if guest else ""
        dialer = Dialer(config, gateway, suffix=suffix, clean=bool(guest), max_packet=_MAX_INCOMING)
        self.client_id = dialer.client_id
        # what other threads leave for the one in `run`, and it for them
        self._filters = dict(filters)  # replaced as a whole, so that threads need no lock
        self._incoming: deque[Incoming] = deque()
        self._replies: deque[tuple[str, bytes, bytes]] = deque()
        self._documents: dict[str, _Document] = {}  # by leaf; replaced as a whole, so that threads need no lock
        self._resend = False
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        # of the thread in `run`
        self._reconnecter = Reconnecter(
            dialer, self.counts, "give each gateway an id of its own (gateway, broker.client_id, the certificate's CN)"
        )
        self._culprit = Culprit()
        self._left_out = LeftOut(ASIDE_S)
        self._limits = ("", 0)  # MQTT version and largest packet of the last connection
        self._lost_s: float | None = None  # Unix time at which the last connection ended
        outbox.wake_with(self.wake)

    def run(self, stop: threading.Event) -> None:
        """Keep the line up until ``stop`` is set, then publish `stopped` and hang up. Call once, in its own thread.

        Returns within about a second of `wake`, unless a connection is just being made: that may take as long as the
        name server, TCP and TLS let it, and the outbox is not touched any more when it is done.
        """
        self._reconnecter.run(
            stop,
            lambda connection: self._converse(connection, stop),
            will=lambda: None if self._guest else (self._status_topic, self._status("offline")),
            waiting=self._outbox.save,
        )

    @property
    def connected(self) -> bool:
        """True while the broker has accepted the connection."""
        return self._reconnecter.connected

    @property
    def protocol(self) -> Literal["5", "3.1.1", ""]:
        """The MQTT version of the connection, or of the last one."""
        return self._reconnecter.protocol

    @property
    def trouble(self) -> str:
        """The reason why nothing moves, or not everything; "" when all is well."""
        aside = self._outbox.aside()
        return (
            self._reconnecter.trouble
            or self._problem
            or (f"does not take some messages, which are set aside ({aside}): look at its size limits" if aside else "")
        )

    def retain(self, leaf: str, payload: bytes, *, qos: Literal[0, 1] = 1, expires_s: int | None = None) -> None:
        """Publish ``payload`` on ``.../<leaf>``, retained, now and on every new connection until it is replaced.

        Under MQTT 5 a broker forgets it after ``expires_s``. For any thread. Nothing is stored over a restart.
        """
        where = topic(self._gateway, leaf, self.config.base)
        self._documents = {**self._documents, leaf: _Document(where, payload, qos, expires_s)}
        self.wake()

    def flush(self, timeout_s: float) -> int:
        """Wait until the outbox is empty but for what is set aside; return how many messages wait after ``timeout_s``.

        ``trouble`` then has the reason. For any thread but the one in `run`.
        """
        deadline = time.monotonic() + timeout_s
        while (left := self._outbox.depth()) > self._outbox.aside() and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def received(self) -> Incoming | None:
        """Take the oldest command that waits; None when no command waits. For one thread, of any kind."""
        return self._incoming.popleft() if self._incoming else None

    def reply(self, where: str, payload: bytes, correlation: bytes = b"") -> None:
        """Publish a reply as soon as there is a connection. For any thread."""
        if len(self._replies) >= _MAX_COMMANDS:
            self.counts.replies_lost += 1
            return
        self._replies.append((where, payload, correlation))
        self.wake()

    def subscribe(self, filter: str, wanted: bool = True) -> None:
        """Subscribe to a topic filter from now on, on every connection, or no longer if not ``wanted``.

        For any thread.
        """
        self._filters = {**self._filters, filter: wanted}
        self.wake()

    def room(self) -> int:
        """Return how many more replies may wait."""
        return _MAX_COMMANDS - len(self._replies)

    def resend(self) -> None:
        """Begin again with the oldest message of the outbox, where delivered ones wait again. For any thread."""
        self._resend = True
        self.wake()

    def wake(self) -> None:
        """Make `run` look at once: there is something new in the outbox, or ``stop`` was set. For any thread."""
        with suppress(OSError):  # full: it will wake anyway
            self._wake_w.send(b"\0")

    def _converse(self, connection: Connection, stop: threading.Event) -> None:
        """Carry messages over one connection until ``stop`` is set. Raises ConnectionEnded."""
        shipment = Shipment(self._outbox, connection, self.config.inflight, self.counts, self._culprit)
        line = _Line(connection, shipment)
        self._problem = ""
        try:
            while not stop.is_set():
                self._act_on(line, self._reconnecter.step(connection, _POLL_S, self._wake_r))
                if not self.connected:
                    continue
                if line.filters != self._filters:
                    self._subscribe(line)
                self._publish_documents(line)
                self._publish_replies(line)
                if self._resend:
                    self._resend = False
                    line.shipment.begin_again()
                line.shipment.ship()
            if self.connected:
                self._say_goodbye(line)
        except ConnectionEnded as end:
            self._blame(line, end)
            raise
        finally:
            self._problem = ""
            self.counts.replies_lost += len(line.replies)
            if self.connected:
                self._lost_s = time.time()

    def _blame(self, line: _Line, end: ConnectionEnded) -> None:
        """Find out if a message has ended the connection, and remember it."""
        end.explained, key = self._culprit.ended(end)
        if key is None:
            return
        kind, which = key
        if kind == ALERT:
            line.shipment.blame(int(which))
            return
        leaf = REPLY if kind == REPLY else str(which)
        sizes = {(REPLY, sent): size for sent, size in line.replies.items()} | dict(line.others.values())
        strikes = self._left_out.strike(leaf, sizes[key])
        if strikes > 1:
            self._culprit.answered(key)
        if strikes == 2:
            logger.error(
                "broker %s has ended the connection each time that the agent published %s of %d bytes: such ones are "
                "left out, and tried again in %.0f minutes; look at the broker's size limits",
                *(self.config.address, leaf, sizes[key], ASIDE_S / 60),
            )

    def _act_on(self, line: _Line, events: Sequence[Event]) -> None:
        answers: list[Acknowledged] = []
        for event in events:
            match event:
                case Connected():
                    self._begin(line)
                case Acknowledged():
                    answers.append(event)
                case Incoming():
                    self._take(event)
                case Subscribed():
                    for reason in event.refusals:
                        logger.warning(
                            "broker %s refuses a subscription (to one of %s): %s; what is sent there does not arrive",
                            *(self.config.address, ", ".join(self._filters), reason),
                        )
        if answers:
            self._settle(line, answers)

    def _begin(self, line: _Line) -> None:
        """Publish the agent's status and subscribe, on a connection that has just been accepted."""
        again = self._outbox.again(self.config.repeat_s, self._lost_s)
        self.counts.repeated += again
        repeats = f"; {again} alerts that the broker may have lost are sent again" if again else ""
        logger.info("connected to broker %s, MQTT %s%s", self.config.address, self.protocol, repeats)
        limits = self.protocol, line.connection.max_packet
        if limits != self._limits:
            self._limits = limits
            self._outbox.try_aside()
            self._left_out.clear()
        if not self._guest:
            status = line.connection.publish(self._status_topic, self._status("online"), retain=True)
            self._culprit.sent(STATUS)
            line.others[status] = STATUS, 0
            self._subscribe(line)

    def _subscribe(self, line: _Line) -> None:
        before, line.filters = line.filters, self._filters
        for name, wanted in line.filters.items():
            if before.get(name) == wanted:
                continue
            if wanted:  # a retained command is recognised even when it comes live
                line.connection.subscribe([name], retain_as_published=True)
            else:  # the session may be from a time when it was wanted
                line.connection.unsubscribe(name)

    def _take(self, message: Incoming) -> None:
        """Store a command for `received` to return."""
        self.counts.commands += 1
        if len(self._incoming) >= _MAX_COMMANDS:
            self.counts.commands_lost += 1
            return
        payload = message.payload[: MAX_COMMAND + 1]  # too long stays too long, and takes no memory
        correlation = message.correlation if len(message.correlation) <= _MAX_CORRELATION else b""
        self._incoming.append(replace(message, payload=payload, correlation=correlation))

    def _settle(self, line: _Line, answers: Sequence[Acknowledged]) -> None:
        """Act on the broker's answers to what was published."""
        alerts: list[Acknowledged] = []
        problem = ""
        for answer in answers:
            if answer.id in line.replies:
                del line.replies[answer.id]
                self._culprit.answered((REPLY, answer.id))
                self.counts.replies_lost += answer.refused
                continue
            if answer.id in line.shipment:
                alerts.append(answer)
                continue
            if answer.id in line.others:
                key, _ = line.others.pop(answer.id)
                self._culprit.answered(key)
            if answer.refused:
                problem = f"refuses what the agent publishes about itself: {answer.reason}"
                self.counts.refused += 1
        news = line.shipment.settle(alerts)
        if problem := news or problem:
            self._problem = problem
            if problem not in line.logged:
                line.logged.add(problem)
                logger.error(
                    "broker %s %s; the messages stay stored and are sent again later", self.config.address, problem
                )
        elif news is not None:
            self._problem = ""

    def _publish_documents(self, line: _Line) -> None:
        """Publish the documents that are new on this connection, once: the next makes up for one that is lost."""
        if self._documents is line.documents:
            return
        documents = self._documents
        for leaf, document in documents.items():
            if line.published.get(leaf) is document:
                continue
            if not self._culprit.free():
                return
            line.published[leaf] = document
            if not self._fits(line, leaf, document.topic, document.payload):
                continue
            # Singly with an answer: else nobody knows if it was this one that ended the connection.
            qos: Literal[0, 1] = 1 if self._culprit.singly else document.qos
            sent = line.connection.publish(
                document.topic, document.payload, qos=qos, retain=True, expires_s=document.expires_s
            )
            key = (_DOCUMENT, leaf)
            self._culprit.sent(key, answer=qos == 1)
            if qos == 1:
                line.others[sent] = key, len(document.payload)
        line.documents = documents

    def _publish_replies(self, line: _Line) -> None:
        while self._replies and len(line.replies) < line.shipment.window and self._culprit.free():
            where, payload, correlation = self._replies[0]
            fits = self._fits(line, REPLY, where, payload, correlation)
            sent = line.connection.publish(where, payload, correlation=correlation) if fits else 0
            self._replies.popleft()  # not before it is under way
            if not fits:
                self.counts.replies_lost += 1
                continue
            line.replies[sent] = len(payload)
            self._culprit.sent((REPLY, sent))
            self.counts.replies += 1

    def _fits(self, line: _Line, leaf: str, where: str, payload: bytes, correlation: bytes = b"") -> bool:
        """Return False, and count it, if the broker does not take a document or a reply of this size."""
        if not line.connection.fits(where, payload, correlation):
            if leaf not in line.logged:
                line.logged.add(leaf)
                logger.error(
                    "%s of %d bytes is not published: broker %s accepts packets of at most %d bytes",
                    *(leaf, len(payload), self.config.address, line.connection.max_packet),
                )
        elif not self._left_out.rests(leaf, len(payload)):
            return True
        self.counts.documents_set_aside += 1
        return False

    def _say_goodbye(self, line: _Line) -> None:
        """Deliver what waits, publish `stopped`, and disconnect in a way that does not set off the last will.

        Half of the time is for the alerts; those the broker has not taken by then stay in the outbox.
        """
        began = time.monotonic()
        self._publish_documents(line)
        self._publish_replies(line)
        while time.monotonic() < began + _GOODBYE_S / 2:
            line.shipment.ship()
            if line.shipment.empty:
                break
            self._act_on(line, line.connection.step(0.05, self._wake_r))
        delivered, last = self._guest, 0
        if not self._guest:
            last = line.connection.publish(self._status_topic, self._status("stopped"), retain=True)
            self._culprit.sent(STATUS)
            line.others[last] = STATUS, 0
        while not delivered and time.monotonic() < began + _GOODBYE_S:
            events = line.connection.step(0.05, self._wake_r)
            self._act_on(line, events)
            delivered = any(isinstance(event, Acknowledged) and event.id == last for event in events)
        line.connection.disconnect(within_s=began + _GOODBYE_S - time.monotonic())

    def _status(self, state: Any) -> bytes:
        return encode(Status(state, self._boot, self._agent, time.time_ns()).document())
