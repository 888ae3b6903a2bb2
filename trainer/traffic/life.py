"""A device's whole life in a capture: a boot, then its day, with the Wi-Fi lost now and then."""

from trainer.traffic import kinds, sessions
from trainer.traffic.client import Client
from trainer.traffic.messages import arp_frame
from trainer.traffic.plan import HOUR, MINUTE, SECOND


def live(life: Client) -> None:
    """Generate the whole capture: a boot, then a day's traffic, with the Wi-Fi lost now and then."""
    traits = life.device.traits
    cuts = [life.begin + life.rng.randrange(50_000, 1_500_000)]
    while True:
        cut = cuts[-1] + int(life.rng.expovariate(1) * traits["glitch_h"] * HOUR) + 4 * MINUTE
        if cut >= life.end:
            break
        cuts.append(cut)
    for cut, until in zip(cuts, [*cuts[1:], life.end], strict=True):
        silence = life.rng.randrange(2 * SECOND, 20 * SECOND) if until < life.end else 0
        stretch(life, cut, until - silence, cold=cut == cuts[0])


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
        for at in life.every(t, end, traits["fetch_s"], 0.2, first=0.3):  # settings, models, pictures, announcements
            life.request(at, "api", int(traits["request_bytes"]), int(traits["fetch_bytes"] * rng.uniform(0.9, 1.1)))
    kinds.BEHAVIOURS[device.kind](life, t, end)
