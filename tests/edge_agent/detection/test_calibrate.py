"""From benign scores to limits: the published formula, the vote that must not be reached, the counts."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_agent.contract.bundle import Decision, Tail
from edge_agent.contract.columns import COUNT_COLUMNS
from edge_agent.detection import calibrate, device_limits
from edge_agent.detection.calibrate import (
    Benign,
    correlation_rows,
    count_bounds,
    decide,
    highest_vote,
    peaks,
    tail,
    threshold,
    vote_window,
)
from edge_agent.detection.device_limits import DeviceLimits
from edge_agent.detection.vote import vote_statistic

SCORES = st.integers(1, 60).flatmap(lambda n: arrays(np.float64, n, elements=st.floats(0, 1e6, width=32)))


NO_TAIL = Tail(0.0, 0.0, 0.0, 0, 0.0, 0.0, 0.0)
PLAIN = {"n": 3.0, "quantile": 0.99, "method": "tail", "tail": NO_TAIL, "highest": 0.0, "margin": 2.0}


def test_tau_is_mean_plus_n_standard_deviations():
    found = threshold(np.array([1.0, 2.0, 3.0, 6.0]), **PLAIN)
    assert found.tau == pytest.approx(3.0 + 3.0 * np.sqrt(3.5))
    assert found.limit == found.tau
    assert (found.mean, found.min, found.max, found.rows, found.n) == (3.0, 1.0, 6.0, 4, 3.0)


@pytest.mark.parametrize("method", ["tail", "mean_std", "quantile"])
def test_the_limit_keeps_its_margin_from_the_highest_benign_vote(method):
    found = threshold(np.array([1.0, 1.0]), **PLAIN | {"method": method, "highest": 5.0})
    assert (found.tau, found.highest, found.limit) == (1.0, 5.0, 10.0)


def test_the_method_says_which_figure_is_the_limit():
    scores, tail = np.arange(101.0), Tail(1.0, 1.0, 0.0, 50, 3.0, 400.0, 900.0)
    found = {m: threshold(scores, **PLAIN | {"method": m, "tail": tail}) for m in ("tail", "mean_std", "quantile")}
    assert found["quantile"].limit == pytest.approx(99.0)
    assert found["mean_std"].limit == pytest.approx(scores.mean() + 3 * scores.std())
    assert found["tail"].limit == 900.0


def test_a_tail_bound_below_tau_does_not_lower_the_limit():
    tail = Tail(1.0, 1.0, 0.0, 50, 3.0, 0.1, 0.2)
    found = threshold(np.array([1.0, 2.0, 3.0]), **PLAIN | {"tail": tail})
    assert found.limit == found.tau


@pytest.mark.parametrize(("scores", "words"), [([], "no benign rows"), ([1.0, np.nan], "finite"), ([np.inf], "finite")])
def test_a_threshold_of_nothing_or_of_what_is_no_number_is_refused(scores, words):
    with pytest.raises(ValueError, match=words):
        threshold(np.array(scores), **PLAIN)


def test_the_tail_of_known_peaks_gives_the_level_of_its_budget():
    """Log peaks from an exponential tail: the level exceeded once in so many device-days is known exactly."""
    highs = np.exp(np.random.default_rng(3).exponential(0.5, 20_000))  # 144 peaks a day, scale 0.5
    days = len(highs) / 144
    found = tail(highs, days, budget=7.0, confidence=0.95)  # once a device-day
    true = np.exp(0.5 * np.log(144))
    assert found.limit == pytest.approx(true, rel=0.15)
    assert found.limit < found.bound < 2 * true
    assert (found.peaks, found.days) == (20_000, days)
    assert found.shape < 0.1


def test_the_bound_of_the_tail_holds_as_often_as_it_says():
    """Of many small samples, at least about 95 % have a bound above the true level."""
    true, held = np.exp(0.8 * np.log(400 / (1 / 7 * 400 / 144))), 0
    for seed in range(60):
        highs = np.exp(np.random.default_rng(seed).exponential(0.8, 400))
        held += tail(highs, 400 / 144, budget=1.0, confidence=0.95).bound >= true
    assert held >= 54


def test_a_smaller_budget_and_fewer_peaks_mean_a_higher_bound():
    highs = np.exp(np.random.default_rng(5).exponential(0.5, 2000))
    often, seldom = (tail(highs, 14.0, budget=b, confidence=0.95) for b in (10.0, 0.1))
    assert seldom.limit > often.limit
    few = tail(highs[:200], 1.4, budget=10.0, confidence=0.95)
    assert few.bound / few.limit > often.bound / often.limit


def test_the_tail_does_not_depend_on_the_order_of_the_peaks():
    highs = np.exp(np.random.default_rng(5).exponential(0.5, 500))
    assert tail(highs, 3.0, budget=1.0, confidence=0.95) == tail(highs[::-1], 3.0, budget=1.0, confidence=0.95)


def test_too_few_peaks_have_no_tail():
    assert tail(np.ones(100), 1.0, budget=1.0, confidence=0.95).bound == 0.0
    assert tail(np.zeros(0), 0.0, budget=1.0, confidence=0.95).bound == 0.0


def test_peaks_are_the_highest_vote_of_ten_minutes_with_traffic():
    t_ns = np.array([0, 1, 599, 600, 5000, 5001]) * 1_000_000_000
    highs, days = peaks(np.array([1.0, 3.0, 2.0, 5.0, 4.0, 1.0]), t_ns)
    assert highs.tolist() == [3.0, 5.0, 4.0]
    assert days == pytest.approx(1800 / 86400)


def test_rows_without_times_give_a_peak_per_thousand():
    highs, days = peaks(np.arange(2500.0), np.zeros(2500, dtype=np.int64))
    assert highs.tolist() == [999.0, 1999.0, 2499.0]
    assert days == pytest.approx(1800 / 86400)


def test_the_window_spans_twice_what_benign_scores_stay_alike_for():
    rng = np.random.default_rng(1)
    bursts = np.repeat(np.exp(rng.normal(size=1000)), 12)  # bursts of twelve like rows: the autocorrelation falls
    lag = correlation_rows(bursts)  # to 1/e after some eight
    assert 6 <= lag <= 9
    assert vote_window(bursts, np.zeros(len(bursts))) == (-(-3 * 2 * lag // 4), 2 * lag)
    assert vote_window(np.exp(rng.normal(size=5000)), np.zeros(5000))[1] == 10  # no correlation: the shortest
    assert vote_window(np.repeat(bursts, 20), np.zeros(20 * len(bursts)))[1] == 20  # too much: the longest


def test_devices_with_few_rows_do_not_set_the_window():
    assert vote_window(np.ones(40), np.repeat([0, 1], 20)) == (15, 20)


@given(SCORES, st.integers(1, 5), st.integers(1, 6))
def test_the_highest_vote_is_taken_within_each_device(scores, devices, k):
    """Rows of two devices that interleave, or follow one another, never vote together."""
    groups = np.random.default_rng(len(scores)).integers(0, devices, len(scores))
    expected = max(vote_statistic(scores[groups == g], k, k + 2).max() for g in np.unique(groups))
    assert highest_vote(scores, groups, k, k + 2) == expected


HOUR = 3600 * 1_000_000_000


def lived(
    scores: np.ndarray, per_minute: int = 50, counts: float = 0.1, alarms: frozenset[int] = frozenset()
) -> DeviceLimits:
    """A device's minutes, one after the other; the vote is 2 of 3."""
    own = DeviceLimits(0, 2.0, 2, 3)
    for minute, rows in enumerate(scores.reshape(-1, per_minute)):
        own.see(rows, np.full(len(rows), counts), np.zeros(len(rows), dtype=bool))
        own.end_minute((minute + 1) * 60 * 1_000_000_000, "alarm" if minute in alarms else "")
    return own


def test_a_device_like_those_of_the_fit_keeps_the_shared_limits():
    assert lived(np.random.default_rng(1).uniform(0, 0.4, 5000)).factors() == (1.0, 1.0)


def test_a_noisier_device_gets_a_limit_above_its_own_minutes():
    scores = np.random.default_rng(2).uniform(0, 3.0, 50 * 600)
    own = lived(scores)
    assert vote_statistic(scores, 2, 3).max() < own.factors()[0] < 6.0
    assert own.learnt
    assert not own.capped


def test_an_own_limit_is_shrunk_towards_the_shared_one_while_little_is_known():
    scores = np.random.default_rng(2).uniform(0, 3.0, 150 * 600)
    few, many = lived(scores[: 150 * 16], 150), lived(scores, 150)
    assert few.learnt
    assert 1.0 < few.factors()[0] < many.factors()[0]


def test_an_own_limit_tightens_again_when_the_device_calms_down():
    loud, calm = np.full(50 * 40, 4.0), np.full(50 * 1440, 0.1)
    assert lived(loud).factors()[0] > 3.0
    assert lived(np.concatenate([loud, calm[: 50 * 300]])).factors()[0] > 3.0
    assert lived(np.concatenate([loud, calm])).factors() == (1.0, 1.0)


def test_one_minute_in_a_hundred_may_be_anything():
    scores = np.random.default_rng(2).uniform(0, 0.4, (1200, 50))
    scores[::300] = 500.0  # and the minute after, whose first vote still holds rows of it
    assert lived(scores).factors() == (1.0, 1.0)


def test_nothing_is_learnt_of_minutes_in_an_alarm():
    scores = np.full((100, 50), 0.1)
    scores[30:60] = 500.0
    own = lived(scores, alarms=frozenset(range(30, 60)))
    assert (own.factors(), own.minutes, own.left_out) == ((1.0, 1.0), 70, 30)


def test_an_own_limit_has_a_cap_and_says_so():
    own = lived(np.full(50 * 200, 1e6), counts=1e6)
    assert own.factors() == (device_limits.SCORE_CAP, device_limits.COUNTS_CAP)
    assert own.capped


def test_a_device_takes_part_after_two_thousand_packets_and_a_quarter_of_an_hour_or_a_day():
    busy, quiet = DeviceLimits(0, 2.0, 2, 3), DeviceLimits(0, 2.0, 2, 3)
    for minute in range(1, 15):
        busy.see(np.ones(1000), np.ones(1000), np.zeros(1000, dtype=bool))
        busy.end_minute(minute * HOUR // 60)
        assert not busy.learnt
    busy.end_minute(HOUR // 4)
    assert busy.learnt
    for hour in range(1, 24):
        quiet.see(np.ones(3), np.ones(3), np.zeros(3, dtype=bool))
        quiet.end_minute(hour * HOUR)
        assert not quiet.learnt
    quiet.end_minute(24 * HOUR)
    assert quiet.learnt


def test_votes_across_minutes_count():
    own = DeviceLimits(0, 2.0, 2, 3)
    for minute in range(2000):  # one flagged row at the end of a minute, one at the start of the next
        rows = np.array([5.0, 0.0, 0.0, 5.0])
        own.see(rows, np.zeros(4), np.zeros(4, dtype=bool))
        own.end_minute(minute * HOUR // 60)
    assert own.factors()[0] > 5.0


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
    t_ns = np.arange(400) * 60_000_000_000
    return Benign(full, fast, np.repeat([0, 1], 200), np.arange(400) % 2 == 0, t_ns)


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
