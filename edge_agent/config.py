"""What a gateway's agent is told: agent.yaml as frozen dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.contract.broker import BrokerConfig
from edge_agent.contract.captures import mac_text, parse_mac
from edge_agent.contract.messages import MAX_PAYLOAD, check_id
from edge_agent.detector import PRIVATE_NETWORKS, Networks
from edge_agent.outbox import MAX_BYTES, MAX_ROWS


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
    max_rows: int = MAX_ROWS
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.max_bytes < MAX_PAYLOAD:
            raise ValueError(f"max_rows must be at least 1, max_bytes at least {MAX_PAYLOAD}, the largest alert")


@dataclass(frozen=True)
class AgentConfig:
    """The whole of agent.yaml. MACs of ``names`` may be written in any usual way; here they are as alerts have them."""

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
        if len(self.site) > 63:
            raise ValueError(f"site: {len(self.site)} characters, the bound is 63")
        Networks.parse(self.networks)
        names = {mac_text(parse_mac(mac)): name for mac, name in self.names.items()}
        object.__setattr__(self, "names", names)
