"""Findings of analyses: written, read again, and shown on a terminal."""

import math

import pytest

from trainer.report import findings
from trainer.report.findings import Figure, Findings, Series, Table


def made() -> Findings:
    table = Table("Rates", ("device", "false alerts"), (("camera", 0), ("plug", 0.25), ("bulb", None)), "per day")
    figure = Figure(
        "lines", "Curve", (Series("loss", (1.0, 2.0), (0.5, None), (0.4, 0.1), (0.6, 0.2)),), "epoch", "MSE"
    )
    return Findings(
        "demo", "A demo", "botwatch trainer demo", True, ("one",), ("two",), (table,), (figure,), ("three",)
    )


def test_findings_are_read_as_they_were_written(tmp_path):
    made().save(tmp_path)
    assert findings.load(tmp_path) == (made(),)


def test_a_run_without_findings_has_none(tmp_path):
    assert findings.load(tmp_path) == ()


def test_a_number_that_is_not_finite_becomes_none(tmp_path):
    table = Table("T", ("a", "b"), ((math.nan, math.inf),))
    Findings("t", "T", "c", False, tables=(table,)).save(tmp_path)
    assert findings.load(tmp_path)[0].tables[0].rows == ((None, None),)


@pytest.mark.parametrize("text", ["{", "[]", '{"name": 1}'])
def test_a_file_that_holds_no_findings_is_named(tmp_path, text):
    (tmp_path / "findings").mkdir()
    (tmp_path / "findings" / "broken.json").write_text(text)
    with pytest.raises(findings.FindingsError, match=r"broken\.json"):
        findings.load(tmp_path)


def test_a_row_must_have_a_cell_for_every_column():
    with pytest.raises(ValueError, match=r"'T'.*1 cells, there are 2"):
        Table("T", ("a", "b"), (("x",),))


def test_the_terminal_shows_warnings_tables_and_limits():
    lines = list(made().text())
    assert lines[0] == "A demo (generated traffic)"
    assert "! two" in lines
    assert "- one" in lines
    assert any(line.split() == ["plug", "0.25"] for line in lines)
    assert lines[-1] == "does not show: three"


def test_a_table_wider_than_the_terminal_is_wrapped_between_words():
    table = Table("Rates", ("device", "false alerts per day"), (("a lamp in the hall", 1_234_567), ("[b]", None)))
    items = Findings("t", "T", "c", False, tables=(table,))
    whole, narrow = list(items.text()), list(items.text(width=24))
    assert "  a lamp in the hall             1,234,567" in whole
    assert "  [b]                                    –" in whole
    assert max(map(len, narrow)) <= 24
    assert {"lamp", "hall", "1,234,567", "alerts"} <= set(" ".join(narrow).split())
