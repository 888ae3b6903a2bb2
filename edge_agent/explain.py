"""What a detection is about in one plain sentence: a column's value against what the fit learnt to be normal."""

_OF = {
    "MI_dir": "of this address and MAC",
    "H": "of this address",
    "HH": "between these hosts",
    "HH_jit": "between these hosts",
    "HpHp": "on this socket",
    "device": "of this device",
}
_WHAT = {
    "weight": "packets",
    "mean": "mean packet size",
    "variance": "variance of packet size",
    "std": "spread of packet size",
    "magnitude": "packet size, both ways,",
    "radius": "variance of packet size, both ways,",
    "covariance": "covariance of packet sizes, both ways,",
    "pcc": "correlation of packet sizes, both ways,",
    "new_peers": "peers never used before",
    "new_sockets": "sockets never used before",
}
_GAPS = {"weight": "packets", "mean": "mean gap of packets (s)", "variance": "variance of packet gaps"}


def score(column: str, value: float, normal: tuple[float, ...]) -> str:
    """Why a row's error is high: its worst column. ``normal`` is (median, 99.9 % quantile) of benign train rows.

    >>> score("HH_L1_weight", 312.4, (0.96, 20.2))
    'packets between these hosts over about 1.4 s: 312; normal is 0.96, rarely above 20.2'
    >>> score("HH_jit_L0.1_mean", 0.001, (4.2, 31.0))
    'mean gap of packets (s) between these hosts over about 14 s: 0.001; normal is 4.2, rarely above 31'
    """
    stream, seconds, stat = _parts(column)
    what = (_GAPS if stream == "HH_jit" else _WHAT)[stat]
    text = f"{what} {_OF[stream]} over about {seconds:.2g} s: {_number(value)}"
    if len(normal) < 2:
        return text
    median, high = normal[:2]
    usual = f"rarely above {_number(high)}" if high > median else "never anything else"
    return f"{text}; normal is {_number(median)}, {usual}"


def count(column: str, value: float, bound: float, port: int) -> str:
    """Why the counts rule fired: how many peers or sockets were new, and what the bound is; ``port`` 0: none.

    >>> count("device_L0.1_new_sockets", 415.2, 44.6, 23)
    'opened 415 sockets it never used before within about 14 s, now port 23; the bound is 45'
    """
    _, seconds, stat = _parts(column)
    now = f", now port {port}" if port else ""
    what = stat.removeprefix("new_")
    return f"opened {value:.0f} {what} it never used before within about {seconds:.2g} s{now}; the bound is {bound:.0f}"


def _parts(column: str) -> tuple[str, float, str]:
    """Stream, seconds that its decay remembers (1 / (λ ln 2)) and statistic of a column's name."""
    stream, _, rest = column.partition("_L")
    decay, _, stat = rest.partition("_")
    return stream, 1.44 / float(decay), stat


def _number(value: float) -> str:
    """Three significant digits; what rounding noise leaves of nothing is 0."""
    return "0" if abs(value) < 1e-6 else f"{value:.3g}" if abs(value) < 1e6 else f"{value:.2e}"
