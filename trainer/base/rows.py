"""Rows of generated homes, made from a plan and a seed and kept on this machine: what the built-in bundle is fitted on.

A home is generated, its rows are extracted by the kernel that ships and thinned, and its captures are deleted again.
The rows of each home are one Parquet file, which `trainer.data.dataset` reads like any other (`kind: rows`). They
depend on nothing but the settings and the code that makes them, so they are kept under a key of both.
"""

import dataclasses
import fcntl
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from edge_agent.contract import columns as cols
from edge_agent.contract.bundle import BENIGN
from edge_agent.progress import Progress
from trainer.base import provenance
from trainer.config import BaseRows, Config, DatasetEntry, plain
from trainer.data import dataset, protocol
from trainer.data.row_table import DatasetError, Limits, RowTable
from trainer.traffic import homes
from trainer.traffic.captures import generate
from trainer.traffic.plan import Plan

PREFIX = "base "
"""The beginning of the names of devices of generated homes: `base 07 camera-1`, after the number of the home."""

OTHERS, ATTACKS = 4, 2
"""Divisors of ``max_rows``: of another sender in a device's capture, mostly the router, which every capture shows; and
of an attack, of which each infected device has ten."""

KEPT = 2
"""Sets of homes that are kept; those used longest ago are deleted first."""

MOST_PROCESSES = 4
"""Homes that are made at a time at most, each in some hundred MB of memory and disk."""


def sources(config: Config) -> tuple[DatasetEntry, ...]:
    """Return every source of rows that the config asks for, those of its generated homes made if they are not kept.

    DatasetError when they can be neither read nor made.
    """
    if not config.base.homes:
        return config.data
    try:
        files = kept(config.base, folder())
    except OSError as error:
        raise DatasetError(f"base: {error.filename or folder()}: {error.strerror or error}") from error
    return (*config.data, *(DatasetEntry("rows", path, generated=True) for path in files))


def is_base(table: RowTable) -> NDArray[np.bool_]:
    """Return a mask of the rows of generated homes, (n,)."""
    return np.array([name.startswith(PREFIX) for name in table.devices], dtype=np.bool_)[table.device]


def folder() -> Path:
    """Return where rows of generated homes are kept: `$XDG_CACHE_HOME/botwatch/homes`, by default in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "botwatch" / "homes"


def key(base: BaseRows) -> str:
    """Return the name of a set of homes, which changes with the settings and with the code that makes rows."""
    files = provenance.sources(__name__)
    del files["trainer/config.py"]  # of which the settings of ``base`` are all that matters here
    return provenance.digest(files | {name: str(value) for name, value in plain(base).items()})[:16]


def kept(base: BaseRows, cache: Path) -> list[Path]:
    """Return the files of a set of homes in ``cache``, made now where they are missing."""
    mine = cache / key(base)
    mine.mkdir(parents=True, exist_ok=True)
    plans = homes.draw(base.seed, base.homes)
    files = [mine / f"home-{number:02}.parquet" for number in range(1, len(plans) + 1)]
    with _alone(cache):
        os.utime(mine)
        missing = [number for number, file in enumerate(files, 1) if not file.is_file()]
        if missing:
            print(f"making the rows of {len(missing)} generated homes, once; they are kept in {mine}", flush=True)
            _make(base, [(number, plans[number - 1], files[number - 1]) for number in missing])
        _forget(cache, mine)
    return files


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Let one process at a time make or delete rows; the others wait for it."""
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(base: BaseRows, wanted: list[tuple[int, Plan, Path]]) -> None:
    """Make the rows of each home, several at a time; each file depends on its home alone."""
    processes = min(len(os.sched_getaffinity(0)), len(wanted), MOST_PROCESSES)
    # not forked: TensorFlow may run in this process, with threads of its own
    context = multiprocessing.get_context("spawn")
    with Progress("generated homes", len(wanted)) as progress, ProcessPoolExecutor(processes, context) as pool:
        # the largest first, so that no processor waits for one that began late
        order = sorted(wanted, key=lambda one: -len(one[1].devices))
        waiting = {pool.submit(make_home, base, *one): one[0] for one in order}
        for done in as_completed(waiting):
            progress.step(note=f"homes, home {waiting[done]}: {done.result():,} rows")


def make_home(base: BaseRows, number: int, plan: Plan, out: Path) -> int:
    """Write the thinned rows of one home to ``out`` and return their number; its captures exist only meanwhile."""
    plan = dataclasses.replace(plan, hours=min(plan.hours, base.hours))
    with tempfile.TemporaryDirectory(prefix=f"{out.stem}-", dir=out.parent) as work:
        generate(plan, Path(work))
        limits = Limits(max_rows=base.max_rows)
        table = dataset.load((DatasetEntry("captures", Path(work)),), cols.ALL_COLUMNS, cols.CLEAN, limits)
        frame = _frame(table, f"{PREFIX}{number:02} ")[_thinned(table, base.max_rows)]
        temporary = Path(work, out.name)
        frame.write_parquet(temporary, compression="zstd", metadata={dataset.SCHEMA_KEY: cols.CLEAN})
        os.replace(temporary, out)
    return len(frame)


def _thinned(table: RowTable, most: int) -> NDArray[np.intp]:
    """Return the row numbers of a home, ascending, at most ``most`` of a device in a capture, and fewer of others."""
    chosen = []
    group = (table.capture * len(table.devices) + table.device) * len(table.labels) + table.label
    for code in np.unique(group):
        rows = np.flatnonzero(group == code)
        other, attack = "/" in table.devices[table.device[rows[0]]], table.labels[table.label[rows[0]]] != BENIGN
        limit = most // OTHERS if other else most // ATTACKS if attack else most
        chosen.append(rows[protocol.spread(len(rows), limit)])
    return np.sort(np.concatenate(chosen))


def _frame(table: RowTable, prefix: str) -> pl.DataFrame:
    """Return a table of rows as a home's file has it: devices and captures named after the home."""
    assert table.profiles is not None
    return pl.DataFrame(
        {
            **{name: table.values[:, i] for i, name in enumerate(table.columns)},
            **{name: table.profiles[:, i] for i, name in enumerate(dataset.PROFILES)},
            "capture": np.array([prefix + name for name in table.captures])[table.capture],
            "device": np.array([prefix + name for name in table.devices])[table.device],
            "label": np.array(table.labels)[table.label],
            "mac": table.mac,
            "t_ns": table.t_ns,
            "number": table.number,
            "kind": np.array([table.kinds.get(name, "") for name in table.devices])[table.device],
        }
    )


def _forget(cache: Path, mine: Path) -> None:
    """Delete all sets but ``mine`` and the last ones that were used, `KEPT` in all, and what a crash left in mine."""
    sets = sorted((path for path in cache.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for path in [path for path in sets if path != mine][: max(0, len(sets) - KEPT)]:
        shutil.rmtree(path)
    for path in mine.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
