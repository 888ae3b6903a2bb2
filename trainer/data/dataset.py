"""Labelled rows from captures, from files of rows (Parquet, or an agent's .npz) or from the published N-BaIoT files.

The result is a `RowTable` of finite float32 values whose columns are exactly those asked for; anything else is a
`DatasetError` that names the file, the column and, where there is one, the row. How rows are split and scaled is not
known here.
"""

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory
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
from trainer.data import published
from trainer.data.frames import FramesError, cut
from trainer.data.row_table import DatasetError, Limits, RowBuilder, RowTable

BATCH = 4096
"""Number of frames pushed through the extractor at a time."""

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
"""Columns that `trainer.data.extract` writes beside the 140; ``mac`` is the sender, the device a row belongs to."""

PROFILES = tuple(f"profile {i}" for i in range(len(PROFILE_FIELDS)))
"""Columns of the packet profile of each row, where a file or a store has them."""

OWN_COLUMNS = {*META_COLUMNS, "t_ns", "device", "label", "part", "capture", "number", "kind", "run", "start", *PROFILES}
"""Columns of a Parquet file of rows that are not features, in an extract, a run folder's rows or a generated home's."""


def load(entries: Sequence[DatasetEntry], columns: tuple[str, ...], jitter_schema: str, limits: Limits) -> RowTable:
    """Return rows of every entry with ``columns``, followed by the columns of the counts rule that all entries have."""
    builder = RowBuilder(with_counts(entries, columns), jitter_schema, limits)
    fill(builder, entries)
    return builder.table()


def with_counts(entries: Sequence[DatasetEntry], columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return ``columns`` and those columns of the counts rule that all entries have; DatasetError if one is missing."""
    available = [_available(entry) for entry in entries]
    for entry, known in zip(entries, available, strict=True):
        for column in columns:
            if column not in known:
                raise DatasetError(f"{entry.path}: has no column {column!r}")
    return (
        *columns,
        *(c for c in cols.COUNT_COLUMNS if c not in columns and all(c in known for known in available)),
    )


def fill(builder: RowBuilder, entries: Sequence[DatasetEntry]) -> None:
    """Hand ``builder`` every row that the entries ask for, in the order read."""
    for entry in entries:
        before = builder.seen
        held = {"captures": _load_captures, "rows": _load_rows, "nbaiot": _load_published}[entry.kind](entry, builder)
        for kind, wanted, names in (
            ("device", entry.devices, {device for device, _ in held}),
            ("label", entry.labels, {label for _, label in held}),
        ):
            for name in wanted:
                if name not in names:
                    raise DatasetError(f"{entry.path}: has no {kind} {name!r}; it has {', '.join(sorted(names))}")
        if builder.seen == before:
            raise DatasetError(f"{entry.path}: holds no row of the wanted devices and labels")


def _available(entry: DatasetEntry) -> frozenset[str]:
    if entry.kind == "captures":
        return frozenset(cols.ALL_COLUMNS)
    if entry.kind == "nbaiot":
        return frozenset(cols.NBAIOT_COLUMNS)
    return frozenset(_exported(entry.path).schema if entry.path.suffix == ".npz" else _parquet_schema(entry.path))


# ---- captures ----------------------------------------------------------------------------------------------------


def _load_captures(entry: DatasetEntry, builder: RowBuilder) -> set[tuple[str, str]]:
    """Add the rows asked for; return every (device, label) the source holds."""
    try:
        manifest, path, root = captures.load(entry.path, entry.root)
    except settings.SettingsError as error:
        raise DatasetError(str(error)) from error
    chosen = [c for c in manifest.captures if _wanted(entry, c.device, c.label)]
    builder.read(path)
    builder.generated |= manifest.generated
    groups: dict[tuple[str, ...], list[Capture]] = {}
    for capture in chosen:  # a device's benign days share an extractor, an attack has one of its own
        key = (capture.device,) if capture.label == BENIGN else (capture.device, capture.name, capture.label)
        groups.setdefault(key, []).append(capture)
    with Progress("captures", len(chosen)) as progress:
        for group in groups.values():
            _extract_group(group, root, builder, progress)
    return {(capture.device, capture.label) for capture in manifest.captures}


def _wanted(entry: DatasetEntry, device: str, label: str) -> bool:
    return (not entry.devices or device in entry.devices) and (not entry.labels or label in entry.labels)


def _extract_group(group: list[Capture], root: Path, builder: RowBuilder, progress: Progress) -> None:
    """Push files (or their spans) of one device through one extractor, in the order of their first packets."""
    from edge_agent.capture import features, sources
    from edge_agent.detection import classify

    jitter: Literal["clean", "compat"] = "compat" if builder.jitter_schema == cols.COMPAT else "clean"
    index = cols.indices(builder.columns)

    @contextmanager
    def opened(capture: Capture) -> Iterator[Any]:
        path = builder.read(root / capture.file)
        with TemporaryDirectory() as folder:
            try:
                if capture.span:  # the agent's reader reads whole files
                    whole, path = path, Path(folder) / capture.file.name
                    cut(whole, capture.span, path)
                source = sources.open_file(path)
            except (sources.CaptureError, FramesError) as error:
                raise DatasetError(str(error)) from error
            with source:
                yield source

    def first_ns(capture: Capture) -> int:
        if capture.span:
            return capture.span.start_ns
        with opened(capture) as source:
            try:
                rows = features.Extractor(max_streams=64).push(source, 1)
            except sources.CaptureError as error:
                raise DatasetError(str(error)) from error
        return int(rows.meta["t_ns"][0]) if len(rows) else 0

    if len(group) > 1:
        group = sorted(group, key=first_ns)
    extractor = features.Extractor(builder.limits.max_streams, jitter=jitter, seed=0)  # seeded: same rows every time
    for capture in group:
        name = capture.name
        builder.expect(name, capture.label)
        if capture.kind is not None:
            builder.kinds[capture.device] = capture.kind
        read = 0
        before: dict[tuple[str, str], Any] = {}
        with opened(capture) as source:
            try:
                while len(rows := extractor.push(source, BATCH)):
                    read += len(rows)
                    values = np.ascontiguousarray(rows.values[:, index])
                    for device, label, mask in _labelled(capture, rows.meta, builder.limits.use_attack_lead):
                        meta = rows.meta[mask]
                        profiles = classify.packet_profile(meta, before.get((device, label))).astype(np.float32)
                        if len(meta):
                            before[device, label] = meta[-1:].copy()
                        builder.add(name, device, label, values[mask], meta["t_ns"], meta["src_mac"], profiles)
                    progress.step(0, f"files, {name}: {read:,} rows")
            except sources.CaptureError as error:
                if not read:
                    raise DatasetError(str(error)) from error
                builder.warnings.append(f"{error}; the {read:,} rows before that are used")
        progress.step(1)


def _labelled(capture: Capture, meta: Any, use_lead: bool) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yield (device, label, mask of rows) of a batch; rows in no mask are left out."""
    attacker = None if capture.mac is None else parse_mac(capture.mac)

    def by_sender(mask: NDArray[np.bool_]) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
        for mac in np.unique(meta["src_mac"][mask]):  # a gateway scores every sender, so each is a device
            unnamed = mac in (attacker, 0)  # 0: links without MACs
            name = capture.device if unnamed else f"{capture.device}/{mac_text(mac)}"
            yield name, BENIGN, mask & (meta["src_mac"] == mac)

    if capture.label == BENIGN:
        yield from by_sender(np.ones(len(meta), dtype=bool))
        return
    attacking = np.ones(len(meta), dtype=bool) if attacker is None else meta["src_mac"] == attacker
    if capture.attack is not None:
        start = capture.attack.start_ns
        attacking &= (meta["t_ns"] >= start) & (meta["t_ns"] <= capture.attack.end_ns)
        if capture.attack.server is not None:
            server = np.frombuffer(IPv4Address(capture.attack.server).packed, np.uint8)
            attacking &= (meta["ip_version"] == 4) & (meta["dst"][:, :4] == server).all(axis=1)
        if use_lead:
            yield from by_sender(meta["t_ns"] < start)
    yield capture.device, capture.label, attacking


# ---- files of rows -----------------------------------------------------------------------------------------------


def _parquet_schema(path: Path) -> Mapping[str, pl.DataType]:
    try:
        return pl.read_parquet_schema(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DatasetError(f"{path}: not a Parquet file of rows: {reason}") from error


def _exported(path: Path) -> pl.DataFrame:
    """Return the rows of a file that `botwatch agent rows` wrote: rows that a gateway stored of its devices."""
    try:
        with np.load(path, allow_pickle=False) as file:
            values, columns = file["values"], [str(name) for name in file["columns"]]
            t_ns, device, schema = file["t_ns"], file["device"], str(file["schema"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(f"{path}: not a file of rows that `botwatch agent rows` wrote: {error}") from error
    n = len(t_ns)
    if schema != cols.CLEAN or values.shape != (n, len(columns)) or device.shape != (n,) or t_ns.shape != (n,):
        raise DatasetError(f"{path}: rows of schema {schema}, shape {values.shape}, do not fit its {n} times")
    facts = {"t_ns": pl.Series(t_ns.astype(np.int64)), "device": pl.Series(device.tolist(), dtype=pl.String)}
    return pl.DataFrame(facts | {name: values[:, i] for i, name in enumerate(columns)})


def _load_rows(entry: DatasetEntry, builder: RowBuilder) -> set[tuple[str, str]]:
    """Add the rows asked for; return every (device, label) the file holds."""
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
        raise DatasetError(f"{path}: rows are of schema {made_as}, but the config asks for {builder.jitter_schema}")
    if "label" not in schema and entry.label is None:
        raise DatasetError(f"{path}: has no column 'label'; say in the config which label its rows have")
    builder.generated |= entry.generated
    facts = [c for c in schema if c in OWN_COLUMNS]
    rows = pl.scan_parquet(path) if exported is None else exported.lazy()
    frames = rows.select([*facts, *builder.columns]).collect_batches(chunk_size=1 << 16)
    row, held = 0, set()
    with Progress(f"reading {path.name}") as progress:
        for frame in frames:
            values = _values(frame, builder.columns, path, row)
            t_ns, mac = _times(frame), _macs(frame, path)
            names = pl.DataFrame(
                {
                    "capture": frame["capture"] if "capture" in frame else pl.Series([path.name] * len(frame)),
                    "device": _device_names(frame, mac, entry),
                    "label": _label_names(frame, entry),
                }
            )
            if sum(names.null_count().row(0)):
                raise DatasetError(f"{path}: a capture, device or label is missing after row {row + 1}")
            profiles = _values(frame, PROFILES, path, row) if set(PROFILES) <= set(frame.columns) else None
            for capture, device, label in names.unique(maintain_order=True).iter_rows():
                held.add((device, label))
                if _wanted(entry, device, label):
                    same = (names["capture"] == capture) & (names["device"] == device) & (names["label"] == label)
                    mask = same.to_numpy()
                    packets = None if profiles is None else profiles[mask]
                    number = frame["number"].to_numpy()[mask] if "number" in frame.columns else None
                    builder.add(capture, device, label, values[mask], t_ns[mask], mac[mask], packets, number)
                    if "kind" in frame.columns and (kind := frame["kind"].to_numpy()[mask][0]):
                        builder.kinds[device] = str(kind)
            row += len(frame)
            progress.step(len(frame), "rows")
    return held


def _device_names(frame: pl.DataFrame, mac: NDArray[np.uint64], entry: DatasetEntry) -> pl.Series:
    """Return the device column, else the entry's device, else the sender's MAC, else the name of the file."""
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


def _load_published(entry: DatasetEntry, builder: RowBuilder) -> set[tuple[str, str]]:
    """Add the rows asked for; return every (device, label) the folder holds."""
    if builder.jitter_schema != cols.COMPAT and _has_jitter(builder.columns):
        raise DatasetError(
            f"{entry.path}: published rows carry the date in HH_jit; "
            f"say schemas: [{cols.COMPAT}] or drop_columns: [HH_jit]"
        )
    files = published.find(entry.path)
    chosen = [(device, label, path) for device, label, path in files if _wanted(entry, device, label)]
    with Progress("reading rows", len(chosen)) as progress:
        for device, label, path in chosen:
            name = str(path.relative_to(entry.path))
            builder.expect(name, label)
            row = 0
            for frame in published.read(builder.read(path)):
                values = _values(frame, builder.columns, path, row)
                row += len(frame)
                builder.add(
                    name, device, label, values, np.zeros(len(values), np.int64), np.zeros(len(values), np.uint64)
                )
                progress.step(0, f"files, {name}: {row:,} rows")
            progress.step(1)
    return {(device, label) for device, label, _ in files}


def _values(frame: pl.DataFrame, columns: tuple[str, ...], path: Path, row: int) -> Array:
    """Return ``columns`` of a frame as float32 (n, k); DatasetError names the first value that is not finite."""
    values = np.empty((len(frame), len(columns)), dtype=np.float32)
    for i, column in enumerate(columns):
        values[:, i] = frame[column].cast(pl.Float32).to_numpy()  # a missing value becomes NaN
    finite = np.isfinite(values)
    if not finite.all():
        at = int(np.flatnonzero(~finite.all(axis=1))[0])
        column = columns[int(np.flatnonzero(~finite[at])[0])]
        cell = "no value" if frame[column][at] is None else frame[column][at]
        raise DatasetError(f"{path}: row {row + at + 1}, column {column!r}: {cell} instead of a number")
    return values
