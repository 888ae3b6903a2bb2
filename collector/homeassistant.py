"""Keeps Home Assistant's picture of the fleet (gateways, devices, open episodes) and decides what is published of it.

All of it is published anew over each connection and when Home Assistant says that it has started. Gateways and devices
that nobody has heard of for the time of retention are removed, as are documents that a collector published before and
that stand for nothing any more. This module has no clock and no connection: `collector.ingest` hands over what came,
and publishes what `HomeAssistant.due` returns. Topics and payloads are `collector.discovery`'s.
"""

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from collector.config import CollectorConfig
from collector.discovery import Documents, HomeDevice, OpenEpisode, shown
from collector.store import AlertStore, Arrival, Fresh, GatewayDocument, Presence, StoreBusy, StoreError
from edge_agent.contract.alert import Alert
from edge_agent.contract.messages import Status
from edge_agent.mqtt import Incoming

logger = logging.getLogger(__name__)

SETTLE_S = 30.0
"""Time after a connection in which gateways that are still there are heard; what is unknown then is removed."""

BIRTH_S = 10.0
"""Shortest time between two answers to Home Assistant's birth message."""

MAX_OPEN = 10_000
"""Open episodes that are followed; beyond it, the oldest is dropped."""

MAX_EVENTS = 1_000
"""Events that wait to be published; beyond it, the oldest is dropped."""

MAX_LISTED = 256
"""Devices that are read from one gateway's document."""

MAX_DISCOVERED = 20_000
"""Documents from before that are remembered until it is known which of them are to be removed."""

SEEN_S = 3600.0
"""Time between two notes in the database of when a gateway or device was seen last."""

DUE = 200
"""Gateways and devices whose messages are published at once."""

_NEVER = float("inf")
_OTHER = b"?"  # a payload that none of ours equals


class Message(NamedTuple):
    """A message to be published; an empty payload of a retained one removes it from the broker."""

    topic: str
    payload: bytes
    retain: bool = True

    @property
    def kind(self) -> str:
        """The kind of message in words; those of one kind are about as large."""
        if not self.retain:
            return "an event"
        if not self.topic.endswith("/config"):
            return "a state"
        return f"the document of a {'device' if '/botwatch_mac_' in self.topic else 'gateway'}"


@dataclass
class GatewayFacts:
    """The facts about a gateway, which it reported itself."""

    seen_ns: int = 0
    saved_ns: int = 0
    agent: str = ""
    model: str = ""


@dataclass
class DeviceFacts:
    """The gateways that have seen a device: its name there, when that was, and when that was saved."""

    names: dict[str, str] = field(default_factory=dict)
    seen_ns: dict[str, int] = field(default_factory=dict)
    saved_ns: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name at the gateway that saw the device last and has one for it."""
        named = [(self.seen_ns[gateway], name) for gateway, name in self.names.items() if name]
        return max(named)[1] if named else ""


class HomeAssistant:
    """Home Assistant's picture of what the collector stores.

    Gateways, devices and open episodes are read from ``store``, so that a restart of the collector changes nothing.
    ``counts`` are the devices beyond ``homeassistant.max_devices``, the events that were dropped, and the messages that
    the broker does not take. Times named ``now_s`` are those of the steady clock.
    """

    def __init__(self, config: CollectorConfig, store: AlertStore) -> None:
        self._store, self._base = store, config.broker.base
        self._documents = Documents(config.broker.base, config.homeassistant.prefix)
        self._most, self._keep_ns = config.homeassistant.max_devices, int(config.retention.days * 86_400e9)
        self.counts = {"devices_left_out": 0, "events_dropped": 0, "messages_set_aside": 0}
        self._gateways: dict[str, GatewayFacts] = {}
        self._devices: dict[str, DeviceFacts] = {}
        self._open: dict[str, OpenEpisode] = {}
        self._open_of: dict[HomeDevice, dict[str, OpenEpisode]] = {}  # the same by gateway and by device
        self._behind = False  # the open episodes are to be read from the store
        self._left_out: set[str] = set()
        self._unsaved: dict[tuple[str, str], Presence] = {}
        self._published: dict[HomeDevice, dict[str, bytes]] = {}
        self._changed: dict[HomeDevice, None] = {}
        self._events: deque[Message] = deque()
        self._discovered: set[HomeDevice] = set()  # those that the broker has documents of from before
        self._settle_s = self._birth_s = _NEVER
        self._answered_s, self._refusal = -_NEVER, ""
        for present in store.presences():
            self._heard_of(present.gateway, present.seen_ns)
            if present.mac:
                self._saw(present.mac, present.gateway, present.name, present.seen_ns)
        for row in store.open_episodes(MAX_OPEN):
            self._follow(row)
        self._unsaved.clear()

    # --- the connection ---

    @property
    def will(self) -> tuple[str, bytes]:
        """The topic that says whether a collector is there, and the payload when its connection is lost."""
        return self._documents.collector, b"offline"

    @property
    def filters(self) -> list[str]:
        """The topics to subscribe to beside those of gateways: Home Assistant's birth, and documents from before."""
        return [self._documents.birth, self._documents.discovery]

    def connected(self, now_s: float) -> None:
        """Note that a connection is made, over which everything is to be published anew."""
        self._discovered.clear()
        self._settle_s, self._refusal = now_s + SETTLE_S, ""
        self._everything()

    def settled(self, now_s: float) -> str:
        """Return, once in each connection, the filter to unsubscribe from: documents from before are known now."""
        if now_s < self._settle_s:
            return ""
        self._settle_s = _NEVER
        for home_device in self._discovered.difference(self._home_devices()):
            self._published[home_device] = dict.fromkeys(self._documents.topics(home_device), _OTHER)
            self._changed[home_device] = None
        self._discovered.clear()
        return self._documents.discovery

    def refused(self, reason: str) -> None:
        """Log, once in each connection, that the broker does not accept what is published."""
        if reason != self._refusal:
            logger.warning(
                "the broker refuses what Home Assistant needs: %s; let the collector read and write %s and %s",
                *(reason, self._documents.discovery, f"{self._base}/ha/#"),
            )
        self._refusal = reason

    # --- what comes ---

    def take(self, message: Incoming, now_s: float) -> bool:
        """Return True if a message comes from Home Assistant, or is one of the documents from before, and act on it."""
        if message.topic == self._documents.birth:
            if message.payload == b"online":
                self._birth_s = max(now_s, self._answered_s + BIRTH_S)
            return True
        if message.topic.startswith(self._documents.discovery.partition("+")[0]):
            home_device = self._documents.discovered(message.topic, message.payload) if message.retained else None
            if home_device and len(self._discovered) < MAX_DISCOVERED:
                self._discovered.add(home_device)
            return True
        return False

    def _take_document(self, document: GatewayDocument, seen_ns: int) -> None:
        """Take in a gateway's document on its health or its devices, which was true at ``seen_ns``."""
        content = document.content or {}
        facts = self._heard_of(document.gateway, seen_ns)
        if (model := shown(str(content.get("model", "")), 40)) not in ("", facts.model):
            facts.model = model
            self._changed[HomeDevice("gateway", document.gateway)] = None
        if document.leaf == "devices":
            for entry in content["devices"][:MAX_LISTED]:
                self._saw(entry["mac"], document.gateway, entry.get("name", ""), seen_ns)

    def stored(self, arrivals: Sequence[Arrival], fresh: Fresh) -> None:
        """Take in messages that were committed; alerts that are not ``fresh`` are repeats and change nothing."""
        ids: dict[str, None] = {}
        keys = set(fresh.keys)
        for arrival in arrivals:
            if isinstance(arrival.message, GatewayDocument):
                if arrival.message.content is not None:  # one that the broker has kept may be old
                    latest_ns = arrival.message.t_ns if arrival.retained else arrival.received_ns
                    self._take_document(arrival.message, min(latest_ns, arrival.received_ns))
            elif not isinstance(arrival.message, Alert):
                gateway, status = arrival.message
                self._take_status(gateway, status, arrival.received_ns)
            elif (key := (arrival.message.id, arrival.message.seq)) in keys:
                keys.remove(key)
                self._heard_of(arrival.message.gateway, arrival.received_ns)
                self._fire(arrival.message)
                ids[arrival.message.id] = None
        try:
            for row in self._store.latest(list(ids)):  # which message of an episode is the newest, the store knows
                self._follow(row)
        except StoreError as error:
            self._behind = True
            logger.warning("database: %s; Home Assistant learns of open episodes later", error)

    def _take_status(self, gateway: str, status: Status, received_ns: int) -> None:
        facts = self._heard_of(gateway, min(status.t_ns, received_ns))
        if facts.agent != shown(status.agent, 20):
            facts.agent = shown(status.agent, 20)
            self._changed[HomeDevice("gateway", gateway)] = None

    def _fire(self, alert: Alert) -> None:
        if len(self._events) >= MAX_EVENTS:
            self._events.popleft()
            self.counts["events_dropped"] += 1
        self._events.append(Message(*self._documents.event(alert), retain=False))

    def _follow(self, row: Mapping[str, Any]) -> None:
        """Take in the state of an episode, as the store has it."""
        gateway, mac = row["gateway"], row["mac"]
        if row["role"] != "source" or not mac:
            return
        self._close(row["id"])
        if row["state"] != "end":
            columns = ("id", "gateway", "mac", "ip", "class", "first_ns")
            episode = self._open[row["id"]] = OpenEpisode(*(row[column] for column in columns))
            for home_device in _home_devices_of(gateway, mac):
                self._open_of.setdefault(home_device, {})[episode.id] = episode
        self._heard_of(gateway, row["received_ns"])
        self._saw(mac, gateway, row["name"], row["received_ns"])
        self._change(gateway, mac)
        if len(self._open) > MAX_OPEN:
            self._close(next(iter(self._open)))

    def _close(self, id: str) -> None:
        """Forget an episode, if it is open."""
        if episode := self._open.pop(id, None):
            for home_device in _home_devices_of(episode.gateway, episode.mac):
                self._open_of[home_device].pop(id)
                if not self._open_of[home_device]:
                    del self._open_of[home_device]
            self._change(episode.gateway, episode.mac)

    def _heard_of(self, gateway: str, seen_ns: int) -> GatewayFacts:
        if gateway not in self._gateways:
            self._gateways[gateway] = GatewayFacts()
            self._changed[HomeDevice("gateway", gateway)] = None
        facts = self._gateways[gateway]
        facts.seen_ns = max(facts.seen_ns, seen_ns)
        if facts.seen_ns - facts.saved_ns >= SEEN_S * 1e9:
            facts.saved_ns = facts.seen_ns
            self._unsaved[gateway, ""] = Presence(gateway, "", "", facts.seen_ns)
        return facts

    def _saw(self, mac: str, gateway: str, name: str, seen_ns: int) -> None:
        if mac not in self._devices:
            if not self._make_room(mac):
                return
            self._devices[mac] = DeviceFacts()
        facts, name = self._devices[mac], shown(name, 64)
        is_news = facts.names.get(gateway) != name
        facts.names[gateway], facts.seen_ns[gateway] = name, max(facts.seen_ns.get(gateway, 0), seen_ns)
        if is_news or facts.seen_ns[gateway] - facts.saved_ns.get(gateway, 0) >= SEEN_S * 1e9:
            facts.saved_ns[gateway] = facts.seen_ns[gateway]
            self._unsaved[gateway, mac] = Presence(gateway, mac, name, facts.seen_ns[gateway])
        if is_news:
            self._change(gateway, mac)

    def _make_room(self, mac: str) -> bool:
        """Return True if a new device may be added; one that attacks takes the place of one that does not."""
        if len(self._devices) < self._most:
            self._left_out.discard(mac)
            return True
        attacks = HomeDevice("mac", mac) in self._open_of
        if attacks and (calm := self._devices.keys() - {episode.mac for episode in self._open.values()}):
            oldest = min(calm, key=lambda mac: (max(self._devices[mac].seen_ns.values()), mac))
            for gateway in self._devices.pop(oldest).seen_ns:
                self._change(gateway, oldest)
            self._leave_out(oldest)
            return True
        self._leave_out(mac)
        return False

    def _leave_out(self, mac: str) -> None:
        if mac in self._left_out or len(self._left_out) >= self._most:
            return
        self._left_out.add(mac)
        self.counts["devices_left_out"] = count = len(self._left_out)
        if count.bit_count() == 1:
            logger.warning(
                "%d devices are not shown in Home Assistant: homeassistant.max_devices is %d", count, self._most
            )

    def _change(self, gateway: str, mac: str) -> None:
        self._changed |= dict.fromkeys(_home_devices_of(gateway, mac))

    # --- what is due ---

    def due(self, now_s: float) -> Iterator[Message]:
        """Return the messages that are to be published now; more may be due at once after them."""
        if now_s >= self._birth_s:
            self._birth_s, self._answered_s = _NEVER, now_s
            self._everything()
        for home_device in list(self._changed)[:DUE]:
            del self._changed[home_device]
            before, now = self._published.pop(home_device, {}), self._messages(home_device)
            yield from (Message(where, b"") for where in before if where not in now)
            yield from (Message(where, payload) for where, payload in now.items() if before.get(where) != payload)
            if now:
                self._published[home_device] = now
        while self._events:
            yield self._events.popleft()

    def keep(self, now_ns: int) -> None:
        """Save who was seen, and forget gateways and devices that were not for the time of retention.

        What cannot be saved is tried again the next time.
        """
        before = now_ns - self._keep_ns
        for mac, device in list(self._devices.items()):
            for gateway in [name for name, seen_ns in device.seen_ns.items() if seen_ns < before]:
                for facts in (device.names, device.seen_ns, device.saved_ns):
                    facts.pop(gateway, None)
                self._change(gateway, mac)
            if not device.seen_ns:
                del self._devices[mac]
        for gateway in [name for name, facts in self._gateways.items() if facts.seen_ns < before]:
            del self._gateways[gateway]
            self._changed[HomeDevice("gateway", gateway)] = None
        if self._behind:
            self.purged()
        try:
            self._store.remember(list(self._unsaved.values()), before - int(SEEN_S * 1e9))
            self._unsaved.clear()
        except StoreBusy as error:
            logger.warning("database: %s; when gateways and devices were seen last is saved later", error)

    def purged(self) -> None:
        """Follow the open episodes that the store has, after some were deleted."""
        try:
            rows = self._store.open_episodes(MAX_OPEN)
        except StoreError as error:
            logger.warning("database: %s; open episodes stay as they were", error)
            self._behind = True
            return
        for id in self._open.keys() - {row["id"] for row in rows}:
            self._close(id)
        for row in rows:
            self._follow(row)
        self._behind = False

    def _home_devices(self) -> set[HomeDevice]:
        return {
            *(HomeDevice("gateway", id) for id in self._gateways),
            *(HomeDevice("mac", mac) for mac in self._devices),
        }

    def _everything(self) -> None:
        """Publish everything anew, whatever was published before."""
        self._events.appendleft(Message(self._documents.collector, b"online"))
        self._published = {
            home_device: dict.fromkeys(topics, _OTHER) for home_device, topics in self._published.items()
        }
        self._changed |= dict.fromkeys(sorted(self._home_devices() | self._published.keys()))

    def _messages(self, home_device: HomeDevice) -> dict[str, bytes]:
        """Return what is to be retained of one: nothing of one that is gone."""
        episodes = list(self._open_of.get(home_device, {}).values())
        if home_device.kind == "mac":
            if device := self._devices.get(home_device.id):
                return self._documents.device(home_device.id, device.name, min(device.seen_ns), episodes)
        elif facts := self._gateways.get(home_device.id):
            return self._documents.gateway(
                home_device.id,
                agent=facts.agent,
                model=facts.model,
                devices=sum(home_device.id in device.seen_ns for device in self._devices.values()),
                episodes=episodes,
            )
        return {}


def _home_devices_of(gateway: str, mac: str) -> tuple[HomeDevice, HomeDevice]:
    return HomeDevice("gateway", gateway), HomeDevice("mac", mac)
