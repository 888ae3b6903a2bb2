"""collector.yaml as frozen dataclasses: read once, strictly, and handed on."""

from dataclasses import dataclass, field

from edge_agent.contract.broker import BrokerConfig
from edge_agent.contract.messages import MessageError, check_base
from edge_agent.contract.settings import check, within


@dataclass(frozen=True)
class Retention:
    """Section ``retention``: alerts that are older, or beyond the size of the database, are deleted, oldest first."""

    days: float = within(30.0, 0.01, 36_600.0)
    max_bytes: int = within(10_000_000_000, 1_000_000, 1 << 50)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class HomeAssistantConfig:
    """Section ``homeassistant``: gateways and devices are published for Home Assistant to discover."""

    enabled: bool = False
    prefix: str = within("homeassistant", 1, 64)  # Home Assistant's own discovery prefix
    max_devices: int = within(1_000, 1, 10_000)  # devices behind the gateways; more are left out and counted

    def __post_init__(self) -> None:
        check(self)
        try:
            check_base(self.prefix)
        except MessageError as error:
            raise ValueError(f"prefix: {error}") from error


@dataclass(frozen=True)
class CollectorConfig:
    """The whole of collector.yaml."""

    db: str = within("collector.sqlite", 1, 4096)  # a file for SQLite, or an SQLAlchemy URL
    broker: BrokerConfig = field(default_factory=lambda: BrokerConfig(inflight=500, session_s=7 * 86_400))
    retention: Retention = field(default_factory=Retention)
    homeassistant: HomeAssistantConfig = field(default_factory=HomeAssistantConfig)
    batch_rows: int = within(500, 1, 10_000)  # messages saved with one commit, at most
    batch_s: float = within(0.1, 0.001, 10.0)  # longest time between two commits while messages come
    max_rejected: int = within(1_000, 1, 1_000_000)  # rejected messages stored, the newest

    def __post_init__(self) -> None:
        check(self)
