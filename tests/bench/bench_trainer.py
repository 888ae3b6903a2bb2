"""The cost of training: ``python -m tests.bench.bench_trainer [--full]``.

180,000 rows of 115 columns, low-rank with noise: seconds an epoch at our setting (batch 1,024) and at the study's
(batch 64) on the same rows, and memory and storage of `trainer stream` against a batch training. ``--full`` trains both
to their early stop. Medians; the machine is shared, so ratios say more than seconds.
"""

import os
import statistics
import sys
import time

import numpy as np

ROWS, COLUMNS = 180_000, 115


def rows(count: int) -> np.ndarray:
    """Return scaled rows as an autoencoder gets them."""
    rng = np.random.default_rng(1)
    latent = rng.standard_normal((count, 12)) @ rng.standard_normal((12, COLUMNS)) / 3
    return np.clip(latent + 0.3 * rng.standard_normal((count, COLUMNS)), -10, 10).astype(np.float32)


def resident_mb() -> float:
    """Return the resident memory of this process now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(argv: list[str]) -> int:
    """Print the tables."""
    from trainer.config import Config, DatasetEntry, Training
    from trainer.fit import autoencoder, fit_online

    train, validation = rows(ROWS), rows(20_000)
    settings = {
        "ours: batch 1,024, Adam 4e-3": Training(),
        "the study's: batch 64, Adam 1e-3": Training(batch=64, learning_rate=1e-3, patience=5),
    }
    print(f"{ROWS:,} rows of {COLUMNS} columns")
    for name, chosen in settings.items():
        times, history = [], {}
        if "--full" in argv:
            began = time.perf_counter()
            _, history = autoencoder.train(train, validation, chosen, 1)
            times.append((time.perf_counter() - began) / history["epochs"])
        else:
            marks = [time.perf_counter()]
            once = Training(epochs=3, batch=chosen.batch, learning_rate=chosen.learning_rate)
            autoencoder.train(train, validation, once, 1, watch=lambda *_, m=marks: m.append(time.perf_counter()))
            times += np.diff(marks).tolist()
        seconds = statistics.median(times)
        more = (
            f", {history['epochs']} epochs, {seconds * history['epochs']:.0f} s in all, best validation "
            if history
            else ""
        )
        more += f"{min(history['validation_loss']):.4f}" if history else ""
        print(f"{name:<34} {seconds:6.2f} s an epoch{more}", flush=True)

    before = resident_mb()
    table = np.abs(rows(400_000)).repeat(2, axis=1)[:, :140]  # as a batch training holds it
    held = resident_mb() - before
    del table
    learner = fit_online.Learner(Config((DatasetEntry("captures", __file__),)))  # type: ignore[arg-type]
    meta = np.zeros(8192, dtype=[("t_ns", "<i8"), ("src_mac", "<u8")])
    piece = np.abs(np.random.default_rng(2).normal(50, 20, (8192, 140))).astype(np.float32)
    began, before = time.perf_counter(), resident_mb()
    for _ in range(50):
        learner.see(piece, meta)
    took = time.perf_counter() - began
    print(f"400,000 rows held for batch training: {held:,.0f} MB; stored as float32: {400_000 * 560 / 1e6:,.0f} MB")
    print(
        f"409,600 rows through trainer stream: {resident_mb() - before:,.0f} MB more, "
        f"{learner.sampled():,} rows in the sample, {409_600 / took:,.0f} rows/s, {learner.steps:,} steps"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
