"""One TCP connection of a device, packet by packet."""

from trainer.traffic.home import CloudHost
from trainer.traffic.plan import SECOND
from trainer.traffic.station import Station
from trainer.traffic.wire import ACK, FIN, LINUX_SYN, MSS, MTU_PAYLOAD, NO_OPTIONS, PSH, RST, STAMP, SYN, TCP


class Flow:
    """One TCP connection as the router sees it; `t` is the earliest time of its next packet."""

    def __init__(
        self,
        life: Station,
        host: CloudHost,
        peer: int,
        local: int,
        remote: int,
        *,
        mac: int = 0,
        served: bool = False,
        ipv6: bool = False,
    ) -> None:
        self.life, self.host, self.peer, self.local, self.remote, self.served = life, host, peer, local, remote, served
        self.mac = mac or life.home.router_mac
        rng = life.rng
        self.up, self.down = rng.getrandbits(32), rng.getrandbits(32)
        self.t = life.begin
        linux = life.device.linux
        self.stamps = linux and rng.random() < 0.95
        self.mss = MTU_PAYLOAD if self.stamps else 1460 if linux else 1440
        self.window = rng.choice((229, 457, 913)) if linux else rng.choice((5840, 2920, 4380))
        self.peer_window = rng.randrange(200, 1200) if linux else rng.randrange(14600, 65000)
        self.ident = rng.getrandbits(16)
        self.theirs = rng.getrandbits(31)
        self.ipv6 = ipv6
        self.segment = self.mss - 20 if ipv6 else self.mss  # bytes at most

    def _packet(
        self, t: int, up: bool, flags: int, size: int = 0, head: bytes = b"", window: int | None = None
    ) -> None:
        life, device = self.life, self.life.device
        if flags & SYN:
            options = LINUX_SYN if self.stamps else MSS
        else:
            options = STAMP if self.stamps and not flags & RST else NO_OPTIONS
        ours, theirs = t // 1000 + life.clock_base & 0xFFFFFFFF, t // 1000 + self.theirs & 0xFFFFFFFF
        acked = bool(flags & ACK)
        window = (self.window if up else self.peer_window) if window is None else window
        if up:
            mss = 1460 if self.mss == MTU_PAYLOAD else self.mss
            mss -= 20 if self.ipv6 else 0
            ends = (device.ip, self.peer, self.local, self.remote)
            wire = (self.mac, device.mac, TCP, *ends, size, 64, life.next_ident())
            numbers = (int(device.linux), self.up, self.down if acked else 0, flags, window, options, mss)
            clocks = (ours, theirs - 20 & 0xFFFFFFFF if acked else 0)
            self.up = self.up + size + bool(flags & (SYN | FIN)) & 0xFFFFFFFF
        else:
            self.ident = self.ident + 1 & 0xFFFF
            ends = (self.peer, device.ip, self.remote, self.local)
            wire = (device.mac, self.mac, TCP, *ends, size, self.host.ttl, self.ident)
            numbers = (1, self.down, self.up if acked else 0, flags, window, options, 1460)
            clocks = (theirs, ours - 5 & 0xFFFFFFFF if acked else 0)
            self.down = self.down + size + bool(flags & (SYN | FIN)) & 0xFFFFFFFF
        life.tape.row((t, *wire, *numbers, *clocks, int(self.ipv6)), head)

    def call(self, t: int) -> None:
        """Send a SYN of the device that nobody answers; the next one has the same number."""
        self._packet(t, True, SYN, window=64240 if self.stamps else 5840)
        self.up = self.up - 1 & 0xFFFFFFFF

    def refused(self, t: int) -> int:
        """Send a SYN that is answered by a reset; return the time when the device knows."""
        self._packet(t, True, SYN, window=64240 if self.stamps else 5840)
        t += self._turn(True)
        self._packet(t, False, RST | ACK, window=0)
        return t + self.life.wifi()

    def spam(self, t: int, size: int, head: bytes, acked: bool) -> None:
        """Send one segment of the device at `t`, whatever the state of the connection."""
        self._packet(t, True, ACK | PSH, size, head)
        if acked:
            self._acknowledge(t + self._turn(True), False, self.up)

    def reset_by_peer(self, t: int) -> None:
        """Let the peer reset the connection."""
        self._packet(t, False, RST | ACK, window=0)

    def _turn(self, up: bool) -> int:
        """Return the time from a packet to its answer at the router, µs; the packet is the device's if `up`."""
        return self.life.rtt(self.host) if up else self.life.wifi()

    def open(self, t: int) -> None:
        """Make the handshake; one SYN in a hundred is lost and sent again."""
        rng, up = self.life.rng, not self.served
        self._packet(t, up, SYN, window=64240 if self.stamps else 5840)
        if rng.random() < 0.01:
            t += SECOND + rng.randrange(0, 30_000)
            if up:
                self.up = self.up - 1 & 0xFFFFFFFF
            else:
                self.down = self.down - 1 & 0xFFFFFFFF
            self._packet(t, up, SYN, window=64240 if self.stamps else 5840)
        t += self._turn(up)
        self._packet(t, not up, SYN | ACK, window=65160 if self.stamps else 28960)
        t += self._turn(not up)
        self._packet(t, up, ACK)
        self.t = t + rng.randrange(100, 3000)

    def _data(self, up: bool, size: int, head: bytes, ack: bool, quick: bool) -> None:
        """Send segments, an acknowledgement for every second one, and one for the last unless data will carry it.

        With `quick` the sender continues without waiting for the last acknowledgement.
        """
        rng, traits, t, n = self.life.rng, self.life.device.traits, self.t, 0
        merged, loss = int(traits["merged"]), traits["loss"]
        answers = []
        while size > 0:
            part = min(size, self.segment if up or merged < 2 else self.segment * rng.randint(1, merged))
            size -= part
            flags = ACK | (PSH if size <= 0 else 0)
            self._packet(t, up, flags, part, head)
            if loss and rng.random() < loss:
                t = self._again(t, up, flags, part, head)
            head, n = b"", n + 1
            if n % 2 == 0 or (size <= 0 and ack):
                answers.append((t + self._turn(up), self.up if up else self.down))
            t += rng.randrange(90, 380)
            if n % 10 == 0:
                t += self._turn(up) // 2  # a small window's pause
        for at, number in answers:
            self._acknowledge(at, not up, number)
        self.t = max(t, answers[-1][0] + rng.randrange(100, 2000)) if answers and ack and not quick else t
        if not ack:
            self.t += self._turn(up)

    def _again(self, t: int, up: bool, flags: int, size: int, head: bytes) -> int:
        """Send the last segment again, by its timer or after three acknowledgements of what came before it; return
        when."""
        rng, wait = self.life.rng, self._turn(up)
        if rng.random() < 0.5:
            wait += rng.randrange(200_000, 400_000)
        else:
            number = ((self.up if up else self.down) - size) & 0xFFFFFFFF
            for n in range(3):
                self._acknowledge(t + wait + n * rng.randrange(200, 900), not up, number)
            wait += 3000
        if up:
            self.up = self.up - size & 0xFFFFFFFF
        else:
            self.down = self.down - size & 0xFFFFFFFF
        self._packet(t + wait, up, flags, size, head)
        return t + wait

    def _acknowledge(self, t: int, up: bool, number: int) -> None:
        """Send an acknowledgement of a part of the data sent so far."""
        if up:
            latest, self.down = self.down, number
            self._packet(t, up, ACK)
            self.down = latest
        else:
            latest, self.up = self.up, number
            self._packet(t, up, ACK)
            self.up = latest

    def send(self, size: int, head: bytes = b"", *, ack: bool = True, quick: bool = False) -> None:
        """Send data from the device."""
        self._data(True, size, head, ack, quick)

    def receive(self, size: int, head: bytes = b"", *, ack: bool = True) -> None:
        """Let the device receive data."""
        self._data(False, size, head, ack, False)

    def close(self, *, reset: bool = False) -> None:
        """Let the device close the connection, with or without a reset after the peer's FIN."""
        self._packet(self.t, True, FIN | ACK)
        self.t += self._turn(True)
        self._packet(self.t, False, FIN | ACK)
        self.t += self._turn(False)
        self._packet(self.t, True, RST if reset else ACK)

    def closed_by_peer(self) -> None:
        """Let the server close the connection."""
        self._packet(self.t, False, FIN | ACK)
        self.t += self._turn(False)
        self._packet(self.t, True, FIN | ACK)
        self.t += self._turn(True)
        self._packet(self.t, False, ACK)
