"""`botwatch agent test-alert`: sends an alert that is marked as a test the way of every alert, and reports each step.

A running agent sends it itself, because its outbox has one owner. Where none is running, the same outbox is opened
here, and whatever else waits in it is delivered too, with the agent's own credentials, but as another client: an agent
that is connected all the same (on another machine, with another state file) stays connected. Whether the collector has
stored the alert is seen there: `botwatch collector alerts` lists it, marked TEST.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from importlib.metadata import version
from typing import Any, NamedTuple

from edge_agent import orders
from edge_agent.config import AgentConfig
from edge_agent.contract.alert import ModelInfo
from edge_agent.control import CommandRefused
from edge_agent.delivery.alerts import Alerter
from edge_agent.delivery.outbox_table import OutboxTable
from edge_agent.identity import resolve
from edge_agent.publisher import Publisher
from edge_agent.state import State

_LOOK_S = 0.1
"""Seconds between two looks into the outbox."""


class Step(NamedTuple):
    """A step that was taken, in words; ``facts`` are what it adds to the result for programs."""

    text: str
    facts: Mapping[str, Any]


class NotDelivered(Exception):
    """The broker has not taken the test alert; the message says why, and where the alert is now."""


def steps(config: AgentConfig, model: ModelInfo, wait_s: float) -> Iterator[Step]:
    """Send a test alert and yield what happened, step by step.

    ``model`` is named in the alert where no agent is running. NotDelivered when the broker has not taken it within
    ``wait_s`` seconds, CommandRefused when the running agent does not answer, SettingsError when the gateway has no id;
    also BrokerError and StateError.
    """
    path = config.outbox.path
    if orders.agent_runs(config):
        reply, _ = orders.order(config, "test-alert", {})
        if reply.error:
            raise CommandRefused(reply.error)
        id = str((reply.result or {})["id"])
        yield Step("an agent is running and has made the test alert", {"alert": id, "running": True})
        yield from _follow(config, State(path, guest=True), id, wait_s)
        return
    config = resolve(config)
    publisher = Publisher(config, controlled=True, guest="guest")
    alerts = Alerter(config.gateway, config.site, model, version("botwatch")).test_alerts(
        time.time_ns(), f"{orders.user()}, no agent running"
    )
    with publisher.running():
        publisher.give(*alerts)
        text = f"no agent is running with {path}: the test alert is sent from here, as {config.gateway}"
        yield Step(text, {"alert": alerts[0].id, "running": False})
        yield from _await(config, publisher.state, alerts[0].id, wait_s, publisher.line)


def _follow(config: AgentConfig, state: State, id: str, wait_s: float) -> Iterator[Step]:
    """Yield what a running agent does with it."""

    def line() -> Mapping[str, Any]:
        reply, _ = orders.order(config, "status", {})
        return dict((reply.result or {}).get("broker", {}))

    with closing(state):
        yield from _await(config, state, id, wait_s, line)


def _await(
    config: AgentConfig, state: State, id: str, wait_s: float, line: Callable[[], Mapping[str, Any]]
) -> Iterator[Step]:
    """Yield when it is in the outbox, and when the broker has taken it; ``line`` returns the connection's state."""
    deadline, outbox = time.monotonic() + wait_s, OutboxTable(state)
    queued = False
    while True:
        taken = outbox.with_text(id)
        if taken and not queued:
            queued = True
            yield Step(f"alert {id} ({len(taken)} messages: new, end) is in the outbox {state.path}", {})
        if taken and all(taken):
            break
        if time.monotonic() >= deadline:
            now = line()
            why = now.get("trouble") or ("it does not answer" if now.get("connected") else "no connection yet")
            where = (
                f"the alert waits in {state.path}"
                if queued
                else "the disk cannot be written, so the alert waits in memory"
            )
            raise NotDelivered(f"broker {config.broker.address}: {why}; {where} and is sent when the broker takes it")
        time.sleep(_LOOK_S)
    protocol = line().get("protocol", "")
    readers = (
        ", and it has a subscriber for alerts"
        if protocol == "5"
        else "; under MQTT 3.1.1 it is unknown if anybody subscribes"
    )
    text = f"broker {config.broker.address} has taken it (MQTT {protocol}){readers}"
    yield Step(text, {"delivered": True, "broker": config.broker.address, "protocol": protocol})
    text = "once a collector has stored it, `botwatch collector alerts` lists it, marked TEST; it counts as no episode"
    yield Step(text, {})
