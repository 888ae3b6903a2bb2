"""`botwatch trainer evaluate --evasions`: attacks that try not to be noticed, generated into each device's days.

This module knows which attacks are tried, and tries them on every device by several processes. Each meets an agent that
is cold (the attack alone), that learns, and that has learnt (`trainer.judge.stage`). What a device would have to keep
to so that nothing is reported within a day is searched by `trainer.judge.unseen`; `trainer.judge.evasion_findings` is
how it all reads. Everything is generated, and nothing here goes back into a model or a limit.
"""

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_agent.config import AgentConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract.captures import CaptureManifest
from edge_agent.progress import Progress
from trainer.judge.evaluation import AttackTrial
from trainer.judge.evasive import Attacker, Flood, Pace, PortScan
from trainer.judge.evasive_sessions import Contacts, Login
from trainer.judge.stage import DAY_S, Attempt, DeviceDays, Stage, State, device_days
from trainer.judge.unseen import FALSE_MACS, Unseen, search

BUDGET_S = 800.0
"""Seconds of this machine's time after which nothing more is searched for; what was left out is said."""

MOST_PACKETS = 100_000
"""Packets of one attack at most, unless every packet has another source MAC (`unseen.FALSE_MACS`)."""

SETTLE_S = 10.0
"""Seconds for which an attack goes on after its first alert, so that its episode gets a class."""


Label = Literal["flood", "scan", "login", "contacts"]


@dataclass(frozen=True, kw_only=True)
class Evasion:
    """An attack of the list, and the seconds for which it goes on if it is not reported."""

    attack: Attacker
    label: Label
    seconds: float

    @property
    def packets(self) -> int:
        """The most packets that are sent."""
        return FALSE_MACS if getattr(self.attack, "macs", "own") == "random" else MOST_PACKETS


@dataclass(frozen=True, kw_only=True)
class EvasionTrial(AttackTrial):
    """An evasion tried on a device; ``capture`` is its name, ``device`` is "" where it was tried alone.

    ``sent`` packets were sent until it was alerted, or in all. ``named`` is whom the alert names: the device, its
    router, or a false MAC that the attack used.
    """

    sent: int
    named: str = ""
    explanation: str = ""


@dataclass(frozen=True, kw_only=True)
class Evasions:
    """All that was tried with one bundle.

    ``skipped`` says why captures were left out, ``left_out`` what there was no time for. ``not_learnt`` are devices
    that had no limits of their own when the attacks on a learnt device began.
    """

    bundle: str
    trials: tuple[EvasionTrial, ...]
    unseen: tuple[Unseen, ...]
    skipped: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    not_learnt: tuple[str, ...] = ()
    seconds: float = 0.0


def _each(label: Label, seconds: float, *attacks: Attacker) -> list[Evasion]:
    return [Evasion(attack=attack, label=label, seconds=seconds) for attack in attacks]


def _steady(rates: Sequence[float], seconds: float, **more: object) -> list[Evasion]:
    return _each("flood", seconds, *(Flood(pace=Pace(rate=rate), **more) for rate in rates))  # type: ignore[arg-type]


def _scans(rates: Sequence[float], **more: object) -> list[Evasion]:
    scans = (PortScan(pace=Pace(rate=rate), **more) for rate in rates)  # type: ignore[arg-type]
    return [Evasion(attack=scan, label="scan", seconds=max(120.0, 400 / scan.pace.rate)) for scan in scans]


def _paced(seconds: float, *paces: Pace) -> list[Evasion]:
    return _each("flood", seconds, *(Flood(pace=pace) for pace in paces))


_MINUTE, _QUARTER = 1 / 60, 1 / 900

EVASIONS: tuple[Evasion, ...] = (
    *_steady((10, 20, 50, 100, 200, 500, 1000), 600),
    *_steady((10, 20, 100, 1000), 600, protocol="ack", size=0, port=80),
    *_steady((20, 100, 1000), 600, protocol="ack", size=0, port=80, answers="each"),
    *_steady((20, 100), 600, port=53, size=40, answers="each"),
    *_steady((100,), 600, answers="unreachable"),
    *_steady((100,), 600, protocol="syn", size=0, port=80),
    *_steady((100,), 600, protocol="icmp", size=56),
    *_steady((20, 100), 600, to="cloud"),
    *_steady((100,), 600, to="local"),
    *_steady((100,), 600, sockets="many"),
    *_steady((100,), 600, source="any"),
    *_steady((100,), 600, macs="router"),
    *_steady((100,), 600, macs="random"),
    *_steady((20, 100), 600, version=6),
    *_paced(720, Pace(rate=100, shape="ramp", period_s=600)),
    *_paced(7320, Pace(rate=100, shape="ramp", period_s=7200)),
    *_paced(720, Pace(rate=1000, shape="ramp", period_s=600)),
    *_paced(600, Pace(rate=100, shape="random")),
    *_paced(1800, Pace(rate=500, shape="bursts"), Pace(rate=50, shape="bursts", period_s=10)),
    *_scans((10, 2, 0.5, 0.2, 0.1)),
    *_scans((2, 0.2), port=0),
    *_scans((2, 0.2), protocol="udp", port=53),
    *_scans((2,), answers="all"),
    *_scans((2, 0.2), version=6),
    *_scans((2,), macs="router"),
    *_scans((2,), macs="random"),
    *_scans((2, 0.2), targets="local"),
    *_scans((1000, 100, 2), targets="ports"),
    *_scans((10, 0.5), protocol="icmp"),
    *_scans((10, 0.5), protocol="icmp", targets="local"),
    Evasion(attack=PortScan(pace=Pace(rate=0.2, shape="jittered")), label="scan", seconds=2000),
    Evasion(attack=PortScan(pace=Pace(rate=10, shape="bursts")), label="scan", seconds=1800),
    *_each("login", 600, *(Login(port=port, at_once=at_once) for port in (23, 22) for at_once in (16, 1))),
    *_each("login", 600, Login(to="new")),
    *_each(
        "contacts",
        10_800,
        *(Contacts(pace=Pace(rate=_MINUTE), way=way) for way in ("anew", "held", "unanswered", "refused")),
        Contacts(pace=Pace(rate=_MINUTE, shape="jittered")),
        Contacts(pace=Pace(rate=_MINUTE, shape="random")),
        Contacts(pace=Pace(rate=_MINUTE, shape="random"), way="unanswered"),
        Contacts(pace=Pace(rate=_MINUTE), to="cloud"),
    ),
    *_each("contacts", DAY_S, Contacts(pace=Pace(rate=_QUARTER)), Contacts(pace=Pace(rate=_QUARTER), way="unanswered")),
)
"""The list: each way in which an attack is made less noticeable, most of them at a rate that is found without it."""


def evade(
    bundle: Path,
    manifests: Sequence[tuple[CaptureManifest, Path]],
    config: AgentConfig,
    *,
    evasions: Sequence[Evasion] = EVASIONS,
    searched: bool = True,
    budget_s: float = BUDGET_S,
) -> Evasions:
    """Try attacks on every device of manifests (each with the folder its files start from).

    ``config`` is that of the agent, which learns on site as it says. With ``searched`` also find what stays unseen.
    """
    began = time.monotonic()
    devices, skipped = device_days(manifests)
    tasks = [_Task(days, state, bundle, config, tuple(evasions), searched) for days, state in _order(devices)]
    trials: list[EvasionTrial] = []
    unseen: list[Unseen] = []
    left_out: list[str] = []
    not_learnt: list[str] = []
    workers = min(len(tasks), os.cpu_count() or 1) or 1
    context = multiprocessing.get_context("spawn")  # a copy of this process, which may run threads, could hang
    with Progress("evading", len(tasks)) as progress, ProcessPoolExecutor(workers, mp_context=context) as pool:
        deadline = time.time() + budget_s
        futures = {pool.submit(_carry_out, task, deadline): task for task in tasks}
        done = {}
        for future in as_completed(futures):
            task = futures[future]
            done[id(task)] = future.result()
            progress.step(note=f"{task.days.device}, {task.state}")
    for task in tasks:
        tried, found, missing, learnt = done[id(task)]
        trials += tried
        unseen += found
        left_out += missing
        not_learnt += [] if learnt or task.state != "learnt" else [task.days.device]
    return Evasions(
        bundle=bundles.load(bundle).sha256,
        trials=tuple(trials),
        unseen=tuple(unseen),
        skipped=tuple(skipped),
        left_out=tuple(left_out),
        not_learnt=tuple(not_learnt),
        seconds=time.monotonic() - began,
    )


@dataclass(frozen=True)
class _Task:
    """One device in one state, for one process."""

    days: DeviceDays
    state: State
    bundle: Path
    config: AgentConfig
    evasions: tuple[Evasion, ...]
    searched: bool


def _order(devices: Sequence[DeviceDays]) -> list[tuple[DeviceDays, State]]:
    """Return what is tried on what: the longest first; alone only once, since no device's traffic is in it."""
    pairs: list[tuple[DeviceDays, State]] = [(days, "learnt") for days in devices]
    pairs += [(days, "learning") for days in devices]
    return pairs + [(days, "cold") for days in devices[:1]]


def _carry_out(task: _Task, deadline: float) -> tuple[list[EvasionTrial], list[Unseen], list[str], bool]:
    """Try everything on one device; return trials, what stays unseen, what had no time, and whether it has learnt."""
    stage = Stage(bundles.load(task.bundle), task.config, task.days, task.state)
    trials, left_out = [], []
    for evasion in task.evasions:
        if time.time() > deadline:
            left_out.append(f"{task.days.device} ({task.state}): {evasion.attack.name}")
            continue
        packets = evasion.packets
        attempt = stage.attempt(evasion.attack, seconds=evasion.seconds, packets=packets, settle_s=SETTLE_S)
        trials.append(_trial(evasion, task, attempt))
    found: list[Unseen] = []
    if task.searched and task.state == "learnt":
        found, missing = search(stage, deadline)
        left_out += missing
    return trials, found, left_out, stage.learnt


def _trial(evasion: Evasion, task: _Task, attempt: Attempt) -> EvasionTrial:
    alone = task.state == "cold"
    return EvasionTrial(
        capture=evasion.attack.name,
        label=evasion.label,
        generated=True,
        expected=False,
        device="" if alone else task.days.device,
        length_s=attempt.length_s,
        packets=attempt.packets,
        ms=None if attempt.seconds is None else attempt.seconds * 1000,
        class_name=attempt.class_name,
        false_alerts=len(attempt.others),
        kind="alone" if alone else task.days.kind,
        state=task.state,
        sent=attempt.sent,
        role="source" if attempt.mac else "",
        mac=attempt.mac,
        named=attempt.named,
        others=attempt.others,
        explanation=attempt.explanation,
    )
