"""From the broker to the store: judge each message, save it, and only then acknowledge it.

One thread does all of it, so back-pressure is simply not reading: a broker sends no more than Receive Maximum messages
beyond the last acknowledged one (MQTT 5; under 3.1.1 it is TCP that makes it wait). A collector that is killed between
commit and acknowledgement gets the same messages again, and the store recognises them.
"""

import importlib.resources
import json
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jsonschema

from collector.config import CollectorConfig
from collector.homeassistant import HomeAssistant
from collector.homepublisher import HomePublisher
from collector.store import AlertStore, Arrival, BadRow, Fresh, GatewayDocument, Rejection, StoreBusy
from edge_agent.contract.alert import Alert
from edge_agent.contract.broker import Backoff
from edge_agent.contract.cli import printable
from edge_agent.contract.messages import (
    BASE,
    RETAINED,
    MessageError,
    Status,
    check_devices,
    check_health,
    decode,
    parse_topic,
    topic_filter,
)
from edge_agent.mqtt import Acknowledged, Connected, Connection, ConnectionEnded, Dialer, Incoming, Subscribed
from edge_agent.reconnect import ConnectionCounts, Reconnecter

logger = logging.getLogger(__name__)

LEAVES = ("alert", *RETAINED)
"""Leaves of the topics that the collector subscribes to."""

_POLL_S = 0.25  # how late a set ``stop`` may be noticed
_PURGE_EVERY_S = 60.0
_MAX_INCOMING = 1_048_576  # bytes of a packet that the broker may send us (MQTT 5)
_BATCH_BYTES = 4_194_304  # bytes of messages that wait in memory to be saved together, about


@dataclass
class IngestCounts(ConnectionCounts):
    """Counters since the start."""

    received: int = 0
    stored: int = 0
    tests: int = 0  # alerts sent by hand that were stored; in no other count but `received`
    duplicates: int = 0
    statuses: int = 0
    documents: int = 0  # retained documents on health and devices, and withdrawals
    rejected: int = 0


class MessageJudge:
    """Decides whether a message is one that the gateway of its topic may have sent: an alert, a status, a document."""

    def __init__(self, base: str = BASE) -> None:
        self._base = base
        schema = importlib.resources.files("edge_agent.contract").joinpath("alert.schema.json").read_bytes()
        self._validator = jsonschema.Draft202012Validator(json.loads(schema))

    def judge(self, topic: str, payload: bytes) -> Alert | tuple[str, Status] | GatewayDocument:
        """Return the alert, a status with its gateway, or a document; an empty one withdraws that before it.

        Raises MessageError with the reason for a rejection.
        """
        gateway, leaf = parse_topic(topic, self._base)
        if leaf in RETAINED:
            if not payload:
                return GatewayDocument(gateway, leaf)
            document = decode(payload, RETAINED[leaf])
            if leaf == "status":
                return gateway, Status.read(document)
            return GatewayDocument(
                gateway, leaf, (check_health if leaf == "health" else check_devices)(document), document
            )
        if leaf != "alert":
            raise MessageError(f"no message is expected on .../{leaf}")
        document = decode(payload)
        error = next(self._validator.iter_errors(document), None)
        if error is not None:
            raise MessageError(f"schema: {error.json_path}: {error.message[:120]}")
        alert = Alert.read(document)
        if not gateway == document["host"] == alert.gateway:
            raise MessageError(
                f"came on the topic of {gateway}, but names host {document['host']}, gateway {alert.gateway}"
            )
        return alert


class Ingest:
    """Feeds ``store`` from the broker of ``config`` with the messages that ``judge`` accepts.

    Without ``judge`` it is a `MessageJudge` for the broker's topics. The client id is that of the database where the
    configuration names none. ``connected``, ``trouble`` (why nothing comes, "" when all is well) and ``counts`` may be
    read from any thread. Raises BrokerError when the TLS or password files cannot be used, and StoreError.
    """

    def __init__(self, config: CollectorConfig, store: AlertStore, judge: MessageJudge | None = None) -> None:
        self.config, self.counts = config, IngestCounts()
        self._store, self._judge = store, judge or MessageJudge(config.broker.base)
        self.homeassistant = HomeAssistant(config, store) if config.homeassistant.enabled else None
        self._home = HomePublisher(config.broker.address)
        dialer = Dialer(
            config.broker,
            config.broker.client_id or store.client_id(),
            manual_ack=True,
            receive_maximum=config.broker.inflight,
            max_packet=_MAX_INCOMING,
        )
        self.client_id = dialer.client_id
        self._reconnecter = Reconnecter(
            dialer,
            self.counts,
            "they share the alerts between them, so that neither has them all: give each collector a client id of its "
            "own (broker.client_id, the certificate's CN), also one whose database is a copy",
        )
        self._purge_at = 0.0  # steady clock
        self._judge_failed = False
        self._granted = False  # the subscriptions of this connection are

    def run(self, stop: threading.Event) -> None:
        """Receive until ``stop`` is set; then save and acknowledge what was received, and hang up."""
        will = self.homeassistant.will if self.homeassistant else None
        self._reconnecter.run(stop, lambda connection: self._receive(connection, stop), will=lambda: will)

    @property
    def connected(self) -> bool:
        """True while the broker has accepted the connection."""
        return self._reconnecter.connected

    @property
    def trouble(self) -> str:
        """The reason why there is no lasting connection; "" when there is one."""
        return self._reconnecter.trouble

    def _receive(self, connection: Connection, stop: threading.Event) -> None:
        """Receive over one connection until ``stop`` is set. Raises ConnectionEnded."""
        inbox, base, self._granted = _Inbox(self.config), self.config.broker.base, False
        try:
            while not stop.is_set():
                for event in self._reconnecter.step(connection, inbox.wait_s()):
                    if isinstance(event, Incoming):
                        if self.homeassistant and self.homeassistant.take(event, time.monotonic()):
                            connection.acknowledge(event)
                            continue
                        self.counts.received += 1
                        inbox.add(event)
                    elif isinstance(event, Connected):
                        connection.subscribe([topic_filter(leaf, base) for leaf in LEAVES])
                    elif isinstance(event, Subscribed) and not self._granted:
                        self._begin(connection, event)
                    elif isinstance(event, Subscribed) and event.refusals and self.homeassistant:
                        self.homeassistant.refused(event.refusals[0])
                    elif isinstance(event, Acknowledged) and self.homeassistant:
                        self._home.answered(event.id)
                        if event.refused:
                            self.homeassistant.refused(event.reason)
                self._show(connection)
                if inbox.due():
                    self._pass_on(connection, inbox, stop)
                if not inbox.messages:
                    self.purge()
            self._pass_on(connection, inbox, stop)
            self._show(connection)
            if self.homeassistant and self._granted:
                connection.publish(*self.homeassistant.will, qos=0, retain=True)
            connection.disconnect(within_s=1.0)
        except ConnectionEnded as end:
            self._home.ended(end)
            self.save(inbox.messages, stop)
            raise

    def _begin(self, connection: Connection, answer: Subscribed) -> None:
        """Go on when the broker grants the subscriptions; else hang up."""
        if answer.refusals:
            connection.disconnect(f"refuses the subscription: {answer.refusals[0]}")
            return
        self._granted = True
        if self.homeassistant:
            self._home.begin(connection)
            self.homeassistant.connected(time.monotonic())
            connection.subscribe(self.homeassistant.filters)  # apart: without them the alerts come all the same
        broker = self.config.broker
        logger.info(
            "subscribed to %s at %s as %s, MQTT %s",
            *(topic_filter("alert", broker.base), broker.address, printable(self.client_id), connection.protocol),
        )

    def _show(self, connection: Connection) -> None:
        """Publish what is due for Home Assistant, once the broker has granted the subscriptions."""
        if self.homeassistant and self._granted:
            now = time.monotonic()
            self._home.send(connection, self.homeassistant.due(now) if self._home.idle else ())
            self.homeassistant.counts["messages_set_aside"] = self._home.set_aside
            if settled := self.homeassistant.settled(now):
                connection.unsubscribe(settled)

    def _pass_on(self, connection: Connection, inbox: "_Inbox", stop: threading.Event) -> None:
        """Save what was received, then acknowledge it; a message that was not saved comes again."""
        messages = inbox.take()
        if messages and self.save(messages, stop):
            for message in messages:
                connection.acknowledge(message)

    def save(self, messages: Sequence[Incoming], stop: threading.Event) -> bool:
        """Judge and commit ``messages``, waiting while the database is busy; False when ``stop`` came first."""
        arrivals, rejections = [], []
        for m in messages:
            try:
                accepted = self._judge.judge(m.topic, m.payload)
            except MessageError as error:
                rejections.append(Rejection(m.topic, m.payload, str(error), m.received_ns))
            except Exception as error:  # a mistake of ours; raised, it would bring this message back for ever
                why = f"cannot be judged: {type(error).__name__}: {error}"
                if not self._judge_failed:
                    logger.exception("a message on %s %s; it is stored as rejected", m.topic[:80], why)
                self._judge_failed = True
                rejections.append(Rejection(m.topic, m.payload, why, m.received_ns))
            else:
                text = "" if isinstance(accepted, tuple) else m.payload.decode()
                arrivals.append(Arrival(accepted, m.received_ns, text, m.retained))
        wait, logged = Backoff(0.2, 10.0), ""
        while arrivals or rejections:
            try:
                self._commit(arrivals, rejections)
            except StoreBusy as error:
                if str(error) != logged:
                    logger.error("database: %s; %d messages wait until it can be written", error, len(messages))
                    logged = str(error)
                if stop.wait(wait.next()):
                    return False
            else:
                break
        if logged:
            logger.info("database: can be written again; the %d messages are stored", len(messages))
        return True

    def _commit(self, arrivals: Sequence[Arrival], rejections: Sequence[Rejection]) -> None:
        """Save all in one transaction; when the database refuses a row, row by row, the refused ones as rejected."""
        try:
            self._count(arrivals, self._store.save(arrivals, rejections))
        except BadRow:
            refused = list(rejections)
            for arrival in arrivals:
                try:
                    self._count([arrival], self._store.save([arrival]))
                except BadRow as error:
                    refused.append(Rejection("", arrival.document.encode(), f"database: {error}", arrival.received_ns))
            self._store.save([], refused)
            rejections = refused
        for rejection in rejections:
            self.counts.rejected += 1
            # the 1st, 2nd, 4th, 8th ...: a flood of them must not fill the log
            if self.counts.rejected.bit_count() == 1:
                where = f" on {rejection.topic}" if rejection.topic else ""
                logger.warning(
                    "a message%s was rejected (%d so far): %s", where, self.counts.rejected, rejection.reason
                )

    def _count(self, arrivals: Sequence[Arrival], fresh: Fresh) -> None:
        if self.homeassistant:
            self.homeassistant.stored(arrivals, fresh)
        tests = [a.message.test for a in arrivals if isinstance(a.message, Alert)]
        self.counts.tests += fresh.tests
        self.counts.stored += fresh.alerts
        self.counts.duplicates += len(tests) - sum(tests) - fresh.alerts
        documents = sum(isinstance(a.message, GatewayDocument) for a in arrivals)
        self.counts.documents += documents
        self.counts.statuses += len(arrivals) - len(tests) - documents

    def purge(self) -> None:
        """Delete alerts beyond the configured retention, once a minute."""
        if time.monotonic() < self._purge_at:
            return
        older = time.time_ns() - int(self.config.retention.days * 86_400e9)
        try:
            deleted = self._store.purge(older, self.config.retention.max_bytes)
        except StoreBusy as error:
            logger.warning("database: %s; alerts beyond the configured retention are deleted later", error)
            deleted = 0
        if self.homeassistant:
            self.homeassistant.keep(time.time_ns())
        if deleted:
            if self.homeassistant:
                self.homeassistant.purged()
            logger.info("deleted %d alerts beyond the configured retention", deleted)
        self._purge_at = time.monotonic() + (1.0 if deleted else _PURGE_EVERY_S)


class _Inbox:
    """Messages that are saved together, once there are enough of them or the first has waited long enough."""

    def __init__(self, config: CollectorConfig) -> None:
        self._config = config
        self.messages: list[Incoming] = []
        self._bytes = 0
        self._due = 0.0  # steady clock

    def add(self, message: Incoming) -> None:
        if not self.messages:
            self._due = time.monotonic() + self._config.batch_s
        self.messages.append(message)
        self._bytes += len(message.payload)

    def take(self) -> list[Incoming]:
        messages, self.messages, self._bytes = self.messages, [], 0
        return messages

    def wait_s(self) -> float:
        """Seconds that may pass until `due` is asked again."""
        return min(max(self._due - time.monotonic(), 0.0), _POLL_S) if self.messages else _POLL_S

    def due(self) -> bool:
        full = len(self.messages) >= self._config.batch_rows or self._bytes >= _BATCH_BYTES
        return full or bool(self.messages and time.monotonic() >= self._due)
