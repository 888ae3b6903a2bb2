"""From feature rows to detections: the steps of a batch, and the subjects that are remembered between batches.

Everything here comes from one bundle, so a new model is a new Detector. There is no clock, file or network in it:
packet time arrives with the rows, and the detections do not depend on how the rows were cut into batches.

The steps of `Detector.observe`, in order:

1. Packet time becomes steady time, which is never set back by a clock (`edge_agent.contract.clock`).
2. Each row gets its subject, and a place in the budget of rows or none (`edge_agent.capture.features.SenderTable`). A
   row belongs to the device that sent it (its MAC) or, when a remote peer's packet comes in through the router, to the
   monitored address it was sent to. The first can be the source of an attack, the second a victim; the router that
   carries other people's packets is neither.
3. Rows within the budget are scored (`edge_agent.detection.scorer`), all at once and whoever sent them. Rows beyond it
   are shed: they are judged by the counts rule alone, and vote only where that flags them.
4. A subject without alarm or aftermath whose rows are all far from every limit absorbs them, nearly for free.
5. The rows of any other subject are judged and vote (`edge_agent.detection.subject`, by the rule of
   `edge_agent.detection.vote`).
6. Votes that are due, from this batch or since no newer one came, are reported in the order of time
   (`edge_agent.detection.report`).
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.capture import features
from edge_agent.capture.features import Rows, SenderTable
from edge_agent.contract import columns as cols
from edge_agent.contract.addresses import PRIVATE_NETWORKS
from edge_agent.contract.bundle import Bundle, BundleError
from edge_agent.contract.clock import SteadyClock
from edge_agent.contract.columns import COUNT_COLUMNS, COUNTS, HOST_COUNTS
from edge_agent.contract.networks import Networks
from edge_agent.detection.detection import Detection
from edge_agent.detection.device_limits import OWN_MARGIN, DeviceLimits
from edge_agent.detection.learning import near_limit
from edge_agent.detection.report import Reporter
from edge_agent.detection.runtime import Model
from edge_agent.detection.scored import ScoredRows, SubjectRules
from edge_agent.detection.scorer import AT_ONCE, RowClassifier, Scorer
from edge_agent.detection.subject import Subject
from edge_agent.detection.vote import Vote, vote_statistic

_EVERY_HOST_COUNT = np.arange(len(HOST_COUNTS), dtype=np.uint32)

MAX_SUBJECTS = 4096
"""Subjects, and senders, that are remembered; beyond it the least recently seen one is forgotten."""


class Detector:
    """Turns rows into detections by the rules of one bundle.

    With ``learn`` every device gets limits of its own from its traffic here: True keeps what is learnt in the detector;
    a function returns a device's `DeviceLimits` for its MAC and the steady time of its first row, and keeps them.

    ``max_rows_per_s`` bounds how many rows a second of packet time are scored; ``kernel/senders.c`` chooses them.

    BundleError when the bundle's schema cannot occur in live traffic or a limit is of no use; `runtime.ModelError` when
    a model does not load.
    """

    def __init__(
        self,
        bundle: Bundle,
        networks: Sequence[str] = PRIVATE_NETWORKS,
        *,
        learn: bool | Callable[[int, int], DeviceLimits] = False,
        max_rows_per_s: float | None = None,
    ):
        _check_usable(bundle)
        scorer = Scorer(Model(bundle.autoencoder), bundle.scaler, bundle.manifest.columns)
        classifier = RowClassifier(Model(bundle.classifier), bundle) if bundle.classifier else None
        self._decision = bundle.manifest.decision
        self._rules = SubjectRules.of(
            bundle, scorer, classifier, (self._new_limits if learn is True else learn) or None
        )
        self._score, self._reporter = scorer.of_rows(), Reporter(bundle.manifest, scorer, classifier)
        monitored = Networks.parse(networks)
        self._senders = SenderTable(MAX_SUBJECTS, max_rows_per_s, monitored.v4, monitored.v6)
        self._clock = SteadyClock()
        self._subjects: OrderedDict[int | bytes, Subject] = OrderedDict()
        self._pending: dict[
            Subject, None
        ] = {}  # those whose newest vote is not reported yet, in order; also evicted ones
        self.counters = {
            "scored": 0,
            "shed": 0,
            "flagged": 0,
            "votes": 0,
            "clock_steps": 0,
            "subjects_evicted": 0,
            "senders_evicted": 0,
        }

    @property
    def step(self) -> Literal["all", "shared", "sparse"]:
        """The extent of scoring: `all` rows, a `shared` budget of them, or `sparse`: fewer than one in ten.

        It gets worse after one bad second, and better after ten good ones.
        """
        return self._senders.step

    def observe(self, rows: Rows) -> list[Detection]:
        """Take in ``rows`` (in packet order) and return the detections that are due, in packet order."""
        if not len(rows):
            return []
        scored = self._score_rows(rows)
        routes, index = scored.routes, scored.routes.order
        starts = routes.starts.tolist()
        high = np.maximum(scored.scores * np.float32(1 / self._decision.full.limit), scored.highest)
        highest = np.maximum.reduceat(high[index], routes.starts[:-1]).tolist()
        routers = np.logical_or.reduceat(routes.carries[index], routes.starts[:-1]).tolist()
        due: list[Vote] = []
        for group, key in enumerate(routes.keys):
            mine = index[starts[group] : starts[group + 1]]
            subject = self._subject(key, int(scored.t_ns[mine[0]]))
            if subject.aftermath:
                quiet = False
            elif routers[group] or isinstance(key, bytes):
                quiet = subject.quiet_via_router(scored, mine, high)
            else:
                quiet = highest[group] <= near_limit(subject.learning, scored.t_ns[mine])
            if quiet:
                subject.absorb_quiet_rows(scored, mine)
                continue
            for judged in subject.judge_rows(scored, mine):
                self.counters["flagged"] += int(judged.full.sum())
                due += subject.cast_votes(judged)
            if subject.pending:
                self._pending[subject] = None
        return self._report(due + self._stale_votes(int(scored.t_ns[-1])))

    def clock_set_forward(self, step_ns: int) -> None:
        """Note that the system's clock, which stamps packets, was set forward: durations do not end by that."""
        self._clock.set_forward(step_ns)

    def tick(self, t_ns: int) -> list[Detection]:
        """Return the detections that are due at packet time ``t_ns`` though no packet came."""
        return self._report(self._stale_votes(t_ns + self._clock.offset_ns))

    def finish(self) -> list[Detection]:
        """Return the detections that are not reported yet, when no more rows will come."""
        return self._report(self._stale_votes(None))

    def take_over(self, before: "Detector") -> None:
        """Go on where the detector of another bundle ends, which has the same networks and budget.

        Steady time, budget and counters go on, and so does the state of every subject that does not depend on a model
        (`Subject.under`). ``before`` must have reported everything (`finish`) and must not be used any more.
        """
        self._clock, self._senders, self.counters = before._clock, before._senders, before.counters
        now_ns = (self._clock.newest_ns or 0) + self._clock.offset_ns
        for key, subject in before._subjects.items():
            self._subjects[key] = subject.under(key, now_ns, self._rules)

    def limits_of(self, mac: int) -> DeviceLimits | None:
        """Return a device's own limits; None without ``learn`` and for a device that is not remembered."""
        subject = self._subjects.get(mac)
        return subject.learning.limits if subject and subject.learning else None

    def vote(self, values: NDArray[Any]) -> float:
        """Return the highest vote of a few neighbouring rows (n, `ALL_COLUMNS`) of a device, in shared limits."""
        rule = self._rules.vote.of_few(len(values))
        scores = self._score(np.ascontiguousarray(values, dtype=np.float32), np.zeros(len(values), dtype=bool))
        return float(vote_statistic(scores, rule.k, rule.w).max(initial=0.0)) / self._decision.full.limit

    def _score_rows(self, rows: Rows) -> ScoredRows:
        """Assign rows to their subjects, and score the rows that may be scored."""
        t_ns = self._clock.each(rows.meta["t_ns"])
        self.counters["clock_steps"] = self._clock.steps
        rows = Rows(np.ascontiguousarray(rows.values, dtype=np.float32), rows.meta, rows.interfaces)
        routes = self._senders.route(rows.meta, t_ns)
        self.counters |= self._senders.counts()
        flags = np.ascontiguousarray(rows.meta["flags"])
        scores = np.zeros(len(rows), dtype=np.float32)
        every = bool(routes.chosen.all())
        picked = range(len(rows)) if every else np.flatnonzero(routes.chosen)
        for at in range(0, len(picked), AT_ONCE):
            part: Any = slice(at, at + AT_ONCE) if every else picked[at : at + AT_ONCE]
            scores[part] = self._score(rows.values[part], routes.carries[part])
        of_hosts = self._rules.bounds[len(COUNT_COLUMNS) :]
        highest = features.highest_ratios(rows.values, self._rules.counts_at, self._rules.own_bounds)
        return ScoredRows(
            rows=rows,
            t_ns=t_ns,
            flags=flags,
            opens=flags & (features.NEW_PEER | features.NEW_SOCKET) != 0,
            sizes=rows.meta["length"].astype(np.int64),
            routes=routes,
            all_chosen=every,
            scores=scores,
            highest=np.maximum(highest, features.highest_ratios(routes.host_counts, _EVERY_HOST_COUNT, of_hosts)),
        )

    def _subject(self, key: int | bytes, t_ns: int) -> Subject:
        """Return the subject of a key, a new one where it is not remembered."""
        subject = self._subjects.get(key)
        if subject is None:
            if len(self._subjects) >= MAX_SUBJECTS:
                self._subjects.popitem(last=False)
                self.counters["subjects_evicted"] += 1
            subject = self._subjects[key] = Subject(key, t_ns, self._rules)
        self._subjects.move_to_end(key)
        return subject

    def _stale_votes(self, t_ns: int | None) -> list[Vote]:
        """Return the pending votes that are to be reported at steady time ``t_ns``; None: all."""
        due: list[Vote] = []
        for subject in list(self._pending):
            if subject.pending and t_ns is not None and not subject.pending.is_stale(t_ns):
                continue
            due += subject.report()
            del self._pending[subject]
        return due

    def _report(self, due: list[Vote]) -> list[Detection]:
        self.counters["votes"] += len(due)
        return [self._reporter.detection(vote) for vote in sorted(due, key=lambda vote: vote.t_ns)]

    def _new_limits(self, _mac: int, t_ns: int) -> DeviceLimits:
        rule = self._decision
        return DeviceLimits(t_ns, OWN_MARGIN, rule.vote_k, rule.vote_w, start=rule.start_factor)


def _check_usable(bundle: Bundle) -> None:
    """Raise BundleError when live rows cannot be judged by a bundle."""
    manifest, decision = bundle.manifest, bundle.manifest.decision
    if cols.COMPAT in manifest.schemas:
        raise BundleError(
            f"{bundle.path}: trained on {cols.COMPAT}, whose jitter columns hold the date; live or replayed "
            f"traffic needs {cols.CLEAN}, or a model without the HH_jit columns"
        )
    for name, limit in {"full": decision.full.limit, "fast": decision.fast.limit, **decision.counts}.items():
        if not limit > 0:  # 0 of 0 is not a number, and nothing would ever be above it
            raise BundleError(f"{bundle.path}: the limit of {name} is {limit:g}, must be above 0")
    if unknown := {*decision.counts, *decision.warmup_counts} - set(COUNTS):
        raise BundleError(f"{bundle.path}: bounds {', '.join(sorted(unknown))}, which the counts rule does not know")
