"""The vote rule: k of the last w rows of one device are above their limit."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


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
