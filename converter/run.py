"""A run folder, read for conversion and checked before anything is computed.

Rows are read in blocks, so a run of millions of rows needs no more memory than a small one.
"""

import datetime
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from edge_agent.contract import runfolder
from edge_agent.contract.decision import Decision
from edge_agent.contract.runfolder import ModelFile, RunFolderError
from edge_agent.contract.scaling import Array, Scaler

BLOCK = 32_768
"""Number of rows held in memory at a time: 18 MB of 140 float32 columns."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive rows: raw values (n, columns) and, per row, the facts that `runfolder.ROW_FACTS` names, each (n,)."""

    values: Array
    device: NDArray[np.str_]
    part: NDArray[np.str_]
    label: NDArray[np.str_]
    t_ns: NDArray[np.int64]
    run: NDArray[np.int64]
    start: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class CheckedRun:
    """A checked run folder; ``created`` is when it was fitted, ``rows`` how many rows it holds."""

    path: Path
    model: ModelFile
    scaler: Scaler
    created: datetime.datetime
    rows: int

    @property
    def classifier(self) -> Path | None:
        """The Keras classifier; None when the run has no classes."""
        return self.path / runfolder.CLASSIFIER if self.model.classes else None

    @property
    def autoencoder(self) -> Path:
        """The Keras autoencoder."""
        return self.path / runfolder.AUTOENCODER

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each file that decides what the bundle holds."""
        classifier = [runfolder.CLASSIFIER] if self.classifier else []
        digests = {}
        for name in (runfolder.AUTOENCODER, *classifier, runfolder.MODEL, runfolder.ROWS):
            with open(self.path / name, "rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return digests

    def parts(self) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
        """Return part and label of every row."""
        frame = self._scan(["part", "label"]).collect()
        return frame["part"].to_numpy().astype(np.str_), frame["label"].to_numpy().astype(np.str_)

    def blocks(self) -> Iterator[Block]:
        """Yield every row, in the file's order, at most `BLOCK` at a time."""
        scan = self._scan([*self.model.columns, "device", "part", "label", "t_ns", "run", "start"])
        for start in range(0, self.rows, BLOCK):
            frame = scan.slice(start, BLOCK).collect()
            yield Block(
                values=_floats(frame, self.model.columns),
                device=frame["device"].to_numpy().astype(np.str_),
                part=frame["part"].to_numpy().astype(np.str_),
                label=frame["label"].to_numpy().astype(np.str_),
                t_ns=frame["t_ns"].to_numpy().astype(np.int64),
                run=frame["run"].to_numpy().astype(np.int64),
                start=frame["start"].to_numpy().astype(bool),
            )

    def take(self, wanted: NDArray[np.int64]) -> Array:
        """Return the raw values of the rows at ``wanted`` (ascending), shape (n, columns)."""
        scan = self._scan(list(self.model.columns))
        taken = [np.empty((0, len(self.model.columns)), dtype=np.float32)]
        for start in range(0, self.rows, BLOCK):
            inside = wanted[(wanted >= start) & (wanted < start + BLOCK)] - start
            if len(inside):
                taken.append(_floats(scan.slice(start, BLOCK).collect(), self.model.columns)[inside])
        return np.concatenate(taken)

    def _scan(self, columns: list[str]) -> pl.LazyFrame:
        return pl.scan_parquet(self.path / runfolder.ROWS).select(columns)


def _floats(frame: pl.DataFrame, columns: Sequence[str]) -> Array:
    return np.ascontiguousarray(frame.select(columns).to_numpy(), dtype=np.float32)


def load(path: str | Path) -> CheckedRun:
    """Read and check a run folder; RunFolderError when a file is missing or not as the trainer writes it."""
    path = Path(path)
    if not path.is_dir():
        raise RunFolderError(f"{path}: no such run folder")
    for name in (runfolder.MODEL, runfolder.AUTOENCODER, runfolder.ROWS, runfolder.PROVENANCE):
        if not (path / name).is_file():
            raise RunFolderError(f"{path}: not a run folder: {name} is missing")
    model, scaler = runfolder.read_model(path)
    if model.classes and not (path / runfolder.CLASSIFIER).is_file():
        raise RunFolderError(f"{path}: {runfolder.MODEL} names classes, but {runfolder.CLASSIFIER} is missing")
    return CheckedRun(
        path=path,
        model=model,
        scaler=scaler,
        created=runfolder.read_provenance(path).created_at(),
        rows=_check_rows(path / runfolder.ROWS, model),
    )


def _check_rows(path: Path, model: ModelFile) -> int:
    """Return the number of rows; RunFolderError when a column is missing or of another type."""
    try:
        scan = pl.scan_parquet(path)
        schema = scan.collect_schema()
        rows = int(scan.select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RunFolderError(f"{path}: not a Parquet file: {' '.join(str(error).split())[:200]}") from error
    for column in model.columns:
        if column not in schema:
            raise RunFolderError(f"{path}: column {column!r} is missing")
        if not schema[column].is_numeric():
            raise RunFolderError(f"{path}: column {column!r} holds {schema[column]}, expected numbers")
    for column in ("device", "part", "label"):
        if schema.get(column) != pl.String:
            raise RunFolderError(f"{path}: column {column!r} is missing or not text")
    if schema.get("t_ns") != pl.Int64:
        raise RunFolderError(f"{path}: column 't_ns' is missing or not whole nanoseconds")
    for column, kind in (("run", pl.Int64), ("start", pl.Boolean)):
        if schema.get(column) != kind:
            raise RunFolderError(f"{path}: column {column!r} is missing or not {kind}")
    return rows


def difference(ours: Decision, theirs: Decision) -> str:
    """Describe the first τ or limit that differs by more than 1 % between two decisions; "" when none does.

    ``ours`` comes from the Keras models' scores of the run's rows, ``theirs`` from its model.json.
    """
    for rule, mine, other in (("full", ours.full, theirs.full), ("fast", ours.fast, theirs.fast)):
        for name, here, there in (("τ", mine.tau, other.tau), ("limit", mine.limit, other.limit)):
            if abs(here - there) > 0.01 * abs(there):
                return f"{name} of rule {rule} is {here:.6g} on these rows, {there:.6g} in {runfolder.MODEL}"
    return ""
