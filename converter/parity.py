"""What a conversion changed: scores, decisions and classes of each variant against the Keras networks it came from.

Both sides decide with their own τ, computed by the same rule on the same benign rows. Nothing here knows how a variant
was made; `failures` is where the bounds of a bundle stand.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.run import Block
from edge_agent.contract.bundle import BENIGN, Decision
from edge_agent.contract.scaling import Array, Scaler
from edge_agent.detector import Scorer

MAX_BENIGN_FLIPS = 0.001
"""Share of benign test rows whose decision may change."""
MAX_CLASS_FLIPS = 0.01
"""Share of test and attack rows whose most probable class may change."""
MAX_INT8_BYTES = {"autoencoder": 64 * 1024, "classifier": 8 * 1024}
"""Sizes an int8 bundle must keep to; the other variants are larger by nature."""

Predict = Callable[[Array], Array]


@dataclass(frozen=True)
class Networks:
    """One autoencoder and, if the run has classes, one classifier: functions of network inputs (n, k)."""

    autoencoder: Predict
    classifier: Predict | None


@dataclass(frozen=True)
class Outcome:
    """What networks say of rows: scores of both rules and the index of the most probable class, each (n,)."""

    full: Array
    fast: Array
    classes: NDArray[np.int16] | None


@dataclass(frozen=True)
class Rows:
    """The rows the outcomes are of, as masks (n,), and the damped counts of the optimise rows, (m, 10)."""

    optimise: NDArray[np.bool_]
    test: NDArray[np.bool_]
    attack: NDArray[np.bool_]
    label: NDArray[np.str_]
    optimise_counts: Array


@dataclass(frozen=True)
class Flips:
    """Rows of one kind whose decision changed, by rule, and the relative error of their scores (full)."""

    rows: int
    full: int
    fast: int
    error_median: float | None
    error_p99: float | None

    @property
    def share(self) -> float:
        """The larger of the two rules' shares of changed decisions; 0 without rows."""
        return max(self.full, self.fast) / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class ClassFlips:
    """Rows whose class changed, and the label with the largest share of them."""

    rows: int
    changed: int
    worst: str
    worst_share: float

    @property
    def share(self) -> float:
        """Changed share of all rows; 0 without rows."""
        return self.changed / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class Parity:
    """Everything measured of one variant; ``us_per_row`` is model -> batch size -> median microseconds."""

    variant: str
    tau_full: float
    tau_fast: float
    benign: Flips
    attack: Flips
    classes: ClassFlips | None
    bytes: dict[str, int]
    us_per_row: dict[str, dict[int, float]]
    runtime: str
    failures: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, shares included."""
        data = asdict(self)
        data["benign"]["share"], data["attack"]["share"] = self.benign.share, self.attack.share
        if self.classes is not None:
            data["classes"]["share"] = self.classes.share
        return data


def observe(
    blocks: Iterable[Block], networks: Mapping[str, Networks], scaler: Scaler, columns: Sequence[str]
) -> tuple[Rows, dict[str, Outcome]]:
    """Run every pair of ``networks`` over the rows that no weight was trained on, in one pass.

    Attack rows that trained a classifier are kept where no others exist: agreement needs no unseen rows.
    """
    scorers = {name: Scorer(pair.autoencoder, scaler, columns) for name, pair in networks.items()}
    kept: dict[str, list[tuple[Array, Array, NDArray[np.int16] | None]]] = {name: [] for name in networks}
    part, label, counts = [], [], []
    for block in blocks:
        used = block.part != "train"
        if not used.any():
            continue
        values = block.values[used]
        inputs = scaler.network_input(scaler.z(values))
        for name, pair in networks.items():
            classes = None if pair.classifier is None else pair.classifier(inputs).argmax(axis=1).astype(np.int16)
            kept[name].append((scorers[name].full(values), scorers[name].fast(values), classes))
        part.append(block.part[used])
        label.append(block.label[used])
        counts.append(block.counts[(block.part == "optimise") & (block.label == BENIGN)])
    if not part:
        raise ValueError("every row is a train row: nothing to compute τ from or to compare")
    parts, labels = np.concatenate(part), np.concatenate(label)
    benign = labels == BENIGN
    rows = Rows(
        (parts == "optimise") & benign,
        (parts == "test") & benign,
        (parts != "optimise") & ~benign,
        labels,
        np.concatenate(counts),
    )
    outcomes = {}
    for name, found in kept.items():
        classes = [c for _, _, c in found if c is not None]
        full, fast = np.concatenate([f for f, _, _ in found]), np.concatenate([f for _, f, _ in found])
        outcomes[name] = Outcome(full, fast, np.concatenate(classes) if classes else None)
    return rows, outcomes


def flips(mask: NDArray[np.bool_], ours: Outcome, tau: Decision, theirs: Outcome, their_tau: Decision) -> Flips:
    """Decisions of ``ours`` that differ from ``theirs`` (the Keras networks) on the rows of ``mask``."""
    mine, other = ours.full[mask].astype(np.float64), theirs.full[mask].astype(np.float64)
    error = np.abs(mine - other) / np.maximum(other, np.finfo(np.float32).tiny)
    return Flips(
        rows=int(mask.sum()),
        full=int(((mine > tau.full.tau) != (other > their_tau.full.tau)).sum()),
        fast=int(((ours.fast[mask] > tau.fast.tau) != (theirs.fast[mask] > their_tau.fast.tau)).sum()),
        error_median=float(np.median(error)) if len(error) else None,
        error_p99=float(np.quantile(error, 0.99)) if len(error) else None,
    )


def class_flips(rows: Rows, ours: Outcome, theirs: Outcome) -> ClassFlips | None:
    """Classes of ``ours`` that differ on test and attack rows; None without classifiers."""
    if ours.classes is None or theirs.classes is None:
        return None
    mask = rows.test | rows.attack
    changed, label = (ours.classes != theirs.classes)[mask], rows.label[mask]
    shares = {str(name): float(changed[label == name].mean()) for name in np.unique(label)}
    worst = max(shares, key=lambda name: shares[name], default="")
    return ClassFlips(int(mask.sum()), int(changed.sum()), worst, shares.get(worst, 0.0))


def microseconds(predict: Predict, inputs: Array, batch: int, passes: int = 7, seconds: float = 0.01) -> float:
    """Median microseconds a row in batches of ``batch``; each pass runs for about ``seconds``."""
    block = np.ascontiguousarray(np.resize(inputs, (batch, inputs.shape[1])))
    predict(block)
    start = time.perf_counter()
    predict(block)
    calls = max(1, int(seconds / max(time.perf_counter() - start, 1e-7)))
    taken = []
    for _ in range(passes):
        start = time.perf_counter()
        for _ in range(calls):
            predict(block)
        taken.append((time.perf_counter() - start) / calls)
    return statistics.median(taken) / batch * 1e6


def failures(parity: Parity) -> tuple[str, ...]:
    """Each bound ``parity`` breaks, with figure and bound; empty when it may be deployed."""
    found = []
    benign, classes = parity.benign, parity.classes
    if not benign.rows:
        found.append("no benign test rows to compare decisions on")
    if benign.share > MAX_BENIGN_FLIPS:
        rule = "full" if benign.full >= benign.fast else "fast"
        found.append(
            f"flips {benign.share:.2%} of benign decisions ({max(benign.full, benign.fast)} of {benign.rows} rows, "
            f"rule {rule}), bound {MAX_BENIGN_FLIPS:.1%}"
        )
    if classes is not None and classes.share > MAX_CLASS_FLIPS:
        found.append(
            f"flips {classes.share:.2%} of classes ({classes.changed} of {classes.rows} rows, most of them "
            f"{classes.worst}), bound {MAX_CLASS_FLIPS:.0%}"
        )
    if parity.variant == "int8":
        for model, bound in MAX_INT8_BYTES.items():
            if parity.bytes.get(model, 0) > bound:
                found.append(f"{model} has {parity.bytes[model]} bytes, bound {bound}")
    return tuple(found)


HEADINGS = (
    "variant", "benign flips", "attack flips", "score error, median / p99", "class agreement", "bytes",
    "µs/row, batch 1 / 64", "verdict",
)  # fmt: skip


def table(results: Sequence[Parity]) -> list[tuple[str, ...]]:
    """The report as text cells under `HEADINGS`: one row a variant."""
    return [
        (
            p.variant,
            _share(p.benign),
            _share(p.attack),
            "-" if p.benign.error_median is None else f"{p.benign.error_median:.2%} / {p.benign.error_p99:.2%}",
            "-" if p.classes is None else f"{1 - p.classes.share:.2%}",
            " + ".join(f"{size:,}" for size in p.bytes.values()),
            " / ".join(f"{us:.1f}" for us in p.us_per_row["autoencoder"].values()),
            "; ".join(p.failures) or "ok",
        )
        for p in results
    ]


def _share(found: Flips) -> str:
    return f"{found.share:.3%} of {found.rows:,}" if found.rows else "-"


NOTES = (
    "Flips: rows whose decision (score > τ, each side with its own τ) differs from the Keras networks', the worse of "
    "the rules full and fast. Score error: relative, on benign test rows. Bytes: autoencoder + classifier. "
    "Times: the autoencoder on the converting machine, one thread, median of 7 passes; noisy, for ratios only."
)


def markdown(title: str, results: Sequence[Parity]) -> str:
    """The report as a Markdown table with its legend."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *table(results)]
    return "\n".join([f"# {title}", "", *("| " + " | ".join(cells) + " |" for cells in lines), "", NOTES, ""])


def unsteady(networks: Mapping[str, Predict | None], inputs: Array, batches: Sequence[int]) -> list[str]:
    """Networks whose output is not finite, or depends on the batch size a row comes in; empty when none does."""
    found = []
    rows = np.ascontiguousarray(np.resize(inputs, (batches[-1], inputs.shape[1])))
    for name, predict in networks.items():
        if predict is None:
            continue
        whole = predict(rows)
        if not np.isfinite(whole).all():
            found.append(f"{name} gives values that are not finite")
            continue
        step = float(np.abs(whole).max()) / 127  # one quantum of an int8 output: kernels may round differently
        for size in batches[:-1]:
            apart = float(np.abs(predict(rows[:size]) - whole[:size]).max())
            if apart > 2 * step:
                found.append(f"{name} differs by {apart:.3g} between batches of {size} and {batches[-1]}")
    return found
