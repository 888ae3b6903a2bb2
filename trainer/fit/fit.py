"""From a table of rows to a run folder: split, scale, train, decide, measure, write.

No attack row has a say in what detects: scaler, autoencoder and decision come from benign rows, attack rows only
measure it, train the classifier and, when asked for, rank columns. Importing this module imports TensorFlow.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from edge_agent.contract import columns as cols
from edge_agent.contract import runfolder, scaling
from edge_agent.contract.alert import CLASSES
from edge_agent.contract.bundle import BENIGN, Decision, PacketProfile, Rules, Threshold, replace_file
from edge_agent.contract.runfolder import ModelFile, Provenance
from edge_agent.contract.scaling import Array, Scaler
from edge_agent.detection import calibrate, classify
from edge_agent.detection.scorer import Scorer
from trainer.config import Config, plain
from trainer.data import dataset, protocol, ranking
from trainer.data.dataset import RowTable
from trainer.data.protocol import OPTIMISE, TEST, TRAIN
from trainer.fit import autoencoder, classifier

if TYPE_CHECKING:
    from trainer.fit.workers import Workers

PART_ROWS, ATTACK_ROWS = 200_000, 5_000
"""Bounds of rows.parquet: of each part of the benign rows, of each attack."""

Index = NDArray[np.intp]


class FitError(Exception):
    """Rows or settings a model cannot be fitted with; the message says why."""


@dataclass(frozen=True)
class Parts:
    """Row numbers of a table. Benign parts are in time order per device; attack parts are those of the classifier."""

    train: Index
    optimise: Index
    test: Index
    attack: Index  # every attack row, whatever its part
    part: NDArray[np.int8]  # per row, benign and attack alike
    short: tuple[str, ...]  # devices and attack captures with too few rows for three parts

    def kept(self) -> dict[str, Index]:
        """The benign parts as rows.parquet keeps them, from which the decision can be computed again."""
        parts = {"train": self.train, "optimise": self.optimise, "test": self.test}
        return {name: rows[protocol.spread(len(rows), PART_ROWS)] for name, rows in parts.items()}


@dataclass(frozen=True)
class Trained:
    """An autoencoder that has learnt elsewhere, and the parts of a sample of the rows: trained on, held out."""

    network: Any
    scaler: Scaler
    history: dict[str, Any]
    parts: Parts


@dataclass(frozen=True)
class FittedModel:
    """A fitted model and everything measured on it; `save` writes it."""

    config: Config
    schemas: tuple[str, ...]
    columns: tuple[str, ...]
    scaler: Scaler
    network: Any
    classes: tuple[str, ...]
    classifier: Any  # None when there was nothing to tell apart
    signatures: dict[str, PacketProfile]  # of classes learnt from packets
    decision: Decision
    normal: dict[str, tuple[float, ...]]
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
    trained: "Trained | None" = None,
    workers: "Workers | None" = None,
) -> FittedModel:
    """Train and measure; FitError or TrainingError says why not. ``say`` gets one line per fact worth reading.

    ``trained`` is an autoencoder that has learnt already, from rows of which ``table`` is a sample.
    """
    parts = split(config, table) if trained is None else trained.parts
    if parts.short:
        more = f" and {len(parts.short) - 5} more" if len(parts.short) > 5 else ""
        say(f"too few rows for three parts, all of them train: {', '.join(parts.short[:5])}{more}")
    ranked = rank(config, table, parts)
    columns, at = _choose(config, table, ranked, say)
    schemas = _schemas(config, columns)

    train_rows = table.values[np.ix_(parts.train, at)]
    if trained is not None:
        scaler = trained.scaler
    elif config.scaling.fit_on == "train":
        scaler = fit_scaler(train_rows, config)
    else:
        scaler = fit_scaler(table.values[np.ix_(np.concatenate([parts.train, parts.optimise]), at)], config)
    constant = [c for c, spread in zip(columns, np.ptp(train_rows, axis=0), strict=True) if spread == 0]
    if constant:
        say(f"constant in the benign train rows: {', '.join(constant)}")
    normal = _normal(train_rows, columns)
    hidden = autoencoder.hidden(len(columns), config.network)
    say(
        f"autoencoder: {len(columns)}-{'-'.join(map(str, hidden))}-{len(columns)}, "
        f"{len(parts.train):,} train and {len(parts.optimise):,} optimise rows"
    )
    if trained is None:
        inputs = scaler.network_input(scaler.z(train_rows))
        del train_rows
        validation = scaler.network_input(scaler.z(table.values[np.ix_(parts.optimise, at)]))
        network, ae_history = autoencoder.train(
            inputs, validation, config.autoencoder, config.seed, config.network, watch, workers
        )
        del inputs, validation
    else:
        del train_rows
        network, ae_history = trained.network, trained.history
    say(f"autoencoder: {network.count_params():,} parameters, best epoch {_best(ae_history)}")

    scorer = Scorer(autoencoder.predictor(network), scaler, columns)
    scores = {
        part: (_scored(scorer.full, table, rows, at), _scored(scorer.fast, table, rows, at))
        for part, rows in {**parts.kept(), "attack": parts.attack}.items()
    }
    decision = _decide(config, table, parts, scores)
    metrics = _measure(table, parts, decision, scores, ranked)
    metrics["autoencoder"] = {
        "columns": len(columns),
        "hidden": list(hidden),
        "parameters": int(network.count_params()),
        "epochs": ae_history["epochs"],
        "best_epoch": ae_history["best_epoch"],
        "validation_loss": ae_history["validation_loss"][ae_history["best_epoch"] - 1],
    }
    metrics["columns"] = {
        "constant": constant,
        "copies": {c: cols.COPIES[c] for c in columns if cols.COPIES.get(c) in columns},
    }
    _say_detection(metrics, decision, say)

    classes, told_apart, clf_metrics, clf_history = _classify(config, table, parts, scaler, at, say, watch)
    metrics["classifier"] = clf_metrics
    signatures = _signatures(table, parts, clf_metrics["class_of"], classes) if clf_metrics else {}
    return FittedModel(
        config,
        schemas,
        columns,
        scaler,
        network,
        classes,
        told_apart,
        signatures,
        decision,
        normal,
        table.generated,
        metrics,
        {"autoencoder": ae_history, "classifier": clf_history},
        _rows(table, parts, columns, at),
        table.inputs,
    )


def split(config: Config, table: RowTable) -> Parts:
    """Benign rows in parts per device, attack rows per capture and label; FitError when a benign part stays empty."""
    benign = _is_benign(table)
    if not benign.any():
        raise FitError("no benign rows: an autoencoder needs traffic of healthy devices")
    part = np.zeros(len(table), dtype=np.int8)
    short = []
    rows = np.flatnonzero(benign)
    part[rows], few = protocol.parts(table.t_ns[rows], table.device[rows], config.split)
    short += [table.devices[code] for code in few]
    attack = np.flatnonzero(~benign)
    if len(attack):
        group = table.capture[attack].astype(np.int64) * len(table.labels) + table.label[attack]
        part[attack], few = protocol.parts(table.t_ns[attack], group, config.attack_split)
        short += [
            f"{table.captures[code // len(table.labels)]} ({table.labels[code % len(table.labels)]})" for code in few
        ]
    order = rows[np.lexsort((table.t_ns[rows], table.device[rows]))]
    chosen = [order[part[order] == code] for code in (TRAIN, OPTIMISE, TEST)]
    if not len(chosen[1]):
        need = config.split
        raise FitError(
            f"{len(rows):,} benign rows of {len(np.unique(table.device[rows]))} device(s) are too few: no device has "
            f"{need.min_rows} rows in each of the train, optimise and test parts with {need.gap_rows} rows and "
            f"{need.gap_s:g} s between them"
        )
    train, optimise, test = chosen
    attack = attack[np.lexsort((table.t_ns[attack], table.capture[attack], table.label[attack]))]
    return Parts(train, optimise, test, attack, part, tuple(short))


def rank(config: Config, table: RowTable, parts: Parts) -> dict[str, float] | None:
    """Fisher score of every candidate column over train rows of all labels, squashed as the model sees them."""
    rows = np.flatnonzero(parts.part == TRAIN)
    names = {
        "label": list(table.labels),
        "family": [family(label) for label in table.labels],
        "attack": ["" if label == BENIGN else "attack" for label in table.labels],
    }[config.rank_by]
    classes = np.array([names.index(name) for name in names])[table.label]
    if len(np.unique(classes[rows])) < 2:
        return None
    rows = rows[protocol.spread(len(rows), PART_ROWS)]
    scores = []
    for i in range(0, len(table.columns), 16):  # a few columns at a time: float64 copies of all would be large
        values = table.values[rows, i : i + 16].astype(np.float64)
        if config.scaling.squash == "log1p":
            values = np.copysign(np.log1p(np.abs(values)), values)
        scores += ranking.fisher(values, classes[rows]).tolist()
    return dict(zip(table.columns, scores, strict=True))


def family(label: str) -> str:
    """What comes before the attack's own name: mirai of mirai.scan; benign is its own."""
    return label.partition(".")[0]


def _choose(
    config: Config, table: RowTable, ranked: dict[str, float] | None, say: Callable[[str], None]
) -> tuple[tuple[str, ...], Index]:
    """The model's columns, in their published order, and where they stand in the table."""
    columns = config.model_columns()
    if config.top_n is not None:
        if ranked is None:
            raise FitError("top_n ranks columns by what tells labels apart: rows of at least two labels are needed")
        try:
            chosen, copies = ranking.best(columns, np.array([ranked[c] for c in columns]), config.top_n)
        except ValueError as error:
            raise FitError(str(error)) from error
        say(f"top {config.top_n} by Fisher score: " + ", ".join(f"{c} {ranked[c]:.3g}" for c in chosen))
        if copies:
            say(f"{len(copies)} columns repeat others and were not ranked: {', '.join(copies)}")
        columns = tuple(c for c in columns if c in chosen)
    return columns, _positions(table, columns)


def _positions(table: RowTable, columns: tuple[str, ...]) -> Index:
    return np.array([table.columns.index(c) for c in columns], dtype=np.intp)


def _schemas(config: Config, columns: tuple[str, ...]) -> tuple[str, ...]:
    """The schemas the chosen columns need. Both jitter modes agree on all but HH_jit, so without it clean will do."""
    used = [s for s in config.schemas if any(c in cols.SCHEMAS[s] for c in columns)]
    if cols.COMPAT in used and not any(c in cols.JITTER_COLUMNS for c in columns):
        used[used.index(cols.COMPAT)] = cols.CLEAN
    return tuple(used)


def _is_benign(table: RowTable) -> NDArray[np.bool_]:
    return np.array([label == BENIGN for label in table.labels])[table.label]


def fit_scaler(rows: Array, config: Config) -> Scaler:
    """`scaling.fit` a few columns at a time, since it works on float64 copies of what it is given."""
    options = config.scaling
    fits = [
        scaling.fit(rows[:, i : i + 16], options.squash, options.clip, options.floor)
        for i in range(0, rows.shape[1], 16)
    ]
    mean, scale = (np.concatenate([getattr(f, name) for f in fits]) for name in ("mean", "scale"))
    return Scaler(options.squash, mean, scale, options.clip)


def _normal(rows: Array, columns: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    """Median and 99.9 % quantile of each column, in its own unit."""
    found: dict[str, tuple[float, ...]] = {}
    for i, column in enumerate(columns):
        median, high = np.quantile(rows[:, i].astype(np.float64), (0.5, 0.999))
        found[column] = (float(median), float(high))
    return found


def _scored(score: Callable[[Array], Array], table: RowTable, rows: Index, at: Index) -> Array:
    """Scores of some rows of a table, in pieces of bounded memory."""
    pieces = [score(table.values[np.ix_(rows[i : i + 65536], at)]) for i in range(0, len(rows), 65536)]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)


def _decide(config: Config, table: RowTable, parts: Parts, scores: dict[str, tuple[Array, Array]]) -> Decision:
    """The decision for the float model, from benign train and optimise rows alone."""
    chosen = config.decision
    benign = {part: rows for part, rows in parts.kept().items() if part != "test"}
    bounds: dict[str, float] = {}
    if all(c in table.columns for c in cols.COUNT_COLUMNS):  # published rows have no device columns: no such rule
        at = _positions(table, cols.COUNT_COLUMNS)
        counts = [table.values[np.ix_(rows, at)].max(axis=0, initial=0.0) for rows in benign.values()]
        bounds = calibrate.count_bounds(np.stack(counts), chosen.margin, chosen.floors)
    rules = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(Rules)}
    rows = np.concatenate(list(benign.values()))
    of_all = calibrate.Benign(
        np.concatenate([scores[part][0] for part in benign]),
        np.concatenate([scores[part][1] for part in benign]),
        np.concatenate([table.device[rows] * len(benign) + i for i, rows in enumerate(benign.values())]),
        np.repeat([part == "optimise" for part in benign], [len(rows) for rows in benign.values()]),
        table.t_ns[rows],
    )
    if chosen.vote == "auto":
        rules["vote_k"], rules["vote_w"] = calibrate.vote_window(of_all.full, of_all.groups)
    try:
        return calibrate.decide(of_all, chosen.n, bounds, warmup_counts=chosen.warmup_floors if bounds else {}, **rules)
    except ValueError as error:
        raise FitError(f"no τ: {error}") from error


def _measure(
    table: RowTable,
    parts: Parts,
    decision: Decision,
    scores: dict[str, tuple[Array, Array]],
    ranked: dict[str, float] | None,
) -> dict[str, Any]:
    """Row counts, row false-positive rates on benign test rows, share of each attack's rows above τ."""

    def rates(part: str, mask: NDArray[np.bool_]) -> dict[str, Any]:
        full, fast = scores[part]
        return {
            "rows": int(mask.sum()),
            "full": _share(full[mask] > decision.full.tau),
            "fast": _share(fast[mask] > decision.fast.tau),
        }

    devices = {}
    for code in np.unique(table.device[_is_benign(table)]):
        name = table.devices[code]
        counts = [int((table.device[rows] == code).sum()) for rows in (parts.train, parts.optimise, parts.test)]
        devices[name] = {
            **dict(zip(("train", "optimise", "test"), counts, strict=True)),
            "false_positive_rate": rates("test", table.device[parts.kept()["test"]] == code),
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


def _best(history: dict[str, Any]) -> str:
    best = history["best_epoch"]
    loss, check = history["loss"][best - 1], history["validation_loss"][best - 1]
    return f"{best} of {history['epochs']} (loss {loss:.4g}, validation {check:.4g})"


def _say_detection(metrics: dict[str, Any], decision: Decision, say: Callable[[str], None]) -> None:
    def line(name: str, t: Threshold) -> str:
        return (
            f"{name:<5} mean {t.mean:.6g}, min {t.min:.6g}, max {t.max:.6g}, std {t.std:.6g}, "
            f"τ = mean + {t.n:g}·std = {t.tau:.6g} ({t.rows:,} rows); "
            f"{t.quantile:.6g} by quantile; limit of a vote {t.limit:.6g}: the highest of a benign device is "
            f"{t.highest:.6g}, the tail of {t.tail.peaks:,} peaks in {t.tail.days:.3g} device-days gives "
            f"{t.tail.limit:.6g}, bound {t.tail.bound:.6g}"
        )

    say(f"vote: {decision.vote_k} of {decision.vote_w} rows, {decision.count_votes} by counts")

    say(line("full", decision.full))
    say(line("fast", decision.fast))
    false = metrics["false_positive_rate"]
    if false["rows"]:
        say(f"benign test rows above τ: full {false['full']:.4%}, fast {false['fast']:.4%} of {false['rows']:,}")
    for label, found in metrics["detection_rate"].items():
        say(f"{label} rows above τ: full {found['full']:.2%}, fast {found['fast']:.2%} of {found['rows']:,}")


def _classify(
    config: Config,
    table: RowTable,
    parts: Parts,
    scaler: Scaler,
    at: Index,
    say: Callable[[str], None],
    watch: autoencoder.Watch | None = None,
) -> tuple[tuple[str, ...], Any, dict[str, Any] | None, dict[str, Any] | None]:
    """Classes (benign first), network, metrics and history; nothing when there is nothing to tell apart."""
    options = config.classifier
    if not options.enabled:
        say("classifier: switched off in the config")
        return (), None, None, None
    class_of = [options.classes.get(label, label) for label in table.labels]
    if len(np.unique(table.label)) < 2:
        say(f"classifier: skipped, only {', '.join(table.labels[c] for c in np.unique(table.label))} rows are there")
        return (), None, None, None
    for label, name in zip(table.labels, class_of, strict=True):
        if name not in CLASSES and name != BENIGN:
            raise FitError(f"label {label!r}: {name!r} is no class an alert can carry; known: {', '.join(CLASSES)}")

    def inputs(rows: Index) -> Array:
        return scaler.network_input(scaler.z(table.values[np.ix_(rows, at)]))

    while True:
        classes = (BENIGN, *sorted({c for c in class_of if c != BENIGN}))
        number = np.array([classes.index(c) for c in class_of])[table.label]
        # the test part of benign rows is never validated on, nor that of attacks
        chosen = {
            part: _balanced(number, parts.part == part, len(classes), options.rows_per_class)
            for part in (TRAIN, OPTIMISE)
        }
        for i, name in enumerate(classes):
            if not (number[chosen[TRAIN]] == i).any():
                raise FitError(f"class {name!r} has no rows in the train part ({int((number == i).sum())} in all)")
        train, validation = ((inputs(chosen[p]), number[chosen[p]]) for p in (TRAIN, OPTIMISE))
        say(f"classifier: {len(classes)} classes, {len(train[1]):,} train and {len(validation[1]):,} optimise rows")
        network, history = classifier.train(
            train, validation, len(classes), options.training, config.seed, options, watch
        )
        noise = np.random.default_rng(config.seed).normal(0, classifier.STEP, validation[0].shape).astype(np.float32)
        guess = autoencoder.predictor(network)(validation[0] + noise).argmax(axis=1)
        merged = classifier.alike(classifier.confusion(validation[1], guess, len(classes)), classes)
        if not merged or not options.merge:
            break
        say(
            "told as one, since the rows do not tell them apart: " + ", ".join(f"{a} as {b}" for a, b in merged.items())
        )
        class_of = [merged.get(c, c) for c in class_of]
    test = np.flatnonzero(parts.part == TEST)
    predict = autoencoder.predictor(network)
    guess = np.argmax(_scored(lambda v: predict(scaler.network_input(scaler.z(v))), table, test, at), axis=1)
    matrix = classifier.confusion(number[test], guess, len(classes))
    recall = {name: _ratio(matrix[i, i], matrix[i].sum()) for i, name in enumerate(classes)}
    metrics = {
        "classes": list(classes),
        "class_of": dict(zip(table.labels, class_of, strict=True)),
        "parameters": int(network.count_params()),
        "epochs": history["epochs"],
        "best_epoch": history["best_epoch"],
        "train_rows": {name: int((train[1] == i).sum()) for i, name in enumerate(classes)},
        "test_rows": {name: int(matrix[i].sum()) for i, name in enumerate(classes)},
        "accuracy": _ratio(np.trace(matrix), matrix.sum()),
        "recall": recall,
        "confusion": matrix.tolist(),
    }
    say(f"classifier: {network.count_params():,} parameters, best epoch {_best(history)}")
    say(f"classifier: accuracy {metrics['accuracy']:.4f} on {matrix.sum():,} test rows; recall by class:")
    for name, share in recall.items():
        say(f"  {name}: " + ("no test rows" if share is None else f"{share:.4f} of {metrics['test_rows'][name]:,}"))
    return classes, network, metrics, history


def _signatures(
    table: RowTable, parts: Parts, class_of: dict[str, str], classes: Sequence[str]
) -> dict[str, PacketProfile]:
    """What episodes of each class look like, from the packets of each attack capture, its test part too: an episode
    spans all parts. Classes learnt from rows without packets have none."""
    if table.looks is None:
        return {}
    episodes = []
    for capture in np.unique(table.capture[parts.attack]):
        for label in np.unique(table.label[parts.attack][table.capture[parts.attack] == capture]):
            rows = parts.attack[(table.capture[parts.attack] == capture) & (table.label[parts.attack] == label)]
            rows = rows[np.argsort(table.t_ns[rows], kind="stable")]
            seen = table.looks[rows].astype(np.float64)
            name = class_of.get(table.labels[label], table.labels[label])
            if np.isfinite(seen).all() and len(seen) >= classify.BLOCK and name in classes:
                episodes.append((name, table.devices[table.device[rows[0]]], seen))
    return classify.learn(episodes) if episodes else {}


def _balanced(number: NDArray[np.integer], mask: NDArray[np.bool_], classes: int, limit: int) -> Index:
    """Row numbers in ``mask``, at most ``limit`` of each class, evenly spread."""
    chosen = []
    for i in range(classes):
        rows = np.flatnonzero(mask & (number == i))
        chosen.append(rows[protocol.spread(len(rows), limit, block=1)])
    return np.concatenate(chosen)


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None


def _rows(table: RowTable, parts: Parts, columns: tuple[str, ...], at: Index) -> pl.DataFrame:
    """The bounded sample of rows that a run folder keeps."""
    attacks = []
    for code in np.unique(table.label[parts.attack]):
        rows = parts.attack[table.label[parts.attack] == code]
        attacks.append(rows[protocol.spread(len(rows), ATTACK_ROWS)])
    chosen = {
        **parts.kept(),
        "attack": np.concatenate(attacks) if attacks else np.zeros(0, dtype=np.intp),
    }
    rows = np.concatenate(list(chosen.values()))
    kept = [*columns, *(c for c in cols.COUNT_COLUMNS if c in table.columns and c not in columns)]
    return pl.DataFrame(
        {
            **{c: table.values[rows, table.columns.index(c)] for c in kept},
            "part": np.repeat(list(chosen), [len(r) for r in chosen.values()]),
            "label": np.array(table.labels)[table.label[rows]],
            "device": np.array(table.devices)[table.device[rows]],
            "mac": table.mac[rows],
            "t_ns": table.t_ns[rows],
        }
    )


def save(run: FittedModel, out: Path, command: str, took_s: float) -> None:
    """Write the run folder; model.json comes last, so a folder that has one is whole."""
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
            signatures=run.signatures,
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
    """The rows the config asks for; prints how many, and the warnings."""
    limits = dataset.Limits(config.max_rows, config.max_streams, config.use_attack_lead)
    jitter = cols.COMPAT if cols.COMPAT in config.schemas else cols.CLEAN
    table = dataset.load(config.data, config.model_columns(), jitter, limits)
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
    """Load, fit, write the run folder; prints what a trainer prints. Of several workers the first one writes."""
    began = time.monotonic()
    table = load(config)
    out.mkdir(parents=True, exist_ok=True)  # before the training, which may take an hour
    with workers.together() if workers else contextlib.nullcontext():
        if workers:  # the rows may lie elsewhere on each machine
            own = {**plain(config), "data": sorted(table.inputs.values())}
            workers.check_same(own, len(table))
        fitted = fit(config, table, watch=watch, workers=workers)
    if workers and workers.number:
        print(f"worker {workers.number} is done; worker 0 writes {out}")
        return
    save(fitted, out, command, time.monotonic() - began)
    print(f"wrote {out}")
