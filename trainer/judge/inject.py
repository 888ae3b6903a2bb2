"""An attack capture moved into a device's day, as if that device had carried out the attack.

This module knows where addresses are in a frame and which ones to replace; `evaluate` knows how the result is judged.
Checksums are left as they are, since no feature depends on them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import merge
from ipaddress import IPv4Address
from pathlib import Path

from edge_agent.contract import addresses
from edge_agent.contract.captures import Capture, Span, mac_text, parse_mac
from trainer.data import frames as files
from trainer.data.frames import Frame, FramesError, S

ETHERNET = 1
"""libpcap's number of the only link layer whose frames can be changed here."""


class InjectError(Exception):
    """Captures that cannot be put together; the message names the file and why."""


@dataclass(frozen=True)
class InsideHost:
    """A device in its own network: MAC, IPv4 address (4 bytes) and the MAC of its router.

    Of an attacker whose only target is in its own network the router is not known: b"".
    """

    mac: bytes
    ip: bytes
    router: bytes


@dataclass(frozen=True)
class AttackCapture:
    """The frames of an attack, from its first on: those from the attacker and those to it.

    ``host`` is the attacker, or with ``victim`` the attacked host: the capture shows the victim's side. ``server`` is
    the only other end, where the manifest names one.
    """

    frames: tuple[Frame, ...]
    host: InsideHost
    victim: bool
    server: str = ""

    def sent(self) -> list[int]:
        """Return the numbers of the frames that attack: those sent by the attacker, or to the victim."""
        end = slice(0, 6) if self.victim else slice(6, 12)
        return [i for i, (_, _, data) in enumerate(self.frames) if data[end] == self.host.mac]


def read(path: Path, span: Span | None = None) -> list[Frame]:
    """Read every frame (of the span) of a pcap or pcapng file; InjectError when it is neither, or not of Ethernet."""
    frames, link = [], ETHERNET
    try:
        for frame, link in files.read(path, span):
            if link != ETHERNET:
                break
            frames.append(frame)
    except FramesError as error:
        raise InjectError(str(error)) from error
    if link != ETHERNET:
        raise InjectError(f"{path}: has link layer {link}, only Ethernet ({ETHERNET}) can be put into a device's day")
    if not frames:
        raise InjectError(f"{path}: contains no frames" + (f" in the time {span.start} to {span.end}" if span else ""))
    return frames


def host(frames: Sequence[Frame], mac: str, name: object) -> InsideHost:
    """Return the host of a MAC: its most used IPv4 address, and the MAC it sends most of its unicast frames to."""
    sender, addresses, routers = parse_mac(mac).to_bytes(6, "big"), Counter[bytes](), Counter[bytes]()
    for _, _, data in frames:
        if data[6:12] == sender:
            if (at := _ipv4(data)) is not None:
                addresses[data[at + 12 : at + 16]] += 1
            if not data[0] & 1:
                routers[data[:6]] += 1
    addresses.pop(bytes(4), None)
    if not addresses or not routers:
        raise InjectError(f"{name}: {mac} sends no IPv4 packet to another host")
    private = [a for a, _ in addresses.most_common() if _local(a)]
    return InsideHost(sender, private[0] if private else addresses.most_common(1)[0][0], routers.most_common(1)[0][0])


def attack(frames: Sequence[Frame], capture: Capture) -> AttackCapture:
    """Return the attack of a capture whose manifest names the attacker's MAC; without a span, it is the whole capture.

    Frames from remote addresses to one local address through that MAC show the victim's side: the MAC is a router's.
    InjectError when the attacker is not named, or sends nothing.
    """
    if capture.mac is None:
        raise InjectError(f"{capture.file}: the manifest names no mac, so the attacker is unknown")
    attacker = parse_mac(capture.mac).to_bytes(6, "big")
    span = (capture.attack.start_ns, capture.attack.end_ns) if capture.attack else (frames[0][0], frames[-1][0])
    inside = [f for f in frames if span[0] <= f[0] <= span[1] and attacker in (f[2][:6], f[2][6:12])]
    server = (capture.attack.server if capture.attack else None) or ""
    if server:
        inside = [f for f in inside if IPv4Address(server).packed in _ends(f[2])]
    sent = [f for f in inside if f[2][6:12] == attacker]
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
        return AttackCapture(tuple(inside), InsideHost(target_mac, target, attacker), victim=True)
    attacking = host(sent, mac_text(parse_mac(capture.mac)), capture.file)
    if not _routes(inside, attacking.router):
        attacking = replace(attacking, router=b"")
    return AttackCapture(tuple(inside), attacking, False, server)


def _routes(frames: Sequence[Frame], mac: bytes) -> bool:
    """Return whether a MAC is that of a router: it stands for a remote address, or for several."""
    ends = {data[at + 16 : at + 20] for _, _, data in frames if data[:6] == mac and (at := _ipv4(data)) is not None}
    return len(ends) > 1 or not all(map(_local, ends))


def carried(
    source: AttackCapture, to: InsideHost, start_ns: int, rate: float | None = None, most: int | None = None
) -> list[Frame]:
    """Return the frames of an attack as if ``to`` carried it out (or suffered it) from ``start_ns`` on.

    They keep their own pace, or come evenly at ``rate`` frames/s; with a rate only the frames that attack are sent.
    ``most`` bounds their number. A host other than the two keeps its address, so that false sources stay false; one in
    the attacker's own network keeps its MAC, too, and a remote one is behind the router of ``to``.
    """
    frames = list(source.frames)
    if rate is not None:
        frames = [frames[i] for i in source.sent()]
    frames = frames[:most]
    first = frames[0][0]
    macs = {source.host.mac: to.mac, source.host.router: to.router}
    moved = []
    for i, (t_ns, length, data) in enumerate(frames):
        at, changed = _ipv4(data), bytearray(data)
        changed[:6], changed[6:12] = macs.get(data[:6], data[:6]), macs.get(data[6:12], data[6:12])
        own = at is not None and _local(data[at + 16 : at + 20])
        if not own and not data[0] & 1 and data[:6] not in macs and data[6:12] == source.host.mac:
            changed[:6] = to.router
        if at is not None:
            for end in (at + 12, at + 16):
                if data[end : end + 4] == source.host.ip:
                    changed[end : end + 4] = to.ip
        moved.append((start_ns + (t_ns - first if rate is None else int(i * S / rate)), length, bytes(changed)))
    return moved


def merged(*parts: Sequence[Frame]) -> Iterator[Frame]:
    """Return all frames in order of time; each part is nearly in order already."""
    return merge(*(sorted(part, key=lambda frame: frame[0]) for part in parts), key=lambda frame: frame[0])


def _local(address: bytes) -> bool:
    """Return whether an IPv4 address belongs to a private network; 0.0.0.0 is no host's address yet."""
    return any(address) and addresses.is_private(str(IPv4Address(address)))


def _ends(data: bytes) -> tuple[bytes, ...]:
    """Return source and destination address; empty without an IPv4 header."""
    at = _ipv4(data)
    return () if at is None else (data[at + 12 : at + 16], data[at + 16 : at + 20])


def _ipv4(data: bytes) -> int | None:
    """Return where the IPv4 header of an Ethernet frame begins, after VLAN tags; None without one."""
    at = 12
    while data[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    return at + 2 if data[at : at + 2] == b"\x08\x00" and len(data) >= at + 22 else None
