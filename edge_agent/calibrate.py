"""From benign scores to the decision a bundle carries: τ, vote and the bounds of the counts rule.

Used by the trainer (float model), the converter (each quantised variant, on its own scores) and on site. Only benign
rows come in here: no attack label has a way to influence a decision.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.bundle import Decision, Threshold
from edge_agent.contract.columns import DEVICE_COLUMNS

COUNT_COLUMNS = tuple(c for c in DEVICE_COLUMNS if c.endswith(("new_peers", "new_sockets")))
"""The columns of the counts rule."""


def threshold(
    scores: NDArray[Any], devices: NDArray[Any], *, n: float, margin: float, floor: float, k: int, w: int
) -> Threshold:
    """τ = mean(MSE) + n·std(MSE) over benign optimise rows (Meidan et al. 2018), and the limit of the vote.

    ``scores`` (m,) in time order per device, ``devices`` (m,) whose row each is. The limit is τ, but at least
    ``margin`` times the highest vote statistic (k-th largest of a device's last w scores), since a mean and a spread
    say little of how long a device stays high, and at least ``floor``: a network that rebuilds the rows it was given
    almost perfectly makes all of these small, and less so what other days bring. ValueError without rows or with a
    score that is not finite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not len(scores):
        raise ValueError("no benign rows to compute τ from")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    mean, std = float(scores.mean()), float(scores.std())
    tau = mean + n * std
    highest = max(float(vote_statistic(scores[devices == d], k, w).max()) for d in np.unique(devices))
    figures = (mean, std, float(scores.min()), float(scores.max()), len(scores))
    return Threshold(max(tau, margin * highest, floor), highest, tau, n, *figures)


def vote_statistic(scores: NDArray[Any], k: int, w: int) -> NDArray[np.float64]:
    """Per row, the k-th largest of the last w scores (fewer at the start: 0 until k are there), shape (n,).

    >>> vote_statistic(np.array([5.0, 1.0, 4.0, 3.0]), 2, 3)
    array([0., 1., 4., 3.])
    """
    padded = np.concatenate([np.zeros(w - 1), np.asarray(scores, dtype=np.float64)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, w)
    return np.partition(windows, w - k, axis=1)[:, w - k] if len(windows) else np.zeros(0)


def count_bounds(counts: NDArray[Any], margin: float, floors: dict[str, float]) -> dict[str, float]:
    """Bounds of the counts rule: ``margin`` times the highest of benign rows (m, 10), at least the column's floor.

    A column without a floor has no bound. The highest is taken over all benign rows that are not for testing: a count
    is not fitted, and what a device does when it starts is in its first rows.
    """
    highest = np.asarray(counts, dtype=np.float64).max(axis=0, initial=0.0)
    return {c: float(max(margin * h, floors[c])) for c, h in zip(COUNT_COLUMNS, highest, strict=True) if c in floors}


def recalibrate(decision: Decision, full: NDArray[Any], fast: NDArray[Any], devices: NDArray[Any]) -> Decision:
    """``decision`` for another form of its model: τ and limits of its scores of the same rows, all else as it was."""
    again = functools.partial(
        threshold,
        devices=devices,
        margin=decision.vote_margin,
        floor=decision.vote_floor,
        k=decision.vote_k,
        w=decision.vote_w,
    )
    return dataclasses.replace(decision, full=again(full, n=decision.full.n), fast=again(fast, n=decision.fast.n))
