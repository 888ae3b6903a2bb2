"""A device's whole life in a capture: a boot, then its day, with connections lost and events now and then."""

from trainer.traffic import chatter, events, kinds, sessions
from trainer.traffic.client import Client
from trainer.traffic.messages import arp_frame
from trainer.traffic.plan import HOUR, MINUTE, SECOND


def live(life: Client, *, first: bool = False) -> None:
    """Generate the whole capture: each time between two connections, and what a varied home adds to that.

    The ``first`` capture of a new device begins with its set-up.
    """
    habits = life.home.habits
    cuts = [life.begin + life.rng.randrange(50_000, 1_500_000)]
    boots = {cuts[0]}
    if life.device.kind in kinds.ASLEEP:
        kinds.ASLEEP[life.device.kind](life, cuts[0], life.end)
    else:
        cuts += _glitches(life, cuts[0])
        if habits is not None:
            powered, others = events.interruptions(life, first=first)
            boots |= set(powered)
            cuts = sorted({*cuts, *powered, *others})
        for cut, until in zip(cuts, [*cuts[1:], life.end], strict=True):
            silence = life.rng.randrange(2 * SECOND, 20 * SECOND) if until < life.end else 0
            stretch(life, cut, until - silence, cold=cut in boots)
    if habits is not None:
        chatter.add(life)


def _glitches(life: Client, t: int) -> list[int]:
    """Return the times when the device connects again after it lost the Wi-Fi."""
    cuts: list[int] = []
    while True:
        t += int(life.rng.expovariate(1) * life.device.traits["glitch_h"] * HOUR) + 4 * MINUTE
        if t >= life.end:
            return cuts
        cuts.append(t)


def stretch(life: Client, t: int, end: int, *, cold: bool) -> None:
    """Generate the traffic from one (re)connection to the next; it begins with every session at once."""
    device, traits, rng = life.device, life.device.traits, life.rng
    t = life.dhcp(t, boot=cold or rng.random() < 0.5)
    for _ in range(rng.randint(1, 3)):
        life.tape.raw(t, arp_frame(1, device.mac, device.ip, 0, device.ip))
        t += rng.randrange(2_000, 400_000)
    t = life.resolve_router(t) + rng.randrange(10_000, 900_000)
    begin = t
    if traits["pings"]:
        life.ping(t)
    if cold:
        life.ntp(t)
        t += rng.randrange(20_000, 300_000)
    for at in life.every(begin, end, traits["arp_s"], 0.3):
        if rng.random() < 0.5:
            life.resolve_router(at)
        else:
            life.be_resolved(at)
    for at in life.every(begin, end, traits["lease_s"], 0.01):
        life.dhcp(at, boot=False)
    for at in life.every(begin, end, traits["ntp_s"], 0.01):
        life.ntp(at)
    for at in life.every(begin, end, 21_600, 0.4, first=0.5):
        life.firmware(at, rng.random() < 0.1)
    if cold and rng.random() < 0.5:
        life.firmware(t + rng.randrange(5 * SECOND, 40 * SECOND), False)
    if "mqtt" in device.hosts:
        sessions.mqtt(life, t + rng.randrange(10_000, 700_000), end)
    if "udp" in device.hosts:
        sessions.udp_session(life, t + rng.randrange(10_000, 700_000), end)
    for at in [t + rng.randrange(100_000, 2 * SECOND), *life.every(t, end, traits["checkin_s"], 0.03)]:
        life.checkin(at)
    if "log" in device.hosts or "video" in device.hosts or "weather" in device.hosts:
        # settings, models, pictures, announcements
        for at in life.every(t, end, traits["fetch_s"], 0.2, first=0.3):
            life.request(at, "api", int(traits["request_bytes"]), int(traits["fetch_bytes"] * rng.uniform(0.9, 1.1)))
    kinds.BEHAVIOURS[device.kind](life, t, end)
