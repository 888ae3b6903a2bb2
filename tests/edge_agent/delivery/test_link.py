"""The link against real brokers: nothing is lost while they are away, restarted, killed, or refuse."""

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from paho.mqtt import client as mqtt

from edge_agent.config import AgentConfig, OutboxConfig
from edge_agent.contract.messages import topic
from edge_agent.delivery.link import BrokerConfig
from edge_agent.delivery.outbox import Outbox
from edge_agent.publisher import Publisher
from edge_agent.state import State, StateError
from tests.broker import Amqtt, Mosquitto, Scripted, any_broker, free_port, needs_mosquitto, wait_until
from tests.line import ALERT, STATUS, Listener, config_of, running


@needs_mosquitto
def test_alerts_wait_while_the_broker_is_away_and_come_in_order_when_it_is_there(tmp_path, outbox, listening, caplog):
    broker = Mosquitto(tmp_path / "broker")
    outbox.put([(ALERT, b"%d" % i, False) for i in range(500)])
    with running(config_of(broker), outbox) as link:
        wait_until(lambda: link.counts.failures >= 2)
        assert "refused" in link.trouble
        assert link.flush(0.1) == 500
        assert sum("connection refused" in line for line in caplog.messages) == 1
        with broker:
            listener = listening(broker)
            assert link.flush(10) == 0
            outbox.put([(ALERT, b"live", False)])
            wait_until(lambda: b"live" in listener.payloads())
            assert list(dict.fromkeys(listener.payloads()))[-1] == b"live"
            assert link.protocol == "5"
            assert link.trouble == ""


@needs_mosquitto
def test_alerts_wait_until_somebody_subscribes(tmp_path, outbox, listening):
    """A broker throws away what nobody subscribes to, as after a restart that cost it the collector's subscription."""
    outbox.put([(ALERT, b"%d" % i, False) for i in range(250)])
    with Mosquitto(tmp_path / "broker") as broker, running(config_of(broker), outbox) as link:
        wait_until(lambda: link.counts.unheard >= 1)
        assert link.flush(0.1) == 250
        assert link.trouble == "has no subscriber for alerts"
        listener = listening(broker)
        assert link.flush(10) == 0
        wait_until(lambda: listener.payloads() == [b"%d" % i for i in range(250)])
        wait_until(lambda: link.trouble == "")


@needs_mosquitto
def test_a_new_alert_is_with_the_broker_in_well_under_a_second(tmp_path, outbox, listening):
    with Mosquitto(tmp_path / "broker") as broker, running(config_of(broker), outbox) as link:
        listener = listening(broker)
        wait_until(lambda: link.connected)
        waits = []
        for i in range(20):
            began = time.monotonic()
            outbox.put([(ALERT, b"%d" % i, False)])
            wait_until(lambda i=i: len(listener.payloads()) > i)
            waits.append(time.monotonic() - began)
    assert sorted(waits)[-2] < 1.0


@needs_mosquitto
def test_a_broker_killed_mid_stream_and_restarted_costs_nothing(tmp_path, outbox, listening):
    """SIGKILL twice under load. The broker forgets what it had acknowledged and not yet passed on, which only the
    repetition on the next connection brings back."""
    with Mosquitto(tmp_path / "broker") as broker, running(config_of(broker), outbox) as link:
        listener = listening(broker)
        for burst in range(3):
            outbox.put([(ALERT, b"%d.%d" % (burst, i), False) for i in range(300)])
            wait_until(lambda burst=burst: link.counts.acknowledged > 300 * burst)
            if burst < 2:
                broker.kill()
                broker.start()
        assert link.flush(15) == 0
        wait_until(lambda: len(set(listener.payloads())) == 900)
        assert link.counts.connects >= 3


@needs_mosquitto
def test_status_is_online_then_stopped_on_a_clean_stop(tmp_path, outbox, listening):
    with Mosquitto(tmp_path / "broker") as broker:
        listener = listening(broker)
        with running(config_of(broker), outbox):
            wait_until(lambda: listener.states() == ["online"])
        wait_until(lambda: listener.states() == ["online", "stopped"])
        late = Listener(broker, filters=(STATUS,))
        wait_until(lambda: late.states() == ["stopped"])  # retained
        late.close()


@needs_mosquitto
def test_the_status_is_retained_and_published_again_to_a_broker_that_forgot_it(tmp_path, outbox):
    broker = Mosquitto(tmp_path / "broker", config="listener 8883\nallow_anonymous true\n")  # keeps nothing
    with running(config_of(broker), outbox):
        for _ in range(2):
            with broker:
                late = Listener(broker, filters=(STATUS,))
                wait_until(lambda late=late: late.states()[-1:] == ["online"])
                late.close()


AGENT = """
import sys, threading
from pathlib import Path
from edge_agent.contract.messages import topic
from edge_agent.delivery.link import BrokerConfig, Link
from edge_agent.delivery.outbox import Outbox
from edge_agent.state import State

outbox = Outbox(State(Path(sys.argv[1])))
link = Link(BrokerConfig(retry_min_s=0.05).at(sys.argv[2]), outbox, gateway="gw-001", agent="0.1.0")
threading.Thread(target=link.run, args=(threading.Event(),), daemon=True).start()
for i in range(int(sys.argv[3]), 10**9):
    outbox.put([(topic("gw-001", "alert"), b"%d" % i, False)])
    print(i, flush=True)
"""


@needs_mosquitto
def test_documents_are_retained_and_published_again_on_every_connection_the_newest_only(tmp_path, outbox, listening):
    broker = Mosquitto(tmp_path / "broker", config="listener 8883\nallow_anonymous true\n")  # forgets all when it ends
    where = topic("gw-001", "devices")
    with running(config_of(broker), outbox) as link:
        link.retain("devices", b"before there was a broker")
        link.retain("devices", b"1")
        with broker:
            wait_until(lambda: link.connected)
            early = listening(broker)
            wait_until(lambda: early.payloads(where))
            link.retain("devices", b"2")
            wait_until(lambda: early.payloads(where)[-1] == b"2")
            assert set(early.payloads(where)) == {b"1", b"2"}
            early.close()
        with broker:
            wait_until(lambda: link.connected and link.counts.connects >= 2)
            late = listening(broker)
            wait_until(lambda: late.payloads(where) == [b"2"])
            link.retain("devices", b"last words")
    wait_until(lambda: late.payloads(where)[-1] == b"last words")


@needs_mosquitto
def test_an_agent_killed_while_publishing_loses_nothing_and_the_broker_says_it_is_offline(tmp_path, listening):
    path = tmp_path / "state.sqlite"
    put = []
    with Mosquitto(tmp_path / "broker") as broker:
        listener = listening(broker)
        for _ in range(3):
            agent = subprocess.Popen(
                [sys.executable, "-c", AGENT, path, broker.address, str(len(put))], stdout=subprocess.PIPE
            )
            lines = [agent.stdout.readline() for _ in range(150)]
            seen = len(listener.payloads())
            wait_until(lambda seen=seen: len(listener.payloads()) > seen + 10)
            agent.send_signal(signal.SIGKILL)
            lines += agent.stdout.readlines()
            agent.wait(10)
            put += [int(line) for line in lines if line.endswith(b"\n")]
        wait_until(lambda: listener.states()[-1] == "offline")
        outbox = Outbox(State(path))
        with running(config_of(broker), outbox) as link:
            assert link.flush(10) == 0
            wait_until(lambda: set(map(int, listener.payloads())) >= set(put))


@needs_mosquitto
def test_a_refused_alert_stays_is_counted_logged_once_and_does_not_spin(tmp_path, outbox, listening, caplog):
    (tmp_path / "acl").write_text("topic write botwatch/v1/gw/+/status\n")
    outbox.put([(ALERT, b"%d" % i, False) for i in range(300)])
    with (
        Mosquitto(tmp_path / "broker", f"acl_file {tmp_path / 'acl'}") as broker,
        running(config_of(broker, inflight=10), outbox) as link,
    ):
        wait_until(lambda: link.counts.refused >= 10)
        assert link.flush(0.5) == 300
        assert link.counts.refused == link.counts.published <= 12
        assert link.trouble == f"refuses alerts on {ALERT}: Not authorized"
        assert sum("refuses alerts" in line for line in caplog.messages) == 1
        # The operator mends the ACL; the connection stays up.
        (tmp_path / "acl").write_text("topic readwrite botwatch/#\n")
        broker.signal(signal.SIGHUP)
        listening(broker)
        wait_until(lambda: link.counts.acknowledged >= 280)
        broker.kill()
        broker.start()
        assert link.flush(10) == 0


@needs_mosquitto
def test_an_alert_larger_than_the_broker_takes_does_not_hold_up_the_others(tmp_path, outbox, listening):
    outbox.put([(ALERT, b"small", False), (ALERT, bytes(9000), False), (ALERT, b"last", False)])
    with (
        Mosquitto(tmp_path / "broker", "max_packet_size 5000") as broker,
        running(config_of(broker), outbox) as link,
    ):
        listening(broker)
        wait_until(lambda: link.counts.acknowledged == 2)
        assert (outbox.depth(), link.counts.refused) == (1, 1)
        assert link.connected


def test_a_broker_that_does_not_speak_mqtt_5_gets_3_1_1(tmp_path, outbox, listening):
    with Amqtt(tmp_path / "broker") as broker:
        listener = listening(broker)
        outbox.put([(ALERT, b"old style", False)])
        with running(config_of(broker, connect_timeout_s=0.5), outbox) as link:
            assert link.flush(10) == 0
            assert link.protocol == "3.1.1"
            wait_until(lambda: listener.payloads() == [b"old style"])
        wait_until(lambda: listener.states()[-1:] == ["stopped"])


def test_a_port_that_accepts_and_answers_nothing_or_rubbish_is_only_reported(outbox):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        silent = BrokerConfig(connect_timeout_s=0.2, retry_min_s=0.05, retry_max_s=0.1)
        with running(silent.at(f"127.0.0.1:{server.getsockname()[1]}"), outbox) as link:
            wait_until(lambda: link.counts.failures >= 2)
            assert link.trouble == "no answer from the broker"
            server.settimeout(5)
            for _ in range(4):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(os.urandom(64))
            wait_until(lambda: link.counts.failures >= 4)


QUOTA, DENIED, BAD_FORMAT = 0x97, 0x87, 0x99


@pytest.mark.parametrize(("code", "said"), [(QUOTA, "Quota exceeded"), (DENIED, "Not authorized"), (0x80, "Unspecif")])
def test_only_a_success_takes_an_alert_out_of_the_outbox(outbox, caplog, code, said):
    """Whatever the code of the failure: kept, counted, said once, tried again after a while, in order after all."""
    answer = [code]
    outbox.put([(ALERT, b"%d" % i, False) for i in range(20)])
    with (
        Scripted(lambda where, _: answer[0] if where == ALERT else 0) as broker,
        running(config_of(broker), outbox) as link,
    ):
        wait_until(lambda: link.counts.refused == 20)
        assert said in link.trouble
        assert link.flush(0.3) == 20
        assert link.counts.refused <= 21
        assert sum("refuses alerts" in line for line in caplog.messages) == 1
        answer[0] = 0
        outbox.put([(ALERT, b"new", False)])  # goes when the broker has had its rest, and before those it refused
        wait_until(lambda: link.counts.acknowledged >= 1)
        link.resend()
    with Scripted(lambda *_: 0) as broker, running(config_of(broker), outbox) as link:
        assert link.flush(10) == 0
        assert broker.got[:20] == [b"%d" % i for i in range(20)]


@pytest.mark.parametrize(
    ("code", "said"), [(BAD_FORMAT, "Payload format invalid"), (QUOTA, "Quota exceeded"), (DENIED, "Not authorized")]
)
def test_a_message_that_a_broker_finds_bad_stays_and_is_counted_and_holds_up_no_other(outbox, code, said):
    outbox.put([(ALERT, b"bad" if i == 3 else b"%d" % i, False) for i in range(10)])
    with (
        Scripted(lambda _, payload: code if payload == b"bad" else 0) as broker,
        running(config_of(broker), outbox) as link,
    ):
        wait_until(lambda: link.counts.acknowledged == 9)
        assert (outbox.depth(), link.counts.refused) == (1, 1)
        outbox.put([(ALERT, b"after", False)])
        wait_until(lambda: link.counts.acknowledged == 10)
        assert broker.got.count(b"bad") == 1
        assert said in link.trouble


@needs_mosquitto
def test_alerts_of_a_gateways_former_name_that_are_refused_do_not_hold_up_those_of_its_new_one(
    tmp_path, outbox, listening
):
    """A hundred of them: each one tried costs a wait of up to half a minute."""
    (tmp_path / "acl").write_text("topic readwrite botwatch/v1/gw/gw-001/#\n")
    old = topic("gw-000", "alert")
    outbox.put([(old, b"old", False)] * 100 + [(ALERT, b"%d" % i, False) for i in range(200)])
    with (
        Mosquitto(tmp_path / "broker", f"acl_file {tmp_path / 'acl'}\n") as broker,
        running(config_of(broker, inflight=10), outbox) as link,
    ):
        listener = listening(broker, filters=(ALERT,))
        wait_until(lambda: outbox.depth() == 100 and len(set(listener.payloads())) == 200)
        assert list(dict.fromkeys(listener.payloads())) == [b"%d" % i for i in range(200)]
        outbox.put([(ALERT, b"new", False)])
        wait_until(lambda: b"new" in listener.payloads(), 2)
        assert 10 <= link.counts.refused <= 15  # those under way together, and now and then one more
        (tmp_path / "acl").write_text("topic readwrite botwatch/v1/gw/#\n")  # the operator lets them pass
        broker.signal(signal.SIGHUP)
        late = listening(broker, filters=(old,), name="late")
        wait_until(lambda: outbox.depth() <= 15, 20)
        assert len(late.payloads(old)) >= 85


def test_a_broker_that_acknowledges_nothing_is_sent_no_more_than_it_takes_and_nothing_is_lost(outbox):
    outbox.put([(ALERT, b"%d" % i, False) for i in range(100)])
    with (
        Scripted(lambda where, _: None if where == ALERT else 0, receive_maximum=7) as broker,
        running(config_of(broker), outbox) as link,
    ):
        wait_until(lambda: len(broker.got) == 7)
        assert link.flush(0.3) == 100
        assert len(broker.got) == 7


class Rogue(Scripted):
    """Says anything at all on its first connections, and then what it should."""

    def __init__(self, rng, connections):
        self._rng, self._left = rng, connections
        super().__init__(lambda *_: 0)

    def _talk(self, line):
        self._left -= 1
        if self._left < 0:
            super()._talk(line)
            return
        rng = self._rng
        line.settimeout(0.02)
        line.recv(4096)
        if rng.random() < 0.9:
            line.sendall(bytes([0x20, 6, 0, 0, 3, 0x21, 0, 10]))  # CONNACK
        for _ in range(rng.randrange(1, 6)):
            kind = rng.choice([0x20, 0x30, 0x32, 0x34, 0x40, 0x50, 0x62, 0x70, 0x90, 0xB0, 0xD0, 0xE0, 0xF0])
            body = bytearray(rng.randbytes(rng.randrange(30)))
            if len(body) > 4 and rng.random() < 0.6:  # close to an acknowledgement of what is under way
                body[:2] = bytes([0, rng.randrange(1, 8)])
                body[3] = rng.randrange(3)
            line.sendall(bytes([kind, len(body)]) + body)
        line.recv(4096)


def test_after_whatever_a_rogue_broker_sent_alerts_arrive_at_a_correct_one(outbox):
    """Of those it acknowledged it has them, as far as the agent can know: the later ones arrive."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    outbox.put([(ALERT, b"%d" % i, False) for i in range(50)])
    with (
        Rogue(random.Random(seed), 150) as broker,
        running(config_of(broker, version=5, retry_min_s=0.01, retry_max_s=0.02), outbox) as link,
    ):
        wait_until(lambda: link.counts.failures >= 150, 60)
        outbox.put([(ALERT, b"after", False)])
        assert link.flush(20) == 0
        assert broker.got[-1] == b"after"


@needs_mosquitto
def test_after_a_long_outage_all_goes_out_in_order_and_a_new_alert_does_not_wait_long(tmp_path, outbox, listening):
    outbox.put([(ALERT, b"%d" % i + bytes(1000), i % 3 > 0) for i in range(3000)])
    with Mosquitto(tmp_path / "broker", "max_inflight_messages 5") as broker:
        listener = listening(broker)
        with running(config_of(broker), outbox) as link:
            wait_until(lambda: len(listener.payloads()) > 10)
            outbox.put([(ALERT, b"new", False)])
            wait_until(lambda: b"new" in listener.payloads(), 20)
            assert link.flush(5) == 0
        got = [payload.rstrip(b"\0") for payload in listener.payloads()]
        assert got == [*(b"%d" % i for i in range(3000)), b"new"]
        assert link.counts.refused == link.counts.unheard == 0


def test_one_thread_talks_to_the_broker_whichever_thread_publishes(tmp_path, outbox, listening, monkeypatch):
    """Else a thread that publishes and one in a callback of paho's could wait for each other for good."""
    speaking = set()

    def noted(method):
        def call(client, *args, **options):
            if client is not listener.client:
                speaking.add(threading.get_ident())
            return method(client, *args, **options)

        return call

    with any_broker(tmp_path / "broker") as broker:
        listener = listening(broker)
        for name in ("connect", "publish", "subscribe", "unsubscribe", "loop_read", "loop_write", "loop_misc"):
            monkeypatch.setattr(mqtt.Client, name, noted(getattr(mqtt.Client, name)))
        reply = topic("gw-001", "reply")
        with running(config_of(broker), outbox) as link:
            says = (
                lambda i: outbox.put([(ALERT, b"%d" % i, False)]),
                lambda i: link.retain("devices", b"%d" % i),
                lambda i: link.retain("health", b"%d" % i, qos=0),
                lambda i: link.reply(reply, b"%d" % i),
                lambda _: link.resend(),
                lambda _: (link.received(), outbox.depth(), outbox.save()),
            )
            threads = [threading.Thread(target=lambda say=say: [say(i) for i in range(50)]) for say in says]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            wait_until(lambda: len(set(listener.payloads())) == 50 and link.counts.replies >= 1)
            assert link.flush(5) == 0
            wait_until(lambda: listener.payloads(topic("gw-001", "devices"))[-1:] == [b"49"])
    assert len(speaking) == 1
    assert threading.get_ident() not in speaking


def test_waits_between_attempts_grow_with_jitter_within_their_bounds_also_when_a_connection_is_lost_at_once(outbox):
    """As when two gateways have one id, each of which throws out the other."""
    with (
        Scripted(lambda *_: 0, after_connect=True) as broker,
        running(config_of(broker, retry_min_s=0.1, retry_max_s=0.8), outbox),
    ):
        wait_until(lambda: len(broker.connected) == 7)
    waits = [later - earlier for earlier, later in itertools.pairwise(broker.connected)]
    bounds = [min(0.8, 0.1 * 2**i) for i in range(6)]
    assert all(bound / 2 <= wait <= bound + 0.4 for wait, bound in zip(waits, bounds, strict=True)), waits
    assert len({round(wait, 3) for wait in waits[3:]}) > 1


def test_nothing_listens_on_the_port_of_these_tests():
    """The tests above that expect a refused connection rely on it."""
    with socket.socket() as s:
        assert s.connect_ex(("127.0.0.1", free_port())) != 0


def test_an_agent_whose_link_has_ended_logs_it_and_fails(tmp_path, caplog):
    with any_broker(tmp_path / "broker") as broker:
        config = AgentConfig(outbox=OutboxConfig(path=tmp_path / "box.sqlite"), broker=config_of(broker))
        with Publisher(config).running() as publisher:
            wait_until(lambda: publisher.link.connected)
            publisher.check()
            publisher.state.close()  # a state that is gone for good
            with pytest.raises(StateError, match=r"delivery has ended: .*box\.sqlite"):
                wait_until(publisher.check)
    assert "delivery has ended" in caplog.text
