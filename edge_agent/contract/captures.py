"""A set of capture files and what happened in each: the manifest that generator, trainer and demo share."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from edge_agent.contract import settings
from edge_agent.contract.bundle import BENIGN

MANIFEST = "manifest.yaml"


@dataclass(frozen=True)
class Span:
    """A time within a capture, both ends included."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is None or self.end.tzinfo is None:
            raise ValueError("start and end need a time zone (2026-01-05T10:20:00Z)")
        if self.end < self.start:
            raise ValueError("end is before start")

    @property
    def start_ns(self) -> int:
        """Unix ns of its first moment."""
        return _ns(self.start)

    @property
    def end_ns(self) -> int:
        """Unix ns of its last moment."""
        return _ns(self.end)


@dataclass(frozen=True)
class Attack(Span):
    """The time of an attack in a capture; ``spoofed`` is true if the device forged its addresses.

    With ``server`` only packets to and from that address belong to the attack: its device did much else in that time.
    """

    spoofed: bool = False
    server: str | None = None

    def __post_init__(self) -> None:
        if self.server is not None:
            try:
                IPv4Address(self.server)
            except ValueError as error:
                raise ValueError(f"server: {error}") from None
        super().__post_init__()


@dataclass(frozen=True)
class Capture:
    """One file of a manifest, or with ``span`` the frames of it from that time: a day of a week's file.

    Without ``mac`` every row counts as the device's. ``kind`` is the kind of device (plug, camera, pc ...). If
    ``expected`` is false, the result for the attack is reported, but missing it is no failure.
    """

    file: Path
    device: str
    label: str
    mac: str | None = None
    kind: str | None = None
    attack: Attack | None = None
    expected: bool = True
    span: Span | None = None

    def __post_init__(self) -> None:
        if self.mac is not None:
            parse_mac(self.mac)
        if self.label == BENIGN and self.attack is not None:
            raise ValueError(f"{self.file}: a benign capture has no attack")

    @property
    def name(self) -> str:
        """The file, and the beginning of the span if only a part of the file is meant: what tables and counts show."""
        return f"{self.file}@{self.span.start:%Y-%m-%dT%H:%MZ}" if self.span else str(self.file)


@dataclass(frozen=True)
class CaptureManifest:
    """A folder of captures, with the device of each and what happened in it."""

    captures: tuple[Capture, ...]
    generated: bool = False
    seed: int | None = None


def load(path: Path, root: Path | None = None) -> tuple[CaptureManifest, Path, Path]:
    """Return the manifest at ``path`` (a file, or a folder with one), its own path, and the folder of its captures.

    SettingsError if it is not a manifest, or names a file that is not there.
    """
    path = path / MANIFEST if path.is_dir() else path
    manifest = settings.load(CaptureManifest, path)
    root = root if root is not None else path.parent
    for capture in manifest.captures:
        if not (root / capture.file).is_file():
            raise settings.SettingsError(f"{path}: names {capture.file}, which is not in {root}")
    return manifest, path, root


def parse_mac(text: str) -> int:
    """Return a MAC address as a 48-bit integer. ValueError for any other text.

    >>> hex(parse_mac("02:00:5e:00:00:fF"))
    '0x2005e0000ff'
    """
    if not re.fullmatch(r"([0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}", text):
        raise ValueError(f"mac: {text!r} is not a MAC address (02:00:5e:00:00:01)")
    return int(re.sub("[:-]", "", text), 16)


def mac_text(mac: int) -> str:
    """Return a MAC address as text from a 48-bit integer.

    >>> mac_text(0x2005e0000ff)
    '02:00:5e:00:00:ff'
    """
    return ":".join(f"{byte:02x}" for byte in int(mac).to_bytes(6, "big"))


def _ns(when: datetime) -> int:
    return (when - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
