"""Generated captures: equal plans give equal bytes, packets are valid, attacks have their traits, days are ordinary."""

import argparse
import ast
import hashlib
import shutil
import struct
import subprocess
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import RawPcapReader

from trainer import generate as module
from trainer.generate import ATTACKS, DEVICES, AttackPlan, Plan, PlanError, generate

SMALL = Plan(seed=7, days=1, hours=0.2, lead_minutes=1, tail_minutes=0.5, attack_seconds=6, max_attack_packets=1500)
SYN, RST, ACK = 2, 4, 16


class Packet(NamedTuple):
    """The fields of one frame that the tests read."""

    t: int
    source_mac: str
    wire: int
    kind: int  # ethertype
    proto: int = 0
    src: int = 0
    dst: int = 0
    ttl: int = 0
    ident: int = 0
    sport: int = 0
    dport: int = 0
    seq: int = 0
    ack: int = 0
    flags: int = 0
    window: int = 0
    payload: int = 0


def read(path: Path) -> list[Packet]:
    raw, at, packets = path.read_bytes(), 24, []
    while at < len(raw):
        seconds, micros, kept, wire = struct.unpack_from("<IIII", raw, at)
        frame = raw[at + 16 : at + 16 + kept]
        at += 16 + kept
        mac, (kind,) = ":".join(f"{b:02x}" for b in frame[6:12]), struct.unpack_from(">H", frame, 12)
        fields: dict[str, int] = {}
        if kind == 0x0800:
            length, ident = struct.unpack_from(">HH", frame, 16)
            src, dst = struct.unpack_from(">II", frame, 26)
            fields = {"proto": frame[23], "src": src, "dst": dst, "ttl": frame[22], "ident": ident}
            if frame[23] in (6, 17):
                fields["sport"], fields["dport"] = struct.unpack_from(">HH", frame, 34)
                fields["payload"] = length - 28
            if frame[23] == 6:
                fields["seq"], fields["ack"], offset, fields["flags"], fields["window"] = struct.unpack_from(
                    ">IIBBH", frame, 38
                )
                fields["payload"] = length - 20 - (offset >> 4) * 4
        packets.append(Packet(seconds * 1_000_000 + micros, mac, wire, kind, **fields))
    return packets


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def is_public(address: int) -> bool:
    return 0 < address < 0xE0000000 and address >> 16 != 0xC0A8


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small home: one benign capture of every kind of device and every attack, seed 7."""
    out = tmp_path_factory.mktemp("made")
    generate(replace(SMALL, devices=DEVICES), out)
    return out


@pytest.fixture(scope="module")
def strike(tmp_path_factory):
    """Function: an attack as --attacks spells it -> its packets, the answers to them, and its manifest entry."""

    @cache
    def packets(text: str, **changes: object):
        out = tmp_path_factory.mktemp("strike")
        plan = replace(SMALL, days=0, devices=("camera",), attacks=(text,), attack_seconds=12, max_attack_packets=6000)
        (entry,) = yaml.safe_load(generate(replace(plan, **changes), out).read_text())["captures"]
        begin, end = (micros(entry["attack"][name]) for name in ("start", "end"))
        everything = read(out / entry["file"])
        during = [p for p in everything if begin <= p.t <= end and p.kind == 0x0800]
        # benign traffic of the camera continues during the attack; it is recognised by its hosts
        usual = {p.dst for p in everything if p.t < begin} | {p.src for p in everything if p.t < begin and p.src}
        own = [p for p in during if p.source_mac == entry["mac"] and p.dst not in usual]
        back = [p for p in during if p.source_mac != entry["mac"] and p.src not in usual]
        return own, back, entry

    return packets


def micros(when: datetime) -> int:
    return round((when - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000)


def rate(packets: list[Packet]) -> float:
    return (len(packets) - 1) / ((packets[-1].t - packets[0].t) / 1e6)


# -- the files


def test_equal_plans_give_equal_bytes(made, tmp_path):
    generate(replace(SMALL, devices=DEVICES), tmp_path)
    assert digests(tmp_path) == digests(made)


def test_a_capture_does_not_depend_on_what_else_is_generated(made, tmp_path):
    generate(replace(SMALL, devices=DEVICES, attacks=("mirai.scan", "mirai.udp")), tmp_path)
    few, everything = digests(tmp_path), digests(made)
    same = {name for name in few if few[name] == everything.get(name)}
    assert same == {*(f"{kind}-1/day1.pcap" for kind in DEVICES), "camera-1/mirai.scan.pcap"}


def test_another_seed_is_another_home(made, tmp_path):
    """MACs, addresses, cloud hosts, names and times differ, so that nothing can be learnt by heart."""
    generate(replace(SMALL, seed=8, attacks=()), tmp_path)
    for name in ("camera-1/day1.pcap", "plug-1/day1.pcap"):
        one, other = read(made / name), read(tmp_path / name)
        clouds = [{p.dst for p in packets if is_public(p.dst)} for packets in (one, other)]
        assert clouds[0]
        assert clouds[0].isdisjoint(clouds[1])
        assert {p.source_mac for p in one}.isdisjoint({p.source_mac for p in other})


def test_days_of_a_device_differ_but_its_habits_stay(tmp_path):
    generate(Plan(seed=3, days=2, hours=2, devices=("plug",), attacks=()), tmp_path)
    one, other = (read(tmp_path / f"plug-1/day{day}.pcap") for day in (1, 2))
    assert [p.wire for p in one] != [p.wire for p in other]
    assert {p.source_mac for p in one} == {p.source_mac for p in other}
    brokers = [{p.dst for p in packets if p.dport in (8883, 1883)} for packets in (one, other)]
    assert brokers[0]
    assert len({b >> 8 for b in brokers[0] | brokers[1]}) <= 3  # the pools are a few networks


def test_packets_are_in_order_of_time_within_the_capture(made):
    for entry in yaml.safe_load((made / "manifest.yaml").read_text())["captures"]:
        times = [p.t for p in read(made / entry["file"])]
        assert times == sorted(times)
        assert times[-1] - times[0] <= 12 * 60 * 1_000_000


def test_checksums_are_right(tmp_path):
    """scapy computes the checksums of a sample of each file again, from whole frames."""
    generate(replace(SMALL, snaplen=2000, max_attack_packets=400, devices=DEVICES), tmp_path)
    seen = Counter()
    for path in sorted(tmp_path.rglob("*.pcap")):
        with RawPcapReader(str(path)) as reader:
            frames = [frame for frame, _ in reader]
        for frame in frames[:: max(1, len(frames) // 40)]:
            packet = Ether(frame)
            if IP not in packet:
                continue
            layers = [IP, ICMP] if ICMP in packet else [IP, *(layer for layer in (TCP, UDP) if layer in packet)]
            again = IP(bytes(packet[IP])[: packet[IP].len])  # without Ethernet's padding
            stated = [again[layer].chksum for layer in layers]
            for layer in layers:
                del again[layer].chksum
            assert [IP(bytes(again))[layer].chksum for layer in layers] == stated, (path, packet.summary())
            seen.update(layer.__name__ for layer in layers)
    assert min(seen[name] for name in ("IP", "TCP", "UDP", "ICMP")) > 0


def test_a_short_snaplen_keeps_the_lengths_and_the_packets(tmp_path):
    long, short = tmp_path / "long", tmp_path / "short"
    plan = replace(SMALL, devices=("camera",), attacks=("mirai.udp",))
    generate(replace(plan, snaplen=2000), long)
    generate(plan, short)
    for name in ("camera-1/day1.pcap", "camera-1/mirai.udp.pcap"):
        assert read(long / name) == read(short / name)
        assert (short / name).stat().st_size < (long / name).stat().st_size


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_reads_every_file_and_finds_no_wrong_checksum(made):
    wrong = "tcp.checksum.status==0||udp.checksum.status==0||ip.checksum.status==0||icmp.checksum.status==0"
    check = [f"-o{layer}.check_checksum:TRUE" for layer in ("ip", "tcp", "udp")]
    for name in ("camera-1/day1.pcap", "speaker-1/day1.pcap", "camera-1/mirai.scan.pcap", "camera-1/gafgyt.junk.pcap"):
        done = subprocess.run(
            ["tshark", "-r", str(made / name), *check, "-Y", wrong], capture_output=True, text=True, check=True
        )
        assert done.stdout == ""


def test_the_manifest_names_every_file_and_says_generated(made):
    text = (made / "manifest.yaml").read_text()
    manifest = yaml.safe_load(text)
    assert manifest["generated"] is True
    assert manifest["seed"] == 7
    assert {c["file"] for c in manifest["captures"]} == {str(p.relative_to(made)) for p in made.rglob("*.pcap")}
    assert {c["label"] for c in manifest["captures"]} == {"benign", *ATTACKS}
    assert {c["kind"] for c in manifest["captures"]} == set(DEVICES)
    for capture in manifest["captures"]:
        usual = {"file", "device", "mac", "kind", "label"}
        assert set(capture) == usual | ({"attack"} if capture["label"] != "benign" else set())
        packets = read(made / capture["file"])
        assert capture["mac"] in {p.source_mac for p in packets}
        assert f'mac: "{capture["mac"]}"' in text


def test_attack_times_are_those_of_the_first_and_last_attack_packet(made):
    """Rows are labelled by these times, so they are exact to the microsecond."""
    for capture in yaml.safe_load((made / "manifest.yaml").read_text())["captures"]:
        if capture["label"] == "benign":
            continue
        start, end = micros(capture["attack"]["start"]), micros(capture["attack"]["end"])
        packets = [p for p in read(made / capture["file"]) if p.source_mac == capture["mac"]]
        assert start in {p.t for p in packets}
        assert end in {p.t for p in packets}
        before = [p for p in packets if p.t < start]
        during = [p for p in packets if start <= p.t <= end]
        assert rate(during) > 10 * rate(before)
        assert start - before[0].t > 57_000_000  # a minute of lead, less the boot
        assert packets[-1].t > end
        assert len(during) <= 1500 * 1.1


def test_a_manifest_appears_only_when_everything_is_there(tmp_path):
    plan = replace(SMALL, attacks=())
    generate(plan, tmp_path)

    def fail(done: int, total: int, line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(plan, tmp_path, fail)
    assert not (tmp_path / "manifest.yaml").exists()


def test_nothing_here_can_send_a_packet():
    """No module that opens sockets or starts processes is imported, so the packets can only go to files."""
    tree = ast.parse(Path(module.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in imported} & {
        "socket",
        "scapy",
        "subprocess",
        "asyncio",
        "ctypes",
        "http",
    }


# -- plans


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"devices": ("toaster",)}, "toaster"),
        ({"devices": ()}, "devices"),
        ({"attacks": ("mirai.dns",)}, "mirai.dns"),
        ({"attacks": ("mirai.scan:speed=3",)}, "speed"),
        ({"attacks": ("mirai.scan:rate=fast",)}, "fast"),
        ({"attacks": ("mirai.udp:port=70000",)}, "70000"),
        ({"attacks": ("mirai.scan:spoof=any",)}, "cannot spoof"),
        ({"attacks": ("gafgyt.tcp:spoof=all",)}, "all"),
        ({"attacks": ("mirai.udp:rate=9", "mirai.udp:rate=9.0")}, "twice"),
        ({"infected": ("plug-9",)}, "plug-9"),
        ({"hours": 25.0}, "25"),
        ({"snaplen": 10}, "snaplen"),
        ({"start": datetime(1900, 1, 1, tzinfo=UTC)}, "start is 1900-01-01"),
    ],
)
def test_an_impossible_plan_is_refused_by_name(tmp_path, change, named):
    with pytest.raises(PlanError, match=named):
        generate(replace(SMALL, **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line_makes_a_plan_and_prints_generated(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    words = [
        "--out",
        str(tmp_path),
        "--seed",
        "9",
        "--days",
        "1",
        "--hours",
        "0.1",
        "--devices",
        "plug,plug",
        "--start",
        "2026-03-01",
    ]
    words += ["--attacks", "mirai.scan:rate=10", "--infected", "plug-2", "--lead-minutes", "1", "--tail-minutes", "0.2"]
    assert module.run(parser.parse_args(words), "") == 0
    assert "generated" in capsys.readouterr().out
    captures = yaml.safe_load((tmp_path / "manifest.yaml").read_text())["captures"]
    files = ["plug-1/day1.pcap", "plug-2/day1.pcap", "plug-2/mirai.scan-rate=10.pcap"]
    assert [c["file"] for c in captures] == files
    assert captures[2]["attack"]["start"].date().isoformat() == "2026-03-02"
    assert len({c["mac"] for c in captures}) == 2


def test_the_command_line_reports_a_bad_plan(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert module.run(parser.parse_args(["--out", str(tmp_path / "x"), "--devices", "toaster"]), "") == 2
    assert "toaster" in capsys.readouterr().err


# -- the attacks


def test_mirai_scan_calls_telnet_everywhere(strike):
    own, _, entry = strike("mirai.scan")
    scan = [p for p in own if p.flags == SYN and p.seq == p.dst]
    assert len(scan) == 160 * 12
    ports = Counter(p.dport for p in scan)
    assert set(ports) == {23, 2323}
    assert 0.08 < ports[2323] / len(scan) < 0.12
    assert len({p.dst for p in scan}) > 0.99 * len(scan)
    assert len({p.sport for p in scan}) == len({p.window for p in scan}) == 1
    assert {p.wire for p in scan} == {60}
    assert len({p.ident for p in scan}) > 0.9 * len(scan)
    assert 140 < rate(scan) < 180
    per_second = Counter((p.t - scan[0].t) // 1_000_000 for p in scan)
    assert max(per_second.values()) >= 160  # in bursts, as the malware's loop does
    assert entry["attack"]["spoofed"] is False
    assert not {p.dst >> 24 for p in scan} & {0, 3, 10, 56, 127, 214, *range(224, 256)}
    assert not {p.dst >> 16 for p in scan} & {0xC0A8, 0xA9FE, 0xAC10, 0x6440}


def test_mirai_scan_is_answered_by_a_few_hosts_and_connects_to_them(strike):
    own, back, _ = strike("mirai.scan")
    assert {p.flags for p in back if p.proto == 6} >= {SYN | ACK, RST | ACK}
    answered = {p.src for p in back if p.flags == SYN | ACK}
    assert 0 < len(answered) < 0.03 * 1920
    assert any(p.flags == RST and p.dst in answered for p in own)  # the kernel never asked
    assert any(p.payload and p.dst in answered and p.dport in (23, 2323) for p in own)
    assert any(p.proto == 1 for p in back)


def test_mirai_syn_flood(strike):
    own, back, _ = strike("mirai.syn")
    flood = [p for p in own if p.flags == SYN]
    assert {p.wire for p in flood} == {74}
    assert {p.window for p in flood} == {0}
    assert len({p.dst for p in flood}) == 1
    assert len({(p.sport, p.dport) for p in flood}) > 0.99 * len(flood)
    assert len({p.src for p in flood}) == 1
    assert 300 < rate(flood) < 1000
    assert any(p.flags & RST for p in back)


def test_mirai_ack_flood(strike):
    own, back, _ = strike("mirai.ack")
    flood = [p for p in own if p.flags == ACK]
    assert Counter(p.payload for p in flood).most_common(1)[0][0] == 512
    assert {p.wire for p in flood} == {566}
    assert len({p.window for p in flood}) == 1
    assert len({p.ack for p in flood}) > 0.99 * len(flood)
    assert {p.flags for p in back if p.proto == 6} == {RST}


def test_mirai_udp_flood_uses_random_ports_and_udpplain_one_socket(strike):
    udp, _, _ = strike("mirai.udp")
    plain, _, _ = strike("mirai.udpplain")
    for flood in (udp, plain):
        assert {(p.proto, p.payload, p.wire, p.ttl) for p in flood} == {(17, 512, 554, 64)}
        assert len({p.dst for p in flood}) == 1
    assert len({(p.sport, p.dport) for p in udp}) == len(udp)
    assert len({(p.sport, p.dport) for p in plain}) == 1
    assert all((b.ident - a.ident) % 65536 == 1 for a, b in pairwise(plain[:100]))  # by the kernel


def test_bashlite_floods_come_from_sources_that_are_not_the_device(strike):
    for text, proto, size in (("gafgyt.tcp", 6, 0), ("gafgyt.udp", 17, 1024)):
        own, back, entry = strike(text)
        assert entry["attack"]["spoofed"] is True
        assert len({p.src for p in own}) > 0.99 * len(own)
        assert {(p.proto, p.ttl) for p in own} == {(proto, 255)}
        assert {p.payload for p in own} == {size}
        assert len({p.dst for p in own}) == 1
        assert not back  # answers go to the sources


def test_spoofing_can_be_chosen(strike):
    own, _, entry = strike("mirai.syn:spoof=any")
    assert entry["attack"]["spoofed"] is True
    assert len({p.src for p in own}) > 0.99 * len(own)
    subnet, _, entry = strike("gafgyt.udp:spoof=subnet")
    assert entry["attack"]["spoofed"] is True
    assert len({p.src >> 8 for p in subnet}) == 1
    assert 200 < len({p.src for p in subnet}) <= 256
    alone, back, entry = strike("gafgyt.udp:spoof=own")
    assert entry["attack"]["spoofed"] is False
    assert len({(p.src, p.sport) for p in alone}) == 1
    assert any(p.proto == 1 for p in back)


def test_bashlite_scan_uses_the_kernels_sockets(strike):
    """There are many source ports, one port 23, and each SYN is repeated after 1, 3 and 7 s."""
    own, back, _ = strike("gafgyt.scan")
    syn = [p for p in own if p.flags == SYN]
    assert {p.dport for p in syn} == {23}
    assert len({p.sport for p in syn}) > 100
    assert {p.wire for p in syn} <= {60, 74}  # with the options of a small stack or of Linux
    calls: dict[tuple[int, int], list[Packet]] = {}
    for p in syn:
        calls.setdefault((p.dst, p.sport), []).append(p)
    again = [(b.t - a.t) / 1e6 for sent in calls.values() for a, b in pairwise(sent)]
    assert len(again) > len(calls) / 2
    assert all(any(abs(gap - wait) < 0.1 for wait in (1, 2, 4)) for gap in again)
    assert all(len({p.seq for p in sent}) == 1 for sent in calls.values())
    assert any(p.flags == RST | ACK for p in back)


def test_junk_sends_1024_bytes_on_connections_that_combo_partly_holds_open(strike):
    idle = {}
    for text in ("gafgyt.junk", "gafgyt.combo"):
        own, back, _ = strike(text)
        assert len({p.dst for p in own}) == len({p.dport for p in own}) == 1
        assert {p.payload for p in own} == {0, 1024}
        opened = {p.dport for p in back if p.flags == SYN | ACK}
        spoken = {p.sport for p in own if p.payload}
        assert spoken <= opened
        idle[text] = 1 - len(spoken) / len(opened)
    assert idle["gafgyt.combo"] > 0.15 > idle["gafgyt.junk"]


@pytest.mark.parametrize(("text", "wanted"), [
    ("mirai.scan:rate=10", 10), ("gafgyt.scan:rate=40", 40), ("mirai.udp:rate=100", 100),
    ("gafgyt.tcp:rate=2000", 2000), ("gafgyt.junk:rate=200", 200), ("gafgyt.combo:rate=200", 200),
])  # fmt: skip
def test_rate_can_be_chosen(strike, text, wanted):
    own, _, _ = strike(text, attack_seconds=30)
    assert 0.6 * wanted < rate(own) < 1.5 * wanted


def test_ports_and_sizes_can_be_chosen(strike):
    own, _, _ = strike("mirai.scan:port=5555")
    assert {p.dport for p in own if p.seq == p.dst} == {5555}
    own, _, _ = strike("mirai.udp:port=53:size=100")
    assert {(p.dport, p.payload) for p in own} == {(53, 100)}
    own, _, _ = strike("gafgyt.junk:size=300:port=81")
    assert {p.payload for p in own} == {0, 300}
    assert {p.dport for p in own} == {81}


def test_the_bound_of_packets_ends_an_attack_at_an_unchanged_rate(strike):
    own, _, _ = strike("mirai.udp:rate=3000", max_attack_packets=1000)
    assert len(own) == 1000
    assert 2500 < rate(own) < 3500


def test_benign_traffic_continues_during_the_attack(tmp_path):
    plan = Plan(seed=5, days=0, devices=("plug",), attacks=("mirai.scan:seconds=120",), lead_minutes=2, tail_minutes=1)
    (entry,) = yaml.safe_load(generate(plan, tmp_path).read_text())["captures"]
    packets = read(tmp_path / entry["file"])
    begin, end = (micros(entry["attack"][name]) for name in ("start", "end"))
    assert any(p.dport in (8883, 1883) and p.source_mac == entry["mac"] for p in packets if begin < p.t < end)


# -- benign days


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two benign captures of every kind of device."""
    out = tmp_path_factory.mktemp("home")
    generate(Plan(seed=4, days=2, hours=1.5, devices=DEVICES, attacks=()), out)
    return {kind: [read(out / f"{kind}-1/day{day}.pcap") for day in (1, 2)] for kind in DEVICES}


def test_benign_devices_use_the_usual_protocols(home):
    for kind, days in home.items():
        for packets in days:
            ports = Counter(p.dport for p in packets)
            assert ports[67] >= 2, kind  # DHCP at boot
            assert ports[53] >= 5, kind
            assert ports[123] >= 2, kind
            assert ports[443] > 20, kind
            assert any(p.kind == 0x0806 for p in packets), kind
            if kind != "bulb":
                assert ports[8883] + ports[1883] > 100, kind
    assert any(p.dport == 5353 for p in home["gateway"][0])
    assert any(p.dport == 1900 for p in home["camera"][0])
    assert any(p.dport == 3478 for p in home["camera"][0])


def test_cameras_stream_over_rtsp_and_rtp(tmp_path):
    generate(Plan(seed=2, days=1, hours=14, devices=("camera",), attacks=()), tmp_path)
    packets = read(tmp_path / "camera-1/day1.pcap")
    assert any(p.dport == 554 for p in packets)
    assert any(p.sport == 554 and p.payload for p in packets)
    datagrams = Counter((p.src, p.sport) for p in packets if p.proto == 17 and p.payload > 1000)
    assert max(datagrams.values()) > 200


def test_a_name_is_asked_for_before_its_host_is_called(home):
    """A SYN to a public address follows a DNS answer within seconds; each question has its own source port."""
    for kind in ("camera", "plug", "thermostat"):
        packets = home[kind][0]
        answers = [p.t for p in packets if p.sport == 53]
        for syn in (p for p in packets if p.flags == SYN and p.dst >> 16 != 0xC0A8 and p.src >> 16 == 0xC0A8):
            assert any(0 < syn.t - t < 3_000_000 for t in answers)
        asked = [p.sport for p in packets if p.dport == 53]
        assert len(set(asked)) > 0.9 * len(asked)


def test_benign_traffic_holds_no_trait_of_an_attack(home):
    for kind, days in home.items():
        for packets in days:
            device = {p.src for p in packets if p.dport == 443 and p.flags == SYN}
            assert len(device) == 1, kind
            mac = next(p.source_mac for p in packets if p.src in device)
            sent = [p for p in packets if p.source_mac == mac]
            assert {p.src for p in sent if p.kind == 0x0800} <= device | {0}, kind
            assert not any(p.dport in (23, 2323) for p in sent), kind
            per_second = Counter(p.t // 1_000_000 for p in sent if p.flags == SYN)
            assert max(per_second.values()) <= 8, kind
            assert len({p.dst for p in sent}) < 80, kind


def test_connections_are_complete(home):
    """Every sequence number a device sends continues the one before, every connection that opens is answered."""
    for kind, days in home.items():
        flows: dict[tuple[int, int, int], list[Packet]] = {}
        for p in days[0]:
            if p.proto == 6 and p.src >> 16 == 0xC0A8 and p.dst >> 16 != 0xC0A8:
                flows.setdefault((p.sport, p.dst, p.dport), []).append(p)
        assert flows, kind
        for sent in flows.values():
            assert sent[0].flags == SYN
            expected = None
            for p in sent:
                if p.flags & RST:
                    break
                if expected is not None and not p.flags & SYN:
                    assert p.seq in (expected, (expected - 1) % 2**32), kind
                if p.payload or p.flags & 3:
                    expected = (p.seq + p.payload + bool(p.flags & 3)) % 2**32


def test_people_are_up_by_day(tmp_path):
    """Calls at the door follow the hours of visits; keep-alives do not."""
    generate(Plan(seed=6, days=1, hours=24, devices=("doorbell",), attacks=()), tmp_path)
    busy, calm = Counter[int](), Counter[int]()
    for p in read(tmp_path / "doorbell-1/day1.pcap"):
        hour = p.t // 3_600_000_000 % 24
        busy[hour] += p.wire > 800
        calm[hour] += p.dport in (1883, 8883) and p.wire < 130
    assert sum(busy[h] for h in range(8, 20)) > 20 * sum(busy[h] for h in range(6))
    assert 4 * min(calm[h] for h in range(24)) > max(calm[h] for h in range(24))


def test_reconnects_come_in_bursts_at_boot_and_later(tmp_path):
    """Losing the Wi-Fi brings DHCP and several hosts at once, in the middle of an ordinary day."""
    generate(Plan(seed=6, days=1, hours=24, devices=("gateway",), attacks=()), tmp_path)
    packets = read(tmp_path / "gateway-1/day1.pcap")
    boots = [p.t for p in packets if p.dport == 67 and p.dst == 0xFFFFFFFF]
    assert boots[0] - packets[0].t < 2_000_000
    later = [t for t in boots if t > boots[0] + 60_000_000]
    assert later
    burst = {p.dst for p in packets if later[0] <= p.t < later[0] + 15_000_000 and is_public(p.dst)}
    assert len(burst) >= 3


def test_attack_names_say_how_they_differ():
    assert AttackPlan.parse("mirai.scan").name == "mirai.scan"
    assert AttackPlan.parse("mirai.syn:spoof=any:rate=500").name == "mirai.syn-rate=500-spoof=any"
    assert AttackPlan.parse("mirai.syn:spoof=any").spoofed
    assert not AttackPlan.parse("gafgyt.tcp:spoof=own").spoofed
