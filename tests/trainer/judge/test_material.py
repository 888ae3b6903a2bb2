"""The captures that a bundle is tried on: their days, one after the other, and what is left out."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edge_agent.contract import captures
from edge_agent.contract.captures import Capture, CaptureManifest, Span
from tests.conftest import Home
from tests.reference.frames import pcap
from tests.traffic import CLOUD, PLUG, packet
from trainer.data.frames import Frame, S
from trainer.judge.material import DAY_NS, Loaded, Material, consecutive, read

PACKET = packet(PLUG, CLOUD)


def at(*seconds: float) -> list[Frame]:
    return [(int(second * S), 60, b"") for second in seconds]


def test_a_silence_of_hours_counts_as_a_days_length_and_a_splice_does_not():
    capture = Capture(Path("a.pcap"), "camera", "benign")
    day, year = 86_400.0, 366 * 86_400.0
    battery = Loaded(capture=capture, generated=False, frames=at(0, 1.8 * day, 1.5 * day))
    spliced = Loaded(capture=capture, generated=False, frames=at(0, 60, year, year + 60))
    assert battery.days == pytest.approx(1.8)
    assert spliced.days == pytest.approx(120 / 86_400)


def test_a_device_that_is_silent_at_the_ends_of_its_day_was_watched_all_day(tmp_path):
    """A battery camera sends for seconds of it; the file begins after the first day does, and ends before the last."""
    hour = 3600
    frames = [(hour * S, 60, PACKET), (30 * hour * S, 60, PACKET), (30 * hour * S + 9 * S, 60, PACKET)]
    (tmp_path / "week.pcap").write_bytes(pcap([*frames, (50 * hour * S, 60, PACKET)]))
    first = datetime(1970, 1, 1, tzinfo=UTC)
    spans = [Span(first + timedelta(days=i), first + timedelta(days=i + 1)) for i in range(4)]
    days = tuple(Capture(Path("week.pcap"), "camera", "benign", span=span) for span in spans)
    found = read([(CaptureManifest(days), tmp_path)])
    assert [round(day.days * 24, 3) for day in found.benign] == [23, 24, 2]
    assert found.skipped == ["week.pcap@1970-01-04T00:00Z: the file has no frames in that time"]


@pytest.mark.parametrize("begins", [(0, 0, 0), (0, 400, 90), (5, 2, 9)])
def test_days_follow_one_another_whenever_they_were_captured(begins):
    """Captures of one hour at once, years apart, or in another order; hours of the day are kept."""
    days = [at(*(begin * 86_400 + hour for hour in (36_000, 37_000, 39_600))) for begin in begins]
    moved = consecutive(days)
    assert moved[-1] == days[-1]
    for before, after, given in zip(moved, moved[1:], days, strict=False):
        assert before[-1][0] < after[0][0] <= before[-1][0] + DAY_NS
        assert (before[0][0] - given[0][0]) % DAY_NS == 0
        assert [t - before[0][0] for t, _, _ in before] == [t - given[0][0] for t, _, _ in given]


@pytest.fixture(scope="module")
def material(home: Home) -> Material:
    manifest, _, root = captures.load(home.captures)
    later, _, later_root = captures.load(home.later)
    return read([(later, later_root)], [(manifest, root)])


def test_an_attack_is_put_into_a_devices_last_day_and_the_earlier_ones_lie_before_it(material, home):
    earlier, _, _ = captures.load(home.captures)
    days = sum(c.device == "plug-1" and c.label == "benign" for c in earlier.captures)
    place = next(place for place in material.places if place.day.capture.device == "plug-1")
    assert len(place.earlier) == days == len(material.earlier["plug-1"])
    assert place.earlier[-1][-1][0] < place.day.start_ns < place.at_ns
    assert [loaded.capture.device for loaded in material.benign] == ["plug-1", "thermostat-1"]


def test_a_day_without_a_packet_of_the_device_is_judged_and_not_called_skipped(home):
    """A battery camera may sleep for a day; without any day in which it sends, attacks cannot be put into one."""
    manifest, _, root = captures.load(home.later)
    plug = next(c for c in manifest.captures if c.device == "plug-1")
    silent = replace(plug, mac="02:00:00:00:00:99")
    both = read([(CaptureManifest((plug, silent)), root)])
    assert (len(both.benign), len(both.places), both.skipped) == (2, 1, [])
    alone = read([(CaptureManifest((silent,)), root)])
    assert (len(alone.benign), len(alone.places), alone.skipped) == (1, 0, [])
    earlier, _, before = captures.load(home.captures)
    scan = tuple(c for c in earlier.captures if c.label == "mirai.scan")
    attacked = read([(CaptureManifest((silent,)), root), (CaptureManifest(scan), before)])
    (reason,) = attacked.skipped
    assert "02:00:00:00:00:99 sends no IPv4 packet to another host, so no attack is put into its days" in reason
