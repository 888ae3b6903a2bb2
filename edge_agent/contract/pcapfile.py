"""The header of a classic pcap file as this product writes it.

It has this machine's byte order, which every reader of pcap files recognises by the magic number. Reading captures is
libpcap's work (`kernel/capture.c`).
"""

import struct

MAGIC_NS, MAGIC_US = 0xA1B23C4D, 0xA1B2C3D4
"""The first word of a file with times in nanoseconds, and of one with times in microseconds."""

ETHERNET = 1
"""Link type of Ethernet (LINKTYPE_ETHERNET)."""

HEADER = struct.Struct("=IHHiIII")
"""Magic number, version 2.4, time zone and accuracy (both 0), snapshot length, link type."""


def file_header(snaplen: int, link_type: int = ETHERNET, magic: int = MAGIC_NS) -> bytes:
    """Return the 24 bytes that open a file whose frames have at most ``snaplen`` captured bytes.

    >>> len(file_header(65535)), file_header(96) == file_header(96, ETHERNET, MAGIC_NS)
    (24, True)
    """
    return HEADER.pack(magic, 2, 4, 0, 0, snaplen, link_type)
