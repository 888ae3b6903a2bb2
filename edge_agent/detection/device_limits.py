"""The limits of one device, learnt on site from its own traffic, minute by minute.

This runs on a gateway only. The shared limits and bounds, which a device's limits are factors of, come with the bundle
(`edge_agent.detection.calibrate` makes them). Which rows are a device's and when its minutes end is the detector's
knowledge; where the result is stored is that of `edge_agent.detection.devices`.

The rules, in the order in which the end of a minute applies them (`DeviceLimits.end_minute`):

* A minute teaches only if the device was neither in an alarm nor in the aftermath of one, and of such a minute only the
  rows that were not flagged. A device whose attack raised its own limit would no longer be reported for that attack.
* When enough has been seen, the time of learning is judged once (`Trust`). It is refused while it looks like that of an
  infected device; the device then has the shared limits.
* What was seen by then is the highest that the limits can ever rest on: later minutes make the limits surer or bring
  them down. Otherwise a device could be taught any limit by a slow ramp.
* A device that goes on beyond what it was known for becomes stale (`Staleness`). Only a person can let it learn anew,
  since nothing here can tell a firmware update from an infection.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.bounds import DEVICE_LEARN_S
from edge_agent.contract.bundle import Decision
from edge_agent.detection.calibrate import correlation_rows
from edge_agent.detection.reservoir import RowSample
from edge_agent.detection.vote import vote_statistic

LEARN_ROWS, LEARN_MIN_S, LEARN_MAX_S = 2000, DEVICE_LEARN_S, 86_400.0
"""A device has learnt after this many packets and this many seconds, or after a day at the latest."""

MINUTE_NS = 60_000_000_000

MAX_MINUTES = 1440
"""Minutes with traffic that are remembered of a device: a day of a busy one, a week of a quiet one."""

USUAL_QUANTILE = 0.99
"""Quantile of a device's minutes that its limits rest on: a camera's bursts were seen to fill one minute in thirty."""

SPOILT_SHARE, SPOILT_MINUTES = 0.05, 3
"""Minutes that may be an attack's without raising the limit: one run of this share of them, or any of this number."""

PRIOR_MINUTES = 3.0
"""Independent minutes that the shared limit weighs as much as."""

SCORE_CAP, COUNTS_CAP = 16.0, 4.0
"""Highest factors of the shared limits; a device that reaches one is nearly unprotected."""

RECENT_MINUTES, ALARM_SHARE = 30, 0.1
"""Last minutes with traffic in which alarms are counted, and the largest share with an alarm of a believed device."""

CARRY_BURSTS = 8
"""Fewest loud row bursts of remembered minutes from which the limits under another model can be calculated."""

STALE_MINUTES, STALE_OF, STALE_OVER = 8, 10, 1.25
"""A device is stale when `STALE_MINUTES` of its last `STALE_OF` minutes with traffic exceed all it was known for by the
factor `STALE_OVER`; it is active again when as many of them do not."""

MAX_SUSPECTS = 32
"""Rows of a minute above the shared limit that are classified while a device still learns."""

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


class Trust:
    """The judgement of a device's time of learning: not yet, refused with a reason, or believed.

    ``known`` is what the device's limits rest on, in units of the shared limits; it is set exactly when the judgement
    is "believed", together with the time ``since_ns``, and never rises afterwards. ``refused`` is the reason for a
    refusal; it is "" without one and once the device is believed.
    """

    def __init__(self) -> None:
        self.known: Levels | None = None
        self.since_ns: int | None = None
        self.refused = ""
        self.suspicion = ""
        """The attack that the device's rows above the shared limit look like; "" if there is no such attack."""
        self.vouched = False
        """True if a person has vouched for the device: a suspicion is then no reason to refuse."""
        self.alarms: list[bool] = []
        """For each of the last `RECENT_MINUTES` minutes with traffic: True if there was an alarm in it."""

    def note_minute(self, alarm: bool) -> None:
        """Note whether there was an ``alarm`` in the minute that is over."""
        self.alarms = [*self.alarms, alarm][-RECENT_MINUTES:]

    def judge(self, t_ns: int, minutes: MinuteMemory, margin: float) -> None:
        """Believe a time of learning that is long enough, or note why not; it is judged again after the next minute.

        A device that was infected before the agent started would otherwise teach that its attack is normal.
        """
        self.refused, alarms = "", sum(self.alarms)
        if self.suspicion and len(minutes) and minutes.usual(margin).vote > margin and not self.vouched:
            self.refused = f"its ordinary traffic is above the model's limit and looks like {self.suspicion}"
        elif alarms > ALARM_SHARE * len(self.alarms):
            self.refused = f"in an alarm in {alarms} of its last {len(self.alarms)} minutes: looks infected"
        elif not len(minutes):
            self.refused = "no minute without an alarm yet: looks infected"
        if not self.refused:
            self.since_ns, self.known = t_ns, minutes.usual(margin)


class Staleness:
    """Finds when a device that has learnt began to go beyond what it was known for: ``since_ns``; None if it does not.

    Single minutes do not count, neither those beyond nor those within: `STALE_MINUTES` of the last `STALE_OF` change
    the state, so that a device on the brink does not change it all the time.
    """

    def __init__(self) -> None:
        self.since_ns: int | None = None
        self.beyond: list[bool] = []
        """For each of the last `STALE_OF` minutes with traffic: True if it went beyond."""

    @property
    def now(self) -> bool:
        """True if the last minute went beyond."""
        return bool(self.beyond) and self.beyond[-1]

    def note_minute(self, t_ns: int, beyond: bool) -> None:
        """Note whether the minute that ended at ``t_ns`` went ``beyond``."""
        self.beyond = [*self.beyond, beyond][-STALE_OF:]
        if self.since_ns is None and sum(self.beyond) >= STALE_MINUTES:
            self.since_ns = t_ns
        elif self.since_ns is not None and len(self.beyond) - sum(self.beyond) >= STALE_MINUTES:
            self.since_ns = None

    def clear(self) -> None:
        """Forget all minutes: the device is not stale."""
        self.since_ns = None
        self.beyond.clear()


class Suspects:
    """Rows of a learning device that are above the shared limit and were not flagged, as the classifier sees them.

    They are not reported, since the device's limit is still wide, but they tell whether its traffic is an attack's.
    Sums are over the whole time of learning; at most `MAX_SUSPECTS` rows of each minute are classified.
    """

    def __init__(self) -> None:
        self.above_shared_limit = 0
        """Rows of this minute that were classified."""
        self.class_sum = self.profile_sum = np.zeros(0)
        """Sums of class probabilities and of packet profiles over all rows; empty before the first."""

    @property
    def room(self) -> int:
        """The number of rows of this minute that may still be classified."""
        return MAX_SUSPECTS - self.above_shared_limit

    def add(self, probabilities: NDArray[np.float64], profiles: NDArray[np.float64]) -> None:
        """Take in classified rows: their class ``probabilities`` (n, classes) and packet ``profiles`` (n, figures)."""
        self.above_shared_limit += len(probabilities)
        if not len(self.class_sum):
            self.class_sum, self.profile_sum = np.zeros(probabilities.shape[1]), np.zeros(profiles.shape[1])
        # row by row, so that no rounding depends on where batches are cut
        self.class_sum = np.concatenate([self.class_sum[None], probabilities]).sum(axis=0)
        self.profile_sum = np.concatenate([self.profile_sum[None], profiles]).sum(axis=0)


class DeviceLimits:
    """The limits of one device, learnt from its traffic on site, as `factors` of the shared limits.

    A device noisier than those the model was fitted on gets limits of its own: the shared limit, shrunk (in logarithms)
    towards ``margin`` times the device's usual high minutes by its effective sample size. They are never below the
    shared limits and never above a cap.

    Until it has `learnt`, a device's score is judged by a limit that comes down from ``start`` times the shared one to
    the device's own in the same way, as minutes come in; its counts are judged by the shared bounds. ``start`` is the
    factor by which the bundle is more tolerant in a device's first minutes anyway, so that learning misses nothing that
    a bundle alone would find.

    ``k`` of ``w`` rows are the vote; ``min_s`` is the shortest time of learning in seconds; ``first_ns`` (packet time)
    is its begin. ``sample`` is given the minutes that teach, so that rows of them are stored.
    """

    def __init__(
        self,
        first_ns: int,
        margin: float,
        k: int,
        w: int,
        min_s: float = LEARN_MIN_S,
        sample: RowSample | None = None,
        start: float = Decision.warmup_score_factor,
    ):
        self._margin, self._k, self._w, self._min_s = margin, k, w, min_s
        self._start = min(start, SCORE_CAP)
        self.sample = sample
        self._begin(first_ns)

    def _begin(self, first_ns: int) -> None:
        self.first_ns = self.latest_ns = first_ns
        """Begin of the learning, and end of the last minute that was taken in."""
        self._peaks = MinutePeaks(self._k, self._w)
        self._minutes = MinuteMemory()
        self._trust, self._staleness = Trust(), Staleness()
        self._factors = Levels(self._start, 1.0)
        self.suspects = Suspects()
        self.rows = self.left_out = 0
        """Rows that were seen, and minutes that taught nothing."""
        self.judged = self.flagged = 0
        """Rows since the device has learnt, and how many of them were above a limit."""
        self.anew = False
        """True after `relearn` until the detector has ended the device's alarm."""
        self.carried = 0
        """Stored rows that the limits under this model were calculated from; 0 if they were learnt under it."""
        if self.sample:
            self.sample.clear()

    # -- what is known --

    @property
    def minutes(self) -> int:
        """The number of minutes with traffic that were learnt from and are remembered."""
        return len(self._minutes)

    def votes(self) -> dict[int, float]:
        """Return the highest vote of each of those minutes by its number since the epoch."""
        return self._minutes.votes()

    def factors(self) -> tuple[float, float]:
        """Return the factors of the shared limit of the score and of the bounds of the counts, both at least 1.

        They change at the end of a minute only.
        """
        return self._factors

    @property
    def capped(self) -> bool:
        """True if a limit is at its cap: the device is noisier than can be protected."""
        return self.learnt and (self._factors.vote >= SCORE_CAP or self._factors.counts >= COUNTS_CAP)

    @property
    def learnt(self) -> bool:
        """True if the time of learning was long enough and is believed."""
        return self.learnt_ns is not None

    @property
    def learnt_ns(self) -> int | None:
        """The packet time at which the device had learnt; None if it has not yet."""
        return self._trust.since_ns

    @property
    def stale_ns(self) -> int | None:
        """The packet time at which the device began to go beyond what it was known for; None if it does not."""
        return self._staleness.since_ns

    @property
    def vouched(self) -> bool:
        """True if somebody said that the device is well, and had it learn anew."""
        return self._trust.vouched

    @property
    def refused(self) -> str:
        """The reason for not believing a time of learning that is long enough; "" if there is no such reason."""
        return self._trust.refused

    @property
    def state(self) -> Literal["learning", "active", "stale"]:
        """`learning` until the device has learnt, then `active`, or `stale` while its limits no longer fit it."""
        if self.learnt_ns is None:
            return "learning"
        return "active" if self.stale_ns is None else "stale"

    @property
    def progress(self) -> float:
        """The share of the learning that is done, 0 to 1."""
        if self.learnt:
            return 1.0
        passed = (self.latest_ns - self.first_ns) / 1e9
        return min(max(min(self.rows / LEARN_ROWS, passed / self._min_s), passed / max(LEARN_MAX_S, self._min_s)), 1.0)

    # -- learning --

    def see(self, scores: NDArray[Any], counts: NDArray[Any], flagged: NDArray[np.bool_]) -> int:
        """Take in rows of one minute: scores (n,) and highest counts (n,) in units of the shared limits.

        ``flagged`` (n,) says which rows were above a limit. Return the position, among the rows that were not flagged,
        of the one that made the minute's highest vote so far; -1 if none of them did.
        """
        self.rows += len(scores)
        return self._peaks.see(scores, counts, flagged)

    def note_judged(self, rows: int, flagged: int) -> None:
        """Count rows that were judged, once the device has learnt, and those of them above a limit."""
        if self.learnt:
            self.judged += rows
            self.flagged += flagged

    def suspect(self, name: str) -> None:
        """Note the attack that the device's `suspects` look like; "" if there is no such attack."""
        self._trust.suspicion = name

    def end_minute(self, t_ns: int, during: Literal["", "alarm", "aftermath"] = "") -> None:
        """End a minute at ``t_ns``; nothing is learnt of it ``during`` an alarm or its aftermath.

        In an aftermath the slow columns still remember the attack, so that the minute's scores are not the device's.
        """
        self.latest_ns = t_ns
        trust, staleness, alarm = self._trust, self._staleness, during == "alarm"
        trust.note_minute(alarm)
        if during:
            self.left_out += 1
        else:
            self._minutes.add(t_ns // MINUTE_NS, self._peaks.quiet)
        if trust.known is None and self.progress >= 1.0:
            trust.judge(t_ns, self._minutes, self._margin)
        if trust.known is not None and during != "aftermath":
            staleness.note_minute(t_ns, alarm or self._is_beyond(trust.known))
        self._factors = self._fit()
        if self.sample and trust.refused:
            self.sample.clear()
        elif self.sample:
            teaches = not during and not (self.learnt and staleness.now)
            self.sample.end_minute(t_ns // MINUTE_NS, self._peaks.quiet.vote, teaches, self._minutes.oldest)
        self._peaks.begin(forget_rows=bool(during))
        self.suspects.above_shared_limit = 0

    def relearn(self) -> None:
        """Forget everything and begin again with the next rows: a person vouches for the device."""
        self._begin(self.latest_ns)
        self._trust.vouched = self.anew = True

    def judge_as(self, before: "DeviceLimits") -> None:
        """Begin with the judgement of ``before``, of another model: vouched for, or refused until it is judged again.

        A device that looks infected must not get the wide limits of one that has just come.
        """
        trust, known = self._trust, before._trust
        trust.vouched, trust.refused, trust.alarms = known.vouched, known.refused, list(known.alarms)
        self._factors = self._fit()

    def resume(self, t_ns: int) -> None:
        """Go on at ``t_ns`` after a restart; the time in between does not count as time of learning."""
        self.first_ns += max(t_ns - self.latest_ns, 0)
        self.latest_ns = max(t_ns, self.latest_ns)

    def carry_over(self, votes: Mapping[int, float], count_factor: float, rows: int) -> bool:
        """Go on under another model, whose highest votes in some minutes are ``votes``, from a number ``rows`` of
        stored rows.

        ``count_factor`` is how much higher counts are in units of that model's bounds. What was known when the device
        had learnt changes by as much as its minutes do. Return False, and change nothing, if too few minutes are known
        or the device had not learnt.
        """
        if self._trust.known is None or (other := self._minutes.under_other_model(votes, count_factor)) is None:
            return False
        self._minutes, factors = other
        known = self._trust.known.vote * factors.vote, self._trust.known.counts * factors.counts
        self._trust.known = Levels(*map(min, known, self._minutes.usual(self._margin)))
        self._factors = self._fit()
        self._staleness.clear()
        self.judged, self.flagged, self.carried = 0, 0, rows
        return True

    def _is_beyond(self, known: Levels) -> bool:
        """Return True if this minute's rows, flagged or not, exceed what was ``known`` as well as the limits."""
        return any(
            self._margin * now > max(STALE_OVER * before, factor)
            for now, before, factor in zip(self._peaks.every, known, self._factors, strict=True)
        )

    def _fit(self) -> Levels:
        """Return the factors that the minutes so far give."""
        trust = self._trust
        if trust.refused:
            return Levels(1.0, 1.0)
        if not len(self._minutes):
            return self._factors
        usual = self._minutes.usual(self._margin)
        if trust.known is None:
            # a quiet device's few rows say little, however many minutes they are spread over
            most = self.rows * LEARN_MIN_S / (60.0 * LEARN_ROWS)
            return Levels(self._shrunk("vote", usual.vote, self._start, SCORE_CAP, most), 1.0)
        usual = Levels(*map(min, usual, trust.known))
        return Levels(
            1.0 if usual.vote <= 1.0 else self._shrunk("vote", usual.vote, 1.0, SCORE_CAP),
            1.0 if usual.counts <= 1.0 else self._shrunk("count", usual.counts, 1.0, COUNTS_CAP),
        )

    def _shrunk(
        self, column: Literal["vote", "count"], level: float, prior: float, cap: float, most: float = math.inf
    ) -> float:
        """Return a ``level`` of the minutes shrunk towards ``prior`` by how many independent minutes there are.

        They count as ``most`` minutes at most; the result is at most ``cap``.
        """
        independent = min(self._minutes.independent(column), most)
        share = independent / (independent + PRIOR_MINUTES)
        return float(min(max(level, 1.0) ** share * prior ** (1.0 - share), cap))

    # -- storing --

    def record(self) -> tuple[dict[str, Any], NDArray[Any]]:
        """Return what `restore` needs: plain values, whose keys are a file format, and the minutes as `MINUTE`."""
        trust, staleness = self._trust, self._staleness
        return {
            "first_ns": self.first_ns,
            "latest_ns": self.latest_ns,
            "rows": self.rows,
            "left_out": self.left_out,
            "learnt_ns": trust.since_ns,
            "stale_ns": staleness.since_ns,
            "refused": trust.refused,
            "judged": self.judged,
            "flagged": self.flagged,
            "looks_like": trust.suspicion,
            "vouched": trust.vouched,
            "factors": list(self._factors),
            "highest": trust.known and list(trust.known),
            "alarms": [int(alarm) for alarm in trust.alarms],
            "over": [int(beyond) for beyond in staleness.beyond],
            "carried": self.carried,
            "sampled": self.sample.minutes if self.sample else 0,
        }, self._minutes.stored()

    def restore(self, record: Mapping[str, Any], minutes: NDArray[Any]) -> None:
        """Continue from a `record`. ValueError, KeyError or TypeError for anything else: discard this object then."""
        trust, staleness = self._trust, self._staleness
        self.first_ns, self.latest_ns = _integer(record, "first_ns"), _integer(record, "latest_ns")
        self.rows, self.left_out = _integer(record, "rows"), _integer(record, "left_out")
        self.judged, self.flagged = _integer(record, "judged"), _integer(record, "flagged")
        trust.since_ns = None if record["learnt_ns"] is None else _integer(record, "learnt_ns")
        staleness.since_ns = None if record["stale_ns"] is None else _integer(record, "stale_ns")
        trust.refused, trust.suspicion = _text(record, "refused"), _text(record, "looks_like")
        trust.vouched = bool(_integer(record, "vouched"))
        score, counts = (float(factor) for factor in record["factors"])
        self._factors = Levels(min(max(score, 1.0), SCORE_CAP), min(max(counts, 1.0), COUNTS_CAP))
        known = record["highest"]
        trust.known = None if known is None else Levels(float(known[0]), float(known[1]))
        trust.alarms = [bool(alarm) for alarm in record["alarms"]][-RECENT_MINUTES:]
        staleness.beyond = [bool(beyond) for beyond in record["over"]][-STALE_OF:]
        self._minutes = MinuteMemory(minutes)
        self.carried = int(record.get("carried", 0))  # not in records of earlier versions


def _integer(record: Mapping[str, Any], key: str) -> int:
    value = record[key]
    if not isinstance(value, int):
        raise ValueError(f"{key} is {value!r}")
    return value


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r}")
    return value
