"""Instructions per packet on a Raspberry Pi 4's processor: ``python -m tests.bench.bench_arm [BUNDLE]``.

Counted by qemu in the arm64 root of `tests.arm.root` (cortex-a72), so the same on every machine. An instruction is not
a time: neither caches nor waiting are in it. Each figure is the difference of two captures of different length, in
instructions, by their difference in packets, which leaves out imports, start and first calls. Every run begins with
nothing learnt, and time only goes forward. Captures: the later day of the tests' generated home over and over, a few
packets a minute, dominated by the work of each minute and each batch; and a scan of 1,000 packets a second, all during
an alarm, when every row is scored twice and classified. ``BUNDLE`` replaces that home's.

Then the second second of a spoofed flood of 100,000 packets a second, with the default budget of scoring and with the
smallest; their difference is the cost of a scored row of a device in an alarm. The default of `scoring.max_rows_per_s`
was chosen by it: it bounds the share of a Pi 4's core that an attack may take.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from edge_agent.config import ScoringConfig
from tests.arm.root import Arm, prepare
from tests.bench.bench_kernel import attack
from tests.bench.home import LATER, home
from tests.reference.frames import pcap
from tests.traffic import Frame, S, merged, read, scan, steady
from tools.debian import BOOKWORM, ROOT, WORK, Unavailable

FLOOD = 100_000
PI_4 = 1.5e9
"""Instructions a second that one core is assumed to do: 1.5 GHz, one a cycle. Nothing was run on a Pi."""

SOURCE = ROOT / "tests" / "arm" / "count.c"
WORKER = ROOT / "tests" / "arm" / "work.py"


def plugin(arm: Arm) -> Path:
    """Build the counter for the version of the plugin interface that this qemu has; Unavailable if it has none."""
    library = WORK / "count.so"
    for number in range(1, 8):
        command = ["cc", "-shared", "-fPIC", "-O2", f"-DVERSION={number}", str(SOURCE), "-o", str(library)]
        subprocess.run(command, check=True)
        try:
            count(arm, library, "-c", "pass")
        except Unavailable:
            continue
        return library
    raise Unavailable("this qemu-aarch64 takes no plugin")


def count(arm: Arm, library: Path, *arguments: str) -> tuple[int, str]:
    """Return the instructions of ``python3 arguments`` and its output."""
    command = arm.command(*arguments, plugin=str(library))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    counted = re.search(r"^instructions (\d+)$", done.stderr, re.M)
    if done.returncode or not counted:
        raise Unavailable(f"not counted: {done.stderr[-1000:]}")
    return int(counted.group(1)), done.stdout


def flood(arm: Arm, library: Path, bundle: Path, budget: int) -> float:
    """Return the instructions a packet in the second second of a flood."""
    counts = []
    with tempfile.TemporaryDirectory(prefix="flood-", dir=WORK) as folder:
        for seconds in (1, 2):
            file = Path(folder) / f"{seconds}.pcap"
            attack(file, "flood", seconds * FLOOD)
            counts.append(count(arm, library, str(WORKER), str(budget), str(file), str(bundle))[0])
    return (counts[1] - counts[0]) / FLOOD


def captures() -> dict[str, tuple[Path, Path]]:
    """Return a short and a long capture of each kind of traffic."""
    day = merged(*(read(file) for file in sorted(LATER.glob("*/*.pcap"))))
    span = day[-1][0] - day[0][0] + S
    flood = list(steady(scan(15_000), day[0][0], 1000.0))

    def days(count: int) -> list[Frame]:
        return [(t_ns + number * span, length, data) for number in range(count) for t_ns, length, data in day]

    made = {}
    for kind, short, long in (("quiet home", days(2), days(4)), ("scan", flood[:5000], flood)):
        files = tuple(WORK / f"{kind.replace(' ', '-')}-{name}.pcap" for name in ("short", "long"))
        for file, frames in zip(files, (short, long), strict=True):
            file.write_bytes(pcap(frames, nanoseconds=True))
        made[kind] = files[0], files[1]
    return made


def main(argv: list[str]) -> int:
    """Print the figures; return 1 if they cannot be measured here."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_arm")
    parser.add_argument("bundle", type=Path, nargs="?")
    args = parser.parse_args(argv)
    try:
        arm = prepare(BOOKWORM)
        library = plugin(arm)
        made = home()[0]  # and its captures
        bundle, of = args.bundle or made, captures()
        print("aarch64 (cortex-a72 under qemu, Debian 12), instructions per packet:")
        for part, kind, two in (
            ("kernel", "quiet home", of["quiet home"]),
            ("kernel", "scan", of["scan"]),
            ("autoencoder", "any row", (4096, 12288)),
            ("all", "quiet home", of["quiet home"]),
            ("all", "scan", of["scan"]),
        ):
            runs = [count(arm, library, str(WORKER), part, str(what), str(bundle)) for what in two]
            each = (runs[1][0] - runs[0][0]) / (int(runs[1][1]) - int(runs[0][1]))
            print(f"  {part:12} {kind:12} {each:10,.0f}", flush=True)
        print(f"a spoofed flood, {FLOOD:,} packets/s; {PI_4:.2g} instructions/s are assumed to be a core:")
        floods = {budget: flood(arm, library, bundle, budget) for budget in (ScoringConfig().max_rows_per_s, 100)}
        for budget, each in floods.items():
            print(f"  {budget:,} rows/s scored {each:10,.0f} a packet, {100 * each * FLOOD / PI_4:.0f} % of a core")
        (more, of_more), (few, of_few) = floods.items()
        print(f"  a scored row adds {(of_more - of_few) * FLOOD / (more - few):10,.0f}")
    except Unavailable as reason:
        print(f"instructions on aarch64: not counted here: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
