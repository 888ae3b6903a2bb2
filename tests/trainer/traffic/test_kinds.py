"""Benign days of every kind of device are ordinary, and hold no trait of an attack."""

from collections import Counter

import pytest

from tests.trainer.traffic.packets import RST, SYN, Packet, is_public, read
from trainer.traffic.captures import generate
from trainer.traffic.plan import DEVICES, Plan

THINGS = DEVICES[:7]
"""The kinds with sessions all day; `test_appliances` and `test_people` have the others."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two benign captures of seven kinds of device."""
    out = tmp_path_factory.mktemp("home")
    generate(Plan(seed=4, days=2, hours=1.5, devices=THINGS, attacks=()), out)
    return {kind: [read(out / f"{kind}-1/day{day}.pcap") for day in (1, 2)] for kind in THINGS}


def test_benign_devices_use_the_usual_protocols(home):
    for kind, days in home.items():
        for packets in days:
            ports = Counter(p.dport for p in packets)
            assert ports[67] >= 2, kind  # DHCP at boot
            assert ports[53] >= 5, kind
            assert ports[123] >= 2, kind
            assert ports[443] > 20, kind
            assert any(p.kind == 0x0806 for p in packets), kind
            if kind != "bulb":
                assert ports[8883] + ports[1883] > 100, kind
    assert any(p.dport == 5353 for p in home["gateway"][0])
    assert any(p.dport == 1900 for p in home["camera"][0])
    assert any(p.dport == 3478 for p in home["camera"][0])


def test_cameras_stream_over_rtsp_and_rtp(tmp_path):
    generate(Plan(seed=2, days=1, hours=14, devices=("camera",), attacks=()), tmp_path)
    packets = read(tmp_path / "camera-1/day1.pcap")
    assert any(p.dport == 554 for p in packets)
    assert any(p.sport == 554 and p.payload for p in packets)
    datagrams = Counter((p.src, p.sport) for p in packets if p.proto == 17 and p.payload > 1000)
    assert max(datagrams.values()) > 200


def test_a_name_is_asked_for_before_its_host_is_called(home):
    """A SYN to a public address follows a DNS answer within seconds; each question has its own source port."""
    for kind in ("camera", "plug", "thermostat"):
        packets = home[kind][0]
        answers = [p.t for p in packets if p.sport == 53]
        for syn in (p for p in packets if p.flags == SYN and p.dst >> 16 != 0xC0A8 and p.src >> 16 == 0xC0A8):
            assert any(0 < syn.t - t < 3_000_000 for t in answers)
        asked = [p.sport for p in packets if p.dport == 53]
        assert len(set(asked)) > 0.9 * len(asked)


def test_benign_traffic_holds_no_trait_of_an_attack(home):
    for kind, days in home.items():
        for packets in days:
            device = {p.src for p in packets if p.dport == 443 and p.flags == SYN}
            assert len(device) == 1, kind
            mac = next(p.source_mac for p in packets if p.src in device)
            sent = [p for p in packets if p.source_mac == mac]
            assert {p.src for p in sent if p.kind == 0x0800} <= device | {0}, kind
            assert not any(p.dport in (23, 2323) for p in sent), kind
            per_second = Counter(p.t // 1_000_000 for p in sent if p.flags == SYN)
            assert max(per_second.values()) <= 8, kind
            assert len({p.dst for p in sent}) < 80, kind


def test_connections_are_complete(home):
    """Every sequence number a device sends continues the one before, every connection that opens is answered."""
    for kind, days in home.items():
        flows: dict[tuple[int, int, int], list[Packet]] = {}
        for p in days[0]:
            if p.proto == 6 and p.src >> 16 == 0xC0A8 and p.dst >> 16 != 0xC0A8:
                flows.setdefault((p.sport, p.dst, p.dport), []).append(p)
        assert flows, kind
        for sent in flows.values():
            assert sent[0].flags == SYN
            expected = None
            for p in sent:
                if p.flags & RST:
                    break
                if expected is not None and not p.flags & SYN:
                    assert p.seq in (expected, (expected - 1) % 2**32), kind
                if p.payload or p.flags & 3:
                    expected = (p.seq + p.payload + bool(p.flags & 3)) % 2**32


def test_people_are_up_by_day(tmp_path):
    """Calls at the door follow the hours of visits; keep-alives do not."""
    generate(Plan(seed=6, days=1, hours=24, devices=("doorbell",), attacks=()), tmp_path)
    busy, calm = Counter[int](), Counter[int]()
    for p in read(tmp_path / "doorbell-1/day1.pcap"):
        hour = p.t // 3_600_000_000 % 24
        busy[hour] += p.wire > 800
        calm[hour] += p.dport in (1883, 8883) and p.wire < 130
    assert sum(busy[h] for h in range(8, 20)) > 20 * sum(busy[h] for h in range(6))
    assert 4 * min(calm[h] for h in range(24)) > max(calm[h] for h in range(24))


def test_reconnects_come_in_bursts_at_boot_and_later(tmp_path):
    """Losing the Wi-Fi brings DHCP and several hosts at once, in the middle of an ordinary day."""
    generate(Plan(seed=6, days=1, hours=24, devices=("gateway",), attacks=()), tmp_path)
    packets = read(tmp_path / "gateway-1/day1.pcap")
    boots = [p.t for p in packets if p.dport == 67 and p.dst == 0xFFFFFFFF]
    assert boots[0] - packets[0].t < 2_000_000
    later = [t for t in boots if t > boots[0] + 60_000_000]
    assert later
    burst = {p.dst for p in packets if later[0] <= p.t < later[0] + 15_000_000 and is_public(p.dst)}
    assert len(burst) >= 3
