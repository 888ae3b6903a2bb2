"""Running a bundle's networks: a .tflite file becomes a callable on float rows. Also the bundle's self-test.

This is the only user of the interpreter. ai-edge-litert is tried first (64-bit, fastest int8), then tflite-runtime (the
only one on 32-bit ARM). A runtime counts as usable once it has run the model: under numpy 2 tflite-runtime can be
imported and fails only at the first interpreter.
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.contract.bundle import AUTOENCODER, CLASSIFIER, SELFTEST, Bundle, BundleError
from edge_agent.contract.cli import without_notices
from edge_agent.contract.scaling import Array, row_error

RUNTIMES = (("litert", "ai_edge_litert.interpreter"), ("tflite", "tflite_runtime.interpreter"))

BATCHES = (1, 16, 64, 256)
"""Batch sizes that an interpreter is resized to; others use the next larger, since every resize plans the graph
anew."""


class RuntimeUnavailable(Exception):
    """No TFLite runtime works here; the message has the error of each."""


class ModelError(Exception):
    """A model that a runtime refuses, or whose shape is not the expected one; the message names the file."""


class Model:
    """One TFLite network of one input and one output, float32 in and out, shape (n, inputs) -> (n, outputs).

    It always runs in one thread: two threads on busy cores cost up to 500 times the latency (spin barriers).
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
                with without_notices():
                    self.inputs, self.outputs = _widths(self._make())
                    self(np.zeros((1, self.inputs), dtype=np.float32))
                return
            except (ValueError, RuntimeError, IndexError, AttributeError, ImportError, SystemError) as error:
                errors.append(f"{self.runtime}: {error}")
        raise ModelError(f"{path}: not a model that can run here: {'; '.join(errors)}")

    def __call__(self, rows: Array) -> Array:
        """Return the outputs of ``rows``, of any number, run in batches of at most 256."""
        out = np.empty((len(rows), self.outputs), dtype=np.float32)
        for start in range(0, len(rows), BATCHES[-1]):
            part = rows[start : start + BATCHES[-1]]
            self.input(len(part))[:] = part
            out[start : start + BATCHES[-1]] = self.run()
        return out

    def input(self, rows: int) -> Array:
        """Return the interpreter's own memory for a number of ``rows``, at most 256, (rows, inputs); fill it before
        `run`.

        Drop every reference to it before that call, or the interpreter refuses to run (RuntimeError).
        """
        self._rows = rows
        interpreter, at, _ = self._of_size(rows)
        view: Array = interpreter.tensor(at)()[:rows]
        return view

    def run(self) -> Array:
        """Run the rows in `input`; return the interpreter's own memory, (rows, outputs), valid until the next call."""
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
            interpreter.tensor(at)()[:] = 0.0  # rows that only fill up the batch must be numbers
            self._interpreters[size] = interpreter, at, interpreter.get_output_details()[0]["index"]
        of_size: tuple[Any, int, int] = self._interpreters[size]
        return of_size


def _widths(interpreter: Any) -> tuple[int, int]:
    """Return the columns in and out of a network of one float32 table each. ValueError for any other network."""
    widths = []
    for details in (interpreter.get_input_details(), interpreter.get_output_details()):
        shape = [int(size) for size in details[0]["shape_signature"]]
        if len(details) != 1 or len(shape) != 2 or details[0]["dtype"] is not np.float32:
            raise ValueError(f"expected one float32 table in and out, found {len(details)} of shape {shape}")
        widths.append(shape[1])
    return widths[0], widths[1]


def _runtimes() -> tuple[list[tuple[str, Any]], list[str]]:
    """Return the runtimes that can be imported, as (name, Interpreter class), and the errors of the others."""
    usable, errors = [], []
    for name, module in RUNTIMES:
        try:
            usable.append((name, importlib.import_module(module).Interpreter))
        except (ImportError, AttributeError, OSError) as error:
            errors.append(f"{module}: {error}")
    if not usable:
        raise RuntimeUnavailable("no TFLite runtime works: " + "; ".join(errors))
    return usable, errors


@dataclass(frozen=True)
class Tolerance:
    """The largest differences between a platform's results and those of the converting machine.

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
"""The number formats that a bundle's models can have, the default first."""


def selftest(bundle: Bundle) -> None:
    """Run the bundle's own rows through its models.

    ModelError if a model does not load, does not fit the manifest's columns or classes, or differs from the results
    where it was converted by more than the variant's `TOLERANCE`. BundleError if the rows themselves are unusable.
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
