"""More traffic than may be scored: which rows are shed, and that a flood hides no other device."""

import dataclasses

import numpy as np
import pytest

from edge_agent.agent import Agent, replay
from edge_agent.capture import features
from edge_agent.capture.features import Extractor, Rows, RowScaling
from edge_agent.config import AgentConfig, ScoringConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract import scaling
from edge_agent.contract.addresses import PRIVATE_NETWORKS
from edge_agent.contract.bundle import Bundle
from edge_agent.contract.networks import Networks
from edge_agent.detection.detection import Detection
from edge_agent.detection.detector import Detector
from tests.conftest import Home
from tests.reference.frames import pcap
from tests.traffic import S, merged, one_socket, packet, scan, spoofed, steady

BEGIN = 1_770_000_000 * S
OTHER = 0x02005E100002


@pytest.fixture(scope="module")
def bundle(home: Home) -> Bundle:
    return bundles.load(home.bundle)


def detections_of(detector: Detector, rows: Rows, sizes: tuple[int, ...]) -> list[Detection]:
    """All detections of some rows, observed in batches of these sizes in turn."""
    reported, at, turn = [], 0, 0
    while at < len(rows):
        end = at + sizes[turn % len(sizes)]
        reported += detector.observe(Rows(rows.values[at:end], rows.meta[at:end]))
        at, turn = end, turn + 1
    return reported + detector.finish()


@pytest.fixture(scope="module")
def flood() -> Rows:
    """Ten quiet minutes of two devices, then ten seconds of a spoofed flood of one, in which the other scans."""
    calm = (packet("192.168.38.20", "203.0.113.9", 40000, 443) for _ in range(600))
    calm_other = (packet("192.168.38.21", "203.0.113.9", 40000, 443, mac=OTHER) for _ in range(600))
    flooding = steady(spoofed(20_000), BEGIN + 620 * S, 2000)
    scanning = steady(scan(200, "192.168.38.21", mac=OTHER), BEGIN + 625 * S, 50)
    frames = merged(steady(calm, BEGIN, 1), steady(calm_other, BEGIN, 1), flooding, scanning)
    return Extractor(4096, seed=1).push_frames(frames)


def test_every_row_is_scored_or_counted_as_shed_and_the_budget_holds(bundle, flood):
    detector = Detector(bundle, max_rows_per_s=200)
    detections_of(detector, flood, (1024,))
    counted = detector.counters
    assert counted["scored"] + counted["shed"] == len(flood)
    assert counted["shed"] > 15_000
    assert counted["scored"] < 1200 + 10 * 200 + 200 * 0.25 + 10
    assert Detector(bundle).step == "all"
    assert detector.step == "sparse" or counted["shed"] * 10 < len(flood) * 9


def test_a_flood_is_found_at_once_and_hides_no_other_device(bundle, flood):
    first_by_budget = {}
    for budget in (None, 200):
        detector = Detector(bundle, max_rows_per_s=budget)
        firsts: dict[int, int] = {}
        for detection in detections_of(detector, flood, (1024,)):
            firsts.setdefault(detection.device_mac, detection.t_ns)
        first_by_budget[budget] = firsts
    assert first_by_budget[200].keys() == first_by_budget[None].keys()
    assert OTHER in first_by_budget[200]
    assert len(first_by_budget[200]) == 2
    for mac, when in first_by_budget[200].items():
        assert abs(when - first_by_budget[None][mac]) < 1 * S


def test_shedding_does_not_depend_on_where_batches_are_cut(bundle, flood):
    by_sizes = [
        detections_of(Detector(bundle, max_rows_per_s=200), flood, sizes) for sizes in ((1024,), (1, 17, 333), (4096,))
    ]
    assert by_sizes[0] == by_sizes[1] == by_sizes[2]


def test_a_quiet_devices_rows_are_scored_while_another_floods():
    monitored = Networks.parse(PRIVATE_NETWORKS)
    who = features.SenderTable(64, 500, monitored.v4, monitored.v6)
    frames = merged(
        steady(one_socket(50_000), BEGIN, 10_000),
        steady((packet("192.168.38.21", "203.0.113.9", mac=OTHER) for _ in range(100)), BEGIN, 20),
    )
    rows = Extractor(256, seed=1).push_frames(frames)
    chosen, quiet = who.route(rows.meta, rows.meta["t_ns"]).chosen, rows.meta["src_mac"] == OTHER
    assert chosen[quiet].mean() > 0.95
    assert chosen[~quiet].mean() < 0.1
    assert who.step == "sparse"


def test_rows_that_open_a_stream_are_scored_before_those_that_do_not():
    monitored = Networks.parse(PRIVATE_NETWORKS)
    who = features.SenderTable(64, 500, monitored.v4, monitored.v6)
    frames = merged(steady(one_socket(50_000), BEGIN, 10_000), steady(scan(100), BEGIN, 20))
    rows = Extractor(4096, seed=1).push_frames(frames)
    chosen = who.route(rows.meta, rows.meta["t_ns"]).chosen
    opens = rows.meta["flags"] & features.NEW_SOCKET != 0
    assert opens.sum() >= 100
    assert chosen[opens].mean() > 0.9 > 0.1 > chosen[~opens].mean()


def test_scoring_recovers_ten_seconds_after_the_last_row_was_shed():
    monitored = Networks.parse(PRIVATE_NETWORKS)
    who = features.SenderTable(64, 500, monitored.v4, monitored.v6)
    steps = []
    frames = merged(steady(one_socket(30_000), BEGIN, 10_000), steady(one_socket(30), BEGIN + 3 * S, 1))
    rows = Extractor(256, seed=1).push_frames(frames)
    for at in range(0, len(rows), 10_000):
        who.route(rows.meta[at : at + 10_000], rows.meta["t_ns"][at : at + 10_000])
        steps.append(who.step)
    assert "sparse" in steps
    assert steps[-1] == "all"


def test_each_change_of_scoring_is_one_line_in_the_log_of_a_replay(bundle, tmp_path, caplog):
    flood = merged(
        steady((packet("192.168.38.20", "203.0.113.9", 40000, 443) for _ in range(40)), BEGIN, 1),
        steady(one_socket(6000), BEGIN + 10 * S, 2000),
        steady(one_socket(20_000), BEGIN + 13 * S, 10_000),
    )
    (tmp_path / "flood.pcap").write_bytes(pcap(flood, nanoseconds=True))
    agent, steps = Agent(AgentConfig(scoring=ScoringConfig(500)), bundle, seed=1), []
    replay(agent, [tmp_path / "flood.pcap"], lambda _: None, lambda _: steps.append(agent.detector.step))
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("scoring changed ")]
    assert [line.partition(":")[0] for line in lines] == [
        "scoring changed from all to shared",
        "scoring changed from shared to sparse",
        "scoring changed from sparse to all",
    ]
    assert {"shared", "sparse"} <= set(steps)
    counts = agent.counts()
    assert f"; {counts['shed']} rows shed so far" in lines[-1]
    assert counts["scored"] + counts["shed"] == counts["rows"] == len(flood)


def test_times_going_back_years_and_ten_thousand_devices_are_bounded_and_counted(bundle):
    """The tables are full, which their counters show."""
    detector, five_years = Detector(bundle, max_rows_per_s=500), 5 * 365 * 86_400 * S
    frames = [
        (
            BEGIN + i * S // 100 + (i // 2000 % 3 - 1) * five_years,
            60,
            packet("10.0.0.1", 1, mac=0x0200_0000_0000 + i),
        )
        for i in range(10_000)
    ]
    extractor = Extractor(256, seed=1)
    detections_of(detector, extractor.push_frames(frames), (1000,))
    assert extractor.counts()["devices"] == 256
    assert detector.counters["scored"] + detector.counters["shed"] == 10_000
    assert detector.counters["subjects_evicted"] == 10_000 - 4096
    assert detector.counters["clock_steps"] >= 1


@pytest.mark.parametrize("squash", ["log1p", "none"])
@pytest.mark.parametrize("columns", [3, 8, 115, 140])
def test_the_kernel_scales_and_measures_as_its_twin_does(columns, squash):
    rng = np.random.default_rng(columns)
    values = (rng.lognormal(2, 4, (500, 140)) * rng.choice([-1, 0, 1e-6, 1], (500, 140))).astype(np.float32)
    at = rng.permutation(140)[:columns] if columns < 140 else np.arange(140)
    scaler = dataclasses.replace(scaling.fit(values[:, at], squash), clip=3.0)
    keep = np.stack([np.ones(columns, bool), np.arange(columns) % 2 == 0])
    fused = RowScaling(scaler, 140, at.tolist(), keep)
    variant = (np.arange(500) % 2).astype(np.uint8)
    z, seen = fused.inputs(values, variant)
    twin = scaler.z(values[:, at]) * keep[variant]
    assert z == pytest.approx(twin, rel=1e-6, abs=3e-5)  # logs up to 20, divided by 0.1 at least
    assert seen == pytest.approx(scaler.network_input(twin), rel=1e-6, abs=3e-5)
    rebuilt = rng.normal(0, 1, z.shape).astype(np.float32)
    error = (((z - rebuilt) * keep[variant]) ** 2).sum(axis=1) / keep.sum(axis=1)[variant]
    assert fused.errors(z, rebuilt, variant) == pytest.approx(error, rel=1e-5)


def test_the_kernels_logarithm_is_right_from_the_smallest_number_to_the_largest():
    x = np.concatenate([[0.0], np.logspace(-45, 38.5, 100_000), np.linspace(0, 10, 99_999)]).astype(np.float32)
    identity = scaling.Scaler("log1p", np.zeros(8), np.ones(8), None)
    z, _ = RowScaling(identity, 8, range(8), np.ones((1, 8), bool)).inputs(np.concatenate([x, -x]).reshape(-1, 8))
    right = np.log1p(x.astype(np.float64))
    assert z.reshape(2, -1)[0] == pytest.approx(right, rel=3e-7, abs=0)
    assert (z.reshape(2, -1)[1] == -z.reshape(2, -1)[0]).all()


def test_infinity_and_nan_are_not_scaled_into_numbers():
    fused = RowScaling(scaling.Scaler("log1p", np.zeros(3), np.ones(3), 10.0), 3, range(3), np.ones((1, 3), bool))
    z, _ = fused.inputs(np.array([[np.inf, -np.inf, np.nan]], dtype=np.float32))
    assert z[0, 0] == np.inf
    assert z[0, 1] == -np.inf
    assert np.isnan(z[0, 2])
