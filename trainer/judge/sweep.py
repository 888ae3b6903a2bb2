"""`botwatch trainer sweep`: the autoencoder with other columns, activations or optimisers, on the same rows and split.

Attack rows only measure. The exception, that columns are ranked by labelled attacks, is stated beside its figures.
"""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from edge_agent.contract import cli
from trainer.config import Activation, Config, Optimiser
from trainer.report.findings import Cell, Figure, Findings, Series, Table

if TYPE_CHECKING:
    from trainer.data.row_table import RowTable

PROG = "botwatch trainer sweep"

STEPS = (2, 3, 4, 5, 10, 20, 40, 60, 80, 100)
"""Numbers of columns tried, beside all of them; the study tried 2 to 115."""

ACTIVATIONS: tuple[Activation, ...] = ("tanh", "relu", "elu", "selu", "sigmoid")
OPTIMISERS: tuple[Optimiser, ...] = ("adam", "rmsprop", "sgd")

COLUMNS = ("columns", "parameters", "epochs", "validation loss", "accuracy", "recall", "lowest recall", "FPR", "s")
"""Columns of a table of results, and keys of what `measure` returns."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `botwatch trainer sweep`."""
    parser.description = (
        "Train the autoencoder again and again: with the 2, 3, 4 ... best columns by Fisher score (--over columns),\n"
        "or with each activation and optimiser (--over activation). Prints the findings and writes them into a folder."
    )
    parser.epilog = f"example:\n  {PROG} seed --data N-BaIoT --out runs/sweep --over columns"
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, or the name of a preset")
    parser.add_argument("--data", type=Path, metavar="PATH", help="path of the config's first data source")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write the findings into")
    parser.add_argument(
        "--over", choices=("columns", "activation"), default="columns", help="the property that varies (%(default)s)"
    )
    parser.add_argument("--steps", metavar="N,...", help=f"numbers of columns ({','.join(map(str, STEPS))})")
    parser.add_argument(
        "--activations", metavar="NAME,...", help=f"some of {', '.join(get_args(Activation))} ({','.join(ACTIVATIONS)})"
    )
    parser.add_argument(
        "--optimisers", metavar="NAME,...", help=f"some of {', '.join(get_args(Optimiser))} ({','.join(OPTIMISERS)})"
    )


def run(args: argparse.Namespace, command: str) -> int:
    """Run `botwatch trainer sweep`: 0, or 2 for a bad config, list or data."""
    from edge_agent.contract.settings import SettingsError
    from trainer import config

    try:
        chosen = config.load(args.config, args.data)
        steps = _numbers(args.steps) if args.steps else STEPS
        activations = _names(args.activations, "activation", get_args(Activation)) or ACTIVATIONS
        optimisers = _names(args.optimisers, "optimiser", get_args(Optimiser)) or OPTIMISERS
    except (SettingsError, ValueError) as error:
        return cli.refuse(PROG, error)

    from trainer.data.row_table import DatasetError
    from trainer.fit import autoencoder, fit
    from trainer.fit.row_parts import FitError

    chosen = dataclasses.replace(chosen, classifier=dataclasses.replace(chosen.classifier, enabled=False))
    try:
        table = fit.load(chosen)
        if args.over == "columns":
            findings = over_columns(chosen, table, steps, command)
        else:
            findings = over_activation(chosen, table, activations, optimisers, command)
        path = findings.save(args.out)
    except (DatasetError, FitError, autoencoder.TrainingError) as error:
        return cli.refuse(PROG, error)
    except OSError as error:
        return cli.refuse(PROG, error, file=args.out)
    print(*findings.text(), f"wrote {path}", sep="\n")
    return cli.OK


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"--steps: {text!r} is not a list of numbers") from None
    if min(numbers) < 1:
        raise ValueError(f"--steps: must be at least 1 column, is {min(numbers)}")
    return numbers


def _names(text: str | None, what: str, known: tuple[str, ...]) -> tuple[Any, ...]:
    names = tuple(text.split(",")) if text else ()
    for name in names:
        if name not in known:
            raise ValueError(f"--{what}s: unknown {what} {name!r}; known: {', '.join(known)}")
    return names


def over_columns(config: Config, table: "RowTable", steps: tuple[int, ...], command: str) -> Findings:
    """Train one autoencoder for each number of best columns, and one for all distinct ones."""
    from trainer.fit import fit
    from trainer.fit.row_parts import FitError, split

    ranked = fit.rank(config, table, split(config, table))
    if ranked is None:
        raise FitError("columns are ranked by how they separate labels: rows of at least two labels are needed")
    all_columns = len(config.model_columns())
    distinct = len(_distinct(config, ranked))
    tried = [n for n in dict.fromkeys(steps) if n < distinct]
    results = [measure(dataclasses.replace(config, top_n=n), table) for n in [*tried, distinct]]
    if distinct < all_columns:
        results.append(measure(dataclasses.replace(config, top_n=None), table))
    best = max(results, key=lambda r: (r["accuracy"], -r["columns"]))
    x = tuple(float(r["columns"]) for r in results)
    return Findings(
        "sweep-columns",
        "How many columns the autoencoder needs",
        command,
        table.generated,
        (
            f"Accuracy is highest with {best['columns']} columns ({best['accuracy']:.4f}); all "
            f"{results[-1]['columns']} give {results[-1]['accuracy']:.4f}, "
            f"the {results[0]['columns']} best {results[0]['accuracy']:.4f}.",
        ),
        tables=(
            Table(
                "Number of columns, best by Fisher score",
                COLUMNS,
                tuple(tuple(r[c] for c in COLUMNS) for r in results),
                _note(config, results),
            ),
        ),
        figures=(
            Figure(
                "lines",
                "Accuracy and FPR by number of columns",
                (
                    Series("accuracy", x, tuple(r["accuracy"] for r in results)),
                    Series("FPR", x, tuple(r["FPR"] for r in results)),
                ),
                "columns",
                "share of test rows",
                log_x=True,
            ),
            Figure(
                "lines",
                "Parameters by number of columns",
                (Series("autoencoder", x, tuple(float(r["parameters"]) for r in results)),),
                "columns",
                "parameters",
                log_x=True,
                log_y=True,
            ),
        ),
        limits=(
            "The ranking has seen labelled attacks, so accuracy with few columns is that of a detector that knew them.",
            *_limits(config),
        ),
    )


def over_activation(
    config: Config,
    table: "RowTable",
    activations: tuple[Activation, ...],
    optimisers: tuple[Optimiser, ...],
    command: str,
) -> Findings:
    """Train one autoencoder for each activation and optimiser."""
    results = {}
    for activation in activations:
        for optimiser in optimisers:
            results[activation, optimiser] = measure(
                dataclasses.replace(
                    config,
                    network=dataclasses.replace(config.network, activation=activation),
                    autoencoder=dataclasses.replace(config.autoencoder, optimiser=optimiser),
                ),
                table,
            )
    (activation, optimiser), best = min(results.items(), key=lambda item: item[1]["validation loss"])
    return Findings(
        "sweep-activation",
        "Which activation and which optimiser",
        command,
        table.generated,
        (
            f"The validation loss is lowest with {activation} and {optimiser} ({best['validation loss']:.4g}); the "
            "choice needs no attack rows.",
        ),
        tables=(
            Table(
                "Activation and optimiser",
                ("activation", "optimiser", *COLUMNS[1:]),
                tuple((*names, *(r[c] for c in COLUMNS[1:])) for names, r in results.items()),
                _note(config, list(results.values()))
                + f" One learning rate ({config.autoencoder.learning_rate:g}) for all: none is tuned to its optimiser.",
            ),
        ),
        figures=(
            Figure(
                "bars",
                "Validation loss by activation and optimiser",
                tuple(
                    Series(name, activations, tuple(results[a, name]["validation loss"] for a in activations))
                    for name in optimisers
                ),
                "activation",
                "validation loss, best epoch",
                log_y=True,
            ),
        ),
        limits=_limits(config),
    )


def measure(config: Config, table: "RowTable") -> dict[str, Any]:
    """Fit and test one autoencoder; return `COLUMNS` by name.

    Recall is the mean over attack types, so that a long flood does not dominate it; accuracy weighs recall and benign
    rows alike.
    """
    from trainer.fit import fit

    began = time.monotonic()
    metrics = fit.fit(config, table, lambda line: None).metrics
    fpr = metrics["false_positive_rate"]["full"]
    rates = {label: (rate["rows"], rate["full"]) for label, rate in metrics["detection_rate"].items()}
    of_type = recalls(rates, config.classifier.classes)
    recall = float(np.mean(list(of_type.values()))) if of_type else None
    lowest = min(of_type, key=lambda name: of_type[name], default=None)
    network = metrics["autoencoder"]
    return {
        "columns": network["columns"],
        "parameters": network["parameters"],
        "epochs": network["epochs"],
        "validation loss": network["validation_loss"],
        "accuracy": None if recall is None else (1 - fpr + recall) / 2,
        "recall": recall,
        "lowest recall": None if lowest is None else f"{lowest} {of_type[lowest]:.3f}",
        "FPR": fpr,
        "s": round(time.monotonic() - began, 1),
    }


def recalls(rates: dict[str, tuple[int, float | None]], classes: dict[str, str]) -> dict[str, float]:
    """Return the recall of each attack type from (rows, share) of each label; labels without rows are left out.

    Labels whose rows cannot be distinguished, or that ``classes`` trains as one, are one type, as for the classifier.

    >>> recalls({"gafgyt.tcp": (1, 1.0), "gafgyt.udp": (3, 0.0), "mirai.syn": (5, 0.5)}, {})
    {'gafgyt.tcp_udp': 0.25, 'mirai.syn': 0.5}
    """
    from trainer.fit import classifier

    together = {label: name for labels, name in classifier.TOGETHER.items() for label in labels}
    rows: dict[str, int] = {}
    hits: dict[str, float] = {}
    for label, (count, share) in rates.items():
        if share is not None:
            name = classes.get(label, together.get(label, label))
            rows[name] = rows.get(name, 0) + count
            hits[name] = hits.get(name, 0.0) + count * share
    return {name: hits[name] / rows[name] for name in rows}


def _distinct(config: Config, ranked: dict[str, float]) -> list[str]:
    """Return the columns that have a score and are not copies of another."""
    from edge_agent.contract.columns import COPIES

    columns = config.model_columns()
    return [c for c in columns if COPIES.get(c) not in columns and not np.isnan(ranked[c])]


def _note(config: Config, results: list[dict[str, Cell]]) -> str:
    return (
        f"τ = mean + {config.decision.n:g}·std of benign optimise rows. FPR is of benign test rows, split "
        f"{'in time order' if config.split.order == 'time' else 'at random'}; recall of all attack rows, as the mean "
        "over types, where BASHLITE tcp and udp, whose rows are alike, are one; accuracy is the mean of recall and "
        f"1 − FPR; validation loss of the best epoch. {len(results)} trainings with seed {config.seed}."
    )


def _limits(config: Config) -> tuple[str, ...]:
    dropped = ", ".join(config.study.leave_out)
    return (
        *((f"{dropped} take part here; the study left them out.",) if dropped else ()),
        "One seed each: small differences are chance.",
        "One row is one packet: these are shares of packets, not of alarms a person would get.",
    )
