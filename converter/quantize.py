"""From Keras networks to .tflite bytes in four variants, and facts about the bytes that are read without running them.

This is the only user of TensorFlow in this package, and imports it when it is first needed. Inputs and outputs are
float32 in every variant; scaling, clipping and the residual are the Scaler's and stay in float.
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
"""Number of rows that Keras predicts at a time."""


def load_keras(path: Path, inputs: int, outputs: int) -> Any:
    """Load the Keras model at ``path``; RunFolderError when it does not map ``inputs`` to ``outputs`` columns."""
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
    """Return ``network`` as a function of float rows that runs in bounded memory."""

    def predict(rows: Array) -> Array:
        parts = [
            np.asarray(network(rows[start : start + KERAS_BATCH], training=False))
            for start in range(0, len(rows), KERAS_BATCH)
        ]
        return np.concatenate(parts) if parts else np.empty((0, network.output_shape[-1]), dtype=np.float32)

    return predict


def convert(network: Any, variant: str, representative: Array) -> bytes:
    """Return ``network`` as a .tflite file of one of `edge_agent.detection.runtime.VARIANTS`.

    ``representative`` are network inputs (n, k) whose activations fix the int8 ranges: benign rows for an autoencoder,
    which must resolve them finely, rows of every class for a classifier. Equal networks and rows give equal bytes.
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
    """Return each operator of a .tflite file in order: name, version, and true if it has a third input (a bias)."""
    from tensorflow.lite.python import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    listed = []
    for operator in model.subgraphs[0].operators:
        code = model.operatorCodes[operator.opcodeIndex]
        kind = max(code.builtinCode, code.deprecatedBuiltinCode)
        listed.append((names[kind], int(code.version), len(operator.inputs) > 2 and int(operator.inputs[2]) >= 0))
    return listed


def missing_biases(content: bytes) -> int:
    """Count the FULLY_CONNECTED without a bias: tflite-runtime 2.14 on ARM crashes on them at batch sizes above 1.

    TensorFlow drops a bias that is all zeros, which only an untrained or bias-free layer has.
    """
    return sum(name == "FULLY_CONNECTED" and not bias for name, _, bias in operators(content))


def needs(contents: list[bytes]) -> dict[str, str]:
    """Return the oldest runtimes that run all of ``contents``, by names of `edge_agent.detection.runtime.RUNTIMES`."""
    old = all(version <= TFLITE_2_14.get(name, 0) for c in contents for name, version, _ in operators(c))
    return {"litert": ">=2.1", **({"tflite": ">=2.14"} if old else {})}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the output of TensorFlow and the interpreter off the terminal, also that of C++, which bypasses Python.

    It is shown when the block fails with an error that does not explain itself.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
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
            for fd, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, fd)
                os.close(copy)
            if failed:
                noise.seek(0)
                sys.stderr.write(noise.read())
