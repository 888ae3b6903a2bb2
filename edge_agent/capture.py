"""Where frames come from: capture files and live interfaces, the same `Source` for both.

A source knows its name and link layer and hands frames to the kernel without passing Python; what is in a frame is
`features`' business. Time resolution and file format (pcap, pcapng) are libpcap's. `Interfaces` keeps live ones open:
it waits for several at once, and opens again what went away.
"""

import logging
import os
import select
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from edge_agent._kernel import Capture, CaptureError

__all__ = ["CaptureError", "Interfaces", "LiveSettings", "Recorder", "Source", "open_file", "open_live"]

logger = logging.getLogger(__name__)

RETRY_S = (1.0, 30.0)
"""The first and the longest pause before an interface that went away is tried again."""

SNAPLENS = 96, 65_000
"""Fewest and most bytes of a frame that may be captured: below, ports behind extension headers are cut off."""

_HEADER = struct.Struct("=IHHiIII")  # of a pcap file, in this machine's byte order
_MAGIC_NS = 0xA1B23C4D
_NO_RIGHT = "permission", "not permitted"


class Source:
    """An open capture, closed by `close` or by leaving its ``with`` block."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.name = capture.name
        self.linktype = capture.linktype

    def close(self) -> None:
        """Let go of the file or interface; doing so twice is fine."""
        self.capture.close()

    def __enter__(self) -> "Source":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_file(path: str | os.PathLike[str], *, bpf: str | None = None) -> Source:
    """Open a pcap or pcapng file, of whose frames only those that pass the BPF filter will be seen.

    CaptureError when it is absent, empty, no capture, of an unsupported link layer, or the filter does not compile.
    """
    return Source(Capture(path, bpf))


@dataclass(frozen=True)
class LiveSettings:
    """How an interface is opened."""

    bpf: str | None = None
    snaplen: int = 256  # bytes of a frame that are captured: all headers, little payload
    buffer_bytes: int = 8 << 20  # in which the kernel keeps frames until they are taken
    promiscuous: bool = True
    inbound: bool = False  # only what the interface receives, not what this machine sends


def open_live(interface: str, settings: LiveSettings = LiveSettings()) -> Source:
    """Open a network interface; frames have the kernel's times in nanoseconds, and no call waits for one.

    CaptureError when there is none of that name, it is down, the right (CAP_NET_RAW) is missing, its link layer is not
    supported, or the filter does not compile.
    """
    s = settings
    try:
        return Source(Capture.live(interface, s.bpf, s.snaplen, s.buffer_bytes, s.promiscuous, s.inbound))
    except CaptureError as error:
        if any(mark in str(error).lower() for mark in _NO_RIGHT):
            raise CaptureError(f"{error}; capturing needs root or CAP_NET_RAW (the service unit gives it)") from error
        raise


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

    def attach(self, source: Source, snaplen: int) -> None:
        """Record ``source`` from now on; CaptureError when its link layer is not that of the file."""
        if self._linktype < 0:
            self._linktype = source.linktype
            os.write(self._file, _HEADER.pack(_MAGIC_NS, 2, 4, 0, 0, snaplen, source.linktype))
        elif source.linktype != self._linktype:
            raise CaptureError(
                f"{source.name}: link type {source.linktype} cannot go into {self.path}, which has {self._linktype}"
            )
        if not self.ended:
            source.capture.record(self._file)

    def taken(self, source: Source) -> None:
        """Write what was just taken from ``source``."""
        if self.ended:
            source.capture.record(-1)
            return
        if failed := source.capture.flush():
            self.ended = f"{self.path}: {os.strerror(failed)}"
        elif os.lseek(self._file, 0, os.SEEK_CUR) >= self._most:
            self.ended = f"{self.path}: has reached its bound of {self._most} bytes"
        if self.ended:
            source.capture.record(-1)
            logger.warning("recording ended: %s", self.ended)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


@dataclass
class _Interface:
    name: str
    source: Source | None = None
    more: bool = False  # frames may wait in libpcap, where poll does not see them
    retry_at: float = 0.0
    retry_s: float = RETRY_S[0]
    seen: tuple[int, int, int] = (0, 0, 0)  # statistics, last time


class Interfaces:
    """Live interfaces, waited for together. One that goes away is opened again when it is back.

    CaptureError when one cannot be opened at the start.
    """

    def __init__(
        self, names: Sequence[str], settings: LiveSettings = LiveSettings(), recorder: Recorder | None = None
    ) -> None:
        self._settings, self._recorder = settings, recorder
        self._all = [_Interface(name) for name in names]
        self._poll = select.poll()
        self._by_fd: dict[int, _Interface] = {}
        self.counters = {"captured": 0, "dropped": 0, "interface_dropped": 0, "interface_lost": 0, "interface_back": 0}
        try:
            for interface in self._all:
                self._open(interface)
        except CaptureError:
            self.close()
            raise

    @property
    def names(self) -> list[str]:
        """Of all interfaces."""
        return [interface.name for interface in self._all]

    @property
    def down(self) -> list[str]:
        """Names of the interfaces that are away now."""
        return [interface.name for interface in self._all if interface.source is None]

    def each(self, take: Callable[[Source], int], timeout_s: float) -> int:
        """Have ``take`` take frames from every source that has some, after waiting for one at most ``timeout_s``.

        ``take`` says how many rows it got; its CaptureError means that the interface is lost. Returns the rows of all.
        """
        total = 0
        for interface in self._ready(timeout_s):
            source = interface.source
            assert source is not None
            try:
                rows = take(source)
                if self._recorder:
                    self._recorder.taken(source)
            except CaptureError as error:
                self._lose(interface, error)
                continue
            interface.more = rows > 0
            total += rows
        return total

    def count(self) -> dict[str, int]:
        """Frames that the kernel captured, those dropped since its buffer was full or by the interface, and losses."""
        for interface in self._all:
            self._count(interface)
        return dict(self.counters)

    def close(self) -> None:
        """Let go of all."""
        for interface in self._all:
            if interface.source:
                self._count(interface)
                interface.source.close()
                interface.source = None

    def _ready(self, timeout_s: float) -> Iterator[_Interface]:
        now = time.monotonic()
        for interface in self._all:
            if interface.source is None and now >= interface.retry_at:
                self._open_again(interface, now)
        wait = 0.0 if any(interface.more for interface in self._all) else timeout_s
        if not self._by_fd:
            time.sleep(wait)
        known = {fd for fd, _ in self._poll.poll(wait * 1000)}
        yield from [found for fd, found in list(self._by_fd.items()) if found.more or fd in known]

    def _open(self, interface: _Interface) -> None:
        source = open_live(interface.name, self._settings)
        try:
            if self._recorder:
                self._recorder.attach(source, self._settings.snaplen)
        except CaptureError:
            source.close()
            raise
        interface.source, interface.more, interface.seen = source, False, (0, 0, 0)
        fd = source.capture.fileno()
        self._by_fd[fd] = interface
        self._poll.register(fd, select.POLLIN)

    def _open_again(self, interface: _Interface, now: float) -> None:
        try:
            self._open(interface)
        except CaptureError:
            interface.retry_at = now + interface.retry_s
            interface.retry_s = min(2 * interface.retry_s, RETRY_S[1])
            return
        interface.retry_s = RETRY_S[0]
        self.counters["interface_back"] += 1
        logger.warning("%s is back", interface.name)

    def _lose(self, interface: _Interface, error: CaptureError) -> None:
        source = interface.source
        assert source is not None
        self._count(interface)
        fd = source.capture.fileno()
        self._poll.unregister(fd)
        del self._by_fd[fd]
        source.close()
        interface.source, interface.more = None, False
        interface.retry_at = time.monotonic() + interface.retry_s
        self.counters["interface_lost"] += 1
        logger.error("%s; trying to open it again", error)

    def _count(self, interface: _Interface) -> None:
        if interface.source is None:
            return
        now = interface.source.capture.statistics()
        if any(now):
            for key, new, old in zip(("captured", "dropped", "interface_dropped"), now, interface.seen, strict=True):
                self.counters[key] += (new - old) % (1 << 32)  # libpcap counts in 32 bits
            interface.seen = now
