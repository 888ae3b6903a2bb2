"""The results of trying a bundle on captures: false alerts by day, attacks by device, and what they prove.

`evaluate` makes an `Evaluation` and `compare` lays several side by side. `evaluation_findings` is how one reads,
`record` how it is written for programs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from edge_agent.contract.budget import at_most, per_home_month
from edge_agent.contract.decision import Rules

BASE_RATE = 1e-4
"""Attacks per device-day at which precision is stated: one infected device in ten thousand, attacking daily."""

FLOOR_S = 60.0
"""Seconds within which an attack at a low rate must be alerted."""

FLOOR_FRAMES = 3000
"""Packets of an attack at a given rate, at most."""

HOME_DEVICES = Rules.home_devices
"""Devices of the home in which a person counts false alerts."""

Agents = Literal["cold", "learning", "site"]
"""The agent that alerted: one that starts cold and has the bundle's limits; one that starts cold and learns limits on
site; one that has learnt from the device's earlier days."""


@dataclass(frozen=True, kw_only=True)
class FalseAlert:
    """An episode on a benign capture, as it began, and its ``class_name`` as it ended."""

    agent: Agents
    time: str  # UTC, ISO 8601
    mac: str  # of the subject; "" for a victim outside
    role: str
    class_name: str
    explanation: str


@dataclass(frozen=True, kw_only=True)
class Day:
    """A benign capture, of which every alert is a false one.

    ``days`` is its length in days, without the gaps of a spliced file. ``packets`` are the rows that were scored,
    ``shed`` those that the budget of rows left out, and ``flagged`` those above a limit. Figures by an agent that
    learns limits on site are None where no such agent was tried, where the capture ends before the device has learnt,
    or, of the earlier days, where there are none.
    """

    capture: str
    device: str
    generated: bool
    days: float
    packets: int
    flagged: int
    alerts: int  # episodes
    early: int  # episodes that began within ten minutes of the capture's first packet
    shed: int = 0
    alerts_learning: int | None = None  # episodes of an agent that learns, from its first packet on
    alerts_learnt: int | None = None  # episodes since the device has learnt
    flagged_learnt: float | None = None  # share of rows flagged since then
    alerts_site: int | None = None  # episodes of an agent that has learnt from the device's earlier days
    flagged_site: float | None = None  # share of rows that it flagged
    kind: str = ""  # of the device, as its manifest says
    found: tuple[FalseAlert, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AttackTrial:
    """An attack capture, tried alone (``device`` is "") or in a device's day.

    ``packets`` and ``ms`` count from the attack's first packet to the first alert about its subject; None when no such
    alert was sent. ``role`` and ``mac`` are that alert's, ``class_name`` is that of the episode's last message.
    ``start_s`` is the start that the episode states minus the true one, ``end_s`` the same of its last vote.
    ``false_alerts`` are episodes about another subject, or from before the attack; ``others`` are the subjects that
    were blamed since the attack began and would not have been without it.
    """

    capture: str
    label: str
    generated: bool
    expected: bool  # false: the attack is tried without a goal
    device: str
    length_s: float
    packets: int | None = None
    ms: float | None = None
    class_name: str = ""
    start_s: float | None = None
    end_s: float | None = None
    false_alerts: int = 0
    shed: int = 0
    kind: str = ""  # of the device
    state: str = "cold"  # what the agent knew of the device: cold, known (with the bundle's limits), learning, learnt
    role: str = ""
    mac: str = ""
    others: tuple[str, ...] = ()

    @property
    def alerted(self) -> bool:
        """True if an alert was about the attacker, or the victim where the capture shows the victim's side."""
        return self.packets is not None

    @property
    def seconds(self) -> float | None:
        """Seconds from the attack's first packet to the alert; None without one."""
        return None if self.ms is None else self.ms / 1000

    @property
    def named_wrongly(self) -> bool:
        """True if an alert blamed another than the attacker (or the victim)."""
        return bool(self.others)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that was tried with one bundle.

    ``bundle`` is the SHA-256 of its manifest; ``budget`` the rows a second that the agent may score. ``floor`` is, by
    attack and packets a second, true if the attack was alerted within a minute. ``alone`` are attacks met by an agent
    that starts cold, ``learning`` by one that has just begun to learn; ``injected`` are in a device's day, with the
    bundle's limits, ``learnt`` the same with limits learnt from the device's days before that moment. ``unlearnt``
    are devices whose days did not suffice for that.
    """

    bundle: str
    days: tuple[Day, ...]
    alone: tuple[AttackTrial, ...]
    injected: tuple[AttackTrial, ...]
    skipped: tuple[str, ...] = ()
    floor: dict[str, dict[float, bool]] = field(default_factory=dict)
    device_days: float = 0.0
    learning: tuple[AttackTrial, ...] = ()
    learnt: tuple[AttackTrial, ...] = ()
    unlearnt: tuple[str, ...] = ()
    budget: int = 0

    @property
    def false_alerts(self) -> int:
        """The number of episodes on benign captures."""
        return sum(day.alerts for day in self.days)

    @property
    def trials(self) -> tuple[AttackTrial, ...]:
        """All attacks that were tried, in each state of the agent."""
        return (*self.alone, *self.learning, *self.injected, *self.learnt)

    @property
    def missed(self) -> int:
        """The number of attacks with a goal, alone and in a device's day, that were not alerted."""
        return sum(trial.expected and not trial.alerted for trial in (*self.injected, *self.alone, *self.learnt))

    @property
    def generated(self) -> bool:
        """True if any of the traffic was generated."""
        return any(day.generated for day in self.days) or any(trial.generated for trial in self.trials)


def bound(count: int, exposure: float, confidence: float = 0.95) -> float:
    """Return the upper bound of a Poisson rate when ``count`` events were seen in ``exposure`` (exact, Garwood 1936).

    >>> round(bound(0, 1.0), 2)  # the rule of three
    3.0
    """
    return at_most(count, confidence) / exposure if exposure > 0 else float("inf")


def stated(count: int, device_days: float) -> str:
    """Return false alerts with what they prove: of a device-day, a device-week, and a home-month.

    >>> stated(0, 14.0)
    '0 in 14.00 device-days (2.0 device-weeks): at most 0.21 a device-day, 1.5 a device-week, 128.4 a home-month (95 %)'
    """
    rate = bound(count, device_days)
    return (
        f"{count} in {device_days:.2f} device-days ({device_days / 7:.1f} device-weeks): at most {rate:.2f} a "
        f"device-day, {7 * rate:.1f} a device-week, {per_home_month(rate, 1.0, HOME_DEVICES):.1f} a home-month (95 %)"
    )


def on_site(days: Iterable[Day]) -> list[Day]:
    """Return those days that an agent judged which had learnt from the device's earlier days."""
    return [day for day in days if day.alerts_site is not None]
