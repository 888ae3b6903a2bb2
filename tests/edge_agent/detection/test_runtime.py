"""The TFLite shim and the self-test, with real networks and, for broken runtimes, packages that really fail."""

import dataclasses
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from converter import quantize
from edge_agent.contract import bundle
from edge_agent.contract.bundle import AUTOENCODER, CLASSIFIER, SELFTEST, Bundle, BundleError
from edge_agent.contract.scaling import Scaler, row_error
from edge_agent.detection import runtime
from edge_agent.detection.runtime import Model, ModelError
from tests.edge_agent.contract.test_bundle import COLUMNS, manifest

ROWS = np.random.default_rng(4).lognormal(2, 1, (40, 3)).astype(np.float32)


def network(outputs: int, seed: int, last: str = "linear", inputs: int = 3, bias: bool = True) -> bytes:
    """A small trained-looking network as int8 .tflite."""
    with quantize.quiet():
        import keras

        keras.utils.set_random_seed(seed)
        layers = [keras.layers.Dense(5, "tanh", bias_initializer="random_normal")]
        layers.append(keras.layers.Dense(outputs, last, use_bias=bias, bias_initializer="random_normal"))
        model = keras.Sequential([keras.Input((inputs,)), *layers])
    rows = np.random.default_rng(seed).standard_normal((200, inputs)).astype(np.float32)
    return quantize.convert(model, "int8", rows)


@pytest.fixture(scope="module")
def networks() -> dict[str, bytes]:
    return {"ae": network(3, 1), "other": network(3, 2), "clf": network(2, 3, "softmax"), "wide": network(4, 4)}


@pytest.fixture
def made(networks: dict[str, bytes], tmp_path: Path) -> Bundle:
    """A bundle whose self-test rows were scored by its own models."""
    found = manifest()
    scaler = Scaler.from_json(found.scaler)
    (tmp_path / "ae").write_bytes(networks["ae"])
    (tmp_path / "clf").write_bytes(networks["clf"])
    z = scaler.z(ROWS)
    inputs = scaler.network_input(z)
    arrays = {
        "rows": ROWS,
        "scores": row_error(z, Model(tmp_path / "ae")(inputs)),
        "classes": Model(tmp_path / "clf")(inputs),
    }
    file = io.BytesIO()
    np.savez(file, **arrays)
    files = {AUTOENCODER: networks["ae"], CLASSIFIER: networks["clf"], SELFTEST: file.getvalue()}
    return bundle.write(tmp_path / "bundle", found, files)


def changed(made: Bundle, **contents: bytes) -> Bundle:
    """The bundle with other files and a manifest that vouches for them."""
    names = {"ae": AUTOENCODER, "clf": CLASSIFIER, "rows": SELFTEST}
    files = {name: (made.path / name).read_bytes() for name in names.values()}
    return bundle.write(made.path, made.manifest, files | {names[n]: c for n, c in contents.items()})


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 256, 257, 1000])
def test_rows_come_back_whole_and_in_order_for_any_number_of_them(
    networks: dict[str, bytes], tmp_path: Path, rows: int
) -> None:
    (tmp_path / "model.tflite").write_bytes(networks["ae"])
    model = Model(tmp_path / "model.tflite")
    assert (model.inputs, model.outputs) == (3, 3)
    values = np.random.default_rng(0).standard_normal((rows, 3)).astype(np.float32)
    out = model(values)
    assert out.shape == (rows, 3)
    assert out.dtype == np.float32
    for i in {0, rows // 2, rows - 1} & set(range(rows)):
        assert out[i] == pytest.approx(model(values[i : i + 1])[0], abs=0.05)


def test_results_stay_when_the_model_runs_again(networks: dict[str, bytes], tmp_path: Path) -> None:
    """The interpreter's buffers are reused; what was returned must not be one of them."""
    (tmp_path / "model.tflite").write_bytes(networks["ae"])
    model = Model(tmp_path / "model.tflite")
    first = model(np.ones((1, 3), dtype=np.float32))
    kept = first.copy()
    model(-np.ones((1, 3), dtype=np.float32))
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("rows", [1, 40, 256])
def test_rows_put_into_the_interpreters_memory_give_what_a_call_gives(
    networks: dict[str, bytes], tmp_path: Path, rows: int
) -> None:
    (tmp_path / "model.tflite").write_bytes(networks["ae"])
    model, values = Model(tmp_path / "model.tflite"), np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    called = model(values)
    model(-values)
    model.input(rows)[:] = values
    assert np.array_equal(model.run(), called)
    held = model.input(rows)
    with pytest.raises(RuntimeError, match="internal data"):  # held memory would change under its holder
        model.run()
    assert len(held) == rows


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\x00" * 100, b"not a model at all"])
def test_file_that_is_no_model_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.tflite").write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.tflite"):
        Model(tmp_path / "bad.tflite")


def test_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.tflite: cannot be read"):
        Model(tmp_path / "none.tflite")


def test_model_of_integers_is_refused(tmp_path: Path) -> None:
    """int8 in and out would need the scales that this agent leaves to the model."""
    with quantize.quiet():
        import keras
        import tensorflow as tf

        converter = tf.lite.TFLiteConverter.from_keras_model(
            keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
        )
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([row[np.newaxis]] for row in ROWS)
        converter.inference_input_type = converter.inference_output_type = tf.int8
        (tmp_path / "int.tflite").write_bytes(converter.convert())
    with pytest.raises(ModelError, match="float32"):
        Model(tmp_path / "int.tflite")


def run_with(packages: dict[str, str], tmp_path: Path, model: Path) -> str:
    """What a new interpreter says that finds these packages in place of the runtimes."""
    for name, source in packages.items():
        (tmp_path / "fake" / name).mkdir(parents=True)
        (tmp_path / "fake" / name / "__init__.py").touch()
        (tmp_path / "fake" / name / "interpreter.py").write_text(source)
    script = (
        "import sys; from edge_agent.detection.runtime import Model; m = Model(sys.argv[1]); print(m.runtime, m.inputs)"
    )
    path = os.pathsep.join([str(tmp_path / "fake"), str(Path(runtime.__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", script, str(model)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    return done.stdout + (done.stderr.splitlines() or [""])[-1]


BROKEN_LITERT = 'raise ImportError("libstdc++.so.6: cannot open shared object file")'
BROKEN_TFLITE = (
    'class Interpreter:\n    def __init__(self, **_):\n        raise AttributeError("_ARRAY_API not found")\n'
)
WORKING_TFLITE = """
import numpy as np
class Interpreter:
    def __init__(self, **_): pass
    def get_input_details(self): return [{"index": 0, "dtype": np.float32, "shape_signature": np.array([-1, 7])}]
    get_output_details = get_input_details
    def resize_tensor_input(self, at, shape): self.value = np.zeros(shape, np.float32)
    def allocate_tensors(self): pass
    def invoke(self): pass
    def tensor(self, at): return lambda: self.value
"""


def test_without_a_runtime_each_ones_own_error_is_shown(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"any")
    broken = {"ai_edge_litert": BROKEN_LITERT, "tflite_runtime": 'raise ImportError("GLIBC_2.34 not found")'}
    said = run_with(broken, tmp_path, tmp_path / "model.tflite")
    assert "RuntimeUnavailable" in said
    assert "ai_edge_litert.interpreter: libstdc++.so.6: cannot open" in said
    assert "tflite_runtime.interpreter: GLIBC_2.34 not found" in said


def test_runtime_that_fails_only_when_used_does_not_hide_the_others_error(tmp_path: Path) -> None:
    """tflite-runtime under numpy 2 imports; its interpreters do not."""
    (tmp_path / "model.tflite").write_bytes(b"any")
    said = run_with(
        {"ai_edge_litert": BROKEN_LITERT, "tflite_runtime": BROKEN_TFLITE}, tmp_path, tmp_path / "model.tflite"
    )
    assert "libstdc++.so.6" in said
    assert "_ARRAY_API not found" in said


@pytest.mark.parametrize("litert", [BROKEN_LITERT, BROKEN_TFLITE])
def test_second_runtime_is_used_when_the_first_does_not_work(litert: str, tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"any")
    packages = {"ai_edge_litert": litert, "tflite_runtime": WORKING_TFLITE}
    assert run_with(packages, tmp_path, tmp_path / "model.tflite").strip() == "tflite 7"


def test_bundle_passes_its_own_self_test(made: Bundle) -> None:
    runtime.selftest(made)


@pytest.mark.parametrize(("name", "content"), [("ae", "other"), ("clf", "swapped")])
def test_swapped_model_of_the_right_shape_is_detected(
    made: Bundle, networks: dict[str, bytes], name: str, content: str
) -> None:
    other = networks["other"] if content == "other" else network(2, 9, "softmax")
    with pytest.raises(ModelError, match=rf"{AUTOENCODER if name == 'ae' else CLASSIFIER}: self-test row \d+"):
        runtime.selftest(changed(made, **{name: other}))


@pytest.mark.parametrize(("name", "said"), [("ae", "maps 3 columns to 4, the manifest says 3 to 3"), ("clf", "3 to 2")])
def test_model_of_another_shape_is_detected(made: Bundle, networks: dict[str, bytes], name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        runtime.selftest(changed(made, **{name: networks["wide"]}))


def test_self_test_rows_that_are_not_finite_do_not_pass(made: Bundle) -> None:
    arrays = made.selftest()
    arrays["rows"][5, 1] = np.nan
    file = io.BytesIO()
    np.savez(file, **arrays)
    with pytest.raises(ModelError, match="self-test row"):
        runtime.selftest(changed(made, rows=file.getvalue()))


def test_unknown_variant_is_refused(made: Bundle) -> None:
    with pytest.raises(BundleError, match="unknown variant 'int4'"):
        runtime.selftest(dataclasses.replace(made, manifest=dataclasses.replace(made.manifest, variant="int4")))


def test_self_test_reads_only_the_bundle(made: Bundle, tmp_path: Path) -> None:
    """A copied bundle passes wherever it lies."""
    runtime.selftest(bundle.load(shutil.copytree(made.path, tmp_path / "elsewhere")))
    assert made.manifest.columns == COLUMNS
