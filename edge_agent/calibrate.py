"""From benign scores to the decision a bundle carries: τ, vote and the bounds of the counts rule.

Used by the trainer (float model), the converter (each quantised variant, on its own scores) and on site. Only benign
rows come in here: no attack label has a way to influence a decision.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.bundle import Decision, Threshold
from edge_agent.contract.columns import DEVICE_COLUMNS

COUNT_COLUMNS = tuple(c for c in DEVICE_COLUMNS if c.endswith(("new_peers", "new_sockets")))
"""The columns of the counts rule."""


def threshold(scores: NDArray[Any], n: float) -> Threshold:
    """τ = mean(MSE) + n·std(MSE) over benign optimise rows (Meidan et al. 2018); ValueError without rows."""
    scores = np.asarray(scores, dtype=np.float64)
    if not len(scores):
        raise ValueError("no benign rows to compute τ from")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    mean, std = float(scores.mean()), float(scores.std())
    return Threshold(mean + n * std, n, mean, std, float(scores.min()), float(scores.max()), len(scores))


def decide(
    full: NDArray[Any],
    fast: NDArray[Any],
    counts: NDArray[Any],
    *,
    n: float,
    margin: float,
    floors: dict[str, float],
    **vote: Any,
) -> Decision:
    """The decision for benign optimise rows: their ``full`` and ``fast`` scores (n,) and ``COUNT_COLUMNS`` (n, 10)."""
    highest = np.asarray(counts, dtype=np.float64).max(axis=0)
    bounds = {c: float(max(margin * h, floors[c])) for c, h in zip(COUNT_COLUMNS, highest, strict=True) if c in floors}
    return Decision(threshold(full, n), threshold(fast, n), bounds, **vote)
