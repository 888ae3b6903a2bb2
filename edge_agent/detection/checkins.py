"""From feature rows to check-ins: a device keeps coming back to a host that it had never used before.

This is the keep-alive of a bot to its command server when it is too slow for any damped statistic: a remote peer that
is new to the device after the device's own peers were learnt, contacted again and again for a long time, at regular
intervals with little data, or with attempts that are not answered. The input is the rows that the detector takes; all
times are packet times. Nothing here is learnt from attacks; `CheckInRule` has the origin of its figures.

Regularity alone is no sign of a bot: healthy devices are the most regular of all. But a healthy device hardly ever
begins to use a host that it never used before and stays with it, unless that host replaces one that it leaves, such as
a cloud behind changing addresses. So a newcomer is accepted if a regular peer of the same protocol and port fell silent
as it began.

Bounds: each device has a table of remote peers, which evicts peers seen once or twice first. In each second of packet
time only so many rows and pairs are looked at, so that a flood costs nothing here. Reaching a bound is counted.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.capture import features
from edge_agent.capture.features import Rows
from edge_agent.contract.addresses import PRIVATE_NETWORKS, address_text, protocol_name
from edge_agent.contract.alert import Activity
from edge_agent.contract.bounds import CHECK_IN_LEARN_S
from edge_agent.contract.clock import SteadyClock
from edge_agent.contract.networks import Networks
from edge_agent.detection.detection import Detection

_S = 1_000_000_000
_SYN, _ACK = 2, 16
_TCP = 6

MAX_DEVICES, MAX_PEERS, MAX_ROUTERS = 1024, 64, 64
"""Devices followed, remote peers of each (busy cameras have about twenty), and MACs remembered as candidates for
routers. Here a router is a MAC that carries packets of remote addresses both ways; `kernel/senders.c`, which cannot
wait for that, and `capture/attach.py` have definitions of their own."""

MAX_ROWS, MAX_PAIRS = 8192, 512
"""Rows of one second that are looked at, and pairs of device and remote peer in them: they bound the cost of a flood.
Contacts in its other rows are not seen."""

GAP_S = 2.0
"""Seconds without a packet to a peer after which the next packet begins another contact; round trips are shorter."""

PAUSE_S = 600.0
"""Seconds without a contact after which a series of them is over."""

FEW = 3
"""Contacts up to which one by another port begins another series: a device fetches something, then stays."""

HOLD_S = 1800.0
"""Seconds for which a detection holds: an alert of check-ins ends this long after the last one and is not updated more
often."""

REPORT_S = 60.0
"""Least seconds between two detections of one series."""

INTERVALS = 64
"""Number of the newest intervals of a series that its regularity is judged by."""

OVERLAP_S, DAY_S = 300.0, 86_400.0
"""Seconds for which an old peer and the one that replaces it may overlap, and the longest pause between them."""

ALIKE_INTERVALS, ALIKE = 5, 1.5
"""Intervals by which an old peer that is not regular shows its pace, and how far beyond its quartiles one is alike."""


@dataclass(frozen=True)
class CheckInRule:
    """The conditions under which contacts with a newcomer are check-ins.

    There must be ``contacts`` within at least ``span_s`` seconds and without a pause of `PAUSE_S`. ``spread`` is the
    quartile coefficient of dispersion of the intervals, (Q3 - Q1) / (Q3 + Q1): 0 for a clock, 0.25 for one that is up
    to half off, 0.66 for random times. ``size`` bounds the bytes of a contact, both ways: a TLS handshake and a short
    message, but not a piece of music. ``accepted`` is the share of accepted connection attempts up to which they count
    as failing; these need not be regular, since malware waits at random. A peer that a device uses in its first
    ``learn_s`` seconds counts as its own.

    No figure had to be fitted: in 8.2 benign device-days the most persistent newcomer has 2 contacts in a series
    (``python -m tests.bench.bench_checkins``), and the figures require more than ten times as many.
    """

    learn_s: float = CHECK_IN_LEARN_S[1]
    contacts: int = 30
    span_s: float = 1500.0
    spread: float = 0.25
    size: float = 8192.0
    accepted: float = 0.1

    def __post_init__(self) -> None:
        shortest, _, longest = CHECK_IN_LEARN_S
        if not shortest <= self.learn_s <= longest:
            raise ValueError(f"learn_s: {self.learn_s:g}, must be {shortest:.0f} to {longest:.0f}")


@dataclass(slots=True)
class _Peer:
    """A remote peer of one device, with sums over its contacts so far. Times are steady ns."""

    new: bool  # the device had learnt its own peers before it first used this one
    proto: int
    port: int
    last_ns: int  # newest packet to it
    began_ns: int = 0  # first contact of this series
    contact_ns: int = 0  # newest contact
    contacts: int = 0
    packets: int = 0  # of this series, to the peer
    bytes: int = 0  # the same, both ways
    sent: int = 0  # the same, to the peer
    opened: int = 0  # TCP connections it was asked for
    accepted: int = 0  # those of them that it accepted
    intervals: "array[float] | None" = None  # seconds between contacts, the last INTERVALS; most peers have none
    regular: bool = False  # it is, or was, visited as regularly as the rule asks
    replaced: bool = False  # another peer has taken over from it since it was last judged regular
    told: bool = False  # a series of it was reported
    reported_ns: int = 0  # newest detection of this series; 0: none
    second: int = 0  # of packet time; its ``sums`` are not in those above, since a series is judged by whole seconds
    sums: tuple[int, ...] = (0, 0, 0, 0, 0)

    def add(self, second: int, sums: tuple[int, ...]) -> None:
        """Add packets, packets sent, bytes, connections requested and accepted, of one second or a part of it."""
        self.sums = tuple(map(sum, zip(self.sums, sums, strict=True))) if second == self.second else sums
        self.second = second

    def add_interval(self, seconds: float) -> None:
        """Add a contact that came ``seconds`` after the one before."""
        if self.intervals is None:
            self.intervals = array("d")
        elif len(self.intervals) == INTERVALS:
            del self.intervals[0]
        self.intervals.append(seconds)

    def settle(self, second: int) -> None:
        """Take the sums of the seconds before ``second`` into the series."""
        if second != self.second:
            packets, sent, size, opened, accepted = self.sums
            self.packets, self.sent, self.bytes = self.packets + packets, self.sent + sent, self.bytes + size
            self.opened, self.accepted = self.opened + opened, self.accepted + accepted
            self.sums = (0, 0, 0, 0, 0)

    def begin(self, t_ns: int, proto: int, port: int) -> None:
        """Begin another series of contacts, which are by this protocol and port."""
        self.began_ns, self.proto, self.port = t_ns, proto, port
        self.contacts = self.packets = self.bytes = self.sent = self.opened = self.accepted = self.reported_ns = 0
        self.intervals = None


@dataclass(slots=True)
class _Visitor:
    first_ns: int
    peers: dict[bytes, _Peer] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """Rows of one device and one remote peer in one second of packet time."""

    mac: int
    peer: bytes
    row: int  # the number of its first row that makes a contact, else of its first row
    t_ns: int  # packet time of that row
    last_ns: int  # of its last row that makes a contact, else the same
    contact: bool  # True if a row makes one: the device sent something that is not a repeated SYN
    new: bool  # True if the device had not used the peer before
    second: int
    sums: tuple[int, ...]  # packets, those of them that were sent, bytes, connections asked for and accepted


class CheckIns:
    """Finds check-ins in rows. ``networks`` is the monitored side, as the detector has it."""

    def __init__(self, networks: Sequence[str] = PRIVATE_NETWORKS, rule: CheckInRule | None = None):
        self._networks = Networks.parse(networks)
        self._rule = rule or CheckInRule()
        self._devices: OrderedDict[int, _Visitor] = OrderedDict()
        self._carriers: OrderedDict[int, int] = OrderedDict()  # MAC -> 1: carries packets out, 2: in, 3: a router
        self._clock = SteadyClock()
        self._row_second, self._rows = 0, 0  # rows looked at in this second of packet time; the same of pairs
        self._pair_second, self._pairs = 0, 0
        self.counters = {
            "checkins_rows_skipped": 0,
            "checkins_pairs_skipped": 0,
            "checkins_peers_evicted": 0,
            "checkins_devices_evicted": 0,
            "checkins_newcomers": 0,  # remote peers first used after the device's own were learnt
            "checkins_succeeded": 0,  # newcomers that replace a peer which fell silent
            "checkins_series": 0,  # series that were reported
        }

    def clock_set_forward(self, step_ns: int) -> None:
        """Note that the system's clock, which stamps packets, was set forward."""
        self._clock.set_forward(step_ns)

    def observe(self, rows: Rows) -> list[Detection]:
        """Take ``rows`` in packet order; return detections, in packet order, of series of contacts that are check-ins.

        A series is reported as soon as it fulfils the rule, then at most once in `REPORT_S` while it lasts.
        """
        detections: list[Detection] = []
        if not len(rows):
            return detections
        for pair in self._in_pairs(rows.meta):
            if self._carriers.get(pair.mac) == 3:
                continue
            meta = rows.meta[pair.row]
            if (detection := self._see(pair, meta, rows.interface_of(meta))) is not None:
                detections.append(detection)
        return detections

    # -- rows --

    def _in_pairs(self, meta: NDArray[Any]) -> Iterator[_Pair]:
        """Yield the traffic between devices and remote peers of each second, in the order of its first rows."""
        looked = self._within_bound(meta["t_ns"])
        at = np.flatnonzero(looked & (meta["ip_version"] != 0) & (meta["dst_mac"] >> np.uint64(40) & np.uint64(1) == 0))
        some = meta[at]
        out = self._networks.hold(some["src"], some["ip_version"])
        first = some["dst"][:, 0]
        group_address = np.where(some["ip_version"] == 4, first >= 224, first == 0xFF)  # though sent to a single MAC
        across = (out != self._networks.hold(some["dst"], some["ip_version"])) & ~group_address
        at, some, out = at[across], some[across], out[across]
        if not len(at):
            return
        self._know_routers(some, out)
        mac = np.where(out, some["src_mac"], some["dst_mac"])
        remote = np.where(out[:, None], some["dst"], some["src"])
        seconds = some["t_ns"] // _S
        _, first, group = np.unique(_hashed(mac, remote, seconds), return_index=True, return_inverse=True)

        tcp, kind = some["proto"] == _TCP, some["tcp_flags"] & (_SYN | _ACK)
        asks = out & tcp & (kind == _SYN)
        opens = asks & (some["flags"] & features.NEW_SOCKET != 0)
        makes = out & (~asks | opens)

        def count(rows: NDArray[np.bool_]) -> list[int]:
            counted: list[int] = np.bincount(group[rows], minlength=len(first)).tolist()
            return counted

        row, last, made = first.copy(), first.copy(), np.flatnonzero(makes)
        row[group[made[::-1]]] = made[::-1]  # of several assignments the last stays: here the first row
        last[group[made]] = made
        contacts, sent, new = count(makes), count(out), count(out & (some["flags"] & features.NEW_PEER != 0))
        opened, accepted = count(opens), count(~out & tcp & (kind == _SYN | _ACK))
        packets, size = (
            count(np.ones(len(at), dtype=bool)),
            np.bincount(group, some["length"]).astype(np.int64).tolist(),
        )
        for g in np.argsort(first, kind="stable").tolist():
            second = int(seconds[first[g]])
            if second != self._pair_second:
                self._pair_second, self._pairs = second, 0
            self._pairs += 1
            if self._pairs > MAX_PAIRS:
                self.counters["checkins_pairs_skipped"] += 1
                continue
            i, j = int(row[g]), int(last[g])
            yield _Pair(
                mac=int(mac[i]),
                peer=remote[i].tobytes(),
                row=int(at[i]),
                t_ns=int(some["t_ns"][i]),
                last_ns=int(some["t_ns"][j]),
                contact=contacts[g] > 0,
                new=new[g] > 0,
                second=second,
                sums=(packets[g], sent[g], size[g], opened[g], accepted[g]),
            )

    def _within_bound(self, t_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return for each row if it is among the first `MAX_ROWS` of its second."""
        seconds = t_ns // _S
        if self._rows >= MAX_ROWS and int(seconds[0]) == int(seconds[-1]) == self._row_second:  # the flood's fast path
            self.counters["checkins_rows_skipped"] += len(seconds)
            return np.zeros(len(seconds), dtype=bool)
        starts = np.concatenate([[0], np.flatnonzero(np.diff(seconds)) + 1])
        number = np.arange(len(seconds)) - np.repeat(starts, np.diff(np.append(starts, len(seconds))))
        if int(seconds[0]) == self._row_second:
            number[: starts[1] if len(starts) > 1 else len(number)] += self._rows
        self._row_second, self._rows = int(seconds[-1]), int(number[-1]) + 1
        looked: NDArray[np.bool_] = number < MAX_ROWS
        self.counters["checkins_rows_skipped"] += len(looked) - int(looked.sum())
        return looked

    def _know_routers(self, some: NDArray[Any], out: NDArray[np.bool_]) -> None:
        """Remember the MACs that carry packets of remote addresses out (bit 1) or in (bit 2).

        A MAC that carries both is a router, whose own peers cannot be separated from those of devices behind it.
        """
        for bit, macs in ((1, some["dst_mac"][out & (some["dst_mac"] != some["src_mac"])]), (2, some["src_mac"][~out])):
            for mac in sorted(set(macs.tolist()))[:MAX_ROUTERS]:
                if mac not in self._carriers and len(self._carriers) >= MAX_ROUTERS:
                    self._carriers.popitem(last=False)
                self._carriers[mac] = self._carriers.get(mac, 0) | bit
                self._carriers.move_to_end(mac)

    # -- contacts --

    def _see(self, pair: _Pair, meta: np.void, interface: str) -> Detection | None:
        """Take in one second of a device and a peer, or a part of it; no result depends on where a batch ends."""
        t_ns, detection = self._clock.at(pair.t_ns), None
        sends = pair.sums[1] > 0
        if sends:
            device = self._device(pair.mac, t_ns)
        elif pair.mac in self._devices:
            device = self._devices[pair.mac]
        else:
            return None
        peer = device.peers.get(pair.peer)
        if peer is None:
            if not sends:
                return None  # the device did nothing: only the peer sent something
            new = pair.new and t_ns - device.first_ns >= self._rule.learn_s * _S
            peer = _Peer(new, int(meta["proto"]), int(meta["dport"]), t_ns, t_ns)
            self.counters["checkins_newcomers"] += new
            self._admit(device, pair.peer, peer)
        peer.settle(pair.second)
        if pair.contact and (not peer.contacts or t_ns - peer.last_ns > GAP_S * _S):
            elsewhere = peer.contacts < FEW and int(meta["dport"]) != peer.port
            if not peer.contacts or elsewhere or t_ns - peer.last_ns > PAUSE_S * _S:
                peer.begin(t_ns, int(meta["proto"]), int(meta["dport"]))
            else:
                peer.add_interval((t_ns - peer.contact_ns) / _S)
                detection = self._judge(device, peer, t_ns, pair, meta, interface)
            peer.contact_ns, peer.contacts = t_ns, peer.contacts + 1
        if pair.contact:
            peer.last_ns = max(peer.last_ns, pair.last_ns + self._clock.offset_ns)
        peer.add(pair.second, pair.sums)
        return detection

    def _judge(
        self, device: _Visitor, peer: _Peer, t_ns: int, pair: _Pair, meta: np.void, interface: str
    ) -> Detection | None:
        """Return a detection if the contacts so far, without the one that just begins, are check-ins to be reported."""
        rule = self._rule
        if peer.contacts < rule.contacts or t_ns - peer.began_ns < rule.span_s * _S:
            return None
        assert peer.intervals is not None
        low, median, high = np.quantile(np.array(peer.intervals), (0.25, 0.5, 0.75)).tolist()
        spread = (high - low) / (high + low)
        failing = peer.opened >= rule.contacts and peer.accepted <= rule.accepted * peer.opened
        if not failing and (spread > rule.spread or peer.bytes > rule.size * peer.contacts):
            return None
        if peer.new and not peer.reported_ns and self._replaces_another(device, peer, median):
            peer.new = False
            self.counters["checkins_succeeded"] += 1
        if not peer.new:
            peer.regular, peer.replaced = True, False
            return None
        if peer.reported_ns and t_ns - peer.reported_ns < REPORT_S * _S:
            return None
        self.counters["checkins_series"] += not peer.reported_ns
        peer.reported_ns, peer.told = t_ns, True
        span_s = (t_ns - peer.began_ns) / _S
        top: tuple[tuple[str, float], ...]
        target, share = address_text(meta["dst"], meta["ip_version"]), peer.accepted / max(peer.opened, 1)
        where = f"{target} port {peer.port}" if peer.port else target
        if failing:
            does = f"tried to connect to {where} {peer.opened} times in {_time(span_s)}, {peer.accepted} were accepted"
            top = (("attempts", float(peer.opened)), ("accepted", float(peer.accepted)))
        else:
            size = peer.bytes / peer.contacts
            does = f"contacts {where} every {median:.3g} s for {_time(span_s)} now, {size:.0f} bytes each time"
            top = (("contacts", float(peer.contacts)), ("interval_s", median), ("spread", spread), ("bytes", size))
        return Detection(
            t_ns=pair.t_ns,
            first_ns=pair.t_ns - (t_ns - peer.began_ns),
            device_mac=pair.mac,
            device_ip=address_text(meta["src"], meta["ip_version"]),
            role="source",
            method="checkins",
            class_name="unknown",
            activities=(Activity("check-in", peer.port or None),),
            # no probability: how far the evidence is from the rule's bound, from 0.5 at it to 1 far within it
            confidence=1.0 - 0.5 * (share / rule.accepted if failing else spread / rule.spread),
            score=float(peer.contacts),
            threshold=float(rule.contacts),
            window_s=span_s,
            count=peer.contacts,
            packets=peer.sent,
            bytes=peer.bytes,
            src_ip=address_text(meta["src"], meta["ip_version"]),
            src_port=int(meta["sport"]),
            dest_ip=target,
            dest_port=int(meta["dport"]),
            proto=protocol_name(peer.proto),
            top_features=top,
            explanation=f"{does}; it had never used that host before"[:200],
            hold_s=HOLD_S,
            interface=interface,
        )

    def _replaces_another(self, device: _Visitor, peer: _Peer, pace_s: float) -> bool:
        """Return True if the peer, with contacts every ``pace_s``, replaces one of its protocol and port.

        That is a regular one, or one that was visited at about that pace and is the device's own, though not regular,
        or was reported: an alert for each address that it moves to would say nothing new. Each is replaced only once.
        """
        for old in device.peers.values():
            alike = (old.proto, old.port) == (peer.proto, peer.port) and (old.regular or self._kept(old, pace_s))
            pause_s = (peer.began_ns - old.contact_ns) / _S
            if alike and not old.replaced and old is not peer and -OVERLAP_S <= pause_s <= DAY_S:
                old.replaced, old.regular = True, False
                return True
        return False

    def _kept(self, old: _Peer, pace_s: float) -> bool:
        """Return True if this is an own or a reported peer of the device that was visited at about that pace."""
        if (old.new and not old.told) or old.intervals is None or len(old.intervals) < ALIKE_INTERVALS:
            return False
        low, high = np.quantile(np.array(old.intervals), (0.25, 0.75)).tolist()
        return bool(low <= ALIKE * pace_s and pace_s <= ALIKE * high)

    # -- tables --

    def _device(self, mac: int, t_ns: int) -> _Visitor:
        device = self._devices.get(mac)
        if device is None:
            if len(self._devices) >= MAX_DEVICES:
                self._devices.popitem(last=False)
                self.counters["checkins_devices_evicted"] += 1
            device = self._devices[mac] = _Visitor(t_ns)
        self._devices.move_to_end(mac)
        return device

    def _admit(self, device: _Visitor, address: bytes, peer: _Peer) -> None:
        """Enter a peer into the table. A full table evicts the least important: irregular, rarely seen, then oldest."""
        peers = device.peers
        if len(peers) >= MAX_PEERS:
            least = min(
                peers,
                key=lambda a: (peers[a].regular or peers[a].reported_ns > 0, peers[a].contacts > 2, peers[a].last_ns),
            )
            del peers[least]
            self.counters["checkins_peers_evicted"] += 1
        peers[address] = peer


def _hashed(mac: NDArray[Any], remote: NDArray[Any], seconds: NDArray[Any]) -> NDArray[np.uint64]:
    """Return one hash for each device, peer (n, 16) and second, by odd multipliers (splitmix64's and others)."""
    words = np.ascontiguousarray(remote).view(np.uint64)
    mixed: NDArray[np.uint64] = mac.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ words[:, 0] * np.uint64(
        0xC2B2AE3D27D4EB4F
    )
    mixed = (mixed ^ mixed >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9) ^ words[:, 1] * np.uint64(
        0xD6E8FEB86659FD93
    )
    mixed = (mixed ^ mixed >> np.uint64(32)) * np.uint64(0x94D049BB133111EB) ^ seconds.astype(np.uint64)
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0xFF51AFD7ED558CCD)
    return mixed


def _time(seconds: float) -> str:
    """Return a duration as text.

    >>> _time(1860), _time(36000)
    ('31 min', '10 h')
    """
    return f"{seconds / 60:.0f} min" if seconds < 3 * 3600 else f"{seconds / 3600:.0f} h"
