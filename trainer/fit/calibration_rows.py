"""The facts of benign rows that limits are calibrated by: who sent them, which follow each other, which are a start's.

What limits are made of them is the knowledge of `edge_agent.detection.calibrate`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.columns import COUNT_COLUMNS
from edge_agent.contract.scaling import Array
from edge_agent.detection import calibrate
from trainer.data.row_table import RowTable
from trainer.fit.row_parts import Index, is_benign


@dataclass(frozen=True, kw_only=True)
class CalibrationRows:
    """Facts of each row of a table, (n,) each, and the benign rows of its parts."""

    run: NDArray[np.int64]
    """Rows of one number followed each other in one part of one device; -1 for rows of no benign part."""
    start: NDArray[np.bool_]
    """True in the first seconds of a device in a capture."""


def of(table: RowTable, sample: dict[str, Index], warmup_s: float, *, shuffled: bool) -> CalibrationRows:
    """Return the facts of a table's rows, of which ``sample`` are those of each benign part, in order.

    Where parts were ``shuffled``, no row follows another, and those of a device and part count as one run.
    """
    run, known = np.full(len(table), -1, dtype=np.int64), 0
    for rows in sample.values():
        if not len(rows):
            continue
        device, number = table.device[rows], table.number[rows]
        breaks = np.diff(device, prepend=device[0]) != 0
        if not shuffled and _timed(table, rows):
            breaks |= np.diff(number, prepend=number[0]) != 1
            breaks[0] = False
        run[rows] = known + (np.cumsum(breaks) if not shuffled else device)
        known = int(run[rows].max()) + 1
    return CalibrationRows(run=run, start=_starts(table, warmup_s))


def senders(table: RowTable, rows: Index) -> NDArray[np.str_]:
    """Return the device that sent each row, (m,), see `calibrate.senders`."""
    return calibrate.senders(np.array(table.devices))[table.device[rows]]


def highest_counts(table: RowTable, rows: Index) -> dict[str, Array]:
    """Return the highest counts (`COUNT_COLUMNS`,) of each device in ``rows``.

    The other senders of a device's captures have none: a router's columns count all that it carries.
    """
    others = np.array(["/" in name for name in table.devices])
    rows = rows[~others[table.device[rows]]]
    at, names = table.positions(COUNT_COLUMNS), senders(table, rows)
    return {str(name): table.values[np.ix_(rows[names == name], at)].max(axis=0) for name in np.unique(names)}


def _timed(table: RowTable, rows: Index) -> bool:
    return bool(table.t_ns[rows].any())


def _starts(table: RowTable, warmup_s: float) -> NDArray[np.bool_]:
    """Return which rows, (n,), are a device's first seconds in a capture; none where all rows would be."""
    key = table.capture.astype(np.int64) * len(table.devices) + table.device
    _, group = np.unique(key, return_inverse=True)
    first = np.full(int(group.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, group, table.t_ns)
    start = (table.t_ns > 0) & (table.t_ns < first[group] + int(warmup_s * 1e9))
    benign = is_benign(table)
    return start if not start[benign].all() else np.zeros(len(table), dtype=bool)
