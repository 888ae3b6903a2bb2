"""`botwatch converter RUN --out DIR`: make a bundle of a run folder, or say in one line why that is refused.

This shell reads, reports and decides what a failure means; `quantize` knows how networks are converted, and `parity`
how much a conversion may change. A refused variant leaves no bundle; the parity report goes into the run folder.
"""

import argparse
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract import cli, runfolder
from edge_agent.contract.alert import MAX_VERSION
from edge_agent.contract.runfolder import RunFolderError
from edge_agent.detection.runtime import VARIANTS
from edge_agent.progress import Progress

if TYPE_CHECKING:
    from converter.parity import Parity, ParityRows, Predict, Side
    from converter.run import CheckedRun
    from edge_agent.contract.bundle import Bundle
    from edge_agent.contract.decision import Decision

PROG = "botwatch converter"

REPORT_JSON, REPORT_MD = "parity.json", "parity.md"
"""Names of the parity report in the run folder."""

REPRESENTATIVE_ROWS = 1000
"""Rows that fix the int8 ranges. More of them widen the ranges: fewer saturated rows, coarser steps."""

SELFTEST_ROWS = 64
"""Rows of the bundle's self-test."""


def parser() -> cli.Parser:
    """Return the parser of the command line."""
    top = cli.Parser(
        PROG,
        description="Convert the networks of a run to TFLite, compare every variant with them, and write one as a "
        "bundle. A variant that changes too many decisions is refused: then no bundle is written, and the status is 1. "
        "The comparison is printed and written into the run folder.",
        epilog=f"example:\n  {PROG} runs/home --out bundles/home",
    )
    top.add_version()
    top.add_argument("run", type=Path, metavar="RUN", help="folder that `botwatch trainer fit` wrote")
    top.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write the bundle into")
    top.add_argument("--variant", choices=VARIANTS, default="int8", help="variant to write (default: %(default)s)")
    top.add_argument(
        "--bundle-version",
        type=_version,
        metavar="V",
        help="version of the bundle (default: the run's date and +1, as in 2026.11.23+1)",
    )
    return top


def main(argv: list[str] | None = None) -> int:
    """Run `botwatch converter`: 0 when the bundle was written, 1 when its variant was refused, 2 for a usage error."""
    cli.prepare_output()
    options = parser().parse_args(argv)

    from edge_agent.contract.bundle import BundleError
    from edge_agent.detection.runtime import ModelError, RuntimeUnavailable

    try:
        return _convert(options.run, options.out, options.variant, options.bundle_version)
    except (RunFolderError, BundleError, ModelError, RuntimeUnavailable, OSError) as error:
        return cli.refuse(PROG, error)


def _version(text: str) -> str:
    """Return a bundle's version; argparse's error when it is not a name that an alert can carry."""
    if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z.+-]*", text) or len(text) > MAX_VERSION:
        raise argparse.ArgumentTypeError(f"{text!r}: expected at most {MAX_VERSION} letters, digits, '.', '+' and '-'")
    return text


@dataclass(frozen=True, kw_only=True)
class Converted:
    """One variant of a run's networks, converted and measured; ``files`` has contents by name in a bundle."""

    files: dict[str, bytes]
    decision: "Decision"
    parity: "Parity"
    networks: "Mapping[str, Predict]"


def _convert(path: Path, out: Path, variant: str, version: str | None) -> int:
    """Convert every variant, then `deliver`."""
    from converter import run as runs

    run = runs.load(path)
    with tempfile.TemporaryDirectory(prefix="botwatch-converter-") as folder:
        return deliver(run, variants(run, Path(folder)), variant, version or f"{run.created:%Y.%m.%d}+1", out)


def deliver(run: "CheckedRun", converted: "dict[str, Converted]", variant: str, version: str, out: Path) -> int:
    """Report on every variant and write ``variant`` as a bundle: 0; or 1 and no bundle when it breaks a bound."""
    _report(run, [one.parity for one in converted.values()])
    for name, one in converted.items():
        if name != variant and one.parity.failures:
            print(f"{name} could not be deployed: {'; '.join(one.parity.failures)}")
    if reasons := converted[variant].parity.failures:
        return cli.refuse(PROG, f"{variant} refused: {'; '.join(reasons)}", cli.FAILED)
    bundle = write(run, converted[variant], variant, version, out)
    sizes = ", ".join(f"{name} {entry.bytes:,}" for name, entry in bundle.manifest.files.items())
    print(f"wrote {out}: {variant} bundle {version}, bytes: {sizes}; manifest SHA-256 {bundle.sha256[:16]}…")
    return cli.OK


def variants(run: "CheckedRun", folder: Path, wanted: Sequence[str] = VARIANTS) -> "dict[str, Converted]":
    """Convert each wanted variant of the run's networks into ``folder``, with its own τ, and compare it with Keras."""
    from converter import parity, quantize
    from converter import run as runs
    from edge_agent.contract.bundle import AUTOENCODER, CLASSIFIER
    from edge_agent.detection.runtime import Model

    inputs = _representative(run)
    width = len(run.model.columns)
    originals = {AUTOENCODER: quantize.load_keras(run.autoencoder, width, width)}
    if run.classifier is not None:
        originals[CLASSIFIER] = quantize.load_keras(run.classifier, width, len(run.model.classes))
    keras = {"keras": {name: quantize.keras_predict(network) for name, network in originals.items()}}
    rows, (float_side,) = _observe(run, keras)
    if changed := runs.difference(float_side.decision, run.model.decision):
        raise RunFolderError(f"{run.path}: models and rows are not of one run: {changed}")

    files: dict[str, dict[str, bytes]] = {variant: {} for variant in wanted}
    models: dict[str, dict[str, Predict]] = {variant: {} for variant in wanted}
    with _progress("converting", len(originals) * len(wanted)) as progress:
        for variant, (name, network) in product(wanted, originals.items()):
            files[variant][name] = quantize.convert(network, variant, inputs[name])
            (folder / f"{variant}-{name}").write_bytes(files[variant][name])
            with quantize.quiet():
                models[variant][name] = Model(folder / f"{variant}-{name}")
            progress.step(note=f"{name} to {variant}")
    _, sides = _observe(run, models)

    converted = {}
    with _progress("timing", len(originals) * len(wanted)) as progress:
        for variant, side in zip(wanted, sides, strict=True):
            times, defects = {}, []
            for name, predict in models[variant].items():
                times[name] = {batch: parity.microseconds(predict, inputs[name], batch) for batch in (1, 64)}
                defects += _defects(name, files[variant][name], predict, inputs[name])
                progress.step(note=f"{name}, {variant}")
            sizes = {name: len(content) for name, content in files[variant].items()}
            converted[variant] = Converted(
                files=files[variant],
                decision=side.decision,
                parity=parity.compare(variant, rows, side, float_side, sizes, times, defects),
                networks=models[variant],
            )
    return converted


def _defects(name: str, content: bytes, predict: "Predict", inputs: NDArray[np.float32]) -> list[str]:
    """Return why a converted network must not be deployed, whatever its scores."""
    from converter import parity, quantize
    from edge_agent.detection.runtime import BATCHES

    defects = [f"{name} {defect}" for defect in parity.unsteady(predict, inputs, BATCHES)]
    if missing := quantize.missing_biases(content):
        defects.insert(0, f"{missing} layers of {name} have no bias: tflite-runtime 2.14 crashes on them on ARM")
    return defects


def _observe(run: "CheckedRun", networks: "Mapping[str, Mapping[str, Predict]]") -> "tuple[ParityRows, list[Side]]":
    """Return the run's rows, and the scores and decision, with its own τ, of each of ``networks``."""
    from converter import parity
    from converter import run as runs
    from edge_agent.detection import calibrate

    observer = parity.Observer(networks.values(), run.scaler, run.model.columns)
    with _progress(f"scoring by {', '.join(networks)}", -(-run.rows // runs.BLOCK)) as progress:
        for block in run.blocks():
            observer.see(block)
            progress.step()
    try:
        rows, outcomes = observer.seen()
    except ValueError as error:
        raise RunFolderError(f"{run.path / runfolder.ROWS}: {error}") from error
    known, senders = rows.benign & ~rows.test, calibrate.senders(rows.device)
    sides = []
    try:
        for outcome in outcomes:
            benign = calibrate.Benign(
                full=outcome.full[known],
                fast=outcome.fast[known],
                device=senders[known],
                runs=rows.run[known],
                optimise=rows.optimise[known],
                start=rows.start[known],
                t_ns=rows.t_ns[known],
            )
            sides.append(parity.Side(outcome, calibrate.recalibrate(run.model.decision, benign)))
    except ValueError as error:
        raise RunFolderError(f"{run.path}: τ cannot be computed: {error}") from error
    return rows, sides


def _representative(run: "CheckedRun") -> dict[str, NDArray[np.float32]]:
    """Return the network inputs that fix the int8 ranges of each network, by its file name in the bundle.

    For the autoencoder these are benign train rows, which it has to resolve finely; for the classifier rows of every
    label.
    """
    from edge_agent.contract.bundle import AUTOENCODER, BENIGN, CLASSIFIER

    part, label = run.parts()
    benign = np.flatnonzero((part == "train") & (label == BENIGN))
    if not len(benign):
        raise RunFolderError(f"{run.path / runfolder.ROWS}: no benign train rows to choose int8 ranges on")
    groups = [np.flatnonzero((label == name) & (part != "test")) for name in np.unique(label[label != BENIGN])]
    chosen = {AUTOENCODER: _spread(benign, REPRESENTATIVE_ROWS)}
    share = -(-REPRESENTATIVE_ROWS // (1 + len(groups)))
    chosen[CLASSIFIER] = np.sort(np.concatenate([_spread(g, share) for g in (benign, *groups)]))
    return {name: run.scaler.network_input(run.scaler.z(run.take(rows))) for name, rows in chosen.items()}


def _spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return at most ``count`` of ``rows``, evenly spaced."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64))] if len(rows) else rows


def _selftest(run: "CheckedRun", networks: "Mapping[str, Predict]") -> bytes:
    """Return the self-test file: raw rows, half of them benign, and the scores and class probabilities for them."""
    from edge_agent.contract.bundle import AUTOENCODER, BENIGN, CLASSIFIER
    from edge_agent.detection.scorer import Scorer

    part, label = run.parts()
    attacks = np.unique(label[label != BENIGN])
    benign = _spread(np.flatnonzero((part != "train") & (label == BENIGN)), SELFTEST_ROWS // (2 if len(attacks) else 1))
    share = max(1, (SELFTEST_ROWS - len(benign)) // max(1, len(attacks)))
    groups = [_spread(np.flatnonzero((part != "train") & (label == name)), share) for name in attacks]
    values = run.take(np.sort(np.concatenate([benign, *groups])))
    arrays = {"rows": values, "scores": Scorer(networks[AUTOENCODER], run.scaler, run.model.columns).full(values)}
    if CLASSIFIER in networks:
        arrays["classes"] = networks[CLASSIFIER](run.scaler.network_input(run.scaler.z(values)))
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes the keywords for allow_pickle
    return file.getvalue()


def write(run: "CheckedRun", chosen: Converted, variant: str, version: str, out: Path) -> "Bundle":
    """Write the bundle aside, pass it through the agent's own checks, then write it to ``out``."""
    from converter import quantize
    from edge_agent.contract import bundle
    from edge_agent.detection import runtime

    model = run.model
    manifest = bundle.BundleManifest(
        format=bundle.FORMAT,
        version=version,
        created=run.created.isoformat(),
        generated=model.generated,
        schemas=model.schemas,
        columns=model.columns,
        variant=variant,
        scaler=run.scaler.to_json(),
        decision=chosen.decision,
        classes=model.classes,
        normal=model.normal,
        needs=quantize.needs(list(chosen.files.values())),
        versions={
            name: _installed(name) for name in ("botwatch", "tensorflow-cpu", "keras", "ai-edge-litert", "numpy")
        },
        provenance=model.provenance | {f"sha256 {name}": digest for name, digest in run.hashes().items()},
        files={},
        signatures=model.signatures,
    )
    files = chosen.files | {bundle.SELFTEST: _selftest(run, chosen.networks)}
    with tempfile.TemporaryDirectory(prefix="botwatch-converter-") as trial, quantize.quiet():
        runtime.selftest(bundle.write(Path(trial), manifest, files))
    return bundle.write(out, manifest, files)


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _report(run: "CheckedRun", results: "list[Parity]") -> None:
    """Print the parity of every variant and write it into the run folder."""
    from rich.console import Console
    from rich.table import Table

    from converter import parity
    from edge_agent.contract.bundle import replace_file

    title = f"Parity with the Keras models of {run.path.resolve().name}" + (
        " (generated traffic)" * run.model.generated
    )
    text = json.dumps([result.to_json() for result in results], indent=1) + "\n"
    replace_file(run.path / REPORT_JSON, text.encode())
    replace_file(run.path / REPORT_MD, parity.markdown(title, results).encode())
    table = Table(*parity.HEADINGS, title=title, caption=f"{parity.NOTES} Also in {run.path / REPORT_JSON}.")
    for cells in parity.table(results):
        table.add_row(*cells)
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(table)


@contextmanager
def _progress(label: str, total: int) -> Iterator[Progress]:
    """Show a progress bar on a copy of stderr, which stays in place while `quantize.quiet` redirects stderr."""
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w") as stream, Progress(label, total, stream) as progress:
        yield progress


if __name__ == "__main__":
    sys.exit(main())
