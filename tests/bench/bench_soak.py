"""A day of a busy home through one agent: ``python -m tests.bench.bench_soak [BUNDLE] [--packets N]``.

A real `botwatch agent replay`, fed through a pipe: packets_20000.pcap (of Kitsune's network) again and again and two
generated hours of fourteen devices, their times moved on so that all of it fills one day of capture time. Printed by
tenth: processor time of a packet, and resident memory, which must not have grown by more than a tenth since the first.
The default bundle is fitted on ten minutes of the same mixture, so that this is a home in which nothing happens.
"""

import argparse
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from edge_agent.contract import captures
from tests.bench.home import FOLDER
from tests.reference.frames import data_folder
from tests.streams import HEADER, Life, Replay
from tests.traffic import Frame, S, read
from trainer.traffic.captures import generate
from trainer.traffic.plan import DEVICES, Plan

BEGIN, DAY_S = 1_770_000_000 * S, 86_400
HOURS = 2
FITTED_S = 600
TENTHS = 10
GROWTH = 1.1


def busy_home(folder: Path) -> Life:
    """Return two hours of two devices of each kind, all beginning at BEGIN."""
    plan = Plan(seed=91, devices=tuple(sorted(2 * DEVICES)), attacks=(), days=1, hours=HOURS)
    manifest, _, root = captures.load(generate(plan, folder).parent)
    frames: list[Frame] = []
    for capture in manifest.captures:
        captured = read(root / capture.file)
        shift = BEGIN - captured[0][0]
        frames += [(t + shift, length, data) for t, length, data in captured]
    return Life(frame for frame in frames if frame[0] < BEGIN + HOURS * 3600 * S)


def day(home: Life, network: Life, packets: int) -> Iterator[tuple[int, bytes]]:
    """Yield at least ``packets`` packets as pieces of a capture: how many, and their records.

    The home begins again every two hours; in each of them the network as often as is needed to come to that number.
    """
    laps = DAY_S // (HOURS * 3600)
    passes = max(1, -(-(packets // laps - len(home)) // len(network)))
    length = HOURS * 3600 * S // passes
    for lap in range(laps):
        later = lap * HOURS * 3600 * S
        for start in range(0, passes * length, length):
            devices = home.between(BEGIN + start, BEGIN + start + length, later)
            fed = network.between(BEGIN, BEGIN + length, later + start)
            yield len(fed.t_ns) + len(devices.t_ns), fed.woven(devices)


def squeezed(frames: list[Frame], into_ns: int) -> Life:
    """Return the frames with their times squeezed into ``into_ns`` from BEGIN on."""
    first, last = frames[0][0], max(frame[0] for frame in frames)
    return Life((BEGIN + (t - first) * (into_ns - S) // (last - first), *rest) for t, *rest in frames)


FIT = """
data: [{kind: captures, path: .}]
split: {gap_rows: 20, gap_s: 5.0, min_rows: 20}
max_rows: 20000
autoencoder: {epochs: 20, batch: 512, patience: 20}
classifier: {enabled: false}
"""


def fitted(devices: Life, network: Life, packets: int, folder: Path) -> Path:
    """Return a bundle that was fitted on ten minutes of it, by the commands that users have."""
    from converter.__main__ import main as convert
    from trainer.__main__ import main as train

    folder.mkdir(parents=True, exist_ok=True)
    capture = bytearray(HEADER)
    for _, records in day(devices, network, packets):
        if struct.unpack_from("=I", records)[0] * S >= BEGIN + FITTED_S * S:
            break
        capture += records
    (folder / "day.pcap").write_bytes(capture)
    (folder / "manifest.yaml").write_text("generated: true\ncaptures: [{file: day.pcap, device: day, label: benign}]\n")
    (folder / "fit.yaml").write_text(FIT)
    if train(["fit", str(folder / "fit.yaml"), "--out", str(folder / "run")]):
        raise SystemExit("soak: no fit")
    if convert([str(folder / "run"), "--out", str(folder / "bundle")]):
        raise SystemExit("soak: no bundle")
    return folder / "bundle"


def main(argv: list[str]) -> int:
    """Print the table; return 1 if memory grew or a packet was not counted."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_soak")
    parser.add_argument("bundle", nargs="?", type=Path, help="default: fitted on the same mixture")
    parser.add_argument("--packets", type=int, default=50_000_000, help="at least so many (%(default)s)")
    args = parser.parse_args(argv)
    data = data_folder()
    if data is None:
        print("soak: skipped, needs packets_20000.pcap: set BOTWATCH_DATA", file=sys.stderr)
        return 0
    devices, frames = busy_home(FOLDER / "busy"), read(data / "kitsune" / "packets_20000.pcap")
    passes = max(1, -(-(args.packets * HOURS * 3600 // DAY_S - len(devices)) // len(frames)))
    network = squeezed(frames, HOURS * 3600 * S // passes)
    print(
        f"a day: {len(devices) * DAY_S // (HOURS * 3600):,} packets of generated devices, the rest of Kitsune's network"
    )
    print("packets       ns a packet, processor   resident MB, most so far   wall s")
    spent: list[float] = []
    most: list[int] = []
    fed, marked, used = 0, 0, 0.0
    with tempfile.TemporaryDirectory(prefix="botwatch-soak-") as folder:
        bundle = args.bundle or fitted(devices, network, args.packets, Path(folder) / "fit")
        began = time.monotonic()
        words = ("--evidence", str(Path(folder) / "evidence"))
        with Replay(Path(folder), bundle, "", *words) as replay:
            for count, records in day(devices, network, args.packets):
                replay.write(records)
                fed += count
                if fed * TENTHS >= args.packets * (len(most) + 1) and len(most) < TENTHS:
                    now = replay.cpu_s()
                    spent.append((now - used) * 1e9 / (fed - marked))
                    most.append(replay.peak_kb())
                    used, marked = now, fed
                    line = f"{fed:11,} {spent[-1]:12,.0f} {most[-1] / 1000:26.1f} {time.monotonic() - began:20.0f}"
                    print(line, flush=True)
            counts = replay.finish()
    print(f"last tenth to first: time {spent[-1] / spent[0]:.3f}, memory {most[-1] / most[0]:.3f} (goal {GROWTH:g})")
    figures = {key: counts.get(key, 0) for key in ("scored", "shed", "malformed", "alerts_new", "alerts_end")}
    print(", ".join(f"{key} {value:,}" for key, value in figures.items()))
    counted = counts["rows"] + counts.get("malformed_short_link", 0)
    if counts["frames"] != fed or counted != fed or counts["scored"] + counts.get("shed", 0) != counts["rows"]:
        print(f"MISSED: {fed:,} packets were fed, {counts}")
        return 1
    return int(most[-1] > GROWTH * most[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
