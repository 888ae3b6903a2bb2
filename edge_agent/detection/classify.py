"""The name of an episode from the evidence of all its flagged rows: attack type, else family, else `unknown`.

A classifier always prefers one of the classes it knows, even for traffic that it has never seen. So a name must also
fit the profile of the packets: protocol, flags, sizes, how many open something new, and what repeats from one packet to
the next (a scan has one source port or a new one each time, a flood one target port or all of them). The profile is
averaged over the episode and compared with that of each class where it was learnt. Few packets fit more loosely than
many.
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
"""Least spread (1 σ) of a figure over episodes. A device's ordinary packets among those of the attack shift every
share, and each of them interrupts a repetition twice."""

UNSEEN = 0.1
"""Spread over episodes if no class was learnt from more than one."""

PRIOR = 2.0
"""Weight, in episodes, of the spread of all classes in that of one class (Smyth 2004, moderated variance)."""

KNOWN = 0.95
"""Share of a class's episodes of a device left out that its tolerance must accept."""

LEAST = 2.0
"""Smallest width of a tolerance in σ."""

BLOCK = 15
"""Rows of the blocks whose means show how noisy the mean of few rows is; about as many as a first vote has."""


def packet_profile(meta: NDArray[Any], before: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """Return the profile of each packet, (n, `PROFILE_FIELDS`), figures from 0 to 1.

    ``before`` is the packet (1,) before the first one, None if there was none. Means over rows are shares and mean
    sizes.
    """
    tcp = meta["proto"] == 6
    flags = meta["tcp_flags"]
    length = np.clip(np.log(np.maximum(meta["length"], 1) / _SHORTEST) / np.log(_LONGEST / _SHORTEST), 0.0, 1.0)
    earlier = np.concatenate([meta[:1] if before is None else before, meta[:-1]])[: len(meta)]
    figures = [
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
        figures.append(same.all(axis=1) if same.ndim > 1 else same)
    return np.stack(figures, axis=1).astype(np.float64)


def learn(episodes: Sequence[tuple[str, str, NDArray[np.float64]]]) -> dict[str, PacketProfile]:
    """Return the profile of each class, from (class, device, `packet_profile` (n, figures) in time order) of attacks.

    A figure's tolerance has three parts: how much the class's episodes differ (moderated by how much those of all
    classes do), how much means of few rows scatter, and a floor. Its width in σ is fitted so that `KNOWN` of the
    windows of devices left out are accepted; only known classes are used for it.
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
    """Return the variance of a mean of rows times their number, from means of neighbours: similar rows count as few."""
    blocks = seen[: len(seen) // BLOCK * BLOCK].reshape(-1, BLOCK, seen.shape[1]).mean(axis=1)
    return np.asarray(blocks.var(axis=0) * BLOCK)


def _windows(seen: NDArray[np.float64]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield (rows, mean) of windows of 15, 30, 60 ... rows all along an attack, and of the whole attack."""
    sums = np.concatenate([np.zeros((1, seen.shape[1])), np.cumsum(seen, axis=0)])
    n = BLOCK
    while n < len(seen):
        for start in np.unique(np.linspace(0, len(seen) - n, 6).astype(int)):
            yield n, (sums[start + n] - sums[start]) / n
        n *= 2
    yield len(seen), sums[-1] / len(seen)


def fits(seen: NDArray[np.float64], rows: float, profile: PacketProfile) -> bool:
    """Return True if the mean profile (figures,) of an episode's ``rows`` is within a class's tolerance everywhere."""
    tolerance = np.array(profile.spread) ** 2 + np.array(profile.noise) / max(rows, 1.0)
    return bool(((seen - np.array(profile.mean)) ** 2 <= tolerance).all())


def family(name: str) -> str:
    """Return the family of a class, "" if it has none: mirai.scan -> mirai."""
    head, dot, _ = name.partition(".")
    return head if dot else ""


def name(
    classes: Sequence[str],
    probabilities: NDArray[np.float64],
    seen: NDArray[np.float64],
    rows: float,
    profiles: Mapping[str, PacketProfile],
    reject: float,
) -> tuple[str, float | None]:
    """Return the class of an episode and its probability, None for `unknown`.

    ``probabilities`` (classes,) are the mean over flagged ``rows``, ``seen`` is that of their `packet_profile`. The
    name is the most probable type if it reaches ``reject`` and its profile fits; else its family, if this reaches
    ``reject`` and the profile of one of its types fits; else `unknown`. A class without a packet profile always fits:
    it was learnt from rows without packets.
    """
    best = int(np.argmax(probabilities))
    if classes[best] == BENIGN:
        return UNKNOWN, None
    fitting = {c for c in classes if c not in profiles or fits(seen, rows, profiles[c])}
    if probabilities[best] >= reject and classes[best] in fitting:
        return classes[best], float(probabilities[best])
    kin = family(classes[best]) or classes[best]
    members = [i for i, c in enumerate(classes) if c != BENIGN and (family(c) or c) == kin]
    share = float(probabilities[members].sum())
    if kin != classes[best] and share >= reject and any(classes[i] in fitting for i in members):
        return kin, share
    return UNKNOWN, None
