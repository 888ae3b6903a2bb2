"""Capture on the interfaces of a real gateway: a router, with and without NAT, a bridge, one cable for both sides.

The gateway is a network namespace that forwards for others. The test knows what was sent: each frame must give one row.
"""

import ast
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from edge_agent.capture.features import Extractor
from edge_agent.capture.sources import open_file
from tests.broker import wait_until
from tests.counted import closing_counts
from tests.live import agent, alerts, state, status
from tests.netns import Wire, ip, serving, taking, wait_until_up
from tests.streams import context
from tests.traffic import scan, spoofed, steady

DEVICE, GATEWAY, OUTSIDE, PEER = "192.168.1.57", "192.168.1.1", "198.51.100.1", "198.51.100.9"

ECHO = """
import socket, sys
line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
line.bind(("", 9000))
print("ready", flush=True)
while True:
    data, who = line.recvfrom(2000)
    line.sendto(data, who)
"""
ASK = """
import socket, sys, time
line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
line.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
line.settimeout(5)
address, count, answered = sys.argv[1], int(sys.argv[2]), len(sys.argv) < 4
for i in range(count):
    line.sendto(bytes(20) if i % 2 else bytes(20 + i % 50), (address, 9000))  # half of them are all alike
    if answered:
        line.recv(2000)
    time.sleep(0.001)  # paces the sender, so that frames that are alike are sent at different times
"""
NAT = """
import socket, struct, sys, select
inside, outside = (socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) for _ in range(2))
inside.bind((sys.argv[1], 0)); outside.bind((sys.argv[2], 0))
lan, wan, peer, device = (bytes.fromhex(text) for text in sys.argv[3:7])
private, public = socket.inet_aton("192.168.1.57"), socket.inet_aton("198.51.100.1")
print("ready", flush=True)
def rewritten(data, macs, at, old, new, port_at, shift):
    if data[23] != 17 or data[at:at + 4] != old:
        return None
    out = bytearray(macs + b"\\x08\\x00" + data[14:])
    out[22] -= 1
    out[at:at + 4] = new
    struct.pack_into(">H", out, port_at, struct.unpack_from(">H", out, port_at)[0] + shift)
    out[24:26] = out[40:42] = b"\\0\\0"
    total = sum(struct.unpack_from(">10H", out, 14))
    total = (total & 0xffff) + (total >> 16)
    struct.pack_into(">H", out, 24, 0xffff - ((total & 0xffff) + (total >> 16)))
    return bytes(out)
while True:
    for line in select.select([inside, outside], [], [])[0]:
        data, (_, _, kind, _, _) = line.recvfrom(4000)
        if kind != 0:
            continue
        if line is inside:
            out, to = rewritten(data, peer + wan, 26, private, public, 34, 1000), outside
        else:
            out, to = rewritten(data, device + lan, 30, public, private, 36, -1000), inside
        if out:
            to.send(out)
"""


def inside(space: str, *words: str) -> None:
    """Run a command in a namespace; it must succeed."""
    subprocess.run(["ip", "netns", "exec", space, *words], check=True, capture_output=True, timeout=60)


def ask(space: str, address: str, count: int, *more: str) -> None:
    inside(space, sys.executable, "-c", ASK, address, str(count), *more)


def mac_of(space: str, port: str) -> int:
    return int(ip("-n", space, "-br", "link", "show", port).split()[2].replace(":", ""), 16)


@contextmanager
def namespace(name: str) -> Iterator[str]:
    ip("netns", "add", name)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def addresses(*given: tuple[str, str, str]) -> None:
    """Give ports their addresses, as (namespace, port, address); they carry frames afterwards, without IPv6."""
    for space, port, address in given:
        inside(space, "sysctl", "-qw", f"net.ipv6.conf.{port}.disable_ipv6=1")
        if address:
            ip("-n", space, "address", "add", f"{address}/24", "dev", port)
        ip("-n", space, "link", "set", port, "up")
    for space, port, _ in given:
        wait_until_up(space, port)


@pytest.fixture
def world(wire: Wire) -> Iterator[str]:
    """A namespace behind the gateway's port wan0, as the device is behind lan0."""
    with namespace(f"{wire.gateway}w") as name:
        ip("link", "add", "wan0", "netns", wire.gateway, "type", "veth", "peer", "name", "eth0", "netns", name)
        lan = ((wire.gateway, "lan0", GATEWAY), (wire.device, "eth0", DEVICE))
        addresses(*lan, (wire.gateway, "wan0", OUTSIDE), (name, "eth0", PEER))
        ip("-n", wire.device, "route", "add", "default", "via", GATEWAY)
        yield name


def forwarding(wire: Wire, world: str) -> None:
    """Let the gateway route, and give the world its route back."""
    inside(wire.gateway, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    ip("-n", world, "route", "add", "192.168.1.0/24", "via", OUTSIDE)


def packets_of(folder: Path) -> np.ndarray:
    """Return the packets of the rows that were taken, which must be the rows of the record, too."""
    with np.load(folder / "rows.npz") as taken:
        values, meta = taken["values"], taken["meta"]
    extractor, parts = Extractor(4096, seed=1), []
    with open_file(folder / "record.pcap") as source:
        while len(rows := extractor.push(source, 333)):
            parts.append(rows)
    expected = meta.copy()
    expected["interface"] = 0  # a file does not know by which interface a packet came
    assert np.concatenate([p.meta for p in parts]).tobytes() == expected.tobytes()
    assert np.concatenate([p.values for p in parts]).tobytes() == values.tobytes()
    # Two processors stamp frames of one interface before they put them into its buffer: out of order by a moment.
    assert (np.diff(meta["t_ns"]) >= -10_000_000).all()
    return meta


def udp_packets(meta: np.ndarray) -> dict[tuple[str, str], int]:
    """Count UDP packets by source and target."""
    udp = meta[meta["proto"] == 17]
    name = socket.inet_ntoa
    return Counter((name(row["src"][:4].tobytes()), name(row["dst"][:4].tobytes())) for row in udp)


def counts(folder: Path) -> dict[str, int]:
    return dict(ast.literal_eval((folder / "counts").read_text()))


@pytest.mark.parametrize("names", [("lan0", "wan0"), ("wan0", "lan0")], ids=["LAN first", "WAN first"])
def test_a_packet_that_a_router_forwards_or_sends_itself_gives_one_row(wire, world, tmp_path, names):
    forwarding(wire, world)
    with (
        serving(world, ECHO),
        serving(wire.device, ECHO),
        serving(wire.gateway, ECHO),
        taking(wire, tmp_path, 1300, "auto", *names),
    ):
        ask(wire.device, PEER, 300)
        ask(wire.device, GATEWAY, 100)
        ask(wire.gateway, DEVICE, 100)
        ask(wire.gateway, PEER, 100)
        ask(world, DEVICE, 50)
    meta = packets_of(tmp_path)
    assert udp_packets(meta) == {
        (DEVICE, PEER): 350,
        (PEER, DEVICE): 350,
        (DEVICE, GATEWAY): 200,
        (GATEWAY, DEVICE): 200,
        (OUTSIDE, PEER): 100,
        (PEER, OUTSIDE): 100,
    }
    assert counts(tmp_path)["seen_again"] == 700  # every forwarded packet
    assert counts(tmp_path)["dropped"] == counts(tmp_path)["seen_forgotten"] == 0
    sender = {mac_of(wire.device, "eth0"): DEVICE, mac_of(world, "eth0"): PEER}
    for mac, address in sender.items():
        sent = meta[(meta["proto"] == 17) & (meta["src_mac"] == mac)]
        assert {socket.inet_ntoa(row["src"][:4].tobytes()) for row in sent} == {address}
    of_gateway = {mac_of(wire.gateway, "lan0"), mac_of(wire.gateway, "wan0")}
    assert set(meta["src_mac"].tolist()) == set(sender) | of_gateway
    assert int(np.isin(meta["src_mac"], list(of_gateway))[meta["proto"] == 17].sum()) == 300


def test_direction_both_gives_forwarded_packets_twice_and_in_leaves_out_the_routers_own(wire, world, tmp_path):
    forwarding(wire, world)
    for direction, wanted, of_router in (("both", 440, 20), ("in", 220, 0)):
        folder = tmp_path / direction
        folder.mkdir()
        with serving(world, ECHO), taking(wire, folder, wanted, direction, "lan0", "wan0"):
            ask(wire.device, PEER, 100)
            ask(wire.gateway, PEER, 20)
        packets = udp_packets(packets_of(folder))
        assert packets[DEVICE, PEER] == (200 if direction == "both" else 100)
        assert packets[OUTSIDE, PEER] == of_router
        assert packets[PEER, OUTSIDE] == 20


def test_a_packet_that_goes_through_nat_gives_one_row(wire, world, tmp_path):
    """Addresses, ports, TTL and checksums differ on the far side; a program rewrites frames in place of netfilter."""
    macs = [(wire.gateway, "lan0"), (wire.gateway, "wan0"), (world, "eth0"), (wire.device, "eth0")]
    words = [f"{mac_of(space, port):012x}" for space, port in macs]
    inside(wire.gateway, "sysctl", "-qw", "net.ipv4.ip_forward=0")
    with (
        serving(world, ECHO),
        serving(wire.gateway, NAT, "lan0", "wan0", *words),
        taking(wire, tmp_path, 600, "auto", "lan0", "wan0"),
    ):
        ask(wire.device, PEER, 300)
    assert udp_packets(packets_of(tmp_path)) == {(DEVICE, PEER): 300, (PEER, OUTSIDE): 300}
    assert counts(tmp_path)["seen_again"] == 600


def test_a_gateway_with_one_cable_gives_one_row_for_what_it_forwards(wire, tmp_path):
    """Device and modem are on the gateway's one wire; the gateway still routes between them."""
    with namespace(f"{wire.gateway}w") as world:
        ip("-n", wire.device, "link", "add", "link", "eth0", "name", "m0", "type", "macvlan", "mode", "bridge")
        ip("-n", wire.device, "link", "set", "m0", "netns", world, "name", "eth0")
        addresses((wire.gateway, "lan0", GATEWAY), (wire.device, "eth0", DEVICE), (world, "eth0", PEER))
        ip("-n", wire.gateway, "address", "add", f"{OUTSIDE}/24", "dev", "lan0")
        ip("-n", wire.device, "route", "add", "default", "via", GATEWAY)
        inside(wire.gateway, "sysctl", "-qw", "net.ipv4.conf.all.send_redirects=0")
        inside(wire.gateway, "sysctl", "-qw", "net.ipv4.conf.lan0.send_redirects=0")
        forwarding(wire, world)
        with serving(world, ECHO), taking(wire, tmp_path, 400, "auto"):
            ask(wire.device, PEER, 200)
        meta = packets_of(tmp_path)
        assert udp_packets(meta) == {(DEVICE, PEER): 200, (PEER, DEVICE): 200}
        assert set(meta["src_mac"][meta["proto"] == 17].tolist()) == {
            mac_of(wire.device, "eth0"),
            mac_of(world, "eth0"),
        }
        assert counts(tmp_path)["seen_again"] == 400


@pytest.mark.parametrize("names", [("br0", "lan0", "lan1"), ("lan0", "lan1"), ("br0",), ("lan1", "br0")], ids=", ".join)
def test_a_bridge_and_its_ports_show_each_frame_once(wire, tmp_path, names):
    """Packets from device to device, device to gateway and back, broadcasts of both, and ARP."""
    with namespace(f"{wire.gateway}o") as other:
        ip("link", "add", "lan1", "netns", wire.gateway, "type", "veth", "peer", "name", "eth0", "netns", other)
        ip("-n", wire.gateway, "link", "add", "br0", "type", "bridge")
        for port in ("lan0", "lan1"):
            ip("-n", wire.gateway, "link", "set", port, "master", "br0")
        ports = ((wire.gateway, "lan0", ""), (wire.gateway, "lan1", ""), (wire.gateway, "br0", GATEWAY))
        addresses(*ports, (wire.device, "eth0", DEVICE), (other, "eth0", "192.168.1.58"))
        with (
            serving(other, ECHO),
            serving(wire.gateway, ECHO),
            taking(wire, tmp_path, 850, "auto", *names),
        ):
            ask(wire.device, "192.168.1.58", 100)
            ask(wire.device, GATEWAY, 100)
            ask(wire.gateway, "192.168.1.58", 100)
            ask(wire.device, "192.168.1.255", 50, "unanswered")
            ask(wire.gateway, "192.168.1.255", 50, "unanswered")
        packets = udp_packets(packets_of(tmp_path))
    assert packets == {
        (DEVICE, "192.168.1.58"): 100,
        ("192.168.1.58", DEVICE): 150,  # the other device answers broadcasts, too
        (DEVICE, GATEWAY): 100,
        (GATEWAY, DEVICE): 150,
        (GATEWAY, "192.168.1.58"): 100,
        ("192.168.1.58", GATEWAY): 150,
        (DEVICE, "192.168.1.255"): 50,
        (GATEWAY, "192.168.1.255"): 50,
    }


def routable(frames: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the frames with their IP header's checksum: a router drops packets whose checksum is wrong."""
    for data in frames:
        words = struct.unpack_from(">10H", data, 14)
        total = sum(words) - words[5]
        total = (total & 0xFFFF) + (total >> 16)
        yield data[:24] + struct.pack(">H", 0xFFFF - ((total & 0xFFFF) + (total >> 16))) + data[26:]


def test_behind_a_router_the_device_is_blamed_and_neither_the_router_nor_a_remote_peer(wire, world, home, tmp_path):
    """Both sides are captured; the router forwards each packet with its own MAC as the source."""
    forwarding(wire, world)
    ip("-n", wire.gateway, "route", "add", "default", "via", PEER)
    device, peer = mac_of(wire.device, "eth0"), mac_of(world, "eth0")
    lan, wan = mac_of(wire.gateway, "lan0"), mac_of(wire.gateway, "wan0")
    out = routable(list(scan(1500, DEVICE, mac=device, to_mac=lan)))
    back = routable(list(spoofed(1500, DEVICE, high=0x64000000, mac=peer, to_mac=wan)))  # public, below 100.64.0.0/10
    config = f"outbox: {{path: {tmp_path / 'box.sqlite'}}}\nbroker: {{host: 127.0.0.1, port: 9}}\n"
    with agent(wire, home, tmp_path, "--interface", "lan0", "--interface", "wan0", config=config):
        wire.send(steady(out, 0, 1000), tmp_path)
        wait_until(lambda: any(state(alert) == "new" for alert in alerts(tmp_path)), 20)
        wire.send(steady(back, 0, 1000), tmp_path, where=world)
        wait_until(lambda: status(tmp_path)["health"]["counters"]["seen_again"] >= 2900, 30)
        wait_until(lambda: {context(alert)["role"] for alert in alerts(tmp_path)} == {"source", "victim"}, 20)
    reported = [context(alert) for alert in alerts(tmp_path)]
    accused = {alert["device"].get("mac", "").replace(":", "") for alert in reported if alert["role"] == "source"}
    assert accused == {f"{device:012x}"}
    assert {alert["device"]["ip"] for alert in reported} == {DEVICE}
    assert {alert["role"] for alert in reported} == {"source", "victim"}
    assert closing_counts((tmp_path / "err").read_text())["seen_again"] >= 2900


def test_check_advises_against_the_wan_side_beside_the_lan_side(wire, world, home, tmp_path):
    ip("-n", wire.gateway, "route", "add", "default", "via", PEER)
    advice = {}
    for names in ("lan0, wan0", "wan0", "lan0"):
        (tmp_path / "agent.yaml").write_text(f"bundle: {home.bundle}\ncapture: {{interfaces: [{names}]}}\n")
        command = ("-m", "edge_agent.command", "agent", "check", "--config", str(tmp_path / "agent.yaml"))
        findings, _ = wire.on_gateway(sys.executable, *command, stdout=subprocess.PIPE).communicate(timeout=60)
        advice[names] = [line for line in findings.splitlines() if "leads to the internet" in line]
    assert [len(lines) for lines in advice.values()] == [1, 0, 0]
    assert advice["lan0, wan0"][0].startswith("WRONG  wan0: ")
