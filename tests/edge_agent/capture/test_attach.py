"""How the agent finds out that an interface shows merged frames, or the wrong side of NAT: on real interfaces."""

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from edge_agent.capture.attach import ALONE_FRAMES, ALONE_S, Attachment, longest_frame, merging
from edge_agent.capture.features import Extractor
from edge_agent.capture.sources import own_macs
from tests.netns import MAC, ROOT, Wire, ip
from tests.traffic import packet, steady

SERVE = """
import socket, sys
line = socket.create_server((sys.argv[1], 5000))
print("ready", flush=True)
peer, _ = line.accept()
while peer.recv(1 << 20):
    pass
"""
SEND = """
import socket, sys
line = socket.create_connection((sys.argv[1], 5000))
for _ in range(100):
    line.sendall(bytes(100_000))
line.close()
"""
WATCH = """
import json, sys, time, logging
from edge_agent.capture.attach import ALONE_S, Attachment
from edge_agent.capture.sources import Interfaces
from edge_agent.config import PRIVATE_NETWORKS
from edge_agent.capture.features import Extractor
logging.basicConfig(format="%(message)s")
names, wanted = sys.argv[2:], int(sys.argv[1])
live, extractor = Interfaces(names), Extractor(4096)
around = Attachment(names, PRIVATE_NETWORKS, time.monotonic() - ALONE_S - 1)
longest = 0
def take(source):
    global longest
    rows = extractor.push(source, 4096)
    if len(rows):
        around.look(rows)
        longest = max(longest, int(rows.meta["length"].max()))
    return len(rows)
print("ready", flush=True)
quiet = time.monotonic() + 3
while time.monotonic() < quiet:
    if live.each(take, 0.2):
        quiet = time.monotonic() + 1
around.beat(time.monotonic(), wanted)
print(json.dumps({"longest": longest, **around.counters, **live.count()}), flush=True)
"""


def transfer(source: str, target: str, address: str) -> None:
    """Ten megabytes over TCP from one namespace to another."""
    python = sys.executable
    with subprocess.Popen(
        ["ip", "netns", "exec", target, python, "-c", SERVE, address], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        subprocess.run(["ip", "netns", "exec", source, python, "-c", SEND, address], check=True, timeout=60)
        assert server.wait(30) == 0


def watched(wire: Wire, work: object, frames: int = 0) -> tuple[dict[str, int], str]:
    """What `Attachment` counts and warns of on the gateway's port while ``work`` is done."""
    process = wire.on_gateway(
        *(sys.executable, "-c", WATCH, str(frames), wire.port),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        work()  # type: ignore[operator]
        said, warned = process.communicate(timeout=60)
    return json.loads(said), warned


def checked(wire: Wire, home: object, folder: Path) -> list[str]:
    """Lines of `botwatch agent check` on what merges frames on the gateway's port."""
    file = folder / "agent.yaml"
    file.write_text(f"bundle: {home.bundle}\ncapture: {{interfaces: [{wire.port}]}}\n")  # type: ignore[attr-defined]
    command = [sys.executable, "-m", "edge_agent.command", "agent", "check", "--config", str(file)]
    said, _ = wire.on_gateway(*command, stdout=subprocess.PIPE).communicate(timeout=60)
    return [line for line in said.splitlines() if "merge" in line]


@pytest.mark.skipif(not shutil.which("ethtool"), reason="needs ethtool, to do what `agent check` says")
def test_merged_frames_are_counted_and_what_check_says_ends_them(wire, home, tmp_path):
    """The device's own merging is switched off, as a real device's would be; the port does both kinds."""
    ip("-n", wire.gateway, "address", "add", "10.9.0.1/24", "dev", wire.port)
    ip("-n", wire.device, "address", "add", "10.9.0.2/24", "dev", "eth0")
    inside = ["ip", "netns", "exec", wire.device, "ethtool", "-K", "eth0", "tso", "off", "tx-udp-segmentation", "off"]
    subprocess.run(inside, check=True)
    assert wire.on_gateway("ethtool", "-K", wire.port, "gro", "on").wait() == 0

    def both() -> None:
        transfer(wire.gateway, wire.device, "10.9.0.2")
        transfer(wire.device, wire.gateway, "10.9.0.1")

    counted, warned = watched(wire, both)
    assert counted["frames_merged"] > 10
    assert counted["longest"] > 1522
    assert re.search(r"a frame of \d+ bytes is longer than lan0 can carry: .*`botwatch agent check`", warned)
    (line,) = checked(wire, home, tmp_path)
    assert line.startswith("WRONG  lan0: merges frames")
    (command,) = re.findall(r"`(ethtool -K lan0 [a-z -]+)`", line)
    assert {"tso off", "gro off"} <= {f"{word} off" for word in command.split()[3::2]}
    assert wire.on_gateway(*command.split()).wait() == 0
    (line,) = checked(wire, home, tmp_path)
    assert line == "ok     lan0: merges no frames"
    counted, warned = watched(wire, both)
    assert counted["frames_merged"] == 0
    assert counted["longest"] == 1514
    assert counted["captured"] > 20_000_000 // 1448
    assert "merge" not in warned


@pytest.mark.skipif(not shutil.which("ethtool"), reason="needs ethtool, to switch features")
def test_of_a_bridge_the_ports_are_named_that_merge_what_comes_in(wire):
    ip("-n", wire.gateway, "link", "add", "br0", "type", "bridge")
    ip("-n", wire.gateway, "link", "set", wire.port, "master", "br0")
    assert wire.on_gateway("ethtool", "-K", wire.port, "gro", "on").wait() == 0
    ask = "from edge_agent.capture.attach import merging; print(merging('br0'), merging('br0', inbound=True))"
    said, _ = wire.on_gateway(sys.executable, "-c", ask, cwd=ROOT, stdout=subprocess.PIPE).communicate()
    assert said == "{'br0': ['tso', 'tx-udp-segmentation'], 'lan0': ['gro']} {'lan0': ['gro']}\n"


def test_a_loop_device_says_what_it_is(tmp_path):
    assert longest_frame(["lo"]) == 65536 + 22
    assert longest_frame(["lo", "nosuch0"]) == 65536 + 22  # an interface that comes later hides nothing
    assert longest_frame(["nosuch0"]) == 0
    with pytest.raises(OSError, match="No such device"):
        merging("nosuch0")
    assert 0 not in own_macs()


def rows(frames: Iterable[bytes]) -> object:
    return Extractor(64).push_frames(list(steady(frames, 0, 1000)))


ROUTER = MAC + 9


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ([packet("192.168.1.5", "8.8.8.8", mac=MAC), packet("192.168.1.6", "8.8.8.8", mac=MAC + 1)], None),
        ([packet("192.168.1.5", "8.8.8.8", mac=MAC), packet("8.8.8.8", "192.168.1.5", mac=ROUTER)], "one device (02:"),
        ([packet("81.2.3.4", "8.8.8.8", mac=MAC), packet("8.8.8.8", "81.2.3.4", mac=ROUTER)], "no device was seen"),
    ],
    ids=["two devices", "one device and what its router carries", "a public address, beyond NAT"],
)
def test_too_few_devices_are_warned_of_once_and_not_at_once(sent, said, caplog):
    around = Attachment(["lan0"], ("192.168.0.0/16",), 0.0)
    around.look(rows(sent))
    with caplog.at_level(logging.WARNING):
        around.beat(ALONE_S - 1, ALONE_FRAMES)
        around.beat(ALONE_S, ALONE_FRAMES - 1)
        assert caplog.messages == []
        for late in (0, 60):
            around.beat(ALONE_S + late, ALONE_FRAMES)
    assert len(caplog.messages) == (said is not None)
    if said:
        assert said in caplog.messages[0]
        assert "the wrong side of NAT" in caplog.messages[0]


def test_on_the_wan_side_of_a_gateway_its_own_mac_is_no_device(wire, tmp_path):
    """The gateway sends under its one address; a modem carries the rest of the world, and has an fe80:: too."""
    text = ip("-n", wire.gateway, "-br", "link", "show", wire.port).split()[2]
    own = int(text.replace(":", ""), 16)
    out = [packet("192.168.178.2", f"8.8.{i}.8", mac=own, to_mac=ROUTER) for i in range(100)]
    modem = int(ip("-n", wire.device, "-br", "link", "show", "eth0").split()[2].replace(":", ""), 16)
    back = [packet(f"8.8.{i}.8", "192.168.178.2", mac=modem, to_mac=own) for i in range(100)]

    def both() -> None:
        wire.send(steady(out, 0, 1000), tmp_path, where=wire.gateway, port=wire.port)
        wire.send(steady(back, 0, 1000), tmp_path)

    counted, warned = watched(wire, both, ALONE_FRAMES)
    assert counted["captured"] >= 200
    assert "lan0: no device was seen with an address of the monitored networks" in warned
