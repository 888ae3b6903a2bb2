"""`botwatch trainer base`: a small base from end to end, twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.contract import bundle as bundles
from trainer.__main__ import main
from trainer.base import golden, make, provenance


def made(tiny: Path, out: Path, cache: Path) -> dict[str, bytes]:
    """Make the bundle by the command, with rows in ``cache``; return the content of each of its files."""
    command = [sys.executable, "-m", "edge_agent.command", "trainer", "base", "--config", tiny, "--out", out]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_two_homes_give_the_same_bytes_twice(tiny: Path, tmp_path: Path, cache: Path) -> None:
    """Other folders, rows made anew: no time, path or order of processes is in what is written."""
    first, again = made(tiny, tmp_path / "first", cache), made(tiny, tmp_path / "again", tmp_path / "cache")
    assert list(first) != []
    assert set(first) == {"manifest.json", "autoencoder.tflite", "classifier.tflite", "selftest.npz"} | {
        golden.NAME,
        make.PROVENANCE,
    }
    assert {name for name in first if first[name] != again.get(name)} == set()
    assert make.stale(tmp_path / "first") == ""
    document = json.loads(first[make.PROVENANCE])
    assert document["recipe"]["base"]["homes"] == 2
    assert {
        "trainer/traffic/life.py",
        "trainer/fit/fit.py",
        "converter/quantize.py",
        "edge_agent/kernel/stats.c",
    } <= set(document["sources"])
    bundle = bundles.load(tmp_path / "first")
    assert bundle.manifest.generated
    assert golden.differences(bundle, golden.load(tmp_path / "again")) == []
    assert str(tmp_path).encode() not in b"".join(first.values())


def test_a_configuration_with_rows_of_its_own_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is shipped may be fitted on generated traffic alone."""
    config = tmp_path / "mine.yaml"
    config.write_text("data: [{kind: rows, path: mine.parquet}]\nbase: {homes: 2}\n")
    assert main(["base", "--config", str(config), "--out", str(tmp_path / "out")]) == 2
    assert "fitted on the homes of `base` alone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_sources_are_what_the_modules_import_and_name_no_printing_module() -> None:
    files = provenance.sources(*make.MODULES)
    assert {"trainer/data/row_table.py", "edge_agent/detection/calibrate.py", "edge_agent/contract/scaling.py"} <= set(
        files
    )
    assert "edge_agent/contract/cli.py" not in files
    assert all((provenance.ROOT / name).is_file() for name in files)
    for name in provenance.UNRELATED:
        assert (provenance.ROOT / (name.replace(".", "/") + ".py")).is_file(), name


def test_words_for_readers_are_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another comment or docstring in a file does not change what it computes; anything else may."""
    text = 'MARGIN = 2.0\n\n\ndef limit(x):\n    """Return the limit."""\n    return MARGIN * x  # as measured\n'
    (tmp_path / "trainer").mkdir()
    file = tmp_path / "trainer" / "one.py"
    monkeypatch.setattr(provenance, "ROOT", tmp_path)

    def of(content: str) -> dict[str, str]:
        file.write_text(content)
        return provenance.sources("trainer.one")

    first = of(text)
    assert list(first) == ["trainer/one.py"]
    assert of(text.replace("Return the limit.", "Return\n    more.").replace("  # as measured", "")) == first
    assert of(text.replace("2.0", "2.5")) != first
    assert of(text.replace("MARGIN * x", "x * MARGIN")) != first
