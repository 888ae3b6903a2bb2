"""Closed, full or unread outputs, and arguments in another encoding, end no command with a traceback."""

import subprocess
import sys

import pytest

from collector.store import AlertStore

PROGRAM = f"{sys.executable} -m edge_agent.command"


def ran(line):
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, errors="replace", timeout=60)


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", "| true"])
@pytest.mark.parametrize(
    "words", ["--version", "--help", "agent --version", "agent status", "agent check", "agent mute all"]
)
def test_an_output_that_is_not_there_is_no_defect(tmp_path, words, redirection):
    (tmp_path / "agent.yaml").write_text(f"broker: {{port: 1}}\noutbox: {{path: {tmp_path}/s.sqlite}}\n")
    config = f"--config {tmp_path}/agent.yaml" if words.split()[-1] in ("status", "check", "all") else ""
    done = ran(f"{PROGRAM} {words} {config} {redirection}")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        r"collector alerts --db $'\xff'",
        r"collector alerts --db c.sqlite --device $'\xff'",
        r"agent run --no-broker --interface $'a\xff'",
        r"agent run --no-broker --interface $'a\nb'",
    ],
)
def test_an_argument_in_another_encoding_is_refused_in_one_line(tmp_path, words):
    AlertStore(str(tmp_path / "c.sqlite")).close()
    done = ran(f"{PROGRAM} {words.replace('c.sqlite', str(tmp_path / 'c.sqlite'))}")
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1
