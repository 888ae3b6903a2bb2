"""Captures of any length, made while they are read: a real `botwatch agent replay` gets them through a pipe.

Nothing is written to disk. Times are capture times in ns. A `Life` is the normal traffic of devices; a `Flood` is made
second by second in whole arrays.
"""

import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from tests.broker import wait_until
from tests.counted import closing_counts
from tests.traffic import CLOUD, Frame, S, packet

HEADER = struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65_535, 1)
"""The header of a pcap file of Ethernet frames with times in ns."""

RECORD = struct.Struct("=IIII")


class Piece(NamedTuple):
    """Records of a pcap file: record i has time ``t_ns[i]`` and is ``data[starts[i] : starts[i + 1]]``."""

    t_ns: np.ndarray
    starts: np.ndarray
    data: bytes

    def woven(self, other: "Piece") -> bytes:
        """Return the records of both in the order of their times; ``other`` should be the shorter one."""
        parts, at = [], 0
        for i, cut in enumerate(self.starts[np.searchsorted(self.t_ns, other.t_ns)].tolist()):
            parts += [self.data[at:cut], other.data[other.starts[i] : other.starts[i + 1]]]
            at = cut
        return b"".join([*parts, self.data[at:]])


class Life:
    """Frames in the order of their times, packed once."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        ordered = sorted(frames, key=lambda frame: frame[0])
        self.t_ns = np.array([t for t, _, _ in ordered], dtype=np.int64)
        records = [RECORD.pack(0, 0, len(data), length) + data for _, length, data in ordered]
        self._starts = np.cumsum([0, *map(len, records)])
        self._data = np.frombuffer(b"".join(records), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.t_ns)

    def between(self, start_ns: int, end_ns: int, later_ns: int = 0) -> Piece:
        """Return records of the frames from ``start_ns`` until before ``end_ns``, stamped ``later_ns`` later."""
        at, end = np.searchsorted(self.t_ns, [start_ns, end_ns])
        t_ns, starts = self.t_ns[at:end] + later_ns, self._starts[at : end + 1] - self._starts[at]
        data = self._data[self._starts[at] : self._starts[end]].copy()
        data[starts[:-1, None] + np.arange(8)] = _stamps(t_ns)
        return Piece(t_ns, starts, data.tobytes())

    def seconds(self, start_ns: int, count: int) -> Iterator[bytes]:
        """Yield the records of each of ``count`` seconds."""
        for second in range(count):
            yield self.between(start_ns + second * S, start_ns + (second + 1) * S).data


def _stamps(t_ns: np.ndarray) -> np.ndarray:
    """Return times as in the header of a record, (n, 8) bytes."""
    return np.stack([t_ns // S, t_ns % S], axis=1).astype("=u4").view(np.uint8)


class Flood:
    """SYNs of one device from ``sources`` spoofed public addresses and every port to one target, ``rate`` a second."""

    def __init__(self, mac: int, rate: int, sources: int = 1_000_000, seed: int = 5) -> None:
        self._rng = np.random.default_rng(seed)
        self._addresses = self._rng.choice(np.arange(0x0B000000, 0x0B000000 + 64 * sources, 64), sources, replace=False)
        self._rate = rate
        data = packet(0x0B000000, CLOUD, 1024, 80, mac=mac, proto=6)
        self._template = np.frombuffer(RECORD.pack(0, 0, len(data), len(data)) + data, dtype=np.uint8)

    def second(self, start_ns: int) -> Piece:
        """Return the records of the second from ``start_ns`` on."""
        n = self._rate
        t_ns = start_ns + np.arange(n, dtype=np.int64) * S // n
        flood = np.tile(self._template, (n, 1))
        flood[:, :8] = _stamps(t_ns)
        flood[:, 42:46] = self._rng.choice(self._addresses, n).astype(">u4").view(np.uint8).reshape(n, 4)
        flood[:, 50:52] = self._rng.integers(1024, 65_536, n).astype(">u2").view(np.uint8).reshape(n, 2)
        return Piece(t_ns, np.arange(n + 1) * len(self._template), flood.tobytes())


class Replay:
    """A `botwatch agent replay` that reads what `write` is given. A ``with`` block ends it if it is stuck."""

    def __init__(self, folder: Path, bundle: Path, config: str = "", *words: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "agent.yaml").write_text(config)
        pipe = folder / "capture.fifo"
        os.mkfifo(pipe)
        self._log = folder / "log"
        command = [sys.executable, "-m", "edge_agent", "replay", "--json", str(pipe), "--bundle", str(bundle)]
        command += ["--config", str(folder / "agent.yaml"), *words]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self._changed = threading.Condition()
        self.alerts: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._pipe = self._open(pipe)
        self.write(HEADER)

    def _open(self, pipe: Path) -> int:
        """Return its writing end, once the agent has the other one; a blocking open would hang if the agent failed."""
        opened: list[int] = []

        def can_be_written() -> bool:
            if self._process.poll() is None:
                with suppress(OSError):  # ENXIO: no reader yet
                    opened.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
            return bool(opened) or self._process.poll() is not None

        wait_until(can_be_written, 60)
        assert opened, f"the agent did not begin to read: {self._log.read_text()}"
        os.set_blocking(opened[0], True)
        return opened[0]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.alerts.append(json.loads(line))
                self._changed.notify_all()

    def write(self, data: bytes) -> None:
        """Hand over bytes of the capture; returns when the agent has read nearly all of them."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._pipe, view) :]

    def wait_for_alert(self, of: int, timeout_s: float) -> dict[str, Any] | None:
        """Return the first alert of a device, by its MAC; None if there is none within ``timeout_s``."""

        def first() -> dict[str, Any] | None:
            return next((alert for alert in self.alerts if mac_of(alert) == of), None)

        with self._changed:
            self._changed.wait_for(lambda: first() is not None, timeout_s)
            return first()

    def resident_kb(self) -> int:
        """Return the resident memory now."""
        return self._status("VmRSS")

    def peak_kb(self) -> int:
        """Return the highest resident memory so far."""
        return self._status("VmHWM")

    def _status(self, key: str) -> int:
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))

    def cpu_s(self) -> float:
        """Return the processor seconds used so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def finish(self) -> dict[str, int]:
        """End the capture and return the agent's closing counters; AssertionError if it failed."""
        os.close(self._pipe)
        self._pipe = -1
        status = self._process.wait(120)
        self._reader.join(10)
        log = self.log()
        assert status == 0, log
        return closing_counts(log)

    def log(self) -> str:
        """Return what it wrote to stderr."""
        return self._log.read_text()

    def __enter__(self) -> "Replay":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def context(alert: dict[str, Any]) -> dict[str, Any]:
    """Return the part of an alert that botwatch adds to EVE."""
    return alert["alert"]["context"]["botwatch"]


def mac_of(alert: dict[str, Any]) -> int:
    """Return the MAC of the device that an alert is about; 0 for a victim."""
    return int(context(alert)["device"].get("mac", "0").replace(":", ""), 16)


def time_ns(text: str) -> int:
    """Return a time of an alert in ns since the epoch."""
    moment = datetime.fromisoformat(text)
    return int(moment.timestamp()) * S + moment.microsecond * 1000
