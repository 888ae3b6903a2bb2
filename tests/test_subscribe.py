"""What other programs read: the example of each kind of alert, and the consumers in docs/consumers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from copy import deepcopy
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from collector.store import AlertStore, Arrival
from edge_agent.contract.alert import Alert
from edge_agent.contract.messages import format_time
from tests.broker import Mosquitto, free_port, needs_clients, needs_mosquitto, wait_until
from tests.collector.test_collector_command import publisher
from tests.examples import read_all, section
from tests.streams import context

ROOT = Path(__file__).parents[1]
CONSUMERS = ROOT / "docs/consumers"
EXAMPLES = read_all()
SCHEMA = jsonschema.Draft202012Validator(
    json.loads(files("edge_agent.contract").joinpath("alert.schema.json").read_text())
)
EVE = {
    *("timestamp", "event_type", "flow_id", "in_iface", "src_ip", "src_port", "dest_ip", "dest_port", "proto", "host"),
    *("community_id", "ether", "alert", "flow"),
}
"""The keys that Suricata's own schema has at the top of a record; it allows no others."""

TOPIC, STATUS = "botwatch/v1/gw/gw-001/alert", "botwatch/v1/gw/gw-001/status"


def alert(name="new", n=1, **ours):
    """An example as episode ``n``, sent now."""
    document = deepcopy(EXAMPLES[name])
    document["timestamp"] = format_time(time.time_ns())
    context(document).update({"id": f"01936d2e-7b1c-7c3e-9f10-{n:012x}", **ours})
    return document


def payload(document):
    return json.dumps(document).encode()


# --- the examples ---

KINDS = {
    "new": ("new", "source", 1),
    "unknown": ("new", "source", 2),
    "update": ("update", "source", 1),
    "end": ("end", "source", 1),
    "victim": ("new", "victim", 2),
    "check-in": ("new", "source", 2),
    "test": ("new", "source", 3),
}


def test_there_is_an_example_of_each_kind():
    shown = {name: (context(a)["state"], context(a)["role"], a["alert"]["severity"]) for name, a in EXAMPLES.items()}
    assert shown == KINDS
    assert {name for name, a in EXAMPLES.items() if context(a).get("test")} == {"test"}
    assert "every" in context(EXAMPLES["check-in"])["explanation"]
    episode = [EXAMPLES[name] for name in ("unknown", "update", "end")]
    assert [context(a)["seq"] for a in episode] == [1, 2, 3]
    assert len({context(a)["id"] for a in episode}) == 1


@pytest.mark.parametrize("name", KINDS)
def test_an_example_is_what_an_agent_of_this_version_writes(name):
    """The schema accepts it, and read and written again it is the same: nothing in it is invented."""
    SCHEMA.validate(EXAMPLES[name])
    assert Alert.read(EXAMPLES[name]).document() == EXAMPLES[name]
    assert set(EXAMPLES[name]) <= EVE


def test_the_document_shows_the_examples_as_they_are():
    assert section(EXAMPLES) in (ROOT / "docs/alerts.md").read_text()


# --- the consumers ---


@contextmanager
def consumer(*command, **options):
    """Run a consumer until the block ends, which interrupts it."""
    words = [sys.executable if word == "python3" else str(word) for word in command]
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
    process = subprocess.Popen(words, **out)
    try:
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


@contextmanager
def line(folder):
    """A broker and a function that sends to it; the broker logs subscriptions."""
    with Mosquitto(folder / "broker", "log_type all") as broker, publisher(broker) as send:
        yield broker, send


def subscribed(broker, topic="/alert"):
    wait_until(lambda: any(topic in line and "1 botwatch" in line for line in broker.log().splitlines()))


def sub(broker):
    return ("-h", "127.0.0.1", "-p", str(broker.port))


HOSTILE = "\x1b[2Jcam\x9b31m\u202e"


@needs_mosquitto
@needs_clients
def test_mosquitto_sub_and_jq_print_a_line_for_each_alert_and_for_a_gateway_that_goes_offline(tmp_path):
    with line(tmp_path) as (broker, send), consumer("sh", CONSUMERS / "alerts.sh", *sub(broker)) as process:
        subscribed(broker, "/status")
        send(TOPIC, b"junk")
        send(TOPIC, payload(alert("unknown", device={"mac": "02:4d:70:49:04:01", "name": HOSTILE})))
        send(TOPIC, payload(alert("test")))
        send(STATUS, payload({"state": "offline", "boot": "b", "agent": "0.1.0", "ts": format_time(0)}))
        first, *lines = [process.stdout.readline() for _ in range(4)]
    assert first == "waiting for alerts\n"
    assert "  gw-001  new  botwatch unknown attack from 192.168.44.23  ?[2Jcam?31m?  reaches" in lines[0]
    assert "  gw-001  test  botwatch TEST" in lines[1]
    assert lines[2] == "1970-01-01T00:00:00Z  gw-001  offline\n"
    assert all(line[:-1].isprintable() for line in lines)


@needs_mosquitto
def test_the_python_client_acts_once_on_each_alert_also_on_those_of_its_absence(tmp_path):
    with line(tmp_path) as (broker, send):
        command = ("python3", CONSUMERS / "alerts.py", "--host", "127.0.0.1", "--port", broker.port)
        with consumer(*command) as process:
            assert process.stdout.readline() == "subscribed: Granted QoS 1\n"
            send(TOPIC, b"junk")
            assert process.stdout.readline().startswith("not an alert on")
            for number in (1, 1, 2):
                send(TOPIC, payload(alert(n=number, explanation=f"number {number} {HOSTILE}")))
            lines = [process.stdout.readline() for _ in range(2)]
            assert [text.partition("number ")[2] for text in lines] == [f"{n} ?[2Jcam?31m?\n" for n in (1, 2)]
        send(TOPIC, payload(alert(n=3, explanation="number 3")))
        with consumer(*command) as process:
            lines = [process.stdout.readline() for _ in range(2)]
            assert any(text.endswith("number 3\n") for text in lines)


def eve(path, *records, status=0):
    """Let eve.py append ``records``; returns the records in the file."""
    text = b"".join(record if isinstance(record, bytes) else payload(record) + b"\n" for record in records)
    done = subprocess.run([sys.executable, CONSUMERS / "eve.py", path], input=text, capture_output=True, check=False)
    assert done.returncode == status, done.stderr
    return [json.loads(line) for line in path.read_text().splitlines()] if status == 0 else done.stderr.decode()


def test_eve_lines_are_whole_records_and_none_is_written_twice(tmp_path):
    path = tmp_path / "eve.json"
    first, second, third = (alert(n=n) for n in (1, 2, 3))
    junk = (
        b"junk\n",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        b'{"event_type":"alert"}\n',
        b'{"a":"' + b"x" * 40_000 + b'"}\n',
    )
    assert eve(path, first, *junk, first, second) == [first, second]
    assert eve(path, second, third) == [first, second, third]
    with path.open("ab") as file:
        file.write(b'{"timestamp":"2026')  # power was lost here
    path.write_bytes(path.read_bytes())
    done = subprocess.run(
        [sys.executable, CONSUMERS / "eve.py", path], input=payload(alert(n=4)) + b"\n", capture_output=True, check=True
    )
    assert done.stderr.decode() == f"eve.py: appending to {path}\n"
    lines = path.read_text().splitlines()
    assert lines[3] == '{"timestamp":"2026'
    assert context(json.loads(lines[4]))["id"].endswith("4")
    for text in (*lines[:3], lines[4]):
        SCHEMA.validate(json.loads(text))
        assert set(json.loads(text)) <= EVE
    assert "No such file" in eve(tmp_path / "none" / "eve.json", first, status=1)


@needs_mosquitto
@needs_clients
def test_eve_lines_come_from_the_broker_and_go_on_in_a_new_file_after_a_rotation(tmp_path):
    path = tmp_path / "eve.json"
    with line(tmp_path) as (broker, send):
        words = ["mosquitto_sub", *sub(broker), "-c", "-i", "siem", "-q", "1", "-t", "botwatch/v1/gw/+/alert"]
        source = subprocess.Popen(words, stdout=subprocess.PIPE)
        try:
            with consumer("python3", CONSUMERS / "eve.py", path, stdin=source.stdout):
                subscribed(broker)
                send(TOPIC, payload(alert(n=1)))
                wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
                path.rename(tmp_path / "eve.json.1")
                send(TOPIC, payload(alert(n=2)))
                wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
        finally:
            source.kill()
            source.wait()
    assert [context(json.loads(file.read_text()))["id"][-1] for file in (tmp_path / "eve.json.1", path)] == ["1", "2"]


def test_eve_lines_of_a_collector_go_on_where_they_ended_also_in_a_new_file(tmp_path):
    path, cursor, db = tmp_path / "eve.json", tmp_path / "eve.json.cursor", tmp_path / "c.sqlite"
    for name, words in (("botwatch", "-m edge_agent.command"), ("python3", "")):
        (tmp_path / name).write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} {words} "$@"\n')
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    store = AlertStore(str(db))

    def save(*numbers):
        store.save([Arrival(Alert.read(a), 1, json.dumps(a)) for a in (alert(n=n) for n in numbers)])

    def written():
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(context(json.loads(line))["id"][-1]) for line in lines]

    for numbers in ((1, 2, 3), (4, 5)):
        save(*numbers)
        command = ("sh", CONSUMERS / "eve.sh", path, "--db", db)
        with consumer(*command, env=environment, start_new_session=True) as process:
            wait_until(lambda numbers=numbers: written() == list(numbers))
            wait_until(lambda numbers=numbers: cursor.exists() and cursor.read_text() == f"{numbers[-1]}\n")
            os.killpg(process.pid, signal.SIGINT)
            process.wait(10)
        for line in path.read_text().splitlines():
            SCHEMA.validate(json.loads(line))
        path.rename(tmp_path / f"eve.json.{numbers[0]}")
    store.close()


# --- Node-RED ---

FLOW = json.loads((CONSUMERS / "node-red.json").read_text())


def test_the_flow_for_node_red_is_whole():
    nodes = {node["id"]: node for node in FLOW}
    assert len(nodes) == len(FLOW)
    assert {node["type"] for node in FLOW} == {"tab", "mqtt-broker", "mqtt in", "function", "debug"}
    for node in FLOW:
        assert node.get("z", "bw-tab") in nodes
        assert node.get("broker", "bw-broker") in {"bw-broker", "localhost"}
        assert all(target in nodes for wires in node.get("wires", []) for target in wires)
    (source,) = (node for node in FLOW if node["type"] == "mqtt in")
    assert (source["topic"], source["qos"], source["datatype"]) == ("botwatch/v1/gw/+/alert", "1", "json")


RUN = """
const flow = JSON.parse(require('fs').readFileSync(process.argv[1]));
const run = new Function('msg', 'context', flow.find(node => node.type === 'function').func);
const held = new Map();
const context = {get: key => held.get(key), set: (key, value) => held.set(key, value)};
for (const [topic, payload] of JSON.parse(require('fs').readFileSync(0)))
    console.log(JSON.stringify(run({topic, payload}, context)?.payload ?? null));
"""


def answered(*messages):
    """What the flow's function says to each message, without Node-RED."""
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    command = ["node", "-e", RUN, CONSUMERS / "node-red.json"]
    out = subprocess.run(command, input=json.dumps(messages), capture_output=True, text=True, check=True).stdout
    return [json.loads(text) for text in out.splitlines()]


def test_the_flow_says_once_that_a_device_attacks_once_that_it_is_worse_and_once_that_it_has_ended():
    new, worse, same, end = (
        alert("unknown", device={"ip": "192.168.44.23", "name": HOSTILE}),
        alert("update", seq=2),
        alert("update", seq=3),
        alert("end", seq=4),
    )
    messages = [(TOPIC, a) for a in (new, new, worse, same, end, end, alert("test"))]
    junk = [(TOPIC, {}), (TOPIC, None), (TOPIC, "x"), ("botwatch/v1/gw/gw-002/alert", alert(n=5))]
    answers = answered(*messages, *junk)
    assert answers[0].startswith("botwatch unknown attack from 192.168.44.23 (?[2Jcam?31m?): reaches")
    assert answers[2].startswith("botwatch Mirai scan from 192.168.44.23 (doorbell): reaches")
    assert answers[4] == "botwatch Mirai scan from 192.168.44.23 (doorbell): has ended"
    assert answers[6] == "test from gw-001"
    assert [answers[i] for i in (1, 3, 5, 7, 8, 9, 10)] == [None] * 7


@needs_mosquitto
def test_node_red_runs_the_flow(tmp_path):
    """The real one, which npm installs; `make test-long` has the time for it."""
    if not os.environ.get("BOTWATCH_LONG") or not shutil.which("npm"):
        pytest.skip("BOTWATCH_LONG is not set, or npm is not installed")
    words = ["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", tmp_path, "node-red@4"]
    subprocess.run(words, check=True, timeout=300, stdout=subprocess.DEVNULL)
    with line(tmp_path) as (broker, send):
        flow = [node | ({"port": str(broker.port)} if node["type"] == "mqtt-broker" else {}) for node in FLOW]
        (tmp_path / "flow.json").write_text(json.dumps(flow))
        start = tmp_path / "node_modules/node-red/red.js"
        words = ["node", start, "--port", str(free_port()), "--userDir", tmp_path / "red", tmp_path / "flow.json"]
        words += ["-D", "uiHost=127.0.0.1", "-D", "telemetry.enabled=false"]
        log = tmp_path / "red.log"
        with log.open("w") as out, consumer(*words, stdout=out):
            wait_until(lambda: "Sending SUBACK" in broker.log() or "1 botwatch/v1/gw/+/alert" in broker.log(), 60)
            send(TOPIC, payload(alert("new")))
            send(TOPIC, payload(alert("new")))
            send(TOPIC, payload(alert("end", seq=2)))
            wait_until(lambda: "has ended" in log.read_text(), 20)
        assert log.read_text().count("botwatch BASHLITE tcp flood from 192.168.44.23") == 1
