"""Rows: equal to what was published, to the twin, and to themselves; bounded whatever arrives."""

import gzip
import json
import math
import random
from collections.abc import Iterable
from decimal import Decimal
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP as ScapyArp
from scapy.layers.l2 import Ether

from edge_agent.capture.features import (
    ARP,
    FRAGMENT,
    ICMP_QUOTED,
    NEW_PEER,
    NEW_SOCKET,
    PORTS,
    ROW_META,
    TRUNCATED,
    Extractor,
    FeatureStateError,
    SenderTable,
)
from edge_agent.capture.sources import open_file
from edge_agent.contract.clock import BACKWARD_S
from edge_agent.contract.columns import ALL_COLUMNS, DECAYS, NBAIOT_COLUMNS
from edge_agent.contract.networks import Networks
from tests import traffic
from tests.reference import frames as craft
from tests.reference.frames import START_NS, Spec
from tests.reference.twin import Twin

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
DATA = craft.data_folder()
needs_data = pytest.mark.skipif(DATA is None, reason="no published data: set BOTWATCH_DATA or provide ../shared/data")
AVX2 = Extractor(16).simd == "avx2"

Frame = tuple[int, int, bytes]


def data(name: str) -> Path:
    assert DATA is not None
    return DATA / name


def frame(t_ns: int, spec: Spec) -> Frame:
    return (START_NS + t_ns, *craft.craft(spec))


def probe(t_ns: int, number: int, *, mac: str = "02:00:00:00:00:09", src: str = "10.0.0.9", flags: str = "S") -> Frame:
    """One SYN to a host and port of its own."""
    dst = f"172.{16 + number // 65536 % 16}.{number // 256 % 256}.{number % 256}"
    packet = bytes(
        Ether(src=mac, dst="02:00:00:00:00:02") / IP(src=src, dst=dst) / TCP(sport=40000, dport=23, flags=flags)
    )
    return START_NS + t_ns, len(packet), packet


def address(number: int) -> bytes:
    return bytes((172, 16 + number // 65536, number // 256 % 256, number % 256))


def probes(count: int, start_ns: int = 0, step_ns: int = 1_000_000, first: int = 0) -> list[Frame]:
    """As probe(), fast: the destination patched into one frame."""
    _, length, packet = probe(0, 0)
    return [
        (START_NS + start_ns + i * step_ns, length, packet[:30] + address(first + i) + packet[34:])
        for i in range(count)
    ]


def index(stream: str, decay: str, stat: str) -> int:
    return ALL_COLUMNS.index(f"{stream}_L{decay}_{stat}")


PCC = [index(stream, decay, "pcc") for stream in ("HH", "HpHp") for decay in DECAYS]
JITTER_MEANS = [index("HH_jit", decay, "mean") for decay in DECAYS]


# ---- agreement with what was published ----


def assert_as_published(values: np.ndarray[Any, Any]) -> None:
    """115 columns of Kitsune's 20,000 packets, within what was measured for the stable form, rounded up.

    Relative errors where the reference is above 1e-3 of its column's spread; std and pcc only as far as the reference
    itself has digits: its SS/w - mean² leaves noise on streams of constant size.
    """
    with np.load(data("kitsune/reference_115.npz")) as stored:
        reference, columns = stored["rows"], tuple(stored["columns"])
    assert columns == NBAIOT_COLUMNS
    assert len(values) == len(reference)
    tolerance = {"weight": 1e-15, "mean": 1e-14, "variance": 5e-12, "magnitude": 5e-15, "radius": 3e-10}
    tolerance |= {"covariance": 5e-11, "pcc": 2e-6}
    for i, name in enumerate(columns):
        stream, decay, stat = name.rsplit("_", 2)
        expected, got = reference[:, i], values[:, i]
        if stat == "std":
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=2e-5, err_msg=name)
            continue
        tells = np.abs(expected) > 1e-3 * expected.std()
        if stat == "pcc":  # = covariance / (std · std of the reverse): both must be more than noise
            std, covariance = (reference[:, columns.index(f"{stream}_{decay}_{x}")] for x in ("std", "covariance"))
            with np.errstate(divide="ignore", invalid="ignore"):
                tells &= (std > 1e-3) & (np.abs(covariance / (expected * std)) > 1e-3)
        np.testing.assert_allclose(got[tells], expected[tells], rtol=tolerance[stat], atol=0, err_msg=name)


@needs_data
def test_rows_of_a_real_capture_are_those_of_the_published_extractor() -> None:
    with open_file(data("kitsune/packets_20000.pcap")) as source:
        rows = Extractor(jitter="compat", float_time=True, dtype=np.float64).push(source, 20_000)
    assert_as_published(rows.values)


@needs_data
def test_nanosecond_gaps_differ_from_the_published_float_seconds_by_their_rounding_only() -> None:
    """Published gaps are differences of float64 epochs, 2.4e-7 s apart; ours are exact."""
    with np.load(data("kitsune/reference_115.npz")) as stored:
        reference = stored["rows"]
    with open_file(data("kitsune/packets_20000.pcap")) as source:
        rows = Extractor(jitter="compat", dtype=np.float64).push(source, 20_000)
    for decay in DECAYS:
        for stat in ("weight", "mean"):
            i = index("H", decay, stat)
            np.testing.assert_allclose(rows.values[:, i], reference[:, i], rtol=1e-6)


@needs_data
def test_golden_rows_of_nbaiot_come_out_of_their_packets() -> None:
    """Five published rows (Danmini, gafgyt udp) from the nine packets that explain them, to 1e-9."""
    golden = json.loads(data("kitsune/golden_rows.json").read_text())
    device, peer = ("02:00:00:00:00:01", "10.0.0.1"), ("02:00:00:00:00:02", "10.0.0.2")
    frames = []
    for packet in golden["packets"]:
        (src_mac, src), (dst_mac, dst) = (device, peer) if packet["dir"] == "S" else (peer, device)
        ether = Ether(src=src_mac, dst=dst_mac)
        whole = ether / (ScapyArp(psrc=src, pdst=dst) if packet["proto"] == "arp" else IP(src=src, dst=dst) / ICMP())
        seconds, micro = divmod(round(packet["t"] * 1e6), 10**6)
        frames.append((seconds * SECOND + micro * 1000, packet["len"], bytes(whole)))
    rows = Extractor(jitter="compat", float_time=True, dtype=np.float64).push_frames(frames)
    sent = [i for i, packet in enumerate(golden["packets"]) if packet["dir"] == "S"]
    order = [ALL_COLUMNS.index(name) for name in golden["columns"]]
    noise = [
        2e-5 if name.endswith("_std") else 1e-9 for name in golden["columns"]
    ]  # std of one size: the published 1e-6
    assert (np.abs(rows.values[sent][:, order] - golden["rows"]) <= 1e-9 * np.abs(golden["rows"]) + noise).all()


H_COLUMNS = [index("H", decay, stat) for decay in DECAYS for stat in ("weight", "mean", "variance")]


def published(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The H columns of a published file, shape (n, 5 decays, 3)."""
    with gzip.open(data(f"nbaiot/{name}"), "rt") as file:
        header = file.readline().strip().split(",")
        rows = np.loadtxt(file, delimiter=",", ndmin=2)
    order = [header.index(ALL_COLUMNS[i]) for i in H_COLUMNS]
    return rows[:, order].reshape(-1, 5, 3)


def recover(before: Any, after: Any, digits: float) -> tuple[float, int]:
    """Gap in seconds and frame length between two consecutive rows of H, by the decay that tells the gap best.

    w' = 1 + w D(gap), so the gap is log2(w / (w' - 1)) / λ; an error of `digits` in the w' printed makes one of
    about digits w' / (λ (w' - 1)).
    """
    errors, gaps, lengths = [], [], []
    for decay, (w, mean, _), (w2, mean2, _) in zip(DECAYS, before, after, strict=True):
        kept = w2 - 1
        if kept <= 1e-12:
            continue
        gaps.append(max(0.0, math.log2(w / kept) / float(decay)))
        errors.append(digits * (w2 / kept + 1) / float(decay))
        lengths.append(w2 * mean2 - kept * mean)
    best = int(np.argmin(errors))
    return gaps[best], round(float(np.median(lengths)))


def h_rows(
    times_ns: list[int], lengths: list[int], *, float_time: bool = False
) -> np.ndarray[Any, np.dtype[np.float64]]:
    _, packet = craft.craft(Spec())
    frames = [(t, length, packet) for t, length in zip(times_ns, lengths, strict=True)]
    rows = Extractor(dtype=np.float64, float_time=float_time).push_frames(frames)
    return rows.values[:, H_COLUMNS].reshape(-1, 5, 3)


@needs_data
def test_benign_nbaiot_rows_come_back_from_gaps_and_sizes() -> None:
    """2,247 published rows of one host (the first three are others'): from its gaps and sizes, H comes back.

    To 5e-8, which is what ten digits of text leave; variance to 5e-8 of its largest value.
    """
    rows = published("danmini_doorbell.benign.csv.gz")[3:]
    gaps, lengths = [0.0], [round(rows[0, 0, 1])]
    for before, after in pairwise(rows):
        gap, length = recover(before, after, 5e-10)
        gaps.append(gap)
        lengths.append(length)
    times = [START_NS + round(t * 1e9) for t in accumulate(gaps)]
    got = h_rows(times, lengths)
    np.testing.assert_allclose(got[..., 0], rows[..., 0], rtol=5e-8)
    np.testing.assert_allclose(got[..., 1], rows[..., 1], rtol=5e-8)
    np.testing.assert_allclose(got[..., 2], rows[..., 2], atol=5e-8 * rows[..., 2].max())


@needs_data
def test_scan_nbaiot_rows_come_back_from_gaps_and_sizes() -> None:
    """250 published rows in full doubles come back to 5e-13 (variance: of 100²).

    Packets are missing before the seventh, so what follows it starts from its row: streams are linear, so weight, LS
    and SS are those of the packets replayed plus the seventh row's, decayed.

    Published gaps are differences of float64 epoch seconds, multiples of 2^-22 s at that date.
    """
    rows = published("danmini_doorbell.gafgyt_scan.csv.gz")
    for first, last in ((0, 6), (6, len(rows))):
        gaps, lengths = [], []
        for before, after in pairwise(rows[first:last]):
            gap, length = recover(before, after, 1e-16)
            gaps.append(round(gap * 2**22))
            lengths.append(length)
        # any epoch with the same spacing of doubles will do: whole multiples of 2^-22 s, given in ns
        ticks = list(accumulate(gaps))
        times = [1_505_912_776 * SECOND + round(tick * SECOND / 2**22) for tick in ticks]
        got = h_rows(times, lengths, float_time=True)
        seconds = np.array(ticks) / 2**22
        decays = np.array([float(decay) for decay in DECAYS])
        w0, mean0, var0 = rows[first].T
        kept = w0 * 2.0 ** (-decays * seconds[:, None])
        weight = got[..., 0] + kept
        mean = (got[..., 0] * got[..., 1] + kept * mean0) / weight
        square = (got[..., 0] * (got[..., 2] + got[..., 1] ** 2) + kept * (var0 + mean0**2)) / weight
        expected = rows[first + 1 : last]
        np.testing.assert_allclose(weight, expected[..., 0], rtol=5e-13)
        np.testing.assert_allclose(mean, expected[..., 1], rtol=5e-13)
        np.testing.assert_allclose(square - mean**2, expected[..., 2], atol=5e-13 * 100**2)


# ---- agreement with the twin ----


def assert_as_twin(frames: list[Frame], linktype: int = 1, jitter: Any = "clean", extractor: Any = None) -> None:
    extractor = extractor or Extractor(64, jitter=jitter, dtype=np.float64)
    got = extractor.push_frames(frames, linktype)
    twin = Twin(Decimal, jitter=jitter)
    rows, packets, trusted = twin.rows(frames, linktype)
    assert len(got) == len(rows)
    if not rows:
        return
    for meta, packet in zip(got.meta, packets, strict=True):
        assert packet.t_ns == meta["t_ns"]
        for name in ("length", "src_mac", "dst_mac", "sport", "dport", "ethertype", "proto", "tcp_flags", "flags"):
            assert meta[name] == getattr(packet, name), name
        assert meta["ip_version"] == packet.version
        for name in ("src", "dst"):
            assert bytes(meta[name]) == getattr(packet, name).ljust(16, b"\0"), name
        # of floats, of which the first is a difference of numbers 200 times as high
        np.testing.assert_allclose(meta["unanswered"], [float(x) for x in packet.unanswered], rtol=1e-5, atol=2e-3)
        np.testing.assert_allclose(meta["answers"], float(packet.answers), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(meta["opened"], float(packet.opened), rtol=1e-6, atol=1e-6)
    expected = np.array([[float(x) for x in row] for row in rows])
    noise = ~np.array(trusted)
    expected[:, PCC] = np.where(noise, 0, expected[:, PCC])
    values = got.values.copy()
    values[:, PCC] = np.where(noise, 0, values[:, PCC])
    atol = np.full(len(ALL_COLUMNS), 1e-8)
    if jitter == "compat":
        atol[JITTER_MEANS] = 1e-6  # 1.7e9 s minus 1.7e9 s in doubles
    wrong = np.abs(values - expected) > 1e-9 * np.abs(expected) + atol
    assert not wrong.any(), [(int(i), ALL_COLUMNS[j], values[i, j], expected[i, j]) for i, j in np.argwhere(wrong)[:8]]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(craft.gaps(), st.booleans(), st.sampled_from((22, 23, 80, 443, 8080)), st.sampled_from((2, 16, 18)),
                  st.sampled_from(("tcp", "tcp", "tcp", "udp", "echo", "error udp")), st.integers(0, 3)),
        max_size=30,
    )
)  # fmt: skip
def test_kernel_agrees_with_its_twin_on_what_is_tried_in_vain(
    talk: list[tuple[int, bool, int, int, str, int]],
) -> None:
    """Ports and logins of a host that are tried, hosts that are pinged, and packets that few answer."""
    frames = []
    for number, (gap, forward, port, flags, transport, host) in enumerate(talk):
        a, b, ports = (0, host, (50000 + number, port)) if forward else (host, 0, (port, 50000))
        spec = Spec(src=a, dst=b, sport=ports[0], dport=ports[1], tcp_flags=flags, transport=transport)
        frames.append((gap, spec))
    assert_as_twin(at_times(frames))


def streams(max_size: int) -> st.SearchStrategy[list[tuple[int, Spec]]]:
    return st.lists(st.tuples(craft.gaps(), craft.specs()), min_size=1, max_size=max_size)


def at_times(stream: Iterable[tuple[int, Spec]], linktype: int = 1) -> list[Frame]:
    """Frames with these gaps, at most 60 s late: a longer step is a clock that was set, unknown to the twin."""
    t = newest = START_NS
    frames = []
    for gap, spec in stream:
        t = max(t + gap, newest - int(BACKWARD_S) * SECOND)
        newest = max(newest, t)
        frames.append((t, *craft.craft(spec, linktype)))
    return frames


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(streams(20), st.sampled_from([craft.ETHERNET, craft.ETHERNET, craft.RAW, craft.SLL, craft.SLL2]))
@example([(0, Spec(src=1, dst=1, sport=53, dport=53)), (SECOND, Spec(src=1, dst=1, sport=53, dport=53, payload=9))], 1)
def test_kernel_agrees_with_its_twin_on_any_frames(stream: list[tuple[int, Spec]], linktype: int) -> None:
    """Whatever is in the frames, the kernel reads and computes what the published rules say (60-digit arithmetic).

    pcc is compared where both directions vary by more than 1e-3; below, it is noise divided by noise.
    """
    assert_as_twin(at_times(stream, linktype), linktype)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example([(0, True, 0, 0)] * 5 + [(-30 * SECOND, True, 0, 0)] * 2 + [(0, False, 0, 0), (-1000, False, 0, 0)])
@given(st.lists(st.tuples(craft.gaps(), st.booleans(), st.sampled_from((0, 18, 1400)), st.integers(0, 1)), max_size=30))
def test_kernel_agrees_with_its_twin_on_conversations(talk: list[tuple[int, bool, int, int]]) -> None:
    """Two directions of one socket in any rhythm: covariance and its two clocks, lone directions, late packets."""
    frames = []
    for gap, forward, payload, mac in talk:
        a, b = (0, 1) if forward else (1, 0)
        ports = (40000, 443) if forward else (443, 40000)
        spec = Spec(src=a, dst=b, sport=ports[0], dport=ports[1], payload=payload, src_mac=mac)
        frames.append((gap, spec))
    assert_as_twin(at_times(frames), jitter="compat")


@needs_data
def test_kernel_agrees_with_its_twin_on_a_real_capture() -> None:
    """1,000 packets of a network, device columns and flags among them."""
    from scapy.utils import RawPcapReader

    with RawPcapReader(str(data("kitsune/packets_20000.pcap"))) as reader:
        frames = [(m.sec * SECOND + m.usec * 1000, m.wirelen, bytes(d)) for d, m in (next(reader) for _ in range(1000))]
    assert_as_twin(frames, extractor=Extractor(dtype=np.float64))


# ---- what is read ----

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")


@pytest.mark.parametrize(
    ("spec", "version", "ports", "flags"),
    [
        (Spec(), 4, (40000, 443), PORTS),
        (Spec(transport="udp", tags="qinq"), 4, (40000, 443), PORTS),
        (Spec(network="ipv6", extension="many", tags="vlan pppoe"), 6, (40000, 443), PORTS),
        (Spec(network="ipv6", extension="ah", transport="udp"), 6, (40000, 443), PORTS),
        (Spec(network="ipv6", extension="first"), 6, (40000, 443), PORTS | FRAGMENT),
        (Spec(network="ipv6", extension="later"), 6, (0, 0), FRAGMENT),
        (Spec(extension="later"), 4, (0, 0), FRAGMENT),
        (Spec(transport="echo"), 4, (0, 0), 0),
        (Spec(transport="error udp"), 4, (443, 40000), PORTS | ICMP_QUOTED),
        (Spec(network="ipv6", transport="error tcp"), 6, (443, 40000), PORTS | ICMP_QUOTED),
        (Spec(network="arp"), 4, (0, 0), ARP),
        (Spec(network="snap"), 4, (40000, 443), PORTS),
        (Spec(network="llc"), 0, (0, 0), 0),
        (Spec(cut=14), 0, (0, 0), TRUNCATED),
        (Spec(cut=34), 4, (0, 0), TRUNCATED),
        (Spec(cut=38), 4, (40000, 443), PORTS | TRUNCATED),
        (Spec(tags="vlan", cut=17), 0, (0, 0), TRUNCATED),
    ],
)
def test_a_frame_says_where_it_came_from(spec: Spec, version: int, ports: tuple[int, int], flags: int) -> None:
    meta = Extractor(16).push_frames([frame(0, spec)]).meta[0]
    assert (meta["ip_version"], meta["sport"], meta["dport"]) == (version, *ports)
    assert int(meta["flags"]) & ~(NEW_PEER | NEW_SOCKET) == flags
    assert meta["src_mac"] == 0x020000000001
    assert meta["dst_mac"] == 0x020000000002
    expected = {0: bytes.fromhex("020000000001"), 4: bytes((10, 0, 0, 1)), 6: bytes.fromhex("fd") + bytes(14) + b"\1"}
    assert bytes(meta["src"]) == expected[version].ljust(16, b"\0")


def test_padding_of_a_short_frame_is_not_read_as_ports() -> None:
    """Ethernet pads to 60 bytes; an IP packet ends where its own length says."""
    packet = bytes(ETHER / IP(src="10.0.0.1", dst="10.0.0.2", proto=17, len=20)) + b"\x12\x34" * 13
    rows = Extractor(16).push_frames([(START_NS, 60, packet)])
    assert rows.meta[0]["flags"] & (PORTS | TRUNCATED) == TRUNCATED
    assert rows.meta[0]["sport"] == 0


@pytest.mark.parametrize("linktype", [0, 2, 9, 105, 195, -1])
def test_frames_of_an_unknown_link_type_are_refused_by_name(linktype: int) -> None:
    """They used to be read as raw IP, from the wrong byte."""
    extractor = Extractor(16)
    with pytest.raises(ValueError, match=rf"link type {linktype} \(.*\) is not one of Ethernet"):
        extractor.push_frames([frame(0, Spec())], linktype)
    assert extractor.counts()["frames"] == 0


def test_frames_without_a_whole_link_header_give_no_row_and_are_counted() -> None:
    extractor = Extractor(16)
    frames = [frame(0, Spec(cut=13)), frame(1, Spec(cut=0)), frame(2, Spec()), frame(3, Spec(cut=20))]
    rows = extractor.push_frames(frames)
    counts = extractor.counts()
    assert rows.meta["t_ns"].tolist() == [START_NS + 2, START_NS + 3]
    assert (counts["frames"], counts["rows"], counts["malformed"]) == (4, 2, 3)
    assert (counts["malformed_short_link"], counts["malformed_short_ip"]) == (2, 1)


@pytest.mark.parametrize(
    ("reason", "packet"),
    [
        ("short_tag", bytes.fromhex("020000000002 020000000001 8100 00")),
        ("short_arp", bytes.fromhex("020000000002 020000000001 0806 0001 0800 0604")),
        ("bad_arp", bytes.fromhex("020000000002 020000000001 0806 0001 0800 0804") + bytes(24)),
        ("bad_ip", bytes.fromhex("020000000002 020000000001 0800 64") + bytes(30)),
        ("long_chain", bytes.fromhex("020000000002 020000000001") + b"\x81\0\0\0" * 9 + bytes(20)),
        ("short_transport", bytes(ETHER / IP(proto=6) / b"\0\0")),
        ("short_quote", bytes(ETHER / IP() / ICMP(type=3))),
        ("long_chain", bytes(ETHER / IPv6(nh=60) / ((b"\x3c" + bytes(7)) * 20))),
    ],
)
def test_what_cannot_be_read_is_counted_by_reason_and_leaves_the_row(reason: str, packet: bytes) -> None:
    extractor = Extractor(16)
    rows = extractor.push_frames([(START_NS, len(packet), packet)])
    assert rows.meta["flags"].tolist()[0] & TRUNCATED
    assert extractor.counts()[f"malformed_{reason}"] == extractor.counts()["malformed"] == 1


def test_row_meta_leaves_out_no_byte_of_the_kernels_struct() -> None:
    """Offsets and size are those of the struct that is compiled in, so each field must also have its size there."""
    assert ROW_META.fields is not None
    end = 0
    for name, (dtype, offset, *_) in sorted(ROW_META.fields.items(), key=lambda field: field[1][1]):
        assert offset == end, name
        end += dtype.itemsize
    assert end == ROW_META.itemsize


def test_rows_that_were_joined_are_routed_as_they_were_in_one_piece() -> None:
    """NumPy packs the fields of joined arrays; with a gap among them the rows were too short for the kernel."""
    frames = at_times([(SECOND, Spec(src=i % 3, src_mac=i % 3, payload=i)) for i in range(40)])
    whole, extractor = Extractor(64).push_frames(frames), Extractor(64)
    joined = np.concatenate([extractor.push_frames(frames[at : at + 16]).meta for at in range(0, 40, 16)])
    assert joined.dtype == ROW_META
    assert joined.tobytes() == whole.meta.tobytes()
    networks = Networks.parse(["10.0.0.0/8"])
    one, other = (
        SenderTable(16, None, networks.v4, networks.v6).route(meta, meta["t_ns"]) for meta in (joined, whole.meta)
    )
    assert one.keys == other.keys
    for name in ("order", "starts", "chosen", "addresses"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist(), name


def test_a_packet_from_the_past_decays_nothing_and_is_counted() -> None:
    extractor = Extractor(16, dtype=np.float64)
    times = (5 * SECOND, 4 * SECOND, 5 * SECOND, 6 * SECOND)
    rows = extractor.push_frames([frame(t, Spec()) for t in times])
    assert rows.column("H_L1_weight").tolist() == pytest.approx([1, 2, 3, 2.5], abs=1e-15)
    assert extractor.counts()["clock_backward"] == 1


def test_times_outside_1970_to_2116_are_clamped_and_counted() -> None:
    extractor = Extractor(16)
    _, packet = craft.craft(Spec())
    rows = extractor.push_frames([(-5, 60, packet), (2**63 - 1, 60, packet), (-(2**63), 60, packet)])
    assert rows.meta["t_ns"].tolist() == [0, 4_611_686_018_999_999_999, 0]
    assert np.isfinite(rows.values).all()
    assert extractor.counts()["malformed_bad_time"] == 3


@pytest.mark.parametrize(
    "bad",
    [[(1, 2)], [(1, 2, "text")], [(1, -1, b"")], [(1, 2**32, b"")], [(2**63, 1, b"")], [None]],
)
def test_frames_of_the_wrong_form_are_refused(bad: Any) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        Extractor(16).push_frames(bad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_streams": 15}, "max_streams 15"),
        ({"max_streams": 2**20}, "max_streams 1048576"),
        ({"max_devices": 0}, "max_devices 0"),
        ({"jitter": "exact"}, "jitter 'exact'"),
        ({"dtype": np.float16}, "dtype float16"),
        ({"simd": "sse9"}, "simd 'sse9'"),
    ],
)
def test_settings_out_of_bounds_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Extractor(**arguments)


# ---- devices ----


def scan(count: int = 20) -> list[Frame]:
    return [probe(i * SECOND, i) for i in range(count)]


def reply(to: Frame, t_ns: int) -> Frame:
    """The RST that answers a probe, at another interface of the same device for all destinations."""
    ip = IP(to[2][14:])
    packet = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:09") / IP(src=ip.dst, dst=ip.src)
    packet /= TCP(sport=ip.dport, dport=ip.sport, flags="RA")
    return t_ns, len(packet), bytes(packet)


def test_a_scanning_device_opens_a_peer_and_a_socket_with_every_probe() -> None:
    rows = Extractor(64, dtype=np.float64).push_frames(scan())
    assert (rows.meta["flags"] & (NEW_PEER | NEW_SOCKET) == NEW_PEER | NEW_SOCKET).all()
    weight = sum(2 ** (-0.01 * i) for i in range(20))
    assert rows.column("device_L0.01_new_peers")[-1] == pytest.approx(weight)
    assert rows.column("device_L0.01_new_sockets")[-1] == pytest.approx(weight)


def test_a_device_that_answers_a_scan_opens_nothing() -> None:
    """Replies are not the device's initiative: a scanned device must not look like a scanner."""
    frames = [f for i, sent in enumerate(scan()) for f in (sent, reply(sent, START_NS + i * SECOND + 1000))]
    rows = Extractor(128).push_frames(frames)
    answers = rows.meta["src_mac"] == 0x020000000002
    assert answers.sum() == 20
    assert not (rows.meta["flags"][answers] & (NEW_PEER | NEW_SOCKET)).any()
    assert not rows.column("device_L0.01_new_sockets")[answers].any()


def test_a_reply_is_remembered_so_that_its_socket_is_not_new_later() -> None:
    """The answered direction stays seen even when the stream that showed it was a reply has been evicted."""
    sent = probe(0, 1)
    extractor = Extractor(16)
    extractor.push_frames([sent, reply(sent, START_NS + SECOND)])
    extractor.push_frames(probes(500, start_ns=2 * SECOND, first=1000))
    again = reply(sent, START_NS + 10 * SECOND)
    assert extractor.counts()["evicted_sockets"] > 400
    assert extractor.push_frames([again]).meta["flags"][0] & (NEW_PEER | NEW_SOCKET) == 0


@pytest.mark.parametrize(
    ("spec", "opens"),
    [
        (Spec(), NEW_PEER | NEW_SOCKET),
        (Spec(network="arp"), NEW_PEER),
        (Spec(extension="later"), NEW_PEER),
        (Spec(transport="echo"), NEW_PEER),
        (Spec(transport="error tcp"), NEW_PEER),
        (Spec(extension="first"), NEW_PEER | NEW_SOCKET),
    ],
)
def test_only_packets_with_ports_of_their_own_open_sockets(spec: Spec, opens: int) -> None:
    extractor = Extractor(16)
    first, second = extractor.push_frames([frame(0, spec), frame(1, spec)]).meta["flags"]
    assert first & (NEW_PEER | NEW_SOCKET) == opens
    assert second & (NEW_PEER | NEW_SOCKET) == 0


def opened_by(extractor: Extractor, frames: list[Frame]) -> int:
    return int(np.count_nonzero(extractor.push_frames(frames).meta["flags"] & NEW_PEER))


def test_peers_met_again_after_minutes_survive_a_flood_and_single_visits_do_not() -> None:
    """100 known peers stay known through 50,000 new ones; 100 met once are gone."""
    extractor = Extractor(1024, seed=1)
    regulars, strangers = [probes(100, first=first) for first in (0, 200)]

    def at(frames: list[Frame], t: int) -> list[Frame]:
        return [(START_NS + t, length, packet) for _, length, packet in frames]

    assert opened_by(extractor, at(regulars, 0)) == 100
    assert opened_by(extractor, at(regulars, 21 * MINUTE)) == 0  # now known
    assert opened_by(extractor, at(strangers, 22 * MINUTE)) == 100
    assert opened_by(extractor, probes(50_000, start_ns=23 * MINUTE, first=1000)) > 49_900
    assert opened_by(extractor, at(regulars, 30 * MINUTE)) == 0
    assert opened_by(extractor, at(strangers, 31 * MINUTE)) > 95
    assert extractor.counts()["evicted_seen_peers"] > 40_000


def test_a_peer_is_forgotten_after_a_week_without_it() -> None:
    extractor = Extractor(16)
    day = 24 * 60 * MINUTE
    peer = [(START_NS + t, *probe(0, 7)[1:]) for t in (0, 6 * day, 12 * day, 20 * day)]
    flags = [extractor.push_frames([sent]).meta["flags"][0] & NEW_PEER for sent in peer]
    assert flags == [NEW_PEER, 0, 0, NEW_PEER]


# ---- bounds ----


def test_up_to_its_capacity_a_table_evicts_nothing_whatever_the_seed() -> None:
    for seed in range(20):
        extractor = Extractor(1024, seed=seed)
        extractor.push_frames(probes(511))
        counts = extractor.counts()
        assert not any(value for name, value in counts.items() if name.startswith("evicted") and "seen" not in name)
        assert counts["pairs"] == counts["sockets"] == 511


def test_a_full_table_stays_its_size_and_counts_what_it_gives_up() -> None:
    extractor = Extractor(256)
    before = extractor.memory_bytes()
    extractor.push_frames(probes(5000))
    counts = extractor.counts()
    assert (counts["sockets"], counts["pairs"], counts["hosts"]) == (256, 128, 1)
    assert (counts["evicted_sockets"], counts["evicted_pairs"]) == (5000 - 256, 5000 - 128)
    assert extractor.memory_bytes() == before


def test_streams_that_answer_survive_a_scan() -> None:
    """Single-packet streams go first: conversations keep their history, bit for bit, through 20,000 probes."""
    talk = [
        frame(i * SECOND, Spec(src=i % 2, dst=1 - i % 2, sport=ports[i % 2], dport=ports[1 - i % 2], payload=i % 3))
        for i in range(10)
        for ports in ((40000, 443), (40000, 53), (443, 443))
    ]
    flood = probes(20_000, start_ns=10 * SECOND, step_ns=100_000)
    after = frame(13 * SECOND, Spec())
    small, large = Extractor(256, dtype=np.float64), Extractor(65_536, dtype=np.float64)
    rows = [extractor.push_frames([*talk, *flood, after]) for extractor in (small, large)]
    assert small.counts()["evicted_sockets"] > 19_000
    assert large.counts()["evicted_sockets"] == 0
    np.testing.assert_array_equal(rows[0].values[-1], rows[1].values[-1])


def test_without_single_packet_streams_the_oldest_goes() -> None:
    """16 sockets used twice each, then one more: the one evicted is not among the recent."""
    extractor = Extractor(16, dtype=np.float64)
    specs = [Spec(src=0, dst=1, sport=1000 + i) for i in range(17)]
    for i, spec in enumerate(specs):
        extractor.push_frames([frame(i * SECOND, spec), frame(i * SECOND + 1, spec)])
    assert extractor.counts()["evicted_sockets"] >= 1
    recent = extractor.push_frames([frame(20 * SECOND, spec) for spec in specs[-4:]])
    assert (recent.column("HpHp_L0.01_weight") > 2).all()


def test_devices_are_bounded_and_single_packet_ones_go_first() -> None:
    extractor = Extractor(4096, max_devices=32)
    real = frame(0, Spec())
    extractor.push_frames([real] * 3)
    _, length, packet = real
    spoofed = [(START_NS + i, length, packet[:8] + i.to_bytes(4, "big") + packet[12:]) for i in range(10, 1010)]
    extractor.push_frames(spoofed)
    rows = extractor.push_frames([frame(2000, Spec())])
    counts = extractor.counts()
    assert counts["devices"] == 32
    assert counts["evicted_devices"] == 1001 - 32
    assert rows.column("device_L0.01_weight")[0] == pytest.approx(4)


def test_an_address_with_several_macs_has_a_stream_for_each() -> None:
    """MI_dir is (MAC, address): it equals H until a second MAC uses the address, and not after."""
    macs = (0, 0, 1, 0, 1, 2, 1)
    rows = Extractor(64, dtype=np.float64).push_frames([frame(0, Spec(src_mac=mac)) for mac in macs])
    assert rows.column("H_L1_weight").tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert rows.column("MI_dir_L1_weight").tolist() == [1, 2, 1, 3, 2, 1, 3]


# ---- the same rows every way ----


def mixture(count: int = 3000, seed: int = 5) -> list[Frame]:
    """Conversations, scans, several MACs, odd frames, late packets."""
    draw = random.Random(seed)
    t, frames = 0, []
    for _ in range(count):
        t += draw.choice((0, 1000, 1_000_000, 50_000_000, 2 * SECOND, -400))
        spec = Spec(
            network=draw.choice(("ipv4", "ipv4", "ipv6", "arp", "llc")),
            transport=draw.choice(("tcp", "udp", "echo", "error udp")),
            src_mac=draw.randrange(3),
            src=draw.randrange(4),
            dst=draw.randrange(4),
            sport=draw.choice((53, 443, draw.randrange(200))),
            dport=draw.choice((53, 443)),
            payload=draw.choice((0, 30, 1000)),
            cut=draw.choice((None, None, None, 50)),
        )
        frames.append(frame(t, spec))
    return frames


@pytest.mark.skipif(not AVX2, reason="this processor has no AVX2")
def test_avx2_and_baseline_give_equal_bits() -> None:
    frames = mixture()
    values = [
        Extractor(512, simd=simd, dtype=np.float64, seed=1).push_frames(frames).values for simd in ("avx2", "baseline")
    ]
    np.testing.assert_array_equal(values[0].view(np.uint64), values[1].view(np.uint64))


def test_float32_rows_are_the_float64_rows_rounded() -> None:
    frames = mixture()
    wide = Extractor(512, dtype=np.float64, seed=1).push_frames(frames).values
    narrow = Extractor(512, seed=1).push_frames(frames).values
    assert narrow.dtype == np.float32
    np.testing.assert_array_equal(narrow, wide.astype(np.float32))


def test_rows_do_not_depend_on_the_hash_seed_below_the_bound() -> None:
    frames = mixture(1000)
    values = [Extractor(4096, seed=seed).push_frames(frames).values for seed in (None, 1, 2, 3)]
    for other in values[1:]:
        np.testing.assert_array_equal(values[0], other)


def test_rows_do_not_depend_on_how_frames_are_grouped() -> None:
    """Tables at their limit included: looking ahead in a batch must not change what it finds."""
    frames = mixture()
    whole = Extractor(64, seed=1, dtype=np.float64).push_frames(frames)
    extractor = Extractor(64, seed=1, dtype=np.float64)
    one_by_one = np.concatenate([extractor.push_frames([f]).values for f in frames])
    assert extractor.counts()["evicted_sockets"] > 100
    np.testing.assert_array_equal(whole.values, one_by_one)


def test_values_stay_finite_and_variances_not_negative() -> None:
    values = Extractor(64, dtype=np.float64).push_frames(mixture(seed=6)).values
    assert np.isfinite(values).all()
    stats = {
        stat: [i for i, name in enumerate(ALL_COLUMNS) if name.endswith(f"_{stat}")] for stat in ("variance", "std")
    }
    assert (values[:, stats["variance"] + stats["std"]] >= 0).all()


# ---- saved state ----


def test_a_replay_continues_from_a_saved_state_bit_for_bit() -> None:
    """Evictions, seen sets, counters: everything learnt is in the state."""
    frames = mixture()
    whole = Extractor(64, max_devices=16, seed=1, dtype=np.float64)
    rows = whole.push_frames(frames)
    first = Extractor(64, max_devices=16, seed=1, dtype=np.float64)
    first.push_frames(frames[:1234])
    second = Extractor(64, max_devices=16, seed=99, dtype=np.float64)
    second.push_frames(frames[2000:2100])  # forgotten by load
    second.load(first.save())
    rest = second.push_frames(frames[1234:])
    at = len(rows) - len(rest)
    np.testing.assert_array_equal(rest.values, rows.values[at:])
    np.testing.assert_array_equal(rest.meta, rows.meta[at:])
    assert second.counts() == whole.counts()
    assert second.save() == whole.save()


def test_what_devices_have_seen_outlives_the_streams() -> None:
    """After a restart what a device used before is not new to it, even when the clock was set back meanwhile."""
    first = Extractor(64, max_devices=16, seed=1)
    hour = 3_600_000_000_000
    known = [
        (hour + i * hour // 4, len(data), data)
        for i in range(3)
        for data in (traffic.packet("192.168.1.2", "198.51.100.7"),)
    ]
    first.push_frames(known)
    assert len(first.save_seen()) < 3000
    for at in (2 * hour, 0):
        second = Extractor(64, max_devices=16)
        second.load(first.save_seen())
        assert second.counts()["frames"] == 0
        rows = second.push_frames(
            [(at, 60, traffic.packet("192.168.1.2", to)) for to in ("198.51.100.7", "198.51.100.8")]
        )
        assert (rows.meta["flags"] & (NEW_PEER | NEW_SOCKET)).tolist() == [0, NEW_PEER | NEW_SOCKET]
        np.testing.assert_allclose(rows.column("device_L1_weight"), [1, 2])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"max_streams": 128}, "max_streams"),
        ({"max_devices": 17}, "max_devices"),
        ({"jitter": "compat"}, "jitter"),
        ({"float_time": True}, "float_time"),
    ],
)
def test_a_state_with_other_settings_is_refused(other: dict[str, Any], message: str) -> None:
    settings = {"max_streams": 64, "max_devices": 16}
    state = Extractor(**settings).save()  # type: ignore[arg-type]
    with pytest.raises(FeatureStateError, match=message):
        Extractor(**(settings | other)).load(state)


def test_a_damaged_state_is_refused_and_changes_nothing() -> None:
    """Truncated anywhere, any byte altered, or something behind it."""
    frames = mixture(300)
    extractor = Extractor(64, max_devices=16, seed=1, dtype=np.float64)
    extractor.push_frames(frames[:200])
    state = extractor.save()
    draw = random.Random(3)
    damaged = [state[:n] for n in (0, 7, 39, 40, 41, 100, len(state) - 1)] + [state + b"x"]
    for at in [*range(44), *(draw.randrange(44, len(state)) for _ in range(200))]:
        damaged.append(state[:at] + bytes([state[at] ^ 1 << draw.randrange(8)]) + state[at + 1 :])
    for bad in damaged:
        with pytest.raises(FeatureStateError):
            extractor.load(bad)
    after = extractor.push_frames(frames[200:])
    extractor.load(state)
    np.testing.assert_array_equal(after.values, extractor.push_frames(frames[200:]).values)


def test_a_stream_costs_what_the_manual_says() -> None:
    """At the default size everything fits an agent's budget: 24 MB, about 1.1 kB a stream."""
    memory = Extractor().memory_bytes()
    assert memory["total"] < 24_000_000
    assert memory["per_stream"] < 1200
    assert memory["sockets"] == 16384 * 512
    assert memory["pairs"] == 8192 * 832


def test_udp_and_tcp_with_equal_ports_share_a_stream() -> None:
    rows = Extractor(16).push_frames([frame(0, Spec(transport=name)) for name in ("tcp", "udp")])
    assert rows.column("HpHp_L1_weight").tolist() == [1, 2]
    assert bytes(UDP())  # scapy's default ports differ; ours are given
