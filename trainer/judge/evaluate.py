"""`botwatch trainer evaluate`: a finished bundle, tried on captures or rows.

The bundle is tried as it ships: its quantised models in the agent that runs on gateways, with the agent's budget of
rows, monitored networks and check-ins, and the alerts that this agent would send. Each attack is tried alone, by a
device that has never been seen before, and as part of every healthy device's day, once that device is known
(`trainer.judge.inject`). Nothing measured here goes back into a model.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge_agent.capture.sources import CaptureError
from edge_agent.config import AgentConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract import captures, cli, settings
from edge_agent.contract.bundle import Bundle, BundleError
from edge_agent.contract.runfolder import RunFolderError
from edge_agent.progress import Progress
from trainer.judge import agreement, evaluation_findings, evasion_findings, evasions, record, rows, runs
from trainer.judge.evaluation import BASE_RATE, AttackTrial, Day, Evaluation
from trainer.judge.material import LoadedAttack, Manifests, Material
from trainer.judge.material import read as material_of
from trainer.judge.trials import Trials

if TYPE_CHECKING:
    from trainer.data.row_table import RowTable

PROG = "botwatch trainer evaluate"

RATES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
"""Packets a second at which each attack is tried to find the lowest rate that is alerted."""


class EvaluateError(Exception):
    """Captures or rows that a bundle cannot be tried on; the message says why."""


def evaluate(
    bundle: Bundle,
    manifests: Manifests,
    config: AgentConfig,
    *,
    learn: bool = False,
    floor: bool = False,
    rates: Sequence[float] = RATES,
    earlier: Manifests = (),
) -> Evaluation:
    """Try a bundle on manifests; ``config`` is that of the agent.

    ``learn`` also judges by agents that learn limits on site: each benign capture and each attack alone by one that
    learns from their first packet on, each device's days in turn by one agent, and each attack in a device's day by one
    that has learnt from the device's days before. Those may begin with ``earlier`` manifests, which are not judged
    themselves. ``floor`` sends each attack from the quietest device at every one of ``rates`` (packets/s).
    """
    material = material_of(manifests, earlier if learn else ())
    attacks, places = material.attacks, material.places
    quietest = min(places, key=lambda place: len(place.day.frames)) if floor and places else None
    of_each = (1 + learn) * (1 + len(places)) + (len(rates) if quietest else 0)
    steps = len(material.benign) + learn * len(places) + len(attacks) * of_each
    lowest: dict[str, dict[float, bool]] = {}
    injected: list[AttackTrial] = []
    learnt: list[AttackTrial] = []
    unlearnt: list[str] = []
    with Progress("evaluating", steps) as progress:
        trials = Trials(bundle, config, lambda note: progress.step(note=note))
        days = [trials.day(loaded, learn) for loaded in material.benign]
        if learn:
            days = _on_site(trials, material, days)
        alone = [trials.alone(attack) for attack in attacks]
        learning = [trials.alone(attack, learn=True) for attack in attacks if learn]
        for place in places if attacks else ():
            stage = trials.stage(place)
            injected += [stage.attacked(attack) for attack in attacks]
            if place is quietest:
                lowest = {a.name: {rate: stage.alerted_at(rate, a) for rate in rates} for a in attacks}
            if learn:
                stage = trials.stage(place, learn=True)
                unlearnt += [] if stage.learnt else [place.day.capture.device]
                learnt += [stage.attacked(attack) for attack in attacks]
    return Evaluation(
        bundle=bundle.sha256,
        days=tuple(days),
        alone=tuple(alone),
        injected=_by_attack(injected, attacks),
        skipped=tuple(material.skipped),
        floor=lowest,
        device_days=sum(day.days for day in days),
        learning=tuple(learning),
        learnt=_by_attack(learnt, attacks),
        unlearnt=tuple(unlearnt),
        budget=config.scoring.max_rows_per_s,
    )


def _on_site(trials: Trials, material: Material, days: Sequence[Day]) -> list[Day]:
    """Add the figures of agents that learn from one day of a device to the next."""
    figures = dict(zip((id(loaded) for loaded in material.benign), days, strict=True))
    for device in dict.fromkeys(loaded.capture.device for loaded in material.benign):
        if of_device := material.days_of(device):
            given = [figures[id(loaded)] for loaded in of_device]
            added = trials.site(of_device, material.earlier.get(device, []), given)
            figures |= dict(zip((id(loaded) for loaded in of_device), added, strict=True))
    return [figures[id(loaded)] for loaded in material.benign]


def _by_attack(trials: Sequence[AttackTrial], attacks: Sequence[LoadedAttack]) -> tuple[AttackTrial, ...]:
    """Return trials in the order of the attacks, all devices of one attack together."""
    order = {attack.name: i for i, attack in enumerate(attacks)}
    return tuple(sorted(trials, key=lambda trial: order[trial.capture]))


# -- command --


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `botwatch trainer evaluate`."""
    parser.description = (
        "Try a finished bundle with the agent that runs on gateways: false alerts on benign captures, and every "
        "attack alone and in every device's day. A source is a manifest of captures, a Parquet file of rows, or a "
        "folder of the published files; rows are judged without an agent. Ends with status 1 when an attack with a "
        "goal was missed or a benign device alerted."
    )
    parser.epilog = f"example:\n  {PROG} bundles/home captures --out runs/home --floor"
    parser.add_argument(
        "bundle",
        type=Path,
        metavar="BUNDLE",
        help="folder that `botwatch converter` wrote, or builtin: the one that comes with botwatch",
    )
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="manifest or its folder, or rows")
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="folder of the captures, if they are not beside their manifests"
    )
    parser.add_argument("--out", type=Path, metavar="RUN", help="also write the findings into this folder")
    parser.add_argument("--run", type=Path, metavar="RUN", help="also compare with the Keras network of this run")
    add_agent_config(parser)
    parser.add_argument("--learn", action="store_true", help="also judge by an agent that learns limits on site")
    parser.add_argument(
        "--earlier",
        type=Path,
        nargs="+",
        default=[],
        metavar="MANIFEST",
        help="with --learn: benign days of the same devices that the agent learns from first, and that are not judged",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything into this file, for programs")
    parser.add_argument("--floor", action="store_true", help="find the lowest rate at which each attack is alerted")
    parser.add_argument(
        "--evasions",
        action="store_true",
        help="also generate attacks that try not to be noticed into each device's days, and search what stays unseen",
    )
    parser.add_argument(
        "--base-rate", type=float, default=BASE_RATE, metavar="R", help="attacks per device-day (%(default)s)"
    )


def add_agent_config(parser: argparse.ArgumentParser) -> None:
    """Add the option that configures the agent which captures are judged by."""
    parser.add_argument(
        "--config",
        type=Path,
        dest="agent_config",
        metavar="FILE",
        help="agent.yaml of the agent that judges: its budget of rows, networks and check-ins (default: its defaults)",
    )


def agent_config(path: Path | None) -> AgentConfig:
    """Return the configuration that `add_agent_config` asks for; SettingsError when it cannot be used."""
    return AgentConfig() if path is None else settings.load(AgentConfig, path)


def run(args: argparse.Namespace, command: str) -> int:
    """Run `botwatch trainer evaluate` and return the exit status.

    It is 1 when an attack with a goal was missed or a benign device alerted, and 2 for an error, with the reason.
    """
    try:
        bundle = bundles.load(args.bundle)
        if not 0 < args.base_rate <= 1:
            raise EvaluateError(f"--base-rate must be above 0 and at most 1, is {args.base_rate:g}")
        if args.earlier and not args.learn:
            raise EvaluateError("--earlier is for agents that learn: give --learn, too")
        config = agent_config(args.agent_config)
        manifests, tables = _sources(args.sources, args.root, bundle)
        if args.json is not None:  # a file that cannot be written must not cost the hours before it
            if not manifests:
                raise EvaluateError("--json is for captures: none of the sources is a manifest")
            if not args.json.parent.is_dir():
                raise EvaluateError(f"--json {args.json}: {args.json.parent} is no folder")
        findings, failed = [], False
        if manifests:
            earlier = [captures.load(path, args.root)[::2] for path in args.earlier]
            result = evaluate(bundle, manifests, config, learn=args.learn, floor=args.floor, earlier=earlier)
            findings += evaluation_findings.report(result, command, args.base_rate)
            failed = bool(result.false_alerts or result.missed)
            evaded = evasions.evade(bundle.path, manifests, config) if args.evasions else None
            if evaded is not None:
                findings += evasion_findings.report(evaded, command)
            if args.json is not None:
                record.write(args.json, record.evaluated(result, bundle.manifest.version, command, evaded))
        findings += [rows.report(bundle, table, command) for table in tables]
        if args.run is not None:
            findings.append(agreement.report(bundle, runs.load(args.run), command))
            failed |= bool(findings[-1].warnings)
        for item in findings:
            print("", *item.text(), sep="\n")
            if args.out is not None:
                item.save(args.out)
    except (BundleError, EvaluateError, RunFolderError, settings.SettingsError, CaptureError, ValueError) as error:
        return cli.refuse(PROG, error)
    except OSError as error:
        return cli.refuse(PROG, error, file=args.out)
    return cli.FAILED if failed else cli.OK


def _sources(
    paths: Sequence[Path], root: Path | None, bundle: Bundle
) -> tuple[list[tuple[captures.CaptureManifest, Path]], list["RowTable"]]:
    """Return manifests with their roots, and tables of rows; EvaluateError for a path that is neither."""
    manifests, tables = [], []
    for path in paths:
        if path.suffix in (".yaml", ".yml") or (path / captures.MANIFEST).is_file():
            manifest, _, files = captures.load(path, root)
            manifests.append((manifest, files))
        elif path.exists():
            tables.append(_table(path, bundle))
        else:
            raise EvaluateError(f"{path}: no such file or folder")
    return manifests, tables


def _table(path: Path, bundle: Bundle) -> "RowTable":
    """Read rows with the columns of the bundle; EvaluateError when they cannot be read."""
    from edge_agent.contract import columns as cols
    from trainer.config import DatasetEntry
    from trainer.data import dataset
    from trainer.data.row_table import DatasetError, Limits

    kind: Literal["rows", "nbaiot"] = "rows" if path.is_file() else "nbaiot"
    # both jitter modes agree on every other column
    jitter = cols.COMPAT if kind == "nbaiot" or cols.COMPAT in bundle.manifest.schemas else cols.CLEAN
    limits = Limits(max_rows=1_000_000)
    try:
        return dataset.load([DatasetEntry(kind, path)], bundle.manifest.columns, jitter, limits)
    except DatasetError as error:
        how = f" (read as the published files, since {captures.MANIFEST} is missing)" if kind == "nbaiot" else ""
        raise EvaluateError(f"{error}{how}") from error
