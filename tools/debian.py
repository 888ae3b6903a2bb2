"""Debian for arm64, unpacked into a folder below ``build/arm``: a system to build against, or to run by qemu.

No package is configured in it and none of its scripts run, so that root's rights, chroot and binfmt are not needed.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "arm"


class Unavailable(Exception):
    """Something that cannot be had here; the message says in one line what is missing."""


@dataclass(frozen=True)
class Release:
    """A Debian release, and the names of its Python and libpcap."""

    name: str
    python: str
    libpcap: str

    @property
    def root(self) -> Path:
        """The folder into which it is unpacked."""
        return WORK / self.name


BOOKWORM = Release("bookworm", "3.11", "libpcap0.8")
TRIXIE = Release("trixie", "3.13", "libpcap0.8t64")


def need(*tools: str) -> None:
    """Raise Unavailable if one of these programs is not installed."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        raise Unavailable(f"not installed: {', '.join(missing)} (make installs them where apt and root can)")


def unpack(release: Release) -> Path:
    """Unpack a release, unless it is there from an earlier time, and return its folder."""
    stamp = WORK / f"{release.name}.done"
    if stamp.exists():
        return release.root
    need("mmdebstrap")
    WORK.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(release.root, ignore_errors=True)
    include = ["python3-minimal", "python3", "python3-numpy", "python3-yaml", "libstdc++6", release.libpcap]
    if release is BOOKWORM:
        include += ["python3-dev", "libpcap-dev"]
    command = ["mmdebstrap", "--variant=extract", "--architectures=arm64", f"--include={','.join(include)}"]
    run([*command, release.name, str(release.root)], f"Debian {release.name} for arm64 cannot be unpacked")
    if not (release.root / "lib").exists():  # trixie's files are all under usr
        (release.root / "lib").symlink_to("usr/lib")
    stamp.touch()
    return release.root


def run(command: Sequence[str], problem: str, environment: Mapping[str, str] | None = None) -> None:
    """Run a program; Unavailable, with ``problem`` and the last line that it wrote, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=os.fspath(ROOT))
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise Unavailable(f"{problem}: {lines[-1].strip()}")
