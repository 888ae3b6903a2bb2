"""What may be ordered of a running agent, by whom, and what comes of it.

An order is a `contract.commands.Command`, from the broker (through `link`) or from this machine (left in the state file
by `order`); both are checked and done here alike, one after the other, in the thread of the packet loop. What the
broker orders is bounded: an allow or a mute names one device, never the gateway itself, and ends within hours. Other
modules register how their verbs are done (`register`) and what `status` says of them (`describe`).
"""

import dataclasses
import fcntl
import getpass
import ipaddress
import json
import logging
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from edge_agent.config import AgentConfig
from edge_agent.contract.alert import Alert
from edge_agent.contract.captures import mac_text, parse_mac
from edge_agent.contract.commands import ALL_DEVICES, MAX_COMMAND, VERBS, Command, Reply
from edge_agent.contract.messages import MAX_PAYLOAD, MessageError, decode, format_time, parse_topic, topic
from edge_agent.delivery.allow import AllowError, AllowList, Suppression
from edge_agent.delivery.link import Incoming, Link
from edge_agent.delivery.outbox import KEEP_S, Outbox
from edge_agent.state import State, StateError

Origin = Literal["broker", "local"]
Handler = Callable[[Command, Origin], Mapping[str, Any]]

ALLOW_S = 30 * 86_400.0
"""How long a local allow lasts that says nothing of it; one by the broker as long as it may."""

MUTE_S = 3_600.0
"""How long a mute lasts that says nothing of it."""

STALE_S = 3_600.0
"""A command of the broker's that was sent so long ago is not done any more."""

LOOK_S = 1.0
"""How often the state file is looked at for local commands."""

RATE = 30
"""Commands of the broker's that are looked at in a minute; each may cost a write to the card."""

KEEP_REPLIES = 256
MAX_WAITING = 32
MAX_EPISODES = 2_000
"""Episodes whose device and classes are remembered, so that one may be allowed by its id."""

logger = logging.getLogger(__name__)


class CommandRefused(Exception):
    """An order that is not carried out; the message says why, to whoever gave it."""


class Control:
    """Orders for one agent whose memory is ``state``. ``link`` and ``outbox`` are those of a running agent.

    StateError when the allow list cannot be read.
    """

    def __init__(
        self, config: AgentConfig, state: State, outbox: Outbox | None = None, link: Link | None = None
    ) -> None:
        self._config, self._state, self._outbox, self._link = config, state, outbox, link
        self.allowed = AllowList(state, config.control.max_entries, time.time(), time.monotonic())
        self.counts = dict.fromkeys(
            ("commands_done", "commands_refused", "commands_repeated", "commands_retained", "commands_dropped"), 0
        )
        self._handlers: dict[str, Handler] = {
            "status": self._status,
            "allow": self._allow,
            "unallow": self._unallow,
            "mute": self._mute,
            "unmute": self._unmute,
        }
        if outbox is not None:
            self._handlers["replay"] = self._replay
        self._following: list[tuple[str, bytes]] = []  # what goes after the reply to the command at hand
        self._sections: dict[str, Callable[[], Any]] = {}
        self._changed = False
        self._look_at = self._minute = 0.0
        self._taken, self._trouble = 0, ""
        self._seen: dict[str, set[str]] = {}  # of episodes open now: the classes written down

    def change(self, config: AgentConfig) -> None:
        """Go by another configuration, whose `config.LIVE` keys may differ."""
        self._config = config
        if self._link:
            self._link.want_commands(bool(config.commands))

    def register(self, verb: str, handler: Handler) -> None:
        """Have ``verb``, one of VERBS, done by ``handler``: it returns the reply's result or raises Refused."""
        if verb not in VERBS:
            raise ValueError(f"{verb!r} is no command")
        self._handlers[verb] = handler

    def follow(self, parts: Sequence[tuple[str, bytes]]) -> None:
        """For a handler: let ``(leaf, payload)`` messages go after its reply, all or, when too much waits, Refused."""
        if self._link is None or self._link.room() <= len(parts):
            raise CommandRefused("too much waits to be sent; later there may be room")
        self._following = [(topic(self._config.gateway, leaf, self._config.broker.base), p) for leaf, p in parts]

    def describe(self, section: str, tell: Callable[[], Any]) -> None:
        """Have `status` tell ``section``: something that JSON can hold."""
        self._sections[section] = tell

    def device(self, text: str) -> str:
        """The MAC (as in alerts) or address that ``text`` means: either of them, or a name of the configuration's."""
        named = sorted(mac for mac, name in self._config.names.items() if name == text)
        if len(named) > 1:
            raise CommandRefused(f"{text!r} is the name of {' and '.join(named)}: say which")
        if named:
            return named[0]
        try:
            return mac_text(parse_mac(text))
        except ValueError:
            pass
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            raise CommandRefused(f"{text!r} is no MAC, no IP address and no name in the configuration") from None

    def poll(self, now: float) -> bool:
        """Do what was ordered; ``now`` is the steady clock. Whether what is held back has changed.

        For the packet loop: cheap when there is nothing to do.
        """
        while self._link and (message := self._link.received()) is not None:
            self._take(message, now)
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self._look(now)
        changed, self._changed = self._changed, False
        return changed

    def remember(self, alert: Alert) -> None:
        """Store which device and classes an episode is about, so that it can be allowed by its id."""
        classes = self._seen.setdefault(alert.id, set())
        if alert.class_name not in classes:
            classes.add(alert.class_name)
            about = {"device": alert.device.mac or alert.device.ip, "classes": sorted(classes)}
            try:
                self._state.episode_put(alert.id, json.dumps(about), time.time(), MAX_EPISODES)
            except StateError as error:
                self._complain(error)
        if alert.state == "end":
            del self._seen[alert.id]

    def execute(self, command: Command, origin: Origin) -> Reply:
        """Check and do one order."""
        try:
            handler = self._handlers.get(command.verb)
            if handler is None:
                why = "this agent does not do that" if self._outbox else "no agent runs that could"
                raise CommandRefused(f"{command.verb}: {why}")
            result, error = handler(command, origin), ""
        except (CommandRefused, AllowError, StateError) as refusal:
            result, error = None, str(refusal)
        self.counts["commands_refused" if error else "commands_done"] += 1
        if command.verb != "status":
            who = f"{origin}{f' ({command.by})' if command.by else ''}"
            logger.info("%s by %s: %s", command.verb, who, error or json.dumps(result))
        return Reply(command.id, command.verb, time.time_ns(), result, error)

    def close(self) -> None:
        """Write down what only memory has."""
        try:
            self.allowed.flush()
        except StateError as error:
            self._complain(error)

    def _complain(self, error: StateError) -> None:
        if str(error) != self._trouble:
            logger.error("%s", error)
        self._trouble = str(error)

    # --- where orders come from ---

    def _take(self, message: Incoming, now: float) -> None:
        """One message of the broker's."""
        if now - self._minute >= 60.0:
            self._minute, self._taken = now, 0
        self._taken += 1
        if message.retained:
            self.counts["commands_retained"] += 1
        elif not self._config.commands or self._taken > RATE:
            self.counts["commands_dropped"] += 1
        else:
            self._send(self._judge(message), message)
            assert self._link is not None
            for where, payload in self._following:
                self._link.reply(where, payload)
            self._following = []

    def _judge(self, message: Incoming) -> bytes:
        """The reply to a command of the broker's, which is done if it may be and has not been."""
        verb, id_ = "", ""
        try:
            _, leaf = parse_topic(message.topic, self._config.broker.base)
            verb = leaf.partition("/")[2]
            if len(message.payload) > MAX_COMMAND:
                raise MessageError(f"too large: more than {MAX_COMMAND} bytes")
            document = decode(message.payload)
            id_ = document["id"][:64] if isinstance(document.get("id"), str) else ""
            command = Command.read(verb, document)
            if verb not in self._config.commands:
                raise CommandRefused(f"{verb}: not taken from the broker by this agent; it takes {self._takes()}")
            before = self._state.command_reply("broker", id_)
            if before and before[0] != verb:
                raise CommandRefused(f"id {id_} was that of another command ({before[0]})")
            if before and before[1] is not None:
                self.counts["commands_repeated"] += 1
                return before[1]
            age_s = (time.time_ns() - (command.t_ns or time.time_ns())) / 1e9
            if age_s > STALE_S:
                raise CommandRefused(f"sent {age_s:.0f} s ago by this gateway's clock: too late")
            payload = _encode(self.execute(command, "broker"))
            self._state.command_done("broker", id_, verb, payload, KEEP_REPLIES)
            return payload
        except (MessageError, CommandRefused, StateError) as error:
            self.counts["commands_refused"] += 1
            return _encode(Reply(id_, verb[:40], time.time_ns(), error=str(error)))

    def _send(self, payload: bytes, message: Incoming) -> None:
        assert self._link is not None
        usual = topic(self._config.gateway, "reply", self._config.broker.base)
        where = message.response_topic
        try:  # nobody may have us speak where only others should, as on our own alert topic
            mine = parse_topic(where, self._config.broker.base)
            fitting = mine[0] == self._config.gateway and mine[1].partition("/")[0] == "reply"
        except MessageError:
            fitting = False
        self._link.reply(where if fitting else usual, payload, message.correlation)

    def _takes(self) -> str:
        return ", ".join(self._config.commands)

    def _look(self, now: float) -> None:
        """Let entries end that are over, and do what was left in the state file."""
        try:
            self.allowed.tick(time.time(), now)
            for _, id_, verb, payload in self._state.commands_waiting():
                try:
                    reply = self.execute(Command.read(verb, json.loads(payload)), "local")
                except MessageError as error:  # of another version's command line
                    reply = Reply(id_, verb, time.time_ns(), error=str(error))
                payload = json.dumps(reply.document()).encode()
                self._state.command_done("local", id_, verb, payload, KEEP_REPLIES)
            self._trouble = ""
        except StateError as error:
            self._complain(error)

    # --- what is done ---

    def _status(self, command: Command, origin: Origin) -> Mapping[str, Any]:
        return {name: tell() for name, tell in self._sections.items()} | {
            "gateway": self._config.gateway,
            "allowed": self.allowed.documents(),
            "commands": list(self._config.commands),
        }

    def _allow(self, command: Command, origin: Origin) -> Mapping[str, Any]:
        said = command.arguments
        device, classes = self._about(said)
        if "classes" in said:
            classes = said["classes"]
        elif not classes:
            raise CommandRefused("allow: say which classes (a mute holds back all of a device)")
        if device == ALL_DEVICES:
            raise CommandRefused("allow: names one device; mute can hold back all")
        default_s = ALLOW_S if origin == "local" else self._config.control.remote_hours * 3600
        return self._add(
            command,
            origin,
            device,
            said.get("for_s", default_s),
            kind="allow",
            classes=classes,
            host=said.get("host", ""),
            port=said.get("port", 0),
        )

    def _mute(self, command: Command, origin: Origin) -> Mapping[str, Any]:
        device, _ = self._about(command.arguments)
        default_s = MUTE_S if origin == "local" else min(MUTE_S, self._config.control.remote_hours * 3600)
        return self._add(command, origin, device, command.arguments.get("for_s", default_s), kind="mute")

    def _about(self, said: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """The device that a command names, by itself or by an alert, and the classes that the alert told."""
        if "device" in said:
            return (ALL_DEVICES if said["device"] == ALL_DEVICES else self.device(said["device"])), ()
        about = self._state.episode(said["alert"])
        if about is None:
            raise CommandRefused(f"alert {said['alert']} is not known here (any more): name the device and the classes")
        known = json.loads(about)
        if not known["device"]:
            raise CommandRefused(f"alert {said['alert']} names no device")
        return known["device"], tuple(known["classes"])

    def _add(self, command: Command, origin: Origin, device: str, for_s: float, **about: Any) -> Mapping[str, Any]:
        if origin == "broker":
            self._check_bounds(device, for_s)
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
            active = self.allowed.active().values()
            if any(old.same_as(entry) and old.origin == "local" for old in active):
                raise CommandRefused("an entry about the same was made on the gateway: the broker cannot replace it")
            others = sum(old.origin == "broker" and not old.same_as(entry) for old in active)
            if others >= (most := self._config.control.remote_entries):
                raise CommandRefused(f"{most} entries made through the broker are the bound (control.remote_entries)")
        n = self.allowed.add(entry, now, time.monotonic())
        self._changed = True
        return {
            "entry": n,
            "device": device,
            "classes": list(entry.classes),
            "until": format_time(int(1e9 * entry.expires_s)),
        }

    def _check_bounds(self, device: str, for_s: float) -> None:
        """What the broker may order, lest whoever has it silences the gateway."""
        most_s = self._config.control.remote_hours * 3600
        if device == ALL_DEVICES:
            raise CommandRefused("through the broker only one device can be named")
        if for_s > most_s:
            raise CommandRefused(f"through the broker at most {most_s:.0f} s (control.remote_hours), not {for_s:.0f}")
        if device in own_addresses():
            raise CommandRefused(f"{device} is the gateway itself: only a command on the gateway can hold that back")
        if ":" in device and len(device) == 17 and int(device[:2], 16) & 1:
            raise CommandRefused(f"{device} is a group address and no device")

    def _unallow(self, command: Command, origin: Origin) -> Mapping[str, Any]:
        return self._drop("allow", [command.arguments["entry"]])

    def _unmute(self, command: Command, origin: Origin) -> Mapping[str, Any]:
        said = command.arguments
        if "entry" in said:
            return self._drop("mute", [said["entry"]])
        device = ALL_DEVICES if said["device"] == ALL_DEVICES else self.device(said["device"])
        found = [n for n, entry in self.allowed.active().items() if entry.kind == "mute" and entry.device == device]
        if not found:
            raise CommandRefused(f"{device} is not muted")
        return self._drop("mute", found)

    def _drop(self, kind: str, numbers: list[int]) -> Mapping[str, Any]:
        active = self.allowed.active()
        for n in numbers:
            if n not in active or active[n].kind != kind:
                raise CommandRefused(f"{n} is the number of no {kind} that is active")
        for n in numbers:
            self.allowed.drop(n)
        self._changed = True
        return {"ended": numbers}

    def _replay(self, command: Command, origin: Origin) -> Mapping[str, Any]:
        assert self._outbox is not None
        now = time.time()
        since_s = max(command.arguments["since"] / 1e9, now - KEEP_S)
        if since_s > now:
            raise CommandRefused("since: lies in the future by this gateway's clock")
        count = self._state.outbox_again(now, now - since_s)
        if self._link:
            self._link.resend()
        return {"alerts": count, "since": format_time(int(since_s * 1e9))}


def _encode(reply: Reply) -> bytes:
    """A reply that the broker may carry: lists that are too long lose their ends, and say so."""
    document = reply.document()
    while len(payload := json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()) > MAX_PAYLOAD:
        result = document.get("result", {})
        lists = {key: value for key, value in result.items() if isinstance(value, list) and value}
        if not lists:
            return _encode(
                dataclasses.replace(reply, result=None, error=f"the reply has more than {MAX_PAYLOAD} bytes")
            )
        longest = max(lists, key=lambda key: len(json.dumps(lists[key])))
        kept = lists[longest][: len(lists[longest]) // 2]
        left_out = len(lists[longest]) - len(kept) + result.get(f"{longest}_left_out", 0)
        document["result"] = result | {longest: kept, f"{longest}_left_out": left_out}
    return payload


def own_addresses() -> frozenset[str]:
    """MACs and IP addresses of this machine, as entries spell them."""
    found = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        for _, name in socket.if_nameindex():
            try:
                found.add(Path(f"/sys/class/net/{name}/address").read_text().strip().lower())
                ask = struct.pack("256s", name.encode()[:15])
                found.add(socket.inet_ntoa(fcntl.ioctl(line, 0x8915, ask)[20:24]))  # SIOCGIFADDR
            except OSError:  # no link layer, or no address
                continue
    try:
        for text in Path("/proc/net/if_inet6").read_text().splitlines():
            found.add(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(text.split()[0])))
    except OSError:
        pass
    return frozenset(found)


# --- the local side -----------------------------------------------------------------------------------------


def order(config: AgentConfig, verb: str, arguments: Mapping[str, Any], wait_s: float = 10.0) -> tuple[Reply, bool]:
    """Have a command done on this machine: by the agent when it runs, else on its state file; which of the two.

    Raises MessageError for a command that is none, Refused when there is no agent to ask or it does not answer, and
    StateError.
    """
    by = whoever()
    id_ = f"{time.time_ns():x}.{secrets.token_hex(4)}"
    command = Command.read(verb, Command(verb, id_, arguments, by[:64]).document())
    path = state_path(config)
    try:
        state = State(path, guest=True)
    except StateError as error:
        raise CommandRefused(
            f"{error} (no agent has run with it, or it is another user's; --outbox names another)"
        ) from error
    try:
        if state.claim():
            control = Control(config, state)
            if found := state.document("devices"):
                control.describe("devices", lambda: json.loads(found[1])["devices"])
            return control.execute(command, "local"), False
        document = json.dumps(command.document()).encode()
        if not state.command_put("local", id_, verb, document, MAX_WAITING):
            raise CommandRefused(f"{MAX_WAITING} commands wait already: the agent does not come round to them")
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            time.sleep(0.1)
            answered = state.command_reply("local", id_)
            if answered and answered[1] is not None:
                return Reply.read(json.loads(answered[1])), True
        raise CommandRefused(f"the agent runs and did not answer within {wait_s:.0f} s; the command waits for it")
    finally:
        state.close()


def whoever() -> str:
    """Who gives orders on this machine."""
    return os.environ.get("SUDO_USER") or getpass.getuser()


def agent_runs(config: AgentConfig) -> bool:
    """Whether an agent runs with this state file; StateError when the file cannot be used."""
    path = state_path(config)
    if not path.is_file():
        return False
    with closing(State(path, guest=True)) as state:
        return not state.claim()


def state_path(config: AgentConfig) -> Path:
    """Where the agent's state is: a relative path is the service's, when there is none here."""
    path = config.outbox.path
    service = Path("/var/lib/botwatch") / path
    return service if not path.exists() and service.exists() else path


def lines(reply: Reply, running: bool) -> list[str]:
    """A reply for people; ``running`` says whether an agent gave it."""
    result = dict(reply.result or {})
    if reply.verb != "status":
        words = ", ".join(f"{key} {_plain(value)}" for key, value in result.items() if value not in ([], ""))
        return [words or "done"] + ([] if running else ["no agent runs: this holds from its next start on"])
    health = result.get("health", {})
    told = [f"gateway {result['gateway']}: " + ("running" if running else "no agent runs with this state file")]
    if health:
        keys = ("model", "pps", "drop_pct", "cpu", "rss_mb", "episodes_open", "outbox_depth")
        told.append("  " + ", ".join(f"{key} {_plain(health[key])}" for key in keys))
        if health["interfaces_down"]:
            told.append(f"  interfaces down: {_plain(health['interfaces_down'])}")
        if refused := health.get("config_refused"):
            told.append(f"  configuration refused, the one before stays: {_plain(refused)}")
        told.append("  " + ", ".join(f"{key} {value:,}" for key, value in health["counters"].items()))
    if line := result.get("broker"):
        how = f"connected, MQTT {line['protocol']}" if line["connected"] else "not connected"
        told.append(f"  broker {line['address']}: {how}{': ' + _plain(line['trouble']) if line['trouble'] else ''}")
    told.append("  from the broker: " + (", ".join(result["commands"]) or "nothing"))
    for title, key in (("devices", "devices"), ("held back", "allowed")):
        if key in result:
            told += ["", title, *_table(result[key])]
    return told


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows of the same kind under the names of their keys; what is nested is left to JSON."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_plain(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    if not rows:
        return ["  none"]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    ]


def _plain(value: object) -> str:
    """As people read it, without what a terminal would obey."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(c if c.isprintable() else "?" for c in text)
