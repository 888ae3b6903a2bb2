"""The alert: a Suricata EVE `alert` record with our fields in ``alert.context.botwatch``, writer and reader.

`alert.schema.json` beside this file is its grammar and the collector's judge. Here is what the grammar cannot say:
which signature, ATT&CK technique and name belong to a class. Standard library only; no clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edge_agent.contract import networks
from edge_agent.contract.messages import (
    MessageError,
    check_uuid7,
    community_id,
    flow_id,
    format_time,
    has_ports,
    parse_time,
)

EpisodeState = Literal["new", "update", "end"]
Clock = Literal["synced", "unsynced"]

# --- classes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttackClass:
    """What is said about a class of the classifier: Suricata's numbers and words, and MITRE ATT&CK (Enterprise)."""

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
"""Instead of its class's for an alert that was sent by hand, so that a rule can tell it by its number, too."""


# --- the alert ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AlertDevice:
    """Whom an alert is about; "" for what is not known. A victim seen behind a router has an address and no MAC."""

    mac: str = ""
    ip: str = ""
    name: str = ""


MAX_VERSION = 40
"""Characters of a bundle's version, in the bundle and in every alert."""


@dataclass(frozen=True)
class ModelInfo:
    """The bundle that decided; ``generated`` when it was trained on generated captures, so that nobody is fooled."""

    version: str
    sha256: str = ""
    generated: bool = False


@dataclass(frozen=True)
class Evidence:
    """The pcap of an episode on its gateway: the sha256 of its first ``bytes`` bytes. It may have grown since."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Alert:
    """One message of one episode: (``id``, ``seq``) names it everywhere, ``id`` the episode.

    Times are packet times in Unix ns; ``count`` rows were flagged and ``packets`` and ``bytes`` sent by the device over
    the whole episode so far.
    """

    id: str
    seq: int  # 1, 2, ... within the episode
    state: EpisodeState
    t_ns: int
    first_ns: int
    last_ns: int
    duration_s: float
    count: int
    packets: int
    bytes: int
    gateway: str
    site: str
    device: AlertDevice
    role: Literal["source", "victim"]
    class_name: str  # a key of CLASSES
    confidence: float
    score: float
    threshold: float
    window_s: float
    top_features: tuple[tuple[str, float], ...]
    explanation: str
    model: ModelInfo
    agent: str
    clock: Clock
    src_ip: str
    src_port: int
    dest_ip: str
    dest_port: int
    proto: str
    interface: str = ""
    evidence: Evidence | None = None
    test: bool = False  # sent to try the way; not to be counted

    @property
    def signature(self) -> str:
        """The line people read: "botwatch BASHLITE tcp flood from 192.168.1.57"."""
        if self.test:
            return f"botwatch TEST: nothing happened, sent by hand from {self.gateway}"
        who = self.device.ip or self.device.mac or "an unknown device"
        return f"botwatch {CLASSES[self.class_name].title} {'against' if self.role == 'victim' else 'from'} {who}"

    def document(self) -> dict[str, Any]:
        """The EVE record, as `alert.schema.json` wants it; numbers have six significant digits."""
        info = _TEST if self.test else CLASSES[self.class_name]
        ported = has_ports(self.proto)
        flow = community_id(
            "" if self.src_ip == _NOBODY else self.src_ip, self.src_port, self.dest_ip, self.dest_port, self.proto
        )
        device = {"mac": self.device.mac, "ip": self.device.ip, "name": self.device.name}
        document = {
            "timestamp": format_time(self.t_ns),
            "event_type": "alert",
            "flow_id": flow_id(flow) if flow else None,
            "in_iface": self.interface or None,
            "src_ip": self.src_ip or _NOBODY,
            "src_port": self.src_port if ported else None,
            "dest_ip": self.dest_ip or None,
            "dest_port": self.dest_port if ported else None,
            "proto": self.proto,
            "host": self.gateway,
            "community_id": flow,
            "ether": {"src_mac": self.device.mac} if self.device.mac else None,
            "alert": {
                "action": "allowed",
                "gid": 9001,
                "signature_id": info.signature_id,
                "rev": 1,
                "signature": self.signature,
                "category": self._category(info),
                "severity": info.severity,
                "metadata": self._metadata(info),
                "context": {
                    "botwatch": _known(
                        {
                            "schema": 1,
                            "id": self.id,
                            "seq": self.seq,
                            "state": self.state,
                            "first_seen": format_time(self.first_ns),
                            "last_seen": format_time(self.last_ns),
                            "duration_s": _number(self.duration_s),
                            "count": self.count,
                            "gateway": self.gateway,
                            "site": self.site or None,
                            "device": {key: text for key, text in device.items() if text},
                            "role": self.role,
                            "class": self.class_name,
                            "confidence": _number(self.confidence),
                            "score": _number(self.score),
                            "threshold": _number(self.threshold),
                            "window_s": _number(self.window_s),
                            "top_features": [[name, _number(value)] for name, value in self.top_features] or None,
                            "explanation": self.explanation or None,
                            "model": _known(
                                {
                                    "version": self.model.version,
                                    "sha256": self.model.sha256 or None,
                                    "generated": self.model.generated or None,
                                }
                            ),
                            "agent": self.agent,
                            "clock": self.clock,
                            "evidence": vars(self.evidence) if self.evidence else None,
                            "test": self.test or None,
                        }
                    )
                },
            },
            "flow": {
                "start": format_time(self.first_ns),
                "end": format_time(self.last_ns),
                "pkts_toserver": self.packets,
                "bytes_toserver": self.bytes,
            },
        }
        return _known(document)

    def _category(self, info: AttackClass) -> str:
        """One of Suricata's own classification texts."""
        if self.test:
            return "Misc activity"
        if self.role == "victim":
            return "Detection of a Network Scan" if info.kind == "scan" else "Attempted Denial of Service"
        return "A Network Trojan was detected" if info.family else "Potentially Bad Traffic"

    def _metadata(self, info: AttackClass) -> dict[str, list[str]]:
        """Lists of words, as Emerging Threats' rules have them."""
        techniques = _SCAN_INSIDE if info.kind == "scan" and networks.is_private(self.dest_ip) else info.techniques
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
        """An alert from a document that `alert.schema.json` accepts; a MessageError for what no schema can check."""
        ours = document["alert"]["context"]["botwatch"]
        t_ns = parse_time(document["timestamp"])
        flow = document.get("flow", {})
        return cls(
            id=check_uuid7(ours["id"]),
            seq=int(ours["seq"]),
            state=ours["state"],
            t_ns=t_ns,
            first_ns=parse_time(ours["first_seen"]) if "first_seen" in ours else t_ns,
            last_ns=parse_time(ours["last_seen"]) if "last_seen" in ours else t_ns,
            duration_s=float(ours.get("duration_s", 0.0)),
            count=int(ours.get("count", 1)),
            packets=_counted(flow, "pkts_toserver"),
            bytes=_counted(flow, "bytes_toserver"),
            gateway=ours["gateway"],
            site=ours.get("site", ""),
            device=AlertDevice(**ours.get("device", {})),
            role=ours.get("role", "source"),
            class_name=ours["class"],
            confidence=float(ours["confidence"]),
            score=float(ours["score"]),
            threshold=float(ours["threshold"]),
            window_s=float(ours.get("window_s", 0.0)),
            top_features=tuple((str(name), float(value)) for name, value in ours.get("top_features", ())),
            explanation=ours.get("explanation", ""),
            model=ModelInfo(**ours["model"]),
            agent=ours["agent"],
            clock=ours["clock"],
            src_ip=document["src_ip"] if document["src_ip"] != _NOBODY else "",
            src_port=int(document.get("src_port", 0)),
            dest_ip=document.get("dest_ip", ""),
            dest_port=int(document.get("dest_port", 0)),
            proto=document["proto"],
            interface=document.get("in_iface", ""),
            evidence=Evidence(ours["evidence"]["sha256"], int(ours["evidence"]["bytes"]))
            if "evidence" in ours
            else None,
            test=ours.get("test", False),
        )


_NOBODY = "0.0.0.0"  # noqa: S104 - EVE wants a source address; this one says that none was seen


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is not known: absent says so better than null."""
    return {key: value for key, value in fields.items() if value is not None}


def _number(value: float) -> float:
    """Six significant digits: what a reader can use, in a third of the bytes."""
    return float(f"{value:.6g}")


def _counted(flow: object, key: str) -> int:
    """A counter of EVE's flow object, which the schema leaves open; absent is 0."""
    value = flow.get(key, 0) if isinstance(flow, Mapping) else None
    if not isinstance(value, int) or value < 0:
        raise MessageError(f"flow.{key} is not a count")
    return value
