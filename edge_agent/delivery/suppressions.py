"""Suppressions: what a device may do for a time without an alert (an allow), and which devices are muted.

An allow covers sorts of traffic of one device (its MAC; for a victim its address), as they were measured and whatever a
model names them: a kind with a port, or with any. A detection is suppressed only if all that it consists of is covered,
so an allowed scan covers no flood. An allowed flood covers slower traffic to the same port, with which a flood begins.
A mute covers everything.

A suppression has a reason and an end. Who may make one, and for how long, is `edge_agent.control`'s knowledge; what
becomes of an episode that is covered is `edge_agent.delivery.alerts`'. Suppressions and their hits survive a restart.
"""

import ipaddress
import json
import logging
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from edge_agent.contract import record
from edge_agent.contract.alert import CLASSES, KINDS, Activity
from edge_agent.contract.captures import mac_text, parse_mac
from edge_agent.contract.commands import ALL_DEVICES, FAMILIES, MAX_FOR_S
from edge_agent.contract.messages import MessageError, decode, format_time
from edge_agent.contract.record import Form, spelt
from edge_agent.detection.detection import Detection
from edge_agent.state import State, StateUnwritableError

FLUSH_S = 600.0
"""Seconds between two writes of the hits: each write wears the card, and a few hits more or less do not matter."""

_LAST_S = 253_402_300_799.0  # the end of the year 9999
_TEXT = 200  # characters of a reason; of a name there are fewer
_WORDS = {
    "flood": "floods (or slower traffic)",
    "scan": "scans",
    "check-in": "check-ins",
    "other": "other unusual traffic",
}

logger = logging.getLogger(__name__)


class SuppressionError(Exception):
    """A suppression that cannot be made; the message says why."""


ACTIVITIES = Form(
    {},
    lambda activities: [record.write(activity) for activity in activities],
    lambda items: tuple(Activity(**record.read(Activity, item)) for item in items),
)
"""The form of activities in the state file."""

NAMES = Form({}, list, lambda items: tuple(map(str, items)))
"""The form of classes in the state file."""


_SECONDS = Form({}, float, lambda value: float(value) if isinstance(value, int | float) else math.nan)
"""A time with all its digits; not a number for what is none."""


@dataclass(frozen=True)
class Suppression:
    """One allow or mute; times are Unix seconds of the wall clock."""

    verb: Literal["allow", "mute"]
    device: str  # a MAC, the address of a victim, or ALL_DEVICES
    created_s: Annotated[float, spelt(form=_SECONDS)]
    expires_s: Annotated[float, spelt(form=_SECONDS)]
    activities: Annotated[tuple[Activity, ...], spelt(form=ACTIVITIES)] = ()  # () is any; a port None is any, too
    classes: Annotated[tuple[str, ...], spelt(form=NAMES)] = ()  # only alerts that are so named; () is any
    host: str = ""  # "" is any
    reason: str = ""
    by: str = ""
    origin: Literal["local", "broker"] = "local"
    learn: bool = False
    """True if the device's limits were raised to this traffic, too, which ends with the suppression if it is ended."""

    def covers(self, detection: Detection, activity: Activity) -> bool:
        """Return True if this part of a detection is to be suppressed."""
        return (
            self.device in (ALL_DEVICES, device_of(detection))
            and (not self.classes or detection.class_name in self.classes)
            and self.host in ("", detection.dest_ip)
            and (not self.activities or any(_includes(allowed, activity) for allowed in self.activities))
        )

    def same_as(self, other: "Suppression") -> bool:
        """Return True if both cover the same, so that the newer one replaces the older."""
        mine, others = [
            (s.verb, s.device, frozenset(s.activities), frozenset(s.classes), s.host) for s in (self, other)
        ]
        return mine == others

    @property
    def about(self) -> str:
        """The traffic that is covered, in words: "scans to port 22"."""
        if self.verb == "mute":
            return "everything"
        by_port: dict[int | None, list[str]] = {}
        for activity in self.activities:
            by_port.setdefault(activity.port, []).append(_WORDS[activity.kind])
        if self.classes:
            by_port = {port: [f"alerts of class {' or '.join(self.classes)}"] for port in by_port}
        parts = [f"{_joined(words)} to {f'port {port}' if port else 'any port'}" for port, words in by_port.items()]
        return " and ".join(parts) + (f" of {self.host}" if self.host else "")

    @classmethod
    def read(cls, text: object) -> "Suppression":
        """Return the suppression of a JSON text, also of one that an earlier version stored; else a MessageError."""
        values = decode(text.encode() if isinstance(text, str) else b"")
        if "verb" not in values:  # earlier versions: an allow was about classes and one port
            old = record.read(_ByClasses, values)
            values = values | {"verb": values.get("kind")}
            if values["verb"] == "allow":
                activities, values["classes"] = of_classes(old["classes"], old["port"] or None)
                values["activities"] = ACTIVITIES.write(activities)
        suppression = cls(**record.read(cls, values))
        suppression.check()
        return suppression

    def check(self) -> None:
        """Raise MessageError for values that no suppression can have."""
        if self.device != ALL_DEVICES or self.verb != "mute":
            check_device(self.device)
        if not 0 <= self.created_s < self.expires_s <= min(self.created_s + MAX_FOR_S, _LAST_S):
            raise MessageError(f"it lasts from {self.created_s:g} to {self.expires_s:g}")
        if self.verb == "allow" and not self.activities:
            raise MessageError("an allow of nothing")
        if any(activity.port is not None and not 0 <= activity.port <= 65_535 for activity in self.activities):
            raise MessageError("a port above 65535")
        if unknown := set(self.classes) - {*CLASSES, *FAMILIES}:
            raise MessageError(f"unknown classes {', '.join(sorted(unknown))[:80]}")
        if self.host:
            _check_address(self.host)
        for text in (self.reason, self.by):
            if len(text) > _TEXT or not text.isprintable():
                raise MessageError(f"{text[:40]!r} cannot be printed, or is too long")

    def text(self) -> str:
        """Return the JSON text that `read` takes back."""
        return json.dumps(record.write(self))


@dataclass(frozen=True)
class _ByClasses:
    """The fields of an allow as earlier versions stored it that are no longer there."""

    classes: Annotated[tuple[str, ...], spelt(form=NAMES)]
    port: int


def of_classes(classes: Iterable[str], port: int | None) -> tuple[tuple[Activity, ...], tuple[str, ...]]:
    """Return the traffic that classes and families stand for, and the names that an alert must have besides.

    A class of a scan or a flood stands for its kind, whatever a model names it. Only where no class has a kind, as
    `unknown`, does the name decide, and every kind is meant.

    >>> of_classes(["gafgyt.scan", "unknown"], 23)
    ((Activity(kind='scan', port=23),), ())
    >>> [activity.kind for activity in of_classes(["mirai.*"], None)[0]]
    ['flood', 'scan']
    >>> of_classes(["unknown"], None)[1]
    ('unknown',)
    """
    classes = tuple(classes)
    kinds = {CLASSES[name].kind for name in CLASSES if any(_is(name, wanted) for wanted in classes)} - {""}
    chosen = [kind for kind in KINDS if not kinds or kind in kinds]
    return tuple(Activity(kind, port) for kind in chosen), () if kinds else classes


def _includes(allowed: Activity, activity: Activity) -> bool:
    slower = allowed.kind == "flood" and activity.kind == "other"
    return (allowed.kind == activity.kind or slower) and allowed.port in (None, activity.port)


def _joined(words: list[str]) -> str:
    """Return words as people list them.

    >>> _joined(["scans", "floods", "check-ins"])
    'scans, floods and check-ins'
    """
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def check_device(device: str) -> None:
    """Raise MessageError unless ``device`` is a MAC or an IP address."""
    try:
        parse_mac(device)
    except ValueError:
        _check_address(device)


def _check_address(text: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise MessageError(str(error)) from error


@dataclass
class _Listed:
    """A suppression with its end on the steady clock and its hits."""

    suppression: Suppression
    ends: float  # by then it is over, whatever the wall clock is set to
    hits: int = 0
    last_s: float | None = None
    dirty: bool = False  # hits that are not on the disk yet


class Suppressions:
    """The suppressions in ``state``, at most ``max_entries``. Call `tick` each second: it decides which are active.

    A suppression ends when the wall clock says so, or when its whole time has passed on the steady clock since it was
    made or read: a clock that is set back does not prolong it. One that is over stays until its place is needed (a
    clock that is set forward for a moment does not end it). While the state cannot be read nothing is suppressed. A
    stored one that is damaged is dropped.
    """

    def __init__(self, state: State, max_entries: int, now_s: float, steady_s: float) -> None:
        self._state, self._max = state, max_entries
        self._listed: dict[int, _Listed] = {}
        self._flushed, self._read = steady_s, False
        self._active: dict[int, _Listed] = {}
        self.tick(now_s, steady_s)

    def _recall(self, steady_s: float) -> None:
        with suppress(StateUnwritableError):  # which the outbox logs and counts
            for n, text, hits, last_s in self._state.suppressions():
                try:
                    suppression = Suppression.read(text)
                except MessageError as error:
                    self._state.damaged += 1
                    logger.error(
                        "allow or mute %d in %s is damaged and is dropped, so alerts that it suppressed are sent: %s",
                        *(n, self._state.path, error),
                    )
                    self._state.suppression_drop(n)
                    continue
                ends = steady_s + suppression.expires_s - suppression.created_s
                known = last_s if last_s is not None and 0 <= last_s <= _LAST_S else None
                self._listed[n] = _Listed(suppression, ends, max(hits, 0), known)
            self._read = True

    def tick(self, now_s: float, steady_s: float) -> None:
        """Decide which suppressions are active now, and write the hits when that is due."""
        if not self._read:
            self._recall(steady_s)
        self._active = {
            n: entry
            for n, entry in self._listed.items()
            if now_s < entry.suppression.expires_s and steady_s < entry.ends
        }
        if steady_s - self._flushed >= FLUSH_S:
            self._flushed = steady_s
            self.flush()

    def covers(self, detection: Detection) -> bool:
        """Return True if the active suppressions together cover all that a detection consists of."""
        return all(
            any(entry.suppression.covers(detection, activity) for entry in self._active.values())
            for activity in detection.activities
        )

    def hit(self, detection: Detection) -> None:
        """Count a suppressed episode."""
        for entry in self._active.values():
            if any(entry.suppression.covers(detection, activity) for activity in detection.activities):
                entry.hits, entry.last_s, entry.dirty = entry.hits + 1, detection.t_ns / 1e9, True

    def add(self, suppression: Suppression, now_s: float, steady_s: float) -> int:
        """Make a suppression and return its number; it replaces one that covers the same.

        SuppressionError when there are ``max_entries``.
        """
        replaced = [n for n, entry in self._listed.items() if entry.suppression.same_as(suppression)]
        if len(self._listed) - len(replaced) >= self._max:
            over = sorted(
                set(self._listed) - set(self._active) - set(replaced),
                key=lambda n: self._listed[n].suppression.expires_s,
            )
            if not over:
                raise SuppressionError(f"the list of suppressions is full ({self._max} entries): end one first")
            replaced.append(over[0])
        n = self._state.suppression_put(suppression.text(), replaced)
        for gone in replaced:
            del self._listed[gone]
        self._listed[n] = _Listed(suppression, steady_s + suppression.expires_s - suppression.created_s)
        self.tick(now_s, steady_s)
        return n

    def outlasting(self, suppression: Suppression, now_s: float, steady_s: float) -> int | None:
        """Return the number of the active suppression that covers the same and ends later; None if there is none."""
        for n, entry in self._active.items():
            # By both clocks: one that was set must not make a suppression look longer than it is.
            left_s = min(entry.suppression.expires_s - now_s, entry.ends - steady_s)
            if entry.suppression.same_as(suppression) and left_s > suppression.expires_s - now_s:
                return n
        return None

    def drop(self, n: int) -> None:
        """End suppression ``n`` and forget it."""
        self._state.suppression_drop(n)
        self._listed.pop(n, None)
        self._active.pop(n, None)

    def active(self) -> Mapping[int, Suppression]:
        """Return the active suppressions by their numbers."""
        return {n: entry.suppression for n, entry in self._active.items()}

    def documents(self) -> list[dict[str, Any]]:
        """Return the active suppressions as `status` and health show them, the newest first."""
        return [_document(n, self._active[n]) for n in sorted(self._active, reverse=True)]

    def flush(self) -> None:
        """Write the hits that are not yet on the disk. StateError when that is not possible."""
        dirty = [(entry.hits, entry.last_s, n) for n, entry in self._listed.items() if entry.dirty]
        if dirty:
            self._state.suppression_hits(dirty)
            for entry in self._listed.values():
                entry.dirty = False


def device_of(detection: Detection) -> str:
    """Return the device of a detection as suppressions name it: the sender's MAC, or the address that is hit."""
    return detection.device_ip if detection.role == "victim" else mac_text(detection.device_mac)


def _is(class_name: str, wanted: str) -> bool:
    family = wanted.removesuffix(".*")
    return class_name == wanted or (family != wanted and class_name.partition(".")[0] == family)


def _document(n: int, entry: _Listed) -> dict[str, Any]:
    suppression = entry.suppression
    ports = {activity.port for activity in suppression.activities}
    document = {
        "entry": n,
        "kind": suppression.verb,
        "device": suppression.device,
        "about": suppression.about,
        "kinds": [] if suppression.classes else list(dict.fromkeys(a.kind for a in suppression.activities)),
        "classes": list(suppression.classes),
        "host": suppression.host,
        "port": ports.pop() if len(ports) == 1 else None,
        "reason": suppression.reason,
        "by": suppression.by,
        "origin": suppression.origin,
        "since": _time(suppression.created_s),
        "until": _time(suppression.expires_s),
        "hits": entry.hits,
        "learnt": suppression.learn or None,
        "last_hit": None if entry.last_s is None else _time(entry.last_s),
    }
    return {key: value for key, value in document.items() if value not in ("", 0, [], None) or key == "hits"}


def _time(seconds: float) -> str:
    return format_time(math.floor(seconds * 1000) * 1_000_000)
