"""Small data for the trainer's tests: tables made of noise, captures made frame by frame, published rows if present."""

import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from edge_agent.contract.columns import COUNT_COLUMNS, NBAIOT_COLUMNS
from trainer.data.row_table import RowTable

COLUMNS = (
    "MI_dir_L5_weight",
    "H_L5_weight",
    "H_L5_mean",
    "H_L1_mean",
    "HH_L0.1_mean",
    "HH_L0.01_pcc",
    "HpHp_L1_std",
    "HpHp_L0.01_weight",
    *COUNT_COLUMNS,
)
DAY = 86_400_000_000_000
START = 20_000 * DAY  # 2024-10-04

Frame = tuple[int, bytes]


@pytest.fixture(scope="session")
def nbaiot_rows() -> Path:
    """The folder of published rows; the test is skipped where it is absent."""
    root = Path(os.environ.get("BOTWATCH_DATA", Path(__file__).parents[3] / "shared" / "data")) / "nbaiot"
    if not (root / "danmini_doorbell.benign.csv.gz").is_file():
        pytest.skip(f"no published N-BaIoT rows in {root}; BOTWATCH_DATA names the folder that has nbaiot/")
    return root


@pytest.fixture(scope="session")
def make_table() -> Callable[..., RowTable]:
    """A function that makes a table: ``benign`` rows for each of two devices, and ``attacks`` (label -> rows)."""

    def make(benign: int = 900, attacks: dict[str, int] | None = None, columns: tuple[str, ...] = COLUMNS) -> RowTable:
        rng = np.random.default_rng(5)
        attacks = {"mirai.scan": 300, "gafgyt.udp": 300} if attacks is None else attacks
        sizes = [("benign", benign, 0), ("benign", benign, 1), *((name, n, 1) for name, n in attacks.items())]
        labels = ("benign", *attacks)
        values, code = [], []
        for i, (label, n, device) in enumerate(sizes):
            hidden = rng.normal(size=(n, 3))
            shift = 0.0 if label == "benign" else 3.0 * labels.index(label)
            rows = np.abs(hidden @ np.random.default_rng(9).normal(size=(3, len(columns))) + shift)
            values.append(np.expm1(np.minimum(rows, 20)))
            code.append(np.tile([device, labels.index(label), i], (n, 1)))
        codes = np.concatenate(code).astype(np.int32)
        steps = [START + np.arange(n) * 1_000_000_000 for _, n, _ in sizes]
        return RowTable(
            values=np.concatenate(values).astype(np.float32),
            columns=columns,
            device=codes[:, 0],
            devices=("camera", "plug"),
            label=codes[:, 1],
            labels=labels,
            capture=codes[:, 2],
            captures=tuple(f"{i}.pcap" for i in range(len(sizes))),
            t_ns=np.concatenate(steps),
            mac=codes[:, 0].astype(np.uint64) + 1,
            number=np.concatenate([np.arange(n) for _, n, _ in sizes]),
            generated=False,
        )

    return make


@pytest.fixture(scope="session")
def write_pcap() -> Callable[[Path, Iterable[Frame]], Path]:
    """A function that writes (time in ns, frame) as a nanosecond pcap file."""

    def write(path: Path, frames: Iterable[Frame]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1))
            for t_ns, frame in frames:
                file.write(struct.pack("<IIII", t_ns // 10**9, t_ns % 10**9, len(frame), len(frame)) + frame)
        return path

    return write


def udp(mac: int, src: int, dst: int, sport: int = 40000, dport: int = 53, size: int = 60) -> bytes:
    """An Ethernet frame with a UDP datagram between two hosts of 10.0.0.0/24."""
    ethernet = (0x02_00_00_00_00_FE).to_bytes(6, "big") + mac.to_bytes(6, "big") + b"\x08\x00"
    ip = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, size - 14, 0, 0, 64, 17, 0, bytes([10, 0, 0, src]), bytes([10, 0, 0, dst])
    )
    return (ethernet + ip + struct.pack(">HHHH", sport, dport, size - 34, 0)).ljust(size, b"\0")


@pytest.fixture(scope="session")
def traffic() -> Callable[..., list[Frame]]:
    """A function: ``n`` frames of one device from ``start``, every ``step_s``, each to one of ``peers`` addresses."""

    def make(mac: int, n: int, start: int = START, step_s: float = 1.0, peers: int = 3) -> list[Frame]:
        step = int(step_s * 1e9)
        return [(start + i * step, udp(mac, mac % 200, 201 + i % peers, size=60 + i % 7)) for i in range(n)]

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes published-looking rows as CSV; ``change`` edits the frame (all text) before."""

    def write(
        name: str,
        n: int = 20,
        change: Callable[[pl.DataFrame], pl.DataFrame] = lambda frame: frame,
        compress: bool = False,
    ) -> Path:
        values = np.random.default_rng(n).lognormal(size=(n, 115))
        frame = pl.DataFrame({c: [f"{v:.9e}" for v in values[:, i]] for i, c in enumerate(NBAIOT_COLUMNS)})
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = change(frame).write_csv()
        if compress:
            import gzip

            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text)
        return path

    return write
