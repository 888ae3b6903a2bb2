"""The home and its devices: addresses, servers in the cloud, and the numbers that a device's behaviour depends on."""

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.traffic.habits import PLAIN, HomeHabits, device_habits
from trainer.traffic.plan import DEVICES, Plan

BROADCAST_MAC = 0xFFFFFFFFFFFF
ANY, BROADCAST = 0, 0xFFFFFFFF
MDNS, SSDP, ALL_ROUTERS = 0xE00000FB, 0xEFFFFFFA, 0xE0000016

_RESERVED = (
    *((first, 8) for first in (0, 3, 6, 7, 10, 11, 15, 16, 17, 21, 22, 26, 28, 29, 30, 33, 55, 56, 127, 214, 215)),
    (0x6440, 10), (0xA9FE, 16), (0xAC10, 12), (0xC0A8, 16), (0xC612, 15),
)  # fmt: skip
"""Prefixes that Mirai's scanner leaves out (scanner.c, get_random_ip), as it does 224.0.0.0 and above: private and
reserved ones, and those of some owners."""


def scannable(addresses: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """Return a mask of the addresses that Mirai's scanner would try."""
    good = addresses < np.uint32(0xE0000000)
    for prefix, bits in _RESERVED:
        base = prefix << (24 if bits == 8 else 16)
        good &= (addresses >> np.uint32(32 - bits)) != np.uint32(base >> (32 - bits))
    return good


def scannable_addresses(rng: np.random.Generator, n: int) -> npt.NDArray[np.uint32]:
    """Return n random addresses that Mirai's scanner would try."""
    addresses = np.zeros(0, np.uint32)
    while len(addresses) < n:
        drawn = rng.integers(0, 2**32, 2 * n + 16, dtype=np.uint32)
        addresses = np.concatenate([addresses, drawn[scannable(drawn)]])
    return addresses[:n]


def public_address(rng: random.Random) -> int:
    """Return a random address that is not reserved."""
    while True:
        address = rng.getrandbits(32)
        if bool(scannable(np.array([address], np.uint32))[0]):
            return address


def multicast_mac(address: int) -> int:
    """Return the MAC of an IPv4 multicast group (RFC 1112)."""
    return 0x01005E000000 | address & 0x7FFFFF


@dataclass(frozen=True, kw_only=True)
class Home:
    """The part of a home that all its devices share: the router (also their resolver), the LAN, a phone with apps."""

    lan: int
    router_mac: int
    phone_mac: int
    phone: int
    isp_ms: float
    seed: int
    habits: HomeHabits | None = None
    """None: a home whose devices do what their kinds do, and no more."""

    @classmethod
    def of(cls, seed: int, *, varied: bool) -> "Home":
        """Return the home of a seed."""
        rng = random.Random(f"{seed}/home")
        lan = 0xC0A80000 | rng.randrange(256) << 8
        isp_ms = rng.uniform(4, 18)
        return cls(
            lan=lan,
            router_mac=0x02_00_5E_00_00_00 | rng.getrandbits(16),
            phone_mac=0x02_00_5F_00_00_00 | rng.getrandbits(16),
            phone=lan | 200 + rng.randrange(50),
            isp_ms=isp_ms,
            seed=seed,
            habits=HomeHabits.of(seed) if varied else None,
        )

    @property
    def router(self) -> int:
        """The router's address."""
        return self.lan | 1


@dataclass(frozen=True, kw_only=True)
class CloudHost:
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
class DeviceProfile:
    """One device of a home: the seed's variant of its kind. `traits` are the numbers that its behaviour depends on."""

    kind: str
    name: str
    mac: int
    ip: int
    home: Home
    hosts: dict[str, CloudHost]
    traits: dict[str, float]
    linux: bool
    """True for a small Linux, False for a bare TCP/IP stack such as lwIP: other options, windows and ports."""


ROLES = {
    "camera": ("mqtt", "api", "video", "stun", "log", "ota", "ntp"),
    "plug": ("mqtt", "api", "ota", "ntp"),
    "thermostat": ("mqtt", "api", "weather", "ota", "ntp"),
    "doorbell": ("mqtt", "api", "video", "push", "ota", "ntp"),
    "gateway": ("mqtt", "udp", "api", "log", "ota", "ntp"),
    "speaker": ("mqtt", "api", "music", "voice", "log", "ota", "ntp"),
    "bulb": ("udp", "api", "ota", "ntp"),
    "battery_camera": ("api", "video", "ota", "ntp"),
    "hub": ("mqtt", "api", "poll", "log", "ota", "ntp"),
    "tv": ("mqtt", "api", "video", "log", "ads", "ota", "ntp"),
    "printer": ("api", "log", "ota", "ntp"),
    "phone": ("mqtt", "api", "log", "video", "ota", "ntp"),
    "pc": ("api", "log", "ota", "ntp"),
}


def devices_of(plan: Plan) -> list[DeviceProfile]:
    """Return the devices of a plan, in its order."""
    home = Home.of(plan.seed, varied=plan.varied)
    return [
        _device(plan.seed, home, kind, name, place)
        for place, (kind, name) in enumerate(zip(plan.devices, plan.names, strict=True))
    ]


def _device(seed: int, home: Home, kind: str, name: str, place: int) -> DeviceProfile:
    number = int(name.rpartition("-")[2])
    rng = random.Random(f"{seed}/{name}")
    vendor = f"{rng.choice('bdfglmnprstvz')}{rng.choice('aeiou')}{rng.choice('bdfglmnprstvz')}{rng.choice('aeiou')}"
    region = rng.choice(("eu1", "eu-west", "us2", "ap1"))
    hosts = {}
    for role in ROLES[kind]:
        nets = [public_address(rng) & 0xFFFFFF00 for _ in range(rng.randint(1, 3))]
        pool = tuple(rng.choice(nets) | rng.randrange(1, 255) for _ in range(rng.randint(3, 16)))
        domain = "pool.ntp.example" if role == "ntp" else f"{vendor}.example"
        hosts[role] = CloudHost(
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
    traits |= device_habits(seed, name, kind, traits) if home.habits else PLAIN
    mac = 0x02 << 40 | random.Random(f"{seed}/mac").getrandbits(24) << 16 | (DEVICES.index(kind) + 1) << 8 | number
    ip = home.lan | 20 + place
    return DeviceProfile(kind=kind, name=name, mac=mac, ip=ip, home=home, hosts=hosts, traits=traits, linux=linux)
