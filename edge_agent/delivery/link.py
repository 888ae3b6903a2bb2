"""The agent's line to the broker: sends what waits in the outbox, publishes the agent's status, brings commands.

One thread, the one in `Link.run`, owns the connection and reads the outbox. Other threads only leave work for it: a
document to be published, a reply, the wish for commands.

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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edge_agent.contract.broker import Backoff, BrokerConfig
from edge_agent.contract.commands import MAX_COMMAND
from edge_agent.contract.messages import Status, encode, topic
from edge_agent.delivery.outbox import Outbox
from edge_agent.delivery.shipment import Shipment, ShipmentCounts
from edge_agent.mqtt import Acknowledged, Connected, Connection, ConnectionEnded, Dialer, Event, Incoming, Subscribed

__all__ = ["BrokerConfig", "Incoming", "Link", "LinkCounts"]

logger = logging.getLogger(__name__)

_STEADY_S = 10.0  # a connection that lasted this long was a working one
_MAX_LOGGED = 16  # problems that are logged between two steady connections
_POLL_S = 0.25  # how late a set ``stop`` may be noticed
_GOODBYE_S = 0.8  # how long the last alerts and the last status may take
_MAX_INCOMING = 1_048_576  # bytes of a packet that the broker may send us
_MAX_COMMANDS = 64  # commands, and replies, that may wait
_MAX_CORRELATION = 256  # bytes of correlation data that a reply gives back


@dataclass
class LinkCounts(ShipmentCounts):
    """Counters since the start; ``refused`` includes refusals of the agent's own documents."""

    connects: int = 0
    failures: int = 0  # attempts to connect, and connections, that failed
    commands: int = 0  # messages on our command topics
    commands_lost: int = 0  # of those, dropped since too many waited
    replies: int = 0
    replies_lost: int = 0  # dropped since too many waited or the broker takes none so large, or refused by the broker


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
    commands: bool = False  # subscribed to
    replies: set[int] = field(default_factory=set)  # message ids of those under way
    documents: dict[str, _Document] = field(default_factory=dict)  # `Link.retain`'s as last looked at
    published: dict[str, _Document] = field(default_factory=dict)  # of those, what was published
    logged: set[str] = field(default_factory=set)  # refusals


class Link:
    """Carries ``outbox`` to the broker of ``config`` for ``gateway``, whose agent has version ``agent``.

    Raises BrokerError when the TLS or password files cannot be used. ``connected``, ``protocol`` ("5", "3.1.1" or ""),
    ``trouble`` (why nothing moves, "" when all is well) and ``counts`` may be read from any thread. With ``commands``
    the broker's commands are subscribed to; `received` hands them out. A ``guest`` only sends what waits in the outbox:
    with that word behind its id it is another client than the agent, whose connection, session, status and commands it
    leaves alone.
    """

    def __init__(
        self,
        config: BrokerConfig,
        outbox: Outbox,
        *,
        gateway: str,
        agent: str,
        commands: bool = False,
        guest: str = "",
    ) -> None:
        self.config, self.counts = config, LinkCounts()
        self.connected, self.protocol, self.trouble = False, "", ""
        self._outbox, self._gateway, self._agent, self._boot = outbox, gateway, agent, str(uuid.uuid4())
        self._status_topic = topic(gateway, "status", config.base)
        self._commands_filter = topic(gateway, "cmd/+", config.base)
        self._guest = bool(guest)
        suffix = f"-{guest}" if guest else ""
        self._dialer = Dialer(config, gateway, suffix=suffix, clean=bool(guest), max_packet=_MAX_INCOMING)
        # what other threads leave for the one in `run`, and it for them
        self._commands = commands
        self._incoming: deque[Incoming] = deque()
        self._replies: deque[tuple[str, bytes, bytes]] = deque()
        self._documents: dict[str, _Document] = {}  # by leaf; replaced as a whole, so that threads need no lock
        self._resend = False
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        # of the thread in `run`
        self._backoff = Backoff(config.retry_min_s, config.retry_max_s)
        self._lost_s: float | None = None  # Unix time at which the last connection ended
        self._connected_at = 0.0  # steady clock: when the current or last connection was made
        self._logged: set[str] = set()  # problems in the log since the last steady connection
        outbox.wake_with(self.wake)

    def run(self, stop: threading.Event) -> None:
        """Keep the line up until ``stop`` is set, then publish `stopped` and hang up. Call once, in its own thread.

        Returns within about a second of `wake`, unless a connection is just being made: that may take as long as the
        name server, TCP and TLS let it, and the outbox is not touched any more when it is done.
        """
        while not stop.is_set():
            ended = self._serve(stop)
            if ended is None or stop.is_set():
                break
            self.counts.failures += 1
            wait = 0.0 if ended.try_other_version else self._backoff.next()
            self._report(str(ended), wait)
            self._outbox.save()
            stop.wait(wait)

    def retain(self, leaf: str, payload: bytes, *, qos: Literal[0, 1] = 1, expires_s: int | None = None) -> None:
        """Publish ``payload`` on ``.../<leaf>``, retained, now and on every new connection until it is replaced.

        Under MQTT 5 a broker forgets it after ``expires_s``. For any thread. Nothing is stored over a restart.
        """
        where = topic(self._gateway, leaf, self.config.base)
        self._documents = {**self._documents, leaf: _Document(where, payload, qos, expires_s)}
        self.wake()

    def flush(self, timeout_s: float) -> int:
        """Wait until the outbox is empty, at most ``timeout_s``; return how many messages still wait.

        ``trouble`` then has the reason. For any thread but the one in `run`.
        """
        deadline = time.monotonic() + timeout_s
        while (left := self._outbox.depth()) and time.monotonic() < deadline:
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

    def want_commands(self, wanted: bool) -> None:
        """Subscribe to the broker's commands from now on, or no longer. For any thread."""
        self._commands = wanted
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

    def _serve(self, stop: threading.Event) -> ConnectionEnded | None:
        """Carry messages over one connection until it ends, which is returned, or ``stop`` is set."""
        connection = None
        try:
            will = None if self._guest else (self._status_topic, self._status("offline"))
            connection = self._dialer.dial(will)
            line = _Line(connection, Shipment(self._outbox, connection, self.config.inflight, self.counts))
            while not stop.is_set():
                self._act_on(line, connection.step(_POLL_S, self._wake_r))
                if not self.connected:
                    continue
                if line.commands != self._commands:
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
            return end
        finally:
            if self.connected:
                self._lost_s = time.time()
                if time.monotonic() - self._connected_at >= _STEADY_S:
                    self._backoff.reset()
                    self._logged.clear()
            self.connected = False
            if connection is not None:
                connection.close()
        return None

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
                            "broker %s refuses the subscription to commands: %s; commands through it do not arrive",
                            self.config.address,
                            reason,
                        )
        if answers:
            self._settle(line, answers)

    def _begin(self, line: _Line) -> None:
        """Publish the agent's status and subscribe, on a connection that has just been accepted."""
        self.counts.connects += 1
        self.protocol, self.connected, self.trouble = line.connection.protocol, True, ""
        self._connected_at = time.monotonic()
        again = self._outbox.again(self.config.repeat_s, self._lost_s)
        self.counts.repeated += again
        repeats = f"; {again} alerts that the broker may have lost are sent again" if again else ""
        logger.info("connected to broker %s, MQTT %s%s", self.config.address, self.protocol, repeats)
        if not self._guest:
            line.connection.publish(self._status_topic, self._status("online"), retain=True)
            self._subscribe(line)

    def _subscribe(self, line: _Line) -> None:
        line.commands = self._commands
        if line.commands:  # a retained command is recognised even when it comes live
            line.connection.subscribe([self._commands_filter], retain_as_published=True)
        else:  # the session may be from a time when they were wanted
            line.connection.unsubscribe(self._commands_filter)

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
                line.replies.discard(answer.id)
                self.counts.replies_lost += answer.refused
            elif answer.id in line.shipment:
                alerts.append(answer)
            elif answer.refused:
                problem = f"refuses what the agent publishes about itself: {answer.reason}"
                self.counts.refused += 1
        news = line.shipment.settle(alerts)
        if problem := news or problem:
            self.trouble = problem
            if problem not in line.logged:
                line.logged.add(problem)
                logger.error(
                    "broker %s %s; the messages stay stored and are sent again later", self.config.address, problem
                )
        elif news is not None:
            self.trouble = ""

    def _publish_documents(self, line: _Line) -> None:
        """Publish the documents that are new on this connection, once: the next makes up for one that is lost."""
        if self._documents is line.documents:
            return
        line.documents = self._documents
        for leaf, document in line.documents.items():
            if line.published.get(leaf) is document:
                continue
            line.published[leaf] = document
            if not line.connection.fits(document.topic, document.payload):
                logger.error(
                    "%s of %d bytes is not published: broker %s accepts packets of at most %d bytes",
                    *(leaf, len(document.payload), self.config.address, line.connection.max_packet),
                )
                continue
            line.connection.publish(
                document.topic, document.payload, qos=document.qos, retain=True, expires_s=document.expires_s
            )

    def _publish_replies(self, line: _Line) -> None:
        while self._replies and len(line.replies) < line.shipment.window:
            where, payload, correlation = self._replies.popleft()
            if not line.connection.fits(where, payload, correlation):
                self.counts.replies_lost += 1
                continue
            line.replies.add(line.connection.publish(where, payload, correlation=correlation))
            self.counts.replies += 1

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
        while not delivered and time.monotonic() < began + _GOODBYE_S:
            events = line.connection.step(0.05, self._wake_r)
            self._act_on(line, events)
            delivered = any(isinstance(event, Acknowledged) and event.id == last for event in events)
        line.connection.disconnect(within_s=began + _GOODBYE_S - time.monotonic())

    def _report(self, problem: str, wait_s: float) -> None:
        """Log a problem when it is a new one; the same again, also in turn with another, is only counted."""
        if problem not in self._logged and len(self._logged) < _MAX_LOGGED:
            self._logged.add(problem)
            again = f"; trying again in {wait_s:.1f} s" if wait_s else "; trying MQTT 3.1.1"
            logger.warning("broker %s: %s%s", self.config.address, problem, again)
        self.trouble = problem

    def _status(self, state: Any) -> bytes:
        return encode(Status(state, self._boot, self._agent, time.time_ns()).document())
