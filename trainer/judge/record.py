"""The results of an evaluation as one JSON document for programs: `evaluate --json FILE`.

The keys are documented in docs/models.md. Every figure is of the evaluation's own dataclasses; what is added here are
sums over devices, what they prove, and the bundle and command that they belong to.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_agent.contract.budget import MONTH_DAYS, per_home_month
from edge_agent.contract.bundle import replace_file
from trainer.judge.evaluation import HOME_DEVICES, AttackTrial, Day, Evaluation, bound, on_site
from trainer.judge.evaluation_findings import spread
from trainer.judge.evasions import Evasions

FORMAT = 1


def evaluated(evaluation: Evaluation, version: str, command: str, evaded: Evasions | None = None) -> dict[str, Any]:
    """Return the document of an evaluation, and of the evasions that were tried; ``version`` is the bundle's."""
    days = evaluation.days
    return {
        "format": FORMAT,
        "command": command,
        "bundle": {"sha256": evaluation.bundle, "version": version},
        "generated": evaluation.generated,
        "home": {"devices": HOME_DEVICES, "month_days": MONTH_DAYS},
        "benign": {
            "cold": proven(evaluation.false_alerts, evaluation.device_days),
            "learning": _proven_over([day for day in days if day.alerts_learning is not None], "alerts_learning"),
            "site": _proven_over(on_site(days), "alerts_site"),
        },
        "devices": [_device(device, days) for device in sorted({day.device for day in days})],
        "spread": {
            name: _spread(days, figure)
            for name, figure in (("shared", "flagged"), ("learnt", "flagged_learnt"), ("site", "flagged_site"))
        },
        "days": [dataclasses.asdict(day) for day in days],
        "attacks": [attack(trial) for trial in evaluation.trials],
        "floor": {
            name: {f"{rate:g}": seen for rate, seen in rates.items()} for name, rates in evaluation.floor.items()
        },
        "evasions": [] if evaded is None else [attack(trial) for trial in evaded.trials],
        "unseen": [] if evaded is None else [dataclasses.asdict(one) for one in evaded.unseen],
        "unlearnt": list(evaluation.unlearnt),
        "skipped": list(evaluation.skipped),
    }


def attack(trial: AttackTrial) -> dict[str, Any]:
    """Return one trial: its own figures, and what they say of the alert."""
    return {
        **dataclasses.asdict(trial),
        "alerted": trial.alerted,
        "seconds": trial.seconds,
        "named_wrongly": trial.named_wrongly,
    }


def proven(alerts: int, device_days: float) -> dict[str, Any]:
    """Return false alerts, the days they were seen in, and the 95 % bound of their rate; null without a day."""
    rate = bound(alerts, device_days) if device_days > 0 else None
    return {
        "alerts": alerts,
        "device_days": device_days,
        "device_weeks": device_days / 7,
        "bound_device_week": None if rate is None else 7 * rate,
        "bound_home_month": None if rate is None else per_home_month(rate, 1.0, HOME_DEVICES),
    }


def _proven_over(days: Sequence[Day], figure: str) -> dict[str, Any] | None:
    if not days:
        return None
    return proven(sum(getattr(day, figure) for day in days), sum(day.days for day in days))


def _device(device: str, days: Sequence[Day]) -> dict[str, Any]:
    of_device = [day for day in days if day.device == device]
    learning = [day for day in of_device if day.alerts_learning is not None]
    return {
        "device": device,
        "kind": of_device[-1].kind,
        "generated": any(day.generated for day in of_device),
        "cold": proven(sum(day.alerts for day in of_device), sum(day.days for day in of_device)),
        "learning": _proven_over(learning, "alerts_learning"),
        "site": _proven_over(on_site(of_device), "alerts_site"),
    }


def _spread(days: Sequence[Day], figure: str) -> dict[str, Any] | None:
    found = spread(days, figure)
    if found is None:
        return None
    devices, name, worst, mean, ratio, _ = found
    return {"devices": devices, "worst_device": name, "worst": worst, "mean": mean, "sigma_over_mu": ratio}


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a document, whole or not at all."""
    text = json.dumps(_finite(document), indent=1, ensure_ascii=False, allow_nan=False)
    replace_file(path, (text + "\n").encode())


def _finite(value: Any) -> Any:
    """Return plain data with null in place of numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
