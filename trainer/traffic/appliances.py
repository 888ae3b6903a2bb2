"""Kinds of device beside the first seven: hub, television, printer, and a camera that sleeps on its battery."""

from trainer.traffic import people, sessions, video
from trainer.traffic.client import Client
from trainer.traffic.home import BROADCAST_MAC
from trainer.traffic.messages import tls_record
from trainer.traffic.plan import HOUR, SECOND

WS_DISCOVERY = 0xEFFFFFFA
"""The group of WS-Discovery, which is that of SSDP, with port 3702."""


def hub(life: Client, begin: int, end: int) -> None:
    """Speak for lamps and sensors: to the cloud by requests that wait for news, to apps by a server of its own."""
    rng, home = life.rng, life.home
    sessions.announce(life, begin, end, "_hap._tcp")
    for at in life.every(begin, end, rng.choice((300, 900)), 0.02):  # the server answers when there is news, or late
        flow = life.tls(at, "poll")
        for _ in range(rng.randint(2, 7)):
            flow.send(rng.randint(150, 900), tls_record(150), ack=False)
            flow.t += rng.randrange(50_000, 40 * SECOND)
            flow.receive(rng.randint(90, 500), tls_record(90))
        flow.close()
    for at in life.happenings(begin, end, 120):
        life.udp(at, home.lan | 255, 4321, 9898, rng.randint(80, 160), up=True, mac=BROADCAST_MAC)
    for at in life.happenings(begin, end, 20):
        flow = life.to_lan(home.phone, home.phone_mac, rng.randrange(32768, 61000), local=443, served=True)
        flow.open(at)
        flow.receive(400, ack=False)
        flow.send(rng.randint(1500, 3000), tls_record(1500))
        for _ in range(rng.randint(3, 60)):
            flow.receive(rng.randint(100, 500), tls_record(100), ack=False)
            flow.send(rng.randint(200, 5000), tls_record(200))
            flow.t += rng.randrange(20_000, 3 * SECOND)
        flow.close()


def tv(life: Client, begin: int, end: int) -> None:
    """Start apps, which call many hosts at once, and stream films; be found by phones."""
    rng = life.rng
    sessions.announce(life, begin, end, "_cast._tcp")
    sessions.ssdp(life, begin, end)
    for at in life.happenings(begin, end, 20):
        people.page(life, at, rng.randint(3, 20))
        if rng.random() < 0.5:
            people.watch(life, at + 4 * SECOND, rng.uniform(30, 150), end)
    for at in life.happenings(begin, end, 60):
        life.request(at, "ads", rng.randint(400, 2500), rng.randint(200, 30_000))


def printer(life: Client, begin: int, end: int) -> None:
    """Be found, answer for the state of its ink, print and scan."""
    rng, home = life.rng, life.home
    sessions.announce(life, begin, end, "_ipp._tcp")
    for at in life.every(begin, end, 1800, 0.3):
        life.udp(at, WS_DISCOVERY, 3702, 3702, rng.randint(600, 900), up=True)
    for at in life.happenings(begin, end, 60):
        sport = rng.randrange(32768, 61000)
        for n in range(rng.randint(1, 12)):
            life.udp(at + n * 30_000, home.phone, sport, 161, rng.randint(40, 90), up=False, mac=home.phone_mac)
            back = at + n * 30_000 + life.wifi()
            life.udp(back, home.phone, 161, sport, rng.randint(45, 200), up=True, mac=home.phone_mac)
    for at in life.happenings(begin, end, 12):
        flow = life.to_lan(
            home.phone, home.phone_mac, rng.randrange(32768, 61000), local=rng.choice((631, 9100)), served=True
        )
        flow.open(at)
        if rng.random() < 0.7:
            flow.receive(rng.randint(20_000, 1_500_000))
            flow.send(rng.randint(100, 400))
        else:
            flow.receive(500)
            flow.send(rng.randint(200_000, 1_500_000))
        flow.close()


def battery_camera(life: Client, begin: int, end: int) -> None:
    """Sleep for hours, also with the Wi-Fi off; wake for a clip, and send it within seconds."""
    rng, traits = life.rng, life.device.traits
    t = begin
    hours = rng.choice((1, 2, 6, 12, 24))
    while t < end:
        at = life.dhcp(t, boot=True)
        at = life.resolve_router(at) + rng.randrange(10_000, 90_000)
        if rng.random() < 0.3:
            life.ntp(at)
        if rng.random() < 0.8:
            flow = life.tls(at, "video")
            for _ in range(rng.randint(1, 4)):
                flow.send(rng.randint(100, 700), tls_record(100), ack=False)
                flow.receive(rng.randint(100, 900), tls_record(100))
            for _ in range(rng.randint(1, 6)):  # the clip, in pieces as fast as the Wi-Fi allows
                flow.send(rng.randint(60_000, 260_000), tls_record(16000), quick=True)
                flow.t += rng.randrange(20_000, 2 * SECOND)
            if rng.random() < 0.3:
                video.live_view(life, flow.t, rng.uniform(5, 25))
            flow.t += rng.randrange(1, 20) * SECOND
            flow.close()
        else:
            life.request(at, "api", int(traits["request_bytes"]), int(traits["response_bytes"]))
        t = at + 60 * SECOND + int(rng.expovariate(1) * hours * HOUR)
        if rng.random() < 0.5:  # the same visitor again
            t = at + rng.randrange(30, 200) * SECOND
