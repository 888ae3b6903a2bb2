"""Orders that are given on this machine: a local command leaves one in the state file, waits for the reply, prints it.

A running agent takes orders from the state file (`control`), so whoever may write that file may give them. Where no
agent runs, the order is carried out here on the same file and holds from the agent's next start. Loads neither the
detector nor the native kernel.
"""

import dataclasses
import getpass
import json
import os
import secrets
import textwrap
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from edge_agent.config import AgentConfig
from edge_agent.contract.cli import printable
from edge_agent.contract.commands import Command, Reply
from edge_agent.control import CommandRefused, Control
from edge_agent.state import State, StateError

MAX_WAITING = 32
"""Orders that may wait in the state file; an agent that is well takes one within `control.LOOK_S`."""

SERVICE_FOLDER = Path("/var/lib/botwatch")
"""The working directory of the agent as a service, to which its relative paths refer."""

_POLL_S = 0.1


class NoAgent(CommandRefused):
    """An order that is not carried out because no agent has ever run with this state file."""


def order(config: AgentConfig, verb: str, arguments: Mapping[str, Any], wait_s: float = 10.0) -> tuple[Reply, bool]:
    """Return the reply to an order, and True if a running agent gave it, False if it was carried out here.

    Raises MessageError for a command that the grammar does not allow, NoAgent when no agent has ever run,
    CommandRefused when the one that runs does not reply within ``wait_s`` seconds, and StateError.
    """
    id_ = f"{time.time_ns():x}.{secrets.token_hex(4)}"
    command = Command.read(verb, Command(verb, id_, arguments, user()[:64]).document())
    path = config.outbox.path
    if not _exists(path):
        raise NoAgent(f"{path}: there is no such file (no agent has run with it; --outbox names another file)")
    try:
        state = State(path, guest=True)
    except StateError as error:
        raise CommandRefused(f"{error} (it may belong to another user; --outbox names another file)") from error
    with closing(state):
        if state.claim():
            control = Control(config, state)
            if stored := state.document("devices"):
                control.describe("devices", lambda: json.loads(stored[1])["devices"])
            return control.execute(command, "local"), False
        document = json.dumps(command.document()).encode()
        if not state.command_put("local", id_, verb, document, MAX_WAITING):
            raise CommandRefused(f"{MAX_WAITING} commands are waiting already: the running agent does not take them")
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            time.sleep(_POLL_S)
            answer = state.command_reply("local", id_)
            if answer and answer[1] is not None:
                return Reply.read(json.loads(answer[1])), True
        raise CommandRefused(
            f"the running agent did not reply within {wait_s:.0f} s; it carries the command out when it can"
        )


def user() -> str:
    """Return the name of the user who gives orders on this machine, also under sudo."""
    return os.environ.get("SUDO_USER") or getpass.getuser()


def agent_runs(config: AgentConfig) -> bool:
    """True if an agent runs with this configuration's state file; StateError when the file cannot be used."""
    return _runs(config.outbox.path)


def locate(config: AgentConfig, service: Path = SERVICE_FOLDER) -> AgentConfig:
    """Return the configuration with absolute paths of the state file and the evidence of the agent that it is about.

    A relative path refers to the folder in which the agent runs: the working directory of the ``service`` where the
    state file is there, else the current folder. Where both have one, the file in the current folder is meant only if
    an agent runs with it and none with the other. Raises CommandRefused when agents run with both.
    """
    path, evidence = config.outbox.path, config.evidence.path
    if not path.is_absolute():
        path = _folder_of(path, service) / path
    if evidence is not None and not evidence.is_absolute():
        evidence = (service if path.is_relative_to(service) else Path.cwd()) / evidence
    return dataclasses.replace(
        config,
        outbox=dataclasses.replace(config.outbox, path=path),
        evidence=dataclasses.replace(config.evidence, path=evidence),
    )


def _folder_of(path: Path, service: Path) -> Path:
    """Return the folder to which the relative ``path`` of a state file refers."""
    here = Path.cwd()
    if not _exists(service / path):
        return here
    if not _seen_running(here / path):
        return service
    if _seen_running(service / path):
        raise CommandRefused(
            f"one agent runs with {here / path} and another with {service / path}: name the state file with --outbox"
        )
    return here


def _exists(path: Path) -> bool:
    """True if there is a file, also one that this user may not look at: to use it then fails with the reason."""
    try:
        return path.is_file()
    except OSError:
        return True


def _runs(path: Path) -> bool:
    if not _exists(path):
        return False
    with closing(State(path, guest=True)) as state:
        return not state.claim()


def _seen_running(path: Path) -> bool:
    """True if an agent runs with a state file that this user can use."""
    try:
        return _runs(path)
    except StateError:
        return False


def lines(reply: Reply, running: bool, width: int | None = None) -> list[str]:
    """Return a reply as lines for a terminal; ``running`` is True if an agent gave it.

    With the ``width`` of the terminal no line is broken by it in the middle of a word or of a table.
    """
    result = dict(reply.result or {})
    if reply.verb == "status":
        return _status_lines(result, running, width)
    words = ", ".join(f"{key} {_plain(value)}" for key, value in result.items() if value not in ([], ""))
    return [words or "done"] + ([] if running else ["no agent is running: this takes effect at its next start"])


def _status_lines(result: Mapping[str, Any], running: bool, width: int | None) -> list[str]:
    text = [f"gateway {result['gateway']}: " + ("running" if running else "no agent is running with this state file")]
    if health := result.get("health"):
        keys = ("model", "pps", "drop_pct", "cpu", "rss_mb", "episodes_open", "outbox_depth")
        text.append("  " + ", ".join(f"{key} {_plain(health[key])}" for key in keys))
        for one in health.get("interfaces", []):
            how = "captured" if one["captured"] else "not captured"
            why = f": {one['reason']}" if one.get("reason") else ""
            text.append(f"  interface {_plain(one['name'])}: {how} since {_plain(one['since'])}{_plain(why)}")
        if refused := health.get("config_refused"):
            text.append(f"  the changed configuration was refused, the previous one stays in use: {_plain(refused)}")
        text.append("  " + ", ".join(f"{key} {value:,}" for key, value in health["counters"].items()))
    if line := result.get("broker"):
        how = f"connected, MQTT {line['protocol']}" if line["connected"] else "not connected"
        text.append(f"  broker {line['address']}: {how}{': ' + _plain(line['trouble']) if line['trouble'] else ''}")
    text.append("  commands accepted from the broker: " + (", ".join(result["commands"]) or "none"))
    text = [line for long in text for line in _wrapped(long, width)]
    for title, key in (("devices", "devices"), ("suppressed", "allowed")):
        if key in result:
            text += ["", title, *_table(result[key], width)]
    return text


def _table(rows: list[dict[str, Any]], width: int | None) -> list[str]:
    """Return rows as lines under the names of their keys, or as a paragraph each where these lines are too long."""
    if not rows:
        return ["  none"]
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_plain(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    if width and sum(widths) + 2 * len(widths) > width:
        named = (", ".join(f"{name} {_plain(value)}" for name, value in row.items() if value != "") for row in rows)
        return [line for row in named for line in _wrapped(f"  {row}", width)]
    return [
        "  " + "  ".join(cell.ljust(most) for cell, most in zip(row, widths, strict=True)).rstrip() for row in cells
    ]


def _wrapped(line: str, width: int | None) -> list[str]:
    """Return a line in lines of at most ``width`` characters, as far as its words allow."""
    if not width:
        return [line]
    return textwrap.wrap(line, width, subsequent_indent="      ", break_long_words=False, break_on_hyphens=False)


def _plain(value: object) -> str:
    """Return a value as a terminal may show it, a list as its elements."""
    return printable(", ".join(map(str, value)) if isinstance(value, list) else value)
