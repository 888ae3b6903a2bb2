"""Rotation over days: each day of every device is judged once by a model that was fitted on all other days.

A day is an entry of a manifest, which may be a span of a file. The last days of a capture, on which a fit is usually
judged, need not be like the others: a firmware update or a power cut comes on some day. `compare` makes the fits; this
module knows what each leaves out, and how their results are added up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from edge_agent.contract.bundle import BENIGN, replace_file
from edge_agent.contract.captures import Capture, CaptureManifest
from trainer.config import DatasetEntry, plain
from trainer.judge.evaluation import Day, Evaluation, on_site, stated
from trainer.report.findings import Cell, Table


class RotationError(Exception):
    """Days that cannot be rotated; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One fit: ``data`` are the sources with all other days, ``judged`` the days left out, ``earlier`` the rest."""

    name: str
    data: tuple[DatasetEntry, ...]
    judged: tuple[tuple[CaptureManifest, Path], ...]
    earlier: tuple[tuple[CaptureManifest, Path], ...]


def folds(sources: Sequence[tuple[DatasetEntry, CaptureManifest, Path]], out: Path) -> list[Fold]:
    """Return the fits: the n-th leaves out the n-th day of every device that has as many, of all sources together.

    A device with one day is in every fit and is not judged; attacks are in every fit. The manifests of what remains are
    written into ``out``. RotationError when no device has two days.
    """
    days: dict[str, list[Capture]] = {}
    for entry, manifest, _ in sources:
        for capture in manifest.captures:
            if capture.label == BENIGN and (not entry.devices or capture.device in entry.devices):
                days.setdefault(capture.device, []).append(capture)
    most = max((len(of_device) for of_device in days.values()), default=0)
    if most < 2:
        raise RotationError("rotate needs a device with two benign captures or more in the config's data")
    return [_fold(number, days, sources, out) for number in range(most)]


def _fold(
    number: int,
    days: dict[str, list[Capture]],
    sources: Sequence[tuple[DatasetEntry, CaptureManifest, Path]],
    out: Path,
) -> Fold:
    left_out = {id(of_device[number]) for of_device in days.values() if len(of_device) > max(number, 1)}
    name = f"day {number + 1}"
    data, judged, earlier = [], [], []
    for i, (entry, manifest, root) in enumerate(sources):
        remaining = replace(manifest, captures=tuple(c for c in manifest.captures if id(c) not in left_out))
        path = out / f"{name.replace(' ', '-')}-{i + 1}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, yaml.safe_dump(_plain(remaining), sort_keys=False).encode())
        data.append(replace(entry, path=path.resolve(), root=root.resolve()))
        judged.append((replace(manifest, captures=tuple(c for c in manifest.captures if id(c) in left_out)), root))
        benign = tuple(c for c in remaining.captures if c.label == BENIGN)
        earlier.append((replace(manifest, captures=benign), root))
    return Fold(name=name, data=tuple(data), judged=tuple(judged), earlier=tuple(earlier))


def _plain(manifest: CaptureManifest) -> Any:
    """Return a manifest as data that YAML can write and `captures.load` reads again."""
    return {**plain(manifest), "captures": [_without_none(plain(capture)) for capture in manifest.captures]}


def _without_none(value: dict[str, Any]) -> dict[str, Any]:
    return {key: _without_none(v) if isinstance(v, dict) else v for key, v in value.items() if v is not None}


def table(evaluations: Sequence[Evaluation]) -> tuple[str, Table]:
    """Return all folds in one sentence, and a table by device: false alerts with shared and with learnt limits."""
    days = [day for one in evaluations for day in one.days]
    site = on_site(days)
    sentence = (
        f"False device alerts on days left out of the fit: {stated(*_sum(days, 'alerts'))}. With limits learnt on the "
        f"other days: {stated(*_sum(site, 'alerts_site'))}."
    )
    rows: list[tuple[Cell, ...]] = []
    for device in sorted({day.device for day in days}):
        of_device = [day for day in days if day.device == device]
        alerts, exposure = _sum(of_device, "alerts")
        learnt, _ = _sum(on_site(of_device), "alerts_site")
        shares = [day.flagged / day.packets for day in of_device if day.packets]
        own = [day.flagged_site for day in of_device if day.flagged_site is not None]
        rows.append(
            (
                device,
                of_device[-1].kind or None,
                len(of_device),
                round(exposure, 3),
                alerts,
                learnt,
                max(shares, default=None),
                max(own, default=None),
            )
        )
    rows.sort(key=lambda row: (-float(row[4] or 0), -float(row[5] or 0)))
    columns = ("device", "kind", "days", "device-days", "false alerts", "with limits learnt on its other days")
    return sentence, Table(
        "Days left out of the fit, by device",
        (*columns, "rows flagged, worst day", "rows flagged, learnt"),
        tuple(rows),
        "Each day is judged once, from a cold start, by a model that was fitted on all other days. The agent that "
        "learns has judged the device's other days before, moved in time.",
    )


def _sum(days: Sequence[Day], figure: str) -> tuple[int, float]:
    return sum(getattr(day, figure) for day in days), sum(day.days for day in days)
