"""The import rules of docs/architecture.md, checked in the source, imports within functions included."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("edge_agent", "trainer", "converter", "collector")
HEAVY = {"tensorflow", "keras", "polars", "sklearn", "matplotlib", "lime", "sqlalchemy", "fastapi"}

OWNERS = {
    "edge_agent._kernel": {"edge_agent.capture.features", "edge_agent.capture.sources"},
    "ai_edge_litert": {"edge_agent.detection.runtime"},
    "tflite_runtime": {"edge_agent.detection.runtime"},
    "paho": {"edge_agent.mqtt"},
    "sqlite3": {"edge_agent.state"},
    "sqlalchemy": {"collector.store", "collector.queries", "collector.tables"},
}
"""Third parties and the native kernel -> the only modules that may import them."""

FOLDERS = (
    "contract",
    ("ownership", "state", "state_rows", "progress", "mqtt", "culprit", "reconnect", "capture"),
    "detection",
    "delivery",
)
"""The agent's folders and low modules, from the bottom: each imports only from its own floor and from those below.

All other modules are service files: they may import any of these, and none of these may import them.
"""

SHARED = {
    "trainer": ("contract", "capture", "detection", "progress", "agent", "config"),
    "converter": ("contract", "detection", "progress"),
    "collector": ("contract", "mqtt", "culprit", "reconnect"),
}
"""Parts of the agent that each role may import."""


def modules(package: str) -> dict[str, ast.Module]:
    """Return every module of a package by its dotted name."""
    trees = {}
    for path in (ROOT / package).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        trees[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return trees


def imports(tree: ast.AST) -> set[str]:
    """Return what a module imports, as far as it can be a module: `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            names |= {str(name.value) for name in node.args if isinstance(name, ast.Constant)}
    return names


ALL = {name: imports(tree) for package in PACKAGES for name, tree in modules(package).items()}


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def floor(name: str) -> int:
    """Return the floor of one of the agent's modules: its place in `FOLDERS`, or the number above all of them."""
    part = [*name.split("."), ""][1]
    return next((i for i, names in enumerate(FOLDERS) if part == names or part in names), len(FOLDERS))


def test_the_modules_were_read():
    assert {"edge_agent.detection.detector", "trainer.fit.fit", "converter.parity", "collector.store"} <= set(ALL)
    assert "edge_agent._kernel" in ALL["edge_agent.capture.features"]


def test_within_the_agent_imports_point_downwards():
    for name, used in ALL.items():
        if within(name, "edge_agent") and name != "edge_agent":
            for other in used & set(ALL) - {"edge_agent", "edge_agent._kernel"}:
                if within(other, "edge_agent"):
                    assert floor(other) <= floor(name), f"{name} imports {other}"


def test_no_module_imports_itself_by_way_of_others():
    for start in ALL:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            for other in ALL[ahead.pop()] & set(ALL) - seen:
                assert other != start, f"{start} imports itself by way of {sorted(seen)}"
                seen.add(other)
                ahead.append(other)


def test_contract_imports_no_other_part_of_the_agent():
    for name, used in ALL.items():
        if within(name, "edge_agent.contract"):
            outside = {m for m in used if m.split(".")[0] in PACKAGES and not within(m, "edge_agent.contract")}
            assert outside == {"edge_agent"} & outside, f"{name} imports {outside}"
            third = {m.split(".")[0] for m in used} - set(sys.stdlib_module_names) - {"edge_agent"}
            assert third <= {"numpy", "yaml"}, f"{name} imports {third}"


def test_the_agent_imports_no_other_role_and_nothing_heavy():
    for name, used in ALL.items():
        if within(name, "edge_agent"):
            assert not {m.split(".")[0] for m in used} & (HEAVY | {"trainer", "converter", "collector"}), name


@pytest.mark.parametrize("package", ["trainer", "converter", "collector"])
def test_the_roles_do_not_import_one_another(package):
    others = {"trainer", "converter", "collector"} - {package}
    for name, used in ALL.items():
        if within(name, package):
            assert not {m.split(".")[0] for m in used} & others, name


@pytest.mark.parametrize("package", SHARED)
def test_each_role_imports_only_the_shared_parts_of_the_agent(package):
    allowed = [f"edge_agent.{part}" for part in SHARED[package]]
    for name, used in ALL.items():
        if within(name, package):
            for other in used & set(ALL) - {
                "edge_agent",
                "edge_agent.detection",
                "edge_agent.capture",
                "edge_agent.delivery",
            }:
                if within(other, "edge_agent"):
                    assert any(within(other, part) for part in allowed), f"{name} imports {other}"


@pytest.mark.parametrize("third", OWNERS)
def test_each_third_party_has_one_owner(third):
    users = {name for name, used in ALL.items() if any(within(m, third) for m in used)}
    assert users <= OWNERS[third]


def test_one_class_name_stands_for_one_thing():
    """A leading underscore makes no other name of it: readers and search tools see the same word."""
    homes: dict[str, list[str]] = {}
    for package in PACKAGES:
        for name, tree in modules(package).items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    homes.setdefault(node.name.lstrip("_"), []).append(name)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}
