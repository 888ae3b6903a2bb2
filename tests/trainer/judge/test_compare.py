"""Fits that differ in one thing: which there are, and what is said of them side by side."""

from pathlib import Path

import pytest

from edge_agent.contract import captures
from edge_agent.contract.columns import CLEAN, DEVICE_COLUMNS
from tests.conftest import Home
from trainer.__main__ import main
from trainer.config import Config, DatasetEntry
from trainer.judge import compare
from trainer.judge.compare import Arm, CompareError, arms
from trainer.judge.evaluation import AttackTrial, Day, Evaluation
from trainer.report import findings


@pytest.fixture(scope="module")
def config(home: Home) -> Config:
    return Config((DatasetEntry("captures", home.captures),))


@pytest.fixture(scope="module")
def tried(home: Home) -> list[tuple[captures.CaptureManifest, Path]]:
    manifest, _, root = captures.load(home.captures)
    return [(manifest, root)]


def test_each_device_is_left_out_of_a_fit_and_tried_on_its_own_days(config, tried):
    found = arms("lodo", config, tried)
    assert [arm.left_out for arm in found] == ["plug-1", "thermostat-1"]
    for arm in found:
        assert arm.left_out not in arm.config.data[0].devices
        benign = {c.device for m, _ in arm.tried for c in m.captures if c.label == "benign"}
        assert benign == {arm.left_out}
        assert {c.label for m, _ in arm.tried for c in m.captures} > {"benign", "mirai.scan"}


def test_each_attack_and_each_family_is_left_out_of_a_classifier(config, tried):
    found = {arm.left_out: set(arm.config.data[0].labels) for arm in arms("lofo", config, tried)}
    everything = {"benign", "mirai.scan", "mirai.syn", "mirai.udpplain", "gafgyt.udp"}
    assert found["mirai.scan"] == everything - {"mirai.scan"}
    assert found["family mirai"] == {"benign", "gafgyt.udp"}
    assert set(found) == {*(everything - {"benign"}), "family mirai", "family gafgyt"}


def test_each_source_is_tried_on_the_others(home, config, tried):
    two = Config((DatasetEntry("captures", home.captures), DatasetEntry("captures", home.later)))
    first, second = arms("cross", two, tried)
    assert (first.config.data, second.config.data) == (two.data[:1], two.data[1:])
    assert first.tried[0][1] == home.later
    with pytest.raises(CompareError, match="two sources"):
        arms("cross", config, tried)


def test_column_sets_differ_in_columns_and_in_the_counts_rule(config, tried):
    found = {arm.name: arm.config for arm in arms("columns", config, tried)}
    assert len(found["115, no counts rule"].model_columns()) == 115
    assert found["115, no counts rule"].schemas == (CLEAN,)
    assert found["115, no counts rule"].decision.floors == {}
    assert len(found["140 + counts rule (default)"].model_columns()) == 115 + len(DEVICE_COLUMNS)
    assert found["140 + counts rule (default)"] == config
    assert not any(c.startswith("HH_jit") for c in found["125 without HH_jit + counts rule"].model_columns())


def test_a_model_for_each_device_is_compared_with_the_shared_one(config, tried):
    shared, *own = arms("models", config, tried)
    assert shared.config == config
    assert [arm.config.data[0].devices for arm in own] == [("plug-1",), ("thermostat-1",)]


@pytest.mark.parametrize("kind", ["lodo", "lofo", "models"])
def test_rows_without_captures_cannot_be_left_out_by_device(home, tried, kind):
    rows = Config((DatasetEntry("rows", home.run / "rows.parquet"),))
    with pytest.raises(CompareError, match="only captures can be left out"):
        arms(kind, rows, tried)


def made(arm: str, left_out: str, *trials: AttackTrial, alerts: int = 0, learnt: int | None = None) -> tuple:
    day = Day("d.pcap", "x", True, 1.0, 100, 5, alerts, 0, learnt, 0.01)
    return Arm(arm, Config((DatasetEntry("rows", Path("x")),)), (), left_out), [
        Evaluation("0", (day,), (), trials, device_days=1.0)
    ] * 2


def trial(label: str, said: str) -> AttackTrial:
    return AttackTrial("a.pcap", label, True, True, "x", 20, 5.0, said, 0.0, 0.0, 1.0, 0)


def test_rejection_is_counted_over_what_was_left_out():
    out = made("without mirai.scan", "mirai.scan", trial("mirai.scan", "unknown"), trial("mirai.scan", "mirai"),
               trial("mirai.udp", "mirai.udp"), trial("mirai.udp", "unknown"))  # fmt: skip
    table = next(t for t in compare.report("lofo", [out], "c").tables if t.title.startswith("Class told"))
    assert table.rows == (("mirai.scan", 4, 0.5, 0.5, "mirai", 0.5, 0.5),)


def test_learnt_limits_stand_beside_the_shared_ones():
    found = compare.report("lodo", [made("without x", "x", alerts=7, learnt=1)], "c")
    assert any("2 false alerts on 2 captures" in line and "shared limits 14" in line for line in found.lead)
    assert found.tables[1].rows[0][2:4] == (7, 1)


def test_seeds_give_an_interval():
    arm, (one, other) = made("a", "", trial("mirai.scan", "mirai.scan"), alerts=2)
    other = Evaluation("0", (Day("d", "x", True, 1.0, 10, 0, 4, 0),), (), one.injected, device_days=1.0)
    table = compare.report("chrono", [(arm, [one, other])], "c").tables[-1]
    assert table.rows[0][1:4] == (2, 3.0, pytest.approx(12.706, abs=0.01))


def test_the_command_fits_converts_and_evaluates_and_remembers(home, tmp_path, capsys):
    text = f"data: [{{kind: captures, path: {home.captures}, labels: [benign]}}]\nautoencoder: {{epochs: 3}}\n"
    (tmp_path / "fit.yaml").write_text(text)
    words = ["compare", str(tmp_path / "fit.yaml"), "--captures", str(home.later), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    (found,) = findings.load(tmp_path / "out")
    assert found.name == "protocol-chrono"
    assert found.tables[0].rows[0][2] == pytest.approx(2 * 2 / 24, rel=0.1)
    bundle = next((tmp_path / "out").rglob("manifest.json"))
    before = bundle.stat().st_mtime_ns
    assert main(words) == 0
    assert bundle.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--captures", "nowhere"], "nowhere"),
        (["--by", "cross"], "two"),
    ],
)
def test_what_cannot_be_compared_is_said(home, tmp_path, capsys, words, reason):
    (tmp_path / "fit.yaml").write_text(f"data: [{{kind: captures, path: {home.captures}}}]\n")
    assert main(["compare", str(tmp_path / "fit.yaml"), "--out", str(tmp_path / "out"), *words]) == 2
    assert reason in capsys.readouterr().err
