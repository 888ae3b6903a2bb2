"""The columns a row can have: their names, order, meaning and schema ids.

There are two schemas. ``nbaiot115`` is the 115 damped statistics of N-BaIoT (Meidan et al. 2018) per stream, in one of
two jitter modes, which are two ids because a model of one must never see rows of the other. ``device`` is botwatch's
own group per device (source MAC). How the numbers are computed is the kernel's knowledge
(``edge_agent/kernel/kernel.h``); its enum of columns is the only other place to change with `GROUPS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

DECAYS = ("5", "3", "1", "0.1", "0.01")
"""Decay λ in 1/s as the published names spell it: a sample's weight halves every 1/λ seconds."""

_1D = ("weight", "mean", "variance")
_2D = ("weight", "mean", "std", "magnitude", "radius", "covariance", "pcc")

_SIZES = {
    "weight": "packets",
    "mean": "mean packet size",
    "variance": "variance of packet size",
    "std": "spread of packet size",
    "magnitude": "packet size, both ways,",
    "radius": "variance of packet size, both ways,",
    "covariance": "covariance of packet sizes, both ways,",
    "pcc": "correlation of packet sizes, both ways,",
    "new_peers": "new peers",
    "new_sockets": "new connections",
}
_GAPS = {"weight": "packets", "mean": "mean gap of packets (s)", "variance": "variance of packet gaps"}


@dataclass(frozen=True)
class ColumnGroup:
    """The columns of one kind of stream: each of the ``statistics`` for each decay.

    The others are words for explanations: ``words`` has a noun for each statistic, ``of`` is what the packets of a
    stream have in common, ``rate`` a sentence about packets a second.
    """

    statistics: tuple[str, ...]
    words: Mapping[str, str]
    of: str
    rate: str = "sends {} packets a second"


GROUPS = {
    "MI_dir": ColumnGroup(_1D, _SIZES, "of this address and MAC"),
    "H": ColumnGroup(_1D, _SIZES, "of this address"),
    "HH": ColumnGroup(_2D, _SIZES, "between these hosts", "sends {} packets a second to one host"),
    "HH_jit": ColumnGroup(_1D, _GAPS, "between these hosts", "sends {} packets a second to one host"),
    "HpHp": ColumnGroup(_2D, _SIZES, "on this socket", "sends {} packets a second on one socket"),
    "device": ColumnGroup(
        ("weight", "mean", "variance", "new_peers", "new_sockets"),
        _SIZES,
        "of this device",
        "sends {} packets a second under all its addresses",
    ),
}
"""Group -> its statistics and words, in the order in which the kernel writes the columns; ``device`` is ours."""


class ColumnParts(NamedTuple):
    """The parts of a column's name; ``decay`` is λ in 1/s."""

    group: str
    decay: float
    statistic: str


def parts(column: str) -> ColumnParts:
    """Take a column's name apart.

    >>> parts("HH_jit_L0.1_mean"), parts("device_L5_new_peers").statistic
    (ColumnParts(group='HH_jit', decay=0.1, statistic='mean'), 'new_peers')
    """
    group, _, rest = column.partition("_L")
    decay, _, statistic = rest.partition("_")
    return ColumnParts(group, float(decay), statistic)


def _of_group(name: str) -> tuple[str, ...]:
    return tuple(f"{name}_L{decay}_{statistic}" for decay, statistic in product(DECAYS, GROUPS[name].statistics))


ALL_COLUMNS = tuple(column for name in GROUPS for column in _of_group(name))
"""Every column that the kernel writes, in the order in which it writes them: the second dimension of rows.

>>> len(ALL_COLUMNS), ALL_COLUMNS[0], ALL_COLUMNS[-1]
(140, 'MI_dir_L5_weight', 'device_L0.01_new_sockets')
"""

DEVICE_COLUMNS = _of_group("device")
"""Per source MAC: packet rate (weight) and size (mean, variance), damped count of never-seen peers and sockets.

>>> len(DEVICE_COLUMNS), DEVICE_COLUMNS[3]
(25, 'device_L5_new_peers')
"""

NBAIOT_COLUMNS = tuple(column for column in ALL_COLUMNS if column not in DEVICE_COLUMNS)
"""The 115 published columns, in published order.

>>> len(NBAIOT_COLUMNS), NBAIOT_COLUMNS[0], NBAIOT_COLUMNS[-1]
(115, 'MI_dir_L5_weight', 'HpHp_L0.01_pcc')
"""

COUNT_COLUMNS = tuple(c for c in DEVICE_COLUMNS if parts(c).statistic in ("new_peers", "new_sockets"))
"""The columns that the counts rule bounds: damped counts of never-seen peers and sockets, fastest decay first."""

HOST_COUNTS = (
    *(f"host_L{decay}_{statistic}" for statistic in ("unanswered", "unanswered_inside") for decay in DECAYS[-2:]),
    *(f"host_L0.01_{statistic}" for statistic in ("ports", "logins", "pinged")),
)
"""The counts that the counts rule bounds beside `COUNT_COLUMNS`, of a sender's packets to one host (``pinged``: to
all); they are no columns of a row. Damped numbers of packets that nothing answered, from a host outside and inside the
monitored networks; of its ports, and of sockets at its login ports, that were newly tried; of hosts newly reached by
ICMP.

>>> HOST_COUNTS[0], HOST_COUNTS[-1], len(HOST_COUNTS)
('host_L0.1_unanswered', 'host_L0.01_pinged', 7)
"""

COUNTS = COUNT_COLUMNS + HOST_COUNTS
"""All that the counts rule bounds."""

JITTER_COLUMNS = _of_group("HH_jit")
"""The columns that differ between `CLEAN` and `COMPAT`."""

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
    """Return the positions of ``columns`` in `ALL_COLUMNS`. ValueError names the first unknown column."""
    position = {name: i for i, name in enumerate(ALL_COLUMNS)}
    for name in columns:
        if name not in position:
            raise ValueError(f"unknown column {name!r}")
    return [position[name] for name in columns]
