"""Packets of generated captures, read back for the tests by a reader of their own."""

import hashlib
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from trainer.traffic.plan import Plan

SMALL = Plan(seed=7, days=1, hours=0.2, lead_minutes=1, tail_minutes=0.5, attack_seconds=6, max_attack_packets=1500)
SYN, RST, ACK = 2, 4, 16


class Packet(NamedTuple):
    """The fields of one frame that the tests read."""

    t: int
    source_mac: str
    wire: int
    kind: int  # ethertype
    proto: int = 0
    src: int = 0
    dst: int = 0
    ttl: int = 0
    ident: int = 0
    sport: int = 0
    dport: int = 0
    seq: int = 0
    ack: int = 0
    flags: int = 0
    window: int = 0
    payload: int = 0


def read(path: Path) -> list[Packet]:
    raw, at, packets = path.read_bytes(), 24, []
    while at < len(raw):
        seconds, micros, kept, wire = struct.unpack_from("<IIII", raw, at)
        frame = raw[at + 16 : at + 16 + kept]
        at += 16 + kept
        mac, (kind,) = ":".join(f"{b:02x}" for b in frame[6:12]), struct.unpack_from(">H", frame, 12)
        fields: dict[str, int] = {}
        if kind == 0x0800:
            length, ident = struct.unpack_from(">HH", frame, 16)
            src, dst = struct.unpack_from(">II", frame, 26)
            fields = {"proto": frame[23], "src": src, "dst": dst, "ttl": frame[22], "ident": ident}
            if frame[23] in (6, 17):
                fields["sport"], fields["dport"] = struct.unpack_from(">HH", frame, 34)
                fields["payload"] = length - 28
            if frame[23] == 6:
                fields["seq"], fields["ack"], offset, fields["flags"], fields["window"] = struct.unpack_from(
                    ">IIBBH", frame, 38
                )
                fields["payload"] = length - 20 - (offset >> 4) * 4
        packets.append(Packet(seconds * 1_000_000 + micros, mac, wire, kind, **fields))
    return packets


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def is_public(address: int) -> bool:
    return 0 < address < 0xE0000000 and address >> 16 != 0xC0A8


def micros(when: datetime) -> int:
    return round((when - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000)


def rate(packets: list[Packet]) -> float:
    return (len(packets) - 1) / ((packets[-1].t - packets[0].t) / 1e6)
