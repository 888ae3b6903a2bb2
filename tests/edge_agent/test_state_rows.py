"""A single wrong value in the state file: its row is dropped and counted, and the agent starts with all the others."""

import json
import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.config import AgentConfig, OutboxConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract.commands import Command
from edge_agent.contract.messages import format_time
from edge_agent.delivery.alerts import Alerter
from edge_agent.delivery.outbox_table import OutboxTable
from edge_agent.detection.devices import Devices
from edge_agent.orders import order
from edge_agent.publisher import Publisher
from edge_agent.state import State
from tests.edge_agent.delivery.test_alerts import CAMERA, alerter
from tests.edge_agent.detection.test_devices import life, lived
from tests.edge_agent.test_control import MAC

TABLES = (
    "outbox",
    "outbox_total",
    "outbox_strike",
    "unfinished",
    "document",
    "allow",
    "command",
    "episode",
    "learnt",
    "run",
)

NO_UTF8 = "CAST(x'fffe80' AS TEXT)"
VALUES = (
    *("NULL", "0", "-1", "3", "65536", "1 << 62", "9e999", "-9e999", "0.5", "1e300", "''", "'x'", "'local'"),
    *(
        "'[]'",
        "'{}'",
        "'{\"a\": ['",
        "x''",
        "x'00ff'",
        "x'5b5d'",
        NO_UTF8,
        "'a' || char(0) || 'b'",
        "char(27) || '[2J'",
    ),
    *("printf('%.*c', 100000, '[')", "CAST(printf('%.*c', 100000, '[') AS BLOB)"),
)
"""SQL for values of every type, of which each column can be hit by any."""


def config(path: Path) -> AgentConfig:
    return AgentConfig(outbox=OutboxConfig(path=path))


def episodes(it: Alerter, publisher: Publisher) -> None:
    """Give the alerts of two episodes that go on, and of one that has ended."""
    for n in (1, 2):
        publisher.give(*it.consider(replace(CAMERA, device_mac=CAMERA.device_mac + n)))
    publisher.give(*it.consider(CAMERA), *it.tick(CAMERA.t_ns + 3600 * 10**9)[:1])


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """A state file with several rows in every table but those of learning, as an agent that was killed leaves it."""
    path = tmp_path_factory.mktemp("filled") / "state.sqlite"
    publisher = Publisher(config(path), controlled=True)
    episodes(alerter(), publisher)
    control, state = publisher.control, publisher.state
    for port, verb in ((22, "allow"), (23, "allow"), (None, "mute")):
        about = {"kinds": ["scan"], "reason": "r", "port": port} if port else {}
        control.execute(Command.read(verb, {"id": "x", "device": MAC, "for_s": 86_400, **about}), "local")
    for n in (1, 2):
        now = format_time(time.time_ns())
        command = json.dumps({"id": f"c{n}", "device": f"02:00:00:00:00:0{n}", "ts": now}).encode()
        assert state.command_put("local", f"c{n}", "mute", command, 9)
        state.command_done("broker", f"b{n}", "mute", b'{"id": "b"}', 9)
        state.document_put(f"kind{n}", b"{}", 1e9)
    state.document_put("devices", b'{"devices": []}', 1e9)
    outbox = OutboxTable(state)
    outbox.acked([1], time.time(), 1e9)
    assert outbox.strike(2, 1)
    state.close()
    return path


def corrupted(template: Path, path: Path, table: str, column: str, value: str) -> bool:
    """Copy a state file and change one value of one row; False where SQLite itself does not take the value there."""
    shutil.copy(template, path)
    with closing(sqlite3.connect(path)) as db:
        key = "rowid" if table != "run" else "mac, kind, minute"
        triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            db.execute(f"DROP TRIGGER {name}")
        try:
            last = f"(SELECT {key} FROM {table} ORDER BY {key} DESC LIMIT 1)"
            db.execute(f"UPDATE {table} SET {column} = {value} WHERE ({key}) = {last}")
        except sqlite3.DatabaseError:
            return False
        for _, sql in triggers:
            db.execute(sql)
        db.commit()
    return True


def columns(path: Path, table: str) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [row[1] for row in db.execute(f"PRAGMA table_info({table})")]


def rows(path: Path) -> dict[str, int]:
    with closing(sqlite3.connect(path)) as db:
        return {table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES}


@pytest.mark.parametrize("table", [t for t in TABLES if t not in ("learnt", "run")])
def test_an_agent_starts_with_any_value_in_any_field_of_its_state_file_and_loses_at_most_that_row(
    filled, tmp_path, table
):
    before, tried, dropped = rows(filled), 0, False
    for column in columns(filled, table):
        for value in VALUES:
            path = tmp_path / "state.sqlite"
            for file in tmp_path.glob("state.sqlite*"):
                file.unlink()
            if not corrupted(filled, path, table, column, value):
                continue
            tried += 1
            what = f"{table}.{column} = {value}"
            with closing(State(path)) as state:
                opened = rows(path)
                assert sum(before[t] - opened[t] for t in TABLES) <= state.damaged <= 1, what
            if opened != before and dropped:
                continue  # one such start is enough
            dropped = dropped or opened != before
            publisher = Publisher(config(path), controlled=True)
            episodes(alerter(), publisher)
            for now in (10.0, 20.0):
                publisher.control.poll(now)
            assert publisher.state.commands_waiting() == [], what
            sent: list[int] = []
            publisher.outbox.drain(lambda row, *_, sent=sent: sent.append(row) or True)
            publisher.outbox.done(sent)
            aside = publisher.outbox.aside()  # one that has ended connections, in the tables where that was changed
            assert publisher.outbox.depth() == aside <= (table == "outbox_strike"), what
            assert len(sent) >= before["outbox"] - 2 - aside, what  # the broker has taken one, another may be damaged
            status = publisher.control.execute(Command.read("status", {"id": "s"}), "local")
            json.dumps(status.document(), allow_nan=False)
            known = {entry["entry"] for entry in status.result["allowed"]}
            assert len(known & {1, 2, 3}) >= 2, what
            assert "state_damaged" in publisher.counts()
            publisher.state.close()
            assert order(config(path), "status", {})[0].error == "", what
            assert not list(tmp_path.glob("*.corrupt")), what
    assert tried > 20


def test_a_damaged_allow_is_dropped_with_a_line_and_the_others_hold(filled, tmp_path, caplog):
    """The values are of the right types: only who knows what an allow is finds them out."""
    for field, value in (
        ("expires_s", 9e15),
        ("created_s", "now"),
        ("device", "\x1b[2J"),
        ("activities", [{"kind": "scan", "port": 70_000}]),
        ("activities", [{"kind": "raid"}]),
        ("activities", []),
        ("verb", "forget"),
        ("host", "nowhere"),
        ("reason", "x" * 10_000),
    ):
        path = tmp_path / f"{field}.sqlite"
        shutil.copy(filled, path)
        with closing(sqlite3.connect(path)) as db:
            entry = json.loads(db.execute("SELECT entry FROM allow WHERE n = 1").fetchone()[0])
            db.execute("UPDATE allow SET entry = ? WHERE n = 1", (json.dumps(entry | {field: value}),))
            db.commit()
        caplog.clear()
        publisher = Publisher(config(path), controlled=True)
        assert set(publisher.control.suppressions.active()) == {2, 3}, field
        assert publisher.counts()["state_damaged"] == 1
        assert "allow or mute 1 in" in caplog.text
        assert "\x1b" not in caplog.text
        publisher.state.close()


def test_an_open_episode_with_a_port_that_no_packet_has_is_dropped_and_the_agent_starts(filled, tmp_path):
    path = tmp_path / "state.sqlite"
    shutil.copy(filled, path)
    with closing(sqlite3.connect(path)) as db:
        story, payload = db.execute("SELECT story, payload FROM unfinished LIMIT 1").fetchone()
        document = json.loads(payload) | {"dest_port": 70_000}
        db.execute("UPDATE unfinished SET payload = ? WHERE story = ?", (json.dumps(document).encode(), story))
        db.commit()
    publisher = Publisher(config(path), controlled=True)
    assert (publisher.counts()["state_damaged"], publisher.outbox.open_episodes()) == (1, [])
    publisher.state.close()


@pytest.mark.parametrize("table", ["learnt", "run"])
def test_what_was_learnt_of_other_devices_stays_whatever_one_value_becomes(home, tmp_path, table):
    bundle, template = bundles.load(home.bundle), tmp_path / "template.sqlite"
    state = State(template)
    devices = Devices(bundle, state=state)
    lived(devices, bundle, life(20))
    devices.keep(devices.records(1e9, everything=True), 1e9)
    assert state.runs(devices.document(0) and next(mac for mac, _ in state.learnt(bundle.sha256)))
    state.learnt_put(bundle.sha256, [(7, b"")], 1e9, 1e9)
    state.close()
    before = rows(template)
    for column in columns(template, table):
        for n, value in enumerate(VALUES):
            path = tmp_path / f"{column}{n}.sqlite"
            if corrupted(template, path, table, column, value):
                state = State(path)
                again = Devices(bundle, state=state)
                again.document(1)
                assert sum(before[t] - count for t, count in rows(path).items()) == state.damaged <= 1, (column, value)
                again.keep(again.records(1e9, everything=True), 1e9)
                state.close()
                path.unlink()
