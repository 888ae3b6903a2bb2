"""`botwatch trainer base`: fit on generated homes alone, convert, and write the bundle that comes with botwatch.

The steps are the commands that users have, each a process of its own with fixed numbers of threads, because sums depend
on how many threads share them. What is written here depends on the code, the plan and the seed alone: no time, path or
name of a machine is in it. Beside the bundle come golden rows, and ``provenance.json``, which names all it was made of.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edge_agent.contract import bundle as bundles
from edge_agent.contract.bundle import AUTOENCODER, BUILTIN, CLASSIFIER, SELFTEST, Bundle, replace_file
from edge_agent.contract.cli import FAILED, OK, refuse
from edge_agent.contract.settings import SettingsError
from trainer import config as settings
from trainer.base import golden, provenance
from trainer.config import Config, plain

PROG = "botwatch trainer base"

PROVENANCE = "provenance.json"

CREATED = "2026-11-28T00:00:00+00:00"
"""The date in the manifest: that of the recipe, because equal sources must give equal bytes."""

PRESET = Path("base")
"""The configuration of the fit."""

MODULES = ("trainer.base.make", "trainer.fit.fit", "converter.__main__")
"""The modules that make the bundle; all that these import counts as its source."""

THREADS = dict.fromkeys(
    ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
)

MOST_BYTES = 400_000
"""Bound of all files together, since they are in the repository and in every installation."""


class BaseError(Exception):
    """A bundle that was not made; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `botwatch trainer base`."""
    parser.description = (
        "Fit on generated homes alone, convert to int8, and write the bundle that comes with botwatch, with golden "
        "rows and the SHA-256 of all that it was made of. Equal sources give equal bytes on the same kind of processor."
    )
    parser.epilog = f"example:\n  {PROG} --out base"
    parser.add_argument(
        "--out",
        type=Path,
        default=BUILTIN,
        metavar="DIR",
        help="folder to write (default: where botwatch looks for it)",
    )
    parser.add_argument(
        "--config", type=Path, default=PRESET, metavar="CONFIG", help="configuration of the fit (default: preset base)"
    )
    parser.add_argument("--run", type=Path, metavar="DIR", help="keep the run folder of the fit here")


def run(args: argparse.Namespace, command: str) -> int:
    """Run `botwatch trainer base`; return the exit status."""
    try:
        config = settings.load(args.config)
        if config.data or not config.base.homes:
            raise SettingsError(f"{args.config}: data: the bundle is fitted on the homes of `base` alone")
        with tempfile.TemporaryDirectory(prefix="botwatch-base-") as work:
            made = make(args.config, config, args.run or Path(work, "run"), Path(work, "bundle"), args.out)
    except SettingsError as error:
        return refuse(PROG, error)
    except BaseError as error:
        return refuse(PROG, error, FAILED)
    except OSError as error:
        return refuse(PROG, error, file=args.out)
    size = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"wrote {args.out}: {made.manifest.version}, {size:,} bytes; manifest SHA-256 {made.sha256[:16]}…")
    return OK


def make(path: Path, config: Config, run: Path, draft: Path, out: Path) -> Bundle:
    """Fit into ``run``, convert into ``draft``, and write the bundle without traces of when and where to ``out``."""
    recipe = {"base": plain(config.base), "seed": config.seed}
    files = provenance.sources(*MODULES)
    version = f"builtin-{provenance.digest(files | {'recipe': json.dumps(plain(config), sort_keys=True)})[:8]}"
    _botwatch("trainer", "fit", path, "--out", run)
    _botwatch("converter", run, "--out", draft, "--bundle-version", version)
    if late := provenance.changed(files, provenance.sources(*MODULES)):
        raise BaseError(f"{late[0]} changed while the bundle was being made: make it again")
    made = bundles.load(draft)
    manifest = dataclasses.replace(
        made.manifest, created=CREATED, provenance={"run": "botwatch trainer base", "sources": provenance.digest(files)}
    )
    names = [AUTOENCODER, SELFTEST, *([CLASSIFIER] if made.classifier else [])]
    contents = {name: (draft / name).read_bytes() for name in names}
    rows = golden.choose(made, run).bytes()
    size = sum(map(len, contents.values())) + len(rows) + (draft / bundles.MANIFEST).stat().st_size
    if size > MOST_BYTES:
        raise BaseError(f"the bundle has {size:,} bytes, the bound is {MOST_BYTES:,}")
    (out / PROVENANCE).unlink(missing_ok=True)  # it comes last: with it the folder is complete
    written = bundles.write(out, manifest, contents)
    replace_file(out / golden.NAME, rows)
    document: dict[str, Any] = {"format": 1, "recipe": recipe, "manifest_sha256": written.sha256, "sources": files}
    replace_file(out / PROVENANCE, (json.dumps(document, indent=1) + "\n").encode())
    return written


def stale(out: Path = BUILTIN) -> str:
    """Return in one line why the bundle in ``out`` is not what today's sources give; "" when it is."""
    remedy = "run `make base-bundle`"
    try:
        recorded = json.loads((out / PROVENANCE).read_bytes())
        bundle = bundles.load(out)
    except (OSError, ValueError, bundles.BundleError) as error:
        return f"{out}: not a whole bundle with its provenance ({error}): {remedy}"
    if recorded["manifest_sha256"] != bundle.sha256:
        return f"{out}: {PROVENANCE} belongs to another manifest: {remedy}"
    if files := provenance.changed(recorded["sources"], provenance.sources(*MODULES)):
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        return f"{files[0]}{more} changed since the built-in bundle was made: {remedy}"
    return ""


def _botwatch(*words: object) -> None:
    """Run one `botwatch` command with its output on this terminal; BaseError when it fails."""
    command = [sys.executable, "-m", "edge_agent.command", *map(str, words)]
    status = subprocess.run(command, env={**os.environ, **THREADS}).returncode
    if status:
        raise BaseError(f"`botwatch {' '.join(map(str, words))}` ended with status {status}")
