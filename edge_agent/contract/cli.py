"""How the commands of every role refuse, exit, and print text that came from elsewhere.

A command that cannot do what it was asked for prints one line on stderr, "botwatch agent: why", and exits with `USAGE`
when the command line, the configuration or a file named there is wrong, with `FAILED` when the work itself failed.
"""

import sys

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses: done; the work failed; the command was given wrongly; stopped by SIGINT (128 + 2, as shells count)."""


def refuse(prog: str, reason: object, status: int = USAGE, *, file: object = "") -> int:
    """Print why command ``prog`` ends, on stderr, and return its exit ``status``.

    Of an OSError the file and the system's words are printed; ``file`` names it where the error does not.
    """
    if isinstance(reason, OSError):
        name = reason.filename or file
        reason = f"{name}: {reason.strerror or reason}" if name else reason.strerror or reason
    print(f"{prog}: {printable(reason)}", file=sys.stderr)
    return status


def printable(value: object) -> str:
    """A value as text without the characters that a terminal would obey.

    >>> printable("cam\\x1b[31m entrance")
    'cam?[31m entrance'
    """
    return "".join(c if c.isprintable() else "?" for c in str(value))
