"""The vote rule in its two formulations, and what an alarm and its aftermath remember."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_agent.contract.columns import COUNTS
from edge_agent.detection.vote import (
    COUNT_DECAYS,
    MEMORY_S,
    SILENCE_S,
    Aftermath,
    Alarm,
    VoteRule,
    VoteWindow,
    count_in_window,
    vote_statistic,
)

S = 1_000_000_000
SCORES = st.integers(1, 60).flatmap(lambda n: arrays(np.float64, n, elements=st.floats(0, 1e6, width=32)))


def rows(hits: list[bool], begin_s: float = 0.0, packets: int = 1) -> dict:
    """Rows for `VoteWindow.add`: one a second, of so many packets of 60 bytes, with the flagged ones in class 1."""
    n, flags = len(hits), np.array(hits, dtype=bool)
    return {
        "full": flags,
        "hits": flags,
        "counted": np.zeros(n, dtype=bool),
        "ratio": np.where(flags, 2.0 + np.arange(n), 0.5).astype(np.float32),
        "t_ns": (begin_s * S + np.arange(n) * S).astype(np.int64),
        "packets": np.full(n, packets),
        "sizes": np.full(n, 60 * packets),
        "targets": np.where(flags, 7 << 16 | 80, 0),
        "grown": flags,
        "classes": np.where(flags[:, None], [0.25, 0.75], 0.0),
        "profiles": np.zeros((n, 14)),
    }


@given(SCORES, st.integers(1, 20), st.integers(0, 10), st.integers(0, 60))
def test_the_kth_largest_of_w_scores_is_above_a_limit_exactly_where_k_of_them_are(scores, k, more, cut):
    """The two formulations of the vote mean the same, wherever the rows are cut into batches."""
    w = k + more
    statistic = vote_statistic(scores, k, w)
    for limit in (0.5, float(np.median(scores)), float(scores.max())):
        hits = scores > limit
        parts = count_in_window(hits[:0], hits[:cut], w), count_in_window(hits[:cut], hits[cut:], w)
        voted = [int(hits[max(0, i - w + 1) : i + 1].sum()) >= k for i in range(len(scores))]
        assert (statistic > limit).tolist() == (np.concatenate(parts) >= k).tolist() == voted


def test_an_alarm_begins_with_k_of_w_rows_and_is_over_below_half_of_them():
    rule, window = VoteRule(k=4, w=6, count_k=2), VoteWindow(6, 2)
    hits = np.array([True, False, True, True, True, False, False, False, False, False])
    never = np.zeros(10, dtype=bool)
    assert rule.begins(window, hits, never).tolist() == [False] * 4 + [True, True] + [False] * 4
    assert rule.ends(window, hits, never).tolist() == [True, True] + [False] * 7 + [True]
    assert np.flatnonzero(rule.begins(window, hits, hits)).tolist() == [2, 3, 4, 5, 6, 7, 8]  # two by counts
    window.add(**rows([True, True, True]))
    assert rule.begins(window, hits[:1], never[:1]).tolist() == [True]


def test_the_higher_ratio_decides_a_vote_and_below_k_rows_only_a_count_can():
    rule, window = VoteRule(k=3, w=4, count_k=1), VoteWindow(4, 2)
    window.add(**rows([True, True, False, False]))
    assert [rule.decide(window, 5.0, np.array([0.1, count]))[0] for count in (0.9, 1.1, 6.0)] == [None, 1, 1]
    window.add(**rows([True, True]))
    window.add(**rows([True]))
    assert [rule.decide(window, 5.0, np.array([0.1, count]))[0] for count in (0.9, 1.1, 6.0)] == [None, None, 1]
    by_score, by_count = rule.decide(window, 5.0, np.array([0.1])), rule.decide(window, 5.0, np.array([6.0]))
    assert by_score == (None, 2.0, 0.75)  # the third largest of the four ratios, and three of four flagged
    assert by_count == (0, 3.0, 1 - 0.5 / 3.0)


@given(st.lists(st.integers(1, 12), max_size=8), st.booleans())
def test_a_window_of_quiet_rows_is_what_it_would_be_if_they_were_added_one_by_one(sizes, flagged_first):
    lazy, eager, at = VoteWindow(5, 2), VoteWindow(5, 2), 0
    for window in (lazy, eager):
        window.add(**rows([flagged_first] * 3))
    for size in sizes:
        t_ns, ones = (100 + np.arange(at, at + size)) * S, np.ones(size, dtype=np.int64)
        lazy.absorb_quiet(t_ns[-5:], ones[-5:], 60 * ones[-5:])
        for i in range(size):
            eager.absorb_quiet(t_ns[i : i + 1], ones[:1], 60 * ones[:1])
            eager.settle()
        at += size
    lazy.settle()
    for name in ("full", "hits", "counted", "t_ns", "packets", "bytes", "targets", "grown", "classes"):
        assert (getattr(lazy, name) == getattr(eager, name)).all(), name
    assert len(lazy.t_ns) <= 5
    assert lazy.hits.sum() == max(3 - max(at - 2, 0), 0) * flagged_first


def test_an_alarm_counts_from_the_first_flagged_row_after_a_silence():
    window = VoteWindow(10, 2)
    window.add(**rows([True, True], packets=100))
    window.add(**rows([False, True, True, True], begin_s=SILENCE_S + 5))
    alarm = Alarm(window)
    assert alarm.first_ns == (SILENCE_S + 6) * S
    assert (alarm.rows, alarm.packets, alarm.bytes) == (3, 3, 180)
    before = alarm.class_sum
    alarm.add(np.array([True, False]), np.array([1, 4]), np.array([60, 240]), np.array([[1.0, 0.0]]), np.zeros((1, 14)))
    assert (alarm.rows, alarm.packets, alarm.bytes) == (4, 8, 480)
    assert alarm.class_sum == pytest.approx([before[0] + 1.0, before[1]])


def test_what_decays_from_before_is_not_new_and_what_is_opened_in_an_aftermath_is():
    """A thousand sockets were opened in the attack; later three a second are opened, or none."""
    long = int(np.argmin(COUNT_DECAYS))
    for rate in (0.0, 3.0):
        counts = np.full(len(COUNTS), 1000.0)
        aftermath = Aftermath(0, counts)
        for second in range(1, 200):
            counts = counts * np.exp2(-COUNT_DECAYS) + rate
            aftermath.next_second(second * S)
            new = aftermath.new_counts(counts[None], np.array([second * S]))[0]
            aftermath.newest = second * S, counts
        steady = rate * (1 - 2.0 ** (-MEMORY_S / 100)) / (1 - 2.0**-0.01)  # opened within the memory, after decay
        assert new[long] == pytest.approx(steady, rel=0.15, abs=1e-6)
        assert new[0] == pytest.approx(counts[0])  # a fast column has forgotten anyway


def test_a_sender_is_as_loud_as_in_the_attack_from_half_of_its_highest_rate():
    aftermath = Aftermath(0, np.zeros(len(COUNTS)))
    aftermath.alarm(10.0)
    aftermath.hear(np.array([40.0, 100.0]))
    assert aftermath.as_loud(np.array([4.9, 5.0])).tolist() == [False, True]  # the second of the attack itself
    aftermath.next_second(S)
    assert aftermath.as_loud(np.array([49.0, 50.0])).tolist() == [False, True]
