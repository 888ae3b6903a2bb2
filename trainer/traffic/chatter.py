"""The talk of a varied home's device on its LAN beside its work: IPv6, discovery, keys of the Wi-Fi, polls."""

import struct

from trainer.traffic import sessions
from trainer.traffic.client import Client
from trainer.traffic.home import BROADCAST_MAC, MDNS, SSDP
from trainer.traffic.messages import arp_frame, dns_query, icmp6_frame, icmp_message, ip_frame, mdns_message, udp6_frame
from trainer.traffic.plan import SECOND
from trainer.traffic.wire import ICMP

EAPOL = 0x888E
ALL_NODES, ALL_ROUTERS, MDNS6 = 0xFF02 << 112 | 1, 0xFF02 << 112 | 2, 0xFF02 << 112 | 0xFB
MLD_ROUTERS = 0xFF02 << 112 | 0x16


def add(life: Client) -> None:
    """Add the whole capture's chatter."""
    traits, rng, begin, end = life.device.traits, life.rng, life.begin + 3 * SECOND, life.end
    if life.device.kind == "battery_camera":  # asleep
        return
    if traits["eapol_s"]:
        keys(life, life.begin + 1000, first=True)
        for at in life.every(begin, end, traits["eapol_s"], 0.01):
            keys(life, at, first=False)
    if traits["ipv6"]:
        ipv6(life, begin, end)
    if traits["lan_polls_s"]:
        other = life.home.lan | rng.randrange(100, 200)
        for at in life.every(begin, end, traits["lan_polls_s"], 0.1):
            life.tape.raw(at, arp_frame(1, life.device.mac, life.device.ip, 0, other))
    if traits["pings_s"]:
        pings(life, begin, end)
    if traits["notify_s"]:
        for at in life.every(begin, end, traits["notify_s"], 0.1):
            notify(life, at)
    if traits["group_s"]:
        group, port, size = 0xEFFF0000 | rng.getrandbits(16), rng.randrange(1024, 60000), rng.randint(20, 200)
        source = life.next_port()
        for at in life.every(begin, end, traits["group_s"], 0.02):
            life.udp(at, group, source, port, size, up=True)
    if traits["odd_s"]:
        frame = _ethernet(BROADCAST_MAC, life.device.mac, 0x8110, bytes(rng.randint(46, 250)))
        for at in life.every(begin, end, traits["odd_s"], 0.01):
            life.tape.raw(at, frame)
    if traits["names"]:
        for at in [begin, *life.happenings(begin, end, 3)]:
            names(life, at)
    if traits["polled_s"]:
        polls(life, begin, end)
    if traits["upnp"]:
        for at in [begin + rng.randrange(SECOND, 20 * SECOND), *life.happenings(begin, end, 6)]:
            describe(life, at)


def _ethernet(to: int, source: int, kind: int, body: bytes) -> bytes:
    return to.to_bytes(6, "big") + source.to_bytes(6, "big") + kind.to_bytes(2, "big") + body


def keys(life: Client, t: int, *, first: bool) -> None:
    """Exchange keys with the access point: four messages at first, two for the group's new key."""
    device, router = life.device.mac, life.home.router_mac
    for n in range(4 if first else 2):
        up = bool(n % 2)
        to, source = (router, device) if up else (device, router)
        size = life.rng.choice((95, 99, 117)) if up else life.rng.choice((99, 155, 131))
        life.tape.raw(t, _ethernet(to, source, EAPOL, b"\x02\x03" + struct.pack(">H", size) + bytes(size)))
        t += life.wifi()


def ipv6(life: Client, begin: int, end: int) -> None:
    """Configure an IPv6 address, listen to the router's advertisements, and repeat mDNS over IPv6."""
    rng, device, home = life.rng, life.device, life.home
    own, router = link_local(device.mac), link_local(home.router_mac)
    report = b"\x04\0\0\0" + MDNS6.to_bytes(16, "big")
    for at in (begin, begin + rng.randrange(SECOND)):
        life.tape.raw(at, icmp6_frame(device.mac, own, MLD_ROUTERS, 143, bytes(2) + b"\0\1" + report))
    probe = 0xFF02 << 112 | 0x1FF << 24 | own & 0xFFFFFF
    life.tape.raw(begin + 500, icmp6_frame(device.mac, 0, probe, 135, bytes(4) + own.to_bytes(16, "big")))
    for n in range(rng.randint(1, 3)):
        life.tape.raw(begin + n * 4 * SECOND + 900, icmp6_frame(device.mac, own, ALL_ROUTERS, 133, bytes(12)))
    advertisement = bytes([64, 0]) + struct.pack(">HII", 1800, 0, 0) + bytes(48)
    for at in life.every(begin, end, 300, 0.5, first=0.1):
        life.tape.raw(at, icmp6_frame(home.router_mac, router, ALL_NODES, 134, advertisement))
    target = router.to_bytes(16, "big")
    for at in life.every(begin, end, device.traits["arp_s"] * 3, 0.5):
        life.tape.raw(at, icmp6_frame(device.mac, own, router, 135, bytes(4) + target, to=home.router_mac))
        life.tape.raw(at + 300, icmp6_frame(home.router_mac, router, own, 136, bytes(4) + target, to=device.mac))
    if device.traits["mdns_s"] < 1000:
        for at in life.every(begin, end, device.traits["mdns_s"], 0.5):
            message = mdns_message("_tcp.local", device.name, rng.random() < 0.6)
            life.tape.raw(at, udp6_frame(device.mac, own, MDNS6, 5353, message))
            life.udp(at + rng.randrange(100, 900), MDNS, 5353, 5353, len(message), message, up=True)


def link_local(mac: int) -> int:
    """Return the link-local address of a MAC (RFC 4291, modified EUI-64)."""
    return 0xFE80 << 112 | (mac >> 24 ^ 0x020000) << 40 | 0xFFFE << 24 | mac & 0xFFFFFF


def pings(life: Client, begin: int, end: int) -> None:
    """Send echo requests to the router or to a host outside, again and again."""
    rng, device, home = life.rng, life.device, life.home
    outside = rng.random() < 0.5
    target, ident = (rng.choice((0x08080808, 0x01010101)) if outside else home.router), rng.getrandbits(16)
    for n, at in enumerate(life.every(begin, end, device.traits["pings_s"], 0.05)):
        body = struct.pack(">HH", ident, n & 0xFFFF) + bytes(rng.choice((32, 56)))
        life.tape.raw(at, ip_frame(device.mac, home.router_mac, device.ip, target, ICMP, 64, icmp_message(8, 0, body)))
        back = at + (rng.randrange(3_000, 60_000) if outside else rng.randrange(150, 900))
        life.tape.raw(
            back, ip_frame(home.router_mac, device.mac, target, device.ip, ICMP, 60, icmp_message(0, 0, body))
        )


def notify(life: Client, t: int) -> None:
    """Announce services by SSDP: each kind of them, twice."""
    rng, source = life.rng, life.rng.choice((1900, life.next_port()))
    for n in range(int(life.device.traits["notify_frames"])):
        head = b"NOTIFY * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nNTS: ssdp:alive\r\n"
        size = 260 + 7 * (n * 37 % 29)
        for _ in range(2):
            life.udp(t, SSDP, source, 1900, size, head, up=True)
            t += rng.randrange(200, 120_000)


def polls(life: Client, begin: int, end: int) -> None:
    """Let an app on the phone ask for the device's state for some time, from a new port each time."""
    rng, home, traits = life.rng, life.home, life.device.traits
    port, size = int(traits["lan_port"]), int(traits["lan_bytes"])
    for start in life.happenings(begin, end, 20):
        over = start + int(rng.uniform(30, 600) * SECOND)
        for at in life.every(start, min(over, end), traits["polled_s"], 0.2, first=0.1):
            sport = rng.randrange(32768, 61000)
            life.udp(at, home.phone, sport, port, size // 3, up=False, mac=home.phone_mac)
            life.udp(at + life.wifi(), home.phone, port, sport, size, up=True, mac=home.phone_mac)


def describe(life: Client, t: int) -> None:
    """Find the router's UPnP services and ask for a port, on several connections within a second or two."""
    rng, home = life.rng, life.home
    sessions.search(life, t)
    t += rng.randrange(20_000, 400_000)
    for _ in range(rng.randint(2, 7)):
        flow = life.to_lan(home.router, home.router_mac, 1900 if rng.random() < 0.5 else 5000)
        flow.open(t)
        flow.send(rng.randint(110, 900), ack=False)
        flow.receive(rng.randint(200, 3500))
        flow.close()
        t = flow.t + rng.choice((1_000, 60_000, 200_000))


def names(life: Client, t: int) -> None:
    """Ask for many names at once, as after a boot: each question has a port of its own, and some are repeated."""
    rng, home = life.rng, life.home
    for _ in range(int(life.device.traits["names"])):
        host, sport = life.site(), rng.randrange(1024, 65536)
        for _ in range(rng.choice((1, 1, 2))):
            query = dns_query(rng.getrandbits(16), host.name, rng.choice((1, 28)))
            life.udp(t, home.router, sport, 53, len(query), query, up=True)
            back = t + life.rtt(host)
            life.udp(back, home.router, 53, sport, len(query) + rng.randint(16, 120), query, up=False)
            t += rng.randrange(100, 60_000)
