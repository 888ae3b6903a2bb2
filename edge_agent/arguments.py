"""The command line of `botwatch agent`: its commands, their options and their helps. It loads nothing heavy.

What a command does is known to `edge_agent.__main__`; the words of the orders are known to `contract.commands`.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_agent.contract.cli import Parser
from edge_agent.contract.commands import VERBS
from edge_agent.contract.messages import MessageError

PROG = "botwatch agent"


def parser() -> Parser:
    """Return the parser of all commands of the agent."""
    top = Parser(
        PROG,
        description="The gateway's part of botwatch: it judges packets and publishes alerts.",
        epilog=f"example:\n  {PROG} replay capture.pcap",
    )
    top.add_version()
    commands = top.add_commands()

    def options(*names: str) -> Parser:
        """Return a parent parser with these of the options that several commands have."""
        parent = Parser(add_help=False)
        texts = {
            "--bundle": ("DIR", Path, "use this model bundle instead of the configured or the built-in one"),
            "--config": ("FILE", Path, "agent.yaml; without it the defaults apply"),
            "--gateway": ("ID", str, "use this id instead of the configured one"),
            "--outbox": ("FILE", Path, "use this state file (SQLite) instead of the configured one"),
            "--broker": ("HOST:PORT", str, "use this broker instead of the configured one"),
        }
        for name in names:
            metavar, kind, text = texts[name]
            parent.add_argument(name, metavar=metavar, type=kind, help=text)
        parent.set_defaults(**{name.strip("-"): None for name in texts})  # what a command does not have is not given
        return parent

    def command(name: str, text: str, example: str, parent: Parser, more: str = "") -> Parser:
        """Add a command; ``text`` says in one sentence what it does, ``more`` what else its own help says."""
        return commands.add_parser(
            name,
            parents=[parent],
            help=text,
            description=text + more,
            epilog=f"example:\n  {PROG} {name} {example}",
        )

    common = ("--bundle", "--config", "--gateway", "--outbox")
    configured = "--config /etc/botwatch/agent.yaml"

    text = "capture on network interfaces and publish alerts until stopped; alerts are also printed as JSON lines"
    run = command("run", text, f"{configured} --record today.pcap", options(*common, "--broker"))
    run.add_argument("--record", type=Path, metavar="FILE", help="also write all captured packets to a pcap file")
    run.add_argument("--no-broker", action="store_true", help="only print alerts; nothing is stored or published")
    text = "fix the tables' hash, to compare with a replay (which uses 0); an attacker could exploit it in service"
    run.add_argument("--seed", type=int, metavar="N", help=text)

    text = "check configuration, interfaces, bundle, broker, clock and disk, and print a remedy for each problem"
    check = command("check", text, configured, options(*common, "--broker"), "; nothing is changed")
    text = "use this interface instead of the configured ones; may be repeated"
    for one in (run, check):
        one.add_argument("--interface", action="append", metavar="NAME", help=text)

    text = "judge capture files as if their packets came in live, and print a line for each alert, counters on stderr"
    replay = command(
        "replay", text, "day1.pcap day2.pcap --bundle bundles/home --broker localhost:1883", options(*common)
    )
    replay.add_argument("files", nargs="+", type=Path, metavar="FILE", help="pcap or pcapng, in time order; - is stdin")
    text = "also publish the alerts over MQTT, through the outbox; without it --outbox is not used"
    replay.add_argument("--broker", metavar="HOST:PORT", help=text)
    text = "how long to wait at the end until the broker has taken all alerts (default %(default)s s)"
    replay.add_argument("--wait", type=_seconds, default=10.0, metavar="S", help=text)
    text = "store the packets around each alert in this folder (default: none are stored)"
    replay.add_argument("--evidence", type=Path, metavar="DIR", help=text)
    replay.add_argument("--json", action="store_true", help="print the alerts as JSON lines (EVE records)")
    replay.add_argument("--utc", action="store_true", help="print times in UTC (default: in the local zone)")

    text = "list the stored packet captures of alerts, or write one of them to a pcap file"
    evidence = command("evidence", text, "01a20937-03cb-7c3e-9f10-0c5a7c1e9a44 --out scan.pcap", options(*common))
    text = "the alert's id, or its last 6 digits or more; without it all captures are listed"
    evidence.add_argument("id", nargs="?", metavar="ALERT-ID", help=text)
    evidence.add_argument("--out", type=Path, metavar="FILE", help="the pcap file to write; - is stdout")
    evidence.add_argument("--utc", action="store_true", help="print times in UTC instead of the local zone")

    text = "write the stored rows of healthy devices (statistics, no addresses) to a file for `botwatch trainer fit`"
    rows = command(
        "rows",
        text,
        f"{configured} --out rows.npz",
        options("--config", "--outbox"),
        "; `learning.export` in the configuration must allow it",
    )
    rows.add_argument("--out", type=Path, metavar="FILE", required=True, help="the .npz file to write")

    text = "send a test alert through outbox and broker to all readers, and print each step; it counts as no episode"
    test_alert = command("test-alert", text, configured, options(*common))
    text = "use this broker instead of the configured one, if no agent is running"
    test_alert.add_argument("--broker", metavar="HOST:PORT", help=text)
    text = "how long to wait until the broker has taken it (default %(default)s s)"
    test_alert.add_argument("--wait", type=_seconds, default=10.0, metavar="S", help=text)
    for one in (check, evidence, test_alert):
        one.add_argument("--json", action="store_true", help="print the result as JSON")

    text = "write an archive for whoever helps you: configuration, check, counters, versions and log, without secrets"
    support = command("support", text, f"{configured} --out support.tar.gz", options(*common))
    text = "the tar.gz file to write, which only you can read"
    support.add_argument("--out", type=Path, metavar="FILE", required=True, help=text)

    _add_orders(command, options)
    return top


def _add_orders(command: Callable[..., Parser], options: Callable[..., Parser]) -> None:
    """Add the commands that a running agent carries out, or that take effect at its next start."""
    common = options("--config", "--outbox")
    common.add_argument("--json", action="store_true", help="print the reply as JSON")
    common.add_argument("--utc", action="store_true", help="print times in UTC instead of the local zone")
    for verb, grammar in VERBS.items():
        if grammar.local is None:
            continue
        example = f"{grammar.local} --config /etc/botwatch/agent.yaml".lstrip()
        exits = "; exits with 3 when no agent runs" if verb == "status" else ""
        one = command(verb, grammar.about, example, common, exits)
        offered = {key: argument for key, argument in grammar.arguments.items() if argument.option is not None}
        for key, argument in offered.items():
            more: dict[str, Any] = {"metavar": argument.metavar, "help": argument.help, "type": _typed(argument.parse)}
            if argument.option and not argument.metavar:
                more = {"dest": key, "help": argument.help, "action": "store_const", "const": True}
            elif argument.option:
                more |= {"dest": key, "required": key in grammar.required}
                more |= {"action": "extend"} if argument.write is list else {}
            elif len(set(grammar.one_of) & set(offered)) > 1:
                more |= {"nargs": "?"}
            one.add_argument(argument.option or key, **more)


def _typed(parse: Callable[[str, int], object]) -> Callable[[str], object]:
    """Return the `type` of an argument of a verb for argparse, which shows the message of this error only."""

    def read(text: str) -> object:
        try:
            return parse(text, time.time_ns())
        except MessageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds
