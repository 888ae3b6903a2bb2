"""`botwatch demo`: the whole chain on this machine, each part as the process a user would start.

Captures -> what the built-in bundle finds in them -> fit -> bundle -> broker, collector and agents -> alerts as they
come -> a closing table. This module knows the order of the commands and compares alerts with the manifest of what was
replayed; it computes nothing that the product computes elsewhere.
"""

import argparse
import contextlib
import dataclasses
import getpass
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from edge_agent.capture.features import Extractor
from edge_agent.capture.sources import CaptureError, open_file
from edge_agent.contract import captures, cli, settings
from edge_agent.contract.alert import Alert
from edge_agent.contract.bundle import BENIGN
from edge_agent.contract.captures import Capture, CaptureManifest
from edge_agent.contract.messages import MessageError
from edge_agent.detection.classify import family
from trainer.judge import inject
from trainer.judge.blame import ExpectedSubject, detections, expected_subject
from trainer.judge.inject import InjectError

PROG = "botwatch demo"

FIT = [
    *("--seed", "1", "--days", "3", "--infected", "camera-1,plug-1", "--max-attack-packets", "8000"),
    *("--devices", "camera,camera,plug,plug,thermostat,doorbell,doorbell,gateway,gateway"),
]
"""The home that is fitted on: nine devices for three days, two of them infected with every attack."""

REPLAY = [
    *("--seed", "2", "--start", "2026-02-10", "--days", "1"),
    *("--devices", "camera,plug,thermostat,doorbell,gateway,bulb", "--infected", "doorbell-1"),
    *("--attacks", "{attacks},mirai.scan:rate=20:port=5555"),
]
"""The home that is replayed: other devices on other days, with a kind of device (bulb) and an attack variant that were
not fitted."""

TRAINER = {
    "autoencoder": {"epochs": 60, "patience": 20},
    "classifier": {
        "rows_per_class": 4000,
        "classes": {"mirai.ack": "mirai", "mirai.udp": "mirai"},
        "training": {"epochs": 60, "batch": 256},
    },
}
"""Shorter than the defaults, so that the demo takes three minutes. Mirai's ack and udp floods differ in 12 bytes of
566, which squash and int8 cannot keep apart from one home to another: they are one class, the family."""

AS_FITTED = {"learning": {"enabled": False}}
"""Settings of the agents: attacks of seconds leave no time to learn a device's own limits."""

READY_S, DELIVER_S = 20.0, 30.0
"""Seconds in which a process must be ready, and in which the collector must have stored every alert."""

POLL_S = 0.05
"""Seconds between two looks at whether a process is ready."""


class DemoError(Exception):
    """The chain broke; the message says where."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on one replayed capture by the collector's alerts.

    ``ms`` and ``packets`` are the time from the first attack packet to the first alert about the attack, and the
    attacker's packets in that time; None when there is no such alert. ``class_name`` is the class in the last message
    of that episode. ``false_alerts`` are episodes about another subject, or from before the attack.
    """

    capture: Capture
    gateway: str
    ms: float | None = None
    packets: int | None = None
    class_name: str = ""
    false_alerts: int = 0

    @property
    def missed(self) -> bool:
        """True if the capture holds an attack with a goal that was not detected."""
        return self.capture.label != BENIGN and self.capture.expected and self.ms is None


def parser() -> cli.Parser:
    """Return the parser of the command line."""
    top = cli.Parser(
        PROG,
        description="Run the whole chain on this machine: captures, fit, convert, broker, collector, agents, alerts.\n"
        "First it shows what the built-in bundle finds. Ends with status 1 when the fitted one missed an attack or a "
        "benign device alerted.",
        epilog=f"example:\n  {PROG} --captures my-captures --out demo",
    )
    top.add_version()
    top.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="work folder, emptied first (default: demo)"
    )
    top.add_argument(
        "--captures",
        type=Path,
        metavar="DIR",
        help="use your own captures instead of generated ones: a folder with manifest.yaml (all benign captures of a "
        "device but the last are fitted), or with fit.yaml and replay.yaml",
    )
    top.add_argument(
        "--root", type=Path, metavar="DIR", help="folder of the captures, if they are not beside their manifests"
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo: 0 when the fitted bundle detected all and no benign device alerted, 1 otherwise, 2 for misuse."""
    cli.prepare_output()
    args = parser().parse_args(argv)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"\n[{time.monotonic() - began:5.1f} s] {text}", flush=True)

    try:
        if args.out.exists():
            _clear(args.out)
        args.out.mkdir(parents=True, exist_ok=True)
        verdicts, generated = _demo(args, say)
    except (DemoError, settings.SettingsError, CaptureError, MessageError, OSError) as error:
        return cli.refuse(PROG, error)
    failed = print_verdicts(verdicts, generated)
    say("done, with misses or false alerts" if failed else "done")
    return cli.FAILED if failed else cli.OK


def _clear(out: Path) -> None:
    """Remove the work folder of an earlier demo; DemoError for any other folder that holds something."""
    if any(out.iterdir()) and not (out / ".botwatch-demo").exists():
        raise DemoError(f"{out} exists and is not the work folder of a demo; give another --out")
    shutil.rmtree(out)


def _demo(args: argparse.Namespace, say: Callable[[str], None]) -> tuple[list[Verdict], bool]:
    out: Path = args.out
    (out / ".botwatch-demo").touch()
    if args.captures:
        fit_path, replay_path, root = split_captures(args.captures, args.root, out)
    else:
        say("generating captures: a home to fit on, and another on other days to replay")
        _run("trainer", "generate", "--out", out / "fit", *FIT)
        from_fit, _, _ = captures.load(out / "fit")
        attacks = ",".join(dict.fromkeys(c.label for c in from_fit.captures if c.label != BENIGN))
        _run("trainer", "generate", "--out", out / "replay", *(text.format(attacks=attacks) for text in REPLAY))
        fit_path, replay_path, root = out / "fit" / captures.MANIFEST, out / "replay" / captures.MANIFEST, None
    manifest, _, replay_root = captures.load(replay_path, root)
    if parts := [capture for capture in manifest.captures if capture.span]:
        raise DemoError(f"{replay_path}: {parts[0].name}: an agent replays whole files, not spans of them")

    say("what works without a fit: the bundle that comes with botwatch")
    print(summary(_out_of_the_box(manifest, replay_root, out)))
    say("fitting autoencoder and classifier")
    entry = {"kind": "captures", "path": str(fit_path.resolve()), "root": str(root.resolve()) if root else None}
    (out / "trainer.yaml").write_text(yaml.safe_dump({"data": [entry], **TRAINER}))
    _run("trainer", "fit", out / "trainer.yaml", "--out", out / "run")
    say("converting to TFLite")
    _run("converter", out / "run", "--out", out / "bundle")
    say("broker, collector and agents")
    with _broker(out) as address, _collector(out, address) as database:
        say("replaying; alerts as the collector stores them:")
        (out / "outbox").mkdir()

        def delivery(gateway: str) -> list[object]:
            words = ["--config", out / "agent.yaml", "--bundle", out / "bundle", "--broker", address]
            return [*words, "--outbox", out / "outbox" / f"{gateway}.sqlite", "--wait", DELIVER_S]

        names = _replay(manifest, replay_root, out / "agent", delivery)
        alerts = _stored(database, out)
    return [judge(capture, gateway, replay_root, alerts) for capture, gateway in names], manifest.generated


# -- captures to fit on and to replay --


def split_captures(folder: Path, root: Path | None, out: Path) -> tuple[Path, Path, Path]:
    """Return a manifest of the user's captures to fit on, one of those to replay, and the folder of their files.

    Of each device all benign captures but the last are fitted, and the first of several attacks with one label.
    Manifests are written to ``out`` unless the user's folder has both; DemoError when nothing is left to fit on.
    """
    if (folder / "fit.yaml").exists() and (folder / "replay.yaml").exists():
        return folder / "fit.yaml", folder / "replay.yaml", root or folder
    manifest, path, base = captures.load(folder, root)
    last = {c.device: c for c in manifest.captures if c.label == BENIGN}
    firsts: dict[str, Capture] = {}
    labels = [c.label for c in manifest.captures if c.label != BENIGN]
    for capture in manifest.captures:
        if capture.label != BENIGN and labels.count(capture.label) > 1:
            firsts.setdefault(capture.label, capture)
    fit = [c for c in manifest.captures if c.label == BENIGN and c is not last[c.device]] + list(firsts.values())
    if not any(c.label == BENIGN for c in fit):
        raise DemoError(f"{path}: no device has two benign captures, one to fit on and one to replay")
    replay = [c for c in manifest.captures if c not in fit]
    for name, chosen in (("fit.yaml", fit), ("replay.yaml", replay)):
        data = dataclasses.asdict(replace(manifest, captures=tuple(chosen)))
        (out / name).write_text(yaml.safe_dump(json.loads(json.dumps(data, default=str)), sort_keys=False))
    return out / "fit.yaml", out / "replay.yaml", base


# -- processes --


def _command(*words: object) -> list[str]:
    return [sys.executable, "-m", "edge_agent.command", *map(str, words)]


def _run(*words: object) -> None:
    """Run one `botwatch` command with its output on this terminal; DemoError when it fails."""
    status = subprocess.run(_command(*words)).returncode
    if status:
        raise DemoError(f"`botwatch {' '.join(map(str, words))}` ended with status {status}")


@contextlib.contextmanager
def _process(command: list[str], log: Path | None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process as long as the block, its output in ``log`` (None: this terminal)."""
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open(log, "wb")) if log else None
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT if output else None)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(READY_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], name: str, log: Path) -> None:
    """Wait until a process is ready; DemoError with its last line when it ends or takes too long."""
    deadline = time.monotonic() + READY_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it wrote nothing"]
            raise DemoError(f"{name} did not start: {tail[0]}")
        time.sleep(POLL_S)


@contextlib.contextmanager
def _broker(out: Path) -> Iterator[str]:
    """Run a broker on a free loopback port and give its address: mosquitto, or amqtt where that is not installed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    log = out / "broker.log"
    if mosquitto:
        config = out / "mosquitto.conf"
        lines = (f"user {getpass.getuser()}", f"listener {port} 127.0.0.1", "allow_anonymous true")
        config.write_text("\n".join((*lines, "max_queued_messages 50000", "")))  # at 1,000, its default, it drops
        command = [mosquitto, "-c", str(config)]
    else:
        command = [sys.executable, "-c", AMQTT, str(port)]
    # amqtt does not know MQTT 5 and does not answer to it either: a client would wait in vain
    version = {"broker": {"version": "auto" if mosquitto else "3.1.1"}}
    (out / "collector.yaml").write_text(yaml.safe_dump(version))
    (out / "agent.yaml").write_text(yaml.safe_dump({**version, **AS_FITTED}))

    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    with _process(command, log) as process:
        _wait_until(listens, process, "broker", log)
        print(f"broker: {'mosquitto' if mosquitto else 'amqtt'} on 127.0.0.1:{port}")
        yield f"127.0.0.1:{port}"


AMQTT = """
import asyncio, sys
from amqtt.broker import Broker
async def main():
    broker = Broker({
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{sys.argv[1]}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    })
    await broker.start()
    await asyncio.Event().wait()
asyncio.run(main())
"""
"""A broker of MQTT 3.1.1 on the loopback port given as argument."""


@contextlib.contextmanager
def _collector(out: Path, address: str) -> Iterator[Path]:
    """Run a collector at the broker, list on this terminal what it stores, and give its database."""
    database, log = out / "alerts.sqlite", out / "collector.log"
    with _process(
        _command("collector", "serve", "--config", out / "collector.yaml", "--broker", address, "--db", database), log
    ) as serve:
        _wait_until(lambda: "subscribed" in log.read_text(errors="replace"), serve, "collector", log)
        with _process(_command("collector", "alerts", "--follow", "--db", database), None):
            yield database


def gateway_ids(manifest: CaptureManifest) -> list[str]:
    """Return an id for each capture's gateway, named after its device and file; numbered where two would be equal."""
    names: list[str] = []
    for capture in manifest.captures:
        name = re.sub("[^a-z0-9]+", "-", f"{capture.device}-{capture.file.stem}".lower()).strip("-")
        free = name = name[:55].strip("-") or "capture"
        number = 1
        while free in names:
            number += 1
            free = f"{name}-{number}"
        names.append(free)
    return names


def _replay(
    manifest: CaptureManifest, root: Path, folder: Path, more: Callable[[str], list[object]]
) -> list[tuple[Capture, str]]:
    """Replay every capture through an agent of its own, two at a time; return each with its gateway's id.

    ``more`` are further words of a gateway's command. Alerts and logs are written to ``folder``.
    """
    names = list(zip(manifest.captures, gateway_ids(manifest), strict=True))
    folder.mkdir()

    def one(capture: Capture, gateway: str) -> None:
        words = ["agent", "replay", "--json", root / capture.file, "--gateway", gateway, *more(gateway)]
        with open(folder / f"{gateway}.jsonl", "wb") as alerts, open(folder / f"{gateway}.log", "wb") as log:
            status = subprocess.run(_command(*words), stdout=alerts, stderr=log).returncode
        if status:
            tail = (folder / f"{gateway}.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise DemoError(f"agent on {capture.file} ended with status {status}: {' '.join(tail)}")

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(one, capture, gateway) for capture, gateway in names]:
            done.result()
    return names


def _out_of_the_box(manifest: CaptureManifest, root: Path, out: Path) -> list[Verdict]:
    """Replay every capture with the built-in bundle, without a broker; return the verdict on each."""
    config, folder = out / "builtin.yaml", out / "builtin"
    config.write_text(yaml.safe_dump(AS_FITTED))
    names = _replay(manifest, root, folder, lambda gateway: ["--config", config])
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    alerts = [Alert.read(json.loads(line)) for line in lines]
    return [judge(capture, gateway, root, alerts) for capture, gateway in names]


def _stored(database: Path, out: Path) -> list[Alert]:
    """Return all alerts of the collector, once it has as many as the agents sent."""
    sent = sum(len(path.read_text().splitlines()) for path in (out / "agent").glob("*.jsonl"))
    deadline = time.monotonic() + DELIVER_S
    while True:
        command = _command("collector", "alerts", "--json", "--after", 0, "--db", database)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise DemoError(f"`{' '.join(command[3:])}` ended with status {done.returncode}: {done.stderr.strip()}")
        listed = done.stdout.splitlines()
        if len(listed) >= sent:
            break
        if time.monotonic() > deadline:
            raise DemoError(f"the agents sent {sent} alerts, the collector has {len(listed)}")
        time.sleep(0.2)
    time.sleep(0.5)  # for `alerts --follow` to show the last ones above the table
    return [Alert.read(json.loads(line)) for line in listed]


# -- verdict --


def judge(capture: Capture, gateway: str, root: Path, alerts: Sequence[Alert]) -> Verdict:
    """Compare one gateway's alerts with the events of its capture, by the rule of `botwatch trainer evaluate`."""
    mac = captures.parse_mac(capture.mac) if capture.mac else None
    times = _times(root / capture.file, mac)
    start = capture.attack.start_ns if capture.attack else int(times[0]) if len(times) else 0
    by_id: dict[str, list[Alert]] = {}
    for alert in alerts:
        if alert.gateway == gateway:
            by_id.setdefault(alert.id, []).append(alert)
    episodes = sorted(by_id.values(), key=lambda episode: episode[0].t_ns)
    hits = [] if capture.label == BENIGN else detections(episodes, _expected(capture, root), start)
    verdict = Verdict(capture=capture, gateway=gateway, false_alerts=len(episodes) - len(hits))
    if not hits:
        return verdict
    t_ns = hits[0][0].t_ns
    packets = int(((times >= start) & (times <= t_ns)).sum())
    return replace(verdict, ms=(t_ns - start) / 1e6, packets=packets, class_name=hits[0][-1].class_name)


def _expected(capture: Capture, root: Path) -> ExpectedSubject:
    """Return whom alerts on an attack capture must be about, as far as the capture and its manifest show that."""
    try:
        attack = inject.attack(inject.read(root / capture.file), capture)
    except InjectError:  # the manifest names no attacker, or the frames are not of Ethernet
        return ExpectedSubject(mac=captures.mac_text(captures.parse_mac(capture.mac)) if capture.mac else "")
    return expected_subject(attack, attack.host)


def _times(path: Path, mac: int | None) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the packet times (ns) of one sender in a capture; of all where ``mac`` is None."""
    extractor, parts = Extractor(max_streams=64), [np.zeros(0, dtype=np.int64)]
    with open_file(path) as source:
        while len(rows := extractor.push(source, 4096)):
            parts.append(rows.meta["t_ns"][slice(None) if mac is None else rows.meta["src_mac"] == mac])
    return np.concatenate(parts)


def print_verdicts(verdicts: Sequence[Verdict], generated: bool) -> bool:
    """Print the closing tables; return whether an attack was missed or a benign device alerted."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 150)
    kind = "generated traffic" if generated else "given captures"
    attacks, benign = Table(title=f"Attacks ({kind})"), Table(title=f"Benign devices ({kind})")
    for name in ("capture", "attack", "detected", "packets to alert", "ms to alert", "class", "", "false alerts"):
        attacks.add_column(name, justify="right" if "to alert" in name or name == "false alerts" else "left")
    benign.add_column("capture")
    benign.add_column("false alerts", justify="right")
    for verdict in verdicts:
        if verdict.capture.label == BENIGN:
            benign.add_row(str(verdict.capture.file), str(verdict.false_alerts))
        else:
            attacks.add_row(*_cells(verdict))
    console.print()
    for table in (attacks, benign):
        if table.row_count:
            console.print(table)
    print(summary(verdicts))
    return any(verdict.missed or verdict.false_alerts for verdict in verdicts)


def summary(verdicts: Sequence[Verdict]) -> str:
    """Return in one line how many attacks were detected, which ones were not, and how many alerts were false."""
    missed = [str(verdict.capture.file) for verdict in verdicts if verdict.missed]
    false = sum(verdict.false_alerts for verdict in verdicts)
    of_attacks = [verdict.ms is not None for verdict in verdicts if verdict.capture.label != BENIGN]
    found = f"{sum(of_attacks)} of {len(of_attacks)} attacks detected, {false} false alerts"
    return found + (f"; missed: {', '.join(missed)}" if missed else "")


def _cells(verdict: Verdict) -> tuple[str, ...]:
    """Return the line of an attack in the closing table."""
    label = verdict.capture.label
    if verdict.class_name in ("", "anomaly", "unknown"):
        right = ""
    elif verdict.class_name == label:
        right = "right"
    else:
        right = "right family" if verdict.class_name == (family(label) or label) else "wrong"
    return (
        str(verdict.capture.file),
        label,
        "yes" if verdict.ms is not None else "no" if verdict.capture.expected else "no (no goal)",
        "" if verdict.packets is None else f"{verdict.packets:,}",
        "" if verdict.ms is None else f"{verdict.ms:,.0f}",
        verdict.class_name,
        right,
        str(verdict.false_alerts),
    )
