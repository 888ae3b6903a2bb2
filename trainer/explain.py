"""`botwatch trainer explain`: why rows were flagged and classified, by LIME, and whether that can be believed.

LIME (Ribeiro et al. 2016, the authors' library) fits a local linear model to the *continuous* margin
log(score / limit), not to the hard verdict, which is a step and has no slope. Beside it stands what the gateway says,
the columns with the largest share of the reconstruction error; both are put to the same deletion test.
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
from edge_agent.contract.scaling import Array, row_error
from edge_agent.progress import Progress
from trainer import runs
from trainer.findings import Figure, Findings, Series, Table
from trainer.runs import Run

PROG = "botwatch trainer explain"

TOP = 5
SEEDS = 10
SAMPLES = 3000
"""Perturbed rows of one explanation."""

DETECTIONS, CLASSIFICATIONS = 5, 10
BACKGROUND = 2000
"""Benign train rows whose spread sets how far LIME perturbs."""


@dataclass(frozen=True)
class Reason:
    """One row explained: what it is, columns and weights by LIME (largest first), and how good that is."""

    title: str
    weights: tuple[tuple[str, float], ...]
    fit: float  # R² of the local linear model
    jaccard: float  # mean over pairs of seeds, of the top columns
    neutralised: tuple[bool, ...] = ()  # whether the score falls below the limit without the top columns; without
    gateway: tuple[bool, ...] = ()  # them at every decay; the same for the columns that the gateway would name


class Explainer:
    """LIME over a run's distinct columns; a copy of a column moves with its original."""

    def __init__(self, run: Run):
        self.run = run
        self._originals = [i for i, column in enumerate(run.columns) if cols.COPIES.get(column) not in run.columns]
        source = {column: n for n, column in enumerate(run.columns[i] for i in self._originals)}
        self._from = np.array([source[c if c in source else cols.COPIES[c]] for c in run.columns])
        self.names = [run.columns[i] for i in self._originals]
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


def explained(run: Run, command: str, seeds: int = SEEDS) -> Findings:
    """Some detections and classifications explained, with fidelity, stability and the deletion test."""
    explainer, predict = Explainer(run), run.autoencoder()
    limit = run.decision.full.limit

    def score(z: Array) -> Array:
        return row_error(z, predict(run.scaler.network_input(z)))

    def margin(z: Array) -> NDArray[Any]:
        return np.log(np.maximum(score(z), 1e-9) / limit)

    chosen = _detections(run, score, limit)
    detections, classes = [], []
    classify = run.classifier()
    names = [name for name in run.classes if name != "benign"] if classify is not None else []
    with Progress("explaining", len(chosen) + min(len(names), CLASSIFICATIONS)) as progress:
        for row in chosen:
            detections.append(_detection(run, explainer, score, margin, predict, row, seeds))
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
    return _findings(run, detections, classes, command, seeds)


def _detections(run: Run, score: Callable[[Array], Array], limit: float) -> list[int]:
    """Rows to explain: of each attack the one in the middle of those above the limit, up to `DETECTIONS`; where there
    are no attacks, the highest benign test rows."""
    found = []
    for rows in run.attacks().values():
        above = rows[score(run.scaler.z(run.values[rows])) > limit]
        if len(above):
            found.append(int(above[len(above) // 2]))
    if not found:
        rows = run.rows("test")
        order = np.argsort(score(run.scaler.z(run.values[rows])))[::-1]
        found = [int(rows[i]) for i in order[:DETECTIONS]]
    step = max(1, len(found) // DETECTIONS)
    return found[::step][:DETECTIONS]


def _detection(
    run: Run,
    explainer: Explainer,
    score: Callable[[Array], Array],
    margin: Callable[[Array], NDArray[Any]],
    predict: Callable[[Array], Array],
    row: int,
    seeds: int,
) -> Reason:
    z = run.scaler.z(run.values[row][None])
    told = [explainer.explain(z[0], margin, seed) for seed in range(seeds)]
    tops = [[column for column, _ in weights[:TOP]] for weights, _ in told]
    error = (z - predict(run.scaler.network_input(z)))[0] ** 2
    distinct = [i for i in np.argsort(error)[::-1] if run.columns[i] in explainer.names][:TOP]
    limit = run.decision.full.limit

    def falls(names: Sequence[str]) -> tuple[bool, bool]:
        groups, found = {_statistic(name) for name in names}, []
        for wide in (False, True):
            without = z.copy()
            for i, column in enumerate(run.columns):
                original = cols.COPIES.get(column, column)
                if {column, original} & set(names) or (wide and {_statistic(column), _statistic(original)} & groups):
                    without[0, i] = 0.0  # the mean of benign train rows
            found.append(bool(score(without)[0] < limit))
        return found[0], found[1]

    return Reason(
        f"{run.label[row]}, {run.device[row]}, score {float(score(z)[0]):.3g} over {limit:.3g}",
        tuple(told[0][0][:TOP]),
        told[0][1],
        jaccard([set(top) for top in tops]),
        falls(tops[0]),
        falls([run.columns[i] for i in distinct]),
    )


def _statistic(column: str) -> str:
    """What a column is of, whatever its decay: HH_L0.1_weight -> HH weight."""
    stream, _, rest = column.partition("_L")
    return f"{stream} {rest.partition('_')[2]}"


def _findings(run: Run, detections: list[Reason], classes: list[Reason], command: str, seeds: int) -> Findings:
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
    if detections:
        shares = [
            [float(np.mean([told[wide] for told in kind])) for wide in (0, 1)]
            for kind in ([r.neutralised for r in detections], [r.gateway for r in detections])
        ]
        lead.append(
            f"Deletion test: with the top {TOP} columns made normal the score falls below the limit in "
            f"{shares[0][0]:.0%} (LIME) and {shares[1][0]:.0%} (what the gateway names) of {len(detections)} "
            f"detections; with those statistics made normal at every decay in {shares[0][1]:.0%} and "
            f"{shares[1][1]:.0%}; goal 80 %."
        )
        if max(shares[1]) < 0.8:
            warnings.append(
                "An attack moves more columns than five: what an explanation names is not all that raised the score."
            )
    rows = tuple(
        (
            reason.title,
            ", ".join(f"{column} {weight:+.3g}" for column, weight in reason.weights),
            reason.fit,
            reason.jaccard,
            _word(reason.neutralised),
            _word(reason.gateway),
        )
        for reason in reasons
    )
    columns = (
        "row",
        f"top {TOP} columns and weights",
        "R²",
        "Jaccard",
        "falls without them",
        "falls without gateway's",
    )
    figures = tuple(
        Figure(
            "bars",
            f"LIME: {reason.title}",
            (Series("weight", tuple(c for c, _ in reason.weights), tuple(w for _, w in reason.weights)),),
            "weight on log(score / limit)" if reason in detections else "weight on the log odds of the class",
        )
        for reason in (*detections[:3], *classes[:3])
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
                "Seeded; a column and its copies are explained as one. Falls: without the columns / at every decay.",
            ),
        ),
        figures,
        (
            "A local linear model says what would change the score of this row a little, not what caused it; columns "
            "of one stream move together, LIME moves them one by one.",
        ),
    )


def _word(value: tuple[bool, ...]) -> str | None:
    """Without the columns themselves / without their statistics at every decay."""
    return " / ".join("yes" if one else "no" for one in value) or None


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
    except (runs.RunError, OSError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    for line in found.text():
        print(line)
    return 0
