"""From feature rows to detections: scale, reconstruct, score, compare with τ, vote, classify.

Everything here comes from one bundle, so a model swap is a new Detector. No clock, no files, no network: packet time
arrives with the rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.scaling import Array, Scaler, row_error

SLOW_DECAYS = ("_L0.1_", "_L0.01_")
"""Marks of the columns that still remember an attack minutes after it: λ = 0.1 needs 95 s, λ = 0.01 950 s to forget."""


@dataclass(frozen=True)
class Detection:
    """One device's vote at one moment: the decision rule fired for rows up to ``t_ns``.

    A Detector gives at most one per device and batch, the newest; opening, updating and ending episodes is
    `edge_agent.alerts`' knowledge.
    """

    t_ns: int  # packet time of the row that voted, Unix ns
    first_ns: int  # packet time of the first flagged row of this alarm
    device_mac: int  # source MAC as a 48-bit integer
    device_ip: str  # source's own address ("" if the frame had none); the victim's address when role is victim
    role: Literal["source", "victim"]
    method: Literal["autoencoder", "counts"]
    class_name: str  # a key of the alert schema's class list: "mirai.scan", "unknown", "anomaly" ...
    confidence: float  # 0..1, mean class probability over the flagged rows; for anomaly the share of rows that voted
    score: float  # the vote statistic (k-th largest of the last w scores)
    threshold: float  # what it was compared with
    window_s: float  # capture time spanned by the vote window, > 0
    count: int  # rows flagged since this alarm began
    packets: int  # packets and bytes the device sent since this alarm began
    bytes: int
    src_ip: str  # of the row that voted; sport and dport 0 where it had none
    src_port: int
    dest_ip: str
    dest_port: int
    proto: str  # EVE spelling: "TCP", "UDP", "ICMP", "IPV6-ICMP", "ARP", "IP"
    top_features: tuple[tuple[str, float], ...]  # <= 5 columns, largest share of the error first, value in its own unit
    explanation: str  # one sentence, <= 200 characters


class Scorer:
    """Rows of one model's columns -> anomaly scores, high = anomalous.

    ``predict`` is the autoencoder (Keras or TFLite): network input (n, k) -> reconstruction (n, k), float32.
    """

    def __init__(self, predict: Callable[[Array], Array], scaler: Scaler, columns: Sequence[str]):
        self._predict, self._scaler = predict, scaler
        self._slow = np.array([any(mark in column for mark in SLOW_DECAYS) for column in columns])

    def full(self, values: NDArray[Any]) -> Array:
        """Mean squared error over all columns, shape (n,)."""
        z = self._scaler.z(values)
        return row_error(z, self._predict(self._scaler.network_input(z)))

    def fast(self, values: NDArray[Any]) -> Array:
        """Mean squared error over the columns of λ >= 1, the network seeing the slow ones as normal (z = 0), (n,)."""
        z = self._scaler.z(values)
        z[:, self._slow] = 0.0
        rebuilt = self._predict(self._scaler.network_input(z))
        return row_error(z[:, ~self._slow], rebuilt[:, ~self._slow])
