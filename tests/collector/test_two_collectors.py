"""Two collectors on one broker: each gets all alerts, and where they have one id both say so."""

import json
import shutil
import sqlite3
import time
from contextlib import ExitStack, contextmanager
from copy import deepcopy

import pytest
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from collector.config import CollectorConfig
from collector.ingest import Ingest
from collector.store import AlertStore
from edge_agent.contract.broker import BrokerConfig
from tests.broker import Mosquitto, needs_mosquitto, wait_until
from tests.collector.test_ingest import EXAMPLE, TOPIC
from tests.line import in_thread

pytestmark = needs_mosquitto


def config_of(broker, database, **settings):
    broker_config = BrokerConfig(inflight=500, session_s=600, retry_min_s=0.1, retry_max_s=0.8, **settings)
    return CollectorConfig(db=str(database), broker=broker_config.at(broker.address), batch_s=0.01)


@contextmanager
def collecting(broker, *databases, **settings):
    """Collectors of these databases, each in a thread and subscribed."""
    with ExitStack() as stack:
        ingests = []
        for database in databases:
            store = AlertStore(str(database))
            stack.callback(store.close)
            ingests.append(Ingest(config_of(broker, database, **settings), store))
            stack.enter_context(in_thread(ingests[-1].run))
        yield ingests


def alerts(numbers):
    for n in numbers:
        document = deepcopy(EXAMPLE)
        document["alert"]["context"]["botwatch"] |= {"seq": n}
        yield json.dumps(document).encode()


@contextmanager
def publishing(broker):
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    yield lambda payload, topic=TOPIC: client.publish(topic, payload, qos=1).wait_for_publish(10)
    client.disconnect()
    client.loop_stop()


def subscribed(caplog, times):
    wait_until(lambda: sum("subscribed to" in line for line in caplog.messages) >= times)


def test_two_collectors_with_two_databases_both_get_all_alerts(tmp_path, caplog):
    caplog.set_level("INFO")
    databases = tmp_path / "one.sqlite", tmp_path / "other.sqlite"
    with (
        Mosquitto(tmp_path / "broker") as broker,
        collecting(broker, *databases) as ingests,
        publishing(broker) as publish,
    ):
        subscribed(caplog, 2)
        for payload in alerts(range(1, 101)):
            publish(payload)
        for ingest in ingests:
            wait_until(lambda ingest=ingest: ingest.counts.stored == 100)
            assert ingest.counts.failures == ingest.counts.client_id_taken == 0
    assert len({ingest.client_id for ingest in ingests}) == 2


def test_the_copy_of_a_database_has_its_id_and_both_collectors_name_that(tmp_path, caplog):
    original, copy = tmp_path / "one.sqlite", tmp_path / "copy.sqlite"
    AlertStore(str(original)).close()
    shutil.copy(original, copy)
    with Mosquitto(tmp_path / "broker") as broker, collecting(broker, original, copy) as ingests:
        for ingest in ingests:
            wait_until(lambda ingest=ingest: ingest.counts.client_id_taken, 30)
            assert f"another client uses the client id {ingest.client_id}" in ingest.trouble
    named = [line for line in caplog.messages if "give each collector a client id of its own" in line]
    assert len(named) == 2
    with Mosquitto(tmp_path / "broker2") as broker, collecting(broker, copy, client_id="archive") as (ingest,):
        wait_until(lambda: ingest.connected)
        assert ingest.client_id == "archive"


def test_alerts_that_the_broker_held_for_a_collector_of_before_are_not_lost_by_an_upgrade(tmp_path, caplog):
    """Its session has the id that all collectors had then."""
    caplog.set_level("INFO")
    database = tmp_path / "c.sqlite"
    with Mosquitto(tmp_path / "broker") as broker, publishing(broker) as publish:
        with collecting(broker, database, client_id="botwatch-collector"):
            subscribed(caplog, 1)
        older = AlertStore(str(database))
        older.close()
        with sqlite3.connect(database) as db:
            db.execute("DROP TABLE setting")
        db.close()
        for payload in alerts(range(1, 11)):
            publish(payload)
        with collecting(broker, database) as (ingest,):
            wait_until(lambda: ingest.counts.stored == 10)


@pytest.mark.parametrize("version", [5, "3.1.1"])
def test_a_message_larger_than_the_collector_takes_ends_no_connection_and_holds_up_no_other(tmp_path, caplog, version):
    """Under MQTT 5 the broker drops it; under 3.1.1 it is rejected. Also when it waited for an absent collector."""
    caplog.set_level("INFO")
    database = tmp_path / "c.sqlite"
    with Mosquitto(tmp_path / "broker") as broker, publishing(broker) as publish:
        for round_ in range(2):
            if round_:
                publish(bytes(2_000_000))
                publish(next(alerts([2])))
            with collecting(broker, database, version=version) as (ingest,):
                subscribed(caplog, round_ + 1)
                if not round_:
                    publish(bytes(2_000_000))
                    publish(next(alerts([1])))
                wait_until(lambda ingest=ingest: ingest.counts.stored == 1)
                assert ingest.counts.failures == 0
                assert ingest.counts.rejected == (version == "3.1.1")


def test_large_messages_do_not_pile_up_in_memory(tmp_path, caplog):
    caplog.set_level("INFO")
    with (
        Mosquitto(tmp_path / "broker") as broker,
        publishing(broker) as publish,
        ExitStack() as stack,
    ):
        store = AlertStore(str(tmp_path / "c.sqlite"))
        stack.callback(store.close)
        config = CollectorConfig(
            broker=config_of(broker, "x").broker, batch_rows=10_000, batch_s=10.0, db=str(tmp_path / "c.sqlite")
        )
        ingest = Ingest(config, store)
        stack.enter_context(in_thread(ingest.run))
        subscribed(caplog, 1)
        began = time.monotonic()
        for _ in range(6):
            publish(bytes(900_000))
        wait_until(lambda: ingest.counts.rejected >= 5)
        assert time.monotonic() - began < 8.0  # long before the batch is due by its time
