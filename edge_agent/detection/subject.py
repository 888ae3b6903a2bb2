"""One subject's state between batches: its window, alarm, aftermath and own limits, and how its rows change them.

A *subject* is a device that sends (a possible source of an attack) or a monitored address that remote packets come to
through the router (a possible victim). Its rows go one of two ways. Rows of which none comes near a limit are absorbed
(`Subject.absorb_quiet_rows`), which costs next to nothing. Others are judged against the limits (`Subject.judge_rows`)
and then vote (`Subject.cast_votes`), cut where the rule in force or the alarm changes (`Subject.step_vote`).

What holds between any two calls:

* An alarm has an aftermath: `Subject.aftermath` is there from the beginning of an alarm until long after its end.
* While a subject is in alarm or aftermath none of its rows is absorbed as quiet.
* The newest vote is pending until it is reported, and there is at most one.

Nothing here depends on how rows were cut into batches. The rule itself is `edge_agent.detection.vote`'s.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.addresses import address_text
from edge_agent.contract.alert import Activity
from edge_agent.contract.bundle import PROFILE_FIELDS
from edge_agent.contract.columns import COUNT_COLUMNS, COUNTS
from edge_agent.detection.activity import recognise, targets
from edge_agent.detection.learning import DeviceLearning, near_limit
from edge_agent.detection.minutes import MINUTE_NS
from edge_agent.detection.scored import ScoredRows, SubjectRules
from edge_agent.detection.tally import COUNTS_OPENED, COUNTS_PEERS, Openings, Shed, Tally
from edge_agent.detection.vote import MEMORY_S, Aftermath, Alarm, Vote, VoteWindow, silent

GROWN = 2.0
"""Factor by which the packet rate to a host, of a second, is above that of minutes where the traffic has grown."""

_DECAYS_BETWEEN_HOSTS = np.array([1.0, 0.01])
_S = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class JudgedRows:
    """The judged rows of one subject from one `Detector.observe` call, under the full rule; n rows."""

    scored: ScoredRows
    index: NDArray[np.intp]
    """Numbers of the rows in ``scored``."""
    t_ns: NDArray[np.int64]
    flags: NDArray[np.integer]
    counts: NDArray[np.float64]
    """`COUNTS` of the subject (n, counts), their ``bounds``, and the counts in units of these."""
    bounds: NDArray[np.float64]
    count_ratio: NDArray[np.float64]
    score_ratio: NDArray[np.float64]
    """Scores in units of the limit that applied."""
    strict: NDArray[np.float64]
    """Factor of the shared limit of the score, for warm-up and a device's own limits."""
    may_hit: NDArray[np.bool_]
    """False for rows that say nothing about a victim, because they open nothing."""
    full: NDArray[np.bool_]
    """Flagged by the full rule."""
    loudness: NDArray[np.float64]
    """The sender's packet weight at λ = 1."""
    chosen: NDArray[np.bool_]
    """Scored; the others are judged because the counts rule flagged them."""
    packets: NDArray[np.int64]
    """Packets and bytes that a row accounts for: its own and those of the shed rows before it."""
    bytes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)

    def numbers(self, at: int, which: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Return the numbers in ``scored`` of the rows from ``at`` on where ``which`` is set, (m,)."""
        return self.index[at : at + len(which)][which]


@dataclass(frozen=True, kw_only=True)
class _RuledRows:
    """Rows of `JudgedRows` from ``at`` on under the rule in force; n rows."""

    rows: JudgedRows
    at: int
    limit: float
    """The shared limit of the score; ``fast`` if it is that of an aftermath."""
    fast: bool
    score_ratio: NDArray[np.float64]
    """Scores in units of the limit, and counts (n, `COUNTS`) and the highest of a row in units of the bounds."""
    count_ratios: NDArray[np.float64]
    count_ratio: NDArray[np.float64]
    hits: NDArray[np.bool_]
    """True for rows above any limit; ``counted`` for rows whose count is above its bound."""
    counted: NDArray[np.bool_]

    def traffic_above_limit(self, low: int, high: int, rules: SubjectRules) -> dict[str, NDArray[Any]]:
        """Return the arrays of `VoteWindow` (m,) about rows ``low`` to ``high`` whose score is above the limit.

        So are those of which too much is unanswered: that, too, is a matter of the traffic itself.
        """
        in_vain = (self.count_ratios[low:high, ~COUNTS_OPENED] > 1.0).any(axis=1)
        above = self.hits[low:high] & ((self.score_ratio[low:high] > 1.0) | in_vain)
        aims, grown = np.zeros(high - low, dtype=np.int64), np.zeros(high - low, dtype=bool)
        if above.any():
            numbers, rows = self.rows.numbers(self.at + low, above), self.rows.scored.rows
            aims[above] = targets(rows.meta[numbers])
            second, minutes = (rows.values[numbers[:, None], rules.between_hosts_at] * _DECAYS_BETWEEN_HOSTS).T
            grown[above] = second > GROWN * minutes
        return {"targets": aims, "grown": grown}


class Subject:
    """One device or victim: its state between batches, and how its rows change that.

    ``key`` is a device's MAC or the 16 bytes of a victim's address, ``first_ns`` the steady time of its first row.
    """

    __slots__ = (
        *("_alarm", "_first_ns", "_last_flagged", "_last_vote_ns", "_openings", "_rules", "_shed", "_tally", "_victim"),
        *("_window", "aftermath", "learning", "pending"),
    )

    def __init__(self, key: int | bytes, first_ns: int, rules: SubjectRules) -> None:
        self._victim, self._first_ns, self._rules = isinstance(key, bytes), first_ns, rules
        self._window = VoteWindow(rules.vote.w, rules.class_count)
        self._tally, self._shed, self._openings = Tally(), Shed(), Openings()
        self._alarm: Alarm | None = None
        self.aftermath: Aftermath | None = None
        """The memory of the last attack; it exists whenever there is an alarm."""
        self.pending: Vote | None = None
        """The newest vote, as long as it is not reported."""
        self._last_vote_ns = 0
        self._last_flagged: NDArray[Any] | None = None  # the last classified packet (1,) of ROW_META
        self.learning: DeviceLearning | None = None
        """The learning of a device's own limits; None without learning, and for a victim, whose rows others send."""
        if rules.learn and not isinstance(key, bytes):
            self.learning = DeviceLearning(rules.learn(key, first_ns), rules)

    def under(self, key: int | bytes, now_ns: int, rules: SubjectRules) -> "Subject":
        """Return this subject, whose key is ``key``, as another bundle's rules judge it from steady time ``now_ns`` on.

        What does not depend on a model goes on: since when the subject is known, its counts, its shed rows and its
        aftermath. Its window is of the old limits and begins empty; so an alarm is over, and begins anew once the new
        rules flag enough of what goes on. The old subject must not be used any more, nor have a pending vote.
        """
        successor = Subject(key, now_ns, rules)  # its own limits are learnt from now on
        successor._first_ns, successor._last_vote_ns = self._first_ns, self._last_vote_ns
        successor._last_flagged = self._last_flagged
        successor._tally, successor._shed, successor._openings = self._tally, self._shed, self._openings
        successor.aftermath = self.aftermath
        return successor

    def report(self) -> list[Vote]:
        """Return the pending vote, if there is one, which counts as reported from now on."""
        vote, self.pending = self.pending, None
        if vote is None:
            return []
        if self._alarm:
            self._alarm.reported_ns = vote.t_ns
        if self.learning:
            self.learning.limits.bursts.trace.see_vote(vote.activities, vote.class_sum, vote.profile_sum)
        return [vote]

    # -- quiet rows --

    def quiet_via_router(self, scored: ScoredRows, index: NDArray[np.intp], high: NDArray[np.float64]) -> bool:
        """Return True if rows ``index`` of a router or a victim are all far from a limit.

        The sender's counts, which are in ``high`` (of all rows), include all that it carries. So the subject's own are
        counted, and put into ``scored.highest``; if the answer is False, neither is done.
        """
        carried, near = scored.carried(index, victim=self._victim), near_limit(self.learning, scored.t_ns[index])
        own_counts = high[index[~carried]]
        if scored.scores[index].max() > self._rules.decision.full.limit * near or own_counts.max(initial=0.0) > near:
            return False
        at = index[carried]
        if len(at):
            every = not scored.all_chosen
            counts = self._tally.quiet_counts(scored.t_ns[at], scored.flags[at], self._rules.own_bounds, every, near)
            if counts is None:
                return False
            scored.highest[at] = counts
        return True

    def absorb_quiet_rows(self, scored: ScoredRows, index: NDArray[np.intp]) -> None:
        """Take in rows ``index``, none of which comes near a limit. Little is stored of them."""
        if self.learning:
            for piece in self._by_minute(scored.t_ns, index):
                self.learning.see_quiet(scored, piece)
        w = self._rules.vote.w
        if scored.all_chosen and not self._shed.packets:
            judged, newest = index, index[-w:]
            packets, sizes = self._rules.one_each[: len(newest)], scored.sizes[newest]
        else:
            at, packets, sizes = self._shed.attribute(scored.routes.chosen[index], scored.sizes[index])
            judged = index[at]
            newest = judged[-w:]
            packets, sizes = packets[-len(newest) :].copy(), sizes[-len(newest) :].copy()
        self._openings.note(scored, judged)
        if len(newest):
            self._window.absorb_quiet(scored.t_ns[newest], packets, sizes)

    # -- rows that may be flagged --

    def judge_rows(self, scored: ScoredRows, index: NDArray[np.intp]) -> Iterator[JudgedRows]:
        """Judge rows ``index`` under the full rule, minute by minute.

        The rows of each minute must vote before the next one is asked for, since the device's limits may change then.
        """
        self._window.settle()
        for piece in self._by_minute(scored.t_ns, index):
            yield self._judge_piece(scored, piece)

    def _judge_piece(self, scored: ScoredRows, index: NDArray[np.intp]) -> JudgedRows:
        rules = self._rules
        values, flags, times = scored.rows.values, scored.flags[index], scored.t_ns[index]
        carried = scored.carried(index, victim=self._victim)
        own, counts = len(COUNT_COLUMNS), np.empty((len(index), len(COUNTS)))
        counts[:, own:] = scored.routes.host_counts[index]
        if carried.any():  # a router is not judged by what it carries
            counts[carried, :own] = self._tally.counts(times[carried], flags[carried])
        if not carried.all():
            counts[~carried, :own] = values[index[~carried, None], rules.counts_at]
        strict, bounds = rules.limits_at(times - self._first_ns, self.learning.limits if self.learning else None)
        score_ratio = scored.scores[index] / (rules.decision.full.limit * strict)
        count_ratio = counts / bounds
        may_hit = scored.opens[index] if self._victim else np.ones(len(index), dtype=bool)
        full = (np.maximum(score_ratio, count_ratio.max(axis=1)) > 1.0) & may_hit
        if self.learning:
            self.learning.see_judged(scored, index, counts=counts, full=full, carried=carried)
        chosen = scored.routes.chosen[index]
        judged, packets, sizes = self._shed.attribute(chosen | full, scored.sizes[index])
        at = index[judged]
        return JudgedRows(
            scored=scored,
            index=at,
            t_ns=times[judged],
            flags=flags[judged],
            counts=counts[judged],
            bounds=bounds[judged],
            count_ratio=count_ratio[judged],
            score_ratio=score_ratio[judged],
            strict=strict[judged],
            may_hit=may_hit[judged],
            full=full[judged],
            loudness=values[at, rules.loudness_at].astype(np.float64),
            chosen=chosen[judged],
            packets=packets,
            bytes=sizes,
        )

    def cast_votes(self, rows: JudgedRows) -> list[Vote]:
        """Let judged rows vote, in their order; return the votes to report."""
        due: list[Vote] = []
        at = 0
        while at < len(rows):
            at, votes = self.step_vote(rows, at)
            due += votes
        return due

    def step_vote(self, rows: JudgedRows, at: int) -> tuple[int, list[Vote]]:
        """Let rows from ``at`` on vote, up to where the rule in force or the alarm changes.

        Returns the row after the last one taken, and the votes to report.
        """
        due: list[Vote] = []
        t_ns = int(rows.t_ns[at])
        if self.aftermath and t_ns // _S > self.aftermath.second:
            due += self._next_second(self.aftermath, t_ns)
        ruled = self._under_rule(rows, at)
        taken, votes = self._await_alarm(ruled) if self._alarm is None else self._continue_alarm(self._alarm, ruled)
        return at + taken, due + votes

    def _next_second(self, aftermath: Aftermath, t_ns: int) -> list[Vote]:
        """Move an aftermath on to the second of ``t_ns``, or end it, and a silent alarm; return the votes to report."""
        due: list[Vote] = []
        quiet_ns = t_ns - self._last_vote_ns
        if self._alarm and silent(quiet_ns):
            due = self.report()
            self._alarm = None
            self._window.forget_hits()
        if self._alarm is None and self._rules.vote.ends_aftermath(self._window, quiet_ns):
            self.aftermath = None
        else:
            aftermath.next_second(t_ns)
        return due

    def _under_rule(self, rows: JudgedRows, at: int) -> _RuledRows:
        """Return rows from ``at`` on under the rule in force: all, or in an aftermath those of one second.

        There is one reference for counts per second of packet time, so that a flood is judged in whole arrays.
        """
        decision, t_ns = self._rules.decision, rows.t_ns
        if self.aftermath:
            end = at + 1 + int(np.argmax(np.append(t_ns[at + 1 :] // _S != t_ns[at] // _S, True)))
            score_ratio, count_ratios = self._score_aftermath(self.aftermath, rows, at, end)
            count_ratio = count_ratios.max(axis=1)
            hits = (np.maximum(score_ratio, count_ratio) > 1.0) & rows.may_hit[at:end]
        else:
            score_ratio, count_ratios, hits = rows.score_ratio[at:], rows.count_ratio[at:], rows.full[at:]
            count_ratio = count_ratios.max(axis=1)
        return _RuledRows(
            rows=rows,
            at=at,
            limit=(decision.fast if self.aftermath else decision.full).limit,
            fast=self.aftermath is not None,
            score_ratio=score_ratio,
            count_ratios=count_ratios,
            count_ratio=count_ratio,
            hits=hits,
            counted=hits & (count_ratio > 1.0),
        )

    def _score_aftermath(
        self, aftermath: Aftermath, rows: JudgedRows, at: int, end: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return scores (n,) and counts (n, `COUNTS`) in units of their limits in an aftermath."""
        chosen, score_ratio = rows.chosen[at:end], np.zeros(end - at)
        if chosen.any():
            values = rows.scored.rows.values[rows.numbers(at, chosen)][:, self._rules.columns_at]
            limits = self._rules.decision.fast.limit * np.maximum(rows.strict[at:end][chosen], 1.0)
            score_ratio[chosen] = self._rules.scorer.fast(values) / limits
        as_loud = aftermath.as_loud(rows.loudness[at:end])
        score_ratio = np.maximum(score_ratio, np.where(as_loud, rows.score_ratio[at:end], 0.0))
        return score_ratio, aftermath.new_counts(rows.counts[at:end], rows.t_ns[at:end]) / rows.bounds[at:end]

    def _await_alarm(self, ruled: _RuledRows) -> tuple[int, list[Vote]]:
        """Take in rows up to the one that begins an alarm; return how many, and the votes to report."""
        begins = self._rules.vote.begins(self._window, ruled.hits, ruled.counted)
        if not begins.any():
            self._remember(ruled, 0, len(begins))
            return len(begins), []
        taken = int(np.argmax(begins)) + 1
        self._remember(ruled, 0, taken)
        last_vote_ns, alarm = self._last_vote_ns, self._begin_alarm(ruled.rows, ruled.at + taken - 1)
        vote = self._vote(alarm, ruled, taken - 1)
        if vote.count_at is not None and COUNTS_OPENED[vote.count_at[0]]:
            onset = self._openings.onset(vote.count_at[0], vote.limit, last_vote_ns)
            if onset is not None:
                alarm.first_ns = min(alarm.first_ns, onset)
        self.pending = dataclasses.replace(vote, first_ns=alarm.first_ns)
        return taken, self.report()

    def _continue_alarm(self, alarm: Alarm, ruled: _RuledRows) -> tuple[int, list[Vote]]:
        """Take in rows up to a vote that is to be reported, or the alarm's end; return as `_await_alarm` does."""
        t_ns = ruled.rows.t_ns[ruled.at : ruled.at + len(ruled.hits)]
        over = self._rules.vote.ends(self._window, ruled.hits, ruled.counted)
        changes = over | (ruled.hits & alarm.reportable(t_ns))
        taken = int(np.argmax(changes)) + 1 if changes.any() else len(changes)
        ended = bool(over[taken - 1])
        reported = bool(changes.any()) and not ended  # the last row is a vote that is to be reported
        votes = np.flatnonzero(ruled.hits[:taken])
        earlier = votes[:-1] if reported else votes
        done, due = 0, []
        if len(earlier):
            done = int(earlier[-1]) + 1
            self._remember(ruled, 0, done)
            self.pending = self._vote(alarm, ruled, done - 1)
        if reported and self.pending and self.pending.is_stale(int(t_ns[taken - 1])):
            due += self.report()
        self._remember(ruled, done, taken)
        if reported:
            self.pending = self._vote(alarm, ruled, taken - 1)
        if reported or ended:
            due += self.report()
        if ended:
            self._alarm = None
        return taken, due

    def _begin_alarm(self, rows: JudgedRows, row: int) -> Alarm:
        """Begin an alarm at ``row``, and an aftermath unless that of an earlier alarm still lasts."""
        self._alarm = Alarm(self._window)
        if self.aftermath is None:
            self.aftermath = Aftermath(int(rows.t_ns[row]), rows.counts[row].copy())
        self.aftermath.alarm(float(rows.loudness[row]))
        return self._alarm

    def _remember(self, ruled: _RuledRows, low: int, high: int) -> None:
        """Append rows ``low`` to ``high`` to the window and, in an alarm, to its totals."""
        if low == high:
            return
        rows, at, end = ruled.rows, ruled.at + low, ruled.at + high
        hits = ruled.hits[low:high]
        if self.aftermath:
            self.aftermath.newest = int(rows.t_ns[end - 1]), rows.counts[end - 1].copy()
        self._openings.note(rows.scored, rows.index[at:end])
        classified = hits & rows.chosen[at:end]
        probabilities, profiles, self._last_flagged = _classify(rows, at, classified, self._rules, self._last_flagged)
        packets, sizes = rows.packets[at:end], rows.bytes[at:end]
        counted, above = ruled.counted[low:high], ruled.traffic_above_limit(low, high, self._rules)
        if self.learning and hits.any():
            at_hits = rows.numbers(at, hits)
            self.learning.see_flagged(rows.scored.rows, at_hits, above["targets"][hits], counted=bool(counted.any()))
        self._window.add(
            full=rows.full[at:end],
            hits=hits,
            counted=counted,
            ratio=np.maximum(ruled.score_ratio[low:high], ruled.count_ratio[low:high]).astype(np.float32),
            t_ns=rows.t_ns[at:end],
            packets=packets,
            sizes=sizes,
            **above,
            classes=probabilities,
            profiles=profiles,
        )
        if self._alarm and self.aftermath:
            self._alarm.add(hits, packets, sizes, probabilities[classified], profiles[classified])
            self.aftermath.hear(rows.loudness[at:end][hits])

    def _vote(self, alarm: Alarm, ruled: _RuledRows, i: int) -> Vote:
        """Return row ``i`` of ``ruled``, the newest one taken in, as a vote; later rows do not change it."""
        rows, row, ratios = ruled.rows, ruled.at + i, ruled.count_ratios[i]
        scored, index = rows.scored, rows.index[row]
        self._last_vote_ns = int(rows.t_ns[row])
        column, statistic, share = self._rules.vote.decide(self._window, ruled.score_ratio[i], ratios)
        if column is None:
            strict = float(rows.strict[row])
            limit, count_at = ruled.limit * (max(strict, 1.0) if ruled.fast else strict), None
        else:
            limit = float(rows.bounds[row, column])
            count_at = column, float(ratios[column] * rows.bounds[row, column])
        return Vote(
            t_ns=self._last_vote_ns,
            first_ns=alarm.first_ns,
            role="victim" if self._victim else "source",
            meta=scored.rows.meta[index].copy(),
            values=scored.rows.values[index, self._rules.columns_at].copy(),
            address=address_text(scored.routes.addresses[index], scored.routes.versions[index]),
            interface=scored.rows.interface_of(scored.rows.meta[index]),
            limit=limit,
            fast=ruled.fast,
            count_at=count_at,
            statistic=statistic,
            share=share,
            activities=_activities(self._window, self._openings, ruled, i, victim=self._victim),
            window_s=self._window.span_s,
            rows=alarm.rows,
            packets=alarm.packets,
            bytes=alarm.bytes,
            class_sum=alarm.class_sum,
            profile_sum=alarm.profile_sum,
        )

    # -- learning --

    def _by_minute(self, t_ns: NDArray[np.int64], index: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
        """Yield rows ``index`` cut at whole minutes of packet time, where a device's own limits change; else as one."""
        learning = self.learning
        if learning is None:
            yield index
            return
        if learning.limits.anew:  # somebody vouched for the device: nothing that it did before counts
            learning.limits.anew = False
            self._alarm = self.aftermath = None
            self._window.forget_flags()
        for minute, piece in learning.by_minute(t_ns, index):
            if minute > learning.minute:
                voted = self._alarm or self._last_vote_ns >= learning.minute * MINUTE_NS
                during: Literal["", "alarm", "aftermath"] = "alarm" if voted else "aftermath" if self.aftermath else ""
                learning.next_minute(minute, during, self._openings)
            yield piece


def _classify(
    rows: JudgedRows, at: int, which: NDArray[np.bool_], rules: SubjectRules, last: NDArray[Any] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[Any] | None]:
    """Return class probabilities (n, classes) and packet profiles (n, figures) of the rows from ``at`` on.

    They are 0 where ``which`` (n,) is not set, and without a classifier. ``last`` is the packet (1,) classified before
    them; the last return value is that for the next ones.
    """
    probabilities, profiles = np.zeros((len(which), rules.class_count)), np.zeros((len(which), len(PROFILE_FIELDS)))
    if rules.classifier is None or not which.any():
        return probabilities, profiles, last
    numbers = rows.numbers(at, which)
    values, meta = rows.scored.rows.values[numbers][:, rules.columns_at], rows.scored.rows.meta[numbers]
    probabilities[which], profiles[which] = rules.classifier.of_rows(values, meta, last)
    return probabilities, profiles, meta[-1:].copy()


def _activities(
    window: VoteWindow, openings: Openings, ruled: _RuledRows, i: int, *, victim: bool
) -> tuple[Activity, ...]:
    """Return the sorts of traffic at row ``i`` of ``ruled``, the newest one of ``window``."""
    flagged = ruled.count_ratios[i] > 1.0
    since_ns = int(ruled.rows.t_ns[ruled.at + i] - MEMORY_S * _S)
    opened = openings.latest(since_ns, peers=False) if flagged[COUNTS_OPENED].any() else None
    new_peers = openings.latest(since_ns, peers=True) if flagged[COUNTS_PEERS].any() else None
    return recognise(opened, new_peers, window.above_limit(), victim=victim)
