"""All that is around a booted gateway: a server with broker and collector, and a device that is infected.

Each is a network namespace of this machine. Their packets reach the gateway and nothing else: it forwards none.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tests.boot.machine import Done, Machine
from tests.broker import wait_until
from tests.netns import ROOT, ip
from tests.streams import context

SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin"

DEVICES = "192.168.10."
LAN = f"{DEVICES}1"

SCAN = """
import random, socket, sys, time
choose, open_ones = random.Random(int(sys.argv[1])), []
for number in range(int(sys.argv[2])):
    target = ".".join(str(choose.randint(1, 223) if i == 0 else choose.randint(1, 254)) for i in range(4))
    line = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    line.connect_ex((target.replace("127.", "126.", 1) if target.startswith("127.") else target, 23))
    open_ones.append(line)
    if len(open_ones) > 200:
        open_ones.pop(0).close()
    time.sleep(0.003)  # the pace of the scanner, some 300 addresses a second
"""
"""Knocks at port 23 of random addresses, as Mirai does, with the sockets of the device's own kernel."""


class Site:
    """Two namespaces, for the server and for the device; ``address`` is the server's, and ``folder`` its disk."""

    def __init__(self, folder: Path, name: str, address: str) -> None:
        self.folder, self.server, self.device, self.address = folder, f"{name}s", f"{name}d", address
        self.port = 1883
        self._made = ExitStack()
        self._broker: subprocess.Popen[str] | None = None
        self._devices = 0
        for part in ("bin", "broker"):
            (folder / part).mkdir(parents=True)
        command = folder / "bin/botwatch"
        command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m edge_agent.command "$@"\n')
        command.chmod(0o755)

    def __enter__(self) -> "Site":
        for space in (self.server, self.device):
            ip("netns", "add", space)
            self._made.callback(subprocess.run, ["ip", "netns", "del", space], capture_output=True, check=False)
            ip("-n", space, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        self._made.close()

    def connect(self, machine: Machine, port: str = "eth0") -> None:
        """Lay the cable between the gateway's way out and the server."""
        machine.plug_in(port, self.server, "eth0")
        ip("-n", self.server, "address", "add", f"{self.address}/24", "dev", "eth0")

    def connect_device(self, machine: Machine, port: str) -> None:
        """Lay the cable between a port on the gateway's LAN side and the device."""
        machine.plug_in(port, self.device, "eth0")

    def unplug_device(self) -> None:
        """Take the device's cable away, with its port on the gateway."""
        ip("-n", self.device, "link", "del", "eth0")

    def start_broker(self, config: str) -> None:
        """Start mosquitto on the server with this configuration; it listens when this returns."""
        (self.folder / "broker/mosquitto.conf").write_text(f"user root\n{config}\n")
        self.restart_broker()

    def restart_broker(self) -> None:
        """Start mosquitto again with the configuration that it had."""
        program = shutil.which("mosquitto", path=SBIN) or "mosquitto"
        self._broker = self.start([program, "-c", "mosquitto.conf"], "broker.log", folder=self.folder / "broker")
        wait_until(lambda: " running" in (self.folder / "broker.log").read_text(), 20)

    def stop_broker(self) -> None:
        """End mosquitto, which writes down what it has not delivered."""
        assert self._broker is not None
        _end(self._broker)

    def password(self, user: str, password: str) -> None:
        """Add a user to the broker's list."""
        file = self.folder / "broker/passwords"
        new = [] if file.exists() else ["-c"]
        command = ["mosquitto_passwd", *new, "-b", str(file), user, password]
        subprocess.run(command, check=True, capture_output=True, timeout=20)

    def start(self, words: list[str], log: str, *, folder: Path | None = None) -> "subprocess.Popen[str]":
        """Start a command on the server; its output goes to a file in `folder`, and it is ended with the site."""
        environment = os.environ | {"PATH": f"{self.folder}/bin:{SBIN}"}
        with (self.folder / log).open("w") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.server, *words],
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder or self.folder,
            )
        self._made.callback(_end, process)
        return process

    def run(self, line: str, timeout_s: float = 60.0) -> Done:
        """Run a line of a shell on the server."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.server, "timeout", "-k", "2", f"{timeout_s:g}", "sh", "-c", line],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PATH": f"{self.folder}/bin:{SBIN}"},
            cwd=self.folder,
            timeout=timeout_s + 10,
        )
        return Done(line, done.returncode, done.stdout, done.stderr, 0.0)

    def scan(self, count: int = 600) -> str:
        """Let a device that was not there before knock at port 23 of ``count`` addresses; return its MAC address."""
        device = self.new_device()
        self.knock(count)
        return device

    def new_device(self) -> str:
        """Put another device in the place of the one on the cable; return its MAC address."""
        self._devices += 1
        mac = f"02:00:5e:10:00:{self._devices:02x}"
        ip("-n", self.device, "link", "set", "eth0", "address", mac)
        ip("-n", self.device, "address", "flush", "dev", "eth0", "scope", "global")
        ip("-n", self.device, "address", "add", f"{DEVICES}{100 + self._devices}/24", "dev", "eth0")
        ip("-n", self.device, "route", "replace", "default", "via", LAN)
        return mac

    def knock(self, count: int) -> None:
        """Let the device knock at port 23 of ``count`` addresses; returns when it has."""
        command = ["ip", "netns", "exec", self.device, sys.executable, "-c", SCAN, str(self._devices), str(count)]
        subprocess.run(command, check=True, timeout=60, capture_output=True)

    def alerts(self, db: str = "alerts.sqlite") -> list[dict[str, Any]]:
        """Return the alerts that the collector has stored."""
        done = self.run(f"botwatch collector alerts --db {db} --json").well()
        return [json.loads(line) for line in done.out.splitlines()]

    def alerts_of(self, device: str) -> list[dict[str, Any]]:
        """Return the alerts in the collector about the device with this MAC address."""
        alerts = (alert for alert in self.alerts() if not context(alert).get("test"))
        return [alert for alert in alerts if context(alert)["device"].get("mac") == device]


def _end(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    process.kill()
    process.wait(10)
