"""The line to the broker: takes what waits in the outbox there, tells who is on it, and brings commands and replies.

The agent's only user of paho.

One thread, the one in `Link.run`, owns the connection and reads the outbox: it drives paho's network loop itself, so
paho's callbacks run in it too, and they only append to lists that the loop looks at next. (`on_publish` runs under a
lock of paho's: a callback that took one of ours there would lock up with a thread that publishes under it.)

A message leaves the outbox only when the broker has acknowledged it without an error. Under MQTT 5 a broker says when
it refuses a message; under 3.1.1 it cannot, and a refused message looks like a delivered one. Even an acknowledged
message is lost when the broker is killed before it has written it down or passed it on, so a new connection begins
with those acknowledged in the last seconds of the one before. And a broker that has lost its subscriptions too throws
away what comes before the collector is back: under MQTT 5 it says so, and the message waits.

Commands are only collected here; what they mean, and whether they may be given, is `edge_agent.control`'s knowledge. A
reply is sent once and not kept: whoever misses it repeats the command, which is then answered and not done again.
"""

import logging
import select
import socket
import ssl
import threading
import time
import uuid
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from paho.mqtt import MQTTException
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_agent.contract.broker import (
    BROKEN,
    Backoff,
    BrokerConfig,
    BrokerError,
    Versions,
    alert_in,
    explain,
    last_words,
    plain,
)
from edge_agent.contract.commands import MAX_COMMAND
from edge_agent.contract.messages import Status, encode, topic
from edge_agent.delivery.outbox import Outbox

__all__ = ["BrokerConfig", "Incoming", "Link", "LinkCounts"]

logger = logging.getLogger(__name__)

_STEADY_S = 10.0  # a connection that lasted so long was none of those that end as soon as they are made
_MAX_TOLD = 16  # kinds of trouble that are logged between two steady connections
_POLL_S = 0.25  # how late a set ``stop`` may be noticed
_GOODBYE_S = 0.8  # how long the last alerts and words may take
_RETRY_REFUSED_S = 300.0  # a refused message is tried again so much later, or on the next connection
_MAX_HOLD_S = 30.0  # while a broker refuses, one message is tried so often
_UNHEARD = 0x10  # MQTT 5: "No matching subscribers"
_MAX_INCOMING = 1_048_576  # bytes of a packet the broker may send us
_MAX_COMMANDS = 64  # commands, and replies, that wait
_MAX_CORRELATION = 256  # bytes that a reply gives back
_BROKEN = (*BROKEN, MQTTException)


@dataclass
class LinkCounts:
    """How often what happened, since the start."""

    connects: int = 0
    failures: int = 0  # attempts to connect, and connections, that failed
    published: int = 0  # handed to the broker, repeats included
    acknowledged: int = 0
    repeated: int = 0  # taken by a broker before, and sent again on a new connection
    unheard: int = 0  # thrown away by the broker since nobody subscribes; the message stays in the outbox
    refused: int = 0  # refusals by the broker, repeats included; the message stays in the outbox
    commands: int = 0  # messages on our command topics
    commands_lost: int = 0  # of those, thrown away since too many waited
    replies: int = 0
    replies_lost: int = 0  # thrown away since too many waited, or refused by the broker


@dataclass(frozen=True)
class Incoming:
    """A message on ``.../cmd/<verb>``, as it came."""

    topic: str
    payload: bytes
    retained: bool
    response_topic: str = ""  # MQTT 5: where the sender wants the reply
    correlation: bytes = b""  # MQTT 5: what the reply is to carry


class Link:
    """Carries ``outbox`` to the broker of ``config`` for ``gateway``, whose agent has version ``agent``.

    Raises BrokerError when the TLS or password files cannot be used. ``connected``, ``protocol`` ("5", "3.1.1" or ""),
    ``trouble`` (why nothing moves, "" when all is well) and ``counts`` may be read from any thread.
    ``commands`` says whether the broker's commands are wanted; `received` has them.
    """

    def __init__(
        self, config: BrokerConfig, outbox: Outbox, *, gateway: str, agent: str, commands: bool = False
    ) -> None:
        self.config, self.counts = config, LinkCounts()
        self.connected, self.protocol, self.trouble = False, "", ""
        self._commands, self._commands_filter = commands, topic(gateway, "cmd/+", config.base)
        self._incoming: deque[Incoming] = deque()
        self._replies: deque[tuple[str, bytes, bytes]] = deque()
        self._rewind = False
        self._retained: dict[str, _Retained] = {}  # by leaf; replaced as a whole, so that threads need no lock
        self._outbox, self._gateway, self._agent, self._boot = outbox, gateway, agent, str(uuid.uuid4())
        self._status_topic = topic(gateway, "status", config.base)
        self._tls, self._password = config.tls_context(), config.password()
        self._versions = Versions(config.version)
        self._backoff = Backoff(config.retry_min_s, config.retry_max_s)
        self._lost_s: float | None = None  # when the last connection ended
        self._up = 0.0  # steady clock: when the one there is, or was last, was made
        self._told: set[str] = set()  # kinds of trouble in the log since the last steady connection
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        outbox.wake_with(self.wake)

    def run(self, stop: threading.Event) -> None:
        """Keep the line up until ``stop`` is set, then say `stopped` and hang up. Call once, in a thread of its own.

        Returns within about a second of `wake`, unless a connection is just being made: that may take as long as the
        name server, TCP and TLS let it, and the outbox is not touched any more when it is done.
        """
        while not stop.is_set():
            session = _Session(self)
            try:
                problem = session.serve(stop)
            except _BROKEN as error:
                problem = explain(error)
            finally:
                if self.connected:
                    self._lost_s = time.time()
                    if time.monotonic() - self._up >= _STEADY_S:
                        self._backoff.reset()
                        self._told.clear()
                self.connected = False
                session.close()
            if stop.is_set():
                break
            self.counts.failures += 1
            wait = 0.0 if session.try_other_version else self._backoff.next()
            self._say(problem, wait)
            self._outbox.save()
            stop.wait(wait)

    def retain(self, leaf: str, payload: bytes, *, qos: Literal[0, 1] = 1, expires_s: int | None = None) -> None:
        """Let ``.../<leaf>`` say ``payload``: published, retained, now and on every new connection, until the next one.

        Under MQTT 5 a broker forgets it after ``expires_s``. For any thread. Nothing is kept over a restart.
        """
        where = topic(self._gateway, leaf, self.config.base)
        self._retained = {**self._retained, leaf: _Retained(where, payload, qos, expires_s)}
        self.wake()

    def flush(self, timeout_s: float) -> int:
        """Wait until the outbox is empty, at most ``timeout_s``; how many messages still wait (``trouble`` says why).

        For any thread but the one in `run`.
        """
        deadline = time.monotonic() + timeout_s
        while (left := self._outbox.depth()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def received(self) -> Incoming | None:
        """The oldest command that waits, which is then taken; None when there is none. For one thread, of any kind."""
        return self._incoming.popleft() if self._incoming else None

    def reply(self, where: str, payload: bytes, correlation: bytes = b"") -> None:
        """Publish a reply as soon as there is a connection. For any thread."""
        if len(self._replies) >= _MAX_COMMANDS:
            self.counts.replies_lost += 1
            return
        self._replies.append((where, payload, correlation))
        self.wake()

    def want_commands(self, wanted: bool) -> None:
        """Whether the broker's commands are wanted from now on. For any thread."""
        self._commands = wanted
        self.wake()

    def room(self) -> int:
        """How many more replies may wait."""
        return _MAX_COMMANDS - len(self._replies)

    def resend(self) -> None:
        """Begin again with the oldest message of the outbox, where others wait again. For any thread."""
        self._rewind = True
        self.wake()

    def wake(self) -> None:
        """There is something new in the outbox, or ``stop`` was set. For any thread."""
        with suppress(OSError):  # full: it will wake anyway
            self._wake_w.send(b"\0")

    def _say(self, problem: str, wait: float) -> None:
        """Log a trouble when it is a new one; the same again, also in turn with another, is only counted."""
        if problem not in self._told and len(self._told) < _MAX_TOLD:
            self._told.add(problem)
            again = f"; trying again in {wait:.1f} s" if wait else "; trying MQTT 3.1.1"
            logger.warning("broker %s: %s%s", self.config.address, problem, again)
        self.trouble = problem


def probe(config: BrokerConfig, gateway: str) -> str:
    """Introduce ourselves to the broker as the agent of ``gateway`` would, and hang up: the MQTT version it speaks.

    A session that the broker keeps stays as it is; an agent that is connected meanwhile would lose its connection.
    Raises BrokerError with why not.
    """
    tls, password, versions = config.tls_context(), config.password(), Versions(config.version)
    while True:
        level, said = versions.next(), _Said()
        client = _client(config, gateway, level, tls, password)
        client.on_connect, client.on_socket_close, client.on_log = said.on_connect, said.on_socket_close, said.on_log
        try:
            _introduce(client, config, level)
            deadline = time.monotonic() + config.connect_timeout_s
            while said.reason is None and client.socket() is not None and time.monotonic() < deadline:
                client.loop(0.1)
            hung_up = client.socket() is None
            client.disconnect()
        except _BROKEN as error:
            raise BrokerError(explain(error)) from error
        if said.reason is not None and not said.reason.is_failure:
            return "5" if level == 5 else "3.1.1"
        if said.reason is not None and str(said.reason) != "Unsupported protocol version":
            raise BrokerError(f"refuses the connection: {said.reason}")
        if config.version != "auto" or level == 4 or said.by_tls:
            silent = "hung up at the first word" if hung_up else "no answer from the broker"
            raise BrokerError(said.by_tls or str(said.reason or silent))
        versions.refused()


class _Said:
    """What a broker said to `probe`."""

    def __init__(self) -> None:
        self.reason: ReasonCode | None = None
        self.by_tls = ""

    def on_connect(self, _c: mqtt.Client, _d: Any, _f: mqtt.ConnectFlags, reason: ReasonCode, _p: object) -> None:
        self.reason = reason

    def on_socket_close(self, _client: mqtt.Client, _data: Any, sock: object) -> None:
        if self.reason is None:
            self.by_tls = last_words(sock) or self.by_tls

    def on_log(self, _client: mqtt.Client, _data: Any, level: int, text: str) -> None:
        if level == mqtt.MQTT_LOG_ERR:  # where paho has read it first
            self.by_tls = alert_in(text) or self.by_tls


def _client(
    config: BrokerConfig, gateway: str, level: int, tls: "ssl.SSLContext | None", password: str | None
) -> mqtt.Client:
    """A client as the agent of ``gateway`` is one, under MQTT ``level`` 5 or 4."""
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=config.client_id or gateway,
        clean_session=None if level == 5 else False,
        protocol=MQTTProtocolVersion.MQTTv5 if level == 5 else MQTTProtocolVersion.MQTTv311,
        reconnect_on_failure=False,
    )
    client.connect_timeout = config.connect_timeout_s
    if config.username:
        client.username_pw_set(config.username, password)
    if tls:
        client.tls_set_context(tls)
    return client


def _introduce(client: mqtt.Client, config: BrokerConfig, level: int) -> None:
    """Connect, and go on with the session that the broker keeps. Raises what `_BROKEN` lists."""
    if level == 5:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = config.session_s
        properties.MaximumPacketSize = _MAX_INCOMING
        client.connect(config.host, config.port, config.keepalive_s, clean_start=False, properties=properties)
    else:
        client.connect(config.host, config.port, config.keepalive_s)


@dataclass(frozen=True, eq=False)
class _Retained:
    """A document that stands on the broker until the next of its kind."""

    topic: str
    payload: bytes
    qos: Literal[0, 1]
    expires_s: int | None


@dataclass
class _Hold:
    """While a broker refuses what is said on a topic, one message is tried at a time, ever more seldom."""

    backoff: Backoff
    until: float = 0.0  # steady clock
    trying: bool = False  # that one message is under way


class _Session:
    """One connection, from the attempt to its end. What it leaves unacknowledged, the next one sends again."""

    def __init__(self, link: Link) -> None:
        self._link, config = link, link.config
        self._level = link._versions.next()
        self._answered = False  # the broker replied to CONNECT
        self._asked = False  # for commands
        self._problem, self._refused_by_tls = "", False
        self._retained_seen: dict[str, _Retained] = {}
        self._retained_told: dict[str, _Retained] = {}
        self._acks: list[tuple[int, ReasonCode]] = []
        self._rows: dict[int, tuple[int, str]] = {}  # message id -> outbox row and topic, of what is under way
        self._answers: set[int] = set()  # message ids of replies under way
        self._refused: set[int] = set()
        self._retry_refused = 0.0
        self._holds: dict[str, _Hold] = {}  # by topic, where the last word was a refusal; "" is for all
        self._passed_over = False  # the outbox has handed over rows whose topic is held
        self._told: set[str] = set()  # refusals that were logged
        self._unheard = False  # what is under way, or was, was heard by nobody
        self._window, self._max_packet = config.inflight, 0
        self.try_other_version = False
        self._client = client = _client(config, link._gateway, self._level, link._tls, link._password)
        client.max_inflight_messages_set(0)  # bounded here, by the window
        client.will_set(link._status_topic, self._status("offline"), qos=1, retain=True)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_publish, client.on_log = self._on_publish, self._on_log
        client.on_message, client.on_subscribe = self._on_message, self._on_subscribe
        client.on_socket_close = self._on_socket_close

    def serve(self, stop: threading.Event) -> str:
        """Connect and carry messages until the connection ends; the reason, in words. Raises what `_BROKEN` lists."""
        link, config, client = self._link, self._link.config, self._client
        _introduce(client, config, self._level)
        patience = time.monotonic() + config.connect_timeout_s
        while not stop.is_set():
            self._step(_POLL_S)
            self._settle()
            if client.socket() is None:
                return self._ended()
            if link.connected:
                if self._asked != link._commands:
                    self._ask_for_commands()
                self._tell_retained()
                self._answer()
                self._ship()
            elif not self._answered and time.monotonic() > patience:
                self._problem = "no answer from the broker"
                return self._ended()
        if link.connected:
            self._goodbye()
        return ""

    def close(self) -> None:
        """Leave without a word (after `serve` said them, or could not); the broker then speaks the last will."""
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    def _step(self, timeout_s: float) -> None:
        """Let paho read and write what it can, after waiting for it or for `Link.wake`."""
        client, wake = self._client, self._link._wake_r
        sock = client.socket()
        if sock is None:
            return
        if isinstance(sock, ssl.SSLSocket) and sock.pending():  # decrypted already: select would not see it
            timeout_s = 0.0
        readable, writable, _ = select.select([sock, wake], [sock] if client.want_write() else [], [], timeout_s)
        if wake in readable:
            wake.recv(4096)
        if sock in readable or timeout_s == 0.0:
            client.loop_read()
        if writable:
            client.loop_write()
        client.loop_misc()

    def _tell_retained(self) -> None:
        """Publish the documents this connection has not been given, once: the next makes up for one that is lost."""
        if self._link._retained is self._retained_seen:
            return
        self._retained_seen = self._link._retained
        for leaf, document in self._retained_seen.items():
            if self._retained_told.get(leaf) is document or self._client.socket() is None:
                continue
            self._retained_told[leaf] = document
            size = len(document.payload) + len(document.topic) + 32
            if self._max_packet and size > self._max_packet:
                logger.error(
                    "broker takes packets of %d bytes at most: %s of %d is not told", self._max_packet, leaf, size
                )
                continue
            properties = None
            if self._level == 5 and document.expires_s is not None:
                properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
                properties.MessageExpiryInterval = document.expires_s
            self._client.publish(document.topic, document.payload, document.qos, retain=True, properties=properties)

    def _answer(self) -> None:
        """Publish the replies that wait."""
        link = self._link
        while link._replies and len(self._answers) < self._window and self._client.socket() is not None:
            where, payload, correlation = link._replies.popleft()
            if self._max_packet and len(payload) + len(where) + len(correlation) + 32 > self._max_packet:
                link.counts.replies_lost += 1
                continue
            properties = None
            if self._level == 5 and correlation:
                properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
                properties.CorrelationData = correlation
            self._answers.add(self._client.publish(where, payload, qos=1, properties=properties).mid)
            link.counts.replies += 1

    def _settle(self) -> None:
        """Act on the acknowledgements that came."""
        link, acks = self._link, self._acks
        if not acks:
            return
        self._acks = []
        done: dict[int, str] = {}
        failed: set[str] = set()
        problem = ""
        for mid, reason in acks:
            if mid in self._answers:
                self._answers.discard(mid)
                link.counts.replies_lost += reason.is_failure
                continue
            row, where = self._rows.pop(mid, (None, ""))
            if reason.is_failure:
                problem = f"refuses {'what we say of ourselves' if row is None else 'alerts'}: {reason}"
                link.counts.refused += 1
                if row is not None:
                    self._keep_back(row)
                    failed.add(where)
            elif row is not None and reason.value == _UNHEARD:
                problem = "knows nobody who subscribes to alerts"
                link.counts.unheard += 1
                self._unheard = True
                failed.add("")
            elif row is not None:
                done[row] = where
        if done:
            link._outbox.done(done)
            link.counts.acknowledged += len(done)
        for where in failed:
            self._hold(where)
        for where in {"", *done.values()} - failed if done else ():
            self._holds.pop(where, None)
        if problem:
            link.trouble = problem
            if problem not in self._told:
                self._told.add(problem)
                logger.error("broker %s %s; kept, and tried again later", link.config.address, problem)
        elif done and not self._refused:
            link.trouble = ""

    def _hold(self, where: str) -> None:
        """Let ``where`` rest; what was under way together is one refusal, since where one is refused most are."""
        hold, now = self._holds.setdefault(where, _Hold(Backoff(1.0, _MAX_HOLD_S))), time.monotonic()
        if now >= hold.until:
            hold.until = now + hold.backoff.next()
        hold.trying = False

    def _keep_back(self, row: int) -> None:
        """Let the others pass ``row`` until it is time to try it again."""
        if not self._refused:
            self._retry_refused = time.monotonic() + _RETRY_REFUSED_S
        self._refused.add(row)

    def _ship(self) -> None:
        """Publish what waits, as far as the window allows.

        Of a topic that the broker refuses one message is tried at a time, and the others are passed over: those of a
        gateway's former name may not hold up those of its new one.
        """
        link, now, again = self._link, time.monotonic(), False
        if not self._rows:
            again = self._unheard or link._rewind or self._rested(now)
            if self._refused and now > self._retry_refused:
                self._refused.clear()
                again = True
            if again:  # in order again from the oldest
                self._unheard = link._rewind = self._passed_over = False
                link._outbox.rewind()
        everything = self._holds.get("")
        if self._unheard or link._rewind or (everything and now < everything.until):
            return
        window = 1 if everything else self._window

        def send(row: int, where: str, payload: bytes) -> bool:
            if row in self._refused:
                return True
            hold = self._holds.get(where)
            if hold and (hold.trying or now < hold.until):
                self._passed_over = True
                return True
            if len(self._rows) >= window or self._client.socket() is None:
                return False
            if self._max_packet and len(payload) + len(where) + 16 > self._max_packet:
                logger.error(
                    "broker takes packets of %d bytes at most: an alert of %d waits", self._max_packet, len(payload)
                )
                self._keep_back(row)
                link.counts.refused += 1
                return True
            info = self._client.publish(where, payload, qos=1)
            self._rows[info.mid] = row, where
            link.counts.published += 1
            if hold:
                hold.trying = True
            return True

        if len(self._rows) < window:
            link._outbox.drain(send)
        if again or not self._passed_over:  # of a topic that could be tried and was not no row is left
            held = self._holds.items()
            self._holds = {name: hold for name, hold in held if not name or hold.trying or now < hold.until}

    def _rested(self, now: float) -> bool:
        """Whether rows were passed over that may be tried now."""
        due = (now >= hold.until for where, hold in self._holds.items() if where)
        return self._passed_over and (not self._holds or any(due))

    def _goodbye(self) -> None:
        """Deliver what waits, say `stopped`, and disconnect in a way that does not set off the last will.

        Half of the time is for the alerts; those the broker has not taken by then stay in the outbox.
        """
        client, began = self._client, time.monotonic()
        deadline = began + _GOODBYE_S
        self._tell_retained()
        self._answer()
        while client.socket() is not None and time.monotonic() < began + _GOODBYE_S / 2:
            self._ship()
            if not self._rows:
                break
            self._step(0.05)
            self._settle()
        last = client.publish(self._link._status_topic, self._status("stopped"), qos=1, retain=True)
        while client.socket() is not None and not last.is_published() and time.monotonic() < deadline:
            self._step(0.05)
            self._settle()
        client.disconnect()
        while client.socket() is not None and client.want_write() and time.monotonic() < deadline:
            self._step(0.05)

    def _ended(self) -> str:
        """Why the connection ended; tells the version chooser."""
        link = self._link
        if self._answered:
            if link.connected:
                link._versions.lost()
            return self._problem or "connection lost"
        if self._refused_by_tls:
            return self._problem
        if self._level == 5 and link.config.version == "auto":
            self.try_other_version = True
        link._versions.hung_up()
        return self._problem or "hung up at the first word"

    def _status(self, state: Any) -> bytes:
        return encode(Status(state, self._link._boot, self._link._agent, time.time_ns()).document())

    def _on_connect(
        self,
        client: mqtt.Client,
        _data: Any,
        flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        link, self._answered = self._link, True
        if reason.is_failure:
            self._problem = f"refuses the connection: {reason}"
            if self._level == 5 and str(reason) == "Unsupported protocol version":
                link._versions.refused()
                self.try_other_version = link._versions.next() != self._level
            return
        self._window = min(link.config.inflight, getattr(properties, "ReceiveMaximum", link.config.inflight))
        self._max_packet = getattr(properties, "MaximumPacketSize", 0)
        link.counts.connects += 1
        link.protocol, link.connected, link.trouble = ("5" if self._level == 5 else "3.1.1"), True, ""
        link._up = time.monotonic()
        again = link._outbox.again(link.config.repeat_s, link._lost_s)
        link.counts.repeated += again
        logger.info("connected to %s, MQTT %s; %d alerts again", link.config.address, link.protocol, again)
        client.publish(link._status_topic, self._status("online"), qos=1, retain=True)
        self._ask_for_commands()

    def _ask_for_commands(self) -> None:
        link, client = self._link, self._client
        self._asked = link._commands
        if not self._asked:
            client.unsubscribe(link._commands_filter)  # the session may be from a time when they were wanted
        elif self._level == 5:  # a retained one is told apart even when it comes live
            client.subscribe(link._commands_filter, options=SubscribeOptions(qos=1, retainAsPublished=True))
        else:
            client.subscribe(link._commands_filter, qos=1)

    def _on_subscribe(
        self, _client: mqtt.Client, _data: Any, _mid: int, reasons: list[ReasonCode], _props: Properties | None
    ) -> None:
        for reason in reasons:
            if reason.is_failure:
                logger.warning("broker %s lets no commands through: %s", self._link.config.address, reason)

    def _on_message(self, _client: mqtt.Client, _data: Any, m: mqtt.MQTTMessage) -> None:
        link = self._link
        link.counts.commands += 1
        if len(link._incoming) >= _MAX_COMMANDS:
            link.counts.commands_lost += 1
            return
        try:
            where = m.topic
        except UnicodeDecodeError:  # paho leaves it undecoded
            where = ""
        response = getattr(m.properties, "ResponseTopic", "")
        correlation = getattr(m.properties, "CorrelationData", b"")
        if len(correlation) > _MAX_CORRELATION:
            correlation = b""
        payload = bytes(m.payload[: MAX_COMMAND + 1])  # too long stays too long, and takes no memory
        link._incoming.append(Incoming(where, payload, bool(m.retain), response, correlation))

    def _on_disconnect(
        self,
        _client: mqtt.Client,
        _data: Any,
        flags: mqtt.DisconnectFlags,
        reason: ReasonCode,
        _props: Properties | None,
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._problem = f"ended the connection: {reason}"

    def _on_publish(
        self, _client: mqtt.Client, _data: Any, mid: int, reason: ReasonCode, _props: Properties | None
    ) -> None:
        self._acks.append((mid, reason))

    def _on_socket_close(self, _client: mqtt.Client, _data: Any, sock: object) -> None:
        if not self._answered and (said := last_words(sock)):
            self._problem, self._refused_by_tls = said, True

    def _on_log(self, _client: mqtt.Client, _data: Any, level: int, text: str) -> None:
        if level == mqtt.MQTT_LOG_ERR:  # "failed to receive on socket: ...", which no callback tells
            self._problem = plain(text)
