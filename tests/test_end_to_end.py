"""The whole chain: capture -> fit -> bundle -> agent -> broker -> collector, each a process as a user starts it."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from tests.broker import Mosquitto, any_broker, needs_mosquitto, wait_until
from tests.collector.test_collector_command import Collector
from tests.conftest import Home
from tests.homeassistant import HomeAssistant
from tests.reference.frames import pcap
from tests.streams import context

SCHEMA = jsonschema.Draft202012Validator(
    json.loads(files("edge_agent.contract").joinpath("alert.schema.json").read_text())
)


class Gateway:
    """`botwatch agent replay` of one gateway."""

    def __init__(self, name: str, home: Home, folder: Path) -> None:
        self.name, self.bundle, self.outbox = name, home.bundle, folder / f"{name}.sqlite"

    def start(self, address: str, *captures: Path, wait: float = 20.0) -> subprocess.Popen[str]:
        words = ["agent", "replay", "--json", *captures, "--bundle", self.bundle, "--gateway", self.name]
        words += ["--broker", address, "--outbox", self.outbox, "--wait", wait]
        command = [sys.executable, "-m", "edge_agent.command", *map(str, words)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def replay(self, address: str, *captures: Path, wait: float = 20.0) -> tuple[int, list[dict], str]:
        """Return the exit status, the alerts on stdout, and stderr."""
        process = self.start(address, *captures, wait=wait)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        return process.returncode, [json.loads(line) for line in out.splitlines()], err


def listed(collector: Collector) -> list[dict]:
    """Return what `botwatch collector alerts --json` prints of each alert, without what the collector adds."""
    words = ["collector", "alerts", "--json", "--after", "0", "--db", str(collector.db)]
    command = [sys.executable, "-m", "edge_agent.command", *words]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    alerts = [json.loads(line) for line in out.splitlines()]
    assert [alert["alert"]["context"].pop("collector")["cursor"] for alert in alerts] == [*range(1, len(alerts) + 1)]
    return alerts


def keys(alerts: list[dict]) -> set[tuple[str, int]]:
    """Return id and number of the alerts, none of which may occur twice."""
    ids = [(context(a)["id"], context(a)["seq"]) for a in alerts]
    assert len(set(ids)) == len(ids)
    return set(ids)


@pytest.fixture
def silence(tmp_path: Path) -> Path:
    """An empty capture: its replay delivers the alerts that wait in the outbox."""
    (tmp_path / "silence.pcap").write_bytes(pcap([]))
    return tmp_path / "silence.pcap"


def test_the_collector_stores_an_attack_once_however_often_its_capture_is_replayed(home, attack_capture, tmp_path):
    with any_broker(tmp_path / "broker") as broker, Collector(broker, tmp_path / "c.sqlite") as collector:
        status, alerts, _ = Gateway("gw-1", home, tmp_path).replay(broker.address, attack_capture)
        assert status == 0
        wait_until(lambda: collector.stored() == keys(alerts))
        assert [s for s in (context(a)["state"] for a in alerts) if s != "update"] == ["new", "end", "new", "end"]
        assert [context(a)["class"] for a in alerts if context(a)["state"] == "end"] == ["mirai.scan", "unknown"]
        # its packets have another size than those of BASHLITE's flood, so it has the profile of no class of the bundle
        assert listed(collector) == alerts
        for alert in listed(collector):
            SCHEMA.validate(alert)
        (tmp_path / "gw-1.sqlite").unlink()
        assert Gateway("gw-1", home, tmp_path).replay(broker.address, attack_capture)[:2] == (0, alerts)
        assert collector.end(15) == 0
        assert f"{len(alerts)} stored, {len(alerts)} repeated, 0 rejected" in collector.said()
        assert listed(collector) == alerts


@needs_mosquitto
def test_home_assistant_has_each_alert_of_a_replay_as_an_event_and_no_infection_is_left(home, attack_capture, tmp_path):
    (tmp_path / "collector.yaml").write_text("homeassistant: {enabled: true}\n")
    with (
        Mosquitto(tmp_path / "broker") as broker,
        Collector(broker, tmp_path / "c.sqlite", "--config", tmp_path / "collector.yaml"),
    ):
        shown = HomeAssistant(broker)
        status, alerts, _ = Gateway("gw-1", home, tmp_path).replay(broker.address, attack_capture)
        assert status == 0
        mac = context(alerts[0])["device"]["mac"]
        state = f"botwatch/v1/ha/device/{mac.replace(':', '')}"
        wait_until(lambda: [event["event_type"] for event in shown.events].count("end") == 2)
        wait_until(lambda: shown.state(shown.device_of(mac), "infected") == "off")
        assert [event["episode"] for event in shown.events] == [context(alert)["id"] for alert in alerts]
        states = [json.loads(payload)["infected"] for where, payload in shown.messages if where == state]
        assert states[-1] == "no"
        assert shown.complaints == []
        shown.close()


@needs_mosquitto
def test_a_killed_collector_and_an_absent_broker_lose_no_alert(home, attack_capture, silence, tmp_path):
    broker, gateway = Mosquitto(tmp_path / "broker"), Gateway("gw-2", home, tmp_path)
    status, alerts, errors = gateway.replay(broker.address, attack_capture, wait=0.1)
    assert status == 1
    assert f"{len(alerts)} alerts wait" in errors
    with broker, Collector(broker, tmp_path / "c.sqlite") as collector:
        other = Gateway("gw-3", home, tmp_path)
        process = other.start(broker.address, attack_capture)
        wait_until(lambda: collector.stored())
        collector.end(9)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert gateway.replay(broker.address, silence)[:2] == (0, [])
        collector.start()
        expected = keys(alerts) | keys([json.loads(line) for line in out.splitlines()])
        wait_until(lambda: collector.stored() == expected)
        assert keys(listed(collector)) == expected
