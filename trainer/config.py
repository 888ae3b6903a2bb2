"""What `botwatch trainer fit` is told: one frozen dataclass, read once from YAML (configs/trainer.yaml explains it).

Light on purpose: a mistyped key is reported before TensorFlow is imported.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edge_agent.calibrate import COUNT_COLUMNS
from edge_agent.contract import columns as cols
from edge_agent.contract import settings
from edge_agent.contract.bundle import Rules
from edge_agent.contract.scaling import SCALE_FLOOR
from trainer.protocol import Split


@dataclass(frozen=True)
class Entry:
    """One source of rows. Relative paths are relative to the config file."""

    kind: Literal["captures", "rows", "nbaiot"]
    path: Path
    root: Path | None = None  # captures: folder the manifest's file names start from; its own folder by default
    devices: tuple[str, ...] = ()  # only these; empty: all
    labels: tuple[str, ...] = ()  # only these; empty: all
    device: str | None = None  # rows: for files without a device column
    label: str | None = None  # rows: for files without a label column
    generated: bool = False  # rows: made from generated traffic (captures say so in their manifest)


@dataclass(frozen=True)
class Scaling:
    """See `edge_agent.contract.scaling`."""

    squash: Literal["log1p", "none"] = "log1p"
    clip: float | None = 10.0
    floor: float = SCALE_FLOOR

    def __post_init__(self) -> None:
        if not self.floor > 0 or (self.clip is not None and not self.clip > 0):
            raise ValueError("clip and floor must be above 0")


@dataclass(frozen=True)
class Training:
    """How a network is fitted: Adam, early stopping that restores the weights of the best epoch."""

    epochs: int = 500
    batch: int = 1024
    learning_rate: float = 4e-3
    patience: int = 20
    min_delta: float = 1e-4

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.patience) < 1:
            raise ValueError("epochs, batch and patience must be at least 1")
        if not self.learning_rate > 0 or self.min_delta < 0:
            raise ValueError("learning_rate must be above 0, min_delta at least 0")


@dataclass(frozen=True)
class ClassifierSettings:
    """What is classified and how it is trained."""

    enabled: bool = True
    rows_per_class: int = 20_000  # of the train part; more are sampled evenly, what imbalance is left is weighted
    classes: dict[str, str] = field(default_factory=dict)  # label -> class, for labels trained as one
    training: Training = Training(epochs=200, batch=256, patience=15)

    def __post_init__(self) -> None:
        if self.rows_per_class < 1:
            raise ValueError("rows_per_class must be at least 1")


def _floors() -> dict[str, float]:
    """About 1.5 times what healthy devices reach when they start (IoTEnsemble, IoT Sentinel and Kitsune's captures)."""
    peers = {"5": 12.0, "3": 12.0, "1": 12.0, "0.1": 20.0, "0.01": 30.0}
    sockets = {"5": 25.0, "3": 25.0, "1": 30.0, "0.1": 60.0, "0.01": 200.0}
    of = {"new_peers": peers, "new_sockets": sockets}
    return {c: of[c.split("_", 2)[2]][c.split("_")[1].removeprefix("L")] for c in COUNT_COLUMNS}


@dataclass(frozen=True)
class DecisionSettings(Rules):
    """What `edge_agent.calibrate` is told, beside the scores; its `Rules` go into the bundle as they are.

    With ``vote`` at `auto`, ``vote_k`` and ``vote_w`` are replaced by what the autocorrelation of benign scores asks for.
    """

    n: float = 10.0
    vote: Literal["auto", "fixed"] = "auto"
    margin: float = 2.0
    floors: dict[str, float] = field(default_factory=_floors)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.n >= 0 or not self.margin >= 1:
            raise ValueError(f"n must be at least 0, margin at least 1, they are {self.n:g} and {self.margin:g}")
        for column, floor in self.floors.items():
            if column not in COUNT_COLUMNS:
                raise ValueError(f"floors: unknown column {column!r}; known: {', '.join(COUNT_COLUMNS)}")
            if not floor > 0:
                raise ValueError(f"floors: {column} must be above 0, is {floor:g}")


@dataclass(frozen=True)
class Config:
    """Everything a fit depends on beside the data itself."""

    data: tuple[Entry, ...]
    seed: int = 1
    schemas: tuple[str, ...] = (cols.CLEAN, cols.DEVICE)
    columns: tuple[str, ...] = ()  # empty: all of the schemas
    drop_columns: tuple[str, ...] = ()  # prefixes: HH_jit drops the 15 jitter columns
    top_n: int | None = None  # keep the n best by Fisher score
    max_rows: int = 200_000  # per file, device and label
    max_streams: int = 16_384
    use_attack_lead: bool = False
    split: Split = field(default_factory=Split)
    attack_split: Split = field(default_factory=lambda: Split(gap_rows=50, gap_s=0.0))
    scaling: Scaling = Scaling()
    autoencoder: Training = Training()
    classifier: ClassifierSettings = ClassifierSettings()
    decision: DecisionSettings = DecisionSettings()

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data: names no source of rows")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be at least 0 and below 2^32, is {self.seed}")
        for schema in self.schemas:
            if schema not in cols.SCHEMAS:
                raise ValueError(f"schemas: unknown schema {schema!r}; known: {', '.join(cols.SCHEMAS)}")
        if cols.CLEAN in self.schemas and cols.COMPAT in self.schemas:
            raise ValueError(f"schemas: {cols.CLEAN} and {cols.COMPAT} exclude each other")
        if self.max_rows < 1 or self.max_streams < 1:
            raise ValueError("max_rows and max_streams must be at least 1")
        if self.top_n is not None and self.top_n < 1:
            raise ValueError(f"top_n must be at least 1, is {self.top_n}")
        self.model_columns()

    def model_columns(self) -> tuple[str, ...]:
        """The columns a model may use, before ``top_n``; ValueError names what is unknown."""
        known = [c for schema in self.schemas for c in cols.SCHEMAS[schema]]
        for column in self.columns:
            if column not in known:
                raise ValueError(f"columns: {column!r} is in none of the schemas {', '.join(self.schemas)}")
        chosen = list(dict.fromkeys(self.columns or known))
        for prefix in self.drop_columns:
            if not any(c.startswith(prefix) for c in chosen):
                raise ValueError(f"drop_columns: no column starts with {prefix!r}")
            chosen = [c for c in chosen if not c.startswith(prefix)]
        if not chosen:
            raise ValueError("no column is left to train on")
        return tuple(chosen)


def load(path: Path, data: Path | None = None, top_n: int | None = None) -> Config:
    """The configuration at ``path`` with absolute paths; SettingsError says what is wrong.

    ``data`` replaces where the first source of rows lies (its root when it has one), ``top_n`` the config's own.
    """
    config = settings.load(Config, path)
    base = path.resolve().parent
    entries = [
        dataclasses.replace(e, path=base / e.path, root=None if e.root is None else base / e.root) for e in config.data
    ]
    if data is not None:
        first, data = entries[0], data.resolve()
        entries[0] = (
            dataclasses.replace(first, path=data) if first.root is None else dataclasses.replace(first, root=data)
        )
    try:
        return dataclasses.replace(config, data=tuple(entries), top_n=config.top_n if top_n is None else top_n)
    except ValueError as error:
        raise settings.SettingsError(f"{path.name}: {error}") from error


def plain(value: Any) -> Any:
    """``value`` (a settings dataclass) as YAML can write it and `load` reads it again."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
