"""The bundle in the box is what today's sources give, small, and decides as recorded."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from edge_agent.contract import bundle as bundles
from edge_agent.contract.bundle import BENIGN, BUILTIN
from edge_agent.detection import runtime
from trainer.base import golden, make


def test_the_built_in_bundle_is_what_todays_sources_give() -> None:
    """When this fails: `make base-bundle`, and commit what it wrote."""
    assert make.stale() == ""


def test_a_source_that_changed_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(BUILTIN, tmp_path / "copy")
    today = dict(make.provenance.sources(*make.MODULES))
    monkeypatch.setattr(make.provenance, "sources", lambda *names: today)
    recorded = (copy / make.PROVENANCE).read_text()
    line = make.stale(copy)
    assert line == "" or line.endswith(": run `make base-bundle`")
    (copy / make.PROVENANCE).write_text(recorded.replace("trainer/traffic/plan.py", "trainer/traffic/plans.py"))
    line = make.stale(copy)
    assert "trainer/traffic/plan" in line or " more changed" in line
    assert line.endswith(": run `make base-bundle`")
    assert "\n" not in line
    (copy / "manifest.json").write_bytes((copy / "manifest.json").read_bytes() + b"\n")
    assert make.stale(copy).endswith(": run `make base-bundle`")
    shutil.rmtree(copy)
    assert make.stale(copy).endswith(": run `make base-bundle`")


def test_it_is_small_generated_and_passes_its_own_test() -> None:
    assert sum(path.stat().st_size for path in BUILTIN.iterdir()) <= make.MOST_BYTES
    bundle = bundles.load(BUILTIN)
    assert bundle.manifest.generated
    assert bundle.manifest.version.startswith("builtin")
    assert {name.split(".")[0] for name in bundle.manifest.classes} >= {BENIGN, "mirai", "gafgyt"}
    assert bundle.manifest.signatures
    runtime.selftest(bundle)


def test_its_golden_rows_decide_as_recorded() -> None:
    """On any processor: the recorded rows are far from the limit, and their classes are sure."""
    bundle, rows = bundles.load(BUILTIN), golden.load(BUILTIN)
    assert golden.differences(bundle, rows) == []
    assert 10 <= rows.flagged.sum() <= len(rows.rows) - 10
    assert len(np.unique(rows.classes)) > 3


def test_a_bundle_that_decides_otherwise_is_found_out() -> None:
    bundle, rows = bundles.load(BUILTIN), golden.load(BUILTIN)
    full = dataclasses.replace(bundle.manifest.decision.full, limit=1e6)
    manifest = dataclasses.replace(
        bundle.manifest,
        decision=dataclasses.replace(bundle.manifest.decision, full=full),
        classes=bundle.manifest.classes,
    )
    blind = golden.differences(dataclasses.replace(bundle, manifest=manifest), rows)
    assert len(blind) == rows.flagged.sum()
    turned = dataclasses.replace(bundle.manifest, classes=bundle.manifest.classes[::-1])
    assert any("is called" in line for line in golden.differences(dataclasses.replace(bundle, manifest=turned), rows))
