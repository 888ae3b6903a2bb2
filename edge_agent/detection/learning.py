"""Learning from a device's rows: which of them teach its own limits, and what they teach.

The arithmetic of these limits is `edge_agent.detection.device_limits`'s knowledge, alarms are the subject's.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.capture.features import Rows
from edge_agent.detection.activity import PORT_BITS
from edge_agent.detection.bursts import ANSWERED, NEW_HOST_S, UNANSWERED_SHARE, Mark
from edge_agent.detection.device_limits import DeviceLimits
from edge_agent.detection.habits import PEERS_FLOOR, SCORE_FLOOR
from edge_agent.detection.minutes import MINUTE_NS
from edge_agent.detection.scored import LOWERED_AT, ScoredRows, SubjectRules
from edge_agent.detection.tally import Openings
from edge_agent.detection.vote import NEAR


def near_limit(learning: "DeviceLearning | None", t_ns: NDArray[np.int64]) -> float:
    """Return the share of the shared limits up to which a subject's rows at times (n,) are far from its own limits."""
    if learning is None:
        return NEAR
    if int(t_ns.max()) // MINUTE_NS > learning.minute:  # its own may change on the way
        return NEAR * min(SCORE_FLOOR, PEERS_FLOOR)
    return NEAR * learning.limits.lowest


class DeviceLearning:
    """Teaches one device's own limits from its rows, minute by minute of packet time."""

    __slots__ = ("_rules", "limits", "minute")

    def __init__(self, limits: DeviceLimits, rules: SubjectRules) -> None:
        self.limits, self._rules = limits, rules
        self.minute = 0
        """The minute of steady time whose rows are taken in; 0 before the first."""

    def by_minute(self, t_ns: NDArray[np.int64], index: NDArray[np.intp]) -> list[tuple[int, NDArray[np.intp]]]:
        """Return rows ``index`` cut at whole minutes, and the minute of each piece; ``t_ns`` are the times of all."""
        minutes = np.maximum.accumulate(np.maximum(t_ns[index] // MINUTE_NS, self.minute))
        if minutes[-1] == self.minute:
            return [(self.minute, index)]
        cuts = np.flatnonzero(np.diff(minutes)) + 1
        return list(zip(minutes[[0, *cuts]].tolist(), np.split(index, cuts), strict=True))

    def next_minute(self, minute: int, during: Literal["", "alarm", "aftermath"], openings: Openings) -> None:
        """Move on to ``minute``; the one before, if there is one, passed ``during`` an alarm or its aftermath.

        ``openings`` are those of the device.
        """
        if self.minute:
            self._name_suspects()
            self._mark_burst(openings)
            self.limits.end_minute((self.minute + 1) * MINUTE_NS, during)
        self.minute = minute

    def see_quiet(self, scored: ScoredRows, index: NDArray[np.intp]) -> None:
        """Take in rows of this minute of which none is flagged."""
        limits, carries = self.limits, bool(scored.routes.carries[index].any())
        judged = index if scored.all_chosen else index[scored.routes.chosen[index]]
        in_units = scored.scores[judged] / self._rules.decision.full.limit
        peak = limits.see(in_units, scored.highest[judged], np.zeros(len(judged), dtype=bool))
        if carries:
            peers = scored.highest[judged]
        else:
            at = int(self._rules.counts_at[LOWERED_AT])
            peers = scored.rows.values[judged, at] / self._rules.bounds[LOWERED_AT]
        limits.habits.see_peers(float(peers.max(initial=0.0)))
        if limits.sample and not carries:  # of a router's rows some columns are not its own
            limits.sample.see(scored.rows.values, scored.t_ns, judged, in_units, peak)
        limits.note_judged(len(index), 0)

    def see_judged(
        self,
        scored: ScoredRows,
        index: NDArray[np.intp],
        *,
        counts: NDArray[np.float64],
        full: NDArray[np.bool_],
        carried: NDArray[np.bool_],
    ) -> None:
        """Take in rows of this minute with their ``counts`` (n, `COUNTS`), flagged where ``full`` (n,) is set.

        ``carried`` (n,) are rows of a router, whose device columns count all that it carries.
        """
        rules, limits, chosen = self._rules, self.limits, scored.routes.chosen[index]
        in_units = scored.scores[index] / rules.decision.full.limit
        peak = limits.see(in_units[chosen], (counts / rules.bounds).max(axis=1)[chosen], full[chosen])
        peers = counts[chosen & ~full, LOWERED_AT] / rules.bounds[LOWERED_AT]
        limits.habits.see_peers(float(peers.max(initial=0.0)))
        if limits.sample and not carried.any():
            quiet = chosen & ~full
            limits.sample.see(scored.rows.values, scored.t_ns, index[quiet], in_units[quiet], peak)
        self._classify_suspects(scored.rows, index[chosen & (in_units > 1.0) & ~full])
        limits.note_judged(len(full), int(full.sum()))

    def see_flagged(self, rows: Rows, index: NDArray[np.intp], targets: NDArray[np.int64], *, counted: bool) -> None:
        """Take in flagged rows ``index`` (n,) for the burst that they may be part of.

        There is at least one. ``targets`` (n,) are those of rows whose score is above its limit, 0 for others;
        ``counted`` says if the counts rule flagged a row.
        """
        hosts = targets >> PORT_BITS
        sent = rows.values[index, self._rules.between_hosts_at[1]]
        unanswered = sent - ANSWERED * rows.meta["answers"][index]
        in_vain = (unanswered > UNANSWERED_SHARE * sent) & (hosts != 0)
        self.limits.bursts.trace.see_rows(
            hosts[:1].tolist() if hosts[0] and (hosts == hosts[0]).all() else np.unique(hosts[hosts != 0]).tolist(),
            counted=counted,
            rows=int((hosts != 0).sum()),
            in_vain=int(in_vain.sum()),
        )

    def _classify_suspects(self, rows: Rows, above: NDArray[np.intp]) -> None:
        """Classify the first few rows of each minute above the shared limit, not flagged while the device learns."""
        suspects, classifier = self.limits.suspects, self._rules.classifier
        if self.limits.learnt or classifier is None or not suspects.room or not len(above):
            return
        above = above[: suspects.room]
        suspects.add(*classifier.of_rows(rows.values[above][:, self._rules.columns_at], rows.meta[above]))

    def _name_suspects(self) -> None:
        """Note in the limits which attack those rows look like, once they would be enough for a vote."""
        suspects, rules = self.limits.suspects, self._rules
        # the probabilities of a row sum to 1, so this counts the rows
        if self.limits.learnt or rules.classifier is None or float(suspects.class_sum.sum()) < rules.decision.vote_k:
            return
        name, probability = rules.classifier.name(suspects.class_sum, suspects.profile_sum)
        self.limits.suspect("" if probability is None else name)

    def _mark_burst(self, openings: Openings) -> None:
        """Note in the trace of the minute what only all of its flagged rows together show."""
        trace, classifier = self.limits.bursts.trace, self._rules.classifier
        hour_ns = int(NEW_HOST_S * 1e9)
        since_ns = max(self.minute * MINUTE_NS - hour_ns, self.limits.first_ns + hour_ns)
        if trace.hosts and not trace.hosts.isdisjoint(openings.new_hosts(since_ns)):
            trace.marks |= Mark.NEW_HOST
        if classifier is not None and len(trace.class_sum) and float(trace.class_sum.sum()) > 0.0:
            _, probability = classifier.name(trace.class_sum, trace.profile_sum)
            if probability is not None:
                trace.marks |= Mark.ATTACK
