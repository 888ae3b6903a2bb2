"""The agent as a service: how it stops and what it does when asked, as a process in a network namespace of its own."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

import pytest

from collector.store import AlertStore
from edge_agent.config import LIVE, AgentConfig, changed
from edge_agent.contract import alertid
from edge_agent.contract.captures import mac_text
from edge_agent.delivery.outbox_table import OutboxTable
from edge_agent.state import State
from tests.broker import Mosquitto, free_port, needs_mosquitto, wait_until
from tests.collector.test_collector_command import Collector
from tests.conftest import Home
from tests.edge_agent.delivery.test_alerts import SCHEMA
from tests.live import LISTEN, agent, alerts, state, status
from tests.netns import MAC, ROOT, SEND, Wire, serving
from tests.reference.frames import pcap
from tests.traffic import scan, steady

MAC_TEXT = mac_text(MAC)

# A host that takes connections and never says a word; with "full" not even the handshake of TCP is ended.
MUTE = """
import socket, sys, time
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", int(sys.argv[1])))
s.listen(0 if sys.argv[2] == "full" else 64)
held = []
while sys.argv[2] == "full" and len(held) < 8:
    c = socket.socket()
    c.setblocking(False)
    c.connect_ex(s.getsockname())
    held.append(c)
print("ready", flush=True)
time.sleep(600)
"""


@contextmanager
def sending(wire: Wire, frames: list, folder: Path, rate: float) -> Iterator[None]:
    """Frames go on until the block ends."""
    file = folder / "flood.pcap"
    file.write_bytes(pcap(frames, nanoseconds=True))
    words = ["ip", "netns", "exec", wire.device, sys.executable, "-c", SEND, "eth0", str(file), str(rate)]
    process = subprocess.Popen(words, cwd=ROOT)
    try:
        yield
        assert process.poll() is None, "the flood ended before the agent did"
    finally:
        process.kill()
        process.wait()


def stopped_in(process: "subprocess.Popen[str]") -> float:
    """Seconds from SIGTERM to the end, which must be a good one."""
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    assert process.wait(20) == 0
    return time.monotonic() - asked


def kept(box: Path) -> list[dict]:
    """What waits in the outbox, in order."""
    with closing(State(box)) as file:
        return [json.loads(payload) for _, _, payload in OutboxTable(file).waiting(0, 100_000)]


@pytest.mark.parametrize("broker", ["mute", "full", "mute, TLS", "nobody"])
def test_a_stop_in_a_flood_takes_two_seconds_and_loses_nothing_when_the_broker_is_out_of_reach(
    wire: Wire,
    home: Home,
    tmp_path: Path,
    broker: str,
) -> None:
    port, box = free_port(), tmp_path / "box.sqlite"
    tls = "tls: true, " if "TLS" in broker else ""
    config = f"outbox: {{path: {box}}}\nbroker: {{{tls}host: 127.0.0.1, port: {port}, connect_timeout_s: 15.0}}\n"
    frames = list(steady(scan(40_000, "192.168.1.57", mac=MAC), 0, 1000))
    with (
        serving(wire.gateway, MUTE, str(port if broker != "nobody" else free_port()), broker.partition(",")[0]),
        agent(wire, home, tmp_path, config=config) as process,
        sending(wire, frames, tmp_path, 4000.0),
    ):
        wait_until(lambda: alerts(tmp_path), 20)
        took = stopped_in(process)
    told = alerts(tmp_path)
    assert [state(a) for a in told if state(a) != "update"] == ["new", "end"]
    assert kept(box) == told
    print(f"stopped in {took:.2f} s")
    assert took < 2.0
    assert "Traceback" not in (tmp_path / "err").read_text()


@needs_mosquitto
@pytest.mark.parametrize("broker", ["well", "hangs"])
def test_a_stop_in_a_flood_delivers_what_it_can_in_two_seconds(
    wire: Wire,
    home: Home,
    tmp_path: Path,
    broker: str,
) -> None:
    """A broker that is well has the `end` of what the stop ended; one that hangs leaves it in the outbox."""
    box = tmp_path / "box.sqlite"
    process, port = mosquitto(wire, tmp_path / "broker")
    heard = tmp_path / "heard"
    listener = wire.on_gateway(sys.executable, "-c", LISTEN, str(port), str(heard))
    try:
        wait_until(heard.exists, 20)
        config = f"outbox: {{path: {box}}}\nbroker: {{host: 127.0.0.1, port: {port}, repeat_s: 0.0}}\n"
        with agent(wire, home, tmp_path, config=config) as gateway:
            frames = list(steady(scan(40_000, "192.168.1.57", mac=MAC), 0, 1000))
            with sending(wire, frames, tmp_path, 4000.0):
                wait_until(lambda: alerts(tmp_path) and not kept(box), 20)
                if broker == "hangs":
                    process.send_signal(signal.SIGSTOP)
                took = stopped_in(gateway)
    finally:
        for running in (listener, process):
            running.kill()
            running.wait()
    told = alerts(tmp_path)
    assert [state(a) for a in told if state(a) != "update"] == ["new", "end"]
    left = kept(box)
    if broker == "well":
        assert left == []
        lines = [line.split(" ", 1) for line in heard.read_text().splitlines()]
        assert [json.loads(text) for leaf, text in lines if leaf == "alert"] == told
        assert [json.loads(text)["state"] for leaf, text in lines if leaf == "status"] == ["online", "stopped"]
    else:
        assert state(left[-1]) == "end"
        assert told[-len(left) :] == left
    print(f"stopped in {took:.2f} s")
    assert took < 2.0


def mosquitto(wire: Wire, folder: Path) -> "tuple[subprocess.Popen[str], int]":
    """A broker in the gateway's namespace, and its port."""
    made = Mosquitto(folder, "connection_messages true")
    process = wire.on_gateway(*made.command(), stderr=subprocess.DEVNULL)
    return process, made.port


def botwatch(wire: Wire, *words: object) -> "subprocess.CompletedProcess[str]":
    """A command on the gateway."""
    command = ["ip", "netns", "exec", wire.gateway, sys.executable, "-m", "edge_agent.command", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@dataclass
class Site:
    wire: Wire
    port: int
    collector: Collector
    folder: Path

    @property
    def config(self) -> str:
        """What an agent is told of it."""
        broker = f"{{host: 127.0.0.1, port: {self.port}, retry_min_s: 0.1, retry_max_s: 0.5}}"
        return f"outbox: {{path: {self.folder / 'box.sqlite'}}}\nbroker: {broker}\nhealth_s: 1.0\n"

    def listed(self, *words: str) -> str:
        """`botwatch collector alerts`."""
        return botwatch(self.wire, "collector", "alerts", "--db", self.collector.db, *words).stdout

    def order(self, verb: str, *words: object) -> "subprocess.CompletedProcess[str]":
        """`botwatch collector command`."""
        where = f"127.0.0.1:{self.port}"
        return botwatch(self.wire, "collector", "command", "gw-001", verb, *words, "--broker", where)


@pytest.fixture
def site(wire: Wire, tmp_path: Path) -> Iterator[Site]:
    """A broker and a collector on the gateway."""
    process, port = mosquitto(wire, tmp_path / "broker")
    try:
        broker = Mosquitto(tmp_path / "same")
        broker.port, broker.address = port, f"127.0.0.1:{port}"
        collector = Collector(broker, tmp_path / "collector.sqlite")
        collector.before = ("ip", "netns", "exec", wire.gateway)
        with collector:
            yield Site(wire, port, collector, tmp_path)
    finally:
        process.kill()
        process.wait()


@needs_mosquitto
def test_a_test_alert_goes_the_whole_way_marked_and_is_counted_nowhere(site: Site, home: Home) -> None:
    """Asked for on the gateway while the agent runs, by the broker, and on the gateway when no agent runs."""
    config = site.folder / "agent.yaml"
    with agent(site.wire, home, site.folder, config=site.config):
        done = botwatch(site.wire, "agent", "test-alert", "--config", config)
        assert done.returncode == 0, done.stdout + done.stderr
        told = done.stdout.splitlines()
        assert [line[:2] for line in told] == ["1.", "2.", "3.", "4."]
        assert "an agent is running" in told[0]
        assert "in the outbox" in told[1]
        assert f"127.0.0.1:{site.port} has taken it (MQTT 5), and it has a subscriber" in told[2]
        done = botwatch(site.wire, "agent", "test-alert", "--json", "--config", config)
        outcome = json.loads(done.stdout)
        assert (outcome["delivered"], outcome["running"], outcome["protocol"]) == (True, True, "5")
        assert len(outcome["steps"]) == 4
        checked = botwatch(site.wire, "agent", "check", "--config", config).stdout
        assert f"broker 127.0.0.1:{site.port}: the running agent is connected, MQTT 5" in checked
        reply = json.loads(site.order("test-alert", "--json").stdout)
        assert reply["alerts"] == 2
        wait_until(lambda: len(site.collector.stored()) == 6)
        status = json.loads(botwatch(site.wire, "agent", "status", "--json", "--config", config).stdout)
        counters = status["health"]["counters"]
        assert counters["test_alerts"] == 6
        assert not {"alerts_new", "alerts_end", "detections", "episodes_suppressed"} & set(counters)
        assert status["health"]["episodes_open"] == 0
        assert status["broker"] == {
            "address": f"127.0.0.1:{site.port}",
            "client_id": "gw-001",
            "connected": True,
            "protocol": "5",
            "trouble": "",
        }
    done = botwatch(site.wire, "agent", "test-alert", "--config", config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no agent is running" in done.stdout
    wait_until(lambda: len(site.collector.stored()) == 8)
    given = [json.loads(line) for line in site.listed("--json", "--events", "--last", "0").splitlines()]
    for alert in given:
        SCHEMA.validate(alert)
        assert alert["alert"]["signature_id"] == 9001000
        assert alert["alert"]["context"]["botwatch"]["test"] is True
    assert [state(alert) for alert in given] == ["new", "end"] * 4
    assert site.listed("--events").count("TEST") == 8
    assert AlertStore(str(site.collector.db)).episodes() == []
    site.collector.end(signal.SIGTERM)
    assert "0 stored, 0 repeated, 0 rejected" in site.collector.said()
    assert "8 tests" in site.collector.said()


@needs_mosquitto
@pytest.mark.parametrize("version", ["5", '"3.1.1"'])
def test_two_agents_of_one_id_name_each_other_in_log_status_health_and_check(
    site: Site, home: Home, version: str
) -> None:
    folders = [site.folder / name for name in ("one", "other")]
    settings = f"retry_min_s: 0.1, retry_max_s: 1.0, version: {version}"
    with ExitStack() as stack:
        for folder in folders:
            folder.mkdir()
            config = f"outbox: {{path: {folder / 'box.sqlite'}}}\nhealth_s: 1\n"
            config += f"broker: {{host: 127.0.0.1, port: {site.port}, {settings}}}\n"
            stack.enter_context(agent(site.wire, home, folder, config=config))
        for folder in folders:
            wait_until(
                lambda folder=folder: "another client uses the client id gw-001" in (folder / "err").read_text(), 60
            )
            said = status(folder)
            assert said["health"]["counters"]["client_id_taken"] >= 1
            assert "another client uses the client id gw-001, too" in said["broker"]["trouble"]
            words = botwatch(site.wire, "agent", "status", "--config", folder / "agent.yaml").stdout
            assert "another client uses the client id gw-001, too" in words
            checked = botwatch(site.wire, "agent", "check", "--config", folder / "agent.yaml").stdout
            assert "WRONG" in (line := next(line for line in checked.splitlines() if "another client" in line))
            assert "give each gateway an id of its own" in line
    for folder in folders:
        assert (folder / "err").read_text().count("give each gateway an id of its own") == 1


def unchanged_for_a_second(file: Path) -> Callable[[], bool]:
    """A condition: the file has had the same size for a second."""
    since = [time.monotonic(), file.stat().st_size]

    def holds() -> bool:
        if file.stat().st_size != since[1]:
            since[:] = time.monotonic(), file.stat().st_size
        return time.monotonic() - since[0] > 1.0

    return holds


@needs_mosquitto
@pytest.mark.parametrize("version", ["5", '"3.1.1"'])
def test_evidence_comes_through_the_broker_as_the_pcap_that_is_on_the_gateway(
    site: Site, home: Home, version: str
) -> None:
    (site.folder / "operator.yaml").write_text(f"broker: {{port: {site.port}, version: {version}}}")
    with agent(site.wire, home, site.folder, config=site.config):
        site.wire.send(steady(scan(9000, "192.168.1.57", mac=MAC), 0, 1000), site.folder, 1500)
        wait_until(lambda: alerts(site.folder), 20)
        id = alerts(site.folder)[0]["alert"]["context"]["botwatch"]["id"]
        file, out = site.folder / "evidence" / f"{id}.pcap", site.folder / "fetched.pcap"
        wait_until(lambda: file.stat().st_size > 48_000, 20)  # so that it comes in parts
        wait_until(unchanged_for_a_second(file), 20)
        words = (f"alert={id}", "--config", site.folder / "operator.yaml", "--out", out)
        done = site.order("evidence", *words)
        assert done.returncode == 0, done.stderr
        assert out.read_bytes() == file.read_bytes()
        assert hashlib.sha256(out.read_bytes()).hexdigest() in done.stdout
        out.unlink()
        done = site.order("evidence", f"alert={alertid.short(id)}", *words[1:], "--json")
        assert done.returncode == 0, done.stderr
        written = {"alert": id, "file": str(out), "bytes": file.stat().st_size}
        assert json.loads(done.stdout) == written | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        assert out.read_bytes() == file.read_bytes()
        nobody = "01a20937-03cb-7c3e-9f10-0c5a7c1e9a44"
        done = site.order("evidence", f"alert={nobody}", *words[1:3])
        assert done.returncode == 1
        assert f"gw-001: no evidence of {nobody}" in done.stderr
        with closing(State(site.folder / "box.sqlite", guest=True)) as state:
            assert OutboxTable(state).with_text('"part":') == []
    if shutil.which("tshark"):
        read = subprocess.run(["tshark", "-r", str(out)], capture_output=True, text=True, check=True)
        assert len(read.stdout.splitlines()) > 500


@needs_mosquitto
def test_a_test_alert_without_subscriber_or_broker_is_reported_and_waits(wire: Wire, tmp_path: Path) -> None:
    process, port = mosquitto(wire, tmp_path / "broker")
    box = tmp_path / "box.sqlite"
    words = (
        "agent",
        "test-alert",
        "--gateway",
        "gw-001",
        "--outbox",
        box,
        "--wait",
        "2",
        "--broker",
        f"127.0.0.1:{port}",
    )
    try:
        done = botwatch(wire, *words)
        assert done.returncode == 1
        assert "has no subscriber for alerts; the alert waits in" in done.stderr
        assert len(kept(box)) == 2
    finally:
        process.kill()
        process.wait()
    done = botwatch(wire, *words)
    assert done.returncode == 1
    assert "connection refused; the alert waits in" in done.stderr
    assert len(kept(box)) == 4
    assert done.stderr.count("\n") == 2  # and what the link logged


@needs_mosquitto
def test_a_hangup_takes_up_a_configuration_or_refuses_all_of_it(site: Site, home: Home) -> None:
    """What can change does so without a restart; a key that cannot, or a mistake, leaves everything as it was."""
    file, err = site.folder / "agent.yaml", site.folder / "err"
    with agent(site.wire, home, site.folder, config=f"{site.config}commands: []\n") as process:
        before, good = file.read_text(), site.folder / "good.yaml"
        good.write_text(before)

        def told(text: str, words: str) -> None:
            said = err.read_text().count(words)
            file.write_text(text)
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: err.read_text().count(words) > said)
            assert process.poll() is None

        def health() -> dict:
            words = ("agent", "status", "--json", "--config", good)
            return json.loads(botwatch(site.wire, *words).stdout)["health"]

        assert site.order("status", "--timeout", "2").returncode == 1
        named = before.replace("commands: []", f"commands: [status]\nnames: {{'{MAC_TEXT}': cam}}\nsite: here")
        told(named, "was read again: site, names, commands taken up")
        wait_until(lambda: site.order("status", "--timeout", "2").returncode == 0)
        assert json.loads(site.order("status", "--json").stdout)["commands"] == ["status"]
        assert "config_refused" not in health()
        told(
            f"site: elsewhere\n{named.replace('site: here', '')}\nscoring: {{max_rows_per_s: 500}}\n", "needs a restart"
        )
        assert "scoring.max_rows_per_s: a change of this needs a restart" in health()["config_refused"]
        told(named + "\nalerts: {end_s: -1}\n", "agent.yaml [alerts]: end_s")
        assert "end_s" in health()["config_refused"]
        assert "Traceback" not in err.read_text()
        told(named, "nothing has changed")
        assert "config_refused" not in health()
        site.wire.send(steady(scan(2000, "192.168.1.57", mac=MAC), 0, 1000), site.folder, 1000)
        wait_until(lambda: alerts(site.folder), 20)
        ours = alerts(site.folder)[0]["alert"]["context"]["botwatch"]
        assert (ours["device"]["name"], ours["site"]) == ("cam", "here")
        assert err.read_text().count("the changed configuration is refused") == 2


@pytest.mark.parametrize(("key", "value"), [("commands", ()), ("site", "s"), ("names", {"02:00:5e:10:00:01": "cam"})])
def test_what_has_changed_is_named(key: str, value: object) -> None:
    assert changed(AgentConfig(), replace(AgentConfig(), **{key: value})) == [key]


def test_keys_that_a_running_agent_takes_up_are_keys() -> None:
    """One that is renamed must not become one that needs a restart."""
    keys = {f"{f.name}.{inner.name}" for f in fields(AgentConfig) if is_dataclass(f.type) for inner in fields(f.type)}
    assert keys | {f.name for f in fields(AgentConfig)} >= LIVE
