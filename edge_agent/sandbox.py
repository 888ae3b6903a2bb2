"""The service as it is installed here: as which user it runs, which folders it does not see, and where it may write.

`botwatch agent check` is typed by root, who may read everything. What root finds in order may still be out of reach of
the service, so its files are tried as its user, and looked for as its unit lets it look. The unit is read from its file
and drop-ins: of each key the last value counts, as for systemd; systemd itself need not run.
"""

import grp
import os
import pwd
import re
import shlex
import socket
import stat
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import pairwise
from pathlib import Path

from edge_agent.contract import credentials

UNIT = "edge-agent.service"
UNIT_FOLDERS = tuple(map(Path, ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system")))
"""Folders of units, the one that wins first (systemd.unit(5))."""

_DYNAMIC_UID = 61_184
"""A user of those that systemd gives to DynamicUser= services; it owns no file that the service did not make."""

_MOST_LINKS = 40
_CREDENTIAL_BYTES = 1 << 20
"""Size of all credentials of a service at most (systemd.exec(5))."""

_NETWORKS = {
    "any": ("0.0.0.0/0", "::/0"),
    "localhost": ("127.0.0.0/8", "::1/128"),
    "link-local": ("169.254.0.0/16", "fe80::/64"),
    "multicast": ("224.0.0.0/4", "ff00::/8"),
}
"""Names that IPAddressAllow= has for networks (systemd.resource-control(5))."""


@dataclass(frozen=True)
class Service:
    """The installed service: its user, the folders hidden from it, and what else its unit says."""

    user: str  # in words
    uid: int
    gid: int
    groups: tuple[int, ...]
    config: Path  # of its ExecStart=
    program: Path
    hidden: Mapping[Path, str]  # folder -> the key of the unit that hides it
    state: Path
    writable: tuple[Path, ...]  # the state folder among them
    loads: tuple[str, ...]  # of LoadCredential=
    allowed: tuple[IPv4Network | IPv6Network, ...] | None  # networks that it may reach; None: all

    def whose(self) -> str:
        """Return in words as whom files are tried."""
        without = f", which does not see {', '.join(map(str, self.hidden))}" if self.hidden else ""
        return f"files are tried as {UNIT} finds them: as {self.user}{without}"

    def seen(self, path: Path) -> Path:
        """Return a path of the configuration as the service has it: a relative one begins in its state folder."""
        return self.state / path

    def hides(self, path: Path) -> str:
        """Return why the service does not see ``path``, "" if it does; each step of symbolic links counts."""
        steps, left = 0, self.seen(path)
        while steps < _MOST_LINKS:
            for folder, key in self.hidden.items():
                if left.is_relative_to(folder):
                    return f"the service does not see {folder} ({key} in {UNIT})"
            link = next((p for p in reversed((left, *left.parents)) if p.is_symlink()), None)
            if link is None:
                break
            left = Path(os.path.normpath(link.parent / link.readlink() / left.relative_to(link)))
            steps += 1
        return ""

    def unreadable(self, *paths: Path) -> str:
        """Return why the service cannot read one of these files or folders, "" if it can read all of them."""
        for path in paths:
            if reason := self.hides(path):
                return f"{path}: {reason}"
        return self._denied("-r", paths)

    def unwritable(self, path: Path) -> str:
        """Return why the service cannot write into a file or folder, which need not exist, "" if it can."""
        path = self.seen(path)
        if not any(path.is_relative_to(folder) for folder in self.writable):
            return f"{path}: the service can write below {' and '.join(map(str, self.writable))} only"
        return self._denied("-w", [path]) if path.exists() else ""

    def unreachable(self, host: str, port: int) -> str:
        """Return why the service may not connect to a host, "" if it may or if the host has no address now."""
        if self.allowed is None:
            return ""
        where = f"none of the networks that the service may reach (IPAddressAllow= in {UNIT})"
        servers = _name_servers(host)
        if servers and not any(map(self._may_reach, servers)):
            return f"the name server {servers[0]} is in {where}"
        try:
            found = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        except OSError:
            return ""
        return "" if not found or any(map(self._may_reach, found)) else f"{min(found)} is in {where}"

    def _may_reach(self, address: str) -> bool:
        return any(ip_address(address.partition("%")[0]) in network for network in self.allowed or ())

    def no_credential(self, name: str) -> str:
        """Return why systemd does not hand the credential ``name`` to the service, "" if it does."""
        path = credentials.FOLDER / name
        ids = {entry.partition(":")[0] for entry in self.loads}
        if name in ids:  # by a drop-in; where it comes from is that one's matter
            return ""
        if f"{credentials.ID}:{credentials.FOLDER}" not in self.loads:
            return f"{UNIT} does not load {credentials.FOLDER}: install it again"
        try:
            status = path.lstat()
        except OSError as error:
            return f"{path}: {(error.strerror or str(error)).lower()}"
        if not stat.S_ISREG(status.st_mode):
            return f"{path} is not a regular file: systemd loads no links and folders from there; copy the file itself"
        return ""

    def no_credentials(self) -> str:
        """Return why systemd cannot load the folder of credentials, so that the service does not start, or ""."""
        folder = credentials.FOLDER
        if f"{credentials.ID}:{folder}" not in self.loads:
            return ""
        if not folder.is_dir():
            return f"{folder} does not exist, and {UNIT} does not start without it: `mkdir -m 700 {folder}`"
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
        for path in files:
            name = "_".join((credentials.ID, *path.relative_to(folder).parts))
            if len(name) > 255 or not re.fullmatch("[ -~]+", name) or ":" in name:
                return f"{path}: a name that systemd refuses, so that {UNIT} does not start; rename it, with a-z only"
        if (size := sum(path.stat().st_size for path in files)) > _CREDENTIAL_BYTES:
            most = f"more than the {_CREDENTIAL_BYTES:,} that systemd loads, so that {UNIT} does not start"
            return f"the files in {folder} have {size:,} bytes, {most}; move the large ones elsewhere"
        return ""

    def _denied(self, flag: str, paths: Iterable[Path]) -> str:
        """Try files as the user of the service; return which one is closed to it, and by which folder, or ""."""
        for path in paths:
            real, state = self.seen(path).resolve(), self.state.resolve()
            # systemd mounts the state folder for the service, which may be below a folder that is root's alone.
            base = state if real.is_relative_to(state) and state.is_dir() else Path("/")
            steps = [folder for folder in reversed(real.parents) if folder != base and folder.is_relative_to(base)]
            tries = [*((folder, "-x") for folder in (base, *steps)), (real, flag)]
            tries += [(real, "-x")] if real.is_dir() else []
            words = [word for tried, letter in tries for word in (letter, f"./{tried.relative_to(base)}")]
            # test(1) asks the kernel with the rights of this user, which include those of access control lists.
            script = 'while [ $# -gt 0 ]; do [ "$1" "$2" ] || exec echo "$2"; shift 2; done'
            try:
                done = subprocess.run(
                    ["/bin/sh", "-c", script, "sh", *words],
                    user=self.uid,
                    group=self.gid,
                    extra_groups=self.groups,
                    cwd=base,
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
            except (OSError, subprocess.SubprocessError) as error:  # no shell, or no right to become that user
                return f"{path}: it could not be tried as the service's user: {error}"
            if closed := done.stdout.rstrip("\n"):
                return _closed(base / closed, path, "write" if flag == "-w" else "read")
        return ""


def _closed(closed: Path, path: Path, verb: str) -> str:
    """Return in words that the service may not use ``path`` because of ``closed``: itself or a folder above it."""
    try:
        status = closed.stat()
    except OSError as error:
        return f"{path}: {(error.strerror or str(error)).lower()}"
    owner = f"{closed} has mode {stat.S_IMODE(status.st_mode):04o} and belongs to uid {status.st_uid}"
    return f"{path}: the service's user may not {verb} it, because {owner}"


def installed(folders: Iterable[Path] = UNIT_FOLDERS) -> Service | None:
    """Return the service as it is installed on this machine, None if it is not."""
    folders = tuple(folders)
    unit = next((path for folder in folders if (path := folder / UNIT).is_file()), None)
    if unit is None:
        return None
    drop_ins: dict[str, Path] = {}
    for folder in reversed(folders):
        drop_ins |= {path.name: path for path in (folder / f"{UNIT}.d").glob("*.conf")}
    keys = _keys([unit, *(path for _, path in sorted(drop_ins.items()))])
    words = shlex.split(_last(keys, "ExecStart"))
    if not words:
        return None
    config = next((after for word, after in pairwise(words) if word == "--config"), "")
    names = _words(keys, "StateDirectory")
    state = Path("/var/lib") / (names[0] if names else "")
    writable = [state, *(Path(text.lstrip("+-")) for text in _words(keys, "ReadWritePaths"))]
    if _last(keys, "ProtectSystem") != "strict" and not _on(keys, "DynamicUser"):
        writable = [Path("/")]
    hidden: dict[Path, str] = {}
    for key, paths in (("ProtectHome", ("/home", "/root", "/run/user")), ("PrivateTmp", ("/tmp", "/var/tmp"))):  # noqa: S108
        if _on(keys, key) or _last(keys, key) == "tmpfs" or (key == "PrivateTmp" and _on(keys, "DynamicUser")):
            hidden |= {Path(path): f"{key}=" for path in paths}
    hidden |= {Path(text.lstrip("+-")): "InaccessiblePaths=" for text in _words(keys, "InaccessiblePaths")}
    user, uid, gid, groups = _user(keys, state)
    return Service(
        user=user,
        uid=uid,
        gid=gid,
        groups=groups,
        config=Path(config),
        program=Path(words[0].lstrip("@-:+!")),
        hidden=hidden,
        state=state,
        writable=tuple(writable),
        loads=tuple(_words(keys, "LoadCredential")),
        allowed=_allowed(keys),
    )


def _name_servers(host: str) -> list[str]:
    """Return the name servers that the C library asks for a host; [] for an address and for a name in /etc/hosts."""
    if _is_address(host):
        return []
    try:
        hosts, servers = (Path(file).read_text(errors="replace") for file in ("/etc/hosts", "/etc/resolv.conf"))
    except OSError:
        return []
    if any(host.lower() in line.partition("#")[0].lower().split()[1:] for line in hosts.splitlines()):
        return []
    return [text for text in re.findall(r"^nameserver[ \t]+(\S+)", servers, re.MULTILINE) if _is_address(text)]


def _is_address(text: str) -> bool:
    try:
        ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _keys(files: Iterable[Path]) -> dict[str, list[str]]:
    """Return the values of each key of a unit and its drop-ins; an empty value discards those before it."""
    keys: dict[str, list[str]] = {}
    for file in files:
        text = re.sub(r"\\\n[ \t]*", " ", file.read_text(encoding="utf-8", errors="replace"))
        for key, value in re.findall(r"^([A-Za-z0-9]+)[ \t]*=[ \t]*(.*?)[ \t]*$", text, re.MULTILINE):
            keys[key] = [*keys.get(key, []), value] if value else []
    return keys


def _words(keys: Mapping[str, list[str]], key: str) -> list[str]:
    return [word for value in keys.get(key, []) for word in value.split()]


def _last(keys: Mapping[str, list[str]], key: str) -> str:
    return next(reversed(keys.get(key, [])), "")


def _on(keys: Mapping[str, list[str]], key: str) -> bool:
    return _last(keys, key).lower() in ("yes", "true", "on", "1")


def _user(keys: Mapping[str, list[str]], state: Path) -> tuple[str, int, int, tuple[int, ...]]:
    """Return the service's user in words, and as uid, gid and further groups."""
    name, further = _last(keys, "User"), _words(keys, "SupplementaryGroups")
    groups = tuple(entry.gr_gid for entry in grp.getgrall() if entry.gr_name in further)
    try:
        entry = pwd.getpwnam(name or "root")
    except KeyError:
        entry = None
    if entry and (name or not _on(keys, "DynamicUser")):
        all_groups = (*os.getgrouplist(entry.pw_name, entry.pw_gid), *groups)
        return f"user {entry.pw_name}", entry.pw_uid, entry.pw_gid, all_groups
    try:
        owner = state.stat()  # its own since its last start; systemd gives it the folder again at the next one
    except OSError:
        owner = None
    uid, gid = (owner.st_uid, owner.st_gid) if owner and owner.st_uid else (_DYNAMIC_UID, _DYNAMIC_UID)
    return "a user of its own", uid, gid, groups


def _allowed(keys: Mapping[str, list[str]]) -> tuple[IPv4Network | IPv6Network, ...] | None:
    """Return the networks of IPAddressAllow= if IPAddressDeny= closes the others."""
    if "any" not in _words(keys, "IPAddressDeny"):
        return None
    networks = []
    for word in _words(keys, "IPAddressAllow"):
        for text in _NETWORKS.get(word, (word,)):
            try:
                networks.append(ip_network(text, strict=False))
            except ValueError:  # systemd logs it, and goes on without it
                continue
    return tuple(networks)
