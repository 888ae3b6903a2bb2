"""Alerts on their way out: into the outbox, and from there to the broker by one thread."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from edge_agent.config import AgentConfig
from edge_agent.contract import messages
from edge_agent.control import Control
from edge_agent.delivery.alerts import cut_short
from edge_agent.delivery.link import Link
from edge_agent.delivery.outbox import Outbox
from edge_agent.state import State, StateError

STOP_S = 1.1
"""How long the end waits for the line to the broker, counted from when the last alerts are in the outbox."""

CLAIM_S = 5.0
"""How long to wait for a command line that is at the state file just now."""

Alert = dict[str, Any]

logger = logging.getLogger(__name__)


class Publisher:
    """Alerts into the outbox, and from there to the broker by one thread.

    ``controlled`` says that commands are taken, too; StateError when another agent does so with the same state file.
    """

    def __init__(self, config: AgentConfig, *, controlled: bool = False):
        self._topic, self.health_s = messages.topic(config.gateway, "alert", base=config.broker.base), config.health_s
        self.state = State(config.outbox.path)
        self.outbox = Outbox(self.state, config.outbox.max_rows, config.outbox.max_bytes)
        if controlled and not self.state.claim(CLAIM_S):
            raise StateError(f"{config.outbox.path}: another agent runs with it")
        self.link = Link(
            config.broker,
            self.outbox,
            gateway=config.gateway,
            agent=version("botwatch"),
            commands=controlled and bool(config.commands),
        )
        self.control = Control(config, self.state, self.outbox, self.link) if controlled else None
        self._cut_short = self._end_what_was_open(config.alerts.end_s) if controlled else 0
        self._stop, self._stopped, self._tests = threading.Event(), 0.0, 0
        self._broken: Exception | None = None
        self._thread = threading.Thread(target=self._carry, name="link", daemon=True)

    def give(self, *alerts: Alert) -> None:
        """Keep alerts until the broker has taken them; updates may be dropped first when the outbox is full."""
        rows: list[tuple[str, bytes, bool]] = []
        stories: dict[str, tuple[str, bytes] | None] = {}
        for alert in alerts:
            ours, payload = alert["alert"]["context"]["botwatch"], messages.encode(alert)
            rows.append((self._topic, payload, ours["state"] == "update"))
            stories[ours["id"]] = None if ours["state"] == "end" else (self._topic, payload)
        self.outbox.put_all(rows, stories)
        for alert in alerts:
            if alert["alert"]["context"]["botwatch"].get("test"):
                self._tests += 1
            elif self.control:
                self.control.remember(alert)

    def _end_what_was_open(self, end_s: float) -> int:
        """End the episodes that were open when the agent before this one was killed; how many there were.

        Nobody would end them else: at the collector a device would be under alarm for good.
        """
        stories, ends, now_ns = self.outbox.unfinished(), [], time.time_ns()
        for story, topic, payload in stories:
            try:
                end = messages.encode(cut_short(messages.decode(payload), now_ns, end_s))
                ends.append((topic, end, False))
            except (KeyError, TypeError, ValueError) as error:  # of another version
                logger.error("episode %s cannot be ended, its last alert cannot be read: %r", story, error)
        self.outbox.put_all(ends, dict.fromkeys(story for story, _, _ in stories))
        if stories:
            logger.warning("the last agent ended without a word: %d episodes that were open are ended", len(stories))
        return len(stories)

    def counts(self) -> dict[str, int]:
        """What became of alerts and commands, as far as it was not as it should."""
        lost, line = self.outbox.counts, self.link.counts
        counts = {"outbox_dropped": lost.dropped, "outbox_dropped_updates": lost.dropped_updates}
        counts |= {"outbox_unwritable": lost.unwritable, "outbox_in_memory": self.outbox.unsaved()}
        counts |= {"state_damaged": self.state.damaged, "episodes_cut_short": self._cut_short}
        counts["test_alerts"] = self._tests
        if self.control:
            counts |= self.control.counts
            counts["commands_dropped"] += line.commands_lost
            counts |= {"replies": line.replies, "replies_lost": line.replies_lost}
        return counts

    def stop(self) -> None:
        """Have the line say its last words and end; `running` waits for that, `STOP_S` from now at most."""
        if not self._stop.is_set():
            self._stopped = time.monotonic()
            self._stop.set()
            self.link.wake()

    def check(self) -> None:
        """StateError when alerts are no longer carried: an agent that goes on would be silent for good."""
        if self._broken:
            raise StateError(f"delivery has ended: {self._broken}") from self._broken

    def _carry(self) -> None:
        try:
            self.link.run(self._stop)
        except Exception as error:
            if isinstance(error, StateError) and self._stop.is_set():
                return  # the end has not waited for us, and closed the state
            logger.exception("delivery has ended")
            self._broken = error

    def change(self, config: AgentConfig) -> None:
        """Go by another configuration, whose `config.LIVE` keys may differ."""
        self.health_s = config.health_s
        if self.control:
            self.control.change(config)

    def line(self) -> dict[str, Any]:
        """How the line to the broker is, for `status`."""
        link = self.link
        return {
            "address": link.config.address,
            "connected": link.connected,
            "protocol": link.protocol,
            "trouble": link.trouble,
        }

    @contextmanager
    def running(self) -> Iterator["Publisher"]:
        """Connect and ship until the block ends; what the broker did not take stays in the outbox."""
        self._thread.start()
        try:
            yield self
        finally:
            self.stop()
            self._thread.join(max(self._stopped + STOP_S - time.monotonic(), 0.0))
            if self._thread.is_alive():
                logger.info("not waiting for %s; what it has not taken is kept", self.link.config.address)
            if left := self.outbox.save():
                logger.error("%d alerts are lost: the broker has not taken them and the disk does not", left)
            self.state.close()
