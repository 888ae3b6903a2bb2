"""A search for the limits that an attacker on a device must keep to so that nothing is reported within a day.

For floods, scans and contacts alike: a plain attack is tried at each of a few rates from the highest down, and the
first that is not reported is its highest unseen rate (of a ramp what it came up to, of bursts their mean). Then one
thing after another is changed (gaps, sizes, ports, targets, answers), each at all rates, and at last everything
together that raised the rate. What has the highest rate is tried once more for a whole day, or for `CONFIRMED` packets.
Rates between those tried, and other combinations, are not known.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from trainer.judge.evasive import Flood, Pace, PortScan
from trainer.judge.evasive_sessions import Contacts
from trainer.judge.stage import DAY_S, Stage

TRIED, CONFIRMED, FALSE_MACS = 60_000, 1_000_000, 3000
"""Packets of the attacker after which a try ends unreported, if the day does not end before; the same for the try of
the result, and where every packet has another source MAC, since each costs a millisecond."""

Change = Mapping[str, Any]
"""Values of an attack's fields; `shape` and `period_s` are of its pace."""

Searched = Flood | PortScan | Contacts


@dataclass(frozen=True, kw_only=True)
class Family:
    """One sort of attack: the plain one, its rates (a second, descending) and what may be changed in it.

    ``forged`` are changes that send under other MACs than the device's own; they are searched apart.
    """

    what: Literal["flood", "scan", "contacts"]
    plain: Searched
    rates: tuple[float, ...]
    changes: tuple[Change, ...]
    forged: tuple[Change, ...] = ()


_MACS: tuple[Change, ...] = ({"macs": "router"}, {"macs": "random"})

FAMILIES: tuple[Family, ...] = (
    Family(
        what="flood",
        plain=Flood(pace=Pace(rate=1)),
        rates=(10_000, 5000, 2000, 1000, 500, 200, 100, 50, 20, 10, 5, 2, 1),
        changes=(
            {"shape": "random"},
            {"shape": "ramp", "period_s": 1200.0},
            {"shape": "bursts", "period_s": 60.0},
            {"protocol": "ack"},
            {"protocol": "syn"},
            {"protocol": "icmp"},
            {"size": 0},
            {"size": 1400},
            {"port": 53},
            {"port": 443},
            {"to": "cloud"},
            {"to": "local"},
            {"sockets": "many"},
            {"source": "any"},
            {"version": 6},
            {"answers": "each"},
            {"answers": "unreachable"},
        ),
        forged=_MACS,
    ),
    Family(
        what="scan",
        plain=PortScan(pace=Pace(rate=1)),
        rates=(100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01),
        changes=(
            {"shape": "random"},
            {"shape": "bursts", "period_s": 600.0},
            {"protocol": "udp"},
            {"protocol": "icmp"},
            {"port": 443},
            {"port": 0},
            {"targets": "local"},
            {"targets": "ports"},
            {"version": 6},
            {"answers": "all"},
        ),
        forged=_MACS,
    ),
    Family(
        what="contacts",
        plain=Contacts(pace=Pace(rate=1)),
        rates=tuple(a_day / DAY_S for a_day in (8640, 4320, 1440, 720, 288, 144, 96, 48, 24, 12, 6)),
        changes=(
            {"shape": "jittered"},
            {"shape": "random"},
            {"port": 443},
            {"to": "cloud"},
            {"way": "held"},
            {"way": "unanswered"},
            {"way": "refused"},
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Tried:
    """The highest rate a second of one attack that was not reported; None where every rate was."""

    changed: str
    rate: float | None


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """The part that stays unseen of one sort of attack on one device that has been learnt.

    ``plain``, ``best`` and ``forged`` are the highest unseen rates a second of the plain attack, of any attack under
    the device's own MAC, and under others; None where every rate was reported. ``best_name`` says which attack that is,
    ``watched_s`` for how long it was sent. ``most`` is the highest rate that was tried, ``tried`` all results.
    """

    device: str
    kind: str
    what: Literal["flood", "scan", "contacts"]
    plain: float | None
    best: float | None
    best_name: str
    watched_s: float
    forged: float | None
    most: float
    tried: tuple[Tried, ...]


class _Rate(NamedTuple):
    """An unseen rate: what it is in effect, which tables state, and by which the attack was asked for."""

    sustained: float
    nominal: float


def search(stage: Stage, deadline: float) -> tuple[list[Unseen], list[str]]:
    """Return what stays unseen on a device, and what there was no time for before ``deadline`` (Unix time)."""
    found, left_out = [], []
    for family in FAMILIES:
        if time.time() > deadline:
            left_out.append(f"{stage.days.device}: the search for unseen {family.what}")
        else:
            found.append(_search(stage, family, deadline, left_out))
    return found, left_out


def _search(stage: Stage, family: Family, deadline: float, left_out: list[str]) -> Unseen:
    rates: list[tuple[Change, _Rate | None]] = []
    for change in ({}, *family.changes):
        if time.time() > deadline:
            left_out.append(f"{stage.days.device}: {family.what} with {words(change)}")
        else:
            rates.append((change, _highest(stage, family, change)))
    if rates and (combined := _combined([(change, rate and rate.sustained) for change, rate in rates])):
        rates.append((combined, _highest(stage, family, combined)))
    forged = [(change, _highest(stage, family, change)) for change in family.forged]
    best, best_name, watched_s = _confirmed(stage, family, rates)
    plain = rates[0][1] if rates else None
    return Unseen(
        device=stage.days.device,
        kind=stage.days.kind,
        what=family.what,
        plain=plain and plain.sustained,
        best=best,
        best_name=best_name,
        watched_s=watched_s,
        forged=max((rate.sustained for _, rate in forged if rate is not None), default=None),
        most=family.rates[0],
        tried=tuple(Tried(changed=words(change), rate=rate and rate.sustained) for change, rate in (*rates, *forged)),
    )


def _highest(stage: Stage, family: Family, change: Change) -> _Rate | None:
    """Return the highest rate at which an attack is not reported; None if it is at each."""
    packets = FALSE_MACS if change.get("macs") == "random" else TRIED
    for rate in family.rates:
        attack = _attack(family.plain, change, rate)
        most = min(max(packets, int(rate * attack.pace.period_s)), CONFIRMED) if "ramp" in change.values() else packets
        attempt = stage.attempt(attack, seconds=DAY_S, packets=most)
        if attempt.packets is None:
            return _Rate(attack.pace.sustained(attempt.sent), rate)
    return None


def _combined(rates: Sequence[tuple[Change, float | None]]) -> Change:
    """Return all changes together that raised the rate, of each field that which raised it most; {} for fewer than two.

    >>> _combined([({}, 5.0), ({"size": 0}, 10.0), ({"size": 9}, 20.0), ({"port": 53}, 10.0), ({"to": "cloud"}, 2.0)])
    {'port': 53, 'size': 9}
    """
    plain, best = rates[0][1] or 0.0, dict[str, tuple[float, Change]]()
    for change, rate in rates[1:]:
        field = next(iter(change))
        if (rate or 0.0) > best.get(field, (plain, {}))[0]:
            best[field] = (rate or 0.0, change)
    together: dict[str, Any] = {}
    for _, change in sorted(best.values(), key=lambda pair: pair[0]):
        together |= change
    return together if len(best) > 1 else {}


def _confirmed(
    stage: Stage, family: Family, rates: Sequence[tuple[Change, _Rate | None]]
) -> tuple[float | None, str, float]:
    """Return the highest rate that is not reported in a whole day either, its attack, and the seconds it was sent."""
    left = [(*rate, -number) for number, (_, rate) in enumerate(rates) if rate is not None]
    while left:
        sustained, nominal, number = max(left)
        left.remove((sustained, nominal, number))
        attack = _attack(family.plain, rates[-number][0], nominal)
        attempt = stage.attempt(attack, seconds=DAY_S, packets=CONFIRMED)
        if attempt.packets is None:
            return attack.pace.sustained(attempt.sent), attack.name, attempt.watched_s
        lower = next((rate for rate in family.rates if rate < nominal), None)
        if lower is not None:
            left.append((sustained * lower / nominal, lower, number))
    return None, "", 0.0


def _attack(plain: Searched, change: Change, rate: float) -> Searched:
    """Return an attack with changes, at a rate."""
    of_pace = {key: value for key, value in change.items() if key in ("shape", "period_s")}
    rest = {key: value for key, value in change.items() if key not in of_pace}
    return replace(plain, pace=replace(plain.pace, rate=rate, **of_pace), **rest)


def words(change: Change) -> str:
    """Return changes in words.

    >>> words({"size": 0, "to": "cloud"}), words({})
    ('size 0, to cloud', 'plain')
    """
    return ", ".join(f"{key} {value}" for key, value in change.items()) or "plain"
