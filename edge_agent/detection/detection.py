"""The word between rows and alerts: what the detector and the check-ins rule report, and what episodes are made of."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Detection:
    """One subject's vote at one moment: the decision rule fired for rows up to ``t_ns``.

    A Detector gives one when an alarm begins, then at most one a second of packet time while it lasts, and one for its
    last vote; opening, updating and ending episodes is `edge_agent.delivery.alerts`' knowledge.
    """

    t_ns: int  # packet time of the row that voted, Unix ns
    first_ns: int  # packet time of the first flagged row of this alarm, or where the count began to grow that made it
    device_mac: int  # source MAC as a 48-bit integer
    device_ip: str  # source's own address ("" if the frame had none); the victim's address when role is victim
    role: Literal["source", "victim"]
    method: Literal["autoencoder", "counts", "checkins"]
    class_name: str  # a key of the alert schema's class list: "mirai.scan", "unknown", "anomaly" ...
    confidence: float  # 0..1, mean class probability over the flagged rows; for anomaly the share of rows that voted
    score: float  # the vote statistic (k-th largest of the last w scores, each in units of its own threshold)
    threshold: float  # what it was compared with
    window_s: float  # capture time spanned by the vote window, > 0
    count: int  # rows flagged since this alarm began
    packets: int  # packets and bytes the device sent since this alarm began
    bytes: int
    src_ip: str  # of the row that voted; sport and dport 0 where it had none
    src_port: int
    dest_ip: str
    dest_port: int
    proto: str  # EVE spelling: "TCP", "UDP", "ICMP", "IPV6-ICMP", "ARP" ..., a number if it has no name
    top_features: tuple[tuple[str, float], ...]  # <= 5 columns, each of another statistic, that with the largest share
    # of the error first; value in its own unit
    explanation: str  # one sentence, <= 200 characters
    hold_s: float = 0.0  # for how long it stands where that is longer than the alerter would wait for the next one
    interface: str = ""  # by which the packet that voted came; "" for a file
