"""Training on all rows of a store, in memory that does not grow with them.

The scaler and the autoencoder see every train row, block by block; epochs go through the blocks in random order and
shuffle a few of them together. τ, metrics, the classifier and the run folder come from a bounded, evenly spread sample,
in the same way as without a store. Importing this module imports TensorFlow.
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
from trainer.data import protocol, ranking, row_store
from trainer.data.dataset import RowTable
from trainer.data.row_store import BLOCK, RowStore
from trainer.fit import autoencoder, fit
from trainer.fit.fit_online import Running

if TYPE_CHECKING:
    from trainer.fit.workers import Workers

MIX = 8
"""Blocks that are shuffled together: one block is of one device and minute, or nearly."""


def run(
    config: Config,
    out: Path,
    command: str,
    folder: Path,
    watch: autoencoder.Watch | None = None,
    workers: "Workers | None" = None,
) -> None:
    """As `fit.run`, with the rows in a store at ``folder``; of several workers the first one writes."""
    began = time.monotonic()
    rows = row_store.prepare(config, cols.COMPAT if cols.COMPAT in config.schemas else cols.CLEAN, folder)
    for warning in rows.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{len(rows):,} rows of {len(rows.devices)} devices in {folder}")
    out.mkdir(parents=True, exist_ok=True)
    with workers.together() if workers else contextlib.nullcontext():
        if workers:  # the rows may lie elsewhere on each machine
            own = {**plain(config), "data": sorted(rows.inputs.values())}
            workers.check_same(own, len(rows))
        fitted = train(config, rows, watch, workers)
    if workers and workers.number:
        print(f"worker {workers.number} is done; worker 0 writes {out}")
        return
    fit.save(fitted, out, command, time.monotonic() - began)
    print(f"wrote {out}")


def train(
    config: Config, rows: RowStore, watch: autoencoder.Watch | None = None, workers: "Workers | None" = None
) -> fit.FittedModel:
    """Fit on all train rows and measure on a sample; FitError or TrainingError says why not."""
    index = rows.index()
    parts = fit.split(config, index)
    sample, of_sample = _sample(config, rows, parts, index.label)
    del index
    columns = config.model_columns()
    if config.top_n is not None:
        ranked = fit.rank(config, sample, of_sample)
        if ranked is None:
            raise fit.FitError("top_n ranks columns by what tells labels apart: rows of at least two labels are needed")
        try:
            chosen, _ = ranking.best(columns, np.array([ranked[c] for c in columns]), config.top_n)
        except ValueError as error:
            raise fit.FitError(str(error)) from error
        columns = tuple(c for c in columns if c in chosen)
        config = dataclasses.replace(config, columns=columns, drop_columns=(), top_n=None)

    benign = np.sort(np.concatenate([parts.train, parts.optimise]))
    counts = {"rows": len(rows), **{n: len(getattr(parts, n)) for n in ("train", "optimise", "test", "attack")}}
    train_rows = np.sort(parts.train)
    scaler = _scaler(config, rows, columns, train_rows if config.scaling.fit_on == "train" else benign)
    validation = np.empty((len(of_sample.optimise), len(columns)), np.float32)
    at = np.array([sample.columns.index(c) for c in columns], dtype=np.intp)
    for i in range(0, len(validation), BLOCK):
        values = sample.values[np.ix_(of_sample.optimise[i : i + BLOCK], at)]
        validation[i : i + BLOCK] = scaler.network_input(scaler.z(values))
    batches = _batches(rows, columns, train_rows, scaler, config.autoencoder.batch)
    del parts, benign
    print(f"training on {counts['train']:,} rows, of each part at most {fit.PART_ROWS:,} are kept to measure on")
    network, history = autoencoder.train(
        batches, validation, config.autoencoder, config.seed, config.network, watch, workers
    )
    del validation, batches
    fitted = fit.fit(
        config, sample, watch=watch, trained=fit.Trained(network, scaler, history, of_sample), workers=workers
    )
    return dataclasses.replace(fitted, metrics={**fitted.metrics, "whole": counts})


def _sample(config: Config, rows: RowStore, parts: fit.Parts, label: NDArray[np.int32]) -> tuple[RowTable, fit.Parts]:
    """What is measured on: of every benign part and every attack at most so many rows, and their parts."""
    kept = parts.kept()
    most = round(config.classifier.rows_per_class / config.attack_split.train)  # so that enough of them train
    attacks = []
    for code in np.unique(label[parts.attack]):
        own = parts.attack[label[parts.attack] == code]
        attacks.append(own[protocol.spread(len(own), most)])
    attack = np.concatenate(attacks) if attacks else np.zeros(0, np.intp)
    numbers = np.sort(np.concatenate([*kept.values(), attack]))
    place = {name: np.searchsorted(numbers, own) for name, own in kept.items()}
    of_sample = fit.Parts(
        place["train"],
        place["optimise"],
        place["test"],
        np.searchsorted(numbers, attack),
        parts.part[numbers],
        parts.short,
    )
    return rows.take(numbers), of_sample


def _scaler(config: Config, rows: RowStore, columns: tuple[str, ...], numbers: NDArray[np.intp]) -> Scaler:
    options, k = config.scaling, len(columns)
    running = Running(options.squash, options.floor, options.clip, np.zeros(k), np.zeros(k))
    with Progress("scaler", len(numbers)) as progress:
        for values in rows.pieces(numbers, columns):
            running.see(values)
            progress.step(len(values), "rows")
    return running.scaler()


def _batches(
    rows: RowStore,
    columns: tuple[str, ...],
    numbers: NDArray[np.intp],
    scaler: Scaler,
    size: int,
) -> autoencoder.Batches:
    """Epochs over the rows of these numbers: blocks in random order, `MIX` of them shuffled together."""
    blocks = np.unique(numbers // BLOCK)
    starts = np.searchsorted(numbers, blocks * BLOCK)
    ends = np.searchsorted(numbers, (blocks + 1) * BLOCK)

    def scaled(i: int) -> Array:
        block = int(blocks[i])
        values = rows.values(block, columns)[numbers[starts[i] : ends[i]] - block * BLOCK]
        return scaler.network_input(scaler.z(values))

    def epoch(shuffle: np.random.Generator) -> Iterator[tuple[Array, Array, Array]]:
        order = shuffle.permutation(len(blocks))
        left = np.empty((0, len(columns)), np.float32)
        ones = np.ones(size, np.float32)
        for i in range(0, len(order), MIX):
            mixed = np.concatenate([left, *(scaled(j) for j in order[i : i + MIX])])
            turn = shuffle.permutation(len(mixed))
            whole = len(mixed) if i + MIX >= len(order) else len(mixed) // size * size
            for j in range(0, whole, size):
                batch = mixed[turn[j : min(j + size, whole)]]
                yield batch, batch, ones[: len(batch)]
            left = mixed[turn[whole:]]

    return epoch
