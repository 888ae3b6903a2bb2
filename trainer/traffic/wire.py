"""Packets as rows of numbers, and the frames that they become: Ethernet, IPv4, TCP and UDP with correct checksums."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Records = npt.NDArray[np.void]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
ICMP, IGMP, TCP, UDP = 1, 2, 6, 17
MTU_PAYLOAD = 1448
"""TCP payload of a full frame with time stamps."""

NO_OPTIONS, MSS, STAMP, LINUX_SYN, MIRAI_SYN = range(5)
OPTION_BYTES = (0, 4, 12, 20, 20)

RECORD = np.dtype(
    [
        ("t", "<i8"),
        ("dmac", "<u8"),
        ("smac", "<u8"),
        ("proto", "u1"),
        ("src", "<u4"),
        ("dst", "<u4"),
        ("sport", "<u2"),
        ("dport", "<u2"),
        ("size", "<u2"),  # payload bytes on the wire
        ("ttl", "u1"),
        ("ident", "<u2"),
        ("df", "u1"),
        ("seq", "<u4"),
        ("ack", "<u4"),
        ("flags", "u1"),
        ("window", "<u2"),
        ("options", "u1"),
        ("mss", "<u2"),
        ("tsval", "<u4"),
        ("tsecr", "<u4"),
        ("ipv6", "u1"),  # 1: over IPv6, with addresses that hold the IPv4 ones
    ]
)
"""One packet over TCP or UDP. All others (ARP, ICMP, IGMP) are rare and made frame by frame."""

PREFIX6 = bytes.fromhex("20010db80000000000000000")
"""The first 96 bits of every global IPv6 address: the documentation prefix (RFC 3849)."""


def _put(matrix: Bytes, offset: int, values: npt.NDArray[Any], width: int) -> None:
    """Write one number per row, big-endian, in `width` bytes."""
    raw = np.ascontiguousarray(values, dtype=">u8").view(np.uint8).reshape(-1, 8)
    matrix[:, offset : offset + width] = raw[:, 8 - width :]


def _sum16(matrix: Bytes) -> npt.NDArray[np.uint64]:
    """Return the sum of the big-endian 16-bit words of each row; the number of columns is even."""
    total: npt.NDArray[np.uint64] = np.ascontiguousarray(matrix).view(">u2").sum(axis=1, dtype=np.uint64)
    return total


def _fold(total: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the Internet checksum (RFC 1071) of sums of 16-bit words."""
    for _ in range(3):
        total = (total & np.uint64(0xFFFF)) + (total >> np.uint64(16))
    return total ^ np.uint64(0xFFFF)


def frames_of(rows: Records, heads: Bytes) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Return frames of packets of one protocol and one set of TCP options, and their lengths on the wire.

    A payload is its head (row of `heads`) followed by zeros up to its size. Zeros do not change a checksum, so that it
    is correct for the whole packet although only the head is generated.
    """
    n = len(rows)
    tcp = bool(rows["proto"][0] == TCP)
    option_bytes = OPTION_BYTES[int(rows["options"][0])] if tcp else 0
    header = 20 + option_bytes if tcp else 8
    width = heads.shape[1] + heads.shape[1] % 2
    m = np.zeros((n, 34 + header + width), np.uint8)
    m[:, 34 + header : 34 + header + heads.shape[1]] = heads
    _put(m, 0, rows["dmac"], 6)
    _put(m, 6, rows["smac"], 6)
    m[:, 12] = 8
    m[:, 14] = 0x45
    size = rows["size"].astype(np.int64)
    _put(m, 16, 20 + header + size, 2)
    _put(m, 18, rows["ident"], 2)
    m[:, 20] = rows["df"] << 6
    m[:, 22] = rows["ttl"]
    m[:, 23] = rows["proto"]
    _put(m, 26, rows["src"], 4)
    _put(m, 30, rows["dst"], 4)
    _put(m, 24, _fold(_sum16(m[:, 14:34])), 2)
    _put(m, 34, rows["sport"], 2)
    _put(m, 36, rows["dport"], 2)
    if tcp:
        _put(m, 38, rows["seq"], 4)
        _put(m, 42, rows["ack"], 4)
        m[:, 46] = header << 2
        m[:, 47] = rows["flags"]
        _put(m, 48, rows["window"], 2)
        _put_options(m, int(rows["options"][0]), rows)
    else:
        _put(m, 38, 8 + size, 2)
    pseudo = _sum16(m[:, 26:34]) + rows["proto"].astype(np.uint64) + (header + size).astype(np.uint64)
    ipv6 = bool(rows["ipv6"][0])
    if ipv6:
        pseudo += np.uint64(2 * int(np.frombuffer(PREFIX6, ">u2").sum()))
    check = _fold(_sum16(m[:, 34:]) + pseudo)
    if not tcp:
        check[check == 0] = 0xFFFF  # RFC 768: zero means no checksum
    _put(m, 50 if tcp else 40, check, 2)
    if ipv6:
        return _over_ipv6(m, header + size), 54 + header + size
    return m, np.maximum(60, 34 + header + size)  # Ethernet pads to 60


def _over_ipv6(m: Bytes, length: Ints) -> Bytes:
    """Return IPv4 frames with an IPv6 header instead; `length` is what follows it."""
    wide = np.zeros((len(m), m.shape[1] + 20), np.uint8)
    wide[:, :12], wide[:, 12:14], wide[:, 14] = m[:, :12], (0x86, 0xDD), 0x60
    _put(wide, 18, length, 2)
    wide[:, 20], wide[:, 21] = m[:, 23], m[:, 22]
    for at, old in ((22, 26), (38, 30)):
        wide[:, at : at + 12] = np.frombuffer(PREFIX6, np.uint8)
        wide[:, at + 12 : at + 16] = m[:, old : old + 4]
    wide[:, 54:] = m[:, 34:]
    return wide


def _put_options(m: Bytes, options: int, rows: Records) -> None:
    if options in (MSS, LINUX_SYN, MIRAI_SYN):
        m[:, 54:56] = (2, 4)
        _put(m, 56, rows["mss"], 2)
    if options == STAMP:
        m[:, 54:58] = (1, 1, 8, 10)
        _put(m, 58, rows["tsval"], 4)
        _put(m, 62, rows["tsecr"], 4)
    elif options in (LINUX_SYN, MIRAI_SYN):
        m[:, 58:62] = (4, 2, 8, 10)
        _put(m, 62, rows["tsval"], 4)
        _put(m, 66, rows["tsecr"], 4)
        m[:, 70:74] = (1, 3, 3, 6)  # window scale 6 (64), in Mirai as in many small Linux systems


def internet_checksum(data: bytes) -> int:
    """Return the Internet checksum of some bytes (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    checksum: int = ~(total + (total >> 16)) & 0xFFFF
    return checksum


def head_matrix(heads: Sequence[bytes]) -> Bytes:
    """Return heads as rows of one width, filled with zeros."""
    width = max((len(head) for head in heads), default=0)
    joined = b"".join(head.ljust(width, b"\0") for head in heads)
    return np.frombuffer(joined, np.uint8).reshape(len(heads), width)
