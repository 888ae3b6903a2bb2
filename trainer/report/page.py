"""`botwatch trainer report`: everything known of a run in one HTML file that needs nothing else.

Knows the order of findings on the page and the facts in a run folder; page.html has the form of the page, `charts`
draws the figures. The content of findings is the business of the analyses that wrote them. Equal runs give equal bytes.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from edge_agent.contract import runfolder
from edge_agent.contract.cli import OK, refuse
from edge_agent.contract.runfolder import RunFolderError
from trainer.report import charts, findings
from trainer.report.findings import Findings, FindingsError, Table, number
from trainer.report.training import training

PROG = "botwatch trainer report"
OUT = "report.html"

ORDER = ("evaluation", "protocol", "rows", "floor", "study", "baselines", "columns", "audit", "classes", "explanations")
"""Findings in the order in which people ask for them; others follow by name."""

SUMMARISED = ("evaluation", "rows", "study")
"""Findings whose first sentences are repeated at the head of the page."""

MISSING = {
    "evaluation": "botwatch trainer evaluate BUNDLE CAPTURES --out {run} --learn",
    "floor": "botwatch trainer evaluate BUNDLE CAPTURES --out {run} --floor",
    "baselines": "botwatch trainer baselines {run}",
    "audit": "botwatch trainer audit {run}",
    "explanations": "botwatch trainer explain {run}",
    "study": "botwatch trainer study seed --data N-BaIoT --out {run}",
}
"""Findings that a reader may look for -> the command that makes them."""

MAX_ROWS = 60
"""Rows of a table that are shown; the findings' file has all."""


def page(run: Path, items: tuple[Findings, ...]) -> str:
    """Return the report of a run folder and of the findings ``items`` as one HTML document.

    RunFolderError names a file of the folder that cannot be used.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"anchor": charts.anchor, "number": number, "svg": charts.svg}
    return environment.get_template("page.html").render(_content(run, items), max_rows=MAX_ROWS)


def _content(run: Path, items: tuple[Findings, ...]) -> dict[str, Any]:
    """Return the values of page.html by name."""
    files = (runfolder.MODEL, runfolder.METRICS, runfolder.HISTORY, runfolder.PROVENANCE)
    model, metrics, history, provenance = (runfolder.read_json(run / name) for name in files)
    names = {item.name for item in items}
    ordered = sorted(items, key=lambda item: (_place(item.name), item.name))
    of_training = training(model, metrics, history)
    summary = [text for item in ordered if item.name in SUMMARISED for text in item.lead[:4]]
    inputs = [("/".join(Path(name).parts[-2:]), digest) for name, digest in provenance.get("inputs", {}).items()]
    return {
        "title": f"botwatch: run {run.resolve().name}",
        "generated": bool(model.get("generated")) or any(item.generated for item in items),
        "warnings": [text for item in ordered for text in item.warnings],
        "summary": summary[:8],
        "sections": ordered + ([] if of_training is None else [of_training]),
        "facts": _facts(model, provenance),
        "inputs": inputs,
        "settings": _settings(run),
        "limits": list(dict.fromkeys(text for item in ordered for text in item.limits)),
        "missing": {name: command.format(run=run) for name, command in MISSING.items() if name not in names},
    }


def _place(name: str) -> int:
    """Return the place of findings in `ORDER`, by the beginning of their name."""
    stem = next((known for known in ORDER if name.startswith(known)), "")
    return ORDER.index(stem) if stem else len(ORDER)


def _facts(model: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return name -> value of the facts that say how a run was made."""
    facts = {
        "command": provenance.get("command", ""),
        "date": provenance.get("created", ""),
        "took": f"{provenance.get('took_s', 0):g} s",
        "seed": provenance.get("seed", ""),
        "columns": f"{len(model.get('columns', ()))} of {', '.join(model.get('schemas', ()))}",
        "classes": ", ".join(model.get("classes", ())) or "none",
        **provenance.get("versions", {}),
    }
    if provenance.get("generated"):
        from trainer.traffic.provenance import GENERATOR, generator_sha256

        facts["generator"] = f"{GENERATOR}, SHA-256 {generator_sha256()}"
    return facts


def _settings(run: Path) -> Table | None:
    """Return the settings of a run as a table of keys and values, without its data sources."""
    config = run / runfolder.CONFIG
    if not config.is_file():
        return None
    tree = yaml.safe_load(config.read_text())
    rows = [(key, json.dumps(value, ensure_ascii=False)) for key, value in _flat(tree) if not key.startswith("data")]
    return Table("As used", ("key", "value"), tuple(rows))


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of nested mappings with its keys joined by dots."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `botwatch trainer report`."""
    parser.description = "Write everything known of a run folder to one self-contained HTML file."
    parser.epilog = f"example:\n  {PROG} runs/home"
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that `botwatch trainer fit` wrote")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"HTML file to write (default: RUN/{OUT})")
    parser.add_argument(
        "--no-compute", action="store_true", help="show only the findings that exist; compute none of the missing ones"
    )


def run(args: argparse.Namespace, command: str) -> int:
    """Run `botwatch trainer report`; return the exit status."""
    from edge_agent.contract.bundle import replace_file

    out = args.out or args.run / OUT
    try:
        if not args.no_compute:
            compute(args.run, analyses())
        items = findings.load(args.run)
        replace_file(out, page(args.run, items).encode())
    except (RunFolderError, FindingsError) as error:
        return refuse(PROG, error)
    except OSError as error:
        return refuse(PROG, error, file=out)
    print(f"wrote {out}: {len(items)} findings, {out.stat().st_size / 1000:.0f} kB")
    return OK


def analyses() -> dict[str, Callable[[Path], Findings]]:
    """Return name -> function of the analyses that need nothing but the run folder."""
    from trainer.judge import audit, baselines, explain

    return {"audit": audit.analyse, "baselines": baselines.analyse, "explanations": explain.analyse}


def compute(run: Path, analyses: Mapping[str, Callable[[Path], Findings]]) -> None:
    """Run each of ``analyses`` whose findings are missing or older than the model."""
    model = run / runfolder.MODEL
    if not model.is_file():
        raise RunFolderError(f"{run}: not a run folder: {runfolder.MODEL} is missing")
    for name, analyse in analyses.items():
        path = run / findings.FOLDER / f"{name}.json"
        if path.is_file() and path.stat().st_mtime >= model.stat().st_mtime:
            continue
        print(f"computing {name}", flush=True)
        analyse(run).save(run)
