"""From frames to feature rows: the Python face of the kernel.

A row is the values of `edge_agent.contract.columns.ALL_COLUMNS` and the facts of its packet (`ROW_META`).
``kernel/kernel.h`` describes how they are computed, the bounds of every table and what a device has "seen".
"""

import hashlib
import ipaddress
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge_agent._kernel import (
    ARP,
    FRAGMENT,
    ICMP_QUOTED,
    NEW_PEER,
    NEW_SOCKET,
    PORTS,
    ROW_META_OFFSETS,
    ROW_META_SIZE,
    TRUNCATED,
    Kernel,
    Scaling,
    Senders,
    give_back_memory,
)
from edge_agent._kernel import highest_ratios as _highest_ratios
from edge_agent.capture.sources import Source
from edge_agent.contract.columns import ALL_COLUMNS, HOST_COUNTS
from edge_agent.contract.scaling import Array, Scaler

__all__ = [
    "ARP",
    "FRAGMENT",
    "ICMP_QUOTED",
    "NEW_PEER",
    "NEW_SOCKET",
    "PORTS",
    "ROW_META",
    "TRUNCATED",
    "Cut",
    "Extractor",
    "FeatureStateError",
    "Routes",
    "RowScaling",
    "Rows",
    "SenderTable",
    "give_back_memory",
    "highest_ratios",
]

_FORMATS = {
    **{"t_ns": "i8", "src_mac": "u8", "dst_mac": "u8", "src": "(16,)u1", "dst": "(16,)u1"},
    **{"sport": "u2", "dport": "u2", "length": "u4", "ethertype": "u2", "flags": "u1", "interface": "u1"},
    **{"ip_version": "u1", "proto": "u1", "tcp_flags": "u1", "headers": "u1"},
    **{"unanswered": "(2,)f4", "answers": "f4", "opened": "f4"},
}

ROW_META = np.dtype(
    {
        "names": list(_FORMATS),
        "formats": list(_FORMATS.values()),
        "offsets": [ROW_META_OFFSETS[name] for name in _FORMATS],
        "itemsize": ROW_META_SIZE,
    }
)
"""The packet of a row: ``struct row_meta`` of kernel.h.

``t_ns`` is since the epoch; MACs are 48-bit integers (0: none); addresses are 16 bytes, IPv4 in the first 4, the MAC in
the first 6 where ``ip_version`` is 0; ``length`` is on the wire; ``flags`` are NEW_PEER, NEW_SOCKET, FRAGMENT,
TRUNCATED, ICMP_QUOTED, ARP and PORTS (``sport`` and ``dport`` were read); ``interface`` is an index into
`Rows.interfaces`; ``headers`` are the captured bytes before the payload, 255 for that many and more.

``unanswered`` are the packets to the target that nothing answered, damped at λ = 0.1 and 0.01; ``answers`` (λ = 0.01)
those that came back. ``opened`` (λ = 0.01) are the ports of the target, or of its login ports the connections, or for
ICMP the hosts, that the sender newly tried.

The fields leave no byte out: NumPy packs fields when arrays are joined, and the kernel would refuse rows of another
size.
"""

_POSITION = {name: i for i, name in enumerate(ALL_COLUMNS)}

_STATE = struct.Struct("<8s32s")
_STATE_MAGIC = b"bwstate1"


class FeatureStateError(Exception):
    """A saved state that cannot be loaded; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Feature rows and the facts of their packets, in capture order."""

    values: npt.NDArray[Any]
    """(n, `ALL_COLUMNS`) float32 or float64."""
    meta: npt.NDArray[Any]
    """(n,) of ROW_META."""
    interfaces: Sequence[str] = ("",)
    """Names of the source's live interfaces; one, "", for a file."""

    def __len__(self) -> int:
        return len(self.meta)

    def interface_of(self, packet: np.void) -> str:
        """Return the name of the interface by which a ``packet`` of ``meta`` came; "" for a file."""
        return self.interfaces[int(packet["interface"])]

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return the values of one column, a view of shape (n,)."""
        return self.values[:, _POSITION[name]]


def _sealed(state: bytes) -> bytes:
    packed = zlib.compress(state, 1)
    return _STATE.pack(_STATE_MAGIC, hashlib.sha256(packed).digest()) + packed


@dataclass(frozen=True, slots=True)
class Cut:
    """A selection of the ring: frames of ``mac`` or ``address`` first, others where there is room left."""

    from_ns: int
    to_ns: int  # excluded
    mac: int = 0  # 0: none
    address: str = ""  # "": none
    most_bytes: int = 1 << 18
    newest: bool = True  # if there is no room for all frames: take the newest, not the oldest
    linktype: int = -1  # only frames of this link type; -1: that of the last frame of ``mac`` or ``address``


class Extractor:
    """The damped statistics of all frames pushed so far, in fixed memory.

    Without a ``seed`` the hash is seeded at random, which changes no value until a table is full. With ``float_time``
    gaps are taken between float64 seconds, as the published extractor does, for comparison with it.
    """

    def __init__(
        self,
        max_streams: int = 16384,
        *,
        max_devices: int = 256,
        jitter: Literal["clean", "compat"] = "clean",
        float_time: bool = False,
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
        simd: Literal["auto", "baseline", "avx2"] = "auto",
    ) -> None:
        if jitter not in ("clean", "compat"):
            raise ValueError(f"jitter {jitter!r} is not one of clean, compat")
        self._dtype = np.dtype(dtype)
        if self._dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise ValueError(f"dtype {self._dtype} is not float32 or float64")
        if seed is None:
            seed = int.from_bytes(os.urandom(8), "little")
        self._kernel = Kernel(max_streams, max_devices, jitter == "compat", float_time, seed, simd)

    @property
    def simd(self) -> str:
        """The implementation that runs, avx2 or baseline; their results are equal bit for bit."""
        return self._kernel.simd

    def push(self, source: Source, limit: int = 256) -> Rows:
        """Take up to ``limit`` frames from ``source``; return a row for each that has a whole link header.

        There are no rows at the end of a file, and from live interfaces when no frame waits. A damaged file gives the
        frames before the damage; the next call raises CaptureError.
        """
        values, meta = self._room(limit)
        n = self._kernel.push(source.capture, values, meta)
        return Rows(values[:n], meta[:n], source.names)

    def push_frames(self, frames: Sequence[tuple[int, int, bytes]], linktype: int = 1) -> Rows:
        """Return rows of frames in memory: (time since the epoch in ns, length on the wire, captured bytes).

        ValueError for a link type that is not supported.
        """
        values, meta = self._room(max(len(frames), 1))
        n = self._kernel.push_frames(tuple(frames), linktype, values, meta)
        return Rows(values[:n], meta[:n])

    def keep(self, size: int, span_s: float, payload: int = 0) -> None:
        """Store headers and ``payload`` bytes of frames of the last ``span_s`` seconds in a ring of ``size`` bytes.

        Call it once, before the first push. kernel.h says which frames are left out if there are too many.
        """
        self._kernel.keep(size, int(span_s * 1e9), payload)

    def cut(self, cut: Cut) -> tuple[int, bytes]:
        """Return the link type of frames in the ring (-1: none) and their records for a pcap file with nanoseconds."""
        address = ipaddress.ip_address(cut.address) if cut.address else None
        version, packed = (address.version, address.packed) if address else (0, b"")
        return self._kernel.cut(
            cut.from_ns, cut.to_ns, cut.mac, version, packed, cut.linktype, cut.newest, cut.most_bytes
        )

    def counts(self) -> dict[str, int]:
        """Return counters since the start: frames, rows, malformed by reason, streams in use, evictions by table."""
        return self._kernel.counts()

    def memory_bytes(self) -> dict[str, int]:
        """Return bytes by part, in total, and per stream of ``max_streams``; they are fixed from the start."""
        return self._kernel.memory()

    def save(self) -> bytes:
        """Return the whole learnt state, for `load` of an extractor of equal settings on the same kind of machine."""
        return _sealed(self._kernel.save())

    def save_seen(self) -> bytes:
        """Return the devices and what each has seen, for `load`: the part that takes longest to learn again.

        It is a third of a kilobyte and, before compression, 20 KB a device. Streams and counters begin anew.
        """
        return _sealed(self._kernel.save_seen())

    def load(self, state: bytes) -> None:
        """Continue where `save` was called, bit for bit. FeatureStateError if that fails; then nothing changes."""
        if len(state) < _STATE.size:
            raise FeatureStateError(f"feature state of {len(state)} bytes is truncated")
        magic, digest = _STATE.unpack_from(state)
        if magic != _STATE_MAGIC:
            raise FeatureStateError(f"not a feature state of this version: begins with {magic!r}, not {_STATE_MAGIC!r}")
        packed = state[_STATE.size :]
        if hashlib.sha256(packed).digest() != digest:
            raise FeatureStateError(
                f"feature state of {len(state)} bytes is truncated or corrupt: its checksum differs"
            )
        kernel_state = zlib.decompressobj().decompress(packed, self.memory_bytes()["total"])
        try:
            self._kernel.load(kernel_state)
        except ValueError as error:
            raise FeatureStateError(f"feature state does not fit: {error}") from error

    def _room(self, limit: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        if limit < 1:
            raise ValueError(f"limit {limit} is not positive")
        return np.empty((limit, len(ALL_COLUMNS)), self._dtype), np.empty(limit, ROW_META)


class RowScaling:
    """`contract.scaling` in the kernel, in one pass: rows to z and network inputs, and reconstructions to errors.

    ``at`` are the columns of a row of ``width`` values that the network takes. ``keep`` (variants, k) marks the columns
    that count in each variant of the score; the network sees the others as normal (z = 0), and the error leaves them
    out.
    """

    def __init__(self, scaler: Scaler, width: int, at: Sequence[int], keep: npt.NDArray[np.bool_]) -> None:
        self._width, self._columns = width, len(at)
        inverse = keep / scaler.scale
        same = list(at) == list(range(len(at)))
        self._scaling = Scaling(
            width,
            None if same else np.array(at, dtype=np.uint32),
            np.ascontiguousarray(scaler.mean, dtype=np.float32),
            np.ascontiguousarray(inverse, dtype=np.float32),
            np.ascontiguousarray(keep, dtype=np.float32),
            keep.sum(axis=1).astype(np.float32),
            scaler.squash == "log1p",
            np.inf if scaler.clip is None else scaler.clip,
        )

    def inputs(
        self, values: npt.NDArray[Any], variant: npt.NDArray[np.uint8] | None = None, seen: Array | None = None
    ) -> tuple[Array, Array]:
        """Return unclipped z and the network's inputs, both (n, k), of values (n, width).

        ``variant`` (n,) is that of each row. The inputs are written to ``seen`` if it is given.
        """
        z = np.empty((len(values), self._columns), dtype=np.float32)
        if seen is None:
            seen = np.empty_like(z)
        self._scaling.inputs(np.ascontiguousarray(values, dtype=np.float32), variant, z, seen)
        return z, seen

    def errors(self, z: Array, rebuilt: Array, variant: npt.NDArray[np.uint8] | None = None) -> Array:
        """Return the mean squared error of each row, (n,)."""
        out = np.empty(len(z), dtype=np.float32)
        self._scaling.errors(np.ascontiguousarray(rebuilt, dtype=np.float32), variant, z, out)
        return out


def highest_ratios(
    values: npt.NDArray[np.float32], at: npt.NDArray[np.uint32], bounds: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the highest of the columns ``at`` of each row of ``values`` (n, k) in units of their bounds, (n,)."""
    out = np.empty(len(values))
    _highest_ratios(values, values.shape[1], at, bounds, out)
    return out


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Routes:
    """The subject of each of n rows, and the facts known of its sender at that row."""

    keys: list[int | bytes]
    """The subject of each group: a MAC, or the 16 bytes of the monitored address that remote packets came to."""
    order: npt.NDArray[np.int64]
    """Row numbers by group, in row order within each."""
    starts: npt.NDArray[np.int64]
    """The begin of each group in ``order``, and the end of the last one."""
    carries: npt.NDArray[np.bool_]
    """True if the sender was known as a router by then and this is a row of its own."""
    chosen: npt.NDArray[np.bool_]
    """True if the row may be scored within the budget."""
    addresses: npt.NDArray[np.uint8]
    """(n, 16): the sender's own address as known then, of IP ``versions`` (n,); 0 if none was known."""
    versions: npt.NDArray[np.uint8]
    host_counts: Array
    """(n, `HOST_COUNTS`): what the row's sender sent in vain to its target and newly tried there; 0 for rows that come
    from a router, whose senders are others."""


class SenderTable:
    """The senders of rows: assigns rows to subjects and says which may be scored (``kernel/senders.c``).

    At most ``most`` senders and subjects are remembered. ``max_rows_per_s`` is the budget in rows a second of capture
    time; with None every row is scored. ``v4`` and ``v6`` are (network, mask) of the monitored side, IPv4 and the upper
    half of IPv6.
    """

    def __init__(
        self,
        most: int,
        max_rows_per_s: float | None,
        v4: Sequence[tuple[int, int]],
        v6: Sequence[tuple[int, int]],
    ) -> None:
        self._senders = Senders(
            most,
            max_rows_per_s or 0.0,
            int.from_bytes(os.urandom(8), "little"),
            np.array(v4, dtype=np.uint32).tobytes(),
            np.array(v6, dtype=np.uint64).tobytes(),
        )

    def route(self, meta: npt.NDArray[Any], t_ns: npt.NDArray[np.int64]) -> Routes:
        """Take in rows in the order in which they came, at steady times ``t_ns`` (n,), and return their routes."""
        n = len(meta)
        order, starts, t_ns = np.empty(n, np.int64), np.empty(n + 1, np.int64), np.ascontiguousarray(t_ns, np.int64)
        incoming, carries, chosen = np.empty(n, np.bool_), np.empty(n, np.bool_), np.empty(n, np.bool_)
        addresses, versions = np.empty((n, 16), np.uint8), np.empty(n, np.uint8)
        keys, host_counts = np.empty((n, 3), np.uint64), np.empty((n, len(HOST_COUNTS)), np.float32)
        slot, group = np.empty(max(4, 1 << (2 * n - 1).bit_length()), np.uint32), np.empty(n, np.uint32)
        packed = np.ascontiguousarray(meta)
        groups = self._senders.route(
            *(
                packed,
                t_ns,
                order,
                starts,
                incoming,
                carries,
                chosen,
                addresses,
                versions,
                host_counts,
                keys,
                slot,
                group,
            )
        )
        subjects = [
            int(low) if kind == 1 else key.tobytes()
            for (low, _, kind), key in zip(keys[:groups].tolist(), keys[:groups, :2], strict=True)
        ]
        return Routes(
            keys=subjects,
            order=order,
            starts=starts[: groups + 1],
            carries=carries,
            chosen=chosen,
            addresses=addresses,
            versions=versions,
            host_counts=host_counts,
        )

    def counts(self) -> dict[str, int]:
        """Return the numbers of rows scored and shed, and of senders evicted."""
        scored, shed, evicted, _ = self._senders.counts()
        return {"scored": scored, "shed": shed, "senders_evicted": evicted}

    @property
    def step(self) -> Literal["all", "shared", "sparse"]:
        """The share of rows scored in the last seconds: every row, a fair share of them, or fewer than one in ten."""
        return ("all", "shared", "sparse")[self._senders.counts()[3]]
