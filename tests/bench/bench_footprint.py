"""The resources that a live agent takes of a gateway: ``python -m tests.bench.bench_footprint [--idle S]``.

A real `botwatch agent run`, with broker, on a veth pair in a network namespace of this process (so it needs root). It
measures the time from the start to the first alert of a scan; processor time and bytes written under the normal traffic
of twenty devices, for so long that what is learnt is saved, too, and without any traffic; and resident memory after
floods that fill more and more tables. Models of the tests' generated home; limits and tables as in
`configs/agent.yaml`.
"""

import argparse
import ipaddress
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from edge_agent.capture.features import Extractor
from edge_agent.config import AgentConfig
from tests.bench.home import home
from tests.broker import Mosquitto
from tests.traffic import CLOUD, ROUTER_MAC, packet, scan, spoofed

ROOT = Path(__file__).parents[2]
RUNTIME_MARK = "BOTWATCH_OWN_NETWORK"
DEVICES, FIRST_MAC = 20, 0x02_00_00_00_01_00
MANY = 10_000


def status_mb(pid: int, key: str) -> float:
    """Return a figure of /proc/PID/status in MB of a million bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024 / 1e6


def mapped_mb(pid: int) -> dict[str, float]:
    """Return resident memory in MB by what is mapped."""
    resident, kind = dict.fromkeys(("libraries", "frames of the interface", "data"), 0.0), "data"
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            name = line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
            kind = "frames of the interface" if name.startswith("socket:") else "data"
            kind = "libraries" if name.startswith("/") else kind
        elif line.startswith("Rss:"):
            resident[kind] += int(line.split()[1]) * 1024 / 1e6
    return resident


def cpu_s(pid: int) -> float:
    """Return the processor seconds used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def written(pid: int) -> int:
    """Return the bytes sent to the storage layer so far."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))


def code_bytes(folder: Path) -> int:
    """Return the size of the agent's Python, its kernel without debugging symbols, and the models."""
    package, total = ROOT / "edge_agent", 0
    for path in [*package.rglob("*"), *folder.rglob("*")]:
        if path.is_file() and path.suffix in (".py", ".json", ".tflite", ".npz"):
            total += path.stat().st_size
    with tempfile.NamedTemporaryFile() as stripped:
        library = next(package.glob("_kernel*.so"))
        subprocess.run(["strip", "-o", stripped.name, str(library)], check=True)
        return total + Path(stripped.name).stat().st_size


def report(what: str, value: float, unit: str, goal: float) -> bool:
    """Print a line of the table; return True if the goal is met."""
    print(f"{what:66} {value:8.2f} {unit:3} goal {goal:g}: {'met' if value <= goal else 'MISSED'}", flush=True)
    return value <= goal


def household(count: int) -> Iterator[bytes]:
    """Yield a round of ``count`` devices: each asks its cloud, which answers, and some ask the router for a name."""
    router = "192.168.38.1"
    for number in range(count):
        mac, address = FIRST_MAC + number, str(ipaddress.ip_address("192.168.38.100") + number)
        cloud = str(ipaddress.ip_address(CLOUD) + number % 4)
        yield packet(address, cloud, 40000 + number, 8883, mac=mac, proto=6, flags=24, size=80)
        yield packet(cloud, address, 8883, 40000 + number, mac=ROUTER_MAC, to_mac=mac, proto=6, flags=16)
        if number % 5 == 0:
            yield packet(address, router, 50000 + number, 53, mac=mac, size=40)


def strangers(count: int, macs: int, addresses: int, seed: int) -> Iterator[bytes]:
    """Yield UDP from each of ``macs`` MACs in turn and a random local address to random hosts and ports."""
    rng = np.random.default_rng(seed)
    targets, local = rng.integers(0x0B000000, 0x7F000000, count), rng.integers(0, addresses, count)
    ports = rng.integers(1024, 65536, count)
    for i, (target, address, port) in enumerate(zip(targets.tolist(), local.tolist(), ports.tolist(), strict=True)):
        yield packet(0x0A000000 + address, target, port, port ^ 1, mac=FIRST_MAC + i % macs, size=64)


def send(line: socket.socket, packets: Iterable[bytes]) -> None:
    """Send some ten thousand packets a second."""
    for i, data in enumerate(packets):
        line.send(data)
        if i % 50 == 0:
            time.sleep(0.005)  # paces the sender


def measure(idle_s: float) -> int:
    """Print the table; return 1 if a goal is missed."""
    bundle, _ = home()
    for words in (
        "link set lo up",
        "link add lan0 type veth peer name dev0",
        "link set lan0 up",
        "link set dev0 up",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    # as pip does when it installs: compiling at the start would be measured, too
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(ROOT / "edge_agent")], check=True)
    line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    line.bind(("dev0", 0))
    alerted, done = threading.Event(), threading.Event()

    def probe() -> None:
        for data in scan(6000, "192.168.38.20"):
            if alerted.is_set():
                break
            line.send(data)
            time.sleep(0.005)  # 200 packets a second
        while not done.is_set():
            for data in household(DEVICES):
                line.send(data)
                done.wait(2.0 / DEVICES)

    config = AgentConfig()
    memory = Extractor(config.extractor.max_streams, max_devices=config.extractor.max_devices).memory_bytes()
    with tempfile.TemporaryDirectory(prefix="botwatch-bench-", dir=ROOT / "build") as name:
        folder = Path(name)
        with Mosquitto(folder / "broker") as broker:
            command = [sys.executable, "-m", "edge_agent", "run", "--bundle", str(bundle), "--interface", "lan0"]
            command += ["--gateway", "gw-001", "--broker", broker.address, "--outbox", str(folder / "outbox.sqlite")]
            neighbours = threading.Thread(target=probe, daemon=True)
            neighbours.start()
            began = time.monotonic()
            with (folder / "log").open("w") as log:
                agent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder)
            try:
                assert agent.stdout is not None
                assert agent.stdout.readline(), (folder / "log").read_text()
                first = time.monotonic() - began
                alerted.set()
                threading.Thread(target=agent.stdout.read, daemon=True).start()
                print("an agent with broker, models of the tests' generated home, defaults of configs/agent.yaml")
                print(
                    f"tables of {config.extractor.max_streams:,} streams and {config.extractor.max_devices} devices: "
                    f"{memory['total']:,} bytes, {memory['per_stream']:,} a stream; ring of evidence: "
                    f"{config.evidence.ring_kb << 10:,} bytes; frames of the interface: "
                    f"{config.capture.buffer_mb << 20:,}"
                )
                met = report("start to first alert (scan, 200 packets/s)", first, "s", 2)
                time.sleep(90)  # the episode ends
                used, wrote, since = cpu_s(agent.pid), written(agent.pid), time.monotonic()
                time.sleep(idle_s)  # the time that is measured
                passed = time.monotonic() - since
                busy, hourly = cpu_s(agent.pid) - used, (written(agent.pid) - wrote) / passed * 3600 / 1e6
                print(f"{DEVICES} devices, 10 packets/s, {passed:.0f} s: {100 * busy / passed:.2f} % of a core")
                met &= report("  written to the disk in an hour at this rate", hourly, "MB", 1)
                met &= report("  resident", status_mb(agent.pid, "VmRSS"), "MB", 80)
                done.set()
                neighbours.join()
                used, since = cpu_s(agent.pid), time.monotonic()
                time.sleep(30)  # the time that is measured
                busy, passed = cpu_s(agent.pid) - used, time.monotonic() - since
                met &= report(f"no traffic, {passed:.0f} s: of a core", 100 * busy / passed, "%", 1)
                macs = config.extractor.max_devices
                for what, flood in (
                    ("a flood of false sources: streams and ring full", spoofed(60_000)),
                    (f"{macs} MACs flood: all of the kernel's tables full", strangers(60_000, macs, 8192, seed=3)),
                    (f"{MANY:,} MACs flood: the tables of the detector, too", strangers(20 * MANY, MANY, 8192, seed=4)),
                ):
                    send(line, flood)
                    time.sleep(5)  # the agent judges the flood
                    met &= report(f"resident, {what}", status_mb(agent.pid, "VmRSS"), "MB", 80)
                    print("  of that:", ", ".join(f"{kind} {mb:.1f}" for kind, mb in mapped_mb(agent.pid).items()))
                report("  at most at any time", status_mb(agent.pid, "VmHWM"), "MB", 80)
                met &= report("code and models beyond the runtime", code_bytes(bundle) / 1e6, "MB", 3)
            finally:
                done.set()
                agent.terminate()
                agent.wait(60)
    return int(not met)


def main(argv: list[str]) -> int:
    """Measure in a network namespace of our own."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_footprint")
    parser.add_argument("--idle", type=float, default=600.0, metavar="S", help="how long to idle (%(default)s)")
    args = parser.parse_args(argv)
    if RUNTIME_MARK in os.environ:
        return measure(args.idle)
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        print("footprint: skipped, needs root, unshare and iproute2 for a network of its own", file=sys.stderr)
        return 0
    command = ["unshare", "-n", sys.executable, "-m", "tests.bench.bench_footprint", "--idle", str(args.idle)]
    return subprocess.run(command, env=os.environ | {RUNTIME_MARK: "1"}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
