"""Live capture on a veth pair between two network namespaces that the tests make: nothing leaves this machine."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
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
from tests.broker import needs_mosquitto, wait_until
from tests.counted import closing_counts
from tests.live import agent, alerts, broker, state, status
from tests.netns import MAC, ROOT, ip, taking, wait_until_up
from tests.streams import context
from tests.traffic import one_socket, packet, scan, spoofed, steady


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
    senders = {}
    for direction, wanted in (("in", 100), ("both", 150)):
        folder = tmp_path / direction
        folder.mkdir()
        with taking(wire, folder, wanted, direction):
            wire.send(went, tmp_path, where=wire.gateway, port=wire.port)
            wire.send(came, tmp_path)
        senders[direction] = np.load(folder / "rows.npz")["meta"]["src_mac"]
    assert np.unique_counts(senders["in"]).counts.tolist() == [100]
    assert np.unique_counts(senders["both"]).counts.tolist() == [100, 50]


def test_a_frame_that_a_bridge_forwards_is_counted_once_on_several_interfaces(wire, tmp_path):
    """Both ports of a bridge are captured: a broadcast of the device leaves by the other port, too."""
    for words in (
        ("link", "add", "lan1", "type", "veth", "peer", "name", "lan1x"),
        ("link", "add", "br0", "type", "bridge"),
        *(("link", "set", port, "master", "br0") for port in ("lan0", "lan1")),
        *(("link", "set", port, "up") for port in ("lan1", "lan1x", "br0")),
    ):
        ip("-n", wire.gateway, *words)
    wait_until_up(wire.gateway, "lan0", "lan1", "br0")
    frames = [(t, n, b"\xff" * 6 + data[6:]) for t, n, data in steady(scan(100, "192.168.1.57", mac=MAC), 0, 1000)]
    with taking(wire, tmp_path, 100, "in", "lan0", "lan1"):
        wire.send(frames, tmp_path)
    assert len(np.load(tmp_path / "rows.npz")["meta"]) == 100


def test_each_row_knows_the_interface_by_which_its_packet_came(wire, tmp_path):
    ip("-n", wire.gateway, "link", "add", "lan1", "type", "veth", "peer", "name", "lan1x")
    for port in ("lan1", "lan1x"):
        ip("-n", wire.gateway, "link", "set", port, "up")
    wait_until_up(wire.gateway, "lan1", "lan1x")
    first = list(steady(scan(100, "192.168.1.57", mac=MAC), 0, 1000))
    second = list(steady(scan(50, "192.168.1.58", mac=MAC + 1), 0, 1000))
    with taking(wire, tmp_path, 150, "in", "lan0", "lan1"):
        wire.send(first, tmp_path)
        wire.send(second, tmp_path, where=wire.gateway, port="lan1x")
    meta = np.load(tmp_path / "rows.npz")["meta"]
    came = {mac: meta["interface"][meta["src_mac"] == mac].tolist() for mac in (MAC, MAC + 1)}
    assert came == {MAC: [0] * 100, MAC + 1: [1] * 50}


def test_an_interface_that_goes_down_or_away_is_captured_again_when_it_is_back(wire, tmp_path):
    """libpcap survives down and up; a port that is removed and added again is another interface and is opened again."""
    frames = list(steady(scan(200, "192.168.1.57", mac=MAC), 0, 1000))
    with taking(wire, tmp_path, 600, "both") as capture:
        wire.send(frames, tmp_path)
        capture.wait_for("rows", 200)
        ip("-n", wire.gateway, "link", "set", wire.port, "down")
        capture.wait_for("rounds", capture.progress()["rounds"] + 3)  # the loop has read while the port was down
        ip("-n", wire.gateway, "link", "set", wire.port, "up")
        wire.wait_until_up()
        wire.send(frames, tmp_path)
        capture.wait_for("rows", 400)
        ip("-n", wire.gateway, "link", "del", wire.port)
        capture.wait_for("interface_lost", 1)
        wire.plug_in()
        capture.wait_for("interface_back", 1)
        wire.send(frames, tmp_path)
    counts = (tmp_path / "counts").read_text()
    assert "'captured': 600, 'dropped': 0" in counts
    assert "'interface_lost': 1, 'interface_back': 1" in counts
    assert len(np.load(tmp_path / "rows.npz")["meta"]) == 600


def test_a_scan_is_alerted_live_and_a_replay_of_the_record_gives_the_same_alerts(wire, home, tmp_path, capsys):
    """With one seed: of 130,000 keys the sets of what a device has seen confuse two, which depend on the seed.

    A capture file knows neither the interface nor the clock of the machine that recorded it.
    """
    record, config = tmp_path / "record.pcap", "alerts: {end_s: 5.0}\n"
    with agent(wire, home, tmp_path, "--no-broker", "--seed", "0", "--record", str(record), config=config):
        wire.send(steady(scan(3000, "192.168.1.57", mac=MAC), 0, 1000), tmp_path, 1000)
        wait_until(lambda: [state(a) for a in alerts(tmp_path)][-1:] == ["end"], 20)
        # A later packet of another device, so that the record is as long as the capture was.
        wire.send(steady(scan(1, "192.168.1.58", mac=MAC + 1), 0, 1000), tmp_path)
        wait_until(lambda: (MAC + 1).to_bytes(6, "big") in record.read_bytes())
    live = alerts(tmp_path)
    assert [state(a) for a in live if state(a) != "update"] == ["new", "end"]
    assert context(live[0])["device"]["mac"] == "02:00:5e:10:00:01"
    capsys.readouterr()
    words = ["replay", "--json", str(record), "--bundle", str(home.bundle), "--config", str(tmp_path / "agent.yaml")]
    assert main([*words, "--evidence", str(tmp_path / "again")]) == 0
    replayed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {alert.pop("in_iface") for alert in live} == {"lan0"}
    clock = "unsynced" if synchronised() is False else "synced"
    assert {context(alert).pop("clock") for alert in live} == {clock}
    assert not any("in_iface" in alert for alert in replayed)  # a file has no interface, and its clock is not known
    assert {context(alert).pop("clock") for alert in replayed} == {"synced"}
    assert replayed == live
    evidence = {path.name: path.read_bytes() for path in (tmp_path / "evidence").iterdir()}
    assert evidence == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert len(evidence) == 1
    assert closing_counts((tmp_path / "err").read_text())["captured"] > 0


def test_an_attacking_device_is_muted_and_allowed_while_packets_come_and_reported_again_afterwards(
    wire, home, tmp_path, capsys
):
    """A suppressed episode is counted and ends at once; another device's attack is reported meanwhile."""
    config = f"outbox: {{path: {tmp_path / 'box.sqlite'}}}\nbroker: {{host: 127.0.0.1, port: 9}}\n"
    attacker, other = mac_text(MAC), mac_text(MAC + 1)

    def episodes(mac: str, reached: str) -> list[str]:
        """Return the ids of a device's episodes that have reached a state, in the order in which they did."""
        documents = [context(alert) for alert in alerts(tmp_path)]
        return [d["id"] for d in documents if d["device"]["mac"] == mac and d["state"] == reached]

    def order(*words: str) -> None:
        assert main([*words, "--config", str(tmp_path / "agent.yaml")]) == 0, capsys.readouterr().err

    def suppressed() -> tuple[int, list[dict]]:
        """Return how many episodes were suppressed, and the list of suppressions."""
        reply = status(tmp_path)
        return reply["health"]["counters"]["episodes_suppressed"], reply["allowed"]

    with agent(wire, home, tmp_path, config=config):
        frames = list(steady(scan(3500, "192.168.1.57", mac=MAC), 0, 100))
        attack = threading.Thread(target=wire.send, args=(frames, tmp_path, 100))
        attack.start()  # for 35 seconds
        wait_until(lambda: len(episodes(attacker, "new")) == 1, 20)
        order("mute", attacker, "--for", "4s")
        wait_until(lambda: episodes(attacker, "end") == episodes(attacker, "new"), 3)
        wire.send(steady(scan(300, "192.168.1.58", mac=MAC + 1, seed=3), 0, 200), tmp_path, 200)
        wait_until(lambda: len(episodes(other, "new")) == 1, 5)
        assert len(episodes(attacker, "new")) == 1
        count, (entry,) = suppressed()
        assert (count, entry["kind"], entry["hits"]) == (1, "mute", 1)
        wait_until(lambda: len(episodes(attacker, "new")) == 2, 8)  # the mute has expired, the attack goes on

        order("allow", episodes(attacker, "new")[-1], "--for", "4s", "--reason", "a test")
        wait_until(lambda: len(episodes(attacker, "end")) == 2, 3)
        count, (entry,) = suppressed()
        assert (count, entry["kind"], entry["hits"]) == (2, "allow", 1)
        wait_until(lambda: len(episodes(attacker, "new")) == 3, 8)
        assert suppressed()[1] == []
        assert attack.is_alive()
        attack.join()
    assert len(set(episodes(attacker, "new"))) == 3


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
def test_log_and_health_show_what_a_flood_does_to_scoring_and_a_replay_of_the_record_scores_alike(
    wire, home, tmp_path, caplog
):
    """The budget is one of capture time. Ten quiet seconds end the flood, so the test takes as long.

    The step is looked at once a batch, and a batch of a replay may hold more than a second. So a second of `shared`,
    where a second ends just after the flood began, is in the log of one and not of the other. The others must agree.
    """
    record, budget = tmp_path / "record.pcap", "scoring: {max_rows_per_s: 100}\nhealth_s: 1.0\n"
    with broker(wire, tmp_path) as (config, heard):
        with agent(wire, home, tmp_path, "--seed", "0", "--record", str(record), config=config + budget):
            wait_until(lambda: heard("health")[-1:] and heard("health")[-1]["scoring"] == "all", 20)
            wire.send(steady(one_socket(8000, "192.168.1.57", mac=MAC), 0, 4000), tmp_path, 4000)
            quiet = steady([packet("192.168.1.57", 1, mac=MAC)] * 26, 0, 2)
            wire.send(quiet, tmp_path, 2)
            wait_until(lambda: heard("health")[-1]["scoring"] == "all", 20)
        scoring = [health["scoring"] for health in heard("health")]
        counters = heard("health")[-1]["counters"]
    assert "sparse" in scoring
    assert counters["shed"] > 4000  # how many depends on how fast this machine sends
    live = steps((tmp_path / "err").read_text())
    assert live[-1] == "all"
    assert "sparse" in live
    assert len(live) <= 4  # the first and the last second of the flood may be `shared`
    caplog.clear()
    words = ["replay", str(record), "--bundle", str(home.bundle), "--config", str(tmp_path / "agent.yaml")]
    with caplog.at_level("INFO"):
        assert main([*words, "--evidence", str(tmp_path / "again")]) == 0
    assert lasting(steps(caplog.text)) == lasting(live) == ["sparse", "all"]


def lasting(steps: list[str]) -> list[str]:
    """Return the steps that last ten seconds or more, those of a flood and of calm."""
    return [step for step in steps if step != "shared"]


def steps(log: str) -> list[str]:
    """Return the states that scoring changed to; the log must give for each change the state before it."""
    lines = re.findall(r"scoring changed from (\w+) to (\w+): .+; \d+ rows shed so far", log)
    assert [was for was, _ in lines] == ["all", *(now for _, now in lines)][: len(lines)]
    assert all(now != was for was, now in lines)
    return [now for _, now in lines]


def test_an_interface_that_can_never_exist_is_refused_in_one_line(home, tmp_path, capsys):
    given = ["--bundle", str(home.bundle), "--no-broker"]
    assert main(["run", *given]) == 2
    assert "no interface: give --interface" in capsys.readouterr().err
    assert main(["run", *given, "--interface", "a/b"]) == 2
    assert "cannot be the name of an interface" in capsys.readouterr().err


def test_check_names_each_remedy(wire, home, tmp_path):
    (tmp_path / "agent.yaml").write_text(
        f"gateway: gw-001\nbundle: {home.bundle}\ncapture: {{interfaces: [lan0, nosuch0], direction: both}}\n"
        "broker: {host: 127.0.0.1, port: 9}\n"
        f"outbox: {{path: {tmp_path}/absent/box.sqlite}}\n"
    )
    command = [sys.executable, "-m", "edge_agent.command", "agent", "check", "--config", str(tmp_path / "agent.yaml")]
    process = wire.on_gateway(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    findings, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    lines = {line[7:].split(":", 1)[0] + line[:5]: line for line in findings.splitlines()}
    assert "bundleok   " in lines
    assert "nosuch0WRONG" in lines
    assert "mkdir -p" in lines["diskWRONG"]
    assert "connection refused" in findings
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


def unread(counts: dict[str, int]) -> int:
    """Return the number of frames that are still in the buffer."""
    return counts["captured"] - counts["dropped"] - counts["rows"]


def test_frames_that_overflow_the_buffer_are_counted_and_times_are_those_of_arrival(wire, home, tmp_path):
    """The agent is stopped while some 60,000 frames arrive; its buffer of 8 MB holds some of them."""
    record = tmp_path / "record.pcap"
    config = f"health_s: 5\noutbox: {{path: {tmp_path / 'box.sqlite'}}}\nbroker: {{host: 127.0.0.1, port: 9}}\n"
    with agent(wire, home, tmp_path, "--record", str(record), config=config) as process:
        process.send_signal(signal.SIGSTOP)
        began = time.time_ns()
        command = ["ip", "netns", "exec", wire.device, sys.executable, "-c", FLOOD, str(MAC)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
        ended = time.time_ns()
        sent = int(printed.split()[0])
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: "were dropped before they could be read" in (tmp_path / "err").read_text(), 30)
        wait_until(lambda: unread(status(tmp_path)["health"]["counters"]) <= 3, 30)
    counts = closing_counts((tmp_path / "err").read_text())
    assert counts["captured"] >= sent
    assert counts["dropped"] > sent // 10
    assert 0 <= unread(counts) <= 3
    with open_file(record) as source:
        meta = Extractor(4096).push(source, 1 << 20).meta
    assert len(meta) == counts["rows"]
    flooded = meta["t_ns"][(meta["t_ns"] >= began) & (meta["src_mac"] == MAC)]
    assert len(flooded) > 5_000
    assert flooded.max() < ended
