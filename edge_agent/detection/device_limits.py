"""The limits of one device, learnt on site from its own traffic, minute by minute.

Runs on a gateway only. The shared limits and bounds, which these are factors of, come with the bundle
(`edge_agent.detection.calibrate` makes them); which rows are a device's, and when its minutes end, is the detector's
knowledge; where what was learnt is kept, that of `edge_agent.detection.devices`.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.bounds import DEVICE_LEARN_S
from edge_agent.contract.bundle import Decision
from edge_agent.detection.calibrate import correlation_rows
from edge_agent.detection.reservoir import RowSample
from edge_agent.detection.vote import vote_statistic

OWN_ROWS, OWN_S, OWN_LATEST_S = 2000, DEVICE_LEARN_S, 86_400.0
"""A device's own limit takes part after so many packets and so many seconds, at the latest after a day."""

MINUTE_NS = 60_000_000_000

OWN_MINUTES = 1440
"""Minutes with traffic that are remembered of a device: a day of a busy one, a week of a quiet one."""

OWN_SHARE = 0.99
"""Quantile of a device's minutes that stands for them: a camera's bursts were seen to fill one minute in thirty."""

OWN_SPOILT, OWN_SPOILT_MINUTES = 0.05, 3
"""Share of the minutes that may be an attack's without a say in the limit: one run of so many of them, or any few."""

OWN_PRIOR = 3.0
"""Independent minutes that the shared limit weighs as much as."""

OWN_CAP, OWN_COUNTS_CAP = 16.0, 4.0
"""A device's limits are at most so many times the shared ones; a device that reaches this is nearly unprotected."""

OWN_RECENT, OWN_ALARMS = 30, 0.1
"""Of its last so many minutes with traffic, a device whose window is believed was in an alarm in at most this share."""

CARRY_RUNS = 8
"""Loud runs kept of a device, of minutes that are remembered, from which another model's limits can be had."""

STALE_MINUTES, STALE_OF, STALE_OVER = 8, 10, 1.25
"""A device is stale when so many of its last so many minutes with traffic exceed all it was known for by this factor;
it is active again when as many of them do not."""

MINUTE = np.dtype([("number", "<u4"), ("vote", "<f2"), ("count", "<f2")])
"""A device's minute as it is kept: its number since the epoch, its highest vote and count in units of the limits."""

_REMEMBERED = np.dtype([("number", "<i8"), ("vote", "<f4"), ("count", "<f4")])  # the same in memory: 23 KB a device

_KEPT = (
    *("first_ns", "latest_ns", "rows", "left_out", "learnt_ns", "stale_ns", "refused", "judged", "flagged"),
    *("looks_like", "vouched"),
)


class DeviceLimits:
    """What one device's traffic on site says of its limits, minute by minute; for `factors` of the shared ones.

    A device noisier than those the model was fitted on gets limits of its own: the shared limit, shrunk (in logarithms)
    towards ``margin`` times the device's own high minutes by its effective sample size. They are never below the shared
    ones and held below a cap. Rows that were flagged teach nothing, nor do minutes in an alarm.

    Until it is `learnt` a device's score is judged by a limit that comes down from ``start`` times the shared one to
    the device's own in the same way, as minutes come in; counts by the shared bounds. ``start`` is what the bundle is
    stricter by in a device's first minutes anyway: there learning misses nothing that a bundle alone would find. What
    was seen by then is as high as the limits can ever get: later minutes make it surer or bring it down, so that a slow
    ramp is not learnt. A device that goes on beyond it is `stale`: it should be learnt anew, which nothing here does by
    itself.

    ``k`` of ``w`` rows are the vote; ``min_s`` is the shortest time of learning; ``first_ns`` (packet time) its begin.
    ``sample`` is given the minutes that teach, so that rows of them are kept.
    """

    def __init__(
        self,
        first_ns: int,
        margin: float,
        k: int,
        w: int,
        min_s: float = OWN_S,
        sample: RowSample | None = None,
        start: float = Decision.warmup_score_factor,
    ):
        self._margin, self._k, self._w, self._min_s = margin, k, w, min_s
        self._start = min(start, OWN_CAP)
        self.sample = sample
        self._begin(first_ns)

    def _begin(self, first_ns: int) -> None:
        self.first_ns = self.latest_ns = first_ns
        """End of the last minute that was looked at."""
        self._minutes = np.zeros(0, dtype=_REMEMBERED)  # calm ones, the last OWN_MINUTES
        self._alarms: list[bool] = []  # the last OWN_RECENT
        self._over: list[bool] = []  # the last STALE_OF
        self._calm = self._all = (0.0, 0.0)  # highest vote and count of this minute, without and with flagged rows
        self._recent = self._recent_calm = np.zeros(0)  # the last rows' scores
        self._factors = (self._start, 1.0)
        self._highest: tuple[float, float] | None = None  # what the limits rest on, as it was when enough was learnt
        self.rows, self.left_out = 0, 0
        self.learnt_ns: int | None = None
        """Since when there is enough to go by."""
        self.stale_ns: int | None = None
        """Since when the device does what it was not known for."""
        self.refused = ""
        """Why a window that is long enough is not believed."""
        self.judged, self.flagged = 0, 0  # rows since then, and those of them above a limit
        self.odd = 0
        """Rows of this minute that are above the shared limit and were not flagged, as far as they were classified."""
        self.class_sum = self.looks_sum = np.zeros(0)  # over all such rows of the learning
        self.looks_like = ""
        """The attack that those rows look like; "" where they look like none."""
        self.vouched = self.anew = False
        """Whether somebody said that the device is well, and whether its detector is still to be told."""
        self.carried = 0
        """Kept rows that the limits under this model come from; 0: they were learnt under it."""
        if self.sample:
            self.sample.clear()

    @property
    def minutes(self) -> int:
        """Minutes with traffic that were taken in and are remembered."""
        return len(self._minutes)

    def votes(self) -> dict[int, float]:
        """The highest vote of each of those minutes, by its number since the epoch."""
        return dict(zip(self._minutes["number"].tolist(), self._minutes["vote"].tolist(), strict=True))

    @property
    def capped(self) -> bool:
        """Whether a limit is held at its cap: the device is noisier than can be protected."""
        return self.learnt and (self._factors[0] >= OWN_CAP or self._factors[1] >= OWN_COUNTS_CAP)

    @property
    def learnt(self) -> bool:
        """Whether there is enough to go by."""
        return self.learnt_ns is not None

    @property
    def state(self) -> Literal["learning", "active", "stale"]:
        """`learning` until there is enough, then `active`, and `stale` while the limits no longer fit the device."""
        if self.learnt_ns is None:
            return "learning"
        return "active" if self.stale_ns is None else "stale"

    @property
    def progress(self) -> float:
        """How much of the learning is done, 0 to 1."""
        if self.learnt:
            return 1.0
        passed = (self.latest_ns - self.first_ns) / 1e9
        return min(max(min(self.rows / OWN_ROWS, passed / self._min_s), passed / max(OWN_LATEST_S, self._min_s)), 1.0)

    def factors(self) -> tuple[float, float]:
        """What the shared limit of the score and the bounds of the counts are multiplied with, both at least 1.

        They change at the end of a minute only.
        """
        return self._factors

    def see(self, scores: NDArray[Any], counts: NDArray[Any], flagged: NDArray[np.bool_]) -> int:
        """Rows of one minute: scores (n,) and highest counts (n,), both in units of the shared limits, and which of
        them were flagged.

        Returns which of those that were not flagged made the minute's highest vote so far; -1 when none of them did.
        """
        self.rows += len(scores)
        one = self._recent_calm is self._recent and self._calm == self._all and not flagged.any()
        self._recent, self._all, at = self._peak(self._recent, scores, counts, self._all)
        if one:  # the usual case: no flagged rows so far
            self._recent_calm, self._calm = self._recent, self._all
        else:
            self._recent_calm, self._calm, at = self._peak(
                self._recent_calm, scores[~flagged], counts[~flagged], self._calm
            )
        return at

    def _peak(
        self, recent: NDArray[Any], scores: NDArray[Any], counts: NDArray[Any], high: tuple[float, float]
    ) -> tuple[NDArray[Any], tuple[float, float], int]:
        """The last scores, ``high`` (vote and count) with what is higher in the new rows, and which made the vote."""
        vote, at, joined = high[0], -1, np.concatenate((recent, scores))
        if np.count_nonzero(joined > vote) >= self._k:  # else no vote can be above it
            votes = vote_statistic(joined, self._k, self._w)[len(recent) :]
            if len(votes) and votes.max() > vote:
                at = int(votes.argmax())
                vote = float(votes[at])
        return joined[max(len(joined) - self._w + 1, 0) :], (vote, max(high[1], float(counts.max(initial=0.0)))), at

    def end_minute(self, t_ns: int, during: Literal["", "alarm", "aftermath"] = "") -> None:
        """A minute is over at ``t_ns``; nothing is learnt of one during an alarm, or while columns remember one."""
        self.latest_ns = t_ns
        self._alarms = [*self._alarms, during == "alarm"][-OWN_RECENT:]
        if not during:
            new = np.array([(t_ns // MINUTE_NS, *self._calm)], dtype=_REMEMBERED)
            self._minutes = np.concatenate([self._minutes[1 - OWN_MINUTES :], new])
        else:
            self.left_out += 1
            # the next minute's votes are not to hold rows of this one
            self._recent = self._recent_calm = np.zeros(0)
        if self._highest is None and self.progress >= 1.0:
            self._decide(t_ns)
        if self._highest is not None and during != "aftermath":
            self._watch(t_ns, during == "alarm")
        self._factors = self._fit()
        if self.sample and self.refused:
            self.sample.clear()
        elif self.sample:
            beyond = self.learnt and bool(self._over) and self._over[-1]
            oldest = int(self._minutes["number"][0]) if len(self._minutes) else 0
            self.sample.end_minute(t_ns // MINUTE_NS, self._calm[0], not during and not beyond, oldest)
        self._calm = self._all = (0.0, 0.0)
        self.odd = 0

    def relearn(self) -> None:
        """Forget all and begin again with the next rows: somebody says that the device is well and has changed."""
        self._begin(self.latest_ns)
        self.vouched = self.anew = True

    def record(self) -> tuple[dict[str, Any], NDArray[Any]]:
        """What must be kept for `restore`: plain values, and the minutes."""
        minutes, most = np.empty(len(self._minutes), dtype=MINUTE), np.finfo(np.float16).max
        minutes["number"] = self._minutes["number"]
        for column in ("vote", "count"):
            minutes[column] = np.minimum(self._minutes[column], most)
        return {key: getattr(self, key) for key in _KEPT} | {
            "factors": list(self._factors),
            "highest": self._highest and list(self._highest),
            "alarms": [int(alarm) for alarm in self._alarms],
            "over": [int(over) for over in self._over],
            "carried": self.carried,
            "sampled": self.sample.minutes if self.sample else 0,
        }, minutes

    def restore(self, kept: Mapping[str, Any], minutes: NDArray[Any]) -> None:
        """Continue from a `record`; ValueError, KeyError or TypeError for what is none."""
        for key in _KEPT:
            value = kept[key]
            if not isinstance(value, str if key in ("refused", "looks_like") else int | None):
                raise ValueError(f"{key} is {value!r}")
            setattr(self, key, value)
        score, counts = (float(factor) for factor in kept["factors"])
        self._factors = min(max(score, 1.0), OWN_CAP), min(max(counts, 1.0), OWN_COUNTS_CAP)
        found = kept["highest"]
        self._highest = None if found is None else (float(found[0]), float(found[1]))
        self._alarms = [bool(alarm) for alarm in kept["alarms"]][-OWN_RECENT:]
        self._over = [bool(over) for over in kept["over"]][-STALE_OF:]
        self._minutes = minutes[-OWN_MINUTES:].astype(_REMEMBERED)
        self.carried = int(kept.get("carried", 0))  # not in records of earlier versions

    def carry_over(self, found: Mapping[int, float], count_factor: float, rows: int) -> bool:
        """Go on under another model, whose highest vote in some minutes was ``found`` from so many kept ``rows``.

        ``count_factor`` is how much higher counts are in units of its bounds. The minutes that no row was kept of are
        lower ones; they, and what was known when enough was learnt, change by as much as the others do in the median.
        False, and nothing is changed, when too few minutes are found, or too little had been learnt.
        """
        minutes = self._minutes.copy()
        known_minutes = [(i, found[n]) for i, n in enumerate(minutes["number"].tolist()) if n in found]
        factors = [vote / float(minutes["vote"][i]) for i, vote in known_minutes if minutes["vote"][i] > 0]
        if self._highest is None or len(factors) < CARRY_RUNS:
            return False
        factor = float(np.median(factors))
        minutes["vote"] *= factor
        for i, vote in known_minutes:
            minutes["vote"][i] = vote
        minutes["count"] *= count_factor
        self._minutes = minutes
        known = self._highest[0] * factor, self._highest[1] * count_factor
        self._highest = None
        highs = self._highs()
        self._highest = min(known[0], highs[0]), min(known[1], highs[1])
        self._factors = self._fit()
        self._over.clear()
        self.stale_ns, self.judged, self.flagged, self.carried = None, 0, 0, rows
        return True

    def resume(self, t_ns: int) -> None:
        """Go on at ``t_ns`` after a restart: the time between did not teach anything."""
        self.first_ns += max(t_ns - self.latest_ns, 0)
        self.latest_ns = max(t_ns, self.latest_ns)

    def _decide(self, t_ns: int) -> None:
        """The window is long enough: believe it, or say why not and look again in a minute."""
        self.refused, alarms = "", sum(self._alarms)
        if self.looks_like and len(self._minutes) and self._highs()[0] > self._margin and not self.vouched:
            self.refused = f"its ordinary traffic is above the model's limit and looks like {self.looks_like}"
        elif alarms > OWN_ALARMS * len(self._alarms):
            self.refused = f"in an alarm in {alarms} of its last {len(self._alarms)} minutes: looks infected"
        elif not len(self._minutes):
            self.refused = "no minute without an alarm yet: looks infected"
        if not self.refused:
            self.learnt_ns, self._highest = t_ns, self._highs()

    def _watch(self, t_ns: int, alarm: bool) -> None:
        """Whether the device still is what it was known for: this minute's rows, flagged or not, against the limits."""
        assert self._highest is not None
        beyond = [
            self._margin * now > max(STALE_OVER * known, factor)
            for now, known, factor in zip(self._all, self._highest, self._factors, strict=True)
        ]
        self._over = [*self._over, alarm or any(beyond)][-STALE_OF:]
        if self.stale_ns is None and sum(self._over) >= STALE_MINUTES:
            self.stale_ns = t_ns
        elif self.stale_ns is not None and len(self._over) - sum(self._over) >= STALE_MINUTES:
            self.stale_ns = None

    def _highs(self) -> tuple[float, float]:
        """``margin`` times what the device's vote and counts reach now and again, in units of the shared limits.

        The highest `OWN_SPOILT_MINUTES` at most, and one run of `OWN_SPOILT` of the minutes, have no say, in case they
        were an attack's.
        """
        n = len(self._minutes)
        spare = min(math.ceil(OWN_SPOILT * n), OWN_SPOILT_MINUTES)
        apart = math.ceil(OWN_SPOILT * n) + 1
        when = self._minutes["number"]
        found = []
        for column in ("vote", "count"):
            values = self._minutes[column].astype(np.float64)
            order = np.argsort(values)[::-1]
            again = order[np.abs(when[order] - when[order[0]]) > apart][:1]  # the highest at quite another time
            level = min(float(values[order[min(spare, n - 1)]]), float(np.quantile(values, OWN_SHARE)))
            found.append(self._margin * (min(level, float(values[again[0]])) if len(again) else level))
        return found[0], found[1]

    def _fit(self) -> tuple[float, float]:
        if self.refused:
            return 1.0, 1.0
        if not len(self._minutes):
            return self._factors
        highs = self._highs()
        if self._highest is not None:
            highs = min(highs[0], self._highest[0]), min(highs[1], self._highest[1])
        found = []
        for column, high, cap in zip(("vote", "count"), highs, (OWN_CAP, OWN_COUNTS_CAP), strict=True):
            if self._highest is not None and high <= 1.0:
                found.append(1.0)
                continue
            values = self._minutes[column].astype(np.float64)
            independent = len(values) / max(1, correlation_rows(values))
            prior = 1.0
            if self._highest is None:
                if column == "count":
                    found.append(1.0)
                    continue
                prior = self._start
                independent = min(independent, self.rows * OWN_S / (60.0 * OWN_ROWS))
            share = independent / (independent + OWN_PRIOR)
            found.append(min(max(high, 1.0) ** share * prior ** (1.0 - share), cap))
        return found[0], found[1]
