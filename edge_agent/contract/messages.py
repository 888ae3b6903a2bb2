"""What travels over MQTT: the topics, the alert, the status, commands and replies, writer and reader side by side.

An alert is a Suricata EVE `alert` record with our fields in ``alert.context.botwatch``; `alert.schema.json` beside
this file is its grammar and the collector's judge. Here is what the grammar cannot say: which signature, ATT&CK
technique and name belong to a class, how ids and times are spelt, and how large a message may be. Standard library
only; no clock.
"""

import base64
import hashlib
import ipaddress
import json
import math
import random
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from edge_agent.contract import networks

BASE = "botwatch/v1"
MAX_PAYLOAD = 16_384  # bytes of one alert or status; the largest alert the schema's bounds allow is about 5 KB
MAX_CHUNK = 65_536  # bytes of one part of something larger
CHUNK_BYTES = 48_000  # of content in it, which base64 makes a third larger
MAX_EVIDENCE = 262_144  # bytes of the pcap of one episode
MAX_DOCUMENT = 131_072  # bytes of a retained document; that on 200 devices with the longest names has 110 KB
MAX_DEPTH = 16  # nesting of a payload; ours has 6

EpisodeState = Literal["new", "update", "end"]
Clock = Literal["synced", "unsynced"]

_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_BASE = re.compile(r"[A-Za-z0-9_.-]{1,32}(?:/[A-Za-z0-9_.-]{1,32}){0,3}")
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6})\+0000")
_LEAF = re.compile(r"[a-z]{1,16}(?:/[a-z0-9_-]{1,40})?")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_NS = 253_402_300_799_999_999_000  # 9999-12-31T23:59:59.999999


class MessageError(ValueError):
    """A topic or payload that is not one of ours; the message says what is wrong with it."""


# --- topics -------------------------------------------------------------------------------------------------


def check_id(text: str, what: str = "gateway") -> str:
    """``text`` if it may name a gateway or a site: 1 to 63 of a-z, 0-9 and inner hyphens, as in a host name.

    >>> check_id("gw-001")
    'gw-001'
    """
    if not _ID.fullmatch(text):
        raise MessageError(f"{what} {text[:80]!r}: 1 to 63 of a-z, 0-9 and '-' (not first or last)")
    return text


def check_base(text: str) -> str:
    """``text`` if it may be the prefix of the topic tree: 1 to 4 levels of 1 to 32 letters, digits, '_', '.', '-'."""
    if not _BASE.fullmatch(text):
        raise MessageError(f"topic base {text[:80]!r}: 1 to 4 levels of 1 to 32 letters, digits, '_', '.' or '-'")
    return text


def topic(gateway: str, leaf: str, base: str = BASE) -> str:
    """Where gateway ``gateway`` speaks about ``leaf``.

    >>> topic("gw-001", "alert")
    'botwatch/v1/gw/gw-001/alert'
    """
    return f"{base}/gw/{check_id(gateway)}/{leaf}"


def topic_filter(leaf: str, base: str = BASE) -> str:
    """The subscription to ``leaf`` of every gateway."""
    return f"{base}/gw/+/{leaf}"


def parse_topic(text: str, base: str = BASE) -> tuple[str, str]:
    """The gateway and the leaf of a topic, or a MessageError.

    >>> parse_topic("botwatch/v1/gw/gw-001/alert")
    ('gw-001', 'alert')
    """
    prefix = base + "/gw/"
    gateway, slash, leaf = text.removeprefix(prefix).partition("/")
    if not text.startswith(prefix) or not slash or not _LEAF.fullmatch(leaf):
        raise MessageError(f"topic {text[:80]!r} is not {prefix}<gateway>/<leaf>")
    return check_id(gateway), leaf


# --- JSON in bounds -----------------------------------------------------------------------------------------


def encode(message: Mapping[str, Any], most: int = MAX_PAYLOAD) -> bytes:
    """``message`` as compact UTF-8 JSON of at most ``most`` bytes, or a MessageError."""
    try:
        payload = json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise MessageError(f"cannot be written as JSON: {error}") from error
    if len(payload) > most:
        raise MessageError(f"{len(payload)} bytes, the bound is {most}")
    return payload


def decode(payload: bytes, most: int = MAX_PAYLOAD) -> dict[str, Any]:
    """The JSON object in ``payload``, safe to store: finite numbers of 64 bits, real text, bounded size and depth.

    What a database or a terminal could choke on later (NaN, 10**400, a lone surrogate, NUL) is refused here, so that
    one hostile message can never stop the ones behind it.
    """
    if len(payload) > most:
        raise MessageError(f"too large: {len(payload)} bytes, the bound is {most}")
    try:
        message = json.loads(payload.decode("utf-8"))
    except RecursionError as error:
        raise MessageError("not JSON: nested too deeply") from error
    except ValueError as error:
        raise MessageError(f"not JSON: {error}"[:200]) from error
    if not isinstance(message, dict):
        raise MessageError(f"not a JSON object but {type(message).__name__}")
    _check(message, MAX_DEPTH)
    return message


def clean(text: str, most: int) -> str:
    """``text`` as `decode` takes it: without NUL and lone surrogates, at most ``most`` characters.

    >>> clean("cam\\0entrance", 9)
    'cam?entra'
    """
    return _UNSTORABLE.sub("?", text[:most])


def _check(value: object, depth: int) -> None:
    if depth == 0:
        raise MessageError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, str):
        if _UNSTORABLE.search(value):
            raise MessageError("text with NUL or a lone surrogate")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise MessageError("a number that is not finite")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise MessageError("an integer beyond 64 bits")
    elif isinstance(value, list):
        for item in value:
            _check(item, depth - 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(key, depth - 1)
            _check(item, depth - 1)


# --- times, ids, flows --------------------------------------------------------------------------------------


def format_time(t_ns: int) -> str:
    """Unix nanoseconds as EVE spells them; what lies before 1970 or after 9999 (a broken capture) becomes the bound.

    >>> format_time(1_795_450_930_123_456_789)
    '2026-11-23T16:22:10.123456+0000'
    """
    moment = _EPOCH + timedelta(microseconds=min(max(t_ns, 0), _LAST_NS) // 1000)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f+0000")


def parse_time(text: str) -> int:
    """EVE's spelling as Unix nanoseconds, or a MessageError.

    >>> parse_time('2026-11-23T16:22:10.123456+0000')
    1795450930123456000
    """
    match = _TIME.fullmatch(text)
    try:
        moment = datetime.fromisoformat(match[1]).replace(tzinfo=UTC) if match else None
    except ValueError:
        moment = None
    if moment is None or moment < _EPOCH:
        raise MessageError(f"time {text[:40]!r} is not like 2026-11-23T16:22:10.123456+0000")
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def uuid7(t_ns: int, rng: random.Random) -> str:
    """A UUID of version 7 (RFC 9562): 48 bits of Unix milliseconds of ``t_ns``, the rest from ``rng``; sorts by time.

    >>> uuid7(1_795_450_930_123_456_789, random.Random(7))[:15]
    '01a20937-03cb-7'
    """
    ms = min(max(t_ns, 0), _LAST_NS) // 1_000_000 & (1 << 48) - 1
    bits = ms << 80 | 7 << 76 | rng.getrandbits(12) << 64 | 2 << 62 | rng.getrandbits(62)
    return str(uuid.UUID(int=bits))


_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}


def community_id(src_ip: str, src_port: int, dest_ip: str, dest_port: int, proto: str) -> str | None:
    """The Community ID v1 (seed 0) of a flow with ports, the same in both directions; None where there are no ports.

    >>> community_id("128.232.110.120", 34855, "66.35.250.204", 80, "TCP")
    '1:LQU9qZlK+B5F3KDmev6m5PMibrg='
    """
    number = _PROTOCOLS.get(proto)
    try:
        a, b = ipaddress.ip_address(src_ip), ipaddress.ip_address(dest_ip)
    except ValueError:
        return None
    if number is None or a.version != b.version:
        return None
    low, high = sorted([(a.packed, src_port), (b.packed, dest_port)])
    data = b"\0\0" + low[0] + high[0] + bytes([number, 0]) + low[1].to_bytes(2, "big") + high[1].to_bytes(2, "big")
    return "1:" + base64.b64encode(hashlib.sha1(data, usedforsecurity=False).digest()).decode()


def flow_id(community: str) -> int:
    """EVE's number of a flow: 51 bits of its community id, so that JavaScript readers keep it exact."""
    return int.from_bytes(base64.b64decode(community[2:])[:8], "big") >> 13


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
        ported = self.proto in _PROTOCOLS
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
        if not _UUID7.fullmatch(ours["id"]):
            raise MessageError(f"id {ours['id'][:50]!r} is not a UUID of version 7")
        return cls(
            id=ours["id"],
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


# --- parts of something larger -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """One part on ``.../chunk/<id>``; a reply that was sent before says how many there are and their sha256."""

    id: str
    part: int  # 0 to count - 1
    count: int
    data: bytes

    def document(self) -> dict[str, Any]:
        """The JSON object; to be encoded with MAX_CHUNK."""
        data = base64.b64encode(self.data).decode()
        return {"id": self.id, "part": self.part, "count": self.count, "data": data}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Chunk":
        """A part from a decoded payload, or a MessageError."""
        id, part, count, data = (document.get(key) for key in ("id", "part", "count", "data"))
        if not isinstance(id, str) or not _UUID7.fullmatch(id):
            raise MessageError(f"chunk: id {str(id)[:50]!r} is not a UUID of version 7")
        if not isinstance(part, int) or not isinstance(count, int) or not 0 <= part < count <= 1_000_000:
            raise MessageError(f"chunk: part {str(part)[:20]} of {str(count)[:20]}")
        try:
            content = base64.b64decode(str(data), validate=True)
        except ValueError as error:
            raise MessageError("chunk: data is not base64") from error
        return cls(id, part, count, content)


# --- the status ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """Retained word on a gateway: what it last said of itself, or ``offline``, the last will that the broker says."""

    state: Literal["online", "offline", "stopped"]
    boot: str  # a UUID for each start of the agent
    agent: str  # its version
    t_ns: int  # Unix ns; for ``offline`` the time of the connection that was lost

    def document(self) -> dict[str, Any]:
        """The JSON object on ``.../status``."""
        return {"state": self.state, "boot": self.boot, "agent": self.agent, "ts": format_time(self.t_ns)}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Status":
        """A status from a decoded payload, or a MessageError; unknown keys of newer agents are ignored."""
        state, boot, agent, ts = (document.get(key) for key in ("state", "boot", "agent", "ts"))
        if state not in ("online", "offline", "stopped"):
            raise MessageError(f"status: state {str(state)[:40]!r} is none of online, offline, stopped")
        for key, text, most in (("boot", boot, 36), ("agent", agent, 20), ("ts", ts, 40)):
            if not isinstance(text, str) or len(text) > most:
                raise MessageError(f"status: {key} is not a text of at most {most} characters")
        return cls(state=state, boot=str(boot), agent=str(agent), t_ns=parse_time(str(ts)))


# --- the health ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Health:
    """What an agent says of itself each minute, retained on ``.../health``."""

    t_ns: int  # Unix ns
    pps: float  # frames a second since the last one
    drop_pct: float  # of those that came, in percent
    cpu: float  # cores used
    rss_mb: float
    episodes_open: int
    interfaces_down: tuple[str, ...]
    outbox_depth: int
    model: str
    counters: Mapping[str, int]  # since the start
    scoring: str = "all"  # rows, or a "shared" budget of them, or "sparse": fewer than one in ten
    allowed: tuple[Mapping[str, Any], ...] = ()  # what is held back now: the newest entries of the allow list
    allowed_entries: int = 0  # how many there are
    config_refused: str = ""  # why the configuration that was read last is not the one in use

    def document(self) -> dict[str, Any]:
        """The JSON object; counters that are still 0 are left out."""
        return {
            "ts": format_time(self.t_ns),
            "pps": round(self.pps, 1),
            "drop_pct": round(self.drop_pct, 3),
            "cpu": round(self.cpu, 3),
            "rss_mb": round(self.rss_mb, 1),
            "episodes_open": self.episodes_open,
            "interfaces_down": list(self.interfaces_down),
            "outbox_depth": self.outbox_depth,
            "model": self.model,
            "scoring": self.scoring,
            "allowed": [dict(entry) for entry in self.allowed],
            "allowed_entries": self.allowed_entries,
            **({"config_refused": self.config_refused[:500]} if self.config_refused else {}),
            "counters": {key: value for key, value in self.counters.items() if value},
        }


# --- commands and replies -----------------------------------------------------------------------------------

MAX_COMMAND = 4_096
"""Bytes of a command; ours have some 300."""

MAX_FOR_S = 366 * 86_400.0
"""The longest time that anything may be ordered for."""

ALL_DEVICES = "*"
"""Stands for every device where a device is named; never taken from the broker."""

_COMMAND_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)([smhd]?)")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_FAMILIES = tuple(sorted({f"{name.partition('.')[0]}.*" for name in CLASSES if "." in name}))


def parse_duration(text: str) -> float:
    """Seconds of "90", "90s", "15m", "24h" or "7d"; a MessageError for anything else.

    >>> parse_duration("1.5h")
    5400.0
    """
    match = _DURATION.fullmatch(text)
    if not match:
        raise MessageError(f"{text[:40]!r} is no time: a number and s, m, h or d (90s, 15m, 24h, 7d)")
    return float(match[1]) * _UNITS[match[2]]


def _text(most: int, what: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or not value.strip() or len(value) > most or not value.isprintable():
            raise MessageError(f"expected {what}: 1 to {most} printable characters")
        return value.strip()

    return read


def _natural(low: int, high: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise MessageError(f"expected a whole number from {low} to {high}")
        return value

    return read


def _for_s(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value <= MAX_FOR_S:
        raise MessageError(f"expected seconds, from 1 to {MAX_FOR_S:.0f}")
    return float(value)


def _alert_id(value: object) -> str:
    if not isinstance(value, str) or not _UUID7.fullmatch(value):
        raise MessageError("expected the id of an alert, a UUID of version 7")
    return value


def _host(value: object) -> str:
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError as error:
        raise MessageError("expected an IP address") from error


def _classes(value: object) -> tuple[str, ...]:
    known = (*CLASSES, *_FAMILIES)
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= len(known):
        raise MessageError("expected a list of classes")
    for name in value:
        if name not in known:
            raise MessageError(f"{str(name)[:40]!r} is none of {', '.join(known)}")
    return tuple(dict.fromkeys(value))


def _since(value: object) -> int:
    if not isinstance(value, str):
        raise MessageError("expected a time like 2026-11-23T16:22:10.123456+0000")
    return parse_time(value)


@dataclass(frozen=True)
class Verb:
    """What may be said with a command: a reader for each argument, and which of them must be there."""

    about: str
    arguments: Mapping[str, Callable[[object], Any]]
    required: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()  # exactly one of these must be there


_DEVICE = _text(64, "a device (MAC, IP address or name)")
_REASON = _text(200, "a reason")

VERBS: Mapping[str, Verb] = {
    "status": Verb("say how things are", {}),
    "allow": Verb(
        "let a device do what an alert said, for a time",
        {
            "alert": _alert_id,
            "device": _DEVICE,
            "classes": _classes,
            "host": _host,
            "port": _natural(1, 65_535),
            "for_s": _for_s,
            "reason": _REASON,
        },
        required=("reason",),
        one_of=("alert", "device"),
    ),
    "unallow": Verb("end an entry of the allow list", {"entry": _natural(1, 2**53)}, required=("entry",)),
    "mute": Verb(
        "hold back all alerts of a device, for a time",
        {"alert": _alert_id, "device": _DEVICE, "for_s": _for_s, "reason": _REASON},
        one_of=("alert", "device"),
    ),
    "unmute": Verb("end a mute", {"entry": _natural(1, 2**53), "device": _DEVICE}, one_of=("entry", "device")),
    "learn": Verb("learn a device anew", {"device": _DEVICE}, required=("device",)),
    "replay": Verb("send alerts again that the broker took since", {"since": _since}, required=("since",)),
    "evidence": Verb("send the packets around an alert", {"alert": _alert_id}, required=("alert",)),
    "test-alert": Verb("send an alert that says it is a test", {}),
}
"""Every verb of ``.../cmd/<verb>``: the grammar of its document. What may be ordered is `edge_agent.control`'s rule."""


@dataclass(frozen=True)
class Command:
    """An order to an agent: ``.../cmd/<verb>`` with QoS 1, never retained; ``id`` names it, and is in its reply."""

    verb: str  # a key of VERBS
    id: str  # 1 to 64 of A-Z, a-z, 0-9, "_", ".", ":", "-"; a second command of the same id is a repeat of the first
    arguments: Mapping[str, Any]
    by: str = ""  # who, in their own words
    t_ns: int | None = None  # when it was sent

    def document(self) -> dict[str, Any]:
        """The JSON object; `read` takes it back."""
        said: dict[str, Any] = {"id": self.id}
        for key, value in self.arguments.items():
            said[key] = format_time(value) if key == "since" else list(value) if key == "classes" else value
        if self.by:
            said["by"] = self.by
        if self.t_ns is not None:
            said["ts"] = format_time(self.t_ns)
        return said

    @classmethod
    def read(cls, verb: str, document: Mapping[str, Any]) -> "Command":
        """A command from a decoded payload; a MessageError names the key that will not do. Unknown keys are refused."""
        grammar = VERBS.get(verb)
        if grammar is None:
            raise MessageError(f"unknown command {verb[:40]!r}; known: {', '.join(VERBS)}")
        id_ = document.get("id")
        if not isinstance(id_, str) or not _COMMAND_ID.fullmatch(id_):
            raise MessageError("id: 1 to 64 of A-Z, a-z, 0-9, '_', '.', ':' and '-'")
        readers = {**grammar.arguments, "by": _text(64, "who"), "ts": _since}
        arguments = {}
        for key, value in document.items():
            if key == "id":
                continue
            if key not in readers:
                raise MessageError(f"{verb}: unknown key {key[:40]!r}; known: id, {', '.join(readers)}")
            try:
                arguments[key] = readers[key](value)
            except MessageError as error:
                raise MessageError(f"{verb}: {key}: {error}") from error
        for key in grammar.required:
            if key not in arguments:
                raise MessageError(f"{verb}: missing key {key!r}")
        if grammar.one_of and len(given := [key for key in grammar.one_of if key in arguments]) != 1:
            raise MessageError(f"{verb}: one of {', '.join(grammar.one_of)} and not {' and '.join(given) or 'none'}")
        by, t_ns = arguments.pop("by", ""), arguments.pop("ts", None)
        return cls(verb, id_, arguments, by, t_ns)


@dataclass(frozen=True)
class Reply:
    """What became of a command, on ``.../reply`` or the response topic of the request (MQTT 5), not retained."""

    id: str  # the command's; "" where it had none that can be read
    verb: str
    t_ns: int
    result: Mapping[str, Any] | None = None
    error: str = ""  # why not; "" when it was done

    def document(self) -> dict[str, Any]:
        """The JSON object: with ``result`` when ``ok``, else with ``error``."""
        said: dict[str, Any] = {"id": self.id, "verb": self.verb, "ok": not self.error, "ts": format_time(self.t_ns)}
        return said | ({"error": self.error} if self.error else {"result": dict(self.result or {})})

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Reply":
        """A reply from a decoded payload, or a MessageError; unknown keys of newer agents are ignored."""
        id_, verb, ok, ts = (document.get(key) for key in ("id", "verb", "ok", "ts"))
        result, error = document.get("result"), document.get("error", "")
        if not (isinstance(id_, str) and isinstance(verb, str) and isinstance(ok, bool) and isinstance(ts, str)):
            raise MessageError("reply: id, verb, ok and ts are expected")
        if not isinstance(error, str) or ok == bool(error) or (ok and not isinstance(result, dict)):
            raise MessageError("reply: a result when ok, else an error")
        return cls(id_, verb, parse_time(ts), result if ok else None, error)
