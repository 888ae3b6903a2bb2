"""Frames judged in memory by the agent that ships."""

import pytest

from edge_agent.agent import Agent
from edge_agent.capture.sources import open_file
from edge_agent.config import AgentConfig, CheckInsConfig, LearningConfig, ScoringConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract.bundle import Bundle
from trainer.judge.replay import replay


@pytest.fixture(scope="module")
def bundle(home) -> Bundle:
    return bundles.load(home.bundle)


def test_alerts_are_those_of_an_agent_that_reads_the_capture(bundle, attack_frames, attack_capture):
    config = AgentConfig(learning=LearningConfig(enabled=False))
    agent = Agent(config, bundle, seed=1)
    with open_file(attack_capture) as source:
        alerts = [*agent.alerts(source), *agent.finish()]
    replayed = replay(bundle, config, attack_frames)
    assert sorted((a for e in replayed.episodes for a in e), key=str) == sorted(alerts, key=str)
    assert {episode[0].state for episode in replayed.episodes} == {"new"}
    assert {episode[-1].state for episode in replayed.episodes} == {"end"}


def test_rows_beyond_the_budget_are_not_scored(bundle, attack_frames):
    shed = [
        replay(bundle, AgentConfig(scoring=ScoringConfig(max_rows_per_s=most)), attack_frames).agent.counts()["shed"]
        for most in (10_000, 100)
    ]
    assert shed[0] == 0
    assert shed[1] > 1000


def test_limits_are_learnt_only_on_demand_and_check_ins_only_where_enabled(bundle, attack_frames):
    frames = attack_frames[:2000]
    plain = replay(bundle, AgentConfig(checkins=CheckInsConfig(enabled=False)), frames).agent
    learning = replay(bundle, AgentConfig(), frames, learn=True).agent
    mac = int.from_bytes(frames[0][2][6:12], "big")
    assert (plain.detector.limits_of(mac), plain.checkins) == (None, None)
    assert learning.detector.limits_of(mac) is not None
    assert learning.checkins is not None
