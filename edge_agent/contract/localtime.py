"""Times as people read them: the local time with its zone, or UTC. Messages and files have `messages.format_time`."""

from datetime import UTC, datetime

from edge_agent.contract.messages import MessageError, parse_time

_LAST_S = 253_402_127_999  # a day before the year 10000, which no zone can exceed


def local_time(t_ns: int, utc: bool = False) -> str:
    """Return Unix nanoseconds as a local time with its zone, or with ``utc`` in UTC.

    >>> local_time(1_795_450_930_123_456_789, utc=True)
    '2026-11-23 16:22:10 UTC'
    """
    moment = datetime.fromtimestamp(min(max(t_ns // 1_000_000_000, 86_400), _LAST_S), UTC)
    return (moment if utc else moment.astimezone()).strftime("%Y-%m-%d %H:%M:%S %Z")


def spelt_locally(text: object, utc: bool = False) -> str:
    """Return a time in a message's spelling as `local_time` has it, and anything else as it is."""
    try:
        return local_time(parse_time(str(text)), utc)
    except MessageError:
        return str(text)
