"""The installer makes the program of wheels, for this machine's image or another's: nothing of the image is run.

The wheels are small ones, made here; `make wheel` makes those of the package, which `make test-arm` installs and runs.
"""

import hashlib
import os
import subprocess
import sys
from base64 import urlsafe_b64encode
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.test_install import files, install
from tools.wheels import libc_of

X86, ARM, MIPS = 62, 183, 8
"""e_machine of elf(5)."""

COMMAND = "def main():\n    from helper import TEXT\n    print(TEXT)\n    return 0\n"


def wheel(folder: Path, name: str, content: dict[str, str], tag: str = "py3-none-any", needs: str = "") -> None:
    """Write a wheel of version 1 with these files."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.dist-info"
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    content = content | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{requires}",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = f"{info}/RECORD,,\n"
    for path, text in content.items():
        digest = urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        record += f"{path},sha256={digest},{len(text)}\n"
    with ZipFile(folder / f"{name}-1-{tag}.whl", "w") as archive:
        for path, text in (content | {f"{info}/RECORD": record}).items():
            archive.writestr(path, text)


def wheels(folder: Path, text: str = "one", tag: str = "py3-none-any") -> Path:
    """Write wheels of botwatch and of what it needs."""
    package = {"__init__.py": "", "command.py": COMMAND, "completion.bash": "# completes\n"}
    wheel(folder, "botwatch", {f"edge_agent/{name}": text for name, text in package.items()}, needs="helper>=1")
    wheel(folder, "helper", {"helper.py": f"TEXT = {text!r}\n"}, tag)
    return folder


def image(folder: Path, python: str = "3.11", machine: int = ARM) -> Path:
    """Make a root whose Python is for a machine; it cannot be run."""
    (folder / "usr/bin").mkdir(parents=True)
    (folder / f"usr/bin/python{python}").write_bytes(b"\x7fELF\2\1\1" + bytes(11) + bytes((machine, 0)))
    (folder / "usr/bin/python3").symlink_to(f"python{python}")
    library = folder / "usr/lib/aarch64-linux-gnu/libpcap.so.0.8"
    library.parent.mkdir(parents=True)
    library.touch()
    return folder


@pytest.fixture(autouse=True)
def python3_is_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The installer uses the desktop's python3 and its pip; there is no pip among these wheels."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "python3"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("python", "machine", "tag"),
    [
        ("3.11", ARM, "cp311-abi3-linux_aarch64"),
        ("3.13", ARM, "cp311-abi3-manylinux_2_28_aarch64"),
        ("3.13", X86, "cp313-cp313-manylinux2014_x86_64"),
        ("3.12", X86, "py3-none-any"),
    ],
)
def test_wheels_that_fit_the_image_become_its_program(tmp_path: Path, python: str, machine: int, tag: str) -> None:
    root, source = image(tmp_path / "root", python, machine), wheels(tmp_path / "dist", tag=tag)
    wheel(source, "helper", {"helper.py": "TEXT = 'of another machine'\n"}, "cp311-abi3-linux_armv7l")
    done = install(root, "--wheels", source)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    name = {ARM: "aarch64", X86: "x86_64"}[machine]
    assert done.stdout.splitlines()[0] == f"wrote {root}/usr/lib/botwatch, for Python {python} on {name}"
    lib = root / "usr/lib/botwatch"
    assert (lib / "bin/python").readlink() == Path(f"/usr/bin/python{python}")
    packages = lib / f"lib/python{python}/site-packages"
    assert (lib / "bin/botwatch").read_text().startswith("#!/usr/lib/botwatch/bin/python\n")
    command = [sys.executable, "-S", str(lib / "bin/botwatch")]  # -S: nothing of this machine
    environment = {**os.environ, "PYTHONPATH": str(packages), "PYTHONSAFEPATH": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ran.stdout == "one\n"
    assert (root / "usr/share/bash-completion/completions/botwatch").read_text() == "# completes\n"
    assert not list(root.rglob("*.pyc"))
    assert not list(root.rglob("*.new"))


def test_only_wheels_that_changed_are_installed_again_and_replace_all_of_the_old_ones(tmp_path: Path) -> None:
    root, source = image(tmp_path / "root"), wheels(tmp_path / "dist")
    install(root, "--wheels", source)
    before = {name: (root / name).lstat().st_mtime_ns for name in files(root)}
    assert install(root, "--wheels", source).stdout == ""
    assert {name: (root / name).lstat().st_mtime_ns for name in files(root)} == before
    stale = root / "usr/lib/botwatch/lib/python3.11/site-packages/stale.py"
    stale.touch()
    wheels(source, "two")
    done = install(root, "--wheels", source)
    assert done.stdout.splitlines() == [f"wrote {root}/usr/lib/botwatch, for Python 3.11 on aarch64"]
    assert (stale.parent / "helper.py").read_text() == "TEXT = 'two'\n"
    assert not stale.exists()


@pytest.mark.parametrize(
    ("python", "machine", "tag", "reason"),
    [
        ("3.11", ARM, "cp311-abi3-linux_x86_64", "do not install for Python 3.11 on aarch64: "),
        ("3.11", X86, "cp313-cp313-manylinux_2_28_x86_64", "do not install for Python 3.11 on x86_64: "),
        ("3.11", X86, "cp311-cp311-manylinux_2_39_x86_64", "do not install for Python 3.11 on x86_64: "),
        ("3.11", MIPS, "py3-none-any", "is neither for x86-64 nor for 64-bit ARM"),
    ],
)
def test_wheels_that_do_not_fit_leave_the_old_program_as_it_is(
    tmp_path: Path, python: str, machine: int, tag: str, reason: str
) -> None:
    root = image(tmp_path / "root", python, machine)
    old = root / "usr/lib/botwatch/bin/botwatch"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    done = install(root, "--wheels", wheels(tmp_path / "dist", tag=tag))
    assert done.returncode == 1
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert old.read_text() == "old"
    assert sorted(path.name for path in (root / "usr/lib").iterdir()) == ["aarch64-linux-gnu", "botwatch"]
    assert not (root / "etc").exists()


def test_an_image_without_python_is_refused_with_the_remedy(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    done = install(root, "--wheels", wheels(tmp_path / "dist"))
    assert done.returncode == 1
    assert f"{root}/usr/bin/python3 does not exist: apt-get install python3" in done.stderr


def test_a_library_that_is_missing_in_the_image_is_named_with_its_package(tmp_path: Path) -> None:
    root = image(tmp_path / "root")
    (root / "usr/lib/aarch64-linux-gnu/libpcap.so.0.8").unlink()
    done = install(root, "--wheels", wheels(tmp_path / "dist"))
    assert done.returncode == 0
    assert f"{root}/usr/lib has no libpcap.so.0.8, which the agent needs: apt-get install libpcap0.8" in done.stderr


def test_a_wheel_is_known_by_the_glibc_that_it_needs(tmp_path: Path) -> None:
    """One that was built on a system newer than Debian 12 does not run there, and its name does not say so."""
    wheel(tmp_path, "plain", {"plain.py": "GLIBC_2.99"})
    wheel(tmp_path, "native", {"a.so": "\0GLIBC_2.2.5\0GLIBC_2.38\0GLIBC_2.4\0", "b.so": "\0GLIBC_2.17\0"})
    assert [libc_of(tmp_path / f"{name}-1-py3-none-any.whl") for name in ("plain", "native")] == [0, 38]


def test_paths_may_have_spaces(tmp_path: Path) -> None:
    root = image(tmp_path / "the root")
    done = install(root, "--wheels", wheels(tmp_path / "the wheels"))
    assert done.returncode == 0, done.stderr
    assert (root / "usr/lib/botwatch/bin/botwatch").exists()
