"""Rows on disk: a data set of any size is read once, and from then on block by block.

A store is a folder of Parquet files of `BLOCK` rows and ``store.json``, which is written last: a folder that has one is
whole. Nothing is thinned. How rows are split, scaled and trained on is not known here.
"""

import fcntl
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from edge_agent.contract.bundle import PROFILE_FIELDS, replace_file
from edge_agent.contract.scaling import Array
from trainer.config import Config, plain
from trainer.data import dataset
from trainer.data.dataset import DatasetError, RowTable

BLOCK = 1 << 14
NAME = "store.json"
FORMAT = 1
CODES = ("device", "label", "capture")
LOOKS = tuple(f"looks {i}" for i in range(len(PROFILE_FIELDS)))


class _Writer(dataset.Builder):
    """A builder whose rows go to disk as they come."""

    def __init__(self, folder: Path, columns: tuple[str, ...], jitter_schema: str, limits: dataset.Limits):
        super().__init__(columns, jitter_schema, limits)
        self.folder, self.blocks = folder, 0
        self._waiting: list[tuple[Array, NDArray[np.int32], NDArray[np.int64], NDArray[np.uint64], Array]] = []
        self._wait = 0
        self._devices: dict[str, None] = {}

    def add(
        self,
        capture: str,
        device: str,
        label: str,
        values: Array,
        t_ns: NDArray[np.int64],
        mac: NDArray[np.uint64],
        looks: Array | None = None,
    ) -> None:
        """To disk, as soon as a block is full."""
        if not len(values):
            return
        self.expect(capture, label)
        self._devices[device] = None
        names = zip((self._devices, self._labels, self._captures), (device, label, capture), strict=True)
        code = np.array([list(known).index(name) for known, name in names], dtype=np.int32)
        if looks is None:
            looks = np.full((len(values), len(PROFILE_FIELDS)), np.nan, dtype=np.float32)
        self._waiting.append((values, np.tile(code, (len(values), 1)), t_ns, mac, looks))
        self.seen += len(values)
        self._wait += len(values)
        while self._wait >= BLOCK:
            self._flush(BLOCK)

    def _flush(self, rows: int) -> None:
        arrays = [np.concatenate(held) for held in zip(*self._waiting, strict=True)]
        values, code, t_ns, mac, looks = (array[:rows] for array in arrays)
        # copies, so that what waits does not hold the chunks it is of
        self._waiting, self._wait = [tuple(array[rows:].copy() for array in arrays)], len(arrays[0]) - rows  # type: ignore[list-item]
        block = pl.DataFrame(
            {
                **{name: values[:, i] for i, name in enumerate(self.columns)},
                **{name: code[:, i] for i, name in enumerate(CODES)},
                "t_ns": t_ns,
                "mac": mac,
                **{name: looks[:, i] for i, name in enumerate(LOOKS)},
            }
        )
        path = _block(self.folder, self.blocks)
        try:
            block.write_parquet(path, compression="lz4")
        except (OSError, pl.exceptions.PolarsError) as error:  # of a full disk Polars names no file
            reason = str(error).partition("\n")[0]
            raise DatasetError(f"{path}: cannot be written, {self.seen:,} rows were read: {reason}") from error
        self.blocks += 1

    def close(self, asked: dict[str, Any]) -> None:
        """Write what is left, then what the blocks hold."""
        if self._wait:
            self._flush(self._wait)
        told = {
            "format": FORMAT,
            "asked": asked,
            "columns": self.columns,
            "rows": self.seen,
            "blocks": self.blocks,
            "devices": list(self._devices),
            "labels": list(self._labels),
            "captures": list(self._captures),
            "generated": self.generated,
            "inputs": self.inputs,
            "warnings": self.warnings,
        }
        replace_file(self.folder / NAME, (json.dumps(told, indent=1) + "\n").encode())


@dataclass(frozen=True)
class RowStore:
    """Rows on disk; in memory it holds nothing of any row."""

    folder: Path
    columns: tuple[str, ...]
    rows: int
    blocks: int
    devices: tuple[str, ...]
    labels: tuple[str, ...]
    captures: tuple[str, ...]
    generated: bool
    inputs: dict[str, str]
    warnings: tuple[str, ...]

    def __len__(self) -> int:
        return self.rows

    def index(self) -> RowTable:
        """All rows without their values, shape (n, 0): 28 bytes each. To be let go of before memory is needed."""
        code, t_ns, mac = (
            np.empty((3, len(self)), np.int32),
            np.empty(len(self), np.int64),
            np.empty(len(self), np.uint64),
        )
        for block in range(self.blocks):
            frame = self._read(block, [*CODES, "t_ns", "mac"])
            at = slice(block * BLOCK, block * BLOCK + len(frame))
            for i, name in enumerate(CODES):
                code[i, at] = frame[name].to_numpy()
            t_ns[at], mac[at] = frame["t_ns"].to_numpy(), frame["mac"].to_numpy()
        return self._table(np.empty((len(self), 0), np.float32), (), code, t_ns, mac, None)

    def take(self, rows: NDArray[np.intp]) -> RowTable:
        """The table of these ascending row numbers, in memory."""
        values = np.empty((len(rows), len(self.columns)), dtype=np.float32)
        looks = np.empty((len(rows), len(LOOKS)), dtype=np.float32)
        code, t_ns, mac = (
            np.empty((3, len(rows)), np.int32),
            np.empty(len(rows), np.int64),
            np.empty(len(rows), np.uint64),
        )
        for block, at in self._blocks_of(rows):
            chosen = rows[at] - block * BLOCK
            frame = self._read(block, [*self.columns, *CODES, "t_ns", "mac", *LOOKS])
            values[at], looks[at] = _floats(frame, self.columns)[chosen], _floats(frame, LOOKS)[chosen]
            for i, name in enumerate(CODES):
                code[i, at] = frame[name].to_numpy()[chosen]
            t_ns[at], mac[at] = frame["t_ns"].to_numpy()[chosen], frame["mac"].to_numpy()[chosen]
        return self._table(values, self.columns, code, t_ns, mac, looks)

    def values(self, block: int, columns: tuple[str, ...]) -> Array:
        """Rows of one block, shape (at most `BLOCK`, k)."""
        return _floats(self._read(block, list(columns)), columns)

    def pieces(self, rows: NDArray[np.intp], columns: tuple[str, ...]) -> Iterator[Array]:
        """The rows of these ascending numbers, block by block."""
        for block, at in self._blocks_of(rows):
            yield self.values(block, columns)[rows[at] - block * BLOCK]

    def _read(self, block: int, columns: list[str]) -> pl.DataFrame:
        path, rows = _block(self.folder, block), min(BLOCK, self.rows - block * BLOCK)
        try:
            frame = pl.read_parquet(path, columns=columns, memory_map=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DatasetError(f"{path}: cannot be read: {str(error).partition(chr(10))[0]}") from error
        if len(frame) != rows:
            raise DatasetError(f"{path}: has {len(frame):,} rows instead of {rows:,}; delete {self.folder}")
        return frame

    def _blocks_of(self, rows: NDArray[np.intp]) -> Iterator[tuple[int, slice]]:
        """Each block that holds some of these ascending row numbers, and which of them."""
        ends = np.searchsorted(rows, (np.arange(self.blocks) + 1) * BLOCK).tolist()
        for block, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            if end > start:
                yield block, slice(start, end)

    def _table(
        self,
        values: Array,
        columns: tuple[str, ...],
        code: NDArray[np.int32],
        t_ns: NDArray[np.int64],
        mac: NDArray[np.uint64],
        looks: Array | None,
    ) -> RowTable:
        device, label, capture = code
        return RowTable(
            values,
            columns,
            device,
            self.devices,
            label,
            self.labels,
            capture,
            self.captures,
            t_ns,
            mac,
            self.generated,
            looks,
            self.inputs,
            self.warnings,
        )


def _floats(frame: pl.DataFrame, columns: tuple[str, ...]) -> Array:
    values = np.empty((len(frame), len(columns)), dtype=np.float32)
    for i, column in enumerate(columns):
        values[:, i] = frame[column].to_numpy()
    return values


def prepare(config: Config, jitter_schema: str, folder: Path) -> RowStore:
    """The store in ``folder`` of what ``config`` asks for; reads the sources when it is not there yet.

    DatasetError for sources that cannot be read, and for a store of other settings or of files that have changed.
    """
    asked = {
        "data": plain(config.data),
        "columns": list(config.model_columns()),
        "jitter": jitter_schema,
        "max_streams": config.max_streams,
        "use_attack_lead": config.use_attack_lead,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers of one machine may share a store: one reads, the others wait for it
        if not (folder / NAME).is_file():
            for path in folder.glob("block-*.parquet"):  # of a reading that did not come to its end
                path.unlink()
            limits = dataset.Limits(config.max_rows, config.max_streams, config.use_attack_lead)
            columns = dataset.with_counts(config.data, config.model_columns())
            writer = _Writer(folder, columns, jitter_schema, limits)
            dataset.fill(writer, config.data)
            writer.close(asked)
    return _open(folder, asked)


def _open(folder: Path, asked: dict[str, Any]) -> RowStore:
    path = folder / NAME
    try:
        told = json.loads(path.read_bytes())
        if told["format"] != FORMAT:
            raise DatasetError(f"{path}: is of format {told['format']}, known is {FORMAT}; delete {folder}")
        for key, value in asked.items():
            if told["asked"][key] != value:
                raise DatasetError(f"{path}: holds rows of other settings ({key}); give another folder, or delete it")
        checked = dataset.Builder((), "", dataset.Limits())
        for name, digest in told["inputs"].items():
            checked.read(Path(name))
            if checked.inputs[name] != digest:
                raise DatasetError(f"{name}: has changed since it was read into {folder}; delete the folder")
        return RowStore(
            folder,
            tuple(told["columns"]),
            int(told["rows"]),
            int(told["blocks"]),
            tuple(told["devices"]),
            tuple(told["labels"]),
            tuple(told["captures"]),
            bool(told["generated"]),
            dict(told["inputs"]),
            tuple(told["warnings"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path}: not a whole store of rows: {error!r}; delete {folder}") from error


def _block(folder: Path, number: int) -> Path:
    return folder / f"block-{number:06}.parquet"
