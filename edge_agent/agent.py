"""The agent: wires source, extractor, detector and alerter, and counts what goes through."""

import gc
import logging
import os
import random
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edge_agent.capture.attach import Surroundings
from edge_agent.capture.features import Extractor, FeatureStateError, Rows, give_back_memory
from edge_agent.capture.sources import Interfaces, Source, open_file
from edge_agent.config import LIVE, AgentConfig, EvidenceConfig, changed
from edge_agent.contract import messages
from edge_agent.contract.bundle import Bundle, replace_file
from edge_agent.contract.captures import parse_mac
from edge_agent.control import CommandRefused, Control, Origin
from edge_agent.delivery.alerts import Alerter, cut_short
from edge_agent.delivery.evidence import EvidenceError, EvidenceStore, chunks
from edge_agent.delivery.link import Link
from edge_agent.delivery.outbox import Outbox
from edge_agent.detection.checkins import CheckInRule, CheckIns
from edge_agent.detection.detector import Detector
from edge_agent.detection.devices import Devices
from edge_agent.detection.vote import LATE_S
from edge_agent.state import State, StateError

BATCH = 4096
"""Frames taken at a time: large enough for the models' batches, small enough that an alert is not late."""

WAIT_S = 0.25
"""How long the live loop waits for a frame; the longest a stop, a beat or an end that is due may be late."""

GATHERED_NS = 1_000_000_000
"""Frames that are older than this have certainly been taken when the loop finds that nobody sends."""

STOP_S = 1.1
"""How long the end waits for the line to the broker, counted from when the last alerts are in the outbox."""

HEALTH_ENTRIES = 8
"""Entries of the allow list in a health message, first those of the broker; `status` tells all."""

CLAIM_S = 5.0
"""How long to wait for a command line that is at the state file just now."""

HEALTH_LASTS = 5
"""Health messages that may be missing before a broker forgets the last one (MQTT 5)."""

DEVICES_S = 60.0
"""Seconds between two documents on devices, at least; without a change of state or progress `DEVICES_IDLE_S`."""

DEVICES_IDLE_S = 600.0

SAVED_AN_HOUR = 500_000
"""Bytes of what was learnt that are written in an hour; where it is more it is written less often."""

MAX_SEEN = 32 << 20
"""Bytes of the largest file of what devices have seen that is read."""

Alert = dict[str, Any]

logger = logging.getLogger(__name__)


class Agent:
    """Packets in, alerts out, for one bundle.

    Ids of alerts are drawn from the gateway's id and the bundle's hash: the same packets give the same alerts, so that
    a replay delivered twice is stored once. For that, ``seed`` must be given too: which streams a full table gives up
    is drawn by it. Live it must not be, lest an attacker choose streams that collide. What was learnt of devices is
    taken up from ``state`` where there is one; `run` keeps it there. ``evidence`` has the packets around alerts kept on
    the disk; EvidenceError when they cannot be.
    """

    def __init__(
        self,
        config: AgentConfig,
        bundle: Bundle,
        *,
        seed: int | None = None,
        state: State | None = None,
        evidence: EvidenceConfig | None = None,
    ):
        sizes, learning, self.networks = config.extractor, config.learning, config.networks
        self.extractor = Extractor(sizes.max_streams, max_devices=sizes.max_devices, seed=seed)
        self.evidence: EvidenceStore | None = None
        if evidence and evidence.path:
            self.extractor.keep(evidence.ring_kb << 10, evidence.seconds + LATE_S, evidence.payload)
            cut, most = self.extractor.cut, evidence.max_mb << 20
            self.evidence = EvidenceStore(evidence.path, cut, seconds=evidence.seconds, most_bytes=most)
        if state:
            state.damaged += not _recall(self.extractor, seen_path(state.path))
        self.devices = Devices(
            bundle,
            names=config.names,
            min_s=60.0 * learning.minutes,
            state=state,
            most_bytes=int(learning.kept_mb * (1 << 20)),
        )
        self.detector = Detector(
            bundle,
            config.networks,
            learn=self.devices.own if learning.enabled else False,
            max_rows_per_s=config.scoring.max_rows_per_s,
        )
        if learning.enabled:
            self.devices.carry_over(self.detector.vote)
        self._step = self.detector.step
        slow = config.checkins
        self.checkins = CheckIns(config.networks, CheckInRule(slow.learn_s)) if slow.enabled else None
        self.alerter = Alerter(
            config.gateway,
            config.site,
            messages.ModelInfo(bundle.manifest.version, bundle.sha256, bundle.manifest.generated),
            version("botwatch"),
            names=config.names,
            update_s=config.alerts.update_s,
            end_s=config.alerts.end_s,
            max_open=config.alerts.max_open,
            evidence=self.evidence,
            rng=random.Random(f"{config.gateway} {bundle.sha256}"),  # ids must be distinct, not secret
        )

    def alerts(self, source: Source, seen: Callable[[int], None] = lambda frames: None) -> Iterator[Alert]:
        """Alerts of a source's packets, as they come; ``seen`` is told how many rows each step took.

        CaptureError when the source breaks off; what came before it has been judged.
        """
        while frames := len(rows := self.extractor.push(source, BATCH)):
            yield from self.judge(rows)
            del rows  # so that the next ones take their place, which the processor's cache holds
            seen(frames)

    def judge(self, rows: Rows) -> Iterator[Alert]:
        """Alerts of rows that were just extracted."""
        detections = self.detector.observe(rows)
        if self.detector.step != self._step:
            shed = self.detector.counters["shed"]
            logger.warning("scoring: %s, was %s; %d rows shed so far", self.detector.step, self._step, shed)
            self._step = self.detector.step
        for detection in detections:
            self._keep(detection.t_ns)
            yield from self.alerter.consider(detection)
        for detection in self.checkins.observe(rows) if self.checkins else ():
            self._keep(detection.t_ns)
            yield from self.alerter.consider(detection)
        latest = int(rows.meta["t_ns"][-1])
        self._keep(latest)
        yield from self.alerter.tick(latest)

    def tick(self, t_ns: int) -> Iterator[Alert]:
        """Alerts that are due at packet time ``t_ns`` though no packet came."""
        for detection in self.detector.tick(t_ns):
            yield from self.alerter.consider(detection)
        self._keep(t_ns - GATHERED_NS)
        yield from self.alerter.tick(t_ns)

    def _keep(self, t_ns: int) -> None:
        """Finish evidence that is due, before an alert of that time speaks of it."""
        if self.evidence:
            self.evidence.tick(t_ns)

    def finish(self) -> list[Alert]:
        """The last alerts: nothing more will come, so every open episode ends."""
        told = [alert for detection in self.detector.finish() for alert in self.alerter.consider(detection)]
        return told + self.alerter.finish()

    def counts(self) -> dict[str, int]:
        """Counters of all parts, for a report and for health messages."""
        told = self.alerter.counts
        alerts = {f"alerts_{state}": getattr(told, state) for state in ("new", "update", "end")}
        bounds = {"episodes_evicted": told.evicted, "foreign_class": told.foreign_class}
        bounds |= {"episodes_suppressed": told.suppressed, "episodes_spoke_up": told.spoke_up}
        kept = self.evidence.counters() if self.evidence else {}
        slow = self.checkins.counters if self.checkins else {}
        own = {**self.detector.counters, **self.devices.counts, **slow}
        return {**self.extractor.counts(), **own, **alerts, **bounds, **kept}


def replay(
    agent: Agent,
    files: Sequence[Path],
    give: Callable[[Alert], None],
    seen: Callable[[int], None] = lambda frames: None,
) -> None:
    """Judge capture files one after the other as if they came in live.

    Episodes still open at the end of the last file are ended there. CaptureError when a file cannot be read to its end;
    the alerts of what came before it have been given.
    """
    try:
        for file in files:
            with open_file(file) as source:
                for alert in agent.alerts(source, seen):
                    give(alert)
    finally:
        for alert in agent.finish():
            give(alert)


def run(
    agent: Agent,
    interfaces: Interfaces,
    give: Callable[..., None],
    stop: threading.Event,
    publisher: "Publisher | None" = None,
    *,
    save_s: float = 600.0,
    reload: "Reload | None" = None,
) -> dict[str, int]:
    """Judge what comes in on live interfaces until ``stop`` is set; episodes still open are ended then.

    ``give`` takes alerts, each as an argument; the last ones come all at once, so that one write keeps them all.
    Returns what was counted that neither ``agent`` nor ``interfaces`` nor ``publisher`` counts.
    What was learnt is kept in the publisher's state every ``save_s`` seconds, and at the end. ``reload`` says when
    there is another configuration.

    The service manager is told that all is well from this very loop, so that it restarts an agent whose loop hangs.
    """
    watched = ServiceNotifier()
    health = HealthMonitor(agent, interfaces, publisher)
    memory = LearningStore(agent, publisher, save_s)
    control = publisher.control if publisher else None
    if publisher and control:
        agent.alerter.silence = control.allowed
        control.describe("health", lambda: health.document().document())
        control.describe("devices", lambda: agent.devices.document(time.time_ns())["devices"])
        control.describe("broker", publisher.line)
        control.register("test-alert", lambda command, origin: _trial(agent, give, command, origin))
        control.register("evidence", lambda command, origin: _send_evidence(agent, control, command, origin))
        control.register(
            "learn", lambda command, _: _relearn(agent.devices, control.device(command.arguments["device"]))
        )

    def take(source: Source) -> int:
        rows = agent.extractor.push(source, BATCH)
        if len(rows):
            health.look(rows)
            for alert in agent.judge(rows):
                give(alert)
        return len(rows)

    gc.collect()
    give_back_memory()
    watched.ready()
    latest = time.monotonic()
    try:
        while not stop.is_set():
            now = time.monotonic()
            if interfaces.each(take, WAIT_S):
                latest = now
            elif now - latest >= 1.0:  # nobody sends: live packets have this clock's time
                for alert in agent.tick(time.time_ns()):
                    give(alert)
            if control and control.poll(now):
                for alert in agent.alerter.reconsider():
                    give(alert)
                health.now()
            if reload and reload.wanted.is_set():
                health.refused = reload.read(agent, publisher)
                health.now()
            if publisher:
                publisher.check()
            watched.beat(now)
            health.beat(now)
            memory.beat(now)
    finally:
        watched.say("STOPPING=1")
        give(*agent.finish())
        if control:
            control.close()
        memory.finish()
        if publisher:
            publisher.stop()  # the broker has its last words while the disk is written
        memory.close()
    return health.counters


def _trial(agent: Agent, give: Callable[..., None], command: messages.Command, origin: Origin) -> dict[str, Any]:
    """Done for the command `test-alert`."""
    alerts = agent.alerter.trial(time.time_ns(), f"{command.by or 'somebody'}, {origin} command")
    give(*alerts)
    return {"id": alerts[0]["alert"]["context"]["botwatch"]["id"], "alerts": len(alerts)}


def _send_evidence(agent: Agent, control: Control, command: messages.Command, origin: Origin) -> dict[str, Any]:
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


def _relearn(devices: Devices, device: str) -> dict[str, Any]:
    """Done for the command `learn`."""
    try:
        known = devices.relearn(parse_mac(device))
    except ValueError:
        raise CommandRefused(f"{device}: a device is learnt under its MAC") from None
    if not known:
        raise CommandRefused(f"{device} has not been seen")
    return {"device": device, "state": "learning"}


class Reload:
    """A configuration that can be read again while running: what it says is taken up whole, or not at all.

    ``again`` reads it and gives it, or says why that cannot be done. ``wanted`` may be set from a signal handler.
    """

    def __init__(self, config: AgentConfig, again: Callable[[], "AgentConfig | str"]) -> None:
        self._config, self._again, self.wanted = config, again, threading.Event()

    def read(self, agent: Agent, publisher: "Publisher | None") -> str:
        """Read it, and have both go by it; why not, in one line that is logged, or "" when they do."""
        self.wanted.clear()
        new = self._again()
        if isinstance(new, str):
            return self._refuse(new)
        keys = changed(self._config, new)
        if fixed := [key for key in keys if key not in LIVE]:
            return self._refuse(f"{', '.join(fixed)}: changed, which needs a restart; nothing was taken up")
        told = new.alerts
        agent.alerter.change(new.site, new.names, told.update_s, told.end_s, told.max_open)
        agent.devices.rename(new.names)
        if publisher:
            publisher.change(new)
        self._config = new
        logger.info("configuration read again: %s", f"{', '.join(keys)} taken up" if keys else "nothing has changed")
        return ""

    def _refuse(self, why: str) -> str:
        logger.error("configuration refused, the one before stays: %s", why)
        return why


class ServiceNotifier:
    """Word to systemd, if it runs us (sd_notify(3)): ready, alive, stopping."""

    def __init__(self) -> None:
        where = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + where[1:] if where.startswith("@") else where
        self._every_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6 / 4
        self._next = 0.0

    def ready(self) -> None:
        """Capturing has begun."""
        self.say("READY=1")

    def beat(self, now: float) -> None:
        """The loop has come round."""
        if self._every_s and now >= self._next:
            self._next = now + self._every_s
            self.say("WATCHDOG=1")

    def say(self, text: str) -> None:
        """One message; a manager that does not listen is no reason to stop."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
                line.settimeout(0.1)
                line.sendto(text.encode(), self._address)
        except OSError as error:
            logger.warning("cannot tell systemd %s: %s", text, error)


class HealthMonitor:
    """What the agent says of itself each minute, and warnings that are worth a line in the log once."""

    def __init__(self, agent: Agent, interfaces: Interfaces, publisher: "Publisher | None") -> None:
        self._agent, self._interfaces, self._publisher = agent, interfaces, publisher
        self._next, self._frames = 0.0, 0
        self.refused = ""  # why a configuration was
        self._cpu_s, self._past, self._drops = 0.0, time.monotonic(), 0
        self._surroundings = Surroundings(interfaces.names, agent.networks, self._past)
        self.counters = self._surroundings.counters

    def look(self, rows: Rows) -> None:
        """Notice what the frames tell of how the interfaces are attached."""
        self._surroundings.look(rows)

    @property
    def _every_s(self) -> float:
        return self._publisher.health_s if self._publisher else 60.0

    def now(self) -> None:
        """Let health be due at once."""
        self._next = 0.0

    def beat(self, now: float) -> None:
        """Send health when it is due."""
        if now < self._next:
            return
        self._next = now + self._every_s
        frames, captured = self._agent.extractor.counts()["frames"], self._interfaces.count()
        self._surroundings.beat(now, frames)
        lost = captured["dropped"] + captured["interface_dropped"]
        if lost > self._drops:
            logger.warning("%d frames were dropped before they could be read, %d in all", lost - self._drops, lost)
        if self._publisher:
            health = messages.encode(self.document().document())
            self._publisher.link.retain("health", health, qos=0, expires_s=int(HEALTH_LASTS * self._every_s))
        self._frames, self._cpu_s, self._past, self._drops = frames, _cpu_s(), now, lost

    def document(self) -> messages.Health:
        """How things are now; rates are of the time since the last beat."""
        counts, captured, publisher = self._agent.counts(), self._interfaces.count(), self._publisher
        passed = max(time.monotonic() - self._past, 1e-3)
        lost = captured["dropped"] + captured["interface_dropped"] - self._drops
        taken = counts["frames"] - self._frames
        allowed = publisher.control.allowed.documents() if publisher and publisher.control else []
        return messages.Health(
            t_ns=time.time_ns(),
            pps=taken / passed,
            drop_pct=100.0 * lost / max(taken + lost, 1),
            cpu=(_cpu_s() - self._cpu_s) / passed,
            rss_mb=_resident_mb(),
            episodes_open=self._agent.alerter.open_episodes,
            interfaces_down=tuple(self._interfaces.down),
            scoring=self._agent.detector.step,
            counters=counts | captured | self.counters | (publisher.counts() if publisher else {}),
            outbox_depth=publisher.outbox.depth() if publisher else 0,
            model=self._agent.alerter.model.version,
            allowed=tuple(sorted(allowed, key=lambda entry: bool(entry["origin"] != "broker"))[:HEALTH_ENTRIES]),
            allowed_entries=len(allowed),
            config_refused=self.refused,
        )


def _cpu_s() -> float:
    """Processor seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def seen_path(state: Path) -> Path:
    """Where what devices have seen is kept: beside the state file. It is large, and good for every model."""
    return state.with_name(state.name + ".seen")


def _recall(extractor: Extractor, path: Path) -> bool:
    """Take up what devices had seen; False if the file will not do: it is moved aside, and all is new to everybody."""
    try:
        if path.stat().st_size > MAX_SEEN:
            raise FeatureStateError(f"feature state of {path.stat().st_size} bytes, the bound is {MAX_SEEN}")
        extractor.load(path.read_bytes())
    except FileNotFoundError:
        return True
    except (FeatureStateError, OSError) as error:
        aside = path.with_name(path.name + ".corrupt")
        logger.error("%s: %s; moved to %s, what devices have seen is learnt anew", path, error, aside.name)
        with suppress(OSError):
            path.replace(aside)
        return False
    return True


class LearningStore:
    """What was learnt of devices: into the log and, with a ``publisher``, to the broker and into its state.

    The disk is written by a thread of its own, so that a slow card does not hold up packets; what a write could not do,
    the next one does.
    """

    def __init__(self, agent: Agent, publisher: "Publisher | None", save_s: float) -> None:
        self._devices, self._extractor, self._publisher, self._save_s = (
            agent.devices,
            agent.extractor,
            publisher,
            save_s,
        )
        self._look = self._tell = 0.0
        self._told: tuple[object, ...] = ()
        self._told_at = -DEVICES_IDLE_S
        self._unsaved: bytes | None = None  # the newest document, for those who ask while no agent runs
        self._save = time.monotonic() + save_s
        self._writer = ThreadPoolExecutor(1, "memory") if publisher else None
        self._pending: Future[None] | None = None
        self._trouble = ""

    def beat(self, now: float) -> None:
        """Do what is due."""
        if now < self._look:
            return
        self._look = now + 1.0
        self._devices.look()
        if self._publisher is None or (self._pending and not self._pending.done()):
            return
        if now >= self._tell:
            self._tell_devices(now)
        if now >= self._save:
            self._write(now, everything=False)

    def finish(self) -> None:
        """Tell the broker the last, and begin to keep everything."""
        self._devices.look()
        if self._writer is None:
            return
        self._told = ()
        now = time.monotonic()
        self._tell_devices(now)
        self._write(now, everything=True)

    def close(self) -> None:
        """Return when everything is on the disk."""
        if self._writer is not None:
            self._writer.shutdown(wait=True)

    def _tell_devices(self, now: float) -> None:
        """Give the broker the document on devices if there is something new in it; the disk gets it with the rest."""
        assert self._publisher is not None
        self._tell = now + DEVICES_S
        said = self._devices.document(time.time_ns())
        told = tuple((d["mac"], d["state"], d["percent"], d.get("reason"), d["capped"]) for d in said["devices"])
        if told == self._told and now - self._told_at < DEVICES_IDLE_S:
            return
        self._told, self._told_at = told, now
        self._unsaved = messages.encode(said, messages.MAX_DOCUMENT)
        self._publisher.link.retain("devices", self._unsaved)

    def _write(self, now: float, everything: bool) -> None:
        assert self._writer is not None
        assert self._publisher is not None
        state, now_s = self._publisher.state, time.time()
        records, seen = self._devices.records(now_s, everything=everything), self._extractor.save_seen()
        document, self._unsaved = self._unsaved, None
        size = len(seen) + 2 * (records.size + len(document or b""))  # the database writes all twice
        self._save = now + max(self._save_s, 3600.0 * size / SAVED_AN_HOUR)

        def write() -> None:
            try:
                if records.learnt:
                    self._devices.keep(records, now_s)
                replace_file(seen_path(state.path), seen)
                if document is not None:
                    state.document_put("devices", document, now_s)
                self._trouble = ""
            except (StateError, OSError) as error:
                if str(error) != self._trouble:
                    logger.error("what was learnt could not be kept: %s", error)
                self._trouble = str(error)
            give_back_memory()  # what was packed and written, and what was needed for a while

        self._pending = self._writer.submit(write)


def _resident_mb() -> float:
    """Resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Publisher:
    """Alerts into the outbox, and from there to the broker by one thread.

    ``controlled`` says that commands are taken, too; StateError when another agent does so with the same state file.
    """

    def __init__(self, config: AgentConfig, *, controlled: bool = False):
        self._topic, self.health_s = messages.topic(config.gateway, "alert", base=config.broker.base), config.health_s
        self.state = State(config.outbox.path)
        self.outbox = Outbox(self.state, config.outbox.max_rows, config.outbox.max_bytes)
        if controlled and not self.state.claim(CLAIM_S):
            raise StateError(f"{config.outbox.path}: another agent runs with it")
        self.link = Link(
            config.broker,
            self.outbox,
            gateway=config.gateway,
            agent=version("botwatch"),
            commands=controlled and bool(config.commands),
        )
        self.control = Control(config, self.state, self.outbox, self.link) if controlled else None
        self._cut_short = self._end_what_was_open(config.alerts.end_s) if controlled else 0
        self._stop, self._stopped, self._tests = threading.Event(), 0.0, 0
        self._broken: Exception | None = None
        self._thread = threading.Thread(target=self._carry, name="link", daemon=True)

    def give(self, *alerts: Alert) -> None:
        """Keep alerts until the broker has taken them; updates may be dropped first when the outbox is full."""
        rows: list[tuple[str, bytes, bool]] = []
        stories: dict[str, tuple[str, bytes] | None] = {}
        for alert in alerts:
            ours, payload = alert["alert"]["context"]["botwatch"], messages.encode(alert)
            rows.append((self._topic, payload, ours["state"] == "update"))
            stories[ours["id"]] = None if ours["state"] == "end" else (self._topic, payload)
        self.outbox.put_all(rows, stories)
        for alert in alerts:
            if alert["alert"]["context"]["botwatch"].get("test"):
                self._tests += 1
            elif self.control:
                self.control.remember(alert)

    def _end_what_was_open(self, end_s: float) -> int:
        """End the episodes that were open when the agent before this one was killed; how many there were.

        Nobody would end them else: at the collector a device would be under alarm for good.
        """
        stories, ends, now_ns = self.outbox.unfinished(), [], time.time_ns()
        for story, topic, payload in stories:
            try:
                end = messages.encode(cut_short(messages.decode(payload), now_ns, end_s))
                ends.append((topic, end, False))
            except (KeyError, TypeError, ValueError) as error:  # of another version
                logger.error("episode %s cannot be ended, its last alert cannot be read: %r", story, error)
        self.outbox.put_all(ends, dict.fromkeys(story for story, _, _ in stories))
        if stories:
            logger.warning("the last agent ended without a word: %d episodes that were open are ended", len(stories))
        return len(stories)

    def counts(self) -> dict[str, int]:
        """What became of alerts and commands, as far as it was not as it should."""
        lost, line = self.outbox.counts, self.link.counts
        counts = {"outbox_dropped": lost.dropped, "outbox_dropped_updates": lost.dropped_updates}
        counts |= {"outbox_unwritable": lost.unwritable, "outbox_in_memory": self.outbox.unsaved()}
        counts |= {"state_damaged": self.state.damaged, "episodes_cut_short": self._cut_short}
        counts["test_alerts"] = self._tests
        if self.control:
            counts |= self.control.counts
            counts["commands_dropped"] += line.commands_lost
            counts |= {"replies": line.replies, "replies_lost": line.replies_lost}
        return counts

    def stop(self) -> None:
        """Have the line say its last words and end; `running` waits for that, `STOP_S` from now at most."""
        if not self._stop.is_set():
            self._stopped = time.monotonic()
            self._stop.set()
            self.link.wake()

    def check(self) -> None:
        """StateError when alerts are no longer carried: an agent that goes on would be silent for good."""
        if self._broken:
            raise StateError(f"delivery has ended: {self._broken}") from self._broken

    def _carry(self) -> None:
        try:
            self.link.run(self._stop)
        except Exception as error:
            if isinstance(error, StateError) and self._stop.is_set():
                return  # the end has not waited for us, and closed the state
            logger.exception("delivery has ended")
            self._broken = error

    def change(self, config: AgentConfig) -> None:
        """Go by another configuration, whose `config.LIVE` keys may differ."""
        self.health_s = config.health_s
        if self.control:
            self.control.change(config)

    def line(self) -> dict[str, Any]:
        """How the line to the broker is, for `status`."""
        link = self.link
        return {
            "address": link.config.address,
            "connected": link.connected,
            "protocol": link.protocol,
            "trouble": link.trouble,
        }

    @contextmanager
    def running(self) -> Iterator["Publisher"]:
        """Connect and ship until the block ends; what the broker did not take stays in the outbox."""
        self._thread.start()
        try:
            yield self
        finally:
            self.stop()
            self._thread.join(max(self._stopped + STOP_S - time.monotonic(), 0.0))
            if self._thread.is_alive():
                logger.info("not waiting for %s; what it has not taken is kept", self.link.config.address)
            if left := self.outbox.save():
                logger.error("%d alerts are lost: the broker has not taken them and the disk does not", left)
            self.state.close()


def report(counts: dict[str, int], seconds: float) -> Iterable[str]:
    """The closing lines of a replay: what everybody asks for, then whatever else was counted."""
    rate = counts["frames"] / seconds if seconds else 0.0
    yield f"{counts['frames']:,} packets in {seconds:.2f} s ({rate:,.0f} packets/s)"
    evicted = sum(value for key, value in counts.items() if "evicted" in key)
    first = {key: counts[key] for key in ("rows", "malformed", "devices")} | {"evicted": evicted}
    rest = {key: value for key, value in counts.items() if value and key not in first and key != "frames"}
    yield ", ".join(f"{key} {value:,}" for key, value in (first | rest).items())
