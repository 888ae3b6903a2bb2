"""Generated attacks have the traits of the malware that they stand for."""

from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import yaml

from tests.trainer.traffic.packets import ACK, RST, SMALL, SYN, Packet, micros, rate, read
from trainer.traffic.captures import generate
from trainer.traffic.plan import Plan


@pytest.fixture(scope="module")
def strike(tmp_path_factory):
    """Function: an attack as --attacks spells it -> its packets, the answers to them, and its manifest entry."""

    @cache
    def packets(text: str, **changes: object):
        out = tmp_path_factory.mktemp("strike")
        plan = replace(SMALL, days=0, devices=("camera",), attacks=(text,), attack_seconds=12, max_attack_packets=6000)
        (entry,) = yaml.safe_load(generate(replace(plan, **changes), out).read_text())["captures"]
        begin, end = (micros(entry["attack"][name]) for name in ("start", "end"))
        everything = read(out / entry["file"])
        during = [p for p in everything if begin <= p.t <= end and p.kind == 0x0800]
        # benign traffic of the camera continues during the attack; it is recognised by its hosts
        usual = {p.dst for p in everything if p.t < begin} | {p.src for p in everything if p.t < begin and p.src}
        own = [p for p in during if p.source_mac == entry["mac"] and p.dst not in usual]
        back = [p for p in during if p.source_mac != entry["mac"] and p.src not in usual]
        return own, back, entry

    return packets


def test_mirai_scan_calls_telnet_everywhere(strike):
    own, _, entry = strike("mirai.scan")
    scan = [p for p in own if p.flags == SYN and p.seq == p.dst]
    assert len(scan) == 160 * 12
    ports = Counter(p.dport for p in scan)
    assert set(ports) == {23, 2323}
    assert 0.08 < ports[2323] / len(scan) < 0.12
    assert len({p.dst for p in scan}) > 0.99 * len(scan)
    assert len({p.sport for p in scan}) == len({p.window for p in scan}) == 1
    assert {p.wire for p in scan} == {60}
    assert len({p.ident for p in scan}) > 0.9 * len(scan)
    assert 140 < rate(scan) < 180
    per_second = Counter((p.t - scan[0].t) // 1_000_000 for p in scan)
    assert max(per_second.values()) >= 160  # in bursts, as the malware's loop does
    assert entry["attack"]["spoofed"] is False
    assert not {p.dst >> 24 for p in scan} & {0, 3, 10, 56, 127, 214, *range(224, 256)}
    assert not {p.dst >> 16 for p in scan} & {0xC0A8, 0xA9FE, 0xAC10, 0x6440}


def test_mirai_scan_is_answered_by_a_few_hosts_and_connects_to_them(strike):
    own, back, _ = strike("mirai.scan")
    assert {p.flags for p in back if p.proto == 6} >= {SYN | ACK, RST | ACK}
    answered = {p.src for p in back if p.flags == SYN | ACK}
    assert 0 < len(answered) < 0.03 * 1920
    assert any(p.flags == RST and p.dst in answered for p in own)  # the kernel never asked
    assert any(p.payload and p.dst in answered and p.dport in (23, 2323) for p in own)
    assert any(p.proto == 1 for p in back)


def test_mirai_syn_flood(strike):
    own, back, _ = strike("mirai.syn")
    flood = [p for p in own if p.flags == SYN]
    assert {p.wire for p in flood} == {74}
    assert {p.window for p in flood} == {0}
    assert len({p.dst for p in flood}) == 1
    assert len({(p.sport, p.dport) for p in flood}) > 0.99 * len(flood)
    assert len({p.src for p in flood}) == 1
    assert 300 < rate(flood) < 1000
    assert any(p.flags & RST for p in back)


def test_mirai_ack_flood(strike):
    own, back, _ = strike("mirai.ack")
    flood = [p for p in own if p.flags == ACK]
    assert Counter(p.payload for p in flood).most_common(1)[0][0] == 512
    assert {p.wire for p in flood} == {566}
    assert len({p.window for p in flood}) == 1
    assert len({p.ack for p in flood}) > 0.99 * len(flood)
    assert {p.flags for p in back if p.proto == 6} == {RST}


def test_mirai_udp_flood_uses_random_ports_and_udpplain_one_socket(strike):
    udp, _, _ = strike("mirai.udp")
    plain, _, _ = strike("mirai.udpplain")
    for flood in (udp, plain):
        assert {(p.proto, p.payload, p.wire, p.ttl) for p in flood} == {(17, 512, 554, 64)}
        assert len({p.dst for p in flood}) == 1
    assert len({(p.sport, p.dport) for p in udp}) == len(udp)
    assert len({(p.sport, p.dport) for p in plain}) == 1
    assert all((b.ident - a.ident) % 65536 == 1 for a, b in pairwise(plain[:100]))  # by the kernel


def test_bashlite_floods_come_from_sources_that_are_not_the_device(strike):
    for text, proto, size in (("gafgyt.tcp", 6, 0), ("gafgyt.udp", 17, 1024)):
        own, back, entry = strike(text)
        assert entry["attack"]["spoofed"] is True
        assert len({p.src for p in own}) > 0.99 * len(own)
        assert {(p.proto, p.ttl) for p in own} == {(proto, 255)}
        assert {p.payload for p in own} == {size}
        assert len({p.dst for p in own}) == 1
        assert not back  # answers go to the sources


def test_spoofing_can_be_chosen(strike):
    own, _, entry = strike("mirai.syn:spoof=any")
    assert entry["attack"]["spoofed"] is True
    assert len({p.src for p in own}) > 0.99 * len(own)
    subnet, _, entry = strike("gafgyt.udp:spoof=subnet")
    assert entry["attack"]["spoofed"] is True
    assert len({p.src >> 8 for p in subnet}) == 1
    assert 200 < len({p.src for p in subnet}) <= 256
    alone, back, entry = strike("gafgyt.udp:spoof=own")
    assert entry["attack"]["spoofed"] is False
    assert len({(p.src, p.sport) for p in alone}) == 1
    assert any(p.proto == 1 for p in back)


def test_bashlite_scan_uses_the_kernels_sockets(strike):
    """There are many source ports, one port 23, and each SYN is repeated after 1, 3 and 7 s."""
    own, back, _ = strike("gafgyt.scan")
    syn = [p for p in own if p.flags == SYN]
    assert {p.dport for p in syn} == {23}
    assert len({p.sport for p in syn}) > 100
    assert {p.wire for p in syn} <= {60, 74}  # with the options of a small stack or of Linux
    calls: dict[tuple[int, int], list[Packet]] = {}
    for p in syn:
        calls.setdefault((p.dst, p.sport), []).append(p)
    again = [(b.t - a.t) / 1e6 for sent in calls.values() for a, b in pairwise(sent)]
    assert len(again) > len(calls) / 2
    assert all(any(abs(gap - wait) < 0.1 for wait in (1, 2, 4)) for gap in again)
    assert all(len({p.seq for p in sent}) == 1 for sent in calls.values())
    assert any(p.flags == RST | ACK for p in back)


def test_junk_sends_1024_bytes_on_connections_that_combo_partly_holds_open(strike):
    idle = {}
    for text in ("gafgyt.junk", "gafgyt.combo"):
        own, back, _ = strike(text)
        assert len({p.dst for p in own}) == len({p.dport for p in own}) == 1
        assert {p.payload for p in own} == {0, 1024}
        opened = {p.dport for p in back if p.flags == SYN | ACK}
        spoken = {p.sport for p in own if p.payload}
        assert spoken <= opened
        idle[text] = 1 - len(spoken) / len(opened)
    assert idle["gafgyt.combo"] > 0.15 > idle["gafgyt.junk"]


@pytest.mark.parametrize(("text", "wanted"), [
    ("mirai.scan:rate=10", 10), ("gafgyt.scan:rate=40", 40), ("mirai.udp:rate=100", 100),
    ("gafgyt.tcp:rate=2000", 2000), ("gafgyt.junk:rate=200", 200), ("gafgyt.combo:rate=200", 200),
])  # fmt: skip
def test_rate_can_be_chosen(strike, text, wanted):
    own, _, _ = strike(text, attack_seconds=30)
    assert 0.6 * wanted < rate(own) < 1.5 * wanted


def test_ports_and_sizes_can_be_chosen(strike):
    own, _, _ = strike("mirai.scan:port=5555")
    assert {p.dport for p in own if p.seq == p.dst} == {5555}
    own, _, _ = strike("mirai.udp:port=53:size=100")
    assert {(p.dport, p.payload) for p in own} == {(53, 100)}
    own, _, _ = strike("gafgyt.junk:size=300:port=81")
    assert {p.payload for p in own} == {0, 300}
    assert {p.dport for p in own} == {81}


def test_the_bound_of_packets_ends_an_attack_at_an_unchanged_rate(strike):
    own, _, _ = strike("mirai.udp:rate=3000", max_attack_packets=1000)
    assert len(own) == 1000
    assert 2500 < rate(own) < 3500


def test_benign_traffic_continues_during_the_attack(tmp_path):
    plan = Plan(seed=5, days=0, devices=("plug",), attacks=("mirai.scan:seconds=120",), lead_minutes=2, tail_minutes=1)
    (entry,) = yaml.safe_load(generate(plan, tmp_path).read_text())["captures"]
    packets = read(tmp_path / entry["file"])
    begin, end = (micros(entry["attack"][name]) for name in ("start", "end"))
    assert any(p.dport in (8883, 1883) and p.source_mac == entry["mac"] for p in packets if begin < p.t < end)
