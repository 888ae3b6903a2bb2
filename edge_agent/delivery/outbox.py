"""Messages that must reach the broker: kept on disk until it has taken them, in order, at least once, within bounds.

`put` is for the packet loop, `drain` and `done` for the link; either side may stop, crash or be killed between any two
calls. What a message says is not known here, only whether a later one says it again (`droppable`).

While the disk takes nothing (full, failing), messages are kept in memory instead, fewer of them, and are handed over
from there; they go to the disk as soon as it takes them. Only then does a power cut lose any.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from edge_agent.contract.messages import MAX_PAYLOAD
from edge_agent.state import State, StateUnwritableError

logger = logging.getLogger(__name__)

MAX_ROWS = 20_000
MAX_BYTES = 64 * 1024 * 1024  # of payloads
KEEP_S = 86_400.0  # rows the broker has taken are kept so long: its word is not yet the collector's
UNSAVED_ROWS = 2000  # kept in memory while the disk takes none
UNSAVED_BYTES = 4 * 1024 * 1024  # of their payloads
_PAGE = 256  # rows read from the disk at a time


class _Queued(NamedTuple):
    """One that is in memory only."""

    put_s: float  # wall clock, Unix seconds
    topic: str
    payload: bytes
    droppable: bool


@dataclass
class OutboxCounts:
    """How often what happened, since the start of the process."""

    put: int = 0
    done: int = 0
    dropped_updates: int = 0  # updates dropped at the bound, which are the first to go
    dropped: int = 0  # other messages dropped at the bound: alerts lost
    unwritable: int = 0  # attempts to use the disk that failed; what was to be written stays in memory


class Outbox:
    """The outbox in ``state``; waiting and kept rows together are at most ``max_rows`` and ``max_bytes``."""

    def __init__(
        self, state: State, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES, keep_s: float = KEEP_S
    ) -> None:
        if max_rows < 1 or max_bytes < MAX_PAYLOAD:
            raise ValueError(f"outbox: at least 1 row and {MAX_PAYLOAD} bytes")
        self.counts = OutboxCounts()
        self._state, self._max_rows, self._max_bytes, self._keep_s = state, max_rows, max_bytes, keep_s
        self._given = 0  # the last row handed to ``send``
        self._wake: Callable[[], None] = lambda: None
        self._lock = threading.Lock()  # over what follows; taken before that of the state, never after
        self._unsaved: dict[int, _Queued] = {}  # by a number below 0, where rows are above
        self._unsaved_bytes, self._last_unsaved = 0, 0
        self._unsaved_given = 0  # the last of them handed to ``send``
        self._stories: dict[str, tuple[str, bytes] | None] = {}  # what the disk does not know of stories; None: over
        self._unmarked: set[int] = set()  # rows a broker has taken, which the disk does not know
        self._failing = False  # the last use of the disk failed, and that was said
        self._depth = 0  # as last read

    def put(self, topic: str, payload: bytes, *, droppable: bool = False) -> None:
        """Keep one message: on the disk when this returns, or in memory while the disk takes nothing."""
        self.put_all([(topic, payload, droppable)])

    def put_all(
        self,
        messages: Iterable[tuple[str, bytes, bool]],
        stories: Mapping[str, tuple[str, bytes] | None] = MappingProxyType({}),
    ) -> None:
        """Keep ``(topic, payload, droppable)`` messages with a single write.

        Besides, of each of ``stories`` its latest ``(topic, payload)`` is remembered until it is None, which is its
        end: see `unfinished`. StateError when the state file is closed.
        """
        now = time.time()
        kept = [_Queued(now, *message) for message in messages]
        for message in kept:
            if len(message.payload) > MAX_PAYLOAD:
                raise ValueError(f"{message.topic}: {len(message.payload)} bytes, the bound is {MAX_PAYLOAD}")
        if not kept and not stories:
            return
        with self._lock:
            for message in kept:
                self._last_unsaved -= 1
                self._unsaved[self._last_unsaved] = message
                self._unsaved_bytes += len(message.payload)
            for story, latest in stories.items():
                self._stories.pop(story, None)  # lest the latest be taken for an old one, which go first
                self._stories[story] = latest
            self.counts.put += len(kept)
            self._save()
        self._wake()

    def unfinished(self) -> list[tuple[str, str, bytes]]:
        """``(story, topic, payload)`` of the last message of each story that has begun and not come to its end.

        At the start of a process these were cut short by the end of the one before. None while the disk is in trouble.
        """
        try:
            return self._state.outbox_unfinished()
        except StateUnwritableError as error:
            with self._lock:
                self._cannot(error)
            return []

    def save(self) -> int:
        """Try again to bring to the disk what is in memory only; how many messages still are."""
        with self._lock:
            if self._unsaved or self._unmarked or self._stories:
                self._save()
            return len(self._unsaved)

    def _save(self) -> None:
        """Write all that is in memory only, or count that it cannot be written, and keep to the bounds there."""
        try:
            if self._unsaved or self._stories:
                rows = self._unsaved.values()
                _, updates, others = self._state.outbox_put(rows, self._max_rows, self._max_bytes, self._stories)
                self.counts.dropped_updates += updates
                self.counts.dropped += others
                self._unsaved.clear()
                self._stories.clear()
                self._unsaved_bytes = self._unsaved_given = 0
            if self._unmarked:
                self._state.outbox_acked(self._unmarked, time.time(), self._keep_s)
                self._unmarked.clear()
        except StateUnwritableError as error:
            self._cannot(error)
            self._bound()
            return
        if self._failing:
            logger.warning("%s can be written again", self._state.path)
            self._failing = False

    def _bound(self) -> None:
        """Drop from memory what is beyond the bounds: the oldest updates, then whatever is oldest."""
        while len(self._stories) > UNSAVED_ROWS:
            del self._stories[next(iter(self._stories))]
        for updates in (True, False):
            for row, message in list(self._unsaved.items()):
                if len(self._unsaved) <= UNSAVED_ROWS and self._unsaved_bytes <= UNSAVED_BYTES:
                    return
                if updates and not message.droppable:
                    continue
                del self._unsaved[row]
                self._unsaved_bytes -= len(message.payload)
                self.counts.dropped_updates += message.droppable
                self.counts.dropped += not message.droppable

    def _cannot(self, error: StateUnwritableError) -> None:
        self.counts.unwritable += 1
        if not self._failing:
            logger.error("%s; alerts are kept in memory, at most %d, until it can be written", error, UNSAVED_ROWS)
            self._failing = True

    def drain(self, send: Callable[[int, str, bytes], bool]) -> int:
        """Hand waiting messages to ``send(row, topic, payload)`` in order until it returns False (that one stays next).

        A message handed over is not handed over again until `rewind`, and waits until `done`. Returns how many.
        """
        self.save()
        given = 0
        while page := self._waiting():
            for row, topic, payload in page:
                if row not in self._unmarked:
                    if not send(row, topic, payload):
                        return given
                    given += 1
                self._given = row
        with self._lock:
            unsaved = [(row, m) for row, m in self._unsaved.items() if row < self._unsaved_given]
        for row, message in unsaved:
            if not send(row, message.topic, message.payload):
                return given
            with self._lock:
                if row in self._unsaved:  # else it went to the disk meanwhile, under another number
                    self._unsaved_given = row
            given += 1
        return given

    def _waiting(self) -> list[tuple[int, str, bytes]]:
        try:
            return self._state.outbox_waiting(self._given, _PAGE)
        except StateUnwritableError as error:
            with self._lock:
                self._cannot(error)
            return []

    def done(self, rows: Iterable[int]) -> None:
        """The broker has taken these rows."""
        rows = list(rows)
        with self._lock:
            for row in rows:
                if row > 0:
                    self._unmarked.add(row)
                elif row in self._unsaved:
                    self._unsaved_bytes -= len(self._unsaved.pop(row).payload)
            self._save()
        self.counts.done += len(rows)

    def rewind(self) -> None:
        """Begin again with the oldest message that still waits: the connection that carried them is gone."""
        with self._lock:
            self._given = self._unsaved_given = 0

    def again(self, window_s: float, lost_s: float | None = None) -> int:
        """Hand over again what was `done` in the last ``window_s`` seconds before ``lost_s``, and all that waits.

        A broker that is killed forgets what it took and had not yet written down or passed on. ``lost_s`` (Unix s) is
        when the connection ended; None, at the start of a process, stands for the last `done`. Returns how many rows
        wait that did not; the collector recognises repeats.
        """
        self.rewind()
        try:
            return self._state.outbox_again(lost_s, window_s)
        except StateUnwritableError as error:
            with self._lock:
                self._cannot(error)
            return 0

    def depth(self) -> int:
        """How many messages wait for the broker."""
        with self._lock:
            with suppress(StateUnwritableError):  # then as last read
                self._depth = self._state.outbox_size().waiting
            return max(self._depth - len(self._unmarked), 0) + len(self._unsaved)

    def unsaved(self) -> int:
        """How many of them are in memory only, since the disk takes none; a power cut would lose them."""
        return len(self._unsaved)

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` after every put, in the thread of the put."""
        self._wake = wake
