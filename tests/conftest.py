"""What tests of several packages share: a small home, fitted and converted once, since TensorFlow takes its seconds."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

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
    """Captures of a generated home, a model of it and its bundle."""

    captures: Path  # fitted on; plug-1 is infected there
    run: Path
    bundle: Path  # int8, four attack classes
    later: Path  # the same devices a month later: two hours of benign traffic each


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Generated, fitted and converted by the commands a user has."""
    from converter.__main__ import main as convert
    from trainer.__main__ import main as train
    from trainer.generate import Plan, generate

    folder = tmp_path_factory.mktemp("home")
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
    """The folder of captures that other people published; the test is skipped where it is absent."""
    folder = Path(os.environ.get("BOTWATCH_DATA", Path(__file__).parents[2] / "shared" / "data")) / "pcap"
    if not (folder / "attack").is_dir():
        pytest.skip(f"no published captures in {folder}; BOTWATCH_DATA names the folder that has pcap/")
    return folder
