"""Home Assistant as far as MQTT discovery goes: it reads documents by the documented keys, and shows states.

Keys and values are those of Home Assistant's own schemas (homeassistant/components/mqtt: schemas.py, binary_sensor.py,
event.py, sensor.py, update.py, of 2024.11 to 2026), where unknown keys are dropped or refused; here all are refused.
Templates are rendered by Jinja as Home Assistant does it, without its own functions.
"""

import json
import re
import threading
from typing import Any

import jsonschema
from jinja2.sandbox import ImmutableSandboxedEnvironment
from paho.mqtt import client as mqtt
from paho.mqtt.client import topic_matches_sub
from paho.mqtt.enums import CallbackAPIVersion

from tests.broker import Broker

TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
TOPIC: dict[str, Any] = {"type": "string", "pattern": "^[^#+\\x00]+$", "maxLength": 65_535}  # no filter
TEMPLATE = TEXT
QOS = {"enum": [0, 1, 2]}


def strict(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


AVAILABILITY = {
    "availability": {
        "type": "array",
        "items": strict(
            ("topic",), topic=TOPIC, value_template=TEMPLATE, payload_available=TEXT, payload_not_available=TEXT
        ),
    },
    "availability_mode": {"enum": ["all", "any", "latest"]},
}
ENTITY = {
    **AVAILABILITY,
    "unique_id": TEXT,
    "default_entity_id": TEXT,
    "name": TEXT,
    "icon": {"type": "string", "pattern": "^[a-z]+:[a-z0-9-]+$"},
    "enabled_by_default": {"type": "boolean"},
    "entity_category": {"enum": ["config", "diagnostic"]},
    "json_attributes_topic": TOPIC,
    "json_attributes_template": TEMPLATE,
    "qos": QOS,
    "state_topic": TOPIC,
    "value_template": TEMPLATE,
}
PLATFORMS = {
    "binary_sensor": strict(
        ("platform", "unique_id", "state_topic"),
        **ENTITY,
        platform={"const": "binary_sensor"},
        device_class={"enum": ["problem", "safety", "connectivity", "running", "update"]},
        expire_after={"type": "integer", "minimum": 0},
        force_update={"type": "boolean"},
        off_delay={"type": "integer", "minimum": 0},
        payload_on=TEXT,
        payload_off=TEXT,
    ),
    "event": strict(
        ("platform", "unique_id", "state_topic", "event_types"),
        **ENTITY,
        platform={"const": "event"},
        device_class={"enum": ["button", "doorbell", "motion"]},
        event_types={"type": "array", "items": TEXT, "minItems": 1},
    ),
    "sensor": strict(
        ("platform", "unique_id", "state_topic"),
        **ENTITY,
        platform={"const": "sensor"},
        device_class=TEXT,
        expire_after={"type": "integer", "minimum": 0},
        force_update={"type": "boolean"},
        last_reset_value_template=TEMPLATE,
        options={"type": "array", "items": TEXT, "minItems": 1},
        state_class={"enum": ["measurement", "total", "total_increasing"]},
        suggested_display_precision={"type": "integer", "minimum": 0},
        unit_of_measurement=TEXT,
    ),
    "update": strict(
        ("platform", "unique_id", "state_topic"),
        **ENTITY,
        platform={"const": "update"},
        command_topic=TOPIC,
        device_class={"const": "firmware"},
        display_precision={"type": "integer"},
        entity_picture=TEXT,
        latest_version_template=TEMPLATE,
        latest_version_topic=TOPIC,
        payload_install=TEXT,
        release_summary=TEXT,
        release_url=TEXT,
        retain={"type": "boolean"},
        title=TEXT,
    ),
}
DOCUMENT = strict(
    ("device", "components", "origin"),
    **AVAILABILITY,
    device={
        **strict(
            (),
            identifiers={"type": "array", "items": TEXT, "minItems": 1},
            connections={"type": "array", "items": {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 2}},
            manufacturer=TEXT,
            model=TEXT,
            model_id=TEXT,
            name=TEXT,
            hw_version=TEXT,
            serial_number=TEXT,
            sw_version=TEXT,
            via_device=TEXT,
            suggested_area=TEXT,
            configuration_url=TEXT,
        ),
        "anyOf": [{"required": ["identifiers"]}, {"required": ["connections"]}],
    },
    origin=strict(("name",), name=TEXT, sw_version=TEXT, support_url=TEXT),
    state_topic=TOPIC,
    command_topic=TOPIC,
    qos=QOS,
    encoding=TEXT,
    components={
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"type": "object", "required": ["platform"], "oneOf": list(PLATFORMS.values())},
    },
)
UPDATE_KEYS = {
    *("installed_version", "latest_version", "title", "release_summary", "release_url", "entity_picture"),
    *("in_progress", "update_percentage"),
}
DISCOVERY = re.compile(r"(?P<prefix>.+)/device/(?P<object_id>[a-zA-Z0-9_-]+)/config")
JINJA = ImmutableSandboxedEnvironment()


class HomeAssistant:
    """A Home Assistant that reads a broker from its start, with the discovery ``prefix``.

    ``devices`` are the documents by their object id; ``events`` are what its event entities fired; ``complaints`` are
    what it would have logged as errors.
    """

    def __init__(self, broker: Broker | None = None, prefix: str = "homeassistant") -> None:
        self.prefix = prefix
        self.devices: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self.messages: list[tuple[str, bytes]] = []  # all that came, in order
        self._last: dict[str, bytes] = {}  # topic -> the last message
        self._lock = threading.Lock()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, "homeassistant")
        if broker:
            subscribed = threading.Event()
            self._client.on_connect = lambda c, *_: c.subscribe("#", 1)
            self._client.on_subscribe = lambda *_: subscribed.set()
            self._client.on_message = lambda _c, _d, m: self.hear(m.topic, m.payload, bool(m.retain))
            self._client.connect("127.0.0.1", broker.port)
            self._client.loop_start()
            assert subscribed.wait(10)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def start_anew(self) -> None:
        """Forget everything, and say that it has started."""
        with self._lock:
            self.devices.clear()
            self._last.clear()
        self._client.publish(f"{self.prefix}/status", "online", qos=1).wait_for_publish(10)

    def hear(self, where: str, payload: bytes, retained: bool = False) -> None:
        """Take in a message."""
        with self._lock:
            self._last[where] = payload
            self.messages.append((where, payload))
            if match := DISCOVERY.fullmatch(where):
                self.devices.pop(match["object_id"], None)
                if match["prefix"] == self.prefix and payload:
                    self._discover(match["object_id"], payload, retained)
                return
            for component in self._components("event"):
                if component["state_topic"] == where and not retained:
                    event = json.loads(payload)
                    if event.get("event_type") not in component["event_types"]:
                        self.complaints.append(f"{where}: invalid event type {event}")
                    self.events.append(event)

    def _discover(self, object_id: str, payload: bytes, retained: bool) -> None:
        document = json.loads(payload)
        found = jsonschema.Draft202012Validator(DOCUMENT).iter_errors(document)
        errors = [f"{object_id}: {error.json_path}: {error.message}" for error in found]
        self.complaints += errors
        if errors:
            return
        known = {c["unique_id"] for other in self.devices.values() for c in other["components"].values()}
        for component in document["components"].values():
            if component["unique_id"] in known:
                self.complaints.append(f"{object_id}: {component['unique_id']} is not unique")
        identifiers = {i for other in self.devices.values() for i in other["device"]["identifiers"]}
        via = document["device"].get("via_device")
        if via and via not in identifiers and not retained:  # a broker hands out what it retains in any order
            self.complaints.append(f"{object_id}: via_device {via} does not exist")
        self.devices[object_id] = document

    def _components(self, platform: str) -> list[dict[str, Any]]:
        return [c for d in self.devices.values() for c in d["components"].values() if c["platform"] == platform]

    def device_of(self, mac: str) -> str:
        """The object id of the device with this MAC; KeyError if there is none."""
        for object_id, document in list(self.devices.items()):
            if ["mac", mac] in document["device"].get("connections", []):
                return object_id
        raise KeyError(mac)

    def available(self, object_id: str) -> bool:
        """Whether the entities of a device are available."""
        document = self.devices[object_id]
        assert document["availability_mode"] == "all"
        return all(self._render(source, source["topic"]) == "online" for source in document["availability"])

    def state(self, object_id: str, key: str) -> Any:
        """The state of an entity, as Home Assistant would show it: None if it is unknown."""
        component = self.devices[object_id]["components"][key]
        text = self._render(component, component["state_topic"])
        if component["platform"] == "update":
            facts = json.loads(text or "{}")
            assert set(facts) <= UPDATE_KEYS
            return facts
        if not text or text == "None":
            return None
        if component["platform"] == "binary_sensor":
            return {component["payload_on"]: "on", component["payload_off"]: "off"}[text]
        if "unit_of_measurement" in component or "state_class" in component:
            return float(text)
        assert len(text) <= 255
        return text

    def attributes(self, object_id: str, key: str) -> dict[str, Any]:
        """The attributes of an entity."""
        where = self.devices[object_id]["components"][key]["json_attributes_topic"]
        attributes: dict[str, Any] = json.loads(self._last[where])
        return attributes

    def _render(self, component: dict[str, Any], where: str) -> str:
        payload = self._last.get(where, b"").decode()
        if not payload or "value_template" not in component:
            return payload
        try:
            values = {"value": payload, "value_json": json.loads(payload)}
        except ValueError:
            values = {"value": payload}
        return JINJA.from_string(component["value_template"]).render(values)

    def topics(self) -> set[str]:
        """All topics that its entities read."""
        return {
            topic
            for document in self.devices.values()
            for part in (*document["availability"], *document["components"].values())
            for name in ("topic", "state_topic", "json_attributes_topic")
            if (topic := part.get(name))
        }

    def may_read(self, rights: list[str]) -> bool:
        """Whether filters that a broker's rights name cover all topics that its entities read."""
        return all(any(topic_matches_sub(right, topic) for right in rights) for topic in self.topics())
