"""Instructions a packet costs on a Raspberry Pi 4's processor: ``python -m tests.bench.bench_arm [BUNDLE]``.

Counted by qemu in the arm64 root of `tests.arm.root` (cortex-a72), so the same on every machine; an instruction is not
a time: no cache and no waiting is in it. Each figure is of two captures, one longer than the other: what
more the longer one takes by the packets it has more, so that nothing of import, start and first calls is in it. Every
run begins with nothing learnt, and time only goes forward. Captures: the later day of the tests' generated home again
and again, a few packets a minute, where what is done each minute and each batch weighs most; and a scan of 1,000
packets a second, all in an alarm, where every row is scored twice and classified. ``BUNDLE`` replaces that home's.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from tests.arm.root import BOOKWORM, ROOT, WORK, Arm, Unavailable, prepare
from tests.bench.home import LATER, home
from tests.reference.frames import pcap
from tests.traffic import Frame, S, merged, read, scan, steady

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


def captures() -> dict[str, tuple[Path, Path]]:
    """A short and a long one of each kind of traffic."""
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
    """Print the figures; 1 when they cannot be made here."""
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
    except Unavailable as reason:
        print(f"instructions on aarch64: not counted here: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
