"""The `botwatch collector` command: reads arguments, hands over, turns known errors into one line and an exit status.

`serve` stores alerts from the broker, `alerts` and `gateways` list what is stored, `command` orders gateways.
"""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from collector import alerts, command, gateways
from collector.config import CollectorConfig
from collector.ingest import Ingest
from collector.store import AlertStore, StoreError
from edge_agent.contract.broker import BrokerError
from edge_agent.contract.cli import FAILED, OK, LogLines, OutputError, Parser, end_output, prepare_output, refuse
from edge_agent.contract.settings import SettingsError, load

logger = logging.getLogger("collector")

PROG = "botwatch collector"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status, as `edge_agent.contract.cli` lists them."""
    prepare_output()
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parser(named=command.names_gateways(words)).parse_args(words)
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


def parser(*, named: bool = True) -> Parser:
    """Return the parser of all commands of the collector; see `command.add_arguments` for ``named``."""
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

    example = "example:\n  botwatch collector alerts --db alerts.sqlite --since 24h --class 'mirai.*'"
    text = alerts.HELP
    listing = commands.add_parser("alerts", help=text, description=text, epilog=example, parents=[common])
    alerts.add_arguments(listing)
    listing.set_defaults(run=partial(alerts.run, PROG), broker=None)

    example = "example:\n  botwatch collector gateways --db alerts.sqlite --site plant-a"
    text = gateways.HELP
    states = commands.add_parser("gateways", help=text, description=text, epilog=example, parents=[common])
    gateways.add_arguments(states)
    states.set_defaults(run=partial(gateways.run, PROG), broker=None)

    text = command.HELP
    order = commands.add_parser("command", help=text, description=text, epilog=command.epilog(), parents=[common])
    command.add_arguments(order, named=named)
    order.set_defaults(run=partial(command.run, PROG))
    return top


def _serve(_arguments: argparse.Namespace, config: CollectorConfig) -> int:
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%Y-%m-%d %H:%M:%S %Z", handlers=[LogLines()])
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
        "stopped; messages: %d received, %d stored, %d repeated, %d rejected, %d statuses, %d tests, %d documents",
        *(c.received, c.stored, c.duplicates, c.rejected, c.statuses, c.tests, c.documents),
    )
    if ingest.homeassistant:
        logger.info(
            "Home Assistant: %(devices_left_out)d devices not shown, %(events_dropped)d events dropped, "
            "%(messages_set_aside)d messages not published",
            ingest.homeassistant.counts,
        )
    return OK


if __name__ == "__main__":
    sys.exit(main())
