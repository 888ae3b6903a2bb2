"""The rows of a table that train, set τ, test, or are an attack's.

Importing this module does not import TensorFlow.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.bundle import BENIGN
from edge_agent.contract.scaling import Array
from trainer.base.rows import is_base
from trainer.config import Config
from trainer.data import protocol
from trainer.data.protocol import OPTIMISE, TEST, TRAIN
from trainer.data.row_table import RowTable

MOST_WEIGHT = 20.0
"""Weight of one row of the side that has fewer, the user's or the generated homes', at most: so few rows would be
learnt by heart."""

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
    base: NDArray[np.bool_]
    """True for rows of generated homes (`trainer.base.rows`), (n,)."""
    short: tuple[str, ...]
    """Devices and attack captures with too few rows for three parts."""

    def sample(self, limit: int) -> dict[str, Index]:
        """Return at most ``limit`` rows of each benign part: those of rows.parquet, which give the decision again."""
        parts = {"train": self.train, "optimise": self.optimise, "test": self.test}
        return {name: rows[shared(self.base[rows], limit)] for name, rows in parts.items()}

    def weights(self, rows: Index) -> Array:
        """Return the weight of each of ``rows`` in the training of the autoencoder, (n,): 1 on average.

        The user's rows weigh as much together as those of generated homes do, so that neither drowns the other, but a
        single row at most `MOST_WEIGHT` times one of the other side.
        """
        base = self.base[rows]
        theirs, ours = int(base.sum()), int((~base).sum())
        if not theirs or not ours:
            return np.ones(len(rows), dtype=np.float32)
        ratio = float(np.clip(theirs / ours, 1 / MOST_WEIGHT, MOST_WEIGHT))  # of one of our rows to one of theirs
        weights = np.where(base, 1.0, ratio)
        scaled: Array = (weights / weights.mean()).astype(np.float32)
        return scaled


def shared(base: NDArray[np.bool_], limit: int, block: int = protocol.BLOCK) -> Index:
    """Return at most ``limit`` row numbers, ascending: as many of generated homes (``base``) as others, if there are.

    Of each side whole blocks of neighbours are taken, evenly spread.

    >>> shared(np.array([True] * 90 + [False] * 10), 40, block=1).tolist()[-12:]
    [85, 89, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99]
    """
    sides = [np.flatnonzero(~base), np.flatnonzero(base)]
    few, many = sorted(sides, key=len)
    few = few[protocol.spread(len(few), limit // 2, block)] if len(many) else few
    many = many[protocol.spread(len(many), limit - len(few), block)]
    return np.sort(np.concatenate([few, many]))


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
    return Parts(
        train=train, optimise=optimise, test=test, attack=attack, part=part, base=is_base(table), short=tuple(short)
    )


def is_benign(table: RowTable) -> NDArray[np.bool_]:
    """Return a mask of the benign rows, (n,)."""
    return np.array([label == BENIGN for label in table.labels])[table.label]


def scored(score: Callable[[Array], Array], table: RowTable, rows: Index, at: Index) -> Array:
    """Return ``score`` of some rows of a table, columns ``at``, computed in pieces of bounded memory."""
    pieces = [score(table.values[np.ix_(rows[i : i + PIECE], at)]) for i in range(0, len(rows), PIECE)]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)
