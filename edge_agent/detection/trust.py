"""The judgement if a device's time of learning is believed, and the evidence that an infected one leaves.

A device that was infected before the agent started would otherwise teach that its attack is normal.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.detection.minutes import Levels, MinuteMemory, text, whole

RECENT_MINUTES, ALARM_SHARE = 30, 0.1
"""Last minutes with traffic in which alarms are counted, and the largest share with an alarm of a believed device."""

MAX_SUSPECTS = 32
"""Rows of a minute above the shared limit that are classified while a device still learns."""


_LOOKS = "its ordinary traffic is above the model's limit and looks like "


class Trust:
    """The judgement of a device's time of learning: not yet, refused with a reason, or believed.

    ``known`` is what the device's limits rest on, in units of the shared limits; it is set exactly when the judgement
    is "believed", together with the time ``since_ns``, and never rises afterwards. ``refused`` is the reason for a
    refusal; it is "" without one and once the device is believed.
    """

    def __init__(self) -> None:
        self.known: Levels | None = None
        self.since_ns: int | None = None
        self.refused = ""
        self.suspicion = ""
        """The attack that the device's rows above the shared limit look like; "" if there is no such attack."""
        self.vouched = False
        """True if a person has vouched for the device: a suspicion is then no reason to refuse."""
        self.alarms: list[bool] = []
        """For each of the last `RECENT_MINUTES` minutes with traffic: True if there was an alarm in it."""

    @property
    def alarms_refuse(self) -> bool:
        """True if there is a refusal because of alarms, not of what the device's ordinary traffic looks like."""
        return bool(self.refused) and not self.refused.startswith(_LOOKS)

    def note_minute(self, alarm: bool) -> None:
        """Note whether there was an ``alarm`` in the minute that is over."""
        self.alarms = [*self.alarms, alarm][-RECENT_MINUTES:]

    def judge(self, t_ns: int, minutes: MinuteMemory, margin: float) -> None:
        """Believe a time of learning that is long enough, or note why not; it is judged again after the next minute.

        A device that was infected before the agent started would otherwise teach that its attack is normal.
        """
        self.refused, alarms = "", sum(self.alarms)
        if self.suspicion and len(minutes) and minutes.usual(margin).vote > margin and not self.vouched:
            self.refused = _LOOKS + self.suspicion
        elif alarms > ALARM_SHARE * len(self.alarms):
            self.refused = f"in an alarm in {alarms} of its last {len(self.alarms)} minutes: looks infected"
        elif not len(minutes):
            self.refused = "no minute without an alarm yet: looks infected"
        if not self.refused:
            self.since_ns, self.known = t_ns, minutes.usual(margin)

    def record(self) -> dict[str, Any]:
        """Return what `restore` needs, as part of a device's record."""
        return {
            "learnt_ns": self.since_ns,
            "refused": self.refused,
            "looks_like": self.suspicion,
            "vouched": self.vouched,
            "highest": self.known and list(self.known),
            "alarms": [int(alarm) for alarm in self.alarms],
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        """Continue from a `record`; ValueError, KeyError or TypeError for anything else."""
        self.since_ns = None if record["learnt_ns"] is None else whole(record, "learnt_ns")
        self.refused, self.suspicion = text(record, "refused"), text(record, "looks_like")
        self.vouched = bool(whole(record, "vouched"))
        known = record["highest"]
        self.known = None if known is None else Levels(float(known[0]), float(known[1]))
        self.alarms = [bool(alarm) for alarm in record["alarms"]][-RECENT_MINUTES:]


class Suspects:
    """Rows of a learning device that are above the shared limit and were not flagged, as the classifier sees them.

    They are not reported, since the device's limit is still wide, but they tell whether its traffic is an attack's.
    Sums are over the whole time of learning; at most `MAX_SUSPECTS` rows of each minute are classified.
    """

    def __init__(self) -> None:
        self.above_shared_limit = 0
        """Rows of this minute that were classified."""
        self.class_sum = self.profile_sum = np.zeros(0)
        """Sums of class probabilities and of packet profiles over all rows; empty before the first."""

    @property
    def room(self) -> int:
        """The number of rows of this minute that may still be classified."""
        return MAX_SUSPECTS - self.above_shared_limit

    def add(self, probabilities: NDArray[np.float64], profiles: NDArray[np.float64]) -> None:
        """Take in classified rows: their class ``probabilities`` (n, classes) and packet ``profiles`` (n, figures)."""
        self.above_shared_limit += len(probabilities)
        if not len(self.class_sum):
            self.class_sum, self.profile_sum = np.zeros(probabilities.shape[1]), np.zeros(profiles.shape[1])
        # row by row, so that no rounding depends on where batches are cut
        self.class_sum = np.concatenate([self.class_sum[None], probabilities]).sum(axis=0)
        self.profile_sum = np.concatenate([self.profile_sum[None], profiles]).sum(axis=0)
