"""What is kept of the packets around an alert: which, how much of each, and that other programs can read it."""

import hashlib
import itertools
import json
import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from scapy.utils import PcapReader

from edge_agent.__main__ import main
from edge_agent.capture.features import Cut, Extractor
from edge_agent.capture.sources import open_file
from edge_agent.contract import messages
from edge_agent.contract.alert import Alert
from edge_agent.delivery import evidence
from tests.conftest import Home
from tests.reference import frames as craft
from tests.traffic import PLUG, Frame, S, arp, merged, one_socket, packet, scan, spoofed, steady

START = 1_700_000_000 * S
CAM = 0x02_00_00_00_00_12


def records(data: bytes) -> list[Frame]:
    """(t_ns, wire length, bytes) of pcap records with nanoseconds."""
    at, found = 0, []
    while at < len(data):
        s, ns, captured, length = struct.unpack_from("=IIII", data, at)
        found.append((s * S + ns, length, data[at + 16 : at + 16 + captured]))
        at += 16 + captured
    return found


def kept(frames: list[Frame], cut: Cut, *, size: int = 1 << 20, span_s: float = 8.0, payload: int = 0, link: int = 1):
    extractor = Extractor(4096, seed=1)
    extractor.keep(size, span_s, payload)
    for i in range(0, len(frames), 500):
        extractor.push_frames(frames[i : i + 500], link)
    return extractor, records(extractor.cut(cut)[1])


EVER = {"from_ns": 0, "to_ns": 2 * START}


# -- the ring --


@pytest.mark.parametrize("transport", ["tcp", "udp", "echo", "error tcp", "error udp", "igmp"])
@pytest.mark.parametrize("network", ["ipv4", "ipv6", "arp"])
@pytest.mark.parametrize("tags", ["", "vlan", "qinq", "pppoe"])
def test_a_packet_is_stored_without_its_payload(network, tags, transport):
    if network == "arp" and tags == "pppoe":
        pytest.skip("there is none")
    length, data = craft.craft(craft.Spec(network=network, tags=tags, transport=transport, payload=100))
    ((_, on_wire, found),) = kept([(START, length, data)], Cut(**EVER))[1]
    assert on_wire == length
    dropped = {"tcp": 100, "udp": 100, "echo": 100, "igmp": 8}.get(transport, 0)
    if (network, transport) == ("ipv6", "error tcp"):
        dropped = 12  # of what an error quotes, the ports and the four bytes behind them
    assert found == data[: len(data) - (0 if network == "arp" else dropped)]


def test_payload_is_stored_if_configured():
    data = packet(PLUG, "203.0.113.9", size=300)
    frames = [(START, len(data), data)]
    assert len(kept(frames, Cut(**EVER))[1][0][2]) == 14 + 20 + 8
    assert kept(frames, Cut(**EVER), payload=10)[1][0][2] == data[: 14 + 20 + 8 + 10]
    assert kept(frames, Cut(**EVER), payload=5000)[1][0][2] == data


def test_a_cut_is_of_its_time_and_of_its_device_first():
    plug = list(steady(scan(1000), START, 100))
    cam = list(steady(one_socket(1000, "192.168.38.21", mac=CAM), START + 1, 100))
    frames = merged(plug, cam)
    _, found = kept(frames, Cut(START + 2 * S, START + 5 * S))
    assert [t for t, _, _ in found] == [t for t, _, _ in frames if START + 2 * S <= t < START + 5 * S]
    room = 100 * (16 + 54)
    for mac, own in ((0x02_00_00_00_00_11, plug), (CAM, cam)):
        size = 16 + (54 if own is plug else 42)
        newest = kept(frames, Cut(START, START + 5 * S, mac, most_bytes=room))[1]
        assert [t for t, _, _ in newest] == [t for t, _, _ in own if t < START + 5 * S][-(room // size) :]
        oldest = kept(frames, Cut(START, START + 5 * S, mac, most_bytes=room, newest=False))[1]
        assert [t for t, _, _ in oldest] == [t for t, _, _ in own][: room // size]
    others = kept(frames, Cut(START, START + 1 * S, CAM, most_bytes=room))[1]  # 100 of its own, and what else fits
    assert sum(data[6:12] == CAM.to_bytes(6, "big") for _, _, data in others) == 100
    assert len(others) == 100 + (room - 100 * 58) // 70
    by_address = kept(frames, Cut(START, START + S, address="192.168.38.21", most_bytes=100 * 58))[1]
    assert {data[6:12] for _, _, data in by_address} == {CAM.to_bytes(6, "big")}


def test_a_flood_is_thinned_and_leaves_room_for_the_others():
    """50,000 packets a second under ever other addresses for four seconds, ten times what the ring could hold."""
    others = list(steady(one_socket(400, "192.168.38.21", mac=CAM), START, 100))
    flood = list(steady(spoofed(200_000), START + 2 * S, 50_000))
    extractor, found = kept(merged(others, flood), Cut(**EVER, most_bytes=1 << 24))
    counts = extractor.counts()
    assert sum(data[6:12] == CAM.to_bytes(6, "big") for _, _, data in found) == len(others)
    times = [t - START for t, _, data in found if data[6:12] != CAM.to_bytes(6, "big")]
    first, later = [t for t in times if t < 2.1 * S], [t for t in times if t > 3 * S]
    assert len(first) > 1000  # how it began is kept as it was
    assert first[:900] == [t - START for t, _, _ in flood[:900]]
    assert max(b - a for a, b in itertools.pairwise(later)) < 0.1 * S  # and an even sample of the rest
    assert counts["ring_kept"] == len(found)
    assert counts["ring_kept"] + counts["ring_left_out"] == len(others) + len(flood)
    assert sum(extractor.memory_bytes().values()) > 0


@pytest.mark.parametrize("senders", [1, 4, 200])
def test_the_ring_reaches_back_for_its_span_however_many_devices_send(senders):
    frames = [
        (START + i * S // 20_000, 60, packet(i, "203.0.113.9", mac=0x020000000100 + i % senders))
        for i in range(200_000)
    ]
    extractor, found = kept(frames, Cut(**EVER, most_bytes=1 << 24), size=1 << 17, span_s=3.0)
    assert found[0][0] <= frames[-1][0] - 3 * S
    assert extractor.memory_bytes()["ring"] < (1 << 17) + 8192


def test_a_clock_that_is_set_back_does_not_stop_it():
    later = list(steady(scan(500), START + 1000 * S, 100))
    earlier = list(steady(scan(500), START, 100))
    assert len(kept(later + earlier, Cut(START, START + 100 * S))[1]) == 500


def test_an_empty_ring_gives_nothing_and_a_wrong_one_is_refused():
    extractor = Extractor(64)
    with pytest.raises(ValueError, match="no ring"):
        extractor.cut(Cut(**EVER))
    for wrong in ((100, 5.0, 0), (1 << 20, 0.1, 0), (1 << 20, 5.0, 1 << 20)):
        with pytest.raises(ValueError, match="not in"):
            extractor.keep(*wrong)
    extractor.keep(1 << 20, 5.0)
    assert extractor.cut(Cut(**EVER)) == (-1, b"")
    with pytest.raises(ValueError, match="there is a ring"):
        extractor.keep(1 << 20, 5.0)


# -- files --


@pytest.fixture
def told(home: Home, attack_capture: Path, tmp_path: Path, capsys) -> tuple[list[dict], Path]:
    """Alerts of a replay, and the folder with their evidence."""
    folder = tmp_path / "kept"
    capsys.readouterr()
    assert main(["replay", "--json", str(attack_capture), "--bundle", str(home.bundle), "--evidence", str(folder)]) == 0
    out, _ = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], folder


def own(alert: dict) -> dict:
    return alert["alert"]["context"]["botwatch"]


def test_every_episode_has_a_pcap_that_three_readers_open_and_whose_hashes_hold(told, attack_frames):
    alerts, folder = told
    ids = [own(a)["id"] for a in alerts if own(a)["state"] == "new"]
    assert [path.stem for path in evidence.files(folder)] == sorted(ids)
    assert len(ids) == 2
    for alert in alerts:
        content = (folder / f"{own(alert)['id']}.pcap").read_bytes()
        says = own(alert)["evidence"]
        assert says["sha256"] == hashlib.sha256(content[: says["bytes"]]).hexdigest()
        assert (own(alert)["state"] == "new") == (says["bytes"] < len(content))
        assert len(content) <= 262_144
    for id in ids:
        path = folder / f"{id}.pcap"
        new = Alert.read(next(a for a in alerts if own(a)["id"] == id))
        with PcapReader(str(path)) as reader:
            times = [int(p.time * S) for p in reader]
        with open_file(path) as source:
            rows = Extractor(4096).push(source, 100_000)
        assert len(rows) == len(times)
        before = records(
            path.read_bytes()[24 : own(next(a for a in alerts if own(a)["id"] == id))["evidence"]["bytes"]]
        )
        assert all(new.t_ns - 5 * S <= t // 1000 * 1000 <= new.t_ns for t, _, _ in before)
        assert rows.meta["t_ns"].max() <= new.t_ns + 5 * S + 999  # an alert tells microseconds
        mac = int(new.device.mac.replace(":", ""), 16)
        seen = [
            (t, n)
            for t, n, d in attack_frames
            if abs(t - new.t_ns) <= 5 * S - 999 and d[6:12] == mac.to_bytes(6, "big")
        ]
        found = {(int(m["t_ns"]), int(m["length"])) for m in rows.meta}
        assert set(seen) <= found


@pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed: scapy and libpcap alone read it back")
def test_tshark_opens_it(told):
    _, folder = told
    for path in evidence.files(folder):
        words = ["tshark", "-r", str(path), "-T", "fields", "-e", "frame.time_epoch", "-e", "ip.src"]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
        with open_file(path) as source:
            assert len(done.stdout.splitlines()) == len(Extractor(4096).push(source, 100_000))
        assert "malformed" not in done.stdout.lower()


def test_a_second_replay_writes_the_same_and_without_the_option_nothing(told, home, attack_capture, tmp_path, capsys):
    alerts, folder = told
    before = {path.name: path.read_bytes() for path in evidence.files(folder)}
    again = ["replay", "--json", str(attack_capture), "--bundle", str(home.bundle)]
    assert main([*again, "--evidence", str(folder)]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == alerts
    assert {path.name: path.read_bytes() for path in evidence.files(folder)} == before
    assert main(again) == 0
    bare = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all("evidence" not in own(alert) for alert in bare)
    for alert in alerts:
        del own(alert)["evidence"]
    assert bare == alerts


def test_it_is_listed_and_fetched_by_a_command(told, tmp_path, capsys):
    alerts, folder = told
    config = tmp_path / "agent.yaml"
    config.write_text(f"evidence: {{path: {folder}}}")
    assert main(["evidence", "--config", str(config)]) == 0
    listed = capsys.readouterr().out.splitlines()
    ids = sorted({own(a)["id"] for a in alerts})
    assert [line.split()[0] for line in listed] == ids
    assert main(["evidence", ids[0], "--config", str(config), "--out", str(tmp_path / "x.pcap")]) == 0
    assert (
        own(next(a for a in reversed(alerts) if own(a)["id"] == ids[0]))["evidence"]["sha256"]
        in capsys.readouterr().out
    )
    assert (tmp_path / "x.pcap").read_bytes() == (folder / f"{ids[0]}.pcap").read_bytes()
    assert main(["evidence", "--json", "--config", str(config)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["folder"] == str(folder)
    stored = [(capture["alert"], capture["bytes"]) for capture in document["captures"]]
    assert stored == [(id, (folder / f"{id}.pcap").stat().st_size) for id in ids]
    again = tmp_path / "y.pcap"
    assert main(["evidence", ids[0], "--json", "--config", str(config), "--out", str(again)]) == 0
    content = again.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    fetched = {"alert": ids[0], "file": str(again), "bytes": len(content), "sha256": sha256}
    assert json.loads(capsys.readouterr().out) == fetched
    for words, status, said in (
        ([ids[0], "--json", "--out", "-"], 2, "would both write to stdout"),
        ([ids[0]], 2, "name the file to write with --out FILE"),
        (["../../etc/passwd", "--out", "-"], 1, "is not the id of an alert"),
        ([ids[0][:-1] + "z", "--out", "-"], 1, "is not the id of an alert"),
        (["01a20937-03cb-7c3e-9f10-0c5a7c1e9a44", "--out", "-"], 1, "no evidence of 01a20937"),
        ([ids[0], "--out", str(tmp_path / "no" / "x")], 1, "No such file"),
    ):
        assert main(["evidence", *words, "--config", str(config)]) == status
        assert said in capsys.readouterr().err


def test_it_travels_in_parts_that_make_the_whole(told):
    _, folder = told
    id = evidence.files(folder)[-1].stem
    reply, parts = evidence.chunks(folder, id)
    payloads = [messages.encode(part.document(), messages.MAX_CHUNK) for part in parts]
    assert all(len(payload) <= 65_536 for payload in payloads)
    read = [messages.Chunk.read(messages.decode(payload, messages.MAX_CHUNK)) for payload in payloads]
    content = b"".join(part.data for part in sorted(read, key=lambda part: part.part))
    assert reply == {
        "id": id,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "count": len(payloads),
    }
    assert content == evidence.fetch(folder, id)
    for wrong in ({"id": "x"}, {"part": 9}, {"part": False}, {"count": "2"}, {"data": "?"}):
        with pytest.raises(messages.MessageError, match="chunk"):
            messages.Chunk.read({**read[0].document(), **wrong})


class Someone:
    """Whom an episode is about."""

    role, device_mac, device_ip = "source", 0x02_00_00_00_00_11, PLUG

    def __init__(self, t_ns: int) -> None:
        self.t_ns = t_ns


def episodes(folder: Path, count: int, most_bytes: int, each: int = 2000) -> tuple[evidence.EvidenceStore, list[str]]:
    """So many episodes one after the other, of a device that scans."""
    extractor = Extractor(4096, seed=1)
    extractor.keep(1 << 20, 8.0)
    store = evidence.EvidenceStore(folder, extractor.cut, seconds=5.0, most_bytes=most_bytes)
    rng, ids = random.Random(1), []
    for i in range(count):
        start = START + i * 100 * S
        extractor.push_frames(list(steady(scan(each), start, 400)))
        ids.append(messages.uuid7(start + 2 * S, rng))
        store.begin(ids[-1], Someone(start + 2 * S))
        store.tick(start + 50 * S)
        store.forget(ids[-1])
    return store, ids


def test_the_disk_it_takes_is_bounded_and_the_oldest_go_first(tmp_path):
    store, ids = episodes(tmp_path, 20, 1 << 20)
    there = [path.stem for path in evidence.files(tmp_path)]
    assert there == ids[-len(there) :]
    assert 5 <= len(there) < 20
    assert sum(path.stat().st_size for path in evidence.files(tmp_path)) <= 1 << 20
    assert store.counters() == {
        "evidence_stored": 20,
        "evidence_finished": 20,
        "evidence_removed": 20 - len(there),
        "evidence_failed": 0,
    }
    assert [path.stem for path in evidence.files(tmp_path)] == there
    (tmp_path / "torn.part").write_bytes(b"half")
    episodes(tmp_path, 1, 1 << 18)  # a smaller share, and what a killed agent left
    assert not list(tmp_path.glob("*.part"))
    assert sum(path.stat().st_size for path in evidence.files(tmp_path)) <= 1 << 18


def test_a_disk_that_takes_nothing_costs_the_evidence_and_not_the_alert(tmp_path, caplog):
    store, _ = episodes(tmp_path / "a", 1, 1 << 20)
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").write_text("in the way of the folder")
    for i in range(3):
        assert store.begin(f"01a20937-03cb-7c3e-9f10-0c5a7c1e9a4{i}", Someone(START + 2 * S)) is None
    assert store.counts.failed == 3
    assert caplog.text.count("cannot be written") == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(evidence.EvidenceError, match=r"evidence .*file"):
        evidence.EvidenceStore(tmp_path / "file", lambda cut: (-1, b""), seconds=5.0, most_bytes=1 << 20)


def test_frames_without_ip_are_stored_without_their_payload():
    question = arp(CAM, "192.168.38.21", "192.168.38.1")
    unknown = b"\xff" * 6 + CAM.to_bytes(6, "big") + b"\x88\x8e" + b"secret" * 10
    found = kept([(START, 60, question), (START + 1, 74, unknown)], Cut(**EVER))[1]
    assert [data for _, _, data in found] == [question[:42], unknown[:14]]
