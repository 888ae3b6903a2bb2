"""What the gateway and the image have in common: the folder that the desktop makes for them."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.boot.gateway import typed_on
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
