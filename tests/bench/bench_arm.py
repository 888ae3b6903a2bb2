"""Instructions a packet costs on a Raspberry Pi 4's processor: ``python -m tests.bench.bench_arm BUNDLE CAPTURE``.

Counted by qemu in the arm64 root of `tests.arm.root` (cortex-a72), so the same on every machine; an instruction is not
a time: no cache and no waiting is in it. Each figure is (count of n + m times - count of n times) / m / packets, with
nothing of start and import in it. Without arguments a home is generated and fitted, and its later day is the capture.

Then a spoofed flood of one device, 100,000 packets a second: its second second, under the default budget of scoring and
under the smallest, and from their difference what a scored row of a device in an alarm costs. With that the default of
`scoring.max_rows_per_s` was chosen: what an attack may take of a Pi 4's core.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from edge_agent.config import ScoringConfig
from tests.arm.root import BOOKWORM, ROOT, WORK, Arm, Unavailable, prepare
from tests.bench.bench_kernel import attack

FLOOD = 100_000
PI_4 = 1.5e9
"""Instructions a second that one core is taken to do: 1.5 GHz, one a cycle. An assumption, nothing was run on a Pi."""

SOURCE = ROOT / "tests" / "arm" / "count.c"
WORKER = ROOT / "tests" / "arm" / "work.py"


def plugin(arm: Arm) -> Path:
    """The counter, in the version of its interface that this qemu takes; Unavailable when it takes none."""
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
    """Instructions of ``python3 arguments`` and what it printed."""
    command = arm.command(*arguments, plugin=str(library))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"^instructions (\d+)$", done.stderr, re.M)
    if done.returncode or not found:
        raise Unavailable(f"not counted: {done.stderr[-1000:]}")
    return int(found.group(1)), done.stdout


def flood(arm: Arm, library: Path, bundle: Path, budget: int) -> float:
    """Instructions a packet in the second second of a flood."""
    counts = []
    with tempfile.TemporaryDirectory(prefix="flood-", dir=WORK) as folder:
        for seconds in (1, 2):
            file = Path(folder) / f"{seconds}.pcap"
            attack(file, "flood", seconds * FLOOD)
            counts.append(count(arm, library, str(WORKER), "flood", str(budget), str(file), str(bundle))[0])
    return (counts[1] - counts[0]) / FLOOD


def main(argv: list[str]) -> int:
    """Print the figures; 1 when they cannot be made here."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_arm")
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("capture", type=Path, nargs="?")
    args = parser.parse_args(argv)
    try:
        arm = prepare(BOOKWORM)
        library = plugin(arm)
        bundle, capture = args.bundle, args.capture
        if capture is None:
            from tests.bench.home import home

            bundle, capture = home()
        print(f"aarch64 (cortex-a72 under qemu, Debian 12), instructions per packet, {capture.name}:")
        for part, low, more in (("kernel", 1, 2), ("autoencoder", 0, 4), ("all", 1, 2)):
            counts = []
            for times in (low, low + more):
                made, said = count(arm, library, str(WORKER), part, str(times), str(capture), str(bundle))
                counts.append(made)
            each = (counts[1] - counts[0]) / more / int(said)
            print(f"  {part:12} {each:10,.0f}", flush=True)
        print(f"a spoofed flood, {FLOOD:,} packets/s, instructions per packet:")
        floods = {budget: flood(arm, library, bundle, budget) for budget in (ScoringConfig().max_rows_per_s, 100)}
        for budget, each in floods.items():
            share = each * FLOOD / PI_4
            print(
                f"  {budget:,} rows/s scored {each:10,.0f}: {100 * share:.0f} % of a core, were it {PI_4:.2g} a second"
            )
        (more, of_more), (few, of_few) = floods.items()
        print(f"  a scored row adds {(of_more - of_few) * FLOOD / (more - few):10,.0f}")
    except Unavailable as reason:
        print(f"instructions on aarch64: not counted here: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
