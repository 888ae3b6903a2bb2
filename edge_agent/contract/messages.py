"""The rules that all messages over MQTT share (topics, JSON in bounds, times, ids, flows), and the small messages.

Small messages are the status, the health and the parts of something larger: writer and reader stand side by side.
Alerts are in `contract.alert`, commands and their replies in `contract.commands`. Standard library only; no clock.
"""

import base64
import hashlib
import ipaddress
import json
import math
import random
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

BASE = "botwatch/v1"
MAX_PAYLOAD = 16_384  # bytes of one message but a part; the largest alert the schema's bounds allow is about 5 KB
MAX_CHUNK = 65_536  # bytes of one part of something larger
CHUNK_BYTES = 48_000  # of content in it, which base64 makes a third larger
MAX_EVIDENCE = 262_144  # bytes of the pcap of one episode
MAX_STORED = 131_072  # bytes of a document that stays on the gateway: 200 devices with the longest names have 110 KB
RETAINED = {"status": MAX_PAYLOAD, "health": MAX_PAYLOAD, "devices": MAX_STORED}
"""Leaves of retained topics of a gateway, and the most bytes that are read of each: older agents listed 200 devices."""

MAX_DEPTH = 16  # nesting of a payload; ours has 6

_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_BASE = re.compile(r"[A-Za-z0-9_.-]{1,32}(?:/[A-Za-z0-9_.-]{1,32}){0,3}")
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6})\+0000")
_LEAF = re.compile(r"[a-z]{1,16}(?:/[a-z0-9_-]{1,40})?")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_NS = 253_402_300_799_999_999_000  # 9999-12-31T23:59:59.999999


class MessageError(ValueError):
    """A topic or payload that is not valid; the message says what is wrong with it."""


# --- topics -------------------------------------------------------------------------------------------------


def check_id(text: str, what: str = "gateway") -> str:
    """Return ``text`` if it may name a gateway or a site: 1 to 63 of a-z, 0-9 and inner hyphens, as in a host name.

    >>> check_id("gw-001")
    'gw-001'
    """
    if not _ID.fullmatch(text):
        raise MessageError(f"{what} {text[:80]!r}: 1 to 63 of a-z, 0-9 and '-' (not first or last)")
    return text


def check_base(text: str) -> str:
    """Return ``text`` if it may be the prefix of the topic tree: 1 to 4 levels of 1 to 32 letters, digits, '_.-'."""
    if not _BASE.fullmatch(text):
        raise MessageError(f"topic base {text[:80]!r}: 1 to 4 levels of 1 to 32 letters, digits, '_', '.' or '-'")
    return text


def topic(gateway: str, leaf: str, base: str = BASE) -> str:
    """Return the topic of ``leaf`` of a gateway.

    >>> topic("gw-001", "alert")
    'botwatch/v1/gw/gw-001/alert'
    """
    return f"{base}/gw/{check_id(gateway)}/{leaf}"


def topic_filter(leaf: str, base: str = BASE) -> str:
    """Return the topic filter that subscribes to ``leaf`` of every gateway."""
    return f"{base}/gw/+/{leaf}"


def parse_topic(text: str, base: str = BASE) -> tuple[str, str]:
    """Return the gateway and the leaf of a topic, or raise MessageError.

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
    """Return ``message`` as compact UTF-8 JSON of at most ``most`` bytes, or raise MessageError."""
    try:
        payload = json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise MessageError(f"cannot be written as JSON: {error}") from error
    if len(payload) > most:
        raise MessageError(f"{len(payload)} bytes, the bound is {most}")
    return payload


def decode(payload: bytes, most: int = MAX_PAYLOAD) -> dict[str, Any]:
    """Return the JSON object in ``payload``, safe to store: finite 64-bit numbers, valid text, bounded size and depth.

    Values that a database or a terminal could fail on later (NaN, 10**400, a lone surrogate, NUL) are refused here with
    a MessageError, so that one hostile message can never stop those behind it.
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
    """Return ``text`` as `decode` accepts it: without NUL and lone surrogates, at most ``most`` characters.

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
    """Return Unix nanoseconds as EVE spells times; a time before 1970 or after 9999 (a broken capture) is clipped.

    >>> format_time(1_795_450_930_123_456_789)
    '2026-11-23T16:22:10.123456+0000'
    """
    moment = _EPOCH + timedelta(microseconds=min(max(t_ns, 0), _LAST_NS) // 1000)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f+0000")


def parse_time(text: str) -> int:
    """Return the Unix nanoseconds of a time in EVE's spelling, or raise MessageError.

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
    """Return a UUID of version 7 (RFC 9562): 48 bits of Unix milliseconds, then random bits from ``rng``.

    Such ids sort by time.

    >>> uuid7(1_795_450_930_123_456_789, random.Random(7))[:15]
    '01a20937-03cb-7'
    """
    ms = min(max(t_ns, 0), _LAST_NS) // 1_000_000 & (1 << 48) - 1
    bits = ms << 80 | 7 << 76 | rng.getrandbits(12) << 64 | 2 << 62 | rng.getrandbits(62)
    return str(uuid.UUID(int=bits))


def is_uuid7(text: object) -> bool:
    """Return True if ``text`` is a UUID of version 7 in lower case, as episodes are named."""
    return isinstance(text, str) and bool(_UUID7.fullmatch(text))


def check_uuid7(text: object) -> str:
    """Return ``text`` if it `is_uuid7`; else a MessageError.

    >>> check_uuid7("01936d2e-7b1c-7c3e-9f10-0c5a7c1e9a44")
    '01936d2e-7b1c-7c3e-9f10-0c5a7c1e9a44'
    """
    if not is_uuid7(text):
        raise MessageError(f"{str(text)[:50]!r} is not a UUID of version 7")
    return str(text)


_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}


def has_ports(proto: str) -> bool:
    """True if packets of this protocol, in EVE's spelling, have ports."""
    return proto in _PROTOCOLS


def community_id(src_ip: str, src_port: int, dest_ip: str, dest_port: int, proto: str) -> str | None:
    """Return the Community ID v1 (seed 0) of a flow, the same in both directions; None where there are no ports.

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
    """Return EVE's number of a flow: 51 bits of its community id, which JavaScript readers can hold exactly."""
    return int.from_bytes(base64.b64decode(community[2:])[:8], "big") >> 13


# --- parts of something larger -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """One part of something larger, on ``.../chunk/<id>``; a reply sent before it has their number and sha256."""

    id: str
    part: int  # 0 to count - 1
    count: int
    data: bytes

    def document(self) -> dict[str, Any]:
        """Return the JSON object, which is to be encoded with MAX_CHUNK."""
        data = base64.b64encode(self.data).decode()
        return {"id": self.id, "part": self.part, "count": self.count, "data": data}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Chunk":
        """Return the part of a decoded payload, or raise MessageError."""
        id, part, count, data = (document.get(key) for key in ("id", "part", "count", "data"))
        try:
            id = check_uuid7(id)
        except MessageError as error:
            raise MessageError(f"chunk: id: {error}") from error
        if type(part) is not int or type(count) is not int or not 0 <= part < count <= 1_000_000:  # no bool
            raise MessageError(f"chunk: part {str(part)[:20]} of {str(count)[:20]}")
        try:
            content = base64.b64decode(str(data), validate=True)
        except ValueError as error:
            raise MessageError("chunk: data is not base64") from error
        return cls(id, part, count, content)


# --- the status ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """The retained status of a gateway, as its agent published it last; ``offline`` is the last will of a lost one."""

    state: Literal["online", "offline", "stopped"]
    boot: str  # a UUID for each start of the agent
    agent: str  # its version
    t_ns: int  # Unix ns; for ``offline`` when the connection that was lost had begun

    def document(self) -> dict[str, Any]:
        """Return the JSON object on ``.../status``."""
        return {"state": self.state, "boot": self.boot, "agent": self.agent, "ts": format_time(self.t_ns)}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Status":
        """Return the status of a decoded payload, or raise MessageError; unknown keys of newer agents are ignored."""
        state, boot, agent, ts = (document.get(key) for key in ("state", "boot", "agent", "ts"))
        if state not in ("online", "offline", "stopped"):
            raise MessageError(f"status: state {str(state)[:40]!r} is none of online, offline, stopped")
        for key, text, most in (("boot", boot, 36), ("agent", agent, 20), ("ts", ts, 40)):
            if not isinstance(text, str) or len(text) > most:
                raise MessageError(f"status: {key} is not a text of at most {most} characters")
        return cls(state=state, boot=str(boot), agent=str(agent), t_ns=parse_time(str(ts)))


# --- the health, and the document on devices ----------------------------------------------------------------


@dataclass(frozen=True)
class InterfaceHealth:
    """One interface of an agent in its health."""

    name: str
    captured: bool
    since_ns: int  # Unix ns: since when it is captured, or is not
    reason: str  # why no frames can come; "" if they can

    def document(self) -> dict[str, Any]:
        """Return the JSON object."""
        reason = {"reason": self.reason[:200]} if self.reason else {}
        return {"name": self.name, "captured": self.captured, "since": format_time(self.since_ns), **reason}


@dataclass(frozen=True)
class Health:
    """The health of an agent, which it publishes each minute, retained on ``.../health``."""

    t_ns: int  # Unix ns
    pps: float  # frames per second since the message before
    drop_pct: float  # percentage of the frames that were dropped before they could be read
    cpu: float  # processor cores in use
    rss_mb: float
    episodes_open: int
    interfaces: tuple[InterfaceHealth, ...]
    outbox_depth: int
    model: str
    counters: Mapping[str, int]  # since the start
    scoring: str = "all"  # "all" rows are scored, or a "shared" budget of them, or "sparse": fewer than one in ten
    allowed: tuple[Mapping[str, Any], ...] = ()  # the newest of the active suppressions
    allowed_entries: int = 0  # how many suppressions are active
    config_refused: str = ""  # why the configuration that was read last is not in use
    site: str = ""  # the free text of the configuration, as in alerts

    def document(self) -> dict[str, Any]:
        """Return the JSON object; counters that are still 0 are left out."""
        return {
            "ts": format_time(self.t_ns),
            "pps": round(self.pps, 1),
            "drop_pct": round(self.drop_pct, 3),
            "cpu": round(self.cpu, 3),
            "rss_mb": round(self.rss_mb, 1),
            "episodes_open": self.episodes_open,
            "interfaces_down": [interface.name for interface in self.interfaces if not interface.captured],
            "interfaces": [interface.document() for interface in self.interfaces],
            "outbox_depth": self.outbox_depth,
            "model": self.model,
            **({"site": self.site} if self.site else {}),
            "scoring": self.scoring,
            "allowed": [dict(entry) for entry in self.allowed],
            "allowed_entries": self.allowed_entries,
            **({"config_refused": self.config_refused[:500]} if self.config_refused else {}),
            "counters": {key: value for key, value in self.counters.items() if value},
        }


def check_health(document: Mapping[str, Any]) -> int:
    """Return the time of a decoded health in Unix ns, or raise MessageError for one that no agent has written.

    Unknown keys of newer agents are ignored.
    """
    t_ns = _time_of(document, "health")
    for key in ("pps", "drop_pct", "cpu", "rss_mb", "episodes_open", "outbox_depth"):
        if not _is_amount(document.get(key)):
            raise MessageError(f"health: {key} is not a number from 0")
    for key, most in (("model", 40), ("site", 63)):
        _text_of(document, "health", key, most, optional=key == "site")
    counters = document.get("counters")
    if not isinstance(counters, dict) or not all(_is_amount(value) for value in counters.values()):
        raise MessageError("health: counters is not an object of numbers from 0")
    return t_ns


def check_devices(document: Mapping[str, Any]) -> int:
    """Return the time of a decoded document on devices in Unix ns, or raise MessageError as `check_health` does."""
    t_ns = _time_of(document, "devices")
    devices = document.get("devices")
    if not isinstance(devices, list):
        raise MessageError("devices: devices is not a list")
    for device in devices:
        if not isinstance(device, dict):
            raise MessageError("devices: a device is not an object")
        if not _MAC.fullmatch(str(device.get("mac"))):
            raise MessageError(f"devices: mac {str(device.get('mac'))[:40]!r} is not like 02:00:5e:00:00:ff")
        _text_of(device, "devices", "state", 16)
        _text_of(device, "devices", "name", 64, optional=True)
    counts = document.get("count", {})
    if not isinstance(counts, dict) or not all(_is_amount(value) for value in counts.values()):
        raise MessageError("devices: count is not an object of numbers from 0")
    return t_ns


def _time_of(document: Mapping[str, Any], what: str) -> int:
    try:
        return parse_time(str(document.get("ts")))
    except MessageError as error:
        raise MessageError(f"{what}: ts: {error}") from error


def _text_of(document: Mapping[str, Any], what: str, key: str, most: int, *, optional: bool = False) -> None:
    text = document.get(key, "" if optional else None)
    if not isinstance(text, str) or len(text) > most:
        raise MessageError(f"{what}: {key} is not a text of at most {most} characters")


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**63
