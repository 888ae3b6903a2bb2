"""Alerts, episodes, gateways and rejected messages in a database; with its tables and queries the user of SQLAlchemy.

SQLite by default, PostgreSQL by URL: both know INSERT ... ON CONFLICT, which makes a message that arrives twice
harmless. Everything in one `AlertStore.save` is committed together or not at all, so the caller may acknowledge all of
it when it returns. Which messages are accepted is `collector.ingest`'s decision.
"""

import dataclasses
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, create_engine, delete, event, func, insert, inspect, select, text
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

from collector import queries, tables
from collector.queries import Wanted
from collector.tables import ALERT, DOCUMENT, EPISODE, GATEWAY, PRESENCE, REJECTED, SETTING, TEST
from edge_agent.contract.alert import CLASSES, Alert
from edge_agent.contract.messages import Status

MAX_KEPT = 4096  # bytes of a rejected payload that are stored
_PURGE_ROWS = 5_000  # rows a purge deletes in one transaction, so that it never holds up the alerts for long
_SAMPLE_ROWS = 1_000  # newest alerts, from whose size that of all is estimated (PostgreSQL)
_ROW_BYTES = 400  # of a row beside its document, entries in indexes included (PostgreSQL)

_CLIENT_ID = "botwatch-collector"
"""The client id of every collector before each database had its own."""


class StoreError(Exception):
    """The database cannot be used; the message is its own reason, in one line."""


class StoreBusy(StoreError):
    """The database cannot be used now (locked, full, read-only, not reachable), but the same may work later."""


class BadRow(StoreError):
    """The database refuses a row and would refuse it again."""


@dataclass(frozen=True)
class GatewayDocument:
    """A retained document of a gateway, with its time (Unix ns); with no ``content`` the gateway's is withdrawn.

    A withdrawn "status" means that the gateway is to be forgotten.
    """

    gateway: str
    leaf: str  # "health", "devices"
    t_ns: int = 0
    content: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Arrival:
    """A message that was accepted: its content, its time of arrival (Unix ns), and the text of an alert or document.

    With ``retained`` the broker had kept it, for a time that is not known.
    """

    message: Alert | tuple[str, Status] | GatewayDocument  # a status with its gateway
    received_ns: int
    document: str = ""
    retained: bool = False


@dataclass(frozen=True)
class Rejection:
    """A message that was not accepted, and the reason."""

    topic: str
    payload: bytes
    reason: str
    received_ns: int


class Fresh(NamedTuple):
    """Numbers of new alerts in a batch; ``tests`` were sent by hand and are not among ``alerts``.

    ``keys`` are the (id, seq) of both.
    """

    alerts: int
    tests: int
    keys: frozenset[tuple[str, int]] = frozenset()


class Presence(NamedTuple):
    """A gateway (``mac`` is "") or a device behind it, and when a message about it came last (Unix ns)."""

    gateway: str
    mac: str
    name: str
    seen_ns: int


@dataclass(frozen=True)
class StoredAlert:
    """One row of the alert table: its number in order of arrival, its time of arrival (Unix ns), the EVE document."""

    n: int
    received_ns: int
    document: str


def database_url(db: str) -> str:
    """Return ``db`` if it is an SQLAlchemy URL, else the SQLite URL of the file it names. StoreError for no text."""
    try:
        db.encode()
    except UnicodeEncodeError:
        raise StoreError(f"db {db!r}: is not UTF-8 text") from None
    return db if "://" in db else f"sqlite:///{db}"


class AlertStore:
    """The database at ``url``; tables are made when missing, unless ``create`` is False.

    At most ``max_rejected`` rejected messages are stored, the newest. Raises StoreError when it cannot be opened.

    A file that somebody removes or moves away meanwhile is noticed: what was written into it last is refused as
    StoreBusy, and the next goes into a new file. A reader, which has ``create`` False, raises StoreError.
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
        if backend == "sqlite":
            shown = parsed.database or shown  # as people give it: the path of the file
        if backend not in ("sqlite", "postgresql"):
            raise StoreError(f"db {shown}: SQLite and PostgreSQL are supported")
        if not create and backend == "sqlite" and not Path(parsed.database or "").is_file():
            raise StoreError(f"db {shown}: no such file")  # SQLite would make an empty one
        self._is_postgresql, self._create = backend == "postgresql", create
        if parsed.drivername == "postgresql":  # without a driver SQLAlchemy means psycopg2
            parsed = parsed.set(drivername="postgresql+psycopg")
        try:
            self._engine = create_engine(parsed)
            self._insert = postgresql.insert if self._is_postgresql else sqlite.insert
            if not self._is_postgresql:
                event.listen(self._engine, "connect", _prepare_sqlite)
            if create:
                self._make_tables()
            else:
                with self._engine.connect() as db:
                    db.execute(select(ALERT.c.n).limit(1))
            self._path = Path(parsed.database) if backend == "sqlite" and parsed.database else None
            self._place = _place(self._path)
            self._older = not create and tables.missing(self._engine)  # nothing is changed for a reader
        except ImportError as error:
            raise StoreError(f"db {shown}: {_line(error)}; is the extra botwatch[postgresql] installed?") from error
        except SQLAlchemyError as error:
            raise StoreError(f"db {shown}: {_line(error)}") from error

    def _make_tables(self) -> None:
        if not inspect(self._engine).has_table(ALERT.name):
            self._make_client_id(f"{_CLIENT_ID}-{secrets.token_hex(4)}")
        tables.make(self._engine)

    def _gone(self) -> str:
        """Return that the file of the database is no longer in its place, "" if it is."""
        if self._place is None or self._place == _place(self._path):
            return ""
        return f"{self._path} was removed or replaced while it was in use"

    def client_id(self) -> str:
        """Return the id by which brokers know the collector of this database: made with it, at random, and stored.

        A database that was made before there were such ids keeps the one that all collectors had, under which the
        broker may hold alerts for it. Raises StoreError.
        """
        try:
            if not inspect(self._engine).has_table(SETTING.name):
                self._make_client_id(_CLIENT_ID)
            with self._engine.connect() as db:
                return db.scalar(select(SETTING.c.value).where(SETTING.c.name == "client_id")) or _CLIENT_ID
        except DBAPIError as error:
            if self._may_pass(error):  # it cannot be written now, and only one that is older has to be
                return _CLIENT_ID
            raise StoreError(_line(error)) from error
        except SQLAlchemyError as error:
            raise StoreError(_line(error)) from error

    def _make_client_id(self, new: str) -> None:
        """Store the id, unless another process was first."""
        with self._engine.begin() as db:
            SETTING.create(db, checkfirst=True)
            row = {"name": "client_id", "value": new}
            db.execute(self._insert(SETTING).on_conflict_do_nothing(index_elements=["name"]), row)

    def save(self, arrivals: Sequence[Arrival], rejections: Sequence[Rejection] = ()) -> Fresh:
        """Commit all of it and return how many alerts were new; the others are repeats.

        Raises StoreBusy or BadRow, and then nothing was saved.
        """
        try:
            if gone := self._gone():
                self._engine.dispose()
                self._make_tables()
                self._place = _place(self._path)
                raise StoreBusy(f"{gone}; a new one is begun")
            with self._engine.begin() as db:
                fresh = self._save_alerts(db, [a for a in arrivals if isinstance(a.message, Alert)])
                self._save_statuses(db, arrivals)
                self._save_documents(db, arrivals)
                self._save_rejections(db, rejections)
            if gone := self._gone():
                raise StoreBusy(gone)
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
            self._insert(ALERT)
            .on_conflict_do_nothing(index_elements=["id", "seq"])
            .returning(ALERT.c.id, ALERT.c.seq, ALERT.c.test)
        )
        fresh = {(id, seq): test for id, seq, test in db.execute(statement, rows)}
        latest: dict[str, dict[str, Any]] = {}
        counted = [a for a in arrivals if isinstance(a.message, Alert) and not a.message.test]
        for row in map(_episode_row, counted):
            if (row["id"], row["seq"]) in fresh and row["seq"] >= latest.get(row["id"], row)["seq"]:
                latest[row["id"]] = row
        if latest:
            upsert = self._insert(EPISODE)
            changes = {c.name: upsert.excluded[c.name] for c in EPISODE.c if c.name != "id"}
            newer = upsert.excluded.seq > EPISODE.c.seq
            db.execute(
                upsert.on_conflict_do_update(index_elements=["id"], set_=changes, where=newer), list(latest.values())
            )
        hands = [row for row in rows if row["test"] and (row["id"], row["seq"]) in fresh]
        if hands:
            self._save_tests(db, hands)
        tests = sum(fresh.values())
        return Fresh(len(fresh) - tests, tests, frozenset(fresh))

    def _save_tests(self, db: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        upsert = self._insert(TEST)
        changes = {name: upsert.excluded[name] for name in ("seq", "received_ns")}
        for row in rows:
            values = {column.name: row[column.name] for column in TEST.c}
            newer = upsert.excluded.seq > TEST.c.seq
            db.execute(upsert.on_conflict_do_update(index_elements=["id"], set_=changes, where=newer), [values])

    def _save_statuses(self, db: Connection, arrivals: Sequence[Arrival]) -> None:
        newest = {a.message[0]: a for a in arrivals if isinstance(a.message, tuple)}
        for gateway, arrival in newest.items():
            assert isinstance(arrival.message, tuple)
            status = dataclasses.asdict(arrival.message[1])
            upsert = self._insert(GATEWAY)
            changes = {c.name: upsert.excluded[c.name] for c in GATEWAY.c if c.name != "gateway"}
            again = and_(*(GATEWAY.c[name] == upsert.excluded[name] for name in status))
            row = _without_nul({**status, "gateway": gateway, "received_ns": arrival.received_ns})
            where = ~again if arrival.retained else None  # the broker has kept it: no sign of life
            db.execute(upsert.on_conflict_do_update(index_elements=["gateway"], set_=changes, where=where), [row])

    def _save_documents(self, db: Connection, arrivals: Sequence[Arrival]) -> None:
        newest: dict[tuple[str, str], Arrival] = {}
        for arrival in arrivals:
            if isinstance(arrival.message, GatewayDocument):
                newest[arrival.message.gateway, arrival.message.leaf] = arrival
        for (gateway, leaf), arrival in newest.items():
            message = arrival.message
            assert isinstance(message, GatewayDocument)
            if message.content is None:
                which = DOCUMENT.c.gateway == gateway
                db.execute(delete(DOCUMENT).where(which if leaf == "status" else which & (DOCUMENT.c.leaf == leaf)))
                if leaf == "status":
                    db.execute(delete(GATEWAY).where(GATEWAY.c.gateway == gateway))
                continue
            sent_ns = min(message.t_ns, arrival.received_ns) if arrival.retained else arrival.received_ns
            upsert = self._insert(DOCUMENT)
            changes = {name: upsert.excluded[name] for name in ("received_ns", "content")}
            # The broker sends a document that it has kept at each new connection: that is no sign of life.
            changed = DOCUMENT.c.content != upsert.excluded.content if arrival.retained else None
            row = {"gateway": gateway, "leaf": leaf, "received_ns": sent_ns, "content": arrival.document}
            db.execute(
                upsert.on_conflict_do_update(index_elements=["gateway", "leaf"], set_=changes, where=changed), [row]
            )

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
        db.execute(insert(REJECTED), rows)
        newest = db.scalar(select(func.max(REJECTED.c.n))) or 0
        db.execute(delete(REJECTED).where(REJECTED.c.n <= newest - self._max_rejected))

    def purge(self, older_than_ns: int, max_bytes: int) -> int:
        """Delete some alerts received before ``older_than_ns``, or the oldest while the database is over ``max_bytes``.

        Returns how many were deleted; few at a time, so call it again until that is 0.
        """
        try:
            with self._engine.begin() as db:
                oldest = select(ALERT.c.n).order_by(ALERT.c.n).limit(_PURGE_ROWS)
                if self._bytes(db, max_bytes) <= max_bytes:
                    oldest = oldest.where(ALERT.c.received_ns < older_than_ns)
                deleted = db.execute(delete(ALERT).where(ALERT.c.n.in_(oldest))).rowcount
                # An episode goes with the last of its alerts.
                since = db.scalar(select(ALERT.c.received_ns).order_by(ALERT.c.n).limit(1))
                for table in (EPISODE, TEST):
                    gone = table.c.received_ns < (older_than_ns if since is None else since)
                    db.execute(delete(table).where(gone))
                db.execute(delete(DOCUMENT).where(DOCUMENT.c.received_ns < older_than_ns))
                silent = GATEWAY.c.received_ns < older_than_ns, GATEWAY.c.gateway.not_in(select(DOCUMENT.c.gateway))
                db.execute(delete(GATEWAY).where(*silent, GATEWAY.c.state != "online"))
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
        newest = select(ALERT.c.document).order_by(ALERT.c.n.desc()).limit(_SAMPLE_ROWS).subquery()
        document = float(db.scalar(select(func.avg(func.pg_column_size(newest.c.document)))) or 0.0)
        rows = int(db.scalar(select(func.count()).select_from(ALERT)) or 0)
        return int(rows * (document + _ROW_BYTES))

    def alerts(
        self, after: int = 0, limit: int | None = None, wanted: Wanted | None = None, *, newest: bool = False
    ) -> list[StoredAlert]:
        """Return the first ``limit`` alerts that came after number ``after``, in order of arrival.

        With ``newest`` they are only those in which an episode or a test is in its newest state.
        """
        query = queries.alerts(self._numbers(wanted, newest), after, limit)
        return [StoredAlert(*row) for row in self._read(query)]

    def before_last(self, count: int, wanted: Wanted | None = None, *, newest: bool = False) -> int:
        """Return the number after which the last ``count`` of these alerts come."""
        query = queries.before_last(self._numbers(wanted, newest), count)
        return next((int(row.n) for row in self._read(query)), 0)

    def _numbers(self, wanted: Wanted | None, newest: bool) -> Any:
        wanted = wanted or Wanted()
        return wanted.states(not self._older) if newest else wanted.messages()

    def newest_number(self) -> int:
        """Return the number of the newest alert; 0 if there is none."""
        return next((int(row[0] or 0) for row in self._read(select(func.max(ALERT.c.n)))), 0)

    def last_number(self) -> int:
        """Return the highest number that an alert has ever had, also if that alert has been deleted."""
        if self._is_postgresql:
            query = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM alert_n_seq"
        else:
            query = "SELECT seq FROM sqlite_sequence WHERE name = 'alert'"
        return next((int(row[0]) for row in self._read(text(query))), 0)

    def episodes(self, after: str = "", limit: int | None = None) -> list[dict[str, Any]]:
        """Return the first ``limit`` episodes after the one with id ``after``, each in its last known state.

        They are in order of their ids, which is that of their first messages. Tests make no episodes.
        """
        query = select(EPISODE).where(EPISODE.c.id > after).order_by(EPISODE.c.id).limit(limit)
        return [dict(row._mapping) for row in self._read(query)]

    def open_episodes(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest ``limit`` episodes that have not ended, oldest first."""
        query = select(EPISODE).where(EPISODE.c.state != "end").order_by(EPISODE.c.id.desc()).limit(limit)
        return [dict(row._mapping) for row in self._read(query)][::-1]

    def latest(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return these episodes, each in its last known state; fewer if some are not stored."""
        return [dict(row._mapping) for row in self._read(select(EPISODE).where(EPISODE.c.id.in_(ids)))] if ids else []

    def presences(self) -> list[Presence]:
        """Return the gateways and devices that are remembered, in the order of their names and MACs."""
        query = select(PRESENCE).order_by(PRESENCE.c.gateway, PRESENCE.c.mac)
        return [Presence(*row) for row in self._read(query)]

    def remember(self, present: Sequence[Presence], older_than_ns: int = 0) -> None:
        """Remember gateways and devices, and forget those that were seen last before ``older_than_ns``."""
        try:
            with self._engine.begin() as db:
                if present:
                    upsert = self._insert(PRESENCE)
                    changes = {name: upsert.excluded[name] for name in ("name", "seen_ns")}
                    rows = [_without_nul(row._asdict()) for row in present]
                    db.execute(upsert.on_conflict_do_update(index_elements=["gateway", "mac"], set_=changes), rows)
                db.execute(delete(PRESENCE).where(PRESENCE.c.seen_ns < older_than_ns))
        except SQLAlchemyError as error:
            raise StoreBusy(_line(error)) from error

    def gateways(self) -> dict[str, str]:
        """Return the last known state of each gateway, from itself or its last will: online, offline or stopped."""
        return {row.gateway: row.state for row in self._read(select(GATEWAY))}

    def gateway_ids(self) -> list[str]:
        """Return the ids of all gateways that anything is stored of, in order."""
        return sorted(row.gateway for row in self._read(queries.gateway_ids(not self._older)))

    def sites(self) -> dict[str, str]:
        """Return the site that the newest alert of each gateway names; without a site a gateway is left out."""
        return {row.gateway: row.site for row in self._read(queries.sites()) if row.site}

    def statuses(self) -> dict[str, tuple[Status, int]]:
        """Return the newest status of each gateway, with its time of arrival (Unix ns)."""
        rows = self._read(select(GATEWAY))
        return {r.gateway: (Status(r.state, r.boot, r.agent, r.t_ns), r.received_ns) for r in rows}

    def documents(self, leaf: str) -> dict[str, tuple[dict[str, Any], int]]:
        """Return the newest document of a leaf of each gateway, with the time when it was sent (Unix ns)."""
        if self._older:
            return {}
        return {r.gateway: (json.loads(r.content), r.received_ns) for r in self._read(queries.documents(leaf))}

    def rejections(self) -> list[Rejection]:
        """Return the rejected messages that are stored, oldest first, their payloads cut to MAX_KEPT bytes."""
        rows = self._read(select(REJECTED).order_by(REJECTED.c.n))
        return [Rejection(row.topic, row.payload, row.reason, row.received_ns) for row in rows]

    def _read(self, query: Any) -> Iterator[Any]:
        if not self._create and (gone := self._gone()):
            raise StoreError(gone)
        try:
            with self._engine.connect() as db:
                yield from db.execute(query).fetchall()
        except SQLAlchemyError as error:
            raise StoreError(_line(error)) from error

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def _place(path: Path | None) -> tuple[int, int] | None:
    """Return what distinguishes a file from another one under its name; None where there is none."""
    try:
        status = path.stat() if path else None
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status else None


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
