"""Memory of a training on a data set of N-BaIoT's size: ``python -m tests.bench.bench_whole [--rows N] [--csv]``.

7,062,606 generated rows of 115 columns, with the published number of each device and label, go through
``botwatch trainer fit --store`` as a user runs it, with few epochs: memory is the same in each of them. Needs 5 GB of
disk, 11 GB with ``--csv``, which writes the 89 published files instead of Parquet. Shows nothing about detection.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GOAL_MB = 2000
CONFIG = """
data: [{sources}]
schemas: [nbaiot115-compat-1]
autoencoder: {{epochs: 3, patience: 3}}
classifier: {{training: {{epochs: 5, batch: 256, patience: 5}}}}
"""


def write(folder: Path, rows: int, csv: bool) -> int:
    """Write a Parquet file of each device, or the published files, of about ``rows`` rows; return their number."""
    import numpy as np
    import polars as pl

    from edge_agent.contract.columns import COMPAT, SCHEMAS
    from trainer.data.catalogue import PUBLISHED
    from trainer.data.published import DEVICES

    columns, rng = SCHEMAS[COMPAT], np.random.default_rng(1)
    share = min(1.0, rows / sum(PUBLISHED.values()))
    mixing, written = rng.normal(size=(8, len(columns))).astype(np.float32), 0
    labels = sorted({label for _, label in PUBLISHED})
    for number, device in enumerate(DEVICES, 1):
        frames = []
        for (name, label), count in PUBLISHED.items():
            n = round(count * share)
            if name != device or not n:
                continue
            hidden = rng.normal(size=(n, 8)).astype(np.float32) + 2 * labels.index(label) * (label != "benign")
            values = np.abs(hidden @ mixing) * 20
            values = (values.view(np.uint32) & np.uint32(0xFFFFF000)).view(np.float32)  # smaller on disk
            frame = pl.DataFrame(dict(zip(columns, values.T, strict=True)))
            written += n
            if csv:
                frame.write_csv(folder / f"{number}.{label}.csv")
            else:
                frames.append(frame.with_columns(label=pl.lit(label)))
        if frames:
            whole = pl.concat(frames).with_columns(device=pl.lit(device))
            whole.write_parquet(folder / f"{device}.parquet", compression="lz4")
    return written


def run(command: list[str]) -> tuple[float, float, int, str]:
    """Return the seconds, peak resident MB, exit status and output of a process."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        return time.monotonic() - began, usage.ru_maxrss * 1024 / 1e6, process.returncode, output.read()


def main(argv: list[str]) -> int:
    """Print the figures; return 1 if the peak is above the goal."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_whole")
    parser.add_argument("--rows", type=int, default=7_062_606, help="(%(default)s)")
    parser.add_argument("--csv", action="store_true", help="published files as source, instead of Parquet")
    parser.add_argument(
        "--write", type=Path, help=argparse.SUPPRESS
    )  # in its own process, whose memory is not measured
    args = parser.parse_args(argv)
    if args.write is not None:
        print(write(args.write, args.rows, args.csv))
        return 0
    with tempfile.TemporaryDirectory(prefix="botwatch-bench-") as name:
        folder = Path(name)
        command = [sys.executable, "-m", "tests.bench.bench_whole", "--rows", str(args.rows), "--write", name]
        took, _, failed, output = run([*command, *["--csv"] * args.csv])
        if failed:
            print(output)
            return failed
        sources = sorted(folder.glob("*.csv" if args.csv else "*.parquet"))
        size = sum(path.stat().st_size for path in sources) / 1e6
        print(
            f"{int(output):,} generated rows, {size:,.0f} MB in {len(sources)} files, written in {took:.0f} s",
            flush=True,
        )
        config = folder / "fit.yaml"
        entries = ", ".join(f"{{kind: rows, path: {path.name}, generated: true}}" for path in sources)
        if args.csv:
            entries = "{kind: nbaiot, path: .}"
        config.write_text(CONFIG.format(sources=entries))
        worst = 0.0
        for title in ("read into the store and trained", "trained from the store"):
            command = [sys.executable, "-m", "edge_agent.command", "trainer", "fit", str(config)]
            command += ["--store", str(folder / "store"), "--out", str(folder / "run")]
            took, peak, failed, output = run(command)
            if failed:
                print(output)
                return failed
            worst = max(worst, peak)
            trained = "".join(re.findall(r"training on [\d,]+ rows", output)[:1])
            print(f"{title}: {took:.0f} s, peak {peak:,.0f} MB, 3 epochs {trained}", flush=True)
        stored = sum(path.stat().st_size for path in (folder / "store").iterdir()) / 1e6
        print(f"store: {stored:,.0f} MB; goal for the peak: {GOAL_MB:,} MB, {'met' if worst <= GOAL_MB else 'MISSED'}")
    return int(worst > GOAL_MB)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
