"""`botwatch agent check`: looks for everything that keeps an agent from working on this machine, and names a remedy.

Files are tried as the service finds them if root asks about the configuration of the service that is installed here.

Nothing is changed. Packets are sent to the broker only, to which it connects with the agent's own credentials. Where an
agent is running, that one is asked instead. An agent that is not seen (on another machine, with another state file)
keeps its connection, because the client id is another one.
"""

import os
import pwd
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from edge_agent.capture.attach import merging, way_out
from edge_agent.capture.sources import ABSENT, DOWN, CaptureError, Interfaces
from edge_agent.config import AUTO, AgentConfig
from edge_agent.contract import credentials
from edge_agent.contract.broker import FILES, BrokerConfig, BrokerError, FileKey, explain
from edge_agent.contract.bundle import Bundle
from edge_agent.contract.certificate import Certificate
from edge_agent.contract.cli import UNLIMITED, wrapped
from edge_agent.contract.localtime import local_time
from edge_agent.control import CommandRefused
from edge_agent.identity import resolve_or_reason
from edge_agent.mqtt import probe
from edge_agent.orders import agent_runs, order
from edge_agent.sandbox import UNIT, UNIT_FOLDERS, Service, installed
from edge_agent.state import StateError
from edge_agent.system import synchronised

EXPIRY_DAYS = 30
"""A certificate that expires within this many days causes a warning."""


@dataclass(frozen=True)
class Finding:
    """The result of one check: good, wrong, or good with a warning; ``text`` has the remedy."""

    what: str
    wrong: bool
    text: str
    warn: bool = False

    @property
    def state(self) -> str:
        """The result in one word."""
        return "wrong" if self.wrong else "warning" if self.warn else "ok"

    def lines(self, width: int = UNLIMITED) -> list[str]:
        """Return it as lines of at most ``width`` characters."""
        mark = "WRONG" if self.wrong else "warn" if self.warn else "ok"
        return wrapped(f"{self.what}: {self.text}", width, " " * 9, f"{mark:5}  ")


def summary(findings: Sequence[Finding]) -> str:
    """Return the line that ends the list of all findings."""
    wrong, warnings = (sum(finding.state == state for finding in findings) for state in ("wrong", "warning"))
    return f"{wrong} wrong, {warnings} warning{'' if warnings == 1 else 's'}, {len(findings) - wrong - warnings} ok"


def document(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return all findings as a JSON object."""
    listed = [{"what": finding.what, "state": finding.state, "text": finding.text} for finding in findings]
    states = [finding.state for finding in findings]
    return {"wrong": states.count("wrong"), "warnings": states.count("warning"), "findings": listed}


def findings(
    config: AgentConfig, bundle: Bundle | str, source: Path | None = None, units: Iterable[Path] = UNIT_FOLDERS
) -> Iterator[Finding]:
    """Check everything, one after the other. ``bundle`` may be the reason why it cannot be used.

    ``source`` is the file of the configuration; a service is looked for in the folders ``units``.
    """
    yield Finding("configuration", False, f"{len(config.networks)} monitored networks")
    config, nameless = resolve_or_reason(config)
    if nameless:
        yield Finding("gateway", True, nameless.removeprefix("gateway: "))
    else:
        yield Finding("gateway", False, f"{config.gateway} ({config.gateway_origin})")
    service, whose = _view(source, units)
    yield Finding("view", False, whose)
    if service:
        yield from _installation(service)
    if isinstance(bundle, Bundle) and service and config.bundle and (why := _closed_bundle(service, config.bundle)):
        yield Finding("bundle", True, f"{why}; `install.sh --bundle {config.bundle}` copies it to /etc/botwatch/bundle")
    elif isinstance(bundle, Bundle):
        origin = ", trained on generated traffic" if bundle.manifest.generated else ""
        whose = "" if config.bundle else ", which comes with botwatch"
        yield Finding("bundle", False, f"model {bundle.manifest.version}{whose}, self-test passed{origin}")
    else:
        yield Finding("bundle", True, bundle)
    if not config.capture.interfaces:
        yield Finding("interfaces", True, "none is configured: set capture.interfaces, e.g. [br0]")
    for name in config.capture.interfaces:
        yield from _interface(name, config)
    if len(config.capture.interfaces) > 1:
        for name in sorted(way_out() & set(config.capture.interfaces)):
            text = "leads to the internet, where all devices have one address behind NAT: remove it from "
            yield Finding(name, True, text + "capture.interfaces")
    yield from _broker(config, service)
    yield _clock(bundle)
    yield from _disks(config, service)


def _view(source: Path | None, units: Iterable[Path]) -> tuple[Service | None, str]:
    """Return the service if files can be tried as it finds them, and in words as whom they are tried."""
    service = installed(units)
    if service is None:
        return None, f"files are tried as {_me()}; no {UNIT} is installed here"
    if source is None or source.resolve() != service.config.resolve():
        return None, f"files are tried as {_me()}; {UNIT} has another configuration, {service.config}"
    if os.geteuid() != 0:
        return None, f"files are tried as {_me()}; only root can try them as {UNIT} finds them"
    return service, service.whose()


def _me() -> str:
    try:
        return f"user {pwd.getpwuid(os.geteuid()).pw_name}"
    except KeyError:
        return f"user {os.geteuid()}"


def _installation(service: Service) -> Iterator[Finding]:
    """Check that the service can read its program and configuration, which need no findings of their own otherwise."""
    if not service.program.exists():
        yield Finding("program", True, f"{service.program} does not exist: `install.sh --wheels DIR` installs it")
        return
    modules = service.program.parent.parent.glob("lib/python3*/site-packages/edge_agent/__init__.py")
    if why := service.unreadable(service.program, *modules):
        folder = service.program.parent.parent
        yield Finding("program", True, f"{why}: `chmod -R go+rX {folder}`")
    if why := service.no_credentials():
        yield Finding("credentials", True, why)
    if why := service.unreadable(service.config):
        yield Finding("configuration", True, f"{why}: `chmod 755 {service.config.parent}; chmod 644 {service.config}`")


def _closed_bundle(service: Service, bundle: Path) -> str:
    return service.unreadable(bundle) or service.unreadable(*(bundle / name for name in sorted(os.listdir(bundle))))


def _interface(name: str, config: AgentConfig) -> Iterator[Finding]:
    try:
        with Interfaces([name], config.capture.live()) as interfaces:
            [now] = interfaces.states()
    except CaptureError as error:
        yield Finding(name, True, str(error))
        return
    if not now.captured:
        remedy = {ABSENT: "; see `ip link`", DOWN: f"; `ip link set {name} up`"}.get(now.reason, "")
        waits = "`run` waits for it" if now.reason in (ABSENT, DOWN) else "`run` tries again"
        yield Finding(name, True, f"{now.reason}{remedy}; {waits}")
        return
    if now.reason:
        yield Finding(name, False, f"packets can be captured, but {now.reason}: none come", warn=True)
    else:
        yield Finding(name, False, "packets can be captured")
    try:
        merged = merging(name, inbound=config.capture.live().inbound)
    except OSError as error:
        text = f"it is unknown whether it merges frames ({error.strerror}); `run` counts merged frames that it sees"
        yield Finding(name, False, text)
        return
    if merged:
        off = "; ".join(
            f"`ethtool -K {interface} {' '.join(f'{feature} off' for feature in features)}`"
            for interface, features in merged.items()
        )
        yield Finding(name, True, f"merges frames, which falsifies sizes and rates: {off} (at every boot)")
    else:
        yield Finding(name, False, "does not merge frames")


def _broker(config: AgentConfig, service: Service | None) -> Iterator[Finding]:
    """Check the files that a connection needs, then the broker itself with the agent's own credentials."""
    broker, what = config.broker, f"broker {config.broker.address}"
    for key in FILES:
        if getattr(broker, key):
            yield _file(broker, key, service)
    try:
        if agent_runs(config):
            reply, _ = order(config, "status", {})
            line = (reply.result or {}).get("broker", {})
            if line.get("connected") and not line["trouble"]:
                yield Finding(what, False, f"the running agent is connected, MQTT {line['protocol']}")
            else:
                why = line.get("trouble") or "no connection yet"
                yield Finding(what, True, f"the running agent cannot deliver: {why}{_remedy(why)}")
            return
        if service and (why := service.unreachable(broker.host, broker.port)):
            remedy = f"`systemctl edit {UNIT}` with the lines [Service] and IPAddressAllow=ADDRESS"
            yield Finding(what, True, f"{why}: {remedy}")
            return
        version = probe(broker, config.gateway)
        secured = "with TLS" if broker.tls else "without TLS"
        if config.gateway == AUTO:
            text = f"answers, MQTT {version}, {secured}; it was not asked as this gateway, which has no id"
            yield Finding(what, True, text)
            return
        yield Finding(what, False, f"accepts {broker.username or config.gateway}, MQTT {version}, {secured}")
    except (CommandRefused, StateError) as error:
        yield Finding(what, True, f"the running agent cannot be asked: {error}")
    except (BrokerError, OSError) as error:
        why = explain(error)
        yield Finding(what, True, f"{why}{_remedy(why)}; alerts would wait in {config.outbox.path}")


_REMEDIES = (
    ("Client identifier not valid", "the broker must allow the client id of the agent, also with -check behind it"),
    ("Bad user name or password", "see broker.username and broker.password_file, and the broker's own list"),
    (
        "refuses alerts",
        "the broker's access list must let this gateway publish there. If its id was changed, these are alerts from "
        "before: they wait until the broker accepts them or outbox.max_rows is reached, and hold up no others",
    ),
    ("Not authorized", "see broker.username, broker.password_file or the certificate, and the broker's own list"),
    ("connection refused", "does it run, and on that port? see broker.host and broker.port"),
    ("no answer", "is it an MQTT broker? with TLS, set broker.tls"),
    ("closed the connection before it answered", "does it want TLS? see broker.tls"),
    ("timed out", "see broker.host, and the firewall in between"),
    ("certificate is not accepted", "see broker.ca_file, and whether broker.host is the name in its certificate"),
    ("another client uses the client id", "give each gateway an id of its own: see gateway and broker.client_id"),
    ("set aside", "see the size limits of the broker: max_packet_size or message_size_limit of mosquitto"),
    ("has no subscriber for alerts", "start a collector: `botwatch collector serve`"),
)


def _remedy(why: str) -> str:
    """Return what to do about a broker's answer, in brackets, or ""."""
    return next((f" ({remedy})" for mark, remedy in _REMEDIES if mark.lower() in why.lower()), "")


def _file(broker: BrokerConfig, key: FileKey, service: Service | None) -> Finding:
    """Check one of the files that a connection needs, also as the service finds it."""
    value: Path = getattr(broker, key)
    name = credentials.name_of(value)
    try:
        path = broker.file(key) or value
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text(encoding="ascii", errors="replace") if key in ("cert_file", "ca_file") else ""
    except BrokerError as error:
        return Finding(key, True, str(error).removeprefix(f"{key} "))
    except OSError as error:
        return Finding(key, True, f"{value}: {explain(error)}")
    secret = key in ("key_file", "password_file")
    opened = f"{path} can be read or written by others ({mode:04o})" if secret and mode & 0o027 else ""
    if service and (why := service.no_credential(name) if name else opened or service.unreadable(value)):
        move = f"; move it to {credentials.FOLDER} and write {key}: {credentials.PREFIX}{value.name}"
        return Finding(key, True, why if name else why + move)
    if opened:
        return Finding(key, True, f"{opened}: `chmod 600 {path}`")
    return Finding(key, False, f"{value} ({mode:04o})") if secret else _certificate(key, value, text)


def _certificate(key: str, path: Path, text: str) -> Finding:
    try:
        until = Certificate.read(text).not_after_s
    except ValueError as error:
        return Finding(key, True, f"{path}: holds no certificate in PEM form ({error})")
    when, left = local_time(int(until) * 10**9), (until - time.time()) / 86_400
    if left < 0:
        return Finding(key, True, f"{path} expired on {when}: renew it")
    if left < EXPIRY_DAYS:
        return Finding(key, False, f"{path} expires in {left:.0f} days, on {when}: renew it", warn=True)
    return Finding(key, False, f"{path} is valid until {when}")


def _clock(bundle: Bundle | str) -> Finding:
    now = time.time()
    text = local_time(time.time_ns())
    remedy = "set it over NTP (`timedatectl set-ntp true`)"
    if isinstance(bundle, Bundle):
        created = datetime.fromisoformat(bundle.manifest.created).timestamp()
        if now < created - 86_400:
            return Finding(
                "clock", True, f"{text} is before the bundle was made ({local_time(int(created * 1e9))}); {remedy}"
            )
    if not 2025 <= time.gmtime(now).tm_year < 2100:
        return Finding("clock", True, f"{text} cannot be right; {remedy}")
    if synchronised() is False:
        why = "alerts may have wrong times, and certificates may be refused"
        return Finding("clock", False, f"{text}, not synchronised: {why}; {remedy}", warn=True)
    return Finding("clock", False, text + (", synchronised" if synchronised() else ""))


def _is_folder(path: Path) -> bool:
    """True if there is a folder, or something that this user may not even look at."""
    try:
        return path.is_dir()
    except OSError:
        return True


def _disk(what: str, folder: Path, path: Path, wanted: int, service: Service | None) -> Finding:
    """Check that ``path`` in ``folder`` can be written, up to ``wanted`` bytes."""
    made = ""
    if service and path.is_relative_to(service.state) and not _is_folder(service.state):
        made = f"systemd makes {service.state} when the service starts; "
        folder = next(parent for parent in service.state.parents if _is_folder(parent))
    elif not _is_folder(folder):
        return Finding(what, True, f"{folder} does not exist: `mkdir -p {folder}`")
    elif service and (why := _closed_state(service, path)):
        return Finding(what, True, why)
    elif not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        remedy = "run this as root or as the agent's user, or `chown` it to the agent's user"
        return Finding(what, True, f"{path} cannot be written by this user: {remedy}")
    free = shutil.disk_usage(folder).free
    if free < wanted:
        return Finding(
            what,
            True,
            f"{free >> 20} MB are free in {folder}, {wanted >> 20} may be needed: make room, or lower the bound",
        )
    return Finding(what, False, f"{made}{folder}, {free >> 20:,} MB are free")


def _closed_state(service: Service, path: Path) -> str:
    """Return why the service cannot write a file of its state, with what SQLite stores beside it, and the remedy."""
    inside = path.is_relative_to(service.state)
    for file in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))):
        if why := service.unwritable(file):
            remedy = f"`chown -R --reference={service.state} {file}`" if inside else f"name a path in {service.state}"
            return f"{why}: {remedy}"
    return ""


def _disks(config: AgentConfig, service: Service | None) -> Iterator[Finding]:
    path, evidence = config.outbox.path, config.evidence
    yield _disk("disk", path.absolute().parent, path, config.outbox.max_bytes, service)
    if evidence.path is not None:
        folder = evidence.path.absolute()
        above = next(parent for parent in (folder, *folder.parents) if _is_folder(parent))  # `run` creates the others
        yield _disk("evidence", above, folder, evidence.max_mb << 20, service)
