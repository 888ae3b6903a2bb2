"""The captures that a bundle is tried on, in memory: benign days, attacks, and the days that attacks are put into.

Days of a device follow one another here as they would on a gateway, even if they were captured at the same time, or
years apart. What is done with them is the knowledge of `trials`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from edge_agent.contract import captures
from edge_agent.contract.bundle import BENIGN
from edge_agent.contract.captures import Capture
from trainer.data.frames import Frame, S
from trainer.judge import inject
from trainer.judge.inject import AttackCapture, InjectError, InsideHost

Manifests = Sequence[tuple[captures.CaptureManifest, Path]]
"""Manifests, each with the folder that its files start from."""

AT = 0.4
"""The place in a device's day where an attack is put: the share of the day that has passed."""

DAY_NS = 86_400 * S

SPLICE_NS = 2 * DAY_NS
"""A longer gap in a benign capture is no silence, but where two recordings were put together."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A capture read into memory. Of a span, ``watched_ns`` is its begin and end as far as the file goes."""

    capture: Capture
    generated: bool
    frames: list[Frame]
    watched_ns: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The capture's name in tables."""
        return self.capture.name

    @property
    def start_ns(self) -> int:
        """The time of its first frame."""
        return self.frames[0][0]

    @property
    def days(self) -> float:
        """Its length in days: of a span, silence at its ends included; of a file, without the gaps of a splice."""
        if self.watched_ns is not None:
            return (self.watched_ns[1] - self.watched_ns[0]) / DAY_NS
        times = sorted(frame[0] for frame in self.frames)
        gaps = (later - earlier for earlier, later in pairwise(times))
        return sum(gap for gap in gaps if gap <= SPLICE_NS) / DAY_NS


@dataclass(frozen=True, kw_only=True)
class LoadedAttack:
    """A capture and the attack in it."""

    loaded: Loaded
    source: AttackCapture

    @property
    def name(self) -> str:
        """The capture's name in tables."""
        return self.loaded.name


@dataclass(frozen=True, kw_only=True)
class Place:
    """A device's day that attacks are put into, the device, and its ``earlier`` days, moved in time to before it."""

    day: Loaded
    host: InsideHost
    earlier: tuple[list[Frame], ...]

    @property
    def at_ns(self) -> int:
        """The time of the day at which an attack begins."""
        first, last = self.day.frames[0][0], self.day.frames[-1][0]
        return first + int((last - first) * AT)


@dataclass(frozen=True, kw_only=True)
class Material:
    """All that a bundle is tried on, and why some captures are left out.

    ``earlier`` are days, by device, that an agent may learn from but that are not judged.
    """

    benign: list[Loaded] = field(default_factory=list)
    attacks: list[LoadedAttack] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    earlier: dict[str, list[Loaded]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def days_of(self, device: str) -> list[Loaded]:
        """Return the days of a device that are judged, in the order of the manifests, which name its MAC."""
        return [day for day in self.benign if day.capture.device == device and day.capture.mac is not None]


def read(manifests: Manifests, earlier: Manifests = ()) -> Material:
    """Read captures; a capture that cannot be read, or used for what it is for, is skipped with its reason."""
    material = Material()
    for manifest, root in earlier:
        for capture in manifest.captures:
            if capture.label == BENIGN and (loaded := _loaded(capture, manifest, root, material.skipped)):
                material.earlier.setdefault(capture.device, []).append(loaded)
    hosts: dict[str, tuple[Loaded, InsideHost]] = {}
    silent: dict[str, InjectError] = {}
    for manifest, root in manifests:
        for capture in manifest.captures:
            if (loaded := _loaded(capture, manifest, root, material.skipped)) is None:
                continue
            try:
                if capture.label != BENIGN:
                    source = inject.attack(loaded.frames, capture)
                    material.attacks.append(LoadedAttack(loaded=loaded, source=source))
                    continue
                material.benign.append(loaded)
                if capture.mac is not None:  # a manifest lists days in order: the last one of a device is taken
                    hosts[capture.device] = loaded, inject.host(loaded.frames, capture.mac, capture.name)
            except InjectError as error:
                if capture.label != BENIGN:
                    material.skipped.append(str(error))
                else:  # it is judged all the same; another day of the device may do for attacks
                    silent[capture.device] = error
    if material.attacks:
        unfit = (error for device, error in silent.items() if device not in hosts)
        material.skipped.extend(f"{error}, so no attack is put into its days" for error in unfit)
    for device, (day, host) in hosts.items():
        days = [*material.earlier.get(device, ()), *material.days_of(device)]
        before = [loaded.frames for loaded in days[: next(i for i, loaded in enumerate(days) if loaded is day)]]
        *moved, _ = consecutive([*before, day.frames])
        material.places.append(Place(day=day, host=host, earlier=tuple(moved)))
    return material


def _loaded(capture: Capture, manifest: captures.CaptureManifest, root: Path, skipped: list[str]) -> Loaded | None:
    try:
        whole = inject.read(root / capture.file)
        if (span := capture.span) is None:
            return Loaded(capture=capture, generated=manifest.generated, frames=whole)
        times = [frame[0] for frame in whole]
        first, last = max(span.start_ns, min(times)), min(span.end_ns, max(times))
        frames = [frame for frame in whole if first <= frame[0] <= last]
        if not frames:
            raise InjectError(f"{capture.name}: the file has no frames in that time")
    except InjectError as error:
        skipped.append(str(error))
        return None
    return Loaded(capture=capture, generated=manifest.generated, frames=frames, watched_ns=(first, last))


def consecutive(days: Sequence[list[Frame]]) -> list[list[Frame]]:
    """Return days of a device, each moved by whole days so that it ends within a day before the next one begins.

    The last one keeps its times, and hours of the day are kept.

    >>> consecutive([[(0, 60, b"")], [(5 * DAY_NS + 7, 60, b"")]])[0][0][0] // DAY_NS
    5
    """
    moved = list(days[-1:])
    for day in reversed(days[:-1]):
        next_ns, last_ns = min(frame[0] for frame in moved[0]), max(frame[0] for frame in day)
        by_ns = (next_ns - 1 - last_ns) // DAY_NS * DAY_NS
        moved.insert(0, [(t_ns + by_ns, length, data) for t_ns, length, data in day] if by_ns else day)
    return moved
