"""The packets around an alert, as a pcap file of headers: what was seen shortly before and after an episode began.

The file of an episode is written with its `new` and grows once, ``seconds`` later, with what came until then. A file
only ever grows at its end, so that the sha256 an alert tells, of the file's first ``bytes`` bytes, holds for good.
Which frames there are to take is the kernel's ring's knowledge; how an alert speaks of them is `contract.messages`'.

Without a clock of its own: time is the packets' time, so that a replay writes the same files. Files are not synced to
the card one by one, since the packet loop would have to wait for it; after a power cut the sha256 tells a torn one.
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edge_agent.capture.features import Cut
from edge_agent.contract import pcapfile
from edge_agent.contract.alert import Evidence
from edge_agent.contract.messages import CHUNK_BYTES, MAX_EVIDENCE, Chunk
from edge_agent.state import DISK_TROUBLE

logger = logging.getLogger(__name__)

_SNAPLEN = 65_535
_BLOCK = 4096  # what a file takes on the disk is counted in these, so that many small ones are bounded, too
_NAME = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\.pcap")


class EvidenceError(Exception):
    """No evidence can be had; the message says of what and why."""


class Subject(Protocol):
    """Whom an episode is about, as a detection says it."""

    @property
    def t_ns(self) -> int:
        """When."""

    @property
    def role(self) -> str:
        """source or victim."""

    @property
    def device_mac(self) -> int:
        """Of a victim the router's."""

    @property
    def device_ip(self) -> str:
        """Its address, where one was seen."""


@dataclass
class EvidenceCounts:
    """How often what happened, since the start."""

    stored: int = 0  # files begun
    finished: int = 0  # files that have their second half
    removed: int = 0  # oldest files that went since the disk's share was full
    failed: int = 0  # files that could not be written or went on; the alert was told all the same


@dataclass
class _Growing:
    until_ns: int
    cut: Cut


class EvidenceStore:
    """Files in ``folder``, which is made; together at most ``most_bytes``, the oldest going first.

    ``cut`` takes frames out of the ring, which must reach back ``seconds``. EvidenceError when the folder is unusable,
    but not for a disk that is full or fails: that may pass.
    """

    def __init__(
        self, folder: Path, cut: Callable[[Cut], tuple[int, bytes]], *, seconds: float, most_bytes: int
    ) -> None:
        self.counts = EvidenceCounts()
        self.folder, self._cut, self._span_ns, self._most = folder, cut, int(seconds * 1e9), most_bytes
        self._growing: dict[str, _Growing] = {}
        self._told: dict[str, Evidence] = {}
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
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def begin(self, id: str, subject: Subject) -> Evidence | None:
        """Write what led to episode ``id``; None, counted, when that is not possible."""
        t_ns = subject.t_ns
        source = subject.role != "victim"
        cut = Cut(
            from_ns=t_ns - self._span_ns,
            to_ns=t_ns + 1,
            mac=subject.device_mac if source else 0,
            address="" if source and subject.device_mac else subject.device_ip,
            most_bytes=MAX_EVIDENCE // 2 - pcapfile.HEADER.size,  # half is for what comes after the alert
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
        self._told[id] = Evidence(hashlib.sha256(content).hexdigest(), len(content))
        return self._told[id]

    def of(self, id: str) -> Evidence | None:
        """What there is of an episode that was begun and not yet `forget`-ed."""
        return self._told.get(id)

    def tick(self, t_ns: int) -> None:
        """Write the second half of what is due at packet time ``t_ns``."""
        for id in [id for id, growing in self._growing.items() if growing.until_ns < t_ns]:
            self._grow(id)

    def forget(self, id: str) -> Evidence | None:
        """The last word on an episode that ends: its file is finished with what there is."""
        if id in self._growing:
            self._grow(id)
        return self._told.pop(id, None)

    def counters(self) -> dict[str, int]:
        """For reports and health."""
        return {f"evidence_{key}": value for key, value in vars(self.counts).items()}

    def _grow(self, id: str) -> None:
        path = self.folder / f"{id}.pcap"
        _, records = self._cut(self._growing.pop(id).cut)
        if path.name not in self._sizes:  # it was among the oldest
            return
        try:
            before = self._told[id].bytes
            self._make_room(path.name, before + len(records))
            with path.open("r+b") as file:
                content = file.read(before)
                file.truncate(before)
                file.write(records)
        except OSError as error:
            self._fail(path, error)
            return
        self._sizes[path.name] = _on_disk(before + len(records))
        self._told[id] = Evidence(hashlib.sha256(content + records).hexdigest(), before + len(records))
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
            logger.warning("evidence %s cannot be written: %s", path, reason)
        self._trouble = reason


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def files(folder: Path) -> list[Path]:
    """The evidence in a folder, oldest first."""
    return sorted(path for path in folder.glob("*.pcap") if _NAME.fullmatch(path.name))


def fetch(folder: Path, id: str) -> bytes:
    """The pcap of episode ``id``; EvidenceError when there is none (any more)."""
    name = f"{id}.pcap"
    if not _NAME.fullmatch(name):
        raise EvidenceError(f"{id[:60]!r} is no id of an alert")
    try:
        with (folder / name).open("rb") as file:
            return file.read(MAX_EVIDENCE)
    except FileNotFoundError as error:
        there = len(files(folder)) if folder.is_dir() else 0
        raise EvidenceError(f"no evidence of {id} in {folder} ({there} others)") from error
    except OSError as error:
        raise EvidenceError(f"{folder / name}: {error.strerror}") from error


def chunks(folder: Path, id: str) -> tuple[dict[str, object], Iterator[Chunk]]:
    """What to reply to an order for evidence (``id``, ``sha256``, ``bytes``, ``count``), and as many parts to publish.

    EvidenceError when there is none.
    """
    content = fetch(folder, id)
    count = max(-(-len(content) // CHUNK_BYTES), 1)
    parts = (Chunk(id, part, count, content[part * CHUNK_BYTES : (part + 1) * CHUNK_BYTES]) for part in range(count))
    return {"id": id, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "count": count}, parts


def began_ns(path: Path) -> int:
    """When the episode of a file began: the time in its name, Unix ns to the millisecond."""
    return int(path.name[:8] + path.name[9:13], 16) * 1_000_000
