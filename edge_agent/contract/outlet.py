"""Lines to a stream whose reader may stop reading: a thread writes them, so that nobody else waits for it.

A pipe takes no more when nobody reads it, a terminal when somebody has pressed Ctrl-S. Whoever wrote there would stand
still with it. Here only the thread does; what it cannot write meanwhile is dropped beyond the bounds.
"""

import io
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

MAX_LINES = 1000
"""Lines that wait at most until the stream takes them."""

MAX_BYTES = 4 << 20
"""Bytes of these lines."""

BURST_S = 0.25
"""Longest time in seconds that a writer waits for room, once until the stream goes on."""


class Outlet:
    """The lines on their way to ``stream``; ``failed(error)`` is called, in the thread, for each that it did not take.

    A stream that always takes lines or fails at once (a file, one of a test) is written directly.
    """

    def __init__(self, stream: TextIO, failed: Callable[[OSError], None]) -> None:
        self._stream, self._failed = stream, failed
        self._file = _slow(stream)
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._writing = self._stalled = self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def print(self, line: str) -> bool:
        """Write a line; False if it is dropped, because the stream has not taken those before it for too long."""
        if self._file is None:
            try:
                print(line, file=self._stream, flush=True)
            except OSError as error:
                self._failed(error)
            return True
        content = (line + "\n").encode(self._stream.encoding or "utf-8", self._stream.errors or "backslashreplace")
        with self._changed:
            if not self._room(content) and not self._stalled:
                self._stalled = not self._changed.wait_for(lambda: self._room(content), BURST_S)
            if not self._room(content):
                return False
            self._stalled = False
            self._lines.append(content)
            self._bytes += len(content)
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="lines", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return True

    def close(self, timeout_s: float) -> int:
        """Wait until the stream has taken all lines, at most ``timeout_s``, and end; return how many it has not."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._writing, timeout_s)
            left, self._closed = len(self._lines) + self._writing, True
            self._lines.clear()
            self._changed.notify_all()
            return left

    def _room(self, content: bytes) -> bool:
        return not self._closed and len(self._lines) < MAX_LINES and self._bytes + len(content) <= MAX_BYTES

    def _write(self) -> None:
        assert self._file is not None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closed)
                if self._closed:
                    return
                content, self._writing = self._lines.popleft(), True
                self._bytes -= len(content)
                self._changed.notify_all()
            try:
                while content:
                    content = content[os.write(self._file, content) :]
            except BlockingIOError:  # somebody who shares the stream does not want to wait for it
                time.sleep(BURST_S)
                with self._changed:
                    if not self._closed:
                        self._lines.appendleft(content)
                        self._bytes += len(content)
            except OSError as error:
                if not self._closed:
                    self._failed(error)
            with self._changed:
                self._writing = False
                self._changed.notify_all()


def _slow(stream: TextIO) -> int | None:
    """Return the file descriptor of a stream that may keep a writer waiting, None for any other."""
    try:
        stream.flush()
        file = stream.fileno()
        mode = os.fstat(file).st_mode
    except (OSError, ValueError, AttributeError, io.UnsupportedOperation):  # closed, or of a test
        return None
    return file if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode) else None
