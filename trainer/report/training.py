"""The training of a run, from the run folder's files, in the form of findings."""

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.report.findings import Figure, Findings, Series, Table, number

THRESHOLD = ("limit", "tau", "quantile", "highest", "others", "mean", "std", "min", "max", "rows")
"""Figures of a rule's threshold in metrics.json, in the order of the table."""

TAIL = ("peaks", "days", "level", "scale", "shape", "every", "limit", "bound")
"""Figures of the tail of benign votes in metrics.json, in the order of the table."""


def learning_curve(title: str, history: Mapping[str, Any], validation: str) -> Figure:
    """Return the losses of a training by epoch; ``validation`` names the rows that end it."""
    epochs = tuple(float(i + 1) for i in range(len(history["loss"])))
    return Figure(
        "lines",
        title,
        (
            Series("train", epochs, tuple(history["loss"])),
            Series(validation, epochs, tuple(history["validation_loss"])),
        ),
        "epoch",
        "loss",
        log_y=True,
        note=f"The weights are those of epoch {history['best_epoch']}.",
    )


def training(model: Mapping[str, Any], metrics: Mapping[str, Any], histories: Mapping[str, Any]) -> Findings | None:
    """Return learning curves, thresholds and figures of rows; None for a run folder that has none of them.

    The arguments are the contents of model.json, metrics.json and history.json.
    """
    trained = {name: history for name, history in histories.items() if history}
    figures = [learning_curve(f"Learning curve: {name}", history, "optimise") for name, history in trained.items()]
    tables: list[Table] = []
    if "threshold" in metrics:
        tables += _thresholds(metrics["threshold"])
    if "detection_rate" in metrics:
        tables.append(_rates(metrics))
    if metrics.get("classifier"):
        figures.append(_confusion(metrics["classifier"]))
    if metrics.get("fisher"):
        figures.append(_best_columns(metrics["fisher"]))
    if not figures and not tables:
        return None
    return Findings(
        name="training",
        title="Training",
        command="",
        generated=bool(model.get("generated")),
        lead=(
            *(f"{name}: best epoch {h['best_epoch']} of {h['epochs']}." for name, h in trained.items()),
            *_budget(model.get("decision", {}), metrics),
        ),
        tables=tuple(tables),
        figures=tuple(figures),
    )


def _budget(decision: Mapping[str, Any], metrics: Mapping[str, Any]) -> Iterator[str]:
    """Say what false alerts are allowed, what the benign days prove of it, and which device is the loudest."""
    basis, loudest = metrics.get("basis"), metrics.get("loudest")
    if basis and basis["home_month"] is not None:
        yield (
            f"Budget: {number(decision['budget'])} false alerts per month of a home of {decision['home_devices']} "
            f"devices. The {number(basis['device_days'])} benign device-days of the fit, in which the score exceeded "
            f"its limit {basis['above']} times, prove at most {number(basis['home_month'])} by the score (95 %)."
        )
    if loudest:
        yield (
            f"Loudest device: {loudest['device']}, about {number(loudest['alerts_a_month'])} alerts a month at this "
            "limit unless it learns one of its own."
        )


def _thresholds(thresholds: Mapping[str, Any]) -> Iterator[Table]:
    yield Table(
        "τ and the limit of a vote",
        ("rule", *THRESHOLD),
        tuple((rule, *(threshold[name] for name in THRESHOLD)) for rule, threshold in thresholds.items()),
        "τ = mean + n·std over benign optimise rows; others: the upper bound of the tail without the loudest device, "
        "which the limit is at most twice. These figures are of the float model.",
    )
    yield Table(
        "The tail of benign votes",
        ("rule", "peaks", "device-days", "level", "scale", "shape ξ", "once in days", "limit", "upper bound"),
        tuple((rule, *(threshold["tail"][name] for name in TAIL)) for rule, threshold in thresholds.items()),
    )


def _rates(metrics: Mapping[str, Any]) -> Table:
    benign = metrics["false_positive_rate"]
    rows = [
        ("benign (test)", benign["rows"], benign["full"]),
        *((label, rate["rows"], rate["full"]) for label, rate in metrics["detection_rate"].items()),
    ]
    return Table("Rows above τ, float model", ("label", "rows", "share above τ"), tuple(rows))


def _confusion(classifier: Mapping[str, Any]) -> Figure:
    classes = tuple(classifier["classes"])
    matrix = []
    for name, row in zip(classes, classifier["confusion"], strict=True):
        total = sum(row)
        matrix.append(Series(name, classes, tuple(n / total if total else None for n in row)))
    return Figure(
        "matrix",
        "Classifier: share of each class's test rows",
        tuple(matrix),
        "classified as",
        "true class",
        note=f"Accuracy {number(classifier['accuracy'])}; of rows, not of episodes.",
    )


def _best_columns(fisher: Mapping[str, float | None]) -> Figure:
    best = sorted(((value, name) for name, value in fisher.items() if value is not None), reverse=True)[:10]
    return Figure(
        "bars",
        "Columns that tell labels apart best",
        (Series("Fisher score", tuple(name for _, name in best), tuple(value for value, _ in best)),),
        "Fisher score",
        note="Ranked with labels, so not used for the detector; copies of a column have the same score.",
    )
