"""The common ways in which the commands of every role refuse, exit, and print text that came from elsewhere.

A command that cannot do what it was asked for prints one line on stderr, "botwatch agent: reason". It exits with
`USAGE` when the command line, the configuration or a file named there is wrong, with `FAILED` when the work itself
failed, and with `NOT_RUNNING` when the state of a running agent was asked for and no agent runs.

What a terminal cannot print is escaped: `printable` and `json_text` escape what it would obey, and `prepare_output`
lets the streams escape what their encoding does not have.
"""

import io
import json
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TextIO

OK, FAILED, USAGE, NOT_RUNNING, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit statuses: done; the work failed; usage error; no agent runs (as `systemctl status` has it); stopped by SIGINT
(128 + 2, as shells count)."""

UNLIMITED = 100_000
"""Width of lines that nothing bounds."""

logger = logging.getLogger(__name__)

_UNWRITABLE = "stdout cannot be written: {}"


class OutputError(Exception):
    """A result that cannot be printed because stdout cannot be written."""


def refuse(prog: str, reason: object, status: int = USAGE, *, file: object = "") -> int:
    """Print on stderr why command ``prog`` ends, and return its exit ``status``.

    For an OSError the file and the system's words are printed; ``file`` names the file where the error does not.
    """
    if isinstance(reason, OSError):
        name = reason.filename or file
        reason = f"{name}: {reason.strerror or reason}" if name else reason.strerror or reason
    note(f"{prog}: {printable(reason)}")
    return status


def printable(value: object) -> str:
    """Return a value as text in which characters that a terminal would obey are escaped.

    >>> print(printable("cam\\x1b[31m entrance"))
    cam\\x1b[31m entrance
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(value))


def wrapped(text: str, width: int, indent: str = "", first: str = "") -> list[str]:
    """Return text in lines of at most ``width`` characters, escaped.

    The first line begins with ``first``, the others with ``indent``. Only a word that is longer than a line is broken.
    """
    room = max(width, len(indent) + 20)
    text = printable(text)
    return textwrap.wrap(text, room, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False) or [
        first.rstrip()
    ]


def terminal_width() -> int:
    """Return the characters of a line on stdout: those of the terminal, and `UNLIMITED` for a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNLIMITED


def say(line: object) -> None:
    """Print one line on stdout, escaped as by `printable`.

    OutputError if stdout cannot be written, BrokenPipeError if nobody reads it any more.
    """
    try:
        print(printable(line))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(_UNWRITABLE.format(error.strerror or error)) from error


def note(line: str) -> None:
    """Print one line on stderr; a stderr that cannot be written is no reason to stop."""
    with suppress(OSError):
        print(line, file=sys.stderr)


def json_text(document: Mapping[str, Any], indent: int | None = None) -> str:
    """Return a document as JSON for stdout, in ASCII if a terminal could not print it as it is."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(document, ensure_ascii=False, indent=indent, separators=separators)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        fits = False
    else:
        fits = text.replace("\n", "").isprintable()
    return text if fits else json.dumps(document, indent=indent, separators=separators)


def prepare_output() -> None:
    """Let stdout and stderr escape characters that their encoding does not have, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def end_output(prog: str, status: int, closed: int = FAILED) -> int:
    """Write what is still buffered at the end of a command, and return its exit status.

    It is `FAILED` if a command that went well could not print its result, and ``closed`` if nobody reads it any more.
    Without this Python complains at exit, and ends with a status of its own.
    """
    reason = _unwritten(sys.stdout)
    if isinstance(reason, BrokenPipeError):
        status = status or closed
    elif reason and status == OK:
        status = refuse(prog, _UNWRITABLE.format(reason.strerror or reason), FAILED)
    _unwritten(sys.stderr)
    return status


def _unwritten(stream: TextIO | None) -> OSError | None:
    """Return why a stream cannot be written, after sending the rest to the null device; None if it can."""
    if stream is None:  # closed before the command began
        return None
    try:
        stream.flush()
    except OSError as error:
        null = os.open(os.devnull, os.O_WRONLY)
        with suppress(OSError):  # a stream without a file
            os.dup2(null, stream.fileno())
        os.close(null)
        return error
    return None


class SideLines:
    """Lines on stdout that another channel delivers as well: a stdout that cannot be written does not end the work.

    The first error of each kind is logged, together with ``consequence``; ``lost`` counts the lines. With
    ``needs_reader`` a BrokenPipeError ends the work all the same: nobody else gets the lines.
    """

    def __init__(self, consequence: str, *, needs_reader: bool = False) -> None:
        self._consequence, self._needs_reader, self._logged = consequence, needs_reader, ""
        self.lost = 0

    def print(self, line: str) -> None:
        """Print one line at once."""
        try:
            print(line, flush=True)
        except OSError as error:
            if self._needs_reader and isinstance(error, BrokenPipeError):
                raise
            self.lost += 1
            reason = error.strerror or str(error)
            if reason != self._logged:
                logger.warning("stdout cannot be written (%s): %s", reason, self._consequence)
            self._logged = reason

    def close(self) -> None:
        """Drop what stdout did not take, so that the end of the command does not report it once more."""
        if self.lost:
            _unwritten(sys.stdout)


class LogLines(logging.StreamHandler[TextIO]):
    """The log on stderr; ``lost`` counts the lines that could not be written."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.lost = 0

    def handleError(self, record: logging.LogRecord) -> None:
        """Count a line that the stream did not take; any other error is a defect, and shown."""
        if isinstance(sys.exc_info()[1], OSError):
            self.lost += 1
        else:
            super().handleError(record)
