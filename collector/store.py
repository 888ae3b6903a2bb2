"""Alerts, episodes, gateways and rejected messages in a database; the only user of SQLAlchemy.

SQLite by default, PostgreSQL by URL: both know INSERT ... ON CONFLICT, which makes a message that arrives twice
harmless. Everything in one `AlertStore.save` is committed together or not at all, so the caller may acknowledge all of
it when it returns. Which messages are accepted is `collector.ingest`'s decision.
"""

import dataclasses
import secrets
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
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InternalError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)

from edge_agent.contract.alert import CLASSES, Alert
from edge_agent.contract.messages import Status

MAX_KEPT = 4096  # bytes of a rejected payload that are stored
_PURGE_ROWS = 5_000  # rows a purge deletes in one transaction, so that it never holds up the alerts for long
_SAMPLE_ROWS = 1_000  # newest alerts, from whose size that of all is estimated (PostgreSQL)
_ROW_BYTES = 400  # of a row beside its document, entries in indexes included (PostgreSQL)

_Number = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts rows only with INTEGER PRIMARY KEY

_metadata = MetaData()

_alert = Table(
    "alert",
    _metadata,
    Column("n", _Number, primary_key=True, autoincrement=True),  # order of arrival; what `--follow` follows
    Column("id", String(36), nullable=False),  # the episode
    Column("seq", BigInteger, nullable=False),
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
    Column("seq", BigInteger, nullable=False),  # of the message that the rest is from: the highest received
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
_setting = Table(
    "setting",
    MetaData(),  # made with a new database, else when it is needed: an older one may be read-only
    Column("name", String(40), primary_key=True),
    Column("value", String(200), nullable=False),
)

_CLIENT_ID = "botwatch-collector"
"""The client id of every collector before each database had its own."""


class StoreError(Exception):
    """The database cannot be used; the message is its own reason, in one line."""


class StoreBusy(StoreError):
    """The database cannot be used now (locked, full, read-only, not reachable), but the same may work later."""


class BadRow(StoreError):
    """The database refuses a row and would refuse it again."""


@dataclass(frozen=True)
class Arrival:
    """A message that was accepted: its content, its time of arrival (Unix ns), and an alert's text."""

    message: Alert | tuple[str, Status]  # a status with its gateway
    received_ns: int
    document: str = ""


@dataclass(frozen=True)
class Rejection:
    """A message that was not accepted, and the reason."""

    topic: str
    payload: bytes
    reason: str
    received_ns: int


class Fresh(NamedTuple):
    """Numbers of new alerts in a batch; ``tests`` were sent by hand and are not among ``alerts``."""

    alerts: int
    tests: int


@dataclass(frozen=True)
class StoredAlert:
    """One row of the alert table: its number in order of arrival, its time of arrival (Unix ns), the EVE document."""

    n: int
    received_ns: int
    document: str


def database_url(db: str) -> str:
    """Return ``db`` if it is an SQLAlchemy URL, else the SQLite URL of the file it names."""
    return db if "://" in db else f"sqlite:///{db}"


class AlertStore:
    """The database at ``url``; tables are made when missing, unless ``create`` is False.

    At most ``max_rejected`` rejected messages are stored, the newest. Raises StoreError when it cannot be opened.
    """

    def __init__(self, url: str, *, create: bool = True, max_rejected: int = 1_000) -> None:
        self._max_rejected = max_rejected
        try:
            parsed = make_url(database_url(url))
        except (ArgumentError, ValueError):  # whose message may have a part of the password
            text = "db: is not a file or a database URL; special characters in a password are written as %XX"
            raise StoreError(text) from None
        shown = parsed.difference_update_query(("password", "sslpassword")).render_as_string(hide_password=True)
        backend = parsed.get_backend_name()
        if backend not in ("sqlite", "postgresql"):
            raise StoreError(f"db {shown}: SQLite and PostgreSQL are supported")
        if not create and backend == "sqlite" and not Path(parsed.database or "").is_file():
            raise StoreError(f"db {shown}: no such file")  # SQLite would make an empty one
        self._is_postgresql = backend == "postgresql"
        if parsed.drivername == "postgresql":  # without a driver SQLAlchemy means psycopg2
            parsed = parsed.set(drivername="postgresql+psycopg")
        try:
            self._engine = create_engine(parsed)
            self._insert = postgresql.insert if self._is_postgresql else sqlite.insert
            if not self._is_postgresql:
                event.listen(self._engine, "connect", _prepare_sqlite)
            if create:
                if not inspect(self._engine).has_table(_alert.name):
                    self._make_client_id(f"{_CLIENT_ID}-{secrets.token_hex(4)}")
                _metadata.create_all(self._engine)
                self._update()
            else:
                with self._engine.connect() as db:
                    db.execute(select(_alert.c.n).limit(1))
        except ImportError as error:
            raise StoreError(f"db {shown}: {_line(error)}; is the extra botwatch[postgresql] installed?") from error
        except SQLAlchemyError as error:
            raise StoreError(f"db {shown}: {_line(error)}") from error

    def _update(self) -> None:
        """Add the columns that an older version's tables lack."""
        if "test" not in {column["name"] for column in inspect(self._engine).get_columns("alert")}:
            with self._engine.begin() as db:
                db.execute(text("ALTER TABLE alert ADD COLUMN test BOOLEAN NOT NULL DEFAULT FALSE"))

    def client_id(self) -> str:
        """Return the id by which brokers know the collector of this database: made with it, at random, and stored.

        A database that was made before there were such ids keeps the one that all collectors had, under which the
        broker may hold alerts for it. Raises StoreError.
        """
        try:
            if not inspect(self._engine).has_table(_setting.name):
                self._make_client_id(_CLIENT_ID)
            with self._engine.connect() as db:
                return db.scalar(select(_setting.c.value).where(_setting.c.name == "client_id")) or _CLIENT_ID
        except DBAPIError as error:
            if self._may_pass(error):  # it cannot be written now, and only one that is older has to be
                return _CLIENT_ID
            raise StoreError(_line(error)) from error
        except SQLAlchemyError as error:
            raise StoreError(_line(error)) from error

    def _make_client_id(self, new: str) -> None:
        """Store the id, unless another process was first."""
        with self._engine.begin() as db:
            _setting.create(db, checkfirst=True)
            row = {"name": "client_id", "value": new}
            db.execute(self._insert(_setting).on_conflict_do_nothing(index_elements=["name"]), row)

    def save(self, arrivals: Sequence[Arrival], rejections: Sequence[Rejection] = ()) -> Fresh:
        """Commit all of it and return how many alerts were new; the others are repeats.

        Raises StoreBusy or BadRow, and then nothing was saved.
        """
        try:
            with self._engine.begin() as db:
                fresh = self._save_alerts(db, [a for a in arrivals if isinstance(a.message, Alert)])
                self._save_statuses(db, arrivals)
                self._save_rejections(db, rejections)
                return fresh
        except DBAPIError as error:
            raise (StoreBusy if self._may_pass(error) else BadRow)(_line(error)) from error
        except (SQLAlchemyError, OverflowError, UnicodeError) as error:
            raise BadRow(_line(error)) from error

    def _may_pass(self, error: DBAPIError) -> bool:
        """Return True if the database is to blame and not a row.

        PostgreSQL reports a database that is read-only as InternalError, and one whose tables or rights somebody is
        changing as ProgrammingError; SQLite reports both as OperationalError, and rows as ProgrammingError, too.
        """
        busy = (OperationalError, InternalError, *((ProgrammingError,) if self._is_postgresql else ()))
        return error.connection_invalidated or isinstance(error, busy)

    def _save_alerts(self, db: Connection, arrivals: Sequence[Arrival]) -> Fresh:
        if not arrivals:
            return Fresh(0, 0)
        rows = [_alert_row(a) for a in arrivals]
        statement = (
            self._insert(_alert)
            .on_conflict_do_nothing(index_elements=["id", "seq"])
            .returning(_alert.c.id, _alert.c.seq, _alert.c.test)
        )
        fresh = {(id, seq): test for id, seq, test in db.execute(statement, rows)}
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
                row = {**dataclasses.asdict(status), "gateway": gateway, "received_ns": arrival.received_ns}
                rows[gateway] = _without_nul(row)
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

        Returns how many were deleted; few at a time, so call it again until that is 0.
        """
        try:
            with self._engine.begin() as db:
                oldest = select(_alert.c.n).order_by(_alert.c.n).limit(_PURGE_ROWS)
                if self._bytes(db, max_bytes) <= max_bytes:
                    oldest = oldest.where(_alert.c.received_ns < older_than_ns)
                deleted = db.execute(delete(_alert).where(_alert.c.n.in_(oldest))).rowcount
                # An episode goes with the last of its alerts.
                since = db.scalar(select(_alert.c.received_ns).order_by(_alert.c.n).limit(1))
                db.execute(delete(_episode).where(_episode.c.received_ns < (older_than_ns if since is None else since)))
                return deleted
        except SQLAlchemyError as error:
            raise StoreBusy(_line(error)) from error

    def _bytes(self, db: Connection, enough: int) -> int:
        """Return the bytes in use on the disk, without the space that deletions left for reuse.

        PostgreSQL does not know the latter: beyond ``enough`` bytes in all, what the alerts take is estimated.
        """
        if not self._is_postgresql:
            pages, free, size = (
                int(db.scalar(text(f"PRAGMA {name}")) or 0) for name in ("page_count", "freelist_count", "page_size")
            )
            return (pages - free) * size
        size = int(db.scalar(text("SELECT pg_database_size(current_database())")) or 0)
        if size <= enough:
            return size
        newest = select(_alert.c.document).order_by(_alert.c.n.desc()).limit(_SAMPLE_ROWS).subquery()
        document = float(db.scalar(select(func.avg(func.pg_column_size(newest.c.document)))) or 0.0)
        rows = int(db.scalar(select(func.count()).select_from(_alert)) or 0)
        return int(rows * (document + _ROW_BYTES))

    def alerts(self, after: int = 0, limit: int | None = None, gateway: str | None = None) -> list[StoredAlert]:
        """Return the first ``limit`` alerts that came after number ``after``, in order of arrival."""
        query = select(_alert.c.n, _alert.c.received_ns, _alert.c.document).where(_alert.c.n > after)
        if gateway is not None:
            query = query.where(_alert.c.gateway == gateway)
        return [StoredAlert(*row) for row in self._read(query.order_by(_alert.c.n).limit(limit))]

    def before_last(self, count: int, gateway: str | None = None) -> int:
        """Return the number after which the last ``count`` alerts come."""
        query = select(_alert.c.n).order_by(_alert.c.n.desc()).offset(count).limit(1)
        if gateway is not None:
            query = query.where(_alert.c.gateway == gateway)
        return next((int(row.n) for row in self._read(query)), 0)

    def episodes(self, after: str = "", limit: int | None = None) -> list[dict[str, Any]]:
        """Return the first ``limit`` episodes after the one with id ``after``, each in its last known state.

        They are in order of their ids, which is that of their first messages. Tests make no episodes.
        """
        query = select(_episode).where(_episode.c.id > after).order_by(_episode.c.id).limit(limit)
        return [dict(row._mapping) for row in self._read(query)]

    def gateways(self) -> dict[str, str]:
        """Return the last known state of each gateway, from itself or its last will: online, offline or stopped."""
        return {row.gateway: row.state for row in self._read(select(_gateway))}

    def rejections(self) -> list[Rejection]:
        """Return the rejected messages that are stored, oldest first, their payloads cut to MAX_KEPT bytes."""
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
    """Allow readers beside the writer (WAL), and have a commit on the disk before it is acknowledged (FULL)."""
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
    row = {
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
    return _without_nul(row)


def _without_nul(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with each character NUL, which PostgreSQL refuses in texts, as a question mark."""
    return {name: value.replace("\0", "?") if isinstance(value, str) else value for name, value in row.items()}


def _storable(text: str, most: int) -> str:
    """Return text of unknown origin in a form that any database takes, cut to ``most`` characters."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")[:most]


def _line(error: BaseException) -> str:
    """Return the database's own message, without SQLAlchemy's statement and link."""
    cause = getattr(error, "orig", None) or error
    return (str(cause) or type(cause).__name__).splitlines()[0][:200]
