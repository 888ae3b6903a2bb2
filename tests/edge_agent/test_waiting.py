"""A start is not stricter than running: interfaces that are absent or down are waited for while others are captured.

Everything happens in network namespaces that the tests make.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge_agent.__main__ import main
from edge_agent.agent import Agent
from edge_agent.capture.sources import CaptureError, Interfaces, LiveSettings, open_file
from edge_agent.config import AgentConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract.alert import ModelInfo
from edge_agent.delivery.alerts import Alerter
from edge_agent.delivery.outbox import Outbox
from edge_agent.service import ClockSteps
from edge_agent.state import State
from tests.broker import wait_until
from tests.edge_agent.test_gateway import routable
from tests.live import agent, alerts, state, status
from tests.netns import MAC, ROOT, Wire, ip, wait_until_up
from tests.reference.frames import pcap
from tests.traffic import Frame, read, scan, steady

TAKE = """
import dataclasses, json, logging, os, sys
from pathlib import Path
from edge_agent.capture.features import Extractor
from edge_agent.capture.sources import Interfaces, Recorder
from edge_agent.config import CaptureConfig
logging.basicConfig(level=logging.INFO)
out, names, rows, extractor = Path(sys.argv[1]), sys.argv[2:], [0] * 16, Extractor(4096, seed=1)
recorder = Recorder(out / "record.pcap", 1 << 20)
live = Interfaces(names, CaptureConfig(filter="not ip6", direction="in").live(), recorder)
def take(source):
    new = extractor.push(source, 100)
    for number in new.meta["interface"].tolist():
        rows[number] += 1
    return len(new)
while True:
    live.each(take, 0.1)
    states = {s.name: (s.captured, s.reason) for s in live.states()}
    document = {"states": states, "rows": dict(zip(names, rows)), **live.counters, "recorded": recorder.ended}
    (out / "new").write_text(json.dumps(document))
    os.replace(out / "new", out / "progress")
"""
"""Captures until it is killed, and writes after each round how the interfaces are doing."""

TUN = """
import fcntl, os, struct, sys
TUNSETIFF, TUNSETLINK = 0x400454CA, 0x400454CD
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", sys.argv[1].encode(), 0x1001))
fcntl.ioctl(tun, TUNSETLINK, int(sys.argv[2]))
os.system(f"ip link set {sys.argv[1]} up")
print("ready", flush=True)
sys.stdin.read()
"""
"""Makes a tunnel whose link layer has this number of Linux, until its stdin is closed."""

S = 10**9

CAN = 280
"""Linux's number of a link layer that carries no IP packets."""


@dataclass
class Watched:
    """A running `TAKE`."""

    folder: Path

    def progress(self) -> dict[str, Any]:
        file = self.folder / "progress"
        document: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        return document

    def wait_for(self, name: str, captured: bool, reason: str) -> None:
        """Wait until an interface is captured, or is not, for a reason."""
        wait_until(lambda: self.progress().get("states", {}).get(name) == [captured, reason], 15)

    def wait_for_rows(self, name: str, rows: int) -> None:
        wait_until(lambda: self.progress()["rows"][name] >= rows, 15)

    def log(self, about: str) -> list[str]:
        """Return the lines about an interface, without level and logger."""
        lines = (self.folder / "log").read_text().splitlines()
        return [line.split(":", 2)[2] for line in lines if f"interface {about} " in line]


@contextmanager
def watched(wire: Wire, folder: Path, *names: str) -> Iterator[Watched]:
    with (folder / "log").open("w") as log:
        process = wire.on_gateway(sys.executable, "-c", TAKE, str(folder), *names, cwd=ROOT, stderr=log)
        try:
            wait_until(lambda: (folder / "progress").exists() or process.poll() is not None, 30)
            assert process.poll() is None, (folder / "log").read_text()
            yield Watched(folder)
        finally:
            process.kill()
            process.wait()


def add(wire: Wire, name: str, *, up: bool = True) -> None:
    """Add a cable to the gateway's namespace whose other end, ``name``x, is there, too."""
    ip("-n", wire.gateway, "link", "add", name, "type", "veth", "peer", "name", f"{name}x")
    ip("-n", wire.gateway, "link", "set", f"{name}x", "up")
    if up:
        ip("-n", wire.gateway, "link", "set", name, "up")


def frames(count: int) -> list[Frame]:
    """Return frames that a bridge passes on, too, which may look at the checksum of IP."""
    made = list(steady(scan(count, "192.168.1.57", mac=MAC), 0, 1000))
    return [(t, n, data) for (t, n, _), data in zip(made, routable([data for *_, data in made]), strict=True)]


def test_an_interface_that_is_absent_at_the_start_is_captured_when_it_comes_and_the_others_meanwhile(wire, tmp_path):
    with watched(wire, tmp_path, "lan0", "lan1") as capture:
        capture.wait_for("lan1", False, "there is no such interface")
        wire.send(frames(100), tmp_path)
        capture.wait_for_rows("lan0", 100)
        add(wire, "lan1", up=False)
        capture.wait_for("lan1", False, "it is down")
        ip("-n", wire.gateway, "link", "set", "lan1", "up")
        capture.wait_for("lan1", True, "")
        wire.send(frames(50), tmp_path, where=wire.gateway, port="lan1x")
        capture.wait_for_rows("lan1", 50)
        progress = capture.progress()
        assert progress["rows"]["lan0"] == 100
        assert (progress["interface_lost"], progress["interface_back"]) == (1, 1)
        began, came = capture.log("lan1")
        assert began == "interface lan1 is not captured yet, it is waited for: there is no such interface"
        assert came.startswith("interface lan1 is there and captured, after ")
        assert capture.log("lan0") == []


def test_an_interface_that_is_down_at_the_start_or_later_is_waited_for_alike(wire, tmp_path):
    ip("-n", wire.gateway, "link", "set", "lan0", "down")
    with watched(wire, tmp_path, "lan0") as capture:
        capture.wait_for("lan0", False, "it is down")
        ip("-n", wire.gateway, "link", "set", "lan0", "up")
        capture.wait_for("lan0", True, "")
        wire.wait_until_up()
        wire.send(frames(60), tmp_path)
        capture.wait_for_rows("lan0", 60)
        ip("-n", wire.gateway, "link", "set", "lan0", "down")
        capture.wait_for("lan0", False, "it is down")
        ip("-n", wire.gateway, "link", "set", "lan0", "up")
        capture.wait_for("lan0", True, "")
        wire.wait_until_up()
        wire.send(frames(60), tmp_path)
        capture.wait_for_rows("lan0", 120)
        assert [line.split(",")[0] for line in capture.log("lan0")] == [
            "interface lan0 is not captured yet",
            "interface lan0 is there and captured",
            "interface lan0 is down and not captured until it is up again",
            "interface lan0 is up and captured again",
        ]


def test_the_interface_that_has_the_name_is_captured_though_another_one_had_it_before(wire, tmp_path):
    """At a boot the system renames interfaces; a capture would follow the one that it was opened on."""
    with watched(wire, tmp_path, "lan0") as capture:
        wire.send(frames(40), tmp_path)
        capture.wait_for_rows("lan0", 40)
        ip("-n", wire.gateway, "link", "set", "lan0", "down")
        ip("-n", wire.gateway, "link", "set", "lan0", "name", "wan0")
        ip("-n", wire.gateway, "link", "set", "wan0", "up")
        capture.wait_for("lan0", False, "there is no such interface")
        add(wire, "lan0")
        capture.wait_for("lan0", True, "")
        wire.send(frames(30), tmp_path, where=wire.gateway, port="lan0x")
        capture.wait_for_rows("lan0", 70)
        wire.send(frames(20), tmp_path)  # through what is wan0 now
        wire.send(frames(5), tmp_path, where=wire.gateway, port="lan0x")
        capture.wait_for_rows("lan0", 75)
        assert capture.progress()["rows"]["lan0"] == 75


def test_an_interface_that_is_made_anew_while_it_is_waited_for_is_captured(wire, tmp_path):
    add(wire, "lan1", up=False)
    with watched(wire, tmp_path, "lan1") as capture:
        capture.wait_for("lan1", False, "it is down")
        ip("-n", wire.gateway, "link", "del", "lan1")
        capture.wait_for("lan1", False, "there is no such interface")
        add(wire, "lan1")
        capture.wait_for("lan1", True, "")
        wire.send(frames(10), tmp_path, where=wire.gateway, port="lan1x")
        capture.wait_for_rows("lan1", 10)


def test_a_bridge_without_ports_is_captured_and_its_state_says_that_it_has_no_carrier(wire, tmp_path):
    ip("-n", wire.gateway, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
    with watched(wire, tmp_path, "br0") as capture:
        capture.wait_for("br0", False, "it is down")
        add(wire, "port0")
        ip("-n", wire.gateway, "link", "set", "port0x", "down")
        ip("-n", wire.gateway, "link", "set", "port0", "master", "br0")
        ip("-n", wire.gateway, "link", "set", "br0", "up")
        capture.wait_for("br0", True, "it has no carrier")
        ip("-n", wire.gateway, "link", "set", "port0x", "up")
        capture.wait_for("br0", True, "")
        wait_until_up(wire.gateway, "port0")
        wire.send(frames(20), tmp_path, where=wire.gateway, port="port0x")
        capture.wait_for_rows("br0", 20)


@contextmanager
def tunnel(wire: Wire, name: str, link: int) -> Iterator[None]:
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("needs /dev/net/tun")
    process = wire.on_gateway(sys.executable, "-c", TUN, name, str(link), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.communicate()


def test_an_interface_of_a_kind_that_cannot_be_captured_is_named_and_the_others_are_captured(wire, tmp_path):
    with tunnel(wire, "odd0", CAN), watched(wire, tmp_path, "odd0", "lan0") as capture:
        captured, reason = capture.progress()["states"]["odd0"]
        assert not captured
        assert reason.startswith("link type 227 (CAN_SOCKETCAN) is not one of Ethernet")
        wire.send(frames(20), tmp_path)
        capture.wait_for_rows("lan0", 20)
        [line] = capture.log("odd0")
        assert line.endswith(reason)
    (tmp_path / "progress").unlink()
    with watched(wire, tmp_path, "odd0", "lan0") as capture:
        capture.wait_for("odd0", False, "there is no such interface")
        with tunnel(wire, "odd0", CAN):
            capture.wait_for("odd0", False, reason)
        capture.wait_for("odd0", False, "there is no such interface")
        add(wire, "odd0")
        capture.wait_for("odd0", True, "")
        assert [line.split(":")[0].split(",")[0] for line in capture.log("odd0")] == [
            "interface odd0 is not captured yet",
            "interface odd0 is there but cannot be captured",
            "interface odd0 is there and captured",
        ]


def test_a_late_interface_of_another_link_layer_ends_the_record_and_not_the_capture(wire, tmp_path):
    with watched(wire, tmp_path, "lan0", "tun0") as capture:
        wire.send(frames(10), tmp_path)
        capture.wait_for_rows("lan0", 10)
        with tunnel(wire, "tun0", 65534):
            wait_until(lambda: capture.progress()["states"]["tun0"][0], 15)
            assert "cannot go into" in capture.progress()["recorded"]
            wire.send(frames(10), tmp_path)
            capture.wait_for_rows("lan0", 20)


def test_the_service_is_ready_and_feeds_the_watchdog_while_it_waits_for_its_only_interface(
    wire, home, tmp_path, monkeypatch
):
    ip("-n", wire.gateway, "link", "del", "lan0")
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(30)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    box = f"outbox: {{path: {tmp_path / 'box.sqlite'}}}\nbroker: {{host: 127.0.0.1, port: 9}}\n"
    with manager, agent(wire, home, tmp_path, config=box):
        assert [manager.recv(100) for _ in range(4)] == [b"READY=1", *[b"WATCHDOG=1"] * 3]
        assert "capturing on no interface yet, waiting for lan0" in (tmp_path / "err").read_text()
        [before] = status(tmp_path)["health"]["interfaces"]
        assert (before["captured"], before["reason"]) == (False, "there is no such interface")
        assert status(tmp_path)["health"]["interfaces_down"] == ["lan0"]
        wire.plug_in()
        wait_until(lambda: status(tmp_path)["health"]["interfaces"][0]["captured"], 15)
        [after] = status(tmp_path)["health"]["interfaces"]
        assert "reason" not in after
        assert after["since"] > before["since"]
        wire.send(steady(scan(2000, "192.168.1.57", mac=MAC), 0, 1000), tmp_path, 1000)
        wait_until(lambda: [state(a) for a in alerts(tmp_path)][:1] == ["new"], 20)


def test_check_calls_an_absent_and_a_down_interface_wrong_with_a_remedy_for_each(wire, tmp_path):
    add(wire, "lan1", up=False)
    ip("-n", wire.gateway, "link", "add", "br0", "type", "bridge")
    ip("-n", wire.gateway, "link", "set", "br0", "up")
    file = tmp_path / "agent.yaml"
    file.write_text(f"gateway: gw-001\ncapture: {{interfaces: [lan1, nosuch0]}}\noutbox: {{path: {tmp_path}/box}}\n")
    command = [sys.executable, "-m", "edge_agent.command", "agent", "check", "--config", str(file)]
    process = wire.on_gateway(*command, stdout=subprocess.PIPE)
    lines = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 1
    assert "WRONG  lan1: it is down; `ip link set lan1 up`; `run` waits for it" in lines
    assert "WRONG  nosuch0: there is no such interface; see `ip link`; `run` waits for it" in lines


FORBIDDEN = """
import os, sys
from edge_agent.capture.sources import CaptureError, Interfaces
os.setgid(65534)
os.setuid(65534)
try:
    Interfaces(sys.argv[1:])
except CaptureError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["lan0", "nosuch0"])
def test_without_the_right_to_capture_a_start_fails_and_says_who_gives_it(wire, name):
    process = wire.on_gateway(sys.executable, "-c", FORBIDDEN, name, stdout=subprocess.PIPE, cwd=ROOT)
    line = process.communicate(timeout=60)[0]
    assert line.startswith(f"{name}: ")
    assert line.endswith("capturing needs root or CAP_NET_RAW (the service unit gives it)\n")


def test_a_filter_that_fits_no_link_layer_is_refused_though_no_interface_is_there(wire):
    with pytest.raises(CaptureError, match=r"^filter 'tcp prt 80': "):
        Interfaces(["nosuch0"], LiveSettings(bpf="tcp prt 80"))


BOOTING = """
set -e
mount -t tmpfs none "$1/state"
cp "$1"/box.sqlite* "$1/state/"
mount -o remount,ro "$1/state"
(until grep -q "the start waits" "$1/err"; do sleep 0.1; done; mount -o remount,rw "$1/state") &
shift
exec "$@"
"""
"""Starts a program while the disk with the state file is read-only, and makes it writable when the program waits."""


def test_a_state_file_on_a_disk_that_is_still_read_only_is_waited_for_and_nothing_in_it_is_forgotten(
    wire, home, tmp_path
):
    with closing(State(tmp_path / "box.sqlite")) as stored:
        alert = Alerter("gw-001", "", ModelInfo("1"), "0.1.0").test_alerts(time.time_ns(), "somebody")[0]
        payload = json.dumps(alert.document()).encode()
        Outbox(stored).put([], {alert.id: ("botwatch/v1/gw/gw-001/alert", payload)})
    (tmp_path / "state").mkdir()
    config = f"outbox: {{path: {tmp_path / 'state' / 'box.sqlite'}}}\nbroker: {{host: 127.0.0.1, port: 9}}\n"
    with agent(wire, home, tmp_path, config=config, under=["unshare", "-m", "sh", "-c", BOOTING, "sh", str(tmp_path)]):
        log = (tmp_path / "err").read_text()
        assert "the state file cannot be read yet, and the start waits 15 s at most: " in log
        assert "box.sqlite can be used now" in log
        assert "1 episodes that it left open are ended now" in log


def test_a_second_agent_with_the_same_state_file_ends_with_one_line(home, tmp_path, capsys):
    box = tmp_path / "box.sqlite"
    with closing(State(box)) as state:
        assert state.claim()
        words = ["--gateway", "gw-001", "--bundle", str(home.bundle), "--interface", "lo", "--outbox", str(box)]
        assert main(["run", *words]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"botwatch agent: {box}: another agent uses it"


def test_a_state_file_whose_folder_is_not_there_is_named_with_the_folder(home, tmp_path, capsys):
    box = tmp_path / "late-mount" / "box.sqlite"
    words = ["--gateway", "gw-001", "--bundle", str(home.bundle), "--interface", "lo", "--outbox", str(box)]
    assert main(["run", *words]) == 1
    line = f"botwatch agent: {box}: the folder {box.parent} does not exist, or may not be looked into"
    assert capsys.readouterr().err.splitlines()[-1] == line


def test_a_clock_that_is_set_forward_at_a_boot_has_no_device_learnt(home, tmp_path):
    """A gateway without a clock of its own boots with the time of its last shutdown, and NTP sets it days forward."""
    life = read(next(home.later.parent.rglob("*.pcap")))
    first = life[0][0]
    minutes = [frame for frame in life if frame[0] < first + 240_000_000_000]
    week = 7 * 86_400_000_000_000

    def percent(step: int, *, noticed: bool) -> int:
        """Return how much a device has learnt after four minutes, in the middle of which the clock is set."""
        made = Agent(AgentConfig(), bundles.load(home.bundle), seed=0)
        for part, (begin, end) in enumerate(((0, 120), (120, 240))):
            frames = [(t, n, d) for t, n, d in minutes if begin <= (t - first) / 1e9 < end]
            file = tmp_path / "part.pcap"
            file.write_bytes(pcap([(t + part * step, n, d) for t, n, d in frames], nanoseconds=True))
            if part and noticed:
                made.clock_set_forward(step)
            with open_file(file) as source:
                list(made.alerts(source))
        return max(device["percent"] for device in made.devices.document(0)["devices"])

    plain = percent(0, noticed=False)
    assert 0 < plain < 30
    assert percent(week, noticed=True) == plain
    assert percent(week, noticed=False) == 100  # a week without packets is one


def test_a_step_of_the_clock_is_seen_against_the_steady_clock():
    now = {"wall": 1_000, "steady": 5}
    steps = ClockSteps(lambda: now["wall"] * S, lambda: now["steady"] * S)
    seen = []
    for wall, mono in ((1_001, 6), (1_031, 7), (87_431, 8), (87_432, 9), (50_000, 10), (50_001, 11)):
        now.update(wall=wall, steady=mono)
        seen.append(steps.forward() // S)
    assert seen == [0, 0, 86_399, 0, 0, 0]
