"""Suppressions: what a device may do for a time without an alert (an allow), and which devices are muted.

A suppression covers detections of one device (its MAC; for a victim its address), of all classes or some, to anywhere
or to one host or port. It has a reason and an end. Who may make one, and for how long, is `edge_agent.control`'s
knowledge; what becomes of an episode that is covered is `edge_agent.delivery.alerts`'. Suppressions and their hits
survive a restart.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from edge_agent.contract.captures import mac_text
from edge_agent.contract.commands import ALL_DEVICES
from edge_agent.contract.messages import format_time
from edge_agent.detection.detection import Detection
from edge_agent.state import State, StateUnwritableError

FLUSH_S = 600.0
"""Seconds between two writes of the hits: each write wears the card, and a few hits more or less do not matter."""


class SuppressionError(Exception):
    """A suppression that cannot be made; the message says why."""


@dataclass(frozen=True)
class Suppression:
    """One allow or mute; times are Unix seconds of the wall clock."""

    kind: Literal["allow", "mute"]
    device: str  # a MAC, the address of a victim, or ALL_DEVICES
    created_s: float
    expires_s: float
    classes: tuple[str, ...] = ()  # keys of CLASSES, or a family as "mirai.*"; () is any
    host: str = ""  # "" is any
    port: int = 0  # 0 is any
    reason: str = ""
    by: str = ""
    origin: str = "local"

    def covers(self, detection: Detection) -> bool:
        """Return True if alerts of this detection are to be suppressed."""
        return (
            self.device in (ALL_DEVICES, device_of(detection))
            and (not self.classes or any(_is(detection.class_name, name) for name in self.classes))
            and self.host in ("", detection.dest_ip)
            and self.port in (0, detection.dest_port)
        )

    def same_as(self, other: "Suppression") -> bool:
        """Return True if both cover the same, so that the newer one replaces the older."""
        mine, others = [(s.kind, s.device, frozenset(s.classes), s.host, s.port) for s in (self, other)]
        return mine == others


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
    clock that is set forward for a moment does not end it). While the state cannot be read nothing is suppressed.
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
                values = json.loads(text)
                suppression = Suppression(**values | {"classes": tuple(values["classes"])})
                ends = steady_s + suppression.expires_s - suppression.created_s
                self._listed[n] = _Listed(suppression, ends, hits, last_s)
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
        """Return True if an active suppression covers this detection."""
        return any(entry.suppression.covers(detection) for entry in self._active.values())

    def hit(self, detection: Detection) -> None:
        """Count a suppressed episode."""
        for entry in self._active.values():
            if entry.suppression.covers(detection):
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
        n = self._state.suppression_put(json.dumps(dataclasses.asdict(suppression)), replaced)
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
    document = {
        "entry": n,
        "kind": suppression.kind,
        "device": suppression.device,
        "classes": list(suppression.classes),
        "host": suppression.host,
        "port": suppression.port,
        "reason": suppression.reason,
        "by": suppression.by,
        "origin": suppression.origin,
        "since": _time(suppression.created_s),
        "until": _time(suppression.expires_s),
        "hits": entry.hits,
        "last_hit": None if entry.last_s is None else _time(entry.last_s),
    }
    return {key: value for key, value in document.items() if value not in ("", 0, [], None) or key == "hits"}


def _time(seconds: float) -> str:
    return format_time(math.floor(seconds * 1000) * 1_000_000)
