"""The agent: wires source, extractor, detector and alerter, and counts what goes through."""

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edge_agent.alerts import Alerter
from edge_agent.capture import Source, open_file
from edge_agent.config import AgentConfig
from edge_agent.contract import messages
from edge_agent.contract.bundle import Bundle
from edge_agent.detector import Detector
from edge_agent.features import Extractor
from edge_agent.link import Link
from edge_agent.outbox import Outbox
from edge_agent.state import State

BATCH = 1024
"""Frames taken at a time: large enough for the models' batches, small enough that an alert is not late."""

Alert = dict[str, Any]


class Agent:
    """Packets in, alerts out, for one bundle.

    Ids of alerts are drawn from the gateway's id and the bundle's hash: the same packets give the same alerts, so that
    a replay delivered twice is stored once. For that, ``seed`` must be given too: which streams a full table gives up
    is drawn by it. Live it must not be, lest an attacker choose streams that collide.
    """

    def __init__(self, config: AgentConfig, bundle: Bundle, *, seed: int | None = None):
        sizes = config.extractor
        self.extractor = Extractor(sizes.max_streams, max_devices=sizes.max_devices, seed=seed)
        self.detector = Detector(bundle, config.networks)
        self.alerter = Alerter(
            config.gateway,
            config.site,
            messages.Model(bundle.manifest.version, bundle.sha256, bundle.manifest.generated),
            version("botwatch"),
            names=config.names,
            update_s=config.alerts.update_s,
            end_s=config.alerts.end_s,
            max_open=config.alerts.max_open,
            rng=random.Random(f"{config.gateway} {bundle.sha256}"),  # ids must be distinct, not secret
        )

    def alerts(self, source: Source, seen: Callable[[int], None] = lambda frames: None) -> Iterator[Alert]:
        """Alerts of a source's packets, as they come; ``seen`` is told how many rows each step took.

        CaptureError when the source breaks off; what came before it has been judged.
        """
        while len(rows := self.extractor.push(source, BATCH)):
            for detection in self.detector.observe(rows):
                yield from self.alerter.consider(detection)
            yield from self.alerter.tick(int(rows.meta["t_ns"][-1]))
            seen(len(rows))

    def finish(self) -> list[Alert]:
        """The last alerts: nothing more will come, so every open episode ends."""
        told = [alert for detection in self.detector.finish() for alert in self.alerter.consider(detection)]
        return told + self.alerter.finish()

    def counts(self) -> dict[str, int]:
        """Counters of all parts, for a report and for health messages."""
        told = self.alerter.counts
        alerts = {f"alerts_{state}": getattr(told, state) for state in ("new", "update", "end")}
        bounds = {"episodes_evicted": told.evicted, "foreign_class": told.foreign_class}
        return {**self.extractor.counts(), **self.detector.counters, **alerts, **bounds}


def replay(
    agent: Agent,
    files: Sequence[Path],
    give: Callable[[Alert], None],
    seen: Callable[[int], None] = lambda frames: None,
) -> None:
    """Judge capture files one after the other as if they came in live.

    Episodes still open at the end of the last file are ended there. CaptureError when a file cannot be read to its end;
    the alerts of what came before it have been given.
    """
    try:
        for file in files:
            with open_file(file) as source:
                for alert in agent.alerts(source, seen):
                    give(alert)
    finally:
        for alert in agent.finish():
            give(alert)


class Publisher:
    """Alerts into the outbox, and from there to the broker by one thread."""

    def __init__(self, config: AgentConfig):
        self._topic = messages.topic(config.gateway, "alert", base=config.broker.base)
        self._state = State(config.outbox.path)
        self.outbox = Outbox(self._state, config.outbox.max_rows, config.outbox.max_bytes)
        self.link = Link(config.broker, self.outbox, gateway=config.gateway, agent=version("botwatch"))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.link.run, args=(self._stop,), name="link", daemon=True)

    def give(self, alert: Alert) -> None:
        """Keep one alert until the broker has taken it; an update may be dropped first when the outbox is full."""
        state = alert["alert"]["context"]["botwatch"]["state"]
        self.outbox.put(self._topic, messages.encode(alert), droppable=state == "update")

    def counts(self) -> dict[str, int]:
        """Alerts that were dropped because the outbox was full."""
        lost = self.outbox.counts
        return {"outbox_dropped": lost.dropped, "outbox_dropped_updates": lost.dropped_updates}

    @contextmanager
    def running(self) -> Iterator["Publisher"]:
        """Connect and ship until the block ends; what the broker did not take stays in the outbox."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()
            self._state.close()


def report(counts: dict[str, int], seconds: float) -> Iterable[str]:
    """The closing lines of a replay: what everybody asks for, then whatever else was counted."""
    rate = counts["frames"] / seconds if seconds else 0.0
    yield f"{counts['frames']:,} packets in {seconds:.2f} s ({rate:,.0f} packets/s)"
    evicted = sum(value for key, value in counts.items() if "evicted" in key)
    first = {key: counts[key] for key in ("rows", "malformed", "devices")} | {"evicted": evicted}
    rest = {key: value for key, value in counts.items() if value and key not in first and key != "frames"}
    yield ", ".join(f"{key} {value:,}" for key, value in (first | rest).items())
