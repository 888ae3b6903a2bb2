"""`botwatch trainer audit`: anything in a run's rows that may make its figures better than they are in the world.

It knows what leaks look like, not which columns of which data set leak: duplicates, rows on both sides of a split,
columns that hold the time of day or of capture, single columns that separate everything. All are found in the values.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
"""Rows that are compared or ranked, at most."""

REFIT_ROWS, REFIT_EPOCHS = 20_000, 25
"""Rows and epochs of the short fits with and without the flagged columns."""


@dataclass(frozen=True)
class AuditRule:
    """The best single comparison on one column: rows on one side of ``limit`` are called attacks."""

    column: str
    auc: float  # of the column's values, 0.5 to 1 whichever way it points
    limit: float
    above: bool
    accuracy: float  # balanced over benign and attack rows

    @property
    def comparison(self) -> str:
        """The comparison with the limit as text, as in "> 12.5"."""
        return f"{'>' if self.above else '<='} {self.limit:.4g}"


def constant(values: Array, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns with one value only."""
    return tuple(c for c, spread in zip(columns, np.ptp(values, axis=0), strict=True) if spread == 0)


def duplicates(values: Array, columns: tuple[str, ...]) -> dict[str, str]:
    """Return the columns that are equal in every row to an earlier one (copy -> original)."""
    first: dict[bytes, str] = {}
    copies = {}
    for i, column in enumerate(columns):
        original = first.setdefault(np.ascontiguousarray(values[:, i] + 0.0).tobytes(), column)
        if original != column:
            copies[column] = original
    return copies


def on_both_sides(values: Array, one: Index, other: Index, digits: int | None = None) -> float:
    """Return the share of the rows ``other`` that are also among the rows ``one``.

    Values are compared to a number of significant ``digits``, or exactly.
    """
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
    """Return the columns that reveal when a row was captured -> how that shows. Rows of a group are in sequence."""
    reasons = {}
    for i, column in enumerate(columns):
        column_values = values[:, i].astype(np.float64)
        dates = column_values[(column_values > EPOCH[0]) & (column_values < EPOCH[1])]
        # real dates lie together; a large statistic that passes through the range does not
        if len(dates) >= 3 and np.quantile(dates, 0.9) - np.quantile(dates, 0.1) < 0.02 * np.median(dates):
            reasons[column] = f"{len(dates):,} rows hold a Unix time, about {dates.max():.0f} s"
            continue
        strengths = []
        for name in np.unique(groups):
            rows = column_values[groups == name]
            if len(rows) >= 200 and np.ptp(rows) > 0:
                strengths.append(abs(_spearman(rows[:: max(1, len(rows) // 4000)])))
        if strengths and float(np.median(strengths)) > ORDERED:
            reasons[column] = f"ordered as captured: rank correlation {np.median(strengths):.3f} with the row number"
    return reasons


def _spearman(values: NDArray[np.float64]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(values, np.arange(len(values))).statistic)


def rules(values: Array, attack: NDArray[np.bool_], columns: tuple[str, ...]) -> list[AuditRule]:
    """Return the best comparison on each column, the column that separates attacks best first."""
    from sklearn.metrics import auc as area
    from sklearn.metrics import roc_curve

    ranked = []
    for i, column in enumerate(columns):
        of_column = values[:, i].astype(np.float64)
        if np.ptp(of_column) == 0:
            continue
        false, true, limits = roc_curve(attack, of_column, drop_intermediate=True)
        auc = float(area(false, true))
        above = auc >= 0.5
        accuracy = (true + 1 - false) / 2 if above else (false + 1 - true) / 2
        best = int(np.argmax(accuracy))
        ranked.append(AuditRule(column, max(auc, 1 - auc), float(limits[best]), above, float(accuracy[best])))
    return sorted(ranked, key=lambda rule: (-rule.auc, rule.column))


def analyse(path: Path) -> Findings:
    """Return the audit of a run folder; RunFolderError when it cannot be read."""
    run = runs.load(path)
    return audit(run, f"{PROG} {path}")


@dataclass
class _Draft:
    """Findings as the parts of an audit add to them."""

    lead: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


def audit(run: RunFolder, command: str) -> Findings:
    """Return everything suspicious in a run's rows, and how the model does without it."""
    draft = _Draft()
    flagged = _audit_columns(run, draft)
    _audit_split(run, draft)
    _audit_single_columns(run, draft)
    columns = tuple(c for c in run.columns if c not in flagged)
    if flagged and columns and len(run.rows("optimise")):
        draft.tables.append(_without(run, columns))
    return Findings(
        "audit",
        "Leakage audit",
        command,
        run.generated,
        tuple(draft.lead),
        tuple(draft.warnings),
        tuple(draft.tables),
        tuple(draft.figures),
        ("The audit sees the rows of the run folder, a bounded sample of those fitted on.",),
    )


def _audit_columns(run: RunFolder, draft: _Draft) -> set[str]:
    """Report columns that copy another, never change, or hold the time; return their names."""
    copies, still = duplicates(run.values, run.columns), constant(run.values, run.columns)
    everything = np.arange(len(run.values))
    sequence = np.asarray(np.char.add(np.char.add(run.label, " "), run.groups(everything)))
    timed = clocks(run.values, run.columns, sequence)
    flagged: list[tuple[str, str]] = [
        *((column, f"equal to {original} in every row") for column, original in copies.items()),
        *((column, "has one value only") for column in still),
        *timed.items(),
    ]
    draft.lead.append(
        f"{len(copies)} of {len(run.columns)} columns repeat another, {len(still)} are constant, "
        f"{len(timed)} reveal when a row was captured."
    )
    if timed:
        draft.warnings.append(
            f"{', '.join(list(timed)[:3])}{' and others' if len(timed) > 3 else ''} hold the time of capture: figures "
            "with these columns may distinguish days, not attacks."
        )
    draft.tables.append(Table("Suspicious columns", ("column", "why"), tuple(flagged)))
    return {column for column, _ in flagged}


def _audit_split(run: RunFolder, draft: _Draft) -> None:
    """Report how many rows of one part are also rows of another."""
    sides = []
    for one, other in (("train", "optimise"), ("train", "test"), ("optimise", "test")):
        first, second = run.rows(one)[-SAMPLE:], run.rows(other)[:SAMPLE]
        exact, near = on_both_sides(run.values, first, second), on_both_sides(run.values, first, second, 3)
        sides.append((f"{other} rows also in {one}", len(second), exact, near))
    draft.tables.append(
        Table(
            "Rows on both sides of the split",
            ("which", "rows", "share, exactly", "share, to three digits"),
            tuple(sides),
            f"Benign rows; at most {SAMPLE:,} of each side, those next to the cut.",
        )
    )
    draft.lead.append(f"{sides[1][2]:.2%} of benign test rows are also train rows, {sides[1][3]:.2%} to three digits.")


def _audit_single_columns(run: RunFolder, draft: _Draft) -> None:
    """Report the columns that alone separate attack rows from benign ones best."""
    attack = ~run.benign
    chosen = np.flatnonzero(attack | (run.part == "test"))
    chosen = chosen[:: max(1, len(chosen) // SAMPLE)]
    ranked = rules(run.values[chosen], attack[chosen], run.columns)[:10] if attack.any() else []
    if not ranked:
        return
    best = ranked[0]
    draft.lead.append(
        f"One comparison, {best.column} {best.comparison}, separates attack rows from benign ones with an AUC of "
        f"{best.auc:.4f} and balanced accuracy {best.accuracy:.4f}."
    )
    if best.auc > 0.999:
        draft.warnings.append(
            f"{best.column} alone separates attack rows from benign ones (AUC {best.auc:.4f}): on these rows a "
            "high row accuracy proves nothing."
        )
    draft.tables.append(
        Table(
            "Best single comparisons",
            ("column", "AUC", "attack when", "balanced accuracy"),
            tuple((rule.column, rule.auc, rule.comparison, rule.accuracy) for rule in ranked),
            "Chosen with labels: an advantage that the autoencoder does not have.",
        )
    )
    draft.figures.append(
        Figure(
            "bars",
            "How well one column alone separates attack rows from benign ones",
            (Series("AUC", tuple(rule.column for rule in ranked), tuple(rule.auc for rule in ranked)),),
            "AUC",
        )
    )


def _without(run: RunFolder, unflagged: tuple[str, ...]) -> Table:
    """Compare two short fits on the same rows, on all columns and on the unflagged ones."""
    rows: list[tuple[str, int, float | None, float | None, float | None]] = []
    for name, columns in (("all columns", run.columns), ("without the flagged", unflagged)):
        at = np.array([run.columns.index(c) for c in columns])
        rows.append((name, len(columns), *_short_fit(run, at)))
    one, two, three = (None if a is None or b is None else b - a for a, b in zip(rows[0][2:], rows[1][2:], strict=True))
    rows.append(("difference", len(unflagged) - len(run.columns), one, two, three))
    return Table(
        "What dropping the flagged columns changes",
        ("columns", "number", "benign test rows above τ", "attack rows above τ", "AUC"),
        tuple(rows),
        f"Two fits of {REFIT_EPOCHS} epochs on at most {REFIT_ROWS:,} rows, alike but for the columns.",
    )


def _short_fit(run: RunFolder, at: Index) -> tuple[float | None, float | None, float | None]:
    """Fit an autoencoder on the columns ``at``; return its row false-positive rate, row recall and AUC."""
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
    """Add the options of `botwatch trainer audit`."""
    parser.description = (
        "Look for leaks in a run's rows: columns that copy others, hold the time or separate attacks alone, and rows\n"
        "on both sides of the split. Prints the findings and writes them into the run folder."
    )
    parser.epilog = f"example:\n  {PROG} runs/home"
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that `botwatch trainer fit` wrote")


def run(args: argparse.Namespace, command: str) -> int:
    """Run `botwatch trainer audit`: 0, or 2 with the reason."""
    return runs.report_on(PROG, args.run, analyse)
