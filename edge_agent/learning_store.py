"""Storage of what was learnt of devices: written in time, published, and taken up by the agent's next run.

Two files: the state file has each device's limits and rows (`detection.devices`), the file beside it what each device
has contacted (`capture.features`), which is large and valid for every model.
"""

import logging
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from edge_agent.capture.features import Extractor, FeatureStateError, give_back_memory
from edge_agent.contract import messages
from edge_agent.contract.bundle import replace_file
from edge_agent.detection.devices import Devices
from edge_agent.publisher import Publisher
from edge_agent.state import StateError

LOOK_S = 1.0
"""Seconds between two looks at what has changed."""

DEVICES_S = 60.0
"""Shortest time in seconds between two documents on devices."""

DEVICES_IDLE_S = 600.0
"""The same as long as neither a state nor a progress changes."""

SAVED_AN_HOUR = 500_000
"""Bytes written in an hour at most, to spare the card: where there is more to write, it is written less often."""

MAX_SEEN = 32 << 20
"""Largest size in bytes of a file of what devices have seen; a larger one is not read."""

logger = logging.getLogger(__name__)


class LearningStore:
    """Logs and, with a ``publisher``, publishes and stores what is learnt of devices.

    ``devices`` returns those in use, which another bundle replaces, ``alarmed`` the MACs of those under alarm.
    ``left_out`` is the number of devices for which the document that was published last had no room.

    The disk is written by a thread of its own, so that a slow card does not hold up packets; what one write could not
    store is left to the next.
    """

    def __init__(
        self,
        devices: Callable[[], Devices],
        extractor: Extractor,
        publisher: Publisher | None,
        save_s: float,
        *,
        alarmed: Callable[[], Collection[int]] = tuple,
    ) -> None:
        self._alarmed, self.left_out = alarmed, 0
        self._devices, self._extractor, self._publisher, self._save_s = devices, extractor, publisher, save_s
        self._look_due = self._publish_due = 0.0
        self._published: tuple[object, ...] = ()
        self._published_at = -DEVICES_IDLE_S
        self._unsaved: bytes | None = None  # the newest document, for local commands while no agent runs
        self._save_due = time.monotonic() + save_s
        self._writer = ThreadPoolExecutor(1, "memory") if publisher else None
        self._pending: Future[None] | None = None
        self._trouble = ""

    def beat(self, now: float) -> None:
        """Do what is due at ``now``, seconds of the steady clock."""
        if now < self._look_due:
            return
        self._look_due = now + LOOK_S
        self._devices().look()
        if self._publisher is None or (self._pending and not self._pending.done()):
            return
        if now >= self._publish_due:
            self._publish(now)
        if now >= self._save_due:
            self._write(now, everything=False)

    def finish(self) -> None:
        """Publish the last document, and begin to store everything."""
        self._devices().look()
        if self._writer is None:
            return
        self._published = ()
        now = time.monotonic()
        self._publish(now)
        self._write(now, everything=True)

    def close(self) -> None:
        """Return when everything is on the disk."""
        if self._writer is not None:
            self._writer.shutdown(wait=True)

    def _publish(self, now: float) -> None:
        """Publish the document on devices if it has news; it is stored with everything else."""
        assert self._publisher is not None
        self._publish_due = now + DEVICES_S
        devices, alarmed, t_ns = self._devices(), self._alarmed(), time.time_ns()
        document = devices.document(t_ns, alarmed=alarmed)
        keys = ("mac", "state", "percent", "reason", "capped", "alarmed")
        news = tuple(tuple(entry.get(key) for key in keys) for entry in document["devices"])
        if news == self._published and now - self._published_at < DEVICES_IDLE_S:
            return
        self._published, self._published_at = news, now
        self.left_out = document["devices_left_out"]
        stored = devices.document(t_ns, alarmed=alarmed, most_bytes=messages.MAX_STORED)
        self._unsaved = messages.encode(stored, messages.MAX_STORED)
        self._publisher.link.retain("devices", messages.encode(document))

    def _write(self, now: float, everything: bool) -> None:
        assert self._writer is not None
        assert self._publisher is not None
        devices, state, now_s = self._devices(), self._publisher.state, time.time()
        records, seen = devices.records(now_s, everything=everything), self._extractor.save_seen()
        document, self._unsaved = self._unsaved, None
        size = len(seen) + 2 * (records.size + len(document or b""))  # the database writes everything twice
        self._save_due = now + max(self._save_s, 3600.0 * size / SAVED_AN_HOUR)

        def write() -> None:
            try:
                if records.learnt:
                    devices.keep(records, now_s)
                replace_file(seen_path(state.path), seen)
                if document is not None:
                    state.document_put("devices", document, now_s)
                self._trouble = ""
            except (StateError, OSError) as error:
                if str(error) != self._trouble:
                    logger.error("what was learnt of devices cannot be stored and will be tried again: %s", error)
                self._trouble = str(error)
            give_back_memory()  # what was packed and written, and was needed for a moment

        self._pending = self._writer.submit(write)


def seen_path(state: Path) -> Path:
    """Return the path of the file, beside the ``state`` file, of what devices have seen."""
    return state.with_name(state.name + ".seen")


def recall(extractor: Extractor, path: Path) -> bool:
    """Take up what devices had seen; False if the file cannot be used.

    Such a file is moved aside, and every peer is new to every device again.
    """
    try:
        if path.stat().st_size > MAX_SEEN:
            raise FeatureStateError(f"the file has {path.stat().st_size} bytes, the bound is {MAX_SEEN}")
        extractor.load(path.read_bytes())
    except FileNotFoundError:
        return True
    except (FeatureStateError, OSError) as error:
        aside = path.with_name(path.name + ".corrupt")
        logger.error(
            "%s cannot be read and is moved to %s, and what devices have contacted is learnt anew: %s",
            path,
            aside.name,
            error,
        )
        with suppress(OSError):
            path.replace(aside)
        return False
    return True
