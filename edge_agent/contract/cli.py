"""The common ways in which the commands of every role refuse, exit, and print text that came from elsewhere.

A command that cannot do what it was asked for prints one line on stderr, "botwatch agent: reason". It exits with
`USAGE` when the command line, the configuration or a file named there is wrong, with `FAILED` when the work itself
failed, and with `NOT_RUNNING` when the state of a running agent was asked for and no agent runs.

What a terminal cannot print is escaped: `printable` and `json_text` escape what it would obey, and `prepare_output`
lets the streams escape what their encoding does not have.

`Parser` reads the command lines of all roles, so that all of them refuse and explain in the same way.
"""

import argparse
import difflib
import io
import json
import logging
import os
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO

from edge_agent.contract.outlet import Outlet

OK, FAILED, USAGE, NOT_RUNNING, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit statuses: done; the work failed; usage error; no agent runs (as `systemctl status` has it); stopped by SIGINT
(128 + 2, as shells count)."""

UNLIMITED = 100_000
"""Width of lines that nothing bounds."""

logger = logging.getLogger(__name__)

_NOTICE = re.compile(rb"INFO: .*TensorFlow Lite|I\d{4} \d\d:|WARNING: All log messages before absl::InitializeLog")
"""A line of TFLite or TensorFlow about itself; their warnings and errors look otherwise."""

_UNWRITABLE = "stdout cannot be written: {}"
_UNREAD = "nobody reads it"
_MANY = 10  # names that a sentence lists
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


def cells(text: str) -> int:
    """Return the columns that a text takes in a terminal.

    >>> cells("cam"), cells("門"), cells("e\\u0301")
    (3, 2, 1)
    """
    if text.isascii():
        return len(text)
    return sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def wrapped(text: str, width: int, indent: str = "", first: str = "") -> list[str]:
    """Return text in lines of at most ``width`` columns, escaped.

    The first line begins with ``first``, the others with ``indent``. Only a word that is longer than a line is broken.
    """
    room = max(width, len(indent) + 20)
    lines, line, begun = [], first, False
    for word in printable(text).split():
        if begun and cells(line) + 1 + cells(word) > room:
            lines.append(line)
            line, begun = indent, False
        line += " " if begun else ""
        while cells(line) + cells(word) > room:
            most = next(i for i in range(len(word), -1, -1) if cells(line) + cells(word[:i]) <= room)
            lines.append(line + word[:most])
            line, word = indent, word[most:]
        line, begun = line + word, True
    return [*lines, line.rstrip()]


def terminal_width() -> int:
    """Return the characters of a line on stdout: those of the terminal, and `UNLIMITED` for a file or a pipe."""
    terminal = sys.stdout is not None and sys.stdout.isatty()  # None: it was closed before the command began
    return shutil.get_terminal_size().columns if terminal else UNLIMITED


def say(line: object) -> None:
    """Print one line on stdout, escaped as by `printable`.

    OutputError if stdout cannot be written, BrokenPipeError if nobody reads it any more.
    """
    put(printable(line))


def put(line: str, *, now: bool = False) -> None:
    """Print one line on stdout that a terminal may obey, ``now`` or when enough has come; errors are those of `say`."""
    try:
        print(line, flush=now)
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


def unknown(what: str, word: str, known: Iterable[str], elsewhere: str = "") -> str:
    """Return the sentence that refuses a word which is none of those ``known``: with the one most like it, or with all.

    Of more than ten it says what lists them, if that is given by ``elsewhere``.

    >>> unknown("command", "statsu", ["run", "status"])
    "unknown command 'statsu': did you mean 'status'?"
    >>> unknown("key", "x", ["host", "port"])
    "unknown key 'x'; known: host, port"
    """
    spelt = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word[:100].lower(), spelt, 1)
    if near:
        hint = f": did you mean {spelt[near[0]]!r}?"
    elif elsewhere and len(spelt) > _MANY:
        hint = f"; {len(spelt)} are known, {elsewhere}"
    else:
        hint = f"; known: {', '.join(spelt.values()) or 'none'}"
    return f"unknown {what} {word[:100]!r}{hint}"


def prepare_output() -> None:
    """Let stdout and stderr escape characters that their encoding does not have, instead of failing.

    Also let TensorFlow, if it is imported later on, write its errors only: a library's notices are no lines of ours.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def without_notices() -> Iterator[None]:
    """Keep the notices that C++ libraries write about themselves off stderr, which no setting of theirs switches off.

    Whatever else is written to stderr meanwhile, by C++ or by another thread, is written when the block ends.
    """
    if sys.__stderr__ is None:  # it was closed when the process began, and another file may have its number now
        yield
        return
    stderr = os.dup(2)
    try:
        with open(os.memfd_create("notices"), "w+b", buffering=0) as file:
            os.dup2(file.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(stderr, 2)
                file.seek(0)
                rest = b"".join(line for line in file if not _NOTICE.match(line))
                with suppress(OSError):  # a stderr that cannot be written is no reason to stop
                    os.write(2, rest)
    finally:
        os.close(stderr)


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


class Parser(argparse.ArgumentParser):
    """A command line of one of the roles, or of one of its commands.

    A usage error is one line, which names the word most like an unknown one. A role that has commands prints its help
    when it is given none. In ``description`` and ``epilog`` the lines stay as they are, and longer ones are continued;
    a line of the epilog that begins with "botwatch" stays a command.
    """

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self._commands: Mapping[str, Parser] = {}

    def add_version(self) -> None:
        """Add the option that prints the version."""
        self.add_argument("--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="print the version")

    def add_commands(self) -> "argparse._SubParsersAction[Parser]":
        """Let this parser have commands: return what adds a `Parser` for each."""
        commands = self.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
        self._commands = commands.choices
        return commands

    def parse_known_args(  # type: ignore[override]  # the stub has an overload for each type of namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Read the arguments; one that is not known is a usage error."""
        words = sys.argv[1:] if args is None else list(args)
        if self._commands and not words:
            self.print_help(sys.stderr)
            self.exit(USAGE)
        self._check_options(words)
        given, left = super().parse_known_args(words, namespace)
        if left:
            self.error(f"unexpected argument {left[0][:100]!r}")
        return given, []

    def _check_options(self, words: Sequence[str]) -> None:
        """Refuse an option that there is none of, before argparse complains about what else is missing."""
        options = sorted(option for option in self._option_string_actions if option.startswith("--"))
        for word in words:
            if word == "--" or (self._commands and not word.startswith("-")):  # the rest is not this parser's
                return
            name = word.partition("=")[0]
            if name.startswith("--") and not any(option.startswith(name) for option in options):
                self.error(unknown("option", name, options))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value which is none of the choices; argparse calls it for commands, too."""
        if action.choices is None or value in action.choices:
            return
        what = "value" if action.option_strings else action.dest  # a command, a verb
        text = unknown(what, str(value), [str(choice) for choice in action.choices])
        raise argparse.ArgumentError(action if action.option_strings else None, text)

    def error(self, message: str) -> NoReturn:
        """Print one line on stderr and end with the status of a usage error."""
        known = "did you mean" in message or "; known: " in message
        more = "" if known else f" (see `{self.prog} --help`)"
        sys.exit(refuse(self.prog, message + more))

    def format_help(self) -> str:
        """Return the help in lines that fit into the terminal."""
        width = max(shutil.get_terminal_size().columns - 2, 40)
        before = self.description, self.epilog
        self.description, self.epilog = (_fitting(text, width) for text in before)
        try:
            return super().format_help()
        finally:
            self.description, self.epilog = before


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.exit(print_text(parser.prog, version_line()))


def print_text(prog: str, text: str) -> int:
    """Print all that command ``prog`` was asked for, which may be several lines, and return its exit status."""
    status = OK
    try:
        put(text)
    except BrokenPipeError:
        pass
    except OutputError as error:
        status = refuse(prog, error, FAILED)
    return end_output(prog, status, OK)


def version_line() -> str:
    """Return the name and version of the distribution."""
    from importlib.metadata import version  # 20 ms, which no other command needs

    return f"botwatch {version('botwatch')}"


def _fitting(text: str | None, width: int) -> str:
    """Return text whose lines have at most ``width`` characters; a command is continued as a shell reads it."""
    lines = []
    for line in (text or "").split("\n"):
        indent = " " * (len(line) - len(line.lstrip()))
        if line.lstrip().startswith("botwatch "):
            parts = textwrap.wrap(line, width - 2, subsequent_indent=f"{indent}    ", break_on_hyphens=False)
            lines.append(" \\\n".join(parts))
        else:
            lines += textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False) or [""]
    return "\n".join(lines)
