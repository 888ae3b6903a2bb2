"""Single frames of attacks that were never carried out: headers only, with the lengths that whole packets have.

Knows the layout of Ethernet, ARP, IPv4, IPv6, TCP, UDP and ICMP, as far as a feature reads it; checksums stay zero, and
there is no payload. What an attack consists of is the knowledge of `trainer.judge.evasive`.
"""

import struct
from dataclasses import dataclass

from trainer.judge.inject import InsideHost

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58

MINIMUM = 60
"""Bytes of the shortest Ethernet frame without its check sequence."""


@dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """The surroundings of an attacker: its own host, a host outside that it uses anyway, and hosts of its network.

    ``cloud`` is the IPv4 address, protocol and port of the remote socket that the device uses most; None without one.
    ``local`` are MACs and IPv4 addresses (4 bytes) of hosts that were seen in its own network, the router first.
    """

    host: InsideHost
    cloud: tuple[bytes, int, int] | None = None
    local: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def ipv6(self) -> bytes:
        """The device's IPv6 address: the prefix for documentation, and the identifier of its MAC (RFC 4291)."""
        mac = self.host.mac
        return bytes.fromhex("20010db800010000") + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]


def ip_frame(
    macs: tuple[bytes, bytes],
    ends: tuple[bytes, bytes],
    proto: int,
    ports: tuple[int, int] = (0, 0),
    *,
    flags: int = SYN,
    size: int = 0,
    reply: bool = False,
) -> tuple[int, bytes]:
    """Return length on the wire and captured bytes of a packet from the first to the second of each pair.

    ``macs`` are source and destination MACs, ``ends`` addresses of 4 or 16 bytes, ``size`` bytes of payload; ``flags``
    are TCP's. ICMP is an echo request, or its ``reply``.
    """
    if proto == TCP:
        inner = struct.pack(">HHIIBBHHH", *ports, 1, 1, 5 << 4, flags, 8192, 0, 0)
    elif proto == UDP:
        inner = struct.pack(">HHHH", *ports, 8 + size, 0)
    else:
        request, answer = (8, 0) if proto == ICMP else (128, 129)
        inner = bytes([answer if reply else request]) + bytes(7)
    return _ip(macs, ends, proto, inner, size)


def unreachable(macs: tuple[bytes, bytes], ends: tuple[bytes, bytes], quoted: bytes) -> tuple[int, bytes]:
    """Return length and bytes of ICMP's `port unreachable`, which quotes the head of the frame that it answers."""
    inner = (b"\3" if len(ends[0]) == 4 else b"\1") + (b"\3" if len(ends[0]) == 4 else b"\4") + bytes(6)
    head = 14 + (20 if len(ends[0]) == 4 else 40) + 8
    return _ip(macs, ends, ICMP if len(ends[0]) == 4 else ICMP6, inner + quoted[14:head], 0)


def _ip(macs: tuple[bytes, bytes], ends: tuple[bytes, bytes], proto: int, inner: bytes, size: int) -> tuple[int, bytes]:
    """Return length and bytes of a packet of ``inner`` and ``size`` bytes that are not captured."""
    total = len(inner) + size
    if len(ends[0]) == 4:
        kind = b"\x08\x00" + struct.pack(">BBHHHBBH", 0x45, 0, 20 + total, 0, 0, 64, proto, 0)
    else:
        kind = b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, total, proto, 64)
    data = macs[1] + macs[0] + kind + ends[0] + ends[1] + inner
    length = max(len(data) + size, MINIMUM)
    return length, data.ljust(MINIMUM, b"\0")


def arp_request(mac: bytes, source: bytes, target: bytes) -> tuple[int, bytes]:
    """Return length and bytes of the question of ``mac`` who has the IPv4 address ``target``."""
    head = b"\xff" * 6 + mac + b"\x08\x06" + struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1)
    return MINIMUM, (head + mac + source + bytes(6) + target).ljust(MINIMUM, b"\0")


def arp_reply(mac: bytes, source: bytes, to: bytes, target: bytes) -> tuple[int, bytes]:
    """Return length and bytes of the answer of ``mac``, which has the address ``source``, to the MAC ``to``."""
    head = to + mac + b"\x08\x06" + struct.pack(">HHBBH", 1, 0x0800, 6, 4, 2)
    return MINIMUM, (head + mac + source + to + target).ljust(MINIMUM, b"\0")


def ipv4_ends(data: bytes) -> tuple[bytes, bytes, int, int, int] | None:
    """Return source, destination, protocol and ports of an IPv4 packet over TCP or UDP in an untagged frame."""
    if data[12:14] != b"\x08\x00" or len(data) < 34 or data[23] not in (TCP, UDP):
        return None
    at = 14 + 4 * (data[14] & 15)
    if len(data) < at + 4 or data[20] & 31 or data[21]:  # cut off, or a later fragment
        return None
    source, target = struct.unpack_from(">HH", data, at)
    return data[26:30], data[30:34], data[23], source, target
