"""Captures -> one Parquet file of feature rows, in bounded memory.

The file has the columns that `trainer.data.dataset` reads: the 140 features by name, and the packet's time, addresses
and ports. It appears whole or not at all; a capture that ends early gives the rows before the damage.
"""

import ipaddress
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.io.plugins import register_io_source

from edge_agent.capture.features import PORTS, Extractor
from edge_agent.capture.sources import CaptureError, open_file
from edge_agent.contract import columns as cols
from edge_agent.contract.captures import mac_text
from edge_agent.contract.cli import FAILED, OK, USAGE, refuse
from edge_agent.progress import Progress
from trainer.data.dataset import BATCH, META_COLUMNS, SCHEMA_KEY

PROG = "botwatch trainer extract"
ROW_GROUP = 1 << 16


def run(captures: list[Path], out: Path, schema: Literal["clean", "compat"], max_streams: int) -> int:
    """Write ``out`` and print the counters; return 0, 1 if a capture ended early, 2 if nothing could be read."""
    extractor = Extractor(max_streams, jitter=schema, seed=0)
    damage: list[CaptureError] = []
    rows = 0

    def frames(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        """Yield all rows; the sink asks for no selection of them."""
        nonlocal rows
        with Progress("extracting") as progress:
            for path in captures:
                try:
                    with open_file(path) as source:
                        while len(batch := extractor.push(source, BATCH)):
                            rows += len(batch)
                            progress.step(len(batch), f"rows, {path.name}")
                            yield _frame(batch.values, batch.meta)
                except CaptureError as error:
                    damage.append(error)
                    return

    kinds: dict[str, pl.DataType | type[pl.DataType]] = {**META_COLUMNS, **dict.fromkeys(cols.ALL_COLUMNS, pl.Float32)}
    temporary = out.with_name(out.name + ".tmp")
    try:
        register_io_source(frames, schema=kinds).sink_parquet(
            temporary,
            row_group_size=ROW_GROUP,
            sync_on_close="all",
            metadata={SCHEMA_KEY: cols.COMPAT if schema == "compat" else cols.CLEAN},
        )
        if rows:
            os.replace(temporary, out)
    except OSError as error:
        why = error.strerror or str(error).partition("\n")[0]  # polars sets no strerror, only a message
        return refuse(PROG, f"{out}: cannot be written: {why}")
    finally:
        with suppress(OSError):  # where it could not be made, it need not be removed
            temporary.unlink(missing_ok=True)
    for name, count in extractor.counts().items():
        print(f"{name}: {count:,}")
    status = OK
    for reason in damage:
        status = refuse(PROG, str(reason), FAILED)
    if not rows:
        return refuse(PROG, f"the captures hold no rows; {out} was not written", USAGE)
    print(f"wrote {rows:,} rows to {out}")
    return status


def _frame(values: NDArray[np.float32], meta: NDArray[Any]) -> pl.DataFrame:
    has_ports = (meta["flags"] & PORTS) != 0
    columns: dict[str, Any] = {
        "time": pl.Series(meta["t_ns"], dtype=pl.Int64).cast(pl.Datetime("ns", "UTC")),
        "mac": _texts(meta["src_mac"], mac_text),
        "peer_mac": _texts(meta["dst_mac"], mac_text),
        "src": _addresses(meta["src"], meta["ip_version"]),
        "dst": _addresses(meta["dst"], meta["ip_version"]),
        "sport": pl.Series(meta["sport"]).set(pl.Series(~has_ports), None),
        "dport": pl.Series(meta["dport"]).set(pl.Series(~has_ports), None),
        **{name: meta[name] for name in ("ethertype", "ip_version", "proto", "tcp_flags", "length")},
        "flags": meta["flags"].astype(np.uint16),
        **{name: values[:, i] for i, name in enumerate(cols.ALL_COLUMNS)},
    }
    return pl.DataFrame(columns)


def _texts(values: NDArray[Any], text: Any) -> pl.Series:
    """Return ``text`` of each value, computed once per distinct value."""
    distinct, at = np.unique(values, return_inverse=True)
    return pl.Series([text(v) for v in distinct], dtype=pl.String)[at]


def _addresses(raw: NDArray[np.uint8], version: NDArray[np.uint8]) -> pl.Series:
    """Return IP addresses as text; null where the frame had none."""

    def text(key: bytes) -> str | None:
        if key[0] == 4:
            return str(ipaddress.IPv4Address(key[1:5]))
        return str(ipaddress.IPv6Address(key[1:17])) if key[0] == 6 else None

    keys = [bytes(row) for row in np.column_stack([version, raw])]
    known = {key: text(key) for key in set(keys)}
    return pl.Series([known[key] for key in keys], dtype=pl.String)
