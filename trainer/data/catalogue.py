"""The number of rows in each published file of N-BaIoT, and how many of them a source of rows holds.

The numbers are those of the published files (UCI Machine Learning Repository 442), counted over all 89 of them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import polars as pl

from edge_agent.contract.bundle import BENIGN
from edge_agent.contract.captures import load as load_manifest
from edge_agent.detection import classify
from trainer.config import DatasetEntry
from trainer.data import published
from trainer.data.row_table import DatasetError

LABELS = (
    BENIGN,
    *(f"gafgyt.{name}" for name in ("combo", "junk", "scan", "tcp", "udp")),
    *(f"mirai.{name}" for name in ("ack", "scan", "syn", "udp", "udpplain")),
)

_ROWS = (
    (49548, 59718, 29068, 29849, 92141, 105874, 102195, 107685, 122573, 237665, 81982),
    (13113, 53012, 30312, 27494, 95021, 104791, 113285, 43192, 116807, 151481, 87368),
    (39100, 53014, 29797, 28120, 101536, 103933),
    (175240, 58152, 28349, 27859, 92581, 105782, 91123, 103621, 118128, 217034, 80808),
    (62154, 61380, 30898, 29297, 104510, 104011, 60554, 96781, 65746, 156248, 56681),
    (98514, 57530, 29068, 28397, 89387, 104658, 57997, 97096, 61851, 158608, 53785),
    (52150, 58669, 28305, 27698, 97783, 110617),
    (46585, 54283, 28579, 27825, 88816, 103720, 111480, 45930, 125715, 151879, 78244),
    (19528, 59398, 27413, 28572, 98075, 102980, 107187, 43674, 122479, 157084, 84436),
)

Counts = Mapping[tuple[str, str], int]
"""(device, label) -> rows."""

PUBLISHED: Counts = {
    (device, label): rows
    for device, of_device in zip(published.DEVICES, _ROWS, strict=True)
    for label, rows in zip(LABELS, of_device, strict=False)  # two devices have no Mirai
}
"""
>>> len(PUBLISHED), by_family(PUBLISHED)
(89, {'benign': 555932, 'gafgyt': 2838272, 'mirai': 3668402})
"""


def by_family(counts: Counts, leave_out: Sequence[str] = ()) -> dict[str, int]:
    """Return the rows of benign, gafgyt and mirai, without the labels in ``leave_out``.

    >>> by_family(PUBLISHED, ("gafgyt.tcp", "gafgyt.udp"))["gafgyt"]  # what the study used
    1032056
    """
    total: Counter[str] = Counter()
    for (_, label), rows in counts.items():
        if label not in leave_out:
            total[classify.family(label) or label] += rows
    return dict(total)


def count_rows(entry: DatasetEntry) -> dict[tuple[str, str], int | None]:
    """Return (device, label) -> rows of all of one source, also of rows not asked for.

    The number is None for captures, whose rows can only be counted by extracting them.
    """
    if entry.kind == "nbaiot":
        return {(device, label): published.count(path) for device, label, path in published.find(entry.path)}
    if entry.kind == "captures":
        manifest, _, _ = load_manifest(entry.path, entry.root)
        return {(capture.device, capture.label): None for capture in manifest.captures}
    return {(device, label): rows for device, label, rows in _parquet_rows(entry)}


def differences(counts: Counts, expected: Counts = PUBLISHED) -> list[str]:
    """Return one sentence for each file of a whole data set that has another number of rows than published.

    A part of the data set gives no sentence.
    """
    if set(counts) < set(expected) or not set(counts) & set(expected):
        return []
    return [
        f"{device} {label} has {counts[device, label]:,} rows, published are {rows:,}"
        for (device, label), rows in expected.items()
        if counts[device, label] != rows
    ]


def _parquet_rows(entry: DatasetEntry) -> list[tuple[str, str, int]]:
    """Return (device, label, rows) of a Parquet file, by its own columns or the names that the entry gives them."""
    try:
        frame = pl.scan_parquet(entry.path)
        names = frame.collect_schema().names()
        device = pl.col("device") if "device" in names else pl.lit(entry.device or entry.path.stem).alias("device")
        label = pl.col("label") if "label" in names else pl.lit(entry.label or "").alias("label")
        counted = frame.group_by(device.cast(pl.String), label.cast(pl.String)).len().collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DatasetError(f"{entry.path}: {str(error).partition(chr(10))[0]}") from error
    return sorted(counted.iter_rows())
