"""The live path under load: ``python -m tests.bench.bench_live [BUNDLE] [--rate N ...] [--budget N]``.

A sender floods a veth pair (packet socket, sendmmsg, no queueing discipline) with frames loaded beforehand, for some
seconds at each rate, and a real `botwatch agent run` captures at the other end in a network namespace of its own (so it
needs root). The table has the frames sent, received by the interface, taken by the agent, and dropped by its buffer.
The agent has one core; the sender, and the kernel's receiving, which runs where the sender does, have another.

Frames are packets_20000.pcap of Kitsune's network where ``BOTWATCH_DATA`` is there, else of the tests' generated home,
over and over. Without BUNDLE the models are those of that home.
"""

import argparse
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from edge_agent.config import ScoringConfig
from tests.bench.home import home
from tests.broker import wait_until
from tests.counted import closing_counts
from tests.reference.frames import data_folder
from tests.traffic import read

ROOT = Path(__file__).parents[2]
MARK = "BOTWATCH_OWN_NETWORK"
BUDGET = ScoringConfig().max_rows_per_s
RATES = (20_000, 50_000, 100_000, 200_000, 400_000, 0)
"""Packets a second; 0: as fast as the sender can."""

SECONDS = 5.0
BURST = 64
_PACKET_QDISC_BYPASS, _SOL_PACKET = 20, 263


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("len", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_len", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iov_len", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_len", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr: the length that was sent comes after the padding of the header."""

    _fields_ = (("header", _Header), ("sent", ctypes.c_uint32))


def frames_to_send() -> tuple[list[bytes], str]:
    """Return at most 20,000 frames and their description."""
    if data := data_folder():
        return [data for _, _, data in read(data / "kitsune" / "packets_20000.pcap")], "Kitsune's packets_20000.pcap"
    return [data for _, _, data in read(home()[1])][:20_000], "the tests' generated home"


def flood(port: str, frames: list[bytes], rate: int, seconds: float) -> tuple[int, float]:
    """Send the frames over and over; return how many were sent in how many seconds."""
    vectors = (_Iovec * len(frames))(*((data, len(data)) for data in frames))
    messages = (_Message * len(frames))()
    for i in range(len(frames)):
        messages[i].header.iov, messages[i].header.iov_len = ctypes.pointer(vectors[i]), 1
    call = ctypes.CDLL(None, use_errno=True).sendmmsg
    size, sent, at = ctypes.sizeof(_Message), 0, 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as line:
        line.bind((port, 0))
        line.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            due = int(passed * rate) - sent if rate else BURST
            if due <= 0:
                time.sleep(0.0002)  # paces the sender
                continue
            count = min(due, BURST, len(frames) - at)
            done = call(line.fileno(), ctypes.byref(messages, at * size), count, 0)
            if done < 0:  # the other end's queue is full, which is the wire's limit and not the agent's
                continue
            sent += done
            at = (at + done) % len(frames)
        return sent, time.monotonic() - began


def arrived(port: str) -> int:
    """Return the number of frames that an interface has received."""
    lines = Path("/proc/net/dev").read_text().splitlines()  # /sys may be of another network namespace
    return next(int(line.split()[2]) for line in lines if line.split()[0] == f"{port}:")


def started(agent: "subprocess.Popen[bytes]", log: Path) -> bool:
    """Return True once the agent captures, or has ended."""
    return "capturing on" in log.read_text() or agent.poll() is not None


def measure(bundle: Path, rates: list[int], budget: int, seconds: float, beside: bool) -> int:
    """Print the table; return 1 if frames were dropped while the agent's core was idle, or at every rate."""
    for words in (
        "link set lo up",
        "link add lan0 type veth peer name dev0",
        "link set lan0 mtu 9000",
        "link set dev0 mtu 9000",
        "link add lan1 type veth peer name dev1",
        *(f"link set {port} addrgenmode none" for port in ("lan0", "dev0", "lan1", "dev1")),
        "link set lan1 up",
        "link set dev1 up",
        "link set lan0 up",
        "link set dev0 up",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    frames, what = frames_to_send()
    cores = sorted(os.sched_getaffinity(0))
    print(f"{len(frames):,} frames of {what}, on average {sum(map(len, frames)) / len(frames):.0f} bytes as captured")
    print(f"{seconds:.0f} s at each rate; at most {budget:,} rows a second are scored; core: of the agent's loop")
    names = ("asked/s", "sent/s", "arrived", "taken", "dropped", "scored", "shed", "core", "waited")
    print(" ".join(f"{name:>10}" for name in names))
    best, faults = 0.0, 0
    ports = "lan0, lan1" if beside else "lan0"
    for rate in rates:
        with tempfile.TemporaryDirectory(prefix="botwatch-bench-") as name:
            folder = Path(name)
            (folder / "agent.yaml").write_text(
                f"gateway: gw-001\nbundle: {bundle.absolute()}\ncapture: {{interfaces: [{ports}]}}\n"
                f"scoring: {{max_rows_per_s: {budget}}}\nevidence: {{path: {folder / 'evidence'}}}\n"
            )
            command = [sys.executable, "-m", "edge_agent", "run", "--config", str(folder / "agent.yaml"), "--no-broker"]
            with (folder / "err").open("w") as err:
                agent = subprocess.Popen(
                    command,
                    stdout=subprocess.DEVNULL,
                    stderr=err,
                    preexec_fn=lambda: os.sched_setaffinity(0, cores[-1:]),
                )
            os.sched_setaffinity(0, cores[:1])
            try:
                wait_until(partial(started, agent, folder / "err"), 60)
                if agent.poll() is not None:
                    print((folder / "err").read_text(), file=sys.stderr)
                    return 1
                time.sleep(1)  # the processor time of the start is not measured
                before, since = arrived("lan0"), used_and_waited(agent.pid)
                sent, passed = flood("dev0", frames, rate, seconds)
                until = used_and_waited(agent.pid)
                used, waited = ((now - then) / passed for now, then in zip(until, since, strict=True))
                time.sleep(1)  # the agent takes the frames that are still in its buffer
                came = arrived("lan0") - before
                agent.send_signal(signal.SIGTERM)
                agent.wait(20)
            finally:
                agent.kill()
                agent.wait()
            log = (folder / "err").read_text()
        counted = closing_counts(log)
        taken = counted["frames"]
        dropped = counted.get("dropped", 0) + counted.get("interface_dropped", 0)
        figures = (f"{sent / passed:,.0f}", came, taken, dropped, counted.get("scored", 0), counted.get("shed", 0))
        cells = [figure if isinstance(figure, str) else f"{figure:,}" for figure in figures]
        print(" ".join(f"{cell:>10}" for cell in (rate or "all", *cells, f"{used:.2f}", f"{waited:.2f}")), flush=True)
        if dropped == 0 and taken == came:
            best = max(best, sent / passed)
        elif used + waited < 0.9:
            faults += 1
    print(f"highest rate without a drop: {best:,.0f} packets/s; rates with drops while the core was idle: {faults}")
    print(f"load {os.getloadavg()[0]:.1f}")
    return int(faults > 0 or best == 0)


def used_and_waited(pid: int) -> tuple[float, float]:
    """Return the processor seconds of the agent's loop so far, and those for which it waited for the processor."""
    used, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(used) / 1e9, int(waited) / 1e9


def main(argv: list[str]) -> int:
    """Measure in a network namespace of our own."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_live")
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument(
        "--rate", type=int, nargs="+", default=list(RATES), metavar="N", help="packets/s; 0: as many as possible"
    )
    parser.add_argument(
        "--budget",
        type=int,
        default=ScoringConfig().max_rows_per_s,
        metavar="N",
        help="rows scored a second (%(default)s)",
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help="at each rate (%(default)s)")
    parser.add_argument("--beside", action="store_true", help="capture on a second, idle interface as well")
    args = parser.parse_args(argv)
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        print("live: skipped, needs root, unshare and iproute2 for a network of its own", file=sys.stderr)
        return 0
    if MARK in os.environ:
        return measure(args.bundle or home()[0], args.rate, args.budget, args.seconds, args.beside)
    command = ["unshare", "-n", sys.executable, "-m", "tests.bench.bench_live", *argv]
    return subprocess.run(command, env=os.environ | {MARK: "1"}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
