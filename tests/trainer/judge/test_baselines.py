"""Simpler methods on the same rows, and the report when one of them is better."""

from dataclasses import replace

import numpy as np
import pytest

from edge_agent.contract import bundle as bundles
from tests.conftest import Home
from trainer.__main__ import main
from trainer.judge import baselines, runs
from trainer.judge.baselines import Result
from trainer.report import findings


@pytest.fixture(scope="module")
def compared(home: Home) -> dict[str, Result]:
    run = runs.load(home.run, most=600)
    return {result.name: result for result in baselines.compare(run, bundles.load(home.bundle))}


def test_every_method_is_there_and_none_votes_on_benign_test_rows_by_construction(compared):
    assert set(compared) == {
        *("autoencoder", "largest |z|", "box plot", "PCA", "isolation forest", "one-class SVM", "LOF", "k-NN"),
        *("KitNET-style", "one rule"),
    }
    assert {result.attacks for result in compared.values()} == {4}
    assert all(result.us_per_row > 0 for result in compared.values())


def test_methods_that_know_distance_see_a_flood(compared):
    for name in ("autoencoder", "k-NN", "largest |z|", "KitNET-style"):
        assert compared[name].alerted >= 3, name
        assert compared[name].rows_to_vote >= 8


def test_scores_rise_with_distance_from_benign_rows(home):
    run = runs.load(home.run, most=400)
    z = run.scaler.z(run.values[run.rows("test")[:50]])
    for name, (_, score) in baselines.methods(run, 1).items():
        assert np.median(score(z + 8.0)) > np.median(score(z)), name


def result(name: str, alerted: int, to_vote: float | None) -> Result:
    return Result(
        name=name,
        note="made up",
        alerted=alerted,
        attacks=5,
        rows_to_vote=to_vote,
        above=0.5,
        false_votes=0,
        us_per_row=1.0,
    )


def test_a_method_that_detects_more_is_named_first(home):
    run = runs.load(home.run, most=100)
    found = baselines.report([result("autoencoder", 3, 20), result("box plot", 4, 30)], run, "command")
    assert found.warnings[0].startswith("box plot (made up) beats the autoencoder")
    assert found.tables[0].rows[0][0] == "box plot"


def test_a_method_that_detects_as_many_but_sooner_is_named_too(home):
    run = runs.load(home.run, most=100)
    sooner = baselines.report([result("autoencoder", 3, 20), result("PCA", 3, 10)], run, "command")
    later = baselines.report([result("autoencoder", 3, 20), result("PCA", 3, 25)], run, "command")
    assert len(sooner.warnings) == 1
    assert later.warnings == ()
    assert "PCA" not in later.lead[1] if len(later.lead) > 1 else True


def test_what_a_method_adds_to_the_counts_rule_is_stated(home, compared):
    """The counts rule sees a scan by itself; beside it, a method alerts at least as many as either."""
    run = runs.load(home.run, most=600)
    alone = baselines.counts_alone(run, run.attacks())
    assert alone is not None
    assert alone >= 1
    for name, one in compared.items():
        assert max(alone, one.alerted) <= one.with_counts <= one.attacks, name
    lead = " ".join(baselines.report(list(compared.values()), run, "command").lead)
    assert f"Beside the counts rule, which alone alerts {alone} of 4: autoencoder" in lead


def test_an_autoencoder_that_adds_nothing_to_counts_or_no_more_than_one_column_is_a_warning(home):
    run = runs.load(home.run, most=600)
    alone = baselines.counts_alone(run, run.attacks())
    ours, other = (replace(result(name, 5, 20), with_counts=alone) for name in ("autoencoder", "largest |z|"))
    words = " ".join(baselines.report([ours, other], run, "command").warnings)
    assert "largest |z| beside the counts rule alerts as many attacks as the autoencoder" in words
    assert f"adds no attack to the {alone} that the counts rule alerts alone" in words


def test_fewer_rows_may_be_asked_for(home):
    run = runs.load(home.run, most=600)
    few = baselines.compare(run, bundles.load(home.bundle), fit_rows=200, test_rows=100)
    assert {result.attacks for result in few} == {4}


def test_the_command_writes_its_findings(home, capsys):
    assert main(["baselines", str(home.run)]) == 0
    assert any(item.name == "baselines" for item in findings.load(home.run))
    assert "Simpler methods at equal false alarms" in capsys.readouterr().out
