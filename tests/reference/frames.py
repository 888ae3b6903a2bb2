"""Frames and capture files for tests: crafted by scapy, which knows the protocols independently of us.

`specs` draws small descriptions, which hypothesis shrinks and prints; `craft` turns one into bytes. Hosts,
MACs and ports are few, so that streams occur again.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, LLC, SNAP, CookedLinux, CookedLinuxV2, Dot1AD, Dot1Q, Dot3, Ether
from scapy.layers.ppp import PPP, PPPoE
from scapy.packet import Packet, Raw

ETHERNET, RAW, SLL, SLL2 = 1, 101, 113, 276
START_NS = 1_700_000_000_000_000_000

MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03")
IPV4 = ("10.0.0.1", "10.0.0.2", "10.0.1.1", "192.0.2.7")
IPV6 = ("fd00::1", "fd00::2", "fe80::1", "2001:db8::7")
PORTS = (0, 53, 443, 40000)

NETWORKS = ("ipv4", "ipv6", "arp", "snap", "llc", "unknown")
TAGS = ("", "vlan", "qinq", "pppoe", "vlan pppoe")
EXTENSIONS = ("", "hop", "many", "first", "later", "atomic", "ah")
TRANSPORTS = ("tcp", "udp", "echo", "error tcp", "error udp", "error later", "error icmp", "igmp", "gre", "ipip")


@dataclass(frozen=True)
class Spec:
    """A description of one frame by small numbers; `cut` is how many of its bytes are captured."""

    network: str = "ipv4"
    tags: str = ""
    extension: str = ""
    transport: str = "tcp"
    src_mac: int = 0
    dst_mac: int = 1
    src: int = 0
    dst: int = 1
    sport: int = 40000
    dport: int = 443
    payload: int = 0
    tcp_flags: int = 2
    cut: int | None = None


def specs() -> st.SearchStrategy[Spec]:
    return st.builds(
        Spec,
        network=st.sampled_from(NETWORKS + ("ipv4",) * 6 + ("ipv6",) * 3),
        tags=st.sampled_from(("",) * 4 + TAGS),
        extension=st.sampled_from(("",) * 4 + EXTENSIONS),
        transport=st.sampled_from(("tcp", "udp") * 4 + TRANSPORTS),
        src_mac=st.integers(0, 2),
        dst_mac=st.integers(0, 2),
        src=st.integers(0, 3),
        dst=st.integers(0, 3),
        sport=st.sampled_from(PORTS),
        dport=st.sampled_from(PORTS),
        payload=st.sampled_from((0, 1, 18, 100, 1400)),
        tcp_flags=st.sampled_from((2, 16, 18, 20)),
        cut=st.none() | st.none() | st.integers(0, 100),
    )


def gaps() -> st.SearchStrategy[int]:
    """Draw nanoseconds between packets: none, short, long, backwards, and so long that weights underflow."""
    seconds = (0, 1e-9, 1e-6, 0.003, 0.2, 1, 7.5, 60, 300, 2000, 86400, 400_000, -1e-6, -0.5, -30)
    return st.sampled_from([round(x * 1e9) for x in seconds]) | st.integers(0, 3_000_000_000)


@lru_cache(maxsize=100_000)
def craft(spec: Spec, linktype: int = ETHERNET) -> tuple[int, bytes]:
    """Return (length on the wire, captured bytes)."""
    whole = bytes(link(spec, linktype))
    return len(whole), whole if spec.cut is None else whole[: spec.cut]


def transport(spec: Spec, version: int) -> Any:
    body = Raw(b"\0" * spec.payload)
    kind = spec.transport
    if kind == "tcp":
        return TCP(sport=spec.sport, dport=spec.dport, flags=spec.tcp_flags) / body
    if kind == "udp":
        return UDP(sport=spec.sport, dport=spec.dport) / body
    if kind == "igmp":
        return Raw(b"\x16\0\0\0\xe0\0\0\1")
    if kind == "gre":
        return Raw(b"\0\0\x08\0") / body
    if kind == "ipip":
        return IP(src="10.9.9.9", dst="10.9.9.8") / UDP(sport=1, dport=2)
    quoted_kind = {"error udp": UDP, "error tcp": TCP}.get(kind, UDP)
    if version == 4:
        if kind == "echo":
            return ICMP(type=8) / body
        quoted = IP(src=IPV4[spec.dst], dst=IPV4[spec.src], frag=3 if kind == "error later" else 0)
        inner: Packet = ICMP(type=8) if kind == "error icmp" else quoted_kind(sport=spec.dport, dport=spec.sport)
        return ICMP(type=3 if spec.payload else 11) / IPerror(bytes(quoted / inner)[:28])
    if kind == "echo":
        return ICMPv6EchoRequest() / body
    inner = IPv6(src=IPV6[spec.dst], dst=IPV6[spec.src])
    if kind == "error later":
        inner /= IPv6ExtHdrFragment(offset=5, nh=17)
    if kind == "error icmp":
        return ICMPv6DestUnreach() / Raw(bytes(inner / ICMPv6EchoRequest()))
    return ICMPv6DestUnreach() / Raw(bytes(inner / quoted_kind(sport=spec.dport, dport=spec.sport)))


def network(spec: Spec) -> Any:
    if spec.network == "ipv6":
        head: Packet = IPv6(src=IPV6[spec.src], dst=IPV6[spec.dst])
        proto = {"tcp": 6, "udp": 17, "igmp": 2, "gre": 47, "ipip": 4}.get(spec.transport, 58)
        body = bytes(transport(spec, 6)) if proto != 58 else None
        if body is None:  # scapy computes the ICMPv6 checksum over the pseudo header
            body = bytes(IPv6(src=IPV6[spec.src], dst=IPV6[spec.dst]) / transport(spec, 6))[40:]
        chains: dict[str, list[Any]] = {
            "": [],
            "hop": [IPv6ExtHdrHopByHop()],
            "many": [IPv6ExtHdrHopByHop(), IPv6ExtHdrRouting(), IPv6ExtHdrDestOpt()],
            "first": [IPv6ExtHdrFragment(offset=0, m=1)],
            "later": [IPv6ExtHdrHopByHop(), IPv6ExtHdrFragment(offset=9)],
            "atomic": [IPv6ExtHdrFragment(offset=0, m=0)],
            "ah": [AH(payloadlen=4, icv=b"\0" * 12)],
        }
        for extension in chains[spec.extension]:
            head /= extension
        last = head.lastlayer()
        last.nh = proto
        return head / Raw(body)
    if spec.network == "arp":
        return ARP(hwsrc=MACS[spec.src_mac], psrc=IPV4[spec.src], pdst=IPV4[spec.dst], op=1 + spec.payload % 2)
    if spec.network == "unknown":
        return Raw(b"\x88" * (20 + spec.payload))
    proto = {"tcp": 6, "udp": 17, "igmp": 2, "gre": 47, "ipip": 4}.get(spec.transport, 1)
    ip = IP(src=IPV4[spec.src], dst=IPV4[spec.dst], proto=proto)
    if spec.extension == "first":
        ip.flags = "MF"
    elif spec.extension == "later":
        ip.frag = 185
    elif spec.extension == "many":
        ip.options = [b"\x01\x01\x01\x01"]
    return ip / Raw(bytes(transport(spec, 4)))


def link(spec: Spec, linktype: int) -> Any:
    src, dst = MACS[spec.src_mac], MACS[spec.dst_mac]
    body: Any = network(spec)
    ethertype = {"ipv6": 0x86DD, "arp": 0x0806, "unknown": 0x88B5}.get(spec.network, 0x0800)
    if linktype == RAW:
        return body
    if linktype == SLL:
        return CookedLinux(lladdrlen=6, src=bytes.fromhex(src.replace(":", "")), proto=ethertype) / body
    if linktype == SLL2:
        return CookedLinuxV2(lladdrlen=6, src=bytes.fromhex(src.replace(":", "")), proto=ethertype) / body
    if spec.network == "snap":
        return Dot3(src=src, dst=dst) / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(OUI=0, code=0x0800) / body
    if spec.network == "llc":
        return Dot3(src=src, dst=dst) / LLC(dsap=0x42, ssap=0x42, ctrl=3) / Raw(b"\0" * 35)
    frame: Packet = Ether(src=src, dst=dst)
    if spec.tags in ("vlan", "vlan pppoe"):
        frame /= Dot1Q(vlan=7)
    elif spec.tags == "qinq":
        frame /= Dot1AD(vlan=9) / Dot1Q(vlan=7)
    if "pppoe" in spec.tags and spec.network in ("ipv4", "ipv6"):
        frame.lastlayer().type = 0x8864
        return frame / PPPoE(sessionid=1) / PPP(proto=0x21 if spec.network == "ipv4" else 0x57) / body
    frame.lastlayer().type = ethertype
    return frame / body


# ---- capture files ----


def pcap(frames: list[tuple[int, int, bytes]], linktype: int = ETHERNET, *, nanoseconds: bool = False) -> bytes:
    """Return a classic little-endian pcap file."""
    unit = 1 if nanoseconds else 1000
    out = [struct.pack("<IHHiIII", 0xA1B23C4D if nanoseconds else 0xA1B2C3D4, 2, 4, 0, 0, 65535, linktype)]
    for t_ns, length, data in frames:
        out.append(struct.pack("<IIII", t_ns // 10**9, t_ns % 10**9 // unit, len(data), length) + data)
    return b"".join(out)


def block(kind: int, body: bytes) -> bytes:
    """Return a pcapng block."""
    body += b"\0" * (-len(body) % 4)
    size = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + size + body + size


def pcapng(
    frames: list[tuple[int, int, bytes]], linktype: int = ETHERNET, *, resolution: int = 9, extra: bytes = b""
) -> bytes:
    """Return a pcapng file with times in 10^-resolution s; `extra` blocks precede every packet."""
    out = [block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))]
    option = struct.pack("<HHB3x", 9, 1, resolution) + struct.pack("<HH", 0, 0)
    out.append(block(1, struct.pack("<HHI", linktype, 0, 65535) + option))
    for t_ns, length, data in frames:
        t = t_ns // 10 ** (9 - resolution)
        head = struct.pack("<IIIII", 0, t >> 32, t & 0xFFFFFFFF, len(data), length)
        out.append(extra + block(6, head + data))
    return b"".join(out)


def data_folder() -> Path | None:
    """Return the folder of published captures and rows (BOTWATCH_DATA, else ../shared/data) if it exists."""
    import os

    folder = Path(os.environ.get("BOTWATCH_DATA", Path(__file__).parents[3] / "shared" / "data"))
    return folder if (folder / "kitsune").is_dir() else None
