"""Where frames come from: capture files today, live interfaces through the same `Source` later.

A source knows its name and link layer and hands frames to the kernel without passing Python; what is in a frame is
`features`' business. Time resolution and file format (pcap, pcapng) are libpcap's.
"""

import os
from types import TracebackType

from edge_agent._kernel import Capture, CaptureError

__all__ = ["CaptureError", "Source", "open_file"]


class Source:
    """An open capture, closed by `close` or by leaving its ``with`` block."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.name = capture.name
        self.linktype = capture.linktype

    def close(self) -> None:
        """Let go of the file; doing so twice is fine."""
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
