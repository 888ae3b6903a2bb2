"""The monitored networks of a gateway, and the text of addresses and protocols.

Here are the private ranges (one list for everybody), addresses of the kernel's rows as text and the names that
Suricata's EVE gives to IP protocols.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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


@dataclass(frozen=True)
class Networks:
    """The monitored side; every other address is remote and never reported as a device."""

    v4: tuple[tuple[int, int], ...]  # (network, mask) as 32-bit integers
    v6: tuple[tuple[int, int], ...]  # of the upper 64 bits

    @classmethod
    def parse(cls, texts: Sequence[str]) -> "Networks":
        """Return the networks of CIDR texts. ValueError for another text or an IPv6 prefix of more than 64 bits."""
        v4, v6 = [], []
        for text in texts:
            network = ipaddress.ip_network(text)
            first, mask = int(network.network_address), int(network.netmask)
            if network.version == 4:
                v4.append((first, mask))
            elif network.prefixlen <= 64:
                v6.append((first >> 64, mask >> 64))
            else:
                raise ValueError(f"{text}: an IPv6 network of more than 64 bits cannot be monitored")
        return cls(tuple(v4), tuple(v6))

    def hold(self, address: NDArray[np.uint8], version: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return for each address (n, 16) of IP ``version`` (n,) if it is monitored, (n,).

        Rows without IP are: their addresses are of the link layer, hence local.
        """
        words = np.ascontiguousarray(address).view(">u8")[:, 0].astype(np.uint64)
        inside = version == 0
        for first, mask in self.v4:
            inside |= (version == 4) & ((words >> np.uint64(32)) & np.uint64(mask) == np.uint64(first))
        for first, mask in self.v6:
            inside |= (version == 6) & (words & np.uint64(mask) == np.uint64(first))
        return np.asarray(inside)


def address_text(address: NDArray[Any], version: Any) -> str:
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
