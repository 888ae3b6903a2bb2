"""Whatever a broker makes of what is published for Home Assistant, alerts come over the same connection."""

import pytest

from collector.config import CollectorConfig, HomeAssistantConfig
from collector.homeassistant import Message
from collector.homepublisher import REST_S, HomePublisher
from collector.ingest import Ingest
from collector.store import AlertStore
from edge_agent.contract.broker import BrokerConfig
from edge_agent.contract.messages import encode
from edge_agent.mqtt import ConnectionEnded
from tests import homeassistant
from tests.broker import Mosquitto, needs_mosquitto, wait_until
from tests.collector.test_collector_command import publisher
from tests.collector.test_homeassistant import alert
from tests.line import in_thread

LIMIT = 2_100
"""Bytes: an alert is smaller, the document of a gateway is larger."""


@needs_mosquitto
@pytest.mark.parametrize("version", [5, "3.1.1"])
@pytest.mark.parametrize("limit", ["max_packet_size", "message_size_limit"])
def test_a_document_that_is_larger_than_the_broker_takes_is_left_out_and_the_connection_stays(
    tmp_path, caplog, limit, version
):
    """The connection ends twice at most; a broker that drops such a message without a word is no reason for a line."""
    assert len(encode(alert())) < LIMIT - 200
    with Mosquitto(tmp_path / "broker", f"{limit} {LIMIT}") as broker, publisher(broker) as send:
        config = BrokerConfig(retry_min_s=0.05, retry_max_s=0.2, version=version).at(broker.address)
        store = AlertStore(str(tmp_path / "c.sqlite"))
        ingest = Ingest(CollectorConfig(broker=config, homeassistant=HomeAssistantConfig(enabled=True)), store)
        with in_thread(ingest.run):
            wait_until(lambda: ingest.connected)
            send("botwatch/v1/gw/gw-001/alert", encode(alert()))
            wait_until(lambda: len(store.alerts()) == 1)
            ha = homeassistant.HomeAssistant(broker)
            wait_until(lambda: any(topic == "botwatch/v1/ha/gateway/gw-001" for topic, _ in ha.messages))
            if (limit, version) != ("message_size_limit", "3.1.1"):
                wait_until(lambda: "the document of a gateway" in caplog.text)
                wait_until(lambda: ingest.connected and ingest.homeassistant.counts["messages_set_aside"])
            connects = ingest.counts.connects
            send("botwatch/v1/gw/gw-001/alert", encode(alert(2)))
            wait_until(lambda: len(store.alerts()) == 2)
            assert ingest.counts.connects == connects <= 4
            assert "another client" not in caplog.text


class Line:
    """A broker of MQTT 3.1.1 that hangs up on messages of more than ``most`` bytes."""

    protocol, max_packet = "3.1.1", 0

    def __init__(self, most):
        self.most, self.taken, self.ids, self.too_large = most, [], [], False

    def fits(self, topic, payload):
        return True

    def publish(self, topic, payload, retain):
        self.too_large = self.too_large or len(payload) > self.most
        if not self.too_large:
            self.taken.append(topic)
        self.ids.append(len(self.ids) + 1)
        return self.ids[-1]


def test_what_is_set_aside_is_tried_again_after_an_hour_and_the_rest_is_published():
    now = [0.0]
    ours = HomePublisher("broker:1883", lambda: now[0])
    large = Message("homeassistant/device/botwatch_gw-001/config", b"x" * 3000)
    everything = [
        Message("botwatch/v1/ha/gateway/gw-001", b"{}"),
        large,
        Message("botwatch/v1/ha/x", b"e", retain=False),
    ]
    for _ in range(4):
        line = Line(1000)
        ours.begin(line)
        ours.send(line, everything)
        for step in range(1, 10):
            if line.too_large:
                ours.ended(ConnectionEnded("hung up", accepted=True, hung_up=True, by_message=True))
                break
            if step <= len(line.ids):
                ours.answered(step)
            ours.send(line, ())
        now[0] += 3.0
    assert not line.too_large
    assert set(line.taken) == {message.topic for message in everything} - {large.topic}
    assert ours.set_aside == 1
    line.most = 5000
    ours.send(line, ())
    assert large.topic not in line.taken
    now[0] += REST_S
    ours.send(line, ())
    assert line.taken[-1] == large.topic
