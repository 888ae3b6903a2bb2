"""From a vote to the detection that is reported: class name, reason, addresses and protocol.

How the statistics of a reason are chosen and worded is `edge_agent.detection.explain`'s knowledge, which classes a name
is chosen from that of `edge_agent.detection.classify`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.capture import features
from edge_agent.contract.addresses import address_text, protocol_name
from edge_agent.contract.bundle import BundleManifest
from edge_agent.contract.columns import COUNT_COLUMNS, COUNTS
from edge_agent.detection import explain
from edge_agent.detection.detection import Detection
from edge_agent.detection.scorer import RowClassifier, Scorer
from edge_agent.detection.vote import Vote

EXPLAINED = 5
"""Statistics that a detection names."""

LONGEST_EXPLANATION = 200
"""Characters of an explanation at most."""


class Reporter:
    """Votes -> detections, by the networks and the normal values of one bundle."""

    def __init__(self, manifest: BundleManifest, scorer: Scorer, classifier: RowClassifier | None) -> None:
        self._columns, self._normal = manifest.columns, manifest.normal
        self._scorer, self._classifier = scorer, classifier

    def detection(self, vote: Vote) -> Detection:
        """Return the detection that reports a vote."""
        meta = vote.meta
        t_ns = int(meta["t_ns"])
        top, explanation = self._reason(vote)
        name, confidence = self._name(vote)
        source, target = (address_text(meta[end], meta["ip_version"]) for end in ("src", "dst"))
        return Detection(
            t_ns=t_ns,
            first_ns=t_ns - max(vote.t_ns - vote.first_ns, 0),
            device_mac=int(meta["src_mac"]),
            device_ip=target if vote.role == "victim" else vote.address or source,
            role=vote.role,
            method="autoencoder" if vote.count_at is None else "counts",
            class_name=name,
            activities=vote.activities,
            confidence=confidence,
            score=max(vote.statistic, 0.0) * vote.limit,
            threshold=vote.limit,
            window_s=vote.window_s,
            count=max(vote.rows, 1),
            packets=vote.packets,
            bytes=vote.bytes,
            src_ip=source,
            src_port=int(meta["sport"]),
            dest_ip=target,
            dest_port=int(meta["dport"]),
            proto=_protocol(meta),
            top_features=top,
            explanation=explanation[:LONGEST_EXPLANATION],
            interface=vote.interface,
        )

    def strongest(self, values: NDArray[np.float32], fast: bool) -> tuple[tuple[str, float], ...]:
        """Return the `EXPLAINED` statistics with the largest shares of one row's error (k,): column and value of each.

        Each statistic is named by the column that has most of its share, with the value in the column's own unit. Under
        the ``fast`` rule slow columns have no share: they were shown as normal.
        """
        at = explain.strongest(self._columns, self._scorer.shares(values, fast), EXPLAINED)
        return tuple((self._columns[i], _finite(float(values[i]))) for i in at)

    def _reason(self, vote: Vote) -> tuple[tuple[tuple[str, float], ...], str]:
        """Return the columns and values that a vote rests on, and a sentence about the first of them."""
        if vote.count_at is None:
            top = self.strongest(vote.values, vote.fast)
            column, value = top[0]
            return top, explain.score(column, value, self._normal.get(column, ()))
        number, count = vote.count_at
        column = COUNTS[number]
        if number >= len(COUNT_COLUMNS):
            host = address_text(vote.meta["dst"], vote.meta["ip_version"])
            return ((column, count),), explain.host_count(column, count, vote.limit, host, int(vote.meta["dport"]))
        normal = self._normal.get(column, ())
        opened = min(vote.activities, key=lambda activity: activity.kind != "scan")
        text = explain.count(column, count, vote.limit, opened.port or 0, normal, victim=vote.role == "victim")
        return ((column, count),), text

    def _name(self, vote: Vote) -> tuple[str, float]:
        """Return the class of all rows that the alarm has flagged so far, and the confidence in it.

        That is `unknown` where the classifier does not vouch for a class, and `anomaly` without a classifier.
        """
        if self._classifier is None:
            return "anomaly", vote.share
        name, probability = self._classifier.name(vote.class_sum, vote.profile_sum)
        return name, vote.share if probability is None else min(probability, 1.0)


def _protocol(meta: NDArray[Any]) -> str:
    """Return a packet's protocol in the spelling of EVE."""
    if meta["flags"] & features.ARP:
        return "ARP"
    if not meta["ip_version"]:
        return "ETHERNET"
    return protocol_name(int(meta["proto"]))


def _finite(value: float) -> float:
    """Return the value, or the nearest one that JSON can hold: it knows no infinity."""
    return max(min(value, 3e38), -3e38)
