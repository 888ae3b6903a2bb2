"""Rows with labels, from captures, files of rows (Parquet, or an agent's .npz) or the published N-BaIoT files.

What leaves here is a `RowTable` of finite float32 values whose columns are exactly those asked for; anything else is a
`DatasetError` that names the file, the column and, where there is one, the row. How rows are split and scaled is not
known here.

A file longer than its limit is thinned to blocks of 256 neighbouring rows, every 2nd, 4th, 8th ... block, so that
the rows kept cover the whole file and stay in sequence. No chance is involved.
"""

import gzip
import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from edge_agent.contract import captures, settings
from edge_agent.contract import columns as cols
from edge_agent.contract.bundle import BENIGN, PROFILE_FIELDS
from edge_agent.contract.captures import Capture, mac_text, parse_mac
from edge_agent.contract.scaling import Array
from edge_agent.progress import Progress
from trainer.config import DatasetEntry

BATCH = 4096
"""Frames pushed through the extractor at a time."""

BLOCK = 256
SCHEMA_KEY = "botwatch.schema"
"""Parquet metadata key of the jitter schema that rows were extracted in."""

META_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "time": pl.Datetime("ns", "UTC"),
    "mac": pl.String,
    "peer_mac": pl.String,
    "src": pl.String,
    "dst": pl.String,
    "sport": pl.UInt16,
    "dport": pl.UInt16,
    "ethertype": pl.UInt16,
    "ip_version": pl.UInt8,
    "proto": pl.UInt8,
    "tcp_flags": pl.UInt8,
    "length": pl.UInt32,
    "flags": pl.UInt16,
}
"""What `trainer.data.extract` writes beside the 140 columns; ``mac`` is the sender, the device a row belongs to."""

OWN_COLUMNS = {*META_COLUMNS, "t_ns", "device", "label", "part"}
"""Columns of a Parquet file of rows that are not features: of an extract, or of a run folder's rows."""

NBAIOT_DEVICES = (
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


class DatasetError(Exception):
    """Rows that must not be trained on; the message names the file and what is wrong in it."""


@dataclass(frozen=True)
class RowTable:
    """Rows of all sources, in the order read: values (n, k) and, per row, codes into the names beside them.

    ``t_ns`` is packet time, 0 for published rows, which have none; ``mac`` the sender, 0 where unknown. ``labels`` and
    ``captures`` also hold those that a manifest names and that gave no row.
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
    mac: NDArray[np.uint64]
    generated: bool
    looks: Array | None = (
        None  # (n, SIGNATURE) of packets, see `edge_agent.detection.classify`; NaN for rows without a packet
    )
    inputs: dict[str, str] = field(default_factory=dict)  # file -> SHA-256
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.t_ns)


@dataclass(frozen=True)
class Limits:
    """Bounds of memory: rows kept per file, device and label; streams the extractor follows."""

    max_rows: int = 200_000
    max_streams: int = 16_384
    use_attack_lead: bool = False


def load(entries: Sequence[DatasetEntry], columns: tuple[str, ...], jitter_schema: str, limits: Limits) -> RowTable:
    """Rows of every entry with ``columns``, followed by what columns of the counts rule all entries can give."""
    builder = Builder(with_counts(entries, columns), jitter_schema, limits)
    fill(builder, entries)
    return builder.table()


def with_counts(entries: Sequence[DatasetEntry], columns: tuple[str, ...]) -> tuple[str, ...]:
    """``columns`` and what columns of the counts rule all entries can give; DatasetError when one lacks a column."""
    available = [_available(entry) for entry in entries]
    for entry, known in zip(entries, available, strict=True):
        for column in columns:
            if column not in known:
                raise DatasetError(f"{entry.path}: has no column {column!r}")
    return (
        *columns,
        *(c for c in cols.COUNT_COLUMNS if c not in columns and all(c in known for known in available)),
    )


def fill(builder: "Builder", entries: Sequence[DatasetEntry]) -> None:
    """Hand ``builder`` every row that is asked for, in the order read."""
    for entry in entries:
        before = builder.seen
        held = {"captures": _load_captures, "rows": _load_rows, "nbaiot": _load_nbaiot}[entry.kind](entry, builder)
        for what, asked, names in (
            ("device", entry.devices, {device for device, _ in held}),
            ("label", entry.labels, {label for _, label in held}),
        ):
            for name in asked:
                if name not in names:
                    raise DatasetError(f"{entry.path}: has no {what} {name!r}; it has {', '.join(sorted(names))}")
        if builder.seen == before:
            raise DatasetError(f"{entry.path}: holds no row that is asked for")


def _available(entry: DatasetEntry) -> frozenset[str]:
    if entry.kind == "captures":
        return frozenset(cols.ALL_COLUMNS)
    if entry.kind == "nbaiot":
        return frozenset(cols.NBAIOT_COLUMNS)
    return frozenset(_exported(entry.path).schema if entry.path.suffix == ".npz" else _parquet_schema(entry.path))


_Chunk = tuple[NDArray[np.int64], Array, NDArray[np.int64], NDArray[np.uint64], Array]


class _Thinned:
    """At most ``limit`` rows of a sequence, as blocks of neighbours in even strides."""

    def __init__(self, limit: int):
        self._limit, self._block = limit, max(1, min(BLOCK, limit // 8))
        self._stride, self.seen, self.kept = 1, 0, 0
        self._chunks: list[_Chunk] = []

    def add(self, values: Array, t_ns: NDArray[np.int64], mac: NDArray[np.uint64], looks: Array) -> None:
        block = np.arange(self.seen, self.seen + len(values)) // self._block
        self.seen += len(values)
        self._keep((block, values, t_ns, mac, looks))
        while self.kept > self._limit:
            self._stride *= 2
            chunks, self._chunks, self.kept = self._chunks, [], 0
            for chunk in chunks:
                self._keep(chunk)

    def _keep(self, chunk: _Chunk) -> None:
        keep = chunk[0] % self._stride == 0
        if keep.any():
            block, values, t_ns, mac, looks = chunk
            self._chunks.append((block[keep], values[keep], t_ns[keep], mac[keep], looks[keep]))
            self.kept += int(keep.sum())

    def pop(self) -> Iterator[tuple[Array, NDArray[np.int64], NDArray[np.uint64], Array]]:
        """The rows, chunk by chunk, each let go of as it is handed out."""
        self._chunks.reverse()
        while self._chunks:
            yield self._chunks.pop()[1:]


class Builder:
    """Gathers rows by (capture, device, label) into one Table in memory; `trainer.data.row_store` gathers on disk."""

    def __init__(self, columns: tuple[str, ...], jitter_schema: str, limits: Limits):
        self.columns, self.jitter_schema, self.limits = columns, jitter_schema, limits
        self.seen, self.generated = 0, False
        self.inputs: dict[str, str] = {}
        self.warnings: list[str] = []
        self._rows: dict[tuple[str, str, str], _Thinned] = {}
        self._labels: dict[str, None] = {}
        self._captures: dict[str, None] = {}

    def expect(self, capture: str, label: str) -> None:
        """``capture`` should give rows of ``label``; remembered also when it gives none."""
        self._captures[capture] = self._labels[label] = None

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
        """Rows of one capture, device and label, in order; all arrays have their length."""
        if len(values):
            self.expect(capture, label)
            if looks is None:
                looks = np.full((len(values), len(PROFILE_FIELDS)), np.nan, dtype=np.float32)
            thinned = self._rows.setdefault((capture, device, label), _Thinned(self.limits.max_rows))
            thinned.add(values, t_ns, mac, looks)
            self.seen += len(values)

    def read(self, path: Path) -> Path:
        """Note that ``path`` is an input, with its SHA-256."""
        if str(path) not in self.inputs:
            try:
                with open(path, "rb") as file:
                    self.inputs[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise DatasetError(f"{path}: cannot be read: {error.strerror}") from error
        return path

    def table(self) -> RowTable:
        """What was added; may be called once."""
        n = sum(rows.kept for rows in self._rows.values())
        devices = {device: None for _, device, _ in self._rows}
        codes = [{name: i for i, name in enumerate(names)} for names in (self._captures, devices, self._labels)]
        values = np.empty((n, len(self.columns)), dtype=np.float32)
        code = np.empty((3, n), dtype=np.int32)
        t_ns, mac = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.uint64)
        looks = np.empty((n, len(PROFILE_FIELDS)), dtype=np.float32)
        at = 0
        for key, rows in self._rows.items():
            for chunk in rows.pop():
                to = slice(at, at + len(chunk[0]))
                values[to], t_ns[to], mac[to], looks[to] = chunk
                code[:, to] = np.array([codes[i][key[i]] for i in range(3)])[:, None]
                at = to.stop
        capture, device, label = code
        return RowTable(
            values,
            self.columns,
            device,
            tuple(devices),
            label,
            tuple(self._labels),
            capture,
            tuple(self._captures),
            t_ns,
            mac,
            self.generated,
            looks,
            self.inputs,
            tuple(self.warnings),
        )


# ---- captures ----------------------------------------------------------------------------------------------------


def _load_captures(entry: DatasetEntry, builder: Builder) -> set[tuple[str, str]]:
    """Adds what is asked for; returns every (device, label) the source holds."""
    try:
        manifest, path, root = captures.load(entry.path, entry.root)
    except settings.SettingsError as error:
        raise DatasetError(str(error)) from error
    chosen = [c for c in manifest.captures if _wanted(entry, c.device, c.label)]
    builder.read(path)
    builder.generated |= manifest.generated
    groups: dict[tuple[str, ...], list[Capture]] = {}
    for capture in chosen:  # a device's benign days share an extractor, an attack has one of its own
        key = (capture.device,) if capture.label == BENIGN else (capture.device, str(capture.file), capture.label)
        groups.setdefault(key, []).append(capture)
    with Progress("captures", len(chosen)) as progress:
        for group in groups.values():
            _extract_group(group, root, builder, progress)
    return {(capture.device, capture.label) for capture in manifest.captures}


def _wanted(entry: DatasetEntry, device: str, label: str) -> bool:
    return (not entry.devices or device in entry.devices) and (not entry.labels or label in entry.labels)


def _extract_group(group: list[Capture], root: Path, builder: Builder, progress: Progress) -> None:
    """Push files of one device through one extractor, in the order of their first packets."""
    from edge_agent.capture import features, sources
    from edge_agent.detection import classify

    jitter: Literal["clean", "compat"] = "compat" if builder.jitter_schema == cols.COMPAT else "clean"
    index = cols.indices(builder.columns)

    def opened(path: Path) -> Any:
        try:
            return sources.open_file(builder.read(path))
        except sources.CaptureError as error:
            raise DatasetError(str(error)) from error

    def first_ns(path: Path) -> int:
        with opened(path) as source:
            try:
                rows = features.Extractor(max_streams=64).push(source, 1)
            except sources.CaptureError as error:
                raise DatasetError(str(error)) from error
        return int(rows.meta["t_ns"][0]) if len(rows) else 0

    if len(group) > 1:
        group = sorted(group, key=lambda c: first_ns(root / c.file))
    extractor = features.Extractor(builder.limits.max_streams, jitter=jitter, seed=0)  # seeded: same rows every time
    for capture in group:
        name = str(capture.file)
        builder.expect(name, capture.label)
        read = 0
        before: dict[tuple[str, str], Any] = {}
        with opened(root / capture.file) as source:
            try:
                while len(rows := extractor.push(source, BATCH)):
                    read += len(rows)
                    values = np.ascontiguousarray(rows.values[:, index])
                    for device, label, mask in _labelled(capture, rows.meta, builder.limits.use_attack_lead):
                        meta = rows.meta[mask]
                        looks = classify.packet_profile(meta, before.get((device, label))).astype(np.float32)
                        if len(meta):
                            before[device, label] = meta[-1:].copy()
                        builder.add(name, device, label, values[mask], meta["t_ns"], meta["src_mac"], looks)
                    progress.step(0, f"files, {name}: {read:,} rows")
            except sources.CaptureError as error:
                if not read:
                    raise DatasetError(str(error)) from error
                builder.warnings.append(f"{error}; the {read:,} rows before that are used")
        progress.step(1)


def _labelled(capture: Capture, meta: Any, use_lead: bool) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """(device, label, which rows) of a batch; rows in none of them are left out."""
    own = None if capture.mac is None else parse_mac(capture.mac)

    def by_sender(mask: NDArray[np.bool_]) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
        for mac in np.unique(meta["src_mac"][mask]):  # a gateway scores every sender, so each is a device
            name = capture.device if mac in (own, 0) else f"{capture.device}/{mac_text(mac)}"  # 0: links without MACs
            yield name, BENIGN, mask & (meta["src_mac"] == mac)

    if capture.label == BENIGN:
        yield from by_sender(np.ones(len(meta), dtype=bool))
        return
    attacking = np.ones(len(meta), dtype=bool) if own is None else meta["src_mac"] == own
    if capture.attack is not None:
        start = capture.attack.start_ns
        attacking &= (meta["t_ns"] >= start) & (meta["t_ns"] <= capture.attack.end_ns)
        if capture.attack.server is not None:
            server = np.frombuffer(IPv4Address(capture.attack.server).packed, np.uint8)
            attacking &= (meta["ip_version"] == 4) & (meta["dst"][:, :4] == server).all(axis=1)
        if use_lead:
            yield from by_sender(meta["t_ns"] < start)
    yield capture.device, capture.label, attacking


# ---- Parquet files of rows ---------------------------------------------------------------------------------------


def _parquet_schema(path: Path) -> Mapping[str, pl.DataType]:
    try:
        return pl.read_parquet_schema(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DatasetError(f"{path}: not a Parquet file of rows: {_first_line(error)}") from error


def _exported(path: Path) -> pl.DataFrame:
    """What `botwatch agent rows` wrote: rows that a gateway kept of its devices."""
    try:
        with np.load(path, allow_pickle=False) as file:
            values, columns = file["values"], [str(name) for name in file["columns"]]
            t_ns, device, made_as = file["t_ns"], file["device"], str(file["schema"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(f"{path}: not a file of rows that `botwatch agent rows` wrote: {error}") from error
    n = len(t_ns)
    if made_as != cols.CLEAN or values.shape != (n, len(columns)) or device.shape != (n,) or t_ns.shape != (n,):
        raise DatasetError(f"{path}: rows of schema {made_as}, shape {values.shape}, do not fit its {n} times")
    own = {"t_ns": pl.Series(t_ns.astype(np.int64)), "device": pl.Series(device.tolist(), dtype=pl.String)}
    return pl.DataFrame(own | {name: values[:, i] for i, name in enumerate(columns)})


def _load_rows(entry: DatasetEntry, builder: Builder) -> set[tuple[str, str]]:
    path = builder.read(entry.path)
    exported = _exported(path) if path.suffix == ".npz" else None
    schema = _parquet_schema(path) if exported is None else exported.schema
    for column, kind in schema.items():
        if column not in cols.ALL_COLUMNS and column not in OWN_COLUMNS:
            raise DatasetError(f"{path}: unknown column {column!r}")
        if column in cols.ALL_COLUMNS and not kind.is_numeric():
            raise DatasetError(f"{path}: column {column!r} is not numeric but {kind}")
    made_as = cols.CLEAN if exported is not None else pl.read_parquet_metadata(path).get(SCHEMA_KEY)
    if made_as is not None and made_as != builder.jitter_schema and _has_jitter(builder.columns):
        raise DatasetError(f"{path}: rows are of schema {made_as}, asked for is {builder.jitter_schema}")
    if "label" not in schema and entry.label is None:
        raise DatasetError(f"{path}: has no column 'label'; say in the config which label its rows have")
    builder.generated |= entry.generated
    own = [c for c in schema if c in OWN_COLUMNS]
    rows = pl.scan_parquet(path) if exported is None else exported.lazy()
    frames = rows.select([*own, *builder.columns]).collect_batches(chunk_size=1 << 16)
    row, held = 0, set()
    with Progress(f"reading {path.name}") as progress:
        for frame in frames:
            values = _values(frame, builder.columns, path, row)
            t_ns, mac = _times(frame), _macs(frame, path)
            names = pl.DataFrame({"device": _device_names(frame, mac, entry), "label": _label_names(frame, entry)})
            if names.null_count().row(0) != (0, 0):
                raise DatasetError(f"{path}: a device or label is missing after row {row + 1}")
            for device, label in names.unique(maintain_order=True).iter_rows():
                held.add((device, label))
                if _wanted(entry, device, label):
                    mask = ((names["device"] == device) & (names["label"] == label)).to_numpy()
                    builder.add(path.name, device, label, values[mask], t_ns[mask], mac[mask])
            row += len(frame)
            progress.step(len(frame), "rows")
    return held


def _device_names(frame: pl.DataFrame, mac: NDArray[np.uint64], entry: DatasetEntry) -> pl.Series:
    """The device column, else the entry's device, else the sender's MAC, else the file."""
    if "device" in frame.columns:
        return frame["device"].cast(pl.String)
    if entry.device is not None:
        return pl.repeat(entry.device, len(frame), dtype=pl.String, eager=True)
    return pl.Series([mac_text(m) if m else entry.path.stem for m in mac.tolist()], dtype=pl.String)


def _label_names(frame: pl.DataFrame, entry: DatasetEntry) -> pl.Series:
    if "label" in frame.columns:
        return frame["label"].cast(pl.String)
    return pl.repeat(entry.label, len(frame), dtype=pl.String, eager=True)


def _times(frame: pl.DataFrame) -> NDArray[np.int64]:
    for column in ("t_ns", "time"):
        if column in frame.columns:
            series = frame[column]
            series = series.dt.timestamp("ns") if series.dtype.is_temporal() else series
            return series.cast(pl.Int64).fill_null(0).to_numpy().astype(np.int64)
    return np.zeros(len(frame), dtype=np.int64)


def _macs(frame: pl.DataFrame, path: Path) -> NDArray[np.uint64]:
    if "mac" not in frame.columns:
        return np.zeros(len(frame), dtype=np.uint64)
    if frame["mac"].dtype != pl.String:
        return frame["mac"].cast(pl.UInt64).to_numpy().astype(np.uint64)
    try:
        number = {text: parse_mac(text) for text in frame["mac"].unique().to_list()}
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path}: {error}") from error
    return np.array([number[text] for text in frame["mac"].to_list()], dtype=np.uint64)


def _has_jitter(columns: Iterable[str]) -> bool:
    return any(c in cols.JITTER_COLUMNS for c in columns)


# ---- N-BaIoT -----------------------------------------------------------------------------------------------------


def _load_nbaiot(entry: DatasetEntry, builder: Builder) -> set[tuple[str, str]]:
    if builder.jitter_schema != cols.COMPAT and _has_jitter(builder.columns):
        raise DatasetError(
            f"{entry.path}: published rows carry the date in HH_jit; "
            f"say schemas: [{cols.COMPAT}] or drop_columns: [HH_jit]"
        )
    found = find_nbaiot(entry.path)
    chosen = [(device, label, path) for device, label, path in found if _wanted(entry, device, label)]
    with Progress("reading rows", len(chosen)) as progress:
        for device, label, path in chosen:
            name = str(path.relative_to(entry.path))
            builder.expect(name, label)
            row = 0
            for frame in _read_csv(builder.read(path)):
                values = _values(frame, builder.columns, path, row)
                row += len(frame)
                builder.add(
                    name, device, label, values, np.zeros(len(values), np.int64), np.zeros(len(values), np.uint64)
                )
                progress.step(0, f"files, {name}: {row:,} rows")
            progress.step(1)
    return {(device, label) for device, label, _ in found}


def find_nbaiot(root: Path) -> list[tuple[str, str, Path]]:
    """(device, label, file) of every published file under ``root``, in a fixed order."""
    if root.suffix.lower() in (".zip", ".rar"):
        raise DatasetError(f"{root}: is packed; unpack it and name the folder")
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder")
    found = []
    for path in sorted(root.iterdir()):
        if flat := re.fullmatch(r"([1-9])\.(benign|(?:gafgyt|mirai)\.\w+)\.csv(\.gz)?", path.name):
            found.append((NBAIOT_DEVICES[int(flat[1]) - 1], flat[2], path))
        elif path.is_dir():
            found += [(path.name, label, file) for label, file in _find_uci(path)]
    if not found:
        packed = [p.name for p in sorted(root.rglob("*")) if p.suffix.lower() in (".zip", ".rar")]
        if packed:
            raise DatasetError(f"{root / packed[0]}: is packed; unpack it there")
        raise DatasetError(f"{root}: neither 1.benign.csv (Kaggle) nor <Device>/benign_traffic.csv (UCI) is there")
    seen: dict[tuple[str, str], Path] = {}
    for device, label, path in found:
        if (device, label) in seen:
            raise DatasetError(f"{path}: holds the same rows as {seen[device, label].name}; keep one of them")
        seen[device, label] = path
    return found


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


def _read_csv(path: Path) -> Iterator[pl.DataFrame]:
    """The rows of a published file in chunks; its 115 columns are accepted in any order, and no others."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            header = [name.strip().strip('"') for name in file.readline().split(",")]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error
    for column in header:
        if column not in cols.NBAIOT_COLUMNS:
            raise DatasetError(f"{path}: unknown column {column!r}")
        if header.count(column) > 1:
            raise DatasetError(f"{path}: column {column!r} is there twice")
    for column in cols.NBAIOT_COLUMNS:
        if column not in header:
            raise DatasetError(f"{path}: column {column!r} is missing")
    try:
        yield from pl.scan_csv(path, schema=dict.fromkeys(header, pl.Float64)).collect_batches(chunk_size=1 << 16)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DatasetError(_find_text(path, header) or f"{path}: {_first_line(error)}") from error


def _find_text(path: Path, header: list[str]) -> str | None:
    """Where the first cell that is no number stands; None when every cell is one."""
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


def _values(frame: pl.DataFrame, columns: tuple[str, ...], path: Path, row: int) -> Array:
    """``columns`` of a frame as float32 (n, k); DatasetError at the first value that is missing or not finite."""
    values = np.empty((len(frame), len(columns)), dtype=np.float32)
    for i, column in enumerate(columns):
        values[:, i] = frame[column].cast(pl.Float32).to_numpy()  # a missing value becomes NaN
    finite = np.isfinite(values)
    if not finite.all():
        at = int(np.flatnonzero(~finite.all(axis=1))[0])
        column = columns[int(np.flatnonzero(~finite[at])[0])]
        found = "no value" if frame[column][at] is None else frame[column][at]
        raise DatasetError(f"{path}: row {row + at + 1}, column {column!r}: {found} instead of a number")
    return values


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
