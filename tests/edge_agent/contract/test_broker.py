"""Which MQTT version is tried next, and how long to wait between attempts."""

from edge_agent.contract.broker import Backoff, Versions


def test_versions_are_tried_in_turn_until_one_is_known_to_be_wrong():
    auto = Versions("auto")
    tried = []
    for event in (auto.hung_up, auto.hung_up, auto.lost, auto.hung_up, auto.lost, auto.refused, auto.lost):
        tried.append(auto.next())
        event()
    assert [*tried, auto.next()] == [5, 4, 5, 5, 4, 5, 4, 4]
    fixed = Versions(5)
    fixed.hung_up()
    assert fixed.next() == 5


def test_waits_double_up_to_the_bound_and_begin_again_after_a_success():
    backoff = Backoff(0.5, 60.0)
    waits = [backoff.next() for _ in range(20)]
    assert all(0.25 * 2**i <= wait <= 0.5 * 2**i for i, wait in enumerate(waits[:7]))
    assert all(30 <= wait <= 60 for wait in waits[7:])
    backoff.reset()
    assert backoff.next() <= 0.5
