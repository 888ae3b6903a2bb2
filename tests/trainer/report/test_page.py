"""The report: one page that needs nothing else and hides nothing."""

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.conftest import Home
from trainer.__main__ import main
from trainer.report import findings
from trainer.report import page as report_page
from trainer.report.findings import Figure, Findings, Series, Table

VOID = {"meta", "br", "img", "path", "use", "rect", "line", "circle"}


class Page(HTMLParser):
    """The tags of a page, which must be nested as they should."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = self.style = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["style"]:
            self.style += data
        else:
            self.text += data


def made(name: str = "evaluation") -> Findings:
    bars = Figure("bars", "Bars <b>", (Series("n", ("a & b", "c"), (3.0, -1.0)),), "x")
    lines = Figure("lines", "Lines", (Series("l", (1.0, 2.0), (1.0, None), (0.5, None), (2.0, None)),), log_x=True)
    points = Figure("points", "Points", (Series("p", (1.0, 2.0), (1.0, 3.0)),))
    matrix = Figure("matrix", "Matrix", (Series("r", ("a", "b"), (0.25, 0.75)), Series("s", ("a", "b"), (None, 1.0))))
    table = Table("Table", ("who", "n"), (("<script>alert(1)</script>", 1234567), ("x", None)), "a note")
    return Findings(
        name, "Made & shown", "botwatch x", True, ("lead <i>",), ("beware <u>",), (table,),
        (bars, lines, points, matrix), ("a limit",),
    )  # fmt: skip


@pytest.fixture
def page(home: Home) -> Page:
    return Page(report_page.page(home.run, (made(),)))


def test_nothing_on_the_page_is_fetched(page):
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "img")
        for name in ("src", "href", "xlink:href", "data"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "url(" not in page.style


def test_every_figure_is_an_image_with_a_title(page):
    drawn = [attributes for tag, attributes in page.tags if tag == "svg"]
    titles = [attributes["aria-label"] for attributes in drawn]
    assert titles[:4] == ["Bars <b>", "Lines", "Points", "Matrix"]
    assert any(title.startswith("Learning curve") for title in titles)
    assert all(attributes["role"] == "img" for attributes in drawn)


def test_ids_are_unique_and_links_inside_the_page_lead_somewhere(page):
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        if tag in ("a", "use") and attributes.get("href"):
            assert attributes["href"].removeprefix("#") in ids


def test_text_from_data_is_text(page):
    assert "<script>alert(1)</script>" in page.text
    assert "beware <u>" in page.text
    assert "lead <i>" in page.text


def test_warnings_come_before_the_summary(page):
    assert page.text.index("beware <u>") < page.text.index("lead <i>") < page.text.index("How it was made")


def test_numbers_are_as_people_read_them(page):
    assert "1,234,567" in page.text
    assert "–" in page.text


def test_limits_settings_and_inputs_are_there(page):
    assert "a limit" in page.text
    assert "decision.budget" in page.text
    assert "manifest.yaml" in page.text
    assert "SHA-256" in page.text


def test_missing_findings_are_named_with_their_command(home):
    text = Page(report_page.page(home.run, ())).text
    for name, command in report_page.MISSING.items():
        assert f"Not here yet: {name}." in text
        assert command.split("{")[0].strip() in text


def test_equal_findings_give_equal_bytes(home):
    assert report_page.page(home.run, (made(),)) == report_page.page(home.run, (made(),))


def test_a_long_table_is_cut_and_says_so(home):
    rows = tuple((f"row {i}", i) for i in range(100))
    long = Findings("long", "Long", "c", False, tables=(Table("T", ("a", "b"), rows),))
    text = Page(report_page.page(home.run, (long,))).text
    assert "row 59" in text
    assert "row 60" not in text
    assert "40 more rows" in text


def test_the_command_writes_one_file(home, tmp_path, capsys):
    assert main(["report", str(home.run), "--no-compute", "--out", str(tmp_path / "r.html")]) == 0
    text = (tmp_path / "r.html").read_text()
    assert text.startswith("<!doctype html>")
    assert re.search(r"wrote .*r\.html: \d+ findings", capsys.readouterr().out)


def test_missing_findings_are_computed_once_and_again_for_a_newer_model(tmp_path):
    model, runs = tmp_path / "model.json", []
    model.write_text("{}")

    def analyse(run: Path) -> Findings:
        runs.append(run)
        return made("audit")

    report_page.compute(tmp_path, {"audit": analyse})
    report_page.compute(tmp_path, {"audit": analyse})
    assert runs == [tmp_path]
    assert findings.load(tmp_path) == (made("audit"),)
    later = (tmp_path / "findings" / "audit.json").stat().st_mtime + 5
    os.utime(model, (later, later))
    report_page.compute(tmp_path, {"audit": analyse})
    assert runs == [tmp_path, tmp_path]


def test_each_analysis_writes_the_findings_it_is_named_after(home, tmp_path, capsys):
    from trainer.judge import audit, baselines, explain, runs

    def few_baselines(path: Path) -> Findings:
        loaded = runs.load(path)
        return baselines.report(baselines.compare(loaded, fit_rows=300, test_rows=200), loaded, "command")

    run = tmp_path / "run"
    shutil.copytree(home.run, run)
    shutil.rmtree(run / "findings", ignore_errors=True)
    quick = {
        "audit": audit.analyse,
        "baselines": few_baselines,
        "explanations": lambda path: explain.explained(runs.load(path), "command", seeds=2),
    }
    report_page.compute(run, quick)
    assert {path.stem for path in (run / "findings").glob("*.json")} == set(quick) == set(report_page.analyses())
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    assert "computing" not in capsys.readouterr().out


def test_a_run_folder_that_cannot_be_analysed_is_named(tmp_path, capsys):
    (tmp_path / "model.json").write_text("{")
    assert main(["report", str(tmp_path)]) == 2
    assert "model.json" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_that_is_not_a_run_is_named(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "model.json").write_text(content)
    assert main(["report", str(tmp_path), "--no-compute"]) == 2
    assert "model.json" in capsys.readouterr().err


def test_findings_that_cannot_be_read_are_named(home, tmp_path, capsys):
    (tmp_path / "findings").mkdir()
    (tmp_path / "findings" / "x.json").write_text(json.dumps({"name": 3}))
    assert main(["report", str(tmp_path), "--no-compute"]) == 2
    assert "x.json" in capsys.readouterr().err
