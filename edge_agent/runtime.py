"""A .tflite file -> a callable on float rows; the only user of the interpreter.

ai-edge-litert is tried first (64-bit, fastest int8), then tflite-runtime (the only one on 32-bit ARM). A runtime counts
as usable once it has run the model: tflite-runtime imports under numpy 2 and fails only at the first interpreter.
"""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

RUNTIMES = (("litert", "ai_edge_litert.interpreter"), ("tflite", "tflite_runtime.interpreter"))

BATCHES = (1, 16, 64, 256)
"""Batch sizes an interpreter is resized to; rows are padded to the next one, since every resize re-plans the graph."""


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
        self.runtime, make = _runtime()
        self._interpreters: dict[int, Any] = {}
        self._make: Callable[[], Any] = functools.partial(make, model_content=content, num_threads=1)
        try:
            interpreter = self._make()
            self.inputs = int(interpreter.get_input_details()[0]["shape_signature"][-1])
            self.outputs = int(interpreter.get_output_details()[0]["shape_signature"][-1])
            self(np.zeros((1, self.inputs), dtype=np.float32))
        except (ValueError, RuntimeError, IndexError, AttributeError, SystemError) as error:
            raise ModelError(f"{path}: not a model {self.runtime} can run: {error}") from error

    def __call__(self, rows: Array) -> Array:
        """Run ``rows``; any number, in batches of at most 256."""
        out = np.empty((len(rows), self.outputs), dtype=np.float32)
        for start in range(0, len(rows), BATCHES[-1]):
            part = rows[start : start + BATCHES[-1]]
            size = next(b for b in BATCHES if b >= len(part))
            interpreter, at, to = self._of_size(size)
            if len(part) < size:
                part = np.concatenate([part, np.zeros((size - len(part), self.inputs), dtype=np.float32)])
            interpreter.set_tensor(at, np.ascontiguousarray(part, dtype=np.float32))
            interpreter.invoke()
            out[start : start + BATCHES[-1]] = interpreter.get_tensor(to)[: len(rows) - start]
        return out

    def _of_size(self, size: int) -> tuple[Any, int, int]:
        if size not in self._interpreters:
            interpreter = self._make()
            at = interpreter.get_input_details()[0]["index"]
            interpreter.resize_tensor_input(at, [size, self.inputs])
            interpreter.allocate_tensors()
            self._interpreters[size] = interpreter, at, interpreter.get_output_details()[0]["index"]
        found: tuple[Any, int, int] = self._interpreters[size]
        return found


def _runtime() -> tuple[str, Any]:
    """The first runtime that imports, as (name, Interpreter class)."""
    errors = []
    for name, module in RUNTIMES:
        try:
            return name, importlib.import_module(module).Interpreter
        except (ImportError, AttributeError, OSError) as error:
            errors.append(f"{module}: {error}")
    raise RuntimeUnavailable("no TFLite runtime: " + "; ".join(errors))
