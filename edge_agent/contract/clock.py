"""Packet time without the steps of a clock that was set, for every duration that is measured in packet time.

A clock that was set, or captures judged in the wrong order, must neither end nor prolong such a duration. Packets show
that the clock was set back; that it was set forward, which looks like a time without packets, the live loop tells.
`kernel/stats.c` has the same rule for the statistics. No system clock is read here.
"""

import numpy as np
from numpy.typing import NDArray

BACKWARD_S = 60.0
"""A packet that is older than an earlier one by more than this shows that the clock was set; smaller steps are packets
out of order."""

MAX_OFFSET_NS = 1 << 60
"""Bound of all steps backwards together: 36 years. Beyond it steady time stands still; only a damaged file gets there.
"""

_BACKWARD_NS = int(BACKWARD_S * 1e9)


class SteadyClock:
    """Turns packet times into steady times: packet time plus all steps backwards so far, less those forward.

    Packets that are out of order by at most `BACKWARD_S` keep their order in steady time, too. ``newest_ns`` is the
    latest packet time since the last step (None before the first packet), ``steps`` counts the steps.
    """

    def __init__(self) -> None:
        self.newest_ns: int | None = None
        self.steps = 0
        self._offset_ns = self._ahead_ns = 0

    def set_forward(self, step_ns: int) -> None:
        """Note that the system's clock was set forward by ``step_ns``.

        Packets from before the step may still come; the first that is later by half of it or more is from after it.

        >>> clock = SteadyClock()
        >>> _ = clock.at(1000 * 10**9)
        >>> clock.set_forward(86_400 * 10**9)
        >>> [clock.at(s * 10**9) // 10**9 for s in (1001, 87_402, 87_403)]
        [1001, 1002, 1003]
        """
        if self.newest_ns is not None:
            self._ahead_ns += step_ns

    @property
    def offset_ns(self) -> int:
        """Nanoseconds by which steady time is ahead of packet time."""
        return self._offset_ns

    def at(self, t_ns: int) -> int:
        """Return the steady time of a packet time, both in ns.

        >>> clock = SteadyClock()
        >>> [clock.at(s * 10**9) // 10**9 for s in (1000, 990, 400, 401)]  # out of order, then a clock set back
        [1000, 990, 1000, 1001]
        """
        if self._is_behind(t_ns):
            self._skip()
        newest = t_ns if self.newest_ns is None else self.newest_ns
        if t_ns < newest - _BACKWARD_NS:
            self._step(newest, t_ns)
            newest = t_ns
        self.newest_ns = max(newest, t_ns)
        return t_ns + self._offset_ns

    def each(self, t_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the steady times (n,) of packet times (n,), at least one, in the order in which they came."""
        if self._is_behind(int(t_ns.max())):
            first = int(np.argmax(t_ns - (self.newest_ns or 0) >= self._ahead_ns // 2))
            before = self.each(t_ns[:first]) if first else t_ns[:0]
            self._skip()
            return np.concatenate([before, self.each(t_ns[first:])])
        steady = t_ns.astype(np.int64)
        newest = int(t_ns[0]) if self.newest_ns is None else self.newest_ns
        latest = max(newest, int(steady.max()))
        if latest - int(steady.min()) <= _BACKWARD_NS:  # nearly always: there is no step in it
            self.newest_ns = latest
            return steady + self._offset_ns
        at = 0
        while at < len(t_ns):
            highest = np.maximum.accumulate(np.concatenate([[newest], t_ns[at:]]))
            back = t_ns[at:] < highest[:-1] - _BACKWARD_NS
            end = at + int(np.argmax(back)) if back.any() else len(t_ns)
            steady[at:end] += self._offset_ns
            newest = int(highest[end - at])
            if end < len(t_ns):
                self._step(newest, int(t_ns[end]))
                newest = int(t_ns[end])
            at = end
        self.newest_ns = newest
        return steady

    def _is_behind(self, t_ns: int) -> bool:
        """True if a packet of this time is the first, as far as is known, since the clock was set forward."""
        return self._ahead_ns > 0 and self.newest_ns is not None and t_ns - self.newest_ns >= self._ahead_ns // 2

    def _skip(self) -> None:
        self.newest_ns = (self.newest_ns or 0) + self._ahead_ns
        self._offset_ns -= self._ahead_ns
        self._ahead_ns = 0
        self.steps += 1

    def _step(self, newest: int, t_ns: int) -> None:
        self._offset_ns = min(self._offset_ns + newest - t_ns, MAX_OFFSET_NS)
        self.steps += 1
