"""`botwatch converter RUN --out DIR`: a run folder becomes a bundle, or one line says why not.

This shell reads, reports and decides what a failure means; how networks are converted is `quantize`'s knowledge, what
a conversion may change `parity`'s. A refused variant leaves no bundle; the parity report goes into the run folder.
"""

import argparse
import dataclasses
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.runtime import VARIANTS

if TYPE_CHECKING:
    from converter.parity import Networks, Parity
    from converter.run import Run
    from edge_agent.contract.bundle import Bundle, Decision

REPORT_JSON, REPORT_MD = "parity.json", "parity.md"

REPRESENTATIVE_ROWS = 1000
"""Rows that fix the int8 ranges. More of them widen the ranges: fewer saturated rows, coarser steps."""
SELFTEST_ROWS = 64


def main(argv: list[str] | None = None) -> int:
    """0 when the bundle was written, 1 when its variant was refused, 2 on a wrong command line or run folder."""
    parser = argparse.ArgumentParser(
        prog="botwatch converter",
        description="Convert the networks of a run to TFLite, compare every variant with them, write one as a bundle.",
        epilog="example: botwatch converter runs/home --out bundles/home",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that `botwatch trainer fit` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the bundle")
    parser.add_argument("--variant", choices=VARIANTS, default="int8", help="what is written (default: %(default)s)")
    parser.add_argument(
        "--bundle-version",
        type=_version,
        metavar="V",
        help="the bundle's version (default: the run's date and +1, as 2026.11.23+1)",
    )
    options = parser.parse_args(argv)

    from converter.run import RunError
    from edge_agent.contract.bundle import BundleError
    from edge_agent.runtime import ModelError, RuntimeUnavailable

    try:
        return _convert(options.run, options.out, options.variant, options.bundle_version)
    except (RunError, BundleError, ModelError, RuntimeUnavailable, OSError) as error:
        print(f"botwatch converter: {error}", file=sys.stderr)
        return 2


def _version(text: str) -> str:
    if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,63}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected at most 64 letters, digits, '.', '+' and '-'")
    return text


@dataclasses.dataclass(frozen=True)
class Converted:
    """One variant of a run's networks, converted and measured."""

    files: dict[str, bytes]  # by their names in a bundle
    decision: "Decision"
    parity: "Parity"
    networks: "Networks"


def _convert(path: Path, out: Path, variant: str, version: str | None) -> int:
    """Convert, report and, if ``variant`` keeps its bounds, write the bundle."""
    from converter import run as runs

    run = runs.load(path)
    with tempfile.TemporaryDirectory(prefix="botwatch-converter-") as folder:
        converted = variants(run, Path(folder))
        chosen = converted[variant]
        _report(run, [c.parity for c in converted.values()])
        for name, other in converted.items():
            if name != variant and other.parity.failures:
                print(f"{name} could not be deployed: {'; '.join(other.parity.failures)}")
        if chosen.parity.failures:
            reasons = "; ".join(chosen.parity.failures)
            print(f"botwatch converter: {variant} refused: {reasons}", file=sys.stderr)
            return 1
        version = version or f"{run.created:%Y.%m.%d}+1"
        bundle = write(run, chosen, variant, version, Path(folder) / "bundle", out)
    sizes = " + ".join(f"{entry.bytes:,}" for entry in bundle.manifest.files.values())
    print(f"wrote {out}: {variant} bundle {version}, {sizes} bytes, manifest SHA-256 {bundle.sha256[:16]}…")
    return 0


def variants(run: "Run", folder: Path) -> "dict[str, Converted]":
    """Every variant of the run's networks, each smoke-tested, with its own τ and its parity."""
    from converter import parity, quantize
    from converter import run as runs
    from edge_agent.contract.bundle import AUTOENCODER, CLASSIFIER
    from edge_agent.runtime import BATCHES, Model

    columns = run.model.columns
    with _progress("converting", 2 + (2 if run.classifier else 1) * len(VARIANTS)) as step:
        keras_models = {AUTOENCODER: quantize.load_keras(run.autoencoder)}
        if run.classifier is not None:
            keras_models[CLASSIFIER] = quantize.load_keras(run.classifier)
        for name, outputs in ((AUTOENCODER, len(columns)), (CLASSIFIER, len(run.model.classes))):
            shape = name in keras_models and (keras_models[name].input_shape, keras_models[name].output_shape)
            if shape and shape != ((None, len(columns)), (None, outputs)):
                raise runs.RunError(f"{run.path}: the Keras model for {name} has shapes {shape}")
        step("loaded the Keras models")
        inputs = _representative(run)
        step("chose representative rows")
        files: dict[str, dict[str, bytes]] = {variant: {} for variant in VARIANTS}
        for variant in VARIANTS:
            for name, network in keras_models.items():
                files[variant][name] = quantize.convert(network, variant, inputs[name])
                (folder / f"{variant}-{name}").write_bytes(files[variant][name])
                step(f"{name} to {variant}")

    pairs = {"keras": parity.Networks(*_both(keras_models, quantize.keras_predict))}
    with quantize.quiet():
        for variant in VARIANTS:
            models = {name: Model(folder / f"{variant}-{name}") for name in keras_models}
            pairs[variant] = parity.Networks(*_both(models, lambda model: model))
            runtime = models[AUTOENCODER].runtime

    with _progress("comparing", -(-run.rows // runs.BLOCK)) as step:
        try:
            rows, outcomes = parity.observe(_counted(run, step), pairs, run.scaler, columns)
        except ValueError as error:
            raise runs.RunError(f"{run.path / runs.ROWS}: {error}") from error
    decisions = {
        name: runs.decision(run, o.full[rows.optimise], o.fast[rows.optimise], rows.optimise_counts)
        for name, o in outcomes.items()
    }
    if changed := runs.difference(decisions["keras"], run.model.decision):
        raise runs.RunError(f"{run.path}: models and rows are not of one run: {changed}")

    found = {}
    with _progress("timing", len(VARIANTS)) as step:
        for variant in VARIANTS:
            pair, outcome, decision = pairs[variant], outcomes[variant], decisions[variant]
            networks = {"autoencoder": pair.autoencoder, "classifier": pair.classifier}
            measured = parity.Parity(
                variant=variant,
                tau_full=decision.full.tau,
                tau_fast=decision.fast.tau,
                benign=parity.flips(rows.test, outcome, decision, outcomes["keras"], decisions["keras"]),
                attack=parity.flips(rows.attack, outcome, decision, outcomes["keras"], decisions["keras"]),
                classes=parity.class_flips(rows, outcome, outcomes["keras"]),
                bytes={name.removesuffix(".tflite"): len(content) for name, content in files[variant].items()},
                us_per_row={
                    name: {batch: parity.microseconds(network, inputs[AUTOENCODER], batch) for batch in (1, 64)}
                    for name, network in networks.items()
                    if network is not None
                },
                runtime=runtime,
            )
            reasons = list(parity.failures(measured))
            for name, content in files[variant].items():
                if missing := quantize.missing_biases(content):
                    reasons.append(
                        f"{missing} layers of {name} have no bias, on which tflite-runtime 2.14 crashes on ARM"
                    )
            reasons += parity.unsteady(networks, inputs[AUTOENCODER], BATCHES)
            measured = dataclasses.replace(measured, failures=tuple(reasons))
            found[variant] = Converted(files[variant], decision, measured, pair)
            step(variant)
    return found


def _both(models: dict[str, Any], wrap: Any) -> Iterator[Any]:
    """``models`` by name as the pair (autoencoder, classifier or None), each wrapped."""
    from edge_agent.contract.bundle import AUTOENCODER, CLASSIFIER

    yield wrap(models[AUTOENCODER])
    yield wrap(models[CLASSIFIER]) if CLASSIFIER in models else None


def _counted(run: "Run", step: Any) -> Iterator[Any]:
    for block in run.blocks():
        yield block
        step(f"{len(block.part)} rows")


def _representative(run: "Run") -> dict[str, NDArray[np.float32]]:
    """Network inputs that fix the int8 ranges of each network, by its file name in the bundle.

    Benign train rows for the autoencoder: what it has to resolve finely. Rows of every label for the classifier.
    """
    from converter.run import ROWS, RunError
    from edge_agent.contract.bundle import AUTOENCODER, BENIGN, CLASSIFIER

    part, label = run.parts()
    benign = np.flatnonzero((part == "train") & (label == BENIGN))
    if not len(benign):
        raise RunError(f"{run.path / ROWS}: no benign train rows to choose int8 ranges on")
    groups = [np.flatnonzero((label == name) & (part != "test")) for name in np.unique(label[label != BENIGN])]
    chosen = {AUTOENCODER: _spread(benign, REPRESENTATIVE_ROWS)}
    share = -(-REPRESENTATIVE_ROWS // (1 + len(groups)))
    chosen[CLASSIFIER] = np.sort(np.concatenate([_spread(g, share) for g in (benign, *groups)]))
    return {name: run.scaler.network_input(run.scaler.z(run.take(rows))) for name, rows in chosen.items()}


def _spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most ``count`` of ``rows``, evenly spaced."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64))] if len(rows) else rows


def _selftest(run: "Run", networks: "Networks") -> bytes:
    """The self-test file: raw rows, half of them benign, with the converted models' scores and class probabilities."""
    import io

    from edge_agent.contract.bundle import BENIGN
    from edge_agent.detector import Scorer

    part, label = run.parts()
    attacks = np.unique(label[label != BENIGN])
    benign = _spread(np.flatnonzero((part != "train") & (label == BENIGN)), SELFTEST_ROWS // (2 if len(attacks) else 1))
    share = max(1, (SELFTEST_ROWS - len(benign)) // max(1, len(attacks)))
    groups = [_spread(np.flatnonzero((part != "train") & (label == name)), share) for name in attacks]
    values = run.take(np.sort(np.concatenate([benign, *groups])))
    arrays = {"rows": values, "scores": Scorer(networks.autoencoder, run.scaler, run.model.columns).full(values)}
    if networks.classifier is not None:
        arrays["classes"] = networks.classifier(run.scaler.network_input(run.scaler.z(values)))
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes the keywords for allow_pickle
    return file.getvalue()


def write(run: "Run", chosen: Converted, variant: str, version: str, trial: Path, out: Path) -> "Bundle":
    """Write the bundle to ``trial``, pass it through the agent's own checks, then write it to ``out``."""
    from converter import quantize
    from edge_agent import runtime
    from edge_agent.contract import bundle

    model = run.model
    manifest = bundle.Manifest(
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
    )
    files = chosen.files | {bundle.SELFTEST: _selftest(run, chosen.networks)}
    tried = bundle.write(trial, manifest, files)
    with quantize.quiet():
        runtime.selftest(tried)
    return bundle.write(out, manifest, files)


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _report(run: "Run", results: "list[Parity]") -> None:
    """Print the parity of every variant and leave it in the run folder."""
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
    shown = Table(*parity.HEADINGS, title=title, caption=f"{parity.NOTES} Also in {run.path / REPORT_JSON}.")
    for cells in parity.table(results):
        shown.add_row(*cells)
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(shown)


@contextmanager
def _progress(label: str, total: int) -> Iterator[Any]:
    """Show on stderr how far ``total`` steps are: a bar on a terminal, elsewhere a line every 5 s, from 2 s on."""
    import os

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    done, due = 0, time.monotonic() + 2.0
    if not sys.stderr.isatty():

        def step(note: str) -> None:
            nonlocal done, due
            done += 1
            if time.monotonic() >= due:
                due = time.monotonic() + 5.0
                print(f"{label}: {done} of {total}, {note}", file=sys.stderr, flush=True)

        yield step
        return
    with os.fdopen(os.dup(sys.stderr.fileno()), "w") as terminal:  # stays the terminal while `quiet` redirects stderr
        text = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")
        with Progress(*text, console=Console(file=terminal), transient=True) as bar:
            task = bar.add_task(label, total=total, note="")
            yield lambda note: bar.update(task, advance=1, note=note)


if __name__ == "__main__":
    sys.exit(main())
