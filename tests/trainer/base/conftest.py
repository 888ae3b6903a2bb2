"""A small base: two generated homes, half an hour each."""

from pathlib import Path

import pytest

TINY = """
base: {homes: 2, seed: 7, hours: 0.5, max_rows: 1000}
split: {gap_rows: 20, gap_s: 5.0, min_rows: 20}
attack_split: {gap_rows: 5, min_rows: 20}
autoencoder: {epochs: 15, batch: 512}
classifier:
  classes: {mirai.scan: mirai, mirai.ack: mirai, mirai.syn: mirai, mirai.udp: mirai, mirai.udpplain: mirai,
            gafgyt.scan: gafgyt, gafgyt.junk: gafgyt, gafgyt.tcp: gafgyt, gafgyt.udp: gafgyt, gafgyt.combo: gafgyt}
  training: {epochs: 40, batch: 512}
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of the fit."""
    path = tmp_path_factory.mktemp("base") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of these tests, which starts empty."""
    return tmp_path_factory.mktemp("cache")
