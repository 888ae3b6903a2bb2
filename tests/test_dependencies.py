"""pyproject.toml declares every dependency that the code imports, and the code imports every one that it declares.

Both files and code are parsed.
"""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("edge_agent", "trainer", "converter", "collector", "configs", "tests", "tools")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

BY_NAME = {
    "tflite-runtime": ("edge_agent/detection/runtime.py", "importlib.import_module(module).Interpreter"),
    "ai-edge-litert": ("edge_agent/detection/runtime.py", "importlib.import_module(module).Interpreter"),
    "psycopg": ("collector/store.py", "self._engine = create_engine(parsed)"),  # the driver is named by the URL
    "amqtt": ("trainer/demo.py", "from amqtt.broker import Broker"),  # in the source of a child process
}
"""Drivers and runtimes that no import statement names -> the file and the line that load them."""

TOOLS = {"mypy", "pytest-timeout", "ruff", "types-jsonschema", "types-pyyaml"}
"""Programs and plug-ins of the extra `dev` that are run and never imported."""

PROVIDES = {
    "ai-edge-litert": {"ai_edge_litert"},
    "keras": {"keras"},
    "paho-mqtt": {"paho"},
    "pyyaml": {"yaml"},
    "scikit-learn": {"sklearn"},
    "tensorflow": {"tensorflow", "keras"},
    "tensorflow-cpu": {"tensorflow", "keras"},
}
"""Modules of distributions that have other names, or that may not be installed here and so cannot be asked."""


def distribution(requirement: str) -> str:
    """Return the name in a requirement, as the index normalises it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[]", requirement.strip(), maxsplit=1)[0]).lower()


def declared(*extras: str) -> set[str]:
    """Return the distributions of the base and of ``extras``, without our own."""
    optional = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(requirement for extra in extras for requirement in optional[extra])]
    return {distribution(requirement) for requirement in wanted} - {"botwatch"}


def provided(name: str) -> set[str]:
    """Return the top-level modules of a distribution."""
    installed = {
        module
        for module, owners in packages_distributions().items()
        if name in {distribution(owner) for owner in owners} and re.fullmatch(r"[a-zA-Z]\w*", module)
    }
    return PROVIDES.get(name) or installed or {name.replace("-", "_")}


def imported(package: str) -> dict[str, set[str]]:
    """Return the foreign top-level modules that a package imports, also within functions -> the files that do."""
    modules: dict[str, set[str]] = {}
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("pytest.importorskip", "importorskip"):
                names = [str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            else:
                continue
            for name in names:
                modules.setdefault(name.partition(".")[0], set()).add(str(path.relative_to(ROOT)))
    return {name: files for name, files in modules.items() if name not in {*sys.stdlib_module_names, *PACKAGES}}


ROLES = {
    "edge_agent": (),
    "trainer": ("trainer",),
    "converter": ("converter",),
    "collector": ("collector",),
    "tests": ("dev", "trainer", "converter", "collector"),
}
"""Package -> the extras that it may import from, beside the base."""

OPTIONAL = {("edge_agent", "rich"), ("converter", "keras")}
"""(package, module) that is used only if it is installed, or that another distribution brings."""


@pytest.mark.parametrize("package", ROLES)
def test_every_import_is_declared(package):
    known = set().union(*(provided(name) for name in declared(*ROLES[package])))
    for module, files in imported(package).items():
        if (package, module) not in OPTIONAL:
            assert module in known, f"{module} is imported by {sorted(files)} and declared nowhere for {package}"


def test_every_dependency_of_the_base_is_imported_by_the_agent():
    used = imported("edge_agent")
    for name in declared():
        assert name in BY_NAME or provided(name) & set(used), f"{name} is required on every gateway and never imported"


@pytest.mark.parametrize("extra", sorted(set(PROJECT["optional-dependencies"]) - {"dev"}))
def test_every_dependency_of_an_extra_is_imported_by_its_role(extra):
    used = imported(extra) if (ROOT / extra).is_dir() else {}
    for name in declared(extra) - declared():
        assert name in BY_NAME or provided(name) & set(used), f"{name} is declared for {extra} and never imported there"


def test_every_tool_of_the_developers_is_run_or_imported():
    used = imported("tests")
    for name in declared("dev") - declared():
        assert name in TOOLS or name in BY_NAME or provided(name) & set(used), f"{name} is declared for dev, never used"


@pytest.mark.parametrize("name", BY_NAME)
def test_a_dependency_that_is_loaded_by_name_is_declared_and_loaded_by_the_line_named_here(name):
    file, line = BY_NAME[name]
    assert line in (ROOT / file).read_text()
    assert name in declared(*PROJECT["optional-dependencies"])


def test_the_name_is_taken_from_a_requirement():
    assert distribution("types-PyYAML") == "types-pyyaml"
    assert distribution("numpy>=1.23.2,<3; platform_machine != 'armv7l'") == "numpy"
    assert distribution("psycopg[binary]>=3.2,<4") == "psycopg"
