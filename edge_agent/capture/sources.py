"""Sources of frames: capture files and live interfaces, with the same `Source` for both.

A source hands frames to the kernel without passing Python. What is in a frame is the knowledge of `features`; time
resolution and file format (pcap, pcapng) are libpcap's. Several interfaces are one source (`Interfaces`): the kernel
reads them in the order of time, each frame once; this module waits for frames and opens an interface again after it
went away.
"""

import logging
import os
import select
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from edge_agent._kernel import Capture, CaptureError, Live
from edge_agent.capture.live_settings import LiveSettings
from edge_agent.contract import pcapfile
from edge_agent.contract.captures import parse_mac

__all__ = ["CaptureError", "Interfaces", "LiveSettings", "Recorder", "Source", "open_file", "own_macs"]

logger = logging.getLogger(__name__)

HELD_S = 0.02
"""Seconds of waiting for older frames of other interfaces before the youngest are asked for again."""

FEW, GATHER_S = 2_048, 0.03
"""After fewer rows than this, wait this many seconds for more: a row costs more in a small batch than in a large
one."""

RETRY_S = (1.0, 30.0)
"""The first and the longest pause before an interface that went away is tried again."""

_NO_RIGHT = "permission", "not permitted"


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

    The recording ends at ``most_bytes`` or when the file cannot be written; ``ended`` then has the reason, which is
    also logged. Capturing goes on. CaptureError if the file cannot be made.
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
        if self._linktype < 0:
            self._linktype = linktype
            os.write(self._file, pcapfile.file_header(snaplen, linktype))
            live.record(self._file)
        elif linktype != self._linktype:
            raise CaptureError(f"{name}: link type {linktype} cannot go into {self.path}, which has {self._linktype}")

    def taken(self, live: Live) -> None:
        """Write the frames that were just taken."""
        if self.ended:
            return
        if failed := live.flush():
            self.ended = f"{self.path}: {os.strerror(failed)}"
        elif os.lseek(self._file, 0, os.SEEK_CUR) >= self._most:
            self.ended = f"{self.path} has reached its bound of {self._most} bytes"
        if self.ended:
            live.record(-1)
            logger.warning("the recording has ended, capturing goes on: %s", self.ended)

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


@dataclass
class _Interface:
    name: str
    fd: int = -1  # -1: not open
    retry_at: float = 0.0
    retry_s: float = RETRY_S[0]


class Interfaces(Source):
    """Live interfaces as one source of frames, in the order of the system's times, in nanoseconds.

    With ``settings.once`` a frame that this machine forwards is taken only on its way in, and one that several
    interfaces show, such as a bridge and its ports, only once. An interface that goes away is opened again when it is
    back. CaptureError if an interface cannot be opened at the start: no interface has that name, it is down, the right
    (CAP_NET_RAW) is missing, its link layer is not supported, or the filter does not compile.
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
        self._latest = 0  # rows of the last call; if there were any, frames may wait in libpcap, unseen by poll
        self.counters = {"interface_lost": 0, "interface_back": 0}
        try:
            for i in range(len(self._all)):
                self._open(i)
        except CaptureError:
            self.close()
            raise

    @property
    def down(self) -> list[str]:
        """Names of the interfaces that are not open now."""
        return [interface.name for interface in self._all if interface.fd < 0]

    def each(self, take: Callable[[Source], int], timeout_s: float) -> int:
        """Wait for a frame at most ``timeout_s``, then have ``take`` take frames; return how many rows it got."""
        self._wait(timeout_s)
        rows = take(self)
        self._latest = rows
        if self._recorder:
            self._recorder.taken(self._live)
        for i, interface in enumerate(self._all):
            if interface.fd >= 0 and (reason := self._live.lost(i)) is not None:
                self._lose(interface, reason)
        return rows

    def count(self) -> dict[str, int]:
        """Return counters of frames and of interfaces that went away.

        ``captured`` are all frames, ``dropped`` those lost to a full buffer, ``interface_dropped`` those lost by an
        interface, ``seen_again`` those left out as seen before. ``seen_forgotten`` counts frames dropped from the table
        of frames seen while they were still needed for that.
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
        for i, interface in enumerate(self._all):
            if interface.fd < 0 and now >= interface.retry_at:
                self._open_again(i, now)
        if self._live.held():
            time.sleep(min(timeout_s, HELD_S))
        elif 0 < self._latest < FEW:
            time.sleep(min(timeout_s, GATHER_S))
        elif not self._latest:
            if len(self.down) == len(self._all):
                time.sleep(timeout_s)
            else:
                self._poll.poll(timeout_s * 1000)

    def _open(self, i: int) -> None:
        name = self._all[i].name
        try:
            linktype = self._live.open(i)
        except CaptureError as error:
            if any(mark in str(error).lower() for mark in _NO_RIGHT):
                remedy = "capturing needs root or CAP_NET_RAW (the service unit gives it)"
                raise CaptureError(f"{error}; {remedy}") from error
            raise
        try:
            if self._recorder:
                self._recorder.attach(self._live, name, linktype, self._settings.snaplen)
        except CaptureError:
            self._live.shut(i)
            raise
        self._all[i].fd = fd = self._live.fileno(i)
        self._poll.register(fd, select.POLLIN)
        self._note_own_macs()

    def _note_own_macs(self) -> None:
        self._live.own(b"".join(mac.to_bytes(8, sys.byteorder) for mac in own_macs()))

    def _open_again(self, i: int, now: float) -> None:
        interface = self._all[i]
        try:
            self._open(i)
        except CaptureError:
            interface.retry_at = now + interface.retry_s
            interface.retry_s = min(2 * interface.retry_s, RETRY_S[1])
            return
        interface.retry_s = RETRY_S[0]
        self.counters["interface_back"] += 1
        logger.warning("interface %s is back and captured again", interface.name)

    def _lose(self, interface: _Interface, reason: str) -> None:
        self._poll.unregister(interface.fd)
        interface.fd = -1
        interface.retry_at = time.monotonic() + interface.retry_s
        self.counters["interface_lost"] += 1
        logger.error("interface %s went away and is not captured until it is back: %s", interface.name, reason)
