"""A replay leaves a running agent its connection and its state file, and a wrong file is a usage error."""

import json
import os
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from edge_agent.__main__ import main
from edge_agent.delivery.link import Link
from edge_agent.delivery.outbox import Outbox
from edge_agent.state import State
from tests.broker import Amqtt, Broker, Mosquitto, free_port, needs_mosquitto, wait_until
from tests.conftest import Home
from tests.edge_agent.detection.test_devices import BEGIN, MINUTE, call, life
from tests.line import Listener, config_of, in_thread
from tests.reference.frames import pcap
from tests.traffic import merged


@pytest.fixture
def words(home: Home, attack_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A replay with the configuration of the agent, whose state file is box.sqlite; temporary files are below "tmp"."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    file = tmp_path / "agent.yaml"
    file.write_text(f"gateway: gw-001\nbundle: {home.bundle}\noutbox: {{path: {tmp_path / 'box.sqlite'}}}\n")
    return ["replay", str(attack_capture), "--config", str(file)]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("box.sqlite*")}


@pytest.mark.parametrize("make", [pytest.param(Mosquitto, marks=needs_mosquitto), Amqtt])
def test_a_running_agent_keeps_its_connection_its_status_and_its_state(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Broker]
) -> None:
    with make(tmp_path / "broker") as broker, closing(State(tmp_path / "box.sqlite")) as state:
        assert state.claim()
        link = Link(config_of(broker), Outbox(state), gateway="gw-001", agent="0.1.0")
        listener = Listener(broker)
        with in_thread(link.run):
            wait_until(lambda: listener.states() == ["online"])
            before = content(tmp_path)
            assert main([*words, "--json", "--broker", broker.address]) == 0
            alerts = capsys.readouterr().out.splitlines()
            wait_until(lambda: len(listener.payloads()) == len(alerts))
            assert [payload.decode() for payload in listener.payloads()] == alerts
            assert content(tmp_path) == before
            assert listener.states() == ["online"]
            assert link.counts.connects == 1
        listener.close()
    assert os.listdir(tmp_path / "tmp") == []


@needs_mosquitto
def test_two_replays_at_once_are_two_clients_named_after_the_gateway(words: list[str], tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "broker") as broker, closing(Listener(broker)):
        for _ in range(2):
            assert main([*words, "--broker", broker.address]) == 0
        names = re.findall(r"as (gw-001-replay-[0-9a-f]{8})", broker.log())
    assert len(set(names)) == 2


def test_alerts_that_the_broker_has_not_taken_are_said_to_be_lost_unless_an_outbox_is_named(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{free_port()}"
    assert main([*words, "--broker", address, "--wait", "0.1"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf"{address} has not taken \d+ alerts \(connection refused\), and they are not stored here", line)
    assert os.listdir(tmp_path / "tmp") == []
    assert not content(tmp_path)
    assert main([*words, "--broker", address, "--wait", "0.1", "--outbox", str(tmp_path / "own.sqlite")]) == 1
    assert f"alerts wait in {tmp_path / 'own.sqlite'} for {address}" in capsys.readouterr().err.splitlines()[-1]


def test_the_outbox_of_a_running_agent_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "box.sqlite"
    with closing(State(path)) as state:
        assert state.claim()
        assert main([*words, "--broker", f"127.0.0.1:{free_port()}", "--outbox", str(path)]) == 1
    assert f"{path}: another agent uses it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nofile.pcap", "nofolder/nofile.pcap", "."])
def test_a_file_that_is_not_there_is_a_usage_error(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file = tmp_path / name
    assert main([words[0], str(file), *words[1:]]) == 2
    [line] = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(f"botwatch agent: {file}: ")


def test_a_daily_call_is_reported_on_three_days_of_a_replay_and_then_learnt(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six files, of a day each: a plug that is learnt, then a minute of video to its cloud host every day."""
    files = []
    for day in range(6):
        frames = merged(life(20 if day == 0 else 4, BEGIN + day * 1440 * MINUTE, seed=day), call(day) if day else [])
        files.append(tmp_path / f"day{day}.pcap")
        files[-1].write_bytes(pcap(frames))
    assert main(["replay", *map(str, files), "--bundle", str(home.bundle), "--json"]) == 0
    said = capsys.readouterr()
    alerts = [json.loads(line) for line in said.out.splitlines()]
    new = [alert["timestamp"][:10] for alert in alerts if alert["alert"]["context"]["botwatch"]["state"] == "new"]
    assert new == ["2026-02-03", "2026-02-04", "2026-02-05"]
