"""What an episode is called: the evidence of all its flagged rows, from attack type over family to `unknown`.

A classifier always prefers one of the classes it knows, also for what it has never seen. So a name must also fit what
the packets look like: protocol, flags, sizes, how many open something new, and what repeats from one to the next (a
scan has one source port or ever another, a flood one target port or all), averaged over the episode and held against
what each class looked like where it was learnt. Few packets fit more loosely than many.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.capture import features
from edge_agent.contract.bundle import BENIGN, PROFILE_FIELDS, PacketProfile

UNKNOWN = "unknown"

_SYN, _ACK = 0x02, 0x10
_SHORTEST, _LONGEST = 60.0, 1514.0
_REPEATS = ("src", "dst", "sport", "dport", "length")

FLOOR, FLOOR_REPEATS = 0.03, 0.1
"""Least spread (1 σ) of a figure over episodes: a device's own packets between those of the attack shift every share,
and each breaks what repeats twice."""

UNSEEN = 0.1
"""Spread over episodes where no class was learnt from two."""

PRIOR = 2.0
"""Episodes' worth that the spread of all classes weighs in that of one (Smyth 2004, moderated variance)."""

KNOWN = 0.95
"""Share of known episodes of another device that a class's tolerance must let pass."""

LEAST = 2.0
"""Fewest σ of a tolerance."""

BLOCK = 15
"""Rows whose mean says how noisy means of few rows are; about a first vote."""


def packet_profile(meta: NDArray[Any], before: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """What packets look like, (n, figures of `contract.bundle.SIGNATURE`), each 0 to 1.

    ``before`` is the packet (1,) before the first one, None when there was none. Means over rows are shares and mean
    sizes.
    """
    tcp = meta["proto"] == 6
    flags = meta["tcp_flags"]
    length = np.clip(np.log(np.maximum(meta["length"], 1) / _SHORTEST) / np.log(_LONGEST / _SHORTEST), 0.0, 1.0)
    earlier = np.concatenate([meta[:1] if before is None else before, meta[:-1]])[: len(meta)]
    found = [
        meta["proto"] == 17,
        tcp,
        tcp & (flags & (_SYN | _ACK) == _SYN),
        tcp & (flags & (_SYN | _ACK) == _ACK),
        tcp & (flags & 0x05 != 0),  # FIN or RST
        length,
        length**2,
        meta["flags"] & features.NEW_PEER != 0,
        meta["flags"] & features.NEW_SOCKET != 0,
    ]
    for name in _REPEATS:
        same = meta[name] == earlier[name]
        found.append(same.all(axis=1) if same.ndim > 1 else same)
    return np.stack(found, axis=1).astype(np.float64)


def learn(episodes: Sequence[tuple[str, str, NDArray[np.float64]]]) -> dict[str, PacketProfile]:
    """What classes look like, from (class, device, `packet_profile` (n, figures) in time order) of each attack.

    A figure's tolerance has three parts: how the class's episodes differ (moderated by how those of all classes do),
    how means of few rows scatter, and a floor. How many σ it is wide is fitted so that `KNOWN` of the windows of
    devices left out pass; nothing but known classes has a say.
    """
    groups: dict[str, list[tuple[str, NDArray[np.float64]]]] = {}
    for name, device, seen in episodes:
        groups.setdefault(name, []).append((device, seen))
    means = {name: np.stack([seen.mean(axis=0) for _, seen in own]) for name, own in groups.items()}
    noise = {name: np.mean([_noise(seen) for _, seen in own], axis=0) for name, own in groups.items()}
    squares = {name: ((own - own.mean(axis=0)) ** 2).sum(axis=0) for name, own in means.items()}
    free = sum(len(own) - 1 for own in means.values())
    pooled = np.sum(list(squares.values()), axis=0) / free if free else np.full(len(PROFILE_FIELDS), UNSEEN**2)
    floor = np.array([FLOOR_REPEATS if name.startswith("same_") else FLOOR for name in PROFILE_FIELDS])
    between = {
        name: (PRIOR * pooled + squares[name]) / (PRIOR + len(own) - 1) * (1 + 1 / len(own)) + floor**2
        for name, own in means.items()
    }
    off = []
    for name, own in groups.items():
        for device in {device for device, _ in own}:
            others = np.array([mean for mean, (other, _) in zip(means[name], own, strict=True) if other != device])
            if len(others):
                for seen in (seen for other, seen in own if other == device):
                    off += [
                        float(np.sqrt((mean - others.mean(axis=0)) ** 2 / (between[name] + noise[name] / n)).max())
                        for n, mean in _windows(seen)
                    ]
    wide = max(float(np.quantile(off, KNOWN)), LEAST) if off else 2 * LEAST
    return {
        name: PacketProfile(
            tuple(map(float, own.mean(axis=0))),
            tuple(map(float, wide * np.sqrt(between[name]))),
            tuple(map(float, wide**2 * noise[name])),
        )
        for name, own in means.items()
    }


def _noise(seen: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variance of a mean of rows times their number, from means of neighbours: bursts of like rows count as few."""
    blocks = seen[: len(seen) // BLOCK * BLOCK].reshape(-1, BLOCK, seen.shape[1]).mean(axis=1)
    return np.asarray(blocks.var(axis=0) * BLOCK)


def _windows(seen: NDArray[np.float64]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """(rows, mean) of windows of 15, 30, 60 ... rows all along an attack, and of the whole."""
    sums = np.concatenate([np.zeros((1, seen.shape[1])), np.cumsum(seen, axis=0)])
    n = BLOCK
    while n < len(seen):
        for start in np.unique(np.linspace(0, len(seen) - n, 6).astype(int)):
            yield n, (sums[start + n] - sums[start]) / n
        n *= 2
    yield len(seen), sums[-1] / len(seen)


def fits(seen: NDArray[np.float64], rows: float, signature: PacketProfile) -> bool:
    """Whether the mean looks (figures,) of an episode's ``rows`` are within a class's tolerance in every figure."""
    tolerance = np.array(signature.spread) ** 2 + np.array(signature.noise) / max(rows, 1.0)
    return bool(((seen - np.array(signature.mean)) ** 2 <= tolerance).all())


def family(name: str) -> str:
    """mirai.scan -> mirai; "" for a name of no family."""
    head, dot, _ = name.partition(".")
    return head if dot else ""


def name(
    classes: Sequence[str],
    probabilities: NDArray[np.float64],
    seen: NDArray[np.float64],
    rows: float,
    signatures: Mapping[str, PacketProfile],
    reject: float,
) -> tuple[str, float | None]:
    """Class of an episode and its probability, None for `unknown`.

    ``probabilities`` (classes,) are the mean over flagged ``rows``, ``seen`` that of their `packet_profile`. The most
    probable type, if it reaches ``reject`` and looks right; else its family, if the family reaches it and one of its
    types looks right; else `unknown`. A class without a packet profile always looks right: it was learnt from rows
    without packets.
    """
    best = int(np.argmax(probabilities))
    if classes[best] == BENIGN:
        return UNKNOWN, None
    right = {c for c in classes if c not in signatures or fits(seen, rows, signatures[c])}
    if probabilities[best] >= reject and classes[best] in right:
        return classes[best], float(probabilities[best])
    kin = family(classes[best]) or classes[best]
    members = [i for i, c in enumerate(classes) if c != BENIGN and (family(c) or c) == kin]
    share = float(probabilities[members].sum())
    if kin != classes[best] and share >= reject and any(classes[i] in right for i in members):
        return kin, share
    return UNKNOWN, None
