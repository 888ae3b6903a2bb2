"""From benign scores to the decision a bundle carries: τ, vote, alarm budget and the bounds of the counts rule.

The trainer decides for the float model, the converter for each quantised variant on its own scores. Only benign train
and optimise rows come in here, so that no attack label and no test row can influence a decision.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.bundle import Decision, Tail, Threshold
from edge_agent.contract.columns import COUNT_COLUMNS, HOST_COUNTS
from edge_agent.detection.vote import vote_statistic

PEAK_S = 600.0
"""Seconds of traffic that give one peak: votes closer together are one burst and would be one alert."""

PEAK_ROWS = 1000
"""Rows that give one peak where rows have no times (published rows)."""

TAIL_SHARE = 0.1
"""Share of the peaks that counts as the tail."""

MIN_PEAKS = 15
"""Fewest exceedances that a tail can be fitted to."""

RESAMPLES = 400

VOTE_SHARE = 0.75
"""Share of the window's rows that make a vote, where the window comes from the autocorrelation."""

MIN_WINDOW, MAX_WINDOW = 10, 20
"""Bounds of that window: fewer rows would be one burst, more would delay every alert. Correlation beyond a window is
covered by the tail of its votes."""

WEEK_DAYS = 7.0


def threshold(
    scores: NDArray[Any], *, n: float, quantile: float, method: str, tail: Tail, highest: float, margin: float
) -> Threshold:
    """Return the limit, and τ = mean(MSE) + n·std(MSE) over scores (m,) of benign optimise rows (Meidan et al. 2018).

    ``method`` is how the limit of a vote is chosen: τ itself (`mean_std`), the ``quantile`` of the same scores
    (`quantile`) or, never below τ, the upper bound of the ``tail`` of benign votes (`tail`). In each case it is at
    least ``margin`` times ``highest``, the highest vote of a benign device. ValueError without rows or with a score
    that is not finite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not len(scores):
        raise ValueError("no benign rows to compute τ from")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    mean, std = float(scores.mean()), float(scores.std())
    tau, high = mean + n * std, float(np.quantile(scores, quantile))
    chosen = {"mean_std": tau, "quantile": high, "tail": max(tau, tail.bound)}[method]
    return Threshold(
        limit=max(chosen, margin * highest),
        highest=highest,
        tau=tau,
        quantile=high,
        tail=tail,
        n=n,
        mean=mean,
        std=std,
        min=float(scores.min()),
        max=float(scores.max()),
        rows=len(scores),
    )


def highest_vote(scores: NDArray[Any], groups: NDArray[Any], k: int, w: int) -> float:
    """Return the highest vote statistic within any group of rows; 0 without rows.

    ``groups`` (m,) is the device (and part) of each row; the rows of a group are in time order.
    """
    return max((float(vote_statistic(scores[rows], k, w).max(initial=0.0)) for rows in _each(groups)), default=0.0)


def vote_window(scores: NDArray[Any], groups: NDArray[Any]) -> tuple[int, int]:
    """Return (k, w) of the vote, k of the last w rows, from how long benign scores stay alike.

    The window is twice the median, over devices, of the lag at which the autocorrelation of log scores falls to 1/e; a
    shorter one would only see one burst of similar rows. It is within `MIN_WINDOW` and `MAX_WINDOW`.
    """
    lags = [correlation_rows(scores[rows]) for rows in _each(groups) if len(rows) > 10 * MAX_WINDOW]
    w = int(np.clip(round(2 * float(np.median(lags))) if lags else MAX_WINDOW, MIN_WINDOW, MAX_WINDOW))
    return math.ceil(VOTE_SHARE * w), w


def correlation_rows(scores: NDArray[Any], most: int = 512) -> int:
    """Return after how many rows the autocorrelation of the log of ``scores`` (n,) has fallen to 1/e, at most ``most``.

    >>> correlation_rows(np.repeat([1.0, 9.0, 2.0, 7.0, 1.0, 8.0], 20))
    8
    """
    logs = np.log(np.maximum(np.asarray(scores, dtype=np.float64), 1e-12))
    logs = logs - logs.mean()
    power = float(logs @ logs)
    if power <= 1e-12 * len(logs):  # all alike but for rounding
        return 1
    spectrum = np.fft.rfft(logs, 2 * len(logs))  # zeros behind: no wrap-around
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[: min(len(logs), most)] / power
    below = correlation < math.exp(-1)
    return int(np.argmax(below)) if below.any() else len(correlation)


def peaks(votes: NDArray[Any], t_ns: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
    """Return the highest vote of each ten minutes of a device that have traffic, and how many days these are."""
    if not len(votes):
        return np.zeros(0), 0.0
    timed = t_ns[-1] > t_ns[0]
    interval = (t_ns - t_ns[0]) // int(PEAK_S * 1e9) if timed else np.arange(len(votes)) // PEAK_ROWS
    starts = np.flatnonzero(np.diff(interval, prepend=-1))
    return np.maximum.reduceat(np.asarray(votes, dtype=np.float64), starts), len(starts) * PEAK_S / 86_400.0


def tail(highs: NDArray[Any], days: float, *, budget: float, confidence: float) -> Tail:
    """Return the vote that benign devices exceed ``budget`` times a device-week, from ``highs`` of `peaks` in ``days``.

    The method is peaks over threshold (Pickands 1975) on the logarithms: a generalised Pareto tail by
    probability-weighted moments (Hosking and Wallis 1987), with a shape of at least 0 since no score is known to have
    an upper end. ``bound`` is the upper ``confidence`` bound of the limit, by a seeded bootstrap of the peaks. With too
    few peaks all figures are zero.
    """
    logs = np.sort(np.log(np.maximum(np.asarray(highs, dtype=np.float64), 1e-12)))
    count = int(len(logs) * TAIL_SHARE)
    if count < MIN_PEAKS or not days > 0:
        return Tail(0.0, 0.0, 0.0, len(logs), days, 0.0, 0.0)
    wanted = budget / WEEK_DAYS * days  # exceedances allowed in as many days as were seen

    def fit(sample: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return level, scale, shape and limit of samples (m, n) of log peaks, each (m,)."""
        ranked = np.sort(sample, axis=1)
        level = ranked[:, -count - 1]
        over = ranked[:, -count:] - level[:, None]
        first = over.mean(axis=1)
        second = (over * ((count - 0.65 - np.arange(count)) / count)).mean(axis=1)
        free = np.where(first > 2 * second, 2.0 - first / np.maximum(first - 2 * second, 1e-9), 0.0)
        shape = np.clip(free, 0.0, 0.5)
        scale = first * (1.0 - shape)
        ratio = max(count / wanted, 1.0)
        growth = np.where(shape > 1e-6, (ratio**shape - 1.0) / np.maximum(shape, 1e-6), math.log(ratio))
        return np.stack([level, scale, shape, level + scale * growth])

    level, scale, shape, limit = fit(logs[None])[:, 0]
    rng = np.random.default_rng(len(logs))
    resampled = fit(rng.choice(logs, size=(RESAMPLES, len(logs))))[3]
    bound = max(float(np.quantile(resampled, confidence)), float(limit))
    return Tail(math.exp(level), float(scale), float(shape), len(logs), days, math.exp(limit), math.exp(bound))


def count_bounds(counts: NDArray[Any], margin: float, floors: dict[str, float]) -> dict[str, float]:
    """Return bounds of the counts rule from benign ``counts`` (m, `COUNT_COLUMNS`).

    A bound is ``margin`` times the highest count, and at least the column's floor; a column without a floor has none.
    Rows do not hold `HOST_COUNTS`: their floors are their bounds.
    """
    highest = np.asarray(counts, dtype=np.float64).max(axis=0, initial=0.0)
    own = {c: float(max(margin * h, floors[c])) for c, h in zip(COUNT_COLUMNS, highest, strict=True) if c in floors}
    return own | {c: float(floors[c]) for c in HOST_COUNTS if c in floors}


@dataclass(frozen=True)
class Benign:
    """Scores of benign train and optimise rows, in time order within each group."""

    full: NDArray[Any]
    fast: NDArray[Any]
    groups: NDArray[Any]  # device and part of a row
    optimise: NDArray[np.bool_]  # True for rows that τ is computed from
    t_ns: NDArray[np.int64]  # packet time; all equal where it is not known


def recalibrate(decision: Decision, benign: Benign) -> Decision:
    """Return ``decision`` for another form of its model, with τ and limits of that form's scores of the same rows.

    The fast rule is in force only after an alarm, so the alarm budget does not concern it: its limit comes from rows.
    """
    by_rows = dataclasses.replace(decision, method="mean_std" if decision.method == "tail" else decision.method)
    return dataclasses.replace(
        decision,
        full=_limits(benign.full, benign, decision.full.n, decision),
        fast=_limits(benign.fast, benign, decision.fast.n, by_rows),
    )


def decide(benign: Benign, n: float, counts: dict[str, float], **rules: Any) -> Decision:
    """Return a new decision with ``counts`` of `count_bounds`; ``rules`` are the other fields of `Decision`."""
    unknown = Tail(0.0, 0.0, 0.0, 0, 0.0, 0.0, 0.0)
    figures = {"highest": 0.0, "mean": 0.0, "std": 0.0, "min": 0.0, "max": 0.0}
    nothing = Threshold(limit=1.0, tau=1.0, quantile=1.0, tail=unknown, n=n, rows=0, **figures)
    return recalibrate(Decision(nothing, nothing, counts, **rules), benign)


def _limits(scores: NDArray[Any], benign: Benign, n: float, decision: Decision) -> Threshold:
    k, w = decision.vote_k, decision.vote_w
    of_groups = [peaks(vote_statistic(scores[rows], k, w), benign.t_ns[rows]) for rows in _each(benign.groups)]
    highs = np.concatenate([high for high, _ in of_groups]) if of_groups else np.zeros(0)
    return threshold(
        scores[benign.optimise],
        n=n,
        quantile=decision.quantile,
        method=decision.method,
        tail=tail(highs, sum(days for _, days in of_groups), budget=decision.budget, confidence=decision.confidence),
        highest=float(highs.max(initial=0.0)),
        margin=decision.vote_margin,
    )


def _each(groups: NDArray[Any]) -> list[NDArray[np.intp]]:
    """Return the row numbers of each group, ascending."""
    order = np.argsort(groups, kind="stable")
    cuts = np.flatnonzero(np.diff(np.unique(groups, return_inverse=True)[1][order])) + 1
    return np.split(order, cuts) if len(order) else []
