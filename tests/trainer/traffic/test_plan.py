"""Plans: what cannot be generated is refused by name."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.trainer.traffic.packets import SMALL
from trainer.traffic.captures import generate
from trainer.traffic.plan import AttackPlan, PlanError


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"devices": ("toaster",)}, "toaster"),
        ({"devices": ()}, "devices"),
        ({"attacks": ("mirai.dns",)}, "mirai.dns"),
        ({"attacks": ("mirai.scan:speed=3",)}, "speed"),
        ({"attacks": ("mirai.scan:rate=fast",)}, "fast"),
        ({"attacks": ("mirai.udp:port=70000",)}, "70000"),
        ({"attacks": ("mirai.scan:spoof=any",)}, "cannot spoof"),
        ({"attacks": ("gafgyt.tcp:spoof=all",)}, "all"),
        ({"attacks": ("mirai.udp:rate=9", "mirai.udp:rate=9.0")}, "twice"),
        ({"infected": ("plug-9",)}, "plug-9"),
        ({"hours": 25.0}, "25"),
        ({"snaplen": 10}, "snaplen"),
        ({"start": datetime(1900, 1, 1, tzinfo=UTC)}, "start is 1900-01-01"),
    ],
)
def test_an_impossible_plan_is_refused_by_name(tmp_path, change, named):
    with pytest.raises(PlanError, match=named):
        generate(replace(SMALL, **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_attack_names_say_how_they_differ():
    assert AttackPlan.parse("mirai.scan").name == "mirai.scan"
    assert AttackPlan.parse("mirai.syn:spoof=any:rate=500").name == "mirai.syn-rate=500-spoof=any"
    assert AttackPlan.parse("mirai.syn:spoof=any").spoofed
    assert not AttackPlan.parse("gafgyt.tcp:spoof=own").spoofed
