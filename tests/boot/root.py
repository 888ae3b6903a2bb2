"""A Debian for amd64 as a gateway has it: nothing but systemd, a network, and the packages that the documents ask for.

Those packages are not installed but lie in apt's cache, so that the documented `apt-get install` works in a machine
without a network. Roots are stored in ``build/boot`` and used again until the list of packages changes.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tools.debian import ROOT, Release, Unavailable, need, run

WORK = ROOT / "build" / "boot"
BASE = ("systemd", "systemd-sysv", "dbus", "udev", "iproute2")


def pristine(release: Release, packages: Sequence[str]) -> Path:
    """Return the folder of the release's root, with ``packages`` in apt's cache; Unavailable if it cannot be made."""
    need("mmdebstrap", "systemd-nspawn", "nsenter", "ip", "mosquitto", "mosquitto_passwd")
    if os.geteuid() != 0:
        raise Unavailable("only root can boot a machine: run this as root")
    root, stamp = WORK / release.name, WORK / f"{release.name}.done"
    wanted = " ".join((*BASE, "and", *packages))
    if stamp.exists() and stamp.read_text() == wanted:
        return root
    WORK.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    shutil.rmtree(root, ignore_errors=True)
    fetch = 'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get install -y --download-only -o APT::Install-Recommends=true'
    command = ["mmdebstrap", "--variant=minbase", "--architectures=amd64", "--skip=cleanup/apt"]
    command += [f"--include={','.join(BASE)}", f"--customize-hook={fetch} {' '.join(packages)}"]
    run([*command, release.name, str(root)], f"Debian {release.name} cannot be unpacked")
    stamp.write_text(wanted)
    return root


def copied(root: Path, to: Path) -> None:
    """Copy a root, which stays as it is, to a folder that is booted and thrown away."""
    shutil.rmtree(to, ignore_errors=True)
    subprocess.run(["cp", "-a", "--reflink=auto", str(root), str(to)], check=True, timeout=120)
