"""Figures of a bundle over rows alone: the shares above τ, in a vote and of each class, by label."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.bundle import BENIGN, Bundle
from edge_agent.detection.runtime import Model
from edge_agent.detection.scorer import Scorer
from edge_agent.detection.vote import vote_statistic
from trainer.report.findings import Figure, Findings, Series, Table

if TYPE_CHECKING:
    from trainer.data.row_table import RowTable

BLOCK = 65_536
"""Rows scored at a time."""


def report(bundle: Bundle, table: "RowTable", command: str) -> Findings:
    """Return row and vote figures of a bundle on a table of rows, which have no live context.

    Votes are over each capture's rows in their order; ValueError when the table lacks a column of the model.
    """
    scores, classes = _judged(bundle, table)
    rule = bundle.manifest.decision
    benign = np.array([label == BENIGN for label in table.labels])[table.label]
    above = scores > rule.full.tau
    voted = np.zeros(len(table), dtype=bool)
    group = (table.capture.astype(np.int64) * len(table.devices) + table.device) * len(table.labels) + table.label
    for code in np.unique(group):
        of_group = np.flatnonzero(group == code)
        voted[of_group] = vote_statistic(scores[of_group], rule.vote_k, rule.vote_w) > rule.full.limit
    lines = []
    for code, label in enumerate(table.labels):
        of_label = table.label == code
        if of_label.any():
            lines.append((label, int(of_label.sum()), float(above[of_label].mean()), float(voted[of_label].mean())))
    lead = []
    if benign.any() and (~benign).any():
        right = float(np.mean(above == ~benign))
        lead.append(
            f"Rows above τ: accuracy {right:.5f}, false-positive rate {above[benign].mean():.5f}, "
            f"recall {above[~benign].mean():.5f} of {len(table):,} rows."
        )
    elif benign.any():
        lead.append(f"Benign rows above τ: {above[benign].mean():.5f} of {int(benign.sum()):,}.")
    return Findings(
        "rows",
        "Row figures of the bundle",
        command,
        table.generated,
        tuple(lead),
        tables=(
            Table(
                "Rows of each label",
                ("label", "rows", "above τ", "in a vote above the limit"),
                tuple(lines),
                "The quantised models and their own τ.",
            ),
        ),
        figures=() if classes is None or benign.all() else (_confusion(bundle.manifest.classes, classes, table),),
        limits=(
            "A row is a packet: the share of rows flagged says little of whether or when a device alerts.",
            "Published rows have no time, and rows of one burst are near copies of each other.",
        ),
    )


def _judged(bundle: Bundle, table: "RowTable") -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Return score and most probable class (None without a classifier) of each row, both (n,)."""
    columns = bundle.manifest.columns
    if missing := [column for column in columns if column not in table.columns]:
        raise ValueError(f"the rows have no column {missing[0]!r}, which the model needs")
    at = np.array([table.columns.index(column) for column in columns])
    scorer = Scorer(Model(bundle.autoencoder), bundle.scaler, columns)
    classify = Model(bundle.classifier) if bundle.classifier else None
    scores = np.empty(len(table), dtype=np.float32)
    classes = np.zeros(len(table), dtype=np.int64)
    for i in range(0, len(table), BLOCK):
        values = table.values[i : i + BLOCK][:, at]
        scores[i : i + BLOCK] = scorer.full(values)
        if classify is not None:
            inputs = bundle.scaler.network_input(bundle.scaler.z(values))
            classes[i : i + BLOCK] = classify(inputs).argmax(axis=1)
    return scores, None if classify is None else classes


def _confusion(names: tuple[str, ...], classes: NDArray[np.int64], table: "RowTable") -> Figure:
    series = []
    for code, label in enumerate(table.labels):
        of_label = table.label == code
        if of_label.any():
            shares = np.bincount(classes[of_label], minlength=len(names)) / of_label.sum()
            series.append(Series(label, names, tuple(map(float, shares))))
    return Figure("matrix", "Most probable class, by label: share of rows", tuple(series), "class", "label")
