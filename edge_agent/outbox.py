"""Messages that must reach the broker: kept on disk until it has taken them, in order, at least once, within bounds.

`put` is for the packet loop, `drain` and `done` for the link; either side may stop, crash or be killed between any two
calls. What a message says is not known here, only whether a later one says it again (`droppable`).
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from edge_agent.contract.messages import MAX_PAYLOAD
from edge_agent.state import State

MAX_ROWS = 20_000
MAX_BYTES = 64 * 1024 * 1024  # of payloads
KEEP_S = 86_400.0  # rows the broker has taken are kept so long: its word is not yet the collector's
_PAGE = 256  # rows read from the disk at a time


@dataclass
class OutboxCounts:
    """How often what happened, since the start of the process."""

    put: int = 0
    done: int = 0
    dropped_updates: int = 0  # updates dropped at the bound, which are the first to go
    dropped: int = 0  # other messages dropped at the bound: alerts lost


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

    def put(self, topic: str, payload: bytes, *, droppable: bool = False) -> None:
        """Keep one message; it is on the disk when this returns. StateError when it cannot be."""
        self.put_all([(topic, payload, droppable)])

    def put_all(self, messages: Sequence[tuple[str, bytes, bool]]) -> None:
        """Keep ``(topic, payload, droppable)`` messages with a single write to the disk."""
        for topic, payload, _ in messages:
            if len(payload) > MAX_PAYLOAD:
                raise ValueError(f"{topic}: {len(payload)} bytes, the bound is {MAX_PAYLOAD}")
        if not messages:
            return
        now = time.time()
        rows = [(now, topic, payload, droppable) for topic, payload, droppable in messages]
        _, updates, others = self._state.outbox_put(rows, self._max_rows, self._max_bytes)
        self.counts.put += len(rows)
        self.counts.dropped_updates += updates
        self.counts.dropped += others
        self._wake()

    def drain(self, send: Callable[[int, str, bytes], bool]) -> int:
        """Hand waiting messages to ``send(row, topic, payload)`` in order until it returns False (that one stays next).

        A message handed over is not handed over again until `rewind`, and waits until `done`. Returns how many.
        """
        given = 0
        while page := self._state.outbox_waiting(self._given, _PAGE):
            for row, topic, payload in page:
                if not send(row, topic, payload):
                    return given
                self._given, given = row, given + 1
        return given

    def done(self, rows: Iterable[int]) -> None:
        """The broker has taken these rows."""
        rows = list(rows)
        self._state.outbox_acked(rows, time.time(), self._keep_s)
        self.counts.done += len(rows)

    def rewind(self) -> None:
        """Begin again with the oldest message that still waits: the connection that carried them is gone."""
        self._given = 0

    def again(self, window_s: float, lost_s: float | None = None) -> int:
        """Hand over again what was `done` in the last ``window_s`` seconds before ``lost_s``, and all that waits.

        A broker that is killed forgets what it took and had not yet written down or passed on. ``lost_s`` (Unix s) is
        when the connection ended; None, at the start of a process, stands for the last `done`. Returns how many rows
        wait that did not; the collector recognises repeats.
        """
        self.rewind()
        return self._state.outbox_again(lost_s, window_s)

    def depth(self) -> int:
        """How many messages wait for the broker."""
        return self._state.outbox_size().waiting

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` after every put, in the thread of the put."""
        self._wake = wake
