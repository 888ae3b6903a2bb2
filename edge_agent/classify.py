"""What an episode is called: the evidence of all its flagged rows, from attack type over family to `unknown`.

A classifier always prefers one of the classes it knows, also for what it has never seen. So a name must also fit what
the packets look like: protocol, flags, sizes and how many open something new, averaged over the episode and held
against what each class looked like where it was learnt.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent import features
from edge_agent.contract.bundle import BENIGN, Signature

UNKNOWN = "unknown"

_SYN, _ACK, _LARGEST = 0x02, 0x10, 1500.0

FLOORS = np.array([0.2, 0.2, 0.2, 0.2, 0.2, 0.04, 0.04, 0.3, 0.25])
"""Least tolerance of each figure: a device's own packets between those of the attack shift shares, not sizes."""


def looks(meta: NDArray[Any]) -> NDArray[np.float64]:
    """What packets look like, (n, figures of `contract.bundle.SIGNATURE`), each 0 to 1.

    Means over rows are shares and mean sizes.
    """
    tcp = meta["proto"] == 6
    flags = meta["tcp_flags"]
    length = np.minimum(meta["length"] / _LARGEST, 1.0)
    found = (
        meta["proto"] == 17,
        tcp,
        tcp & (flags & (_SYN | _ACK) == _SYN),
        tcp & (flags & (_SYN | _ACK) == _ACK),
        tcp & (flags & 0x05 != 0),  # FIN or RST
        length,
        length**2,
        meta["flags"] & features.NEW_PEER != 0,
        meta["flags"] & features.NEW_SOCKET != 0,
    )
    return np.stack(found, axis=1).astype(np.float64)


def learn(windows: NDArray[np.float64]) -> Signature:
    """What a class looks like, from means of `looks` over windows (m, figures) of its episodes."""
    middle = np.median(windows, axis=0)
    spread = np.maximum(1.5 * np.quantile(np.abs(windows - middle), 0.975, axis=0), FLOORS)
    return Signature(tuple(map(float, middle)), tuple(map(float, spread)))


def fits(seen: NDArray[np.float64], signature: Signature) -> bool:
    """Whether an episode's mean looks (figures,) are within a class's tolerance in every figure."""
    return bool((np.abs(seen - np.array(signature.mean)) <= np.array(signature.spread)).all())


def family(name: str) -> str:
    """mirai.scan -> mirai; "" for a name of no family."""
    head, dot, _ = name.partition(".")
    return head if dot else ""


def name(
    classes: Sequence[str],
    probabilities: NDArray[np.float64],
    seen: NDArray[np.float64],
    signatures: Mapping[str, Signature],
    reject: float,
) -> tuple[str, float | None]:
    """Class of an episode and its probability, None for `unknown`.

    ``probabilities`` (classes,) are the mean over flagged rows, ``seen`` the mean of their `looks`. The most probable
    type, if it reaches ``reject`` and looks right; else its family, if the family reaches it and one of its types looks
    right; else `unknown`. A class without a signature looks right always: it was learnt from rows without packets.
    """
    best = int(np.argmax(probabilities))
    if classes[best] == BENIGN:
        return UNKNOWN, None
    right = {c for c in classes if c not in signatures or fits(seen, signatures[c])}
    if probabilities[best] >= reject and classes[best] in right:
        return classes[best], float(probabilities[best])
    kin = family(classes[best]) or classes[best]
    members = [i for i, c in enumerate(classes) if c != BENIGN and (family(c) or c) == kin]
    share = float(probabilities[members].sum())
    if kin != classes[best] and share >= reject and any(classes[i] in right for i in members):
        return kin, share
    return UNKNOWN, None
