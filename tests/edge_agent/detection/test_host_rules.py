"""Attacks on one host, which open few peers and sockets: what is sent in vain and newly tried has bounds of its own."""

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import accumulate

import pytest

from edge_agent.capture.features import Extractor
from edge_agent.contract import bundle as bundles
from edge_agent.contract import captures
from edge_agent.contract.bundle import Bundle
from edge_agent.contract.columns import HOST_COUNTS
from edge_agent.detection.detection import Detection
from edge_agent.detection.detector import Detector
from tests.conftest import Home
from tests.traffic import CLOUD, PLUG, PLUG_MAC, ROUTER_MAC, Frame, S, merged, packet, read, steady

MINUTE = 60 * S
COLD = 1_770_000_000 * S
NEIGHBOUR, NEIGHBOUR_MAC = "192.168.38.9", 0x02_00_00_00_00_09


@pytest.fixture(scope="module")
def bundle(home: Home) -> Bundle:
    return bundles.load(home.bundle)


@pytest.fixture(scope="module")
def life(home: Home) -> list[Frame]:
    """Two hours of a plug, under the addresses that the attacks have."""
    manifest, _, root = captures.load(home.later)
    capture = next(c for c in manifest.captures if c.device == "plug-1")
    mac = captures.parse_mac(capture.mac or "").to_bytes(6, "big")
    frames = read(root / capture.file)
    ip = next(d for _, _, d in frames if d[6:12] == mac and d[12:14] == b"\x08\x00" and d[30] < 192)[26:30]
    own = PLUG_MAC.to_bytes(6, "big"), bytes(map(int, PLUG.split(".")))
    return [(t, n, d.replace(mac, own[0]).replace(ip, own[1])) for t, n, d in frames]


def reported(bundle: Bundle, frames: Iterable[Frame], *, learn: bool = False) -> list[tuple[int, Detection]]:
    """The detections of frames one by one, each with the number of frames of the plug until it came."""
    detector, extractor, out, sent = Detector(bundle, learn=learn), Extractor(4096), list[tuple[int, Detection]](), 0
    for frame in frames:
        sent += frame[2][6:12] == PLUG_MAC.to_bytes(6, "big")
        out += [(sent, found) for found in detector.observe(extractor.push_frames([frame]))]
    return out + [(sent, found) for found in detector.finish()]


def answered(frames: Iterable[Frame], reply: bytes, delay: int = S // 1000) -> list[Frame]:
    """``frames`` with a reply to each."""
    sent = list(frames)
    return merged(sent, [(t + delay, len(reply), reply) for t, _, _ in sent])


def flood(rate: float, seconds: float, begin: int, dst: str = CLOUD) -> Iterator[Frame]:
    return steady([packet(PLUG, dst, 33000, 9307, size=512)] * int(rate * seconds), begin, rate)


def test_a_learnt_plug_that_floods_one_socket_at_20_packets_a_second_is_reported_within_10_s(bundle, life):
    begin = life[0][0] + 100 * MINUTE
    calm = [f for f in life if f[0] < begin]
    found = reported(bundle, merged(calm, flood(20, 20, begin)), learn=True)
    assert found
    _, first = found[0]
    assert begin < first.t_ns < begin + 10 * S
    assert (first.role, first.method) == ("source", "counts")
    assert f"packets a second to {CLOUD} that nothing answers" in first.explanation
    assert [a.port for a in first.activities] == [9307]
    assert all(name.endswith("_unanswered") for name, _ in first.top_features)


def test_a_ramp_on_one_socket_is_reported_before_it_has_reached_a_quarter_of_its_last_rate(bundle, life):
    begin, minutes, last = life[0][0] + 60 * MINUTE, 10, 100.0
    calm = [f for f in life if f[0] < begin + minutes * MINUTE]
    gaps, passed = [], 0.0
    while passed < minutes * 60:
        gaps.append(1.0 / max(last * passed / (minutes * 60), 0.2))
        passed += gaps[-1]
    data = packet(PLUG, CLOUD, 33000, 9307, size=512)
    ramp = [(begin + int(t * S), len(data), data) for t in accumulate(gaps)]
    found = reported(bundle, merged(calm, ramp), learn=True)
    assert found
    assert begin < found[0][1].t_ns < begin + minutes * MINUTE / 4


def test_a_stream_that_is_answered_now_and_then_is_no_flood(bundle, life):
    """Video to a phone is answered once in 150 packets; the same without an answer is a flood."""
    begin = life[0][0] + 30 * MINUTE
    calm = [f for f in life if f[0] < begin]
    back = packet(CLOUD, PLUG, 9307, 33000, mac=ROUTER_MAC, to_mac=PLUG_MAC, size=60)
    answers = steady([back] * 40, begin + S // 2, 1)
    quiet = merged(calm, flood(100, 40, begin), answers)
    loud = merged(calm, flood(100, 40, begin))
    assert not [d for _, d in reported(bundle, quiet) if d.method == "counts"]
    assert [d for _, d in reported(bundle, loud) if d.method == "counts"]


def test_a_scan_of_all_ports_of_a_host_is_reported_within_60_packets_from_a_cold_start(bundle):
    to = {"to_mac": NEIGHBOUR_MAC, "proto": 6}
    probes = [packet(PLUG, NEIGHBOUR, 45000, 1 + (i * 7919) % 65535, **to) for i in range(200)]
    for rate in (4, 50, 1000):
        frames = steady(probes, COLD, rate)
        sent, first = reported(bundle, frames)[0]
        assert sent <= 60, rate
        assert first.role == "source"
        if first.method == "counts" and first.top_features[0][0] == "host_L0.01_ports":
            assert f"ports of {NEIGHBOUR} within about 140 s; the bound is 20" in first.explanation
            assert first.activities[0].kind in ("scan", "flood"[: 5 * (rate > 100)])


def test_a_brute_force_of_a_login_is_reported_within_60_packets_from_a_cold_start(bundle):
    for rate, each in ((10, 6), (2, 8), (1, 8)):
        frames: list[Frame] = []
        for attempt in range(20):
            sport, begin = 50000 + attempt, COLD + int(attempt * each / rate * S)
            to = {"to_mac": NEIGHBOUR_MAC, "proto": 6}
            own = [packet(PLUG, NEIGHBOUR, sport, 22, flags=2, **to)]
            own += [packet(PLUG, NEIGHBOUR, sport, 22, flags=24, size=40 * i, **to) for i in range(each - 1)]
            back = {"mac": NEIGHBOUR_MAC, "to_mac": PLUG_MAC, "proto": 6}
            frames += answered(steady(own, begin, rate), packet(NEIGHBOUR, PLUG, 22, sport, flags=24, **back))
        sent, first = reported(bundle, merged(frames))[0]
        assert sent <= 60, (rate, each)
        assert f"connections to log in to port 22 of {NEIGHBOUR}" in first.explanation
        assert [a.port for a in first.activities] == [22]


def test_a_sweep_by_ping_is_reported_within_60_packets_from_a_cold_start(bundle):
    for rate in (1, 20):
        pings = (packet(PLUG, f"192.168.38.{i}", proto=1, to_mac=NEIGHBOUR_MAC) for i in range(30, 230))
        sent, first = reported(bundle, steady(pings, COLD, rate))[0]
        assert sent <= 60, rate
        assert first.activities[0].kind == "scan"


def test_a_second_flood_on_another_socket_after_the_first_is_found_again(bundle, life):
    begin = life[0][0] + 30 * MINUTE
    calm = [f for f in life if f[0] < begin + 10 * MINUTE]
    other = "198.51.100.77"
    frames = merged(calm, flood(50, 20, begin), flood(50, 20, begin + 4 * MINUTE, other))
    hosts = [d.dest_ip for _, d in reported(bundle, frames)]
    assert {CLOUD, other} <= set(hosts)


def test_a_bundle_of_before_gets_the_defaults_and_one_without_a_counts_rule_none(bundle, life):
    begin = life[0][0] + 30 * MINUTE
    frames = merged([f for f in life if f[0] < begin], flood(50, 10, begin))
    before = {name: bound for name, bound in bundle.manifest.decision.counts.items() if name not in HOST_COUNTS}
    for counts, found in ((before, True), ({}, False)):
        decision = dataclasses.replace(bundle.manifest.decision, counts=counts, warmup_counts={})
        other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, decision=decision))
        assert any(d.method == "counts" for _, d in reported(other, frames)) == found
