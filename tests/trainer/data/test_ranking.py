"""Fisher scores follow the published formula, copies do not count twice, constant columns have no score."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.contract.columns import NBAIOT_COLUMNS
from trainer.data.ranking import best, fisher


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 5))
def test_fisher_is_the_naive_formula(seed, classes):
    rng = np.random.default_rng(seed)
    code = np.concatenate([np.arange(classes), rng.integers(0, classes, 60)])
    values = rng.normal(size=(len(code), 3)) * 10 + code[:, None] * rng.normal(size=3)
    for j, score in enumerate(fisher(values, code)):
        x, mean = values[:, j], values[:, j].mean()
        share = [np.mean(code == c) for c in range(classes)]
        between = sum(p * (x[code == c].mean() - mean) ** 2 for c, p in enumerate(share))
        within = sum(p * x[code == c].var() for c, p in enumerate(share))
        assert score == pytest.approx(between / within)


def test_a_constant_column_has_no_score_and_one_constant_per_class_an_infinite_one():
    values = np.array([[0.1, 1.0], [0.1, 1.0], [0.1, 2.0], [0.1, 2.0]])
    scores = fisher(values, np.array([0, 0, 1, 1]))
    assert np.isnan(scores[0])
    assert scores[1] == np.inf


def test_copies_are_collapsed_and_reported():
    scores = np.full(115, 0.5)
    for name, score in (
        ("MI_dir_L5_weight", 9.0),
        ("H_L5_weight", 9.0),
        ("HH_jit_L1_weight", 8.0),
        ("HH_L1_weight", 8.0),
    ):
        scores[NBAIOT_COLUMNS.index(name)] = score
    chosen, copies = best(NBAIOT_COLUMNS, scores, 2)
    assert chosen == ("H_L5_weight", "HH_L1_weight")
    assert len(copies) == 20
    assert copies["MI_dir_L5_weight"] == "H_L5_weight"


def test_a_column_without_its_original_is_not_a_copy():
    assert best(("MI_dir_L5_weight",), np.array([1.0]), 1) == (("MI_dir_L5_weight",), {})


def test_more_columns_than_have_a_score_cannot_be_chosen():
    with pytest.raises(ValueError, match="only 1 distinct columns"):
        best(("H_L5_weight", "H_L5_mean"), np.array([1.0, np.nan]), 2)
