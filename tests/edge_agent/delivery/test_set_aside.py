"""A message that ends the connection is set aside: those behind it go on, and it is never given up."""

import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from edge_agent.config import AgentConfig, OutboxConfig
from edge_agent.contract.messages import topic
from edge_agent.delivery.outbox import ASIDE_S, Outbox
from edge_agent.delivery.outbox_table import OutboxTable
from edge_agent.publisher import Publisher
from edge_agent.state import SCHEMA_VERSION, State
from tests.broker import Farewell, Mosquitto, Scripted, needs_mosquitto, wait_until
from tests.line import ALERT, config_of, running

TOO_LARGE, STOPPING, TAKEN_OVER, BUSY = 0x95, 0x8B, 0x8E, 0x89  # reasons of a DISCONNECT
ID = "01936d2e-7b1c-7c3e-9f10-0c5a7c1e9a44"
LARGE = json.dumps({"alert": {"context": {"botwatch": {"id": ID}}}, "text": "x" * 9000}).encode()
LIMITS = [("max_packet_size 5000", "3.1.1"), ("max_packet_size 5000", 5), ("message_size_limit 5000", 5)]
"""Of the last, mosquitto 2.0 refuses a message of MQTT 5 in a way that paho cannot read."""


def broker_of(tmp_path: Path, limit: str) -> Mosquitto:
    return Mosquitto(tmp_path / "broker", limit)


@needs_mosquitto
@pytest.mark.parametrize(("limit", "version"), LIMITS)
def test_an_alert_that_ends_the_connection_does_not_hold_up_the_others(
    tmp_path, outbox, listening, caplog, limit, version
):
    waiting = [b"%d" % i for i in range(30)]
    outbox.put([(ALERT, payload, False) for payload in [*waiting[:20], LARGE, *waiting[20:]]])
    with broker_of(tmp_path, limit) as broker:
        listener = listening(broker)
        with running(config_of(broker, version=version), outbox) as link:
            wait_until(lambda: outbox.depth() == outbox.aside() == 1, 30)
            outbox.put([(ALERT, b"after", False)])
            wait_until(lambda: b"after" in listener.payloads())
            assert list(dict.fromkeys(listener.payloads())) == [*waiting, b"after"]
            ended = link.counts.failures
            assert ended <= (0 if (limit, version) == LIMITS[1] else 3)
            assert "which are set aside (1)" in link.trouble
            assert link.flush(0.5) == 1
            assert link.counts.failures == ended  # it rests
    lines = [line for line in caplog.messages if "set aside" in line]
    assert len(lines) == 1, lines
    assert f"alert {ID} of {len(LARGE)} bytes is set aside" in lines[0]


@needs_mosquitto
def test_it_is_sent_again_at_each_start_last_and_alone_and_when_the_broker_takes_more(tmp_path, listening):
    path, versions = tmp_path / "state.sqlite", {"version": "3.1.1"}
    first = Outbox(State(path))
    first.put([(ALERT, LARGE, False), (ALERT, LARGE + b" ", False)])
    broker = broker_of(tmp_path, "max_packet_size 5000")
    with broker, running(config_of(broker, **versions), first):
        wait_until(lambda: first.aside() == 2, 30)
    again = Outbox(State(path))
    again.put([(ALERT, b"new", False)])
    assert again.aside() == 2
    with broker:
        listener = listening(broker)
        with running(config_of(broker, **versions), again) as link:
            wait_until(lambda: link.counts.failures == 1, 30)  # tried once, after all others
            wait_until(lambda: set(listener.payloads()) == {b"new"})
            wait_until(lambda: link.connected)
            assert link.flush(1) == again.aside() == 2
            assert link.counts.failures == 1  # the second is as large, and rests, too
    third = Outbox(State(path))
    broker = Mosquitto(tmp_path / "generous")
    with broker:
        late = listening(broker, name="late")
        with running(config_of(broker, **versions), third) as link:
            wait_until(lambda: third.depth() == 0, 20)
            wait_until(lambda: {len(LARGE), len(LARGE) + 1} <= set(map(len, late.payloads())))
            assert (third.aside(), link.trouble) == (0, "")


AGENT = """
import sys, threading
from pathlib import Path
from edge_agent.delivery.link import BrokerConfig, Link
from edge_agent.delivery.outbox import ASIDE_S, Outbox
from edge_agent.state import State

outbox = Outbox(State(Path(sys.argv[1])))
config = BrokerConfig(version="3.1.1", retry_min_s=0.05, retry_max_s=0.3).at(sys.argv[2])
link = Link(config, outbox, gateway="gw-001", agent="0.1.0")
threading.Thread(target=link.run, args=(threading.Event(),), daemon=True).start()
while True:
    print(link.counts.failures, outbox.aside(), flush=True)
    threading.Event().wait(0.02)
"""


@needs_mosquitto
def test_what_is_known_of_it_survives_an_agent_that_is_killed_in_between(tmp_path, listening):
    """Killed after each lost connection, it would else begin anew each time and never come to those behind it."""
    path = tmp_path / "state.sqlite"
    outbox = Outbox(State(path))
    outbox.put([(ALERT, LARGE, False), (ALERT, b"behind", False)])
    with broker_of(tmp_path, "max_packet_size 5000") as broker:
        listener = listening(broker)
        for _ in range(8):
            with subprocess.Popen([sys.executable, "-c", AGENT, path, broker.address], stdout=subprocess.PIPE) as agent:
                lost = 0
                while lost < 2 and b"behind" not in listener.payloads():
                    lost = int(agent.stdout.readline().split()[0])
                agent.send_signal(signal.SIGKILL)
            if b"behind" in listener.payloads():
                break
        assert b"behind" in listener.payloads()
        assert OutboxTable(State(path)).set_aside() == [(1, len(LARGE))]


@needs_mosquitto
@pytest.mark.parametrize(("limit", "version"), LIMITS)
def test_a_document_that_is_too_large_is_left_out_and_the_connection_stays(
    tmp_path, outbox, listening, caplog, limit, version
):
    with broker_of(tmp_path, limit) as broker:
        listener = listening(broker)
        with running(config_of(broker, version=version), outbox) as link:
            wait_until(lambda: link.connected)
            link.retain("devices", bytes(8000))
            link.retain("health", bytes(8000), qos=0, expires_s=300)
            wait_until(lambda: link.counts.documents_set_aside >= 2, 30)
            lost = link.counts.failures
            assert lost <= (0 if (limit, version) == LIMITS[1] else 8)
            for i in range(20):
                link.retain("health", bytes(7900 + i), qos=0, expires_s=300)
                outbox.put([(ALERT, b"%d" % i, False)])
                wait_until(lambda i=i: b"%d" % i in listener.payloads())
            assert link.counts.failures == lost
            link.retain("health", b"small", qos=0)
            wait_until(lambda: listener.payloads(topic("gw-001", "health")) == [b"small"])
    assert sum("devices of 8000 bytes" in line for line in caplog.messages) == 1
    assert sum("health of 8000 bytes" in line for line in caplog.messages) == 1


@needs_mosquitto
def test_replies_that_are_too_large_are_lost_and_counted_and_the_connection_stays(tmp_path, outbox, listening):
    where = topic("gw-001", "chunk/x")
    with broker_of(tmp_path, "max_packet_size 5000") as broker:
        listener = listening(broker)
        with running(config_of(broker, version="3.1.1"), outbox) as link:
            wait_until(lambda: link.connected)
            for _ in range(3):
                for _ in range(6):
                    link.reply(where, bytes(8000))
                outbox.put([(ALERT, b"x", False)])
                wait_until(lambda: outbox.depth() == 0, 20)
            link.reply(where, b"small")
            wait_until(lambda: listener.payloads(where) == [b"small"])
            wait_until(lambda: link.counts.replies_lost == 18)
            assert outbox.aside() == link.counts.client_id_taken == 0


@needs_mosquitto
def test_health_counts_what_is_set_aside_and_left_out(tmp_path, listening):
    outbox = OutboxConfig(path=tmp_path / "box.sqlite")
    with broker_of(tmp_path, "max_packet_size 5000") as broker:
        config = AgentConfig(gateway="gw-001", outbox=outbox, broker=config_of(broker, version="3.1.1"))
        publisher = Publisher(config)
        with publisher.running():
            publisher.outbox.put([(ALERT, LARGE, False)])
            wait_until(lambda: publisher.counts()["outbox_set_aside"] == 1, 30)
            for _ in range(3):
                wait_until(lambda: publisher.link.connected)
                connects = publisher.link.counts.connects
                publisher.link.retain("devices", bytes(9000))
                wait_until(
                    lambda connects=connects: (
                        publisher.link.counts.connects > connects or publisher.counts()["documents_set_aside"]
                    )
                )
            assert publisher.counts()["documents_set_aside"] >= 1
            assert publisher.counts()["client_id_taken"] == 0
            assert publisher.line()["trouble"].startswith("does not take some messages, which are set aside (1)")


def test_each_is_tried_again_every_hour_and_one_that_fails_spares_the_larger_ones(tmp_path):
    now = [1000.0]
    outbox = Outbox(State(tmp_path / "state.sqlite"), clock=lambda: now[0])
    outbox.put([(ALERT, bytes(size), False) for size in (5000, 9000, 7000, 100)])
    assert outbox.next_aside() is None
    for row in (1, 2, 3):
        assert outbox.strike(row, 2)
        assert outbox.aside() == row
    assert outbox.next_aside() is None  # they have just been tried
    hours = []
    for _ in range(4):
        now[0] += ASIDE_S
        hours.append([])
        while waiting := outbox.next_aside():
            hours[-1].append(waiting[0])
            outbox.strike(waiting[0])
    # The one that has waited longest is the first, so that a small one that fails does not hold up the others for good.
    assert hours == [[1], [2, 3, 1], [1], [2, 3, 1]]
    now[0] += ASIDE_S / 2
    assert outbox.next_aside() is None
    outbox.try_aside()  # another broker may take larger ones
    assert outbox.next_aside() is not None
    outbox.done([1, 2, 3])
    assert (outbox.aside(), outbox.depth(), outbox.next_aside()) == (0, 1, None)


def test_a_broker_of_mqtt_5_that_disconnects_for_the_size_is_believed(outbox, caplog):
    """Some do not name their limit before."""
    outbox.put([(ALERT, payload, False) for payload in (b"1", LARGE, b"2")])

    def judge(where, payload):
        return Farewell(TOO_LARGE) if payload == LARGE else 0

    with Scripted(judge) as broker, running(config_of(broker, version=5), outbox) as link:
        wait_until(lambda: outbox.depth() == outbox.aside() == 1)
        assert set(broker.got) == {b"1", LARGE, b"2"}
        assert broker.got.count(LARGE) <= 3
        assert link.counts.client_id_taken == 0


def test_a_broker_that_is_stopped_or_taken_over_is_no_messages_fault(outbox):
    outbox.put([(ALERT, b"innocent", False)])
    answers = [Farewell(reason) for reason in (STOPPING, TAKEN_OVER, BUSY) * 2]

    def judge(where, payload):
        return answers.pop() if payload == b"innocent" and answers else 0

    with Scripted(judge) as broker, running(config_of(broker, version=5), outbox) as link:
        assert link.flush(15) == 0
        assert outbox.aside() == 0
        assert broker.got == [b"innocent"] * 7


def test_it_counts_against_the_bounds_like_any_other_and_is_dropped_only_there(tmp_path):
    outbox = Outbox(State(tmp_path / "state.sqlite"), max_rows=3)
    outbox.put([(ALERT, b"first", False), (ALERT, b"second", False)])
    rows = []
    outbox.drain(lambda row, *_: bool(rows.append(row)) or True)
    assert not outbox.strike(rows[0])
    assert outbox.strike(rows[0])
    assert (outbox.aside(), outbox.depth()) == (1, 2)
    outbox.rewind()
    given = []
    outbox.drain(lambda row, topic, payload: bool(given.append(payload)) or True)
    assert given == [b"second"]
    outbox.put([(ALERT, b"%d" % i, False) for i in range(3)])
    assert (outbox.aside(), outbox.depth(), outbox.counts.dropped) == (0, 3, 2)


FULL = """
import resource, sys
from pathlib import Path
from edge_agent.delivery.outbox import ASIDE_S, Outbox
from edge_agent.state import State

outbox = Outbox(State(Path(sys.argv[1])))
outbox.put([("t", b"stored", False)])
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, most))  # as a full disk: no file grows beyond
while not outbox.unsaved():
    outbox.put([("t", bytes(9000), False)])

def given():
    rows = []
    outbox.drain(lambda row, topic, payload: rows.append(row) or True)
    outbox.rewind()
    return rows

before = given()
for row in (before[0], before[-1]):  # one on the disk, one in memory
    assert not outbox.strike(row) and outbox.strike(row)
assert outbox.aside() == 2 and given() == before[1:-1], given()
assert outbox.depth() == len(before)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
assert outbox.save() == 0
print(len(before), outbox.aside())
"""


def test_while_the_disk_is_full_messages_are_set_aside_in_memory(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "state.sqlite"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "1"  # the other one has another number now, and is tried anew


def test_a_state_file_of_the_version_before_is_opened_and_goes_on(tmp_path):
    """The file was written by that version: six messages, of which two were taken, and all else that it stores."""
    path = tmp_path / "state.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.executescript((Path(__file__).parents[2] / "data" / "state.v5.sql").read_text())
        assert db.execute("PRAGMA user_version").fetchone()[0] == 5 < SCHEMA_VERSION
    with closing(State(path)) as state:
        outbox = Outbox(state)
        assert (state.damaged, outbox.depth(), outbox.aside()) == (0, 4, 0)
        assert len(outbox.open_episodes()) == 1
        assert [row for row, *_ in state.suppressions()] == [1]
        assert state.learnt("m") == [(1, b"r")]
        rows = []
        outbox.drain(lambda row, *_: bool(rows.append(row)) or True)
        assert rows == [3, 4, 5, 6]
        assert outbox.strike(3, 2)
    with closing(State(path)) as state:
        assert Outbox(state).aside() == 1
        assert OutboxTable(state).size().acked == 2
