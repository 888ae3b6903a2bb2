"""Evidence: the packets shortly before and after an episode began, as a pcap file of headers.

The file of an episode is written with its `new` and grows once, ``seconds`` later, by the packets that came until then.
It grows only at its end, so that the sha256 in an alert, of the file's first ``bytes`` bytes, stays valid. Which frames
can be taken is known by the ring of the kernel; what an alert says of them is `contract.alert`'s knowledge.

There is no clock here: time is the packets' time, so that a replay writes the same files. Files are not synced to the
disk one by one, as the packet loop would have to wait for it; after a power cut the sha256 shows if one is torn.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edge_agent.capture.features import Cut
from edge_agent.contract import alertid, pcapfile
from edge_agent.contract.alert import Evidence
from edge_agent.contract.messages import CHUNK_BYTES, MAX_EVIDENCE, Chunk, MessageError, is_uuid7
from edge_agent.detection.detection import Detection
from edge_agent.ownership import hand_over
from edge_agent.state import DISK_TROUBLE

logger = logging.getLogger(__name__)

_SNAPLEN = 65_535
_BLOCK = 4096  # bytes; files are counted in whole blocks of the disk, so that many small ones are bounded, too


class EvidenceError(Exception):
    """Evidence that is not available; the message names the episode and the reason."""


@dataclass
class EvidenceCounts:
    """Counters since the start."""

    stored: int = 0  # files begun
    finished: int = 0  # files that have their second half
    removed: int = 0  # oldest files, removed to stay within the bound
    failed: int = 0  # files that could not be begun or finished; their alerts were sent all the same


@dataclass
class _Growing:
    until_ns: int
    cut: Cut


class EvidenceStore:
    """Evidence files in ``folder``, together at most ``most_bytes``: beyond that the oldest are removed.

    The folder is made when it is not there. ``cut`` takes frames out of the ring, which must reach back ``seconds``.
    EvidenceError when the folder cannot be used, but not when the disk is full or fails, as that may pass.
    """

    def __init__(
        self, folder: Path, cut: Callable[[Cut], tuple[int, bytes]], *, seconds: float, most_bytes: int
    ) -> None:
        self.counts = EvidenceCounts()
        self.folder, self._cut, self._span_ns, self._most = folder, cut, int(seconds * 1e9), most_bytes
        self._growing: dict[str, _Growing] = {}
        self._stored: dict[str, Evidence] = {}  # of open episodes
        self._trouble = ""
        self._sizes: dict[str, int] = {}
        try:
            self._make_folder()
            for torn in folder.glob("*.part"):
                torn.unlink()
            self._sizes = {path.name: _on_disk(path.stat().st_size) for path in files(folder)}
        except OSError as error:
            if error.errno not in DISK_TROUBLE:
                raise EvidenceError(f"evidence {folder}: {error.strerror}") from error
            self._fail(folder, error)

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            hand_over(self.folder)

    def begin(self, id: str, detection: Detection) -> Evidence | None:
        """Write the packets that led to episode ``id``; None when that is not possible, which is counted."""
        t_ns = detection.t_ns
        source = detection.role != "victim"  # the MAC of a victim is its router's
        cut = Cut(
            from_ns=t_ns - self._span_ns,
            to_ns=t_ns + 1,
            mac=detection.device_mac if source else 0,
            address="" if source and detection.device_mac else detection.device_ip,
            most_bytes=MAX_EVIDENCE // 2 - pcapfile.HEADER.size,  # half is for the packets after the alert
        )
        linktype, records = self._cut(cut)
        if linktype < 0:
            return None
        content = pcapfile.file_header(_SNAPLEN, linktype) + records
        path = self.folder / f"{id}.pcap"
        part = path.with_suffix(".part")
        try:
            self._make_folder()
            self._make_room(path.name, len(content))
            part.write_bytes(content)
            hand_over(part)
            os.replace(part, path)
        except OSError as error:
            self._fail(path, error)
            return None
        self._sizes[path.name] = _on_disk(len(content))
        self.counts.stored += 1
        self._growing[id] = _Growing(
            t_ns + self._span_ns,
            Cut(t_ns + 1, t_ns + self._span_ns + 1, cut.mac, cut.address, MAX_EVIDENCE - len(content), False, linktype),
        )
        self._stored[id] = Evidence(hashlib.sha256(content).hexdigest(), len(content))
        return self._stored[id]

    def of(self, id: str) -> Evidence | None:
        """Return the evidence of an episode between its `begin` and its `forget`."""
        return self._stored.get(id)

    def tick(self, t_ns: int) -> None:
        """Write the second half of the files for which it is due at packet time ``t_ns``."""
        for id in [id for id, growing in self._growing.items() if growing.until_ns < t_ns]:
            self._grow(id)

    def forget(self, id: str) -> Evidence | None:
        """Return the evidence of an episode that ends; its file is finished with the packets so far."""
        if id in self._growing:
            self._grow(id)
        return self._stored.pop(id, None)

    def counters(self) -> dict[str, int]:
        """Return the counters by the names they have in reports and health."""
        return {f"evidence_{key}": value for key, value in vars(self.counts).items()}

    def _grow(self, id: str) -> None:
        path = self.folder / f"{id}.pcap"
        _, records = self._cut(self._growing.pop(id).cut)
        if path.name not in self._sizes:  # it was removed as one of the oldest
            return
        try:
            before = self._stored[id].bytes
            self._make_room(path.name, before + len(records))
            with path.open("r+b") as file:
                content = file.read(before)
                file.truncate(before)
                file.write(records)
        except OSError as error:
            self._fail(path, error)
            return
        self._sizes[path.name] = _on_disk(before + len(records))
        self._stored[id] = Evidence(hashlib.sha256(content + records).hexdigest(), before + len(records))
        self.counts.finished += 1
        self._trouble = ""

    def _make_room(self, name: str, size: int) -> None:
        """Remove the oldest files (their ids sort by time) until ``name`` may have ``size`` bytes."""
        while self._sizes and sum(self._sizes.values()) - self._sizes.get(name, 0) + _on_disk(size) > self._most:
            oldest = min((other for other in self._sizes if other != name), default="")
            if not oldest:
                return
            (self.folder / oldest).unlink(missing_ok=True)
            del self._sizes[oldest]
            self.counts.removed += 1

    def _fail(self, path: Path, error: OSError) -> None:
        self.counts.failed += 1
        with suppress(OSError):
            path.with_suffix(".part").unlink(missing_ok=True)
        reason = error.strerror or str(error)
        if reason != self._trouble:
            logger.warning("evidence %s cannot be written: %s; alerts are sent without it", path, reason)
        self._trouble = reason


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def files(folder: Path) -> list[Path]:
    """Return the evidence files in a folder, the oldest first."""
    return sorted(path for path in folder.glob("*.pcap") if is_uuid7(path.stem))


def stored_id(folder: Path, text: str) -> str:
    """Return the id of the only episode with evidence in ``folder`` whose id is, or ends with, ``text``.

    EvidenceError when there is none, or more than one.
    """
    try:
        ending = alertid.read(text)
        stored = files(folder) if folder.is_dir() else []
        ids = [path.stem for path in stored if alertid.ends(path.stem, ending)]
        return alertid.the_one(ending, ids, f"no evidence of {ending} in {folder} (captures there: {len(stored)})")
    except MessageError as error:
        raise EvidenceError(str(error)) from error
    except OSError as error:
        raise EvidenceError(f"{folder}: {error.strerror}") from error


def fetch(folder: Path, text: str) -> bytes:
    """Return the pcap of the episode that `stored_id` finds; EvidenceError when it is not stored, or no longer."""
    path = folder / f"{stored_id(folder, text)}.pcap"
    try:
        with path.open("rb") as file:
            return file.read(MAX_EVIDENCE)
    except OSError as error:
        raise EvidenceError(f"{path}: {error.strerror}") from error


def chunks(folder: Path, text: str) -> tuple[dict[str, object], Iterator[Chunk]]:
    """Return the reply to a command for the evidence of an alert, and the parts that follow it.

    The reply has ``id``, ``sha256``, ``bytes`` and ``count``, the number of parts. ``text`` is as of `stored_id`.
    EvidenceError when no evidence is stored.
    """
    id = stored_id(folder, text)
    content = fetch(folder, id)
    count = max(-(-len(content) // CHUNK_BYTES), 1)
    parts = (Chunk(id, part, count, content[part * CHUNK_BYTES : (part + 1) * CHUNK_BYTES]) for part in range(count))
    return {"id": id, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "count": count}, parts


def began_ns(path: Path) -> int:
    """Return when the episode of a file began: the time in its name, Unix ns to the millisecond."""
    return int(path.name[:8] + path.name[9:13], 16) * 1_000_000
