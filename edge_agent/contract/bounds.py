"""Defaults and bounds that agent.yaml's settings share with the modules which work by them.

They are here because the settings are read by commands that load neither the detector nor the native kernel.
"""

VOTE_LATE_S = 3.0
"""Longest delay in seconds of packet time before a vote is reported: it is held for a newer one, and that takes 1 s."""

DEVICE_LEARN_S = 900.0
"""Seconds for which a device is learnt before its own limits take part."""

KEPT_ROWS_BYTES = 4 << 20
"""Bytes of benign rows that are stored of all devices together; beyond it the device with the most loses some."""

CHECK_IN_LEARN_S = 600.0, 3600.0, 30 * 86_400.0
"""Seconds for which every peer that a device uses counts as its own: the shortest, the default and the longest."""
