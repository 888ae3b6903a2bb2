"""`botwatch agent support`: writes one archive with what somebody needs in order to help, and without secrets.

Its members are chosen here, one by one. No file is copied: even the configuration is written anew from the settings
that were read. Passwords and keys are in files of their own, which it names and does not contain. Should one of these
secrets occur in another place, where none belongs, it is struck out of every member all the same.
"""

import dataclasses
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from edge_agent import check, orders
from edge_agent.config import AgentConfig
from edge_agent.contract import replies
from edge_agent.contract.broker import BrokerError, FileKey
from edge_agent.contract.bundle import Bundle
from edge_agent.contract.settings import STRUCK, without_password
from edge_agent.control import CommandRefused
from edge_agent.state import StateError

MAX_MEMBER = 256 << 10
"""Bytes of one member at most; of a longer log the end is written."""

LOG_LINES = 500
_SHORTEST = 4
"""Characters of the shortest secret that is struck out: striking out shorter ones would leave nothing readable."""

_PACKAGES = ("botwatch", "numpy", "paho-mqtt", "PyYAML", "ai-edge-litert", "tflite-runtime")


def write(config: AgentConfig, bundle: Bundle | str, out: Path, source: Path | None) -> list[str]:
    """Write the archive (tar, gzip) to ``out``, which only its owner may read, and return the names of its members.

    ``bundle`` may be the reason why it cannot be used; ``source`` is the file of the configuration. OSError when the
    archive cannot be written.
    """
    secrets, names, now = _secrets(config), [], int(time.time())
    part = out.with_name(out.name + ".part")
    try:
        private = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(private, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, text in _members(config, bundle, source):
                content = _struck(text, secrets).encode("utf-8", "replace")[-MAX_MEMBER:]
                member = tarfile.TarInfo(f"botwatch-support/{name}")
                member.size, member.mtime, member.mode = len(content), now, 0o600
                archive.addfile(member, io.BytesIO(content))
                names.append(name)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return names


def _members(config: AgentConfig, bundle: Bundle | str, source: Path | None) -> Iterator[tuple[str, str]]:
    settings = _plain(dataclasses.asdict(config))
    yield (
        "config.yaml",
        yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=1 << 20),
    )  # no line is folded
    found = list(check.findings(config, bundle, source))
    checked = [line for finding in found for line in finding.lines()]
    yield "check.txt", "\n".join([*checked, check.summary(found)]) + "\n"
    yield "versions.txt", _versions(bundle)
    yield from _status(config)
    yield "machine.txt", _machine(config)
    yield "log.txt", _output("journalctl", "-u", "edge-agent", "-n", str(LOG_LINES), "--no-pager", "-o", "short-iso")


def _secrets(config: AgentConfig) -> list[str]:
    """Return what must not be in the archive, longest first: the password, and each line of the private key."""
    secrets = set()
    keys: tuple[FileKey, ...] = ("password_file", "key_file")
    for key in keys:
        try:
            path = config.broker.file(key)
            text = path.read_text(encoding="utf-8-sig", errors="replace")[:65_536] if path else ""
        except (BrokerError, OSError):
            continue
        secrets |= {line.strip() for line in text.splitlines()}
    return sorted((s for s in secrets if len(s) >= _SHORTEST and not s.startswith("-----")), key=len, reverse=True)


def _struck(text: str, secrets: list[str]) -> str:
    """Return ``text`` without secrets, also where JSON or YAML spell them differently, and without those of URLs."""
    for secret in secrets:
        spelt = {secret, secret.replace("'", "''"), *(json.dumps(secret, ensure_ascii=a)[1:-1] for a in (True, False))}
        for form in sorted(spelt, key=len, reverse=True):
            text = text.replace(form, STRUCK)
    return without_password(text)


def _plain(value: Any) -> Any:
    """Return ``value`` in the types that YAML has."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _versions(bundle: Bundle | str) -> str:
    lines = [f"python {platform.python_version()}", f"kernel {platform.release()} {platform.machine()}"]
    for package in _PACKAGES:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    used = f"bundle {bundle}"
    if isinstance(bundle, Bundle):
        used = f"bundle {bundle.manifest.version}, manifest sha256 {bundle.sha256}, created {bundle.manifest.created}"
    return "\n".join([*lines, used, *_release()]) + "\n"


def _release() -> list[str]:
    try:
        return [line for line in Path("/etc/os-release").read_text().splitlines() if line.startswith("PRETTY_NAME")]
    except OSError:
        return []


def _status(config: AgentConfig) -> Iterator[tuple[str, str]]:
    """Yield the state of the running agent, or what the last one left, for people and as JSON."""
    try:
        reply, running = orders.order(config, "status", {})
    except (CommandRefused, StateError, BrokerError) as error:
        yield "status.json", json.dumps({"error": str(error)})
        return
    yield "status.txt", "\n".join(replies.lines(reply, running, utc=True)) + "\n"
    document = {"running": running, "error": reply.error, **(reply.result or {})}
    yield "status.json", json.dumps(document, indent=1, ensure_ascii=False)


def _machine(config: AgentConfig) -> str:
    """Return memory, load, disks and interfaces of this machine."""
    parts = []
    for file in ("/proc/meminfo", "/proc/loadavg", "/proc/uptime", "/proc/net/dev"):
        try:
            parts.append(f"== {file}\n{Path(file).read_text()}")
        except OSError as error:
            parts.append(f"== {file}\n{error.strerror}\n")
    for folder in {config.outbox.path.absolute().parent, (config.evidence.path or Path()).absolute().parent}:
        if os.access(folder, os.R_OK | os.X_OK):
            usage = shutil.disk_usage(folder)
            parts.append(f"== {folder}\n{usage.free >> 20} MB free of {usage.total >> 20}\n")
    parts.append("== ip address\n" + _output("ip", "-br", "address"))
    parts.append("== ip link\n" + _output("ip", "-s", "link"))
    return "\n".join(parts)


def _output(*command: str) -> str:
    """Return the output of a program of this machine; it may be missing, nothing depends on it."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}\n"
    return done.stdout + done.stderr
