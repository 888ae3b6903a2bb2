"""A bounded sample of each device's healthy traffic: rows of statistics, without addresses and without payload.

A new model is calibrated with them at once, instead of learning for an hour, and they may be used for training. What is
stored are bursts of neighbouring rows, since a vote is over neighbours: of the minutes with the highest votes (`LOUD`,
which the limits come from) and of minutes drawn evenly over all the time the device was learnt (`EVEN`, Vitter's
algorithm R). A row that was flagged is never stored, nor is any row of a minute in an alarm, after one or just before
one; `device_limits` says which minutes these are. Rows are unscaled and have all columns, so they suit any model of the
same `SCHEMAS`.

Values are stored as sign·log1p in 16 bits: within 1 %, a tenth of the smallest deviation that a scaler knows.
"""

import random
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.columns import ALL_COLUMNS, CLEAN, DEVICE

BURST_ROWS = 20
"""Most rows of a burst: the longest window of a vote that calibration chooses."""

LOUD, EVEN = 16, 16
"""Bursts of a device: more loud ones than the quantile of a full memory of minutes leaves out (1 % of 1,440), and as
many others; about 50 KB in all."""

SCHEMAS = (CLEAN, DEVICE)
"""The schemas of the rows; bursts of others are not read."""

Kind = Literal["loud", "even"]

_HEAD = struct.Struct("<HqI")  # rows, time of the first (ns), and which columns they have
_MARK = zlib.crc32("\n".join((*SCHEMAS, *ALL_COLUMNS)).encode())
_MAX_PACKED = _HEAD.size + BURST_ROWS * (4 + 2 * len(ALL_COLUMNS))


@dataclass(slots=True, eq=False)
class RowBurst:
    """Neighbouring rows of one minute, packed."""

    kind: Kind
    minute: int  # since the epoch
    packed: bytes
    vote: float = 0.0  # of a loud one: the highest of its minute, in units of the model's limit
    saved: bool = False  # on the disk already

    def rows(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return values (n, `ALL_COLUMNS`) and packet times (n,). ValueError if unreadable or of other columns."""
        try:
            packed = zlib.decompressobj()
            unpacked = packed.decompress(self.packed, _MAX_PACKED)
            if not packed.eof:
                raise ValueError("cut short")
            n, first_ns, mark = _HEAD.unpack_from(unpacked)
            if mark != _MARK or not 0 < n <= BURST_ROWS:
                raise ValueError("rows of other columns")
            since = np.frombuffer(unpacked, dtype="<u4", count=n, offset=_HEAD.size)
            squashed = np.frombuffer(unpacked, dtype="<f2", count=n * len(ALL_COLUMNS), offset=_HEAD.size + 4 * n)
        except (zlib.error, struct.error) as error:
            raise ValueError(str(error)) from error
        values = squashed.reshape(len(ALL_COLUMNS), n).T.astype(np.float32)
        if not np.isfinite(values).all():
            raise ValueError("a value is not finite")
        return np.copysign(np.expm1(np.abs(values)), values), first_ns + since.astype(np.int64) * 1_000_000


_Cut = tuple[NDArray[np.float16], NDArray[np.int64]]
_NOTHING: _Cut = np.zeros((0, len(ALL_COLUMNS)), dtype=np.float16), np.zeros(0, dtype=np.int64)


class RowSample:
    """The row bursts of one device. Rows come with `see`, minutes end with `end_minute`; there is no clock."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._bursts: list[RowBurst] = []
        self._pending: list[RowBurst] = []  # of the minute before: stored if the next one is calm, too
        self._tail = _NOTHING  # the last rows
        self._loud: _Cut | None = None
        self._even: _Cut | None = None
        self.minutes = 0
        """Minutes that bursts were drawn from so far."""
        self._begin_minute()

    @property
    def bursts(self) -> list[RowBurst]:
        """The bursts that are stored now."""
        return list(self._bursts)

    @property
    def size(self) -> int:
        """Bytes of the bursts."""
        return sum(len(burst.packed) for burst in self._bursts)

    def see(
        self, values: NDArray[Any], t_ns: NDArray[np.int64], index: NDArray[np.intp], scores: NDArray[Any], at: int
    ) -> None:
        """Take in rows ``index`` (n,) of ``values`` and ``t_ns``, none of which was flagged.

        ``scores`` (n,) are in units of the limit; ``at`` is the position of the row that made the minute's highest vote
        so far, -1 if none did.
        """
        if not len(index):
            return
        if at >= 0 and scores[at] > self._least:  # a row that makes the vote is at least as high as it
            self._loud = self._cut(values, t_ns, index, at)
        if self._draws:
            self._passed += len(index)
            if self._rng.random() * self._passed < len(index):
                self._even = self._cut(values, t_ns, index, self._rng.randrange(len(index)))
        last = index[1 - BURST_ROWS :]
        if self._draws or self._least == 0.0 or float(scores[1 - BURST_ROWS :].max()) > self._least:
            squashed, times = _squash(values[last]), t_ns[last]
            if len(last) < BURST_ROWS - 1:
                squashed, times = np.concatenate([self._tail[0], squashed]), np.concatenate([self._tail[1], times])
            self._tail = squashed[1 - BURST_ROWS :], times[1 - BURST_ROWS :]
        else:
            self._tail = _NOTHING

    def end_minute(self, minute: int, vote: float, calm: bool, oldest: int = 0) -> None:
        """End a minute whose highest vote was ``vote``.

        Nothing is stored of a minute that is not ``calm``, nor of the one before it. Loud bursts are dropped once their
        minute is older than the ``oldest`` that limits come from.
        """
        self._bursts = [burst for burst in self._bursts if burst.kind != "loud" or burst.minute >= oldest]
        if calm:
            for burst in self._pending:
                self._commit(burst)
            self._pending = []
            if self._loud and vote > self._least:
                self._pending.append(RowBurst("loud", minute, _pack(self._loud), vote))
            if self._even:
                self._pending.append(RowBurst("even", minute, _pack(self._even)))
            self.minutes += 1
        else:
            self._pending, self._tail = [], _NOTHING
        self._begin_minute()

    def take_over(self, bursts: Iterable[RowBurst], minutes: int) -> None:
        """Continue with the ``bursts`` of another `RowSample` and its number of ``minutes``."""
        self._bursts = []
        for kind, most in (("loud", LOUD), ("even", EVEN)):
            self._bursts += [burst for burst in bursts if burst.kind == kind][:most]
        self.minutes = max(minutes, 0)
        self._begin_minute()

    def clear(self) -> None:
        """Forget everything."""
        self._bursts, self._pending, self._tail, self.minutes = [], [], _NOTHING, 0
        self._begin_minute()

    def drop_one(self) -> None:
        """Make room by dropping the oldest even burst, or the oldest loud one if there is no even one."""
        if self._bursts:
            self._bursts.remove(min(self._bursts, key=lambda burst: (burst.kind != "even", burst.minute)))
            self._begin_minute()

    def _begin_minute(self) -> None:
        votes = [burst.vote for burst in self._bursts if burst.kind == "loud"]
        self._least = min(votes) if len(votes) >= LOUD else 0.0  # what a loud burst must be above
        self._draws = self._rng.randrange(self.minutes + 1) < EVEN
        self._passed, self._loud, self._even = 0, None, None

    def _commit(self, burst: RowBurst) -> None:
        alike = [other for other in self._bursts if other.kind == burst.kind]
        if burst.kind == "loud" and len(alike) >= LOUD:
            self._bursts.remove(min(alike, key=lambda other: other.vote))
        elif burst.kind == "even" and len(alike) >= EVEN:
            self._bursts.remove(self._rng.choice(alike))
        self._bursts.append(burst)

    def _cut(self, values: NDArray[Any], t_ns: NDArray[np.int64], index: NDArray[np.intp], at: int) -> _Cut:
        """Return the burst that ends with row ``at`` of ``index``."""
        rows = index[max(at - BURST_ROWS + 1, 0) : at + 1]
        squashed, times = _squash(values[rows]), t_ns[rows]
        if len(rows) < BURST_ROWS:
            before = slice(max(len(self._tail[1]) - BURST_ROWS + len(rows), 0), None)
            squashed = np.concatenate([self._tail[0][before], squashed])
            times = np.concatenate([self._tail[1][before], times])
        return squashed, times


def _squash(values: NDArray[Any]) -> NDArray[np.float16]:
    return np.asarray(np.copysign(np.log1p(np.abs(values)), values).astype(np.float16))


def _pack(cut: _Cut) -> bytes:
    """Return rows packed column after column: neighbours are alike in most of them."""
    squashed, t_ns = cut
    since = np.clip((t_ns - t_ns[0]) // 1_000_000, 0, 0xFFFFFFFF).astype("<u4")
    head = _HEAD.pack(len(t_ns), int(t_ns[0]), _MARK)
    return zlib.compress(head + since.tobytes() + np.ascontiguousarray(squashed.T).astype("<f2").tobytes(), 6)
