"""Where frames come from: capture files and live interfaces, the same `Source` for both.

A source hands frames to the kernel without passing Python; what is in a frame is `features`' business. Time resolution
and file format (pcap, pcapng) are libpcap's. `Interfaces` are one source: the kernel reads them in the order of time,
each frame once; here they are waited for, and opened again when they went away.
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
"""How long to wait for older frames of other interfaces before the youngest are asked for again."""

FEW, GATHER_S = 2_048, 0.03
"""So few rows at a time cost more each than many do: then wait so long for more."""

RETRY_S = (1.0, 30.0)
"""The first and the longest pause before an interface that went away is tried again."""

_NO_RIGHT = "permission", "not permitted"


class Source:
    """What frames are taken from, closed by `close` or by leaving its ``with`` block.

    ``names`` are those of its live interfaces, in the order of their numbers; one, "", for a file.
    """

    def __init__(self, capture: Capture | Live, names: Sequence[str] = ("",)) -> None:
        self.capture, self.names = capture, tuple(names)

    def close(self) -> None:
        """Let go of files and interfaces; doing so twice is fine."""
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
    """Open a pcap or pcapng file, of whose frames only those that pass the BPF filter will be seen.

    CaptureError when it is absent, empty, no capture, of an unsupported link layer, or the filter does not compile.
    """
    return _File(Capture(path, bpf))


class Recorder:
    """A pcap file of everything that is taken from live sources, in the order in which it is taken.

    It ends at ``most_bytes`` or when it cannot be written, either told once in ``ended``; capturing goes on.
    CaptureError when the file cannot be made.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.path, self.ended = path, ""
        self._most, self._linktype = most_bytes, -1
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CaptureError(f"{path}: {error.strerror}") from error

    def attach(self, live: Live, name: str, linktype: int, snaplen: int) -> None:
        """Record what comes, from now on; CaptureError when the link layer of interface ``name`` is not the file's."""
        if self._linktype < 0:
            self._linktype = linktype
            os.write(self._file, pcapfile.file_header(snaplen, linktype))
            live.record(self._file)
        elif linktype != self._linktype:
            raise CaptureError(f"{name}: link type {linktype} cannot go into {self.path}, which has {self._linktype}")

    def taken(self, live: Live) -> None:
        """Write what was just taken."""
        if self.ended:
            return
        if failed := live.flush():
            self.ended = f"{self.path}: {os.strerror(failed)}"
        elif os.lseek(self._file, 0, os.SEEK_CUR) >= self._most:
            self.ended = f"{self.path}: has reached its bound of {self._most} bytes"
        if self.ended:
            live.record(-1)
            logger.warning("recording ended: %s", self.ended)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def own_macs() -> set[int]:
    """MACs of this machine's interfaces."""
    found = set()
    for path in Path("/sys/class/net").glob("*/address"):
        try:
            found.add(parse_mac(path.read_text().strip()))
        except (OSError, ValueError):  # gone just now, or no Ethernet
            continue
    return found - {0}


@dataclass
class _Interface:
    name: str
    fd: int = -1  # -1: away
    retry_at: float = 0.0
    retry_s: float = RETRY_S[0]


class Interfaces(Source):
    """Live interfaces as one source: frames in the order of the system's times, in nanoseconds; no call waits for one.

    What this machine sends on is left out (``settings.once``) when it was captured on its way in, and so is what more
    than one interface shows, such as a bridge and its ports. One that goes away is opened again when it is back.
    CaptureError when one cannot be opened at the start: there is none of that name, it is down, the right (CAP_NET_RAW)
    is missing, its link layer is not supported, or the filter does not compile.
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
        self._latest = 0  # rows of the last time; if any, frames may wait in libpcap, where poll does not see them
        self.counters = {"interface_lost": 0, "interface_back": 0}
        try:
            for i in range(len(self._all)):
                self._open(i)
        except CaptureError:
            self.close()
            raise

    @property
    def down(self) -> list[str]:
        """Names of the interfaces that are away now."""
        return [interface.name for interface in self._all if interface.fd < 0]

    def each(self, take: Callable[[Source], int], timeout_s: float) -> int:
        """Have ``take`` take frames, after waiting for one at most ``timeout_s``; returns how many rows it got."""
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
        """Frames that came (``captured``) and those of them that were dropped since the buffer was full, those that the
        interface dropped, those left out as ``seen_again`` (``seen_forgotten``: too many to know), and losses."""
        self._own()
        keys = ("captured", "dropped", "interface_dropped", "seen_again", "seen_forgotten")
        return dict(zip(keys, self._live.statistics(), strict=True)) | self.counters

    def close(self) -> None:
        """Let go of all."""
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
        self._own()

    def _own(self) -> None:
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
        logger.warning("%s is back", interface.name)

    def _lose(self, interface: _Interface, reason: str) -> None:
        self._poll.unregister(interface.fd)
        interface.fd = -1
        interface.retry_at = time.monotonic() + interface.retry_s
        self.counters["interface_lost"] += 1
        logger.error("%s: %s; trying to open it again", interface.name, reason)
