"""`botwatch collector`: `serve` stores alerts from the broker, `alerts` lists them, `command` orders a gateway."""

import argparse
import getpass
import hashlib
import json
import logging
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from collector.config import CollectorConfig
from collector.ingest import Ingest
from collector.order import OrderError, order
from collector.store import AlertStore, StoredAlert, StoreError
from edge_agent.contract.alert import Alert
from edge_agent.contract.broker import BrokerError
from edge_agent.contract.cli import FAILED, OK, LogLines, OutputError, Parser, end_output, prepare_output, refuse, say
from edge_agent.contract.commands import VERBS, Command, typed
from edge_agent.contract.messages import MessageError, format_time
from edge_agent.contract.settings import SettingsError, load

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger("collector")

PROG = "botwatch collector"

_FOLLOW_S = 0.25  # how often --follow looks
_PAGE = 1_000  # alerts read at a time
_TABLE_WIDTH = 120  # columns of a terminal from which a table can be read; in a narrower one each alert is a line


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status, as `edge_agent.contract.cli` lists them."""
    prepare_output()
    arguments = parser().parse_args(argv)
    return end_output(PROG, _status(arguments), OK)


def _status(arguments: argparse.Namespace) -> int:
    """Run one command and return its exit status; what it printed may still be buffered."""
    try:
        config = load(CollectorConfig, arguments.config) if arguments.config else CollectorConfig()
        if arguments.db:
            config = replace(config, db=arguments.db)
        if arguments.broker:
            config = replace(config, broker=config.broker.at(arguments.broker))
        return int(arguments.run(arguments, config))
    except (SettingsError, BrokerError) as error:
        return refuse(PROG, error)
    except BrokenPipeError:  # `| head` has seen enough
        return OK
    except (OutputError, StoreError) as error:
        return refuse(PROG, error, FAILED)


def parser() -> Parser:
    """Return the parser of all commands of the collector."""
    top = Parser(
        PROG,
        description="Stores alerts from the broker in a database, lists them, and sends commands to gateways.",
        epilog=f"example:\n  {PROG} serve --broker localhost:1883 --db alerts.sqlite",
    )
    top.add_version()
    common = Parser(add_help=False)
    common.add_argument("--config", metavar="FILE", help="collector.yaml (default: the built-in defaults)")
    common.add_argument(
        "--db", metavar="URL", help="use this SQLite file or PostgreSQL URL instead of the configured one"
    )
    commands = top.add_commands()

    text = "store alerts from the broker in the database until stopped (SIGINT, SIGTERM)"
    example = "example:\n  botwatch collector serve --config configs/collector.yaml --broker localhost:1883"
    serve = commands.add_parser("serve", help=text, description=text, epilog=example, parents=[common])
    serve.add_argument("--broker", metavar="HOST:PORT", help="use this broker instead of the configured one")
    serve.set_defaults(run=_serve)

    text = "list alerts in order of arrival, also while serve runs"
    example = "example:\n  botwatch collector alerts --db alerts.sqlite --follow"
    alerts = commands.add_parser("alerts", help=text, description=text, epilog=example, parents=[common])
    alerts.add_argument("--follow", action="store_true", help="keep running and show new alerts as they arrive")
    alerts.add_argument("--json", action="store_true", help="print the EVE documents, one per line")
    alerts.add_argument(
        "--last", type=_natural, default=50, metavar="N", help="list the last N alerts (default 50; 0: all)"
    )
    alerts.add_argument("--gateway", metavar="ID", help="list only the alerts of this gateway")
    alerts.set_defaults(run=_alerts, broker=None)

    text = "send a command to a gateway's agent and print its reply"
    example = (
        "example:\n  botwatch collector command gw-001 mute device=cam-entrance for=2h --config operator.yaml\n\n"
        + "\n".join(_verb_help(name) for name in VERBS)
        + "\n\nfor= takes 90s, 15m or 24h; since= takes a time or an age such as 15m; classes=a,b"
    )
    command = commands.add_parser("command", help=text, description=text, epilog=example, parents=[common])
    command.add_argument("gateway", metavar="GATEWAY")
    command.add_argument("verb", choices=tuple(VERBS), metavar="VERB")
    command.add_argument("pairs", nargs="*", metavar="KEY=VALUE")
    command.add_argument("--broker", metavar="HOST:PORT", help="use this broker instead of the configured one")
    command.add_argument(
        "--timeout", type=float, default=10.0, metavar="S", help="longest wait for the reply (default %(default)s s)"
    )
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="file that `evidence` writes the pcap to (default ALERT-ID.pcap)"
    )
    command.set_defaults(run=_command)
    return top


def _command(arguments: argparse.Namespace, config: CollectorConfig) -> int:
    try:
        pairs = dict(_pair(arguments.verb, item) for item in arguments.pairs)
        id_ = f"{time.time_ns():x}.{secrets.token_hex(4)}"
        who = {"by": getpass.getuser()[:64], "ts": format_time(time.time_ns())}
        command = Command.read(arguments.verb, {"id": id_, **who, **pairs})
        reply, content = order(config.broker, arguments.gateway, command, arguments.timeout)
    except MessageError as error:
        return refuse(PROG, error)
    except OrderError as error:
        return refuse(PROG, error, FAILED)
    if reply.error:
        return refuse(PROG, f"{arguments.gateway}: {reply.error}", FAILED)
    if content:
        file = arguments.out or Path(f"{command.arguments['alert']}.pcap")
        try:
            file.write_bytes(content)
        except OSError as error:
            return refuse(PROG, error, FAILED, file=file)
        say(f"{file}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
        return OK
    for line in json.dumps(reply.result, indent=1).split("\n"):  # ASCII: a gateway's words must not move the cursor
        say(line)
    return OK


def _verb_help(name: str) -> str:
    """Return what a verb does, and the keys that it takes."""
    keys = [f"{argument.word or key}=…" for key, argument in VERBS[name].arguments.items()]
    return f"  {name}: {VERBS[name].about}\n      {' '.join(keys) or '(no keys)'}"


def _pair(verb: str, item: str) -> tuple[str, object]:
    """Return the key and JSON value of KEY=VALUE, as the command's document has them."""
    key, equals, value = item.partition("=")
    if not equals:
        raise MessageError(f"{item[:40]!r} is not KEY=VALUE")
    return typed(verb, key, value, time.time_ns())


def _natural(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of alerts")
    return int(text)


def _serve(_arguments: argparse.Namespace, config: CollectorConfig) -> int:
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, handlers=[LogLines()])
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    store = AlertStore(config.db, max_rejected=config.max_rejected)
    try:
        ingest = Ingest(config, store)
        ingest.run(stop)
    finally:
        store.close()
    c = ingest.counts
    logger.info(
        "stopped; messages: %d received, %d stored, %d repeated, %d rejected, %d statuses, %d tests",
        *(c.received, c.stored, c.duplicates, c.rejected, c.statuses, c.tests),
    )
    return OK


def _alerts(arguments: argparse.Namespace, config: CollectorConfig) -> int:
    from collector.show import alert_line, alert_table

    store = AlertStore(config.db, create=False)
    try:
        after = store.before_last(arguments.last, arguments.gateway) if arguments.last else 0
        console = _console()
        if not console.is_terminal:  # a file or a pipe has no width to fit into
            console.width = 250
        if not arguments.follow and not arguments.json and console.width >= _TABLE_WIDTH:
            console.print(alert_table(map(_alert, _pages(store, after, arguments.gateway))))
            return OK
        while True:
            for row in _pages(store, after, arguments.gateway):
                after = row.n
                if arguments.json:
                    print(json.dumps(json.loads(row.document)))
                else:
                    console.print(alert_line(_alert(row)), soft_wrap=True)
            sys.stdout.flush()
            if not arguments.follow:
                return OK
            time.sleep(_FOLLOW_S)
    except KeyboardInterrupt:
        return OK
    except BrokenPipeError:
        raise
    except OSError as error:  # of stdout: the store's errors are StoreErrors
        return refuse(PROG, f"stdout cannot be written: {error.strerror or error}", FAILED)
    finally:
        store.close()


def _alert(row: StoredAlert) -> Alert:
    return Alert.read(json.loads(row.document))


def _pages(store: AlertStore, after: int, gateway: str | None) -> Iterator[StoredAlert]:
    """Return all alerts after number ``after``, read a page at a time."""
    while page := store.alerts(after, _PAGE, gateway):
        yield from page
        after = page[-1].n


def _console() -> "Console":
    from rich.console import Console

    class Patient(Console):
        def on_broken_pipe(self) -> None:  # rich would exit with 1
            raise BrokenPipeError

    return Patient(highlight=False, markup=False, emoji=False)


if __name__ == "__main__":
    sys.exit(main())
