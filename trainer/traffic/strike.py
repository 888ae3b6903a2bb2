"""The parts that attacks have in common: their target, pace, sources and answers."""

import heapq
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.traffic.client import Client
from trainer.traffic.home import CloudHost, public_address
from trainer.traffic.messages import icmp_message, ip_frame
from trainer.traffic.plan import RAW_FLOODS, SECOND, AttackPlan
from trainer.traffic.wire import ACK, ICMP, RECORD, RST, Ints, Records


class Strike:
    """One attack of a device from `begin` (µs), while the device's own life goes on.

    At most `seconds` of it are generated, and about `cap` packets that the device sends.
    """

    def __init__(self, life: Client, attack: AttackPlan, begin: int, seconds: float, cap: int) -> None:
        self.life, self.attack, self.cap = life, attack, cap
        self.seconds = attack.duration(seconds)
        self.target = public_address(life.rng)
        self.far = CloudHost(
            name="",
            pool=(self.target,),
            answers=1,
            rtt_ms=life.home.isp_ms + life.rng.uniform(10, 120),
            ttl=64 - life.rng.randint(8, 18),
            certificate=0,
            cname="",
        )
        self.over = begin + int(self.seconds * SECOND)
        self.now = 0

    def paced(self, begin: int, haste: float = 1.0) -> Ints:
        """Return the times of a flood: as fast as the device can, with small stalls of its queue, at an exact mean."""
        rate = self.attack.rate or self.life.device.traits["flood_pps"] * haste
        n = max(2, min(self.cap, int(rate * self.seconds)))
        gaps = self.life.bulk.gamma(2.0, 0.5, n - 1)
        gaps[self.life.bulk.random(n - 1) < 0.002] += 20
        at = np.concatenate([[0.0], np.cumsum(gaps)])
        times: Ints = begin + (at / at[-1] * (n - 1) / rate * SECOND).astype(np.int64)
        return times

    def sources(self, n: int) -> npt.NDArray[np.uint32]:
        """Return source addresses: the device's own, any 32 bits (rand_next()), or its own with any low byte."""
        spoof = self.attack.spoof or RAW_FLOODS.get(self.attack.label, "own")
        if spoof == "any":
            return self.life.bulk.integers(0, 2**32, n, dtype=np.uint32)
        own = np.full(n, self.life.device.ip, np.uint32)
        return (
            own if spoof == "own" else own & np.uint32(0xFFFFFF00) | self.life.bulk.integers(0, 256, n, dtype=np.uint32)
        )

    def raw_rows(self, times: Ints, proto: int, **fields: Any) -> Records:
        """Return packets from the device as a raw socket would send them: random IP identification, no DF."""
        n = len(times)
        rows = np.zeros(n, RECORD)
        rows["t"], rows["proto"], rows["ttl"] = times, proto, 64
        rows["dmac"], rows["smac"] = self.life.home.router_mac, self.life.device.mac
        rows["src"], rows["dst"] = self.sources(n), self.target
        rows["ident"] = self.any16(n)
        for name, value in fields.items():
            rows[name] = value
        return rows

    def any16(self, n: int) -> npt.NDArray[np.uint16]:
        """Return n random 16-bit numbers."""
        return self.life.bulk.integers(0, 65536, n, dtype=np.uint16)

    def any32(self, n: int) -> npt.NDArray[np.uint32]:
        """Return n random 32-bit numbers."""
        return self.life.bulk.integers(0, 2**32, n, dtype=np.uint32)

    def port(self, n: int) -> npt.NDArray[np.uint16]:
        """Return target ports: the ordered one, else random ones."""
        return self.any16(n) if self.attack.port is None else np.full(n, self.attack.port, np.uint16)

    def send(self, rows: Records, *, random_bytes: int = 0) -> None:
        """Add packets, each with a head of random letters."""
        heads = self.life.bulk.integers(97, 123, (len(rows), random_bytes), dtype=np.uint8)
        self.life.tape.bulk(rows, heads)

    def answer(self, rows: Records, flags: int, **fields: Any) -> Records:
        """Return the far end's TCP answers to `rows`."""
        back = rows.copy()
        for one, other in (("smac", "dmac"), ("src", "dst"), ("sport", "dport")):
            back[one], back[other] = rows[other], rows[one]
        back["t"] = rows["t"] + (1000 * self.far.rtt_ms * self.life.bulk.lognormal(0, 0.08, len(rows))).astype(np.int64)
        back["ttl"], back["size"], back["flags"], back["options"], back["window"], back["df"] = (
            self.far.ttl,
            0,
            flags,
            0,
            0,
            1,
        )
        back["ack"] = rows["seq"] + np.uint32(1) if flags & ACK else 0
        back["seq"] = 0
        back["ident"] = 0
        for name, value in fields.items():
            back[name] = value
        return back

    def share(self, n: int, share: float) -> npt.NDArray[np.bool_]:
        """Return a mask of n packets, of which `share` are chosen."""
        return self.life.bulk.random(n) < share

    def unreachable(self, rows: Records, router: int | None = None, code: int = 3) -> None:
        """Add ICMP unreachable for some packets, from their destination or from a router before it."""
        for row in rows:
            quoted = ip_frame(0, 0, int(row["src"]), int(row["dst"]), int(row["proto"]), self.far.ttl, b"")[14:34]
            ports = struct.pack(">HHI", int(row["sport"]), int(row["dport"]), int(row["seq"]))
            body = icmp_message(3, code, bytes(4) + quoted + ports)
            t = int(row["t"]) + self.life.rtt(self.far)
            src = int(row["dst"]) if router is None else router
            self.life.tape.raw(
                t,
                ip_frame(
                    self.life.home.router_mac, self.life.device.mac, src, self.life.device.ip, ICMP, self.far.ttl, body
                ),
            )

    def once_a_second(self, rows: Records) -> Records:
        """Return the rows that a Linux target would answer: it sends a peer one ICMP error a second."""
        return rows[np.unique(rows["t"] // SECOND, return_index=True)[1]]

    def kernel_reset(self, answers: Records) -> Records:
        """Return the resets of the device's kernel for SYN-ACKs that none of its sockets asked for."""
        back = self.answer(answers, RST)
        back["t"] = answers["t"] + (1000 * self.life.bulk.uniform(0.5, 5, len(answers))).astype(np.int64)
        back["seq"], back["ttl"] = answers["ack"], 64
        return back

    def no_heads(self, rows: Records) -> None:
        """Add packets without payload."""
        self.life.tape.bulk(rows, np.zeros((len(rows), 0), np.uint8))

    def size(self, usual: int) -> int:
        """Return the payload bytes of a packet: the ordered number, else the malware's."""
        return usual if self.attack.size is None else self.attack.size

    def run(self, sockets: list[Iterator[tuple[int, int]]]) -> None:
        """Run sockets in order of time until the attack is over or has sent its bound.

        A socket yields the time of its next action and the number of packets it has sent since it was last resumed.
        """
        waiting = [(next(socket)[0], n, socket) for n, socket in enumerate(sockets)]
        heapq.heapify(waiting)
        sent = 0
        while waiting:
            t, n, socket = waiting[0]
            if t >= self.over or sent >= self.cap:
                return
            self.now = t
            t, packets = next(socket)
            sent += packets
            heapq.heapreplace(waiting, (t, n, socket))


SYN_AGAIN = (0, 1, 3, 7)
"""Seconds after a connect() at which a Linux kernel sends the SYN; the next, at 15, is later than a scan waits."""
