"""The common ways in which the commands of every role refuse, exit, and print text that came from elsewhere.

A command that cannot do what it was asked for prints one line on stderr, "botwatch agent: reason". It exits with
`USAGE` when the command line, the configuration or a file named there is wrong, with `FAILED` when the work itself
failed, and with `NOT_RUNNING` when the state of a running agent was asked for and no agent runs.
"""

import sys

OK, FAILED, USAGE, NOT_RUNNING, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit statuses: done; the work failed; usage error; no agent runs (as `systemctl status` has it); stopped by SIGINT
(128 + 2, as shells count)."""


def refuse(prog: str, reason: object, status: int = USAGE, *, file: object = "") -> int:
    """Print on stderr why command ``prog`` ends, and return its exit ``status``.

    For an OSError the file and the system's words are printed; ``file`` names the file where the error does not.
    """
    if isinstance(reason, OSError):
        name = reason.filename or file
        reason = f"{name}: {reason.strerror or reason}" if name else reason.strerror or reason
    print(f"{prog}: {printable(reason)}", file=sys.stderr)
    return status


def printable(value: object) -> str:
    """Return a value as text in which characters that a terminal would obey are replaced by "?".

    >>> printable("cam\\x1b[31m entrance")
    'cam?[31m entrance'
    """
    return "".join(c if c.isprintable() else "?" for c in str(value))
