"""The cost of an explanation on the gateway: ``python -m tests.bench.bench_explain BUNDLE``.

Milliseconds per reported detection (columns, their values, the sentence), beside scoring one row and 256 rows
with the same int8 model. Medians; rows are random, which changes no cost.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_agent.contract import bundle as bundles
from edge_agent.detection import explain
from edge_agent.detection.report import Reporter
from edge_agent.detection.runtime import Model
from edge_agent.detection.scorer import Scorer

GOAL_MS = 5.0


def median_ms(work: Callable[[], object], times: int = 300) -> float:
    """Return the median time of ``work`` in milliseconds, after a warm-up."""
    taken = []
    for _ in range(times + 20):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken[20:])


def main(argv: list[str]) -> int:
    """Print the table; return 1 if an explanation takes longer than the goal."""
    if len(argv) != 1:
        print("usage: python -m tests.bench.bench_explain BUNDLE", file=sys.stderr)
        return 2
    bundle = bundles.load(Path(argv[0]))
    manifest = bundle.manifest
    scorer = Scorer(Model(bundle.autoencoder), bundle.scaler, manifest.columns)
    reporter, width = Reporter(manifest, scorer, None), len(manifest.columns)
    rows = np.abs(np.random.default_rng(1).normal(50, 100, (256, width))).astype(np.float32)

    def explained(fast: bool) -> None:
        column, value = reporter.strongest(rows[0], fast)[0]
        explain.score(column, value, manifest.normal.get(column, ()))

    figures = {
        "explanation, full rule": median_ms(lambda: explained(False)),
        "explanation, fast rule": median_ms(lambda: explained(True)),
        "score of one row": median_ms(lambda: scorer.full(rows[:1])),
        "score of 256 rows": median_ms(lambda: scorer.full(rows)),
    }
    for name, value in figures.items():
        print(f"{name:<24} {value:8.4f} ms")
    worst = max(figures["explanation, full rule"], figures["explanation, fast rule"])
    print(
        f"goal for an explanation: {GOAL_MS:g} ms; reached {GOAL_MS / worst:.0f} times over"
        if worst < GOAL_MS
        else "over"
    )
    return int(worst >= GOAL_MS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
