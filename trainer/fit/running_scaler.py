"""A scaler fitted on rows as they come, none of which is stored."""

import numpy as np

from edge_agent.contract.scaling import Array, Scaler
from trainer.config import Scaling


class RunningScaler:
    """Mean and spread of ``width`` squashed columns over all rows so far.

    Welford 1962, by batches as Chan et al. 1979. `trainer.fit.fit.fit_scaler` gives the same for rows in memory.
    """

    def __init__(self, options: Scaling, width: int):
        self.options = options
        self.mean = np.zeros(width)
        self.square = np.zeros(width)
        """Sum of squared distances from the mean, (k,)."""
        self.rows = 0

    def add(self, values: Array) -> None:
        """Take rows (n, k) of raw values into account."""
        x = values.astype(np.float64)
        if self.options.squash == "log1p":
            x = np.copysign(np.log1p(np.abs(x)), x)
        total = self.rows + len(x)
        mean, shift = x.mean(axis=0), x.mean(axis=0) - self.mean
        self.square = self.square + ((x - mean) ** 2).sum(axis=0) + shift**2 * (self.rows * len(x) / total)
        self.mean = self.mean + shift * (len(x) / total)
        self.rows = total

    def scaler(self) -> Scaler:
        """Return the scaler of all rows so far."""
        spread = np.sqrt(self.square / max(1, self.rows))
        floor = self.options.floor
        return Scaler(self.options.squash, self.mean.copy(), np.maximum(spread, floor), self.options.clip)
