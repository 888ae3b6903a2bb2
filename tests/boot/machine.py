"""A machine that systemd has booted: systemd-nspawn starts init in an unpacked root; commands run in it as typed there.

The machine has a network of its own, into which cables are laid from namespaces of the test. Nothing of it is left when
it is off: not on a pytest that was killed either, since the machine dies with the process that started it.
"""

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.broker import wait_until
from tests.netns import ip

CGROUPS = tuple(map(Path, ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")))
"""The roots of cgroup v2, of v2 beside v1, and of the v1 hierarchy that systemd-nspawn also writes to."""

START = """
for group in $GROUPS; do
    mkdir -p "$group" && echo $$ > "$group/cgroup.procs" || exit 1
done
exec "$@"
"""
"""Starts a command in cgroups of its own: two machines in one would share the name of their inner groups."""

ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM": "dumb",
}


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    line: str
    status: int
    out: str
    err: str
    seconds: float

    def well(self) -> "Done":
        """Return it if its exit status is 0; AssertionError with all that it wrote if not."""
        assert self.status == 0, f"`{self.line}` ended with {self.status}:\n{self.out}{self.err}"
        return self


class Machine:
    """A machine from the root in ``root``, named ``name``; it is off until `boot`."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name, self.leader = root, name, 0
        self.log = root.with_suffix(".console")
        self._process: subprocess.Popen[bytes] | None = None
        self._groups = [top / name for top in CGROUPS if (top / "cgroup.procs").exists()]
        self.log.unlink(missing_ok=True)

    def start(self) -> None:
        """Switch it on; cables can be laid and systemd begins its work when this returns."""
        command = [
            *("setpriv", "--pdeathsig", "KILL", "sh", "-c", START, "start"),
            *("systemd-nspawn", "--boot", f"--directory={self.root}", f"--machine={self.name}", "--register=no"),
            *("--keep-unit", "--private-network", "--link-journal=no", "--console=read-only", "--quiet"),
            *("--capability=CAP_BPF", "--system-call-filter=bpf"),  # the filters of addresses and devices are programs
        ]
        # Gateways boot with cgroup v2, too; those filters do not exist with v1.
        surroundings = os.environ | {
            "GROUPS": " ".join(map(str, self._groups)),
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=surroundings
            )
        process = self._process

        def has_init() -> bool:
            assert process.poll() is None, f"systemd-nspawn has ended:\n{self.console()}"
            for child in _children(process.pid):
                with suppress(OSError):
                    if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                        self.leader = child
            return self.leader != 0

        wait_until(has_init, 20)

    def wait_until_booted(self, timeout_s: float = 60.0) -> str:
        """Wait until systemd has started all that is enabled; return its word: running, or degraded."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            done = self.run("systemctl is-system-running --wait", timeout_s)
            if done.out.strip() in ("running", "degraded"):
                return done.out.strip()
            time.sleep(0.1)  # the bus of systemd is not there yet; nothing else says when it is
        raise AssertionError(f"{self.name} has not booted within {timeout_s:g} s:\n{self.console()}")

    def run(self, line: str, timeout_s: float = 60.0, *, user: int = 0, folder: str = "/root") -> Done:
        """Run a line of a shell in it, as root or as the user with this number."""
        command = ["nsenter", "-t", str(self.leader), "-a", "--", "env", "-i"]
        command += [f"{key}={value}" for key, value in ENVIRONMENT.items()]
        if user:
            command += ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        command += ["timeout", "-k", "2", f"{timeout_s:g}", "sh", "-c", f"cd {folder} && {line}"]
        began = time.monotonic()
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout_s + 10
        )
        return Done(line, done.returncode, done.stdout, done.stderr, time.monotonic() - began)

    def journal(self, words: str = "") -> str:
        """Return the messages of the service, and of systemd about it, since the machine was switched on."""
        return self.run(f"journalctl -b -u edge-agent -o cat --no-pager {words}").out

    def console(self) -> str:
        """Return the end of what the machine has written to its console."""
        return self.log.read_text(errors="replace")[-3000:]

    def plug_in(self, port: str, space: str, end: str) -> None:
        """Lay a cable from ``port`` of the machine to ``end`` in a network namespace."""
        ends = ("netns", str(self.leader), "type", "veth", "peer", "name", end, "netns", space)
        ip("link", "add", port, *ends)
        ip("-n", space, "link", "set", end, "up")

    def off(self) -> float:
        """Shut it down as a power button does, and by force if that takes 30 s; return the seconds."""
        began = time.monotonic()
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(30)
        self.cut_power()
        return time.monotonic() - began

    def cut_power(self) -> None:
        """End all that runs in it at once; its disk stays as it is."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:  # init has ended with it otherwise, and its number may be another's
            os.kill(self.leader, signal.SIGKILL)  # the kernel ends the whole PID namespace with it
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait(10)
        self.leader = 0
        self._remove_groups()

    def _remove_groups(self) -> None:
        for top in self._groups:
            for folder in sorted(top.rglob("*/"), reverse=True) if top.exists() else ():
                with suppress(OSError):
                    folder.rmdir()
            with suppress(OSError):
                top.rmdir()

    def throw_away(self) -> None:
        """Switch it off and remove its root."""
        self.off()
        shutil.rmtree(self.root, ignore_errors=True)


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
