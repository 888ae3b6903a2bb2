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
    "host_L0.1_unanswered": 120.0,  # what a camera sends on when nobody looks any more
    "host_L0.01_unanswered": 360.0,
    "host_L0.1_unanswered_inside": 1600.0,  # logs, or light and sound, that are sent to a host at home
    "host_L0.01_unanswered_inside": 2400.0,
    "host_L0.01_ports": 20.0,
    "host_L0.01_logins": 5.0,
    "host_L0.01_pinged": 12.0,
}
"""Bounds of damped numbers, by name."""


def host_bounds(chosen: Mapping[str, float]) -> NDArray[np.float64]:
    """Return the bounds (`HOST_COUNTS`,) of a bundle whose bounds of all counts are ``chosen``.

    A bundle that has none of these, such as one of an earlier version, gets `HOST_BOUNDS`; one that bounds no count at
    all has no such rule, nor has one that lists some of them for the others.
    """
    if chosen and not any(name in chosen for name in HOST_COUNTS):
        chosen = HOST_BOUNDS
    return np.array([chosen.get(name, np.inf) for name in HOST_COUNTS])
