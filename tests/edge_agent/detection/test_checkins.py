"""Quiet check-ins with a command server: told within an hour, and what healthy devices do is not."""

import random
import tracemalloc
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from edge_agent.capture.features import Extractor, Rows
from edge_agent.contract.addresses import PRIVATE_NETWORKS
from edge_agent.contract.alert import ModelInfo
from edge_agent.contract.networks import Networks
from edge_agent.delivery.alerts import Alerter
from edge_agent.detection.checkins import MAX_PEERS, MAX_ROWS, CheckInRule, CheckIns
from edge_agent.detection.detection import Detection
from tests.traffic import CLOUD, PLUG, PLUG_MAC, ROUTER_MAC, Frame, S, merged, packet, scan, steady

HOUR = 3600 * S
SERVER, OTHER_CLOUD = "198.51.100.7", "203.0.113.77"
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def exchange(
    t_ns: int, server: str, sport: int, dport: int, size: int = 2, flags: int = PSH | ACK, back: int | None = PSH | ACK
) -> Iterator[Frame]:
    """A packet to a server and, 50 ms later, one back."""
    data = packet(PLUG, server, sport, dport, proto=6, flags=flags, size=size)
    yield t_ns, len(data), data
    if back is not None:
        data = packet(server, PLUG, dport, sport, mac=ROUTER_MAC, to_mac=PLUG_MAC, proto=6, flags=back, size=size)
        yield t_ns + S // 20, len(data), data


def held(server: str, start: int, end: int, period_s: float, jitter: float = 0.0, dport: int = 23, size: int = 2):
    """Check-ins on one connection."""
    rng, t = random.Random(1), start
    yield from exchange(t - S // 5, server, 40_000, dport, 0, SYN, SYN | ACK)
    while t < end:
        yield from exchange(t, server, 40_000, dport, size)
        t += int(period_s * (1 + rng.uniform(-jitter, jitter)) * S)


def dialled(server: str, start: int, end: int, period_s: float, back: int | None, jitter: float = 0.0):
    """A new connection each time, answered by ``back``, or not at all and then asked for again by the kernel."""
    rng, t, sport = random.Random(2), start, 41_000
    while t < end:
        sport += 1
        for again in (0,) if back is not None else (0, 1, 3):
            yield from exchange(t + again * S, server, sport, 23, 0, SYN, back)
        t += int(period_s * (1 + rng.uniform(-jitter, jitter)) * S)


def home(hours: float, cloud_until: float | None = None) -> list[Frame]:
    """What a plug does all day: a message to its cloud every 30 s."""
    return list(held(CLOUD, S, int((cloud_until or hours) * HOUR), 30.0, 0.05, 8883, 60))


def told(*parts: Iterable[Frame], checkins: CheckIns | None = None, batch: int = 1024) -> list[Detection]:
    rows, found = Extractor(16_384, seed=1).push_frames(merged(*parts)), []
    checkins = checkins or CheckIns()
    for at in range(0, len(rows), batch):
        found += checkins.observe(Rows(rows.values[at : at + batch], rows.meta[at : at + batch]))
    return found


def test_a_detection_names_the_interface_that_the_packets_came_by():
    rows = Extractor(16_384, seed=1).push_frames(merged(home(3), held(SERVER, 2 * HOUR, 3 * HOUR, 10.0, 0.3)))
    assert {d.interface for d in CheckIns().observe(rows)} == {""}
    rows.meta["interface"] = 1
    assert {d.interface for d in CheckIns().observe(Rows(rows.values, rows.meta, ("lan0", "lan1")))} == {"lan1"}


SERIES = {
    "every 5 s": held(SERVER, 2 * HOUR, 3 * HOUR, 5.0, 0.3),
    "every 10 s": held(SERVER, 2 * HOUR, 3 * HOUR, 10.0, 0.3),
    "every 60 s": held(SERVER, 2 * HOUR, 3 * HOUR, 60.0, 0.3),
    "a connection each time": dialled(SERVER, 2 * HOUR, 3 * HOUR, 10.0, SYN | ACK, 0.3),
    "nobody answers": dialled(SERVER, 2 * HOUR, 3 * HOUR, 12.0, None, 0.8),
    "refused": dialled(SERVER, 2 * HOUR, 3 * HOUR, 15.0, RST | ACK, 0.8),
}
SERIES = {name: list(frames) for name, frames in SERIES.items()}


@pytest.mark.parametrize("name", SERIES)
def test_check_ins_are_reported_within_the_hour(name):
    found = told(home(3), SERIES[name])
    assert found
    assert {d.dest_ip for d in found} == {SERVER}
    first = found[0]
    assert 2 * HOUR + 1500 * S <= first.t_ns < 3 * HOUR
    assert abs(first.first_ns - 2 * HOUR) < S
    assert (first.device_mac, first.device_ip, first.class_name, first.method) == (
        PLUG_MAC,
        PLUG,
        "unknown",
        "checkins",
    )
    assert f"{SERVER} port 23" in first.explanation


def test_the_sentence_says_how_often_and_since_when():
    assert told(home(3), held(SERVER, 2 * HOUR, 3 * HOUR, 10.0))[0].explanation == (
        "contacts 198.51.100.7 port 23 every 10 s for 25 min now, 121 bytes each time; "
        "it had never used that host before"
    )
    failing = told(home(3), SERIES["refused"])[0].explanation
    assert failing.startswith("tried to connect to 198.51.100.7 port 23 ")
    assert failing.endswith(" 0 were accepted; it had never used that host before")


BENIGN = {
    "used while it was learnt": list(held(SERVER, HOUR // 2, 4 * HOUR, 10.0)),
    "over after a quarter of an hour": list(held(SERVER, 2 * HOUR, 2 * HOUR + HOUR // 4, 5.0)),
    "now and then": list(held(SERVER, 2 * HOUR, 30 * HOUR, 1200.0)),
    "pieces of music": list(held(SERVER, 2 * HOUR, 4 * HOUR, 10.0, 0.1, 443, 20_000)),
}


@pytest.mark.parametrize("name", BENIGN)
def test_the_traffic_of_healthy_devices_is_not_reported(name):
    assert told(home(4), BENIGN[name]) == []


def test_contacts_at_random_times_are_not_reported():
    times = 2 * HOUR + np.cumsum(np.random.default_rng(3).exponential(20.0, 400) * S).astype(int)
    assert told(home(4), (frame for t in times.tolist() for frame in exchange(t, SERVER, 40_000, 23))) == []


def test_a_cloud_that_moves_to_another_address_is_not_reported_but_a_server_beside_it_is():
    """The newcomer has the protocol and port of a regular peer; only where that one fell silent it is its heir."""
    checkins, move = CheckIns(), 2 * HOUR
    moved = list(held(OTHER_CLOUD, move, 4 * HOUR, 30.0, 0.05, 8883, 60))
    assert told(home(4, cloud_until=2), moved, checkins=checkins) == []
    assert checkins.counters["checkins_succeeded"] == 1
    assert {d.dest_ip for d in told(home(4), moved)} == {OTHER_CLOUD}
    second = held(SERVER, move, 4 * HOUR, 10.0, 0.05, 8883)
    assert {d.dest_ip for d in told(home(4, cloud_until=2), moved, second)} in ({SERVER}, {OTHER_CLOUD})  # one heir


def test_a_slow_cloud_may_move_before_it_was_judged_to_an_address_that_is_visited_at_the_same_pace():
    """Thirty contacts every four minutes take two hours; this cloud moves after 72 minutes."""
    own = list(held(CLOUD, S, int(1.2 * HOUR), 240.0, 0.05, 8883, 60))
    move = int(1.25 * HOUR)
    assert told(own, held(OTHER_CLOUD, move, 5 * HOUR, 240.0, 0.05, 8883, 60)) == []
    assert {d.dest_ip for d in told(own, held(SERVER, move, 5 * HOUR, 60.0, 0.05, 8883, 60))} == {SERVER}


def test_a_newcomer_is_told_once_and_not_again_where_it_moves_to():
    first = held(SERVER, 2 * HOUR, 4 * HOUR, 30.0, 0.05, 8883, 60)
    moved = held(OTHER_CLOUD, 4 * HOUR + 30 * S, 7 * HOUR, 30.0, 0.05, 8883, 60)
    assert {d.dest_ip for d in told(home(7), first, moved)} == {SERVER}


def test_a_series_is_of_the_port_that_it_goes_to_whatever_came_before():
    """The cloud moves to a host that the device once fetched something from, by another port."""
    once = exchange(2 * HOUR - 1800 * S, OTHER_CLOUD, 39_000, 443, 60)
    moved = held(OTHER_CLOUD, 2 * HOUR, 4 * HOUR, 30.0, 0.05, 8883, 60)
    assert told(home(4, cloud_until=2), once, moved) == []


def test_nothing_depends_on_where_batches_end():
    parts = [home(3), SERIES["every 10 s"], SERIES["nobody answers"]]
    whole = told(*parts)
    assert whole
    assert told(*parts, batch=1) == told(*parts, batch=7) == whole


def test_a_clock_that_is_set_back_neither_ends_nor_makes_a_series():
    series = held(SERVER, 2 * HOUR, 3 * HOUR, 10.0)
    frames = merged(home(3), series)
    back = [(t - 5 * HOUR * (t > 2 * HOUR + 600 * S) + 6 * HOUR, n, data) for t, n, data in frames]
    rows, found, checkins = Extractor(seed=1).push_frames(back), [], CheckIns()
    for at in range(0, len(rows), 100):
        found += checkins.observe(Rows(rows.values[at : at + 100], rows.meta[at : at + 100]))
    assert {d.dest_ip for d in found} == {SERVER}
    assert found[0].window_s < 3600


def test_a_router_that_carries_others_packets_is_not_taken_for_a_device():
    """The same packets again behind the router, under its MAC, as a second interface sees them."""
    inner = merged(home(3), SERIES["every 10 s"])
    outer = [
        (t + 1000, n, ROUTER_MAC.to_bytes(6, "big") + (0x02_00_00_00_00_FD).to_bytes(6, "big") + d[12:])
        if d[6:12] != PLUG_MAC.to_bytes(6, "big")
        else (t + 1000, n, (0x02_00_00_00_00_FD).to_bytes(6, "big") + ROUTER_MAC.to_bytes(6, "big") + d[12:])
        for t, n, d in inner
    ]
    assert {d.device_mac for d in told(inner, outer)} == {PLUG_MAC}


def test_a_scan_replaces_its_own_entries_and_is_counted():
    checkins = CheckIns()
    probes = steady(scan(3000), 2 * HOUR + 1800 * S, 100.0)
    assert {d.dest_ip for d in told(home(3), SERIES["every 10 s"], probes, checkins=checkins)} == {SERVER}
    assert checkins.counters["checkins_peers_evicted"] >= 2900  # a few of its targets are monitored addresses


def test_hosts_contacted_once_take_little_memory():
    """Under 700 bytes each: a flood under many MACs fills every table with them."""
    macs = [PLUG_MAC + 1 + n for n in range(64)]
    frames = merged(*(steady(scan(MAX_PEERS, seed=mac, mac=mac), S, 5.0) for mac in macs))
    rows, checkins = Extractor(16_384, max_devices=64, seed=1).push_frames(frames), CheckIns()
    tracemalloc.start()
    for at in range(0, len(rows), 256):
        checkins.observe(Rows(rows.values[at : at + 256], rows.meta[at : at + 256]))
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    remote = ~Networks.parse(PRIVATE_NETWORKS).hold(rows.meta["dst"], rows.meta["ip_version"])
    peers = len(set(zip(rows.meta["src_mac"][remote].tolist(), map(bytes, rows.meta["dst"][remote]), strict=True)))
    assert peers > 0.9 * 64 * MAX_PEERS
    assert checkins.counters["checkins_peers_evicted"] == checkins.counters["checkins_devices_evicted"] == 0
    assert checkins.counters["checkins_pairs_skipped"] == checkins.counters["checkins_rows_skipped"] == 0
    assert taken < 700 * peers


def test_of_a_flood_only_so_many_rows_are_looked_at():
    checkins = CheckIns()
    flood = steady(scan(MAX_ROWS + 5000), 2 * HOUR, 100_000.0)
    assert told(flood, checkins=checkins) == []
    assert checkins.counters["checkins_rows_skipped"] == 5000
    assert checkins.counters["checkins_pairs_skipped"] > 0


def test_one_episode_however_long_it_goes_on_beside_those_of_attacks():
    """It is told again every half hour, and ends half an hour after the last contact."""
    alerter = Alerter("gw", "", ModelInfo("1"), "0", rng=random.Random(1))
    states = [
        alert.state
        for detection in told(home(6), held(SERVER, 2 * HOUR, 5 * HOUR, 60.0, 0.3))
        for alert in [*alerter.tick(detection.t_ns), *alerter.consider(detection)]
    ]
    assert states[0] == "new"
    assert states.count("new") == 1
    assert 3 <= states.count("update") <= 5
    assert alerter.tick(5 * HOUR + 1700 * S) == []
    (end,) = alerter.tick(5 * HOUR + 1801 * S)
    assert end.state == "end"


def test_too_short_a_time_of_learning_is_refused():
    with pytest.raises(ValueError, match="learn_s: 5, must be 600"):
        CheckInRule(learn_s=5)
