"""The agent: wires source, extractor, detector and alerter, and counts what goes through."""

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from edge_agent.capture.features import Extractor, Rows
from edge_agent.capture.sources import Source, open_file
from edge_agent.config import AgentConfig, EvidenceConfig
from edge_agent.contract.alert import Alert, ModelInfo
from edge_agent.contract.bounds import VOTE_LATE_S
from edge_agent.contract.bundle import Bundle
from edge_agent.delivery.alerts import Alerter
from edge_agent.delivery.evidence import EvidenceStore
from edge_agent.detection.checkins import CheckInRule, CheckIns
from edge_agent.detection.detector import Detector
from edge_agent.detection.devices import Devices
from edge_agent.learning_store import recall, seen_path
from edge_agent.state import State

BATCH = 4096
"""Frames taken at a time: large enough for the models' batches, small enough that an alert is not late."""

GATHERED_NS = 1_000_000_000
"""Frames that are older than this have certainly been taken when the loop finds that nobody sends."""

logger = logging.getLogger(__name__)


class Agent:
    """Packets in, alerts out, for one bundle.

    Ids of alerts are drawn from the gateway's id and the bundle's hash: the same packets give the same alerts, so that
    a replay delivered twice is stored once. For that, ``seed`` must be given too: which streams a full table gives up
    is drawn by it. Live it must not be, lest an attacker choose streams that collide. What was learnt of devices is
    taken up from ``state`` where there is one; `run` keeps it there. ``evidence`` has the packets around alerts kept on
    the disk; EvidenceError when they cannot be.
    """

    def __init__(
        self,
        config: AgentConfig,
        bundle: Bundle,
        *,
        seed: int | None = None,
        state: State | None = None,
        evidence: EvidenceConfig | None = None,
    ):
        sizes, learning, self.networks = config.extractor, config.learning, config.networks
        self.extractor = Extractor(sizes.max_streams, max_devices=sizes.max_devices, seed=seed)
        self.evidence: EvidenceStore | None = None
        if evidence and evidence.path:
            self.extractor.keep(evidence.ring_kb << 10, evidence.seconds + VOTE_LATE_S, evidence.payload)
            cut, most = self.extractor.cut, evidence.max_mb << 20
            self.evidence = EvidenceStore(evidence.path, cut, seconds=evidence.seconds, most_bytes=most)
        if state:
            state.damaged += not recall(self.extractor, seen_path(state.path))
        self.devices = Devices(
            bundle,
            names=config.names,
            min_s=60.0 * learning.minutes,
            state=state,
            most_bytes=int(learning.kept_mb * (1 << 20)),
        )
        self.detector = Detector(
            bundle,
            config.networks,
            learn=self.devices.limits_of if learning.enabled else False,
            max_rows_per_s=config.scoring.max_rows_per_s,
        )
        if learning.enabled:
            self.devices.carry_over(self.detector.vote)
        self._step = self.detector.step
        slow = config.checkins
        self.checkins = CheckIns(config.networks, CheckInRule(slow.learn_s)) if slow.enabled else None
        self.alerter = Alerter(
            config.gateway,
            config.site,
            ModelInfo(bundle.manifest.version, bundle.sha256, bundle.manifest.generated),
            version("botwatch"),
            names=config.names,
            update_s=config.alerts.update_s,
            end_s=config.alerts.end_s,
            max_open=config.alerts.max_open,
            evidence=self.evidence,
            rng=random.Random(f"{config.gateway} {bundle.sha256}"),  # ids must be distinct, not secret
        )

    def alerts(self, source: Source, seen: Callable[[int], None] = lambda frames: None) -> Iterator[Alert]:
        """Alerts of a source's packets, as they come; ``seen`` is told how many rows each step took.

        CaptureError when the source breaks off; what came before it has been judged.
        """
        while frames := len(rows := self.extractor.push(source, BATCH)):
            yield from self.judge(rows)
            del rows  # so that the next ones take their place, which the processor's cache holds
            seen(frames)

    def judge(self, rows: Rows) -> Iterator[Alert]:
        """Alerts of rows that were just extracted."""
        detections = self.detector.observe(rows)
        if self.detector.step != self._step:
            shed = self.detector.counters["shed"]
            logger.warning("scoring: %s, was %s; %d rows shed so far", self.detector.step, self._step, shed)
            self._step = self.detector.step
        for detection in detections:
            self._keep(detection.t_ns)
            yield from self.alerter.consider(detection)
        for detection in self.checkins.observe(rows) if self.checkins else ():
            self._keep(detection.t_ns)
            yield from self.alerter.consider(detection)
        latest = int(rows.meta["t_ns"][-1])
        self._keep(latest)
        yield from self.alerter.tick(latest)

    def tick(self, t_ns: int) -> Iterator[Alert]:
        """Alerts that are due at packet time ``t_ns`` though no packet came."""
        for detection in self.detector.tick(t_ns):
            yield from self.alerter.consider(detection)
        self._keep(t_ns - GATHERED_NS)
        yield from self.alerter.tick(t_ns)

    def _keep(self, t_ns: int) -> None:
        """Finish evidence that is due, before an alert of that time speaks of it."""
        if self.evidence:
            self.evidence.tick(t_ns)

    def finish(self) -> list[Alert]:
        """The last alerts: nothing more will come, so every open episode ends."""
        told = [alert for detection in self.detector.finish() for alert in self.alerter.consider(detection)]
        return told + self.alerter.finish()

    def counts(self) -> dict[str, int]:
        """Counters of all parts, for a report and for health messages."""
        told = self.alerter.counts
        alerts = {f"alerts_{state}": getattr(told, state) for state in ("new", "update", "end")}
        bounds = {"episodes_evicted": told.evicted, "foreign_class": told.foreign_class}
        bounds |= {"episodes_suppressed": told.suppressed, "episodes_spoke_up": told.spoke_up}
        kept = self.evidence.counters() if self.evidence else {}
        slow = self.checkins.counters if self.checkins else {}
        own = {**self.detector.counters, **self.devices.counts, **slow}
        return {**self.extractor.counts(), **own, **alerts, **bounds, **kept}


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


def report(counts: dict[str, int], seconds: float) -> Iterable[str]:
    """The closing lines of a replay: what everybody asks for, then whatever else was counted."""
    rate = counts["frames"] / seconds if seconds else 0.0
    yield f"{counts['frames']:,} packets in {seconds:.2f} s ({rate:,.0f} packets/s)"
    evicted = sum(value for key, value in counts.items() if "evicted" in key)
    first = {key: counts[key] for key in ("rows", "malformed", "devices")} | {"evicted": evicted}
    rest = {key: value for key, value in counts.items() if value and key not in first and key != "frames"}
    yield ", ".join(f"{key} {value:,}" for key, value in (first | rest).items())
