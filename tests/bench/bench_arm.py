"""Instructions a packet costs on a Raspberry Pi 4's processor: ``python -m tests.bench.bench_arm BUNDLE CAPTURE``.

Counted by qemu in the arm64 root of `tests.arm.root` (cortex-a72), so the same on every machine; an instruction is not
a time: no cache and no waiting is in it. Each figure is (count of n + m times - count of n times) / m / packets, with
nothing of start and import in it. Without arguments a home is generated and fitted, and its later day is the capture.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from tests.arm.root import BOOKWORM, ROOT, WORK, Arm, Unavailable, prepare

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
    except Unavailable as reason:
        print(f"instructions on aarch64: not counted here: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
