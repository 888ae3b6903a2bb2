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
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TextIO

from edge_agent.contract.outlet import Outlet

OK, FAILED, USAGE, NOT_RUNNING, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit statuses: done; the work failed; usage error; no agent runs (as `systemctl status` has it); stopped by SIGINT
(128 + 2, as shells count)."""

logger = logging.getLogger(__name__)

_UNWRITABLE = "stdout cannot be written: {}"
_UNREAD = "nobody reads it"
_LAST_LINES_S = 1.0  # longest wait at the end for a stream whose reader has stopped reading


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
    """Print one line on stderr, behind those of the log; a stderr that cannot be written is no reason to stop."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogLines):
            handler.print(line)
            return
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

    Nor does one that nobody reads hold it up: see `Outlet`. The first error of each kind is logged, together with
    ``consequence``; ``lost`` counts the lines. With ``needs_reader`` nobody else gets the lines: then the work goes as
    fast as they are read, and a BrokenPipeError ends it.
    """

    def __init__(self, consequence: str, *, needs_reader: bool = False) -> None:
        self._consequence, self._logged = consequence, ""
        self._outlet = None if needs_reader or sys.stdout is None else Outlet(sys.stdout, self._failed)
        self.lost = 0

    def print(self, line: str) -> None:
        """Print one line at once."""
        if self._outlet:
            if not self._outlet.print(line):
                self._lose(1, _UNREAD)
            return
        try:
            print(line, flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        self._lose(1, error.strerror or str(error))

    def _lose(self, lines: int, reason: str) -> None:
        self.lost += lines
        if reason != self._logged:
            logger.warning("stdout cannot be written (%s): %s", reason, self._consequence)
        self._logged = reason

    def close(self) -> None:
        """Wait shortly for stdout to take the last lines, and drop those that it did not take.

        So the end of the command does not report them once more.
        """
        outlet, self._outlet = self._outlet, None
        if outlet and (left := outlet.close(_LAST_LINES_S)):
            self._lose(left, _UNREAD)
        if self.lost:
            _unwritten(sys.stdout)


class LogLines(logging.StreamHandler[TextIO]):
    """The log on stderr; ``lost`` counts the lines that could not be written, or that nobody read (see `Outlet`)."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._outlet = None if sys.stderr is None else Outlet(sys.stderr, self._failed)
        self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; one that cannot be formatted is a defect, and shown."""
        try:
            line = self.format(record)
        except (TypeError, ValueError, LookupError, AttributeError):
            self.handleError(record)
        else:
            self.print(line)

    def print(self, line: str) -> None:
        """Write a line among those of the log."""
        if self._outlet and not self._outlet.print(line):
            self.lost += 1

    def _failed(self, _error: OSError) -> None:
        self.lost += 1

    def close(self) -> None:
        """Wait shortly for stderr to take the last lines."""
        outlet, self._outlet = self._outlet, None
        if outlet:
            self.lost += outlet.close(_LAST_LINES_S)
        super().close()
