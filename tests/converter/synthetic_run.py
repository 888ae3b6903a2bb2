"""Small runs as `botwatch trainer fit` writes them: real networks, trained for a second on synthetic rows."""

from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path

import numpy as np
import polars as pl

from converter import quantize
from edge_agent.contract import runfolder, scaling
from edge_agent.contract.columns import CLEAN, COUNT_COLUMNS, DEVICE, DEVICE_COLUMNS
from edge_agent.contract.runfolder import ModelFile, Provenance
from edge_agent.detection import calibrate
from edge_agent.detection.scorer import Scorer

CLASSES = ("benign", "gafgyt.scan", "mirai.udp")
FLOORS = {"device_L1_new_peers": 10.0}


def benign_scores(scorer: Scorer, rows: pl.DataFrame, columns: Sequence[str]) -> calibrate.Benign:
    """Return the scores of a run's benign train and optimise rows, from which a decision is computed."""
    rows = rows.filter(pl.col("part") != "test")
    values = rows.select(columns).to_numpy()
    return calibrate.Benign(
        full=scorer.full(values),
        fast=scorer.fast(values),
        device=calibrate.senders(rows["device"].to_numpy()),
        runs=rows["run"].to_numpy(),
        optimise=(rows["part"] == "optimise").to_numpy(),
        start=rows["start"].to_numpy(),
        t_ns=rows["t_ns"].to_numpy(),
    )


def synthetic(columns: int, rows: int, seed: int, shift: float = 0.0, spread: float = 0.5) -> np.ndarray:
    """Rows whose logarithms are of low rank with noise; ``shift`` moves every fifth column, as an attack does."""
    world, here = np.random.default_rng(7), np.random.default_rng(seed)
    rank = max(2, columns // 8)
    latent = here.standard_normal((rows, rank)) @ world.standard_normal((rank, columns)) / np.sqrt(rank)
    logs = 4 + latent + spread * here.standard_normal((rows, columns)) + shift * (np.arange(columns) % 5 == 0)
    return np.expm1(np.maximum(logs, 0)).astype(np.float32)


def write_run(
    path: Path,
    columns: tuple[str, ...],
    classes: tuple[str, ...] = CLASSES,
    squash: str = "log1p",
    clip: float | None = 10.0,
    attack: Callable[[int, int], np.ndarray] | None = None,
    epochs: int = 8,
) -> Path:
    """A run folder on ``columns``; ``attack(class number, rows)`` makes the raw rows of one attack class."""
    k = len(columns)
    attack = attack or (lambda number, rows: synthetic(k, rows, 90 + number, shift=2.0 * number))
    sizes = {"train": 4000, "optimise": 1500, "test": 2000}
    values = {part: synthetic(k, rows, seed) for seed, (part, rows) in enumerate(sizes.items())}
    attacks = [attack(number, 600) for number in (1, 2)]
    scaler = scaling.fit(values["train"], squash=squash, clip=clip)

    with quantize.quiet():
        import keras

        keras.utils.set_random_seed(3)
        hidden = [keras.layers.Dense(ceil(f * k), "tanh") for f in (0.75, 0.5, 0.25, 0.5, 0.75)]
        autoencoder = keras.Sequential([keras.Input((k,)), *hidden, keras.layers.Dense(k)])
        autoencoder.compile(keras.optimizers.Adam(4e-3), "mse")
        x = scaler.network_input(scaler.z(values["train"]))
        autoencoder.fit(x, x, epochs=epochs, batch_size=256, verbose=0)
        path.mkdir(parents=True)
        autoencoder.save(path / runfolder.AUTOENCODER)
        if classes:
            layers = [keras.layers.Dense(8, "tanh"), keras.layers.Dense(8, "tanh")]
            classifier = keras.Sequential(
                [keras.Input((k,)), *layers, keras.layers.Dense(len(classes), activation="softmax")]
            )
            classifier.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
            raw = np.concatenate([values["train"][:600], *attacks])
            classifier.fit(
                scaler.network_input(scaler.z(raw)),
                np.repeat(np.arange(3), 600),
                epochs=max(epochs, 20),
                batch_size=64,
                verbose=0,
            )
            classifier.save(path / runfolder.CLASSIFIER)

    counts = {
        part: np.random.default_rng(5).uniform(0, 4, (len(v), 10)).astype(np.float32) for part, v in values.items()
    }
    blocks = [(v, part, "benign", counts[part]) for part, v in values.items()]
    blocks += [(v, "attack", f"attack {i}", np.full((600, 10), 50, np.float32)) for i, v in enumerate(attacks)]
    raw = np.concatenate([v for v, *_ in blocks])
    counted = np.concatenate([c for *_, c in blocks])
    lengths = [len(v) for v, *_ in blocks]
    frame = {c: counted[:, i] for i, c in enumerate(COUNT_COLUMNS)} | {c: raw[:, i] for i, c in enumerate(columns)}
    device = np.arange(len(raw)) % 500 >= 250
    part = np.repeat(np.arange(len(blocks)), lengths)
    pl.DataFrame(
        frame
        | {
            "part": np.repeat([part for _, part, *_ in blocks], lengths),
            "label": np.repeat([label for _, _, label, _ in blocks], lengths),
            "device": np.where(device, "camera", "plug"),
            "mac": np.full(len(raw), 1, np.uint64),
            "t_ns": np.arange(len(raw), dtype=np.int64) * 100_000_000,
            "run": 2 * part + device,
            "start": np.zeros(len(raw), dtype=bool),
        }
    ).write_parquet(path / runfolder.ROWS)

    scorer = Scorer(quantize.keras_predict(autoencoder), scaler, columns)
    benign = pl.read_parquet(path / runfolder.ROWS).filter(label="benign")
    bounds = calibrate.count_bounds({"plug": benign.select(COUNT_COLUMNS).to_numpy().max(axis=0)}, 1.5, FLOORS)
    decision = calibrate.decide(benign_scores(scorer, benign, columns), 6.0, bounds, vote_k=14, vote_w=16)
    model = ModelFile(
        schemas=(CLEAN, DEVICE) if set(columns) & set(DEVICE_COLUMNS) else (CLEAN,),
        columns=columns,
        classes=classes,
        scaler=scaler.to_json(),
        decision=decision,
        generated=True,
        normal={c: (float(np.median(raw[:4000, i])), float(raw[:4000, i].max())) for i, c in enumerate(columns)},
        seed=3,
        provenance={"run": path.name},
    )
    runfolder.write_model(path, model)
    runfolder.write_provenance(path, Provenance(created="2026-11-23T12:00:00Z", seed=3))
    return path
