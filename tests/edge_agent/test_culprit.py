"""Which message ended a connection: only one that was alone under way, shortly after it was sent."""

import pytest

from edge_agent.culprit import ALONE_S, BLAME_S, SINGLY_S, STATUS, Culprit, LeftOut
from edge_agent.mqtt import ConnectionEnded

A, B, HEALTH = ("alert", 1), ("alert", 2), ("document", "health")


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def culprit(clock):
    return Culprit(clock)


def end(by_message=True):
    return ConnectionEnded("connection lost", accepted=True, hung_up=True, by_message=by_message)


def test_one_that_is_alone_under_way_is_the_cause_if_it_was_just_sent(culprit, clock):
    culprit.sent(A)
    clock.now += BLAME_S
    assert culprit.ended(end()) == (True, A)
    culprit.sent(A)
    clock.now += BLAME_S + 0.1
    assert culprit.ended(end()) == (False, None)
    culprit.sent(A)
    culprit.answered(A)
    assert culprit.ended(end()) == (False, None)


def test_what_the_broker_gives_another_reason_for_is_no_messages_fault(culprit):
    culprit.sent(A)
    assert culprit.ended(end(by_message=False)) == (False, None)
    assert not culprit.singly


def test_of_several_none_is_the_cause_and_then_they_are_sent_singly_until_all_are_answered(culprit):
    culprit.sent(A)
    culprit.sent(B)
    assert culprit.ended(end()) == (True, None)
    assert culprit.singly
    assert culprit.free()
    culprit.sent(STATUS)
    assert not culprit.free()  # a connection that ends with nothing but the status was ended by none of them
    culprit.answered(STATUS)
    culprit.sent(A)
    assert not culprit.free()
    culprit.answered(A)
    culprit.sent(B)
    assert culprit.ended(end()) == (True, B)
    culprit.sent(B)
    culprit.answered(B)
    assert not culprit.singly


def test_the_status_is_never_the_cause(culprit):
    culprit.sent(STATUS)
    assert culprit.ended(end()) == (False, None)
    culprit.sent(STATUS)
    culprit.sent(A)
    assert culprit.ended(end()) == (True, None)


def test_one_without_an_answer_is_a_suspect_and_never_certain(culprit, clock):
    culprit.sent(HEALTH, answer=False)
    assert culprit.free()
    assert not culprit.idle
    assert culprit.ended(end()) == (True, None)
    assert culprit.singly
    culprit.sent(HEALTH)
    assert culprit.ended(end()) == (True, HEALTH)
    culprit.answered(HEALTH)  # it is left out
    culprit.sent(HEALTH, answer=False)
    clock.now += BLAME_S + 0.1
    assert culprit.idle
    assert culprit.ended(end()) == (False, None)


def test_suspects_that_never_come_again_do_not_slow_the_others_for_good(culprit, clock):
    culprit.sent(A)
    culprit.sent(B)
    culprit.ended(end())
    clock.now += SINGLY_S - 0.1
    assert culprit.singly
    clock.now += 0.2
    assert not culprit.singly


def test_the_others_wait_for_one_that_is_sent_alone_but_not_for_long(culprit, clock):
    culprit.sent(A, alone=True)
    assert not culprit.free()
    clock.now += ALONE_S
    assert culprit.free()
    culprit.answered(A)
    culprit.sent(A, alone=True)
    culprit.answered(A)
    assert culprit.free()


def test_a_leaf_rests_from_the_second_time_on_unless_the_next_is_much_smaller(clock):
    left_out = LeftOut(3600.0, clock)
    assert left_out.strike("health", 4000) == 1
    assert not left_out.rests("health", 4000)
    assert left_out.strike("health", 4000) == 2
    assert left_out.rests("health", 4000)
    assert left_out.rests("health", 3990)
    assert not left_out.rests("health", 2000)
    assert not left_out.rests("devices", 4000)
    clock.now += 3600.0
    assert not left_out.rests("health", 4000)
    assert left_out.strike("health", 4000) == 3
    assert left_out.rests("health", 4000)
    left_out.clear()
    assert not left_out.rests("health", 4000)
