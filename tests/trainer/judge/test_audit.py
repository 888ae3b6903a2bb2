"""The leakage audit: what it must find by itself, and what it must leave alone."""

import shutil

import numpy as np
import pytest

from tests.conftest import Home
from trainer.__main__ import main
from trainer.judge import audit
from trainer.report import findings

RNG = np.random.default_rng(5)


def test_copies_and_constant_columns_are_found_from_the_values():
    values = RNG.normal(size=(500, 4)).astype(np.float32)
    values[:, 2], values[:, 3] = values[:, 0], 7.0
    columns = ("a", "b", "c", "d")
    assert audit.duplicates(values, columns) == {"c": "a"}
    assert audit.constant(values, columns) == ("d",)


def test_zero_and_minus_zero_are_the_same():
    values = np.zeros((3, 2), np.float32)
    values[:, 1] = -0.0
    assert audit.duplicates(values, ("a", "b")) == {"b": "a"}


def test_rows_on_both_sides_of_a_split_are_counted():
    values = RNG.normal(size=(300, 5)).astype(np.float32)
    values[200:250] = values[:50]
    values[250:300] = values[50:100] * 1.0001
    one, other = np.arange(200), np.arange(200, 300)
    assert audit.on_both_sides(values, one, other) == pytest.approx(0.5)
    assert audit.on_both_sides(values, one, other, digits=2) > 0.9
    assert audit.on_both_sides(values, np.arange(0), other) == 0.0


def test_a_unix_time_and_what_decays_from_one_are_clocks():
    """As HH_jit of the published rows: the time at a channel's first packet, then less and less of it."""
    values = np.abs(RNG.normal(50, 20, size=(2000, 2))).astype(np.float32)
    values[::9, 1] = 1_505_912_833 - RNG.integers(0, 5000, len(values[::9]))
    found = audit.clocks(values, ("size", "jitter"), np.full(2000, "x"))
    assert set(found) == {"jitter"}
    assert "Unix time" in found["jitter"]


def test_a_column_that_only_grows_is_a_clock_and_a_count_that_fills_up_is_none():
    n = np.arange(3000)
    values = np.stack([n * 0.1 + RNG.normal(size=3000), 100 * (1 - 0.99**n) + RNG.normal(size=3000)], axis=1)
    found = audit.clocks(values.astype(np.float32), ("uptime", "weight"), np.full(3000, "x"))
    assert set(found) == {"uptime"}


def test_large_statistics_that_pass_through_the_range_of_dates_are_no_clock():
    values = np.exp(RNG.uniform(0, 30, size=(5000, 1))).astype(np.float32)
    assert audit.clocks(values, ("variance",), np.full(5000, "x")) == {}


def test_the_best_comparison_is_found_whichever_way_it_points():
    attack = np.arange(400) >= 200
    values = np.stack([RNG.normal(size=400), np.where(attack, -5, 5) + RNG.normal(size=400)], axis=1)
    best, other = audit.rules(values.astype(np.float32), attack, ("noise", "tell"))
    assert (best.column, best.above) == ("tell", False)
    assert best.auc == pytest.approx(1.0)
    assert best.accuracy == pytest.approx(1.0)
    assert other.auc < 0.65


def test_generated_rows_hold_no_clock(home: Home):
    found = audit.analyse(home.run)
    assert "0 reveal when a row was captured" in found.lead[0]
    assert not any("time of capture" in warning for warning in found.warnings)


def test_published_rows_are_seen_to_hold_the_date(real_captures, tmp_path, capsys):
    """HH_jit holds the Unix time of capture, and benign rows and attacks were captured on different days."""
    rows, folder = real_captures.parent / "nbaiot", tmp_path / "nbaiot"
    folder.mkdir()
    shutil.copy(rows / "danmini_doorbell.benign.csv.gz", folder / "1.benign.csv.gz")
    shutil.copy(rows / "danmini_doorbell.gafgyt_scan.csv.gz", folder / "1.gafgyt.scan.csv.gz")
    config = tmp_path / "fit.yaml"
    config.write_text(
        "data: [{kind: nbaiot, path: nbaiot}]\nschemas: [nbaiot115-compat-1]\n"
        "autoencoder: {epochs: 3}\nclassifier: {enabled: false}\n"
    )
    assert main(["fit", str(config), "--out", str(tmp_path / "run")]) == 0
    assert main(["audit", str(tmp_path / "run")]) == 0
    (found,) = findings.load(tmp_path / "run")
    flagged = dict(found.tables[0].rows)
    clocks = {column for column, why in flagged.items() if "Unix time" in why}
    assert clocks == {f"HH_jit_L{decay}_mean" for decay in ("5", "3", "1", "0.1", "0.01")}
    assert {column for column, why in flagged.items() if "equal to HH_" in why} >= {"HH_jit_L5_weight"}
    assert any("alone separates attack rows" in warning for warning in found.warnings)
    changed = found.tables[-1]
    assert changed.title == "What dropping the flagged columns changes"
    assert changed.rows[0][1] - changed.rows[1][1] == len(flagged)
    assert "Unix time" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_named(tmp_path, capsys):
    assert main(["audit", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
