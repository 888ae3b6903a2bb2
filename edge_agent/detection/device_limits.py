"""The limits of one device, learnt on site from its own traffic, minute by minute.

This runs on a gateway only. The shared limits and bounds, which a device's limits are factors of, come with the bundle
(`edge_agent.detection.calibrate` makes them). What is remembered of minutes is the knowledge of `minutes` beside this
module, whether they are believed that of `trust` and `staleness`. Which rows are a device's and when its minutes end is
the detector's; where the result is stored is that of `devices`.

The rules, in the order in which the end of a minute applies them (`DeviceLimits.end_minute`):

* A minute teaches only if the device was neither in an alarm nor in the aftermath of one, and of such a minute only the
  rows that were not flagged. A device whose attack raised its own limit would no longer be reported for that attack.
* When enough has been seen, the time of learning is judged once (`Trust`). It is refused while it looks like that of an
  infected device; the device then has the shared limits.
* What was seen by then is the highest that the limits can ever rest on: later minutes make the limits surer or bring
  them down. Otherwise a device could be taught any limit by a slow ramp.
* A device that goes on beyond what it was known for becomes stale (`Staleness`).
* What goes beyond the limits and recurs on several days without looking like an attack raises them, within bounds, and
  so does what a person vouched for (`edge_agent.detection.bursts`). Then the device is no longer stale, nor in alarms
  too often to learn. Anything else ends only with the traffic, or when a person lets the device learn anew.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.alert import Activity
from edge_agent.contract.bounds import DEVICE_LEARN_S
from edge_agent.contract.decision import Decision
from edge_agent.detection.bursts import Bursts
from edge_agent.detection.habits import PEERS_FLOOR, SCORE_FLOOR, STARTS_S, Habits
from edge_agent.detection.minutes import MINUTE_NS, Levels, MinuteMemory, MinutePeaks, whole
from edge_agent.detection.reservoir import RowSample
from edge_agent.detection.staleness import STALE_OVER, Staleness
from edge_agent.detection.trust import Suspects, Trust

LEARN_ROWS, LEARN_MIN_S, LEARN_MAX_S = 2000, DEVICE_LEARN_S, 86_400.0
"""A device has learnt after this many packets and this many seconds, or after a day at the latest."""

OWN_MARGIN = 2.0
"""The factor by which a device's own limit is kept from its own minutes."""

PRIOR_MINUTES = 3.0
"""Independent minutes that the shared limit weighs as much as."""

SCORE_CAP, COUNTS_CAP = 16.0, 4.0
"""Highest factors of the shared limits; a device that reaches one is nearly unprotected."""


class DeviceLimits:
    """The limits of one device, learnt from its traffic on site, as `factors` of the shared limits.

    A device noisier than those the model was fitted on gets limits of its own: the shared limit, shrunk (in logarithms)
    towards ``margin`` times the device's usual high minutes by its effective sample size, and never above a cap. Those
    of a quieter one come down by its `Habits`, once it has learnt.

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
        self.first_ns = self.latest_ns = self._started_ns = first_ns
        """Begin of the learning, and end of the last minute that was taken in; ``_started_ns`` is the agent's start."""
        self._peaks = MinutePeaks(self._k, self._w)
        self._minutes = MinuteMemory()
        self._trust, self._staleness = Trust(), Staleness()
        self._base = self._factors = Levels(self._start, 1.0)  # without and with what bursts add
        self._peers_factor = 1.0
        self.suspects, self.bursts, self.habits = Suspects(), Bursts(), Habits()
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
        """Return the factors of the shared limit of the score and of the bounds of the counts, the latter at least 1.

        They change at the end of a minute, and when a person vouches for bursts.
        """
        return self._factors

    @property
    def peers_factor(self) -> float:
        """The factor of the bound of `habits.LOWERED` beside that of all counts, at most 1; it changes with these."""
        return self._peers_factor if self._factors.counts <= 1.0 else 1.0

    @property
    def lowest(self) -> float:
        """The lowest of all factors, at most 1: rows below this share of every shared limit are far from a limit."""
        return min(self._factors.vote, self.peers_factor, 1.0)

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
    def in_alarms_too_often(self) -> bool:
        """True if that is the reason for not believing the time of learning."""
        return self._trust.alarms_refuse

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
        settled = t_ns - self._started_ns > STARTS_S * 1e9
        self.habits.end_minute(t_ns - self.first_ns, self._peaks.quiet.vote, teaches=settled and not during)
        if during:
            self.left_out += 1
        else:
            self._minutes.add(t_ns // MINUTE_NS, self._peaks.quiet)
        if trust.known is None and self.progress >= 1.0:
            trust.judge(t_ns, self._minutes, self._margin)
        if trust.known is not None and during != "aftermath":
            staleness.note_minute(t_ns, alarm or self._is_beyond(trust.known))
        self._base = self._fit()
        self.bursts.end_minute(
            t_ns // MINUTE_NS - 1,
            self._peaks.every,
            during,
            base=self._base,
            stale=self.stale_ns is not None and staleness.now,
            refused=trust.alarms_refuse,
        )
        self._raise()
        if self.sample and trust.refused:
            self.sample.clear()
        elif self.sample:
            teaches = not during and not (self.learnt and staleness.now)
            self.sample.end_minute(t_ns // MINUTE_NS, self._peaks.quiet.vote, teaches, self._minutes.oldest)
        self._peaks.begin(forget_rows=bool(during))
        self.suspects.above_shared_limit = 0

    def vouch(self, activities: Collection[Activity]) -> bool:
        """Learn the bursts of these sorts at once, since a person vouches for them; False if none is remembered."""
        done = self.bursts.vouch(activities, self._peaks.every)
        self._raise()
        return done

    def unvouch(self, activities: Collection[Activity]) -> bool:
        """Forget what was learnt by `vouch`; False if that was nothing."""
        done = self.bursts.unvouch(activities)
        self._raise()
        return done

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
        self._base = self._fit()
        self._raise()

    def resume(self, t_ns: int) -> None:
        """Go on at ``t_ns`` after a restart; the time in between does not count as time of learning."""
        self.first_ns += max(t_ns - self.latest_ns, 0)
        self.latest_ns = self._started_ns = max(t_ns, self.latest_ns)

    def carry_over(self, votes: Mapping[int, float], count_factor: float, rows: int) -> bool:
        """Go on under another model, whose highest votes in some minutes are ``votes``, from a number ``rows`` of
        stored rows.

        ``count_factor`` is how much higher counts are in units of that model's bounds. What was known when the device
        had learnt changes by as much as its minutes do. Return False, and change nothing, if too few minutes are known
        or the device had not learnt.
        """
        before = self._minutes
        if self._trust.known is None or (other := before.under_other_model(votes, count_factor)) is None:
            return False
        self._minutes, factors = other
        # the highest of a week must not come out too low, so it changes at least as much as the highest minute
        highest = max(self._minutes.votes().values()) / max(*before.votes().values(), 1e-9)
        self.habits.under_other_model(max(factors.vote, highest), count_factor)
        known = self._trust.known.vote * factors.vote, self._trust.known.counts * factors.counts
        self._trust.known = Levels(*map(min, known, self._minutes.usual(self._margin)))
        self.bursts.under_other_model(factors)
        self._base = self._fit()
        self._raise()
        self._staleness.clear()
        self.judged, self.flagged, self.carried = 0, 0, rows
        return True

    def _is_beyond(self, known: Levels) -> bool:
        """Return True if this minute's rows, flagged or not, exceed what was ``known`` as well as the limits."""
        bursts = self.bursts.learnt()
        return any(
            self._margin * now > max(STALE_OVER * max(before, self._margin * burst), factor, 1.0)
            for now, before, burst, factor in zip(self._peaks.every, known, bursts, self._factors, strict=True)
        )

    def _raise(self) -> None:
        """Set the factors: what the minutes give, raised by what bursts give."""
        self._factors = self.bursts.raised(self._base, Levels(SCORE_CAP, COUNTS_CAP))

    def _fit(self) -> Levels:
        """Return the factors that the minutes so far give."""
        trust, self._peers_factor = self._trust, 1.0
        if trust.refused:
            return Levels(1.0, 1.0)
        if not len(self._minutes):
            return self._base
        usual = self._minutes.usual(self._margin)
        if trust.known is None:
            # a quiet device's few rows say little, however many minutes they are spread over
            most = self.rows * LEARN_MIN_S / (60.0 * LEARN_ROWS)
            return Levels(self._shrunk("vote", usual.vote, self._start, SCORE_CAP, most), 1.0)
        usual = Levels(*map(min, usual, trust.known))
        low = self.habits.factors(self.latest_ns - self.first_ns, len(self._minutes))
        self._peers_factor = low.peers
        return Levels(
            low.vote if usual.vote <= 1.0 else self._shrunk("vote", usual.vote, 1.0, SCORE_CAP),
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
        return {
            "first_ns": self.first_ns,
            "latest_ns": self.latest_ns,
            "rows": self.rows,
            "left_out": self.left_out,
            "judged": self.judged,
            "flagged": self.flagged,
            "factors": list(self._base),
            **self._trust.record(),
            **self._staleness.record(),
            **self.bursts.record(),
            **self.habits.record(),
            "peers_factor": self._peers_factor,
            "carried": self.carried,
            "sampled": self.sample.minutes if self.sample else 0,
        }, self._minutes.stored()

    def restore(self, record: Mapping[str, Any], minutes: NDArray[Any]) -> None:
        """Continue from a `record`. ValueError, KeyError or TypeError for anything else: discard this object then."""
        self.first_ns, self.latest_ns = whole(record, "first_ns"), whole(record, "latest_ns")
        self._started_ns = self.latest_ns
        self.rows, self.left_out = whole(record, "rows"), whole(record, "left_out")
        self.judged, self.flagged = whole(record, "judged"), whole(record, "flagged")
        score, counts = (float(factor) for factor in record["factors"])
        self._base = Levels(min(max(score, SCORE_FLOOR), SCORE_CAP), min(max(counts, 1.0), COUNTS_CAP))
        self._peers_factor = min(max(float(record.get("peers_factor", 1.0)), PEERS_FLOOR), 1.0)
        self.habits.restore(record)
        self._trust.restore(record)
        self._staleness.restore(record)
        self.bursts.restore(record)
        self._raise()
        self._minutes = MinuteMemory(minutes)
        self.carried = int(record.get("carried", 0))  # not in records of earlier versions
