"""`botwatch collector`: serve takes alerts from the broker into the database, alerts lists them, command orders."""

import argparse
import getpass
import hashlib
import json
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from collector.ingest import CollectorConfig, Ingest, OrderError, order
from collector.store import AlertStore, StoredAlert, StoreError
from edge_agent.contract.alert import CLASSES, Alert
from edge_agent.contract.broker import BrokerError
from edge_agent.contract.commands import VERBS, Command, parse_duration
from edge_agent.contract.messages import MessageError, format_time
from edge_agent.contract.settings import SettingsError, load

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

logger = logging.getLogger("collector")

_FOLLOW_S = 0.25  # how often --follow looks
_PAGE = 1_000  # alerts read at a time


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it did its work, 1 when it could not, 2 when it was asked wrongly."""
    arguments = _parser().parse_args(argv)
    try:
        config = load(CollectorConfig, arguments.config) if arguments.config else CollectorConfig()
        if arguments.db:
            config = replace(config, db=arguments.db)
        if arguments.broker:
            config = replace(config, broker=config.broker.at(arguments.broker))
        return int(arguments.run(arguments, config))
    except (SettingsError, BrokerError) as error:
        print(f"botwatch collector: {error}", file=sys.stderr)
        return 2
    except StoreError as error:
        print(f"botwatch collector: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="botwatch collector",
        description="Takes alerts from the broker into a database, lists them, and sends commands to gateways.",
        epilog="example: botwatch collector serve --broker localhost:1883 --db alerts.sqlite",
        formatter_class=raw,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", metavar="FILE", help="collector.yaml; without it the defaults")
    common.add_argument("--db", metavar="URL", help="SQLite file or SQLAlchemy URL, instead of the configuration's")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    text = "take alerts from the broker into the database until stopped (SIGINT, SIGTERM)"
    example = "example: botwatch collector serve --config configs/collector.yaml --broker localhost:1883"
    serve = commands.add_parser(
        "serve", help=text, description=text, epilog=example, parents=[common], formatter_class=raw
    )
    serve.add_argument("--broker", metavar="HOST:PORT", help="instead of the configuration's")
    serve.set_defaults(run=_serve)

    text = "list alerts in the order they came; also while serve runs"
    example = "example: botwatch collector alerts --db alerts.sqlite --follow"
    alerts = commands.add_parser(
        "alerts", help=text, description=text, epilog=example, parents=[common], formatter_class=raw
    )
    alerts.add_argument("--follow", action="store_true", help="go on and show new ones as they come")
    alerts.add_argument("--json", action="store_true", help="the EVE documents, one a line")
    alerts.add_argument("--last", type=_natural, default=50, metavar="N", help="the last N (default 50; 0: all)")
    alerts.add_argument("--gateway", metavar="ID", help="only those of this gateway")
    alerts.set_defaults(run=_alerts, broker=None)

    text = "send a command to a gateway's agent and print its reply"
    example = (
        "example: botwatch collector command gw-001 mute device=cam-entrance for=2h --config operator.yaml\n\n"
        + "\n".join(f"  {name:11}{verb.about}: {', '.join(verb.arguments) or '-'}" for name, verb in VERBS.items())
        + "\n\nfor=, instead of for_s=, takes 90s, 15m, 24h; since= also takes how long ago; classes= a,b"
    )
    command = commands.add_parser(
        "command", help=text, description=text, epilog=example, parents=[common], formatter_class=raw
    )
    command.add_argument("gateway", metavar="GATEWAY")
    command.add_argument("verb", choices=tuple(VERBS), metavar="VERB")
    command.add_argument("said", nargs="*", metavar="KEY=VALUE")
    command.add_argument("--broker", metavar="HOST:PORT", help="instead of the configuration's")
    command.add_argument(
        "--timeout", type=float, default=10.0, metavar="S", help="for the reply (default %(default)s s)"
    )
    command.add_argument("--out", type=Path, metavar="FILE", help="of evidence, the pcap (default ALERT-ID.pcap)")
    command.set_defaults(run=_command)
    return parser


def _command(arguments: argparse.Namespace, config: CollectorConfig) -> int:
    try:
        said = dict(_said(item) for item in arguments.said)
        id_ = f"{time.time_ns():x}.{secrets.token_hex(4)}"
        who = {"by": getpass.getuser()[:64], "ts": format_time(time.time_ns())}
        command = Command.read(arguments.verb, {"id": id_, **who, **said})
        reply, content = order(config.broker, arguments.gateway, command, arguments.timeout)
    except MessageError as error:
        print(f"botwatch collector: {error}", file=sys.stderr)
        return 2
    except OrderError as error:
        print(f"botwatch collector: {error}", file=sys.stderr)
        return 1
    if reply.error:
        print(f"botwatch collector: {_plain(arguments.gateway)}: {_plain(reply.error)}", file=sys.stderr)
        return 1
    if content:
        file = arguments.out or Path(f"{command.arguments['alert']}.pcap")
        try:
            file.write_bytes(content)
        except OSError as error:
            print(f"botwatch collector: {file}: {error.strerror}", file=sys.stderr)
            return 1
        print(f"{file}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
        return 0
    print(json.dumps(reply.result, indent=1))  # in ASCII: a gateway's words must not move the cursor
    return 0


def _said(item: str) -> tuple[str, object]:
    """KEY=VALUE as the command's document has it."""
    key, equals, value = item.partition("=")
    if not equals:
        raise MessageError(f"{item[:40]!r} is not KEY=VALUE")
    if key == "for":
        return "for_s", parse_duration(value)
    if key == "since" and "T" not in value:
        return key, format_time(time.time_ns() - int(parse_duration(value) * 1e9))
    if key == "classes":
        return key, value.split(",")
    return key, int(value) if key in ("entry", "port", "for_s") and value.isascii() and value.isdigit() else value


def _natural(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of alerts")
    return int(text)


def _serve(_arguments: argparse.Namespace, config: CollectorConfig) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
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
        "stopped: %d received, %d stored, %d repeated, %d rejected, %d statuses, %d tests",
        *(c.received, c.stored, c.duplicates, c.rejected, c.statuses, c.tests),
    )
    return 0


def _alerts(arguments: argparse.Namespace, config: CollectorConfig) -> int:
    store = AlertStore(config.db, create=False)
    try:
        after = store.before_last(arguments.last, arguments.gateway) if arguments.last else 0
        if not arguments.follow and not arguments.json:
            _print_table(_pages(store, after, arguments.gateway))
            return 0
        console = _console()
        while True:
            for row in _pages(store, after, arguments.gateway):
                after = row.n
                if arguments.json:
                    print(json.dumps(json.loads(row.document)))
                else:
                    console.print(_line(Alert.read(json.loads(row.document))), soft_wrap=True)
            sys.stdout.flush()
            if not arguments.follow:
                return 0
            time.sleep(_FOLLOW_S)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # `| head` has seen enough; Python must not complain about it once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        store.close()


def _pages(store: AlertStore, after: int, gateway: str | None) -> Iterator[StoredAlert]:
    """All alerts after number ``after``, read a page at a time."""
    while page := store.alerts(after, _PAGE, gateway):
        yield from page
        after = page[-1].n


def _print_table(rows: Iterable[StoredAlert]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table("time (UTC)", "gateway", "state", "alert", "device", box=SIMPLE_HEAD, pad_edge=False)
    for number in ("confidence", "packets", "seconds"):
        table.add_column(number, justify="right")
    table.add_column("model")
    for row in rows:
        alert = Alert.read(json.loads(row.document))
        table.add_row(
            *(_when(alert), _plain(alert.gateway), alert.state, _headline(alert), _plain(alert.device.name)),
            *(
                ("", "", "")
                if alert.test
                else (f"{alert.confidence:.2f}", str(alert.packets), f"{alert.duration_s:.1f}")
            ),
            _model(alert),
        )
    console = _console()
    if not console.is_terminal:  # a file or a pipe has no width to fit into
        console.width = 250
    console.print(table)


def _line(alert: Alert) -> "Text":
    """One alert on one line, for a list that grows."""
    from rich.text import Text

    name = f" ({_plain(alert.device.name)})" if alert.device.name else ""
    line = Text(f"{_when(alert)}  {_plain(alert.gateway)}  {alert.state:<6}  ")
    line += _headline(alert)
    if alert.test:
        return line
    totals = f"{alert.packets} packets in {alert.duration_s:.1f} s"
    return line + Text(f"{name}  confidence {alert.confidence:.2f}, {totals}, model {_model(alert)}")


def _headline(alert: Alert) -> "Text":
    from rich.text import Text

    style = "dim" if alert.state == "end" else "bold red" if CLASSES[alert.class_name].severity == 1 else "yellow"
    if alert.test:
        style = "cyan"
    return Text(_plain(alert.signature.removeprefix("botwatch ")), style)


def _model(alert: Alert) -> str:
    return f"{_plain(alert.model.version)}{' (generated)' if alert.model.generated else ''}"


def _when(alert: Alert) -> str:
    return format_time(alert.t_ns)[:23].replace("T", " ")


def _plain(text: str) -> str:
    """Words from a gateway, without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _console() -> "Console":
    from rich.console import Console

    class Patient(Console):
        def on_broken_pipe(self) -> None:  # rich would exit with 1
            raise BrokenPipeError

    return Patient(highlight=False, markup=False, emoji=False)


if __name__ == "__main__":
    sys.exit(main())
