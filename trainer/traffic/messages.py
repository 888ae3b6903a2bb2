"""The bytes of messages: DNS, mDNS, DHCP, SSDP, TLS records, ARP and ICMP."""

import struct
from collections.abc import Sequence

from trainer.traffic.home import BROADCAST_MAC
from trainer.traffic.wire import internet_checksum


def _dns_name(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def dns_query(ident: int, name: str, kind: int) -> bytes:
    """Return a question for the records of one kind: 1 is A, 28 AAAA."""
    return struct.pack(">6H", ident, 0x0100, 1, 0, 0, 0) + _dns_name(name) + struct.pack(">HH", kind, 1)


def dns_answer(ident: int, name: str, kind: int, cname: str, addresses: Sequence[int]) -> bytes:
    """Return the answer to it, with its CNAME if there is one."""
    answers = [struct.pack(">HHHIH", 0xC00C, 5, 1, 300, len(_dns_name(cname))) + _dns_name(cname)] if cname else []
    owner = _dns_name(cname) if cname else b"\xc0\x0c"
    answers += [owner + struct.pack(">HHIHI", 1, 1, 60, 4, address) for address in addresses]
    head = struct.pack(">6H", ident, 0x8180, 1, len(answers), 0, 0)
    return head + _dns_name(name) + struct.pack(">HH", kind, 1) + b"".join(answers)


def mdns_message(service: str, instance: str, answer: bool) -> bytes:
    """Return an mDNS question for a service, or the announcement of an instance of it."""
    if not answer:
        return struct.pack(">6H", 0, 0, 1, 0, 0, 0) + _dns_name(service) + struct.pack(">HH", 12, 1)
    target = _dns_name(f"{instance}.{service}")
    return (
        struct.pack(">6H", 0, 0x8400, 0, 1, 0, 0)
        + _dns_name(service)
        + struct.pack(">HHIH", 12, 1, 4500, len(target))
        + target
    )


def dhcp_message(op: int, kind: int, xid: int, mac: int, client: int, yours: int, server: int, host: str) -> bytes:
    """Return one BOOTP/DHCP message of 300 bytes; `kind` is 1 discover, 2 offer, 3 request, 5 ack."""
    options = bytes([53, 1, kind])
    if op == 1:
        name = host.encode()
        options += bytes([55, 4, 1, 3, 6, 15, 12, len(name)]) + name
    else:
        options += struct.pack(">BBIBBIBBI", 54, 4, server, 51, 4, 7200, 1, 4, 0xFFFFFF00)
    fixed = struct.pack(">BBBBIHHIIII", op, 1, 6, 0, xid, 0, 0, client, yours, 0, 0) + mac.to_bytes(6, "big")
    return (fixed.ljust(236, b"\0") + b"\x63\x82\x53\x63" + options + b"\xff").ljust(300, b"\0")


SEARCH = (
    b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 2\r\nST: upnp:rootdevice\r\n\r\n'
)
FOUND = (
    b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=1800\r\nEXT:\r\nLOCATION: http://router.example:5000/root.xml\r\n"
    b"SERVER: router UPnP/1.1\r\nST: upnp:rootdevice\r\nUSN: uuid:0::upnp:rootdevice\r\n\r\n"
)


def tls_record(size: int, kind: int = 23) -> bytes:
    """Return the head of a TLS record that fills `size` bytes; the rest of it is zeros."""
    return struct.pack(">BHH", kind, 0x0303, size - 5)


def client_hello(size: int) -> bytes:
    """Return the head of a TLS client hello of `size` bytes."""
    return struct.pack(">BHHBBHH", 22, 0x0301, size - 5, 1, 0, size - 9, 0x0303)


def arp_frame(op: int, smac: int, sip: int, tmac: int, tip: int) -> bytes:
    """Return an ARP frame: `op` is 1 for a question, 2 for its answer."""
    destination = BROADCAST_MAC if op == 1 else tmac
    ethernet = destination.to_bytes(6, "big") + smac.to_bytes(6, "big") + b"\x08\x06"
    target = 0 if op == 1 else tmac
    return (
        ethernet
        + struct.pack(">HHBBH", 1, 0x0800, 6, 4, op)
        + smac.to_bytes(6, "big") + sip.to_bytes(4, "big") + target.to_bytes(6, "big") + tip.to_bytes(4, "big")
    )  # fmt: skip


def ip_frame(
    smac: int, dmac: int, src: int, dst: int, proto: int, ttl: int, body: bytes, options: bytes = b""
) -> bytes:
    """Return an IPv4 frame of any protocol."""
    length = 20 + len(options) + len(body)
    head = struct.pack(">BBHHHBBHII", 0x45 + len(options) // 4, 0, length, 0, 0, ttl, proto, 0, src, dst) + options
    head = head[:10] + struct.pack(">H", internet_checksum(head)) + head[12:]
    return dmac.to_bytes(6, "big") + smac.to_bytes(6, "big") + b"\x08\x00" + head + body


def icmp_message(kind: int, code: int, rest: bytes) -> bytes:
    """Return an ICMP message; `rest` follows the checksum."""
    check = internet_checksum(struct.pack(">BBH", kind, code, 0) + rest)
    return struct.pack(">BBH", kind, code, check) + rest


def icmp6_frame(smac: int, src: int, dst: int, kind: int, rest: bytes, *, to: int = 0) -> bytes:
    """Return an ICMPv6 frame; `rest` follows the checksum, `to` is the MAC unless `dst` is a group."""
    body = struct.pack(">BBH", kind, 0, 0) + rest
    check = internet_checksum(_pseudo6(src, dst, len(body), 58) + body)
    return _ip6_frame(smac, to, src, dst, 58, 255, body[:2] + struct.pack(">H", check) + body[4:])


def udp6_frame(smac: int, src: int, dst: int, port: int, payload: bytes) -> bytes:
    """Return a UDP datagram over IPv6 from and to one port, as mDNS sends it."""
    head = struct.pack(">HHHH", port, port, 8 + len(payload), 0)
    check = internet_checksum(_pseudo6(src, dst, 8 + len(payload), 17) + head + payload) or 0xFFFF
    return _ip6_frame(smac, 0, src, dst, 17, 255, head[:6] + struct.pack(">H", check) + payload)


def _pseudo6(src: int, dst: int, size: int, proto: int) -> bytes:
    return src.to_bytes(16, "big") + dst.to_bytes(16, "big") + struct.pack(">II", size, proto)


def _ip6_frame(smac: int, to: int, src: int, dst: int, proto: int, hops: int, body: bytes) -> bytes:
    mac = to or 0x333300000000 | dst & 0xFFFFFFFF
    head = struct.pack(">IHBB", 6 << 28, len(body), proto, hops) + src.to_bytes(16, "big") + dst.to_bytes(16, "big")
    return mac.to_bytes(6, "big") + smac.to_bytes(6, "big") + b"\x86\xdd" + head + body
