"""The agent's pipeline: a source's packets become rows, detections, alerts. It is the same live and in a replay."""

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
from edge_agent.contract.counters import grouped
from edge_agent.delivery.alerts import Alerter
from edge_agent.delivery.evidence import EvidenceStore
from edge_agent.detection.checkins import CheckInRule, CheckIns
from edge_agent.detection.detection import Detection
from edge_agent.detection.detector import Detector
from edge_agent.detection.devices import Devices
from edge_agent.learning_store import recall, seen_path
from edge_agent.state import State

BATCH = 4096
"""Frames taken at a time: large enough for the models' batches, small enough that an alert is not late."""

GATHERED_NS = 1_000_000_000
"""Age in ns from which on all frames have certainly been taken when the loop finds no more frames."""

logger = logging.getLogger(__name__)

_SCORING = {
    "all": "every row is scored again",
    "shared": "more packets come than the budget of rows allows, and each device gets its share",
    "sparse": "far more packets come than the budget of rows allows, and fewer than one row in ten is scored",
}


class Agent:
    """Turns packets into alerts.

    Some parts depend on the bundle: the detector, the limits of devices, and the model that alerts name. `take_over`
    changes them in one call. All others outlive a bundle: what devices have been seen doing, open episodes,
    suppressions, evidence, check-ins.

    ``state`` holds what was learnt of devices up to now, and where it is stored again (`learning_store`). ``evidence``
    says where the packets around alerts are stored; EvidenceError when they cannot be.

    With a ``seed`` the same packets give the same alerts, so that a replay that is delivered twice is stored once: by
    it a full table chooses the streams that it evicts, and the ids of alerts are drawn from the gateway's id and the
    bundle's hash. A live agent must not have one: an attacker could choose streams that collide, and the first alert
    after each start would have the same short id.
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
        self._config, self._state, self.networks = config, state, config.networks
        sizes = config.extractor
        self.extractor = Extractor(sizes.max_streams, max_devices=sizes.max_devices, seed=seed)
        self.evidence: EvidenceStore | None = None
        if evidence and evidence.path:
            self.extractor.keep(evidence.ring_kb << 10, evidence.seconds + VOTE_LATE_S, evidence.payload)
            cut, most = self.extractor.cut, evidence.max_mb << 20
            self.evidence = EvidenceStore(evidence.path, cut, seconds=evidence.seconds, most_bytes=most)
        if state:
            state.damaged += not recall(self.extractor, seen_path(state.path))
        slow = config.checkins
        self.checkins = CheckIns(config.networks, CheckInRule(slow.learn_s)) if slow.enabled else None
        self._sha256 = bundle.sha256
        self.devices, self.detector = self._judges(bundle)
        if config.learning.enabled:
            self.devices.carry_over(self.detector.vote)
        self._step = self.detector.step
        self.alerter = Alerter(
            config.gateway,
            config.site,
            _model_info(bundle),
            version("botwatch"),
            names=config.names,
            update_s=config.alerts.update_s,
            end_s=config.alerts.end_s,
            max_open=config.alerts.max_open,
            evidence=self.evidence,
            rng=random.Random(None if seed is None else f"{config.gateway} {bundle.sha256}"),
        )

    def _judges(self, bundle: Bundle) -> tuple[Devices, Detector]:
        """Return what depends on a bundle: the devices with their limits, and the detector that judges by them."""
        config, learning = self._config, self._config.learning
        devices = Devices(
            bundle,
            names=config.names,
            min_s=60.0 * learning.minutes,
            state=self._state,
            most_bytes=int(learning.kept_mb * (1 << 20)),
        )
        detector = Detector(
            bundle,
            config.networks,
            learn=devices.limits_of if learning.enabled else False,
            max_rows_per_s=config.scoring.max_rows_per_s,
        )
        return devices, detector

    def take_over(self, bundle: Bundle) -> list[Alert]:
        """Let another bundle judge from the next batch on; return the alerts that the one in use had still to report.

        It is called between two batches, so no packet is lost. Open episodes go on under their ids. Of every device and
        victim the agent still knows since when it has been seen, what it has opened, and the aftermath of an alarm.
        Windows of votes begin empty, because they rest on the old limits: an attack that goes on is not reported until
        k of its rows are above the new ones. Limits that devices have learnt are calculated anew from their stored
        rows; a device with too few of them learns anew, and at most the minute at hand is lost to learning. Counters go
        on.

        The bundle that is in use already changes nothing. BundleError, `runtime.ModelError` or StateError when the
        bundle cannot be used: then the one in use stays.
        """
        if bundle.sha256 == self._sha256:
            return []
        devices, detector = self._judges(bundle)
        devices.take_over(self.devices, detector.vote if self._config.learning.enabled else None)
        alerts = list(self._consider(self.detector.finish()))
        detector.take_over(self.detector)
        self._sha256, self.devices, self.detector = bundle.sha256, devices, detector
        before, self.alerter.model = self.alerter.model.version, _model_info(bundle)
        logger.info("model %s is in use now, in place of model %s", self.alerter.model.version, before)
        return alerts

    def change(self, config: AgentConfig) -> None:
        """Take up another configuration, of which only `config.LIVE` keys may differ."""
        self._config, alerts = config, config.alerts
        self.alerter.change(config.site, config.names, alerts.update_s, alerts.end_s, alerts.max_open)
        self.devices.rename(config.names)

    def clock_set_forward(self, step_ns: int) -> None:
        """Note that the system's clock was set forward by ``step_ns``, before packets from after that are judged.

        At a boot without a clock of its own a gateway is set forward by days: no device has learnt anything by that.
        """
        for part in (self.detector, self.alerter, self.checkins):
            if part:
                part.clock_set_forward(step_ns)

    def alerts(self, source: Source, seen: Callable[[int], None] = lambda frames: None) -> Iterator[Alert]:
        """Yield the alerts of a source's packets as they come; ``seen`` is called with the number of rows of each step.

        CaptureError when the source breaks off; the packets before that have been judged.
        """
        while frames := len(rows := self.extractor.push(source, BATCH)):
            yield from self.judge(rows)
            del rows  # so that the next ones take their place, which is in the processor's cache
            seen(frames)

    def judge(self, rows: Rows) -> Iterator[Alert]:
        """Yield the alerts of rows that were just extracted."""
        detections = self.detector.observe(rows)
        if self.detector.step != self._step:
            shed = self.detector.counters["shed"]
            logger.warning(
                "scoring changed from %s to %s: %s; %d rows shed so far",
                *(self._step, self.detector.step, _SCORING[self.detector.step], shed),
            )
            self._step = self.detector.step
        yield from self._consider(detections)
        yield from self._consider(self.checkins.observe(rows) if self.checkins else ())
        latest = int(rows.meta["t_ns"][-1])
        self._finish_evidence(latest)
        yield from self.alerter.tick(latest)

    def tick(self, t_ns: int) -> Iterator[Alert]:
        """Yield the alerts that are due at packet time ``t_ns`` though no packet came."""
        for detection in self.detector.tick(t_ns):
            yield from self.alerter.consider(detection)
        self._finish_evidence(t_ns - GATHERED_NS)
        yield from self.alerter.tick(t_ns)

    def finish(self) -> list[Alert]:
        """Return the last alerts: no more packets will come, so every open episode ends."""
        alerts = [alert for detection in self.detector.finish() for alert in self.alerter.consider(detection)]
        return alerts + self.alerter.finish()

    def _consider(self, detections: Iterable[Detection]) -> Iterator[Alert]:
        for detection in detections:
            self._finish_evidence(detection.t_ns)
            yield from self.alerter.consider(detection)

    def _finish_evidence(self, t_ns: int) -> None:
        """Finish evidence that is due at ``t_ns``, before an alert of that time refers to it."""
        if self.evidence:
            self.evidence.tick(t_ns)

    def counts(self) -> dict[str, int]:
        """Return the counters of all parts, for a report and for health messages."""
        counts = self.alerter.counts
        alerts = {f"alerts_{state}": getattr(counts, state) for state in ("new", "update", "end")}
        episodes = {"episodes_evicted": counts.evicted, "foreign_class": counts.foreign_class}
        episodes |= {"episodes_suppressed": counts.suppressed, "episodes_spoke_up": counts.spoke_up}
        checkins = self.checkins.counters if self.checkins else {}
        evidence = self.evidence.counters() if self.evidence else {}
        judged = {**self.detector.counters, **self.devices.counts, **checkins}
        return {**self.extractor.counts(), **judged, **alerts, **episodes, **evidence}


def _model_info(bundle: Bundle) -> ModelInfo:
    return ModelInfo(bundle.manifest.version, bundle.sha256, bundle.manifest.generated)


def replay(
    agent: Agent,
    files: Sequence[Path],
    give: Callable[[Alert], None],
    seen: Callable[[int], None] = lambda frames: None,
) -> None:
    """Judge capture files one after the other as if they came in live, and hand each alert to ``give``.

    Episodes that are open at the end of the last file end there. CaptureError when a file cannot be read to its end;
    the alerts of the packets before that have been given.
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
    """Yield the closing lines of a run: its speed and malformed frames, then each other counter above 0 in words."""
    rate = counts["frames"] / seconds if seconds else 0.0
    yield f"{counts['frames']:,} packets in {seconds:.2f} s ({rate:,.0f} packets/s), {counts['malformed']:,} malformed"
    rest = {key: value for key, value in counts.items() if key not in ("frames", "malformed")}
    counted = [line for _, counters in grouped(rest) for line in counters]
    width = max((len(f"{value:,}") for _, value, _ in counted), default=0)
    for key, value, counter in counted:
        yield f"{value:>{width},}  {counter.words if counter else key}"
