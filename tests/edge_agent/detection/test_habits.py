"""Limits below the shared ones: how low, how soon, and what cannot lift or lower them."""

import numpy as np
import pytest

from edge_agent.detection import habits as h
from edge_agent.detection.device_limits import DeviceLimits
from edge_agent.detection.habits import Habits, Highs

S = 1_000_000_000
HOUR = 3600 * S
DAY = 24 * HOUR


def lived(days: float, vote: float = 0.1, peers: float = 0.1, every_s: int = 600) -> Habits:
    """A device that comes to the same highs every ten minutes."""
    habits = Habits()
    for passed in range(every_s * S, int(days * DAY) + 1, every_s * S):
        habits.see_peers(peers)
        habits.end_minute(passed, vote, teaches=True)
    return habits


def test_limits_of_a_quiet_device_come_down_as_days_pass():
    factors = [lived(days).factors(int(days * DAY), 1000) for days in (0.2, 0.25, 1, 3, 7)]
    assert factors[0] == Highs(1.0, 1.0)
    votes, peers = ([highs[i] for highs in factors[1:]] for i in range(2))
    assert votes == sorted(votes, reverse=True)
    assert votes[0] > 0.5 > votes[1] > votes[-1] > h.MARGIN * 0.1
    assert peers == sorted(peers, reverse=True)
    assert peers[0] > 0.5 > peers[1] > peers[-1] > h.MARGIN * 0.1


def test_they_stay_at_a_margin_from_the_highest_and_above_a_floor():
    assert lived(7, vote=0.2).factors(7 * DAY, 10**6).vote == pytest.approx(0.6, rel=0.05)
    assert lived(7, vote=0.001).factors(7 * DAY, 10**6).vote == h.SCORE_FLOOR
    assert lived(7, vote=0.9, peers=5.0).factors(7 * DAY, 10**6) == Highs(1.0, 1.0)


def test_few_minutes_with_traffic_say_little_however_many_days_they_are_spread_over():
    few, many = (lived(2).factors(2 * DAY, minutes) for minutes in (10, 1000))
    assert few.vote > 0.6 > many.vote


def test_silence_alone_lowers_nothing():
    assert Habits().factors(30 * DAY, 1000) == Highs(1.0, 1.0)
    gone = lived(1)
    assert gone.factors(30 * DAY, 1000) == Highs(1.0, 1.0)  # of the last week nothing is known


def test_one_high_minute_a_week_ago_keeps_the_limit_above_it():
    habits = lived(3)
    habits.end_minute(3 * DAY, 0.3, teaches=True)
    assert habits.factors(3 * DAY + HOUR, 1000).vote > 0.9 - 1e-9
    assert habits.factors(9 * DAY, 1000).vote > 0.9 - 1e-9


def test_minutes_in_an_alarm_teach_nothing():
    habits = lived(3)
    before = habits.factors(3 * DAY, 1000)
    habits.see_peers(100.0)
    habits.end_minute(3 * DAY, 100.0, teaches=False)
    habits.end_minute(3 * DAY + S, 0.1, teaches=True)
    assert habits.factors(3 * DAY + 7 * HOUR, 1000).vote <= before.vote


def test_a_ramp_within_a_quarter_of_a_day_does_not_lift_the_limit_that_it_climbs_to():
    habits = lived(2)
    limit = habits.factors(2 * DAY, 1000).vote
    for minute in range(1, 5 * 60):
        habits.end_minute(2 * DAY + minute * 60 * S, min(0.1 * 1.01**minute, 0.99 * limit), teaches=True)
        assert habits.factors(2 * DAY + minute * 60 * S, 1000).vote <= limit
    assert habits.factors(2 * DAY + 6 * HOUR, 1000).vote <= 1.0


def test_what_is_remembered_is_bounded_and_comes_back_as_recorded():
    habits = lived(20)
    record = habits.record()
    assert len(record["habits"]) == h.KEEP + 1
    again = Habits()
    again.restore(record)
    assert again.factors(20 * DAY, 1000) == habits.factors(20 * DAY, 1000)
    again.restore({})
    assert again.factors(20 * DAY, 1000) == Highs(1.0, 1.0)
    for wrong in ([["1", 0.1, 0.1]], [[1, float("nan"), 0.1]], [[1, 0.1]], [[1, -1.0, 0.0]]):
        with pytest.raises((ValueError, TypeError)):
            again.restore({"habits": wrong})


def test_another_model_changes_the_highs_by_its_factors():
    habits = lived(7, vote=0.1)
    habits.under_other_model(2.0, 0.5)
    assert habits.factors(7 * DAY, 10**6).vote == pytest.approx(0.6, rel=0.05)


def plug(days: float, scores: float = 0.1, counts: float = 0.1) -> DeviceLimits:
    """A device that is heard for a minute in ten."""
    own = DeviceLimits(0, 2.0, 2, 3)
    for number in range(int(days * 144)):
        own.see(np.full(30, scores), np.full(30, counts), np.zeros(30, dtype=bool))
        own.habits.see_peers(counts)
        own.end_minute((number + 1) * 600 * S)
    return own


def test_a_plug_that_has_learnt_for_a_day_has_limits_of_its_own_below_the_shared_ones():
    own = plug(1.1)
    score, counts = own.factors()
    assert (own.state, counts) == ("active", 1.0)
    assert h.SCORE_FLOOR <= score < 0.6
    assert own.peers_factor < 0.7
    assert own.lowest == min(score, own.peers_factor)
    assert not own.capped


def test_a_stored_limit_below_the_shared_one_goes_on_after_a_restart():
    own = plug(2)
    again = DeviceLimits(0, 2.0, 2, 3)
    again.restore(*own.record())
    assert (again.factors(), again.peers_factor) == (own.factors(), own.peers_factor)
    again.resume(own.latest_ns + DAY)  # a day in which the agent did not run
    again.end_minute(own.latest_ns + DAY + 60 * S)
    assert again.factors()[0] == pytest.approx(own.factors()[0], rel=0.05)
    own.relearn()
    assert (own.lowest, own.peers_factor) == (1.0, 1.0)


def test_a_start_is_no_habit():
    own = DeviceLimits(0, 2.0, 2, 3)
    for number in range(3 * 144):
        end, starts = (number + 1) * 600 * S, number == 0
        scores = np.where(starts & (np.arange(30) < 20), 0.4, 0.05)
        own.see(scores, np.full(30, 0.05), np.zeros(30, dtype=bool))
        own.habits.see_peers(0.9 if starts else 0.05)
        own.end_minute(end)
    assert own.factors()[0] < 0.4
    assert own.peers_factor < 0.3


def test_a_loud_device_lowers_nothing():
    own = plug(2, scores=2.0, counts=2.0)
    assert own.factors()[0] > 1.0
    assert own.factors()[1] > 1.0
    assert own.lowest == 1.0


def test_a_carried_over_limit_allows_for_the_highest_minute_under_the_new_model():
    own = plug(2)
    votes = dict.fromkeys(list(own.votes())[:20], 0.1) | {list(own.votes())[20]: 0.3}
    assert own.carry_over(votes, 1.0, rows=400)
    assert own.factors()[0] > 0.7
