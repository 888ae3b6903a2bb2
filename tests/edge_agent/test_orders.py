"""Local orders: left for a running agent, or carried out on its state file; and what the commands for them load."""

import subprocess
import sys
import time

import pytest

from edge_agent import orders
from edge_agent.config import AgentConfig, OutboxConfig
from edge_agent.contract.commands import Reply
from edge_agent.control import CommandRefused
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


def test_a_reply_is_printed_without_what_a_terminal_would_obey():
    result = {"gateway": "gw-001", "commands": [], "allowed": [{"entry": 1, "reason": "a\x1b[31m"}]}
    text = orders.lines(Reply("1", "status", 0, result), running=True)
    assert text[:2] == ["gateway gw-001: running", "  commands accepted from the broker: none"]
    assert text[-1].split() == ["1", "a\\x1b[31m"]
    assert orders.lines(Reply("1", "unmute", 0, {"ended": [3]}), running=False) == [
        "ended 3",
        "no agent is running: this takes effect at its next start",
    ]


def test_status_fits_into_a_narrow_terminal():
    devices = [
        {"mac": MAC, "state": "learning", "since": "2026-11-28T03:30:03.447814+0000", "percent": 7, "packets": 1280},
        {"mac": "02:00:5e:10:00:02", "name": "cam-entrance", "state": "active", "reason": "in an alarm for long"},
    ]
    reply = Reply("1", "status", 0, {"gateway": "gw-001", "commands": ["status", "mute"], "devices": devices})
    wide, narrow = orders.lines(reply, True), orders.lines(reply, True, 60)
    assert [line.split()[0] for line in wide[-3:]] == ["mac", MAC, "02:00:5e:10:00:02"]
    assert max(map(len, narrow)) <= 60 < max(map(len, wide))
    assert f"  mac {MAC}, state learning, since" in narrow
    assert "  mac 02:00:5e:10:00:02, name cam-entrance, state active," in narrow


LOADED = """
import sys
from edge_agent.__main__ import main
assert main(sys.argv[1:]) == 0
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
