"""The state of each gateway, from its status and from its newest documents on health and devices.

`botwatch collector gateways` shows it, one line a gateway. What a gateway says of itself is not believed further than
its own line, and is escaped.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from collector.config import CollectorConfig
from collector.store import AlertStore
from edge_agent.contract.cli import OK, Parser, cells, note, put, refuse, unknown
from edge_agent.contract.messages import MessageError, Status, format_time
from edge_agent.contract.show import IdColumn, Terminal, Tone, gateway_cell, gateway_column, id_column, pad

_FOLLOW_S = 1.0  # how often --follow looks
_UNITS = (1e12, "T"), (1e9, "G"), (1e6, "M")
_TONES: dict[str, Tone] = {"offline": "bad", "stopped": "quiet"}
_WORDS = {
    "online": "connected to the broker",
    "offline": "its connection to the broker is lost",
    "stopped": "its agent was stopped",
}

HELP = "list gateways, one line each: state, last sign of life, versions, devices, outbox, dropped frames"


@dataclass(frozen=True)
class GatewayState:
    """Everything that is known of a gateway; "" and None for what is not."""

    gateway: str
    site: str
    state: str  # online, offline, stopped, or unknown
    seen_ns: int  # the last sign of life, Unix ns; 0 if there was none
    agent: str
    model: str
    devices: int | None
    learning: int | None  # devices that are still learning
    outbox: int | None
    dropped: int | None  # frames since the agent's start
    episodes_open: int | None
    health: dict[str, Any] | None

    def document(self) -> dict[str, Any]:
        """Return the JSON object, with the whole document on health."""
        return {
            "gateway": self.gateway,
            "site": self.site,
            "state": self.state,
            "last_seen": format_time(self.seen_ns) if self.seen_ns else None,
            "agent": self.agent,
            "model": self.model,
            "devices": self.devices,
            "devices_learning": self.learning,
            "outbox_depth": self.outbox,
            "dropped": self.dropped,
            "episodes_open": self.episodes_open,
            "health": self.health,
        }


def gateway_states(store: AlertStore) -> list[GatewayState]:
    """Return the state of each gateway that anything is stored of, in the order of their ids."""
    statuses, sites = store.statuses(), store.sites()
    healths, devices = store.documents("health"), store.documents("devices")
    states = []
    for gateway in store.gateway_ids():
        status, received_ns = statuses.get(gateway, (None, 0))
        health, health_ns = healths.get(gateway, ({}, 0))
        learnt, learnt_ns = devices.get(gateway, ({}, 0))
        counters, counts = health.get("counters", {}), learnt.get("count", {})
        states.append(
            GatewayState(
                gateway=gateway,
                site=health.get("site", "") or sites.get(gateway, ""),
                state=status.state if status else "unknown",
                seen_ns=max(min(status.t_ns, received_ns) if status else 0, health_ns, learnt_ns),
                agent=status.agent if status else "",
                model=health.get("model", ""),
                devices=int(sum(counts.values())) if learnt else counters.get("devices") if health else None,
                learning=counts.get("learning", 0) if learnt else None,
                outbox=health.get("outbox_depth"),
                dropped=counters.get("dropped", 0) + counters.get("interface_dropped", 0) if health else None,
                episodes_open=health.get("episodes_open"),
                health=health or None,
            )
        )
    return states


def find_gateway(store: AlertStore, gateway: str) -> str:
    """Return ``gateway`` if anything is stored of it, else raise MessageError with the one most like it."""
    return _known("gateway", gateway, store.gateway_ids())


def find_site(site: str, states: Sequence[GatewayState]) -> list[str]:
    """Return the gateways of a site, or raise MessageError with the site most like it."""
    known = _known("site", site, sorted({state.site for state in states if state.site}))
    return [state.gateway for state in states if state.site == known]


def _known(what: str, word: str, known: Sequence[str]) -> str:
    if word in known:
        return word
    raise MessageError(unknown(what, word, known, "`botwatch collector gateways` lists them"))


def change_line(
    gateway: str, status: Status, received_ns: int, terminal: Terminal, column: IdColumn, *, again: bool = True
) -> str:
    """Return a line which says that a gateway has come or gone; without ``again`` it is a new one."""
    head = terminal.gap.join([terminal.time(received_ns, brief=True), gateway_cell(gateway, terminal, column), ""])
    words = _WORDS[status.state] if again else f"{_WORDS[status.state]}; heard of for the first time"
    room = None if terminal.width is None else max(terminal.width - cells(head) - len(status.state), 0)
    return head + terminal.paint(status.state, _TONES.get(status.state, "note")) + terminal.cut(f": {words}", room)


# --- the table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """A column of the table; one without a ``least`` width is never narrower than its content."""

    head: str
    cell: Callable[[GatewayState], str]
    least: int = 0
    right: bool = False
    optional: bool = False  # left out where it is empty, or where there is little room


def table(states: Sequence[GatewayState], terminal: Terminal, now_ns: int) -> Iterator[str]:
    """Yield the lines of a table of gateways, under a line with its headings."""

    def number(value: float | None) -> str:
        if value is None:
            return ""
        if value >= 1e16:  # no true one: a gateway that claims it must not push the others off the screen
            return ">9,999T"
        size, unit = next(((size, unit) for size, unit in _UNITS if value >= size), (1.0, ""))
        return f"{value / size:,.1f}{unit}" if unit else f"{value:,.0f}"

    def seen(state: GatewayState) -> str:
        if not state.seen_ns:
            return ""
        return terminal.time(state.seen_ns) if terminal.roomy else age(now_ns - state.seen_ns)

    columns = [
        _Column("gateway", lambda s: s.gateway, 8),
        _Column("site", lambda s: s.site, 6, optional=True),
        _Column("state", lambda s: s.state),
        _Column("last seen", seen),
        _Column("agent", lambda s: s.agent, 5),
        _Column("model", lambda s: s.model, 8),
        _Column("devices", lambda s: number(s.devices), right=True),
        _Column("learning", lambda s: number(s.learning), right=True, optional=True),
        _Column("outbox", lambda s: number(s.outbox), right=True),
        _Column("dropped", lambda s: number(s.dropped), right=True),
        _Column("open", lambda s: number(s.episodes_open), right=True),
    ]
    gaps, rows = len(terminal.gap), [[terminal.text(column.cell(state)) for column in columns] for state in states]
    widths = [max(map(cells, (c.head, *content))) for c, content in zip(columns, zip(*rows, strict=True), strict=True)]
    for i in reversed(range(len(columns))):
        wide = terminal.width is not None and sum(widths) + gaps * (len(columns) - 1) > terminal.width
        if columns[i].optional and (wide or not any(row[i] for row in rows)):
            del columns[i], widths[i]
            rows = [row[:i] + row[i + 1 :] for row in rows]
    ids = [row[0] for row in rows]
    if terminal.width is not None:
        least = [column.least for column in columns]
        while least[0] < widths[0] and not id_column(ids, terminal, least[0]):
            least[0] += 1
        _narrow(widths, least, terminal.width - gaps * (len(columns) - 1))
    of_ids = id_column(ids, terminal, widths[0])
    for state, row in zip((None, *states), ([column.head for column in columns], *rows), strict=True):
        shown, tones = [], []
        for column, text, width in zip(columns, row, widths, strict=True):
            text = terminal.squeeze(text, width, of_ids.tail if of_ids and column is columns[0] else None)
            shown.append(" " * (width - cells(text)) + text if column.right else pad(text, width))
            tones.append(_TONES.get(state.state, "") if state and column.head == "state" else "")
        line = terminal.gap.join(shown)
        if terminal.width is not None and cells(line) > terminal.width:
            yield terminal.cut(line, terminal.width)
        else:
            yield terminal.gap.join(map(terminal.paint, shown, tones)).rstrip()


def _narrow(widths: list[int], least: Sequence[int], room: int) -> None:
    """Take columns from the widest of those that may be cut, until all fit or none can give any more."""
    while sum(widths) > room:
        spare = [
            (width - low, i) for i, (width, low) in enumerate(zip(widths, least, strict=True)) if low and width > low
        ]
        if not spare:
            return
        widths[max(spare)[1]] -= 1


def age(ns: int) -> str:
    """Return a time span in one unit.

    >>> age(42_000_000_000), age(3 * 3600 * 10**9), age(-1)
    ('42 s ago', '3 h ago', '0 s ago')
    """
    seconds = max(ns, 0) // 1_000_000_000
    for unit, size, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < most:
            return f"{seconds // size} {unit} ago"
    return f"{seconds // 86_400} d ago"


# --- the command --------------------------------------------------------------------------------------------


def add_arguments(parser: Parser) -> None:
    """Add the options of the command."""
    parser.add_argument("gateways", nargs="*", metavar="GATEWAY", help="only these gateways")
    parser.add_argument("--site", metavar="SITE", help="only the gateways of this site")
    parser.add_argument("--follow", action="store_true", help="keep running and print a line when one comes or goes")
    parser.add_argument("--json", action="store_true", help="print a JSON object per line, with the document on health")
    parser.add_argument("--utc", action="store_true", help="print times in UTC instead of the local zone")


def run(prog: str, arguments: argparse.Namespace, config: CollectorConfig) -> int:
    """List the gateways that the arguments want, and return the exit status."""
    terminal = Terminal.of(utc=arguments.utc)
    with closing(AlertStore(config.db, create=False)) as store:
        before = _boots(store)
        states = gateway_states(store)
        ids = [state.gateway for state in states]
        try:
            only = {_known("gateway", gateway, ids) for gateway in arguments.gateways}
            if arguments.site is not None:
                of_site = set(find_site(arguments.site, states))
                only = only & of_site if only else of_site
        except MessageError as error:
            return refuse(prog, error)
        if arguments.gateways or arguments.site is not None:
            states = [state for state in states if state.gateway in only]
        if not states:
            note("no gateway matches" if ids else "no gateways are known: none has sent anything that is stored")
        _print(states, terminal, arguments.json, now=arguments.follow)
        try:
            if arguments.follow:
                _follow(store, before, terminal, arguments.json, only)
        except KeyboardInterrupt:
            pass
    return OK


def _print(states: Sequence[GatewayState], terminal: Terminal, as_json: bool, *, now: bool) -> None:
    lines: Iterable[str] = [json.dumps(state.document()) for state in states]
    if states and not as_json:
        lines = table(states, terminal, time.time_ns())
    for line in lines:
        put(line, now=now)


def _boots(store: AlertStore) -> dict[str, tuple[str, str]]:
    """Return state and boot of each gateway that has sent a status."""
    return {gateway: (status.state, status.boot) for gateway, (status, _) in store.statuses().items()}


def _follow(
    store: AlertStore, before: dict[str, tuple[str, str]], terminal: Terminal, as_json: bool, only: set[str]
) -> None:
    """Print each change of a gateway's state and boot from those ``before``: a line, or its JSON object anew."""
    column = gateway_column(before, terminal)
    while True:
        time.sleep(_FOLLOW_S)
        for gateway, (status, received_ns) in store.statuses().items():
            now = status.state, status.boot
            if before.get(gateway) == now or (only and gateway not in only):
                continue
            known, before[gateway] = gateway in before, now
            if not known:
                column = gateway_column(before, terminal)
            if as_json:
                _print(
                    [state for state in gateway_states(store) if state.gateway == gateway], terminal, as_json, now=True
                )
            else:
                put(change_line(gateway, status, received_ns, terminal, column, again=known), now=True)
