"""Data that all subjects share: the limits and networks that rows are judged by, and the scored rows of one batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.capture.features import Routes, Rows
from edge_agent.contract import columns as cols
from edge_agent.contract.bundle import Bundle
from edge_agent.contract.columns import COUNT_COLUMNS, HOST_COUNTS
from edge_agent.contract.decision import Decision
from edge_agent.contract.host_bounds import host_bounds
from edge_agent.contract.scaling import Array
from edge_agent.detection.device_limits import DeviceLimits
from edge_agent.detection.habits import LEAST_PEERS, LOWERED
from edge_agent.detection.scorer import RowClassifier, Scorer
from edge_agent.detection.vote import VoteRule

_S = 1_000_000_000

LOWERED_AT = COUNT_COLUMNS.index(LOWERED)
"""The position in `COUNT_COLUMNS` of the count whose bound a quiet device lowers."""


@dataclass(frozen=True, kw_only=True)
class SubjectRules:
    """The limits and networks of one bundle, by which all subjects are judged."""

    decision: Decision
    vote: VoteRule
    bounds: NDArray[np.float64]
    """Bounds of `COUNTS`, infinite where the bundle has none; ``warmup_bounds`` in a device's first minutes."""
    warmup_bounds: NDArray[np.float64]
    own_bounds: NDArray[np.float64]
    """The first of ``bounds``: those of `COUNT_COLUMNS`."""
    scorer: Scorer
    classifier: RowClassifier | None
    class_count: int
    columns_at: Any
    """Selects the model's columns from those of a row."""
    counts_at: NDArray[np.uint32]
    loudness_at: int
    """Positions of `COUNT_COLUMNS` and of the packet weight of λ = 1 in a row."""
    between_hosts_at: Any
    """Positions of the packet weights of λ = 1 and λ = 0.01 between the hosts of a row."""
    one_each: NDArray[np.int64]
    """A one for each row of the window: what rows account for when none is shed."""
    learn: Callable[[int, int], DeviceLimits] | None
    """Returns a device's own limits for its MAC and the steady time of its first row; None: none has any."""

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        scorer: Scorer,
        classifier: RowClassifier | None,
        learn: Callable[[int, int], DeviceLimits] | None,
    ) -> "SubjectRules":
        """Return the rules of a bundle whose networks are ``scorer`` and ``classifier``."""
        manifest, decision = bundle.manifest, bundle.manifest.decision
        bounds = np.array([decision.counts.get(c, np.inf) for c in COUNT_COLUMNS])
        warmup = np.maximum(bounds, [decision.warmup_counts.get(c, 0.0) for c in COUNT_COLUMNS])
        of_hosts = host_bounds(decision.counts)
        warmup_of_hosts = np.maximum(of_hosts, [decision.warmup_counts.get(c, 0.0) for c in HOST_COUNTS])
        every = manifest.columns == cols.ALL_COLUMNS  # then no copy is needed to take them
        return cls(
            decision=decision,
            vote=VoteRule.of(decision),
            bounds=np.concatenate([bounds, of_hosts]),
            warmup_bounds=np.concatenate([warmup, warmup_of_hosts]),
            own_bounds=bounds,
            scorer=scorer,
            classifier=classifier,
            class_count=len(manifest.classes),
            columns_at=slice(None) if every else cols.indices(manifest.columns),
            counts_at=np.array(cols.indices(COUNT_COLUMNS), dtype=np.uint32),
            loudness_at=cols.indices(["device_L1_weight"])[0],
            between_hosts_at=cols.indices(["HH_L1_weight", "HH_L0.01_weight"]),
            one_each=np.ones(decision.vote_w, dtype=np.int64),
            learn=learn,
        )

    def limits_at(
        self, age_ns: NDArray[np.int64], own: DeviceLimits | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the factors (n,) of the shared limit of the score, and the bounds (n, `COUNTS`) of the counts.

        They are those of rows that come ``age_ns`` (n,) after their subject's first row; ``own`` are the limits of a
        device that learns. In its first minutes no limit is lower than the shared one.
        """
        own_score, own_counts = own.factors() if own else (1.0, 1.0)
        warm = age_ns < self.decision.warmup_s * _S
        strict = np.where(warm, max(self.decision.start_factor, own_score), own_score)
        bounds = own_counts * np.where(warm[:, None], self.warmup_bounds, self.bounds)
        if own:
            usual = bounds[~warm, LOWERED_AT]
            bounds[~warm, LOWERED_AT] = np.maximum(usual * own.peers_factor, np.minimum(usual, LEAST_PEERS))
        return strict, bounds


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """All rows of one `Detector.observe` call, with the facts known of each before rows are assigned to subjects."""

    rows: Rows
    t_ns: NDArray[np.int64]
    """Steady times."""
    flags: NDArray[np.uint16]
    """The flags of ROW_META; ``opens`` where they say that a peer or socket is new."""
    opens: NDArray[np.bool_]
    sizes: NDArray[np.int64]
    """Bytes on the wire."""
    routes: Routes
    all_chosen: bool
    """True if every row may be scored."""
    scores: Array
    """Scores, 0 for rows that may not be scored."""
    highest: NDArray[np.float64]
    """The highest of a row's counts in units of their bounds. They are the sender's; for a router's and a victim's rows
    `Subject.quiet_via_router` puts the subject's own in their place."""

    def carried(self, index: NDArray[np.intp], *, victim: bool) -> NDArray[np.bool_]:
        """Return which of a subject's rows have device columns that are not its own, but of all that a router carries.

        A ``victim``'s rows are all like that; (n,) for rows ``index`` (n,).
        """
        return np.ones(len(index), dtype=bool) if victim else self.routes.carries[index]
