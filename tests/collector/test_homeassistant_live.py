"""A live agent, its broker and a collector as processes: what Home Assistant makes of everything that they publish."""

import json
import sys

from tests.broker import needs_mosquitto, wait_until
from tests.homeassistant import HomeAssistant
from tests.live import GatewayMosquitto, agent
from tests.netns import MAC, ROOT
from tests.traffic import scan, steady

RECORD = """
import json, sys
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
def write(_client, _data, message):
    print(json.dumps([message.topic, message.payload.decode(), message.retain]), flush=True)
client = mqtt.Client(CallbackAPIVersion.VERSION2)
client.on_connect = lambda client, *_: client.subscribe("#", 1)
client.on_subscribe = lambda *_: print(json.dumps(["subscribed", "", False]), flush=True)
client.on_message = write
client.connect("127.0.0.1", int(sys.argv[1]))
client.loop_forever()
"""
"""Writes each message of a broker as a line of JSON."""

AGENT = """
gateway: gw-001
names: {{"02:00:5e:10:00:01": cam-entrance}}
alerts: {{end_s: 4.0}}
health_s: 1
outbox: {{path: {folder}/box.sqlite}}
broker: {{host: 127.0.0.1, port: {port}}}
"""
DEVICE, GATEWAY = "02:00:5e:10:00:01", "botwatch_gw-001"


@needs_mosquitto
def test_home_assistant_shows_a_live_gateway_and_a_device_that_attacks(wire, home, tmp_path):
    (tmp_path / "collector.yaml").write_text("homeassistant: {enabled: true}\n")
    with GatewayMosquitto(tmp_path / "broker", wire.gateway) as broker, (tmp_path / "record").open("w") as record:
        words = ["collector", "serve", "--config", str(tmp_path / "collector.yaml"), "--db", str(tmp_path / "c.sqlite")]
        words += ["--broker", broker.address]
        recorder = wire.on_gateway(sys.executable, "-c", RECORD, str(broker.port), stdout=record)
        collector = wire.on_gateway(sys.executable, "-m", "edge_agent.command", *words, cwd=ROOT)

        def shown() -> HomeAssistant:
            ha = HomeAssistant()
            for line in (tmp_path / "record").read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    topic, payload, retained = json.loads(line)
                    ha.hear(topic, payload.encode(), retained)
            return ha

        def infections(ha: HomeAssistant) -> list[str]:
            where = f"botwatch/v1/ha/device/{DEVICE.replace(':', '')}"
            return [json.loads(payload)["attack"] for topic, payload in ha.messages if topic == where]

        try:
            wait_until(lambda: "subscribed" in (tmp_path / "record").read_text(), 20)
            with agent(wire, home, tmp_path, config=AGENT.format(folder=tmp_path, port=broker.port)):
                wait_until(lambda: GATEWAY in shown().devices, 20)
                wire.send(steady(scan(1500, "192.168.1.57", mac=MAC), 0, 1000), tmp_path)
                wait_until(lambda: infections(shown())[-1:] not in ([], ["none"]), 20)
                wait_until(lambda: infections(shown())[-1] == "none", 30)
                ha = shown()
                assert ha.available(GATEWAY)
                assert ha.available(ha.device_of(DEVICE))
                assert ha.devices[ha.device_of(DEVICE)]["device"]["name"] == "cam-entrance"
                values = [ha.state(GATEWAY, key) for key in ("packets", "drops", "episodes", "outbox", "devices")]
                assert all(isinstance(value, float) for value in values)
                assert values[-1] >= 1
                assert ha.state(GATEWAY, "model")["installed_version"]
                assert [event["event_type"] for event in ha.events][-1] == "end"
                assert {event["mac"] for event in ha.events} == {DEVICE}
                assert ha.complaints == []
            wait_until(lambda: not shown().available(GATEWAY), 10)
        finally:
            for process in (recorder, collector):
                process.kill()
                process.wait()
