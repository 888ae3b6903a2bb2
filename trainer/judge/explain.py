"""`botwatch trainer explain`: why rows were flagged and classified, by LIME, and whether that can be believed.

LIME (Ribeiro et al. 2016, the authors' library) fits a local linear model to the *continuous* margin
log(score / limit), not to the hard verdict, which is a step and has no slope. Beside it stands what the gateway says,
the statistics with the largest share of the reconstruction error.

Both are put to the same deletion test: what they name is made normal, first the most important, and it is counted how
often the score falls below the limit. If named columns do no better than columns drawn by lot, the explanation is none.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract import columns as cols
from edge_agent.contract.runfolder import RunFolderError
from edge_agent.contract.scaling import Array, row_error
from edge_agent.detection import explain
from edge_agent.progress import Progress
from trainer.judge import runs
from trainer.judge.runs import RunFolder
from trainer.report.findings import Figure, Findings, Series, Table

PROG = "botwatch trainer explain"

TOP = 5
SEEDS = 10
SAMPLES = 3000
"""Perturbed rows of one explanation."""

DETECTIONS, CLASSIFICATIONS = 5, 10
BACKGROUND = 2000
"""Benign train rows whose spread sets how far LIME perturbs."""

DELETED = 50
"""Detections of the deletion test."""

DRAWS = 20
"""Orders drawn by lot that it is held against."""

COUNTS = (1, 2, 3, 5, 10, 20, 50)
"""Of how many statistics, or columns, are made normal."""


@dataclass(frozen=True)
class Reason:
    """One row explained: what it is, columns and weights by LIME (largest first), and how good that is."""

    title: str
    weights: tuple[tuple[str, float], ...]
    fit: float  # R² of the local linear model
    jaccard: float  # mean over pairs of seeds, of the top columns


class Explainer:
    """LIME over a run's distinct columns; a copy of a column moves with its original."""

    def __init__(self, run: RunFolder):
        self.run = run
        self._originals = [i for i, column in enumerate(run.columns) if cols.COPIES.get(column) not in run.columns]
        source = {column: n for n, column in enumerate(run.columns[i] for i in self._originals)}
        self._from = np.array([source[c if c in source else cols.COPIES[c]] for c in run.columns])
        self.names = [run.columns[i] for i in self._originals]
        self.copy_of = self._from
        """Per column of the run, which of ``names`` it is or copies."""
        train = run.rows("train")
        train = train[:: max(1, len(train) // BACKGROUND)]
        self._background = run.scaler.z(run.values[train])[:, self._originals].astype(np.float64)

    def whole(self, distinct: NDArray[Any]) -> Array:
        """Rows of all columns from rows of the distinct ones."""
        return np.asarray(distinct[:, self._from], dtype=np.float32)

    def explain(
        self, z: Array, function: Callable[[Array], NDArray[Any]], seed: int
    ) -> tuple[list[tuple[str, float]], float]:
        """Weights of all distinct columns for one row, largest first, and R²; ``function`` maps scaled rows to (n,)."""
        from lime.lime_tabular import LimeTabularExplainer

        explainer = LimeTabularExplainer(
            self._background,
            mode="regression",
            feature_names=self.names,
            discretize_continuous=False,  # bins around a row far outside the benign range hold nothing else
            sample_around_instance=True,
            random_state=seed,
        )
        told = explainer.explain_instance(
            z[self._originals].astype(np.float64),
            lambda rows: np.asarray(function(self.whole(rows)), dtype=np.float64),
            num_features=len(self.names),
            num_samples=SAMPLES,
        )
        # local_exp of a regression is under key 1; weights are per column, not per bin
        weights = sorted(((self.names[i], float(w)) for i, w in told.local_exp[1]), key=lambda item: -abs(item[1]))
        return weights, float(told.score)


def jaccard(sets: Sequence[set[str]]) -> float:
    """Mean overlap of all pairs of sets: shared over all.

    >>> jaccard([{"a", "b"}, {"b", "c"}])
    0.3333333333333333
    """
    pairs = list(itertools.combinations(sets, 2))
    return float(np.mean([len(a & b) / len(a | b) for a, b in pairs])) if pairs else 1.0


def analyse(path: Path) -> Findings:
    """Explanations of rows of a run folder; RunError when it is none."""
    return explained(runs.load(path), f"{PROG} {path}")


def explained(run: RunFolder, command: str, seeds: int = SEEDS) -> Findings:
    """Some detections and classifications explained, with fidelity and stability, and the deletion test of more."""
    explainer, predict = Explainer(run), run.autoencoder()
    limit = run.decision.full.limit

    def score(z: Array) -> Array:
        return row_error(z, predict(run.scaler.network_input(z)))

    def margin(z: Array) -> NDArray[Any]:
        return np.log(np.maximum(score(z), 1e-9) / limit)

    chosen = _detections(run, score, limit, DETECTIONS)
    put_to_test = _detections(run, score, limit, DELETED)
    detections, classes = [], []
    classify = run.classifier()
    names = [name for name in run.classes if name != "benign"] if classify is not None else []
    with Progress("explaining", len(chosen) + min(len(names), CLASSIFICATIONS) + 1) as progress:
        for row in chosen:
            detections.append(_detection(run, explainer, score, margin, row, seeds))
            progress.step(note=detections[-1].title)
        for name in names[:CLASSIFICATIONS] if classify is not None else []:
            rows = np.flatnonzero(run.label == name)
            if not len(rows):
                continue
            at, z = run.classes.index(name), run.scaler.z(run.values[rows[len(rows) // 2]][None])[0]

            def odds(rows: Array, at: int = at) -> NDArray[Any]:
                assert classify is not None
                p = np.clip(classify(run.scaler.network_input(rows))[:, at].astype(np.float64), 1e-7, 1 - 1e-7)
                return np.asarray(np.log(p / (1 - p)))  # the probability itself is flat where the network is sure

            told = [explainer.explain(z, odds, seed) for seed in range(seeds)]
            tops = [{column for column, _ in weights[:TOP]} for weights, _ in told]
            classes.append(Reason(f"class {name}", tuple(told[0][0][:TOP]), told[0][1], jaccard(tops)))
            progress.step(note=f"class {name}")
        z = run.scaler.z(run.values[put_to_test])
        error = (z - predict(run.scaler.network_input(z))) ** 2
        weights = np.stack([_aligned(explainer, explainer.explain(row, margin, seed=0)[0]) for row in z])
        curves = deletion(explainer, z, lambda rows: score(rows) < limit, weights, error)
        progress.step(note="deletion test")
    return _findings(run, detections, classes, curves, len(z), command, seeds)


def _detections(run: RunFolder, score: Callable[[Array], Array], limit: float, most: int) -> list[int]:
    """Rows to explain: of each attack those above the limit, evenly spread, up to ``most`` in all; where there are no
    attacks, the highest benign test rows."""
    above = []
    for rows in run.attacks().values():
        rows = rows[score(run.scaler.z(run.values[rows])) > limit]
        if len(rows):
            above.append(rows)
    if not above:
        rows = run.rows("test")
        order = np.argsort(score(run.scaler.z(run.values[rows])))[::-1]
        return [int(rows[i]) for i in order[:most]]
    above = above[:: max(1, len(above) // most)][:most]
    each = max(1, most // len(above))
    return [int(rows[i]) for rows in above for i in np.unique(np.linspace(0, len(rows), each + 2).astype(int)[1:-1])]


def _detection(
    run: RunFolder,
    explainer: Explainer,
    score: Callable[[Array], Array],
    margin: Callable[[Array], NDArray[Any]],
    row: int,
    seeds: int,
) -> Reason:
    z = run.scaler.z(run.values[row][None])
    told = [explainer.explain(z[0], margin, seed) for seed in range(seeds)]
    return Reason(
        f"{run.label[row]}, {run.device[row]}, score {float(score(z)[0]):.3g} over {run.decision.full.limit:.3g}",
        tuple(told[0][0][:TOP]),
        told[0][1],
        jaccard([{column for column, _ in weights[:TOP]} for weights, _ in told]),
    )


@dataclass(frozen=True)
class Curve:
    """Share of detections that fall below the limit when what is named first is made normal, by how much of it."""

    unit: str  # statistics (at every decay) or columns; a column's copies go with it
    counts: tuple[int, ...]
    lime: tuple[float, ...]
    gateway: tuple[float, ...]
    lot: tuple[float, ...]  # mean over orders drawn by lot


def deletion(
    explainer: Explainer, z: Array, normal: Callable[[Array], NDArray[np.bool_]], weights: Array, error: Array
) -> tuple[Curve, Curve]:
    """The deletion test on scaled rows (n, columns): of statistics, and of single columns.

    ``normal`` says which rows are below the limit. LIME's order is that of its absolute ``weights``, the gateway's that
    of the parts of the ``error``, both (n, columns) and summed over what is deleted together. Made normal is z = 0, the
    mean of benign train rows.
    """
    statistics = [explain.statistic(column) for column in explainer.run.columns]
    groups = sorted(set(statistics))
    units = {"statistics": np.array([groups.index(name) for name in statistics]), "columns": explainer.copy_of}
    rng = np.random.default_rng(explainer.run.seed)
    found = []
    for unit, of in units.items():
        size = int(of.max()) + 1
        member = np.eye(size)[of]  # (columns, units)
        counts = tuple(n for n in COUNTS if n <= size)
        ranks = [np.argsort(np.argsort(-(np.abs(parts) @ member), axis=1), axis=1) for parts in (weights, error)]
        ranks += [rng.random((len(z), size)).argsort(axis=1) for _ in range(DRAWS)]
        shares = np.array(
            [[np.mean(normal(np.where((rank < n)[:, of], np.float32(0), z))) for n in counts] for rank in ranks]
        )
        lime, gateway, lot = shares[0], shares[1], shares[2:].mean(axis=0)
        found.append(Curve(unit, counts, *(tuple(map(float, share)) for share in (lime, gateway, lot))))
    return found[0], found[1]


def _aligned(explainer: Explainer, weights: Sequence[tuple[str, float]]) -> NDArray[Any]:
    """LIME's weights of distinct columns as one per column of the run; copies have none, they go with their original.

    What is deleted together counts a copy once.
    """
    value = dict(weights)
    return np.array([value.get(column, 0.0) for column in explainer.run.columns])


def _findings(
    run: RunFolder,
    detections: list[Reason],
    classes: list[Reason],
    curves: tuple[Curve, Curve],
    deleted: int,
    command: str,
    seeds: int,
) -> Findings:
    reasons = [*detections, *classes]
    lead, warnings = [], []
    for what, group in (("detections", detections), ("classes", classes)):
        if not group:
            continue
        overlap = float(np.mean([reason.jaccard for reason in group]))
        fit = float(np.median([reason.fit for reason in group]))
        lead.append(
            f"LIME on {len(group)} {what}, {seeds} seeds each: the same top {TOP} columns with a mean Jaccard index of "
            f"{overlap:.2f} (goal 0.8), local R² {fit:.2f} in the median (goal 0.7)."
        )
        if overlap < 0.8 or fit < 0.7:
            warnings.append(f"LIME's explanations of {what} do not reach their own goals of stability or fidelity.")
    at = curves[0].counts.index(TOP) if TOP in curves[0].counts else -1
    few, one = ((c.counts[i], c.gateway[i], c.lime[i], c.lot[i]) for c, i in zip(curves, (at, -1), strict=True))
    lead.append(
        f"Deletion test on {deleted} detections: with the first {few[0]} statistics made normal, the score falls below "
        f"the limit in {few[1]:.0%} as the gateway names them, {few[2]:.0%} as LIME does, {few[3]:.0%} drawn by lot "
        f"(goal 80 %). Single columns say less, since an attack moves a statistic at every decay: with {one[0]} of "
        f"them {one[1]:.0%}, {one[2]:.0%} and {one[3]:.0%}."
    )
    if curves[0].gateway[at] < 0.8:
        warnings.append("What the gateway names is not all that raised the score: an attack moves more than that.")
    if max(curves[0].gateway[at], curves[0].lime[at]) <= curves[0].lot[at]:
        warnings.append("What is named explains no more than statistics drawn by lot.")
    rows = tuple(
        (
            reason.title,
            ", ".join(f"{column} {weight:+.3g}" for column, weight in reason.weights),
            reason.fit,
            reason.jaccard,
        )
        for reason in reasons
    )
    columns = (
        "row",
        f"top {TOP} columns and weights",
        "R²",
        "Jaccard",
    )
    figures = tuple(
        Figure(
            "bars",
            f"LIME: {reason.title}",
            (Series("weight", tuple(c for c, _ in reason.weights), tuple(w for _, w in reason.weights)),),
            "weight on log(score / limit)" if reason in detections else "weight on the log odds of the class",
        )
        for reason in (*detections[:3], *classes[:3])
    ) + tuple(
        Figure(
            "lines",
            f"Deletion test, {curve.unit}",
            tuple(
                Series(name, curve.counts, share)
                for name, share in (("gateway", curve.gateway), ("LIME", curve.lime), ("by lot", curve.lot))
            ),
            f"{curve.unit} made normal, the most important first",
            "share of detections that fall below the limit",
        )
        for curve in curves
    )
    return Findings(
        "explanations",
        "Why rows were flagged, and whether to believe it",
        command,
        run.generated,
        tuple(lead),
        tuple(warnings),
        (
            Table(
                "Explanations",
                columns,
                rows,
                "Seeded; a column and its copies are explained as one.",
            ),
            Table(
                "Deletion test: share of detections that fall below the limit",
                ("made normal", "how many", "as the gateway names them", "as LIME does", "by lot"),
                tuple(
                    (curve.unit, *point)
                    for curve in curves
                    for point in zip(curve.counts, curve.gateway, curve.lime, curve.lot, strict=True)
                ),
                "A statistic is made normal at every decay, a column with its copies.",
            ),
        ),
        figures,
        (
            "A local linear model says what would change the score of this row a little, not what caused it; columns "
            "of one stream move together, LIME moves them one by one.",
        ),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `botwatch trainer explain`."""
    parser.description = "Explain detections and classifications of a run by LIME, with stability and a deletion test."
    parser.epilog = f"example:\n  {PROG} runs/home"
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that `botwatch trainer fit` wrote")


def run(args: argparse.Namespace, command: str) -> int:
    """`botwatch trainer explain`: 0, or 2 with the reason."""
    try:
        found = analyse(args.run)
        found.save(args.run)
    except (RunFolderError, OSError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    for line in found.text():
        print(line)
    return 0
