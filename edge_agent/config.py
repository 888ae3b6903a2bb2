"""What a gateway's agent is told: agent.yaml as frozen dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edge_agent.calibrate import OWN_S
from edge_agent.capture import SNAPLENS, LiveSettings
from edge_agent.checkins import Rule
from edge_agent.contract.broker import BrokerConfig
from edge_agent.contract.captures import mac_text, parse_mac
from edge_agent.contract.messages import MAX_PAYLOAD, VERBS, check_id
from edge_agent.detector import LATE_S, PRIVATE_NETWORKS, Networks
from edge_agent.devices import MOST_BYTES
from edge_agent.outbox import MAX_BYTES, MAX_ROWS


@dataclass(frozen=True)
class CaptureConfig:
    """Which interfaces are captured on, and how."""

    interfaces: tuple[str, ...] = ()
    filter: str | None = None
    direction: Literal["auto", "both", "in"] = "auto"
    snaplen: int = LiveSettings.snaplen
    buffer_mb: int = LiveSettings.buffer_bytes >> 20
    promiscuous: bool = LiveSettings.promiscuous
    record_mb: int = 1024

    def __post_init__(self) -> None:
        if len(set(self.interfaces)) != len(self.interfaces) or len(self.interfaces) > 16:
            raise ValueError("interfaces: at most 16, each once")
        for name in self.interfaces:
            if not 0 < len(name) < 16 or "/" in name:
                raise ValueError(f"interfaces: {name[:40]!r} cannot be the name of one")
        for key, low, high in (("snaplen", *SNAPLENS), ("buffer_mb", 1, 1024), ("record_mb", 1, 1 << 20)):
            if not low <= getattr(self, key) <= high:
                raise ValueError(f"{key}: {getattr(self, key)} is not within {low}..{high}")

    def live(self) -> LiveSettings:
        """How each interface is opened: ``auto`` takes each frame once, ``both`` as often as it is seen."""
        inbound, once = self.direction == "in", self.direction == "auto"
        return LiveSettings(self.filter, self.snaplen, self.buffer_mb << 20, self.promiscuous, inbound, once)


@dataclass(frozen=True)
class ScoringConfig:
    """How much of the traffic is scored when there is more than the processor can score."""

    max_rows_per_s: int = 20_000

    def __post_init__(self) -> None:
        if not 100 <= self.max_rows_per_s <= 10_000_000:
            raise ValueError(f"max_rows_per_s: {self.max_rows_per_s} is not within 100..10000000")


@dataclass(frozen=True)
class ExtractorConfig:
    """Bounds of the feature kernel; both together fix its memory."""

    max_streams: int = 16_384
    max_devices: int = 256

    def __post_init__(self) -> None:
        for key, low, high in (("max_streams", 64, 1 << 20), ("max_devices", 1, 1 << 16)):
            if not low <= getattr(self, key) <= high:
                raise ValueError(f"{key}: {getattr(self, key)} is not within {low}..{high}")


@dataclass(frozen=True)
class AlertsConfig:
    """How often an episode speaks."""

    update_s: float = 60.0
    end_s: float = 60.0
    max_open: int = 256

    def __post_init__(self) -> None:
        if min(self.update_s, self.end_s) <= 0 or self.max_open < 1:
            raise ValueError("update_s, end_s and max_open must be positive")
        if self.end_s < LATE_S + 1:
            raise ValueError(f"end_s: {self.end_s} s is less than {LATE_S + 1}; a vote may be told {LATE_S} s late")


@dataclass(frozen=True)
class CheckInsConfig:
    """Whether regular contacts with hosts that are new to a device are told, and how long a device is learnt first."""

    enabled: bool = True
    learn_s: float = Rule.learn_s

    def __post_init__(self) -> None:
        Rule(self.learn_s)


@dataclass(frozen=True)
class LearningConfig:
    """Whether devices get limits of their own here, how soon, and how many rows of them are kept for another model."""

    enabled: bool = True
    minutes: int = int(OWN_S) // 60
    save_minutes: int = 10
    kept_mb: float = MOST_BYTES / (1 << 20)
    export: bool = False

    def __post_init__(self) -> None:
        for key, low, high in (("minutes", 5, 10_080), ("save_minutes", 1, 1440), ("kept_mb", 0, 256)):
            if not low <= getattr(self, key) <= high:
                raise ValueError(f"{key}: {getattr(self, key)} is not within {low}..{high}")


@dataclass(frozen=True)
class OutboxConfig:
    """Where alerts wait for the broker, and how many may."""

    path: Path = Path("botwatch-agent.sqlite")
    max_rows: int = MAX_ROWS
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.max_bytes < MAX_PAYLOAD:
            raise ValueError(f"max_rows must be at least 1, max_bytes at least {MAX_PAYLOAD}, the largest alert")


@dataclass(frozen=True)
class EvidenceConfig:
    """Packets around an alert that are kept; ``path`` None: none, and no memory for them."""

    path: Path | None = Path("botwatch-evidence")
    max_mb: int = 64
    seconds: float = 5.0
    payload: int = 0
    ring_kb: int = 1024

    def __post_init__(self) -> None:
        bounds = (("max_mb", 1, 1 << 20), ("seconds", 0.5, 30.0), ("payload", 0, 65_000), ("ring_kb", 64, 65_536))
        for key, low, high in bounds:
            if not low <= getattr(self, key) <= high:
                raise ValueError(f"{key}: {getattr(self, key)} is not within {low}..{high}")


@dataclass(frozen=True)
class ControlConfig:
    """How much may be held back, and how much of that the broker may order."""

    max_entries: int = 256
    remote_entries: int = 8
    remote_hours: float = 24.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_entries <= 10_000 or not 0 <= self.remote_entries <= self.max_entries:
            raise ValueError("max_entries must be within 1..10000, remote_entries within 0..max_entries")
        if not 0 < self.remote_hours <= 24 * 366:
            raise ValueError(f"remote_hours: {self.remote_hours} is not within 0..{24 * 366}")


@dataclass(frozen=True)
class AgentConfig:
    """The whole of agent.yaml. MACs of ``names`` may be written in any usual way; here they are as alerts have them."""

    gateway: str = "gw-001"
    site: str = ""
    bundle: Path | None = None
    networks: tuple[str, ...] = PRIVATE_NETWORKS
    names: dict[str, str] = field(default_factory=dict)
    capture: CaptureConfig = CaptureConfig()
    extractor: ExtractorConfig = ExtractorConfig()
    scoring: ScoringConfig = ScoringConfig()
    alerts: AlertsConfig = AlertsConfig()
    checkins: CheckInsConfig = CheckInsConfig()
    learning: LearningConfig = LearningConfig()
    outbox: OutboxConfig = OutboxConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    health_s: float = 60.0
    commands: tuple[str, ...] = tuple(VERBS)
    control: ControlConfig = ControlConfig()

    def __post_init__(self) -> None:
        check_id(self.gateway)
        for verb in self.commands:
            if verb not in VERBS:
                raise ValueError(f"commands: {verb[:40]!r} is none of {', '.join(VERBS)}")
        if not 1 <= self.health_s <= 3600:
            raise ValueError(f"health_s: {self.health_s} is not within 1..3600")
        if len(self.site) > 63:
            raise ValueError(f"site: {len(self.site)} characters, the bound is 63")
        Networks.parse(self.networks)
        names = {mac_text(parse_mac(mac)): name for mac, name in self.names.items()}
        object.__setattr__(self, "names", names)
