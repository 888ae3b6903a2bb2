"""The bounds of a bundle, at their edges, on scores made by hand."""

from dataclasses import replace

import numpy as np
import pytest

from converter import parity
from converter.parity import Outcome, Parity, ParityRows, Side
from edge_agent.contract.decision import Decision, Tail, Threshold

BENIGN, ATTACK = 4000, 1000


def side(limit: float = 1.0, benign_flips: int = 0, fast_flips: int = 0, class_flips: int = 0) -> Side:
    """The output of networks that err on so many rows: benign 0.5, attack 2.0, the limit between."""
    full = np.repeat(np.float32([0.5, 2.0]), [BENIGN, ATTACK])
    fast, classes = full.copy(), np.repeat(np.int16([0, 1]), [BENIGN, ATTACK])
    full[:benign_flips], fast[:fast_flips], classes[BENIGN : BENIGN + class_flips] = 3.0, 3.0, 2
    tail = Tail(level=0.2, scale=0.8, shape=0.0, peaks=400, days=2.5, limit=0.6, bound=0.9)
    threshold = Threshold(
        limit=limit, highest=0.5, tau=0.8, quantile=0.9, tail=tail, n=3.0, mean=0.5, std=0.1, min=0.1, max=0.9, rows=100
    )
    return Side(Outcome(full, fast, classes), Decision(threshold, threshold, {}))


ROWS = ParityRows(
    optimise=np.zeros(BENIGN + ATTACK, dtype=bool),
    test=np.arange(BENIGN + ATTACK) < BENIGN,
    attack=np.arange(BENIGN + ATTACK) >= BENIGN,
    label=np.repeat(["benign", "scan"], [BENIGN, ATTACK]),
    benign=np.arange(BENIGN + ATTACK) < BENIGN,
    device=np.full(BENIGN + ATTACK, "plug"),
    run=np.repeat([0, -1], [BENIGN, ATTACK]),
    start=np.zeros(BENIGN + ATTACK, dtype=bool),
    t_ns=np.arange(BENIGN + ATTACK) * 1_000_000_000,
)
SIZES = {"autoencoder.tflite": 65536, "classifier.tflite": 8192}
TIMES = {"autoencoder.tflite": {1: 2.0, 64: 0.5}}


def compared(ours: Side, variant: str = "int8", sizes: dict[str, int] = SIZES) -> Parity:
    return parity.compare(variant, ROWS, ours, side(), sizes, TIMES, [])


def test_equal_networks_break_no_bound() -> None:
    assert compared(side()).failures == ()


def test_scores_and_limit_that_move_together_flip_nothing() -> None:
    """Each side decides with its own limit: a format that scores everything higher is no worse for it."""
    ours = side(limit=1.5)
    ours = replace(ours, outcome=replace(ours.outcome, full=ours.outcome.full * 1.5, fast=ours.outcome.fast * 1.5))
    assert compared(ours).benign.share == 0
    assert compared(ours).benign.error_median == pytest.approx(0.5)


@pytest.mark.parametrize("rule", ["full", "fast"])
def test_one_benign_decision_in_a_thousand_may_flip_and_no_more(rule: str) -> None:
    flips = "benign_flips" if rule == "full" else "fast_flips"
    assert compared(side(**{flips: 4})).failures == ()
    (failure,) = compared(side(**{flips: 5})).failures
    assert failure == f"flips 0.12% of benign decisions (5 of 4000 rows, rule {rule}), bound 0.1%"


def test_one_class_in_a_hundred_may_flip_and_no_more() -> None:
    assert compared(side(class_flips=50)).failures == ()
    (failure,) = compared(side(class_flips=51)).failures
    assert failure == "flips 1.02% of classes (51 of 5000 rows, the largest share in scan), bound 1%"


@pytest.mark.parametrize("name", SIZES)
def test_size_bounds_are_those_of_int8(name: str) -> None:
    larger = SIZES | {name: SIZES[name] + 1}
    assert compared(side(), "int8", larger).failures == (f"{name} has {SIZES[name] + 1} bytes, bound {SIZES[name]}",)
    assert compared(side(), "float32", larger).failures == ()


def test_defects_found_elsewhere_are_failures() -> None:
    found = parity.compare("int8", ROWS, side(), side(), SIZES, TIMES, ["crashes"])
    assert found.failures == ("crashes",)


def test_network_that_depends_on_the_batch_size_is_unsteady() -> None:
    rows = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    assert parity.unsteady(np.tanh, rows, (1, 16, 64)) == []
    assert parity.unsteady(lambda x: x * len(x), rows, (1, 64)) != []
    assert parity.unsteady(lambda x: x * np.float32(np.nan), rows, (1, 64)) == ["gives values that are not finite"]
