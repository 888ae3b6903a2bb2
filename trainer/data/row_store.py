"""Rows on disk: a data set of any size is read once, and from then on block by block.

A store is a folder of Parquet files of equally many rows and ``store.json``, which is written last: a folder that has
one is complete. Nothing is thinned. How rows are split, scaled and trained on is not known here.
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
from trainer.base import rows as base_rows
from trainer.config import Config, plain
from trainer.data import dataset
from trainer.data.dataset import PROFILES
from trainer.data.row_table import DatasetError, Limits, RowBuilder, RowTable

BLOCK = 1 << 14
"""Rows of a block, unless a caller asks for another size; the last block may be shorter."""

NAME = "store.json"

FORMAT = 3
"""Format of a store. 1 did not name its block size, 2 neither the positions of rows nor the kinds of devices."""

CODES = ("device", "label", "capture")


class _StoreWriter(RowBuilder):
    """A builder whose rows go to disk as they come."""

    def __init__(self, folder: Path, columns: tuple[str, ...], jitter_schema: str, limits: Limits, block_rows: int):
        super().__init__(columns, jitter_schema, limits)
        self.folder, self.blocks, self.block_rows = folder, 0, block_rows
        self._waiting: list[
            tuple[Array, NDArray[np.int32], NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64], Array]
        ] = []
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._rows_waiting = 0
        self._devices: dict[str, None] = {}

    def add(
        self,
        capture: str,
        device: str,
        label: str,
        values: Array,
        t_ns: NDArray[np.int64],
        mac: NDArray[np.uint64],
        profiles: Array | None = None,
        number: NDArray[np.int64] | None = None,
    ) -> None:
        """Add rows of one capture, device and label, in order; every full block is written to disk."""
        if not len(values):
            return
        self.expect(capture, label)
        self._devices[device] = None
        names = zip((self._devices, self._labels, self._captures), (device, label, capture), strict=True)
        code = np.array([list(known).index(name) for known, name in names], dtype=np.int32)
        if profiles is None:
            profiles = np.full((len(values), len(PROFILE_FIELDS)), np.nan, dtype=np.float32)
        key = capture, device, label
        if number is None:
            number = self._numbers.get(key, 0) + np.arange(len(values))
        self._numbers[key] = int(number[-1]) + 1
        self._waiting.append((values, np.tile(code, (len(values), 1)), t_ns, mac, number, profiles))
        self.seen += len(values)
        self._rows_waiting += len(values)
        while self._rows_waiting >= self.block_rows:
            self._flush(self.block_rows)

    def _flush(self, rows: int) -> None:
        arrays = [np.concatenate(pieces) for pieces in zip(*self._waiting, strict=True)]
        values, code, t_ns, mac, number, profiles = (array[:rows] for array in arrays)
        # copies, so that the rows that wait do not keep the chunks alive they came with
        self._waiting = [tuple(array[rows:].copy() for array in arrays)]  # type: ignore[list-item]
        self._rows_waiting = len(arrays[0]) - rows
        block = pl.DataFrame(
            {
                **{name: values[:, i] for i, name in enumerate(self.columns)},
                **{name: code[:, i] for i, name in enumerate(CODES)},
                "t_ns": t_ns,
                "mac": mac,
                "number": number,
                **{name: profiles[:, i] for i, name in enumerate(PROFILES)},
            }
        )
        path = _block(self.folder, self.blocks)
        try:
            block.write_parquet(path, compression="lz4")
        except (OSError, pl.exceptions.PolarsError) as error:  # Polars names no file when the disk is full
            reason = str(error).partition("\n")[0]
            raise DatasetError(f"{path}: cannot be written, {self.seen:,} rows were read: {reason}") from error
        self.blocks += 1

    def close(self, settings: dict[str, Any]) -> None:
        """Write the remaining rows, then the description of the store."""
        if self._rows_waiting:
            self._flush(self._rows_waiting)
        description = {
            "format": FORMAT,
            "asked": settings,
            "columns": self.columns,
            "rows": self.seen,
            "blocks": self.blocks,
            "block_rows": self.block_rows,
            "devices": list(self._devices),
            "labels": list(self._labels),
            "captures": list(self._captures),
            "kinds": self.kinds,
            "generated": self.generated,
            "inputs": self.inputs,
            "warnings": self.warnings,
        }
        replace_file(self.folder / NAME, (json.dumps(description, indent=1) + "\n").encode())


@dataclass(frozen=True, kw_only=True)
class RowStore:
    """Rows on disk; no row stays in memory."""

    folder: Path
    columns: tuple[str, ...]
    rows: int
    blocks: int
    block_rows: int
    devices: tuple[str, ...]
    labels: tuple[str, ...]
    captures: tuple[str, ...]
    kinds: dict[str, str]
    generated: bool
    inputs: dict[str, str]
    warnings: tuple[str, ...]

    def __len__(self) -> int:
        return self.rows

    def index(self) -> RowTable:
        """Return all rows without their values, shape (n, 0), 36 bytes each; release it before memory is needed."""
        code = np.empty((3, len(self)), np.int32)
        t_ns, number, mac = np.empty(len(self), np.int64), np.empty(len(self), np.int64), np.empty(len(self), np.uint64)
        for block in range(self.blocks):
            frame = self._read(block, [*CODES, "t_ns", "mac", "number"])
            at = slice(block * self.block_rows, block * self.block_rows + len(frame))
            for i, name in enumerate(CODES):
                code[i, at] = frame[name].to_numpy()
            t_ns[at], mac[at], number[at] = (frame[name].to_numpy() for name in ("t_ns", "mac", "number"))
        return self._table(np.empty((len(self), 0), np.float32), (), code, t_ns, mac, number, None)

    def take(self, rows: NDArray[np.intp]) -> RowTable:
        """Return the table of these ascending row numbers, in memory."""
        values = np.empty((len(rows), len(self.columns)), dtype=np.float32)
        profiles = np.empty((len(rows), len(PROFILES)), dtype=np.float32)
        code = np.empty((3, len(rows)), np.int32)
        t_ns, number, mac = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64), np.empty(len(rows), np.uint64)
        for block, at in self._blocks_of(rows):
            chosen = rows[at] - block * self.block_rows
            frame = self._read(block, [*self.columns, *CODES, "t_ns", "mac", "number", *PROFILES])
            values[at], profiles[at] = _floats(frame, self.columns)[chosen], _floats(frame, PROFILES)[chosen]
            for i, name in enumerate(CODES):
                code[i, at] = frame[name].to_numpy()[chosen]
            t_ns[at], mac[at], number[at] = (frame[name].to_numpy()[chosen] for name in ("t_ns", "mac", "number"))
        return self._table(values, self.columns, code, t_ns, mac, number, profiles)

    def values(self, block: int, columns: tuple[str, ...]) -> Array:
        """Return the rows of one block, shape (at most ``block_rows``, k)."""
        return _floats(self._read(block, list(columns)), columns)

    def pieces(self, rows: NDArray[np.intp], columns: tuple[str, ...]) -> Iterator[Array]:
        """Yield the rows of these ascending numbers, block by block."""
        for block, at in self._blocks_of(rows):
            yield self.values(block, columns)[rows[at] - block * self.block_rows]

    def _read(self, block: int, columns: list[str]) -> pl.DataFrame:
        path, rows = _block(self.folder, block), min(self.block_rows, self.rows - block * self.block_rows)
        try:
            frame = pl.read_parquet(path, columns=columns, memory_map=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DatasetError(f"{path}: cannot be read: {str(error).partition(chr(10))[0]}") from error
        if len(frame) != rows:
            raise DatasetError(f"{path}: has {len(frame):,} rows instead of {rows:,}; delete {self.folder}")
        return frame

    def _blocks_of(self, rows: NDArray[np.intp]) -> Iterator[tuple[int, slice]]:
        """Yield each block that holds some of these ascending row numbers, and the slice of the numbers in it."""
        ends = np.searchsorted(rows, (np.arange(self.blocks) + 1) * self.block_rows).tolist()
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
        number: NDArray[np.int64],
        profiles: Array | None,
    ) -> RowTable:
        device, label, capture = code
        return RowTable(
            values=values,
            columns=columns,
            device=device,
            devices=self.devices,
            label=label,
            labels=self.labels,
            capture=capture,
            captures=self.captures,
            t_ns=t_ns,
            mac=mac,
            number=number,
            generated=self.generated,
            profiles=profiles,
            kinds=self.kinds,
            inputs=self.inputs,
            warnings=self.warnings,
        )


def _floats(frame: pl.DataFrame, columns: tuple[str, ...]) -> Array:
    values = np.empty((len(frame), len(columns)), dtype=np.float32)
    for i, column in enumerate(columns):
        values[:, i] = frame[column].to_numpy()
    return values


def prepare(config: Config, jitter_schema: str, folder: Path, block_rows: int = BLOCK) -> RowStore:
    """Return the store in ``folder`` of the rows ``config`` asks for; read the sources if it is not complete yet.

    A store that exists keeps its own block size. DatasetError for sources that cannot be read, and for a store made
    with other settings or of files that have changed.
    """
    sources = base_rows.sources(config)
    settings = {
        "data": plain(sources),
        "columns": list(config.model_columns()),
        "jitter": jitter_schema,
        "max_streams": config.max_streams,
        "use_attack_lead": config.use_attack_lead,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers of one machine may share a store: one reads, the others wait for it
        if not (folder / NAME).is_file():
            for path in folder.glob("block-*.parquet"):  # left by a reading that was interrupted
                path.unlink()
            limits = Limits(config.max_rows, config.max_streams, config.use_attack_lead)
            columns = dataset.with_counts(sources, config.model_columns())
            writer = _StoreWriter(folder, columns, jitter_schema, limits, block_rows)
            dataset.fill(writer, sources)
            writer.close(settings)
    return _open(folder, settings)


def _open(folder: Path, settings: dict[str, Any]) -> RowStore:
    path = folder / NAME
    try:
        description = json.loads(path.read_bytes())
        if description["format"] != FORMAT:
            raise DatasetError(f"{path}: has format {description['format']}, expected {FORMAT}; delete {folder}")
        for key, value in settings.items():
            if description["asked"][key] != value:
                raise DatasetError(f"{path}: holds rows of other settings ({key}); give another folder, or delete it")
        digests = RowBuilder((), "", Limits())
        for name, digest in description["inputs"].items():
            digests.read(Path(name))
            if digests.inputs[name] != digest:
                raise DatasetError(f"{name}: has changed since it was read into {folder}; delete the folder")
        return RowStore(
            folder=folder,
            columns=tuple(description["columns"]),
            rows=int(description["rows"]),
            blocks=int(description["blocks"]),
            block_rows=int(description["block_rows"]),
            devices=tuple(description["devices"]),
            labels=tuple(description["labels"]),
            captures=tuple(description["captures"]),
            kinds=dict(description["kinds"]),
            generated=bool(description["generated"]),
            inputs=dict(description["inputs"]),
            warnings=tuple(description["warnings"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path}: not a complete store of rows: {error!r}; delete {folder}") from error


def _block(folder: Path, number: int) -> Path:
    return folder / f"block-{number:06}.parquet"
