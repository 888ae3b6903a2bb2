"""A device on its LAN during one capture: its random numbers, its clocks, and its single packets."""

import random
import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from trainer.traffic.home import ANY, BROADCAST, CloudHost, DeviceProfile, multicast_mac
from trainer.traffic.messages import arp_frame, icmp_message, ip_frame
from trainer.traffic.plan import DAY, HOUR, SECOND
from trainer.traffic.tape import Tape
from trainer.traffic.wire import ICMP, IGMP, UDP, internet_checksum

EVENINGS = (1, 1, 0, 0, 0, 1, 4, 8, 7, 4, 3, 3, 4, 3, 3, 4, 6, 9, 10, 10, 9, 8, 5, 2)
VISITS = (0, 0, 0, 0, 0, 0, 1, 4, 6, 7, 8, 9, 8, 7, 7, 8, 9, 9, 8, 6, 3, 2, 1, 0)
"""Relative frequency of events by hour of the day: actions of the people of a house, and visits at its door."""


class Station:
    """One device from `begin` to `end` (µs), as seen on the LAN side of the router."""

    def __init__(self, device: DeviceProfile, begin: int, end: int, chance: str) -> None:
        self.device, self.home, self.begin, self.end = device, device.home, begin, end
        self.rng = random.Random(chance)
        self.bulk = np.random.default_rng(zlib.crc32(chance.encode()) | self.rng.getrandbits(64) << 32)
        self.tape = Tape()
        self.ident = self.rng.getrandbits(16)
        self.port = self.rng.randrange(32768, 60000) if device.linux else self.rng.randrange(49152, 60000)
        self.clock_base = self.rng.getrandbits(31)
        self.known: dict[str, tuple[int, int]] = {}
        """Name of a host -> when it was last asked for (µs), and its address then."""
        self.moved: dict[str, tuple[int, CloudHost]] = {}
        """Role -> the host that has taken it over, and since when (µs): vendors move."""

    # -- single packets

    def wifi(self) -> int:
        """Return a delay from the router to the device and back, µs: radio, sleep, retries."""
        ms = self.device.traits["wifi_ms"] * self.rng.lognormvariate(0, 0.35)
        return int(1000 * (ms + (self.rng.uniform(10, 90) if self.rng.random() < 0.01 else 0)))

    def rtt(self, host: CloudHost) -> int:
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
        ipv6: bool = False,
    ) -> None:
        """Add one datagram, from the device if `up`. `mac` is the peer's if the peer is not behind the router."""
        device = self.device
        other = mac or (multicast_mac(peer) if peer >> 28 == 14 else self.home.router_mac)
        size = max(size, len(head))
        source = ANY if dport == 67 and peer == BROADCAST else device.ip
        if up:
            hops = 255 if peer >> 28 == 14 else 64
            addresses = (other, device.mac, UDP, source, peer, sport, dport, size, hops, self.next_ident())
        else:
            addresses = (device.mac, other, UDP, peer, device.ip, sport, dport, size, ttl, self.rng.getrandbits(16))
        self.tape.row((t, *addresses, int(device.linux), 0, 0, 0, 0, 0, 0, 0, 0, int(ipv6)), head)

    def resolve_router(self, t: int) -> int:
        """Let the device resolve the router's address; return the time after the answer."""
        d, h = self.device, self.home
        self.tape.raw(t, arp_frame(1, d.mac, d.ip, 0, h.router))
        self.tape.raw(t + 180, arp_frame(2, h.router_mac, h.router, d.mac, d.ip))
        return t + 400

    def be_resolved(self, t: int) -> None:
        """Let the router (or the phone) resolve the device's address."""
        d, h = self.device, self.home
        mac, ip = (h.router_mac, h.router) if self.rng.random() < 0.85 else (h.phone_mac, h.phone)
        self.tape.raw(t, arp_frame(1, mac, ip, 0, d.ip))
        self.tape.raw(t + self.wifi(), arp_frame(2, d.mac, d.ip, mac, ip))

    def igmp(self, t: int, group: int) -> None:
        """Let the device join, or confirm, a multicast group."""
        body = struct.pack(">BBHI", 0x16, 0, 0, group)
        body = body[:2] + struct.pack(">H", internet_checksum(body)) + body[4:]
        mac, alert = multicast_mac(group), b"\x94\x04\x00\x00"
        self.tape.raw(t, ip_frame(self.device.mac, mac, self.device.ip, group, IGMP, 1, body, alert))

    def ping(self, t: int) -> None:
        """Send three echo requests to the router, as some firmware does before anything else."""
        d, h, ident = self.device, self.home, self.rng.getrandbits(16)
        for n in range(3):
            body = struct.pack(">HH", ident, n) + bytes(56)
            self.tape.raw(t, ip_frame(d.mac, h.router_mac, d.ip, h.router, ICMP, 64, icmp_message(8, 0, body)))
            back = t + self.rng.randrange(150, 600)
            self.tape.raw(back, ip_frame(h.router_mac, d.mac, h.router, d.ip, ICMP, 64, icmp_message(0, 0, body)))
            t += self.period(1.0)

    def every(self, begin: int, end: int, seconds: float, jitter: float = 0.02, first: float = 1.0) -> Iterator[int]:
        """Yield the times of a periodic event."""
        t = begin + self.period(seconds * first * self.rng.uniform(0.1, 1.0), 0.0)
        while t < end:
            yield t
            t += self.period(seconds, jitter)

    def happenings(self, begin: int, end: int, per_day: float, hours: Sequence[int] = EVENINGS) -> list[int]:
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
