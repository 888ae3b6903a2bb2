"""Frames in memory, judged by the very agent that ships, and the alerts that it would have sent.

Only what a measurement needs differs from a gateway: which streams a full table evicts is decided by a fixed seed, and
nothing is stored or sent. The budget of rows, monitored networks, check-ins and alerts are as the configuration says.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice

from edge_agent.agent import BATCH, Agent
from edge_agent.config import AgentConfig
from edge_agent.contract.alert import Alert
from edge_agent.contract.bundle import Bundle
from trainer.data.frames import Frame

SEED = 1

AFTER_S = 150.0
"""Seconds of usual traffic to judge after an attack: an alert ends a minute after its last vote."""


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """The messages of each episode, first episode first, and the agent that sent them, after its end."""

    episodes: list[list[Alert]]
    agent: Agent


def new_agent(bundle: Bundle, config: AgentConfig, *, learn: bool = False) -> Agent:
    """Return an agent that starts cold.

    With ``learn`` each device gets limits of its own, learnt from its traffic; without, all devices are held to the
    bundle's limits, whatever the configuration says.
    """
    return Agent(replace(config, learning=replace(config.learning, enabled=learn)), bundle, seed=SEED)


def judged(agent: Agent, frames: Iterable[Frame]) -> list[Alert]:
    """Have an agent judge frames in the order given; return its alerts. Those of open episodes are still to come."""
    alerts: list[Alert] = []
    left = iter(frames)
    while batch := list(islice(left, BATCH)):
        rows = agent.extractor.push_frames(batch)
        if len(rows):  # a frame without a whole link header gives none
            alerts += agent.judge(rows)
    return alerts


def has_learnt(agent: Agent, mac: int) -> bool:
    """Return True if a device has limits of its own."""
    limits = agent.detector.limits_of(mac)
    return bool(limits and limits.learnt)


def by_episode(alerts: Iterable[Alert]) -> list[list[Alert]]:
    """Return the messages of each episode, first episode first."""
    episodes: dict[str, list[Alert]] = {}
    for alert in alerts:
        episodes.setdefault(alert.id, []).append(alert)
    return list(episodes.values())


def replay(bundle: Bundle, config: AgentConfig, frames: Iterable[Frame], *, learn: bool = False) -> Replayed:
    """Have an agent judge frames from a cold start to its end; ``learn`` as in `new_agent`."""
    agent = new_agent(bundle, config, learn=learn)
    alerts = judged(agent, frames)
    return Replayed(episodes=by_episode([*alerts, *agent.finish()]), agent=agent)
