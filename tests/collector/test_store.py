"""The store, on SQLite and on PostgreSQL: each (id, seq) once, the episode's last state, bounds."""

import json
import re
from copy import deepcopy
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from collector.queries import Wanted
from collector.store import AlertStore, Arrival, GatewayDocument, Rejection, StoreBusy, StoreError, database_url
from edge_agent.contract.alert import Alert
from edge_agent.contract.messages import Status

EXAMPLE = json.loads((Path(__file__).parents[1] / "data" / "alert.example.json").read_text())
IDS = [f"01936d2e-7b1c-7c3e-9f10-0c5a7c1e{i:04x}" for i in range(100)]


def arrival(seq, episode=0, state="update", received_ns=1, **changes):
    document = deepcopy(EXAMPLE)
    document["alert"]["context"]["botwatch"] |= {"id": IDS[episode], "seq": seq, "state": state, **changes}
    return Arrival(Alert.read(document), received_ns, json.dumps(document))


def change(database, *statements):
    """What an administrator does to the database meanwhile."""
    engine = create_engine(database_url(database), isolation_level="AUTOCOMMIT")
    with engine.connect() as db:
        for statement in statements:
            db.execute(text(statement))
    engine.dispose()


@pytest.fixture
def store(database):
    store = AlertStore(database)
    yield store
    store.close()


def test_the_same_message_twice_is_one_row_within_a_batch_and_across(store):
    assert store.save([arrival(1), arrival(1), arrival(2)])[:2] == (2, 0)
    assert store.save([arrival(2), arrival(3)])[:2] == (1, 0)
    assert [json.loads(a.document)["alert"]["context"]["botwatch"]["seq"] for a in store.alerts()] == [1, 2, 3]


def test_an_episode_shows_its_highest_seq_whatever_the_order_of_arrival(store):
    store.save([arrival(1, state="new"), arrival(3, state="end", **{"class": "gafgyt.udp"})])
    store.save([arrival(2)])
    store.save([arrival(1, episode=1, state="new")])
    shown = [(e["id"], e["seq"], e["state"], e["class"]) for e in store.episodes()]
    assert shown == [(IDS[0], 3, "end", "gafgyt.udp"), (IDS[1], 1, "new", "mirai.scan")]
    assert store.episodes()[0]["packets"] == EXAMPLE["flow"]["pkts_toserver"]


def test_a_character_that_only_one_of_the_databases_takes_costs_no_message(store):
    """JSON can name NUL, and PostgreSQL has no text with it."""
    device = {"ip": "192.168.1.9", "name": "cam\0" * 16}
    assert store.save([arrival(1, device=device), Arrival(("gw-001", Status("online", "\0", "0.1.0", 5)), 6)])[:2] == (
        1,
        0,
    )
    assert store.episodes()[0]["name"] == "cam?" * 16
    assert json.loads(store.alerts()[0].document)["alert"]["context"]["botwatch"]["device"] == device
    assert store.gateways() == {"gw-001": "online"}


def test_a_large_batch_is_stored_whole(store):
    assert store.save([arrival(seq, episode) for episode in range(100) for seq in range(1, 31)])[:2] == (3000, 0)
    assert len(store.episodes()) == 100


def test_the_last_status_of_a_gateway_is_stored(store):
    for state in ("online", "offline"):
        store.save([Arrival(("gw-001", Status(state, "b", "0.1.0", 5)), 6)])
    store.save([Arrival(("gw-002", Status("online", "b", "0.1.0", 5)), 6)])
    assert store.gateways() == {"gw-001": "offline", "gw-002": "online"}


def test_episodes_are_read_a_page_at_a_time(store):
    store.save([arrival(1, episode) for episode in range(10)])
    page = [e["id"] for e in store.episodes(limit=4)]
    assert page == IDS[:4]
    assert [e["id"] for e in store.episodes(after=page[-1], limit=4)] == IDS[4:8]
    assert [e["id"] for e in store.episodes(after=IDS[8])] == [IDS[9]]


def test_alerts_are_read_from_a_place_on_and_from_the_end(store):
    store.save([arrival(seq) for seq in range(1, 11)])
    assert [a.n for a in store.alerts(after=7)] == [8, 9, 10]
    assert [a.n for a in store.alerts(after=2, limit=3)] == [3, 4, 5]
    assert store.before_last(3) == 7
    assert store.before_last(100) == 0
    assert store.alerts(wanted=Wanted(gateway="gw-002")) == []


def wanted_of(store, newest=True, **wanted):
    """(episode, seq) of each alert that a list of these has."""
    rows = store.alerts(wanted=Wanted(**wanted), newest=newest)
    ours = [json.loads(row.document)["alert"]["context"]["botwatch"] for row in rows]
    return [(IDS.index(own["id"]), own["seq"]) for own in ours]


@pytest.fixture
def several(store):
    """Four episodes: of two devices, classes and states, and of a victim; and a test."""
    other = {"mac": "02:00:5e:10:00:01", "ip": "fd00::57", "name": "Plug"}
    late = "2026-11-23T18:00:00.000000+0000"
    arrivals = [
        *(arrival(seq, 0, "new" if seq == 1 else "end") for seq in (1, 2)),
        *(arrival(seq, 1, device=other, **{"class": "mirai"}) for seq in (1, 2, 3)),
        arrival(1, 2, role="victim", device={"ip": "192.168.1.9"}, **{"class": "anomaly"}),
        arrival(1, 3, "new", **{"class": "gafgyt.udp"}),
        *(arrival(seq, 4, state, test=True, device={}) for seq, state in ((1, "new"), (2, "end"))),
    ]
    document = json.loads(arrivals[6].document) | {"timestamp": late, "host": "gw-002"}
    document["alert"]["context"]["botwatch"]["gateway"] = "gw-002"
    arrivals[6] = Arrival(Alert.read(document), 1, json.dumps(document))
    store.save(arrivals)
    return store


LATE_NS = 1_795_455_000_000_000_000


@pytest.mark.parametrize(
    ("wanted", "episodes"),
    [
        ({}, [(0, 2), (1, 3), (2, 1), (3, 1), (4, 2)]),
        ({"still_open": True}, [(1, 3), (2, 1), (3, 1)]),
        ({"class_name": "mirai.*"}, [(0, 2), (1, 3)]),
        ({"class_name": "mirai"}, [(1, 3)]),
        ({"severity": 1}, [(0, 2), (1, 3), (3, 1)]),
        ({"severity": 3}, [(0, 2), (1, 3), (2, 1), (3, 1), (4, 2)]),
        ({"gateway": "gw-002"}, [(3, 1)]),
        ({"since_ns": LATE_NS}, [(3, 1)]),
        ({"device": "02-00-5E-10-00-01"}, [(1, 3)]),
        ({"device": "02005e100001"}, [(1, 3)]),
        ({"device": "FD00:0::57"}, [(1, 3)]),
        ({"device": "plug"}, [(1, 3)]),
        ({"device": "192.168.1.9"}, [(2, 1)]),
        ({"device": "plu"}, []),
        ({"device": "' OR 1=1 --"}, []),
        ({"device": "cam-entrance", "still_open": True}, [(3, 1)]),
    ],
)
def test_episodes_are_listed_in_their_newest_state_by_what_is_wanted(several, wanted, episodes):
    assert wanted_of(several, **wanted) == episodes


def test_alerts_are_listed_by_what_is_wanted_of_them_or_of_their_episode(several):
    assert len(wanted_of(several, newest=False)) == 9
    assert wanted_of(several, newest=False, device="plug") == [(1, 1), (1, 2), (1, 3)]
    assert wanted_of(several, newest=False, still_open=True) == [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1)]
    assert wanted_of(several, newest=False, class_name="anomaly") == [(2, 1)]
    assert wanted_of(several, newest=False, severity=2) == wanted_of(several, newest=False)[:7]
    assert several.before_last(2, newest=True) == several.alerts(newest=True)[-3].n


def test_a_number_outlives_its_alert(several):
    assert several.last_number() == several.newest_number() == 9
    several.purge(older_than_ns=2, max_bytes=10**9)
    assert (several.last_number(), several.newest_number(), several.alerts(newest=True)) == (9, 0, [])
    empty = several.last_number()
    several.save([arrival(1, 9, received_ns=5)])
    assert [a.n > empty for a in several.alerts()] == [True]


def test_a_database_of_an_older_version_is_read_as_it_is_and_has_its_tests_once_it_is_served(database):
    """It has neither the table of tests nor that of documents; only `serve` may change it."""
    older = AlertStore(database)
    older.save([arrival(1), *(arrival(seq, 1, test=True) for seq in (1, 2))])
    older.close()
    change(database, "DROP TABLE test", "DROP TABLE document")
    reader = AlertStore(database, create=False)
    assert wanted_of(reader) == [(0, 1)]
    assert (reader.documents("health"), reader.gateway_ids(), reader.sites()) == ({}, ["gw-001"], {"gw-001": "plant-a"})
    reader.close()
    served = AlertStore(database)
    assert wanted_of(served) == [(0, 1), (1, 2)]
    served.close()


def test_a_gateway_of_which_nothing_has_come_for_long_is_forgotten_unless_it_is_connected(store):
    def document(gateway, at_ns):
        return Arrival(GatewayDocument(gateway, "health", at_ns, {}), at_ns, "{}")

    status = [
        Arrival((f"gw-00{i}", Status(state, "b", "0.1.0", 5)), 6) for i, state in enumerate(("online", "offline"))
    ]
    store.save([*status, document("gw-000", 6), document("gw-001", 6), document("gw-002", 100)])
    store.purge(older_than_ns=50, max_bytes=10**9)
    assert store.gateway_ids() == ["gw-000", "gw-002"]


def test_what_is_old_is_purged_with_its_episodes_and_numbers_are_not_used_again(store):
    store.save([arrival(1, episode=0, received_ns=100), arrival(1, episode=1, received_ns=200)])
    assert store.purge(older_than_ns=150, max_bytes=10**9) == 1
    assert [e["id"] for e in store.episodes()] == [IDS[1]]
    assert store.purge(older_than_ns=300, max_bytes=10**9) == 1
    assert (store.alerts(), store.episodes()) == ([], [])
    store.save([arrival(1, episode=2, received_ns=400)])
    assert [a.n for a in store.alerts()] == [3]


def test_beyond_its_size_the_oldest_alerts_go_until_the_rest_fits(store):
    """PostgreSQL's files stay as large as they were: what is deleted must be known to be gone all the same."""
    store.save([arrival(seq, received_ns=seq) for seq in range(1, 8001)])
    size = 8000 * len(arrival(1).document)
    assert store.purge(older_than_ns=0, max_bytes=10**9) == 0
    assert store.purge(older_than_ns=0, max_bytes=size * 3 // 4) == 5000
    assert [a.n for a in store.alerts(limit=1)] == [5001]
    assert store.purge(older_than_ns=0, max_bytes=size * 3 // 4) == 0


def test_rejections_are_capped_to_the_newest(database):
    store = AlertStore(database, max_rejected=3)
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
        ("postgresql+psycopg2://db/x", r"psycopg2.*botwatch\[postgresql\]"),
        ("://", "not a file or a database URL"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_readable_error(url, words):
    with pytest.raises(StoreError, match=words) as error:
        AlertStore(url)
    assert "\n" not in str(error.value)


def test_a_url_of_postgresql_that_names_no_driver_means_the_one_of_the_extra(postgres):
    store = AlertStore(postgres.database().replace("+psycopg", ""))
    assert store.save([arrival(1)])[:2] == (1, 0)
    store.close()


def test_a_password_in_the_url_is_not_repeated():
    with pytest.raises(StoreError) as error:
        AlertStore("mysql://user:secret@db/x")
    assert "secret" not in str(error.value)


def test_reading_makes_no_database(database):
    for _ in range(2):
        with pytest.raises(StoreError, match=r"no such file|does not exist") as error:
            AlertStore(database, create=False)
        assert "\n" not in str(error.value)
    assert not Path(database).exists()


def test_while_a_table_is_missing_the_database_is_busy_and_no_row_is_to_blame(database, store):
    store.save([arrival(1)])
    change(database, "ALTER TABLE episode RENAME TO elsewhere")
    with pytest.raises(StoreBusy, match="episode"):
        store.save([arrival(2)])
    change(database, "ALTER TABLE elsewhere RENAME TO episode")
    assert store.save([arrival(1), arrival(2)])[:2] == (1, 0)


def test_while_postgresql_is_read_only_as_after_a_failover_it_is_busy(postgres):
    database = postgres.database()
    name = database.partition("?")[0].rpartition("/")[2]
    store = AlertStore(database)
    store.close()  # the setting is that of new connections
    change(database, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(StoreBusy, match="read-only"):
        store.save([arrival(1)])
    store.close()
    change(database, "SET default_transaction_read_only = off", f"ALTER DATABASE {name} RESET ALL")
    assert store.save([arrival(1)])[:2] == (1, 0)
    store.close()


def test_a_file_that_is_no_database_is_an_error(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to look at " * 10)
    for create in (True, False):
        with pytest.raises(StoreError, match="not a database"):
            AlertStore(str(path), create=create)


def test_a_database_of_an_older_version_takes_a_test_which_is_listed_and_no_episode(database):
    """It lacks the column."""
    older = AlertStore(database)
    older.save([arrival(1)])
    older.close()
    change(database, "ALTER TABLE alert DROP COLUMN test")
    store = AlertStore(database)
    assert store.save([arrival(1), arrival(1, episode=1, test=True), arrival(1, episode=1, test=True)])[:2] == (0, 1)
    assert len(store.alerts()) == 2
    assert len(store.episodes()) == 1
    store.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://joe:Secret-1@127.0.0.1:port/x",
        "postgresql://joe:Secret/1@127.0.0.1:1/x",
        "postgresql://joe@127.0.0.1:1/x?password=Secret-1",
        "mysql://joe:Secret-1@127.0.0.1/x",
        "://joe:Secret-1@127.0.0.1/x",
    ],
)
def test_a_password_in_the_address_of_the_database_is_not_in_an_error(url):
    with pytest.raises(StoreError) as refused:
        AlertStore(url)
    assert "Secret" not in str(refused.value)


def test_each_new_database_has_a_client_id_of_its_own_which_stays(database, tmp_path):
    ids = []
    for url in (database, database, str(tmp_path / "other.sqlite")):
        store = AlertStore(url)
        ids.append(store.client_id())
        store.close()
    assert all(re.fullmatch("botwatch-collector-[0-9a-f]{8}", id_) for id_ in ids)
    assert ids[0] == ids[1] != ids[2]


def test_a_database_from_before_there_were_client_ids_keeps_the_one_that_all_had(database):
    """Under which the broker may hold alerts for it."""
    AlertStore(database).close()
    change(database, "DROP TABLE setting")
    for _ in range(2):
        store = AlertStore(database)
        assert store.client_id() == "botwatch-collector"
        store.close()


def test_the_client_id_of_a_database_that_cannot_be_written_now_is_known_all_the_same(postgres):
    new, older = postgres.database(), postgres.database()
    for url in (new, older):
        AlertStore(url).close()
    change(older, "DROP TABLE setting")
    ids = []
    for url in (new, older):
        name = url.partition("?")[0].rpartition("/")[2]
        change(url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        store = AlertStore(url)
        ids.append(store.client_id())
        store.close()
    assert re.fullmatch("botwatch-collector-[0-9a-f]{8}", ids[0])
    assert ids[1] == "botwatch-collector"
