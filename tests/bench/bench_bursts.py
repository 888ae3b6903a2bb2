"""Bursts of healthy devices over days, and what a raised limit still sees: ``python -m tests.bench.bench_bursts``.

Its argument is a bundle. It lets an agent's detector live through the published weeks of devices
(BOTWATCH_DATA), day after day, and prints for each device the bursts that were remembered, on how many days they came
without a mark, what was learnt of them, and in which state the device ended. No attack is involved.

Then it floods a generated plug, which has learnt, on one socket of a host that it uses, for a minute at several rates,
with its limit raised by several factors, and prints the lowest rate that is told. That is what remains seen of such a
flood where bursts have raised a limit. Takes some minutes.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from edge_agent.capture.features import Extractor
from edge_agent.capture.sources import open_file
from edge_agent.contract import bundle as bundles
from edge_agent.contract.alert import Activity
from edge_agent.contract.bundle import Bundle
from edge_agent.contract.captures import mac_text
from edge_agent.detection.bursts import BURST_MARGIN
from edge_agent.detection.detector import Detector
from edge_agent.detection.devices import Devices
from edge_agent.detection.minutes import Levels
from tests.traffic import CLOUD, PLUG, PLUG_MAC, ROUTER_MAC, Frame, S, merged, one_socket, packet, steady

ROOT = Path(os.environ.get("BOTWATCH_DATA", Path(__file__).parents[3] / "shared" / "data"))
RATES = (10, 20, 40, 80, 160, 320, 640, 1280, 2560)
FACTORS = (1.0, 2.0, 3.0, 4.0, 16.0)
BEGIN = 1_770_000_000 * S // (60 * S) * 60 * S


def main(argv: list[str]) -> int:
    """Print both tables for the bundle in ``argv``."""
    if len(argv) != 1:
        print("usage: python -m tests.bench.bench_bursts BUNDLE", file=sys.stderr)
        return 2
    bundle = bundles.load(Path(argv[0]))
    if (ROOT / "pcap").is_dir():
        weeks(bundle)
    else:
        print(f"no published captures in {ROOT}; BOTWATCH_DATA names the folder that has pcap/", file=sys.stderr)
    floods(bundle)
    return 0


def weeks(bundle: Bundle) -> None:
    """Print what becomes of the bursts of published devices over their days."""
    print(f"{'device':<16}{'days':>5}{'alarms on days':>16}{'unmarked':>10}{'marked':>8}{'learnt':>8}  state")
    of_device = {path.stem: [path] for path in sorted((ROOT / "pcap" / "benign_week").glob("*.pcap"))}
    for folder in sorted((ROOT / "pcap" / "benign").iterdir()):
        of_device[folder.name] = sorted(folder.glob("*.pcap"))
    for name, files in of_device.items():
        devices = Devices(bundle)
        detector, extractor = Detector(bundle, learn=devices.limits_of), Extractor(1 << 16, seed=1)
        told: dict[int, set[int]] = {}
        for file in files:
            with open_file(file) as source:
                while len(rows := extractor.push(source, 4096)):
                    for detection in detector.observe(rows):
                        told.setdefault(detection.device_mac, set()).add(detection.t_ns // (86_400 * S))
            detector.finish()
        devices.look()
        for mac, limits in devices.known().items():
            bursts = limits.bursts
            if not bursts.kept:
                continue
            marked = sum(bool(burst.marks) for burst in bursts.kept)
            row = f"{len(files):>5}{len(told.get(mac, ())):>16}{len(bursts.unmarked_days()):>10}{marked:>8}"
            print(f"{name[:15]:<16}{row}{bursts.recurring:>8.2f}  {limits.state}, {mac_text(mac)}")
            for burst in bursts.kept:
                print(f"    {burst.day} {burst.height.vote:8.2f} {burst.activity} {burst.marks!r}")


def floods(bundle: Bundle) -> None:
    """Print the lowest rate of a flood that is told within a minute, by the factor of the limit."""
    for factor in FACTORS:
        lowest = next((rate for rate in RATES if _told(bundle, factor, rate)), None)
        seen = f"from {lowest} packets a second on" if lowest else f"not seen at {RATES[-1]} packets a second"
        print(f"limit {factor:4.1f} times the model's: a flood on one socket for a minute is {seen}")


def _told(bundle: Bundle, factor: float, rate: int) -> bool:
    devices = Devices(bundle)
    detector, extractor = Detector(bundle, learn=devices.limits_of), Extractor(4096, seed=1)
    detector.observe(extractor.push_frames(list(_plug(BEGIN, 20))))
    limits = devices.limits_of(PLUG_MAC, BEGIN)
    limits.bursts.vouched[Activity("flood")] = Levels(factor / BURST_MARGIN, 0.0)
    at = BEGIN + 20 * 60 * S
    flood = steady(one_socket(60 * rate, mac=PLUG_MAC), at + 60 * S, rate)
    detections = detector.observe(extractor.push_frames(merged(_plug(at, 2), flood)))
    assert limits.factors()[0] == factor
    return any(detection.device_mac == PLUG_MAC for detection in detections)


def _plug(begin: int, minutes: int) -> Iterator[Frame]:
    out = packet(PLUG, CLOUD, 40001, 8883, proto=6, flags=0x18, size=80)
    back = packet(CLOUD, PLUG, 8883, 40001, proto=6, flags=0x10, mac=ROUTER_MAC, to_mac=PLUG_MAC)
    for i in range(int(minutes * 60 * 2.5)):
        t = begin + int(i * S / 2.5) + i * 7_919 % 200 * 1_000_000
        yield t, len(out), out
        yield t + 20_000_000, len(back), back


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
