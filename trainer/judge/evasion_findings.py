"""The findings of evasions: what was alerted how soon by kind of device, who was blamed wrongly, and what stays unseen.

`trainer.judge.evasions` makes the results. Here they become findings, and the tables of docs/limits.md.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby

from trainer.judge import unseen as search
from trainer.judge.evasions import Evasions, EvasionTrial
from trainer.judge.stage import DAY_S, LEARNING_S, State
from trainer.judge.unseen import FAMILIES, Family, Unseen
from trainer.report.findings import Cell, Findings, Table, number

WRONG = "≠"
"""Mark of a cell in which another than the sender was blamed, too or instead."""

STATES: tuple[tuple[State, str], ...] = (
    ("learnt", "on a device that has learnt"),
    ("learning", f"{LEARNING_S / 60:g} minutes after a device's first packet"),
    ("cold", "alone, on an agent that starts"),
)

UNITS = {"flood": "packets/s", "scan": "targets/s", "contacts": "contacts a day"}


def report(evasions: Evasions, command: str) -> list[Findings]:
    """Return the findings of `--evasions`: the list of attacks, and what stays unseen where it was searched."""
    found = [
        Findings(
            "evasions",
            "Generated attacks that try not to be noticed",
            command,
            True,
            tuple(_lead(evasions)),
            tables=(*_tables(evasions.trials), *_wrong_table(evasions.trials)),
            limits=tuple(_limits(evasions)),
        )
    ]
    if evasions.unseen:
        found.append(
            Findings(
                "unseen",
                "What stays unseen for a day",
                command,
                True,
                tuple(_unseen_lead(evasions.unseen)),
                tables=(unseen_table(evasions.unseen), *(_tried_table(evasions.unseen, family) for family in FAMILIES)),
                limits=tuple(_limits(evasions)),
            )
        )
    return found


def _lead(evasions: Evasions) -> Iterable[str]:
    for state, words in STATES:
        trials = [trial for trial in evasions.trials if trial.state == state]
        if trials:
            hits, wrong = sum(t.alerted for t in trials), sum(t.named_wrongly for t in trials)
            text = f"{words[0].upper()}{words[1:]}: {hits} of {len(trials)} alerted"
            yield f"{text}, {wrong} with an alert that blames another than the sender."


def _tables(trials: Sequence[EvasionTrial]) -> Iterable[Table]:
    """Yield a table for each state: a line for each attack, a column for each kind of device."""
    for state, words in STATES:
        of_state = [trial for trial in trials if trial.state == state]
        if not of_state:
            continue
        kinds = tuple(dict.fromkeys(trial.kind for trial in of_state))
        attacks = dict.fromkeys(trial.capture for trial in of_state)
        rows = tuple(
            (attack, *(_cell([t for t in of_state if (t.capture, t.kind) == (attack, kind)]) for kind in kinds))
            for attack in attacks
        )
        note = f"Of several devices the slowest; 1/2: on one of two. A dash: on none. {WRONG}: another was blamed."
        yield Table(f"Seconds to the alert, {words}", ("attack", *kinds), rows, note)


def _cell(trials: Sequence[EvasionTrial]) -> Cell:
    """Return the seconds after which the slowest of the trials was alerted, and how many were.

    A few trials of one attack on devices of one kind are laid together.
    """
    hits = [trial.ms / 1000 for trial in trials if trial.ms is not None]
    wrong = f" {WRONG}" if any(trial.named_wrongly for trial in trials) else ""
    if not hits:
        return f"–{wrong}" if trials else None
    of = "" if len(hits) == len(trials) else f" {len(hits)}/{len(trials)}"
    return f"{number(max(hits))}{of}{wrong}"


def _wrong_table(trials: Sequence[EvasionTrial]) -> Iterable[Table]:
    """Yield the attacks for which another was blamed, if there is one."""
    wrong = [trial for trial in trials if trial.named_wrongly]
    rows = tuple(
        (trial.capture, trial.device or "alone", trial.state, trial.named or "nobody", ", ".join(trial.others[:4]))
        for trial in sorted(wrong, key=lambda trial: (trial.capture, trial.device))
    )
    if rows:
        note = "Subjects of alerts that came with the attack and would not have come without it; at most four each."
        yield Table("Blamed wrongly", ("attack", "device", "agent", "of the sender named", "blamed"), rows, note)


def _limits(evasions: Evasions) -> Iterable[str]:
    yield (
        "Every attack is generated, put into days of real or generated devices at one moment, and changes nothing in "
        "what the device does besides; a capture that is shorter than the days that are played is repeated."
    )
    yield f"{len(evasions.trials)} attacks and the search took {evasions.seconds:,.0f} s."
    if evasions.not_learnt:
        yield f"Without limits of their own when the attacks on learnt devices began: {', '.join(evasions.not_learnt)}."
    if evasions.left_out:
        yield f"No time was left for {len(evasions.left_out)}, among them {'; '.join(evasions.left_out[:3])}."
    yield from (f"Skipped: {reason}" for reason in evasions.skipped)


# -- what stays unseen --


def _unseen_lead(unseen: Sequence[Unseen]) -> Iterable[str]:
    for family in FAMILIES:
        of_family = [item for item in unseen if item.what == family.what]
        if of_family:
            plain = sorted({_rate(item.plain, item) for item in of_family}, key=_order)
            yield f"Plain {family.what}, by device: unseen up to {', '.join(plain)} {UNITS[family.what]}."


def unseen_table(unseen: Sequence[Unseen]) -> Table:
    """Return the highest unseen rates of each kind of device: of its devices, the one where most stays unseen."""
    rows: list[tuple[Cell, ...]] = []
    ordered = sorted(unseen, key=lambda item: (_families().index(item.what), item.kind))
    for (_, kind), group in groupby(ordered, key=lambda item: (item.what, item.kind)):
        items = list(group)
        plain, best, forged = (
            max(items, key=lambda item, of=of: getattr(item, of) or 0.0)  # type: ignore[misc]
            for of in ("plain", "best", "forged")
        )
        what = items[0].what
        rows.append(
            (
                kind,
                len(items),
                f"{what}, {UNITS[what]}",
                _rate(plain.plain, plain),
                _rate(best.best, best),
                best.best_name or None,
                round(best.watched_s / 3600, 2) if best.best is not None else None,
                _rate(forged.forged, forged) if what != "contacts" else None,
            )
        )
    columns = ("kind", "devices", "what", "plain", "highest", "which attack that is", "sent for, h", "forged MACs")
    note = (
        "Highest rate that was not reported within a day, or within "
        f"{search.TRIED:,} packets ({search.CONFIRMED:,} in the column `highest`), on a device that has learnt; 0: "
        "every rate was reported. ≥: the highest rate that was tried. Of a ramp it is the rate that it came up to, of "
        "bursts their mean."
    )
    return Table("Highest unseen rates by kind of device", columns, tuple(rows), note)


def _tried_table(unseen: Sequence[Unseen], family: Family) -> Table:
    """Return for each change of an attack the highest unseen rate by kind of device."""
    of_family = [item for item in unseen if item.what == family.what]
    kinds = tuple(dict.fromkeys(item.kind for item in of_family))
    changes = dict.fromkeys(tried.changed for item in of_family for tried in item.tried)
    rows = []
    for change in changes:
        cells: list[Cell] = [change]
        for kind in kinds:
            rates = [
                (tried.rate or 0.0, item)
                for item in of_family
                for tried in item.tried
                if (item.kind, tried.changed) == (kind, change)
            ]
            cells.append(_rate(*max(rates, key=lambda pair: pair[0])) if rates else None)
        rows.append(tuple(cells))
    rates_tried = ", ".join(number(_scaled(rate, family.what)) for rate in family.rates)
    note = f"{UNITS[family.what].capitalize()}; tried were {rates_tried}. 0: every rate was reported."
    return Table(f"Highest unseen rate of each changed {family.what}", ("changed", *kinds), tuple(rows), note)


def _rate(rate: float | None, item: Unseen) -> str:
    """Return a rate in the unit of its table."""
    if not rate:
        return "0"
    return f"{'≥ ' if rate >= item.most else ''}{number(_scaled(rate, item.what))}"


def _scaled(rate: float, what: str) -> float | int:
    value = round(rate * DAY_S, 6) if what == "contacts" else rate
    return int(value) if value == int(value) else value


def _order(text: str) -> float:
    return float(text.removeprefix("≥ ").replace(",", ""))


def _families() -> list[str]:
    return [family.what for family in FAMILIES]
