"""The budget of false alerts: its unit, how it is split, and what benign days can prove of it.

A person feels false alerts per home and month, whichever device or rule they come from. This is the only place where
that unit becomes rates of devices and rules; the sum of all shares is the budget.
"""

import math

MONTH_DAYS = 30.0

SHARES = ("score", "score at start", "counts", "unanswered", "check-ins")
"""The rules that can alert falsely; each may do so as often as any other. A device is taken to start once a month."""

CONFIDENCE = 0.95
"""The confidence of `at_most`."""


def per_device_day(budget: float, home_devices: int) -> float:
    """Return the false alerts that one rule may cause on one device in a day, of a ``budget`` per home and month.

    >>> round(1 / per_device_day(1.0, 20))  # the days of one device until one rule may be wrong once
    3000
    """
    return budget / (home_devices * MONTH_DAYS * len(SHARES))


def per_start(budget: float, home_devices: int) -> float:
    """Return the false alerts that may come of one start of a device, of a ``budget`` per home and month.

    >>> round(1 / per_start(1.0, 20))
    100
    """
    return budget / (home_devices * len(SHARES))


def per_home_month(count: float, device_days: float, home_devices: int) -> float:
    """Return the false alerts per home and month that ``count`` alerts in some ``device_days`` are.

    >>> per_home_month(1, 600.0, 20)
    1.0
    """
    return count / device_days * home_devices * MONTH_DAYS


def at_most(count: int, confidence: float = CONFIDENCE) -> float:
    """Return the upper bound of a Poisson mean of which ``count`` was seen (Garwood 1936).

    >>> round(at_most(0), 3), round(at_most(3), 3)  # none: the rule of three
    (2.996, 7.754)
    """

    def no_more_than_seen(mean: float) -> float:
        terms = (k * math.log(mean) - mean - math.lgamma(k + 1) for k in range(count + 1))
        return math.fsum(map(math.exp, terms))

    low, high = 1e-9, 2.0 * count + 50.0
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if no_more_than_seen(middle) > 1 - confidence else (low, middle)
    return high
