"""The findings of an evaluation, with tables of false alerts, of attacks and of the lowest rates."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge_agent.contract.budget import MONTH_DAYS, per_home_month
from trainer.judge.evaluation import (
    BASE_RATE,
    FLOOR_FRAMES,
    HOME_DEVICES,
    AttackTrial,
    Day,
    Evaluation,
    bound,
    on_site,
    stated,
)
from trainer.report.findings import Cell, Figure, Findings, Series, Table
from trainer.traffic.provenance import GENERATOR, generator_sha256

MOST_ALERTS = 60
"""False alerts that are listed one by one."""


def report(evaluation: Evaluation, command: str, base_rate: float = BASE_RATE) -> list[Findings]:
    """Return the evaluation as findings: false alerts, attacks, and the lowest rate where it was tried."""
    lead: list[str] = []
    tables: list[Table] = []
    if evaluation.days:
        lead += _false_alerts_sentences(evaluation)
        tables += _benign_tables(evaluation.days)
    for name, trials in (
        ("in a device's day", evaluation.injected),
        ("alone, cold start", evaluation.alone),
        ("alone, met by an agent that begins to learn", evaluation.learning),
        ("in the day of a device that has learnt", evaluation.learnt),
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
    if sentence := _wrongly_sentence(evaluation):
        lead.append(sentence)
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


def _false_alerts_sentences(evaluation: Evaluation) -> list[str]:
    count, days = evaluation.false_alerts, evaluation.days
    sentences = [f"False device alerts on {len(days)} benign captures: {stated(count, evaluation.device_days)}."]
    if learning := [day for day in days if day.alerts_learning is not None]:
        exposure = sum(day.days for day in learning)
        sentences.append(
            "By agents that start cold and learn on site: "
            f"{stated(sum(day.alerts_learning or 0 for day in learning), exposure)}."
        )
    if site := on_site(days):
        exposure = sum(day.days for day in site)
        sentences.append(
            "By agents that have learnt from a device's earlier days: "
            f"{stated(sum(day.alerts_site or 0 for day in site), exposure)}."
        )
    return sentences


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


def _wrongly_sentence(evaluation: Evaluation) -> str:
    """State the attacks for which another than the attacker was blamed; "" when there are none."""
    wrong = [trial for trial in evaluation.trials if trial.named_wrongly]
    if not wrong:
        return ""
    alone = sum(not trial.alerted for trial in wrong)
    return (
        f"Named wrongly: in {len(wrong)} of {len(evaluation.trials)} trials an alert blames another than the attacker "
        f"or victim, in {alone} of them no alert blames the right one."
    )


def _shed_sentence(evaluation: Evaluation) -> str:
    """State the rows that the budget left unscored; "" when it left none."""
    trials = evaluation.trials
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
    if evaluation.unlearnt:
        limits.append(f"Had no limits of their own when the attacks began: {', '.join(evaluation.unlearnt)}.")
    if any(trial.generated for trial in evaluation.trials):
        limits.append(f"Generated attacks come from {GENERATOR}, SHA-256 {generator_sha256()[:16]}….")
    return tuple(limits)


def _benign_tables(days: Sequence[Day]) -> list[Table]:
    tables = [_false_alerts_table(days)]
    lines: list[tuple[Cell, ...]] = []
    for name, figure in (
        ("shared", "flagged"),
        ("own, learnt in the capture", "flagged_learnt"),
        ("own, learnt on earlier days", "flagged_site"),
    ):
        if (figures := spread(days, figure)) is not None:
            lines.append((name, *figures))
    if lines:
        tables.append(
            Table(
                "How evenly devices are treated: share of benign rows flagged, over devices",
                ("limits", "devices", "worst device", "worst", "mean", "σ/μ", "max − min"),
                tuple(lines),
            )
        )
    if learning := [day for day in days if day.alerts_learning is not None]:
        columns = ("capture", "alerts with shared limits", "alerts", "since it has learnt", "rows flagged since then")
        tables.append(
            Table(
                "By an agent that learns limits on site",
                (*columns, "alerts, learnt on earlier days", "rows flagged"),
                tuple(
                    (
                        *(d.capture, d.alerts, d.alerts_learning, d.alerts_learnt, d.flagged_learnt),
                        *(d.alerts_site, d.flagged_site),
                    )
                    for d in learning
                ),
                "Learnt: 2,000 packets and a quarter of an hour, at the latest a day. A dash: the capture ends before, "
                "or the device has no earlier day.",
            )
        )
    if found := [(day, alert) for day in days for alert in day.found]:
        more = f" The first {MOST_ALERTS} of {len(found)}." if len(found) > MOST_ALERTS else ""
        tables.append(
            Table(
                "Each false alert",
                ("capture", "agent", "time", "subject", "class", "explanation"),
                tuple(
                    (day.capture, a.agent, a.time, a.mac or "a victim", a.class_name, a.explanation)
                    for day, a in found[:MOST_ALERTS]
                ),
                "cold: with the bundle's limits; learning: from the capture's first packet on; site: learnt on the "
                f"device's earlier days, whose times are moved.{more}",
            )
        )
    return tables


def spread(days: Sequence[Day], figure: str) -> tuple[int, str, float, float, float | None, float] | None:
    """Return how a share of rows differs between devices: their number, the worst one, worst, mean, σ/μ, max − min.

    ``figure`` is that of a `Day`: `flagged` (a number of rows), `flagged_learnt` or `flagged_site` (shares). The share
    of a device is the mean over its days, by packets. None with fewer than two devices.
    """
    share: dict[str, float] = {}
    for device in sorted({day.device for day in days}):
        of_device = [day for day in days if day.device == device and day.packets and getattr(day, figure) is not None]
        if packets := sum(day.packets for day in of_device):
            rows = (getattr(d, figure) * (1 if figure == "flagged" else d.packets) for d in of_device)
            share[device] = sum(rows) / packets
    if len(share) < 2:
        return None
    values = np.array(list(share.values()))
    mean = float(values.mean())
    ratio = float(values.std() / mean) if mean > 0 else None
    return len(share), max(share, key=lambda d: share[d]), float(values.max()), mean, ratio, float(np.ptp(values))


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
                7 * count / exposure if exposure else None,
                7 * bound(count, exposure),
                per_home_month(bound(count, exposure), 1.0, HOME_DEVICES),
                sum(day.flagged for day in of_device) / packets if packets else None,
            )
        )
    rows.sort(key=lambda row: (-float(row[7] or 0.0), -float(row[8] or 0.0)))
    columns = ("device", "traffic", "captures", "device-days", "packets", "false alerts", "in first 10 min")
    return Table(
        "False device alerts, worst device first",
        (*columns, "per device-week", "95 % bound", "bound per home-month", "rows flagged"),
        tuple(rows),
        f"Every capture starts cold. Alerts of any device in the capture count against it. A home has {HOME_DEVICES} "
        f"devices, a month {MONTH_DAYS:g} days.",
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
                sum(trial.named_wrongly for trial in of_capture),
                sum(trial.false_alerts for trial in of_capture),
            )
        )
    columns = ("capture", "attack", "traffic", "alerted", "packets, median", "packets, most", "ms, median", "ms, most")
    return Table(title, (*columns, "class in the alert", "named wrongly", "other alerts"), tuple(rows))


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
