"""Attacks that try not to be noticed: slow, irregular, hidden among other addresses, or answered like usual traffic.

A `Flood` or a `PortScan` says what an attacker does; its `packets` are what one device in its own network would then
send and get back. Who answers: closed ports answer RST, live hosts SYN and ACK; a scan of the Internet is mostly not
answered at all, and neither is a flood unless it says so. Equal attacks on equal hosts give equal packets. Nothing here
can send one. Attacks by whole connections are in `trainer.judge.evasive_sessions`, bytes are the knowledge of
`trainer.judge.evasive_frames`, and which attacks are tried is that of `trainer.judge.evasions`.
"""

import heapq
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal, Protocol

from trainer.data.frames import S
from trainer.judge import evasive_frames as frames
from trainer.judge.evasive_frames import ACK, ICMP, ICMP6, RST, SYN, TCP, UDP, Neighbourhood

Packet = tuple[int, int, bytes, bool]
"""Time in ns, length on the wire, captured bytes, and whether the attacker sent it (else it is an answer)."""

Macs = Literal["own", "router", "random"]
"""The source MAC of what the attacker sends: its own, its router's, or another one in each packet."""

FAR_NS, NEAR_NS = 40_000_000, 2_000_000
"""Time until an answer of a host outside, and of one in the same network, arrives."""

REFUSING, ACCEPTING = 0.05, 0.02
"""Shares of addresses of the Internet at which a scanned port is closed, or open; the others do not answer."""

OPEN_PORTS = frozenset({22, 53, 80})
"""Ports that are open on a host whose ports are all scanned."""

PORTS = 65_535


class Attacker(Protocol):
    """An attacker with one attack in mind; ``name`` is how tables call that."""

    @property
    def name(self) -> str:
        """The attack in a few words, different for different attacks."""

    def packets(self, around: Neighbourhood, start_ns: int) -> Iterator[Packet]:
        """Yield its packets and their answers in the order of time from ``start_ns`` on, mostly without an end."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The order in which packets follow one another: ``rate`` a second, evenly unless a ``shape`` is given.

    `random` has exponential gaps, `jittered` gaps of half to one and a half of the even one. `ramp` rises from nothing
    to ``rate`` within ``period_s`` and stays there. `bursts` send at ``rate`` for one second in each ``period_s``.
    """

    rate: float
    shape: Literal["even", "random", "jittered", "ramp", "bursts"] = "even"
    period_s: float = 60.0

    def times(self, rng: random.Random) -> Iterator[float]:
        """Yield seconds since the start, ascending."""
        if self.shape in ("random", "jittered"):
            t = 0.0
            while True:
                yield t
                t += rng.expovariate(self.rate) if self.shape == "random" else rng.uniform(0.5, 1.5) / self.rate
        for i in itertools.count():
            if self.shape == "ramp":  # the integral of the rate is the number sent
                whole = self.rate * self.period_s / 2
                yield (i / whole) ** 0.5 * self.period_s if i < whole else self.period_s + (i - whole) / self.rate
            elif self.shape == "bursts":
                burst, place = divmod(i, max(1, int(self.rate)))
                yield burst * self.period_s + place / self.rate
            else:
                yield i / self.rate

    def sustained(self, sent: int) -> float:
        """Return the rate of the attack once ``sent`` packets were sent.

        Of a ramp it is the rate that it has come up to, of bursts their mean over a period.

        >>> Pace(rate=100, shape="ramp", period_s=60).sustained(750), Pace(rate=120, shape="bursts").sustained(9)
        (50.0, 2.0)
        """
        if self.shape == "ramp":
            return self.rate * min(1.0, math.sqrt(sent / (self.rate * self.period_s / 2)))
        return max(1, int(self.rate)) / self.period_s if self.shape == "bursts" else self.rate

    def __str__(self) -> str:
        if self.shape == "ramp":
            return f"ramp to {self.rate:g}/s in {self.period_s / 60:g} min"
        if self.shape == "bursts":
            return f"{self.rate:g}/s for 1 s in {self.period_s:g} s"
        return f"{self.rate:g}/s{'' if self.shape == 'even' else f' {self.shape}'}"


@dataclass(frozen=True, kw_only=True)
class Flood:
    """Many packets to one target.

    ``size`` are bytes of payload; ``port`` that of the target. ``to`` is a host outside that the device never used
    (`new`), its own cloud host, or the router (`local`). ``sockets`` is `one`, or `many`: another source port in each
    packet. ``source`` is the source address: the device's own, or `any`, a false one in each packet. ``answers``: none,
    `each` packet is answered, or an `unreachable` host says so once a second.
    """

    pace: Pace
    protocol: Literal["udp", "ack", "syn", "icmp"] = "udp"
    size: int = 512
    port: int = 9307
    to: Literal["new", "cloud", "local"] = "new"
    sockets: Literal["one", "many"] = "one"
    macs: Macs = "own"
    source: Literal["own", "any"] = "own"
    version: Literal[4, 6] = 4
    answers: Literal["none", "each", "unreachable"] = "none"

    @property
    def name(self) -> str:
        """The attack in a few words."""
        return f"flood {_words(self)}"

    def packets(self, around: Neighbourhood, start_ns: int) -> Iterator[Packet]:
        """Yield packets and answers."""
        return in_order(self._groups(around, start_ns, rng_of(self)))

    def _groups(self, around: Neighbourhood, start_ns: int, rng: random.Random) -> Iterator[list[Packet]]:
        host, proto = around.host, {"udp": UDP, "icmp": ICMP if self.version == 4 else ICMP6}.get(self.protocol, TCP)
        flags = ACK if self.protocol == "ack" else SYN
        (to_mac, target), port = target_of(self.to, around, self.version, self.port)
        own = host.ip if self.version == 4 else around.ipv6
        wait = NEAR_NS if self.to == "local" else FAR_NS
        fixed = self.sockets == "one" and self.macs != "random" and self.source == "own"
        frame, unreachable_ns = (0, b""), start_ns
        for seconds in self.pace.times(rng):
            t_ns = start_ns + int(seconds * S)
            sport = 33_000 if self.sockets == "one" else rng.randrange(1024, 65_536)
            source = own if self.source == "own" else _public(rng, self.version)
            if not fixed or not frame[0]:
                macs, ends = (_mac(self.macs, host.mac, host.router, rng), to_mac), (source, target)
                frame = frames.ip_frame(macs, ends, proto, (sport, port), flags=flags, size=self.size)
            group: list[Packet] = [(t_ns, *frame, True)]
            back = (to_mac, host.mac), (target, source), proto, (port, sport)
            if self.answers == "each":
                size = self.size if proto in (ICMP, ICMP6) else 0 if proto == TCP else 120
                answer = frames.ip_frame(*back, flags=RST if flags == ACK else SYN | ACK, size=size, reply=True)
                group.append((t_ns + wait, *answer, False))
            elif self.answers == "unreachable" and t_ns >= unreachable_ns:
                unreachable_ns = t_ns + S
                group.append((t_ns + wait, *frames.unreachable(back[0], back[1], frame[1]), False))
            yield group


@dataclass(frozen=True, kw_only=True)
class PortScan:
    """A few packets to each of many targets.

    ``targets`` are random addresses of the `internet`, those of the device's own network (`local`, whose absent hosts
    are only asked for by ARP), or all `ports` of one local host, in random order from one socket, as nmap does.
    ``port`` is the target's; 0 is another one at each target. ``answers``: `usual` as hosts and the Internet answer, or
    `all`.
    """

    pace: Pace
    protocol: Literal["tcp", "udp", "icmp"] = "tcp"
    port: int = 23
    targets: Literal["internet", "local", "ports"] = "internet"
    macs: Macs = "own"
    version: Literal[4, 6] = 4
    answers: Literal["usual", "all"] = "usual"

    @property
    def name(self) -> str:
        """The attack in a few words."""
        return f"scan {_words(self)}"

    def packets(self, around: Neighbourhood, start_ns: int) -> Iterator[Packet]:
        """Yield packets and answers; all ports of a host have an end."""
        return in_order(self._groups(around, start_ns, rng_of(self)))

    def _groups(self, around: Neighbourhood, start_ns: int, rng: random.Random) -> Iterator[list[Packet]]:
        host, times = around.host, self.pace.times(rng)
        live = {ip: mac for mac, ip in around.local}
        router = around.local[0] if around.local else (host.router, host.ip[:3] + b"\x01")
        if self.targets == "ports":
            for port in rng.sample(range(1, PORTS + 1), PORTS):
                yield self._probe(around, start_ns + int(next(times) * S), router, port, rng, port in OPEN_PORTS)
            return
        for i in itertools.count():
            t_ns = start_ns + int(next(times) * S)
            port = self.port or rng.randrange(1, PORTS + 1)
            if self.targets == "internet":
                target = _public(rng, self.version)
                draw = 0.0 if self.answers == "all" else rng.random()
                opened = None if draw >= REFUSING + ACCEPTING else draw < ACCEPTING
                yield self._probe(around, t_ns, (host.router, target), port, rng, opened)
                continue
            target = host.ip[:3] + bytes([1 + i % 254])
            if target == host.ip:
                continue
            ask = frames.arp_request(_mac(self.macs, host.mac, host.router, rng), host.ip, target)
            group: list[Packet] = [(t_ns, *ask, True)]
            if (mac := live.get(target)) is not None:
                group.append((t_ns + NEAR_NS, *frames.arp_reply(mac, target, host.mac, host.ip), False))
                group += self._probe(around, t_ns + 2 * NEAR_NS, (mac, target), port, rng, self.answers == "all")
            yield group

    def _probe(
        self,
        around: Neighbourhood,
        t_ns: int,
        to: tuple[bytes, bytes],
        port: int,
        rng: random.Random,
        opened: bool | None,
    ) -> list[Packet]:
        """Return a probe of MAC and address ``to`` and what follows: the port is open, closed, or (None) silent."""
        host, (to_mac, target) = around.host, to
        proto = {"tcp": TCP, "udp": UDP}.get(self.protocol, ICMP if self.version == 4 else ICMP6)
        source, wait = host.ip if self.version == 4 else around.ipv6, NEAR_NS if self.targets != "internet" else FAR_NS
        sport = 41_000 if self.targets == "ports" else rng.randrange(32_768, 61_000)
        ends = (source, target)
        out = ((_mac(self.macs, host.mac, host.router, rng), to_mac), ends, proto, (sport, port))
        back = ((to_mac, host.mac), ends[::-1], proto, (port, sport))
        size = 56 if proto in (ICMP, ICMP6) else 0 if proto == TCP else 20
        probe = frames.ip_frame(*out, size=size)
        group: list[Packet] = [(t_ns, *probe, True)]
        if opened is None:
            return group
        if proto == UDP and not opened:
            return [*group, (t_ns + wait, *frames.unreachable(back[0], back[1], probe[1]), False)]
        if proto != TCP:
            return [*group, (t_ns + wait, *frames.ip_frame(*back, size=56, reply=True), False)]
        answer = frames.ip_frame(*back, flags=SYN | ACK if opened else RST | ACK)
        group.append((t_ns + wait, *answer, False))
        if opened:
            group.append((t_ns + wait + 100_000, *frames.ip_frame(*out, flags=RST), True))
        return group


def _words(attack: Flood | PortScan) -> str:
    """Return the pace of an attack and what differs from its defaults."""
    parts = [str(attack.pace)]
    for f in fields(attack):
        value = getattr(attack, f.name)
        if f.name != "pace" and value != f.default:
            parts.append(str(value) if f.name == "protocol" else f"{f.name} {value}")
    return ", ".join(parts)


def rng_of(attack: object) -> random.Random:
    """Return random numbers of an attack's own, the same in every process."""
    return random.Random(repr(attack))


def in_order(groups: Iterator[list[Packet]]) -> Iterator[Packet]:
    """Yield packets of groups, which begin in the order of time and may overlap, in the order of time."""
    waiting: list[Packet] = []
    for group in groups:
        while waiting and waiting[0][0] <= group[0][0]:
            yield heapq.heappop(waiting)
        yield group[0]
        for packet in group[1:]:
            heapq.heappush(waiting, packet)
    yield from sorted(waiting)


def _mac(macs: Macs, own: bytes, router: bytes, rng: random.Random) -> bytes:
    if macs == "random":
        return b"\x02" + rng.randbytes(5)
    return own if macs == "own" else router


def _public(rng: random.Random, version: int) -> bytes:
    """Return a random address of the Internet: for IPv6 in the prefix for documentation, outside the device's own."""
    if version == 6:
        return bytes.fromhex("20010db8") + bytes([0x80 | rng.randrange(128)]) + rng.randbytes(11)
    return rng.randrange(0x0B000000, 0x7F000000).to_bytes(4, "big")


def target_of(to: str, around: Neighbourhood, version: int, port: int) -> tuple[tuple[bytes, bytes], int]:
    """Return MAC, address and port of a target; a device without cloud host or neighbours gets a host outside."""
    router = around.host.router
    if version == 6:
        return (router, bytes.fromhex("20010db8ff") + bytes(10) + b"\x09"), port
    if to == "cloud" and around.cloud is not None:
        address, _, own_port = around.cloud
        return (router, address), own_port
    if to == "local" and around.local:
        return around.local[0], port
    return (router, bytes([203, 0, 113, 9])), port
