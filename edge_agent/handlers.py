"""Commands that the parts of a running agent do: a test alert, evidence, learning a device anew."""

import time
from collections.abc import Callable
from typing import Any

from edge_agent.agent import Agent
from edge_agent.contract import messages
from edge_agent.contract.captures import parse_mac
from edge_agent.contract.commands import Command
from edge_agent.control import CommandRefused, Control, Origin
from edge_agent.delivery.evidence import EvidenceError, chunks
from edge_agent.detection.devices import Devices


def send_test_alert(agent: Agent, give: Callable[..., None], command: Command, origin: Origin) -> dict[str, Any]:
    """Done for the command `test-alert`."""
    alerts = agent.alerter.trial(time.time_ns(), f"{command.by or 'somebody'}, {origin} command")
    give(*alerts)
    return {"id": alerts[0]["alert"]["context"]["botwatch"]["id"], "alerts": len(alerts)}


def send_evidence(agent: Agent, control: Control, command: Command, origin: Origin) -> dict[str, Any]:
    """Done for the command `evidence`: the parts go after the reply, straight to the broker and not over the disk."""
    if origin == "local":
        raise CommandRefused("on the gateway `botwatch agent evidence` reads it")
    if agent.evidence is None:
        raise CommandRefused("no evidence is kept here (evidence.path)")
    try:
        told, parts = chunks(agent.evidence.folder, command.arguments["alert"])
    except EvidenceError as error:
        raise CommandRefused(str(error)) from error
    control.follow([(f"chunk/{c.id}", messages.encode(c.document(), messages.MAX_CHUNK)) for c in parts])
    return told


def relearn(devices: Devices, device: str) -> dict[str, Any]:
    """Done for the command `learn`."""
    try:
        known = devices.relearn(parse_mac(device))
    except ValueError:
        raise CommandRefused(f"{device}: a device is learnt under its MAC") from None
    if not known:
        raise CommandRefused(f"{device} has not been seen")
    return {"device": device, "state": "learning"}
