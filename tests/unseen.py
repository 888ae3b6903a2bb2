"""`python -m tests.unseen BUNDLE [MANIFEST]`: writes into docs/limits.md what a bundle leaves unseen by kind of device.

The manifest is configs/captures/kinds.yaml, later days of a device of each kind, unless another is given; its
files are below $BOTWATCH_DATA/pcap. Takes up to 15 minutes on two cores.
"""

import os
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from edge_agent.config import AgentConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract import captures
from trainer.judge import evasion_findings, evasions
from trainer.judge.evasions import Evasions, EvasionTrial
from trainer.report.findings import Table, number

ROOT = Path(__file__).parents[1]
LIMITS = ROOT / "docs" / "limits.md"
MANIFEST = ROOT / "configs" / "captures" / "kinds.yaml"
BEGIN, END = "<!-- unseen: begin -->", "<!-- unseen: end -->"


def markdown(table: Table, names: Sequence[str], left: Sequence[str] = ()) -> list[str]:
    """Return the lines of a table in Markdown, with the columns ``names``; those of ``left`` are text."""
    at = [table.columns.index(name) for name in names]
    rule = "|".join("---" if i == 0 or name in left else "---:" for i, name in enumerate(names))
    lines = [f"| {' | '.join(names)} |", f"|{rule}|"]
    return lines + [f"| {' | '.join(number(row[i]) for i in at)} |" for row in table.rows]


def section(result: Evasions, version: str) -> str:
    """Return the text between the marks: the highest unseen rates, and how many of the listed attacks are alerted."""
    table = evasion_findings.unseen_table(result.unseen)
    columns = ("kind", "devices", "what", "plain", "highest", "which attack that is", "forged MACs")
    lines = [
        f"Bundle {version}, SHA-256 {result.bundle[:16]}…; `python -m tests.unseen BUNDLE`. {table.note}",
        "",
        *markdown(table, columns, ("what", "which attack that is")),
        "",
        "Alerted of the listed attacks, by what the agent knows of the device when they begin:",
        "",
        *_counts(result.trials),
    ]
    if result.left_out or result.not_learnt:
        lines += [
            "",
            f"Not tried for want of time: {len(result.left_out)}. Not learnt: {len(result.not_learnt)} devices.",
        ]
    return "\n".join(lines)


def _counts(trials: Sequence[EvasionTrial]) -> list[str]:
    lines = ["| agent | sort of attack | tried | alerted | of these with another blamed |", "|---|---|---:|---:|---:|"]
    order = [state for state, _ in evasion_findings.STATES]
    ordered = sorted(trials, key=lambda trial: (order.index(trial.state), trial.label))
    for (state, label), group in groupby(ordered, key=lambda trial: (trial.state, trial.label)):
        of = list(group)
        cells = state, label, str(len(of)), str(sum(t.alerted for t in of)), str(sum(t.named_wrongly for t in of))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def written(text: str, inside: str) -> str:
    """Return a document with another text between the marks; ValueError where they are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{LIMITS}: has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{inside}\n{END}{after}"


def main() -> int:
    """Search, and write the section."""
    folder, manifest = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else MANIFEST
    data = Path(os.environ.get("BOTWATCH_DATA", ROOT.parent / "shared" / "data")) / "pcap"
    listed, _, root = captures.load(manifest, data)
    result = evasions.evade(folder, [(listed, root)], AgentConfig())
    for found in evasion_findings.report(result, f"python -m tests.unseen {folder}"):
        print("", *found.text(), sep="\n")
    LIMITS.write_text(written(LIMITS.read_text(), section(result, bundles.load(folder).manifest.version)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
