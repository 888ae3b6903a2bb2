"""Highest values of a device in the long run: the ground for limits below those that all devices share.

A quiet plug has no use for the room that a camera needs, and an attack hides in that room. Its limits come down to
`MARGIN` times the highest that it came to in the last week; nothing of a week is left out, so that a minute under
attack only makes them less low. They come down as days pass, not as packets do: what a device does once a day, such as
a reconnect or a look for new firmware, must have been seen before its limit is below it.

A quarter of a day counts when it is over. A ramp that stays below the limit of the hour does not lift it before, and
no habit lifts it above the shared one. All figures are in units of the shared limits.

Of the counts only the slowest of new peers has a lower bound. A few new hosts within seconds are an update, and sockets
to old hosts a reconnect, however quiet the device was before.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

PERIOD_NS = 6 * 3_600_000_000_000
"""Steady time whose minutes are taken in together."""

STARTS_S = 660.0
"""Seconds after a start that are left out: of a device that connects to everything at once, or of an agent whose
statistics begin anew. No limit is below the shared one in the first ten minutes (`Rules.warmup_s`)."""

KEEP = 28
"""Periods that are remembered: a week."""

MARGIN = 3.0
"""Factor between a lower limit and the highest that was seen. With 2 a real gateway alerted falsely on its third day,
at 0.7 of the shared limit of a fit without its kind."""

PRIOR_DAYS, PRIOR_MINUTES = 1 / 3, 30.0
"""Days, and minutes with traffic, that the shared limit weighs as much as."""

SCORE_FLOOR, PEERS_FLOOR = 0.25, 0.15
"""Lowest factors of the shared limit of the score and of the shared bound of new peers."""

PEERS_DAYS = 1.0
"""Days that must have been seen before the bound of new peers comes down: a night says nothing of a PC or a TV."""

LEAST_PEERS = 10.0
"""Lowest bound of new peers, whatever the factor: an update or a service that moved calls a few new hosts."""

LOWERED = "device_L0.01_new_peers"
"""The count whose bound comes down."""


class Highs(NamedTuple):
    """The highest vote and the highest count of new peers of some minutes, or factors of their limits."""

    vote: float
    peers: float


class Habits:
    """The highs of one device by period, in the order of time, and the `factors` that follow."""

    def __init__(self) -> None:
        self._highs: dict[int, Highs] = {}
        self._peers = 0.0

    def see_peers(self, highest: float) -> None:
        """Take in the ``highest`` count of new peers of some rows of this minute that were not flagged."""
        self._peers = max(self._peers, highest)

    def end_minute(self, passed_ns: int, vote: float, *, teaches: bool) -> None:
        """End a minute ``passed_ns`` after the learning began, whose highest vote of rows not flagged was ``vote``.

        A minute in an alarm or its aftermath does not teach, nor one within `STARTS_S`.
        """
        if teaches:
            period = max(passed_ns - 1, 0) // PERIOD_NS
            before = self._highs.get(period, Highs(0.0, 0.0))
            self._highs[period] = Highs(max(before.vote, vote), max(before.peers, self._peers))
            if len(self._highs) > KEEP + 1:
                del self._highs[min(self._highs)]
        self._peers = 0.0

    def factors(self, passed_ns: int, minutes: int) -> Highs:
        """Return the factors of limit and bound, at most 1, ``passed_ns`` after the learning began.

        ``minutes`` is the number of minutes with traffic that taught something.
        """
        period = passed_ns // PERIOD_NS
        over = [highs for number, highs in self._highs.items() if period - KEEP <= number < period]
        if not over:
            return Highs(1.0, 1.0)
        days = min(period, KEEP) * PERIOD_NS / 86_400e9
        share = days / (days + PRIOR_DAYS) * minutes / (minutes + PRIOR_MINUTES)
        levels = (min(MARGIN * max(highs[i] for highs in over), 1.0) for i in range(2))
        vote, peers = (level**share for level in levels)
        return Highs(max(vote, SCORE_FLOOR), max(peers, PEERS_FLOOR) if days >= PEERS_DAYS else 1.0)

    def under_other_model(self, vote_factor: float, count_factor: float) -> None:
        """Go on in units of another model's limits, in which votes and counts are so many times as high."""
        self._highs = {
            number: Highs(highs.vote * vote_factor, highs.peers * count_factor) for number, highs in self._highs.items()
        }

    def record(self) -> dict[str, Any]:
        """Return what `restore` needs, as part of a device's record."""
        return {
            "habits": [[number, *(float(f"{high:.4g}") for high in highs)] for number, highs in self._highs.items()]
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        """Continue from a `record`, or from one of an earlier version; ValueError or TypeError for anything else."""
        self._highs = {}
        for number, vote, peers in record.get("habits", ())[-KEEP - 1 :]:
            if not isinstance(number, int) or not (0.0 <= vote < float("inf") and 0.0 <= peers < float("inf")):
                raise ValueError(f"habits have {number!r}, {vote!r}, {peers!r}")
            self._highs[number] = Highs(float(vote), float(peers))
