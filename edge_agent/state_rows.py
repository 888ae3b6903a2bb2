"""The values that rows of the state file can have, and how rows with other values are found and dropped.

SQLite finds a file that is torn, but not a single value that was changed on a worn card: any column may then hold any
type, a text that is no UTF-8, a number beyond all bounds. Such a row is dropped when the file is opened, so that no
reader meets it; the rows around it stay. What the content of a row means, and if that is sound, is its reader's
knowledge.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger(__name__)


def _ascii(column: str, most: int = 1_000_000_000) -> str:
    """Return the condition that a column holds printable ASCII; a NUL makes the two lengths differ."""
    return (
        f"(typeof({column}) = 'text' AND {column} NOT GLOB '*[^ -~]*'"
        f" AND length({column}) = length(CAST({column} AS BLOB)) AND length({column}) BETWEEN 1 AND {most})"
    )


def _seconds(column: str) -> str:
    return f"(typeof({column}) = 'real' AND {column} BETWEEN 0 AND 253402300799)"  # to the end of the year 9999


def _number(column: str) -> str:
    return f"({column} BETWEEN 1 AND 9007199254740991)"  # beyond that SQLite would soon have no number left


def _blob(column: str) -> str:
    return f"(typeof({column}) = 'blob')"


_TOPIC = f"({_ascii('topic', 200)} AND topic NOT GLOB '*[+#]*')"
_MAC = "(typeof(mac) = 'integer' AND mac BETWEEN 0 AND 281474976710655)"


class Database(Protocol):
    """The part of SQLite's connection that is used here."""

    def execute(self, sql: str, /) -> Any:
        """Carry out one statement and return its cursor."""

    def executescript(self, sql: str, /) -> Any:
        """Carry out several statements."""


@dataclass(frozen=True)
class _SoundRows:
    """A table: the condition that its sound rows fulfil, and what the loss of a row means."""

    name: str
    sound: tuple[str, ...]
    loss: str


_TABLES = (
    _SoundRows(
        "outbox",
        (
            *(_number("id"), _seconds("put_s"), _TOPIC, _blob("payload"), "droppable IN (0, 1)"),
            f"(acked_s IS NULL OR {_seconds('acked_s')})",
        ),
        "these messages are lost",
    ),
    _SoundRows(
        "outbox_strike",
        (_number("id"), "typeof(strikes) = 'integer'", "strikes BETWEEN 1 AND 1000"),
        "these messages are sent in their order again, although they have ended connections",
    ),
    _SoundRows(
        "unfinished",
        (_ascii("story", 64), _TOPIC, _blob("payload")),
        "these episodes stay open at the collector",
    ),
    _SoundRows(
        "learnt",
        (_ascii("model", 200), _MAC, _seconds("saved_s"), _blob("record")),
        "these devices learn anew",
    ),
    _SoundRows(
        "run",
        (_MAC, "kind IN ('loud', 'even')", "typeof(minute) = 'integer'", "abs(minute) < 1 << 32", _blob("packed")),
        "these rows of devices are lost to learning",
    ),
    _SoundRows(
        "document",
        (_ascii("kind", 64), _seconds("written_s"), _blob("payload")),
        "`status` has no devices until an agent runs again",
    ),
    _SoundRows(
        "allow",
        (_number("n"), _ascii("entry"), "typeof(hits) = 'integer'", "hits >= 0", "typeof(last_s) IN ('real', 'null')"),
        "alerts that these allows and mutes suppressed are sent",
    ),
    _SoundRows(
        "command",
        (
            *(_number("n"), "origin IN ('local', 'broker')", _ascii("id", 64), _ascii("verb", 64), _blob("document")),
            f"({_blob('reply')} OR (reply IS NULL AND origin = 'local'))",  # those of the broker are answered at once
        ),
        "these commands are not carried out",
    ),
    _SoundRows(
        "episode",
        (_ascii("id", 64), _seconds("seen_s"), _ascii("about")),
        "these alerts cannot be named in commands",
    ),
)

_SIZES = (
    "SELECT waiting.acked, count(put_s), ifnull(sum(length(payload)), 0)"
    " FROM (SELECT 0 AS acked UNION SELECT 1) AS waiting"
    " LEFT JOIN outbox ON (acked_s IS NOT NULL) = waiting.acked GROUP BY waiting.acked"
)


def drop_damaged_rows(db: Database, path: Path) -> int:
    """Drop the rows of a just opened file that no reader could use, and return how many; nothing else is written."""
    dropped = 0
    for table in _TABLES:
        damaged = f"NOT ifnull({' AND '.join(table.sound)}, 0)"
        (rows,) = db.execute(f"SELECT count(*) FROM {table.name} WHERE {damaged}").fetchone()
        if rows:
            db.execute(f"DELETE FROM {table.name} WHERE {damaged}")
            logger.error("%s: %d damaged rows of table %s are dropped: %s", path, rows, table.name, table.loss)
            dropped += rows
    (sound,) = db.execute(
        f"SELECT count(*) = 2 AND NOT EXISTS ({_SIZES} EXCEPT SELECT acked, rows, bytes FROM outbox_total)"
        " FROM outbox_total"
    ).fetchone()
    if not sound:
        db.executescript(f"BEGIN IMMEDIATE; DELETE FROM outbox_total; INSERT INTO outbox_total {_SIZES}; COMMIT;")
        if not dropped:
            logger.error("%s: the sizes of the outbox were damaged and are counted anew", path)
            dropped = 1
    return dropped
