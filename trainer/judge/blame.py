"""The rule by which an alert counts as a detection of an attack: it must be about the right subject.

`botwatch trainer evaluate` and the demo compare alerts with captures by this one rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.contract.alert import Alert
from edge_agent.contract.captures import mac_text
from trainer.judge.inject import AttackCapture, InsideHost

Episode = Sequence[Alert]
"""The messages of one episode in their order."""


@dataclass(frozen=True, kw_only=True)
class ExpectedSubject:
    """The subject that an alert must be about to be a detection of an attack.

    ``mac`` is the attacker's; "" when it is not known, and then an alert about any device counts. ``victim`` is the
    IPv4 address of the victim where the capture shows the attack from the victim's side. ``server`` is the address
    that check-ins go to where the manifest names it: an alert about another new host of the device does not count.
    """

    mac: str = ""
    victim: str = ""
    server: str = ""


def expected_subject(source: AttackCapture, host: InsideHost) -> ExpectedSubject:
    """Return the subject to expect when ``host`` carries out the attack of a capture, or suffers it."""
    if source.victim:
        return ExpectedSubject(victim=".".join(map(str, host.ip)))
    return ExpectedSubject(mac=mac_text(int.from_bytes(host.mac, "big")), server=source.server)


def blames(alert: Alert, expected: ExpectedSubject) -> bool:
    """Return whether an alert is about the expected subject."""
    if expected.victim:
        return alert.role == "victim" and alert.device.ip == expected.victim
    if expected.server and alert.dest_ip != expected.server:
        return False
    return not expected.mac or alert.device.mac == expected.mac


def detections(episodes: Sequence[Episode], expected: ExpectedSubject, start_ns: int) -> list[Episode]:
    """Return the episodes that detect an attack which began at ``start_ns``; every other one is a false alert."""
    return [
        episode
        for episode in episodes
        if blames(episode[0], expected) and episode[0].t_ns >= start_ns and episode[-1].last_ns >= start_ns
    ]
