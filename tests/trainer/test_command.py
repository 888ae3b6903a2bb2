"""The command: help without heavy imports, one line and status 2 for bad input, a run folder in one call."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from edge_agent.contract import settings
from edge_agent.contract.columns import ALL_COLUMNS
from trainer import config
from trainer.__main__ import main
from trainer.config import Config, DatasetEntry

CONFIGS = Path(__file__).parents[2] / "configs"
CAMERA = 0x02_00_00_00_00_05

QUICK = """
data: [{kind: captures, path: captures}]
max_streams: 4096
split: {gap_rows: 5, gap_s: 1.0, min_rows: 5}
attack_split: {gap_rows: 5, gap_s: 0.0, min_rows: 5}
autoencoder: {epochs: 3, batch: 512, patience: 3}
classifier: {training: {epochs: 3, batch: 512, patience: 3}}
"""


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run the command, expect exit status 2 and one line on stderr, and return that line."""
    assert main(list(argv)) == 2
    err = capsys.readouterr().err
    assert err.startswith("botwatch trainer")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("command", [[], ["extract"], ["fit"], ["generate"]])
def test_help_has_an_example_and_is_quick_to_come(command):
    code = (
        "import sys; from trainer.__main__ import main\n"
        f"try: main({[*command, '--help']!r})\n"
        "except SystemExit as end: print(end.code, *sorted({'tensorflow', 'keras', 'polars'} & set(sys.modules)))"
    )
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "example:\n  botwatch trainer" in text
    assert text.splitlines()[-1] == "0"


def test_the_config_shipped_is_complete_and_has_the_defaults():
    loaded = settings.load(Config, CONFIGS / "trainer.yaml")
    assert loaded == Config(data=(DatasetEntry("captures", Path("../captures")),))
    shipped = (CONFIGS / "trainer.yaml").read_text()
    plain = config.plain(loaded)

    def keys(tree: dict[str, object]) -> set[str]:
        found = set(tree)
        for value in tree.values():
            found |= keys(value) if isinstance(value, dict) else set()
        return found

    missing = {key for key in keys(plain) | keys(plain["data"][0]) if f"{key}:" not in shipped}
    assert not missing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: [{kind: captures, path: x}]\nsede: 1", "x.yaml: unknown key 'sede': did you mean 'seed'?"),
        ("data: [{kind: captures, path: x}]\nseed: one", "x.yaml: seed: expected int, found 'one' (str)"),
        ("seed: 1", "x.yaml: data: names no source of rows, and base no homes"),
        ("data: []", "x.yaml: data: names no source of rows, and base no homes"),
        ("data: [{kind: pcap, path: x}]", "kind: 'pcap' (str) is none of captures, rows, nbaiot"),
        ("data: [{kind: rows, path: x}]\nsplit: {train: 0.9}", "x.yaml [split]: train + optimise + test is 1.3"),
        ("data: [{kind: rows, path: x}]\nautoencoder: {epoch: 5}", "x.yaml [autoencoder]: unknown key 'epoch'"),
        ("data: [{kind: rows, path: x}]\ncolumns: [HH_L5_speed]", "'HH_L5_speed' is in none of the schemas"),
        ("data: [{kind: rows, path: x}]\ndrop_columns: [HHjit]", "drop_columns: no column starts with 'HHjit'"),
        ("data: [{kind: rows, path: x}]\nschemas: [nbaiot115]", "unknown schema 'nbaiot115'"),
        ("data: [{kind: rows, path: x}]\ndecision: {floors: {device_L5_mean: 1}}", "unknown column 'device_L5_mean'"),
        ("data: [{kind: rows, path: x}]\ndecision: {floors: {device_L5_new_peers: 0}}", "must be above 0, is 0"),
        ("data: [{kind: rows, path: x}]\ndecision: {n: .nan}", "x.yaml [decision]: n: nan, must be 0 to"),
        (
            "data: [{kind: rows, path: x}]\ndecision: {vote_k: 30}",
            "x.yaml [decision]: vote_k: 30 is more than vote_w, 20",
        ),
        ("data: [{kind: rows, path: x}]\ndecision: {home_devices: 0}", "home_devices: 0, must be 1 to"),
        ("data: [{kind: rows, path: x}", "x.yaml line 1: not YAML"),
    ],
)
def test_a_config_that_is_wrong_stops_the_start_in_one_line(tmp_path, capsys, text, message):
    (tmp_path / "x.yaml").write_text(text)
    assert message in refused(capsys, "fit", str(tmp_path / "x.yaml"), "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_files_that_are_not_there_are_named(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert "nowhere.yaml: cannot be read" in refused(capsys, "fit", str(tmp_path / "nowhere.yaml"), "--out", out)
    (tmp_path / "x.yaml").write_text(QUICK)
    message = refused(capsys, "fit", str(tmp_path / "x.yaml"), "--out", out)
    assert "captures" in message
    assert "cannot be read" in message
    (tmp_path / "x.yaml").write_text("data: [{kind: rows, path: gone.parquet, label: benign}]")
    assert "gone.parquet" in refused(capsys, "fit", str(tmp_path / "x.yaml"), "--out", out)


@pytest.mark.parametrize("words", [["generate", "--out", "{}"], ["extract", "x.pcap", "--out", "{}/x.parquet"]])
def test_a_path_that_cannot_be_written_is_named(tmp_path, capsys, write_pcap, traffic, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    write_pcap(tmp_path / "x.pcap", traffic(CAMERA, 5))
    (tmp_path / "file").write_text("")
    assert main([word.format(tmp_path / "file") for word in words]) == 2
    message = capsys.readouterr().err
    assert f"{tmp_path / 'file'}" in message.splitlines()[-1]
    assert "None" not in message


def test_a_run_folder_that_cannot_be_made_is_refused_before_the_training(tmp_path, capsys, write_pcap, traffic):
    write_pcap(tmp_path / "captures" / "day.pcap", traffic(CAMERA, 5))
    (tmp_path / "captures" / "manifest.yaml").write_text("captures: [{file: day.pcap, device: c, label: benign}]")
    (tmp_path / "x.yaml").write_text(QUICK)
    (tmp_path / "file").write_text("")
    message = refused(capsys, "fit", str(tmp_path / "x.yaml"), "--out", str(tmp_path / "file" / "run"))
    assert "cannot be written" in message


def test_captures_become_a_run_folder_in_one_call(tmp_path, capsys, write_pcap, traffic):
    """From a config and --data, with the attacks' labels, --top-n, and a capture that ends early."""
    folder = tmp_path / "elsewhere"
    write_pcap(folder / "day.pcap", traffic(CAMERA, 400, step_s=0.3))
    scan = write_pcap(folder / "scan.pcap", traffic(CAMERA, 300, step_s=0.01, peers=50))
    scan.write_bytes(scan.read_bytes()[:-5])
    own = f'device: camera, mac: "{CAMERA.to_bytes(6, "big").hex(":")}"'
    (folder / "manifest.yaml").write_text(
        f"generated: true\nseed: 1\ncaptures:\n  - {{file: day.pcap, {own}, label: benign}}\n"
        f"  - {{file: scan.pcap, {own}, label: mirai.scan}}\n"
    )
    (tmp_path / "x.yaml").write_text(QUICK)
    out = tmp_path / "runs" / "home"
    assert main(["fit", str(tmp_path / "x.yaml"), "--data", str(folder), "--top-n", "12", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "699 rows of 1 devices (generated traffic)" in captured.out
    assert "warning:" in captured.err
    assert "299 rows before that are used" in captured.err
    model = json.loads((out / "model.json").read_text())
    assert len(model["columns"]) == 12
    assert model["classes"] == ["benign", "mirai.scan"]
    assert model["generated"] is True
    provenance = json.loads((out / "provenance.json").read_text())
    assert {Path(p).name for p in provenance["inputs"]} == {"day.pcap", "scan.pcap", "manifest.yaml"}
    assert provenance["command"].startswith("botwatch trainer fit ")
    assert settings.load(Config, out / "config.yaml").top_n == 12


def test_extract_writes_rows_and_prints_the_counters(tmp_path, capsys, write_pcap, traffic):
    days = [str(write_pcap(tmp_path / f"{d}.pcap", traffic(CAMERA, 50, d * 10**14))) for d in range(2)]
    assert main(["extract", *days, "--out", str(tmp_path / "rows.parquet")]) == 0
    assert "frames: 100" in capsys.readouterr().out
    assert len(pl.read_parquet(tmp_path / "rows.parquet")) == 100
    assert not list(tmp_path.glob("*.tmp"))


def test_extract_of_a_truncated_capture_keeps_the_rows_before(tmp_path, capsys, write_pcap, traffic):
    path = write_pcap(tmp_path / "day.pcap", traffic(CAMERA, 50))
    path.write_bytes(path.read_bytes()[:-5])
    assert main(["extract", str(path), "--out", str(tmp_path / "rows.parquet")]) == 1
    captured = capsys.readouterr()
    assert "rows: 49" in captured.out
    assert "day.pcap" in captured.err
    assert len(pl.read_parquet(tmp_path / "rows.parquet")) == 49


@pytest.mark.parametrize("content", [None, b"", b"this is no capture at all"])
def test_extract_of_no_capture_leaves_the_existing_file(tmp_path, capsys, content):
    path, out = tmp_path / "day.pcap", tmp_path / "rows.parquet"
    if content is not None:
        path.write_bytes(content)
    out.write_text("of yesterday")
    assert main(["extract", str(path), "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert "rows: 0" in captured.out
    assert "day.pcap" in captured.err
    assert "Traceback" not in captured.err
    assert out.read_text() == "of yesterday"
    assert not list(tmp_path.glob("*.tmp"))


def test_extract_into_a_folder_that_is_not_there_is_refused(tmp_path, capsys, write_pcap, traffic):
    path = write_pcap(tmp_path / "day.pcap", traffic(CAMERA, 5))
    refused(capsys, "extract", str(path), "--out", str(tmp_path / "no" / "rows.parquet"))
    refused(capsys, "extract", str(path), "--out", str(tmp_path / "rows.parquet"), "--max-streams", "0")


def test_extract_in_compat_mode_has_the_epoch_in_the_jitter(tmp_path, write_pcap, traffic):
    path = write_pcap(tmp_path / "day.pcap", traffic(CAMERA, 5))
    first = {}
    for schema in ("clean", "compat"):
        assert main(["extract", str(path), "--schema", schema, "--out", str(tmp_path / schema)]) == 0
        first[schema] = pl.read_parquet(tmp_path / schema)["HH_jit_L1_mean"][0]
    assert first["clean"] == 0
    assert first["compat"] == pytest.approx(20_000 * 86_400, rel=1e-6)


def test_extracted_rows_train_too(tmp_path, capsys, write_pcap, traffic):
    path = write_pcap(tmp_path / "day.pcap", traffic(CAMERA, 300))
    assert main(["extract", str(path), "--out", str(tmp_path / "rows.parquet")]) == 0
    (tmp_path / "x.yaml").write_text(
        QUICK.replace("{kind: captures, path: captures}", "{kind: rows, path: rows.parquet, label: benign}")
    )
    assert main(["fit", str(tmp_path / "x.yaml"), "--out", str(tmp_path / "run")]) == 0
    assert "classifier: skipped" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "run" / "model.json").read_text())["columns"]) == len(ALL_COLUMNS)


def test_real_published_rows_train(tmp_path, capsys, nbaiot_rows):
    folder = tmp_path / "Danmini_Doorbell"
    (folder / "gafgyt_attacks").mkdir(parents=True)
    (folder / "benign_traffic.csv.gz").symlink_to(nbaiot_rows / "danmini_doorbell.benign.csv.gz")
    (folder / "gafgyt_attacks" / "scan.csv.gz").symlink_to(nbaiot_rows / "danmini_doorbell.gafgyt_scan.csv.gz")
    (tmp_path / "x.yaml").write_text(
        QUICK.replace("{kind: captures, path: captures}", "{kind: nbaiot, path: .}")
        + "schemas: [nbaiot115-clean-1]\ndrop_columns: [HH_jit]\n"
    )
    assert main(["fit", str(tmp_path / "x.yaml"), "--out", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["autoencoder"]["columns"] == 100
    assert metrics["rows"] == {"train": 1350, "optimise": 445, "test": 445, "attack": 250}
