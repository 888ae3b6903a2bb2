"""`botwatch trainer audit`: what in a run's rows may make its figures better than the world.

Knows what leaks look like, not which columns of which data set leak: duplicates, rows on both sides of a split, columns
that hold the time of day or of capture, single columns that tell everything. All of it is found in the values.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.runfolder import RunFolderError
from edge_agent.contract.scaling import Array
from trainer.judge import runs
from trainer.judge.runs import Index, RunFolder
from trainer.report.findings import Figure, Findings, Series, Table

PROG = "botwatch trainer audit"

EPOCH = (1.0e9, 2.2e9)
"""Unix times of 2001 to 2039, in seconds: no packet statistic has a reason to lie there."""

ORDERED = 0.97
"""Rank correlation with the order of capture above which a column is a clock; damped counts that fill up reach 0.9."""

SAMPLE = 20_000
REFIT_ROWS, REFIT_EPOCHS = 20_000, 25


@dataclass(frozen=True)
class AuditRule:
    """The best single comparison on one column: rows on one side of ``limit`` are called attacks."""

    column: str
    auc: float  # of the column's values, 0.5 to 1 whichever way it points
    limit: float
    above: bool
    accuracy: float  # balanced over benign and attack rows


def constant(values: Array, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Columns with one value only."""
    return tuple(c for c, spread in zip(columns, np.ptp(values, axis=0), strict=True) if spread == 0)


def duplicates(values: Array, columns: tuple[str, ...]) -> dict[str, str]:
    """Columns that are equal in every row to an earlier one (copy -> original)."""
    first: dict[bytes, str] = {}
    found = {}
    for i, column in enumerate(columns):
        original = first.setdefault(np.ascontiguousarray(values[:, i] + 0.0).tobytes(), column)
        if original != column:
            found[column] = original
    return found


def on_both_sides(values: Array, one: Index, other: Index, digits: int | None = None) -> float:
    """Share of the rows ``other`` that are among the rows ``one``, too: exactly, or to so many significant digits."""
    if not len(other) or not len(one):
        return 0.0
    rows = values[np.concatenate([one, other])].astype(np.float64)
    if digits is not None:
        with np.errstate(divide="ignore"):
            size = np.where(rows == 0, 0, np.floor(np.log10(np.abs(rows))))
        step = 10.0 ** (size - digits + 1)
        rows = np.round(rows / step) * step
    keys = np.ascontiguousarray(rows + 0.0).view(f"V{rows.shape[1] * 8}").reshape(-1)
    known = {key.tobytes() for key in keys[: len(one)]}
    return float(np.mean([key.tobytes() in known for key in keys[len(one) :]]))


def clocks(values: Array, columns: tuple[str, ...], groups: NDArray[np.str_]) -> dict[str, str]:
    """Columns that tell when a row was captured -> how that shows. ``groups`` are the rows in sequence."""
    found = {}
    for i, column in enumerate(columns):
        own = values[:, i].astype(np.float64)
        dates = own[(own > EPOCH[0]) & (own < EPOCH[1])]
        # real dates lie together; a large statistic that passes through the range does not
        if len(dates) >= 3 and np.quantile(dates, 0.9) - np.quantile(dates, 0.1) < 0.02 * np.median(dates):
            found[column] = f"{len(dates):,} rows hold a Unix time, about {dates.max():.0f} s"
            continue
        strengths = []
        for name in np.unique(groups):
            rows = own[groups == name]
            if len(rows) >= 200 and np.ptp(rows) > 0:
                strengths.append(abs(_spearman(rows[:: max(1, len(rows) // 4000)])))
        if strengths and float(np.median(strengths)) > ORDERED:
            found[column] = f"ordered as captured: rank correlation {np.median(strengths):.3f} with the row number"
    return found


def _spearman(values: NDArray[np.float64]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(values, np.arange(len(values))).statistic)


def rules(values: Array, attack: NDArray[np.bool_], columns: tuple[str, ...]) -> list[AuditRule]:
    """The best comparison on each column, the column that tells attacks apart best first."""
    from sklearn.metrics import auc as area
    from sklearn.metrics import roc_curve

    found = []
    for i, column in enumerate(columns):
        own = values[:, i].astype(np.float64)
        if np.ptp(own) == 0:
            continue
        false, true, limits = roc_curve(attack, own, drop_intermediate=True)
        auc = float(area(false, true))
        above = auc >= 0.5
        accuracy = (true + 1 - false) / 2 if above else (false + 1 - true) / 2
        best = int(np.argmax(accuracy))
        found.append(AuditRule(column, max(auc, 1 - auc), float(limits[best]), above, float(accuracy[best])))
    return sorted(found, key=lambda rule: (-rule.auc, rule.column))


def analyse(path: Path) -> Findings:
    """The audit of a run folder; RunError when it is none."""
    run = runs.load(path)
    return audit(run, f"{PROG} {path}")


def audit(run: RunFolder, command: str) -> Findings:
    """Everything suspicious in a run's rows, and what the model makes of them without it."""
    same, still = duplicates(run.values, run.columns), constant(run.values, run.columns)
    everything = np.arange(len(run.values))
    sequence = np.asarray(np.char.add(np.char.add(run.label, " "), run.groups(everything)))
    timed = clocks(run.values, run.columns, sequence)
    lead, warnings, tables, figures = [], [], [], []
    flagged: list[tuple[str, str]] = [
        *((column, f"equal to {original} in every row") for column, original in same.items()),
        *((column, "has one value only") for column in still),
        *timed.items(),
    ]
    lead.append(
        f"{len(same)} of {len(run.columns)} columns repeat another, {len(still)} are constant, "
        f"{len(timed)} tell when a row was captured."
    )
    if timed:
        warnings.append(
            f"{', '.join(list(timed)[:3])}{' and others' if len(timed) > 3 else ''} hold the time of capture: figures "
            "with these columns may tell days apart, not attacks."
        )
    tables.append(Table("Suspicious columns", ("column", "why"), tuple(flagged)))

    sides = []
    for one, other in (("train", "optimise"), ("train", "test"), ("optimise", "test")):
        first, second = run.rows(one)[-SAMPLE:], run.rows(other)[:SAMPLE]
        exact, near = on_both_sides(run.values, first, second), on_both_sides(run.values, first, second, 3)
        sides.append((f"{other} rows also in {one}", len(second), exact, near))
    tables.append(
        Table(
            "Rows on both sides of the split",
            ("which", "rows", "share, exactly", "share, to three digits"),
            tuple(sides),
            f"Benign rows; at most {SAMPLE:,} of each side, those next to the cut.",
        )
    )
    lead.append(f"{sides[1][2]:.2%} of benign test rows are also train rows, {sides[1][3]:.2%} to three digits.")

    attack = ~run.benign
    if attack.any():
        chosen = np.flatnonzero(attack | (run.part == "test"))
        chosen = chosen[:: max(1, len(chosen) // SAMPLE)]
        ranked = rules(run.values[chosen], attack[chosen], run.columns)
        if ranked:
            best = ranked[0]
            lead.append(
                f"One comparison, {best.column} {'>' if best.above else '<='} {best.limit:.4g}, tells attack rows "
                f"apart with an AUC of {best.auc:.4f} and balanced accuracy {best.accuracy:.4f}."
            )
            if best.auc > 0.999:
                warnings.append(
                    f"{best.column} alone tells attack rows from benign ones (AUC {best.auc:.4f}): on these rows a "
                    "high row accuracy proves nothing."
                )
            tables.append(
                Table(
                    "Best single comparisons",
                    ("column", "AUC", "attack when", "balanced accuracy"),
                    tuple(
                        (r.column, r.auc, f"{'>' if r.above else '<='} {r.limit:.4g}", r.accuracy) for r in ranked[:10]
                    ),
                    "Chosen with labels: an advantage that the autoencoder does not have.",
                )
            )
            figures.append(
                Figure(
                    "bars",
                    "How well one column alone tells attack rows apart",
                    (Series("AUC", tuple(r.column for r in ranked[:10]), tuple(r.auc for r in ranked[:10])),),
                    "AUC",
                )
            )
    drop = {column for column, _ in flagged}
    kept = tuple(c for c in run.columns if c not in drop)
    if drop and kept and len(run.rows("optimise")):
        tables.append(_without(run, kept))
    return Findings(
        "audit",
        "Leakage audit",
        command,
        run.generated,
        tuple(lead),
        tuple(warnings),
        tuple(tables),
        tuple(figures),
        ("The audit sees the rows of the run folder, a bounded sample of those fitted on.",),
    )


def _without(run: RunFolder, kept: tuple[str, ...]) -> Table:
    """Two short fits on the same rows, with and without the flagged columns."""
    rows: list[tuple[str, int, float | None, float | None, float | None]] = []
    for name, columns in (("all columns", run.columns), ("without the flagged", kept)):
        at = np.array([run.columns.index(c) for c in columns])
        rows.append((name, len(columns), *_short_fit(run, at)))
    one, two, three = (None if a is None or b is None else b - a for a, b in zip(rows[0][2:], rows[1][2:], strict=True))
    rows.append(("difference", len(kept) - len(run.columns), one, two, three))
    return Table(
        "What dropping the flagged columns changes",
        ("columns", "number", "benign test rows above τ", "attack rows above τ", "AUC"),
        tuple(rows),
        f"Two fits of {REFIT_EPOCHS} epochs on at most {REFIT_ROWS:,} rows, alike but for the columns.",
    )


def _short_fit(run: RunFolder, at: Index) -> tuple[float | None, float | None, float | None]:
    """Row false-positive rate, row recall and AUC of an autoencoder on the columns ``at``."""
    from sklearn.metrics import roc_auc_score

    from edge_agent.contract import scaling
    from edge_agent.detection.scorer import Scorer
    from trainer.config import Training
    from trainer.fit import autoencoder

    train, optimise = (run.values[run.rows(part)[:REFIT_ROWS]][:, at] for part in ("train", "optimise"))
    scaler = scaling.fit(train, run.scaler.squash, run.scaler.clip)
    inputs, validation = (scaler.network_input(scaler.z(v)) for v in (train, optimise))
    training = Training(epochs=REFIT_EPOCHS, batch=256, patience=REFIT_EPOCHS)
    network, _ = autoencoder.train(inputs, validation, training, run.seed)
    scorer = Scorer(autoencoder.predictor(network), scaler, [run.columns[i] for i in at])
    known = scorer.full(optimise).astype(np.float64)
    tau = known.mean() + run.decision.full.n * known.std()
    test, attack = run.rows("test")[:SAMPLE], np.flatnonzero(~run.benign)
    attack = attack[:: max(1, len(attack) // SAMPLE)]
    if not len(test):
        return None, None, None
    quiet = scorer.full(run.values[test][:, at])
    if not len(attack):
        return float(np.mean(quiet > tau)), None, None
    loud = scorer.full(run.values[attack][:, at])
    scores = np.nan_to_num(np.concatenate([quiet, loud]), posinf=3e38)
    truth = np.repeat([0, 1], [len(quiet), len(loud)])
    return float(np.mean(quiet > tau)), float(np.mean(loud > tau)), float(roc_auc_score(truth, scores))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `botwatch trainer audit`."""
    parser.description = (
        "Look for leaks in a run's rows: copies, rows on both sides of the split, clocks, easy columns."
    )
    parser.epilog = f"example:\n  {PROG} runs/home"
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that `botwatch trainer fit` wrote")


def run(args: argparse.Namespace, command: str) -> int:
    """`botwatch trainer audit`: 0, or 2 with the reason."""
    try:
        found = analyse(args.run)
        found.save(args.run)
    except (RunFolderError, OSError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    for line in found.text():
        print(line)
    return 0
