"""The monitored side of a gateway: which addresses are inside, for whole batches of the kernel's rows."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
        """Return, for each address (n, 16) of IP ``version`` (n,), if it is monitored, (n,).

        Rows without IP count as monitored: their addresses are of the link layer, hence local.
        """
        words = np.ascontiguousarray(address).view(">u8")[:, 0].astype(np.uint64)
        inside = version == 0
        for first, mask in self.v4:
            inside |= (version == 4) & ((words >> np.uint64(32)) & np.uint64(mask) == np.uint64(first))
        for first, mask in self.v6:
            inside |= (version == 6) & (words & np.uint64(mask) == np.uint64(first))
        return np.asarray(inside)
