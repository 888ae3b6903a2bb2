"""Network namespaces with cables between them, made by a test: real traffic that never leaves this machine."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

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
        time.sleep(0.0005)
    line.send(data)
"""
TAKE = """
import sys, time, numpy as np
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
end = time.monotonic() + 20
while sum(map(len, parts)) < wanted and time.monotonic() < end:
    live.each(take, 0.2)
more = time.monotonic() + 0.5
while time.monotonic() < more:
    live.each(take, 0.1)
counts = live.count()
live.close()
values, meta = (np.concatenate([getattr(p, part) for p in parts]) for part in ("values", "meta"))
np.savez(out / "rows.npz", values=values, meta=meta)
print(counts, flush=True)
"""


def ip(*words: str) -> str:
    """What iproute2 says; CalledProcessError when it refuses."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@dataclass
class Wire:
    """A gateway's and a device's namespace with a cable between them."""

    gateway: str
    device: str
    port: str = "lan0"  # the gateway's end; the device's is eth0

    def plug_in(self) -> None:
        """Put the cable between the two."""
        ends = ("lan0", "netns", self.gateway, "type", "veth", "peer", "name", "eth0", "netns", self.device)
        ip("link", "add", *ends)
        for space, port in ((self.gateway, "lan0"), (self.device, "eth0")):
            ip("-n", space, "link", "set", port, "up")
            ip("-n", space, "link", "set", "lo", "up")

    def on_gateway(self, *words: str, **options: object) -> "subprocess.Popen[str]":
        """A process in the gateway's namespace."""
        return subprocess.Popen(["ip", "netns", "exec", self.gateway, *words], text=True, **options)  # type: ignore[call-overload, no-any-return]

    def send(
        self, frames: Iterable[Frame], folder: Path, rate: float = 1000.0, *, where: str = "", port: str = ""
    ) -> None:
        """Have the device (or ``where``) send frames, so many a second."""
        file = folder / f"send-{next(_numbers)}.pcap"
        file.write_bytes(pcap(list(frames), nanoseconds=True))
        command = ["ip", "netns", "exec", where or self.device, sys.executable, "-c", SEND, port or "eth0", str(file)]
        subprocess.run([*command, str(rate)], check=True, cwd=ROOT)


@contextmanager
def laid() -> Iterator[Wire]:
    """Two namespaces and the cable, gone afterwards; the test is skipped where nobody can make them."""
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
            pytest.skip(f"this machine lets nobody make network namespaces: {error.stderr.strip()}")
        yield made
    finally:
        for space in (made.gateway, made.device):
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


@contextmanager
def taking(wire: Wire, folder: Path, wanted: int, direction: str, *names: str) -> Iterator["subprocess.Popen[str]"]:
    """The capture loop of the agent, without models; rows and a record in ``folder``."""
    command = [sys.executable, "-c", TAKE, str(folder), str(wanted), direction, *(names or (wire.port,))]
    process = wire.on_gateway(*command, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        (folder / "counts").write_text(said)
    finally:
        process.kill()
        process.wait()


@contextmanager
def serving(space: str, script: str, *words: str) -> Iterator[None]:
    """A script that says when it is ready and is stopped in the end."""
    command = ["ip", "netns", "exec", space, sys.executable, "-c", script, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.communicate()
