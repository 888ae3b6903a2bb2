"""The package on the processor and system of a Raspberry Pi, without one: an unpacked Debian for arm64, run by qemu.

No package is configured in the unpacked root and none of its scripts run, so that root's rights, chroot and binfmt are
not needed. Results are stored in ``build/arm`` and used again until a source is newer.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "arm"
PACKAGES = ("edge_agent", "trainer", "converter", "collector", "configs")
TOOLS = ("mmdebstrap", "qemu-aarch64", "aarch64-linux-gnu-gcc")

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


class Unavailable(Exception):
    """The emulation cannot be used here; the message says in one line what is missing."""


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


def prepare(release: Release) -> "Arm":
    """Unpack the release and add the package of this tree and its dependencies; Unavailable if that cannot be done."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        raise Unavailable(f"not installed: {', '.join(missing)} (make test-arm installs them where apt and root can)")
    WORK.mkdir(parents=True, exist_ok=True)
    _unpack(release)
    if release is not BOOKWORM:
        _unpack(BOOKWORM)  # its headers: one wheel, built against the older system, is used on both
    wheels = [*_foreign(release), _wheel()]
    packages = release.root / "opt" / "botwatch"
    shutil.rmtree(packages, ignore_errors=True)
    for wheel in wheels:
        with ZipFile(wheel) as archive:
            archive.extractall(packages)
    return Arm(release)


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


def _unpack(release: Release) -> None:
    stamp = WORK / f"{release.name}.done"
    if stamp.exists():
        return
    shutil.rmtree(release.root, ignore_errors=True)
    include = ["python3-minimal", "python3", "python3-numpy", "python3-yaml", "libstdc++6", release.libpcap]
    if release is BOOKWORM:
        include += ["python3-dev", "libpcap-dev"]
    command = ["mmdebstrap", "--variant=extract", "--architectures=arm64", f"--include={','.join(include)}"]
    _run([*command, release.name, str(release.root)], f"Debian {release.name} for arm64 cannot be unpacked")
    if not (release.root / "lib").exists():  # trixie's files are all under usr
        (release.root / "lib").symlink_to("usr/lib")
    for name, text in (
        ("proc/cpuinfo", CPUINFO),
        ("sys/devices/system/cpu/possible", "0-3\n"),
        ("sys/devices/system/cpu/present", "0-3\n"),
    ):
        (release.root / name).parent.mkdir(parents=True, exist_ok=True)
        (release.root / name).write_text(text)
    stamp.touch()


def _foreign(release: Release) -> list[Path]:
    """Return wheels for arm64 of the agent's dependencies that Debian lacks, or has only in older versions."""
    folder = WORK / f"wheels-{release.name}"
    wanted = [f"{name}=={version(name)}" for name in ("ai-edge-litert", "paho-mqtt")]
    stamp = folder / "wanted"
    if not stamp.exists() or stamp.read_text().split() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--python-version", release.python, "-d", str(folder)]
        for tag in ("manylinux_2_27_aarch64", "manylinux2014_aarch64"):
            command += ["--platform", tag]
        _run([*command, *wanted], "wheels for arm64 cannot be fetched")
        stamp.write_text("\n".join(wanted))
    return sorted(folder.glob("*.whl"))


def _wheel() -> Path:
    """Build the package of this tree for arm64 with the limited API: one wheel for every Python from 3.11 on."""
    files = [ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE")]
    for package in PACKAGES:
        files += [p for p in (ROOT / package).rglob("*") if p.is_file() and p.suffix not in (".so", ".pyc")]
    newest = max(path.stat().st_mtime for path in files)
    folder = WORK / "wheel"
    built = sorted(folder.glob("*.whl"))
    if built and built[0].stat().st_mtime > newest:
        return built[0]
    source = WORK / "source"
    for old in (folder, source):
        shutil.rmtree(old, ignore_errors=True)
    for path in files:
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    system = BOOKWORM.root
    compiler = f"aarch64-linux-gnu-gcc --sysroot={system}"
    cross = {
        "CC": f"{compiler} -I{system}/usr/include/python{BOOKWORM.python}",
        "LDSHARED": f"{compiler} -shared",
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
    }
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["-w", str(folder), str(source)]
    _run(command, "the package cannot be built for arm64", os.environ | cross)
    return next(folder.glob("*.whl"))


def _run(command: Sequence[str], problem: str, environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise Unavailable(f"{problem}: {lines[-1].strip()}")
