"""Frames to judge: attacks of any length at any rate, mixed with the normal traffic of devices.

A frame is (time in ns, length on the wire, captured bytes). Fields that no feature reads (checksums) stay zero.
"""

import heapq
import ipaddress
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

S = 1_000_000_000
CLOUD = "203.0.113.9"
ROUTER_MAC, PLUG_MAC = 0x02_00_00_00_00_FE, 0x02_00_00_00_00_11
PLUG = "192.168.38.20"

Frame = tuple[int, int, bytes]


def packet(
    src: str | int,
    dst: str | int,
    sport: int = 40000,
    dport: int = 80,
    *,
    mac: int = PLUG_MAC,
    to_mac: int = ROUTER_MAC,
    proto: int = 17,
    flags: int = 2,
    size: int = 0,
) -> bytes:
    """Return an Ethernet frame of UDP (17), TCP (6) or another protocol; integers are IPv4 addresses."""
    source, target = ipaddress.ip_address(src), ipaddress.ip_address(dst)
    if proto == 6:
        inner = struct.pack(">HHIIBBHHH", sport, dport, 1, 1, 5 << 4, flags, 8192, 0, 0)
    elif proto == 17:
        inner = struct.pack(">HHHH", sport, dport, 8 + size, 0)
    else:
        inner = bytes(8)
    inner += bytes(size)
    if source.version == 4:
        kind, head = 0x0800, struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(inner), 0, 0, 64, proto, 0)
    else:
        kind, head = 0x86DD, struct.pack(">IHBB", 6 << 28, len(inner), proto, 64)
    ethernet = to_mac.to_bytes(6, "big") + mac.to_bytes(6, "big") + kind.to_bytes(2, "big")
    return (ethernet + head + source.packed + target.packed + inner).ljust(60, b"\0")


def arp(mac: int, src: str, dst: str) -> bytes:
    """Return an ARP request for the MAC of ``dst``."""
    sender = mac.to_bytes(6, "big")
    body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + sender + ipaddress.ip_address(src).packed
    return (b"\xff" * 6 + sender + b"\x08\x06" + body + bytes(6) + ipaddress.ip_address(dst).packed).ljust(60, b"\0")


def steady(packets: Iterable[bytes], start_ns: int, rate: float) -> Iterator[Frame]:
    """Give ``packets`` their times: from ``start_ns`` on, ``rate`` a second."""
    step = S / rate
    return ((start_ns + int(i * step), len(data), data) for i, data in enumerate(packets))


def one_socket(count: int, src: str = PLUG, **more: int) -> Iterator[bytes]:
    """Yield a flood from one socket to another, as Mirai's udpplain."""
    return iter([packet(src, CLOUD, 33000, 9307, size=512, **more)] * count)


def scan(count: int, src: str = PLUG, seed: int = 1, **more: int) -> Iterator[bytes]:
    """Yield SYNs to port 23 of random public addresses, as Mirai's scanner."""
    for target in np.random.default_rng(seed).integers(0x0B000000, 0x7F000000, count):
        yield packet(src, int(target), 41000, 23, proto=6, **more)


def spoofed(count: int, dst: str = CLOUD, seed: int = 2, low: int = 0x0B000000, high: int = 0x7F000000, **more: int):
    """Yield a flood from random public source addresses, as BASHLITE's udp."""
    rng = np.random.default_rng(seed)
    for source, sport in zip(rng.integers(low, high, count), rng.integers(1024, 65536, count), strict=True):
        yield packet(int(source), dst, int(sport), 80, size=64, **more)


def merged(*parts: Iterable[Frame]) -> list[Frame]:
    """Return all frames in the order of their times."""
    return list(heapq.merge(*(sorted(part, key=lambda f: f[0]) for part in parts), key=lambda f: f[0]))


def read(path: Path) -> list[Frame]:
    """Return the frames of a pcap file as our generator writes it."""
    data, at, frames = path.read_bytes(), 24, []
    while at < len(data):
        s, us, captured, length = struct.unpack_from("<IIII", data, at)
        frames.append((s * S + us * 1000, length, data[at + 16 : at + 16 + captured]))
        at += 16 + captured
    return frames
