"""`botwatch completion bash`: prints the script by which bash completes the command lines of botwatch.

The script is a file of the package, so that neither a shell that starts nor a key that is pressed waits for Python.
`python -m tests.completion` makes it anew from the parsers of all roles.
"""

import sys
from collections.abc import Sequence
from importlib.resources import files

from edge_agent.contract.cli import OK, Parser, end_output

PROG = "botwatch completion"

SHELLS = ("bash",)


def parser() -> Parser:
    """Return the parser of the command line."""
    top = Parser(
        PROG,
        description="Print the script by which a shell completes the commands, options and file names of botwatch.",
        epilog=f"example:\n  {PROG} bash\n\nfor this shell:\n  source <({PROG} bash)\n"
        f"for every shell of this machine:\n  {PROG} bash > /usr/share/bash-completion/completions/botwatch",
    )
    top.add_version()
    top.add_argument("shell", choices=SHELLS, metavar="SHELL", help="the shell: bash")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Print the script and return the exit status."""
    args = parser().parse_args(argv)
    text = files("edge_agent").joinpath(f"completion.{args.shell}").read_text(encoding="utf-8")
    sys.stdout.write(text)
    return end_output(PROG, OK)
