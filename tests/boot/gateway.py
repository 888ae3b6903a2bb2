"""A gateway that was installed by following docs/gateway.md word for word, with the server and the device around it.

The commands are the document's own: a comment above each block says on which machine it is typed. The machines are made
to fit the values that stand there: the name of the broker, of the LAN's interface, of the files of secrets.
"""

import json
import re
import shlex
import subprocess
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.boot.machine import Done, Machine
from tests.boot.root import WORK, copied, pristine
from tests.boot.site import LAN, Site
from tests.broker import wait_until
from tests.netns import ROOT
from tests.test_documents import Block, blocks
from tools.debian import Release

DOCUMENT = ROOT / "docs" / "gateway.md"
CONFIG = "/etc/botwatch/agent.yaml"
SERVER, WAY_OUT = "192.168.1.2", "192.168.1.20"
PORT = "port1"

WIDTH = 44
"""Of the first column of the table."""

NETWORK = {
    "10-eth0.network": f"[Match]\nName=eth0\n[Network]\nAddress={WAY_OUT}/24\n",
    "20-lan.netdev": "[NetDev]\nName={lan}\nKind=bridge\n[Bridge]\nSTP=no\nForwardDelaySec=0\n",
    "20-lan.network": (
        "[Match]\nName={lan}\n[Link]\nRequiredForOnline=no\n"
        f"[Network]\nAddress={LAN}/24\nConfigureWithoutCarrier=yes\n"
    ),
    "20-port.network": "[Match]\nName=port*\n[Link]\nRequiredForOnline=no\n[Network]\nBridge={lan}\n",
}
"""The network of a router, as its owner has configured it: a way out, and a bridge with the ports of the LAN."""


def steps() -> list[Block]:
    """Return the blocks of the document that are typed somewhere, and the settings between them, in its order."""
    return [block for block in blocks(DOCUMENT) if block.typed_on]


def typed_on(machine: str) -> list[str]:
    """Return the commands of the document that are typed on a machine: desktop, gateway or server."""
    return [line for block in steps() if block.typed_on == machine for line in block.commands()]


def installer() -> Namespace:
    """Return the values in the document's call of the installer."""
    (line,) = [line for line in typed_on("gateway") if "install.sh" in line]
    parser = ArgumentParser()
    for flag in ("--wheels", "--gateway", "--bundle", "--broker", "--interface"):
        parser.add_argument(flag, required=True)
    return parser.parse_args(shlex.split(line)[1:])


def packages() -> list[str]:
    """Return the packages that the document installs on a gateway."""
    words = [shlex.split(line) for line in typed_on("gateway") if line.startswith("apt-get install ")]
    return [word for line in words for word in line[2:] if not word.startswith("-")]


@dataclass
class Table:
    """The result: what was seen on a machine, in the order in which it was seen."""

    title: str = ""
    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, what: str, seen: str) -> None:
        """Add a row; what was seen is cut to what fits a line."""
        self.rows.append((what, " ".join(seen.split())[:160]))

    def text(self) -> str:
        """Return it as lines for a terminal and for a closing note."""
        lines = [self.title]
        for what, seen in self.rows:
            if len(what) > WIDTH:
                lines += [f"  {what}", f"  {'':{WIDTH}}  {seen}"]
            else:
                lines.append(f"  {what:{WIDTH}}  {seen}")
        return "\n".join(lines)


class Gateway:
    """A gateway, its site, and the table of what was seen."""

    def __init__(self, release: Release, name: str, folder: Path) -> None:
        self.release, self.values, self.shown = release, installer(), Table()
        root = WORK / name
        copied(pristine(release, packages()), root)
        self.machine, self.site = Machine(root, name), Site(folder, name, SERVER)
        self.broker_host = self.values.broker.partition(":")[0]
        for file, text in NETWORK.items():
            (root / "etc/systemd/network" / file).write_text(text.format(lan=self.values.interface))
        enable = ["systemctl", f"--root={root}", "enable", "systemd-networkd"]
        subprocess.run(enable, check=True, capture_output=True, timeout=30)
        (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{SERVER} {self.broker_host}\n")

    def switch_on(self, *, device: bool = True) -> None:
        """Switch the machine on with its cables, that of the device included or not; it runs when this returns."""
        self.machine.start()
        self.site.connect(self.machine)
        if device:
            self.site.connect_device(self.machine, PORT)
        assert self.machine.wait_until_booted() == "running", self.type("systemctl --failed --no-pager").out

    def off(self) -> float:
        """Shut the machine down; return how many seconds that took."""
        return self.machine.off()

    def type(self, line: str, timeout_s: float = 60.0) -> Done:
        """Run a command on the gateway, as root, in the folder to which the document copies things."""
        return self.machine.run(line, timeout_s)

    def agent(self, words: str, timeout_s: float = 60.0) -> Done:
        """Run `botwatch agent` with the installed configuration."""
        return self.type(f"botwatch agent {words} --config {CONFIG}", timeout_s)

    def status(self) -> dict[str, Any]:
        """Return the document of `agent status`, {} if no agent answers.

        It is asked with a copy of the configuration, since the installed one may be wrong.
        """
        done = self.type("botwatch agent status --json --config /root/status.yaml")
        document: dict[str, Any] = json.loads(done.out) if done.status == 0 else {}
        return document

    def active(self) -> bool:
        """Return True if systemd says that the service runs."""
        return self.type("systemctl is-active edge-agent").out.strip() == "active"

    def main_pid(self) -> int:
        """Return the process id of the service within the machine, 0 if it does not run."""
        return int(self.type("systemctl show -P MainPID edge-agent").out)

    def journal_since(self) -> Callable[[], str]:
        """Return a function: the messages of the service since now."""
        before = len(self.machine.journal().splitlines())
        return lambda: "\n".join(self.machine.journal().splitlines()[before:])

    def wait_for_line(self, pattern: str, journal: Callable[[], str] | None = None, timeout_s: float = 20.0) -> str:
        """Wait for a message of the service, since the machine was switched on or in ``journal``; return it."""
        read = journal or self.machine.journal

        def lines() -> list[str]:
            return [line for line in read().splitlines() if re.search(pattern, line)]

        try:
            wait_until(lines, timeout_s)
        except AssertionError:
            raise AssertionError(f"{pattern!r} is not in the journal:\n{read()}") from None
        return lines()[0]

    @property
    def config(self) -> str:
        """The text of the installed configuration."""
        return (self.machine.root / CONFIG[1:]).read_text()

    @config.setter
    def config(self, text: str) -> None:
        (self.machine.root / CONFIG[1:]).write_text(text)

    def edit(self, **keys: object) -> None:
        """Change keys in the configuration as in an editor; ``broker__port=8883`` is a key of a section."""
        lines = self.config.splitlines()
        for name, value in keys.items():
            section, _, key = name.rpartition("__")
            begin = lines.index(f"{section}:") if section else -1
            mark = f"{'  ' if section else ''}{key}:"
            at = next(i for i, line in enumerate(lines) if i > begin and line.startswith(mark))
            lines[at] = f"{mark} {json.dumps(value)}"
        self.config = "\n".join(lines) + "\n"

    def edit_as(self, block: Block) -> None:
        """Change the keys of a block of settings in the document."""
        tree = yaml.safe_load(block.text)
        self.edit(**{f"{section}__{key}": value for section, keys in tree.items() for key, value in keys.items()})

    @contextmanager
    def edited(self, **keys: object) -> Iterator[None]:
        """Change keys, and put the configuration back afterwards; the service is left to the caller."""
        before = self.config
        self.keep_for_status()
        self.edit(**keys)
        try:
            yield
        finally:
            self.config = before

    def keep_for_status(self) -> None:
        """Let `status` use the configuration as it is now."""
        (self.machine.root / "root/status.yaml").write_text(self.config)

    def restart(self) -> None:
        """Restart the service, which must then be connected to the broker."""
        self.type("systemctl restart edge-agent").well()
        self.wait_until_connected()

    def wait_until_connected(self, timeout_s: float = 30.0) -> None:
        """Wait until the agent runs and says that the broker has accepted it."""
        wait_until(lambda: self.status().get("broker", {}).get("connected"), timeout_s)

    def wait_for_scan(self, timeout_s: float = 20.0) -> dict[str, Any]:
        """Let the device scan, and return the first alert of that episode in the collector."""
        device = self.site.scan()
        wait_until(lambda: self.site.alerts_of(device), timeout_s)
        return self.site.alerts_of(device)[0]
