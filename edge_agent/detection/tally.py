"""Sums over one subject's own rows: counts of what it opened, the times of that, and traffic that was not judged."""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.capture import features
from edge_agent.contract.columns import COUNT_COLUMNS, COUNTS, parts
from edge_agent.detection.activity import PORT_BITS, SAMPLE, Sample, targets
from edge_agent.detection.minutes import MINUTE_NS
from edge_agent.detection.scored import ScoredRows
from edge_agent.detection.vote import COUNT_DECAYS

TALLY_S = 64
"""Seconds between the moments that a subject's own counts are referred to; 2^(5·64) is far within a float64."""

MAX_OPENED = 256
"""Number of a subject's latest times of opening a peer or socket that are kept, to find where a count began to rise."""

_S = 1_000_000_000
_FLAG_BITS = 2
_OPENS = features.NEW_PEER | features.NEW_SOCKET
COUNTS_PEERS = np.array([parts(c).statistic in ("new_peers", "pinged") for c in COUNTS])
COUNTS_OPENED = np.array(["unanswered" not in parts(c).statistic for c in COUNTS])
"""For each of `COUNTS`, True if it counts peers, and peers or sockets; the others count packets."""

_OWN, _OWN_PEERS = COUNT_DECAYS[: len(COUNT_COLUMNS)], COUNTS_PEERS[: len(COUNT_COLUMNS)]

_NONE_OPENED = np.zeros((0, 2), dtype=np.int64)


class Tally:
    """Damped counts (`COUNT_COLUMNS`) of what one subject opened, from its own rows alone.

    Times are referred to whole multiples of `TALLY_S`, as rows that opened something reach them, and summed row by row,
    so that no rounding depends on where batches are cut.
    """

    __slots__ = ("_latest_ns", "_reference_ns", "_sums")

    def __init__(self) -> None:
        self._sums = np.zeros(len(COUNT_COLUMNS))
        self._reference_ns = self._latest_ns = 0

    def counts(self, t_ns: NDArray[np.int64], flags: NDArray[np.integer]) -> NDArray[np.float64]:
        """Take in rows at ``t_ns`` (n,) with ``flags`` of ROW_META (n,); return the counts at each, (n, columns)."""
        opened = np.where(_OWN_PEERS, (flags & features.NEW_PEER)[:, None], (flags & features.NEW_SOCKET)[:, None])
        late = np.maximum.accumulate(np.maximum(t_ns, self._latest_ns))
        self._latest_ns = int(late[-1])
        opening = np.flatnonzero(opened.any(axis=1))
        counts = np.empty((len(t_ns), len(COUNT_COLUMNS)))
        spans = late[opening] // (TALLY_S * _S)
        cuts = [0, *opening[np.flatnonzero(np.diff(spans, prepend=-1))].tolist(), len(t_ns)]
        for at, end in itertools.pairwise(cuts):
            if at == end:
                continue
            start = int(late[at]) // (TALLY_S * _S) * TALLY_S * _S
            if opened[at].any() and start > self._reference_ns:
                self._sums *= np.exp2(-_OWN * ((start - self._reference_ns) / _S))
                self._reference_ns = start
            since = (late[at:end] - self._reference_ns)[:, None] / _S
            with np.errstate(over="ignore"):  # long after the last one opened: all of it is decayed away
                new = np.where(opened[at:end] != 0, np.exp2(_OWN * since), 0.0)
            sums = np.cumsum(np.concatenate([self._sums[None], new]), axis=0)[1:]
            self._sums = sums[-1].copy()
            counts[at:end] = sums * np.exp2(-_OWN * since)
        return counts

    def quiet_counts(
        self, t_ns: NDArray[np.int64], flags: NDArray[Any], bounds: NDArray[np.float64], every: bool, near: float
    ) -> NDArray[np.float64] | None:
        """Take in rows as `counts` does and return the highest count of each in units of its bound, (n,).

        If one exceeds the share ``near`` of its bound, nothing is taken in, and None is returned. Unless ``every`` row
        is looked at, rows whose counts cannot be the highest of a minute have 0: a count is highest where something is
        opened, or where the minute begins.
        """
        late = np.maximum.accumulate(np.maximum(t_ns, self._latest_ns))
        looked = flags & _OPENS != 0
        looked[0] = True
        if late[0] // MINUTE_NS != late[-1] // MINUTE_NS:
            looked[1:] |= np.diff(late // MINUTE_NS) != 0
        looked |= every
        before = self._sums.copy(), self._reference_ns, self._latest_ns
        highest = np.zeros(len(t_ns))
        highest[looked] = (self.counts(late[looked], flags[looked]) / bounds).max(axis=1)
        self._latest_ns = int(late[-1])
        if highest.max() <= near:
            return highest
        self._sums, self._reference_ns, self._latest_ns = before
        return None


class Openings:
    """The last times at which a subject opened a peer or a socket, and where.

    They show where a count began to rise, and how what was opened is spread.
    """

    __slots__ = ("_opened",)

    def __init__(self) -> None:
        self._opened = _NONE_OPENED

    def note(self, scored: ScoredRows, index: NDArray[np.intp]) -> None:
        """Keep the times and targets of those rows ``index`` that opened something."""
        opening = index[scored.opens[index]][-MAX_OPENED:]
        if len(opening):
            marks = targets(scored.rows.meta[opening]) << _FLAG_BITS | (scored.flags[opening] & _OPENS)
            new = np.stack([scored.t_ns[opening], marks], axis=1)
            joined = np.concatenate([self._opened, new])
            self._opened = joined[-MAX_OPENED:].copy() if len(joined) > MAX_OPENED else joined

    def onset(self, column: int, bound: float, after_ns: int) -> int | None:
        """Return the time since when a count grows towards its ``bound``, which takes a slow scan a minute to reach.

        ``column`` is its number in `COUNTS`, of what is opened; what was opened until ``after_ns`` does not count. None
        if nothing was opened. This is the change time of Page's CUSUM (1954): the moment at which the number opened,
        less the number that a rate just sustaining the bound would have opened, was lowest.
        """
        t_ns, flags = self._opened.T
        kind = features.NEW_PEER if COUNTS_PEERS[column] else features.NEW_SOCKET
        times = t_ns[(t_ns > after_ns) & (flags & kind != 0)]
        if not len(times):
            return None
        rate = bound * COUNT_DECAYS[column] * np.log(2.0)  # a second
        before = np.arange(len(times)) - rate * ((times - times[0]) / _S)
        return int(times[len(times) - 1 - int(np.argmin(before[::-1]))])

    def new_hosts(self, since_ns: int) -> set[int]:
        """Return the hosts, as hashes of `Sample.hosts`, of the new peers among the openings since ``since_ns``."""
        t_ns, marks = self._opened.T
        at = (t_ns >= since_ns) & (marks & features.NEW_PEER != 0)
        return set((marks[at] >> (_FLAG_BITS + PORT_BITS)).tolist())

    def latest(self, since_ns: int, *, peers: bool) -> Sample:
        """Return the last `SAMPLE` openings since ``since_ns``.

        With ``peers`` only those of new peers.
        """
        t_ns, marks = self._opened.T
        at = np.flatnonzero((t_ns >= since_ns) & (marks & (features.NEW_PEER if peers else _OPENS) != 0))[-SAMPLE:]
        ones = np.ones(len(at), dtype=np.int64)
        return Sample(t_ns=t_ns[at], targets=marks[at] >> _FLAG_BITS, packets=ones, grown=ones > 0)


class Shed:
    """Packets and bytes of a subject's rows that were not judged since the last row that was."""

    __slots__ = ("bytes", "packets")

    def __init__(self) -> None:
        self.packets = self.bytes = 0

    def attribute(self, judged: NDArray[np.bool_], sizes: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Return the numbers (m,) of the ``judged`` rows, and the packets and bytes that each accounts for.

        These are its own and those of the rows before it that were not judged."""
        at = np.flatnonzero(judged)
        if len(at) == len(judged) and not self.packets:
            return at, np.ones(len(at), dtype=np.int64), sizes
        through = np.cumsum(sizes)
        packets, total = np.diff(at, prepend=-1), np.diff(through[at], prepend=0)
        last = int(at[-1]) if len(at) else -1
        rest = len(judged) - 1 - last, int(through[-1] - (through[last] if len(at) else 0))
        if len(at):
            packets[0] += self.packets
            total[0] += self.bytes
            self.packets, self.bytes = rest
        else:
            self.packets, self.bytes = self.packets + rest[0], self.bytes + rest[1]
        return at, packets, total
