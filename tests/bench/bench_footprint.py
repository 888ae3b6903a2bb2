"""What a live agent takes of a gateway: ``python -m tests.bench.bench_footprint [--idle S]``.

A real `botwatch agent run`, with broker, on a veth pair in a network namespace of this process (so it needs root): from
its start to its first alert under a scan, resident memory after a flood that fills every table, then processor time and
bytes written while nothing happens. Models of the tests' generated home; limits and tables as in `configs/agent.yaml`.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from edge_agent.features import Extractor
from tests.bench.home import home
from tests.broker import Mosquitto
from tests.traffic import scan, spoofed

ROOT = Path(__file__).parents[2]
RUNTIME_MARK = "BOTWATCH_OWN_NETWORK"


def status_kb(pid: int, key: str) -> float:
    """A figure in kB of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def cpu_s(pid: int) -> float:
    """Processor seconds used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def written(pid: int) -> int:
    """Bytes sent to the storage layer so far."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))


def code_bytes(folder: Path) -> int:
    """The agent's Python, its kernel without debugging symbols, and the models."""
    package, total = ROOT / "edge_agent", 0
    for path in [*package.rglob("*"), *folder.rglob("*")]:
        if path.is_file() and path.suffix in (".py", ".json", ".tflite", ".npz"):
            total += path.stat().st_size
    with tempfile.NamedTemporaryFile() as stripped:
        library = next(package.glob("_kernel*.so"))
        subprocess.run(["strip", "-o", stripped.name, str(library)], check=True)
        return total + Path(stripped.name).stat().st_size


def say(what: str, value: float, unit: str, goal: float) -> bool:
    """A line of the table; whether the goal is met."""
    print(f"{what:52} {value:8.2f} {unit:8} goal {goal:g}: {'met' if value <= goal else 'MISSED'}", flush=True)
    return value <= goal


def measure(idle_s: float) -> int:
    """Print the table; 1 when a goal is missed."""
    bundle, _ = home()
    for words in (
        "link set lo up",
        "link add lan0 type veth peer name dev0",
        "link set lan0 up",
        "link set dev0 up",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    line.bind(("dev0", 0))
    alerted = threading.Event()

    def probe() -> None:
        for packet in scan(6000, "192.168.38.20"):
            if alerted.is_set():
                return
            line.send(packet)
            time.sleep(0.005)

    memory = Extractor().memory_bytes()
    with tempfile.TemporaryDirectory(prefix="botwatch-bench-", dir=ROOT / "build") as name:
        folder = Path(name)
        with Mosquitto(folder / "broker") as broker:
            command = [sys.executable, "-m", "edge_agent", "run", "--bundle", str(bundle), "--interface", "lan0"]
            command += ["--broker", broker.address, "--outbox", str(folder / "outbox.sqlite")]
            threading.Thread(target=probe, daemon=True).start()
            began = time.monotonic()
            with (folder / "said").open("w") as said:
                agent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
            try:
                assert agent.stdout is not None
                assert agent.stdout.readline(), (folder / "said").read_text()
                first = time.monotonic() - began
                alerted.set()
                threading.Thread(target=agent.stdout.read, daemon=True).start()
                for i, packet in enumerate(spoofed(60_000)):
                    line.send(packet)
                    if i % 100 == 0:
                        time.sleep(0.005)
                time.sleep(5)
                resident, peak = status_kb(agent.pid, "VmRSS"), status_kb(agent.pid, "VmHWM")
                print("an agent with broker, models of the tests' generated home, defaults of configs/agent.yaml")
                print(
                    f"memory of 16,384 streams and 256 devices: {memory['total']:,} bytes, {memory['per_stream']} each"
                )
                kept = say("start to first alert (scan, 200 packets/s)", first, "s", 2)
                kept &= say("resident memory, every table full", resident * 1024 / 1e6, "MB", 80)
                say("  at most so far", peak * 1024 / 1e6, "MB", 80)
                time.sleep(90)  # episodes end
                used, wrote, since = cpu_s(agent.pid), written(agent.pid), time.monotonic()
                time.sleep(idle_s)
                passed = time.monotonic() - since
                kept &= say(f"idle for {passed:.0f} s: of a core", 100 * (cpu_s(agent.pid) - used) / passed, "%", 1)
                hourly = (written(agent.pid) - wrote) / passed * 3600 / 1e6
                kept &= say("  written to the disk, were it an hour", hourly, "MB", 1)
                kept &= say("code and models beyond the runtime", code_bytes(bundle) / 1e6, "MB", 3)
            finally:
                agent.terminate()
                agent.wait(10)
    return int(not kept)


def main(argv: list[str]) -> int:
    """Measure in a network of our own."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_footprint")
    parser.add_argument("--idle", type=float, default=180.0, metavar="S", help="how long to idle (%(default)s)")
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
