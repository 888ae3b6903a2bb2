"""The memory of a gateway that survives a power cut, in one SQLite file; the only user of sqlite3.

That is the outbox (alerts that wait for the broker, those it took in the last day, and the last alert of each open
episode), what was learnt of each device and rows of it, the newest of some documents the agent publishes, suppressions,
commands and their replies, and which device an episode is about. Every change is on the disk when the call returns
(WAL, synchronous FULL). One connection behind one lock serves all threads; no call waits for anything but the disk.
Which rows to drop or send is decided by `delivery.outbox`; what a row means is the knowledge of whoever reads it.

A disk that is full at the start does not stop an agent: the content of the file is read in a way that needs no space
(SQLite then has no room for the index that processes share, so no other process can use the file), and a file that
cannot be used at all is tried again every few seconds.
"""

import errno
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from edge_agent.ownership import make_file
from edge_agent.state_rows import drop_damaged_rows

logger = logging.getLogger(__name__)

_OUTBOX = """
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice, so a late acknowledgement cannot hit another row
    put_s REAL NOT NULL,                   -- wall clock, Unix seconds
    topic TEXT NOT NULL,
    payload BLOB NOT NULL,
    droppable INTEGER NOT NULL,            -- an update: the next one repeats all of it
    acked_s REAL                           -- NULL: waits
);
CREATE INDEX outbox_waiting ON outbox (id) WHERE acked_s IS NULL;
CREATE INDEX outbox_droppable ON outbox (id) WHERE acked_s IS NULL AND droppable;
CREATE INDEX outbox_acked ON outbox (id) WHERE acked_s IS NOT NULL;

-- Counted as rows come and go: to count a full outbox at every put would read all of it.
CREATE TABLE outbox_total (acked INTEGER PRIMARY KEY, rows INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO outbox_total VALUES (0, 0, 0), (1, 0, 0);
CREATE TRIGGER outbox_in AFTER INSERT ON outbox BEGIN
    UPDATE outbox_total SET rows = rows + 1, bytes = bytes + length(new.payload) WHERE acked = 0;
END;
CREATE TRIGGER outbox_taken AFTER UPDATE OF acked_s ON outbox WHEN old.acked_s IS NULL AND new.acked_s NOT NULL BEGIN
    UPDATE outbox_total SET rows = rows - 1, bytes = bytes - length(new.payload) WHERE acked = 0;
    UPDATE outbox_total SET rows = rows + 1, bytes = bytes + length(new.payload) WHERE acked = 1;
END;
CREATE TRIGGER outbox_again AFTER UPDATE OF acked_s ON outbox WHEN old.acked_s NOT NULL AND new.acked_s IS NULL BEGIN
    UPDATE outbox_total SET rows = rows + 1, bytes = bytes + length(new.payload) WHERE acked = 0;
    UPDATE outbox_total SET rows = rows - 1, bytes = bytes - length(new.payload) WHERE acked = 1;
END;
CREATE TRIGGER outbox_out AFTER DELETE ON outbox BEGIN
    UPDATE outbox_total SET rows = rows - 1, bytes = bytes - length(old.payload) WHERE acked = (old.acked_s NOT NULL);
END;
"""

_LEARNT = """
CREATE TABLE learnt (
    model TEXT NOT NULL,                   -- SHA-256 of the bundle's manifest
    mac INTEGER NOT NULL,
    saved_s REAL NOT NULL,                 -- wall clock, Unix seconds
    record BLOB NOT NULL,
    PRIMARY KEY (model, mac)
);
CREATE TABLE document (
    kind TEXT PRIMARY KEY,                 -- as the leaf of its topic: "devices"
    written_s REAL NOT NULL,
    payload BLOB NOT NULL                  -- JSON
);
"""


_CONTROL = """
CREATE TABLE allow (
    n INTEGER PRIMARY KEY AUTOINCREMENT,   -- what people call the entry
    entry TEXT NOT NULL,                   -- JSON
    hits INTEGER NOT NULL DEFAULT 0,       -- suppressed episodes
    last_s REAL                            -- packet time of the last
);
CREATE TABLE command (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    origin TEXT NOT NULL,
    id TEXT NOT NULL,
    verb TEXT NOT NULL,
    document BLOB NOT NULL,
    reply BLOB,                            -- NULL: waits
    UNIQUE (origin, id)
);
CREATE INDEX command_waiting ON command (n) WHERE reply IS NULL;
CREATE TABLE episode (
    id TEXT PRIMARY KEY,
    seen_s REAL NOT NULL,                  -- wall clock, Unix seconds
    about TEXT NOT NULL                    -- JSON
);
"""

_ROW_BURSTS = """
CREATE TABLE run (
    mac INTEGER NOT NULL,
    kind TEXT NOT NULL,                    -- "loud" or "even"
    minute INTEGER NOT NULL,               -- since the epoch
    packed BLOB NOT NULL,
    PRIMARY KEY (mac, kind, minute)
) WITHOUT ROWID;
"""

_OPEN_EPISODES = """
CREATE TABLE unfinished (
    story TEXT PRIMARY KEY,                -- the id of an episode
    topic TEXT NOT NULL,
    payload BLOB NOT NULL                  -- the last message on it
);
-- By time: else each acknowledgement would look at all rows that are kept for those that are too old.
DROP INDEX outbox_acked;
CREATE INDEX outbox_acked ON outbox (acked_s) WHERE acked_s IS NOT NULL;
"""

_STRIKES = """
-- How many connections a message that waits has ended, as one does that is larger than the broker takes.
CREATE TABLE outbox_strike (id INTEGER PRIMARY KEY, strikes INTEGER NOT NULL);
CREATE TRIGGER outbox_strike_taken AFTER UPDATE OF acked_s ON outbox WHEN new.acked_s NOT NULL BEGIN
    DELETE FROM outbox_strike WHERE id = new.id;
END;
CREATE TRIGGER outbox_strike_out AFTER DELETE ON outbox BEGIN
    DELETE FROM outbox_strike WHERE id = old.id;
END;
"""

_SCHEMAS = (_OUTBOX, _LEARNT, _CONTROL, _OPEN_EPISODES, _ROW_BURSTS, _STRIKES)
"""The statements by which each version of the file extends the one before; never changed once released."""

SCHEMA_VERSION = len(_SCHEMAS)

_RETRY_S = 5.0  # between attempts to open a file on a full or failing disk
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
"""Errors of a disk that is full or fails, which may pass; those of a wrong path do not."""


class StateError(Exception):
    """The state file cannot be used (disk full, no permission, used by another agent); the message says why."""


class _NewerError(Exception):
    """The file was written by a newer version."""

    def __init__(self, version: int) -> None:
        super().__init__(f"version {version} of a newer agent, this one knows {SCHEMA_VERSION}")
        self.version = version


class StateUnwritableError(StateError):
    """The file cannot be read or written now, but may be later: the disk is full or fails, or the file is locked."""


class State:
    """The state file at ``path``, made when it is not there; its folder must exist.

    A file that SQLite finds corrupt, now or later, is moved to ``<name>.corrupt``, a file of version 7 of a newer agent
    to ``<name>.v7`` (an earlier one there is overwritten), and a new file is begun: a gateway that lost its memory is
    better than one that does not start. ``damaged`` counts both, and damaged rows that were dropped. While the disk is
    full or fails, calls raise StateUnwritableError; ``trouble`` has the error at its opening, or "". A ``guest``, which
    only leaves commands for the agent, neither makes a file nor moves one. ``connection`` is the class of SQLite's
    connection. Raises StateError when no file can ever be used here.
    """

    def __init__(
        self, path: Path, *, guest: bool = False, connection: type[sqlite3.Connection] = sqlite3.Connection
    ) -> None:
        self.path, self.damaged, self.trouble = Path(path), 0, ""
        self._connection = connection
        self._lock = threading.Lock()
        self._claim: int | None = None
        self._db: sqlite3.Connection | None = None
        self._closed = self._checked = False
        self._retry = 0.0
        if guest:
            try:
                if not self.path.is_file():
                    raise StateError(f"{self.path}: there is no such file")
                self._db = self._open(check=False)
            except (sqlite3.DatabaseError, _NewerError, OSError) as error:
                raise StateError(f"{self.path}: {getattr(error, 'strerror', error)}") from error
        else:
            self._begin()

    def _begin(self) -> None:
        """Open the file, or a new one in place of a corrupt one; a full or failing disk is tried again later."""
        self.trouble, self._retry = "", time.monotonic() + _RETRY_S
        try:
            self._db = self._open(check=not self._checked)
        except _NewerError as error:
            self._move_aside(error, f"v{error.version}")
        except sqlite3.DatabaseError as error:
            if _corrupt(error):
                self._move_aside(error, "corrupt")
            elif not _passing(error, self.path):
                raise StateError(f"{self.path}: {error}") from error
            else:
                self.trouble = str(error)
                with suppress(sqlite3.DatabaseError, _NewerError):
                    self._db = self._open(check=not self._checked, alone=True)
        self._checked = self._checked or self._db is not None

    def _open(self, *, check: bool, alone: bool = False) -> sqlite3.Connection:
        make_file(self.path)
        db = sqlite3.connect(
            self.path, timeout=10.0, isolation_level=None, check_same_thread=False, factory=self._connection
        )
        try:
            if alone:
                db.execute("PRAGMA locking_mode=EXCLUSIVE")  # no index in shared memory, which is a file that may grow
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA journal_size_limit=4194304")
            damage = db.execute("PRAGMA quick_check(1)").fetchone()[0] if check else "ok"
            if damage != "ok":
                raise sqlite3.DatabaseError(damage)
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise _NewerError(version)
            if version < SCHEMA_VERSION:
                new = "".join(_SCHEMAS[version:])
                db.executescript(f"BEGIN IMMEDIATE;{new}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")
            self.damaged += drop_damaged_rows(db, self.path) if check else 0
        except BaseException:
            db.close()
            raise
        return db

    def _move_aside(self, error: Exception, suffix: str) -> None:
        """Begin a new file in place of one that cannot be used, which stays beside it together with its log."""
        aside = self.path.with_name(f"{self.path.name}.{suffix}")
        claimed, self._db = self._claim is not None, None
        if not claimed and self._in_use():
            raise StateError(f"{self.path}: {error}; another agent uses it")
        logger.error(
            "state file %s cannot be used (%s) and is moved to %s; the agent goes on without the alerts, suppressions "
            "and limits in it",
            *(self.path, error, aside.name),
        )
        try:
            self.path.with_name(self.path.name + "-shm").unlink(missing_ok=True)
            for part in ("-wal", ""):
                with suppress(FileNotFoundError):
                    self.path.with_name(self.path.name + part).replace(aside.with_name(aside.name + part))
            self.damaged += 1
            self._db = self._open(check=True)
        except OSError as problem:
            raise StateError(f"{self.path}: {error}; cannot be moved aside: {problem}") from problem
        except sqlite3.DatabaseError as again:
            if not _passing(again, self.path):
                raise StateError(f"{self.path}: {again}") from again
            self.trouble = str(again)
        if claimed and self._claim is not None:  # the lock lies on the file that was moved
            os.close(self._claim)
            self._claim = None
            self.claim()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Give the open file for statements that take effect together when the block ends, or not at all.

        Raises StateUnwritableError when that is not possible now, StateError when it never will be.
        """
        with self._lock:
            try:
                db = self._usable()
                db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                    db.execute("COMMIT")
                except BaseException:
                    with suppress(sqlite3.Error):  # SQLite has rolled back itself where the disk failed
                        db.execute("ROLLBACK")
                    raise
            except sqlite3.OperationalError as error:
                raise StateUnwritableError(f"{self.path}: {error}") from error
            except sqlite3.Error as error:
                if not _corrupt(error):
                    raise StateError(f"{self.path}: {error}") from error
                if self._db is not None:
                    self._db.close()
                self._move_aside(error, "corrupt")
                raise StateUnwritableError(f"{self.path}: {error}; begun anew") from error

    def _usable(self) -> sqlite3.Connection:
        """Return the open file; one that could not be opened properly is tried again from time to time."""
        if self._closed:
            raise StateError(f"{self.path}: closed")
        if self.trouble and time.monotonic() >= self._retry:
            if self._db is not None:
                self._db.close()
            self._db = None
            self._begin()
        if self._db is None:
            raise StateUnwritableError(f"{self.path}: {self.trouble}")
        return self._db

    def _in_use(self) -> bool:
        """Return True if another process has claimed the file."""
        with suppress(OSError):
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(handle)
        return False

    def claim(self, wait_s: float = 0.0) -> bool:
        """Become the one process that acts on this file, until `close` or death.

        Returns False when another process still is after ``wait_s`` seconds. The lock is flock(2), which does not
        interact with SQLite's own locks (fcntl).
        """
        if self._claim is None:
            try:
                self._claim = os.open(self.path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                if error.errno not in DISK_TROUBLE:
                    raise StateError(f"{self.path}: {error.strerror}") from error
                return True  # the disk does not even take a new file, so no other process gets further
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.05)

    def suppressions(self) -> list[tuple[int, str, int, float | None]]:
        """Return ``(n, entry, hits, last_s)`` of every suppression, the oldest first."""
        with self.transaction() as db:
            return db.execute("SELECT n, entry, hits, last_s FROM allow ORDER BY n").fetchall()

    def suppression_put(self, entry: str, instead_of: Iterable[int]) -> int:
        """Add a suppression in place of others; return its number."""
        with self.transaction() as db:
            db.executemany("DELETE FROM allow WHERE n = ?", [(n,) for n in instead_of])
            n = db.execute("INSERT INTO allow (entry) VALUES (?)", (entry,)).lastrowid
            assert n is not None
            return n

    def suppression_drop(self, n: int) -> None:
        """Delete a suppression."""
        with self.transaction() as db:
            db.execute("DELETE FROM allow WHERE n = ?", (n,))

    def suppression_hits(self, hits: Iterable[tuple[int, float | None, int]]) -> None:
        """Store ``(hits, last_s, n)`` of suppressions."""
        with self.transaction() as db:
            db.executemany("UPDATE allow SET hits = ?, last_s = ? WHERE n = ?", hits)

    def command_put(self, origin: str, id_: str, verb: str, document: bytes, most: int) -> bool:
        """Leave a command for the process that acts on this file; False when ``most`` wait already."""
        with self.transaction() as db:
            if db.execute("SELECT count(*) FROM command WHERE reply IS NULL").fetchone()[0] >= most:
                return False
            values = (origin, id_, verb, document)
            db.execute("INSERT INTO command (origin, id, verb, document) VALUES (?, ?, ?, ?)", values)
            return True

    def commands_waiting(self) -> list[tuple[int, str, str, bytes]]:
        """Return ``(n, id, verb, document)`` of the commands that wait, the oldest first."""
        with self.transaction() as db:
            return db.execute("SELECT n, id, verb, document FROM command WHERE reply IS NULL ORDER BY n").fetchall()

    def command_reply(self, origin: str, id_: str) -> tuple[str, bytes | None] | None:
        """Return verb and reply of a command, the reply None while it waits; None for a command that is not stored."""
        with self.transaction() as db:
            reply: tuple[str, bytes | None] | None = db.execute(
                "SELECT verb, reply FROM command WHERE origin = ? AND id = ?", (origin, id_)
            ).fetchone()
            return reply

    def command_done(self, origin: str, id_: str, verb: str, reply: bytes, keep: int) -> None:
        """Store the reply to a command, which waits or is new here; of the answered ones the last ``keep`` stay."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO command (origin, id, verb, document, reply) VALUES (?, ?, ?, x'', ?)"
                " ON CONFLICT (origin, id) DO UPDATE SET reply = excluded.reply",
                (origin, id_, verb, reply),
            )
            db.execute(
                "DELETE FROM command WHERE reply IS NOT NULL AND n <="
                " (SELECT n FROM command WHERE reply IS NOT NULL ORDER BY n DESC LIMIT 1 OFFSET ?)",
                (keep,),
            )

    def episode_put(self, id_: str, about: str, now_s: float, most: int) -> None:
        """Store the subject of an episode; the ``most`` episodes seen last stay."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO episode VALUES (?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET seen_s = excluded.seen_s, about = excluded.about",
                (id_, now_s, about),
            )
            db.execute(
                "DELETE FROM episode WHERE id IN (SELECT id FROM episode ORDER BY seen_s DESC LIMIT -1 OFFSET ?)",
                (most,),
            )

    def episodes(self, digits: str) -> list[tuple[str, str]]:
        """Return ``(id, subject)`` of the stored episodes whose id, without dashes, ends with these hex digits."""
        with self.transaction() as db:
            ends = "replace(id, '-', '') LIKE '%' || ?"
            return db.execute(f"SELECT id, about FROM episode WHERE {ends}", (digits,)).fetchall()

    def learnt_put(
        self,
        model: str,
        records: Iterable[tuple[int, bytes]],
        now_s: float,
        keep_s: float,
        runs: Mapping[int, Iterable[tuple[str, int, bytes | None]]] | None = None,
        *,
        anew: Iterable[int] = (),
    ) -> None:
        """Store ``(mac, record)`` of devices under a model, and delete records that are older than ``keep_s`` seconds.

        ``runs`` are, by MAC, all row bursts of a device: ``(kind, minute, packed)``, with None for one that is stored
        already. Row bursts of a device with no record are deleted. ``anew`` are MACs of which other models' records are
        deleted, too.
        """
        with self.transaction() as db:
            rows = [(model, mac, now_s, record) for mac, record in records]
            db.executemany("INSERT OR REPLACE INTO learnt (model, mac, saved_s, record) VALUES (?, ?, ?, ?)", rows)
            db.executemany("DELETE FROM learnt WHERE mac = ? AND model != ?", [(mac, model) for mac in anew])
            db.execute("DELETE FROM learnt WHERE saved_s < ?", (now_s - keep_s,))
            for mac, bursts in (runs or {}).items():
                now = list(bursts)
                before = set(db.execute("SELECT kind, minute FROM run WHERE mac = ?", (mac,)))
                gone = before - {(kind, minute) for kind, minute, _ in now}
                db.executemany(
                    "DELETE FROM run WHERE mac = ? AND kind = ? AND minute = ?", [(mac, *key) for key in gone]
                )
                new = [(mac, kind, minute, packed) for kind, minute, packed in now if packed is not None]
                db.executemany("INSERT OR REPLACE INTO run (mac, kind, minute, packed) VALUES (?, ?, ?, ?)", new)
            db.execute("DELETE FROM run WHERE mac NOT IN (SELECT mac FROM learnt)")

    def learnt(self, model: str) -> list[tuple[int, bytes]]:
        """Return ``(mac, record)`` of every device under a model, the one saved last first."""
        with self.transaction() as db:
            rows = db.execute("SELECT mac, record FROM learnt WHERE model = ? ORDER BY saved_s DESC, mac", (model,))
            return rows.fetchall()

    def learnt_elsewhere(self, model: str) -> list[tuple[int, str, bytes]]:
        """Return ``(mac, model, record)`` of every device not known under a model, as saved last under another one."""
        with self.transaction() as db:
            return db.execute(
                "SELECT mac, model, record FROM (SELECT mac, model, record, max(saved_s) FROM learnt GROUP BY mac)"
                " WHERE mac NOT IN (SELECT mac FROM learnt WHERE model = ?) ORDER BY mac",
                (model,),
            ).fetchall()

    def runs(self, mac: int) -> list[tuple[str, int, bytes]]:
        """Return ``(kind, minute, packed)`` of the stored row bursts of a device, the oldest first."""
        with self.transaction() as db:
            return db.execute("SELECT kind, minute, packed FROM run WHERE mac = ? ORDER BY minute", (mac,)).fetchall()

    def document_put(self, kind: str, payload: bytes, now_s: float) -> None:
        """Store the newest document of a kind ("devices": `devices.Devices.document` as JSON)."""
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO document VALUES (?, ?, ?)", (kind, now_s, payload))

    def document(self, kind: str) -> tuple[float, bytes] | None:
        """Return when the newest document of a kind was written (Unix seconds) and its content; None without one."""
        with self.transaction() as db:
            document: tuple[float, bytes] | None = db.execute(
                "SELECT written_s, payload FROM document WHERE kind = ?", (kind,)
            ).fetchone()
            return document

    def close(self) -> None:
        """Close the file; every later call raises StateError."""
        with self._lock:
            self._closed = True
            if self._db is not None:
                self._db.close()
            if self._claim is not None:  # after SQLite: to close any handle of the file ends its locks, too
                os.close(self._claim)
                self._claim = None


def _corrupt(error: sqlite3.Error) -> bool:
    """Return True if the error means that the file is not, or no longer, a database."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)  # what `quick_check` found has none
    return type(error) is sqlite3.DatabaseError and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _passing(error: sqlite3.Error, path: Path) -> bool:
    """Return True if the error means that the disk fails, and not that a path or permission is wrong."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return True
    if code not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        return False
    for suffix in ("", "-wal"):  # SQLite does not pass on the error of the system
        try:
            os.close(os.open(path.with_name(path.name + suffix), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as cause:
            return cause.errno in DISK_TROUBLE
    return False
