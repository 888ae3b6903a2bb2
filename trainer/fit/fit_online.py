"""`botwatch trainer stream`: semi-online training, from traffic as it comes, without storing rows.

Each row is seen once: it moves the running scaler, takes part in one step of the autoencoder, and is gone. What is kept
is bounded: a thinned sample of rows, most of them held out for τ and testing. A checkpoint holds everything, so that a
training that was stopped goes on with the next packet; in the end it becomes a run folder like any other.
"""

import argparse
import hashlib
import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.capture.features import Extractor, FeatureStateError
from edge_agent.capture.sources import CaptureError, open_file
from edge_agent.contract import columns as cols
from edge_agent.contract.bundle import BENIGN, replace_file
from edge_agent.contract.captures import mac_text
from edge_agent.contract.scaling import Array, Scaler
from edge_agent.contract.settings import SettingsError
from edge_agent.progress import Progress
from trainer.config import Config
from trainer.data import dataset
from trainer.data.dataset import RowTable
from trainer.data.protocol import OPTIMISE, TEST, TRAIN, UNUSED
from trainer.fit import autoencoder, fit

PROG = "botwatch trainer stream"
CHECKPOINT = "checkpoint.npz"

BLOCK = 1024
"""Rows of one part at a time: of ten blocks six train, two set τ, two test."""

GAP = 256
"""Rows left out where the part changes: neighbours are near copies of each other."""

PARTS = (TRAIN, OPTIMISE, TRAIN, TEST, TRAIN, TRAIN, OPTIMISE, TRAIN, TRAIN, TEST)

SAMPLE = 20_000
"""Rows kept of each part."""

SETTLE = 2048
"""Rows that only move the scaler before the first step: at first it knows no spread."""

PUSH = 1024
EVERY = 50_000
"""Rows between checkpoints."""


class StreamError(Exception):
    """A stream that cannot be learnt from or gone on with; the message says why."""


@dataclass
class Running:
    """Mean and spread of squashed columns over all rows so far (Welford 1962, by batches as Chan et al. 1979)."""

    squash: str
    floor: float
    clip: float | None
    mean: NDArray[np.float64]
    square: NDArray[np.float64]  # sum of squared distances from the mean
    rows: int = 0

    def see(self, values: Array) -> None:
        """Rows (n, k) of raw values."""
        x = values.astype(np.float64)
        if self.squash == "log1p":
            x = np.copysign(np.log1p(np.abs(x)), x)
        total = self.rows + len(x)
        here, off = x.mean(axis=0), x.mean(axis=0) - self.mean
        self.square = self.square + ((x - here) ** 2).sum(axis=0) + off**2 * (self.rows * len(x) / total)
        self.mean = self.mean + off * (len(x) / total)
        self.rows = total

    def scaler(self) -> Scaler:
        """The scaler of what was seen."""
        spread = np.sqrt(self.square / max(1, self.rows))
        squash: Any = self.squash
        return Scaler(squash, self.mean.copy(), np.maximum(spread, self.floor), self.clip)


class Learner:
    """An autoencoder that learns row by row; `save` and `load` carry all of it over a restart."""

    def __init__(self, config: Config):
        self.config, self.columns = config, config.model_columns()
        self._at = cols.indices(self.columns)
        counts = [c for c in cols.COUNT_COLUMNS if c not in self.columns]
        self._kept_columns = (*self.columns, *counts)
        self._kept_at = cols.indices(self._kept_columns)
        k = len(self.columns)
        options = config.scaling
        self.running = Running(options.squash, options.floor, options.clip, np.zeros(k), np.zeros(k))
        autoencoder.start(config.seed)
        self.network = autoencoder.build(k, config.network)
        self._step, self._optimizer = autoencoder.stepper(self.network, autoencoder.squares(), config.autoencoder)
        self.extractor = Extractor(config.max_streams, seed=0)
        self.seen, self.steps, self.loss = 0, 0, 0.0
        self.position = 0  # frames taken from the sources
        self._waiting = np.empty((0, k), np.float32)  # train rows of a batch that is not full
        self._kept: dict[int, list[tuple[NDArray[Any], ...]]] = {TRAIN: [], OPTIMISE: [], TEST: []}
        self._stride = {TRAIN: 1, OPTIMISE: 1, TEST: 1}
        self._of_part = {TRAIN: 0, OPTIMISE: 0, TEST: 0}

    def see(self, values: Array, meta: NDArray[Any]) -> None:
        """Rows (n, 140) as they come, in order, all of healthy devices."""
        rows = np.arange(self.seen, self.seen + len(values))
        block = rows // BLOCK
        part = np.array(PARTS)[block % len(PARTS)]
        before = np.array(PARTS)[(block - 1) % len(PARTS)]
        part = np.where((rows % BLOCK < GAP) & (part != before) & (block > 0), UNUSED, part)
        self.seen += len(values)
        for code in (TRAIN, OPTIMISE, TEST):
            chosen = part == code
            if chosen.any():
                self._keep(code, values[chosen], meta[chosen])
        train = np.ascontiguousarray(values[part == TRAIN][:, self._at])
        if len(train):
            self.running.see(train)
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

    def _keep(self, code: int, values: Array, meta: NDArray[Any]) -> None:
        """A sample of the part's rows in blocks of 256: every 1st, 2nd, 4th ... one, so that it never outgrows."""
        block = (self._of_part[code] + np.arange(len(values))) // dataset.BLOCK
        self._of_part[code] += len(values)
        own = (block, values[:, self._kept_at], meta["t_ns"].astype(np.int64), meta["src_mac"].astype(np.uint64))
        chunks = [*self._kept[code], own]
        while sum(int((chunk[0] % self._stride[code] == 0).sum()) for chunk in chunks) > SAMPLE:
            self._stride[code] *= 2
        kept = [tuple(a[chunk[0] % self._stride[code] == 0] for a in chunk) for chunk in chunks]
        # one array, so that views do not hold the batches they are of
        self._kept[code] = [tuple(np.concatenate(arrays) for arrays in zip(*kept, strict=True))]

    def kept(self) -> int:
        """Rows held."""
        return sum(len(chunk[0]) for chunks in self._kept.values() for chunk in chunks)

    # -- checkpoint --

    def save(self, path: Path, sources: Sequence[str]) -> None:
        """Everything, in one file that appears whole or not at all. ``sources`` say what it is of."""
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
            **{f"stride {code}": np.array([s, self._of_part[code]]) for code, s in self._stride.items()},
            **{
                f"kept {code} {i}": array
                for code, chunks in self._kept.items()
                for chunk in chunks
                for i, array in enumerate(chunk)
            },
        }
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes the keywords for allow_pickle
        replace_file(path, file.getvalue())

    def load(self, path: Path, sources: Sequence[str]) -> None:
        """Go on from a checkpoint; StreamError when it is none, or of other columns or sources."""
        try:
            with np.load(path, allow_pickle=False) as file:
                held = dict(file)
            if tuple(held["columns"]) != self.columns:
                raise StreamError(f"{path}: is of other columns; give another --out")
            told = [str(s) for s in held["sources"]]
            if told != list(sources)[: len(told)]:
                raise StreamError(
                    f"{path}: has learnt from {', '.join(told)}; give these captures first, in this order"
                )
            self.seen, self.steps, self.position, self.running.rows = (int(n) for n in held["numbers"])
            self.loss = float(held["loss"])
            self.running.mean, self.running.square, self._waiting = held["mean"], held["square"], held["waiting"]
            self.extractor.load(held["extractor"].tobytes())
            self.network.set_weights([held[f"weight {i}"] for i in range(len(self.network.weights))])
            for i, variable in enumerate(self._optimizer.variables):
                variable.assign(held[f"optimiser {i}"])
            for code in self._stride:
                self._stride[code], self._of_part[code] = (int(n) for n in held[f"stride {code}"])
                self._kept[code] = (
                    [tuple(held[f"kept {code} {i}"] for i in range(4))] if f"kept {code} 0" in held else []
                )
        except (OSError, ValueError, KeyError, EOFError, FeatureStateError) as error:
            raise StreamError(f"{path}: no checkpoint of this version: {error}") from error

    def finish(self, generated: bool, inputs: dict[str, str]) -> fit.FittedModel:
        """What was learnt as a run, τ and limits from rows that were held out; FitError with too few."""
        arrays: dict[int, tuple[NDArray[Any], ...]] = {
            code: chunks[0] for code, chunks in self._kept.items() if chunks and len(chunks[0][0])
        }
        if OPTIMISE not in arrays or not self.steps:
            raise fit.FitError(f"{self.seen:,} rows are too few: there was no step, or nothing was held out for τ")
        values, t_ns, mac = (np.concatenate([a[i] for a in arrays.values()]) for i in (1, 2, 3))
        part = np.concatenate([np.full(len(a[0]), code, np.int8) for code, a in arrays.items()])
        macs, device = np.unique(mac, return_inverse=True)
        n = len(values)
        table = RowTable(
            values,
            self._kept_columns,
            device.astype(np.int32),
            tuple(mac_text(int(m)) for m in macs),
            np.zeros(n, np.int32),
            (BENIGN,),
            np.zeros(n, np.int32),
            ("stream",),
            t_ns,
            mac,
            generated,
            inputs=inputs,
        )
        order = np.lexsort((t_ns, device))
        chosen = [order[part[order] == code] for code in (TRAIN, OPTIMISE, TEST)]
        parts = fit.Parts(chosen[0], chosen[1], chosen[2], np.zeros(0, np.intp), part, ())
        history = {"epochs": 1, "best_epoch": 1, "loss": [self.loss], "validation_loss": [self.loss]}
        config = replace(self.config, classifier=replace(self.config.classifier, enabled=False), top_n=None)
        trained = fit.Trained(self.network, self.running.scaler(), history, parts)
        return fit.fit(config, table, trained=trained)


def frames(learner: Learner, paths: Sequence[Path]) -> Iterator[int]:
    """Push what of the captures was not seen yet; yields the rows of each push. CaptureError at a damaged file."""
    past = learner.position
    for path in paths:
        with open_file(path) as source:
            passed = Extractor(64, max_devices=8)  # reads over what was learnt before, and learns nothing
            while past and (skipped := len(passed.push(source, min(past, PUSH)))):
                past -= skipped
            while len(rows := learner.extractor.push(source, PUSH)):
                learner.see(rows.values, rows.meta)
                learner.position += len(rows)
                yield len(rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `botwatch trainer stream`."""
    parser.description = (
        "Learn from captures of healthy devices as they are read, each row once, without storing rows. A run that was "
        "stopped goes on where its last checkpoint stands; more captures can be given later."
    )
    parser.epilog = f"example:\n  {PROG} monday.pcap tuesday.pcap --out runs/stream"
    parser.add_argument("captures", nargs="+", type=Path, metavar="CAPTURE", help="pcap or pcapng files, in order")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder, and its checkpoint")
    parser.add_argument("--seed", type=int, default=1, help="of the first weights (%(default)s)")
    parser.add_argument("--generated", action="store_true", help="the captures are of generated traffic")
    parser.add_argument("--every", type=int, default=EVERY, metavar="ROWS", help="between checkpoints (%(default)s)")


def run(args: argparse.Namespace, command: str) -> int:
    """`botwatch trainer stream`: 0, or 2 with the reason; what was learnt stays in the checkpoint."""
    began = time.monotonic()
    try:
        if args.every < 1:
            raise StreamError(f"--every must be at least 1, is {args.every}")
        inputs = {str(path): _digest(path) for path in args.captures}
        config = Config((_entry(args.captures[0]),), seed=args.seed)
        config = replace(config, autoencoder=replace(config.autoencoder, batch=256, learning_rate=2e-3))
        learner = Learner(config)
        args.out.mkdir(parents=True, exist_ok=True)
        checkpoint, sources = args.out / CHECKPOINT, list(inputs.values())
        if checkpoint.is_file():
            learner.load(checkpoint, sources)
            print(f"going on after {learner.seen:,} rows")
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
    except (StreamError, CaptureError, SettingsError, fit.FitError, autoencoder.TrainingError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{PROG}: {error.filename or args.out}: {error.strerror or error}", file=sys.stderr)
        return 2
    print(
        f"wrote {args.out}: {learner.seen:,} rows seen, {learner.kept():,} kept, {learner.steps:,} steps, checkpoint "
        f"{os.path.getsize(checkpoint) / 1e6:.1f} MB"
    )
    return 0


def _entry(path: Path) -> Any:
    from trainer.config import DatasetEntry

    return DatasetEntry("captures", path)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
