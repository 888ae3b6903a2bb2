"""The broker's settings at either end: address, credentials, TLS, MQTT version, and the waits between attempts.

Here, too, are the words for what TLS and the network report. Connections are made by `edge_agent.mqtt`.
"""

import dataclasses
import random
import re
import socket
import ssl
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Literal, get_args

from edge_agent.contract import credentials
from edge_agent.contract.credentials import CredentialError
from edge_agent.contract.messages import BASE, check_base
from edge_agent.contract.settings import check, within

FileKey = Literal["password_file", "ca_file", "cert_file", "key_file"]
FILES: tuple[FileKey, ...] = get_args(FileKey)
"""The keys that name a file, by its path or as a credential."""


class BrokerError(ValueError):
    """Broker settings that cannot work, or a broker that cannot be reached; the message is the reason in one line."""


@dataclass(frozen=True)
class BrokerConfig:
    """Section ``broker`` of agent.yaml and collector.yaml."""

    host: str = within("localhost", 1, 253)  # name or address; an IPv6 address may be in brackets, and loses them
    port: int = within(1883, 1, 65_535)
    base: str = within(BASE, 1, 131)  # prefix of the topic tree, as in the broker's ACL
    client_id: str = within("", 0, 128)  # "" is the gateway's id, and for the collector that of its database
    version: Literal["auto", 5, "3.1.1"] = "auto"  # auto: MQTT 5, or 3.1.1 where the broker does not speak 5
    username: str | None = within(None, 1, 256)
    # These four are paths, or ``credential:NAME``; see `file`.
    password_file: Path | None = None  # first line; a file so that no configuration holds a secret
    tls: bool = False
    ca_file: Path | None = None  # who signed the broker's certificate; None: the system's authorities
    cert_file: Path | None = None  # our own certificate and its key, where the broker asks for one
    key_file: Path | None = None
    keepalive_s: int = within(30, 5, 3600)
    connect_timeout_s: float = within(5.0, 0.1, 300.0)
    inflight: int = within(100, 1, 10_000)  # messages that may be under way, not yet acknowledged
    session_s: int = within(86_400, 0, 366 * 86_400)  # how long the broker keeps our session while we are away
    # a new connection sends again what the broker acknowledged so shortly before the end of the last one
    repeat_s: float = within(60.0, 0.0, 86_400.0)
    retry_min_s: float = within(0.5, 0.01, 3600.0)  # first wait after a failure; doubles, with jitter, up to the next
    retry_max_s: float = within(60.0, 0.01, 86_400.0)

    def __post_init__(self) -> None:
        check(self, BrokerError)
        object.__setattr__(self, "host", _checked_host(self.host))
        try:
            check_base(self.base)
        except ValueError as error:
            raise BrokerError(f"base: {error}") from error
        if self.retry_max_s < self.retry_min_s:
            raise BrokerError(f"retry_max_s: {self.retry_max_s:g} is less than retry_min_s, {self.retry_min_s:g}")
        for key in FILES:
            try:
                credentials.name_of(getattr(self, key) or Path())
            except CredentialError as error:
                raise BrokerError(f"{key}: {error}") from error
        for key in ("ca_file", "cert_file", "key_file"):
            if getattr(self, key) and not self.tls:
                raise BrokerError(f"{key}: needs tls: true")
        for key, other in (("cert_file", "key_file"), ("key_file", "cert_file")):
            if getattr(self, key) and not getattr(self, other):
                raise BrokerError(f"{key}: needs {other}, too")
        if self.password_file and not self.username:
            raise BrokerError("password_file: needs a username")

    @property
    def address(self) -> str:
        """The broker's address as people write it: ``host:port``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def at(self, address: str) -> "BrokerConfig":
        """Return the same settings with another ``host[:port]``. Raises BrokerError when that is malformed.

        >>> BrokerConfig().at("[::1]:8883").address
        '[::1]:8883'
        """
        _refuse_url("broker", address)
        bare = address.count(":") > 1 and not address.startswith("[")  # an IPv6 address without brackets
        parts = None if bare else re.fullmatch(r"(\[[^]]*\]|[^:]*)(?::([0-9]+))?", address)
        host, port = (parts[1], parts[2] or self.port) if parts else (address if bare else "", self.port)
        if not host:
            raise BrokerError(f"broker {address[:80]!r} is not HOST or HOST:PORT")
        return dataclasses.replace(self, host=host, port=int(port))

    def file(self, key: FileKey) -> Path | None:
        """Return the file that a key names, by its path or as a credential; None without one.

        Raises BrokerError when there is no such credential.
        """
        value: Path | None = getattr(self, key)
        try:
            return credentials.locate(value) if value else None
        except CredentialError as error:
            raise BrokerError(f"{key} {error}") from error

    def password(self) -> str | None:
        """Return the first line of ``password_file``, None without one. Raises BrokerError when it cannot be read."""
        path = self.file("password_file")
        if path is None:
            return None
        try:
            # A byte order mark, which editors on Windows write, is no part of the password.
            return path.read_text(encoding="utf-8-sig").partition("\n")[0]
        except UnicodeDecodeError:  # whose own message has a byte of the password
            raise BrokerError(f"password_file {self.password_file}: is not UTF-8; save it as UTF-8 text") from None
        except OSError as error:
            raise BrokerError(f"password_file {self.password_file}: {explain(error)}") from error

    def tls_context(self) -> ssl.SSLContext | None:
        """Return a TLS context made of the files as they are now, None without TLS.

        Raises BrokerError, which names the file that cannot be used.
        """
        if not self.tls:
            return None
        # OpenSSL does not say which of them it cannot read
        ca_file, cert_file, key_file = (self._readable(key) for key in ("ca_file", "cert_file", "key_file"))
        try:
            context = ssl.create_default_context(cafile=ca_file)
        except OSError as error:  # includes ssl.SSLError
            raise BrokerError(f"ca_file {self.ca_file}: {explain(error)}") from error
        if cert_file and key_file:
            try:
                # An empty password instead of None: OpenSSL must never ask on the terminal of a service.
                context.load_cert_chain(cert_file, key_file, password="")
            except OSError as error:
                raise BrokerError(f"cert_file {self.cert_file}, key_file {self.key_file}: {explain(error)}") from error
        return context

    def _readable(self, key: FileKey) -> Path | None:
        """Return the file that a key of TLS names; BrokerError if it cannot be read or holds something else."""
        path = self.file(key)
        if path is None:
            return None
        value = getattr(self, key)  # the name by which the operator knows the file
        try:
            with path.open("rb") as file:
                content = file.read(65_536)
        except OSError as error:
            raise BrokerError(f"{key} {value}: {explain(error)}") from error
        wanted = b"PRIVATE KEY-----" if key == "key_file" else b"CERTIFICATE-----"
        if wanted not in content:
            raise BrokerError(f"{key} {value}: holds no {'private key' if key == 'key_file' else 'certificate'} (PEM)")
        if key == "key_file" and b"ENCRYPTED" in content:
            raise BrokerError(f"{key} {value}: has a passphrase, which a service cannot enter")
        return path


def _refuse_url(key: str, text: str) -> None:
    """Raise BrokerError if an address is a URL or has a user in it; the message repeats neither, nor a password."""
    if "://" in text or "@" in text:
        raise BrokerError(
            f"{key}: a URL is not accepted; give the host's name or address alone, "
            "the others in the keys port, tls, username and password_file"
        )


def _checked_host(text: str) -> str:
    """Return a host name or an address, of IPv6 without brackets; BrokerError for a text that is neither."""
    _refuse_url("host", text)
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        if ":" in host or host != text:
            IPv6Address(host)
        elif re.fullmatch("[0-9.]+", host):
            socket.inet_aton(host)
        elif re.search(r"""[^\w.-]""", host) or not host.encode("idna"):
            raise ValueError
    except (ValueError, OSError):  # UnicodeError among them
        port = "; the port has a key of its own" if ":" in text else ""
        raise BrokerError(f"host: {text[:80]!r} is neither the name nor the address of a host{port}") from None
    return host


def explain(error: BaseException) -> str:
    """Return one readable line for an error of the network, of TLS or of a file."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.strip().removesuffix(".")
        clock = "; is the clock of this machine right?" if "yet valid" in why or "expired" in why else ""
        return f"the broker's certificate is not accepted: {why}{clock}"
    if isinstance(error, ssl.SSLError):
        reason = _reason(error)
        return _alerted(reason) or f"TLS: {_REASONS.get(reason, reason) or error}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"{error}" or type(error).__name__


def plain(text: str) -> str:
    """Return a line that paho logs about a socket in words for people.

    >>> plain("failed to receive on socket: [SSL: TLSV13_ALERT] tlsv13 alert certificate required (_ssl.c:2580)")
    'TLS: the broker wants a certificate from us (cert_file, key_file)'
    >>> plain("failed to receive on socket: [Errno 104] Connection reset by peer")
    'connection reset by peer'
    """
    words = _logged(text)
    return _alerted(words) or words


def alert_in(text: str) -> str:
    """Return the same if the line is about a TLS alert from the other side, else ""."""
    return _alerted(_logged(text))


def last_words(sock: object) -> str:
    """Return the TLS alert that the other side sent before it closed ``sock`` and that nobody has read, else "".

    A broker rejects our certificate only when TLS is up for us. Our first write then fails, and the broker's reason
    is still unread in the socket.
    """
    if isinstance(sock, ssl.SSLSocket):
        try:
            sock.settimeout(0.0)
            sock.recv(1)
        except ssl.SSLError as error:
            return _alerted(_reason(error))
        except (OSError, ValueError):
            pass
    return ""


_REASONS = {
    "key values mismatch": "the key does not belong to the certificate",
    "wrong version number": "the broker does not use it on this port",
}
_ALERTS = {
    "certificate required": "the broker wants a certificate from us (cert_file, key_file)",
    "handshake failure": "the broker ended the handshake; does it want a certificate from us (cert_file, key_file)?",
    "unknown ca": "the broker does not accept our certificate (cert_file): it does not know who signed it",
    "certificate expired": "the broker does not accept our certificate (cert_file): expired",
    "certificate revoked": "the broker does not accept our certificate (cert_file): revoked",
    "bad certificate": "the broker does not accept our certificate (cert_file): bad",
    "unsupported certificate": "the broker does not accept our certificate (cert_file): its kind is not supported",
    "certificate unknown": "the broker does not accept our certificate (cert_file)",
}


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "").replace("_", " ").lower()


def _logged(text: str) -> str:
    words = text.rpartition("on socket: ")[2]
    return re.sub(r"^\[[^]]*\] | \(_ssl\.c:\d+\)$", "", words)[:200].lower()


def _alerted(words: str) -> str:
    """Return a TLS alert ("tlsv1 alert unknown ca") in words for people, "" for a text that is not an alert."""
    _, alert, what = words.partition(" alert ")
    return f"TLS: {_ALERTS.get(what, what)}" if alert else ""


class Versions:
    """The MQTT version to try next; ``auto`` begins with 5 and finds out whether the broker speaks it.

    A broker that does not speak 5 either says so, which is remembered, or closes the connection before it answers. A
    broker that is just stopping does that, too: so 3.1.1 is tried next and, should that fail as well, 5 again.
    """

    def __init__(self, wanted: Literal["auto", 5, "3.1.1"]) -> None:
        self._fixed = wanted != "auto"
        self._next: Literal[5, 4] = 4 if wanted == "3.1.1" else 5

    def next(self) -> Literal[5, 4]:
        """Return the protocol level to try: 5, or 4 for MQTT 3.1.1."""
        return self._next

    def refused(self) -> None:
        """Note that the broker said that it does not speak 5."""
        if not self._fixed:
            self._fixed, self._next = True, 4

    def hung_up(self) -> None:
        """Note that the broker closed the connection before it answered to the version just tried."""
        if not self._fixed:
            self._next = 4 if self._next == 5 else 5

    def lost(self) -> None:
        """Note that a working connection is gone: the broker may be updated meanwhile, so 5 is tried first again."""
        if not self._fixed:
            self._next = 5


class Backoff:
    """Waits that double from ``min_s`` to ``max_s`` seconds.

    Each is cut at random by up to half, so that a fleet does not reconnect in step.
    """

    def __init__(self, min_s: float, max_s: float, rng: random.Random | None = None) -> None:
        self._min_s, self._max_s, self._failures = min_s, max_s, 0
        self._rng = rng or random.Random()  # spreads load, guards nothing

    def next(self) -> float:
        """Return the seconds to wait after one more failure."""
        wait = min(self._max_s, self._min_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return wait * self._rng.uniform(0.5, 1.0)

    @property
    def longest(self) -> float:
        """The longest that the last wait could have been, 0 without one."""
        return min(self._max_s, self._min_s * 2.0 ** min(self._failures - 1, 30)) if self._failures else 0.0

    def reset(self) -> None:
        """Begin again with the shortest wait, after a success."""
        self._failures = 0
