"""The run folder: what `botwatch trainer fit` writes and the converter and the trainer's analyses read.

It is the whole interface between trainer and converter: the Keras networks, ``model.json`` with everything that decides
a detection, the raw rows with the part each one was used for, and how it was made. The names and the JSON files are
written and read here, side by side; the content of Keras and Parquet files is known by the modules that open them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from edge_agent.contract import settings
from edge_agent.contract.bundle import BENIGN, PacketProfile, replace_file
from edge_agent.contract.decision import Decision
from edge_agent.contract.scaling import Scaler, ScalingError

FORMAT = 2
"""Format of model.json that is written and read; runs of format 1 have to be fitted again."""

MODEL, PROVENANCE = "model.json", "provenance.json"
METRICS, HISTORY = "metrics.json", "history.json"
"""Figures of the float networks, and their loss by epoch: for people and the report, no program decides by them."""

AUTOENCODER, CLASSIFIER = "autoencoder.keras", "classifier.keras"
ROWS = "rows.parquet"
"""A bounded sample of raw rows: the model's columns as published, and `ROW_FACTS` of each row."""

CONFIG = "config.yaml"

ROW_FACTS = ("part", "label", "device", "mac", "t_ns", "run", "start")
"""Columns of rows.parquet beside the model's: part is train, optimise or test, of attack rows attack; t_ns is the
packet time in Unix ns. Rows of a device and part are in sequence; those of one run followed each other, and start is
true in the first seconds of a device's capture."""


class RunFolderError(Exception):
    """A run folder that cannot be used; the message names the file and why."""


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """The content of model.json, in the order in which it is written.

    ``scaler`` is as `Scaler.to_json` gives it. ``normal`` is, per column, (median, 99.9 % quantile) of benign train
    rows in the column's own unit. ``classes`` are those of the classifier, benign first; empty without a classifier.
    ``signatures`` holds the packet profile of each class that was learnt from packets. ``generated`` is true when any
    row came from generated traffic. ``provenance`` names what the model was made of, for the bundle's manifest.
    """

    format: int = FORMAT
    schemas: tuple[str, ...]
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    signatures: dict[str, PacketProfile] = field(default_factory=dict)
    scaler: dict[str, object]
    decision: Decision
    generated: bool
    normal: dict[str, tuple[float, ...]]
    seed: int
    provenance: dict[str, str]

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format {self.format}, this version reads format {FORMAT}")
        if not self.columns:
            raise ValueError("columns: none named")
        if self.classes and BENIGN not in self.classes:
            raise ValueError(f"classes: no {BENIGN!r} among {', '.join(self.classes)}")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The content of provenance.json: how a run folder was made.

    ``created`` is an ISO 8601 date and time: the date of every bundle made of the run, so that the same run gives the
    same bundle. ``inputs`` are the SHA-256 of the files that were read, by name.
    """

    command: str = ""
    created: str
    took_s: float = 0.0
    seed: int = 0
    generated: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.created_at()

    def created_at(self) -> datetime:
        """Return ``created`` as a date and time."""
        try:
            return datetime.fromisoformat(self.created)
        except ValueError:
            raise ValueError(f"created: {self.created[:40]!r} is not an ISO 8601 date") from None


def write_json(path: Path, data: object) -> None:
    """Replace a JSON file of a run folder; ValueError for a number that is not finite."""
    replace_file(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Mapping[str, Any]:
    """Return the keys and values of a JSON file of a run folder; RunFolderError when it does not hold any."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunFolderError(f"{path.parent}: not a run folder: {path.name} is missing") from None
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path}: not JSON: {error}") from error
    if not isinstance(data, Mapping):
        raise RunFolderError(f"{path}: not a JSON object: expected keys and values")
    return data


def write_model(folder: Path, model: ModelFile) -> None:
    """Write model.json. It comes last, so that a folder that has one is complete."""
    write_json(folder / MODEL, asdict(model))


def read_model(folder: Path) -> tuple[ModelFile, Scaler]:
    """Return the content of model.json and its scaler; RunFolderError when either is not as `write_model` writes it."""
    path = folder / MODEL
    try:
        model = settings.build(ModelFile, read_json(path), str(path))
    except settings.SettingsError as error:
        raise RunFolderError(str(error)) from error
    try:
        scaler = Scaler.from_json(model.scaler)
    except (ScalingError, KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{path} [scaler]: {error!r}") from error
    if len(scaler.mean) != len(model.columns):
        raise RunFolderError(f"{path}: scaler has {len(scaler.mean)} columns, model {len(model.columns)}")
    return model, scaler


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Write provenance.json."""
    write_json(folder / PROVENANCE, asdict(provenance))


def read_provenance(folder: Path) -> Provenance:
    """Return the content of provenance.json; RunFolderError when it is not as `write_provenance` writes it."""
    path = folder / PROVENANCE
    try:
        return settings.build(Provenance, read_json(path), str(path))
    except settings.SettingsError as error:
        raise RunFolderError(str(error)) from error
