"""Commands to an agent and their replies: everything that a new verb needs to say.

A verb's entry in `VERBS` has the grammar of its document, the words by which people give it on the gateway and at the
collector, and if something larger follows the reply. What may be commanded, and by whom, is `edge_agent.control`'s
rule. No clock.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edge_agent.contract import alertid
from edge_agent.contract.alert import CLASSES, KINDS
from edge_agent.contract.cli import unknown
from edge_agent.contract.messages import MessageError, format_time, parse_time

MAX_COMMAND = 4_096
"""Largest number of bytes of a command; real ones have some 300."""

MAX_FOR_S = 366 * 86_400.0
"""Longest time in seconds for which anything may be commanded."""

ALL_DEVICES = "*"
"""The name of all devices together, where a device is named; refused when it comes from the broker."""

ANY_PORT = "any"
"""The name of all ports together, where a port is named."""

_COMMAND_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)([smhd]?)")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

FAMILIES = tuple(sorted({f"{name.partition('.')[0]}.*" for name in CLASSES if "." in name}))
"""The names of all classes of a family together, where classes are named."""


def parse_duration(text: str) -> float:
    """Return the seconds of "90", "90s", "15m", "24h" or "7d"; a MessageError for anything else.

    >>> parse_duration("1.5h")
    5400.0
    """
    match = _DURATION.fullmatch(text)
    if not match:
        raise MessageError(f"{text[:40]!r} is not a duration: a number and s, m, h or d (90s, 15m, 24h, 7d)")
    return float(match[1]) * _UNITS[match[2]]


# --- arguments ----------------------------------------------------------------------------------------------


def _as_typed(text: str, now_ns: int) -> object:
    return text


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One argument of a command: how a document has it, and how people type it.

    ``read`` turns a JSON value into the value, or raises MessageError; ``write`` turns it back. ``parse`` turns typed
    text into the JSON value; the time in Unix ns lets it take an age for a time. ``word`` is its name at the collector
    where that is not its key. ``option`` is its name on the gateway's command line ("--for"; "" for an argument without
    an option; None for one that cannot be given there), ``metavar`` and ``help`` describe it there. An option without a
    ``metavar`` takes no value and means true.
    """

    read: Callable[[object], Any]
    write: Callable[[Any], object] = _same
    parse: Callable[[str, int], object] = _as_typed
    word: str = ""
    option: str | None = None
    metavar: str = ""
    help: str = ""


def _text(most: int, what: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or not value.strip() or len(value) > most or not value.isprintable():
            raise MessageError(f"expected {what}: 1 to {most} printable characters")
        return value.strip()

    return read


def _whole(low: int, high: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise MessageError(f"expected a whole number from {low} to {high}")
        return value

    return read


def _parse_whole(text: str, now_ns: int) -> object:
    return int(text) if text.isascii() and text.isdigit() else text


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise MessageError("expected true or false")
    return value


def _parse_flag(text: str, now_ns: int) -> object:
    return {"yes": True, "true": True, "no": False, "false": False}.get(text, text)


def _for_s(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value <= MAX_FOR_S:
        raise MessageError(f"expected seconds, from 1 to {MAX_FOR_S:.0f}")
    return float(value)


def _host(value: object) -> str:
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError as error:
        raise MessageError("expected an IP address") from error


def _classes(value: object) -> tuple[str, ...]:
    known = (*CLASSES, *FAMILIES)
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= len(known):
        raise MessageError("expected a list of classes")
    for name in value:
        if name not in known:
            raise MessageError(unknown("class", str(name)[:40], known))
    return tuple(dict.fromkeys(value))


def _kinds(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= len(KINDS):
        raise MessageError("expected a list of kinds")
    for name in value:
        if name not in KINDS:
            raise MessageError(unknown("kind", str(name)[:40], KINDS))
    return tuple(dict.fromkeys(value))


def _port(value: object) -> int | str:
    return ANY_PORT if value == ANY_PORT else _whole(1, 65_535)(value)


def _time(value: object) -> int:
    if not isinstance(value, str):
        raise MessageError("expected a time like 2026-11-23T16:22:10.123456+0000")
    return parse_time(value)


def _parse_since(text: str, now_ns: int) -> object:
    return text if "T" in text else format_time(now_ns - int(parse_duration(text) * 1e9))


def _parse_device(text: str, now_ns: int) -> object:
    return ALL_DEVICES if text == "all" else text


_ALERT = Argument(read=alertid.read)
_REPLACE = Argument(
    read=_flag,
    parse=_parse_flag,
    option="--replace",
    help="end it then even if the same is suppressed for longer already",
)
_DEVICE = Argument(read=_text(64, "a device (MAC, IP address or name)"))
_ENTRY = Argument(read=_whole(1, 2**53), parse=_parse_whole)
_FOR = Argument(
    read=_for_s,
    parse=lambda text, now_ns: parse_duration(text),
    word="for",
    option="--for",
    metavar="TIME",
    help="how long it lasts: 90s, 15m, 24h, 7d (default {})",
)
_REASON = Argument(
    read=_text(200, "a reason"),
    option="--reason",
    metavar="TEXT",
    help="the reason, which is stored and shown by `status`",
)
_BY, _TS = _text(64, "who"), _time


# --- verbs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Verb:
    """The grammar of the commands of one verb, and the words by which people give them.

    ``about`` is a sentence for people. ``parts`` names the argument that is the id of the `messages.Chunk`s which
    follow the reply; "" when none do. ``local`` is an example of its arguments on the gateway's command line; None for
    a verb that has no plain command there.
    """

    about: str
    arguments: Mapping[str, Argument]
    required: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()  # exactly one of these must be there
    parts: str = ""
    local: str | None = None


VERBS: Mapping[str, Verb] = {
    "status": Verb(
        about="print the state of the agent: health, counters, devices, suppressions", arguments={}, local=""
    ),
    "allow": Verb(
        about="suppress alerts of a device about one kind of traffic, as an alert reported it, for a time; they are "
        "counted, not sent",
        arguments={
            "alert": replace(
                _ALERT,
                option="",
                metavar="ALERT-ID",
                help="the alert whose device, kinds and ports are meant: its id, or its last 6 digits or more",
            ),
            "device": replace(
                _DEVICE,
                option="--device",
                metavar="MAC|NAME",
                help="name the device instead of an alert; needs --kind or --class",
            ),
            "kinds": Argument(
                read=_kinds,
                write=list,
                parse=lambda text, now_ns: text.split(","),
                word="kind",
                option="--kind",
                metavar="KIND",
                help=f"the kind of traffic, whatever a model names it: {', '.join(KINDS)}; may be repeated",
            ),
            "classes": Argument(
                read=_classes,
                write=list,
                parse=lambda text, now_ns: text.split(","),
                option="--class",
                metavar="CLASS",
                help="the kind of traffic of this class, or of all classes of a family as mirai.*; may be repeated",
            ),
            "host": Argument(
                read=_host, option="--host", metavar="IP", help="only alerts with this destination address"
            ),
            "port": Argument(
                read=_port,
                parse=_parse_whole,
                option="--port",
                metavar="N|any",
                help="only traffic to this port, or to any, instead of the alert's",
            ),
            "reason": _REASON,
            "for_s": replace(_FOR, help=_FOR.help.format("30d")),
            "learn": Argument(
                read=_flag,
                parse=_parse_flag,
                option="--learn",
                help="it was a false alert: also raise the device's own limits to this traffic, until `unallow`",
            ),
            "replace": _REPLACE,
        },
        required=("reason",),
        one_of=("alert", "device"),
        local='7c1e9a44 --reason "backup job" --for 7d',
    ),
    "unallow": Verb(
        about="end an allow, so that alerts are sent again",
        arguments={"entry": replace(_ENTRY, option="", metavar="N", help="number of the entry, as `status` shows it")},
        required=("entry",),
        local="3",
    ),
    "mute": Verb(
        about="suppress all alerts of a device for a time; they are counted, not sent",
        arguments={
            "alert": _ALERT,
            "device": replace(
                _DEVICE,
                parse=_parse_device,
                option="",
                metavar="MAC|NAME|ALERT-ID|all",
                help="a device's MAC or name, a victim's IP address, an alert's id or its ending, or all devices",
            ),
            "for_s": replace(_FOR, help=_FOR.help.format("1h")),
            "reason": _REASON,
            "replace": _REPLACE,
        },
        one_of=("alert", "device"),
        local="cam-entrance --for 2h",
    ),
    "unmute": Verb(
        about="end the mutes of a device, so that its alerts are sent again",
        arguments={
            "entry": _ENTRY,
            "device": replace(
                _DEVICE,
                parse=_parse_device,
                option="",
                metavar="MAC|NAME|ALERT-ID|all",
                help="the device, or an alert of it, as it was muted",
            ),
        },
        one_of=("entry", "device"),
        local="cam-entrance",
    ),
    "learn": Verb(
        about="forget what was learnt of a device and learn it anew; only for a device that is known to be healthy",
        arguments={
            "device": replace(
                _DEVICE, option="", metavar="MAC|NAME", help="the device; what was learnt of it is forgotten"
            )
        },
        required=("device",),
        local="cam-entrance",
    ),
    "replay": Verb(
        about="send again the alerts that the broker has taken since a time",
        arguments={"since": Argument(read=_time, write=format_time, parse=_parse_since)},
        required=("since",),
    ),
    "evidence": Verb(
        about="send the packets around an alert", arguments={"alert": _ALERT}, required=("alert",), parts="alert"
    ),
    "test-alert": Verb(about="send an alert that is marked as a test and counts as no episode", arguments={}),
}
"""Every verb of ``.../cmd/<verb>``."""


def typed(verb: str, word: str, text: str, now_ns: int) -> tuple[str, object]:
    """Return key and JSON value of an argument of ``verb`` as people type it; ``now_ns`` is the time in Unix ns.

    A word that the verb does not have is returned as it is, for `Command.read` to refuse. Raises MessageError.

    >>> typed("mute", "for", "2h", 0)
    ('for_s', 7200.0)
    """
    for key, argument in VERBS[verb].arguments.items():
        if word in (key, argument.word):
            return key, argument.parse(text, now_ns)
    return word, text


@dataclass(frozen=True)
class Command:
    """A command to an agent: ``.../cmd/<verb>`` with QoS 1, never retained; ``id`` names it, and is in its reply."""

    verb: str  # a key of VERBS
    id: str  # 1 to 64 of A-Z, a-z, 0-9, "_", ".", ":", "-"; a second command of the same id is a repeat of the first
    arguments: Mapping[str, Any]
    by: str = ""  # who, in their own words
    t_ns: int | None = None  # when it was sent

    @property
    def parts_leaf(self) -> str:
        """The leaf of the topic on which parts of something larger follow the reply; "" if none do."""
        key = VERBS[self.verb].parts
        return f"chunk/{self.arguments[key]}" if key else ""

    def document(self) -> dict[str, Any]:
        """Return the JSON object, which `read` takes back."""
        grammar = VERBS[self.verb].arguments
        document: dict[str, Any] = {"id": self.id}
        for key, value in self.arguments.items():
            document[key] = grammar[key].write(value) if key in grammar else value
        if self.by:
            document["by"] = self.by
        if self.t_ns is not None:
            document["ts"] = format_time(self.t_ns)
        return document

    @classmethod
    def read(cls, verb: str, document: Mapping[str, Any]) -> "Command":
        """Return the command of a decoded payload; a MessageError names the key that is missing, wrong or unknown."""
        grammar = VERBS.get(verb)
        if grammar is None:
            raise MessageError(unknown("command", verb[:40], VERBS))
        id_ = document.get("id")
        if not isinstance(id_, str) or not _COMMAND_ID.fullmatch(id_):
            raise MessageError("id: 1 to 64 of A-Z, a-z, 0-9, '_', '.', ':' and '-'")
        readers = {**{key: argument.read for key, argument in grammar.arguments.items()}, "by": _BY, "ts": _TS}
        arguments = {}
        for key, value in document.items():
            if key == "id":
                continue
            if key not in readers:
                raise MessageError(f"{verb}: {unknown('key', key[:40], ('id', *readers))}")
            try:
                arguments[key] = readers[key](value)
            except MessageError as error:
                raise MessageError(f"{verb}: {key}: {error}") from error
        for key in grammar.required:
            if key not in arguments:
                raise MessageError(f"{verb}: missing key {key!r}")
        if grammar.one_of and len(given := [key for key in grammar.one_of if key in arguments]) != 1:
            keys, both = " or ".join(grammar.one_of), " and ".join(given)
            raise MessageError(f"{verb}: give {keys}, not both" if both else f"{verb}: {keys} is missing")
        by, t_ns = arguments.pop("by", ""), arguments.pop("ts", None)
        return cls(verb, id_, arguments, by, t_ns)


@dataclass(frozen=True)
class Reply:
    """The outcome of a command, on ``.../reply`` or the response topic of the request (MQTT 5), not retained."""

    id: str  # the command's; "" where it had none that can be read
    verb: str
    t_ns: int
    result: Mapping[str, Any] | None = None
    error: str = ""  # why it was refused; "" when it was done

    def document(self) -> dict[str, Any]:
        """Return the JSON object: with ``result`` when ``ok``, else with ``error``."""
        head: dict[str, Any] = {"id": self.id, "verb": self.verb, "ok": not self.error, "ts": format_time(self.t_ns)}
        return head | ({"error": self.error} if self.error else {"result": dict(self.result or {})})

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Reply":
        """Return the reply of a decoded payload, or raise MessageError; unknown keys of newer agents are ignored."""
        id_, verb, ok, ts = (document.get(key) for key in ("id", "verb", "ok", "ts"))
        result, error = document.get("result"), document.get("error", "")
        if not (isinstance(id_, str) and isinstance(verb, str) and isinstance(ok, bool) and isinstance(ts, str)):
            raise MessageError("reply: id, verb, ok and ts are expected")
        if not isinstance(error, str) or ok == bool(error) or (ok and not isinstance(result, dict)):
            raise MessageError("reply: a result when ok, else an error")
        return cls(id_, verb, parse_time(ts), result if ok else None, error)
