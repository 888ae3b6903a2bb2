"""The packets of one capture, from any number of sources, and the pcap file that they become."""

from pathlib import Path

import numpy as np

from edge_agent.contract import pcapfile
from trainer.traffic.plan import SECOND
from trainer.traffic.wire import RECORD, Bytes, Ints, Records, frames_of, head_matrix


class Tape:
    """The packets of one capture, added in any order and written in order of time."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, ...]] = []
        self._heads: list[bytes] = []
        self._raw: list[tuple[int, bytes]] = []
        self._bulk: list[tuple[Records, Bytes]] = []

    def row(self, row: tuple[int, ...], head: bytes) -> None:
        """Add one packet, its fields in RECORD's order."""
        self._rows.append(row)
        self._heads.append(head)

    def raw(self, t: int, frame: bytes) -> None:
        """Add one complete frame."""
        self._raw.append((t, frame.ljust(60, b"\0")))

    def bulk(self, rows: Records, heads: Bytes) -> None:
        """Add many packets at once; `heads` has one row of payload bytes per packet."""
        if len(rows):
            self._bulk.append((rows, heads))

    def mark(self) -> tuple[int, int]:
        """Return the present end of the tape, for `span`."""
        return len(self._rows), len(self._bulk)

    def span(self, mark: tuple[int, int], mac: int) -> tuple[int, int]:
        """Return the times of the first and the last TCP or UDP packet that `mac` sent since the mark."""
        times = [row[0] for row in self._rows[mark[0] :] if row[2] == mac]
        for rows, _ in self._bulk[mark[1] :]:
            mine = rows["t"][rows["smac"] == mac]
            times += [int(mine.min()), int(mine.max())] if len(mine) else []
        return min(times), max(times)

    def write(self, path: Path, begin: int, end: int, snaplen: int) -> int:
        """Write the packets within [begin, end) as pcap, atomically, and return their number."""
        times, wires, stored = self._encode(snaplen)
        order = np.argsort(times, kind="stable")
        order = order[(times[order] >= begin) & (times[order] < end)]
        captured = np.minimum(wires, snaplen)
        header = np.empty((len(order), 4), np.uint32)
        header[:, 0] = times[order] // SECOND
        header[:, 1] = times[order] % SECOND
        header[:, 2] = captured[order]
        header[:, 3] = wires[order]
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            file.write(pcapfile.file_header(snaplen, magic=pcapfile.MAGIC_US))
            columns = np.arange(16 + stored.shape[1])
            for at in range(0, len(order), 65536):
                chosen = order[at : at + 65536]
                block = np.concatenate([header[at : at + 65536].view(np.uint8), stored[chosen]], axis=1)
                file.write(block[columns < 16 + captured[chosen][:, None]].tobytes())
        part.replace(path)
        return len(order)

    def _encode(self, snaplen: int) -> tuple[Ints, Ints, Bytes]:
        """Return time, length on the wire and captured bytes of every packet."""
        groups = list(self._bulk)
        if self._rows:
            groups.append((np.array(self._rows, RECORD), head_matrix(self._heads)))
        times: list[Ints] = []
        wires: list[Ints] = []
        parts: list[Bytes] = []
        for rows, heads in groups:
            kinds = rows["proto"].astype(np.int64) * 16 + rows["options"] * 2 + rows["ipv6"]
            for kind in np.unique(kinds):
                mine = np.flatnonzero(kinds == kind)
                frames, wire = frames_of(rows[mine], heads[mine])
                times.append(rows["t"][mine])
                wires.append(wire)
                parts.append(frames[:, :snaplen])
        if self._raw:
            times.append(np.array([t for t, _ in self._raw], np.int64))
            wires.append(np.array([len(frame) for _, frame in self._raw], np.int64))
            parts.append(head_matrix([frame[:snaplen] for _, frame in self._raw]))
        if not parts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 0), np.uint8)
        wire_all = np.concatenate(wires)
        stored = np.zeros((len(wire_all), min(snaplen, int(wire_all.max()))), np.uint8)
        at = 0
        for part in parts:
            stored[at : at + len(part), : part.shape[1]] = part
            at += len(part)
        return np.concatenate(times), wire_all, stored
