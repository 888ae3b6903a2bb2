"""The kernel's twin in plain Python: the published update rules word for word, and a decoder of its own.

It shares nothing with the kernel but the column order and the flag bits. ``number`` chooses the arithmetic: float is
what the published extractor does, noise included, and what benchmarks compare with; Decimal (45 digits) has no noise,
so that the kernel's stable form can be held to a tight tolerance.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Context, Decimal, localcontext
from typing import Any

from edge_agent.capture.features import ARP, FRAGMENT, ICMP_QUOTED, NEW_PEER, NEW_SOCKET, PORTS, TRUNCATED

Number = Any  # float or Decimal
Frame = tuple[int, int, bytes]

DECAYS = ("5", "3", "1", "0.1", "0.01")
SLOW = 3, 4  # positions in DECAYS
LOGINS = {21, 22, 23, 2222, 2323, 3389, 5900}
EXACT = Context(prec=45, Emax=999_999_999, Emin=-999_999_999)


# ---- decoding ----


@dataclass
class Packet:
    t_ns: int
    length: int
    src_mac: int = 0
    dst_mac: int = 0
    version: int = 0
    src: bytes = b""
    dst: bytes = b""
    sport: int = 0
    dport: int = 0
    protocol: str = ""  # which kind of ports identifies its socket: "ports", "icmp", "arp" or ""
    ethertype: int = 0
    proto: int = 0
    tcp_flags: int = 0
    flags: int = 0
    unanswered: tuple[Number, ...] = ()  # beside the columns, at each of SLOW
    answers: Number = 0
    opened: Number = 0


class Unreadable(Exception):
    """The rest of the frame cannot be read."""


def cut(data: bytes, start: int, length: int) -> bytes:
    if len(data) < start + length:
        raise Unreadable
    return data[start : start + length]


def number_at(data: bytes, start: int, length: int = 2) -> int:
    return int.from_bytes(cut(data, start, length), "big")


LINK_HEADERS = {1: 14, 113: 16, 276: 20, 12: 0, 14: 0, 101: 0, 228: 0, 229: 0}
"""Link type -> bytes of its header; 0 for raw IP. Others are not read."""


def decode(frame: Frame, linktype: int) -> Packet | None:
    """Return the packet in a frame; None if its link header is cut. KeyError for an unknown link type."""
    t_ns, length, data = frame
    p = Packet(t_ns, length)
    header = LINK_HEADERS[linktype]
    if len(data) < header:
        return None
    if linktype == 1:
        p.dst_mac, p.src_mac, ethertype = number_at(data, 0, 6), number_at(data, 6, 6), number_at(data, 12)
    elif linktype == 113:
        p.src_mac = number_at(data, 6, 6) if number_at(data, 4) == 6 else 0
        ethertype = number_at(data, 14)
    elif linktype == 276:
        p.src_mac = number_at(data, 12, 6) if data[11] == 6 else 0
        ethertype = number_at(data, 0)
    else:
        ethertype = 0x86DD if data[:1] and data[0] >> 4 == 6 else 0x0800
    p.src, p.dst = p.src_mac.to_bytes(6, "big"), p.dst_mac.to_bytes(6, "big")
    try:
        network(p, data[header:], ethertype)
    except Unreadable:
        p.flags |= TRUNCATED
    return p


def network(p: Packet, data: bytes, ethertype: int) -> None:
    for _ in range(8):
        p.ethertype = ethertype
        if ethertype == 0x0800:
            return ipv4(p, data)
        if ethertype == 0x86DD:
            return ipv6(p, data)
        if ethertype == 0x0806:
            return arp(p, data)
        if ethertype in (0x8100, 0x88A8, 0x9100):
            ethertype = number_at(data, 2)
            data = data[4:]
        elif ethertype == 0x8864:
            short = number_at(data, 6, 1) & 1
            ppp = number_at(data, 6, 1 if short else 2)
            data = data[7 if short else 8 :]
            if ppp not in (0x21, 0x57):
                return None
            ethertype = 0x0800 if ppp == 0x21 else 0x86DD
        elif ethertype < 0x600 and data[:3] == b"\xaa\xaa\x03":
            organisation, ethertype = number_at(data, 3, 3), number_at(data, 6)
            if organisation or ethertype < 0x600:
                return None
            data = data[8:]
        else:
            return None
    raise Unreadable


def arp(p: Packet, data: bytes) -> None:
    p.flags |= ARP
    p.protocol = "arp"
    if cut(data, 0, 8)[2:6] != b"\x08\x00\x06\x04":
        raise Unreadable
    cut(data, 0, 28)
    p.version, p.src, p.dst = 4, data[14:18], data[24:28]


def ipv4(p: Packet, data: bytes) -> None:
    if cut(data, 0, 20)[0] >> 4 != 4:
        raise Unreadable
    p.version, p.proto, p.src, p.dst = 4, data[9], data[12:16], data[16:20]
    header, total, fragment = (data[0] & 15) * 4, number_at(data, 2), number_at(data, 6)
    if header < 20 or 0 < total < header:
        raise Unreadable
    if total:
        data = data[:total]
    if fragment & 0x3FFF:
        p.flags |= FRAGMENT
    if fragment & 0x1FFF == 0:
        cut(data, 0, header)
        transport(p, data[header:])


def ipv6(p: Packet, data: bytes) -> None:
    if cut(data, 0, 40)[0] >> 4 != 6:
        raise Unreadable
    p.version, p.src, p.dst, p.proto = 6, data[8:24], data[24:40], data[6]
    length, data = number_at(data, 4), data[40:]
    if length:
        data = data[:length]
    later = False
    for proto, rest, fragment, is_later in extensions(p.proto, data):
        p.proto, data, later = proto, rest, is_later
        if fragment:
            p.flags |= FRAGMENT
    if not later:
        transport(p, data)


def extensions(proto: int, data: bytes) -> Iterable[tuple[int, bytes, bool, bool]]:
    """Yield (protocol, rest, fragmented, not the first fragment) after each extension header."""
    for _ in range(16):
        if proto in (0, 43, 60, 135, 139, 140):
            length = (number_at(data, 1, 1) + 1) * 8
        elif proto == 51:
            length = (number_at(data, 1, 1) + 2) * 4
        elif proto == 44:
            length = 8
        else:
            return
        cut(data, 0, 8)
        fragment = number_at(data, 2) if proto == 44 else 0
        proto = data[0]
        if fragment & 0xFFF8:
            yield proto, data[8:], True, True
            return
        rest = data[length:]
        yield proto, rest, bool(fragment & 0xFFF9), False
        cut(data, 0, length)
        data = rest
    raise Unreadable


def transport(p: Packet, data: bytes) -> None:
    if p.proto in (6, 17):
        p.sport, p.dport = number_at(data, 0), number_at(data, 2)
        p.protocol = "ports"
        p.flags |= PORTS
        if p.proto == 6:
            p.tcp_flags = number_at(data, 13, 1)
    elif p.proto == 1 and p.version == 4:
        p.protocol = "icmp"
        if number_at(data, 0, 1) in (3, 4, 5, 11, 12):
            quoted4(p, data[8:])
    elif p.proto == 58 and p.version == 6 and number_at(data, 0, 1) in (1, 2, 3, 4):
        quoted6(p, data[8:])


def quoted4(p: Packet, data: bytes) -> None:
    header = (cut(data, 0, 20)[0] & 15) * 4
    if data[0] >> 4 != 4 or header < 20:
        raise Unreadable
    cut(data, 0, header)
    if number_at(data, 6) & 0x1FFF == 0:
        quoted_ports(p, data[9], data[header:])


def quoted6(p: Packet, data: bytes) -> None:
    if cut(data, 0, 40)[0] >> 4 != 6:
        raise Unreadable
    proto, data, later = data[6], data[40:], False
    for proto, data, _, later in extensions(proto, data):  # noqa: B007, B020 - the last ones count
        pass
    if not later:
        quoted_ports(p, proto, data)


def quoted_ports(p: Packet, proto: int, data: bytes) -> None:
    if proto in (6, 17):
        ports = cut(data, 0, 4)
        p.sport, p.dport = number_at(ports, 0), number_at(ports, 2)
        p.protocol = "ports"
        p.flags |= PORTS | ICMP_QUOTED


# ---- statistics, as published ----


class Damped:
    """A one-dimensional statistic of one decay."""

    def __init__(self, zero: Number) -> None:
        self.w = self.ls = self.ss = self.residual = zero
        self.tl: Number = zero
        self.seen: Number = None  # time of the last packet of this direction

    def decay(self, factor: Number) -> None:
        self.w *= factor
        self.ls *= factor
        self.ss *= factor

    def add(self, v: Number) -> None:
        self.w += 1
        self.ls += v
        self.ss += v * v

    def mean(self) -> Number:
        return self.ls / self.w

    def var(self) -> Number:
        mean = self.mean()
        var = abs(self.ss / self.w - mean * mean)
        if isinstance(var, Decimal) and var < Decimal("1e-30") * mean * mean:
            return Decimal(0)  # what 45 digits leave of a constant
        return var


class Joint:
    """The state of one decay that a direction and its reverse share."""

    def __init__(self, zero: Number) -> None:
        self.cf3 = self.c = zero


@dataclass
class Device:
    damped: list[Damped]
    peers: list[Number]
    sockets: list[Number]
    t: Number
    seen: dict[Any, tuple[int, bool]] = field(default_factory=dict)
    heard: bool = False  # some packet of it was answered

    def visit(self, key: Any, t_ns: int) -> bool:
        """Return True if the key is new. Time is in 10 minutes modulo 14 days, of which one is for steps back."""
        now = t_ns // (600 * 10**9)
        then, known = self.seen.get(key, (None, False))
        idle = 0 if then is None or (now - then) % 2048 > 2047 - 144 else (now - then) % 2048
        if then is None or idle >= 7 * 144:
            self.seen[key] = (now, False)
            return True
        if known or idle >= 2:
            self.seen[key] = (now, True)
        return False


class Twin:
    """Rows of 140 values, from the first packet on."""

    def __init__(self, number: type = float, *, jitter: str = "clean", float_time: bool = False) -> None:
        self.number = number
        self.zero = number(0)
        self.decays = [number(decay) for decay in DECAYS]
        self.compat = jitter == "compat"
        self.float_time = float_time
        self.streams: dict[Any, list[Damped]] = defaultdict(lambda: [Damped(self.zero) for _ in DECAYS])
        self.joints: dict[Any, list[Joint]] = defaultdict(lambda: [Joint(self.zero) for _ in DECAYS])
        self.used: set[Any] = set()  # directions of pairs and sockets that had a packet
        self.devices: dict[int, Device] = {}
        self.tried: dict[Any, list[tuple[Number, int]]] = defaultdict(list)  # when what was opened, and its port
        self.newest: dict[Any, Number] = {}  # the latest time of a pair, and of a device
        self.factors: dict[tuple[Number, Number], Number] = {}

    def rows(
        self, frames: Iterable[Frame], linktype: int = 1
    ) -> tuple[list[list[Number]], list[Packet], list[list[bool]]]:
        """Return rows, packets, and for each row if its ten pcc (HH, HpHp) are more than noise (both std > 1e-3)."""
        rows, packets, trusted = [], [], []
        with localcontext(EXACT):
            for frame in frames:
                packet = decode(frame, linktype)
                if packet is not None:
                    row, trust = self.row(packet)
                    rows.append(row)
                    packets.append(packet)
                    trusted.append(trust)
        return rows, packets, trusted

    def seconds(self, t_ns: int) -> Number:
        if self.float_time:
            return t_ns // 10**9 + t_ns % 10**9 / 1e9
        return Decimal(t_ns) / 10**9 if self.number is Decimal else t_ns  # float: ns until a gap is taken

    def gap(self, later: Number, earlier: Number) -> Number:
        if self.float_time or self.number is Decimal:
            return later - earlier
        return (later - earlier) / 1e9

    def factor(self, decay: Number, gap: Number) -> Number:
        if self.number is float:
            return 2 ** (-decay * gap)
        if (decay, gap) not in self.factors:  # 45 digits cost 100 µs
            self.factors[decay, gap] = 2 ** (-decay * gap)
        return self.factors[decay, gap]

    def row(self, p: Packet) -> tuple[list[Number], list[bool]]:
        t, v = self.seconds(p.t_ns), self.number(p.length)
        address = (p.version, p.src)
        there, back = (p.version, p.src, p.dst), (p.version, p.dst, p.src)
        socket: Any
        socket_back: Any
        if p.protocol == "arp":
            socket, socket_back = ("arp", p.src_mac, p.dst_mac), ("arp", p.dst_mac, p.src_mac)
        else:
            socket = (p.protocol, *there, p.sport, p.dport)
            socket_back = (p.protocol, *back, p.dport, p.sport)
        self.open(p, ("HH", there), ("HH", back), ("HpHp", socket), ("HpHp", socket_back))
        row: list[Number] = []
        trusted: list[bool] = []
        row += self.one(("MI", p.src_mac, address), t, v)
        row += self.one(("H", address), t, v)
        row += self.two("HH", there, back, t, v, trusted)
        row += self.jitter(("jit", there), t)
        row += self.two("HpHp", socket, socket_back, t, v, trusted)
        row += self.device(p, t, v)
        self.tell(p, t, there, back)
        return row, trusted

    def one(self, key: Any, t: Number, v: Number) -> list[Number]:
        out = []
        for decay, s in zip(self.decays, self.streams[key], strict=True):
            if t > s.tl:
                s.decay(self.factor(decay, self.gap(t, s.tl)))
                s.tl = t
            s.add(v)
            out += [s.w, s.mean(), s.var()]
        return out

    def jitter(self, key: Any, t: Number) -> list[Number]:
        first = self.streams[key][0]
        starts = first.w == 0 and not self.compat
        return self.one(key, t, self.zero if starts else max(self.zero, self.gap(t, first.tl)))

    def decay_2d(self, x: Damped, joint: Joint, decay: Number, t: Number) -> None:
        d1, d2, g = self.gap(t, x.tl), self.gap(x.tl, joint.c), 1
        if d1 > 0:
            f = self.factor(decay, d1)
            x.decay(f)
            x.residual *= f
            g = f if d2 == 0 else 1 if joint.c > t else self.factor(decay, self.gap(t, joint.c))
            x.tl = t
        joint.cf3 *= g
        if d2 > 0:
            joint.c = t

    def two(self, name: str, key: Any, reverse: Any, t: Number, v: Number, trusted: list[bool]) -> list[Number]:
        forward, backward = self.streams[name, key], self.streams[name, reverse]
        joints = self.joints[name, frozenset((key, reverse))]
        out: list[Number] = []
        for decay, s, r, joint in zip(self.decays, forward, backward, joints, strict=True):
            self.decay_2d(r, joint, decay, t)
            self.decay_2d(s, joint, decay, t)
            s.add(v)
            s.seen = t if s.seen is None else max(t, s.seen)
            s.residual = v - s.mean()
            joint.cf3 += s.residual * r.residual
            std = self.root(s.var())
            out += [s.w, s.mean(), std]
            if self.present(r, decay, t):
                std_r = self.root(r.var())
                covariance = joint.cf3 / ((s.w + r.w) / 2)
                product = std * std_r
                out += [self.root(s.mean() ** 2 + r.mean() ** 2), self.root(s.var() ** 2 + r.var() ** 2)]
                out += [covariance, covariance / product if product else self.zero]
                trusted.append(std > 1e-3 and std_r > 1e-3)
            else:
                out += [s.mean(), s.var(), self.zero, self.zero]
                trusted.append(True)
        return out

    def present(self, r: Damped, decay: Number, t: Number) -> bool:
        if self.number is float:
            return bool(r.w != 0)
        return r.seen is not None and decay * self.gap(t, r.seen) <= 1075

    def root(self, x: Number) -> Number:
        return x.sqrt() if isinstance(x, Decimal) else x**0.5

    # ---- devices: not published, but added by botwatch ----

    def open(self, p: Packet, pair: Any, pair_back: Any, socket: Any, socket_back: Any) -> None:
        """Set the flags for the peer and socket that the packet opens; must be called before the streams change."""
        if p.src_mac not in self.devices:
            zeros = [self.zero] * len(DECAYS)
            damped = [Damped(self.zero) for _ in DECAYS]
            self.devices[p.src_mac] = Device(damped, list(zeros), list(zeros), self.zero)
        device = self.devices[p.src_mac]
        device.heard |= pair_back in self.used
        if device.visit(pair, p.t_ns) and pair_back not in self.used:
            p.flags |= NEW_PEER
        if (
            p.protocol == "ports"
            and not p.flags & ICMP_QUOTED
            and device.visit(socket, p.t_ns)
            and socket_back not in self.used
        ):
            p.flags |= NEW_SOCKET
        self.used |= {pair, socket}

    def device(self, p: Packet, t: Number, v: Number) -> list[Number]:
        device = self.devices[p.src_mac]
        out: list[Number] = []
        for i, (decay, s) in enumerate(zip(self.decays, device.damped, strict=True)):
            if t > s.tl:
                f = self.factor(decay, self.gap(t, s.tl))
                s.decay(f)
                device.peers[i] *= f
                device.sockets[i] *= f
                s.tl = t
            s.add(v)
            device.peers[i] += bool(p.flags & NEW_PEER)
            device.sockets[i] += bool(p.flags & NEW_SOCKET)
            out += [s.w, s.mean(), s.var(), device.peers[i], device.sockets[i]]
        return out

    # ---- beside the columns ----

    def tell(self, p: Packet, t: Number, there: Any, back: Any) -> None:
        """Set what the packet's sender sent in vain and newly tried; must be called after its streams have changed."""
        pair, pinging = frozenset((there, back)), ("ping", p.src_mac)
        arp, error = p.flags & ARP, p.flags & ICMP_QUOTED
        pings = p.version == 4 and p.proto == 1 and not arp and not error
        for clock in (pair, pinging) if pings else (pair,):
            self.newest[clock] = max(self.newest.get(clock, t), t)
        if error:
            self.tried["error", there].append((self.newest[pair], 0))
        answers = [self.answered(i, t, there, back, self.newest[pair]) for i in SLOW]
        p.unanswered, p.answers, p.opened = (self.zero, self.zero), answers[-1], self.zero
        group = p.dst_mac >> 40 & 1 or (p.version and p.dst[0] >= (224 if p.version == 4 else 255))
        if self.devices[p.src_mac].heard and p.version and not arp and not error and not group:
            weights = [self.streams["HH", there][i].w for i in SLOW]
            p.unanswered = tuple(max(self.zero, w - 200 * a) for w, a in zip(weights, answers, strict=True))
        if p.proto == 6 and p.flags & PORTS:
            cell = (there, "login" if p.dport in LOGINS else "other")
            if p.flags & NEW_SOCKET and p.tcp_flags & 0x12 == 2:
                last = self.tried[cell][-1][1] if self.tried[cell] else 0  # nobody tries port 0 first
                if cell[1] == "login" or last != p.dport:
                    self.tried[cell].append((self.newest[pair], p.dport))
            p.opened = self.damped(cell, 4, self.newest[pair])
        elif pings:
            if p.flags & NEW_PEER:
                self.tried[pinging].append((self.newest[pinging], 0))
            p.opened = self.damped(pinging, 4, self.newest[pinging])

    def answered(self, i: int, t: Number, there: Any, back: Any, now: Number) -> Number:
        reverse = self.streams["HH", back][i]
        weight = reverse.w if there == back or self.present(reverse, self.decays[i], t) else self.zero
        return max(self.zero, weight - self.damped(("error", back), i, now))

    def damped(self, cell: Any, i: int, now: Number) -> Number:
        kept = (self.factor(self.decays[i], self.gap(now, then)) for then, _ in self.tried[cell])
        return sum(kept, self.zero)
