"""The effect of a conversion: scores, decisions and classes of each variant against the Keras networks it came from.

Both sides decide with their own τ and limit, computed by the same rule on the same benign rows. This module does not
know how a variant was made; `failures` holds it to the bounds of a bundle.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.run import Block
from edge_agent.contract.bundle import AUTOENCODER, BENIGN, CLASSIFIER
from edge_agent.contract.decision import Decision
from edge_agent.contract.scaling import Array, Scaler
from edge_agent.detection.scorer import Scorer

MAX_BENIGN_FLIPS = 0.001
"""Share of benign test rows whose decision may change."""

MAX_CLASS_FLIPS = 0.01
"""Share of test and attack rows whose most probable class may change."""

MAX_INT8_BYTES = {AUTOENCODER: 64 * 1024, CLASSIFIER: 8 * 1024}
"""Largest sizes of an int8 bundle's files; the other variants are larger by nature."""

Predict = Callable[[Array], Array]
"""A network: inputs (n, k) -> outputs."""


@dataclass(frozen=True)
class Outcome:
    """The output of networks for rows: scores of both rules and the index of the most probable class, each (n,)."""

    full: Array
    fast: Array
    classes: NDArray[np.int16] | None


@dataclass(frozen=True, kw_only=True)
class ParityRows:
    """The rows that outcomes belong to: masks (n,), and per row its label, its device, its run and its time."""

    benign: NDArray[np.bool_]
    optimise: NDArray[np.bool_]
    test: NDArray[np.bool_]
    attack: NDArray[np.bool_]
    label: NDArray[np.str_]
    device: NDArray[np.str_]
    run: NDArray[np.int64]
    start: NDArray[np.bool_]
    t_ns: NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """One side of a comparison: the output of networks for the rows, and their decision with a τ of their own."""

    outcome: Outcome
    decision: Decision

    def full(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return a mask of the rows in ``mask`` above the limit of all columns, which count in a vote."""
        return np.asarray(self.outcome.full[mask] > self.decision.full.limit)

    def fast(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return a mask of the rows in ``mask`` above the limit of the columns that forget fast."""
        return np.asarray(self.outcome.fast[mask] > self.decision.fast.limit)


@dataclass(frozen=True, kw_only=True)
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
        """The share of all rows whose class changed; 0 without rows."""
        return self.changed / self.rows if self.rows else 0.0


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Everything measured of one variant; ``tau`` and ``limit`` are by rule, ``us_per_row`` by model and batch size."""

    variant: str
    tau: dict[str, float]
    limit: dict[str, float]
    benign: Flips
    attack: Flips
    classes: ClassFlips | None
    bytes: dict[str, int]
    us_per_row: dict[str, dict[int, float]]
    failures: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with the shares."""
        data = asdict(self)
        data["benign"]["share"], data["attack"]["share"] = self.benign.share, self.attack.share
        if self.classes is not None:
            data["classes"]["share"] = self.classes.share
        return data


class Observer:
    """Run several pairs of networks over a run's rows, block by block; attack rows of the train part are left out.

    Each of ``networks`` has an autoencoder and, where the run has classes, a classifier, by their names in a bundle.
    """

    def __init__(self, networks: Iterable[Mapping[str, Predict]], scaler: Scaler, columns: Sequence[str]):
        self._scaler = scaler
        self._pairs = [(Scorer(pair[AUTOENCODER], scaler, columns), pair.get(CLASSIFIER)) for pair in networks]
        self._outcomes: list[list[Outcome]] = [[] for _ in self._pairs]
        self._part: list[NDArray[np.str_]] = []
        self._label: list[NDArray[np.str_]] = []
        self._device: list[NDArray[np.str_]] = []
        self._run: list[NDArray[np.int64]] = []
        self._start: list[NDArray[np.bool_]] = []
        self._t_ns: list[NDArray[np.int64]] = []

    def see(self, block: Block) -> None:
        """Score and classify the block's rows."""
        used = (block.part != "train") | (block.label == BENIGN)
        if not used.any():
            return
        values = block.values[used]
        inputs = self._scaler.network_input(self._scaler.z(values))
        for (scorer, classifier), outcomes in zip(self._pairs, self._outcomes, strict=True):
            classes = None if classifier is None else classifier(inputs).argmax(axis=1).astype(np.int16)
            outcomes.append(Outcome(scorer.full(values), scorer.fast(values), classes))
        self._part.append(block.part[used])
        self._label.append(block.label[used])
        self._device.append(block.device[used])
        self._run.append(block.run[used])
        self._start.append(block.start[used])
        self._t_ns.append(block.t_ns[used])

    def seen(self) -> tuple[ParityRows, list[Outcome]]:
        """Return the rows and the output of each pair for them; ValueError when there were no rows."""
        if not self._part:
            raise ValueError(
                "every row is a train row of an attack, so there is nothing to compute τ from or to compare"
            )
        part, label = np.concatenate(self._part), np.concatenate(self._label)
        benign = label == BENIGN
        rows = ParityRows(
            benign=benign,
            optimise=(part == "optimise") & benign,
            test=(part == "test") & benign,
            attack=(part != "optimise") & ~benign,
            label=label,
            device=np.concatenate(self._device),
            run=np.concatenate(self._run),
            start=np.concatenate(self._start),
            t_ns=np.concatenate(self._t_ns),
        )
        return rows, [_joined(outcomes) for outcomes in self._outcomes]


def _joined(outcomes: list[Outcome]) -> Outcome:
    classes = [outcome.classes for outcome in outcomes if outcome.classes is not None]
    return Outcome(
        np.concatenate([outcome.full for outcome in outcomes]),
        np.concatenate([outcome.fast for outcome in outcomes]),
        np.concatenate(classes) if classes else None,
    )


def compare(
    variant: str,
    rows: ParityRows,
    ours: Side,
    keras: Side,
    sizes: dict[str, int],
    times: dict[str, dict[int, float]],
    defects: Sequence[str],
) -> Parity:
    """Return the parity of one variant; broken bounds, and ``defects`` found elsewhere, are its failures."""
    parity = Parity(
        variant=variant,
        tau={"full": ours.decision.full.tau, "fast": ours.decision.fast.tau},
        limit={"full": ours.decision.full.limit, "fast": ours.decision.fast.limit},
        benign=flips(rows.test, ours, keras),
        attack=flips(rows.attack, ours, keras),
        classes=class_flips(rows, ours.outcome, keras.outcome),
        bytes=sizes,
        us_per_row=times,
    )
    return replace(parity, failures=(*failures(parity), *defects))


def flips(mask: NDArray[np.bool_], ours: Side, keras: Side) -> Flips:
    """Count the decisions on the rows in ``mask`` that differ, and measure the error of their scores."""
    mine, other = ours.outcome.full[mask].astype(np.float64), keras.outcome.full[mask].astype(np.float64)
    error = np.abs(mine - other) / np.maximum(other, np.finfo(np.float32).tiny)
    return Flips(
        rows=int(mask.sum()),
        full=int((ours.full(mask) != keras.full(mask)).sum()),
        fast=int((ours.fast(mask) != keras.fast(mask)).sum()),
        error_median=float(np.median(error)) if len(error) else None,
        error_p99=float(np.quantile(error, 0.99)) if len(error) else None,
    )


def class_flips(rows: ParityRows, ours: Outcome, theirs: Outcome) -> ClassFlips | None:
    """Count the classes of ``ours`` that differ on test and attack rows; None without classifiers."""
    if ours.classes is None or theirs.classes is None:
        return None
    mask = rows.test | rows.attack
    changed, label = (ours.classes != theirs.classes)[mask], rows.label[mask]
    shares = {str(name): float(changed[label == name].mean()) for name in np.unique(label)}
    worst = max(shares, key=lambda name: shares[name], default="")
    return ClassFlips(int(mask.sum()), int(changed.sum()), worst, shares.get(worst, 0.0))


def microseconds(predict: Predict, inputs: Array, batch: int, passes: int = 7, seconds: float = 0.01) -> float:
    """Return the median microseconds a row in batches of ``batch``; each pass runs for about ``seconds``."""
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
    """Return each bound that ``parity`` breaks, with figure and bound; empty when the variant may be deployed."""
    broken = []
    benign, classes = parity.benign, parity.classes
    if not benign.rows:
        broken.append("no benign test rows to compare decisions on")
    if benign.share > MAX_BENIGN_FLIPS:
        rule = "full" if benign.full >= benign.fast else "fast"
        broken.append(
            f"flips {benign.share:.2%} of benign decisions ({max(benign.full, benign.fast)} of {benign.rows} rows, "
            f"rule {rule}), bound {MAX_BENIGN_FLIPS:.1%}"
        )
    if classes is not None and classes.share > MAX_CLASS_FLIPS:
        broken.append(
            f"flips {classes.share:.2%} of classes ({classes.changed} of {classes.rows} rows, the largest share in "
            f"{classes.worst}), bound {MAX_CLASS_FLIPS:.0%}"
        )
    if parity.variant == "int8":
        for model, bound in MAX_INT8_BYTES.items():
            if parity.bytes.get(model, 0) > bound:
                broken.append(f"{model} has {parity.bytes[model]} bytes, bound {bound}")
    return tuple(broken)


HEADINGS = (
    "variant", "benign flips", "attack flips", "score error, median / p99", "class agreement", "bytes",
    "µs/row, batch 1 / 64", "verdict",
)  # fmt: skip


def table(results: Sequence[Parity]) -> list[tuple[str, ...]]:
    """Return the report as text cells under `HEADINGS`, one row for each variant."""
    return [
        (
            p.variant,
            _share(p.benign),
            _share(p.attack),
            "-" if p.benign.error_median is None else f"{p.benign.error_median:.2%} / {p.benign.error_p99:.2%}",
            "-" if p.classes is None else f"{1 - p.classes.share:.2%}",
            " + ".join(f"{size:,}" for size in p.bytes.values()),
            " / ".join(f"{us:.1f}" for us in p.us_per_row[AUTOENCODER].values()),
            "; ".join(p.failures) or "ok",
        )
        for p in results
    ]


def _share(flips: Flips) -> str:
    return f"{flips.share:.3%} of {flips.rows:,}" if flips.rows else "-"


NOTES = (
    "Flips: rows whose decision (score above the limit, each side with its own) differs from the Keras networks', the "
    "worse of the rules full and fast. Score error: relative, on benign test rows. Bytes: autoencoder + classifier. "
    "Times: the autoencoder on the converting machine, one thread, median of 7 passes; noisy, for ratios only."
)


def markdown(title: str, results: Sequence[Parity]) -> str:
    """Return the report as a Markdown table with its legend."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *table(results)]
    return "\n".join([f"# {title}", "", *("| " + " | ".join(cells) + " |" for cells in lines), "", NOTES, ""])


def unsteady(predict: Predict, inputs: Array, batches: Sequence[int]) -> list[str]:
    """Return the defects of a network at the batch sizes of an agent: values not finite, or not the same for a row."""
    rows = np.ascontiguousarray(np.resize(inputs, (batches[-1], inputs.shape[1])))
    whole = predict(rows)
    if not np.isfinite(whole).all():
        return ["gives values that are not finite"]
    step = float(np.abs(whole).max()) / 127  # about one quantum of an int8 output: kernels may round differently
    defects = []
    for size in batches[:-1]:
        apart = float(np.abs(predict(rows[:size]) - whole[:size]).max())
        if apart > 2 * step:
            defects.append(f"differs by {apart:.3g} between batches of {size} and {batches[-1]}")
    return defects
