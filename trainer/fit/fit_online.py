"""`botwatch trainer stream`: train on traffic as it comes, without storing rows.

Each row is used once: it moves the running scaler, takes part in one step of the autoencoder, and is dropped. Only a
bounded, thinned sample of rows stays, most of it held out for τ and testing. A checkpoint holds the whole state, so
that a training that was stopped resumes with the next packet; in the end it becomes a run folder like any other.
"""

import argparse
import hashlib
import io
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.capture.features import Extractor, FeatureStateError
from edge_agent.capture.sources import CaptureError, open_file
from edge_agent.contract import columns as cols
from edge_agent.contract.bundle import BENIGN, replace_file
from edge_agent.contract.captures import mac_text
from edge_agent.contract.cli import OK, refuse
from edge_agent.contract.scaling import Array
from edge_agent.contract.settings import SettingsError
from edge_agent.progress import Progress
from trainer.config import Config, DatasetEntry
from trainer.data import row_table
from trainer.data.protocol import OPTIMISE, TEST, TRAIN, UNUSED
from trainer.data.row_table import RowTable
from trainer.fit import autoencoder, fit
from trainer.fit.row_parts import FitError, Parts
from trainer.fit.running_scaler import RunningScaler

PROG = "botwatch trainer stream"
CHECKPOINT = "checkpoint.npz"

BLOCK = 1024
"""Number of successive rows in one part: of ten blocks six train, two set τ, two test."""

GAP = 256
"""Number of rows left out where the part changes: neighbours are near copies of each other."""

PARTS = (TRAIN, OPTIMISE, TRAIN, TEST, TRAIN, TRAIN, OPTIMISE, TRAIN, TRAIN, TEST)

SAMPLE = 20_000
"""Bound of the rows of each part that stay in memory."""

SETTLE = 2048
"""Number of rows that only move the scaler before the first step, because its first estimates are useless."""

PUSH = 1024
EVERY = 50_000
"""Number of rows between checkpoints."""


class StreamError(Exception):
    """A stream that cannot be learnt from or resumed; the message says why."""


class Learner:
    """An autoencoder that learns row by row; `save` and `load` carry its whole state over a restart.

    ``sample`` bounds the rows of each part that stay in memory.
    """

    def __init__(self, config: Config, sample: int = SAMPLE):
        self.config, self.columns = config, config.model_columns()
        self._at = cols.indices(self.columns)
        counts = [c for c in cols.COUNT_COLUMNS if c not in self.columns]
        self._sample_columns = (*self.columns, *counts)
        self._sample_at = cols.indices(self._sample_columns)
        self._sample_limit = sample
        self.running = RunningScaler(config.scaling, len(self.columns))
        autoencoder.start(config.seed)
        self.network = autoencoder.build(len(self.columns), config.network)
        self._step, self._optimizer = autoencoder.stepper(self.network, autoencoder.squares(), config.autoencoder)
        self.extractor = Extractor(config.max_streams, seed=0)
        self.seen, self.steps, self.loss = 0, 0, 0.0
        self.position = 0
        """Number of frames taken from the sources."""
        self._waiting = np.empty((0, len(self.columns)), np.float32)  # train rows of a batch that is not full
        self._sample: dict[int, list[tuple[NDArray[Any], ...]]] = {TRAIN: [], OPTIMISE: [], TEST: []}
        self._stride = {TRAIN: 1, OPTIMISE: 1, TEST: 1}
        self._part_rows = {TRAIN: 0, OPTIMISE: 0, TEST: 0}

    def see(self, values: Array, meta: NDArray[Any]) -> None:
        """Learn from rows (n, 140) in the order of their packets, all of healthy devices."""
        rows = np.arange(self.seen, self.seen + len(values))
        block = rows // BLOCK
        part = np.array(PARTS)[block % len(PARTS)]
        before = np.array(PARTS)[(block - 1) % len(PARTS)]
        part = np.where((rows % BLOCK < GAP) & (part != before) & (block > 0), UNUSED, part)
        self.seen += len(values)
        for code in (TRAIN, OPTIMISE, TEST):
            chosen = part == code
            if chosen.any():
                self._add_to_sample(code, values[chosen], meta[chosen], rows[chosen])
        train = np.ascontiguousarray(values[part == TRAIN][:, self._at])
        if len(train):
            self.running.add(train)
            self._waiting = np.concatenate([self._waiting, train])
        batch = self.config.autoencoder.batch
        while len(self._waiting) >= batch and self.running.rows >= SETTLE:
            rows_now, self._waiting = self._waiting[:batch], self._waiting[batch:]
            scaler = self.running.scaler()
            inputs = scaler.network_input(scaler.z(rows_now))
            self.loss = float(self._step(inputs, inputs, np.ones(len(inputs), np.float32)))
            self.steps += 1
            if not np.isfinite(self.loss):
                raise autoencoder.TrainingError("the loss stopped being a number; a lower learning_rate may help")

    def _add_to_sample(self, code: int, values: Array, meta: NDArray[Any], rows: NDArray[np.int64]) -> None:
        """Sample the part's rows in blocks of 256: every 1st, 2nd, 4th ... block, so that the bound always holds."""
        block = (self._part_rows[code] + np.arange(len(values))) // row_table.BLOCK
        self._part_rows[code] += len(values)
        t_ns, senders = meta["t_ns"].astype(np.int64), meta["src_mac"].astype(np.uint64)
        new = (block, values[:, self._sample_at], t_ns, senders, rows)
        chunks = [*self._sample[code], new]
        while sum(int((chunk[0] % self._stride[code] == 0).sum()) for chunk in chunks) > self._sample_limit:
            self._stride[code] *= 2
        taken = [tuple(a[chunk[0] % self._stride[code] == 0] for a in chunk) for chunk in chunks]
        # one array, because views would keep alive the batches they are of
        self._sample[code] = [tuple(np.concatenate(arrays) for arrays in zip(*taken, strict=True))]

    def sampled(self) -> int:
        """Return the number of rows in the sample."""
        return sum(len(chunk[0]) for chunks in self._sample.values() for chunk in chunks)

    def waiting(self) -> int:
        """Return the number of train rows that wait until a batch is full."""
        return len(self._waiting)

    # -- checkpoint --

    def save(self, path: Path, sources: Sequence[str]) -> None:
        """Write the whole state to one file, which appears whole or not at all.

        ``sources`` are the SHA-256 of the captures it has learnt from.
        """
        arrays: dict[str, NDArray[Any]] = {
            "columns": np.array(self.columns),
            "sources": np.array(list(sources)),
            "numbers": np.array([self.seen, self.steps, self.position, self.running.rows]),
            "loss": np.array(self.loss),
            "mean": self.running.mean,
            "square": self.running.square,
            "waiting": self._waiting,
            "extractor": np.frombuffer(self.extractor.save(), dtype=np.uint8),
            **{f"weight {i}": w for i, w in enumerate(self.network.get_weights())},
            **{f"optimiser {i}": np.asarray(v) for i, v in enumerate(self._optimizer.variables)},
            **{f"stride {code}": np.array([s, self._part_rows[code]]) for code, s in self._stride.items()},
            **{
                f"kept {code} {i}": array
                for code, chunks in self._sample.items()
                for chunk in chunks
                for i, array in enumerate(chunk)
            },
        }
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes the keywords for allow_pickle
        replace_file(path, file.getvalue())

    def load(self, path: Path, sources: Sequence[str]) -> None:
        """Resume from a checkpoint; StreamError if the file is not a checkpoint, or has other columns or sources."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            if tuple(arrays["columns"]) != self.columns:
                raise StreamError(f"{path}: has other columns; give another --out")
            learnt_from = [str(s) for s in arrays["sources"]]
            if learnt_from != list(sources)[: len(learnt_from)]:
                raise StreamError(
                    f"{path}: has learnt from {', '.join(learnt_from)}; give these captures first, in this order"
                )
            self.seen, self.steps, self.position, self.running.rows = (int(n) for n in arrays["numbers"])
            self.loss = float(arrays["loss"])
            self.running.mean, self.running.square = arrays["mean"], arrays["square"]
            self._waiting = arrays["waiting"]
            self.extractor.load(arrays["extractor"].tobytes())
            self.network.set_weights([arrays[f"weight {i}"] for i in range(len(self.network.weights))])
            for i, variable in enumerate(self._optimizer.variables):
                variable.assign(arrays[f"optimiser {i}"])
            for code in self._stride:
                self._stride[code], self._part_rows[code] = (int(n) for n in arrays[f"stride {code}"])
                self._sample[code] = (
                    [tuple(arrays[f"kept {code} {i}"] for i in range(5))] if f"kept {code} 0" in arrays else []
                )
        except (OSError, ValueError, KeyError, EOFError, FeatureStateError) as error:
            raise StreamError(f"{path}: not a checkpoint of this version: {error}") from error

    def finish(self, generated: bool, inputs: dict[str, str]) -> fit.FittedModel:
        """Return the fitted model, τ and limits from rows that were held out; FitError if there are too few."""
        arrays: dict[int, tuple[NDArray[Any], ...]] = {
            code: chunks[0] for code, chunks in self._sample.items() if chunks and len(chunks[0][0])
        }
        if OPTIMISE not in arrays or not self.steps:
            raise FitError(f"{self.seen:,} rows are too few: there was no step, or nothing was held out for τ")
        values, t_ns, mac, rows = (np.concatenate([a[i] for a in arrays.values()]) for i in (1, 2, 3, 4))
        part = np.concatenate([np.full(len(a[0]), code, np.int8) for code, a in arrays.items()])
        macs, device = np.unique(mac, return_inverse=True)
        n = len(values)
        table = RowTable(
            values=values,
            columns=self._sample_columns,
            device=device.astype(np.int32),
            devices=tuple(mac_text(int(m)) for m in macs),
            label=np.zeros(n, np.int32),
            labels=(BENIGN,),
            capture=np.zeros(n, np.int32),
            captures=("stream",),
            t_ns=t_ns,
            mac=mac,
            number=_positions(rows, device),
            generated=generated,
            inputs=inputs,
        )
        order = np.lexsort((t_ns, device))
        train, optimise, test = (order[part[order] == code] for code in (TRAIN, OPTIMISE, TEST))
        none = np.zeros(0, np.intp)
        base = np.zeros(n, dtype=np.bool_)
        parts = Parts(train=train, optimise=optimise, test=test, attack=none, part=part, base=base, short=())
        history = {"epochs": 1, "best_epoch": 1, "loss": [self.loss], "validation_loss": [self.loss]}
        config = replace(self.config, classifier=replace(self.config.classifier, enabled=False), top_n=None)
        trained = fit.TrainedAutoencoder(
            network=self.network, scaler=self.running.scaler(), history=history, parts=parts
        )
        return fit.fit(config, table, trained=trained)


def _positions(rows: NDArray[np.int64], device: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return the position of each row among those of its device, (n,), with a gap wherever ``rows`` were left out.

    >>> _positions(np.array([0, 1, 2, 9, 10]), np.array([0, 1, 0, 0, 1]))
    array([0, 0, 1, 3, 2])
    """
    order = np.argsort(rows)
    gaps = np.cumsum(np.diff(rows[order], prepend=rows[order[0]]) > 1)
    position = np.empty(len(rows), dtype=np.int64)
    for code in np.unique(device):
        mine = device[order] == code
        position[order[mine]] = np.arange(int(mine.sum())) + gaps[mine]
    return position


def frames(learner: Learner, paths: Sequence[Path]) -> Iterator[int]:
    """Push the frames the learner has not seen yet; yield the rows of each push. CaptureError at a damaged file."""
    past = learner.position
    for path in paths:
        with open_file(path) as source:
            skipping = Extractor(64, max_devices=8)  # reads past the frames learnt before, and learns nothing
            while past and (skipped := len(skipping.push(source, min(past, PUSH)))):
                past -= skipped
            while len(rows := learner.extractor.push(source, PUSH)):
                learner.see(rows.values, rows.meta)
                learner.position += len(rows)
                yield len(rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `botwatch trainer stream`."""
    parser.description = (
        "Train on captures of healthy devices as they are read, each row once, without storing rows. A training that "
        "was stopped resumes from its last checkpoint; more captures can be given later."
    )
    parser.epilog = f"example:\n  {PROG} monday.pcap tuesday.pcap --out runs/stream"
    parser.add_argument("captures", nargs="+", type=Path, metavar="CAPTURE", help="pcap or pcapng files, in order")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder, also for the checkpoint")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first weights (%(default)s)")
    parser.add_argument("--generated", action="store_true", help="the captures hold generated traffic")
    parser.add_argument(
        "--every", type=int, default=EVERY, metavar="ROWS", help="rows between two checkpoints (%(default)s)"
    )


def run(args: argparse.Namespace, command: str) -> int:
    """Run `botwatch trainer stream`; return the exit status. The state learnt so far stays in the checkpoint."""
    began = time.monotonic()
    try:
        if args.every < 1:
            raise StreamError(f"--every must be at least 1, is {args.every}")
        inputs = {str(path): _digest(path) for path in args.captures}
        config = Config((DatasetEntry("captures", args.captures[0]),), seed=args.seed)
        config = replace(config, autoencoder=replace(config.autoencoder, batch=256, learning_rate=2e-3))
        learner = Learner(config)
        args.out.mkdir(parents=True, exist_ok=True)
        checkpoint, sources = args.out / CHECKPOINT, list(inputs.values())
        if checkpoint.is_file():
            learner.load(checkpoint, sources)
            print(f"resuming after {learner.seen:,} rows")
        due = learner.seen + args.every
        with Progress("learning") as progress:
            for n in frames(learner, args.captures):
                progress.step(n, f"rows, loss {learner.loss:.4g}, {learner.steps:,} steps")
                if learner.seen >= due:
                    learner.save(checkpoint, sources)
                    due = learner.seen + args.every
        learner.save(checkpoint, sources)
        fitted = learner.finish(args.generated, inputs)
        fit.save(fitted, args.out, command, time.monotonic() - began)
    except (StreamError, CaptureError, SettingsError, FitError, autoencoder.TrainingError) as error:
        return refuse(PROG, error)
    except OSError as error:
        return refuse(PROG, error, file=args.out)
    print(
        f"wrote {args.out}: {learner.seen:,} rows seen, {learner.sampled():,} in the sample, {learner.steps:,} steps, "
        f"checkpoint {os.path.getsize(checkpoint) / 1e6:.1f} MB"
    )
    return OK


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
