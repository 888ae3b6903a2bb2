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
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from edge_agent.config import AgentConfig
from edge_agent.contract.commands import Command, Reply
from edge_agent.contract.messages import MAX_STORED, MessageError, decode
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
                control.describe("devices", lambda: _devices(stored[1]))
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


def _devices(payload: bytes) -> list[Mapping[str, Any]]:
    """Return the devices of a stored document; none if it is damaged."""
    try:
        devices = decode(payload, MAX_STORED).get("devices")
    except MessageError:
        devices = None
    return [device for device in devices if isinstance(device, dict)] if isinstance(devices, list) else []


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
