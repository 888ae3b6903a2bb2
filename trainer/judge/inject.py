"""An attack capture carried over into a device's day: as if that device, and not the one it was captured from, did it.

Knows where addresses stand in a frame and whose they become; what is detected in the result is `evaluate`'s business.
Checksums are left as they are, no feature looks at them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from edge_agent.contract import networks
from edge_agent.contract.captures import Capture, mac_text, parse_mac

S = 1_000_000_000

Frame = tuple[int, int, bytes]
"""Time in ns, length on the wire, captured bytes from the Ethernet header on."""

ETHERNET = 1


class InjectError(Exception):
    """Captures that cannot be put together; the message names the file and why."""


@dataclass(frozen=True)
class InsideHost:
    """A device in its own network: MAC, IPv4 address (4 bytes) and the MAC of its router."""

    mac: bytes
    ip: bytes
    router: bytes


@dataclass(frozen=True)
class AttackCapture:
    """The frames of an attack, from its first on: the attacker's and, with the same other end, those to it."""

    frames: tuple[Frame, ...]
    host: InsideHost
    victim: bool  # seen from the other side: ``host`` is who is attacked
    server: str = ""  # the only other end, where the manifest names it

    def sent(self) -> list[int]:
        """Numbers of the frames that attack: sent by the attacker, or to the victim."""
        end = slice(0, 6) if self.victim else slice(6, 12)
        return [i for i, (_, _, data) in enumerate(self.frames) if data[end] == self.host.mac]


def read(path: Path) -> list[Frame]:
    """Every frame of a pcap or pcapng file; InjectError when it is neither, or not of Ethernet."""
    from scapy.error import Scapy_Exception
    from scapy.utils import RawPcapNgReader, RawPcapReader

    frames: list[Frame] = []
    try:
        with RawPcapReader(str(path)) as reader:
            if isinstance(reader, RawPcapNgReader):
                for data, block in reader:
                    meta: Any = block
                    link = meta.linktype
                    t_ns = ((meta.tshigh << 32) + meta.tslow) * S // int(meta.tsresol)
                    frames.append((t_ns, meta.wirelen, bytes(data)))
            else:
                link, unit = reader.linktype, 1 if reader.nano else 1000
                for data, meta in reader:
                    frames.append((meta.sec * S + meta.usec * unit, meta.wirelen, bytes(data)))
    except (Scapy_Exception, OSError, EOFError) as error:
        raise InjectError(f"{path}: not a capture: {error}") from error
    if not frames:
        raise InjectError(f"{path}: holds no frame")
    if link != ETHERNET:
        raise InjectError(f"{path}: is of link layer {link}, only Ethernet ({ETHERNET}) can be carried over")
    return frames


def host(frames: Sequence[Frame], mac: str, name: object) -> InsideHost:
    """Whose MAC that is: its most used IPv4 address, and the MAC it sends most of its unicast frames to."""
    own, addresses, routers = parse_mac(mac).to_bytes(6, "big"), Counter[bytes](), Counter[bytes]()
    for _, _, data in frames:
        if data[6:12] == own:
            if (at := _ipv4(data)) is not None:
                addresses[data[at + 12 : at + 16]] += 1
            if not data[0] & 1:
                routers[data[:6]] += 1
    addresses.pop(bytes(4), None)
    if not addresses or not routers:
        raise InjectError(f"{name}: {mac} sends no IPv4 packet to anybody in it")
    private = [a for a, _ in addresses.most_common() if _local(a)]
    return InsideHost(own, private[0] if private else addresses.most_common(1)[0][0], routers.most_common(1)[0][0])


def attack(frames: Sequence[Frame], capture: Capture) -> AttackCapture:
    """The attack of a capture whose manifest names the attacker's MAC; without a span, all of it is the attack.

    Frames from remote addresses to one local one through that MAC show the victim's side: it is a router then.
    """
    if capture.mac is None:
        raise InjectError(f"{capture.file}: the manifest names no mac: who attacks is not known")
    own = parse_mac(capture.mac).to_bytes(6, "big")
    span = (capture.attack.start_ns, capture.attack.end_ns) if capture.attack else (frames[0][0], frames[-1][0])
    inside = [f for f in frames if span[0] <= f[0] <= span[1] and own in (f[2][:6], f[2][6:12])]
    server = (capture.attack.server if capture.attack else None) or ""
    if server:
        inside = [f for f in inside if IPv4Address(server).packed in _ends(f[2])]
    sent = [f for f in inside if f[2][6:12] == own]
    if not sent:
        raise InjectError(f"{capture.file}: {capture.mac} sends nothing in the attack")
    ends = Counter[tuple[bytes, bytes]]()
    for _, _, data in sent:
        if (at := _ipv4(data)) is not None:
            ends[data[at + 16 : at + 20], data[:6]] += 1
    (target, target_mac), count = ends.most_common(1)[0] if ends else ((b"", b""), 0)
    sources = {data[at + 12 : at + 16] for _, _, data in sent if (at := _ipv4(data)) is not None}
    remote = sum(not _local(a) for a in sources)
    if not server and count > len(sent) / 2 and _local(target) and remote > len(sources) / 2:
        return AttackCapture(tuple(inside), InsideHost(target_mac, target, own), victim=True)
    return AttackCapture(tuple(inside), host(sent, mac_text(parse_mac(capture.mac)), capture.file), False, server)


def carried(
    source: AttackCapture, to: InsideHost, start_ns: int, rate: float | None = None, most: int | None = None
) -> list[Frame]:
    """``source`` as done by (or to) ``to`` from ``start_ns`` on, at its own pace or evenly at ``rate`` frames/s.

    With a rate only what attacks is sent, at most the first ``most`` of it; whoever is neither of the two hosts keeps
    his address, which is how false sources stay false.
    """
    frames = list(source.frames)
    if rate is not None:
        frames = [frames[i] for i in source.sent()]
    frames = frames[:most]
    first = frames[0][0]
    pairs = ((source.host.mac, to.mac), (source.host.router, to.router))
    macs = dict(pairs)
    moved = []
    for i, (t_ns, length, data) in enumerate(frames):
        at, changed = _ipv4(data), bytearray(data)
        changed[:6], changed[6:12] = macs.get(data[:6], data[:6]), macs.get(data[6:12], data[6:12])
        if not data[0] & 1 and data[:6] not in macs:  # another local host: behind the router now
            changed[:6] = to.router if data[6:12] == source.host.mac else changed[:6]
        if at is not None:
            for end in (at + 12, at + 16):
                if data[end : end + 4] == source.host.ip:
                    changed[end : end + 4] = to.ip
        moved.append((start_ns + (t_ns - first if rate is None else int(i * S / rate)), length, bytes(changed)))
    return moved


def merged(*parts: Sequence[Frame]) -> Iterator[Frame]:
    """All frames in order of time, each part being in order but for few."""
    return merge(*(sorted(part, key=lambda frame: frame[0]) for part in parts), key=lambda frame: frame[0])


def _local(address: bytes) -> bool:
    """Whether an IPv4 address is a host's of the inside; 0.0.0.0 is nobody's yet."""
    return any(address) and networks.is_private(str(IPv4Address(address)))


def _ends(data: bytes) -> tuple[bytes, ...]:
    """Source and destination address; none without an IPv4 header."""
    at = _ipv4(data)
    return () if at is None else (data[at + 12 : at + 16], data[at + 16 : at + 20])


def _ipv4(data: bytes) -> int | None:
    """Where the IPv4 header of an Ethernet frame begins, VLAN tags passed over; None without one."""
    at = 12
    while data[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    return at + 2 if data[at : at + 2] == b"\x08\x00" and len(data) >= at + 22 else None
