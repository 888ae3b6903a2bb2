"""Commands that the parts of a running agent carry out: test alerts, evidence, learning a device anew.

`control` decides whether a command may be given and sends the reply; each function here returns the reply's result.
"""

import time
from collections.abc import Callable
from typing import Any

from edge_agent.agent import Agent
from edge_agent.contract import messages
from edge_agent.contract.alert import Activity
from edge_agent.contract.captures import parse_mac
from edge_agent.contract.commands import Command
from edge_agent.control import CommandRefused, Control, Origin
from edge_agent.delivery.evidence import EvidenceError, chunks
from edge_agent.detection.bursts import KEEP_DAYS, MAX_BURSTS
from edge_agent.detection.devices import Devices


def send_test_alert(agent: Agent, give: Callable[..., None], command: Command, origin: Origin) -> dict[str, Any]:
    """Send the alerts of a test episode (`test-alert`)."""
    alerts = agent.alerter.test_alerts(time.time_ns(), f"{command.by or 'somebody'}, {origin} command")
    give(*alerts)
    return {"id": alerts[0].id, "alerts": len(alerts)}


def send_evidence(agent: Agent, control: Control, command: Command, origin: Origin) -> dict[str, Any]:
    """Send the packets around an alert (`evidence`) in parts behind the reply, which bypass the outbox."""
    if origin == "local":
        raise CommandRefused("on the gateway `botwatch agent evidence` writes it to a file")
    if agent.evidence is None:
        raise CommandRefused("this agent stores no evidence (evidence.path)")
    try:
        result, parts = chunks(agent.evidence.folder, command.arguments["alert"])
    except EvidenceError as error:
        raise CommandRefused(str(error)) from error
    control.follow([(command.parts_leaf, messages.encode(part.document(), messages.MAX_CHUNK)) for part in parts])
    return result


def relearn(devices: Devices, device: str) -> dict[str, Any]:
    """Learn a device's own limits anew (`learn`); ``device`` is its MAC."""
    try:
        known = devices.relearn(parse_mac(device))
    except ValueError:
        raise CommandRefused(f"{device}: only a device that is named by its MAC can be learnt") from None
    if not known:
        raise CommandRefused(f"{device} has not been seen")
    return {"device": device, "state": "learning"}


def teach(devices: Devices, device: str, activities: tuple[Activity, ...], raised: bool) -> None:
    """Raise a device's limits to its bursts of these sorts (`allow --learn`), or forget that they were ``raised``."""
    try:
        mac = parse_mac(device)
    except ValueError:
        raise CommandRefused(f"{device}: only a device that is named by its MAC can be learnt") from None
    if not raised:
        devices.unvouch(mac, activities)
        return
    done = devices.vouch(mac, activities)
    if done is None:
        raise CommandRefused(f"{device} has not been seen")
    if not done:
        raise CommandRefused(
            f"{device}: no burst of this sort is remembered, so there is nothing to learn (the last {MAX_BURSTS} of "
            f"{KEEP_DAYS} days are; check-ins are not learnt); without `learn` its alerts are suppressed only"
        )
