"""Attacks that try not to be noticed: their pace, their targets, and who answers them."""

import itertools
import random
from collections import Counter

import pytest

from edge_agent.capture.features import Extractor, Rows
from trainer.data.frames import S
from trainer.judge import evasive_frames as frames
from trainer.judge.evasions import EVASIONS
from trainer.judge.evasive import OPEN_PORTS, PORTS, Flood, Pace, PortScan
from trainer.judge.evasive_frames import RST, SYN, TCP, UDP, Neighbourhood
from trainer.judge.evasive_sessions import Contacts, Login
from trainer.judge.inject import InsideHost

HOST = InsideHost(bytes.fromhex("0a0000000001"), bytes([192, 168, 1, 20]), bytes.fromhex("0a00000000fe"))
PRINTER = (bytes.fromhex("0a0000000002"), bytes([192, 168, 1, 30]))
HOME = Neighbourhood(
    host=HOST,
    cloud=(bytes([198, 51, 100, 7]), TCP, 8883),
    local=((HOST.router, bytes([192, 168, 1, 1])), PRINTER),
)
START = 1_700_000_000 * S


def taken(attack, count, around=HOME):
    return list(itertools.islice(attack.packets(around, START), count))


def ends(data):
    return frames.ipv4_ends(data)


@pytest.mark.parametrize("evasion", EVASIONS, ids=lambda evasion: evasion.attack.name)
def test_every_attack_of_the_list_is_in_order_of_time_and_readable_as_a_whole(evasion):
    packets = taken(evasion.attack, 400)
    assert [p[0] for p in packets] == sorted(p[0] for p in packets)
    assert packets[0][0] == START
    assert packets[0][3], "the attacker begins"
    extractor = Extractor(max_streams=1024, seed=1)
    rows: Rows = extractor.push_frames([p[:3] for p in packets])
    assert len(rows) == 400
    assert {key: count for key, count in extractor.counts().items() if "malformed" in key and count} == {}
    assert packets == taken(evasion.attack, 400), "equal attacks on equal hosts give equal packets"


def test_no_two_attacks_of_the_list_have_one_name():
    names = Counter(evasion.attack.name for evasion in EVASIONS)
    assert [name for name, count in names.items() if count > 1] == []


def test_a_ramp_sends_at_half_its_rate_after_half_its_time_and_at_its_rate_after_it():
    times = list(itertools.islice(Pace(rate=100, shape="ramp", period_s=60).times(random.Random(1)), 5000))
    assert sum(29.5 <= t < 30.5 for t in times) == pytest.approx(50, abs=2)
    assert sum(70 <= t < 71 for t in times) == pytest.approx(100, abs=1)


@pytest.mark.parametrize("shape", ["even", "random", "jittered"])
def test_irregular_gaps_keep_the_rate(shape):
    times = list(itertools.islice(Pace(rate=10, shape=shape).times(random.Random(1)), 2000))
    assert times == sorted(times)
    assert times[-1] == pytest.approx(200, rel=0.1)


def test_bursts_last_a_second_of_each_period():
    times = list(itertools.islice(Pace(rate=50, shape="bursts", period_s=10).times(random.Random(1)), 500))
    assert all(t % 10 < 1 for t in times)
    assert times[-1] == pytest.approx(90.98)


def test_a_plain_flood_is_one_socket_from_the_device_to_a_host_outside_that_does_not_answer():
    packets = taken(Flood(pace=Pace(rate=20)), 100)
    assert {(p[2][6:12], p[2][:6], ends(p[2])) for p in packets} == {
        (HOST.mac, HOST.router, (HOST.ip, bytes([203, 0, 113, 9]), UDP, 33_000, 9307))
    }
    assert all(mine for *_, mine in packets)
    assert packets[-1][0] - START == 99 * S // 20
    assert packets[0][1] == 14 + 20 + 8 + 512, "the length on the wire counts the payload that is not there"


def test_a_flood_that_is_answered_gets_one_answer_for_each_packet():
    packets = taken(Flood(pace=Pace(rate=20), protocol="ack", answers="each"), 101)
    there, back = ([p for p in packets if p[3] is mine] for mine in (True, False))
    assert abs(len(there) - len(back)) <= 2
    assert {p[2][14 + 20 + 13] for p in back} == {RST}
    assert {(p[2][:6], ends(p[2])[1]) for p in back} == {(HOST.mac, HOST.ip)}


def test_an_unreachable_host_says_so_once_a_second():
    packets = taken(Flood(pace=Pace(rate=100), answers="unreachable"), 505)
    assert sum(not p[3] for p in packets) == 5


@pytest.mark.parametrize(("macs", "count"), [("own", 1), ("router", 1), ("random", 100)])
def test_macs_can_be_forged(macs, count):
    sources = {p[2][6:12] for p in taken(Flood(pace=Pace(rate=20), macs=macs), 100)}
    assert len(sources) == count
    assert (HOST.mac in sources) == (macs == "own")


def test_the_own_cloud_host_is_attacked_at_the_port_that_the_device_uses():
    assert ends(taken(Flood(pace=Pace(rate=20), to="cloud"), 1)[0][2])[1:] == (
        bytes([198, 51, 100, 7]),
        UDP,
        33_000,
        8883,
    )


def test_a_scan_of_the_internet_is_mostly_not_answered():
    packets = taken(PortScan(pace=Pace(rate=2)), 2000)
    probes = [p for p in packets if p[3] and p[2][14 + 20 + 13] == SYN]
    assert len({ends(p[2])[1] for p in probes}) == len(probes)
    assert sum(not p[3] for p in packets) / len(probes) == pytest.approx(0.07, abs=0.03)
    assert {ends(p[2])[4] for p in probes} == {23}


def test_a_scan_of_the_own_network_asks_for_everyone_and_probes_who_is_there():
    packets = taken(PortScan(pace=Pace(rate=2), targets="local"), 270)
    asked = {p[2][38:42] for p in packets if p[2][12:14] == b"\x08\x06" and p[3]}
    assert len(asked) == 253
    probed = {ends(p[2])[1] for p in packets if p[3] and ends(p[2])}
    assert probed == {bytes([192, 168, 1, 1]), PRINTER[1]}
    assert {p[2][6:12] for p in packets if not p[3]} == {HOST.router, PRINTER[0]}


def test_all_ports_of_a_host_are_probed_once_and_the_closed_ones_refuse():
    packets = list(PortScan(pace=Pace(rate=1000), targets="ports").packets(HOME, START))
    probes = [p for p in packets if p[3] and p[2][14 + 20 + 13] == SYN]
    assert sorted(ends(p[2])[4] for p in probes) == list(range(1, PORTS + 1))
    answers = Counter(bool(p[2][14 + 20 + 13] & RST) for p in packets if not p[3])
    assert answers == {True: PORTS - len(OPEN_PORTS), False: len(OPEN_PORTS)}


@pytest.mark.parametrize("at_once", [1, 16])
def test_logins_run_side_by_side_each_on_a_socket_of_its_own(at_once):
    packets = taken(Login(at_once=at_once), 1500)
    opened = [(p[0], ends(p[2])[3]) for p in packets if p[3] and p[2][14 + 20 + 13] == SYN]
    assert len({port for _, port in opened}) == len(opened)
    assert sum(t < START + S for t, _ in opened) == at_once
    assert {ends(p[2])[1] for p in packets if p[3]} == {bytes([192, 168, 1, 1])}


@pytest.mark.parametrize(
    ("way", "first", "later"), [("anew", 9, 9), ("held", 6, 3), ("unanswered", 3, 3), ("refused", 2, 2)]
)
def test_contacts_come_as_often_as_they_say(way, first, later):
    packets = taken(Contacts(pace=Pace(rate=1 / 60), way=way), first + 10 * later)
    times = Counter((p[0] - START) // (60 * S) for p in packets)
    assert times == {0: first} | dict.fromkeys(range(1, 11), later)
    assert len({ends(p[2])[3] for p in packets if p[3]}) == (1 if way == "held" else 11)


def test_ipv6_attacks_come_from_the_devices_own_address():
    packets = taken(PortScan(pace=Pace(rate=2), version=6), 50)
    assert {p[2][12:14] for p in packets} == {b"\x86\xdd"}
    assert {p[2][22:38] for p in packets if p[3]} == {HOME.ipv6}
    assert HOME.ipv6[8:] == bytes.fromhex("080000fffe000001")
