"""What quantisation changes in what a device's votes say: a bundle against its run's Keras network."""

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.bundle import BENIGN, Bundle
from edge_agent.detection.runtime import Model
from edge_agent.detection.scorer import Scorer
from edge_agent.detection.vote import vote_statistic
from trainer.judge.runs import RunFolder
from trainer.report.findings import Findings, Table

ERROR_QUANTILE = 0.99
"""Of what quantisation does to the scores of benign optimise rows: closer to its limit a score is borderline."""


def report(bundle: Bundle, run: RunFolder, command: str) -> Findings:
    """What quantisation changes in what a device's votes say: the bundle against the run's Keras network.

    Each side scores the run's benign test rows and attack rows with its own limit; a window is a row with those before
    it, and its decision whether k of the last w are above. A row or window is borderline when either side's score, or
    k-th largest score, is no further from the limit than quantisation shifts scores; by how much it does is measured
    on benign optimise rows, which are not judged here. ValueError when run and bundle have other columns.
    """
    if run.columns != bundle.manifest.columns:
        raise ValueError(f"{run.path}: has other columns than {bundle.path}: they are not of one fit")
    sides = [
        (Scorer(Model(bundle.autoencoder), bundle.scaler, run.columns), bundle.manifest.decision),
        (Scorer(run.autoencoder(), run.scaler, run.columns), run.decision),
    ]

    def scores(index: NDArray[np.intp]) -> NDArray[np.float64]:
        """Of each side, shape (2, n)."""
        return np.stack([scorer.full(run.values[index]).astype(np.float64) for scorer, _ in sides])

    limits = np.array([[rule.full.limit] for _, rule in sides])
    quantised, exact = scores(run.rows("optimise"))  # not in units of limits: one that is wrong would hide itself
    shift = np.abs(quantised / np.maximum(exact, np.finfo(np.float64).tiny) - 1.0)
    error = float(np.quantile(shift, ERROR_QUANTILE)) if len(shift) else 0.0
    tests = run.rows("test")
    groups = {(BENIGN, str(device)): tests[run.device[tests] == device] for device in np.unique(run.device[tests])}
    groups |= run.attacks()
    counts: dict[str, NDArray[np.int64]] = {}
    for (label, _), index in groups.items():
        rows = scores(index) / limits
        votes = np.stack([vote_statistic(own, r.vote_k, r.vote_w) for own, (_, r) in zip(rows, sides, strict=True)])
        counted = []
        for values in (votes, rows):
            alike = (values[0] > 1.0) == (values[1] > 1.0)
            near = (np.abs(values - 1.0) <= error).any(axis=0)
            counted += [alike.sum(), near.sum(), (alike & ~near).sum()]
        counts[label] = counts.get(label, np.zeros(7, np.int64)) + np.array([len(index), *counted])
    lead, kinds = [], []
    for kind, of_kind in (
        ("benign test", [c for label, c in counts.items() if label == BENIGN]),
        ("attack", [c for label, c in counts.items() if label != BENIGN]),
    ):
        if of_kind:
            kinds.append(_agreement(kind, np.sum(of_kind, axis=0)))
            _, n, alike, near, clear, *_ = kinds[-1]
            lead.append(
                f"int8 and float decide alike in {alike:.4%} of {n:,} {kind} windows after the vote (goal 99.99 %); "
                + (f"in {clear:.4%} without the {near:,} borderline ones." if clear is not None else "all borderline.")
            )
    by_label = sorted((_agreement(label, counted) for label, counted in counts.items()), key=lambda row: row[2])
    of_windows = ("windows", "alike after the vote", "borderline", "alike without them")
    columns = (*of_windows, "alike row by row", "borderline rows", "alike without them ")
    return Findings(
        "parity",
        "What quantisation changes",
        command,
        run.generated,
        tuple(lead),
        tables=(
            Table(
                "Decisions of the bundle and of its Keras network that agree",
                ("rows", *columns),
                tuple(kinds),
                f"Each with its own limit. Borderline: within {error:.1%} of the limit on either side, which is the "
                f"{ERROR_QUANTILE:.0%} quantile of what quantisation shifts scores of benign optimise rows by.",
            ),
            Table(
                "The same by label, worst first",
                ("label", *columns),
                tuple(by_label),
            ),
        ),
        limits=("Rows of the run folder: a bounded sample, in sequence within each device.",),
    )


_Agreement = tuple[str, int, float, int, float | None, float, int, float | None]


def _agreement(name: str, counted: NDArray[np.int64]) -> "_Agreement":
    """A line of the tables above from counts: rows, and of windows and of rows: alike, borderline, alike and not so."""
    n, votes, near_votes, clear_votes, rows, near_rows, clear_rows = map(int, counted)

    def clear(alike: int, near: int) -> float | None:
        return alike / (n - near) if n > near else None

    return (
        name,
        n,
        votes / n,
        near_votes,
        clear(clear_votes, near_votes),
        rows / n,
        near_rows,
        clear(clear_rows, near_rows),
    )
