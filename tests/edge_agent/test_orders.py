"""Local orders: left for a running agent, or carried out on its state file; and what the commands for them load."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_agent import orders
from edge_agent.__main__ import main
from edge_agent.config import AgentConfig, EvidenceConfig, OutboxConfig
from edge_agent.control import CommandRefused
from edge_agent.state import State
from tests.edge_agent.delivery.test_alerts import CAMERA
from tests.edge_agent.test_control import MAC, Gateway, polling


@pytest.fixture
def gateway(tmp_path):
    return Gateway(tmp_path)


def test_a_running_agent_answers_within_two_seconds(gateway):
    assert gateway.state.claim()
    began = time.monotonic()
    with polling(gateway):
        reply, running = orders.order(gateway.config, "mute", {"device": MAC})
        assert running
        assert reply.result["device"] == MAC
        assert time.monotonic() - began < 2.0
        refused, _ = orders.order(gateway.config, "unmute", {"entry": 99})
    assert "no active mute has the number 99" in refused.error
    assert gateway.see(CAMERA) == []


def test_without_an_agent_the_list_changes_for_its_next_start(gateway):
    gateway.state.close()
    reply, running = orders.order(gateway.config, "allow", {"device": MAC, "classes": ["gafgyt.tcp"], "reason": "r"})
    assert not running
    entry = reply.result["entry"]
    assert "needs a running agent" in orders.order(gateway.config, "learn", {"device": MAC})[0].error
    again = Gateway(gateway.config.outbox.path.parent)
    assert again.see(CAMERA) == []
    assert list(again.control.suppressions.active()) == [entry]


def test_an_agent_that_is_stuck_gets_the_command_when_it_comes_round(gateway):
    assert gateway.state.claim()
    with pytest.raises(CommandRefused, match="did not reply within 0 s; it carries the command out when it can"):
        orders.order(gateway.config, "mute", {"device": MAC}, wait_s=0.2)
    gateway.control.poll(time.monotonic())
    assert gateway.see(CAMERA) == []


def test_where_no_agent_has_ever_run_no_file_is_made(tmp_path):
    config = AgentConfig(outbox=OutboxConfig(path=tmp_path / "none.sqlite"))
    with pytest.raises(CommandRefused, match="no such file"):
        orders.order(config, "status", {})
    assert list(tmp_path.iterdir()) == []


def test_status_exits_with_3_when_no_agent_runs_and_with_0_when_one_does(gateway, tmp_path, capsys):
    words = ["status", "--outbox", str(gateway.config.outbox.path)]
    assert gateway.state.claim()
    with polling(gateway):
        assert main(words) == 0
    gateway.state.close()
    assert main(words) == 3
    assert "no agent is running with this state file" in capsys.readouterr().out
    assert main([*words, "--json"]) == 3
    assert '"running": false' in capsys.readouterr().out
    absent = str(tmp_path / "absent.sqlite")
    assert main(["status", "--outbox", absent]) == 3
    assert "no agent has run with it" in capsys.readouterr().err
    assert main(["unmute", "all", "--outbox", absent]) == 1
    (tmp_path / "text").write_text(
        "this is no database, and it is longer than a header of SQLite, which has 100 bytes\n" * 4
    )
    assert main(["status", "--outbox", str(tmp_path / "text")]) == 1


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The current folder and the service's, and the configuration of an agent whose paths are relative."""
    here, service = tmp_path / "here", tmp_path / "service"
    here.mkdir()
    service.mkdir()
    monkeypatch.chdir(here)
    return (
        here,
        service,
        AgentConfig(outbox=OutboxConfig(path=Path("box.sqlite")), evidence=EvidenceConfig(path=Path("evidence"))),
    )


@pytest.mark.parametrize(
    ("files", "running", "meant"),
    [
        ("", "", "here"),
        ("here", "", "here"),
        ("service", "", "service"),
        ("here service", "", "service"),
        ("here service", "service", "service"),
        ("here service", "here", "here"),
    ],
)
def test_a_state_file_that_lies_in_the_current_folder_leads_to_no_other_agent(folders, files, running, meant):
    here, service, config = folders
    folder = {"here": here, "service": service}
    states = {name: State(folder[name] / "box.sqlite") for name in files.split()}
    for name in running.split():
        assert states[name].claim()
    located = orders.locate(config, service)
    assert located.outbox.path == folder[meant] / "box.sqlite"
    assert located.evidence.path == folder[meant] / "evidence"
    for state in states.values():
        state.close()


def test_a_file_in_the_current_folder_that_is_no_state_file_does_not_hide_the_services(folders):
    here, service, config = folders
    State(service / "box.sqlite").close()
    (here / "box.sqlite").write_text("no database\n" * 40)
    assert orders.locate(config, service).outbox.path == service / "box.sqlite"


def test_a_running_agent_is_asked_even_if_its_configuration_file_has_become_wrong(gateway, tmp_path, capsys):
    config = tmp_path / "agent.yaml"
    config.write_text(f"health_s: soon\noutbox: {{path: {gateway.config.outbox.path}}}\n")
    assert gateway.state.claim()
    with polling(gateway):
        assert main(["status", "--json", "--config", str(config)]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["running"] is True
    assert "health_s: expected float, found 'soon' (str); the running agent keeps its former settings" in err
    gateway.state.close()
    assert main(["status", "--json", "--config", str(config)]) == 2  # nobody is there who could have other settings
    assert "health_s" in capsys.readouterr().err
    config.write_text("no: [yaml\n")
    assert main(["status", "--config", str(config), "--outbox", str(tmp_path / "none.sqlite")]) == 2


def test_two_agents_that_one_relative_path_may_mean_are_named_and_an_absolute_path_is_what_it_says(folders):
    here, service, config = folders
    states = [State(folder / "box.sqlite") for folder in folders[:2]]
    assert all(state.claim() for state in states)
    with pytest.raises(CommandRefused, match=f"{here}/box.sqlite and another with {service}/box.sqlite: .*--outbox"):
        orders.locate(config, service)
    absolute = AgentConfig(outbox=OutboxConfig(path=here / "box.sqlite"))
    assert orders.locate(absolute, service).outbox == absolute.outbox
    for state in states:
        state.close()


LOADED = """
import sys
from edge_agent.__main__ import main
assert main(sys.argv[1:]) == (3 if sys.argv[1] == "status" else 0)
print(*sys.modules, sep="\\n", file=sys.stderr)
"""


@pytest.mark.parametrize("words", [["status"], ["mute", MAC], ["unmute", MAC]])
def test_a_local_order_loads_neither_the_detector_nor_the_kernel_nor_a_model_runtime(gateway, tmp_path, words):
    gateway.order("mute", device=MAC)
    gateway.state.close()
    command = [sys.executable, "-c", LOADED, *words, "--outbox", str(gateway.config.outbox.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = set(done.stderr.splitlines())
    assert "edge_agent.orders" in modules, done.stderr
    detection = {m for m in modules if m.startswith("edge_agent.detection.")} - {"edge_agent.detection.detection"}
    heavy = {"edge_agent._kernel", "ai_edge_litert", "tflite_runtime", "tensorflow", "paho"}
    assert not detection | modules & heavy
