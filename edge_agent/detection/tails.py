"""The upper tail of benign votes: how high devices come, and which limit they exceed as rarely as is wanted.

Votes come from runs: rows of one device that followed each other. Only benign train and optimise rows come in here.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.decision import Tail

PEAK_S = 600.0
"""Seconds of traffic that give one peak: votes closer together are one burst and would be one alert."""

PEAK_ROWS = 1000
"""Rows that give one peak where rows have no times (published rows)."""

TAIL_SHARE, MOST_PEAKS = 0.1, 350
"""The tail is this share of the peaks, at most this number: many peaks show more of it. By rotation over days and
leaving out each of ten real devices a tail of 118 of their 3,500 peaks gave 20 false alerts, one of 350 none; of 18,863
peaks of forty generated homes a tenth is no tail yet, and its level six times the highest of them."""

MIN_PEAKS = 15
"""Fewest peaks that are a tail."""

FEW = 2.0
"""The bound of too few peaks, as a multiple of the highest of them."""

RESAMPLES = 400

PROVABLE = 1.0
"""Fewest exceedances, in all days seen, that a limit is made for. Beyond the days seen a tail is a guess: in rotation
over days of ten real devices, one for the budget of a home-month came to a hundred times the highest vote."""

LEAST_DEVICES = 5
"""Fewest devices of which one can be left out."""

CANDIDATES = 3
"""Devices, those that have most of the tail, of which the loudest one is chosen."""

_DAY_S = 86_400.0
_CELLS = 1 << 22  # resampled peaks held at a time


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """The highest votes of each ten minutes with traffic, (n,), and the device of each as a number, (n,).

    ``days`` are the days that each device was seen for, silence included, by its number.
    """

    highs: NDArray[np.float64]
    device: NDArray[np.int64]
    days: NDArray[np.float64]

    def without(self, device: int) -> "Peaks":
        """Return the peaks of all other devices."""
        other = self.device != device
        days = self.days.copy()
        days[device] = 0.0
        return Peaks(highs=self.highs[other], device=self.device[other], days=days)


def peaks(
    votes: NDArray[Any], t_ns: NDArray[np.int64], device: NDArray[np.int64], runs: NDArray[np.int64], count: int
) -> Peaks:
    """Return the peaks of rows (m,) in the order of time within each run: votes, times, devices and runs of each.

    ``device`` are numbers below ``count``. Rows that were thinned out are between two runs: their time is not counted.
    """
    highs, whose, days = [], [], np.zeros(count)
    for rows in each(runs):
        times, mine = t_ns[rows], int(device[rows[0]])
        timed = times[-1] > times[0] or times[0] > 0
        interval = times // int(PEAK_S * 1e9) if timed else np.arange(len(rows)) // PEAK_ROWS
        starts = np.flatnonzero(np.diff(interval, prepend=interval[0] - 1))
        highs.append(np.maximum.reduceat(np.asarray(votes[rows], dtype=np.float64), starts))
        whose.append(np.stack([np.full(len(starts), mine), interval[starts] if timed else -1 - np.arange(len(starts))]))
        days[mine] += (float(times[-1] - times[0]) / 1e9 if timed else len(starts) * PEAK_S) / _DAY_S
    if not highs:
        return Peaks(highs=np.zeros(0), device=np.zeros(0, np.int64), days=days)
    high, key = np.concatenate(highs), np.concatenate(whose, axis=1)
    order = np.lexsort((key[1], key[0]))  # several runs may share ten minutes; those without times never do
    high, key = high[order], key[:, order]
    new = np.any(np.diff(key, axis=1, prepend=-1) != 0, axis=0) | (key[1] < 0)
    starts = np.flatnonzero(new)
    return Peaks(highs=np.maximum.reduceat(high, starts), device=key[0, starts], days=days)


def each(groups: NDArray[Any]) -> list[NDArray[np.intp]]:
    """Return the row numbers of each group, ascending."""
    order = np.argsort(groups, kind="stable")
    cuts = np.flatnonzero(np.diff(np.unique(groups, return_inverse=True)[1][order])) + 1
    return np.split(order, cuts) if len(order) else []


def tail(highs: NDArray[Any], exposure: float, *, rate: float, confidence: float) -> Tail:
    """Return the level that ``highs`` (n,), seen in an ``exposure`` (days or starts), exceed at this ``rate``.

    Where the rate asks for fewer than `PROVABLE` exceedances in the whole exposure, the level is of that many.
    The method is peaks over threshold (Pickands 1975) on the logarithms: a generalised Pareto tail by
    probability-weighted moments (Hosking and Wallis 1987), with a shape of at least 0 since no score is known to have
    an upper end. ``bound`` is the upper ``confidence`` bound of the limit, by a seeded bootstrap of the peaks. Too few
    peaks have no tail: ``limit`` is then the highest of them, and ``bound`` `FEW` times that.
    """
    logs = np.sort(np.log(np.maximum(np.asarray(highs, dtype=np.float64), 1e-12)))
    count = min(int(len(logs) * TAIL_SHARE), MOST_PEAKS)
    if count < MIN_PEAKS or not exposure > 0:
        high = float(np.exp(logs[-1])) if len(logs) else 0.0
        return Tail(0.0, 0.0, 0.0, len(logs), exposure, high, FEW * high)
    wanted = max(rate * exposure, PROVABLE)
    ratio = max(count / wanted, 1.0)

    def fit(sample: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return level, scale, shape and limit of samples (m, n) of log peaks, each (m,)."""
        ranked = np.sort(np.partition(sample, -count - 1, axis=1)[:, -count - 1 :], axis=1)
        level = ranked[:, 0]
        over = ranked[:, 1:] - level[:, None]
        first = over.mean(axis=1)
        second = (over * ((count - 0.65 - np.arange(count)) / count)).mean(axis=1)
        free = np.where(first > 2 * second, 2.0 - first / np.maximum(first - 2 * second, 1e-9), 0.0)
        shape = np.clip(free, 0.0, 0.5)
        scale = first * (1.0 - shape)
        growth = np.where(shape > 1e-6, (ratio**shape - 1.0) / np.maximum(shape, 1e-6), math.log(ratio))
        return np.stack([level, scale, shape, level + scale * growth])

    level, scale, shape, limit = fit(logs[None])[:, 0]
    rng = np.random.default_rng(len(logs))
    at_once = max(1, min(RESAMPLES, _CELLS // len(logs)))
    resampled = [
        fit(rng.choice(logs, size=(min(at_once, RESAMPLES - i), len(logs))))[3] for i in range(0, RESAMPLES, at_once)
    ]
    bound = max(float(np.quantile(np.concatenate(resampled), confidence)), float(limit))
    return Tail(
        math.exp(level),
        float(scale),
        float(shape),
        len(logs),
        exposure,
        math.exp(limit),
        math.exp(bound),
        exposure / wanted,
    )


def loudest(seen: Peaks, whole: Tail, *, rate: float, confidence: float) -> tuple[int, Tail] | None:
    """Return the device without which the bound of the tail is lowest, and the tail of all other devices.

    ``whole`` is the tail of all. None where there are too few devices, or too few peaks without one.
    """
    devices = np.unique(seen.device)
    if len(devices) < LEAST_DEVICES or whole.level == 0.0:
        return None
    over = np.log(np.maximum(seen.highs / whole.level, 1.0))
    share = np.bincount(seen.device, over, minlength=len(seen.days))
    found = []
    for device in np.argsort(-share, kind="stable")[:CANDIDATES].tolist():
        rest = seen.without(device)
        others = tail(rest.highs, float(rest.days.sum()), rate=rate, confidence=confidence)
        if others.level > 0.0:
            found.append((others.bound, device, others))
    return min(found, key=lambda one: one[:2])[1:] if found else None
