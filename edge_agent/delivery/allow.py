"""The allow list: what a device may do for a time without an alert, and which devices are muted.

An entry covers detections of one device (its MAC; of a victim its address), of all classes or some, to anywhere or to
one host or port. It has a reason and an end. Who may make one, and for how long, is `edge_agent.control`'s knowledge;
what becomes of an episode that is covered that of `edge_agent.delivery.alerts`. Entries and their hits survive a
restart.
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
"""How often hits are written down: each write wears the card, and a hit or two more or less does not matter."""


class AllowError(Exception):
    """An entry that cannot be made or found; the message says why."""


@dataclass(frozen=True)
class Suppression:
    """What is held back: times are Unix seconds of the wall clock."""

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
        """Whether this is what the entry is about."""
        return (
            self.device in (ALL_DEVICES, subject(detection))
            and (not self.classes or any(_is(detection.class_name, name) for name in self.classes))
            and self.host in ("", detection.dest_ip)
            and self.port in (0, detection.dest_port)
        )

    def same_as(self, other: "Suppression") -> bool:
        """Whether both are about the same, so that the newer takes the place of the older."""
        about = [(e.kind, e.device, frozenset(e.classes), e.host, e.port) for e in (self, other)]
        return about[0] == about[1]


@dataclass
class _Kept:
    entry: Suppression
    ends: float  # steady clock: by then it is over, whatever the wall clock is set to
    hits: int = 0
    last_s: float | None = None
    dirty: bool = False


class AllowList:
    """The entries in ``state``, at most ``max_entries``. Call `tick` each second: it says what is active.

    An entry ends when the wall clock says so, or when its whole time has passed on the steady clock since it was made
    or read: a clock set back does not prolong it. One that is over is kept (a clock set forward for a moment does not
    end it) until its place is wanted. While the state cannot be read nothing is held back.
    """

    def __init__(self, state: State, max_entries: int, now_s: float, steady_s: float) -> None:
        self._state, self._max = state, max_entries
        self._kept: dict[int, _Kept] = {}
        self._flushed, self._read = steady_s, False
        self._active: dict[int, _Kept] = {}
        self.tick(now_s, steady_s)

    def _recall(self, steady_s: float) -> None:
        with suppress(StateUnwritableError):  # which the outbox says, and counts
            for n, text, hits, last_s in self._state.allow_list():
                said = json.loads(text)
                entry = Suppression(**said | {"classes": tuple(said["classes"])})
                self._kept[n] = _Kept(entry, steady_s + entry.expires_s - entry.created_s, hits, last_s)
            self._read = True

    def tick(self, now_s: float, steady_s: float) -> None:
        """Find out what is active now; write hits down when it is time to."""
        if not self._read:
            self._recall(steady_s)
        self._active = {n: k for n, k in self._kept.items() if now_s < k.entry.expires_s and steady_s < k.ends}
        if steady_s - self._flushed >= FLUSH_S:
            self._flushed = steady_s
            self.flush()

    def covers(self, detection: Detection) -> bool:
        """Whether an active entry is about this."""
        return any(kept.entry.covers(detection) for kept in self._active.values())

    def hit(self, detection: Detection) -> None:
        """Count an episode that is held back."""
        for kept in self._active.values():
            if kept.entry.covers(detection):
                kept.hits, kept.last_s, kept.dirty = kept.hits + 1, detection.t_ns / 1e9, True

    def add(self, entry: Suppression, now_s: float, steady_s: float) -> int:
        """Make an entry, in the place of one about the same; its number. AllowError when the list is full."""
        old = [n for n, kept in self._kept.items() if kept.entry.same_as(entry)]
        if len(self._kept) - len(old) >= self._max:
            over = sorted(set(self._kept) - set(self._active) - set(old), key=lambda n: self._kept[n].entry.expires_s)
            if not over:
                raise AllowError(f"the allow list is full ({self._max} entries): end one with unallow first")
            old.append(over[0])
        n = self._state.allow_put(json.dumps(dataclasses.asdict(entry)), old)
        for gone in old:
            del self._kept[gone]
        self._kept[n] = _Kept(entry, steady_s + entry.expires_s - entry.created_s)
        self.tick(now_s, steady_s)
        return n

    def drop(self, n: int) -> None:
        """End an entry and forget it."""
        self._state.allow_drop(n)
        self._kept.pop(n, None)
        self._active.pop(n, None)

    def active(self) -> Mapping[int, Suppression]:
        """What is held back now, by number."""
        return {n: kept.entry for n, kept in self._active.items()}

    def documents(self) -> list[dict[str, Any]]:
        """The active entries as `status` and health tell them, the newest first."""
        return [_document(n, self._active[n]) for n in sorted(self._active, reverse=True)]

    def flush(self) -> None:
        """Write down the hits that are not yet on the disk. StateError when that is not possible."""
        dirty = [(kept.hits, kept.last_s, n) for n, kept in self._kept.items() if kept.dirty]
        if dirty:
            self._state.allow_hits(dirty)
            for kept in self._kept.values():
                kept.dirty = False


def subject(detection: Detection) -> str:
    """Whom a detection is about, as entries name it: the sender's MAC, or the address that is hit."""
    return detection.device_ip if detection.role == "victim" else mac_text(detection.device_mac)


def _is(class_name: str, wanted: str) -> bool:
    family = wanted.removesuffix(".*")
    return class_name == wanted or (family != wanted and class_name.partition(".")[0] == family)


def _document(n: int, kept: _Kept) -> dict[str, Any]:
    entry = kept.entry
    said = {
        "entry": n,
        "kind": entry.kind,
        "device": entry.device,
        "classes": list(entry.classes),
        "host": entry.host,
        "port": entry.port,
        "reason": entry.reason,
        "by": entry.by,
        "origin": entry.origin,
        "since": _time(entry.created_s),
        "until": _time(entry.expires_s),
        "hits": kept.hits,
        "last_hit": None if kept.last_s is None else _time(kept.last_s),
    }
    return {key: value for key, value in said.items() if value not in ("", 0, [], None) or key == "hits"}


def _time(seconds: float) -> str:
    return format_time(math.floor(seconds * 1000) * 1_000_000)
