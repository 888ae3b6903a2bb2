"""A device's days played up to a moment, and from there any number of attacks, each on a copy of the very same agent.

Playing the days once and copying the process (fork) at the moment is what makes hundreds of attacks on one device take
minutes. A copy changes nothing in the agent that it was taken from. Captures shorter than what is played are repeated
with their times moved. Which attacks are tried is the knowledge of `trainer.judge.evasions` and `trainer.judge.unseen`.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from edge_agent.agent import BATCH
from edge_agent.config import AgentConfig
from edge_agent.contract import addresses
from edge_agent.contract.alert import Alert
from edge_agent.contract.bundle import BENIGN, Bundle
from edge_agent.contract.captures import CaptureManifest, mac_text, parse_mac
from trainer.data.frames import Frame, S
from trainer.judge import inject
from trainer.judge.copies import in_copy
from trainer.judge.evasive import Attacker
from trainer.judge.evasive_frames import Neighbourhood, ipv4_ends
from trainer.judge.inject import InjectError
from trainer.judge.replay import AFTER_S, has_learnt, judged, new_agent

State = Literal["cold", "learning", "learnt"]
"""The knowledge that an agent has of the device when an attack begins: nothing, not even usual traffic beside the
attack; five minutes of its traffic; or more than a day of it, so that it has limits of its own."""

DAY_S = 86_400.0

LEARNING_S = 300.0
"""Seconds after a device's first packet at which an attack begins that meets a learning agent."""

LEARNT_S, LEARNT_MOST_S = 1.4 * DAY_S, 3.4 * DAY_S
"""Seconds after the first packet at which an attack begins that meets an agent which has learnt, and the longest time
to wait for that if the device needs longer."""

FIRST_BATCH = 256
"""Frames taken at a time at the beginning of an attack, doubled up to `BATCH`: most attacks are alerted early."""

NOT_CLOUD = frozenset({53, 67, 123, 1900, 5353})
"""Ports of services that every device uses, which are not a cloud's."""


@dataclass(frozen=True, kw_only=True)
class DeviceDays:
    """The captures of one healthy device, one after the other, and what an attacker on it finds around it."""

    device: str
    kind: str
    generated: bool
    around: Neighbourhood
    frames: list[Frame]

    @property
    def mac(self) -> int:
        """The device's MAC."""
        return int.from_bytes(self.around.host.mac, "big")

    def endless(self) -> Iterator[Frame]:
        """Yield the frames, and again and again with their times moved on."""
        turn_ns = self.frames[-1][0] - self.frames[0][0] + S
        for moved in itertools.count(0, turn_ns):
            for t_ns, length, data in self.frames:
                yield t_ns + moved, length, data


def device_days(manifests: Sequence[tuple[CaptureManifest, Path]]) -> tuple[list[DeviceDays], list[str]]:
    """Return the days of each device that manifests name with its MAC, and why some captures are left out."""
    parts: dict[str, list[tuple[list[Frame], str, str, bool]]] = {}
    skipped: list[str] = []
    for manifest, root in manifests:
        for capture in manifest.captures:
            if capture.label != BENIGN or capture.mac is None:
                continue
            try:
                frames = sorted(inject.read(root / capture.file, capture.span), key=lambda frame: frame[0])
                inject.host(frames, capture.mac, capture.file)
            except InjectError as error:
                skipped.append(str(error))
                continue
            part = (frames, capture.mac, capture.kind or "device", manifest.generated)
            parts.setdefault(capture.device, []).append(part)
    found = []
    for device, captured in parts.items():
        frames, mac = _consecutive([part[0] for part in captured]), captured[-1][1]
        around = neighbourhood(frames, mac)
        _, _, kind, generated = captured[-1]
        found.append(DeviceDays(device=device, kind=kind, generated=generated, around=around, frames=frames))
    return found, skipped


def _consecutive(days: Sequence[list[Frame]]) -> list[Frame]:
    """Return days one after the other: each begins a second after the end of the one before."""
    frames: list[Frame] = []
    for day in days:
        moved = frames[-1][0] + S - day[0][0] if frames else 0
        frames += [(t_ns + moved, length, data) for t_ns, length, data in day]
    return frames


def neighbourhood(frames: Sequence[Frame], mac: str) -> Neighbourhood:
    """Return what an attacker on the device of ``mac`` finds around it, by the frames of its captures."""
    host = inject.host(frames, mac, mac)
    clouds, local = Counter[tuple[bytes, int, int]](), Counter[tuple[bytes, bytes]]()
    for _, _, data in frames:
        ends = ipv4_ends(data)
        if ends is None:
            continue
        source, target, proto, _, port = ends
        if data[6:12] == host.mac:
            if not data[0] & 1 and port not in NOT_CLOUD and ip_address(target).is_global:
                clouds[target, proto, port] += 1
        elif source[:3] == host.ip[:3] and addresses.is_private(str(ip_address(source))):
            local[data[6:12], source] += 1
    routers = [pair for pair, _ in local.most_common() if pair[0] == host.router]
    first = routers[0] if routers else (host.router, host.ip[:3] + b"\x01")
    others = [pair for pair, _ in local.most_common() if pair != first]
    cloud = clouds.most_common(1)[0][0] if clouds else None
    return Neighbourhood(host=host, cloud=cloud, local=(first, *others))


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The outcome of one attack.

    ``sent`` are the attacker's packets up to the end of the attempt: its first alert about the attacker and a while
    after it, or ``watched_s`` seconds. ``packets``, ``seconds``, ``mac``, ``named`` and ``explanation`` are of that
    first alert, ``class_name`` is that of the episode's last message; None and "" where there was none. ``others`` are
    subjects that were blamed beside it, and would not have been without the attack.
    """

    sent: int
    watched_s: float
    length_s: float
    packets: int | None = None
    seconds: float | None = None
    class_name: str = ""
    mac: str = ""
    named: str = ""
    explanation: str = ""
    others: tuple[str, ...] = ()


class Stage:
    """An agent in a device's home, at the moment of its days at which attacks begin."""

    def __init__(self, bundle: Bundle, config: AgentConfig, days: DeviceDays, state: State) -> None:
        self.days, self.state = days, state
        self._agent = new_agent(bundle, config, learn=config.learning.enabled)
        self._ahead: Iterator[Frame] = iter(())
        self.at_ns = days.frames[0][0]
        if state == "cold":
            self._usual: frozenset[tuple[str, int]] = frozenset()
            return
        first = next(t_ns for t_ns, _, data in days.frames if data[6:12] == days.around.host.mac)
        self._ahead = days.endless()
        self._play(first + int((LEARNING_S if state == "learning" else LEARNT_S) * S))
        if state == "learnt" and not self.learnt:
            for hours in range(1, int((LEARNT_MOST_S - LEARNT_S) / 3600) + 1):
                self._play(first + int((LEARNT_S + 3600 * hours) * S))
                if self.learnt:
                    break
        self._usual = in_copy(self._alerts_without_attack)

    @property
    def learnt(self) -> bool:
        """True if the device has limits of its own."""
        return has_learnt(self._agent, self.days.mac)

    def attempt(self, attack: Attacker, *, seconds: float, packets: int, settle_s: float = 0.0) -> Attempt:
        """Try an attack for ``seconds`` or for ``packets`` of its own, on a copy of the agent.

        It ends ``settle_s`` after its first alert: an episode has its class only after some packets.
        """
        return in_copy(lambda: self._attempt(attack, seconds, packets, settle_s))

    def _play(self, until_ns: int) -> None:
        """Have the agent judge usual traffic up to a time, which becomes the one at which attacks begin."""
        self.at_ns, ahead = until_ns, self._ahead
        while batch := list(itertools.islice(ahead, BATCH)):
            if batch[-1][0] >= until_ns:
                cut = next(i for i, frame in enumerate(batch) if frame[0] >= until_ns)
                judged(self._agent, batch[:cut])
                self._ahead = itertools.chain(batch[cut:], ahead)
                return
            judged(self._agent, batch)

    def _alerts_without_attack(self) -> frozenset[tuple[str, int]]:
        """Return subject and time of the alerts of the day ahead; changes the agent, so only for a copy."""
        end_ns = self.at_ns + int((DAY_S + AFTER_S) * S)
        alerts = judged(self._agent, itertools.takewhile(lambda frame: frame[0] < end_ns, self._ahead))
        return frozenset((_subject(alert), alert.t_ns) for alert in alerts if alert.state == "new")

    def _attempt(self, attack: Attacker, seconds: float, packets: int, settle_s: float) -> Attempt:
        """Carry out an attack; changes the agent, so only for a copy."""
        sent: list[int] = []
        used: set[bytes] = {self.days.around.host.mac}
        over_ns = end_ns = self.at_ns + int(seconds * S)

        def attacking() -> Iterator[Frame]:
            nonlocal over_ns
            for t_ns, length, data, mine in attack.packets(self.days.around, self.at_ns):
                if t_ns >= end_ns or len(sent) >= packets:
                    break
                if mine:
                    sent.append(t_ns)
                    used.add(data[6:12])
                yield t_ns, length, data
            over_ns = min(over_ns, sent[-1]) if sent else over_ns

        frames = heapq.merge(attacking(), self._ahead, key=lambda frame: frame[0])
        ahead = itertools.takewhile(lambda frame: frame[0] < over_ns + int(AFTER_S * S), frames)
        usual = {subject for subject, _ in self._usual}
        new: dict[str, Alert] = {}
        last: dict[str, Alert] = {}
        hit: Alert | None = None
        size, done_ns = FIRST_BATCH, None
        while batch := list(itertools.islice(ahead, size)):
            size = min(2 * size, BATCH) if hit is None else FIRST_BATCH
            hit = hit or self._take(judged(self._agent, batch), new, last, used)
            if hit is not None and (done_ns := done_ns or hit.t_ns + int(settle_s * S)) <= batch[-1][0]:
                break
        hit = self._take(self._agent.finish(), new, last, used) or hit
        others = {_subject(a) for a in new.values() if not self._hits(a, used) and _subject(a) not in usual}
        attempt = Attempt(
            sent=len(sent),
            watched_s=((hit.t_ns if hit else over_ns) - self.at_ns) / S,
            length_s=(sent[-1] - sent[0]) / S if sent else 0.0,
            others=tuple(sorted(others)),
        )
        if hit is None:
            return attempt
        return replace(
            attempt,
            packets=max(sum(t_ns <= hit.t_ns for t_ns in sent), 1),
            seconds=(hit.t_ns - sent[0]) / S,
            class_name=last[hit.id].class_name,
            mac=hit.device.mac,
            named=self._who(hit),
            explanation=hit.explanation,
        )

    def _take(
        self, alerts: Sequence[Alert], new: dict[str, Alert], last: dict[str, Alert], used: set[bytes]
    ) -> Alert | None:
        """Take in alerts; return the first one that is about the attack."""
        for alert in alerts:
            last[alert.id] = alert
            if alert.state == "new" and alert.t_ns >= self.at_ns and (_subject(alert), alert.t_ns) not in self._usual:
                new[alert.id] = alert
        return min((a for a in new.values() if self._hits(a, used)), key=lambda a: a.t_ns, default=None)

    def _hits(self, alert: Alert, used: set[bytes]) -> bool:
        """Return whether an alert is about the sender of the attack, by a MAC that it used."""
        return alert.role == "source" and parse_mac(alert.device.mac or "0" * 12).to_bytes(6, "big") in used

    def _who(self, alert: Alert) -> str:
        """Return whom an alert names: the device, its router, or a false address."""
        names = {mac_text(self.days.mac): "device", self.days.around.host.router.hex(":"): "router"}
        return names.get(alert.device.mac, "a false MAC")


def _subject(alert: Alert) -> str:
    return f"{alert.role} {alert.device.mac or alert.device.ip}"
