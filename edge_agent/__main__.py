"""The `botwatch agent` command: reads arguments, hands over, turns known errors into one line and an exit status."""

import argparse
import dataclasses
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_agent.agent import Alert
    from edge_agent.config import AgentConfig
    from edge_agent.contract.bundle import Bundle
    from edge_agent.publisher import Publisher

PROG = "botwatch agent"

logger = logging.getLogger(__name__)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        PROG,
        description="The gateway's part: packets in, alerts out.",
        epilog=f"example:\n  {PROG} replay capture.pcap --bundle bundles/home",
        formatter_class=raw,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--bundle", type=Path, metavar="DIR", help="model bundle, instead of the configuration's")
    common.add_argument("--config", type=Path, metavar="FILE", help="agent.yaml; without it the defaults")
    common.add_argument("--gateway", metavar="ID", help="instead of the configuration's")
    common.add_argument("--outbox", type=Path, metavar="FILE", help="SQLite file, instead of the configuration's")

    live = argparse.ArgumentParser(add_help=False)
    live.add_argument(
        "--interface", action="append", metavar="NAME", help="instead of the configuration's; may be given again"
    )
    live.add_argument("--broker", metavar="HOST:PORT", help="instead of the configuration's")

    text = "capture on network interfaces and publish alerts until told to stop; alerts also as JSON lines on stdout"
    run = commands.add_parser(
        "run",
        parents=[common, live],
        help=text,
        description=text,
        epilog=f"example:\n  {PROG} run --config /etc/botwatch/agent.yaml --record today.pcap",
        formatter_class=raw,
    )
    run.add_argument("--record", type=Path, metavar="FILE", help="also write what is captured to a pcap file")
    run.add_argument("--no-broker", action="store_true", help="print alerts only; nothing is kept or published")
    run.add_argument(
        "--seed", type=int, metavar="N", help="of the tables' hash, for comparison with a replay (0); never in service"
    )
    run.set_defaults(run=_run)

    text = "say what is wrong with configuration, interfaces, bundle, broker, clock and disk, and what to do about it"
    check = commands.add_parser(
        "check",
        parents=[common, live],
        help=text,
        description=text,
        epilog=f"example:\n  {PROG} check --config /etc/botwatch/agent.yaml",
        formatter_class=raw,
    )
    check.set_defaults(run=_check)

    text = "judge capture files as if their packets came in live; alerts as JSON lines on stdout, counters on stderr"
    replay = commands.add_parser(
        "replay",
        parents=[common],
        help=text,
        description=text,
        epilog=f"example:\n  {PROG} replay day1.pcap day2.pcap --bundle bundles/home --broker localhost:1883",
        formatter_class=raw,
    )
    replay.add_argument("files", nargs="+", type=Path, metavar="FILE", help="pcap or pcapng, in time order; - is stdin")
    replay.add_argument("--broker", metavar="HOST:PORT", help="also publish the alerts, through the outbox, over MQTT")
    replay.add_argument(
        "--wait", type=_seconds, default=10.0, metavar="S", help="for the broker, at the end (default %(default)s s)"
    )
    replay.add_argument(
        "--evidence", type=Path, metavar="DIR", help="keep the packets around each alert there (default: nothing kept)"
    )
    replay.set_defaults(run=_replay)

    text = "list the packet captures that were kept with alerts, or fetch one as a pcap file"
    evidence = commands.add_parser(
        "evidence",
        parents=[common],
        help=text,
        description=text,
        epilog=f"example:\n  {PROG} evidence 01a20937-03cb-7c3e-9f10-0c5a7c1e9a44 --out scan.pcap",
        formatter_class=raw,
    )
    evidence.add_argument("id", nargs="?", metavar="ALERT-ID", help="an alert's context.botwatch.id; without: list all")
    evidence.add_argument("--out", type=Path, metavar="FILE", help="where to write the pcap; - is stdout")
    evidence.set_defaults(run=_evidence, broker=None)

    text = (
        "write the rows that are kept of healthy devices to a file for `botwatch trainer fit`: statistics, no addresses"
    )
    rows = commands.add_parser(
        "rows",
        help=text,
        description=text + "; `learning.export` in the configuration must allow it",
        epilog=f"example:\n  {PROG} rows --config /etc/botwatch/agent.yaml --out rows.npz",
        formatter_class=raw,
    )
    rows.add_argument("--config", type=Path, metavar="FILE", help="agent.yaml; without it the defaults")
    rows.add_argument("--outbox", type=Path, metavar="FILE", help="SQLite file, instead of the configuration's")
    rows.add_argument("--out", type=Path, metavar="FILE", required=True, help=".npz file to write")
    rows.set_defaults(run=_rows, bundle=None, gateway=None, broker=None)

    memory = argparse.ArgumentParser(add_help=False)
    memory.add_argument("--config", type=Path, metavar="FILE", help="agent.yaml; without it the defaults")
    memory.add_argument("--outbox", type=Path, metavar="FILE", help="SQLite file, instead of the configuration's")
    memory.add_argument("--json", action="store_true", help="the reply as JSON")
    memory.set_defaults(run=_order, bundle=None, gateway=None, broker=None)

    def order(
        verb: str, text: str, example: str, of: argparse.ArgumentParser = memory, more: str = ""
    ) -> argparse.ArgumentParser:
        epilog = f"example:\n  {PROG} {example} --config /etc/botwatch/agent.yaml{more}"
        return commands.add_parser(verb, parents=[of], help=text, description=text, epilog=epilog, formatter_class=raw)

    order("status", "say how a running agent is: devices, what is held back, counters", "status")

    text = "send an alert that says it is a test, through outbox and broker to whoever reads, and say each step"
    trial = order("test-alert", text, "test-alert", common)
    trial.add_argument("--broker", metavar="HOST:PORT", help="instead of the configuration's, when no agent runs")
    trial.add_argument(
        "--wait", type=_seconds, default=10.0, metavar="S", help="for the broker (default %(default)s s)"
    )
    trial.set_defaults(run=_trial)

    text = "write one archive of what is needed to help: configuration, check, counters, versions, log; without secrets"
    support = order("support", text, "support", common, " --out support.tar.gz")
    support.add_argument("--out", type=Path, metavar="FILE", required=True, help="tar.gz that only you can read")
    support.set_defaults(run=_support, broker=None)

    def lasting(parser: argparse.ArgumentParser, default: str) -> None:
        text = f"90s, 15m, 24h, 7d (default {default})"
        parser.add_argument("--for", type=_duration, dest="for_s", metavar="TIME", help=text)

    allow = order(
        "allow",
        "let a device do what an alert said: such alerts are counted and no longer told, for a time",
        'allow 019abf2c-… --reason "backup job" --for 7d',
    )
    allow.add_argument("alert", nargs="?", metavar="ALERT-ID", help="whose device and classes are meant")
    allow.add_argument("--device", metavar="MAC|NAME", help="instead of an alert's; with --class")
    allow.add_argument(
        "--class", action="append", dest="classes", metavar="CLASS", help="as in alerts, or mirai.*; may be given again"
    )
    allow.add_argument("--host", metavar="IP", help="only what goes to this address")
    allow.add_argument("--port", type=int, metavar="N", help="only what goes to this port")
    allow.add_argument("--reason", required=True, metavar="TEXT")
    lasting(allow, "30d")
    order("unallow", "end an entry of the allow list", "unallow 3").add_argument("entry", type=int, metavar="N")
    mute = order("mute", "count a device's alerts and do not tell them, for a time", "mute cam-entrance --for 2h")
    text = "a device's MAC or name, a victim's IP address, or an alert's id"
    mute.add_argument("device", metavar="MAC|NAME|ALERT-ID|all", help=text)
    lasting(mute, "1h")
    mute.add_argument("--reason", metavar="TEXT")
    unmute = order("unmute", "end a mute", "unmute cam-entrance")
    unmute.add_argument("device", metavar="MAC|NAME|all")
    learn = order("learn", "have a device learnt anew", "learn cam-entrance")
    learn.add_argument("device", metavar="MAC|NAME")
    return parser


def _duration(text: str) -> float:
    from edge_agent.contract.commands import parse_duration
    from edge_agent.contract.messages import MessageError

    try:
        return parse_duration(text)
    except MessageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


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
        status: int = args.run(args)
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has seen enough; Python must not complain about it once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _Refused(Exception):
    """What the command cannot go on with, and its exit status."""

    def __init__(self, reason: object, status: int = 2) -> None:
        super().__init__(str(reason))
        self.status = status


def _config(args: argparse.Namespace) -> "AgentConfig":
    """The configuration, with what the command line replaces."""
    from edge_agent.config import AgentConfig
    from edge_agent.contract import settings
    from edge_agent.contract.broker import BrokerError
    from edge_agent.contract.messages import MessageError

    try:
        config = settings.load(AgentConfig, args.config) if args.config else AgentConfig()
        if args.gateway:
            config = dataclasses.replace(config, gateway=args.gateway)
        if args.broker:
            config = dataclasses.replace(config, broker=config.broker.at(args.broker))
        if args.outbox:
            config = dataclasses.replace(config, outbox=dataclasses.replace(config.outbox, path=args.outbox))
        if args.bundle:
            config = dataclasses.replace(config, bundle=args.bundle)
        if getattr(args, "interface", None):
            capture = dataclasses.replace(config.capture, interfaces=tuple(args.interface))
            config = dataclasses.replace(config, capture=capture)
    except (settings.SettingsError, BrokerError, MessageError, ValueError) as error:
        raise _Refused(error) from error
    return config


def _bundle(config: "AgentConfig") -> "Bundle":
    """The bundle, whose models compute here what they computed where they were made."""
    from edge_agent.contract import bundle as bundles
    from edge_agent.detection.runtime import ModelError, RuntimeUnavailable, selftest

    if config.bundle is None:
        raise _Refused("no bundle: give --bundle DIR or set `bundle` in the configuration")
    try:
        bundle = bundles.load(config.bundle)
        selftest(bundle)
    except (bundles.BundleError, ModelError) as error:
        raise _Refused(error) from error
    except RuntimeUnavailable as error:
        raise _Refused(error, 1) from error
    return bundle


def _publisher(config: "AgentConfig", *, controlled: bool = False) -> "Publisher":
    from edge_agent.contract.broker import BrokerError
    from edge_agent.publisher import Publisher
    from edge_agent.state import StateError

    try:
        return Publisher(config, controlled=controlled)
    except BrokerError as error:
        raise _Refused(error) from error
    except StateError as error:
        raise _Refused(error, 1) from error


def _print(alert: "Alert") -> None:
    print(json.dumps(alert, ensure_ascii=False, separators=(",", ":")), flush=True)


def _run(args: argparse.Namespace) -> int:
    from edge_agent import agent as agents
    from edge_agent import service
    from edge_agent.capture.sources import CaptureError, Interfaces, Recorder
    from edge_agent.contract.bundle import BundleError
    from edge_agent.delivery.evidence import EvidenceError
    from edge_agent.state import StateError

    recorder = interfaces = publisher = None
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        config = _config(args)
        names = config.capture.interfaces
        if not names:
            return _say("no interface: give --interface NAME or set `capture.interfaces` in the configuration")
        bundle = _bundle(config)
        publisher = None if args.no_broker else _publisher(config, controlled=True)
        state = publisher.state if publisher else None
        agent = agents.Agent(config, bundle, seed=args.seed, state=state, evidence=config.evidence)
        if args.record:
            recorder = Recorder(args.record, config.capture.record_mb << 20)
        interfaces = Interfaces(names, config.capture.live(), recorder)

        unprintable = ""

        def give(*alerts: "Alert") -> None:
            nonlocal unprintable
            try:
                for alert in alerts:
                    _print(alert)
            except BrokenPipeError:
                raise
            except OSError as error:  # a full disk behind `> FILE` must not end the agent
                if error.strerror != unprintable:
                    logger.error("alerts cannot be written to stdout: %s", error.strerror)
                unprintable = error.strerror or ""
            if publisher:
                publisher.give(*alerts)

        def again() -> "AgentConfig | str":
            if args.config is None:
                return "the agent was started without a file"
            try:
                return _config(args)
            except _Refused as refused:
                return str(refused)

        reload = service.Reload(config, again)
        signal.signal(signal.SIGHUP, lambda *_: reload.wanted.set())
        began = time.monotonic()
        print(f"{PROG}: capturing on {', '.join(names)}, model {bundle.manifest.version}", file=sys.stderr)
        with publisher.running() if publisher else nullcontext():
            save_s = 60.0 * config.learning.save_minutes
            seen = service.run(agent, interfaces, give, stop, publisher, save_s=save_s, reload=reload)
        counts = agent.counts() | interfaces.count() | seen | (publisher.counts() if publisher else {})
        for line in agents.report(counts, time.monotonic() - began):
            print(line, file=sys.stderr)
        return 0
    except _Refused as refused:
        return _say(refused, refused.status)
    except BundleError as error:
        return _say(error)
    except (CaptureError, StateError, EvidenceError) as error:
        return _say(error, 1)
    finally:
        if interfaces:
            interfaces.close()
        if recorder:
            recorder.close()


def _check(args: argparse.Namespace) -> int:
    from edge_agent import check

    try:
        config = _config(args)
    except _Refused as refused:
        return _say(refused)
    bundle: Bundle | str
    try:
        bundle = _bundle(config)
    except _Refused as refused:
        bundle = str(refused)
    worst = 0
    for finding in check.findings(config, bundle):
        print(finding.line())
        worst = max(worst, finding.wrong)
    return worst


def _replay(args: argparse.Namespace) -> int:
    from edge_agent import agent as agents
    from edge_agent.capture.sources import CaptureError
    from edge_agent.contract.bundle import BundleError
    from edge_agent.delivery.evidence import EvidenceError
    from edge_agent.progress import Progress
    from edge_agent.state import StateError

    try:
        config = _config(args)
        bundle = _bundle(config)
        kept = dataclasses.replace(config.evidence, path=args.evidence)
        agent = agents.Agent(config, bundle, seed=0, evidence=kept)
        publisher = _publisher(config) if args.broker else None
    except _Refused as refused:
        return _say(refused, refused.status)
    except BundleError as error:
        return _say(error)
    except EvidenceError as error:
        return _say(error, 1)
    if bundle.manifest.generated:
        print(f"{PROG}: this model was trained on generated traffic", file=sys.stderr)

    def give(alert: agents.Alert) -> None:
        _print(alert)
        if publisher:
            publisher.give(alert)

    status, left, began = 0, 0, time.monotonic()
    with publisher.running() if publisher else nullcontext():
        with Progress("packets") as progress:
            try:
                files = [Path("/dev/stdin") if str(file) == "-" else file for file in args.files]
                agents.replay(agent, files, give, progress.step)
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


def _evidence(args: argparse.Namespace) -> int:
    import hashlib

    from edge_agent.contract.messages import format_time
    from edge_agent.delivery.evidence import EvidenceError, began_ns, fetch, files

    try:
        folder = _config(args).evidence.path
        if folder is None:
            return _say("no evidence is kept: `evidence.path` in the configuration is null")
        if args.id is None:
            for path in files(folder):
                print(f"{path.stem}  {format_time(began_ns(path))}  {path.stat().st_size:,} bytes")
            return 0
        if args.out is None:
            return _say("give --out FILE")
        content = fetch(folder, args.id)
        if str(args.out) == "-":
            sys.stdout.buffer.write(content)
        else:
            args.out.write_bytes(content)
            print(f"{args.out}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    except _Refused as refused:
        return _say(refused, refused.status)
    except EvidenceError as error:
        return _say(error, 1)
    except OSError as error:
        return _say(f"{error.filename}: {error.strerror}", 1)
    return 0


def _rows(args: argparse.Namespace) -> int:
    from edge_agent import orders
    from edge_agent.contract.bundle import replace_file
    from edge_agent.detection import devices
    from edge_agent.state import State, StateError

    try:
        config = _config(args)
        if not config.learning.export:
            return _say("no rows may leave here: `learning.export` in the configuration is false")
        state = State(orders.state_path(config), guest=True)
        try:
            content, rows, of = devices.export(state, config.names, config.gateway)
        finally:
            state.close()
        if not rows:
            return _say("no rows are kept yet: the first are written when a device has been learnt", 1)
        replace_file(args.out, content)
        print(f"{args.out}: {rows:,} rows of {of} devices, {len(content):,} bytes")
    except _Refused as refused:
        return _say(refused, refused.status)
    except StateError as error:
        return _say(error, 1)
    except OSError as error:
        return _say(f"{error.filename or args.out}: {error.strerror}", 1)
    return 0


def _support(args: argparse.Namespace) -> int:
    from edge_agent import support

    bundle: Bundle | str
    try:
        config = _config(args)
        try:
            bundle = _bundle(config)
        except _Refused as refused:
            bundle = str(refused)
        names = support.write(config, bundle, args.out)
    except _Refused as refused:
        return _say(refused, refused.status)
    except OSError as error:
        return _say(f"{args.out}: {error.strerror}", 1)
    print(f"{args.out}: {', '.join(names)}; it has names, addresses and counters of this network, and no secret")
    return 0


def _trial(args: argparse.Namespace) -> int:
    from edge_agent import testalert
    from edge_agent.contract import bundle as bundles
    from edge_agent.contract.alert import ModelInfo
    from edge_agent.contract.broker import BrokerError
    from edge_agent.control import CommandRefused
    from edge_agent.state import StateError

    try:
        config = _config(args)
        model = ModelInfo("none")
        if config.bundle:
            manifest = (bundle := bundles.load(config.bundle)).manifest
            model = ModelInfo(manifest.version, bundle.sha256, manifest.generated)
        for number, step in enumerate(testalert.steps(config, model, args.wait), 1):
            print(f"{number}. {step}", flush=True)
    except _Refused as refused:
        return _say(refused, refused.status)
    except (bundles.BundleError, BrokerError) as error:
        return _say(error)
    except (testalert.NotDelivered, CommandRefused, StateError) as error:
        return _say(error, 1)
    return 0


_ORDERS = ("alert", "device", "classes", "host", "port", "for_s", "reason", "entry")


def _order(args: argparse.Namespace) -> int:
    from edge_agent import orders
    from edge_agent.contract.commands import ALL_DEVICES
    from edge_agent.contract.messages import MessageError
    from edge_agent.control import CommandRefused
    from edge_agent.state import StateError

    said = {key: value for key in _ORDERS if (value := getattr(args, key, None)) is not None}
    if said.get("device") == "all":
        said["device"] = ALL_DEVICES
    elif args.command == "mute" and len(said["device"]) == 36 and said["device"].count("-") == 4:
        said["alert"] = said.pop("device")
    try:
        reply, running = orders.order(_config(args), args.command, said)
    except _Refused as refused:
        return _say(refused, refused.status)
    except MessageError as error:
        return _say(error)
    except (CommandRefused, StateError) as error:
        return _say(error, 1)
    if reply.error:
        return _say(reply.error, 1)
    if args.json:
        print(json.dumps({"running": running, **(reply.result or {})}, ensure_ascii=False, indent=1))
    else:
        for line in orders.lines(reply, running):
            print(line)
    return 0


def _say(reason: object, status: int = 2) -> int:
    print(f"{PROG}: {reason}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
