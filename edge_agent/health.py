"""The health of a running agent: the message of each minute, and the state of the clock that stamps alerts.

Frames that were dropped, and a clock that is no longer synchronised, are logged here when that changes.
"""

import logging
import time
from collections.abc import Callable

from edge_agent.agent import Agent
from edge_agent.capture.attach import Attachment
from edge_agent.capture.features import Rows
from edge_agent.capture.sources import Interfaces
from edge_agent.contract import messages
from edge_agent.publisher import Publisher
from edge_agent.system import cpu_s, resident_mb, synchronised

HEALTH_ENTRIES = 8
"""Suppressions in a health message, those made through the broker first; `status` lists all of them."""

HEALTH_LASTS = 5
"""Health messages that may fail to come before the broker drops the last one (MQTT 5)."""

CLOCK_S = 60.0
"""Seconds between two looks at whether the clock is synchronised."""

logger = logging.getLogger(__name__)


class HealthMonitor:
    """The health of a running agent.

    ``clock`` returns True if the system's clock is synchronised and None if that is unknown. From the beginning on, and
    then once a minute, ``agent.alerter.clock`` follows it, so that each alert says how far its times can be trusted.
    ``more`` returns the counters of what is around the agent.
    """

    def __init__(
        self,
        agent: Agent,
        interfaces: Interfaces,
        publisher: Publisher | None,
        *,
        clock: Callable[[], bool | None] = synchronised,
        more: Callable[[], dict[str, int]] = dict,
    ) -> None:
        self._agent, self._interfaces, self._publisher, self._clock = agent, interfaces, publisher, clock
        self._more = more
        self._next, self._frames = 0.0, 0
        self.refused = ""
        """The reason why the configuration that was read last is not in use; "" if it is."""
        self._cpu_s, self._past, self._drops = 0.0, time.monotonic(), 0
        self._down: list[str] = []
        self._surroundings = Attachment(interfaces.names, agent.networks, self._past)
        self.counters = self._surroundings.counters
        self._clock_due = 0.0
        self._look_at_clock(self._past)

    def look(self, rows: Rows) -> None:
        """Notice what rows show of how the interfaces are attached."""
        self._surroundings.look(rows)

    @property
    def _every_s(self) -> float:
        return self._publisher.health_s if self._publisher else 60.0

    def now(self) -> None:
        """Let the next `beat` publish health, whenever it was due."""
        self._next = 0.0

    def beat(self, now: float) -> None:
        """Look at the system's clock and publish health where that is due at ``now``, seconds of the steady clock.

        Health is due, too, as soon as another set of interfaces is captured.
        """
        self._look_at_clock(now)
        down = [state.name for state in self._interfaces.states() if not state.captured]
        if now < self._next and down == self._down:
            return
        self._down = down
        self._next = now + self._every_s
        frames, captured = self._agent.extractor.counts()["frames"], self._interfaces.count()
        self._surroundings.beat(now, frames)
        lost = captured["dropped"] + captured["interface_dropped"]
        if lost > self._drops:
            logger.warning(
                "%d frames were dropped before they could be read, %d since the start", lost - self._drops, lost
            )
        if self._publisher:
            health = messages.encode(self.document().document())
            self._publisher.link.retain("health", health, qos=0, expires_s=int(HEALTH_LASTS * self._every_s))
        self._frames, self._cpu_s, self._past, self._drops = frames, cpu_s(), now, lost

    def document(self) -> messages.Health:
        """Return how the agent is doing now; rates are those since the last beat."""
        counts, captured, publisher = self._agent.counts(), self._interfaces.count(), self._publisher
        passed = max(time.monotonic() - self._past, 1e-3)
        lost = captured["dropped"] + captured["interface_dropped"] - self._drops
        taken = counts["frames"] - self._frames
        allowed = publisher.control.suppressions.documents() if publisher and publisher.control else []
        return messages.Health(
            t_ns=time.time_ns(),
            pps=taken / passed,
            drop_pct=100.0 * lost / max(taken + lost, 1),
            cpu=(cpu_s() - self._cpu_s) / passed,
            rss_mb=resident_mb(),
            episodes_open=self._agent.alerter.open_episodes,
            interfaces=self._interfaces_now(),
            scoring=self._agent.detector.step,
            counters=counts | captured | self.counters | self._more() | (publisher.counts() if publisher else {}),
            outbox_depth=publisher.outbox.depth() if publisher else 0,
            model=self._agent.alerter.model.version,
            allowed=tuple(sorted(allowed, key=lambda entry: bool(entry["origin"] != "broker"))[:HEALTH_ENTRIES]),
            allowed_entries=len(allowed),
            config_refused=self.refused,
            site=self._agent.alerter.site,
        )

    def _interfaces_now(self) -> tuple[messages.InterfaceHealth, ...]:
        """Return how each interface is doing; its time follows the system's clock, which may be set after the start."""
        began_ns = time.time_ns() - time.monotonic_ns()
        return tuple(
            messages.InterfaceHealth(state.name, state.captured, began_ns + int(1e9 * state.since), state.reason)
            for state in self._interfaces.states()
        )

    def _look_at_clock(self, now: float) -> None:
        """Let alerts say `unsynced` exactly while the system says that its clock is not synchronised."""
        if now < self._clock_due:
            return
        self._clock_due = now + CLOCK_S
        alerter, before = self._agent.alerter, self._agent.alerter.clock
        alerter.clock = "unsynced" if self._clock() is False else "synced"
        if alerter.clock == before:
            return
        if alerter.clock == "unsynced":
            logger.warning("the system's clock is not synchronised: alerts say so, and their times may be wrong")
        else:
            logger.info("the system's clock is synchronised")
