"""From a run folder to a bundle: the bounds of every variant, refusals, and errors for a wrong run folder."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from converter import quantize
from converter.__main__ import Converted, deliver, main, variants, write
from converter.run import CheckedRun, load
from edge_agent.contract import bundle
from edge_agent.contract.columns import COUNT_COLUMNS
from edge_agent.detection import runtime
from edge_agent.detection.calibrate import recalibrate
from edge_agent.detection.runtime import VARIANTS, Model, ModelError
from edge_agent.detection.scorer import Scorer
from tests.converter.conftest import FEW
from tests.converter.synthetic_run import benign_scores, synthetic, write_run


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_keeps_its_bounds_and_passes_the_agents_self_test(
    run: Path, converted: dict[str, Converted], variant: str, tmp_path: Path
) -> None:
    found = converted[variant].parity
    assert found.failures == ()
    assert (found.benign.rows, found.attack.rows, found.classes.rows) == (2000, 1200, 3200)
    written = write(load(run), converted[variant], variant, "7", tmp_path / "out")
    runtime.selftest(bundle.load(tmp_path / "out"))
    assert written.manifest.variant == variant
    assert written.manifest.needs == {"litert": ">=2.1", "tflite": ">=2.14"}


@pytest.mark.parametrize(
    ("variant", "error"), [("float32", 1e-4), ("float16", 2e-3), ("dynamic", 0.03), ("int8", 0.05)]
)
def test_scores_stay_close_to_the_keras_models(converted: dict[str, Converted], variant: str, error: float) -> None:
    assert converted[variant].parity.benign.error_p99 < error


def test_int8_of_all_140_columns_keeps_the_size_bounds(converted: dict[str, Converted]) -> None:
    """One scale per channel would make 68 KB of it."""
    assert converted["int8"].parity.bytes["autoencoder.tflite"] <= 64 * 1024
    assert converted["int8"].parity.bytes["classifier.tflite"] <= 8 * 1024


@pytest.mark.parametrize("variant", VARIANTS)
def test_tau_in_the_manifest_is_that_of_the_bundles_own_model(
    run: Path, converted: dict[str, Converted], variant: str, tmp_path: Path
) -> None:
    made = write(load(run), converted[variant], variant, "7", tmp_path / "out")
    scorer = Scorer(Model(made.autoencoder), made.scaler, made.manifest.columns)
    benign = pl.read_parquet(run / "rows.parquet").filter(label="benign")
    again = recalibrate(load(run).model.decision, benign_scores(scorer, benign, made.manifest.columns))
    assert again.full.limit == pytest.approx(made.manifest.decision.full.limit, rel=1e-6)
    assert again.full.tau == pytest.approx(made.manifest.decision.full.tau, rel=1e-6)
    assert again.fast.tau == pytest.approx(made.manifest.decision.fast.tau, rel=1e-6)
    assert again.full.limit == pytest.approx(made.manifest.decision.full.limit, rel=1e-6)
    assert again.counts == made.manifest.decision.counts
    assert (again.vote_k, again.vote_w) == (14, 16)


def test_variants_have_a_tau_of_their_own(converted: dict[str, Converted]) -> None:
    assert converted["int8"].decision.full.tau != converted["float32"].decision.full.tau


def test_model_on_few_columns_without_classes_passes(few: Path, few_bundle: Path) -> None:
    made = bundle.load(few_bundle)
    assert made.manifest.columns == FEW
    assert made.classifier is None
    runtime.selftest(made)


def test_same_run_gives_the_same_bytes_in_another_process_and_a_clean_terminal(
    few: Path, few_bundle: Path, tmp_path: Path
) -> None:
    """`script` gives the process a terminal, where TensorFlow would write into the progress bar."""
    command = f"{sys.executable} -m converter {few} --out {tmp_path / 'again'}"
    done = subprocess.run(["script", "-qec", command, "/dev/null"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for file in sorted(few_bundle.iterdir()):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name
    assert "converting" in done.stdout
    assert "wrote" in done.stdout
    for noise in ("Saved artifact", "Warning", "XNNPACK", "oneDNN"):
        assert noise not in done.stdout


def test_version_and_date_come_from_the_run(few_bundle: Path) -> None:
    manifest = bundle.load(few_bundle).manifest
    assert (manifest.version, manifest.created) == ("2026.11.23+1", "2026-11-23T12:00:00+00:00")
    assert manifest.generated


def test_manifest_names_every_file_it_was_made_from(few: Path, few_bundle: Path) -> None:
    provenance = bundle.load(few_bundle).manifest.provenance
    assert {"run", "sha256 autoencoder.keras", "sha256 model.json", "sha256 rows.parquet"} <= set(provenance)


def test_parity_report_is_left_in_the_run_folder(few: Path, few_bundle: Path) -> None:
    report = json.loads((few / "parity.json").read_text())
    assert [entry["variant"] for entry in report] == list(VARIANTS)
    assert all(entry["us_per_row"]["autoencoder.tflite"]["64"] > 0 for entry in report)
    assert "| int8 |" in (few / "parity.md").read_text()
    assert sorted(file.name for file in few_bundle.iterdir()) == ["autoencoder.tflite", "manifest.json", "selftest.npz"]


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> tuple[CheckedRun, dict[str, Converted]]:
    """A run on raw, unclipped z with one class of enormous values: 256 int8 steps cannot resolve the others."""

    def attack(number: int, rows: int) -> np.ndarray:
        return synthetic(len(FEW), rows, 90 + number, shift=1.0) * (1.0 if number == 1 else 3000.0)

    path = tmp_path_factory.mktemp("runs") / "wild"
    run = load(write_run(path, FEW, squash="none", clip=None, attack=attack))
    return run, variants(run, tmp_path_factory.mktemp("variants"), ("int8", "float32"))


def test_int8_that_changes_classes_is_refused_and_leaves_no_bundle(
    wild: tuple[CheckedRun, dict[str, Converted]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deliver(*wild, "int8", "9", tmp_path / "bundle") == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert "int8 refused: flips" in error
    assert "of classes" in error
    assert "bound 1%" in error
    assert not (tmp_path / "bundle").exists()


def test_other_variant_is_written_where_int8_fails_and_the_report_says_so(
    wild: tuple[CheckedRun, dict[str, Converted]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deliver(*wild, "float32", "9", tmp_path / "bundle") == 0
    assert "int8 could not be deployed: flips" in capsys.readouterr().out
    assert bundle.load(tmp_path / "bundle").manifest.version == "9"


@pytest.mark.parametrize(
    "name", ["model.json", "autoencoder.keras", "classifier.keras", "rows.parquet", "provenance.json"]
)
def test_run_folder_with_a_missing_file_is_one_line(
    run: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copied(run, tmp_path)
    (copy / name).unlink()
    assert main([str(copy), "--out", str(tmp_path / "bundle")]) == 2
    assert_one_line(capsys, name)


def unknown_key(model: dict) -> None:
    model["surprise"] = 1


def other_format(model: dict) -> None:
    model["format"] = 3


def no_scaler_mean(model: dict) -> None:
    del model["scaler"]["mean"]


def short_scaler(model: dict) -> None:
    model["scaler"]["mean"].pop()
    model["scaler"]["scale"].pop()


def unknown_column(model: dict) -> None:
    model["columns"][3] = "MI_dir_L7_weight"


def classes_without_benign(model: dict) -> None:
    model["classes"] = ["mirai.scan", "mirai.udp"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (unknown_key, "unknown key 'surprise'"),
        (other_format, "format 3, this version reads format 2"),
        (no_scaler_mean, "[scaler]: KeyError('mean')"),
        (short_scaler, "scaler has 139 columns, model 140"),
        (unknown_column, "column 'MI_dir_L7_weight' is missing"),
        (classes_without_benign, "no 'benign' among"),
    ],
)
def test_model_json_that_is_not_as_expected_is_one_line(
    run: Path, change: Callable[[dict], None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copied(run, tmp_path)
    changed(copy, change)
    assert main([str(copy), "--out", str(tmp_path / "bundle")]) == 2
    assert_one_line(capsys, said)


@pytest.mark.parametrize("name", ["model.json", "rows.parquet", "autoencoder.keras", "provenance.json"])
def test_file_of_a_run_that_is_something_else_is_one_line(
    run: Path, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = copied(run, tmp_path)
    (copy / name).write_bytes(b"\x00 something else")
    assert main([str(copy), "--out", str(tmp_path / "bundle")]) == 2
    assert_one_line(capfd, name)


def test_rows_of_another_run_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """τ of the Keras model on them is not the run's."""
    copy = copied(run, tmp_path)
    rows = pl.read_parquet(copy / "rows.parquet")
    rows.with_columns(pl.col("H_L1_mean") * 50).write_parquet(copy / "rows.parquet")
    assert main([str(copy), "--out", str(tmp_path / "bundle")]) == 2
    assert_one_line(capsys, "models and rows are not of one run")


@pytest.mark.parametrize("part", ["train", "optimise"])
def test_run_without_benign_rows_of_a_part_is_one_line(
    few: Path, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copied(few, tmp_path)
    rows = pl.read_parquet(copy / "rows.parquet")
    rows.filter(pl.col("part") != part).write_parquet(copy / "rows.parquet")
    assert main([str(copy), "--out", str(tmp_path / "bundle")]) == 2
    assert_one_line(capsys, "rows")


def test_variant_without_benign_test_rows_is_refused(few: Path, tmp_path: Path) -> None:
    copy = copied(few, tmp_path)
    rows = pl.read_parquet(copy / "rows.parquet")
    rows.filter(pl.col("part") != "test").write_parquet(copy / "rows.parquet")
    found = variants(load(copy), tmp_path, ("float32",))["float32"].parity
    assert found.failures == ("no benign test rows to compare decisions on",)


def test_bounds_of_the_counts_rule_are_the_runs_own(few: Path, tmp_path: Path) -> None:
    """No network has a say in a count, and the converter need not see the rows they came from."""
    copy = copied(few, tmp_path)
    pl.read_parquet(copy / "rows.parquet").drop(COUNT_COLUMNS).write_parquet(copy / "rows.parquet")
    found = variants(load(copy), tmp_path, ("float32",))["float32"].decision.counts
    assert found == load(few).model.decision.counts != {}


def test_layer_without_bias_is_counted(few: Path) -> None:
    """The TFLite converter drops a bias of zeros, on which tflite-runtime 2.14 crashes on ARM at batch 16."""
    network = quantize.load_keras(few / "autoencoder.keras", len(FEW), len(FEW))
    rows = np.random.default_rng(0).standard_normal((50, len(FEW))).astype(np.float32)
    kernel, bias = network.layers[-1].get_weights()
    network.layers[-1].set_weights([kernel, 0 * bias])
    assert quantize.missing_biases(quantize.convert(network, "int8", rows)) == 1


def test_help_is_quick_and_shows_an_example() -> None:
    script = (
        "import sys; from converter.__main__ import main\ntry: main(['--help'])\nfinally: print(sorted(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
    assert "example:\n  botwatch converter runs/home --out bundles/home" in shown
    assert "'tensorflow'" not in shown
    assert "'polars'" not in shown


@pytest.mark.parametrize("version", ["", "../9", "a b", "x" * 41])
def test_bundle_version_that_is_no_name_is_refused(version: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--out", "x", "--bundle-version", version])
    assert stopped.value.code == 2
    assert "--bundle-version" in capsys.readouterr().err


def changed(run: Path, change: Callable[[dict], None]) -> None:
    model = json.loads((run / "model.json").read_text())
    change(model)
    (run / "model.json").write_text(json.dumps(model))


def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def assert_one_line(captured: pytest.CaptureFixture[str], said: str) -> None:
    lines = [
        line for line in captured.readouterr().err.splitlines() if not line.startswith(("converting", "comparing"))
    ]
    assert len(lines) == 1, lines
    assert lines[0].startswith("botwatch converter: ")
    assert said in lines[0]


def test_run_reads_rows_in_blocks_that_join_to_the_file(few: Path) -> None:
    run: CheckedRun = load(few)
    rows = pl.read_parquet(few / "rows.parquet")
    assert np.array_equal(np.concatenate([b.values for b in run.blocks()]), rows.select(FEW).to_numpy())
    assert np.array_equal(run.take(np.array([0, 17, 4000])), rows.select(FEW).to_numpy()[[0, 17, 4000]])


def test_noise_is_kept_from_the_terminal_unless_the_block_fails(capfd: pytest.CaptureFixture[str]) -> None:
    def noise(error: Exception | None = None) -> None:
        with quantize.quiet():
            print("from Python")
            os.write(2, b"from C\n")
            if error is not None:
                raise error

    noise()
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ZeroDivisionError):
        noise(ZeroDivisionError())
    assert {"from Python", "from C"} <= set(capfd.readouterr().err.splitlines())
    with pytest.raises(ModelError):
        noise(ModelError("says itself what is wrong"))
    assert capfd.readouterr() == ("", "")
