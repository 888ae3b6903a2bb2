"""Labelled rows in memory, and how many of a long file are taken.

A `RowTable` is what every source of rows becomes: finite float32 values in named columns. A `RowBuilder` gathers it. A
file longer than its limit is thinned to blocks of 256 neighbouring rows, every 2nd, 4th, 8th ... block, so that the
rows taken cover the whole file and stay in sequence. No chance is involved. Files and their formats are not known here.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.bundle import PROFILE_FIELDS
from edge_agent.contract.scaling import Array

BLOCK = 256
"""Number of neighbouring rows that are taken or left out together when a long file is thinned."""


class DatasetError(Exception):
    """Rows that must not be trained on; the message names the file and what is wrong in it."""


@dataclass(frozen=True, kw_only=True)
class RowTable:
    """Rows of all sources, in the order read: values (n, k) and, per row, codes into the names beside them.

    ``labels`` and ``captures`` also hold the names that a manifest lists although no row belongs to them.
    """

    values: Array
    columns: tuple[str, ...]
    device: NDArray[np.int32]
    devices: tuple[str, ...]
    label: NDArray[np.int32]
    labels: tuple[str, ...]
    capture: NDArray[np.int32]
    captures: tuple[str, ...]
    t_ns: NDArray[np.int64]
    """Packet time, (n,); 0 for published rows, which have none."""
    mac: NDArray[np.uint64]
    """Sender of each row's packet, (n,); 0 where it is unknown."""
    number: NDArray[np.int64]
    """Position of each row among all rows of its capture, device and label, (n,): a gap is where rows were thinned."""
    generated: bool
    profiles: Array | None = None
    """Packet profile of each row, (n, PROFILE_FIELDS), see `edge_agent.detection.classify`; NaN for rows without
    packets."""
    kinds: dict[str, str] = field(default_factory=dict)
    """Device -> kind, of those whose kind a manifest tells."""
    inputs: dict[str, str] = field(default_factory=dict)
    """File name -> SHA-256 of every file that was read."""
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.t_ns)

    def positions(self, columns: tuple[str, ...]) -> NDArray[np.intp]:
        """Return the positions of ``columns`` in this table."""
        return np.array([self.columns.index(c) for c in columns], dtype=np.intp)


@dataclass(frozen=True)
class Limits:
    """Bounds of memory: rows taken of each file, device and label; streams that the extractor follows."""

    max_rows: int = 200_000
    max_streams: int = 16_384
    use_attack_lead: bool = False
    total_rows: int = 10**9
    """Rows of all files together; where there are more, ``max_rows`` is halved until they fit."""


_Chunk = tuple[NDArray[np.int64], Array, NDArray[np.int64], NDArray[np.uint64], Array]
"""Position, values, packet time, sender and packet profile of some rows."""


class _ThinnedRows:
    """At most ``limit`` rows of a sequence, as blocks of neighbours in even strides."""

    def __init__(self, limit: int):
        self._limit, self._block = limit, max(1, min(BLOCK, limit // 8))
        self._stride, self.seen, self.taken = 1, 0, 0
        self._chunks: list[_Chunk] = []

    def add(
        self,
        values: Array,
        t_ns: NDArray[np.int64],
        mac: NDArray[np.uint64],
        profiles: Array,
        number: NDArray[np.int64] | None,
    ) -> None:
        if number is None:
            number = np.arange(self.seen, self.seen + len(values))
        self.seen += len(values)
        self._take((number, values, t_ns, mac, profiles))
        self.hold(self._limit)

    def hold(self, limit: int) -> None:
        """Thin the rows to at most ``limit``, now and from now on."""
        self._limit = limit
        while self.taken > self._limit:
            self._stride *= 2
            chunks, self._chunks, self.taken = self._chunks, [], 0
            for chunk in chunks:
                self._take(chunk)

    def _take(self, chunk: _Chunk) -> None:
        mask = chunk[0] // self._block % self._stride == 0
        if mask.any():
            number, values, t_ns, mac, profiles = chunk
            self._chunks.append((number[mask], values[mask], t_ns[mask], mac[mask], profiles[mask]))
            self.taken += int(mask.sum())

    def pop(self) -> Iterator[_Chunk]:
        """Yield the rows chunk by chunk; each chunk is released as it is handed out."""
        self._chunks.reverse()
        while self._chunks:
            yield self._chunks.pop()


class RowBuilder:
    """Gathers rows by (capture, device, label) into one table in memory; `trainer.data.row_store` gathers on disk."""

    def __init__(self, columns: tuple[str, ...], jitter_schema: str, limits: Limits):
        self.columns, self.jitter_schema, self.limits = columns, jitter_schema, limits
        self.seen, self.generated = 0, False
        self.inputs: dict[str, str] = {}
        self.warnings: list[str] = []
        self.kinds: dict[str, str] = {}
        self._rows: dict[tuple[str, str, str], _ThinnedRows] = {}
        self._taken, self._max_rows = 0, limits.max_rows
        self._labels: dict[str, None] = {}
        self._captures: dict[str, None] = {}

    def expect(self, capture: str, label: str) -> None:
        """Note that ``capture`` should give rows of ``label``, so that the table names both even when it gives none."""
        self._captures[capture] = self._labels[label] = None

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
        """Add rows of one capture, device and label, in order; all arrays have the same length.

        ``number`` are the positions of rows that have been thinned before.
        """
        if len(values):
            self.expect(capture, label)
            if profiles is None:
                profiles = np.full((len(values), len(PROFILE_FIELDS)), np.nan, dtype=np.float32)
            thinned = self._rows.setdefault((capture, device, label), _ThinnedRows(self._max_rows))
            before = thinned.taken
            thinned.add(values, t_ns, mac, profiles, number)
            self._taken += thinned.taken - before
            self.seen += len(values)
            while self._taken > self.limits.total_rows and self._max_rows > BLOCK:
                self._max_rows //= 2
                for rows in self._rows.values():
                    rows.hold(self._max_rows)
                self._taken = sum(rows.taken for rows in self._rows.values())

    def read(self, path: Path) -> Path:
        """Note that ``path`` is an input, with its SHA-256, and return it."""
        if str(path) not in self.inputs:
            try:
                with open(path, "rb") as file:
                    self.inputs[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise DatasetError(f"{path}: cannot be read: {error.strerror}") from error
        return path

    def table(self) -> RowTable:
        """Return the table of all rows that were added; may be called once."""
        n = sum(rows.taken for rows in self._rows.values())
        if self._max_rows < self.limits.max_rows:
            self.warnings.append(
                f"{self.seen:,} rows are more than total_rows, {self.limits.total_rows:,}: at most {self._max_rows:,} "
                "of each file, device and label are used"
            )
        devices = {device: None for _, device, _ in self._rows}
        codes = [{name: i for i, name in enumerate(names)} for names in (self._captures, devices, self._labels)]
        values = np.empty((n, len(self.columns)), dtype=np.float32)
        code = np.empty((3, n), dtype=np.int32)
        t_ns, number, mac = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.uint64)
        profiles = np.empty((n, len(PROFILE_FIELDS)), dtype=np.float32)
        at = 0
        for key, rows in self._rows.items():
            for chunk in rows.pop():
                to = slice(at, at + len(chunk[0]))
                number[to], values[to], t_ns[to], mac[to], profiles[to] = chunk
                code[:, to] = np.array([codes[i][key[i]] for i in range(3)])[:, None]
                at = to.stop
        capture, device, label = code
        return RowTable(
            values=values,
            columns=self.columns,
            device=device,
            devices=tuple(devices),
            label=label,
            labels=tuple(self._labels),
            capture=capture,
            captures=tuple(self._captures),
            t_ns=t_ns,
            mac=mac,
            number=number,
            generated=self.generated,
            profiles=profiles,
            kinds=self.kinds,
            inputs=self.inputs,
            warnings=tuple(self.warnings),
        )
