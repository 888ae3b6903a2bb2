"""The use of phones and computers by people: pages, videos, calls, downloads, tunnels, swarms, apps for the home."""

from trainer.traffic import sessions
from trainer.traffic.client import Client
from trainer.traffic.events import unanswered
from trainer.traffic.flow import Flow
from trainer.traffic.home import BROADCAST, BROADCAST_MAC, CloudHost
from trainer.traffic.messages import tls_record
from trainer.traffic.plan import PEOPLES, SECOND


def phone(life: Client, begin: int, end: int) -> None:
    """Look at apps and pages, watch, call, and ask the home's devices."""
    rng = life.rng
    sessions.announce(life, begin, end, "_companion._tcp")
    for at in life.happenings(begin, end, 75):
        page(life, at, rng.randint(1, 8))
    for at in life.happenings(begin, end, 20):
        page(life, at, rng.randint(5, 20))
    for at in life.happenings(begin, end, 8):
        watch(life, at, rng.uniform(20, 90), end)
    for at in life.happenings(begin, end, 4):
        call(life, at, rng.uniform(15, 80))
    for at in life.happenings(begin, end, 16):
        control(life, at, rng.uniform(5, 60))
    for at in life.happenings(begin, end, 3):
        upload(life, at, rng.randint(200_000, 2_000_000))
    if life.device.traits["vpn"]:
        for at in life.happenings(begin, end, 4):
            tunnel(life, at, rng.uniform(20, 90))


def pc(life: Client, begin: int, end: int) -> None:
    """Look at pages, call, watch, load large files, work through a tunnel, take part in a swarm."""
    rng, traits = life.rng, life.device.traits
    for at in life.happenings(begin, end, 70):
        page(life, at, rng.randint(2, 30))
    for at in life.happenings(begin, end, 6):
        call(life, at, rng.uniform(20, 90))
    for at in life.happenings(begin, end, 6):
        watch(life, at, rng.uniform(20, 120), end)
    for at in life.happenings(begin, end, 4):
        download(life, at, rng.randint(1_000_000, 8_000_000))
    for at in life.happenings(begin, end, 4):
        upload(life, at, rng.randint(300_000, 3_000_000))
    for at in life.happenings(begin, end, 6):
        control(life, at, rng.uniform(2, 20))
    if traits["vpn"]:
        for at in life.happenings(begin, end, 8):
            tunnel(life, at, rng.uniform(20, 120))
    if traits["swarms"]:
        for at in life.happenings(begin, end, 12):
            swarm(life, at)


def page(life: Client, t: int, hosts: int) -> None:
    """Open a page or an app: many hosts within seconds, some on several connections, some over QUIC."""
    rng = life.rng
    load(life, t, life.site(), 1)
    for _ in range(hosts - 1):
        load(life, t + rng.randrange(80_000, 4 * SECOND), life.site(), rng.choice((1, 1, 1, 2, 6)))


def load(life: Client, t: int, host: CloudHost, connections: int) -> None:
    """Fetch what a page needs from one host."""
    rng = life.rng
    t, address = life.look_up(t, host)
    if rng.random() < 0.3:
        quic(life, t, host, address, _size(life))
        return
    for _ in range(connections):
        flow = life.call(t, host, address)
        life.secure(flow, resumed=rng.random() < 0.4)
        for _ in range(rng.randint(1, 3)):
            flow.send(rng.randint(90, 1300), tls_record(90), ack=False)
            flow.receive(_size(life), tls_record(900))
            flow.t += rng.randrange(1_000, 400_000)
        if rng.random() < 0.7:
            flow.t += rng.randrange(0, 30 * SECOND)
            flow.close(reset=rng.random() < 0.2)
        t += rng.randrange(500, 40_000)


def _size(life: Client) -> int:
    """Return the bytes of one object of a page: most are small, a few large."""
    return int(min(150_000, 900 * life.rng.paretovariate(0.8)))


def quic(life: Client, t: int, host: CloudHost, address: int, size: int) -> int:
    """Fetch over QUIC: full datagrams, one short acknowledgement for some of them; return the time of the end."""
    rng, sport = life.rng, life.next_port()
    ipv6 = bool(life.device.traits["ipv6"]) and rng.random() < 0.5
    for _ in range(rng.randint(1, 2)):
        life.udp(t, address, sport, 443, 1250, b"\xc3\0\0\0\1", up=True, ipv6=ipv6)
        t += rng.randrange(50, 900)
    t += life.rtt(host)
    n = 0
    while size > 0:
        life.udp(t, address, 443, sport, min(1250, max(40, size)), b"\x43", up=False, ttl=host.ttl, ipv6=ipv6)
        size -= 1250
        n += 1
        if n % rng.randint(2, 8) == 0 or size <= 0:
            life.udp(t + life.wifi(), address, sport, 443, rng.randint(33, 80), b"\x43", up=True, ipv6=ipv6)
        t += rng.randrange(60, 600) + (life.rtt(host) if n % 24 == 0 else 0)
    return t


def watch(life: Client, t: int, seconds: float, end: int) -> None:
    """Stream a video: pieces of some seconds, each as fast as the line allows."""
    rng, over = life.rng, min(end, t + int(seconds * SECOND))
    hosts = [life.site() for _ in range(rng.randint(1, 3))]
    piece = rng.choice((60_000, 150_000, 400_000))
    flows = []
    for host in hosts:
        at, address = life.look_up(t, host)
        flow = life.call(at, host, address)
        life.secure(flow)
        flows.append(flow)
    at = max(flow.t for flow in flows)
    while at < over:
        flow = rng.choice(flows)
        flow.t = max(flow.t, at)
        flow.send(rng.randint(300, 900), tls_record(300), ack=False)
        flow.receive(int(piece * rng.uniform(0.6, 1.3)), tls_record(16000))
        at = flow.t + life.period(rng.choice((2, 4, 8)), 0.2)
    for flow in flows:
        flow.close()


def call(life: Client, t: int, seconds: float) -> None:
    """Speak with somebody, with video more often than not: find a path, then datagrams both ways without a pause."""
    rng = life.rng
    for host in [life.site() for _ in range(rng.randint(1, 4))]:
        load(life, t, host, 1)
    far = life.site()
    t, address = life.look_up(t + rng.randrange(SECOND, 3 * SECOND), far)
    sport, port = life.next_port(), rng.choice((3478, 3480, 8801, 9000, 19305, 50_010))
    for n in range(rng.randint(2, 8)):
        life.udp(t + n * 25_000, address, sport, port, rng.randint(20, 110), b"\x00\x01", up=True)
        life.udp(t + n * 25_000 + life.rtt(far), address, port, sport, rng.randint(32, 110), b"\x01\x01", up=False)
    streams = [(True, 20_000, 90, 200), (False, 20_000, 90, 200)]  # voice: 50 datagrams a second
    if rng.random() < 0.7:
        for up in (True, False):
            streams.append((up, rng.randrange(7_000, 25_000), 700, 1150))
    over = t + int(seconds * SECOND)
    for up, gap, least, most in streams:
        at = t + SECOND + rng.randrange(300_000)
        while at < over:
            ends = (sport, port) if up else (port, sport)
            life.udp(at, address, *ends, rng.randint(least, most), b"\x80\x6f", up=up, ttl=far.ttl)
            at += max(200, int(rng.gauss(gap, gap / 5)))


def download(life: Client, t: int, size: int) -> None:
    """Load one large file."""
    host = life.site()
    t, address = life.look_up(t, host)
    flow = life.call(t, host, address)
    life.secure(flow)
    flow.send(400, tls_record(400), ack=False)
    flow.receive(size, tls_record(16000))
    flow.close()


def upload(life: Client, t: int, size: int) -> None:
    """Store pictures or a backup outside."""
    host = life.site()
    t, address = life.look_up(t, host)
    flow = life.call(t, host, address)
    life.secure(flow)
    flow.send(size, tls_record(16000))
    flow.receive(300, tls_record(300))
    flow.close()


def tunnel(life: Client, t: int, seconds: float) -> None:
    """Work through a tunnel: everything on one socket, in bursts both ways."""
    rng, host = life.rng, life.site()
    t, address = life.look_up(t, host)
    sport, port, over = life.next_port(), rng.choice((51_820, 1194, 4500)), t + int(seconds * SECOND)
    while t < over:
        for _ in range(rng.randint(1, 60)):
            up = rng.random() < 0.4
            size = rng.choice((96, 128, 1392)) if up else rng.choice((96, 160, 1392, 1392))
            life.udp(t, address, *((sport, port) if up else (port, sport)), size, b"\x04", up=up, ttl=host.ttl)
            t += rng.randrange(150, 12_000)
        t += rng.randrange(20_000, 2 * SECOND)


def swarm(life: Client, t: int) -> None:
    """Take part in a swarm: ask many peers within seconds, most of which are gone, and exchange pieces with a few."""
    rng, local = life.rng, life.next_port()
    over = t + rng.randrange(4, 25) * SECOND
    for _ in range(rng.randint(10, 60)):
        peer, at = life.site(), rng.randrange(t, over)
        port = rng.randrange(1024, 65536)
        if rng.random() < 0.5:  # a table of peers, over UDP
            life.udp(at, peer.pool[0], local, port, rng.randint(60, 110), b"d1:ad2:id20:", up=True)
            if rng.random() < 0.5:
                life.udp(
                    at + life.rtt(peer), peer.pool[0], port, local, rng.randint(200, 330), b"d1:rd2:id20:", up=False
                )
            continue
        flow, dice = Flow(life, peer, peer.pool[0], life.next_port(), port), rng.random()
        if dice < 0.4:
            unanswered(life, at, peer, over + 10 * SECOND)
        elif dice < 0.55:
            flow.refused(at)
        else:
            flow.open(at)
            for _ in range(rng.randint(2, 8)):
                flow.send(rng.randint(68, 400), ack=False)
                flow.receive(rng.randint(68, 900))
            if rng.random() < 0.3:
                flow.receive(rng.randint(16_000, 200_000))
            flow.close(reset=rng.random() < 0.5)


def control(life: Client, t: int, seconds: float) -> None:
    """Let an app look for the home's devices and speak with one, by datagrams or on a connection."""
    rng, home = life.rng, life.home
    sessions.search(life, t)
    other = home.lan | rng.randrange(20, 60)
    mac = 0x02 << 40 | home.lan << 8 & 0xFFFFFF0000 | other & 0xFF
    port, over = rng.choice((9999, 6668, 7000, 54321, 5683)), t + int(seconds * SECOND)
    while t < over:
        dice = rng.random()
        if dice < 0.15 and life.device.kind in PEOPLES:  # the vendor's cloud beside it
            for _ in range(rng.randint(1, 4)):
                life.request(t, "api", rng.randint(450, 1200), rng.randint(300, 1500), resumed=rng.random() < 0.6)
                t += rng.randrange(1_000, 300_000)
        elif dice < 0.5:
            sport = life.next_port()
            for _ in range(2):
                life.udp(t, BROADCAST, sport, port, rng.randint(29, 120), up=True, mac=BROADCAST_MAC)
            life.udp(t + life.wifi(), other, port, sport, rng.randint(100, 600), up=False, mac=mac)
        else:
            flow = life.to_lan(other, mac, port)
            flow.open(t)
            flow.send(rng.randint(40, 250), ack=False)
            flow.receive(rng.randint(60, 900))
            flow.close()
        t += rng.randrange(200_000, 4 * SECOND)
