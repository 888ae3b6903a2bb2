"""The wording of a detection's reason: which statistics made the error, and one plain sentence about the worst.

The sentence compares a column's value with what the fit learnt to be normal. An attack moves a statistic at every decay
at once, and its copies with it. So what is named is a statistic (packets between these hosts), by the column of it that
says it most clearly; five columns would often be five times the same.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract import columns as cols


def statistic(column: str) -> str:
    """Return the group and statistic of a column, whatever its decay; a copy has those of its original.

    >>> statistic("HH_L0.1_pcc"), statistic("MI_dir_L5_weight"), statistic("device_L1_new_peers")
    ('HH pcc', 'H weight', 'device new_peers')
    """
    group, _, name = cols.parts(cols.COPIES.get(column, column))
    return f"{group} {name}"


def strongest(columns: Sequence[str], shares: NDArray[Any], most: int) -> list[int]:
    """Return positions in ``columns``: one for each of the ``most`` statistics with the largest part of the error.

    It is that of the statistic's column with the largest part; ``shares`` (columns,) are the parts. A statistic without
    any part is left out.

    >>> strongest(["H_L5_weight", "H_L1_weight", "HH_L1_pcc", "HH_L3_pcc", "H_L1_mean"], np.array([2, 3, 4, 0, 0]), 3)
    [1, 2]
    """
    total: dict[str, float] = {}
    best: dict[str, int] = {}
    for i in np.argsort(-shares, kind="stable"):
        if shares[i] > 0:
            name = statistic(columns[i])
            total[name] = total.get(name, 0.0) + float(shares[i])
            best.setdefault(name, int(i))
    return [best[name] for name in sorted(total, key=lambda name: -total[name])[:most]]


def score(column: str, value: float, normal: tuple[float, ...]) -> str:
    """Return the reason for a high error: the row's worst column.

    ``normal`` is (median, 99.9 % quantile) of benign train rows.

    >>> score("HH_L1_weight", 312.4, (0.96, 20.2))
    'sends 217 packets a second to one host, over about 1.4 s; normal is 0.667, rarely above 14'
    >>> score("HH_jit_L0.1_mean", 0.001, (4.2, 31.0))
    'mean gap of packets (s) between these hosts over about 14 s: 0.001; normal is 4.2, rarely above 31'
    >>> score("HpHp_L5_weight", 1.0, (1.0, 4.8))
    'packets on this socket over about 0.29 s: 1; normal is 1, rarely above 4.8'
    >>> score("HH_L0.01_weight", 1_800_000.0, (100.0, 300.0))
    'sends 12500 packets a second to one host, over about 140 s; normal is 0.694, rarely above 2.08'
    """
    name, decay, stat = cols.parts(column)
    group, seconds = cols.GROUPS[name], _memory_s(decay)
    if stat == "weight" and value >= 2:  # of fewer packets there is no rate to speak of
        value, normal = value / seconds, tuple(v / seconds for v in normal)
        text = f"{group.rate.format(_number(value))}, over about {_digits(seconds, 2)} s"
    else:
        text = f"{group.words[stat]} {group.of} over about {_digits(seconds, 2)} s: {_number(value)}"
    if len(normal) < 2:
        return text
    median, high = normal[:2]
    usual = f"rarely above {_number(high)}" if high > median else "never anything else"
    return f"{text}; normal is {_number(median)}, {usual}"


def count(
    column: str, value: float, bound: float, port: int, normal: tuple[float, ...] = (), *, victim: bool = False
) -> str:
    """Return the reason for a count above its bound: how many peers or sockets were new, and what is normal.

    Without ``normal`` the bound is named instead. ``port`` is the target's, 0 for none. The peers of a ``victim`` are
    those that come to it.

    >>> count("device_L0.1_new_sockets", 2300.0, 44.6, 23, (0.1, 2.9))
    'opens 160 new connections a second to port 23 (2300 within about 14 s); normal is below 0.2'
    >>> count("device_L1_new_peers", 18.4, 12.0, 0)
    'reaches 13 new addresses a second (18 within about 1.4 s); the bound is 8.3'
    >>> count("device_L1_new_peers", 8932.0, 12.0, 80, (0.1, 2.7), victim=True)
    'is reached from 6203 new addresses a second on port 80 (8932 within about 1.4 s); normal is below 1.9'
    """
    _, decay, stat = cols.parts(column)
    seconds = _memory_s(decay)
    if stat == "new_peers":
        what = "is reached from {} new addresses a second" if victim else "reaches {} new addresses a second"
    else:
        what = "receives {} new connections a second" if victim else "opens {} new connections a second"
    to = f" {'on' if victim else 'to'} port {port}" if port else ""
    known = len(normal) > 1 and normal[1] > 0
    usual = f"normal is below {_rate(normal[1] / seconds)}" if known else f"the bound is {_rate(bound / seconds)}"
    return f"{what.format(_rate(value / seconds))}{to} ({value:.0f} within about {_digits(seconds, 2)} s); {usual}"


def host_count(column: str, value: float, bound: float, host: str, port: int) -> str:
    """Return the reason for one of `HOST_COUNTS` above its bound, of packets to ``port`` of ``host``.

    >>> host_count("host_L0.1_unanswered", 300.0, 120.0, "198.51.100.7", 53)
    'sends 21 packets a second to 198.51.100.7 that nothing answers (300 within about 14 s); the bound is 8.3'
    >>> host_count("host_L0.1_ports", 24.2, 10.0, "192.168.1.9", 8080)
    'tries 24 ports of 192.168.1.9 within about 14 s; the bound is 10'
    >>> host_count("host_L0.01_logins", 7.3, 6.0, "192.168.1.9", 22)
    'opens 7 connections to log in to port 22 of 192.168.1.9 within about 140 s; the bound is 6'
    >>> host_count("host_L0.1_pinged", 9.1, 8.0, "192.168.1.9", 0)
    'pings 9 new addresses within about 14 s; the bound is 8'
    """
    _, decay, stat = cols.parts(column)
    seconds = _memory_s(decay)
    within = f"within about {_digits(seconds, 2)} s"
    if "unanswered" in stat:
        rate, most = _rate(value / seconds), _rate(bound / seconds)
        return (
            f"sends {rate} packets a second to {host} that nothing answers ({value:.0f} {within}); the bound is {most}"
        )
    what = {
        "ports": f"tries {value:.0f} ports of {host}",
        "logins": f"opens {value:.0f} connections to log in to port {port} of {host}",
        "pinged": f"pings {value:.0f} new addresses",
    }[stat]
    return f"{what} {within}; the bound is {_number(bound)}"


def _memory_s(decay: float) -> float:
    """Return the seconds that a decay λ remembers, 1 / (λ ln 2)."""
    return 1.44 / decay


def _digits(value: float, most: int) -> str:
    """Return the first ``most`` significant digits, below a million without an exponent.

    >>> _digits(144.0, 2), _digits(0.288, 2), _digits(12_345.0, 3)
    ('140', '0.29', '12300')
    """
    return f"{float(f'{value:.{most}g}'):g}"


def _rate(value: float) -> str:
    """Return two significant digits, as a whole number from ten on."""
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _number(value: float) -> str:
    """Return three significant digits; the rounding noise of a zero is 0."""
    return "0" if abs(value) < 1e-6 else _digits(value, 3) if abs(value) < 1e6 else f"{value:.2e}"
