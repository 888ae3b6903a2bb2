"""`make wheel`: everything that a gateway needs, in the folder ``dist``: it has no compiler, and may have no network.

That is the package as wheels for this machine and for arm64, the wheels of the agent's dependencies for the Python of
Debian 12 and 13, pip to install them, and the installer with its files: `dist/systemd/install.sh --wheels dist`.
"""

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

from tools.debian import BOOKWORM, ROOT, TRIXIE, Unavailable, need, run, unpack

PACKAGES = ("edge_agent", "trainer", "converter", "collector", "configs")
ARM = "aarch64"
PYTHONS = (BOOKWORM.python, TRIXIE.python)
LIBCS = (17, 24, 26, 27, 28, 31, 34, 35, 36)
"""Wheels of manylinux_2_N run with the libc of Debian 12, which is 2.36."""

_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def main() -> int:
    """Make the folder ``dist`` anew; return the exit status."""
    dist, new = ROOT / "dist", ROOT / "build" / "dist"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        for machine in dict.fromkeys((platform.machine(), ARM)):
            wheel = build(machine)
            if (libc := libc_of(wheel)) > LIBCS[-1]:  # built here, on a newer system than the gateways have
                print(f"{wheel.name} does not run on Debian 12: it needs glibc 2.{libc}", file=sys.stderr)
            shutil.copy2(wheel, new)
            for python in PYTHONS:
                print(f"{wheel.name}: dependencies for Python {python}", flush=True)
                download(new, machine, python, str(wheel))
        download(new, platform.machine(), PYTHONS[0], "pip")
    except Unavailable as reason:
        print(f"make wheel: {reason}", file=sys.stderr)
        return 1
    shutil.copytree(ROOT / "systemd", new / "systemd")
    (new / "configs").mkdir()
    shutil.copy2(ROOT / "configs" / "agent.yaml", new / "configs")
    shutil.rmtree(dist, ignore_errors=True)
    new.rename(dist)
    size = sum(path.stat().st_size for path in dist.rglob("*") if path.is_file())
    print(f"dist: {len(list(dist.glob('*.whl')))} wheels and the installer, {size >> 20} MB")
    return 0


def build(machine: str) -> Path:
    """Build the package of this tree with the limited API: one wheel for every Python from 3.11 on.

    The one for arm64 is built against Debian 12, so that it runs there and on later systems. A wheel is used again
    until a source is newer.
    """
    work = ROOT / "build" / "wheel" / machine
    files = list(_sources())
    newest = max(path.stat().st_mtime for path in files)
    built = sorted(work.glob("*.whl"))
    if built and built[0].stat().st_mtime > newest:
        return built[0]
    environment = dict(os.environ)
    if machine != platform.machine():
        need("aarch64-linux-gnu-gcc")
        system = unpack(BOOKWORM)
        compiler = f"aarch64-linux-gnu-gcc --sysroot={system}"
        environment |= {
            "CC": f"{compiler} -I{system}/usr/include/python{BOOKWORM.python}",
            "LDSHARED": f"{compiler} -shared",
            "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
        }
    source = work / "source"
    shutil.rmtree(work, ignore_errors=True)
    for path in files:
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    command = [*_PIP, "wheel", "-q", "--no-deps", "-w", str(work), str(source)]
    run(command, f"the package cannot be built for {machine}", environment)
    return next(work.glob("*.whl"))


def libc_of(wheel: Path) -> int:
    """Return N of the oldest glibc 2.N with which the compiled modules of a wheel can be loaded; 0 without such."""
    versions = {0}
    with ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".so"):
                versions |= {int(number) for number in re.findall(rb"GLIBC_2\.([0-9]+)", archive.read(name))}
    return max(versions)


def download(folder: Path, machine: str, python: str, *wanted: str, dependencies: bool = True) -> None:
    """Fetch wheels of what is ``wanted``, and of what it depends on, for a machine and a version of Python."""
    command = [*_PIP, "download", "-q", "--only-binary", ":all:", "--python-version", python, "-d", str(folder)]
    tags = [f"linux_{machine}", f"manylinux2014_{machine}", *(f"manylinux_2_{libc}_{machine}" for libc in LIBCS)]
    for tag in tags:
        command += ["--platform", tag]
    if not dependencies:
        command.append("--no-deps")
    run([*command, *wanted], f"wheels for Python {python} on {machine} cannot be fetched")


def _sources() -> Iterator[Path]:
    yield from (ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE"))
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix not in (".so", ".pyc"):
                yield path


if __name__ == "__main__":
    sys.exit(main())
