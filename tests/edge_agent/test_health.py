"""Health: alerts say whether the clock that stamps them is synchronised, from the first one on."""

import logging
import time

import pytest

from edge_agent.agent import Agent
from edge_agent.capture.sources import InterfaceState
from edge_agent.config import AgentConfig
from edge_agent.contract import bundle as bundles
from edge_agent.health import CLOCK_S, HealthMonitor
from tests.conftest import Home
from tests.edge_agent.delivery.test_alerts import CAMERA, at


class NoInterfaces:
    """Takes the place of the interfaces: none, and nothing was captured."""

    names: tuple[str, ...] = ()

    def states(self) -> list[InterfaceState]:
        return []

    def count(self) -> dict[str, int]:
        return {"captured": 0, "dropped": 0, "interface_dropped": 0}


@pytest.fixture
def agent(home: Home) -> Agent:
    return Agent(AgentConfig(), bundles.load(home.bundle), seed=0)


def clock_of(alerts: list) -> list[str]:
    return [alert.clock for alert in alerts]


def test_alerts_say_whether_the_clock_is_synchronised_from_the_first_one_on(agent, caplog):
    state: list[bool | None] = [False]
    with caplog.at_level(logging.INFO):
        health = HealthMonitor(agent, NoInterfaces(), None, clock=lambda: state[0])
        began = time.monotonic()
        health.beat(began)
        assert clock_of(agent.alerter.consider(CAMERA)) == ["unsynced"]
        state[0] = True
        health.beat(began + 0.9 * CLOCK_S)
        assert clock_of(agent.alerter.consider(at(1, device_mac=1))) == ["unsynced"]  # it is looked at once a minute
        health.beat(began + 1.1 * CLOCK_S)
        assert clock_of(agent.alerter.consider(at(2, device_mac=2))) == ["synced"]
    assert [record.levelname for record in caplog.records if "clock" in record.message] == ["WARNING", "INFO"]


def test_a_clock_of_which_nothing_is_known_is_not_called_unsynced(agent):
    HealthMonitor(agent, NoInterfaces(), None, clock=lambda: None)
    assert clock_of(agent.alerter.consider(CAMERA)) == ["synced"]


def test_a_replay_has_the_clock_of_its_captures(agent):
    """This machine's clock says nothing about the times in a file."""
    assert clock_of(agent.alerter.consider(CAMERA)) == ["synced"]
