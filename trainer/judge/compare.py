"""`botwatch trainer compare`: the same evaluation over several fits that differ in one thing.

What may differ: which device, attack or source was left out, which columns the model sees, whether devices share a
model, the seed. Every fit is converted, and its quantised bundle is evaluated; limits come from each fit's own benign
train and optimise rows, by the same alarm budget, so no fit is given a threshold that suits its test.
"""

import argparse
import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from edge_agent.config import AgentConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract import captures, cli, settings
from edge_agent.contract import columns as cols
from edge_agent.contract.bundle import BENIGN, BundleError, replace_file
from edge_agent.contract.captures import CaptureManifest
from edge_agent.detection.classify import family
from trainer import config as configs
from trainer.config import Config, DatasetEntry
from trainer.judge import evaluate, rotation
from trainer.judge.evaluation import AttackTrial, Evaluation, bound, stated
from trainer.report.findings import Cell, Figure, Findings, Series, Table
from trainer.traffic.provenance import generator_sha256

PROG = "botwatch trainer compare"

KINDS = ("chrono", "rotate", "lodo", "lofo", "cross", "columns", "models")
TITLES = {
    "chrono": "Later days",
    "rotate": "Each day left out in turn",
    "lodo": "A device nobody trained on",
    "lofo": "An attack nobody trained on",
    "cross": "Another source of traffic",
    "columns": "What columns contribute",
    "models": "One shared model, or one for each device",
}
RESULT = "evaluation.json"
"""The evaluation of a fit in its folder, taken up when the same comparison is made again."""


class CompareError(Exception):
    """A comparison that cannot be made; the message says why."""


@dataclass(frozen=True)
class ComparedFit:
    """One of the fits that are compared, and the manifests it is tried on, each with the folder its files start from.

    ``left_out`` names the device, days, label or family that the fit did not see; ``earlier`` are captures from which
    an agent learns limits on site before it is tried.
    """

    name: str
    config: Config
    tried: tuple[tuple[CaptureManifest, Path], ...]
    left_out: str = ""
    earlier: tuple[tuple[CaptureManifest, Path], ...] = ()


def compared_fits(
    kind: str, config: Config, tried: Sequence[tuple[CaptureManifest, Path]], out: Path
) -> list[ComparedFit]:
    """Return the fits of one kind of comparison; CompareError when the data do not allow it.

    Manifests that a fit needs and that are not there yet are written into ``out``.
    """
    everything = tuple(tried)
    if kind == "chrono":
        return [ComparedFit("later days", config, everything)]
    if kind == "columns":
        return [ComparedFit(name, with_columns, everything) for name, with_columns in _column_sets(config)]
    if kind == "cross":
        return _each_source(config)
    if kind == "rotate":
        return _without_each_day(config, everything, out)
    known = [_manifest(entry) for entry in config.data]
    if kind == "lofo":
        return _without_each_attack(config, known, everything)
    devices = sorted({c.device for manifest, _ in known for c in manifest.captures if c.label == BENIGN})
    if len(devices) < 2:
        raise CompareError(f"{kind} needs two devices or more in the config's data")
    if kind == "lodo":
        return [_without_device(device, config, (*known, *everything)) for device in devices]
    return [
        ComparedFit("shared", config, everything),
        *(_of_device_alone(device, config, everything) for device in devices),
    ]


_Manifests = Sequence[tuple[CaptureManifest, Path]]


def _each_source(config: Config) -> list[ComparedFit]:
    known = [_manifest(entry) for entry in config.data]
    if len(config.data) < 2:
        raise CompareError("cross needs a config with two sources of rows or more")
    return [
        ComparedFit(
            f"fitted on {_source(entry)}",
            replace(config, data=(entry,)),
            tuple(other for j, other in enumerate(known) if j != i),
            " ".join(_source(other) for j, other in enumerate(config.data) if j != i),
        )
        for i, entry in enumerate(config.data)
    ]


def _without_each_day(config: Config, tried: _Manifests, out: Path) -> list[ComparedFit]:
    """Leave each day out; attacks of ``tried`` are put into the days left out."""
    attacks = [(replace(m, captures=tuple(c for c in m.captures if c.label != BENIGN)), root) for m, root in tried]
    try:
        folds = rotation.folds([(entry, *_manifest(entry)) for entry in config.data], out / "days")
    except rotation.RotationError as error:
        raise CompareError(str(error)) from error
    return [
        ComparedFit(
            f"without {fold.name}",
            replace(config, data=fold.data),
            (*fold.judged, *attacks),
            fold.name,
            fold.earlier,
        )
        for fold in folds
    ]


def _without_each_attack(config: Config, known: _Manifests, tried: _Manifests) -> list[ComparedFit]:
    """Leave each label, then each family, out of the fit."""
    labels = sorted({c.label for manifest, _ in known for c in manifest.captures if c.label != BENIGN})
    families = sorted({family(label) for label in labels} - {""})
    groups = {label: {label} for label in labels}
    groups |= {f"family {name}": {label for label in labels if family(label) == name} for name in families}
    fits = []
    for name, left_out in groups.items():
        if remaining := tuple(label for label in labels if label not in left_out):
            data = tuple(_only(entry, labels=(BENIGN, *remaining)) for entry in config.data)
            fits.append(ComparedFit(f"without {name}", replace(config, data=data), tuple(tried), name))
    if not fits:
        raise CompareError("lofo needs captures of two attacks or more in the config's data")
    return fits


def _without_device(device: str, config: Config, manifests: _Manifests) -> ComparedFit:
    data = tuple(_only(entry, devices=tuple(d for d in _devices(entry) if d != device)) for entry in config.data)
    tried = tuple((_of(manifest, device), root) for manifest, root in manifests)
    return ComparedFit(f"without {device}", replace(config, data=data), tried, device)


def _of_device_alone(device: str, config: Config, manifests: _Manifests) -> ComparedFit:
    data = tuple(_only(entry, devices=(device,)) for entry in config.data if device in _devices(entry))
    tried = tuple((_of(manifest, device), root) for manifest, root in manifests)
    alone = replace(config, data=data, classifier=replace(config.classifier, enabled=False))
    return ComparedFit(f"own model of {device}", alone, tried)


def _column_sets(config: Config) -> Iterator[tuple[str, Config]]:
    """Yield the fits that show what the per-device columns and the counts rule contribute."""
    counts = cols.COUNT_COLUMNS
    published = tuple(cols.SCHEMAS[cols.CLEAN])
    both = (cols.CLEAN, cols.DEVICE)
    quiet = replace(config.decision, floors={}, warmup_floors={})
    alone = replace(config.decision, n=1e6)  # no vote of the score reaches its limit
    yield "115, no counts rule", replace(config, schemas=(cols.CLEAN,), columns=(), decision=quiet)
    yield "115 + counts rule", replace(config, schemas=(cols.CLEAN,), columns=())
    yield (
        "125 (counts in the model), no counts rule",
        replace(config, schemas=both, columns=(*published, *counts), decision=quiet),
    )
    yield "140, no counts rule", replace(config, schemas=both, columns=(), decision=quiet)
    yield "140 + counts rule (default)", replace(config, schemas=both, columns=())
    yield "125 without HH_jit + counts rule", replace(config, schemas=both, columns=(), drop_columns=("HH_jit",))
    yield "counts rule alone", replace(config, schemas=both, columns=(), decision=alone)


def _manifest(entry: DatasetEntry) -> tuple[CaptureManifest, Path]:
    """Return the manifest of a source of rows and its root; CompareError when it is not one of captures."""
    if entry.kind != "captures":
        raise CompareError(f"{entry.path}: only captures can be left out by device or attack, not {entry.kind}")
    manifest, _, root = captures.load(entry.path, entry.root)
    return manifest, root


def _devices(entry: DatasetEntry) -> tuple[str, ...]:
    manifest, _ = _manifest(entry)
    return entry.devices or tuple(dict.fromkeys(c.device for c in manifest.captures))


def _only(entry: DatasetEntry, devices: tuple[str, ...] = (), labels: tuple[str, ...] = ()) -> DatasetEntry:
    """Return the entry with some of its devices or labels; labels that it does not have are left out."""
    manifest, _ = _manifest(entry)
    present = {c.label for c in manifest.captures}
    return replace(
        entry,
        devices=devices or entry.devices,
        labels=tuple(x for x in labels if x in present) if labels else entry.labels,
    )


def _of(manifest: CaptureManifest, device: str) -> CaptureManifest:
    """Return the benign captures of one device, and every attack, to be put into its day."""
    return replace(manifest, captures=tuple(c for c in manifest.captures if c.label != BENIGN or c.device == device))


def _source(entry: DatasetEntry) -> str:
    return entry.path.parent.name if entry.path.name == captures.MANIFEST else entry.path.stem


def evaluated(fit: ComparedFit, folder: Path, seed: int, agent: AgentConfig) -> Evaluation:
    """Fit, convert and evaluate in ``folder``, unless an equal earlier call has left its result there."""
    text = yaml.safe_dump(configs.plain(replace(fit.config, seed=seed)), sort_keys=False, allow_unicode=True)
    files = [str(root / c.name) for manifest, root in (*fit.tried, *fit.earlier) for c in manifest.captures]
    marks = {
        "of": hashlib.sha256("\n".join([text, *files, generator_sha256()]).encode()).hexdigest(),
        "agent": hashlib.sha256(repr(agent).encode()).hexdigest(),
    }
    result_path = folder / RESULT
    stored = json.loads(result_path.read_bytes()) if result_path.is_file() else {}
    stored_marks = {key: stored.pop(key, None) for key in marks}
    if stored_marks == marks:
        return settings.build(Evaluation, stored, str(result_path))
    if stored_marks["of"] != marks["of"]:
        _fit_and_convert(fit.name, text, folder)
    result = evaluate.evaluate(
        bundles.load(folder / "bundle"), fit.tried, agent, learn=bool(fit.left_out), earlier=fit.earlier
    )
    replace_file(result_path, json.dumps(dataclasses.asdict(result) | marks, indent=1).encode())
    return result


def _fit_and_convert(name: str, config: str, folder: Path) -> None:
    """Make run and bundle of a config's text in ``folder``, which is emptied first; CompareError when that fails."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    for words in (
        ("trainer", "fit", folder / "config.yaml", "--out", folder / "run"),
        ("converter", folder / "run", "--out", folder / "bundle"),
    ):
        command = [sys.executable, "-m", "edge_agent.command", *map(str, words)]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            reasons = [line for line in process.stderr.splitlines() if line.startswith("botwatch")]
            reason = " ".join(reasons) or process.stderr[-300:]
            raise CompareError(f"{name}: `botwatch {words[0]}` failed: {reason}")


Results = Sequence[tuple[ComparedFit, Sequence[Evaluation]]]
"""Each fit with its evaluations, one of each seed."""


def report(kind: str, results: Results, command: str) -> Findings:
    """Return all fits side by side; with several seeds also the mean and its 95 % interval over them."""
    seeds = max(len(evaluations) for _, evaluations in results)
    rows = [_row(fit, evaluations) for fit, evaluations in results]
    columns = ("fit", "false alerts", "device-days", "95 % bound a week", "worst rows flagged")
    tables = [
        Table(
            TITLES[kind],
            (*columns, "real attacks alerted", "generated attacks alerted", "packets, median", "packets, most"),
            tuple(rows),
            f"Quantised bundles; {seeds} seed{'s' * (seeds > 1)} each. Attacks are put into each device's day.",
        )
    ]
    worst = max(rows, key=lambda row: float(row[1] or 0))
    days = [day for _, evaluations in results for one in evaluations for day in one.days]
    false = stated(sum(day.alerts for day in days), sum(day.days for day in days))
    lead = [f"False device alerts of all fits: {false}; the most: {worst[0]}, {worst[1]}."]
    limits = []
    if kind == "lodo":
        tables.append(_learnt(results))
        alerts = [row for row in tables[-1].rows if isinstance(row[3], int)]
        lead.append(
            f"With limits learnt on site: {sum(int(row[3] or 0) for row in alerts)} false alerts on {len(alerts)} "
            f"captures of devices that were not in the fit; with the shared limits "
            f"{sum(int(row[2] or 0) for row in alerts)}."
        )
    if kind == "rotate":
        sentence, by_device = rotation.table([one for _, evaluations in results for one in evaluations])
        lead.insert(0, sentence)
        tables.insert(0, by_device)
    if kind == "lofo":
        tables.append(_unknown(results))
        limits.append(
            "The autoencoder never sees an attack: to it every attack is unseen. What is left out here is left out of "
            "the classifier."
        )
    if seeds > 1:
        tables.append(_intervals(results))
    bars = [
        Series(name, tuple(str(row[0]) for row in rows), tuple(_share(row[at]) for row in rows))
        for name, at in (("real attacks", 5), ("generated attacks", 6))
        if any(row[at] is not None for row in rows)
    ]
    return Findings(
        f"protocol-{kind}" if kind != "columns" else "columns",
        TITLES[kind],
        command,
        any(one.generated for _, evaluations in results for one in evaluations),
        tuple(lead),
        tables=tuple(tables),
        figures=(Figure("bars", "Share of attacks alerted", tuple(bars), "share"),) if bars else (),
        limits=tuple(limits),
    )


def _row(fit: ComparedFit, evaluations: Sequence[Evaluation]) -> tuple[Cell, ...]:
    """Return a line of the main table, summed over seeds."""
    days = [day for one in evaluations for day in one.days]
    trials = [trial for one in evaluations for trial in one.injected if trial.expected]
    exposure = sum(one.device_days for one in evaluations)
    false = sum(one.false_alerts for one in evaluations)
    packets = [trial.packets for trial in trials if trial.packets is not None]
    return (
        fit.name,
        false,
        exposure,
        7 * bound(false, exposure) if exposure else None,
        max((day.flagged / day.packets for day in days if day.packets), default=None),
        *(_recall([trial for trial in trials if trial.generated == generated]) for generated in (False, True)),
        _median(packets),
        max(packets, default=None),
    )


def _recall(trials: Sequence[AttackTrial]) -> str | None:
    return f"{sum(trial.alerted for trial in trials)}/{len(trials)}" if trials else None


def _share(cell: Cell) -> float | None:
    if not isinstance(cell, str):
        return None
    hits, _, count = cell.partition("/")
    return int(hits) / int(count)


def _median(values: Sequence[int]) -> float | None:
    return float(np.median(values)) if values else None


def _learnt(results: Results) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for fit, evaluations in results:
        for day in (day for one in evaluations for day in one.days):
            share = day.flagged / day.packets if day.packets else None
            rows.append((fit.left_out, day.capture, day.alerts, day.alerts_learnt, share, day.flagged_learnt))
    rows.sort(key=lambda row: -float(row[2] or 0))
    columns = ("device", "capture", "alerts, shared", "alerts once learnt", "rows flagged, shared")
    return Table(
        "The left-out device, with shared limits and with limits learnt on site",
        (*columns, "rows flagged once learnt"),
        tuple(rows),
        "A dash: the capture ends before the device has sent 2,000 packets in a quarter of an hour or more.",
    )


REJECTED = frozenset({"unknown", "anomaly"})
"""Classes of an alert that name no attack."""


def _unknown(results: Results) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for fit, evaluations in results:
        kin = fit.left_out.removeprefix("family ") if fit.left_out.startswith("family ") else None
        trials = [t for one in evaluations for t in (*one.injected, *one.alone) if t.alerted]
        left_out = [t for t in trials if ((family(t.label) or t.label) == kin if kin else t.label == fit.left_out)]
        known = [t for t in trials if t not in left_out and "." in t.label]
        as_family = [t for t in left_out if t.class_name == (family(t.label) or t.label)]
        rows.append(
            (
                fit.left_out,
                len(left_out),
                sum(t.class_name in REJECTED for t in left_out) / len(left_out) if left_out else None,
                len(as_family) / len(left_out) if left_out else None,
                ", ".join(sorted({t.class_name for t in left_out} - REJECTED)) or None,
                sum(t.class_name in REJECTED for t in known) / len(known) if known else None,
                sum(t.class_name == t.label for t in known) / len(known) if known else None,
            )
        )
    columns = ("left out", "episodes", "named unknown", "named by family", "other names")
    return Table(
        "Class in the alert of an attack that the classifier has not seen",
        (*columns, "known attacks named unknown", "known attacks named right"),
        tuple(rows),
    )


def _intervals(results: Results) -> Table:
    from scipy.stats import t as student

    rows: list[tuple[Cell, ...]] = []
    for fit, evaluations in results:
        n = len(evaluations)
        figures = []
        for values in (
            [float(one.false_alerts) for one in evaluations],
            [float(np.mean([float(t.alerted) for t in one.injected if t.expected] or [np.nan])) for one in evaluations],
            [_median([t.packets for t in one.injected if t.packets is not None]) or np.nan for one in evaluations],
        ):
            mean = float(np.mean(values))
            half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
            figures += [mean, half]
        rows.append((fit.name, n, *figures))
    columns = ("fit", "seeds", "false alerts", "±", "share alerted", "± ", "packets, median", "±  ")
    return Table("Mean over seeds and half width of its 95 % interval (Student)", columns, tuple(rows))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `botwatch trainer compare`."""
    parser.description = (
        "Fit, convert and evaluate several models that differ in one thing:\n"
        "  chrono   the config as it is, on later captures\n"
        "  rotate   each day of the config's captures left out in turn, and judged\n"
        "  lodo     each device left out in turn\n"
        "  lofo     each attack and each family left out of the classifier\n"
        "  cross    each source of captures alone, tried on the others\n"
        "  columns  with and without the per-device columns and the counts rule\n"
        "  models   one shared model, and one for each device\n"
        "A fit whose result is in the folder already is not made again."
    )
    parser.epilog = f"example:\n  {PROG} configs/trainer.yaml --by lodo --captures later --out runs/lodo"
    parser.add_argument("trainer_config", type=Path, metavar="CONFIG", help="YAML file of `botwatch trainer fit`")
    parser.add_argument(
        "--by",
        choices=KINDS,
        default="chrono",
        metavar="KIND",
        help=f"how the fits differ: {', '.join(KINDS)} (%(default)s)",
    )
    parser.add_argument(
        "--captures", type=Path, nargs="*", default=[], metavar="MANIFEST", help="captures that the fits are tried on"
    )
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="folder of the captures, if they are not beside their manifests"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the fits and the findings")
    evaluate.add_agent_config(parser)
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="repeat each fit with seeds 1 to N (%(default)s)"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="most epochs of a fit, instead of the config's")


def run(args: argparse.Namespace, command: str) -> int:
    """Run `botwatch trainer compare`: 0, or 2 with the reason."""
    try:
        if args.seeds < 1:
            raise CompareError(f"--seeds must be at least 1, is {args.seeds}")
        config, agent = _config(args), evaluate.agent_config(args.agent_config)
        manifests = [captures.load(path, args.root) for path in args.captures]
        results = []
        for fit in compared_fits(args.by, config, [(m, root) for m, _, root in manifests], args.out):
            evaluations = []
            for seed in range(1, args.seeds + 1):
                name = "".join(c if c.isalnum() or c in "-." else "-" for c in fit.name)
                one = evaluated(fit, args.out / args.by / f"{name}-{seed}", seed, agent)
                evaluations.append(one)
                print(
                    f"{fit.name}, seed {seed}: false alerts {stated(one.false_alerts, one.device_days)}; "
                    f"{sum(trial.alerted for trial in one.injected)} of {len(one.injected)} attacks alerted",
                    flush=True,
                )
            results.append((fit, evaluations))
        findings = report(args.by, results, command)
        findings.save(args.out)
    except (CompareError, settings.SettingsError, BundleError, ValueError) as error:
        return cli.refuse(PROG, error)
    except OSError as error:
        return cli.refuse(PROG, error, file=args.out)
    print("", *findings.text(), sep="\n")
    return cli.OK


def _config(args: argparse.Namespace) -> Config:
    """Return the trainer's configuration with the changes of the command line."""
    config = configs.load(args.trainer_config)
    if args.root is not None:
        data = tuple(replace(e, root=args.root.resolve()) if e.kind == "captures" else e for e in config.data)
        config = replace(config, data=data)
    if args.epochs is not None:
        config = replace(config, autoencoder=replace(config.autoencoder, epochs=args.epochs))
    return config
