"""Writes the documents of Home Assistant's MQTT device discovery (since 2024.11), and their states and events.

Each gateway is a device of Home Assistant's, and so is each device behind a gateway, by its MAC. Every template is a
fixed text; whatever a gateway says, such as a name, is only ever a string of JSON in bounds. Topics and payloads are
known here; when one is to be published is `collector.homeassistant`'s knowledge.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

from edge_agent.contract.alert import CLASSES, Alert
from edge_agent.contract.cli import printable
from edge_agent.contract.messages import MessageError, decode, encode, format_time, topic

ORIGIN = "botwatch collector"
"""The name by which documents that a collector has published are known again."""

EVENT_TYPES = ("new", "update", "end", "test")
"""The types of the event of a gateway: the states of an alert, and one for tests."""

_ONLINE = "{{ 'online' if value_json.state == 'online' else 'offline' }}"
_MAC_NAME = re.compile("botwatch_mac_([0-9a-f]{12})")


class HomeDevice(NamedTuple):
    """One device of Home Assistant's: a gateway, or a device behind one by its MAC."""

    kind: str  # "gateway" or "mac"
    id: str

    @property
    def name(self) -> str:
        """The id of its document; no two are alike, since a gateway's id has no underscore."""
        return f"botwatch_{self.id}" if self.kind == "gateway" else f"botwatch_mac_{self.id.replace(':', '')}"


@dataclass(frozen=True)
class OpenEpisode:
    """An open episode of a device that attacks."""

    id: str
    gateway: str
    mac: str
    ip: str
    class_name: str
    since_ns: int

    @property
    def severity(self) -> int:
        """1 is the worst."""
        return CLASSES[self.class_name].severity


class Documents:
    """Topics and payloads below the topic ``base`` and Home Assistant's discovery ``prefix``."""

    def __init__(self, base: str, prefix: str) -> None:
        self._base = base
        self._origin = {"name": ORIGIN, "sw_version": version("botwatch")}
        self.collector = f"{base}/ha/collector"  # online, or offline from the last will
        self.birth = f"{prefix}/status"
        self.discovery = f"{prefix}/device/+/config"

    def topics(self, home_device: HomeDevice) -> list[str]:
        """Return the topics of one that are retained: the document's, then those of its states."""
        config = self.discovery.replace("+", home_device.name)
        if home_device.kind == "mac":
            return [config, f"{self._base}/ha/device/{home_device.id.replace(':', '')}"]
        state = f"{self._base}/ha/gateway/{home_device.id}"
        return [config, state, f"{state}/model"]

    def discovered(self, where: str, payload: bytes) -> HomeDevice | None:
        """Return the device whose document a collector has published; None for documents of others."""
        start, end = self.discovery.split("+")
        name = where.removeprefix(start).removesuffix(end)
        if not name.startswith("botwatch_"):
            return None
        try:
            origin = decode(payload).get("origin")
        except MessageError:
            return None
        if not isinstance(origin, dict) or origin.get("name") != ORIGIN:
            return None
        if match := _MAC_NAME.fullmatch(name):
            return HomeDevice("mac", ":".join(re.findall("..", match[1])))
        return HomeDevice("gateway", name.removeprefix("botwatch_"))

    def gateway(
        self, gateway: str, *, agent: str, model: str, devices: int, episodes: Sequence[OpenEpisode]
    ) -> dict[str, bytes]:
        """Return what is retained of a gateway with its version, its model ("" if unknown), devices and episodes."""
        home_device = HomeDevice("gateway", gateway)
        config, state, model_topic = self.topics(home_device)
        infected = len({episode.mac for episode in episodes if episode.severity == 1})
        about = {"name": f"botwatch {gateway}", "model": "gateway", "sw_version": agent}
        document = self._document(home_device, about, gateway, self._of_gateway(home_device, bool(model)))
        facts = {"problem": "yes" if infected else "no", "infected": infected, "devices": devices}
        messages = {config: document, state: encode(facts)}
        if model:
            messages[model_topic] = encode({"installed_version": model, "latest_version": model})
        return messages

    def device(self, mac: str, name: str, gateway: str, episodes: Sequence[OpenEpisode]) -> dict[str, bytes]:
        """Return what is retained of a device behind ``gateway`` with its open episodes."""
        home_device = HomeDevice("mac", mac)
        config, state = self.topics(home_device)
        about = {"connections": [["mac", mac]], "name": name or mac, "via_device": HomeDevice("gateway", gateway).name}
        components = {
            "infected": {**_yes_or_no("Infected", state, "infected"), "json_attributes_topic": state},
            "attack": {**_shown("sensor", "Attack", state, "attack"), "icon": "mdi:shield-bug"},
        }
        facts: dict[str, Any] = {"infected": "no", "attack": "none"}
        if episodes:
            worst = min(episodes, key=lambda episode: (episode.severity, episode.since_ns, episode.id))
            facts = {
                "infected": "yes" if worst.severity == 1 else "no",
                "attack": CLASSES[worst.class_name].title,
                "class": worst.class_name,
                "severity": worst.severity,
                "gateway": worst.gateway,
                "mac": mac,
                "ip": worst.ip,
                "since": format_time(worst.since_ns),
                "episode": worst.id,
            }
        return {config: self._document(home_device, about, gateway, components), state: encode(facts)}

    def event(self, alert: Alert) -> tuple[str, bytes]:
        """Return topic and payload of the event that an alert is: its type, and attributes for automations."""
        info = CLASSES[alert.class_name]
        facts = {
            "event_type": "test" if alert.test else alert.state,
            "gateway": alert.gateway,
            "kind": alert.kind,
            "class": alert.class_name,
            "attack": info.title,
            "severity": info.severity,
            "role": alert.role,
            "name": shown(alert.device.name, 64),
            "mac": alert.device.mac,
            "ip": alert.device.ip,
            "port": alert.dest_port,
            "explanation": shown(alert.explanation, 200),
            "episode": alert.id,
            "time": format_time(alert.t_ns),
        }
        return f"{self._base}/ha/gateway/{alert.gateway}/event", encode(facts)

    def _of_gateway(self, home_device: HomeDevice, has_model: bool) -> dict[str, dict[str, Any]]:
        _, state, model = self.topics(home_device)
        health = topic(home_device.id, "health", self._base)
        number = {"state_class": "measurement"}
        percent, rate = {"unit_of_measurement": "%"}, {"unit_of_measurement": "packets/s"}
        components = {
            "alert": {
                "platform": "event",
                "name": "Alert",
                "icon": "mdi:shield-bug",
                "state_topic": f"{state}/event",
                "event_types": list(EVENT_TYPES),
            },
            "problem": _yes_or_no("Infected device", state, "problem"),
            "infected": {**_shown("sensor", "Infected devices", state, "infected"), **number},
            "devices": {**_shown("sensor", "Devices", state, "devices"), **number},
            "packets": {**_measured("Packets", health, "pps", "float"), **number, **rate},
            "drops": {**_measured("Dropped packets", health, "drop_pct", "float"), **number, **percent},
            "episodes": {**_measured("Open episodes", health, "episodes_open", "int"), **number},
            "outbox": {**_measured("Alerts not yet sent", health, "outbox_depth", "int"), **number},
        }
        for key in ("drops", "outbox"):
            components[key]["entity_category"] = "diagnostic"
        if has_model:
            components["model"] = {
                "platform": "update",
                "name": "Model",
                "state_topic": model,
                "entity_category": "diagnostic",
            }
        return components

    def _document(
        self, home_device: HomeDevice, about: Mapping[str, Any], gateway: str, components: dict[str, dict[str, Any]]
    ) -> bytes:
        """Return the discovery document; its entities are available while the collector and ``gateway`` are."""
        about = {"identifiers": [home_device.name], **about, "manufacturer": "botwatch"}
        status = {"topic": topic(gateway, "status", self._base), "value_template": _ONLINE}
        return encode(
            {
                "device": {key: value for key, value in about.items() if value},
                "origin": self._origin,
                "availability": [{"topic": self.collector}, status],
                "availability_mode": "all",
                "qos": 1,
                "components": {
                    key: {**component, "unique_id": f"{home_device.name}_{key}"}
                    for key, component in components.items()
                },
            }
        )


def shown(text: str, most: int) -> str:
    """Return text from a gateway as it may be shown: escaped, and at most so many characters."""
    return printable(text)[:most]


def _shown(platform: str, name: str, state: str, key: str) -> dict[str, Any]:
    """Return an entity that shows a value of the collector's own."""
    return {"platform": platform, "name": name, "state_topic": state, "value_template": f"{{{{ value_json.{key} }}}}"}


def _yes_or_no(name: str, state: str, key: str) -> dict[str, Any]:
    entity = _shown("binary_sensor", name, state, key)
    return {**entity, "device_class": "problem", "payload_on": "yes", "payload_off": "no"}


def _measured(name: str, health: str, key: str, kind: str) -> dict[str, Any]:
    """Return an entity that shows a number of a gateway's own document: unknown where that is no number."""
    entity = _shown("sensor", name, health, key)
    return {**entity, "value_template": f"{{{{ value_json.{key} | default(none) | {kind}(none) }}}}"}
