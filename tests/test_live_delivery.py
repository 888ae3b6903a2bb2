"""A live agent that is killed in the middle of an attack, or whose disk is full: every alert arrives.

Gateway and device are network namespaces with a cable between them; broker, agent and collector run on the gateway, as
on a small site. The disk is a file system in memory that only the agent's processes see, of the size the test needs.
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from edge_agent.contract.alert import Alert
from edge_agent.contract.messages import parse_time
from edge_agent.delivery.alerts import CUT_SHORT
from tests.broker import needs_mosquitto, wait_until
from tests.collector.test_collector_command import Collector
from tests.conftest import Home
from tests.live import GatewayMosquitto, Heard, listening
from tests.netns import Wire
from tests.test_chaos import keys
from tests.traffic import scan, steady

pytestmark = needs_mosquitto
KILLS = 15 if os.environ.get("BOTWATCH_LONG") else 2
ROOT = Path(__file__).parents[1]
CONFIG = """
gateway: gw-live
health_s: 1.0
alerts: {{update_s: 0.5, end_s: 5.0}}
capture: {{interfaces: [lan0]}}
broker: {{host: 127.0.0.1, port: {port}, retry_min_s: 0.1, retry_max_s: 0.5}}
outbox: {{path: {disk}/box.sqlite}}
evidence: {{path: {disk}/evidence}}
"""


class Gateway:
    """Agent, broker and collector in the gateway's namespace; the agent's files are on `disk`, see `small_disk`."""

    def __init__(self, wire: Wire, home: Home, folder: Path) -> None:
        self.wire, self.home, self.folder = wire, home, folder
        self.broker = GatewayMosquitto(folder / "broker", wire.gateway)
        self.collector = Collector(self.broker, folder / "collector.sqlite")
        self.collector.before = ("ip", "netns", "exec", wire.gateway)
        self.disk = folder / "disk"
        self.disk.mkdir()
        (folder / "agent.yaml").write_text(CONFIG.format(port=self.broker.port, disk=self.disk))
        self.runs = 0
        self._inside: list[str] = []
        self._open = ExitStack()

    def small_disk(self, size: int) -> Path:
        """Mount a file system of ``size`` bytes as the agent's disk; return its path for the test."""
        mount = f"mount -t tmpfs -o size={size} none {self.disk} && echo ready && exec sleep infinity"
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount]
        holder = self._open.enter_context(ended(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)))
        if holder.stdout is None or holder.stdout.readline() != "ready\n":
            pytest.skip("no file system can be mounted here")
        self._inside = ["nsenter", "--target", str(holder.pid), "--mount"]
        return Path(f"/proc/{holder.pid}/root{self.disk}")

    def agent(self) -> "subprocess.Popen[str]":
        """Start `botwatch agent run`; it captures when this returns."""
        self.runs += 1
        words = ["run", "--config", str(self.folder / "agent.yaml"), "--bundle", str(self.home.bundle)]
        command = [*self._inside, "ip", "netns", "exec", self.wire.gateway]
        command += [sys.executable, "-m", "edge_agent.command", "agent", *words]
        with (self.folder / f"out{self.runs}").open("w") as out, (self.folder / f"err{self.runs}").open("w") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, cwd=ROOT, text=True)
        wait_until(lambda: "capturing on" in self.log() or process.poll() is not None, 60)
        assert process.poll() is None, self.log()
        return process

    def log(self) -> str:
        """Return what the agent running now, or last, has written to stderr."""
        return (self.folder / f"err{self.runs}").read_text()

    def lines(self) -> list[str]:
        """Return the alerts that the agent running now, or last, has printed."""
        return [line for line in (self.folder / f"out{self.runs}").read_text().splitlines(True) if line[-1] == "\n"]

    def listen(self) -> Heard:
        """Start a subscriber on the gateway, and return the messages that it gets."""
        return self._open.enter_context(listening(self.wire, self.broker.port, self.folder / "heard"))

    def close(self) -> None:
        """End the broker and everything else that still runs."""
        self.broker.stop()
        self._open.close()

    def scan(self, device: int, frames: int, rate: float = 1000.0) -> None:
        """Have a device scan."""
        sent = steady(scan(frames, f"192.168.1.{device}", mac=0x02005E100000 + device), 0, rate)
        self.wire.send(sent, self.folder, rate)

    def arrived(self, state: str = "%") -> list[Alert]:
        """Return the alerts in the collector's database, in the order of arrival."""
        with closing(sqlite3.connect(self.collector.db)) as db:
            rows = db.execute("SELECT document FROM alert WHERE state LIKE ? ORDER BY n", (state,)).fetchall()
        return [Alert.read(json.loads(text)) for (text,) in rows]

    def episodes(self) -> dict[str, str]:
        """Return the state of each episode in the collector's database."""
        with closing(sqlite3.connect(self.collector.db)) as db:
            return dict(db.execute("SELECT id, state FROM episode").fetchall())


@pytest.fixture
def site(wire: Wire, home: Home, tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(wire, home, tmp_path)
    yield made
    made.close()


def fill(disk: Path) -> Path:
    """Make a file that takes all the free space, and return its path."""
    with (disk / "fill").open("ab", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return disk / "fill"


@contextmanager
def ended(process: "subprocess.Popen[str]") -> Iterator["subprocess.Popen[str]"]:
    """Kill a process at the end of the block if it still runs."""
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def test_an_agent_killed_in_the_middle_of_an_attack_loses_no_alert_and_leaves_no_episode_open(site):
    """The broker is away while the agent is killed. Of a killed agent the last alert printed may be missing."""
    seed = int(os.environ.get("BOTWATCH_SEED", random.SystemRandom().randrange(2**32)))
    print(f"again with BOTWATCH_SEED={seed}")
    rng = random.Random(seed)
    expected: set[tuple[str, int]] = set()
    for _ in range(KILLS):
        process = site.agent()
        with ended(process):
            site.scan(57, 2500)
            wait_until(lambda: len(site.lines()) >= 2, 20)
            time.sleep(rng.uniform(0.0, 0.7))  # the kill comes at a random moment: that is what is tested
            process.send_signal(signal.SIGKILL)
            process.wait(10)
        expected |= keys(site.lines()[:-1])
    with site.broker, site.collector:
        process = site.agent()
        with ended(process):
            wait_until(lambda: expected <= site.collector.stored(), 30)
            ends = [alert for alert in site.arrived("end") if alert.explanation.startswith(CUT_SHORT)]
            assert len(ends) == KILLS, site.log()  # the next agent ended each episode that a killed one left open
            assert set(site.episodes().values()) == {"end"}
            assert "1 episodes that it left open are ended now" in site.log()
            site.scan(57, 2500)  # the attack goes on: another episode
            wait_until(lambda: len(site.lines()) >= 2, 20)
            wait_until(lambda: list(site.episodes().values()).count("end") == KILLS)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        expected |= keys(site.lines())
        wait_until(lambda: set(site.episodes().values()) == {"end"} and expected <= site.collector.stored())
        assert len(site.episodes()) == KILLS + 1
        assert all(end.duration_s > 0 and end.t_ns >= end.last_ns for end in ends)


def test_an_agent_that_starts_on_a_full_disk_alerts_from_memory_and_writes_when_there_is_space(site):
    disk = site.small_disk(2 << 20)
    filler = fill(disk)
    with site.broker, site.collector:
        heard = site.listen()
        with ended(process := site.agent()):
            site.scan(57, 2500)
            wait_until(lambda: len(site.lines()) >= 2, 20)
            printed = keys(site.lines())
            wait_until(lambda: printed <= site.collector.stored(), 20)  # from memory
            wait_until(lambda: "outbox_unwritable" in heard("health")[-1]["counters"], 20)
            site.broker.stop()
            site.scan(58, 2500)
            wait_until(lambda: len(site.lines()) > len(printed) + 3, 20)
            filler.unlink()
            wait_until(lambda: "can be written again" in site.log(), 20)
            lines = site.lines()
            process.send_signal(signal.SIGKILL)  # the alerts that waited in memory are on the disk now
            process.wait(10)
        assert site.log().count("alerts stay in memory") == 1
        site.broker.start()
        with ended(site.agent()):
            wait_until(lambda: keys(lines[:-1]) <= site.collector.stored(), 20)
            wait_until(lambda: set(site.episodes().values()) == {"end"})
            wait_until(lambda: heard("health") and "outbox_unwritable" not in heard("health")[-1]["counters"])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_alerts_left_on_a_disk_that_has_become_full_are_delivered(site, number):
    disk = site.small_disk(2 << 20)
    with ended(process := site.agent()):
        site.scan(57, 2500)
        wait_until(lambda: len(site.lines()) >= 2, 20)
        process.send_signal(number)
        process.wait(10)
    expected = keys(site.lines()[:-1])
    (disk / "box.sqlite-shm").unlink(missing_ok=True)  # as after a power cut: it needs space again
    fill(disk)
    with site.broker, site.collector, ended(process := site.agent()):
        wait_until(lambda: expected <= site.collector.stored(), 20)
        wait_until(lambda: set(site.episodes().values()) == {"end"})
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, site.log()


def test_a_damaged_state_file_is_moved_aside_and_counted_and_the_agent_alerts(site):
    (site.disk / "box.sqlite").write_bytes(b"no database " * 1000)
    with site.broker, site.collector:
        heard = site.listen()
        with ended(site.agent()):
            site.scan(57, 2500)
            wait_until(lambda: len(site.lines()) >= 2, 20)
            wait_until(lambda: keys(site.lines()) <= site.collector.stored(), 20)
            wait_until(lambda: heard("health")[-1]["counters"].get("state_damaged") == 1)
            wait_until(lambda: len(heard("health")) >= 4)
            times = [parse_time(health["ts"]) for health in heard("health")]
            assert times[3] - times[0] > 1.5e9  # health_s is 1; on a busy machine one may be late and the next not
    assert (site.disk / "box.sqlite.corrupt").read_bytes() == b"no database " * 1000
    assert site.log().count("cannot be used (file is not a database) and is moved to box.sqlite.corrupt") == 1
