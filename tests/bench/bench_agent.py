"""From capture bytes to scored and voted rows on one core: ``python -m tests.bench.bench_agent BUNDLE``.

packets_20000.pcap (of Kitsune's network) again and again, its times moved on by its length each time, through the
agent's own extractor and detector with a trained int8 bundle; every packet is decoded, extracted and scored. Medians of
passes in processor time of one thread. Without a bundle: `make real` or `make demo` makes one.
"""

import os
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from edge_agent.agent import BATCH
from edge_agent.capture import open_file
from edge_agent.contract import bundle as bundles
from edge_agent.detector import AT_ONCE, Detector
from edge_agent.features import Extractor, Rows
from tests.reference.frames import data_folder

GOAL, LEAST = 1_000_000, 600_000
PUBLISHED = {"Kitsune's own Python loop": 1_060, "the best public C++ port of it": 95_000}
PASSES = 15


def looped(path: Path, out: Path, passes: int) -> int:
    """Write the capture ``passes`` times, one after the other in time; the packets of one pass."""
    data = path.read_bytes()
    at, records = 24, []
    while at < len(data):
        second, _, kept, _ = struct.unpack_from("<IIII", data, at)
        records.append((at, second, 16 + kept))
        at += 16 + kept
    length = records[-1][1] - records[0][1] + 1
    with out.open("wb") as file:
        file.write(data[:24])
        for i in range(passes):
            moved = bytearray(data[24:])
            for start, second, _ in records:
                struct.pack_into("<I", moved, start - 24, second + i * length)
            file.write(moved)
    return len(records)


def main(argv: list[str]) -> int:
    """Print the table; 1 when it is slower than the least asked for."""
    data = data_folder()
    if len(argv) != 1 or data is None:
        print("usage: BOTWATCH_DATA=... python -m tests.bench.bench_agent BUNDLE", file=sys.stderr)
        return 2
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    clock, bundle = time.thread_time_ns, bundles.load(Path(argv[0]))
    with tempfile.TemporaryDirectory(prefix="botwatch-bench-") as folder:
        file = Path(folder) / "looped.pcap"
        count = looped(data / "kitsune" / "packets_20000.pcap", file, PASSES + 1)
        extractor, detector, kernel, rest = Extractor(seed=1), Detector(bundle), [], []
        with open_file(file) as source:
            for _ in range(PASSES + 1):
                spent, judged, rows = 0, 0, 0
                while rows < count:
                    began = clock()
                    batch = extractor.push(source, min(BATCH, count - rows))
                    spent, between = spent + clock() - began, clock()
                    detector.observe(batch)
                    judged, rows = judged + clock() - between, rows + len(batch)
                kernel.append(spent / count)
                rest.append(judged / count)
    part = Rows(batch.values[:AT_ONCE], batch.meta[:AT_ONCE])
    scorer = detector._scorer
    width = len(detector._at)
    values = np.ascontiguousarray(part.values[:, detector._at])
    z, inputs = scorer._scaling.inputs(values)
    rebuilt = scorer._predict(inputs)

    def each(work: object) -> float:
        times = []
        for _ in range(200):
            began = clock()
            work()  # type: ignore[operator]
            times.append((clock() - began) / len(values))
        return statistics.median(times)

    figures = {
        "decode and extract": statistics.median(kernel[1:]),
        f"scale {width} columns": each(lambda: scorer._scaling.inputs(values)),
        f"autoencoder, {bundle.manifest.variant}": each(lambda: scorer._predict(inputs)),
        "error": each(lambda: scorer._scaling.errors(z, rebuilt)),
    }
    judged_ns = statistics.median(rest[1:])
    figures["subjects, votes and the rest"] = judged_ns - sum(list(figures.values())[1:])
    for name, ns in figures.items():
        print(f"{name:32} {ns:8,.0f} ns a packet")
    totals = [a + b for a, b in zip(kernel[1:], rest[1:], strict=True)]
    total = statistics.median(totals)
    rate, best = 1e9 / total, 1e9 / min(totals)
    print(
        f"{'together':32} {total:8,.0f} ns: {rate:,.0f} packets/s, fastest pass {best:,.0f}"
        f" (goal {GOAL:,}, at least {LEAST:,})"
    )
    print(f"scored {detector.counters['scored']:,} of {count * (PASSES + 1):,}; load {os.getloadavg()[0]:.1f}")
    for name, published in PUBLISHED.items():
        print(f"as published, on like hardware: {name} {published:,} packets/s, {rate / published:,.0f} times fewer")
    return int(rate < LEAST)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
