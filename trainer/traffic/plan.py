"""Everything that can be ordered: kinds of device, attacks, and the plan of one home. Equal plans give equal bytes."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

PROG = "botwatch trainer generate"

PEOPLES: tuple[str, ...] = ("phone", "pc")
"""Kinds of device that people use: whatever they do, a limit that is shared with things must not rise to it."""

DEVICES: tuple[str, ...] = (
    *("camera", "plug", "thermostat", "doorbell", "gateway", "speaker", "bulb"),
    *("battery_camera", "hub", "tv", "printer", *PEOPLES),
)
"""Kinds of device; new ones come last, because a device's MAC holds its kind's place."""

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
    home: str = ""
    """The home's name, before the names of its devices in the manifest: a fit on many homes keeps them apart."""
    varied: bool = False
    """True: devices and home have habits of their own, and there are events (`habits`, `chatter`, `events`)."""

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
        for name in self.infected:
            if name not in self.names:
                raise PlanError(f"infected device {name!r} is not in the plan; it has {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the devices: kind and number."""
        return tuple(f"{kind}-{self.devices[: place + 1].count(kind)}" for place, kind in enumerate(self.devices))
