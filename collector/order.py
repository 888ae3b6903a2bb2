"""Commands over a connection of their own: to one gateway, whose reply may be followed by parts, or to many at once.

`edge_agent.contract.commands` knows what a command may say; the gateway decides whether to execute it.
"""

import hashlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator

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
    parse_topic,
    topic,
    topic_filter,
)
from edge_agent.mqtt import Acknowledged, Connected, Connection, ConnectionEnded, Dialer, Event, Incoming, Subscribed

logger = logging.getLogger(__name__)

_MAX_PARTS = -(-MAX_EVIDENCE // CHUNK_BYTES)
_EXPIRES_S = 3600  # a broker that holds a command for a gateway that is away forgets it then (MQTT 5)
_POLL_S = 0.1

MAX_WAITING = 64
"""Gateways that have a command and have not replied; the next one gets it when one of them has, or is given up."""


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


def _own(connection: Connection, topic: str) -> list[str]:
    """Return the topic of replies to us alone, if there is one; an agent that speaks MQTT 3.1.1 cannot know it."""
    return [topic] if connection.protocol == "5" else []


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
                topics = [self._reply_topic, *([self._parts_topic] if self._parts_topic else [])]
                connection.subscribe([*_own(connection, self._own_reply_topic), *topics])
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


def order_many(
    config: BrokerConfig, gateways: Iterable[str], command: Command, timeout_s: float
) -> Iterator[tuple[str, Reply | OrderError]]:
    """Send ``command`` to each of these gateways; yield each with its reply, or with the reason why there is none.

    They are yielded as the replies come; each gateway has ``timeout_s`` seconds from when the command is sent to it.
    Raises BrokerError and MessageError as `order` does, and OrderError when there is no connection to begin with.
    """
    dialer = Dialer(config, f"botwatch-command-{secrets.token_hex(4)}", clean=True)
    round_ = _Round(config.base, gateways, command, timeout_s)
    while True:
        connection = None
        try:
            connection = dialer.dial()
            while not round_.complete():
                for event in connection.step(_POLL_S):
                    yield from round_.act_on(connection, event)
                yield from round_.give_up(time.monotonic())
                round_.send(connection)
            return
        except ConnectionEnded as end:
            if end.try_other_version:
                continue
            reason = OrderError(f"broker {config.address}: {end}")
            if not round_.begun:
                raise reason from end
            yield from round_.end(reason)
            return
        finally:
            if connection is not None:
                connection.disconnect()
                connection.close()


class _Round:
    """One command to many gateways: which of them wait for it, and which of them have it and have not replied."""

    def __init__(self, base: str, gateways: Iterable[str], command: Command, timeout_s: float) -> None:
        self._base, self._command, self._timeout_s = base, command, timeout_s
        self._ahead = deque(dict.fromkeys(gateways))
        self._topics = {gateway: topic(gateway, f"cmd/{command.verb}", base) for gateway in self._ahead}
        self._suffix = secrets.token_hex(8)  # of the reply topics of this round (MQTT 5)
        self._waiting: dict[str, float] = {}  # gateway -> the end of its time
        self._sent: dict[int, str] = {}  # message -> gateway
        self.begun = False
        """True once the broker lets us hear the replies."""

    def complete(self) -> bool:
        """Return True if each gateway has replied or was given up."""
        return not self._ahead and not self._waiting

    def act_on(self, connection: Connection, event: Event) -> Iterator[tuple[str, Reply | OrderError]]:
        """Take the next step; yield the gateway that it settles."""
        match event:
            case Connected():
                own = topic_filter(f"reply/{self._suffix}", self._base)
                connection.subscribe([*_own(connection, own), topic_filter("reply", self._base)])
            case Subscribed(refusals) if refusals:
                connection.disconnect(f"refuses the subscription to replies: {refusals[0]}")
            case Subscribed():
                self.begun = True
            case Acknowledged(id=id, reason=reason, refused=refused, unheard=unheard):
                gateway = self._sent.pop(id, "")
                if refused:
                    yield from self._settle(gateway, OrderError(f"the broker refuses the command: {reason}"))
                elif unheard:
                    text = "does not take commands: the broker does not know it, or it has `commands: []`"
                    yield from self._settle(gateway, OrderError(text))
            case Incoming():
                try:
                    gateway, _ = parse_topic(event.topic, self._base)
                    reply = Reply.read(decode(event.payload))
                except MessageError as error:
                    logger.warning("ignored a message on %s that is not a reply: %s", event.topic[:80], error)
                    return
                if reply.id == self._command.id:
                    yield from self._settle(gateway, reply)

    def _settle(self, gateway: str, outcome: Reply | OrderError) -> Iterator[tuple[str, Reply | OrderError]]:
        if self._waiting.pop(gateway, None) is not None:
            yield gateway, outcome

    def give_up(self, now_s: float) -> Iterator[tuple[str, Reply | OrderError]]:
        """Yield the gateways whose time is over at ``now_s``, by the steady clock."""
        for gateway in [gateway for gateway, end_s in self._waiting.items() if now_s >= end_s]:
            yield from self._settle(gateway, OrderError(f"no reply within {self._timeout_s:g} s"))

    def send(self, connection: Connection) -> None:
        """Send the command to as many gateways as may have it at once."""
        while self.begun and self._ahead and len(self._waiting) < MAX_WAITING:
            gateway = self._ahead.popleft()
            self._waiting[gateway] = time.monotonic() + self._timeout_s
            number = connection.publish(
                self._topics[gateway],
                encode(self._command.document()),
                expires_s=_EXPIRES_S,
                response_topic=topic(gateway, f"reply/{self._suffix}", self._base),
                correlation=self._command.id.encode(),
            )
            self._sent[number] = gateway

    def end(self, reason: OrderError) -> Iterator[tuple[str, Reply | OrderError]]:
        """Yield all that have not replied; those that do not have the command yet never get it."""
        for gateway in list(self._waiting):
            yield from self._settle(gateway, reason)
        while self._ahead:
            yield self._ahead.popleft(), OrderError(f"not sent; {reason}")
