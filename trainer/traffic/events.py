"""Events of a varied home: power cuts, a router that reboots, updates, services that move, a first set-up."""

import random
from dataclasses import replace

from trainer.traffic.client import Client
from trainer.traffic.flow import Flow
from trainer.traffic.home import CloudHost, public_address
from trainer.traffic.messages import arp_frame, dns_query
from trainer.traffic.plan import DAY, HOUR, MINUTE, SECOND
from trainer.traffic.strike import SYN_AGAIN


def interruptions(life: Client, *, first: bool) -> tuple[list[int], list[int]]:
    """Add the events of a capture; return the times when the device boots, and when it only connects anew."""
    rng, traits = life.rng, life.device.traits
    boots: list[int] = []
    others: list[int] = []
    for begin, router in outages(life):
        over = begin + rng.randrange(0, 3 * SECOND) + (rng.randrange(40, 150) * SECOND if router else 0)
        if over >= life.end - MINUTE:
            continue
        if router:
            trouble(life, begin, over)
        (others if router else boots).append(over)
    for t in _times(rng, life, traits["moves"]):
        move(life, t)
    for t in _times(rng, life, traits["updates"]):
        life.request(t, "ota", rng.randint(250, 700), int(traits["update_bytes"]))
        boots.append(t + rng.randrange(60, 240) * SECOND)
    if first and traits["new"]:
        set_up(life, life.begin + 2 * SECOND)
    return [t for t in boots if t < life.end - MINUTE], others


def outages(life: Client) -> list[tuple[int, bool]]:
    """Return the times within the capture when the power comes back (False) or the router goes away (True).

    They are the home's: every device has them at the same time.
    """
    habits = life.home.habits
    assert habits is not None
    found = []
    for day in range(life.begin // DAY, life.end // DAY + 1):
        rng = random.Random(f"{life.home.seed}/outages/{day}")
        for router, share in ((False, habits.power_cuts), (True, habits.reboots)):
            t = day * DAY + rng.randrange(DAY)
            if rng.random() < share and life.begin + 10 * MINUTE < t < life.end - 10 * MINUTE:
                found.append((t, router))
    return sorted(found)


def _times(rng: random.Random, life: Client, per_day: float) -> list[int]:
    """Return the times of a rare event: at most one in a capture, so many a day on average."""
    if rng.random() >= per_day * (life.end - life.begin) / DAY or life.end - life.begin < HOUR:
        return []
    return [rng.randrange(life.begin + 20 * MINUTE, life.end - 20 * MINUTE)]


def trouble(life: Client, t: int, until: int) -> None:
    """Let a device try while the router does not answer: names, addresses, and connections whose SYN is repeated."""
    rng, device, home = life.rng, life.device, life.home
    for at in life.every(t, until, rng.choice((2, 5, 15)), 0.3):
        life.tape.raw(at, arp_frame(1, device.mac, device.ip, 0, home.router))
        if rng.random() < 0.5:
            query = dns_query(rng.getrandbits(16), device.hosts["api"].name, 1)
            life.udp(at, home.router, rng.randrange(1024, 65536), 53, len(query), query, up=True)
    for role in rng.sample(sorted(device.hosts), min(3, len(device.hosts))):
        unanswered(life, rng.randrange(t, until), device.hosts[role], until)


def unanswered(life: Client, t: int, host: CloudHost, until: int) -> None:
    """Call a host that does not answer: the kernel repeats the SYN."""
    flow = Flow(life, host, life.rng.choice(host.pool), life.next_port(), life.rng.choice((443, 443, 80, 8883)))
    for after in SYN_AGAIN:
        if t + after * SECOND < until:
            flow.call(t + after * SECOND)


def move(life: Client, t: int) -> None:
    """Let one of the vendor's services move to other addresses."""
    role = life.rng.choice([role for role in sorted(life.device.hosts) if role != "ntp"])
    pool = tuple(public_address(life.rng) for _ in range(life.rng.randint(1, 4)))
    life.moved[role] = (t, replace(life.device.hosts[role], pool=pool, answers=1))


def set_up(life: Client, t: int) -> None:
    """Let a new device look whether it is online, get its first software and settings, and be named by an app."""
    rng, traits = life.rng, life.device.traits
    for _ in range(rng.randint(2, 7)):  # is this the Internet? the time; the vendor's and others' services
        host = life.site()
        t, address = life.look_up(t, host)
        if rng.random() < 0.3:
            unanswered(life, t, host, t + 30 * SECOND)
            continue
        flow = life.call(t, host, address, 80)
        flow.send(rng.randint(80, 300), ack=False)
        flow.receive(rng.randint(100, 900))
        flow.close()
        t += rng.randrange(5_000, 2 * SECOND)
    for _ in range(rng.randint(1, 4)):
        life.ntp(t)
        t += rng.randrange(1_000, SECOND)
    for _ in range(rng.randint(2, 12)):
        t = life.request(t, "api", rng.randint(300, 2000), rng.randint(300, 6000)) + rng.randrange(5_000, 3 * SECOND)
    if rng.random() < 0.6:
        life.request(t, "ota", 400, int(traits["update_bytes"] * rng.uniform(0.1, 1)))
