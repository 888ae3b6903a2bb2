"""The distance of healthy devices from a false check-in: ``python -m tests.bench.bench_checkins``.

Takes every published benign capture (BOTWATCH_DATA) and counts, for several times of learning, the hosts that a device
used for the first time after learning, how long it used the most persistent of them, and the check-ins that the rule
reports. Starts are rotated over the captures, too, because the known hosts depend on the agent's start; those runs
share their packets, so they are not further evidence. No attack is involved. Takes some minutes.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.capture.features import Extractor
from edge_agent.detection.checkins import CheckInRule, CheckIns
from trainer.judge import inject

ROOT = Path(os.environ.get("BOTWATCH_DATA", Path(__file__).parents[3] / "shared" / "data"))
H = 3600 * 10**9
DEVICES = ("gree_plug", "aqara_gateway", "honyar_outlet", "ihorn_gateway", "360_camera", "tplink_camera")
LEARN_S = (600.0, 3600.0, 6 * 3600.0, 24 * 3600.0)
STARTS_H = (0.0, 0.25, 0.5, 1.0, 1.5, 3.0, 8.0, 15.0, 24.0, 36.0)
EVERYTHING = {"contacts": 2, "span_s": 1.0, "spread": 1e9, "size": 1e12, "accepted": -1.0}


@dataclass
class Account:
    """The results for one time of learning."""

    days: float = 0.0  # device-days after it
    newcomers: int = 0
    contacts: int = 0  # of the series with a newcomer that has most, and the longest series
    span_s: float = 0.0
    reported: int = 0
    texts: set[str] = field(default_factory=set)


def main() -> int:
    """Print a row for each time of learning, for starts at the begin of a capture and for rotated ones."""
    if not (ROOT / "pcap").is_dir():
        print(f"no published captures in {ROOT}; BOTWATCH_DATA names the folder that has pcap/", file=sys.stderr)
        return 2
    files = {name: sorted((ROOT / "pcap/benign" / name).glob("*.pcap")) for name in DEVICES}
    days = {name: [frame for path in paths for frame in inject.read(path)] for name, paths in files.items()}
    print("published days of six devices, one after the other as one agent sees them")
    _table(days.values(), (0.0,))
    print("each file for itself, as an agent that forgets overnight")
    _table([inject.read(path) for paths in files.values() for path in paths], (0.0,))
    print(f"starts rotated over the days, {len(STARTS_H)} of each device; runs that overlap")
    _table(days.values(), STARTS_H)
    print("devices being set up, and Kitsune's network: captures of minutes, which are over before learning is")
    others = [*sorted((ROOT / "pcap/benign_setup").glob("*/*.pcap")), ROOT / "kitsune/packets_20000.pcap"]
    _table([sorted(inject.read(path), key=lambda frame: frame[0]) for path in others], (0.0,), (600.0,))
    return 0


def _table(days: Iterable[list[inject.Frame]], starts_h: Sequence[float], learning: Sequence[float] = LEARN_S) -> None:
    accounts = {learn_s: Account() for learn_s in learning}
    for frames in days:
        for start in starts_h:
            rest = [frame for frame in frames if frame[0] >= frames[0][0] + int(start * H)]
            if rest:
                _run(rest, accounts)
    print(
        f"{'learning':>9} {'device-days':>12} {'newcomers':>10} {'most contacts':>14} {'longest, min':>13} "
        f"{'reported':>9}"
    )
    for learn_s, a in accounts.items():
        print(
            f"{learn_s / 60:>5.0f} min {a.days:>12.2f} {a.newcomers:>10} {a.contacts:>14} "
            f"{a.span_s / 60:>13.1f} {a.reported:>9}",
            flush=True,
        )
        for text in sorted(a.texts):
            print(f"          {text}")


def _run(frames: list[inject.Frame], accounts: dict[float, Account]) -> None:
    """Run an agent from the first of ``frames`` on, with each time of learning."""
    extractor = Extractor(seed=1)
    span_s = (max(frame[0] for frame in frames) - frames[0][0]) / 1e9
    judges = {s: (CheckIns(rule=CheckInRule(s, **EVERYTHING)), CheckIns(rule=CheckInRule(s))) for s in accounts}
    for at in range(0, len(frames), 4096):
        rows = extractor.push_frames(frames[at : at + 4096])
        for learn_s, (every, rule) in judges.items():
            account = accounts[learn_s]
            for detection in every.observe(rows):
                account.contacts = max(account.contacts, detection.count)
                account.span_s = max(account.span_s, detection.window_s)
            account.texts |= {detection.explanation.split(" every ")[0] for detection in rule.observe(rows)}
    for learn_s, (every, rule) in judges.items():
        account = accounts[learn_s]
        account.days += max(span_s - learn_s, 0.0) / 86_400
        account.newcomers += every.counters["checkins_newcomers"]
        account.reported += rule.counters["checkins_series"]


if __name__ == "__main__":
    sys.exit(main())
