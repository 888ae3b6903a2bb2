"""Steady time: what a clock that is set does to durations, one packet at a time and in batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract.clock import SteadyClock

S = 10**9
DAY = 86_400 * S


@given(
    st.lists(st.integers(0, 9 * S // 10), min_size=1, max_size=30),
    st.integers(0, 30),
    st.integers(0, 30),
    st.integers(61 * S, 60 * 365 * DAY),
)
def test_a_step_forward_adds_nothing_to_any_duration_in_whatever_batches_packets_come(gaps, late, cut, step):
    """Packets from before the step still come after the notice of it; batches are cut somewhere."""
    before = np.cumsum([0, *gaps]) + 1_000 * S
    after = before[-1] + np.cumsum([S, *gaps[:late]])
    packets = np.concatenate([before, after + step])
    one, batches = SteadyClock(), SteadyClock()
    one.at(int(packets[0]))
    batches.each(packets[:1])
    for clock in (one, batches):
        clock.set_forward(step)
    rest, cut = packets[1:], min(cut, len(packets) - 1)
    expected = [*(before[1:] - before[0]), *(after - before[0])]
    assert [one.at(int(t)) - before[0] for t in rest] == expected
    parts = [batches.each(part) for part in (rest[:cut], rest[cut:]) if len(part)]
    assert (np.concatenate(parts) - before[0]).tolist() == expected
    assert one.steps == batches.steps == 1
    assert one.offset_ns == batches.offset_ns == -step


def test_a_clock_that_is_set_before_the_first_packet_is_no_step():
    clock = SteadyClock()
    clock.set_forward(DAY)
    assert [clock.at(t) for t in (DAY, DAY + S, 3 * DAY)] == [DAY, DAY + S, 3 * DAY]


def test_steps_in_both_directions_leave_only_the_time_that_passed():
    clock = SteadyClock()
    times = [clock.at(1000 * S)]
    clock.set_forward(DAY)
    times += [clock.at(1001 * S + DAY), clock.at(1002 * S), clock.at(1003 * S)]
    assert [t // S for t in times] == [1000, 1001, 1001, 1002]
    assert clock.steps == 2


@pytest.mark.parametrize("batch", [1, 7])
def test_without_a_notice_a_pause_stays_a_pause(batch):
    times = np.array([0, S, DAY, DAY + S] * 2)[:4]
    clock = SteadyClock()
    got = [clock.each(times[i : i + batch]) for i in range(0, len(times), batch)]
    assert np.concatenate(got).tolist() == times.tolist()
