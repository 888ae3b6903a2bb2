"""`botwatch demo`: the whole chain on this machine, each part as the process a user would start.

Captures -> fit -> bundle -> broker, collector and agents -> alerts as they come -> a closing table. This module knows
the order of the commands and how to hold the collector's alerts against the manifest of what was replayed; it computes
nothing that the product computes elsewhere.
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
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from edge_agent.capture.features import Extractor
from edge_agent.capture.sources import CaptureError, open_file
from edge_agent.contract import captures, settings
from edge_agent.contract.bundle import BENIGN
from edge_agent.contract.captures import Capture, CaptureManifest

PROG = "botwatch demo"

FIT = [
    *("--seed", "1", "--days", "3", "--infected", "camera-1,plug-1", "--max-attack-packets", "8000"),
    *("--devices", "camera,camera,plug,plug,thermostat,doorbell,doorbell,gateway,gateway"),
]
"""What is fitted on: nine devices for three days, two of them infected with every attack."""

REPLAY = [
    *("--seed", "2", "--start", "2026-02-10", "--days", "1"),
    *("--devices", "camera,plug,thermostat,doorbell,gateway,bulb", "--infected", "doorbell-1"),
    *("--attacks", "{attacks},mirai.scan:rate=20:port=5555"),
]
"""What is replayed: another home on other days, with a kind of device (bulb) and a variant that were not fitted."""

TRAINER = {
    "autoencoder": {"epochs": 60, "patience": 20},
    "classifier": {
        "rows_per_class": 4000,
        "classes": {"mirai.ack": "mirai", "mirai.udp": "mirai"},
        "training": {"epochs": 60, "batch": 256},
    },
}
"""Shorter than the defaults, for three minutes. Mirai's ack and udp floods differ in 12 bytes of 566, which squash and
int8 cannot hold apart from one home to another: they are one class, the family."""

READY_S, DELIVER_S = 20.0, 30.0


class DemoError(Exception):
    """The chain broke; the message says where."""


@dataclass(frozen=True)
class Verdict:
    """What the collector knows of one replayed capture."""

    capture: Capture
    gateway: str
    ms: float | None  # from the first attack packet to the first alert that names the attacker or its victim
    packets: int | None  # of the attacker in that time
    said: str  # class in the last message of that episode
    false_alerts: int  # episodes of anybody else, or from before the attack

    @property
    def missed(self) -> bool:
        """An attack that was to be found and was not."""
        return self.capture.label != BENIGN and self.capture.expected and self.ms is None


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every attack was found and no benign device alerted, 1 otherwise, 2 when wrongly asked."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        PROG,
        description="The whole chain on this machine: captures, fit, convert, broker, collector, agents, alerts.",
        epilog=f"example:\n  {PROG} --captures my-captures --out demo",
        formatter_class=raw,
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="work folder (default: demo)")
    parser.add_argument(
        "--captures",
        type=Path,
        metavar="DIR",
        help="captures of your own instead of generated ones: a folder with manifest.yaml (of each device all benign "
        "captures but the last are fitted), or with fit.yaml and replay.yaml",
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="where those manifests' files lie, if elsewhere")
    args = parser.parse_args(argv)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"\n[{time.monotonic() - began:5.1f} s] {text}", flush=True)

    try:
        if args.out.exists():
            _clear(args.out)
        args.out.mkdir(parents=True, exist_ok=True)
        verdicts, generated = _demo(args, say)
    except (DemoError, settings.SettingsError, CaptureError, OSError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    failed = _close(verdicts, generated)
    say("done" if not failed else "done, not as it should be")
    return int(failed)


def _clear(out: Path) -> None:
    """Empty a work folder of ours; anything else is left alone."""
    if any(out.iterdir()) and not (out / ".botwatch-demo").exists():
        raise DemoError(f"{out} exists and is not a demo's folder; give another --out")
    shutil.rmtree(out)


def _demo(args: argparse.Namespace, say: Callable[[str], None]) -> tuple[list[Verdict], bool]:
    out: Path = args.out
    (out / ".botwatch-demo").touch()
    if args.captures:
        fit_path, replay_path, root = _own(args.captures, args.root, out)
    else:
        say("generating captures: a home to fit on, and another on other days to replay")
        _run("trainer", "generate", "--out", out / "fit", *FIT)
        from_fit, _, _ = captures.load(out / "fit")
        attacks = ",".join(dict.fromkeys(c.label for c in from_fit.captures if c.label != BENIGN))
        _run("trainer", "generate", "--out", out / "replay", *(text.format(attacks=attacks) for text in REPLAY))
        fit_path, replay_path, root = out / "fit" / captures.MANIFEST, out / "replay" / captures.MANIFEST, None
    manifest, _, replay_root = captures.load(replay_path, root)

    say("fitting autoencoder and classifier")
    entry = {"kind": "captures", "path": str(fit_path.resolve()), "root": str(root.resolve()) if root else None}
    (out / "trainer.yaml").write_text(yaml.safe_dump({"data": [entry], **TRAINER}))
    _run("trainer", "fit", out / "trainer.yaml", "--out", out / "run")
    say("converting to TFLite")
    _run("converter", out / "run", "--out", out / "bundle")
    say("broker, collector and agents")
    with _broker(out) as address, _collector(out, address) as database:
        say("replaying; alerts as the collector stores them:")
        names = _replay(manifest, replay_root, out, address)
        alerts = _stored(database, out)
    return [_judge(capture, gateway, replay_root, alerts) for capture, gateway in names], manifest.generated


# -- what is fitted, what is replayed --


def _own(folder: Path, root: Path | None, out: Path) -> tuple[Path, Path, Path]:
    """The user's captures as one manifest to fit on and one to replay."""
    if (folder / "fit.yaml").exists() and (folder / "replay.yaml").exists():
        return folder / "fit.yaml", folder / "replay.yaml", root or folder
    manifest, path, base = captures.load(folder, root)
    last = {c.device: c for c in manifest.captures if c.label == BENIGN}
    firsts: dict[str, Capture] = {}
    labels = [c.label for c in manifest.captures if c.label != BENIGN]
    for capture in manifest.captures:
        if capture.label != BENIGN and labels.count(capture.label) > 1:
            firsts.setdefault(capture.label, capture)  # one of several is there to learn the class from
    fit = [c for c in manifest.captures if c.label == BENIGN and c is not last[c.device]] + list(firsts.values())
    if not any(c.label == BENIGN for c in fit):
        raise DemoError(f"{path}: no device has two benign captures, one to fit on and one to replay")
    replay = [c for c in manifest.captures if c not in fit]
    for name, chosen in (("fit.yaml", fit), ("replay.yaml", replay)):
        data = dataclasses.asdict(dataclasses.replace(manifest, captures=tuple(chosen)))
        (out / name).write_text(yaml.safe_dump(json.loads(json.dumps(data, default=str)), sort_keys=False))
    return out / "fit.yaml", out / "replay.yaml", base


# -- processes --


def _command(*words: object) -> list[str]:
    return [sys.executable, "-m", "edge_agent.command", *map(str, words)]


def _run(*words: object) -> None:
    """One `botwatch` command, its output on our terminal; DemoError when it fails."""
    status = subprocess.run(_command(*words)).returncode
    if status:
        raise DemoError(f"`botwatch {' '.join(map(str, words))}` ended with status {status}")


@contextlib.contextmanager
def _process(command: list[str], log: Path | None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs as long as the block, its output in ``log`` (None: our terminal)."""
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


def _until(ready: Callable[[], bool], process: subprocess.Popen[bytes], what: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise DemoError(f"{what} does not come up: {tail[0]}")
        time.sleep(0.05)


@contextlib.contextmanager
def _broker(out: Path) -> Iterator[str]:
    """The address of a broker on a free loopback port: mosquitto, or amqtt where that is not installed."""
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
    # amqtt knows no MQTT 5 and does not answer to it either: nobody shall wait for that
    version = {"broker": {"version": "auto" if mosquitto else "3.1.1"}}
    (out / "collector.yaml").write_text(yaml.safe_dump(version))
    # what is shown is the model as fitted: attacks of some seconds leave no hour to learn a device's own limits in
    (out / "agent.yaml").write_text(yaml.safe_dump({**version, "learning": {"enabled": False}}))

    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    with _process(command, log) as process:
        _until(listens, process, "broker", log)
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
    """A collector at the broker, and what it stores on our terminal; gives its database."""
    database, log = out / "alerts.sqlite", out / "collector.log"
    with _process(
        _command("collector", "serve", "--config", out / "collector.yaml", "--broker", address, "--db", database), log
    ) as serve:
        _until(lambda: "subscribed" in log.read_text(errors="replace"), serve, "collector", log)
        with _process(_command("collector", "alerts", "--follow", "--db", database), None):
            yield database


def _gateways(manifest: CaptureManifest) -> list[str]:
    """An id for each capture's gateway, after its device and file; numbered where two would be the same."""
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


def _replay(manifest: CaptureManifest, root: Path, out: Path, address: str) -> list[tuple[Capture, str]]:
    """Every capture through an agent of its own, two at a time; returns each with its gateway's id."""
    names = list(zip(manifest.captures, _gateways(manifest), strict=True))
    for folder in ("outbox", "agent"):
        (out / folder).mkdir()

    def one(capture: Capture, gateway: str) -> None:
        words = ["agent", "replay", root / capture.file, "--config", out / "agent.yaml", "--bundle", out / "bundle"]
        words += ["--broker", address]
        words += ["--gateway", gateway, "--outbox", out / "outbox" / f"{gateway}.sqlite", "--wait", DELIVER_S]
        with (
            open(out / "agent" / f"{gateway}.jsonl", "wb") as alerts,
            open(out / "agent" / f"{gateway}.log", "wb") as log,
        ):
            status = subprocess.run(_command(*words), stdout=alerts, stderr=log).returncode
        if status:
            said = (out / "agent" / f"{gateway}.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise DemoError(f"agent on {capture.file} ended with status {status}: {' '.join(said)}")

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(one, capture, gateway) for capture, gateway in names]:
            done.result()
    return names


def _stored(database: Path, out: Path) -> list[dict[str, Any]]:
    """All alerts the collector has, once it has as many as the agents sent."""
    sent = sum(len(path.read_text().splitlines()) for path in (out / "agent").glob("*.jsonl"))
    deadline = time.monotonic() + DELIVER_S
    while True:
        command = _command("collector", "alerts", "--json", "--last", 0, "--db", database)
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
    return [json.loads(line) for line in listed]


# -- verdict --


def _judge(capture: Capture, gateway: str, root: Path, alerts: list[dict[str, Any]]) -> Verdict:
    """Hold one gateway's alerts against what its capture holds."""
    mac = captures.parse_mac(capture.mac) if capture.mac else None
    times = _times(root / capture.file, mac)
    start = capture.attack.start_ns if capture.attack else int(times[0]) if len(times) else 0
    episodes: dict[str, list[dict[str, Any]]] = {}
    for alert in alerts:
        if alert["host"] == gateway:
            episodes.setdefault(alert["alert"]["context"]["botwatch"]["id"], []).append(alert)
    found: list[tuple[int, str]] = []
    false = 0
    for messages in episodes.values():
        t_ns = _ns(messages[0]["timestamp"])
        own, sender = messages[0]["alert"]["context"]["botwatch"], messages[0].get("ether", {}).get("src_mac")
        blamed = mac is None or sender == captures.mac_text(mac) or own["role"] == "victim"
        if capture.label != BENIGN and t_ns >= start and blamed:
            found.append((t_ns, messages[-1]["alert"]["context"]["botwatch"]["class"]))
        else:
            false += 1
    if not found:
        return Verdict(capture, gateway, None, None, "", false)
    t_ns, said = min(found)
    packets = int(((times >= start) & (times <= t_ns)).sum())
    return Verdict(capture, gateway, (t_ns - start) / 1e6, packets, said, false)


def _times(path: Path, mac: int | None) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Packet times (ns) of one sender in a capture; of all where ``mac`` is None."""
    extractor, parts = Extractor(max_streams=64), [np.zeros(0, dtype=np.int64)]
    with open_file(path) as source:
        while len(rows := extractor.push(source, 4096)):
            parts.append(rows.meta["t_ns"][slice(None) if mac is None else rows.meta["src_mac"] == mac])
    return np.concatenate(parts)


def _ns(timestamp: str) -> int:
    when = datetime.strptime(timestamp, "%Y-%m-%dT%H:%M:%S.%f%z")
    return int(when.timestamp()) * 1_000_000_000 + when.microsecond * 1000


def _close(verdicts: list[Verdict], generated: bool) -> bool:
    """Print the closing tables; whether something was missed or cried wolf."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 150)
    kind = "generated traffic" if generated else "given captures"
    attacks = Table(title=f"Attacks ({kind})")
    for name in ("capture", "attack", "detected", "packets to alert", "ms to alert", "class said", "", "false alerts"):
        attacks.add_column(name, justify="right" if "to alert" in name or name == "false alerts" else "left")
    benign = Table(title=f"Benign devices ({kind})")
    for name in ("capture", "false alerts"):
        benign.add_column(name, justify="right" if name == "false alerts" else "left")
    for v in verdicts:
        if v.capture.label == BENIGN:
            benign.add_row(str(v.capture.file), str(v.false_alerts))
            continue
        if v.said in ("", "anomaly", "unknown"):
            right = ""
        elif v.said == v.capture.label:
            right = "right"
        else:
            right = "right family" if v.said == v.capture.label.partition(".")[0] else "wrong"
        attacks.add_row(
            str(v.capture.file),
            v.capture.label,
            "yes" if v.ms is not None else "no" if v.capture.expected else "no (no goal)",
            "" if v.packets is None else f"{v.packets:,}",
            "" if v.ms is None else f"{v.ms:,.0f}",
            v.said,
            right,
            str(v.false_alerts),
        )
    console.print()
    if attacks.row_count:
        console.print(attacks)
    if benign.row_count:
        console.print(benign)
    missed = [str(v.capture.file) for v in verdicts if v.missed]
    false = sum(v.false_alerts for v in verdicts)
    count = sum(v.capture.label != BENIGN for v in verdicts)
    print(
        f"{count - sum(v.ms is None for v in verdicts if v.capture.label != BENIGN)} of {count} attacks detected, "
        f"{false} false alerts" + (f"; missed: {', '.join(missed)}" if missed else "")
    )
    return bool(missed or false)
