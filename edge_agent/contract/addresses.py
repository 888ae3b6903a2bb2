"""Addresses and protocols as text, and the private ranges: one list for everybody.

Standard library only, so that a command which only writes or reads messages loads nothing else.
"""

import ipaddress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

PRIVATE_NETWORKS = (
    *("0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
    *("::/64", "fc00::/7", "fe80::/10"),
)
"""The default monitored side: the ranges that RFC 1918, 3927, 4193, 4291 and 6598 reserve for local use.

These are not the networks of `ipaddress`'s ``is_private``, which include the documentation networks and others that are
not used inside.
"""

_PRIVATE = tuple(map(ipaddress.ip_network, PRIVATE_NETWORKS))


def is_private(text: str) -> bool:
    """Return True if a text is an address of `PRIVATE_NETWORKS`.

    >>> is_private("192.168.1.20"), is_private("198.51.100.7"), is_private("")
    (True, False, False)
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return any(address in network for network in _PRIVATE)


def address_text(address: "NDArray[Any]", version: Any) -> str:
    """Return an address of the kernel's rows, 16 bytes of IP ``version`` 4 or 6, as text; "" without IP."""
    if version == 4:
        return str(ipaddress.IPv4Address(address[:4].tobytes()))
    if version == 6:
        return str(ipaddress.IPv6Address(address.tobytes()))
    return ""


_PROTOCOLS = {1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 58: "IPV6-ICMP"}


def protocol_name(number: int) -> str:
    """Return EVE's name of an IP protocol, or its number if EVE has no name for it.

    >>> protocol_name(6), protocol_name(47)
    ('TCP', '47')
    """
    return _PROTOCOLS.get(number, f"{number}")
