"""From benign scores to the decision a bundle carries: τ, vote, limits and the bounds of the counts rule.

The trainer decides for the float model, the converter for each quantised variant on its own scores. Only benign train
and optimise rows come in here, so that no attack label and no test row can influence a decision. What a tail is, and
how far it reaches, is the knowledge of `tails`; how a budget of false alerts is split that of `contract.budget`.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract import budget
from edge_agent.contract.columns import COUNT_COLUMNS, HOST_COUNTS
from edge_agent.contract.decision import Basis, Decision, Tail, Threshold
from edge_agent.detection import tails
from edge_agent.detection.tails import Peaks
from edge_agent.detection.vote import vote_statistic

VOTE_SHARE = 0.75
"""Share of the window's rows that make a vote, where the window comes from the autocorrelation."""

MIN_WINDOW, MAX_WINDOW = 10, 20
"""Bounds of that window: fewer rows would be one burst, more would delay every alert. Correlation beyond a window is
covered by the tail of its votes."""

LOUDEST = 2.0
"""The factor by which a fit's limit may exceed the one without its loudest device. By rotation over days and leaving
out each of ten real devices, leaving out the loudest altogether gave 4 false alerts, this gave none."""


def threshold(
    scores: NDArray[Any],
    *,
    n: float,
    quantile: float,
    method: str,
    tail: Tail,
    others: Tail | None = None,
    highest: float = 0.0,
) -> Threshold:
    """Return the limit, and τ = mean(MSE) + n·std(MSE) over scores (m,) of benign optimise rows (Meidan et al. 2018).

    ``method`` is how the limit of a vote is chosen: τ itself (`mean_std`), the ``quantile`` of the same scores
    (`quantile`) or, never below τ, the upper bound of the ``tail`` of benign votes (`tail`), at most `LOUDEST` times
    that of ``others``, which is the tail without the loudest device. ``highest`` is the highest of these votes.
    ValueError without rows or with a score that is not finite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not len(scores):
        raise ValueError("no benign rows to compute τ from")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    mean, std = float(scores.mean()), float(scores.std())
    tau, high = mean + n * std, float(np.quantile(scores, quantile))
    bound = tail.bound if others is None else min(tail.bound, LOUDEST * others.bound)
    limit = {"mean_std": tau, "quantile": high, "tail": max(tau, bound)}[method]
    return Threshold(
        limit=limit,
        highest=highest,
        others=others.bound if others else 0.0,
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
    return max((float(vote_statistic(scores[rows], k, w).max(initial=0.0)) for rows in tails.each(groups)), default=0.0)


def vote_window(scores: NDArray[Any], groups: NDArray[Any]) -> tuple[int, int]:
    """Return (k, w) of the vote, k of the last w rows, from how long benign scores stay alike.

    The window is twice the median, over devices, of the lag at which the autocorrelation of log scores falls to 1/e; a
    shorter one would only see one burst of similar rows. It is within `MIN_WINDOW` and `MAX_WINDOW`.
    """
    lags = [correlation_rows(scores[rows]) for rows in tails.each(groups) if len(rows) > 10 * MAX_WINDOW]
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


def count_bounds(highest: Mapping[str, NDArray[Any]], margin: float, floors: Mapping[str, float]) -> dict[str, float]:
    """Return bounds of the counts rule from the ``highest`` counts (`COUNT_COLUMNS`,) of each benign device.

    A bound is ``margin`` times the highest count of a column, that of the device which has it left out where there are
    enough, and at least the column's floor; a column without a floor has none. Rows do not hold `HOST_COUNTS`: their
    floors are their bounds.
    """
    counts = np.array([np.zeros(len(COUNT_COLUMNS)), *highest.values()], dtype=np.float64)
    ranked = np.sort(counts, axis=0)[::-1]
    chosen = ranked[1 if len(highest) >= tails.LEAST_DEVICES else 0]
    own = {c: float(max(margin * h, floors[c])) for c, h in zip(COUNT_COLUMNS, chosen, strict=True) if c in floors}
    return own | {c: float(floors[c]) for c in HOST_COUNTS if c in floors}


def senders(devices: NDArray[np.str_]) -> NDArray[np.str_]:
    """Return who each of ``devices`` (n,) of a data set is: a router that is in many captures is one.

    >>> senders(np.array(["plug", "plug/02:00:00:00:00:01", "camera/02:00:00:00:00:01"])).tolist()
    ['plug', '02:00:00:00:00:01', '02:00:00:00:00:01']
    """
    return np.array([str(name).rpartition("/")[2] for name in devices], dtype=np.str_)


@dataclass(frozen=True, kw_only=True)
class Benign:
    """Scores of benign train and optimise rows, (m,) each, in the order of time within each run."""

    full: NDArray[Any]
    fast: NDArray[Any]
    device: NDArray[Any]
    """The device that sent each row, by name."""
    runs: NDArray[np.int64]
    """Rows of one number followed each other, in one part of one device: no window of votes spans two."""
    optimise: NDArray[np.bool_]
    """True for rows that τ is computed from."""
    start: NDArray[np.bool_]
    """True in the first seconds of a device's capture, when it connects to everything at once."""
    t_ns: NDArray[np.int64]
    """Packet time; all equal where it is not known."""

    def __post_init__(self) -> None:
        if len({len(getattr(self, field.name)) for field in dataclasses.fields(self)}) != 1:
            raise ValueError("arrays of different lengths")


@dataclass(frozen=True, kw_only=True)
class Loudest:
    """The device without which the limit would be lowest."""

    device: str
    bound_without: float
    """The bound of the tail of all other devices."""
    alerts_a_month: float
    """The rate at which this device exceeds the limit, as far as it was seen."""


@dataclass(frozen=True, kw_only=True)
class _Votes:
    """Benign votes of one rule: peaks while running, and the highest of each start; devices by number."""

    running: Peaks
    starts: NDArray[np.float64]
    names: NDArray[Any]


def recalibrate(decision: Decision, benign: Benign) -> Decision:
    """Return ``decision`` for another form of its model, with τ and limits of that form's scores of the same rows."""
    votes = _votes(benign.full, benign, decision)
    full = _limits(benign.full, votes, benign, decision.full.n, decision)
    fast = _limits(benign.fast, _votes(benign.fast, benign, decision), benign, decision.fast.n, decision)
    return dataclasses.replace(
        decision,
        full=full,
        fast=fast,
        start_factor=_start_factor(votes, full, decision),
        basis=_basis(votes, full, decision),
    )


def decide(benign: Benign, n: float, counts: dict[str, float], **rules: Any) -> Decision:
    """Return a new decision with ``counts`` of `count_bounds`; ``rules`` are the other fields of `Decision`."""
    unknown = Tail(0.0, 0.0, 0.0, 0, 0.0, 0.0, 0.0)
    figures = {"highest": 0.0, "mean": 0.0, "std": 0.0, "min": 0.0, "max": 0.0}
    nothing = Threshold(limit=1.0, tau=1.0, quantile=1.0, tail=unknown, n=n, rows=0, **figures)
    return recalibrate(Decision(nothing, nothing, counts, **rules), benign)


def find_loudest(decision: Decision, benign: Benign) -> Loudest | None:
    """Return the device that the limit of the score was not left to; None where no device can be left out."""
    votes, rate = _votes(benign.full, benign, decision), _rate(decision)
    whole = _tail(votes.running, rate, decision)
    found = tails.loudest(votes.running, whole, rate=rate, confidence=decision.confidence)
    if found is None:
        return None
    number, others = found
    highs, days = votes.running.highs[votes.running.device == number], float(votes.running.days[number])
    above = int((highs > decision.full.limit).sum())
    return Loudest(
        device=str(votes.names[number]),
        bound_without=others.bound,
        alerts_a_month=above / days * budget.MONTH_DAYS if days else 0.0,
    )


def _votes(scores: NDArray[Any], benign: Benign, decision: Decision) -> _Votes:
    votes = np.zeros(len(scores))
    for rows in tails.each(2 * benign.runs + benign.start):  # a row of a start is judged by the limit of a start
        votes[rows] = vote_statistic(scores[rows], decision.vote_k, decision.vote_w)
    names, device = np.unique(benign.device, return_inverse=True)
    running = np.flatnonzero(~benign.start)
    starting = np.flatnonzero(benign.start)
    return _Votes(
        running=tails.peaks(votes[running], benign.t_ns[running], device[running], benign.runs[running], len(names)),
        starts=np.array([votes[starting[rows]].max() for rows in tails.each(benign.runs[starting])]),
        names=names,
    )


def _rate(decision: Decision) -> float:
    return budget.per_device_day(decision.budget, decision.home_devices)


def _tail(seen: Peaks, rate: float, decision: Decision) -> Tail:
    return tails.tail(seen.highs, float(seen.days.sum()), rate=rate, confidence=decision.confidence)


def _limits(scores: NDArray[Any], votes: _Votes, benign: Benign, n: float, decision: Decision) -> Threshold:
    rate = _rate(decision)
    whole = _tail(votes.running, rate, decision)
    found = tails.loudest(votes.running, whole, rate=rate, confidence=decision.confidence)
    settled = benign.optimise & ~benign.start
    return threshold(
        scores[settled if settled.any() else benign.optimise],
        n=n,
        quantile=decision.quantile,
        method=decision.method,
        tail=whole,
        others=found[1] if found else None,
        highest=float(votes.running.highs.max(initial=0.0)),
    )


def _start_factor(votes: _Votes, full: Threshold, decision: Decision) -> float:
    """Return by how much the limit of the score is higher in a device's first seconds.

    The starts of devices that were not fitted are wilder than of those that were, so that a tail of these may only add.
    """
    rate = budget.per_start(decision.budget, decision.home_devices)
    starts = tails.tail(votes.starts, len(votes.starts), rate=rate, confidence=decision.confidence)
    return max(decision.warmup_score_factor, starts.bound / full.limit if starts.level and full.limit else 1.0)


def _basis(votes: _Votes, full: Threshold, decision: Decision) -> Basis:
    days, above = float(votes.running.days.sum()), int((votes.running.highs > full.limit).sum())
    proven = budget.per_home_month(budget.at_most(above), days, decision.home_devices) if days else None
    return Basis(
        device_days=days,
        devices=len(np.unique(votes.running.device)),
        starts=len(votes.starts),
        above=above,
        home_month=proven,
    )
