"""What the agent learns of devices from generated traffic, what it refuses to learn, and what survives."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from edge_agent.contract import bundle as bundles
from edge_agent.contract.bundle import Bundle
from edge_agent.contract.captures import mac_text
from edge_agent.contract.messages import MAX_DOCUMENT, encode
from edge_agent.detector import Detector
from edge_agent.devices import MAX_DEVICES, MAX_LISTED, Devices
from edge_agent.features import Extractor
from edge_agent.state import State
from tests.conftest import Home
from tests.edge_agent.test_detector import found
from tests.traffic import CLOUD, PLUG, PLUG_MAC, Frame, S, merged, packet

MINUTE = 60 * S
BEGIN = 1_770_000_000 * S // MINUTE * MINUTE


@pytest.fixture(scope="module")
def bundle(home: Home) -> Bundle:
    return bundles.load(home.bundle)


def life(minutes: float, begin: int = BEGIN, rate: float = 2.5, size: int = 80, seed: int = 1) -> Iterator[Frame]:
    """A healthy device that reports to its cloud and is answered, ``rate`` packets a second in each direction."""
    rng = np.random.default_rng(seed)
    out = packet(PLUG, CLOUD, 40001, 8883, proto=6, flags=0x18, size=size)
    back = packet(CLOUD, PLUG, 8883, 40001, proto=6, flags=0x10, mac=0x02_00_00_00_00_FE, to_mac=PLUG_MAC)
    t = begin
    while t < begin + minutes * MINUTE:
        t += int(S / rate * rng.uniform(0.5, 1.5))
        yield t, len(out), out
        yield t + 20_000_000, len(back), back


def lived(devices: Devices, bundle: Bundle, *parts: Iterable[Frame]) -> list:
    rows = Extractor(4096, seed=1).push_frames(merged(*parts))
    return found(Detector(bundle, learn=devices.own), rows)


def entry(devices: Devices, mac: int = PLUG_MAC) -> dict:
    return next(d for d in devices.document(BEGIN)["devices"] if d["mac"] == mac_text(mac))


# -- learning, active --


def test_a_device_learns_with_progress_and_is_active_after_enough_packets_and_minutes(bundle):
    devices = Devices(bundle, names={mac_text(PLUG_MAC): "plug"})
    assert lived(devices, bundle, life(6)) == []
    learning = entry(devices)
    assert (learning["state"], learning["name"], learning["capped"]) == ("learning", "plug", False)
    assert 25 <= learning["percent"] <= 45
    assert learning["minutes"] in (5, 6)
    assert learning["packets"] == pytest.approx(900, rel=0.1)

    devices = Devices(bundle)
    assert lived(devices, bundle, life(20)) == []
    active = entry(devices)
    assert (active["state"], active["percent"], active["score_times"]) == ("active", 100, 1.0)
    assert active["limit"] == pytest.approx(bundle.manifest.decision.full.limit, rel=1e-3)


def test_what_is_learnt_survives_a_restart_and_belongs_to_one_model(bundle, tmp_path, caplog):
    state = State(tmp_path / "s.sqlite")
    devices = Devices(bundle, state=state)
    lived(devices, bundle, life(20))
    before = entry(devices)
    devices.keep(devices.records(1e9, everything=True), 1e9)
    state.close()

    state = State(tmp_path / "s.sqlite")
    again = Devices(bundle, state=state)
    assert entry(again) == before
    own = again.own(PLUG_MAC, BEGIN + 100 * MINUTE)
    assert own.learnt
    assert entry(again) == before
    other = Devices(dataclasses.replace(bundle, sha256="0" * 64), state=state)
    assert other.document(BEGIN)["devices"] == []
    state.close()


def test_time_that_the_agent_was_away_teaches_nothing(bundle, tmp_path):
    state = State(tmp_path / "s.sqlite")
    devices = Devices(bundle, state=state)
    lived(devices, bundle, life(6))
    before = entry(devices)["percent"]
    devices.keep(devices.records(1e9), 1e9)
    again = Devices(bundle, state=state)
    lived(again, bundle, life(1, BEGIN + 500 * MINUTE))
    now = entry(again)
    assert (now["state"], before <= now["percent"] <= before + 10) == ("learning", True)
    state.close()


def test_a_record_that_cannot_be_read_is_forgotten_counted_and_said(bundle, tmp_path, caplog):
    state = State(tmp_path / "s.sqlite")
    devices = Devices(bundle, state=state)
    lived(devices, bundle, life(3))
    records = devices.records(1e9)
    state.learnt_put(bundle.sha256, [(mac, record[:-9]) for mac, record in records] + [(7, b"")], 1e9, 1e6)
    again = Devices(bundle, state=state)
    assert again.counts["devices_unreadable"] == len(records) + 1
    assert again.document(BEGIN)["devices"] == []
    assert "cannot be read and is forgotten" in caplog.text
    state.close()


def test_devices_and_their_document_have_bounds(bundle):
    devices = Devices(bundle, names={mac_text(m): "ü" * 64 for m in range(3000)})
    learnt = devices.own(1, BEGIN)
    learnt.learnt_ns = BEGIN
    for mac in range(2, MAX_DEVICES + 50):
        devices.own(mac, BEGIN + mac)
    assert len(devices.known()) == MAX_DEVICES
    assert devices.counts["devices_forgotten"] == 49
    assert 1 in devices.known()  # those that know nothing go first
    document = devices.document(BEGIN)
    assert (len(document["devices"]), document["not_listed"]) == (MAX_LISTED, MAX_DEVICES - MAX_LISTED)
    assert len(encode(document, MAX_DOCUMENT)) < MAX_DOCUMENT
