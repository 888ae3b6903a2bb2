"""One training on two processes gives what one process gives."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Home
from trainer import runs
from trainer.__main__ import main


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_two_workers_on_loopback_reach_the_loss_of_one(home: Home, tmp_path: Path, optimiser: str):
    """The last batch of an epoch is odd and shared unevenly: its weight must be right. Adam does not mind gradients
    that are all twice as large, SGD does."""
    config = tmp_path / "fit.yaml"
    config.write_text(
        f"data: [{{kind: captures, path: {home.captures}, labels: [benign]}}]\n"
        f"autoencoder: {{epochs: 6, batch: 333, optimiser: {optimiser}}}\nclassifier: {{enabled: false}}\n"
    )
    addresses = ",".join(f"127.0.0.1:{port}" for port in free_ports(2))
    command = [sys.executable, "-m", "edge_agent.command", "trainer", "fit", str(config)]
    both = [
        subprocess.Popen(
            [*command, "--out", str(tmp_path / "two"), "--workers", addresses, "--worker", str(n)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for n in range(2)
    ]
    said = [each.communicate(timeout=150)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert "worker 1 is done" in said[1]
    assert main(["fit", str(config), "--out", str(tmp_path / "one")]) == 0
    one, two = (json.loads((tmp_path / name / "history.json").read_text())["autoencoder"] for name in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], rel=0.01)
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=0.01)
    alone, shared = runs.load(tmp_path / "one"), runs.load(tmp_path / "two")
    assert shared.decision.full.tau == pytest.approx(alone.decision.full.tau, rel=0.02)
    assert (np.asarray(shared.scaler.mean) == np.asarray(alone.scaler.mean)).all()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--workers", "127.0.0.1:1"], "two addresses or more"),
        (["--workers", "127.0.0.1:1,127.0.0.1:1"], "all different"),
        (["--workers", "127.0.0.1:1,127.0.0.1:2", "--worker", "2"], "--worker must be 0 to 1, is 2"),
        (["--workers", "127.0.0.1:1,nowhere"], "'nowhere' is no host:port"),
    ],
)
def test_workers_that_cannot_be_are_refused(home: Home, tmp_path: Path, capsys, words, reason):
    (tmp_path / "fit.yaml").write_text(f"data: [{{kind: captures, path: {home.captures}}}]\n")
    assert main(["fit", str(tmp_path / "fit.yaml"), "--out", str(tmp_path / "out"), *words]) == 2
    assert reason in capsys.readouterr().err
