"""The effect of quantisation on a device's votes: a bundle against its run's Keras network.

`botwatch converter` bounds how many single rows a conversion may decide otherwise, with the scores of every variant at
hand. Here a finished bundle is judged as a gateway decides: by windows of rows after the vote, apart from those so
close to the limit that any rounding may tip them.

How close that is, is an absolute error, a share of the limit. An error relative to the score would call every window
borderline, since rounding doubles a score that is next to nothing; one measured on the variant at hand would excuse a
broken variant by its own error.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.bundle import BENIGN, Bundle
from edge_agent.detection.runtime import Model
from edge_agent.detection.scorer import Scorer
from edge_agent.detection.vote import vote_statistic
from trainer.judge.runs import RunFolder
from trainer.report.findings import Findings, Table

ERROR_QUANTILE = 0.99
"""The quantile of the shift of benign optimise rows' scores that is held against `MOST_SHIFT`."""

MOST_SHIFT = 0.02
"""The largest such shift, as a share of the limit, that counts as rounding; int8 usually shifts by under 0.005."""

NEAR = 0.04
"""A score within this share of the limit is borderline: rounding shifts a high score by more than a usual one."""

GOAL = 0.9999
"""The share of windows that are not borderline which both sides must decide alike."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Counts of decisions of one kind, of windows or of rows.

    ``alike`` are those that both sides decide alike, ``near`` the borderline ones, and ``clear`` those alike and not
    borderline.
    """

    total: int
    alike: int
    near: int
    clear: int

    def __add__(self, other: "Agreement") -> "Agreement":
        """Return the counts of both."""
        return Agreement(
            total=self.total + other.total,
            alike=self.alike + other.alike,
            near=self.near + other.near,
            clear=self.clear + other.clear,
        )

    @property
    def share(self) -> float:
        """The share that both sides decide alike."""
        return self.alike / self.total

    @property
    def clear_share(self) -> float | None:
        """The same without the borderline ones; None when all are borderline."""
        return self.clear / (self.total - self.near) if self.total > self.near else None


_Line = tuple[str, int, float, int, float | None, float, int, float | None]


def report(bundle: Bundle, run: RunFolder, command: str) -> Findings:
    """Return how often the bundle and the run's Keras network decide alike; a warning says what they do not.

    Each side scores the run's benign test rows and attack rows with its own limit; a window is a row with the rows
    before it, and its decision is whether k of the last w are above. A row or window is borderline when either side's
    score, or k-th largest score, is within `NEAR` of the limit. How far quantisation shifts scores is measured on
    benign optimise rows, which are not judged here. ValueError when run and bundle have other columns.
    """
    shift, by_label = _compare(bundle, run)
    lead, kinds, warnings = [], [], []
    if shift > MOST_SHIFT:
        warnings.append(
            f"Quantisation shifts the scores of 1 % of benign optimise rows by {shift:.2%} of the limit or more; at "
            f"most {MOST_SHIFT:.0%} is rounding."
        )
    for kind, of_kind in (
        ("benign test", [pair for label, pair in by_label.items() if label == BENIGN]),
        ("attack", [pair for label, pair in by_label.items() if label != BENIGN]),
    ):
        if of_kind:
            windows, rows = (_total([pair[i] for pair in of_kind]) for i in (0, 1))
            kinds.append(_line(kind, windows, rows))
            if windows.clear_share is not None and windows.clear_share < GOAL:
                warnings.append(
                    f"int8 and float decide {windows.total - windows.near - windows.clear:,} {kind} windows "
                    f"differently that are not borderline: alike in {windows.clear_share:.4%}, goal {GOAL:.2%}."
                )
            lead.append(
                f"int8 and float decide alike in {windows.share:.4%} of {windows.total:,} {kind} windows after the "
                "vote; "
                + (
                    "all borderline."
                    if windows.clear_share is None
                    else f"in {windows.clear_share:.4%} without the {windows.near:,} borderline ones (goal {GOAL:.2%})."
                )
            )
    of_windows = ("windows", "alike after the vote", "borderline", "alike without them")
    columns = (*of_windows, "alike row by row", "borderline rows", "alike without them ")
    lines = sorted((_line(label, *pair) for label, pair in by_label.items()), key=lambda line: line[2])
    return Findings(
        "parity",
        "What quantisation changes",
        command,
        run.generated,
        tuple(lead),
        tuple(warnings),
        tables=(
            Table(
                "Decisions of the bundle and of its Keras network that agree",
                ("rows", *columns),
                tuple(kinds),
                f"Each with its own limit. Borderline: within {NEAR:.0%} of the limit on either side. Quantisation "
                f"shifts scores of benign optimise rows by {shift:.2%} of the limit (the {ERROR_QUANTILE:.0%} "
                f"quantile); more than {MOST_SHIFT:.0%} is not rounding.",
            ),
            Table("The same by label, worst first", ("label", *columns), tuple(lines)),
        ),
        limits=("Rows of the run folder: a bounded sample, in sequence within each device.",),
    )


def _compare(bundle: Bundle, run: RunFolder) -> tuple[float, dict[str, tuple[Agreement, Agreement]]]:
    """Return the shift of scores as a share of the limit, and by label the agreement of windows and of rows.

    The shift is in units of one limit for both sides, the float side's: a wrong limit of the bundle is no rounding.
    """
    if run.columns != bundle.manifest.columns:
        raise ValueError(f"{run.path}: has other columns than {bundle.path}: they are not of one fit")
    sides = [
        (Scorer(Model(bundle.autoencoder), bundle.scaler, run.columns), bundle.manifest.decision),
        (Scorer(run.autoencoder(), run.scaler, run.columns), run.decision),
    ]

    def scores(index: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return the scores of each side, shape (2, n)."""
        return np.stack([scorer.full(run.values[index]).astype(np.float64) for scorer, _ in sides])

    limits = np.array([[rule.full.limit] for _, rule in sides])
    quantised, exact = scores(run.rows("optimise")) / run.decision.full.limit
    shift = float(np.quantile(np.abs(quantised - exact), ERROR_QUANTILE)) if len(exact) else 0.0
    tests = run.rows("test")
    groups = {(BENIGN, str(device)): tests[run.device[tests] == device] for device in np.unique(run.device[tests])}
    by_label: dict[str, tuple[Agreement, Agreement]] = {}
    for (label, _), index in (groups | run.attacks()).items():
        rows = scores(index) / limits
        votes = np.stack(
            [vote_statistic(of, rule.vote_k, rule.vote_w) for of, (_, rule) in zip(rows, sides, strict=True)]
        )
        pair = _counted(votes), _counted(rows)
        earlier = by_label.get(label)
        by_label[label] = pair if earlier is None else (earlier[0] + pair[0], earlier[1] + pair[1])
    return shift, by_label


def _counted(values: NDArray[np.float64]) -> Agreement:
    """Count decisions from both sides' scores or votes in units of their limits, shape (2, n)."""
    alike = (values[0] > 1.0) == (values[1] > 1.0)
    near = (np.abs(values - 1.0) <= NEAR).any(axis=0)
    return Agreement(
        total=values.shape[1], alike=int(alike.sum()), near=int(near.sum()), clear=int((alike & ~near).sum())
    )


def _total(counts: list[Agreement]) -> Agreement:
    total = counts[0]
    for count in counts[1:]:
        total += count
    return total


def _line(name: str, windows: Agreement, rows: Agreement) -> _Line:
    return (
        name,
        windows.total,
        windows.share,
        windows.near,
        windows.clear_share,
        rows.share,
        rows.near,
        rows.clear_share,
    )
