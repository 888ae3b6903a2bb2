"""Ids of alerts as people give them: whole, or the end of one, from its last `LEAST` hex digits on.

Ids begin with the time, so that their ends differ; dashes say nothing and are ignored. Which ids there are is known to
whoever stores alerts or evidence.
"""

import re
from collections.abc import Sequence

from edge_agent.contract.messages import MessageError, is_uuid7

LEAST = 6
"""Least number of hex digits of an ending."""

SHOWN = 8
"""Number of hex digits at the end of an id by which tables name an alert."""

_DIGITS = re.compile(r"[0-9a-f]+")
_WHOLE = 32
_NAMED = 5  # candidates that a message names


def short(id: str) -> str:
    """Return the ending by which tables name an alert.

    >>> short("01936d2e-7b1c-7c3e-9f10-0c5a7c1e9a44")
    '7c1e9a44'
    """
    return digits_of(id)[-SHOWN:]


def read(value: object) -> str:
    """Return a whole id as it is spelt, or the hex digits of an ending; else raise MessageError.

    >>> read("0C5A-7c1e9a44")
    '0c5a7c1e9a44'
    """
    digits = value.replace("-", "").lower() if isinstance(value, str) else ""
    if not _DIGITS.fullmatch(digits) or not LEAST <= len(digits) <= _WHOLE:
        raise MessageError(
            f"{str(value)[:50]!r} is not the id of an alert, nor the end of one (at least its last {LEAST} hex digits)"
        )
    if len(digits) < _WHOLE:
        return digits
    whole = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
    if not is_uuid7(whole):
        raise MessageError(f"{str(value)[:50]!r} is not the id of an alert, which is a UUID of version 7")
    return whole


def digits_of(text: str) -> str:
    """Return the hex digits of an id or ending, without dashes."""
    return text.replace("-", "")


def ends(id: str, ending: str) -> bool:
    """Return True if ``id`` is or ends with ``ending``, as `read` returns it."""
    return digits_of(id).endswith(digits_of(ending))


def the_one(ending: str, ids: Sequence[str], missing: str) -> str:
    """Return the only one of ``ids``, all of which are or end with ``ending``.

    MessageError if there is none, with the message ``missing``, or more than one, which names the candidates.
    """
    if not ids:
        raise MessageError(missing)
    if len(ids) > 1:
        more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
        raise MessageError(
            f"{len(ids)} alerts have an id that ends with {ending}: {', '.join(ids[:_NAMED])}{more}; give more digits"
        )
    return ids[0]
