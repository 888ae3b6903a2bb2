"""The provenance of a result: the SHA-256 of every source file that it depends on.

The files are found by following the imports of a module, so that a new one cannot be forgotten. The sources of the
native kernel count as well. What cannot change a figure is left out: some modules by name, and of every Python file
comments, docstrings and blank lines.
"""

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The folder that holds the packages, in a source tree as where they are installed."""

PACKAGES = ("edge_agent", "trainer", "converter")

KERNEL = "edge_agent/kernel"

UNRELATED = {
    "edge_agent.progress": "shows how far a computation is",
    "edge_agent.capture.live_settings": "is about live capture",
    "edge_agent.contract.cli": "prints, and reads command lines",
    "edge_agent.contract.messages": "is about topics and payloads",
    "edge_agent.contract.outlet": "prints",
    "edge_agent.contract.record": "is about the record of an alert",
    "trainer.data.published": "reads published rows",
    "trainer.fit.workers": "is about several machines",
}
"""Modules that are imported on the way and decide no figure, each with what it does instead."""


def sources(*modules: str) -> dict[str, str]:
    """Return path -> SHA-256 of these modules, of all they import from botwatch, and of the kernel where it is source.

    Paths are relative to `ROOT`, in alphabetical order.
    """
    files = [path for name, path in _closure(modules).items() if name not in UNRELATED]
    files += (ROOT / KERNEL).glob("*.[ch]")
    return {path.relative_to(ROOT).as_posix(): _sha256(path) for path in sorted(files)}


def digest(content: Mapping[str, str]) -> str:
    """Return one SHA-256 over names and values.

    >>> digest({"a": "1", "b": "2"}) == digest({"b": "2", "a": "1"}) != digest({"a": "2", "b": "2"})
    True
    """
    text = "".join(f"{name} {value}\n" for name, value in sorted(content.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def changed(recorded: Mapping[str, str], today: Mapping[str, str]) -> list[str]:
    """Return the files that differ between two results of `sources`, alphabetically.

    >>> changed({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"})
    ['b', 'c']
    """
    return sorted(name for name in {*recorded, *today} if recorded.get(name) != today.get(name))


def _closure(modules: Iterable[str]) -> dict[str, Path]:
    """Return name -> file of these modules and of all of botwatch that they import, directly or through others."""
    seen: dict[str, Path] = {}
    ahead = list(modules)
    while ahead:
        name = ahead.pop()
        if name in seen or (path := _path(name)) is None:
            continue
        seen[name] = path
        if name not in UNRELATED:
            ahead += _imports(ast.parse(path.read_bytes()))
    return seen


def _imports(tree: ast.AST) -> Iterator[str]:
    """Yield what a module imports, as far as it can be a module: `from a import b` gives a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _path(module: str) -> Path | None:
    """Return the file of a module of botwatch; None for what is no such module."""
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return None
    path = ROOT.joinpath(*parts)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _sha256(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha256(code(content.decode()).encode() if path.suffix == ".py" else content).hexdigest()


def code(text: str) -> str:
    r"""Return the lines of a Python file without comments, docstrings and blank lines.

    >>> code("#!python\nx = '#'  # why\n\ndef f():\n    'Says.'\n    return x\n")
    "x = '#'\ndef f():\n    return x"
    """
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            (row, column), _ = token.start, token.end
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for row in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())
