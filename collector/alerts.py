"""`botwatch collector alerts`: lists episodes or alerts from the database, and follows what comes.

For people an episode is one line, in its newest state; `edge_agent.contract.show` knows how that reads. For programs
each alert is an EVE record with its cursor, the number from which a feed goes on after it was interrupted.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from collector.config import CollectorConfig
from collector.gateways import change_line, find_gateway
from collector.queries import Wanted
from collector.store import AlertStore, StoredAlert
from edge_agent.contract.alert import CLASSES, Alert
from edge_agent.contract.cli import FAILED, OK, Parser, note, put, refuse, unknown
from edge_agent.contract.commands import parse_duration
from edge_agent.contract.messages import MessageError, Status, format_time
from edge_agent.contract.show import IdColumn, Terminal, alert_line, gateway_column

_FOLLOW_S = 0.25  # how often --follow looks
_GATEWAYS_S = 1.0  # how often it looks at the states of gateways
_PAGE = 1_000  # alerts read at a time
_LAST = 50  # episodes or alerts that are listed where nothing says how many

_FAMILIES = tuple(sorted({f"{name.partition('.')[0]}.*" for name in CLASSES if "." in name}))

HELP = "list episodes, one line each in its newest state, or alerts; also while serve runs"
_DETAILS = """
--since takes an age (15m, 24h, 7d) or a time (2026-11-23, "2026-11-23 16:22"), in the local zone or as --utc says.
--json prints EVE records; the cursor of each, alert.context.collector.cursor, continues a feed with --after."""


def add_arguments(parser: Parser) -> None:
    """Add the options of the command."""
    parser.description = f"{parser.description}\n{_DETAILS}"
    parser.add_argument("--follow", action="store_true", help="keep running and show what comes, and gateways that go")
    parser.add_argument("--events", action="store_true", help="list each alert (new, update, end), not each episode")
    parser.add_argument("--json", action="store_true", help="print EVE records, one per line")
    parser.add_argument(
        "--after", type=_natural, metavar="CURSOR", help="list each alert that came after this cursor (0: all)"
    )
    text = f"list the last N (0: all; default {_LAST}, with --since or --after all)"
    parser.add_argument("--last", type=_natural, metavar="N", help=text)
    parser.add_argument("--gateway", metavar="ID", default="", help="only of this gateway")
    parser.add_argument(
        "--device", type=_storable, metavar="MAC|IP|NAME", default="", help="only of this device or victim"
    )
    text = "only of this class, or of a family, as mirai.*"
    parser.add_argument("--class", dest="class_name", type=_class, metavar="CLASS", help=text)
    text = "only of this severity or a worse one; 1 is the worst"
    parser.add_argument("--severity", type=int, choices=(1, 2, 3), default=0, help=text)
    parser.add_argument("--since", metavar="TIME", default="", help="only of this time or later; an age or a time")
    parser.add_argument("--open", action="store_true", help="only of episodes that have not ended")
    parser.add_argument("--utc", action="store_true", help="print times in UTC instead of the local zone")


def run(prog: str, arguments: argparse.Namespace, config: CollectorConfig) -> int:
    """List what the arguments want, and return the exit status."""
    if arguments.after is not None and arguments.last is not None:
        return refuse(prog, "--after and --last exclude each other")
    try:
        since_ns = _since(arguments.since, arguments.utc) if arguments.since else 0
    except MessageError as error:
        return refuse(prog, f"--since: {error}")
    with closing(AlertStore(config.db, create=False)) as store:
        try:
            gateway = find_gateway(store, arguments.gateway) if arguments.gateway else ""
        except MessageError as error:
            return refuse(prog, error)
        if arguments.after is not None and arguments.after > (last := store.last_number()):
            text = f"--after {arguments.after}: the newest alert of this database has cursor {last}"
            return refuse(prog, f"{text}; the cursor is that of another database", FAILED)
        wanted = Wanted(
            gateway=gateway,
            device=arguments.device,
            class_name=arguments.class_name or "",
            severity=arguments.severity,
            since_ns=since_ns,
            still_open=arguments.open,
        )
        listing = _Listing(store, wanted, arguments)
        try:
            listing.begin(arguments)
            while arguments.follow:
                time.sleep(_FOLLOW_S)
                listing.go_on()
        except KeyboardInterrupt:
            pass
    return OK


class _Listing:
    """A list of alerts: what has been printed of it, and how the rest is printed."""

    def __init__(self, store: AlertStore, wanted: Wanted, arguments: argparse.Namespace) -> None:
        self._store, self._wanted = store, wanted
        self._newest = not arguments.events and arguments.after is None
        self._print: Callable[[StoredAlert], None] = self._document if arguments.json else self._line
        self._after, self._follows = 0, bool(arguments.follow)
        self._terminal = Terminal.of(utc=arguments.utc)
        self._gateways: set[str] = set()  # those whose ids have a column
        self._column: IdColumn | None = None
        self._states: dict[str, Status] | None = None  # of gateways; None where they are not shown
        self._states_due = 0.0
        if not arguments.json:
            self._gateways |= {wanted.gateway} if wanted.gateway else set(store.gateway_ids())
            if self._follows:
                self._states = {gateway: status for gateway, (status, _) in store.statuses().items()}

    def begin(self, arguments: argparse.Namespace) -> None:
        """Print what there is."""
        most, more = arguments.last, False
        if most is None:
            most = 0 if arguments.since or arguments.after is not None else _LAST
        self._after = arguments.after or 0
        if most:
            self._after = self._store.before_last(most, self._wanted, newest=self._newest)
            more = bool(self._after) and arguments.last is None and not arguments.json
        if more:
            note(f"only the last {most} are listed; --last 0 lists all")
        if not self.go_on():
            limited = self._wanted != Wanted() or arguments.after
            yet = " yet" if self._follows else ""
            note(f"no alert matches{yet}" if limited else f"no alerts are stored{yet}")

    def go_on(self) -> int:
        """Print what has come since, and return how many alerts that are."""
        printed, newest = 0, self._store.newest_number()
        before, self._terminal = self._terminal, Terminal.of(utc=self._terminal.utc)
        if self._terminal != before:  # its width has changed
            self._column = None
        for row in self._pages():
            self._after = row.n
            self._print(row)
            printed += 1
        self._after = max(self._after, newest)  # what came before it and is not wanted is not looked at again
        if self._states is not None and time.monotonic() >= self._states_due:
            self._changes(self._states)
            self._states_due = time.monotonic() + _GATEWAYS_S
        return printed

    def _pages(self) -> Iterator[StoredAlert]:
        """Return all wanted alerts that have come, read a page at a time."""
        while page := self._store.alerts(self._after, _PAGE, self._wanted, newest=self._newest):
            yield from page
            if len(page) < _PAGE:
                return

    def _line(self, row: StoredAlert) -> None:
        alert = Alert.read(json.loads(row.document))
        put(alert_line(alert, self._terminal, self._column_for(alert.gateway)), now=self._follows)

    def _column_for(self, gateway: str) -> IdColumn:
        """Return the column of the gateways' ids, in which this one fits, too, and no two look alike."""
        if not self._column or not self._gateways.issuperset({gateway}):
            self._gateways.add(gateway)
            self._column = gateway_column(self._gateways, self._terminal)
        return self._column

    def _document(self, row: StoredAlert) -> None:
        put(json.dumps(_with_cursor(row)), now=self._follows)

    def _changes(self, before: dict[str, Status]) -> None:
        """Print which gateways have come and gone."""
        for gateway, (status, received_ns) in self._store.statuses().items():
            known = before.get(gateway)
            if self._wanted.gateway not in ("", gateway) or (known and _same(known, status)):
                continue
            before[gateway] = status
            column = self._column_for(gateway)
            line = change_line(gateway, status, received_ns, self._terminal, column, again=bool(known))
            put(line, now=True)


def _same(one: Status, other: Status) -> bool:
    return (one.state, one.boot) == (other.state, other.boot)


def _with_cursor(row: StoredAlert) -> dict[str, Any]:
    """Return the record of an alert with what the collector adds, beside the gateway's own part in its context."""
    document: dict[str, Any] = json.loads(row.document)
    document["alert"]["context"]["collector"] = {"cursor": row.n, "received": format_time(row.received_ns)}
    return document


def _natural(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 0")
    return int(text)


def _storable(text: str) -> str:
    """Return a text that a database may be asked for; what is typed in another encoding than the terminal's is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not UTF-8 text") from None
    return text


def _class(text: str) -> str:
    known = (*CLASSES, *_FAMILIES)
    if text not in known:
        raise argparse.ArgumentTypeError(unknown("class", text, known))
    return text


def _since(text: str, utc: bool) -> int:
    """Return the Unix ns of an age or a time; a time without a zone is in the local one, or in UTC with ``utc``."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            return time.time_ns() - int(parse_duration(text) * 1e9)
        except MessageError:
            raise MessageError(
                f"{text[:40]!r} is no age (15m, 24h, 7d) and no time (2026-11-23, 2026-11-23T16:22)"
            ) from None
    try:
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC) if utc else moment.astimezone()
        return int(moment.timestamp() * 1e9)
    except (OverflowError, ValueError) as error:
        raise MessageError(f"{text[:40]!r} is not a time that can be") from error
