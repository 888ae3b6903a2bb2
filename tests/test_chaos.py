"""Alerts survive an agent killed at any moment, a broker that is killed, stopped or away, and a full disk.

Real processes: agents as a user starts them, mosquitto, the collector with its database.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

from tests.broker import Mosquitto, needs_mosquitto, wait_until
from tests.collector.test_collector_command import Collector
from tests.conftest import Home
from tests.reference.frames import pcap
from tests.streams import context

KILLS, OUTAGE_S = (60, 180.0) if os.environ.get("BOTWATCH_LONG") else (5, 0.0)
CONFIG = """
alerts: {update_s: 1.0}
broker: {retry_min_s: 0.1, retry_max_s: 1.0}
"""


class Gateways:
    """Agents that share an outbox; each has its own gateway id, so that no two rounds give the same alerts."""

    def __init__(self, home: Home, folder: Path, broker: Mosquitto) -> None:
        self.home, self.folder, self.broker = home, folder, broker
        (folder / "agent.yaml").write_text(CONFIG)

    def start(self, name: str, capture: Path, wait_s: float = 30.0, most_bytes: int = 0) -> "subprocess.Popen[str]":
        words = ["replay", "--json", capture, "--config", self.folder / "agent.yaml", "--bundle", self.home.bundle]
        words += ["--gateway", name, "--broker", self.broker.address, "--outbox", self.folder / "outbox.sqlite"]
        words += ["--wait", wait_s]
        limit = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({most_bytes}, -1)); " if most_bytes else ""
        program = f"{limit}import sys; from edge_agent.__main__ import main; sys.exit(main(sys.argv[1:]))"
        with (self.folder / f"{name}.log").open("w") as log:
            command = [sys.executable, "-c", program, *map(str, words)]
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)

    def possible(self, name: str, capture: Path) -> set[tuple[str, int]]:
        """Return the keys of all alerts that gateway ``name`` can have stored: those of a whole replay."""
        words = ["replay", "--json", capture, "--config", self.folder / "agent.yaml", "--bundle", self.home.bundle]
        command = [sys.executable, "-m", "edge_agent", *map(str, words), "--gateway", name]
        replayed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return keys(replayed.splitlines())

    def over(self, name: str, process: "subprocess.Popen[str]") -> bool:
        """Return True once no alert is in memory only: the disk can be written again, or the agent has ended."""
        return "can be written again" in self.log(name) or process.poll() is not None

    def log(self, name: str) -> str:
        """Return what an agent has written to stderr."""
        return (self.folder / f"{name}.log").read_text()


def keys(lines: list[str]) -> set[tuple[str, int]]:
    """Return id and number of the alerts that an agent printed."""
    return {(alert["id"], alert["seq"]) for alert in (context(json.loads(line)) for line in lines)}


def lift(process: "subprocess.Popen[str]") -> None:
    """Let the process write to its disk again."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@needs_mosquitto
def test_no_alert_is_lost_whatever_is_killed_at_any_moment(home: Home, attack_capture: Path, tmp_path: Path) -> None:
    """Agents are killed at random moments, with the broker up, killed, stopped, back, or the disk full for a while.

    With BOTWATCH_LONG, the broker is also away for three minutes at a stretch, while agents go on being killed. An
    agent stores an alert before it prints it: what it printed is never missing, and what is stored was not always
    printed.
    """
    seed = int(os.environ.get("BOTWATCH_SEED", random.SystemRandom().randrange(2**32)))
    print(f"again with BOTWATCH_SEED={seed}")
    rng = random.Random(seed)
    broker = Mosquitto(tmp_path / "broker").start()
    gateways = Gateways(home, tmp_path, broker)
    silence = tmp_path / "silence.pcap"
    silence.write_bytes(pcap([]))
    expected: set[tuple[str, int]] = set()
    names: list[str] = []
    did: Counter[str] = Counter()
    outage_till = 0.0
    with Collector(broker, tmp_path / "collector.sqlite") as collector:
        up = True
        while did["agent killed"] < KILLS or time.monotonic() < outage_till:
            assert sum(did.values()) < 8 * KILLS, did
            if up:
                event = rng.choice(("broker killed", "broker stopped", "nothing", "disk full"))
            else:
                event = "disk full" if time.monotonic() < outage_till else "broker back"
            if OUTAGE_S and not outage_till and did["agent killed"] > KILLS // 2 and up:
                event, outage_till = "broker stopped", time.monotonic() + OUTAGE_S
            if event == "disk full" and not up and rng.random() < 0.7:
                event = "nothing"
            did[event] += 1
            name = f"chaos-{sum(did.values())}"
            names.append(name)
            process = gateways.start(name, attack_capture, most_bytes=140_000 if event == "disk full" else 0)
            assert process.stdout is not None
            lines = [process.stdout.readline()]
            assert lines[0], gateways.log(name)
            time.sleep(rng.uniform(0.0, 0.3))  # random moments are what is tested, here and below
            if event == "broker back":
                broker.start()
            elif event == "broker killed":
                broker.kill()
            elif event == "broker stopped":
                broker.stop()
            up = event in ("broker back", "nothing", "disk full") and (up or event == "broker back")
            if event == "disk full":
                lift(process)
                if "stay in memory" in gateways.log(name):  # a kill would lose those, as on a real gateway
                    did["disk was full"] += 1
                    wait_until(partial(gateways.over, name, process))
            time.sleep(rng.uniform(0.0, 0.3))
            did["agent killed"] += process.poll() is None
            process.kill()
            lines += process.stdout.readlines()
            process.wait(10)
            whole = [line for line in lines if line.endswith("\n")]
            expected |= keys(whole)
        if not up:
            broker.start()
        last = gateways.start("chaos-last", silence, wait_s=120)
        assert last.wait(180) == 0, gateways.log("chaos-last")
        assert len(expected) > 10 * KILLS
        wait_until(lambda: expected <= collector.stored(), 60)
        stored = collector.stored()
        if stored - expected:
            assert stored <= expected.union(*(gateways.possible(name, attack_capture) for name in names))
        assert collector.end(signal.SIGTERM) == 0
    broker.stop()
    print(f"{len(expected)} alerts, {len(expected - stored)} lost; {dict(did)}; {collector.said().splitlines()[-1]}")
    assert " 0 rejected" in collector.said().splitlines()[-1]


@needs_mosquitto
def test_a_full_disk_costs_no_alert(home: Home, attack_capture: Path, tmp_path: Path) -> None:
    """A limit on the size of files acts as a full disk; it is lifted while the agent waits."""
    broker = Mosquitto(tmp_path / "broker")
    gateways = Gateways(home, tmp_path, broker)
    process = gateways.start("full", attack_capture, wait_s=60, most_bytes=140_000)
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if '"state":"end"' in line and len([x for x in lines if '"state":"end"' in x]) == 2:
            break
    wait_until(lambda: "stay in memory" in gateways.log("full"))
    with broker, Collector(broker, tmp_path / "collector.sqlite") as collector:
        wait_until(lambda: keys(lines) <= collector.stored(), 30)  # from memory, since the disk is full
        lift(process)
        assert process.wait(60) == 0, gateways.log("full")
        assert collector.stored() == keys(lines + process.stdout.readlines())
    assert sum("ERROR" in line and "stay in memory" in line for line in gateways.log("full").splitlines()) == 1
