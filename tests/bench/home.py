"""The tests' generated home for benches: made by the code of the fixture, and stored in ``build/bench-home``."""

import shutil
from pathlib import Path

from tests.conftest import Home, make_home
from tools.debian import ROOT

FOLDER = ROOT / "build" / "bench-home"
LATER = FOLDER / "later"
"""Captures of the same devices a month later, without attacks."""


def home() -> tuple[Path, Path]:
    """Return its bundle, and a generated capture of an hour in which its plug attacks."""
    made = Home(FOLDER / "captures", FOLDER / "run", FOLDER / "bundle", LATER)
    if not (FOLDER / "done").exists():
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        make_home(FOLDER)
        (FOLDER / "done").touch()
    return made.bundle, sorted(made.captures.glob("plug-1/*mirai.syn*.pcap"))[0]
