"""The original studies by preset, on rows made of noise: rows counted, figures measured twice, labels left out."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from edge_agent.capture.features import Extractor
from edge_agent.capture.sources import open_file
from edge_agent.contract import bundle
from edge_agent.contract.columns import CLEAN, NBAIOT_COLUMNS
from edge_agent.detection.detector import Detector
from trainer.__main__ import main
from trainer.config import plain
from trainer.data import catalogue, protocol, published
from trainer.report import findings

pytest.importorskip("keras")

from trainer import config, study
from trainer.fit import fit

DEVICES = ("camera", "plug")


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """A Parquet file of rows shaped like N-BaIoT: two devices, benign and the ten attacks."""
    rng = np.random.default_rng(8)
    world = rng.normal(size=(4, 115)) / 2
    frames = []
    for d, device in enumerate(DEVICES):
        for i, label in enumerate(catalogue.LABELS):
            n = 1800 if label == "benign" else 220
            logs = 3 + rng.normal(size=(n, 4)) @ world + 0.2 * rng.normal(size=(n, 115)) + d * 0.1
            if label != "benign":
                logs[:, i::11] += 4
            frame = pl.DataFrame(np.expm1(np.clip(logs, 0, 12)).astype(np.float32), schema=list(NBAIOT_COLUMNS))
            frames.append(frame.with_columns(device=pl.lit(device), label=pl.lit(label)))
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pl.concat(frames).write_parquet(path)
    return path


def preset(folder: Path, name: str, **change: object) -> Path:
    """A preset with trainings of a few epochs, as a file of its own."""
    settings = plain(config.load(Path(name)))
    settings["autoencoder"] |= {"epochs": 3, "learning_rate": 0.01}
    settings["classifier"]["training"] |= {"epochs": 3}
    settings["study"]["devices"] = {}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings | change))
    return path


@pytest.fixture(scope="module")
def seed_run(rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    args = ["study", str(preset(folder, "seed")), "--data", str(rows), "--out", str(folder / "run"), "--float"]
    assert main(args) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def found(seed_run) -> findings.Findings:
    (of_study,) = findings.load(seed_run)
    return of_study


def table(of: findings.Findings, title: str) -> findings.Table:
    return next(t for t in of.tables if t.title.startswith(title))


def test_the_table_of_n_agrees_with_the_fit_and_with_its_own_counts(found, seed_run):
    """The FPR of test rows at the preset's N is computed twice: here and by the fit."""
    grid = table(found, "τ = mean + N·std")
    metrics = json.loads((seed_run / "metrics.json").read_text())
    assert [row[0] for row in grid.rows] == list(range(1, 11))
    assert grid.rows[9][-1] == pytest.approx(metrics["false_positive_rate"]["full"])
    assert grid.rows[9][1] == pytest.approx(metrics["threshold"]["full"]["tau"], rel=1e-5)
    false = [row[3] for row in grid.rows]
    assert false == sorted(false, reverse=True)
    n = metrics["rows"]["optimise"]
    for _, _, accuracy, fp, fn, precision, recall, fpr, *_ in grid.rows:
        assert fpr == pytest.approx(fp / n)
        assert recall == pytest.approx(1 - fn / n)
        assert accuracy == pytest.approx(1 - (fp + fn) / (2 * n))
        assert precision == pytest.approx((n - fn) / (n - fn + fp))


def test_labels_that_the_study_dropped_do_not_train_and_are_scored_separately(found, seed_run):
    metrics = json.loads((seed_run / "metrics.json").read_text())
    assert not {"gafgyt.tcp", "gafgyt.udp"} & set(metrics["detection_rate"])
    gafgyt = table(found, "Rows").rows[2]
    assert gafgyt == ("gafgyt", 5 * 440, 3 * 440, 3 * 440, 2_838_272, 1_032_056)
    dropped = next(row for row in table(found, "Known defects").rows if row[0].startswith("2 "))
    assert 0 <= dropped[3] <= 1
    assert "880 of the rows dropped" in dropped[4]


def test_every_known_defect_is_named(found):
    defects = table(found, "Known defects").rows
    assert {int(row[0].split()[0]) for row in defects} == set(range(1, 12))
    in_time_order = [row[3] for row in defects if row[0].startswith("1 ")]
    assert len(in_time_order) == 3
    assert None not in in_time_order


def test_columns_that_repeat_others_are_counted_once_beside_the_ranking(found):
    top = table(found, "Ten best columns")
    assert len(top.rows) == 10
    assert top.columns == ("rank", "detection", "F", "families", "F", "Mirai types", "F")
    for at in (2, 4, 6):
        scores = [row[at] for row in top.rows]
        assert scores == sorted(scores, reverse=True)


def test_each_classifier_has_three_splits_and_a_confusion_matrix(found):
    for name, classes in (("families", 3), ("Mirai types", 5)):
        rows = table(found, f"Classifier of {name}").rows
        assert [row[0] for row in rows] == list(study.HOW)
        matrix = next(f for f in found.figures if f.title.startswith(f"Confusion of {name}, as the study"))
        counts = np.array([s.y for s in matrix.series])
        assert counts.shape == (classes, classes)
        assert rows[0][1] == pytest.approx(np.trace(counts) / counts.sum())


def test_the_run_is_one_that_others_can_read(seed_run):
    assert {"model.json", "autoencoder.keras", "config.yaml", "history.json"} <= {p.name for p in seed_run.iterdir()}
    kept = config.load(seed_run / "config.yaml")
    assert kept.split.order == "random"
    assert kept.study.leave_out == ("gafgyt.tcp", "gafgyt.udp")


def test_the_paper_gives_each_device_a_model_and_a_window(rows, tmp_path):
    path = preset(
        tmp_path,
        "paper",
        study={"per_device": True, "devices": {"camera": {"learning_rate": 0.01, "epochs": 2, "tr": 0.04, "ws": 82}}},
    )
    assert main(["study", str(path), "--data", str(rows), "--out", str(tmp_path / "run"), "--float"]) == 0
    (of_paper,) = findings.load(tmp_path / "run")
    per_device = table(of_paper, "One autoencoder per device")
    assert [row[0] for row in per_device.rows] == list(DEVICES)
    published = [(row[4], row[6]) for row in per_device.rows]
    assert published == [(0.04, 82), (None, None)]
    assert [row[2] for row in per_device.rows] == [2, 3]


def test_published_rows_give_a_bundle_that_judges_live_packets(rows, tmp_path, write_pcap, traffic):
    """The preset nbaiot-live leaves out the date in HH_jit and the copies; the converter makes the bundle."""
    path = preset(tmp_path, "nbaiot-live", classifier={"enabled": False})
    assert main(["fit", str(path), "--data", str(rows), "--out", str(tmp_path / "run")]) == 0
    convert = ["converter", str(tmp_path / "run"), "--out", str(tmp_path / "bundle")]
    subprocess.run([sys.executable, "-m", "edge_agent.command", *convert], check=True, capture_output=True)
    found = bundle.load(tmp_path / "bundle")
    assert found.manifest.schemas == (CLEAN,)
    assert len(found.manifest.columns) == 85
    detector, extractor = Detector(found), Extractor(max_streams=64)
    with open_file(write_pcap(tmp_path / "live.pcap", traffic(1, 900))) as source:  # past the stricter first minutes
        live = extractor.push(source, 900)
    detection = (detector.observe(live) + detector.finish())[-1]  # nothing like the noise it learnt
    assert detection.score > detection.threshold


def test_thirds_at_random_are_as_large_as_the_study_printed():
    split = config.load(Path("seed")).split
    n = 555_932
    part, short = protocol.parts(np.zeros(n, np.int64), np.zeros(n, np.int32), split)
    assert np.bincount(part).tolist() == [0, 185_310, 185_311, 185_311]
    assert short == []
    again, _ = protocol.parts(np.zeros(n, np.int64), np.ones(n, np.int32), split)
    np.testing.assert_array_equal(part, again)


def test_a_scaler_fitted_on_optimise_rows_too_is_another(make_table):
    table = make_table()
    base = config.Config((config.DatasetEntry("rows", Path("x")),), columns=table.columns[:8])
    base = dataclasses.replace(
        base,
        split=protocol.Split(gap_rows=10, gap_s=5.0),
        autoencoder=config.Training(epochs=1),
        classifier=config.ClassifierSettings(enabled=False),
    )
    leaky = dataclasses.replace(base, scaling=config.Scaling(fit_on="train+optimise"))
    means = [fit.fit(c, table, lambda line: None).scaler.mean for c in (base, leaky)]
    assert np.abs(means[0] - means[1]).max() > 0


def test_the_catalogue_is_that_of_the_published_files(nbaiot_rows):
    with open(nbaiot_rows / "nbaiot_file_catalog.csv", newline="") as file:
        listed = {
            (
                r["device_name"],
                "benign" if r["diagnostic"] == "benign" else f"{r['diagnostic']}.{r['attack_type']}",
            ): int(r["n_samples"])
            for r in csv.DictReader(file)
        }
    assert listed == catalogue.PUBLISHED
    assert sum(listed.values()) == 7_062_606


@pytest.fixture
def whole_tree(tmp_path) -> Path:
    """All 89 published files, Kaggle's names, one row each."""
    text = ",".join(NBAIOT_COLUMNS) + "\n" + ",".join(["1.5"] * 115) + "\n"
    for device, label in catalogue.PUBLISHED:
        number = published.DEVICES.index(device) + 1
        (tmp_path / f"{number}.{label}.csv").write_text(text)
    return tmp_path


def test_a_complete_data_set_with_rows_missing_is_refused_by_file(whole_tree, capsys):
    assert main(["study", "seed", "--data", str(whole_tree), "--out", str(whole_tree / "run")]) == 2
    message = capsys.readouterr().err
    assert "Danmini_Doorbell benign has 1 rows, published are 49,548 (and 88 files more)" in message


def test_a_part_of_the_data_set_is_not_reported_as_damaged(whole_tree):
    (whole_tree / "1.mirai.ack.csv").unlink()
    held = catalogue.count_rows(config.DatasetEntry("nbaiot", whole_tree))
    assert len(held) == 88
    assert set(held.values()) == {1}
    assert catalogue.differences(held) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["study", "sead", "--out", "x"], "sead: cannot be read"),
        (["study", "seed", "--data", "nowhere", "--out", "x"], "nowhere: no such folder"),
        (["sweep", "seed", "--data", "nowhere", "--out", "x", "--steps", "3,x"], "'3,x' is not a list of numbers"),
        (["sweep", "seed", "--out", "x", "--optimisers", "newton"], "unknown optimiser 'newton'; known: adam,"),
    ],
)
def test_a_usage_error_is_one_line(args, message, capsys):
    assert main(args) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1
    assert message in err[0]
