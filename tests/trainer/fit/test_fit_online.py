"""Training on traffic as it comes: bounded memory, resumable, and in the end a run like any other."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from converter.__main__ import main as convert
from edge_agent.contract import bundle as bundles
from edge_agent.contract import scaling
from edge_agent.detection.detector import Detector
from tests.broker import wait_until
from tests.conftest import Home
from trainer.__main__ import main
from trainer.config import Config, DatasetEntry, Scaling
from trainer.fit import fit_online
from trainer.fit.fit_online import Learner, StreamError
from trainer.fit.running_scaler import RunningScaler
from trainer.judge import runs

CONFIG = Config((DatasetEntry("captures", Path("x")),))


@pytest.fixture(scope="module")
def days(home: Home) -> list[str]:
    """Benign captures of two devices."""
    return [str(path) for path in sorted(home.captures.rglob("day*.pcap"))]


@pytest.fixture(scope="module")
def learnt(days: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stream") / "run"
    assert main(["stream", *days, "--out", str(out), "--generated"]) == 0
    return out


def test_the_running_scaler_is_that_of_all_rows():
    rows = np.random.default_rng(1).lognormal(3, 2, (5000, 6)).astype(np.float32)
    rows[:, 3] = 5.0
    running = RunningScaler(Scaling(squash="log1p", floor=0.1, clip=10.0), 6)
    for at in range(0, 5000, 333):
        running.add(rows[at : at + 333])
    expected = scaling.fit(rows)
    assert running.scaler().mean == pytest.approx(expected.mean)
    assert running.scaler().scale == pytest.approx(expected.scale)


def test_a_stream_becomes_a_run_that_can_be_deployed(learnt, tmp_path):
    run = runs.load(learnt)
    assert {str(part) for part in np.unique(run.part)} == {"train", "optimise", "test"}
    assert run.decision.full.rows == len(run.rows("optimise"))
    assert convert([str(learnt), "--out", str(tmp_path / "bundle")]) == 0
    bundle = bundles.load(tmp_path / "bundle")
    assert bundle.manifest.generated
    Detector(bundle)


def test_held_out_rows_are_reconstructed(learnt):
    """Held-out rows are rebuilt far better than by their mean, whose error is about 1 by definition of z."""
    run = runs.load(learnt)
    z = run.scaler.z(run.values[run.rows("test")])
    inputs = run.scaler.network_input(z)
    error = ((inputs - run.autoencoder()(inputs)) ** 2).mean()
    assert error < 0.7 * (inputs**2).mean()


def test_rows_that_set_limits_were_not_trained_on(learnt):
    run = runs.load(learnt)
    held = run.values[np.concatenate([run.rows("optimise"), run.rows("test")])]
    trained = {row.tobytes() for row in run.values[run.rows("train")]}
    assert not any(row.tobytes() in trained for row in held)


def test_the_rows_in_memory_are_bounded():
    learner, rng = Learner(CONFIG, sample=1000), np.random.default_rng(1)
    meta = np.zeros(4096, dtype=[("t_ns", "<i8"), ("src_mac", "<u8")])
    for _ in range(20):
        learner.see(rng.gamma(2.0, 10.0, (4096, 140)).astype(np.float32), meta)
    assert learner.seen == 81_920
    assert 500 < learner.sampled() <= 3000
    assert learner.waiting() < learner.config.autoencoder.batch


def test_a_training_that_was_killed_resumes_with_the_same_result(days, learnt, tmp_path):
    """SIGKILL comes at any time after the first checkpoint; the final weights are the same."""
    command = [sys.executable, "-m", "edge_agent.command", "trainer", "stream", *days, "--generated", "--every", "3000"]
    first = subprocess.Popen([*command, "--out", str(tmp_path / "run")], stdout=subprocess.DEVNULL)
    checkpoint = tmp_path / "run" / fit_online.CHECKPOINT
    wait_until(lambda: checkpoint.is_file() or first.poll() is not None, 60)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() in (-signal.SIGKILL, 0)
    done = subprocess.run([*command, "--out", str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resuming after" in done.stdout
    one, other = (np.load(path / fit_online.CHECKPOINT) for path in (learnt, tmp_path / "run"))
    for name in one.files:
        if name.startswith("weight"):
            assert other[name] == pytest.approx(one[name], abs=1e-5), name
    assert (one["numbers"] == other["numbers"]).all()


def test_more_captures_resume_from_the_checkpoint(days, tmp_path, capsys):
    assert main(["stream", *days[:-1], "--out", str(tmp_path / "run"), "--generated"]) == 0
    capsys.readouterr()
    assert main(["stream", *days, "--out", str(tmp_path / "run"), "--generated"]) == 0
    assert "resuming after" in capsys.readouterr().out


def test_a_checkpoint_of_something_else_is_refused(days, learnt, tmp_path, capsys):
    learner = Learner(CONFIG)
    learner.save(tmp_path / "c.npz", ["one"])
    with pytest.raises(StreamError, match="has learnt from one"):
        Learner(CONFIG).load(tmp_path / "c.npz", ["two"])
    with pytest.raises(StreamError, match="has other columns"):
        Learner(Config(CONFIG.data, drop_columns=("HH_jit",))).load(tmp_path / "c.npz", ["one"])
    (tmp_path / "c.npz").write_bytes(b"PK")
    with pytest.raises(StreamError, match="not a checkpoint of this version"):
        Learner(CONFIG).load(tmp_path / "c.npz", ["one"])


@pytest.mark.parametrize(
    ("words", "reason"), [(["nowhere.pcap"], "nowhere.pcap"), (["{day}", "--every", "0"], "--every must be at least 1")]
)
def test_bad_input_is_named(days, tmp_path, capsys, words, reason):
    assert main(["stream", *(w.format(day=days[0]) for w in words), "--out", str(tmp_path / "run")]) == 2
    assert reason in capsys.readouterr().err
