"""Homes drawn from a seed: which devices each has, and what happens in it."""

import random
from dataclasses import replace

from trainer.traffic.plan import ATTACKS, DEVICES, Plan

SMALLEST, LARGEST = 3, 8
"""Devices of a home."""

INFECTED_EVERY = 5
"""One home in this many has an infected device, which runs every attack."""


def draw(seed: int, count: int) -> tuple[Plan, ...]:
    """Return the plans of ``count`` homes, all drawn from ``seed``, a day each."""
    plans = []
    for number in range(count):
        rng = random.Random(f"{seed} home {number}")
        devices = tuple(rng.choices(DEVICES, k=rng.randint(SMALLEST, LARGEST)))
        plan = Plan(seed=rng.getrandbits(32), days=1, hours=24.0, devices=devices, attacks=())
        infected = number % INFECTED_EVERY == 0
        plans.append(replace(plan, attacks=ATTACKS, max_attack_packets=8000) if infected else plan)
    return tuple(plans)
