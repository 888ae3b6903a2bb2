"""A run folder read back for analyses after a fit: its rows with their parts, and the model fitted on them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from edge_agent.contract import cli, runfolder
from edge_agent.contract.bundle import BENIGN, BundleError
from edge_agent.contract.decision import Decision
from edge_agent.contract.runfolder import RunFolderError
from edge_agent.contract.scaling import Array, Scaler
from trainer.report.findings import Findings

Index = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Rows of a run folder: raw values (n, k) of the model's columns and, per row, its part, label, device and time.

    ``part`` is train, optimise or test; of attack rows attack. Benign rows of one ``run`` followed each other.
    """

    path: Path
    columns: tuple[str, ...]
    values: Array
    part: NDArray[np.str_]
    label: NDArray[np.str_]
    device: NDArray[np.str_]
    t_ns: NDArray[np.int64]
    run: NDArray[np.int64]
    scaler: Scaler
    decision: Decision
    normal: dict[str, tuple[float, ...]]
    classes: tuple[str, ...]
    generated: bool
    seed: int

    @property
    def benign(self) -> NDArray[np.bool_]:
        """Mask (n,) of the rows of healthy devices."""
        return np.asarray(self.label == BENIGN)

    def rows(self, part: str) -> Index:
        """Return the numbers of the benign rows of a part."""
        return np.flatnonzero((self.part == part) & self.benign)

    def attacks(self) -> dict[tuple[str, str], Index]:
        """Return the numbers of each attack's rows, in time order, by label and device."""
        attacks: dict[tuple[str, str], Index] = {}
        rows = np.flatnonzero(~self.benign)
        names = np.char.add(np.char.add(self.label[rows], "\n"), self.device[rows])
        for name in np.unique(names):
            label, device = str(name).split("\n")
            of_name = rows[names == name]
            attacks[label, device] = of_name[np.argsort(self.t_ns[of_name], kind="stable")]
        return attacks

    def groups(self, rows: Index) -> NDArray[np.str_]:
        """Return part and device of each row as one text: within a group, rows are in sequence."""
        return np.asarray(np.char.add(np.char.add(self.part[rows], " "), self.device[rows]))

    def autoencoder(self) -> Callable[[Array], Array]:
        """Return the Keras autoencoder: network input (n, k) -> reconstruction. Imports TensorFlow."""
        return self._network(runfolder.AUTOENCODER)

    def classifier(self) -> Callable[[Array], Array] | None:
        """Return the Keras classifier: network input (n, k) -> class probabilities; None without classes."""
        return self._network(runfolder.CLASSIFIER) if self.classes else None

    def _network(self, name: str) -> Callable[[Array], Array]:
        from trainer.fit import autoencoder

        try:
            return autoencoder.predictor(autoencoder.load(self.path / name))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.path / name}: cannot be read: {error}") from error


def load(path: Path, most: int | None = None) -> RunFolder:
    """Read a run folder; RunFolderError names the file that is missing or not as `botwatch trainer fit` writes it.

    ``most`` bounds the rows of each part and attack: their first ones, which are in sequence.
    """
    model, scaler = runfolder.read_model(path)
    facts = [name for name in runfolder.ROW_FACTS if name not in ("mac", "start")]
    try:
        frame = pl.read_parquet(path / runfolder.ROWS).select([*model.columns, *facts])
    except OSError as error:
        raise RunFolderError(f"{path}: not a run folder: {error.filename or ''} {error.strerror or error}") from error
    except pl.exceptions.PolarsError as error:
        raise RunFolderError(f"{path / runfolder.ROWS}: not as `botwatch trainer fit` writes it: {error!r}") from error
    if most is not None:
        frame = frame.filter(pl.int_range(pl.len()).over("part", "label", "device") < most)
    part, label, device = (frame[name].to_numpy().astype(np.str_) for name in ("part", "label", "device"))
    return RunFolder(
        path=path,
        columns=model.columns,
        values=np.ascontiguousarray(frame.select(model.columns).to_numpy(), dtype=np.float32),
        part=part,
        label=label,
        device=device,
        t_ns=frame["t_ns"].to_numpy().astype(np.int64),
        run=frame["run"].to_numpy().astype(np.int64),
        scaler=scaler,
        decision=model.decision,
        normal=model.normal,
        classes=model.classes,
        generated=model.generated,
        seed=model.seed,
    )


def report_on(prog: str, folder: Path, analyse: Callable[[Path], Findings]) -> int:
    """Run an analysis of a run folder as command ``prog``: print its findings and write them into the folder.

    Returns the exit status: 0, or 2 after the reason has been printed.
    """
    try:
        findings = analyse(folder)
        findings.save(folder)
    except (RunFolderError, BundleError, OSError) as error:
        return cli.refuse(prog, error, file=folder)
    print(*findings.text(), sep="\n")
    return cli.OK
