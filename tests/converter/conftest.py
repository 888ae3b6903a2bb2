"""Runs shared by the converter's tests: fitted once, since Keras takes seconds."""

from pathlib import Path

import pytest

from converter.__main__ import Converted, main, variants
from converter.run import load
from edge_agent.contract.columns import ALL_COLUMNS, NBAIOT_COLUMNS
from tests.converter.synthetic_run import write_run

FEW = tuple(c for c in NBAIOT_COLUMNS if c.startswith(("H_L", "HpHp_L1_")))
"""22 columns, no HH_jit, none of the device's."""


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on all 140 columns with three classes."""
    return write_run(tmp_path_factory.mktemp("runs") / "home", ALL_COLUMNS)


@pytest.fixture(scope="session")
def converted(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Converted]:
    """Every variant of ``run``."""
    return variants(load(run), tmp_path_factory.mktemp("variants"))


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on `FEW` columns without classes."""
    return write_run(tmp_path_factory.mktemp("runs") / "few", FEW, classes=())


@pytest.fixture(scope="session")
def few_bundle(few: Path) -> Path:
    """The int8 bundle of ``few``, through the command line."""
    out = few.parent / "bundle"
    assert main([str(few), "--out", str(out)]) == 0
    return out
