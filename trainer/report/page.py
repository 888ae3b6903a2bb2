"""`botwatch trainer report`: everything known of a run as one HTML file that needs nothing else.

Knows how findings look on a screen, a phone and paper; what they say is the business of the analyses that wrote them.
Figures are SVG inside the page, drawn the same way every time: equal runs give equal bytes.
"""

import argparse
import html
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from edge_agent.contract import runfolder
from trainer.report import findings
from trainer.report.findings import Figure, Findings, FindingsError, Series, Table, number

PROG = "botwatch trainer report"
OUT = "report.html"

ORDER = ("evaluation", "protocol", "rows", "floor", "study", "baselines", "columns", "audit", "classes", "explanations")
"""Findings in the order people ask for them; others follow by name."""

MISSING = {
    "evaluation": "botwatch trainer evaluate BUNDLE CAPTURES --out {run} --learn",
    "floor": "botwatch trainer evaluate BUNDLE CAPTURES --out {run} --floor",
    "baselines": "botwatch trainer baselines {run}",
    "audit": "botwatch trainer audit {run}",
    "explanations": "botwatch trainer explain {run}",
    "study": "botwatch trainer study seed --data N-BaIoT --out {run}",
}
"""What a reader may look for, and the command that finds it."""

MAX_ROWS = 60
"""Rows of a table that are shown; the findings' file has all."""

COLOURS = ("#1f5fa8", "#c4511c", "#2e7d4f", "#7a4fa3", "#a67c00", "#c2375b", "#3a8fa0", "#666666")

_STYLE = """
:root { --ink: #1c2430; --soft: #5a6675; --line: #d5dbe3; --paper: #ffffff; --wash: #f4f6f9; --warn: #8a2d00; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 0.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 0.3rem; }
p, li { max-width: 46rem; }
.warn { border-left: 4px solid var(--warn); background: #fff3ec; padding: 0.5rem 0.8rem; margin: 0.6rem 0; }
.made { color: var(--soft); font-size: 0.9rem; }
.tag { background: var(--wash); border: 1px solid var(--line); border-radius: 0.6rem; padding: 0 0.5rem;
  font-size: 0.85rem; color: var(--soft); white-space: nowrap; }
.scroll { overflow-x: auto; margin: 0.3rem 0 0.2rem; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { background: var(--wash); vertical-align: bottom; white-space: normal; min-width: 4rem; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; }
figure svg { width: 100%; height: auto; max-width: 46rem; }
figcaption, .note { color: var(--soft); font-size: 0.85rem; max-width: 46rem; }
summary { cursor: pointer; font-weight: bold; margin: 0.6rem 0; }
code { background: var(--wash); padding: 0.05rem 0.3rem; overflow-wrap: anywhere; font-size: 0.9em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1rem; font-size: 0.9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
nav a { margin-right: 0.9rem; white-space: nowrap; } nav { line-height: 2; }
@media print { body { max-width: none; font-size: 11px; padding: 0; } nav { display: none; }
  h2 { break-after: avoid; } h3 { break-after: avoid; } figure, tr, .warn { break-inside: avoid; }
  .scroll { overflow: visible; } table { font-size: 8px; } th, td { padding: 0.1rem 0.25rem; white-space: normal; }
  figure svg { max-width: 14cm; } }
"""


_GENERATED = "Some or all of the traffic here is <strong>generated</strong>; every figure of it says so."
_REAL = "All traffic here was captured from real devices."


class ReportError(Exception):
    """A run folder that cannot be reported on; the message names the file and why."""


def page(run: Path, found: tuple[Findings, ...]) -> str:
    """The report of a run folder and the findings in it, as one HTML document."""
    names = (runfolder.MODEL, runfolder.METRICS, runfolder.HISTORY, runfolder.PROVENANCE)
    files = {Path(name).stem: _json(run / name) for name in names}
    known = {item.name for item in found}
    ordered = sorted(found, key=lambda item: (_place(item.name), item.name))
    own = _of_the_run(files)
    generated = bool(files["model"].get("generated")) or any(item.generated for item in found)
    title = f"botwatch: run {run.resolve().name}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{_GENERATED if generated else _REAL}</p>",
    ]
    body += [f'<p class="warn">{html.escape(text)}</p>' for item in ordered for text in item.warnings]
    heads = [text for item in ordered if item.name in ("evaluation", "rows", "study") for text in item.lead[:4]]
    body += ["<ul>", *(f"<li>{html.escape(text)}</li>" for text in heads[:8]), "</ul>"] if heads else []
    sections = [*ordered, *own]
    links = (f'<a href="#{_anchor(item.name)}">{html.escape(item.title)}</a>' for item in sections)
    body += [
        "<nav>",
        *links,
        '<a href="#made">How it was made</a>',
        '<a href="#not">What this does not show</a>',
        "</nav>",
    ]
    for item in sections:
        body += _section(item)
    body += _made(run, files)
    body += ['<h2 id="not">What this does not show</h2>', "<ul>"]
    limits = dict.fromkeys(text for item in ordered for text in item.limits)
    body += [f"<li>{html.escape(text)}</li>" for text in limits]
    for name, command in MISSING.items():
        if name not in known:
            body.append(f"<li>Not here yet: {name}. <code>{html.escape(command.format(run=run))}</code></li>")
    body.append("</ul>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _place(name: str) -> int:
    stem = next((known for known in ORDER if name.startswith(known)), "")
    return ORDER.index(stem) if stem else len(ORDER)


def _anchor(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def _section(item: Findings) -> Iterator[str]:
    tag = ' <span class="tag">generated traffic</span>' if item.generated else ""
    yield f'<h2 id="{_anchor(item.name)}">{html.escape(item.title)}{tag}</h2>'
    if item.lead:
        yield "<ul>"
        yield from (f"<li>{html.escape(text)}</li>" for text in item.lead)
        yield "</ul>"
    for table in item.tables:
        yield from _table(table)
    for chart in item.figures:
        yield f"<figure>{svg(chart)}<figcaption>{html.escape(chart.note or chart.title)}</figcaption></figure>"
    if item.command:
        yield f'<p class="made">Made by <code>{html.escape(item.command)}</code></p>'


def _table(table: Table, most: int = MAX_ROWS) -> Iterator[str]:
    yield f"<h3>{html.escape(table.title)}</h3>"
    yield '<div class="scroll" tabindex="0"><table><thead><tr>'
    yield "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.columns)
    yield "</tr></thead><tbody>"
    for row in table.rows[:most]:
        yield "<tr>" + "".join(f"<td>{html.escape(number(cell))}</td>" for cell in row) + "</tr>"
    yield "</tbody></table></div>"
    more = len(table.rows) - most
    note = f"{table.note} " if table.note else ""
    note += f"{more} more rows are in the findings' file." if more > 0 else ""
    if note:
        yield f'<p class="note">{html.escape(note.strip())}</p>'


# -- what the run folder itself says -------------------------------------------------------------------------------


def _of_the_run(files: Mapping[str, dict[str, Any]]) -> list[Findings]:
    """Training and row figures from the run's own files, in the form of findings."""
    generated = bool(files["model"].get("generated"))
    found = []
    history = {name: told for name, told in files["history"].items() if told}
    charts, lead = [], []
    for name, told in history.items():
        epochs = tuple(float(i + 1) for i in range(len(told["loss"])))
        charts.append(
            Figure(
                "lines",
                f"Learning curve: {name}",
                (
                    Series("train", epochs, tuple(told["loss"])),
                    Series("optimise", epochs, tuple(told["validation_loss"])),
                ),
                "epoch",
                "loss",
                log_y=True,
                note=f"The weights kept are those of epoch {told['best_epoch']}.",
            )
        )
        lead.append(f"{name}: best epoch {told['best_epoch']} of {told['epochs']}.")
    metrics, tables = files["metrics"], []
    if "threshold" in metrics:
        figures = ("limit", "tau", "quantile", "highest", "mean", "std", "min", "max", "rows")
        rows = [(rule, *(told[name] for name in figures)) for rule, told in metrics["threshold"].items()]
        tables.append(
            Table(
                "τ and the limit of a vote",
                ("rule", *figures),
                tuple(rows),
                "τ = mean + n·std over benign optimise rows. These are of the float model.",
            )
        )
        tails = [
            (rule, *(told["tail"][name] for name in ("peaks", "days", "level", "scale", "shape", "limit", "bound")))
            for rule, told in metrics["threshold"].items()
        ]
        columns = ("rule", "peaks", "device-days", "level", "scale", "shape ξ", "limit at the budget", "upper bound")
        tables.append(Table("The tail of benign votes", columns, tuple(tails)))
    if "detection_rate" in metrics:
        shares = [
            ("benign (test)", metrics["false_positive_rate"]["rows"], metrics["false_positive_rate"]["full"]),
            *((label, told["rows"], told["full"]) for label, told in metrics["detection_rate"].items()),
        ]
        tables.append(Table("Rows above τ, float model", ("label", "rows", "share above τ"), tuple(shares)))
    if told := metrics.get("classifier"):
        classes = tuple(told["classes"])
        matrix = []
        for name, row in zip(classes, told["confusion"], strict=True):
            total = sum(row)
            matrix.append(Series(name, classes, tuple(n / total if total else None for n in row)))
        charts.append(
            Figure(
                "matrix",
                "Classifier: share of each class's test rows",
                tuple(matrix),
                "told",
                "is",
                note=f"Accuracy {number(told['accuracy'])}; rows, not episodes.",
            )
        )
    if fisher := metrics.get("fisher"):
        best = sorted(((value, name) for name, value in fisher.items() if value is not None), reverse=True)[:10]
        charts.append(
            Figure(
                "bars",
                "Columns that tell labels apart best",
                (Series("Fisher score", tuple(name for _, name in best), tuple(value for value, _ in best)),),
                "Fisher score",
                note="Ranked with labels, so not used for the detector; copies of a column score alike.",
            )
        )
    if charts or tables:
        found.append(
            Findings("training", "Training", "", generated, tuple(lead), tables=tuple(tables), figures=tuple(charts))
        )
    return found


def _made(run: Path, files: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    yield '<h2 id="made">How it was made</h2>'
    told, model = files["provenance"], files["model"]
    facts = {
        "command": told.get("command", ""),
        "date": told.get("created", ""),
        "took": f"{told.get('took_s', 0):g} s",
        "seed": told.get("seed", ""),
        "columns": f"{len(model.get('columns', ()))} of {', '.join(model.get('schemas', ()))}",
        "classes": ", ".join(model.get("classes", ())) or "none",
        **told.get("versions", {}),
    }
    if told.get("generated"):
        from trainer.judge.evaluation import generator_sha256

        facts["generator"] = f"trainer/generate.py, SHA-256 {generator_sha256()}"
    yield "<dl>"
    for name, value in facts.items():
        yield f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>"
    yield "</dl>"
    inputs = told.get("inputs", {})
    yield f"<details><summary>Inputs ({len(inputs)} files)</summary>"
    yield from _lines(
        inputs,
        lambda name, digest: f"<li><code>{html.escape('/'.join(Path(name).parts[-2:]))}</code> {digest[:16]}…</li>",
    )
    yield "</details>"
    config = run / runfolder.CONFIG
    if config.is_file():
        settings = yaml.safe_load(config.read_text())
        flat = [
            (key, json.dumps(value, ensure_ascii=False)) for key, value in _flat(settings) if not key.startswith("data")
        ]
        yield "<details><summary>Settings</summary>"
        yield from _table(Table("As used", ("key", "value"), tuple(flat)), most=len(flat))
        yield "</details>"


def _lines(inputs: Mapping[str, str], line: Callable[[str, str], str]) -> Iterator[str]:
    yield "<ul>"
    for name, digest in list(inputs.items())[:MAX_ROWS]:
        yield line(name, str(digest))
    if len(inputs) > MAX_ROWS:
        yield f"<li>and {len(inputs) - MAX_ROWS} more, in {runfolder.PROVENANCE}</li>"
    yield "</ul>"


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def _json(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: cannot be read: {error}") from error
    if not isinstance(told, dict):
        raise ReportError(f"{path}: holds no keys and values")
    return told


# -- figures -------------------------------------------------------------------------------------------------------


def svg(chart: Figure) -> str:
    """A figure as an <svg> element with its title as alternative text."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    draw = {"lines": _draw_lines, "points": _draw_lines, "bars": _draw_bars, "matrix": _draw_matrix}[chart.kind]
    style: dict[Any, Any] = {
        "svg.hashsalt": "botwatch",  # ids of clip paths: equal input, equal bytes
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
    }
    with matplotlib.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(7.2, _height(chart)), layout="constrained")
        draw(axes, chart)
        axes.set_title(chart.title)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    text = out.getvalue()
    text = text[text.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{html.escape(chart.title)}" ', 1)
    # ids must differ between the figures of one page
    mark = _anchor(chart.title)
    for sign in ('id="', "url(#", 'href="#'):
        text = text.replace(sign, f"{sign}{mark}-")
    return text.replace('xmlns:xlink="http://www.w3.org/1999/xlink"', "").replace("xlink:href", "href")


def _height(chart: Figure) -> float:
    if chart.kind == "bars":
        names = {name for series in chart.series for name in series.x}
        return 1.2 + 0.26 * len(names) * max(1, len(chart.series) * 0.6)
    if chart.kind == "matrix":
        return 1.6 + 0.32 * len(chart.series)
    return 3.4 + 0.16 * max(0, len(chart.series) - 4)


def _draw_lines(axes: Any, chart: Figure) -> None:
    for i, series in enumerate(chart.series):
        x = [float(value) for value in series.x]
        y = [float("nan") if value is None else value for value in series.y]
        colour = COLOURS[i % len(COLOURS)]
        dash = "-" if i < len(COLOURS) else "--"
        if chart.kind == "points":
            axes.plot(x, y, ".", color=colour, label=series.name)
        else:
            axes.plot(x, y, dash, color=colour, label=series.name, marker="o" if len(x) < 25 else None, markersize=3)
        if series.low and series.high:
            low, high = ([float("nan") if v is None else v for v in end] for end in (series.low, series.high))
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    if chart.log_x:
        axes.set_xscale("log")
    if chart.log_y:
        axes.set_yscale("log")
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.grid(visible=True, color="#e3e7ec", linewidth=0.8)
    if len(chart.series) > 1 or chart.series[0].name:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.18), ncols=3)


def _draw_bars(axes: Any, chart: Figure) -> None:
    names = list(dict.fromkeys(str(name) for series in chart.series for name in series.x))
    height = 0.8 / len(chart.series)
    for i, series in enumerate(chart.series):
        at = [names.index(str(name)) + (i - (len(chart.series) - 1) / 2) * height for name in series.x]
        values = [0.0 if value is None else value for value in series.y]
        axes.barh(at, values, height, color=COLOURS[i % len(COLOURS)], label=series.name)
        for place, value in zip(at, values, strict=True):
            axes.annotate(
                number(value), (value, place), (3 if value >= 0 else -3, 0), textcoords="offset points", va="center",
                ha="left" if value >= 0 else "right", fontsize=8,
            )  # fmt: skip
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(chart.x_label)
    axes.margins(x=0.12)
    if chart.log_x:
        axes.set_xscale("log")
    if len(chart.series) > 1:
        axes.legend(frameon=False, fontsize=8)


def _draw_matrix(axes: Any, chart: Figure) -> None:
    names = [str(name) for name in chart.series[0].x]
    values = [[float("nan") if value is None else value for value in series.y] for series in chart.series]
    finite = [value for row in values for value in row if value == value]
    top = max(finite, default=1.0) or 1.0
    # squares as paths: an image would be a bitmap within the page
    edges = [[i - 0.5 for i in range(n + 1)] for n in (len(names), len(values))]
    axes.pcolormesh(*edges, values, cmap="Blues", vmin=0, vmax=top, edgecolors="white", linewidth=1)
    axes.invert_yaxis()
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value == value and value > 0.0005 * top:
                shown = f"{value:.0%}" if top <= 1 else number(int(value) if value == int(value) else value)
                axes.text(
                    j, i, shown, ha="center", va="center", fontsize=8, color="white" if value > top / 2 else "#1c2430"
                )
    slanted = len(names) > 4 or max(map(len, names)) > 10
    axes.set_xticks(
        range(len(names)), names, rotation=35 if slanted else 0, ha="right" if slanted else "center", fontsize=8
    )
    axes.set_yticks(range(len(chart.series)), [series.name for series in chart.series], fontsize=8)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)


# -- command -------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `botwatch trainer report`."""
    parser.description = "Write everything known of a run folder as one self-contained HTML file."
    parser.epilog = f"example:\n  {PROG} runs/home"
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that `botwatch trainer fit` wrote")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"HTML file to write (default: RUN/{OUT})")
    parser.add_argument(
        "--no-compute", action="store_true", help="show the findings that are there; compute none of the missing ones"
    )


def run(args: argparse.Namespace, command: str) -> int:
    """`botwatch trainer report`: 0, or 2 with the reason."""
    from edge_agent.contract.bundle import replace_file

    out = args.out or args.run / OUT
    try:
        if not args.no_compute:
            _compute(args.run)
        found = findings.load(args.run)
        replace_file(out, page(args.run, found).encode())
    except (ReportError, FindingsError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{PROG}: {error.filename or out}: {error.strerror or error}", file=sys.stderr)
        return 2
    print(f"wrote {out}: {len(found)} findings, {out.stat().st_size / 1000:.0f} kB")
    return 0


def _compute(run: Path) -> None:
    """The analyses that need nothing but the run folder, where their findings are missing or older than the model."""
    model = run / runfolder.MODEL
    if not model.is_file():
        raise ReportError(f"{run}: not a run folder: {runfolder.MODEL} is missing")
    import importlib

    for name, module in (("audit", "audit"), ("baselines", "baselines"), ("explanations", "explain")):
        path = run / findings.FOLDER / f"{name}.json"
        if path.is_file() and path.stat().st_mtime >= model.stat().st_mtime:
            continue
        print(f"computing {name}", flush=True)
        importlib.import_module(f"trainer.judge.{module}").analyse(run).save(run)
