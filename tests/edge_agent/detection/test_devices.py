"""What the agent learns of devices from generated traffic, what it refuses to learn, and what survives."""

import dataclasses
import json
import random
import sqlite3
import subprocess
import sys
import time
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from edge_agent import state as states
from edge_agent.agent import Agent
from edge_agent.capture.features import Extractor, Rows
from edge_agent.config import AgentConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract.alert import Activity
from edge_agent.contract.bundle import Bundle
from edge_agent.contract.captures import mac_text
from edge_agent.contract.columns import COUNT_COLUMNS, indices
from edge_agent.contract.messages import MAX_PAYLOAD, MAX_STORED, encode
from edge_agent.control import CommandRefused
from edge_agent.delivery.suppressions import Suppressions
from edge_agent.detection.bursts import Mark
from edge_agent.detection.detector import Detector
from edge_agent.detection.device_document import budget
from edge_agent.detection.devices import MAX_DEVICES, Devices
from edge_agent.handlers import teach
from edge_agent.learning_store import seen_path
from edge_agent.state import State
from tests.conftest import Home
from tests.edge_agent.detection.test_detector import by_score, found
from tests.traffic import CLOUD, PLUG, PLUG_MAC, ROUTER_MAC, Frame, S, merged, one_socket, packet, scan, steady

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
    return found(Detector(bundle, learn=devices.limits_of), rows)


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
    own = again.limits_of(PLUG_MAC, BEGIN + 100 * MINUTE)
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


def test_an_unreadable_record_is_forgotten_counted_and_logged(bundle, tmp_path, caplog):
    state = State(tmp_path / "s.sqlite")
    devices = Devices(bundle, state=state)
    lived(devices, bundle, life(3))
    records = devices.records(1e9).learnt
    state.learnt_put(bundle.sha256, [(mac, record[:-9]) for mac, record in records] + [(7, b"")], 1e9, 1e6)
    again = Devices(bundle, state=state)
    assert again.counts["devices_unreadable"] == len(records) + 1
    assert again.document(BEGIN)["devices"] == []
    assert "cannot be read, so it learns anew" in caplog.text
    state.close()


def test_devices_and_their_document_have_bounds(bundle):
    devices = Devices(bundle, names={mac_text(m): "ü" * 64 for m in range(3000)})
    learnt = devices.limits_of(1, BEGIN)
    for minute in range(20):
        learnt.see(np.full(200, 0.1), np.zeros(200), np.zeros(200, dtype=bool))
        learnt.end_minute(BEGIN + (minute + 1) * MINUTE)
    assert learnt.learnt
    for mac in range(2, MAX_DEVICES + 50):
        devices.limits_of(mac, BEGIN + mac)
    assert len(devices.known()) == MAX_DEVICES
    assert devices.counts["devices_forgotten"] == 49
    assert 1 in devices.known()  # it has learnt
    assert set(range(2, 51)).isdisjoint(devices.known())  # the least recently seen of those that are still learning
    for most, fewest in ((MAX_PAYLOAD, 40), (MAX_STORED, 300)):
        document = devices.document(BEGIN, most_bytes=most)
        assert len(document["devices"]) >= fewest
        assert len(document["devices"]) + document["devices_left_out"] == MAX_DEVICES
        assert most - 500 < len(encode(document, MAX_STORED)) <= most


def test_devices_that_need_a_look_are_in_the_document_whatever_their_number_and_the_order_is_stable(bundle):
    """256 devices with the longest names, of which one that is learning and one under alarm have the highest MACs."""
    macs = range(0x020000000001, 0x020000000101)
    devices = Devices(bundle, names={mac_text(mac): "📷" * 64 for mac in macs}, min_s=60.0)
    for mac in macs[:-1]:
        limits = devices.limits_of(mac, BEGIN)
        for minute in range(20):
            limits.see(np.full(200, 0.1), np.zeros(200), np.zeros(200, dtype=bool))
            limits.end_minute(BEGIN + (minute + 1) * MINUTE)
        assert limits.state == "active"
    devices.limits_of(macs[-1], BEGIN)
    document = devices.document(BEGIN, alarmed={macs[-2]})
    payload = encode(document)
    assert len(payload) <= MAX_PAYLOAD
    first = document["devices"][:3]
    assert [(d["mac"], d["state"], d.get("alarmed")) for d in first] == [
        (mac_text(macs[-2]), "active", True),
        (mac_text(macs[-1]), "learning", None),
        (mac_text(macs[0]), "active", None),
    ]
    assert document["devices_left_out"] == 256 - len(document["devices"]) > 100
    assert document["count"] == {"learning": 1, "active": 255, "stale": 0}
    for mac in reversed(macs[:-1]):  # seen again in another order
        devices.limits_of(mac, BEGIN + 30 * MINUTE)
    again = devices.document(BEGIN + 30 * MINUTE, alarmed={macs[-2]})
    assert [d["mac"] for d in again["devices"]] == [d["mac"] for d in document["devices"]]


# -- what must not be learnt --


def flood(begin_minute: float, minutes: float, rate: float = 500.0) -> Iterator[Frame]:
    return steady(one_socket(int(minutes * 60 * rate), mac=PLUG_MAC), BEGIN + int(begin_minute * MINUTE), rate)


def first_alert(told: list) -> float:
    """Minutes after the beginning; fails when there is none."""
    return (min(d.t_ns for d in told if d.device_mac == PLUG_MAC) - BEGIN) / MINUTE


def test_scans_are_alerted_from_the_first_minutes_of_learning_and_a_device_in_alarm_is_not_believed(bundle):
    devices = Devices(bundle)
    begin = BEGIN + 2 * MINUTE
    told = lived(devices, bundle, life(25), steady(scan(22 * 60 * 5, mac=PLUG_MAC), begin, 5))
    assert first_alert(told) < 2.25
    assert entry(devices)["state"] == "learning"
    assert "looks infected" in entry(devices)["reason"]
    assert entry(devices)["score_times"] == 1.0


@pytest.mark.parametrize("minute", [0.5, 3, 8])
def test_in_its_first_minutes_a_device_that_is_learnt_is_protected_as_one_that_is_not(bundle, minute):
    """A flood that only the score sees, above the model's own limit of that time and not far."""
    rows = Extractor(4096, seed=1).push_frames(merged(life(10), flood(minute, 0.2, 4000)))
    bundle = by_score(bundle)
    shared = found(Detector(bundle), rows)
    assert minute < first_alert(shared) < minute + 0.2
    assert {d.method for d in shared if d.device_mac == PLUG_MAC} == {"autoencoder"}
    own = found(Detector(bundle, learn=Devices(bundle).limits_of), rows)
    assert first_alert(own) == first_alert(shared)


def test_a_flood_during_learning_is_alerted(bundle):
    """In the first ten minutes the model's own warm-up holds; after it the limit has come down with the minutes."""
    told = lived(Devices(bundle), bundle, life(14), flood(11, 3))
    assert 11 < first_alert(told) < 12


def test_a_flood_that_was_there_from_the_start_is_named_and_not_learnt(bundle):
    devices = Devices(bundle)
    told = lived(devices, bundle, life(22), flood(0, 22, 50))
    assert "looks like" in entry(devices)["reason"]
    assert entry(devices)["score_times"] == 1.0
    assert 14 < first_alert(told) < 18
    assert devices.relearn(PLUG_MAC)  # somebody says that it is meant
    assert devices.limits_of(PLUG_MAC, BEGIN).state == "learning"
    assert "reason" not in entry(devices)


@pytest.mark.parametrize("bursts", [1, 10])
def test_five_percent_of_attack_rows_in_the_window_change_little(bundle, bursts):
    """The limit stays within four times the clean one, and 99 % of a later flood's rows vote."""
    clean, spoilt = Devices(bundle), Devices(bundle)
    lived(clean, bundle, life(20))
    rows = int(20 * 60 * 2.5 * 2 * 0.05 / bursts)
    parts = [flood((i + 0.5) * 20 / bursts, rows / 100 / 60, 100) for i in range(bursts)]
    detector, extractor = Detector(bundle, learn=spoilt.limits_of), Extractor(4096, seed=1)
    detector.observe(extractor.push_frames(merged(life(20), *parts)))
    assert entry(spoilt)["state"] == "active"
    assert entry(spoilt)["limit"] <= 4 * entry(clean)["limit"]
    detector.observe(extractor.push_frames(list(flood(20, 0.1, 1000))))  # until the flood is in the statistics
    before = detector.counters["flagged"]
    detector.observe(extractor.push_frames(list(flood(20.1, 0.5, 1000))))
    assert detector.counters["flagged"] - before >= 0.99 * 30_000


# -- drift --


def test_a_firmware_update_makes_a_device_stale_within_ten_minutes_and_learning_anew_ends_that(bundle, caplog):
    caplog.set_level("INFO")
    devices = Devices(bundle)
    detector, extractor = Detector(bundle, learn=devices.limits_of), Extractor(4096, seed=1)
    detector.observe(extractor.push_frames(list(life(20))))
    assert not devices.look() or entry(devices)["state"] == "active"
    after = BEGIN + 20 * MINUTE
    detector.observe(extractor.push_frames(list(life(10.2, after, rate=10, size=1200, seed=2))))
    assert entry(devices)["state"] == "stale"
    assert devices.look()
    assert "is stale" in caplog.text
    assert devices.relearn(PLUG_MAC)
    detector.observe(extractor.push_frames(list(life(40, after + 11 * MINUTE, rate=10, size=1200, seed=3))))
    own = devices.limits_of(PLUG_MAC, BEGIN)
    assert own.state == "active"
    before = detector.counters["votes"]
    flagged, judged = own.flagged, own.judged
    detector.observe(extractor.push_frames(list(life(20, after + 51 * MINUTE, rate=10, size=1200, seed=4))))
    assert detector.counters["votes"] == before
    assert (own.flagged - flagged) / (own.judged - judged) < 0.005


def test_a_slow_ramp_alerts_before_half_of_the_flood_and_is_not_learnt(bundle):
    """From nothing to 500 packets a second in two hours, a step each minute."""
    devices = Devices(bundle)
    minutes = 60
    ramp = [flood(20 + i, 1, 500 * (i + 1) / 120) for i in range(minutes)]  # up to half of it
    told = lived(devices, bundle, life(20 + minutes), *ramp)
    assert first_alert(told) < 20 + minutes
    assert entry(devices)["score_times"] == 1.0


@pytest.mark.parametrize("hours", [2, 12])
@pytest.mark.parametrize("begins", ["when learnt", "with the learning", "over restarts", "over new models"])
def test_a_ramp_over_hours_alerts_before_half_of_the_flood(bundle, tmp_path, hours, begins):
    """From nothing to 500 packets a second, a step each minute; the agent begins anew every 15 minutes in some."""
    state = State(tmp_path / "s.sqlite")

    def start(model: Bundle) -> tuple[Devices, Detector]:
        devices = Devices(model, state=state)
        detector = Detector(model, learn=devices.limits_of)
        devices.carry_over(detector.vote)
        return devices, detector

    (devices, detector), extractor = start(bundle), Extractor(4096, seed=1)
    first = 0 if begins == "with the learning" else 20
    detector.observe(extractor.push_frames([*life(first), *life(0.1, BEGIN + first * MINUTE)]))
    told: list = []
    for minute in range(30 * hours):  # to half of it
        if minute % 15 == 14 and begins.startswith("over"):
            devices.keep(devices.records(1e9, everything=True), 1e9)
            number = minute // 15 if begins == "over new models" else 0
            sha256 = bundle.sha256 if not number else f"{number:064x}"
            devices, detector = start(dataclasses.replace(bundle, sha256=sha256))
        at = BEGIN + (first + minute) * MINUTE
        rate = 500 * (minute + 1) / (60 * hours)
        frames = merged(life(1, at, seed=minute), flood(first + minute, 1, rate))
        told = [d for d in detector.observe(extractor.push_frames(frames)) if d.device_mac == PLUG_MAC]
        if told:
            break
    assert told
    assert rate < 125, rate  # a quarter
    assert entry(devices)["score_times"] <= 2.0
    state.close()


def test_rows_that_were_flagged_raise_no_limit(bundle):
    """Five in a hundred, their counts far above any bound, and never so many at once that they would be an alarm."""
    rows = Extractor(4096, seed=1).push_frames(merged(life(40)))
    devices, clean = Devices(bundle), Devices(bundle)
    found(Detector(bundle, learn=clean.limits_of), rows)
    detector = Detector(bundle, learn=devices.limits_of)
    own = np.flatnonzero(rows.meta["src_mac"] == PLUG_MAC)
    marked = np.zeros(len(rows), dtype=bool)
    marked[own[::20]] = True
    values = rows.values.copy()
    values[np.ix_(marked, indices(COUNT_COLUMNS))] = 1e4
    assert found(detector, Rows(values, rows.meta)) == []
    assert detector.counters["flagged"] == marked.sum()
    assert entry(devices)["state"] == "stale"  # it is seen that the device is not what it was known for
    for key in ("limit", "counts_times"):
        assert entry(devices)[key] == entry(clean)[key]


@pytest.mark.parametrize("parts", [1, 4])
def test_a_window_with_five_percent_of_scanning_is_alerted_and_protects_as_well(bundle, parts):
    """A minute of 20, or four quarters of it."""
    devices = Devices(bundle)
    scans = [
        steady(scan(1200 // parts, mac=PLUG_MAC, seed=i), BEGIN + int((4 + 9 * i) * MINUTE), 20) for i in range(parts)
    ]
    minutes = 20 if parts == 1 else 45
    told = lived(devices, bundle, life(minutes), *scans)
    assert first_alert(told) < 4.1
    assert entry(devices)["score_times"] <= 2.0
    assert entry(devices)["counts_times"] == 1.0


# -- power cuts and upgrades --

SAVER = """
import sys; from pathlib import Path
import numpy as np
from edge_agent.learning_store import seen_path
from edge_agent.delivery.suppressions import Suppression, Suppressions
from edge_agent.contract import bundle as bundles
from edge_agent.detection.devices import Devices
from edge_agent.capture.features import Extractor
from edge_agent.state import State
from tests.edge_agent.detection.test_devices import BEGIN, life
state = State(Path(sys.argv[1])); assert not state.damaged
devices = Devices(bundles.load(Path(sys.argv[2])), state=state)
extractor = Extractor(4096, seed=1)
extractor.push_frames(list(life(1)))
allowed = Suppressions(state, 1000, 1e9, 0.0)
began = max([own.rows for own in devices.known().values()], default=0)
values = np.random.default_rng(1).gamma(2.0, 10.0, (20, 140)).astype(np.float32)
for i in range(began + 1, 10**9):
    for mac in range(5):
        own = devices.limits_of(mac, BEGIN)
        own.rows = i
        own.sample.see(values, np.full(20, i), np.arange(20), np.full(20, 0.5), 19)
        own.end_minute(BEGIN + i * 60 * 10**9)
    devices.keep(devices.records(1e9, everything=True), 1e9)
    bundles.replace_file(seen_path(state.path), extractor.save_seen())
    allowed.add(Suppression("mute", f"02:00:00:00:{i >> 8 & 255:02x}:{i & 255:02x}", 1e9, 1e9 + 9e5), 1e9, 0.0)
    print(i, flush=True)
"""


def test_killed_at_any_moment_the_state_is_whole_and_as_new_as_the_last_save(bundle, tmp_path):
    """SIGKILL between saves and in the middle of them: limits, rows, what was seen and the allow list."""
    path, rng = tmp_path / "s.sqlite", random.Random(7)
    before, told = 0, set()
    for _ in range(6):
        command = [sys.executable, "-c", SAVER, str(path), str(bundle.path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        first = process.stdout.readline()  # it has begun
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        said, errors = process.communicate(timeout=20)
        lines = (first + said).split(b"\n")[:-1]
        assert lines, errors
        saved = int(lines[-1])
        assert saved > before  # it went on from there
        state = State(path)
        devices = Devices(bundle, state=state)
        assert (state.damaged, devices.counts["devices_unreadable"], devices.counts["runs_unreadable"]) == (0, 0, 0)
        assert {own.rows for own in devices.known().values()} <= {saved, saved + 1}
        assert len(devices.known()) == 5
        assert all(own.sample.bursts for own in devices.known().values())
        told |= {f"02:00:00:00:{i >> 8 & 255:02x}:{i & 255:02x}" for i in map(int, lines)}
        assert told <= {entry.device for entry in Suppressions(state, 1000, 1e9, 0.0).active().values()}
        extractor = Extractor(4096, seed=1)
        extractor.load(seen_path(path).read_bytes())
        assert extractor.counts()["devices"] == 2
        before = max(own.rows for own in devices.known().values())
        state.close()


def test_what_an_agent_of_the_version_before_had_learnt_is_taken_up(bundle, tmp_path):
    """Records without the rows' figures, in a file without a table for rows."""
    path = tmp_path / "s.sqlite"
    devices = Devices(bundle)
    lived(devices, bundle, life(20))
    kept, minutes = devices.limits_of(PLUG_MAC, BEGIN).record()
    text = json.dumps({key: kept[key] for key in kept if key not in ("carried", "sampled")}).encode()
    record = zlib.compress(len(text).to_bytes(4, "little") + text + minutes.tobytes())
    with sqlite3.connect(path) as db:
        db.executescript(f"{states._OUTBOX}{states._LEARNT}{states._CONTROL}PRAGMA user_version=3;")
        db.execute("INSERT INTO learnt VALUES (?, ?, 1e9, ?)", (bundle.sha256, PLUG_MAC, record))
    db.close()
    state = State(path)
    again = Devices(bundle, state=state)
    assert {**entry(again), "kept_runs": 0} == {**entry(devices), "kept_runs": 0}
    other = Devices(dataclasses.replace(bundle, sha256="0" * 64), state=state)
    other.carry_over(lambda values: 1.0)  # no rows: it learns anew
    assert other.known() == {}
    assert again.counts["devices_unreadable"] == 0
    state.close()


def test_an_active_device_is_kept_as_soon_as_it_is(bundle, tmp_path):
    devices = Devices(bundle)
    lived(devices, bundle, life(10))
    assert devices.records(1e9).learnt
    lived(devices, bundle, life(10, BEGIN + 10 * MINUTE))
    assert entry(devices)["state"] == "active"
    assert PLUG_MAC in dict(devices.records(1e9 + 600).learnt)
    assert PLUG_MAC not in dict(devices.records(1e9 + 1200).learnt)  # then once an hour


def test_a_file_of_what_devices_have_seen_that_is_damaged_is_moved_aside(bundle, tmp_path, caplog):
    state = State(tmp_path / "s.sqlite")
    path = seen_path(state.path)
    path.write_bytes(b"bwstate1 and then nothing")
    agent = Agent(AgentConfig(), bundle, state=state)
    assert agent.extractor.counts()["devices"] == 0
    assert not path.exists()
    assert path.with_name(path.name + ".corrupt").exists()
    assert "moved to s.sqlite.seen.corrupt" in caplog.text
    assert state.damaged == 1
    agent.extractor.push_frames(list(life(1)))
    path.write_bytes(agent.extractor.save_seen())
    other = dataclasses.replace(bundle, sha256="0" * 64)
    assert Agent(AgentConfig(), other, state=state).extractor.counts()["devices"] == 2
    assert state.damaged == 1
    state.close()


def test_the_budget_is_the_bundle_s_with_what_its_days_prove(bundle):
    decision = Devices(bundle).decision
    said = budget(decision)
    assert (said["home_month"], said["home_devices"]) == (decision.budget, decision.home_devices) == (1.0, 20)
    assert decision.basis is not None
    assert said["device_days"] == round(decision.basis.device_days, 1) > 0
    assert said["proven"] == round(decision.basis.home_month, 2) > decision.budget
    assert budget(dataclasses.replace(decision, basis=None)) == {"home_month": 1.0, "home_devices": 20}


# -- bursts that recur, of real packets over days --


def call(day: float, seconds: float = 60.0, host: str = CLOUD, mac: int = ROUTER_MAC, answered: bool = True):
    """A video call: 300 packets a second from the device, and half as many back."""
    begin = BEGIN + int(day * 1440 * MINUTE) + MINUTE
    out = packet(PLUG, host, 40001, 8883, proto=6, flags=0x18, size=1200)
    back = packet(host, PLUG, 8883, 40001, proto=6, flags=0x10, mac=mac, to_mac=PLUG_MAC)
    for i in range(int(300 * seconds)):
        t = begin + i * S // 300
        yield t, len(out), out
        if answered and i % 2:
            yield t + 1_000_000, len(back), back


def days(devices: Devices, bundle: Bundle, of_day: Iterable[Iterable[Frame]]) -> list[list]:
    """Let a device learn for twenty minutes, then live some minutes of each day; return what is told on each."""
    detector, extractor = Detector(bundle, learn=devices.limits_of), Extractor(4096, seed=1)
    detector.observe(extractor.push_frames(list(life(20))))
    told = []
    for day, frames in enumerate(of_day, start=1):
        begin = BEGIN + day * 1440 * MINUTE
        of_it = detector.observe(extractor.push_frames(merged(life(3, begin, seed=day), frames)))
        of_it += detector.observe(extractor.push_frames(list(life(3, begin + 60 * MINUTE, seed=day))))
        told.append([d for d in of_it if d.device_mac == PLUG_MAC])
        devices.look()
    return told


def test_a_daily_video_call_to_a_host_of_the_device_is_told_on_three_days_and_learnt(bundle, caplog):
    caplog.set_level("INFO")
    devices = Devices(bundle)
    told = days(devices, bundle, [call(day) for day in range(1, 6)])
    assert [bool(of_day) for of_day in told] == [True, True, True, False, False]
    assert {d.class_name for of_day in told for d in of_day} == {"unknown"}
    own = entry(devices)
    assert (own["state"], own["bursts"]) == ("active", {"days": 5, "of": 3, "marked": 0})
    assert 2.0 < own["recurring"] < own["score_times"]
    assert "its bursts have recurred on several days without looking like an attack and are learnt" in caplog.text


def test_a_daily_flood_that_resembles_a_known_attack_is_told_each_day(bundle):
    devices = Devices(bundle)
    floods = [steady(one_socket(9000, mac=PLUG_MAC), BEGIN + (day * 1440 + 1) * MINUTE, 300) for day in range(1, 7)]
    told = days(devices, bundle, floods)
    assert all(told)
    assert told[-1][-1].class_name == "mirai.udpplain"
    assert entry(devices)["score_times"] == 1.0
    assert entry(devices)["bursts"]["marked"] >= 6


def test_a_daily_call_that_is_not_answered_is_told_each_day(bundle):
    """A flood that resembles no attack in the bundle, at a host that the device uses anyway."""
    devices = Devices(bundle)
    told = days(devices, bundle, [call(day, answered=False) for day in range(1, 7)])
    assert all(told)
    assert entry(devices)["score_times"] == 1.0
    assert devices.known()[PLUG_MAC].bursts.kept[0].marks == Mark.UNANSWERED


def test_a_daily_burst_to_another_new_host_each_day_is_told_each_day(bundle):
    devices = Devices(bundle)
    told = days(devices, bundle, [call(day, host=f"198.51.100.{day}") for day in range(1, 7)])
    assert all(told)
    assert entry(devices)["bursts"] == {"days": 0, "of": 3, "marked": 6}
    assert entry(devices)["score_times"] == 1.0


def test_a_call_that_somebody_vouches_for_is_learnt_at_once_and_forgotten_on_request(bundle, tmp_path):
    state = State(tmp_path / "s.sqlite")
    devices = Devices(bundle, state=state)
    (first,) = days(devices, bundle, [call(1)])
    told = tuple({activity for detection in first for activity in detection.activities})
    assert devices.vouch(PLUG_MAC + 1, told) is None
    assert devices.vouch(PLUG_MAC, [Activity("scan", 23)]) is False
    assert devices.vouch(PLUG_MAC, told) is True
    devices.keep(devices.records(1e9, everything=True), 1e9)
    again = Devices(bundle, state=state)
    assert entry(again)["vouched"] == entry(devices)["vouched"]
    assert entry(again)["score_times"] == entry(devices)["score_times"] > 2.0
    assert days(again, bundle, [[], call(2)]) == [[], []]
    assert again.unvouch(PLUG_MAC, told)
    assert entry(again)["score_times"] == 1.0
    state.close()


def test_an_order_to_learn_a_burst_says_why_it_cannot_be_carried_out(bundle):
    devices = Devices(bundle)
    (first,) = days(devices, bundle, [call(1)])
    told = tuple({activity for detection in first for activity in detection.activities})
    for device, activities, reason in (
        ("192.168.38.20", told, "named by its MAC"),
        ("02:00:00:00:00:99", told, "has not been seen"),
        (mac_text(PLUG_MAC), (Activity("check-in"),), "no burst of this sort is remembered"),
    ):
        with pytest.raises(CommandRefused, match=reason):
            teach(devices, device, activities, True)
    teach(devices, mac_text(PLUG_MAC), told, True)
    assert entry(devices)["score_times"] > 2.0
    teach(devices, mac_text(PLUG_MAC), told, False)
    assert entry(devices)["score_times"] == 1.0
