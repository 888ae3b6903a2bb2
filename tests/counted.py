"""The counters with which an agent ends, read back from the words that it prints on stderr."""

import re

from edge_agent.contract.counters import COUNTERS

_NAMES = {counter.words: name for group in COUNTERS.values() for name, counter in group.items()}
assert len(_NAMES) == sum(map(len, COUNTERS.values())), "two counters have the same words"


def closing_counts(log: str) -> dict[str, int]:
    """Return the counters by their names; those that are 0 are not there, except ``frames`` and ``malformed``."""
    (first,) = re.finditer(r"^([\d,]+) packets in .*, ([\d,]+) malformed$", log, re.MULTILINE)
    counts = {"frames": _number(first[1]), "malformed": _number(first[2])}
    for number, words in re.findall(r"^ *([\d,]+)  (\S.*)$", log[first.end() :], re.MULTILINE):
        counts[_NAMES.get(words, words)] = _number(number)
    return counts


def _number(text: str) -> int:
    return int(text.replace(",", ""))
