"""A .tflite file -> a callable on float rows, and a bundle's self-test; the only user of the interpreter.

ai-edge-litert is tried first (64-bit, fastest int8), then tflite-runtime (the only one on 32-bit ARM). A runtime counts
as usable once it has run the model: tflite-runtime imports under numpy 2 and fails only at the first interpreter.
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.contract.bundle import AUTOENCODER, CLASSIFIER, SELFTEST, Bundle, BundleError
from edge_agent.contract.scaling import Array, row_error

RUNTIMES = (("litert", "ai_edge_litert.interpreter"), ("tflite", "tflite_runtime.interpreter"))

BATCHES = (1, 16, 64, 256)
"""Batch sizes an interpreter is resized to; others take the next one, since every resize re-plans the graph."""


class RuntimeUnavailable(Exception):
    """No TFLite runtime works here; the message carries each one's own error."""


class ModelError(Exception):
    """A model that a runtime refuses, or whose shape is not what was asked for; the message names the file."""


class Model:
    """One TFLite network of one input and one output, float32 in and out, shape (n, inputs) -> (n, outputs).

    One thread always: two threads on busy cores cost up to 500 times the latency (spin barriers).
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error}") from error
        usable, errors = _runtimes()
        for self.runtime, make in usable:
            self._interpreters: dict[int, Any] = {}
            self._rows = 0
            self._make: Callable[[], Any] = functools.partial(make, model_content=content, num_threads=1)
            try:
                self.inputs, self.outputs = _widths(self._make())
                self(np.zeros((1, self.inputs), dtype=np.float32))
                return
            except (ValueError, RuntimeError, IndexError, AttributeError, ImportError, SystemError) as error:
                errors.append(f"{self.runtime}: {error}")
        raise ModelError(f"{path}: not a model that can run here: {'; '.join(errors)}")

    def __call__(self, rows: Array) -> Array:
        """Run ``rows``; any number, in batches of at most 256."""
        out = np.empty((len(rows), self.outputs), dtype=np.float32)
        for start in range(0, len(rows), BATCHES[-1]):
            part = rows[start : start + BATCHES[-1]]
            self.input(len(part))[:] = part
            out[start : start + BATCHES[-1]] = self.run()
        return out

    def input(self, rows: int) -> Array:
        """The interpreter's own memory for so many ``rows``, at most 256, (rows, inputs): to be filled before `run`.

        Let go of it before that call, or the interpreter refuses to run (RuntimeError).
        """
        self._rows = rows
        interpreter, at, _ = self._of_size(rows)
        view: Array = interpreter.tensor(at)()[:rows]
        return view

    def run(self) -> Array:
        """Run what `input` was filled with: the interpreter's own memory, (rows, outputs), good until the next call."""
        interpreter, _, to = self._of_size(self._rows)
        interpreter.invoke()
        view: Array = interpreter.tensor(to)()[: self._rows]
        return view

    def _of_size(self, rows: int) -> tuple[Any, int, int]:
        size = next(b for b in BATCHES if b >= rows)
        if size not in self._interpreters:
            interpreter = self._make()
            at = interpreter.get_input_details()[0]["index"]
            interpreter.resize_tensor_input(at, [size, self.inputs])
            interpreter.allocate_tensors()
            interpreter.tensor(at)()[:] = 0.0  # rows that are there for the size only are to be numbers
            self._interpreters[size] = interpreter, at, interpreter.get_output_details()[0]["index"]
        found: tuple[Any, int, int] = self._interpreters[size]
        return found


def _widths(interpreter: Any) -> tuple[int, int]:
    """Columns in and out of a network of one float32 table each; ValueError when it is something else."""
    found = []
    for details in (interpreter.get_input_details(), interpreter.get_output_details()):
        shape = [int(size) for size in details[0]["shape_signature"]]
        if len(details) != 1 or len(shape) != 2 or details[0]["dtype"] is not np.float32:
            raise ValueError(f"expected one float32 table in and out, found {len(details)} of shape {shape}")
        found.append(shape[1])
    return found[0], found[1]


def _runtimes() -> tuple[list[tuple[str, Any]], list[str]]:
    """The runtimes that import, as (name, Interpreter class), and what the others said."""
    usable, errors = [], []
    for name, module in RUNTIMES:
        try:
            usable.append((name, importlib.import_module(module).Interpreter))
        except (ImportError, AttributeError, OSError) as error:
            errors.append(f"{module}: {error}")
    if not usable:
        raise RuntimeUnavailable("no TFLite runtime: " + "; ".join(errors))
    return usable, errors


@dataclass(frozen=True)
class Tolerance:
    """How far a platform may be from the converting machine.

    ``rmse`` bounds the difference of √score in z, plus ``rmse_share`` of √score. √score is the root mean square of
    z - rebuilt, so it moves by at most the root mean square of what the output moved. ``probability`` bounds a class's.
    """

    rmse: float
    rmse_share: float
    probability: float


TOLERANCE = {
    # Kernels round int8 differently: litert and tflite-runtime 2.14 on x86 differ by up to 4 quanta in an element and
    # by 0.035 in √score (140 columns, clip 10). A quantum of the output is 0.08 there.
    "int8": Tolerance(0.1, 0.05, 0.1),
    "float32": Tolerance(1e-3, 1e-3, 1e-3),
    "float16": Tolerance(1e-3, 1e-3, 1e-3),  # 3e-7 measured
    "dynamic": Tolerance(0.02, 0.02, 0.02),  # 0.0014 measured; only the order of float sums and 8-bit inputs differ
}

VARIANTS = tuple(TOLERANCE)
"""The number formats a bundle's models can have, the usual one first."""


def selftest(bundle: Bundle) -> None:
    """Run the bundle's own rows through its models.

    ModelError when a model does not load, fits the manifest's columns or classes badly, or gives other results than
    where it was converted, by more than the variant's `TOLERANCE`; BundleError when the rows themselves are unusable.
    """
    manifest, data = bundle.manifest, bundle.selftest()
    allowed = TOLERANCE.get(manifest.variant)
    if allowed is None:
        raise BundleError(f"{bundle.path}: unknown variant {manifest.variant!r}; known: {', '.join(VARIANTS)}")
    z = bundle.scaler.z(data["rows"])
    inputs = bundle.scaler.network_input(z)
    rebuilt = _checked(bundle.autoencoder, len(manifest.columns), len(manifest.columns))(inputs)
    rmse, expected = np.sqrt(row_error(z, rebuilt)), np.sqrt(data["scores"])
    off = np.abs(rmse - expected) - allowed.rmse_share * expected
    if not off.max() <= allowed.rmse:  # so that NaN fails
        worst = int(np.argmax(np.nan_to_num(off, nan=np.inf)))
        raise ModelError(
            f"{bundle.path / AUTOENCODER}: self-test row {worst} scores {rmse[worst] ** 2:.4g}, expected "
            f"{data['scores'][worst]:.4g} (by {SELFTEST})"
        )
    if bundle.classifier is not None:
        classes = _checked(bundle.classifier, len(manifest.columns), len(manifest.classes))(inputs)
        apart = np.abs(classes - data["classes"])
        if not apart.max() <= allowed.probability:
            worst = int(np.argmax(np.nan_to_num(apart, nan=np.inf).max(axis=1)))
            raise ModelError(
                f"{bundle.path / CLASSIFIER}: self-test row {worst} has a class probability that is "
                f"{np.abs(apart[worst]).max():.3g} off, allowed {allowed.probability} (by {SELFTEST})"
            )


def _checked(path: Path, inputs: int, outputs: int) -> Model:
    """The model at ``path``; ModelError when it is not ``inputs`` -> ``outputs`` columns wide."""
    model = Model(path)
    if (model.inputs, model.outputs) != (inputs, outputs):
        raise ModelError(
            f"{path}: maps {model.inputs} columns to {model.outputs}, the manifest says {inputs} to {outputs}"
        )
    return model
