"""The tables of the collector's database, and how those of an older version are brought up to date.

SQLite and PostgreSQL have the same tables. `collector.store` writes them, `collector.queries` reads lists from them.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    inspect,
    text,
)

_Number = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts rows only with INTEGER PRIMARY KEY

METADATA = MetaData()

ALERT = Table(
    "alert",
    METADATA,
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
EPISODE = Table(
    "episode",
    METADATA,
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
GATEWAY = Table(
    "gateway",
    METADATA,
    Column("gateway", String(63), primary_key=True),
    Column("state", String(7), nullable=False),
    Column("boot", String(36), nullable=False),
    Column("agent", String(20), nullable=False),
    Column("t_ns", BigInteger, nullable=False),  # the gateway's time
    Column("received_ns", BigInteger, nullable=False),
)
REJECTED = Table(
    "rejected",
    METADATA,
    Column("n", _Number, primary_key=True, autoincrement=True),  # never used twice: the highest is the count of all
    Column("received_ns", BigInteger, nullable=False),
    Column("topic", String(256), nullable=False),
    Column("reason", String(256), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),  # its first MAX_KEPT bytes
    sqlite_autoincrement=True,
)
DOCUMENT = Table(
    "document",
    METADATA,
    Column("gateway", String(63), primary_key=True),
    Column("leaf", String(16), primary_key=True),  # of its topic: "health", "devices"
    Column("received_ns", BigInteger, nullable=False),  # when the gateway has sent it, as far as that is known
    Column("content", Text, nullable=False),  # as it came
)
"""The newest retained document of each gateway and leaf."""

TESTS = Index("alert_test", ALERT.c.n, sqlite_where=ALERT.c.test, postgresql_where=ALERT.c.test)
"""The few alerts that were sent by hand, which have no row of `episode`."""


def make(engine: Engine) -> None:
    """Make the tables that are missing, and the columns and indexes that an older version's tables lack."""
    METADATA.create_all(engine)
    if not has_tests(engine):
        with engine.begin() as db:
            db.execute(text("ALTER TABLE alert ADD COLUMN test BOOLEAN NOT NULL DEFAULT FALSE"))
    TESTS.create(engine, checkfirst=True)


def has_tests(engine: Engine) -> bool:
    """Return True if the table of alerts says which of them are tests."""
    return "test" in {column["name"] for column in inspect(engine).get_columns("alert")}


def has_documents(engine: Engine) -> bool:
    """Return True if there is a table of documents."""
    return inspect(engine).has_table(DOCUMENT.name)
