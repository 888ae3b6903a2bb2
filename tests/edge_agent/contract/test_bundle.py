"""A bundle's writer and reader: what comes back equal, and what is refused by the name of its file."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_agent.contract import bundle
from edge_agent.contract.bundle import Bundle, BundleError, BundleManifest
from edge_agent.contract.columns import CLEAN, DEVICE
from edge_agent.contract.decision import Decision, Tail, Threshold

COLUMNS = ("H_L1_weight", "H_L1_mean", "device_L1_new_peers")
TAIL = Tail(level=0.2, scale=0.8, shape=0.1, peaks=400, days=2.5, limit=2.0, bound=2.9)
TAU = Threshold(
    limit=3.0, highest=1.5, tau=2.5, quantile=2.7, tail=TAIL, n=3.0, mean=1.0, std=0.5, min=0.1, max=4.0, rows=100
)


def manifest(**changes: object) -> BundleManifest:
    plain: dict = {
        "format": 2,
        "version": "2026.11.23+1",
        "created": "2026-11-23T12:00:00+00:00",
        "generated": True,
        "schemas": (CLEAN, DEVICE),
        "columns": COLUMNS,
        "variant": "int8",
        "scaler": {"squash": "log1p", "clip": 10.0, "mean": [0.0, 1.5, 2.0], "scale": [1.0, 0.1, 3.0]},
        "decision": Decision(full=TAU, fast=TAU, counts={"device_L1_new_peers": 30.0}),
        "classes": ("benign", "mirai.scan"),
        "normal": dict.fromkeys(COLUMNS, (1.0, 2.0)),
        "needs": {"litert": ">=2.1"},
        "versions": {"botwatch": "0.1.0"},
        "provenance": {"run": "home"},
        "files": {},
    }
    return BundleManifest(**(plain | changes))


def selftest(**changes: np.ndarray) -> bytes:
    arrays = {"rows": np.ones((4, 3)), "scores": np.ones(4), "classes": np.full((4, 2), 0.5)} | changes
    file = io.BytesIO()
    np.savez(file, **{name: array.astype(np.float32) for name, array in arrays.items()})
    return file.getvalue()


def files(**changes: bytes) -> dict[str, bytes]:
    return {bundle.AUTOENCODER: b"autoencoder", bundle.CLASSIFIER: b"classifier", bundle.SELFTEST: selftest()} | changes


@pytest.fixture
def made(tmp_path: Path) -> Bundle:
    return bundle.write(tmp_path / "home", manifest(), files())


def test_bundle_comes_back_as_written(made: Bundle) -> None:
    again = bundle.load(made.path)
    assert again.manifest == made.manifest
    assert again.manifest.decision == manifest().decision
    assert again.manifest.files["autoencoder.tflite"].sha256 == hashlib.sha256(b"autoencoder").hexdigest()
    assert again.scaler.mean.tolist() == [0.0, 1.5, 2.0]
    assert again.sha256 == hashlib.sha256((made.path / "manifest.json").read_bytes()).hexdigest()
    assert again.selftest()["rows"].shape == (4, 3)


def test_same_contents_are_the_same_bytes(made: Bundle, tmp_path: Path) -> None:
    assert bundle.write(tmp_path / "other", manifest(), files()).sha256 == made.sha256


def test_bundle_without_classifier_has_none(tmp_path: Path) -> None:
    two = {bundle.AUTOENCODER: b"autoencoder", bundle.SELFTEST: selftest()}
    assert bundle.write(tmp_path, manifest(classes=()), two).classifier is None


def test_writing_over_a_bundle_leaves_nothing_of_the_old_one(made: Bundle) -> None:
    two = {bundle.AUTOENCODER: b"new", bundle.SELFTEST: selftest()}
    bundle.write(made.path, manifest(classes=()), two)
    assert sorted(file.name for file in made.path.iterdir()) == ["autoencoder.tflite", "manifest.json", "selftest.npz"]


@pytest.mark.parametrize("name", ["manifest.json", "autoencoder.tflite", "classifier.tflite", "selftest.npz"])
def test_missing_file_is_named(made: Bundle, name: str) -> None:
    (made.path / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        bundle.load(made.path)


def test_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere: not a bundle"):
        bundle.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["autoencoder.tflite", "classifier.tflite", "selftest.npz"])
@pytest.mark.parametrize("change", [lambda b: b + b"\0", lambda b: b[:-1], lambda b: bytes([b[0] ^ 1]) + b[1:]])
def test_changed_file_is_named(made: Bundle, name: str, change: Callable[[bytes], bytes]) -> None:
    (made.path / name).write_bytes(change((made.path / name).read_bytes()))
    with pytest.raises(BundleError, match=rf"{name}: not the file .* SHA-256"):
        bundle.load(made.path)


@pytest.mark.parametrize("name", ["manifest.json", "autoencoder.tflite"])
def test_oversize_file_is_not_read_whole(made: Bundle, name: str) -> None:
    with open(made.path / name, "ab") as file:
        file.truncate(1 << 40)  # sparse: reading it whole would not fit in memory
    with pytest.raises(BundleError, match=f"{name}: larger than {bundle.MAX_FILE_BYTES} bytes"):
        bundle.load(made.path)


def test_folder_in_place_of_a_file_is_named(made: Bundle) -> None:
    made.autoencoder.unlink()
    made.autoencoder.mkdir()
    with pytest.raises(BundleError, match=r"autoencoder.tflite: cannot be read"):
        bundle.load(made.path)


def put(path: str, value: object) -> Callable[[dict], None]:
    def change(data: dict) -> None:
        *outer, last = path.split("/")
        for key in outer:
            data = data[key]
        data[last] = value

    return change


def drop(path: str) -> Callable[[dict], None]:
    def change(data: dict) -> None:
        *outer, last = path.split("/")
        for key in outer:
            data = data[key]
        del data[last]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("format", 3), "format 3, this agent reads format 2"),
        (put("schemas", ["nbaiot115-clean-9"]), "unknown schema 'nbaiot115-clean-9'"),
        (put("schemas", [DEVICE]), "column 'H_L1_weight' is in none of the schemas device-1"),
        (put("columns", ["H_L1_weight"] * 3), "columns must be named, each once"),
        (put("columns", []), "columns must be named, each once"),
        (put("columns", list(COLUMNS[:2])), "scaler has 3 columns, model 2"),
        (put("surprise", 1), "unknown key 'surprise'"),
        (put("decision/surprise", 1), r"\[decision\]: unknown key 'surprise'"),
        (drop("normal"), "missing key 'normal'"),
        (put("version", 7), "version: expected str, found 7"),
        (put("version", "1" * 41), "41 characters, the bound is 40"),  # no alert could carry it
        (put("version", ""), "version '': 0 characters"),
        (put("classes", ["benign", "benign"]), "classes must be named, each once"),
        (put("decision/warmup_score_factor", 0), r"\[decision\]: warmup_score_factor: 0, must be 1 to"),
        (put("decision/warmup_score_factor", 0.5), "warmup_score_factor: 0.5, must be 1 to"),
        (put("decision/warmup_s", -1), "warmup_s: -1, must be 0 to"),
        (put("decision/reject", 1), "reject: 1, must be 0 to 0.999999999"),
        (put("decision/vote_k", 21), r"\[decision\]: vote_k: 21 is more than vote_w, 20"),
        (put("decision/full/tau", "2"), r"\[decision.full\]: tau: expected float"),
        (put("decision/full/tau", float("nan")), "NaN is not a finite number"),
        (put("decision/full/tau", float("inf")), "Infinity is not a finite number"),
        (put("scaler", {}), r"\[scaler\]: KeyError"),
        (put("scaler", None), "scaler: expected dict"),
        (put("scaler/scale", [1.0, 0.0, 1.0]), "scale above 0"),
        (put("scaler/mean", "much"), r"\[scaler\]: ValueError"),
        (put("scaler/squash", "sqrt"), "unknown squash 'sqrt'"),
        (put("classes", []), "names classifier.tflite, but no classes"),
        (drop("files/classifier.tflite"), "names no classifier.tflite"),
        (drop("files/selftest.npz"), "names no selftest.npz"),
        (put("files/..", {"bytes": 1, "sha256": "00"}), "unknown file '..'"),
        (put("files/autoencoder.tflite", {"bytes": 1}), "missing key 'sha256'"),
    ],
)
def test_manifest_that_cannot_be_used_says_why(made: Bundle, change: Callable[[dict], None], said: str) -> None:
    path = made.path / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match=said) as refused:
        bundle.load(made.path)
    assert "manifest.json" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_bundle_of_format_1_is_read_with_the_limits_that_it_has(made: Bundle) -> None:
    """Its budget was one device's and week's, and it had a margin that no rule uses any more."""
    path = made.path / "manifest.json"
    data = json.loads(path.read_text())
    data["format"] = 1
    data["decision"] |= {"vote_margin": 2.0, "budget": 1.0, "warmup_score_factor": 4.0}
    for key in ("home_devices", "start_factor", "basis"):
        del data["decision"][key]
    path.write_text(json.dumps(data))
    decision = bundle.load(made.path).manifest.decision
    assert decision.full == TAU
    assert decision.budget == pytest.approx(3000 / 7)
    assert (decision.start_factor, decision.basis) == (4.0, None)
    data["decision"] = None
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match=r"manifest\.json \[decision\]: expected"):
        bundle.load(made.path)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"{", b"[]", b"null", b"7", b"[" * 100_000, b'{"format": 1e999}', b"1" * 5000]
)
def test_manifest_that_is_something_else_is_refused(made: Bundle, content: bytes) -> None:
    (made.path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        bundle.load(made.path)


def bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.npy", bytes(64 << 20))
    return file.getvalue()


def pickled() -> bytes:
    file = io.BytesIO()
    np.savez(file, rows=np.array([object()]), scores=np.ones(1), classes=np.ones(1))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK something else", "not self-test rows"),
        (selftest()[:-30], "not self-test rows"),
        (pickled(), "not self-test rows"),
        (bomb(), "unpacks to 67108864 bytes"),
        (selftest(rows=np.ones((4, 2))), "rows is float32"),
        (selftest(scores=np.ones(3)), "scores is float32"),
        (selftest(classes=np.ones((4, 3))), "classes is float32"),
        (selftest(more=np.ones(4)), "holds classes, more, rows, scores"),
        (selftest(rows=np.ones((0, 3)), scores=np.ones(0), classes=np.ones((0, 2))), "no rows"),
    ],
)
def test_selftest_rows_that_cannot_be_used_say_why(tmp_path: Path, content: bytes, said: str) -> None:
    made = bundle.write(tmp_path, manifest(), files(**{bundle.SELFTEST: content}))
    with pytest.raises(BundleError, match=said) as refused:
        made.selftest()
    assert "selftest.npz" in str(refused.value)
