"""The word between rows and alerts: what the detector and the check-ins rule report, and what episodes are made of."""

from dataclasses import dataclass
from typing import Literal

from edge_agent.contract.alert import Activity


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One subject's vote at one moment: the rule ``method`` fired for rows up to ``t_ns``.

    The detector reports one when an alarm begins, then at most one a second of packet time while it lasts, and one for
    its last vote. Opening, updating and ending episodes is the knowledge of `edge_agent.delivery.alerts`.
    """

    t_ns: int
    """Packet time of the row that voted, in ns since the epoch."""
    first_ns: int
    """Packet time of the first flagged row of the alarm, or of where the count that caused it began to rise."""
    device_mac: int
    """Source MAC as a 48-bit integer."""
    device_ip: str
    """The source's own address ("" if the frame had none); the victim's address where ``role`` is victim."""
    role: Literal["source", "victim"]
    method: Literal["autoencoder", "counts", "checkins"]
    class_name: str
    """A key of the alert schema's class list: mirai.scan, unknown, anomaly ..."""
    activities: tuple[Activity, ...]
    """The traffic as it was measured, whatever its class is named; at least one, each of another kind, the worst
    first."""
    confidence: float
    """0 to 1: the mean class probability over the flagged rows; for anomaly the share of rows that voted."""
    score: float
    """The vote statistic: the k-th largest of the last w scores, each in units of its limit, times ``threshold``."""
    threshold: float
    """The limit that it was compared with."""
    window_s: float
    """Seconds of packet time that the vote's window spans, above 0."""
    count: int
    """Rows flagged since the alarm began."""
    packets: int
    """Packets and ``bytes`` that the device sent since the alarm began."""
    bytes: int
    src_ip: str
    """Addresses and ports of the packet that voted; a port is 0 where it had none."""
    src_port: int
    dest_ip: str
    dest_port: int
    proto: str
    """In EVE's spelling: TCP, UDP, ICMP, IPV6-ICMP, ARP ..., a number where it has no name."""
    top_features: tuple[tuple[str, float], ...]
    """At most five columns with their values in their own units, each of another statistic, the one with the largest
    share of the error first."""
    explanation: str
    """One sentence of at most 200 characters."""
    hold_s: float = 0.0
    """Seconds for which it holds where that is longer than the alerter would wait for the next one."""
    interface: str = ""
    """The interface by which the packet that voted came; "" for a file."""
