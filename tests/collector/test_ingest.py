"""What the collector accepts, and that a database which refuses or is busy costs no message."""

import contextlib
import io
import json
import os
import sqlite3
import threading
import time
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import collector.__main__ as command
from collector.ingest import CollectorConfig, Ingest, MessageJudge, _Received
from collector.store import AlertStore
from edge_agent.contract import messages
from edge_agent.contract.alert import Alert
from edge_agent.contract.messages import MAX_PAYLOAD, MessageError, Status

EXAMPLE = json.loads((Path(__file__).parents[1] / "data" / "alert.example.json").read_text())
TOPIC = "botwatch/v1/gw/gw-001/alert"
JUDGE = MessageJudge()


def changed(path, value):
    """The example with the key at ``path`` set to ``value``, or without it when that is ``...``."""
    document = deepcopy(EXAMPLE)
    inner = document
    *way, last = path.split(".")
    for key in way:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(document).encode()


OURS = "alert.context.botwatch"


def test_the_example_and_a_status_are_accepted():
    alert = JUDGE.judge(TOPIC, json.dumps(EXAMPLE).encode())
    assert isinstance(alert, Alert)
    assert (alert.gateway, alert.seq) == ("gw-001", 1)
    status = Status("offline", "b", "0.1.0", 1_795_450_930_000_000_000)
    assert JUDGE.judge("botwatch/v1/gw/gw-001/status", messages.encode(status.document())) == ("gw-001", status)


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        (TOPIC, b"flood!", "not JSON"),
        (TOPIC, b"x" * (MAX_PAYLOAD + 1), "too large"),
        ("botwatch/v1/gw/gw-002/alert", json.dumps(EXAMPLE).encode(), "on the topic of gw-002"),
        (TOPIC, changed("host", "gw-002"), "on the topic of gw-001"),
        (TOPIC, changed(f"{OURS}.gateway", "gw-002"), "on the topic of gw-001"),
        ("botwatch/v1/gw/GW 1/alert", json.dumps(EXAMPLE).encode(), "gateway"),
        ("botwatch/v2/gw/gw-001/alert", json.dumps(EXAMPLE).encode(), "topic"),
        ("botwatch/v1/gw/gw-001/health", b"{}", "nothing is expected"),
        ("botwatch/v1/gw/gw-001/status", b'{"state":"tired"}', "state"),
        (TOPIC, changed("event_type", "dns"), "event_type"),
        (TOPIC, changed("alert", ...), "required"),
        (TOPIC, changed(f"{OURS}.seq", 0), "seq"),
        (TOPIC, changed(f"{OURS}.seq", 2**70), "64 bits"),
        (TOPIC, changed(f"{OURS}.class", "benign"), "class"),
        (TOPIC, changed(f"{OURS}.extra", 1), "extra"),
        (TOPIC, changed(f"{OURS}.top_features", [[]]), "top_features"),
        (TOPIC, changed(f"{OURS}.id", "01936d2e-7b1c-7c3e-9f10-0c5a7c1e9a44\n"), "UUID"),
        (TOPIC, changed(f"{OURS}.first_seen", "yesterday"), "first_seen"),
        (TOPIC, changed(f"{OURS}.device.name", "\ud800"), "surrogate"),
        (TOPIC, changed(f"{OURS}.score", float("nan")), "finite"),
        (TOPIC, changed("flow.pkts_toserver", "many"), "flow"),
        (TOPIC, changed("flow", 3), "flow"),
        (TOPIC, changed("src_port", 70000), "src_port"),
    ],
)
def test_what_is_not_that_gateways_alert_is_refused_with_its_reason(topic, payload, reason):
    with pytest.raises(MessageError, match=reason):
        JUDGE.judge(topic, payload)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
places = st.sampled_from(
    ["timestamp", "host", "src_ip", "flow", "alert", "alert.context", "flow.start", "flow.bytes_toserver"]
    + [f"{OURS}.{key}" for key in EXAMPLE["alert"]["context"]["botwatch"]]
    + [f"{OURS}.device.ip", f"{OURS}.model.version", f"{OURS}.model.sha256"]
)


@given(places, json_values)
def test_any_value_in_any_place_is_accepted_and_storable_or_refused(place, value):
    try:
        payload = changed(place, value)
    except UnicodeEncodeError:
        return
    try:
        said = JUDGE.judge(TOPIC, payload)
    except MessageError:
        return
    assert isinstance(said, Alert)
    ingest = Ingest(CollectorConfig(), AlertStore("sqlite://"))
    assert ingest.save([message(TOPIC, payload)], threading.Event())
    assert (ingest.counts.stored, ingest.counts.rejected) == (1, 0)


def message(topic, payload, mid=1):
    return _Received(topic, payload, mid, 1, time.time_ns())


def numbered(n, **changes):
    document = deepcopy(EXAMPLE)
    document["alert"]["context"]["botwatch"] |= {"seq": n, **changes}
    return json.dumps(document).encode()


def test_rejected_messages_are_kept_cut_counted_and_capped(tmp_path):
    store = AlertStore(str(tmp_path / "c.sqlite"), max_rejected=5)
    ingest = Ingest(CollectorConfig(), store)
    junk = [message(TOPIC, b"%d" % i + b"x" * 100_000) for i in range(20)]
    ingest.save([*junk, message("a\0\ud800/b" + "c" * 70_000, b""), message(TOPIC, numbered(1))], threading.Event())
    assert (ingest.counts.rejected, ingest.counts.stored) == (21, 1)
    kept = store.rejections()
    assert len(kept) == 5
    assert {len(r.payload) for r in kept} == {4096, 0}
    assert kept[0].reason == "too large: 100002 bytes, the bound is 16384"


class Breaking(MessageJudge):
    """As one with a mistake in it, which none is known to have."""

    def judge(self, topic, payload):
        if payload == b"puzzle":
            raise TypeError("what is this?")
        return super().judge(topic, payload)


def test_a_message_that_breaks_the_judge_is_kept_aside_like_any_other_that_is_refused(caplog):
    store = AlertStore("sqlite://")
    ingest = Ingest(CollectorConfig(), store)
    ingest._judge = Breaking()
    batch = [message(TOPIC, b"puzzle"), message(TOPIC, numbered(1)), message(TOPIC, b"puzzle")]
    assert ingest.save(batch, threading.Event())
    assert (ingest.counts.rejected, ingest.counts.stored) == (2, 1)
    assert store.rejections()[0].reason == "cannot be judged: TypeError: what is this?"
    assert caplog.text.count("Traceback") == 1


def test_a_row_the_database_refuses_is_set_aside_and_the_others_are_stored(tmp_path):
    """As a stricter database than SQLite might; here a trigger plays it."""
    path = tmp_path / "c.sqlite"
    store = AlertStore(str(path))
    with sqlite3.connect(path) as db:
        db.execute(
            "CREATE TRIGGER t BEFORE INSERT ON alert WHEN new.seq = 7 BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        )
    db.close()
    ingest = Ingest(CollectorConfig(), store)
    assert ingest.save([message(TOPIC, numbered(n)) for n in range(1, 11)], threading.Event())
    assert (ingest.counts.stored, ingest.counts.rejected) == (9, 1)
    assert "not this one" in store.rejections()[0].reason


def test_a_busy_database_is_waited_for_and_a_stop_meanwhile_acknowledges_nothing(tmp_path):
    path = tmp_path / "c.sqlite"
    store = AlertStore(f"sqlite:///{path}?timeout=0.01")
    ingest, stop = Ingest(CollectorConfig(), store), threading.Event()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.3, other.execute, ["ROLLBACK"]).start()
    assert ingest.save([message(TOPIC, numbered(1))], stop)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.1, stop.set).start()
    assert not ingest.save([message(TOPIC, numbered(2))], stop)
    other.execute("ROLLBACK")
    other.close()
    assert len(store.alerts()) == 1


# --- anything at all on any topic ---------------------------------------------------------------------------

gateways = st.sampled_from(["gw-001", "gw-002", "GW", "", "a" * 64, "-", "gw 1", "gw\0", "\ud800"])
leaves = st.sampled_from(
    ["alert", "status", "health", "devices", "reply", "reply/x", "chunk/1", "cmd/allow", "model/detail", "", "/", "+"]
)
any_topics = st.one_of(
    st.builds("botwatch/v1/gw/{}/{}".format, gateways, leaves), st.just(TOPIC), st.text(max_size=300)
)
STATUS = {"state": "online", "boot": "b", "agent": "0.1.0", "ts": "2026-11-23T16:22:10.123456+0000"}


@st.composite
def any_payloads(draw):
    """Bytes, JSON of any kind, and alerts and statuses with a few bytes or a few places changed."""
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return draw(st.binary(max_size=200))
    if kind == 1:
        return json.dumps(draw(json_values)).encode("utf-8", "surrogatepass")
    document = deepcopy(EXAMPLE) if draw(st.booleans()) else dict(STATUS)
    if kind in (2, 4):
        for _ in range(draw(st.integers(1, 3))):
            inner = document
            while True:
                key = draw(st.sampled_from(list(inner) if isinstance(inner, dict) else list(range(len(inner)))))
                if not (isinstance(inner[key], dict | list) and inner[key] and draw(st.integers(0, 3))):
                    break
                inner = inner[key]
            if draw(st.booleans()) or isinstance(inner, list):
                inner[key] = draw(json_values)
            else:
                inner[draw(st.text(max_size=8))] = inner.pop(key)
            if not document:
                break
    payload = json.dumps(document).encode("utf-8", "surrogatepass")
    if kind >= 3:
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(payload)))
            payload = payload[:at] + draw(st.binary(max_size=3)) + payload[at + draw(st.integers(0, 3)) :]
    return payload


@settings(max_examples=int(os.environ.get("BOTWATCH_FUZZ", "200")), deadline=None)
@given(st.lists(st.tuples(any_topics, any_payloads()), min_size=1, max_size=8))
def test_whatever_comes_on_any_topic_is_stored_or_kept_aside_and_counted_and_can_be_shown(given_messages):
    """And the alert that comes behind it is stored: no message stops the others."""
    store = AlertStore("sqlite://")
    ingest = Ingest(CollectorConfig(), store)
    batch = [message(where, payload, mid) for mid, (where, payload) in enumerate(given_messages)]
    assert ingest.save([*batch, message(TOPIC, numbered(2**40))], threading.Event())
    c = ingest.counts
    assert c.stored + c.duplicates + c.statuses + c.rejected == len(batch) + 1
    assert len(store.rejections()) == c.rejected
    assert len(store.alerts()) == c.stored
    assert any(json.loads(row.document)["alert"]["context"]["botwatch"]["seq"] == 2**40 for row in store.alerts())
    store.episodes()
    store.gateways()
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        command._print_table(store.alerts())
    for row in store.alerts():
        shown.write(command._line(Alert.read(json.loads(row.document))).plain)
    assert all(c.isprintable() or c == "\n" for c in shown.getvalue())
    assert ingest.save([message(where, payload) for where, payload in given_messages], threading.Event())  # once more
    assert ingest.counts.stored == c.stored
