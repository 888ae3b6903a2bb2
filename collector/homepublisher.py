"""Publishes what Home Assistant needs in a way that none of it costs the connection by which the alerts come.

A broker that gets a message larger than it takes may end the connection and not say why. A message that has done so
twice is set aside, together with others of its kind that are about as large, and is tried again an hour later. Which
messages there are is decided by `collector.homeassistant`.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable

from collector.homeassistant import Message
from edge_agent.culprit import REPLY, Culprit, Key, LeftOut
from edge_agent.mqtt import Connection, ConnectionEnded

logger = logging.getLogger(__name__)

REST_S = 3600.0
"""Seconds after which messages that were set aside are tried again."""

_RETAINED = "home"  # the kind of retained messages for `Culprit`


class HomePublisher:
    """The messages on their way to the broker ``address``; ``set_aside`` counts those that were not published.

    ``clock`` is a steady clock.
    """

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._address, self._clock = address, clock
        self._culprit, self._left_out = Culprit(clock), LeftOut(REST_S, clock)
        self._waiting: deque[Message] = deque()
        self._under_way: dict[int, tuple[Key, Message]] = {}  # by the id of the publication
        self._aside: dict[str, Message] = {}  # by topic, of the retained ones
        self._try_aside = 0.0
        self._limits: tuple[str, int] | None = None
        self._too_large: set[str] = set()  # kinds that were logged on this connection
        self.set_aside = 0

    @property
    def idle(self) -> bool:
        """True if no message waits to be published."""
        return not self._waiting

    def begin(self, connection: Connection) -> None:
        """Begin with a new connection, over which everything is to be published anew."""
        self._waiting.clear()
        self._under_way.clear()
        self._aside.clear()
        self._too_large.clear()
        limits = connection.protocol, connection.max_packet
        if limits != self._limits:
            self._limits = limits
            self._left_out.clear()

    def send(self, connection: Connection, messages: Iterable[Message]) -> None:
        """Publish what waits and ``messages``, as far as that is possible now. Raises ConnectionEnded."""
        if self._aside and self._clock() >= self._try_aside:
            self._waiting.extend(self._aside.values())
            self._aside.clear()
        self._waiting.extend(messages)
        while self._waiting and self._culprit.free():
            message = self._waiting[0]
            if self._publishable(connection, message):
                sent = connection.publish(message.topic, message.payload, retain=message.retain)
                key: Key = (_RETAINED, message.topic) if message.retain else (REPLY, sent)
                self._under_way[sent] = key, message
                self._culprit.sent(key)
            self._waiting.popleft()

    def answered(self, id: int) -> None:
        """Note that the broker has answered the publication ``id``."""
        if known := self._under_way.pop(id, None):
            self._culprit.answered(known[0])

    def ended(self, end: ConnectionEnded) -> None:
        """Find out if a message has ended the connection, and remember it."""
        end.explained, key = self._culprit.ended(end)
        message = next((message for known, message in self._under_way.values() if known == key), None)
        if key is None or message is None:
            return
        strikes = self._left_out.strike(message.kind, len(message.payload))
        if strikes > 1:
            self._culprit.answered(key)
        if strikes == 2:
            logger.error(
                "broker %s has ended the connection each time that %s of %d bytes was published for Home Assistant: "
                "such ones are left out, and tried again in %.0f minutes; look at the broker's size limits",
                *(self._address, message.kind, len(message.payload), REST_S / 60),
            )

    def _publishable(self, connection: Connection, message: Message) -> bool:
        """Return False, and count it, if the broker does not take a message of this size."""
        if not connection.fits(message.topic, message.payload):
            if message.kind not in self._too_large:
                self._too_large.add(message.kind)
                logger.error(
                    "%s of %d bytes is not published for Home Assistant: broker %s accepts packets of at most %d bytes",
                    *(message.kind, len(message.payload), self._address, connection.max_packet),
                )
        elif not self._left_out.rests(message.kind, len(message.payload)):
            return True
        elif message.retain:
            self._aside[message.topic] = message
            self._try_aside = self._clock() + REST_S
        self.set_aside += 1
        return False
