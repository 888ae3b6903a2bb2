"""Messages that must reach the broker: stored until it has taken them, in order, at least once, within bounds.

`put` is for the packet loop, `drain` and `done` are for the link; either side may stop, crash or be killed between any
two calls. The content of a message is not known here, only if a later one repeats it (``droppable``).

A message that has ended the connection twice is *set aside*: `drain` passes over it, and `next_aside` gives it when
its time has come. It stays until the broker takes it or the bounds drop it.

While the disk cannot be written (full, failing), messages stay in memory instead, fewer of them, and are handed over
from there; they go to the disk as soon as it can be written again. Only in that time does a power cut lose any.
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
from edge_agent.delivery.outbox_table import STRIKES, OutboxTable
from edge_agent.state import State, StateError, StateUnwritableError

logger = logging.getLogger(__name__)

MAX_ROWS = 20_000
MAX_BYTES = 64 * 1024 * 1024  # of payloads
KEEP_S = 86_400.0  # for which messages the broker has taken stay: it may not have passed them on to the collector yet
UNSAVED_ROWS = 2000  # messages in memory while the disk cannot be written, at most
UNSAVED_BYTES = 4 * 1024 * 1024  # of their payloads
ASIDE_S = 3600.0  # for which a message that is set aside rests after it has ended another connection
_PAGE = 256  # rows read from the disk at a time


class _Queued(NamedTuple):
    """A message that is in memory only."""

    put_s: float  # wall clock, Unix seconds
    topic: str
    payload: bytes
    droppable: bool


@dataclass
class OutboxCounts:
    """Counters since the start of the process."""

    put: int = 0
    done: int = 0
    dropped_updates: int = 0  # updates dropped at the bound; they go first
    dropped: int = 0  # other messages dropped at the bound: alerts lost
    unwritable: int = 0  # attempts to use the disk that failed; messages stay in memory then


class Outbox:
    """The outbox in ``state``: at most ``max_rows`` and ``max_bytes`` of messages that wait or were taken.

    Those the broker has taken stay for ``keep_s`` seconds, so that they can be sent `again`. ``clock`` is a steady one.
    """

    def __init__(
        self,
        state: State,
        max_rows: int = MAX_ROWS,
        max_bytes: int = MAX_BYTES,
        keep_s: float = KEEP_S,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_rows < 1 or max_bytes < MAX_PAYLOAD:
            raise ValueError(f"outbox: must hold at least 1 row and {MAX_PAYLOAD} bytes")
        self.counts, self._clock = OutboxCounts(), clock
        self._table = OutboxTable(state)
        self._state, self._max_rows, self._max_bytes, self._keep_s = state, max_rows, max_bytes, keep_s
        self._given = 0  # the last row handed to ``send``
        self._wake: Callable[[], None] = lambda: None
        self._lock = threading.Lock()  # over what follows; taken before that of the state, never after
        self._unsaved: dict[int, _Queued] = {}  # by a number below 0, where rows are above
        self._unsaved_bytes, self._last_unsaved = 0, 0
        self._unsaved_given = 0  # the last of them handed to ``send``
        self._episodes: dict[str, tuple[str, bytes] | None] = {}  # those whose latest message the disk does not have
        self._unmarked: set[int] = set()  # rows the broker has taken that are not yet marked on the disk
        self._failing = False  # the last use of the disk failed, and that was logged
        self._depth = 0  # as last read
        self._strikes: dict[int, int] = {}  # connections ended by a message of this process that is not set aside yet
        self._aside: dict[int, int] = {}  # row -> bytes of those set aside
        self._aside_read = False  # it has those on the disk
        self._aside_unstored: set[int] = set()  # those of which the disk does not know it
        self._tried: dict[int, float] = {}  # steady clock: when one of them was given last
        self._resting_bytes, self._resting_until = 0, 0.0  # such and larger ones rest until then (steady clock)

    def put(
        self,
        messages: Iterable[tuple[str, bytes, bool]],
        episodes: Mapping[str, tuple[str, bytes] | None] = MappingProxyType({}),
    ) -> None:
        """Store ``(topic, payload, droppable)`` messages with a single write: they are on the disk on return.

        While the disk cannot be written they are in memory. ``episodes`` has the latest ``(topic, payload)`` of each
        episode the messages are about, None for one that ends with them: see `open_episodes`. StateError when the
        state file is closed.
        """
        now = time.time()
        queued = [_Queued(now, *message) for message in messages]
        for message in queued:
            if len(message.payload) > MAX_PAYLOAD:
                raise ValueError(f"{message.topic}: {len(message.payload)} bytes, the bound is {MAX_PAYLOAD}")
        if not queued and not episodes:
            return
        with self._lock:
            for message in queued:
                self._last_unsaved -= 1
                self._unsaved[self._last_unsaved] = message
                self._unsaved_bytes += len(message.payload)
            for episode, latest in episodes.items():
                self._episodes.pop(episode, None)  # so that it becomes the newest entry: the oldest are dropped first
                self._episodes[episode] = latest
            self.counts.put += len(queued)
            self._save()
        self._wake()

    def open_episodes(self) -> list[tuple[str, str, bytes]]:
        """Return ``(episode, topic, payload)`` of the last message of each episode that has not ended.

        At the start of a process, these were open when the one before it was killed. Empty while the disk cannot be
        read.
        """
        try:
            return self._table.open_episodes()
        except StateUnwritableError as error:
            with self._lock:
                self._cannot(error)
            return []

    def save(self) -> int:
        """Try again to write to the disk what is in memory only; return how many messages still are."""
        with self._lock:
            if self._unsaved or self._unmarked or self._episodes:
                self._save()
            return len(self._unsaved)

    def _save(self) -> None:
        """Write all that is in memory only; if that fails, count it and drop what is beyond the bounds of memory."""
        try:
            if self._unsaved or self._episodes:
                rows = self._unsaved.values()
                _, updates, others = self._table.put(rows, self._max_rows, self._max_bytes, self._episodes)
                self.counts.dropped_updates += updates
                self.counts.dropped += others
                if updates or others:
                    self._aside_read = False  # some may be gone
                self._forget(list(self._unsaved))  # they have other numbers now
                self._unsaved.clear()
                self._episodes.clear()
                self._unsaved_bytes = self._unsaved_given = 0
            if self._unmarked:
                self._table.acked(self._unmarked, time.time(), self._keep_s)
                self._unmarked.clear()
        except StateUnwritableError as error:
            self._cannot(error)
            self._bound()
            return
        if self._failing:
            logger.warning("%s can be written again, and alerts are stored on the disk as before", self._state.path)
            self._failing = False

    def _bound(self) -> None:
        """Drop what is beyond the bounds of memory: the oldest updates first, then the oldest of the others."""
        while len(self._episodes) > UNSAVED_ROWS:
            del self._episodes[next(iter(self._episodes))]
        for updates in (True, False):
            for row, message in list(self._unsaved.items()):
                if len(self._unsaved) <= UNSAVED_ROWS and self._unsaved_bytes <= UNSAVED_BYTES:
                    return
                if updates and not message.droppable:
                    continue
                del self._unsaved[row]
                self._forget([row])
                self._unsaved_bytes -= len(message.payload)
                self.counts.dropped_updates += message.droppable
                self.counts.dropped += not message.droppable

    def _cannot(self, error: StateUnwritableError) -> None:
        self.counts.unwritable += 1
        if not self._failing:
            logger.error(
                "%s; alerts stay in memory, at most %d, until it can be used: a restart or power cut before that loses "
                "them",
                *(error, UNSAVED_ROWS),
            )
            self._failing = True

    def drain(self, send: Callable[[int, str, bytes], bool]) -> int:
        """Hand waiting messages to ``send(row, topic, payload)`` in order until it returns False; return how many.

        The one for which it returned False is the next one again. A message that was handed over is not handed over
        again before `rewind`, and waits until `done`.
        """
        self.save()
        given, aside = 0, self._set_aside()
        while page := self._waiting():
            for row, topic, payload in page:
                if row not in self._unmarked and row not in aside:
                    if not send(row, topic, payload):
                        return given
                    given += 1
                self._given = row
        with self._lock:
            unsaved = [(row, m) for row, m in self._unsaved.items() if row < self._unsaved_given and row not in aside]
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
            return self._table.waiting(self._given, _PAGE)
        except StateUnwritableError as error:
            with self._lock:
                self._cannot(error)
            return []

    def done(self, rows: Iterable[int]) -> None:
        """Mark rows as taken by the broker."""
        rows = list(rows)
        with self._lock:
            for row in rows:
                if row > 0:
                    self._unmarked.add(row)
                elif row in self._unsaved:
                    self._unsaved_bytes -= len(self._unsaved.pop(row).payload)
            self._forget(rows)
            self._save()
        self.counts.done += len(rows)

    def rewind(self) -> None:
        """Begin again with the oldest message that still waits, as the connection that carried them has ended."""
        with self._lock:
            self._given = self._unsaved_given = 0

    def again(self, window_s: float, lost_s: float | None = None) -> int:
        """Let messages that were `done` in the last ``window_s`` seconds before ``lost_s`` wait again; return how many.

        A broker that is killed forgets what it took and had not yet written to its disk or passed on. ``lost_s`` (Unix
        s) is when the connection ended; None, at the start of a process, means the last `done`. The collector
        recognises repeats.
        """
        self.rewind()
        try:
            return self._table.again(lost_s, window_s)
        except StateUnwritableError as error:
            with self._lock:
                self._cannot(error)
            return 0

    def depth(self) -> int:
        """Return how many messages wait for the broker."""
        with self._lock:
            with suppress(StateUnwritableError):  # then as last read
                self._depth = self._table.size().waiting
            return max(self._depth - len(self._unmarked), 0) + len(self._unsaved)

    def strike(self, row: int, strikes: int = 1) -> bool:
        """Note that a message has ended a connection, or as many as ``strikes``; True if it is set aside now.

        The disk has the number, so that a restart between two of them does not begin anew.
        """
        with self._lock:
            total = self._strikes.get(row, 0) + strikes
            try:
                size = len(self._unsaved[row].payload) if row in self._unsaved else 0
                if row > 0:
                    total = max(total, self._table.strike(row, strikes))
                    waiting = self._table.row(row)
                    size = len(waiting[2]) if waiting else 0
            except StateUnwritableError as error:
                self._cannot(error)
                self._aside_unstored.add(row)
            self._strikes[row] = total
            if total < STRIKES and row not in self._aside:
                return False
            self._strikes.pop(row)
            self._aside[row] = size
            self._rest(row)
            return True

    def aside(self) -> int:
        """Return how many messages are set aside."""
        return len(self._set_aside())

    def next_aside(self) -> tuple[int, str, bytes] | None:
        """Return ``(row, topic, payload)`` of a message that is set aside and may be tried again, None without one.

        At the start of a process all may be tried, and then each after `ASIDE_S`: first the one that has waited
        longest. Where one has ended the connection, those that are at least as large rest, too. Call it when no other
        message waits or is under way.
        """
        aside, now = self._set_aside(), self._clock()
        with self._lock:
            rests = self._resting_bytes if now < self._resting_until else 1 << 62
            due = [row for row, size in aside.items() if size < rests]
        for row in sorted(due, key=lambda row: (self._tried.get(row, 0.0), row)):
            with self._lock:
                try:
                    unsaved = self._unsaved.get(row)
                    waiting = (row, unsaved.topic, unsaved.payload) if unsaved else self._table.row(row)
                except StateUnwritableError as error:
                    self._cannot(error)
                    return None
                if waiting is None:  # dropped at the bound
                    self._forget([row])
                    continue
                self._tried[row] = now
            return waiting
        return None

    def rest(self, row: int) -> None:
        """Let a message that is set aside, and those at least as large, rest for `ASIDE_S`."""
        with self._lock:
            if row in self._aside:
                self._rest(row)

    def try_aside(self) -> None:
        """Let all that are set aside be tried at once, since the broker may take larger messages now."""
        self._resting_until = 0.0

    def _rest(self, row: int) -> None:
        size, now = self._aside.get(row, 0), self._clock()
        self._resting_bytes = min(size, self._resting_bytes) if now < self._resting_until else size
        self._resting_until = now + ASIDE_S

    def _set_aside(self) -> dict[int, int]:
        """Return the bytes of each row that is set aside, as far as the disk can be read."""
        if not self._aside_read:
            with self._lock, suppress(StateError):  # closed at the end, or whoever uses the disk next reports it
                stored = {row: size for row, size in self._table.set_aside() if row not in self._unmarked}
                unstored = {row: size for row, size in self._aside.items() if row < 0 or row in self._aside_unstored}
                self._aside, self._aside_read = unstored | stored, True
        return self._aside

    def _forget(self, rows: Iterable[int]) -> None:
        """Forget what is known of messages as such that end the connection."""
        for row in rows:
            self._strikes.pop(row, None)
            self._tried.pop(row, None)
            self._aside.pop(row, None)
            self._aside_unstored.discard(row)

    def unsaved(self) -> int:
        """Return how many of them are in memory only, as the disk cannot be written; a power cut would lose them."""
        return len(self._unsaved)

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` after every put, in the thread of the put."""
        self._wake = wake
