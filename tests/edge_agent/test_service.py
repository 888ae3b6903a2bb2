"""The agent as a service: how it stops and what it does when asked, as a process in a network namespace of its own."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from edge_agent.state import State
from tests.broker import Mosquitto, free_port, needs_mosquitto, wait_until
from tests.conftest import Home
from tests.edge_agent.test_live import LISTEN, agent, alerts, state
from tests.netns import MAC, ROOT, SEND, Wire
from tests.reference.frames import pcap
from tests.traffic import scan, steady

# A host that takes connections and never says a word; with "full" not even the handshake of TCP is ended.
MUTE = """
import socket, sys, time
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", int(sys.argv[1])))
s.listen(0 if sys.argv[2] == "full" else 64)
held = []
while sys.argv[2] == "full" and len(held) < 8:
    c = socket.socket()
    c.setblocking(False)
    c.connect_ex(s.getsockname())
    held.append(c)
print("ready", flush=True)
time.sleep(600)
"""


@contextmanager
def mute(wire: Wire, port: int, how: str) -> Iterator[None]:
    process = wire.on_gateway(sys.executable, "-c", MUTE, str(port), how, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def sending(wire: Wire, frames: list, folder: Path, rate: float) -> Iterator[None]:
    """Frames go on until the block ends."""
    file = folder / "flood.pcap"
    file.write_bytes(pcap(frames, nanoseconds=True))
    words = ["ip", "netns", "exec", wire.device, sys.executable, "-c", SEND, "eth0", str(file), str(rate)]
    process = subprocess.Popen(words, cwd=ROOT)
    try:
        yield
        assert process.poll() is None, "the flood ended before the agent did"
    finally:
        process.kill()
        process.wait()


def stopped_in(process: "subprocess.Popen[str]") -> float:
    """Seconds from SIGTERM to the end, which must be a good one."""
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    assert process.wait(20) == 0
    return time.monotonic() - asked


def kept(box: Path) -> list[dict]:
    """What waits in the outbox, in order."""
    with closing(State(box)) as file:
        return [json.loads(payload) for _, _, payload in file.outbox_waiting(0, 100_000)]


@pytest.mark.parametrize("broker", ["mute", "full", "mute, TLS", "nobody"])
def test_a_stop_in_a_flood_takes_two_seconds_and_loses_nothing_when_the_broker_is_out_of_reach(
    wire: Wire,
    home: Home,
    tmp_path: Path,
    broker: str,
) -> None:
    port, box = free_port(), tmp_path / "box.sqlite"
    tls = "tls: true, " if "TLS" in broker else ""
    config = f"outbox: {{path: {box}}}\nbroker: {{{tls}host: 127.0.0.1, port: {port}, connect_timeout_s: 15.0}}\n"
    frames = list(steady(scan(40_000, "192.168.1.57", mac=MAC), 0, 1000))
    with (
        mute(wire, port if broker != "nobody" else free_port(), broker.partition(",")[0]),
        agent(wire, home, tmp_path, config=config) as process,
        sending(wire, frames, tmp_path, 4000.0),
    ):
        wait_until(lambda: alerts(tmp_path), 20)
        took = stopped_in(process)
    told = alerts(tmp_path)
    assert [state(a) for a in told if state(a) != "update"] == ["new", "end"]
    assert kept(box) == told
    assert took < 2.0
    assert "Traceback" not in (tmp_path / "err").read_text()


@needs_mosquitto
@pytest.mark.parametrize("broker", ["well", "hangs"])
def test_a_stop_in_a_flood_delivers_what_it_can_in_two_seconds(
    wire: Wire,
    home: Home,
    tmp_path: Path,
    broker: str,
) -> None:
    """A broker that is well has the `end` of what the stop ended; one that hangs leaves it in the outbox."""
    box = tmp_path / "box.sqlite"
    process, port = mosquitto(wire, tmp_path / "broker")
    heard = tmp_path / "heard"
    listener = wire.on_gateway(sys.executable, "-c", LISTEN, str(port), str(heard))
    try:
        wait_until(heard.exists, 20)
        config = f"outbox: {{path: {box}}}\nbroker: {{host: 127.0.0.1, port: {port}, repeat_s: 0.0}}\n"
        with agent(wire, home, tmp_path, config=config) as gateway:
            frames = list(steady(scan(40_000, "192.168.1.57", mac=MAC), 0, 1000))
            with sending(wire, frames, tmp_path, 4000.0):
                wait_until(lambda: alerts(tmp_path) and not kept(box), 20)
                if broker == "hangs":
                    process.send_signal(signal.SIGSTOP)
                took = stopped_in(gateway)
    finally:
        for running in (listener, process):
            running.kill()
            running.wait()
    told = alerts(tmp_path)
    assert [state(a) for a in told if state(a) != "update"] == ["new", "end"]
    left = kept(box)
    if broker == "well":
        assert left == []
        lines = [line.split(" ", 1) for line in heard.read_text().splitlines()]
        assert [json.loads(text) for leaf, text in lines if leaf == "alert"] == told
        assert [json.loads(text)["state"] for leaf, text in lines if leaf == "status"] == ["online", "stopped"]
    else:
        assert state(left[-1]) == "end"
        assert told[-len(left) :] == left
    assert took < 2.0


def mosquitto(wire: Wire, folder: Path) -> "tuple[subprocess.Popen[str], int]":
    """A broker in the gateway's namespace, and its port."""
    made = Mosquitto(folder, "connection_messages true")
    process = wire.on_gateway(*made.command(), stderr=subprocess.DEVNULL)
    return process, made.port
