"""The broker that we ship gives each client the rights of the table in docs/alerts.md, and no others."""

import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.broker import needs_clients, needs_mosquitto, wait_until
from tests.line import tls_config
from tests.test_documents import prose, tables

ALERTS = Path(__file__).parents[2] / "docs/alerts.md"
NAMES = {"gateway, its own": "gw-001", "another gateway": "gw-002"}
"""Columns that are not called as the client is."""


class Client:
    """A client with the certificate of ``name``; ``got`` are the topics of the messages that it may read."""

    def __init__(self, site, name):
        self.got, self.answers, self.subscribed = set(), {}, threading.Event()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5)
        self.client.tls_set_context(tls_config(site, name).tls_context())
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_message = lambda _c, _d, message: self.got.add(message.topic)
        self.client.on_publish = lambda _c, _d, mid, reason, _p: self.answers.update({mid: reason})
        self.client.on_connect = lambda client, *_: client.subscribe([("botwatch/#", 1), ("homeassistant/#", 1)])
        self.client.connect("127.0.0.1", site.port)
        self.client.loop_start()
        assert self.subscribed.wait(10)

    def may_write(self, topic):
        mid = self.client.publish(topic, b"{}", qos=1).mid
        wait_until(lambda: mid in self.answers)
        reason = self.answers[mid]
        assert not reason.is_failure or str(reason) == "Not authorized"
        return not reason.is_failure

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@needs_mosquitto
def test_each_client_has_the_rights_of_the_table_and_no_others(site):
    head, *rows = next(rows for _, rows in tables(prose(ALERTS)) if rows[0][1] == "gateway, its own")
    wanted = {
        (NAMES.get(name, name), row[0].strip("`")): right
        for row in rows
        for name, right in zip(head[1:], row[1:], strict=True)
    }
    topics = [row[0].strip("`") for row in rows]
    with ExitStack() as stack:
        clients = {}
        for name in (NAMES.get(name, name) for name in head[1:]):
            clients[name] = Client(site, name)
            stack.callback(clients[name].close)
        writes = {key for key in wanted if clients[key[0]].may_write(key[1])}
        collector = clients["botwatch-collector"]
        for client in clients.values():
            client.got.clear()
        for topic in topics:
            assert collector.may_write(topic)
        wait_until(lambda: collector.got == set(topics))
        wait_until(lambda: clients["viewer"].got)
        for name, client in clients.items():  # each has had the last message that it may read
            last = [topic for topic in topics if "r" in wanted[name, topic]][-1:]
            wait_until(lambda client=client, last=last: set(last) <= client.got)
        reads = {(name, topic) for name, client in clients.items() for topic in client.got}
    assert writes == {key for key, right in wanted.items() if "w" in right}
    assert reads == {key for key, right in wanted.items() if "r" in right}


CONSUMERS = ALERTS.parent / "consumers"


@needs_mosquitto
@needs_clients
def test_the_consumers_read_along_with_the_certificate_of_the_viewer(site):
    ca, cert, key = (str(site.folder / name) for name in ("ca.crt", "viewer.crt", "viewer.key"))
    python = [sys.executable, CONSUMERS / "alerts.py", "--host", "127.0.0.1", "--port", str(site.port)]
    shell = ["sh", CONSUMERS / "alerts.sh", "-h", "127.0.0.1", "-p", str(site.port), "--cafile", ca]
    for command in ([*python, "--ca", ca, "--cert", cert, "--key", key], [*shell, "--cert", cert, "--key", key]):
        before = site.log().count("as viewer")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert process.stdout.readline() in ("subscribed: Granted QoS 1\n", "waiting for alerts\n")
            wait_until(lambda before=before: site.log().count("as viewer") > before)
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.wait()
