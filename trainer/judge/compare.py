"""`botwatch trainer compare`: the same evaluation over several fits that differ in one thing.

What may differ: which device, attack or source was left out, which columns the model sees, whether devices share a
model, the seed. Every fit is converted, and the quantised bundle is what is evaluated; limits come from each fit's own
benign train and optimise rows, by the same alarm budget, so no arm is given a threshold that suits its test.
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

from edge_agent.contract import bundle as bundles
from edge_agent.contract import captures, settings
from edge_agent.contract import columns as cols
from edge_agent.contract.bundle import BENIGN, BundleError, replace_file
from edge_agent.contract.captures import CaptureManifest
from trainer import config as configs
from trainer.config import Config, DatasetEntry
from trainer.judge import evaluate, evaluation
from trainer.judge.evaluation import AttackTrial, Day, Evaluation, bound
from trainer.report.findings import Cell, Figure, Findings, Series, Table

PROG = "botwatch trainer compare"

KINDS = ("chrono", "lodo", "lofo", "cross", "columns", "models")
TITLES = {
    "chrono": "Later days",
    "lodo": "A device nobody trained on",
    "lofo": "An attack nobody trained on",
    "cross": "Another source of traffic",
    "columns": "What columns buy",
    "models": "One shared model, or one for each device",
}
RESULT = "evaluation.json"


class CompareError(Exception):
    """A comparison that cannot be made; the message says why."""


@dataclass(frozen=True)
class Arm:
    """One fit and what it is tried on: manifests with the folder their files start from."""

    name: str
    config: Config
    tried: tuple[tuple[CaptureManifest, Path], ...]
    left_out: str = ""  # the device, label or family that the fit did not see


def arms(kind: str, config: Config, tried: Sequence[tuple[CaptureManifest, Path]]) -> list[Arm]:
    """The fits of one kind of comparison; CompareError when the data do not allow it."""
    everything = tuple(tried)
    if kind == "chrono":
        return [Arm("later days", config, everything)]
    if kind == "columns":
        return [Arm(name, arm, everything) for name, arm in _column_sets(config)]
    known = [_manifest(entry) for entry in config.data]
    if kind == "cross":
        if len(config.data) < 2:
            raise CompareError("cross needs a config with two sources of rows or more")
        return [
            Arm(
                f"fitted on {_source(entry)}",
                replace(config, data=(entry,)),
                tuple(other for j, other in enumerate(known) if j != i),
                " ".join(_source(other) for j, other in enumerate(config.data) if j != i),
            )
            for i, entry in enumerate(config.data)
        ]
    if kind == "lofo":
        labels = sorted({c.label for manifest, _ in known for c in manifest.captures if c.label != BENIGN})
        families = sorted({label.partition(".")[0] for label in labels if "." in label})
        groups = {label: {label} for label in labels}
        groups |= {f"family {f}": {x for x in labels if x.startswith(f"{f}.")} for f in families}
        found = []
        for name, left in groups.items():
            kept = tuple(label for label in labels if label not in left)
            if not kept:
                continue
            data = tuple(_only(entry, labels=(BENIGN, *kept)) for entry in config.data)
            found.append(Arm(f"without {name}", replace(config, data=data), everything, name))
        if not found:
            raise CompareError("lofo needs captures of two attacks or more in the config's data")
        return found
    devices = sorted({c.device for manifest, _ in known for c in manifest.captures if c.label == BENIGN})
    if len(devices) < 2:
        raise CompareError(f"{kind} needs two devices or more in the config's data")
    if kind == "lodo":
        found = []
        for device in devices:
            data = tuple(
                _only(entry, devices=tuple(d for d in _devices(entry) if d != device)) for entry in config.data
            )
            of_it = tuple((_of(manifest, device), root) for manifest, root in (*known, *everything))
            found.append(Arm(f"without {device}", replace(config, data=data), of_it, device))
        return found
    shared = [Arm("shared", config, everything)]
    for device in devices:
        data = tuple(_only(entry, devices=(device,)) for entry in config.data if device in _devices(entry))
        of_it = tuple((_of(manifest, device), root) for manifest, root in everything)
        own = replace(config, data=data, classifier=replace(config.classifier, enabled=False))
        shared.append(Arm(f"own model of {device}", own, of_it))
    return shared


def _column_sets(config: Config) -> Iterator[tuple[str, Config]]:
    counts = tuple(c for c in cols.DEVICE_COLUMNS if c.endswith(("new_peers", "new_sockets")))
    published = tuple(cols.SCHEMAS[cols.CLEAN])
    both = (cols.CLEAN, cols.DEVICE)
    quiet = replace(config.decision, floors={}, warmup_floors={})
    alone = replace(config.decision, vote_margin=1e6)  # no vote of the score reaches its limit
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
    if entry.kind != "captures":
        raise CompareError(f"{entry.path}: only captures can be left out by device or attack, not {entry.kind}")
    manifest, _, root = captures.load(entry.path, entry.root)
    return manifest, root


def _devices(entry: DatasetEntry) -> tuple[str, ...]:
    manifest, _ = _manifest(entry)
    return entry.devices or tuple(dict.fromkeys(c.device for c in manifest.captures))


def _only(entry: DatasetEntry, devices: tuple[str, ...] = (), labels: tuple[str, ...] = ()) -> DatasetEntry:
    """The entry with some devices or labels of it; labels it does not have are not asked for."""
    manifest, _ = _manifest(entry)
    held = {c.label for c in manifest.captures}
    return replace(
        entry,
        devices=devices or entry.devices,
        labels=tuple(x for x in labels if x in held) if labels else entry.labels,
    )


def _of(manifest: CaptureManifest, device: str) -> CaptureManifest:
    """What concerns one device: its benign captures, and every attack, to be put into its day."""
    return replace(manifest, captures=tuple(c for c in manifest.captures if c.label != BENIGN or c.device == device))


def _source(entry: DatasetEntry) -> str:
    return entry.path.parent.name if entry.path.name == captures.MANIFEST else entry.path.stem


def evaluated(arm: Arm, folder: Path, seed: int) -> Evaluation:
    """Fit, convert and evaluate one arm in ``folder``, or read what an earlier call of the same found."""
    config = replace(arm.config, seed=seed)
    text = yaml.safe_dump(configs.plain(config), sort_keys=False, allow_unicode=True)
    files = [str(root / c.file) for manifest, root in arm.tried for c in manifest.captures]
    mark = hashlib.sha256("\n".join([text, *files, evaluation.generator()]).encode()).hexdigest()
    done = folder / RESULT
    if done.is_file():
        told = json.loads(done.read_bytes())
        if told.pop("of", None) == mark:
            return settings.build(Evaluation, told, str(done))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(text)
    for words in (
        ("trainer", "fit", folder / "config.yaml", "--out", folder / "run"),
        ("converter", folder / "run", "--out", folder / "bundle"),
    ):
        command = [sys.executable, "-m", "edge_agent.command", *map(str, words)]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            said = [line for line in ended.stderr.splitlines() if line.startswith("botwatch")]
            raise CompareError(f"{arm.name}: `botwatch {words[0]}` failed: {' '.join(said) or ended.stderr[-300:]}")
    found = evaluate.evaluate(bundles.load(folder / "bundle"), arm.tried, learn=bool(arm.left_out))
    replace_file(done, json.dumps({**dataclasses.asdict(found), "of": mark}, indent=1).encode())
    return found


def report(kind: str, results: Sequence[tuple[Arm, list[Evaluation]]], command: str) -> Findings:
    """All arms side by side; with several seeds the mean and its 95 % interval over them."""
    seeds = max(len(found) for _, found in results)
    rows: list[tuple[Cell, ...]] = []
    lead, limits = [], []
    for arm, found in results:
        days = [day for one in found for day in one.days]
        trials = [trial for one in found for trial in one.injected if trial.expected]
        exposure = sum(one.device_days for one in found)
        false = sum(one.false_alerts for one in found)
        rows.append(
            (
                arm.name,
                false,
                exposure,
                bound(false, exposure) if exposure else None,
                _worst_share(days),
                *(_recall([t for t in trials if t.generated == made]) for made in (False, True)),
                _middle([t.packets for t in trials if t.packets is not None]),
                max((t.packets for t in trials if t.packets is not None), default=None),
            )
        )
    columns = ("fit", "false alerts", "device-days", "95 % bound a day", "worst rows flagged")
    tables = [
        Table(
            TITLES[kind],
            (*columns, "real attacks alerted", "generated attacks alerted", "packets, median", "packets, most"),
            tuple(rows),
            f"Quantised bundles; {seeds} seed{'s' * (seeds > 1)} each. Attacks are put into each device's day.",
        )
    ]
    if kind == "lodo":
        tables.append(_learnt(results))
        alerts = [row for row in tables[-1].rows if isinstance(row[3], int)]
        lead.append(
            f"With limits learnt on site: {sum(int(row[3] or 0) for row in alerts)} false alerts on {len(alerts)} "
            f"captures of devices that were not in the fit; with the shared limits "
            f"{sum(int(row[2] or 0) for row in alerts)}."
        )
    if kind == "lofo":
        tables.append(_unknown(results))
        limits.append(
            "The autoencoder never sees an attack: to it every attack is unseen. What is left out here is left out of "
            "the classifier."
        )
    if seeds > 1:
        tables.append(_intervals(results))
    worst = max(rows, key=lambda row: float(row[1] or 0))
    lead.insert(0, f"{sum(int(row[1] or 0) for row in rows)} false alerts in all; the most: {worst[0]}, {worst[1]}.")
    bars = [
        Series(name, tuple(str(row[0]) for row in rows), tuple(_share(row[at]) for row in rows))
        for name, at in (("real attacks", 5), ("generated attacks", 6))
        if any(row[at] is not None for row in rows)
    ]
    generated = any(day.generated for _, found in results for one in found for day in one.days) or any(
        trial.generated for _, found in results for one in found for trial in one.injected
    )
    return Findings(
        f"protocol-{kind}" if kind != "columns" else "columns",
        TITLES[kind],
        command,
        generated,
        tuple(lead),
        tables=tuple(tables),
        figures=(Figure("bars", "Share of attacks alerted", tuple(bars), "share"),) if bars else (),
        limits=tuple(limits),
    )


def _recall(trials: Sequence[AttackTrial]) -> str | None:
    return f"{sum(t.found for t in trials)}/{len(trials)}" if trials else None


def _share(cell: Cell) -> float | None:
    if not isinstance(cell, str):
        return None
    hits, _, count = cell.partition("/")
    return int(hits) / int(count)


def _middle(values: Sequence[int]) -> float | None:
    return float(np.median(values)) if values else None


def _worst_share(days: Sequence[Day]) -> float | None:
    return max((day.flagged / day.packets for day in days if day.packets), default=None)


def _learnt(results: Sequence[tuple[Arm, list[Evaluation]]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for arm, found in results:
        for day in (day for one in found for day in one.days):
            share = day.flagged / day.packets if day.packets else None
            rows.append((arm.left_out, day.capture, day.alerts, day.learnt, share, day.learnt_flagged))
    rows.sort(key=lambda row: -float(row[2] or 0))
    return Table(
        "The left-out device, with shared limits and with limits learnt on site",
        (
            "device",
            "capture",
            "alerts, shared",
            "alerts once learnt",
            "rows flagged, shared",
            "rows flagged once learnt",
        ),
        tuple(rows),
        "A dash: the capture ends before the device has sent 2,000 packets in a quarter of an hour or more.",
    )


def _unknown(results: Sequence[tuple[Arm, list[Evaluation]]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for arm, found in results:
        family = arm.left_out.removeprefix("family ") if arm.left_out.startswith("family ") else None
        trials = [t for one in found for t in (*one.injected, *one.alone) if t.found]
        out = [t for t in trials if (t.label.partition(".")[0] == family if family else t.label == arm.left_out)]
        known = [t for t in trials if t not in out and "." in t.label]
        rejected = {"unknown", "anomaly"}
        own_family = [t for t in out if t.said == t.label.partition(".")[0]]
        rows.append(
            (
                arm.left_out,
                len(out),
                sum(t.said in rejected for t in out) / len(out) if out else None,
                len(own_family) / len(out) if out else None,
                ", ".join(sorted({t.said for t in out if t.said not in rejected})) or None,
                sum(t.said in rejected for t in known) / len(known) if known else None,
                sum(t.said == t.label for t in known) / len(known) if known else None,
            )
        )
    columns = (
        "left out",
        "episodes",
        "told unknown",
        "told the family",
        "else told",
        "known told unknown",
        "known right",
    )
    return Table("Class told of an attack that the classifier has not seen", columns, tuple(rows))


def _intervals(results: Sequence[tuple[Arm, list[Evaluation]]]) -> Table:
    from scipy.stats import t as student

    rows: list[tuple[Cell, ...]] = []
    for arm, found in results:
        n = len(found)
        figures = []
        for values in (
            [float(one.false_alerts) for one in found],
            [float(np.mean([float(t.found) for t in one.injected if t.expected] or [np.nan])) for one in found],
            [_middle([t.packets for t in one.injected if t.packets is not None]) or np.nan for one in found],
        ):
            mean = float(np.mean(values))
            half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
            figures += [mean, half]
        rows.append((arm.name, n, *figures))
    columns = ("fit", "seeds", "false alerts", "±", "share alerted", "± ", "packets, median", "±  ")
    return Table("Mean over seeds and half width of its 95 % interval (Student)", columns, tuple(rows))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `botwatch trainer compare`."""
    parser.description = (
        "Evaluate several fits that differ in one thing. chrono: the config as it is, on later captures. lodo: each "
        "device left out in turn. lofo: each attack and family left out of the classifier. cross: each source alone, "
        "on the others. columns: with and without the per-device columns and the counts rule. models: a shared model "
        "and one for each device."
    )
    parser.epilog = f"example:\n  {PROG} configs/trainer.yaml --by lodo --captures later --out runs/lodo"
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file of `botwatch trainer fit`")
    parser.add_argument("--by", choices=KINDS, default="chrono", help="what differs (%(default)s)")
    parser.add_argument("--captures", type=Path, nargs="*", default=[], metavar="MANIFEST", help="what is tried")
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="where the captures lie, if not beside their manifests"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the fits and the findings")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="fits of each, with seeds 1 to N (%(default)s)"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs at most, instead of the config's")


def run(args: argparse.Namespace, command: str) -> int:
    """`botwatch trainer compare`: 0, or 2 with the reason."""
    try:
        if args.seeds < 1:
            raise CompareError(f"--seeds must be at least 1, is {args.seeds}")
        config = configs.load(args.config)
        if args.root is not None:
            data = tuple(replace(e, root=args.root.resolve()) if e.kind == "captures" else e for e in config.data)
            config = replace(config, data=data)
        if args.epochs is not None:
            config = replace(config, autoencoder=replace(config.autoencoder, epochs=args.epochs))
        tried = []
        for path in args.captures:
            manifest, _, root = captures.load(path, args.root)
            tried.append((manifest, root))
        results = []
        for arm in arms(args.by, config, tried):
            found = []
            for seed in range(1, args.seeds + 1):
                name = "".join(c if c.isalnum() or c in "-." else "-" for c in arm.name)
                found.append(evaluated(arm, args.out / args.by / f"{name}-{seed}", seed))
                one = found[-1]
                hits = sum(t.found for t in one.injected)
                print(
                    f"{arm.name}, seed {seed}: {one.false_alerts} false alerts in {one.device_days:.2f} device-days, "
                    f"{hits} of {len(one.injected)} attacks alerted",
                    flush=True,
                )
            results.append((arm, found))
    except (CompareError, settings.SettingsError, BundleError, ValueError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{PROG}: {error.filename or args.out}: {error.strerror or error}", file=sys.stderr)
        return 2
    told = report(args.by, results, command)
    told.save(args.out)
    print()
    for line in told.text():
        print(line)
    return 0
