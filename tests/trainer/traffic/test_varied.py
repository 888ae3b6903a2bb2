"""Varied homes: habits, events and chatter that plain ones lack, and nothing that only an attack does."""

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import Ether
from scapy.utils import RawPcapReader

from tests.trainer.traffic.packets import SYN, Packet, is_public, read
from trainer.traffic import chatter, people, video
from trainer.traffic.captures import captures_of, generate
from trainer.traffic.client import Client
from trainer.traffic.events import interruptions, outages
from trainer.traffic.habits import HomeHabits
from trainer.traffic.life import live
from trainer.traffic.plan import DEVICES, PEOPLES, Plan

DAY = Plan(seed=5, days=1, hours=24, attacks=(), varied=True)


def life(seed: int, kind: str, **changes: float) -> Client:
    """Return the life of one device that has not begun; `changes` are of its traits."""
    (capture,) = captures_of(replace(DAY, seed=seed, devices=(kind,)))
    device = replace(capture.device, traits=capture.device.traits | changes)
    return Client(device, capture.begin, capture.end, f"{seed}")


def packets(client: Client, folder: Path) -> list[Packet]:
    client.tape.write(folder / "one.pcap", client.begin, client.end, 2000)
    return read(folder / "one.pcap")


def frames(path: Path) -> Iterator[bytes]:
    with RawPcapReader(str(path)) as reader:
        yield from (frame for frame, _ in reader)


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """A day of every kind of device in a varied home, and the folder with the captures."""
    out = tmp_path_factory.mktemp("varied")
    generate(replace(DAY, devices=DEVICES), out)
    return {kind: read(out / f"{kind}-1/day1.pcap") for kind in DEVICES}, out


def test_a_day_of_a_device_is_lean(day):
    """Forty homes must be fitted on: a device-day has a few thousand to a hundred thousand packets."""
    for kind, sent in day[0].items():
        assert 300 < len(sent) < 150_000, kind


def test_things_never_do_what_only_an_infected_device_does(day):
    for kind in set(DEVICES) - set(PEOPLES):
        sent = day[0][kind]
        macs = Counter(p.source_mac for p in sent)
        assert not any(p.dport in (23, 2323) for p in sent), kind
        assert all(p.src >> 16 in (0, 0xC0A8, 0xE000) or is_public(p.src) or p.kind != 0x0800 for p in sent), kind
        assert len(macs) >= 2, kind


def test_habits_differ_from_home_to_home():
    homes = [HomeHabits.of(seed) for seed in range(80)]
    assert {home.ipv6 for home in homes} == {True, False}
    assert len({home.loss for home in homes}) > 3
    assert {home.merged for home in homes} == {1, 4, 12}
    assert {home.eapol_s for home in homes} > {0.0, 600.0}


def test_lost_segments_are_sent_again(tmp_path):
    """A repeated segment has the number and the size of the first; without loss there is none."""
    for loss, least, most in ((0.0, 0, 0), (0.05, 20, 400)):
        client = life(3, "plug", loss=loss, ipv6=0.0)
        client.request(client.begin, "ota", 300, 1_000_000)
        down = [p for p in packets(client, tmp_path) if p.payload and p.proto == 6]
        again = sum(count - 1 for count in Counter((p.src, p.sport, p.seq, p.payload) for p in down).values())
        assert least <= again <= most


def test_merged_segments_are_larger_than_a_frame(tmp_path):
    client = life(3, "plug", merged=8.0, ipv6=0.0)
    client.request(client.begin, "ota", 300, 1_000_000)
    sent = packets(client, tmp_path)
    assert max(p.wire for p in sent) > 5000
    assert max(p.wire for p in sent if p.src == client.device.ip) <= 1514


def test_ipv6_packets_are_valid_and_full_frames_fit(tmp_path):
    """scapy computes the checksums again, of TCP to a server as of neighbour discovery and mDNS."""
    client = life(4, "hub", ipv6=1.0, merged=1.0, mdns_s=60.0)
    for _ in range(6):
        client.request(client.begin, "api", 3000, 9000)
    chatter.ipv6(client, client.begin, client.begin + 600_000_000)
    packets(client, tmp_path)
    seen: Counter[str] = Counter()
    for frame in frames(tmp_path / "one.pcap"):
        assert len(frame) <= 1514
        packet = Ether(frame)
        if IPv6 not in packet:
            continue
        assert packet[IPv6].plen == len(frame) - 54
        for layer, name in ((TCP, "chksum"), (UDP, "chksum"), (ICMPv6ND_NS, "cksum")):
            if layer in packet:
                stated = getattr(packet[layer], name)
                again = IPv6(bytes(packet[IPv6]))
                delattr(again[layer], name)
                assert getattr(IPv6(bytes(again))[layer], name) == stated, packet.summary()
                seen[layer.__name__] += 1
    assert seen["TCP"] > 10
    assert seen["UDP"] > 1
    assert seen["ICMPv6ND_NS"] > 1


def test_the_wi_fi_exchanges_keys_when_the_capture_sees_it(tmp_path):
    client = life(4, "bulb", eapol_s=600.0)
    chatter.add(client)
    keys = [p for p in packets(client, tmp_path) if p.kind == chatter.EAPOL]
    assert len(keys) == pytest.approx(4 + 2 * 144, abs=4)
    assert len({p.source_mac for p in keys}) == 2


def test_outages_are_the_homes():
    """Every device boots when the power comes back, at the same time."""
    for seed in range(30):
        plug, bulb = life(seed, "plug"), life(seed, "bulb")
        if found := [t for t, router in outages(plug) if not router]:
            assert outages(bulb) == outages(plug)
            boots = [min(abs(boot - found[0]) for boot in interruptions(one, first=False)[0]) for one in (plug, bulb)]
            assert max(boots) < 5_000_000
            return
    pytest.fail("no power cut in thirty days")


def test_a_router_that_is_gone_leaves_calls_unanswered(tmp_path):
    client = next(one for one in (life(seed, "camera", moves=0.0, updates=0.0, new=0.0) for seed in range(60))
                  if any(router for _, router in outages(one)))  # fmt: skip
    _, anew = interruptions(client, first=False)
    begin = next(t for t, router in outages(client) if router)
    sent = [p for p in packets(client, tmp_path) if begin <= p.t < anew[0]]
    calls = Counter((p.sport, p.dst) for p in sent if p.flags == SYN)
    assert calls
    assert max(calls.values()) >= 3
    assert not any(p.src >> 16 != 0xC0A8 for p in sent if p.kind == 0x0800)


def test_an_update_loads_megabytes_and_is_followed_by_a_boot():
    client = life(2, "speaker", updates=50.0, update_bytes=3e6, new=0.0)
    boots, _ = interruptions(client, first=False)
    sizes = sum(row[8] for row in client.tape._rows)
    assert sizes > 3_000_000
    assert any(client.begin < boot < client.end for boot in boots)


def test_a_new_device_is_set_up_on_its_first_day_only():
    """It then calls hosts that it never calls again, some of which do not answer."""
    hosts = []
    for first in (True, False):
        client = life(2, "plug", new=1.0, moves=0.0, updates=0.0)
        interruptions(client, first=first)
        hosts.append({row[5] for row in client.tape._rows if is_public(row[5])})
    assert len(hosts[0]) >= 4
    assert len(hosts[1]) <= 3  # of a router's reboot


def test_a_service_that_moves_is_called_at_its_new_address():
    client = life(2, "speaker", moves=50.0, new=0.0, updates=0.0)
    interruptions(client, first=False)
    ((role, (since, host)),) = client.moved.items()
    assert client.host(role, since - 1) == client.device.hosts[role]
    assert client.host(role, since) == host
    assert not set(host.pool) & set(client.device.hosts[role].pool)


def test_a_battery_camera_sleeps_for_hours_and_then_sends_hundreds_of_packets_in_seconds(tmp_path):
    longest, busiest = 0, 0
    for seed in range(4):
        client = life(seed, "battery_camera")
        live(client)
        mine = [p for p in packets(client, tmp_path) if p.source_mac.endswith(f"{client.device.mac & 0xFF:02x}")]
        longest = max(longest, *(b.t - a.t for a, b in pairwise(mine)))
        busiest = max(busiest, *Counter(p.t // 1_000_000 for p in mine).values())
    assert longest > 2 * 3600 * 1_000_000
    assert busiest > 100


def test_a_camera_streams_hundreds_of_datagrams_a_second_to_a_phone_in_the_lan(tmp_path):
    client = life(9, "camera", lan_view_kbps=2500.0)
    video.lan_view(client, client.begin + 1000, 10)
    sent = packets(client, tmp_path)
    up = [p for p in sent if p.src == client.device.ip and p.dst == client.home.phone]
    down = [p for p in sent if p.dst == client.device.ip]
    assert 1500 < len(up) < 4000
    assert 0 < len(down) < 0.05 * len(up)


def test_a_page_calls_tens_of_new_hosts_within_seconds(tmp_path):
    client = life(9, "pc", ipv6=0.0)
    people.page(client, client.begin + 1000, 25)
    sent = packets(client, tmp_path)
    hosts = {p.dst: p.t for p in reversed(sent) if is_public(p.dst) and p.dst != client.device.traits["resolver"]}
    assert 20 <= len(hosts) <= 27
    assert max(hosts.values()) - min(hosts.values()) < 8_000_000


def test_a_swarm_calls_peers_of_which_many_are_gone(tmp_path):
    client = life(9, "pc")
    for n in range(4):
        people.swarm(client, client.begin + n * 60_000_000)
    sent = packets(client, tmp_path)
    called = {p.dst for p in sent if p.flags == SYN and p.src == client.device.ip}
    accepted = {p.src for p in sent if p.flags == SYN | 16}
    assert len(called) > 20
    assert 0.1 < len(accepted) / len(called) < 0.8


def test_a_call_is_even_and_both_ways(tmp_path):
    client = life(9, "phone")
    people.call(client, client.begin + 1000, 20)
    sent = packets(client, tmp_path)
    voice = Counter(
        p.src == client.device.ip for p in sent if p.proto == 17 and p.payload > 80 and 53 not in (p.sport, p.dport)
    )
    assert 0.3 < voice[True] / voice[False] < 3
    assert min(voice.values()) > 900


def test_pcap_lengths_match_the_bytes(day):
    """A frame that merges segments is longer than any that a reader of Ethernet expects; its record stays exact."""
    for path in sorted(day[1].rglob("*.pcap"))[:6]:
        raw, at = path.read_bytes(), 24
        while at < len(raw):
            kept, wire = struct.unpack_from("<II", raw, at + 8)
            assert kept <= wire
            at += 16 + kept
        assert at == len(raw)


def test_a_host_that_was_just_asked_for_keeps_its_address():
    """So a second connection begins while the first, a large upload, is still remembered of the pair of hosts."""
    for keeps, most in ((1.0, 1), (0.0, 8)):
        client = life(9, "battery_camera", keeps=keeps, fresh=0.0)
        addresses = {client.resolve(client.begin + n * 10_000_000, "video")[1] for n in range(8)}
        assert len(addresses) <= most
        assert keeps == 1.0 or len(addresses) > 1


def test_many_names_are_asked_for_at_once_each_from_a_port_of_its_own(tmp_path):
    client = life(9, "hub", names=12.0)
    chatter.names(client, client.begin + 1000)
    asked = [p for p in packets(client, tmp_path) if p.dport == 53]
    assert 12 <= len(asked) <= 24
    assert len({p.sport for p in asked}) >= 11
    assert asked[-1].t - asked[0].t < 2_000_000
