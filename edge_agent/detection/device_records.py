"""The stored records of devices: how what was learnt of one is packed and read, and the export of rows.

What the values in a record mean is the knowledge of `edge_agent.detection.device_limits`, whose they are that of
`devices`.
"""

import io
import json
import logging
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.captures import mac_text
from edge_agent.contract.columns import ALL_COLUMNS, CLEAN
from edge_agent.detection.device_limits import DeviceLimits
from edge_agent.detection.minutes import MAX_MINUTES, MINUTE
from edge_agent.detection.reservoir import RowBurst
from edge_agent.state import State

logger = logging.getLogger(__name__)

_MAX_RECORD = 1 << 20  # bytes unpacked; a record has up to 20 KB

_HEAD = struct.Struct("<I")
UNREADABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""Errors of a record that cannot be read."""


def pack(stored: Mapping[str, Any], minutes: NDArray[Any]) -> bytes:
    """Return a device's record, compressed: the length of the JSON part, that part, the ``minutes`` (`MINUTE`)."""
    text = json.dumps(stored, separators=(",", ":")).encode()
    return zlib.compress(_HEAD.pack(len(text)) + text + minutes.tobytes(), 6)


def unpack(limits: DeviceLimits, record: bytes) -> dict[str, Any]:
    """Restore ``limits`` from what `pack` made, and return its plain values; `UNREADABLE` for anything else."""
    stored, minutes = parts(record)
    limits.restore(stored, minutes)
    return stored


def parts(record: bytes) -> tuple[dict[str, Any], NDArray[Any]]:
    """Return the plain values and the minutes of a record."""
    packed = zlib.decompressobj()
    unpacked = packed.decompress(record, _MAX_RECORD)
    if not packed.eof:
        raise ValueError("cut short")
    (length,) = _HEAD.unpack_from(unpacked)
    end = _HEAD.size + length
    return json.loads(unpacked[_HEAD.size : end]), np.frombuffer(unpacked[end:], dtype=MINUTE)[-MAX_MINUTES:]


def export(state: State, names: Mapping[str, str], gateway: str) -> tuple[bytes, int, int]:
    """Return an .npz file of the stored rows of devices that have learnt, how many rows and of how many devices.

    The file has ``values`` (n, k) with the names of the ``columns`` (k,), their ``schema``, ``t_ns`` (n,) and
    ``device`` (n,): the name that a device has here, or a number; it has no address. Only bursts drawn evenly over time
    are exported: loud ones would make benign traffic look louder than it is. StateError if the state cannot be read.
    """
    values, t_ns, device, unreadable = [np.zeros((0, len(ALL_COLUMNS)), np.float32)], [np.zeros(0, np.int64)], [], 0
    for number, (mac, _, record) in enumerate(state.learnt_elsewhere(""), start=1):
        try:
            if parts(record)[0]["learnt_ns"] is None:
                continue
        except UNREADABLE:
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
        logger.warning("%d bursts of rows cannot be read and are not exported", unreadable)
    file = io.BytesIO()
    schema = np.array(CLEAN)
    columns, names_of = np.array(ALL_COLUMNS), np.array(device, dtype=str)
    np.savez_compressed(
        file, schema=schema, columns=columns, values=np.concatenate(values), t_ns=np.concatenate(t_ns), device=names_of
    )
    return file.getvalue(), len(device), len(set(device))
