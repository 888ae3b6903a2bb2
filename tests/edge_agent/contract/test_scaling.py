"""Scaling: the one definition of what the networks see and what their error is measured against."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edge_agent.contract import scaling
from edge_agent.contract.scaling import SCALE_FLOOR, Scaler, ScalingError, row_error

finite = st.floats(-(2.0**40), 2.0**40, width=32)


def unit(columns: int, squash: str = "none", clip: float | None = None) -> Scaler:
    return Scaler(squash, np.zeros(columns), np.ones(columns), clip)


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2), elements=finite))
def test_squash_keeps_sign_order_and_zero(values: np.ndarray) -> None:
    z = unit(values.shape[1], "log1p").z(values)
    assert np.isfinite(z).all()
    assert (np.sign(z) == np.sign(values)).all()
    column, squashed = np.sort(values[:, 0]), z[np.argsort(values[:, 0]), 0]
    assert (np.diff(squashed) >= 0).all(), column


def test_squash_is_the_logarithm_of_one_more() -> None:
    values = np.array([[np.e - 1, 1 - np.e, 0, 1e6]])
    assert unit(4, "log1p").z(values) == pytest.approx(np.array([[1, -1, 0, 13.815512]]), rel=1e-6)


@pytest.mark.parametrize("squash", ["log1p", "none"])
def test_fitted_columns_have_mean_0_and_deviation_1(squash: str) -> None:
    values = np.random.default_rng(1).lognormal(3, 2, (5000, 4))
    z = scaling.fit(values, squash=squash, clip=None).z(values)
    assert z.dtype == np.float32
    assert z.mean(axis=0) == pytest.approx(0, abs=1e-3)
    assert z.std(axis=0) == pytest.approx(1, rel=1e-3)


def test_constant_column_is_divided_by_the_floor_not_by_nothing() -> None:
    values = np.column_stack([np.full(100, 60.0), np.arange(100.0)])
    scaler = scaling.fit(values)
    assert scaler.scale[0] == SCALE_FLOOR
    assert scaler.z(values)[:, 0] == pytest.approx(0, abs=1e-4)


def test_one_row_is_enough_to_fit() -> None:
    scaler = scaling.fit(np.array([[1.0, 2.0]]))
    assert scaler.z(np.array([[1.0, 2.0]])) == pytest.approx(0, abs=1e-5)


def test_network_input_is_clipped_and_the_target_of_the_error_is_not() -> None:
    """A spike in one column must reach the score whole: clipped, z = 1000 was found in 5 % of cases, else in 100 %."""
    scaler = unit(2, clip=10.0)
    z = scaler.z(np.array([[1000.0, -3.0]]))
    assert z.tolist() == [[1000.0, -3.0]]
    assert scaler.network_input(z).tolist() == [[10.0, -3.0]]
    assert row_error(z, scaler.network_input(z)).tolist() == [990.0**2 / 2]
    assert unit(2, clip=None).network_input(z) is z


def test_z_leaves_the_callers_rows_alone() -> None:
    values = np.array([[5.0, -7.0]], dtype=np.float32)
    unit(2, "log1p", 1.0).z(values)
    assert values.tolist() == [[5.0, -7.0]]


@given(st.integers(1, 5), st.sampled_from(["log1p", "none"]), st.sampled_from([None, 5.0, 10.0]))
def test_scaler_comes_back_equal_from_json(columns: int, squash: str, clip: float | None) -> None:
    values = np.random.default_rng(columns).lognormal(1, 1, (20, columns))
    scaler = scaling.fit(values, squash=squash, clip=clip)
    again = Scaler.from_json(json.loads(json.dumps(scaler.to_json())))
    assert (again.squash, again.clip) == (squash, clip)
    assert np.array_equal(again.z(values), scaler.z(values))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"squash": "sqrt", "mean": [0.0], "scale": [1.0], "clip": None}, "unknown squash 'sqrt'"),
        ({"squash": "none", "mean": [0.0, 1.0], "scale": [1.0], "clip": None}, "mean has shape"),
        ({"squash": "none", "mean": [[0.0]], "scale": [[1.0]], "clip": None}, "mean has shape"),
        ({"squash": "none", "mean": [0.0], "scale": [0.0], "clip": None}, "scale above 0"),
        ({"squash": "none", "mean": [float("nan")], "scale": [1.0], "clip": None}, "must be finite"),
        ({"squash": "none", "mean": [0.0], "scale": [1.0], "clip": -1.0}, "clip must be above 0"),
    ],
)
def test_scaler_that_cannot_be_used_says_why(data: dict, said: str) -> None:
    with pytest.raises(ScalingError, match=said):
        Scaler.from_json(data)


@pytest.mark.parametrize(
    "values", [np.empty((0, 3)), np.zeros(3), np.array([[1.0, np.nan]]), np.array([[np.inf, 1.0]])]
)
def test_rows_that_cannot_be_fitted_on_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ScalingError):
        scaling.fit(values)
