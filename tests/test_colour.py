"""Colour in a real terminal: there is some, none with NO_COLOR, and nothing but text in a terminal that is dumb."""

import os
import pty
import re
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import Home

COLOUR = re.compile(rb"\x1b\[[0-9;]*(3[0-8]|4[0-8]|9[0-7])[0-9;]*m")


def shown(folder: Path, words: list[str], **environment: str) -> bytes:
    """Run a command in a terminal and return everything that it writes there."""
    child, terminal = pty.fork()
    if not child:
        os.chdir(folder)
        kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLORTERM")}
        os.execve(sys.executable, [sys.executable, "-m", "edge_agent.command", *words], kept | environment)
    written = b""
    with suppress(OSError):  # the terminal's end
        while part := os.read(terminal, 65_536):
            written += part
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (0, 1)
    return written


@pytest.mark.parametrize(
    "line", ["agent replay {capture} --bundle bundle", "trainer evaluate bundle later --out judged"]
)
def test_no_color_and_a_dumb_terminal_are_honoured(line: str, home: Home, tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to(home.bundle)
    (tmp_path / "later").symlink_to(home.later)
    (capture, *_) = sorted(home.later.rglob("*.pcap*"))
    words = line.format(capture=capture).split()
    assert COLOUR.search(shown(tmp_path, words, TERM="xterm-256color"))
    assert not COLOUR.search(shown(tmp_path, words, TERM="xterm-256color", NO_COLOR="1"))
    assert b"\x1b" not in shown(tmp_path, words, TERM="dumb")
