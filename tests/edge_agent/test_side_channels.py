"""A stdout or a log that cannot be written, or has another encoding, costs no alert and ends no agent."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from edge_agent.contract import captures
from edge_agent.delivery.outbox import Outbox
from edge_agent.state import State
from tests.broker import free_port, wait_until
from tests.conftest import Home
from tests.counted import closing_counts
from tests.live import agent, status
from tests.netns import MAC, ROOT
from tests.traffic import scan, steady

NAME = "Küche 📷"


def waiting(path: Path) -> int:
    """Return how many alerts are in the outbox."""
    with closing(State(path)) as state:
        return Outbox(state).depth()


@contextmanager
def closed_pipe() -> Iterator[int]:
    """A pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)


@contextmanager
def full_disk() -> Iterator[int]:
    with open("/dev/full", "wb") as file:
        yield file.fileno()


BROKEN = {"Broken pipe": closed_pipe, "No space left on device": full_disk}


@pytest.fixture
def config(home: Home, tmp_path: Path) -> Path:
    """Of a gateway without a broker, on which a terminal may not be able to print the name of the device."""
    file, mac = tmp_path / "agent.yaml", captures.load(home.later)[0].captures[0].mac
    file.write_text(
        f'bundle: {home.bundle}\nnames: {{"{mac}": "{NAME}"}}\noutbox: {{path: {tmp_path}/box.sqlite}}\n'
        f"evidence: {{path: null}}\nbroker: {{host: 127.0.0.1, port: {free_port()}}}\n",
        encoding="utf-8",
    )
    return file


def botwatch(
    config: Path, *words: object, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE, **env: str
) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "edge_agent.command", "agent", *map(str, words), "--config", str(config)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUTF8"} | env
    return subprocess.run(command, stdout=stdout, stderr=stderr, env=environment, cwd=ROOT, check=False, timeout=120)


def no_broker(folder: Path) -> tuple[str, ...]:
    """Return the words for a replay that also publishes, to a broker that is not there."""
    return "--broker", f"127.0.0.1:{free_port()}", "--wait", "0", "--outbox", str(folder / "box.sqlite")


@pytest.mark.parametrize("reason", BROKEN)
def test_a_replay_goes_on_when_stdout_cannot_be_written(config, attack_capture, tmp_path, reason):
    with BROKEN[reason]() as out:
        done = botwatch(config, "replay", attack_capture, *no_broker(tmp_path), stdout=out)
    said = done.stderr.decode()
    alerts = waiting(tmp_path / "box.sqlite")
    assert alerts >= 4
    assert closing_counts(said)["alerts_unprinted"] == alerts
    assert said.count("stdout cannot be written") == 1
    assert reason in said
    assert "Traceback" not in said
    assert "Exception" not in said
    assert done.returncode == 1, said  # because of the broker only
    assert f"{alerts} alerts wait in {tmp_path / 'box.sqlite'}" in said.splitlines()[-1]


def test_a_replay_that_only_prints_fails_when_the_disk_is_full(config, attack_capture):
    with full_disk() as out:
        done = botwatch(config, "replay", attack_capture, stdout=out)
    said = done.stderr.decode()
    assert done.returncode == 1
    assert said.count("stdout cannot be written") == 1
    assert closing_counts(said)["alerts_unprinted"] > 0
    assert "Exception" not in said


@pytest.mark.parametrize("reason", BROKEN)
def test_a_log_that_cannot_be_written_ends_nothing(config, attack_capture, tmp_path, reason):
    with BROKEN[reason]() as err:
        done = botwatch(config, "replay", attack_capture, *no_broker(tmp_path), stderr=err)
    assert done.returncode == 1  # because of the broker only
    assert waiting(tmp_path / "box.sqlite") == len(done.stdout.splitlines()) >= 4


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "utf-8"},
    ],
    ids=["latin-1", "C", "utf-8"],
)
def test_what_the_encoding_does_not_have_is_escaped_and_stays_json(config, attack_capture, tmp_path, env):
    done = botwatch(config, "replay", "--json", attack_capture, *no_broker(tmp_path), **env)
    assert b"Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert waiting(tmp_path / "box.sqlite") == len(lines) >= 4
    names = {json.loads(line)["alert"]["context"]["botwatch"]["device"]["name"] for line in lines}
    assert NAME in names
    assert (NAME.encode() in done.stdout) == (env.get("PYTHONIOENCODING") == "utf-8")


@pytest.mark.parametrize("reason", BROKEN)
def test_a_test_alert_is_in_the_outbox_though_its_steps_cannot_be_printed(config, tmp_path, reason):
    with BROKEN[reason]() as out:
        done = botwatch(config, "test-alert", "--wait", "0.5", stdout=out)
    said = done.stderr.decode()
    assert waiting(tmp_path / "box.sqlite") == 2
    assert said.count("stdout cannot be written") == 1
    assert "the alert waits in" in said.splitlines()[-1]
    assert "Exception" not in said
    assert done.returncode == 1  # because of the broker only


def test_a_result_that_cannot_be_printed_is_a_failure_in_one_line(config):
    botwatch(config, "test-alert", "--wait", "0")
    for words in (("status",), ("status", "--json"), ("check",)):
        with full_disk() as out:
            done = botwatch(config, *words, stdout=out)
        assert done.returncode == 1
        assert b"Exception" not in done.stderr
        assert b"Traceback" not in done.stderr
    with full_disk() as out:
        said = botwatch(config, "status", stdout=out).stderr.decode()
    assert said == "botwatch agent: stdout cannot be written: No space left on device\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_live_agent_goes_on_when_nobody_reads_what_it_writes(wire, home, tmp_path, stream):
    """A pipe that is full: whoever writes to it waits until somebody reads."""
    path = tmp_path / ("out" if stream == "stdout" else "err")
    other = tmp_path / ("err" if stream == "stdout" else "out")
    given = f"outbox: {{path: {tmp_path}/box.sqlite}}\nhealth_s: 1\n"
    given += f"broker: {{host: 127.0.0.1, port: {free_port()}}}\n"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    filler = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        with agent(wire, home, tmp_path, config=given, ready=(tmp_path / "box.sqlite").exists) as process:
            wait_until(lambda: fill(filler))
            wire.send(list(steady(scan(600, "192.168.1.57", mac=MAC), 0, 20)), tmp_path)
            wait_until(lambda: waiting(tmp_path / "box.sqlite") >= 1, 60)
            assert process.poll() is None
            assert status(tmp_path)["health"]["counters"]["alerts_new"] >= 1  # its loop goes round
    finally:
        os.close(reader)
        os.close(filler)
    if stream == "stdout":
        assert other.read_text().count("stdout cannot be written (nobody reads it)") == 1


def fill(pipe: int) -> bool:
    """Return True once a pipe takes no more."""
    try:
        while True:
            os.write(pipe, bytes(65_536))
    except BlockingIOError:
        return True


@pytest.mark.parametrize("reason", BROKEN)
def test_a_live_agent_goes_on_when_stdout_cannot_be_written(wire, home, tmp_path, monkeypatch, reason):
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    out, reader = tmp_path / "out", -1
    if reason == "Broken pipe":
        os.mkfifo(out)
        reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
    else:
        out.symlink_to("/dev/full")
    given = f"outbox: {{path: {tmp_path}/box.sqlite}}\nbroker: {{host: 127.0.0.1, port: {free_port()}}}\n"
    with agent(wire, home, tmp_path, config=given) as process:
        if reader >= 0:
            os.close(reader)

        def unprinted() -> int:
            return int(status(tmp_path)["health"]["counters"].get("alerts_unprinted", 0))

        wire.send(list(steady(scan(600, "192.168.1.57", mac=MAC), 0, 20)), tmp_path)
        wait_until(lambda: unprinted() > 0, 60)
        assert process.poll() is None
    said = (tmp_path / "err").read_text()
    assert said.count("stdout cannot be written") == 1
    assert f"({reason})" in said
    assert "Traceback" not in said
    assert waiting(tmp_path / "box.sqlite") >= 2
