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
    func,
    insert,
    inspect,
    select,
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
PRESENCE = Table(
    "presence",
    METADATA,
    Column("gateway", String(63), primary_key=True),
    Column("mac", String(17), primary_key=True),  # of a device behind the gateway; "" for the gateway itself
    Column("name", String(64), nullable=False),
    Column("seen_ns", BigInteger, nullable=False),
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

TEST = Table(
    "test",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("seq", BigInteger, nullable=False),  # the highest received
    Column("gateway", String(63), nullable=False),
    Column("received_ns", BigInteger, nullable=False),
    Index("test_received", "received_ns"),
)
"""The newest alert of each test that was sent by hand; they have no row of `episode`."""

SETTING = Table(
    "setting",
    MetaData(),  # made with a new database, else when it is needed: an older one may be read-only
    Column("name", String(40), primary_key=True),
    Column("value", String(200), nullable=False),
)


def make(engine: Engine) -> None:
    """Make the tables that are missing, and the columns that an older version's tables lack."""
    new = not inspect(engine).has_table(TEST.name)
    METADATA.create_all(engine)
    with engine.begin() as db:
        if "test" not in {column["name"] for column in inspect(db).get_columns("alert")}:
            db.execute(text("ALTER TABLE alert ADD COLUMN test BOOLEAN NOT NULL DEFAULT FALSE"))
        elif new:
            newest = select(ALERT.c.id, func.max(ALERT.c.seq), ALERT.c.gateway, func.max(ALERT.c.received_ns))
            sent = newest.where(ALERT.c.test).group_by(ALERT.c.id, ALERT.c.gateway)
            db.execute(insert(TEST).from_select([column.name for column in TEST.c], sent))


def missing(engine: Engine) -> bool:
    """Return True if the database is of an older version: no `make` of this one has been here."""
    return not {TEST.name, DOCUMENT.name} <= set(inspect(engine).get_table_names())
