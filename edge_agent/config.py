"""What a gateway's agent is told: agent.yaml as frozen dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.contract.broker import BrokerConfig
from edge_agent.contract.messages import check_id
from edge_agent.detector import PRIVATE_NETWORKS, Networks


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


@dataclass(frozen=True)
class OutboxConfig:
    """Where alerts wait for the broker, and how many may."""

    path: Path = Path("botwatch-agent.sqlite")
    max_rows: int = 20_000
    max_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.max_bytes < 1:
            raise ValueError("max_rows and max_bytes must be positive")


@dataclass(frozen=True)
class AgentConfig:
    """The whole of agent.yaml."""

    gateway: str = "gw-001"
    site: str = ""
    bundle: Path | None = None
    networks: tuple[str, ...] = PRIVATE_NETWORKS
    names: dict[str, str] = field(default_factory=dict)
    extractor: ExtractorConfig = ExtractorConfig()
    alerts: AlertsConfig = AlertsConfig()
    outbox: OutboxConfig = OutboxConfig()
    broker: BrokerConfig = field(default_factory=BrokerConfig)

    def __post_init__(self) -> None:
        check_id(self.gateway)
        Networks.parse(self.networks)
