"""A ranking of columns by how well they separate classes: Fisher scores, with copies left out."""

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.columns import COPIES


def fisher(values: NDArray[np.floating], classes: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return F = Σ p_j (μ_j − μ)² / Σ p_j σ_j² per column, shape (k,), p_j being class j's share of the rows.

    A constant column has no score: NaN. A column that is constant within each class but not between them scores inf.

    >>> fisher(np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0], [6.0, 1.0]]), np.array([0, 0, 1, 1])).tolist()
    [4.0, nan]
    """
    between = np.zeros(values.shape[1])
    within = np.zeros(values.shape[1])
    mean = values.mean(axis=0, dtype=np.float64)
    for code in np.unique(classes):
        rows = values[classes == code]
        share = len(rows) / len(values)
        between += share * (rows.mean(axis=0, dtype=np.float64) - mean) ** 2
        within += share * rows.var(axis=0, dtype=np.float64)
    rounding = 1e-12 * mean**2  # rounding of float64 sums where the variance is zero
    score = np.full(len(mean), np.inf)
    np.divide(between, within, out=score, where=within > rounding)
    score[between + within <= rounding] = np.nan
    return score


def best(columns: tuple[str, ...], scores: NDArray[np.float64], n: int) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the ``n`` highest-scoring distinct columns, best first, and the copies left out (copy -> original).

    ValueError if fewer than ``n`` distinct columns have a score.
    """
    copies = {c: COPIES[c] for c in columns if COPIES.get(c) in columns}
    ranked = [
        columns[i]
        for i in np.argsort(-np.nan_to_num(scores, nan=-1.0), kind="stable")
        if columns[i] not in copies and not np.isnan(scores[i])
    ]
    if n > len(ranked):
        raise ValueError(f"top_n is {n}, but only {len(ranked)} distinct columns are not constant")
    return tuple(ranked[:n]), copies
