"""From a table of rows to a run folder: split, scale, train, decide, measure, write.

No attack row has a say in what is detected: scaler, autoencoder and decision come from benign rows. Attack rows only
measure them, train the classifier and, when asked for, rank columns. Importing this module imports TensorFlow.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from edge_agent.contract import columns as cols
from edge_agent.contract import runfolder, scaling
from edge_agent.contract.bundle import BENIGN, PacketProfile, replace_file
from edge_agent.contract.decision import Decision, Rules, Threshold
from edge_agent.contract.runfolder import ModelFile, Provenance
from edge_agent.contract.scaling import Array, Scaler
from edge_agent.detection import calibrate, classify
from edge_agent.detection.calibrate import Loudest
from edge_agent.detection.scorer import Scorer
from trainer.base import rows as base_rows
from trainer.config import Config, plain
from trainer.data import dataset, protocol, ranking
from trainer.data.protocol import TRAIN
from trainer.data.row_table import Limits, RowTable
from trainer.fit import attack_classes, autoencoder, calibration_rows
from trainer.fit.calibration_rows import CalibrationRows, highest_counts, senders
from trainer.fit.row_parts import FitError, Index, Parts, is_benign, scored, shared, split

if TYPE_CHECKING:
    from trainer.fit.workers import Workers

ATTACK_ROWS = 5_000
"""Bound of rows.parquet: rows of each attack."""

Scores = dict[str, tuple[Array, Array]]
"""Part ("train", "optimise", "test", "attack") -> full and fast scores of its sampled rows."""


@dataclass(frozen=True, kw_only=True)
class TrainedAutoencoder:
    """An autoencoder that has learnt elsewhere, and the parts of a sample of the rows: trained on, held out."""

    network: Any
    scaler: Scaler
    history: dict[str, Any]
    parts: Parts


@dataclass(frozen=True, kw_only=True)
class FittedModel:
    """A fitted model and everything measured on it; `save` writes it."""

    config: Config
    schemas: tuple[str, ...]
    columns: tuple[str, ...]
    scaler: Scaler
    network: Any
    classes: tuple[str, ...]
    classifier: Any
    """The network of the classifier; None when there were fewer than two classes."""
    profiles: dict[str, PacketProfile]
    """Packet profiles of the classes that were learnt from packets."""
    decision: Decision
    normal: dict[str, tuple[float, ...]]
    """Column -> median and 99.9 % quantile of benign train rows."""
    generated: bool
    metrics: dict[str, Any]
    history: dict[str, Any]
    rows: pl.DataFrame
    inputs: dict[str, str]


def fit(
    config: Config,
    table: RowTable,
    say: Callable[[str], None] = print,
    watch: autoencoder.Watch | None = None,
    trained: TrainedAutoencoder | None = None,
    workers: "Workers | None" = None,
) -> FittedModel:
    """Train and measure; FitError or TrainingError says why it failed. ``say`` gets one line per fact worth reading.

    ``trained`` is an autoencoder that has learnt already, from rows of which ``table`` is a sample.
    """
    parts = split(config, table) if trained is None else trained.parts
    if parts.short:
        more = f" and {len(parts.short) - 5} more" if len(parts.short) > 5 else ""
        say(f"too few rows for three parts, all of them train: {', '.join(parts.short[:5])}{more}")
    ranked = rank(config, table, parts)
    columns = choose_columns(config, table, ranked, say)
    at = table.positions(columns)
    train_rows = table.values[np.ix_(parts.train, at)]
    constant = [c for c, spread in zip(columns, np.ptp(train_rows, axis=0), strict=True) if spread == 0]
    if constant:
        say(f"constant in the benign train rows: {', '.join(constant)}")
    normal = _normal(train_rows, columns)
    hidden = autoencoder.hidden(len(columns), config.network)
    say(
        f"autoencoder: {len(columns)}-{'-'.join(map(str, hidden))}-{len(columns)}, "
        f"{len(parts.train):,} train and {len(parts.optimise):,} optimise rows"
    )
    del train_rows
    if trained is None:
        trained = _train(config, table, parts, at, watch, workers)
    network, scaler, history = trained.network, trained.scaler, trained.history
    say(f"autoencoder: {network.count_params():,} parameters, best epoch {autoencoder.best_epoch(history)}")

    sample = parts.sample(config.part_rows)
    scorer = Scorer(autoencoder.predictor(network), scaler, columns)
    scores = {
        part: (scored(scorer.full, table, rows, at), scored(scorer.fast, table, rows, at))
        for part, rows in {**sample, "attack": parts.attack}.items()
    }
    shuffled = config.split.order == "random"
    facts = calibration_rows.of(table, sample, config.decision.warmup_s, shuffled=shuffled)
    decision, loudest = _decide(config, table, sample, facts, scores)
    metrics = _measure(table, parts, sample, decision, scores, ranked)
    metrics["basis"] = None if decision.basis is None else dataclasses.asdict(decision.basis)
    metrics["loudest"] = None if loudest is None else dataclasses.asdict(loudest)
    metrics["autoencoder"] = _describe(network, history, columns, hidden)
    metrics["columns"] = {
        "constant": constant,
        "copies": {c: cols.COPIES[c] for c in columns if cols.COPIES.get(c) in columns},
    }
    _say_detection(metrics, decision, loudest, say)
    attacks = attack_classes.learn(config, table, parts, scaler, at, say, watch)
    metrics["classifier"] = attacks.metrics
    return FittedModel(
        config=config,
        schemas=_schemas(config, columns),
        columns=columns,
        scaler=scaler,
        network=network,
        classes=attacks.names,
        classifier=attacks.network,
        profiles=attacks.profiles,
        decision=decision,
        normal=normal,
        generated=table.generated,
        metrics=metrics,
        history={"autoencoder": history, "classifier": attacks.history},
        rows=_rows(table, parts, sample, facts, columns),
        inputs=table.inputs,
    )


def _train(
    config: Config,
    table: RowTable,
    parts: Parts,
    at: Index,
    watch: autoencoder.Watch | None,
    workers: "Workers | None",
) -> TrainedAutoencoder:
    """Fit scaler and autoencoder on the benign train rows, columns ``at``."""
    train = parts.train[shared(parts.base[parts.train], config.train_rows)]
    train_rows = table.values[np.ix_(train, at)]
    if config.scaling.fit_on == "train":
        scaler = fit_scaler(train_rows, config)
    else:
        scaler = fit_scaler(table.values[np.ix_(np.concatenate([parts.train, parts.optimise]), at)], config)
    inputs = scaler.network_input(scaler.z(train_rows))
    del train_rows
    validation = scaler.network_input(scaler.z(table.values[np.ix_(parts.optimise, at)]))
    weights = parts.weights(train)
    network, history = autoencoder.train(
        inputs, validation, config.autoencoder, config.seed, config.network, watch, workers, weights
    )
    return TrainedAutoencoder(network=network, scaler=scaler, history=history, parts=parts)


def rank(config: Config, table: RowTable, parts: Parts) -> dict[str, float] | None:
    """Return the Fisher score of every column over train rows of all labels, squashed as the model sees them.

    At most ``part_rows`` of the config are used. None if the train rows have only one label.
    """
    rows = np.flatnonzero(parts.part == TRAIN)
    names = {
        "label": list(table.labels),
        "family": [classify.family(label) or label for label in table.labels],
        "attack": ["" if label == BENIGN else "attack" for label in table.labels],
    }[config.rank_by]
    classes = np.array([names.index(name) for name in names])[table.label]
    if len(np.unique(classes[rows])) < 2:
        return None
    rows = rows[protocol.spread(len(rows), config.part_rows)]
    scores = []
    for i in range(0, len(table.columns), 16):  # a few columns at a time: float64 copies of all would be large
        values = table.values[rows, i : i + 16].astype(np.float64)
        if config.scaling.squash == "log1p":
            values = np.copysign(np.log1p(np.abs(values)), values)
        scores += ranking.fisher(values, classes[rows]).tolist()
    return dict(zip(table.columns, scores, strict=True))


def choose_columns(
    config: Config, table: RowTable, ranked: dict[str, float] | None, say: Callable[[str], None]
) -> tuple[str, ...]:
    """Return the model's columns in their published order, the best ``top_n`` if the config asks for that."""
    columns = config.model_columns()
    if config.top_n is None:
        return columns
    if ranked is None:
        raise FitError("top_n ranks columns by how they separate labels: rows of at least two labels are needed")
    try:
        chosen, copies = ranking.best(columns, np.array([ranked[c] for c in columns]), config.top_n)
    except ValueError as error:
        raise FitError(str(error)) from error
    say(f"top {config.top_n} by Fisher score: " + ", ".join(f"{c} {ranked[c]:.3g}" for c in chosen))
    if copies:
        say(f"{len(copies)} columns repeat others and were not ranked: {', '.join(copies)}")
    return tuple(c for c in columns if c in chosen)


def _schemas(config: Config, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the schemas that the chosen columns need.

    Both jitter modes agree on every column but HH_jit, so that rows of either can use a model without HH_jit: it is
    then of the clean schema.
    """
    used = [s for s in config.schemas if any(c in cols.SCHEMAS[s] for c in columns)]
    if cols.COMPAT in used and not any(c in cols.JITTER_COLUMNS for c in columns):
        used[used.index(cols.COMPAT)] = cols.CLEAN
    return tuple(used)


def fit_scaler(rows: Array, config: Config) -> Scaler:
    """Fit the scaler a few columns at a time, since `scaling.fit` works on a float64 copy of its input."""
    options = config.scaling
    fits = [
        scaling.fit(rows[:, i : i + 16], options.squash, options.clip, options.floor)
        for i in range(0, rows.shape[1], 16)
    ]
    mean, scale = (np.concatenate([getattr(f, name) for f in fits]) for name in ("mean", "scale"))
    return Scaler(options.squash, mean, scale, options.clip)


def _normal(rows: Array, columns: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    """Return the median and the 99.9 % quantile of each column, in the column's own unit."""
    normal: dict[str, tuple[float, ...]] = {}
    for i, column in enumerate(columns):
        median, high = np.quantile(rows[:, i].astype(np.float64), (0.5, 0.999))
        normal[column] = (float(median), float(high))
    return normal


def _decide(
    config: Config, table: RowTable, sample: dict[str, Index], facts: CalibrationRows, scores: Scores
) -> tuple[Decision, Loudest | None]:
    """Return the decision for the float model, from benign train and optimise rows alone, and the loudest device."""
    chosen = config.decision
    benign = {part: rows for part, rows in sample.items() if part != "test"}
    rows = np.concatenate(list(benign.values()))
    bounds: dict[str, float] = {}
    warmup: dict[str, float] = {}
    if all(c in table.columns for c in cols.COUNT_COLUMNS):  # published rows have no device columns: no such rule
        running, starting = (highest_counts(table, rows[facts.start[rows] == start]) for start in (False, True))
        bounds = calibrate.count_bounds(running, chosen.margin, chosen.floors)
        warmup = calibrate.count_bounds(starting, chosen.margin, chosen.warmup_floors)
    rules = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(Rules)}
    scored_rows = calibrate.Benign(
        full=np.concatenate([scores[part][0] for part in benign]),
        fast=np.concatenate([scores[part][1] for part in benign]),
        device=senders(table, rows),
        runs=facts.run[rows],
        optimise=np.repeat([part == "optimise" for part in benign], [len(rows) for rows in benign.values()]),
        start=facts.start[rows],
        t_ns=table.t_ns[rows],
    )
    if chosen.vote == "auto":
        rules["vote_k"], rules["vote_w"] = calibrate.vote_window(scored_rows.full, scored_rows.runs)
    try:
        decision = calibrate.decide(scored_rows, chosen.n, bounds, warmup_counts=warmup, **rules)
    except ValueError as error:
        raise FitError(f"τ cannot be computed: {error}") from error
    return decision, calibrate.find_loudest(decision, scored_rows)


def _measure(
    table: RowTable,
    parts: Parts,
    sample: dict[str, Index],
    decision: Decision,
    scores: Scores,
    ranked: dict[str, float] | None,
) -> dict[str, Any]:
    """Return row counts, false-positive rates of benign test rows and the share of each attack's rows above τ."""

    def rates(part: str, mask: NDArray[np.bool_]) -> dict[str, Any]:
        full, fast = scores[part]
        return {
            "rows": int(mask.sum()),
            "full": _share(full[mask] > decision.full.tau),
            "fast": _share(fast[mask] > decision.fast.tau),
        }

    devices = {}
    for code in np.unique(table.device[is_benign(table)]):
        name = table.devices[code]
        counts = [int((table.device[rows] == code).sum()) for rows in (parts.train, parts.optimise, parts.test)]
        devices[name] = {
            **dict(zip(("train", "optimise", "test"), counts, strict=True)),
            "false_positive_rate": rates("test", table.device[sample["test"]] == code),
        }
    attacks = {
        table.labels[code]: rates("attack", table.label[parts.attack] == code)
        for code in np.unique(table.label[parts.attack])
    }
    return {
        "generated": table.generated,
        "rows": {
            "train": len(parts.train),
            "optimise": len(parts.optimise),
            "test": len(parts.test),
            "attack": len(parts.attack),
        },
        "threshold": {"full": dataclasses.asdict(decision.full), "fast": dataclasses.asdict(decision.fast)},
        "false_positive_rate": rates("test", np.ones(len(scores["test"][0]), dtype=bool)),
        "detection_rate": attacks,
        "devices": devices,
        "short": list(parts.short),
        "fisher": None if ranked is None else {c: f if np.isfinite(f) else None for c, f in ranked.items()},
    }


def _share(flags: NDArray[np.bool_]) -> float | None:
    return float(flags.mean()) if len(flags) else None


def _describe(
    network: Any, history: dict[str, Any], columns: tuple[str, ...], hidden: tuple[int, ...]
) -> dict[str, Any]:
    """Return the size of an autoencoder and its best epoch, as metrics.json has them."""
    return {
        "columns": len(columns),
        "hidden": list(hidden),
        "parameters": int(network.count_params()),
        "epochs": history["epochs"],
        "best_epoch": history["best_epoch"],
        "validation_loss": history["validation_loss"][history["best_epoch"] - 1],
    }


def _say_detection(
    metrics: dict[str, Any], decision: Decision, loudest: Loudest | None, say: Callable[[str], None]
) -> None:
    def line(name: str, t: Threshold) -> str:
        seen = f"{t.tail.peaks:,} peaks in {t.tail.days:.3g} device-days"
        if t.tail.level:
            bound = f"the tail of {seen} gives {t.tail.limit:.6g} once in {t.tail.every:.3g} days"
        else:
            bound = f"{seen} are too few for a tail; the highest is {t.tail.limit:.6g}"
        without = f", without the loudest device {t.others:.6g}" if t.others else ""
        return (
            f"{name:<5} mean {t.mean:.6g}, min {t.min:.6g}, max {t.max:.6g}, std {t.std:.6g}, "
            f"τ = mean + {t.n:g}·std = {t.tau:.6g} ({t.rows:,} rows); {t.quantile:.6g} by quantile; limit of a vote "
            f"{t.limit:.6g}: {bound}, the upper bound {t.tail.bound:.6g}{without}; the highest vote is {t.highest:.6g}"
        )

    say(
        f"vote: {decision.vote_k} of {decision.vote_w} rows, {decision.count_votes} by counts; the limit of the score "
        f"is {decision.start_factor:.3g} times as high in a device's first {decision.warmup_s:g} s"
    )
    say(line("full", decision.full))
    say(line("fast", decision.fast))
    if decision.basis and decision.basis.home_month is not None:
        say(
            f"budget: {decision.budget:g} false alerts per month of a home of {decision.home_devices} devices; "
            f"{decision.basis.device_days:.3g} benign device-days prove at most {decision.basis.home_month:.3g} by the "
            "score (95 %)"
        )
    if loudest:
        say(
            f"loudest device: {loudest.device}, about {loudest.alerts_a_month:.3g} alerts a month at this limit unless "
            "it learns one of its own"
        )
    false = metrics["false_positive_rate"]
    if false["rows"]:
        say(f"benign test rows above τ: full {false['full']:.4%}, fast {false['fast']:.4%} of {false['rows']:,}")
    for label, rates in metrics["detection_rate"].items():
        say(f"{label} rows above τ: full {rates['full']:.2%}, fast {rates['fast']:.2%} of {rates['rows']:,}")


def _rows(
    table: RowTable, parts: Parts, sample: dict[str, Index], facts: CalibrationRows, columns: tuple[str, ...]
) -> pl.DataFrame:
    """Return the bounded sample of rows that goes into the run folder."""
    attacks = []
    for code in np.unique(table.label[parts.attack]):
        rows = parts.attack[table.label[parts.attack] == code]
        attacks.append(rows[protocol.spread(len(rows), ATTACK_ROWS)])
    chosen = {
        **sample,
        "attack": np.concatenate(attacks) if attacks else np.zeros(0, dtype=np.intp),
    }
    rows = np.concatenate(list(chosen.values()))
    stored = [*columns, *(c for c in cols.COUNT_COLUMNS if c in table.columns and c not in columns)]
    return pl.DataFrame(
        {
            **{c: table.values[rows, table.columns.index(c)] for c in stored},
            "part": np.repeat(list(chosen), [len(r) for r in chosen.values()]),
            "label": np.array(table.labels)[table.label[rows]],
            "device": np.array(table.devices)[table.device[rows]],
            "mac": table.mac[rows],
            "t_ns": table.t_ns[rows],
            "run": facts.run[rows],
            "start": facts.start[rows],
        }
    )


def save(run: FittedModel, out: Path, command: str, took_s: float) -> None:
    """Write the run folder; model.json comes last, so a folder that has one is complete."""
    out.mkdir(parents=True, exist_ok=True)
    (out / runfolder.MODEL).unlink(missing_ok=True)
    autoencoder.save(run.network, out / runfolder.AUTOENCODER)
    if run.classifier is not None:
        autoencoder.save(run.classifier, out / runfolder.CLASSIFIER)
    else:
        (out / runfolder.CLASSIFIER).unlink(missing_ok=True)
    temporary = out / f"{runfolder.ROWS}.tmp"
    run.rows.write_parquet(temporary, metadata={dataset.SCHEMA_KEY: run.schemas[0]})
    os.replace(temporary, out / runfolder.ROWS)
    config = yaml.safe_dump(plain(run.config), sort_keys=False, allow_unicode=True)
    replace_file(out / runfolder.CONFIG, config.encode())
    runfolder.write_json(out / runfolder.HISTORY, run.history)
    runfolder.write_json(out / runfolder.METRICS, run.metrics)
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "keras", "polars")}
    versions |= {"python": platform.python_version(), "tensorflow": autoencoder.TENSORFLOW}
    runfolder.write_provenance(
        out,
        Provenance(
            command=command,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            took_s=round(took_s, 1),
            seed=run.config.seed,
            generated=run.generated,
            versions=versions,
            inputs=run.inputs,
        ),
    )
    digest = hashlib.sha256()
    for value in sorted(run.inputs.values()):
        digest.update(value.encode())
    runfolder.write_model(
        out,
        ModelFile(
            schemas=run.schemas,
            columns=run.columns,
            classes=run.classes,
            signatures=run.profiles,
            scaler=run.scaler.to_json(),
            decision=run.decision,
            generated=run.generated,
            normal=run.normal,
            seed=run.config.seed,
            provenance={
                "run": out.name,
                "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
                "inputs_sha256": digest.hexdigest(),
                "tensorflow": versions["tensorflow"],
            },
        ),
    )


def load(config: Config) -> RowTable:
    """Return the rows that the config asks for; print their number, and the warnings."""
    limits = Limits(config.max_rows, config.max_streams, config.use_attack_lead, config.total_rows)
    jitter = cols.COMPAT if cols.COMPAT in config.schemas else cols.CLEAN
    table = dataset.load(base_rows.sources(config), config.model_columns(), jitter, limits)
    for warning in table.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{len(table):,} rows of {len(table.devices)} devices" + (" (generated traffic)" if table.generated else ""))
    return table


def run(
    config: Config,
    out: Path,
    command: str,
    watch: autoencoder.Watch | None = None,
    workers: "Workers | None" = None,
) -> None:
    """Load the rows, fit, write the run folder and print the figures; of several workers only the first writes."""
    began = time.monotonic()
    table = load(config)
    out.mkdir(parents=True, exist_ok=True)  # before the training, which may take an hour
    with workers.together() if workers else contextlib.nullcontext():
        if workers:  # each machine may have the files at another path
            settings = {**plain(config), "data": sorted(table.inputs.values())}
            workers.check_same(settings, len(table))
        fitted = fit(config, table, watch=watch, workers=workers)
    if workers and workers.number:
        print(f"worker {workers.number} is done; worker 0 writes {out}")
        return
    save(fitted, out, command, time.monotonic() - began)
    print(f"wrote {out}")
