"""The results of trying a bundle on captures, and how they read: false alerts, attacks alerted, the lowest rate.

`evaluate` makes an `Evaluation` and `compare` lays several side by side; `report` turns one into findings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trainer.report.findings import Cell, Figure, Findings, Series, Table
from trainer.traffic.provenance import GENERATOR, generator_sha256

BASE_RATE = 1e-4
"""Attacks per device-day at which precision is stated: one infected device in ten thousand, attacking daily."""

FLOOR_S = 60.0
"""Seconds within which an attack at a low rate must be alerted."""

FLOOR_FRAMES = 3000
"""Packets of an attack at a given rate, at most."""


@dataclass(frozen=True, kw_only=True)
class Day:
    """A benign capture, of which every alert is a false one.

    ``packets`` are the rows that were scored, ``shed`` those that the budget of rows left out, and ``flagged`` those
    above a limit. Figures by an agent that learns limits on site are None where no such agent was tried, or where the
    capture ends before the device has learnt.
    """

    capture: str
    device: str
    generated: bool
    days: float
    packets: int
    flagged: int
    alerts: int  # episodes
    early: int  # episodes that began within ten minutes of the capture's first packet
    shed: int = 0
    alerts_learning: int | None = None  # episodes of an agent that learns, from its first packet on
    alerts_learnt: int | None = None  # episodes since the device has learnt
    flagged_learnt: float | None = None  # share of rows flagged since then


@dataclass(frozen=True, kw_only=True)
class AttackTrial:
    """An attack capture, tried alone (``device`` is "") or in a device's day.

    ``packets`` and ``ms`` count from the attack's first packet to the first alert about its subject; None when no such
    alert was sent. ``class_name`` is that of the episode's last message. ``start_s`` is the start that the episode
    states minus the true one, ``end_s`` the same of its last vote. ``false_alerts`` are episodes about another subject,
    or from before the attack.
    """

    capture: str
    label: str
    generated: bool
    expected: bool  # false: the attack is tried without a goal
    device: str
    length_s: float
    packets: int | None = None
    ms: float | None = None
    class_name: str = ""
    start_s: float | None = None
    end_s: float | None = None
    false_alerts: int = 0
    shed: int = 0

    @property
    def alerted(self) -> bool:
        """True if an alert was about the attacker, or the victim where the capture shows the victim's side."""
        return self.packets is not None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that was tried with one bundle.

    ``bundle`` is the SHA-256 of its manifest; ``budget`` the rows a second that the agent may score. ``floor`` is, by
    attack and packets a second, true if the attack was alerted within a minute. ``learning`` are the attacks tried
    alone on an agent that has just begun to learn.
    """

    bundle: str
    days: tuple[Day, ...]
    alone: tuple[AttackTrial, ...]
    injected: tuple[AttackTrial, ...]
    skipped: tuple[str, ...] = ()
    floor: dict[str, dict[float, bool]] = field(default_factory=dict)
    device_days: float = 0.0
    learning: tuple[AttackTrial, ...] = ()
    budget: int = 0

    @property
    def false_alerts(self) -> int:
        """The number of episodes on benign captures."""
        return sum(day.alerts for day in self.days)

    @property
    def missed(self) -> int:
        """The number of attacks with a goal, alone and in a device's day, that were not alerted."""
        return sum(trial.expected and not trial.alerted for trial in (*self.injected, *self.alone))

    @property
    def generated(self) -> bool:
        """True if any of the traffic was generated."""
        trials = (*self.alone, *self.injected)
        return any(day.generated for day in self.days) or any(trial.generated for trial in trials)


def bound(count: int, exposure: float, confidence: float = 0.95) -> float:
    """Return the upper bound of a Poisson rate when ``count`` events were seen in ``exposure`` (exact, Garwood 1936).

    >>> round(bound(0, 1.0), 2)  # the rule of three
    3.0
    """
    from scipy.stats import chi2

    return float(chi2.ppf(confidence, 2 * (count + 1)) / 2 / exposure) if exposure > 0 else float("inf")


# -- findings --


def report(evaluation: Evaluation, command: str, base_rate: float = BASE_RATE) -> list[Findings]:
    """Return the evaluation as findings: false alerts, attacks, and the lowest rate where it was tried."""
    lead: list[str] = []
    tables: list[Table] = []
    if evaluation.days:
        lead.append(_false_alerts_sentence(evaluation))
        tables += _benign_tables(evaluation.days)
    for name, trials in (
        ("in a device's day", evaluation.injected),
        ("alone, cold start", evaluation.alone),
        ("alone, met by an agent that begins to learn", evaluation.learning),
    ):
        wanted = [trial for trial in trials if trial.expected]
        for generated in (False, True):
            if of_kind := [trial for trial in wanted if trial.generated == generated]:
                lead.append(_recall_sentence(f"{'Generated' if generated else 'Real'} attacks {name}", of_kind))
        if wanted:
            tables.append(_attack_table(f"Attacks {name}", trials))
    if injected := [trial for trial in evaluation.injected if trial.expected]:
        lead.append(_worst_device_sentence(injected))
        tables.append(_times_table(injected))
        if evaluation.days:
            lead.append(_precision_sentence(evaluation, injected, base_rate))
    if shed := _shed_sentence(evaluation):
        lead.append(shed)
    alerted = [trial for trial in (*evaluation.injected, *evaluation.alone) if trial.alerted]
    findings = [
        Findings(
            "evaluation",
            "What the bundle finds, and its false alerts",
            command,
            evaluation.generated,
            tuple(lead),
            (),
            tuple(tables),
            (_confusion(alerted),) if alerted else (),
            _limits(evaluation),
        )
    ]
    if evaluation.floor:
        findings.append(_floor(evaluation.floor, command, evaluation.generated))
    return findings


def _false_alerts_sentence(evaluation: Evaluation) -> str:
    count, exposure = evaluation.false_alerts, evaluation.device_days
    rate = bound(count, exposure)
    return (
        f"{count} false device alerts in {exposure:.2f} device-days of {len(evaluation.days)} benign captures: "
        f"at most {rate:.2f} a device-day with 95 % confidence ({7 * rate:.1f} a device-week)."
    )


def _recall_sentence(subject: str, trials: Sequence[AttackTrial]) -> str:
    hits = [trial for trial in trials if trial.alerted]
    text = f"{subject}: {len(hits)} of {len(trials)} alerted"
    if hits:
        packets = np.array([trial.packets for trial in hits])
        ms = np.array([trial.ms for trial in hits])
        text += (
            f"; packets to the alert: median {np.median(packets):.0f}, 95 % {np.quantile(packets, 0.95):.0f}, at most "
            f"{packets.max()}; ms: median {np.median(ms):,.0f}, 95 % {np.quantile(ms, 0.95):,.0f}"
        )
    return f"{text}."


def _worst_device_sentence(trials: Sequence[AttackTrial]) -> str:
    share = {
        device: float(np.mean([trial.alerted for trial in trials if trial.device == device]))
        for device in sorted({trial.device for trial in trials})
    }
    worst = min(share, key=lambda device: share[device])
    missed = sorted({Path(trial.capture).stem for trial in trials if trial.device == worst and not trial.alerted})
    text = f"Worst device: {worst}, {share[worst]:.0%} of the attacks put into its day are alerted"
    return f"{text}; missed: {', '.join(missed)}." if missed else f"{text}."


def _precision_sentence(evaluation: Evaluation, injected: Sequence[AttackTrial], base_rate: float) -> str:
    """State the probability that an alert is right, by Bayes, at the observed and at the highest likely false rate."""
    recall = float(np.mean([trial.alerted for trial in injected]))
    observed = evaluation.false_alerts / evaluation.device_days if evaluation.device_days else 0.0
    highest = bound(evaluation.false_alerts, evaluation.device_days)
    at_observed, at_highest = (
        recall * base_rate / (recall * base_rate + false) if recall else 0.0 for false in (observed, highest)
    )
    return (
        f"At one attack in {1 / base_rate:,.0f} device-days an alert is right in {at_observed:.1%} of cases at "
        f"the observed rate of false alerts, in {at_highest:.2%} at the bound of that rate: more benign days would "
        "tighten it."
    )


def _shed_sentence(evaluation: Evaluation) -> str:
    """State the rows that the budget left unscored; "" when it left none."""
    trials = (*evaluation.alone, *evaluation.injected, *evaluation.learning)
    shed = [rows for rows in (*(day.shed for day in evaluation.days), *(trial.shed for trial in trials)) if rows]
    if not shed:
        return ""
    return (
        f"The budget of {evaluation.budget:,} rows a second left {sum(shed):,} rows unscored, in {len(shed)} of "
        f"{len(evaluation.days) + len(trials)} trials."
    )


def _limits(evaluation: Evaluation) -> tuple[str, ...]:
    limits = [
        "Captures are replays: nothing here was live, and an attack put into another device's day does not change "
        "what that device or its network would have done.",
        *(f"Skipped: {reason}" for reason in evaluation.skipped),
    ]
    if any(trial.generated for trial in (*evaluation.alone, *evaluation.injected)):
        limits.append(f"Generated attacks come from {GENERATOR}, SHA-256 {generator_sha256()[:16]}….")
    return tuple(limits)


def _benign_tables(days: Sequence[Day]) -> list[Table]:
    tables = [_false_alerts_table(days)]
    shares = np.array([row[9] for row in tables[0].rows if row[9] is not None], dtype=float)
    if len(shares) > 1 and shares.mean() > 0:
        cells = (float(shares.max()), float(shares.mean()), float(shares.std() / shares.mean()), float(np.ptp(shares)))
        tables.append(
            Table(
                "How evenly devices are treated: share of benign rows flagged",
                ("worst", "mean", "σ/μ", "max − min"),
                (cells,),
            )
        )
    if learning := [day for day in days if day.alerts_learning is not None]:
        tables.append(
            Table(
                "By an agent that learns limits on site",
                ("capture", "alerts with shared limits", "alerts", "since it has learnt", "rows flagged since then"),
                tuple((d.capture, d.alerts, d.alerts_learning, d.alerts_learnt, d.flagged_learnt) for d in learning),
                "Learnt: 2,000 packets and a quarter of an hour, at the latest a day. A dash: the capture ends before.",
            )
        )
    return tables


def _false_alerts_table(days: Sequence[Day]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for device in sorted({day.device for day in days}):
        of_device = [day for day in days if day.device == device]
        exposure, count = sum(day.days for day in of_device), sum(day.alerts for day in of_device)
        packets = sum(day.packets for day in of_device)
        rows.append(
            (
                device,
                "generated" if of_device[0].generated else "real",
                len(of_device),
                round(exposure, 3),
                packets,
                count,
                sum(day.early for day in of_device),
                count / exposure if exposure else None,
                bound(count, exposure),
                sum(day.flagged for day in of_device) / packets if packets else None,
            )
        )
    rows.sort(key=lambda row: (-float(row[7] or 0.0), -float(row[8] or 0.0)))
    columns = ("device", "traffic", "captures", "device-days", "packets", "false alerts", "in first 10 min")
    return Table(
        "False device alerts, worst device first",
        (*columns, "per device-day", "95 % bound", "rows flagged"),
        tuple(rows),
        "Every capture starts cold. Alerts of any device in the capture count against it.",
    )


def _attack_table(title: str, trials: Sequence[AttackTrial]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for capture in dict.fromkeys(trial.capture for trial in trials):
        of_capture = [trial for trial in trials if trial.capture == capture]
        packets = [trial.packets for trial in of_capture if trial.packets is not None]
        ms = [trial.ms for trial in of_capture if trial.ms is not None]
        classes = sorted({trial.class_name for trial in of_capture if trial.class_name})
        rows.append(
            (
                capture,
                of_capture[0].label,
                ("generated" if of_capture[0].generated else "real") + ("" if of_capture[0].expected else ", no goal"),
                f"{len(packets)}/{len(of_capture)}",
                float(np.median(packets)) if packets else None,
                max(packets) if packets else None,
                float(np.median(ms)) if ms else None,
                max(ms) if ms else None,
                ", ".join(classes) or None,
                sum(trial.false_alerts for trial in of_capture),
            )
        )
    columns = ("capture", "attack", "traffic", "alerted", "packets, median", "packets, most", "ms, median", "ms, most")
    return Table(title, (*columns, "class in the alert", "other alerts"), tuple(rows))


def _times_table(trials: Sequence[AttackTrial]) -> Table:
    """Return how far the start and end that episodes state are from those of the attacks."""
    rows: list[tuple[Cell, ...]] = []
    for name, low, high in (
        ("up to 1 s", 0, 1),
        ("1 s to 1 min", 1, 60),
        ("1 to 30 min", 60, 1800),
        ("longer", 1800, 1e9),
    ):
        of_length = [trial for trial in trials if low <= trial.length_s < high]
        hits = [trial for trial in of_length if trial.alerted]
        starts = [abs(trial.start_s) for trial in hits if trial.start_s is not None]
        ends = [abs(trial.end_s) for trial in hits if trial.end_s is not None]
        if of_length:
            rows.append(
                (
                    name,
                    f"{len(hits)}/{len(of_length)}",
                    float(np.median(starts)) if starts else None,
                    max(starts, default=None),
                    float(np.median(ends)) if ends else None,
                    max(ends, default=None),
                )
            )
    columns = ("attack lasts", "alerted", "start off by, median s", "most s", "last vote off by, median s", "most s ")
    return Table("Start and end of attacks, as alerts state them and as they were", columns, tuple(rows))


def _confusion(trials: Sequence[AttackTrial]) -> Figure:
    names = sorted({trial.class_name for trial in trials})
    series = []
    for label in sorted({trial.label for trial in trials}):
        of_label = [trial for trial in trials if trial.label == label]
        shares = tuple(sum(t.class_name == name for t in of_label) / len(of_label) for name in names)
        series.append(Series(label, tuple(names), shares))
    return Figure(
        "matrix",
        "Class in the alert, by attack: share of episodes",
        tuple(series),
        "class in the last message",
        "label",
        note="Of the episodes that were alerted; recall of each class is on its own name.",
    )


def _floor(floor: dict[str, dict[float, bool]], command: str, generated: bool) -> Findings:
    rows: list[tuple[Cell, ...]] = []
    series, lead = [], []
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
    columns = ("attack", "from", *(f"{rate:g}" for rate in rates))
    return Findings(
        "floor",
        "The lowest rate that is alerted",
        command,
        generated,
        tuple(lead),
        tables=(Table("Alerted within a minute, by packets a second", columns, tuple(rows), note),),
        figures=(
            Figure("lines", "Alerted within a minute", tuple(series), "attack packets a second", "alerted", log_x=True),
        ),
        limits=("One device and one moment of its day; a busier device hides more.",),
    )
