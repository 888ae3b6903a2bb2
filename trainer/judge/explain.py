"""`botwatch trainer explain`: LIME's reasons for flagged and classified rows, and a test of whether to believe them.

LIME (Ribeiro et al. 2016, the authors' library) fits a local linear model to the *continuous* margin
log(score / limit), not to the hard verdict, which is a step and has no slope. The gateway's own explanation stands
beside it: the statistics with the largest share of the reconstruction error.

Both undergo the same deletion test: the statistics they name are made normal, the most important first, and the test
counts how often the score falls below the limit. An explanation that does no better than random columns explains
nothing.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract import columns as cols
from edge_agent.contract.bundle import BENIGN
from edge_agent.contract.scaling import Array, row_error
from edge_agent.detection import explain
from edge_agent.progress import Progress
from trainer.judge import runs
from trainer.judge.runs import RunFolder
from trainer.report.findings import Figure, Findings, Series, Table

PROG = "botwatch trainer explain"

TOP = 5
"""Columns of an explanation that are shown and compared."""

SEEDS = 10
"""Explanations of one row, each with another seed, that are compared for stability."""

SAMPLES = 3000
"""Perturbed rows of one explanation."""

DETECTIONS, CLASSIFICATIONS = 5, 10
"""Detections and classes that are explained, at most."""

BACKGROUND = 2000
"""Benign train rows whose spread sets how far LIME perturbs."""

DELETED = 50
"""Detections of the deletion test."""

DRAWS = 20
"""Random orders that the deletion test is compared with."""

COUNTS = (1, 2, 3, 5, 10, 20, 50)
"""Numbers of statistics, or columns, that the deletion test makes normal."""


@dataclass(frozen=True)
class Reason:
    """The explanation of one row: columns and weights by LIME (largest first), and how faithful and stable they are."""

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
        """Per column of the run, the index in ``names`` of the column that it is or copies."""
        train = run.rows("train")
        train = train[:: max(1, len(train) // BACKGROUND)]
        self._background = run.scaler.z(run.values[train])[:, self._originals].astype(np.float64)

    def whole(self, distinct: NDArray[Any]) -> Array:
        """Return rows of all columns, from rows of the distinct ones."""
        return np.asarray(distinct[:, self._from], dtype=np.float32)

    def explain(
        self, z: Array, function: Callable[[Array], NDArray[Any]], seed: int
    ) -> tuple[list[tuple[str, float]], float]:
        """Return the weights of all distinct columns for one row, largest first, and R².

        ``function`` maps scaled rows (n, columns) to the values (n,) that are explained.
        """
        from lime.lime_tabular import LimeTabularExplainer

        explainer = LimeTabularExplainer(
            self._background,
            mode="regression",
            feature_names=self.names,
            discretize_continuous=False,  # bins around a row far outside the benign range hold nothing else
            sample_around_instance=True,
            random_state=seed,
        )
        explanation = explainer.explain_instance(
            z[self._originals].astype(np.float64),
            lambda rows: np.asarray(function(self.whole(rows)), dtype=np.float64),
            num_features=len(self.names),
            num_samples=SAMPLES,
        )
        # local_exp of a regression is under key 1; weights are per column, not per bin
        weights = sorted(
            ((self.names[i], float(w)) for i, w in explanation.local_exp[1]), key=lambda item: -abs(item[1])
        )
        return weights, float(explanation.score)


def jaccard(sets: Sequence[set[str]]) -> float:
    """Return the mean overlap of all pairs of sets: shared over all.

    >>> jaccard([{"a", "b"}, {"b", "c"}])
    0.3333333333333333
    """
    pairs = list(itertools.combinations(sets, 2))
    return float(np.mean([len(a & b) / len(a | b) for a, b in pairs])) if pairs else 1.0


def analyse(path: Path) -> Findings:
    """Return explanations of rows of a run folder; RunFolderError when it cannot be read."""
    return explained(runs.load(path), f"{PROG} {path}")


def explained(run: RunFolder, command: str, seeds: int = SEEDS) -> Findings:
    """Explain some detections and classifications, and put further detections to the deletion test.

    Each explanation comes with its fidelity and stability."""
    explainer, predict = Explainer(run), run.autoencoder()
    limit = run.decision.full.limit

    def score(z: Array) -> Array:
        return row_error(z, predict(run.scaler.network_input(z)))

    def margin(z: Array) -> NDArray[Any]:
        return np.log(np.maximum(score(z), 1e-9) / limit)

    chosen = _detections(run, score, limit, DETECTIONS)
    tested = _detections(run, score, limit, DELETED)
    classify = run.classifier()
    names = [name for name in run.classes if name != BENIGN] if classify is not None else []
    detections, classes = [], []
    with Progress("explaining", len(chosen) + min(len(names), CLASSIFICATIONS) + 1) as progress:
        for row in chosen:
            z = run.scaler.z(run.values[row][None])
            of_score = f"score {float(score(z)[0]):.3g} over {limit:.3g}"
            title = f"{run.label[row]}, {run.device[row]}, {of_score}"
            detections.append(_reason(explainer, title, z[0], margin, seeds))
            progress.step(note=title)
        for name in names[:CLASSIFICATIONS]:
            rows = np.flatnonzero(run.label == name)
            if classify is not None and len(rows):
                z = run.scaler.z(run.values[rows[len(rows) // 2]][None])
                odds = _odds(run, classify, run.classes.index(name))
                classes.append(_reason(explainer, f"class {name}", z[0], odds, seeds))
                progress.step(note=f"class {name}")
        z = run.scaler.z(run.values[tested])
        error = (z - predict(run.scaler.network_input(z))) ** 2
        weights = np.stack([_aligned(explainer, explainer.explain(row, margin, seed=0)[0]) for row in z])
        curves = deletion(explainer, z, lambda rows: score(rows) < limit, weights, error)
        progress.step(note="deletion test")
    return _findings(run, detections, classes, curves, len(z), command, seeds)


def _odds(run: RunFolder, classify: Callable[[Array], Array], at: int) -> Callable[[Array], NDArray[Any]]:
    """Return the log odds of a class as a function of scaled rows."""

    def odds(rows: Array) -> NDArray[Any]:
        p = np.clip(classify(run.scaler.network_input(rows))[:, at].astype(np.float64), 1e-7, 1 - 1e-7)
        return np.asarray(np.log(p / (1 - p)))  # the probability itself is flat where the network is sure

    return odds


def _reason(
    explainer: Explainer, title: str, z: Array, function: Callable[[Array], NDArray[Any]], seeds: int
) -> Reason:
    """Explain one scaled row with several seeds: the first one's columns, and how far all agree."""
    explanations = [explainer.explain(z, function, seed) for seed in range(seeds)]
    weights, fit = explanations[0]
    tops = [{column for column, _ in weights[:TOP]} for weights, _ in explanations]
    return Reason(title, tuple(weights[:TOP]), fit, jaccard(tops))


def _detections(run: RunFolder, score: Callable[[Array], Array], limit: float, most: int) -> list[int]:
    """Return rows to explain: rows of each attack above the limit, evenly spread, up to ``most`` in all.

    Where there are no such rows, the highest benign test rows are taken.
    """
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


@dataclass(frozen=True)
class Curve:
    """The share of detections that fall below the limit, by the number of statistics or columns made normal.

    One curve is in the order of LIME, one in that of the gateway, and one is the mean over random orders.
    """

    unit: str  # statistics (at every decay) or columns (with their copies)
    counts: tuple[int, ...]
    lime: tuple[float, ...]
    gateway: tuple[float, ...]
    random: tuple[float, ...]


def deletion(
    explainer: Explainer, z: Array, normal: Callable[[Array], NDArray[np.bool_]], weights: Array, error: Array
) -> tuple[Curve, Curve]:
    """Do the deletion test on scaled rows (n, columns): by statistics, and by single columns.

    ``normal`` gives a mask of the rows below the limit. LIME's order is that of its absolute ``weights``, the gateway's
    that of the parts of the ``error``; both are (n, columns) and summed over the columns that are deleted together.
    A deleted column is set to z = 0, the mean of benign train rows.
    """
    statistics = [explain.statistic(column) for column in explainer.run.columns]
    groups = sorted(set(statistics))
    units = {"statistics": np.array([groups.index(name) for name in statistics]), "columns": explainer.copy_of}
    rng = np.random.default_rng(explainer.run.seed)
    curves = []
    for unit, unit_of in units.items():
        size = int(unit_of.max()) + 1
        member = np.eye(size)[unit_of]  # (columns, units)
        counts = tuple(n for n in COUNTS if n <= size)
        ranks = [np.argsort(np.argsort(-(np.abs(parts) @ member), axis=1), axis=1) for parts in (weights, error)]
        ranks += [rng.random((len(z), size)).argsort(axis=1) for _ in range(DRAWS)]
        shares = np.array(
            [[np.mean(normal(np.where((rank < n)[:, unit_of], np.float32(0), z))) for n in counts] for rank in ranks]
        )
        orders = (shares[0], shares[1], shares[2:].mean(axis=0))
        curves.append(Curve(unit, counts, *(tuple(map(float, share)) for share in orders)))
    return curves[0], curves[1]


def _aligned(explainer: Explainer, weights: Sequence[tuple[str, float]]) -> NDArray[Any]:
    """Return LIME's weights of distinct columns as one per column of the run.

    A copy has weight 0, so that columns which are deleted together count it once, with its original.
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
    lead, warnings = [], []
    for kind, reasons in (("detections", detections), ("classes", classes)):
        if reasons:
            overlap = float(np.mean([reason.jaccard for reason in reasons]))
            fit = float(np.median([reason.fit for reason in reasons]))
            lead.append(
                f"LIME on {len(reasons)} {kind}, {seeds} seeds each: the same top {TOP} columns with a mean Jaccard "
                f"index of {overlap:.2f} (goal 0.8), local R² {fit:.2f} in the median (goal 0.7)."
            )
            if overlap < 0.8 or fit < 0.7:
                warnings.append(f"LIME's explanations of {kind} miss their own goals of stability or fidelity.")
    sentence, doubts = _deletion_sentences(curves, deleted)
    return Findings(
        "explanations",
        "Why rows were flagged, and whether to believe it",
        command,
        run.generated,
        (*lead, sentence),
        (*warnings, *doubts),
        (_explanations_table([*detections, *classes]), _deletion_table(curves)),
        (
            *(_weights_figure(reason, "weight on log(score / limit)") for reason in detections[:3]),
            *(_weights_figure(reason, "weight on the log odds of the class") for reason in classes[:3]),
            *map(_deletion_figure, curves),
        ),
        (
            "A local linear model says what would change the score of this row a little, not what caused it; columns "
            "of one stream move together, LIME moves them one by one.",
        ),
    )


def _deletion_sentences(curves: tuple[Curve, Curve], deleted: int) -> tuple[str, list[str]]:
    """Return the main sentence on the deletion test, and warnings where an explanation explains too little."""
    at = curves[0].counts.index(TOP) if TOP in curves[0].counts else -1
    few, one = ((c.counts[i], c.gateway[i], c.lime[i], c.random[i]) for c, i in zip(curves, (at, -1), strict=True))
    sentence = (
        f"Deletion test on {deleted} detections: with the first {few[0]} statistics made normal, the score falls below "
        f"the limit in {few[1]:.0%} as the gateway names them, {few[2]:.0%} as LIME does, {few[3]:.0%} at random "
        f"(goal 80 %). Single columns say less, since an attack moves a statistic at every decay: with {one[0]} of "
        f"them {one[1]:.0%}, {one[2]:.0%} and {one[3]:.0%}."
    )
    doubts = []
    if few[1] < 0.8:
        doubts.append("The statistics that the gateway names are not all that raised the score: an attack moves more.")
    if max(few[1], few[2]) <= few[3]:
        doubts.append("The named statistics explain no more than random ones.")
    return sentence, doubts


def _explanations_table(reasons: list[Reason]) -> Table:
    rows = tuple(
        (
            reason.title,
            ", ".join(f"{column} {weight:+.3g}" for column, weight in reason.weights),
            reason.fit,
            reason.jaccard,
        )
        for reason in reasons
    )
    columns = ("row", f"top {TOP} columns and weights", "R²", "Jaccard")
    return Table("Explanations", columns, rows, "Seeded; a column and its copies are explained as one.")


def _deletion_table(curves: tuple[Curve, Curve]) -> Table:
    return Table(
        "Deletion test: share of detections that fall below the limit",
        ("made normal", "how many", "as the gateway names them", "as LIME does", "at random"),
        tuple(
            (curve.unit, *point)
            for curve in curves
            for point in zip(curve.counts, curve.gateway, curve.lime, curve.random, strict=True)
        ),
        "A statistic is made normal at every decay, a column with its copies.",
    )


def _weights_figure(reason: Reason, label: str) -> Figure:
    series = Series("weight", tuple(column for column, _ in reason.weights), tuple(w for _, w in reason.weights))
    return Figure("bars", f"LIME: {reason.title}", (series,), label)


def _deletion_figure(curve: Curve) -> Figure:
    orders = (("gateway", curve.gateway), ("LIME", curve.lime), ("at random", curve.random))
    return Figure(
        "lines",
        f"Deletion test, {curve.unit}",
        tuple(Series(name, curve.counts, share) for name, share in orders),
        f"{curve.unit} made normal, the most important first",
        "share of detections that fall below the limit",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `botwatch trainer explain`."""
    parser.description = (
        "Explain detections and classifications of a run by LIME, with their stability and a deletion test. Prints\n"
        "the findings and writes them into the run folder."
    )
    parser.epilog = f"example:\n  {PROG} runs/home"
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that `botwatch trainer fit` wrote")


def run(args: argparse.Namespace, command: str) -> int:
    """Run `botwatch trainer explain`: 0, or 2 with the reason."""
    return runs.report_on(PROG, args.run, analyse)
