"""A real terminal for tests: a command runs in a pseudo-terminal of some width, and what it wrote comes back."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios


def in_terminal(columns: int, *words: object, **environment: str) -> str:
    """Return what `botwatch` with these words writes to a terminal with this many columns, stderr included."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    inherited = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR", "TZ")}
    command = [sys.executable, "-m", "edge_agent.command", *map(str, words)]
    env = inherited | {"TERM": "xterm", "TZ": "UTC"} | environment
    process = subprocess.Popen(command, stdout=slave, stderr=slave, stdin=slave, env=env)
    os.close(slave)
    written = b""
    while True:
        try:
            part = os.read(master, 65_536)
        except OSError:  # Linux says so when nobody writes any more
            break
        if not part:
            break
        written += part
    os.close(master)
    process.wait(30)
    return written.decode().replace("\r\n", "\n")


def plain(text: str) -> str:
    """Return text without the codes of colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)
