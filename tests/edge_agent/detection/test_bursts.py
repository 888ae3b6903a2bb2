"""What a device's limits make of bursts that recur, of those that look like an attack, and of a person's word."""

import json

import numpy as np
import pytest

from edge_agent.contract.alert import Activity
from edge_agent.detection import bursts as b
from edge_agent.detection.bursts import Bursts, Mark
from edge_agent.detection.device_document import entry
from edge_agent.detection.device_limits import COUNTS_CAP, SCORE_CAP, DeviceLimits
from edge_agent.detection.minutes import Levels

MINUTE = 60_000_000_000
DAY = 1440
FLOOD = Activity("flood", 443)


class Life:
    """A device minute by minute: 50 rows each, of which the vote is 2 of 3."""

    def __init__(self) -> None:
        self.own = DeviceLimits(0, 2.0, 2, 3)
        self.minute = 0

    def quiet(self, minutes: int, score: float = 0.1) -> "Life":
        for _ in range(minutes):
            self._end(score, "")
        return self

    def until(self, day: float) -> "Life":
        """Pass time in which the device sends nothing."""
        self.minute = max(self.minute, int(day * DAY))
        return self

    def burst(
        self,
        score: float,
        minutes: int = 10,
        marks: Mark = Mark(0),  # noqa: B008
        activity: Activity = FLOOD,
        hosts: tuple[int, ...] = (7,),
        counts: float = 0.1,
        marked: int = 1440,
    ) -> bool:
        """Send a burst, which is an alarm if it is above the limit, and 17 minutes of aftermath; return if it was.

        Its first ``marked`` minutes have ``marks``.
        """
        alarmed = False
        for minute in range(minutes):
            marks = marks if minute < marked else Mark(0)
            above = score > self.own.factors()[0] or counts > self.own.factors()[1]
            if above:
                trace = self.own.bursts.trace
                trace.see_rows(hosts, counted=bool(marks & Mark.COUNTS), rows=9, in_vain=9 * (Mark.UNANSWERED in marks))
                trace.see_vote((activity,), np.zeros(0), np.zeros(0))
                trace.marks |= marks
            alarmed |= above
            self._end(score, "alarm" if above else "", counts, flagged=above)
        for _ in range(17 if alarmed else 0):
            self._end(0.1, "aftermath")
        return alarmed

    def _end(self, score: float, during: str, counts: float = 0.1, flagged: bool = False) -> None:
        self.own.see(np.full(50, score), np.full(50, counts), np.full(50, flagged))
        self.minute += 1
        self.own.end_minute(self.minute * MINUTE, during)  # type: ignore[arg-type]

    def say(self) -> dict:
        return entry(0x02_00_00_00_00_01, self.own, None, 10.0)


def learnt() -> Life:
    life = Life().quiet(60)
    assert (life.own.state, life.own.factors()) == ("active", (1.0, 1.0))
    return life


# -- recurrence --


def test_a_daily_call_alerts_on_three_days_and_not_on_the_fourth():
    life = learnt()
    for day in (1, 2, 3):
        assert life.until(day + 0.8).burst(2.5)
        assert life.quiet(60).own.state == "active"
        assert life.say()["bursts"] == {"days": day, "of": 3, "marked": 0}
    assert life.own.factors() == (pytest.approx(3.125), 1.0)
    assert life.say()["recurring"] == 2.5
    for day in range(4, 60):
        assert not life.until(day + 0.8).burst(2.5)
        life.quiet(5)
    assert life.own.factors()[0] == pytest.approx(3.125)  # what goes on does not lapse, and does not grow


def test_three_bursts_of_one_day_or_on_two_days_are_not_learnt():
    life = learnt()
    for at in (1.1, 1.3, 1.5, 1.7, 2.1, 2.3, 2.5, 2.7):
        assert life.until(at).burst(2.5)
        life.quiet(5)
    assert max(life.own.factors()) == 1.0


def test_a_level_must_itself_recur_before_it_is_learnt():
    """Two high bursts and a low one teach the low one: a flood gets nothing from a weak copy of it."""
    life = learnt()
    for day, score in ((1, 30.0), (2, 30.0), (3, 1.5)):
        assert life.until(day).burst(score)
    assert life.own.factors()[0] == pytest.approx(1.5 * b.BURST_MARGIN)
    assert life.until(4).burst(30.0)


def test_what_does_not_recur_for_a_month_lapses():
    life = learnt()
    for day in (1, 2, 3):
        life.until(day).burst(2.5)
    assert life.own.factors()[0] > 3.0
    life.until(3 + b.KEEP_DAYS).quiet(5)
    assert max(life.own.factors()) == 1.0
    assert life.until(40).burst(2.5)


@pytest.mark.parametrize("mark", [Mark.COUNTS, Mark.SCAN, Mark.ATTACK, Mark.NEW_HOST, Mark.UNANSWERED])
def test_a_burst_with_a_mark_is_never_learnt_by_itself(mark):
    life = learnt()
    for day in range(1, 40):
        assert life.until(day + 0.5).burst(2.5, marks=mark)
        assert max(life.quiet(5).own.factors()) == 1.0
    assert life.say()["bursts"]["days"] == 0


@pytest.mark.parametrize(
    ("mark", "learns"),
    [(Mark.COUNTS, False), (Mark.SCAN, False), (Mark.ATTACK, False), (Mark.UNANSWERED, False), (Mark.NEW_HOST, True)],
)
def test_later_bursts_to_the_host_of_an_attack_are_not_learnt_either(mark, learns):
    """A host that is only new is used again by whoever calls it; what was attacked once is not the device's own."""
    life = learnt()
    life.until(1).burst(2.5, marks=mark)
    for day in range(2, 8):
        life.until(day).burst(2.5)
    assert (life.own.factors()[0] > 1.0) == learns
    assert life.until(8).burst(2.5) != learns


def test_a_host_that_is_new_is_suspicious_for_a_day():
    """Four days of bursts to a host that the device first used in the first of them: one more than to its own hosts."""
    life = learnt()
    for day in (1, 2, 3):
        life.until(day + 0.1).burst(2.5, marks=Mark.NEW_HOST if day == 1 else Mark(0))
        life.until(day + 0.2).burst(2.5)
    assert max(life.own.factors()) == 1.0
    assert life.until(4.2).burst(2.5)
    assert life.own.factors()[0] == pytest.approx(3.125)


def test_an_alarm_that_goes_on_to_a_new_host_stays_suspicious_for_days():
    """The host is new in the first hour only, but the alarm is one."""
    life = learnt().until(1)
    life.burst(2.5, minutes=4 * DAY, marks=Mark.NEW_HOST, marked=1)
    assert max(life.own.factors()) == 1.0


def test_an_alarm_that_goes_on_without_marks_is_learnt_after_three_days():
    life = learnt().until(1)
    assert life.burst(2.5, minutes=3 * DAY)
    assert life.own.factors()[0] == pytest.approx(3.125)
    assert not life.quiet(30).burst(2.5)


@pytest.mark.parametrize("growth", [1.02, 1.2, 1.26, 1.5, 3.0])
def test_a_ramp_over_months_is_told_on_three_days_of_each_step_and_bounded_by_the_cap(growth):
    """Each day a flood that is a little stronger, from just above the limit on: no level is learnt unseen."""
    life, score, told = learnt(), 1.1, []
    for day in range(1, 100):
        if life.until(day).burst(score):
            told.append(score)
        raised = life.own.factors()[0]
        assert raised <= max(1.0, b.BURST_MARGIN * sorted(told)[-b.DAYS] if len(told) >= b.DAYS else 1.0, 1.0)
        assert raised <= SCORE_CAP
        score *= growth
        if score > SCORE_CAP:
            break
    assert life.until(200).burst(1.01 * SCORE_CAP)


def test_traffic_just_below_a_raised_limit_raises_it_no_further():
    life = learnt()
    for day in (1, 2, 3):
        life.until(day).burst(2.5)
    for day in range(4, 40):
        assert not life.until(day).burst(3.1, minutes=30)
    assert life.own.factors()[0] == pytest.approx(3.125)


# -- states that end --


def test_a_stale_device_is_active_again_when_its_new_level_has_recurred_on_three_days():
    """A firmware update lets a device send more, all day long, and without an alarm."""
    life = learnt().until(1).quiet(30, score=0.95)
    said = life.say()
    assert said["state"] == "stale"
    assert "recurred on 3 days without looking like an attack (on 1 so far)" in said["ends"]
    assert "botwatch agent learn 02:00:00:00:00:01" in said["ends"]
    life.until(2).quiet(30, score=0.95)
    assert life.say()["state"] == "stale"
    life.until(3).quiet(30, score=0.95)
    assert life.say()["state"] == "active"
    assert "ends" not in life.say()


def test_a_stale_device_whose_bursts_look_like_an_attack_says_that_only_a_person_ends_it():
    life = learnt()
    for day in range(1, 6):
        for _ in range(4):
            life.until(day).burst(2.5, marks=Mark.ATTACK)
    life.until(6).burst(2.5, minutes=12, marks=Mark.ATTACK)
    assert life.own.state == "stale"
    assert "classified as a known attack" in life.say()["ends"]
    assert max(life.own.factors()) == 1.0
    life.own.relearn()
    assert "ends" not in life.quiet(60).say()
    assert life.own.state == "active"


def busy_from_the_start(marks: Mark = Mark(0), days: float = 3.0) -> Life:  # noqa: B008
    """A device that is new and in an alarm every other half hour: too often to learn, by its first minutes."""
    life = Life()
    while life.minute < days * DAY:
        life.quiet(3).burst(8.0, minutes=10, marks=marks)
    return life


def test_a_device_in_alarms_too_often_to_learn_has_learnt_after_some_days_of_bursts_alike():
    life = busy_from_the_start(days=0.9)
    assert life.own.in_alarms_too_often
    assert "too often" not in life.say()["reason"]
    assert "5 bursts of one sort came on two days" in life.say()["ends"]
    assert max(life.own.factors()) == 1.0
    life = Life()
    while life.minute < 3 * DAY:
        life.quiet(3).burst(2.5)
    assert life.own.state == "active"
    assert life.own.factors()[0] >= 3.125
    assert "ends" not in life.say()


def test_a_device_in_alarms_that_look_like_an_attack_never_learns_by_itself_and_says_so():
    life = busy_from_the_start(marks=Mark.COUNTS, days=8)
    assert life.own.state == "learning"
    assert max(life.own.factors()) == 1.0
    assert "not by itself while alarms go on, since some were flagged by the counts rule" in life.say()["ends"]


def test_alarms_that_become_rare_end_the_refusal():
    life = busy_from_the_start(marks=Mark.COUNTS, days=1)
    assert life.own.refused
    assert life.quiet(31).own.state == "active"


# -- a person's word --


def test_a_burst_that_a_person_vouches_for_is_learnt_at_once_whatever_it_looks_like():
    life = learnt().until(1)
    assert life.burst(5.0, marks=Mark.ATTACK | Mark.COUNTS, counts=2.0)
    assert life.own.vouch([FLOOD])
    assert life.own.factors() == (6.25, 2.5)
    assert not life.until(2).burst(5.0, counts=2.0)
    assert life.say()["vouched"] == [{"kind": "flood", "port": 443, "times": 5.0}]
    assert life.own.unvouch([FLOOD])
    assert max(life.own.factors()) == 1.0
    assert not life.own.unvouch([FLOOD])
    assert life.until(3).burst(5.0)


@pytest.mark.parametrize(
    ("said", "learns"),
    [
        (Activity("flood"), True),
        (Activity("flood", 443), True),
        (Activity("flood", 80), False),
        (Activity("scan", 443), False),
        (Activity("other", 443), False),
    ],
)
def test_only_the_bursts_that_a_person_means_are_learnt(said, learns):
    life = learnt().until(1)
    life.burst(5.0)
    assert life.own.vouch([said]) == learns
    assert (life.own.factors()[0] > 1.0) == learns


def test_an_allowed_flood_includes_the_slower_traffic_that_it_began_with():
    life = learnt().until(1)
    life.burst(5.0, activity=Activity("other", 443))
    assert life.own.vouch([FLOOD])


def test_what_a_person_vouches_for_is_bounded_by_the_caps():
    life = learnt().until(1)
    life.burst(1e4, counts=1e4)
    assert life.own.vouch([FLOOD])
    assert life.own.factors() == (SCORE_CAP, COUNTS_CAP)
    assert life.own.capped


# -- bounds, storing, another model --


def test_bursts_have_bounds_and_what_is_beyond_them_is_counted():
    bursts, base = Bursts(), Levels(1.0, 1.0)
    for day in range(200):
        for i in range(20):
            bursts.trace.see_rows(range(100 * i, 100 * i + 50), counted=False, rows=9, in_vain=4)
            bursts.trace.see_vote((Activity("flood", i + 1),), np.zeros(0), np.zeros(0))
            minute = day * DAY + i * 70
            bursts.end_minute(minute, Levels(2.0 + i, 0.0), "alarm", base=base, stale=False, refused=False)
            assert bursts.vouch([Activity("flood", i + 1)], Levels(0.0, 0.0))
    assert len(bursts.kept) <= b.MAX_BURSTS
    assert all(len(burst.hosts) <= b.MAX_HOSTS for burst in bursts.kept)
    assert len(bursts.vouched) == b.MAX_VOUCHED
    assert bursts.forgotten >= 200 * (20 - b.A_DAY)
    assert len(bursts.unmarked_days()) >= 10
    assert len(json.dumps(bursts.record())) < 12_000


def test_a_flood_of_bursts_on_one_day_does_not_push_out_an_attack_s_hosts():
    life = learnt().until(1)
    life.burst(2.5, marks=Mark.ATTACK, hosts=(99,))
    for i in range(60):
        life.quiet(18).burst(2.5, activity=Activity("flood", i + 1), hosts=(i,))
    for day in (3, 4, 5):
        life.until(day).burst(9.0, hosts=(99,), activity=Activity("flood", 9))
    assert life.until(6).burst(9.0, hosts=(99,))


def test_bursts_survive_a_restart():
    life = learnt()
    for day in (1, 2):
        life.until(day).burst(2.5)
    life.until(2.5).burst(6.0, activity=Activity("other"), hosts=())
    life.own.vouch([Activity("other")])
    record, minutes = life.own.record()
    again = Life()
    again.own.restore(json.loads(json.dumps(record)), minutes)
    again.minute = life.minute
    assert again.own.factors() == life.own.factors() == (7.5, 1.0)
    assert again.say() == life.say()
    assert again.own.unvouch([Activity("other")])
    assert again.until(3).burst(2.5)
    assert again.own.factors()[0] == pytest.approx(3.125)


def test_a_record_of_an_earlier_version_has_no_bursts():
    life = learnt()
    record, minutes = life.own.record()
    for key in ("bursts", "vouched_bursts", "recurring"):
        del record[key]
    again = Life()
    again.own.restore(record, minutes)
    assert max(again.own.factors()) == 1.0
    assert again.own.bursts.kept == []


@pytest.mark.parametrize(
    "bad",
    [
        {"bursts": [[1, 2]]},
        {"bursts": [[1, 2, -1.0, 0.0, "flood", 443, 0, 1, []]]},
        {"bursts": [[1, 2, float("nan"), 0.0, "flood", 443, 0, 1, []]]},
        {"bursts": [[1, 2, 1.0, 0.0, "party", 443, 0, 1, []]]},
        {"bursts": [[1, 2, 1.0, 0.0, "flood", 70_000, 0, 1, []]]},
        {"bursts": [[1, 2, 1.0, 0.0, "flood", 443, "x", 1, []]]},
        {"vouched_bursts": [["flood", 443, "high", 0.0]]},
        {"recurring": float("inf")},
    ],
)
def test_a_damaged_record_is_refused(bad):
    record, minutes = learnt().own.record()
    with pytest.raises((ValueError, TypeError)):
        Life().own.restore(record | bad, minutes)


def test_bursts_go_on_in_units_of_another_model():
    life = learnt()
    for day in (1, 2, 3):
        life.until(day).burst(2.5)
    life.own.vouch([FLOOD])
    life.own.bursts.under_other_model(Levels(0.5, 2.0))
    assert life.own.bursts.recurring == 1.25
    assert life.own.bursts.vouched == {FLOOD: Levels(1.25, pytest.approx(0.2))}
    assert {burst.height.vote for burst in life.own.bursts.kept} == {1.25}
