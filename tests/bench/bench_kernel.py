"""The cost of a packet, from capture bytes to its 140 values: ``python -m tests.bench.bench_kernel``.

Medians of passes in one process on one thread, each beside the plain-Python twin of the same run, because only the
ratio travels between machines. A pass is a whole file through `Extractor.push` as the agent does it (256 frames a call,
float32 rows); the state is emptied before, the memory is already mapped, as on a gateway that has been up for a minute.
Time is the thread's processor time, so that a busy machine says less than it would by the clock, but not nothing.
"""

import argparse
import os
import platform
import statistics
import struct
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np

from edge_agent.capture.features import Extractor
from edge_agent.capture.sources import open_file
from tests.reference import frames as craft
from tests.reference.twin import Twin

Simd = Literal["baseline", "avx2"]

GOALS: dict[Simd, float] = {"baseline": 500, "avx2": 300}
FLOOD_GOAL = 1500
RING_KB, RING_S = 1024, 8.0  # as `agent run` has it: 5 s before an alert, which may be 3 s late


def rss_mb() -> float:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def passes(path: Path, extractor: Extractor, count: int) -> list[float]:
    """Return nanoseconds a packet, pass by pass."""
    empty, out = extractor.save(), []
    for _ in range(count + 1):
        extractor.load(empty)
        with open_file(path) as source:
            start, rows = time.thread_time_ns(), 0
            while n := len(extractor.push(source)):
                rows += n
            out.append((time.thread_time_ns() - start) / rows)
    return out[1:]


def parts(path: Path, extractor: Extractor, part: int) -> list[float]:
    """Return nanoseconds a packet for each `part` packets of one pass."""
    out = []
    with open_file(path) as source:
        start, rows = time.thread_time_ns(), 0
        while n := len(extractor.push(source)):
            rows += n
            if rows >= part:
                now = time.thread_time_ns()
                out.append((now - start) / rows)
                start, rows = now, 0
    return out


def twin_ns(path: Path, count: int) -> float:
    """Return nanoseconds a packet of the plain-Python twin, over the first packets."""
    from scapy.utils import RawPcapReader

    with RawPcapReader(str(path)) as reader:
        frames = []
        for packet, meta in reader:
            frames.append((meta.sec * 10**9 + meta.usec * 1000, meta.wirelen, bytes(packet)))
            if len(frames) == count:
                break
    start = time.thread_time_ns()
    Twin(float).rows(frames)
    return (time.thread_time_ns() - start) / len(frames)


def looped(path: Path, out: Path, times: int) -> int:
    """Write a capture (in microseconds) ``times`` times, each later than the last; return its number of packets."""
    data = path.read_bytes()
    at, records = 24, []
    while at < len(data):
        second, _, captured, _ = struct.unpack_from("<IIII", data, at)
        records.append((at, second, 16 + captured))
        at += 16 + captured
    length = records[-1][1] - records[0][1] + 1
    with out.open("wb") as file:
        file.write(data[:24])
        for i in range(times):
            moved = bytearray(data[24:])
            for start, second, _ in records:
                struct.pack_into("<I", moved, start - 24, second + i * length)
            file.write(moved)
    return len(records)


def ring(path: Path, part: int) -> str:
    """Return the cost of the evidence ring: extractors with and without one take turns, ``part`` by ``part``."""
    times: dict[bool, list[float]] = {False: [], True: []}
    extractors = {with_ring: Extractor(seed=1) for with_ring in times}
    extractors[True].keep(RING_KB << 10, RING_S)
    sources = {with_ring: open_file(path) for with_ring in times}
    rows = part
    while rows == part:
        for with_ring, extractor in extractors.items():
            start, rows = time.thread_time_ns(), 0
            while rows < part and (n := len(extractor.push(sources[with_ring], min(256, part - rows)))):
                rows += n
            if rows == part:
                times[with_ring].append((time.thread_time_ns() - start) / part)
    counts = extractors[True].counts()
    without = statistics.median(times[False][1:])
    added = statistics.median(b - a for a, b in zip(times[False][1:], times[True][1:], strict=True))
    return (
        f"evidence ring of {RING_KB} KB: {added:+,.0f} ns a packet to {without:,.0f} ({100 * added / without:+.0f} %),"
        f" {counts['ring_kept']:,} frames kept, {counts['ring_left_out']:,} left out"
    )


def attack(path: Path, kind: str, count: int) -> None:
    """Write a generated capture of 60-byte SYNs, 100,000 a second: `scan` gives every packet a new destination, hence
    pair and socket, `flood` a new source address, hence host, pair and socket."""
    spec = craft.Spec()
    _, packet = craft.craft(spec)
    packet = packet.ljust(60, b"\0")
    kind_of = [("sec", "<u4"), ("usec", "<u4"), ("captured", "<u4"), ("length", "<u4"), ("frame", "u1", (60,))]
    at = {"scan": 30, "flood": 26}[kind]
    path.write_bytes(craft.pcap([]))
    with path.open("ab") as file:
        for start in range(0, count, 100_000):
            order = np.arange(start, min(start + 100_000, count), dtype=np.uint64)
            record = np.zeros(len(order), kind_of)
            t = np.uint64(craft.START_NS // 1000) + order * np.uint64(10)
            record["sec"], record["usec"] = t // np.uint64(10**6), t % np.uint64(10**6)
            record["captured"] = record["length"] = 60
            record["frame"] = np.frombuffer(packet, np.uint8)
            mixed = (order * np.uint64(2654435761)) & np.uint64(0xFFFFFFFF)  # a permutation of 32 bits: no repeats
            for i in range(4):
                record["frame"][:, at + i] = (mixed >> np.uint64(24 - 8 * i)) & np.uint64(0xFF)
            record.tofile(file)


def processor() -> str:
    """Return the model name, where Linux knows it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def verdict(value: float, goal: float) -> str:
    return f"goal {goal:,.0f}: {'met' if value <= goal else 'MISSED'}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_kernel", description=__doc__)
    parser.add_argument("--passes", type=int, default=41)
    parser.add_argument("--packets", type=int, default=1_000_000, help="of the generated scan and flood")
    parser.add_argument("--twin-packets", type=int, default=3000)
    arguments = parser.parse_args()
    instances: tuple[Simd, ...] = ("baseline", "avx2") if Extractor(16).simd == "avx2" else ("baseline",)
    print(f"{processor()}, load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores")
    memory = Extractor().memory_bytes()
    print(f"memory of 16,384 streams and 256 devices: {memory['total']:,} bytes, {memory['per_stream']} a stream\n")

    data = craft.data_folder()
    if data is None:
        print("packets_20000.pcap: skipped, no published data (BOTWATCH_DATA)")
    else:
        path = data / "kitsune" / "packets_20000.pcap"
        twin = twin_ns(path, arguments.twin_packets)
        print(f"{path.name}, plain-Python twin: {twin:,.0f} ns a packet")
        for simd in instances:
            for dtype in (np.float32, np.float64):
                times = passes(path, Extractor(simd=simd, dtype=dtype, seed=1), arguments.passes)
                median = statistics.median(times)
                print(
                    f"{path.name}, {simd:8} {dtype.__name__}: median {median:,.0f} ns a packet"
                    f" ({verdict(median, GOALS[simd])}), fastest pass {min(times):,.0f},"
                    f" {twin / median:,.0f} x the twin"
                )
        with tempfile.TemporaryDirectory(prefix="botwatch-bench-") as name:
            again = Path(name) / "looped.pcap"
            count = looped(path, again, arguments.passes)
            print(f"{path.name} {arguments.passes} times, {ring(again, count)}")
    with tempfile.TemporaryDirectory(prefix="botwatch-bench-") as name:
        for kind in ("scan", "flood"):
            path = Path(name) / f"{kind}.pcap"
            attack(path, kind, arguments.packets)
            twin = twin_ns(path, arguments.twin_packets)
            for simd in instances:
                extractor = Extractor(simd=simd, seed=1)
                part = max(1, arguments.packets // 10)
                times = parts(path, extractor, part)
                before = rss_mb()
                times += parts(path, extractor, part)
                counts = extractor.counts()
                evicted = sum(value for key, value in counts.items() if key.startswith("evicted") and "seen" not in key)
                first, last = times[0], times[len(times) // 2 - 1]
                median = statistics.median(times)
                print(
                    f"\ngenerated {kind}, {simd}: {arguments.packets:,} packets, median {median:,.0f} ns"
                    f" ({verdict(median, FLOOD_GOAL)}), first {part:,}: {first:,.0f}, last: {last:,.0f},"
                    f" {twin / median:,.0f} x the twin\n"
                    f"  {counts['streams']:,} streams, {evicted:,} evictions;"
                    f" RSS {before:.1f} MB after the first run, {rss_mb():.1f} MB after a second"
                )
            print(f"  {ring(path, part)}")
            path.unlink()


if __name__ == "__main__":
    main()
