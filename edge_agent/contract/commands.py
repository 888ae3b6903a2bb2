"""Commands to an agent and their replies: everything that a new verb needs to say.

A verb's entry in `VERBS` is its grammar; what may be ordered, and by whom, is `edge_agent.control`'s rule. Standard
library only; no clock.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_agent.contract.alert import CLASSES
from edge_agent.contract.messages import MessageError, check_uuid7, format_time, parse_time

MAX_COMMAND = 4_096
"""Bytes of a command; ours have some 300."""

MAX_FOR_S = 366 * 86_400.0
"""The longest time that anything may be ordered for."""

ALL_DEVICES = "*"
"""Stands for every device where a device is named; never taken from the broker."""

_COMMAND_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)([smhd]?)")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_FAMILIES = tuple(sorted({f"{name.partition('.')[0]}.*" for name in CLASSES if "." in name}))


def parse_duration(text: str) -> float:
    """Seconds of "90", "90s", "15m", "24h" or "7d"; a MessageError for anything else.

    >>> parse_duration("1.5h")
    5400.0
    """
    match = _DURATION.fullmatch(text)
    if not match:
        raise MessageError(f"{text[:40]!r} is no time: a number and s, m, h or d (90s, 15m, 24h, 7d)")
    return float(match[1]) * _UNITS[match[2]]


def _text(most: int, what: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or not value.strip() or len(value) > most or not value.isprintable():
            raise MessageError(f"expected {what}: 1 to {most} printable characters")
        return value.strip()

    return read


def _natural(low: int, high: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise MessageError(f"expected a whole number from {low} to {high}")
        return value

    return read


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
    known = (*CLASSES, *_FAMILIES)
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= len(known):
        raise MessageError("expected a list of classes")
    for name in value:
        if name not in known:
            raise MessageError(f"{str(name)[:40]!r} is none of {', '.join(known)}")
    return tuple(dict.fromkeys(value))


def _since(value: object) -> int:
    if not isinstance(value, str):
        raise MessageError("expected a time like 2026-11-23T16:22:10.123456+0000")
    return parse_time(value)


@dataclass(frozen=True)
class Verb:
    """What may be said with a command: a reader for each argument, and which of them must be there."""

    about: str
    arguments: Mapping[str, Callable[[object], Any]]
    required: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()  # exactly one of these must be there
    parts: str = ""  # the argument that is the id of the `messages.Chunk`s which follow the reply; "" if none do


_DEVICE = _text(64, "a device (MAC, IP address or name)")
_REASON = _text(200, "a reason")

VERBS: Mapping[str, Verb] = {
    "status": Verb("say how things are", {}),
    "allow": Verb(
        "let a device do what an alert said, for a time",
        {
            "alert": check_uuid7,
            "device": _DEVICE,
            "classes": _classes,
            "host": _host,
            "port": _natural(1, 65_535),
            "for_s": _for_s,
            "reason": _REASON,
        },
        required=("reason",),
        one_of=("alert", "device"),
    ),
    "unallow": Verb("end an entry of the allow list", {"entry": _natural(1, 2**53)}, required=("entry",)),
    "mute": Verb(
        "hold back all alerts of a device, for a time",
        {"alert": check_uuid7, "device": _DEVICE, "for_s": _for_s, "reason": _REASON},
        one_of=("alert", "device"),
    ),
    "unmute": Verb("end a mute", {"entry": _natural(1, 2**53), "device": _DEVICE}, one_of=("entry", "device")),
    "learn": Verb("learn a device anew", {"device": _DEVICE}, required=("device",)),
    "replay": Verb("send alerts again that the broker took since", {"since": _since}, required=("since",)),
    "evidence": Verb("send the packets around an alert", {"alert": check_uuid7}, required=("alert",), parts="alert"),
    "test-alert": Verb("send an alert that says it is a test", {}),
}
"""Every verb of ``.../cmd/<verb>``: the grammar of its document. What may be ordered is `edge_agent.control`'s rule."""


@dataclass(frozen=True)
class Command:
    """An order to an agent: ``.../cmd/<verb>`` with QoS 1, never retained; ``id`` names it, and is in its reply."""

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
        """The JSON object; `read` takes it back."""
        said: dict[str, Any] = {"id": self.id}
        for key, value in self.arguments.items():
            said[key] = format_time(value) if key == "since" else list(value) if key == "classes" else value
        if self.by:
            said["by"] = self.by
        if self.t_ns is not None:
            said["ts"] = format_time(self.t_ns)
        return said

    @classmethod
    def read(cls, verb: str, document: Mapping[str, Any]) -> "Command":
        """A command from a decoded payload; a MessageError names the key that will not do. Unknown keys are refused."""
        grammar = VERBS.get(verb)
        if grammar is None:
            raise MessageError(f"unknown command {verb[:40]!r}; known: {', '.join(VERBS)}")
        id_ = document.get("id")
        if not isinstance(id_, str) or not _COMMAND_ID.fullmatch(id_):
            raise MessageError("id: 1 to 64 of A-Z, a-z, 0-9, '_', '.', ':' and '-'")
        readers = {**grammar.arguments, "by": _text(64, "who"), "ts": _since}
        arguments = {}
        for key, value in document.items():
            if key == "id":
                continue
            if key not in readers:
                raise MessageError(f"{verb}: unknown key {key[:40]!r}; known: id, {', '.join(readers)}")
            try:
                arguments[key] = readers[key](value)
            except MessageError as error:
                raise MessageError(f"{verb}: {key}: {error}") from error
        for key in grammar.required:
            if key not in arguments:
                raise MessageError(f"{verb}: missing key {key!r}")
        if grammar.one_of and len(given := [key for key in grammar.one_of if key in arguments]) != 1:
            raise MessageError(f"{verb}: one of {', '.join(grammar.one_of)} and not {' and '.join(given) or 'none'}")
        by, t_ns = arguments.pop("by", ""), arguments.pop("ts", None)
        return cls(verb, id_, arguments, by, t_ns)


@dataclass(frozen=True)
class Reply:
    """What became of a command, on ``.../reply`` or the response topic of the request (MQTT 5), not retained."""

    id: str  # the command's; "" where it had none that can be read
    verb: str
    t_ns: int
    result: Mapping[str, Any] | None = None
    error: str = ""  # why not; "" when it was done

    def document(self) -> dict[str, Any]:
        """The JSON object: with ``result`` when ``ok``, else with ``error``."""
        said: dict[str, Any] = {"id": self.id, "verb": self.verb, "ok": not self.error, "ts": format_time(self.t_ns)}
        return said | ({"error": self.error} if self.error else {"result": dict(self.result or {})})

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Reply":
        """A reply from a decoded payload, or a MessageError; unknown keys of newer agents are ignored."""
        id_, verb, ok, ts = (document.get(key) for key in ("id", "verb", "ok", "ts"))
        result, error = document.get("result"), document.get("error", "")
        if not (isinstance(id_, str) and isinstance(verb, str) and isinstance(ok, bool) and isinstance(ts, str)):
            raise MessageError("reply: id, verb, ok and ts are expected")
        if not isinstance(error, str) or ok == bool(error) or (ok and not isinstance(result, dict)):
            raise MessageError("reply: a result when ok, else an error")
        return cls(id_, verb, parse_time(ts), result if ok else None, error)
