"""The `botwatch agent` command: reads arguments, hands over, turns known errors into one line and an exit status."""

import argparse
import dataclasses
import json
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

PROG = "botwatch agent"


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        PROG,
        description="The gateway's part: packets in, alerts out.",
        epilog=f"example:\n  {PROG} replay capture.pcap --bundle bundles/home",
        formatter_class=raw,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "judge capture files as if their packets came in live; alerts as JSON lines on stdout, counters on stderr"
    replay = commands.add_parser(
        "replay",
        help=text,
        description=text,
        epilog=f"example:\n  {PROG} replay day1.pcap day2.pcap --bundle bundles/home --broker localhost:1883",
        formatter_class=raw,
    )
    replay.add_argument("files", nargs="+", type=Path, metavar="FILE", help="pcap or pcapng, in time order")
    replay.add_argument("--bundle", type=Path, metavar="DIR", help="model bundle, instead of the configuration's")
    replay.add_argument("--config", type=Path, metavar="FILE", help="agent.yaml; without it the defaults")
    replay.add_argument("--gateway", metavar="ID", help="instead of the configuration's")
    replay.add_argument("--broker", metavar="HOST:PORT", help="also publish the alerts, through the outbox, over MQTT")
    replay.add_argument("--outbox", type=Path, metavar="FILE", help="SQLite file, instead of the configuration's")
    replay.add_argument(
        "--wait", type=_seconds, default=10.0, metavar="S", help="for the broker, at the end (default %(default)s s)"
    )
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: 0 done, 1 something could not be done to its end, 2 wrongly asked."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        return _replay(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has seen enough; Python must not complain about it once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _replay(args: argparse.Namespace) -> int:
    from edge_agent import agent as agents
    from edge_agent.capture import CaptureError
    from edge_agent.config import AgentConfig
    from edge_agent.contract import bundle as bundles
    from edge_agent.contract import settings
    from edge_agent.contract.broker import BrokerError
    from edge_agent.contract.messages import MessageError
    from edge_agent.progress import Progress
    from edge_agent.runtime import ModelError, RuntimeUnavailable, selftest
    from edge_agent.state import StateError

    try:
        config = settings.load(AgentConfig, args.config) if args.config else AgentConfig()
        if args.gateway:
            config = dataclasses.replace(config, gateway=args.gateway)
        if args.broker:
            config = dataclasses.replace(config, broker=config.broker.at(args.broker))
        if args.outbox:
            config = dataclasses.replace(config, outbox=dataclasses.replace(config.outbox, path=args.outbox))
        folder = args.bundle or config.bundle
        if folder is None:
            return _say("no bundle: give --bundle DIR or set `bundle` in the configuration")
        bundle = bundles.load(folder)
        agent = agents.Agent(config, bundle, seed=0)
        selftest(bundle)
        publisher = agents.Publisher(config) if args.broker else None
    except (settings.SettingsError, BrokerError, MessageError, bundles.BundleError, ModelError) as error:
        return _say(error)
    except (RuntimeUnavailable, StateError) as error:
        return _say(error, 1)
    if bundle.manifest.generated:
        print(f"{PROG}: this model was trained on generated traffic", file=sys.stderr)

    def give(alert: agents.Alert) -> None:
        print(json.dumps(alert, ensure_ascii=False, separators=(",", ":")), flush=True)
        if publisher:
            publisher.give(alert)

    status, left, began = 0, 0, time.monotonic()
    with publisher.running() if publisher else nullcontext():
        with Progress("packets") as progress:
            try:
                agents.replay(agent, args.files, give, progress.step)
            except (CaptureError, StateError) as error:
                status = _say(error, 1)
        seconds = time.monotonic() - began
        if publisher:
            left = publisher.link.flush(args.wait)
            trouble = publisher.link.trouble
    counts = agent.counts() | (publisher.counts() if publisher else {})
    for line in agents.report(counts, seconds):
        print(line, file=sys.stderr)
    if left:
        why = f" ({trouble})" if trouble else ""
        return _say(f"{left} alerts wait in {config.outbox.path} for {config.broker.address}{why}", 1)
    return status


def _say(reason: object, status: int = 2) -> int:
    print(f"{PROG}: {reason}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
