"""Facts that the operating system knows about this machine and this process. Nothing here changes anything."""

import ctypes
import fcntl
import os
import resource
import socket
import struct
from pathlib import Path

_SIOCETHTOOL = 0x8946
_GET_PERMANENT_ADDRESS = 0x20  # ETHTOOL_GPERMADDR
_TIME_ERROR = 5  # of adjtimex(2): the kernel's clock is not synchronised
_SIOCGIFADDR = 0x8915


def synchronised() -> bool | None:
    """True if the kernel's clock is synchronised, as timesyncd, chrony or ntpd report by adjtimex(2); None: unknown."""
    nothing_to_set = ctypes.create_string_buffer(512)
    try:
        answer: int = ctypes.CDLL(None, use_errno=True).adjtimex(nothing_to_set)
    except (OSError, AttributeError):
        return None
    return None if answer < 0 else answer != _TIME_ERROR


def permanent_mac(name: str) -> int:
    """Return the MAC that an interface was made with, whatever it uses now; 0 if it has none, or a random one."""
    answer = ctypes.create_string_buffer(struct.pack("II32s", _GET_PERMANENT_ADDRESS, 32, b""), 40)
    request = struct.pack("16sP", name.encode(), ctypes.addressof(answer))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
            fcntl.ioctl(line, _SIOCETHTOOL, request.ljust(40, b"\0"))
    except OSError:
        return 0
    size = struct.unpack_from("I", answer, 4)[0]
    return int.from_bytes(answer.raw[8:14]) if size == 6 else 0  # 6: Ethernet


def own_addresses() -> frozenset[str]:
    """Return the MACs and IP addresses of this machine's interfaces, spelt as suppressions spell them."""
    addresses = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        for _, name in socket.if_nameindex():
            try:
                addresses.add(Path(f"/sys/class/net/{name}/address").read_text().strip().lower())
                request = struct.pack("256s", name.encode()[:15])
                addresses.add(socket.inet_ntoa(fcntl.ioctl(line, _SIOCGIFADDR, request)[20:24]))
            except OSError:  # the interface has no link layer, or no address
                continue
    try:
        for text in Path("/proc/net/if_inet6").read_text().splitlines():
            addresses.add(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(text.split()[0])))
    except OSError:
        pass
    return frozenset(addresses)


def cpu_s() -> float:
    """Return the processor seconds that this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident_mb() -> float:
    """Return the resident memory of this process in megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
