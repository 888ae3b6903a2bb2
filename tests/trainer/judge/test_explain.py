"""Explanations by LIME: their rows, stability and fidelity."""

import numpy as np
import pytest

from tests.conftest import Home
from trainer.judge import explain, runs
from trainer.judge.explain import Explainer


@pytest.fixture(scope="module")
def run(home: Home) -> runs.RunFolder:
    return runs.load(home.run, most=500)


def test_a_linear_score_is_explained_by_its_own_weights(run):
    explainer = Explainer(run)
    weights = dict.fromkeys(run.columns, 0.0) | {"H_L1_weight": 3.0, "device_L1_new_peers": -2.0}
    along = np.array([weights[column] for column in run.columns])
    told, fit = explainer.explain(np.zeros(len(run.columns), np.float32), lambda z: z @ along, seed=1)
    assert [column for column, _ in told[:2]] == ["H_L1_weight", "device_L1_new_peers"]
    assert dict(told)["H_L1_weight"] == pytest.approx(3.0, rel=0.1)
    assert dict(told)["device_L1_new_peers"] == pytest.approx(-2.0, rel=0.1)
    assert fit > 0.95


def test_a_copy_moves_with_its_original_and_is_not_named(run):
    explainer = Explainer(run)
    assert "MI_dir_L1_weight" not in explainer.names or "H_L1_weight" not in explainer.names
    assert len(explainer.names) == len(run.columns) - 20
    whole = explainer.whole(np.random.default_rng(1).normal(size=(4, len(explainer.names))))
    at = {column: i for i, column in enumerate(run.columns)}
    assert (whole[:, at["MI_dir_L1_weight"]] == whole[:, at["H_L1_weight"]]).all()
    assert (whole[:, at["HH_L5_weight"]] == whole[:, at["HH_jit_L5_weight"]]).all()


def test_the_same_seed_gives_the_same_explanation(run):
    explainer, z = Explainer(run), run.scaler.z(run.values[:1])[0]
    once, again, other = (explainer.explain(z, lambda r: r[:, 0] * r[:, 1], seed) for seed in (1, 1, 2))
    assert once == again
    assert once != other


@pytest.fixture(scope="module")
def found(run):
    return explain.explained(run, "command", seeds=3)


def test_explanations_come_with_stability_and_fidelity(found):
    assert found.generated
    rows = found.tables[0].rows
    classes = [row[0] for row in rows if row[0].startswith("class ")]
    assert len(rows) - len(classes) == 4
    assert classes == ["class gafgyt.udp", "class mirai.scan", "class mirai.syn", "class mirai.udpplain"]
    for row in rows:
        assert 0 <= row[3] <= 1
        assert -1 <= row[2] <= 1
    assert [figure.kind for figure in found.figures] == ["bars"] * 6 + ["lines"] * 2


def test_named_statistics_do_better_in_the_deletion_test_than_random_ones(found):
    """By statistic: an attack moves one at every decay, so single columns made normal change little."""
    by_count = {(unit, count): shares for unit, count, *shares in found.tables[1].rows}
    assert [count for unit, count in by_count if unit == "statistics"] == [1, 2, 3, 5, 10, 20]
    gateway, lime, random = by_count["statistics", 5]
    assert gateway > random
    assert lime > random
    assert gateway >= by_count["columns", 5][0]
    assert any("Deletion test on" in sentence and f"{gateway:.0%}" in sentence for sentence in found.lead)


def test_deletion_takes_the_most_important_first_and_copies_along(run):
    """Rows that are abnormal in one statistic only are normal without it; a random order seldom hits it at once."""
    explainer = Explainer(run)
    z = np.zeros((6, len(run.columns)), dtype=np.float32)
    at = [i for i, column in enumerate(run.columns) if column.endswith("_weight") and column[:2] in ("MI", "H_")]
    assert len(at) == 10
    z[:, at] = 5.0
    statistics, columns = explain.deletion(explainer, z, lambda rows: ~rows.any(axis=1), np.zeros_like(z), z**2)
    assert statistics.gateway == (1.0,) * len(statistics.counts)
    assert statistics.random[0] < 0.5
    assert dict(zip(columns.counts, columns.gateway, strict=True)) == {1: 0, 2: 0, 3: 0, 5: 1, 10: 1, 20: 1, 50: 1}


def test_a_score_that_one_column_made_falls_without_it(run):
    """The deletion test must be able to say yes."""
    quiet = np.flatnonzero(run.part == "train")[10]
    values = run.values.copy()
    at = run.columns.index("device_L1_new_peers")
    values[quiet, at] = 1e6
    loud = runs.RunFolder(
        **{**run.__dict__, "values": values, "label": np.where(np.arange(len(values)) == quiet, "x", "benign")}
    )
    found = explain.explained(loud, "command", seeds=2)
    assert found.tables[0].rows[0][0].startswith("x, ")
    assert found.tables[1].rows[0][:3] == ("statistics", 1, 1.0)
