"""A training on two processes gives the same result as on one."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Home
from trainer.__main__ import main
from trainer.fit import workers
from trainer.fit.workers import WorkersError, meet
from trainer.judge import runs


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
    """The last batch of an epoch is odd and shared unevenly: its weight must be right.

    Adam gives the same steps for gradients that are all twice as large, SGD does not.
    """
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
    output = [each.communicate(timeout=150)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0], output
    assert "worker 1 is done" in output[1]
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
        (["--workers", "127.0.0.1:1,nowhere"], "'nowhere' is not host:port"),
    ],
)
def test_invalid_addresses_of_workers_are_refused(home: Home, tmp_path: Path, capsys, words, reason):
    (tmp_path / "fit.yaml").write_text(f"data: [{{kind: captures, path: {home.captures}}}]\n")
    assert main(["fit", str(tmp_path / "fit.yaml"), "--out", str(tmp_path / "out"), *words]) == 2
    assert reason in capsys.readouterr().err


def addresses(count: int) -> list[str]:
    return [f"127.0.0.1:{port}" for port in free_ports(count)]


def started(config: Path, out: Path, team: list[str], number: int) -> subprocess.Popen[str]:
    words = ["--out", str(out), "--workers", ",".join(team), "--worker", str(number)]
    return subprocess.Popen(
        [sys.executable, "-m", "edge_agent.command", "trainer", "fit", str(config), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def test_workers_with_other_rows_do_not_train(home: Home, tmp_path: Path):
    """Nothing else would notice: each would take its share of another batch, and the loss would still fall."""
    team, both = addresses(2), []
    for number, devices in enumerate(("[]", "[plug-1]")):
        config = tmp_path / f"{number}.yaml"
        config.write_text(
            f"data: [{{kind: captures, path: {home.captures}, labels: [benign], devices: {devices}}}]\n"
            "classifier: {enabled: false}\n"
        )
        both.append(started(config, tmp_path / str(number), team, number))
    output = [each.communicate(timeout=60)[1] for each in both]
    assert [each.returncode for each in both] == [2, 2], output
    assert all("given different settings or rows" in each for each in output)


def test_a_worker_that_dies_ends_the_others_with_a_reason(home: Home, tmp_path: Path):
    config = tmp_path / "fit.yaml"
    config.write_text(
        f"data: [{{kind: captures, path: {home.captures}, labels: [benign]}}]\nclassifier: {{enabled: false}}\n"
        "autoencoder: {epochs: 100000, patience: 100000, batch: 64}\n"
    )
    team = addresses(2)
    both = [started(config, tmp_path / "out", team, number) for number in range(2)]
    for line in both[1].stderr or ():
        if (
            "epochs, loss" in line
        ):  # it trains; a death before the first step is noticed later, by TensorFlow's heartbeat
            break
    os.kill(both[1].pid, signal.SIGKILL)
    output = both[0].communicate(timeout=60)[1]
    both[1].communicate()
    assert both[0].returncode == 2, output
    assert "another worker has stopped" in output
    assert "Traceback" not in output
    assert not (tmp_path / "out" / "model.json").exists()


def test_no_worker_waits_longer_than_the_bound():
    for number, reason in ((0, "no worker connected from"), (1, "no answer from the first worker")):
        began = time.monotonic()
        with pytest.raises(WorkersError, match=reason):
            workers.join(addresses(2), number, wait_s=0.3)
        assert time.monotonic() - began < 5


def test_workers_meet_in_any_order_and_ignore_strangers():
    team = addresses(3)
    host, port = team[0].split(":")
    failed: list[WorkersError] = []

    def come(number: int) -> None:
        try:
            meet(team, number, 20)
        except WorkersError as error:
            failed.append(error)

    others = [threading.Thread(target=come, args=(number,)) for number in (2, 1)]
    others[0].start()
    first = threading.Thread(target=come, args=(0,))
    first.start()
    for stranger in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b"", b"x" * 10_000, b'[1, ["other:1"]]\n'):
        while True:
            try:
                with socket.create_connection((host, int(port)), timeout=1) as connection:
                    connection.sendall(stranger)
                break
            except ConnectionRefusedError:
                continue
            except OSError:  # hung up on
                break
    others[1].start()
    for each in (first, *others):
        each.join(20)
    assert not any(each.is_alive() for each in (first, *others))
    assert not failed


def test_a_worker_with_another_list_is_refused():
    team = addresses(2)

    def wait_in_vain() -> None:
        with pytest.raises(WorkersError, match="no worker connected"):
            meet(team, 0, 1)

    first = threading.Thread(target=wait_in_vain)
    first.start()
    with pytest.raises(WorkersError, match="other addresses"):
        meet([team[0], *addresses(1)], 1, 10)
    first.join(10)


def test_a_taken_address_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        own = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(WorkersError, match=f"cannot listen on {own}"):
            meet([own, "127.0.0.1:9"], 0, 1)
