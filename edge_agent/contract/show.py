"""Alerts as people read them: one line of text for each, fitted to the terminal, with times in the local zone.

`collector alerts` and `agent replay` print these lines; programs read the JSON documents instead. Text that came from
elsewhere is escaped before it is measured. Standard library only; which alerts are shown is the command's decision.
"""

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TextIO

from edge_agent.contract.alert import CLASSES, Alert, AlertDevice
from edge_agent.contract.cli import printable
from edge_agent.contract.localtime import local_time
from edge_agent.contract.messages import has_ports

SHORT_ID = 8
"""Hexadecimal digits of a short id: the last ones of an alert's id, whose first ones are its time."""

Tone = Literal["bad", "warn", "quiet", "note", ""]
"""The weight of a text, for a terminal that has colours."""

_ROOMY = 100  # columns from which times have their year and columns two spaces between them
_REASON = 12  # columns that the reason of an alert gets at least, at the expense of the device's addresses
_NAME = 20  # columns of a name where there is little room
_GATEWAY = 12  # columns of a gateway's id where there is little room
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

    def time(self, t_ns: int) -> str:
        """Return Unix ns as a time with its zone, without the year where there is little room."""
        text = self.text(local_time(t_ns, self.utc))
        return text if self.roomy else text.partition("-")[2]

    def cut(self, text: str, room: int | None) -> str:
        """Return ``text`` in at most ``room`` columns; what is cut off is replaced by an ellipsis."""
        if room is None or cells(text) <= room:
            return text
        dots = self._dots
        while text and cells(text) > room - len(dots):
            text = text[:-1]
        return (text.rstrip() + dots)[: max(room, 0)]

    def squeeze(self, text: str, room: int) -> str:
        """Return ``text`` in at most ``room`` columns; what is cut out of its middle is replaced by an ellipsis.

        Names that differ in their last characters stay distinct.
        """
        if cells(text) <= room:
            return text
        half = (room - len(self._dots)) // 2
        return self.cut(text, room - half) + text[len(text) - half :]

    def paint(self, text: str, tone: Tone) -> str:
        """Return ``text`` in the colour of ``tone``, if the terminal has colours."""
        return f"\x1b[{_CODES[tone]}m{text}\x1b[0m" if self.colour and tone and text else text

    @property
    def _dots(self) -> str:
        return "…" if self.text("…") == "…" else "..."


def cells(text: str) -> int:
    """Return the columns that a text takes in a terminal.

    >>> cells("cam"), cells("門"), cells("e\\u0301")
    (3, 2, 1)
    """
    if text.isascii():
        return len(text)
    return sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def pad(text: str, room: int) -> str:
    """Return ``text`` with spaces behind it up to ``room`` columns."""
    return text + " " * max(room - cells(text), 0)


def short_id(id: str) -> str:
    """Return the short id of an alert, which `allow`, `mute` and `evidence` accept in place of the whole.

    >>> short_id("01936d2e-7b1c-7c3e-9f10-0c5a7c1e9a44")
    '7c1e9a44'
    """
    return id.replace("-", "")[-SHORT_ID:]


def reason(alert: Alert, *, brief: bool = False) -> str:
    """Return the reason why an alert was raised; a ``brief`` one has only the first statement, without its details.

    An alert without an explanation is explained by its score.
    """
    text = alert.explanation or f"score {alert.score:.3g}; the limit is {alert.threshold:.3g}"
    return _BRACKETS.sub("", text.partition(";")[0]).replace(" a second", "/s") if brief else text


def gateway_room(gateways: "list[str] | tuple[str, ...]", terminal: Terminal) -> int:
    """Return the columns that the ids of these gateways need, as far as ``terminal`` has them."""
    most = max((len(gateway) for gateway in gateways), default=0)
    return most if terminal.width is None else min(most, 2 * _GATEWAY if terminal.roomy else _GATEWAY)


def alert_line(alert: Alert, terminal: Terminal, gateway_columns: int = 0) -> str:
    """Return an alert as one line: time, gateway, state, short id, class, device, port, reason.

    The gateway's id has ``gateway_columns``, and is left out with 0. In a narrow terminal the addresses of the device
    give way to its name, and the reason is cut; without a width the totals of the episode and the model follow.
    """
    head = [terminal.time(alert.t_ns)]
    if gateway_columns:
        head.append(gateway_cell(alert.gateway, terminal, gateway_columns))
    head += [alert.state.ljust(_STATE), short_id(alert.id)]
    begin = terminal.gap.join(head) + terminal.gap
    if terminal.width is None:
        return begin + _whole(alert, terminal)
    room = terminal.width - cells(begin)
    if room < 1:
        return terminal.cut(begin.rstrip(), terminal.width)
    what, rest = _body(alert, terminal, room)
    return begin + terminal.paint(what, _tone(alert)) + rest


def gateway_cell(gateway: str, terminal: Terminal, columns: int) -> str:
    """Return the id of a gateway in a column of this width."""
    return pad(terminal.squeeze(terminal.text(gateway), columns), columns)


def _tone(alert: Alert) -> Tone:
    if alert.test:
        return "note"
    return "quiet" if alert.state == "end" else "bad" if CLASSES[alert.class_name].severity == 1 else "warn"


def _title(alert: Alert, *, short: bool = False) -> str:
    if alert.test:
        return "TEST"
    title = CLASSES[alert.class_name].title
    return f"{title} against" if alert.role == "victim" else title if short else f"{title} from"


def _names(device: AlertDevice, terminal: Terminal) -> list[str]:
    """Return what is known of a device, the most telling first: its name, MAC and IP address."""
    return [terminal.text(value) for value in (device.name, device.mac, device.ip) if value] or ["an unknown device"]


def _port(alert: Alert) -> str:
    return f"port {alert.dest_port}" if has_ports(alert.proto) and alert.dest_port else ""


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
    title = terminal.cut(_title(alert, short=not terminal.roomy), room)
    room -= cells(title)
    if alert.test:
        return title, terminal.cut(f": nothing happened; {terminal.text(reason(alert))}", room)
    names, port = _names(alert.device, terminal), _port(alert)
    brief = terminal.text(reason(alert, brief=True))
    for most in range(len(names), 0, -1):
        who = f" {' '.join(names[:most])}"
        for why in (terminal.text(reason(alert)), brief):
            if (text := _with_port(f"{who}: {why}", who, why, port)) and cells(text) <= room:
                return title, text
        before = f"{who}, {port}: " if port else f"{who}: "
        if room - cells(before) >= min(_REASON if most < 3 else 2 * _REASON, cells(brief)):
            return title, terminal.cut(before + brief, room)
    who = f" {terminal.squeeze(names[0], _NAME)}"
    text = _with_port(f"{who}: {brief}", who, brief, port)
    return title, terminal.cut(text, room)


def _with_port(text: str, who: str, why: str, port: str) -> str:
    """Return ``text`` with the port behind the device, unless the reason names it."""
    named = not port or re.search(rf"\b{port}\b", why)
    return text if named else f"{who}, {port}: {why}"
