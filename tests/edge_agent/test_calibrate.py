"""From benign scores to limits: the published formula, the vote that must not be reached, the counts."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_agent import calibrate
from edge_agent.calibrate import COUNT_COLUMNS, Benign, count_bounds, decide, highest_vote, threshold, vote_statistic
from edge_agent.contract.bundle import Decision

SCORES = st.integers(1, 60).flatmap(lambda n: arrays(np.float64, n, elements=st.floats(0, 1e6, width=32)))


def test_tau_is_mean_plus_n_standard_deviations():
    found = threshold(np.array([1.0, 2.0, 3.0, 6.0]), n=3.0, highest=0.0, margin=2.0)
    assert found.tau == pytest.approx(3.0 + 3.0 * np.sqrt(3.5))
    assert found.limit == found.tau
    assert (found.mean, found.min, found.max, found.rows, found.n) == (3.0, 1.0, 6.0, 4, 3.0)


def test_the_limit_keeps_its_margin_from_the_highest_benign_vote():
    found = threshold(np.array([1.0, 1.0]), n=3.0, highest=5.0, margin=2.0)
    assert (found.tau, found.highest, found.limit) == (1.0, 5.0, 10.0)


@pytest.mark.parametrize(("scores", "words"), [([], "no benign rows"), ([1.0, np.nan], "finite"), ([np.inf], "finite")])
def test_a_threshold_of_nothing_or_of_what_is_no_number_is_refused(scores, words):
    with pytest.raises(ValueError, match=words):
        threshold(np.array(scores), n=3.0, highest=0.0, margin=2.0)


@given(SCORES, st.integers(1, 20), st.integers(0, 10))
def test_the_vote_statistic_exceeds_a_limit_exactly_when_k_of_the_last_w_scores_do(scores, k, more):
    """The link between a limit and the detector's vote: both must mean the same."""
    w = k + more
    statistic = vote_statistic(scores, k, w)
    for limit in (0.5, float(np.median(scores)), float(scores.max())):
        voted = [int((scores[max(0, i - w + 1) : i + 1] > limit).sum()) >= k for i in range(len(scores))]
        assert (statistic > limit).tolist() == voted


@given(SCORES, st.integers(1, 5), st.integers(1, 6))
def test_the_highest_vote_is_taken_within_each_device(scores, devices, k):
    """Rows of two devices that interleave, or follow one another, never vote together."""
    groups = np.random.default_rng(len(scores)).integers(0, devices, len(scores))
    expected = max(vote_statistic(scores[groups == g], k, k + 2).max() for g in np.unique(groups))
    assert highest_vote(scores, groups, k, k + 2) == expected


def test_the_highest_vote_of_no_rows_is_zero():
    assert highest_vote(np.zeros(0), np.zeros(0), 15, 20) == 0.0


def test_count_bounds_are_a_margin_over_what_benign_devices_reach_but_at_least_the_floor():
    counts = np.zeros((3, len(COUNT_COLUMNS)))
    counts[1, 0], counts[2, 1] = 4.0, 100.0
    bounds = count_bounds(counts, 2.0, {COUNT_COLUMNS[0]: 10.0, COUNT_COLUMNS[1]: 10.0})
    assert bounds == {COUNT_COLUMNS[0]: 10.0, COUNT_COLUMNS[1]: 200.0}
    assert count_bounds(np.zeros((0, len(COUNT_COLUMNS))), 2.0, {COUNT_COLUMNS[3]: 6.0}) == {COUNT_COLUMNS[3]: 6.0}


@pytest.fixture
def benign() -> Benign:
    rng = np.random.default_rng(1)
    full, fast = rng.gamma(2.0, 0.1, (2, 400))
    return Benign(full, fast, np.repeat([0, 1], 200), np.arange(400) % 2 == 0)


def test_a_decision_has_limits_of_its_own_scores_and_the_rules_given(benign):
    made = decide(benign, 10.0, {COUNT_COLUMNS[0]: 6.0}, vote_k=3, vote_w=4, warmup_s=60.0)
    assert (made.vote_k, made.vote_w, made.warmup_s, made.counts) == (3, 4, 60.0, {COUNT_COLUMNS[0]: 6.0})
    assert made.full.tau == pytest.approx(benign.full[::2].mean() + 10 * benign.full[::2].std())
    assert made.fast.tau == pytest.approx(benign.fast[::2].mean() + 10 * benign.fast[::2].std())
    assert made.full.highest == highest_vote(benign.full, benign.groups, 3, 4)


def test_another_form_of_the_model_gets_limits_of_its_own_and_keeps_every_rule(benign):
    first = decide(benign, 10.0, {COUNT_COLUMNS[0]: 6.0}, vote_margin=3.0, reject=0.7)
    again = calibrate.recalibrate(first, dataclasses.replace(benign, full=benign.full * 2))
    assert again.full.limit == pytest.approx(2 * first.full.limit)
    assert again.fast == first.fast
    rules = {f.name for f in dataclasses.fields(Decision)} - {"full", "fast"}
    assert all(getattr(again, name) == getattr(first, name) for name in rules)
