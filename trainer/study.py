"""The experiments of the studies that botwatch started from, with the honest number beside each of theirs.

A preset (configs/protocols) has the settings; `trainer.fit.fit` does the fit itself, so that the run folder is like any
other. This module makes the tables around it: rows, N, Fisher scores, confusion matrices, per-device autoencoders.
Known defects are not imitated silently: `_defects` names each one and measures its effect where the data allows it.
"""

import argparse
import dataclasses
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.bundle import BENIGN
from edge_agent.contract.cli import OK, refuse
from edge_agent.contract.columns import COPIES
from trainer.config import Config
from trainer.report.findings import Cell, Figure, Findings, Series, Table
from trainer.report.training import learning_curve

if TYPE_CHECKING:
    from edge_agent.detection.scorer import Scorer
    from trainer.data.row_table import RowTable
    from trainer.fit.fit import FittedModel
    from trainer.fit.row_parts import Parts

PROG = "botwatch trainer study"

Index = NDArray[np.intp]
Errors = NDArray[np.float64]

GAP_ROWS, GAP_S = 200, 60.0
"""Rows and seconds between the parts of a split in time order that is compared with a random one."""

CLASS_GAP_ROWS = 10
"""Rows between the parts of the classifiers, whose rows are already thinned to a sample."""

MAX_WINDOW = 1000
"""Longest majority window that is tried, in rows."""

ATTACK_ROWS = 20_000
"""Rows of each attack on each device that are scored for the per-device table."""

PRINTED = {"accuracy": 0.8544, "recall": 0.7207, "precision": 0.9838}
"""Figures in the 2021 study's own log for its ten columns and N = 1, against 0.9991 in its conclusion."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `botwatch trainer study`."""
    parser.description = (
        "Repeat an original study by one preset and print its known defects with the honest number beside each. "
        "Presets: seed (slides: one autoencoder, thirds at random), log2021 (the script behind the printed log), "
        "paper (N-BaIoT: one autoencoder per device), nbaiot-live (published rows for live traffic)."
    )
    parser.epilog = f"example:\n  {PROG} seed --data N-BaIoT --out runs/seed"
    parser.add_argument("preset", type=Path, metavar="PRESET", help="name of a preset, or a config file")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="folder of published files, a Parquet file of rows, or a folder of captures with a manifest",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder to write")
    parser.add_argument("--top-n", type=int, metavar="N", help="use only the N best columns by Fisher score")
    parser.add_argument(
        "--partial", action="store_true", help="continue although a file has another number of rows than published"
    )
    parser.add_argument(
        "--float", action="store_true", dest="only_float", help="leave out the quantised model: do not convert"
    )


def run(args: argparse.Namespace, command: str) -> int:
    """Run `botwatch trainer study`; return the exit status."""
    from edge_agent.contract.settings import SettingsError
    from trainer import config

    try:
        chosen = config.load(args.preset, args.data, args.top_n)
    except SettingsError as error:
        return refuse(PROG, error)

    from trainer.data.row_table import DatasetError
    from trainer.fit import autoencoder
    from trainer.fit.row_parts import FitError

    began = time.monotonic()
    try:
        findings = study(chosen, args.out, command, partial=args.partial, quantised=not args.only_float)
    except (SettingsError, DatasetError, FitError, autoencoder.TrainingError) as error:
        return refuse(PROG, error)
    except OSError as error:
        return refuse(PROG, f"{error.filename or args.out}: cannot be written: {error.strerror or error}")
    print("\n".join(findings.text()))
    print(f"wrote {findings.save(args.out)} in {time.monotonic() - began:,.0f} s")
    return OK


@dataclass(frozen=True)
class StudySample:
    """Row numbers that the study measures on: benign parts, and as many attack rows for each of them."""

    optimise: Index
    test: Index
    attack_optimise: Index
    attack_test: Index


@dataclass(frozen=True)
class Arm:
    """One autoencoder and its errors on the rows of a sample."""

    run: "FittedModel"
    sample: StudySample
    optimise: Errors
    test: Errors
    attack_optimise: Errors
    attack_test: Errors

    def tau(self, n: float) -> float:
        """Return mean + n·std of the errors of benign optimise rows."""
        return float(self.optimise.mean() + n * self.optimise.std())


@dataclass(frozen=True)
class Part:
    """The part of the findings that one experiment adds."""

    lead: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    warnings: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()


def study(config: Config, out: Path, command: str, *, partial: bool = False, quantised: bool = True) -> Findings:
    """Make everything that the preset asks for; the run folder of the shared model is written too."""
    from trainer.fit import fit

    counts, labels = _take_stock(config, partial)
    config = dataclasses.replace(config, data=(dataclasses.replace(config.data[0], labels=labels), *config.data[1:]))
    began = time.monotonic()
    table = fit.load(config)
    out.mkdir(parents=True, exist_ok=True)
    last: dict[str, Any] = {}

    def remember(network: Any, *_: object) -> None:
        last[network.name] = network.get_weights()

    main = _arm(config, table, print, remember)
    fit.save(main.run, out, command, time.monotonic() - began)

    parts = [_rows(counts, config, table, main)]
    if len(main.attack_test):
        left_out = tuple(label for label in config.study.leave_out if any(label == name for _, name in counts))
        classified = _classifiers(config, table) if config.classifier.enabled else {}
        parts += [_detection(config, main), _fisher(config, table), _classification(config, table, classified)]
        if config.split.order == "random":
            parts.append(_defects(config, table, main, last["autoencoder"], classified, left_out))
    else:
        parts.append(Part(limits=("There are no attack rows: nothing here says whether attacks are detected.",)))
    if config.study.per_device:
        parts.append(_per_device(config, table, main))
    if quantised:
        parts.append(_quantised(config, table, main, out, command))
    parts.append(_limits(config, table))

    joined = {
        field.name: tuple(item for part in parts for item in getattr(part, field.name))
        for field in dataclasses.fields(Part)
    }
    return Findings(
        name="study",
        title=f"The original study's experiments ({_name(command)})",
        command=command,
        generated=table.generated,
        **joined,
    )


def _name(command: str) -> str:
    """Return the name of the preset in a command line."""
    words = shlex.split(command)
    at = words.index("study") + 1
    return Path(words[at]).stem


# ---- rows --------------------------------------------------------------------------------------------------------


def _take_stock(config: Config, partial: bool) -> tuple[dict[tuple[str, str], int | None], tuple[str, ...]]:
    """Return the rows that the first source holds, and the labels that take part.

    DatasetError for a whole data set with other numbers of rows than published, unless ``partial``.
    """
    from trainer.data import catalogue
    from trainer.data.row_table import DatasetError

    entry = config.data[0]
    counts = catalogue.count_rows(entry)
    known = {key: rows for key, rows in counts.items() if rows is not None}
    wrong = catalogue.differences(known)
    if wrong and not partial:
        more = f" (and {len(wrong) - 1} files more)" if len(wrong) > 1 else ""
        raise DatasetError(f"{entry.path}: {wrong[0]}{more}; is the download damaged? --partial continues all the same")
    labels = dict.fromkeys(label for _, label in counts if not entry.labels or label in entry.labels)
    return counts, tuple(label for label in labels if label not in config.study.leave_out)


def _rows(counts: dict[tuple[str, str], int | None], config: Config, table: "RowTable", main: Arm) -> Part:
    """Count the rows of each family in the files, in memory and as published; draw the learning curve."""
    from edge_agent.detection import classify
    from trainer.data import catalogue

    known = {key: rows for key, rows in counts.items() if rows is not None}
    leave_out = config.study.leave_out
    whole, used = catalogue.by_family(known), catalogue.by_family(known, leave_out)
    published, published_used = (
        catalogue.by_family(catalogue.PUBLISHED),
        catalogue.by_family(catalogue.PUBLISHED, leave_out),
    )
    family = np.array([classify.family(label) or label for label in table.labels])[table.label]
    rows: list[tuple[Cell, ...]] = [
        (name, whole.get(name), used.get(name), int((family == name).sum()), published[name], published_used[name])
        for name in (BENIGN, "mirai", "gafgyt")
    ]
    sizes = " / ".join(f"{main.run.metrics['rows'][part]:,}" for part in ("train", "optimise", "test"))
    complete = set(known) >= set(catalogue.PUBLISHED) and not catalogue.differences(known)
    note = (
        "All 89 files have as many rows as published."
        if complete
        else "This is not the whole of N-BaIoT, so the published numbers are only for comparison."
    )
    left_out = f" Left out as in the study: {', '.join(leave_out)}." if leave_out else ""
    rows_table = Table(
        "Rows",
        ("family", "in the files", "of these used", "in memory", "published", "published, of these used"),
        tuple(rows),
        f"{note}{left_out} Benign rows: {sizes} to train, for τ, to test.",
    )
    curve = learning_curve("Learning curve of the autoencoder", main.run.history["autoencoder"], "validation")
    return Part(tables=(rows_table,), figures=(curve,))


# ---- autoencoders ------------------------------------------------------------------------------------------------


def _arm(
    config: Config,
    table: "RowTable",
    say: Callable[[str], None] = lambda line: None,
    watch: Callable[[Any, int, float, float], None] | None = None,
) -> Arm:
    """Fit as ``config`` says and score the rows of its sample."""
    from trainer.fit import fit
    from trainer.fit.row_parts import split

    fitted = fit.fit(config, table, say, watch)
    sample = _sample(split(config, table))
    return Arm(fitted, sample, *_errors(fitted, table, dataclasses.astuple(sample)))


def _sample(parts: "Parts") -> StudySample:
    """Draw attack rows at random, as many as benign optimise and test rows; if there are too few, share them."""
    attack = np.random.default_rng(17).permutation(parts.attack)
    share = min(1.0, len(attack) / max(1, len(parts.optimise) + len(parts.test)))
    first, second = int(share * len(parts.optimise)), int(share * len(parts.test))
    return StudySample(parts.optimise, parts.test, attack[:first], attack[first : first + second])


def _errors(fitted: "FittedModel", table: "RowTable", of: Sequence[Index], network: Any = None) -> tuple[Errors, ...]:
    """Return the mean squared error of each row of several sets, by the fitted network or another of its shape."""
    from edge_agent.detection.scorer import Scorer
    from trainer.fit import autoencoder

    scorer = Scorer(autoencoder.predictor(network or fitted.network), fitted.scaler, fitted.columns)
    return tuple(_scored(scorer, table, fitted.columns, rows) for rows in of)


def _scored(scorer: "Scorer", table: "RowTable", columns: tuple[str, ...], rows: Index) -> Errors:
    """Return the errors of some rows, computed in pieces of bounded memory."""
    from trainer.fit.row_parts import scored

    return scored(scorer.full, table, rows, table.positions(columns)).astype(np.float64)


def _figures(benign: Errors, attack: Errors, tau: float) -> dict[str, Any]:
    """Return the confusion at a threshold and the rates that follow from it; benign rows are the negatives."""
    false, missed = int((benign > tau).sum()), int((attack <= tau).sum())
    hit = len(attack) - missed
    return {
        "tau": tau,
        "fp": false,
        "fn": missed,
        "tn": len(benign) - false,
        "tp": hit,
        "accuracy": _ratio(len(benign) - false + hit, len(benign) + len(attack)),
        "precision": _ratio(hit, hit + false),
        "recall": _ratio(hit, len(attack)),
        "fpr": _ratio(false, len(benign)),
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _best_n(config: Config, main: Arm) -> int:
    """Return the N that is most accurate on labelled optimise rows, as the study chose it; the smallest of equals."""
    accuracies = [
        _figures(main.optimise, main.attack_optimise, main.tau(n))["accuracy"] for n in range(1, config.study.max_n + 1)
    ]
    return 1 + int(np.argmax(accuracies))


def _detection(config: Config, main: Arm) -> Part:
    """Make the study's Table 2, its two-class confusion, and the two kinds of error by N."""
    steps = range(1, config.study.max_n + 1)
    chosen = [_figures(main.optimise, main.attack_optimise, main.tau(n)) for n in steps]
    tested = [_figures(main.test, main.attack_test, main.tau(n)) for n in steps]
    best = _best_n(config, main)
    keys = ("tau", "accuracy", "fp", "fn", "precision", "recall", "fpr")
    grid = Table(
        "τ = mean + N·std (the study's Table 2)",
        ("N", "τ", "accuracy", "FP", "FN", "precision", "recall", "FPR", "accuracy, test", "FPR, test"),
        tuple(
            (n, *(f[key] for key in keys), g["accuracy"], g["fpr"])
            for n, f, g in zip(steps, chosen, tested, strict=True)
        ),
        f"On {len(main.optimise):,} benign optimise rows and {len(main.attack_optimise):,} attack rows, as in the "
        f"study; the last two columns are on {len(main.test):,} benign test rows and {len(main.attack_test):,} other "
        "attack rows. "
        f"Labels would choose N = {best}"
        + (", the edge of the grid: a wider one might choose more." if best == config.study.max_n else "."),
    )
    n = config.decision.n
    tested_at_n = _figures(main.test, main.attack_test, main.tau(n))
    confusion = Table(
        f"Detection at N = {n:g} on test rows",
        ("truth", "called normal", "called attack", "rows"),
        (
            ("normal", tested_at_n["tn"], tested_at_n["fp"], len(main.test)),
            ("attack", tested_at_n["fn"], tested_at_n["tp"], len(main.attack_test)),
        ),
        f"Accuracy {_text(tested_at_n['accuracy'])}, precision {_text(tested_at_n['precision'])}, recall "
        f"{_text(tested_at_n['recall'])}, FPR {_text(tested_at_n['fpr'])}.",
    )
    names = ("called normal", "called attack")
    matrix = (
        Series("normal", names, (tested_at_n["tn"], tested_at_n["fp"])),
        Series("attack", names, (tested_at_n["fn"], tested_at_n["tp"])),
    )
    x = tuple(map(float, steps))
    errors = (
        Series("false positives", x, tuple(f["fpr"] for f in tested)),
        Series("attack rows missed", x, tuple(1 - f["recall"] for f in tested)),
    )
    return Part(
        (
            f"Detection with {len(main.run.columns)} columns and N = {n:g}: accuracy {_text(tested_at_n['accuracy'])}, "
            f"recall {_text(tested_at_n['recall'])}, FPR {_text(tested_at_n['fpr'])} of test rows, split "
            f"{'at random' if config.split.order == 'random' else 'in time order'}.",
        ),
        (grid, confusion),
        (
            Figure("lines", "Errors by N", errors, "N", "share of test rows"),
            Figure("matrix", f"Detection at N = {n:g}", matrix, "verdict", "truth"),
        ),
    )


def _text(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.4f}"


# ---- the quantised model -----------------------------------------------------------------------------------------


def _quantised(config: Config, table: "RowTable", main: Arm, out: Path, command: str) -> Part:
    """Measure the run on the same rows after its conversion to int8, with τ from the scores of the int8 model.

    Raw z has so wide a range that eight bits may not be enough. If the converter refuses the run, the same protocol is
    measured with botwatch's own scaling and training, without a classifier.
    """
    from trainer.config import Scaling, Training
    from trainer.fit import fit
    from trainer.fit.row_parts import FitError

    n = config.decision.n
    rows = [("float32, as the preset", _figures(main.test, main.attack_test, main.tau(n)))]
    try:
        rows.append(_converted("as the preset", out, table, main, n))
        warnings: tuple[str, ...] = ()
    except FitError as error:
        warnings = (f"The preset's own model cannot run on gateways: {error}",)
        usual = dataclasses.replace(
            config,
            scaling=Scaling(),
            autoencoder=Training(),
            classifier=dataclasses.replace(config.classifier, enabled=False),
        )
        try:
            arm = _arm(usual, table)
            folder = out / "own"
            fit.save(arm.run, folder, command, 0.0)
            rows.append(("float32, own scaling and training", _figures(arm.test, arm.attack_test, arm.tau(n))))
            rows.append(_converted("own scaling and training", folder, table, arm, n))
        except FitError as error:
            return Part(
                warnings=(*warnings, f"Neither can the model with botwatch's own scaling and training: {error}")
            )
    how, last = rows[-1]
    sentence = (
        f"As gateways run it ({how}, τ from its own scores, N = {n:g}): accuracy {_text(last['accuracy'])}, FPR "
        f"{_text(last['fpr'])} of test rows."
    )
    keys = ("tau", "accuracy", "recall", "precision", "fpr", "agree")
    columns = ("model", "τ", "accuracy", "recall", "precision", "FPR", "verdicts like float's")
    cells = tuple((name, *(figures.get(key) for key in keys)) for name, figures in rows)
    return Part((sentence,), (Table("The quantised model on the same test rows", columns, cells),), warnings=warnings)


def _converted(what: str, folder: Path, table: "RowTable", arm: Arm, n: float) -> tuple[str, dict[str, Any]]:
    """Convert a run folder and return the variant's name and its figures on the arm's sample; FitError if refused."""
    from edge_agent.contract import bundle as bundles
    from edge_agent.detection import runtime
    from edge_agent.detection.scorer import Scorer
    from trainer.fit.row_parts import FitError

    target = folder / "bundle"
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent.command", "converter", str(folder), "--out", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise FitError(
            (done.stderr.strip() or done.stdout.strip() or "the converter printed no reason").splitlines()[-1]
        )
    try:
        bundle = bundles.load(target)
        scorer = Scorer(runtime.Model(bundle.autoencoder), bundle.scaler, bundle.manifest.columns)
    except (bundles.BundleError, runtime.ModelError, runtime.RuntimeUnavailable) as error:
        raise FitError(str(error)) from error
    optimise, test, attack = (
        _scored(scorer, table, bundle.manifest.columns, rows)
        for rows in (arm.sample.optimise, arm.sample.test, arm.sample.attack_test)
    )
    tau = float(optimise.mean() + n * optimise.std())
    of_float = np.concatenate([arm.test, arm.attack_test]) > arm.tau(n)
    agree = float(np.mean((np.concatenate([test, attack]) > tau) == of_float))
    return f"{bundle.manifest.variant}, {what}", {**_figures(test, attack, tau), "agree": agree}


# ---- Fisher scores -----------------------------------------------------------------------------------------------


def _groups(config: Config, table: "RowTable") -> dict[str, tuple[Index, NDArray[np.int64], tuple[str, ...]]]:
    """Return rows, class numbers and class names of the study's three questions, without those of a single class.

    Detection has as many attack rows as benign ones, families have as many rows of each as benign ones, Mirai types
    have ``rows_per_type`` of each; fewer where there are fewer. Rows are drawn at random, seeded.
    """
    from edge_agent.detection import classify

    rng = np.random.default_rng(17)
    label = np.array(table.labels)[table.label]
    family = np.array([classify.family(name) or name for name in table.labels])[table.label]
    benign = int((family == BENIGN).sum())
    questions: dict[str, tuple[NDArray[np.str_], Sequence[str], int]] = {
        "detection": (np.where(family == BENIGN, BENIGN, "attack"), (BENIGN, "attack"), benign),
        "families": (family, (BENIGN, "gafgyt", "mirai"), benign),
        "Mirai types": (
            label,
            [f"mirai.{n}" for n in ("ack", "scan", "syn", "udp", "udpplain")],
            config.study.rows_per_type,
        ),
    }
    groups = {}
    for name, (of_row, classes, limit) in questions.items():
        present = tuple(c for c in classes if (of_row == c).any())
        if len(present) < 2:
            continue
        drawn = []
        for c in present:
            rows = np.flatnonzero(of_row == c)
            drawn.append(np.sort(rng.choice(rows, limit, replace=False)) if len(rows) > limit else rows)
        numbers = np.repeat(np.arange(len(present)), [len(rows) for rows in drawn])
        groups[name] = (np.concatenate(drawn), numbers, present)
    return groups


def _ten_best(config: Config, table: "RowTable", question: str) -> list[tuple[str, float]]:
    """Return the ten best columns and their Fisher scores, best first, copies included."""
    from trainer.data import ranking

    rows, numbers, _ = _groups(config, table)[question]
    columns = config.model_columns()  # first in the table; columns of the counts rule may follow
    pieces = [table.values[rows, i : min(i + 16, len(columns))] for i in range(0, len(columns), 16)]
    scores = np.concatenate([ranking.fisher(piece, numbers) for piece in pieces])
    order = np.argsort(-np.nan_to_num(scores, nan=-1.0), kind="stable")[:10]
    return [(columns[i], float(scores[i])) for i in order]


def _fisher(config: Config, table: "RowTable") -> Part:
    """Rank the ten best columns for each question, copies included as in the study's Table 1; count distinct ones."""
    tops = {name: _ten_best(config, table, name) for name in _groups(config, table)}
    distinct = {name: len({COPIES.get(c, c) for c, _ in top}) for name, top in tops.items()}
    cells: list[tuple[Cell, ...]] = []
    for i in range(max(len(top) for top in tops.values())):
        cells.append((i + 1, *(cell for top in tops.values() for cell in top[i])))
    sentence = "Of the ten best columns by Fisher score " + ", ".join(
        f"{number} are distinct for {name}" for name, number in distinct.items()
    )
    ranking_table = Table(
        "Ten best columns by Fisher score (the study's Table 1)",
        ("rank", *(word for name in tops for word in (name, "F"))),
        tuple(cells),
        "Raw values, no squash. Columns that repeat others are ranked as in the study; `--top-n` leaves them out. "
        "A ranking needs labelled attacks, so a detector that uses the best columns has seen them.",
    )
    return Part((sentence + "; the rest repeat them.",), (ranking_table,))


# ---- classifiers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Classified:
    """One classifier and its confusion on its test rows."""

    how: str
    """Split of its rows and selection of its epoch, one of `HOW`."""
    classes: tuple[str, ...]
    matrix: NDArray[np.int64]
    parameters: int
    history: dict[str, Any]

    @property
    def accuracy(self) -> float | None:
        """Share of test rows that get their class; None if a class has no test rows, since the share would flatter."""
        return float(np.trace(self.matrix) / self.matrix.sum()) if self.matrix.sum(axis=1).all() else None

    def recall(self, i: int) -> float | None:
        """Return the share of the test rows of class ``i`` that get that class."""
        return _ratio(int(self.matrix[i, i]), int(self.matrix[i].sum()))


HOW = ("random, epoch by test rows", "random, epoch by other rows", "in time order")
"""Splits of a classifier's rows and selections of its epoch; the first is the study's."""


def _classifiers(config: Config, table: "RowTable") -> dict[str, tuple[Classified, ...]]:
    """Train classifiers of families and of Mirai types, each split and selected in the three ways of `HOW`."""
    classified = {}
    for name, (rows, numbers, classes) in _groups(config, table).items():
        if name != "detection":
            classified[name] = tuple(_classified(config, table, rows, numbers, classes, how) for how in HOW)
    return classified


def _classified(
    config: Config,
    table: "RowTable",
    rows: Index,
    numbers: NDArray[np.int64],
    classes: tuple[str, ...],
    how: str,
) -> Classified:
    """Train on 80 % and test on 20 %; a tenth of the 80 % selects the epoch, unless the test rows do."""
    from trainer.data import protocol
    from trainer.fit import autoencoder, classifier, fit
    from trainer.fit.row_parts import FitError

    order: Literal["time", "random"] = "time" if how == HOW[2] else "random"
    split = protocol.Split(0.72, 0.08, 0.2, gap_rows=CLASS_GAP_ROWS, gap_s=0.0, min_rows=CLASS_GAP_ROWS, order=order)
    group = table.capture[rows].astype(np.int64) * len(table.labels) + table.label[rows]
    part, _ = protocol.parts(table.t_ns[rows], group, split)
    train, check, test = (np.flatnonzero(part == code) for code in (protocol.TRAIN, protocol.OPTIMISE, protocol.TEST))
    if how == HOW[0]:
        train, check = np.concatenate([train, check]), test
    at = np.array([table.columns.index(c) for c in config.model_columns() if c in table.columns], dtype=np.intp)
    missing = [name for i, name in enumerate(classes) if not (numbers[train] == i).any()]
    if missing or not len(check) or not len(test):
        raise FitError(f"classifier, {how}: too few rows{' of ' + ', '.join(missing) if missing else ''}")
    scaler = fit.fit_scaler(table.values[np.ix_(rows[train], at)], config)

    def inputs(chosen: Index) -> Any:
        return scaler.network_input(scaler.z(table.values[np.ix_(rows[chosen], at)]))

    network, history = classifier.train(
        (inputs(train), numbers[train]),
        (inputs(check), numbers[check]),
        len(classes),
        config.classifier.training,
        config.seed,
        config.classifier,
    )
    guess = np.argmax(autoencoder.predictor(network)(inputs(test)), axis=1)
    matrix = classifier.confusion(numbers[test], guess, len(classes))
    return Classified(how, classes, matrix, int(network.count_params()), history)


def _classification(config: Config, table: "RowTable", classified: dict[str, tuple[Classified, ...]]) -> Part:
    """Show recall, confusion and learning curve of each classifier, and the slides' output layer beside the softmax."""
    lead, tables, figures = [], [], []
    for name, results in classified.items():
        tables.append(_class_table(name, results))
        figures += [
            learning_curve(f"Learning curve of the classifier of {name}", results[0].history, "validation"),
            _matrix(f"{name}, as the study split and selected", results[0]),
            _matrix(f"{name}, in time order", results[-1]),
        ]
        lead.append(
            f"{name[0].upper()}{name[1:]}: {_text(results[0].accuracy)} of rows right as the study split and selected, "
            f"{_text(results[-1].accuracy)} in time order."
        )
    if "families" in classified:
        tables.append(_heads(config, table, classified["families"][1]))
    return Part(tuple(lead), tuple(tables), tuple(figures))


def _class_table(name: str, results: Sequence[Classified]) -> Table:
    classes = results[0].classes
    return Table(
        f"Classifier of {name}",
        ("split", "accuracy", *(f"recall {c}" for c in classes), "test rows"),
        tuple((r.how, r.accuracy, *(r.recall(i) for i in range(len(classes))), int(r.matrix.sum())) for r in results),
        f"{results[0].parameters:,} parameters. 80 % of the rows train, 20 % test; in time order per capture with "
        f"{CLASS_GAP_ROWS} rows between them. The study did the first: its test rows selected the epoch.",
    )


def _matrix(title: str, result: Classified) -> Figure:
    return Figure(
        "matrix",
        f"Confusion of {title}",
        tuple(
            Series(name, result.classes, tuple(float(v) for v in result.matrix[i]))
            for i, name in enumerate(result.classes)
        ),
        "called",
        "truth",
    )


def _heads(config: Config, table: "RowTable", softmax: Classified) -> Table:
    """Compare the slides' output min(1, max(0, w·h + b)) with the softmax, for families, split at random."""
    other = dataclasses.replace(config, classifier=dataclasses.replace(config.classifier, head="clipped"))
    rows, numbers, classes = _groups(config, table)["families"]
    clipped = _classified(other, table, rows, numbers, classes, HOW[1])
    return Table(
        "Output of the classifier: softmax against the slides' clipped line",
        ("head", "accuracy", *(f"recall {c}" for c in classes), "epochs"),
        tuple(
            (head, r.accuracy, *(r.recall(i) for i in range(len(classes))), r.history["epochs"])
            for head, r in (("softmax", softmax), ("clipped", clipped))
        ),
        "P = min(1, max(0, w·h + b)) has no gradient outside (0, 1): a class whose rows all start there is never "
        "learnt. It is a baseline only.",
    )


# ---- an autoencoder per device -----------------------------------------------------------------------------------


def alarms(flags: NDArray[np.bool_], w: int) -> NDArray[np.bool_]:
    """Return, per window of ``w`` consecutive rows, True if most are flagged; shape (n - w + 1,), empty for fewer rows.

    >>> alarms(np.array([1, 1, 0, 0], bool), 3).tolist()
    [True, False]
    """
    if len(flags) < w:
        return np.zeros(0, dtype=bool)
    total = np.concatenate([[0], np.cumsum(flags)])
    return np.asarray(total[w:] - total[:-w] > w / 2)


def smallest_window(flags: NDArray[np.bool_]) -> int | None:
    """Return the paper's ws*, the shortest majority window without an alarm on benign rows; None beyond `MAX_WINDOW`.

    >>> smallest_window(np.array([0, 1, 1, 0, 0, 0], bool))
    4
    """
    return next((w for w in range(1, min(len(flags), MAX_WINDOW) + 1) if not alarms(flags, w).any()), None)


@dataclass(frozen=True)
class DeviceModel:
    """One device's own autoencoder in the paper's experiment: its row of the table, and figures that the text needs."""

    device: str
    cells: tuple[Cell, ...]
    row_fpr: float
    window: int | None
    """Shortest majority window without an alarm on benign rows; None if every window alarms."""


def _per_device(config: Config, table: "RowTable", main: Arm) -> Part:
    """Make the paper's experiment: each device's own autoencoder, τ and window, beside the shared model."""
    from trainer.fit.row_parts import is_benign, split

    parts, benign = split(config, table), is_benign(table)
    models = [_device_model(config, table, main, parts, benign, code) for code in np.unique(table.device[parts.test])]
    mean = float(np.mean([model.row_fpr for model in models]))
    high, name = max((model.row_fpr, model.device) for model in models)
    note = (
        f"τ and window (ws*: the shortest majority window without an alarm on optimise rows) as published and as "
        f"obtained here. At most {ATTACK_ROWS:,} rows of each attack; an attack is alarmed if one window is."
    )
    if silent_never := [model.device for model in models if model.window is None]:
        note += f" Every window of up to {MAX_WINDOW:,} rows had an alarm for {', '.join(silent_never)}."
    columns = (
        *("device", "train rows", "epochs", "s", "τ published", "τ", "ws* published", "ws*", "row FPR", "window FPR"),
        *("row FPR, shared model", "row recall, mean", "worst attack", "attacks alarmed"),
    )
    return Part(
        (
            f"Per-device autoencoders: row FPR {mean:.4f} on average over {len(models)} devices, {high:.4f} on the "
            f"worst ({name}); the paper gives 0.007.",
        ),
        (
            Table(
                "One autoencoder per device (the N-BaIoT paper)",
                columns,
                tuple(model.cells for model in models),
                note,
            ),
        ),
    )


def _device_model(
    config: Config, table: "RowTable", main: Arm, parts: "Parts", benign: NDArray[np.bool_], code: int
) -> DeviceModel:
    """Train and measure the autoencoder of the device with this code."""
    from trainer.data import protocol

    device = table.devices[code]
    published = config.study.devices.get(device)
    training = config.autoencoder
    if published is not None:
        training = dataclasses.replace(
            training, learning_rate=published.learning_rate, epochs=published.epochs, patience=published.epochs
        )
    rows = {
        p: np.flatnonzero((table.device == code) & benign & (parts.part == p))
        for p in (protocol.TRAIN, protocol.OPTIMISE, protocol.TEST)
    }
    rows = {p: r[np.argsort(table.t_ns[r], kind="stable")] for p, r in rows.items()}
    began = time.monotonic()
    errors = _own_autoencoder(config, table, rows[protocol.TRAIN], rows[protocol.OPTIMISE], training)
    took = time.monotonic() - began
    optimise, test = (errors(rows[p]) for p in (protocol.OPTIMISE, protocol.TEST))
    tau = float(optimise.mean() + config.decision.n * optimise.std())
    ws = smallest_window(optimise > tau)
    used = ws if ws is not None else MAX_WINDOW
    recalls = {}
    for label in np.unique(table.label[(table.device == code) & ~benign]):
        at = np.flatnonzero((table.device == code) & (table.label == label))[:ATTACK_ROWS]
        flags = errors(at[np.argsort(table.t_ns[at], kind="stable")]) > tau
        recalls[table.labels[label]] = (float(flags.mean()), bool(alarms(flags, used).any()))
    row_fpr = float((test > tau).mean())
    windows = alarms(test > tau, used)
    (of_shared,) = _errors(main.run, table, [rows[protocol.TEST]])
    lowest = min(recalls, key=lambda name: recalls[name][0]) if recalls else None
    cells: tuple[Cell, ...] = (
        device,
        len(rows[protocol.TRAIN]),
        training.epochs,
        round(took, 1),
        None if published is None else published.tr,
        tau,
        None if published is None else published.ws,
        ws,
        row_fpr,
        float(windows.mean()) if len(windows) else None,
        float((of_shared > main.tau(config.decision.n)).mean()),
        None if not recalls else sum(r for r, _ in recalls.values()) / len(recalls),
        None if lowest is None else f"{lowest} {recalls[lowest][0]:.3f}",
        None if not recalls else f"{sum(hit for _, hit in recalls.values())} of {len(recalls)}",
    )
    return DeviceModel(device, cells, row_fpr, ws)


def _own_autoencoder(
    config: Config, table: "RowTable", train: Index, optimise: Index, training: Any
) -> Callable[[Index], Errors]:
    """Train a device's own network and scaler; return a function from row numbers to errors."""
    from edge_agent.contract.scaling import row_error
    from trainer.fit import autoencoder, fit

    at = np.array([table.columns.index(c) for c in config.model_columns()], dtype=np.intp)
    scaler = fit.fit_scaler(table.values[np.ix_(train, at)], config)

    def z(rows: Index) -> Any:
        return scaler.z(table.values[np.ix_(rows, at)])

    network, _ = autoencoder.train(
        scaler.network_input(z(train)), scaler.network_input(z(optimise)), training, config.seed, config.network
    )
    predict = autoencoder.predictor(network)

    def errors(rows: Index) -> Errors:
        values = z(rows)
        return np.asarray(row_error(values, predict(scaler.network_input(values))), dtype=np.float64)

    return errors


# ---- what is wrong with it ---------------------------------------------------------------------------------------


Row = tuple[str, str, Cell, Cell, str]
"""Row of the table of defects: the defect, the quantity, its value as the study did, the honest one, its meaning."""


def _defects(
    config: Config,
    table: "RowTable",
    main: Arm,
    last_weights: Any,
    classified: dict[str, tuple[Classified, ...]],
    left_out: tuple[str, ...],
) -> Part:
    """Show each known defect of the study with its number on this data and the honest one, or a dash for no number."""
    n = config.decision.n
    detect_only = dataclasses.replace(config, classifier=dataclasses.replace(config.classifier, enabled=False))
    as_study = _figures(main.test, main.attack_test, main.tau(n))
    rows = [
        *_of_order(detect_only, table, main),
        _of_left_out(config, table, main, left_out),
        _of_labelled_n(config, main),
        (
            "4 columns ranked with attacks for a detector; the study's file is not its table",
            "distinct columns of the ten best",
            10,
            len({COPIES.get(c, c) for c, _ in _ten_best(config, table, "detection")}),
            "neither the study's fisher.csv nor its Table 1 can be made again; `sweep` shows what few columns cost",
        ),
        ("5 slides and script disagree on the layers", "parameters", *_parameters(config), "slides, script"),
        _of_scaler(detect_only, table, main),
        _of_last_epoch(config, table, main, last_weights),
        (
            "7 the study's conclusion says 0.9991, its log another thing",
            "accuracy, log / here",
            PRINTED["accuracy"],
            as_study["accuracy"],
            f"here: these columns and N = {n:g}, split as the study; recall {_text(as_study['recall'])}, in the log "
            f"{PRINTED['recall']}",
        ),
        *(
            (
                "8 classifier's epoch selected on the test rows",
                f"accuracy, {name}",
                of[0].accuracy,
                of[2].accuracy,
                f"in time order; at random but selected on other rows {_text(of[1].accuracy)}",
            )
            for name, of in classified.items()
        ),
        ("9 LIME explains a hard 0/1 step, unseeded", "", None, None, "no number here: see the explanations"),
        ("10 `train.py 5` crashes, files are missing", "", None, None, "no number: `--top-n 5` works"),
        (
            "11 Table 2 prints 0.992 for N = 10",
            "accuracy, printed / meant",
            0.992,
            round(1 - (245 + 52) / 370_622, 4),
            "from the study's own 245 + 52 errors of 370,622 rows",
        ),
    ]
    shares = [row for row in rows if row[1].startswith(("FPR", "recall", "accuracy, f", "accuracy, M"))]
    worst, gap = max(
        ((row, abs(row[2] - row[3])) for row in shares if isinstance(row[2], float) and isinstance(row[3], float)),
        key=lambda pair: pair[1],
    )
    return Part(
        (f"Of the study's defects {worst[0]} hides most here: {worst[1]} {worst[2]:.4f}, honest {worst[3]:.4f}.",)
        if gap
        else (),
        (
            Table(
                "Known defects of the study, and the honest number beside",
                ("defect", "of what", "as the study", "honest", "honest means"),
                tuple(rows),
                "Both numbers are of these rows unless the line says otherwise.",
            ),
        ),
    )


def _of_order(config: Config, table: "RowTable", main: Arm) -> list[Row]:
    """Compare thirds at random with thirds in time order: row errors, and test rows that also train."""
    from trainer.fit.row_parts import FitError, split

    n = config.decision.n
    timed = dataclasses.replace(
        config,
        split=dataclasses.replace(config.split, order="time", gap_rows=GAP_ROWS, gap_s=GAP_S),
        attack_split=dataclasses.replace(config.attack_split, order="time"),
    )
    at_random, in_order = _figures(main.test, main.attack_test, main.tau(n)), {"fpr": None, "recall": None}
    copied: float | None = None
    means = f"in time order per device, {GAP_ROWS} rows and {GAP_S:g} s between"
    try:
        arm = _arm(timed, table)
        in_order, copied = _figures(arm.test, arm.attack_test, arm.tau(n)), _copied(table, split(timed, table))
    except FitError as error:
        means = f"no number in time order: {error}"
    defect = "1 rows shuffled into thirds, one burst on both sides"
    return [
        (defect, "FPR", at_random["fpr"], in_order["fpr"], means),
        (defect, "recall", at_random["recall"], in_order["recall"], "the same"),
        (
            defect,
            "share of test rows that equal a train row",
            _copied(table, split(config, table)),
            copied,
            "the same",
        ),
    ]


def _copied(table: "RowTable", parts: "Parts") -> float | None:
    """Return the share of benign test rows that equal a train row in every column."""

    def keys(rows: Index) -> NDArray[Any]:
        values = np.ascontiguousarray(table.values[rows])
        return values.view(np.dtype((np.void, values.itemsize * values.shape[1]))).ravel()

    return _ratio(int(np.isin(keys(parts.test), keys(parts.train)).sum()), len(parts.test))


def _of_left_out(config: Config, table: "RowTable", main: Arm, labels: tuple[str, ...]) -> Row:
    """Measure recall on attack rows that the study dropped; they are read separately, thinned, and took no part."""
    from trainer.fit import fit

    n = config.decision.n
    of_study = _figures(main.test, main.attack_test, main.tau(n))["recall"]
    defect = "2 BASHLITE tcp and udp dropped"
    if not labels:
        return defect, "recall", of_study, None, "these rows are not in this data"
    print(f"labels that the study dropped are scored separately: {', '.join(labels)}")
    entry = dataclasses.replace(config.data[0], labels=labels)
    other = fit.load(dataclasses.replace(config, data=(entry,), max_rows=min(config.max_rows, ATTACK_ROWS)))
    attack = np.flatnonzero(np.array([label != BENIGN for label in other.labels])[other.label])
    (errors,) = _errors(main.run, other, [attack])
    recall = float((errors > main.tau(n)).mean())
    return defect, "recall", of_study, recall, f"of {len(attack):,} of the rows dropped, same model and τ"


def _of_labelled_n(config: Config, main: Arm) -> Row:
    """Compare N chosen by labelled attack rows with a τ that has seen no attack."""
    best, quantile = _best_n(config, main), config.decision.quantile
    with_labels = _figures(main.test, main.attack_test, main.tau(best))
    without = _figures(main.test, main.attack_test, main.run.decision.full.quantile)
    return (
        "3 N chosen with labelled attacks",
        f"FPR, N = {best} / no labels",
        with_labels["fpr"],
        without["fpr"],
        f"τ = {quantile:g} quantile of benign optimise rows; recall {_text(without['recall'])} against "
        f"{_text(with_labels['recall'])}",
    )


def _of_scaler(config: Config, table: "RowTable", main: Arm) -> Row:
    """Compare the scaler that has seen optimise rows with one that has not; fit the one that the preset lacks."""
    n, leaks = config.decision.n, config.scaling.fit_on == "train+optimise"
    swapped = dataclasses.replace(config.scaling, fit_on="train" if leaks else "train+optimise")
    other = _arm(dataclasses.replace(config, scaling=swapped), table)
    leaky, clean = (main, other) if leaks else (other, main)
    rates = [_figures(arm.test, arm.attack_test, arm.tau(n))["fpr"] for arm in (leaky, clean)]
    return "5 script fits the scaler on the rows τ comes from too", "FPR", rates[0], rates[1], "train rows only"


def _of_last_epoch(config: Config, table: "RowTable", main: Arm, last_weights: Any) -> Row:
    """Measure τ by the last epoch's weights with tests by the best epoch's."""
    from trainer.fit.libraries import keras

    n, history = config.decision.n, main.run.history["autoencoder"]
    network = keras.models.clone_model(main.run.network)
    network.set_weights(last_weights)
    (of_last,) = _errors(main.run, table, [main.sample.optimise], network)
    mixed = _figures(main.test, main.attack_test, float(of_last.mean() + n * of_last.std()))
    return (
        "6 τ by the last epoch's weights, tests by the best epoch's",
        "FPR",
        mixed["fpr"],
        _figures(main.test, main.attack_test, main.tau(n))["fpr"],
        f"τ by the weights that ship, of epoch {history['best_epoch']} of {history['epochs']}",
    )


def _parameters(config: Config) -> tuple[int, int]:
    """Return the parameters of the slides' autoencoder and of the script's, for the preset's columns."""
    from trainer.config import Network
    from trainer.fit import autoencoder

    columns = config.top_n or len(config.model_columns())
    script = Network((0.75, 0.5, 0.33, 0.25, 0.33, 0.5, 0.75), "floor")
    return tuple(int(autoencoder.build(columns, shape).count_params()) for shape in (Network(), script))  # type: ignore[return-value]


def _limits(config: Config, table: "RowTable") -> Part:
    limits = [
        "One row is one packet: these are shares of packets, not of alarms a person would get.",
        "One seed: small differences are chance.",
    ]
    if any(c.startswith("HH_jit") for c in config.model_columns()):
        limits.append(
            "HH_jit columns take part as in the study; in published rows they carry the date of capture, which a "
            "gateway never sees."
        )
    if config.split.order == "random":
        limits.append("Rows of one capture are in all parts, except in the figures that are said to be in time order.")
    if not table.generated:
        return Part(limits=tuple(limits))
    warning = "Generated traffic: this checks that the code follows the study; it says nothing about detection quality."
    return Part(warnings=(warning,), limits=tuple(limits))
