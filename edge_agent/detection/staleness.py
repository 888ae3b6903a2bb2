"""The judgement if a device that has learnt goes on beyond what it was known for."""

from collections.abc import Mapping
from typing import Any

from edge_agent.detection.minutes import whole

STALE_MINUTES, STALE_OF, STALE_OVER = 8, 10, 1.25
"""A device is stale when `STALE_MINUTES` of its last `STALE_OF` minutes with traffic exceed all it was known for by the
factor `STALE_OVER`; it is active again when as many of them do not."""


class Staleness:
    """Finds when a device that has learnt began to go beyond what it was known for: ``since_ns``; None if it does not.

    Single minutes do not count, neither those beyond nor those within: `STALE_MINUTES` of the last `STALE_OF` change
    the state, so that a device on the brink does not change it all the time.
    """

    def __init__(self) -> None:
        self.since_ns: int | None = None
        self.beyond: list[bool] = []
        """For each of the last `STALE_OF` minutes with traffic: True if it went beyond."""

    @property
    def now(self) -> bool:
        """True if the last minute went beyond."""
        return bool(self.beyond) and self.beyond[-1]

    def note_minute(self, t_ns: int, beyond: bool) -> None:
        """Note whether the minute that ended at ``t_ns`` went ``beyond``."""
        self.beyond = [*self.beyond, beyond][-STALE_OF:]
        if self.since_ns is None and sum(self.beyond) >= STALE_MINUTES:
            self.since_ns = t_ns
        elif self.since_ns is not None and len(self.beyond) - sum(self.beyond) >= STALE_MINUTES:
            self.since_ns = None

    def clear(self) -> None:
        """Forget all minutes: the device is not stale."""
        self.since_ns = None
        self.beyond.clear()

    def record(self) -> dict[str, Any]:
        """Return what `restore` needs, as part of a device's record."""
        return {"stale_ns": self.since_ns, "over": [int(beyond) for beyond in self.beyond]}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Continue from a `record`; ValueError, KeyError or TypeError for anything else."""
        self.since_ns = None if record["stale_ns"] is None else whole(record, "stale_ns")
        self.beyond = [bool(beyond) for beyond in record["over"]][-STALE_OF:]
