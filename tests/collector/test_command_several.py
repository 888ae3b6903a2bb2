"""`botwatch collector command` to one gateway and to several, over a real broker: who replies, refuses or is silent."""

import json
import threading
import time
from contextlib import contextmanager

import pytest
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from collector.__main__ import main
from collector.order import MAX_WAITING
from collector.store import AlertStore, Arrival, GatewayDocument
from edge_agent.contract.commands import Reply
from edge_agent.contract.messages import Status
from tests.broker import Amqtt, Mosquitto, any_broker, needs_mosquitto, wait_until
from tests.terminal import in_terminal


@contextmanager
def gateways(broker, answers, version=MQTTProtocolVersion.MQTTv5):
    """Gateways that reply as ``answers`` says: a result, a text to refuse with, or None for silence."""
    heard = []

    def answer(client, _data, message):
        gateway, verb = message.topic.split("/")[3], message.topic.rpartition("/")[2]
        document, result = json.loads(message.payload), answers[gateway]
        heard.append((gateway, document))
        if result is None:
            return
        reply = Reply(document["id"], verb, 1, None if isinstance(result, str) else result)
        reply = Reply(document["id"], verb, 1, error=result) if isinstance(result, str) else reply
        where = getattr(message.properties, "ResponseTopic", f"botwatch/v1/gw/{gateway}/reply")
        client.publish(where, json.dumps(reply.document()), qos=1)

    client = mqtt.Client(CallbackAPIVersion.VERSION2, "gateways", protocol=version)
    ready = threading.Event()
    client.on_subscribe = lambda *_: ready.set()
    client.on_connect = lambda c, *_: c.subscribe([(f"botwatch/v1/gw/{name}/cmd/#", 1) for name in answers])
    client.on_message = answer
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    assert ready.wait(10)
    yield heard
    client.disconnect()
    client.loop_stop()


@pytest.fixture
def db(tmp_path):
    path = str(tmp_path / "c.sqlite")
    store = AlertStore(path)
    for n in (1, 2, 3):
        store.save([Arrival((f"gw-00{n}", Status("online", "b", "0.1.0", 5)), 6)])
        text = json.dumps({"site": "plant-a" if n < 3 else "plant-b", "outbox_depth": 0, "counters": {}})
        store.save([Arrival(GatewayDocument(f"gw-00{n}", "health", 6, json.loads(text)), 6, text)])
    store.close()
    return path


def order(capsys, broker, *words):
    """Exit status, lines and stderr of the command."""
    capsys.readouterr()
    status = main(["command", *words, "--broker", broker.address, "--timeout", "1.5"])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


def test_each_gateway_of_a_list_is_a_line_and_a_failure_of_one_is_one_of_the_command(tmp_path, capsys):
    answers = {"gw-001": {"entry": 4}, "gw-002": "it has no device \x1b[31mcam", "gw-003": None, "gw-004": {"entry": 1}}
    with any_broker(tmp_path / "broker") as broker, gateways(broker, answers, MQTTProtocolVersion.MQTTv311) as heard:
        words = ["gw-001,gw-002,gw-003,gw-001", "mute", "device=cam", "for=2h"]
        status, lines, err = order(capsys, broker, *words)
        assert status == 1
        assert sorted(lines[:-1]) == [
            "gw-001  ok: entry 4",
            "gw-002  refused: it has no device \\x1b[31mcam",
            "gw-003  failed: no reply within 1.5 s",
        ]
        assert lines[-1] == "1 ok, 1 refused, 1 failed of 3"
        assert err == "botwatch collector: 'mute device=cam for=2h' goes to 3 gateways\n"
        assert sorted(gateway for gateway, _ in heard) == ["gw-001", "gw-002", "gw-003"]
        assert {document["for_s"] for _, document in heard} == {7200.0}
        status, lines, _ = order(capsys, broker, "gw-001,gw-004", "mute", "device=cam", "--json")
        assert status == 0
        assert sorted(map(json.loads, lines), key=str) == [
            {"gateway": "gw-001", "ok": True, "result": {"entry": 4}},
            {"gateway": "gw-004", "ok": True, "result": {"entry": 1}},
        ]


@needs_mosquitto
def test_all_and_a_site_are_those_that_the_database_knows(tmp_path, capsys, db):
    health = {"model": "7", "episodes_open": 0, "outbox_depth": 2}
    answers = {f"gw-00{n}": {"gateway": "x", "health": health} for n in (1, 2, 3)}
    with Mosquitto(tmp_path / "broker") as broker, gateways(broker, answers) as heard:
        status, lines, _ = order(capsys, broker, "--all", "status", "--db", db)
        assert (status, lines[-1]) == (0, "3 ok, 0 refused, 0 failed of 3")
        assert "gw-002  ok: running, model 7, open episodes: 0, messages in the outbox: 2" in lines
        heard.clear()
        assert order(capsys, broker, "--site=plant-a", "status", "--db", db)[0] == 0
        assert sorted(gateway for gateway, _ in heard) == ["gw-001", "gw-002"]
        heard.clear()
        for words, text in (
            (["--site", "plant-aa", "status"], "unknown site 'plant-aa': did you mean 'plant-a'?"),
            (["--site", "plant-a", "--all", "status"], "exclude each other"),
            (["--all", "evidence", "alert=01a20937-03cb-7c3e-9f10-0c5a7c1e9a44"], "name that gateway only"),
            (["gw-001,GW 2", "status"], "gateway 'GW 2'"),
        ):
            status, lines, err = order(capsys, broker, *words, "--db", db)
            assert (status, lines, err.count("\n")) == (2, [], 1)
            assert text in err
        assert heard == []
        store = AlertStore(db)
        store.save([Arrival((f"gw-00{n}", Status("stopped", "b", "0.1.0", 5)), 6) for n in (2, 3)])
        store.save([Arrival(GatewayDocument("gw-004", "health", 6, {}), 6, '{"site": "plant-c", "counters": {}}')])
        store.close()
        status, lines, _ = order(capsys, broker, "--all", "status", "--db", db)
        assert (status, [gateway for gateway, _ in heard]) == (0, ["gw-001"])
        assert lines[0] == "gw-002  skipped: its agent was stopped"
        assert lines[2] == "gw-004  skipped: no agent has connected for it"
        assert lines[-1] == "1 ok, 0 refused, 0 failed, 3 skipped of 4"
        status, lines, _ = order(capsys, broker, "--site", "plant-b", "status", "--json", "--db", db)
        skipped = {"gateway": "gw-003", "ok": False, "skipped": True, "error": "its agent was stopped"}
        assert (status, [json.loads(line) for line in lines]) == (1, [skipped])
        status, _, err = order(capsys, broker, "--all", "status", "--db", str(tmp_path / "none.sqlite"))
        assert status == 1
        assert "no such file; --all and --site find gateways in the collector's database" in err


@needs_mosquitto
def test_the_broker_names_those_that_do_not_listen_at_once(tmp_path, capsys, db):
    with Mosquitto(tmp_path / "broker") as broker, gateways(broker, {"gw-001": {}}):
        began = time.monotonic()
        status, lines, _ = order(capsys, broker, "gw-001,gw-002", "test-alert")
        assert time.monotonic() - began < 1.5
        misspelt = order(capsys, broker, "gw-01", "test-alert", "--db", db)
        known = order(capsys, broker, "gw-002", "test-alert", "--db", db)
    assert misspelt[0] == known[0] == 1
    assert misspelt[2].endswith("`commands: []`; unknown gateway 'gw-01': did you mean 'gw-001'?\n")
    assert known[2].endswith("`commands: []`\n")
    assert status == 1
    assert "gw-001  ok: done" in lines
    assert "gw-002  failed: does not take commands: the broker does not know it, or it has `commands: []`" in lines


@needs_mosquitto
def test_more_gateways_than_may_have_it_at_once_all_get_it_and_no_more_wait_than_may(tmp_path, capsys):
    names = [f"gw-{n:03d}" for n in range(2 * MAX_WAITING + 10)]
    silent = set(names[:MAX_WAITING])
    answers = {name: None if name in silent else {} for name in names}
    with Mosquitto(tmp_path / "broker") as broker, gateways(broker, answers) as heard:
        results = []

        def run():
            results.append(
                main(["command", ",".join(names), "test-alert", "--broker", broker.address, "--timeout", "2"])
            )

        thread = threading.Thread(target=run)
        began = time.monotonic()
        thread.start()
        wait_until(lambda: len(heard) == MAX_WAITING)
        assert {gateway for gateway, _ in heard} == silent
        thread.join(30)
        assert time.monotonic() - began > 2
    lines = capsys.readouterr().out.splitlines()
    assert results == [1]
    assert lines[-1] == f"{MAX_WAITING + 10} ok, 0 refused, {MAX_WAITING} failed of {len(names)}"


@needs_mosquitto
def test_a_broker_that_goes_leaves_no_gateway_without_a_line(tmp_path, capsys):
    names = [f"gw-{n:03d}" for n in range(MAX_WAITING + 2)]
    with Mosquitto(tmp_path / "broker") as broker, gateways(broker, dict.fromkeys(names)) as heard:
        ends = threading.Thread(target=lambda: (wait_until(lambda: len(heard) == MAX_WAITING), broker.kill()))
        ends.start()
        words = ["command", ",".join(names), "test-alert", "--broker", broker.address, "--timeout", "20"]
        assert main(words) == 1
        ends.join(20)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"0 ok, 0 refused, {len(names)} failed of {len(names)}"
    assert sum("failed: not sent; broker " in line for line in lines) == 2


def test_without_a_broker_it_is_one_line(capsys):
    assert main(["command", "gw-001,gw-002", "status", "--broker", "127.0.0.1:9"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[1].startswith("botwatch collector: broker 127.0.0.1:9: ")


def test_through_a_broker_of_mqtt_3_1_1_one_gateway_and_several_reply(tmp_path, capsys):
    config = tmp_path / "collector.yaml"
    config.write_text("broker: {connect_timeout_s: 0.5}\n")
    answers = {"gw-001": {"entry": 1}, "gw-002": {"entry": 2}}
    with (
        Amqtt(tmp_path / "broker") as broker,
        gateways(broker, answers, MQTTProtocolVersion.MQTTv311),
    ):
        assert order(capsys, broker, "gw-001", "mute", "device=cam", "--config", str(config))[:2] == (0, ["entry 1"])
        status, lines, _ = order(capsys, broker, "gw-001,gw-002", "mute", "device=cam", "--config", str(config))
        assert (status, lines[-1]) == (0, "2 ok, 0 refused, 0 failed of 2")


@needs_mosquitto
def test_the_reply_of_one_gateway_is_words_or_json_and_no_line_is_wider_than_the_terminal(tmp_path, capsys):
    answers = {"gw-001": {"entry": 3, "device": "b8:27:eb:12:34:56", "until": "2026-11-23T16:22:10.000000+0000"}}
    with Mosquitto(tmp_path / "broker") as broker, gateways(broker, answers):
        status, lines, _ = order(capsys, broker, "gw-001", "mute", "device=cam", "--utc")
        assert (status, lines) == (0, ["entry 3, device b8:27:eb:12:34:56, until 2026-11-23 16:22:10 UTC"])
        assert (
            json.loads("".join(order(capsys, broker, "gw-001", "mute", "device=cam", "--json")[1])) == answers["gw-001"]
        )
        words = ["collector", "command", "gw-001,gw-002", "mute", "device=cam", "--broker", broker.address]
        for line in in_terminal(80, *words, NO_COLOR="1").splitlines():
            assert len(line) <= 80 or line.startswith("botwatch collector: ")
