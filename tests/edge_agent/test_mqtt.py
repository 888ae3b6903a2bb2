"""One connection to a broker: its events, its end in words, and the version that is tried next."""

import socket
import threading
import time
from contextlib import closing, contextmanager

import pytest

from edge_agent.contract.broker import BrokerConfig, BrokerError
from edge_agent.mqtt import Acknowledged, Connected, ConnectionEnded, Dialer, Incoming, Subscribed, probe
from tests.broker import Amqtt, Mosquitto, Scripted, any_broker, needs_mosquitto

TOPIC = "botwatch/v1/gw/gw-001/alert"
DENIED, NO_SUBSCRIBER = 0x87, 0x10


@contextmanager
def connected(broker, name, **options):
    """A connection that the broker has accepted."""
    dialer = Dialer(BrokerConfig(connect_timeout_s=2.0).at(broker.address), name, **options)
    with closing(dialed(dialer)) as connection:
        yield connection


def dialed(dialer):
    """A connection, also when the broker has to be asked with another version."""
    while True:
        connection = dialer.dial()
        try:
            until(connection, Connected)
        except ConnectionEnded as end:
            if not end.try_other_version:
                raise
        else:
            return connection


def until(connection, kind):
    """The next event of a kind; others are passed over."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for event in connection.step(0.1):
            if isinstance(event, kind):
                return event
    raise AssertionError(f"no {kind.__name__}")


@pytest.mark.parametrize("kind", [pytest.param(Mosquitto, marks=needs_mosquitto), Amqtt])
def test_what_one_publishes_the_other_receives_as_an_event_under_either_version(tmp_path, kind):
    with kind(tmp_path / "broker") as broker, connected(broker, "one") as one, connected(broker, "other") as other:
        assert one.protocol == ("5" if kind is Mosquitto else "3.1.1")
        other.subscribe([TOPIC])
        assert until(other, Subscribed) == Subscribed(())
        before = time.time_ns()
        id_ = one.publish(TOPIC, b"hello", response_topic="r", correlation=b"c")
        acknowledged = until(one, Acknowledged)
        assert (acknowledged.id, acknowledged.refused, acknowledged.unheard) == (id_, False, False)
        message = until(other, Incoming)
        assert (message.topic, message.payload, message.retained, message.qos) == (TOPIC, b"hello", False, 1)
        assert before <= message.received_ns <= time.time_ns()
        assert (message.response_topic, message.correlation) == (("r", b"c") if kind is Mosquitto else ("", b""))


@needs_mosquitto
def test_a_message_that_its_receiver_did_not_acknowledge_comes_again_and_one_that_it_did_does_not(tmp_path):
    """Whose session the broker keeps, as the collector's."""
    with Mosquitto(tmp_path / "broker") as broker:
        with connected(broker, "one", clean=True) as one, connected(broker, "other", manual_ack=True) as other:
            other.subscribe([TOPIC])
            until(other, Subscribed)
            for payload in (b"first", b"second"):
                one.publish(TOPIC, payload)
            messages = [until(other, Incoming), until(other, Incoming)]
            other.acknowledge(messages[0])
        with connected(broker, "other", manual_ack=True) as other:
            assert until(other, Incoming).payload == b"second"


def test_an_acknowledgement_distinguishes_refused_messages_from_those_without_subscriber(tmp_path):
    answers = {b"bad": DENIED, b"unheard": NO_SUBSCRIBER}
    with Scripted(lambda _, payload: answers.get(payload, 0)) as broker, connected(broker, "one") as one:
        reached = []
        for payload in (b"good", b"bad", b"unheard"):
            one.publish(TOPIC, payload)
            event = until(one, Acknowledged)
            reached.append((event.reason, event.refused, event.unheard))
    assert reached == [
        ("Success", False, False),
        ("Not authorized", True, False),
        ("No matching subscribers", False, True),
    ]


def test_the_broker_names_its_bounds_and_a_message_beyond_them_does_not_fit(tmp_path):
    with Scripted(lambda *_: 0, receive_maximum=7) as broker, connected(broker, "one") as one:
        assert one.receive_maximum == 7
        assert one.fits(TOPIC, bytes(1_000_000))
        one.max_packet = 100
        assert one.fits(TOPIC, bytes(50))
        assert not one.fits(TOPIC, bytes(50), correlation=bytes(20))


def test_after_its_end_every_verb_gives_the_reason_and_earlier_messages_are_not_lost():
    with Scripted(lambda *_: 0, after_connect=True) as broker:
        connection = Dialer(BrokerConfig().at(broker.address), "one").dial()
        with closing(connection):
            assert until(connection, Connected) == Connected()
            with pytest.raises(ConnectionEnded, match="connection lost"):
                until(connection, Incoming)
            for verb in (
                lambda: connection.publish(TOPIC, b""),
                lambda: connection.subscribe([TOPIC]),
                lambda: connection.unsubscribe(TOPIC),
                lambda: connection.step(0.0),
            ):
                with pytest.raises(ConnectionEnded, match="connection lost") as end:
                    verb()
                assert not end.value.try_other_version
            connection.disconnect()  # no error: it is over


def test_a_word_by_which_the_owner_hangs_up_is_the_reason_it_reads(tmp_path):
    with any_broker(tmp_path / "broker") as broker, connected(broker, "one") as one:
        one.disconnect("refuses the subscription")
        with pytest.raises(ConnectionEnded, match=r"^refuses the subscription$"):
            until(one, Incoming)


def test_a_byte_in_its_socket_wakes_a_step(tmp_path):
    reader, writer = socket.socketpair()
    with any_broker(tmp_path / "broker") as broker, connected(broker, "one") as one, reader, writer:
        threading.Timer(0.1, writer.send, [b"\0"]).start()
        began = time.monotonic()
        assert one.step(20.0, reader) == []
        assert time.monotonic() - began < 10
        reader.setblocking(False)
        with pytest.raises(BlockingIOError):
            reader.recv(1)


def test_probe_names_the_version_or_the_reason(tmp_path):
    with Amqtt(tmp_path / "broker") as broker:
        config = BrokerConfig(connect_timeout_s=0.5).at(broker.address)
        assert probe(config, "gw-001") == "3.1.1"
    with pytest.raises(BrokerError, match="connection refused"):
        probe(config, "gw-001")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = BrokerConfig(connect_timeout_s=0.2).at(f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(BrokerError, match="no answer from the broker"):
            probe(config, "gw-001")
