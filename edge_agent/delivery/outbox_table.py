"""The table of the outbox in the state file: which rows wait, which were taken, which are set aside.

Which of them to drop or send, and when, is decided by `delivery.outbox`. A row is set aside once it has ended the
connection `STRIKES` times; it waits like the others, and the bounds hold for it, too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from edge_agent.state import State

STRIKES = 2
"""Connections that a message has ended when it is set aside."""

# In the order in which rows are dropped: those the broker has taken, then updates, then the oldest of the others.
_DROP_ORDER = (
    "acked_s IS NOT NULL ORDER BY acked_s",
    "acked_s IS NULL AND droppable ORDER BY id",
    "acked_s IS NULL ORDER BY id",
)


@dataclass(frozen=True)
class OutboxSize:
    """Numbers of rows and of payload bytes: of messages that wait, and of those the broker has taken."""

    waiting: int
    waiting_bytes: int
    acked: int
    acked_bytes: int


class OutboxTable:
    """The outbox's rows in ``state``; every call is one transaction. Raises StateUnwritableError and StateError."""

    def __init__(self, state: State) -> None:
        self._state = state

    def put(
        self,
        rows: Iterable[tuple[float, str, bytes, bool]],
        max_rows: int,
        max_bytes: int,
        episodes: Mapping[str, tuple[str, bytes] | None] = MappingProxyType({}),
    ) -> list[int]:
        """Append ``(put_s, topic, payload, droppable)`` and drop down to the bounds, in one commit.

        ``episodes`` has the last ``(topic, payload)`` of each episode, or None where it has ended. Returns how many
        rows of each kind were dropped: acknowledged ones, waiting updates, other waiting rows.
        """
        with self._state.transaction() as db:
            db.executemany("INSERT INTO outbox (put_s, topic, payload, droppable) VALUES (?, ?, ?, ?)", rows)
            ended = [(episode,) for episode, last in episodes.items() if last is None]
            db.executemany("DELETE FROM unfinished WHERE story = ?", ended)
            still_open = [(episode, *last) for episode, last in episodes.items() if last is not None]
            db.executemany("INSERT OR REPLACE INTO unfinished (story, topic, payload) VALUES (?, ?, ?)", still_open)
            dropped = [0, 0, 0]
            size = self._size(db)
            rows_over = size.waiting + size.acked - max_rows
            bytes_over = size.waiting_bytes + size.acked_bytes - max_bytes
            for kind, where in enumerate(_DROP_ORDER):
                if rows_over <= 0 and bytes_over <= 0:
                    break
                doomed = []
                for row, length in db.execute(f"SELECT id, length(payload) FROM outbox WHERE {where}"):
                    if rows_over <= 0 and bytes_over <= 0:
                        break
                    doomed.append((row,))
                    rows_over, bytes_over = rows_over - 1, bytes_over - length
                db.executemany("DELETE FROM outbox WHERE id = ?", doomed)
                dropped[kind] = len(doomed)
        return dropped

    def waiting(self, after: int, limit: int) -> list[tuple[int, str, bytes]]:
        """Return ``(id, topic, payload)`` of the oldest rows above ``after`` that wait and are not set aside."""
        with self._state.transaction() as db:
            return db.execute(
                "SELECT id, topic, payload FROM outbox WHERE acked_s IS NULL AND id > ?"
                " AND id NOT IN (SELECT id FROM outbox_strike WHERE strikes >= ?) ORDER BY id LIMIT ?",
                (after, STRIKES, limit),
            ).fetchall()

    def with_text(self, text: str, latest: int = 1000) -> list[float | None]:
        """Return, for each of the ``latest`` rows with ``text`` in its payload, when the broker took it.

        That is a Unix time in seconds, or None for a row that waits.
        """
        with self._state.transaction() as db:
            rows = db.execute(
                "SELECT acked_s FROM outbox WHERE id > (SELECT max(id) FROM outbox) - ? AND instr(payload, ?)",
                (latest, text.encode()),
            ).fetchall()
        return [acked_s for (acked_s,) in rows]

    def acked(self, ids: Iterable[int], now_s: float, keep_s: float) -> None:
        """Mark rows as taken by the broker at ``now_s``, and delete those taken more than ``keep_s`` seconds before."""
        with self._state.transaction() as db:
            db.executemany("UPDATE outbox SET acked_s = ? WHERE id = ?", [(now_s, row) for row in ids])
            db.execute("DELETE FROM outbox WHERE acked_s IS NOT NULL AND acked_s < ?", (now_s - keep_s,))

    def again(self, since_s: float | None, window_s: float) -> int:
        """Let rows that were taken after ``since_s - window_s`` wait again; return how many.

        Without ``since_s`` it is the time at which the last row was taken.
        """
        with self._state.transaction() as db:
            if since_s is None:
                since_s = db.execute("SELECT max(acked_s) FROM outbox WHERE acked_s IS NOT NULL").fetchone()[0]
            if since_s is None:
                return 0
            return db.execute("UPDATE outbox SET acked_s = NULL WHERE acked_s > ?", (since_s - window_s,)).rowcount

    def open_episodes(self) -> list[tuple[str, str, bytes]]:
        """Return ``(episode, topic, payload)`` of the last message of each episode that has not ended."""
        with self._state.transaction() as db:
            return db.execute("SELECT story, topic, payload FROM unfinished ORDER BY story").fetchall()

    def strike(self, row: int, strikes: int) -> int:
        """Note that a message has ended a connection ``strikes`` more times, and return how many times it has in all.

        The number is 0 for a row that no longer waits.
        """
        with self._state.transaction() as db:
            db.execute(
                "INSERT INTO outbox_strike SELECT id, ? FROM outbox WHERE id = ? AND acked_s IS NULL"
                " ON CONFLICT (id) DO UPDATE SET strikes = strikes + excluded.strikes",
                (strikes, row),
            )
            known = db.execute("SELECT strikes FROM outbox_strike WHERE id = ?", (row,)).fetchone()
            return known[0] if known else 0

    def set_aside(self) -> list[tuple[int, int]]:
        """Return ``(id, bytes)`` of the rows that wait and are set aside, the oldest first."""
        with self._state.transaction() as db:
            return db.execute(
                "SELECT id, length(payload) FROM outbox_strike JOIN outbox USING (id)"
                " WHERE acked_s IS NULL AND strikes >= ? ORDER BY id",
                (STRIKES,),
            ).fetchall()

    def row(self, row: int) -> tuple[int, str, bytes] | None:
        """Return ``(id, topic, payload)`` of a row that waits, None for one that no longer does."""
        with self._state.transaction() as db:
            waiting: tuple[int, str, bytes] | None = db.execute(
                "SELECT id, topic, payload FROM outbox WHERE id = ? AND acked_s IS NULL", (row,)
            ).fetchone()
            return waiting

    def size(self) -> OutboxSize:
        """Return how full the outbox is."""
        with self._state.transaction() as db:
            return self._size(db)

    @staticmethod
    def _size(db: Any) -> OutboxSize:
        waiting, acked = db.execute("SELECT rows, bytes FROM outbox_total ORDER BY acked").fetchall()
        return OutboxSize(*waiting, *acked)
