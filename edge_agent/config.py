"""The settings of a gateway's agent: agent.yaml as frozen dataclasses.

Every command reads it, so it imports neither the detector nor the native kernel.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from edge_agent.capture.live_settings import SNAPLENS, LiveSettings
from edge_agent.contract.addresses import PRIVATE_NETWORKS
from edge_agent.contract.bounds import CHECK_IN_LEARN_S, DEVICE_LEARN_S, KEPT_ROWS_BYTES, VOTE_LATE_S
from edge_agent.contract.broker import BrokerConfig
from edge_agent.contract.captures import mac_text, parse_mac
from edge_agent.contract.cli import unknown
from edge_agent.contract.commands import VERBS
from edge_agent.contract.messages import MAX_PAYLOAD, check_id
from edge_agent.contract.networks import Networks
from edge_agent.contract.settings import check, derived, within
from edge_agent.delivery.outbox import MAX_BYTES, MAX_ROWS

AUTO = "auto"
"""The value of ``gateway`` with which the id comes from the certificate or the machine, see `edge_agent.identity`."""


@contextmanager
def _of(key: str) -> Iterator[None]:
    """Prefix a ValueError about a value with the key that holds the value."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


@dataclass(frozen=True)
class CaptureConfig:
    """The interfaces that are captured on, and how they are opened."""

    interfaces: tuple[str, ...] = within((), 0, 16)
    filter: str | None = within(None, 0, 4096)
    direction: Literal["auto", "both", "in"] = "auto"
    snaplen: int = within(LiveSettings.snaplen, *SNAPLENS)
    buffer_mb: int = within(LiveSettings.buffer_bytes >> 20, 1, 1024)
    promiscuous: bool = LiveSettings.promiscuous
    record_mb: int = within(1024, 1, 1 << 20)

    def __post_init__(self) -> None:
        check(self)
        if len(set(self.interfaces)) != len(self.interfaces):
            raise ValueError("interfaces: an interface is named twice")
        for name in self.interfaces:
            if not 0 < len(name.encode(errors="replace")) < 16 or "/" in name or not name.isprintable() or " " in name:
                raise ValueError(f"interfaces: {name[:40]!r} cannot be the name of an interface")

    def live(self) -> LiveSettings:
        """Return how each interface is opened: ``auto`` takes each frame once, ``both`` as often as it is seen."""
        inbound, once = self.direction == "in", self.direction == "auto"
        return LiveSettings(self.filter, self.snaplen, self.buffer_mb << 20, self.promiscuous, inbound, once)


@dataclass(frozen=True)
class ScoringConfig:
    """The budget of rows for times when more packets come than the processor can score."""

    max_rows_per_s: int = within(10_000, 100, 10_000_000)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ExtractorConfig:
    """Bounds of the feature kernel's tables, which fix its memory."""

    max_streams: int = within(16_384, 64, (1 << 20) - 1)
    max_devices: int = within(256, 1, 1 << 16)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class AlertsConfig:
    """Times of an episode: between its updates, and until it ends; and the number of episodes that may be open."""

    update_s: float = within(60.0, 0.1, 86_400.0)
    end_s: float = within(60.0, VOTE_LATE_S + 1, 86_400.0)  # or an episode would end before its vote is reported
    max_open: int = within(256, 1, 10_000)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class CheckInsConfig:
    """The detection of check-ins: if it is on, and how long a device's own peers are learnt first."""

    enabled: bool = True
    learn_s: float = within(CHECK_IN_LEARN_S[1], CHECK_IN_LEARN_S[0], CHECK_IN_LEARN_S[2])

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class LearningConfig:
    """Learning on site: if devices get limits of their own, how soon, and how many rows are stored for new models."""

    enabled: bool = True
    minutes: int = within(int(DEVICE_LEARN_S) // 60, 5, 10_080)
    save_minutes: int = within(10, 1, 1440)
    kept_mb: float = within(KEPT_ROWS_BYTES / (1 << 20), 0.0, 256.0)
    export: bool = False

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class OutboxConfig:
    """The file in which alerts wait for the broker, and how many may wait."""

    path: Path = Path("botwatch-agent.sqlite")
    max_rows: int = within(MAX_ROWS, 1, 10_000_000)
    max_bytes: int = within(MAX_BYTES, MAX_PAYLOAD, 1 << 40)  # at least the largest alert

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class EvidenceConfig:
    """Storing the packets around an alert; with ``path`` None none are stored and no memory is used for them."""

    path: Path | None = Path("botwatch-evidence")
    max_mb: int = within(64, 1, 1 << 20)
    seconds: float = within(5.0, 0.5, 30.0)
    payload: int = within(0, 0, 65_000)
    ring_kb: int = within(1024, 64, 65_536)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ControlConfig:
    """Bounds of the suppressions, and of those that commands from the broker may make."""

    max_entries: int = within(256, 1, 10_000)
    remote_entries: int = within(8, 0, 10_000)
    remote_hours: float = within(24.0, 0.01, 24.0 * 366)

    def __post_init__(self) -> None:
        check(self)
        if self.remote_entries > self.max_entries:
            raise ValueError(f"remote_entries: {self.remote_entries} is more than max_entries, {self.max_entries}")


@dataclass(frozen=True)
class AgentConfig:
    """The whole of agent.yaml. MACs in ``names`` may be written in any usual way and become as alerts spell them.

    ``gateway`` is an id once `identity.resolve` has been asked; ``gateway_origin`` then says where it comes from.
    """

    gateway: str = within(AUTO, 1, 63)
    gateway_origin: str = derived("")
    site: str = within("", 0, 63)
    bundle: Path | None = None
    networks: tuple[str, ...] = within(PRIVATE_NETWORKS, 0, 256)
    names: dict[str, str] = within({}, 0, 4096)
    capture: CaptureConfig = CaptureConfig()
    extractor: ExtractorConfig = ExtractorConfig()
    scoring: ScoringConfig = ScoringConfig()
    alerts: AlertsConfig = AlertsConfig()
    checkins: CheckInsConfig = CheckInsConfig()
    learning: LearningConfig = LearningConfig()
    outbox: OutboxConfig = OutboxConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    health_s: float = within(60.0, 1.0, 3600.0)
    commands: tuple[str, ...] = within(tuple(VERBS), 0, len(VERBS))
    control: ControlConfig = ControlConfig()

    def __post_init__(self) -> None:
        check(self)
        check_id(self.gateway)
        for verb in self.commands:
            if verb not in VERBS:
                raise ValueError(f"commands: {unknown('command', verb[:40], VERBS)}")
        with _of("networks"):
            Networks.parse(self.networks)
        with _of("names"):
            object.__setattr__(self, "names", _by_mac(self.names))


def _by_mac(names: dict[str, str]) -> dict[str, str]:
    """Return names under MACs as alerts spell them; ValueError if two keys are the same MAC."""
    keys: dict[str, str] = {}
    for key in names:
        mac = mac_text(parse_mac(key))
        if mac in keys:
            raise ValueError(f"{keys[mac]} and {key} are the same MAC address: name it once")
        keys[mac] = key
    return {mac: names[key] for mac, key in keys.items()}


LIVE = frozenset(
    (
        *("site", "names", "alerts.update_s", "alerts.end_s", "alerts.max_open", "health_s"),
        *("commands", "control.remote_entries", "control.remote_hours"),
    )
)
"""Keys that a running agent takes up on a reload; a change of any other key needs a restart."""


def changed(old: Any, new: Any, section: str = "") -> list[str]:
    """Return the dotted keys (``alerts.end_s``) whose values differ between two configurations."""
    keys = []
    for key in (f.name for f in fields(old) if f.compare):
        before, after, name = getattr(old, key), getattr(new, key), f"{section}{key}"
        if is_dataclass(before) and type(before) is type(after):
            keys += changed(before, after, f"{name}.")
        elif before != after:
            keys.append(name)
    return keys
