"""`botwatch trainer baselines`: simpler methods on the same rows, at equal false alarms.

Every method gives rows a score, high = anomalous, learnt from benign train rows. All scores are then used as the
detector uses its own: k of w rows above a limit. False alarms are made equal by setting each limit just above the
highest vote of the benign test rows, so that no method alerts there. On a gateway the counts rule is in force
beside the score; what a method adds to that rule is stated, too.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract import bundle as bundles
from edge_agent.contract.scaling import Array
from edge_agent.detection import calibrate
from edge_agent.detection.runtime import Model
from edge_agent.detection.scorer import Scorer
from edge_agent.detection.vote import vote_statistic
from edge_agent.progress import Progress
from trainer.judge import runs
from trainer.judge.audit import rules
from trainer.judge.runs import RunFolder
from trainer.report.findings import Cell, Figure, Findings, Series, Table

PROG = "botwatch trainer baselines"

MARGIN = 2.0
"""The limit of every method, as a multiple of the highest vote of train and optimise rows."""

FIT_ROWS, TEST_ROWS = 20_000, 20_000
"""Benign rows that the methods are fitted on, and rows of each part that they are tried on, at most."""

SUBSAMPLE = 4000
"""Rows for the methods whose cost grows with their square."""

NEIGHBOURS = 5
"""Neighbours of the k-NN distance; LOF takes four times as many."""

GROUP = 10
"""Most columns of one small autoencoder of the ensemble (KitNET's default)."""

BESIDE_COUNTS = ("largest |z|", "PCA")
"""Methods as simple as the counts rule, which might take the autoencoder's place beside it."""

Score = Callable[[NDArray[Any]], NDArray[Any]]
"""Scaled, unclipped rows (n, k) -> scores (n,)."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one method; an attack is the rows of a label and device, in sequence."""

    name: str
    note: str
    alerted: int
    attacks: int
    rows_to_vote: float | None  # median over the attacks alerted
    above: float  # mean share of an attack's rows above the limit
    false_votes: int  # benign test devices alerted under the limit that train and optimise rows give
    us_per_row: float
    with_counts: int | None = None  # attacks alerted by it or by the counts rule; None where rows have no counts


def methods(run: RunFolder, seed: int, fit_rows: int = FIT_ROWS) -> dict[str, tuple[str, Score]]:
    """Fit each method on at most ``fit_rows`` benign train rows: name -> (description, score)."""
    from sklearn.decomposition import PCA
    from sklearn.ensemble import IsolationForest
    from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
    from sklearn.svm import OneClassSVM

    train = run.rows("train")
    train = train[:: max(1, len(train) // fit_rows)]
    z = _bounded(run.scaler.z(run.values[train]))
    few = z[:: max(1, len(z) // SUBSAMPLE)]
    q1, q3 = np.quantile(z, 0.25, axis=0), np.quantile(z, 0.75, axis=0)
    low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
    pca = PCA(0.95, svd_solver="full", random_state=seed).fit(z)
    forest = IsolationForest(n_estimators=100, random_state=seed).fit(few)
    svm = OneClassSVM(nu=0.01, gamma="scale").fit(few)
    lof = LocalOutlierFactor(NEIGHBOURS * 4, novelty=True).fit(few)
    near = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(few)
    ensemble = _ensemble(z, seed)

    def residual(rows: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(((rows - pca.inverse_transform(pca.transform(rows))) ** 2).mean(axis=1))

    return {
        "largest |z|": ("one column is far from normal", lambda rows: np.abs(rows).max(axis=1)),
        "box plot": (
            "share of columns outside 1.5 interquartile ranges",
            lambda rows: ((rows < low) | (rows > high)).mean(axis=1),
        ),
        "PCA": (f"residual of {pca.n_components_} components (95 % of variance)", residual),
        "isolation forest": ("100 trees", lambda rows: -forest.score_samples(rows)),
        "one-class SVM": (f"radial kernel, {len(few):,} rows", lambda rows: -svm.score_samples(rows)),
        "LOF": (f"local outlier factor, {len(few):,} rows", lambda rows: -lof.score_samples(rows)),
        "k-NN": (
            f"distance to {NEIGHBOURS} of {len(few):,} rows",
            lambda rows: near.kneighbors(rows)[0].mean(axis=1),
        ),
        "KitNET-style": ("small autoencoders on groups of columns, one on their errors", ensemble),
    }


def _bounded(z: Array) -> Array:
    """Return rows bounded so that distances and sums of squares do not overflow."""
    return np.asarray(np.clip(z, -1e6, 1e6), dtype=np.float32)


def _ensemble(z: Array, seed: int) -> Score:
    """Fit an ensemble like KitNET (Mirsky et al. 2018): columns in groups by correlation, an autoencoder for each."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from sklearn.neural_network import MLPRegressor

    spread = z.std(axis=0) > 0
    correlation = np.eye(z.shape[1])
    correlation[np.ix_(spread, spread)] = np.corrcoef(z[:, spread], rowvar=False)
    distance = np.clip(1 - correlation, 0, 2)[np.triu_indices(z.shape[1], 1)]
    tree = linkage(distance, "average")
    cuts = range(max(1, z.shape[1] // GROUP), z.shape[1] + 1)
    labels = next(
        group for n in cuts if np.bincount(group := fcluster(tree, n, "maxclust")).max() <= GROUP or n == z.shape[1]
    )
    groups = [np.flatnonzero(labels == name) for name in np.unique(labels)]

    def small(rows: NDArray[Any]) -> Any:
        hidden = max(1, int(np.ceil(0.75 * rows.shape[1])))
        return MLPRegressor(
            hidden_layer_sizes=(hidden,),
            activation="tanh",
            max_iter=15,
            batch_size=256,
            learning_rate_init=4e-3,
            random_state=seed,
        ).fit(rows, rows if rows.shape[1] > 1 else rows[:, 0])

    def errors(rows: NDArray[Any], networks: list[Any]) -> NDArray[Any]:
        clipped = np.clip(rows, -10, 10)
        return np.stack(
            [
                ((rows[:, at] - net.predict(clipped[:, at]).reshape(len(rows), -1)) ** 2).mean(axis=1)
                for at, net in zip(groups, networks, strict=True)
            ],
            axis=1,
        )

    with catch_warnings():
        simplefilter("ignore")  # of stopping before convergence: KitNET stops after one pass, too
        clipped = np.clip(z, -10, 10)
        networks = [small(clipped[:, at]) for at in groups]
        inner = np.log1p(errors(z, networks))
        outer = small(inner)

    def score(rows: NDArray[Any]) -> NDArray[Any]:
        inner = np.log1p(errors(rows, networks))
        return np.asarray(((inner - outer.predict(inner).reshape(len(rows), -1)) ** 2).mean(axis=1))

    return score


def compare(
    run: RunFolder,
    bundle: bundles.Bundle | None = None,
    *,
    fit_rows: int = FIT_ROWS,
    test_rows: int = TEST_ROWS,
) -> list[Result]:
    """Try every method and the autoencoder (the bundle's, or Keras') on the run's benign test rows and attacks.

    The autoencoder's result comes first. Methods are fitted on ``fit_rows`` and tried on ``test_rows`` of each part.
    """
    predict = Model(bundle.autoencoder) if bundle else run.autoencoder()
    scorer = Scorer(predict, run.scaler, run.columns)
    attacks = run.attacks()
    parts = {part: run.rows(part) for part in ("train", "optimise", "test")}
    parts["train"] = parts["train"][-test_rows:]
    parts = {part: rows[:test_rows] for part, rows in parts.items()}

    def scaled(score: Score) -> Score:
        return lambda values: score(_bounded(run.scaler.z(values)))

    scores: dict[str, tuple[str, Score]] = {
        "autoencoder": ("as shipped, int8" if bundle else "Keras", scorer.full),
        **{name: (note, scaled(score)) for name, (note, score) in methods(run, run.seed, fit_rows).items()},
    }
    best = None
    if attacks:
        known = np.concatenate([*parts.values(), *attacks.values()])
        best = next(iter(rules(run.values[known], ~run.benign[known], run.columns)), None)
    if best is not None:
        at, sign = run.columns.index(best.column), 1.0 if best.above else -1.0
        scores["one rule"] = (f"{best.column}, chosen with labels", lambda values: sign * values[:, at].astype(float))

    results = []
    with Progress("comparing methods", len(scores)) as progress:
        for name, (note, score) in scores.items():
            results.append(_result(run, name, note, score, parts, attacks))
            progress.step(note=name)
    return results


def counted(run: RunFolder, rows: runs.Index) -> NDArray[np.bool_] | None:
    """Return of each row (in sequence) whether the counts rule votes there; None where the rows have no counts."""
    bounds = {column: bound for column, bound in run.decision.counts.items() if column in run.columns}
    if not bounds:
        return None
    at = np.array([run.columns.index(column) for column in bounds])
    over = (run.values[np.ix_(rows, at)] > np.array(list(bounds.values()))).any(axis=1)
    return np.asarray(vote_statistic(over.astype(np.float64), run.decision.count_votes, run.decision.vote_w) > 0.5)


def counts_alone(run: RunFolder, attacks: dict[tuple[str, str], runs.Index]) -> int | None:
    """Return how many attacks the counts rule alerts alone, under the run's own bounds; None where it has none."""
    votes = [counted(run, rows) for rows in attacks.values()]
    return None if any(vote is None for vote in votes) else sum(bool(vote.any()) for vote in votes if vote is not None)


def _result(
    run: RunFolder,
    name: str,
    note: str,
    score: Score,
    parts: dict[str, runs.Index],
    attacks: dict[tuple[str, str], runs.Index],
) -> Result:
    k, w = run.decision.vote_k, run.decision.vote_w
    began = time.perf_counter()
    scores = {part: np.asarray(score(run.values[rows]), dtype=np.float64) for part, rows in parts.items()}
    seconds = time.perf_counter() - began

    def highest(part: str) -> float:
        return calibrate.highest_vote(scores[part], run.device[parts[part]], k, w) if len(parts[part]) else -np.inf

    lowest = min(float(values.min()) for values in scores.values() if len(values))
    limit = highest("test")
    shipped = max(highest("train"), highest("optimise"))
    shipped = lowest + MARGIN * (shipped - lowest)
    false = 0
    for device in np.unique(run.device[parts["test"]]):
        votes = vote_statistic(scores["test"][run.device[parts["test"]] == device] - lowest, k, w)
        false += bool((votes > shipped - lowest).any())
    to_vote, above, either = [], [], 0
    with_counts = True
    for rows in attacks.values():
        values = np.asarray(score(run.values[rows]), dtype=np.float64)
        above.append(float(np.mean(values > limit)))
        voted = vote_statistic(values - lowest, k, w) > limit - lowest
        if voted.any():
            to_vote.append(int(np.argmax(voted)) + 1)
        of_counts = counted(run, rows)
        with_counts &= of_counts is not None
        either += bool(voted.any() or (of_counts is not None and of_counts.any()))
    return Result(
        name=name,
        note=note,
        alerted=len(to_vote),
        attacks=len(attacks),
        rows_to_vote=float(np.median(to_vote)) if to_vote else None,
        above=float(np.mean(above)) if above else 0.0,
        false_votes=false,
        us_per_row=seconds / max(1, sum(map(len, parts.values()))) * 1e6,
        with_counts=either if with_counts and attacks else None,
    )


def analyse(path: Path, bundle: bundles.Bundle | None = None) -> Findings:
    """Return the comparison on a run folder; RunFolderError when it cannot be read."""
    run = runs.load(path)
    return report(compare(run, bundle), run, f"{PROG} {path}")


def report(results: list[Result], run: RunFolder, command: str) -> Findings:
    """Return the comparison as findings; a simpler method that is better is a warning."""
    ours = results[0]
    warnings, lead = [], []
    if ours.attacks:
        for other in results[1:]:
            faster = (other.rows_to_vote or 1e9) < 0.9 * (ours.rows_to_vote or 1e9)
            if other.alerted > ours.alerted or (other.alerted == ours.alerted and ours.alerted and faster):
                warnings.append(
                    f"{other.name} ({other.note}) beats the autoencoder at equal false alarms: {other.alerted} of "
                    f"{other.attacks} attacks alerted after {_rows(other)}, the autoencoder {ours.alerted} after "
                    f"{_rows(ours)}."
                )
        lead.append(
            f"The autoencoder ({ours.note}) alerts {ours.alerted} of {ours.attacks} attacks without a vote on benign "
            f"test rows, after {_rows(ours)}."
        )
        beside, added = _beside_counts(results, run)
        lead += beside
        warnings += added
        behind = [r for r in results[1:] if r.alerted < ours.alerted]
        if behind:
            lead.append("Behind it: " + ", ".join(f"{r.name} {r.alerted}" for r in behind) + ".")
    else:
        lead.append("The run holds no attack rows: only false votes and speed can be compared.")
    rows: list[tuple[Cell, ...]] = [
        (
            r.name,
            r.note,
            f"{r.alerted}/{r.attacks}",
            r.with_counts,
            r.rows_to_vote,
            r.above,
            r.false_votes,
            r.us_per_row,
        )
        for r in sorted(results, key=lambda r: (-r.alerted, r.rows_to_vote or 1e9))
    ]
    columns = (
        "method",
        "description",
        "attacks alerted",
        "with counts",
        "rows to the vote, median",
        "attack rows above",
    )
    bars = Series("alerted", tuple(r.name for r in results), tuple(float(r.alerted) for r in results))
    return Findings(
        "baselines",
        "Simpler methods at equal false alarms",
        command,
        run.generated,
        tuple(lead),
        tuple(warnings),
        (
            Table(
                "Methods by attacks alerted",
                (*columns, "test devices alerted falsely", "µs/row"),
                tuple(rows),
                f"{run.decision.vote_k} of {run.decision.vote_w} rows above a limit just over the highest benign test "
                "vote. With counts: by the method, or the counts rule under its own bounds. False alerts: under the "
                "limit that train and optimise rows give. µs: this machine, for ratios.",
            ),
        ),
        (Figure("bars", "Attacks alerted at equal false alarms", (bars,), "attacks"),) if ours.attacks else (),
        (
            "Attack rows of the run folder are a bounded sample, in sequence but not in a healthy device's day; the "
            "time after an alarm takes no part, and of the counts rule only its columns.",
            "At equal false alarms on one set of test rows: a method that is lucky there looks better than it is.",
        ),
    )


def _beside_counts(results: list[Result], run: RunFolder) -> tuple[list[str], list[str]]:
    """Return what methods add to the counts rule, and warnings where the autoencoder adds no more than simpler ones."""
    ours, alone = results[0], counts_alone(run, run.attacks())
    if alone is None or ours.with_counts is None:
        return [], []
    simple = [r for r in results[1:] if r.name in BESIDE_COUNTS and r.with_counts is not None]
    named = ", ".join(f"{r.name} {r.with_counts}" for r in (ours, *simple))
    warnings = [
        f"{r.name} beside the counts rule alerts as many attacks as the autoencoder beside it: {r.with_counts} of "
        f"{ours.attacks}, the autoencoder {ours.with_counts}."
        for r in simple
        if (r.with_counts or 0) >= ours.with_counts
    ]
    if alone >= ours.with_counts:
        warnings.append(f"The autoencoder adds no attack to the {alone} that the counts rule alerts alone.")
    return [f"Beside the counts rule, which alone alerts {alone} of {ours.attacks}: {named}."], warnings


def _rows(result: Result) -> str:
    """Return the number of rows after which the method votes, as text."""
    return "no vote" if result.rows_to_vote is None else f"{result.rows_to_vote:.0f} rows (median)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `botwatch trainer baselines`."""
    parser.description = (
        "Compare the autoencoder with simpler methods on a run's rows, at equal false alarms. Prints the findings and\n"
        "writes them into the run folder."
    )
    parser.epilog = f"example:\n  {PROG} runs/home --bundle bundles/home"
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that `botwatch trainer fit` wrote")
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR", help="try the quantised autoencoder of this bundle instead"
    )


def run(args: argparse.Namespace, command: str) -> int:
    """Run `botwatch trainer baselines`: 0, or 2 with the reason."""
    return runs.report_on(
        PROG, args.run, lambda folder: analyse(folder, bundles.load(args.bundle) if args.bundle else None)
    )
