"""The sort of traffic that an alarm consists of, by measurement: spread over many targets, much to one, or neither.

A *target* is an address and a port. Nothing here depends on a model, so what is allowed as a scan stays a scan after a
model update. Two samples are looked at, each of the newest `SAMPLE` packets at most: what the subject opened, when the
counts rule flags it; and the rows whose score is above its limit. A scan and a flood at the same time are two
activities, so that an allow of one does not cover the other.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.alert import KINDS, Activity

SAMPLE = 20
"""Number of the newest packets that a sort of traffic is recognised by."""

FLOOD_RATE = 100.0
"""Packets a second to one host from which they are a flood, whichever its ports. Floods of real devices reach 250 to
850 (N-BaIoT, Meidan et al. 2018); whoever tries the ports of one host that fast cannot be distinguished from one."""

TRIES = 4
"""Packets to each target on average up to which traffic to many targets is a scan."""

MOST_BESIDE = 2
"""Number of activities at another port that are named besides: an alert has room for three beside its main one."""

PORT_BITS = 16
"""Number of the lowest bits of a target, which are its port; those above are its host."""

_LEAST = 3  # packets that are a sample: the counts rule votes by as many
_HASH = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], dtype=np.uint64)
_S = 1_000_000_000


def targets(meta: NDArray[Any]) -> NDArray[np.int64]:
    """Return the targets of packets (n,) of ROW_META: 40 bits of the address's hash, then the port; never 0."""
    words = np.ascontiguousarray(meta["dst"]).view(np.uint64) * _HASH
    mixed = words[:, 0] ^ words[:, 1] ^ (words[:, 1] >> np.uint64(32))
    hosts = (mixed * _HASH[0] >> np.uint64(24)) | np.uint64(1)
    return np.asarray(hosts << np.uint64(PORT_BITS) | meta["dport"], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Some packets of a subject in the order of time: steady times, targets, packets that each accounts for, (n,).

    ``grown`` (n,) is True where the traffic to the packet's host has grown within minutes.
    """

    t_ns: NDArray[np.int64]
    targets: NDArray[np.int64]
    packets: NDArray[np.int64]
    grown: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.t_ns)

    def part(self, which: NDArray[np.bool_]) -> "Sample":
        """Return the packets where ``which`` (n,) is set."""
        return Sample(
            t_ns=self.t_ns[which], targets=self.targets[which], packets=self.packets[which], grown=self.grown[which]
        )

    @property
    def hosts(self) -> NDArray[np.int64]:
        """The host of each packet, (n,), as a hash."""
        return self.targets >> PORT_BITS

    def activity(self) -> Activity | None:
        """Return the sort of traffic that these packets are; None if they are too few.

        >>> t_ns, rest = np.arange(20) * 5_000_000, {"packets": np.ones(20, int), "grown": np.ones(20, bool)}
        >>> one_host, hosts = np.full(20, 7 << 16 | 80), np.arange(20) << 16 | 23
        >>> Sample(t_ns=t_ns, targets=hosts, **rest).activity()
        Activity(kind='scan', port=23)
        >>> Sample(t_ns=t_ns, targets=one_host, **rest).activity()
        Activity(kind='flood', port=80)
        >>> Sample(t_ns=t_ns * 100, targets=one_host, **rest).activity()
        Activity(kind='other', port=80)
        >>> Sample(t_ns=t_ns, targets=7 << 16 | np.arange(20), **rest).activity()
        Activity(kind='flood', port=None)
        """
        if len(self) < _LEAST:
            return None
        hosts, host, counts = np.unique(self.hosts, return_inverse=True, return_counts=True)
        busiest = int(np.argmax(counts))
        if 3 * counts[busiest] >= 2 * len(self):
            mine = self.part(host == busiest)
            if mine._rate() >= FLOOD_RATE:
                return Activity("flood", mine.port())
            return Activity("scan" if mine._spread() else "other", mine.port())
        if self._spread():
            return Activity("scan", self.port())
        return Activity("flood" if self._rate() / len(hosts) >= FLOOD_RATE else "other", self.port())

    def port(self) -> int | None:
        """Return the port to which most packets go; None if none has more than half of them."""
        ports, counts = np.unique(self.targets & ((1 << PORT_BITS) - 1), return_counts=True)
        most = int(np.argmax(counts))
        return int(ports[most]) if 2 * counts[most] > len(self) else None

    def beside(self, main: Activity) -> list[Activity]:
        """Return the scan or flood that goes to another port than ``main``, of traffic that has grown; else nothing.

        >>> ports = np.array([22, 22, 22, 23] * 5)
        >>> rest = {"packets": np.ones(20, int), "grown": np.ones(20, bool)}
        >>> sample = Sample(t_ns=np.arange(20) * 50_000_000, targets=np.arange(20) << 16 | ports, **rest)
        >>> sample.beside(sample.activity())
        [Activity(kind='scan', port=23)]
        """
        if main.port is None or main.kind == "other":
            return []
        other = self.part((self.targets & ((1 << PORT_BITS) - 1) != main.port) & self.grown)
        activity = other.activity()
        return [activity] if activity and activity.kind != "other" else []

    def _spread(self) -> bool:
        """Return True if these are few packets to each of several targets."""
        different = len(np.unique(self.targets))
        return different >= _LEAST and TRIES * different >= len(self)

    def _rate(self) -> float:
        """Return the packets a second."""
        return float(self.packets[1:].sum()) / max(float(self.t_ns[-1] - self.t_ns[0]) / _S, 1e-9)


def recognise(opened: Sample | None, new_peers: Sample | None, scored: Sample, *, victim: bool) -> tuple[Activity, ...]:
    """Return the activities of a subject, at least one, the worst first; no two are of the same kind and port.

    ``opened`` are the last openings and ``new_peers`` those of new peers, where the counts rule flags them; ``scored``
    the rows whose score is above its limit. Beside a scan, only traffic that has grown is a flood: all other is what
    the device always sends. The peers of a ``victim`` are those that come to it, which do not scan anything together;
    nor does a sender of many false addresses, whose new peers are one host. What goes to another port than most of the
    packets counts as well: else a scan that is not allowed could hide among those of one that is.
    """
    activities: dict[str, Activity] = {}
    beside: list[Activity] = []
    if new_peers and not victim and TRIES * len(np.unique(new_peers.hosts)) >= len(new_peers):
        activities["scan"] = Activity("scan", new_peers.port())
        beside += new_peers.beside(activities["scan"])
    if opened and (activity := opened.activity()) and (not activities or activity.kind == "flood"):
        activities[activity.kind] = activity
        beside += opened.beside(activity)
    activity = (scored.part(scored.grown) if activities else scored).activity()
    if activity and (not activities or activity.kind != "other"):
        beside += scored.beside(activities.setdefault(activity.kind, activity))
    if len(activities) > 1:
        activities.pop("other", None)
    ranked = sorted(activities.values(), key=lambda activity: KINDS.index(activity.kind))
    more = [] if victim else [activity for activity in dict.fromkeys(beside) if activity not in ranked]
    return (*(ranked or [Activity("other")]), *more[:MOST_BESIDE])
