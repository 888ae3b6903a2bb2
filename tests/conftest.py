"""Fixtures of several packages: a small home, fitted and converted once since TensorFlow is slow, and a wire."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edge_agent.contract import captures
from tests.netns import Wire, laid
from tests.reference.frames import pcap
from tests.traffic import Frame, S, merged, read, scan, spoofed, steady

FIT = """
data: [{kind: captures, path: captures}]
split: {gap_rows: 20, gap_s: 5.0, min_rows: 20}
attack_split: {gap_rows: 5, gap_s: 0.0, min_rows: 20}
autoencoder: {epochs: 20, batch: 512, patience: 20}
classifier: {training: {epochs: 12, batch: 512, patience: 12}}
"""
DEVICES = ("plug", "thermostat")
ATTACKS = ("mirai.scan", "mirai.syn", "mirai.udpplain", "gafgyt.udp")


@dataclass(frozen=True)
class Home:
    """Captures of a generated home, a model fitted on them and its bundle."""

    captures: Path  # of the fit; plug-1 is infected
    run: Path
    bundle: Path  # int8, four attack classes
    later: Path  # the same devices a month later: two hours of benign traffic each


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return make_home(tmp_path_factory.mktemp("home"))


def make_home(folder: Path) -> Home:
    """Generate, fit and convert a home by the commands that users have."""
    from converter.__main__ import main as convert
    from trainer.__main__ import main as train
    from trainer.traffic.captures import generate
    from trainer.traffic.plan import Plan

    made = Home(folder / "captures", folder / "run", folder / "bundle", folder / "later")
    plan = Plan(
        devices=DEVICES,
        infected=("plug-1",),
        attacks=ATTACKS,
        days=4,
        hours=1.0,
        attack_seconds=20,
        lead_minutes=2,
        tail_minutes=1,
        max_attack_packets=2500,
    )
    generate(plan, made.captures)
    later = Plan(devices=DEVICES, attacks=(), days=1, hours=2.0, start=datetime(2026, 2, 9, tzinfo=UTC))
    generate(later, made.later)
    (folder / "trainer.yaml").write_text(FIT)
    assert train(["fit", str(folder / "trainer.yaml"), "--out", str(made.run)]) == 0
    assert convert([str(made.run), "--out", str(made.bundle)]) == 0
    return made


@pytest.fixture(scope="session")
def real_captures() -> Path:
    """The folder of published captures; the test is skipped where it is absent."""
    folder = Path(os.environ.get("BOTWATCH_DATA", Path(__file__).parents[2] / "shared" / "data")) / "pcap"
    if not (folder / "attack").is_dir():
        pytest.skip(f"no published captures in {folder}; BOTWATCH_DATA names the folder that has pcap/")
    return folder


@pytest.fixture(scope="session")
def attack_frames(home: Home) -> list[Frame]:
    """Frames of a plug that scans for a minute, and of a later flood from more sources than the tables hold."""
    manifest, _, root = captures.load(home.later)
    plug = next(c for c in manifest.captures if c.device == "plug-1")
    life, mac = read(root / plug.file), captures.parse_mac(plug.mac or "")
    start = life[0][0] + 15 * 60 * S
    source = next(d[26:30] for _, _, d in life if d[6:12] == mac.to_bytes(6, "big") and d[12:14] == b"\x08\x00")
    ip = ".".join(map(str, source))
    return merged(
        [f for f in life if f[0] < start + 8 * 60 * S],
        steady(scan(1200, ip, mac=mac), start, 20),
        steady(spoofed(9000, mac=mac), start + 4 * 60 * S, 300),
    )


@pytest.fixture(scope="session")
def attack_capture(attack_frames: list[Frame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("captures") / "attack.pcap"
    path.write_bytes(pcap(attack_frames, nanoseconds=True))
    return path


@pytest.fixture
def wire() -> Iterator[Wire]:
    with laid() as made:
        yield made
