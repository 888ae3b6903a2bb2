"""What came of trying a bundle on captures, and how a person reads it: false alerts, attacks alerted, the lowest rate.

`evaluate` fills an `Evaluation`, `compare` lays several side by side; `report` turns one into findings.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trainer.report.findings import Figure, Findings, Series, Table

BASE_RATE = 1e-4
"""Attacks per device-day at which precision is stated: one infected device in ten thousand, attacking daily."""

FLOOR_S = 60.0
FLOOR_FRAMES = 3000


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
