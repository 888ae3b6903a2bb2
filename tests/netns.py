"""Network namespaces and the cables between them: tests send real traffic that never leaves this machine."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.broker import wait_until
from tests.reference.frames import pcap
from tests.traffic import Frame

ROOT = Path(__file__).parents[1]
MAC = 0x02005E100001
_numbers = itertools.count()

SEND = """
import socket, sys, time
from tests.traffic import read
from pathlib import Path
frames, rate = read(Path(sys.argv[2])), float(sys.argv[3])
line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
line.bind((sys.argv[1], 0))
began = time.monotonic()
for i, (_, _, data) in enumerate(frames):
    while time.monotonic() < began + i / rate:
        time.sleep(0.0005)  # paces the sender: the rate is what the test asks for
    line.send(data)
"""
"""Sends the frames of a pcap file through an interface, so many a second."""

TAKE = """
import json, os, sys, time, numpy as np
from pathlib import Path
from edge_agent.capture.sources import Interfaces, Recorder
from edge_agent.capture.features import Extractor
from edge_agent.config import CaptureConfig
out, wanted, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[4:]
settings = CaptureConfig(filter="not ip6", direction=sys.argv[3]).live()
extractor, parts, recorder = Extractor(4096, seed=1), [], Recorder(out / "record.pcap", 1 << 30)
live = Interfaces(names, settings, recorder)
def take(source):
    rows = extractor.push(source, 100)
    if len(rows):
        parts.append(rows)
    return len(rows)
print("ready", flush=True)
end, rounds = time.monotonic() + 60, 0
while sum(map(len, parts)) < wanted and time.monotonic() < end:
    live.each(take, 0.2)
    rounds += 1
    (out / "new").write_text(json.dumps({"rounds": rounds, "rows": sum(map(len, parts)), **live.counters}))
    os.replace(out / "new", out / "progress")
more = time.monotonic() + 0.5
while time.monotonic() < more:  # frames beyond those that were wanted would be an error, so they are waited for
    live.each(take, 0.1)
counts = live.count()
live.close()
values, meta = (np.concatenate([getattr(p, part) for p in parts]) for part in ("values", "meta"))
np.savez(out / "rows.npz", values=values, meta=meta)
print(counts, flush=True)
"""
"""Runs the capture loop of the agent until it has the rows that are wanted, and then half a second longer.

Writes after each round what it has so far (`Taking.progress`), and in the end rows.npz and its counters.
"""


def ip(*words: str) -> str:
    """Run iproute2 and return what it printed; CalledProcessError if it refuses."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def wait_until_up(space: str, *ports: str) -> None:
    """Wait until interfaces of a namespace carry frames; a port of a bridge must forward them."""

    def carries(link: dict[str, Any]) -> bool:
        bridged = link.get("linkinfo", {}).get("info_slave_data", {}).get("state", "forwarding")
        return bool(link["operstate"] == "UP" and bridged == "forwarding")

    def all_carry() -> bool:
        links = {link["ifname"]: link for link in json.loads(ip("-n", space, "-json", "-details", "link", "show"))}
        return all(carries(links[port]) for port in ports)

    wait_until(all_carry)


@dataclass
class Wire:
    """The namespaces of a gateway and of a device, with a cable between them."""

    gateway: str
    device: str
    port: str = "lan0"  # the gateway's end; the device's is eth0

    def plug_in(self) -> None:
        """Lay the cable; it carries frames when this returns."""
        ends = ("lan0", "netns", self.gateway, "type", "veth", "peer", "name", "eth0", "netns", self.device)
        ip("link", "add", *ends)
        for space, port in ((self.gateway, "lan0"), (self.device, "eth0")):
            ip("-n", space, "link", "set", port, "up")
            ip("-n", space, "link", "set", "lo", "up")
        self.wait_until_up()

    def wait_until_up(self) -> None:
        """Wait until the cable carries frames."""
        wait_until_up(self.gateway, "lan0")
        wait_until_up(self.device, "eth0")

    def on_gateway(self, *words: str, **options: object) -> "subprocess.Popen[str]":
        """Start a process in the gateway's namespace."""
        return subprocess.Popen(["ip", "netns", "exec", self.gateway, *words], text=True, **options)  # type: ignore[call-overload, no-any-return]

    def send(
        self, frames: Iterable[Frame], folder: Path, rate: float = 1000.0, *, where: str = "", port: str = ""
    ) -> None:
        """Send frames from the device, or from namespace ``where``, ``rate`` a second; returns when all are sent."""
        file = folder / f"send-{next(_numbers)}.pcap"
        file.write_bytes(pcap(list(frames), nanoseconds=True))
        command = ["ip", "netns", "exec", where or self.device, sys.executable, "-c", SEND, port or "eth0", str(file)]
        subprocess.run([*command, str(rate)], check=True, cwd=ROOT)


@contextmanager
def laid() -> Iterator[Wire]:
    """Two namespaces and the cable, removed afterwards; the test is skipped where this process may not make them."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("needs root and iproute2, to make network namespaces")
    name = f"bw{os.getpid()}-{next(_numbers)}"
    made = Wire(f"{name}g", f"{name}d")
    try:
        try:
            ip("netns", "add", made.gateway)
            ip("netns", "add", made.device)
            made.plug_in()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces can be made here: {error.stderr.strip()}")
        yield made
    finally:
        for space in (made.gateway, made.device):
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


@dataclass(frozen=True)
class Taking:
    """A running `TAKE`, which writes to ``folder``."""

    folder: Path

    def progress(self) -> dict[str, int]:
        """Return the rounds of the loop so far, the rows, and the counters of interfaces lost and back."""
        file = self.folder / "progress"
        progress: dict[str, int] = json.loads(file.read_text()) if file.exists() else {"rounds": 0, "rows": 0}
        return progress

    def wait_for(self, key: str, value: int) -> None:
        """Wait until a figure of `progress` is at least ``value``."""
        wait_until(lambda: self.progress().get(key, 0) >= value, 30)


@contextmanager
def taking(wire: Wire, folder: Path, wanted: int, direction: str, *names: str) -> Iterator[Taking]:
    """Run the capture loop of the agent, without models; ``folder`` gets the rows, a record and the counters."""
    command = [sys.executable, "-c", TAKE, str(folder), str(wanted), direction, *(names or (wire.port,))]
    process = wire.on_gateway(*command, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Taking(folder)
        counts, _ = process.communicate(timeout=90)
        assert process.returncode == 0
        (folder / "counts").write_text(counts)
    finally:
        process.kill()
        process.wait()


@contextmanager
def serving(space: str, script: str, *words: str) -> Iterator[None]:
    """Run a script that prints "ready" when it is, and is killed in the end."""
    command = ["ip", "netns", "exec", space, sys.executable, "-c", script, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.communicate()
