"""Alerts as people read them: one line of text for each, fitted to the terminal, with times in the local zone.

`collector alerts` and `agent replay` print these lines; programs read the JSON documents instead. Text that came from
elsewhere is escaped before it is measured. Standard library only; which alerts are shown is the command's decision.
"""

import os
import re
import shutil
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TextIO

from edge_agent.contract import alertid
from edge_agent.contract.alert import CLASSES, Alert, AlertDevice
from edge_agent.contract.cli import cells, printable
from edge_agent.contract.localtime import local_time
from edge_agent.contract.messages import has_ports

Tone = Literal["bad", "warn", "quiet", "note", ""]
"""The weight of a text, for a terminal that has colours."""

_ROOMY = 120  # columns from which times have their year and columns two spaces between them
_REASON = 12  # columns that the reason of an alert gets at least, at the expense of the device's addresses
_NAME = 20  # columns of a name where there is little room
_TITLE = 10  # columns of a class that are left where there is none for it, the device and the port
_SCRAP = 6  # columns below which a reason says nothing
_GATEWAY = 10  # columns of a gateway's id where there is little room
_STATE = 6
_CODES: Mapping[Tone, str] = {"bad": "1;31", "warn": "33", "quiet": "2", "note": "36"}
_BRACKETS = re.compile(r" \([^)]*\)")


@dataclass(frozen=True)
class Terminal:
    """The place where lines are read: its ``width`` in columns (None: a file or a pipe, where nothing is cut).

    Times are in the local zone, or in UTC with ``utc``. What ``encoding`` does not have is escaped.
    """

    width: int | None = None
    utc: bool = False
    colour: bool = False
    encoding: str = "utf-8"

    @classmethod
    def of(cls, stream: TextIO | None = None, *, utc: bool = False) -> "Terminal":
        """Return the terminal behind ``stream``, else stdout; NO_COLOR and TERM=dumb are honoured."""
        stream = sys.stdout if stream is None else stream
        encoding = getattr(stream, "encoding", None) or "utf-8"
        if stream is None or not stream.isatty():
            return cls(None, utc, False, encoding)
        colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
        return cls(shutil.get_terminal_size().columns, utc, colour, encoding)

    @property
    def roomy(self) -> bool:
        """True where there is room for more than the essential."""
        return self.width is None or self.width >= _ROOMY

    @property
    def gap(self) -> str:
        """The space between two columns."""
        return "  " if self.roomy else " "

    def text(self, value: object) -> str:
        """Return a value in characters that the terminal prints and does not obey."""
        return printable(value).encode(self.encoding, "backslashreplace").decode(self.encoding)

    def time(self, t_ns: int, *, brief: bool = False) -> str:
        """Return Unix ns as a time with its zone; in a narrow terminal without the year, and ``brief`` without seconds.

        >>> Terminal(80, utc=True).time(1_795_450_930_123_456_789, brief=True)
        '11-23 16:22 UTC'
        """
        text = self.text(local_time(t_ns, self.utc))
        if self.roomy:
            return text
        moment, _, zone = text.partition("-")[2].rpartition(" ")
        return f"{moment.rpartition(':')[0] if brief else moment} {zone}"

    def cut(self, text: str, room: int | None) -> str:
        """Return ``text`` in at most ``room`` columns; what is cut off is replaced by an ellipsis."""
        if room is None or cells(text) <= room:
            return text
        dots = self._dots
        if text.isascii():
            text = text[: max(room - len(dots), 0)]
        while text and cells(text) > room - len(dots):
            text = text[:-1]
        return (text.rstrip() + dots)[: max(room, 0)]

    def squeeze(self, text: str, room: int, tail: int | None = None) -> str:
        """Return ``text`` in at most ``room`` columns; what is cut out of its middle is replaced by an ellipsis.

        The last ``tail`` columns stay, by default half of them.
        """
        if cells(text) <= room:
            return text
        most = max(room - len(self._dots), 0)
        tail = most // 2 if tail is None else min(tail, most)
        end = text[len(text) - tail :]
        while cells(end) > tail:
            end = end[1:]
        return self.cut(text, room - tail) + end

    def paint(self, text: str, tone: Tone) -> str:
        """Return ``text`` in the colour of ``tone``, if the terminal has colours."""
        return f"\x1b[{_CODES[tone]}m{text}\x1b[0m" if self.colour and tone and text else text

    @property
    def _dots(self) -> str:
        return "…" if self.text("…") == "…" else "..."


def pad(text: str, room: int) -> str:
    """Return ``text`` with spaces behind it up to ``room`` columns."""
    return text + " " * max(room - cells(text), 0)


def reason(alert: Alert, *, brief: bool = False) -> str:
    """Return the reason why an alert was raised; a ``brief`` one has only the first statement, without its details.

    An alert without an explanation is explained by its score.
    """
    text = alert.explanation or f"score {alert.score:.3g}; the limit is {alert.threshold:.3g}"
    return _BRACKETS.sub("", text.partition(";")[0]).replace(" a second", "/s") if brief else text


class IdColumn(NamedTuple):
    """A column for ids: its ``width``, and how many columns at the end of an id stay if it is cut."""

    width: int
    tail: int


def id_column(ids: Collection[str], terminal: Terminal, width: int) -> IdColumn | None:
    """Return a column of this width in which no two different ids look alike, or None where that is not possible."""
    different, half = set(ids), max(width - 1, 0) // 2
    for tail in (half, *range(half + 1, width), *range(half - 1, -1, -1)):
        seen: set[str] = set()
        for id in different:
            if (text := terminal.squeeze(id, width, tail)) in seen:
                break
            seen.add(text)
        else:
            return IdColumn(width, tail)
    return None


def gateway_column(gateways: Collection[str], terminal: Terminal) -> IdColumn:
    """Return the column for the ids of these gateways, as wide as needed and as far as ``terminal`` has room.

    It is no wider than a third of the terminal, even if some ids then look alike.
    """
    most = max((len(gateway) for gateway in gateways), default=0)
    if terminal.width is None:
        return IdColumn(most, 0)
    least = min(most, 2 * _GATEWAY if terminal.roomy else _GATEWAY)
    for width in range(least, min(most, terminal.width // 3)):
        if column := id_column(gateways, terminal, width):
            return column
    return IdColumn(max(least, min(most, terminal.width // 3)), least // 2)


def alert_line(alert: Alert, terminal: Terminal, column: IdColumn | None = None) -> str:
    """Return an alert as one line: time, gateway, state, short id, class, device, port, reason.

    The gateway's id is in ``column``, and left out without one. In a narrow terminal the addresses of the device
    give way to its name, and the reason is cut; without a width the totals of the episode and the model follow.
    """
    head = [terminal.time(alert.t_ns, brief=column is not None)]
    if column:
        head.append(gateway_cell(alert.gateway, terminal, column))
    head += [alert.state.ljust(_STATE), alertid.short(alert.id)]
    begin = terminal.gap.join(head) + terminal.gap
    if terminal.width is None:
        return begin + _whole(alert, terminal)
    room = terminal.width - cells(begin)
    if room < 1:
        return terminal.cut(begin.rstrip(), terminal.width)
    what, rest = _body(alert, terminal, room)
    return begin + terminal.paint(what, _tone(alert)) + rest


def gateway_cell(gateway: str, terminal: Terminal, column: IdColumn) -> str:
    """Return the id of a gateway in a column."""
    text = terminal.text(gateway)
    return pad(text if terminal.width is None else terminal.squeeze(text, *column), column.width)


def _tone(alert: Alert) -> Tone:
    if alert.test:
        return "note"
    return "quiet" if alert.state == "end" else "bad" if CLASSES[alert.class_name].severity == 1 else "warn"


def _title(alert: Alert, *, short: bool = False) -> str:
    if alert.test:
        return "TEST"
    info = CLASSES[alert.class_name]
    title = info.title.removesuffix(" attack") if short and alert.class_name == "unknown" else info.title
    title = title if info.kind or alert.kind == "other" else f"{title} ({alert.kind})"
    return f"{title} against" if alert.role == "victim" else title if short else f"{title} from"


def _names(device: AlertDevice, terminal: Terminal) -> list[str]:
    """Return what is known of a device, the most telling first: its name, MAC and IP address."""
    return [terminal.text(value) for value in (device.name, device.mac, device.ip) if value] or ["an unknown device"]


def _port(alert: Alert) -> str:
    """Return the port that is attacked, "" where there is none: that of one packet says little of the others.

    An alert of an older agent has no `port`, but an explanation that names it, or none at all.
    """
    port = alert.port
    if port is None and has_ports(alert.proto):
        named = not alert.explanation or re.search(rf"\bport {alert.dest_port}\b", alert.explanation)
        port = alert.dest_port if named else None
    return f"port {port}" if port else ""


def _whole(alert: Alert, terminal: Terminal) -> str:
    """Return everything behind the short id, without a bound."""
    why = terminal.text(reason(alert))
    if alert.test:
        return f"TEST: nothing happened; {why}"
    who = " ".join(_names(alert.device, terminal))
    port = f", {text}" if (text := _port(alert)) else ""
    model = f"model {terminal.text(alert.model.version)}{' (generated)' if alert.model.generated else ''}"
    totals = f"{alert.packets:,} packets in {alert.duration_s:.1f} s, confidence {alert.confidence:.2f}, {model}"
    return f"{_title(alert)} {who}{port}: {why} [{totals}]"


def _body(alert: Alert, terminal: Terminal, room: int) -> tuple[str, str]:
    """Return class, device, port and reason in at most ``room`` columns, in two parts: the class, and the rest."""
    title, whole = _title(alert, short=not terminal.roomy), room
    room -= cells(title)
    if alert.test:
        return terminal.cut(title, whole), terminal.cut(f": nothing happened; {terminal.text(reason(alert))}", room)
    device, names, port = alert.device, _names(alert.device, terminal), _port(alert)
    names[0] = terminal.squeeze(names[0], 2 * _NAME if terminal.roomy else _NAME)
    brief = terminal.text(reason(alert, brief=True))
    for most in range(len(names), 0, -1):
        who = f" {' '.join(names[:most])}"
        for why in (terminal.text(reason(alert)), brief):
            if (text := _with_port(f"{who}: {why}", who, why, port)) and cells(text) <= room:
                return title, text
        before = f"{who}, {port}: " if port else f"{who}: "
        if room - cells(before) >= min(_REASON * (2 if most == 3 else 1), cells(brief)):
            return title, terminal.cut(before + brief, room)
    place = f" {port}" if port else ""
    if device.name:  # a MAC or an address is not cut
        names[0] = terminal.squeeze(names[0], max(whole - cells(title + place) - 1, _TITLE))
    who = f" {names[0]}"
    title = terminal.cut(title, min(max(whole - cells(who + place), _TITLE), whole))
    room = whole - cells(title)
    text = f"{who}{place}: {brief}" if room - cells(f"{who}{place}: ") >= _SCRAP else f"{who}{place}"
    return title, terminal.cut(text, room)


def _with_port(text: str, who: str, why: str, port: str) -> str:
    """Return ``text`` with the port behind the device, unless the reason names it."""
    named = not port or re.search(rf"\b{port}\b", why)
    return text if named else f"{who}, {port}: {why}"
