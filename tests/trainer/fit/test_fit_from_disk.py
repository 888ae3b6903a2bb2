"""Rows on disk are read once and completely, and give the same training as rows in memory."""

import dataclasses
import json
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from edge_agent.contract import scaling
from edge_agent.contract.columns import CLEAN
from trainer import config as configs
from trainer.__main__ import main
from trainer.data import dataset, row_store
from trainer.data.row_table import DatasetError, RowTable
from trainer.fit import fit, fit_from_disk
from trainer.fit.row_parts import split
from trainer.judge import runs

TEXT = """
data:
  - {kind: rows, path: camera.parquet}
  - {kind: rows, path: plug.parquet}
schemas: [nbaiot115-clean-1]
columns: [H_L5_weight, H_L5_mean, H_L1_mean, HH_L0.1_mean, HH_L0.01_pcc, HpHp_L1_std]
split: {gap_rows: 20, gap_s: 0.0}
attack_split: {gap_rows: 5, gap_s: 0.0}
autoencoder: {epochs: 15, batch: 128, patience: 15}
classifier: {training: {epochs: 3, batch: 128, patience: 3}}
"""


@pytest.fixture
def made(tmp_path: Path, make_table: Callable[..., RowTable]) -> Path:
    """A config and its two files of rows."""
    table = make_table(benign=1700, columns=tuple(configs.settings.build(configs.Config, _data(TEXT), "x").columns))
    for code, device in enumerate(table.devices):
        own = table.device == code
        pl.DataFrame(
            {
                **{c: table.values[own, i] for i, c in enumerate(table.columns)},
                "label": np.array(table.labels)[table.label[own]],
                "device": [device] * int(own.sum()),
                "t_ns": table.t_ns[own],
            }
        ).write_parquet(tmp_path / f"{device}.parquet", metadata={dataset.SCHEMA_KEY: CLEAN})
    (tmp_path / "fit.yaml").write_text(TEXT)
    return tmp_path / "fit.yaml"


def _data(text: str) -> dict[str, object]:
    import yaml

    return dict(yaml.safe_load(text))


def prepared(made: Path) -> row_store.RowStore:
    """A store of blocks so small that the rows fill many, the last one in part."""
    return row_store.prepare(configs.load(made), CLEAN, made.parent / "store", block_rows=256)


def test_a_store_holds_the_same_rows_as_a_table_in_memory(made):
    rows, table = prepared(made), fit.load(configs.load(made))
    assert rows.blocks > 10
    taken = rows.take(np.arange(len(rows)))
    for name in ("values", "device", "label", "capture", "t_ns", "mac"):  # in memory sorted by capture, device, label
        order = np.lexsort((table.t_ns, table.label, table.device))
        other = np.lexsort((taken.t_ns, taken.label, taken.device))
        assert (getattr(taken, name)[other] == getattr(table, name)[order]).all(), name
    assert (taken.devices, taken.labels, taken.captures) == (table.devices, table.labels, table.captures)
    some = np.array([0, 255, 256, 700, len(table) - 1])
    assert (rows.take(some).values == taken.values[some]).all()


def test_sources_are_read_once(made):
    def written() -> list[tuple[int, int]]:
        files = [path.stat() for path in sorted(prepared(made).folder.glob("block-*"))]
        return [(file.st_ino, file.st_mtime_ns) for file in files]

    assert written() == written()


def test_readers_at_the_same_time_read_the_sources_once(made):
    """Workers of one machine share a store: one reads the sources, and the others wait. A second reading would show.

    It would replace the files, or take them away from a reader that had already finished.
    """
    results: list[tuple[row_store.RowStore, list[tuple[int, int]]]] = []
    together = threading.Barrier(4)

    def read() -> None:
        together.wait(10)
        rows = prepared(made)
        files = [path.stat() for path in sorted(rows.folder.glob("block-*"))]
        results.append((rows, [(file.st_ino, file.st_mtime_ns) for file in files]))

    readers = [threading.Thread(target=read) for _ in range(together.parties)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
    assert len(results) == len(readers)
    assert all(result == results[0] for result in results)
    assert len(results[0][1]) == results[0][0].blocks


def test_a_reading_that_was_cut_off_begins_anew(made):
    whole = prepared(made)
    (whole.folder / row_store.NAME).unlink()
    (whole.folder / "block-000000.parquet").write_bytes(b"half")
    assert len(prepared(made)) == len(whole)


def test_a_store_of_something_else_is_refused(made):
    folder = prepared(made).folder
    made.write_text(TEXT.replace("H_L5_weight, ", ""))
    with pytest.raises(DatasetError, match=r"other settings \(columns\)"):
        prepared(made)
    made.write_text(TEXT)
    camera = made.parent / "camera.parquet"
    pl.read_parquet(camera).head(1000).write_parquet(camera)
    with pytest.raises(DatasetError, match=r"camera\.parquet: has changed"):
        prepared(made)
    (folder / row_store.NAME).write_text("{}")
    with pytest.raises(DatasetError, match="not a complete store"):
        prepared(made)


def test_a_damaged_block_is_named(made):
    rows = prepared(made)
    (rows.folder / "block-000003.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"block-000003\.parquet: cannot be read"):
        rows.take(np.arange(len(rows)))
    pl.read_parquet(rows.folder / "block-000002.parquet").head(9).write_parquet(rows.folder / "block-000003.parquet")
    with pytest.raises(DatasetError, match=r"block-000003\.parquet: has 9 rows instead of 256"):
        rows.index()


def test_a_full_disk_is_reported_with_the_block_and_the_next_fit_reads_again(made, capsys):
    """A limit of the file size in place of a full disk: to a writer both are an error of the system."""
    words = ["fit", str(made), "--out", str(made.parent / "run"), "--store", str(made.parent / "store")]
    unbounded = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, unbounded[1]))
    try:
        assert main(words) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unbounded)
    assert "block-000000.parquet: cannot be written, " in capsys.readouterr().err
    assert prepared(made).blocks > 10


def test_a_fit_from_a_store_is_like_one_in_memory(made, tmp_path):
    """The same split and scaler from all train rows; a loss as low, although batches are drawn differently."""
    words, store = ["fit", str(made)], prepared(made).folder
    assert main([*words, "--out", str(tmp_path / "memory")]) == 0
    assert main([*words, "--out", str(tmp_path / "disk"), "--store", str(store)]) == 0
    memory, disk = runs.load(tmp_path / "memory"), runs.load(tmp_path / "disk")
    assert disk.scaler.mean == pytest.approx(memory.scaler.mean)
    assert disk.scaler.scale == pytest.approx(memory.scaler.scale)
    for part in ("train", "optimise", "test"):
        assert (disk.values[disk.rows(part)] == memory.values[memory.rows(part)]).all(), part
    one, other = (
        json.loads((tmp_path / name / "metrics.json").read_text())["autoencoder"] for name in ("memory", "disk")
    )
    assert other["validation_loss"] == pytest.approx(one["validation_loss"], rel=0.15)
    whole = json.loads((tmp_path / "disk" / "metrics.json").read_text())["whole"]
    assert whole["train"] == len(memory.rows("train"))


def test_every_train_row_takes_part_in_every_epoch_and_no_other(made):
    """Also those that are not in the run folder: measuring uses a bounded sample, training all rows."""
    rows, chosen = prepared(made), configs.load(made)
    run = fit_from_disk.train(dataclasses.replace(chosen, part_rows=512), rows)
    parts = split(chosen, rows.index())
    values = rows.take(np.arange(len(rows))).values[parts.train]
    scaler = scaling.fit(values)
    assert run.scaler.mean == pytest.approx(scaler.mean)
    expected = run.scaler.network_input(run.scaler.z(values))
    batches = fit_from_disk.epochs(
        rows, run.columns, np.sort(parts.train), run.scaler, 128, np.ones(len(parts.train), np.float32)
    )
    both = [[x.copy() for x, _, _ in batches(np.random.default_rng(seed))] for seed in range(2)]
    for epoch in both:
        assert {len(x) for x in epoch[:-1]} == {128}
        got = np.concatenate(epoch)
        assert got.shape == expected.shape
        assert (np.sort(got, axis=0) == np.sort(expected, axis=0)).all()
    assert not (np.concatenate(both[0]) == np.concatenate(both[1])).all()
    assert run.metrics["rows"]["train"] <= 512 < run.metrics["whole"]["train"] == len(parts.train)


def test_the_best_columns_can_be_chosen_from_a_store(made, tmp_path):
    store = str(prepared(made).folder)
    words = ["fit", str(made), "--out", str(tmp_path / "run"), "--store", store, "--top-n", "3"]
    assert main(words) == 0
    assert len(runs.load(tmp_path / "run").columns) == 3
