"""The published N-BaIoT files: where they are in a folder, and their rows.

Two layouts are known: the folders of the UCI archive (<Device>/benign_traffic.csv) and the flat names of the Kaggle
copy (1.benign.csv), each plain or gzipped. Which rows are used, and for what, is not known here.
"""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from edge_agent.contract import columns as cols
from edge_agent.contract.bundle import BENIGN
from trainer.data.row_table import DatasetError

DEVICES = (
    "Danmini_Doorbell",
    "Ecobee_Thermostat",
    "Ennio_Doorbell",
    "Philips_B120N10_Baby_Monitor",
    "Provision_PT_737E_Security_Camera",
    "Provision_PT_838_Security_Camera",
    "Samsung_SNH_1011_N_Webcam",
    "SimpleHome_XCS7_1002_WHT_Security_Camera",
    "SimpleHome_XCS7_1003_WHT_Security_Camera",
)
"""Names of the devices 1 to 9 of the Kaggle files, as the UCI folders spell them."""


def find(root: Path) -> list[tuple[str, str, Path]]:
    """Return (device, label, file) of every published file under ``root``, in a fixed order."""
    if root.suffix.lower() in (".zip", ".rar"):
        raise DatasetError(f"{root}: is packed; unpack it and name the folder")
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder")
    files = []
    for path in sorted(root.iterdir()):
        if flat := re.fullmatch(r"([1-9])\.(benign|(?:gafgyt|mirai)\.\w+)\.csv(\.gz)?", path.name):
            files.append((DEVICES[int(flat[1]) - 1], flat[2], path))
        elif path.is_dir():
            files += [(path.name, label, file) for label, file in _find_uci(path)]
    if not files:
        packed = [p.name for p in sorted(root.rglob("*")) if p.suffix.lower() in (".zip", ".rar")]
        if packed:
            raise DatasetError(f"{root / packed[0]}: is packed; unpack it there")
        raise DatasetError(f"{root}: holds neither 1.benign.csv (Kaggle) nor <Device>/benign_traffic.csv (UCI)")
    known: dict[tuple[str, str], Path] = {}
    for device, label, path in files:
        if (device, label) in known:
            raise DatasetError(f"{path}: holds the same rows as {known[device, label].name}; remove one of the two")
        known[device, label] = path
    return files


def _find_uci(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        if path.name in ("benign_traffic.csv", "benign_traffic.csv.gz"):
            yield BENIGN, path
        elif path.is_dir() and (family := re.fullmatch("(gafgyt|mirai)_attacks", path.name)):
            for file in sorted(path.iterdir()):
                if attack := re.fullmatch(r"(\w+)\.csv(\.gz)?", file.name):
                    yield f"{family[1]}.{attack[1]}", file
        elif path.suffix.lower() in (".zip", ".rar") and not path.with_suffix("").exists():
            raise DatasetError(f"{path}: is packed; unpack it into {path.stem}/")


def read(path: Path) -> Iterator[pl.DataFrame]:
    """Yield the rows of a published file in chunks; its 115 columns may be in any order, and no others are accepted."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            header = [name.strip().strip('"') for name in file.readline().split(",")]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error
    for column in header:
        if column not in cols.NBAIOT_COLUMNS:
            raise DatasetError(f"{path}: unknown column {column!r}")
        if header.count(column) > 1:
            raise DatasetError(f"{path}: column {column!r} occurs twice")
    for column in cols.NBAIOT_COLUMNS:
        if column not in header:
            raise DatasetError(f"{path}: column {column!r} is missing")
    try:
        yield from pl.scan_csv(path, schema=dict.fromkeys(header, pl.Float64)).collect_batches(chunk_size=1 << 16)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DatasetError(_first_text(path, header) or f"{path}: {reason}") from error


def count(path: Path) -> int:
    """Return the number of rows of a published file without reading their values."""
    try:
        return int(pl.scan_csv(path, infer_schema=False).select(pl.len()).collect().item())
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DatasetError(f"{path}: {str(error).partition(chr(10))[0]}") from error


def _first_text(path: Path, header: list[str]) -> str | None:
    """Return a sentence that names the first cell that is not a number; None when every cell is one."""
    row = 0
    try:
        for frame in pl.scan_csv(path, schema=dict.fromkeys(header, pl.String)).collect_batches(chunk_size=1 << 14):
            bad = frame.select(pl.all().cast(pl.Float64, strict=False).is_null() & pl.all().is_not_null()).to_numpy()
            if bad.any():
                at = int(np.flatnonzero(bad.any(axis=1))[0])
                column = header[int(np.flatnonzero(bad[at])[0])]
                return f"{path}: row {row + at + 1}, column {column!r}: {frame[column][at]!r} is not a number"
            row += len(frame)
    except (OSError, pl.exceptions.PolarsError):
        return None
    return None
