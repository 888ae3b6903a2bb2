-- A state file of version 5, as the agent wrote it.
BEGIN TRANSACTION;
CREATE TABLE allow (
    n INTEGER PRIMARY KEY AUTOINCREMENT,   -- what people call the entry
    entry TEXT NOT NULL,                   -- JSON
    hits INTEGER NOT NULL DEFAULT 0,       -- suppressed episodes
    last_s REAL                            -- packet time of the last
);
INSERT INTO "allow" VALUES(1,'{"kind":"mute"}',0,NULL);
CREATE TABLE command (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    origin TEXT NOT NULL,
    id TEXT NOT NULL,
    verb TEXT NOT NULL,
    document BLOB NOT NULL,
    reply BLOB,                            -- NULL: waits
    UNIQUE (origin, id)
);
INSERT INTO "command" VALUES(1,'local','1a.2b','status',X'7B7D',NULL);
CREATE TABLE document (
    kind TEXT PRIMARY KEY,                 -- as the leaf of its topic: "devices"
    written_s REAL NOT NULL,
    payload BLOB NOT NULL                  -- JSON
);
INSERT INTO "document" VALUES('devices',1.0,X'7B2264657669636573223A5B5D7D');
CREATE TABLE episode (
    id TEXT PRIMARY KEY,
    seen_s REAL NOT NULL,                  -- wall clock, Unix seconds
    about TEXT NOT NULL                    -- JSON
);
INSERT INTO "episode" VALUES('01936d2e-7b1c-7c3e-9f10-0c5a7c1e9a44',1.0,'{"device":"02:00:00:00:00:01","classes":["mirai.scan"]}');
CREATE TABLE learnt (
    model TEXT NOT NULL,                   -- SHA-256 of the bundle's manifest
    mac INTEGER NOT NULL,
    saved_s REAL NOT NULL,                 -- wall clock, Unix seconds
    record BLOB NOT NULL,
    PRIMARY KEY (model, mac)
);
INSERT INTO "learnt" VALUES('m',1,1.7958431930301301479e+09,X'72');
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice, so a late acknowledgement cannot hit another row
    put_s REAL NOT NULL,                   -- wall clock, Unix seconds
    topic TEXT NOT NULL,
    payload BLOB NOT NULL,
    droppable INTEGER NOT NULL,            -- an update: the next one repeats all of it
    acked_s REAL                           -- NULL: waits
);
INSERT INTO "outbox" VALUES(1,1.79584319301696562765e+09,'botwatch/v1/gw/gw-001/alert',X'7B226E223A307D',0,1.79584319302083444602e+09);
INSERT INTO "outbox" VALUES(2,1.79584319301696562765e+09,'botwatch/v1/gw/gw-001/alert',X'7B226E223A317D',0,1.79584319302083444602e+09);
INSERT INTO "outbox" VALUES(3,1.79584319301696562765e+09,'botwatch/v1/gw/gw-001/alert',X'7B226E223A327D',1,NULL);
INSERT INTO "outbox" VALUES(4,1.79584319301696562765e+09,'botwatch/v1/gw/gw-001/alert',X'7B226E223A337D',0,NULL);
INSERT INTO "outbox" VALUES(5,1.79584319301696562765e+09,'botwatch/v1/gw/gw-001/alert',X'7B226E223A347D',0,NULL);
INSERT INTO "outbox" VALUES(6,1.79584319301696562765e+09,'botwatch/v1/gw/gw-001/alert',X'7B226E223A357D',1,NULL);
CREATE TABLE outbox_total (acked INTEGER PRIMARY KEY, rows INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO "outbox_total" VALUES(0,4,28);
INSERT INTO "outbox_total" VALUES(1,2,14);
CREATE TABLE run (
    mac INTEGER NOT NULL,
    kind TEXT NOT NULL,                    -- "loud" or "even"
    minute INTEGER NOT NULL,               -- since the epoch
    packed BLOB NOT NULL,
    PRIMARY KEY (mac, kind, minute)
) WITHOUT ROWID;
INSERT INTO "run" VALUES(1,'loud',5,X'70');
CREATE TABLE unfinished (
    story TEXT PRIMARY KEY,                -- the id of an episode
    topic TEXT NOT NULL,
    payload BLOB NOT NULL                  -- the last message on it
);
INSERT INTO "unfinished" VALUES('01936d2e-7b1c-7c3e-9f10-0c5a7c1e9a44','botwatch/v1/gw/gw-001/alert',X'7B226E223A357D');
CREATE INDEX outbox_waiting ON outbox (id) WHERE acked_s IS NULL;
CREATE INDEX outbox_droppable ON outbox (id) WHERE acked_s IS NULL AND droppable;
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
CREATE INDEX command_waiting ON command (n) WHERE reply IS NULL;
CREATE INDEX outbox_acked ON outbox (acked_s) WHERE acked_s IS NOT NULL;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('outbox',6);
INSERT INTO "sqlite_sequence" VALUES('allow',1);
INSERT INTO "sqlite_sequence" VALUES('command',1);
PRAGMA user_version=5;
COMMIT;
