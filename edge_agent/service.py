"""The live loop: takes frames until told to stop, and lets everything come round that is due."""

import gc
import logging
import os
import socket
import threading
import time
from collections.abc import Callable

from edge_agent.agent import BATCH, Agent
from edge_agent.capture.features import give_back_memory
from edge_agent.capture.sources import Interfaces, Source
from edge_agent.config import LIVE, AgentConfig, changed
from edge_agent.handlers import relearn, send_evidence, send_test_alert
from edge_agent.health import HealthMonitor
from edge_agent.learning_store import LearningStore
from edge_agent.publisher import Publisher

WAIT_S = 0.25
"""How long the live loop waits for a frame; the longest a stop, a beat or an end that is due may be late."""

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
) -> dict[str, int]:
    """Judge what comes in on live interfaces until ``stop`` is set; episodes still open are ended then.

    ``give`` takes alerts, each as an argument; the last ones come all at once, so that one write keeps them all.
    Returns what was counted that neither ``agent`` nor ``interfaces`` nor ``publisher`` counts.
    What was learnt is kept in the publisher's state every ``save_s`` seconds, and at the end. ``reload`` says when
    there is another configuration.

    The service manager is told that all is well from this very loop, so that it restarts an agent whose loop hangs.
    """
    watched = ServiceNotifier()
    health = HealthMonitor(agent, interfaces, publisher)
    memory = LearningStore(agent.devices, agent.extractor, publisher, save_s)
    control = publisher.control if publisher else None
    if publisher and control:
        agent.alerter.silence = control.allowed
        control.describe("health", lambda: health.document().document())
        control.describe("devices", lambda: agent.devices.document(time.time_ns())["devices"])
        control.describe("broker", publisher.line)
        control.register("test-alert", lambda command, origin: send_test_alert(agent, give, command, origin))
        control.register("evidence", lambda command, origin: send_evidence(agent, control, command, origin))
        control.register(
            "learn", lambda command, _: relearn(agent.devices, control.device(command.arguments["device"]))
        )

    def take(source: Source) -> int:
        rows = agent.extractor.push(source, BATCH)
        if len(rows):
            health.look(rows)
            for alert in agent.judge(rows):
                give(alert)
        return len(rows)

    gc.collect()
    give_back_memory()
    watched.ready()
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
            watched.beat(now)
            health.beat(now)
            memory.beat(now)
    finally:
        watched.say("STOPPING=1")
        give(*agent.finish())
        if control:
            control.close()
        memory.finish()
        if publisher:
            publisher.stop()  # the broker has its last words while the disk is written
        memory.close()
    return health.counters


class Reload:
    """A configuration that can be read again while running: what it says is taken up whole, or not at all.

    ``again`` reads it and gives it, or says why that cannot be done. ``wanted`` may be set from a signal handler.
    """

    def __init__(self, config: AgentConfig, again: Callable[[], "AgentConfig | str"]) -> None:
        self._config, self._again, self.wanted = config, again, threading.Event()

    def read(self, agent: Agent, publisher: Publisher | None) -> str:
        """Read it, and have both go by it; why not, in one line that is logged, or "" when they do."""
        self.wanted.clear()
        new = self._again()
        if isinstance(new, str):
            return self._refuse(new)
        keys = changed(self._config, new)
        if fixed := [key for key in keys if key not in LIVE]:
            return self._refuse(f"{', '.join(fixed)}: changed, which needs a restart; nothing was taken up")
        told = new.alerts
        agent.alerter.change(new.site, new.names, told.update_s, told.end_s, told.max_open)
        agent.devices.rename(new.names)
        if publisher:
            publisher.change(new)
        self._config = new
        logger.info("configuration read again: %s", f"{', '.join(keys)} taken up" if keys else "nothing has changed")
        return ""

    def _refuse(self, why: str) -> str:
        logger.error("configuration refused, the one before stays: %s", why)
        return why


class ServiceNotifier:
    """Word to systemd, if it runs us (sd_notify(3)): ready, alive, stopping."""

    def __init__(self) -> None:
        where = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + where[1:] if where.startswith("@") else where
        self._every_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6 / 4
        self._next = 0.0

    def ready(self) -> None:
        """Capturing has begun."""
        self.say("READY=1")

    def beat(self, now: float) -> None:
        """The loop has come round."""
        if self._every_s and now >= self._next:
            self._next = now + self._every_s
            self.say("WATCHDOG=1")

    def say(self, text: str) -> None:
        """One message; a manager that does not listen is no reason to stop."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
                line.settimeout(0.1)
                line.sendto(text.encode(), self._address)
        except OSError as error:
            logger.warning("cannot tell systemd %s: %s", text, error)
