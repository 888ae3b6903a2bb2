"""From benign scores to the decision a bundle carries: τ, vote and the bounds of the counts rule.

Used by the trainer (float model), the converter (each quantised variant, on its own scores) and on site. Only benign
rows come in here: no attack label has a way to influence a decision.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.bundle import Decision, Threshold
from edge_agent.contract.columns import DEVICE_COLUMNS

COUNT_COLUMNS = tuple(c for c in DEVICE_COLUMNS if c.endswith(("new_peers", "new_sockets")))
"""The columns of the counts rule."""


def threshold(scores: NDArray[Any], *, n: float, highest: float, margin: float) -> Threshold:
    """τ = mean(MSE) + n·std(MSE) over the scores (m,) of benign optimise rows (Meidan et al. 2018).

    The limit of a vote is τ, but at least ``margin`` times ``highest``, the highest vote of a benign device: mean and
    spread say little of how long a device stays high. ValueError without rows or with a score that is not finite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not len(scores):
        raise ValueError("no benign rows to compute τ from")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    mean, std = float(scores.mean()), float(scores.std())
    tau = mean + n * std
    figures = (mean, std, float(scores.min()), float(scores.max()), len(scores))
    return Threshold(max(tau, margin * highest), highest, tau, n, *figures)


def highest_vote(scores: NDArray[Any], groups: NDArray[Any], k: int, w: int) -> float:
    """The highest vote statistic within any group of rows; ``groups`` (m,) says which device (and part) each is of.

    The rows of a group are in time order. All benign rows count, those for testing too: it takes months of traffic to
    see what a device does once a month, so none may be left out. 0 without rows.
    """
    order = np.argsort(groups, kind="stable")
    cuts = np.flatnonzero(np.diff(np.unique(groups, return_inverse=True)[1][order])) + 1
    return max(
        (float(vote_statistic(part, k, w).max(initial=0.0)) for part in np.split(scores[order], cuts)), default=0.0
    )


def vote_statistic(scores: NDArray[Any], k: int, w: int) -> NDArray[np.float64]:
    """Per row, the k-th largest of the last w scores (fewer at the start: 0 until k are there), shape (n,).

    >>> vote_statistic(np.array([5.0, 1.0, 4.0, 3.0]), 2, 3)
    array([0., 1., 4., 3.])
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not len(scores):
        return scores
    windows = np.lib.stride_tricks.sliding_window_view(np.concatenate([np.zeros(w - 1), scores]), w)
    return np.partition(windows, w - k, axis=1)[:, w - k]


def count_bounds(counts: NDArray[Any], margin: float, floors: dict[str, float]) -> dict[str, float]:
    """Bounds of the counts rule: ``margin`` times the highest of all benign rows (m, 10), at least the column's floor.

    A column without a floor has no bound.
    """
    highest = np.asarray(counts, dtype=np.float64).max(axis=0, initial=0.0)
    return {c: float(max(margin * h, floors[c])) for c, h in zip(COUNT_COLUMNS, highest, strict=True) if c in floors}


@dataclass(frozen=True)
class Benign:
    """Scores of all benign rows, in time order within each group, and which of them are for τ."""

    full: NDArray[Any]
    fast: NDArray[Any]
    groups: NDArray[Any]  # which device and part a row is of
    optimise: NDArray[np.bool_]


def recalibrate(decision: Decision, benign: Benign) -> Decision:
    """``decision`` for another form of its model: τ and limits of its own scores of the same rows, the rest as is."""
    return dataclasses.replace(
        decision,
        full=_limits(benign.full, benign, decision.full.n, decision),
        fast=_limits(benign.fast, benign, decision.fast.n, decision),
    )


def decide(benign: Benign, n: float, counts: dict[str, float], **rules: Any) -> Decision:
    """A new decision: τ = mean + n·std, ``counts`` as of `count_bounds`, ``rules`` the fields of `Rules`."""
    nothing = Threshold(1.0, 0.0, 1.0, n, 0.0, 0.0, 0.0, 0.0, 0)
    return recalibrate(Decision(nothing, nothing, counts, **rules), benign)


def _limits(scores: NDArray[Any], benign: Benign, n: float, decision: Decision) -> Threshold:
    highest = highest_vote(scores, benign.groups, decision.vote_k, decision.vote_w)
    return threshold(scores[benign.optimise], n=n, highest=highest, margin=decision.vote_margin)
