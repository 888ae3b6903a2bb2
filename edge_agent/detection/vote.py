"""The vote rule: when rows above their limits become an alarm, when it is over, and how its aftermath is judged.

The rule (`VoteRule`). An alarm begins at the row with which ``k`` of the last ``w`` judged rows of a subject are above
their limit, or ``count_k`` of them above a bound of the counts rule. It is over once fewer than half of either are, or
when no row has voted for `SILENCE_S`. A row that is above its limit during an alarm is a vote for it. The first vote is
reported, then at most one a second, and the last one (`STALE_S`).

The same rule has a second form (`vote_statistic`) for use without limits, by calibration and evaluation: the k-th
largest of the last w scores is above a limit exactly when k of these scores are.

The aftermath (`Aftermath`). After a flood the columns of λ = 0.01 need many minutes to forget it. So from the beginning
of an alarm its subject is judged by what goes on now: by the error over the fast columns, by counts of new peers and
sockets less what remains of those of some seconds ago, and by the full error while the device is about as loud as in
the attack. The full rule returns when that has been quiet for `AFTERMATH_S`.

How rows come to be above a limit, and whose they are, is the knowledge of `edge_agent.detection.subject`.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.alert import Activity
from edge_agent.contract.bounds import VOTE_LATE_S
from edge_agent.contract.bundle import PROFILE_FIELDS
from edge_agent.contract.columns import COUNTS, parts
from edge_agent.contract.decision import Decision
from edge_agent.detection.activity import Sample

SILENCE_S = 60.0
"""Seconds without a vote after which an alarm is over."""

STALE_S = VOTE_LATE_S - 1.0
"""Seconds after which a vote is reported even when no other follows it; the newest may wait a second before that."""

AFTERMATH_S = 1000.0
"""Seconds after its last vote for which a subject is judged by what is new; a count of λ = 0.01 falls to 1/1000."""

FRESH_S = 10.0
"""Seconds over which a count must have grown for its growth to count as new."""

MEMORY_S = 100.0
"""Seconds over which a count of λ = 0.01 must have grown past its bound: its memory. For faster ones it is `FRESH_S`.

Within `FRESH_S` a slow scan never grows past a bound that it needed a minute to reach."""

LOUD = 0.5
"""Share of an alarm's highest packet rate (λ = 1) from which a sender counts as loud as in the attack."""

NEAR = 0.999
"""Share of a limit up to which no rounding lifts a row above it."""

COUNT_DECAYS = np.array([parts(c).decay for c in COUNTS])
"""Decay λ in 1/s of each of `COUNTS`."""

_SLOW = COUNT_DECAYS < 1.0
_LONG = COUNT_DECAYS < 1.0 / FRESH_S
_S = 1_000_000_000


def vote_statistic(scores: NDArray[Any], k: int, w: int) -> NDArray[np.float64]:
    """Return, for each row, the k-th largest of the last w scores, shape (n,); 0 until there are k scores.

    It is above a limit exactly where `count_in_window` of the scores above that limit is at least k.

    >>> scores = np.array([5.0, 1.0, 4.0, 3.0])
    >>> vote_statistic(scores, 2, 3)
    array([0., 1., 4., 3.])
    >>> vote_statistic(scores, 2, 3) > 3.5
    array([False, False,  True, False])
    >>> count_in_window(np.zeros(0, dtype=bool), scores > 3.5, 3) >= 2
    array([False, False,  True, False])
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not len(scores):
        return scores
    windows = np.lib.stride_tricks.sliding_window_view(np.concatenate([np.zeros(w - 1), scores]), w)
    return np.partition(windows, w - k, axis=1)[:, w - k]


def count_in_window(past: NDArray[np.bool_], now: NDArray[np.bool_], w: int) -> NDArray[np.int64]:
    """Count, for each row of ``now``, how many of the last ``w`` rows up to it are set; ``past`` are the rows before.

    >>> count_in_window(np.array([True, True]), np.array([False, True, False]), 3)
    array([2, 2, 1])
    """
    sums = np.cumsum(np.concatenate([[0], past, now]))
    ends = np.arange(len(past) + 1, len(past) + 1 + len(now))
    return np.asarray(sums[ends] - sums[np.maximum(ends - w, 0)])


@dataclass(frozen=True, kw_only=True)
class VoteRule:
    """The numbers of flagged rows, among a subject's last ones, by which an alarm begins and ends."""

    k: int
    """Rows above any limit that begin an alarm."""
    w: int
    """Number of the last judged rows that are looked at."""
    count_k: int
    """Rows above a bound of the counts rule that begin an alarm: fewer, since a count is a sum over many packets."""

    @classmethod
    def of(cls, decision: Decision) -> Self:
        """Return the rule of a bundle."""
        return cls(k=decision.vote_k, w=decision.vote_w, count_k=decision.count_votes)

    def of_few(self, n: int) -> "VoteRule":
        """Return the rule for ``n`` rows in all: the same share of them where they are fewer than ``w``.

        >>> VoteRule(k=15, w=20, count_k=3).of_few(6)
        VoteRule(k=5, w=6, count_k=3)
        """
        return self if n >= self.w else VoteRule(k=-(-self.k * n // self.w), w=n, count_k=self.count_k)

    def begins(self, window: "VoteWindow", hits: NDArray[np.bool_], counted: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return, for each of the n rows that follow ``window``, if an alarm would begin there, (n,).

        ``hits`` are the rows above any limit, ``counted`` those above a bound of the counts rule.
        """
        flagged = count_in_window(window.hits, hits, self.w)
        by_count = count_in_window(window.counted, counted, self.w)
        return (flagged >= self.k) | (by_count >= self.count_k)

    def ends(self, window: "VoteWindow", hits: NDArray[np.bool_], counted: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return, for each of the n rows that follow ``window``, if an alarm would be over there, (n,).

        That takes fewer than half of the rows that began it, so that an alarm does not flap. An alarm whose subject is
        silent is over by `silent`.
        """
        flagged = count_in_window(window.hits, hits, self.w)
        by_count = count_in_window(window.counted, counted, self.w)
        return (flagged < _half(self.k)) & (by_count < _half(self.count_k))

    def ends_aftermath(self, window: "VoteWindow", quiet_ns: int) -> bool:
        """Return True if the full rule can be in force again ``quiet_ns`` after the last vote, when the alarm is over.

        It cannot while it would soon begin an alarm by what slow columns remember of the last one.
        """
        return quiet_ns / _S > AFTERMATH_S and int(window.full.sum()) < _half(self.count_k)

    def decide(
        self, window: "VoteWindow", score_ratio: float, count_ratios: NDArray[np.float64]
    ) -> tuple[int | None, float, float]:
        """Return what made the newest row of ``window`` a vote, the vote statistic, and the share of flagged rows.

        The first is the number in `COUNTS` of the count that decided, None where the score did. Ratios are to
        the limits in force. Where k rows are flagged the higher ratio decides, else a count that is above its bound. A
        count is a sum over many packets, so it is as sure as it is far beyond its bound: its share is at least 0.5.
        """
        count_ratio, share = float(count_ratios.max()), float(window.hits.mean())
        enough = int(window.hits.sum()) >= self.k
        by_score = score_ratio >= count_ratio if enough else count_ratio <= 1.0
        if by_score:
            return None, window.statistic(self.k), share
        statistic = window.statistic(self.count_k)
        return int(np.argmax(count_ratios)), statistic, max(share, 1.0 - 0.5 / max(statistic, 1.0))


def silent(quiet_ns: int) -> bool:
    """Return True if an alarm is over ``quiet_ns`` after its last vote, however few rows its subject has sent since."""
    return quiet_ns / _S > SILENCE_S


def _half(votes: int) -> int:
    return (votes + 1) // 2


class VoteWindow:
    """The last ``w`` judged rows of a subject, oldest first, in arrays of (n,) or (n, columns).

    Quiet rows, which nothing flagged, wait in a list until `settle`: most devices are quiet and never need the arrays.
    """

    def __init__(self, w: int, class_count: int) -> None:
        self._w = w
        self._quiet: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
        self._waiting = 0
        self.full = self.hits = self.counted = np.zeros(0, dtype=bool)
        """Rows flagged by the full rule; by the rule that was in force; by a bound of the counts in that rule."""
        self.ratio = np.zeros(0, dtype=np.float32)
        """The higher of score and count, in units of the limit in force; 0 for quiet rows."""
        self.t_ns = self.packets = self.bytes = np.zeros(0, dtype=np.int64)
        """Steady time, and the packets and bytes that a row accounts for, those of shed rows before it included."""
        self.targets, self.grown = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
        """Of rows whose score is above its limit, as `edge_agent.detection.activity` has them; 0 for others."""
        self.classes = np.zeros((0, class_count))
        self.profiles = np.zeros((0, len(PROFILE_FIELDS)))
        """Class probabilities and packet profiles of flagged rows; 0 for others."""

    def absorb_quiet(self, t_ns: NDArray[np.int64], packets: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        """Append quiet rows, at most ``w``: steady times, packets and bytes."""
        self._quiet.append((t_ns, packets, sizes))
        self._waiting += len(t_ns)
        while self._waiting - len(self._quiet[0][0]) >= self._w:
            self._waiting -= len(self._quiet.pop(0)[0])

    def settle(self) -> None:
        """Move the quiet rows that wait into the arrays; call it before any of these is read."""
        if not self._quiet:
            return
        t_ns, packets, sizes = (np.concatenate(part) for part in zip(*self._quiet, strict=True))
        self._quiet, self._waiting, n = [], 0, len(t_ns)
        no = np.zeros(n, dtype=bool)
        self.add(
            full=no,
            hits=no,
            counted=no,
            ratio=np.zeros(n, dtype=np.float32),
            t_ns=t_ns,
            packets=packets,
            sizes=sizes,
            targets=np.zeros(n, dtype=np.int64),
            grown=no,
            classes=np.zeros((n, self.classes.shape[1])),
            profiles=np.zeros((n, self.profiles.shape[1])),
        )

    def add(
        self,
        *,
        full: NDArray[np.bool_],
        hits: NDArray[np.bool_],
        counted: NDArray[np.bool_],
        ratio: NDArray[np.float32],
        t_ns: NDArray[np.int64],
        packets: NDArray[np.int64],
        sizes: NDArray[np.int64],
        targets: NDArray[np.int64],
        grown: NDArray[np.bool_],
        classes: NDArray[np.float64],
        profiles: NDArray[np.float64],
    ) -> None:
        """Append rows, (n,) or (n, columns) each, and drop the oldest beyond ``w``."""
        w = self._w
        self.full, self.hits, self.counted = (
            _last(w, self.full, full),
            _last(w, self.hits, hits),
            _last(w, self.counted, counted),
        )
        self.ratio, self.t_ns = _last(w, self.ratio, ratio), _last(w, self.t_ns, t_ns)
        self.packets, self.bytes = _last(w, self.packets, packets), _last(w, self.bytes, sizes)
        self.targets, self.grown = _last(w, self.targets, targets), _last(w, self.grown, grown)
        self.classes, self.profiles = _last(w, self.classes, classes), _last(w, self.profiles, profiles)

    def forget_hits(self) -> None:
        """Stop counting any row as flagged by the rule in force: what comes now is not the same attack."""
        self.hits = self.counted = np.zeros_like(self.hits)

    def forget_flags(self) -> None:
        """Stop counting any row as flagged, by whatever rule."""
        self.settle()
        self.full = self.hits = self.counted = np.zeros_like(self.full)

    def statistic(self, k: int) -> float:
        """Return the k-th largest ratio to a limit, or the lowest one of a flagged row where fewer are flagged."""
        ranked = np.sort(self.ratio)[::-1]
        return float(ranked[min(k, int(self.hits.sum())) - 1])

    def above_limit(self) -> Sample:
        """Return the rows whose score is above its limit."""
        at = self.targets != 0
        return Sample(t_ns=self.t_ns[at], targets=self.targets[at], packets=self.packets[at], grown=self.grown[at])

    @property
    def span_s(self) -> float:
        """Seconds from the oldest to the newest row, above 0."""
        return max(float(self.t_ns[-1] - self.t_ns[0]) / _S, 1e-6)


def _last(w: int, old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    joined = np.concatenate([old, new[-w:]])
    return joined[-w:].copy() if len(joined) > w else joined


class Alarm:
    """An alarm that goes on: when it began, and its totals.

    It begins with the window that voted for it, from the first flagged row after any silence on.
    """

    def __init__(self, window: VoteWindow) -> None:
        hits = np.flatnonzero(window.hits)
        after_silence = np.diff(window.t_ns[hits], prepend=window.t_ns[hits[0]]) > SILENCE_S * _S
        first = int(hits[np.flatnonzero(after_silence)[-1] if after_silence.any() else 0])
        self.first_ns = int(window.t_ns[first])
        """Steady time at which the alarm began."""
        self.reported_ns = 0
        """Steady time of the vote that was last reported."""
        self.rows = int(window.hits[first:].sum())
        """Flagged rows; the packets and bytes that all rows of the subject account for."""
        self.packets = int(window.packets[first:].sum())
        self.bytes = int(window.bytes[first:].sum())
        self.class_sum = window.classes.sum(axis=0)
        self.profile_sum = window.profiles.sum(axis=0)
        """Sums over flagged rows; never changed in place, for votes refer to them."""

    def reportable(self, t_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return, for each steady time, if a vote may be reported again then, (n,): at most one a second is."""
        return t_ns >= self.reported_ns + _S

    def add(
        self,
        hits: NDArray[np.bool_],
        packets: NDArray[np.int64],
        sizes: NDArray[np.int64],
        classes: NDArray[np.float64],
        profiles: NDArray[np.float64],
    ) -> None:
        """Add rows (n,) to the totals, with ``classes`` and ``profiles`` of those that were classified."""
        self.rows += int(hits.sum())
        self.packets += int(packets.sum())
        self.bytes += int(sizes.sum())
        # row after row, so that no rounding depends on where batches are cut
        self.class_sum = np.concatenate([self.class_sum[None], classes]).sum(axis=0)
        self.profile_sum = np.concatenate([self.profile_sum[None], profiles]).sum(axis=0)


class Aftermath:
    """The memory of a subject from the beginning of an alarm on, which distinguishes what is new from what is old.

    It changes only from one second of packet time to the next (`next_second`), wherever batches are cut.
    """

    def __init__(self, t_ns: int, counts: NDArray[np.float64]) -> None:
        """Begin at a row at steady time ``t_ns`` with ``counts`` (`COUNTS`,)."""
        self.second = t_ns // _S
        """The second of steady time whose rows are being judged."""
        self.newest: tuple[int, NDArray[np.float64]] = t_ns, counts
        """Steady time and counts of the last row that was taken in."""
        # Nothing is old yet: what made this alarm is all new.
        nothing = t_ns, np.zeros(len(COUNTS))
        # Times and counts of the last rows of past seconds, back to FRESH_S ago; of one in ten, back to MEMORY_S ago.
        self._recent, self._older = [nothing], [nothing]
        self._peak = self._peak_now = 0.0

    def alarm(self, loudness: float) -> None:
        """Note that an alarm begins, at a row of this packet weight (λ = 1)."""
        self._peak, self._peak_now = loudness, 0.0

    def hear(self, loudness: NDArray[np.float64]) -> None:
        """Note the packet weights (λ = 1) of rows flagged during the alarm; they take part from the next second on."""
        self._peak_now = max(self._peak_now, float(loudness.max(initial=0.0)))

    def next_second(self, t_ns: int) -> None:
        """Move on to the second of a row at ``t_ns``: the rows before it become old."""
        self.second = t_ns // _S
        self._recent.append(self.newest)
        if (self.newest[0] - self._older[-1][0]) / _S >= FRESH_S:
            self._older.append(self.newest)
        self._peak = max(self._peak, self._peak_now)
        while len(self._recent) > 1 and t_ns // _S - self._recent[1][0] // _S >= FRESH_S:
            self._recent.pop(0)
        while len(self._older) > 1 and (t_ns - self._older[1][0]) / _S >= MEMORY_S:
            self._older.pop(0)

    def new_counts(self, counts: NDArray[np.float64], t_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the new part of the ``counts`` (n, `COUNTS`) of one second's rows, of the same shape.

        It belongs to what goes on, not to what the alarm began with: the growth over `MEMORY_S` where a column
        remembers as long, as far as the last seconds bear it out.
        """
        fresh = _grown(counts, t_ns, self._recent[0])
        grown = _grown(counts, t_ns, self._older[0])
        return np.where(_LONG, np.minimum(grown, fresh * (MEMORY_S / FRESH_S)), fresh)

    def as_loud(self, loudness: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which rows' senders are about as loud as in the attack, by their packet weights (n,) (λ = 1)."""
        return loudness >= LOUD * self._peak


def _grown(
    counts: NDArray[np.float64], t_ns: NDArray[np.int64], reference: tuple[int, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return counts (n, columns) less the decayed rest of the earlier ``reference``; fast columns are left whole."""
    then, old = reference
    new = counts.copy()
    new[:, _SLOW] -= old[_SLOW] * np.exp2(-COUNT_DECAYS[_SLOW] * (np.maximum(t_ns - then, 0)[:, None] / _S))
    return new


@dataclass(frozen=True, kw_only=True)
class Vote:
    """A row that voted for an alarm, and the alarm as of that row.

    Arrays are copies, so that a vote that is not reported yet does not hold its whole batch.
    """

    t_ns: int
    """Steady time of the row."""
    first_ns: int
    """Steady time at which the alarm began."""
    role: Literal["source", "victim"]
    meta: NDArray[Any]
    """The packet, of ROW_META."""
    values: NDArray[Any]
    """The row's columns that the model takes, (k,)."""
    address: str
    """The sender's own address; "" where it is not known."""
    interface: str
    """The interface by which the packet came; "" where it is not known."""
    limit: float
    """The limit of the score or the bound of the count that decided, under the rule in force."""
    fast: bool
    """True if the rule of an aftermath was in force."""
    count_at: tuple[int, float] | None
    """The number in `COUNTS` of the count that decided, and what is new of it; None where the score did."""
    statistic: float
    """The k-th largest of the window's ratios to their limits."""
    share: float
    """Share of the window's rows that are flagged; for a count also how far it is beyond its bound, 0.5 to 1."""
    activities: tuple[Activity, ...]
    """The sorts of traffic that the window and what the subject opened consist of."""
    window_s: float
    rows: int
    """Flagged rows of the alarm; its packets, bytes and sums as in `Alarm`."""
    packets: int
    bytes: int
    class_sum: NDArray[np.float64]
    profile_sum: NDArray[np.float64]

    def is_stale(self, t_ns: int) -> bool:
        """Return True if the vote is to be reported at steady time ``t_ns`` even if no newer one came."""
        return t_ns - self.t_ns >= STALE_S * _S
