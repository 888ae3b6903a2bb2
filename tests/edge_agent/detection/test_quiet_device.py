"""A device that has learnt for a day on site is judged by limits below the shared ones, end to end."""

import itertools
from collections.abc import Iterator

import pytest

from edge_agent.capture.features import Extractor
from edge_agent.contract import bundle as bundles
from edge_agent.contract.bundle import Bundle
from edge_agent.detection.detection import Detection
from edge_agent.detection.detector import Detector
from edge_agent.detection.devices import Devices
from tests.conftest import Home
from tests.edge_agent.detection.test_devices import BEGIN, MINUTE, entry, life
from tests.traffic import PLUG_MAC, Frame, S, merged, scan, steady

LIVED_MINUTES = 25 * 60
LATER = BEGIN + LIVED_MINUTES * MINUTE


@pytest.fixture(scope="module")
def bundle(home: Home) -> Bundle:
    return bundles.load(home.bundle)


@pytest.fixture(scope="module")
def a_day() -> list[Frame]:
    """A plug that reports every ten seconds, for a day and an hour."""
    return list(life(LIVED_MINUTES, rate=0.1))


def scan_at(rate: float, packets: int) -> list[Frame]:
    return list(steady(scan(packets, mac=PLUG_MAC), LATER, rate))


def judged(bundle: Bundle, frames: Iterator[Frame], devices: Devices, at_once: int = 4096) -> list[Detection]:
    detector, extractor = Detector(bundle, learn=devices.limits_of), Extractor(4096, seed=1)
    told: list[Detection] = []
    while rows := list(itertools.islice(frames, at_once)):
        told += detector.observe(extractor.push_frames(rows))
    return told + detector.finish()


@pytest.mark.parametrize(("rate", "within_s"), [(10.0, 1.5), (2.0, 10.0), (0.5, 60.0), (0.2, 180.0), (0.1, 600.0)])
def test_a_slow_scan_from_a_plug_that_never_contacts_new_hosts(bundle, a_day, rate, within_s):
    devices = Devices(bundle)
    told = judged(bundle, iter([*a_day, *scan_at(rate, int(rate * within_s) + 30)]), devices)
    assert entry(devices)["state"] == "active"
    mine = [d for d in told if d.device_mac == PLUG_MAC]
    assert mine, "not reported"
    assert 0 < (mine[0].t_ns - LATER) / S < within_s


def test_detections_do_not_depend_on_how_rows_are_cut_into_batches(bundle, a_day):
    frames = [*a_day, *merged(scan_at(0.2, 60), life(6, LATER, rate=0.1, seed=2))]
    told = [judged(bundle, iter(frames), Devices(bundle), n) for n in (977, 4096, 100_000)]
    assert told[0]
    assert [[d.t_ns for d in each] for each in told[1:]] == [[d.t_ns for d in told[0]]] * 2
