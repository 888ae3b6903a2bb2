"""Alerts, episodes, gateways and rejected messages in a database; the only user of SQLAlchemy.

SQLite by default, PostgreSQL by URL: both know INSERT ... ON CONFLICT, which is what makes a message that arrives twice
harmless. Everything in one `AlertStore.save` is committed together or not at all, so the caller may acknowledge all of
it when it returns. Whether a message deserves a row is `ingest`'s decision.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    delete,
    event,
    false,
    func,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError

from edge_agent.contract.alert import CLASSES, Alert
from edge_agent.contract.messages import Status

MAX_KEPT = 4096  # bytes of a rejected payload that are kept
_PURGE_ROWS = 5_000  # rows a purge deletes in one transaction, so that it never holds up the alerts for long

_Number = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts rows only with INTEGER PRIMARY KEY

_metadata = MetaData()

_alert = Table(
    "alert",
    _metadata,
    Column("n", _Number, primary_key=True, autoincrement=True),  # order of arrival; what `--follow` follows
    Column("id", String(36), nullable=False),  # the episode
    Column("seq", Integer, nullable=False),
    Column("gateway", String(63), nullable=False),
    Column("received_ns", BigInteger, nullable=False),
    Column("t_ns", BigInteger, nullable=False),  # the gateway's time
    Column("state", String(6), nullable=False),
    Column("class", String(16), nullable=False),
    Column("severity", Integer, nullable=False),
    Column("document", Text, nullable=False),  # as it came
    Column("test", Boolean, nullable=False, server_default=false()),  # sent by hand: no row of `episode`, never counted
    UniqueConstraint("id", "seq"),
    Index("alert_received", "received_ns"),
    sqlite_autoincrement=True,
)
_episode = Table(
    "episode",
    _metadata,
    Column("id", String(36), primary_key=True),
    Column("seq", Integer, nullable=False),  # of the message that says the rest, the highest that came
    Column("gateway", String(63), nullable=False),
    Column("site", String(63), nullable=False),
    Column("received_ns", BigInteger, nullable=False),
    Column("state", String(6), nullable=False),
    Column("role", String(6), nullable=False),
    Column("mac", String(17), nullable=False),
    Column("ip", String(45), nullable=False),
    Column("name", String(64), nullable=False),
    Column("class", String(16), nullable=False),
    Column("severity", Integer, nullable=False),
    Column("confidence", Float, nullable=False),
    Column("first_ns", BigInteger, nullable=False),
    Column("last_ns", BigInteger, nullable=False),
    Column("duration_s", Float, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("packets", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("model", String(40), nullable=False),
    Column("generated", Boolean, nullable=False),
    Index("episode_received", "received_ns"),
)
_gateway = Table(
    "gateway",
    _metadata,
    Column("gateway", String(63), primary_key=True),
    Column("state", String(7), nullable=False),
    Column("boot", String(36), nullable=False),
    Column("agent", String(20), nullable=False),
    Column("t_ns", BigInteger, nullable=False),  # the gateway's time
    Column("received_ns", BigInteger, nullable=False),
)
_rejected = Table(
    "rejected",
    _metadata,
    Column("n", _Number, primary_key=True, autoincrement=True),  # never used twice: the highest is the count of all
    Column("received_ns", BigInteger, nullable=False),
    Column("topic", String(256), nullable=False),
    Column("reason", String(256), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),  # its first MAX_KEPT bytes
    sqlite_autoincrement=True,
)


class StoreError(Exception):
    """The database cannot be used: what it said, in one line."""


class StoreBusy(StoreError):
    """It cannot be used now (locked, full, not reachable), but the same may work later."""


class BadRow(StoreError):
    """It refuses this row and would again."""


@dataclass(frozen=True)
class Arrival:
    """A message that was accepted: what it says, when it came (Unix ns), and an alert's text."""

    message: Alert | tuple[str, Status]  # a status with its gateway
    received_ns: int
    document: str = ""


@dataclass(frozen=True)
class Rejection:
    """A message that was not, and why."""

    topic: str
    payload: bytes
    reason: str
    received_ns: int


class Fresh(NamedTuple):
    """Alerts that were not there, and those that were sent by hand, which nobody may count with them."""

    alerts: int
    tests: int


@dataclass(frozen=True)
class StoredAlert:
    """One row of the alert table: its place in the order of arrival, when it came, and the EVE document's text."""

    n: int
    received_ns: int
    document: str


def database_url(db: str) -> str:
    """``db`` if it is an SQLAlchemy URL, else the SQLite URL of the file it names."""
    return db if "://" in db else f"sqlite:///{db}"


class AlertStore:
    """The database at ``url``; tables are made when missing, unless ``create`` is False.

    At most ``max_rejected`` rejected messages are kept, the newest. Raises StoreError when it cannot be opened.
    """

    def __init__(self, url: str, *, create: bool = True, max_rejected: int = 1_000) -> None:
        self._max_rejected = max_rejected
        try:
            parsed = make_url(database_url(url))
        except (ArgumentError, ValueError) as error:
            raise StoreError(f"db: {_line(error)}") from error
        shown = parsed.render_as_string(hide_password=True)
        backend = parsed.get_backend_name()
        if backend not in ("sqlite", "postgresql"):
            raise StoreError(f"db {shown}: SQLite and PostgreSQL are supported")
        if not create and backend == "sqlite" and not Path(parsed.database or "").is_file():
            raise StoreError(f"db {shown}: no such file")  # SQLite would make an empty one
        try:
            self._engine = create_engine(parsed)
            self._insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
            if self._engine.dialect.name == "sqlite":
                event.listen(self._engine, "connect", _prepare_sqlite)
            if create:
                _metadata.create_all(self._engine)
                self._update()
            else:
                with self._engine.connect() as db:
                    db.execute(select(_alert.c.n).limit(1))
        except (ImportError, SQLAlchemyError) as error:
            raise StoreError(f"db {shown}: {_line(error)}") from error

    def _update(self) -> None:
        """Give an older version's tables the columns they lack."""
        if "test" not in {column["name"] for column in inspect(self._engine).get_columns("alert")}:
            with self._engine.begin() as db:
                db.execute(text("ALTER TABLE alert ADD COLUMN test BOOLEAN NOT NULL DEFAULT FALSE"))

    def save(self, arrivals: Sequence[Arrival], rejections: Sequence[Rejection] = ()) -> Fresh:
        """Commit all of it; returns how many alerts were new, the others being repeats.

        Raises StoreBusy or BadRow, and then nothing was saved.
        """
        try:
            with self._engine.begin() as db:
                fresh = self._save_alerts(db, [a for a in arrivals if isinstance(a.message, Alert)])
                self._save_statuses(db, arrivals)
                self._save_rejections(db, rejections)
                return fresh
        except OperationalError as error:
            raise StoreBusy(_line(error)) from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise StoreBusy(_line(error)) from error
            raise BadRow(_line(error)) from error
        except (SQLAlchemyError, OverflowError, UnicodeError) as error:
            raise BadRow(_line(error)) from error

    def _save_alerts(self, db: Connection, arrivals: Sequence[Arrival]) -> Fresh:
        if not arrivals:
            return Fresh(0, 0)
        rows = [_alert_row(a) for a in arrivals]
        statement = self._insert(_alert).on_conflict_do_nothing(index_elements=["id", "seq"])
        told = statement.returning(_alert.c.id, _alert.c.seq, _alert.c.test)
        fresh = {(id, seq): test for id, seq, test in db.execute(told, rows)}
        latest: dict[str, dict[str, Any]] = {}
        counted = [a for a in arrivals if isinstance(a.message, Alert) and not a.message.test]
        for row in map(_episode_row, counted):
            if (row["id"], row["seq"]) in fresh and row["seq"] >= latest.get(row["id"], row)["seq"]:
                latest[row["id"]] = row
        if latest:
            upsert = self._insert(_episode)
            changes = {c.name: upsert.excluded[c.name] for c in _episode.c if c.name != "id"}
            newer = upsert.excluded.seq > _episode.c.seq
            db.execute(
                upsert.on_conflict_do_update(index_elements=["id"], set_=changes, where=newer), list(latest.values())
            )
        tests = sum(fresh.values())
        return Fresh(len(fresh) - tests, tests)

    def _save_statuses(self, db: Connection, arrivals: Sequence[Arrival]) -> None:
        rows: dict[str, dict[str, Any]] = {}
        for arrival in arrivals:
            if isinstance(arrival.message, tuple):
                gateway, status = arrival.message
                rows[gateway] = {**dataclasses.asdict(status), "gateway": gateway, "received_ns": arrival.received_ns}
        if rows:
            upsert = self._insert(_gateway)
            changes = {c.name: upsert.excluded[c.name] for c in _gateway.c if c.name != "gateway"}
            db.execute(upsert.on_conflict_do_update(index_elements=["gateway"], set_=changes), list(rows.values()))

    def _save_rejections(self, db: Connection, rejections: Sequence[Rejection]) -> None:
        if not rejections:
            return
        rows = [
            {
                "received_ns": r.received_ns,
                "topic": _storable(r.topic, 256),
                "reason": _storable(r.reason, 256),
                "size": len(r.payload),
                "payload": r.payload[:MAX_KEPT],
            }
            for r in rejections
        ]
        db.execute(insert(_rejected), rows)
        newest = db.scalar(select(func.max(_rejected.c.n))) or 0
        db.execute(delete(_rejected).where(_rejected.c.n <= newest - self._max_rejected))

    def purge(self, older_than_ns: int, max_bytes: int) -> int:
        """Delete some alerts received before ``older_than_ns``, or the oldest while the database is over ``max_bytes``.

        Returns how many went; few at a time, so call it again until none does.
        """
        try:
            with self._engine.begin() as db:
                oldest = select(_alert.c.n).order_by(_alert.c.n).limit(_PURGE_ROWS)
                if self._bytes(db) <= max_bytes:
                    oldest = oldest.where(_alert.c.received_ns < older_than_ns)
                gone = db.execute(delete(_alert).where(_alert.c.n.in_(oldest))).rowcount
                # An episode goes with the last of its alerts.
                since = db.scalar(select(_alert.c.received_ns).order_by(_alert.c.n).limit(1))
                db.execute(delete(_episode).where(_episode.c.received_ns < (older_than_ns if since is None else since)))
                return gone
        except SQLAlchemyError as error:
            raise StoreBusy(_line(error)) from error

    @staticmethod
    def _bytes(db: Connection) -> int:
        """What the database takes on the disk, without the pages that deletions left for reuse."""
        if db.dialect.name == "postgresql":
            return int(db.scalar(text("SELECT pg_database_size(current_database())")) or 0)
        pages, free, size = (
            int(db.scalar(text(f"PRAGMA {what}")) or 0) for what in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def alerts(self, after: int = 0, limit: int | None = None, gateway: str | None = None) -> list[StoredAlert]:
        """The first ``limit`` alerts that came after number ``after``, in order of arrival."""
        query = select(_alert.c.n, _alert.c.received_ns, _alert.c.document).where(_alert.c.n > after)
        if gateway is not None:
            query = query.where(_alert.c.gateway == gateway)
        return [StoredAlert(*row) for row in self._read(query.order_by(_alert.c.n).limit(limit))]

    def before_last(self, count: int, gateway: str | None = None) -> int:
        """The number after which the last ``count`` alerts come."""
        query = select(_alert.c.n).order_by(_alert.c.n.desc()).offset(count).limit(1)
        if gateway is not None:
            query = query.where(_alert.c.gateway == gateway)
        return next((int(row.n) for row in self._read(query)), 0)

    def episodes(self) -> list[dict[str, Any]]:
        """Every episode in its last known state, by the time of its first message; none of tests."""
        return [dict(row._mapping) for row in self._read(select(_episode).order_by(_episode.c.id))]

    def gateways(self) -> dict[str, str]:
        """What each gateway last said of itself, or its last will: online, offline or stopped."""
        return {row.gateway: row.state for row in self._read(select(_gateway))}

    def rejections(self) -> list[Rejection]:
        """The rejected messages that are kept, their payloads cut to MAX_KEPT bytes."""
        rows = self._read(select(_rejected).order_by(_rejected.c.n))
        return [Rejection(row.topic, row.payload, row.reason, row.received_ns) for row in rows]

    def _read(self, query: Any) -> Iterator[Any]:
        try:
            with self._engine.connect() as db:
                yield from db.execute(query).fetchall()
        except SQLAlchemyError as error:
            raise StoreError(_line(error)) from error

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Readers beside the writer (WAL), and a commit that is on the disk before the broker is told (FULL)."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _alert_row(arrival: Arrival) -> dict[str, Any]:
    alert = arrival.message
    assert isinstance(alert, Alert)
    return {
        "id": alert.id,
        "seq": alert.seq,
        "gateway": alert.gateway,
        "received_ns": arrival.received_ns,
        "t_ns": alert.t_ns,
        "state": alert.state,
        "class": alert.class_name,
        "severity": CLASSES[alert.class_name].severity,
        "document": arrival.document,
        "test": alert.test,
    }


def _episode_row(arrival: Arrival) -> dict[str, Any]:
    alert = arrival.message
    assert isinstance(alert, Alert)
    return {
        "id": alert.id,
        "seq": alert.seq,
        "gateway": alert.gateway,
        "site": alert.site,
        "received_ns": arrival.received_ns,
        "state": alert.state,
        "role": alert.role,
        **dataclasses.asdict(alert.device),
        "class": alert.class_name,
        "severity": CLASSES[alert.class_name].severity,
        "confidence": alert.confidence,
        "first_ns": alert.first_ns,
        "last_ns": alert.last_ns,
        "duration_s": alert.duration_s,
        "count": alert.count,
        "packets": alert.packets,
        "bytes": alert.bytes,
        "model": alert.model.version,
        "generated": alert.model.generated,
    }


def _storable(words: str, most: int) -> str:
    """Words of unknown origin as any database takes them."""
    return words.encode("utf-8", "replace").decode().replace("\0", "?")[:most]


def _line(error: BaseException) -> str:
    """The database's own words, without SQLAlchemy's statement and link."""
    cause = getattr(error, "orig", None) or error
    return (str(cause) or type(cause).__name__).splitlines()[0][:200]
