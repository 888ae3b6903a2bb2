"""Attacks moved into another device's day."""

import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edge_agent.contract.captures import Attack as Span
from edge_agent.contract.captures import Capture, mac_text
from tests.reference.frames import pcap
from tests.traffic import CLOUD, PLUG, PLUG_MAC, ROUTER_MAC, S, packet, scan, spoofed, steady
from trainer.judge import inject
from trainer.judge.inject import InjectError, InsideHost

DEVICE = InsideHost(bytes.fromhex("0a0000000001"), bytes([10, 9, 8, 7]), bytes.fromhex("0a00000000fe"))


def capture(mac: int = PLUG_MAC, span: Span | None = None) -> Capture:
    return Capture(Path("attack.pcap"), "attacker", "scan", mac_text(mac), attack=span)


def source(data: bytes) -> str:
    return ".".join(map(str, data[26:30]))


def test_frames_are_read_from_pcap_and_pcapng(tmp_path, real_captures):
    frames = list(steady(scan(5), 1_700_000_000 * S + 7000, 10))
    (tmp_path / "a.pcap").write_bytes(pcap(frames))
    assert inject.read(tmp_path / "a.pcap") == frames
    (tmp_path / "b.pcap").write_bytes(pcap(frames, nanoseconds=True))
    assert inject.read(tmp_path / "b.pcap") == frames
    flood = inject.read(real_captures / "attack" / "pkt.TCP.DOMINATE.syn.ecn.cwr.pcapng")
    assert len(flood) > 9000
    assert 1.5e18 < flood[0][0] < 1.7e18


@pytest.mark.parametrize("content", [b"", b"no capture at all, but long enough for a header", pcap([])])
def test_what_is_no_capture_is_named(tmp_path, content):
    (tmp_path / "broken.pcap").write_bytes(content)
    with pytest.raises(InjectError, match=r"broken\.pcap"):
        inject.read(tmp_path / "broken.pcap")


def test_the_attackers_frames_become_the_devices():
    attack = inject.attack(list(steady(scan(20), 5 * S, 10)), capture())
    assert not attack.victim
    moved = inject.carried(attack, DEVICE, 100 * S)
    assert len(attack.sent()) == 20
    assert {(data[6:12], data[:6], source(data)) for _, _, data in moved} == {(DEVICE.mac, DEVICE.router, "10.9.8.7")}
    assert [t for t, _, _ in moved] == [100 * S + i * S // 10 for i in range(20)]
    assert [data[30:] for _, _, data in moved] == [data[30:] for _, _, data in attack.frames]


def test_a_target_in_the_attackers_own_network_keeps_its_mac():
    """It is no router, and the router of the other network does not answer in its place."""
    camera, camera_mac = "192.168.1.90", 0x02_00_00_00_00_77
    there = packet(PLUG, camera, to_mac=camera_mac)
    back = packet(camera, PLUG, mac=camera_mac, to_mac=PLUG_MAC)
    attack = inject.attack([(0, 60, there), (1, 60, back), (2, 60, there), (3, 60, there)], capture())
    moved = [data for _, _, data in inject.carried(attack, DEVICE, 0)]
    camera_bytes = camera_mac.to_bytes(6, "big")
    assert [(data[:6], data[6:12]) for data in moved[:2]] == [(camera_bytes, DEVICE.mac), (DEVICE.mac, camera_bytes)]
    assert source(moved[0]) == "10.9.8.7"
    assert source(moved[1]) == camera


def test_answers_go_to_the_device():
    there, back = packet(PLUG, CLOUD), packet(CLOUD, PLUG, mac=ROUTER_MAC, to_mac=PLUG_MAC)
    attack = inject.attack([(0, 60, there), (1, 60, back), (2, 60, there), (3, 60, there)], capture())
    moved = [data for _, _, data in inject.carried(attack, DEVICE, 0)]
    assert (moved[1][:6], moved[1][6:12], moved[1][30:34]) == (DEVICE.mac, DEVICE.router, DEVICE.ip)
    assert attack.sent() == [0, 2, 3]


def test_false_sources_stay_false():
    frames = [(0, 60, packet(PLUG, CLOUD)), *steady(spoofed(30), 1, 10)]
    attack = inject.attack(frames, capture())
    moved = inject.carried(attack, DEVICE, 0)
    assert source(moved[0][2]) in ("10.9.8.7", source(frames[0][2]))
    assert len({source(data) for _, _, data in moved}) == 31
    assert {data[6:12] for _, _, data in moved} == {DEVICE.mac}


def test_a_flood_seen_from_the_victims_side_hits_the_device():
    flood = list(steady(spoofed(50, PLUG, mac=ROUTER_MAC, to_mac=PLUG_MAC), 0, 10))
    attack = inject.attack(flood, capture(ROUTER_MAC))
    assert attack.victim
    moved = inject.carried(attack, DEVICE, 0)
    assert {(data[:6], data[6:12], data[30:34]) for _, _, data in moved} == {(DEVICE.mac, DEVICE.router, DEVICE.ip)}
    assert len(attack.sent()) == 50


def test_addresses_behind_a_vlan_tag_are_found():
    plain = packet(PLUG, CLOUD)
    tagged = plain[:12] + b"\x81\x00\x00\x2a" + plain[12:]
    moved = inject.carried(inject.attack([(0, 64, tagged)] * 3, capture()), DEVICE, 0)
    assert moved[0][2][30:34] == DEVICE.ip
    assert moved[0][2][34:38] == tagged[34:38]


def test_only_the_span_of_an_attack_is_carried_over():
    frames = list(steady(scan(50), 1000 * S, 1))
    begin, end = (datetime.fromtimestamp(s, UTC) for s in (1010, 1019))
    attack = inject.attack(frames, capture(span=Span(begin, end)))
    assert [t // S for t, _, _ in attack.frames] == list(range(1010, 1020))


def test_an_attack_is_sent_evenly_at_the_rate_asked_for():
    attack = inject.attack(list(steady(scan(50), 0, 3)), capture())
    moved = inject.carried(attack, DEVICE, 0, rate=20.0, most=30)
    assert [t for t, _, _ in moved] == [i * S // 20 for i in range(30)]


def test_who_attacks_must_be_known_and_send():
    frames = list(steady(scan(5), 0, 10))
    with pytest.raises(InjectError, match="names no mac"):
        inject.attack(frames, Capture(Path("x.pcap"), "d", "scan"))
    with pytest.raises(InjectError, match="sends nothing in the attack"):
        inject.attack(frames, capture(0x020000000099))


def test_a_host_is_known_by_its_own_local_address_and_its_router():
    frames = [*steady(spoofed(10), 0, 10), (9 * S, 60, packet(PLUG, CLOUD))]
    found = inject.host(frames, mac_text(PLUG_MAC), "day")
    assert (found.ip, found.router) == (bytes([192, 168, 38, 20]), ROUTER_MAC.to_bytes(6, "big"))
    arp_only = [(0, 60, struct.pack(">6s6sH", b"\xff" * 6, PLUG_MAC.to_bytes(6, "big"), 0x0806) + bytes(46))]
    with pytest.raises(InjectError, match=r"day: .* sends no IPv4"):
        inject.host(arp_only, mac_text(PLUG_MAC), "day")


def test_merged_frames_are_in_order_of_time():
    first, second = [(3, 1, b"a"), (1, 1, b"b")], [(2, 1, b"c")]
    assert [t for t, _, _ in inject.merged(first, second)] == [1, 2, 3]
