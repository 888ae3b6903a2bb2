"""`botwatch trainer evaluate`: a finished bundle, judged on captures or rows as it would judge live.

What ships is what is measured: the quantised models, the decision rule with its votes, episodes as they would be told.
Each attack is tried alone, by a device nobody has seen before, and as part of every healthy device's day, once the
device is known (`trainer.judge.inject`). Nothing measured here goes back into a model.
"""

import argparse
import hashlib
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.capture.features import Extractor
from edge_agent.capture.sources import CaptureError
from edge_agent.contract import bundle as bundles
from edge_agent.contract import captures, messages, settings
from edge_agent.contract.bundle import BENIGN, Bundle, BundleError
from edge_agent.contract.captures import Capture, mac_text
from edge_agent.contract.messages import Alert
from edge_agent.delivery.alerts import Alerter
from edge_agent.detection.checkins import CheckIns
from edge_agent.detection.detector import Detector
from edge_agent.progress import Progress
from trainer.judge import inject, runs
from trainer.judge.inject import AttackCapture, Frame, InjectError, InsideHost, S
from trainer.report.findings import Figure, Findings, Series, Table

if TYPE_CHECKING:
    from trainer.data.row_table import RowTable
    from trainer.judge.runs import RunFolder

PROG = "botwatch trainer evaluate"

BATCH = 4096
AT = 0.4
"""Where in a device's day an attack is put: its share of the day that has passed."""

AFTER_S = 150.0
"""Seconds of the day that follow an attack: an alert ends a minute after its last vote."""

HEAD_FRAMES = 60_000
"""Frames of the day before an attack: enough for every device of a home to be past its warm-up."""

RATES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
FLOOR_S = 60.0
FLOOR_FRAMES = 3000

BASE_RATE = 1e-4
"""Attacks per device-day at which precision is stated: one infected device in ten thousand, attacking daily."""


class EvaluateError(Exception):
    """Captures or rows that cannot be evaluated on; the message says why."""


@dataclass(frozen=True)
class Day:
    """A benign capture: what was told of it."""

    capture: str
    device: str
    generated: bool
    days: float
    packets: int
    flagged: int  # rows above a limit
    alerts: int  # episodes
    early: int  # those of them in the capture's first ten minutes
    learnt: int | None = None  # episodes with limits learnt on site, from when the device has learnt
    learnt_flagged: float | None = None  # share of rows flagged then
    learning: int | None = None  # episodes of an agent that learns, from its first packet on


@dataclass(frozen=True)
class AttackTrial:
    """An attack capture, alone (``device`` empty) or in a device's day: what was told of it."""

    capture: str
    label: str
    generated: bool
    expected: bool
    device: str
    packets: int | None  # of the attack until the first alert, None: none came
    ms: float | None
    said: str  # class in the episode's last message
    start_s: float | None  # told minus true, the same for the last vote
    end_s: float | None
    length_s: float  # true
    false_alerts: int  # episodes of others, or before the attack

    @property
    def found(self) -> bool:
        """Whether an alert named the attacker or the victim."""
        return self.packets is not None


@dataclass(frozen=True)
class Evaluation:
    """All that was tried with one bundle."""

    bundle: str  # SHA-256 of its manifest
    days: tuple[Day, ...]
    alone: tuple[AttackTrial, ...]
    injected: tuple[AttackTrial, ...]
    skipped: tuple[str, ...] = ()
    floor: dict[str, dict[float, bool]] = field(default_factory=dict)  # attack -> rate -> alerted within a minute
    device_days: float = 0.0
    learning: tuple[AttackTrial, ...] = ()  # attacks alone, met by an agent that has just begun to learn

    @property
    def false_alerts(self) -> int:
        """Episodes on benign captures."""
        return sum(day.alerts for day in self.days)


def bound(count: int, exposure: float, confidence: float = 0.95) -> float:
    """Upper bound of a Poisson rate of which ``count`` events were seen in ``exposure`` (exact, Garwood 1936).

    >>> round(bound(0, 1.0), 2)  # the rule of three
    3.0
    """
    from scipy.stats import chi2

    return float(chi2.ppf(confidence, 2 * (count + 1)) / 2 / exposure) if exposure > 0 else float("inf")


@dataclass(frozen=True)
class _Loaded:
    capture: Capture
    generated: bool
    frames: list[Frame]


class Judge:
    """Frames in, episodes out, by one bundle, as the agent tells them."""

    def __init__(self, bundle: Bundle, max_streams: int = 16_384):
        self._bundle, self._max_streams = bundle, max_streams

    def episodes(self, frames: Iterable[Frame], learn: bool = False) -> tuple[list[list[Alert]], Detector]:
        """The messages of each episode, first episode first, and the detector that judged."""
        extractor = Extractor(self._max_streams, seed=1)
        detector, checkins = Detector(self._bundle, learn=learn), CheckIns()
        model = messages.ModelInfo(self._bundle.manifest.version, self._bundle.sha256, self._bundle.manifest.generated)
        alerter = Alerter("evaluation", "", model, "0", rng=random.Random(1))  # ids, not secrets
        told: list[dict[str, Any]] = []
        batch: list[Frame] = []

        def judge() -> None:
            rows = extractor.push_frames(batch)
            for detection in [*detector.observe(rows), *checkins.observe(rows)]:
                told.extend(alerter.consider(detection))
            if len(rows):
                told.extend(alerter.tick(int(rows.meta["t_ns"][-1])))
            batch.clear()

        for frame in frames:
            batch.append(frame)
            if len(batch) == BATCH:
                judge()
        if batch:
            judge()
        for detection in detector.finish():
            told.extend(alerter.consider(detection))
        told.extend(alerter.finish())
        found: dict[str, list[Alert]] = {}
        for alert in map(Alert.read, told):
            found.setdefault(alert.id, []).append(alert)
        return list(found.values()), detector


def evaluate(
    bundle: Bundle,
    manifests: Sequence[tuple[captures.CaptureManifest, Path]],
    *,
    learn: bool = False,
    floor: bool = False,
    rates: Sequence[float] = RATES,
    most_pairs: int | None = None,
) -> Evaluation:
    """Try a bundle on manifests (each with the folder its files start from).

    ``learn`` also judges each benign capture, and each attack alone, by an agent that learns limits on site from their
    first packet on; ``floor`` sends each attack from the quietest
    device at every one of ``rates`` (packets/s). ``most_pairs`` bounds the devices an attack is put into.
    """
    judge = Judge(bundle)
    loaded, skipped = [], []
    for manifest, root in manifests:
        for capture in manifest.captures:
            try:
                loaded.append(_Loaded(capture, manifest.generated, inject.read(root / capture.file)))
            except InjectError as error:
                skipped.append(str(error))
    benign = [item for item in loaded if item.capture.label == BENIGN]
    attacks: list[tuple[_Loaded, AttackCapture]] = []
    for item in loaded:
        if item.capture.label != BENIGN:
            try:
                attacks.append((item, inject.attack(item.frames, item.capture)))
            except InjectError as error:
                skipped.append(str(error))
    homes = []
    for item in benign:
        if item.capture.mac is not None:
            try:
                homes.append((item, inject.host(item.frames, item.capture.mac, item.capture.file)))
            except InjectError as error:
                skipped.append(str(error))
    newest = {item.capture.device: (item, own) for item, own in homes}  # a manifest lists days in order
    places = list(newest.values())[:most_pairs]

    steps = (
        len(benign) + len(attacks) * (1 + learn + len(places)) + (len(attacks) * len(rates) if floor and places else 0)
    )
    with Progress("evaluating", steps) as progress:

        def step(text: str) -> None:
            progress.step(note=text)

        days = tuple(_day(judge, item, learn, step) for item in benign)
        alone = tuple(_alone(judge, item, source, step) for item, source in attacks)
        learning = tuple(_alone(judge, item, source, step, learn=True) for item, source in attacks if learn)
        injected = tuple(
            _injected(judge, item, source, place, own, step) for item, source in attacks for place, own in places
        )
        found: dict[str, dict[float, bool]] = {}
        if floor and places:
            quiet, own = min(places, key=lambda place: len(place[0].frames))
            for item, source in attacks:
                name = str(item.capture.file)
                found[name] = {rate: _at_rate(judge, source, quiet, own, rate, step) for rate in rates}
    device_days = sum(day.days for day in days)
    return Evaluation(bundle.sha256, days, alone, injected, tuple(skipped), found, device_days, learning)


def _day(judge: Judge, item: _Loaded, learn: bool, step: Any) -> Day:
    frames = item.frames
    episodes, detector = judge.episodes(frames)
    first, last = frames[0][0], max(frame[0] for frame in frames)
    counters = detector.counters
    learnt = share = learning = None
    if learn and item.capture.mac is not None:
        mac = captures.parse_mac(item.capture.mac)
        own_episodes, own_detector = judge.episodes(frames, learn=True)
        own, learning = own_detector.own(mac), len(own_episodes)
        if own is not None and own.learnt_ns is not None:
            learnt = sum(messages[0].t_ns >= own.learnt_ns for messages in own_episodes)
            share = own.flagged / own.judged if own.judged else None
    step(f"{item.capture.file}: {len(episodes)} false alerts")
    return Day(
        str(item.capture.file),
        item.capture.device,
        item.generated,
        (last - first) / S / 86_400,
        counters["scored"],
        counters["flagged"],
        len(episodes),
        sum(messages[0].t_ns < first + 600 * S for messages in episodes),
        learnt,
        share,
        learning,
    )


def _alone(judge: Judge, item: _Loaded, source: AttackCapture, step: Any, *, learn: bool = False) -> AttackTrial:
    episodes, _ = judge.episodes(item.frames, learn)
    step(f"{item.capture.file} alone{' while learning' if learn else ''}")
    return _trial(item, source, "", episodes, source.host, [source.frames[i][0] for i in source.sent()])


def _injected(
    judge: Judge, item: _Loaded, source: AttackCapture, place: _Loaded, own: InsideHost, step: Any
) -> AttackTrial:
    start = _start(place)
    moved = inject.carried(source, own, start)
    episodes, _ = judge.episodes(_around(place, start, moved))
    step(f"{item.capture.file} in {place.capture.device}")
    return _trial(item, source, place.capture.device, episodes, own, [moved[i][0] for i in source.sent()])


def _at_rate(judge: Judge, source: AttackCapture, place: _Loaded, own: InsideHost, rate: float, step: Any) -> bool:
    """Whether an attack at ``rate`` is told within a minute."""
    start = _start(place)
    moved = inject.carried(source, own, start, rate, min(FLOOR_FRAMES, max(1, int(rate * FLOOR_S))))
    episodes, _ = judge.episodes(_around(place, start, moved))
    step(f"{rate:g} packets/s in {place.capture.device}")
    return any(
        _blames(messages[0], own, source) and start <= messages[0].t_ns <= start + FLOOR_S * S for messages in episodes
    )


def _start(place: _Loaded) -> int:
    frames = place.frames
    return frames[0][0] + int((frames[-1][0] - frames[0][0]) * AT)


def _around(place: _Loaded, start: int, moved: Sequence[Frame]) -> Iterable[Frame]:
    """The day up to a while after the attack, with the attack in it."""
    end = moved[-1][0] + int(AFTER_S * S)
    before = [frame for frame in place.frames if frame[0] < start][-HEAD_FRAMES:]
    return inject.merged([*before, *(frame for frame in place.frames if start <= frame[0] <= end)], moved)


def _blames(alert: Alert, own: InsideHost, source: AttackCapture) -> bool:
    """Whether an alert is about ``own`` and, of check-ins, about their server: its other new hosts are no success."""
    if source.victim:
        return alert.role == "victim" and alert.device.ip == ".".join(map(str, own.ip))
    if source.server and alert.dest_ip != source.server:
        return False
    return alert.device.mac == mac_text(int.from_bytes(own.mac, "big"))


def _trial(
    item: _Loaded, source: AttackCapture, device: str, episodes: list[list[Alert]], own: InsideHost, sent: list[int]
) -> AttackTrial:
    first, last = sent[0], max(sent)
    hits = [e for e in episodes if _blames(e[0], own, source) and e[-1].last_ns >= first]
    hits = [e for e in hits if e[0].t_ns >= first]
    about = (str(item.capture.file), item.capture.label, item.generated, item.capture.expected, device)
    length = (last - first) / S
    false = len(episodes) - len(hits)
    if not hits:
        return AttackTrial(*about, None, None, "", None, None, length, false)
    told = hits[0]
    packets = int(np.searchsorted(np.sort(np.array(sent)), told[0].t_ns, side="right"))
    return AttackTrial(
        *about,
        max(packets, 1),
        (told[0].t_ns - first) / 1e6,
        told[-1].class_name,
        (told[0].first_ns - first) / S,
        (hits[-1][-1].last_ns - last) / S,
        length,
        false,
    )


# -- what it comes to ----------------------------------------------------------------------------------------------


def report(evaluation: Evaluation, command: str, base_rate: float = BASE_RATE) -> list[Findings]:
    """The evaluation as findings: false alerts, attacks, and the floor where it was measured."""
    generated = any(day.generated for day in evaluation.days) or any(
        trial.generated for trial in (*evaluation.alone, *evaluation.injected)
    )
    lead, tables, figures = [], [], []
    rate = None
    if evaluation.days:
        count, exposure = evaluation.false_alerts, evaluation.device_days
        rate = bound(count, exposure)
        lead.append(
            f"{count} false device alerts in {exposure:.2f} device-days of {len(evaluation.days)} benign captures: "
            f"at most {rate:.2f} a device-day with 95 % confidence ({7 * rate:.1f} a device-week)."
        )
        tables += _benign_tables(evaluation.days)
    for name, trials in (
        ("in a device's day", evaluation.injected),
        ("alone, cold start", evaluation.alone),
        ("alone, met by an agent that begins to learn", evaluation.learning),
    ):
        wanted = [trial for trial in trials if trial.expected]
        if not wanted:
            continue
        for kind in (False, True):
            of_kind = [trial for trial in wanted if trial.generated == kind]
            if of_kind:
                lead.append(_recall_sentence(f"{'Generated' if kind else 'Real'} attacks {name}", of_kind))
        tables.append(_attack_table(f"Attacks {name}", trials))
    injected = [trial for trial in evaluation.injected if trial.expected]
    if injected:
        worst = _worst_device(injected)
        if worst:
            lead.append(worst)
        tables.append(_times_table(injected))
        if rate is not None:
            recall = float(np.mean([trial.found for trial in injected]))
            observed = evaluation.false_alerts / evaluation.device_days if evaluation.device_days else 0.0
            at_bound = recall * base_rate / (recall * base_rate + rate) if recall else 0.0
            at_observed = recall * base_rate / (recall * base_rate + observed) if recall else 0.0
            lead.append(
                f"At one attack in {1 / base_rate:,.0f} device-days an alert is right in {at_observed:.1%} of cases at "
                f"the rate seen, in {at_bound:.2%} at the bound of that rate: more benign days would tighten it."
            )
    said = [trial for trial in (*evaluation.injected, *evaluation.alone) if trial.found]
    if said:
        figures.append(_confusion(said))
    limits = [
        "Captures are replays: nothing here was live, and an attack put into another device's day does not change "
        "what that device or its network would have done.",
        *(f"Skipped: {reason}" for reason in evaluation.skipped),
    ]
    if any(trial.generated for trial in (*evaluation.alone, *evaluation.injected)):
        limits.append(f"Generated attacks come from trainer/generate.py, SHA-256 {generator()[:16]}….")
    found = [
        Findings(
            "evaluation",
            "What the bundle finds, and when it cries wolf",
            command,
            generated,
            tuple(lead),
            (),
            tuple(tables),
            tuple(figures),
            tuple(limits),
        )
    ]
    if evaluation.floor:
        found.append(_floor(evaluation.floor, command, generated))
    return found


def generator() -> str:
    """SHA-256 of the traffic generator: figures on generated traffic are of one version of it."""
    return hashlib.sha256((Path(__file__).parents[1] / "generate.py").read_bytes()).hexdigest()


def _benign_tables(days: Sequence[Day]) -> list[Table]:
    devices = sorted({day.device for day in days})
    rows = []
    for device in devices:
        own = [day for day in days if day.device == device]
        exposure, count = sum(day.days for day in own), sum(day.alerts for day in own)
        packets = sum(day.packets for day in own)
        rows.append(
            (
                device,
                "generated" if own[0].generated else "real",
                len(own),
                round(exposure, 3),
                packets,
                count,
                sum(day.early for day in own),
                count / exposure if exposure else None,
                bound(count, exposure),
                sum(day.flagged for day in own) / packets if packets else None,
            )
        )
    rows.sort(key=lambda row: (-(row[7] or 0.0), -row[8]))
    columns = ("device", "traffic", "captures", "device-days", "packets", "false alerts", "in first 10 min")
    tables = [
        Table(
            "False device alerts, worst device first",
            (*columns, "per device-day", "95 % bound", "rows flagged"),
            tuple(rows),
            "Every capture starts cold. Alerts of any device in the capture count against it.",
        )
    ]
    shares = np.array([row[9] for row in rows if row[9] is not None], dtype=float)
    if len(shares) > 1 and shares.mean() > 0:
        tables.append(
            Table(
                "How evenly devices are treated: share of benign rows flagged",
                ("worst", "mean", "σ/μ", "max − min"),
                (
                    (
                        float(shares.max()),
                        float(shares.mean()),
                        float(shares.std() / shares.mean()),
                        float(np.ptp(shares)),
                    ),
                ),
            )
        )
    learning = [day for day in days if day.learning is not None]
    if learning:
        tables.append(
            Table(
                "By an agent that learns limits on site",
                ("capture", "alerts with shared limits", "alerts", "from when it has learnt", "rows flagged then"),
                tuple((day.capture, day.alerts, day.learning, day.learnt, day.learnt_flagged) for day in learning),
                "Learnt: 2,000 packets and a quarter of an hour, at the latest a day. A dash: the capture ends before.",
            )
        )
    return tables


def _recall_sentence(what: str, trials: Sequence[AttackTrial]) -> str:
    hits = [trial for trial in trials if trial.found]
    text = f"{what}: {len(hits)} of {len(trials)} alerted"
    if hits:
        packets = np.array([trial.packets for trial in hits])
        ms = np.array([trial.ms for trial in hits])
        text += (
            f"; packets to the alert: median {np.median(packets):.0f}, 95 % {np.quantile(packets, 0.95):.0f}, at most "
            f"{packets.max()}; ms: median {np.median(ms):,.0f}, 95 % {np.quantile(ms, 0.95):,.0f}"
        )
    return f"{text}."


def _worst_device(trials: Sequence[AttackTrial]) -> str:
    share = {
        device: float(np.mean([trial.found for trial in trials if trial.device == device]))
        for device in sorted({trial.device for trial in trials})
    }
    worst = min(share, key=lambda device: share[device])
    missed = sorted({Path(trial.capture).stem for trial in trials if trial.device == worst and not trial.found})
    text = f"Worst device: {worst}, {share[worst]:.0%} of the attacks put into its day are alerted"
    return f"{text}; missed: {', '.join(missed)}." if missed else f"{text}."


def _attack_table(title: str, trials: Sequence[AttackTrial]) -> Table:
    rows = []
    for capture in dict.fromkeys(trial.capture for trial in trials):
        own = [trial for trial in trials if trial.capture == capture]
        packets = [trial.packets for trial in own if trial.packets is not None]
        ms = [trial.ms for trial in own if trial.ms is not None]
        said = sorted({trial.said for trial in own if trial.said})
        rows.append(
            (
                capture,
                own[0].label,
                ("generated" if own[0].generated else "real") + ("" if own[0].expected else ", no goal"),
                f"{len(packets)}/{len(own)}",
                float(np.median(packets)) if packets else None,
                max(packets) if packets else None,
                float(np.median(ms)) if ms else None,
                max(ms) if ms else None,
                ", ".join(said) or None,
                sum(trial.false_alerts for trial in own),
            )
        )
    columns = ("capture", "attack", "traffic", "alerted", "packets, median", "packets, most", "ms, median", "ms, most")
    return Table(title, (*columns, "class told", "other alerts"), tuple(rows))


def _times_table(trials: Sequence[AttackTrial]) -> Table:
    """Whether episodes tell when an attack was."""
    rows = []
    for name, low, high in (
        ("up to 1 s", 0, 1),
        ("1 s to 1 min", 1, 60),
        ("1 to 30 min", 60, 1800),
        ("longer", 1800, 1e9),
    ):
        own = [t for t in trials if low <= t.length_s < high]
        hits = [t for t in own if t.found]
        starts = [abs(t.start_s) for t in hits if t.start_s is not None]
        ends = [abs(t.end_s) for t in hits if t.end_s is not None]
        if own:
            rows.append(
                (
                    name,
                    f"{len(hits)}/{len(own)}",
                    float(np.median(starts)) if starts else None,
                    max(starts, default=None),
                    float(np.median(ends)) if ends else None,
                    max(ends, default=None),
                )
            )
    columns = ("attack lasts", "alerted", "start off by, median s", "most s", "last vote off by, median s", "most s ")
    return Table("Start and end of attacks, as told and as they were", columns, tuple(rows))


def _confusion(trials: Sequence[AttackTrial]) -> Figure:
    said = sorted({trial.said for trial in trials})
    series = []
    for label in sorted({trial.label for trial in trials}):
        own = [trial for trial in trials if trial.label == label]
        series.append(Series(label, tuple(said), tuple(sum(t.said == name for t in own) / len(own) for name in said)))
    return Figure(
        "matrix",
        "Class told, by attack: share of episodes",
        tuple(series),
        "class in the last message",
        "label",
        note="Of the episodes that were alerted; recall of each class is on its own name.",
    )


def _floor(floor: dict[str, dict[float, bool]], command: str, generated: bool) -> Findings:
    rows, series, lead = [], [], []
    for name, by_rate in floor.items():
        rates = sorted(by_rate)
        lowest = None
        for rate in reversed(rates):
            if not by_rate[rate]:
                break
            lowest = rate
        rows.append((name, lowest, *("yes" if by_rate[rate] else "–" for rate in rates)))
        series.append(Series(Path(name).stem, tuple(rates), tuple(float(by_rate[rate]) for rate in rates)))
        lead.append(
            f"{Path(name).stem}: alerted within a minute from {lowest:g} packets/s on."
            if lowest is not None
            else f"{Path(name).stem}: not alerted within a minute at every rate up to {rates[-1]:g} packets/s."
        )
    rates = sorted(next(iter(floor.values())))
    note = f"Sent at an even rate from the quietest device, once it is known; at most {FLOOR_FRAMES:,} packets."
    return Findings(
        "floor",
        "The lowest rate that is seen",
        command,
        generated,
        tuple(lead),
        tables=(
            Table(
                "Alerted within a minute, by packets a second",
                ("attack", "from", *(f"{rate:g}" for rate in rates)),
                tuple(rows),
                note,
            ),
        ),
        figures=(
            Figure("lines", "Alerted within a minute", tuple(series), "attack packets a second", "alerted", log_x=True),
        ),
        limits=("One device and one moment of its day; a busier device hides more.",),
    )


# -- rows ----------------------------------------------------------------------------------------------------------


def rows(bundle: Bundle, table: "RowTable", command: str) -> Findings:
    """Row and vote figures of a bundle on a table of rows, which have no live context.

    Votes are over each capture's rows in their order; ValueError when the table lacks a column of the model.
    """
    from edge_agent.detection.calibrate import vote_statistic
    from edge_agent.detection.detector import Scorer
    from edge_agent.detection.runtime import Model

    manifest = bundle.manifest
    missing = [column for column in manifest.columns if column not in table.columns]
    if missing:
        raise ValueError(f"the rows have no column {missing[0]!r}, which the model needs")
    at = np.array([table.columns.index(column) for column in manifest.columns])
    scorer = Scorer(Model(bundle.autoencoder), bundle.scaler, manifest.columns)
    classify = Model(bundle.classifier) if bundle.classifier else None
    scores = np.empty(len(table), dtype=np.float32)
    guess = np.zeros(len(table), dtype=np.int64)
    for i in range(0, len(table), 65_536):
        values = table.values[i : i + 65_536][:, at]
        scores[i : i + 65_536] = scorer.full(values)
        if classify is not None:
            inputs = bundle.scaler.network_input(bundle.scaler.z(values))
            guess[i : i + 65_536] = classify(inputs).argmax(axis=1)
    rule = manifest.decision
    benign = np.array([label == BENIGN for label in table.labels])[table.label]
    above = scores > rule.full.tau
    voted = np.zeros(len(table), dtype=bool)
    group = (table.capture.astype(np.int64) * len(table.devices) + table.device) * len(table.labels) + table.label
    for code in np.unique(group):
        own = np.flatnonzero(group == code)
        voted[own] = vote_statistic(scores[own], rule.vote_k, rule.vote_w) > rule.full.limit
    lines = []
    for code, label in enumerate(table.labels):
        of_label = table.label == code
        if of_label.any():
            lines.append((label, int(of_label.sum()), float(above[of_label].mean()), float(voted[of_label].mean())))
    lead = []
    if benign.any() and (~benign).any():
        right = float(np.mean(above == ~benign))
        lead.append(
            f"Rows above τ: accuracy {right:.5f}, false-positive rate {above[benign].mean():.5f}, "
            f"recall {above[~benign].mean():.5f} of {len(table):,} rows."
        )
    elif benign.any():
        lead.append(f"Benign rows above τ: {above[benign].mean():.5f} of {int(benign.sum()):,}.")
    figures = []
    if classify is not None and (~benign).any():
        series = []
        for code, label in enumerate(table.labels):
            own = table.label == code
            if own.any():
                shares = np.bincount(guess[own], minlength=len(manifest.classes)) / own.sum()
                series.append(Series(label, manifest.classes, tuple(map(float, shares))))
        figures.append(
            Figure("matrix", "Most probable class, by label: share of rows", tuple(series), "class", "label")
        )
    return Findings(
        "rows",
        "Row figures of the bundle",
        command,
        table.generated,
        tuple(lead),
        tables=(
            Table(
                "Rows of each label",
                ("label", "rows", "above τ", "in a vote above the limit"),
                tuple(lines),
                "The quantised models and their own τ.",
            ),
        ),
        figures=tuple(figures),
        limits=(
            "A row is a packet: what share of them is flagged says little of whether a device alerts, nor when.",
            "Published rows have no time, and rows of one burst are near copies of each other.",
        ),
    )


# -- int8 against float --------------------------------------------------------------------------------------------


ERROR_QUANTILE = 0.99
"""Of what quantisation does to the scores of benign optimise rows: closer to its limit a score is borderline."""


def parity(bundle: Bundle, run: "RunFolder", command: str) -> Findings:
    """What quantisation changes in what a device's votes say: the bundle against the run's Keras network.

    Each side scores the run's benign test rows and attack rows with its own limit; a window is a row with those before
    it, and its decision whether k of the last w are above. A row or window is borderline when either side's score, or
    k-th largest score, is no further from the limit than quantisation shifts scores; by how much it does is measured
    on benign optimise rows, which are not judged here. ValueError when run and bundle have other columns.
    """
    from edge_agent.detection.calibrate import vote_statistic
    from edge_agent.detection.detector import Scorer
    from edge_agent.detection.runtime import Model

    if run.columns != bundle.manifest.columns:
        raise ValueError(f"{run.path}: has other columns than {bundle.path}: they are not of one fit")
    sides = [
        (Scorer(Model(bundle.autoencoder), bundle.scaler, run.columns), bundle.manifest.decision),
        (Scorer(run.autoencoder(), run.scaler, run.columns), run.decision),
    ]

    def scores(index: NDArray[np.intp]) -> NDArray[np.float64]:
        """Of each side, shape (2, n)."""
        return np.stack([scorer.full(run.values[index]).astype(np.float64) for scorer, _ in sides])

    limits = np.array([[rule.full.limit] for _, rule in sides])
    quantised, exact = scores(run.rows("optimise"))  # not in units of limits: one that is wrong would hide itself
    shift = np.abs(quantised / np.maximum(exact, np.finfo(np.float64).tiny) - 1.0)
    error = float(np.quantile(shift, ERROR_QUANTILE)) if len(shift) else 0.0
    tests = run.rows("test")
    groups = {(BENIGN, str(device)): tests[run.device[tests] == device] for device in np.unique(run.device[tests])}
    groups |= run.attacks()
    counts: dict[str, NDArray[np.int64]] = {}
    for (label, _), index in groups.items():
        rows = scores(index) / limits
        votes = np.stack([vote_statistic(own, r.vote_k, r.vote_w) for own, (_, r) in zip(rows, sides, strict=True)])
        counted = []
        for values in (votes, rows):
            alike = (values[0] > 1.0) == (values[1] > 1.0)
            near = (np.abs(values - 1.0) <= error).any(axis=0)
            counted += [alike.sum(), near.sum(), (alike & ~near).sum()]
        counts[label] = counts.get(label, np.zeros(7, np.int64)) + np.array([len(index), *counted])
    lead, kinds = [], []
    for kind, of_kind in (
        ("benign test", [c for label, c in counts.items() if label == BENIGN]),
        ("attack", [c for label, c in counts.items() if label != BENIGN]),
    ):
        if of_kind:
            kinds.append(_agreement(kind, np.sum(of_kind, axis=0)))
            _, n, alike, near, clear, *_ = kinds[-1]
            lead.append(
                f"int8 and float decide alike in {alike:.4%} of {n:,} {kind} windows after the vote (goal 99.99 %); "
                + (f"in {clear:.4%} without the {near:,} borderline ones." if clear is not None else "all borderline.")
            )
    by_label = sorted((_agreement(label, counted) for label, counted in counts.items()), key=lambda row: row[2])
    of_windows = ("windows", "alike after the vote", "borderline", "alike without them")
    columns = (*of_windows, "alike row by row", "borderline rows", "alike without them ")
    return Findings(
        "parity",
        "What quantisation changes",
        command,
        run.generated,
        tuple(lead),
        tables=(
            Table(
                "Decisions of the bundle and of its Keras network that agree",
                ("rows", *columns),
                tuple(kinds),
                f"Each with its own limit. Borderline: within {error:.1%} of the limit on either side, which is the "
                f"{ERROR_QUANTILE:.0%} quantile of what quantisation shifts scores of benign optimise rows by.",
            ),
            Table(
                "The same by label, worst first",
                ("label", *columns),
                tuple(by_label),
            ),
        ),
        limits=("Rows of the run folder: a bounded sample, in sequence within each device.",),
    )


_Agreement = tuple[str, int, float, int, float | None, float, int, float | None]


def _agreement(name: str, counted: NDArray[np.int64]) -> "_Agreement":
    """A line of the tables above from counts: rows, and of windows and of rows: alike, borderline, alike and not so."""
    n, votes, near_votes, clear_votes, rows, near_rows, clear_rows = map(int, counted)

    def clear(alike: int, near: int) -> float | None:
        return alike / (n - near) if n > near else None

    return (
        name,
        n,
        votes / n,
        near_votes,
        clear(clear_votes, near_votes),
        rows / n,
        near_rows,
        clear(clear_rows, near_rows),
    )


# -- command -------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `botwatch trainer evaluate`."""
    parser.description = (
        "Judge a finished bundle on captures (every attack alone and in every device's day, false alerts on benign "
        "ones) or on rows. Sources are manifests of captures, Parquet files of rows, or folders of the published files."
    )
    parser.epilog = f"example:\n  {PROG} bundles/home captures --out runs/home --floor"
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that `botwatch converter` wrote")
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="manifest or its folder, or rows")
    parser.add_argument("--root", type=Path, metavar="DIR", help="where the manifests' files lie, if elsewhere")
    parser.add_argument("--out", type=Path, metavar="RUN", help="also write the findings into this folder")
    parser.add_argument("--run", type=Path, metavar="RUN", help="compare with this run's Keras network, too")
    parser.add_argument("--learn", action="store_true", help="judge benign captures with limits learnt on site, too")
    parser.add_argument("--floor", action="store_true", help="find the lowest rate at which each attack is seen")
    parser.add_argument(
        "--base-rate", type=float, default=BASE_RATE, metavar="R", help="attacks per device-day (%(default)s)"
    )


def run(args: argparse.Namespace, command: str) -> int:
    """`botwatch trainer evaluate`: 0; 1 when an attack with a goal was missed or a device cried wolf; 2 bad input."""
    try:
        bundle = bundles.load(args.bundle)
        if not 0 < args.base_rate <= 1:
            raise EvaluateError(f"--base-rate must be above 0 and at most 1, is {args.base_rate:g}")
        manifests, tables = _sources(args.sources, args.root, bundle)
        found, failed = [], False
        if manifests:
            evaluation = evaluate(bundle, manifests, learn=args.learn, floor=args.floor)
            found += report(evaluation, command, args.base_rate)
            trials = (*evaluation.injected, *evaluation.alone)
            failed = bool(evaluation.false_alerts or any(t.expected and not t.found for t in trials))
        found += [rows(bundle, table, command) for table in tables]
        if args.run is not None:
            found.append(parity(bundle, runs.load(args.run), command))
    except (BundleError, EvaluateError, runs.RunFolderError, settings.SettingsError, CaptureError, ValueError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    for item in found:
        print()
        for line in item.text():
            print(line)
        if args.out is not None:
            item.save(args.out)
    return int(failed)


def _sources(
    paths: Sequence[Path], root: Path | None, bundle: Bundle
) -> tuple[list[tuple[captures.CaptureManifest, Path]], list["RowTable"]]:
    """Manifests with their roots, and tables of rows; EvaluateError for what is neither."""
    manifests, tables = [], []
    for path in paths:
        if path.suffix in (".yaml", ".yml") or (path / captures.MANIFEST).is_file():
            manifest, _, files = captures.load(path, root)
            manifests.append((manifest, files))
            continue
        if not path.exists():
            raise EvaluateError(f"{path}: no such file or folder")
        from edge_agent.contract import columns as cols
        from trainer.config import DatasetEntry
        from trainer.data import dataset
        from trainer.data.row_table import DatasetError, Limits

        kind: Literal["rows", "nbaiot"] = "rows" if path.is_file() else "nbaiot"
        # both jitter modes agree on every other column
        jitter = cols.COMPAT if kind == "nbaiot" or cols.COMPAT in bundle.manifest.schemas else cols.CLEAN
        try:
            tables.append(
                dataset.load([DatasetEntry(kind, path)], bundle.manifest.columns, jitter, Limits(max_rows=1_000_000))
            )
        except DatasetError as error:
            raise EvaluateError(str(error)) from error
    return manifests, tables
