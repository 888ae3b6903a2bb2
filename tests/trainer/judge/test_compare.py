"""Fits that differ in one thing: the list of each kind, and the report on them side by side."""

from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.contract import captures
from edge_agent.contract.columns import CLEAN, DEVICE_COLUMNS
from tests.conftest import Home
from trainer.__main__ import main
from trainer.config import Config, DatasetEntry
from trainer.judge import compare
from trainer.judge.compare import ComparedFit, CompareError, compared_fits
from trainer.judge.evaluation import AttackTrial, Day, Evaluation
from trainer.report import findings


@pytest.fixture(scope="module")
def config(home: Home) -> Config:
    return Config((DatasetEntry("captures", home.captures),))


@pytest.fixture(scope="module")
def tried(home: Home) -> list[tuple[captures.CaptureManifest, Path]]:
    manifest, _, root = captures.load(home.captures)
    return [(manifest, root)]


def test_each_device_is_left_out_of_a_fit_and_tried_on_its_own_days(config, tried, tmp_path):
    found = compared_fits("lodo", config, tried, tmp_path)
    assert [arm.left_out for arm in found] == ["plug-1", "thermostat-1"]
    for arm in found:
        assert arm.left_out not in arm.config.data[0].devices
        benign = {c.device for m, _ in arm.tried for c in m.captures if c.label == "benign"}
        assert benign == {arm.left_out}
        assert {c.label for m, _ in arm.tried for c in m.captures} > {"benign", "mirai.scan"}


def test_each_attack_and_each_family_is_left_out_of_a_classifier(config, tried, tmp_path):
    found = {arm.left_out: set(arm.config.data[0].labels) for arm in compared_fits("lofo", config, tried, tmp_path)}
    everything = {"benign", "mirai.scan", "mirai.syn", "mirai.udpplain", "gafgyt.udp"}
    assert found["mirai.scan"] == everything - {"mirai.scan"}
    assert found["family mirai"] == {"benign", "gafgyt.udp"}
    assert set(found) == {*(everything - {"benign"}), "family mirai", "family gafgyt"}


def test_each_source_is_tried_on_the_others(home, config, tried, tmp_path):
    two = Config((DatasetEntry("captures", home.captures), DatasetEntry("captures", home.later)))
    first, second = compared_fits("cross", two, tried, tmp_path)
    assert (first.config.data, second.config.data) == (two.data[:1], two.data[1:])
    assert first.tried[0][1] == home.later
    with pytest.raises(CompareError, match="two sources"):
        compared_fits("cross", config, tried, tmp_path)


def test_column_sets_differ_in_columns_and_in_the_counts_rule(config, tried, tmp_path):
    found = {arm.name: arm.config for arm in compared_fits("columns", config, tried, tmp_path)}
    assert len(found["115, no counts rule"].model_columns()) == 115
    assert found["115, no counts rule"].schemas == (CLEAN,)
    assert found["115, no counts rule"].decision.floors == {}
    assert len(found["140 + counts rule (default)"].model_columns()) == 115 + len(DEVICE_COLUMNS)
    assert found["140 + counts rule (default)"] == config
    assert not any(c.startswith("HH_jit") for c in found["125 without HH_jit + counts rule"].model_columns())


def test_a_model_for_each_device_is_compared_with_the_shared_one(config, tried, tmp_path):
    shared, *own = compared_fits("models", config, tried, tmp_path)
    assert shared.config == config
    assert [arm.config.data[0].devices for arm in own] == [("plug-1",), ("thermostat-1",)]


@pytest.mark.parametrize("kind", ["lodo", "lofo", "models", "rotate"])
def test_rows_without_captures_cannot_be_left_out_by_device(home, tried, kind, tmp_path):
    rows = Config((DatasetEntry("rows", home.run / "rows.parquet"),))
    with pytest.raises(CompareError, match="only captures can be left out"):
        compared_fits(kind, rows, tried, tmp_path)


def day(alerts: int, learnt: int | None = None) -> Day:
    return Day(
        capture="d.pcap",
        device="x",
        generated=True,
        days=1.0,
        packets=100,
        flagged=5,
        alerts=alerts,
        early=0,
        alerts_learnt=learnt,
        flagged_learnt=0.01,
    )


def made(name: str, left_out: str, *trials: AttackTrial, alerts: int = 0, learnt: int | None = None) -> tuple:
    one = Evaluation(bundle="0", days=(day(alerts, learnt),), alone=(), injected=trials, device_days=1.0)
    return ComparedFit(name, Config((DatasetEntry("rows", Path("x")),)), (), left_out), [one] * 2


def trial(label: str, class_name: str) -> AttackTrial:
    return AttackTrial(
        capture="a.pcap",
        label=label,
        generated=True,
        expected=True,
        device="x",
        packets=20,
        ms=5.0,
        class_name=class_name,
        start_s=0.0,
        end_s=0.0,
        length_s=1.0,
    )


def test_rejection_is_counted_over_what_was_left_out():
    out = made("without mirai.scan", "mirai.scan", trial("mirai.scan", "unknown"), trial("mirai.scan", "mirai"),
               trial("mirai.udp", "mirai.udp"), trial("mirai.udp", "unknown"))  # fmt: skip
    table = next(t for t in compare.report("lofo", [out], "c").tables if t.title.startswith("Class in the alert"))
    assert table.rows == (("mirai.scan", 4, 0.5, 0.5, "mirai", 0.5, 0.5),)


def test_learnt_limits_stand_beside_the_shared_ones():
    found = compare.report("lodo", [made("without x", "x", alerts=7, learnt=1)], "c")
    assert any("2 false alerts on 2 captures" in line and "shared limits 14" in line for line in found.lead)
    assert found.tables[1].rows[0][2:4] == (7, 1)


def test_seeds_give_an_interval():
    fit, (one, _) = made("a", "", trial("mirai.scan", "mirai.scan"), alerts=2)
    table = compare.report("chrono", [(fit, [one, replace(one, days=(day(4),))])], "c").tables[-1]
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
    (tmp_path / "agent.yaml").write_text("scoring: {max_rows_per_s: 100}\n")
    result = bundle.parents[1] / "evaluation.json"
    first = result.read_bytes()
    assert main([*words, "--config", str(tmp_path / "agent.yaml")]) == 0
    assert result.read_bytes() != first, "another agent judges the same bundle anew"
    assert bundle.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--captures", "nowhere"], "nowhere"),
        (["--by", "cross"], "two"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused_with_the_reason(home, tmp_path, capsys, words, reason):
    (tmp_path / "fit.yaml").write_text(f"data: [{{kind: captures, path: {home.captures}}}]\n")
    assert main(["compare", str(tmp_path / "fit.yaml"), "--out", str(tmp_path / "out"), *words]) == 2
    assert reason in capsys.readouterr().err
