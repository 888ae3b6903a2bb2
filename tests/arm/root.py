"""The package on the processor and system of a Raspberry Pi, without one: an unpacked Debian for arm64, run by qemu.

Results are stored in ``build`` and used again until a source is newer.
"""

import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

from tools.debian import WORK, Release, need, unpack
from tools.wheels import ARM, build, download

# A Pi 4. ai-edge-litert reads /proc/cpuinfo and /sys, and breaks when it finds those of the host, an x86.
CPU = "cortex-a72"
CPUINFO = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""


def prepare(release: Release) -> "Arm":
    """Unpack the release and add the package of this tree and its dependencies; Unavailable if that cannot be done."""
    need("qemu-aarch64")
    unpack(release)
    pretend(release.root)
    wheels = [*_foreign(release), build(ARM)]
    packages = release.root / "opt" / "botwatch"
    shutil.rmtree(packages, ignore_errors=True)
    for wheel in wheels:
        with ZipFile(wheel) as archive:
            archive.extractall(packages)
    return Arm(release)


def pretend(root: Path) -> None:
    """Write the files by which programs in ``root`` recognise the processor."""
    for name, text in (
        ("proc/cpuinfo", CPUINFO),
        ("sys/devices/system/cpu/possible", "0-3\n"),
        ("sys/devices/system/cpu/present", "0-3\n"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@dataclass(frozen=True)
class Arm:
    """A release that can run Python with the package in it."""

    release: Release

    def command(self, *arguments: str, plugin: str = "") -> list[str]:
        """Return the command that runs ``python3 arguments`` emulated, with a TCG ``plugin`` if one is given."""
        root = self.release.root
        libraries = root / "usr/lib/aarch64-linux-gnu"
        environment = {
            "PYTHONHOME": root / "usr",
            "PYTHONPATH": f"{root}/opt/botwatch:{root}/usr/lib/python3/dist-packages",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONSAFEPATH": "1",  # or the package in the current folder would be imported
            # Debian's alternatives, which would link to these, are not set up
            "LD_LIBRARY_PATH": f"{libraries}/blas:{libraries}/lapack",
        }
        return [
            *("qemu-aarch64", "-cpu", CPU, "-L", str(root)),
            *(word for key, value in environment.items() for word in ("-E", f"{key}={value}")),
            *(("-plugin", plugin) if plugin else ()),
            *(str(root / "usr/bin/python3"), *arguments),
        ]

    def run(self, *arguments: str, timeout_s: float = 500.0) -> "subprocess.CompletedProcess[str]":
        """Run ``python3 arguments`` and wait for its end."""
        command = self.command(*arguments)
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)

    def python(self, program: str, *arguments: str) -> str:
        """Run a program, which must succeed; return its output."""
        done = self.run("-c", program, *arguments)
        if done.returncode:
            raise AssertionError(f"exit status {done.returncode} in {self.release.name}:\n{done.stderr[-3000:]}")
        return done.stdout


def _foreign(release: Release) -> list[Path]:
    """Return wheels for arm64 of the agent's dependencies that Debian lacks, or has only in older versions."""
    folder = WORK / f"wheels-{release.name}"
    wanted = [f"{name}=={version(name)}" for name in ("ai-edge-litert", "paho-mqtt")]
    stamp = folder / "wanted"
    if not stamp.exists() or stamp.read_text().split() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        download(folder, ARM, release.python, *wanted, dependencies=False)
        stamp.write_text("\n".join(wanted))
    return sorted(folder.glob("*.whl"))
