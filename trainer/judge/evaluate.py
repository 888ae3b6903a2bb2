"""`botwatch trainer evaluate`: a finished bundle, judged on captures or rows as it would judge live.

What ships is what is measured: the quantised models, the decision rule with its votes, episodes as they would be told.
Each attack is tried alone, by a device nobody has seen before, and as part of every healthy device's day, once the
device is known (`trainer.judge.inject`). Nothing measured here goes back into a model.
"""

import argparse
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge_agent.capture.features import Extractor
from edge_agent.capture.sources import CaptureError
from edge_agent.contract import bundle as bundles
from edge_agent.contract import captures, settings
from edge_agent.contract.alert import Alert, ModelInfo
from edge_agent.contract.bundle import BENIGN, Bundle, BundleError
from edge_agent.contract.captures import Capture, mac_text
from edge_agent.contract.runfolder import RunFolderError
from edge_agent.delivery.alerts import Alerter
from edge_agent.detection.checkins import CheckIns
from edge_agent.detection.detector import Detector
from edge_agent.progress import Progress
from trainer.judge import agreement, evaluation, inject, rows, runs
from trainer.judge.evaluation import BASE_RATE, FLOOR_FRAMES, FLOOR_S, AttackTrial, Day, Evaluation
from trainer.judge.inject import AttackCapture, Frame, InjectError, InsideHost, S

if TYPE_CHECKING:
    from trainer.data.row_table import RowTable

PROG = "botwatch trainer evaluate"

BATCH = 4096
AT = 0.4
"""Where in a device's day an attack is put: its share of the day that has passed."""

AFTER_S = 150.0
"""Seconds of the day that follow an attack: an alert ends a minute after its last vote."""

HEAD_FRAMES = 60_000
"""Frames of the day before an attack: enough for every device of a home to be past its warm-up."""

RATES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


class EvaluateError(Exception):
    """Captures or rows that cannot be evaluated on; the message says why."""


@dataclass(frozen=True)
class _Loaded:
    capture: Capture
    generated: bool
    frames: list[Frame]


class Judge:
    """Frames in, episodes out, by one bundle, as the agent tells them."""

    def __init__(self, bundle: Bundle, max_streams: int = 16_384):
        self._bundle, self._max_streams = bundle, max_streams

    def episodes(self, frames: Iterable[Frame], learn: bool = False) -> tuple[list[list[Alert]], Detector]:
        """The messages of each episode, first episode first, and the detector that judged."""
        extractor = Extractor(self._max_streams, seed=1)
        detector, checkins = Detector(self._bundle, learn=learn), CheckIns()
        model = ModelInfo(self._bundle.manifest.version, self._bundle.sha256, self._bundle.manifest.generated)
        alerter = Alerter("evaluation", "", model, "0", rng=random.Random(1))  # ids, not secrets
        told: list[dict[str, Any]] = []
        batch: list[Frame] = []

        def judge() -> None:
            rows = extractor.push_frames(batch)
            for detection in [*detector.observe(rows), *checkins.observe(rows)]:
                told.extend(alerter.consider(detection))
            if len(rows):
                told.extend(alerter.tick(int(rows.meta["t_ns"][-1])))
            batch.clear()

        for frame in frames:
            batch.append(frame)
            if len(batch) == BATCH:
                judge()
        if batch:
            judge()
        for detection in detector.finish():
            told.extend(alerter.consider(detection))
        told.extend(alerter.finish())
        found: dict[str, list[Alert]] = {}
        for alert in map(Alert.read, told):
            found.setdefault(alert.id, []).append(alert)
        return list(found.values()), detector


def evaluate(
    bundle: Bundle,
    manifests: Sequence[tuple[captures.CaptureManifest, Path]],
    *,
    learn: bool = False,
    floor: bool = False,
    rates: Sequence[float] = RATES,
    most_pairs: int | None = None,
) -> Evaluation:
    """Try a bundle on manifests (each with the folder its files start from).

    ``learn`` also judges each benign capture, and each attack alone, by an agent that learns limits on site from their
    first packet on; ``floor`` sends each attack from the quietest
    device at every one of ``rates`` (packets/s). ``most_pairs`` bounds the devices an attack is put into.
    """
    judge = Judge(bundle)
    loaded, skipped = [], []
    for manifest, root in manifests:
        for capture in manifest.captures:
            try:
                loaded.append(_Loaded(capture, manifest.generated, inject.read(root / capture.file)))
            except InjectError as error:
                skipped.append(str(error))
    benign = [item for item in loaded if item.capture.label == BENIGN]
    attacks: list[tuple[_Loaded, AttackCapture]] = []
    for item in loaded:
        if item.capture.label != BENIGN:
            try:
                attacks.append((item, inject.attack(item.frames, item.capture)))
            except InjectError as error:
                skipped.append(str(error))
    homes = []
    for item in benign:
        if item.capture.mac is not None:
            try:
                homes.append((item, inject.host(item.frames, item.capture.mac, item.capture.file)))
            except InjectError as error:
                skipped.append(str(error))
    newest = {item.capture.device: (item, own) for item, own in homes}  # a manifest lists days in order
    places = list(newest.values())[:most_pairs]

    steps = (
        len(benign) + len(attacks) * (1 + learn + len(places)) + (len(attacks) * len(rates) if floor and places else 0)
    )
    with Progress("evaluating", steps) as progress:

        def step(text: str) -> None:
            progress.step(note=text)

        days = tuple(_day(judge, item, learn, step) for item in benign)
        alone = tuple(_alone(judge, item, source, step) for item, source in attacks)
        learning = tuple(_alone(judge, item, source, step, learn=True) for item, source in attacks if learn)
        injected = tuple(
            _injected(judge, item, source, place, own, step) for item, source in attacks for place, own in places
        )
        found: dict[str, dict[float, bool]] = {}
        if floor and places:
            quiet, own = min(places, key=lambda place: len(place[0].frames))
            for item, source in attacks:
                name = str(item.capture.file)
                found[name] = {rate: _at_rate(judge, source, quiet, own, rate, step) for rate in rates}
    device_days = sum(day.days for day in days)
    return Evaluation(bundle.sha256, days, alone, injected, tuple(skipped), found, device_days, learning)


def _day(judge: Judge, item: _Loaded, learn: bool, step: Any) -> Day:
    frames = item.frames
    episodes, detector = judge.episodes(frames)
    first, last = frames[0][0], max(frame[0] for frame in frames)
    counters = detector.counters
    learnt = share = learning = None
    if learn and item.capture.mac is not None:
        mac = captures.parse_mac(item.capture.mac)
        own_episodes, own_detector = judge.episodes(frames, learn=True)
        own, learning = own_detector.own(mac), len(own_episodes)
        if own is not None and own.learnt_ns is not None:
            learnt = sum(messages[0].t_ns >= own.learnt_ns for messages in own_episodes)
            share = own.flagged / own.judged if own.judged else None
    step(f"{item.capture.file}: {len(episodes)} false alerts")
    return Day(
        str(item.capture.file),
        item.capture.device,
        item.generated,
        (last - first) / S / 86_400,
        counters["scored"],
        counters["flagged"],
        len(episodes),
        sum(messages[0].t_ns < first + 600 * S for messages in episodes),
        learnt,
        share,
        learning,
    )


def _alone(judge: Judge, item: _Loaded, source: AttackCapture, step: Any, *, learn: bool = False) -> AttackTrial:
    episodes, _ = judge.episodes(item.frames, learn)
    step(f"{item.capture.file} alone{' while learning' if learn else ''}")
    return _trial(item, source, "", episodes, source.host, [source.frames[i][0] for i in source.sent()])


def _injected(
    judge: Judge, item: _Loaded, source: AttackCapture, place: _Loaded, own: InsideHost, step: Any
) -> AttackTrial:
    start = _start(place)
    moved = inject.carried(source, own, start)
    episodes, _ = judge.episodes(_around(place, start, moved))
    step(f"{item.capture.file} in {place.capture.device}")
    return _trial(item, source, place.capture.device, episodes, own, [moved[i][0] for i in source.sent()])


def _at_rate(judge: Judge, source: AttackCapture, place: _Loaded, own: InsideHost, rate: float, step: Any) -> bool:
    """Whether an attack at ``rate`` is told within a minute."""
    start = _start(place)
    moved = inject.carried(source, own, start, rate, min(FLOOR_FRAMES, max(1, int(rate * FLOOR_S))))
    episodes, _ = judge.episodes(_around(place, start, moved))
    step(f"{rate:g} packets/s in {place.capture.device}")
    return any(
        _blames(messages[0], own, source) and start <= messages[0].t_ns <= start + FLOOR_S * S for messages in episodes
    )


def _start(place: _Loaded) -> int:
    frames = place.frames
    return frames[0][0] + int((frames[-1][0] - frames[0][0]) * AT)


def _around(place: _Loaded, start: int, moved: Sequence[Frame]) -> Iterable[Frame]:
    """The day up to a while after the attack, with the attack in it."""
    end = moved[-1][0] + int(AFTER_S * S)
    before = [frame for frame in place.frames if frame[0] < start][-HEAD_FRAMES:]
    return inject.merged([*before, *(frame for frame in place.frames if start <= frame[0] <= end)], moved)


def _blames(alert: Alert, own: InsideHost, source: AttackCapture) -> bool:
    """Whether an alert is about ``own`` and, of check-ins, about their server: its other new hosts are no success."""
    if source.victim:
        return alert.role == "victim" and alert.device.ip == ".".join(map(str, own.ip))
    if source.server and alert.dest_ip != source.server:
        return False
    return alert.device.mac == mac_text(int.from_bytes(own.mac, "big"))


def _trial(
    item: _Loaded, source: AttackCapture, device: str, episodes: list[list[Alert]], own: InsideHost, sent: list[int]
) -> AttackTrial:
    first, last = sent[0], max(sent)
    hits = [e for e in episodes if _blames(e[0], own, source) and e[-1].last_ns >= first]
    hits = [e for e in hits if e[0].t_ns >= first]
    about = (str(item.capture.file), item.capture.label, item.generated, item.capture.expected, device)
    length = (last - first) / S
    false = len(episodes) - len(hits)
    if not hits:
        return AttackTrial(*about, None, None, "", None, None, length, false)
    told = hits[0]
    packets = int(np.searchsorted(np.sort(np.array(sent)), told[0].t_ns, side="right"))
    return AttackTrial(
        *about,
        max(packets, 1),
        (told[0].t_ns - first) / 1e6,
        told[-1].class_name,
        (told[0].first_ns - first) / S,
        (hits[-1][-1].last_ns - last) / S,
        length,
        false,
    )


# -- command -------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `botwatch trainer evaluate`."""
    parser.description = (
        "Judge a finished bundle on captures (every attack alone and in every device's day, false alerts on benign "
        "ones) or on rows. Sources are manifests of captures, Parquet files of rows, or folders of the published files."
    )
    parser.epilog = f"example:\n  {PROG} bundles/home captures --out runs/home --floor"
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that `botwatch converter` wrote")
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="manifest or its folder, or rows")
    parser.add_argument("--root", type=Path, metavar="DIR", help="where the manifests' files lie, if elsewhere")
    parser.add_argument("--out", type=Path, metavar="RUN", help="also write the findings into this folder")
    parser.add_argument("--run", type=Path, metavar="RUN", help="compare with this run's Keras network, too")
    parser.add_argument("--learn", action="store_true", help="judge benign captures with limits learnt on site, too")
    parser.add_argument("--floor", action="store_true", help="find the lowest rate at which each attack is seen")
    parser.add_argument(
        "--base-rate", type=float, default=BASE_RATE, metavar="R", help="attacks per device-day (%(default)s)"
    )


def run(args: argparse.Namespace, command: str) -> int:
    """`botwatch trainer evaluate`: 0; 1 when an attack with a goal was missed or a device cried wolf; 2 bad input."""
    try:
        bundle = bundles.load(args.bundle)
        if not 0 < args.base_rate <= 1:
            raise EvaluateError(f"--base-rate must be above 0 and at most 1, is {args.base_rate:g}")
        manifests, tables = _sources(args.sources, args.root, bundle)
        found, failed = [], False
        if manifests:
            result = evaluate(bundle, manifests, learn=args.learn, floor=args.floor)
            found += evaluation.report(result, command, args.base_rate)
            trials = (*result.injected, *result.alone)
            failed = bool(result.false_alerts or any(t.expected and not t.found for t in trials))
        found += [rows.report(bundle, table, command) for table in tables]
        if args.run is not None:
            found.append(agreement.report(bundle, runs.load(args.run), command))
    except (BundleError, EvaluateError, RunFolderError, settings.SettingsError, CaptureError, ValueError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    for item in found:
        print()
        for line in item.text():
            print(line)
        if args.out is not None:
            item.save(args.out)
    return int(failed)


def _sources(
    paths: Sequence[Path], root: Path | None, bundle: Bundle
) -> tuple[list[tuple[captures.CaptureManifest, Path]], list["RowTable"]]:
    """Manifests with their roots, and tables of rows; EvaluateError for what is neither."""
    manifests, tables = [], []
    for path in paths:
        if path.suffix in (".yaml", ".yml") or (path / captures.MANIFEST).is_file():
            manifest, _, files = captures.load(path, root)
            manifests.append((manifest, files))
            continue
        if not path.exists():
            raise EvaluateError(f"{path}: no such file or folder")
        from edge_agent.contract import columns as cols
        from trainer.config import DatasetEntry
        from trainer.data import dataset
        from trainer.data.row_table import DatasetError, Limits

        kind: Literal["rows", "nbaiot"] = "rows" if path.is_file() else "nbaiot"
        # both jitter modes agree on every other column
        jitter = cols.COMPAT if kind == "nbaiot" or cols.COMPAT in bundle.manifest.schemas else cols.CLEAN
        try:
            tables.append(
                dataset.load([DatasetEntry(kind, path)], bundle.manifest.columns, jitter, Limits(max_rows=1_000_000))
            )
        except DatasetError as error:
            raise EvaluateError(str(error)) from error
    return manifests, tables
