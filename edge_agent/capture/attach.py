"""Checks of the place where the agent captures: are frames merged, and can devices be distinguished?

Linux merges received frames of a connection (GRO, LRO) and sends several as one (TSO), and a capture shows the merged
frames: too few and too long. A merged frame below the MTU cannot be recognised, so merging must be switched off; frames
above the MTU are counted. Features are read by the ethtool ioctl, in 25 lines: a netlink library takes 25 MB and 0.7 s.
"""

import array
import fcntl
import logging
import math
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from edge_agent.capture.features import Rows
from edge_agent.capture.sources import own_macs
from edge_agent.contract.captures import mac_text
from edge_agent.contract.networks import Networks

__all__ = ["Attachment", "longest_frame", "merging", "way_out"]

logger = logging.getLogger(__name__)

_NETWORK = Path("/sys/class/net")
_SIOCETHTOOL = 0x8946
_GET_STRINGS, _GET_SET_INFO, _GET_FEATURES = 0x1B, 0x37, 0x3A
_FEATURE_NAMES, _NAME_BYTES = 4, 32  # ETH_SS_FEATURES, ETH_GSTRING_LEN
_RECEIVING = {"rx-gro": "gro", "rx-gro-hw": "rx-gro-hw", "rx-lro": "lro"}
_SENDING = {"tx-tcp-segmentation": "tso", "tx-tcp6-segmentation": "tso", "tx-udp-segmentation": "tx-udp-segmentation"}
"""The kernel's names of features that merge frames -> their names for `ethtool -K`. GSO is not one of them: frames that
only GSO has merged are cut up before a capture sees them."""

LINK_HEADER = 14 + 2 * 4
"""Most bytes before the IP packet: Ethernet with two VLAN tags."""

ALONE_S, ALONE_FRAMES = 600.0, 1_000
"""Seconds and frames after which there should have been devices."""

ASK_AGAIN_S = 1.0
"""Shortest time in seconds between two questions for the MTU of the interfaces."""

SAMPLE = 64
"""Rows of a batch that are searched for devices."""

MOST_ROUTERS = 1_024
"""Number of MACs of routers and of this machine that are remembered. Here a router is a MAC that sends packets from
addresses outside the monitored networks; `kernel/senders.c` and `checkins`, which judge traffic, define it in their own
ways."""


def merging(name: str, *, inbound: bool = False) -> dict[str, list[str]]:
    """Return the features that merge frames seen on ``name``: interface -> features as `ethtool -K` takes them.

    Received frames are merged by the lowest interfaces below a bridge, bond or VLAN. Sent frames are seen as ``name``
    itself leaves them, and with ``inbound`` not at all. OSError if the system gives no answer.
    """
    active = {} if inbound else {name: _active(name, _SENDING)}
    for lowest in _lowest(name):
        active[lowest] = active.get(lowest, []) + _active(lowest, _RECEIVING)
    return {interface: features for interface, features in active.items() if features}


def way_out() -> set[str]:
    """Return the interfaces of the default route."""
    try:
        lines = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    except OSError:  # a system without IPv4
        return set()
    return {words[0] for words in lines if len(words) > 7 and words[1] == words[7] == "00000000"}


def longest_frame(names: Sequence[str]) -> int:
    """Return the bytes of the longest unmerged frame on any of these interfaces; 0 if none of them is there."""
    longest = 0
    for name in names:
        with suppress(OSError, ValueError):
            longest = max(longest, int((_NETWORK / name / "mtu").read_text()) + LINK_HEADER)
    return longest


def _lowest(name: str, depth: int = 4) -> Iterator[str]:
    below = [path.name.removeprefix("lower_") for path in (_NETWORK / name).glob("lower_*")]
    if below and depth:
        for one in sorted(below):
            yield from _lowest(one, depth - 1)
    else:
        yield name


def _active(name: str, wanted: dict[str, str]) -> list[str]:
    """Return the ``wanted`` features that are switched on, by ethtool's ioctl."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:

        def ask(form: str, *head: int, more: int = 0) -> bytes:
            value = array.array("B", struct.pack(form, *head) + bytes(more))
            request = struct.pack("16sP", name.encode(), value.buffer_info()[0])
            fcntl.ioctl(line, _SIOCETHTOOL, request.ljust(40, b"\0"))
            return value.tobytes()

        count = struct.unpack_from("I", ask("IIQ", _GET_SET_INFO, 0, 1 << _FEATURE_NAMES, more=4), 16)[0]
        text = ask("III", _GET_STRINGS, _FEATURE_NAMES, count, more=_NAME_BYTES * count)[12:]
        blocks = (count + 31) // 32
        answer = ask("II", _GET_FEATURES, blocks, more=16 * blocks)
    active = [struct.unpack_from("I", answer, 8 + 16 * block + 8)[0] for block in range(blocks)]
    features = []
    for i in range(count):
        feature = text[_NAME_BYTES * i : _NAME_BYTES * (i + 1)].rstrip(b"\0").decode("ascii", "replace")
        if active[i // 32] >> i % 32 & 1 and feature in wanted and wanted[feature] not in features:
            features.append(wanted[feature])
    return features


class Attachment:
    """Recognises from the frames that interfaces are attached at the wrong place, and logs each finding once.

    A gateway's LAN side shows devices under MACs of their own; beyond NAT there is only the router's. This machine's
    MACs and MACs that send packets of remote addresses do not count as devices.
    """

    def __init__(self, names: Sequence[str], networks: Sequence[str], began: float) -> None:
        self._names, self._networks, self._began = list(names), Networks.parse(networks), began
        self._longest, self._asked = 0, -math.inf
        self._routers, self._devices = own_macs(), set[int]()
        self._logged_merged = self._logged_alone = False
        self.counters = {"frames_merged": 0}

    def look(self, rows: Rows) -> None:
        """Count frames that are longer than the interfaces can carry, and find devices."""
        lengths = rows.meta["length"]
        if longest := self._longest_now(int(lengths.max(initial=0))):
            merged = int(np.count_nonzero(lengths > longest))
            if merged:
                self.counters["frames_merged"] += merged
                self._log_merged(int(lengths.max()))
        if len(self._devices) < 2:
            some = rows.meta[:SAMPLE]
            local = self._networks.hold(some["src"], some["ip_version"])
            if len(self._routers) < MOST_ROUTERS:
                self._routers.update(some["src_mac"][~local].tolist())
            self._devices.update(some["src_mac"][local & (some["ip_version"] > 0)].tolist())
            self._devices -= self._routers

    def _longest_now(self, length: int) -> int:
        """Return the longest unmerged frame, 0 if unknown.

        Asked again where a frame of ``length`` bytes is longer: interfaces come late, and their MTU may be changed.
        """
        if length > self._longest and (now := time.monotonic()) >= self._asked + ASK_AGAIN_S:
            self._longest, self._asked = longest_frame(self._names), now
        return self._longest

    def beat(self, now: float, frames: int) -> None:
        """Log a warning if no two devices have been seen by time ``now``, after ``frames`` frames."""
        self._routers |= own_macs()  # of interfaces that came since
        self._devices -= self._routers
        if self._logged_alone or len(self._devices) > 1 or now - self._began < ALONE_S or frames < ALONE_FRAMES:
            return
        self._logged_alone = True
        which = f"one device ({mac_text(next(iter(self._devices)))})" if self._devices else "no device"
        logger.warning(
            "%s: %s was seen with an address of the monitored networks. If there are more devices, this is the wrong "
            "side of NAT: capture where devices are attached (docs/gateway.md, Where to attach)",
            ", ".join(self._names),
            which,
        )

    def _log_merged(self, length: int) -> None:
        if self._logged_merged:
            return
        self._logged_merged = True
        logger.warning(
            "a frame of %d bytes is longer than %s can carry: frames are merged, so sizes and rates are wrong; "
            "`botwatch agent check` prints how to switch merging off (on veth and virtio: at the other end)",
            length,
            ", ".join(self._names),
        )
