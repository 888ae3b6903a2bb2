"""The shared bounds of what a device sends to one host in vain and newly tries there (`HOST_COUNTS`).

They are no columns of a row, so no fit can compute them from its rows: these are about twice what healthy devices of
all kinds were seen to reach (docs/measured.md), cameras and PCs among them. A configuration of the trainer can have
others.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.columns import HOST_COUNTS

HOST_BOUNDS = {
    "host_L0.1_unanswered": 120.0,
    "host_L0.01_unanswered": 360.0,
    "host_L0.1_unanswered_inside": 1600.0,  # live video to a phone at home, of which only its sound is answered
    "host_L0.01_unanswered_inside": 2100.0,
    "host_L0.1_ports": 10.0,
    "host_L0.01_ports": 20.0,
    "host_L0.1_logins": 4.0,
    "host_L0.01_logins": 6.0,
    "host_L0.1_pinged": 8.0,
    "host_L0.01_pinged": 12.0,
}
"""Bounds of damped numbers, by name."""

HOST_WARMUP_BOUNDS = HOST_BOUNDS | {
    "host_L0.1_unanswered": 480.0,  # a camera that measures its way to its cloud
    "host_L0.01_unanswered": 600.0,
}
"""The same in a device's first minutes."""


def host_bounds(chosen: Mapping[str, float], defaults: Mapping[str, float]) -> NDArray[np.float64]:
    """Return the bounds (`HOST_COUNTS`,) of a bundle whose bounds of all counts are ``chosen``.

    A bundle that has none of these, such as one of an earlier version, gets the ``defaults``; one that bounds no count
    at all has no such rule, nor has one that lists some of them for the others.
    """
    if chosen and not any(name in chosen for name in HOST_COUNTS):
        chosen = defaults
    return np.array([chosen.get(name, np.inf) for name in HOST_COUNTS])
