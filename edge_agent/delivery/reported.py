"""The traffic that each episode's alerts have reported, so that people can allow it by the id of an alert.

The last `MAX_EPISODES` episodes are in the state file. What an allow makes of it is `edge_agent.delivery.suppressions`'
knowledge.
"""

import json
import logging
import time
from dataclasses import dataclass, replace
from typing import Annotated

from edge_agent.contract import alertid, record
from edge_agent.contract.alert import KINDS, Activity, Alert
from edge_agent.contract.messages import MessageError, decode, is_uuid7
from edge_agent.contract.record import spelt
from edge_agent.delivery.suppressions import ACTIVITIES, NAMES, check_device, of_classes
from edge_agent.state import State

MAX_EPISODES = 2_000
"""Episodes that are remembered."""

MAX_PORTS = 4
"""Ports of one kind of traffic that are remembered of an episode; beyond that any port is meant."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reported:
    """The traffic of a device that an episode's alerts have reported so far, by which it can be allowed."""

    device: str  # a MAC, or the address of a victim; "" where neither is known
    activities: Annotated[tuple[Activity, ...], spelt(form=ACTIVITIES)] = ()
    classes: Annotated[tuple[str, ...], spelt(form=NAMES)] = ()  # as of `Suppression`

    def with_more(self, activities: tuple[Activity, ...]) -> "Reported":
        """Return this with what another alert reports; of a kind that goes to many ports the port does not matter."""
        everything = list(dict.fromkeys(self.activities + activities))
        for kind in KINDS:
            of_kind = [activity for activity in everything if activity.kind == kind]
            if len(of_kind) > MAX_PORTS or (len(of_kind) > 1 and Activity(kind) in of_kind):
                everything = [activity for activity in everything if activity.kind != kind] + [Activity(kind)]
        return replace(self, activities=tuple(everything))

    @classmethod
    def read(cls, text: str) -> "Reported":
        """Return this of a JSON text, also of one that an earlier version stored; else a MessageError."""
        values = decode(text.encode())
        reported = cls(**record.read(cls, values))
        if reported.device:
            check_device(reported.device)
        if "activities" not in values:
            activities, names = of_classes(reported.classes, None)
            reported = replace(reported, activities=activities, classes=names)
        return reported

    def text(self) -> str:
        """Return the JSON text that `read` takes back."""
        return json.dumps(record.write(self))


class ReportedEpisodes:
    """The reports of episodes, in ``state``; those of open ones also in memory, for the time the disk is full."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._open: dict[str, Reported] = {}

    def add(self, alert: Alert) -> None:
        """Store what an alert adds. StateError when the state file cannot be used."""
        before = self._open.get(alert.id)
        now = (before or Reported(alert.device.mac or alert.device.ip)).with_more(alert.activities)
        self._open[alert.id] = now
        if alert.state == "end":
            del self._open[alert.id]
        if now != before:
            self._state.episode_put(alert.id, now.text(), time.time(), MAX_EPISODES)

    def of(self, ending: str) -> Reported:
        """Return what was reported of the episode whose id ends with ``ending`` (`alertid.read`).

        MessageError when there is none, more than one, or one without a device.
        """
        known = self.whose_id_ends_with(ending)
        which = f"alert {ending}" if is_uuid7(ending) else f"an alert whose id ends with {ending}"
        missing = f"{which} is not stored here (the last {MAX_EPISODES:,} are): name the device and the kind of traffic"
        id_ = alertid.the_one(ending, sorted(known), missing)
        if not known[id_].device:
            raise MessageError(f"alert {id_} names no device: name the device and the kind instead")
        return known[id_]

    def whose_id_ends_with(self, ending: str) -> dict[str, Reported]:
        """Return what was reported of the episodes whose ids end with ``ending``, by their ids."""
        known = {id_: reported for id_, reported in self._open.items() if alertid.ends(id_, ending)}
        for id_, about in self._state.episodes(alertid.digits_of(ending)):
            try:
                known.setdefault(id_, Reported.read(about))
            except MessageError as error:
                logger.error("%s: the entry of alert %s is damaged and is not used: %s", self._state.path, id_, error)
        return known
