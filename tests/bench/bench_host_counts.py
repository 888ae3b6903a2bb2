"""What devices send to one host in vain and newly try: ``python -m tests.bench.bench_host_counts FOLDER``.

For each capture below FOLDER (of published captures: benign, benign_week, benign_setup, benign_lab, benign_busy,
attack, malware) and each sender, the highest of `HOST_COUNTS` in units of its bound and what it is of. Captures of one
folder of ``benign`` are days of one device and follow each other. ``--peaks`` adds how far a day of such a device
exceeds its own highest packet and byte rates of its other days.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_agent.capture.features import Extractor, SenderTable
from edge_agent.capture.sources import open_file
from edge_agent.contract.addresses import PRIVATE_NETWORKS, address_text
from edge_agent.contract.captures import mac_text
from edge_agent.contract.columns import HOST_COUNTS
from edge_agent.contract.host_bounds import HOST_BOUNDS
from edge_agent.contract.networks import Networks

DECAYS = ("1", "0.1", "0.01")


@dataclass
class Highest:
    """The highest count of a sender in units of its bound, and the rows above one."""

    rows: int = 0
    above: int = 0
    first: int = 0
    ratio: float = 0.0
    text: str = ""


def runs(folder: Path) -> Iterator[list[Path]]:
    """Yield captures that follow each other."""
    for device in sorted((folder / "benign").glob("*")):
        yield sorted(device.glob("*.pcap*"))
    for kind in ("benign_week", "benign_setup", "benign_lab", "benign_busy", "attack", "malware"):
        yield from ([path] for path in sorted((folder / kind).rglob("*.pcap*")))


def measure(paths: list[Path]) -> tuple[dict[int, Highest], dict[int, list[np.ndarray]]]:
    """Return each sender's highest count, and its highest weights and bytes (2 x `DECAYS`) of each capture."""
    home, bounds = Networks.parse(PRIVATE_NETWORKS), np.array([HOST_BOUNDS[name] for name in HOST_COUNTS])
    extractor, senders = Extractor(), SenderTable(4096, None, home.v4, home.v6)
    found: dict[int, Highest] = {}
    peaks: dict[int, list[np.ndarray]] = {}
    for day, path in enumerate(paths):
        with open_file(path) as source:
            while len(rows := extractor.push(source, 1024)):
                ratios = senders.route(rows.meta, rows.meta["t_ns"].copy()).host_counts / bounds
                weights = np.stack([rows.column(f"device_L{decay}_weight") for decay in DECAYS], axis=1)
                sizes = weights * np.stack([rows.column(f"device_L{decay}_mean") for decay in DECAYS], axis=1)
                for mac in np.unique(rows.meta["src_mac"]).tolist():
                    mine = np.flatnonzero(rows.meta["src_mac"] == mac)
                    note(found.setdefault(mac, Highest()), rows.meta[mine], ratios[mine])
                    of_days = peaks.setdefault(mac, [np.zeros(2 * len(DECAYS)) for _ in paths])
                    highest = np.concatenate([weights[mine].max(axis=0), sizes[mine].max(axis=0)])
                    of_days[day] = np.maximum(of_days[day], highest)
    return found, peaks


def note(seen: Highest, meta: np.ndarray, ratios: np.ndarray) -> None:
    """Take in rows of a sender."""
    above = np.flatnonzero(ratios.max(axis=1) > 1.0)
    if len(above) and not seen.above:
        seen.first = seen.rows + int(above[0]) + 1
    row, count = np.unravel_index(np.argmax(ratios), ratios.shape)
    if ratios[row, count] > seen.ratio:
        packet, name = meta[row], HOST_COUNTS[count]
        value, target = ratios[row, count] * HOST_BOUNDS[name], address_text(packet["dst"], packet["ip_version"])
        seen.ratio = float(ratios[row, count])
        seen.text = f"{name} {value:.1f}, {target} port {packet['dport']} (protocol {packet['proto']})"
    seen.rows, seen.above = seen.rows + len(meta), seen.above + len(above)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_host_counts", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of published captures, which has benign/ and attack/")
    parser.add_argument("--least", type=float, default=0.1, help="lowest ratio that is printed (%(default)s)")
    parser.add_argument("--peaks", action="store_true", help="also own peaks, rotated over days")
    arguments = parser.parse_args()
    exceeded = days = 0
    for paths in runs(arguments.folder):
        found, peaks = measure(paths)
        name = str(paths[-1].relative_to(arguments.folder))
        for mac, seen in found.items():
            if seen.ratio >= arguments.least:
                after = f", {seen.above} rows above, from row {seen.first} on" if seen.above else ""
                print(f"{name} {mac_text(mac)}: {seen.ratio:.2f} of {seen.text}{after}")
        main_mac = max(found, key=lambda mac: found[mac].rows) if found else 0
        if arguments.peaks and len(paths) > 2 and main_mac:
            table = np.array(peaks[main_mac])
            others = np.array([np.delete(table, day, axis=0).max(axis=0) for day in range(len(table))])
            exceeded, days = exceeded + int((table > 2 * others).any(axis=1).sum()), days + len(table)
            worst = ", ".join(f"{x:.2f}" for x in (table / others).max(axis=0))
            print(f"{name} {mac_text(main_mac)}: own peaks, a day to its other days at most (packets, bytes): {worst}")
    if days:
        print(f"{exceeded} of {days} device-days exceed twice an own peak of their device's other days")


if __name__ == "__main__":
    main()
