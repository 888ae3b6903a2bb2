"""Alerts on their way out: into the outbox, and from there to the broker by one thread.

The packet loop hands `Alert`s over and does not wait for the network. Commands come in over the same connection; what
they mean is `edge_agent.control`'s knowledge.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from edge_agent.config import AgentConfig
from edge_agent.contract.alert import Alert
from edge_agent.contract.messages import MessageError, decode, encode, topic
from edge_agent.control import Control, commands_filter
from edge_agent.delivery.alerts import cut_short
from edge_agent.delivery.link import Link
from edge_agent.delivery.outbox import Outbox
from edge_agent.state import State, StateError, StateUnwritableError

STOP_S = 1.1
"""Longest time that the end of the agent waits for the broker, counted from when the last alerts are in the outbox."""

CLAIM_S = 5.0
"""Longest time to wait for a command line that uses the state file at this moment."""

READ_S = 15.0
"""Longest time to wait at the start for a state file that cannot be read yet, as on a disk that is still read-only."""

LOOK_S = 0.5
"""Seconds between two attempts to read it; `State` itself opens the file less often."""

logger = logging.getLogger(__name__)


class Publisher:
    """Stores alerts in the outbox and sends them to the broker in a thread of its own.

    With ``controlled`` it takes commands, too, and ends the episodes that an agent before it left open. A ``guest``
    takes none from the broker, see `Link`. StateError when another agent uses the same state file.

    With ``stop`` a state file that cannot be read is waited for, until that is set or `READ_S` have passed: an agent
    that goes on without it has forgotten its devices for good, and the episodes that were open.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        controlled: bool = False,
        guest: str = "",
        stop: threading.Event | None = None,
    ):
        self._topic, self.health_s = topic(config.gateway, "alert", base=config.broker.base), config.health_s
        folder = config.outbox.path.absolute().parent
        if not os.path.isdir(folder):
            raise StateError(f"{config.outbox.path}: the folder {folder} does not exist, or may not be looked into")
        self.state = State(config.outbox.path)
        if stop:
            self._wait_until_readable(stop)
        self.outbox = Outbox(self.state, config.outbox.max_rows, config.outbox.max_bytes)
        if not self.state.claim(CLAIM_S):
            raise StateError(f"{config.outbox.path}: another agent uses it")
        self.link = Link(
            config.broker,
            self.outbox,
            gateway=config.gateway,
            agent=version("botwatch"),
            filters={commands_filter(config): bool(config.commands)} if controlled and not guest else {},
            guest=guest,
        )
        self.control = Control(config, self.state, self.outbox, self.link) if controlled else None
        self._cut_short = self._end_open_episodes(config.alerts.end_s) if controlled else 0
        self._stop, self._stopped, self._tests = threading.Event(), 0.0, 0
        self._broken: Exception | None = None
        self._thread = threading.Thread(target=self._carry, name="link", daemon=True)

    def _wait_until_readable(self, stop: threading.Event) -> None:
        deadline, problem = time.monotonic() + READ_S, ""
        while time.monotonic() < deadline and not stop.is_set():
            try:
                self.state.document("devices")
            except StateUnwritableError as error:
                if not problem:
                    logger.warning(
                        "the state file cannot be read yet, and the start waits %.0f s at most: %s", READ_S, error
                    )
                problem = str(error)
                stop.wait(LOOK_S)
                continue
            if problem:
                logger.info("%s can be used now", self.state.path)
            return

    def give(self, *alerts: Alert) -> None:
        """Store alerts until the broker has taken them; a full outbox drops updates first."""
        rows: list[tuple[str, bytes, bool]] = []
        episodes: dict[str, tuple[str, bytes] | None] = {}
        for alert in alerts:
            payload = encode(alert.document())
            rows.append((self._topic, payload, alert.state == "update"))
            episodes[alert.id] = None if alert.state == "end" else (self._topic, payload)
        self.outbox.put(rows, episodes)
        for alert in alerts:
            if alert.test:
                self._tests += 1
            elif self.control:
                self.control.remember(alert)

    def _end_open_episodes(self, end_s: float) -> int:
        """Send the ends of episodes that were open when the agent before this one was killed; returns their number.

        Without them the device would stay under alarm at the collector for good.
        """
        episodes, ends, now_ns = self.outbox.open_episodes(), [], time.time_ns()
        for id, where, payload in episodes:
            try:
                end = cut_short(Alert.read(decode(payload)), now_ns, end_s)
                ends.append((where, encode(end.document()), False))
            except MessageError as error:  # of another version, or damaged
                self.state.damaged += 1
                logger.error("episode %s stays open at the collector: its last alert cannot be read: %s", id, error)
        self.outbox.put(ends, dict.fromkeys(id for id, _, _ in episodes))
        if episodes:
            logger.warning(
                "the agent before this one was killed or lost power: %d episodes that it left open are ended now",
                len(episodes),
            )
        return len(episodes)

    def counts(self) -> dict[str, int]:
        """Return the counters of alerts and commands that did not go as planned, and of test alerts."""
        lost, line = self.outbox.counts, self.link.counts
        counts = {"outbox_dropped": lost.dropped, "outbox_dropped_updates": lost.dropped_updates}
        counts |= {"outbox_unwritable": lost.unwritable, "outbox_in_memory": self.outbox.unsaved()}
        counts |= {"outbox_set_aside": self.outbox.aside(), "documents_set_aside": line.documents_set_aside}
        counts |= {"client_id_taken": line.client_id_taken}
        counts |= {"state_damaged": self.state.damaged, "episodes_cut_short": self._cut_short}
        counts["test_alerts"] = self._tests
        if self.control:
            counts |= self.control.counts
            counts["commands_dropped"] += line.commands_lost
            counts |= {"replies": line.replies, "replies_lost": line.replies_lost}
        return counts

    def stop(self) -> None:
        """Let the connection send its last messages and end; `running` waits for that, `STOP_S` from now at most."""
        if not self._stop.is_set():
            self._stopped = time.monotonic()
            self._stop.set()
            self.link.wake()

    def check(self) -> None:
        """Raise StateError when alerts are no longer sent: an agent that goes on would be silent for good."""
        if self._broken:
            raise StateError(f"delivery has ended: {self._broken}") from self._broken

    def _carry(self) -> None:
        try:
            self.link.run(self._stop)
        except Exception as error:
            if isinstance(error, StateError) and self._stop.is_set():
                return  # the end has not waited for this thread, and closed the state
            logger.exception("delivery has ended: no alert is sent any more, and the agent stops")
            self._broken = error

    def change(self, config: AgentConfig) -> None:
        """Use another configuration from now on; its `config.LIVE` keys may differ."""
        self.health_s = config.health_s
        if self.control:
            self.control.change(config)

    def line(self) -> dict[str, Any]:
        """Return the state of the connection to the broker, for `status`."""
        link = self.link
        return {
            "address": link.config.address,
            "client_id": link.client_id,
            "connected": link.connected,
            "protocol": link.protocol,
            "trouble": link.trouble,
        }

    @contextmanager
    def running(self) -> Iterator["Publisher"]:
        """Connect and send until the block ends; what the broker did not take stays in the outbox."""
        self._thread.start()
        try:
            yield self
        finally:
            self.stop()
            self._thread.join(max(self._stopped + STOP_S - time.monotonic(), 0.0))
            if self._thread.is_alive():
                logger.info(
                    "broker %s is slow, and the agent ends without it; alerts that it has not taken stay in the outbox",
                    self.link.config.address,
                )
            if left := self.outbox.save():
                logger.error("%d alerts are lost: the broker has not taken them, and the disk cannot be written", left)
            self.state.close()
