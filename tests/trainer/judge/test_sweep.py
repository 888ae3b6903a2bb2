"""Sweeps over columns and over activation and optimiser."""

from pathlib import Path

import pytest

pytest.importorskip("keras")

from trainer.config import ClassifierSettings, Config, DatasetEntry, Training
from trainer.data.protocol import Split
from trainer.fit import fit
from trainer.judge import sweep


@pytest.fixture
def config(make_table) -> Config:
    return Config(
        (DatasetEntry("rows", Path("x")),),
        columns=make_table().columns[:8],
        split=Split(gap_rows=10, gap_s=5.0),
        autoencoder=Training(epochs=3, batch=256),
        classifier=ClassifierSettings(enabled=False),
    )


def test_more_columns_make_larger_networks_and_copies_come_last(config, make_table):
    found = sweep.over_columns(config, make_table(), (2, 4, 50), "cmd")
    rows = found.tables[0].rows
    assert [row[0] for row in rows] == [2, 4, 7, 8]  # of eight columns one repeats another; 50 there are not
    assert [row[1] for row in rows] == sorted(row[1] for row in rows)
    assert any("labelled attacks" in sentence for sentence in found.limits)
    for row in rows:
        accuracy, recall, lowest, fpr = row[4:8]
        assert accuracy == pytest.approx((recall + 1 - fpr) / 2)
        assert float(lowest.split()[1]) <= recall + 5e-4


def test_each_activation_is_tried_with_each_optimiser(config, make_table):
    found = sweep.over_activation(config, make_table(), ("tanh", "relu"), ("adam", "sgd"), "cmd")
    rows = found.tables[0].rows
    assert [row[:2] for row in rows] == [("tanh", "adam"), ("tanh", "sgd"), ("relu", "adam"), ("relu", "sgd")]
    best = min(rows, key=lambda row: row[4])
    assert f"lowest with {best[0]} and {best[1]}" in found.lead[0]
    assert [series.name for series in found.figures[0].series] == ["adam", "sgd"]


def test_types_that_cannot_be_told_apart_count_once_in_recall(config, make_table):
    """BASHLITE tcp and udp are one type, as for the classifier, however many rows each has."""
    table = make_table(attacks={"gafgyt.tcp": 400, "gafgyt.udp": 200, "mirai.syn": 300, "mirai.ack": 100})
    (row,) = sweep.over_activation(config, table, ("tanh",), ("adam",), "cmd").tables[0].rows
    rates = fit.fit(config, table, lambda line: None).metrics["detection_rate"]
    share = {label: found["full"] for label, found in rates.items()}
    both = (400 * share["gafgyt.tcp"] + 200 * share["gafgyt.udp"]) / 600
    assert row[6] == pytest.approx((both + share["mirai.syn"] + share["mirai.ack"]) / 3)
    counted = {"mirai.ack": (10, 0.5), "mirai.udp": (30, 0.1), "mirai.scan": (0, None)}
    assert sweep.recalls(counted, {"mirai.ack": "mirai", "mirai.udp": "mirai"}) == {"mirai": pytest.approx(0.2)}
