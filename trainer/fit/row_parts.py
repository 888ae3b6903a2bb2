"""The rows of a table that train, set τ, test, or are an attack's.

Importing this module does not import TensorFlow.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.bundle import BENIGN
from edge_agent.contract.scaling import Array
from trainer.config import Config
from trainer.data import protocol
from trainer.data.protocol import OPTIMISE, TEST, TRAIN
from trainer.data.row_table import RowTable

PIECE = 65_536
"""Number of rows scored at a time, a bound of memory."""

Index = NDArray[np.intp]


class FitError(Exception):
    """Rows or settings that a model cannot be fitted with; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Row numbers of a table. Benign parts are in time order per device; attack rows are split for the classifier."""

    train: Index
    optimise: Index
    test: Index
    attack: Index
    """Every attack row, whatever its part."""
    part: NDArray[np.int8]
    """Part of every row, benign and attack alike, (n,)."""
    short: tuple[str, ...]
    """Devices and attack captures with too few rows for three parts."""

    def sample(self, limit: int) -> dict[str, Index]:
        """Return at most ``limit`` rows of each benign part: those of rows.parquet, which give the decision again."""
        parts = {"train": self.train, "optimise": self.optimise, "test": self.test}
        return {name: rows[protocol.spread(len(rows), limit)] for name, rows in parts.items()}


def split(config: Config, table: RowTable) -> Parts:
    """Split benign rows per device and attack rows per capture and label; FitError if a benign part stays empty."""
    benign = is_benign(table)
    if not benign.any():
        raise FitError("no benign rows: an autoencoder needs traffic of healthy devices")
    part = np.zeros(len(table), dtype=np.int8)
    short = []
    rows = np.flatnonzero(benign)
    part[rows], few = protocol.parts(table.t_ns[rows], table.device[rows], config.split)
    short += [table.devices[code] for code in few]
    attack = np.flatnonzero(~benign)
    if len(attack):
        group = table.capture[attack].astype(np.int64) * len(table.labels) + table.label[attack]
        part[attack], few = protocol.parts(table.t_ns[attack], group, config.attack_split)
        short += [
            f"{table.captures[code // len(table.labels)]} ({table.labels[code % len(table.labels)]})" for code in few
        ]
    order = rows[np.lexsort((table.t_ns[rows], table.device[rows]))]
    train, optimise, test = (order[part[order] == code] for code in (TRAIN, OPTIMISE, TEST))
    if not len(optimise):
        need = config.split
        raise FitError(
            f"{len(rows):,} benign rows of {len(np.unique(table.device[rows]))} device(s) are too few: no device has "
            f"{need.min_rows} rows in each of the train, optimise and test parts with {need.gap_rows} rows and "
            f"{need.gap_s:g} s between them"
        )
    attack = attack[np.lexsort((table.t_ns[attack], table.capture[attack], table.label[attack]))]
    return Parts(train=train, optimise=optimise, test=test, attack=attack, part=part, short=tuple(short))


def is_benign(table: RowTable) -> NDArray[np.bool_]:
    """Return a mask of the benign rows, (n,)."""
    return np.array([label == BENIGN for label in table.labels])[table.label]


def scored(score: Callable[[Array], Array], table: RowTable, rows: Index, at: Index) -> Array:
    """Return ``score`` of some rows of a table, columns ``at``, computed in pieces of bounded memory."""
    pieces = [score(table.values[np.ix_(rows[i : i + PIECE], at)]) for i in range(0, len(rows), PIECE)]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)
