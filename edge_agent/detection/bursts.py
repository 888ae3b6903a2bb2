"""Bursts of one device: the traffic of its alarms, and which of it recurs so that it must be the device's own.

A video call, a download or a firmware update can be far above all that a device did while it was learnt. Nothing that a
single alarm shows tells it from a weak flood. What tells them apart is what an attack cannot do without for long: it
scans, or opens hosts and sockets, or resembles an attack that is known, or goes to a host that does not answer, or that
the device had never used. Traffic with one of these *marks* is never learnt, and neither is what later goes to the same
hosts (for a day where the host was only new). What recurs on `DAYS` different days without a mark is the device's own.

This is a bet, so it is bounded: a limit rises only to what was reported on each of these days, at most to the cap of
all limits learnt on site, and what was learnt lapses when it has not recurred for `KEEP_DAYS`. Whoever floods a host
that the device uses anyway, daily, in the way of no known attack, is reported until the third day, and above the raised
limit still; to go further, he is reported on three days again. A person can vouch for a burst at once.

Heights are in units of the shared limits. Which minutes are in an alarm is the detector's knowledge, what a limit is
without bursts that of `device_limits`.
"""

import enum
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.alert import KINDS, Activity
from edge_agent.detection.minutes import Levels

MAX_BURSTS, A_DAY = 64, 6
"""Bursts that are remembered of a device, and of one day: what is beyond that is counted with one of that day."""

KEEP_DAYS = 30
"""Days for which a burst is remembered: what a household does once a week recurs four times in them."""

DAYS = 3
"""Different days on which bursts without marks must reach a level until it is learnt. Two of them are a coincidence of
any two evenings, and an attacker would be reported on one day only; with each further day a weekly habit alerts a week
longer."""

REFUSED_DAYS, REFUSED_TIMES = 2, 5
"""The same for a device that has learnt nothing since it is in alarms too often: on two days, in this number of bursts,
all of one sort, the first at least a day ago, and none with a mark."""

BURST_MARGIN = 1.25
"""Factor by which a limit is above the level that was reached on `DAYS` days, as much as `staleness` allows."""

MAX_HOSTS = 4
"""Hosts that are remembered of a burst, as hashes."""

NEW_HOST_S = 3600.0
"""Seconds for which a host is new to the device after its first contact; in its own first seconds none is."""

UNANSWERED_SHARE = 0.5
"""Share of the packets to a host (λ = 0.01) above which, without an answer to account for them, they are in vain."""

ANSWERED = 20.0
"""Packets that one answer accounts for there. A burst that is learnt may not be as one-sided as what the counts rule
passes over, for which an answer accounts for more (`kernel/kernel.h`)."""

MAX_VOUCHED = 8
"""Sorts of bursts that people have vouched for; a further one takes the place of the first."""

_DAY = 1440  # minutes
_LONGEST, _GAP = 60, 17  # minutes: a longer alarm is several bursts; an aftermath lasts 17 minutes
_GOES_ON = 2  # minutes from one of an alarm to the next one


class Mark(enum.IntFlag):
    """Signs that a burst may be an attack's."""

    COUNTS = 1
    SCAN = 2
    ATTACK = 4
    NEW_HOST = 8
    SAME_HOST = 16
    UNANSWERED = 32


MARK_WORDS = {
    Mark.COUNTS: "flagged by the counts rule",
    Mark.SCAN: "spread like a scan",
    Mark.ATTACK: "classified as a known attack",
    Mark.NEW_HOST: "sent to a host that was new to the device",
    Mark.UNANSWERED: "not answered by their hosts",
    Mark.SAME_HOST: "sent to a host of a burst that looked like an attack",
}
"""The words for each mark of a burst."""


@dataclass
class Burst:
    """Minutes of one day in which a device was beyond its limits."""

    first: int
    """Numbers of the first and last minute since the epoch."""
    last: int
    height: Levels
    """Highest vote and count."""
    activity: Activity
    marks: Mark
    hosts: frozenset[int]
    """Hashes of some hosts that the flagged packets went to."""
    times: int = 1
    """Number of bursts that this stands for."""

    @property
    def day(self) -> int:
        """The day (UTC) since the epoch."""
        return self.first // _DAY

    def taints(self, minute: int) -> bool:
        """Return True if its hosts make a burst in a ``minute`` suspicious: a host that was attacked stays so.

        One that was only new when it was first sent a burst is so for a day.
        """
        new = bool(self.marks & Mark.NEW_HOST) and minute - self.last < _DAY
        return new or bool(self.marks & (Mark.COUNTS | Mark.SCAN | Mark.ATTACK | Mark.UNANSWERED))

    def join(self, other: "Burst") -> None:
        """Let this stand for ``other``, too."""
        self.last = max(self.last, other.last)
        self.height = Levels(*map(max, self.height, other.height))
        self.marks |= other.marks
        self.hosts = _few(self.hosts | other.hosts)
        if self.activity != other.activity:
            worst = min(self.activity.kind, other.activity.kind, key=KINDS.index)
            self.activity = Activity(worst, self.activity.port if self.activity.port == other.activity.port else None)

    def is_like(self, other: "Burst") -> bool:
        """Return True if both go to the same port or to a common host."""
        port = self.activity.port
        return bool(self.hosts & other.hosts) or (port is not None and port == other.activity.port)


class Trace:
    """The facts that the flagged packets of the current minute show."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin a minute."""
        self.marks = Mark(0)
        self.activity: Activity | None = None
        """The main activity of the last vote; None without one."""
        self.hosts: frozenset[int] = frozenset()
        self.class_sum = self.profile_sum = np.zeros(0)
        """Sums over the flagged rows of the alarm as of the last vote reported, as `Vote` has them; empty without."""
        self._rows = self._in_vain = 0

    def see_rows(self, hosts: Iterable[int], *, counted: bool, rows: int, in_vain: int) -> None:
        """Take in ``rows`` flagged rows that went to ``hosts`` (hashes).

        ``counted`` says if the counts rule flagged one. Of ``in_vain`` of them the host answers hardly anything.
        """
        self.hosts = _few(self.hosts.union(hosts))
        self._rows, self._in_vain = self._rows + rows, self._in_vain + in_vain
        if counted:
            self.marks |= Mark.COUNTS
        self.marks &= ~Mark.UNANSWERED
        if 2 * self._in_vain > self._rows:
            self.marks |= Mark.UNANSWERED

    def see_vote(
        self, activities: tuple[Activity, ...], class_sum: NDArray[np.float64], profile_sum: NDArray[np.float64]
    ) -> None:
        """Take in a vote of the alarm that is reported."""
        self.activity, self.class_sum, self.profile_sum = activities[0], class_sum, profile_sum
        if any(activity.kind == "scan" for activity in activities):
            self.marks |= Mark.SCAN


class Bursts:
    """The bursts of one device, and the height that it may reach because they recur, or because a person vouched."""

    def __init__(self) -> None:
        self.trace = Trace()
        self.kept: list[Burst] = []
        """In the order of time; at most `MAX_BURSTS`, of the last `KEEP_DAYS`."""
        self.vouched: dict[Activity, Levels] = {}
        """Heights of the sorts of bursts that people vouched for; at most `MAX_VOUCHED`."""
        self.recurring = 0.0
        """The vote that was reached on enough days without a mark; 0 if there is none."""
        self.forgotten = 0
        """Bursts that were forgotten or merged because a bound was reached, since the last look (`Devices.look`)."""

    def end_minute(
        self,
        number: int,
        peaks: Levels,
        during: Literal["", "alarm", "aftermath"],
        *,
        base: Levels,
        stale: bool,
        refused: bool,
    ) -> None:
        """End the minute of this ``number`` since the epoch, whose highest vote and count were ``peaks``.

        ``base`` are the device's limits without bursts. A minute below a limit that bursts have raised keeps what was
        learnt from lapsing, but raises nothing; one by which a device stays ``stale`` counts like one in an alarm.
        ``refused`` says that nothing is learnt of the device because it is in alarms too often.
        """
        trace, recurs = self.trace, during == "" and peaks.vote > base.vote
        activity = trace.activity or Activity("other")
        if during == "alarm" or (stale and during == ""):
            self._add(Burst(number, number, peaks, activity, trace.marks, trace.hosts))
        elif recurs and self.recurring:
            height = Levels(min(peaks.vote, self.recurring), 0.0)
            self._add(Burst(number, number, height, activity, trace.marks, trace.hosts))
        trace.begin()
        oldest = number // _DAY - KEEP_DAYS
        if self.kept and self.kept[0].day < oldest:
            self.kept = [burst for burst in self.kept if burst.day >= oldest]
        self.recurring = self._recurs(number, refused)

    def _add(self, new: Burst) -> None:
        """Remember a minute, as part of the burst at hand or as a new one."""
        now = max(self.kept, key=lambda burst: burst.last, default=None)
        within = now if now and new.last - now.last <= _GAP else None
        joins = within is not None and within.day == new.day and new.last - within.first < _LONGEST
        others = (burst for burst in self.kept if not joins or burst is not within)
        if any(burst.hosts & new.hosts and burst.taints(new.first) for burst in others):
            new.marks |= Mark.SAME_HOST
        if within and new.last - within.last <= _GOES_ON:
            new.marks |= within.marks  # a host that was new when an alarm began stays suspicious while it lasts
        if within and joins:
            within.join(new)
            return
        of_day = [burst for burst in self.kept if burst.day == new.day]
        if len(of_day) >= A_DAY:  # a burst with marks must not make one without them look like an attack
            alike = [burst for burst in of_day if bool(burst.marks) == bool(new.marks)] or of_day
            with_it = next((burst for burst in alike if burst.is_like(new)), alike[-1])
            with_it.join(new)
            with_it.times += 1
            self.forgotten += 1
            return
        self.kept.append(new)
        if len(self.kept) > MAX_BURSTS:
            self.kept.pop(0)
            self.forgotten += 1

    def unmarked_days(self) -> dict[int, float]:
        """Return the highest vote of bursts without marks by the day since the epoch."""
        days: dict[int, float] = {}
        for burst in self.kept:
            if not burst.marks:
                days[burst.day] = max(days.get(burst.day, 0.0), burst.height.vote)
        return days

    def marks(self) -> Mark:
        """Return all marks of the bursts that are remembered."""
        marks = Mark(0)
        for burst in self.kept:
            marks |= burst.marks
        return marks

    def _recurs(self, number: int, refused: bool) -> float:
        """Return the vote that was reached on enough days by the minute of this ``number``; 0 if there is none."""
        need = DAYS
        if refused and self.kept and not self.marks():
            alike = all(burst.is_like(self.kept[0]) for burst in self.kept[1:])
            times = sum(burst.times for burst in self.kept)
            if alike and times >= REFUSED_TIMES and number - self.kept[0].first >= _DAY:
                need = REFUSED_DAYS
        heights = sorted(self.unmarked_days().values(), reverse=True)
        return heights[need - 1] if len(heights) >= need else 0.0

    def learnt(self) -> Levels:
        """Return the vote and count that the device is known for by its bursts; 0 without any."""
        return Levels(
            max([self.recurring, *(level.vote for level in self.vouched.values())]),
            max((level.counts for level in self.vouched.values()), default=0.0),
        )

    def raised(self, base: Levels, caps: Levels) -> Levels:
        """Return the limits ``base`` raised to what was `learnt`, at most to ``caps``."""
        vote, counts = (BURST_MARGIN * level for level in self.learnt())
        return Levels(max(base.vote, min(vote, caps.vote)), max(base.counts, min(counts, caps.counts)))

    # -- by order of a person --

    def vouch(self, activities: Collection[Activity], peaks: Levels) -> bool:
        """Learn the bursts of one of these sorts at once, whatever their marks.

        A sort without a port is to any port. ``peaks`` are those of the minute at hand. Return False, and learn
        nothing, if no such burst is remembered.
        """
        heights = [burst.height for burst in self.kept if _covered(burst.activity, activities)]
        if self.trace.activity and _covered(self.trace.activity, activities):
            heights.append(peaks)
        if not heights:
            return False
        highest = Levels(max(height.vote for height in heights), max(height.counts for height in heights))
        for activity in activities:
            self.vouched.pop(activity, None)
            self.vouched[activity] = highest
        while len(self.vouched) > MAX_VOUCHED:
            del self.vouched[next(iter(self.vouched))]
        return True

    def unvouch(self, activities: Collection[Activity]) -> bool:
        """Forget what was learnt of these sorts by `vouch`; return False if that was nothing."""
        known = [activity for activity in activities if activity in self.vouched]
        for activity in known:
            del self.vouched[activity]
        return bool(known)

    # -- another model, storing --

    def under_other_model(self, factors: Levels) -> None:
        """Go on in units of another model's limits, in which levels are ``factors`` times as high."""
        for burst in self.kept:
            burst.height = Levels(burst.height.vote * factors.vote, burst.height.counts * factors.counts)
        self.vouched = {
            activity: Levels(level.vote * factors.vote, level.counts * factors.counts)
            for activity, level in self.vouched.items()
        }
        self.recurring *= factors.vote

    def record(self) -> dict[str, Any]:
        """Return what `restore` needs, as part of a device's record."""
        return {
            "bursts": [_plain(burst) for burst in self.kept],
            "vouched_bursts": [
                [activity.kind, activity.port, *_rounded(level)] for activity, level in self.vouched.items()
            ],
            "recurring": float(f"{self.recurring:.6g}"),
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        """Continue from a `record`, or from one of an earlier version; ValueError or TypeError for anything else."""
        self.kept = [_burst(item) for item in record.get("bursts", ())][-MAX_BURSTS:]
        stored = record.get("vouched_bursts", ())
        vouched = [(_activity(kind, port), _levels(vote, counts)) for kind, port, vote, counts in stored]
        self.vouched = dict(vouched[-MAX_VOUCHED:])
        self.recurring = _levels(record.get("recurring", 0.0), 0.0).vote


def _few(hosts: frozenset[int]) -> frozenset[int]:
    return hosts if len(hosts) <= MAX_HOSTS else frozenset(sorted(hosts)[:MAX_HOSTS])


def _covered(activity: Activity, by: Collection[Activity]) -> bool:
    """Return True if one of the sorts ``by`` includes a burst's; a flood includes the slower traffic before it."""
    return any(
        (activity.kind == one.kind or (one.kind, activity.kind) == ("flood", "other"))
        and (one.port in (None, activity.port) or activity.port is None)
        for one in by
    )


def _rounded(levels: Levels) -> Iterator[float]:
    return (float(f"{level:.6g}") for level in levels)


def _plain(burst: Burst) -> list[Any]:
    """Return what `_burst` takes back."""
    what = *_rounded(burst.height), burst.activity.kind, burst.activity.port, int(burst.marks)
    return [burst.first, burst.last, *what, burst.times, sorted(burst.hosts)]


def _burst(item: Any) -> Burst:
    first, last, vote, counts, kind, port, marks, times, hosts = item
    if not all(isinstance(value, int) and 0 <= value < 1 << 53 for value in (first, last, marks, times, *hosts)):
        raise ValueError(f"a burst is {str(item)[:80]}")
    few = _few(frozenset(hosts))
    return Burst(first, last, _levels(vote, counts), _activity(kind, port), Mark(marks & sum(Mark)), few, times)


def _levels(vote: Any, counts: Any) -> Levels:
    if not (0.0 <= vote < math.inf and 0.0 <= counts < math.inf):
        raise ValueError(f"a level is {vote!r}, {counts!r}")
    return Levels(float(vote), float(counts))


def _activity(kind: Any, port: Any) -> Activity:
    if kind not in KINDS or not (port is None or (isinstance(port, int) and 0 <= port <= 65_535)):
        raise ValueError(f"a sort of traffic is {kind!r}, port {port!r}")
    return Activity(kind, port)
