"""The gateway's id where the configuration says `auto`: from the client's certificate, or from what this machine is.

Sources, the first that there is: the CN of `broker.cert_file`; the serial number of the board; the permanent MAC of the
first physical interface. A host name and a machine id are copied with a card, so two gateways would have one id; they
are not used, nor is anything that only root may read, so that the service and a command of root resolve alike.

Imports neither the detector nor the native kernel, because every command resolves the id.
"""

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path

from edge_agent.config import AUTO, AgentConfig
from edge_agent.contract.broker import BrokerError, explain
from edge_agent.contract.certificate import Certificate
from edge_agent.contract.messages import MessageError, check_id
from edge_agent.contract.settings import SettingsError
from edge_agent.system import permanent_mac

REPLAY = "gw-001"
"""The id in the alerts of a replay that names none: the same captures give the same alerts on every machine."""

_SERIAL = Path("sys/firmware/devicetree/base/serial-number")
_CPUINFO = Path("proc/cpuinfo")
_NETWORK = Path("sys/class/net")
_ETHERNET = "1"  # ARPHRD_ETHER
_FINDING_DEVICES = Path("run/udev/queue")  # exists while udev has devices to look at, as `udevadm settle` knows
_SETTLE_S = 20.0  # a card that is found later does not name the gateway in this run
_LONGEST = 63 - len("gw-")
_SHORTEST_SERIAL = 4
_NO_SERIAL = re.compile(
    r"0*(123456789[0-9a-f]*)|.*o-?e-?m.*|default.*|.*serial.*|not-.*|unknown.*|none|n-a|empty|invalid|test.*|x+"
)
"""Texts that boards have in place of a serial number, as `_plain` spells them."""


def resolve(
    config: AgentConfig, root: Path = Path("/"), permanent: Callable[[str], int] = permanent_mac
) -> AgentConfig:
    """Return the configuration with the id of this gateway, and with `gateway_origin`, which names its source.

    ``root`` is where the files of the machine are, ``permanent`` returns the MAC that an interface was made with, 0
    without one. A configuration that is resolved stays as it is. SettingsError when an id that is configured differs
    from the certificate's CN, when the certificate cannot be read, and when there is no source.
    """
    if config.gateway_origin:
        return config
    named = _by_certificate(config)
    if config.gateway != AUTO:
        if named and named != config.gateway:
            raise SettingsError(
                f"gateway: {config.gateway} is configured, but the CN of broker.cert_file "
                f"{config.broker.cert_file} is {named}: set gateway to that or to auto, or use a certificate for "
                f"{config.gateway}"
            )
        return dataclasses.replace(config, gateway_origin="configured")
    gateway, origin = (named, f"CN of {config.broker.cert_file}") if named else _by_machine(root, permanent)
    return dataclasses.replace(config, gateway=gateway, gateway_origin=origin)


def resolve_or_reason(config: AgentConfig) -> tuple[AgentConfig, str]:
    """Return the same and "", or the configuration as it is and the reason why the gateway has no id."""
    try:
        return resolve(config), ""
    except SettingsError as error:
        return config, str(error)


def for_replay(config: AgentConfig, given: str | None) -> AgentConfig:
    """Return the configuration for a replay, which looks at this machine only where `auto` was ``given`` for it.

    The ids of alerts are drawn from the gateway's id, so a replay must not depend on where it runs.
    """
    if given == AUTO:
        return resolve(config)
    gateway = REPLAY if config.gateway == AUTO else config.gateway
    return dataclasses.replace(config, gateway=gateway, gateway_origin="configured")


def _by_certificate(config: AgentConfig) -> str:
    """Return the CN of the client's certificate, "" without one; SettingsError if it cannot be read or be an id."""
    value = config.broker.cert_file
    if value is None:
        return ""
    try:
        path = config.broker.file("cert_file")
        assert path is not None
        name = Certificate.read(path.read_text(encoding="ascii", errors="replace")).common_name
    except BrokerError as error:
        raise SettingsError(f"gateway: broker.{error}") from error
    except OSError as error:
        raise SettingsError(f"gateway: broker.cert_file {value}: {explain(error)}") from error
    except ValueError as error:
        raise SettingsError(f"gateway: broker.cert_file {value} holds no certificate in PEM form ({error})") from error
    if not name:
        return ""
    try:
        return check_id(name)
    except MessageError:
        raise SettingsError(
            f"gateway: the CN of broker.cert_file {value} is {name[:80]!r}, which cannot be an id: "
            "1 to 63 of a-z, 0-9 and '-' (not first or last); issue a certificate whose CN is the gateway's id"
        ) from None


def _by_machine(root: Path, permanent: Callable[[str], int]) -> tuple[str, str]:
    """Return an id of this machine, and the words for its source."""
    for file in (_SERIAL, _CPUINFO):
        if serial := _serial(root / file):
            return f"gw-{serial}", f"serial number of the board, /{file}"
    deadline = time.monotonic() + _SETTLE_S
    while (root / _FINDING_DEVICES).exists() and time.monotonic() < deadline:
        time.sleep(0.1)  # at a boot, when the first card may be found after the second
    for name in _physical(root / _NETWORK):
        if mac := permanent(name):
            return f"gw-{mac:012x}", f"permanent MAC of {name}"
    raise SettingsError(
        "gateway: auto finds no certificate (broker.cert_file), no serial number of the board and no physical "
        "interface: set gateway to an id of its own"
    )


def _serial(file: Path) -> str:
    """Return the serial number in a file as it may be part of an id; "" without one that tells boards apart."""
    try:
        text = file.read_bytes()[:65_536].decode("ascii", "replace")
    except OSError:
        return ""
    if file.name == _CPUINFO.name:
        line = re.search(r"^Serial[ \t]*:(.*)$", text, re.MULTILINE)
        text = line[1] if line else ""
    plain = _plain(text)
    alike = len(set(plain.replace("-", ""))) < 2  # zeros, as where a board has none
    if len(plain) < _SHORTEST_SERIAL or alike or _NO_SERIAL.fullmatch(plain):
        return ""
    return plain[-_LONGEST:].strip("-")


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.strip().lower()).strip("-")


def _physical(network: Path) -> list[str]:
    """Return the physical Ethernet and Wi-Fi interfaces in an order that outlasts a boot.

    Those that stay in the machine come before those on USB, cables before Wi-Fi, then the place on the bus counts.
    """
    order = []
    for interface in network.glob("*"):
        device = interface / "device"
        try:
            if (interface / "type").read_text().strip() != _ETHERNET or not device.exists():
                continue  # a bridge, veth, tunnel or VLAN has no device
            place = device.resolve(strict=True).as_posix()
        except OSError:  # it went away just now
            continue
        if (device / "physfn").exists() or "/gadget" in place or "/virtual/" in place:
            continue
        wireless = (interface / "phy80211").exists() or (interface / "wireless").exists()
        order.append(("/usb" in place, wireless, place, interface.name))
    return [name for *_, name in sorted(order)]
