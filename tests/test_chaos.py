"""Alerts survive what happens on a gateway: the agent killed anywhere, the broker killed, stopped, away, the disk full.

Real processes: agents as a user starts them, mosquitto, the collector with its database.
"""

import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

from tests.broker import Mosquitto, needs_mosquitto, wait_until
from tests.collector.test_collector_command import Collector
from tests.conftest import Home
from tests.reference.frames import pcap

ROUNDS = 40 if os.environ.get("BOTWATCH_LONG") else 6
CONFIG = """
alerts: {update_s: 1.0}
broker: {retry_min_s: 0.1, retry_max_s: 1.0}
"""


class Gateways:
    """Agents that share an outbox; each has an id of its own, so that no two rounds give the same alerts."""

    def __init__(self, home: Home, folder: Path, broker: Mosquitto) -> None:
        self.home, self.folder, self.broker = home, folder, broker
        (folder / "agent.yaml").write_text(CONFIG)

    def start(self, name: str, capture: Path, wait_s: float = 30.0, most_bytes: int = 0) -> "subprocess.Popen[str]":
        words = ["replay", capture, "--config", self.folder / "agent.yaml", "--bundle", self.home.bundle]
        words += ["--gateway", name, "--broker", self.broker.address, "--outbox", self.folder / "outbox.sqlite"]
        words += ["--wait", wait_s]
        limit = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({most_bytes}, -1)); " if most_bytes else ""
        program = f"{limit}import sys; from edge_agent.__main__ import main; sys.exit(main(sys.argv[1:]))"
        with (self.folder / f"{name}.log").open("w") as log:
            command = [sys.executable, "-c", program, *map(str, words)]
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


def keys(lines: list[str]) -> set[tuple[str, int]]:
    own = [json.loads(line)["alert"]["context"]["botwatch"] for line in lines]
    return {(o["id"], o["seq"]) for o in own}


@needs_mosquitto
def test_no_alert_is_lost_whoever_is_killed_when(home: Home, attack_capture: Path, tmp_path: Path) -> None:
    """An agent prints an alert just before it keeps it, so of a killed one the last line printed may be missing."""
    seed = int(os.environ.get("BOTWATCH_SEED", random.SystemRandom().randrange(2**32)))
    print(f"again with BOTWATCH_SEED={seed}")
    rng = random.Random(seed)
    broker = Mosquitto(tmp_path / "broker").start()
    gateways = Gateways(home, tmp_path, broker)
    silence = tmp_path / "silence.pcap"
    silence.write_bytes(pcap([]))
    expected: set[tuple[str, int]] = set()
    perhaps: set[tuple[str, int]] = set()
    killed = 0
    with Collector(broker, tmp_path / "collector.sqlite") as collector:
        up = True
        for number in range(ROUNDS):
            event = rng.choice(("kill", "stop", "none")) if up else "start"
            process = gateways.start(f"chaos-{number}", attack_capture)
            assert process.stdout is not None
            lines = [process.stdout.readline()]
            assert lines[0], gateways.said(f"chaos-{number}")
            time.sleep(rng.uniform(0.0, 0.3))
            if event == "start":
                broker.start()
            elif event == "kill":
                broker.kill()
            elif event == "stop":
                broker.stop()
            up = event in ("start", "none")
            time.sleep(rng.uniform(0.0, 0.3))
            killed += process.poll() is None
            process.kill()
            lines += process.stdout.readlines()
            process.wait(10)
            whole = [line for line in lines if line.endswith("\n")]
            expected |= keys(whole[:-1])
            perhaps |= keys(whole[-1:])
        if not up:
            broker.start()
        last = gateways.start("chaos-last", silence)
        assert last.wait(60) == 0, gateways.said("chaos-last")
        assert killed > ROUNDS // 3
        assert len(expected) > 10 * ROUNDS
        wait_until(lambda: expected <= collector.stored(), 30)
        assert collector.stored() <= expected | perhaps
    broker.stop()


@needs_mosquitto
def test_a_full_disk_costs_no_alert(home: Home, attack_capture: Path, tmp_path: Path) -> None:
    """The limit on the size of files acts as a disk with no space left; it is lifted while the agent waits."""
    broker = Mosquitto(tmp_path / "broker")
    gateways = Gateways(home, tmp_path, broker)
    process = gateways.start("full", attack_capture, wait_s=60, most_bytes=140_000)
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if '"state":"end"' in line and len([x for x in lines if '"state":"end"' in x]) == 2:
            break
    wait_until(lambda: "kept in memory" in gateways.said("full"))
    with broker, Collector(broker, tmp_path / "collector.sqlite") as collector:
        wait_until(lambda: keys(lines) <= collector.stored(), 30)  # from memory, the disk being full
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert process.wait(60) == 0, gateways.said("full")
        assert collector.stored() == keys(lines + process.stdout.readlines())
    assert gateways.said("full").count("kept in memory") == 1
