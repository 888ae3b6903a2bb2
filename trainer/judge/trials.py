"""A bundle tried on one thing at a time, by the agent that ships.

Each benign capture is judged by an agent that starts cold; the days of a device also by one that learns limits on site
from one day to the next. An attack is tried alone, and in a device's day: that day is judged up to the moment of the
attack once, and each attack then meets a copy of the agent (`copies`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from edge_agent.agent import Agent
from edge_agent.config import AgentConfig
from edge_agent.contract import captures
from edge_agent.contract.alert import Alert
from edge_agent.contract.bundle import Bundle
from trainer.data.frames import Frame, S
from trainer.judge import inject
from trainer.judge.blame import Episode, ExpectedSubject, blames, detections, expected_subject
from trainer.judge.copies import in_copy
from trainer.judge.evaluation import FLOOR_FRAMES, FLOOR_S, Agents, AttackTrial, Day, FalseAlert
from trainer.judge.inject import InsideHost
from trainer.judge.material import Loaded, LoadedAttack, Place, consecutive
from trainer.judge.replay import AFTER_S, Replayed, by_episode, has_learnt, judged, new_agent, replay

HEAD_FRAMES = 60_000
"""Frames of the day before an attack that an agent with the bundle's limits judges: enough for every device of a home
to be past its warm-up."""

EARLY_S = 600
"""Seconds at the start of a benign capture whose false alerts are also counted apart: the agent starts cold."""


class Trials:
    """Tries a bundle, each time with an agent that starts cold; ``step`` gets a note of each trial."""

    def __init__(self, bundle: Bundle, config: AgentConfig, step: Callable[[str], None]) -> None:
        self._bundle, self._config, self._step = bundle, config, step

    def day(self, loaded: Loaded, learn: bool) -> Day:
        """Judge a benign capture, with ``learn`` a second time by an agent that learns."""
        replayed = replay(self._bundle, self._config, loaded.frames)
        counts, alerts, capture = replayed.agent.counts(), len(replayed.episodes), loaded.capture
        day = Day(
            capture=loaded.name,
            device=capture.device,
            kind=capture.kind or "",
            generated=loaded.generated,
            days=loaded.days,
            packets=counts["scored"],
            shed=counts["shed"],
            flagged=counts["flagged"],
            alerts=alerts,
            early=sum(episode[0].t_ns < loaded.start_ns + EARLY_S * S for episode in replayed.episodes),
            found=_false_alerts("cold", replayed.episodes),
        )
        if learn and capture.mac is not None:
            day = self._learning(loaded, day)
        self._step(f"{loaded.name}: {alerts} false alerts")
        return day

    def _learning(self, loaded: Loaded, day: Day) -> Day:
        """Add the figures of an agent that learns limits on site from the capture's first packet on."""
        replayed = replay(self._bundle, self._config, loaded.frames, learn=True)
        figures: dict[str, Any] = {"alerts_learning": len(replayed.episodes)}
        limits = replayed.agent.detector.limits_of(captures.parse_mac(loaded.capture.mac or ""))
        if limits is not None and limits.learnt_ns is not None:
            since = limits.learnt_ns
            figures["alerts_learnt"] = sum(episode[0].t_ns >= since for episode in replayed.episodes)
            figures["flagged_learnt"] = limits.flagged / limits.judged if limits.judged else None
        return replace(day, found=(*day.found, *_false_alerts("learning", replayed.episodes)), **figures)

    def site(self, days: Sequence[Loaded], earlier: Sequence[Loaded], judged_days: Sequence[Day]) -> list[Day]:
        """Add to a device's days the figures of one agent that learns from its ``earlier`` days and these in turn.

        The first day of all has none: nothing has been learnt before it.
        """
        agent = new_agent(self._bundle, self._config, learn=True)
        mac = captures.parse_mac(days[0].capture.mac or "")
        every = [*earlier, *days]
        starts, alerts, rows = [], [], []
        for frames in consecutive([loaded.frames for loaded in every]):
            starts.append(min(frame[0] for frame in frames))
            before = _rows(agent, mac)
            alerts += judged(agent, frames)
            after = _rows(agent, mac)
            rows.append((after[0] - before[0], after[1] - before[1]))
        episodes = by_episode([*alerts, *agent.finish()])
        ends = [*starts[1:], None]
        result = []
        for i, day in enumerate(judged_days, len(earlier)):
            end = ends[i]
            of_day = [e for e in episodes if e[0].t_ns >= starts[i] and (end is None or e[0].t_ns < end)]
            flagged = rows[i][1] / rows[i][0] if rows[i][0] > 0 else None
            found = (*day.found, *_false_alerts("site", of_day))
            result.append(replace(day, alerts_site=len(of_day), flagged_site=flagged, found=found) if i else day)
        self._step(f"days of {days[0].capture.device} in turn")
        return result

    def alone(self, attack: LoadedAttack, *, learn: bool = False) -> AttackTrial:
        """Judge an attack capture as it is."""
        replayed = replay(self._bundle, self._config, attack.loaded.frames, learn=learn)
        self._step(f"{attack.name} alone{' while learning' if learn else ''}")
        source = attack.source
        return trial(attack, None, source.host, source.frames, replayed, "learning" if learn else "cold")

    def stage(self, place: Place, *, learn: bool = False) -> "Midday":
        """Return an agent at the moment of a device's day at which attacks begin.

        With ``learn`` it has learnt from all days before, without it has judged the hours before with the bundle's
        limits.
        """
        agent = new_agent(self._bundle, self._config, learn=learn)
        head = [frame for frame in place.day.frames if frame[0] < place.at_ns]
        if learn:
            for frames in place.earlier:
                judged(agent, frames)
        judged(agent, head if learn else head[-HEAD_FRAMES:])
        return Midday(agent, place, "learnt" if learn else "known", self._step)


class Midday:
    """An agent in a device's day, at the moment at which attacks begin; each attack meets a copy of it."""

    def __init__(self, agent: Agent, place: Place, state: str, step: Callable[[str], None]) -> None:
        self._agent, self._place, self._state, self._step = agent, place, state, step
        self._rest = [frame for frame in place.day.frames if frame[0] >= place.at_ns]
        self._usual = frozenset(in_copy(self._without_attack))

    @property
    def learnt(self) -> bool:
        """True if the device has limits of its own."""
        return has_learnt(self._agent, int.from_bytes(self._place.host.mac, "big"))

    def attacked(self, attack: LoadedAttack) -> AttackTrial:
        """Judge the rest of the day with the attack in it, as if the device carried it out."""
        place = self._place
        moved = inject.carried(attack.source, place.host, place.at_ns)
        result = in_copy(lambda: self._attacked(attack, moved))
        self._step(f"{attack.name} in {place.day.capture.device} ({self._state})")
        return result

    def alerted_at(self, rate: float, attack: LoadedAttack) -> bool:
        """Judge the same with the attack at ``rate`` packets/s; return whether it is alerted within a minute."""
        place, start = self._place, self._place.at_ns
        moved = inject.carried(attack.source, place.host, start, rate, min(FLOOR_FRAMES, max(1, int(rate * FLOOR_S))))
        expected = expected_subject(attack.source, place.host)

        def in_time() -> bool:
            return any(
                blames(episode[0], expected) and start <= episode[0].t_ns <= start + FLOOR_S * S
                for episode in self._judge(moved).episodes
            )

        self._step(f"{rate:g} packets/s in {place.day.capture.device}")
        return in_copy(in_time)

    def _attacked(self, attack: LoadedAttack, moved: Sequence[Frame]) -> AttackTrial:
        replayed = self._judge(moved)
        return trial(attack, self._place.day, self._place.host, moved, replayed, self._state, self._usual)

    def _judge(self, moved: Sequence[Frame]) -> Replayed:
        """Judge the day up to a while after the attack ``moved``; changes the agent, so only for a copy."""
        end_ns = moved[-1][0] + int(AFTER_S * S)
        alerts = judged(self._agent, inject.merged([f for f in self._rest if f[0] <= end_ns], moved))
        return Replayed(episodes=by_episode([*alerts, *self._agent.finish()]), agent=self._agent)

    def _without_attack(self) -> set[str]:
        """Return the subjects of alerts of the day without an attack; changes the agent, so only for a copy."""
        alerts = [*judged(self._agent, self._rest), *self._agent.finish()]
        return {subject(alert) for alert in alerts if alert.t_ns >= self._place.at_ns}


def subject(alert: Alert) -> str:
    """Return the subject that an alert blames, as text: a MAC, or a victim's address."""
    return f"victim {alert.device.ip}" if alert.role == "victim" else alert.device.mac


def trial(
    attack: LoadedAttack,
    day: Loaded | None,
    host: InsideHost,
    frames: Sequence[Frame],
    replayed: Replayed,
    state: str,
    usual: frozenset[str] = frozenset(),
) -> AttackTrial:
    """Compare episodes with an attack that ``host`` carried out, or suffered, by ``frames`` in a ``day`` or alone.

    ``usual`` subjects are blamed without the attack as well.
    """
    sent = np.array([frames[i][0] for i in attack.source.sent()])
    first, last = int(sent[0]), int(sent.max())
    expected = expected_subject(attack.source, host)
    hits = detections(replayed.episodes, expected, first)
    capture, counts = attack.loaded.capture, replayed.agent.counts()
    blamed = {subject(episode[0]) for episode in replayed.episodes if episode[0].t_ns >= first}
    result = AttackTrial(
        capture=attack.name,
        label=capture.label,
        generated=attack.loaded.generated,
        expected=capture.expected,
        device=day.capture.device if day else "",
        kind=(day.capture.kind or "") if day else "",
        state=state,
        length_s=(last - first) / S,
        false_alerts=len(replayed.episodes) - len(hits),
        shed=counts["shed"],
        others=tuple(sorted(blamed - usual - {_expected(expected)})),
    )
    if not hits:
        return result
    episode = hits[0]
    return replace(
        result,
        packets=max(int(np.searchsorted(np.sort(sent), episode[0].t_ns, side="right")), 1),
        ms=(episode[0].t_ns - first) / 1e6,
        class_name=episode[-1].class_name,
        start_s=(episode[0].first_ns - first) / S,
        end_s=(hits[-1][-1].last_ns - last) / S,
        role=episode[0].role,
        mac=episode[0].device.mac,
    )


def _expected(expected: ExpectedSubject) -> str:
    return f"victim {expected.victim}" if expected.victim else expected.mac


def _rows(agent: Agent, mac: int) -> tuple[int, int]:
    """Return how many rows of a device were judged by limits of its own, and how many were above them."""
    limits = agent.detector.limits_of(mac)
    return (limits.judged, limits.flagged) if limits else (0, 0)


def _false_alerts(agent: Agents, episodes: Sequence[Episode]) -> tuple[FalseAlert, ...]:
    return tuple(
        FalseAlert(
            agent=agent,
            time=datetime.fromtimestamp(episode[0].t_ns / S, UTC).isoformat(timespec="seconds"),
            mac=episode[0].device.mac,
            role=episode[0].role,
            class_name=episode[-1].class_name,
            explanation=episode[0].explanation,
        )
        for episode in episodes
    )
