"""A client that stays connected: its waits, and another client that has the same id."""

import logging
import select
import socket
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest

from edge_agent.contract.broker import BrokerConfig
from edge_agent.mqtt import Connected, ConnectionEnded, Dialer
from edge_agent.reconnect import ConnectionCounts, Reconnecter
from tests.broker import Mosquitto, Scripted, needs_mosquitto, wait_until
from tests.line import in_thread

TAKEN_OVER = 0x8E


class Client:
    """A client that only stays connected."""

    def __init__(self, broker, name="gw-001", **settings):
        config = BrokerConfig(**{"retry_min_s": 0.1, "retry_max_s": 0.8, "connect_timeout_s": 2.0, **settings})
        self.counts = ConnectionCounts()
        self.reconnecter = Reconnecter(Dialer(config.at(broker.address), name), self.counts, "name one otherwise")

    def run(self, stop):
        def converse(connection):
            while not stop.is_set():
                self.reconnecter.step(connection, 0.02)

        self.reconnecter.run(stop, converse)


@contextmanager
def running(*clients):
    with ExitStack() as stack:
        for client in clients:
            stack.enter_context(in_thread(client.run))
        yield


@needs_mosquitto
@pytest.mark.parametrize("version", [5, "3.1.1"])
def test_two_clients_of_one_id_are_named_by_both_calm_down_and_the_one_that_is_left_goes_on(tmp_path, caplog, version):
    caplog.set_level(logging.INFO, "edge_agent.reconnect")
    with Mosquitto(tmp_path / "broker") as broker:
        one, other = (Client(broker, version=version) for _ in range(2))
        with running(one):
            wait_until(lambda: one.reconnecter.connected)
            with running(other):
                for client in (one, other):
                    wait_until(lambda client=client: client.counts.client_id_taken, 30)
                    assert "another client uses the client id gw-001, too" in client.reconnecter.trouble
                before = one.counts.connects + other.counts.connects
                began = time.monotonic()
                wait_until(lambda: one.counts.connects + other.counts.connects >= before + 6, 30)
                assert time.monotonic() - began > 6 * 0.8 / 2 / 2  # each waits that long at least, both at once
            wait_until(lambda: one.reconnecter.connected)
            assert "another client" in one.reconnecter.trouble  # it may come back yet
            wait_until(lambda: one.reconnecter.trouble == "", 20)
            assert one.reconnecter.connected
    named = [line for line in caplog.messages if "another client" in line and "name one otherwise" in line]
    assert len(named) == 2, named  # one line of each
    assert sum("no other client uses" in line for line in caplog.messages) == 1


class Relay:
    """A way to a broker; the connections on it at a moment can be made half open, as by a change of the network."""

    def __init__(self, port):
        self._port, self._cut = port, threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._open = []
        threading.Thread(target=self._accept, daemon=True).start()

    def half_open(self):
        """Carry nothing more on the connections of now, and end neither side."""
        self._cut.set()
        self._cut = threading.Event()

    def close(self):
        self._server.close()
        for sock in self._open:
            sock.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink, self._cut), daemon=True).start()

    @staticmethod
    def _carry(source, sink, cut):
        with suppress(OSError, ValueError):
            while not cut.is_set():
                if select.select([source], [], [], 0.02)[0]:
                    if not (data := source.recv(65_536)):
                        sink.shutdown(socket.SHUT_WR)
                        return
                    if not cut.is_set():
                        sink.sendall(data)


@needs_mosquitto
@pytest.mark.parametrize("version", [5, "3.1.1"])
def test_one_that_takes_its_own_half_open_connection_over_is_no_other_client(tmp_path, version):
    """The broker still has the connection of before the change of the network, and ends it for the new one."""
    with Mosquitto(tmp_path / "broker") as broker, closing(Relay(broker.port)) as relay:
        client = Client(relay, keepalive_s=5, version=version)
        with running(client):
            for times in (1, 2):
                wait_until(lambda times=times: client.counts.connects == times)
                assert broker.log().count("already connected, closing old connection") == times - 1
                if times == 1:
                    relay.half_open()
                    wait_until(lambda: client.reconnecter.trouble == "no longer answers", 20)
            wait_until(lambda: client.reconnecter.connected and client.reconnecter.trouble == "")
    assert client.counts.client_id_taken == 0


@needs_mosquitto
def test_clients_of_two_ids_leave_each_other_alone(tmp_path):
    with Mosquitto(tmp_path / "broker") as broker:
        one, other = Client(broker), Client(broker, "gw-002")
        with running(one, other):
            wait_until(lambda: one.reconnecter.connected and other.reconnecter.connected)
            assert one.counts.failures == other.counts.failures == 0


@needs_mosquitto
def test_a_broker_that_is_restarted_again_and_again_is_no_other_client(tmp_path):
    with Mosquitto(tmp_path / "broker") as broker:
        client = Client(broker)
        with running(client):
            for i in range(5):
                wait_until(lambda i=i: client.reconnecter.connected and client.counts.connects == i + 1)
                broker.kill()
                wait_until(lambda: "refused" in client.reconnecter.trouble)
                broker.start()
            wait_until(lambda: client.reconnecter.connected)
    assert client.counts.client_id_taken == 0


class Steps:
    """A connection made by a script of times: how long it lasts and how it ends. The clock goes on with each step."""

    def __init__(self, *ends):
        self.now, self._ends, self._left, self.connects = 0.0, list(ends), 0.0, []

    def clock(self):
        return self.now

    protocol = "5"

    def dial(self, will=None):
        self._left, self._end = self._ends.pop(0)
        if self._left is None:
            raise self._end
        self.connects.append(self.now)
        self._first = True
        return self

    def step(self, timeout_s, wake=None):
        if self._first:
            self._first = False
            return [Connected()]
        if self._left <= 0.0:
            raise self._end
        self.now += (passed := min(1.0, self._left))
        self._left -= passed
        return []

    def close(self):
        pass


class Dialing(Dialer):
    """Makes the connections of ``steps`` instead of real ones."""

    def __init__(self, steps):
        super().__init__(BrokerConfig(), "gw-001")
        self._steps = steps

    def dial(self, will=None):
        return self._steps.dial(will)


class Stop(threading.Event):
    """Set once the script is at its end; waits are steps of its clock."""

    def __init__(self, steps, waits):
        super().__init__()
        self._script, self._waits = steps, waits

    def wait(self, timeout=None):
        self._waits.append(timeout)
        self._script.now += timeout
        if not self._script._ends:
            self.set()
        return self.is_set()


def scripted(*ends):
    """What a client does with connections that last and end as given: (trouble, counts, waits)."""
    steps, waits, counts = Steps(*ends), [], ConnectionCounts()
    reconnecter = Reconnecter(Dialing(steps), counts, "name one otherwise", clock=steps.clock)
    stop = Stop(steps, waits)

    def converse(connection):
        while True:
            reconnecter.step(connection, 1.0)

    reconnecter.run(stop, converse)
    return reconnecter.trouble, counts, waits


def taken():
    return ConnectionEnded("ended the connection: Session taken over", accepted=True, taken_over=True)


def hung_up():
    return ConnectionEnded("connection lost", accepted=True, hung_up=True)


def unanswered():
    return ConnectionEnded("no answer from the broker")


def test_a_broker_that_says_so_is_believed_the_first_time(caplog):
    trouble, counts, _ = scripted((100_000.0, taken()))
    assert "another client uses the client id gw-001" in trouble
    assert counts.client_id_taken == 1
    assert len(caplog.messages) == 1


def test_an_attempt_of_ours_that_the_broker_reads_late_is_no_other_client():
    """As after a change of the network: the broker ends the newer connection when it comes to the older attempt."""
    trouble, counts, _ = scripted((None, unanswered()), (1.0, taken()))
    assert counts.client_id_taken == 0
    assert "another" not in trouble
    _, counts, _ = scripted((None, unanswered()), (1.0, taken()), (1.0, taken()))
    assert counts.client_id_taken == 1


def test_connections_that_last_are_lost_for_other_reasons():
    for ends in ([(60.0, hung_up())] * 20, [(1.0, hung_up()), (1.0, hung_up()), (30.0, hung_up())] * 5):
        _, counts, waits = scripted(*ends)
        assert counts.client_id_taken == 0
        assert max(waits) <= 2.0


def test_connections_that_end_at_once_are_another_client_from_the_third_on_and_are_logged_each_hour(caplog):
    trouble, counts, waits = scripted(*[(1.0, hung_up())] * 200)
    assert "probably another client uses the client id gw-001, too" in trouble
    assert counts.client_id_taken == 198
    assert max(waits) <= 60.0
    assert min(waits[10:]) >= 30.0
    assert len(set(waits[10:])) > 20
    lines = [line for line in caplog.messages if "another client" in line]
    assert 2 <= len(lines) <= sum(waits) / 3600.0 + 1


def test_after_the_other_client_has_gone_the_waits_are_short_again(caplog):
    """As soon as the connection has lasted longer than the other would have waited."""
    caplog.set_level(logging.INFO)
    fight = [(1.0, hung_up())] * 20
    _, counts, waits = scripted(*fight, (64.0, hung_up()), (66.0, hung_up()), (1.0, hung_up()))
    assert waits[20] >= 30.0  # not long enough: the other may only have waited
    assert waits[21] <= 0.5
    assert counts.client_id_taken == 19
    assert sum("no other client" in line for line in caplog.messages) == 1


def test_a_reason_that_the_broker_gives_is_the_reason():
    stopping = ConnectionEnded("ended the connection: Server shutting down", accepted=True)
    trouble, counts, _ = scripted(*[(0.5, stopping)] * 10)
    assert trouble == "ended the connection: Server shutting down"
    assert counts.client_id_taken == 0


def step_to_its_end(connection):
    while True:
        connection.step(0.1)


def test_a_disconnect_that_names_a_session_taken_over_is_read_as_such():
    with Scripted(lambda *_: 0, farewell=TAKEN_OVER) as broker:
        connection = Dialer(BrokerConfig().at(broker.address), "one").dial()
        with pytest.raises(ConnectionEnded, match="Session taken over") as end:
            step_to_its_end(connection)
        assert (end.value.taken_over, end.value.hung_up, end.value.by_message) == (True, False, False)
