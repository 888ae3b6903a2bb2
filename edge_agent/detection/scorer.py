"""From rows to the figures of a bundle's two networks: anomaly scores and class probabilities.

A score is the mean squared error of the autoencoder's reconstruction, high = anomalous. When it is too high is the
knowledge of `edge_agent.detection.vote` and of the bundle's limits; which class an alarm is named by is that of
`edge_agent.detection.classify`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.capture.features import RowScaling
from edge_agent.contract import columns as cols
from edge_agent.contract.bundle import Bundle
from edge_agent.contract.scaling import Array, Scaler
from edge_agent.detection import classify
from edge_agent.detection.runtime import Model

SLOW = 1.0
"""Columns of a decay λ below this (1/s) still remember an attack minutes after it: λ = 0.1 needs 95 s to forget it,
λ = 0.01 950 s."""

AT_ONCE = 256
"""Rows scored at a time: the interpreter's largest batch, and what the processor's cache holds."""

_FULL, _CARRIED, _FAST = 0, 1, 2  # variants of the score


class Scorer:
    """Rows of one model's columns -> anomaly scores, high = anomalous.

    ``predict`` is the autoencoder (Keras or TFLite): network input (n, k) -> reconstruction (n, k), float32.
    """

    def __init__(self, predict: Callable[[Array], Array], scaler: Scaler, columns: Sequence[str]):
        self._predict, self._scaler, self._columns = predict, scaler, columns
        self._slow = np.array([cols.parts(column).decay < SLOW for column in columns])
        if self._slow.all():  # a model of slow columns alone knows no other rule
            self._slow[:] = False
        device = np.array([column in cols.DEVICE_COLUMNS for column in columns])
        if device.all():
            device[:] = False
        self._keep = np.stack([~np.zeros_like(device), ~device, ~self._slow])
        self._scaling = RowScaling(scaler, len(columns), range(len(columns)), self._keep)

    def full(self, values: NDArray[Any]) -> Array:
        """Return the mean squared error over all columns, shape (n,)."""
        return self._error(self._scaling, values, _FULL)

    def fast(self, values: NDArray[Any]) -> Array:
        """Return the mean squared error over the columns of λ >= 1, (n,); the network sees the slow ones as normal."""
        return self._error(self._scaling, values, _FAST)

    def carried(self, values: NDArray[Any]) -> Array:
        """Return the mean squared error with the sender's device columns shown and counted as normal, (n,).

        That is the score of a router, whose device columns count all that it carries.
        """
        return self._error(self._scaling, values, _CARRIED)

    def of_rows(self) -> Callable[[NDArray[Any], NDArray[np.bool_]], Array]:
        """Return f(rows, is_router): for rows of `ALL_COLUMNS`, `carried` where is_router (n,), else `full`."""
        scaling = RowScaling(self._scaler, len(cols.ALL_COLUMNS), cols.indices(list(self._columns)), self._keep)
        return lambda values, is_router: self._error(scaling, values, is_router.view(np.uint8))

    def shares(self, values: NDArray[Any], fast: bool) -> Array:
        """Return each column's part in the error of one row (k,), under the full or the fast rule: (k,)."""
        z = self._scaler.z(values[None, :])
        if fast:
            z[:, self._slow] = 0.0
        difference = (z - self._predict(self._scaler.network_input(z)))[0]
        if fast:
            difference[self._slow] = 0.0
        return np.asarray(difference**2)

    def _error(self, scaling: RowScaling, values: NDArray[Any], variant: int | NDArray[np.uint8]) -> Array:
        if isinstance(variant, int):
            variant = np.full(len(values), variant, dtype=np.uint8)
        if not isinstance(self._predict, Model):
            z, seen = scaling.inputs(values, variant)
            return scaling.errors(z, self._predict(seen), variant)
        errors = np.empty(len(values), dtype=np.float32)
        for at in range(0, len(values), AT_ONCE):
            part, variants = values[at : at + AT_ONCE], variant[at : at + AT_ONCE]
            z = scaling.inputs(part, variants, self._predict.input(len(part)))[0]
            errors[at : at + AT_ONCE] = scaling.errors(z, self._predict.run(), variants)
        return errors


class RowClassifier:
    """Flagged rows -> class probabilities and packet profiles, and their sums over many rows -> the name of an attack.

    ``model`` is the bundle's classifier: network input (n, k) -> probabilities (n, classes), float32.
    """

    def __init__(self, model: Callable[[Array], Array], bundle: Bundle):
        manifest = bundle.manifest
        self._model, self._scaler, self._classes = model, bundle.scaler, manifest.classes
        self._profiles, self._reject = manifest.signatures, manifest.decision.reject

    def of_rows(
        self, values: NDArray[Any], meta: NDArray[Any], before: NDArray[Any] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return probabilities (n, classes) and profiles (n, `PROFILE_FIELDS`) of rows of the model's columns (n, k).

        ``meta`` (n,) are their packets, ``before`` (1,) the packet classified before them, if there is one.
        """
        probabilities = self._model(self._scaler.network_input(self._scaler.z(values))).astype(np.float64)
        return probabilities, classify.packet_profile(meta, before)

    def name(self, class_sum: NDArray[np.float64], profile_sum: NDArray[np.float64]) -> tuple[str, float | None]:
        """Return class and probability, from the sums over flagged rows; the probability is None for `unknown`."""
        rows = max(float(class_sum.sum()), 1e-9)  # the probabilities of a row sum to 1
        return classify.name(self._classes, class_sum / rows, profile_sum / rows, rows, self._profiles, self._reject)
