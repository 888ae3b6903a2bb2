"""The commands that a running agent takes: who may give them, what they do, and what is replied.

A command is a `contract.commands.Command`, from the broker (through `delivery.link`) or from this machine (left in the
state file by `orders`). Both are checked and carried out here, one after the other, in the thread of the packet loop.
Commands from the broker are bounded: an allow or a mute names one device, never the gateway itself, and ends within
hours. Other modules register what carries out their verbs (`register`) and what they contribute to `status`
(`describe`).
"""

import dataclasses
import ipaddress
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from edge_agent.config import AgentConfig
from edge_agent.contract import alertid
from edge_agent.contract.alert import Activity, Alert
from edge_agent.contract.captures import mac_text, parse_mac
from edge_agent.contract.commands import ALL_DEVICES, ANY_PORT, MAX_COMMAND, VERBS, Command, Reply
from edge_agent.contract.messages import (
    MAX_PAYLOAD,
    MessageError,
    decode,
    format_time,
    parse_topic,
    topic,
)
from edge_agent.delivery.outbox import KEEP_S, Outbox
from edge_agent.delivery.outbox_table import OutboxTable
from edge_agent.delivery.reported import Reported, ReportedEpisodes
from edge_agent.delivery.suppressions import Suppression, SuppressionError, Suppressions, of_classes
from edge_agent.state import State, StateError
from edge_agent.system import own_addresses

if TYPE_CHECKING:  # a local command does without paho
    from edge_agent.delivery.link import Incoming, Link

Origin = Literal["broker", "local"]
Handler = Callable[[Command, Origin], Mapping[str, Any]]
Teach = Callable[[str, tuple[Activity, ...], bool], None]
"""Raises the limits of a device to its bursts of some sorts (True), or forgets that (False)."""

ALLOW_S = 30 * 86_400.0
"""Seconds that a local allow lasts unless it says otherwise; one from the broker lasts as long as it may."""

MUTE_S = 3_600.0
"""Seconds that a mute lasts unless it says otherwise."""

STALE_S = 3_600.0
"""Age in seconds from which a command from the broker is refused, by the time of sending that is in it."""

LOOK_S = 1.0
"""Seconds between two looks into the state file for local commands."""

RATE = 30
"""Commands from the broker that are taken in a minute; each may cost a write to the card."""

KEEP_REPLIES = 256
"""Replies that are stored, so that a command which is delivered again gets the same reply."""

_PAST = {"allow": "it was allowed", "mute": "it was muted"}

logger = logging.getLogger(__name__)


class CommandRefused(Exception):
    """A command that is not carried out; the message tells its sender why."""


class Control:
    """Commands for the agent whose state file is ``state``; ``outbox`` and ``link`` are given where it runs.

    StateError when the suppressions cannot be read.
    """

    def __init__(
        self, config: AgentConfig, state: State, outbox: Outbox | None = None, link: "Link | None" = None
    ) -> None:
        self._config, self._state, self._outbox, self._link = config, state, outbox, link
        self._reported = ReportedEpisodes(state)
        self.suppressions = Suppressions(state, config.control.max_entries, time.time(), time.monotonic())
        self.counts = dict.fromkeys(
            ("commands_done", "commands_refused", "commands_repeated", "commands_retained", "commands_dropped"), 0
        )
        self._teach: Teach | None = None
        self._handlers: dict[str, Handler] = {
            "status": self._status,
            "allow": self._allow,
            "unallow": self._unallow,
            "mute": self._mute,
            "unmute": self._unmute,
        }
        if outbox is not None:
            self._handlers["replay"] = self._replay
        self._following: list[tuple[str, bytes]] = []  # topic and payload of what goes after the reply at hand
        self._sections: dict[str, Callable[[], Any]] = {}
        self._changed = False
        self._look_at = self._minute = 0.0
        self._taken, self._trouble = 0, ""

    def change(self, config: AgentConfig) -> None:
        """Take up another configuration, whose `config.LIVE` keys may differ."""
        self._config = config
        if self._link:
            self._link.subscribe(commands_filter(config), bool(config.commands))

    def register(self, verb: str, handler: Handler) -> None:
        """Let ``handler`` carry out ``verb``: it returns the reply's result or raises CommandRefused."""
        if verb not in VERBS:
            raise ValueError(f"{verb!r} is not a command")
        self._handlers[verb] = handler

    def teach_with(self, teach: "Teach") -> None:
        """Let ``teach`` raise a device's limits where an allow says so, and lower them again."""
        self._teach = teach

    def follow(self, parts: Sequence[tuple[str, bytes]]) -> None:
        """For handlers: queue ``(leaf, payload)`` messages behind the reply. CommandRefused if they do not all fit."""
        if self._link is None or self._link.room() <= len(parts):
            raise CommandRefused("too many messages are waiting to be sent: try again later")
        self._following = [(topic(self._config.gateway, leaf, self._config.broker.base), p) for leaf, p in parts]

    def describe(self, section: str, content: Callable[[], Any]) -> None:
        """Let the reply to `status` contain ``section``, which is what ``content()`` returns, plain JSON."""
        self._sections[section] = content

    def device(self, text: str) -> str:
        """Return the MAC (as in alerts) or IP address that ``text`` means: either of them, or a configured name."""
        named = sorted(mac for mac, name in self._config.names.items() if name == text)
        if len(named) > 1:
            raise CommandRefused(f"{text!r} is the name of {' and '.join(named)}: give the MAC")
        if named:
            return named[0]
        try:
            return mac_text(parse_mac(text))
        except ValueError:
            pass
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            raise CommandRefused(
                f"{text!r} is neither a MAC, nor an IP address, nor a name in the configuration"
            ) from None

    def poll(self, now: float) -> bool:
        """Carry out the commands that have come; True if the suppressions have changed. ``now`` is the steady clock.

        The packet loop calls it each time round: it costs little when there is nothing to do.
        """
        while self._link and (message := self._link.received()) is not None:
            self._take(message, now)
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self._look(now)
        changed, self._changed = self._changed, False
        return changed

    def remember(self, alert: Alert) -> None:
        """Store the device and the traffic of an alert, so that its episode can be allowed by its id."""
        try:
            self._reported.add(alert)
        except StateError as error:
            self._complain(error)

    def execute(self, command: Command, origin: Origin) -> Reply:
        """Check and carry out one command."""
        try:
            handler = self._handlers.get(command.verb)
            if handler is None:
                why = "this agent cannot do that" if self._outbox else "needs a running agent"
                raise CommandRefused(f"{command.verb}: {why}")
            result, error = handler(command, origin), ""
        except (CommandRefused, MessageError, SuppressionError, StateError) as failure:
            result, error = None, str(failure)
        self.counts["commands_refused" if error else "commands_done"] += 1
        if command.verb != "status":
            who = f"{origin}{f' ({command.by})' if command.by else ''}"
            outcome = f"refused: {error}" if error else f"done: {json.dumps(result)}"
            logger.info("command %s from %s %s", command.verb, who, outcome)
        return Reply(command.id, command.verb, time.time_ns(), result, error)

    def close(self) -> None:
        """Write what is only in memory to the state file."""
        try:
            self.suppressions.flush()
        except StateError as error:
            self._complain(error)

    def _complain(self, error: StateError) -> None:
        if str(error) != self._trouble:
            logger.error("commands: the state file cannot be used: %s", error)
        self._trouble = str(error)

    # --- where commands come from ---

    def _take(self, message: "Incoming", now: float) -> None:
        """Handle one message from the broker."""
        if now - self._minute >= 60.0:
            self._minute, self._taken = now, 0
        self._taken += 1
        if message.retained:
            self.counts["commands_retained"] += 1
        elif not self._config.commands or self._taken > RATE:
            self.counts["commands_dropped"] += 1
        else:
            self._send(self._reply_to(message), message)
            assert self._link is not None
            for where, payload in self._following:
                self._link.reply(where, payload)
            self._following = []

    def _reply_to(self, message: "Incoming") -> bytes:
        """Return the reply to a command from the broker, after carrying it out if it is permitted and not a repeat."""
        verb, id_ = "", ""
        try:
            _, leaf = parse_topic(message.topic, self._config.broker.base)
            verb = leaf.partition("/")[2]
            if len(message.payload) > MAX_COMMAND:
                raise MessageError(f"the command is too large: more than {MAX_COMMAND} bytes")
            document = decode(message.payload)
            id_ = document["id"][:64] if isinstance(document.get("id"), str) else ""
            command = Command.read(verb, document)
            if verb not in self._config.commands:
                raise CommandRefused(
                    f"{verb}: this agent does not take it from the broker; it takes {', '.join(self._config.commands)}"
                )
            before = self._state.command_reply("broker", id_)
            if before and before[0] != verb:
                raise CommandRefused(f"id {id_} was used by another command ({before[0]})")
            if before and before[1] is not None:
                self.counts["commands_repeated"] += 1
                return before[1]
            age_s = (time.time_ns() - (command.t_ns or time.time_ns())) / 1e9
            if age_s > STALE_S:
                raise CommandRefused(
                    f"the command was sent {age_s:.0f} s ago by this gateway's clock, which is too late"
                )
            payload = _encode(self.execute(command, "broker"))
            self._state.command_done("broker", id_, verb, payload, KEEP_REPLIES)
            return payload
        except (MessageError, CommandRefused, StateError) as error:
            self.counts["commands_refused"] += 1
            return _encode(Reply(id_, verb[:40], time.time_ns(), error=str(error)))

    def _send(self, payload: bytes, message: "Incoming") -> None:
        assert self._link is not None
        usual = topic(self._config.gateway, "reply", self._config.broker.base)
        where = message.response_topic
        try:  # nobody may make this agent publish elsewhere, such as on its own alert topic
            gateway, leaf = parse_topic(where, self._config.broker.base)
            allowed = gateway == self._config.gateway and leaf.partition("/")[0] == "reply"
        except MessageError:
            allowed = False
        self._link.reply(where if allowed else usual, payload, message.correlation)

    def _look(self, now: float) -> None:
        """End entries whose time is over, and carry out the commands that were left in the state file."""
        try:
            self.suppressions.tick(time.time(), now)
            for _, id_, verb, payload in self._state.commands_waiting():
                try:
                    reply = self.execute(Command.read(verb, decode(payload)), "local")
                except MessageError as error:  # left by another version of the command, or damaged
                    reply = Reply(id_, verb, time.time_ns(), error=str(error))
                payload = json.dumps(reply.document()).encode()
                self._state.command_done("local", id_, verb, payload, KEEP_REPLIES)
            self._trouble = ""
        except StateError as error:
            self._complain(error)

    # --- what they do ---

    def _status(self, command: Command, origin: Origin) -> Mapping[str, Any]:
        return {name: content() for name, content in self._sections.items()} | {
            "gateway": self._config.gateway,
            "gateway_origin": self._config.gateway_origin,
            "allowed": self.suppressions.documents(),
            "commands": list(self._config.commands),
        }

    def _allow(self, command: Command, origin: Origin) -> Mapping[str, Any]:
        arguments = command.arguments
        reported = self._about(arguments)
        if reported.device == ALL_DEVICES:
            raise CommandRefused("allow: name one device; only mute can be about all devices")
        activities, classes = _traffic(arguments, reported)
        default_s = ALLOW_S if origin == "local" else self._config.control.remote_hours * 3600
        learn = bool(arguments.get("learn"))
        if learn:
            self._raise_limits(origin, reported.device, activities)
        try:
            return self._add(
                command,
                origin,
                reported.device,
                arguments.get("for_s", default_s),
                verb="allow",
                activities=activities,
                classes=classes,
                host=arguments.get("host", ""),
                learn=learn,
            )
        except (CommandRefused, SuppressionError, StateError):
            if learn and self._teach:
                self._teach(reported.device, activities, False)
            raise

    def _raise_limits(self, origin: Origin, device: str, activities: tuple[Activity, ...]) -> None:
        """Raise a device's limits to the traffic that is allowed. CommandRefused where that is not possible."""
        if origin == "broker" and "learn" not in self._config.commands:
            raise CommandRefused("learn: this agent does not let the broker change what is learnt (`commands`)")
        if self._teach is None:
            raise CommandRefused("allow: to learn needs a running agent")
        self._teach(device, activities, True)

    def _mute(self, command: Command, origin: Origin) -> Mapping[str, Any]:
        device = self._about(command.arguments).device
        default_s = MUTE_S if origin == "local" else min(MUTE_S, self._config.control.remote_hours * 3600)
        return self._add(command, origin, device, command.arguments.get("for_s", default_s), verb="mute")

    def _about(self, arguments: Mapping[str, Any]) -> Reported:
        """Return the device that a command names, or the one of an alert with what the alert reported."""
        if "alert" in arguments:
            return self._reported.of(arguments["alert"])
        try:
            return Reported(ALL_DEVICES if arguments["device"] == ALL_DEVICES else self.device(arguments["device"]))
        except CommandRefused as refusal:
            try:
                ending = alertid.read(arguments["device"])
            except MessageError:
                raise refusal from None
            try:
                return self._reported.of(ending)
            except MessageError as error:
                raise CommandRefused(f"{refusal}; {error}") from error

    def _add(self, command: Command, origin: Origin, device: str, for_s: float, **about: Any) -> Mapping[str, Any]:
        if origin == "broker":
            _check_bounds(device, for_s, self._config.control.remote_hours * 3600)
        now = time.time()
        entry = Suppression(
            device=device,
            created_s=now,
            expires_s=now + for_s,
            reason=command.arguments.get("reason", ""),
            by=command.by,
            origin=origin,
            **about,
        )
        if origin == "broker":
            active = self.suppressions.active().values()
            if any(old.same_as(entry) and old.origin == "local" for old in active):
                raise CommandRefused(
                    "an entry that covers the same was made on the gateway, and the broker cannot replace it"
                )
            others = sum(old.origin == "broker" and not old.same_as(entry) for old in active)
            if others >= (most := self._config.control.remote_entries):
                raise CommandRefused(
                    f"the bound of {most} entries made through the broker is reached (control.remote_entries)"
                )
        steady, note = time.monotonic(), {}
        n = None
        if not command.arguments.get("replace"):
            n = self.suppressions.outlasting(entry, now, steady)
        if n is not None and entry.learn and not (older := self.suppressions.active()[n]).learn:
            entry, n = dataclasses.replace(entry, expires_s=older.expires_s), None
        if n is None:
            n = self.suppressions.add(entry, now, steady)
            self._changed = True
        else:
            entry = self.suppressions.active()[n]
            note = {"note": f"{_PAST[entry.verb]} for longer already, which stays so; `replace` shortens it"}
        name = next((name for mac, name in self._config.names.items() if mac.lower() == device), "")
        who = "all devices" if device == ALL_DEVICES else f"{name} ({device})" if name else device
        return {
            "entry": n,
            "device": device,
            "suppressed": f"{entry.about}, {who}",
            "until": format_time(int(1e9 * entry.expires_s)),
            **({"learnt": True} if entry.learn else {}),
            **note,
        }

    def _unallow(self, command: Command, origin: Origin) -> Mapping[str, Any]:
        return self._drop("allow", [command.arguments["entry"]])

    def _unmute(self, command: Command, origin: Origin) -> Mapping[str, Any]:
        if "entry" in command.arguments:
            return self._drop("mute", [command.arguments["entry"]])
        device = self._about(command.arguments).device
        active = self.suppressions.active().items()
        mutes = [number for number, entry in active if entry.verb == "mute" and entry.device == device]
        if not mutes:
            raise CommandRefused(f"{device} is not muted")
        return self._drop("mute", mutes)

    def _drop(self, verb: str, numbers: list[int]) -> Mapping[str, Any]:
        active = self.suppressions.active()
        for number in numbers:
            if number not in active or active[number].verb != verb:
                raise CommandRefused(f"no active {verb} has the number {number}")
        for number in numbers:
            if active[number].learn and self._teach:
                self._teach(active[number].device, active[number].activities, False)
            self.suppressions.drop(number)
        self._changed = True
        return {"ended": numbers}

    def _replay(self, command: Command, origin: Origin) -> Mapping[str, Any]:
        assert self._outbox is not None
        now = time.time()
        since_s = max(command.arguments["since"] / 1e9, now - KEEP_S)
        if since_s > now:
            raise CommandRefused("since: this time is in the future by this gateway's clock")
        count = OutboxTable(self._state).again(now, now - since_s)
        if self._link:
            self._link.resend()
        return {"alerts": count, "since": format_time(int(since_s * 1e9))}


def _traffic(arguments: Mapping[str, Any], reported: Reported) -> tuple[tuple[Activity, ...], tuple[str, ...]]:
    """Return the traffic that an allow is about, and the names that its alerts must have.

    That is what the alert ``reported``, unless the command names kinds, classes or a port.
    """
    if "kinds" in arguments and "classes" in arguments:
        raise CommandRefused("allow: name kinds or classes, not both (a class stands for its kind)")
    activities, names = reported.activities, reported.classes
    if "kinds" in arguments:
        activities, names = tuple(map(Activity, arguments["kinds"])), ()
    elif "classes" in arguments:
        activities, names = of_classes(arguments["classes"], None)
    elif not activities:
        raise CommandRefused("allow: name the kind of traffic (mute suppresses all of a device's alerts)")
    port = arguments.get("port")
    if port is not None:
        activities = tuple(Activity(activity.kind, None if port == ANY_PORT else port) for activity in activities)
    elif activities is not reported.activities:  # of a kind that the alert reported, its port
        ports = {kind: [a for a in reported.activities if a.kind == kind] for kind in {a.kind for a in activities}}
        activities = tuple(of_kind for activity in activities for of_kind in ports[activity.kind] or [activity])
    return tuple(dict.fromkeys(activities)), names


def _check_bounds(device: str, for_s: float, most_s: float) -> None:
    """Refuse what would let whoever controls the broker silence the gateway; ``most_s`` is the longest time."""
    if device == ALL_DEVICES:
        raise CommandRefused("through the broker a command must name one device")
    if for_s > most_s:
        raise CommandRefused(
            f"made through the broker it lasts at most {most_s / 3600:g} h (control.remote_hours), not {for_s / 3600:g}"
        )
    if device in own_addresses():
        raise CommandRefused(f"{device} is the gateway itself, whose alerts only a command on the gateway can suppress")
    if ":" in device and len(device) == 17 and int(device[:2], 16) & 1:
        raise CommandRefused(f"{device} is a group address, not a device")


def commands_filter(config: AgentConfig) -> str:
    """Return the topic filter of the commands to this gateway."""
    return topic(config.gateway, "cmd/+", config.broker.base)


def _encode(reply: Reply) -> bytes:
    """Return a reply's payload; beyond MAX_PAYLOAD the longest lists are cut, and the reply counts what is left out."""
    document = reply.document()
    while len(payload := json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()) > MAX_PAYLOAD:
        result = document.get("result", {})
        lists = {key: value for key, value in result.items() if isinstance(value, list) and value}
        if not lists:
            return _encode(
                dataclasses.replace(reply, result=None, error=f"the reply is longer than {MAX_PAYLOAD} bytes")
            )
        longest = max(lists, key=lambda key: len(json.dumps(lists[key])))
        shorter = lists[longest][: len(lists[longest]) // 2]
        left_out = len(lists[longest]) - len(shorter) + result.get(f"{longest}_left_out", 0)
        document["result"] = result | {longest: shorter, f"{longest}_left_out": left_out}
    return payload
