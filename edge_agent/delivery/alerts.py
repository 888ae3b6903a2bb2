"""From detections to alerts: one infected device, one episode, however long it lasts.

An episode is opened by a device's first detection (`new`), told again at most once a minute while detections go on
(`update`), and ended a minute after the last one (`end`). One that is allowed or muted is counted and not told; when it
becomes something that is not covered, it is told as a new one. This module knows when to speak and what the totals are;
what an alert looks like is `contract.messages`' knowledge. It has no clock: time is the packets' time.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from edge_agent.contract.alert import CLASSES, MAX_VERSION, Alert, AlertDevice, Clock, EpisodeState, Evidence, ModelInfo
from edge_agent.contract.captures import mac_text
from edge_agent.contract.clock import SteadyClock
from edge_agent.contract.messages import check_id, clean, uuid7
from edge_agent.detection.detection import Detection

_LARGEST = 1e300  # JSON has no infinity


@dataclass
class AlertCounts:
    """How often what happened, since the start."""

    detections: int = 0
    new: int = 0
    update: int = 0
    end: int = 0
    evicted: int = 0  # episodes ended early because ``max_open`` were open
    clock_steps: int = 0  # packet time jumped backwards
    foreign_class: int = 0  # detections of a class the contract does not know, told as `unknown`
    suppressed: int = 0  # episodes, or what was left of one, that were held back
    spoke_up: int = 0  # of those, told after all: what came next was not covered


class Silence(Protocol):
    """What is to be held back now."""

    def covers(self, detection: Detection) -> bool:
        """Whether this is not to be told."""

    def hit(self, detection: Detection) -> None:
        """Told of each episode that begins covered."""


class _Nothing:
    """Everything is told."""

    def covers(self, detection: Detection) -> bool:
        return False

    def hit(self, detection: Detection) -> None:
        """Never: nothing is covered."""


@dataclass
class _Alarm:
    """Totals of one alarm of the detector; they start again with its next alarm, an episode's do not."""

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
    began: int  # steady ns, as the three below
    voted: int
    hold: int  # ns that the latest detection stands for: as configured, or longer where it says so
    told: int
    updated: int | None
    alarm: _Alarm
    silent: bool = False
    seq: int = 0
    class_told: str = ""
    past: list[int] = field(default_factory=lambda: [0, 0, 0])  # count, packets, bytes of earlier alarms


class Keeper(Protocol):
    """Who keeps the packets around an episode: an `evidence.EvidenceStore`."""

    def begin(self, id: str, subject: Detection, /) -> Evidence | None:
        """Keep what led to it."""

    def of(self, id: str, /) -> Evidence | None:
        """What there is."""

    def forget(self, id: str, /) -> Evidence | None:
        """What there is in the end."""


class Alerter:
    """Detections in, alert documents out; one per device and its state.

    ``names`` maps a MAC ("b8:27:eb:12:34:56") to what people call the device. ``rng`` makes the random part of the ids:
    the same seed and the same packets give the same alerts. ``clock`` and ``silence`` may be changed while running.
    ``evidence`` keeps the packets around the beginning of each episode.
    Raises ValueError when an argument would make every alert invalid.
    """

    def __init__(
        self,
        gateway: str,
        site: str,
        model: ModelInfo,
        agent_version: str,
        *,
        names: Mapping[str, str] | None = None,
        interface: str = "",
        update_s: float = 60.0,
        end_s: float = 60.0,
        max_open: int = 256,
        clock: Clock = "synced",
        rng: random.Random | None = None,
        evidence: "Keeper | None" = None,
    ) -> None:
        check_id(gateway)
        for what, text, most in (
            ("site", site, 63),
            ("model version", model.version, MAX_VERSION),
            ("agent version", agent_version, 20),
            ("interface", interface, 15),
        ):
            if len(text) > most:
                raise ValueError(f"{what} {text[:80]!r}: {len(text)} characters, the bound is {most}")
        if max_open < 1 or update_s <= 0 or end_s <= 0:
            raise ValueError("max_open, update_s and end_s must be positive")
        self.gateway, self.model, self.agent_version = gateway, model, agent_version
        self.interface, self.clock, self.counts = interface, clock, AlertCounts()
        self.change(site, names or {}, update_s, end_s, max_open)
        self._evidence = evidence
        self._rng = rng or random.Random()  # ids must be distinct, not secret
        self._open: dict[tuple[str, int | str], _Episode] = {}
        self.silence: Silence = _Nothing()
        self._clock = SteadyClock()

    def change(self, site: str, names: Mapping[str, str], update_s: float, end_s: float, max_open: int) -> None:
        """Go on with other values of these, which mean what they mean at the start and must be as valid."""
        self.site, self._names = site, {mac: clean(name, 64) for mac, name in names.items()}
        self._update_ns, self._end_ns, self._max_open = int(update_s * 1e9), int(end_s * 1e9), max_open

    @property
    def open_episodes(self) -> int:
        """How many devices are being told about now."""
        return sum(not episode.silent for episode in self._open.values())

    def consider(self, detection: Detection) -> list[dict[str, Any]]:
        """The alerts that follow from ``detection``: none, one, or an `end` and a `new`."""
        self.counts.detections += 1
        now = self._steady(detection.t_ns)
        alerts = self._end_quiet(now)
        who = _key(detection)
        episode = self._open.get(who)
        if episode is not None and episode.silent and not self.silence.covers(detection):
            self.counts.spoke_up += 1
            del self._open[who]
            episode = None
        if episode is None:
            if len(self._open) >= self._max_open:
                self.counts.evicted += 1
                oldest = min(self._open, key=lambda key: (not self._open[key].silent, self._open[key].voted))
                alerts += self._end(self._open.pop(oldest), detection.t_ns)
            episode = self._open[who] = self._begin(detection, now)
            if self.silence.covers(detection):
                self._hush(episode)
            else:
                alerts.append(self._tell(episode, "new", detection.t_ns))
            return alerts
        self._add(episode, detection, now)
        if episode.silent:
            return alerts
        # A sharper class is worth telling at once, but even then updates keep their distance from one another.
        since = episode.told if detection.class_name == episode.class_told else episode.updated
        every = max(self._update_ns, int(detection.hold_s * 1e9))
        if since is None or now - since >= every:
            episode.told = episode.updated = now
            alerts.append(self._tell(episode, "update", detection.t_ns))
        return alerts

    def tick(self, t_ns: int) -> list[dict[str, Any]]:
        """The ends that are due at packet time ``t_ns``, which any packet may bring."""
        return self._end_quiet(self._steady(t_ns))

    def finish(self) -> list[dict[str, Any]]:
        """The ends of everything still open: there will be no more packets."""
        alerts = [alert for episode in self._open.values() for alert in self._end(episode, self._clock.newest_ns)]
        self._open.clear()
        return alerts

    def trial(self, t_ns: int, why: str) -> list[dict[str, Any]]:
        """An episode that says it is a test, to try the way to whoever reads: its `new` and its `end`, counted nowhere.

        ``t_ns`` is its time in Unix ns, ``why`` who wanted it.
        """
        id = uuid7(t_ns, random.Random())  # one of its own: ids of detections must not depend on tests
        states: tuple[EpisodeState, EpisodeState] = ("new", "end")
        return [
            Alert(
                id=id,
                seq=seq,
                state=state,
                t_ns=t_ns,
                first_ns=t_ns,
                last_ns=t_ns,
                duration_s=0.0,
                count=1,
                packets=0,
                bytes=0,
                gateway=self.gateway,
                site=self.site,
                device=AlertDevice(),
                role="source",
                class_name="anomaly",
                confidence=0.0,
                score=0.0,
                threshold=1.0,
                window_s=1.0,
                top_features=(),
                explanation=clean(f"a test, sent by hand: {why}", 200),
                model=self.model,
                agent=self.agent_version,
                clock=self.clock,
                src_ip="",
                src_port=0,
                dest_ip="",
                dest_port=0,
                proto="IP",
                interface=self.interface,
                test=True,
            ).document()
            for seq, state in enumerate(states, 1)
        ]

    def reconsider(self) -> list[dict[str, Any]]:
        """`silence` has changed: the ends of episodes that are now covered, which go on without being told.

        Only now: an episode that was told because of one covered class and one that is not stays one episode.
        """
        alerts = []
        for episode in self._open.values():
            if not episode.silent and self.silence.covers(episode.latest):
                alerts += self._end(episode, self._clock.newest_ns)
                self._hush(episode)
        return alerts

    def _hush(self, episode: _Episode) -> None:
        episode.silent = True
        self.counts.suppressed += 1
        self.silence.hit(episode.latest)

    def _steady(self, t_ns: int) -> int:
        steady = self._clock.at(t_ns)
        self.counts.clock_steps = self._clock.steps
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
            told=now,
            updated=None,
            alarm=_Alarm(first_ns, detection.t_ns, detection.count, detection.packets, detection.bytes),
        )

    def _add(self, episode: _Episode, detection: Detection, now: int) -> None:
        alarm = episode.alarm
        if detection.first_ns > alarm.last_ns:  # the detector's alarm had ended; this is its next one
            for i, total in enumerate((alarm.count, alarm.packets, alarm.bytes)):
                episode.past[i] += total
            episode.alarm = _Alarm(
                detection.first_ns, detection.t_ns, detection.count, detection.packets, detection.bytes
            )
        else:  # the same, or one of another method that overlaps and counted the same packets
            alarm.last_ns = max(alarm.last_ns, detection.t_ns)
            alarm.count = max(alarm.count, detection.count)
            alarm.packets = max(alarm.packets, detection.packets)
            alarm.bytes = max(alarm.bytes, detection.bytes)
        if now >= episode.voted:
            episode.voted, episode.latest, episode.hold = now, detection, self._hold(detection)

    def _hold(self, detection: Detection) -> int:
        return max(self._end_ns, int(detection.hold_s * 1e9))

    def _end_quiet(self, now: int) -> list[dict[str, Any]]:
        quiet = [key for key, episode in self._open.items() if now - episode.voted >= episode.hold]
        return [alert for key in quiet for alert in self._end(self._open.pop(key), None)]

    def _end(self, episode: _Episode, t_ns: int | None) -> list[dict[str, Any]]:
        """Stamped with the time the rule says, not with that of the packet which happened to come next."""
        if episode.silent:
            return []
        due = episode.latest.t_ns + episode.hold
        return [self._tell(episode, "end", due if t_ns is None else min(max(t_ns, episode.latest.t_ns), due))]

    def _tell(self, episode: _Episode, state: EpisodeState, t_ns: int) -> dict[str, Any]:
        latest, alarm = episode.latest, episode.alarm
        class_name = latest.class_name
        if class_name not in CLASSES:
            self.counts.foreign_class += 1
            class_name = "unknown"
        episode.seq += 1
        episode.class_told = latest.class_name
        setattr(self.counts, state, getattr(self.counts, state) + 1)
        alert = Alert(
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
            confidence=_finite(latest.confidence, 0.0, 1.0),
            score=_finite(latest.score, 0.0),
            threshold=_finite(latest.threshold, 1e-300),
            window_s=_finite(latest.window_s, 1e-9),
            top_features=tuple((clean(name, 64), _finite(value)) for name, value in latest.top_features[:5]),
            explanation=clean(latest.explanation, 200),
            model=self.model,
            agent=self.agent_version,
            clock=self.clock,
            src_ip=latest.src_ip,
            src_port=latest.src_port,
            dest_ip=latest.dest_ip,
            dest_port=latest.dest_port,
            proto=clean(latest.proto, 16),
            interface=self.interface,
            evidence=self._kept(episode.id, state, latest),
        )
        return alert.document()

    def _kept(self, id: str, state: EpisodeState, latest: Detection) -> Evidence | None:
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


def cut_short(document: Mapping[str, Any], t_ns: int, end_s: float) -> dict[str, Any]:
    """The `end` of an episode that went on when an agent ended without a word, as killed or by a power cut.

    ``document`` is the last alert on it; ``t_ns`` the time of the restart. It is stamped as if it had ended by itself,
    at most with the restart; if the device goes on, the next alert opens another. MessageError, KeyError, TypeError or
    ValueError for a document that is no alert.
    """
    last = Alert.read(document)
    return replace(
        last,
        seq=last.seq + 1,
        state="end",
        t_ns=max(last.t_ns, min(t_ns, last.last_ns + int(end_s * 1e9))),
        explanation=clean("; ".join(filter(None, (CUT_SHORT, last.explanation))), 200),
    ).document()


def _key(detection: Detection) -> tuple[str, int | str]:
    """Whom an episode is about: the device that sends, or the address that is hit.

    Check-ins are told apart from what the same device does besides: they go on for days, an attack has its own end.
    """
    if detection.method == "checkins":
        return "checkins", detection.device_mac
    return ("victim", detection.device_ip) if detection.role == "victim" else ("source", detection.device_mac)


def _finite(value: float, low: float = -_LARGEST, high: float = _LARGEST) -> float:
    return low if math.isnan(value) else min(max(float(value), low), high)
