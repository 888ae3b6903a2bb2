"""The rows that are kept of healthy devices: which ones, within what bounds, and what a new model makes of them."""

import dataclasses
import random
import resource

import numpy as np
import pytest

from edge_agent.__main__ import main
from edge_agent.agent import Agent
from edge_agent.capture.features import Extractor, Rows
from edge_agent.config import AgentConfig, LearningConfig, OutboxConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract.bundle import Bundle
from edge_agent.contract.captures import mac_text
from edge_agent.contract.columns import ALL_COLUMNS, CLEAN
from edge_agent.detection.detector import Detector
from edge_agent.detection.device_limits import DeviceLimits
from edge_agent.detection.devices import Devices
from edge_agent.detection.minutes import MAX_MINUTES
from edge_agent.detection.reservoir import BURST_ROWS, EVEN, LOUD, RowBurst, RowSample
from edge_agent.state import State, StateUnwritableError
from tests.conftest import Home
from tests.edge_agent.detection.test_devices import BEGIN, MINUTE, entry, flood, life, lived
from tests.traffic import PLUG_MAC, merged, scan, steady
from trainer.config import DatasetEntry
from trainer.data import dataset
from trainer.data.row_table import DatasetError, Limits


@pytest.fixture(scope="module")
def bundle(home: Home) -> Bundle:
    return bundles.load(home.bundle)


def of_model(bundle: Bundle, name: str, times: float) -> Bundle:
    """Another model: the same network, whose limit is ``times`` as high."""
    decision = bundle.manifest.decision
    full = dataclasses.replace(decision.full, limit=decision.full.limit * times)
    manifest = dataclasses.replace(bundle.manifest, decision=dataclasses.replace(decision, full=full), version=name)
    return dataclasses.replace(bundle, manifest=manifest, sha256=name.ljust(64, "0"))


def kept(sample: RowSample | None, kind: str) -> list[RowBurst]:
    assert sample is not None
    return [run for run in sample.bursts if run.kind == kind]


def fed(sample: RowSample, minutes: range, height=lambda minute: 0.1, rows: int = 50) -> None:
    """Minutes of rows that hold their minute's number in the first column and a score of ``height``."""
    for minute in minutes:
        values = np.full((rows, len(ALL_COLUMNS)), minute, dtype=np.float32)
        t_ns = np.arange(rows, dtype=np.int64) * 1_000_000_000 + minute * MINUTE
        sample.see(values, t_ns, np.arange(rows), np.full(rows, height(minute)), rows // 2)
        sample.end_minute(minute, height(minute), calm=True)


# -- what is kept --


def test_rows_come_back_within_a_percent_with_their_times(bundle):
    rows = Extractor(4096, seed=1).push_frames(merged(life(2)))
    sample = RowSample(random.Random(1))
    own = np.flatnonzero(rows.meta["src_mac"] == PLUG_MAC)
    sample.see(rows.values, rows.meta["t_ns"], own, np.linspace(0, 1, len(own)), len(own) - 1)
    for minute in range(3):
        sample.end_minute(minute, 1.0, calm=True)
    (run,) = kept(sample, "loud")
    values, t_ns = run.rows()
    assert np.allclose(values, rows.values[own[-BURST_ROWS:]], rtol=0.01, atol=1e-3)
    assert (np.abs(t_ns - rows.meta["t_ns"][own[-BURST_ROWS:]]) < 1_000_000).all()


def test_of_each_kind_there_are_so_many_the_loudest_and_some_from_all_of_the_time():
    hits = np.zeros(10)
    for seed in range(20):
        sample = RowSample(random.Random(seed))
        fed(sample, range(1001), lambda minute: 1.0 + (minute * 7 % 1000) / 1000)
        loud, even = kept(sample, "loud"), kept(sample, "even")
        assert sorted(run.vote for run in loud) == [pytest.approx(2 - (i + 1) / 1000) for i in reversed(range(LOUD))]
        assert len(even) == EVEN
        assert all(run.rows()[0][-1, 0] == pytest.approx(run.minute, rel=0.01) for run in sample.bursts)
        for run in even:
            hits[run.minute // 100] += 1
    assert (hits > 10).all(), (
        hits
    )  # 32 each would be even: some of every tenth of the time, the last and the first alike


def test_one_run_spans_rows_that_came_in_one_by_one():
    """A quiet device's rows come in one at a time."""
    sample = RowSample(random.Random(1))
    values = np.arange(60, dtype=np.float32)[:, None].repeat(len(ALL_COLUMNS), axis=1)
    for i in range(60):
        sample.see(values, np.full(60, i, np.int64), np.array([i]), np.array([0.5]), 0 if i == 40 else -1)
    sample.end_minute(1, 0.5, calm=True)
    fed(sample, range(2, 4))
    loud = next(run for run in kept(sample, "loud") if run.minute == 1)
    assert loud.rows()[0][:, 0] == pytest.approx(np.arange(21, 41), rel=0.01)


def test_no_row_of_an_alarm_its_aftermath_or_the_minute_before_is_stored(bundle):
    devices = Devices(bundle)
    lived(devices, bundle, life(60), steady(scan(120 * 5, mac=PLUG_MAC), BEGIN + 30 * MINUTE + MINUTE // 2, 5))
    own = devices.limits_of(PLUG_MAC, BEGIN)
    own_minutes = {run.minute - BEGIN // MINUTE for run in own.sample.bursts}
    assert len(own.sample.bursts) == LOUD + EVEN
    assert not own_minutes & set(range(30, 49)), sorted(own_minutes)  # 32 minutes and a half, and 1,000 s after it
    assert max(own_minutes) > 49
    assert min(own_minutes) < 20


def test_flagged_rows_are_not_stored_even_without_an_alarm(bundle):
    """Five rows of a flood now and then are flagged, and fewer than a vote."""
    rows = Extractor(4096, seed=1).push_frames(merged(life(20)))
    devices = Devices(bundle)
    detector = Detector(bundle, learn=devices.limits_of)
    values = rows.values.copy()
    own = np.flatnonzero(rows.meta["src_mac"] == PLUG_MAC)
    marked = own[100::150]
    values[marked] = 1e7
    detector.observe(Rows(values, rows.meta))
    assert detector.counters["flagged"] >= len(marked) - 1
    sample = devices.limits_of(PLUG_MAC, BEGIN).sample
    assert len(sample.bursts) >= 20
    assert max(float(run.rows()[0].max()) for run in sample.bursts) < 1e6


def test_no_rows_are_stored_of_a_device_whose_limits_are_refused(bundle):
    devices = Devices(bundle)
    lived(devices, bundle, life(22), flood(0, 22, 50))
    assert "looks like" in entry(devices)["reason"]
    assert devices.limits_of(PLUG_MAC, BEGIN).sample.bursts == []


def test_learning_anew_forgets_the_stored_rows(bundle):
    devices = Devices(bundle)
    lived(devices, bundle, life(20))
    sample = devices.limits_of(PLUG_MAC, BEGIN).sample
    assert sample.bursts
    devices.relearn(PLUG_MAC)
    assert sample.bursts == []


def test_loud_runs_are_of_minutes_that_limits_still_come_from():
    """A device that was loud in its first days: what it is now known for is what another model has to be told."""
    own = DeviceLimits(BEGIN, 2.0, 2, 3, sample=RowSample(random.Random(1)))
    rows, values = np.arange(50), np.ones((50, len(ALL_COLUMNS)), dtype=np.float32)
    for minute in range(2 * MAX_MINUTES):
        scores = np.full(50, 0.9 if minute < 500 else 0.1 + minute % 7 / 100)
        at = own.see(scores, np.zeros(50), np.zeros(50, dtype=bool))
        own.sample.see(values, BEGIN + minute * MINUTE + rows, rows, scores, at)
        own.end_minute(BEGIN + (minute + 1) * MINUTE)
    loud = kept(own.sample, "loud")
    assert len(loud) == LOUD
    assert {run.minute for run in loud} <= set(own.votes())
    assert max(own.votes().values()) == pytest.approx(max(run.vote for run in loud))
    assert min(run.minute for run in kept(own.sample, "even")) < BEGIN // MINUTE + MAX_MINUTES  # of all of the time


def test_all_devices_together_have_a_bound_and_those_with_most_give_up_first(bundle):
    devices = Devices(bundle, most_bytes=20_000)
    for mac, minutes in ((1, 100), (2, 3)):
        fed(devices.limits_of(mac, BEGIN).sample, range(minutes), lambda minute: random.Random(minute).random())
    few = devices.limits_of(2, BEGIN).sample.size
    packed = np.random.default_rng(1).bytes(3000)
    devices.limits_of(1, BEGIN).sample.take_over([RowBurst("even", i, packed) for i in range(16)], 16)
    devices.look()
    assert devices.limits_of(1, BEGIN).sample.size + few <= 20_000
    assert devices.limits_of(2, BEGIN).sample.size == few
    assert devices.counts["runs_dropped"] >= 10
    assert Devices(bundle, most_bytes=0).limits_of(1, BEGIN).sample is None


# -- on the disk --


def after(devices: Devices, state: State, now_s: float = 1e9) -> State:
    """The state opened again when all is kept."""
    devices.keep(devices.records(now_s, everything=True), now_s)
    state.close()
    return State(state.path)


def test_rows_survive_a_restart_and_only_new_ones_are_written_again(bundle, tmp_path):
    state = State(tmp_path / "s.sqlite")
    devices = Devices(bundle, state=state)
    lived(devices, bundle, life(20))
    records = devices.records(1e9)
    assert len(records.bursts[PLUG_MAC]) >= 20
    assert 5_000 < records.size < 80_000
    devices.keep(records, 1e9)
    assert PLUG_MAC not in devices.records(1e9 + 600).bursts
    again = devices.records(1e9 + 4000)
    assert again.bursts[PLUG_MAC]
    assert again.size < 8_000  # all of it is on the disk
    state.close()
    state = State(tmp_path / "s.sqlite")
    later = Devices(bundle, state=state)
    assert entry(later)["kept_runs"] == len(records.bursts[PLUG_MAC])
    lived(later, bundle, life(30, BEGIN + 60 * MINUTE, seed=2))
    state = after(later, state)
    on_disk = state.runs(PLUG_MAC)
    assert {(kind, minute) for kind, minute, _ in on_disk} == {
        (run.kind, run.minute) for run in later.limits_of(PLUG_MAC, BEGIN).sample.bursts
    }
    assert max(minute for _, minute, _ in on_disk) > BEGIN // MINUTE + 60
    state.close()


def test_what_was_not_written_since_the_disk_was_full_is_written_later(bundle, tmp_path):
    state = State(tmp_path / "s.sqlite")
    devices = Devices(bundle, state=state)
    lived(devices, bundle, life(20))
    records, unbounded = devices.records(1e9), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, unbounded[1]))  # as a full disk: no file grows beyond
    try:
        with pytest.raises(StateUnwritableError):
            devices.keep(records, 1e9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unbounded)
    again = devices.records(1e9 + 4000)
    assert again.size > 5_000
    devices.keep(again, 1e9)
    assert state.runs(PLUG_MAC)
    state.close()


def test_a_damaged_run_is_left_out_and_counted(bundle, tmp_path):
    state = State(tmp_path / "s.sqlite")
    devices = Devices(bundle, state=state)
    lived(devices, bundle, life(20))
    devices.keep(devices.records(1e9), 1e9)
    runs = [
        (kind, minute, packed[:-5] if i < 2 else packed)
        for i, (kind, minute, packed) in enumerate(state.runs(PLUG_MAC))
    ]
    state.learnt_put(bundle.sha256, [], 1e9, 1e6, {PLUG_MAC: runs})
    again = Devices(bundle, state=state)
    assert again.counts["runs_unreadable"] == 2
    assert entry(again)["kept_runs"] == len(runs) - 2
    state.close()


# -- for training --


@pytest.mark.parametrize("allowed", [False, True])
def test_rows_leave_the_gateway_where_the_configuration_allows_it_and_the_trainer_reads_them(
    bundle, tmp_path, allowed, capsys
):
    state = State(tmp_path / "s.sqlite")
    devices = Devices(bundle, state=state)
    lived(devices, bundle, life(20))
    after(devices, state).close()
    (tmp_path / "agent.yaml").write_text(
        f"outbox: {{path: {tmp_path}/s.sqlite}}\nlearning: {{export: {str(allowed).lower()}}}\n"
        f"names: {{'{mac_text(PLUG_MAC)}': plug}}\n"
    )
    out = tmp_path / "rows.npz"
    status = main(["rows", "--config", str(tmp_path / "agent.yaml"), "--out", str(out)])
    if not allowed:
        assert status == 2
        assert "learning.export" in capsys.readouterr().err
        assert not out.exists()
        return
    assert status == 0
    with np.load(out) as file:
        assert set(file) == {"schema", "columns", "values", "t_ns", "device"}
        assert not any(":" in str(name) for name in file["device"])
    entry = DatasetEntry("rows", out, label="benign")
    table = dataset.load([entry], ALL_COLUMNS, CLEAN, Limits())
    assert set(table.devices) == {"plug"}  # what its router carries is not of a device
    assert len(table) > 200
    assert (table.t_ns >= BEGIN).all()
    assert (table.t_ns < BEGIN + 20 * MINUTE).all()
    out.write_bytes(out.read_bytes()[:-300])
    with pytest.raises(DatasetError, match="not a file of rows"):
        dataset.load([entry], ALL_COLUMNS, CLEAN, Limits())
    np.savez(out, schema=CLEAN, values=[[1.0]], columns=["speed"], t_ns=[1], device=["plug"])
    with pytest.raises(DatasetError, match="has no column"):
        dataset.load([entry], ALL_COLUMNS, CLEAN, Limits())


# -- another model --


@pytest.mark.parametrize("times", [0.25, 1.0, 3.0])
def test_a_new_models_limits_come_from_the_rows_at_once(bundle, tmp_path, times, caplog):
    """They are those that the device would have learnt under it, though the old model is gone."""
    caplog.set_level("INFO")
    # what it does now and then, within its limits
    noisy = [list(life(120)), *(list(flood(10 + 9 * i, 0.3, 30)) for i in range(12))]
    state = State(tmp_path / "s.sqlite")
    devices = Devices(bundle, state=state)
    lived(devices, bundle, *noisy)
    assert entry(devices)["state"] == "active"
    state = after(devices, state)

    other = of_model(bundle, "7", times)
    direct = Devices(other)
    lived(direct, other, *noisy)
    carried = Devices(other, state=state)
    assert carried.known() == {}
    carried.carry_over(Detector(other).vote)
    now, learnt = entry(carried), entry(direct)
    assert now["state"] == "active"
    assert now["calibrated_from"].endswith("kept rows")
    assert "are calibrated from" in caplog.text
    assert now["limit"] == pytest.approx(learnt["limit"], rel=0.5)  # under a lower one some are flagged and not learnt
    assert now["counts_times"] == learnt["counts_times"]
    # and what is learnt from now on belongs to the new model
    lived(carried, other, life(5, BEGIN + 300 * MINUTE))
    state = after(carried, state)
    again = Devices(other, state=state)
    assert entry(again)["calibrated_from"] == now["calibrated_from"]
    assert Devices(bundle, state=state).known().keys() == carried.known().keys()  # the old one can come back
    state.close()


def test_an_agent_with_a_new_bundle_says_what_it_is_calibrated_from(home, bundle, tmp_path):
    state = State(tmp_path / "s.sqlite")
    config = AgentConfig(outbox=OutboxConfig(path=state.path))
    agent = Agent(config, bundle, state=state)
    for _ in agent.judge(agent.extractor.push_frames(merged(life(20)))):
        pass
    agent.devices.keep(agent.devices.records(1e9, everything=True), 1e9)
    new = Agent(config, of_model(bundle, "8", 1.0), state=state)
    assert "kept rows" in entry(new.devices)["calibrated_from"]
    nothing = dataclasses.replace(config, learning=LearningConfig(kept_mb=0))
    assert Agent(nothing, of_model(bundle, "9", 1.0), state=state).devices.known() == {}
    state.close()


def test_a_device_with_too_few_stored_rows_learns_anew(bundle, tmp_path):
    state = State(tmp_path / "s.sqlite")
    devices = Devices(bundle, state=state)
    lived(devices, bundle, life(20))
    devices.keep(devices.records(1e9), 1e9)
    state.learnt_put(
        bundle.sha256, [], 1e9, 1e6, {PLUG_MAC: [(k, m, p) for k, m, p in state.runs(PLUG_MAC) if k == "even"]}
    )
    other = Devices(of_model(bundle, "7", 1.0), state=state)
    other.carry_over(lambda values: 1.0)
    assert other.known() == {}
    state.close()
