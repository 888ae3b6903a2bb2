"""One connection to an MQTT broker, under the agent's link, the collector and its commands; the only user of paho.

A `Dialer` outlives connections: it holds the settings, the TLS files and the password as read at the start, and which
MQTT version to try next. A `Connection` is one attempt and what came of it. Its owner calls `Connection.step` in a loop
and acts on the events that it returns; when the connection is over, every verb raises `ConnectionEnded` with the reason
in words. When to try again is `edge_agent.reconnect`'s knowledge, what the messages mean is the owner's.

A connection belongs to one thread: it drives paho's network loop itself, so paho's callbacks run in that thread, too,
and they only append to a list. (`on_publish` runs under a lock of paho's: a callback that took one of ours there would
lock up with a thread that publishes under it.)
"""

import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from paho.mqtt import MQTTException
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_agent.contract.broker import BrokerConfig, BrokerError, Versions, alert_in, explain, last_words, plain

_BROKEN = (MQTTException, OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, struct.error)
"""Exceptions that paho raises on a broken or rogue broker; they end the connection and never the thread."""

_NO_SUBSCRIBER = 0x10  # MQTT 5: "No matching subscribers"
_TAKEN_OVER = 0x8E  # MQTT 5: "Session taken over"
_NO_FAULT_OF_A_MESSAGE = {0x89, 0x8B, 0x8D, _TAKEN_OVER, 0x93, 0x96, 0x98, 0x9C, 0x9D, 0x9F, 0xA0}
"""Reasons with which a broker of MQTT 5 disconnects whatever was sent: busy, stopping, too fast, an operator's wish."""

_OVERHEAD = 16  # bytes of a PUBLISH packet beside topic, payload and correlation data, at most


@dataclass(frozen=True)
class Connected:
    """The broker has accepted the connection."""


@dataclass(frozen=True)
class Subscribed:
    """The broker has answered a subscription, with the reason of each filter that it refused."""

    refusals: tuple[str, ...]


@dataclass(frozen=True)
class Acknowledged:
    """The broker has answered a publication of ours. Under MQTT 3.1.1 it cannot refuse, and all are successes."""

    id: int  # as `Connection.publish` returned it
    reason: str
    refused: bool
    unheard: bool  # MQTT 5: nobody subscribes to the topic, and the broker has thrown the message away


@dataclass(frozen=True)
class Incoming:
    """A message from the broker, as it came."""

    topic: str  # "" where it is not UTF-8
    payload: bytes
    retained: bool
    response_topic: str = ""  # MQTT 5: where the sender wants the reply
    correlation: bytes = b""  # MQTT 5: what the reply is to carry
    received_ns: int = 0  # Unix time
    id: int = 0  # for `Connection.acknowledge`
    qos: int = 1


Event = Connected | Subscribed | Acknowledged | Incoming

_Answer = TypeVar("_Answer")


class ConnectionEnded(Exception):
    """The connection is over, or was never made; the message gives the reason in one line.

    ``try_other_version`` is True where MQTT 3.1.1 may be tried at once, since the broker may not speak MQTT 5.
    ``accepted`` is True if the broker had accepted the connection. ``taken_over`` is True if it said that another
    client has connected with our id, ``hung_up`` if it said nothing; ``by_message`` if a message of ours may have been
    the cause. Whoever knows of one that may have been sets ``explained``.
    """

    def __init__(
        self,
        reason: str,
        try_other_version: bool = False,
        *,
        accepted: bool = False,
        taken_over: bool = False,
        hung_up: bool = False,
        by_message: bool = False,
    ) -> None:
        super().__init__(reason)
        self.try_other_version, self.accepted = try_other_version, accepted
        self.taken_over, self.hung_up, self.by_message = taken_over, hung_up, by_message
        self.explained = False


class Dialer:
    """Makes connections to the broker of ``config``, as the client ``client_id`` unless the configuration names one.

    With a ``suffix`` behind its id it is another client, and the connection of the one without it is left alone.
    The broker keeps the session of a client that is away for ``config.session_s``, unless ``clean``, which begins anew.
    With ``manual_ack`` the owner acknowledges messages itself. ``receive_maximum`` bounds the messages that the broker
    may send before the first is acknowledged, ``max_packet`` the bytes of one (both MQTT 5 only).
    Raises BrokerError when the TLS or password files cannot be used.
    """

    def __init__(
        self,
        config: BrokerConfig,
        client_id: str,
        *,
        suffix: str = "",
        clean: bool = False,
        manual_ack: bool = False,
        receive_maximum: int | None = None,
        max_packet: int | None = None,
    ) -> None:
        self.config, self.client_id = config, (config.client_id or client_id) + suffix
        self.clean, self.manual_ack = clean, manual_ack
        self.receive_maximum, self.max_packet = receive_maximum, max_packet
        self.tls, self.password = config.tls_context(), config.password()
        self.versions = Versions(config.version)

    def dial(self, will: tuple[str, bytes] | None = None) -> "Connection":
        """Open a connection whose last will, retained, is the topic and payload of ``will``.

        Takes as long as the name server, TCP and TLS let it; then the first events are still to come. Raises
        ConnectionEnded.
        """
        return Connection(self, will)


class Connection:
    """One connection of a `Dialer`, from the attempt to its end.

    What it leaves unacknowledged ends with it: message ids mean nothing on the next one. ``receive_maximum`` is the
    number of messages that the broker takes before it has acknowledged the first, ``max_packet`` the bytes of the
    largest packet that it takes (0: no bound); both are known with `Connected`.
    """

    def __init__(self, dialer: Dialer, will: tuple[str, bytes] | None) -> None:
        self._versions, self._auto = dialer.versions, dialer.config.version == "auto"
        self._level = dialer.versions.next()
        self.receive_maximum, self.max_packet = 65_535, 0
        self._events: list[Event] = []
        self._answered = self._accepted = False  # the broker replied to CONNECT; and took us
        self._problem, self._refused_by_tls, self._try_other_version = "", False, False
        self._code = 0  # MQTT 5: the reason with which the broker has disconnected
        self._quiet = self._rubbish = False  # it no longer answers; it sent what cannot be read
        self._by_owner = False
        self._ended: ConnectionEnded | None = None
        self._client = client = _client(dialer, self._level)
        if will:
            client.will_set(*will, qos=1, retain=True)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_publish, client.on_subscribe = self._on_publish, self._on_subscribe
        client.on_message, client.on_log = self._on_message, self._on_log
        client.on_socket_close = self._on_socket_close
        try:
            _connect(client, dialer, self._level)
        except _BROKEN as error:
            raise self._break(error) from error
        self._patience = time.monotonic() + dialer.config.connect_timeout_s

    @property
    def protocol(self) -> Literal["5", "3.1.1"]:
        """The MQTT version of this connection."""
        return "5" if self._level == 5 else "3.1.1"

    def step(self, timeout_s: float, wake: socket.socket | None = None) -> list[Event]:
        """Read and write what can be, after waiting for that or for a byte in ``wake``, at most ``timeout_s`` seconds.

        Returns what came, in order. Raises ConnectionEnded when the connection is over and all that came before its
        end has been returned.
        """
        if not self._over():
            try:
                self._exchange(timeout_s, wake)
            except _BROKEN as error:
                self._break(error)
            if not self._answered and not self._over() and time.monotonic() > self._patience:
                self._problem = "no answer from the broker"
                self._end()
        events, self._events = self._events, []
        if not events and self._over():
            raise self._end()
        return events

    def _exchange(self, timeout_s: float, wake: socket.socket | None) -> None:
        client, sock = self._client, self._client.socket()
        assert sock is not None
        if isinstance(sock, ssl.SSLSocket) and sock.pending():  # decrypted already: select would not see it
            timeout_s = 0.0
        wanted = [sock] if wake is None else [sock, wake]
        readable, writable, _ = select.select(wanted, [sock] if client.want_write() else [], [], timeout_s)
        if wake in readable:
            assert wake is not None
            wake.recv(4096)
        if sock in readable or timeout_s == 0.0:
            client.loop_read()
        if writable:
            client.loop_write()
        client.loop_misc()

    def fits(self, topic: str, payload: bytes, correlation: bytes = b"") -> bool:
        """Return True if the broker takes a packet as large as this message needs."""
        size = len(topic) + len(payload) + len(correlation) + _OVERHEAD
        return not self.max_packet or size <= self.max_packet

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: Literal[0, 1] = 1,
        retain: bool = False,
        expires_s: int | None = None,
        response_topic: str = "",
        correlation: bytes = b"",
    ) -> int:
        """Publish a message and return its id, by which it is `Acknowledged`. The last three are MQTT 5 only."""
        extra: dict[str, object] = {"MessageExpiryInterval": expires_s} if expires_s is not None else {}
        extra |= {"ResponseTopic": response_topic} if response_topic else {}
        extra |= {"CorrelationData": correlation} if correlation else {}

        def publish() -> int:
            properties = _properties(PacketTypes.PUBLISH, extra) if self._level == 5 and extra else None
            return self._client.publish(topic, payload, qos, retain=retain, properties=properties).mid

        return self._call(publish)

    def subscribe(self, filters: Sequence[str], *, retain_as_published: bool = False) -> None:
        """Subscribe with QoS 1; the answer is `Subscribed`.

        With ``retain_as_published`` a message that was published to be retained is marked so even when it comes live
        (MQTT 5 only).
        """
        options: Any = SubscribeOptions(qos=1, retainAsPublished=retain_as_published) if self._level == 5 else 1
        self._call(lambda: self._client.subscribe([(name, options) for name in filters]))

    def unsubscribe(self, name: str) -> None:
        """End a subscription, which may be one of the session's from an earlier connection."""
        self._call(lambda: self._client.unsubscribe(name))

    def acknowledge(self, message: Incoming) -> None:
        """Acknowledge a message (of a dialer with ``manual_ack``), which the broker then forgets."""
        self._call(lambda: self._client.ack(message.id, message.qos))

    def disconnect(self, problem: str = "", within_s: float = 0.0) -> None:
        """Hang up in a way that does not set off the last will, waiting at most ``within_s`` seconds for the network.

        Whoever goes on calling `step` learns from ConnectionEnded that it was for ``problem``. Does nothing when the
        connection is over.
        """
        deadline, client = time.monotonic() + within_s, self._client
        if self._over():
            return
        self._problem, self._by_owner = problem or self._problem, True
        try:
            client.disconnect()
            while client.socket() is not None and client.want_write() and time.monotonic() < deadline:
                self._exchange(0.05, None)
        except _BROKEN as error:
            self._break(error)

    def close(self) -> None:
        """Drop the connection, if there still is one; the broker then publishes the last will."""
        sock = self._client.socket()
        if sock is not None:
            sock.close()
        if self._ended is None:
            self._ended = ConnectionEnded("connection closed")

    def _over(self) -> bool:
        return self._ended is not None or self._client.socket() is None

    def _call(self, verb: Callable[[], _Answer]) -> _Answer:
        """Call a function of paho's, unless the connection is over."""
        if self._over():
            raise self._end()
        try:
            return verb()
        except _BROKEN as error:
            raise self._break(error) from error

    def _break(self, error: BaseException) -> ConnectionEnded:
        """End the connection because of what paho raised, which says nothing about the version of MQTT."""
        lost = isinstance(error, ConnectionError)
        self._ended = ConnectionEnded(
            explain(error), accepted=self._accepted, hung_up=self._accepted and lost, by_message=self._accepted
        )
        self.close()
        return self._ended

    def _end(self) -> ConnectionEnded:
        """Return why the connection is over; the first time, the version chooser learns of it."""
        if self._ended is None:
            reason = self._reason()
            theirs = self._accepted and not self._by_owner and not self._quiet
            self._ended = ConnectionEnded(
                reason,
                self._try_other_version,
                accepted=self._accepted,
                taken_over=self._code == _TAKEN_OVER,
                hung_up=theirs and not self._code and not self._rubbish,
                by_message=theirs and self._code not in _NO_FAULT_OF_A_MESSAGE,
            )
            self.close()
        return self._ended

    def _reason(self) -> str:
        if self._answered:
            if self._accepted:
                self._versions.lost()
            return self._problem or "connection lost"
        if not self._refused_by_tls:
            self._try_other_version = self._level == 5 and self._auto
            self._versions.hung_up()
        return self._problem or "closed the connection before it answered"

    def _on_connect(
        self, _client: mqtt.Client, _data: Any, _flags: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._answered = True
        if reason.is_failure:
            self._problem = f"refuses the connection: {reason}"
            if self._level == 5 and str(reason) == "Unsupported protocol version":
                self._versions.refused()
                self._try_other_version = self._versions.next() != self._level
            return
        self._accepted = True
        self.receive_maximum = getattr(properties, "ReceiveMaximum", self.receive_maximum)
        self.max_packet = getattr(properties, "MaximumPacketSize", 0)
        self._events.append(Connected())

    def _on_subscribe(
        self, _client: mqtt.Client, _data: Any, _mid: int, reasons: list[ReasonCode], _props: Properties | None
    ) -> None:
        self._events.append(Subscribed(tuple(str(reason) for reason in reasons if reason.is_failure)))

    def _on_publish(
        self, _client: mqtt.Client, _data: Any, mid: int, reason: ReasonCode, _props: Properties | None
    ) -> None:
        self._events.append(Acknowledged(mid, str(reason), reason.is_failure, reason.value == _NO_SUBSCRIBER))

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:  # paho leaves it undecoded
            topic = ""
        self._events.append(
            Incoming(
                topic,
                bytes(message.payload),
                bool(message.retain),
                getattr(message.properties, "ResponseTopic", ""),
                getattr(message.properties, "CorrelationData", b""),
                time.time_ns(),
                message.mid,
                message.qos,
            )
        )

    def _on_disconnect(
        self,
        _client: mqtt.Client,
        _data: Any,
        flags: mqtt.DisconnectFlags,
        reason: ReasonCode,
        _props: Properties | None,
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._problem, self._code = f"ended the connection: {reason}", reason.value
        elif str(reason) == "Keep alive timeout":
            self._problem, self._quiet = "no longer answers", True
        elif self._accepted and str(reason) == "Protocol error":
            self._problem, self._rubbish = "sent what cannot be read as MQTT", True

    def _on_socket_close(self, _client: mqtt.Client, _data: Any, sock: object) -> None:
        if not self._answered and (words := last_words(sock)):
            self._problem, self._refused_by_tls = words, True

    def _on_log(self, _client: mqtt.Client, _data: Any, level: int, text: str) -> None:
        if level == mqtt.MQTT_LOG_ERR:  # "failed to receive on socket: ...", which no callback is called with
            self._problem = plain(text)
            self._refused_by_tls |= bool(alert_in(text))


def _client(dialer: Dialer, level: int) -> mqtt.Client:
    """Return a client of paho's under MQTT ``level`` 5 or 4, not yet connected."""
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=dialer.client_id,
        clean_session=None if level == 5 else dialer.clean,
        protocol=MQTTProtocolVersion.MQTTv5 if level == 5 else MQTTProtocolVersion.MQTTv311,
        reconnect_on_failure=False,
        manual_ack=dialer.manual_ack,
    )
    client.max_inflight_messages_set(0)  # bounded by the owner
    client.connect_timeout = dialer.config.connect_timeout_s
    if dialer.config.username:
        client.username_pw_set(dialer.config.username, dialer.password)
    if dialer.tls:
        client.tls_set_context(dialer.tls)
    return client


def _connect(client: mqtt.Client, dialer: Dialer, level: int) -> None:
    """Open the socket and send CONNECT. Raises what `_BROKEN` lists."""
    config = dialer.config
    if level != 5:
        client.connect(config.host, config.port, config.keepalive_s)
        return
    wanted: dict[str, object] = {} if dialer.clean else {"SessionExpiryInterval": config.session_s}
    if dialer.receive_maximum is not None:
        wanted["ReceiveMaximum"] = dialer.receive_maximum
    if dialer.max_packet is not None:
        wanted["MaximumPacketSize"] = dialer.max_packet
    properties = _properties(PacketTypes.CONNECT, wanted) if wanted else None
    client.connect(config.host, config.port, config.keepalive_s, clean_start=dialer.clean, properties=properties)


def _properties(packet: int, values: dict[str, object]) -> Properties:
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


def probe(config: BrokerConfig, client_id: str) -> str:
    """Connect to the broker with the credentials of ``client_id``, hang up, and return the MQTT version that it speaks.

    The id has "-check" behind it, so that neither the client's connection nor its session is touched. Raises
    BrokerError with the reason why the broker cannot be reached.
    """
    dialer = Dialer(config, client_id, suffix="-check", clean=True)
    while True:
        try:
            connection = dialer.dial()
            try:
                while Connected() not in connection.step(0.1):
                    pass
                connection.disconnect()
                return connection.protocol
            finally:
                connection.close()
        except ConnectionEnded as end:
            if not end.try_other_version:
                raise BrokerError(str(end)) from end
