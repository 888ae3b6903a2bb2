"""The columns a row can have: their names, order and schema ids.

Two schemas. ``nbaiot115`` is the 115 damped statistics of N-BaIoT (Meidan et al. 2018) per stream, in one of two jitter
modes, which are two ids because a model of one must never see rows of the other. ``device`` is botwatch's own group per
device (source MAC). How the numbers are computed is the kernel's knowledge (``edge_agent/kernel/kernel.h``).
"""

from itertools import product

DECAYS = ("5", "3", "1", "0.1", "0.01")
"""Decay λ in 1/s as the published names spell it: a sample's weight halves every 1/λ seconds."""

_1D = ("weight", "mean", "variance")
_2D = ("weight", "mean", "std", "magnitude", "radius", "covariance", "pcc")

STREAMS = {"MI_dir": _1D, "H": _1D, "HH": _2D, "HH_jit": _1D, "HpHp": _2D}
"""Stream -> its statistics, in published order."""

NBAIOT_COLUMNS = tuple(
    f"{stream}_L{decay}_{stat}" for stream, stats in STREAMS.items() for decay, stat in product(DECAYS, stats)
)
"""The 115 published columns, in published order.

>>> len(NBAIOT_COLUMNS), NBAIOT_COLUMNS[0], NBAIOT_COLUMNS[-1]
(115, 'MI_dir_L5_weight', 'HpHp_L0.01_pcc')
"""

DEVICE_STATS = ("weight", "mean", "variance", "new_peers", "new_sockets")

DEVICE_COLUMNS = tuple(f"device_L{decay}_{stat}" for decay, stat in product(DECAYS, DEVICE_STATS))
"""Per source MAC: packet rate (weight) and size (mean, variance), damped count of never-seen peers and sockets.

>>> len(DEVICE_COLUMNS), DEVICE_COLUMNS[3]
(25, 'device_L5_new_peers')
"""

COUNT_COLUMNS = tuple(c for c in DEVICE_COLUMNS if c.endswith(("new_peers", "new_sockets")))
"""The columns that the counts rule bounds: damped counts of never-seen peers and sockets, fastest decay first."""

ALL_COLUMNS = NBAIOT_COLUMNS + DEVICE_COLUMNS
"""Every column the kernel writes, in the order it writes them: shape (n, 140)."""

CLEAN = "nbaiot115-clean-1"
"""Jitter of a channel's first packet is 0: the only mode for models that go live."""

COMPAT = "nbaiot115-compat-1"
"""Jitter of a channel's first packet is the Unix epoch of its arrival, as in the published rows; it leaks the date."""

DEVICE = "device-1"

SCHEMAS = {CLEAN: NBAIOT_COLUMNS, COMPAT: NBAIOT_COLUMNS, DEVICE: DEVICE_COLUMNS}
"""Schema id -> its columns."""

COPIES = {
    **{f"MI_dir_L{decay}_{stat}": f"H_L{decay}_{stat}" for decay, stat in product(DECAYS, _1D)},
    **{f"HH_jit_L{decay}_weight": f"HH_L{decay}_weight" for decay in DECAYS},
}
"""Column -> the column it repeats while an address has one MAC: 20 of the 115."""


def indices(columns: tuple[str, ...] | list[str]) -> list[int]:
    """Positions of ``columns`` in `ALL_COLUMNS`; ValueError names the first unknown one."""
    position = {name: i for i, name in enumerate(ALL_COLUMNS)}
    for name in columns:
        if name not in position:
            raise ValueError(f"unknown column {name!r}")
    return [position[name] for name in columns]
