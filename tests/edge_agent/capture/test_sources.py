"""Capture files: every format and time resolution in, every bad file refused by name with the reason."""

import struct
from pathlib import Path

import numpy as np
import pytest

from edge_agent.capture.features import Extractor, Rows
from edge_agent.capture.sources import CaptureError, open_file
from tests.reference import frames as craft
from tests.reference.frames import START_NS, Spec

SECOND = 1_000_000_000

Frame = tuple[int, int, bytes]


def conversation(count: int = 6, linktype: int = craft.ETHERNET) -> list[Frame]:
    """Request and answer in turn, 1.000001 s apart."""
    specs = (Spec(), Spec(src=1, dst=0, src_mac=1, dst_mac=0, sport=443, dport=40000, payload=100))
    step = SECOND + 1000
    return [(START_NS + i * step, *craft.craft(specs[i % 2], linktype)) for i in range(count)]


def read(path: Path, limit: int = 256, bpf: str | None = None) -> Rows:
    """All rows of a file."""
    extractor = Extractor(64)
    with open_file(path, bpf=bpf) as source:
        parts = []
        while len(rows := extractor.push(source, limit)):
            parts.append(rows)
    return Rows(np.concatenate([p.values for p in parts]), np.concatenate([p.meta for p in parts]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.pcap"


@pytest.mark.parametrize(
    "file",
    [
        craft.pcap(conversation()),
        craft.pcap(conversation(), nanoseconds=True),
        craft.pcapng(conversation()),
        craft.pcapng(conversation(), resolution=6),
    ],
    ids=["pcap", "pcap of nanoseconds", "pcapng", "pcapng of microseconds"],
)
def test_every_file_format_gives_the_same_rows(path: Path, file: bytes) -> None:
    path.write_bytes(file)
    expected = Extractor(64).push_frames(conversation())
    rows = read(path, limit=4)
    np.testing.assert_array_equal(rows.meta, expected.meta)
    np.testing.assert_array_equal(rows.values, expected.values)


def test_a_big_endian_file_is_read(path: Path) -> None:
    (t, length, packet), *_ = conversation()
    head = struct.pack(">IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    path.write_bytes(head + struct.pack(">IIII", t // SECOND, 0, len(packet), length) + packet)
    assert read(path).meta["sport"].tolist() == [40000]


def test_coarse_times_are_read(path: Path) -> None:
    path.write_bytes(craft.pcapng(conversation(), resolution=3))
    assert read(path).meta["t_ns"].tolist() == [START_NS + i * SECOND for i in range(6)]


@pytest.mark.parametrize("linktype", [craft.RAW, craft.SLL, craft.SLL2, craft.ETHERNET])
def test_every_link_layer_is_read(path: Path, linktype: int) -> None:
    path.write_bytes(craft.pcap(conversation(linktype=linktype), linktype))
    rows = read(path)
    macs = [0x020000000001, 0x020000000002] if linktype != craft.RAW else [0, 0]
    assert rows.meta["src_mac"].tolist() == macs * 3
    assert rows.meta["dport"].tolist() == [443, 40000] * 3


def test_unknown_pcapng_blocks_are_skipped(path: Path) -> None:
    unknown = craft.block(0x0BAD0BAD, b"some vendor's own") + craft.block(0x80000BAD, b"")
    path.write_bytes(craft.pcapng(conversation(), extra=unknown))
    assert len(read(path)) == 6


def test_a_filter_keeps_what_passes_it(path: Path) -> None:
    path.write_bytes(craft.pcap(conversation()))
    assert read(path, bpf="tcp dst port 443").meta["dport"].tolist() == [443] * 3


def test_a_filter_that_does_not_compile_is_refused_by_name(path: Path) -> None:
    path.write_bytes(craft.pcap(conversation()))
    with pytest.raises(CaptureError, match=r"some\.pcap: filter 'tcp and and': .*syntax error"):
        open_file(path, bpf="tcp and and")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated dump file"),
        (b"not a capture at all\n" * 10, "unknown file format"),
        (craft.pcap([])[:20], "truncated dump file"),
        (b"\x1f\x8b\x08\x00" + bytes(60), "unknown file format"),
        (craft.pcap([], 195), r"link type 195 \(IEEE802_15_4\) is not one of Ethernet"),
        (craft.pcapng(conversation(4), 105), r"link type 105 \(IEEE802_11\) is not one of Ethernet"),
    ],
    ids=["empty", "text", "half a header", "gzip", "another link layer", "another link layer in pcapng"],
)
def test_what_is_no_capture_is_refused_at_open(path: Path, content: bytes, reason: str) -> None:
    path.write_bytes(content)
    with pytest.raises(CaptureError, match=rf"some\.pcap: .*{reason}"):
        open_file(path)


def test_a_missing_file_is_refused_at_open(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"none\.pcap: No such file or directory"):
        open_file(tmp_path / "none.pcap")


def test_a_folder_is_refused_at_open(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="Is a directory"):
        open_file(tmp_path)


@pytest.mark.parametrize("file", [craft.pcap(conversation(40)), craft.pcapng(conversation(40))], ids=["pcap", "pcapng"])
def test_a_truncated_file_gives_what_is_before_the_damage_then_says_where_it_ends(path: Path, file: bytes) -> None:
    """The rows come first; then every further push names the file, the reason and the counts so far."""
    path.write_bytes(file[:-70])
    extractor = Extractor(64)
    with open_file(path) as source:
        assert len(extractor.push(source)) == 39
        for _ in range(2):
            with pytest.raises(CaptureError, match=r"some\.pcap: truncated .* \(after 39 frames and 39 rows\)"):
                extractor.push(source)
    assert extractor.counts()["frames"] == 39


def test_a_batch_has_at_most_its_limit_and_only_the_end_is_empty(path: Path) -> None:
    """A thousand frames too short for a row stand between two that are not; they do not look like the end."""
    short = [(START_NS, 60, b"short")] * 1000
    first, last = conversation(2)
    path.write_bytes(craft.pcap([first, *short, last]))
    extractor = Extractor(64)
    with open_file(path) as source:
        batches = [len(extractor.push(source, 16)) for _ in range(3)]
    assert batches == [1, 1, 0]
    assert extractor.counts()["malformed_short_link"] == 1000


def test_one_extractor_reads_files_one_after_the_other(tmp_path: Path) -> None:
    whole = conversation(10)
    for name, part in (("a.pcap", whole[:5]), ("b.pcap", whole[5:])):
        (tmp_path / name).write_bytes(craft.pcap(part))
    extractor = Extractor(64)
    values = []
    for name in ("a.pcap", "b.pcap"):
        with open_file(tmp_path / name) as source:
            values.append(extractor.push(source).values)
    np.testing.assert_array_equal(np.concatenate(values), Extractor(64).push_frames(whole).values)


def test_a_source_knows_its_name_and_link_layer_and_can_be_closed(path: Path) -> None:
    path.write_bytes(craft.pcap(conversation(), craft.SLL))
    source = open_file(path)
    assert (source.name, source.linktype) == (str(path), craft.SLL)
    source.close()
    source.close()
    with pytest.raises(ValueError, match=r"some\.pcap is closed"):
        Extractor(64).push(source)


def test_a_limit_below_one_is_refused(path: Path) -> None:
    path.write_bytes(craft.pcap(conversation()))
    with open_file(path) as source, pytest.raises(ValueError, match="limit 0"):
        Extractor(64).push(source, 0)
