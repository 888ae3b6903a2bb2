"""Frames of a file, and parts of a file by time."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from edge_agent.contract import captures, settings
from edge_agent.contract.captures import Capture, Span
from edge_agent.contract.columns import ALL_COLUMNS, CLEAN
from tests.reference.frames import pcap
from tests.traffic import PLUG_MAC, S, scan, steady
from trainer.config import DatasetEntry
from trainer.data import dataset, frames
from trainer.data.row_table import DatasetError, Limits

BEGIN = datetime(2026, 1, 5, tzinfo=UTC)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A capture of an hour, a packet every ten seconds."""
    sent = list(steady(scan(360), int(BEGIN.timestamp()) * S, 0.1))
    (tmp_path / "hour.pcap").write_bytes(pcap(sent, nanoseconds=True))
    return tmp_path / "hour.pcap"


def span(first_minute: int, last_minute: int) -> Span:
    return Span(BEGIN + timedelta(minutes=first_minute), BEGIN + timedelta(minutes=last_minute))


def listed(start: str, end: str) -> str:
    return f"  - {{file: hour.pcap, device: d, label: benign, span: {{start: {start}, end: {end}}}}}\n"


def test_a_span_has_the_frames_of_its_time_and_no_other(written, tmp_path):
    everything = list(frames.read(written))
    parts = [list(frames.read(written, span(first, last))) for first, last in ((0, 19), (20, 39), (40, 60))]
    assert [len(part) for part in parts] == [115, 115, 120]
    begin = int(BEGIN.timestamp()) * S
    assert parts[1] == [frame for frame in everything if 1200 * S <= frame[0][0] - begin <= 2340 * S]
    frames.cut(written, span(20, 39), tmp_path / "part.pcap")
    assert list(frames.read(tmp_path / "part.pcap")) == parts[1]


def test_a_span_without_frames_is_named(written, tmp_path):
    with pytest.raises(frames.FramesError, match=r"hour\.pcap: holds no frames from 2026-01-05T02:00:00Z"):
        frames.cut(written, span(120, 180), tmp_path / "part.pcap")


def test_rows_of_spans_are_those_of_the_same_frames_in_files_of_their_own(written, tmp_path):
    """What lies between two spans has no influence: a day that is left out of a fit is left out wholly."""
    lines = "captures:\n"
    for name, part in (("a", span(0, 10)), ("b", span(30, 40))):
        frames.cut(written, part, tmp_path / f"{name}.pcap")
        lines += f"  - {{file: {name}.pcap, device: d, label: benign}}\n"
    (tmp_path / "files.yaml").write_text(lines)
    (tmp_path / "spans.yaml").write_text(
        "captures:\n"
        + listed("2026-01-05T00:30:00Z", "2026-01-05T00:40:00Z")
        + listed("2026-01-05T00:00:00Z", "2026-01-05T00:10:00Z")
    )
    files, spans = (
        dataset.load([DatasetEntry("captures", tmp_path / name)], ALL_COLUMNS, CLEAN, Limits())
        for name in ("files.yaml", "spans.yaml")
    )
    assert len(files) == 122
    np.testing.assert_array_equal(spans.values, files.values)
    np.testing.assert_array_equal(spans.t_ns, files.t_ns)
    assert spans.captures == ("hour.pcap@2026-01-05T00:00Z", "hour.pcap@2026-01-05T00:30Z")
    assert len(set(spans.mac)) == 1
    assert spans.mac[0] == PLUG_MAC


def test_a_span_that_the_capture_does_not_have_is_no_data(written, tmp_path):
    text = "captures:\n" + listed("2026-02-05T00:00:00Z", "2026-02-05T01:00:00Z")
    (tmp_path / "manifest.yaml").write_text(text)
    with pytest.raises(DatasetError, match="holds no frames from 2026-02-05"):
        dataset.load([DatasetEntry("captures", tmp_path)], ALL_COLUMNS, CLEAN, Limits())


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ("start: 2026-01-05T00:10:00Z, end: 2026-01-05T00:00:00Z", "end is before start"),
        ("start: 2026-01-05T00:10:00, end: 2026-01-05T00:20:00", "time zone"),
    ],
)
def test_an_impossible_span_is_refused(written, tmp_path, times, words):
    (tmp_path / "manifest.yaml").write_text(
        f"captures: [{{file: hour.pcap, device: d, label: benign, span: {{{times}}}}}]"
    )
    with pytest.raises(settings.SettingsError, match=words):
        captures.load(tmp_path)


def test_parts_of_a_file_have_names_of_their_own():
    whole, part = Capture(Path("a.pcap"), "d", "benign"), Capture(Path("a.pcap"), "d", "benign", span=span(1, 2))
    assert (whole.name, part.name) == ("a.pcap", "a.pcap@2026-01-05T00:01Z")
