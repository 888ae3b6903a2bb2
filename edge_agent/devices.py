"""What is known of each device here: `learning`, `active` or `stale`, its own limits, and how long it was watched.

What a device's minutes say of its limits is `calibrate.Own`'s knowledge; here is who has one, what is told of it, and
that it is kept. Limits are kept for each model (they are in units of its limits): with a new one every device learns
anew. No clock and no thread: time comes with the calls.
"""

import json
import logging
import struct
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_agent.calibrate import MINUTE, OWN_MINUTES, OWN_S, Own
from edge_agent.contract.bundle import Bundle
from edge_agent.contract.captures import mac_text
from edge_agent.contract.messages import clean, format_time
from edge_agent.state import State, StateUnwritableError

logger = logging.getLogger(__name__)

MAX_DEVICES = 1024
"""Devices that are remembered; beyond it those that have learnt least recently nothing go first."""

MAX_LISTED = 200
"""Devices in the document; those that need a look come first."""

KEEP_S = 90 * 86_400.0
"""Seconds for which what was learnt is kept of a device that does not come back, or of a model that is not used."""

ACTIVE_SAVE_S = 3600.0
"""Seconds between two records of an active device, which changes little; others are kept each time."""

_MAX_RECORD = 1 << 20  # bytes unpacked; a record has up to 12 KB
_ORDER = {"stale": 0, "learning": 1, "active": 2}


class Devices:
    """The devices of one gateway under one bundle; ``own`` is what a `Detector` learns with.

    ``names`` maps a MAC as text to what people call the device; ``min_s`` is the shortest time of learning. With a
    ``state``, what it holds of this model is taken up and `keep` writes there; StateError when it cannot be used.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        names: Mapping[str, str] | None = None,
        min_s: float = OWN_S,
        state: State | None = None,
    ) -> None:
        self._decision, self._model, self._version = bundle.manifest.decision, bundle.sha256, bundle.manifest.version
        self._names, self._min_s, self._state = dict(names or {}), min_s, state
        self._owns: OrderedDict[int, Own] = OrderedDict()
        self._waiting: dict[int, Own] = {}  # known from before, not seen since the start
        self._told: dict[int, tuple[str, str]] = {}  # state and reason, as in the log
        self._saved_s: dict[int, float] = {}
        self.counts = {"devices_forgotten": 0, "devices_unreadable": 0}
        if state:
            self._load(state)

    def own(self, mac: int, t_ns: int) -> Own:
        """What is known of a device whose first packet since the start, or since it was forgotten, is of ``t_ns``."""
        own = self._owns.get(mac) or self._waiting.pop(mac, None)
        if own is None:
            own = self._new(t_ns)
        elif mac not in self._owns:
            own.resume(t_ns)
        if mac not in self._owns and len(self._owns) >= MAX_DEVICES:
            self._forget_one()
        self._owns[mac] = own
        self._owns.move_to_end(mac)
        return own

    def relearn(self, mac: int) -> bool:
        """Let a device learn anew: somebody knows why it has changed. False when it is not known."""
        own = self._owns.get(mac) or self._waiting.get(mac)
        if own is None:
            return False
        own.relearn()
        self._saved_s.pop(mac, None)
        logger.info("%s learns anew", self._who(mac))
        return True

    def known(self) -> dict[int, Own]:
        """Every device by its MAC, also those not seen since the start."""
        return {**self._waiting, **self._owns}

    def look(self) -> bool:
        """Put changes of state into the log; whether there were any."""
        changed = False
        for mac, own in self._owns.items():
            now, before = (own.state, own.refused), self._told.get(mac, ("learning", ""))
            if now == before:
                continue
            changed, self._told[mac] = True, now
            who = self._who(mac)
            if own.refused:
                logger.warning("%s is not believed and keeps the model's own limits: %s", who, own.refused)
            elif own.state == "stale":
                logger.warning(
                    "%s is stale: for minutes it has done what it was not known for. If that is meant (a firmware "
                    "update, a new use), let it learn anew; if not, look at its alerts",
                    who,
                )
            elif own.state == "active":
                times = own.factors()
                at = f"limits {times[0]:.3g} and {times[1]:.3g} times the model's"
                logger.info("%s is active, %s%s", who, at, ", at the cap: hardly protected" if own.capped else "")
            else:
                logger.info("%s is learning", who)
        return changed

    def document(self, t_ns: int) -> dict[str, Any]:
        """What is told of the devices, on MQTT and in `agent status`: at most `MAX_LISTED`, the others counted."""
        known = self.known()
        ranked = sorted(known, key=lambda mac: (_ORDER[known[mac].state], -known[mac].latest_ns, mac))
        states = [own.state for own in known.values()]
        return {
            "ts": format_time(t_ns),
            "model": self._version,
            "model_sha256": self._model,
            "count": {state: states.count(state) for state in ("learning", "active", "stale")},
            "not_listed": max(len(known) - MAX_LISTED, 0),
            "devices": [self._entry(mac, known[mac]) for mac in ranked[:MAX_LISTED]],
        }

    def _entry(self, mac: int, own: Own) -> dict[str, Any]:
        score, counts = own.factors()
        since = own.stale_ns or own.learnt_ns or own.first_ns
        entry: dict[str, Any] = {"mac": mac_text(mac)}
        if name := self._names.get(mac_text(mac)):
            entry["name"] = clean(name, 64)
        entry |= {
            "state": own.state,
            "since": format_time(since),
            "percent": int(100 * own.progress),
            "packets": own.rows,
            "minutes": own.minutes,
            "limit": float(f"{self._decision.full.limit * score:.4g}"),  # of the score
            "score_times": round(score, 2),  # the model's own limit, and its bounds of the counts
            "counts_times": round(counts, 2),
            "capped": own.capped,
        }
        if own.left_out:
            entry["minutes_left_out"] = own.left_out
        if own.refused:
            entry["reason"] = own.refused
        return entry

    def records(self, now_s: float, *, everything: bool = False) -> list[tuple[int, bytes]]:
        """What is to be kept of each device that has changed: for `keep`, which may be called by another thread."""
        found = []
        for mac, own in self._owns.items():
            if everything or own.state != "active" or now_s - self._saved_s.get(mac, 0.0) >= ACTIVE_SAVE_S:
                found.append((mac, _pack(own)))
                self._saved_s[mac] = now_s
        return found

    def keep(self, records: list[tuple[int, bytes]], now_s: float) -> None:
        """Write `records` to the state. StateError when that cannot be done."""
        if self._state:
            self._state.learnt_put(self._model, records, now_s, KEEP_S)

    def _load(self, state: State) -> None:
        try:
            records = state.learnt(self._model)[:MAX_DEVICES]
        except StateUnwritableError as error:
            logger.error("what was learnt cannot be read, devices learn anew: %s", error)
            return
        for mac, record in records:
            own = self._new(0)
            try:
                _unpack(own, record)
            except (ValueError, KeyError, TypeError, IndexError, struct.error, zlib.error) as error:
                self.counts["devices_unreadable"] += 1
                logger.warning("what was learnt of %s cannot be read and is forgotten: %s", self._who(mac), error)
                continue
            self._waiting[mac] = own
            self._told[mac] = own.state, own.refused
        if self._waiting:
            logger.info("%d devices are known from before under model %s", len(self._waiting), self._version)

    def _new(self, t_ns: int) -> Own:
        decision = self._decision
        return Own(t_ns, decision.vote_margin, decision.vote_k, decision.vote_w, self._min_s)

    def _forget_one(self) -> None:
        """Forget the device that came first among those that still learn, else among all."""
        mac = next((mac for mac, own in self._owns.items() if not own.learnt), next(iter(self._owns)))
        del self._owns[mac]
        self._told.pop(mac, None)
        self._saved_s.pop(mac, None)
        self.counts["devices_forgotten"] += 1

    def _who(self, mac: int) -> str:
        text = mac_text(mac)
        return f"{self._names[text]} ({text})" if text in self._names else text


_HEAD = struct.Struct("<I")


def _pack(own: Own) -> bytes:
    """One device's record: length of the JSON part, that part, the minutes; compressed."""
    kept, minutes = own.record()
    text = json.dumps(kept, separators=(",", ":")).encode()
    return zlib.compress(_HEAD.pack(len(text)) + text + minutes.tobytes(), 6)


def _unpack(own: Own, record: bytes) -> None:
    """Fill ``own`` from what `_pack` gave; any of a few errors for what is none."""
    unpacked = zlib.decompressobj().decompress(record, _MAX_RECORD)
    (length,) = _HEAD.unpack_from(unpacked)
    end = _HEAD.size + length
    minutes = np.frombuffer(unpacked[end:], dtype=MINUTE)[-OWN_MINUTES:]
    own.restore(json.loads(unpacked[_HEAD.size : end]), minutes)
