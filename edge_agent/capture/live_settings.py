"""Settings of live capture, apart from `sources`, so that reading a configuration loads no native kernel."""

from dataclasses import dataclass

SNAPLENS = 96, 65_000
"""Fewest and most bytes of a frame that may be captured. With fewer, ports behind extension headers are cut off."""


@dataclass(frozen=True)
class LiveSettings:
    """The way in which an interface is opened."""

    bpf: str | None = None
    snaplen: int = 256  # bytes of a frame that are captured: all headers, little payload
    buffer_bytes: int = 8 << 20  # the operating system holds frames in this many until they are taken
    promiscuous: bool = True
    inbound: bool = False  # only what the interface receives, not what this machine sends
    once: bool = True  # a frame that is seen again on its way through this machine is left out
