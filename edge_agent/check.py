"""`botwatch agent check`: what stands between this machine and a working agent, each with its remedy.

Nothing is changed and nothing is sent but a connection to the broker.
"""

import os
import select
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from edge_agent.attach import merging, way_out
from edge_agent.capture import CaptureError, Interfaces
from edge_agent.config import AgentConfig
from edge_agent.contract.broker import BrokerError, explain, last_words
from edge_agent.contract.bundle import Bundle

_FREE_BYTES = 64 << 20
_LAST_WORDS_S = 0.5  # how long a broker may take to say, TLS being up, what is wrong with our certificate


@dataclass(frozen=True)
class Finding:
    """One thing looked at: good, or wrong with what to do."""

    what: str
    wrong: bool
    said: str

    def line(self) -> str:
        """For a terminal."""
        return f"{'WRONG' if self.wrong else 'ok':5}  {self.what}: {self.said}"


def findings(config: AgentConfig, bundle: Bundle | str) -> Iterator[Finding]:
    """Look at everything, one after the other. ``bundle``, or why it cannot be used."""
    yield Finding("configuration", False, f"gateway {config.gateway}, {len(config.networks)} monitored networks")
    if isinstance(bundle, Bundle):
        told = ", trained on generated traffic" if bundle.manifest.generated else ""
        yield Finding("bundle", False, f"model {bundle.manifest.version}, self-test passed{told}")
    else:
        yield Finding("bundle", True, bundle)
    if not config.capture.interfaces:
        yield Finding("interfaces", True, "none: set capture.interfaces, e.g. [br0]")
    for name in config.capture.interfaces:
        yield from _interface(name, config)
    if len(config.capture.interfaces) > 1:
        for name in sorted(way_out() & set(config.capture.interfaces)):
            said = "leads to the internet; behind NAT its frames are of no device: leave it out of capture.interfaces"
            yield Finding(name, True, said)
    yield _broker(config)
    yield _clock(bundle)
    yield _disk(config.outbox.path)


def _interface(name: str, config: AgentConfig) -> Iterator[Finding]:
    try:
        with Interfaces([name], config.capture.live()):
            yield Finding(name, False, "can be captured on")
    except CaptureError as error:
        there = Path("/sys/class/net", name).exists()
        remedy = f"`ip link set {name} up`" if there and "up" in str(error) else "" if there else "see `ip link`"
        yield Finding(name, True, f"{error}{'; ' + remedy if remedy else ''}")
        return
    try:
        merged = merging(name, inbound=config.capture.live().inbound)
    except OSError as error:
        said = f"does not say whether it merges frames ({error.strerror}); `run` counts those it sees"
        yield Finding(name, False, said)
        return
    if merged:
        off = "; ".join(
            f"`ethtool -K {interface} {' '.join(f'{feature} off' for feature in features)}`"
            for interface, features in merged.items()
        )
        yield Finding(name, True, f"merges frames, which falsifies sizes and rates: {off} (at every boot)")
    else:
        yield Finding(name, False, "merges no frames")


def _broker(config: AgentConfig) -> Finding:
    broker, what = config.broker, f"broker {config.broker.address}"
    try:
        tls = broker.tls_context()
        broker.password()
        with socket.create_connection((broker.host, broker.port), broker.connect_timeout_s) as line:
            if tls is None:
                return Finding(what, False, "can be reached, without TLS")
            with tls.wrap_socket(line, server_hostname=broker.host) as secured:
                select.select([secured], [], [], _LAST_WORDS_S)
                if said := last_words(secured):
                    return Finding(what, True, f"{said}; alerts would wait in {config.outbox.path}")
                return Finding(what, False, f"can be reached, {secured.version()}")
    except BrokerError as error:
        return Finding(what, True, str(error))
    except OSError as error:
        return Finding(what, True, f"{explain(error)}; alerts would wait in {config.outbox.path}")


def _clock(bundle: Bundle | str) -> Finding:
    now = time.time()
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if isinstance(bundle, Bundle):
        created = datetime.fromisoformat(bundle.manifest.created).timestamp()
        if now < created - 86_400:
            remedy = "let it be set over NTP (`timedatectl set-ntp true`)"
            return Finding("clock", True, f"{text} is before the bundle was made ({bundle.manifest.created}); {remedy}")
    return Finding("clock", False, text)


def _disk(path: Path) -> Finding:
    folder = path.absolute().parent
    if not folder.is_dir():
        return Finding("disk", True, f"{folder} is not there: `mkdir -p {folder}`")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        return Finding("disk", True, f"{path} cannot be written by this user")
    free = shutil.disk_usage(folder).free
    if free < _FREE_BYTES:
        return Finding("disk", True, f"{free >> 20} MB free in {folder}, the outbox may need {_FREE_BYTES >> 20}")
    return Finding("disk", False, f"{folder}, {free >> 20:,} MB free")
