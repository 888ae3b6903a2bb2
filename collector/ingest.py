"""From the broker to the store: judge each message, save it, and only then acknowledge it. The only user of paho.

One thread does all of it, so back-pressure is simply not reading: a broker sends no more than Receive Maximum messages
beyond the last acknowledged one (MQTT 5; under 3.1.1 it is TCP that makes it wait). A collector that is killed between
commit and acknowledgement gets the same messages again, and the store recognises them.
"""

import hashlib
import importlib.resources
import json
import logging
import secrets
import select
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jsonschema
from paho.mqtt import MQTTException
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from collector.store import AlertStore, Arrival, BadRow, Fresh, Rejection, StoreBusy
from edge_agent.contract.alert import Alert
from edge_agent.contract.broker import BROKEN, Backoff, BrokerConfig, Versions, explain, last_words, plain
from edge_agent.contract.commands import Command, Reply
from edge_agent.contract.messages import (
    BASE,
    CHUNK_BYTES,
    MAX_CHUNK,
    MAX_EVIDENCE,
    Chunk,
    MessageError,
    Status,
    decode,
    encode,
    parse_topic,
    topic,
    topic_filter,
)
from edge_agent.contract.settings import check, within

logger = logging.getLogger(__name__)

_POLL_S = 0.25  # how late a set ``stop`` may be noticed
_PURGE_EVERY_S = 60.0
_BROKEN = (*BROKEN, MQTTException)


@dataclass(frozen=True)
class Retention:
    """Section ``retention``: what is older, or beyond the size, goes, oldest first."""

    days: float = within(30.0, 0.01, 36_600.0)
    max_bytes: int = within(10_000_000_000, 1_000_000, 1 << 50)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class CollectorConfig:
    """collector.yaml."""

    db: str = within("collector.sqlite", 1, 4096)  # a file for SQLite, or an SQLAlchemy URL
    broker: BrokerConfig = field(default_factory=lambda: BrokerConfig(inflight=500, session_s=7 * 86_400))
    retention: Retention = field(default_factory=Retention)
    batch_rows: int = within(500, 1, 10_000)  # messages saved with one commit, at most
    batch_s: float = within(0.1, 0.001, 10.0)  # and at least so often
    max_rejected: int = within(1_000, 1, 1_000_000)  # rejected messages kept

    def __post_init__(self) -> None:
        check(self)


@dataclass
class IngestCounts:
    """How often what happened, since the start."""

    received: int = 0
    stored: int = 0
    tests: int = 0  # alerts sent by hand that were stored; in no other count but `received`
    duplicates: int = 0
    statuses: int = 0
    rejected: int = 0
    failures: int = 0  # connections and attempts to connect that failed


class MessageJudge:
    """Decides whether a message is an alert or a status that the gateway of its topic may have sent."""

    def __init__(self, base: str = BASE) -> None:
        self._base = base
        schema = importlib.resources.files("edge_agent.contract").joinpath("alert.schema.json").read_bytes()
        self._validator = jsonschema.Draft202012Validator(json.loads(schema))

    def judge(self, topic: str, payload: bytes) -> Alert | tuple[str, Status]:
        """What the message says, a status together with its gateway; a MessageError says why it is not accepted."""
        gateway, leaf = parse_topic(topic, self._base)
        if leaf == "status":
            return gateway, Status.read(decode(payload))
        if leaf != "alert":
            raise MessageError(f"nothing is expected on .../{leaf}")
        document = decode(payload)
        error = next(self._validator.iter_errors(document), None)
        if error is not None:
            raise MessageError(f"schema: {error.json_path}: {error.message[:120]}")
        alert = Alert.read(document)
        if not gateway == document["host"] == alert.gateway:
            raise MessageError(f"on the topic of {gateway} but of host {document['host']}, gateway {alert.gateway}")
        return alert


@dataclass(frozen=True)
class _Received:
    topic: str
    payload: bytes
    mid: int
    qos: int
    received_ns: int


class Ingest:
    """Keeps ``store`` fed from the broker of ``config``. Raises BrokerError when TLS or password files do not serve."""

    def __init__(self, config: CollectorConfig, store: AlertStore) -> None:
        self.config, self.counts = config, IngestCounts()
        self.connected, self.trouble = False, ""
        self._store, self._judge = store, MessageJudge(config.broker.base)
        self._tls, self._password = config.broker.tls_context(), config.broker.password()
        self._versions = Versions(config.broker.version)
        self._backoff = Backoff(config.broker.retry_min_s, config.broker.retry_max_s)
        self._purge_at = 0.0
        self._puzzled = False  # by a message that `judge` broke down on

    def run(self, stop: threading.Event) -> None:
        """Receive until ``stop`` is set; then what was received is saved and acknowledged, and the line hung up."""
        while not stop.is_set():
            session = _Session(self)
            try:
                problem = session.serve(stop)
            except _BROKEN as error:
                problem = explain(error)
            finally:
                self.connected = False
                session.close()
            if stop.is_set():
                break
            self.counts.failures += 1
            wait = 0.0 if session.try_other_version else self._backoff.next()
            if problem != self.trouble:
                again = f"; trying again in {wait:.1f} s" if wait else "; trying MQTT 3.1.1"
                logger.warning("broker %s: %s%s", self.config.broker.address, problem, again)
            self.trouble = problem
            stop.wait(wait)

    def save(self, messages: Sequence[_Received], stop: threading.Event) -> bool:
        """Judge and commit ``messages``; waits for a database that is busy. False when ``stop`` came first."""
        arrivals, rejections = [], []
        for m in messages:
            try:
                said = self._judge.judge(m.topic, m.payload)
            except MessageError as error:
                rejections.append(Rejection(m.topic, m.payload, str(error), m.received_ns))
            except Exception as error:  # a mistake of ours; raised, it would bring this message back for ever
                why = f"cannot be judged: {type(error).__name__}: {error}"
                if not self._puzzled:
                    logger.exception("a message on %s %s", m.topic[:80], why)
                self._puzzled = True
                rejections.append(Rejection(m.topic, m.payload, why, m.received_ns))
            else:
                text = m.payload.decode() if isinstance(said, Alert) else ""
                arrivals.append(Arrival(said, m.received_ns, text))
        wait, told = Backoff(0.2, 10.0), ""
        while True:
            try:
                self._commit(arrivals, rejections)
            except StoreBusy as error:
                if str(error) != told:
                    logger.error("database: %s; %d messages wait", error, len(messages))
                    told = str(error)
                if stop.wait(wait.next()):
                    return False
            else:
                return True

    def _commit(self, arrivals: Sequence[Arrival], rejections: Sequence[Rejection]) -> None:
        """All in one transaction; when the database refuses a row, row by row, the refused ones set aside."""
        try:
            self._count(arrivals, self._store.save(arrivals, rejections))
        except BadRow:
            refused = list(rejections)
            for arrival in arrivals:
                try:
                    self._count([arrival], self._store.save([arrival]))
                except BadRow as error:
                    refused.append(Rejection("", arrival.document.encode(), f"database: {error}", arrival.received_ns))
            self._store.save([], refused)
            rejections = refused
        for rejection in rejections:
            self.counts.rejected += 1
            if (
                self.counts.rejected.bit_count() == 1
            ):  # the 1st, 2nd, 4th, 8th ...: a flood of them must not fill the log
                logger.warning("rejected (%d so far): %s: %s", self.counts.rejected, rejection.topic, rejection.reason)

    def _count(self, arrivals: Sequence[Arrival], fresh: Fresh) -> None:
        tests = [a.message.test for a in arrivals if isinstance(a.message, Alert)]
        self.counts.tests += fresh.tests
        self.counts.stored += fresh.alerts
        self.counts.duplicates += len(tests) - sum(tests) - fresh.alerts
        self.counts.statuses += len(arrivals) - len(tests)

    def purge(self) -> None:
        """Once a minute, let go what the retention does not cover."""
        if time.monotonic() < self._purge_at:
            return
        older = time.time_ns() - int(self.config.retention.days * 86_400e9)
        try:
            gone = self._store.purge(older, self.config.retention.max_bytes)
        except StoreBusy as error:
            logger.warning("database: %s; purge put off", error)
            gone = 0
        if gone:
            logger.info("purged %d alerts", gone)
        self._purge_at = time.monotonic() + (1.0 if gone else _PURGE_EVERY_S)


class _Session:
    """One connection. Its unacknowledged messages end with it: message ids mean nothing on the next one."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest, config = ingest, ingest.config.broker
        self._level = ingest._versions.next()
        self._answered, self._problem, self.try_other_version = False, "", False
        self._refused_by_tls = False
        self._messages: list[_Received] = []
        self._client = client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=config.client_id or "botwatch-collector",
            clean_session=None if self._level == 5 else False,
            protocol=MQTTProtocolVersion.MQTTv5 if self._level == 5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = config.connect_timeout_s
        if config.username:
            client.username_pw_set(config.username, ingest._password)
        if ingest._tls:
            client.tls_set_context(ingest._tls)
        client.on_connect, client.on_disconnect, client.on_subscribe = (
            self._on_connect,
            self._on_disconnect,
            self._on_subscribe,
        )
        client.on_message, client.on_log = self._on_message, self._on_log
        client.on_socket_close = self._on_socket_close

    def serve(self, stop: threading.Event) -> str:
        """Connect and receive until the connection ends; the reason, in words. Raises what `_BROKEN` lists."""
        ingest, config, client = self._ingest, self._ingest.config.broker, self._client
        if self._level == 5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = config.session_s
            properties.ReceiveMaximum = config.inflight
            client.connect(config.host, config.port, config.keepalive_s, clean_start=False, properties=properties)
        else:
            client.connect(config.host, config.port, config.keepalive_s)
        patience, due = time.monotonic() + config.connect_timeout_s, 0.0
        while client.socket() is not None and not stop.is_set():
            held = len(self._messages)
            self._step(max(due - time.monotonic(), 0.0) if held else _POLL_S)
            if held == 0 and self._messages:
                due = time.monotonic() + ingest.config.batch_s
            if len(self._messages) >= ingest.config.batch_rows or (self._messages and time.monotonic() >= due):
                self._save(stop)
            if not self._messages:
                ingest.purge()
            if not self._answered and time.monotonic() > patience:
                self._problem = "no answer from the broker"
                break
        if self._messages:
            self._save(stop)
        if stop.is_set():
            client.disconnect()
            return ""
        return self._ended()

    def close(self) -> None:
        """Hang up; the broker keeps the session and everything that was not acknowledged."""
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    def _step(self, timeout_s: float) -> None:
        """Let paho read and write what it can, after waiting for it."""
        client = self._client
        sock = client.socket()
        if sock is None:
            return
        if isinstance(sock, ssl.SSLSocket) and sock.pending():  # decrypted already: select would not see it
            timeout_s = 0.0
        readable, writable, _ = select.select([sock], [sock] if client.want_write() else [], [], timeout_s)
        if readable or timeout_s == 0.0:
            client.loop_read()
        if writable:
            client.loop_write()
        client.loop_misc()

    def _save(self, stop: threading.Event) -> None:
        messages, self._messages = self._messages, []
        if self._ingest.save(messages, stop):
            for m in messages:
                self._client.ack(m.mid, m.qos)

    def _ended(self) -> str:
        """Why the connection ended; tells the version chooser."""
        ingest = self._ingest
        if self._answered:
            if ingest.connected:
                ingest._versions.lost()
            return self._problem or "connection lost"
        if self._refused_by_tls:
            return self._problem
        self.try_other_version = self._level == 5 and ingest.config.broker.version == "auto"
        ingest._versions.hung_up()
        return self._problem or "hung up at the first word"

    def _on_connect(
        self, client: mqtt.Client, _data: Any, flags: mqtt.ConnectFlags, reason: ReasonCode, _props: Properties | None
    ) -> None:
        ingest, self._answered = self._ingest, True
        if reason.is_failure:
            self._problem = f"refuses the connection: {reason}"
            if self._level == 5 and str(reason) == "Unsupported protocol version":
                ingest._versions.refused()
                self.try_other_version = ingest._versions.next() != self._level
            return
        ingest.connected = True
        base = ingest.config.broker.base
        filters = [topic_filter("alert", base), topic_filter("status", base)]
        if self._level == 5:
            client.subscribe([(f, SubscribeOptions(qos=1)) for f in filters])
        else:
            client.subscribe([(f, 1) for f in filters])

    def _on_subscribe(
        self, client: mqtt.Client, _data: Any, _mid: int, reasons: list[ReasonCode], _props: Properties | None
    ) -> None:
        ingest = self._ingest
        refused = [reason for reason in reasons if reason.is_failure]
        if refused:
            self._problem = f"refuses the subscription: {refused[0]}"
            client.disconnect()
            return
        ingest._backoff.reset()
        ingest.trouble = ""
        broker = ingest.config.broker
        level = "5" if self._level == 5 else "3.1.1"
        logger.info("subscribed to %s at %s, MQTT %s", topic_filter("alert", broker.base), broker.address, level)

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

    def _on_message(self, _client: mqtt.Client, _data: Any, m: mqtt.MQTTMessage) -> None:
        self._ingest.counts.received += 1
        self._messages.append(_Received(_topic(m), bytes(m.payload), m.mid, m.qos, time.time_ns()))

    def _on_socket_close(self, _client: mqtt.Client, _data: Any, sock: object) -> None:
        if not self._answered and (said := last_words(sock)):
            self._problem, self._refused_by_tls = said, True

    def _on_log(self, _client: mqtt.Client, _data: Any, level: int, text: str) -> None:
        if level == mqtt.MQTT_LOG_ERR:  # "failed to receive on socket: ...", which no callback tells
            self._problem = plain(text)


_MAX_PARTS = -(-MAX_EVIDENCE // CHUNK_BYTES)


class OrderError(Exception):
    """A command that could not be sent, or that nobody answered; the message says which."""


def order(config: BrokerConfig, gateway: str, command: Command, timeout_s: float) -> tuple[Reply, bytes]:
    """Send ``command`` to a gateway and wait for its reply, over a connection of its own.

    With it comes what the reply said would follow (the pcap, for `evidence`), whose sha256 is that of the reply.

    Raises BrokerError for files that do not serve, MessageError for a gateway that cannot be named, OrderError else.
    """
    deadline = time.monotonic() + timeout_s
    levels = {"auto": (5, 4), 5: (5,), "3.1.1": (4,)}[config.version]
    problem = ""
    for level in levels:
        try:
            asked = _Order(config, gateway, command, level)
            reply, problem = asked.ask(deadline)
        except _BROKEN as error:
            raise OrderError(f"broker {config.address}: {explain(error)}") from error
        if reply:
            return reply, asked.content()
        if time.monotonic() >= deadline or "MQTT version" not in problem:
            break
    raise OrderError(problem)


class _Order:
    """One command on one connection."""

    def __init__(self, config: BrokerConfig, gateway: str, command: Command, level: int) -> None:
        self._config, self._gateway, self._command, self._level = config, gateway, command, level
        self._mine = topic(gateway, f"reply/{secrets.token_hex(8)}", config.base)
        self._parts_of = topic(gateway, command.parts_leaf, config.base) if command.parts_leaf else ""
        self._parts: dict[int, bytes] = {}
        self._reply: Reply | None = None
        self._answered, self._problem = False, ""
        self._client = client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=config.client_id or f"botwatch-command-{secrets.token_hex(4)}",
            clean_session=None if level == 5 else True,
            protocol=MQTTProtocolVersion.MQTTv5 if level == 5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = config.connect_timeout_s
        if config.username:
            client.username_pw_set(config.username, config.password())
        if tls := config.tls_context():
            client.tls_set_context(tls)
        client.on_connect, client.on_subscribe = self._on_connect, self._on_subscribe
        client.on_publish, client.on_message = self._on_publish, self._on_message
        client.on_socket_close = self._on_socket_close

    def ask(self, deadline: float) -> tuple[Reply | None, str]:
        """The reply, or why there is none."""
        client, config = self._client, self._config
        client.connect(config.host, config.port, config.keepalive_s)
        try:
            while not self._complete() and not self._problem and time.monotonic() < deadline:
                if client.loop(0.1) != mqtt.MQTT_ERR_SUCCESS and not self._complete():
                    version = "" if self._answered else " (or does not speak this MQTT version)"
                    self._problem = self._problem or f"broker {config.address}: hung up{version}"
        finally:
            client.disconnect()
        if self._reply and not self._problem and not self._complete():
            self._problem = f"{len(self._parts)} of {self._expected()} parts came from {self._gateway} in time"
        if self._problem:
            return None, self._problem
        return self._reply, f"no reply from {self._gateway}: is it running, and does it take commands?"

    def _expected(self) -> int:
        """How many parts follow the reply that is there."""
        told = (self._reply.result or {}).get("count") if self._reply and self._parts_of else 0
        return told if isinstance(told, int) and 0 <= told <= _MAX_PARTS else _MAX_PARTS

    def _complete(self) -> bool:
        return self._reply is not None and (bool(self._reply.error) or len(self._parts) >= self._expected())

    def content(self) -> bytes:
        """What came in parts, or an OrderError when it is not what the reply tells."""
        if not self._parts_of or not self._reply or not self._reply.result:
            return b""
        content = b"".join(self._parts.get(part, b"") for part in range(self._expected()))
        if hashlib.sha256(content).hexdigest() != self._reply.result.get("sha256"):
            raise OrderError(f"what came from {self._gateway} has not the sha256 that its reply tells")
        return content

    def _on_connect(
        self, client: mqtt.Client, _data: Any, _flags: mqtt.ConnectFlags, reason: ReasonCode, _props: Properties | None
    ) -> None:
        self._answered = True
        if reason.is_failure:
            version = " (MQTT version)" if str(reason) == "Unsupported protocol version" else ""
            self._problem = f"broker {self._config.address} refuses the connection: {reason}{version}"
            return
        usual = topic(self._gateway, "reply", self._config.base)
        wanted = [self._mine if self._level == 5 else usual, *([self._parts_of] if self._parts_of else [])]
        options: Any = SubscribeOptions(qos=1) if self._level == 5 else 1
        client.subscribe([(where, options) for where in wanted])

    def _on_subscribe(
        self, client: mqtt.Client, _data: Any, _mid: int, reasons: list[ReasonCode], _props: Properties | None
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            self._problem = f"broker {self._config.address} refuses the subscription to replies: {reasons[0]}"
            return
        properties = None
        if self._level == 5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ResponseTopic, properties.CorrelationData = self._mine, self._command.id.encode()
            properties.MessageExpiryInterval = 3600
        where = topic(self._gateway, f"cmd/{self._command.verb}", self._config.base)
        client.publish(where, encode(self._command.document()), qos=1, properties=properties)

    def _on_socket_close(self, _client: mqtt.Client, _data: Any, sock: object) -> None:
        if not self._answered and (said := last_words(sock)):
            self._problem = f"broker {self._config.address}: {said}"

    def _on_publish(
        self, _client: mqtt.Client, _data: Any, _mid: int, reason: ReasonCode, _props: Properties | None
    ) -> None:
        if reason.is_failure:
            self._problem = f"broker {self._config.address} refuses the command: {reason}"
        elif reason.value == 0x10:  # MQTT 5: "No matching subscribers"
            self._problem = f"{self._gateway} does not take commands: unknown to this broker, or `commands: []`"

    def _on_message(self, _client: mqtt.Client, _data: Any, m: mqtt.MQTTMessage) -> None:
        try:
            if self._parts_of and _topic(m) == self._parts_of:
                chunk = Chunk.read(decode(bytes(m.payload), MAX_CHUNK))
                if chunk.part < _MAX_PARTS and len(chunk.data) <= CHUNK_BYTES:
                    self._parts[chunk.part] = chunk.data
                return
            reply = Reply.read(decode(bytes(m.payload)))
        except MessageError as error:
            logger.warning("a reply that is none: %s", error)
            return
        if reply.id == self._command.id:
            self._reply = reply


def _topic(m: mqtt.MQTTMessage) -> str:
    """The topic's text; paho leaves it undecoded, and a hostile one need not be UTF-8."""
    try:
        return m.topic
    except UnicodeDecodeError:
        return ""
