"""What was learnt of devices: when it goes to the disk and to the broker, and what was seen of them taken up again."""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from edge_agent.capture.features import Extractor, FeatureStateError, give_back_memory
from edge_agent.contract import messages
from edge_agent.contract.bundle import replace_file
from edge_agent.detection.devices import Devices
from edge_agent.publisher import Publisher
from edge_agent.state import StateError

DEVICES_S = 60.0
"""Seconds between two documents on devices, at least; without a change of state or progress `DEVICES_IDLE_S`."""

DEVICES_IDLE_S = 600.0

SAVED_AN_HOUR = 500_000
"""Bytes of what was learnt that are written in an hour; where it is more it is written less often."""

MAX_SEEN = 32 << 20
"""Bytes of the largest file of what devices have seen that is read."""

logger = logging.getLogger(__name__)


class LearningStore:
    """What was learnt of devices: into the log and, with a ``publisher``, to the broker and into its state.

    The disk is written by a thread of its own, so that a slow card does not hold up packets; what a write could not do,
    the next one does.
    """

    def __init__(self, devices: Devices, extractor: Extractor, publisher: Publisher | None, save_s: float) -> None:
        self._devices, self._extractor, self._publisher, self._save_s = devices, extractor, publisher, save_s
        self._look = self._tell = 0.0
        self._told: tuple[object, ...] = ()
        self._told_at = -DEVICES_IDLE_S
        self._unsaved: bytes | None = None  # the newest document, for those who ask while no agent runs
        self._save = time.monotonic() + save_s
        self._writer = ThreadPoolExecutor(1, "memory") if publisher else None
        self._pending: Future[None] | None = None
        self._trouble = ""

    def beat(self, now: float) -> None:
        """Do what is due."""
        if now < self._look:
            return
        self._look = now + 1.0
        self._devices.look()
        if self._publisher is None or (self._pending and not self._pending.done()):
            return
        if now >= self._tell:
            self._tell_devices(now)
        if now >= self._save:
            self._write(now, everything=False)

    def finish(self) -> None:
        """Tell the broker the last, and begin to keep everything."""
        self._devices.look()
        if self._writer is None:
            return
        self._told = ()
        now = time.monotonic()
        self._tell_devices(now)
        self._write(now, everything=True)

    def close(self) -> None:
        """Return when everything is on the disk."""
        if self._writer is not None:
            self._writer.shutdown(wait=True)

    def _tell_devices(self, now: float) -> None:
        """Give the broker the document on devices if there is something new in it; the disk gets it with the rest."""
        assert self._publisher is not None
        self._tell = now + DEVICES_S
        said = self._devices.document(time.time_ns())
        told = tuple((d["mac"], d["state"], d["percent"], d.get("reason"), d["capped"]) for d in said["devices"])
        if told == self._told and now - self._told_at < DEVICES_IDLE_S:
            return
        self._told, self._told_at = told, now
        self._unsaved = messages.encode(said, messages.MAX_DOCUMENT)
        self._publisher.link.retain("devices", self._unsaved)

    def _write(self, now: float, everything: bool) -> None:
        assert self._writer is not None
        assert self._publisher is not None
        state, now_s = self._publisher.state, time.time()
        records, seen = self._devices.records(now_s, everything=everything), self._extractor.save_seen()
        document, self._unsaved = self._unsaved, None
        size = len(seen) + 2 * (records.size + len(document or b""))  # the database writes all twice
        self._save = now + max(self._save_s, 3600.0 * size / SAVED_AN_HOUR)

        def write() -> None:
            try:
                if records.learnt:
                    self._devices.keep(records, now_s)
                replace_file(seen_path(state.path), seen)
                if document is not None:
                    state.document_put("devices", document, now_s)
                self._trouble = ""
            except (StateError, OSError) as error:
                if str(error) != self._trouble:
                    logger.error("what was learnt could not be kept: %s", error)
                self._trouble = str(error)
            give_back_memory()  # what was packed and written, and what was needed for a while

        self._pending = self._writer.submit(write)


def seen_path(state: Path) -> Path:
    """Where what devices have seen is kept: beside the state file. It is large, and good for every model."""
    return state.with_name(state.name + ".seen")


def recall(extractor: Extractor, path: Path) -> bool:
    """Take up what devices had seen; False if the file will not do: it is moved aside, and all is new to everybody."""
    try:
        if path.stat().st_size > MAX_SEEN:
            raise FeatureStateError(f"feature state of {path.stat().st_size} bytes, the bound is {MAX_SEEN}")
        extractor.load(path.read_bytes())
    except FileNotFoundError:
        return True
    except (FeatureStateError, OSError) as error:
        aside = path.with_name(path.name + ".corrupt")
        logger.error("%s: %s; moved to %s, what devices have seen is learnt anew", path, error, aside.name)
        with suppress(OSError):
            path.replace(aside)
        return False
    return True
