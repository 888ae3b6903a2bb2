"""Stderr has our lines only: no command lets a library write a notice about itself there, and none hides an error."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.contract.cli import without_notices
from edge_agent.contract.counters import COUNTERS
from tests.broker import free_port, wait_until
from tests.conftest import FIT, Home

BARE = {key: value for key, value in os.environ.items() if not key.startswith(("TF_", "ABSL_", "GLOG_"))}
"""The environment of somebody who has set nothing for TensorFlow."""

OURS = re.compile(
    r"botwatch [a-z]+( [a-z-]+)?: "
    r"|(INFO|WARNING|ERROR) (edge_agent|collector|trainer)"
    r"|[\d-]+ [\d:,]+ (INFO|WARNING) collector"
    r"|[a-z0-9, ]+: [\d,]+(/[\d,]+)? ?"  # progress
    r"|[\d,]+ packets in |no alerts$"  # the end of a replay, and its counters
    rf"| *[\d,]+  ({'|'.join(re.escape(counter.words) for known in COUNTERS.values() for counter in known.values())})$"
)


def botwatch(*words: str, folder: Path) -> tuple[int, list[str]]:
    """Run a command and return its exit status and the lines on stderr that are not ours."""
    command = [sys.executable, "-m", "edge_agent.command", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=BARE, cwd=folder, timeout=300)
    return done.returncode, strange(done.stderr)


def strange(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if not OURS.match(line)]


@pytest.fixture
def here(home: Home, tmp_path: Path) -> Path:
    """A folder with the home's files under short names, where commands may write."""
    for name, path in (("captures", home.captures), ("bundle", home.bundle), ("later", home.later)):
        (tmp_path / name).symlink_to(path)
    subprocess.run(["cp", "-r", str(home.run), str(tmp_path / "run")], check=True)
    (tmp_path / "fit.yaml").write_text(FIT)
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "trainer fit fit.yaml --data captures --out again",
        "converter run --out bundle-again",
        "trainer evaluate bundle later --out judged",
        "trainer report run --no-compute",
        "agent check --bundle bundle --broker 127.0.0.1:{port}",
        "agent support --bundle bundle --out support.tar.gz",
        "collector alerts --db none.sqlite",
    ],
)
def test_a_command_writes_only_its_own_lines_to_stderr(line: str, here: Path) -> None:
    status, lines = botwatch(*line.format(port=free_port()).split(), folder=here)
    assert lines == []
    assert status in (0, 1)  # 1: check has found something, or there is no database


def test_a_replay_writes_only_its_own_lines_to_stderr(here: Path, home: Home) -> None:
    (capture, *_) = sorted(home.later.rglob("*.pcap*"))
    assert botwatch("agent", "replay", str(capture), "--bundle", "bundle", folder=here) == (0, [])


@pytest.mark.skipif(os.geteuid() != 0, reason="captures on the loopback interface, which needs root")
def test_a_live_agent_writes_only_its_own_lines_to_stderr(here: Path) -> None:
    command = [sys.executable, "-m", "edge_agent.command", "agent", "run", "--interface", "lo", "--no-broker"]
    errors = here / "errors"
    with errors.open("w") as stderr:
        process = subprocess.Popen([*command, "--bundle", "bundle"], stderr=stderr, env=BARE, cwd=here)
    try:
        wait_until(lambda: "capturing on lo" in errors.read_text(), 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert strange(errors.read_text()) == []
    assert "botwatch agent: this model was trained on generated traffic\n" in errors.read_text()


def test_notices_are_kept_off_stderr_and_nothing_else_is(capfd: pytest.CaptureFixture[str]) -> None:
    written = (
        b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nERROR: tensor 3 is broken\n"
        b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
        b"I0000 00:00:1795843990.27 20131 port.cc:153] oneDNN custom operations are on.\n"
        b"E0000 00:00:1795843990.28 20131 cuda.cc:1] no such device\nINFO edge_agent.service: a line of ours\nlast"
    )

    def fail() -> None:
        with without_notices():
            os.write(2, written)
            raise ValueError("the block's own error")

    with pytest.raises(ValueError, match="the block's own"):
        fail()
    assert capfd.readouterr().err == (
        "ERROR: tensor 3 is broken\nE0000 00:00:1795843990.28 20131 cuda.cc:1] no such device\n"
        "INFO edge_agent.service: a line of ours\nlast"
    )


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full"])
def test_a_stderr_that_is_closed_or_full_is_no_obstacle(redirect: str, home: Home) -> None:
    program = "import sys\nfrom edge_agent.detection.runtime import Model\nprint(Model(sys.argv[1]).inputs)"
    command = [f'exec "$@" {redirect}', "sh", sys.executable, "-c", program, str(home.bundle / "autoencoder.tflite")]
    done = subprocess.run(["sh", "-c", *command], stdout=subprocess.PIPE, env=BARE, check=True, timeout=60)
    assert int(done.stdout) > 0
