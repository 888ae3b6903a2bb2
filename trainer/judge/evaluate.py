"""`botwatch trainer evaluate`: a finished bundle, tried on captures or rows.

The bundle is tried as it ships: its quantised models in the agent that runs on gateways, with the agent's budget of
rows, monitored networks and check-ins, and the alerts that this agent would send. Each attack is tried alone, by a
device that has never been seen before, and as part of every healthy device's day, once that device is known
(`trainer.judge.inject`). Nothing measured here goes back into a model.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge_agent.capture.sources import CaptureError
from edge_agent.config import AgentConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract import captures, cli, settings
from edge_agent.contract.bundle import BENIGN, Bundle, BundleError
from edge_agent.contract.captures import Capture
from edge_agent.contract.runfolder import RunFolderError
from edge_agent.progress import Progress
from trainer.data.frames import Frame, S
from trainer.judge import agreement, evaluation, evasion_findings, evasions, inject, rows, runs
from trainer.judge.blame import blames, detections, expected_subject
from trainer.judge.evaluation import BASE_RATE, FLOOR_FRAMES, FLOOR_S, AttackTrial, Day, Evaluation
from trainer.judge.inject import AttackCapture, InjectError, InsideHost
from trainer.judge.replay import Replayed, replay

if TYPE_CHECKING:
    from trainer.data.row_table import RowTable

PROG = "botwatch trainer evaluate"

AT = 0.4
"""The places in a device's day where an attack is put: shares of the day that have passed."""

AFTER_S = 150.0
"""Seconds of the day that follow an attack: an alert ends a minute after its last vote."""

HEAD_FRAMES = 60_000
"""Frames of the day before an attack: enough for every device of a home to be past its warm-up."""

EARLY_S = 600
"""Seconds at the start of a benign capture whose false alerts are also counted apart: the agent starts cold."""

RATES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
"""Packets a second at which each attack is tried to find the lowest rate that is alerted."""


class EvaluateError(Exception):
    """Captures or rows that a bundle cannot be tried on; the message says why."""


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """A capture read into memory."""

    capture: Capture
    generated: bool
    frames: list[Frame]

    @property
    def start_ns(self) -> int:
        return self.frames[0][0]


@dataclass(frozen=True, kw_only=True)
class _LoadedAttack:
    """A capture and the attack in it."""

    loaded: _Loaded
    source: AttackCapture

    @property
    def name(self) -> str:
        return str(self.loaded.capture.file)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A device's day that attacks are put into, and the device."""

    day: _Loaded
    host: InsideHost

    @property
    def at_ns(self) -> int:
        """The time of the day at which an attack begins."""
        first, last = self.day.frames[0][0], self.day.frames[-1][0]
        return first + int((last - first) * AT)


@dataclass(frozen=True, kw_only=True)
class _Material:
    """All that a bundle is tried on, and why some captures are left out."""

    benign: list[_Loaded]
    attacks: list[_LoadedAttack]
    places: list[_Place]
    skipped: list[str]


def _read(manifests: Sequence[tuple[captures.CaptureManifest, Path]]) -> _Material:
    """Read captures; a capture that cannot be read, or used for what it is for, is skipped with its reason."""
    material = _Material(benign=[], attacks=[], places=[], skipped=[])
    places: dict[str, _Place] = {}
    for manifest, root in manifests:
        for capture in manifest.captures:
            try:
                frames = inject.read(root / capture.file)
                loaded = _Loaded(capture=capture, generated=manifest.generated, frames=frames)
                if capture.label != BENIGN:
                    material.attacks.append(_LoadedAttack(loaded=loaded, source=inject.attack(frames, capture)))
                    continue
                material.benign.append(loaded)
                if capture.mac is not None:  # a manifest lists days in order: the last one of a device is taken
                    host = inject.host(frames, capture.mac, capture.file)
                    places[capture.device] = _Place(day=loaded, host=host)
            except InjectError as error:
                material.skipped.append(str(error))
    material.places.extend(places.values())
    return material


def evaluate(
    bundle: Bundle,
    manifests: Sequence[tuple[captures.CaptureManifest, Path]],
    config: AgentConfig,
    *,
    learn: bool = False,
    floor: bool = False,
    rates: Sequence[float] = RATES,
) -> Evaluation:
    """Try a bundle on manifests (each with the folder its files start from); ``config`` is that of the agent.

    ``learn`` also judges each benign capture, and each attack alone, by an agent that learns limits on site from their
    first packet on; ``floor`` sends each attack from the quietest device at every one of ``rates`` (packets/s).
    """
    material = _read(manifests)
    attacks, places = material.attacks, material.places
    quietest = min(places, key=lambda place: len(place.day.frames)) if floor and places else None
    of_each = 1 + learn + len(places) + (len(rates) if quietest else 0)
    with Progress("evaluating", len(material.benign) + len(attacks) * of_each) as progress:
        trials = _Trials(bundle, config, lambda note: progress.step(note=note))
        days = tuple(trials.day(loaded, learn) for loaded in material.benign)
        alone = tuple(trials.alone(attack) for attack in attacks)
        learning = tuple(trials.alone(attack, learn=True) for attack in attacks if learn)
        injected = tuple(trials.injected(attack, place) for attack in attacks for place in places)
        lowest: dict[str, dict[float, bool]] = {}
        if quietest:
            lowest = {
                attack.name: {rate: trials.alerted_at(rate, attack, quietest) for rate in rates} for attack in attacks
            }
    return Evaluation(
        bundle=bundle.sha256,
        days=days,
        alone=alone,
        injected=injected,
        skipped=tuple(material.skipped),
        floor=lowest,
        device_days=sum(day.days for day in days),
        learning=learning,
        budget=config.scoring.max_rows_per_s,
    )


class _Trials:
    """Tries a bundle on one thing at a time, each time with an agent that starts cold; ``step`` gets a note of each."""

    def __init__(self, bundle: Bundle, config: AgentConfig, step: Callable[[str], None]) -> None:
        self._bundle, self._config, self._step = bundle, config, step

    def day(self, loaded: _Loaded, learn: bool) -> Day:
        """Judge a benign capture, with ``learn`` a second time by an agent that learns."""
        replayed = self._replay(loaded.frames)
        counts, alerts = replayed.agent.counts(), len(replayed.episodes)
        first, last = loaded.start_ns, max(frame[0] for frame in loaded.frames)
        day = Day(
            capture=str(loaded.capture.file),
            device=loaded.capture.device,
            generated=loaded.generated,
            days=(last - first) / S / 86_400,
            packets=counts["scored"],
            shed=counts["shed"],
            flagged=counts["flagged"],
            alerts=alerts,
            early=sum(episode[0].t_ns < first + EARLY_S * S for episode in replayed.episodes),
            **(self._learnt(loaded) if learn and loaded.capture.mac is not None else {}),
        )
        self._step(f"{loaded.capture.file}: {alerts} false alerts")
        return day

    def _learnt(self, loaded: _Loaded) -> dict[str, Any]:
        """Return the figures of a `Day` that an agent adds which learns limits on site."""
        replayed = self._replay(loaded.frames, learn=True)
        figures: dict[str, Any] = {"alerts_learning": len(replayed.episodes)}
        limits = replayed.agent.detector.limits_of(captures.parse_mac(loaded.capture.mac or ""))
        if limits is not None and limits.learnt_ns is not None:
            since = limits.learnt_ns
            figures["alerts_learnt"] = sum(episode[0].t_ns >= since for episode in replayed.episodes)
            figures["flagged_learnt"] = limits.flagged / limits.judged if limits.judged else None
        return figures

    def alone(self, attack: _LoadedAttack, *, learn: bool = False) -> AttackTrial:
        """Judge an attack capture as it is."""
        replayed = self._replay(attack.loaded.frames, learn=learn)
        self._step(f"{attack.name} alone{' while learning' if learn else ''}")
        return _trial(attack, "", attack.source.host, attack.source.frames, replayed)

    def injected(self, attack: _LoadedAttack, place: _Place) -> AttackTrial:
        """Judge a device's day with the attack in it, as if the device carried it out."""
        moved = inject.carried(attack.source, place.host, place.at_ns)
        replayed = self._replay(_around(place, moved))
        self._step(f"{attack.name} in {place.day.capture.device}")
        return _trial(attack, place.day.capture.device, place.host, moved, replayed)

    def alerted_at(self, rate: float, attack: _LoadedAttack, place: _Place) -> bool:
        """Judge a day with the attack in it at ``rate`` packets/s; return whether it is alerted within a minute."""
        start, most = place.at_ns, min(FLOOR_FRAMES, max(1, int(rate * FLOOR_S)))
        replayed = self._replay(_around(place, inject.carried(attack.source, place.host, start, rate, most)))
        self._step(f"{rate:g} packets/s in {place.day.capture.device}")
        expected = expected_subject(attack.source, place.host)
        return any(
            blames(episode[0], expected) and start <= episode[0].t_ns <= start + FLOOR_S * S
            for episode in replayed.episodes
        )

    def _replay(self, frames: Iterable[Frame], *, learn: bool = False) -> Replayed:
        return replay(self._bundle, self._config, frames, learn=learn)


def _around(place: _Place, moved: Sequence[Frame]) -> Iterable[Frame]:
    """Return the day up to a while after the attack, with the attack ``moved`` in it."""
    start, end = place.at_ns, moved[-1][0] + int(AFTER_S * S)
    before = [frame for frame in place.day.frames if frame[0] < start][-HEAD_FRAMES:]
    return inject.merged([*before, *(frame for frame in place.day.frames if start <= frame[0] <= end)], moved)


def _trial(
    attack: _LoadedAttack, device: str, host: InsideHost, frames: Sequence[Frame], replayed: Replayed
) -> AttackTrial:
    """Compare the episodes with an attack that ``host`` carried out, or suffered, by ``frames``."""
    sent = np.array([frames[i][0] for i in attack.source.sent()])
    first, last = int(sent[0]), int(sent.max())
    hits = detections(replayed.episodes, expected_subject(attack.source, host), first)
    capture, counts = attack.loaded.capture, replayed.agent.counts()
    trial = AttackTrial(
        capture=attack.name,
        label=capture.label,
        generated=attack.loaded.generated,
        expected=capture.expected,
        device=device,
        length_s=(last - first) / S,
        false_alerts=len(replayed.episodes) - len(hits),
        shed=counts["shed"],
    )
    if not hits:
        return trial
    episode = hits[0]
    return replace(
        trial,
        packets=max(int(np.searchsorted(np.sort(sent), episode[0].t_ns, side="right")), 1),
        ms=(episode[0].t_ns - first) / 1e6,
        class_name=episode[-1].class_name,
        start_s=(episode[0].first_ns - first) / S,
        end_s=(hits[-1][-1].last_ns - last) / S,
    )


# -- command --


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `botwatch trainer evaluate`."""
    parser.description = (
        "Try a finished bundle with the agent that runs on gateways: false alerts on benign captures, and every\n"
        "attack alone and in every device's day. A source is a manifest of captures, a Parquet file of rows, or a\n"
        "folder of the published files; rows are judged without an agent. Ends with status 1 when an attack with a\n"
        "goal was missed or a benign device alerted."
    )
    parser.epilog = f"example:\n  {PROG} bundles/home captures --out runs/home --floor"
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that `botwatch converter` wrote")
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="manifest or its folder, or rows")
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="folder of the captures, if they are not beside their manifests"
    )
    parser.add_argument("--out", type=Path, metavar="RUN", help="also write the findings into this folder")
    parser.add_argument("--run", type=Path, metavar="RUN", help="also compare with the Keras network of this run")
    add_agent_config(parser)
    parser.add_argument("--learn", action="store_true", help="also judge by an agent that learns limits on site")
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
        config = agent_config(args.agent_config)
        manifests, tables = _sources(args.sources, args.root, bundle)
        findings, failed = [], False
        if manifests:
            result = evaluate(bundle, manifests, config, learn=args.learn, floor=args.floor)
            findings += evaluation.report(result, command, args.base_rate)
            failed = bool(result.false_alerts or result.missed)
            if args.evasions:
                findings += evasion_findings.report(evasions.evade(bundle.path, manifests, config), command)
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
        raise EvaluateError(str(error)) from error
