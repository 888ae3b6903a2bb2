"""Real brokers for tests, on free loopback ports: mosquitto, and amqtt, which speaks MQTT 3.1.1 only."""

import getpass
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from trainer.demo import AMQTT

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")

needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
needs_clients = pytest.mark.skipif(
    not (shutil.which("mosquitto_sub") and shutil.which("jq")), reason="mosquitto-clients or jq are not installed"
)


def wait_until(condition: Callable[[], object], timeout_s: float = 15.0) -> None:
    """Check ``condition`` every 20 ms until it holds; AssertionError if it does not within ``timeout_s``.

    The one place where tests wait for another process or thread that has no event to wait for.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"the condition does not hold after {timeout_s} s"
        time.sleep(0.02)


def free_port() -> int:
    """Return a loopback port on which nothing listens now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Broker:
    """A broker process. `start` returns once it listens, and may be called again after `kill` (SIGKILL) or `stop`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> "Broker":
        with (self.folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(self.command(), stdout=log, stderr=log)
            process = self._process

        def listens() -> bool:
            assert process.poll() is None, self.log()
            return self.listens(process.pid)

        wait_until(listens)
        return self

    def listens(self, pid: int) -> bool:
        """Return True once the broker, process ``pid``, accepts connections."""
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def log(self) -> str:
        return (self.folder / "broker.log").read_text(errors="replace")

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)

    def __enter__(self) -> "Broker":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Mosquitto(Broker):
    """mosquitto with a database that is written every second, and ``extra`` lines of configuration.

    ``config`` replaces that whole configuration.
    """

    def __init__(self, folder: Path, extra: str = "", config: str | None = None) -> None:
        super().__init__(folder)
        default = (
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\n"
            f"persistence true\npersistence_location {folder}/\nautosave_interval 1\n"
            f"max_queued_messages 50000\n{extra}\n"
        )
        text = default if config is None else config.replace("listener 8883", f"listener {self.port} 127.0.0.1")
        # As root, mosquitto would switch to the user `mosquitto`, who may not write here.
        (folder / "mosquitto.conf").write_text(f"user {getpass.getuser()}\n{text}")

    def command(self) -> list[str]:
        assert MOSQUITTO is not None
        return [MOSQUITTO, "-c", str(self.folder / "mosquitto.conf")]


class Amqtt(Broker):
    """amqtt without authentication."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", AMQTT, str(self.port)]


class Farewell(NamedTuple):
    """A DISCONNECT that ends the connection."""

    reason: int


class Scripted:
    """A broker of MQTT 5 whose answers a test chooses, for those that no real broker can be made to give.

    ``judge(topic, payload)`` returns the reason code of a PUBACK, a farewell, or None for no answer. ``after_connect``
    ends each connection as soon as it is made, ``farewell`` does so with a DISCONNECT for that reason. Subscriptions to
    filters with ``refuse`` in them are refused. ``most_under_way`` is the highest number of messages that waited for an
    answer.
    """

    def __init__(
        self,
        judge: Callable[[str, bytes], "int | Farewell | None"],
        receive_maximum: int = 65_535,
        after_connect: bool = False,
        farewell: int = 0,
        refuse: str = "\0",
    ) -> None:
        self._judge, self._maximum, self._leave = judge, receive_maximum, after_connect or bool(farewell)
        self._farewell, self._refuse = farewell, refuse.encode()
        self.got: list[bytes] = []
        self.connected: list[float] = []  # times of the connections, by time.monotonic
        self.most_under_way = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                line, _ = self._server.accept()
                with line, suppress(OSError, IndexError):
                    self._talk(line)

    def _talk(self, line: socket.socket) -> None:
        data, waiting = b"", bytearray()
        while more := line.recv(1 << 16):
            data += more
            under_way = 0
            while len(data) >= 2:
                length, used = _varint(data, 1)
                if len(data) < used + length:
                    break
                kind, body, data = data[0], data[used : used + length], data[used + length :]
                if kind >> 4 == 1:
                    self.connected.append(time.monotonic())
                    line.sendall(bytes([0x20, 6, 0, 0, 3, 0x21]) + self._maximum.to_bytes(2, "big"))
                    if self._farewell:
                        line.sendall(bytes([0xE0, 2, self._farewell, 0]))
                    if self._leave:
                        return
                elif kind >> 4 == 8:
                    line.sendall(bytes([0x90, 4, *body[:2], 0, 0x87 if self._refuse in body else 1]))
                elif kind >> 4 == 12:
                    line.sendall(b"\xd0\0")
                elif kind >> 4 == 3:
                    size = int.from_bytes(body[:2], "big")
                    where, mid = body[2 : 2 + size].decode(), body[2 + size : 4 + size]
                    properties, at = _varint(body, 4 + size)
                    reason = self._judge(where, payload := body[at + properties :])
                    under_way += 1
                    self.most_under_way = max(self.most_under_way, under_way)
                    if where.endswith("/alert"):
                        self.got.append(payload)
                    if isinstance(reason, Farewell):
                        line.sendall(bytes([0xE0, 2, reason.reason, 0]))
                        return
                    if reason is not None:
                        waiting += bytes([0x40, 4, *mid, reason, 0])
            line.sendall(waiting)
            waiting.clear()


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a variable byte integer of MQTT and its end in ``data``."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def any_broker(folder: Path) -> Broker:
    """Return mosquitto where it is installed, else amqtt; not yet started."""
    return Mosquitto(folder) if MOSQUITTO else Amqtt(folder)
