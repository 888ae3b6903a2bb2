"""The outbox: on disk before `put` returns, in order, at least once, in bounds, whatever happens to the file."""

import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest

from edge_agent.contract.messages import MAX_PAYLOAD
from edge_agent.delivery.outbox import Outbox
from edge_agent.delivery.outbox_table import OutboxTable
from edge_agent.state import State, StateError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.sqlite"


def drained(outbox, limit=10**9):
    """What `drain` gives, at most ``limit`` messages of it."""
    given = []

    def send(row, topic, payload):
        if len(given) == limit:
            return False
        given.append((row, payload))
        return True

    assert outbox.drain(send) == len(given)
    return given


def payloads(outbox, limit=10**9):
    return [payload for _, payload in drained(outbox, limit)]


def test_messages_come_in_order_once_and_again_after_rewind_until_done(path):
    outbox = Outbox(State(path))
    for i in range(600):
        outbox.put([("t", b"%d" % i, False)])
    first = drained(outbox, 300)
    assert [payload for _, payload in first] == [b"%d" % i for i in range(300)]
    assert payloads(outbox) == [b"%d" % i for i in range(300, 600)]
    assert payloads(outbox) == []
    outbox.done(row for row, _ in first)
    outbox.rewind()
    assert payloads(outbox) == [b"%d" % i for i in range(300, 600)]
    assert outbox.depth() == 300


def test_what_was_put_is_there_after_the_process_is_gone(path):
    Outbox(State(path)).put([("t", b"kept", False)])
    outbox = Outbox(State(path))
    assert payloads(outbox) == [b"kept"]
    assert outbox.depth() == 1


def test_at_the_bound_updates_go_first_then_the_oldest_and_both_are_counted(path):
    outbox = Outbox(State(path), max_rows=6)
    for i in range(6):
        outbox.put([("t", b"%d" % i, i % 2 == 1)])
    outbox.put([("t", b"6", False), ("t", b"7", False)])
    assert payloads(outbox) == [b"0", b"2", b"4", b"5", b"6", b"7"]
    assert (outbox.counts.dropped_updates, outbox.counts.dropped) == (2, 0)
    outbox.put([("t", b"8", False), ("t", b"9", False)])
    outbox.rewind()
    assert payloads(outbox) == [b"2", b"4", b"6", b"7", b"8", b"9"]
    assert (outbox.counts.dropped_updates, outbox.counts.dropped) == (3, 1)
    assert outbox.depth() == 6


def test_rows_a_broker_took_go_before_any_that_wait(path):
    outbox = Outbox(State(path), max_rows=4)
    outbox.put([("t", b"%d" % i, True) for i in range(4)])
    outbox.done(row for row, _ in drained(outbox, 2))
    outbox.put([("t", b"4", True), ("t", b"5", True)])
    outbox.rewind()
    assert payloads(outbox) == [b"2", b"3", b"4", b"5"]
    assert (outbox.counts.dropped_updates, outbox.counts.dropped) == (0, 0)


def test_the_bound_in_bytes_holds_too(path):
    state = State(path)
    outbox = Outbox(state, max_bytes=10 * MAX_PAYLOAD)
    for _ in range(15):
        outbox.put([("t", bytes(MAX_PAYLOAD), False)])
    assert outbox.depth() == 10
    assert outbox.counts.dropped == 5
    assert OutboxTable(state).size().waiting_bytes == 10 * MAX_PAYLOAD


def test_rows_that_a_broker_accepted_are_stored_for_a_limited_time(path):
    state = State(path)
    outbox = Outbox(state, keep_s=0.0)
    outbox.put([("t", b"1", False), ("t", b"2", False)])
    (first, _), (second, _) = drained(outbox)
    outbox.done([first])
    outbox.done([second])
    assert (OutboxTable(state).size().waiting, OutboxTable(state).size().acked) == (0, 1)


def test_an_acknowledgement_of_a_row_that_was_dropped_hits_no_other(path):
    outbox = Outbox(State(path), max_rows=1)
    outbox.put([("t", b"1", False)])
    (row, _) = drained(outbox)[0]
    outbox.put([("t", b"2", False)])
    outbox.done([row])
    assert payloads(outbox) == [b"2"]


def test_a_payload_beyond_the_bound_is_refused(path):
    with pytest.raises(ValueError, match="bound"):
        Outbox(State(path)).put([("t", bytes(MAX_PAYLOAD + 1), False)])


def corrupt_header(path):
    path.write_bytes(b"this was never a database, or is none any more " * 100)


def corrupt_middle(path):
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 8192))


def corrupt_end(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2 + 100)


@pytest.mark.parametrize("damage", [corrupt_header, corrupt_middle, corrupt_end])
def test_a_corrupt_file_is_moved_aside_and_a_new_one_begun(path, damage, caplog):
    state = State(path)
    Outbox(state).put([("t", bytes(2000), False)] * 200)
    state.close()
    damage(path)
    damaged = path.read_bytes()
    state = State(path)
    assert state.damaged == 1
    assert path.with_name("state.sqlite.corrupt").read_bytes() == damaged
    assert "moved to state.sqlite.corrupt" in caplog.text
    outbox = Outbox(state)
    outbox.put([("t", b"goes on", False)])
    assert payloads(outbox) == [b"goes on"]


def test_an_empty_file_is_a_new_one(path):
    path.touch()
    state = State(path)
    assert state.damaged == 0
    assert Outbox(state).depth() == 0


def test_the_file_of_a_newer_agent_is_moved_aside_and_the_agent_starts(path, caplog):
    state = State(path)
    Outbox(state).put([("t", b"waits", False)])
    state.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StateError, match="newer agent"):  # who only leaves word moves nothing
        State(path, guest=True)
    running = os.open(path, os.O_RDONLY)
    fcntl.flock(running, fcntl.LOCK_EX)
    with pytest.raises(StateError, match="another agent uses it"):
        State(path)
    assert not path.with_name("state.sqlite.v99").exists()
    os.close(running)
    state = State(path)
    assert state.damaged == 1
    assert len([r for r in caplog.records if "moved to state.sqlite.v99" in r.getMessage()]) == 1
    assert Outbox(state).depth() == 0
    state.close()
    with sqlite3.connect(path.with_name("state.sqlite.v99")) as db:  # whole, for the newer agent to come back to
        assert db.execute("SELECT payload FROM outbox").fetchall() == [(b"waits",)]
    db.close()


def test_a_folder_that_is_not_there_or_a_closed_file_is_one_readable_error(tmp_path, path):
    with pytest.raises(StateError, match="unable to open"):
        State(tmp_path / "nowhere" / "state.sqlite")
    state = State(path)
    state.close()
    with pytest.raises(StateError):
        Outbox(state).put([("t", b"x", False)])


def test_putting_and_draining_in_two_threads_loses_nothing(path):
    outbox = Outbox(State(path))
    woken = threading.Event()
    outbox.wake_with(woken.set)
    writer = threading.Thread(target=lambda: [outbox.put([("t", b"%d" % i, False)]) for i in range(300)])
    writer.start()
    got = []
    while len(got) < 300:
        assert woken.wait(10)
        woken.clear()
        given = drained(outbox)
        outbox.done(row for row, _ in given)
        got += [payload for _, payload in given]
    writer.join()
    assert got == [b"%d" % i for i in range(300)]
    assert outbox.depth() == 0


def test_killed_while_putting_everything_that_was_put_is_there(path):
    """SIGKILL at an arbitrary moment: each message whose `put` had returned is found again."""
    program = (
        "import sys; from pathlib import Path\n"
        "from edge_agent.delivery.outbox import Outbox; from edge_agent.state import State\n"
        "outbox = Outbox(State(Path(sys.argv[1])))\n"
        "for i in range(10**9):\n"
        "    outbox.put([('t', b'%d' % i, False)])\n"
        "    print(i, flush=True)\n"
    )
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
        lines = [process.stdout.readline() for _ in range(50)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        process.wait(10)
        said = [int(line) for line in lines if line.endswith(b"\n")]
        outbox = Outbox(State(path))
        given = drained(outbox)
        assert [int(payload) for _, payload in given][: len(said)] == said
        assert len(given) - len(said) in (0, 1)
        outbox.done(row for row, _ in given)


def test_what_was_done_shortly_before_the_end_of_a_connection_is_given_again(path):
    state = State(path)
    outbox = Outbox(state)
    outbox.put([("t", b"%d" % i, False) for i in range(4)])
    rows = [row for row, _ in drained(outbox)]
    OutboxTable(state).acked(rows[:1], now_s=100.0, keep_s=1000)
    OutboxTable(state).acked(rows[1:3], now_s=150.0, keep_s=1000)
    assert outbox.again(60.0, lost_s=200.0) == 2
    assert payloads(outbox) == [b"1", b"2", b"3"]
    assert (OutboxTable(state).size().waiting, OutboxTable(state).size().acked) == (3, 1)
    OutboxTable(state).acked(rows[1:], now_s=151.0, keep_s=1000)
    assert outbox.again(60.0) == 4  # a new process: before the last one done
    assert payloads(outbox) == [b"0", b"1", b"2", b"3"]
    assert Outbox(State(path.with_name("new.sqlite"))).again(60.0) == 0


FULL = """
import logging, resource, sys
from pathlib import Path
from edge_agent.delivery import outbox as module
from edge_agent.delivery.outbox import Outbox
from edge_agent.state import State
logging.basicConfig(stream=sys.stderr, format="%(message)s")
outbox = Outbox(State(Path(sys.argv[1])))
outbox.put([("t", b"before", False)])
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, most))  # as a full disk: no file grows beyond
wanted = [b"before"] + [b"%04d" % i + bytes(1500) for i in range(300)]
for payload in wanted[1:]:
    outbox.put([("t", payload, False)])
assert outbox.counts.unwritable > 100 and outbox.depth() == len(wanted), (outbox.counts, outbox.depth())
given = []
outbox.drain(lambda row, topic, payload: given.append((row, payload)) or True)
assert [payload for _, payload in given] == wanted
outbox.done([row for row, _ in given[:1]] + [row for row, _ in given[-1:]])  # one on the disk, one in memory
outbox.rewind()
again = []
outbox.drain(lambda row, topic, payload: again.append(payload) or True)
assert again == wanted[1:-1], len(again)
for i in range(module.UNSAVED_ROWS + 10):
    outbox.put([("t", b"update", True)])
assert outbox.counts.dropped == 0 and outbox.counts.dropped_updates > 10, outbox.counts
kept = outbox.depth()
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
assert outbox.save() == 0 and outbox.depth() == kept
print(kept)
"""


def test_while_the_disk_is_full_messages_wait_in_memory_and_none_is_lost(path):
    """Bounded there, said once, handed over from there, and on the disk when there is space."""
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    again = f"{path} can be written again, and alerts are stored on the disk as before"
    assert [line.rpartition(": ")[2].partition(";")[0] for line in said][1:] == [again], said
    assert "alerts stay in memory, at most 2000" in said[0]
    outbox = Outbox(State(path))
    assert outbox.depth() == int(done.stdout)
    assert [p[:4] for p in payloads(outbox)][:299] == [b"%04d" % i for i in range(299)]


def test_an_episode_that_has_not_ended_is_known_to_the_next_process(path):
    """Whatever becomes of its messages meanwhile: taken by the broker, dropped at the bound."""
    state = State(path)
    outbox = Outbox(state, max_rows=2)
    outbox.put([("t", b"a1", False)], {"a": ("t", b"a1")})
    outbox.put([("t", b"b1", False)], {"b": ("t", b"b1")})
    outbox.put([("t", b"a2", True), ("u", b"c1", False)], {"a": ("t", b"a2"), "c": ("u", b"c1")})
    outbox.put([("t", b"b2", False)], {"b": None})
    outbox.done(row for row, _ in drained(outbox))
    state.close()
    outbox = Outbox(State(path))
    assert outbox.open_episodes() == [("a", "t", b"a2"), ("c", "u", b"c1")]
    outbox.put([("t", b"a3", False)], {"a": None, "c": None})
    assert Outbox(State(path)).open_episodes() == []
    assert payloads(outbox)[-1] == b"a3"


def test_a_file_that_is_damaged_while_it_is_used_costs_nothing_that_comes_after(path, caplog):
    """The same process goes on with a new file, which is its own; what was damaged is beside it."""
    state = State(path)
    assert state.claim()
    outbox = Outbox(state)
    outbox.put([("t", bytes(2000), False)] * 200)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))
    for i in range(3):
        outbox.put([("t", b"%d" % i, False)])
    assert outbox.save() == 0
    assert state.damaged == 1
    assert path.with_name("state.sqlite.corrupt").stat().st_size > 200 * 2000
    assert payloads(outbox) == [b"0", b"1", b"2"]
    assert not State(path).claim()
    assert caplog.text.count("moved to state.sqlite.corrupt") == 1


def test_an_acknowledgement_costs_the_same_however_many_rows_are_stored(path):
    """Counted in steps of SQLite's machine, of which there were as many as rows kept."""
    steps = []

    class Counting(sqlite3.Connection):
        def __init__(self, *options, **more):
            super().__init__(*options, **more)
            self.set_progress_handler(lambda: steps.append(1), 10)

    outbox, costs = Outbox(State(path, connection=Counting)), []
    for kept in (50, 2000):
        outbox.put([("t", b"x", False)] * kept)
        *rows, last = [row for row, _ in drained(outbox)]
        outbox.done(rows)
        steps.clear()
        outbox.done([last])
        costs.append(len(steps))
    assert 0 < costs[1] < 2 * costs[0], costs
