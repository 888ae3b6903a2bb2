"""What the collector accepts, and that a database which refuses or is busy costs no message."""

import json
import os
import sqlite3
import threading
import time
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.config import CollectorConfig
from collector.gateways import gateway_states, table
from collector.ingest import Ingest, MessageJudge
from collector.store import AlertStore
from edge_agent.contract import messages
from edge_agent.contract.alert import Alert
from edge_agent.contract.messages import MAX_PAYLOAD, MessageError, Status
from edge_agent.contract.show import IdColumn, Terminal, alert_line
from edge_agent.mqtt import Incoming
from tests.broker import wait_until
from tests.collector.test_store import change

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
MAC = "b8:27:eb:12:34:56"


def health(**changes):
    """A document on health, as an agent sends it."""
    document = messages.Health(
        t_ns=1_795_450_930_000_000_000,
        pps=12.5,
        drop_pct=0.0,
        cpu=0.1,
        rss_mb=80.0,
        episodes_open=1,
        interfaces=(),
        outbox_depth=3,
        model="2026.11.23+1",
        counters={"frames": 900, "dropped": 4, "interface_dropped": 1, "devices": 2},
        site="plant-a",
    ).document()
    return json.dumps(document | changes).encode()


def devices(*entries, **changes):
    """A document on devices."""
    document = {"ts": "2026-11-23T16:22:10.123456+0000", "count": {"learning": 1, "active": 2, "stale": 0}}
    return json.dumps(document | {"devices": entries} | changes).encode()


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
        ("botwatch/v1/gw/gw-001/reply", b"{}", "no message is expected"),
        ("botwatch/v1/gw/gw-001/health", b"{}", "health: ts"),
        ("botwatch/v1/gw/gw-001/health", health(pps=-1), "health: pps"),
        ("botwatch/v1/gw/gw-001/health", health(outbox_depth=True), "health: outbox_depth"),
        ("botwatch/v1/gw/gw-001/health", health(counters={"dropped": "many"}), "health: counters"),
        ("botwatch/v1/gw/gw-001/health", health(model="m" * 41), "health: model"),
        ("botwatch/v1/gw/gw-001/health", health(site=7), "health: site"),
        ("botwatch/v1/gw/gw-001/health", health(ts="yesterday"), "health: ts"),
        ("botwatch/v1/gw/gw-001/health", health(outbox_depth=1e308), "health: outbox_depth"),
        ("botwatch/v1/gw/gw-001/health", health(counters={"dropped": 2**63 - 1, "other": 1e19}), "health: counters"),
        ("botwatch/v1/gw/gw-001/devices", devices(count={"learning": 1e308, "active": 1e308}), "devices: count"),
        (TOPIC, changed(f"{OURS}.device.mac", "02:00:5e:00:00:ff\n"), "beyond the bounds"),  # `$` also stands before it
        (TOPIC, changed(f"{OURS}.model.sha256", "0" * 64 + "\n"), "beyond the bounds"),
        (TOPIC, changed(f"{OURS}.count", 1e300), "beyond 64 bits"),
        (TOPIC, changed(f"{OURS}.seq", 1e25), "beyond 64 bits"),
        (TOPIC, changed("flow.pkts_toserver", 1e19), "beyond 64 bits"),
        ("botwatch/v1/gw/gw-001/health", health(more="x" * MAX_PAYLOAD), "too large"),
        ("botwatch/v1/gw/gw-001/devices", devices({"mac": "no MAC", "state": "active"}), "devices: mac"),
        ("botwatch/v1/gw/gw-001/devices", devices({"mac": MAC, "state": "active", "name": "n" * 65}), "devices: name"),
        ("botwatch/v1/gw/gw-001/devices", devices({"mac": MAC}), "devices: state"),
        ("botwatch/v1/gw/gw-001/devices", devices(3), "devices: a device"),
        ("botwatch/v1/gw/gw-001/devices", devices(count={"active": -1}), "devices: count"),
        ("botwatch/v1/gw/gw-001/devices", b'{"ts": 1}', "devices: ts"),
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


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a machine that does much else
@given(places, json_values)
def test_any_value_in_any_place_is_accepted_and_storable_or_refused(place, value):
    try:
        payload = changed(place, value)
    except UnicodeEncodeError:
        return
    try:
        accepted = JUDGE.judge(TOPIC, payload)
    except MessageError:
        return
    assert isinstance(accepted, Alert)
    ingest = Ingest(CollectorConfig(), AlertStore("sqlite://"))
    assert ingest.save([message(TOPIC, payload)], threading.Event())
    assert (ingest.counts.stored, ingest.counts.rejected) == (1, 0)


def message(topic, payload, mid=1):
    return Incoming(topic, payload, retained=False, received_ns=time.time_ns(), id=mid)


def numbered(n, **changes):
    document = deepcopy(EXAMPLE)
    document["alert"]["context"]["botwatch"] |= {"seq": n, **changes}
    return json.dumps(document).encode()


def of(leaf, payload, *, gateway="gw-001", retained=False, received_ns=1_900_000_000_000_000_000):
    return Incoming(f"botwatch/v1/gw/{gateway}/{leaf}", payload, retained=retained, received_ns=received_ns)


def test_the_newest_document_of_each_gateway_and_leaf_is_stored_and_a_bad_one_set_apart(database):
    store = AlertStore(database)
    ingest, stop = Ingest(CollectorConfig(), store), threading.Event()
    ingest.save([of("health", health(outbox_depth=9)), of("health", health()), of("devices", devices())], stop)
    ingest.save([of("health", health(pps="fast")), of("health", health(), gateway="gw-002")], stop)
    assert (ingest.counts.documents, ingest.counts.rejected) == (4, 1)
    assert set(store.documents("health")) == {"gw-001", "gw-002"}
    assert store.documents("health")["gw-001"][0]["outbox_depth"] == 3
    assert store.documents("devices")["gw-001"] == (json.loads(devices()), 1_900_000_000_000_000_000)
    assert [r.reason for r in store.rejections()] == ["health: pps is not a number from 0"]
    assert store.gateway_ids() == ["gw-001", "gw-002"]
    store.close()


def test_what_a_broker_has_kept_is_no_sign_of_life(database):
    """It sends each retained message at every new connection, for days after the gateway has gone."""
    store = AlertStore(database)
    ingest, stop, sent_ns = Ingest(CollectorConfig(), store), threading.Event(), 1_795_450_930_000_000_000
    ingest.save([of("health", health(), received_ns=sent_ns + 5)], stop)
    ingest.save([of("health", health(), retained=True)], stop)
    assert store.documents("health")["gw-001"][1] == sent_ns + 5
    ingest.save([of("health", health(), gateway="gw-002", retained=True)], stop)  # nothing was stored of it
    assert store.documents("health")["gw-002"][1] == sent_ns
    status = messages.encode(Status("offline", "b", "0.1.0", sent_ns).document())
    ingest.save([of("status", status, received_ns=sent_ns + 7)], stop)
    ingest.save([of("status", status, retained=True)], stop)
    assert store.statuses()["gw-001"][1] == sent_ns + 7
    store.close()


def test_an_empty_retained_message_withdraws_a_document_and_with_the_status_the_gateway(database):
    store = AlertStore(database)
    ingest, stop = Ingest(CollectorConfig(), store), threading.Event()
    status = messages.encode(Status("stopped", "b", "0.1.0", 1).document())
    ingest.save(
        [of(leaf, text) for leaf, text in (("status", status), ("health", health()), ("devices", devices()))], stop
    )
    ingest.save([of("health", b"")], stop)
    assert (store.documents("health"), set(store.documents("devices"))) == ({}, {"gw-001"})
    ingest.save([of("status", b"")], stop)
    assert (store.gateway_ids(), ingest.counts.documents, ingest.counts.rejected) == ([], 4, 0)
    store.close()


def test_rejected_messages_are_stored_cut_counted_and_capped(database):
    store = AlertStore(database, max_rejected=5)
    ingest = Ingest(CollectorConfig(), store)
    junk = [message(TOPIC, b"%d" % i + b"x" * 100_000) for i in range(20)]
    ingest.save([*junk, message("a\0\ud800/b" + "c" * 70_000, b""), message(TOPIC, numbered(1))], threading.Event())
    assert (ingest.counts.rejected, ingest.counts.stored) == (21, 1)
    rejections = store.rejections()
    assert len(rejections) == 5
    assert {len(r.payload) for r in rejections} == {4096, 0}
    assert rejections[0].reason == "too large: 100002 bytes, the bound is 16384"
    store.close()


class Breaking(MessageJudge):
    """As one with a mistake in it, which none is known to have."""

    def judge(self, topic, payload):
        if payload == b"puzzle":
            raise TypeError("what is this?")
        return super().judge(topic, payload)


def test_a_message_that_breaks_the_judge_is_stored_apart_like_any_refused_one(caplog):
    store = AlertStore("sqlite://")
    ingest = Ingest(CollectorConfig(), store, Breaking())
    batch = [message(TOPIC, b"puzzle"), message(TOPIC, numbered(1)), message(TOPIC, b"puzzle")]
    assert ingest.save(batch, threading.Event())
    assert (ingest.counts.rejected, ingest.counts.stored) == (2, 1)
    assert store.rejections()[0].reason == "cannot be judged: TypeError: what is this?"
    assert caplog.text.count("Traceback") == 1


def test_a_row_the_database_refuses_is_set_aside_and_the_others_are_stored(database):
    """As for a reason that nobody thought of; here a constraint is it."""
    store = AlertStore(database)
    seventh = "BEFORE INSERT ON alert WHEN new.seq = 7 BEGIN SELECT RAISE(ABORT, 'not this one'); END"
    if database.startswith("postgresql"):
        change(database, 'ALTER TABLE alert ADD CONSTRAINT "not this one" CHECK (seq <> 7)')
    else:
        change(database, f"CREATE TRIGGER t {seventh}")
    ingest = Ingest(CollectorConfig(), store)
    assert ingest.save([message(TOPIC, numbered(n)) for n in range(1, 11)], threading.Event())
    assert (ingest.counts.stored, ingest.counts.rejected) == (9, 1)
    assert "not this one" in store.rejections()[0].reason
    store.close()


@contextmanager
def saving(ingest, batch, caplog):
    """Save ``batch`` in a thread while the database cannot be written; the block begins when that is in the log."""
    caplog.clear()
    stop, answers = threading.Event(), []
    thread = threading.Thread(target=lambda: answers.append(ingest.save(batch, stop)))
    thread.start()
    wait_until(lambda: "messages wait until it can be written" in caplog.text)
    yield stop, answers
    thread.join(20)
    assert not thread.is_alive()


def test_a_busy_database_is_waited_for_and_a_stop_meanwhile_acknowledges_nothing(tmp_path, caplog):
    path = tmp_path / "c.sqlite"
    store = AlertStore(f"sqlite:///{path}?timeout=0.01")
    ingest = Ingest(CollectorConfig(), store)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    caplog.set_level("INFO")
    with saving(ingest, [message(TOPIC, numbered(1))], caplog) as (_, saved):
        other.execute("ROLLBACK")
    assert saved == [True]
    assert "database: can be written again; the 1 messages are stored" in caplog.text
    other.execute("BEGIN IMMEDIATE")
    with saving(ingest, [message(TOPIC, numbered(2))], caplog) as (stop, saved):
        stop.set()
    assert saved == [False]
    other.execute("ROLLBACK")
    other.close()
    assert len(store.alerts()) == 1


@pytest.mark.parametrize("renamed", [True, False], ids=["moved away", "deleted"])
def test_a_database_that_is_moved_away_while_the_collector_runs_costs_no_message(tmp_path, caplog, *, renamed):
    """Somebody rotates or deletes it: what came since is in a new file, and nothing is acknowledged unsaved."""
    path = tmp_path / "c.sqlite"
    ingest = Ingest(CollectorConfig(), AlertStore(str(path)))
    assert ingest.save([message(TOPIC, numbered(1))], threading.Event())
    for file in tmp_path.iterdir():
        if renamed:
            file.rename(file.with_name(f"old-{file.name}"))
        else:
            file.unlink()
    assert ingest.save([message(TOPIC, numbered(2))], threading.Event())
    assert ingest.save([message(TOPIC, numbered(3))], threading.Event())
    assert "was removed or replaced while it was in use; a new one is begun" in caplog.text
    stored = AlertStore(str(path), create=False)
    assert [json.loads(row.document)["alert"]["context"]["botwatch"]["seq"] for row in stored.alerts()] == [2, 3]
    if renamed:
        assert len(AlertStore(str(tmp_path / "old-c.sqlite"), create=False).alerts()) == 1


def test_a_database_server_that_is_restarted_costs_no_message(postgres, caplog):
    store = AlertStore(postgres.database())
    ingest = Ingest(CollectorConfig(), store)
    assert ingest.save([message(TOPIC, numbered(1))], threading.Event())
    postgres.stop()
    with saving(ingest, [message(TOPIC, numbered(2)), message(TOPIC, b"junk")], caplog) as (_, saved):
        postgres.start()
    assert saved == [True]
    assert (ingest.counts.stored, ingest.counts.rejected, len(store.alerts())) == (2, 1, 2)
    store.close()


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


EXAMPLES = int(os.environ.get("BOTWATCH_FUZZ", "200"))
batches = st.lists(st.tuples(any_topics, any_payloads()), min_size=1, max_size=8)


@settings(max_examples=EXAMPLES, deadline=None)
@given(batches)
def test_any_message_on_any_topic_is_stored_or_set_apart_counted_and_can_be_shown(given_messages):
    check_batch("sqlite://", given_messages)


@settings(max_examples=EXAMPLES // 4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_messages=batches)
def test_postgresql_also_stores_any_message_or_sets_it_apart(postgres, given_messages):
    check_batch(postgres.database(), given_messages)


def check_batch(database, given_messages):
    """Save them, and behind them an alert, which is stored: no message stops the others."""
    store = AlertStore(database)
    ingest = Ingest(CollectorConfig(), store)
    batch = [message(where, payload, mid) for mid, (where, payload) in enumerate(given_messages)]
    assert ingest.save([*batch, message(TOPIC, numbered(2**40))], threading.Event())
    c = ingest.counts
    assert c.stored + c.duplicates + c.statuses + c.documents + c.rejected == len(batch) + 1
    assert len(store.rejections()) == c.rejected
    assert not [r.reason for r in store.rejections() if r.reason.startswith("database")]
    assert len(store.alerts()) == c.stored
    assert any(json.loads(row.document)["alert"]["context"]["botwatch"]["seq"] == 2**40 for row in store.alerts())
    store.episodes()
    store.gateways()
    alerts = [Alert.read(json.loads(row.document)) for row in store.alerts()]
    shown = [alert_line(alert, Terminal(width, utc=True), IdColumn(8, 4)) for alert in alerts for width in (None, 80)]
    shown += [line for width in (120, 80) for line in table(gateway_states(store), Terminal(width), 0)]
    assert all(line.isprintable() for line in shown)
    assert ingest.save([message(where, payload) for where, payload in given_messages], threading.Event())  # once more
    assert ingest.counts.stored == c.stored
    store.close()
