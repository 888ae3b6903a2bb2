"""Video of a camera: recorded, uploaded, and watched in the LAN or outside."""

import struct
from collections.abc import Callable
from dataclasses import replace

from trainer.traffic.client import Client
from trainer.traffic.flow import Flow
from trainer.traffic.home import CloudHost
from trainer.traffic.messages import tls_record
from trainer.traffic.plan import SECOND


def stream(life: Client, t: int, seconds: float, send: Callable[[int, int], None], trait: str = "kbps") -> int:
    """Record video: frames at a steady rate, a key frame every two seconds; return the time of its end.

    `send(t, bytes)` is called once a frame. `trait` holds the bits a second, in thousands.
    """
    traits, rng = life.device.traits, life.rng
    gap, frame = SECOND / traits["fps"], traits[trait] * 125 / traits["fps"]
    group = int(2 * traits["fps"])
    for n in range(int(seconds * traits["fps"])):
        scale = 4.0 if n % group == 0 else 1 - 3 / group
        send(int(t + n * gap + rng.uniform(0, 4000)), max(60, int(frame * scale * rng.lognormvariate(0, 0.3))))
    return int(t + seconds * SECOND)


def rtp(life: Client, peer: int, mac: int, sport: int, dport: int) -> Callable[[int, int], None]:
    """Return a function that sends frames as RTP packets."""
    rng = life.rng
    number, source = rng.getrandbits(16), rng.getrandbits(32)

    def send(t: int, size: int) -> None:
        nonlocal number
        while size > 0:
            part = min(size, 1400)
            size -= part
            kind, clock = 96 | (0x80 if size <= 0 else 0), t * 9 // 100 & 0xFFFFFFFF
            head = struct.pack(">BBHII", 0x80, kind, number & 0xFFFF, clock, source)
            life.udp(t, peer, sport, dport, part + 12, head, up=True, mac=mac)
            number += 1
            t += rng.randrange(120, 420)

    return send


def upload(life: Client, t: int, role: str, seconds: float) -> None:
    """Send a clip to the cloud over TLS as it is recorded."""
    flow = life.tls(t, role)
    flow.send(900, tls_record(900))

    def send(at: int, size: int) -> None:
        flow.t = max(flow.t, at)
        flow.send(size, tls_record(min(size, 16000)), quick=True)

    stream(life, flow.t, seconds, send)
    flow.receive(300, tls_record(300))
    flow.close()


def live_view(life: Client, t: int, seconds: float) -> None:
    """Stream to a viewer: on the LAN over RTSP and RTP, or outside over UDP by a relay."""
    rng, home, device = life.rng, life.home, life.device
    if rng.random() < 0.5:
        host = replace(device.hosts["video"], rtt_ms=device.traits["wifi_ms"] + 2, ttl=64, certificate=0)
        flow = Flow(life, host, home.phone, 554, rng.randrange(32768, 61000), mac=home.phone_mac, served=True)
        flow.open(t)
        port, local = rng.randrange(10_000, 60_000) & ~1, rng.randrange(10_000, 60_000) & ~1
        for number, verb in enumerate(("OPTIONS", "DESCRIBE", "SETUP", "PLAY"), 1):
            text = f"{verb} rtsp://camera/stream RTSP/1.0\r\nCSeq: {number}\r\n\r\n".encode()
            flow.receive(len(text), text, ack=False)
            flow.t += rng.randrange(1_000, 12_000)
            reply = f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n".encode()
            flow.send(rng.randint(560, 700) if verb == "DESCRIBE" else rng.randint(90, 220), reply, ack=False)
        done = stream(life, flow.t, seconds, rtp(life, home.phone, home.phone_mac, local, port))
        for at in range(flow.t + 5 * SECOND, done, 5 * SECOND):
            life.udp(at, home.phone, port + 1, local + 1, 52, b"\x80\xc9\x00\x07", up=False, mac=home.phone_mac)
        flow.t = max(flow.t, done)
        text = b"TEARDOWN rtsp://camera/stream RTSP/1.0\r\nCSeq: 5\r\n\r\n"
        flow.receive(len(text), text, ack=False)
        flow.send(60, b"RTSP/1.0 200 OK\r\nCSeq: 5\r\n")
        flow.close()
        return
    done, address = life.resolve(t, "video")
    host, sport, port = device.hosts["video"], life.next_port(), rng.randrange(20_000, 60_000)
    for step in range(3):
        stun(life, done + step * 30_000, address, sport, port, host)
    over = stream(life, done + 300_000, seconds, rtp(life, address, 0, sport, port))
    at = done + 300_000
    while at < over:
        life.udp(at, address, port, sport, rng.randint(60, 110), b"\x80\xc9\x00\x07", up=False, ttl=host.ttl)
        at += life.period(0.25, 0.5)


def stun(life: Client, t: int, address: int, sport: int, port: int, host: CloudHost, answered: bool = True) -> None:
    """Make one binding request, and answer it if `answered`."""
    ident = life.rng.getrandbits(96).to_bytes(12, "big")
    life.udp(t, address, sport, port, 20, b"\x00\x01\x00\x00\x21\x12\xa4\x42" + ident, up=True)
    if answered:
        reply = b"\x01\x01\x00\x0c\x21\x12\xa4\x42" + ident + b"\x00\x20\x00\x08\x00\x01"
        life.udp(t + life.rtt(host), address, port, sport, 32, reply, up=False, ttl=host.ttl)


def watched(life: Client, begin: int, end: int) -> None:
    """Show what a camera sees to a phone in the LAN or behind another router, by the vendor's own datagrams."""
    rng = life.rng
    for at in life.happenings(begin, end, 16):
        lan_view(life, at, rng.uniform(5, 30))
    for at in life.happenings(begin, end, 6):
        chat(life, at, rng.uniform(30, 400))
    if life.device.traits["punches"]:
        for at in life.happenings(begin, end, 16):
            punch(life, at)


def lan_view(life: Client, t: int, seconds: float) -> None:
    """Stream to a phone in the LAN: some hundreds of datagrams a second one way, a report now and then back."""
    rng, home = life.rng, life.home
    sport, port = rng.randrange(10_000, 60_000), rng.randrange(32_768, 61_000)
    for n in range(rng.randint(1, 5)):
        life.udp(t + n * 40_000, home.phone, port, sport, rng.randint(20, 120), up=False, mac=home.phone_mac)
        life.udp(
            t + n * 40_000 + life.wifi(), home.phone, sport, port, rng.randint(20, 300), up=True, mac=home.phone_mac
        )
    over = stream(life, t + 400_000, seconds, rtp(life, home.phone, home.phone_mac, sport, port), "lan_view_kbps")
    at = t + SECOND
    while at < over:
        life.udp(at, home.phone, port, sport, rng.randint(48, 100), up=False, mac=home.phone_mac)
        at += life.period(rng.choice((0.3, 1.5, 5.0)), 0.3)


def chat(life: Client, t: int, seconds: float) -> None:
    """Keep a session with an app: small datagrams both ways, some a second, for minutes."""
    rng, home = life.rng, life.home
    sport, port, over = rng.randrange(10_000, 60_000), rng.randrange(32_768, 61_000), t + int(seconds * SECOND)
    gap = rng.choice((0.15, 0.3, 1.0))
    while t < over:
        for _ in range(rng.randint(1, 2)):
            life.udp(t, home.phone, port, sport, 20, up=False, mac=home.phone_mac)
        life.udp(t + life.wifi(), home.phone, sport, port, 20, up=True, mac=home.phone_mac)
        t += life.period(gap, 0.3)


def punch(life: Client, t: int) -> None:
    """Look for a way to a viewer behind another router: the same datagram to several of its ports, mostly in vain."""
    rng, sport = life.rng, life.next_port()
    host = life.site()
    address, port, size = host.pool[0], rng.randrange(20_000, 60_000), rng.randint(20, 70)
    for n in range(rng.randint(4, 16)):
        for step in range(rng.randint(1, 5)):
            life.udp(t + n * 260_000 + step * 900, address, sport, port + step, size, up=True)
    if rng.random() < 0.5:
        for step in range(rng.choice((5, 20, 40, 280))):
            life.udp(t + 2 * SECOND + step * 30_000, address, sport, port, size, up=True)
            if step % 8 == 0:
                life.udp(t + 2 * SECOND + step * 30_000 + life.rtt(host), address, port, sport, size, up=False)
