"""Frames of a capture file one by one, with their times: what is needed to take a part of a file, or to change frames.

The agent's own reader gives rows, not frames, and knows no part of a file. Damage ends a file early without an error
here, as scapy ends; the readers of rows report it.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_agent.contract.captures import Span

S = 1_000_000_000

Frame = tuple[int, int, bytes]
"""Time in ns, length on the wire, captured bytes from the link layer's header on."""

_HEADER = (0xA1B23C4D, 2, 4, 0, 0, 1 << 18)
"""Of a pcap file with times in ns."""


class FramesError(Exception):
    """A file whose frames cannot be read or written; the message names it and the reason."""


def read(path: Path, span: Span | None = None) -> Iterator[tuple[Frame, int]]:
    """Yield each frame (within the span) of a pcap or pcapng file and its link layer (libpcap's number).

    FramesError when it is neither.
    """
    from scapy.error import Scapy_Exception
    from scapy.utils import RawPcapNgReader, RawPcapReader

    first, last = (span.start_ns, span.end_ns) if span else (-(1 << 63), 1 << 63)
    try:
        with RawPcapReader(str(path)) as reader:
            blocks = isinstance(reader, RawPcapNgReader)
            unit = 1 if blocks or reader.nano else 1000
            for data, described in reader:
                meta: Any = described
                if blocks:
                    link = meta.linktype
                    t_ns = ((meta.tshigh << 32) + meta.tslow) * S // int(meta.tsresol)
                else:
                    link, t_ns = reader.linktype, meta.sec * S + meta.usec * unit
                if first <= t_ns <= last:
                    yield (t_ns, meta.wirelen, bytes(data)), link
    except (Scapy_Exception, OSError, EOFError) as error:
        raise FramesError(f"{path}: not a capture: {error}") from error


def cut(path: Path, span: Span, out: Path) -> None:
    """Write the frames of a span into a pcap file of its own; FramesError when there are none, or of several links."""
    links: set[int] = set()
    with open(out, "wb") as file:
        for (t_ns, length, data), link in read(path, span):
            if not links:
                file.write(struct.pack("<IHHiIII", *_HEADER, link))
            links.add(link)
            file.write(struct.pack("<IIII", t_ns // S, t_ns % S, len(data), length) + data)
    if len(links) != 1:
        found = f"frames of the link layers {sorted(links)}" if links else "no frames"
        raise FramesError(
            f"{path}: holds {found} from {span.start:%Y-%m-%dT%H:%M:%SZ} to {span.end:%Y-%m-%dT%H:%M:%SZ}"
        )
