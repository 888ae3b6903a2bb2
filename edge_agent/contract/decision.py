"""The decision that a bundle carries: by which rules and limits scores become a detection, and what these rest on.

`edge_agent.detection.calibrate` computes it from benign rows alone; nothing about it is configured on a gateway.
"""

from dataclasses import dataclass, field
from typing import Literal

from edge_agent.contract import settings


@dataclass(frozen=True)
class Tail:
    """The upper tail of benign devices' votes, and where it meets the alarm budget.

    See `edge_agent.detection.tails.tail`.

    ``limit`` is the vote that a benign device exceeds once in ``every`` days, ``bound`` its upper confidence bound
    (both in units of the score). ``level`` is where the tail begins, ``scale`` and ``shape`` (ξ) are of the generalised
    Pareto distribution of the log exceedances; all three and ``every`` are 0 when there were too few ``peaks``.
    ``days`` are the device-days seen.
    """

    level: float
    scale: float
    shape: float
    peaks: int
    days: float
    limit: float
    bound: float
    every: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """τ = mean + n·std over the scores of benign optimise rows, and the figures it came from.

    ``limit`` is what a vote is compared with, chosen by `Rules.method` among τ, ``quantile`` (of the same rows) and the
    bound of ``tail``, which ``others``, that bound without the loudest device (0: none was left out), keeps from being
    one device's alone. ``highest`` is the highest vote statistic that a benign device reached after its first seconds.
    """

    limit: float
    highest: float
    others: float = 0.0
    tau: float
    quantile: float
    tail: Tail
    n: float
    mean: float
    std: float
    min: float
    max: float
    rows: int


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The part of a decision that is chosen, not computed: set in the trainer's configuration, carried by the bundle.

    A device alarms when ``vote_k`` of its last ``vote_w`` rows are flagged, or ``count_votes`` of them by the counts
    rule, whose columns are sums over many packets already. The limit of a vote comes by ``method``: from rows (τ by
    `mean_std` or the ``quantile``) or from the `tail` of benign votes, at its upper ``confidence`` bound, for a
    ``budget`` of false alerts per month of a home of ``home_devices`` (`edge_agent.contract.budget`). In a device's
    first ``warmup_s`` seconds, when it connects to everything at once, both rules are stricter: the limit of the score
    at least times ``warmup_score_factor``, the counts by bounds of their own. A class less probable than ``reject`` is
    reported as `unknown`.
    """

    vote_k: int = settings.within(15, 1, 1000)
    vote_w: int = settings.within(20, 1, 1000)
    count_votes: int = settings.within(3, 1, 1000)
    method: Literal["tail", "mean_std", "quantile"] = "tail"
    budget: float = settings.within(1.0, 1e-6, 100_000.0)
    home_devices: int = settings.within(20, 1, 100_000)
    confidence: float = settings.within(0.95, 0.5, 1 - 1e-9)
    quantile: float = settings.within(0.9999, 0.5, 1 - 1e-9)
    warmup_s: float = settings.within(600.0, 0.0, 366 * 86_400.0)
    warmup_score_factor: float = settings.within(5.0, 1.0, 1e6)
    reject: float = settings.within(0.5, 0.0, 1 - 1e-9)

    def __post_init__(self) -> None:
        settings.check(self)
        for key in ("vote_k", "count_votes"):
            if getattr(self, key) > self.vote_w:
                raise ValueError(f"{key}: {getattr(self, key)} is more than vote_w, {self.vote_w}")


@dataclass(frozen=True, kw_only=True)
class Basis:
    """The benign traffic that a decision rests on, and what it can prove.

    ``device_days`` of ``devices`` were seen, in which the score exceeded its limit ``above`` times, and ``starts`` of
    devices, which do not count in either. ``home_month`` is the upper 95 % bound of false alerts by the score per home
    and month; None where days are not known. The limits were made from these days, so only other days test it.
    """

    device_days: float
    devices: int
    starts: int
    above: int
    home_month: float | None


@dataclass(frozen=True)
class Decision(Rules):
    """The rules and limits by which scores become a detection, which `calibrate` computes from benign rows alone.

    ``full`` is τ of the error over all columns. ``fast`` is τ of the error over the columns that forget within a minute
    (λ ≥ 1) with the others shown to the network as normal: the rule in the time after an attack, when the slow columns
    still remember it. ``counts`` bounds damped counts of new peers and sockets per device (column -> bound); in
    warm-up ``warmup_counts`` applies where it is higher, and the limit of the score is ``start_factor`` times as high.
    ``basis`` is None in bundles of format 1.
    """

    full: Threshold
    fast: Threshold
    counts: dict[str, float]
    warmup_counts: dict[str, float] = field(default_factory=dict)
    start_factor: float = settings.within(5.0, 1.0, 1e9)
    basis: Basis | None = None
