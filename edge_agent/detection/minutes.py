"""The minutes of one device: the highest votes and counts of the current one, and the memory of those that taught.

All figures are in units of the shared limits. Which minutes teach, and what limits follow from them, is the knowledge
of `edge_agent.detection.device_limits`.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent.detection.calibrate import correlation_rows
from edge_agent.detection.vote import vote_statistic

MINUTE_NS = 60_000_000_000

MAX_MINUTES = 1440
"""Minutes with traffic that are remembered of a device: a day of a busy one, a week of a quiet one."""

USUAL_QUANTILE = 0.99
"""Quantile of a device's minutes that its limits rest on: a camera's bursts were seen to fill one minute in thirty."""

SPOILT_SHARE, SPOILT_MINUTES = 0.05, 3
"""Minutes that may be an attack's without raising the limit: one run of this share of them, or any of this number."""

CARRY_BURSTS = 8
"""Fewest loud row bursts of remembered minutes from which the limits under another model can be calculated."""

MINUTE = np.dtype([("number", "<u4"), ("vote", "<f2"), ("count", "<f2")])
"""One minute of a device as it is stored: its number since the epoch, its highest vote and count in units of the
shared limits."""

_REMEMBERED = np.dtype([("number", "<i8"), ("vote", "<f4"), ("count", "<f4")])  # the same in memory: 23 KB a device


class Levels(NamedTuple):
    """A vote and a count of new peers or sockets, both in units of the shared limits, or factors of these."""

    vote: float
    counts: float


class MinutePeaks:
    """The highest vote and the highest count of the current minute.

    ``every`` is over all rows; it says what the device does. ``quiet`` is over the rows that were not flagged; it is
    what may be learnt. ``k`` of ``w`` rows are the vote.
    """

    def __init__(self, k: int, w: int) -> None:
        self._k, self._w = k, w
        self.begin(forget_rows=True)

    def begin(self, *, forget_rows: bool) -> None:
        """Begin a minute. With ``forget_rows`` its votes do not include rows of the minute before."""
        self.every = self.quiet = Levels(0.0, 0.0)
        if forget_rows:
            self._rows = self._quiet_rows = np.zeros(0)  # scores of the last rows

    def see(self, scores: NDArray[Any], counts: NDArray[Any], flagged: NDArray[np.bool_]) -> int:
        """Take in rows; the result is that of `DeviceLimits.see`."""
        alike = self._quiet_rows is self._rows and self.quiet == self.every and not flagged.any()
        self._rows, self.every, peak = self._raised(self._rows, self.every, scores, counts)
        if alike:  # the usual case: no row was flagged so far
            self._quiet_rows, self.quiet = self._rows, self.every
            return peak
        self._quiet_rows, self.quiet, peak = self._raised(
            self._quiet_rows, self.quiet, scores[~flagged], counts[~flagged]
        )
        return peak

    def _raised(
        self, before: NDArray[Any], highest: Levels, scores: NDArray[Any], counts: NDArray[Any]
    ) -> tuple[NDArray[Any], Levels, int]:
        """Return the last scores, ``highest`` raised by the new rows, and which of these made the vote (-1: none)."""
        vote, peak, joined = highest.vote, -1, np.concatenate((before, scores))
        if np.count_nonzero(joined > vote) >= self._k:  # else no vote can be above it
            votes = vote_statistic(joined, self._k, self._w)[len(before) :]
            if len(votes) and votes.max() > vote:
                peak = int(votes.argmax())
                vote = float(votes[peak])
        last = joined[max(len(joined) - self._w + 1, 0) :]
        return last, Levels(vote, max(highest.counts, float(counts.max(initial=0.0)))), peak


class MinuteMemory:
    """The last `MAX_MINUTES` minutes that taught something, in the order in which they passed."""

    def __init__(self, stored: NDArray[Any] | None = None) -> None:
        self._minutes = np.zeros(0, dtype=_REMEMBERED)
        if stored is not None:
            self._minutes = stored[-MAX_MINUTES:].astype(_REMEMBERED)

    def __len__(self) -> int:
        return len(self._minutes)

    @property
    def oldest(self) -> int:
        """Number of the first minute since the epoch; 0 without one."""
        return int(self._minutes["number"][0]) if len(self._minutes) else 0

    def add(self, number: int, peaks: Levels) -> None:
        """Append a minute, its ``number`` since the epoch and its highest vote and count."""
        new = np.array([(number, *peaks)], dtype=_REMEMBERED)
        self._minutes = np.concatenate([self._minutes[1 - MAX_MINUTES :], new])

    def votes(self) -> dict[int, float]:
        """Return the highest vote of each minute by its number."""
        return dict(zip(self._minutes["number"].tolist(), self._minutes["vote"].tolist(), strict=True))

    def stored(self) -> NDArray[Any]:
        """Return the minutes as `MINUTE`, for `__init__` of another memory."""
        minutes, most = np.empty(len(self._minutes), dtype=MINUTE), np.finfo(np.float16).max
        minutes["number"] = self._minutes["number"]
        for column in ("vote", "count"):
            minutes[column] = np.minimum(self._minutes[column], most)
        return minutes

    def usual(self, margin: float) -> Levels:
        """Return ``margin`` times the vote and the count that the device reaches now and again.

        The highest `SPOILT_MINUTES` at most, and one run of `SPOILT_SHARE` of the minutes, do not count, in case they
        were an attack's. There must be at least one minute.
        """
        n = len(self._minutes)
        spoilt = min(math.ceil(SPOILT_SHARE * n), SPOILT_MINUTES)
        apart = math.ceil(SPOILT_SHARE * n) + 1
        when = self._minutes["number"]
        levels = []
        for column in ("vote", "count"):
            values = self._minutes[column].astype(np.float64)
            order = np.argsort(values)[::-1]
            again = order[np.abs(when[order] - when[order[0]]) > apart][:1]  # the highest at quite another time
            level = min(float(values[order[min(spoilt, n - 1)]]), float(np.quantile(values, USUAL_QUANTILE)))
            levels.append(margin * (min(level, float(values[again[0]])) if len(again) else level))
        return Levels(*levels)

    def independent(self, column: Literal["vote", "count"]) -> float:
        """Return how many independent observations the minutes are worth: neighbouring minutes are alike."""
        values = self._minutes[column].astype(np.float64)
        return len(values) / max(1, correlation_rows(values))

    def under_other_model(
        self, votes: Mapping[int, float], count_factor: float
    ) -> "tuple[MinuteMemory, Levels] | None":
        """Return these minutes in units of another model's limits, and the factors by which levels changed.

        ``votes`` are the highest votes of some minutes under that model. The other minutes, of which no row was stored,
        are quieter ones; their votes change by as much as the known ones do in the median. None if fewer than
        `CARRY_BURSTS` minutes are known.
        """
        minutes = self._minutes.copy()
        known = [(i, votes[number]) for i, number in enumerate(minutes["number"].tolist()) if number in votes]
        factors = [vote / float(minutes["vote"][i]) for i, vote in known if minutes["vote"][i] > 0]
        if len(factors) < CARRY_BURSTS:
            return None
        factor = float(np.median(factors))
        minutes["vote"] *= factor
        for i, vote in known:
            minutes["vote"][i] = vote
        minutes["count"] *= count_factor
        memory = MinuteMemory()
        memory._minutes = minutes
        return memory, Levels(factor, count_factor)


def whole(record: Mapping[str, Any], key: str) -> int:
    """Return a whole number of a device's stored record; ValueError or KeyError without one."""
    value = record[key]
    if not isinstance(value, int):
        raise ValueError(f"{key} is {value!r}")
    return value


def text(record: Mapping[str, Any], key: str) -> str:
    """Return a text of a device's stored record; ValueError or KeyError without one."""
    value = record[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r}")
    return value
