"""One command to one gateway over a connection of its own: the reply, and the content that follows it in parts.

`edge_agent.contract.commands` knows what a command may say; the gateway decides whether to execute it.
"""

import hashlib
import logging
import secrets
import time

from edge_agent.contract.broker import BrokerConfig
from edge_agent.contract.commands import Command, Reply
from edge_agent.contract.messages import (
    CHUNK_BYTES,
    MAX_CHUNK,
    MAX_EVIDENCE,
    Chunk,
    MessageError,
    decode,
    encode,
    topic,
)
from edge_agent.mqtt import Acknowledged, Connected, Connection, ConnectionEnded, Dialer, Event, Incoming, Subscribed

logger = logging.getLogger(__name__)

_MAX_PARTS = -(-MAX_EVIDENCE // CHUNK_BYTES)
_EXPIRES_S = 3600  # a broker that holds a command for a gateway that is away forgets it then (MQTT 5)
_POLL_S = 0.1


class OrderError(Exception):
    """A command that could not be sent or was not answered; the message says which."""


def order(config: BrokerConfig, gateway: str, command: Command, timeout_s: float) -> tuple[Reply, bytes]:
    """Send ``command`` to a gateway and return its reply, with the content that followed it in parts.

    That is the pcap for `evidence`, whose sha256 is that in the reply, and b"" for other commands. Raises BrokerError
    when the TLS or password files cannot be used, MessageError for a gateway that cannot be named, else OrderError.
    """
    deadline = time.monotonic() + timeout_s
    dialer = Dialer(config, f"botwatch-command-{secrets.token_hex(4)}", clean=True)
    exchange = _Exchange(config.base, gateway, command)
    while True:
        connection = None
        try:
            connection = dialer.dial()
            while not exchange.complete():
                if time.monotonic() >= deadline:
                    raise OrderError(exchange.missing())
                for event in connection.step(_POLL_S):
                    exchange.act_on(connection, event)
            return exchange.result()
        except ConnectionEnded as end:
            if not end.try_other_version or time.monotonic() >= deadline:
                raise OrderError(f"broker {config.address}: {end}") from end
        finally:
            if connection is not None:
                connection.disconnect()
                connection.close()


class _Exchange:
    """A command, and the messages that have come in reply to it."""

    def __init__(self, base: str, gateway: str, command: Command) -> None:
        self._gateway, self._command = gateway, command
        self._command_topic = topic(gateway, f"cmd/{command.verb}", base)
        self._reply_topic = topic(gateway, "reply", base)
        self._own_reply_topic = topic(gateway, f"reply/{secrets.token_hex(8)}", base)  # MQTT 5
        self._parts_topic = topic(gateway, command.parts_leaf, base) if command.parts_leaf else ""
        self._parts: dict[int, bytes] = {}
        self._reply: Reply | None = None

    def act_on(self, connection: Connection, event: Event) -> None:
        """Take the next step of the exchange. Raises OrderError when it cannot be completed."""
        match event:
            case Connected():
                replies = self._own_reply_topic if connection.protocol == "5" else self._reply_topic
                connection.subscribe([replies, *([self._parts_topic] if self._parts_topic else [])])
            case Subscribed(refusals) if refusals:
                connection.disconnect(f"refuses the subscription to replies: {refusals[0]}")
            case Subscribed():
                connection.publish(
                    self._command_topic,
                    encode(self._command.document()),
                    expires_s=_EXPIRES_S,
                    response_topic=self._own_reply_topic,
                    correlation=self._command.id.encode(),
                )
            case Acknowledged(reason=reason, refused=True):
                connection.disconnect(f"refuses the command: {reason}")
            case Acknowledged(unheard=True):
                raise OrderError(
                    f"{self._gateway} does not take commands: the broker does not know it, or it has `commands: []`"
                )
            case Incoming():
                self._take(event)

    def _take(self, message: Incoming) -> None:
        try:
            if self._parts_topic and message.topic == self._parts_topic:
                chunk = Chunk.read(decode(message.payload, MAX_CHUNK))
                if chunk.part < _MAX_PARTS and len(chunk.data) <= CHUNK_BYTES:
                    self._parts[chunk.part] = chunk.data
                return
            reply = Reply.read(decode(message.payload))
        except MessageError as error:
            logger.warning("ignored a message on %s that is not a reply: %s", message.topic[:80], error)
            return
        if reply.id == self._command.id:
            self._reply = reply

    def complete(self) -> bool:
        """Return True if the reply and all parts that follow it have come."""
        return self._reply is not None and (bool(self._reply.error) or len(self._parts) >= self._expected())

    def missing(self) -> str:
        """Describe the part of the answer that has not come."""
        if self._reply is not None:
            return f"{len(self._parts)} of {self._expected()} parts came from {self._gateway} in time"
        return f"no reply from {self._gateway}: is it running, and does it take commands?"

    def result(self) -> tuple[Reply, bytes]:
        """Return the reply and the content that came in parts. Raises OrderError when that is not what it announced."""
        assert self._reply is not None
        if not self._parts_topic or not self._reply.result:
            return self._reply, b""
        content = b"".join(self._parts.get(part, b"") for part in range(self._expected()))
        if hashlib.sha256(content).hexdigest() != self._reply.result.get("sha256"):
            raise OrderError(f"the content from {self._gateway} does not match the sha256 in its reply")
        return self._reply, content

    def _expected(self) -> int:
        """Return the number of parts that follow the reply that has come."""
        count = (self._reply.result or {}).get("count") if self._reply and self._parts_topic else 0
        return count if isinstance(count, int) and 0 <= count <= _MAX_PARTS else _MAX_PARTS
