"""The settings of `botwatch trainer fit`: one frozen dataclass, read once from YAML (configs/trainer.yaml explains it).

This module imports nothing heavy, so that a mistyped key is reported before TensorFlow is loaded.
"""

import dataclasses
from dataclasses import MISSING, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from edge_agent.contract import columns as cols
from edge_agent.contract import settings
from edge_agent.contract.decision import Rules
from edge_agent.contract.host_bounds import HOST_BOUNDS
from edge_agent.contract.scaling import SCALE_FLOOR
from edge_agent.contract.settings import check, within
from trainer.data.protocol import Split


@dataclass(frozen=True)
class DatasetEntry:
    """One source of rows. Relative paths are relative to the config file."""

    kind: Literal["captures", "rows", "nbaiot"]
    path: Path
    root: Path | None = None  # captures: folder that file names in the manifest are relative to; by default its own
    devices: tuple[str, ...] = within((), 0, 100_000)  # only these; empty: all
    labels: tuple[str, ...] = within((), 0, 10_000)  # only these; empty: all
    device: str | None = within(None, 1, 128)  # rows: for files without a device column
    label: str | None = within(None, 1, 128)  # rows: for files without a label column
    generated: bool = False  # rows: made of generated traffic (for captures the manifest says it)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class BaseRows:
    """Generated homes whose rows are fitted on beside ``data``; `trainer.base.rows` makes them, and keeps them.

    The built-in bundle is fitted on 40 homes of seed 7 alone.
    """

    homes: int = within(0, 0, 400)  # 0: none
    seed: int = within(7, 0, 2**32 - 1)
    hours: float = within(24.0, 0.05, 24.0)  # of each benign capture, at most
    max_rows: int = within(4000, 256, 10**7)  # of each device in a capture

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Scaling:
    """Settings of the scaler, see `edge_agent.contract.scaling`."""

    squash: Literal["log1p", "none"] = "log1p"
    clip: float | None = within(10.0, 1e-3, 1e6)
    floor: float = within(SCALE_FLOOR, 1e-12, 1e6)
    fit_on: Literal["train", "train+optimise"] = "train"  # the latter fits the scaler on τ's rows too, as the study did

    def __post_init__(self) -> None:
        check(self)


Activation = Literal["tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "sigmoid", "softsign"]
Optimiser = Literal["adam", "adamw", "nadam", "rmsprop", "adagrad", "sgd"]


@dataclass(frozen=True)
class Network:
    """Shape of the autoencoder. ``hidden`` are widths of the hidden layers as shares of the number of columns.

    ``head`` `clipped` is min(1, max(0, w·h + b)), the output on the study's slides, as a baseline. Its gradient is zero
    outside (0, 1): a column that starts there never learns, and values of z outside cannot be reconstructed.
    """

    hidden: tuple[float, ...] = within((0.75, 0.5, 0.25, 0.5, 0.75), 1, 32)
    rounding: Literal["ceil", "floor"] = "ceil"
    activation: Activation = "tanh"
    head: Literal["linear", "clipped"] = "linear"

    def __post_init__(self) -> None:
        check(self)
        if not all(0 < share <= 10 for share in self.hidden):
            raise ValueError("hidden: shares of the number of columns must be above 0 and at most 10")


@dataclass(frozen=True)
class Training:
    """Settings of a fit: mini-batches, and early stopping that restores the weights of the best epoch."""

    epochs: int = within(500, 1, 1_000_000)
    batch: int = within(1024, 1, 1 << 20)
    learning_rate: float = within(4e-3, 1e-9, 100.0)
    patience: int = within(20, 1, 1_000_000)
    min_delta: float = within(1e-4, 0.0, 1e6)
    optimiser: Optimiser = "adam"

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ClassifierSettings:
    """Settings of the classifier: its classes, its shape and its training."""

    enabled: bool = True
    # of the train part; more rows are sampled evenly, and classes with fewer weigh as much as the others
    rows_per_class: int = within(20_000, 1, 10**9)
    classes: dict[str, str] = within({}, 0, 10_000)  # label -> class, for labels trained as one
    merge: bool = True  # types of a family that the rows do not distinguish become one class
    hidden: tuple[int, ...] = within((8, 8), 0, 32)  # widths of the hidden layers
    head: Literal["softmax", "clipped"] = "softmax"  # clipped: min(1, max(0, w·h + b)) per class, a baseline
    training: Training = Training(epochs=200, batch=256, patience=15)

    def __post_init__(self) -> None:
        check(self)
        if not all(1 <= width <= 4096 for width in self.hidden):
            raise ValueError("hidden: widths must be between 1 and 4096")


_STARTS = {
    "new_peers": {"5": 8.0, "3": 8.0, "1": 8.0, "0.1": 13.0, "0.01": 20.0},
    "new_sockets": {"5": 16.0, "3": 16.0, "1": 20.0, "0.1": 40.0, "0.01": 133.0},
}
"""About the highest counts of healthy devices at start, in captures of IoTEnsemble, IoT Sentinel and Kitsune."""


def _floors(peers: float, sockets: float) -> dict[str, float]:
    """Return the counts of `_STARTS` by column, times a factor for each kind."""
    floors = {}
    for column in cols.COUNT_COLUMNS:
        _, decay, kind = column.split("_", 2)
        start = _STARTS[kind][decay.removeprefix("L")]
        floors[column] = float(round(start * (peers if kind == "new_peers" else sockets)))
    return floors


@dataclass(frozen=True)
class DecisionSettings(Rules):
    """Settings of `edge_agent.detection.calibrate`; the fields of `Rules` go into the bundle unchanged.

    With ``vote`` `auto`, ``vote_k`` and ``vote_w`` are computed from the autocorrelation of benign scores instead.
    """

    n: float = within(10.0, 0.0, 1e6)
    vote: Literal["auto", "fixed"] = "auto"
    margin: float = within(2.0, 1.0, 1e6)
    # a device that has lost its network opens new sockets to old peers
    floors: dict[str, float] = within(_floors(1.0, 1.5) | HOST_BOUNDS, 0, len(cols.COUNTS))
    warmup_floors: dict[str, float] = within(_floors(2.25, 2.25), 0, len(cols.COUNTS))

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("floors", "warmup_floors"):
            for column, floor in getattr(self, key).items():
                if column not in cols.COUNTS:
                    raise ValueError(f"{key}: unknown column {column!r}; known: {', '.join(cols.COUNTS)}")
                if not floor > 0:
                    raise ValueError(f"{key}: {column} must be above 0, is {floor:g}")


@dataclass(frozen=True)
class DeviceStudy:
    """Training of one device's autoencoder in a study, and the τ (tr*) and window (ws*) published for it."""

    learning_rate: float = within(MISSING, 1e-9, 100.0)
    epochs: int = within(MISSING, 1, 1_000_000)
    tr: float = within(MISSING, 1e-12, 1e12)
    ws: int = within(MISSING, 1, 1_000_000)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class StudySettings:
    """Settings of `botwatch trainer study` beside those of a fit."""

    max_n: int = within(10, 1, 1000)  # largest N in the table of τ = mean + N·std
    leave_out: tuple[str, ...] = within((), 0, 10_000)  # labels that do not take part; their rows are scored separately
    rows_per_type: int = within(100_000, 1, 10**9)  # rows of each Mirai type, for the classifier of types
    per_device: bool = False  # also train an autoencoder for each device
    devices: dict[str, DeviceStudy] = within({}, 0, 10_000)  # all other devices are trained as `autoencoder` says

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Config:
    """Everything that a fit depends on, apart from the data itself."""

    data: tuple[DatasetEntry, ...] = within((), 0, 100_000)
    base: BaseRows = BaseRows()
    seed: int = within(1, 0, 2**32 - 1)
    schemas: tuple[str, ...] = within((cols.CLEAN, cols.DEVICE), 1, len(cols.SCHEMAS))
    columns: tuple[str, ...] = within((), 0, len(cols.ALL_COLUMNS))  # empty: all of the schemas
    drop_columns: tuple[str, ...] = within((), 0, len(cols.ALL_COLUMNS))  # prefixes: HH_jit drops the 15 jitter columns
    top_n: int | None = within(None, 1, len(cols.ALL_COLUMNS))  # use the n best by Fisher score
    rank_by: Literal["label", "family", "attack"] = "label"  # groups of rows that the score compares
    max_rows: int = within(200_000, 1, 10**9)  # of each file, device and label
    total_rows: int = within(
        2_000_000, 1000, 10**9
    )  # in memory; where there are more, max_rows is halved until it fits
    part_rows: int = within(200_000, 256, 10**9)  # of each benign part, for the limits and rows.parquet
    train_rows: int = within(10**9, 1000, 10**9)  # that the autoencoder trains on, at most
    max_streams: int = within(16_384, 64, (1 << 20) - 1)
    use_attack_lead: bool = False
    split: Split = field(default_factory=Split)
    attack_split: Split = field(default_factory=lambda: Split(gap_rows=50, gap_s=0.0))
    scaling: Scaling = Scaling()
    network: Network = Network()
    autoencoder: Training = Training()
    classifier: ClassifierSettings = ClassifierSettings()
    decision: DecisionSettings = DecisionSettings()
    study: StudySettings = field(default_factory=StudySettings)

    def __post_init__(self) -> None:
        check(self)
        if not self.data and not self.base.homes:
            raise ValueError("data: names no source of rows, and base no homes")
        if self.base.homes and cols.COMPAT in self.schemas:
            raise ValueError(f"base: generated homes give rows of {cols.CLEAN}, not of {cols.COMPAT}")
        for schema in self.schemas:
            if schema not in cols.SCHEMAS:
                raise ValueError(f"schemas: unknown schema {schema!r}; known: {', '.join(cols.SCHEMAS)}")
        if cols.CLEAN in self.schemas and cols.COMPAT in self.schemas:
            raise ValueError(f"schemas: {cols.CLEAN} and {cols.COMPAT} exclude each other")
        self.model_columns()

    def model_columns(self) -> tuple[str, ...]:
        """Return the columns that a model may use, before ``top_n``; ValueError names an unknown one."""
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
            raise ValueError("columns: drop_columns leaves no column to train on")
        return tuple(chosen)


PROTOCOLS = Path("protocols")


def presets() -> dict[str, Path]:
    """Return the configurations that come with botwatch, by name."""
    folder = Path(str(files("configs"))) / PROTOCOLS
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(path: Path, data: Path | None = None, top_n: int | None = None) -> Config:
    """Return the configuration at ``path``, or the preset of that name, with absolute paths; SettingsError if invalid.

    ``data`` replaces the path of the first source of rows (its root if it has one), ``top_n`` the config's own value.
    Where published files are expected, ``data`` may also be a Parquet file of rows, or captures with a manifest.
    """
    if not path.exists() and str(path) in (known := presets()):
        path = known[str(path)]
    config = settings.load(Config, path)
    base = path.resolve().parent
    entries = [
        dataclasses.replace(e, path=base / e.path, root=None if e.root is None else base / e.root) for e in config.data
    ]
    if data is not None and not entries:
        raise settings.SettingsError(f"{path.name}: --data replaces the path of the first source, and data names none")
    if data is not None:
        first, data = entries[0], data.resolve()
        if first.kind == "nbaiot" and data.suffix == ".parquet":
            first = dataclasses.replace(first, kind="rows")
        elif first.kind == "nbaiot" and (data.suffix == ".yaml" or (data / "manifest.yaml").is_file()):
            first = dataclasses.replace(first, kind="captures")
        entries[0] = (
            dataclasses.replace(first, path=data) if first.root is None else dataclasses.replace(first, root=data)
        )
    try:
        return dataclasses.replace(config, data=tuple(entries), top_n=config.top_n if top_n is None else top_n)
    except ValueError as error:
        raise settings.SettingsError(f"{path.name}: {error}") from error


def plain(value: Any) -> Any:
    """Return ``value`` (a settings dataclass) as plain data that YAML can write and `load` reads again."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
