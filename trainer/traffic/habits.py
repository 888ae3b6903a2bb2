"""Habits by which homes and devices of one kind differ, all from the seed: a plan with `varied` has them.

The ranges come from captures of real devices in use, in laboratories and while they are set up (IoTEnsemble, IoT
Sentinel, a week of three devices; studied, not copied). A plain home has the values of `PLAIN` instead.
"""

import random
from dataclasses import dataclass

from trainer.traffic.plan import PEOPLES

PLAIN: dict[str, float] = {
    **dict.fromkeys(
        ("loss", "resolver", "dns_tcp", "fresh", "keeps", "names", "ipv6", "eapol_s", "lan_polls_s", "pings_s"), 0.0
    ),
    **dict.fromkeys(("notify_s", "notify_frames", "group_s", "odd_s", "polled_s", "upnp", "punches"), 0.0),
    **dict.fromkeys(("updates", "update_bytes", "moves", "new", "lan_view_kbps", "swarms", "vpn"), 0.0),
    "merged": 1.0,
}
"""Habits of a device of a plain home: no loss, one frame a segment, the router as resolver, hosts that stay."""


@dataclass(frozen=True, kw_only=True)
class HomeHabits:
    """The habits that all devices of one home share."""

    loss: float
    """Share of TCP segments that are sent again."""
    merged: int
    """Segments that a receiving network card merges into one frame, at most; 1 for none."""
    ipv6: bool
    eapol_s: float
    """Seconds between two key exchanges of the Wi-Fi that the capture sees; 0 for a capture on a wire."""
    resolver: int
    """A resolver outside that some devices ask, as some routers hand out; 0 for none."""
    lease_s: float
    polled_s: float
    """Seconds between two questions of an app or a hub to each device; 0 for none."""
    power_cuts: float
    """Power cuts a day; every device boots after one."""
    reboots: float
    """Reboots of the router a day; every device connects anew after one."""

    @classmethod
    def of(cls, seed: int) -> "HomeHabits":
        """Return the habits of a seed's home."""
        rng = random.Random(f"{seed}/home/habits")
        return cls(
            loss=rng.choice((0.0, 0.001, 0.003, 0.01, 0.02)),
            merged=rng.choice((1, 1, 1, 1, 1, 1, 1, 1, 4, 12)),
            ipv6=rng.random() < 0.5,
            eapol_s=rng.choice((0.0, 0.0, 600.0, 1800.0, 3600.0)),
            resolver=rng.choice((0, 0x08080808, 0x01010101, 0x09090909)),
            lease_s=rng.choice((1800.0, 3600.0, 21_600.0, 43_200.0, 86_400.0)),
            polled_s=rng.choice((0.0, 0.0, 5.0, 15.0, 60.0)),
            power_cuts=rng.choice((0.1, 0.3, 0.5)),
            reboots=rng.choice((0.1, 0.3, 1.0)),
        )


def device_habits(seed: int, name: str, kind: str, usual: dict[str, float]) -> dict[str, float]:
    """Return the habits of one device of a varied home, instead of some traits that its kind gives (`usual`)."""
    rng = random.Random(f"{seed}/{name}/habits")
    home = HomeHabits.of(seed)
    people = kind in PEOPLES
    resolver = home.resolver if rng.random() < 0.3 else 0
    return {
        "loss": home.loss * rng.uniform(0, 2),
        "merged": float(home.merged),
        "resolver": float(resolver),
        "dns_tcp": rng.choice((0.0, 0.0, 0.0, 0.01)),
        "fresh": rng.choice((0.0, 0.1, 0.3)) if not people else 0.5,
        "keeps": rng.choice((0.0, 0.5, 0.95)),
        "names": rng.choice((0.0, 0.0, 4.0, 12.0)),
        "lease_s": home.lease_s,
        "keepalive_s": rng.choice((30, 60, 60, 120, 240, 300)) * rng.uniform(0.97, 1.0),
        "report_s": rng.choice((15, 60, 60, 300, 900)) * rng.uniform(0.8, 1.2),
        "checkin_s": rng.choice((600, 900, 1800, 3600, 7200, 14_400)) * rng.uniform(0.9, 1.1),
        "fetch_s": rng.choice((1800, 3600, 7200, 14_400)) * rng.uniform(0.8, 1.2),
        "fetch_bytes": rng.choice((4000, 30_000, 130_000)) * rng.uniform(0.7, 1.3),
        "arp_s": rng.choice((20, 60, 180, 600)) * rng.uniform(0.8, 1.2),
        "udp_s": rng.choice((15, 25, 60, 120)) * rng.uniform(0.9, 1.1),
        "lan_s": rng.choice((10, 20, 60, 60, 300)) * rng.uniform(0.8, 1.2),
        "mdns_s": rng.choice((60, 120, 600, 1800)) * rng.uniform(0.8, 1.2),
        "glitch_h": rng.choice((3, 12, 48)) * rng.uniform(0.7, 1.3),
        "active": rng.choice((0.08, 0.2, 0.35)) * rng.uniform(0.7, 1.4) * (0.5 if kind == "camera" else 1.0),
        "kbps": usual["kbps"] * rng.choice((0.5, 0.7, 1, 1.3)),
        "fps": usual["fps"] * rng.choice((1, 1, 1.5, 2)),
        "stun_s": usual["stun_s"] * rng.choice((1, 3, 10)),
        # what follows has no counterpart in a plain home; 0 is never
        "ipv6": float(home.ipv6 and rng.random() < (0.95 if people else 0.5)),
        "eapol_s": home.eapol_s,
        "lan_polls_s": rng.choice((0.0, 0.0, 0.0, 20.0, 60.0, 60.0, 300.0)),
        "pings_s": rng.choice((0.0, 0.0, 0.0, 0.0, 60.0, 600.0)),
        "notify_s": rng.choice((0.0, 0.0, 0.0, 600.0, 900.0, 1800.0)),
        "notify_frames": float(rng.randint(3, 14)),
        "group_s": rng.choice((0.0, 0.0, 0.0, 0.0, 12.0, 30.0)),
        "odd_s": rng.choice((0.0, 0.0, 0.0, 0.0, 0.0, 20.0)),
        "polled_s": home.polled_s if rng.random() < 0.5 else 0.0,
        "upnp": float(rng.random() < 0.4),
        "punches": float(rng.random() < 0.6),
        "updates": 0.2,
        "update_bytes": rng.choice((3e5, 1e6, 3e6, 6e6)) * rng.uniform(0.7, 1.3),
        "moves": 0.3,
        "new": float(rng.random() < 0.3),
        "lan_view_kbps": rng.choice((300, 600, 900, 1200)) * rng.uniform(0.8, 1.2),
        "swarms": float(kind == "pc" and rng.random() < 0.25),
        "vpn": float(people and rng.random() < 0.25),
    }
