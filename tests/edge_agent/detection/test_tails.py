"""The tail of benign votes: peaks, the level of a rate, its bound, and the device that has most of it."""

import numpy as np
import pytest

from edge_agent.detection.tails import FEW, PROVABLE, loudest, peaks, tail

S = 1_000_000_000


def test_the_tail_of_known_peaks_gives_the_level_of_its_rate():
    """For peaks whose logarithms are exponential, the level that is exceeded once in so many days is known exactly."""
    highs = np.exp(np.random.default_rng(3).exponential(0.5, 20_000))  # 144 peaks a day, scale 0.5
    days = len(highs) / 144
    found = tail(highs, days, rate=1.0, confidence=0.95)  # once a device-day
    true = np.exp(0.5 * np.log(144))
    assert found.limit == pytest.approx(true, rel=0.15)
    assert found.limit < found.bound < 2 * true
    assert (found.peaks, found.days, found.every) == (20_000, days, pytest.approx(1.0))
    assert found.shape < 0.1


def test_the_bound_of_the_tail_holds_as_often_as_it_says():
    """Of many small samples, at least about 95 % have a bound above the true level."""
    days = 400 / 144
    true, held = np.exp(0.8 * np.log(400 / PROVABLE)), 0
    for seed in range(60):
        highs = np.exp(np.random.default_rng(seed).exponential(0.8, 400))
        held += tail(highs, days, rate=1.0 / days, confidence=0.95).bound >= true
    assert held >= 54


def test_a_smaller_rate_and_fewer_peaks_mean_a_higher_bound():
    highs = np.exp(np.random.default_rng(5).exponential(0.5, 2000))
    often, seldom = (tail(highs, 14.0, rate=rate, confidence=0.95) for rate in (1.5, 0.1))
    assert seldom.limit > often.limit
    few = tail(highs[:200], 1.4, rate=1.5, confidence=0.95)
    assert few.bound / few.limit > often.bound / often.limit


def test_a_limit_is_made_for_nothing_rarer_than_the_days_that_were_seen():
    highs = np.exp(np.random.default_rng(5).exponential(0.5, 2000))
    once, never = (tail(highs, 14.0, rate=rate, confidence=0.95) for rate in (1 / 14.0, 1e-9))
    assert once == never
    assert never.every == pytest.approx(14.0)


def test_the_tail_does_not_depend_on_the_order_of_the_peaks():
    highs = np.exp(np.random.default_rng(5).exponential(0.5, 500))
    assert tail(highs, 3.0, rate=0.1, confidence=0.95) == tail(highs[::-1], 3.0, rate=0.1, confidence=0.95)


def test_a_long_record_is_resampled_piece_by_piece():
    highs = np.exp(np.random.default_rng(5).exponential(0.5, 60_000))
    found = tail(highs, 400.0, rate=0.1, confidence=0.95)
    assert found.limit < found.bound < 1.5 * found.limit


def test_too_few_peaks_have_no_tail_but_a_margin_over_the_highest():
    found = tail(np.r_[np.ones(100), 3.0], 1.0, rate=1.0, confidence=0.95)
    assert (found.level, found.every, found.limit, found.bound) == (
        0.0,
        0.0,
        pytest.approx(3.0),
        pytest.approx(FEW * 3),
    )
    assert tail(np.zeros(0), 0.0, rate=1.0, confidence=0.95).bound == 0.0


def test_peaks_are_the_highest_vote_of_ten_minutes_with_traffic():
    t_ns = np.array([1, 2, 599, 600, 5000, 5001]) * S
    one = np.zeros(6, dtype=np.int64)
    found = peaks(np.array([1.0, 3.0, 2.0, 5.0, 4.0, 1.0]), t_ns, one, one, 1)
    assert found.highs.tolist() == [3.0, 5.0, 4.0]
    assert found.days.tolist() == [pytest.approx(5000 / 86400)]  # silence is time in which nothing alerted


def test_the_time_between_two_runs_is_not_counted_and_ten_minutes_that_they_share_give_one_peak():
    t_ns, device, runs = np.array([10, 20, 500, 530, 900]) * S, np.zeros(5, np.int64), np.array([0, 0, 1, 1, 1])
    found = peaks(np.array([1.0, 2.0, 7.0, 1.0, 3.0]), t_ns, device, runs, 1)
    assert found.highs.tolist() == [7.0, 3.0]
    assert found.days.tolist() == [pytest.approx(410 / 86400)]


def test_rows_without_times_give_a_peak_per_thousand():
    zero = np.zeros(2500, dtype=np.int64)
    found = peaks(np.arange(2500.0), zero, zero, zero, 1)
    assert sorted(found.highs.tolist()) == [999.0, 1999.0, 2499.0]
    assert found.days.tolist() == [pytest.approx(1800 / 86400)]


def test_peaks_know_whose_they_are():
    t_ns, device = np.arange(6) * 1000 * S + S, np.array([0, 0, 0, 2, 2, 2])
    found = peaks(np.arange(6.0), t_ns, device, device, 3)
    assert found.device.tolist() == [0, 0, 0, 2, 2, 2]
    rest = found.without(2)
    assert (rest.highs.tolist(), rest.days.tolist()) == ([0.0, 1.0, 2.0], [pytest.approx(2000 / 86400), 0.0, 0.0])


def test_the_loudest_device_is_the_one_without_which_the_bound_is_lowest():
    rng = np.random.default_rng(4)
    n, devices = 288, 6
    votes = np.exp(rng.exponential(0.3, n * devices))
    votes[3 * n : 4 * n : 20] *= 30.0
    device = np.repeat(np.arange(devices), n)
    found = peaks(votes, np.tile(np.arange(n) * 600 * S + S, devices), device, device, devices)
    whole = tail(found.highs, float(found.days.sum()), rate=1 / 3000, confidence=0.95)
    number, others = loudest(found, whole, rate=1 / 3000, confidence=0.95)
    assert number == 3
    assert others.bound < whole.bound / 3
    few = found.without(0).without(1)
    assert loudest(few, whole, rate=1 / 3000, confidence=0.95) is None
