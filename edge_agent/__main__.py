"""The `botwatch agent` command: reads arguments, hands over, turns known errors into one line and an exit status."""

import argparse
import dataclasses
import logging
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.arguments import PROG, parser
from edge_agent.contract.cli import (
    FAILED,
    INTERRUPTED,
    NOT_RUNNING,
    OK,
    LogLines,
    SideLines,
    end_output,
    json_text,
    note,
    prepare_output,
    printable,
    refuse,
    say,
    terminal_width,
    wrapped,
)

if TYPE_CHECKING:
    from edge_agent.config import AgentConfig
    from edge_agent.contract.alert import Alert
    from edge_agent.contract.bundle import Bundle
    from edge_agent.publisher import Publisher


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 usage error, 3 not running, 130 interrupted."""
    prepare_output()
    args = parser().parse_args(argv)
    args.log = LogLines()
    level = logging.INFO if args.command in _LOGGED else logging.WARNING  # what a command did is its output
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", handlers=[args.log])
    return end_output(PROG, _status(args))


def _status(args: argparse.Namespace) -> int:
    """Run one command and return its exit status; what it printed may still be buffered."""
    try:
        return int(_COMMANDS.get(args.command, _order)(args))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `| head` has read enough
        return FAILED
    except _usage_errors() as error:
        return refuse(PROG, error)
    except _failures() as error:
        return refuse(PROG, error, FAILED)


def _usage_errors() -> tuple[type[Exception], ...]:
    """Return the errors which say that the configuration, or a file that it names, cannot be used."""
    from edge_agent.contract.broker import BrokerError
    from edge_agent.contract.bundle import BundleError
    from edge_agent.contract.settings import SettingsError
    from edge_agent.detection.runtime import ModelError

    return BrokerError, BundleError, ModelError, SettingsError


def _failures() -> tuple[type[Exception], ...]:
    """Return the errors which say that the work itself failed."""
    from edge_agent.capture.sources import CaptureError
    from edge_agent.contract.cli import OutputError
    from edge_agent.control import CommandRefused
    from edge_agent.delivery.evidence import EvidenceError
    from edge_agent.detection.runtime import RuntimeUnavailable
    from edge_agent.state import StateError
    from edge_agent.testalert import NotDelivered

    return CaptureError, CommandRefused, EvidenceError, NotDelivered, OutputError, RuntimeUnavailable, StateError


def _config(args: argparse.Namespace) -> "AgentConfig":
    """Return the configuration and the id of this gateway; SettingsError if there is none."""
    from edge_agent import identity

    return identity.resolve(_settings(args))


def _settings(args: argparse.Namespace) -> "AgentConfig":
    """Return the configuration with what the command line replaces; SettingsError if they cannot be used."""
    from edge_agent.config import AgentConfig
    from edge_agent.contract import settings

    try:
        config = settings.load(AgentConfig, args.config) if args.config else AgentConfig()
        if args.gateway:
            config = dataclasses.replace(config, gateway=args.gateway)
        if args.broker:
            config = dataclasses.replace(config, broker=config.broker.at(args.broker))
        if args.outbox:
            config = dataclasses.replace(config, outbox=dataclasses.replace(config.outbox, path=args.outbox.absolute()))
        if args.bundle:
            config = dataclasses.replace(config, bundle=args.bundle)
        if getattr(args, "interface", None):
            capture = dataclasses.replace(config.capture, interfaces=tuple(args.interface))
            config = dataclasses.replace(config, capture=capture)
    except ValueError as error:  # BrokerError and MessageError among them
        raise settings.SettingsError(str(error)) from error
    return config


def _located(args: argparse.Namespace) -> "AgentConfig":
    """Return the configuration for a command about an agent that may run: its files are those of that agent.

    The gateway may have no id: such a command is also there to find out why.
    """
    from edge_agent import identity
    from edge_agent.orders import locate

    config, _ = identity.resolve_or_reason(_settings(args))
    return locate(config)


def _bundle(config: "AgentConfig") -> "Bundle":
    """Return the configured bundle, else the built-in one; its models compute here what they did where it was made."""
    from edge_agent.contract import bundle as bundles
    from edge_agent.detection.runtime import selftest

    bundle = bundles.load(config.bundle or bundles.BUILTIN)
    selftest(bundle)
    return bundle


def _note_origin(bundle: "Bundle") -> None:
    if bundle.manifest.generated:
        note(f"{PROG}: this model was trained on generated traffic")


def _say_json(document: Mapping[str, Any]) -> None:
    for line in json_text(document, 1).split("\n"):
        say(line)


def _bundle_or_reason(config: "AgentConfig") -> "Bundle | str":
    """Return the bundle, or the reason why it cannot be used."""
    from edge_agent.contract.bundle import BundleError
    from edge_agent.detection.runtime import ModelError, RuntimeUnavailable

    try:
        return _bundle(config)
    except (BundleError, ModelError, RuntimeUnavailable) as error:
        return str(error)


def _run(args: argparse.Namespace) -> int:
    from edge_agent import service
    from edge_agent.agent import Agent, report
    from edge_agent.capture.sources import Interfaces, Recorder
    from edge_agent.contract.settings import SettingsError
    from edge_agent.publisher import Publisher

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    config = _config(args)
    names = config.capture.interfaces
    if not names:
        raise SettingsError("no interface: give --interface NAME or set `capture.interfaces` in the configuration")
    bundle = _bundle(config)
    publisher = None if args.no_broker else Publisher(config, controlled=True, stop=stop)
    state = publisher.state if publisher else None
    agent = Agent(config, bundle, seed=args.seed, state=state, evidence=config.evidence)
    lines = SideLines(_consequence(config.outbox.path, sent=publisher is not None))

    def give(*alerts: "Alert") -> None:
        if publisher:
            publisher.give(*alerts)
        for alert in alerts:
            lines.print(json_text(alert.document()))

    def lost() -> dict[str, int]:
        return {"alerts_unprinted": lines.lost, "log_lines_lost": args.log.lost}

    def read_again() -> "AgentConfig | str":
        if args.config is None:
            return "the agent was started without a configuration file"
        try:
            return _config(args)
        except SettingsError as error:
            return str(error)

    reload = service.Reload(config, read_again)
    signal.signal(signal.SIGHUP, lambda *_: reload.wanted.set())
    with (
        closing(lines),
        closing(Recorder(args.record, config.capture.record_mb << 20)) if args.record else nullcontext() as recorder,
        Interfaces(names, config.capture.live(), recorder) as interfaces,
    ):
        began = time.monotonic()
        now = interfaces.states()
        open_now = ", ".join(one.name for one in now if one.captured) or "no interface yet"
        awaited = ", ".join(one.name for one in now if not one.captured)
        waiting = f", waiting for {awaited}" if awaited else ""
        note(f"{PROG}: gateway {config.gateway} ({printable(config.gateway_origin)})")
        note(f"{PROG}: capturing on {open_now}{waiting}, model {bundle.manifest.version}")
        _note_origin(bundle)
        with publisher.running() if publisher else nullcontext():
            save_s = 60.0 * config.learning.save_minutes
            seen = service.run(agent, interfaces, give, stop, publisher, save_s=save_s, reload=reload, more=lost)
        counts = agent.counts() | interfaces.count() | seen | (publisher.counts() if publisher else {})
    for line in report(counts, time.monotonic() - began):
        note(line)
    return OK


def _consequence(outbox: Path | None, *, sent: bool) -> str:
    """Return what a stdout that cannot be written means for alerts."""
    if sent:
        stored = f"they are in the outbox {outbox} and " if outbox else "they are "
        return f"alerts are not printed; {stored}sent all the same"
    return "alerts are lost, because nothing else stores them; give a broker, or make room"


def _check(args: argparse.Namespace) -> int:
    from edge_agent import check

    logging.getLogger("edge_agent.capture").setLevel(logging.ERROR)  # it warns of what the findings report
    config = _located(args)
    width, found = terminal_width(), []
    for finding in check.findings(config, _bundle_or_reason(config), args.config):
        found.append(finding)
        for line in [] if args.json else finding.lines(width):
            say(line)
    if args.json:
        _say_json(check.document(found))
    else:
        say(check.summary(found))
    return FAILED if any(finding.wrong for finding in found) else OK


def _replay(args: argparse.Namespace) -> int:
    from edge_agent import identity
    from edge_agent.agent import Agent, replay, report
    from edge_agent.capture.sources import CaptureError
    from edge_agent.contract.show import Terminal, alert_line
    from edge_agent.progress import Progress
    from edge_agent.state import StateError

    config = identity.for_replay(_settings(args), args.gateway)
    bundle, files = _bundle(config), _captures(args.files)
    evidence = dataclasses.replace(config.evidence, path=args.evidence)
    agent = Agent(config, bundle, seed=0, evidence=evidence)
    _note_origin(bundle)
    lines = SideLines(_consequence(args.outbox, sent=bool(args.broker)), needs_reader=not args.broker)
    terminal = Terminal.of(utc=args.utc)

    def give(alert: "Alert") -> None:
        if publisher:
            publisher.give(alert)
        lines.print(json_text(alert.document()) if args.json else alert_line(alert, terminal))

    status, left, trouble, began = OK, 0, "", time.monotonic()
    with closing(lines), _delivery_of_replay(args, config) as publisher:
        with Progress("packets") as progress:
            try:
                replay(agent, files, give, progress.step)
            except (CaptureError, StateError) as error:  # what came before it is reported all the same
                status = refuse(PROG, error, FAILED)
        seconds = time.monotonic() - began
        if publisher:
            left, trouble = publisher.link.flush(args.wait), publisher.link.trouble
    counts = agent.counts() | (publisher.counts() if publisher else {}) | {"alerts_unprinted": lines.lost}
    if not counts["alerts_new"]:
        note("no alerts")
    for line in report(counts, seconds):
        note(line)
    if left:
        why = f" ({trouble})" if trouble else ""
        address = config.broker.address
        if args.outbox:
            return refuse(PROG, f"{left} alerts wait in {args.outbox} for {address}{why}", FAILED)
        text = f"{address} has not taken {left} alerts{why}, and they are not stored here: replay again to send them"
        return refuse(PROG, text, FAILED)
    return FAILED if lines.lost and not publisher else status


def _captures(files: Sequence[Path]) -> list[Path]:
    """Return the files to replay, "-" as stdin; SettingsError if one of them is no capture, before any is judged."""
    from edge_agent.capture.sources import CaptureError, open_file
    from edge_agent.contract.settings import SettingsError

    captures = [Path("/dev/stdin") if str(file) == "-" else file for file in files]
    for file in captures:
        if file.is_fifo() or file.is_char_device() or file.is_socket():
            continue  # can be read only once
        try:
            open_file(file).close()
        except CaptureError as error:
            raise SettingsError(str(error)) from error
    return captures


@contextmanager
def _delivery_of_replay(args: argparse.Namespace, config: "AgentConfig") -> "Iterator[Publisher | None]":
    """Yield what sends the alerts of a replay, None without a broker.

    An agent that runs is left alone: to the broker a replay is a client of its own, and its outbox is a file that is
    deleted in the end, unless --outbox names one.
    """
    from edge_agent.publisher import Publisher
    from edge_agent.state import StateError

    if not args.broker:
        yield None
        return
    with ExitStack() as stack:
        if not args.outbox:
            try:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="botwatch-replay-"))
            except OSError as error:
                raise StateError(f"no temporary file can be made ({error.strerror}); name one by --outbox") from error
            outbox = dataclasses.replace(config.outbox, path=Path(folder, "outbox.sqlite"))
            config = dataclasses.replace(config, outbox=outbox)
        publisher = Publisher(config, guest=f"replay-{secrets.token_hex(4)}")
        yield stack.enter_context(publisher.running())


def _evidence(args: argparse.Namespace) -> int:
    folder = _located(args).evidence.path
    if folder is None:
        return refuse(PROG, "no evidence is stored: `evidence.path` in the configuration is null")
    try:
        return _list_evidence(folder, args) if args.id is None else _fetch_evidence(folder, args)
    except BrokenPipeError:
        raise
    except OSError as error:
        return refuse(PROG, error, FAILED)


def _list_evidence(folder: Path, args: argparse.Namespace) -> int:
    from edge_agent.contract.localtime import local_time
    from edge_agent.contract.messages import format_time
    from edge_agent.delivery.evidence import began_ns, files

    stored = [(path.stem, began_ns(path), path.stat().st_size) for path in files(folder)]
    if args.json:
        captures = [{"alert": id, "began": format_time(began), "bytes": size} for id, began, size in stored]
        _say_json({"folder": str(folder), "captures": captures})
        return OK
    for id, began, size in stored:
        say(f"{id}  {local_time(began, args.utc)}  {size:,} bytes")
    if not stored:
        note(f"{PROG}: no captures are stored in {printable(folder)}")
    return OK


def _fetch_evidence(folder: Path, args: argparse.Namespace) -> int:
    import hashlib

    from edge_agent.delivery.evidence import fetch, stored_id

    if args.out is None:
        return refuse(PROG, f"evidence of {args.id}: name the file to write with --out FILE")
    if str(args.out) == "-" and args.json:
        return refuse(PROG, "--json and --out - would both write to stdout: give one of them")
    id = stored_id(folder, args.id)
    content = fetch(folder, id)
    if str(args.out) == "-":
        sys.stdout.buffer.write(content)
        return OK
    args.out.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    if args.json:
        _say_json({"alert": id, "file": str(args.out), "bytes": len(content), "sha256": sha256})
    else:
        say(f"{args.out}: {len(content):,} bytes, sha256 {sha256}")
    return OK


def _rows(args: argparse.Namespace) -> int:
    from edge_agent import identity
    from edge_agent.contract.bundle import replace_file
    from edge_agent.detection import device_records
    from edge_agent.state import State

    config = identity.resolve(_located(args))
    if not config.learning.export:
        return refuse(PROG, "rows must not leave this gateway: `learning.export` in the configuration is false")
    with closing(State(config.outbox.path, guest=True)) as state:
        content, rows, of = device_records.export(state, config.names, config.gateway)
    if not rows:
        return refuse(PROG, "no rows are stored yet: the first are stored once a device has been learnt", FAILED)
    try:
        replace_file(args.out, content)
    except OSError as error:
        return refuse(PROG, error, FAILED, file=args.out)
    say(f"{args.out}: {rows:,} rows of {of} devices, {len(content):,} bytes")
    return OK


def _support(args: argparse.Namespace) -> int:
    from edge_agent import support

    config = _located(args)
    bundle = _bundle_or_reason(config)
    try:
        names = support.write(config, bundle, args.out, args.config)
    except OSError as error:  # which names a file beside it
        return refuse(PROG, f"{args.out}: {error.strerror}", FAILED)
    text = f"{args.out}: {', '.join(names)}; it contains names, addresses and counters of this network, but no "
    for line in wrapped(text + "passwords or keys", terminal_width(), "  "):
        say(line)
    return OK


def _test_alert(args: argparse.Namespace) -> int:
    from edge_agent import testalert
    from edge_agent.contract import bundle as bundles
    from edge_agent.contract.alert import ModelInfo

    config = _located(args)
    manifest = (bundle := bundles.load(config.bundle or bundles.BUILTIN)).manifest
    model = ModelInfo(manifest.version, bundle.sha256, manifest.generated)
    text = "the steps are not printed; the test alert is sent all the same"
    outcome: dict[str, Any] = {"delivered": False, "steps": []}
    status, width = OK, terminal_width()
    with closing(SideLines(text)) as lines:
        try:
            for number, step in enumerate(testalert.steps(config, model, args.wait), 1):
                outcome |= step.facts
                outcome["steps"].append(step.text)
                for line in [] if args.json else wrapped(step.text, width, "   ", f"{number}. "):
                    lines.print(line)
        except testalert.NotDelivered as error:
            outcome["error"], status = str(error), refuse(PROG, error, FAILED)
        if args.json:
            lines.print(json_text(outcome, 1))
    return status


def _ordered(args: argparse.Namespace) -> "AgentConfig":
    """Return the configuration for an order; of one that cannot be used, the state file, if an agent runs with it.

    That agent has refused the file at a reload, or was started before it was changed, and can say so.
    """
    from edge_agent import orders
    from edge_agent.config import AgentConfig
    from edge_agent.contract import settings

    try:
        return _located(args)
    except settings.SettingsError as error:
        path = args.outbox or settings.peek(args.config, "outbox", "path")
        config = AgentConfig()
        if isinstance(path, str | Path):
            config = dataclasses.replace(config, outbox=dataclasses.replace(config.outbox, path=Path(path)))
        config = orders.locate(config)
        if not orders.agent_runs(config):
            raise
        note(f"{PROG}: {printable(error)}; the running agent keeps its former settings")
        return config


def _order(args: argparse.Namespace) -> int:
    from edge_agent import orders
    from edge_agent.contract import replies
    from edge_agent.contract.commands import VERBS
    from edge_agent.contract.messages import MessageError

    given = {key: value for key in VERBS[args.command].arguments if (value := getattr(args, key, None)) is not None}
    try:
        reply, running = orders.order(_ordered(args), args.command, given)
    except MessageError as error:
        return refuse(PROG, error)
    except orders.NoAgent as error:
        return refuse(PROG, error, NOT_RUNNING if args.command == "status" else FAILED)
    if reply.error:
        return refuse(PROG, reply.error, FAILED)
    if args.json:
        _say_json({"running": running, **(reply.result or {})})
    else:
        for line in replies.lines(reply, running, terminal_width(), args.utc):
            say(line)
    return NOT_RUNNING if args.command == "status" and not running else OK


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "check": _check,
    "replay": _replay,
    "evidence": _evidence,
    "rows": _rows,
    "support": _support,
    "test-alert": _test_alert,
}
"""The function of each command that is no order."""

_LOGGED = ("run", "replay")
"""Commands that log what they do, beside what they print."""


if __name__ == "__main__":
    sys.exit(main())
