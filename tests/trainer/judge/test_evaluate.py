"""A bundle judged on captures and on rows: the figures, and the rows and times they count."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from edge_agent.config import AgentConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract import captures
from edge_agent.detection.scorer import Scorer
from tests.conftest import Home
from trainer.__main__ import main
from trainer.judge import agreement, evaluate, runs
from trainer.judge import evaluation_findings as evaluations
from trainer.judge.evaluation import AttackTrial, Day, Evaluation, FalseAlert, bound
from trainer.report import findings
from trainer.traffic.captures import generate
from trainer.traffic.plan import Plan


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another home of the kinds the bundle knows: two hours of benign traffic, and two attacks."""
    out = tmp_path_factory.mktemp("captured")
    attacks = ("mirai.scan:seconds=20", "mirai.udpplain:rate=300:seconds=10")
    generate(
        Plan(seed=9, devices=("plug", "thermostat"), attacks=attacks, infected=("plug-1",), days=1, hours=1.5), out
    )
    return out


@pytest.fixture(scope="module")
def evaluation(home: Home, captured: Path) -> Evaluation:
    manifest, _, root = captures.load(captured)
    return evaluate.evaluate(
        bundles.load(home.bundle), [(manifest, root)], AgentConfig(), learn=True, floor=True, rates=(0.1, 1.0, 100.0)
    )


def test_every_attack_is_tried_alone_and_in_the_day_of_every_device(evaluation):
    assert [trial.label for trial in evaluation.alone] == ["mirai.scan", "mirai.udpplain"]
    assert {(trial.label, trial.device) for trial in evaluation.injected} == {
        (label, device) for label in ("mirai.scan", "mirai.udpplain") for device in ("plug-1", "thermostat-1")
    }
    assert evaluation.skipped == ()


def test_attacks_are_detected_soon_and_the_reported_times_are_theirs(evaluation):
    scans = [trial for trial in evaluation.injected if trial.label == "mirai.scan"]
    for trial in scans:
        assert trial.alerted
        assert trial.packets is not None
        assert trial.packets < 100
        assert trial.start_s is not None
        assert abs(trial.start_s) < 5
        assert trial.end_s is not None
        assert abs(trial.end_s) < 30


def test_an_attack_is_also_tried_on_a_device_that_has_learnt(home):
    """The device's earlier days come first, to an agent that learns; a day of its own has nothing before it."""
    (later, _, root), (earlier, _, before) = captures.load(home.later), captures.load(home.captures)
    scan = next(c for c in earlier.captures if c.label == "mirai.scan")
    plug = tuple(c for c in later.captures if c.device == "plug-1")
    sources = [(replace(later, captures=plug), root), (replace(earlier, captures=(scan,)), before)]
    benign = replace(earlier, captures=tuple(c for c in earlier.captures if c.label == "benign"))
    bundle = bundles.load(home.bundle)
    found = evaluate.evaluate(bundle, sources, AgentConfig(), learn=True, earlier=[(benign, before)])
    (cold,), (learning,), (known,), (learnt,) = found.alone, found.learning, found.injected, found.learnt
    assert [t.state for t in (cold, learning, known, learnt)] == ["cold", "learning", "known", "learnt"]
    assert (
        (known.device, known.kind, known.role)
        == (learnt.device, learnt.kind, learnt.role)
        == ("plug-1", "plug", "source")
    )
    assert known.mac == learnt.mac == plug[0].mac
    assert learnt.packets is not None
    assert learnt.packets < 100
    assert found.unlearnt == ()
    (day,) = found.days
    assert day.alerts_site == 0
    assert day.flagged_site is not None
    again = evaluate.evaluate(bundle, sources[:1], AgentConfig(), learn=True)
    assert (again.days[0].alerts_learning, again.days[0].alerts_site) == (day.alerts_learning, None)


def test_what_is_known_of_a_day_does_not_depend_on_the_attacks_before(home):
    """Each attack meets a copy of the agent: tried twice, it gives the same."""
    manifest, _, root = captures.load(home.captures)
    scan = next(c for c in manifest.captures if c.label == "mirai.scan")
    plug = next(c for c in manifest.captures if c.device == "plug-1" and c.label == "benign")
    sources = [(replace(manifest, captures=(plug, scan, scan)), root)]
    one, other = evaluate.evaluate(bundles.load(home.bundle), sources, AgentConfig()).injected
    assert one.alerted
    assert one == other


def test_benign_days_are_counted_in_device_days(evaluation):
    assert len(evaluation.days) == 2
    assert evaluation.device_days == pytest.approx(2 * 1.5 / 24, rel=0.1)
    assert all(day.generated and day.packets > 100 for day in evaluation.days)


def test_the_floor_rises_from_not_seen_to_seen(evaluation):
    name = next(name for name in evaluation.floor if "scan" in name)
    assert evaluation.floor[name] == {0.1: False, 1.0: False, 100.0: True} or evaluation.floor[name][100.0]
    assert not evaluation.floor[name][0.1]


@pytest.mark.parametrize(("count", "exposure"), [(0, 2.0), (3, 10.0), (50, 1.0)])
def test_the_bound_of_a_rate_is_exceeded_so_often_as_it_says(count, exposure):
    assert stats.poisson.cdf(count, bound(count, exposure) * exposure) == pytest.approx(0.05)


def test_a_rate_of_no_exposure_has_no_bound():
    assert bound(0, 0.0) == float("inf")


def trial(device: str, packets: int | None, class_name: str = "mirai.scan", expected: bool = True) -> AttackTrial:
    return AttackTrial(
        capture="a.pcap",
        label="mirai.scan",
        generated=False,
        expected=expected,
        device=device,
        packets=packets,
        ms=None if packets is None else float(packets),
        class_name=class_name,
        start_s=0.5,
        end_s=-1.0,
        length_s=10.0,
    )


def made(*trials: AttackTrial, alerts: int = 0, shed: int = 0) -> Evaluation:
    day = Day(
        capture="b.pcap",
        device="camera",
        generated=False,
        days=2.0,
        packets=1000,
        flagged=10,
        alerts=alerts,
        early=0,
        shed=shed,
    )
    return Evaluation(bundle="0", days=(day,), alone=(), injected=trials, device_days=2.0, budget=10_000)


def test_the_report_says_what_was_missed_and_by_whom():
    found = evaluations.report(made(trial("camera", 20), trial("plug", None, "")), "command")[0]
    text = "\n".join(found.text())
    assert "1 of 2 alerted" in text
    assert "Worst device: plug, 0% of the attacks put into its day are alerted; missed: a." in text
    assert "False device alerts on 1 benign captures: 0 in 2.00 device-days (0.3 device-weeks)" in text
    assert "at most 1.50 a device-day, 10.5 a device-week, 898.7 a home-month (95 %)" in text


def test_blaming_another_than_the_attacker_is_named_wrongly():
    right, wrong = trial("camera", 20), replace(trial("plug", None, ""), others=("02:00:00:00:00:fe",))
    text = "\n".join(evaluations.report(made(right, wrong), "command")[0].text())
    assert "Named wrongly: in 1 of 2 trials an alert blames another" in text
    assert "in 1 of them no alert blames the right one" in text
    assert "Named wrongly" not in "\n".join(evaluations.report(made(right), "command")[0].text())


def test_the_spread_over_devices_is_of_shared_and_of_own_limits():
    base = made().days[0]
    days = [base, replace(base, device="plug", flagged=30, flagged_site=0.02), replace(base, flagged_site=0.0)]
    assert evaluations.spread(days, "flagged") == pytest.approx((2, "plug", 0.03, 0.02, 0.5, 0.02))
    assert evaluations.spread(days, "flagged_site") == pytest.approx((2, "plug", 0.02, 0.01, 1.0, 0.02))
    assert evaluations.spread(days, "flagged_learnt") is None


def test_each_false_alert_is_listed_with_its_reason():
    alert = FalseAlert(
        agent="cold", time="2026-01-05T00:00:00+00:00", mac="02:00:00:00:00:01", role="source", class_name="unknown",
        explanation="reaches 9 new addresses",
    )  # fmt: skip
    one = made(alerts=1)
    found = evaluations.report(replace(one, days=(replace(one.days[0], found=(alert,)),)), "command")[0]
    assert any("reaches 9 new addresses" in line for line in found.text())


def test_precision_is_that_of_bayes_at_the_base_rate():
    found = evaluations.report(made(trial("camera", 20), alerts=1), "command", base_rate=0.5)[0]
    assert any(f"right in {0.5 / (0.5 + 0.5):.1%}" in line for line in found.lead)


def test_attacks_without_a_goal_are_listed_but_not_counted():
    found = evaluations.report(made(trial("camera", 20), trial("plug", None, "", expected=False)), "command")[0]
    assert "1 of 1 alerted" in "\n".join(found.lead)


def test_rows_that_the_budget_left_unscored_are_stated():
    quiet, shed = (" ".join(evaluations.report(made(shed=n), "command")[0].lead) for n in (0, 5000))
    assert "unscored" not in quiet
    assert "The budget of 10,000 rows a second left 5,000 rows unscored, in 1 of 1 trials." in shed


def test_the_command_writes_findings_and_fails_when_something_was_missed(home, captured, tmp_path, capsys):
    status = main(["evaluate", str(home.bundle), str(captured), "--out", str(tmp_path)])
    said = capsys.readouterr().out
    names = [item.name for item in findings.load(tmp_path)]
    assert names == ["evaluation"]
    assert status == int("benign captures: 0 in" not in said or "2 of 2 alerted" not in said)
    assert "SHA-256" in said


def test_rows_of_a_run_are_judged_by_the_quantised_models(home, tmp_path, capsys):
    assert main(["evaluate", str(home.bundle), str(home.run / "rows.parquet"), "--out", str(tmp_path)]) == 0
    (found,) = findings.load(tmp_path)
    labels = {row[0]: row for row in found.tables[0].rows}
    assert labels["benign"][2] < 0.01
    assert labels["mirai.scan"][2] > 0.9
    matrix = {series.name: series for series in found.figures[0].series}
    assert np.argmax(matrix["mirai.scan"].y) == matrix["mirai.scan"].x.index("mirai.scan")


def test_the_agent_that_judges_is_the_one_that_is_configured(home, captured, tmp_path, capsys):
    """Its budget of rows holds: at the default a flood of 300 packets a second is scored whole, at 100 it is not."""
    (tmp_path / "agent.yaml").write_text("scoring: {max_rows_per_s: 100}\n")
    shares = []
    for words in ([], ["--config", str(tmp_path / "agent.yaml")]):
        assert main(["evaluate", str(home.bundle), str(captured), "--out", str(tmp_path), *words]) in (0, 1)
        shares.append(" ".join(next(f for f in findings.load(tmp_path) if f.name == "evaluation").lead))
    assert "unscored" not in shares[0]
    assert "The budget of 100 rows a second left" in shares[1]


def test_an_agents_configuration_that_cannot_be_used_is_refused(home, captured, tmp_path, capsys):
    (tmp_path / "agent.yaml").write_text("scoring: {rows: 100}\n")
    words = ["evaluate", str(home.bundle), str(captured), "--config", str(tmp_path / "agent.yaml")]
    assert main(words) == 2
    assert "agent.yaml [scoring]: unknown key 'rows'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["{captured}", "--base-rate", "0"], "--base-rate must be above 0"),
        (["{captured}", "--earlier", "{captured}"], "--earlier is for agents that learn"),
        (["{broken}"], "broken.parquet: not a Parquet file"),
        (["{folder}"], "read as the published files, since manifest.yaml is missing"),
        (["{captured}", "--json", "{broken}.d/x.json"], "broken.parquet.d is no folder"),
        (["{rows}", "--json", "x.json"], "--json is for captures"),
    ],
)
def test_bad_sources_are_named(home, captured, tmp_path, capsys, arguments, words):
    (tmp_path / "broken.parquet").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    places = {"captured": captured, "rows": home.run / "rows.parquet"}
    places |= {"broken": tmp_path / "broken.parquet", "folder": tmp_path / "folder"}
    assert main(["evaluate", str(home.bundle), *(word.format(**places) for word in arguments)]) == 2
    assert words in capsys.readouterr().err


def test_the_quantised_model_is_held_against_its_own_network(home, tmp_path, capsys):
    rows = str(home.run / "rows.parquet")
    assert main(["evaluate", str(home.bundle), rows, "--run", str(home.run), "--out", str(tmp_path)]) == 0
    found = {item.name: item for item in findings.load(tmp_path)}
    kinds, labels = found["parity"].tables
    assert [row[0] for row in kinds.rows] == ["benign test", "attack"]
    for kind, windows, voted, near, clear, by_row, near_rows, clear_rows in kinds.rows:
        assert windows > 500, kind
        assert voted > 0.99
        for share, borderline, alike in ((voted, near, clear), (by_row, near_rows, clear_rows)):
            assert 0 <= borderline < windows
            assert round((windows - borderline) * (1 - alike)) <= round(windows * (1 - share))
    assert sum(row[1] for row in labels.rows if row[0] != "benign") == kinds.rows[1][1]
    assert [row[2] for row in labels.rows] == sorted(row[2] for row in labels.rows)
    assert "after the vote; in 1" in capsys.readouterr().out
    assert found["parity"].warnings == ()
    assert kinds.rows[0][3] < kinds.rows[0][1] / 10, "most benign windows are no borderline ones"


def test_a_run_of_other_columns_is_no_run_of_the_bundle(home, tmp_path, capsys):
    (tmp_path / "fit.yaml").write_text(
        f"data: [{{kind: captures, path: {home.captures}, labels: [benign]}}]\nschemas: [nbaiot115-clean-1]\n"
        "autoencoder: {epochs: 1}\n"
    )
    assert main(["fit", str(tmp_path / "fit.yaml"), "--out", str(tmp_path / "run")]) == 0
    words = ["evaluate", str(home.bundle), str(home.run / "rows.parquet"), "--run", str(tmp_path / "run")]
    assert main(words) == 2
    assert "has other columns" in capsys.readouterr().err


def test_windows_at_the_limit_are_told_apart_from_those_that_quantisation_should_not_change(home):
    """A limit amid an attack's scores makes borderline windows; another limit on one side changes clear ones, too."""
    of_bundle, of_run = bundles.load(home.bundle), runs.load(home.run)
    network = Scorer(of_run.autoencoder(), of_run.scaler, of_run.columns)
    rows = np.flatnonzero(of_run.label == "mirai.udpplain")
    middle = float(np.median(network.full(of_run.values[rows])))

    def told(of_int8: float, of_float: float) -> tuple:
        bundle_rule, run_rule = (
            replace(rule, full=replace(rule.full, limit=limit))
            for rule, limit in ((of_bundle.manifest.decision, of_int8), (of_run.decision, of_float))
        )
        bundle = replace(of_bundle, manifest=replace(of_bundle.manifest, decision=bundle_rule))
        found = agreement.report(bundle, replace(of_run, decision=run_rule), "command")
        return next(row for row in found.tables[1].rows if row[0] == "mirai.udpplain")

    _, n, _, near, clear, *_ = told(middle, middle)
    assert 0 < near <= n
    assert clear in (None, 1.0)
    _, n, alike, near, clear, *_ = told(middle, 1e3 * middle)  # the float side never votes
    assert alike < 0.9
    assert near < n
    assert clear < 1.0


@pytest.mark.parametrize("broken", ["scores", "limit"])
def test_a_broken_variant_fails_instead_of_making_its_own_errors_borderline(home, broken):
    """Networks that rebuild rows 0.3 σ off, and a limit that is not the float side's, are both no rounding."""
    of_bundle, of_run = bundles.load(home.bundle), runs.load(home.run)
    if broken == "scores":
        scaler = of_bundle.scaler
        bundle = replace(of_bundle, scaler=replace(scaler, mean=scaler.mean + 0.3 * scaler.scale))
        words = "Quantisation shifts the scores of 1 % of benign optimise rows by"
    else:
        network = Scorer(of_run.autoencoder(), of_run.scaler, of_run.columns)
        rows = np.flatnonzero(of_run.label == "mirai.udpplain")
        far = replace(of_bundle.manifest.decision.full, limit=float(network.full(of_run.values[rows]).max() * 2))
        decision = replace(of_bundle.manifest.decision, full=far)
        bundle = replace(of_bundle, manifest=replace(of_bundle.manifest, decision=decision))
        words = "attack windows differently that are not borderline"
    assert agreement.report(of_bundle, of_run, "command").warnings == ()
    assert words in " ".join(agreement.report(bundle, of_run, "command").warnings)


def test_a_bundle_that_decides_otherwise_than_its_network_fails_the_command(home, tmp_path, capsys):
    """Here the run is of another bundle, whose limit is far off."""
    run = tmp_path / "run"
    shutil.copytree(home.run, run)
    model = json.loads((run / "model.json").read_text())
    model["decision"]["full"]["limit"] *= 1e6
    (run / "model.json").write_text(json.dumps(model))
    words = ["evaluate", str(home.bundle), str(home.run / "rows.parquet"), "--run", str(run)]
    assert main(words) == 1
    assert "! int8 and float decide" in capsys.readouterr().out
