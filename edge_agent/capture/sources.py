"""Sources of frames: capture files and live interfaces, with the same `Source` for both.

A source hands frames to the kernel without passing Python. What is in a frame is the knowledge of `features`; time
resolution and file format (pcap, pcapng) are libpcap's. Several interfaces are one source (`Interfaces`): the kernel
reads them in the order of time, each frame once; this module waits for frames, and for interfaces that are not there:
at the start of a machine, or after they went away.
"""

import fcntl
import logging
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from edge_agent._kernel import Capture, CaptureError, CaptureForbidden, Live
from edge_agent.capture.live_settings import LiveSettings
from edge_agent.contract import pcapfile
from edge_agent.contract.captures import parse_mac

__all__ = [
    "CaptureError",
    "InterfaceState",
    "Interfaces",
    "LiveSettings",
    "Recorder",
    "Source",
    "open_file",
    "own_macs",
]

logger = logging.getLogger(__name__)

HELD_S = 0.02
"""Seconds of waiting for older frames of other interfaces before the youngest are asked for again."""

FEW, GATHER_S = 2_048, 0.03
"""After fewer rows than this, wait this many seconds for more: a row costs more in a small batch than in a large
one."""

LOOK_S = 1.0
"""Seconds between two looks at which interfaces are there and up."""

RETRY_S = (1.0, 30.0)
"""The first and the longest pause before an interface that is there and up, but could not be opened, is tried again."""

_SIOCGIFFLAGS, _SIOCGIFINDEX = 0x8913, 0x8933
_IFF_UP, _IFF_RUNNING = 0x1, 0x40

ABSENT, DOWN, NO_CARRIER = "there is no such interface", "it is down", "it has no carrier"
_ANOTHER = "another interface has its name now"


class Source:
    """Something that frames are taken from, closed by `close` or by leaving its ``with`` block.

    ``names`` are the names of its live interfaces, in the order of their numbers; a file has one, "".
    """

    def __init__(self, capture: Capture | Live, names: Sequence[str] = ("",)) -> None:
        self.capture, self.names = capture, tuple(names)

    def close(self) -> None:
        """Close files and interfaces; doing so twice is fine."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _File(Source):
    def __init__(self, capture: Capture) -> None:
        super().__init__(capture)
        self._file, self.name, self.linktype = capture, capture.name, capture.linktype

    def close(self) -> None:
        self._file.close()


def open_file(path: str | os.PathLike[str], *, bpf: str | None = None) -> _File:
    """Open a pcap or pcapng file; only frames that pass the filter ``bpf`` are taken.

    CaptureError if the file is absent, empty, not a capture or of an unsupported link layer, or if the filter does not
    compile.
    """
    return _File(Capture(path, bpf))


class Recorder:
    """A pcap file of every frame that is taken from live sources, in the order in which they are taken.

    The recording ends at ``most_bytes``, when the file cannot be written, or with an interface that comes later and has
    another link layer; ``ended`` then has the reason, which is also logged. Capturing goes on. CaptureError if the file
    cannot be made.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.path, self.ended = path, ""
        self._most, self._linktype = most_bytes, -1
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CaptureError(f"{path}: {error.strerror}") from error

    def attach(self, live: Live, name: str, linktype: int, snaplen: int) -> None:
        """Record frames from now on. CaptureError if the link layer of interface ``name`` is not that of the file."""
        if self.ended:
            return
        if self._linktype < 0:
            self._linktype = linktype
            try:
                os.write(self._file, pcapfile.file_header(snaplen, linktype))
            except OSError as error:
                self.end(live, f"{self.path}: {error.strerror}")
                return
            live.record(self._file)
        elif linktype != self._linktype:
            raise CaptureError(f"{name}: link type {linktype} cannot go into {self.path}, which has {self._linktype}")

    def taken(self, live: Live) -> None:
        """Write the frames that were just taken."""
        if self.ended or self._linktype < 0:
            return
        if failed := live.flush():
            self.end(live, f"{self.path}: {os.strerror(failed)}")
        elif os.lseek(self._file, 0, os.SEEK_CUR) >= self._most:
            self.end(live, f"{self.path} has reached its bound of {self._most} bytes")

    def end(self, live: Live, reason: str) -> None:
        """Record no more frames."""
        self.ended = reason
        live.record(-1)
        logger.warning("the recording has ended, capturing goes on: %s", reason)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def own_macs() -> set[int]:
    """Return the MACs of this machine's interfaces."""
    macs = set()
    for path in Path("/sys/class/net").glob("*/address"):
        try:
            macs.add(parse_mac(path.read_text().strip()))
        except (OSError, ValueError):  # it went away just now, or it is not Ethernet
            continue
    return macs - {0}


@dataclass(frozen=True)
class InterfaceState:
    """One interface: whether it is captured, since when on the steady clock, and why frames cannot come ("": they can).

    One that is up without a carrier, as a bridge without ports, is captured, and ``reason`` says so.
    """

    name: str
    captured: bool
    since: float
    reason: str


@dataclass
class _Interface:
    name: str
    fd: int = -1  # -1: not open
    index: int = 0  # the system's number of the interface that is open or was tried last: another one may get its name
    reason: str = ""  # why no frames can come
    since: float = field(default_factory=time.monotonic)  # of being captured, or not
    logged: str = ""  # why it could not be opened, as logged
    retry_at: float = 0.0
    retry_s: float = RETRY_S[0]

    @property
    def captured(self) -> bool:
        return self.fd >= 0 and self.reason != DOWN


class Interfaces(Source):
    """Live interfaces as one source of frames, in the order of the system's times, in nanoseconds.

    With ``settings.once`` a frame that this machine forwards is taken only on its way in, and one that several
    interfaces show, such as a bridge and its ports, only once. An interface that is absent, down or cannot be opened is
    waited for, at the start as later, while the others are captured. CaptureError if that is of no use: the right to
    capture (CAP_NET_RAW) is missing, the filter does not compile, or the recorder cannot take all of them.
    """

    def __init__(
        self, names: Sequence[str], settings: LiveSettings | None = None, recorder: Recorder | None = None
    ) -> None:
        s = settings or LiveSettings()
        self._live = Live(
            tuple(names), s.bpf, s.snaplen, s.buffer_bytes, s.promiscuous, s.inbound, s.once and not s.inbound
        )
        super().__init__(self._live, names)
        self._settings, self._recorder = s, recorder
        self._all = [_Interface(name) for name in names]
        self._poll = select.poll()
        self._look_at = time.monotonic() + LOOK_S
        self._latest = 0  # rows of the last call; if there were any, frames may wait in libpcap, unseen by poll
        self.counters = {"interface_lost": 0, "interface_back": 0}
        try:
            for i in range(len(self._all)):
                self._begin(i)
        except CaptureError:
            self.close()
            raise

    def states(self) -> list[InterfaceState]:
        """Return how each interface is doing, as last looked at."""
        return [InterfaceState(one.name, one.captured, one.since, one.reason) for one in self._all]

    def each(self, take: Callable[[Source], int], timeout_s: float) -> int:
        """Wait for a frame at most ``timeout_s``, then have ``take`` take frames; return how many rows it got."""
        self._wait(timeout_s)
        rows = take(self)
        self._latest = rows
        if self._recorder:
            self._recorder.taken(self._live)
        for i, interface in enumerate(self._all):
            if interface.fd >= 0 and (reason := self._live.lost(i)) is not None:
                self._lose(i, reason)
        return rows

    def count(self) -> dict[str, int]:
        """Return counters of frames and of interfaces that could not be captured.

        ``captured`` are all frames, ``dropped`` those lost to a full buffer, ``interface_dropped`` those lost by an
        interface, ``seen_again`` those left out as seen before. ``seen_forgotten`` counts frames dropped from the table
        of frames seen while they were still needed for that. ``interface_lost`` counts the interfaces that went away or
        were not there at the start, ``interface_back`` those of them that came (back).
        """
        self._note_own_macs()
        keys = ("captured", "dropped", "interface_dropped", "seen_again", "seen_forgotten")
        return dict(zip(keys, self._live.statistics(), strict=True)) | self.counters

    def close(self) -> None:
        """Close all interfaces."""
        for i, interface in enumerate(self._all):
            self._live.shut(i)
            interface.fd = -1

    def _wait(self, timeout_s: float) -> None:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            for i in range(len(self._all)):
                self._look(i, now)
        if self._live.held():
            time.sleep(min(timeout_s, HELD_S))
        elif 0 < self._latest < FEW:
            time.sleep(min(timeout_s, GATHER_S))
        elif not self._latest:
            if all(interface.fd < 0 for interface in self._all):
                time.sleep(timeout_s)
            else:
                self._poll.poll(timeout_s * 1000)

    def _begin(self, i: int) -> None:
        """Open an interface at the start, or begin to wait for it."""
        interface = self._all[i]
        interface.index, flags = _looked_up(interface.name)
        try:
            linktype = self._open(i)
        except CaptureForbidden as error:
            raise CaptureError(f"{error}; capturing needs root or CAP_NET_RAW (the service unit gives it)") from error
        except CaptureError as error:
            interface.reason = _reason(interface, flags) or _without_name(error, interface.name)
            interface.logged = interface.reason
            self.counters["interface_lost"] += 1
            logger.warning("interface %s is not captured yet, it is waited for: %s", interface.name, interface.reason)
            return
        self._record(i, linktype)
        interface.reason = _reason(interface, flags)

    def _look(self, i: int, now: float) -> None:
        """Notice what has become of an interface, and open it if that may succeed now."""
        interface = self._all[i]
        index, flags = _looked_up(interface.name)
        if interface.fd >= 0 and index != interface.index:
            self._live.shut(i)  # it would go on with the one that had the name before
            self._lose(i, _ANOTHER if index else ABSENT)
        if interface.fd >= 0:
            self._look_at_open(interface, flags, now)
            return
        if index != interface.index:
            interface.index, interface.retry_at, interface.retry_s = index, now, RETRY_S[0]
        if missing := _reason(interface, flags):
            interface.reason, interface.retry_at = missing, now
        if missing in ("", NO_CARRIER) and now >= interface.retry_at:
            self._open_late(i, flags, now)

    def _look_at_open(self, interface: _Interface, flags: int, now: float) -> None:
        """Log when an open interface goes down or up; libpcap goes on with it when it is up again."""
        before, interface.reason = interface.reason, _reason(interface, flags)
        if (before == DOWN) == (interface.reason == DOWN):
            return
        interface.since = now
        if interface.reason == DOWN:
            logger.error("interface %s is down and not captured until it is up again", interface.name)
        else:
            logger.warning("interface %s is up and captured again", interface.name)

    def _open(self, i: int) -> int:
        """Open an interface and return its link type; CaptureError if that fails."""
        interface = self._all[i]
        linktype = self._live.open(i)
        if _looked_up(interface.name)[0] != interface.index:
            self._live.shut(i)
            raise CaptureError(f"{interface.name}: {_ANOTHER}")
        interface.fd, interface.since, interface.logged = self._live.fileno(i), time.monotonic(), ""
        interface.retry_s = RETRY_S[0]
        self._poll.register(interface.fd, select.POLLIN)
        self._note_own_macs()
        return linktype

    def _record(self, i: int, linktype: int) -> None:
        if self._recorder:
            self._recorder.attach(self._live, self._all[i].name, linktype, self._settings.snaplen)

    def _note_own_macs(self) -> None:
        self._live.own(b"".join(mac.to_bytes(8, sys.byteorder) for mac in own_macs()))

    def _open_late(self, i: int, flags: int, now: float) -> None:
        """Open an interface that was waited for; if that fails, it is tried again later."""
        interface, waited_s = self._all[i], time.monotonic() - self._all[i].since
        try:
            linktype = self._open(i)
        except CaptureError as error:
            interface.retry_at = now + interface.retry_s
            interface.retry_s = min(2 * interface.retry_s, RETRY_S[1])
            interface.reason = _without_name(error, interface.name)
            if interface.reason != interface.logged:
                logger.error("interface %s is there but cannot be captured: %s", interface.name, interface.reason)
            interface.logged = interface.reason
            return
        try:
            self._record(i, linktype)
        except CaptureError as error:
            assert self._recorder is not None
            self._recorder.end(self._live, str(error))
        interface.reason = _reason(interface, flags)
        self.counters["interface_back"] += 1
        logger.warning("interface %s is there and captured, after %.0f s", interface.name, waited_s)

    def _lose(self, i: int, reason: str) -> None:
        interface = self._all[i]
        self._poll.unregister(interface.fd)
        interface.fd, interface.reason, interface.since = -1, reason, time.monotonic()
        interface.retry_at = interface.since + interface.retry_s
        self.counters["interface_lost"] += 1
        logger.error("interface %s went away and is not captured until it is back: %s", interface.name, reason)


def _looked_up(name: str) -> tuple[int, int]:
    """Return the system's number of the interface ``name`` and its flags; 0 and 0 if there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
        request = struct.pack("16s24x", name.encode())
        try:
            index: int = struct.unpack_from("i", fcntl.ioctl(line, _SIOCGIFINDEX, request), 16)[0]
            flags: int = struct.unpack_from("H", fcntl.ioctl(line, _SIOCGIFFLAGS, request), 16)[0]
        except OSError:
            return 0, 0
    return index, flags


def _reason(interface: _Interface, flags: int) -> str:
    """Return why no frames can come from an interface that was just looked up; "" if they can."""
    if interface.index == 0:
        return ABSENT
    if not flags & _IFF_UP:
        return DOWN
    return "" if flags & _IFF_RUNNING else NO_CARRIER


def _without_name(error: CaptureError, name: str) -> str:
    return str(error).removeprefix(f"{name}: ")
