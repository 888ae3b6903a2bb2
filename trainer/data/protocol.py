"""The split of rows into those that train, those that set τ and those that test.

Parts are in time order per device, with a gap between them. Rows of one burst are near copies of each other (one row is
one packet), so a shuffled split would test on rows that also trained. The gap keeps the damped statistics of one part
from reaching into the next; it is cut from the head of the later part. The shuffled split of the original study is
available as `random`, to show what it hides.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.settings import check, within

UNUSED, TRAIN, OPTIMISE, TEST = 0, 1, 2, 3
"""The part that a row belongs to; UNUSED rows are in a gap."""


@dataclass(frozen=True)
class Split:
    """Fractions of a device's rows, and the gap between the parts.

    With ``order`` `random` the fractions are of all rows of all devices together, shuffled, without gaps.
    """

    train: float = within(0.6, 1e-6, 1 - 1e-6)
    optimise: float = within(0.2, 1e-6, 1 - 1e-6)
    test: float = within(0.2, 1e-6, 1 - 1e-6)
    gap_rows: int = within(200, 0, 10**9)
    gap_s: float = within(60.0, 0.0, 366 * 86_400.0)
    min_rows: int = within(50, 1, 10**9)  # fewer would measure nothing: then all rows of the device train
    order: Literal["time", "random"] = "time"

    def __post_init__(self) -> None:
        check(self)
        if self.train + self.optimise + self.test > 1 + 1e-9:
            raise ValueError(f"train + optimise + test is {self.train + self.optimise + self.test:g}, more than 1")


def parts(t_ns: NDArray[np.int64], group: NDArray[np.integer], split: Split) -> tuple[NDArray[np.int8], list[int]]:
    """Return the part of every row, shape (n,), and the groups too short for three parts, whose rows all train.

    ``group`` is a code per row: the device, or the capture and label of an attack. Rows of one group are taken in time
    order, equal times in the order given. Rows whose times are all equal (published rows) have no time, and only
    ``gap_rows`` applies to them. In `random` order groups do not count, and equal input gives equal parts.
    """
    part = np.full(len(t_ns), UNUSED, dtype=np.int8)
    short: list[int] = []
    if split.order == "random":
        order = np.random.default_rng(17).permutation(len(t_ns))
        train_end, optimise_end, test_end = _ends(len(t_ns), split)
        part[order[:train_end]] = TRAIN
        part[order[train_end:optimise_end]] = OPTIMISE
        part[order[optimise_end:test_end]] = TEST
        return part, short
    for code in np.unique(group):
        rows = np.flatnonzero(group == code)
        rows = rows[np.argsort(t_ns[rows], kind="stable")]
        times, n = t_ns[rows], len(rows)
        train_end, optimise_end, test_end = _ends(n, split)
        optimise_start = _after_gap(times, train_end, split)
        test_start = _after_gap(times, optimise_end, split)
        if min(optimise_end - optimise_start, test_end - test_start, train_end) < split.min_rows:
            part[rows] = TRAIN
            short.append(int(code))
            continue
        part[rows[:train_end]] = TRAIN
        part[rows[optimise_start:optimise_end]] = OPTIMISE
        part[rows[test_start:test_end]] = TEST
    return part, short


def _ends(n: int, split: Split) -> tuple[int, int, int]:
    """Return the row numbers at which the three parts of ``n`` rows in order end."""
    whole = split.train + split.optimise + split.test
    return int(split.train * n), int((split.train + split.optimise) * n), min(n, round(whole * n))


def _after_gap(times: NDArray[np.int64], end: int, split: Split) -> int:
    """Return the first row past the gap after the part that ends before row ``end``."""
    if not end or times[0] == times[-1]:
        return end + split.gap_rows
    by_time = int(np.searchsorted(times, times[end - 1] + int(split.gap_s * 1e9), side="left"))
    return max(end + split.gap_rows, by_time)


BLOCK = 256
"""Rows that are taken or left out together when rows are thinned."""


def spread(n: int, limit: int, block: int = BLOCK) -> NDArray[np.intp]:
    """Return at most ``limit`` of ``n`` row numbers, ascending: whole blocks of neighbours, evenly spread.

    Neighbours stay together because votes and damped statistics are about rows in sequence.

    >>> spread(10, 4, block=2).tolist()
    [0, 1, 8, 9]
    """
    if n <= limit:
        return np.arange(n)
    block = max(1, min(block, limit))
    blocks = -(-n // block)
    starts = np.unique(np.linspace(0, blocks - 1, max(1, limit // block)).astype(np.intp)) * block
    rows = (starts[:, None] + np.arange(block)).ravel()
    return rows[rows < n]
