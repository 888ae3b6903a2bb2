"""Labelled captures of IoT devices that never existed, one of them infected: files for `trainer fit` and for the demo.

Knows what the traffic of cheap devices looks like on the wire (benign, per kind of device, by the hour of the day) and
what is publicly known of the traffic of Mirai and BASHLITE (gafgyt): ports, sizes, flags, rates, spoofing. Packets are
rows of numbers that become bytes in a pcap file. Nothing here can send a packet, payloads are zero or random bytes, and
there is neither malware nor an exploit in this file. `trainer.data.dataset` turns captures into data sets; the manifest
written here has its format.

Everything is generated and everything says so. Equal plans give equal bytes: all random numbers depend on the seed, the
device's name and the day. Another seed gives another home: other cloud hosts, addresses, periods, sizes and network
stacks.

Labels. In an attack capture every frame that the infected device's MAC sends between the attack's first and last packet
counts as the attack's. The device's benign traffic continues meanwhile, so that a few rows in a thousand of a flood
(more of a slow scan) are benign rows with the attack's label, as they are in N-BaIoT. Sources spoofed at the IP layer
keep the device's MAC, as on a real LAN.

Sources of the traffic's traits: Mirai's published source (bot/scanner.c, attack_udp.c, attack_tcp.c) and that of
BASHLITE (client.c) for header fields, ports, sizes and state machines; N-BaIoT (Meidan et al. 2018) for the rates that
real devices reach under both (its λ=1 weights are 250 to 850 packets/s, far below the rate the code aims at) and for
the floods that had spoofed sources; the captures of IoTEnsemble and IoT Sentinel for benign periods and sizes (studied,
not copied).
"""

import argparse
import heapq
import os
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.contract import pcapfile
from edge_agent.contract.captures import MANIFEST, mac_text
from edge_agent.contract.cli import OK, refuse
from edge_agent.progress import Progress

PROG = "botwatch trainer generate"

Records = npt.NDArray[np.void]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

DEVICES: tuple[str, ...] = ("camera", "plug", "thermostat", "doorbell", "gateway", "speaker", "bulb")
"""Kinds of device. The first five are the default; the last two are for tests with devices that a fit has not seen: a
bulb behaves like others, a speaker also streams music, which none of the five does."""

ATTACKS: tuple[str, ...] = (
    "mirai.scan",
    "mirai.ack",
    "mirai.syn",
    "mirai.udp",
    "mirai.udpplain",
    "gafgyt.scan",
    "gafgyt.junk",
    "gafgyt.tcp",
    "gafgyt.udp",
    "gafgyt.combo",
)
"""The ten attacks of N-BaIoT, by the keys of its data."""

CHECKINS: tuple[str, ...] = ("checkins.held", "checkins.anew", "checkins.unanswered", "checkins.refused")
"""A bot's check-ins with its command server, generated only on request: on one connection that stays open, on a new
connection each time, or with a server that is gone, so that its address is dead or its port is closed."""

CHECKIN_SECONDS = 3600.0
"""Duration of check-ins, unless the plan gives another."""

SECOND = 1_000_000
"""Time is in whole microseconds, the resolution of a classic pcap file."""

MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86_400 * SECOND


class PlanError(Exception):
    """A plan that cannot be generated; the message names the value."""


@dataclass(frozen=True)
class AttackPlan:
    """One attack and its deviations from the malware's defaults (None: as the malware does it).

    >>> AttackPlan.parse("mirai.scan:rate=10:port=2323")
    AttackPlan(label='mirai.scan', rate=10.0, port=2323, size=None, spoof=None, seconds=None)
    >>> AttackPlan.parse("gafgyt.udp:spoof=own").name
    'gafgyt.udp-spoof=own'
    """

    label: str
    rate: float | None = None
    """Packets per second, approximate for attacks that connect; for check-ins, check-ins per second."""
    port: int | None = None
    size: int | None = None
    """Payload bytes of a packet."""
    spoof: str | None = None
    """Source addresses of a raw-socket flood: own | any | subnet (any of the device's /24)."""
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> "AttackPlan":
        """Read `label[:key=value]...`, the form of --attacks."""
        label, *options = text.split(":")
        if label not in ATTACKS + CHECKINS:
            raise PlanError(f"unknown attack {label!r}; known: {', '.join(ATTACKS + CHECKINS)}")
        values: dict[str, Any] = {}
        for option in options:
            key, _, value = option.partition("=")
            try:
                values[key] = {"rate": float, "port": int, "size": int, "spoof": str, "seconds": float}[key](value)
            except KeyError:
                raise PlanError(f"{text}: unknown option {key!r}; known: rate, port, size, spoof, seconds") from None
            except ValueError:
                raise PlanError(f"{text}: {value!r} is not a number") from None
        attack = cls(label, **values)
        attack.check(text)
        return attack

    def check(self, text: str) -> None:
        """Raise PlanError for a value that the wire or the malware does not allow."""
        rates = (1 / 300, 1.0) if self.label in CHECKINS else (0.05, 100_000.0)
        bounds = {"rate": rates, "port": (1, 65535), "size": (0, 1400), "seconds": (0.05, 3600.0)}
        for key, (low, high) in bounds.items():
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                raise PlanError(f"{text}: {key} is {value}, must be {low} to {high}")
        if self.spoof is not None and self.spoof not in ("own", "any", "subnet"):
            raise PlanError(f"{text}: spoof is {self.spoof!r}; known: own, any, subnet")
        if self.spoof not in (None, "own") and self.label not in RAW_FLOODS:
            raise PlanError(
                f"{text}: {self.label} cannot spoof because it needs the answers; only {', '.join(RAW_FLOODS)} can"
            )

    @property
    def name(self) -> str:
        """The label and the deviations from the defaults, usable as a file name."""
        options = [(key, getattr(self, key)) for key in ("rate", "port", "size", "spoof", "seconds")]
        return "-".join(
            [self.label, *(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in options if v is not None)]
        )

    def duration(self, seconds: float) -> float:
        """Return its duration in seconds, in a plan whose attacks last ``seconds``."""
        usual = CHECKIN_SECONDS if self.label in CHECKINS else seconds
        return usual if self.seconds is None else self.seconds

    @property
    def spoofed(self) -> bool:
        """True if source addresses are not the device's own: by default where BASHLITE spoofs (as in N-BaIoT), on
        request for Mirai."""
        return RAW_FLOODS.get(self.label, "own") != "own" if self.spoof is None else self.spoof != "own"


RAW_FLOODS = {
    "mirai.syn": "own",  # attack_tcp.c: ATK_OPT_SOURCE defaults to LOCAL_ADDR, 255.255.255.255 means any
    "mirai.ack": "own",
    "mirai.udp": "own",
    "gafgyt.tcp": "any",  # client.c: the netmask argument; each row of N-BaIoT has a new source
    "gafgyt.udp": "any",
}
"""Floods from raw sockets, which can spoof -> their source addresses by default."""


@dataclass(frozen=True)
class Plan:
    """Everything to generate. Equal plans give equal files."""

    seed: int = 1
    start: datetime = datetime(2026, 1, 5, tzinfo=UTC)
    days: int = 2
    hours: float = 2.0
    """Length of each benign capture, at an hour of the day that the seed chooses (midnight for 15 hours or more)."""
    devices: tuple[str, ...] = DEVICES[:5]
    """Kinds of device; a kind that occurs twice gives two devices."""
    attacks: tuple[str, ...] = ATTACKS
    infected: tuple[str, ...] = ()
    """Names of the devices that attack, each with every attack; empty: the first device."""
    attack_seconds: float = 30.0
    lead_minutes: float = 15.0
    """Benign minutes before the attack, longer than a detector's warm-up."""
    tail_minutes: float = 5.0
    max_attack_packets: int = 20_000
    """Bound of the packets of one attack; the rate stays as planned, the attack ends earlier."""
    snaplen: int = 128
    """Captured bytes of a frame; its length on the wire is recorded in full."""

    def check(self) -> None:
        """Raise PlanError for a plan that cannot be generated; the message names the value."""
        for kind in self.devices:
            if kind not in DEVICES:
                raise PlanError(f"unknown device {kind!r}; known: {', '.join(DEVICES)}")
        for name, low, high in (
            ("seed", 0, 2**63 - 1),
            ("days", 0, 366),
            ("hours", 0.05, 24),
            ("attack_seconds", 1, 3600),
            ("lead_minutes", 0, 1440),
            ("tail_minutes", 0, 1440),
            ("max_attack_packets", 10, 5_000_000),
            ("snaplen", 64, 65535),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise PlanError(f"{name} is {value}, must be {low} to {high}")
        if not 1970 <= self.start.year <= 2100:  # pcap has 32 bits for the seconds
            raise PlanError(f"start is {self.start:%Y-%m-%d}, must be 1970 to 2100")
        if not self.devices:
            raise PlanError("devices is empty")
        files = [AttackPlan.parse(text).name for text in self.attacks]
        for name in files:
            if files.count(name) > 1:
                raise PlanError(f"attack {name!r} occurs twice; both would be the same file")
        names = [device.name for device in _devices(self)]
        for name in self.infected:
            if name not in names:
                raise PlanError(f"infected device {name!r} is not in the plan; it has {', '.join(names)}")


# ---------------------------------------------------------------------------------------------------------------------
# From numbers to pcap
# ---------------------------------------------------------------------------------------------------------------------

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
ICMP, IGMP, TCP, UDP = 1, 2, 6, 17
MTU_PAYLOAD = 1448
"""TCP payload of a full frame with time stamps."""

_NO_OPTIONS, _MSS, _STAMP, _LINUX_SYN, _MIRAI_SYN = range(5)
_OPTION_BYTES = (0, 4, 12, 20, 20)

RECORD = np.dtype(
    [
        ("t", "<i8"),
        ("dmac", "<u8"),
        ("smac", "<u8"),
        ("proto", "u1"),
        ("src", "<u4"),
        ("dst", "<u4"),
        ("sport", "<u2"),
        ("dport", "<u2"),
        ("size", "<u2"),  # payload bytes on the wire
        ("ttl", "u1"),
        ("ident", "<u2"),
        ("df", "u1"),
        ("seq", "<u4"),
        ("ack", "<u4"),
        ("flags", "u1"),
        ("window", "<u2"),
        ("options", "u1"),
        ("mss", "<u2"),
        ("tsval", "<u4"),
        ("tsecr", "<u4"),
    ]
)
"""One IPv4 packet over TCP or UDP. All others (ARP, ICMP, IGMP) are rare and made frame by frame."""


def _put(matrix: Bytes, offset: int, values: npt.NDArray[Any], width: int) -> None:
    """Write one number per row, big-endian, in `width` bytes."""
    raw = np.ascontiguousarray(values, dtype=">u8").view(np.uint8).reshape(-1, 8)
    matrix[:, offset : offset + width] = raw[:, 8 - width :]


def _sum16(matrix: Bytes) -> npt.NDArray[np.uint64]:
    """Return the sum of the big-endian 16-bit words of each row; the number of columns is even."""
    total: npt.NDArray[np.uint64] = np.ascontiguousarray(matrix).view(">u2").sum(axis=1, dtype=np.uint64)
    return total


def _fold(total: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the Internet checksum (RFC 1071) of sums of 16-bit words."""
    for _ in range(3):
        total = (total & np.uint64(0xFFFF)) + (total >> np.uint64(16))
    return total ^ np.uint64(0xFFFF)


def _frames(rows: Records, heads: Bytes) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Return frames of packets of one protocol and one set of TCP options, and their lengths on the wire.

    A payload is its head (row of `heads`) followed by zeros up to its size. Zeros do not change a checksum, so that it
    is correct for the whole packet although only the head is generated.
    """
    n = len(rows)
    tcp = bool(rows["proto"][0] == TCP)
    option_bytes = _OPTION_BYTES[int(rows["options"][0])] if tcp else 0
    header = 20 + option_bytes if tcp else 8
    width = heads.shape[1] + heads.shape[1] % 2
    m = np.zeros((n, 34 + header + width), np.uint8)
    m[:, 34 + header : 34 + header + heads.shape[1]] = heads
    _put(m, 0, rows["dmac"], 6)
    _put(m, 6, rows["smac"], 6)
    m[:, 12] = 8
    m[:, 14] = 0x45
    size = rows["size"].astype(np.int64)
    _put(m, 16, 20 + header + size, 2)
    _put(m, 18, rows["ident"], 2)
    m[:, 20] = rows["df"] << 6
    m[:, 22] = rows["ttl"]
    m[:, 23] = rows["proto"]
    _put(m, 26, rows["src"], 4)
    _put(m, 30, rows["dst"], 4)
    _put(m, 24, _fold(_sum16(m[:, 14:34])), 2)
    _put(m, 34, rows["sport"], 2)
    _put(m, 36, rows["dport"], 2)
    if tcp:
        _put(m, 38, rows["seq"], 4)
        _put(m, 42, rows["ack"], 4)
        m[:, 46] = header << 2
        m[:, 47] = rows["flags"]
        _put(m, 48, rows["window"], 2)
        _put_options(m, int(rows["options"][0]), rows)
    else:
        _put(m, 38, 8 + size, 2)
    pseudo = _sum16(m[:, 26:34]) + rows["proto"].astype(np.uint64) + (header + size).astype(np.uint64)
    check = _fold(_sum16(m[:, 34:]) + pseudo)
    if not tcp:
        check[check == 0] = 0xFFFF  # RFC 768: zero means no checksum
    _put(m, 50 if tcp else 40, check, 2)
    return m, np.maximum(60, 34 + header + size)  # Ethernet pads to 60


def _put_options(m: Bytes, options: int, rows: Records) -> None:
    if options in (_MSS, _LINUX_SYN, _MIRAI_SYN):
        m[:, 54:56] = (2, 4)
        _put(m, 56, rows["mss"], 2)
    if options == _STAMP:
        m[:, 54:58] = (1, 1, 8, 10)
        _put(m, 58, rows["tsval"], 4)
        _put(m, 62, rows["tsecr"], 4)
    elif options in (_LINUX_SYN, _MIRAI_SYN):
        m[:, 58:62] = (4, 2, 8, 10)
        _put(m, 62, rows["tsval"], 4)
        _put(m, 66, rows["tsecr"], 4)
        m[:, 70:74] = (1, 3, 3, 6)  # window scale 6 (64), in Mirai as in many small Linux systems


def _checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    checksum: int = ~(total + (total >> 16)) & 0xFFFF
    return checksum


def _heads(heads: Sequence[bytes]) -> Bytes:
    width = max((len(head) for head in heads), default=0)
    joined = b"".join(head.ljust(width, b"\0") for head in heads)
    return np.frombuffer(joined, np.uint8).reshape(len(heads), width)


class _Tape:
    """The packets of one capture, added in any order and written in order of time."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, ...]] = []
        self._heads: list[bytes] = []
        self._raw: list[tuple[int, bytes]] = []
        self._bulk: list[tuple[Records, Bytes]] = []

    def row(self, row: tuple[int, ...], head: bytes) -> None:
        """Add one packet, its fields in RECORD's order."""
        self._rows.append(row)
        self._heads.append(head)

    def raw(self, t: int, frame: bytes) -> None:
        """Add one complete frame."""
        self._raw.append((t, frame.ljust(60, b"\0")))

    def bulk(self, rows: Records, heads: Bytes) -> None:
        """Add many packets at once; `heads` has one row of payload bytes per packet."""
        if len(rows):
            self._bulk.append((rows, heads))

    def mark(self) -> tuple[int, int]:
        """Return the present end of the tape, for `span`."""
        return len(self._rows), len(self._bulk)

    def span(self, mark: tuple[int, int], mac: int) -> tuple[int, int]:
        """Return the times of the first and the last TCP or UDP packet that `mac` sent since the mark."""
        times = [row[0] for row in self._rows[mark[0] :] if row[2] == mac]
        for rows, _ in self._bulk[mark[1] :]:
            mine = rows["t"][rows["smac"] == mac]
            times += [int(mine.min()), int(mine.max())] if len(mine) else []
        return min(times), max(times)

    def write(self, path: Path, begin: int, end: int, snaplen: int) -> int:
        """Write the packets within [begin, end) as pcap, atomically, and return their number."""
        times, wires, stored = self._encode(snaplen)
        order = np.argsort(times, kind="stable")
        order = order[(times[order] >= begin) & (times[order] < end)]
        captured = np.minimum(wires, snaplen)
        header = np.empty((len(order), 4), np.uint32)
        header[:, 0] = times[order] // SECOND
        header[:, 1] = times[order] % SECOND
        header[:, 2] = captured[order]
        header[:, 3] = wires[order]
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            file.write(pcapfile.file_header(snaplen, magic=pcapfile.MAGIC_US))
            columns = np.arange(16 + stored.shape[1])
            for at in range(0, len(order), 65536):
                chosen = order[at : at + 65536]
                block = np.concatenate([header[at : at + 65536].view(np.uint8), stored[chosen]], axis=1)
                file.write(block[columns < 16 + captured[chosen][:, None]].tobytes())
        part.replace(path)
        return len(order)

    def _encode(self, snaplen: int) -> tuple[Ints, Ints, Bytes]:
        """Return time, length on the wire and captured bytes of every packet."""
        groups = list(self._bulk)
        if self._rows:
            groups.append((np.array(self._rows, RECORD), _heads(self._heads)))
        times: list[Ints] = []
        wires: list[Ints] = []
        parts: list[Bytes] = []
        for rows, heads in groups:
            kinds = rows["proto"].astype(np.int64) * 8 + rows["options"]
            for kind in np.unique(kinds):
                mine = np.flatnonzero(kinds == kind)
                frames, wire = _frames(rows[mine], heads[mine])
                times.append(rows["t"][mine])
                wires.append(wire)
                parts.append(frames[:, :snaplen])
        if self._raw:
            times.append(np.array([t for t, _ in self._raw], np.int64))
            wires.append(np.array([len(frame) for _, frame in self._raw], np.int64))
            parts.append(_heads([frame[:snaplen] for _, frame in self._raw]))
        if not parts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 0), np.uint8)
        wire_all = np.concatenate(wires)
        stored = np.zeros((len(wire_all), min(snaplen, int(wire_all.max()))), np.uint8)
        at = 0
        for part in parts:
            stored[at : at + len(part), : part.shape[1]] = part
            at += len(part)
        return np.concatenate(times), wire_all, stored


# ---------------------------------------------------------------------------------------------------------------------
# The home and its devices
# ---------------------------------------------------------------------------------------------------------------------

BROADCAST_MAC = 0xFFFFFFFFFFFF
ANY, BROADCAST = 0, 0xFFFFFFFF
MDNS, SSDP, ALL_ROUTERS = 0xE00000FB, 0xEFFFFFFA, 0xE0000016

_RESERVED = (
    *((first, 8) for first in (0, 3, 6, 7, 10, 11, 15, 16, 17, 21, 22, 26, 28, 29, 30, 33, 55, 56, 127, 214, 215)),
    (0x6440, 10), (0xA9FE, 16), (0xAC10, 12), (0xC0A8, 16), (0xC612, 15),
)  # fmt: skip
"""Prefixes that Mirai's scanner leaves out (scanner.c, get_random_ip), as it does 224.0.0.0 and above: private and
reserved ones, and those of some owners."""


def _scannable(addresses: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """Return a mask of the addresses that Mirai's scanner would try."""
    good = addresses < np.uint32(0xE0000000)
    for prefix, bits in _RESERVED:
        base = prefix << (24 if bits == 8 else 16)
        good &= (addresses >> np.uint32(32 - bits)) != np.uint32(base >> (32 - bits))
    return good


def _scannable_addresses(rng: np.random.Generator, n: int) -> npt.NDArray[np.uint32]:
    addresses = np.zeros(0, np.uint32)
    while len(addresses) < n:
        drawn = rng.integers(0, 2**32, 2 * n + 16, dtype=np.uint32)
        addresses = np.concatenate([addresses, drawn[_scannable(drawn)]])
    return addresses[:n]


def _public_address(rng: random.Random) -> int:
    while True:
        address = rng.getrandbits(32)
        if bool(_scannable(np.array([address], np.uint32))[0]):
            return address


def _multicast_mac(address: int) -> int:
    return 0x01005E000000 | address & 0x7FFFFF


@dataclass(frozen=True, kw_only=True)
class _Home:
    """The part of a home that all its devices share: the router (also their resolver), the LAN, a phone with apps."""

    lan: int
    router_mac: int
    phone_mac: int
    phone: int
    isp_ms: float

    @classmethod
    def of(cls, seed: int) -> "_Home":
        rng = random.Random(f"{seed}/home")
        lan = 0xC0A80000 | rng.randrange(256) << 8
        isp_ms = rng.uniform(4, 18)
        return cls(
            lan=lan,
            router_mac=0x02_00_5E_00_00_00 | rng.getrandbits(16),
            phone_mac=0x02_00_5F_00_00_00 | rng.getrandbits(16),
            phone=lan | 200 + rng.randrange(50),
            isp_ms=isp_ms,
        )

    @property
    def router(self) -> int:
        return self.lan | 1


@dataclass(frozen=True, kw_only=True)
class _CloudHost:
    """One of a device's servers in the cloud: a name with a pool of addresses that rotate."""

    name: str
    pool: tuple[int, ...]
    answers: int
    """Number of addresses in one DNS answer."""
    rtt_ms: float
    ttl: int
    certificate: int
    """Size of its TLS hello and certificate chain, in bytes."""
    cname: str


@dataclass(frozen=True, kw_only=True)
class _DeviceProfile:
    """One device of a home: the seed's variant of its kind. `traits` are the numbers that its behaviour depends on."""

    kind: str
    name: str
    mac: int
    ip: int
    home: _Home
    hosts: dict[str, _CloudHost]
    traits: dict[str, float]
    linux: bool
    """True for a small Linux, False for a bare TCP/IP stack such as lwIP: other options, windows and ports."""


_ROLES = {
    "camera": ("mqtt", "api", "video", "stun", "log", "ota", "ntp"),
    "plug": ("mqtt", "api", "ota", "ntp"),
    "thermostat": ("mqtt", "api", "weather", "ota", "ntp"),
    "doorbell": ("mqtt", "api", "video", "push", "ota", "ntp"),
    "gateway": ("mqtt", "udp", "api", "log", "ota", "ntp"),
    "speaker": ("mqtt", "api", "music", "voice", "log", "ota", "ntp"),
    "bulb": ("udp", "api", "ota", "ntp"),
}


def _devices(plan: Plan) -> list[_DeviceProfile]:
    home = _Home.of(plan.seed)
    counts: dict[str, int] = {}
    made = []
    for place, kind in enumerate(plan.devices):
        counts[kind] = counts.get(kind, 0) + 1
        made.append(_device(plan.seed, home, kind, counts[kind], place))
    return made


def _device(seed: int, home: _Home, kind: str, number: int, place: int) -> _DeviceProfile:
    name = f"{kind}-{number}"
    rng = random.Random(f"{seed}/{name}")
    vendor = f"{rng.choice('bdfglmnprstvz')}{rng.choice('aeiou')}{rng.choice('bdfglmnprstvz')}{rng.choice('aeiou')}"
    region = rng.choice(("eu1", "eu-west", "us2", "ap1"))
    hosts = {}
    for role in _ROLES[kind]:
        nets = [_public_address(rng) & 0xFFFFFF00 for _ in range(rng.randint(1, 3))]
        pool = tuple(rng.choice(nets) | rng.randrange(1, 255) for _ in range(rng.randint(3, 16)))
        domain = "pool.ntp.example" if role == "ntp" else f"{vendor}.example"
        hosts[role] = _CloudHost(
            name=f"{rng.randrange(4)}.{domain}" if role == "ntp" else f"{role}-{region}.{domain}",
            pool=pool,
            answers=rng.randint(1, 4),
            rtt_ms=home.isp_ms + rng.choice((3, 12, 25, 40, 90, 160)) * rng.uniform(0.7, 1.3),
            ttl=rng.choice((64, 64, 128, 255)) - rng.randint(7, 19),
            certificate=rng.randint(2400, 5200),
            cname=f"{role}-{rng.getrandbits(24):06x}.cdn.example" if rng.random() < 0.4 else "",
        )
    linux = rng.random() < {"plug": 0.2, "bulb": 0.1, "thermostat": 0.5}.get(kind, 0.9)
    traits = {
        "keepalive_s": rng.choice((30, 45, 60, 60, 90, 120)) * rng.uniform(0.97, 1.0),
        "report_s": rng.uniform(12, 60),
        "report_bytes": rng.randint(60, 420),
        "checkin_s": rng.choice((600, 900, 900, 1800, 3600)) * rng.uniform(0.9, 1.1),
        "request_bytes": rng.randint(220, 1100),
        "response_bytes": rng.randint(180, 3600),
        "hello_bytes": rng.randint(180, 517),
        "ntp_s": rng.choice((512, 1024, 1800, 3600)) * 1.0,
        "arp_s": rng.uniform(18, 120),
        "lease_s": rng.choice((1800, 3600)) * 1.0,
        "udp_s": rng.uniform(9, 28),
        "udp_bytes": rng.randint(24, 90),
        "udp_port": rng.choice((8053, 5683, 20480, 6100, 16384)),
        "stun_s": rng.choice((120, 180, 180, 300)) * rng.uniform(0.98, 1.02),
        "stun_tries": rng.randint(3, 14),
        "mdns_s": rng.uniform(60, 400),
        "ssdp_s": rng.uniform(500, 1800),
        "lan_s": rng.uniform(15, 60),
        "lan_port": rng.choice((6668, 9999, 7000, 54321, 5001)),
        "lan_bytes": rng.randint(90, 260),
        "kbps": rng.uniform(280, 900),
        "fps": rng.choice((8, 10, 12, 15)),
        "wifi_ms": rng.uniform(0.6, 4.0),
        "glitch_h": rng.uniform(2, 7),
        "active": rng.uniform(0.7, 1.4),
        "fetch_s": rng.uniform(1200, 3600),
        "fetch_bytes": rng.randint(30_000, 130_000),
        "aaaa": float(rng.random() < 0.3),
        "pings": float(rng.random() < 0.4),
        "mqtt_port": rng.choice((8883, 8883, 8883, 1883)),
        "flood_pps": rng.uniform(350, 900),
        "burst_us": rng.uniform(60, 260),
    }
    mac = 0x02 << 40 | random.Random(f"{seed}/mac").getrandbits(24) << 16 | (DEVICES.index(kind) + 1) << 8 | number
    ip = home.lan | 20 + place
    return _DeviceProfile(kind=kind, name=name, mac=mac, ip=ip, home=home, hosts=hosts, traits=traits, linux=linux)


# ---------------------------------------------------------------------------------------------------------------------
# Messages
# ---------------------------------------------------------------------------------------------------------------------


def _dns_name(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def _dns_query(ident: int, name: str, kind: int) -> bytes:
    return struct.pack(">6H", ident, 0x0100, 1, 0, 0, 0) + _dns_name(name) + struct.pack(">HH", kind, 1)


def _dns_answer(ident: int, name: str, kind: int, cname: str, addresses: Sequence[int]) -> bytes:
    answers = [struct.pack(">HHHIH", 0xC00C, 5, 1, 300, len(_dns_name(cname))) + _dns_name(cname)] if cname else []
    owner = _dns_name(cname) if cname else b"\xc0\x0c"
    answers += [owner + struct.pack(">HHIHI", 1, 1, 60, 4, address) for address in addresses]
    head = struct.pack(">6H", ident, 0x8180, 1, len(answers), 0, 0)
    return head + _dns_name(name) + struct.pack(">HH", kind, 1) + b"".join(answers)


def _mdns(service: str, instance: str, answer: bool) -> bytes:
    if not answer:
        return struct.pack(">6H", 0, 0, 1, 0, 0, 0) + _dns_name(service) + struct.pack(">HH", 12, 1)
    target = _dns_name(f"{instance}.{service}")
    return (
        struct.pack(">6H", 0, 0x8400, 0, 1, 0, 0)
        + _dns_name(service)
        + struct.pack(">HHIH", 12, 1, 4500, len(target))
        + target
    )


def _dhcp(op: int, kind: int, xid: int, mac: int, client: int, yours: int, server: int, host: str) -> bytes:
    """Return one BOOTP/DHCP message of 300 bytes; `kind` is 1 discover, 2 offer, 3 request, 5 ack."""
    options = bytes([53, 1, kind])
    if op == 1:
        name = host.encode()
        options += bytes([55, 4, 1, 3, 6, 15, 12, len(name)]) + name
    else:
        options += struct.pack(">BBIBBIBBI", 54, 4, server, 51, 4, 7200, 1, 4, 0xFFFFFF00)
    fixed = struct.pack(">BBBBIHHIIII", op, 1, 6, 0, xid, 0, 0, client, yours, 0, 0) + mac.to_bytes(6, "big")
    return (fixed.ljust(236, b"\0") + b"\x63\x82\x53\x63" + options + b"\xff").ljust(300, b"\0")


_SEARCH = (
    b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 2\r\nST: upnp:rootdevice\r\n\r\n'
)
_FOUND = (
    b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=1800\r\nEXT:\r\nLOCATION: http://router.example:5000/root.xml\r\n"
    b"SERVER: router UPnP/1.1\r\nST: upnp:rootdevice\r\nUSN: uuid:0::upnp:rootdevice\r\n\r\n"
)


def _tls(size: int, kind: int = 23) -> bytes:
    """Return the head of a TLS record that fills `size` bytes; the rest of it is zeros."""
    return struct.pack(">BHH", kind, 0x0303, size - 5)


def _client_hello(size: int) -> bytes:
    return struct.pack(">BHHBBHH", 22, 0x0301, size - 5, 1, 0, size - 9, 0x0303)


def _arp(op: int, smac: int, sip: int, tmac: int, tip: int) -> bytes:
    destination = BROADCAST_MAC if op == 1 else tmac
    ethernet = destination.to_bytes(6, "big") + smac.to_bytes(6, "big") + b"\x08\x06"
    target = 0 if op == 1 else tmac
    return (
        ethernet
        + struct.pack(">HHBBH", 1, 0x0800, 6, 4, op)
        + smac.to_bytes(6, "big") + sip.to_bytes(4, "big") + target.to_bytes(6, "big") + tip.to_bytes(4, "big")
    )  # fmt: skip


def _ip_frame(
    smac: int, dmac: int, src: int, dst: int, proto: int, ttl: int, body: bytes, options: bytes = b""
) -> bytes:
    length = 20 + len(options) + len(body)
    head = struct.pack(">BBHHHBBHII", 0x45 + len(options) // 4, 0, length, 0, 0, ttl, proto, 0, src, dst) + options
    head = head[:10] + struct.pack(">H", _checksum(head)) + head[12:]
    return dmac.to_bytes(6, "big") + smac.to_bytes(6, "big") + b"\x08\x00" + head + body


def _icmp(kind: int, code: int, rest: bytes) -> bytes:
    check = _checksum(struct.pack(">BBH", kind, code, 0) + rest)
    return struct.pack(">BBH", kind, code, check) + rest


# ---------------------------------------------------------------------------------------------------------------------
# One device's life during one capture
# ---------------------------------------------------------------------------------------------------------------------

_EVENINGS = (1, 1, 0, 0, 0, 1, 4, 8, 7, 4, 3, 3, 4, 3, 3, 4, 6, 9, 10, 10, 9, 8, 5, 2)
_VISITS = (0, 0, 0, 0, 0, 0, 1, 4, 6, 7, 8, 9, 8, 7, 7, 8, 9, 9, 8, 6, 3, 2, 1, 0)
"""Relative frequency of events by hour of the day: actions of the people of a house, and visits at its door."""

_REPORTING = {"plug": 1, "gateway": 1, "thermostat": 3}
"""Kinds of device that report measurements -> number of reporting periods between two reports."""


class _Life:
    """The traffic of one device from `begin` to `end` (µs), as seen on the LAN side of the router."""

    def __init__(self, device: _DeviceProfile, begin: int, end: int, chance: str) -> None:
        self.device, self.home, self.begin, self.end = device, device.home, begin, end
        self.rng = random.Random(chance)
        self.bulk = np.random.default_rng(zlib.crc32(chance.encode()) | self.rng.getrandbits(64) << 32)
        self.tape = _Tape()
        self.ident = self.rng.getrandbits(16)
        self.port = self.rng.randrange(32768, 60000) if device.linux else self.rng.randrange(49152, 60000)
        self.clock_base = self.rng.getrandbits(31)

    # -- single packets

    def wifi(self) -> int:
        """Return a delay from the router to the device and back, µs: radio, sleep, retries."""
        ms = self.device.traits["wifi_ms"] * self.rng.lognormvariate(0, 0.35)
        return int(1000 * (ms + (self.rng.uniform(10, 90) if self.rng.random() < 0.01 else 0)))

    def rtt(self, host: _CloudHost) -> int:
        """Return a delay from the router to the cloud and back, µs."""
        return int(1000 * host.rtt_ms * self.rng.lognormvariate(0, 0.06))

    def period(self, seconds: float, jitter: float = 0.02) -> int:
        """Return one waiting time of about `seconds`, µs."""
        return max(1000, int(SECOND * seconds * (1 + self.rng.uniform(-jitter, jitter))))

    def next_port(self) -> int:
        """Return the next ephemeral port: a small Linux spreads them, a bare stack counts."""
        self.port += self.rng.randrange(1, 40) * 2 if self.device.linux else 1
        if self.port > 60999:
            self.port = 32768 if self.device.linux else 49152
        return self.port

    def next_ident(self) -> int:
        """Return the device's next IP identification."""
        self.ident = self.ident + 1 & 0xFFFF
        return self.ident

    def udp(
        self,
        t: int,
        peer: int,
        sport: int,
        dport: int,
        size: int,
        head: bytes = b"",
        *,
        up: bool,
        ttl: int = 64,
        mac: int = 0,
    ) -> None:
        """Add one datagram, from the device if `up`. `mac` is the peer's if the peer is not behind the router."""
        device = self.device
        other = mac or (_multicast_mac(peer) if peer >> 28 == 14 else self.home.router_mac)
        size = max(size, len(head))
        source = ANY if dport == 67 and peer == BROADCAST else device.ip
        if up:
            hops = 255 if peer >> 28 == 14 else 64
            addresses = (other, device.mac, UDP, source, peer, sport, dport, size, hops, self.next_ident())
        else:
            addresses = (device.mac, other, UDP, peer, device.ip, sport, dport, size, ttl, self.rng.getrandbits(16))
        self.tape.row((t, *addresses, int(device.linux), 0, 0, 0, 0, 0, 0, 0, 0), head)

    def resolve_router(self, t: int) -> int:
        """Let the device resolve the router's address; return the time after the answer."""
        d, h = self.device, self.home
        self.tape.raw(t, _arp(1, d.mac, d.ip, 0, h.router))
        self.tape.raw(t + 180, _arp(2, h.router_mac, h.router, d.mac, d.ip))
        return t + 400

    def be_resolved(self, t: int) -> None:
        """Let the router (or the phone) resolve the device's address."""
        d, h = self.device, self.home
        mac, ip = (h.router_mac, h.router) if self.rng.random() < 0.85 else (h.phone_mac, h.phone)
        self.tape.raw(t, _arp(1, mac, ip, 0, d.ip))
        self.tape.raw(t + self.wifi(), _arp(2, d.mac, d.ip, mac, ip))

    def igmp(self, t: int, group: int) -> None:
        """Let the device join, or confirm, a multicast group."""
        body = struct.pack(">BBHI", 0x16, 0, 0, group)
        body = body[:2] + struct.pack(">H", _checksum(body)) + body[4:]
        mac, alert = _multicast_mac(group), b"\x94\x04\x00\x00"
        self.tape.raw(t, _ip_frame(self.device.mac, mac, self.device.ip, group, IGMP, 1, body, alert))

    def ping(self, t: int) -> None:
        """Send three echo requests to the router, as some firmware does before anything else."""
        d, h, ident = self.device, self.home, self.rng.getrandbits(16)
        for n in range(3):
            body = struct.pack(">HH", ident, n) + bytes(56)
            self.tape.raw(t, _ip_frame(d.mac, h.router_mac, d.ip, h.router, ICMP, 64, _icmp(8, 0, body)))
            back = t + self.rng.randrange(150, 600)
            self.tape.raw(back, _ip_frame(h.router_mac, d.mac, h.router, d.ip, ICMP, 64, _icmp(0, 0, body)))
            t += self.period(1.0)

    def resolve(self, t: int, role: str) -> tuple[int, int]:
        """Ask the router for a host's address; return the time of the answer and an address.

        Each question has a new source port; now and then one is lost and repeated.
        """
        rng, host, home = self.rng, self.device.hosts[role], self.home
        kinds = (1, 28) if self.device.traits["aaaa"] else (1,)
        chosen = rng.sample(host.pool, min(host.answers, len(host.pool)))
        done = t
        for kind in kinds:
            tries = 0
            while True:
                sport, ident = rng.randrange(1024, 65536), rng.getrandbits(16)
                query = _dns_query(ident, host.name, kind)
                self.udp(t, home.router, sport, 53, len(query), query, up=True)
                tries += 1
                if tries > 2 or rng.random() > 0.02:
                    break
                t += self.period(rng.choice((1, 2, 5)))
            answer = _dns_answer(ident, host.name, kind, host.cname, chosen if kind == 1 else ())
            done = t + (self.rtt(host) // 2 if rng.random() < 0.6 else rng.randrange(200, 1500))
            self.udp(done, home.router, 53, sport, len(answer), answer, up=False)
            t += rng.randrange(100, 900)
        return done + self.wifi(), chosen[0]

    # -- conversations

    def dhcp(self, t: int, *, boot: bool) -> int:
        """Get a lease, by a discovery at boot or a renewal later; return the time after it."""
        d, h, xid = self.device, self.home, self.rng.getrandbits(32)
        host = f"{d.kind}-{d.mac & 0xFFFF:04x}"
        for kind, reply in ((1, 2), (3, 5)) if boot else ((3, 5),):
            to, mac = (BROADCAST, BROADCAST_MAC) if boot else (h.router, h.router_mac)
            message = _dhcp(1, kind, xid, d.mac, 0 if boot else d.ip, 0, 0, host)
            self.udp(t, to, 68, 67, len(message), message, up=True, mac=mac)
            t += self.rng.randrange(800, 30_000)
            message = _dhcp(2, reply, xid, d.mac, 0, d.ip, h.router, host)
            self.udp(t, h.router, 67, 68, len(message), message, up=False)
            t += self.wifi()
        return t

    def ntp(self, t: int) -> None:
        """Ask for the time once; sometimes there is no answer."""
        t, address = self.resolve(t, "ntp")
        host, sport = self.device.hosts["ntp"], 123 if self.device.linux else self.next_port()
        stamp = struct.pack(">II", t // SECOND + 2_208_988_800 & 0xFFFFFFFF, 0)
        self.udp(t, address, sport, 123, 48, b"\x23\x00\x06\xec" + bytes(36) + stamp, up=True)
        if self.rng.random() < 0.97:
            reply = b"\x24\x02\x06\xe9" + bytes(12) + stamp + stamp + stamp + stamp
            self.udp(t + self.rtt(host), address, 123, sport, 48, reply, up=False, ttl=host.ttl)

    def connect(self, t: int, role: str, port: int, address: int | None = None) -> "_Flow":
        """Resolve one of the device's hosts and open a TCP connection to it."""
        if address is None:
            t, address = self.resolve(t, role)
        flow = _Flow(self, self.device.hosts[role], address, self.next_port(), port)
        flow.open(t)
        return flow

    def tls(self, t: int, role: str, port: int = 443, *, resumed: bool = False) -> "_Flow":
        """Open a connection with its TLS handshake."""
        flow, rng = self.connect(t, role, port), self.rng
        hello = int(self.device.traits["hello_bytes"])
        flow.send(hello + (180 if resumed else 0), _client_hello(hello + (180 if resumed else 0)), ack=False)
        if resumed:
            flow.receive(rng.randint(140, 240), _tls(90, 22), ack=False)
            flow.send(51, _tls(51, 20))
        else:
            flow.receive(flow.host.certificate, _tls(flow.host.certificate, 22))
            flow.t += rng.randrange(8_000, 220_000)  # a small CPU at its key exchange
            flow.send(rng.choice((126, 144, 190)), _tls(75, 22), ack=False)
            flow.receive(rng.choice((51, 107, 258)), _tls(51, 20))
        return flow

    def request(self, t: int, role: str, up: int, down: int, *, resumed: bool = False) -> int:
        """Make one HTTPS request on a connection of its own; return the time of its end."""
        flow, rng = self.tls(t, role, resumed=resumed), self.rng
        flow.send(up, _tls(min(up, 16000)), ack=False)
        flow.t += rng.randrange(1_000, 80_000)
        flow.receive(down, _tls(min(down, 16000)))
        flow.close(reset=rng.random() < 0.1)
        return flow.t

    def every(self, begin: int, end: int, seconds: float, jitter: float = 0.02, first: float = 1.0) -> Iterator[int]:
        """Yield the times of a periodic event."""
        t = begin + self.period(seconds * first * self.rng.uniform(0.1, 1.0), 0.0)
        while t < end:
            yield t
            t += self.period(seconds, jitter)

    def happenings(self, begin: int, end: int, per_day: float, hours: Sequence[int] = _EVENINGS) -> list[int]:
        """Return the times of people's actions: a Poisson process with the rhythm of the day."""
        peak, total = max(hours), sum(hours)
        times: list[int] = []
        t = float(begin)
        rate = per_day * self.device.traits["active"] * peak / total * 24 / DAY  # at the busiest hour
        while True:
            t += self.rng.expovariate(rate)
            if t >= end:
                return times
            if self.rng.random() * peak < hours[int(t // HOUR) % 24]:
                times.append(int(t))

    # -- what kinds of devices do

    def live(self) -> None:
        """Generate the whole capture: a boot, then a day's traffic, with the Wi-Fi lost now and then."""
        traits = self.device.traits
        cuts = [self.begin + self.rng.randrange(50_000, 1_500_000)]
        while True:
            cut = cuts[-1] + int(self.rng.expovariate(1) * traits["glitch_h"] * HOUR) + 4 * MINUTE
            if cut >= self.end:
                break
            cuts.append(cut)
        for cut, until in zip(cuts, [*cuts[1:], self.end], strict=True):
            silence = self.rng.randrange(2 * SECOND, 20 * SECOND) if until < self.end else 0
            self._stretch(cut, until - silence, cold=cut == cuts[0])

    def _stretch(self, t: int, end: int, *, cold: bool) -> None:
        """Generate the traffic from one (re)connection to the next; it begins with every session at once."""
        device, traits, rng = self.device, self.device.traits, self.rng
        t = self.dhcp(t, boot=cold or rng.random() < 0.5)
        for _ in range(rng.randint(1, 3)):
            self.tape.raw(t, _arp(1, device.mac, device.ip, 0, device.ip))
            t += rng.randrange(2_000, 400_000)
        t = self.resolve_router(t) + rng.randrange(10_000, 900_000)
        begin = t
        if traits["pings"]:
            self.ping(t)
        if cold:
            self.ntp(t)
            t += rng.randrange(20_000, 300_000)
        for at in self.every(begin, end, traits["arp_s"], 0.3):
            if rng.random() < 0.5:
                self.resolve_router(at)
            else:
                self.be_resolved(at)
        for at in self.every(begin, end, traits["lease_s"], 0.01):
            self.dhcp(at, boot=False)
        for at in self.every(begin, end, traits["ntp_s"], 0.01):
            self.ntp(at)
        for at in self.every(begin, end, 21_600, 0.4, first=0.5):
            self.firmware(at, rng.random() < 0.1)
        if cold and rng.random() < 0.5:
            self.firmware(t + rng.randrange(5 * SECOND, 40 * SECOND), False)
        if "mqtt" in device.hosts:
            self.mqtt(t + rng.randrange(10_000, 700_000), end)
        if "udp" in device.hosts:
            self.udp_session(t + rng.randrange(10_000, 700_000), end)
        for at in [t + rng.randrange(100_000, 2 * SECOND), *self.every(t, end, traits["checkin_s"], 0.03)]:
            self.checkin(at)
        if "log" in device.hosts or "video" in device.hosts or "weather" in device.hosts:
            for at in self.every(
                t, end, traits["fetch_s"], 0.2, first=0.3
            ):  # settings, models, pictures, announcements
                self.request(
                    at, "api", int(traits["request_bytes"]), int(traits["fetch_bytes"] * rng.uniform(0.9, 1.1))
                )
        {
            "camera": self._camera, "plug": self._plug, "thermostat": self._thermostat, "doorbell": self._doorbell,
            "gateway": self._gateway, "speaker": self._speaker, "bulb": self._bulb,
        }[device.kind](t, end)  # fmt: skip

    def checkin(self, t: int) -> None:
        """Make the regular HTTPS report, sometimes followed by one to a second host."""
        traits, rng = self.device.traits, self.rng
        up = int(traits["request_bytes"] * rng.uniform(0.9, 1.3))
        down = int(traits["response_bytes"] * rng.uniform(0.8, 1.4))
        done = self.request(t, "api", up, down, resumed=rng.random() < 0.3)
        if "log" in self.device.hosts and rng.random() < 0.5:
            self.request(done + rng.randrange(5_000, SECOND), "log", rng.randint(600, 5000), rng.randint(180, 400))

    def firmware(self, t: int, available: bool) -> None:
        """Ask for new firmware; rarely a small update is available."""
        down = self.rng.randint(120_000, 500_000) if available else self.rng.randint(200, 900)
        self.request(t, "ota", self.rng.randint(250, 700), down)

    def mqtt(self, t: int, end: int) -> None:
        """Keep MQTT sessions until `end`: connect, subscribe, keep-alives, reports, commands.

        The server closes a session every few hours, and a new one follows.
        """
        traits, rng = self.device.traits, self.rng
        while t < end:
            port = int(traits["mqtt_port"])
            secure = port == 8883
            over = min(end, t + int(rng.expovariate(1) * 5 * HOUR) + 20 * MINUTE)
            flow = self.tls(t, "mqtt", port) if secure else self.connect(t, "mqtt", port)

            def message(kind: int, size: int, secure: bool = secure) -> tuple[int, bytes]:
                size = max(2, min(size, 120 if not secure else 1300))  # one byte of remaining length in clear MQTT
                return (size + 29, _tls(size + 29)) if secure else (size, bytes([kind, size - 2]))

            flow.send(*message(0x10, rng.randint(60, 190)), ack=False)
            flow.receive(*message(0x20, 4), ack=False)
            for _ in range(rng.randint(1, 3)):
                flow.send(*message(0x82, rng.randint(30, 90)), ack=False)
                flow.receive(*message(0x90, 5))
            beats = [(at, 0) for at in self.every(flow.t, over, traits["keepalive_s"], 0.005)]
            if self.device.kind in _REPORTING:
                pause = traits["report_s"] * _REPORTING[self.device.kind]
                beats += [(at, 1) for at in self.every(flow.t, over, pause, 0.1)]
            beats += [(at, 2) for at in self.happenings(flow.t, over, 30)]
            last = flow.t
            for at, what in sorted(beats):
                if what == 0 and at - last < traits["keepalive_s"] * SECOND * 0.5 and rng.random() < 0.5:
                    continue  # other traffic has just shown that the connection works
                flow.t = max(at, flow.t)
                last = flow.t
                if what == 0:
                    flow.send(*message(0xC0, 2), ack=False)
                    flow.receive(*message(0xD0, 2))
                elif what == 1:
                    size = int(traits["report_bytes"] * rng.uniform(0.9, 1.1))
                    flow.send(*message(0x30, size), ack=rng.random() < 0.5)
                else:
                    flow.receive(*message(0x30, rng.randint(60, 300)))
                    flow.t += rng.randrange(5_000, 300_000)
                    for _ in range(rng.randint(1, 3)):
                        flow.send(*message(0x30, rng.randint(80, 500)))
            if over < end:
                flow.t = max(over, flow.t)
                flow.closed_by_peer()
            t = max(over, flow.t) + rng.randrange(200_000, 6 * SECOND)

    def udp_session(self, t: int, end: int) -> None:
        """Use a vendor's UDP protocol: try some servers at once, stay with one, keep the router's mapping alive."""
        traits, rng, host = self.device.traits, self.rng, self.device.hosts["udp"]
        t, address = self.resolve(t, "udp")
        sport, port, size = self.next_port(), int(traits["udp_port"]), int(traits["udp_bytes"])
        for other in rng.sample(host.pool, min(3, len(host.pool))):
            self.udp(t, other, sport, port, size, up=True)
            self.udp(t + self.rtt(host), other, port, sport, size, up=False, ttl=host.ttl)
            t += rng.randrange(50, 40_000)
        for at in self.every(t, end, traits["udp_s"], 0.05):
            self.udp(at, address, sport, port, size, up=True)
            back = at + self.rtt(host)
            if rng.random() < 0.995:
                self.udp(back, address, port, sport, size, up=False, ttl=host.ttl)
            if rng.random() < 0.02:  # a report with its acknowledgement
                self.udp(back + 3000, address, sport, port, size + rng.randint(40, 300), up=True)
                self.udp(back + 3000 + self.rtt(host), address, port, sport, size, up=False, ttl=host.ttl)

    def announce(self, begin: int, end: int, service: str) -> None:
        """Use mDNS: join the group, announce the device, ask and answer."""
        rng, instance = self.rng, self.device.name
        self.igmp(begin, MDNS)
        for at in [begin + SECOND, begin + 2 * SECOND, *self.every(begin, end, self.device.traits["mdns_s"], 0.5)]:
            message = _mdns(f"{service}.local", instance, rng.random() < 0.6)
            self.udp(at, MDNS, 5353, 5353, len(message), message, up=True)
        for at in self.every(begin, end, 125, 0.03):
            self.igmp(at, MDNS)

    def ssdp(self, begin: int, end: int) -> None:
        """Use SSDP: look for the router's services, with three requests each time."""
        rng = self.rng
        self.igmp(begin, SSDP)
        for at in self.every(begin, end, self.device.traits["ssdp_s"], 0.1, first=0.2):
            sport = self.next_port()
            for step in range(3):
                sent = at + step * rng.randrange(80_000, 240_000)
                self.udp(sent, SSDP, sport, 1900, len(_SEARCH), _SEARCH, up=True)
            answer = at + rng.randrange(20_000, 900_000)
            self.udp(answer, self.home.router, 1900, sport, len(_FOUND), _FOUND, up=False)

    def phone_udp(self, t: int, seconds: float, size: int) -> None:
        """Let the app on the phone talk to the device on the LAN."""
        rng, port, home = self.rng, int(self.device.traits["lan_port"]), self.home
        sport = rng.randrange(32768, 61000)
        end = t + int(seconds * SECOND)
        while t < end:
            self.udp(t, home.phone, sport, port, size // 2, up=False, mac=home.phone_mac)
            answer = int(size * rng.uniform(0.9, 1.2))
            self.udp(t + self.wifi(), home.phone, port, sport, answer, up=True, mac=home.phone_mac)
            t += self.period(1.0, 0.6)

    def stream(self, t: int, seconds: float, send: Callable[[int, int], None]) -> int:
        """Record video: frames at a steady rate, a key frame every two seconds; return the time of its end.

        `send(t, bytes)` is called once a frame.
        """
        traits, rng = self.device.traits, self.rng
        gap, frame = SECOND / traits["fps"], traits["kbps"] * 125 / traits["fps"]
        group = int(2 * traits["fps"])
        for n in range(int(seconds * traits["fps"])):
            scale = 4.0 if n % group == 0 else 1 - 3 / group
            send(int(t + n * gap + rng.uniform(0, 4000)), max(60, int(frame * scale * rng.lognormvariate(0, 0.3))))
        return int(t + seconds * SECOND)

    def rtp(self, peer: int, mac: int, sport: int, dport: int) -> Callable[[int, int], None]:
        """Return a function that sends frames as RTP packets."""
        rng = self.rng
        number, source = rng.getrandbits(16), rng.getrandbits(32)

        def send(t: int, size: int) -> None:
            nonlocal number
            while size > 0:
                part = min(size, 1400)
                size -= part
                kind, clock = 96 | (0x80 if size <= 0 else 0), t * 9 // 100 & 0xFFFFFFFF
                head = struct.pack(">BBHII", 0x80, kind, number & 0xFFFF, clock, source)
                self.udp(t, peer, sport, dport, part + 12, head, up=True, mac=mac)
                number += 1
                t += rng.randrange(120, 420)

        return send

    def upload(self, t: int, role: str, seconds: float) -> None:
        """Send a clip to the cloud over TLS as it is recorded."""
        flow = self.tls(t, role)
        flow.send(900, _tls(900))

        def send(at: int, size: int) -> None:
            flow.t = max(flow.t, at)
            flow.send(size, _tls(min(size, 16000)), quick=True)

        self.stream(flow.t, seconds, send)
        flow.receive(300, _tls(300))
        flow.close()

    def live_view(self, t: int, seconds: float) -> None:
        """Stream to a viewer: on the LAN over RTSP and RTP, or outside over UDP by a relay."""
        rng, home, device = self.rng, self.home, self.device
        if rng.random() < 0.5:
            host = replace(device.hosts["video"], rtt_ms=device.traits["wifi_ms"] + 2, ttl=64, certificate=0)
            flow = _Flow(self, host, home.phone, 554, rng.randrange(32768, 61000), mac=home.phone_mac, served=True)
            flow.open(t)
            port, local = rng.randrange(10_000, 60_000) & ~1, rng.randrange(10_000, 60_000) & ~1
            for number, verb in enumerate(("OPTIONS", "DESCRIBE", "SETUP", "PLAY"), 1):
                text = f"{verb} rtsp://camera/stream RTSP/1.0\r\nCSeq: {number}\r\n\r\n".encode()
                flow.receive(len(text), text, ack=False)
                flow.t += rng.randrange(1_000, 12_000)
                reply = f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n".encode()
                flow.send(rng.randint(560, 700) if verb == "DESCRIBE" else rng.randint(90, 220), reply, ack=False)
            done = self.stream(flow.t, seconds, self.rtp(home.phone, home.phone_mac, local, port))
            for at in range(flow.t + 5 * SECOND, done, 5 * SECOND):
                self.udp(at, home.phone, port + 1, local + 1, 52, b"\x80\xc9\x00\x07", up=False, mac=home.phone_mac)
            flow.t = max(flow.t, done)
            text = b"TEARDOWN rtsp://camera/stream RTSP/1.0\r\nCSeq: 5\r\n\r\n"
            flow.receive(len(text), text, ack=False)
            flow.send(60, b"RTSP/1.0 200 OK\r\nCSeq: 5\r\n")
            flow.close()
            return
        done, address = self.resolve(t, "video")
        host, sport, port = device.hosts["video"], self.next_port(), rng.randrange(20_000, 60_000)
        for step in range(3):
            self.stun(done + step * 30_000, address, sport, port, host)
        over = self.stream(done + 300_000, seconds, self.rtp(address, 0, sport, port))
        at = done + 300_000
        while at < over:
            self.udp(at, address, port, sport, rng.randint(60, 110), b"\x80\xc9\x00\x07", up=False, ttl=host.ttl)
            at += self.period(0.25, 0.5)

    def stun(self, t: int, address: int, sport: int, port: int, host: _CloudHost, answered: bool = True) -> None:
        """Make one binding request, and answer it if `answered`."""
        ident = self.rng.getrandbits(96).to_bytes(12, "big")
        self.udp(t, address, sport, port, 20, b"\x00\x01\x00\x00\x21\x12\xa4\x42" + ident, up=True)
        if answered:
            reply = b"\x01\x01\x00\x0c\x21\x12\xa4\x42" + ident + b"\x00\x20\x00\x08\x00\x01"
            self.udp(t + self.rtt(host), address, port, sport, 32, reply, up=False, ttl=host.ttl)

    def _camera(self, begin: int, end: int) -> None:
        rng, traits, host = self.rng, self.device.traits, self.device.hosts["stun"]
        for at in self.every(begin, end, traits["stun_s"], 0.01, first=0.1):
            address, sport = rng.choice(host.pool[:3]), self.next_port()
            for n in range(int(traits["stun_tries"])):
                self.stun(at + n * rng.randrange(60_000, 90_000), address, sport, 3478, host, rng.random() < 0.5)
        self.ssdp(begin, end)
        for at in self.happenings(begin, end, 40):
            self.request(at, "api", rng.randint(400, 1500), rng.randint(200, 900))
            self.upload(at + rng.randrange(100_000, SECOND), "video", rng.uniform(8, 25))
        for at in self.happenings(begin, end, 18):
            self.live_view(at, rng.uniform(15, 70))

    def _doorbell(self, begin: int, end: int) -> None:
        rng = self.rng
        self.announce(begin, end, "_doorbell._tcp")
        for at in self.happenings(begin, end, 22, _VISITS):
            self.request(at, "push", rng.randint(300, 900), rng.randint(150, 500))
            if rng.random() < 0.5:
                self.live_view(at + rng.randrange(SECOND, 6 * SECOND), rng.uniform(10, 40))
            else:
                self.upload(at + rng.randrange(50_000, SECOND), "video", rng.uniform(5, 15))

    def _plug(self, begin: int, end: int) -> None:
        rng, traits = self.rng, self.device.traits
        port = int(traits["lan_port"])
        for at in self.every(begin, end, traits["lan_s"], 0.2):
            sport = self.next_port() if rng.random() < 0.05 else 49153
            self.udp(at, BROADCAST, sport, port, int(traits["lan_bytes"]), up=True, mac=BROADCAST_MAC)
        for at in self.happenings(begin, end, 14):
            self.phone_udp(at, rng.uniform(3, 40), int(traits["lan_bytes"]))

    def _thermostat(self, begin: int, end: int) -> None:
        rng = self.rng
        self.announce(begin, end, "_hap._tcp")
        for at in self.every(begin, end, 1350, 0.2):
            self.request(at, "weather", rng.randint(250, 420), rng.randint(1500, 6000))
        for at in self.happenings(begin, end, 10):
            self.request(at, "api", rng.randint(400, 1200), rng.randint(300, 1500))
            self.phone_udp(at + SECOND, rng.uniform(3, 20), 240)

    def _gateway(self, begin: int, end: int) -> None:
        rng, home = self.rng, self.home
        self.announce(begin, end, "_hub._udp")
        for at in self.happenings(begin, end, 160):  # its sensors: doors, motion, switches
            flow = rng.choice(("api", "log"))
            if rng.random() < 0.15:
                self.request(at, flow, rng.randint(500, 1800), rng.randint(180, 500), resumed=True)
            else:
                self.udp(at, home.lan | 255, 4321, 9898, rng.randint(80, 160), up=True, mac=BROADCAST_MAC)
        for at in self.happenings(begin, end, 16):
            self.phone_udp(at, rng.uniform(5, 60), 180)

    def _speaker(self, begin: int, end: int) -> None:
        rng = self.rng
        self.announce(begin, end, "_cast._tcp")
        self.ssdp(begin, end)
        for at in self.happenings(begin, end, 26):
            flow = self.tls(at, "voice", resumed=rng.random() < 0.5)
            for _ in range(rng.randint(15, 50)):
                flow.send(rng.randint(600, 1300), _tls(600), quick=True)
                flow.t += rng.randrange(40_000, 110_000)
            flow.receive(rng.randint(8_000, 60_000), _tls(8000))
            flow.close()
            if rng.random() < 0.35:
                self._music(flow.t + SECOND, rng.uniform(60, 300), end)

    def _music(self, t: int, seconds: float, end: int) -> None:
        """Fetch audio in pieces of ten seconds."""
        flow, over = self.tls(t, "music"), min(end, t + int(seconds * SECOND))
        while flow.t < over:
            flow.send(self.rng.randint(300, 500), _tls(300), ack=False)
            flow.receive(self.rng.randint(50_000, 140_000), _tls(16000))
            flow.t += self.period(10, 0.1)
        flow.close()

    def _bulb(self, begin: int, end: int) -> None:
        rng = self.rng
        for at in self.happenings(begin, end, 24):
            self.phone_udp(at, rng.uniform(2, 25), 90)
        for at in self.every(begin, end, 300, 0.1):
            self.udp(at, BROADCAST, 56700, 56700, 36, up=True, mac=BROADCAST_MAC)


class _Flow:
    """One TCP connection as the router sees it; `t` is the earliest time of its next packet."""

    def __init__(
        self, life: _Life, host: _CloudHost, peer: int, local: int, remote: int, *, mac: int = 0, served: bool = False
    ) -> None:
        self.life, self.host, self.peer, self.local, self.remote, self.served = life, host, peer, local, remote, served
        self.mac = mac or life.home.router_mac
        rng = life.rng
        self.up, self.down = rng.getrandbits(32), rng.getrandbits(32)
        self.t = life.begin
        linux = life.device.linux
        self.stamps = linux and rng.random() < 0.95
        self.mss = MTU_PAYLOAD if self.stamps else 1460 if linux else 1440
        self.window = rng.choice((229, 457, 913)) if linux else rng.choice((5840, 2920, 4380))
        self.peer_window = rng.randrange(200, 1200) if linux else rng.randrange(14600, 65000)
        self.ident = rng.getrandbits(16)
        self.theirs = rng.getrandbits(31)

    def _packet(
        self, t: int, up: bool, flags: int, size: int = 0, head: bytes = b"", window: int | None = None
    ) -> None:
        life, device = self.life, self.life.device
        if flags & SYN:
            options = _LINUX_SYN if self.stamps else _MSS
        else:
            options = _STAMP if self.stamps and not flags & RST else _NO_OPTIONS
        ours, theirs = t // 1000 + life.clock_base & 0xFFFFFFFF, t // 1000 + self.theirs & 0xFFFFFFFF
        acked = bool(flags & ACK)
        window = (self.window if up else self.peer_window) if window is None else window
        if up:
            mss = 1460 if self.mss == MTU_PAYLOAD else self.mss
            ends = (device.ip, self.peer, self.local, self.remote)
            wire = (self.mac, device.mac, TCP, *ends, size, 64, life.next_ident())
            numbers = (int(device.linux), self.up, self.down if acked else 0, flags, window, options, mss)
            clocks = (ours, theirs - 20 & 0xFFFFFFFF if acked else 0)
            self.up = self.up + size + bool(flags & (SYN | FIN)) & 0xFFFFFFFF
        else:
            self.ident = self.ident + 1 & 0xFFFF
            ends = (self.peer, device.ip, self.remote, self.local)
            wire = (device.mac, self.mac, TCP, *ends, size, self.host.ttl, self.ident)
            numbers = (1, self.down, self.up if acked else 0, flags, window, options, 1460)
            clocks = (theirs, ours - 5 & 0xFFFFFFFF if acked else 0)
            self.down = self.down + size + bool(flags & (SYN | FIN)) & 0xFFFFFFFF
        life.tape.row((t, *wire, *numbers, *clocks), head)

    def call(self, t: int) -> None:
        """Send a SYN of the device that nobody answers; the next one has the same number."""
        self._packet(t, True, SYN, window=64240 if self.stamps else 5840)
        self.up = self.up - 1 & 0xFFFFFFFF

    def refused(self, t: int) -> int:
        """Send a SYN that is answered by a reset; return the time when the device knows."""
        self._packet(t, True, SYN, window=64240 if self.stamps else 5840)
        t += self._turn(True)
        self._packet(t, False, RST | ACK, window=0)
        return t + self.life.wifi()

    def spam(self, t: int, size: int, head: bytes, acked: bool) -> None:
        """Send one segment of the device at `t`, whatever the state of the connection."""
        self._packet(t, True, ACK | PSH, size, head)
        if acked:
            self._acknowledge(t + self._turn(True), False, self.up)

    def reset_by_peer(self, t: int) -> None:
        """Let the peer reset the connection."""
        self._packet(t, False, RST | ACK, window=0)

    def _turn(self, up: bool) -> int:
        """Return the time from a packet to its answer at the router, µs; the packet is the device's if `up`."""
        return self.life.rtt(self.host) if up else self.life.wifi()

    def open(self, t: int) -> None:
        """Make the handshake; one SYN in a hundred is lost and sent again."""
        rng, up = self.life.rng, not self.served
        self._packet(t, up, SYN, window=64240 if self.stamps else 5840)
        if rng.random() < 0.01:
            t += SECOND + rng.randrange(0, 30_000)
            if up:
                self.up = self.up - 1 & 0xFFFFFFFF
            else:
                self.down = self.down - 1 & 0xFFFFFFFF
            self._packet(t, up, SYN, window=64240 if self.stamps else 5840)
        t += self._turn(up)
        self._packet(t, not up, SYN | ACK, window=65160 if self.stamps else 28960)
        t += self._turn(not up)
        self._packet(t, up, ACK)
        self.t = t + rng.randrange(100, 3000)

    def _data(self, up: bool, size: int, head: bytes, ack: bool, quick: bool) -> None:
        """Send segments, an acknowledgement for every second one, and one for the last unless data will carry it.

        With `quick` the sender continues without waiting for the last acknowledgement.
        """
        rng, t, n = self.life.rng, self.t, 0
        answers = []
        while size > 0:
            part = min(size, self.mss)
            size -= part
            self._packet(t, up, ACK | (PSH if size <= 0 else 0), part, head)
            head, n = b"", n + 1
            if n % 2 == 0 or (size <= 0 and ack):
                answers.append((t + self._turn(up), self.up if up else self.down))
            t += rng.randrange(90, 380)
            if n % 10 == 0:
                t += self._turn(up) // 2  # a small window's pause
        for at, number in answers:
            self._acknowledge(at, not up, number)
        self.t = max(t, answers[-1][0] + rng.randrange(100, 2000)) if answers and ack and not quick else t
        if not ack:
            self.t += self._turn(up)

    def _acknowledge(self, t: int, up: bool, number: int) -> None:
        """Send an acknowledgement of a part of the data sent so far."""
        if up:
            latest, self.down = self.down, number
            self._packet(t, up, ACK)
            self.down = latest
        else:
            latest, self.up = self.up, number
            self._packet(t, up, ACK)
            self.up = latest

    def send(self, size: int, head: bytes = b"", *, ack: bool = True, quick: bool = False) -> None:
        """Send data from the device."""
        self._data(True, size, head, ack, quick)

    def receive(self, size: int, head: bytes = b"", *, ack: bool = True) -> None:
        """Let the device receive data."""
        self._data(False, size, head, ack, False)

    def close(self, *, reset: bool = False) -> None:
        """Let the device close the connection, with or without a reset after the peer's FIN."""
        self._packet(self.t, True, FIN | ACK)
        self.t += self._turn(True)
        self._packet(self.t, False, FIN | ACK)
        self.t += self._turn(False)
        self._packet(self.t, True, RST if reset else ACK)

    def closed_by_peer(self) -> None:
        """Let the server close the connection."""
        self._packet(self.t, False, FIN | ACK)
        self.t += self._turn(False)
        self._packet(self.t, True, FIN | ACK)
        self.t += self._turn(True)
        self._packet(self.t, False, ACK)


# ---------------------------------------------------------------------------------------------------------------------
# Packets of the malware, and the answers to them
# ---------------------------------------------------------------------------------------------------------------------


class _Infected(_Life):
    """The traffic of a device with one attack in it."""

    def strike(self, attack: AttackPlan, begin: int, seconds: float, cap: int) -> tuple[int, int]:
        """Add the packets of `attack` from `begin` (µs); return the times of its first and last packet.

        At most `seconds` of it are generated, and about `cap` packets that the device sends.
        """
        self.attack, self.cap = attack, cap
        self.seconds = attack.duration(seconds)
        self.target = _public_address(self.rng)
        self.far = _CloudHost(
            name="",
            pool=(self.target,),
            answers=1,
            rtt_ms=self.home.isp_ms + self.rng.uniform(10, 120),
            ttl=64 - self.rng.randint(8, 18),
            certificate=0,
            cname="",
        )
        self.over = begin + int(self.seconds * SECOND)
        before = self.tape.mark()
        {
            "mirai.scan": self._mirai_scan,
            "mirai.syn": self._mirai_syn,
            "mirai.ack": self._mirai_ack,
            "mirai.udp": self._mirai_udp,
            "mirai.udpplain": self._mirai_udpplain,
            "gafgyt.scan": self._gafgyt_scan,
            "gafgyt.junk": self._gafgyt_junk,
            "gafgyt.combo": self._gafgyt_combo,
            "gafgyt.tcp": self._gafgyt_tcp,
            "gafgyt.udp": self._gafgyt_udp,
            "checkins.held": self._checkins_held,
            "checkins.anew": self._checkins_anew,
            "checkins.unanswered": self._checkins_unanswered,
            "checkins.refused": self._checkins_refused,
        }[attack.label](begin)
        return self.tape.span(before, self.device.mac)

    # -- what floods have in common

    def _paced(self, begin: int, haste: float = 1.0) -> Ints:
        """Return the times of a flood: as fast as the device can, with small stalls of its queue, at an exact mean."""
        rate = self.attack.rate or self.device.traits["flood_pps"] * haste
        n = max(2, min(self.cap, int(rate * self.seconds)))
        gaps = self.bulk.gamma(2.0, 0.5, n - 1)
        gaps[self.bulk.random(n - 1) < 0.002] += 20
        at = np.concatenate([[0.0], np.cumsum(gaps)])
        times: Ints = begin + (at / at[-1] * (n - 1) / rate * SECOND).astype(np.int64)
        return times

    def _sources(self, n: int) -> npt.NDArray[np.uint32]:
        """Return source addresses: the device's own, any 32 bits (rand_next()), or its own with any low byte."""
        spoof = self.attack.spoof or RAW_FLOODS.get(self.attack.label, "own")
        if spoof == "any":
            return self.bulk.integers(0, 2**32, n, dtype=np.uint32)
        own = np.full(n, self.device.ip, np.uint32)
        return own if spoof == "own" else own & np.uint32(0xFFFFFF00) | self.bulk.integers(0, 256, n, dtype=np.uint32)

    def _raw_rows(self, times: Ints, proto: int, **fields: Any) -> Records:
        """Return packets from the device as a raw socket would send them: random IP identification, no DF."""
        n = len(times)
        rows = np.zeros(n, RECORD)
        rows["t"], rows["proto"], rows["ttl"] = times, proto, 64
        rows["dmac"], rows["smac"] = self.home.router_mac, self.device.mac
        rows["src"], rows["dst"] = self._sources(n), self.target
        rows["ident"] = self._any16(n)
        for name, value in fields.items():
            rows[name] = value
        return rows

    def _any16(self, n: int) -> npt.NDArray[np.uint16]:
        return self.bulk.integers(0, 65536, n, dtype=np.uint16)

    def _any32(self, n: int) -> npt.NDArray[np.uint32]:
        return self.bulk.integers(0, 2**32, n, dtype=np.uint32)

    def _port(self, n: int) -> npt.NDArray[np.uint16]:
        """Return target ports: the ordered one, else random ones."""
        return self._any16(n) if self.attack.port is None else np.full(n, self.attack.port, np.uint16)

    def _send(self, rows: Records, *, random_bytes: int = 0) -> None:
        heads = self.bulk.integers(97, 123, (len(rows), random_bytes), dtype=np.uint8)
        self.tape.bulk(rows, heads)

    def _answer(self, rows: Records, flags: int, **fields: Any) -> Records:
        """Return the far end's TCP answers to `rows`."""
        back = rows.copy()
        for one, other in (("smac", "dmac"), ("src", "dst"), ("sport", "dport")):
            back[one], back[other] = rows[other], rows[one]
        back["t"] = rows["t"] + (1000 * self.far.rtt_ms * self.bulk.lognormal(0, 0.08, len(rows))).astype(np.int64)
        back["ttl"], back["size"], back["flags"], back["options"], back["window"], back["df"] = (
            self.far.ttl,
            0,
            flags,
            0,
            0,
            1,
        )
        back["ack"] = rows["seq"] + np.uint32(1) if flags & ACK else 0
        back["seq"] = 0
        back["ident"] = 0
        for name, value in fields.items():
            back[name] = value
        return back

    def _share(self, n: int, share: float) -> npt.NDArray[np.bool_]:
        return self.bulk.random(n) < share

    def _unreachable(self, rows: Records, router: int | None = None, code: int = 3) -> None:
        """Add ICMP unreachable for some packets, from their destination or from a router before it."""
        for row in rows:
            quoted = _ip_frame(0, 0, int(row["src"]), int(row["dst"]), int(row["proto"]), self.far.ttl, b"")[14:34]
            ports = struct.pack(">HHI", int(row["sport"]), int(row["dport"]), int(row["seq"]))
            body = _icmp(3, code, bytes(4) + quoted + ports)
            t = int(row["t"]) + self.rtt(self.far)
            src = int(row["dst"]) if router is None else router
            self.tape.raw(
                t, _ip_frame(self.home.router_mac, self.device.mac, src, self.device.ip, ICMP, self.far.ttl, body)
            )

    def _once_a_second(self, rows: Records) -> Records:
        """Return the rows that a Linux target would answer: it sends a peer one ICMP error a second."""
        return rows[np.unique(rows["t"] // SECOND, return_index=True)[1]]

    # -- Mirai

    def _mirai_scan(self, begin: int) -> None:
        """Scan as scanner.c does: once a second a burst of 160 SYN to random addresses, port 23 and every tenth 2323.

        The sequence number is the target address; source port and window are the same for the run; there are no TCP
        options. Hosts that answer are then connected to by the kernel.
        """
        per_second = self.attack.rate or 160
        burst = max(1, round(per_second))
        n = min(self.cap, max(2, round(per_second * self.seconds)))
        gaps = self.bulk.gamma(3.0, self.device.traits["burst_us"] / 3, n)
        index = np.arange(n)
        within = np.cumsum(gaps)
        second = index // burst
        starts = within[second * burst]  # time within a burst counts from the burst's first packet
        interval = SECOND * burst / per_second
        drift = np.cumsum(self.bulk.uniform(0, 6000, int(second[-1]) + 1))  # select() wakes a little late
        times = begin + (second * interval + drift[second] + np.minimum(within - starts, interval * 0.9)).astype(
            np.int64
        )
        targets = _scannable_addresses(self.bulk, n)
        port = self.attack.port
        dport = np.where(index % 10 == 0, 2323, 23) if port is None else np.full(n, port)
        sport = self.rng.randrange(1024, 65536)
        rows = self._raw_rows(
            times, TCP, dst=targets, dport=dport, sport=sport, seq=targets, flags=SYN, window=self.rng.getrandbits(16)
        )
        self._send(rows)
        dice = self.bulk.random(n)
        refused = self._answer(rows[dice < 0.03], RST | ACK)
        opened = rows[(dice >= 0.03) & (dice < 0.042)]
        accepted = self._answer(opened, SYN | ACK, window=5840, options=_MSS, mss=1460, seq=self._any32(len(opened)))
        self._no_heads(refused)
        self._no_heads(accepted)
        self._no_heads(self._kernel_reset(accepted))  # no socket of the kernel's asked for this
        self._unreachable(rows[(dice >= 0.042) & (dice < 0.055)], self.far.pool[0], 1)
        for row in accepted:
            self._telnet(
                int(row["t"]) + self.wifi() + self.rng.randrange(0, SECOND), int(row["src"]), int(row["sport"])
            )

    def _kernel_reset(self, answers: Records) -> Records:
        """Return the resets of the device's kernel for SYN-ACKs that none of its sockets asked for."""
        back = self._answer(answers, RST)
        back["t"] = answers["t"] + (1000 * self.bulk.uniform(0.5, 5, len(answers))).astype(np.int64)
        back["seq"], back["ttl"] = answers["ack"], 64
        return back

    def _no_heads(self, rows: Records) -> None:
        self.tape.bulk(rows, np.zeros((len(rows), 0), np.uint8))

    def _telnet(self, t: int, address: int, port: int) -> None:
        """Try to log in to a telnet server: short lines both ways, of zero bytes here, until one side closes."""
        far = replace(self.far, rtt_ms=self.home.isp_ms + self.rng.uniform(20, 280))
        flow = _Flow(self, far, address, self.next_port(), port)
        if t >= self.over:
            return
        flow.open(t)
        flow.receive(self.rng.choice((3, 12, 18, 24)))
        for _ in range(self.rng.randint(1, 5)):
            if flow.t > self.over:
                return
            flow.send(self.rng.randint(3, 12), ack=False)
            flow.receive(self.rng.randint(2, 30))
            flow.t += self.rng.randrange(100_000, 900_000)
        if flow.t < self.over:
            flow.close(reset=True)

    def _mirai_syn(self, begin: int) -> None:
        """Flood as attack_tcp_syn in attack_tcp.c: 20 bytes of options drawn once, DF, window 0, random ports and
        sequence numbers."""
        times = self._paced(begin)
        n = len(times)
        options = {"options": _MIRAI_SYN, "mss": 1400 + self.rng.randrange(16), "tsval": self.rng.getrandbits(32)}
        rows = self._raw_rows(
            times, TCP, sport=self._any16(n), dport=self._port(n), seq=self._any32(n), flags=SYN, df=1, **options
        )
        self._send(rows)
        if not self.attack.spoofed:
            got = rows[self._share(n, 0.12)]
            if self.attack.port is None:  # closed ports, all but a few
                self._no_heads(self._answer(got, RST | ACK))
            else:
                accepted = self._answer(got, SYN | ACK, window=29200, options=_MSS, mss=1460, seq=self._any32(len(got)))
                self._no_heads(accepted)
                self._no_heads(self._kernel_reset(accepted))

    def _mirai_ack(self, begin: int) -> None:
        """Flood as attack_tcp_ack in attack_tcp.c: 512 random bytes, random ports and numbers, one window per run."""
        times = self._paced(begin)
        n, size = len(times), self._size(512)
        numbers = {"seq": self._any32(n), "ack": self._any32(n), "window": self.rng.getrandbits(16)}
        rows = self._raw_rows(times, TCP, sport=self._any16(n), dport=self._port(n), flags=ACK, size=size, **numbers)
        self._send(rows, random_bytes=min(size, 74))
        if not self.attack.spoofed:
            got = rows[self._share(n, 0.08)]
            self._no_heads(self._answer(got, RST, seq=got["ack"]))

    def _size(self, usual: int) -> int:
        return usual if self.attack.size is None else self.attack.size

    def _mirai_udp(self, begin: int) -> None:
        """Flood as attack_udp_generic in attack_udp.c: 512 random bytes between random ports, from a raw socket."""
        times = self._paced(begin)
        n, size = len(times), self._size(512)
        rows = self._raw_rows(times, UDP, sport=self._any16(n), dport=self._port(n), size=size)
        self._send(rows, random_bytes=min(size, 86))
        if not self.attack.spoofed:
            self._unreachable(self._once_a_second(rows))

    def _mirai_udpplain(self, begin: int) -> None:
        """Flood as attack_udp_plain in attack_udp.c: 512 random bytes on one connected socket of the kernel.

        It sets DF, counts the identification and is faster ("optimized for higher PPS").
        """
        times = self._paced(begin, haste=1.5)
        n, size = len(times), self._size(512)
        ident = (self.next_ident() + np.arange(n)) & 0xFFFF
        sport, dport = self.rng.randrange(1, 65536), self.attack.port or self.rng.randrange(1, 65536)
        rows = self._raw_rows(times, UDP, sport=sport, dport=dport, size=size, df=1, ident=ident)
        self._send(rows, random_bytes=min(size, 86))
        if self.rng.random() < 0.5:
            self._unreachable(self._once_a_second(rows))

    # -- BASHLITE

    def _gafgyt_tcp(self, begin: int) -> None:
        """Flood as sendTCP in client.c: bare SYN (no options, TTL 255) with random source, source port and sequence
        number, to one port."""
        times = self._paced(begin)
        n, size = len(times), self._size(0)
        dport = self.attack.port or self.rng.choice((80, 443, 8080, 25565))
        ports = {"sport": self._any16(n), "dport": dport, "seq": self._any32(n)}
        rows = self._raw_rows(times, TCP, flags=SYN, size=size, ttl=255, window=self.rng.getrandbits(16), **ports)
        self._send(rows)
        if not self.attack.spoofed:
            got = rows[self._share(n, 0.1)]
            accepted = self._answer(got, SYN | ACK, window=29200, options=_MSS, mss=1460, seq=self._any32(len(got)))
            self._no_heads(accepted)
            self._no_heads(self._kernel_reset(accepted))

    def _gafgyt_udp(self, begin: int) -> None:
        """Flood as sendUDP in client.c: a raw socket (TTL 255) and random sources, or with netmask 32 a plain socket.

        The operator chooses the size: 1,024 here. N-BaIoT's were at most 18, which makes its udp and tcp rows alike.
        """
        times = self._paced(begin)
        n, size = len(times), self._size(1024)
        dport = self._port(n)
        if self.attack.spoofed:
            rows = self._raw_rows(times, UDP, sport=self._any16(n), dport=dport, size=size, ttl=255)
        else:
            ident = (self.next_ident() + np.arange(n)) & 0xFFFF
            rows = self._raw_rows(times, UDP, sport=self.next_port(), dport=dport, size=size, df=1, ident=ident)
        self._send(rows, random_bytes=min(size, 86))
        if not self.attack.spoofed:
            self._unreachable(self._once_a_second(rows))

    def _gafgyt_scan(self, begin: int) -> None:
        """Scan as StartTheLelz in client.c: a table of the kernel's sockets calls random addresses on port 23.

        The kernel repeats the SYN of a call after 1, 3 and 7 s; after some seconds the call ends and the next one takes
        its place.
        """
        patience = self.rng.uniform(5, 10)
        rate = self.attack.rate or self.rng.uniform(160, 450)
        tries = sum(after < patience for after in _SYN_AGAIN)
        sockets = min(512, max(1, round(rate / tries * patience)))
        starts = np.concatenate([[0], np.cumsum(self.bulk.integers(150, 900, sockets - 1))])
        port = self.attack.port or 23
        self._run([self._calls(begin + int(start), port, patience) for start in starts])

    def _run(self, sockets: list[Iterator[tuple[int, int]]]) -> None:
        """Run sockets in order of time until the attack is over or has sent its bound.

        A socket yields the time of its next action and the number of packets it has sent since it was last resumed.
        """
        self.now = 0
        waiting = [(next(socket)[0], n, socket) for n, socket in enumerate(sockets)]
        heapq.heapify(waiting)
        sent = 0
        while waiting:
            t, n, socket = waiting[0]
            if t >= self.over or sent >= self.cap:
                return
            self.now = t
            t, packets = next(socket)
            sent += packets
            heapq.heapreplace(waiting, (t, n, socket))

    def _calls(self, t: int, port: int, patience: float) -> Iterator[tuple[int, int]]:
        """Run one socket of the scan, see `_run`."""
        rng = self.rng
        yield t, 0
        while True:
            address = int(_scannable_addresses(self.bulk, 1)[0])
            far = replace(self.far, rtt_ms=self.home.isp_ms + rng.uniform(20, 300))
            flow = _Flow(self, far, address, self.next_port(), port)
            dice = rng.random()
            if dice < 0.035:
                t = flow.refused(t) + rng.randrange(1_000, 30_000)
                yield t, 1
            elif dice < 0.045:  # a telnet server: short lines both ways, zeros here
                flow.open(t)
                yield flow.t, 2
                flow.receive(rng.choice((3, 12, 18, 24)))
                for _ in range(rng.randint(1, 4)):
                    yield flow.t, 2
                    flow.send(rng.randint(4, 12), ack=False)
                    flow.receive(rng.randint(2, 40))
                    flow.t += rng.randrange(50_000, 700_000)
                yield flow.t, 0
                flow.close()
                t = flow.t + rng.randrange(1_000, 30_000)
                yield t, 2
            else:
                for after in _SYN_AGAIN:
                    if after >= patience:
                        break
                    yield t + int(after * SECOND) + rng.randrange(0, 12_000) * bool(after), 1
                    flow.call(self.now)
                t += int((patience + rng.uniform(0, 0.4)) * SECOND)
                yield t, 0

    def _gafgyt_junk(self, begin: int) -> None:
        self._storm(begin, held=0.0)

    def _gafgyt_combo(self, begin: int) -> None:
        self._storm(begin, held=0.5)

    def _storm(self, begin: int, held: float) -> None:
        """Flood as sendJUNK in client.c, and as sendHOLD with the share `held` of the sockets.

        Half the descriptor table calls one port of the target. A junk socket that connects sends 1,024 random bytes at
        every turn; a held one stays open until the target closes it. Many calls to a loaded target stay unanswered and
        are repeated by the kernel, others are refused and made again at the next turn.
        """
        rng = self.rng
        port = self.attack.port or rng.choice((80, 443, 8080, 7777))
        rate = self.attack.rate or self.device.traits["flood_pps"]
        sockets = max(2, min(rng.randint(120, 300), int(rate)))
        # in one pass of the loop over its table an open socket sends once; the factor is for what the others send
        turn = (1.0 - 0.6 * held) * sockets / rate
        starts = [begin + int(n * turn / sockets * SECOND) for n in range(sockets)]
        self._run([self._storming(t, port, turn, rng.random() < held) for t in starts])

    def _storming(self, t: int, port: int, turn: float, held: bool) -> Iterator[tuple[int, int]]:
        """Run one socket of junk or hold, see `_run`."""
        rng, size = self.rng, self._size(1024)
        yield t, 0
        while True:
            flow = _Flow(self, self.far, self.target, self.next_port(), port)
            dice = rng.random()
            if dice < 0.3:
                t = max(flow.refused(t), t + self.period(turn, 0.3))
                yield t, 1
            elif dice < 0.42:
                for after in _SYN_AGAIN[: rng.randint(1, 3)]:
                    yield t + int(after * SECOND) + rng.randrange(0, 12_000) * bool(after), 1
                    flow.call(self.now)
                t = self.now + self.period(turn, 0.3)
                yield t, 0
            elif held:
                flow.open(t)
                t = flow.t + int(rng.expovariate(0.4) * SECOND)
                yield t, 2
                flow.reset_by_peer(t)
                t += self.wifi() + self.period(turn, 0.3)
                yield t, 0
            else:
                flow.open(t)
                t = flow.t
                yield t, 2
                for turns in range(int(rng.expovariate(0.2)) + 1):
                    flow.spam(t, size, rng.randbytes(min(size, 64)), acked=turns % 2 == 1)
                    t += self.period(turn, 0.3)
                    yield t, 1
                flow.reset_by_peer(t)
                t += self.wifi() + self.period(turn, 0.3)
                yield t, 0

    # -- check-ins of a bot that waits for orders

    def _checkin_times(self, begin: int) -> Iterator[int]:
        """Yield the times of check-ins: every 5 to 60 s as the seed chooses (Mirai: 60), each up to 30 % off.

        The deviation is that of sleeps, timeouts and the server's own rhythm together.
        """
        seconds = 1 / self.attack.rate if self.attack.rate else self.rng.uniform(5, 60)
        t = begin
        while t < self.over:
            yield t
            t += self.period(seconds, 0.3)

    def _to_server(self) -> "_Flow":
        return _Flow(self, self.far, self.target, self.next_port(), self.attack.port or 23)

    def _checkins_held(self, begin: int) -> None:
        """Check in as main.c does: four bytes at first, then two each time, which the server returns."""
        flow = None
        for t in self._checkin_times(begin):
            if flow is None:
                flow = self._to_server()
                flow.open(t)
                flow.send(4)
            flow.t = max(flow.t, t)
            flow.send(self._size(2), ack=False)
            flow.receive(self._size(2))

    def _checkins_anew(self, begin: int) -> None:
        for t in self._checkin_times(begin):
            flow = self._to_server()
            flow.open(t)
            flow.send(self._size(6), ack=False)
            flow.receive(self._size(2))
            flow.close()

    def _checkins_unanswered(self, begin: int) -> None:
        """Check in with a dead address: the kernel repeats a SYN until the bot makes another attempt."""
        times = list(self._checkin_times(begin))
        for t, following in zip(times, [*times[1:], self.over], strict=True):
            flow = self._to_server()
            for after in _SYN_AGAIN:
                if t + after * SECOND < following:
                    flow.call(t + after * SECOND)

    def _checkins_refused(self, begin: int) -> None:
        for t in self._checkin_times(begin):
            self._to_server().refused(t)


_SYN_AGAIN = (0, 1, 3, 7)
"""Seconds after a connect() at which a Linux kernel sends the SYN; the next, at 15, is later than a scan waits."""


# ---------------------------------------------------------------------------------------------------------------------
# Plan to files
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _CapturePlan:
    """One file to write: a benign day, or an attack with benign minutes around it."""

    file: str
    device: _DeviceProfile
    begin: int
    end: int
    attack: AttackPlan | None = None


def _captures(plan: Plan) -> list[_CapturePlan]:
    """Return all captures of a plan, in order of time for each device; attacks follow on the day after the benign
    days."""
    midnight = int(plan.start.timestamp()) * SECOND
    made = []
    devices = _devices(plan)
    for device in devices:
        for day in range(plan.days):
            chance = random.Random(f"{plan.seed}/{device.name}/{day}/hour")
            hour = chance.uniform(7, 22 - plan.hours) if plan.hours < 15 else 0.0
            begin = midnight + day * DAY + int(hour * HOUR)
            made.append(_CapturePlan(f"{device.name}/day{day + 1}.pcap", device, begin, begin + int(plan.hours * HOUR)))
    infected = plan.infected or (devices[0].name,)
    for device in devices:
        if device.name not in infected:
            continue
        begin = midnight + plan.days * DAY + 8 * HOUR
        for text in plan.attacks:
            attack = AttackPlan.parse(text)
            seconds = attack.duration(plan.attack_seconds)
            end = begin + int((plan.lead_minutes + plan.tail_minutes) * MINUTE + seconds * SECOND)
            made.append(_CapturePlan(f"{device.name}/{attack.name}.pcap", device, begin, end, attack))
            begin = end + 10 * MINUTE
    return made


def _make(plan: Plan, capture: _CapturePlan, out: Path) -> tuple[int, tuple[int, int] | None, str]:
    """Write one capture; return its packets, the times of the attack's first and last packet (µs), and the server of
    check-ins."""
    life = _Infected(capture.device, capture.begin, capture.end, f"{plan.seed}/{capture.file}")
    life.live()
    span, server = None, ""
    if capture.attack is not None:
        begin = capture.begin + int(plan.lead_minutes * MINUTE)
        span = life.strike(capture.attack, begin, plan.attack_seconds, plan.max_attack_packets)
        if capture.attack.label in CHECKINS:
            server = ".".join(map(str, life.target.to_bytes(4, "big")))
    return life.tape.write(out / capture.file, capture.begin, capture.end, plan.snaplen), span, server


def _instant(t: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=t)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _entry(capture: _CapturePlan, span: tuple[int, int] | None, server: str) -> str:
    """Return one capture's lines in the manifest."""
    device = capture.device
    label = "benign" if capture.attack is None else capture.attack.label
    lines = [
        f"  - file: {capture.file}",
        f"    device: {device.name}",
        f'    mac: "{mac_text(device.mac)}"',
        f"    kind: {device.kind}",
        f"    label: {label}",
    ]
    if capture.attack is not None and span is not None:
        spoofed = str(capture.attack.spoofed).lower()
        lines += [
            "    attack:",
            f"      start: {_instant(span[0])}",
            f"      end: {_instant(span[1])}",
            f"      spoofed: {spoofed}",
        ]
        lines += [f'      server: "{server}"'] if server else []
    return "\n".join(lines) + "\n"


def generate(plan: Plan, out: Path, progress: Callable[[int, int, str], None] | None = None) -> Path:
    """Write the plan's captures and, last, their manifest; return its path.

    `progress(done, total, line)` is called after each file.
    """
    plan.check()
    captures = _captures(plan)
    manifest = out / MANIFEST
    out.mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)  # a folder with a manifest is complete
    entries = []
    for done, capture in enumerate(captures, 1):
        packets, span, server = _make(plan, capture, out)
        entries.append(_entry(capture, span, server))
        if progress is not None:
            progress(done, len(captures), f"generated {capture.file}: {packets:,} packets")
    part = manifest.with_name(f"{MANIFEST}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(
            "# generated by `botwatch trainer generate`: no device ever sent these packets\n"
            f"generated: true\nseed: {plan.seed}\ncaptures:\n" + "".join(entries)
        )
        file.flush()
        os.fsync(file.fileno())
    part.replace(manifest)
    return manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `botwatch trainer generate`."""
    parser.description = (
        "Write captures of generated IoT devices, healthy and infected, and their manifest. No packet is sent."
    )
    parser.epilog = f"example:\n  {PROG} --out captures --seed 7"
    plan = Plan()

    def words(text: str) -> tuple[str, ...]:
        return tuple(word for word in text.split(",") if word)

    def day(text: str) -> datetime:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)

    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the captures and manifest.yaml"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=plan.seed,
        help="seed of all random numbers; another seed gives another home (%(default)s)",
    )
    parser.add_argument("--start", type=day, default=plan.start, metavar="DAY", help="first day, UTC (2026-01-05)")
    parser.add_argument(
        "--days", type=int, default=plan.days, help="number of benign captures per device (%(default)s)"
    )
    parser.add_argument("--hours", type=float, default=plan.hours, help="length of each benign capture (%(default)s)")
    parser.add_argument(
        "--devices",
        type=words,
        default=plan.devices,
        metavar="KIND,...",
        help=f"kinds of device: {', '.join(DEVICES)}; a kind may occur twice",
    )
    options = ":rate=PPS :port=N :size=BYTES :spoof=own|any|subnet :seconds=S"
    attacks = (
        f"attacks: {', '.join(ATTACKS)}; or check-ins, which last an hour and have a rate of check-ins: "
        f"{', '.join(CHECKINS)}; each with any of the options {options}; '' for none"
    )
    parser.add_argument("--attacks", type=words, default=plan.attacks, metavar="ATTACK,...", help=attacks)
    parser.add_argument(
        "--infected",
        type=words,
        default=plan.infected,
        metavar="NAME,...",
        help="devices that attack, such as camera-1 (default: the first)",
    )
    parser.add_argument(
        "--attack-seconds", type=float, default=plan.attack_seconds, help="length of each attack (%(default)s)"
    )
    parser.add_argument(
        "--lead-minutes", type=float, default=plan.lead_minutes, help="benign minutes before the attack (%(default)s)"
    )
    parser.add_argument(
        "--tail-minutes", type=float, default=plan.tail_minutes, help="benign minutes after it (%(default)s)"
    )
    parser.add_argument(
        "--max-attack-packets",
        type=int,
        default=plan.max_attack_packets,
        help="bound of the packets of one attack (%(default)s)",
    )
    parser.add_argument("--snaplen", type=int, default=plan.snaplen, help="captured bytes of a frame (%(default)s)")


def run(args: argparse.Namespace, command: str) -> int:
    """Run `botwatch trainer generate`; return the exit status."""
    plan = Plan(**{f.name: getattr(args, f.name) for f in fields(Plan)})
    began = time.monotonic()
    try:
        plan.check()
        with Progress("generating captures", len(_captures(plan))) as bar:
            manifest = generate(plan, args.out, lambda done, total, line: bar.step(note=line))
    except PlanError as error:
        return refuse(PROG, error)
    except OSError as error:
        return refuse(PROG, error, file=args.out)
    size = sum(path.stat().st_size for path in args.out.rglob("*.pcap"))
    print(f"generated {manifest}: seed {plan.seed}, {size / 1e6:.1f} MB in {time.monotonic() - began:.1f} s")
    return OK
