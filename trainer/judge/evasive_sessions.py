"""Attacks by whole TCP connections to one host: brute force of a login, and a bot's contacts with its command server.

Each connection is a list of steps, who sends how many bytes when; `trainer.judge.evasive` has what they are made of.
"""

import heapq
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.data.frames import S
from trainer.judge import evasive_frames as frames
from trainer.judge.evasive import FAR_NS, NEAR_NS, Pace, Packet, in_order, rng_of, target_of
from trainer.judge.evasive_frames import ACK, FIN, PSH, RST, SYN, TCP, Neighbourhood

Step = tuple[int, int, int, bool]
"""Nanoseconds after the connection's first packet, TCP flags, bytes of payload, and whether the attacker sends it."""

PASSWORDS = 3
"""Passwords that are tried on one connection, as servers allow."""

FIRST_PORT, CLIENT_PORTS = 32_768, 28_000
"""The range of Linux's ports for clients."""


@dataclass(frozen=True, kw_only=True)
class Login:
    """Brute force of one host's login: telnet (23) or ssh (22), `PASSWORDS` a connection, all refused.

    ``at_once`` connections run side by side, each followed by another. ``to`` is the router, or a `new` host outside.
    """

    port: Literal[22, 23] = 23
    at_once: int = 16
    to: Literal["local", "new"] = "local"

    @property
    def name(self) -> str:
        """The attack in a few words."""
        return f"{'ssh' if self.port == 22 else 'telnet'} logins, {self.at_once} at once, to a {self.to} host"

    def packets(self, around: Neighbourhood, start_ns: int) -> Iterator[Packet]:
        """Yield packets and answers in the order of time, without an end."""
        return heapq.merge(*(self._line(around, start_ns + i * S // 100, i) for i in range(self.at_once)))

    def _line(self, around: Neighbourhood, t_ns: int, number: int) -> Iterator[Packet]:
        """Yield one connection after the other."""
        rng = random.Random(f"{self} {number}")
        to, port = target_of(self.to, around, 4, self.port)
        for i in itertools.count():
            steps = self._steps(rng)
            yield from _connection(around, to, (_client_port(number + i * self.at_once), port), t_ns, steps)
            t_ns += steps[-1][0] + S // 10

    def _steps(self, rng: random.Random) -> list[Step]:
        """Return a connection of greetings, passwords and refusals; a server waits before it refuses."""
        wait, telnet = (NEAR_NS if self.to == "local" else FAR_NS), self.port == 23
        steps, t = [*_opened(wait)], wait + 1
        for size in (21, 15) if telnet else (41, 1100):  # options, or version and keys, of both ends
            t += wait
            steps += [(t, PSH | ACK, size, False), (t + 1, PSH | ACK, size, True)]
        for _ in range(PASSWORDS):
            for typed, shown in ((6, 10), (10, 2)) if telnet else ((100, 84),):
                steps += [(t + 2, PSH | ACK, typed, True), (t + wait, PSH | ACK, shown, False)]
                t += wait
                steps.append((t + 1, ACK, 0, True))
            t += int((S if telnet else 2 * S) * rng.uniform(0.8, 1.2))
            steps += [(t, PSH | ACK, 19 if telnet else 84, False), (t + 1, ACK, 0, True)]
        return [*steps, *_closed(t + 2, wait)]


@dataclass(frozen=True, kw_only=True)
class Contacts:
    """A bot's contacts with its command server: ``pace`` counts them, `jittered` and `random` ones included.

    ``to`` is a host outside that is new to the device, or its own cloud host. Each is a connection `anew` of 121 bytes
    both ways, a message on one that is `held`, or an attempt: `unanswered` (sent three times) or `refused`.
    """

    pace: Pace
    to: Literal["new", "cloud"] = "new"
    way: Literal["anew", "held", "unanswered", "refused"] = "anew"
    port: int = 23

    @property
    def name(self) -> str:
        """The attack in a few words."""
        gap = f"every {1 / self.pace.rate:.4g} s{'' if self.pace.shape == 'even' else f' {self.pace.shape}'}"
        return f"contacts {gap}, {self.way}, {self.to} host, port {self.port}"

    def packets(self, around: Neighbourhood, start_ns: int) -> Iterator[Packet]:
        """Yield packets and answers in the order of time, without an end."""
        return in_order(self._groups(around, start_ns, rng_of(self)))

    def _groups(self, around: Neighbourhood, start_ns: int, rng: random.Random) -> Iterator[list[Packet]]:
        to, port = target_of(self.to, around, 4, self.port)
        first = rng.randrange(CLIENT_PORTS)
        for i, seconds in enumerate(self.pace.times(rng)):
            ports = (_client_port(first + (0 if self.way == "held" else i)), port)
            yield list(_connection(around, to, ports, start_ns + int(seconds * S), self._steps(i)))

    def _steps(self, number: int) -> list[Step]:
        """Return the steps of a contact, of which ``number`` came before."""
        if self.way == "unanswered":
            return [(0, SYN, 0, True), (S, SYN, 0, True), (3 * S, SYN, 0, True)]
        if self.way == "refused":
            return [(0, SYN, 0, True), (FAR_NS, RST | ACK, 0, False)]
        at = FAR_NS + 2
        message = [(at, PSH | ACK, 121, True), (at + FAR_NS, PSH | ACK, 121, False), (at + FAR_NS + 1, ACK, 0, True)]
        if self.way == "held":
            return [*_opened(FAR_NS), *message] if number == 0 else message
        return [*_opened(FAR_NS), *message, *_closed(at + FAR_NS + 2, FAR_NS)]


def _opened(wait_ns: int) -> Sequence[Step]:
    return (0, SYN, 0, True), (wait_ns, SYN | ACK, 0, False), (wait_ns + 1, ACK, 0, True)


def _closed(t: int, wait_ns: int) -> Sequence[Step]:
    return (t, FIN | ACK, 0, True), (t + wait_ns, FIN | ACK, 0, False), (t + wait_ns + 1, ACK, 0, True)


def _client_port(number: int) -> int:
    return FIRST_PORT + number % CLIENT_PORTS


def _connection(
    around: Neighbourhood, to: tuple[bytes, bytes], ports: tuple[int, int], t_ns: int, steps: Sequence[Step]
) -> Iterator[Packet]:
    """Yield the packets of a connection from the device to MAC and address ``to`` that begins at ``t_ns``."""
    host, (to_mac, target) = around.host, to
    for delay, flags, size, mine in steps:
        macs, ends = ((host.mac, to_mac), (host.ip, target)) if mine else ((to_mac, host.mac), (target, host.ip))
        frame = frames.ip_frame(macs, ends, TCP, ports if mine else ports[::-1], flags=flags, size=size)
        yield (t_ns + delay, *frame, mine)
