"""Live capture on a veth pair between two network namespaces that the tests make: nothing leaves this machine."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from edge_agent.__main__ import main
from edge_agent.capture.features import Extractor
from edge_agent.capture.sources import CaptureError, Recorder, open_file
from edge_agent.config import CaptureConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract.captures import mac_text
from edge_agent.state import State
from edge_agent.system import synchronised
from tests.broker import Mosquitto, needs_mosquitto, wait_until
from tests.conftest import Home
from tests.netns import MAC, ROOT, Wire, ip, taking
from tests.traffic import one_socket, packet, scan, spoofed, steady


@contextmanager
def agent(wire: Wire, home: Home, folder: Path, *words: str, config: str = "") -> Iterator["subprocess.Popen[str]"]:
    """`botwatch agent run` on the gateway's port; ends with SIGTERM and must do so soon and well."""
    file = folder / "agent.yaml"
    text = f"capture: {{interfaces: [{wire.port}]}}\nevidence: {{path: {folder / 'evidence'}}}\n{config}"
    file.write_text(text)
    command = [sys.executable, "-m", "edge_agent.command", "agent", "run", "--config", str(file)]
    out, err = (folder / "out").open("w"), (folder / "err").open("w")
    process = wire.on_gateway(*command, "--bundle", str(home.bundle), *words, stdout=out, stderr=err)
    try:
        wait_until(lambda: "capturing on" in (folder / "err").read_text() or process.poll() is not None, 30)
        assert process.poll() is None, (folder / "err").read_text()
        time.sleep(0.3)
        yield process
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        assert process.wait(10) == 0, (folder / "err").read_text()
        assert time.monotonic() - asked < 4  # two seconds on a machine that does nothing else
    finally:
        process.kill()
        process.wait()


def alerts(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "out").read_text().splitlines()]


def state(alert: dict) -> str:
    return alert["alert"]["context"]["botwatch"]["state"]


def test_rows_of_a_live_capture_are_those_of_its_record(wire, tmp_path):
    frames = list(steady(scan(2000, "192.168.1.57", mac=MAC), 0, 1000))
    with taking(wire, tmp_path, len(frames), "both"):
        wire.send(frames, tmp_path, 4000)
    live = np.load(tmp_path / "rows.npz")
    assert len(live["meta"]) == len(frames)
    extractor, parts = Extractor(4096, seed=1), []
    with open_file(tmp_path / "record.pcap") as source:
        while len(rows := extractor.push(source, 333)):
            parts.append(rows)
    assert np.concatenate([p.meta for p in parts]).tobytes() == live["meta"].tobytes()
    assert np.concatenate([p.values for p in parts]).tobytes() == live["values"].tobytes()
    assert f"'captured': {len(frames)}, 'dropped': 0" in (tmp_path / "counts").read_text()
    assert (live["meta"]["length"] == [len(data) for _, _, data in frames]).all()


def test_inbound_leaves_out_what_the_gateway_itself_sends(wire, tmp_path):
    came, went = (
        list(steady(scan(100, "192.168.1.57", mac=MAC), 0, 1000)),
        list(steady(spoofed(50, mac=MAC + 1), 0, 1000)),
    )
    found = {}
    for direction, wanted in (("in", 100), ("both", 150)):
        folder = tmp_path / direction
        folder.mkdir()
        with taking(wire, folder, wanted, direction):
            wire.send(went, tmp_path, where=wire.gateway, port=wire.port)
            wire.send(came, tmp_path)
        found[direction] = np.load(folder / "rows.npz")["meta"]["src_mac"]
    assert np.unique_counts(found["in"]).counts.tolist() == [100]
    assert np.unique_counts(found["both"]).counts.tolist() == [100, 50]


def test_a_frame_that_a_bridge_forwards_is_counted_once_on_several_interfaces(wire, tmp_path):
    """Both ports of a bridge and the bridge: what the device broadcasts leaves by the other port, too."""
    for words in (
        ("link", "add", "lan1", "type", "veth", "peer", "name", "lan1x"),
        ("link", "add", "br0", "type", "bridge"),
        *(("link", "set", port, "master", "br0") for port in ("lan0", "lan1")),
        *(("link", "set", port, "up") for port in ("lan1", "lan1x", "br0")),
    ):
        ip("-n", wire.gateway, *words)
    time.sleep(0.5)
    frames = [(t, n, b"\xff" * 6 + data[6:]) for t, n, data in steady(scan(100, "192.168.1.57", mac=MAC), 0, 1000)]
    with taking(wire, tmp_path, 100, "in", "lan0", "lan1"):
        wire.send(frames, tmp_path)
    assert len(np.load(tmp_path / "rows.npz")["meta"]) == 100


def test_each_row_knows_the_interface_by_which_its_packet_came(wire, tmp_path):
    ip("-n", wire.gateway, "link", "add", "lan1", "type", "veth", "peer", "name", "lan1x")
    for port in ("lan1", "lan1x"):
        ip("-n", wire.gateway, "link", "set", port, "up")
    first = list(steady(scan(100, "192.168.1.57", mac=MAC), 0, 1000))
    second = list(steady(scan(50, "192.168.1.58", mac=MAC + 1), 0, 1000))
    with taking(wire, tmp_path, 150, "in", "lan0", "lan1"):
        wire.send(first, tmp_path)
        wire.send(second, tmp_path, where=wire.gateway, port="lan1x")
    meta = np.load(tmp_path / "rows.npz")["meta"]
    came = {mac: meta["interface"][meta["src_mac"] == mac].tolist() for mac in (MAC, MAC + 1)}
    assert came == {MAC: [0] * 100, MAC + 1: [1] * 50}


def test_an_interface_that_goes_down_or_away_is_taken_up_again(wire, tmp_path):
    """Down and up libpcap outlives by itself; a port that is pulled out and put in again is another one to it."""
    frames = list(steady(scan(200, "192.168.1.57", mac=MAC), 0, 1000))
    with taking(wire, tmp_path, 600, "both"):
        wire.send(frames, tmp_path)
        ip("-n", wire.gateway, "link", "set", wire.port, "down")
        time.sleep(0.5)
        ip("-n", wire.gateway, "link", "set", wire.port, "up")
        time.sleep(1.0)
        wire.send(frames, tmp_path)
        time.sleep(0.5)
        ip("-n", wire.gateway, "link", "del", wire.port)
        time.sleep(0.5)
        wire.plug_in()
        time.sleep(4.0)
        wire.send(frames, tmp_path)
    counted = (tmp_path / "counts").read_text()
    assert "'captured': 600, 'dropped': 0" in counted
    assert "'interface_lost': 1, 'interface_back': 1" in counted
    assert len(np.load(tmp_path / "rows.npz")["meta"]) == 600


def test_a_scan_is_alerted_live_and_a_replay_of_the_record_says_the_same(wire, home, tmp_path, capsys):
    """Under one seed: the sets of what a device has seen confuse two keys in 130,000, others under another seed."""
    record, config = tmp_path / "record.pcap", "alerts: {end_s: 5.0}\n"
    with agent(wire, home, tmp_path, "--no-broker", "--seed", "0", "--record", str(record), config=config):
        wire.send(steady(scan(3000, "192.168.1.57", mac=MAC), 0, 1000), tmp_path, 1000)
        wait_until(lambda: [state(a) for a in alerts(tmp_path)][-1:] == ["end"], 20)
        wire.send(steady(scan(1, "192.168.1.58", mac=MAC + 1), 0, 1000), tmp_path)  # so that the record is as long
        time.sleep(1)
    told = alerts(tmp_path)
    assert [state(a) for a in told if state(a) != "update"] == ["new", "end"]
    assert told[0]["alert"]["context"]["botwatch"]["device"]["mac"] == "02:00:5e:10:00:01"
    capsys.readouterr()
    words = ["replay", str(record), "--bundle", str(home.bundle), "--config", str(tmp_path / "agent.yaml")]
    assert main([*words, "--evidence", str(tmp_path / "again")]) == 0
    replayed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not any("in_iface" in alert for alert in replayed)  # a file has no interface, and its clock is not known
    assert {alert.pop("in_iface") for alert in told} == {wire.port}
    clock = "unsynced" if synchronised() is False else "synced"
    assert {alert["alert"]["context"]["botwatch"].pop("clock") for alert in told} == {clock}
    for alert in replayed:
        del alert["alert"]["context"]["botwatch"]["clock"]
    assert replayed == told
    kept = {path.name: path.read_bytes() for path in (tmp_path / "evidence").iterdir()}
    assert kept == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert len(kept) == 1
    assert re.search(r"captured [\d,]+", (tmp_path / "err").read_text())


@contextmanager
def broker(wire: Wire, folder: Path) -> Iterator[tuple[str, Callable[[str], list[dict]]]]:
    """A broker in the gateway's namespace, as on a small site: what an agent is told of it, and a function that gives
    the messages so far on one of the agent's topics."""
    process = listener = None
    mosquitto, heard = Mosquitto(folder / "broker"), folder / "heard"
    (folder / "mosquitto.conf").write_text(f"listener {mosquitto.port} 127.0.0.1\nallow_anonymous true\n")
    where = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin")
    with (folder / "mosquitto.log").open("w") as log:
        try:
            process = wire.on_gateway(str(where), "-c", str(folder / "mosquitto.conf"), stderr=log)
            listen = [sys.executable, "-c", LISTEN, str(mosquitto.port), str(heard)]
            listener = wire.on_gateway(*listen, cwd=Path(__file__).parents[2])
            wait_until(heard.exists, 20)

            def messages(leaf: str) -> list[dict]:
                lines = (line.split(" ", 1) for line in heard.read_text().splitlines(keepends=True))
                return [json.loads(text) for name, text in lines if name == leaf and text.endswith("\n")]

            outbox = f"outbox: {{path: {folder / 'box.sqlite'}}}\n"
            yield f"{outbox}broker: {{host: 127.0.0.1, port: {mosquitto.port}}}\n", messages
        finally:
            for started in (listener, process):
                if started:
                    started.kill()
                    started.wait()


def test_a_device_that_attacks_is_muted_and_allowed_while_packets_come_and_told_again_afterwards(
    wire, home, tmp_path, capsys
):
    """What is held back is counted and its episode ends at once; another device's attack is told meanwhile."""
    config = f"outbox: {{path: {tmp_path / 'box.sqlite'}}}\nbroker: {{host: 127.0.0.1, port: 9}}\n"
    attacker, file = mac_text(MAC), str(tmp_path / "agent.yaml")

    def told(mac: str, which: str) -> list[str]:
        """Ids of a device's episodes, in the order in which it was told that they are in this state."""
        mine = [alert["alert"]["context"]["botwatch"] for alert in alerts(tmp_path)]
        return [one["id"] for one in mine if one["device"]["mac"] == mac and one["state"] == which]

    def order(*words: str) -> None:
        assert main([*words, "--config", file]) == 0, capsys.readouterr().err

    def held_back() -> tuple[int, list[dict]]:
        capsys.readouterr()
        order("status", "--json")
        said = json.loads(capsys.readouterr().out)
        return said["health"]["counters"]["episodes_suppressed"], said["allowed"]

    with agent(wire, home, tmp_path, config=config):
        frames = list(steady(scan(3500, "192.168.1.57", mac=MAC), 0, 100))
        attack = threading.Thread(target=wire.send, args=(frames, tmp_path, 100))
        attack.start()  # for 35 seconds
        wait_until(lambda: len(told(attacker, "new")) == 1, 20)
        order("mute", attacker, "--for", "4s")
        wait_until(lambda: told(attacker, "end") == told(attacker, "new"), 3)
        wire.send(steady(scan(300, "192.168.1.58", mac=MAC + 1, seed=3), 0, 200), tmp_path, 200)
        wait_until(lambda: len(told(mac_text(MAC + 1), "new")) == 1, 5)
        assert len(told(attacker, "new")) == 1
        suppressed, (entry,) = held_back()
        assert (suppressed, entry["kind"], entry["hits"]) == (1, "mute", 1)
        wait_until(lambda: len(told(attacker, "new")) == 2, 8)  # it is over and the attack is not

        order("allow", told(attacker, "new")[-1], "--for", "4s", "--reason", "a test")
        wait_until(lambda: len(told(attacker, "end")) == 2, 3)
        suppressed, (entry,) = held_back()
        assert (suppressed, entry["kind"], entry["hits"]) == (2, "allow", 1)
        wait_until(lambda: len(told(attacker, "new")) == 3, 8)
        assert held_back()[1] == []
        assert attack.is_alive()
        attack.join()
    assert len(set(told(attacker, "new"))) == 3


@needs_mosquitto
def test_a_stop_delivers_the_alerts_and_the_health(wire, home, tmp_path):
    with broker(wire, tmp_path) as (config, heard):
        with agent(wire, home, tmp_path, config=config):
            wire.send(steady(scan(2000, "192.168.1.57", mac=MAC), 0, 1000), tmp_path, 1000)
            wait_until(lambda: len(alerts(tmp_path)) > 0, 20)
        assert heard("alert") == alerts(tmp_path)
        assert [status["state"] for status in heard("status")] == ["online", "stopped"]
        assert heard("health")[0]["rss_mb"] > 10
        assert heard("health")[0]["interfaces_down"] == []
        devices = heard("devices")
        seen = {d["mac"]: d for d in devices[-1]["devices"]}
        assert (seen["02:00:5e:10:00:01"]["state"], seen["02:00:5e:10:00:01"]["packets"]) == ("learning", 2000)
        with closing(State(tmp_path / "box.sqlite")) as state:
            written_s, document = state.document("devices")
            assert json.loads(document) == devices[-1]
            assert abs(time.time() - written_s) < 60
            sha = bundles.load(home.bundle).sha256
            assert 0x02005E100001 in dict(state.learnt(sha))


@needs_mosquitto
def test_what_a_flood_does_to_scoring_is_in_log_and_health_and_a_replay_of_the_record_does_the_same(
    wire, home, tmp_path, caplog
):
    """The budget is of capture time. Ten seconds of calm are part of it, so the test takes as long."""
    record, budget = tmp_path / "record.pcap", "scoring: {max_rows_per_s: 100}\nhealth_s: 1.0\n"
    with broker(wire, tmp_path) as (config, heard):
        with agent(wire, home, tmp_path, "--seed", "0", "--record", str(record), config=config + budget):
            wait_until(lambda: heard("health")[-1:] and heard("health")[-1]["scoring"] == "all", 20)
            wire.send(steady(one_socket(8000, "192.168.1.57", mac=MAC), 0, 4000), tmp_path, 4000)
            calm = steady([packet("192.168.1.57", 1, mac=MAC)] * 26, 0, 2)
            wire.send(calm, tmp_path, 2)
            wait_until(lambda: heard("health")[-1]["scoring"] == "all", 20)
        found = [health["scoring"] for health in heard("health")]
        counters = heard("health")[-1]["counters"]
    assert "sparse" in found
    assert counters["shed"] > 7000
    live = steps((tmp_path / "err").read_text())
    assert live[-1] == "all"
    assert "sparse" in live
    assert len(live) <= 4  # the first and the last second of the flood may be `shared`
    caplog.clear()
    words = ["replay", str(record), "--bundle", str(home.bundle), "--config", str(tmp_path / "agent.yaml")]
    with caplog.at_level("INFO"):
        assert main([*words, "--evidence", str(tmp_path / "again")]) == 0
    assert steps(caplog.text) == live


def steps(log: str) -> list[str]:
    """What scoring changed to, line by line; each line must begin where the one before it ended."""
    lines = re.findall(r"scoring changed from (\w+) to (\w+): .+; \d+ rows shed so far", log)
    assert [was for was, _ in lines] == ["all", *(now for _, now in lines)][: len(lines)]
    assert all(now != was for was, now in lines)
    return [now for _, now in lines]


LISTEN = """
import sys, time
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
out = None
def heard(c, d, m):
    out.write(m.topic.rsplit("/", 1)[1] + " " + m.payload.decode() + "\\n"); out.flush()
def subscribed(*_):
    global out
    out = open(sys.argv[2], "w")
client = mqtt.Client(CallbackAPIVersion.VERSION2)
client.on_connect = lambda c, *_: c.subscribe("botwatch/#", 1)
client.on_subscribe, client.on_message = subscribed, heard
for _ in range(100):
    try:
        client.connect("127.0.0.1", int(sys.argv[1])); break
    except OSError:
        time.sleep(0.1)
client.loop_forever()
"""


def test_what_cannot_be_captured_on_is_said_in_one_line(home, tmp_path, capsys):
    given = ["--bundle", str(home.bundle), "--no-broker"]
    assert main(["run", *given]) == 2
    assert "no interface: give --interface" in capsys.readouterr().err
    assert main(["run", *given, "--interface", "nosuch0"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "nosuch0" in said[0]
    assert main(["run", *given, "--interface", "a/b"]) == 2
    assert "cannot be the name of an interface" in capsys.readouterr().err


def test_check_names_each_remedy(wire, home, tmp_path):
    (tmp_path / "agent.yaml").write_text(
        f"bundle: {home.bundle}\ncapture: {{interfaces: [lan0, nosuch0], direction: both}}\n"
        "broker: {host: 127.0.0.1, port: 9}\n"
        f"outbox: {{path: {tmp_path}/absent/box.sqlite}}\n"
    )
    command = [sys.executable, "-m", "edge_agent.command", "agent", "check", "--config", str(tmp_path / "agent.yaml")]
    process = wire.on_gateway(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    lines = {line[7:].split(":", 1)[0] + line[:5]: line for line in said.splitlines()}
    assert "bundleok   " in lines
    assert "nosuch0WRONG" in lines
    assert "mkdir -p" in lines["diskWRONG"]
    assert "connection refused" in said
    assert "`ethtool -K lan0 tso off" in lines["lan0WRONG"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ({"snaplen": 20}, "snaplen"),
        ({"buffer_mb": 0}, "buffer_mb"),
        ({"record_mb": 0}, "record_mb"),
        ({"interfaces": ("a", "a")}, "interfaces"),
        ({"interfaces": ("x" * 16,)}, "interfaces"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(text, key):
    with pytest.raises(ValueError, match=key):
        CaptureConfig(**text)


def test_a_record_ends_at_its_bound_and_capturing_goes_on(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="nosuch"):
        Recorder(tmp_path / "nosuch" / "file.pcap", 10)


FLOOD = """
import sys
from tests.bench.bench_live import flood
from tests.traffic import one_socket
print(*flood("eth0", list(one_socket(1000, mac=int(sys.argv[1]))), 30_000, 2.0))
"""


def test_what_the_buffer_does_not_hold_is_counted_and_times_are_those_of_arrival(wire, home, tmp_path):
    """The agent is stopped while some 60,000 frames arrive; its 8 MB hold a part of them."""
    record = tmp_path / "record.pcap"
    config = f"health_s: 5\noutbox: {{path: {tmp_path / 'box.sqlite'}}}\nbroker: {{host: 127.0.0.1, port: 9}}\n"
    with agent(wire, home, tmp_path, "--record", str(record), config=config) as process:
        process.send_signal(signal.SIGSTOP)
        began = time.time_ns()
        command = ["ip", "netns", "exec", wire.device, sys.executable, "-c", FLOOD, str(MAC)]
        said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
        ended = time.time_ns()
        sent = int(said.split()[0])
        time.sleep(1)
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: "were dropped before they could be read" in (tmp_path / "err").read_text(), 30)
    counted = dict(re.findall(r"(\w+) ([\d,]+)(?=, |\n|$)", (tmp_path / "err").read_text()))
    captured, dropped, rows = (int(counted[key].replace(",", "")) for key in ("captured", "dropped", "rows"))
    assert captured >= sent
    assert dropped > sent // 10
    assert 0 <= captured - dropped - rows <= 3  # what came in the last moment waits in the buffer
    with open_file(record) as source:
        meta = Extractor(4096).push(source, 1 << 20).meta
    assert len(meta) == rows
    flooded = meta["t_ns"][(meta["t_ns"] >= began) & (meta["src_mac"] == MAC)]
    assert len(flooded) > 5_000
    assert flooded.max() < ended
