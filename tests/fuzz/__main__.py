"""Build the fuzzer with sanitizers and run it: ``python -m tests.fuzz --seconds 60 --frames 1000000``.

Seeds are crafted frames of every kind the decoder knows, as pcap and pcapng files, and the published captures when they
are present. Exit status 1 is a finding; the output names the --seed that repeats it.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.reference import frames as craft
from tests.reference.frames import START_NS, Spec

ROOT = Path(__file__).parents[2]
KERNEL = ROOT / "edge_agent" / "kernel"
SOURCES = [
    Path(__file__).with_name("fuzz.c"),
    *sorted(set(KERNEL.glob("*.c")) - set(KERNEL.glob("module*.c"))),  # those are Python's
]
FLAGS = ["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
PUBLISHED = (
    "kitsune/mirai2000.pcap",
    "pcap/attack/nmap/nmap_80_all.pcap",
    "pcap/attack/masscan/udp_0_1000_20190821.pcap",
)


def build(folder: Path, compiler: str = "cc") -> Path:
    """Compile the fuzzer and return its path."""
    program = folder / "fuzz"
    command = [compiler, *FLAGS, *SANITIZERS, f"-I{KERNEL}", *map(str, SOURCES), "-lpcap", "-lm", "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def corpus(folder: Path) -> list[Path]:
    """Return capture files of crafted frames, one of each kind of each link layer, and the published ones."""
    files = []
    for linktype in (craft.ETHERNET, craft.RAW, craft.SLL, craft.SLL2):
        tags = craft.TAGS if linktype == craft.ETHERNET else ("",)
        specs = [
            *(Spec(n, "", e, t) for n in ("ipv4", "ipv6") for e in craft.EXTENSIONS for t in craft.TRANSPORTS),
            *(Spec(network, tag) for network in craft.NETWORKS for tag in tags),
        ]
        frames = [(START_NS + i * 1_000_000, *craft.craft(spec, linktype)) for i, spec in enumerate(specs)]
        few = frames[:: max(1, len(frames) // 40)]
        for name, content in (
            (f"all-{linktype}.pcap", craft.pcap(frames, linktype)),
            (f"few-{linktype}.pcap", craft.pcap(few, linktype, nanoseconds=True)),
            (f"few-{linktype}.pcapng", craft.pcapng(few, linktype, extra=craft.block(0xBAD, b"unknown"))),
        ):
            files.append(folder / name)
            files[-1].write_bytes(content)
    data = craft.data_folder()
    if data is not None:
        files += [data / name for name in PUBLISHED if (data / name).is_file()]
    return files


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="at least (%(default)s)")
    parser.add_argument("--frames", type=int, default=0, help="mutated frames, at least (%(default)s)")
    parser.add_argument("--seed", type=int, help="of an earlier run, to repeat it")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(2**32)
    with tempfile.TemporaryDirectory(prefix="botwatch-fuzz-") as name:
        folder = Path(name)
        program = build(folder)
        command = [
            str(x) for x in (program, arguments.seconds, arguments.frames, seed, folder / "scratch", *corpus(folder))
        ]
        status = subprocess.run(command, check=False).returncode
    if status != 0:
        print(f"fuzz: exit status {status}; again with: python -m tests.fuzz --seed {seed}", file=sys.stderr)
    return 0 if status == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
