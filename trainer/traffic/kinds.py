"""The behaviour of each kind of device, beyond what all do."""

from collections.abc import Callable

from trainer.traffic import appliances, people, sessions, video
from trainer.traffic.client import Client
from trainer.traffic.home import BROADCAST, BROADCAST_MAC
from trainer.traffic.messages import tls_record
from trainer.traffic.plan import SECOND
from trainer.traffic.station import VISITS


def camera(life: Client, begin: int, end: int) -> None:
    """Look for the outside, upload clips, show a live view."""
    rng, traits, host = life.rng, life.device.traits, life.device.hosts["stun"]
    for at in life.every(begin, end, traits["stun_s"], 0.01, first=0.1):
        address, sport = rng.choice(host.pool[:3]), life.next_port()
        for n in range(int(traits["stun_tries"])):
            video.stun(life, at + n * rng.randrange(60_000, 90_000), address, sport, 3478, host, rng.random() < 0.5)
    sessions.ssdp(life, begin, end)
    for at in life.happenings(begin, end, 40):
        life.request(at, "api", rng.randint(400, 1500), rng.randint(200, 900))
        video.upload(life, at + rng.randrange(100_000, SECOND), "video", rng.uniform(8, 25))
    for at in life.happenings(begin, end, 18):
        video.live_view(life, at, rng.uniform(15, 70))
    if life.home.habits is not None:
        video.watched(life, begin, end)


def doorbell(life: Client, begin: int, end: int) -> None:
    """Announce visitors with a clip or a live view."""
    rng = life.rng
    sessions.announce(life, begin, end, "_doorbell._tcp")
    for at in life.happenings(begin, end, 22, VISITS):
        life.request(at, "push", rng.randint(300, 900), rng.randint(150, 500))
        if rng.random() < 0.5:
            video.live_view(life, at + rng.randrange(SECOND, 6 * SECOND), rng.uniform(10, 40))
        else:
            video.upload(life, at + rng.randrange(50_000, SECOND), "video", rng.uniform(5, 15))


def plug(life: Client, begin: int, end: int) -> None:
    """Call out on the LAN, be switched."""
    rng, traits = life.rng, life.device.traits
    port = int(traits["lan_port"])
    for at in life.every(begin, end, traits["lan_s"], 0.2):
        sport = life.next_port() if rng.random() < 0.05 else 49153
        life.udp(at, BROADCAST, sport, port, int(traits["lan_bytes"]), up=True, mac=BROADCAST_MAC)
    for at in life.happenings(begin, end, 14):
        sessions.phone_udp(life, at, rng.uniform(3, 40), int(traits["lan_bytes"]))


def thermostat(life: Client, begin: int, end: int) -> None:
    """Fetch the weather, be adjusted."""
    rng = life.rng
    sessions.announce(life, begin, end, "_hap._tcp")
    for at in life.every(begin, end, 1350, 0.2):
        life.request(at, "weather", rng.randint(250, 420), rng.randint(1500, 6000))
    for at in life.happenings(begin, end, 10):
        life.request(at, "api", rng.randint(400, 1200), rng.randint(300, 1500))
        sessions.phone_udp(life, at + SECOND, rng.uniform(3, 20), 240)


def gateway(life: Client, begin: int, end: int) -> None:
    """Pass on what its sensors report."""
    rng, home = life.rng, life.home
    sessions.announce(life, begin, end, "_hub._udp")
    for at in life.happenings(begin, end, 160):  # its sensors: doors, motion, switches
        flow = rng.choice(("api", "log"))
        if rng.random() < 0.15:
            life.request(at, flow, rng.randint(500, 1800), rng.randint(180, 500), resumed=True)
        else:
            life.udp(at, home.lan | 255, 4321, 9898, rng.randint(80, 160), up=True, mac=BROADCAST_MAC)
    for at in life.happenings(begin, end, 16):
        sessions.phone_udp(life, at, rng.uniform(5, 60), 180)


def speaker(life: Client, begin: int, end: int) -> None:
    """Answer questions, play music."""
    rng = life.rng
    sessions.announce(life, begin, end, "_cast._tcp")
    sessions.ssdp(life, begin, end)
    for at in life.happenings(begin, end, 26):
        flow = life.tls(at, "voice", resumed=rng.random() < 0.5)
        for _ in range(rng.randint(15, 50)):
            flow.send(rng.randint(600, 1300), tls_record(600), quick=True)
            flow.t += rng.randrange(40_000, 110_000)
        flow.receive(rng.randint(8_000, 60_000), tls_record(8000))
        flow.close()
        if rng.random() < 0.35:
            music(life, flow.t + SECOND, rng.uniform(60, 300), end)


def music(life: Client, t: int, seconds: float, end: int) -> None:
    """Fetch audio in pieces of ten seconds."""
    flow, over = life.tls(t, "music"), min(end, t + int(seconds * SECOND))
    while flow.t < over:
        flow.send(life.rng.randint(300, 500), tls_record(300), ack=False)
        flow.receive(life.rng.randint(50_000, 140_000), tls_record(16000))
        flow.t += life.period(10, 0.1)
    flow.close()


def bulb(life: Client, begin: int, end: int) -> None:
    """Be switched, call out on the LAN."""
    rng = life.rng
    for at in life.happenings(begin, end, 24):
        sessions.phone_udp(life, at, rng.uniform(2, 25), 90)
    for at in life.every(begin, end, 300, 0.1):
        life.udp(at, BROADCAST, 56700, 56700, 36, up=True, mac=BROADCAST_MAC)


BEHAVIOURS: dict[str, Callable[[Client, int, int], None]] = {
    "camera": camera,
    "plug": plug,
    "thermostat": thermostat,
    "doorbell": doorbell,
    "gateway": gateway,
    "speaker": speaker,
    "bulb": bulb,
    "hub": appliances.hub,
    "tv": appliances.tv,
    "printer": appliances.printer,
    "phone": people.phone,
    "pc": people.pc,
}
"""Kind of device -> what it does between two times, µs, while it is connected."""

ASLEEP: dict[str, Callable[[Client, int, int], None]] = {"battery_camera": appliances.battery_camera}
"""Kind of device that is rarely connected -> its whole life."""
