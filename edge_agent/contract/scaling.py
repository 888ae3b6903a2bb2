"""From raw columns to the inputs of the networks: squash, z-score with a floored scale, clip.

Trainer, converter and agent share this one definition, so a model cannot meet inputs it was not trained on. The error
of a reconstruction is measured against the *unclipped* z: clipping the target hides a single wild column (a spike in
one column of z = 1000 is found in 100 % of cases against the unclipped value and in 5 % against the clipped one).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

SCALE_FLOOR = 0.1
"""Smallest divisor: in log units with the squash, so that a column constant up to rounding noise never explodes."""


class ScalingError(ValueError):
    """A scaler that cannot be used; the message says why."""


@dataclass(frozen=True)
class Scaler:
    """Column-wise transform, fitted on benign train rows only.

    ``squash`` "log1p" is sign(x)·log1p(|x|) before the z-score, "none" the study's raw z. ``mean`` and ``scale`` are of
    the squashed values, shape (k,). ``clip`` bounds the network's input in z; None leaves it open.
    """

    squash: Literal["log1p", "none"]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    clip: float | None

    def __post_init__(self) -> None:
        if self.squash not in ("log1p", "none"):
            raise ScalingError(f"unknown squash {self.squash!r}; known: log1p, none")
        if self.mean.ndim != 1 or self.mean.shape != self.scale.shape:
            raise ScalingError(f"mean has shape {self.mean.shape}, scale {self.scale.shape}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ScalingError("mean and scale must be finite, scale above 0")
        if self.clip is not None and not self.clip > 0:
            raise ScalingError(f"clip must be above 0, is {self.clip}")

    def z(self, values: NDArray[Any]) -> Array:
        """Return scaled, unclipped values, float32, shape (n, k): the target of the reconstruction error."""
        x: Array = np.asarray(values, dtype=np.float32)
        if self.squash == "log1p":
            logs: Array = np.log1p(np.abs(x), dtype=np.float32)
            x = np.copysign(logs, x, out=logs)
        return np.asarray((x - self.mean.astype(np.float32)) / self.scale.astype(np.float32), dtype=np.float32)

    def network_input(self, z: Array) -> Array:
        """Return ``z`` clipped, as the networks were trained to see it."""
        return z if self.clip is None else np.clip(z, np.float32(-self.clip), np.float32(self.clip))

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a manifest; `from_json` gives an equal scaler back."""
        return {"squash": self.squash, "clip": self.clip, "mean": self.mean.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Scaler":
        """Return the scaler of a manifest. ScalingError or KeyError for anything else."""
        return cls(
            data["squash"],
            np.asarray(data["mean"], dtype=np.float64),
            np.asarray(data["scale"], dtype=np.float64),
            None if data["clip"] is None else float(data["clip"]),
        )


def fit(
    values: NDArray[Any],
    squash: Literal["log1p", "none"] = "log1p",
    clip: float | None = 10.0,
    floor: float = SCALE_FLOOR,
) -> Scaler:
    """Return a scaler fitted on benign train rows (n, k). ScalingError without rows, or if a value is not finite."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or not len(x):
        raise ScalingError(f"no rows to fit a scaler on (shape {x.shape})")
    if squash == "log1p":
        x = np.copysign(np.log1p(np.abs(x)), x)
    if not np.isfinite(x).all():
        raise ScalingError("rows hold values that are not finite")
    return Scaler(squash, x.mean(axis=0), np.maximum(x.std(axis=0), floor), clip)


def row_error(z: Array, rebuilt: Array) -> Array:
    """Return the mean squared error per row, shape (n,): the anomaly score of Meidan et al. 2018, on scaled columns."""
    difference = z - rebuilt
    return np.asarray(np.einsum("ij,ij->i", difference, difference) / z.shape[1], dtype=np.float32)
