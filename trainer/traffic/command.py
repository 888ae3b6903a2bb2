"""`botwatch trainer generate`: a plan from the command line."""

import argparse
import time
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

from edge_agent.contract.cli import OK, refuse
from edge_agent.progress import Progress
from trainer.traffic.captures import captures_of, generate
from trainer.traffic.homes import draw, generate_homes
from trainer.traffic.plan import ATTACKS, CHECKINS, DEVICES, PROG, Plan, PlanError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `botwatch trainer generate`."""
    parser.description = (
        "Write captures of generated IoT devices, healthy and infected, and their manifest. No packet is sent."
    )
    parser.epilog = f"example:\n  {PROG} --out captures --seed 7"
    plan = Plan()

    def words(text: str) -> tuple[str, ...]:
        return tuple(word for word in text.split(",") if word)

    def day(text: str) -> datetime:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)

    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the captures and manifest.yaml"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=plan.seed,
        help="seed of all random numbers; another seed gives another home (%(default)s)",
    )
    parser.add_argument(
        "--homes",
        type=int,
        metavar="N",
        help="generate N homes instead, whose devices, habits and infections are drawn from the seed: a folder each in "
        "DIR, a day long; of the other options only --seed counts",
    )
    parser.add_argument("--varied", action="store_true", help="devices with habits of their own, and events")
    parser.add_argument("--home", default=plan.home, metavar="NAME", help="name before those of its devices")
    parser.add_argument("--start", type=day, default=plan.start, metavar="DAY", help="first day, UTC (2026-01-05)")
    parser.add_argument(
        "--days", type=int, default=plan.days, help="number of benign captures per device (%(default)s)"
    )
    parser.add_argument("--hours", type=float, default=plan.hours, help="length of each benign capture (%(default)s)")
    parser.add_argument(
        "--devices",
        type=words,
        default=plan.devices,
        metavar="KIND,...",
        help=f"kinds of device: {', '.join(DEVICES)}; a kind may occur twice",
    )
    options = ":rate=PPS :port=N :size=BYTES :spoof=own|any|subnet :seconds=S"
    attacks = (
        f"attacks: {', '.join(ATTACKS)}; or check-ins, which last an hour and have a rate of check-ins: "
        f"{', '.join(CHECKINS)}; each with any of the options {options}; '' for none"
    )
    parser.add_argument("--attacks", type=words, default=plan.attacks, metavar="ATTACK,...", help=attacks)
    parser.add_argument(
        "--infected",
        type=words,
        default=plan.infected,
        metavar="NAME,...",
        help="devices that attack, such as camera-1 (default: the first)",
    )
    parser.add_argument(
        "--attack-seconds", type=float, default=plan.attack_seconds, help="length of each attack (%(default)s)"
    )
    parser.add_argument(
        "--lead-minutes", type=float, default=plan.lead_minutes, help="benign minutes before the attack (%(default)s)"
    )
    parser.add_argument(
        "--tail-minutes", type=float, default=plan.tail_minutes, help="benign minutes after it (%(default)s)"
    )
    parser.add_argument(
        "--max-attack-packets",
        type=int,
        default=plan.max_attack_packets,
        help="bound of the packets of one attack (%(default)s)",
    )
    parser.add_argument("--snaplen", type=int, default=plan.snaplen, help="captured bytes of a frame (%(default)s)")


def run(args: argparse.Namespace, command: str) -> int:
    """Run `botwatch trainer generate`; return the exit status."""
    began = time.monotonic()
    try:
        if args.homes is not None:
            plans = draw(args.seed, args.homes)
            with Progress("generating homes", len(plans)) as bar:
                generate_homes(plans, args.out, lambda line: bar.step(note=line))
            homes = "1 home" if len(plans) == 1 else f"{len(plans)} homes"
            print(f"generated {args.out}: seed {args.seed}, {homes}, {_told(args.out, began)}")
            return OK
        plan = Plan(**{f.name: getattr(args, f.name) for f in fields(Plan)})
        plan.check()
        with Progress("generating captures", len(captures_of(plan))) as bar:
            manifest = generate(plan, args.out, lambda done, total, line: bar.step(note=line))
    except PlanError as error:
        return refuse(PROG, error)
    except OSError as error:
        return refuse(PROG, error, file=args.out)
    print(f"generated {manifest}: seed {plan.seed}, {_told(args.out, began)}")
    return OK


def _told(out: Path, began: float) -> str:
    size = sum(path.stat().st_size for path in out.rglob("*.pcap"))
    return f"{size / 1e6:.1f} MB in {time.monotonic() - began:.1f} s"
