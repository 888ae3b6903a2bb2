"""The devices of a gateway: which are known, in which state, what is reported of them, and that they are stored.

What a device's minutes say of its limits is the knowledge of `device_limits`. Limits are stored for each model, since
they are in units of its limits. Under a new model they are calculated at once from rows that are stored of each device
(`reservoir`); a device of which there are too few learns anew. No clock and no thread: time comes with the calls.
"""

import logging
import math
import random
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.alert import Activity
from edge_agent.contract.bounds import KEPT_ROWS_BYTES
from edge_agent.contract.bundle import Bundle
from edge_agent.contract.captures import mac_text
from edge_agent.contract.columns import COUNT_COLUMNS
from edge_agent.contract.decision import Decision
from edge_agent.contract.messages import MAX_PAYLOAD, encode, format_time
from edge_agent.detection.device_document import entry
from edge_agent.detection.device_limits import LEARN_MIN_S, OWN_MARGIN, DeviceLimits
from edge_agent.detection.device_log import DeviceLog, limits_in_words
from edge_agent.detection.device_records import UNREADABLE, pack, parts, unpack
from edge_agent.detection.reservoir import RowBurst, RowSample
from edge_agent.state import State, StateUnwritableError

logger = logging.getLogger(__name__)

MAX_DEVICES = 1024
"""Devices that are remembered. At the bound, the least recently seen device that is still learning is dropped first."""

KEEP_S = 90 * 86_400.0
"""Seconds for which the state of a device that does not come back, or of a model that is not used, is stored."""

ACTIVE_SAVE_S = 3600.0
"""Seconds between two records of a device that stays active and changes little; others are stored each time."""

BURSTS_SAVE_S = 3600.0
"""Seconds between two times at which a device's rows are stored; the first is when it has learnt."""

_ORDER = {"learning": 0, "stale": 1, "active": 2}


@dataclass(frozen=True)
class Records:
    """Data to be stored, by MAC: the records of some devices, and all row bursts of fewer."""

    learnt: list[tuple[int, bytes]] = field(default_factory=list)
    bursts: dict[int, list[RowBurst]] = field(default_factory=dict)
    anew: frozenset[int] = frozenset()
    """Devices that learn anew: what is stored of them under other models is to be deleted."""

    @property
    def size(self) -> int:
        """Bytes that are to be written."""
        new = sum(len(burst.packed) for bursts in self.bursts.values() for burst in bursts if not burst.saved)
        return sum(len(record) for _, record in self.learnt) + new


class Devices:
    """The devices of one gateway under one bundle; `limits_of` is what a `Detector` learns with.

    ``names`` maps a MAC as text to what people call the device; ``min_s`` is the shortest time of learning in seconds;
    ``most_bytes`` bounds the rows that are stored (0: none). With a ``state``, the devices that it holds under this
    model are taken over and `keep` writes there; StateError if it cannot be used.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        names: Mapping[str, str] | None = None,
        min_s: float = LEARN_MIN_S,
        state: State | None = None,
        most_bytes: int = KEPT_ROWS_BYTES,
    ) -> None:
        self._most_bytes, self._rng = most_bytes, random.Random()
        self._decision, self._model, self._version = bundle.manifest.decision, bundle.sha256, bundle.manifest.version
        self._names, self._min_s, self._state = dict(names or {}), min_s, state
        self._present: OrderedDict[int, DeviceLimits] = OrderedDict()  # seen since the start, the latest last
        self._absent: dict[int, DeviceLimits] = {}  # known from before, not seen since the start
        self._log = DeviceLog()
        self._saved: dict[int, tuple[float, str]] = {}  # when, and in which state
        self._bursts_saved_s: dict[int, float] = {}
        self._anew: set[int] = set()  # they learn anew, which is not stored yet
        self._vouched: set[int] = set()  # somebody vouched for bursts of theirs, or no more, which is not stored yet
        self.counts = dict.fromkeys(
            ("devices_forgotten", "devices_unreadable", "runs_unreadable", "runs_dropped", "bursts_forgotten"), 0
        )
        if state:
            self._load(state)

    def rename(self, names: Mapping[str, str]) -> None:
        """Call devices by these ``names`` (by MAC as in alerts) from now on."""
        self._names = dict(names)

    def limits_of(self, mac: int, t_ns: int) -> DeviceLimits:
        """Return the limits of a device that is first seen at ``t_ns`` since the start, or since it was dropped."""
        limits = self._present.get(mac) or self._absent.pop(mac, None)
        if limits is None:
            limits = self._new(t_ns)
        elif mac not in self._present:
            limits.resume(t_ns)
        if mac not in self._present and len(self._present) >= MAX_DEVICES:
            self._drop_one()
        self._present[mac] = limits
        self._present.move_to_end(mac)
        return limits

    def relearn(self, mac: int) -> bool:
        """Let a device learn anew, since somebody knows why it has changed. Return False if it is not known."""
        limits = self._present.get(mac) or self._absent.get(mac)
        if limits is None:
            return False
        limits.relearn()
        self._saved.pop(mac, None)
        self._anew.add(mac)
        logger.info("device %s learns anew, as requested", self._who(mac))
        return True

    def vouch(self, mac: int, activities: Collection[Activity]) -> bool | None:
        """Learn a device's bursts of these sorts at once, since somebody says that they are well.

        Return False if no such burst is remembered, None if the device is not known.
        """
        limits = self._present.get(mac) or self._absent.get(mac)
        if limits is None:
            return None
        if not limits.vouch(activities):
            return False
        self._saved.pop(mac, None)
        self._vouched.add(mac)
        logger.info("bursts of device %s are learnt, as requested; %s", self._who(mac), limits_in_words(limits))
        return True

    def unvouch(self, mac: int, activities: Collection[Activity]) -> bool:
        """Forget what was learnt by `vouch`. Return False if that was nothing."""
        limits = self._present.get(mac) or self._absent.get(mac)
        if limits is None or not limits.unvouch(activities):
            return False
        self._saved.pop(mac, None)
        self._vouched.add(mac)
        logger.info("bursts of device %s that were learnt as requested are forgotten, as requested", self._who(mac))
        return True

    @property
    def decision(self) -> Decision:
        """The decision of the bundle that these limits belong to."""
        return self._decision

    def known(self) -> dict[int, DeviceLimits]:
        """Return every device by its MAC, including those not seen since the start."""
        return {**self._absent, **self._present}

    def look(self) -> bool:
        """Log changes of state and keep the rows of all devices within bounds; return True if a state has changed."""
        changed = False
        self._bound_rows()
        for mac, limits in self._present.items():
            self.counts["bursts_forgotten"] += limits.bursts.forgotten
            limits.bursts.forgotten = 0
            changed |= self._log.look(mac, limits, self._who(mac))
        return changed

    def document(self, t_ns: int, *, alarmed: Collection[int] = (), most_bytes: int = MAX_PAYLOAD) -> dict[str, Any]:
        """Return the devices as published on MQTT and shown by `agent status`: what fits into ``most_bytes`` as JSON.

        Devices that are under alarm, whose MACs are ``alarmed``, come first, then those that are learning, then stale
        ones; in order of their MACs, so that the same ones are listed each time. ``devices_left_out`` counts the
        others.
        """
        known = self.known()
        ranked = sorted(known, key=lambda mac: (mac not in alarmed, _ORDER[known[mac].state], mac))
        states = [limits.state for limits in known.values()]
        document: dict[str, Any] = {
            "ts": format_time(t_ns),
            "model": self._version,
            "model_sha256": self._model,
            "count": {state: states.count(state) for state in ("learning", "active", "stale")},
            "devices_left_out": len(known),
            "devices": [],
        }
        left = most_bytes - len(encode(document, most_bytes))
        for mac in ranked:
            of_device = entry(mac, known[mac], self._names.get(mac_text(mac)), self._decision.full.limit) | (
                {"alarmed": True} if mac in alarmed else {}
            )
            left -= len(encode(of_device)) + len(",")
            if left < 0:
                break
            document["devices"].append(of_device)
        document["devices_left_out"] -= len(document["devices"])
        return document

    def records(self, now_s: float, *, everything: bool = False) -> Records:
        """Return what is to be stored of each device that has changed: for `keep`, which another thread may call."""
        records = Records(anew=frozenset(self._anew))
        ordered = {*records.anew, *self._vouched} & set(self._absent)
        self._vouched.clear()
        for mac, limits in [*((m, self._absent[m]) for m in sorted(ordered)), *self._present.items()]:
            saved_s, state = self._saved.get(mac, (0.0, ""))
            if everything or limits.state != "active" or state != "active" or now_s - saved_s >= ACTIVE_SAVE_S:
                records.learnt.append((mac, pack(*self._record(limits))))
                self._saved[mac] = now_s, limits.state
                due = now_s - self._bursts_saved_s.get(mac, 0.0 if limits.learnt else now_s) >= BURSTS_SAVE_S
                if limits.sample and (everything or due):
                    records.bursts[mac] = limits.sample.bursts
                    self._bursts_saved_s[mac] = now_s
        return records

    def keep(self, records: Records, now_s: float) -> None:
        """Write `records` to the state. StateError if that is not possible; the next records have the rows again."""
        if not self._state:
            return
        bursts = {
            mac: [(burst.kind, burst.minute, None if burst.saved else burst.packed) for burst in of_device]
            for mac, of_device in records.bursts.items()
        }
        try:
            self._state.learnt_put(self._model, records.learnt, now_s, KEEP_S, bursts, anew=records.anew)
        except BaseException:
            for mac in bursts:
                self._bursts_saved_s.pop(mac, None)
            raise
        for of_device in records.bursts.values():
            for burst in of_device:
                burst.saved = True
        self._anew.difference_update(records.anew)

    def carry_over(self, vote: Callable[[NDArray[np.float32]], float]) -> None:
        """Calculate from stored rows the limits of devices that are known only under another model.

        ``vote`` is `Detector.vote` under this model. StateError if the state cannot be read.
        """
        if not self._state or not self._most_bytes:
            return
        try:
            elsewhere = self._state.learnt_elsewhere(self._model)[:MAX_DEVICES]
        except StateUnwritableError:  # `_load` has logged it
            return
        for mac, model, record in elsewhere:
            try:
                stored, minutes = parts(record)
            except UNREADABLE as error:
                self._cannot_read(mac, error)
                continue
            if len(self._absent) < MAX_DEVICES:
                self._carry_over_one(mac, model, stored, minutes, self._read_bursts(mac), vote)

    def take_over(self, before: "Devices", vote: Callable[[NDArray[np.float32]], float] | None) -> None:
        """Go on with the devices of ``before``, whose model was in use until now, as `carry_over` treats stored ones.

        What is stored of a device under this model is kept, unless it was ordered to learn anew since (`relearn`). Of
        too many devices those seen last are known. Without ``vote`` only counters go on. ``before`` is not changed.
        """
        self.counts = {key: count + before.counts[key] for key, count in self.counts.items()}
        self._anew |= before._anew
        if vote is None:
            return
        here = before.known()
        for mac in [mac for mac in self._absent if mac not in here][max(MAX_DEVICES - len(here), 0) :]:
            del self._absent[mac]
        for mac, limits in reversed(here.items()):
            if mac not in self._absent and len(self._absent) >= MAX_DEVICES:
                continue
            ordered = limits.vouched and not limits.learnt
            if mac in self._absent and self._absent[mac].learnt and not ordered:
                continue
            stored, minutes = before._record(limits)
            bursts = limits.sample.bursts if limits.sample and limits.learnt else []
            copies = [RowBurst(burst.kind, burst.minute, burst.packed, saved=burst.saved) for burst in bursts]
            self._carry_over_one(mac, before._model, stored, minutes, copies, vote)
            if ordered:
                self._absent[mac].anew = limits.anew

    def _carry_over_one(
        self,
        mac: int,
        model: str,
        stored: dict[str, Any],
        minutes: NDArray[Any],
        bursts: list[RowBurst],
        vote: Callable[[NDArray[np.float32]], float],
    ) -> None:
        """Calculate a device's limits from its record under another ``model`` and from stored rows of it."""
        limits, votes, rows = self._new(0), {}, 0
        try:
            limits.restore(stored, minutes)
            for burst in bursts:
                values, _ = burst.rows()
                rows += len(values)
                if burst.kind == "loud":
                    votes[burst.minute] = vote(values)
            count_factor = self._count_factor(stored["bounds"]) if "bounds" in stored else math.inf
        except UNREADABLE as error:
            self._cannot_read(mac, error)
            return
        if not math.isfinite(count_factor) or not limits.carry_over(votes, count_factor, rows):
            logger.info(
                "device %s learns anew under model %s: too few of its rows are stored", self._who(mac), self._version
            )
            if not limits.learnt and (limits.vouched or limits.refused):
                self._absent[mac] = self._new(limits.latest_ns)
                self._absent[mac].judge_as(limits)
                self._log.knows(mac, limits)
            return
        self._take_over_bursts(limits, bursts, stored)
        self._absent[mac] = limits
        self._log.knows(mac, limits)
        logger.info(
            "device %s: its limits under model %s, %.3g times the model's, are calibrated from %d stored rows of "
            "model %s…",
            *(self._who(mac), self._version, limits.factors()[0], rows, model[:12]),
        )

    def _count_factor(self, before: list[float | None]) -> float:
        """Return how much higher counts are at most in units of this model's bounds than of those ``before``."""
        now = [self._decision.counts.get(column) for column in COUNT_COLUMNS]
        if len(before) != len(now):
            raise ValueError(f"{len(before)} bounds of counts")
        return max((old / new for old, new in zip(before, now, strict=True) if old and new), default=1.0)

    def _load(self, state: State) -> None:
        try:
            records = state.learnt(self._model)[:MAX_DEVICES]
        except StateUnwritableError as error:
            logger.error("the state of devices cannot be read, so all devices learn anew: %s", error)
            return
        for mac, record in records:
            limits = self._new(0)
            try:
                stored = unpack(limits, record)
                self._take_over_bursts(limits, self._read_bursts(mac), stored)
            except UNREADABLE as error:
                self._cannot_read(mac, error)
                continue
            self._absent[mac] = limits
            self._log.knows(mac, limits)
        if self._absent:
            logger.info(
                "the learnt limits of %d devices under model %s were read from the state file",
                len(self._absent),
                self._version,
            )

    def _cannot_read(self, mac: int, error: Exception) -> None:
        self.counts["devices_unreadable"] += 1
        logger.warning("the stored state of device %s cannot be read, so it learns anew: %s", self._who(mac), error)

    def _read_bursts(self, mac: int) -> list[RowBurst]:
        """Return the row bursts that the state has of a device; unreadable ones are counted and left out."""
        assert self._state is not None
        bursts = []
        for kind, minute, packed in self._state.runs(mac):
            burst = RowBurst("loud" if kind == "loud" else "even", minute, packed, saved=True)
            try:
                burst.rows()
            except ValueError:
                self.counts["runs_unreadable"] += 1
                continue
            bursts.append(burst)
        return bursts

    def _take_over_bursts(self, limits: DeviceLimits, bursts: list[RowBurst], stored: Mapping[str, Any]) -> None:
        if limits.sample:
            votes = limits.votes()
            for burst in bursts:
                burst.vote = votes.get(burst.minute, 0.0)
            limits.sample.take_over(bursts, int(stored.get("sampled", len(bursts))))

    def _bound_rows(self) -> None:
        """Drop rows of the devices that have the most until all of them together are within the bound."""
        samples = [limits.sample for limits in self.known().values() if limits.sample]
        sizes = [sample.size for sample in samples]
        over = sum(sizes) - self._most_bytes
        while over > 0:
            most = max(range(len(sizes)), key=sizes.__getitem__)
            before = sizes[most]
            samples[most].drop_one()
            sizes[most] = samples[most].size
            over -= before - sizes[most]
            self.counts["runs_dropped"] += 1

    def _new(self, t_ns: int) -> DeviceLimits:
        decision = self._decision
        sample = RowSample(self._rng) if self._most_bytes else None
        rule = OWN_MARGIN, decision.vote_k, decision.vote_w
        return DeviceLimits(t_ns, *rule, self._min_s, sample, decision.start_factor)

    def _record(self, limits: DeviceLimits) -> tuple[dict[str, Any], NDArray[Any]]:
        """Return what must be stored of a device: plain values, with the bounds its counts are in units of; minutes."""
        stored, minutes = limits.record()
        stored["bounds"] = [self._decision.counts.get(column) for column in COUNT_COLUMNS]
        return stored, minutes

    def _drop_one(self) -> None:
        """Forget the least recently seen device that is still learning; if none is, the least recently seen."""
        mac = next((mac for mac, limits in self._present.items() if not limits.learnt), next(iter(self._present)))
        del self._present[mac]
        for known in (self._saved, self._bursts_saved_s):
            known.pop(mac, None)
        self._log.forget(mac)
        self.counts["devices_forgotten"] += 1

    def _who(self, mac: int) -> str:
        text = mac_text(mac)
        return f"{self._names[text]} ({text})" if text in self._names else text
