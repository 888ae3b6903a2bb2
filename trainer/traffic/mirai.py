"""The packets of Mirai's scanner and floods, and the answers to them."""

from dataclasses import replace

import numpy as np

from trainer.traffic.flow import Flow
from trainer.traffic.home import scannable_addresses
from trainer.traffic.plan import SECOND
from trainer.traffic.strike import Strike
from trainer.traffic.wire import ACK, MIRAI_SYN, MSS, RST, SYN, TCP, UDP


def scan(strike: Strike, begin: int) -> None:
    """Scan as scanner.c does: once a second a burst of 160 SYN to random addresses, port 23 and every tenth 2323.

    The sequence number is the target address; source port and window are the same for the run; there are no TCP
    options. Hosts that answer are then connected to by the kernel.
    """
    per_second = strike.attack.rate or 160
    burst = max(1, round(per_second))
    n = min(strike.cap, max(2, round(per_second * strike.seconds)))
    gaps = strike.life.bulk.gamma(3.0, strike.life.device.traits["burst_us"] / 3, n)
    index = np.arange(n)
    within = np.cumsum(gaps)
    second = index // burst
    starts = within[second * burst]  # time within a burst counts from the burst's first packet
    interval = SECOND * burst / per_second
    drift = np.cumsum(strike.life.bulk.uniform(0, 6000, int(second[-1]) + 1))  # select() wakes a little late
    times = begin + (second * interval + drift[second] + np.minimum(within - starts, interval * 0.9)).astype(np.int64)
    targets = scannable_addresses(strike.life.bulk, n)
    port = strike.attack.port
    dport = np.where(index % 10 == 0, 2323, 23) if port is None else np.full(n, port)
    sport = strike.life.rng.randrange(1024, 65536)
    rows = strike.raw_rows(
        times,
        TCP,
        dst=targets,
        dport=dport,
        sport=sport,
        seq=targets,
        flags=SYN,
        window=strike.life.rng.getrandbits(16),
    )
    strike.send(rows)
    dice = strike.life.bulk.random(n)
    refused = strike.answer(rows[dice < 0.03], RST | ACK)
    opened = rows[(dice >= 0.03) & (dice < 0.042)]
    accepted = strike.answer(opened, SYN | ACK, window=5840, options=MSS, mss=1460, seq=strike.any32(len(opened)))
    strike.no_heads(refused)
    strike.no_heads(accepted)
    strike.no_heads(strike.kernel_reset(accepted))  # no socket of the kernel's asked for this
    strike.unreachable(rows[(dice >= 0.042) & (dice < 0.055)], strike.far.pool[0], 1)
    for row in accepted:
        telnet(
            strike,
            int(row["t"]) + strike.life.wifi() + strike.life.rng.randrange(0, SECOND),
            int(row["src"]),
            int(row["sport"]),
        )


def telnet(strike: Strike, t: int, address: int, port: int) -> None:
    """Try to log in to a telnet server: short lines both ways, of zero bytes here, until one side closes."""
    far = replace(strike.far, rtt_ms=strike.life.home.isp_ms + strike.life.rng.uniform(20, 280))
    flow = Flow(strike.life, far, address, strike.life.next_port(), port)
    if t >= strike.over:
        return
    flow.open(t)
    flow.receive(strike.life.rng.choice((3, 12, 18, 24)))
    for _ in range(strike.life.rng.randint(1, 5)):
        if flow.t > strike.over:
            return
        flow.send(strike.life.rng.randint(3, 12), ack=False)
        flow.receive(strike.life.rng.randint(2, 30))
        flow.t += strike.life.rng.randrange(100_000, 900_000)
    if flow.t < strike.over:
        flow.close(reset=True)


def syn(strike: Strike, begin: int) -> None:
    """Flood as attack_tcp_syn in attack_tcp.c: 20 bytes of options drawn once, DF, window 0, random ports and
    sequence numbers."""
    times = strike.paced(begin)
    n = len(times)
    options = {
        "options": MIRAI_SYN,
        "mss": 1400 + strike.life.rng.randrange(16),
        "tsval": strike.life.rng.getrandbits(32),
    }
    rows = strike.raw_rows(
        times, TCP, sport=strike.any16(n), dport=strike.port(n), seq=strike.any32(n), flags=SYN, df=1, **options
    )
    strike.send(rows)
    if not strike.attack.spoofed:
        got = rows[strike.share(n, 0.12)]
        if strike.attack.port is None:  # closed ports, all but a few
            strike.no_heads(strike.answer(got, RST | ACK))
        else:
            accepted = strike.answer(got, SYN | ACK, window=29200, options=MSS, mss=1460, seq=strike.any32(len(got)))
            strike.no_heads(accepted)
            strike.no_heads(strike.kernel_reset(accepted))


def ack(strike: Strike, begin: int) -> None:
    """Flood as attack_tcp_ack in attack_tcp.c: 512 random bytes, random ports and numbers, one window per run."""
    times = strike.paced(begin)
    n, size = len(times), strike.size(512)
    numbers = {"seq": strike.any32(n), "ack": strike.any32(n), "window": strike.life.rng.getrandbits(16)}
    rows = strike.raw_rows(times, TCP, sport=strike.any16(n), dport=strike.port(n), flags=ACK, size=size, **numbers)
    strike.send(rows, random_bytes=min(size, 74))
    if not strike.attack.spoofed:
        got = rows[strike.share(n, 0.08)]
        strike.no_heads(strike.answer(got, RST, seq=got["ack"]))


def udp(strike: Strike, begin: int) -> None:
    """Flood as attack_udp_generic in attack_udp.c: 512 random bytes between random ports, from a raw socket."""
    times = strike.paced(begin)
    n, size = len(times), strike.size(512)
    rows = strike.raw_rows(times, UDP, sport=strike.any16(n), dport=strike.port(n), size=size)
    strike.send(rows, random_bytes=min(size, 86))
    if not strike.attack.spoofed:
        strike.unreachable(strike.once_a_second(rows))


def udpplain(strike: Strike, begin: int) -> None:
    """Flood as attack_udp_plain in attack_udp.c: 512 random bytes on one connected socket of the kernel.

    It sets DF, counts the identification and is faster ("optimized for higher PPS").
    """
    times = strike.paced(begin, haste=1.5)
    n, size = len(times), strike.size(512)
    ident = (strike.life.next_ident() + np.arange(n)) & 0xFFFF
    sport, dport = strike.life.rng.randrange(1, 65536), strike.attack.port or strike.life.rng.randrange(1, 65536)
    rows = strike.raw_rows(times, UDP, sport=sport, dport=dport, size=size, df=1, ident=ident)
    strike.send(rows, random_bytes=min(size, 86))
    if strike.life.rng.random() < 0.5:
        strike.unreachable(strike.once_a_second(rows))
