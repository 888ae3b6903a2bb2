"""The document of an evaluation for programs: every key is described, and every figure is that of the evaluation."""

import json
import re
from dataclasses import replace
from pathlib import Path

from edge_agent.contract import bundle as bundles
from tests.conftest import Home
from trainer.__main__ import main
from trainer.judge import record
from trainer.judge.evaluation import AttackTrial, Day, Evaluation

DAY = Day(
    capture="a.pcap",
    device="cam",
    generated=False,
    days=3.5,
    packets=1000,
    flagged=10,
    alerts=1,
    early=1,
    kind="camera",
)
TRIAL = AttackTrial(
    capture="b.pcap", label="scan", generated=False, expected=True, device="cam", length_s=9.0, packets=20, ms=500.0,
    role="source", mac="02:00:00:00:00:01", class_name="unknown", state="known",
)  # fmt: skip


def made(**more: object) -> Evaluation:
    one = Evaluation(
        bundle="ab", days=(DAY, replace(DAY, device="plug", alerts=0)), alone=(), injected=(TRIAL,), device_days=7.0
    )
    return replace(one, **more)  # type: ignore[arg-type]


def keys(value: object, where: str = "") -> set[str]:
    """Return the keys of nested documents, as a.b; those of a list as the keys of what it lists."""
    if isinstance(value, dict):
        return {f"{where}{key}" for key in value}.union(*(keys(v, f"{where}{key}.") for key, v in value.items()))
    if isinstance(value, list):
        return set().union(*(keys(item, where) for item in value))
    return set()


def test_false_alerts_are_given_with_the_days_and_the_bounds():
    found = record.evaluated(made(), "1", "c")
    assert found["benign"]["cold"]["alerts"] == 1
    assert found["benign"]["cold"]["device_weeks"] == 1.0
    assert round(found["benign"]["cold"]["bound_device_week"], 2) == 4.74
    assert round(found["benign"]["cold"]["bound_home_month"]) == 407
    assert found["benign"]["site"] is None
    assert [(d["device"], d["kind"], d["cold"]["alerts"]) for d in found["devices"]] == [
        ("cam", "camera", 1),
        ("plug", "camera", 0),
    ]
    assert found["spread"]["shared"]["sigma_over_mu"] == 0.0


def test_an_attack_says_when_and_by_which_name_it_was_alerted():
    missed = replace(TRIAL, packets=None, ms=None, role="", mac="", class_name="", others=("02:00:00:00:00:fe",))
    one, other = record.evaluated(made(injected=(TRIAL, missed)), "1", "c")["attacks"]
    assert (one["alerted"], one["packets"], one["seconds"], one["role"], one["mac"]) == (
        True, 20, 0.5, "source", "02:00:00:00:00:01",
    )  # fmt: skip
    assert (one["class_name"], one["named_wrongly"], one["device"], one["state"]) == ("unknown", False, "cam", "known")
    assert (other["alerted"], other["seconds"], other["named_wrongly"]) == (False, None, True)


def test_numbers_that_json_does_not_have_are_null(tmp_path):
    record.write(tmp_path / "x.json", {"a": float("inf"), "b": [float("nan"), 1.0]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 1.0]}


def test_the_command_writes_what_the_table_of_keys_describes(home: Home, tmp_path, capsys):
    path = tmp_path / "found.json"
    words = ["evaluate", str(home.bundle), str(home.later), "--learn", "--json", str(path)]
    assert main(words) in (0, 1)
    found = json.loads(path.read_text())
    assert found["bundle"] == {
        "sha256": bundles.load(home.bundle).sha256,
        "version": bundles.load(home.bundle).manifest.version,
    }
    assert found["command"] == f"botwatch trainer evaluate {home.bundle} {home.later} --learn --json {path}"
    text = (Path(__file__).parents[3] / "docs" / "models.md").read_text()
    table = text.partition("<!-- evaluation keys: begin -->")[2].partition("<!-- evaluation keys: end -->")[0]
    described = set(
        re.findall(r"`([a-z_.]+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    )
    proven = keys(record.proven(0, 1.0))
    every = record.evaluated(made(), "1", "c")
    wanted = {key.split(".")[0] for key in keys(every)} | {f"attacks.{key}" for key in record.attack(TRIAL)}
    wanted |= {f"devices.{key}" for key in every["devices"][0]} | {f"days.{key}" for key in every["days"][0]}
    assert described == wanted | proven
