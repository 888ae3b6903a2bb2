"""Training on all rows of a store, in memory that does not grow with them.

The scaler and the autoencoder see every train row, block by block: an epoch goes through the blocks in random order
and shuffles a few of them together. τ, metrics, the classifier and the run folder come from a bounded, evenly spread
sample, in the same way as without a store. Importing this module imports TensorFlow.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract import columns as cols
from edge_agent.contract.scaling import Array, Scaler
from edge_agent.progress import Progress
from trainer.config import Config, plain
from trainer.data import protocol, row_store
from trainer.data.row_store import RowStore
from trainer.data.row_table import RowTable
from trainer.fit import autoencoder, fit
from trainer.fit.row_parts import Index, Parts, shared, split
from trainer.fit.running_scaler import RunningScaler

if TYPE_CHECKING:
    from trainer.fit.workers import Workers

MIX = 8
"""Number of blocks that are shuffled together, because one block has rows of hardly more than one device and minute."""


def run(
    config: Config,
    out: Path,
    command: str,
    folder: Path,
    watch: autoencoder.Watch | None = None,
    workers: "Workers | None" = None,
) -> None:
    """Do as `fit.run` does, with the rows in a store at ``folder``; of several workers only the first writes."""
    began = time.monotonic()
    rows = row_store.prepare(config, cols.COMPAT if cols.COMPAT in config.schemas else cols.CLEAN, folder)
    for warning in rows.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{len(rows):,} rows of {len(rows.devices)} devices in {folder}")
    out.mkdir(parents=True, exist_ok=True)
    with workers.together() if workers else contextlib.nullcontext():
        if workers:  # each machine may have the files at another path
            settings = {**plain(config), "data": sorted(rows.inputs.values())}
            workers.check_same(settings, len(rows))
        fitted = train(config, rows, watch, workers)
    if workers and workers.number:
        print(f"worker {workers.number} is done; worker 0 writes {out}")
        return
    fit.save(fitted, out, command, time.monotonic() - began)
    print(f"wrote {out}")


def train(
    config: Config,
    rows: RowStore,
    watch: autoencoder.Watch | None = None,
    workers: "Workers | None" = None,
) -> fit.FittedModel:
    """Fit on all train rows and measure on a sample; FitError or TrainingError says why it failed."""
    index = rows.index()
    parts = split(config, index)
    sample, sample_parts = _sample(config, rows, parts, index.label)
    del index
    columns = config.model_columns()
    if config.top_n is not None:
        columns = fit.choose_columns(config, sample, fit.rank(config, sample, sample_parts), print)
        config = dataclasses.replace(config, columns=columns, drop_columns=(), top_n=None)

    benign = np.sort(np.concatenate([parts.train, parts.optimise]))
    counts = {
        "rows": len(rows),
        **{name: len(getattr(parts, name)) for name in ("train", "optimise", "test", "attack")},
    }
    train_rows = np.sort(parts.train)
    train_rows = train_rows[shared(parts.base[train_rows], config.train_rows)]
    weights = parts.weights(train_rows)
    scaler = _scaler(config, rows, columns, train_rows if config.scaling.fit_on == "train" else benign)
    validation = np.empty((len(sample_parts.optimise), len(columns)), np.float32)
    at, step = sample.positions(columns), rows.block_rows
    for i in range(0, len(validation), step):
        values = sample.values[np.ix_(sample_parts.optimise[i : i + step], at)]
        validation[i : i + step] = scaler.network_input(scaler.z(values))
    batches = epochs(rows, columns, train_rows, scaler, config.autoencoder.batch, weights)
    del parts, benign
    print(f"training on {counts['train']:,} rows; at most {config.part_rows:,} of each part are used to measure")
    network, history = autoencoder.train(
        batches, validation, config.autoencoder, config.seed, config.network, watch, workers
    )
    del validation, batches
    trained = fit.TrainedAutoencoder(network=network, scaler=scaler, history=history, parts=sample_parts)
    fitted = fit.fit(config, sample, watch=watch, trained=trained, workers=workers)
    return dataclasses.replace(fitted, metrics={**fitted.metrics, "whole": counts})


def _sample(config: Config, rows: RowStore, parts: Parts, label: NDArray[np.int32]) -> tuple[RowTable, Parts]:
    """Return the rows to measure on, a bounded number of every benign part and every attack, and their parts."""
    benign = parts.sample(config.part_rows)
    limit = round(config.classifier.rows_per_class / config.attack_split.train)  # so that enough of them train
    attacks = []
    for code in np.unique(label[parts.attack]):
        chosen = parts.attack[label[parts.attack] == code]
        attacks.append(chosen[protocol.spread(len(chosen), limit)])
    attack = np.concatenate(attacks) if attacks else np.zeros(0, np.intp)
    numbers = np.sort(np.concatenate([*benign.values(), attack]))
    sample_parts = Parts(
        **{name: np.searchsorted(numbers, chosen) for name, chosen in benign.items()},
        attack=np.searchsorted(numbers, attack),
        part=parts.part[numbers],
        base=parts.base[numbers],
        short=parts.short,
    )
    return rows.take(numbers), sample_parts


def _scaler(config: Config, rows: RowStore, columns: tuple[str, ...], numbers: Index) -> Scaler:
    running = RunningScaler(config.scaling, len(columns))
    with Progress("scaler", len(numbers)) as progress:
        for values in rows.pieces(numbers, columns):
            running.add(values)
            progress.step(len(values), "rows")
    return running.scaler()


def epochs(
    rows: RowStore,
    columns: tuple[str, ...],
    numbers: Index,
    scaler: Scaler,
    size: int,
    weights: Array,
) -> autoencoder.Batches:
    """Return a function: random generator -> the batches of an epoch over the rows of these numbers (n,), ascending.

    Every row is in one batch of ``size`` rows, the last of which may be smaller. Blocks come in random order, and `MIX`
    of them are shuffled together.
    """
    blocks = np.unique(numbers // rows.block_rows)
    starts = np.searchsorted(numbers, blocks * rows.block_rows)
    ends = np.searchsorted(numbers, (blocks + 1) * rows.block_rows)

    def scaled(i: int) -> Array:
        block = int(blocks[i])
        values = rows.values(block, columns)[numbers[starts[i] : ends[i]] - block * rows.block_rows]
        return scaler.network_input(scaler.z(values))

    def epoch(shuffle: np.random.Generator) -> Iterator[tuple[Array, Array, Array]]:
        order = shuffle.permutation(len(blocks))
        left, left_weights = np.empty((0, len(columns)), np.float32), np.empty(0, np.float32)
        for i in range(0, len(order), MIX):
            mixed = np.concatenate([left, *(scaled(j) for j in order[i : i + MIX])])
            weighed = np.concatenate([left_weights, *(weights[starts[j] : ends[j]] for j in order[i : i + MIX])])
            shuffled = shuffle.permutation(len(mixed))
            whole = len(mixed) if i + MIX >= len(order) else len(mixed) // size * size
            for j in range(0, whole, size):
                chosen = shuffled[j : min(j + size, whole)]
                batch = mixed[chosen]
                yield batch, batch, weighed[chosen]
            left, left_weights = mixed[shuffled[whole:]], weighed[shuffled[whole:]]

    return epoch
