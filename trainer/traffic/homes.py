"""Homes drawn from one seed: kinds and numbers of devices, habits, and in one home of five an infected device or two.

The same seed gives the same homes, and more homes begin with those that fewer are.
"""

import multiprocessing
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime, timedelta
from pathlib import Path

from trainer.traffic.captures import generate
from trainer.traffic.plan import ATTACKS, PEOPLES, Plan, PlanError

MAX_HOMES = 1000

MAX_JOBS = 16
"""Processes at once; each keeps one capture in memory, up to 200 MB."""

SIZES = (3, 4, 5, 6, 7, 8, 8, 10, 10, 12, 14, 18, 25)
"""Numbers of devices that homes have, each as likely as the others."""

SHARES = {
    "plug": 5, "bulb": 3, "camera": 4, "battery_camera": 2, "doorbell": 2, "speaker": 2, "hub": 2, "gateway": 2,
    "tv": 2, "thermostat": 1, "printer": 1, "phone": 3, "pc": 2,
}  # fmt: skip
"""Kind of device -> how frequent it is among the devices of all homes."""

INFECTED_EVERY = 5

MAX_ATTACK_PACKETS = 4000
"""Packets of one attack: enough for its class, few beside a home's benign day."""


def draw(seed: int, count: int) -> tuple[Plan, ...]:
    """Return the plans of ``count`` homes, a day long, with names home-01 and so on. PlanError names a bad number.

    >>> homes = draw(7, 10)
    >>> [home.home for home in homes[:2]], draw(7, 3) == homes[:3], sum(bool(home.attacks) for home in homes)
    (['home-01', 'home-02'], True, 2)
    """
    if not 1 <= count <= MAX_HOMES:
        raise PlanError(f"homes is {count}, must be 1 to {MAX_HOMES}")
    if seed < 0:
        raise PlanError(f"seed is {seed}, must be at least 0")
    return tuple(_home(seed, number) for number in range(1, count + 1))


def _home(seed: int, number: int) -> Plan:
    rng = random.Random(f"{seed}/homes/{number}")
    devices = rng.choices(tuple(SHARES), tuple(SHARES.values()), k=rng.choice(SIZES))
    if all(kind in PEOPLES for kind in devices):
        devices[0] = "camera"
    plan = Plan(
        seed=rng.getrandbits(62),
        start=datetime(2026, 1, 5, tzinfo=UTC) + timedelta(days=rng.randrange(300)),
        days=1,
        hours=24.0,
        devices=tuple(devices),
        attacks=(),
        max_attack_packets=MAX_ATTACK_PACKETS,
        home=f"home-{number:02}",
        varied=True,
    )
    if number % INFECTED_EVERY != seed % INFECTED_EVERY:
        return plan
    things = [name for name, kind in zip(plan.names, devices, strict=True) if kind not in (*PEOPLES, "battery_camera")]
    infected = rng.sample(things, min(len(things), rng.randint(1, 2)))
    return Plan(**{**vars(plan), "attacks": ATTACKS if infected else (), "infected": tuple(infected)})


def generate_homes(
    plans: Sequence[Plan], out: Path, progress: Callable[[str], None] | None = None, jobs: int | None = None
) -> list[Path]:
    """Write each plan's captures and manifest into the folder of its home below ``out``; return the manifests.

    ``jobs`` processes work at once, by default one for each processor; equal plans give equal files whatever their
    number. `progress(line)` is called after each home.
    """
    for plan in plans:
        plan.check()
        if not plan.home:
            raise PlanError("home is empty, but names the folder of its captures")
    jobs = min(jobs or len(os.sched_getaffinity(0)), MAX_JOBS, len(plans))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        # the largest first, so that no processor waits for one that began late
        order = sorted(plans, key=lambda plan: -len(plan.devices))
        running = {pool.submit(generate, plan, out / plan.home): plan for plan in order}
        for done in as_completed(running):
            done.result()
            if progress is not None:
                progress(f"generated {running[done].home}: {len(running[done].devices)} devices")
    return [out / plan.home / "manifest.yaml" for plan in plans]
