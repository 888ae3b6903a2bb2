"""From detections to alerts: one infected device, one episode, however long it lasts.

An episode begins with a device's first detection (`new`), is repeated at most once a minute while detections go on
(`update`), and ends a minute after the last one (`end`). An episode that an allow or a mute covers is counted and no
alert is made of it; when the device does something that is not covered, a new episode begins. This module knows when an
alert is due and what its totals are; what an alert looks like is `contract.alert`'s knowledge. It has no clock: time is
the packets' time.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edge_agent.contract.alert import (
    CLASSES,
    MAX_FEATURES,
    Alert,
    AlertDevice,
    Clock,
    EpisodeState,
    Evidence,
    ModelInfo,
)
from edge_agent.contract.captures import mac_text
from edge_agent.contract.clock import SteadyClock
from edge_agent.contract.messages import check_id, clean, uuid7
from edge_agent.contract.record import longest
from edge_agent.detection.detection import Detection

if TYPE_CHECKING:  # a test alert does without both
    from edge_agent.delivery.evidence import EvidenceStore
    from edge_agent.delivery.suppressions import Suppressions

_LARGEST = 1e300  # JSON has no infinity

_SENTENCE, _NAME = longest(Alert, "explanation"), longest(AlertDevice, "name")


@dataclass
class AlertCounts:
    """Counters since the start."""

    detections: int = 0
    new: int = 0
    update: int = 0
    end: int = 0
    evicted: int = 0  # episodes ended early because ``max_open`` were open
    clock_steps: int = 0  # jumps of packet time backwards
    foreign_class: int = 0  # detections of a class the contract does not know, reported as `unknown`
    suppressed: int = 0  # episodes of which no alert was made, from their start or from a new allow or mute on
    spoke_up: int = 0  # suppressed episodes that were followed by something that is not covered


@dataclass
class _AlarmTotals:
    """Totals of one alarm of the detector; they start again with its next alarm, those of an episode do not."""

    first_ns: int
    last_ns: int
    count: int
    packets: int
    bytes: int


@dataclass
class _Episode:
    id: str
    latest: Detection
    first_ns: int  # as stamped
    began: int  # steady ns, as are `voted`, `sent` and `updated`
    voted: int
    hold: int  # ns for which the latest detection holds: as configured, or longer where it says so
    sent: int  # the latest alert
    updated: int | None
    alarm: _AlarmTotals
    suppressed: bool = False
    seq: int = 0
    class_sent: str = ""
    past: list[int] = field(default_factory=lambda: [0, 0, 0])  # count, packets, bytes of earlier alarms


class Alerter:
    """Turns detections into alerts, for one device and its state.

    ``names`` maps a MAC ("b8:27:eb:12:34:56") to what people call the device. ``rng`` makes the random part of the ids:
    the same seed and the same packets give the same alerts. ``evidence`` stores the packets around the beginning of
    each episode. Raises ValueError when an argument would make every alert invalid.

    Three attributes may be set while running, and hold for every alert from then on: ``clock`` says if the system's
    clock, by which live packets are stamped, is synchronised; ``model`` names the bundle that decides; ``suppressions``
    has the allows and mutes in force (call `reconsider` when they have changed).
    """

    def __init__(
        self,
        gateway: str,
        site: str,
        model: ModelInfo,
        agent_version: str,
        *,
        names: Mapping[str, str] | None = None,
        update_s: float = 60.0,
        end_s: float = 60.0,
        max_open: int = 256,
        rng: random.Random | None = None,
        evidence: "EvidenceStore | None" = None,
    ) -> None:
        check_id(gateway)
        for what, text, most in (
            ("site", site, longest(Alert, "site")),
            ("model version", model.version, longest(ModelInfo, "version")),
            ("agent version", agent_version, longest(Alert, "agent")),
        ):
            if len(text) > most:
                raise ValueError(f"{what} {text[:80]!r}: {len(text)} characters, the bound is {most}")
        if max_open < 1 or update_s <= 0 or end_s <= 0:
            raise ValueError("max_open, update_s and end_s must be positive")
        self.gateway, self.model, self.agent_version = gateway, model, agent_version
        self.clock: Clock = "synced"
        self.suppressions: Suppressions | None = None
        self.counts = AlertCounts()
        self.change(site, names or {}, update_s, end_s, max_open)
        self._evidence = evidence
        self._rng = rng or random.Random()  # ids must be distinct, not secret
        self._open: dict[tuple[str, int | str], _Episode] = {}
        self._steady_clock = SteadyClock()

    def change(self, site: str, names: Mapping[str, str], update_s: float, end_s: float, max_open: int) -> None:
        """Use other values of these from now on; they mean and must fulfil what they do at the start."""
        self.site, self._names = site, {mac: clean(name, _NAME) for mac, name in names.items()}
        self._update_ns, self._end_ns, self._max_open = int(update_s * 1e9), int(end_s * 1e9), max_open

    @property
    def open_episodes(self) -> int:
        """The number of open episodes that are not suppressed."""
        return sum(not episode.suppressed for episode in self._open.values())

    @property
    def alarmed(self) -> frozenset[int]:
        """The MACs of the devices with an open episode, suppressed ones among them."""
        latest = [episode.latest for episode in self._open.values()]
        return frozenset(detection.device_mac for detection in latest if detection.role == "source")

    def consider(self, detection: Detection) -> list[Alert]:
        """Return the alerts that follow from ``detection``: none, one, or an `end` and a `new`."""
        self.counts.detections += 1
        now = self._steady(detection.t_ns)
        alerts = self._end_quiet(now)
        subject = _subject(detection)
        episode = self._open.get(subject)
        if episode is not None and episode.suppressed and not self._covered(detection):
            self.counts.spoke_up += 1
            del self._open[subject]
            episode = None
        if episode is None:
            if len(self._open) >= self._max_open:
                self.counts.evicted += 1
                oldest = min(self._open, key=lambda key: (not self._open[key].suppressed, self._open[key].voted))
                alerts += self._end(self._open.pop(oldest), detection.t_ns)
            episode = self._open[subject] = self._begin(detection, now)
            if self._covered(detection):
                self._suppress(episode)
            else:
                alerts.append(self._alert(episode, "new", detection.t_ns))
            return alerts
        self._add(episode, detection, now)
        if episode.suppressed:
            return alerts
        # A sharper class is worth an alert at once, but even then updates keep their distance from one another.
        since = episode.sent if detection.class_name == episode.class_sent else episode.updated
        every = max(self._update_ns, int(detection.hold_s * 1e9))
        if since is None or now - since >= every:
            episode.sent = episode.updated = now
            alerts.append(self._alert(episode, "update", detection.t_ns))
        return alerts

    def clock_set_forward(self, step_ns: int) -> None:
        """Note that the system's clock, which stamps detections, was set forward: open episodes do not end by that."""
        self._steady_clock.set_forward(step_ns)

    def tick(self, t_ns: int) -> list[Alert]:
        """Return the ends that are due at packet time ``t_ns``, which any packet may bring."""
        return self._end_quiet(self._steady(t_ns))

    def finish(self) -> list[Alert]:
        """Return the ends of all open episodes: there will be no more packets."""
        newest_ns = self._steady_clock.newest_ns
        alerts = [alert for episode in self._open.values() for alert in self._end(episode, newest_ns)]
        self._open.clear()
        return alerts

    def reconsider(self) -> list[Alert]:
        """Return the ends of episodes that ``suppressions``, which changed, cover now; they go on without alerts.

        This happens only now: an episode that was reported for one class that is covered and one that is not stays one
        episode.
        """
        alerts = []
        for episode in self._open.values():
            if not episode.suppressed and self._covered(episode.latest):
                alerts += self._end(episode, self._steady_clock.newest_ns)
                self._suppress(episode)
        return alerts

    def test_alerts(self, t_ns: int, why: str) -> list[Alert]:
        """Return the `new` and the `end` of an episode that is marked as a test and counts as no episode.

        It shows that alerts reach whoever reads them. ``t_ns`` is its time in Unix ns, ``why`` who wanted it.
        """
        begun = Alert(
            id=uuid7(t_ns, random.Random()),  # not by `_rng`: ids of detections must not depend on tests
            seq=1,
            state="new",
            t_ns=t_ns,
            first_ns=t_ns,
            last_ns=t_ns,
            gateway=self.gateway,
            site=self.site,
            class_name="anomaly",
            kind="other",
            confidence=0.0,
            score=0.0,
            threshold=1.0,
            window_s=1.0,
            explanation=clean(f"a test, sent by hand: {why}", _SENTENCE),
            model=self.model,
            agent=self.agent_version,
            clock=self.clock,
            src_ip="",
            proto="IP",
            test=True,
        )
        return [begun, replace(begun, seq=2, state="end")]

    def _covered(self, detection: Detection) -> bool:
        return self.suppressions is not None and self.suppressions.covers(detection)

    def _suppress(self, episode: _Episode) -> None:
        episode.suppressed = True
        self.counts.suppressed += 1
        if self.suppressions:
            self.suppressions.hit(episode.latest)

    def _steady(self, t_ns: int) -> int:
        steady = self._steady_clock.at(t_ns)
        self.counts.clock_steps = self._steady_clock.steps
        return steady

    def _begin(self, detection: Detection, now: int) -> _Episode:
        first_ns = min(detection.first_ns, detection.t_ns)
        return _Episode(
            id=uuid7(detection.t_ns, self._rng),
            latest=detection,
            first_ns=first_ns,
            began=now - (detection.t_ns - first_ns),
            voted=now,
            hold=self._hold(detection),
            sent=now,
            updated=None,
            alarm=_AlarmTotals(first_ns, detection.t_ns, detection.count, detection.packets, detection.bytes),
        )

    def _add(self, episode: _Episode, detection: Detection, now: int) -> None:
        alarm = episode.alarm
        if detection.first_ns > alarm.last_ns:  # the detector's alarm had ended; this is its next one
            for i, total in enumerate((alarm.count, alarm.packets, alarm.bytes)):
                episode.past[i] += total
            episode.alarm = _AlarmTotals(
                detection.first_ns, detection.t_ns, detection.count, detection.packets, detection.bytes
            )
        else:  # the same alarm, or one of another method that overlaps and counted the same packets
            alarm.last_ns = max(alarm.last_ns, detection.t_ns)
            alarm.count = max(alarm.count, detection.count)
            alarm.packets = max(alarm.packets, detection.packets)
            alarm.bytes = max(alarm.bytes, detection.bytes)
        if now >= episode.voted:
            episode.voted, episode.latest, episode.hold = now, detection, self._hold(detection)

    def _hold(self, detection: Detection) -> int:
        return max(self._end_ns, int(detection.hold_s * 1e9))

    def _end_quiet(self, now: int) -> list[Alert]:
        quiet = [key for key, episode in self._open.items() if now - episode.voted >= episode.hold]
        return [alert for key in quiet for alert in self._end(self._open.pop(key), None)]

    def _end(self, episode: _Episode, t_ns: int | None) -> list[Alert]:
        """Return the `end`, stamped with the time the rule says, not with that of the packet that came next."""
        if episode.suppressed:
            return []
        due = episode.latest.t_ns + episode.hold
        return [self._alert(episode, "end", due if t_ns is None else min(max(t_ns, episode.latest.t_ns), due))]

    def _alert(self, episode: _Episode, state: EpisodeState, t_ns: int) -> Alert:
        latest, alarm = episode.latest, episode.alarm
        class_name = latest.class_name
        if class_name not in CLASSES:
            self.counts.foreign_class += 1
            class_name = "unknown"
        episode.seq += 1
        episode.class_sent = latest.class_name
        setattr(self.counts, state, getattr(self.counts, state) + 1)
        features = latest.top_features[:MAX_FEATURES]
        return Alert(
            id=episode.id,
            seq=episode.seq,
            state=state,
            t_ns=t_ns,
            first_ns=episode.first_ns,
            last_ns=latest.t_ns,
            duration_s=max(episode.voted - episode.began, 0) / 1e9,
            count=max(episode.past[0] + alarm.count, 1),
            packets=max(episode.past[1] + alarm.packets, 0),
            bytes=max(episode.past[2] + alarm.bytes, 0),
            gateway=self.gateway,
            site=self.site,
            device=self._device(latest),
            role=latest.role,
            class_name=class_name,
            kind=latest.activities[0].kind,
            port=latest.activities[0].port,
            also=latest.activities[1:],
            confidence=_finite(latest.confidence, 0.0, 1.0),
            score=_finite(latest.score, 0.0),
            threshold=_finite(latest.threshold, 1e-300),
            window_s=_finite(latest.window_s, 1e-9),
            top_features=tuple((clean(name, 64), _finite(value)) for name, value in features),
            explanation=clean(latest.explanation, _SENTENCE),
            model=self.model,
            agent=self.agent_version,
            clock=self.clock,
            src_ip=latest.src_ip,
            src_port=latest.src_port,
            dest_ip=latest.dest_ip,
            dest_port=latest.dest_port,
            proto=clean(latest.proto, longest(Alert, "proto")),
            interface=clean(latest.interface, longest(Alert, "interface")),
            evidence=self._stored(episode.id, state, latest),
        )

    def _stored(self, id: str, state: EpisodeState, latest: Detection) -> Evidence | None:
        if self._evidence is None:
            return None
        if state == "new":
            return self._evidence.begin(id, latest)
        return self._evidence.of(id) if state == "update" else self._evidence.forget(id)

    def _device(self, detection: Detection) -> AlertDevice:
        if detection.role == "victim":  # the MAC is that of the router which brought the attack
            return AlertDevice(ip=detection.device_ip)
        mac = mac_text(detection.device_mac)
        return AlertDevice(mac=mac, ip=detection.device_ip, name=self._names.get(mac, ""))


CUT_SHORT = "the agent was restarted"


def cut_short(last: Alert, t_ns: int, end_s: float) -> Alert:
    """Return the `end` of an episode that was open when an agent ended without closing it, as by a power cut.

    ``last`` is the last alert of the episode; ``t_ns`` the time of the restart. The `end` is stamped as if the episode
    had ended by itself, at most with the restart; if the device goes on, the next alert begins another.
    """
    return replace(
        last,
        seq=last.seq + 1,
        state="end",
        t_ns=max(last.t_ns, min(t_ns, last.last_ns + int(end_s * 1e9))),
        explanation=clean("; ".join(filter(None, (CUT_SHORT, last.explanation))), _SENTENCE),
    )


def _subject(detection: Detection) -> tuple[str, int | str]:
    """Return the key of the episode a detection belongs to: the device that sends, or the address that is hit.

    Check-ins are kept apart from what the same device does besides: they go on for days, an attack has its own end.
    """
    if detection.method == "checkins":
        return "checkins", detection.device_mac
    return ("victim", detection.device_ip) if detection.role == "victim" else ("source", detection.device_mac)


def _finite(value: float, low: float = -_LARGEST, high: float = _LARGEST) -> float:
    return low if math.isnan(value) else min(max(float(value), low), high)
