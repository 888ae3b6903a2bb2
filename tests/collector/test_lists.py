"""`botwatch collector alerts` and `gateways`: what is listed, how it fits a terminal, and feeds that go on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.resources import files

import jsonschema
import pytest

from collector.__main__ import main
from collector.store import AlertStore, Arrival, GatewayDocument
from edge_agent.contract.alert import Alert
from edge_agent.contract.cli import cells
from edge_agent.contract.messages import Status, format_time
from tests.collector.test_collector_command import alert, record
from tests.terminal import in_terminal, plain

SCHEMA = jsonschema.Draft202012Validator(
    json.loads(files("edge_agent.contract").joinpath("alert.schema.json").read_text())
)
WHY = "opens 160 new connections a second to port 23 (2300 within about 14 s); normal is below 0.2"
HOSTILE = ("\x1b]0;owned\x07cam\r\n", "\u202ecam\u2066", "門" * 64, "x" * 64)


def stored(text, received_ns=1):
    document = text.decode()
    return Arrival(Alert.read(json.loads(document)), received_ns, document)


def status(gateway, state="online", boot="b", at_ns=1_795_450_930_000_000_000):
    return Arrival((gateway, Status(state, boot, "0.1.0", at_ns)), at_ns)


def document(gateway, leaf, content, at_ns):
    content = {"ts": format_time(at_ns), **content}
    return Arrival(GatewayDocument(gateway, leaf, at_ns, content), at_ns, json.dumps(content))


@pytest.fixture
def db(tmp_path):
    """Two episodes of two gateways, of three and one alerts, and a test."""
    path = str(tmp_path / "c.sqlite")
    store = AlertStore(path)
    store.save(
        [
            stored(alert(1, seq=1, state="new", explanation=WHY)),
            stored(alert(2, gateway="gw-002", seq=1, state="new", explanation=WHY, **{"class": "anomaly"})),
            stored(alert(1, seq=2, state="update", explanation=WHY)),
            stored(alert(1, seq=3, state="end", explanation=WHY)),
            stored(alert(3, seq=1, test=True, device={}, explanation="a test, sent by hand: try")),
        ]
    )
    store.close()
    return path


def ask(capsys, *words):
    """Exit status, lines and stderr of `botwatch collector`."""
    capsys.readouterr()
    status = main([*map(str, words)])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


# -- episodes and alerts --


def test_an_episode_is_one_line_in_its_newest_state_and_with_events_each_alert_is_one(db, capsys):
    status, lines, _ = ask(capsys, "alerts", "--db", db, "--utc")
    assert status == 0
    assert [line.split()[3:6] for line in lines] == [
        ["gw-002", "new", "00000002"],
        ["gw-001", "end", "00000001"],
        ["gw-001", "new", "00000003"],
    ]
    for words in ("2026-11-23 16:22:10 UTC", "Mirai scan from cam-entrance b8:27:eb:12:34:56", "port 23", WHY):
        assert words in lines[1]
    assert "TEST: nothing happened" in lines[2]
    assert len(ask(capsys, "alerts", "--db", db, "--events")[1]) == 5


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        (["--open"], [2]),
        (["--class", "mirai.*"], [1]),
        (["--severity", "1"], [1]),
        (["--severity", "2"], [2, 1]),
        (["--device", "CAM-ENTRANCE"], [2, 1]),
        (["--since", "2026-11-23"], [2, 1, 3]),
        (["--since", "2026-11-23 16:23"], []),
        (["--since", "2026-11-23T17:00:00+01:00"], [2, 1, 3]),
        (["--since", "1h"], []),
        (["--last", "1"], [3]),
        (["--gateway", "gw-002"], [2]),
    ],
)
def test_a_list_can_be_narrowed(db, capsys, words, ids):
    status, lines, err = ask(capsys, "alerts", "--db", db, "--utc", *words)
    assert (status, [int(line.split()[5]) for line in lines]) == (0, ids)
    assert err == ("" if ids else "no alert matches\n")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--gateway", "gw-0001"], "unknown gateway 'gw-0001': did you mean 'gw-001'?"),
        (["--gateway", "zzz"], "unknown gateway 'zzz'; known: gw-001, gw-002"),
        (["--class", "mirai.scna"], "unknown class 'mirai.scna': did you mean 'mirai.scan'?"),
        (["--since", "yesterday"], "--since: 'yesterday' is no age"),
        (["--since", "2026-13-01"], "--since: '2026-13-01' is no age"),
        (["--after", "-1"], "--after"),
        (["--after", "1", "--last", "1"], "--after and --last exclude each other"),
        (["--severity", "4"], "--severity"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_a_usage_error(db, capsys, words, text):
    try:
        status = main(["alerts", "--db", db, *words])
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert text in err
    assert err.count("\n") == 1


def test_an_empty_database_says_so_and_a_list_that_is_cut_too(tmp_path, capsys):
    path = str(tmp_path / "empty.sqlite")
    store = AlertStore(path)
    assert ask(capsys, "alerts", "--db", path) == (0, [], "no alerts are stored\n")
    assert ask(capsys, "gateways", "--db", path)[::2] == (
        0,
        "no gateways are known: none has sent anything that is stored\n",
    )
    store.save([stored(alert(n)) for n in range(60)])
    _, lines, err = ask(capsys, "alerts", "--db", path)
    assert (len(lines), err) == (50, "only the last 50 are listed; --last 0 lists all\n")
    assert len(ask(capsys, "alerts", "--db", path, "--last", "0")[1]) == 60
    assert len(ask(capsys, "alerts", "--db", path, "--since", "2026-01-01")[1]) == 60
    store.close()


# -- a terminal --


@pytest.mark.parametrize("columns", [80, 132])
def test_nothing_is_wider_than_the_terminal_nor_commands_it(tmp_path, columns):
    path = str(tmp_path / "c.sqlite")
    store = AlertStore(path)
    now = time.time_ns()
    long = "warehouse-berlin-spandau-hall-7-north-entrance-gateway-number-1"
    for n, name in enumerate(HOSTILE):
        ip = "fd00:1234:5678:9abc:def0:1234:5678:9abc"
        store.save([stored(alert(n, gateway=long, explanation=name * 3, device={"ip": ip, "name": name}))])
        health = {"model": name[:40], "site": name[:63], "outbox_depth": 10**12, "counters": {"dropped": 10**15}}
        store.save([status(f"gw-{n}", at_ns=now), document(f"gw-{n}", "health", health, now)])
    store.close()
    for words in (["alerts"], ["alerts", "--events"], ["gateways"]):
        written = in_terminal(columns, "collector", *words, "--db", path)
        lines = plain(written).splitlines()
        assert len(lines) >= len(HOSTILE)
        for line in lines:
            assert cells(line) <= columns
            assert line.isprintable()
    narrow = in_terminal(80, "collector", "alerts", "--db", path, NO_COLOR="1")
    assert "\x1b" not in narrow
    assert "…" in narrow
    assert "\x1b" not in in_terminal(80, "collector", "alerts", "--db", path, TERM="dumb")
    assert "\x1b[1;31m" in in_terminal(80, "collector", "alerts", "--db", path)


def test_times_are_in_the_zone_of_the_reader(db):
    assert "11-23 17:22 CET gw-001" in in_terminal(80, "collector", "alerts", "--db", db, TZ="Europe/Berlin")
    assert "11-23 16:22 UTC gw-001" in in_terminal(80, "collector", "alerts", "--utc", "--db", db, TZ="Europe/Berlin")


def test_no_library_says_anything_on_stderr(db):
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent.command", "collector", "alerts", "--db", db], capture_output=True, check=True
    )
    assert done.stderr == b""


# -- a feed --


def test_each_record_has_a_cursor_from_which_a_feed_goes_on_without_repeats_or_gaps(db, capsys):
    lines = ask(capsys, "alerts", "--db", db, "--json", "--after", "0")[1]
    assert [record(line)[0] for line in lines] == [1, 2, 3, 4, 5]
    for line in lines:
        SCHEMA.validate(json.loads(line))
        assert json.loads(line)["alert"]["context"]["collector"]["received"] == "1970-01-01T00:00:00.000000+0000"
    assert ask(capsys, "alerts", "--db", db, "--json", "--after", "5") == (0, [], "no alert matches\n")
    assert [record(line)[0] for line in ask(capsys, "alerts", "--db", db, "--json", "--after", "3")[1]] == [4, 5]
    assert [record(line)[0] for line in ask(capsys, "alerts", "--db", db, "--json")[1]] == [2, 4, 5]  # newest states


def test_a_cursor_survives_retention_and_one_of_another_database_is_refused(db, capsys):
    store = AlertStore(db)
    store.purge(older_than_ns=2, max_bytes=10**9)
    assert ask(capsys, "alerts", "--db", db, "--json", "--after", "2") == (0, [], "no alert matches\n")
    store.save([stored(alert(7), received_ns=5)])
    store.close()
    assert [record(line)[0] for line in ask(capsys, "alerts", "--db", db, "--json", "--after", "5")[1]] == [6]
    status, lines, err = ask(capsys, "alerts", "--db", db, "--json", "--after", "7")
    assert (status, lines) == (1, [])
    assert "the newest alert of this database has cursor 6" in err


@contextmanager
def following(*words):
    """`botwatch collector` with these words, which goes on until the block ends."""
    command = [sys.executable, "-m", "edge_agent.command", "collector", *map(str, words)]
    env = {**os.environ, "TZ": "UTC"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process.stdout
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
        finally:
            process.kill()


def test_a_feed_follows_from_its_cursor(db):
    store = AlertStore(db)
    with following("alerts", "--db", db, "--json", "--follow", "--after", "4") as lines:
        assert record(lines.readline())[0] == 5
        store.save([stored(alert(8, seq=1)), stored(alert(8, seq=2))])
        assert [record(lines.readline())[0] for _ in range(2)] == [6, 7]
    store.close()


def test_a_feed_ends_with_a_line_when_its_database_is_moved_away(db, tmp_path):
    """Else it would wait for ever for what is stored elsewhere."""
    command = [sys.executable, "-m", "edge_agent.command", "collector", "alerts", "--db", db, "--follow", "--last", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline()
        os.rename(db, tmp_path / "moved.sqlite")
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert errors == f"botwatch collector: {db} was removed or replaced while it was in use\n"


def test_followed_episodes_show_each_new_state_and_gateways_that_come_and_go(db):
    store = AlertStore(db)
    store.save([status("gw-001")])
    with following("alerts", "--db", db, "--follow", "--gateway", "gw-001", "--open") as lines:
        store.save([stored(alert(8, seq=1, state="new"))])
        assert "new     00000008" in lines.readline()
        store.save([stored(alert(8, seq=2, state="update")), stored(alert(9, gateway="gw-002"))])
        assert "update  00000008" in lines.readline()
        store.save([status("gw-001", "offline"), status("gw-002", "offline")])
        assert lines.readline() == "2026-11-23 16:22:10 UTC  gw-001  offline: its connection to the broker is lost\n"
        store.save([status("gw-001", "online", boot="c")])
        assert "gw-001  online: " in lines.readline()
    store.close()


def test_a_gateway_that_comes_while_alerts_are_followed_is_named_in_its_alerts(tmp_path):
    """The column was made for the gateways known at the start: on an empty database there was none."""
    path = str(tmp_path / "c.sqlite")
    store = AlertStore(path)
    with following("alerts", "--db", path, "--follow") as lines:
        store.save([stored(alert(8, gateway="gw-008", seq=1))])
        assert " gw-008  " in lines.readline()
        store.save([status("gateway-of-hall-9")])
        assert " gateway-of-hall-9  online" in lines.readline()
        store.save([stored(alert(9, gateway="gw-008", seq=1))])
        assert " gw-008             " in lines.readline()
    store.close()


# -- gateways --


@pytest.fixture
def fleet(tmp_path):
    path = str(tmp_path / "fleet.sqlite")
    store = AlertStore(path)
    now = time.time_ns()
    health = {
        "model": "2026.11.23+1",
        "site": "plant-a",
        "outbox_depth": 3,
        "episodes_open": 1,
        "drop_pct": 0.5,
        "counters": {"dropped": 1200, "interface_dropped": 4, "devices": 9},
    }
    count = {"learning": 1, "active": 6, "stale": 0}
    store.save(
        [
            status("gw-001", at_ns=now - 300 * 10**9),
            document("gw-001", "health", health, now - 30 * 10**9),
            document("gw-001", "devices", {"devices": [], "count": count}, now - 200 * 10**9),
            status("gw-002", "offline", at_ns=now - 3 * 86_400 * 10**9),
            document("gw-003", "health", health | {"site": "plant-b"}, now),
        ]
    )
    store.close()
    return path


def test_a_gateway_is_a_line_with_what_it_said_last(fleet, capsys):
    status, lines, _ = ask(capsys, "gateways", "--db", fleet, "--utc")
    assert status == 0
    assert [word.strip() for word in lines[0].split("  ") if word][:4] == ["gateway", "site", "state", "last seen"]
    assert lines[1].split()[:3] == ["gw-001", "plant-a", "online"]
    assert lines[1].split()[-7:] == ["0.1.0", "2026.11.23+1", "7", "1", "3", "1,204", "1"]
    assert lines[2].split()[:2] == ["gw-002", "offline"]
    assert lines[3].split()[:3] == ["gw-003", "plant-b", "unknown"]
    narrow = in_terminal(80, "collector", "gateways", "--db", fleet, NO_COLOR="1").splitlines()
    assert re.search(r" [345]\d s ago ", narrow[1])  # when its health came, not its older document on devices
    assert "3 d ago" in narrow[2]


def test_gateways_of_alike_ids_can_be_told_apart_in_a_narrow_terminal(tmp_path):
    """Their numbers are in the middle of the id, which is what is cut out of a long one."""
    path, now = str(tmp_path / "many.sqlite"), time.time_ns()
    ids = [f"plant-west-hall-{n:02}-line-3" for n in range(12)]
    health = {"model": "2026.11.28+1", "site": "plant-west", "outbox_depth": 10_000, "counters": {"dropped": 123_456}}
    store = AlertStore(path)
    for id in ids:
        store.save([status(id, at_ns=now), document(id, "health", health, now)])
    store.close()
    lines = in_terminal(80, "collector", "gateways", "--db", path, NO_COLOR="1").splitlines()
    assert len({line.split()[0] for line in lines[1:]}) == len(ids)
    assert max(map(cells, lines)) <= 80
    unknown = in_terminal(80, "collector", "gateways", "zzz", "--db", path).replace("\n", " ")
    assert "unknown gateway 'zzz'; 12 are known, `botwatch collector gateways` lists them" in unknown


@pytest.mark.parametrize("columns", [80, 132])
def test_a_gateway_that_claims_impossible_numbers_pushes_no_other_off_the_screen(fleet, columns):
    """The largest numbers that are accepted; a column is as wide as its widest number, in every line."""
    most = 2**63 - 1
    store = AlertStore(fleet)
    health = {"outbox_depth": most, "episodes_open": most, "counters": {"dropped": most, "interface_dropped": most}}
    count = {"active": most, "learning": most}
    store.save([document("gw-000", "health", health, 1), document("gw-000", "devices", {"count": count}, 1)])
    store.close()
    lines = plain(in_terminal(columns, "collector", "gateways", "--db", fleet)).splitlines()
    assert ">9,999T" in lines[1]
    assert re.search(r"3 +1,204 +1$", lines[2])


def test_gateways_as_json_have_their_health(fleet, capsys):
    lines = [json.loads(line) for line in ask(capsys, "gateways", "--db", fleet, "--json")[1]]
    assert [line["gateway"] for line in lines] == ["gw-001", "gw-002", "gw-003"]
    first = lines[0]
    assert (first["state"], first["devices"], first["devices_learning"], first["dropped"]) == ("online", 7, 1, 1204)
    assert first["health"]["drop_pct"] == 0.5
    assert lines[1]["health"] is None
    AlertStore(fleet).save([stored(alert(1, gateway="gw-009"))])  # as a replay leaves it
    assert json.loads(ask(capsys, "gateways", "gw-009", "--db", fleet, "--json")[1][0])["last_seen"] is None
    assert lines[2]["devices"] == 9  # from its health, since nothing is known of what it has learnt


def test_gateways_can_be_chosen_by_name_and_site_and_an_unknown_one_is_an_error(fleet, capsys):
    assert [line.split()[0] for line in ask(capsys, "gateways", "gw-002", "--db", fleet)[1][1:]] == ["gw-002"]
    assert [line.split()[0] for line in ask(capsys, "gateways", "--site", "plant-b", "--db", fleet)[1][1:]] == [
        "gw-003"
    ]
    assert ask(capsys, "gateways", "gw-02", "--db", fleet)[::2] == (
        2,
        "botwatch collector: unknown gateway 'gw-02': did you mean 'gw-002'?\n",
    )
    assert ask(capsys, "gateways", "--site", "plant-c", "--db", fleet)[0] == 2


def test_followed_gateways_are_a_table_and_then_a_line_for_each_that_goes(fleet):
    store = AlertStore(fleet)
    with following("gateways", "--db", fleet, "--follow") as lines:
        assert [lines.readline().split()[0] for _ in range(4)] == ["gateway", "gw-001", "gw-002", "gw-003"]
        time_ns = time.time_ns()
        store.save([status("gw-001", "offline", at_ns=time_ns)])
        assert "gw-001  offline: its connection to the broker is lost" in lines.readline()
        store.save([status("gw-004", at_ns=time_ns)])
        assert "gw-004  online: connected to the broker; heard of for the first time" in lines.readline()
    store.close()
    with following("gateways", "--db", fleet, "--follow", "--json") as lines:
        assert [json.loads(lines.readline())["state"] for _ in range(4)] == ["offline", "offline", "unknown", "online"]
        AlertStore(fleet).save([status("gw-004", "stopped", at_ns=time_ns)])
        assert json.loads(lines.readline())["state"] == "stopped"
