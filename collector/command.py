"""`botwatch collector command`: orders one gateway or several, and prints what they reply.

For one gateway the reply is what `botwatch agent` prints there; for several each is one line, as the replies come.
"""

import argparse
import getpass
import hashlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path

from collector.config import CollectorConfig
from collector.gateways import find_gateway, find_site, gateway_states
from collector.order import OrderError, order, order_many
from collector.store import AlertStore, StoreError
from edge_agent.contract import replies
from edge_agent.contract.cli import FAILED, OK, Parser, note, put, refuse, say, terminal_width
from edge_agent.contract.commands import VERBS, Command, Reply, typed
from edge_agent.contract.messages import MessageError, check_id, format_time
from edge_agent.contract.show import Terminal, Tone, gateway_cell, gateway_column

HELP = "send a command to one gateway's agent, or to several, and print the replies"
EXAMPLE = "botwatch collector command gw-001 mute device=cam-entrance for=2h --config operator.yaml"

_TONES: dict[str, Tone] = {"ok": "", "refused": "bad", "failed": "bad", "skipped": "quiet"}
"""Words for what became of a command at a gateway."""

_SILENT = {"stopped": "its agent was stopped", "unknown": "no agent has connected for it"}
"""States of gateways that get no command unless they are named, and the reason."""

_SEVERAL = ("--all", "--site")
"""Options that stand for the names of gateways."""


def names_gateways(words: Sequence[str]) -> bool:
    """Return False for a command line whose gateways are not named but found by an option."""
    return not any(word.partition("=")[0] in _SEVERAL for word in words)


def add_arguments(parser: Parser, *, named: bool = True) -> None:
    """Add the arguments of the command; gateways are arguments of it only if they are ``named``."""
    parser.usage = (
        f"{parser.prog} GATEWAY[,GATEWAY...] VERB [KEY=VALUE ...]\n"
        f"       {parser.prog} (--all | --site SITE) VERB [KEY=VALUE ...]"
    )
    if named:
        parser.add_argument("gateway", metavar="GATEWAY", help="one gateway, or several with commas between them")
    parser.add_argument("verb", choices=tuple(VERBS), metavar="VERB", help="one of those below")
    parser.add_argument("pairs", nargs="*", metavar="KEY=VALUE", help="as the verb takes them")
    parser.add_argument("--all", action="store_true", help="to every gateway that the collector's database knows")
    parser.add_argument("--site", metavar="SITE", help="to every gateway of this site that the database knows")
    parser.add_argument("--broker", metavar="HOST:PORT", help="use this broker instead of the configured one")
    parser.add_argument(
        "--timeout", type=_seconds, default=10.0, metavar="S", help="longest wait for a reply (default %(default)s s)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file that `evidence` writes the pcap to (default ALERT-ID.pcap)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: the reply, or a line for each gateway")
    parser.add_argument("--utc", action="store_true", help="print times in UTC instead of the local zone")


def epilog() -> str:
    """Return what the verbs do, and an example."""
    return (
        f"example:\n  {EXAMPLE}\n\n"
        + "\n".join(_verb_help(name) for name in VERBS)
        + "\n\nfor= takes 90s, 15m or 24h; since= takes a time or an age such as 15m; classes=a,b"
    )


def _verb_help(name: str) -> str:
    """Return what a verb does, and the keys that it takes."""
    keys = [f"{argument.word or key}=…" for key, argument in VERBS[name].arguments.items()]
    return f"  {name}: {VERBS[name].about}\n      {' '.join(keys) or '(no keys)'}"


def run(prog: str, arguments: argparse.Namespace, config: CollectorConfig) -> int:
    """Send the command, print the replies, and return the exit status."""
    try:
        pairs = dict(_pair(arguments.verb, item) for item in arguments.pairs)
        id_ = f"{time.time_ns():x}.{secrets.token_hex(4)}"
        who = {"by": getpass.getuser()[:64], "ts": format_time(time.time_ns())}
        command = Command.read(arguments.verb, {"id": id_, **who, **pairs})
        gateways, silent = _gateways(arguments, config)
        if len(gateways) == 1 and not (arguments.all or arguments.site is not None):
            return _one(prog, arguments, config, gateways[0], command)
        if command.parts_leaf:
            return refuse(prog, f"{command.verb}: an alert is one gateway's; name that gateway only")
        return _several(prog, arguments, config, gateways, silent, command)
    except MessageError as error:
        return refuse(prog, error)
    except OrderError as error:
        return refuse(prog, error, FAILED)


def _unknown(gateway: str, config: CollectorConfig) -> str:
    """Return that nothing is stored of a gateway, and the one most like it; "" where there is no database to ask."""
    try:
        with closing(AlertStore(config.db, create=False)) as store:
            find_gateway(store, gateway)
    except MessageError as error:
        return f"; {error}"
    except StoreError:
        pass
    return ""


def _gateways(arguments: argparse.Namespace, config: CollectorConfig) -> tuple[list[str], dict[str, str]]:
    """Return the gateways that are meant, each once; and those found in the database that cannot reply, and why."""
    if not (arguments.all or arguments.site is not None):
        return list(dict.fromkeys(check_id(gateway) for gateway in arguments.gateway.split(","))), {}
    if arguments.all and arguments.site is not None:
        raise MessageError("--all and --site exclude each other")
    try:
        with closing(AlertStore(config.db, create=False)) as store:
            states = gateway_states(store)
    except StoreError as error:
        raise OrderError(f"{error}; --all and --site find gateways in the collector's database (--db)") from error
    gateways = [state.gateway for state in states] if arguments.all else find_site(arguments.site, states)
    if not gateways:
        raise OrderError("no gateways are known: none has sent anything that is stored")
    silent = {state.gateway: _SILENT[state.state] for state in states if state.state in _SILENT}
    return [name for name in gateways if name not in silent], {
        name: silent[name] for name in gateways if name in silent
    }


def _one(prog: str, arguments: argparse.Namespace, config: CollectorConfig, gateway: str, command: Command) -> int:
    """Order one gateway; content that follows its reply goes into a file."""
    try:
        reply, content = order(config.broker, gateway, command, arguments.timeout)
    except OrderError as error:
        raise OrderError(f"{error}{_unknown(gateway, config)}") from error
    if reply.error:
        return refuse(prog, f"{gateway}: {reply.error}", FAILED)
    if content:
        file = arguments.out or Path(f"{command.arguments['alert']}.pcap")
        try:
            file.write_bytes(content)
        except OSError as error:
            return refuse(prog, error, FAILED, file=file)
        sha256 = hashlib.sha256(content).hexdigest()
        if arguments.json:
            result = {
                "alert": (reply.result or {}).get("id"),
                "file": str(file),
                "bytes": len(content),
                "sha256": sha256,
            }
            put(json.dumps(result, indent=1))
        else:
            say(f"{file}: {len(content):,} bytes, sha256 {sha256}")
        return OK
    if arguments.json:
        lines = json.dumps(reply.result, indent=1).split("\n")  # ASCII: a gateway's words must not move the cursor
    else:
        lines = replies.lines(reply, width=terminal_width(), utc=arguments.utc)
    for line in lines:
        say(line)
    return OK


class _Skipped(OrderError):
    """A command that was not sent because there is nobody to reply."""


def _several(
    prog: str,
    arguments: argparse.Namespace,
    config: CollectorConfig,
    gateways: Sequence[str],
    silent: Mapping[str, str],
    command: Command,
) -> int:
    """Order several gateways; print a line for each, as they reply, and a last one with how many did what."""
    terminal = Terminal.of(utc=arguments.utc)
    column = gateway_column([*gateways, *silent], terminal)
    if not arguments.json:
        words = " ".join([command.verb, *arguments.pairs])
        note(f"{prog}: {words!r} goes to {len(gateways)} gateway{'' if len(gateways) == 1 else 's'}")
    outcomes: Counter[str] = Counter()
    skipped = ((gateway, _Skipped(reason)) for gateway, reason in silent.items())
    ordered = order_many(config.broker, gateways, command, arguments.timeout) if gateways else ()
    for gateway, outcome in chain(skipped, ordered):
        if isinstance(outcome, _Skipped):
            word, text = "skipped", str(outcome)
        elif isinstance(outcome, OrderError):
            word, text = "failed", str(outcome)
        elif outcome.error:
            word, text = "refused", outcome.error
        else:
            word, text = "ok", _brief(outcome, arguments.utc)
        outcomes[word] += 1
        if arguments.json:
            put(json.dumps(_outcome(gateway, outcome)), now=True)
            continue
        head = f"{gateway_cell(gateway, terminal, column)}{terminal.gap}"
        room = None if terminal.width is None else terminal.width - len(head) - len(word)
        rest = terminal.cut(f": {terminal.text(text)}", room)
        put(head + terminal.paint(word, _TONES[word]) + rest, now=True)
    if not arguments.json:
        counted = [f"{outcomes[word]} {word}" for word in _TONES if outcomes[word] or word != "skipped"]
        put(f"{', '.join(counted)} of {len(gateways) + len(silent)}")
    return OK if gateways and outcomes["ok"] == len(gateways) else FAILED


def _outcome(gateway: str, outcome: Reply | OrderError) -> dict[str, object]:
    if isinstance(outcome, OrderError):
        skipped = {"skipped": True} if isinstance(outcome, _Skipped) else {}
        return {"gateway": gateway, "ok": False, **skipped, "error": str(outcome)}
    if outcome.error:
        return {"gateway": gateway, "ok": False, "refused": True, "error": outcome.error}
    return {"gateway": gateway, "ok": True, "result": dict(outcome.result or {})}


def _brief(reply: Reply, utc: bool) -> str:
    """Return a reply in one line: all of it, or of a status what one looks at first."""
    if reply.verb != "status":
        return "; ".join(replies.lines(reply, utc=utc))
    health = (reply.result or {}).get("health")
    if not isinstance(health, dict):
        return "running"
    model, episodes, waiting = (health.get(key, "?") for key in ("model", "episodes_open", "outbox_depth"))
    return f"running, model {model}, open episodes: {episodes}, messages in the outbox: {waiting}"


def _pair(verb: str, item: str) -> tuple[str, object]:
    """Return the key and JSON value of KEY=VALUE, as the command's document has them."""
    key, equals, value = item.partition("=")
    if not equals:
        raise MessageError(f"{item[:40]!r} is not KEY=VALUE")
    return typed(verb, key, value, time.time_ns())


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of seconds, above 0 and up to 86400")
    return seconds
