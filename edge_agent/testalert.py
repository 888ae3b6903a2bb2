"""`botwatch agent test-alert`: an alert that says it is a test goes the way of every alert, and each step is told.

A running agent sends it itself, as its outbox has one owner. Where none runs the same outbox is opened here, the line
to the broker is the agent's own, with its credentials, and what else waited is delivered, too. What the collector makes
of it is told there: `botwatch collector alerts` marks it.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from importlib.metadata import version
from typing import Any

from edge_agent import orders
from edge_agent.config import AgentConfig
from edge_agent.contract.alert import ModelInfo
from edge_agent.control import CommandRefused
from edge_agent.delivery.alerts import Alerter
from edge_agent.publisher import Publisher
from edge_agent.state import State

_LOOK_S = 0.1


class NotDelivered(Exception):
    """The broker does not have it; the message says why, and where it is."""


def steps(config: AgentConfig, model: ModelInfo, wait_s: float) -> Iterator[str]:
    """Send it and say what happened, step by step; NotDelivered when the broker has not taken it within ``wait_s``.

    ``model`` is named in it when no agent runs. Raises CommandRefused when an agent runs and does not answer,
    and BrokerError and StateError.
    """
    path = orders.state_path(config)
    if orders.agent_runs(config):
        reply, _ = orders.order(config, "test-alert", {})
        if reply.error:
            raise CommandRefused(reply.error)
        yield "an agent runs and has taken the order"
        yield from _follow(config, State(path, guest=True), str((reply.result or {})["id"]), wait_s)
        return
    yield f"no agent runs with {path}: doing it here, as {config.gateway}"
    # Commands are for the agent: to subscribe to them here would be to take them from it.
    config = dataclasses.replace(config, commands=(), outbox=dataclasses.replace(config.outbox, path=path))
    publisher = Publisher(config, controlled=True)
    alerts = Alerter(config.gateway, config.site, model, version("botwatch")).test_alerts(
        time.time_ns(), f"{orders.user()}, no agent running"
    )
    with publisher.running():
        publisher.give(*alerts)
        yield from _await(config, publisher.state, alerts[0].id, wait_s, publisher.line)


def _follow(config: AgentConfig, state: State, id: str, wait_s: float) -> Iterator[str]:
    """Watch what a running agent does with it."""

    def line() -> Mapping[str, Any]:
        reply, _ = orders.order(config, "status", {})
        return dict((reply.result or {}).get("broker", {}))

    with closing(state):
        yield from _await(config, state, id, wait_s, line)


def _await(
    config: AgentConfig, state: State, id: str, wait_s: float, line: Callable[[], Mapping[str, Any]]
) -> Iterator[str]:
    """Tell when it is in the outbox, and when the broker has taken it from there."""
    deadline = time.monotonic() + wait_s
    queued = False
    while True:
        taken = state.outbox_found(id)
        if taken and not queued:
            queued = True
            yield f"alert {id} ({len(taken)} messages: new, end) is in the outbox {state.path}"
        if taken and all(taken):
            break
        if time.monotonic() >= deadline:
            said = line()
            why = said.get("trouble") or ("it does not answer" if said.get("connected") else "no connection yet")
            where = f"it waits in {state.path}" if queued else "the disk takes nothing, it waits in memory"
            raise NotDelivered(f"broker {config.broker.address}: {why}; {where} and is sent when the broker takes it")
        time.sleep(_LOOK_S)
    protocol = line().get("protocol", "")
    heard = (
        ", and somebody subscribes to alerts" if protocol == "5" else "; MQTT 3.1.1 cannot say whether anybody reads"
    )
    yield f"broker {config.broker.address} has taken it (MQTT {protocol}){heard}"
    yield "`botwatch collector alerts` lists it, marked TEST, when it is stored there; it is counted nowhere"
