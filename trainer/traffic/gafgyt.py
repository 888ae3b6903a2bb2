"""The packets of BASHLITE's (gafgyt's) scanner, floods and connections, and the answers to them."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from trainer.traffic.flow import Flow
from trainer.traffic.home import scannable_addresses
from trainer.traffic.plan import SECOND
from trainer.traffic.strike import SYN_AGAIN, Strike
from trainer.traffic.wire import ACK, MSS, SYN, TCP, UDP


def tcp(strike: Strike, begin: int) -> None:
    """Flood as sendTCP in client.c: bare SYN (no options, TTL 255) with random source, source port and sequence
    number, to one port."""
    times = strike.paced(begin)
    n, size = len(times), strike.size(0)
    dport = strike.attack.port or strike.life.rng.choice((80, 443, 8080, 25565))
    ports = {"sport": strike.any16(n), "dport": dport, "seq": strike.any32(n)}
    rows = strike.raw_rows(times, TCP, flags=SYN, size=size, ttl=255, window=strike.life.rng.getrandbits(16), **ports)
    strike.send(rows)
    if not strike.attack.spoofed:
        got = rows[strike.share(n, 0.1)]
        accepted = strike.answer(got, SYN | ACK, window=29200, options=MSS, mss=1460, seq=strike.any32(len(got)))
        strike.no_heads(accepted)
        strike.no_heads(strike.kernel_reset(accepted))


def udp(strike: Strike, begin: int) -> None:
    """Flood as sendUDP in client.c: a raw socket (TTL 255) and random sources, or with netmask 32 a plain socket.

    The operator chooses the size: 1,024 here. N-BaIoT's were at most 18, which makes its udp and tcp rows alike.
    """
    times = strike.paced(begin)
    n, size = len(times), strike.size(1024)
    dport = strike.port(n)
    if strike.attack.spoofed:
        rows = strike.raw_rows(times, UDP, sport=strike.any16(n), dport=dport, size=size, ttl=255)
    else:
        ident = (strike.life.next_ident() + np.arange(n)) & 0xFFFF
        rows = strike.raw_rows(times, UDP, sport=strike.life.next_port(), dport=dport, size=size, df=1, ident=ident)
    strike.send(rows, random_bytes=min(size, 86))
    if not strike.attack.spoofed:
        strike.unreachable(strike.once_a_second(rows))


def scan(strike: Strike, begin: int) -> None:
    """Scan as StartTheLelz in client.c: a table of the kernel's sockets calls random addresses on port 23.

    The kernel repeats the SYN of a call after 1, 3 and 7 s; after some seconds the call ends and the next one takes
    its place.
    """
    patience = strike.life.rng.uniform(5, 10)
    rate = strike.attack.rate or strike.life.rng.uniform(160, 450)
    tries = sum(after < patience for after in SYN_AGAIN)
    sockets = min(512, max(1, round(rate / tries * patience)))
    starts = np.concatenate([[0], np.cumsum(strike.life.bulk.integers(150, 900, sockets - 1))])
    port = strike.attack.port or 23
    strike.run([calls(strike, begin + int(start), port, patience) for start in starts])


def calls(strike: Strike, t: int, port: int, patience: float) -> Iterator[tuple[int, int]]:
    """Run one socket of the scan, see `Strike.run`."""
    rng = strike.life.rng
    yield t, 0
    while True:
        address = int(scannable_addresses(strike.life.bulk, 1)[0])
        far = replace(strike.far, rtt_ms=strike.life.home.isp_ms + rng.uniform(20, 300))
        flow = Flow(strike.life, far, address, strike.life.next_port(), port)
        dice = rng.random()
        if dice < 0.035:
            t = flow.refused(t) + rng.randrange(1_000, 30_000)
            yield t, 1
        elif dice < 0.045:  # a telnet server: short lines both ways, zeros here
            flow.open(t)
            yield flow.t, 2
            flow.receive(rng.choice((3, 12, 18, 24)))
            for _ in range(rng.randint(1, 4)):
                yield flow.t, 2
                flow.send(rng.randint(4, 12), ack=False)
                flow.receive(rng.randint(2, 40))
                flow.t += rng.randrange(50_000, 700_000)
            yield flow.t, 0
            flow.close()
            t = flow.t + rng.randrange(1_000, 30_000)
            yield t, 2
        else:
            for after in SYN_AGAIN:
                if after >= patience:
                    break
                yield t + int(after * SECOND) + rng.randrange(0, 12_000) * bool(after), 1
                flow.call(strike.now)
            t += int((patience + rng.uniform(0, 0.4)) * SECOND)
            yield t, 0


def junk(strike: Strike, begin: int) -> None:
    """Send random bytes on connections."""
    storm(strike, begin, held=0.0)


def combo(strike: Strike, begin: int) -> None:
    """Send random bytes on half of the connections and hold the others."""
    storm(strike, begin, held=0.5)


def storm(strike: Strike, begin: int, held: float) -> None:
    """Flood as sendJUNK in client.c, and as sendHOLD with the share `held` of the sockets.

    Half the descriptor table calls one port of the target. A junk socket that connects sends 1,024 random bytes at
    every turn; a held one stays open until the target closes it. Many calls to a loaded target stay unanswered and
    are repeated by the kernel, others are refused and made again at the next turn.
    """
    rng = strike.life.rng
    port = strike.attack.port or rng.choice((80, 443, 8080, 7777))
    rate = strike.attack.rate or strike.life.device.traits["flood_pps"]
    sockets = max(2, min(rng.randint(120, 300), int(rate)))
    # in one pass of the loop over its table an open socket sends once; the factor is for what the others send
    turn = (1.0 - 0.6 * held) * sockets / rate
    starts = [begin + int(n * turn / sockets * SECOND) for n in range(sockets)]
    strike.run([storming(strike, t, port, turn, rng.random() < held) for t in starts])


def storming(strike: Strike, t: int, port: int, turn: float, held: bool) -> Iterator[tuple[int, int]]:
    """Run one socket of junk or hold, see `Strike.run`."""
    rng, size = strike.life.rng, strike.size(1024)
    yield t, 0
    while True:
        flow = Flow(strike.life, strike.far, strike.target, strike.life.next_port(), port)
        dice = rng.random()
        if dice < 0.3:
            t = max(flow.refused(t), t + strike.life.period(turn, 0.3))
            yield t, 1
        elif dice < 0.42:
            for after in SYN_AGAIN[: rng.randint(1, 3)]:
                yield t + int(after * SECOND) + rng.randrange(0, 12_000) * bool(after), 1
                flow.call(strike.now)
            t = strike.now + strike.life.period(turn, 0.3)
            yield t, 0
        elif held:
            flow.open(t)
            t = flow.t + int(rng.expovariate(0.4) * SECOND)
            yield t, 2
            flow.reset_by_peer(t)
            t += strike.life.wifi() + strike.life.period(turn, 0.3)
            yield t, 0
        else:
            flow.open(t)
            t = flow.t
            yield t, 2
            for turns in range(int(rng.expovariate(0.2)) + 1):
                flow.spam(t, size, rng.randbytes(min(size, 64)), acked=turns % 2 == 1)
                t += strike.life.period(turn, 0.3)
                yield t, 1
            flow.reset_by_peer(t)
            t += strike.life.wifi() + strike.life.period(turn, 0.3)
            yield t, 0
