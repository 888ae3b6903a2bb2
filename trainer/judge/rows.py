"""Figures of a bundle over rows alone: which are above τ, which votes, which class, by label."""

from typing import TYPE_CHECKING

import numpy as np

from edge_agent.contract.bundle import BENIGN, Bundle
from edge_agent.detection.runtime import Model
from edge_agent.detection.scorer import Scorer
from edge_agent.detection.vote import vote_statistic
from trainer.report.findings import Figure, Findings, Series, Table

if TYPE_CHECKING:
    from trainer.data.row_table import RowTable


def report(bundle: Bundle, table: "RowTable", command: str) -> Findings:
    """Row and vote figures of a bundle on a table of rows, which have no live context.

    Votes are over each capture's rows in their order; ValueError when the table lacks a column of the model.
    """
    manifest = bundle.manifest
    missing = [column for column in manifest.columns if column not in table.columns]
    if missing:
        raise ValueError(f"the rows have no column {missing[0]!r}, which the model needs")
    at = np.array([table.columns.index(column) for column in manifest.columns])
    scorer = Scorer(Model(bundle.autoencoder), bundle.scaler, manifest.columns)
    classify = Model(bundle.classifier) if bundle.classifier else None
    scores = np.empty(len(table), dtype=np.float32)
    guess = np.zeros(len(table), dtype=np.int64)
    for i in range(0, len(table), 65_536):
        values = table.values[i : i + 65_536][:, at]
        scores[i : i + 65_536] = scorer.full(values)
        if classify is not None:
            inputs = bundle.scaler.network_input(bundle.scaler.z(values))
            guess[i : i + 65_536] = classify(inputs).argmax(axis=1)
    rule = manifest.decision
    benign = np.array([label == BENIGN for label in table.labels])[table.label]
    above = scores > rule.full.tau
    voted = np.zeros(len(table), dtype=bool)
    group = (table.capture.astype(np.int64) * len(table.devices) + table.device) * len(table.labels) + table.label
    for code in np.unique(group):
        own = np.flatnonzero(group == code)
        voted[own] = vote_statistic(scores[own], rule.vote_k, rule.vote_w) > rule.full.limit
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
    figures = []
    if classify is not None and (~benign).any():
        series = []
        for code, label in enumerate(table.labels):
            own = table.label == code
            if own.any():
                shares = np.bincount(guess[own], minlength=len(manifest.classes)) / own.sum()
                series.append(Series(label, manifest.classes, tuple(map(float, shares))))
        figures.append(
            Figure("matrix", "Most probable class, by label: share of rows", tuple(series), "class", "label")
        )
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
        figures=tuple(figures),
        limits=(
            "A row is a packet: what share of them is flagged says little of whether a device alerts, nor when.",
            "Published rows have no time, and rows of one burst are near copies of each other.",
        ),
    )
