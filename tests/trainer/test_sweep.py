"""Sweeps over columns and over activation and optimiser."""

from pathlib import Path

import pytest

pytest.importorskip("keras")

from trainer import sweep
from trainer.config import ClassifierSettings, Config, Entry, Training
from trainer.protocol import Split


@pytest.fixture
def config(make_table) -> Config:
    return Config(
        (Entry("rows", Path("x")),),
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
        accuracy, recall, fpr = row[4:7]
        assert accuracy == pytest.approx((recall + 1 - fpr) / 2)


def test_each_activation_is_tried_with_each_optimiser(config, make_table):
    found = sweep.over_activation(config, make_table(), ("tanh", "relu"), ("adam", "sgd"), "cmd")
    rows = found.tables[0].rows
    assert [row[:2] for row in rows] == [("tanh", "adam"), ("tanh", "sgd"), ("relu", "adam"), ("relu", "sgd")]
    best = min(rows, key=lambda row: row[4])
    assert f"lowest with {best[0]} and {best[1]}" in found.lead[0]
    assert [series.name for series in found.figures[0].series] == ["adam", "sgd"]
