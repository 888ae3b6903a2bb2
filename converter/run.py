"""What `botwatch trainer fit` left in a run folder, read for conversion and checked before anything is computed.

The folder is the whole interface between trainer and converter: Keras models, ``model.json`` and the raw rows with the
part each was used for. Rows are read in blocks, so a run of millions of rows needs no more memory than a small one.
"""

import datetime
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from edge_agent.contract import settings
from edge_agent.contract.bundle import BENIGN, CLASSIFIER, Decision, PacketProfile
from edge_agent.contract.scaling import Array, Scaler, ScalingError

FORMAT = 1
AUTOENCODER_KERAS, CLASSIFIER_KERAS, MODEL = "autoencoder.keras", "classifier.keras", "model.json"
ROWS, PROVENANCE = "rows.parquet", "provenance.json"
BLOCK = 32_768
"""Rows held in memory at a time: 18 MB of 140 float32 columns."""


class RunError(Exception):
    """A run folder that cannot be converted; the message names the file and why."""


@dataclass(frozen=True)
class ModelFile:
    """``model.json`` as the trainer writes it."""

    format: int
    schemas: tuple[str, ...]
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    scaler: dict[str, object]
    decision: Decision
    generated: bool
    normal: dict[str, tuple[float, ...]]
    seed: int
    provenance: dict[str, str]
    signatures: dict[str, PacketProfile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format {self.format}, this converter reads format {FORMAT}")
        if not self.columns:
            raise ValueError("columns: none named")
        if self.classes and BENIGN not in self.classes:
            raise ValueError(f"classes: no {BENIGN!r} among {', '.join(self.classes)}")


@dataclass(frozen=True)
class Block:
    """Some consecutive rows: raw values (n, columns), whose they are, of which part and label, and their time."""

    values: Array
    device: NDArray[np.str_]
    part: NDArray[np.str_]
    label: NDArray[np.str_]
    t_ns: NDArray[np.int64]


@dataclass(frozen=True)
class CheckedRun:
    """A checked run folder."""

    path: Path
    model: ModelFile
    scaler: Scaler
    created: datetime.datetime
    rows: int

    @property
    def classifier(self) -> Path | None:
        """The Keras classifier; None when the run has no classes."""
        return self.path / CLASSIFIER_KERAS if self.model.classes else None

    @property
    def autoencoder(self) -> Path:
        """The Keras autoencoder."""
        return self.path / AUTOENCODER_KERAS

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file that decides what the bundle holds."""
        names = [AUTOENCODER_KERAS, *([CLASSIFIER_KERAS] if self.classifier else []), MODEL, ROWS]
        found = {}
        for name in names:
            with open(self.path / name, "rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return found

    def parts(self) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
        """Part and label of every row."""
        frame = self._scan(["part", "label"]).collect()
        return frame["part"].to_numpy().astype(np.str_), frame["label"].to_numpy().astype(np.str_)

    def blocks(self) -> Iterator[Block]:
        """Every row, in the file's order, at most `BLOCK` at a time."""
        scan = self._scan([*self.model.columns, "device", "part", "label", "t_ns"])
        for start in range(0, self.rows, BLOCK):
            frame = scan.slice(start, BLOCK).collect()
            yield Block(
                _floats(frame, self.model.columns),
                frame["device"].to_numpy().astype(np.str_),
                frame["part"].to_numpy().astype(np.str_),
                frame["label"].to_numpy().astype(np.str_),
                frame["t_ns"].to_numpy().astype(np.int64),
            )

    def take(self, wanted: NDArray[np.int64]) -> Array:
        """Raw values of the rows at ``wanted`` (ascending), shape (n, columns)."""
        scan = self._scan(list(self.model.columns))
        taken = [np.empty((0, len(self.model.columns)), dtype=np.float32)]
        for start in range(0, self.rows, BLOCK):
            inside = wanted[(wanted >= start) & (wanted < start + BLOCK)] - start
            if len(inside):
                taken.append(_floats(scan.slice(start, BLOCK).collect(), self.model.columns)[inside])
        return np.concatenate(taken)

    def _scan(self, columns: list[str]) -> pl.LazyFrame:
        return pl.scan_parquet(self.path / ROWS).select(columns)


def _floats(frame: pl.DataFrame, columns: Sequence[str]) -> Array:
    return np.ascontiguousarray(frame.select(columns).to_numpy(), dtype=np.float32)


def load(path: str | Path) -> CheckedRun:
    """Read and check a run folder; RunError when a file is missing or not as the trainer writes it."""
    path = Path(path)
    if not path.is_dir():
        raise RunError(f"{path}: no such run folder")
    for name in (MODEL, AUTOENCODER_KERAS, ROWS, PROVENANCE):
        if not (path / name).is_file():
            raise RunError(f"{path}: not a run folder: {name} is missing")
    try:
        data = json.loads((path / MODEL).read_bytes())
        model = settings.build(ModelFile, data, str(path / MODEL))
    except settings.SettingsError as error:
        raise RunError(str(error)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path / MODEL}: not JSON: {error}") from error
    try:
        scaler = Scaler.from_json(model.scaler)
    except (ScalingError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path / MODEL} [scaler]: {error!r}") from error
    if len(scaler.mean) != len(model.columns):
        raise RunError(f"{path / MODEL}: scaler has {len(scaler.mean)} columns, model {len(model.columns)}")
    if model.classes and not (path / CLASSIFIER_KERAS).is_file():
        raise RunError(f"{path}: {MODEL} names classes, but {CLASSIFIER_KERAS} (for {CLASSIFIER}) is missing")
    return CheckedRun(path, model, scaler, _created(path), _check_rows(path / ROWS, model))


def _created(path: Path) -> datetime.datetime:
    """When the run was fitted: the date of every bundle made of it, so that the same run gives the same bundle."""
    try:
        return datetime.datetime.fromisoformat(json.loads((path / PROVENANCE).read_bytes())["created"])
    except KeyError as error:
        raise RunError(f"{path / PROVENANCE}: missing key 'created' (the bundle's date)") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{path / PROVENANCE}: not JSON with an ISO date in 'created': {error}") from error


def _check_rows(path: Path, model: ModelFile) -> int:
    """Number of rows; RunError when a column is missing or of another type."""
    try:
        scan = pl.scan_parquet(path)
        schema = scan.collect_schema()
        rows = int(scan.select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RunError(f"{path}: not a Parquet file: {' '.join(str(error).split())[:200]}") from error
    for column in model.columns:
        if column not in schema:
            raise RunError(f"{path}: column {column!r} is missing")
        if not schema[column].is_numeric():
            raise RunError(f"{path}: column {column!r} holds {schema[column]}, expected numbers")
    for column in ("device", "part", "label"):
        if schema.get(column) != pl.String:
            raise RunError(f"{path}: column {column!r} is missing or not text")
    if schema.get("t_ns") != pl.Int64:
        raise RunError(f"{path}: column 't_ns' is missing or not whole nanoseconds")
    return rows


def difference(ours: Decision, theirs: Decision) -> str:
    """What of τ differs by more than 1 % between the Keras models' scores here and the run; "" when nothing does."""
    for rule, mine, other in (("full", ours.full, theirs.full), ("fast", ours.fast, theirs.fast)):
        for name, here, there in (("τ", mine.tau, other.tau), ("limit", mine.limit, other.limit)):
            if abs(here - there) > 0.01 * abs(there):
                return f"{name} of rule {rule} is {here:.6g} on these rows, {there:.6g} in {MODEL}"
    return ""
