"""The distance of a day that was not in the fit from a false alarm: ``python -m tests.bench.bench_days``.

Fits on two of the three published days of four devices (configs/captures) and scores the third, each day in turn, with
the float network. Needs the captures (BOTWATCH_DATA); takes about a minute a day. No attack is involved.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract import captures
from edge_agent.contract.columns import CLEAN
from edge_agent.detection.scorer import Scorer
from edge_agent.detection.vote import vote_statistic

CONFIGS = Path(__file__).parents[2] / "configs"
ROOT = Path(os.environ.get("BOTWATCH_DATA", CONFIGS.parents[1] / "shared" / "data")) / "pcap"


def main() -> int:
    """Print, for each day left out, its highest vote after warm-up and the limit of a vote."""
    if not ROOT.is_dir():
        print(f"no published captures in {ROOT}; BOTWATCH_DATA names the folder that has pcap/", file=sys.stderr)
        return 2
    from trainer import config
    from trainer.data import dataset
    from trainer.data.row_table import Limits, RowTable
    from trainer.fit import autoencoder, fit

    manifests = [captures.load(CONFIGS / "captures" / name, ROOT)[0] for name in ("fit.yaml", "replay.yaml")]
    days: dict[str, list[captures.Capture]] = {}
    for capture in (c for m in manifests for c in m.captures if c.label == "benign"):
        days.setdefault(capture.device, []).append(capture)
    base = config.load(CONFIGS / "trainer.yaml", ROOT)
    base = replace(
        base,
        classifier=replace(base.classifier, enabled=False),
        autoencoder=replace(base.autoencoder, epochs=60),  # as `make real`
    )
    entries = [
        replace(base.data[0], path=CONFIGS / "captures" / name, root=ROOT, labels=("benign",))
        for name in ("fit.yaml", "replay.yaml")
    ]
    limits = Limits(base.max_rows, base.max_streams, False)
    table = dataset.load(entries, base.model_columns(), CLEAN, limits)

    def take(rows: NDArray[np.bool_]) -> RowTable:
        per_row = ("values", "device", "label", "capture", "t_ns", "mac")
        return replace(table, **{name: getattr(table, name)[rows] for name in per_row})

    for left_out in range(3):
        names = {str(c[left_out].file) for c in days.values()}
        out = np.isin(table.capture, [i for i, name in enumerate(table.captures) if name in names])
        run = fit.fit(base, take(~out), lambda _: None)
        scorer, highest = Scorer(autoencoder.predictor(run.network), run.scaler, run.columns), 0.0
        rule = run.decision
        for device in np.unique(table.device[out]):
            rows = take(out & (table.device == device))
            votes = vote_statistic(scorer.full(rows.values[:, : len(run.columns)]), rule.vote_k, rule.vote_w)
            settled = rows.t_ns - rows.t_ns[0] > rule.warmup_s * 1e9
            highest = max(highest, float(votes[settled].max(initial=0.0)))
        print(f"day {left_out + 1} left out: highest vote {highest:.2f}, limit {rule.full.limit:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
