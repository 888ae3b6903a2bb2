"""The service unit: systemd itself finds no fault with it, rates it as hardly exposed, and the agent can live in it."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent import service
from edge_agent.contract import credentials
from tests.conftest import Home

UNITS = Path(__file__).parents[1] / "systemd"
UNIT = "edge-agent.service"

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is there: what it starts is only installed on gateways."""
    text = (UNITS / UNIT).read_text()
    assert text.count("ExecStart=/usr/lib/botwatch/bin/botwatch agent run") == 1
    path = tmp_path / UNIT
    path.write_text(text.replace("/usr/lib/botwatch/bin/botwatch", "/bin/true"))
    return path


def analyze(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False, timeout=60)


@needs_systemd
def test_systemd_verifies_it_without_a_word(unit: Path) -> None:
    done = analyze("verify", "--recursive-errors=no", str(unit))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@needs_systemd
def test_its_exposure_is_two_or_less(unit: Path) -> None:
    done = analyze("security", "--offline=true", "--threshold=20", str(unit))
    rating = re.search(r"Overall exposure level for .*: ([\d.]+)", done.stdout)
    assert rating, done.stdout + done.stderr
    assert float(rating[1]) <= 2.0
    assert done.returncode == 0


@needs_systemd
def test_keys_that_an_older_systemd_does_not_know_are_in_a_drop_in() -> None:
    newer = (UNITS / f"{UNIT}.d" / "restart.conf").read_text()
    assert {"RestartSec", "RestartSteps", "RestartMaxDelaySec"} == set(re.findall(r"^(\w+)=", newer, re.MULTILINE))
    assert "RestartSteps" not in (UNITS / UNIT).read_text()


def test_systemd_never_gives_up_and_a_wrong_configuration_is_not_tried_every_few_seconds() -> None:
    """With any pause, a bound on restarts ends monitoring for good after a cause that lasts longer at boot."""
    unit = (UNITS / UNIT).read_text()
    assert re.search("^StartLimitIntervalSec=0$", unit, re.MULTILINE)
    assert re.search("^Restart=always$", unit, re.MULTILINE)
    assert "RestartPreventExitStatus" not in unit
    pause = re.search(r"^RestartSec=(\d+)$", unit, re.MULTILINE)
    assert pause
    assert 15 <= int(pause[1]) <= 30
    assert int(setting("RestartMaxDelaySec")) <= 60


def setting(name: str) -> str:
    """Return the value that a key of the installed unit has: the last one counts, also over drop-ins."""
    files = [UNITS / UNIT, *sorted((UNITS / f"{UNIT}.d").glob("*.conf"))]
    values = re.findall(rf"^{name}=(.*)$", "\n".join(file.read_text() for file in files), re.MULTILINE)
    return values[-1] if values else ""


def test_the_unit_loads_the_credentials_that_the_agent_looks_for() -> None:
    assert setting("LoadCredential") == f"{credentials.ID}:{credentials.FOLDER}"


def test_a_start_waits_for_no_network() -> None:
    """An uplink that is down must not keep the LAN side from being monitored: the agent waits for its broker itself."""
    assert "network-online" not in re.sub("^#.*", "", (UNITS / UNIT).read_text(), flags=re.MULTILINE)


def test_the_log_of_the_service_is_in_the_journal_and_its_alerts_are_not() -> None:
    out = setting("StandardOutput") or "journal"
    err = setting("StandardError") or "inherit"
    assert (out if err == "inherit" else err) == "journal"  # systemd.exec(5): stderr inherits from stdout by default
    assert out == "null"


def test_a_reload_of_the_unit_sends_a_hangup_without_any_program_but_the_shell(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A minimal Debian has no kill(1), which is in procps."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a child inherits that it is ignored, as under nohup
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, before))
    words = [word.replace("$$", "$") for word in shlex.split(setting("ExecReload"))]  # systemd.service(5): $$ is a $
    assert words[0] == "/bin/sh"
    with subprocess.Popen(["sleep", "60"]) as agent:
        done = subprocess.run(
            words,
            env={"MAINPID": str(agent.pid), "PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert agent.wait(10) == -signal.SIGHUP


def test_the_loop_notifies_the_service_manager_that_it_is_alive(tmp_path, monkeypatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(1)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "60000000")
        watched = service.ServiceNotifier()
        watched.ready()
        for now in (1.0, 2.0, 15.9, 16.0, 17.0):
            watched.beat(now)
        watched.send("STOPPING=1")
        heard = [manager.recv(100).decode() for _ in range(4)]
    assert heard == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"]


def test_a_manager_that_does_not_listen_is_no_reason_to_stop(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "absent"))
    service.ServiceNotifier().ready()
    assert "systemd could not be notified" in caplog.text


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="prctl numbers")
def test_the_agent_needs_no_memory_that_is_written_and_executed(home: Home, attack_capture: Path) -> None:
    """MemoryDenyWriteExecute, by the kernel's own switch (PR_SET_MDWE, Linux 6.3): models run without such pages."""
    code = (
        "import ctypes, sys\n"
        "if ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0):\n"
        "    sys.exit(77)\n"
        "from edge_agent.__main__ import main\n"
        f"sys.exit(main(['replay', {str(attack_capture)!r}, '--bundle', {str(home.bundle)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert done.returncode == 0, done.stderr
    assert "Mirai scan from" in done.stdout
