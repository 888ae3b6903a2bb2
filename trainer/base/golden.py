"""Rows whose decisions are recorded beside the built-in bundle, so that one made on another machine can be compared.

Another processor rounds otherwise, and training amplifies that: its networks are others. What must be the same is what
they decide on rows that are clear: far from the limit, and named with confidence.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from edge_agent.contract import runfolder
from edge_agent.contract.bundle import BENIGN, Bundle
from edge_agent.contract.scaling import Array
from edge_agent.detection.runtime import Model
from edge_agent.detection.scorer import Scorer

NAME = "golden.npz"

ROWS = 96
"""Golden rows at most, half of them benign."""

APART = 2.0
"""Factor between the limit and the score of a golden row, at least."""

SURE = 0.9
"""Probability of the class of a golden row whose class is compared, at least."""


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Rows (n, columns), whether each is above the limit of a vote (n,), and its class (n,), "" where none is sure."""

    rows: Array
    flagged: NDArray[np.bool_]
    classes: NDArray[np.str_]

    def bytes(self) -> bytes:
        """Return the content of the file that `load` reads."""
        file = io.BytesIO()
        np.savez_compressed(file, rows=self.rows, flagged=self.flagged, classes=self.classes)
        return file.getvalue()


def load(folder: Path) -> Golden:
    """Return the golden rows beside a bundle."""
    with np.load(folder / NAME, allow_pickle=False) as data:
        return Golden(rows=data["rows"], flagged=data["flagged"], classes=data["classes"])


def decide(bundle: Bundle, rows: Array) -> tuple[Array, NDArray[np.str_], Array]:
    """Return scores as multiples of the limit (n,), most probable classes (n,) and their probabilities (n,)."""
    scorer = Scorer(Model(bundle.autoencoder), bundle.scaler, bundle.manifest.columns)
    scores = scorer.full(rows) / np.float32(bundle.manifest.decision.full.limit)
    if bundle.classifier is None:
        return scores, np.full(len(rows), ""), np.zeros(len(rows), dtype=np.float32)
    outputs = Model(bundle.classifier)(bundle.scaler.network_input(bundle.scaler.z(rows)))
    names = np.array(bundle.manifest.classes)[outputs.argmax(axis=1)]
    return scores, names, outputs.max(axis=1)


def choose(bundle: Bundle, run: Path) -> Golden:
    """Return golden rows of a run's test and attack rows, which are clear to the bundle that was made of it."""
    frame = pl.read_parquet(run / runfolder.ROWS, columns=["part", "label", *bundle.manifest.columns])
    frame = frame.filter(pl.col("part").is_in(["test", "attack"]))
    labels = sorted(frame["label"].unique().to_list())
    parts = []
    for label in labels:
        share = ROWS // 2 if label == BENIGN else ROWS // 2 // max(1, len(labels) - 1)
        rows = frame.filter(pl.col("label") == label).select(bundle.manifest.columns).to_numpy().astype(np.float32)
        scores, _, _ = decide(bundle, rows)
        clear = np.flatnonzero((scores > APART) | (scores < 1 / APART))
        parts.append(
            rows[clear[np.unique(np.linspace(0, len(clear) - 1, share).astype(int))]] if len(clear) else rows[:0]
        )
    rows = np.ascontiguousarray(np.concatenate(parts))
    scores, classes, sure = decide(bundle, rows)
    return Golden(rows=rows, flagged=scores > 1, classes=np.where(sure >= SURE, classes, ""))


def differences(bundle: Bundle, golden: Golden) -> list[str]:
    """Return in words each golden row on which a bundle decides otherwise than recorded."""
    scores, classes, _ = decide(bundle, golden.rows)
    found = []
    for number, (score, name) in enumerate(zip(scores, classes, strict=True)):
        if (score > 1) != golden.flagged[number]:
            side = "above" if golden.flagged[number] else "below"
            found.append(f"row {number} has {score:.3g} times the limit, recorded is {side} it")
        if golden.classes[number] not in ("", name):
            found.append(f"row {number} is called {name}, recorded is {golden.classes[number]}")
    return found
