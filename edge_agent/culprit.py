"""Finds the message that makes a broker end the connection, where the broker does not say which one it is.

A broker of MQTT 3.1.1 that gets a message larger than it takes just hangs up. While many messages are under way, that
says nothing about any of them: all are suspects. So messages are then sent *singly*, each once the one before is
answered, until no suspect is left. A message that is alone under way when the connection ends, within `BLAME_S` of
sending it, was the cause.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from edge_agent.mqtt import ConnectionEnded

BLAME_S = 2.0
"""Seconds after sending a message within which the end of the connection is its doing."""

ALONE_S = 5.0
"""Seconds for which the others wait, at most, until a message that is sent alone is answered."""

SINGLY_S = 600.0
"""Seconds after the last such end from which on messages are no longer sent singly: some suspects may be gone."""

Key = tuple[str, int | str]
"""The kind of a message, and its row or leaf."""

STATUS: Key = ("status", "")
"""The status, with which each connection begins; it is small, and never the cause."""

REPLY = "reply"
"""The kind of replies, which are sent once."""

_UNREPEATED = (STATUS[0], REPLY)


class Culprit:
    """The messages under way on the connections of one client, one connection after the other.

    ``clock`` is a steady clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._under_way: dict[Key, float] = {}  # when it was sent
        self._unanswered: dict[Key, float] = {}  # when it was sent: of those that the broker does not answer (QoS 0)
        self._suspects: set[Key] = set()
        self._singly_until = 0.0
        self._alone: Key | None = None  # the others wait for it

    @property
    def singly(self) -> bool:
        """True if messages are to be sent one at a time."""
        return bool(self._suspects) and self._clock() < self._singly_until

    @property
    def idle(self) -> bool:
        """True if no message is under way, or was sent just now without an answer to come."""
        return not self._under_way and not self._recent(self._unanswered)

    def free(self) -> bool:
        """Return True if a message may be sent now."""
        if self._alone is not None and self._clock() - self._under_way[self._alone] < ALONE_S:
            return False
        return not (self.singly and self._under_way)

    def sent(self, key: Key, *, alone: bool = False, answer: bool = True) -> None:
        """Note that a message is under way; with ``alone`` the others wait until it is answered.

        Without ``answer`` the broker does not answer it.
        """
        (self._under_way if answer else self._unanswered)[key] = self._clock()
        if alone:
            self._alone = key

    def answered(self, key: Key) -> None:
        """Note that the broker has answered a message, or that it is not sent any more."""
        self._under_way.pop(key, None)
        self._suspects.discard(key)
        if key == self._alone:
            self._alone = None

    def ended(self, end: ConnectionEnded) -> tuple[bool, Key | None]:
        """Begin a new connection; return True if a message may have ended this one, and which, if that is certain."""
        now, unanswered = self._clock(), self._recent(self._unanswered)
        recent = [*self._recent(self._under_way), *unanswered]
        under_way = [*self._under_way, *unanswered]
        self._under_way, self._unanswered, self._alone = {}, {}, None
        if not end.by_message or not recent:
            return False, None
        self._suspects.update(key for key in under_way if key[0] not in _UNREPEATED)
        self._singly_until = now + SINGLY_S
        # One that the broker does not answer may have been taken long before: it is sent singly, with an answer, next.
        certain = len(under_way) == 1 and not unanswered and recent != [STATUS]
        return recent != [STATUS], recent[0] if certain else None

    def _recent(self, sent: dict[Key, float]) -> list[Key]:
        """Return the messages that may be the cause of what happens now."""
        now = self._clock()
        return [key for key, sent_at in sent.items() if now - sent_at <= BLAME_S]


@dataclass
class _Struck:
    """Documents of one leaf, or replies, of which one has ended the connection."""

    strikes: int
    size: int  # bytes
    until: float = 0.0


class LeftOut:
    """The documents and replies that are not published for ``rest_s`` seconds, as they end the connection.

    They are known by their leaf: the next of that leaf is about as large. ``clock`` is a steady clock.
    """

    def __init__(self, rest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rest_s, self._clock = rest_s, clock
        self._struck: dict[str, _Struck] = {}

    def strike(self, leaf: str, size: int) -> int:
        """Note that one of ``size`` bytes has ended the connection; return how many have, since `clear`.

        From the second on, such ones rest.
        """
        known = self._struck.setdefault(leaf, _Struck(0, size))
        known.strikes, known.size = known.strikes + 1, size
        if known.strikes > 1:
            known.until = self._clock() + self._rest_s
        return known.strikes

    def rests(self, leaf: str, size: int) -> bool:
        """Return True if one of ``size`` bytes is not to be published now; a much smaller one may be."""
        known = self._struck.get(leaf)
        return known is not None and self._clock() < known.until and size > known.size // 2

    def clear(self) -> None:
        """Let all be published again, since the broker may take larger ones now."""
        self._struck.clear()
