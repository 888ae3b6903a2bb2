"""The `botwatch trainer` command: read arguments, call the sub-command, turn known errors into one line and a status.

TensorFlow and polars are imported by the sub-commands that need them, not here.
"""

import argparse
import importlib
import shlex
import sys
from pathlib import Path

from edge_agent.contract.cli import OK, Parser, prepare_output, refuse

PROG = "botwatch trainer"

MODULES = {
    "stream": ("trainer.fit.fit_online", "train on captures as they are read, without storing rows"),
    "fetch": ("trainer.data.fetch", "download the published N-BaIoT files"),
    "compare": ("trainer.judge.compare", "evaluate fits that differ in one thing (device, attack, columns ...)"),
    "explain": ("trainer.judge.explain", "explain a run's detections by LIME"),
    "baselines": ("trainer.judge.baselines", "compare the autoencoder with simpler methods"),
    "audit": ("trainer.judge.audit", "look for leaks in a run's rows"),
    "report": ("trainer.report.page", "show everything that is known of a run in one HTML file"),
    "evaluate": ("trainer.judge.evaluate", "judge a finished bundle on captures or rows"),
    "base": ("trainer.base.make", "make the bundle that comes with botwatch, from generated homes alone"),
    "generate": ("trainer.traffic.command", "write labelled captures of generated devices and attacks"),
    "study": ("trainer.study", "repeat the original studies' experiments, with the honest numbers beside theirs"),
    "sweep": ("trainer.judge.sweep", "compare numbers of columns, activations and optimisers"),
}
"""Sub-command -> its module, and a summary.

A module has ``add_arguments(parser)``, which also describes the command, and ``run(args, command)``, which gets the
command line as typed and returns the exit status.
"""


def parser(*described: str) -> Parser:
    """Return the parser of all commands of the trainer.

    Of a command of `MODULES` it has the arguments only if the command is among those ``described``: that imports its
    module.
    """
    top = Parser(
        PROG,
        description="Train models on captures or published rows, and measure them. The result is a run folder.",
        epilog=f"example:\n  {PROG} fit configs/trainer.yaml --data captures --out runs/home",
    )
    top.add_version()
    commands = top.add_commands()

    extract = commands.add_parser(
        "extract",
        help="convert captures to a Parquet file of feature rows",
        description="Extract the 140 columns of every frame, with time, addresses and ports, into one Parquet file. "
        "All captures go through one extractor in the order given: list the days of one network in order.",
        epilog=f"example:\n  {PROG} extract day1.pcap day2.pcap --out rows.parquet",
    )
    extract.add_argument("captures", nargs="+", type=Path, metavar="CAPTURE", help="pcap or pcapng file")
    extract.add_argument("--out", type=Path, required=True, metavar="FILE", help="Parquet file to write")
    extract.add_argument(
        "--schema",
        choices=("clean", "compat"),
        default="clean",
        help="first jitter of a channel: 0 (clean, the default) or the Unix time, as in published rows (compat)",
    )
    extract.add_argument(
        "--max-streams",
        type=int,
        default=16_384,
        metavar="N",
        help="bound of the streams that are followed (%(default)s)",
    )

    fit = commands.add_parser(
        "fit",
        help="train as a config says, into a run folder with models, scaler, τ and metrics",
        description="Split and scale rows, train autoencoder and classifier, compute τ, measure, write the run folder.",
        epilog=f"example:\n  {PROG} fit configs/trainer.yaml --out runs/home --top-n 20",
    )
    fit.add_argument(
        "config",
        type=Path,
        metavar="CONFIG",
        help="YAML file, or the name of a preset: nbaiot-live, seed, log2021, paper; configs/trainer.yaml explains "
        "every key",
    )
    fit.add_argument("--out", type=Path, required=True, metavar="DIR", help="run folder to write")
    fit.add_argument("--top-n", type=int, metavar="N", help="use only the N best columns by Fisher score")
    fit.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="path of the config's first data source, instead of the path it names",
    )
    fit.add_argument(
        "--tensorboard",
        type=Path,
        metavar="DIR",
        help="write losses for TensorBoard to DIR (needs the package tensorboard)",
    )
    fit.add_argument(
        "--checkpoints", type=Path, metavar="DIR", help="save the best network so far in DIR during training"
    )
    fit.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="for more rows than fit into memory: read them once into DIR and train from there, on all of them "
        "(max_rows does not apply)",
    )
    fit.add_argument(
        "--workers",
        metavar="HOST:PORT,...",
        help="train on several machines: the addresses of all of them, the same list on each",
    )
    fit.add_argument(
        "--worker",
        type=int,
        default=0,
        metavar="N",
        help="number of this machine in that list, from 0; machine 0 writes the run folder",
    )

    for name, (module, summary) in MODULES.items():
        more = commands.add_parser(name, help=summary)
        if name in described:
            importlib.import_module(module).add_arguments(more)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one sub-command; return 2 for a bad command line, config or input, 1 for a capture that ended early."""
    prepare_output()
    argv = sys.argv[1:] if argv is None else argv
    args = parser(*argv[:1]).parse_args(argv)
    if args.command in MODULES:
        module, _ = MODULES[args.command]
        return int(importlib.import_module(module).run(args, shlex.join([*PROG.split(), *argv])))
    if args.command == "extract":
        return _extract(args)
    return _fit(args, shlex.join([*PROG.split(), *argv]))


def _fit(args: argparse.Namespace, command: str) -> int:
    from edge_agent.contract.settings import SettingsError
    from trainer import config

    try:
        chosen = config.load(args.config, args.data, args.top_n)
    except SettingsError as error:
        return refuse(PROG, error)

    from trainer.data.row_table import DatasetError
    from trainer.fit import autoencoder, fit, workers
    from trainer.fit.row_parts import FitError

    try:
        joined = None if args.workers is None else workers.join(args.workers.split(","), args.worker)
        watches = [
            watch(folder)
            for watch, folder in (
                (autoencoder.tensorboard, args.tensorboard),
                (autoencoder.checkpoints, args.checkpoints),
            )
            if folder is not None
        ]
        if args.store is not None:
            from trainer.fit import fit_from_disk

            fit_from_disk.run(chosen, args.out, command, args.store, autoencoder.all_of(watches), joined)
        else:
            fit.run(chosen, args.out, command, autoencoder.all_of(watches), joined)
    except (DatasetError, FitError, autoencoder.TrainingError, workers.WorkersError) as error:
        return refuse(PROG, error)
    except OSError as error:  # readers of data raise a DatasetError instead, so this one comes from the run folder
        return refuse(PROG, f"{error.filename or args.out}: cannot be written: {error.strerror or error}")
    return OK


def _extract(args: argparse.Namespace) -> int:
    if args.max_streams < 1:
        return refuse(PROG, "--max-streams must be at least 1")
    from trainer.data import extract

    return extract.run(args.captures, args.out, args.schema, args.max_streams)


if __name__ == "__main__":
    sys.exit(main())
