"""docs/consumers/contain.py cuts off the infected device and nobody else, for a time, and only with --apply."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.broker import wait_until
from tests.netns import Wire, ip, laid, wait_until_up
from tests.test_subscribe import CONSUMERS, alert

ROUTER, PEER = "198.51.100.1", "198.51.100.9"
DEVICES = {"infected": "192.168.1.57", "other": "192.168.2.57"}

ECHO = """
import socket
line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
line.bind(("0.0.0.0", 7))
print("ready", flush=True)
while True:
    data, sender = line.recvfrom(64)
    line.sendto(data, sender)
"""
ASK = """
import socket, sys
line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
line.settimeout(0.3)
line.sendto(b"x", (sys.argv[1], 7))
try:
    line.recv(64)
except OSError:
    sys.exit(1)
"""
"""Exits with 0 if the peer answers."""


class Lan:
    """A gateway, two devices behind it in namespaces of their own, and a peer beyond it that answers."""

    def __init__(self, wire: Wire) -> None:
        self.gateway, self.world, self.spaces = wire.gateway, f"{wire.gateway}w", {"infected": wire.device}
        self.spaces["other"] = f"{wire.gateway}o"

    def lay(self) -> None:
        for space, port in ((self.spaces["other"], "lan1"), (self.world, "wan0")):
            ip("netns", "add", space)
            ip("link", "add", port, "netns", self.gateway, "type", "veth", "peer", "name", "eth0", "netns", space)
            for where, end in ((self.gateway, port), (space, "eth0")):
                ip("-n", where, "link", "set", end, "up")
        ends = [(self.gateway, "lan0", "192.168.1.1"), (self.gateway, "lan1", "192.168.2.1")]
        ends += [(self.gateway, "wan0", ROUTER), (self.world, "eth0", PEER)]
        ends += [(self.spaces[name], "eth0", address) for name, address in DEVICES.items()]
        for space, port, address in ends:
            ip("-n", space, "addr", "add", f"{address}/24", "dev", port)
            wait_until_up(space, port)
        for name, address in DEVICES.items():
            ip("-n", self.spaces[name], "route", "add", "default", "via", f"{address.rpartition('.')[0]}.1")
        ip("-n", self.world, "route", "add", "192.168.0.0/16", "via", ROUTER)
        ip("-n", self.gateway, "route", "add", "default", "via", PEER)
        self.inside(self.gateway, "sysctl", "-qw", "net.ipv4.ip_forward=1")

    @staticmethod
    def inside(space: str, *words: str, **options: object) -> "subprocess.CompletedProcess[str]":
        command = ["ip", "netns", "exec", space, *words]
        return subprocess.run(command, text=True, capture_output=True, **options)  # type: ignore[call-overload, no-any-return]

    def reaches(self, name: str, target: str = PEER) -> bool:
        """Whether a device gets an answer from beyond the gateway."""
        return self.inside(self.spaces[name], sys.executable, "-c", ASK, target).returncode == 0

    def mac(self, name: str, port: str = "eth0") -> str:
        space = {**self.spaces, "gateway": self.gateway, "world": self.world}[name]
        return ip("-n", space, "-br", "link", "show", port).split()[2]

    def elements(self) -> str:
        return self.inside(self.gateway, "nft", "list", "set", "inet", "botwatch", "contained").stdout

    def contain(self, *words: str, alerts: list[object]) -> list[str]:
        """Let the script read ``alerts`` on the gateway; returns its lines."""
        command = [sys.executable, str(CONSUMERS / "contain.py"), "gw-001", *words]
        text = "".join((a if isinstance(a, str) else json.dumps(a)) + "\n" for a in alerts)
        done = self.inside(self.gateway, *command, input=text)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[1:]


@contextmanager
def answering(lan: Lan) -> Iterator[None]:
    process = subprocess.Popen(
        ["ip", "netns", "exec", lan.world, sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    if not shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin"):
        pytest.skip("nftables is not installed")
    with laid() as wire:
        made = Lan(wire)
        try:
            made.lay()
            with answering(made):
                wait_until(lambda: made.reaches("infected") and made.reaches("other"), 20)
                yield made
        finally:
            for space in (made.spaces["other"], made.world):
                subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


def about(mac: object, name: str = "new", n: int = 1, **ours: object) -> dict[str, object]:
    """An alert about a device with this MAC."""
    return alert(name, n, **{"device": {"mac": mac, "ip": "192.168.1.57"}, **ours})


def test_a_dry_run_changes_nothing_and_says_what_it_would_do(lan):
    mac = lan.mac("infected")
    assert lan.contain(alerts=[about(mac)]) == [f"would cut off: {mac} for 3600 s"]
    assert lan.inside(lan.gateway, "nft", "list", "tables").stdout == ""
    assert lan.reaches("infected")


def test_the_infected_device_is_cut_off_until_its_time_is_over_and_the_other_is_not(lan):
    mac = lan.mac("infected")
    assert lan.contain("--apply", "--seconds", "4", alerts=[about(mac)]) == [f"cut off: {mac} for 4 s"]
    began = time.monotonic()
    assert not lan.reaches("infected")
    assert not lan.reaches("infected", "192.168.1.1")
    assert lan.reaches("other")
    assert mac in lan.elements()
    wait_until(lambda: lan.reaches("infected"), 20)
    assert time.monotonic() - began > 2
    assert mac not in lan.elements()


def test_an_update_begins_the_time_anew_and_a_start_anew_changes_nothing(lan):
    mac = lan.mac("infected")
    lan.contain("--apply", "--seconds", "2", alerts=[about(mac)])
    lan.contain("--apply", "--seconds", "600", alerts=[about(mac, "update")])
    lan.contain("--apply", "--seconds", "600", alerts=[])
    assert "timeout 10m" in lan.elements()
    assert not lan.reaches("infected")
    assert lan.inside(lan.gateway, "nft", "flush", "set", "inet", "botwatch", "contained").returncode == 0
    assert lan.reaches("infected")


MAC = "02:00:5e:10:00:09"
OLD = {**about(MAC), "timestamp": "2026-01-01T00:00:00.000000+0000"}
OTHERS = {
    "not an alert": "junk",
    "nested without end": "[" * 10_000,
    "too long": json.dumps({"x": "y" * 40_000}),
    "an alert behind what is too long": " " * 16_385 + json.dumps(about(MAC)),
    "an alert far behind it": "x" * 40_000 + " " * 9_155 + json.dumps(about(MAC)),
    "old": OLD,
    "unknown": about(MAC, "unknown"),
    "victim": about(MAC, role="victim"),
    "end": about(MAC, "end"),
    "test": about(MAC, test=True),
    "another gateway": {**about(MAC), "host": "gw-002"},
    "another gateway inside": about(MAC, gateway="gw-002"),
    "no MAC": about(None),
    "a list": about([MAC]),
    "a command": about("02:00:5e:10:00:09 } ; flush ruleset #"),
    "a line": about("02:00:5e:10:00:09\n"),
    "everybody": about("ff:ff:ff:ff:ff:ff"),
    "a group": about("01:00:5e:00:00:01"),
    "nobody": about("00:00:00:00:00:00"),
    "in capitals": about("02:00:5E:10:00:09"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_new_infection_of_a_device_of_this_gateway_cuts_nobody_off(lan, name):
    lan.contain("--apply", alerts=[])
    lines = lan.contain("--apply", alerts=[OTHERS[name]])
    assert lines
    assert all(line.startswith("ignored: the alert ") for line in lines)
    assert "elements" not in lan.elements()


def test_this_machine_its_router_and_those_named_are_never_cut_off(lan):
    lan.inside(lan.gateway, sys.executable, "-c", ASK, PEER)  # now it knows its router's MAC
    own, router, mac = lan.mac("gateway", "lan0"), lan.mac("world"), lan.mac("infected")
    for words, about_whom, why in (
        ((), own, "is this machine or its router"),
        ((), router, "is this machine or its router"),
        (("--never", mac.upper()), mac, "is never cut off"),
        (("--never", "192.168.1.57"), mac, "is never cut off"),
    ):
        (line,) = lan.contain("--apply", *words, alerts=[about(about_whom)])
        assert line.startswith("ignored: ")
        assert line.endswith(why)
    assert "elements" not in lan.elements()


def test_there_are_never_more_than_the_most_at_a_time(lan):
    lan.inside(lan.gateway, "nft", "delete", "table", "inet", "botwatch")
    words = ("--apply", "--most", "2", "--seconds", "60")
    macs = [f"02:00:5e:10:01:{n:02x}" for n in range(4)]
    lines = lan.contain(*words, alerts=[about(mac, n=n) for n, mac in enumerate(macs)])
    assert [line.partition(":")[0] for line in lines] == ["cut off", "cut off", "ignored", "ignored"]
    (line,) = lan.contain(*words, alerts=[about(macs[3])])  # started anew, it does not remember, but the set is full
    assert line.startswith(f"not cut off: {macs[3]}: ")
    assert lan.elements().count("timeout 1m") == 2
    assert lan.contain("--apply", "--most", "2", alerts=[about(macs[0])]) == [f"cut off: {macs[0]} for 3600 s"]
    assert lan.elements().count("timeout 1h") == 1
    lan.inside(lan.gateway, "nft", "delete", "table", "inet", "botwatch")


def test_on_a_bridge_the_infected_device_is_cut_off_as_well(lan):
    """The devices and the peer are in one network here; the gateway only bridges."""
    ip("-n", lan.gateway, "link", "add", "br0", "type", "bridge")
    ip("-n", lan.gateway, "link", "set", "br0", "up")
    members = {"infected": "192.168.9.57", "other": "192.168.9.58", "world": "192.168.9.9"}
    for number, (name, address) in enumerate(members.items()):
        space = {**lan.spaces, "world": lan.world}[name]
        ip("link", "add", f"b{number}", "netns", lan.gateway, "type", "veth", "peer", "name", "eth1", "netns", space)
        ip("-n", lan.gateway, "link", "set", f"b{number}", "master", "br0", "up")
        ip("-n", space, "link", "set", "eth1", "up")
        ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth1")
        wait_until_up(lan.gateway, f"b{number}")
    peer = members["world"]
    wait_until(lambda: lan.reaches("infected", peer) and lan.reaches("other", peer), 20)
    mac = lan.mac("infected", "eth1")
    lan.contain("--apply", "--family", "bridge", "--seconds", "3", alerts=[about(mac)])
    assert not lan.reaches("infected", peer)
    assert lan.reaches("other", peer)
    wait_until(lambda: lan.reaches("infected", peer), 20)


def test_without_the_right_to_do_it_the_reason_is_one_line(tmp_path):
    command = [sys.executable, str(CONSUMERS / "contain.py"), "gw-001", "--apply"]
    empty = {"PATH": str(tmp_path)}
    done = subprocess.run(command, input="", capture_output=True, text=True, env=empty, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("contain.py: ")
    assert len(done.stderr.splitlines()) == 1
