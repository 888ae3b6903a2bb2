"""The sort of traffic is measured: what is allowed under one model is quiet under the next, and nothing else is."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from edge_agent.agent import Agent, replay
from edge_agent.capture.features import Extractor
from edge_agent.config import AgentConfig, LearningConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract.alert import Activity, Alert
from edge_agent.contract.bundle import Bundle
from edge_agent.contract.captures import mac_text
from edge_agent.delivery.suppressions import Suppression, Suppressions
from edge_agent.detection.detector import Detector
from edge_agent.state import State
from tests.edge_agent.detection.test_detector import found, other_bundle
from tests.edge_agent.detection.test_devices import BEGIN, life
from tests.reference.frames import pcap
from tests.traffic import CLOUD, PLUG, PLUG_MAC, ROUTER_MAC, Frame, S, merged, packet, steady

ATTACK = BEGIN + 15 * 60 * S
"""When attacks begin: the warm-up is over."""


@pytest.fixture(scope="module")
def bundle(home) -> Bundle:
    return bundles.load(home.bundle)


@pytest.fixture(scope="module")
def plain(bundle, tmp_path_factory) -> Bundle:
    """A later model, which names everything an anomaly."""
    return other_bundle(bundle, tmp_path_factory.mktemp("plain") / "bundle", classifier=False)


def run(folder: Path, by: Bundle, *parts: Iterable[Frame], allowed: Iterable[Activity] = ()) -> list[Alert]:
    """Return the alerts about a device that has been calm for a quarter of an hour, and has then sent ``parts``."""
    folder.mkdir(exist_ok=True)
    agent = Agent(AgentConfig(learning=LearningConfig(enabled=False)), by)
    if allowed := tuple(allowed):
        suppressions = Suppressions(State(folder / "state.sqlite"), 10, 0.0, 0.0)
        device = mac_text(PLUG_MAC)
        entry = Suppression(verb="allow", device=device, created_s=0.0, expires_s=9e5, activities=allowed, reason="r")
        suppressions.add(entry, 0.0, 0.0)
        agent.alerter.suppressions = suppressions
    (folder / "some.pcap").write_bytes(pcap(merged(life(15), *parts), nanoseconds=True))
    alerts: list[Alert] = []
    replay(agent, [folder / "some.pcap"], alerts.append)
    return alerts


def probes(port: int, count: int = 600, rate: float = 20, begin: int = ATTACK, **more: int) -> Iterable[Frame]:
    """SYNs to ``port`` of hosts that the device has never met."""
    hosts = np.random.default_rng(port).integers(0x0B000000, 0x7F000000, count)
    return steady((packet(PLUG, int(host), 41000, port, proto=6, **more) for host in hosts), begin, rate)


def syn_flood(port: int = 80, rate: float = 600, seconds: float = 10, begin: int = ATTACK) -> Iterable[Frame]:
    """SYNs to one host and port, from another source port each."""
    count = int(rate * seconds)
    ports = np.random.default_rng(3).integers(1024, 65_536, count)
    return steady((packet(PLUG, CLOUD, int(port_), port, proto=6) for port_ in ports), begin, rate)


def udp_flood(port: int = 9307, rate: float = 600, seconds: float = 10, begin: int = ATTACK) -> Iterable[Frame]:
    """Large datagrams from one socket to another."""
    return steady([packet(PLUG, CLOUD, 33000, port, size=512)] * int(rate * seconds), begin, rate)


def any_port_flood(rate: float = 600, seconds: float = 10, begin: int = ATTACK) -> Iterable[Frame]:
    """Datagrams to any port of one host, as BASHLITE's udp."""
    ports = np.random.default_rng(4).integers(1, 65_536, int(rate * seconds))
    return steady((packet(PLUG, CLOUD, 33000, int(port), size=64) for port in ports), begin, rate)


def spoofed_flood(rate: float = 600, seconds: float = 10, begin: int = ATTACK) -> Iterable[Frame]:
    """Datagrams to one host and port from false addresses."""
    sources = np.random.default_rng(5).integers(0x0B000000, 0x7F000000, int(rate * seconds))
    return steady((packet(int(source), CLOUD, 33000, 53, size=64) for source in sources), begin, rate)


def stream(begin: int = BEGIN, seconds: float = 1000, rate: float = 150) -> Iterable[Frame]:
    """The video that the device always sends to its recorder."""
    return steady([packet(PLUG, "192.168.1.9", 40_554, 554, size=900)] * int(rate * seconds), begin, rate)


@pytest.mark.parametrize(
    ("traffic", "activity"),
    [
        (partial(probes, 22), Activity("scan", 22)),
        (partial(probes, 23, rate=160), Activity("scan", 23)),
        (partial(probes, 2323, 5000, rate=2000), Activity("scan", 2323)),
        (partial(syn_flood), Activity("flood", 80)),
        (partial(udp_flood), Activity("flood", 9307)),
        (partial(any_port_flood), Activity("flood")),
        (partial(spoofed_flood), Activity("flood", 53)),
    ],
    ids=["slow scan", "scan", "fast scan", "syn flood", "udp flood", "flood of any port", "spoofed flood"],
)
@pytest.mark.parametrize("named", [True, False])
def test_a_scan_is_a_scan_and_a_flood_a_flood_under_every_model(bundle, plain, tmp_path, traffic, activity, named):
    alerts = run(tmp_path / "a", bundle if named else plain, traffic())
    assert alerts
    assert {alert.activities for alert in alerts} == {(activity,)}
    classes = {alert.class_name for alert in alerts}
    assert named or classes == {"anomaly"}
    assert run(tmp_path / "b", bundle if named else plain, traffic(), allowed=[activity]) == []


def test_an_allowed_scan_covers_no_other_port_and_no_flood_even_beside_it(bundle, plain, tmp_path):
    backup = list(probes(22, 1200))
    allowed = [Activity("scan", 22)]
    assert run(tmp_path / "0", plain, backup, allowed=allowed) == []
    later = ATTACK + 20 * S
    for number, (attack, activity) in enumerate(
        {
            "other port": (probes(23, 600, rate=40, begin=later), "scan"),
            "few of another port": (probes(23, 150, rate=5, begin=later), "scan"),
            "syn flood": (syn_flood(begin=later), "flood"),
            "udp flood": (udp_flood(begin=later), "flood"),
            "weak flood": (udp_flood(rate=120, begin=later), "flood"),
            "flood of the allowed port": (syn_flood(22, begin=later), "flood"),
            "flood of any port": (any_port_flood(begin=later), "flood"),
        }.values()
    ):
        alerts = run(tmp_path / f"{number + 1}", plain, backup, list(attack), allowed=allowed)
        assert [alert.state for alert in alerts][:1] == ["new"], number
        assert alerts[0].t_ns - later < 5 * S, number
        assert activity in {a.kind for alert in alerts for a in alert.activities}, number


def test_a_stream_that_a_device_always_sends_does_not_make_its_scan_a_flood(bundle):
    """The model does not know the stream and reports it; from the scan on, the reason is the scan, with its port."""
    rows = Extractor(4096, seed=1).push_frames(merged(stream(), probes(23, 1500, rate=40)))
    detections = found(Detector(bundle), rows)
    assert {d.activities for d in detections if d.t_ns < ATTACK} == {(Activity("flood", 554),)}
    scanning = [d for d in detections if ATTACK + S < d.t_ns < ATTACK + 37 * S]
    assert len(scanning) > 30
    assert {d.activities for d in scanning} == {(Activity("scan", 23),)}
    by_count = [d.explanation for d in scanning if d.method == "counts"]
    assert by_count
    assert all(" to port 23 (" in text for text in by_count), by_count


def test_an_allowed_flood_hides_no_scan(bundle, tmp_path):
    """The stream is new to the model and is allowed; then the device is infected."""
    allowed = [Activity("flood", 554)]
    video = list(stream(ATTACK, 100, 400))
    before = run(tmp_path / "a", bundle, video)
    assert {activity for alert in before for activity in alert.activities} == {Activity("flood", 554)}
    assert run(tmp_path / "b", bundle, video, allowed=allowed) == []
    infected = run(tmp_path / "c", bundle, video, list(probes(23, 800, begin=ATTACK + 40 * S)), allowed=allowed)
    assert infected
    assert infected[0].t_ns >= ATTACK + 40 * S
    assert Activity("scan", 23) in infected[0].activities


def test_an_allowed_flood_hides_no_weaker_one_to_another_port(bundle, tmp_path):
    """It has a quarter of the packets, in turn with those of the allowed one."""
    allowed = [Activity("flood", 9307)]
    mixed = [packet(PLUG, CLOUD, 33000, 9307, size=512)] * 3 + [packet(PLUG, "52.1.2.3", 33001, 53, size=512)]
    assert run(tmp_path / "a", bundle, udp_flood(), allowed=allowed) == []
    infected = run(tmp_path / "b", bundle, steady(mixed * 1500, ATTACK, 800), allowed=allowed)
    assert infected
    assert Activity("flood", 53) in {activity for alert in infected for activity in alert.activities}


def test_many_who_come_to_one_port_are_a_flood_and_one_who_tries_many_ports_is_a_scan(bundle, tmp_path):
    rng = np.random.default_rng(6)

    def arriving(sources: Iterable[int], ports: Iterable[int], rate: float) -> Iterable[Frame]:
        pairs = zip(sources, ports, strict=True)
        syns = (packet(int(s), PLUG, 41000, int(p), proto=6, mac=ROUTER_MAC, to_mac=PLUG_MAC) for s, p in pairs)
        return steady(syns, ATTACK, rate)

    flood = run(tmp_path / "a", bundle, arriving(rng.integers(0x0B000000, 0x7F000000, 5000), [80] * 5000, 500))
    assert {(alert.role, alert.activities) for alert in flood} == {("victim", (Activity("flood", 80),))}
    scan = run(tmp_path / "b", bundle, arriving([0x0B000001] * 2000, range(1, 2001), 40))
    assert {(alert.role, alert.activities) for alert in scan} == {("victim", (Activity("scan"),))}
