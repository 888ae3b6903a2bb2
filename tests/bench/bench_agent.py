"""From capture bytes to scored and voted rows on one core: ``python -m tests.bench.bench_agent [BUNDLE]``.

packets_20000.pcap (of Kitsune's network) goes through the agent's extractor and detector over and over, each time with
later times, with a trained int8 bundle (by default that of the tests' generated home); every packet is decoded,
extracted and scored. The figures are medians of passes in processor time of one thread. Then the agent as `run` has it,
with learning, check-ins and the evidence ring, at the capture's own pace of some 20 packets a second. Most of that is
work that is done once a second or a minute for each device, so it is given as the share of a core.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_agent.agent import BATCH, Agent
from edge_agent.capture.features import Extractor, Rows, RowScaling, SenderTable, highest_ratios
from edge_agent.capture.sources import open_file
from edge_agent.config import AgentConfig, EvidenceConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract.addresses import PRIVATE_NETWORKS
from edge_agent.contract.bundle import Bundle
from edge_agent.contract.columns import ALL_COLUMNS, COUNT_COLUMNS, HOST_COUNTS, indices
from edge_agent.contract.host_bounds import host_bounds
from edge_agent.contract.networks import Networks
from edge_agent.detection.detector import MAX_SUBJECTS, Detector
from edge_agent.detection.runtime import Model
from edge_agent.detection.scorer import AT_ONCE
from tests.bench.bench_kernel import looped, processor
from tests.bench.home import home
from tests.reference.frames import data_folder

GOAL, LEAST = 1_000_000, 600_000
PUBLISHED = {"Kitsune's own Python loop": 1_060, "the best public C++ port of it": 95_000}
PASSES = 15

clock = time.thread_time_ns


def steps(batch: Rows, bundle: Bundle, budget: float | None) -> dict[str, float]:
    """Return nanoseconds a packet of each step, on one batch over and over; a batch exceeds the processor's cache."""
    monitored = Networks.parse(PRIVATE_NETWORKS)
    senders = SenderTable(MAX_SUBJECTS, budget, monitored.v4, monitored.v6)
    counts_at, host_at = np.array(indices(COUNT_COLUMNS), dtype=np.uint32), np.arange(len(HOST_COUNTS), dtype=np.uint32)
    bounds = np.array([bundle.manifest.decision.counts.get(column, np.inf) for column in COUNT_COLUMNS])
    of_hosts = host_bounds(bundle.manifest.decision.counts)
    columns, n, network, z = bundle.manifest.columns, len(batch), Model(bundle.autoencoder), np.empty(0, np.float32)
    keep = np.ones((1, len(columns)), dtype=bool)
    scaling = RowScaling(bundle.scaler, len(ALL_COLUMNS), indices(columns), keep)
    blocks = [slice(at, at + AT_ONCE) for at in range(0, n, AT_ONCE)]
    variant, out = np.zeros(AT_ONCE, dtype=np.uint8), np.empty(n, dtype=np.float32)
    t_ns = batch.meta["t_ns"].astype(np.int64)
    host_counts = senders.route(batch.meta, t_ns).host_counts

    def scale() -> None:
        nonlocal z
        for block in blocks:
            z = scaling.inputs(batch.values[block], variant, network.input(AT_ONCE))[0]

    def run() -> None:
        for _ in blocks:
            network.run()

    def error() -> None:
        rebuilt = network.run()
        for block in blocks:
            out[block] = scaling.errors(z, rebuilt, variant)

    work: dict[str, Callable[[], object]] = {
        "who sent it, what is scored": lambda: senders.route(batch.meta, t_ns),
        "counts against their bounds": lambda: np.maximum(
            highest_ratios(batch.values, counts_at, bounds), highest_ratios(host_counts, host_at, of_hosts)
        ),
        f"scale {len(columns)} columns": scale,
        f"autoencoder, {bundle.manifest.variant}": run,
        "error": error,
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(40):
        for name, step in work.items():
            began = clock()
            step()
            times[name].append((clock() - began) / n)
    medians = {name: statistics.median(each) for name, each in times.items()}
    medians["error"] -= medians[f"autoencoder, {bundle.manifest.variant}"] / len(blocks)
    return medians


def length_ns(file: Path) -> int:
    """Return the nanoseconds from a capture's first packet to its last."""
    extractor, first, last = Extractor(seed=1), 0, 0
    with open_file(file) as source:
        while len(rows := extractor.push(source, BATCH)):
            first, last = first or int(rows.meta["t_ns"][0]), int(rows.meta["t_ns"][-1])
    return last - first


def main(argv: list[str]) -> int:
    """Print the table; return 1 if the rate is below the least that is wanted."""
    data = data_folder()
    if len(argv) > 1:
        print("usage: python -m tests.bench.bench_agent [BUNDLE]", file=sys.stderr)
        return 2
    if data is None:
        print("the whole path: skipped, no published data (BOTWATCH_DATA)")
        return 0
    bundle = bundles.load(Path(argv[0]) if argv else home()[0])
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    config = AgentConfig()
    with tempfile.TemporaryDirectory(prefix="botwatch-bench-") as folder:
        file = Path(folder) / "looped.pcap"
        count = looped(data / "kitsune" / "packets_20000.pcap", file, PASSES + 1)
        extractor, kernel, rest = Extractor(seed=1), [], []
        detector = Detector(bundle, max_rows_per_s=config.scoring.max_rows_per_s)
        with open_file(file) as source:
            for _ in range(PASSES + 1):
                spent, judged, rows = 0, 0, 0
                while rows < count:
                    batch = None  # the next batch reuses its memory, as in the agent
                    began = clock()
                    batch = extractor.push(source, min(BATCH, count - rows))
                    spent, between = spent + clock() - began, clock()
                    detector.observe(batch)
                    judged, rows = judged + clock() - between, rows + len(batch)
                kernel.append(spent / count)
                rest.append(judged / count)
        with open_file(file) as source:
            batch = Extractor(seed=1).push(source, BATCH)
        figures = {"decode and extract": statistics.median(kernel[1:])}
        figures |= steps(batch, bundle, config.scoring.max_rows_per_s)
        figures["votes and the rest"] = statistics.median(rest[1:]) - sum(list(figures.values())[1:])

        agent = Agent(config, bundle, seed=1, evidence=EvidenceConfig(Path(folder) / "evidence"))
        began = clock()
        with open_file(file) as source:
            alerts = len(list(agent.alerts(source)))
        whole, length = clock() - began, length_ns(file)
    print(f"{processor()}, load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores; {bundle.path}")
    for name, ns in figures.items():
        print(f"{name:32} {ns:8,.0f} ns a packet")
    totals = [a + b for a, b in zip(kernel[1:], rest[1:], strict=True)]
    total = statistics.median(totals)
    rate, best = 1e9 / total, 1e9 / min(totals)
    print(
        f"{'together':32} {total:8,.0f} ns: {rate:,.0f} packets/s, fastest pass {best:,.0f}"
        f" (goal {GOAL:,}, at least {LEAST:,})"
    )
    print(f"scored {detector.counters['scored']:,} of {count * (PASSES + 1):,}; votes {detector.counters['votes']}")
    print(
        f"the agent, as it runs, at {1e9 * count * (PASSES + 1) / length:.0f} packets/s: {100 * whole / length:.3f} %"
        f" of a core, {whole / count / (PASSES + 1):,.0f} ns a packet; {alerts} alerts"
    )
    for name, published in PUBLISHED.items():
        print(f"as published, on like hardware: {name} {published:,} packets/s: {rate / published:,.0f} times fewer")
    return int(rate < LEAST)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
