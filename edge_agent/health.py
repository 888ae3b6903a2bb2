"""How the agent says that it is well: a health message each minute, and warnings that are worth a line in the log."""

import logging
import time

from edge_agent.agent import Agent
from edge_agent.capture.attach import Surroundings
from edge_agent.capture.features import Rows
from edge_agent.capture.sources import Interfaces
from edge_agent.contract import messages
from edge_agent.publisher import Publisher
from edge_agent.system import cpu_s, resident_mb

HEALTH_ENTRIES = 8
"""Entries of the allow list in a health message, first those of the broker; `status` tells all."""

HEALTH_LASTS = 5
"""Health messages that may be missing before a broker forgets the last one (MQTT 5)."""

logger = logging.getLogger(__name__)


class HealthMonitor:
    """What the agent says of itself each minute, and warnings that are worth a line in the log once."""

    def __init__(self, agent: Agent, interfaces: Interfaces, publisher: Publisher | None) -> None:
        self._agent, self._interfaces, self._publisher = agent, interfaces, publisher
        self._next, self._frames = 0.0, 0
        self.refused = ""  # why a configuration was
        self._cpu_s, self._past, self._drops = 0.0, time.monotonic(), 0
        self._surroundings = Surroundings(interfaces.names, agent.networks, self._past)
        self.counters = self._surroundings.counters

    def look(self, rows: Rows) -> None:
        """Notice what the frames tell of how the interfaces are attached."""
        self._surroundings.look(rows)

    @property
    def _every_s(self) -> float:
        return self._publisher.health_s if self._publisher else 60.0

    def now(self) -> None:
        """Let health be due at once."""
        self._next = 0.0

    def beat(self, now: float) -> None:
        """Send health when it is due."""
        if now < self._next:
            return
        self._next = now + self._every_s
        frames, captured = self._agent.extractor.counts()["frames"], self._interfaces.count()
        self._surroundings.beat(now, frames)
        lost = captured["dropped"] + captured["interface_dropped"]
        if lost > self._drops:
            logger.warning("%d frames were dropped before they could be read, %d in all", lost - self._drops, lost)
        if self._publisher:
            health = messages.encode(self.document().document())
            self._publisher.link.retain("health", health, qos=0, expires_s=int(HEALTH_LASTS * self._every_s))
        self._frames, self._cpu_s, self._past, self._drops = frames, cpu_s(), now, lost

    def document(self) -> messages.Health:
        """How things are now; rates are of the time since the last beat."""
        counts, captured, publisher = self._agent.counts(), self._interfaces.count(), self._publisher
        passed = max(time.monotonic() - self._past, 1e-3)
        lost = captured["dropped"] + captured["interface_dropped"] - self._drops
        taken = counts["frames"] - self._frames
        allowed = publisher.control.allowed.documents() if publisher and publisher.control else []
        return messages.Health(
            t_ns=time.time_ns(),
            pps=taken / passed,
            drop_pct=100.0 * lost / max(taken + lost, 1),
            cpu=(cpu_s() - self._cpu_s) / passed,
            rss_mb=resident_mb(),
            episodes_open=self._agent.alerter.open_episodes,
            interfaces_down=tuple(self._interfaces.down),
            scoring=self._agent.detector.step,
            counters=counts | captured | self.counters | (publisher.counts() if publisher else {}),
            outbox_depth=publisher.outbox.depth() if publisher else 0,
            model=self._agent.alerter.model.version,
            allowed=tuple(sorted(allowed, key=lambda entry: bool(entry["origin"] != "broker"))[:HEALTH_ENTRIES]),
            allowed_entries=len(allowed),
            config_refused=self.refused,
        )
