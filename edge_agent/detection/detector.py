"""From feature rows to detections: scale, reconstruct, score, compare with τ, vote, classify.

Everything here comes from one bundle, so a model swap is a new Detector. No clock, no files, no network: packet time
arrives with the rows, and what is found does not depend on how the rows were cut into batches.

Who is judged. A row belongs to a *subject*: the device that sent it (its MAC), or, when a remote peer's packet comes in
through the router, the monitored address it was sent to. The first can be a source of an attack, the second a victim;
the router that carries other people's packets is neither.

What a slow column remembers. After a flood the columns of λ = 0.01 need many minutes to forget it, so from an alarm on
a subject is judged by what goes on now: the error over the fast columns, the counts of new peers and sockets beyond
what is left of those of some seconds ago, and the full error while the device is about as loud as in the attack. It
returns to the full rule when that has been quiet for a while.
"""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.capture import features
from edge_agent.capture.features import Routes, Rows, SenderTable
from edge_agent.contract import columns as cols
from edge_agent.contract.bounds import VOTE_LATE_S
from edge_agent.contract.bundle import PROFILE_FIELDS, Bundle, BundleError
from edge_agent.contract.clock import SteadyClock
from edge_agent.contract.columns import COUNT_COLUMNS
from edge_agent.contract.networks import PRIVATE_NETWORKS, Networks, address_text, protocol_name
from edge_agent.contract.scaling import Array
from edge_agent.detection import classify, device_limits, explain
from edge_agent.detection.detection import Detection
from edge_agent.detection.runtime import Model
from edge_agent.detection.scorer import AT_ONCE, Scorer
from edge_agent.detection.vote import vote_statistic

AFTERMATH_S = 1000.0
"""Seconds after its last vote for which a subject is judged by what is new; a count of λ = 0.01 falls to 1/1000."""

FRESH_S = 10.0
"""Seconds over which a count must have grown, on its own, for there to be something new."""

MEMORY_S = 100.0
"""Seconds over which a count of λ = 0.01 must have grown past its bound, its memory; of faster ones `FRESH_S`.

In `FRESH_S` a slow scan never grows past the bound that it took it a minute to reach."""

LOUD = 0.5
"""Share of an alarm's highest packet rate (λ = 1) from which a sender counts as loud as in the attack."""

STALE_S = VOTE_LATE_S - 1.0
"""Seconds after which a vote is reported even when no other follows it."""

SILENCE_S = 60.0
"""Seconds without a vote after which an alarm is over, however few rows its subject has sent since."""

TALLY_S = 64
"""Seconds between the moments a subject's own counts are referred to; 2^(5·64) is far within a float64."""

ODD_ROWS = 32
"""Rows a minute above the shared limit that are classified of a device which still learns."""

MAX_OPENED = 256
"""Of its last packets that opened something, of how many a subject's times are kept: where a count began to grow."""

MAX_SUBJECTS = 4096
EXPLAINED = 5
"""Statistics that a detection names."""

_COUNT_DECAY = np.array([float(c.split("_L")[1].split("_")[0]) for c in COUNT_COLUMNS])
_SLOW = int(np.argmax(_COUNT_DECAY < 1.0))  # the first of those that are; the columns are in the order of their decays
_LONG = _COUNT_DECAY < 1.0 / FRESH_S
_COUNTS_PEERS = np.array([c.endswith("new_peers") for c in COUNT_COLUMNS])
_S = 1_000_000_000
_NEAR = 0.999  # of a limit: below, no rounding lifts a row above it


class _Window:
    """The last ``w`` rows of a subject that were judged, oldest first, in arrays of (n,) or (n, columns).

    Rows that nothing flagged wait in a list: most devices are quiet, and nobody looks.
    """

    def __init__(self, w: int, class_count: int) -> None:
        self._w = w
        self._quiet: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
        self._waiting = 0
        self.full = self.hits = self.counted = np.zeros(0, dtype=bool)
        """Flagged under the full rule; under the rule that was in force; by the counts rule of that."""
        self.ratio = np.zeros(0, dtype=np.float32)  # to the limit of the rule in force; 0 where nothing was near it
        self.t_ns = self.packets = self.bytes = np.zeros(0, dtype=np.int64)  # what the row stands for: shed ones, too
        self.classes, self.looks = (
            np.zeros((0, class_count)),
            np.zeros((0, len(PROFILE_FIELDS))),
        )  # of flagged rows, else 0

    def quiet(self, t_ns: NDArray[np.int64], packets: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        """The newest rows, at most ``w``, of some that nothing flagged."""
        self._quiet.append((t_ns, packets, sizes))
        self._waiting += len(t_ns)
        while self._waiting - len(self._quiet[0][0]) >= self._w:
            self._waiting -= len(self._quiet.pop(0)[0])

    def settle(self) -> None:
        """Put in what waits, before somebody looks."""
        if not self._quiet:
            return
        t_ns, packets, sizes = (np.concatenate(part) for part in zip(*self._quiet, strict=True))
        self._quiet, self._waiting, n = [], 0, len(t_ns)
        no = np.zeros(n, dtype=bool)
        classes, looks = np.zeros((n, self.classes.shape[1])), np.zeros((n, self.looks.shape[1]))
        self.add(no, no, no, np.zeros(n, dtype=np.float32), t_ns, packets, sizes, classes, looks)

    def add(self, *rows: NDArray[Any]) -> None:
        """Rows, field by field."""
        for name, new in zip(_WINDOW, rows, strict=True):
            joined = np.concatenate([getattr(self, name), new[-self._w :]])
            setattr(self, name, joined[-self._w :].copy() if len(joined) > self._w else joined)


_WINDOW = ("full", "hits", "counted", "ratio", "t_ns", "packets", "bytes", "classes", "looks")


@dataclass
class _Subject:
    """Vote state of one device or victim."""

    first_ns: int
    class_count: int
    window: "_Window"
    flagged: NDArray[Any] | None = None  # the last classified row (1,) of ROW_META
    opened: NDArray[np.int64] = field(init=False)  # (time, flags) of the last rows that opened a peer or socket
    alarm: bool = False
    alarm_first_ns: int = 0
    emitted_ns: int = 0
    pending: "_Vote | None" = None  # the newest vote, not told yet
    count: int = 0
    packets: int = 0
    bytes: int = 0
    class_sum: NDArray[np.float64] = field(init=False)
    looks_sum: NDArray[np.float64] = field(init=False)
    peak: float = 0.0  # highest packet weight (λ = 1) of a flagged row of the newest alarm, up to the last second
    peak_now: float = 0.0  # the same of this second
    aftermath: bool = False
    last_vote_ns: int = 0
    newest: tuple[int, NDArray[np.float64]] = field(init=False)  # time and COUNT_COLUMNS of the last row
    second: int = 0  # of packet time, in an aftermath
    own: "device_limits.DeviceLimits | None" = None  # with ``learn``
    minute: int = 0  # of packet time, with ``learn``
    tally: NDArray[np.float64] = field(init=False)  # its own COUNT_COLUMNS, as of ``tally_ns``
    tally_ns: int = 0
    tallied_ns: int = 0  # the latest row in it
    # COUNT_COLUMNS of the last rows of past seconds, back to `FRESH_S` ago, and of one in ten, back to `MEMORY_S` ago
    snapshots: list[tuple[int, NDArray[np.float64]]] = field(default_factory=list)
    older: list[tuple[int, NDArray[np.float64]]] = field(default_factory=list)
    shed_packets: int = 0  # since the last row that was judged
    shed_bytes: int = 0

    def __post_init__(self) -> None:
        self.opened = np.zeros((0, 2), dtype=np.int64)
        self.class_sum = np.zeros(self.class_count)
        self.looks_sum = np.zeros(len(PROFILE_FIELDS))
        self.newest = self.first_ns, np.zeros(len(COUNT_COLUMNS))
        self.tally = np.zeros(len(COUNT_COLUMNS))

    def onset(self, column: int, bound: float, after_ns: int) -> int | None:
        """Since when the count of ``column`` grows towards its ``bound``: a slow scan needs a minute to get there.

        The change time of Page's CUSUM (1954): where what was opened after ``after_ns``, less what the rate that just
        keeps the count at its bound would have opened, was lowest.
        """
        t_ns, flags = self.opened.T
        kind = features.NEW_PEER if _COUNTS_PEERS[column] else features.NEW_SOCKET
        times = t_ns[(t_ns > after_ns) & (flags & kind != 0)]
        if not len(times):
            return None
        rate = bound * _COUNT_DECAY[column] * np.log(2.0)  # a second
        before = np.arange(len(times)) - rate * ((times - times[0]) / _S)
        return int(times[len(times) - 1 - int(np.argmin(before[::-1]))])

    def end_aftermath(self) -> None:
        """Judge it by the full rule again, and forget what was old."""
        self.aftermath = False
        self.snapshots.clear()
        self.older.clear()

    def note_opened(self, t_ns: NDArray[np.int64], flags: NDArray[Any]) -> None:
        """Keep the times of those of some rows that opened something."""
        opens = flags & (features.NEW_PEER | features.NEW_SOCKET)
        if opens.any():
            new = np.stack([t_ns[opens != 0], opens[opens != 0]], axis=1).astype(np.int64)
            joined = np.concatenate([self.opened, new[-MAX_OPENED:]])
            self.opened = joined[-MAX_OPENED:].copy() if len(joined) > MAX_OPENED else joined

    def own_counts(self, t_ns: NDArray[np.int64], flags: NDArray[np.integer]) -> NDArray[np.float64]:
        """COUNT_COLUMNS of this subject's rows alone, (n, columns), for rows at ``t_ns`` with ``flags`` of ROW_META.

        Times are referred to whole multiples of `TALLY_S`, as rows that opened something reach them, and summed row by
        row, so that no rounding depends on where batches are cut.
        """
        opened = np.where(_COUNTS_PEERS, (flags & features.NEW_PEER)[:, None], (flags & features.NEW_SOCKET)[:, None])
        late = np.maximum.accumulate(np.maximum(t_ns, self.tallied_ns))
        self.tallied_ns = int(late[-1])
        opening = np.flatnonzero(opened.any(axis=1))
        counts = np.empty((len(t_ns), len(COUNT_COLUMNS)))
        spans = late[opening] // (TALLY_S * _S)
        cuts = [0, *opening[np.flatnonzero(np.diff(spans, prepend=-1))].tolist(), len(t_ns)]
        for at, end in itertools.pairwise(cuts):
            if at == end:
                continue
            if opened[at].any() and (start := int(late[at]) // (TALLY_S * _S) * TALLY_S * _S) > self.tally_ns:
                self.tally *= np.exp2(-_COUNT_DECAY * ((start - self.tally_ns) / _S))
                self.tally_ns = start
            since = (late[at:end] - self.tally_ns)[:, None] / _S
            with np.errstate(over="ignore"):  # long after the last one opened: all of it is decayed away
                new = np.where(opened[at:end] != 0, np.exp2(_COUNT_DECAY * since), 0.0)
            sums = np.cumsum(np.concatenate([self.tally[None], new]), axis=0)[1:]
            self.tally = sums[-1].copy()
            counts[at:end] = sums * np.exp2(-_COUNT_DECAY * since)
        return counts

    def judged(self, chosen: NDArray[np.bool_], sizes: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Numbers (m,) of the ``chosen`` rows, and how many packets and bytes each stands for: its own and those of the
        rows before it that were not judged."""
        kept = np.flatnonzero(chosen)
        if len(kept) == len(chosen) and not self.shed_packets:
            return kept, np.ones(len(kept), dtype=np.int64), sizes
        through = np.cumsum(sizes)
        packets, total = np.diff(kept, prepend=-1), np.diff(through[kept], prepend=0)
        last = int(kept[-1]) if len(kept) else -1
        rest = len(chosen) - 1 - last, int(through[-1] - (through[last] if len(kept) else 0))
        if len(kept):
            packets[0] += self.shed_packets
            total[0] += self.shed_bytes
            self.shed_packets, self.shed_bytes = rest
        else:
            self.shed_packets, self.shed_bytes = self.shed_packets + rest[0], self.shed_bytes + rest[1]
        return kept, packets, total


class Detector:
    """Rows in, detections out, for one bundle.

    With ``learn`` every device gets limits of its own from its traffic here: True keeps what is learnt in the detector;
    a function gives a device's `device_limits.DeviceLimits` for its MAC and the steady time it began at, and keeps it.

    ``max_rows_per_s`` bounds how many rows a second of packet time are scored; which, is `kernel/senders.c`'s business.
    Rows beyond it are judged by the counts rule alone, and take part in a vote only where that flags them.

    BundleError when the bundle's schema cannot occur in live traffic; `runtime.ModelError` when a model does not load.
    """

    def __init__(
        self,
        bundle: Bundle,
        networks: Sequence[str] = PRIVATE_NETWORKS,
        *,
        learn: bool | Callable[[int, int], device_limits.DeviceLimits] = False,
        max_rows_per_s: float | None = None,
    ):
        manifest = bundle.manifest
        self._learn = self._new_own if learn is True else learn
        if cols.COMPAT in manifest.schemas:
            raise BundleError(
                f"{bundle.path}: trained on {cols.COMPAT}, whose jitter columns hold the date; live or replayed "
                f"traffic needs {cols.CLEAN}, or a model without the HH_jit columns"
            )
        decision = manifest.decision
        for name, limit in {"full": decision.full.limit, "fast": decision.fast.limit, **decision.counts}.items():
            if not limit > 0:  # 0 of 0 is no number, and nothing would ever be above it
                raise BundleError(f"{bundle.path}: the limit of {name} is {limit:g}, must be above 0")
        if unknown := {*decision.counts, *decision.warmup_counts} - set(COUNT_COLUMNS):
            raise BundleError(
                f"{bundle.path}: bounds {', '.join(sorted(unknown))}, which the counts rule does not know"
            )
        self._decision = decision
        self._columns = manifest.columns
        every = manifest.columns == cols.ALL_COLUMNS  # then no copy is needed to take them
        self._at: Any = slice(None) if every else cols.indices(manifest.columns)
        self._scaler = bundle.scaler
        self._scorer = Scorer(Model(bundle.autoencoder), bundle.scaler, manifest.columns)
        self._classify = Model(bundle.classifier) if bundle.classifier else None
        self._classes = manifest.classes
        self._signatures = manifest.signatures
        self._normal = manifest.normal
        monitored = Networks.parse(networks)
        self._who = SenderTable(MAX_SUBJECTS, max_rows_per_s, monitored.v4, monitored.v6)
        self._score = self._scorer.of_rows()
        self._counts_at = np.array(cols.indices(COUNT_COLUMNS), dtype=np.uint32)
        self._bounds = np.array([decision.counts.get(c, np.inf) for c in COUNT_COLUMNS])
        self._warm_bounds = np.maximum(self._bounds, [decision.warmup_counts.get(c, 0.0) for c in COUNT_COLUMNS])
        self._ones = np.ones(decision.vote_w, dtype=np.int64)
        self._loudness_at = cols.indices(["device_L1_weight"])[0]
        self._clock = SteadyClock()
        self._subjects: OrderedDict[int | bytes, _Subject] = OrderedDict()
        self._untold: dict[int | bytes, _Subject] = {}
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
        """How much is scored: `all` rows, a `shared` budget of them, or `sparse`: fewer than one in ten.

        It gets worse with the second that was, and better after ten that were.
        """
        return self._who.step

    def observe(self, rows: Rows) -> list[Detection]:
        """Score ``rows`` (in packet order) and return the votes they cause, in packet order."""
        if not len(rows):
            return []
        scored = self._scored(rows)
        routes, index = scored.routes, scored.routes.order
        found: list[tuple[int, Detection]] = []
        starts = routes.starts.tolist()
        high = np.maximum(scored.scores * np.float32(1 / self._decision.full.limit), scored.highest)
        loudest = np.maximum.reduceat(high[index], routes.starts[:-1]).tolist()
        carried = np.logical_or.reduceat(routes.carries[index], routes.starts[:-1]).tolist()
        for group, key in enumerate(routes.keys):
            mine = index[starts[group] : starts[group + 1]]
            subject = self._subject(key, int(scored.t_ns[mine[0]]))
            calm = not subject.alarm and not subject.aftermath
            if calm and (isinstance(key, bytes) or carried[group]):
                calm = self._carried_calm(key, subject, scored, mine, high)
            elif calm:
                calm = loudest[group] <= _NEAR
            if calm:
                self._take_calm(key, subject, scored, mine)
                continue
            subject.window.settle()
            for piece in self._by_minute(key, subject, scored.t_ns, mine):
                batch = self._weigh(key, subject, scored, piece)
                at = 0
                while at < len(batch.index):  # cut where the rule in force or the alarm changes
                    at = self._advance(key, subject, batch, at, found)
            if subject.pending:
                self._untold[key] = subject
        self._tell_untold(int(scored.t_ns[-1]) - int(STALE_S * _S), found)
        found.sort(key=lambda told: told[0])
        return [detection for _, detection in found]

    def _scored(self, rows: Rows) -> "_Scored":
        """Who sent what, and the score of what may be scored."""
        t_ns = self._clock.each(rows.meta["t_ns"])
        self.counters["clock_steps"] = self._clock.steps
        rows = Rows(np.ascontiguousarray(rows.values, dtype=np.float32), rows.meta)
        routes = self._who.route(rows.meta, t_ns)
        self.counters |= self._who.counts()
        flags, sizes = np.ascontiguousarray(rows.meta["flags"]), rows.meta["length"].astype(np.int64)
        opens = flags & (features.NEW_PEER | features.NEW_SOCKET) != 0
        highest = features.highest_ratios(rows.values, self._counts_at, self._bounds)
        scores = np.zeros(len(rows), dtype=np.float32)
        every = bool(routes.chosen.all())
        picked = range(len(rows)) if every else np.flatnonzero(routes.chosen)
        for at in range(0, len(picked), AT_ONCE):
            part: Any = slice(at, at + AT_ONCE) if every else picked[at : at + AT_ONCE]
            scores[part] = self._score(rows.values[part], routes.carries[part])
        return _Scored(rows, t_ns, flags, opens, sizes, routes, every, scores, highest)

    def _carried_calm(
        self, key: int | bytes, subject: _Subject, scored: "_Scored", index: NDArray[np.intp], high: NDArray[np.float64]
    ) -> bool:
        """Whether a router's or a victim's rows are all far from a limit; its own counts are then taken in.

        The counts of the sender are not its own: ``high`` (n,) has them.
        """
        shared = np.ones(len(index), dtype=bool) if isinstance(key, bytes) else scored.routes.carries[index]
        own = high[index[~shared]]
        if scored.scores[index].max() > self._decision.full.limit * _NEAR or own.max(initial=0.0) > _NEAR:
            return False
        at = index[shared]
        if len(at):
            counts = self._calm_counts(subject, scored.t_ns[at], scored.flags[at], not scored.every)
            if counts is None:
                return False
            scored.highest[at] = counts
        return True

    def _take_calm(self, key: int | bytes, subject: _Subject, scored: "_Scored", index: NDArray[np.intp]) -> None:
        """Take in rows of a subject of which none comes near a limit: most are, and little is kept of them."""
        if self._learn and isinstance(key, int):
            self._learn_calm(key, subject, scored, index)
        if scored.every and not subject.shed_packets:
            kept, newest = index, index[-self._decision.vote_w :]
            packets, sizes = self._ones[: len(newest)], scored.sizes[newest]
        else:
            judged, packets, sizes = subject.judged(scored.routes.chosen[index], scored.sizes[index])
            kept = index[judged]
            newest = kept[-self._decision.vote_w :]
            packets, sizes = packets[-len(newest) :].copy(), sizes[-len(newest) :].copy()
        if scored.opens[kept].any():
            subject.note_opened(scored.t_ns[kept], scored.flags[kept])
        if len(newest):
            subject.window.quiet(scored.t_ns[newest], packets, sizes)

    def _learn_calm(self, key: int | bytes, subject: _Subject, scored: "_Scored", index: NDArray[np.intp]) -> None:
        """What a device's limits learn of rows of which none is flagged."""
        for piece in self._by_minute(key, subject, scored.t_ns, index):
            own, judged = subject.own, piece if scored.every else piece[scored.routes.chosen[piece]]
            assert own is not None
            in_units = scored.scores[judged] / self._decision.full.limit
            at_most = own.see(in_units, scored.highest[judged], np.zeros(len(judged), dtype=bool))
            if own.sample and not scored.routes.carries[piece].any():  # of a router's rows some columns are not its own
                own.sample.see(scored.rows.values, scored.t_ns, judged, in_units, at_most)
            own.judged += len(piece) if own.learnt else 0

    def _calm_counts(
        self, subject: _Subject, t_ns: NDArray[np.int64], flags: NDArray[Any], every: bool
    ) -> NDArray[np.float64] | None:
        """A subject's own counts in these rows, the highest of each row in units of its bound, (n,); None, and nothing
        of them is taken in, where one reaches its bound.

        Unless ``every`` row is looked at, those have 0 that cannot be the highest of a minute: a count is highest
        where something is opened, or where the minute begins.
        """
        late = np.maximum.accumulate(np.maximum(t_ns, subject.tallied_ns))
        looked = flags & (features.NEW_PEER | features.NEW_SOCKET) != 0
        looked[0] = True
        if late[0] // device_limits.MINUTE_NS != late[-1] // device_limits.MINUTE_NS:
            looked[1:] |= np.diff(late // device_limits.MINUTE_NS) != 0
        looked |= every
        before = subject.tally.copy(), subject.tally_ns, subject.tallied_ns
        highest = np.zeros(len(t_ns))
        highest[looked] = (subject.own_counts(late[looked], flags[looked]) / self._bounds).max(axis=1)
        subject.tallied_ns = int(late[-1])
        if highest.max() <= _NEAR:
            return highest
        subject.tally, subject.tally_ns, subject.tallied_ns = before
        return None

    def tick(self, t_ns: int) -> list[Detection]:
        """The votes that are due at packet time ``t_ns`` though no packet came."""
        found: list[tuple[int, Detection]] = []
        self._tell_untold(t_ns + self._clock.offset_ns - int(STALE_S * _S), found)
        found.sort(key=lambda told: told[0])
        return [detection for _, detection in found]

    def finish(self) -> list[Detection]:
        """The votes not told yet, when no more rows will come."""
        found: list[tuple[int, Detection]] = []
        self._tell_untold(None, found)
        found.sort(key=lambda told: told[0])
        return [detection for _, detection in found]

    def _tell_untold(self, until_ns: int | None, found: list[tuple[int, Detection]]) -> None:
        """Votes that are not newer than ``until_ns`` (None: all) and after which nothing came that told them."""
        for key, subject in list(self._untold.items()):
            if subject.pending and until_ns is not None and subject.pending.t_ns > until_ns:
                continue
            if subject.pending:
                self._tell(key, subject, found)
            del self._untold[key]

    # -- who --

    def _subject(self, key: int | bytes, t_ns: int) -> _Subject:
        if key not in self._subjects:
            if len(self._subjects) >= MAX_SUBJECTS:
                self._subjects.popitem(last=False)
                self.counters["subjects_evicted"] += 1
            window = _Window(self._decision.vote_w, len(self._classes))
            self._subjects[key] = _Subject(t_ns, len(self._classes), window)
        self._subjects.move_to_end(key)
        return self._subjects[key]

    # -- what --

    def own(self, mac: int) -> device_limits.DeviceLimits | None:
        """What was learnt of a device here; None without ``learn`` or of a device not seen."""
        subject = self._subjects.get(mac)
        return subject.own if subject else None

    def vote(self, values: NDArray[Any]) -> float:
        """The highest vote of a few neighbouring rows of one device (n, 140), in units of the limit of the score."""
        k, w = self._decision.vote_k, self._decision.vote_w
        if len(values) < w:  # as many of those that are there
            k, w = -(-k * len(values) // w), len(values)
        scores = self._score(np.ascontiguousarray(values, dtype=np.float32), np.zeros(len(values), dtype=bool))
        return float(vote_statistic(scores, k, w).max(initial=0.0)) / self._decision.full.limit

    def _new_own(self, _mac: int, t_ns: int) -> device_limits.DeviceLimits:
        rule = self._decision
        return device_limits.DeviceLimits(
            t_ns, rule.vote_margin, rule.vote_k, rule.vote_w, start=rule.warmup_score_factor
        )

    def _by_minute(
        self, key: int | bytes, subject: _Subject, t_ns: NDArray[np.int64], index: NDArray[np.intp]
    ) -> Iterator[NDArray[np.intp]]:
        """A device's rows cut at whole minutes of packet time: own limits change only there. A victim's as they are."""
        if not self._learn or isinstance(key, bytes):  # a victim is told by what others do to it
            yield index
            return
        if subject.own is None:
            subject.own = self._learn(key, subject.first_ns)
        if subject.own.anew:  # somebody said that the device is well: nothing that it did before counts
            subject.own.anew = subject.alarm = False
            subject.window.settle()
            subject.window.full = subject.window.hits = subject.window.counted = np.zeros_like(subject.window.full)
            subject.end_aftermath()
        minutes = np.maximum.accumulate(np.maximum(t_ns[index] // device_limits.MINUTE_NS, subject.minute))
        if minutes[-1] == subject.minute:
            yield index
            return
        for piece in np.split(index, np.flatnonzero(np.diff(minutes)) + 1):
            minute = max(int(t_ns[piece].max()) // device_limits.MINUTE_NS, subject.minute)
            if minute > subject.minute:
                if subject.minute:
                    alarm = subject.alarm or subject.last_vote_ns >= subject.minute * device_limits.MINUTE_NS
                    during: Any = "alarm" if alarm else "aftermath" if subject.aftermath else ""
                    self._name_odd(subject.own)
                    subject.own.end_minute((subject.minute + 1) * device_limits.MINUTE_NS, during)
                subject.minute = minute
            yield piece

    def _look_at_odd(self, own: device_limits.DeviceLimits, odd: NDArray[np.intp], rows: Rows) -> None:
        """Classify what a device that still learns does above the shared limit, the first rows of each minute."""
        if own.learnt or self._classify is None or own.odd >= ODD_ROWS or not len(odd):
            return
        odd = odd[: ODD_ROWS - own.odd]
        own.odd += len(odd)
        z = self._scaler.z(rows.values[odd][:, self._at])
        found, seen = (
            self._classify(self._scaler.network_input(z)).astype(np.float64),
            classify.packet_profile(rows.meta[odd]),
        )
        if not len(own.class_sum):
            own.class_sum, own.looks_sum = np.zeros(found.shape[1]), np.zeros(seen.shape[1])
        own.class_sum = np.concatenate([own.class_sum[None], found]).sum(axis=0)
        own.looks_sum = np.concatenate([own.looks_sum[None], seen]).sum(axis=0)

    def _name_odd(self, own: device_limits.DeviceLimits) -> None:
        """Tell the device's learning what those rows look like."""
        rows = float(own.class_sum.sum())  # the probabilities of a row sum to 1
        if own.learnt or rows < self._decision.vote_k:
            return
        name, probability = classify.name(
            self._classes, own.class_sum / rows, own.looks_sum / rows, rows, self._signatures, self._decision.reject
        )
        own.looks_like = "" if probability is None else name

    def _weigh(
        self,
        key: int | bytes,
        subject: _Subject,
        scored: "_Scored",
        index: NDArray[np.intp],
    ) -> "_Batch":
        """The full rule on one subject's rows, and those of them that are judged."""
        decision = self._decision
        rows, routes = scored.rows, scored.routes
        score, flags, times = scored.scores[index], scored.flags[index], scored.t_ns[index]
        shared = np.ones(len(index), dtype=bool) if isinstance(key, bytes) else routes.carries[index]
        counts = np.empty((len(index), len(COUNT_COLUMNS)))
        if shared.any():  # what a router sends of its own is not judged by what it carries
            counts[shared] = subject.own_counts(times[shared], flags[shared])
        if not shared.all():
            counts[~shared] = rows.values[index[~shared, None], self._counts_at]
        warm = times - subject.first_ns < decision.warmup_s * _S
        own_score, own_counts = 1.0, 1.0
        if subject.own is not None:
            own_score, own_counts = subject.own.factors()
        bounds = own_counts * np.where(warm[:, None], self._warm_bounds, self._bounds)
        strict = np.where(warm, max(decision.warmup_score_factor, own_score), own_score)
        score_ratio = score / (decision.full.limit * strict)
        count_ratio = counts / bounds
        counted = scored.opens[index] if isinstance(key, bytes) else np.ones(len(index), dtype=bool)
        full = (np.maximum(score_ratio, count_ratio.max(axis=1)) > 1.0) & counted
        self.counters["flagged"] += int(full.sum())
        chosen = routes.chosen[index]
        if subject.own is not None:
            in_units = score / decision.full.limit
            at_most = subject.own.see(in_units[chosen], (counts / self._bounds).max(axis=1)[chosen], full[chosen])
            if subject.own.sample and not shared.any():  # of a router's rows some columns are not its own
                calm = chosen & ~full
                subject.own.sample.see(rows.values, scored.t_ns, index[calm], in_units[calm], at_most)
            self._look_at_odd(subject.own, index[chosen & (in_units > 1.0) & ~full], rows)
            if subject.own.learnt:
                subject.own.judged += len(full)
                subject.own.flagged += int(full.sum())
        kept, packets, total = subject.judged(chosen | full, scored.sizes[index])
        at = index[kept]
        return _Batch(
            scored,
            at,
            times[kept],
            flags[kept],
            counts[kept],
            bounds[kept],
            score_ratio[kept],
            count_ratio[kept],
            counted[kept],
            full[kept],
            strict[kept],
            rows.values[at, self._loudness_at].astype(np.float64),
            chosen[kept],
            packets,
            total,
        )

    def _advance(
        self, key: int | bytes, subject: _Subject, batch: "_Batch", at: int, found: list[tuple[int, Detection]]
    ) -> int:
        """Take in rows from ``at`` up to where something changes; returns the row after the last one taken."""
        decision = self._decision
        end = len(batch.index)
        t_ns = batch.t_ns
        if subject.aftermath and t_ns[at] // _S > subject.second:
            self._next_second(key, subject, batch, at, found)
        if fast := subject.aftermath:
            limit = decision.fast.limit
            # one reference for the counts per second of packet time, so that a flood is judged in whole arrays
            second = t_ns[at] // _S
            end = at + 1 + int(np.argmax(np.append(t_ns[at + 1 :] // _S != second, True)))
            score_ratio, count_ratios = self._what_is_new(subject, batch, at, end)
            count_ratio = count_ratios.max(axis=1)
            hits = (np.maximum(score_ratio, count_ratio) > 1.0) & batch.counted[at:end]
        else:
            limit = decision.full.limit
            score_ratio, count_ratios = batch.score_ratio[at:end], batch.count_ratio[at:end]
            count_ratio = count_ratios.max(axis=1)
            hits = batch.full[at:end]

        counted = hits & (count_ratio > 1.0)
        flagged = _in_window(subject.window.hits, hits, decision.vote_w)
        by_count = _in_window(subject.window.counted, counted, decision.vote_w)
        if not subject.alarm:
            changes = (flagged >= decision.vote_k) | (by_count >= decision.count_votes)
            over = np.zeros(len(hits), dtype=bool)
        else:
            over = (flagged < self._clear) & (by_count < self._clear_counts)
            changes = over | (hits & (t_ns[at:end] >= subject.emitted_ns + _S))
        if changes.any():
            end = at + int(np.argmax(changes)) + 1
        taken = end - at
        hits, counted = hits[:taken], counted[:taken]
        ratio = np.maximum(score_ratio, count_ratio)[:taken].astype(np.float32)

        def vote(i: int) -> _Vote:
            enough = int(subject.window.hits.sum()) >= decision.vote_k
            by_score = bool(score_ratio[i] >= count_ratio[i] if enough else count_ratio[i] <= 1.0)
            return self._vote(subject, batch, at + i, limit, fast, None if by_score else count_ratios[i])

        if subject.alarm:
            ended = bool(over[taken - 1])
            told = bool(changes.any()) and not ended
            votes = np.flatnonzero(hits)
            earlier = votes[:-1] if told else votes
            done = 0
            if len(earlier):
                done = int(earlier[-1]) + 1
                self._remember(subject, batch, at, at + done, hits[:done], counted[:done], ratio[:done])
                subject.pending = vote(done - 1)
            if told and subject.pending and t_ns[end - 1] - subject.pending.t_ns >= STALE_S * _S:
                self._tell(key, subject, found)
            self._remember(subject, batch, at + done, end, hits[done:], counted[done:], ratio[done:])
            if told:
                subject.pending = vote(taken - 1)
            if (told or ended) and subject.pending:
                self._tell(key, subject, found)
            if ended:
                subject.alarm = False
            return end
        self._remember(subject, batch, at, end, hits, counted, ratio)
        if changes.any():
            past_ns = subject.last_vote_ns
            self._begin(subject, batch, end - 1)
            subject.pending = vote(taken - 1)
            if (count_at := subject.pending.count_at) is not None:
                onset = subject.onset(count_at[0], subject.pending.limit, past_ns)
                if onset is not None:
                    subject.alarm_first_ns = min(subject.alarm_first_ns, onset)
            self._tell(key, subject, found)
        return end

    def _next_second(
        self, key: int | bytes, subject: _Subject, batch: "_Batch", at: int, found: list[tuple[int, Detection]]
    ) -> None:
        """What changes after an attack only from one second to the next, wherever batches are cut."""
        t_ns = int(batch.t_ns[at])
        quiet_s = (t_ns - subject.last_vote_ns) / _S
        if subject.alarm and quiet_s > SILENCE_S:
            if subject.pending:
                self._tell(key, subject, found)
            subject.alarm = False
            subject.window.hits = subject.window.counted = np.zeros_like(
                subject.window.hits
            )  # what comes now is not the same attack
        if not subject.alarm and quiet_s > AFTERMATH_S and int(subject.window.full.sum()) < self._clear_counts:
            subject.end_aftermath()
            return
        subject.second = t_ns // _S
        subject.snapshots.append(subject.newest)
        if (subject.newest[0] - subject.older[-1][0]) / _S >= FRESH_S:
            subject.older.append(subject.newest)
        subject.peak = max(subject.peak, subject.peak_now)
        while len(subject.snapshots) > 1 and t_ns // _S - subject.snapshots[1][0] // _S >= FRESH_S:
            subject.snapshots.pop(0)
        while len(subject.older) > 1 and (t_ns - subject.older[1][0]) / _S >= MEMORY_S:
            subject.older.pop(0)

    @property
    def _clear(self) -> int:
        """Flagged rows of the window below which an alarm is over: half of what began it, so that it does not flap."""
        return (self._decision.vote_k + 1) // 2

    @property
    def _clear_counts(self) -> int:
        """The same for rows that the counts rule flagged."""
        return (self._decision.count_votes + 1) // 2

    def _what_is_new(
        self, subject: _Subject, batch: "_Batch", at: int, end: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The rule after an attack, for rows of one second: fast columns, counts beyond what is left of old ones."""
        t_ns = batch.t_ns[at:end]
        fresh = _grown(batch.counts[at:end], t_ns, subject.snapshots[0])
        # what goes on, and not what the alarm began with: the long growth, as far as the last seconds bear it out
        grown = _grown(batch.counts[at:end], t_ns, subject.older[0])
        fresh = np.where(_LONG, np.minimum(grown, fresh * (MEMORY_S / FRESH_S)), fresh)
        score_ratio, chosen = np.zeros(end - at), batch.chosen[at:end]
        fast = self._scorer.fast(self._values(batch, at, chosen)) if chosen.any() else np.zeros(0)
        score_ratio[chosen] = fast / (self._decision.fast.limit * batch.strict[at:end][chosen])
        loud = batch.loudness[at:end] >= LOUD * subject.peak
        score_ratio = np.maximum(score_ratio, np.where(loud, batch.score_ratio[at:end], 0.0))
        return score_ratio, fresh / batch.bounds[at:end]

    def _remember(
        self,
        subject: _Subject,
        batch: "_Batch",
        at: int,
        end: int,
        hits: NDArray[np.bool_],
        counted: NDArray[np.bool_],
        ratio: NDArray[np.float32],
    ) -> None:
        """Append rows to the vote window and, in an alarm, to its totals."""
        if at == end:
            return
        subject.newest = int(batch.t_ns[end - 1]), batch.counts[end - 1].copy()
        subject.note_opened(batch.t_ns[at:end], batch.flags[at:end])
        probabilities = np.zeros((end - at, len(self._classes)))
        looks = np.zeros((end - at, len(PROFILE_FIELDS)))
        told = hits & batch.chosen[at:end]
        if self._classify is not None and told.any():
            z, meta = self._scaler.z(self._values(batch, at, told)), batch.scored.rows.meta[batch.index[at:end][told]]
            probabilities[told] = self._classify(self._scaler.network_input(z))
            looks[told] = classify.packet_profile(meta, subject.flagged)
            subject.flagged = meta[-1:].copy()
        packets, total = batch.packets[at:end], batch.bytes[at:end]
        subject.window.add(
            *(batch.full[at:end], hits, counted, ratio, batch.t_ns[at:end], packets, total, probabilities, looks)
        )
        if subject.alarm:
            subject.count += int(hits.sum())
            subject.packets += int(packets.sum())
            subject.bytes += int(total.sum())
            # row after row, so that no rounding depends on where batches are cut
            subject.class_sum = np.concatenate([subject.class_sum[None], probabilities[told]]).sum(axis=0)
            subject.looks_sum = np.concatenate([subject.looks_sum[None], looks[told]]).sum(axis=0)
            subject.peak_now = max(subject.peak_now, float(batch.loudness[at:end][hits].max(initial=0.0)))

    def _values(self, batch: "_Batch", at: int, which: NDArray[np.bool_]) -> NDArray[np.float32]:
        """The model's columns of some of the rows from ``at`` on, (m, k)."""
        values: NDArray[np.float32] = batch.scored.rows.values[batch.index[at : at + len(which)][which]][:, self._at]
        return values

    def _begin(self, subject: _Subject, batch: "_Batch", row: int) -> None:
        """An alarm begins with the window that voted for it, from its first flagged row after any silence on."""
        window = subject.window
        hits = np.flatnonzero(window.hits)
        after_silence = np.diff(window.t_ns[hits], prepend=window.t_ns[hits[0]]) > SILENCE_S * _S
        first = int(hits[np.flatnonzero(after_silence)[-1] if after_silence.any() else 0])
        subject.alarm = True
        subject.peak, subject.peak_now = float(batch.loudness[row]), 0.0
        subject.alarm_first_ns = int(window.t_ns[first])
        subject.count = int(window.hits[first:].sum())
        subject.packets = int(window.packets[first:].sum())
        subject.bytes = int(window.bytes[first:].sum())
        subject.class_sum, subject.looks_sum = window.classes.sum(axis=0), window.looks.sum(axis=0)
        if not subject.aftermath:
            subject.aftermath = True
            subject.second = int(batch.t_ns[row]) // _S
            # nothing is old yet: what made this alarm is all new
            subject.snapshots.append((int(batch.t_ns[row]), np.zeros(len(COUNT_COLUMNS))))
            subject.older.append(subject.snapshots[0])

    # -- telling --

    def _vote(
        self,
        subject: _Subject,
        batch: "_Batch",
        row: int,
        limit: float,
        fast: bool,
        counts: NDArray[np.float64] | None,
    ) -> "_Vote":
        """What the subject's newest row, which voted, says of the alarm; later rows do not change it.

        ``counts`` are the ratios of the counts to their bounds where one of them decided, None where the score did.
        """
        subject.last_vote_ns = int(batch.t_ns[row])
        enough = self._decision.vote_k if counts is None else self._decision.count_votes
        window = subject.window
        ranked = np.sort(window.ratio)[::-1]
        statistic = float(ranked[min(enough, int(window.hits.sum())) - 1])
        count = None if counts is None else int(np.argmax(counts))
        index = batch.index[row]
        return _Vote(
            subject.last_vote_ns,
            batch.scored.rows.meta[index].copy(),
            batch.scored.rows.values[index, self._at].copy(),
            address_text(batch.scored.routes.addresses[index], batch.scored.routes.versions[index]),
            limit * float(batch.strict[row]) if count is None else float(batch.bounds[row, count]),
            fast,
            None if counts is None or count is None else (count, float(counts[count] * batch.bounds[row, count])),
            statistic,
            # a count is a sum over many packets: it is as sure as it is far beyond its bound
            float(window.hits.mean() if counts is None else max(window.hits.mean(), 1.0 - 0.5 / max(statistic, 1.0))),
            max(float(window.t_ns[-1] - window.t_ns[0]) / _S, 1e-6),
            subject.count,
            subject.packets,
            subject.bytes,
            subject.class_sum,
            subject.looks_sum,
        )

    def _tell(self, key: int | bytes, subject: _Subject, found: list[tuple[int, Detection]]) -> None:
        """The subject's pending vote as a Detection."""
        vote = subject.pending
        assert vote is not None
        subject.pending = None
        subject.emitted_ns = vote.t_ns
        self.counters["votes"] += 1
        meta = vote.meta
        if vote.count_at is None:
            top = self._top(vote.values, vote.fast)
            why = explain.score(*top[0], self._normal.get(top[0][0], ()))
        else:
            column, count = vote.count_at
            top = ((COUNT_COLUMNS[column], count),)
            why = explain.count(*top[0], vote.limit, int(meta["dport"]), self._normal.get(top[0][0], ()))
        name, confidence = self._name(vote)
        victim = isinstance(key, bytes)
        source = address_text(meta["src"], meta["ip_version"])
        target = address_text(meta["dst"], meta["ip_version"])
        t_ns = int(meta["t_ns"])
        detection = Detection(
            t_ns=t_ns,
            first_ns=t_ns - max(vote.t_ns - subject.alarm_first_ns, 0),
            device_mac=int(meta["src_mac"]),
            device_ip=target if victim else vote.address or source,
            role="victim" if victim else "source",
            method="autoencoder" if vote.count_at is None else "counts",
            class_name=name,
            confidence=confidence,
            score=max(vote.statistic, 0.0) * vote.limit,
            threshold=vote.limit,
            window_s=vote.window_s,
            count=max(vote.count, 1),
            packets=vote.packets,
            bytes=vote.bytes,
            src_ip=source,
            src_port=int(meta["sport"]),
            dest_ip=target,
            dest_port=int(meta["dport"]),
            proto=_proto(meta),
            top_features=top,
            explanation=why[:200],
        )
        found.append((vote.t_ns, detection))

    def _name(self, vote: "_Vote") -> tuple[str, float]:
        """The class of all the alarm has flagged so far; `unknown` when the classifier does not stand for one."""
        if self._classify is None:
            return "anomaly", vote.share
        rows = max(float(vote.class_sum.sum()), 1e-9)  # the probabilities of a row sum to 1
        name, probability = classify.name(
            self._classes, vote.class_sum / rows, vote.looks_sum / rows, rows, self._signatures, self._decision.reject
        )
        return name, vote.share if probability is None else min(probability, 1.0)

    def _top(self, values: NDArray[Any], fast: bool) -> tuple[tuple[str, float], ...]:
        """A column of each statistic with the largest share of one row's error, with its value in its own unit.

        Under the ``fast`` rule the slow columns have no share: they were shown as normal.
        """
        named = explain.strongest(self._columns, self._scorer.shares(values, fast), EXPLAINED)
        return tuple((self._columns[i], _finite(float(values[i]))) for i in named)


@dataclass(frozen=True)
class _Vote:
    """A vote as of its row."""

    t_ns: int  # steady
    meta: NDArray[Any]  # copies, so that an untold vote does not hold its whole batch
    values: NDArray[Any]
    address: str  # the sender's own
    limit: float  # of the score or count that decided, under the rule in force
    fast: bool  # whether the rule of an aftermath was in force
    count_at: tuple[int, float] | None  # which of COUNT_COLUMNS decided, and what is new of it
    statistic: float  # k-th largest of the window's ratios to their limits
    share: float  # of the window's rows that are flagged; of a count, how far beyond its bound it is: 0.5 to 1
    window_s: float
    count: int
    packets: int
    bytes: int
    class_sum: NDArray[np.float64]
    looks_sum: NDArray[np.float64]


@dataclass(frozen=True)
class _Scored:
    """Everybody's rows of one `Detector.observe` call, and what is known of each whosever it is."""

    rows: Rows
    t_ns: NDArray[np.int64]  # steady
    flags: NDArray[np.uint16]  # of ROW_META
    opens: NDArray[np.bool_]  # a peer or a socket
    sizes: NDArray[np.int64]
    routes: Routes
    every: bool  # whether all may be scored
    scores: Array  # 0 of those that may not
    highest: NDArray[np.float64]  # of its subject's counts in units of their bounds: those of the sender, or its own


@dataclass(frozen=True)
class _Batch:
    """Those of one subject's rows of one `Detector.observe` call that are judged, under the full rule."""

    scored: "_Scored"
    index: NDArray[np.intp]  # which of those rows these are: (n,)
    t_ns: NDArray[np.int64]  # steady
    flags: NDArray[np.integer]
    counts: NDArray[np.float64]
    bounds: NDArray[np.float64]
    score_ratio: NDArray[np.float64]
    count_ratio: NDArray[np.float64]  # (n, COUNT_COLUMNS)
    counted: NDArray[np.bool_]
    full: NDArray[np.bool_]
    strict: NDArray[np.float64]  # factor of the limit of the score
    loudness: NDArray[np.float64]  # the sender's packet weight at λ = 1
    chosen: NDArray[np.bool_]  # scored; the others are here since the counts rule flagged them
    packets: NDArray[np.int64]  # that each row stands for, those that were not judged before it included
    bytes: NDArray[np.int64]


def _grown(
    counts: NDArray[np.float64], t_ns: NDArray[np.int64], reference: tuple[int, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """What of COUNT_COLUMNS (n, columns) is not left of the earlier ``reference``; of fast ones all."""
    then, old = reference
    new = counts.copy()
    new[:, _SLOW:] -= old[_SLOW:] * np.exp2(-_COUNT_DECAY[_SLOW:] * (np.maximum(t_ns - then, 0)[:, None] / _S))
    return new


def _in_window(past: NDArray[np.bool_], now: NDArray[np.bool_], w: int) -> NDArray[np.int64]:
    """For each row of ``now``, how many of the last ``w`` rows are set, those of ``past`` before it included."""
    window = np.cumsum(np.concatenate([[0], past, now]))
    high = np.arange(len(past) + 1, len(past) + 1 + len(now))
    return np.asarray(window[high] - window[np.maximum(high - w, 0)])


def _proto(meta: NDArray[Any]) -> str:
    """EVE's spelling of a row's protocol."""
    if meta["flags"] & features.ARP:
        return "ARP"
    if not meta["ip_version"]:
        return "ETHERNET"
    return protocol_name(int(meta["proto"]))


def _finite(value: float) -> float:
    """JSON knows no infinity."""
    return max(min(value, 3e38), -3e38)
