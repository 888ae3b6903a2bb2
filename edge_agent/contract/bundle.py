"""A model bundle: a folder with manifest, models and self-test rows; its writer and its reader side by side.

The manifest has everything that the agent needs to decide: the columns, their scaling, the limits of scores. Nothing
about a decision is configured elsewhere, so a bundle behaves alike on every gateway. Every file is named with its size
and SHA-256, and a file that is not named is not read.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract import budget, settings
from edge_agent.contract import columns as cols
from edge_agent.contract.alert import MAX_VERSION
from edge_agent.contract.decision import Decision, Rules
from edge_agent.contract.scaling import Scaler, ScalingError

FORMAT = 2
"""Format of a manifest. 1 had a budget per device-week and a margin over the highest vote in place of what a decision
rests on; such bundles are read (`_of_format_1`)."""

MANIFEST, AUTOENCODER, CLASSIFIER, SELFTEST = "manifest.json", "autoencoder.tflite", "classifier.tflite", "selftest.npz"
BUILTIN = Path(__file__).parents[1] / "builtin"
"""The bundle that comes with botwatch; `botwatch trainer base` makes it. Its version begins with `builtin`, too."""

MAX_FILE_BYTES = 4 << 20
"""Bound of every file of a bundle; int8 models are 50 KB, float32 ones 140 KB."""

BENIGN = "benign"
"""The class name of benign rows; every other class name is an attack of the alert schema."""


class BundleError(Exception):
    """A bundle that must not be used; the message names the folder, the file and the reason."""


PROFILE_FIELDS = (
    *("udp", "tcp", "syn", "ack", "fin_rst", "length", "length_2", "new_peer", "new_socket"),
    *("same_src", "same_dst", "same_sport", "same_dport", "same_length"),
)
"""The fields of a packet profile, all means over an episode's packets: shares of them; length, logarithmic between 60
and 1,514 bytes, and its square; how often a packet repeats what the one before it had: constant, or different every
packet."""


@dataclass(frozen=True)
class PacketProfile:
    """The packets of a class's episodes: the mean of each figure of `PROFILE_FIELDS`, and how far it may be off.

    ``spread`` is the tolerance of an endless episode; the mean of n packets may be off by √(spread² + noise / n).
    """

    mean: tuple[float, ...]
    spread: tuple[float, ...]
    noise: tuple[float, ...]

    def __post_init__(self) -> None:
        for key in ("mean", "spread", "noise"):
            if len(getattr(self, key)) != len(PROFILE_FIELDS):
                raise ValueError(f"{key} has {len(getattr(self, key))} figures, expected {len(PROFILE_FIELDS)}")
        if not all(value > 0 for value in self.spread) or not all(value >= 0 for value in self.noise):
            raise ValueError("spread must be above 0, noise at least 0")


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class BundleManifest:
    """The description of a bundle; see `Decision` for the rules and `Scaler` for ``scaler``.

    ``normal`` is, per column, (median, 99.9 % quantile) of benign train rows in the column's own unit: what an
    explanation calls normal. ``generated`` is true when any training row came from generated traffic.
    """

    format: int
    version: str
    created: str
    generated: bool
    schemas: tuple[str, ...]
    columns: tuple[str, ...]
    variant: str
    scaler: dict[str, object]
    decision: Decision
    classes: tuple[str, ...]
    normal: dict[str, tuple[float, ...]]
    needs: dict[str, str]
    versions: dict[str, str]
    provenance: dict[str, str]
    files: dict[str, FileEntry]
    signatures: dict[str, PacketProfile] = field(default_factory=dict)  # of classes learnt from packets

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format {self.format}, this agent reads format {FORMAT}")
        for schema in self.schemas:
            if schema not in cols.SCHEMAS:
                raise ValueError(f"unknown schema {schema!r}; known: {', '.join(cols.SCHEMAS)}")
        known = {c for schema in self.schemas for c in cols.SCHEMAS[schema]}
        for column in self.columns:
            if column not in known:
                raise ValueError(f"column {column!r} is in none of the schemas {', '.join(self.schemas)}")
        if not self.columns or len(set(self.columns)) != len(self.columns):
            raise ValueError("columns must be named, each once")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must be named, each once")
        if unknown := set(self.signatures) - set(self.classes):
            raise ValueError(f"signatures of {', '.join(sorted(unknown))}, which are not classes of this bundle")
        if not 1 <= len(self.version) <= MAX_VERSION:
            raise ValueError(
                f"version {self.version[:80]!r}: {len(self.version)} characters, the bound is {MAX_VERSION}"
            )


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    path: Path
    manifest: BundleManifest
    scaler: Scaler
    sha256: str  # of manifest.json, which names the hash of every other file: the bundle's identity

    @property
    def autoencoder(self) -> Path:
        """The autoencoder's .tflite file."""
        return self.path / AUTOENCODER

    @property
    def classifier(self) -> Path | None:
        """The classifier's .tflite file; None if the bundle has no classifier."""
        return self.path / CLASSIFIER if CLASSIFIER in self.manifest.files else None

    def selftest(self) -> dict[str, NDArray[Any]]:
        """Return arrays ``rows`` (n, columns), ``scores`` (n,) and, with a classifier, ``classes`` (n, class count).

        BundleError if the file holds anything else.
        """
        path, width = self.path / SELFTEST, len(self.manifest.columns)
        shapes = {"rows": (width,), "scores": ()}
        if self.classifier is not None:
            shapes["classes"] = (len(self.manifest.classes),)
        content = io.BytesIO(_read(self.path, SELFTEST))
        try:
            with zipfile.ZipFile(content) as archive:  # sizes first: a small file can unpack to gigabytes
                size = sum(entry.file_size for entry in archive.infolist())
            if size > MAX_FILE_BYTES:
                raise BundleError(f"{path}: unpacks to {size} bytes, bound {MAX_FILE_BYTES}")
            with np.load(content, allow_pickle=False) as data:
                arrays = dict(data)
        except (ValueError, EOFError, OSError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{path}: not self-test rows: {error}") from error
        if set(arrays) != set(shapes):
            raise BundleError(f"{path}: holds {', '.join(sorted(arrays))}, expected {', '.join(shapes)}")
        for name, array in arrays.items():
            if array.dtype != np.float32 or not len(array.shape) or array.shape != (len(arrays["rows"]), *shapes[name]):
                shape = ", ".join(map(str, ("n", *shapes[name])))
                raise BundleError(f"{path}: {name} is {array.dtype} {array.shape}, expected float32 ({shape})")
        if not len(arrays["rows"]):
            raise BundleError(f"{path}: no rows")
        return arrays


def write(path: Path, manifest: BundleManifest, files: dict[str, bytes]) -> Bundle:
    """Write ``files`` and the manifest, whose ``files`` is filled in here; return the bundle as `load` reads it."""
    path.mkdir(parents=True, exist_ok=True)
    entries = {name: FileEntry(len(data), hashlib.sha256(data).hexdigest()) for name, data in sorted(files.items())}
    manifest = dataclasses.replace(manifest, files=entries)
    text = json.dumps(dataclasses.asdict(manifest), indent=1, allow_nan=False) + "\n"
    for name, data in [*files.items(), (MANIFEST, text.encode())]:  # the manifest last: without it there is no bundle
        replace_file(path / name, data)
    for stale in (AUTOENCODER, CLASSIFIER, SELFTEST):
        if stale not in files:
            (path / stale).unlink(missing_ok=True)
    return load(path)


def load(path: str | Path) -> Bundle:
    """Read and verify a bundle; ``path`` may be the word `builtin`, where no folder has that name.

    BundleError if a file is missing, changed, too large or not readable by this agent.
    """
    path = Path(path)
    if str(path) == BUILTIN.name and not path.exists():
        path = BUILTIN
    raw = _read(path, MANIFEST)
    try:
        data = json.loads(raw, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path / MANIFEST}: not JSON: {error}") from error
    try:
        if isinstance(data, dict) and data.get("format") == 1:
            data = _of_format_1(data)
        manifest = settings.build(BundleManifest, data, str(path / MANIFEST))
        scaler = Scaler.from_json(manifest.scaler)
    except settings.SettingsError as error:
        raise BundleError(str(error)) from error
    except ScalingError as error:
        raise BundleError(f"{path / MANIFEST} [scaler]: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path / MANIFEST} [scaler]: {error!r}") from error
    if len(scaler.mean) != len(manifest.columns):
        raise BundleError(f"{path / MANIFEST}: scaler has {len(scaler.mean)} columns, model {len(manifest.columns)}")
    for name in (AUTOENCODER, SELFTEST, *((CLASSIFIER,) if manifest.classes else ())):
        if name not in manifest.files:
            raise BundleError(f"{path / MANIFEST}: names no {name}")
    if CLASSIFIER in manifest.files and not manifest.classes:
        raise BundleError(f"{path / MANIFEST}: names {CLASSIFIER}, but no classes")
    for name, entry in manifest.files.items():
        if name not in (AUTOENCODER, CLASSIFIER, SELFTEST):
            raise BundleError(f"{path / MANIFEST}: unknown file {name!r}")
        content = _read(path, name)
        if len(content) != entry.bytes or hashlib.sha256(content).hexdigest() != entry.sha256:
            raise BundleError(f"{path / name}: not the file the manifest was written for (size or SHA-256 differs)")
    return Bundle(path, manifest, scaler, hashlib.sha256(raw).hexdigest())


def _of_format_1(data: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest of format 1 as one of this format; what is not as it was written is left for `build` to refuse.

    Its limits hold as they are. Its budget was one device's and week's.
    """
    decision = data.get("decision")
    if not isinstance(decision, dict):
        return data
    decision = {key: value for key, value in decision.items() if key != "vote_margin"}
    weekly, factor = decision.get("budget"), decision.get("warmup_score_factor", Rules.warmup_score_factor)
    if isinstance(weekly, int | float):
        decision["budget"] = weekly / 7.0 / budget.per_device_day(1.0, Rules.home_devices)
    return {**data, "format": FORMAT, "decision": {**decision, "start_factor": factor}}


def _finite(text: str) -> float:
    """Return a number of the manifest, which must be finite: with a τ of NaN or infinity nothing is ever detected."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def _read(path: Path, name: str) -> bytes:
    try:
        with open(path / name, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise BundleError(f"{path}: not a bundle: {name} is missing") from error
    except OSError as error:
        raise BundleError(f"{path / name}: cannot be read: {error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise BundleError(f"{path / name}: larger than {MAX_FILE_BYTES} bytes")
    return content


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a power cut leaves the old file or the new one, never a part of one."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
