"""The alert: its grammar is made from its fields, and what it writes it reads back."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from edge_agent.contract import messages
from edge_agent.contract.alert import CLASSES, Activity, Alert, AlertDevice, Evidence, ModelInfo
from edge_agent.contract.messages import MessageError

SCHEMA = json.loads(files("edge_agent.contract").joinpath("alert.schema.json").read_text())
EXAMPLE = json.loads((Path(__file__).parents[2] / "data" / "alert.example.json").read_text())


def test_example_validates_and_reads_back():
    jsonschema.Draft202012Validator(SCHEMA).validate(EXAMPLE)
    alert = Alert.read(messages.decode(messages.encode(EXAMPLE)))
    assert (alert.gateway, alert.class_name, alert.device.name) == ("gw-001", "mirai.scan", "cam-entrance")
    assert alert.document()["alert"]["metadata"] == EXAMPLE["alert"]["metadata"]


def test_every_class_of_the_schema_has_its_own_signature():
    enum = SCHEMA["properties"]["alert"]["properties"]["context"]["properties"]["botwatch"]["properties"]["class"]
    assert set(CLASSES) == set(enum["enum"])
    numbers = [info.signature_id for info in CLASSES.values()]
    assert len(set(numbers)) == len(numbers)
    assert all(9001000 <= n <= 9001999 for n in numbers)
    assert all("BASHLITE" in info.title for name, info in CLASSES.items() if name.startswith("gafgyt"))


def test_the_published_grammar_is_what_the_command_makes_of_the_fields():
    """`python -m edge_agent.contract.alert > edge_agent/contract/alert.schema.json` after a field was changed."""
    made = subprocess.run(
        [sys.executable, "-m", "edge_agent.contract.alert"], capture_output=True, check=True, text=True
    )
    assert made.stdout == files("edge_agent.contract").joinpath("alert.schema.json").read_text()
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_an_alert_with_every_field_reads_back_and_has_its_keys_in_eves_order():
    alert = Alert(
        id="01936d2e-7b1c-7c3e-9f10-0c5a7c1e9a44",
        seq=2,
        state="update",
        t_ns=1_795_450_930_123_456_000,
        first_ns=1_795_450_900_000_000_000,
        last_ns=1_795_450_930_000_000_000,
        duration_s=30.5,
        count=7,
        packets=3121,
        bytes=187_260,
        gateway="gw-001",
        site="plant-a",
        device=AlertDevice("b8:27:eb:12:34:56", "192.168.1.57", "cam-entrance"),
        role="source",
        class_name="mirai.scan",
        kind="scan",
        port=23,
        also=(Activity("check-in", 443),),
        confidence=0.97,
        score=8.41,
        threshold=1.92,
        window_s=10.0,
        top_features=(("HH_L1_weight", 31.2),),
        explanation="reaches 160 new addresses a second",
        model=ModelInfo("2026.11.23+1", "ab" * 32, generated=True),
        agent="0.1.0",
        clock="unsynced",
        src_ip="192.168.1.57",
        src_port=48101,
        dest_ip="203.0.113.9",
        dest_port=23,
        proto="TCP",
        interface="eth0",
        evidence=Evidence("cd" * 32, 118_424),
        test=True,
    )
    document = json.loads(messages.encode(alert.document()))
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    assert Alert.read(document) == alert
    assert list(document) == list(EXAMPLE)
    assert list(document["alert"]) == list(EXAMPLE["alert"])
    ours, example = (d["alert"]["context"]["botwatch"] for d in (document, EXAMPLE))
    assert [key for key in ours if key in example] == list(example)


def test_an_alert_of_which_little_is_known_leaves_out_what_is_not():
    ours = EXAMPLE["alert"]["context"]["botwatch"]
    least = {key: ours[key] for key in ("id", "seq", "state", "gateway", "class", "confidence", "score", "threshold")}
    least |= {key: ours[key] for key in ("model", "agent", "clock")}
    document = {"timestamp": EXAMPLE["timestamp"], "src_ip": "0.0.0.0", "proto": "IP"}
    document["alert"] = {"context": {"botwatch": least}}
    alert = Alert.read(document)
    assert (alert.first_ns, alert.last_ns, alert.src_ip, alert.count) == (alert.t_ns, alert.t_ns, "", 1)
    written = alert.document()
    assert written["src_ip"] == "0.0.0.0"
    assert not {"in_iface", "src_port", "dest_ip", "dest_port", "flow_id", "community_id", "ether"} & set(written)
    ours = written["alert"]["context"]["botwatch"]
    assert not {"site", "top_features", "explanation", "evidence", "test"} & set(ours)
    assert ours["device"] == {}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": "01936d2e"}, "id: '01936d2e' is not a UUID"),
        ({"seq": "two"}, "seq: 'two' is not a whole number"),
        ({"state": "over"}, "state: 'over' is none of new, update, end"),
        ({"class": ...}, "class: missing"),
        ({"score": True}, "score: 'True' is not a number"),
        ({"explanation": 3}, "explanation: '3' is not a text"),
        ({"test": "no"}, "test: 'no' is not true or false"),
        ({"model": "mine"}, "model: ModelInfo: not a JSON object"),
        ({"last_seen": "now"}, "last_seen: time 'now'"),
        ({"score": 10**400}, "score: "),
        ({"top_features": 5}, "top_features: "),
        ({"top_features": [5]}, "top_features: "),
        ({"top_features": [["HH_L1_weight", None]]}, "top_features: "),
        ({"top_features": [["HH_L1_weight", 10**400]]}, "top_features: "),
    ],
)
def test_a_document_that_is_no_alert_is_refused_by_the_name_of_its_key(changes, reason):
    document = json.loads(json.dumps(EXAMPLE))
    ours = document["alert"]["context"]["botwatch"]
    ours |= changes
    document["alert"]["context"]["botwatch"] = {key: value for key, value in ours.items() if value is not ...}
    with pytest.raises(MessageError, match=reason):
        Alert.read(document)
    with pytest.raises(MessageError, match="not a JSON object"):
        Alert.read({"alert": {}})
