"""What is known of each device here: `learning`, `active` or `stale`, its own limits, and how long it was watched.

What a device's minutes say of its limits is `calibrate.Own`'s knowledge; here is who has one, what is told of it, and
that it is kept. Limits are kept for each model (they are in units of its limits). With a new one they are calculated
at once from rows that are kept of each device (`reservoir`); a device of which there are too few learns anew. No clock
and no thread: time comes with the calls.
"""

import io
import json
import logging
import math
import random
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.bounds import KEPT_ROWS_BYTES
from edge_agent.contract.bundle import Bundle
from edge_agent.contract.captures import mac_text
from edge_agent.contract.columns import ALL_COLUMNS, CLEAN, COUNT_COLUMNS
from edge_agent.contract.messages import clean, format_time
from edge_agent.detection.device_limits import MINUTE, OWN_MINUTES, OWN_S, DeviceLimits
from edge_agent.detection.reservoir import RowBurst, RowSample
from edge_agent.state import State, StateUnwritableError

logger = logging.getLogger(__name__)

MAX_DEVICES = 1024
"""Devices that are remembered; beyond it those that have learnt least recently nothing go first."""

MAX_LISTED = 200
"""Devices in the document; those that need a look come first."""

KEEP_S = 90 * 86_400.0
"""Seconds for which what was learnt is kept of a device that does not come back, or of a model that is not used."""

ACTIVE_SAVE_S = 3600.0
"""Seconds between two records of a device that stays active and changes little; others are kept each time."""

RUNS_SAVE_S = 3600.0
"""Seconds between two records of the rows that are kept of a device; the first is made when it has learnt."""

_MAX_RECORD = 1 << 20  # bytes unpacked; a record has up to 12 KB
_ORDER = {"stale": 0, "learning": 1, "active": 2}


@dataclass(frozen=True)
class Records:
    """What is to be kept of devices: the records of some, and all runs of fewer."""

    learnt: list[tuple[int, bytes]] = field(default_factory=list)
    runs: dict[int, list[RowBurst]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes that are to be written."""
        new = sum(len(run.packed) for runs in self.runs.values() for run in runs if not run.saved)
        return sum(len(record) for _, record in self.learnt) + new


class Devices:
    """The devices of one gateway under one bundle; ``own`` is what a `Detector` learns with.

    ``names`` maps a MAC as text to what people call the device; ``min_s`` is the shortest time of learning;
    ``most_bytes`` bounds the rows that are kept, 0: none are. With a ``state``, what it holds of this model is taken up
    and `keep` writes there; StateError when it cannot be used.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        names: Mapping[str, str] | None = None,
        min_s: float = OWN_S,
        state: State | None = None,
        most_bytes: int = KEPT_ROWS_BYTES,
    ) -> None:
        self._most_bytes, self._rng = most_bytes, random.Random()
        self._decision, self._model, self._version = bundle.manifest.decision, bundle.sha256, bundle.manifest.version
        self._names, self._min_s, self._state = dict(names or {}), min_s, state
        self._owns: OrderedDict[int, DeviceLimits] = OrderedDict()
        self._waiting: dict[int, DeviceLimits] = {}  # known from before, not seen since the start
        self._told: dict[int, tuple[str, str]] = {}  # state and reason, as in the log
        self._saved: dict[int, tuple[float, str]] = {}  # when, and in which state
        self._runs_saved_s: dict[int, float] = {}
        self.counts = {"devices_forgotten": 0, "devices_unreadable": 0, "runs_unreadable": 0, "runs_dropped": 0}
        if state:
            self._load(state)

    def rename(self, names: Mapping[str, str]) -> None:
        """Call devices (MACs as in alerts) so from now on."""
        self._names = dict(names)

    def own(self, mac: int, t_ns: int) -> DeviceLimits:
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
        self._saved.pop(mac, None)
        logger.info("%s learns anew", self._who(mac))
        return True

    def known(self) -> dict[int, DeviceLimits]:
        """Every device by its MAC, also those not seen since the start."""
        return {**self._waiting, **self._owns}

    def look(self) -> bool:
        """Put changes of state into the log; whether there were any. Keeps the rows of all devices within bounds."""
        changed = False
        self._bound_rows()
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

    def _entry(self, mac: int, own: DeviceLimits) -> dict[str, Any]:
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
        if own.sample:
            entry["kept_runs"] = len(own.sample.runs)
        if own.carried:
            entry["calibrated_from"] = f"{own.carried} kept rows"
        if own.left_out:
            entry["minutes_left_out"] = own.left_out
        if own.refused:
            entry["reason"] = own.refused
        return entry

    def records(self, now_s: float, *, everything: bool = False) -> Records:
        """What is to be kept of each device that has changed: for `keep`, which may be called by another thread."""
        found = Records()
        for mac, own in self._owns.items():
            saved_s, state = self._saved.get(mac, (0.0, ""))
            if everything or own.state != "active" or state != "active" or now_s - saved_s >= ACTIVE_SAVE_S:
                found.learnt.append((mac, self._pack(own)))
                self._saved[mac] = now_s, own.state
                due = now_s - self._runs_saved_s.get(mac, 0.0 if own.learnt else now_s) >= RUNS_SAVE_S
                if own.sample and (everything or due):
                    found.runs[mac] = own.sample.runs
                    self._runs_saved_s[mac] = now_s
        return found

    def keep(self, records: Records, now_s: float) -> None:
        """Write `records` to the state. StateError when that cannot be done."""
        if not self._state:
            return
        runs = {
            mac: [(run.kind, run.minute, None if run.saved else run.packed) for run in kept]
            for mac, kept in records.runs.items()
        }
        try:
            self._state.learnt_put(self._model, records.learnt, now_s, KEEP_S, runs)
        except BaseException:
            for mac in runs:
                self._runs_saved_s.pop(mac, None)  # try again with the next records
            raise
        for kept in records.runs.values():
            for run in kept:
                run.saved = True

    def carry_over(self, vote: Callable[[NDArray[np.float32]], float]) -> None:
        """Calculate the limits of devices that are known under another model only from the rows kept of them.

        ``vote`` is `Detector.vote` of this one's. StateError when the state cannot be read.
        """
        if not self._state or not self._most_bytes:
            return
        try:
            elsewhere = self._state.learnt_elsewhere(self._model)[:MAX_DEVICES]
        except StateUnwritableError:  # `_load` has said so
            return
        for mac, model, record in elsewhere:
            try:
                kept, minutes = _parts(record)
            except _UNREADABLE as error:
                self._cannot_read(mac, error)
                continue
            self._carry_over_one(mac, model, kept, minutes, self._read_runs(mac), vote)

    def take_over(self, before: "Devices", vote: Callable[[NDArray[np.float32]], float]) -> None:
        """Go on with the devices of another model that is in use until now, as `carry_over` does with stored ones.

        A device that this model has known well enough before keeps what it learnt then. Counters go on. ``before`` is
        not changed.
        """
        for key, count in before.counts.items():
            self.counts[key] += count
        for mac, own in before.known().items():
            if mac in self._waiting and self._waiting[mac].learnt:
                continue
            kept, minutes = before._record(own)
            bursts = own.sample.runs if own.sample else []
            runs = [RowBurst(burst.kind, burst.minute, burst.packed, saved=burst.saved) for burst in bursts]
            self._carry_over_one(mac, before._model, kept, minutes, runs, vote)

    def _carry_over_one(
        self,
        mac: int,
        model: str,
        kept: dict[str, Any],
        minutes: NDArray[Any],
        runs: list[RowBurst],
        vote: Callable[[NDArray[np.float32]], float],
    ) -> None:
        """Calculate a device's limits from its record under another ``model`` and the rows that are stored of it."""
        if len(self._waiting) >= MAX_DEVICES:
            return
        own, votes, rows = self._new(0), {}, 0
        try:
            own.restore(kept, minutes)
            for run in runs:
                values, _ = run.rows()
                rows += len(values)
                if run.kind == "loud":
                    votes[run.minute] = vote(values)
            count_factor = self._count_factor(kept["bounds"]) if "bounds" in kept else math.inf
        except _UNREADABLE as error:
            self._cannot_read(mac, error)
            return
        if not math.isfinite(count_factor) or not own.carry_over(votes, count_factor, rows):
            logger.info("%s learns anew under model %s: too few of its rows are stored", self._who(mac), self._version)
            return
        self._take_up_runs(own, runs, kept)
        self._waiting[mac], self._told[mac] = own, (own.state, own.refused)
        logger.info(
            "%s: limits under model %s calibrated from %d stored rows, %.3g times the model's; was known under %s…",
            *(self._who(mac), self._version, rows, own.factors()[0], model[:12]),
        )

    def _count_factor(self, before: list[float | None]) -> float:
        """How much higher counts are in units of this model's bounds than of those ``before``, at most."""
        now = [self._decision.counts.get(column) for column in COUNT_COLUMNS]
        if len(before) != len(now):
            raise ValueError(f"{len(before)} bounds of counts")
        return max((old / new for old, new in zip(before, now, strict=True) if old and new), default=1.0)

    def _load(self, state: State) -> None:
        try:
            records = state.learnt(self._model)[:MAX_DEVICES]
        except StateUnwritableError as error:
            logger.error("what was learnt cannot be read, devices learn anew: %s", error)
            return
        for mac, record in records:
            own = self._new(0)
            try:
                kept = _unpack(own, record)
                self._take_up_runs(own, self._read_runs(mac), kept)
            except _UNREADABLE as error:
                self._cannot_read(mac, error)
                continue
            self._waiting[mac] = own
            self._told[mac] = own.state, own.refused
        if self._waiting:
            logger.info("%d devices are known from before under model %s", len(self._waiting), self._version)

    def _cannot_read(self, mac: int, error: Exception) -> None:
        self.counts["devices_unreadable"] += 1
        logger.warning("what was learnt of %s cannot be read and is forgotten: %s", self._who(mac), error)

    def _read_runs(self, mac: int) -> list[RowBurst]:
        """The runs that the state has of a device; those that are none are left out and counted."""
        assert self._state is not None
        runs = []
        for kind, minute, packed in self._state.runs(mac):
            run = RowBurst("loud" if kind == "loud" else "even", minute, packed, saved=True)
            try:
                run.rows()
            except ValueError:
                self.counts["runs_unreadable"] += 1
                continue
            runs.append(run)
        return runs

    def _take_up_runs(self, own: DeviceLimits, runs: list[RowBurst], kept: Mapping[str, Any]) -> None:
        if own.sample:
            votes = own.votes()
            for run in runs:
                run.vote = votes.get(run.minute, 0.0)
            own.sample.take_up(runs, int(kept.get("sampled", len(runs))))

    def _bound_rows(self) -> None:
        """Take from those that have the most until all of them together are within the bound."""
        samples = [own.sample for own in self.known().values() if own.sample]
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
        votes = decision.vote_margin, decision.vote_k, decision.vote_w
        return DeviceLimits(t_ns, *votes, self._min_s, sample, decision.warmup_score_factor)

    def _pack(self, own: DeviceLimits) -> bytes:
        """One device's record: length of the JSON part, that part, the minutes; compressed."""
        kept, minutes = self._record(own)
        text = json.dumps(kept, separators=(",", ":")).encode()
        return zlib.compress(_HEAD.pack(len(text)) + text + minutes.tobytes(), 6)

    def _record(self, own: DeviceLimits) -> tuple[dict[str, Any], NDArray[Any]]:
        """What must be stored of a device: plain values, with the bounds that its counts are in units of; minutes."""
        kept, minutes = own.record()
        kept["bounds"] = [self._decision.counts.get(column) for column in COUNT_COLUMNS]
        return kept, minutes

    def _forget_one(self) -> None:
        """Forget the device that came first among those that still learn, else among all."""
        mac = next((mac for mac, own in self._owns.items() if not own.learnt), next(iter(self._owns)))
        del self._owns[mac]
        for known in (self._told, self._saved, self._runs_saved_s):
            known.pop(mac, None)
        self.counts["devices_forgotten"] += 1

    def _who(self, mac: int) -> str:
        text = mac_text(mac)
        return f"{self._names[text]} ({text})" if text in self._names else text


def export(state: State, names: Mapping[str, str], gateway: str) -> tuple[bytes, int, int]:
    """An .npz file of the rows kept of devices that were believed, how many rows those are and of how many devices.

    ``values`` (n, 140) in ``columns`` of ``schema``, ``t_ns`` (n,) and ``device`` (n,): the name that a device has
    here, or a number; no address is in it. Only runs drawn evenly over time: loud ones would make benign look louder
    than it is. StateError when the state cannot be read.
    """
    values, t_ns, device, unreadable = [np.zeros((0, len(ALL_COLUMNS)), np.float32)], [np.zeros(0, np.int64)], [], 0
    for number, (mac, _, record) in enumerate(state.learnt_elsewhere(""), start=1):
        try:
            if _parts(record)[0]["learnt_ns"] is None:
                continue
        except _UNREADABLE:
            continue
        name = names.get(mac_text(mac)) or f"{gateway}-{number}"
        for kind, minute, packed in state.runs(mac):
            try:
                rows, times = RowBurst("even", minute, packed).rows()
            except ValueError:
                unreadable += 1
                continue
            if kind == "even":
                values.append(rows)
                t_ns.append(times)
                device += [name] * len(times)
    if unreadable:
        logger.warning("%d runs of rows cannot be read and are left out", unreadable)
    file = io.BytesIO()
    schema = np.array(CLEAN)
    columns, names_of = np.array(ALL_COLUMNS), np.array(device, dtype=str)
    np.savez_compressed(
        file, schema=schema, columns=columns, values=np.concatenate(values), t_ns=np.concatenate(t_ns), device=names_of
    )
    return file.getvalue(), len(device), len(set(device))


_HEAD = struct.Struct("<I")
_UNREADABLE = (ValueError, KeyError, TypeError, IndexError, struct.error, zlib.error)


def _unpack(own: DeviceLimits, record: bytes) -> dict[str, Any]:
    """Fill ``own`` from what `Devices` packed, and return the plain values in it; `_UNREADABLE` for what is none."""
    kept, minutes = _parts(record)
    own.restore(kept, minutes)
    return kept


def _parts(record: bytes) -> tuple[dict[str, Any], NDArray[Any]]:
    """Plain values and minutes of a record."""
    packed = zlib.decompressobj()
    unpacked = packed.decompress(record, _MAX_RECORD)
    if not packed.eof:
        raise ValueError("cut short")
    (length,) = _HEAD.unpack_from(unpacked)
    end = _HEAD.size + length
    return json.loads(unpacked[_HEAD.size : end]), np.frombuffer(unpacked[end:], dtype=MINUTE)[-OWN_MINUTES:]
