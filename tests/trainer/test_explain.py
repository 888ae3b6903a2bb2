"""Explanations by LIME: of what, how stable, how faithful."""

import numpy as np
import pytest

from tests.conftest import Home
from trainer import explain, runs
from trainer.explain import Explainer


@pytest.fixture(scope="module")
def run(home: Home) -> runs.Run:
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


def test_explanations_come_with_stability_fidelity_and_a_deletion_test(run):
    found = explain.explained(run, "command", seeds=3)
    assert found.generated
    rows = found.tables[0].rows
    detections = [row for row in rows if not row[0].startswith("class ")]
    classes = [row[0] for row in rows if row[0].startswith("class ")]
    assert len(detections) == 4
    assert classes == ["class gafgyt.udp", "class mirai.scan", "class mirai.syn", "class mirai.udpplain"]
    for row in rows:
        assert 0 <= row[3] <= 1
        assert -1 <= row[2] <= 1
    assert all(set(row[4].split(" / ")) <= {"yes", "no"} for row in detections)
    assert len(found.figures) == 6
    assert any("Deletion test" in sentence for sentence in found.lead)


def test_a_score_that_one_column_made_falls_without_it(run):
    """The deletion test must be able to say yes."""
    quiet = np.flatnonzero(run.part == "train")[10]
    values = run.values.copy()
    at = run.columns.index("device_L1_new_peers")
    values[quiet, at] = 1e6
    loud = runs.Run(
        **{**run.__dict__, "values": values, "label": np.where(np.arange(len(values)) == quiet, "x", "benign")}
    )
    found = explain.explained(loud, "command", seeds=2)
    assert found.tables[0].rows[0][0].startswith("x, ")
    assert found.tables[0].rows[0][5].split(" / ")[0] == "yes"
