"""Count the modules, classes and functions that are larger than a reader can hold in mind: a step of `make check`.

`python -m tests.sizes` prints them and exits with 1 if one is not an exception of docs/architecture.md, or if an
exception is no longer needed: the count may only fall.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("edge_agent", "trainer", "converter", "collector")

MODULE, CLASS, FUNCTION = 600, 350, 80
"""Lines at most; a function that only builds an argument parser may be longer."""

MOST = 5
"""Exceptions in the whole tree."""


def exceptions() -> set[str]:
    """Return what may be larger: the names in the table of docs/architecture.md that gives the reason of each."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.partition("<!-- exceptions: begin -->")[2].partition("<!-- exceptions: end -->")[0]
    return set(re.findall(r"^\| `([^`]+)`", table, re.MULTILINE))


def over(path: Path, name: str) -> Iterator[tuple[str, int]]:
    """Yield the name and the lines of the module and of each of its parts that is larger than its bound."""
    source = path.read_text()
    if (lines := source.count("\n")) > MODULE:
        yield name, lines
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            most = CLASS if isinstance(node, ast.ClassDef) else FUNCTION
            if lines > most and not node.name.endswith("parser"):
                yield f"{name}:{node.name}", lines


def main() -> int:
    """Print what is larger than the bounds, and compare it with the exceptions."""
    large: dict[str, int] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            large |= dict(over(path, str(path.relative_to(ROOT))))
    allowed = exceptions()
    for name, lines in sorted(large.items()):
        print(f"{lines:6,} lines  {name}{'' if name in allowed else '  <- not an exception of docs/architecture.md'}")
    for name in sorted(allowed - set(large)):
        print(f"{name} is within the bounds now: take it out of the exceptions in docs/architecture.md")
    print(f"{len(large)} larger than the bounds, {len(allowed)} exceptions, at most {MOST}")
    return int(set(large) != allowed or len(allowed) > MOST)


if __name__ == "__main__":
    sys.exit(main())
