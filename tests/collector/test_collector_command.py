"""`botwatch collector` as a process of its own, between a real broker and a real database file."""

import hashlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from copy import deepcopy
from importlib.resources import files
from pathlib import Path

import pytest
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from collector.__main__ import main
from collector.config import CollectorConfig
from collector.store import AlertStore, Arrival
from edge_agent.contract import settings
from edge_agent.contract.alert import Alert
from edge_agent.contract.commands import Reply
from edge_agent.contract.messages import Chunk
from edge_agent.delivery.link import BrokerConfig, Link
from edge_agent.delivery.outbox import Outbox
from edge_agent.state import State
from tests.broker import Amqtt, Mosquitto, any_broker, needs_mosquitto, wait_until

EXAMPLE = json.loads((Path(__file__).parents[1] / "data" / "alert.example.json").read_text())


def alert(n, gateway="gw-001", **ours):
    """Episode ``n`` of a gateway, as its agent would send it."""
    document = deepcopy(EXAMPLE)
    document["host"] = gateway
    document["alert"]["context"]["botwatch"] |= {
        "id": f"01936d2e-7b1c-7c3e-9f10-{n:012x}",
        "gateway": gateway,
        **ours,
    }
    return json.dumps(document).encode()


def command(*arguments):
    return [sys.executable, "-m", "collector", *map(str, arguments)]


def record(line):
    """The cursor in a line of JSON, and the record as the gateway sent it."""
    document = json.loads(line)
    return document["alert"]["context"].pop("collector")["cursor"], document


class Collector:
    """`botwatch collector serve` on ``db``."""

    before = ()  # words before the command

    def __init__(self, broker, db, *arguments):
        self.db, self.arguments = db, ("--broker", broker.address, "--db", db, *arguments)
        self.log = db.with_suffix(".log")

    def start(self):
        before = self.said().count("subscribed to")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*self.before, *command("serve", *self.arguments)], stderr=log)
        wait_until(lambda: self.said().count("subscribed to") > before or self.process.poll() is not None)
        assert self.process.poll() is None, self.said()
        return self

    def said(self):
        return self.log.read_text() if self.log.exists() else ""

    def end(self, number):
        self.process.send_signal(number)
        return self.process.wait(10)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def stored(self):
        """(id, seq) of every row, none twice."""
        with closing(sqlite3.connect(self.db)) as db:
            rows = db.execute("SELECT id, seq FROM alert").fetchall()
        assert len(set(rows)) == len(rows)
        return set(rows)


@contextmanager
def publisher(broker, version=MQTTProtocolVersion.MQTTv5):
    """``send(topic, payload)``, QoS 1, returning when the broker has it."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, "publisher", protocol=version)
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    assert connected.wait(10)
    yield lambda topic, payload: client.publish(topic, payload, qos=1).wait_for_publish(10)
    client.disconnect()
    client.loop_stop()


@contextmanager
def gateway(broker, folder, name="gw-001"):
    """An agent's link and outbox."""
    outbox = Outbox(State(folder / f"{name}.sqlite"))
    config = BrokerConfig(retry_min_s=0.05, retry_max_s=0.2).at(broker.address)
    link, stop = Link(config, outbox, gateway=name, agent="0.1.0"), threading.Event()
    thread = threading.Thread(target=link.run, args=(stop,))
    thread.start()
    try:
        yield outbox, link
    finally:
        stop.set()
        thread.join(10)


def test_a_message_that_is_no_alert_of_its_gateway_is_set_apart_and_counted_and_the_next_one_stored(tmp_path):
    with any_broker(tmp_path / "broker") as broker, Collector(broker, tmp_path / "c.sqlite") as collector:
        with publisher(broker, MQTTProtocolVersion.MQTTv311) as send:
            send("botwatch/v1/gw/gw-001/alert", b"not JSON at all")
            send("botwatch/v1/gw/gw-001/alert", b"x" * 50_000)
            send("botwatch/v1/gw/gw-002/alert", alert(1))
            send("botwatch/v1/gw/gw-001/alert", alert(2, **{"class": "benign"}))
            send("botwatch/v1/gw/gw-001/alert", alert(3))
            send("botwatch/v1/gw/gw-001/alert", alert(3))
        wait_until(lambda: len(collector.stored()) == 1)
        assert collector.end(signal.SIGTERM) == 0
        assert "6 received, 1 stored, 1 repeated, 4 rejected" in collector.said()
        zone = time.strftime("%Z")  # a log is compared with those of gateways in other zones
        assert all(
            re.match(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d {zone} ", line) for line in collector.said().splitlines()
        )
        reasons = [r.reason.partition(":")[0] for r in AlertStore(str(collector.db)).rejections()]
        assert reasons == ["not JSON", "too large", reasons[2], "schema"]
        assert "on the topic of gw-002" in reasons[2]


@needs_mosquitto
def test_a_collector_killed_mid_stream_and_restarted_has_all_of_it_once(tmp_path):
    with (
        Mosquitto(tmp_path / "broker") as broker,
        Collector(broker, tmp_path / "c.sqlite") as collector,
        gateway(broker, tmp_path) as (outbox, link),
    ):
        for burst in range(3):
            numbers = range(200 * burst, 200 * burst + 200)
            outbox.put([("botwatch/v1/gw/gw-001/alert", alert(n), False) for n in numbers])
            wait_until(lambda burst=burst: len(collector.stored()) > 200 * burst)
            if burst < 2:
                collector.end(signal.SIGKILL)
                assert link.flush(10) == 0
                collector.start()
        wait_until(lambda: len(collector.stored()) == 600)


@needs_mosquitto
def test_a_broker_killed_mid_stream_and_restarted_costs_no_alert(tmp_path):
    with (
        Mosquitto(tmp_path / "broker") as broker,
        Collector(broker, tmp_path / "c.sqlite") as collector,
        gateway(broker, tmp_path) as (outbox, link),
    ):
        wait_until(lambda: link.connected)
        outbox.put([("botwatch/v1/gw/gw-001/alert", alert(n), False) for n in range(300)])
        wait_until(lambda: len(collector.stored()) == 300)
        broker.kill()
        outbox.put([("botwatch/v1/gw/gw-001/alert", alert(n), False) for n in range(300, 600)])
        broker.start()
        wait_until(lambda: len(collector.stored()) == 600)
        assert link.flush(5) == 0


def test_through_a_broker_of_mqtt_3_1_1_it_works_too(tmp_path):
    config = tmp_path / "collector.yaml"
    config.write_text("broker: {connect_timeout_s: 0.5}\n")
    with (
        Amqtt(tmp_path / "broker") as broker,
        Collector(broker, tmp_path / "c.sqlite", "--config", config) as collector,
        publisher(broker, MQTTProtocolVersion.MQTTv311) as send,
    ):
        assert "MQTT 3.1.1" in collector.said()
        for n in range(50):
            send("botwatch/v1/gw/gw-001/alert", alert(n))
        wait_until(lambda: len(collector.stored()) == 50)


@needs_mosquitto
def test_the_end_of_a_gateway_reaches_the_collector(tmp_path):
    with (
        Mosquitto(tmp_path / "broker") as broker,
        Collector(broker, tmp_path / "c.sqlite") as collector,
    ):
        store = AlertStore(str(collector.db))
        with gateway(broker, tmp_path):
            wait_until(lambda: store.gateways() == {"gw-001": "online"})
        wait_until(lambda: store.gateways() == {"gw-001": "stopped"})


@needs_mosquitto
def test_follow_shows_alerts_as_they_come_while_serve_runs(tmp_path):
    with (
        Mosquitto(tmp_path / "broker") as broker,
        Collector(broker, tmp_path / "c.sqlite") as collector,
        publisher(broker) as send,
    ):
        send("botwatch/v1/gw/gw-001/alert", alert(1))
        wait_until(lambda: len(collector.stored()) == 1)
        arguments = ("alerts", "--db", collector.db, "--follow")
        with subprocess.Popen(command(*arguments, "--json"), stdout=subprocess.PIPE) as follower:
            assert record(follower.stdout.readline()) == (1, json.loads(alert(1)))
            send("botwatch/v1/gw/gw-001/alert", alert(2))
            assert record(follower.stdout.readline()) == (2, json.loads(alert(2)))
            follower.send_signal(signal.SIGINT)
            assert follower.wait(10) == 0
        with subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, text=True) as follower:
            lines = [follower.stdout.readline() for _ in range(2)]
            follower.stdout.close()  # as `| head -2` does
            send("botwatch/v1/gw/gw-001/alert", alert(3))
            assert follower.wait(10) == 0
        assert all("Mirai scan from cam-entrance b8:27:eb:12:34:56" in line for line in lines)


@pytest.fixture
def listed(tmp_path):
    db = str(tmp_path / "c.sqlite")
    store = AlertStore(db)
    model = {"version": "1", "generated": True}
    texts = [
        alert(1, device={"ip": "192.168.1.9", "name": "\x1b[2Jcam [red]x"}, model=model),
        alert(2, gateway="gw-002"),
        alert(3),
    ]
    store.save([Arrival(Alert.read(json.loads(text)), 1, text.decode()) for text in texts])
    store.close()
    return db


@pytest.mark.parametrize("words", [(), ("--json",), ("--follow",)])
def test_a_list_on_a_full_disk_is_one_line_and_a_failure(listed, words):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("alerts", "--db", listed, *words), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (
        1,
        "botwatch collector: stdout cannot be written: No space left on device\n",
    )


def test_a_name_that_the_encoding_does_not_have_is_escaped(tmp_path):
    db = str(tmp_path / "a.sqlite")
    document = json.loads(alert(1))
    document["alert"]["context"]["botwatch"]["device"]["name"] = "Küche 📷"
    text = json.dumps(document)
    store = AlertStore(db)
    store.save([Arrival(Alert.read(json.loads(text)), 1, text)])
    store.close()
    for encoding, name in (("latin-1", "Küche \\U0001f4f7"), ("ascii", "K\\xfcche \\U0001f4f7"), ("utf-8", "Küche 📷")):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run(command("alerts", "--db", db), capture_output=True, env=environment, check=True)
        assert name in done.stdout.decode(encoding)


def test_a_line_marks_generated_models_and_lets_no_name_command_the_terminal(listed, capsys):
    assert main(["alerts", "--db", listed]) == 0
    out = capsys.readouterr().out
    assert "1 (generated)" in out
    assert "\\x1b[2Jcam [red]x" in out
    assert "\x1b[2J" not in out
    assert out.count("(generated)") == 1


def test_lines_can_be_chosen_by_gateway_and_number(listed, capsys):
    assert main(["alerts", "--db", listed, "--json", "--gateway", "gw-002"]) == 0
    assert [json.loads(line)["host"] for line in capsys.readouterr().out.splitlines()] == ["gw-002"]
    assert main(["alerts", "--db", listed, "--json", "--last", "2"]) == 0
    assert [json.loads(line)["host"] for line in capsys.readouterr().out.splitlines()] == ["gw-002", "gw-001"]
    assert main(["alerts", "--db", listed, "--json", "--last", "0"]) == 0
    assert "\x1b" not in (out := capsys.readouterr().out)
    assert len(out.splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("brokers: {}", "unknown key 'brokers'"),
        ("broker: {prot: 1}", "unknown key 'prot'"),
        ("broker: {port: high}", "port: expected int"),
        ("broker: {port: 99999}", "[broker]: port: 99999, must be 1 to 65535"),
        ("broker: {tls: true, ca_file: /none.crt}", "ca_file /none.crt"),
        ("batch_rows: 0", "batch_rows"),
        ("a: [", "not YAML"),
    ],
)
def test_a_bad_configuration_is_one_line_and_exit_2(tmp_path, capsys, text, words):
    config = tmp_path / "collector.yaml"
    config.write_text(text)
    assert main(["serve", "--config", str(config), "--db", str(tmp_path / "c.sqlite")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_missing_database_is_one_line_and_exit_1(tmp_path, capsys):
    assert main(["alerts", "--db", str(tmp_path / "none.sqlite")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["serve"], ["alerts"]])
def test_help_has_one_example_that_parses(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.count("example:\n  botwatch collector ") == 1


def test_the_configuration_we_ship_loads_and_says_the_defaults():
    text = files("configs").joinpath("collector.yaml").read_text()
    assert settings.loads(CollectorConfig, text, "collector.yaml") == CollectorConfig()


def test_it_needs_nothing_of_the_agent_but_the_contract_and_the_mqtt_client():
    program = (
        "import sys, collector.__main__\n"
        "print(*[m for m in sys.modules if m.split('.')[0] in ('trainer', 'converter', 'tensorflow', 'edge_agent')])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    loaded = set(out.split()) - {"edge_agent"}
    assert loaded
    shared = ("edge_agent.contract", "edge_agent.culprit", "edge_agent.mqtt", "edge_agent.reconnect")
    assert all(name.startswith(shared) for name in loaded)


@needs_mosquitto
@pytest.mark.parametrize(
    ("sends", "words"),
    [
        (lambda content: content[:-1] + b"?", "does not match the sha256 in its reply"),
        (lambda content: content[:48_000], "1 of 2 parts came"),
    ],
)
def test_evidence_that_differs_from_the_announced_is_not_written(tmp_path, capsys, sends, words):
    """A gateway whose words and parts do not fit, over a real broker."""
    id_, content = "01a20937-03cb-7c3e-9f10-0c5a7c1e9a44", bytes(50_000)
    told = {"id": id_, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "count": 2}

    def answer(client, _data, m):
        reply = Reply(json.loads(m.payload)["id"], "evidence", 1, told)
        client.publish(m.properties.ResponseTopic, json.dumps(reply.document()), qos=1)
        sent = sends(content)
        for part, start in enumerate(range(0, len(sent), 48_000)):
            chunk = Chunk(id_, part, 2, sent[start : start + 48_000])
            client.publish(f"botwatch/v1/gw/gw-001/chunk/{id_}", json.dumps(chunk.document()), qos=1)

    with Mosquitto(tmp_path / "broker") as broker:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, "gw-001", protocol=MQTTProtocolVersion.MQTTv5)
        ready = threading.Event()
        client.on_connect = lambda c, *_: c.subscribe("botwatch/v1/gw/gw-001/cmd/#", 1)
        client.on_subscribe, client.on_message = lambda *_: ready.set(), answer
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        assert ready.wait(10)
        out = tmp_path / "out.pcap"
        order = ["command", "gw-001", "evidence", f"alert={id_}", "--broker", broker.address, "--timeout", "2"]
        assert main([*order, "--out", str(out)]) == 1
        client.disconnect()
        client.loop_stop()
    assert words in capsys.readouterr().err
    assert not out.exists()
