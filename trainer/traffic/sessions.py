"""Sessions that last: MQTT, a vendor's UDP protocol, and the announcements and searches of the LAN."""

from trainer.traffic.client import Client
from trainer.traffic.home import MDNS, SSDP
from trainer.traffic.messages import FOUND, SEARCH, mdns_message, tls_record
from trainer.traffic.plan import HOUR, MINUTE, SECOND


def mqtt(life: Client, t: int, end: int) -> None:
    """Keep MQTT sessions until `end`: connect, subscribe, keep-alives, reports, commands.

    The server closes a session every few hours, and a new one follows.
    """
    traits, rng = life.device.traits, life.rng
    while t < end:
        port = int(traits["mqtt_port"])
        secure = port == 8883
        over = min(end, t + int(rng.expovariate(1) * 5 * HOUR) + 20 * MINUTE)
        flow = life.tls(t, "mqtt", port) if secure else life.connect(t, "mqtt", port)

        def message(kind: int, size: int, secure: bool = secure) -> tuple[int, bytes]:
            size = max(2, min(size, 120 if not secure else 1300))  # one byte of remaining length in clear MQTT
            return (size + 29, tls_record(size + 29)) if secure else (size, bytes([kind, size - 2]))

        flow.send(*message(0x10, rng.randint(60, 190)), ack=False)
        flow.receive(*message(0x20, 4), ack=False)
        for _ in range(rng.randint(1, 3)):
            flow.send(*message(0x82, rng.randint(30, 90)), ack=False)
            flow.receive(*message(0x90, 5))
        beats = [(at, 0) for at in life.every(flow.t, over, traits["keepalive_s"], 0.005)]
        if life.device.kind in REPORTING:
            pause = traits["report_s"] * REPORTING[life.device.kind]
            beats += [(at, 1) for at in life.every(flow.t, over, pause, 0.1)]
        beats += [(at, 2) for at in life.happenings(flow.t, over, 30)]
        last = flow.t
        for at, what in sorted(beats):
            if what == 0 and at - last < traits["keepalive_s"] * SECOND * 0.5 and rng.random() < 0.5:
                continue  # other traffic has just shown that the connection works
            flow.t = max(at, flow.t)
            last = flow.t
            if what == 0:
                flow.send(*message(0xC0, 2), ack=False)
                flow.receive(*message(0xD0, 2))
            elif what == 1:
                size = int(traits["report_bytes"] * rng.uniform(0.9, 1.1))
                flow.send(*message(0x30, size), ack=rng.random() < 0.5)
            else:
                flow.receive(*message(0x30, rng.randint(60, 300)))
                flow.t += rng.randrange(5_000, 300_000)
                for _ in range(rng.randint(1, 3)):
                    flow.send(*message(0x30, rng.randint(80, 500)))
        if over < end:
            flow.t = max(over, flow.t)
            flow.closed_by_peer()
        t = max(over, flow.t) + rng.randrange(200_000, 6 * SECOND)


def udp_session(life: Client, t: int, end: int) -> None:
    """Use a vendor's UDP protocol: try some servers at once, stay with one, keep the router's mapping alive."""
    traits, rng, host = life.device.traits, life.rng, life.device.hosts["udp"]
    t, address = life.resolve(t, "udp")
    sport, port, size = life.next_port(), int(traits["udp_port"]), int(traits["udp_bytes"])
    for other in rng.sample(host.pool, min(3, len(host.pool))):
        life.udp(t, other, sport, port, size, up=True)
        life.udp(t + life.rtt(host), other, port, sport, size, up=False, ttl=host.ttl)
        t += rng.randrange(50, 40_000)
    for at in life.every(t, end, traits["udp_s"], 0.05):
        life.udp(at, address, sport, port, size, up=True)
        back = at + life.rtt(host)
        if rng.random() < 0.995:
            life.udp(back, address, port, sport, size, up=False, ttl=host.ttl)
        if rng.random() < 0.02:  # a report with its acknowledgement
            life.udp(back + 3000, address, sport, port, size + rng.randint(40, 300), up=True)
            life.udp(back + 3000 + life.rtt(host), address, port, sport, size, up=False, ttl=host.ttl)


def announce(life: Client, begin: int, end: int, service: str) -> None:
    """Use mDNS: join the group, announce the device, ask and answer."""
    rng, instance = life.rng, life.device.name
    life.igmp(begin, MDNS)
    for at in [begin + SECOND, begin + 2 * SECOND, *life.every(begin, end, life.device.traits["mdns_s"], 0.5)]:
        message = mdns_message(f"{service}.local", instance, rng.random() < 0.6)
        life.udp(at, MDNS, 5353, 5353, len(message), message, up=True)
    for at in life.every(begin, end, 125, 0.03):
        life.igmp(at, MDNS)


def ssdp(life: Client, begin: int, end: int) -> None:
    """Use SSDP: look for the router's services, with three requests each time."""
    life.igmp(begin, SSDP)
    for at in life.every(begin, end, life.device.traits["ssdp_s"], 0.1, first=0.2):
        search(life, at)


def search(life: Client, t: int) -> None:
    """Look for services by SSDP, with three requests."""
    rng, sport = life.rng, life.next_port()
    for step in range(3):
        sent = t + step * rng.randrange(80_000, 240_000)
        life.udp(sent, SSDP, sport, 1900, len(SEARCH), SEARCH, up=True)
    answer = t + rng.randrange(20_000, 900_000)
    life.udp(answer, life.home.router, 1900, sport, len(FOUND), FOUND, up=False)


def phone_udp(life: Client, t: int, seconds: float, size: int) -> None:
    """Let the app on the phone talk to the device on the LAN."""
    rng, port, home = life.rng, int(life.device.traits["lan_port"]), life.home
    sport = rng.randrange(32768, 61000)
    end = t + int(seconds * SECOND)
    while t < end:
        life.udp(t, home.phone, sport, port, size // 2, up=False, mac=home.phone_mac)
        answer = int(size * rng.uniform(0.9, 1.2))
        life.udp(t + life.wifi(), home.phone, port, sport, answer, up=True, mac=home.phone_mac)
        t += life.period(1.0, 0.6)


REPORTING = {"plug": 1, "gateway": 1, "thermostat": 3}
"""Kinds of device that report measurements -> number of reporting periods between two reports."""
