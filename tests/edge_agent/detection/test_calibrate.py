"""From benign scores to limits: the published formula, the vote that must not be reached, the counts."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_agent.contract.columns import COUNT_COLUMNS
from edge_agent.contract.decision import Decision, Tail
from edge_agent.detection import calibrate, device_limits
from edge_agent.detection.calibrate import (
    Benign,
    correlation_rows,
    count_bounds,
    decide,
    find_loudest,
    highest_vote,
    threshold,
    vote_window,
)
from edge_agent.detection.device_limits import DeviceLimits
from edge_agent.detection.vote import vote_statistic

SCORES = st.integers(1, 60).flatmap(lambda n: arrays(np.float64, n, elements=st.floats(0, 1e6, width=32)))


NO_TAIL = Tail(0.0, 0.0, 0.0, 0, 0.0, 0.0, 0.0)
PLAIN = {"n": 3.0, "quantile": 0.99, "method": "tail", "tail": NO_TAIL}


def test_tau_is_mean_plus_n_standard_deviations():
    found = threshold(np.array([1.0, 2.0, 3.0, 6.0]), **PLAIN)
    assert found.tau == pytest.approx(3.0 + 3.0 * np.sqrt(3.5))
    assert found.limit == found.tau
    assert (found.mean, found.min, found.max, found.rows, found.n) == (3.0, 1.0, 6.0, 4, 3.0)


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


def test_one_device_can_double_the_limit_and_no_more():
    whole, others = Tail(1.0, 1.0, 0.0, 400, 3.0, 40.0, 90.0), Tail(1.0, 1.0, 0.0, 300, 2.0, 4.0, 7.0)
    found = threshold(np.ones(3), **PLAIN | {"tail": whole, "others": others})
    assert (found.limit, found.others, found.tail) == (14.0, 7.0, whole)
    assert threshold(np.ones(3), **PLAIN | {"tail": others, "others": whole}).limit == 7.0


@pytest.mark.parametrize(("scores", "words"), [([], "no benign rows"), ([1.0, np.nan], "finite"), ([np.inf], "finite")])
def test_a_threshold_of_nothing_or_of_what_is_no_number_is_refused(scores, words):
    with pytest.raises(ValueError, match=words):
        threshold(np.array(scores), **PLAIN)


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


def counts_of(*highest: float) -> dict[str, np.ndarray]:
    """Devices whose first two counts reach these."""
    return {f"device {i}": np.r_[h, h, np.zeros(len(COUNT_COLUMNS) - 2)] for i, h in enumerate(highest)}


def test_count_bounds_are_a_margin_over_what_benign_devices_reach_but_at_least_the_floor():
    floors = {COUNT_COLUMNS[0]: 10.0, COUNT_COLUMNS[1]: 300.0}
    assert count_bounds(counts_of(4.0, 100.0), 2.0, floors) == {COUNT_COLUMNS[0]: 200.0, COUNT_COLUMNS[1]: 300.0}
    assert count_bounds({}, 2.0, {COUNT_COLUMNS[3]: 6.0}) == {COUNT_COLUMNS[3]: 6.0}


def test_one_device_raises_no_count_bound_for_all():
    floors = {COUNT_COLUMNS[0]: 10.0}
    assert count_bounds(counts_of(1.0, 2.0, 8.0, 500.0, 3.0), 2.0, floors) == {COUNT_COLUMNS[0]: 16.0}


def a_home(loud: float = 1.0, starts: int = 0) -> Benign:
    """Two days of six devices, a row every 30 s; one device's scores are ``loud`` times those of the others."""
    rng = np.random.default_rng(1)
    n, devices = 5760, 6
    full, fast = rng.gamma(2.0, 0.1, (2, devices * n))
    full[:n] *= loud
    t_ns = np.tile(np.arange(n) * 30_000_000_000, devices)
    return Benign(
        full=full,
        fast=fast,
        device=np.repeat([f"device {i}" for i in range(devices)], n),
        runs=np.repeat(np.arange(devices), n),
        optimise=np.arange(devices * n) % 2 == 0,
        start=t_ns < starts * 30_000_000_000,
        t_ns=t_ns,
    )


RULES = {"vote_k": 3, "vote_w": 4}


def test_a_decision_has_limits_of_its_own_scores_and_the_rules_given():
    benign = a_home()
    made = decide(benign, 10.0, {COUNT_COLUMNS[0]: 6.0}, warmup_s=60.0, **RULES)
    assert (made.vote_k, made.vote_w, made.warmup_s, made.counts) == (3, 4, 60.0, {COUNT_COLUMNS[0]: 6.0})
    assert made.full.tau == pytest.approx(benign.full[::2].mean() + 10 * benign.full[::2].std())
    assert made.fast.tau == pytest.approx(benign.fast[::2].mean() + 10 * benign.fast[::2].std())
    assert made.full.highest == highest_vote(benign.full, benign.runs, 3, 4)


def test_a_decision_says_what_it_rests_on_and_what_that_proves():
    made = decide(a_home(), 1.0, {}, **RULES)
    assert (made.basis.devices, made.basis.starts, made.basis.above) == (6, 0, 0)
    assert made.basis.device_days == pytest.approx(12.0, rel=1e-3)
    assert made.basis.home_month == pytest.approx(2.996 / 12.0 * 600, rel=1e-3)
    assert made.full.tail.every == pytest.approx(12.0, rel=1e-3)  # the budget's 3,000 days cannot be seen in 12
    assert decide(a_home(), 1.0, {}, budget=6000.0, **RULES).full.tail.every == pytest.approx(0.5)


def test_a_loud_device_is_named_and_does_not_decide_alone():
    quiet, benign = decide(a_home(), 1.0, {}, **RULES), a_home(loud=100.0)
    made = decide(benign, 0.1, {}, **RULES)
    assert made.full.tail.bound > 20 * quiet.full.tail.bound
    assert made.full.others == pytest.approx(quiet.full.tail.bound, rel=0.3)
    found = find_loudest(made, benign)
    assert (found.device, found.bound_without) == ("device 0", made.full.others)
    assert made.full.limit == max(2 * made.full.others, made.full.tau)
    assert found.alerts_a_month == pytest.approx(made.basis.above / 2 * 30, rel=1e-3)


def test_no_device_is_left_out_of_a_few():
    benign = a_home(loud=100.0)
    few = np.isin(benign.device, ["device 0", "device 1"])
    benign = Benign(**{f.name: getattr(benign, f.name)[few] for f in dataclasses.fields(Benign)})
    made = decide(benign, 1.0, {}, **RULES)
    assert find_loudest(made, benign) is None
    assert (made.full.others, made.full.limit) == (0.0, made.full.tail.bound)


def test_rows_of_a_start_raise_no_limit():
    wild = a_home(starts=20)
    wild.full[wild.start] *= 1000.0
    calm, made = decide(a_home(), 10.0, {}, **RULES), decide(wild, 10.0, {}, **RULES)
    assert made.full.limit == pytest.approx(calm.full.limit, rel=0.05)
    assert made.full.highest < 2.0
    assert (made.basis.starts, made.start_factor) == (6, 5.0)  # six starts are too few for a tail


def test_enough_wild_starts_make_a_devices_first_seconds_more_tolerant():
    rng = np.random.default_rng(2)
    n, starts = 40, 200  # each device has a start of 20 rows and as many rows after it
    start = np.tile(np.arange(n) < n // 2, starts)
    scores = rng.gamma(2.0, 0.1, n * starts) * np.where(start, 20.0, 1.0)
    benign = Benign(
        full=scores,
        fast=scores,
        device=np.repeat(np.arange(starts).astype(str), n),
        runs=np.repeat(np.arange(starts), n),
        optimise=np.ones(len(scores), dtype=bool),
        start=start,
        t_ns=np.tile(np.arange(n) * 30_000_000_000, starts),
    )
    made = decide(benign, 0.0, {}, **RULES)
    assert made.start_factor * made.full.limit > 0.9 * highest_vote(scores, benign.runs, 3, 4)  # one alert in 100
    assert made.start_factor > 5.0


def test_votes_do_not_span_rows_that_were_thinned_out():
    """A high row before a gap and two after it are no vote of three."""
    benign = a_home()
    benign.full[100:103] = 50.0
    cut = dataclasses.replace(benign, runs=benign.runs + 10 * (np.arange(len(benign.runs)) > 100))
    together, apart = (decide(b, 1.0, {}, **RULES).full.highest for b in (benign, cut))
    assert apart < 2.0 < 50.0 == together


def test_another_form_of_the_model_gets_limits_of_its_own_and_keeps_every_rule():
    benign = a_home()
    first = decide(benign, 10.0, {COUNT_COLUMNS[0]: 6.0}, reject=0.7, **RULES)
    again = calibrate.recalibrate(first, dataclasses.replace(benign, full=benign.full * 2))
    assert again.full.limit == pytest.approx(2 * first.full.limit)
    assert again.fast == first.fast
    rules = {f.name for f in dataclasses.fields(Decision)} - {"full", "fast"}
    assert all(getattr(again, name) == getattr(first, name) for name in rules)


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="different lengths"):
        dataclasses.replace(a_home(), full=np.ones(3))
