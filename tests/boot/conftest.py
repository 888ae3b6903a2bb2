"""What the gateway and the image have in common: the folder that the desktop makes for them, and a clean start."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.boot.gateway import typed_on
from tests.boot.machine import CGROUPS, remove_group
from tests.boot.root import WORK
from tests.netns import ROOT


@pytest.fixture(scope="session")
def dist() -> Path:
    """What the desktop makes for gateways, by the documented command."""
    (command,) = typed_on("desktop")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=500, check=False, env=environment
    )
    if done.returncode:
        pytest.fail(f"`{command}` ended with {done.returncode}:\n{done.stdout}{done.stderr}", pytrace=False)
    return ROOT / "dist"


@pytest.fixture(scope="session", autouse=True)
def nothing_left_of_killed_runs() -> None:
    """Remove roots, namespaces and control groups whose names have the number of a process that is no more."""
    for path in (
        *WORK.glob("bw*"),
        *Path("/run/netns").glob("bw*"),
        *(group for top in CGROUPS for group in top.glob("bw*")),
    ):
        match = re.fullmatch(r"bw(\d+)(b|t)i?(s|d|\.console)?", path.name)
        if match is None or Path("/proc", match[1]).exists():
            continue
        if path.parent == Path("/run/netns"):
            subprocess.run(["ip", "netns", "del", path.name], check=False, capture_output=True, timeout=20)
        elif path.parent in CGROUPS:
            remove_group(path)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
