"""The client that every device is: names, leases, time, and connections to its servers."""

import struct

from trainer.traffic.flow import Flow
from trainer.traffic.home import BROADCAST, BROADCAST_MAC, CloudHost, public_address
from trainer.traffic.messages import client_hello, dhcp_message, dns_answer, dns_query, tls_record
from trainer.traffic.plan import SECOND
from trainer.traffic.station import Station

KEPT = 600 * SECOND
"""Age up to which an address is used again without a question."""


class Client(Station):
    """A device that resolves names, gets a lease and the time, and makes requests."""

    def resolve(self, t: int, role: str) -> tuple[int, int]:
        """Ask the router for a host's address; return the time of the answer and an address.

        Each question has a new source port; now and then one is lost and repeated.
        """
        return self.look_up(t, self.host(role, t))

    def host(self, role: str, t: int) -> CloudHost:
        """Return the host that has a role at a time."""
        since, moved = self.moved.get(role, (0, None))
        return moved if moved is not None and t >= since else self.device.hosts[role]

    def look_up(self, t: int, host: CloudHost) -> tuple[int, int]:
        """Ask for the address of any host, see `resolve`, or use the last one again."""
        rng, traits = self.rng, self.device.traits
        if traits["keeps"] and rng.random() < traits["keeps"]:
            when, address = self.known.get(host.name, (t - KEPT - 1, 0))
            if 0 <= t - when <= KEPT and address in host.pool:
                return t + rng.randrange(50, 900), address
        t, address = self._ask(t, host)
        self.known[host.name] = (t, address)
        return t, address

    def _ask(self, t: int, host: CloudHost) -> tuple[int, int]:
        """Ask a resolver for a host's address; return the time of the answer and an address."""
        rng, traits = self.rng, self.device.traits
        resolver = int(traits["resolver"]) or self.home.router
        kinds = (1, 28) if traits["aaaa"] else (1,)
        chosen = rng.sample(host.pool, min(host.answers, len(host.pool)))
        if traits["fresh"] and rng.random() < traits["fresh"]:  # a content network has another one each time
            chosen[0] = chosen[0] & 0xFFFF0000 | rng.getrandbits(16)
        if traits["dns_tcp"] and rng.random() < traits["dns_tcp"]:
            return self._look_up_by_tcp(t, host, resolver), chosen[0]
        done = t
        for kind in kinds:
            tries = 0
            while True:
                sport, ident = rng.randrange(1024, 65536), rng.getrandbits(16)
                query = dns_query(ident, host.name, kind)
                self.udp(t, resolver, sport, 53, len(query), query, up=True)
                tries += 1
                if tries > 2 or rng.random() > 0.02:
                    break
                t += self.period(rng.choice((1, 2, 5)))
            answer = dns_answer(ident, host.name, kind, host.cname, chosen if kind == 1 else ())
            done = t + (self.rtt(host) // 2 if rng.random() < 0.6 else rng.randrange(200, 1500))
            self.udp(done, resolver, 53, sport, len(answer), answer, up=False)
            t += rng.randrange(100, 900)
        return done + self.wifi(), chosen[0]

    def site(self) -> CloudHost:
        """Return a host of the web that is not the vendor's: another one each time."""
        rng = self.rng
        name = f"{rng.getrandbits(24):06x}.{rng.choice(('web', 'cdn', 'img'))}.example"
        return CloudHost(
            name=name,
            pool=(public_address(rng),),
            answers=1,
            rtt_ms=self.home.isp_ms + rng.choice((3, 12, 25, 90)) * rng.uniform(0.7, 1.3),
            ttl=rng.randint(45, 57),
            certificate=rng.randint(2400, 5200),
            cname="",
        )

    def to_lan(self, address: int, mac: int, port: int, *, local: int = 0, served: bool = False) -> Flow:
        """Return a connection with a neighbour that is not open yet; it comes from the neighbour if `served`."""
        ms = self.device.traits["wifi_ms"]
        near = CloudHost(name="", pool=(address,), answers=1, rtt_ms=ms, ttl=64, certificate=0, cname="")
        return Flow(self, near, address, local or self.next_port(), port, mac=mac, served=served)

    def _look_up_by_tcp(self, t: int, host: CloudHost, resolver: int) -> int:
        """Ask for an address over TCP, as after a truncated answer; return the time after it."""
        flow = Flow(self, host, resolver, self.next_port(), 53)
        flow.open(t)
        flow.send(2 + 18 + len(host.name), ack=False)
        flow.receive(self.rng.randint(120, 1800))
        flow.close()
        return flow.t

    # -- conversations

    def dhcp(self, t: int, *, boot: bool) -> int:
        """Get a lease, by a discovery at boot or a renewal later; return the time after it."""
        d, h, xid = self.device, self.home, self.rng.getrandbits(32)
        host = f"{d.kind}-{d.mac & 0xFFFF:04x}"
        for kind, reply in ((1, 2), (3, 5)) if boot else ((3, 5),):
            to, mac = (BROADCAST, BROADCAST_MAC) if boot else (h.router, h.router_mac)
            message = dhcp_message(1, kind, xid, d.mac, 0 if boot else d.ip, 0, 0, host)
            self.udp(t, to, 68, 67, len(message), message, up=True, mac=mac)
            t += self.rng.randrange(800, 30_000)
            message = dhcp_message(2, reply, xid, d.mac, 0, d.ip, h.router, host)
            self.udp(t, h.router, 67, 68, len(message), message, up=False)
            t += self.wifi()
        return t

    def ntp(self, t: int) -> None:
        """Ask for the time once; sometimes there is no answer."""
        t, address = self.resolve(t, "ntp")
        host, sport = self.host("ntp", t), 123 if self.device.linux else self.next_port()
        stamp = struct.pack(">II", t // SECOND + 2_208_988_800 & 0xFFFFFFFF, 0)
        self.udp(t, address, sport, 123, 48, b"\x23\x00\x06\xec" + bytes(36) + stamp, up=True)
        if self.rng.random() < 0.97:
            reply = b"\x24\x02\x06\xe9" + bytes(12) + stamp + stamp + stamp + stamp
            self.udp(t + self.rtt(host), address, 123, sport, 48, reply, up=False, ttl=host.ttl)

    def connect(self, t: int, role: str, port: int, address: int | None = None) -> Flow:
        """Resolve one of the device's hosts and open a TCP connection to it."""
        if address is None:
            t, address = self.resolve(t, role)
        return self.call(t, self.host(role, t), address, port)

    def call(self, t: int, host: CloudHost, address: int, port: int = 443) -> Flow:
        """Open a TCP connection to any host outside, over IPv6 where both sides have it and the device prefers it."""
        dual = bool(self.device.traits["ipv6"]) and self.rng.random() < 0.5
        flow = Flow(self, host, address, self.next_port(), port, ipv6=dual)
        flow.open(t)
        return flow

    def tls(self, t: int, role: str, port: int = 443, *, resumed: bool = False) -> Flow:
        """Open a connection with its TLS handshake."""
        flow = self.connect(t, role, port)
        self.secure(flow, resumed=resumed)
        return flow

    def secure(self, flow: Flow, *, resumed: bool = False) -> None:
        """Make the TLS handshake of an open connection."""
        rng = self.rng
        hello = int(self.device.traits["hello_bytes"])
        flow.send(hello + (180 if resumed else 0), client_hello(hello + (180 if resumed else 0)), ack=False)
        if resumed:
            flow.receive(rng.randint(140, 240), tls_record(90, 22), ack=False)
            flow.send(51, tls_record(51, 20))
        else:
            flow.receive(flow.host.certificate, tls_record(flow.host.certificate, 22))
            flow.t += rng.randrange(8_000, 220_000)  # a small CPU at its key exchange
            flow.send(rng.choice((126, 144, 190)), tls_record(75, 22), ack=False)
            flow.receive(rng.choice((51, 107, 258)), tls_record(51, 20))

    def request(self, t: int, role: str, up: int, down: int, *, resumed: bool = False) -> int:
        """Make one HTTPS request on a connection of its own; return the time of its end."""
        flow, rng = self.tls(t, role, resumed=resumed), self.rng
        flow.send(up, tls_record(min(up, 16000)), ack=False)
        flow.t += rng.randrange(1_000, 80_000)
        flow.receive(down, tls_record(min(down, 16000)))
        flow.close(reset=rng.random() < 0.1)
        return flow.t

    def checkin(self, t: int) -> None:
        """Make the regular HTTPS report, sometimes followed by one to a second host."""
        traits, rng = self.device.traits, self.rng
        up = int(traits["request_bytes"] * rng.uniform(0.9, 1.3))
        down = int(traits["response_bytes"] * rng.uniform(0.8, 1.4))
        done = self.request(t, "api", up, down, resumed=rng.random() < 0.3)
        if "log" in self.device.hosts and rng.random() < 0.5:
            self.request(done + rng.randrange(5_000, SECOND), "log", rng.randint(600, 5000), rng.randint(180, 400))

    def firmware(self, t: int, available: bool) -> None:
        """Ask for new firmware; rarely a small update is available."""
        down = self.rng.randint(120_000, 500_000) if available else self.rng.randint(200, 900)
        self.request(t, "ota", self.rng.randint(250, 700), down)
