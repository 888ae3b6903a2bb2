"""The alert: a Suricata EVE `alert` record with our fields in ``alert.context.botwatch``; writer, reader, grammar.

A field stands once, in `Alert`, with its type, its bounds and its place in the record. `alert.schema.json` beside this
file is the grammar that is published and by which the collector judges; it is made from here by
`python -m edge_agent.contract.alert`. Here, too, is what no grammar can say: which signature, ATT&CK technique and name
belong to a class. No clock.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from edge_agent.contract import addresses
from edge_agent.contract.messages import (
    MAX_EVIDENCE,
    community_id,
    flow_id,
    has_ports,
)
from edge_agent.contract.record import TIME, UUID7, Form, grammar, one_of, read, six_digits, spelt, write

EpisodeState = Literal["new", "update", "end"]
Clock = Literal["synced", "unsynced"]
Kind = Literal["flood", "scan", "check-in", "other"]
"""The sort of traffic that was measured, whatever a model calls it, the worst first: much traffic to one target, few
packets to each of many targets, regular contacts with a host that is new to the device, and none of these."""

KINDS: tuple[Kind, ...] = get_args(Kind)

MAX_VERSION = 40
"""Characters of a bundle's version, in the bundle and in every alert."""

MAX_FEATURES = 5
"""The largest number of columns that an alert names."""


@dataclass(frozen=True)
class AttackClass:
    """The description of a class: Suricata's numbers and words, and MITRE ATT&CK (Enterprise)."""

    title: str  # as people read it; the data key `gafgyt.*` is shown as BASHLITE
    signature_id: int  # 9001000..9001999
    severity: int  # 1 is the worst
    family: str  # "" where no malware is named
    kind: Literal["scan", "flood", ""]
    techniques: tuple[tuple[str, str, str, str], ...]  # tactic id and name, technique id and name


_SCAN = (("TA0043", "Reconnaissance", "T1595.001", "Active_Scanning_Scanning_IP_Blocks"),)
_SCAN_INSIDE = (("TA0007", "Discovery", "T1046", "Network_Service_Discovery"),)
_DIRECT = ("TA0040", "Impact", "T1498.001", "Network_Denial_of_Service_Direct_Network_Flood")
_FLOOD = (_DIRECT,)
_STATE_FLOOD = (("TA0040", "Impact", "T1499.001", "Endpoint_Denial_of_Service_OS_Exhaustion_Flood"), _DIRECT)

CLASSES: Mapping[str, AttackClass] = {
    "anomaly": AttackClass("anomaly", 9001001, 2, "", "", ()),  # no technique is claimed for what was not recognised
    "unknown": AttackClass("unknown attack", 9001002, 2, "", "", ()),
    "mirai": AttackClass("Mirai activity", 9001100, 1, "Mirai", "", ()),
    "mirai.scan": AttackClass("Mirai scan", 9001102, 1, "Mirai", "scan", _SCAN),
    "mirai.syn": AttackClass("Mirai syn flood", 9001103, 1, "Mirai", "flood", _STATE_FLOOD),
    "mirai.ack": AttackClass("Mirai ack flood", 9001104, 1, "Mirai", "flood", _STATE_FLOOD),
    "mirai.udp": AttackClass("Mirai udp flood", 9001105, 1, "Mirai", "flood", _FLOOD),
    "mirai.udpplain": AttackClass("Mirai plain udp flood", 9001106, 1, "Mirai", "flood", _FLOOD),
    "gafgyt": AttackClass("BASHLITE activity", 9001200, 1, "BASHLITE", "", ()),
    "gafgyt.scan": AttackClass("BASHLITE scan", 9001202, 1, "BASHLITE", "scan", _SCAN),
    "gafgyt.tcp": AttackClass("BASHLITE tcp flood", 9001203, 1, "BASHLITE", "flood", _FLOOD),
    "gafgyt.junk": AttackClass("BASHLITE junk flood", 9001204, 1, "BASHLITE", "flood", _FLOOD),
    "gafgyt.udp": AttackClass("BASHLITE udp flood", 9001205, 1, "BASHLITE", "flood", _FLOOD),
    "gafgyt.combo": AttackClass("BASHLITE combo flood", 9001206, 1, "BASHLITE", "flood", _FLOOD),
    "gafgyt.tcp_udp": AttackClass("BASHLITE tcp or udp flood", 9001207, 1, "BASHLITE", "flood", _FLOOD),
}

_TEST = AttackClass("TEST", 9001000, 3, "", "", ())
"""The description of a test alert, in place of its class's: rules can filter it by its number."""


_NOBODY = "0.0.0.0"  # noqa: S104 - EVE wants a source address; this one says that none was seen

_ADDRESS: Mapping[str, Any] = {"maxLength": 45}
_PORT: Mapping[str, Any] = {"minimum": 0, "maximum": 65_535}
_HEX64: Mapping[str, Any] = {"pattern": "^[0-9a-f]{64}$"}
_HOST: Mapping[str, Any] = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"}

_SOURCE = Form({"type": "string"}, lambda ip: ip or _NOBODY, lambda text: "" if text == _NOBODY else str(text))
"""The address of a source, "" where none was seen."""

_FEATURES = Form(
    {
        "type": "array",
        "maxItems": MAX_FEATURES,
        "items": {
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "prefixItems": [{"type": "string"}, {"type": "number"}],
        },
    },
    lambda features: [[name, six_digits(value)] for name, value in features],
    lambda items: tuple((str(name), float(value)) for name, value in items),
)
"""Columns and their values."""


@dataclass(frozen=True)
class Activity:
    """One sort of traffic, and the port to which most of its packets go; None where there is no such port."""

    kind: Kind
    port: Annotated[int | None, spelt(minimum=0, maximum=65_535)] = None


_ACTIVITIES = Form(
    {"type": "array", "maxItems": len(KINDS) - 1, "items": {**grammar(Activity), "additionalProperties": False}},
    lambda activities: [write(activity) for activity in activities],
    lambda items: tuple(Activity(**read(Activity, item)) for item in items),
)
"""Activities besides the main one."""


@dataclass(frozen=True)
class AlertDevice:
    """The device or victim that an alert is about; "" where unknown. A victim behind a router has no MAC."""

    mac: Annotated[str, spelt(pattern="^([0-9a-f]{2}:){5}[0-9a-f]{2}$")] = ""
    ip: Annotated[str, spelt(**_ADDRESS)] = ""
    name: Annotated[str, spelt(maxLength=64)] = ""


@dataclass(frozen=True)
class ModelInfo:
    """The bundle that decided; ``generated`` warns that it was trained on generated captures."""

    version: Annotated[str, spelt(maxLength=MAX_VERSION)]
    sha256: Annotated[str, spelt(**_HEX64)] = ""
    generated: bool = False


@dataclass(frozen=True)
class Evidence:
    """The pcap of an episode on its gateway: the sha256 of its first ``bytes`` bytes. The file may grow later."""

    sha256: Annotated[str, spelt(**_HEX64)]
    bytes: Annotated[int, spelt(minimum=0, maximum=MAX_EVIDENCE)]


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One message of one episode: (``id``, ``seq``) names it everywhere, ``id`` the episode.

    Times are packet times in Unix ns; ``count`` rows were flagged and ``packets`` and ``bytes`` sent by the device over
    the whole episode so far. Fields without a part are keys of ``alert.context.botwatch``, in this order.
    """

    id: Annotated[str, spelt(form=UUID7)]
    seq: Annotated[int, spelt(minimum=1)]  # 1, 2, ... within the episode
    state: EpisodeState
    first_ns: Annotated[int, spelt("first_seen", form=TIME, optional=True)]  # absent: as the alert itself
    last_ns: Annotated[int, spelt("last_seen", form=TIME, optional=True)]
    duration_s: Annotated[float, spelt(minimum=0)] = 0.0
    count: Annotated[int, spelt(minimum=1)] = 1
    gateway: Annotated[str, spelt(maxLength=63)]
    site: Annotated[str, spelt(maxLength=63)] = ""
    device: AlertDevice = AlertDevice()
    role: Literal["source", "victim"] = "source"
    class_name: Annotated[str, spelt("class", form=one_of(CLASSES))]
    kind: Annotated[Kind, spelt(optional=True)]  # absent from alerts of older agents: then as the class has it
    port: Annotated[int | None, spelt(minimum=0, maximum=65_535)] = None
    also: Annotated[tuple[Activity, ...], spelt(form=_ACTIVITIES)] = ()
    confidence: Annotated[float, spelt(minimum=0, maximum=1)]
    score: Annotated[float, spelt(minimum=0)]
    threshold: Annotated[float, spelt(exclusiveMinimum=0)]
    window_s: Annotated[float, spelt(exclusiveMinimum=0)] = 0.0
    top_features: Annotated[tuple[tuple[str, float], ...], spelt(form=_FEATURES)] = ()
    explanation: Annotated[str, spelt(maxLength=200)] = ""
    model: ModelInfo
    agent: Annotated[str, spelt(maxLength=20)]
    clock: Clock
    evidence: Annotated[
        Evidence | None,
        spelt(
            description="the pcap on the gateway, named by the alert's id: sha256 of its first `bytes` bytes. The one "
            "in `new` holds what led to the alert; the file grows once, some seconds later, and the next `update` or "
            "`end` describes the whole"
        ),
    ] = None
    test: Annotated[
        bool, spelt(description="sent by hand to try the way from gateway to reader; never to be counted")
    ] = False

    t_ns: Annotated[int, spelt("timestamp", part="eve", form=TIME)]
    interface: Annotated[str, spelt("in_iface", part="eve", maxLength=15)] = ""
    src_ip: Annotated[str, spelt(part="eve", form=_SOURCE, **_ADDRESS)]
    src_port: Annotated[int, spelt(part="eve", **_PORT)] = 0
    dest_ip: Annotated[str, spelt(part="eve", **_ADDRESS)] = ""
    dest_port: Annotated[int, spelt(part="eve", **_PORT)] = 0
    proto: Annotated[str, spelt(part="eve", maxLength=16)]
    packets: Annotated[int, spelt("pkts_toserver", part="flow", minimum=0)] = 0
    bytes: Annotated[int, spelt("bytes_toserver", part="flow", minimum=0)] = 0

    @property
    def activities(self) -> tuple[Activity, ...]:
        """The measured traffic that the alert reports, the main activity first."""
        return Activity(self.kind, self.port), *self.also

    @property
    def signature(self) -> str:
        """The line that people read: "botwatch BASHLITE tcp flood from 192.168.1.57"."""
        if self.test:
            return f"botwatch TEST: nothing happened, sent by hand from {self.gateway}"
        who = self.device.ip or self.device.mac or "an unknown device"
        return f"botwatch {CLASSES[self.class_name].title} {'against' if self.role == 'victim' else 'from'} {who}"

    def document(self) -> dict[str, Any]:
        """Return the EVE record, as `alert.schema.json` wants it; numbers have six significant digits."""
        info = _TEST if self.test else CLASSES[self.class_name]
        source = "" if self.src_ip == _NOBODY else self.src_ip
        flow = community_id(source, self.src_port, self.dest_ip, self.dest_port, self.proto)
        ours, eve, counted = write(self), write(self, "eve"), write(self, "flow")
        if not has_ports(self.proto):
            del eve["src_port"], eve["dest_port"]
        document = {
            **eve,
            "event_type": "alert",
            "flow_id": flow_id(flow) if flow else None,
            "host": self.gateway,
            "community_id": flow,
            "ether": {"src_mac": self.device.mac} if self.device.mac else None,
            "alert": {
                "action": "allowed",
                "gid": _GID,
                "signature_id": info.signature_id,
                "rev": 1,
                "signature": self.signature,
                "category": self._category(info),
                "severity": info.severity,
                "metadata": self._metadata(info),
                "context": {"botwatch": {"schema": _SCHEMA, **ours}},
            },
            "flow": {"start": ours["first_seen"], "end": ours["last_seen"], **counted},
        }
        return {key: document[key] for key in _EVE_KEYS if document.get(key) is not None}

    def _category(self, info: AttackClass) -> str:
        """Return one of Suricata's own classification texts."""
        if self.test:
            return "Misc activity"
        if self.role == "victim":
            return "Detection of a Network Scan" if info.kind == "scan" else "Attempted Denial of Service"
        return "A Network Trojan was detected" if info.family else "Potentially Bad Traffic"

    def _metadata(self, info: AttackClass) -> dict[str, list[str]]:
        """Return lists of words, as the rules of Emerging Threats have them."""
        techniques = _SCAN_INSIDE if info.kind == "scan" and addresses.is_private(self.dest_ip) else info.techniques
        columns = zip(*techniques, strict=True) if techniques else ((),) * 4
        tactic_id, tactic, technique_id, technique = ([*dict.fromkeys(column)] for column in columns)
        lists = {
            "mitre_tactic_id": tactic_id,
            "mitre_tactic_name": tactic,
            "mitre_technique_id": technique_id,
            "mitre_technique_name": technique,
            "confidence": ["High" if self.confidence >= 0.8 else "Medium" if self.confidence >= 0.5 else "Low"],
            "signature_severity": [{1: "Major", 2: "Minor"}.get(info.severity, "Informational")],
            "malware_family": [info.family] if info.family else [],
        }
        return {key: words for key, words in lists.items() if words}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Alert":
        """Return the alert of a document that `alert.schema.json` accepts; a MessageError for one that is no alert."""
        ours: Any = document
        for key in ("alert", "context", "botwatch"):
            ours = ours.get(key) if isinstance(ours, Mapping) else None
        values = read(cls, ours) | read(cls, document, "eve") | read(cls, document.get("flow", {}), "flow")
        absent = {"first_ns": values["t_ns"], "last_ns": values["t_ns"]}
        absent["kind"] = CLASSES[values["class_name"]].kind or "other"
        return cls(**absent | values)


_GID = 9001
_SCHEMA = 1
_EVE_KEYS = (
    *("timestamp", "event_type", "flow_id", "in_iface", "src_ip", "src_port", "dest_ip", "dest_port", "proto", "host"),
    *("community_id", "ether", "alert", "flow"),
)
"""Top-level keys of the record, in their order."""


def schema() -> dict[str, Any]:
    """Return the JSON Schema of an alert's document: the content of `alert.schema.json`."""
    ours, eve, flow = (grammar(Alert, part) for part in ("", "eve", "flow"))
    ours["required"].insert(0, "schema")
    context = {"type": "object", "required": ["botwatch"], "properties": {"botwatch": ours}}
    ours["properties"] = {"schema": {"const": _SCHEMA}, **ours["properties"]}
    ours["additionalProperties"] = False
    alert = {
        "action": {"const": "allowed"},
        "gid": {"const": _GID},
        "signature_id": {"type": "integer", "minimum": 9001000, "maximum": 9001999},
        "rev": {"type": "integer", "minimum": 1},
        "signature": {"type": "string", "maxLength": 200},
        "category": {"type": "string"},
        "severity": {"enum": [1, 2, 3]},
        "context": context,
    }
    properties = eve["properties"] | {
        "event_type": {"const": "alert"},
        "host": _HOST,
        "alert": {"type": "object", "required": list(alert), "properties": alert},
        "flow": flow,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:botwatch:alert:1",
        "title": "botwatch alert = Suricata EVE alert + alert.context.botwatch",
        "type": "object",
        "required": [*eve["required"], "event_type", "host", "alert"],
        "properties": {key: properties[key] for key in _EVE_KEYS if key in properties},
    }


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1))
