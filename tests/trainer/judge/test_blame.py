"""The rule of whom an alert must be about: attacker, victim, server of check-ins."""

from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.contract.alert import Alert, AlertDevice, ModelInfo
from edge_agent.contract.captures import Capture, mac_text
from tests.traffic import PLUG, PLUG_MAC, ROUTER_MAC, S, packet, scan, spoofed, steady
from trainer.judge import inject
from trainer.judge.blame import ExpectedSubject, blames, detections, expected_subject
from trainer.judge.inject import InsideHost

CAM, OTHER = "02:00:5e:10:00:01", "02:00:5e:10:00:02"
SERVER = "203.0.113.7"


def alert(
    mac: str = CAM, *, role: str = "source", ip: str = "", dest_ip: str = "198.51.100.1", t_ns: int = 100 * S
) -> Alert:
    return Alert(
        id="0192f0c4-0000-7000-8000-000000000001",
        seq=1,
        state="new",
        t_ns=t_ns,
        first_ns=t_ns,
        last_ns=t_ns,
        duration_s=0.0,
        count=1,
        packets=1,
        bytes=60,
        gateway="gw",
        site="",
        device=AlertDevice(mac=mac, ip=ip),
        role=role,
        class_name="anomaly",
        kind="other",
        confidence=0.9,
        score=2.0,
        threshold=1.0,
        window_s=1.0,
        top_features=(),
        explanation="",
        model=ModelInfo("1"),
        agent="0",
        clock="synced",
        src_ip="192.168.1.5",
        src_port=1,
        dest_ip=dest_ip,
        dest_port=2,
        proto="TCP",
    )


@pytest.mark.parametrize(
    ("about", "expected", "right"),
    [
        (alert(CAM), ExpectedSubject(mac=CAM), True),
        (alert(OTHER), ExpectedSubject(mac=CAM), False),
        (alert(OTHER), ExpectedSubject(), True),  # nobody knows who attacks
        (alert("", role="victim", ip="10.0.0.5"), ExpectedSubject(mac=CAM), False),  # another attack's victim
        (alert("", role="victim", ip="10.0.0.5"), ExpectedSubject(victim="10.0.0.5"), True),
        (alert("", role="victim", ip="10.0.0.6"), ExpectedSubject(victim="10.0.0.5"), False),
        (alert(CAM, ip="10.0.0.5"), ExpectedSubject(victim="10.0.0.5"), False),  # the victim called an attacker
        (alert(CAM, dest_ip=SERVER), ExpectedSubject(mac=CAM, server=SERVER), True),
        (alert(CAM, dest_ip="203.0.113.8"), ExpectedSubject(mac=CAM, server=SERVER), False),
        (alert(OTHER, dest_ip=SERVER), ExpectedSubject(mac=CAM, server=SERVER), False),
    ],
)
def test_an_alert_must_be_about_the_attacker_the_victim_or_the_server(about, expected, right):
    assert blames(about, expected) is right


def test_the_device_to_expect_follows_from_the_attack():
    device = InsideHost(bytes.fromhex("02005e100001"), bytes([10, 9, 8, 7]), bytes(6))
    frames = list(steady(scan(20), 5 * S, 10))
    capture = capture_of(PLUG_MAC)
    assert expected_subject(inject.attack(frames, capture), device) == ExpectedSubject(mac=CAM)
    flood = list(steady(spoofed(50, PLUG, mac=ROUTER_MAC, to_mac=PLUG_MAC), 0, 10))
    attack = inject.attack(flood, capture_of(ROUTER_MAC))
    assert expected_subject(attack, device) == ExpectedSubject(victim="10.9.8.7")
    assert expected_subject(attack, attack.host) == ExpectedSubject(victim=PLUG)
    checkins = inject.AttackCapture(((0, 60, packet(PLUG, SERVER)),), device, False, SERVER)
    assert expected_subject(checkins, device) == ExpectedSubject(mac=CAM, server=SERVER)


def capture_of(mac: int) -> Capture:
    return Capture(Path("a.pcap"), "d", "scan", mac_text(mac))


def test_only_episodes_since_the_attack_began_detect_it():
    before, since, other = alert(t_ns=99 * S), alert(t_ns=100 * S), alert(OTHER, t_ns=101 * S)
    later = replace(since, t_ns=160 * S, last_ns=150 * S, seq=2)
    episodes = [[before], [since, later], [other]]
    assert detections(episodes, ExpectedSubject(mac=CAM), 100 * S) == [[since, later]]
