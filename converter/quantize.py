"""From Keras networks to .tflite bytes in four variants, and what can be said of the bytes without running them.

The only user of TensorFlow in this package, imported when first needed. What goes in and out is float32 in every
variant; scaling, clipping and the residual are the Scaler's and stay in float.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.contract.bundle import BundleError
from edge_agent.contract.runfolder import RunFolderError
from edge_agent.contract.scaling import Array
from edge_agent.detection.runtime import ModelError

TFLITE_2_14 = {"FULLY_CONNECTED": 11, "TANH": 3, "SOFTMAX": 3, "QUANTIZE": 3, "DEQUANTIZE": 6}
"""Newest version of each operator that tflite-runtime 2.14 (the only one on 32-bit ARM) runs."""

KERAS_BATCH = 8192


def load_keras(path: Path, inputs: int, outputs: int) -> Any:
    """The Keras model at ``path``; RunFolderError when it is none, or not ``inputs`` -> ``outputs`` columns wide."""
    with quiet():
        import keras

        try:
            network = keras.models.load_model(path, compile=False)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunFolderError(f"{path}: not a Keras model: {' '.join(str(error).split())[:200]}") from error
    if (network.input_shape, network.output_shape) != ((None, inputs), (None, outputs)):
        raise RunFolderError(
            f"{path}: maps {network.input_shape} to {network.output_shape}, expected {inputs} to {outputs} columns"
        )
    return network


def keras_predict(network: Any) -> Callable[[Array], Array]:
    """``network`` as a function of float rows, in bounded memory."""

    def predict(rows: Array) -> Array:
        parts = [
            np.asarray(network(rows[start : start + KERAS_BATCH], training=False))
            for start in range(0, len(rows), KERAS_BATCH)
        ]
        return np.concatenate(parts) if parts else np.empty((0, network.output_shape[-1]), dtype=np.float32)

    return predict


def convert(network: Any, variant: str, representative: Array) -> bytes:
    """``network`` as a .tflite file of one of `edge_agent.detection.runtime.VARIANTS`; same model and rows, same bytes.

    ``representative`` are network inputs (n, k) whose activations fix the int8 ranges: benign rows for an autoencoder
    (what it must resolve finely), rows of every class for a classifier.
    """
    with quiet():
        import tensorflow as tf

        converter = tf.lite.TFLiteConverter.from_keras_model(network)
        if variant != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if variant == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if variant in ("int8", "dynamic"):
            # One scale per tensor. Dynamic: per-channel needs FULLY_CONNECTED 12, which tflite-runtime 2.14 refuses.
            # int8: same fidelity within noise, and 140 columns stay below 64 KB (56 KB against 68 KB).
            converter._experimental_disable_per_channel_quantization_for_dense_layers = True
        if variant == "int8":
            converter.representative_dataset = lambda: ([row[np.newaxis]] for row in representative)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        content: bytes = converter.convert()
    return content


def operators(content: bytes) -> list[tuple[str, int, bool]]:
    """Each operator of a .tflite file in order: name, version, and whether its third input (a bias) is there."""
    from tensorflow.lite.python import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    found = []
    for operator in model.subgraphs[0].operators:
        code = model.operatorCodes[operator.opcodeIndex]
        kind = max(code.builtinCode, code.deprecatedBuiltinCode)
        found.append((names[kind], int(code.version), len(operator.inputs) > 2 and int(operator.inputs[2]) >= 0))
    return found


def missing_biases(content: bytes) -> int:
    """How many FULLY_CONNECTED have no bias: tflite-runtime 2.14 on ARM crashes on them at batch sizes above 1.

    The converter drops a bias that is all zeros, which only an untrained or bias-free layer has.
    """
    return sum(name == "FULLY_CONNECTED" and not bias for name, _, bias in operators(content))


def needs(contents: list[bytes]) -> dict[str, str]:
    """Oldest runtime versions that run all of ``contents``, by the names of `edge_agent.detection.runtime.RUNTIMES`."""
    old = all(version <= TFLITE_2_14.get(name, 0) for c in contents for name, version, _ in operators(c))
    return {"litert": ">=2.1", **({"tflite": ">=2.14"} if old else {})}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what TensorFlow and the interpreter say from the terminal: in Python, and in C++, which writes past Python.

    It is shown when the block fails for a reason that has no message of ours.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace", buffering=1) as noise:
        os.dup2(noise.fileno(), 1)
        os.dup2(noise.fileno(), 2)
        failed = True
        try:
            with redirect_stdout(noise), redirect_stderr(noise):  # a progress bar has put its own in their place
                yield
            failed = False
        except (RunFolderError, ModelError, BundleError):
            failed = False
            raise
        finally:
            for fd, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, fd)
                os.close(copy)
            if failed:
                noise.seek(0)
                sys.stderr.write(noise.read())
