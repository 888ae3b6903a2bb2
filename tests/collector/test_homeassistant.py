"""Home Assistant shows gateways, devices and infections from what the collector publishes."""

import json
import re
import sqlite3
import time
from copy import deepcopy
from importlib.resources import files
from pathlib import Path

import pytest

from collector.config import CollectorConfig, HomeAssistantConfig, Retention
from collector.homeassistant import BIRTH_S, MAX_EVENTS, SETTLE_S, HomeAssistant
from collector.ingest import Ingest, MessageJudge
from collector.store import AlertStore, Arrival, Fresh, Presence
from edge_agent.contract.alert import Alert
from edge_agent.contract.broker import BrokerConfig
from edge_agent.contract.messages import Health, MessageError, Status, encode, format_time
from edge_agent.mqtt import Incoming
from tests import homeassistant
from tests.broker import Mosquitto, Scripted, needs_mosquitto, wait_until
from tests.collector.test_collector_command import Collector, publisher
from tests.line import in_thread

EXAMPLE = json.loads((Path(__file__).parents[1] / "data" / "alert.example.json").read_text())
MAC, OTHER = "b8:27:eb:12:34:56", "02:00:5e:10:00:02"
DAY_NS = 86_400_000_000_000
NOW_NS = 1_795_450_930_000_000_000
CONFIG = "homeassistant: {enabled: true}\nbroker: {retry_min_s: 0.05, retry_max_s: 0.2}\n"


def alert(n=1, seq=1, state="new", gateway="gw-001", mac=MAC, **ours):
    """A message of episode ``n`` of a device."""
    document = deepcopy(EXAMPLE)
    document["host"] = gateway
    context = document["alert"]["context"]["botwatch"]
    context |= {"id": f"01936d2e-7b1c-7c3e-9f10-{n:012x}", "seq": seq, "state": state, "gateway": gateway}
    context["device"] = {"mac": mac, "ip": "192.168.1.57", "name": "cam-entrance"}
    context |= ours
    return document


HEALTH = Health(NOW_NS, 812.5, 0.125, 0.1, 55.0, 1, (), 3, "2026.11.23+1", {"frames": 9}).document()


def devices(*entries, ts=NOW_NS):
    named = [{"mac": mac, "name": name, "state": "active"} for mac, name in entries]
    return {"ts": format_time(ts), "model": "2026.11.23+1", "devices": named, "count": {"active": len(named)}}


STATUS = Status("online", "b", "0.1.0", NOW_NS)


class Line:
    """The collector's picture beside a Home Assistant that hears all of it; ``now_s`` and ``now_ns`` are the clocks."""

    def __init__(self, store, **changes):
        self.store, self.config = store, CollectorConfig(homeassistant=HomeAssistantConfig(enabled=True), **changes)
        self.heard = homeassistant.HomeAssistant()
        self.now_s, self.now_ns = 100.0, NOW_NS
        self.restart()

    def restart(self):
        self.ours = HomeAssistant(self.config, self.store)
        self.ours.connected(self.now_s)
        self.publish()

    def publish(self):
        """Hand everything that is due to Home Assistant; returns the topics."""
        topics = []
        while messages := list(self.ours.due(self.now_s)):
            for message in messages:
                self.heard.hear(message.topic, message.payload)
                topics.append(message.topic)
        return topics

    def message(self, where, document, retained=False):
        payload = document if isinstance(document, bytes) else encode(document, 1 << 20)
        return Incoming(where, payload, retained, received_ns=self.now_ns)

    def take(self, leaf, document, gateway="gw-001", retained=False):
        message = self.message(f"botwatch/v1/gw/{gateway}/{leaf}", document, retained)
        assert not self.ours.take(message, self.now_s)
        try:
            accepted = MessageJudge().judge(message.topic, message.payload)
        except MessageError:
            return self.publish()
        self.ours.stored([Arrival(accepted, self.now_ns, "", retained)], Fresh(0, 0))
        return self.publish()

    def save(self, *arrivals):
        batch = [
            Arrival(m, self.now_ns) if isinstance(m, tuple) else Arrival(Alert.read(m), self.now_ns, json.dumps(m))
            for m in arrivals
        ]
        self.ours.stored(batch, self.store.save(batch))
        return self.publish()


@pytest.fixture
def line():
    return Line(AlertStore("sqlite://"))


def test_a_gateway_is_shown_with_what_it_measures(line):
    line.save(("gw-001", STATUS))
    line.heard.hear("botwatch/v1/gw/gw-001/status", encode(STATUS.document()))
    line.heard.hear("botwatch/v1/gw/gw-001/health", encode(HEALTH))
    line.take("health", HEALTH)
    line.take("devices", devices((MAC, "cam-entrance"), (OTHER, "")))
    ha = line.heard
    assert ha.complaints == []
    about = ha.devices["botwatch_gw-001"]["device"]
    assert about == {
        "identifiers": ["botwatch_gw-001"],
        "name": "botwatch gw-001",
        "manufacturer": "botwatch",
        "model": "gateway",
        "sw_version": "0.1.0",
    }
    assert ha.available("botwatch_gw-001")
    shown = {key: ha.state("botwatch_gw-001", key) for key in ("packets", "drops", "episodes", "outbox", "devices")}
    assert shown == {"packets": 812.5, "drops": 0.125, "episodes": 1, "outbox": 3, "devices": 2}
    assert ha.state("botwatch_gw-001", "problem") == "off"
    version = "2026.11.23+1"
    assert ha.state("botwatch_gw-001", "model") == {"installed_version": version, "latest_version": version}
    for state in ("offline", "stopped"):
        ha.hear("botwatch/v1/gw/gw-001/status", encode(Status(state, "b", "0.1.0", NOW_NS).document()))
        assert not ha.available("botwatch_gw-001")


@pytest.mark.parametrize("client", ["homeassistant", "viewer"])
def test_the_rights_that_we_ship_cover_every_topic_that_an_entity_reads(line, client):
    line.take("devices", devices((MAC, "cam-entrance")))
    line.take("health", HEALTH)
    acl = files("configs").joinpath("mosquitto.acl").read_text()
    rights = re.search(rf"^user {client}\n((?:topic .+\n)+)", acl, re.MULTILINE)[1]
    filters = re.findall(r"^topic (?:read|readwrite) (.+)$", rights, re.MULTILINE)
    assert line.heard.may_read(filters)
    assert len(line.heard.topics()) == 7
    assert not line.heard.may_read([name for name in filters if not name.endswith("/health")])


def test_a_device_is_infected_from_the_first_alert_of_an_episode_to_the_last(line):
    line.take("devices", devices((MAC, "cam-entrance"), (OTHER, "")))
    ha = line.heard
    device, other = ha.device_of(MAC), ha.device_of(OTHER)
    assert ha.devices[device]["device"]["name"] == "cam-entrance"
    assert ha.devices[other]["device"] == {
        "identifiers": ["botwatch_mac_02005e100002"],
        "connections": [["mac", OTHER]],
        "name": OTHER,
        "via_device": "botwatch_gw-001",
        "manufacturer": "botwatch",
    }
    assert (ha.state(device, "infected"), ha.state(device, "attack")) == ("off", "none")
    line.save(alert())
    assert (ha.state(device, "infected"), ha.state(device, "attack")) == ("on", "Mirai scan")
    assert ha.attributes(device, "infected")["severity"] == 1
    assert ha.state("botwatch_gw-001", "problem") == "on"
    assert ha.state(other, "infected") == "off"
    line.save(alert(seq=3, state="end"), alert(seq=2, state="update"))  # out of order
    assert (ha.state(device, "infected"), ha.state(device, "attack")) == ("off", "none")
    assert ha.state("botwatch_gw-001", "problem") == "off"
    assert ha.complaints == []


def test_only_a_class_of_severity_1_is_an_infection_and_any_is_shown_as_an_attack(line):
    line.save(alert(**{"class": "unknown"}))
    ha = line.heard
    device = ha.device_of(MAC)
    assert (ha.state(device, "infected"), ha.state(device, "attack")) == ("off", "unknown attack")
    assert ha.state("botwatch_gw-001", "problem") == "off"


def test_a_victim_and_a_test_are_events_and_no_infection(line):
    line.save(alert(role="victim"), alert(2, test=True))
    ha = line.heard
    assert [(event["event_type"], event["role"]) for event in ha.events] == [("new", "victim"), ("test", "source")]
    assert list(ha.devices) == ["botwatch_gw-001"]
    assert ha.state("botwatch_gw-001", "problem") == "off"


def test_an_event_comes_once_with_what_an_automation_needs(line):
    line.save(alert(), alert())
    line.save(alert())
    (event,) = line.heard.events
    assert event == {
        "event_type": "new",
        "gateway": "gw-001",
        "kind": "scan",
        "class": "mirai.scan",
        "attack": "Mirai scan",
        "severity": 1,
        "role": "source",
        "name": "cam-entrance",
        "mac": MAC,
        "ip": "192.168.1.57",
        "port": 23,
        "explanation": "",
        "episode": "01936d2e-7b1c-7c3e-9f10-000000000001",
        "time": "2026-11-23T16:22:10.123456+0000",
    }


def test_a_device_behind_two_gateways_is_one_and_is_infected_while_either_says_so(line):
    line.save(alert(1), alert(2, gateway="gw-002"))
    ha = line.heard
    assert set(ha.devices) == {"botwatch_gw-001", "botwatch_gw-002", "botwatch_mac_b827eb123456"}
    line.save(alert(1, 2, "end"))
    assert ha.state(ha.device_of(MAC), "infected") == "on"
    assert [ha.state(f"botwatch_gw-00{n}", "problem") for n in (1, 2)] == ["off", "on"]
    line.save(alert(2, 2, "end", gateway="gw-002"))
    assert ha.state(ha.device_of(MAC), "infected") == "off"


def test_an_infection_survives_a_restart_of_the_collector(database):
    store = AlertStore(database)
    line = Line(store)
    line.save(("gw-001", STATUS), alert())
    line.ours.keep(line.now_ns)
    line.heard = homeassistant.HomeAssistant()
    line.restart()
    assert line.heard.state(line.heard.device_of(MAC), "infected") == "on"
    line.save(alert(seq=2, state="end"))
    line.ours.keep(line.now_ns)
    line.heard = homeassistant.HomeAssistant()
    line.restart()
    assert line.heard.state(line.heard.device_of(MAC), "infected") == "off"
    assert line.heard.devices[line.heard.device_of(MAC)]["device"]["name"] == "cam-entrance"
    store.close()


def test_a_gateway_is_published_before_the_devices_behind_it_also_after_a_restart(line):
    line.store.remember([Presence("gw-007", MAC, "cam-entrance", NOW_NS)])  # of the gateway itself nothing is stored
    line.heard = homeassistant.HomeAssistant()
    line.restart()
    assert list(line.heard.devices) == ["botwatch_gw-007", "botwatch_mac_b827eb123456"]
    assert line.heard.complaints == []


def test_nothing_is_published_twice_until_home_assistant_starts_or_the_connection_is_new(line):
    line.take("devices", devices((MAC, "cam-entrance")))
    assert line.take("devices", devices((MAC, "cam-entrance"))) == []
    assert line.take("health", HEALTH) == []
    before = dict(line.heard.devices)
    line.heard.devices.clear()
    birth = line.message("homeassistant/status", b"online")
    assert line.ours.take(birth, line.now_s)
    assert len(line.publish()) == 6
    assert line.heard.devices == before
    assert line.ours.take(birth, line.now_s)  # a second one at once waits
    assert line.publish() == []
    line.now_s += BIRTH_S
    assert len(line.publish()) == 6
    assert line.ours.take(line.message("homeassistant/status", b"offline"), line.now_s)
    assert line.publish() == []


def test_what_is_not_seen_for_the_time_of_retention_is_removed():
    line = Line(AlertStore("sqlite://"), retention=Retention(days=10))
    line.take("devices", devices((MAC, "cam-entrance"), (OTHER, "plug")))
    line.take("health", HEALTH, gateway="gw-002")
    for day in range(1, 14):
        line.now_ns = NOW_NS + day * DAY_NS
        line.take("devices", devices((MAC, "cam-entrance")))
        line.ours.keep(line.now_ns)
        gone = line.publish()
    assert gone == []
    assert set(line.heard.devices) == {"botwatch_gw-001", "botwatch_mac_b827eb123456"}
    removed = {topic for topic, payload in line.heard.messages if not payload}
    assert removed == {
        "homeassistant/device/botwatch_mac_02005e100002/config",
        "botwatch/v1/ha/device/02005e100002",
        "homeassistant/device/botwatch_gw-002/config",
        "botwatch/v1/ha/gateway/gw-002",
        "botwatch/v1/ha/gateway/gw-002/model",
    }
    assert {(p.gateway, p.mac) for p in line.store.presences()} == {("gw-001", ""), ("gw-001", MAC)}


def test_an_old_document_that_the_broker_retains_does_not_make_a_device_seem_present():
    line = Line(AlertStore("sqlite://"), retention=Retention(days=10))
    line.now_ns += 20 * DAY_NS
    line.take("devices", devices((MAC, "cam-entrance")), retained=True)
    line.ours.keep(line.now_ns)
    line.publish()
    assert line.heard.devices == {}


def test_episodes_that_the_store_has_deleted_are_no_infections(line):
    line.save(alert())
    while line.store.purge(NOW_NS + DAY_NS, 1 << 40):
        pass
    line.ours.purged()
    line.publish()
    assert line.heard.state(line.heard.device_of(MAC), "infected") == "off"


def test_documents_from_before_that_stand_for_nothing_are_removed_and_those_of_others_are_not(line):
    line.take("devices", devices((MAC, "")))
    ours = line.heard.messages
    document = dict(ours)["homeassistant/device/botwatch_mac_b827eb123456/config"]
    other = encode({"device": {"identifiers": ["botwatch_x"]}, "origin": {"name": "somebody"}, "components": {}})
    for name, payload in (
        ("botwatch_gw-old", document),
        ("botwatch_mac_b827eb123456", document),
        ("botwatch_x", other),
    ):
        where = f"homeassistant/device/{name}/config"
        assert line.ours.take(line.message(where, payload, retained=True), line.now_s)
    assert line.ours.take(line.message("homeassistant/device/botwatch_live/config", document), line.now_s)
    assert line.ours.settled(line.now_s) == ""
    line.now_s += SETTLE_S
    assert line.ours.settled(line.now_s) == "homeassistant/device/+/config"
    assert line.ours.settled(line.now_s) == ""
    assert sorted(line.publish()) == [
        "botwatch/v1/ha/gateway/gw-old",
        "botwatch/v1/ha/gateway/gw-old/model",
        "homeassistant/device/botwatch_gw-old/config",
    ]


def test_devices_beyond_the_bound_are_left_out_and_one_that_attacks_takes_the_place_of_one_that_does_not(caplog):
    line = Line(AlertStore("sqlite://"))
    line.config = CollectorConfig(homeassistant=HomeAssistantConfig(enabled=True, max_devices=3))
    line.restart()
    line.take("devices", devices(*((f"02:00:5e:10:01:{n:02x}", "") for n in range(5))))
    assert line.ours.counts["devices_left_out"] == 2
    assert "homeassistant.max_devices is 3" in caplog.text
    line.save(alert())
    ha = line.heard
    assert ha.state(ha.device_of(MAC), "infected") == "on"
    assert len([name for name in ha.devices if "_mac_" in name]) == 3
    line.save(*(alert(n, mac=f"02:00:5e:10:02:{n:02x}") for n in range(2, 9)))
    assert len([name for name in ha.devices if "_mac_" in name]) == 3
    assert ha.state(ha.device_of(MAC), "infected") == "on"


def test_events_that_wait_are_bounded_and_counted(line):
    batch = [Arrival(Alert.read(alert(n)), NOW_NS, json.dumps(alert(n))) for n in range(1, MAX_EVENTS + 6)]
    line.ours.stored(batch, line.store.save(batch))
    line.publish()
    assert len(line.heard.events) == MAX_EVENTS
    assert line.ours.counts["events_dropped"] == 5


HOSTILE = [
    "{{ states('lock.front_door') }}",
    "{% for x in range(10**9) %}{% endfor %}",
    "\x1b[2J\x07cam",
    "\u202egnp.mac",
    '"}],"components":{}',
    "n" * 300,
    "🤖" * 64,
    "",
]


TEMPLATE = re.compile(
    r"\{\{ (?:value_json\.[a-z_]+(?: \| default\(none\) \| (?:float|int)\(none\))?"
    r"|'online' if value_json\.state == 'online' else 'offline') \}\}"
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_is_only_ever_text(line, text):
    """No template has a word of a gateway's in it, and none of its characters is one that a terminal would obey."""
    entry = {"mac": MAC, "name": text, "state": "active"}
    line.take("devices", {**devices(), "devices": [entry], "model": text})
    line.save(alert(device={"mac": MAC, "ip": "192.168.1.57", "name": text[:64]}, explanation=text[:200]))
    line.save(("gw-001", Status("online", "b", text[:20], NOW_NS)))
    ha = line.heard
    assert ha.complaints == []
    name = ha.devices[ha.device_of(MAC)]["device"]["name"]
    assert 0 < len(name) <= 64
    assert name.isprintable()
    templates = {t for _, payload in ha.messages for t in re.findall(r'"value_template":"(.*?)"', payload.decode())}
    assert templates
    assert not [t for t in templates if not TEMPLATE.fullmatch(t)]
    assert ha.state(ha.device_of(MAC), "infected") == "on"
    assert all(len(payload) <= 16_384 for _, payload in ha.messages)


@pytest.mark.parametrize(
    "document",
    [
        b"{",
        b"[]",
        b"\xff",
        b'{"devices": 3}',
        b'{"devices": [3, null, {"mac": 5}, {"mac": "x"}, {"name": []}]}',
    ],
)
def test_a_document_that_is_none_changes_nothing(line, document):
    line.take("devices", document)
    line.take("health", document)
    line.take("devices", b"")
    assert [name for name in line.heard.devices if "_mac_" in name] == []


def test_a_health_without_numbers_is_shown_as_unknown(line):
    line.take("health", HEALTH)
    for values in ({}, {"pps": "{{ 1 }}", "drop_pct": None, "episodes_open": [], "outbox_depth": {}}):
        line.heard.hear("botwatch/v1/gw/gw-001/health", encode(values))
        assert [line.heard.state("botwatch_gw-001", key) for key in ("packets", "drops", "episodes", "outbox")] == [
            None
        ] * 4


def test_a_database_that_is_busy_costs_neither_who_was_seen_nor_an_infection(tmp_path, caplog):
    path = tmp_path / "c.sqlite"
    line = Line(AlertStore(f"sqlite:///{path}?timeout=0.01"))
    line.take("devices", devices((OTHER, "")))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    line.ours.keep(line.now_ns)
    assert "when gateways and devices were seen last is saved later" in caplog.text
    other.execute("ROLLBACK")
    line.ours.keep(line.now_ns)
    assert {(p.gateway, p.mac) for p in line.store.presences()} == {("gw-001", ""), ("gw-001", OTHER)}
    batch = [Arrival(Alert.read(alert()), NOW_NS, json.dumps(alert()))]
    fresh = line.store.save(batch)
    other.execute("ALTER TABLE episode RENAME TO away")
    line.ours.stored(batch, fresh)
    line.ours.keep(line.now_ns)
    assert "Home Assistant learns of open episodes later" in caplog.text
    other.execute("ALTER TABLE away RENAME TO episode")
    other.close()
    line.ours.keep(line.now_ns)
    line.publish()
    assert line.heard.state(line.heard.device_of(MAC), "infected") == "on"


def serving(broker, folder):
    config = BrokerConfig(retry_min_s=0.05, retry_max_s=0.2).at(broker.address)
    store = AlertStore(str(folder / "c.sqlite"))
    return Ingest(CollectorConfig(broker=config, homeassistant=HomeAssistantConfig(enabled=True)), store), store


@needs_mosquitto
def test_a_broker_that_lets_nothing_of_home_assistants_pass_costs_no_alert(tmp_path, caplog):
    (tmp_path / "acl").write_text("topic readwrite botwatch/v1/gw/#\n")
    with Mosquitto(tmp_path / "broker", f"acl_file {tmp_path}/acl") as broker, publisher(broker) as send:
        ingest, store = serving(broker, tmp_path)
        with in_thread(ingest.run):
            wait_until(lambda: ingest.connected)
            send("botwatch/v1/gw/gw-001/alert", encode(alert()))
            wait_until(lambda: "let the collector read and write" in caplog.text)
            send("botwatch/v1/gw/gw-001/alert", encode(alert(2)))
            wait_until(lambda: len(store.alerts()) == 2)
        assert caplog.text.count("the broker refuses what Home Assistant needs: Not authorized") == 1
        assert ingest.counts.failures == 0


def test_a_refused_subscription_to_home_assistants_topics_does_not_end_the_one_to_alerts(tmp_path, caplog):
    with Scripted(lambda *_: 0, refuse="homeassistant/") as broker:
        ingest, _ = serving(broker, tmp_path)
        with in_thread(ingest.run):
            wait_until(lambda: "the broker refuses what Home Assistant needs: Not authorized" in caplog.text)
            assert ingest.connected
        assert len(broker.connected) == 1


@needs_mosquitto
def test_a_real_broker_carries_yes_and_no_over_restarts_of_home_assistant_and_of_the_collector(tmp_path):
    (tmp_path / "collector.yaml").write_text(CONFIG)
    arguments = ("--config", tmp_path / "collector.yaml")
    with (
        Mosquitto(tmp_path / "broker") as broker,
        Collector(broker, tmp_path / "c.sqlite", *arguments) as collector,
        publisher(broker) as send,
    ):
        send("botwatch/v1/gw/gw-001/status", encode(STATUS.document()))
        send("botwatch/v1/gw/gw-001/devices", encode(devices((MAC, "cam-entrance"), ts=time.time_ns())))
        send("botwatch/v1/gw/gw-001/alert", encode(alert()))
        state = "botwatch/v1/ha/device/b827eb123456"
        ha = homeassistant.HomeAssistant(broker)
        wait_until(lambda: any(where == state and b'"yes"' in payload for where, payload in ha.messages))
        assert ha.state(ha.device_of(MAC), "infected") == "on"
        assert ha.available("botwatch_gw-001") is False  # its status was not retained: it has not connected since
        ha.hear("botwatch/v1/gw/gw-001/status", encode(STATUS.document()))
        assert ha.available(ha.device_of(MAC))

        ha.start_anew()
        wait_until(lambda: "botwatch_mac_b827eb123456" in ha.devices)
        wait_until(lambda: ha.state(ha.device_of(MAC), "infected") == "on")

        collector.end(9)
        wait_until(lambda: ("botwatch/v1/ha/collector", b"offline") in ha.messages)
        collector.start()
        wait_until(lambda: ha.messages.count(("botwatch/v1/ha/collector", b"online")) == 3)
        assert ha.state(ha.device_of(MAC), "infected") == "on"
        send("botwatch/v1/gw/gw-001/alert", encode(alert(seq=2, state="end")))
        wait_until(lambda: ha.state(ha.device_of(MAC), "infected") == "off")
        assert [event["event_type"] for event in ha.events][-1] == "end"
        assert ha.complaints == []
        assert collector.end(15) == 0
        assert "Home Assistant: 0 devices not shown, 0 events dropped" in collector.said()
        wait_until(lambda: ha.messages[-1] == ("botwatch/v1/ha/collector", b"offline"))
        ha.close()
