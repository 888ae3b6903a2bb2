"""A run folder read back: its rows with their parts, and the model fitted on them. For analyses after a fit."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from edge_agent.contract import settings
from edge_agent.contract.bundle import BENIGN, Decision
from edge_agent.contract.scaling import Array, Scaler, ScalingError

Index = NDArray[np.intp]


class RunFolderError(Exception):
    """A run folder that cannot be read back; the message names the file and why."""


@dataclass(frozen=True)
class RunFolder:
    """Rows of a run folder: raw values (n, k) of the model's columns and, per row, what is known of it."""

    path: Path
    columns: tuple[str, ...]
    values: Array
    part: NDArray[np.str_]  # train, optimise, test; attack rows: attack
    label: NDArray[np.str_]
    device: NDArray[np.str_]
    t_ns: NDArray[np.int64]
    scaler: Scaler
    decision: Decision
    normal: dict[str, tuple[float, ...]]
    classes: tuple[str, ...]
    generated: bool
    seed: int

    @property
    def benign(self) -> NDArray[np.bool_]:
        """Which rows are of healthy devices."""
        return np.asarray(self.label == BENIGN)

    def rows(self, part: str) -> Index:
        """Numbers of the benign rows of a part."""
        return np.flatnonzero((self.part == part) & self.benign)

    def attacks(self) -> dict[tuple[str, str], Index]:
        """Numbers of each attack's rows, in time order, by label and device."""
        found: dict[tuple[str, str], Index] = {}
        rows = np.flatnonzero(~self.benign)
        names = np.char.add(np.char.add(self.label[rows], "\n"), self.device[rows])
        for name in np.unique(names):
            label, device = str(name).split("\n")
            own = rows[names == name]
            found[label, device] = own[np.argsort(self.t_ns[own], kind="stable")]
        return found

    def groups(self, rows: Index) -> NDArray[np.str_]:
        """Device and part of each row: within one, rows are in sequence."""
        return np.asarray(np.char.add(np.char.add(self.part[rows], " "), self.device[rows]))

    def autoencoder(self) -> Callable[[Array], Array]:
        """The Keras autoencoder: network input (n, k) -> reconstruction. Imports TensorFlow."""
        return self._network("autoencoder")

    def classifier(self) -> Callable[[Array], Array] | None:
        """The Keras classifier: network input (n, k) -> class probabilities; None without classes."""
        return self._network("classifier") if self.classes else None

    def _network(self, name: str) -> Callable[[Array], Array]:
        from trainer.fit import autoencoder

        try:
            return autoencoder.predictor(autoencoder.load(self.path / f"{name}.keras"))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.path / name}.keras: cannot be read: {error}") from error


def load(path: Path, most: int | None = None) -> RunFolder:
    """Read a run folder; RunError names the file that is missing or not as `botwatch trainer fit` writes it.

    ``most`` bounds the rows of each part and attack: their first ones, which are in sequence.
    """
    model_path, rows_path = path / "model.json", path / "rows.parquet"
    try:
        model: dict[str, Any] = json.loads(model_path.read_bytes())
        decision = settings.build(Decision, model["decision"], str(model_path), "decision")
        scaler = Scaler.from_json(model["scaler"])
        frame = pl.read_parquet(rows_path)
        columns: Sequence[str] = model["columns"]
        frame = frame.select([*columns, "part", "label", "device", "t_ns"])
    except OSError as error:
        raise RunFolderError(f"{path}: not a run folder: {error.filename or ''} {error.strerror or error}") from error
    except (settings.SettingsError, ScalingError) as error:
        raise RunFolderError(str(error)) from error
    except (ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
        raise RunFolderError(f"{path}: not as `botwatch trainer fit` writes it: {error!r}") from error
    if most is not None:
        frame = frame.filter(pl.int_range(pl.len()).over("part", "label", "device") < most)
    part, label, device = (frame[name].to_numpy().astype(np.str_) for name in ("part", "label", "device"))
    return RunFolder(
        path,
        tuple(columns),
        np.ascontiguousarray(frame.select(columns).to_numpy(), dtype=np.float32),
        part,
        label,
        device,
        frame["t_ns"].to_numpy().astype(np.int64),
        scaler,
        decision,
        {name: tuple(value) for name, value in model["normal"].items()},
        tuple(model["classes"]),
        bool(model["generated"]),
        int(model["seed"]),
    )
