"""The store: each (id, seq) once, the episode's last state, bounds."""

import json
import sqlite3
from contextlib import closing
from copy import deepcopy
from pathlib import Path

import pytest

from collector.store import AlertStore, Arrival, Rejection, StoreError
from edge_agent.contract.alert import Alert
from edge_agent.contract.messages import Status

EXAMPLE = json.loads((Path(__file__).parents[1] / "data" / "alert.example.json").read_text())
IDS = [f"01936d2e-7b1c-7c3e-9f10-0c5a7c1e{i:04x}" for i in range(100)]


def arrival(seq, episode=0, state="update", received_ns=1, **changes):
    document = deepcopy(EXAMPLE)
    document["alert"]["context"]["botwatch"] |= {"id": IDS[episode], "seq": seq, "state": state, **changes}
    return Arrival(Alert.read(document), received_ns, json.dumps(document))


@pytest.fixture
def store(tmp_path):
    store = AlertStore(str(tmp_path / "c.sqlite"))
    yield store
    store.close()


def test_the_same_message_twice_is_one_row_within_a_batch_and_across(store):
    assert store.save([arrival(1), arrival(1), arrival(2)]) == (2, 0)
    assert store.save([arrival(2), arrival(3)]) == (1, 0)
    assert [json.loads(a.document)["alert"]["context"]["botwatch"]["seq"] for a in store.alerts()] == [1, 2, 3]


def test_an_episode_shows_its_highest_seq_whatever_the_order_of_arrival(store):
    store.save([arrival(1, state="new"), arrival(3, state="end", **{"class": "gafgyt.udp"})])
    store.save([arrival(2)])
    store.save([arrival(1, episode=1, state="new")])
    shown = [(e["id"], e["seq"], e["state"], e["class"]) for e in store.episodes()]
    assert shown == [(IDS[0], 3, "end", "gafgyt.udp"), (IDS[1], 1, "new", "mirai.scan")]
    assert store.episodes()[0]["packets"] == EXAMPLE["flow"]["pkts_toserver"]


def test_a_large_batch_is_stored_whole(store):
    assert store.save([arrival(seq, episode) for episode in range(100) for seq in range(1, 31)]) == (3000, 0)
    assert len(store.episodes()) == 100


def test_the_last_word_on_a_gateway_is_kept(store):
    for state in ("online", "offline"):
        store.save([Arrival(("gw-001", Status(state, "b", "0.1.0", 5)), 6)])
    store.save([Arrival(("gw-002", Status("online", "b", "0.1.0", 5)), 6)])
    assert store.gateways() == {"gw-001": "offline", "gw-002": "online"}


def test_alerts_are_read_from_a_place_on_and_from_the_end(store):
    store.save([arrival(seq) for seq in range(1, 11)])
    assert [a.n for a in store.alerts(after=7)] == [8, 9, 10]
    assert [a.n for a in store.alerts(after=2, limit=3)] == [3, 4, 5]
    assert store.before_last(3) == 7
    assert store.before_last(100) == 0
    assert store.alerts(gateway="gw-002") == []


def test_what_is_old_is_purged_with_its_episodes_and_numbers_are_not_used_again(store):
    store.save([arrival(1, episode=0, received_ns=100), arrival(1, episode=1, received_ns=200)])
    assert store.purge(older_than_ns=150, max_bytes=10**9) == 1
    assert [e["id"] for e in store.episodes()] == [IDS[1]]
    assert store.purge(older_than_ns=300, max_bytes=10**9) == 1
    assert (store.alerts(), store.episodes()) == ([], [])
    store.save([arrival(1, episode=2, received_ns=400)])
    assert [a.n for a in store.alerts()] == [3]


def test_beyond_its_size_the_oldest_alerts_go(store):
    store.save([arrival(seq, received_ns=seq) for seq in range(1, 8001)])
    assert store.purge(older_than_ns=0, max_bytes=1_000_000) == 5000
    assert [a.n for a in store.alerts(limit=1)] == [5001]
    assert store.purge(older_than_ns=0, max_bytes=10**9) == 0


def test_rejections_are_capped_to_the_newest(tmp_path):
    store = AlertStore(str(tmp_path / "c.sqlite"), max_rejected=3)
    for i in range(5):
        store.save([], [Rejection("t", b"%d" % i, "because", i)])
    assert [r.payload for r in store.rejections()] == [b"2", b"3", b"4"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://db/x", "SQLite and PostgreSQL"),
        ("nosuch://x", "SQLite and PostgreSQL"),
        ("sqlite:////no/such/folder/x.sqlite", "unable to open"),
        ("postgresql+nosuchdriver://db/x", "postgresql"),
        ("://", "parse"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_readable_error(url, words):
    with pytest.raises(StoreError, match=words) as error:
        AlertStore(url)
    assert "\n" not in str(error.value)


def test_a_password_in_the_url_is_not_repeated():
    with pytest.raises(StoreError) as error:
        AlertStore("mysql://user:secret@db/x")
    assert "secret" not in str(error.value)


def test_reading_makes_no_database(tmp_path):
    path = tmp_path / "none.sqlite"
    with pytest.raises(StoreError, match="no such file"):
        AlertStore(str(path), create=False)
    assert not path.exists()


def test_a_file_that_is_no_database_is_an_error(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to look at " * 10)
    for create in (True, False):
        with pytest.raises(StoreError, match="not a database"):
            AlertStore(str(path), create=create)


def test_a_database_of_an_older_version_takes_a_test_which_is_listed_and_no_episode(tmp_path):
    """It lacks the column."""
    file = tmp_path / "older.sqlite"
    AlertStore(str(file)).save([arrival(1)])
    with closing(sqlite3.connect(file)) as db:
        db.execute("ALTER TABLE alert DROP COLUMN test")
    store = AlertStore(str(file))
    assert store.save([arrival(1), arrival(1, episode=1, test=True), arrival(1, episode=1, test=True)]) == (0, 1)
    assert len(store.alerts()) == 2
    assert len(store.episodes()) == 1
