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
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TextIO

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


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """Return the sentence that refuses a word which is none of those ``known``: with the one most like it, or with all.

    >>> unknown("command", "statsu", ["run", "status"])
    "unknown command 'statsu': did you mean 'status'?"
    >>> unknown("key", "x", ["host", "port"])
    "unknown key 'x'; known: host, port"
    """
    spelt = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word[:100].lower(), spelt, 1)
    hint = f": did you mean {spelt[near[0]]!r}?" if near else f"; known: {', '.join(spelt.values())}"
    return f"unknown {what} {word[:100]!r}{hint}"


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
        say(version_line())
        parser.exit(OK)


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
