"""Another bundle takes over between two batches: no packet, no episode and nothing that was learnt is lost."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from edge_agent.agent import Agent
from edge_agent.config import AgentConfig, LearningConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract.alert import Alert, ModelInfo
from edge_agent.contract.bundle import Bundle, BundleError
from edge_agent.contract.decision import Decision
from edge_agent.detection.devices import MAX_DEVICES, Devices
from edge_agent.state import State
from tests.conftest import Home
from tests.edge_agent.detection.test_detector import other_bundle
from tests.edge_agent.detection.test_devices import BEGIN, MINUTE, entry, flood, life
from tests.edge_agent.detection.test_reservoir import of_model
from tests.traffic import PLUG_MAC, Frame, S, merged, scan, steady

SHARED = AgentConfig(learning=LearningConfig(enabled=False))
ATTACK_S = 16 * 60, 18 * 60  # after the first minutes, in which a device is judged less strictly


@pytest.fixture(scope="module")
def bundle(home: Home) -> Bundle:
    return bundles.load(home.bundle)


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    """A quiet device that scans for two minutes."""
    began, ended = ATTACK_S
    attack = steady(scan(20 * (ended - began), mac=PLUG_MAC), BEGIN + began * S, 20)
    return merged(life(22), attack)


def judged(agent: Agent, frames: Sequence[Frame], *swaps: tuple[float, Bundle], batch: int = 50) -> list[Alert]:
    """All alerts of the frames, with ``swaps`` (seconds after BEGIN, bundle) between two batches."""
    alerts, waiting = [], list(swaps)
    for at in range(0, len(frames), batch):
        while waiting and frames[at][0] >= BEGIN + waiting[0][0] * S:
            before = agent.counts()
            alerts += agent.take_over(waiting.pop(0)[1])
            after = agent.counts()
            assert all(after[key] >= count for key, count in before.items())
            assert after.keys() >= before.keys()
        alerts += agent.judge(agent.extractor.push_frames(frames[at : at + batch]))
    assert not waiting
    return alerts + agent.finish()


def without_model(alerts: list[Alert]) -> list[Alert]:
    return [dataclasses.replace(alert, model=ModelInfo("any")) for alert in alerts]


@pytest.mark.parametrize("config", [SHARED, AgentConfig()], ids=["shared limits", "own limits"])
def test_an_episode_goes_on_when_another_bundle_takes_over_in_mid_attack(bundle, frames, tmp_path, config):
    agent = Agent(config, bundle, seed=0)
    alerts = judged(agent, frames, (16.5 * 60, of_model(bundle, "7", 1.0)), (17 * 60, of_model(bundle, "8", 1.0)))
    assert len({alert.id for alert in alerts}) == 1
    assert [alert.seq for alert in alerts] == list(range(1, len(alerts) + 1))
    assert [alert.state for alert in alerts] == ["new", *["update"] * (len(alerts) - 2), "end"]
    assert list(dict.fromkeys(alert.model.version for alert in alerts)) == [bundle.manifest.version, "7", "8"]
    assert {alert.class_name for alert in alerts} == {alerts[0].class_name}
    assert [alert.count for alert in alerts] == sorted(alert.count for alert in alerts)  # totals of the whole episode
    counts = agent.counts()
    assert (counts["frames"], counts["rows"], counts["scored"]) == (len(frames),) * 3
    whole = judged(Agent(config, bundle, seed=0), frames)
    assert (alerts[0].t_ns, alerts[-1].last_ns) == (whole[0].t_ns, whole[-1].last_ns)


def test_what_the_old_detector_had_still_to_report_comes_first(bundle, frames):
    """At most two seconds of votes wait for a newer one; they are of the old bundle, and name it."""
    agent = Agent(dataclasses.replace(SHARED, alerts=dataclasses.replace(SHARED.alerts, update_s=0.1)), bundle, seed=0)
    attack = [frame for frame in frames if frame[0] < BEGIN + 17 * 60 * S]
    list(agent.judge(agent.extractor.push_frames(attack)))
    (alert,) = agent.take_over(of_model(bundle, "7", 1.0))
    assert (alert.state, alert.model.version) == ("update", bundle.manifest.version)
    assert alert.last_ns > attack[-1][0] - S


def test_the_bundle_in_use_changes_nothing(bundle, frames):
    moments = [(60.0 * minute, bundle) for minute in (1, 16.5, 18.2)]
    assert judged(Agent(AgentConfig(), bundle, seed=0), frames, *moments) == judged(
        Agent(AgentConfig(), bundle, seed=0), frames
    )


@pytest.mark.parametrize("minute", [15, 18.5], ids=["a window before an attack", "in its aftermath"])
def test_equal_models_of_another_version_report_the_same_under_their_name(bundle, frames, minute):
    """The device does not become a newcomer that is judged less strictly, and what slow columns still remember of an
    attack does not become another one."""
    alerts = judged(Agent(SHARED, bundle, seed=0), frames, (60 * minute, of_model(bundle, "7", 1.0)))
    assert without_model(alerts) == without_model(judged(Agent(SHARED, bundle, seed=0), frames))
    assert [alert.model.version for alert in alerts] == [
        "7" if alert.t_ns > BEGIN + minute * MINUTE else bundle.manifest.version for alert in alerts
    ]


@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "with a state file"])
def test_what_was_learnt_of_devices_is_carried_over(bundle, tmp_path, kept):
    state = State(tmp_path / "s.sqlite") if kept else None
    agent = Agent(AgentConfig(), bundle, seed=0, state=state)
    assert judged(agent, list(life(22)), (20 * 60, of_model(bundle, "7", 2.0)), (21 * 60, bundle)) == []
    now = entry(agent.devices)
    assert (now["state"], now["calibrated_from"].split()[1:]) == ("active", ["kept", "rows"])
    assert now["packets"] > 3000
    straight = Agent(AgentConfig(), bundle, seed=0)
    judged(straight, list(life(22)))
    assert now["limit"] == pytest.approx(entry(straight.devices)["limit"], rel=0.5)
    if state:
        agent.devices.keep(agent.devices.records(1e9, everything=True), 1e9)
        assert entry(Agent(AgentConfig(), bundle, state=state).devices)["state"] == "active"
        state.close()


def lived(bundle: Bundle, state: State | None = None, minutes: float = 22) -> Agent:
    """An agent that has known a quiet device for so long."""
    agent, frames = Agent(AgentConfig(), bundle, seed=0, state=state), list(life(minutes))
    for at in range(0, len(frames), 50):
        list(agent.judge(agent.extractor.push_frames(frames[at : at + 50])))
    return agent


def store(devices: Devices, now_s: float) -> None:
    devices.keep(devices.records(now_s, everything=True), now_s)


def test_counters_go_on_without_learning_too(bundle, tmp_path):
    state = State(tmp_path / "s.sqlite")
    state.learnt_put(bundle.sha256, [(7, b"")], 1e9, 1e6)
    agent = Agent(SHARED, bundle, seed=0, state=state)
    assert agent.counts()["devices_unreadable"] == 1
    agent.take_over(of_model(bundle, "7", 1.0))
    assert agent.counts()["devices_unreadable"] == 1
    state.close()


@pytest.mark.parametrize("stored", [False, True])
def test_a_device_that_was_ordered_to_learn_anew_does_so_under_every_model(bundle, tmp_path, stored):
    """Else the limits of before its change would come back with the model before, and nobody would notice."""
    state, other = State(tmp_path / "s.sqlite"), of_model(bundle, "7", 1.0)
    agent = lived(bundle, state)
    store(agent.devices, 1e9)
    agent.take_over(other)
    assert entry(agent.devices)["state"] == "active"
    agent.devices.relearn(PLUG_MAC)
    if stored:
        store(agent.devices, 1e9 + 1)
        assert entry(Agent(AgentConfig(), other, state=state).devices)["state"] == "learning"
        assert PLUG_MAC not in Devices(bundle, state=state).known()
    agent.take_over(bundle)
    assert entry(agent.devices)["state"] == "learning"
    assert agent.devices.known()[PLUG_MAC].vouched
    state.close()


@pytest.mark.parametrize("restart", [False, True])
def test_a_device_that_looks_infected_is_held_to_the_new_models_limits_at_once(bundle, tmp_path, restart):
    """Else its attack would go on below the wide limits of a device that has just come."""
    state, other = State(tmp_path / "s.sqlite"), of_model(bundle, "7", 1.0)
    agent = Agent(AgentConfig(), bundle, seed=0, state=state)
    frames = merged(life(20), flood(0, 20, 50))
    for at in range(0, len(frames), 500):
        list(agent.judge(agent.extractor.push_frames(frames[at : at + 500])))
    reason = entry(agent.devices)["reason"]
    if restart:
        store(agent.devices, 1e9)
        agent = Agent(AgentConfig(), other, seed=0, state=state)
    else:
        agent.take_over(other)
    assert entry(agent.devices)["reason"] == reason
    assert entry(agent.devices)["score_times"] == 1.0
    state.close()


def test_a_device_that_is_away_learns_anew_after_a_restart_too(bundle, tmp_path):
    state = State(tmp_path / "s.sqlite")
    store(lived(bundle, state).devices, 1e9)
    devices = Devices(bundle, state=state)
    devices.relearn(PLUG_MAC)
    store(devices, 1e9 + 1)
    assert entry(Devices(bundle, state=state))["state"] == "learning"
    state.close()


def test_devices_that_are_here_come_before_those_that_the_other_model_knew_once(bundle, tmp_path):
    state, other = State(tmp_path / "s.sqlite"), of_model(bundle, "7", 1.0)
    agent, gone = lived(bundle, state), Devices(other, state=state)
    for mac in range(MAX_DEVICES):
        gone.limits_of(mac, BEGIN)
    store(gone, 1e9)
    agent.take_over(other)
    known = agent.devices.known()
    assert known[PLUG_MAC].learnt
    assert len(known) == MAX_DEVICES
    state.close()


def test_what_devices_have_contacted_stays_known(bundle, frames):
    """Else each peer would count as new after a change of the model."""
    agent = Agent(SHARED, bundle, seed=0)
    judged(agent, frames, (18 * 60, of_model(bundle, "7", 1.0)))
    same = Agent(SHARED, bundle, seed=0)
    judged(same, frames)
    assert agent.extractor.counts() == same.extractor.counts()


def test_a_bundle_that_cannot_be_used_leaves_the_one_in_use(bundle, frames, tmp_path: Path):
    counts = {"device_L1_new_peers": 0.0}
    wrong = other_bundle(
        bundle, tmp_path / "wrong", decision=Decision(**{**vars(bundle.manifest.decision), "counts": counts})
    )
    agent = Agent(AgentConfig(), bundle, seed=0)
    half = len(frames) * 17 // 22
    alerts = [
        a
        for at in range(0, half, 50)
        for a in agent.judge(agent.extractor.push_frames(frames[at : min(at + 50, half)]))
    ]
    with pytest.raises(BundleError, match="limit of device_L1_new_peers is 0"):
        agent.take_over(wrong)
    alerts += [
        a for at in range(half, len(frames), 50) for a in agent.judge(agent.extractor.push_frames(frames[at : at + 50]))
    ]
    assert alerts + agent.finish() == judged(Agent(AgentConfig(), bundle, seed=0), frames)
