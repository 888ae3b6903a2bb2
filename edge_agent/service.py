"""The agent as a service: the live loop, reading the configuration again, and notifications to systemd."""

import gc
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from edge_agent.agent import BATCH, Agent
from edge_agent.capture.features import give_back_memory
from edge_agent.capture.sources import Interfaces, Source
from edge_agent.config import LIVE, AgentConfig, changed
from edge_agent.contract.messages import MAX_STORED
from edge_agent.control import Control
from edge_agent.detection.device_document import budget
from edge_agent.handlers import relearn, send_evidence, send_test_alert, teach
from edge_agent.health import HealthMonitor
from edge_agent.learning_store import LearningStore
from edge_agent.publisher import Publisher

WAIT_S = 0.25
"""Longest wait of the live loop for a frame, and so the longest delay of a stop or of anything else that is due."""

STEP_NS = 60_000_000_000
"""Nanoseconds from which on a change of the clock counts as a step; NTP moves it by less, bit by bit."""

logger = logging.getLogger(__name__)


def run(
    agent: Agent,
    interfaces: Interfaces,
    give: Callable[..., None],
    stop: threading.Event,
    publisher: Publisher | None = None,
    *,
    save_s: float = 600.0,
    reload: "Reload | None" = None,
    more: Callable[[], dict[str, int]] = dict,
) -> dict[str, int]:
    """Judge the packets of live interfaces until ``stop`` is set; then end the open episodes.

    ``give`` takes alerts as its arguments; it gets the last ones all at once, so that one write stores them all. What
    is learnt is stored in the publisher's state every ``save_s`` seconds and at the end. ``reload`` is set when the
    configuration is to be read again. ``more`` returns counters that health shall have, too. Returns the counters that
    neither ``agent`` nor ``interfaces`` nor ``publisher`` has, ``more`` among them.

    The watchdog of the service manager is notified from this very loop, so that an agent whose loop hangs is restarted.
    """
    systemd, clock = ServiceNotifier(), ClockSteps()
    learning = LearningStore(
        lambda: agent.devices, agent.extractor, publisher, save_s, alarmed=lambda: agent.alerter.alarmed
    )
    health = HealthMonitor(agent, interfaces, publisher, more=lambda: more() | learning.counts())
    control = publisher.control if publisher else None
    if publisher and control:
        _take_commands(agent, give, publisher, control, health)

    def take(source: Source) -> int:
        rows = agent.extractor.push(source, BATCH)
        _follow(
            clock, agent
        )  # after the packets were taken: none of them is from after a step that is not noticed here
        if len(rows):
            health.look(rows)
            for alert in agent.judge(rows):
                give(alert)
        return len(rows)

    gc.collect()
    give_back_memory()
    systemd.ready()
    latest = time.monotonic()
    try:
        while not stop.is_set():
            now = time.monotonic()
            if interfaces.each(take, WAIT_S):
                latest = now
            elif now - latest >= 1.0:  # nobody sends: live packets have this clock's time
                for alert in agent.tick(time.time_ns()):
                    give(alert)
            if control and control.poll(now):
                for alert in agent.alerter.reconsider():
                    give(alert)
                health.now()
            if reload and reload.wanted.is_set():
                health.refused = reload.read(agent, publisher)
                health.now()
            if publisher:
                publisher.check()
            systemd.beat(now)
            health.beat(now)
            learning.beat(now)
    finally:
        systemd.send("STOPPING=1")
        give(*agent.finish())
        if control:
            control.close()
        learning.finish()
        if publisher:
            publisher.stop()  # the broker gets the last messages while the disk is written
        learning.close()
    return health.counters | more() | learning.counts()


def listed(agent: Agent) -> list[dict[str, Any]]:
    """Return the devices for `status`, as many as a document that stays on the gateway has room for."""
    document = agent.devices.document(time.time_ns(), alarmed=agent.alerter.alarmed, most_bytes=MAX_STORED)
    devices: list[dict[str, Any]] = document["devices"]
    return devices


def _take_commands(
    agent: Agent, give: Callable[..., None], publisher: Publisher, control: Control, health: HealthMonitor
) -> None:
    """Let commands act on the parts of the agent, and `status` show them."""
    agent.alerter.suppressions = control.suppressions
    control.describe("health", lambda: health.document().document())
    control.describe("devices", lambda: listed(agent))
    control.describe("budget", lambda: budget(agent.devices.decision))
    control.describe("broker", publisher.line)
    control.register("test-alert", lambda command, origin: send_test_alert(agent, give, command, origin))
    control.register("evidence", lambda command, origin: send_evidence(agent, control, command, origin))
    control.teach_with(lambda device, activities, raised: teach(agent.devices, device, activities, raised))
    control.register("learn", lambda command, _: relearn(agent.devices, control.device(command.arguments["device"])))


class Reload:
    """A configuration that can be read again while the agent runs. A new one is taken up whole or not at all.

    ``read_again`` returns the configuration, or the reason why it cannot be read. ``wanted`` may be set by a signal
    handler.
    """

    def __init__(self, config: AgentConfig, read_again: Callable[[], "AgentConfig | str"]) -> None:
        self._config, self._read_again, self.wanted = config, read_again, threading.Event()

    def read(self, agent: Agent, publisher: Publisher | None) -> str:
        """Read the configuration again and let agent and publisher take it up.

        Returns "", or the reason why the configuration in use stays, which is logged.
        """
        self.wanted.clear()
        new = self._read_again()
        if isinstance(new, str):
            return self._refuse(new)
        keys = changed(self._config, new)
        if fixed := [key for key in keys if key not in LIVE]:
            return self._refuse(f"{', '.join(fixed)}: a change of this needs a restart")
        agent.change(new)
        if publisher:
            publisher.change(new)
        self._config = new
        logger.info(
            "the configuration was read again: %s", f"{', '.join(keys)} taken up" if keys else "nothing has changed"
        )
        return ""

    def _refuse(self, reason: str) -> str:
        logger.error("the changed configuration is refused, the one in use stays: %s", reason)
        return reason


class ClockSteps:
    """Steps forward of the system's clock, seen against the steady clock; ``wall`` and ``steady`` return ns."""

    def __init__(self, wall: Callable[[], int] = time.time_ns, steady: Callable[[], int] = time.monotonic_ns) -> None:
        self._wall, self._steady = wall, steady
        self._lead_ns = wall() - steady()

    def forward(self) -> int:
        """Return by how many ns the clock was set forward since the last call; 0 for less than `STEP_NS`."""
        lead_ns = self._wall() - self._steady()
        step_ns, self._lead_ns = lead_ns - self._lead_ns, lead_ns
        return step_ns if step_ns >= STEP_NS else 0


def _follow(clock: ClockSteps, agent: Agent) -> None:
    """Let the agent know when the system's clock was set forward."""
    if step_ns := clock.forward():
        logger.warning("the system's clock was set forward by %.0f s; what is learnt goes on", step_ns / 1e9)
        agent.clock_set_forward(step_ns)


class ServiceNotifier:
    """Notifies systemd (sd_notify(3)) when it supervises this process: ready, alive, stopping."""

    def __init__(self) -> None:
        where = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + where[1:] if where.startswith("@") else where
        self._every_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6 / 4
        self._next = 0.0

    def ready(self) -> None:
        """Report that capturing has begun."""
        self.send("READY=1")

    def beat(self, now: float) -> None:
        """Report, four times in the watchdog's time, that the loop still runs; ``now`` is the steady clock."""
        if self._every_s and now >= self._next:
            self._next = now + self._every_s
            self.send("WATCHDOG=1")

    def send(self, text: str) -> None:
        """Send one message; a manager that does not listen is no reason to stop."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
                line.settimeout(0.1)
                line.sendto(text.encode(), self._address)
        except OSError as error:
            logger.warning("systemd could not be notified (%s): %s", text, error)
