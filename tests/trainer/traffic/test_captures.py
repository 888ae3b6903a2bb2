"""Captures and their manifest: equal plans give equal bytes, packets are valid, times are exact."""

import ast
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import RawPcapReader

from tests.trainer.traffic.packets import SMALL, digests, is_public, micros, rate, read
from trainer.traffic import captures as module
from trainer.traffic.captures import generate
from trainer.traffic.plan import ATTACKS, DEVICES, Plan


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small home: one benign capture of every kind of device and every attack, seed 7."""
    out = tmp_path_factory.mktemp("made")
    generate(replace(SMALL, devices=DEVICES), out)
    return out


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
    modules = list(Path(module.__file__).parent.glob("*.py"))
    assert len(modules) > 10
    nodes = [node for path in modules for node in ast.walk(ast.parse(path.read_text()))]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in imported} & {
        "socket",
        "scapy",
        "subprocess",
        "asyncio",
        "ctypes",
        "http",
    }
