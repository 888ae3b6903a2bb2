"""Parts follow one another in time and never touch; a device that is too short for them is named."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.protocol import OPTIMISE, TEST, TRAIN, UNUSED, Split, parts, spread

S = 1_000_000_000


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=4),
    gap_rows=st.integers(0, 60),
    gap_s=st.floats(0, 90),
)
def test_parts_are_in_time_order_with_a_gap_and_nothing_overlaps(seed, sizes, gap_rows, gap_s):
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    t_ns = rng.integers(0, 2000, len(group)) * S
    split = Split(gap_rows=gap_rows, gap_s=gap_s, min_rows=5)
    part, short = parts(t_ns, group, split)
    for code in range(len(sizes)):
        mine = np.flatnonzero(group == code)
        mine = mine[np.argsort(t_ns[mine], kind="stable")]
        if code in short:
            assert (part[mine] == TRAIN).all()
            continue
        place = {p: np.flatnonzero(part[mine] == p) for p in (TRAIN, OPTIMISE, TEST)}
        for before, after in ((TRAIN, OPTIMISE), (OPTIMISE, TEST)):
            assert len(place[before]) >= 5
            assert len(place[after]) >= 5
            assert place[after][0] - place[before][-1] > gap_rows
            if t_ns[mine[0]] != t_ns[mine[-1]]:
                assert t_ns[mine[place[after][0]]] - t_ns[mine[place[before][-1]]] >= int(gap_s * S)
        left = np.flatnonzero(part[mine] == UNUSED)
        assert (left > place[TRAIN][-1]).all()


def test_a_device_too_short_for_three_parts_only_trains_and_is_named():
    part, short = parts(np.arange(20) * S, np.zeros(20, dtype=int), Split(gap_rows=1, gap_s=0, min_rows=10))
    assert short == [0]
    assert (part == TRAIN).all()


def test_parts_without_times_are_separated_by_rows_alone():
    part, short = parts(
        np.zeros(100, dtype=np.int64), np.zeros(100, dtype=int), Split(gap_rows=5, gap_s=60, min_rows=5)
    )
    assert not short
    assert np.flatnonzero(part == OPTIMISE).tolist() == list(range(65, 80))
    assert np.flatnonzero(part == TEST).tolist() == list(range(85, 100))


@given(n=st.integers(0, 5000), limit=st.integers(1, 3000), block=st.integers(1, 300))
def test_a_spread_is_bounded_ascending_and_within_the_rows(n, limit, block):
    rows = spread(n, limit, block)
    assert len(rows) == n if n <= limit else 0 < len(rows) <= limit
    assert (np.diff(rows) > 0).all()
    assert not len(rows) or (rows[0] == 0 and rows[-1] < n)


@pytest.mark.parametrize("wrong", [{"train": 0.0}, {"train": 0.9}, {"gap_rows": -1}, {"min_rows": 0}])
def test_an_impossible_split_is_refused(wrong):
    with pytest.raises(ValueError, match=r"must|more than 1"):
        Split(**wrong)
