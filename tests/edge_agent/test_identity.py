"""The gateway's id under `auto`: from the certificate, the board or a network card, and never from what is copied."""

import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge_agent.__main__ import main
from edge_agent.check import findings
from edge_agent.config import AgentConfig, OutboxConfig, changed
from edge_agent.contract import settings
from edge_agent.contract.broker import BrokerConfig
from edge_agent.contract.certificate import Certificate
from edge_agent.contract.settings import SettingsError
from edge_agent.identity import for_replay, resolve
from edge_agent.state import State
from edge_agent.system import permanent_mac
from tests.broker import needs_mosquitto
from tests.live import broker
from tests.netns import ROOT, ip

Make = Callable[..., AgentConfig]
UNTIL = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


def pem(*names: x509.NameAttribute, until: datetime = UNTIL) -> str:
    """Return a certificate whose subject has these attributes."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name(names)
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site-ca")])
    builder = x509.CertificateBuilder(issuer, name, key.public_key(), 7, UNTIL - timedelta(3650), until)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def cn(text: str) -> x509.NameAttribute:
    return x509.NameAttribute(NameOID.COMMON_NAME, text)


def der(text: str) -> bytes:
    return x509.load_pem_x509_certificate(text.encode()).public_bytes(serialization.Encoding.DER)


@pytest.fixture
def with_certificate(tmp_path: Path) -> Make:
    """Return a function that returns a configuration whose certificate is in a file with this content."""

    def make(content: str | None, **changes: object) -> AgentConfig:
        file = tmp_path / "gw.crt"
        if content is not None:
            file.write_text(content)
        broker = BrokerConfig(tls=True, cert_file=file, key_file=tmp_path / "gw.key")
        return AgentConfig(broker=broker, **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The root of a machine about which nothing is known."""
    root = tmp_path / "machine"
    (root / "proc").mkdir(parents=True)
    (root / "sys/class/net").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU\n")
    return root


def add(machine: Path, name: str, place: str = "", *, kind: str = "1", wireless: bool = False) -> None:
    """Add an interface; without a ``place`` on a bus it is a virtual one."""
    folder = machine / "sys/devices" / (place or "virtual") / "net" / name
    folder.mkdir(parents=True)
    (folder / "type").write_text(f"{kind}\n")
    if place:
        (folder / "device").symlink_to("../..")
    if wireless:
        (folder / "phy80211").mkdir()
    (machine / "sys/class/net" / name).symlink_to(folder)


def of(machine: Path, macs: dict[str, int] | None = None) -> tuple[str, str]:
    config = resolve(AgentConfig(), machine, lambda name: (macs or {}).get(name, 0))
    return config.gateway, config.gateway_origin


# --- the certificate ---


@pytest.mark.parametrize(
    ("tag", "encoding"), [(0x0C, "utf-8"), (0x13, "ascii"), (0x14, "ascii"), (0x16, "ascii"), (0x1E, "utf-16-be")]
)
def test_the_cn_of_the_certificate_comes_first(with_certificate, machine, tag, encoding):
    (machine / "proc/cpuinfo").write_text("Serial\t\t: 10000000abcdef01\n")
    name = "gw-cellar".encode(encoding)
    made = der(pem(x509.NameAttribute(NameOID.ORGANIZATION_NAME, "A Site"), cn("x" * len(name))))
    content = made.replace(b"\x0c%c" % len(name) + b"x" * len(name), bytes([tag, len(name)]) + name)
    assert content != made
    config = with_certificate(ssl.DER_cert_to_PEM_cert(content))
    there = resolve(config, machine)
    assert (there.gateway, there.gateway_origin) == ("gw-cellar", f"CN of {config.broker.cert_file}")
    assert resolve(there, machine) is there


def test_of_a_chain_the_first_certificate_counts_and_text_around_it_does_not(with_certificate):
    chain = f"subject=CN = gw-9\nissuer=CN = ca\n{pem(cn('gw-9'))}\n{pem(cn('site-ca'))}"
    assert resolve(with_certificate(chain)).gateway == "gw-9"
    assert Certificate.read(chain) == Certificate("gw-9", UNTIL.timestamp())
    late = datetime(2062, 1, 2, 3, 4, 5, tzinfo=UTC)  # from 2050 on it is written in another way
    assert Certificate.read(pem(cn("gw-9"), until=late)).not_after_s == late.timestamp()


def test_a_certificate_without_a_cn_leaves_it_to_the_machine(with_certificate, machine):
    (machine / "proc/cpuinfo").write_text("Serial\t\t: 10000000abcdef01\n")
    config = with_certificate(pem(x509.NameAttribute(NameOID.ORGANIZATION_NAME, "A Site")))
    assert resolve(config, machine).gateway == "gw-10000000abcdef01"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "gw.crt: no such file"),
        ("no certificate", "gw.crt holds no certificate in PEM form (no BEGIN CERTIFICATE)"),
        (pem(cn("gw-1"))[:300] + "\n-----END CERTIFICATE-----\n", "gw.crt holds no certificate in PEM form ("),
        ("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n", "gw.crt holds no certificate in PEM form ("),
        (pem(cn("Cellar 1")), "gw.crt is 'Cellar 1', which cannot be an id: 1 to 63 of a-z"),
        (pem(cn("a\x1b[31m")), "gw.crt is 'a\\x1b[31m', which cannot be an id"),
    ],
)
def test_a_certificate_that_names_no_gateway_stops_the_start_in_one_line(with_certificate, content, words):
    for config in (with_certificate(content), with_certificate(content, gateway="gw-1")):
        with pytest.raises(SettingsError) as refused:
            resolve(config)
        line = str(refused.value)
        assert words in line
        assert line.startswith("gateway: ")
        assert line.isprintable()


def test_any_damage_to_a_certificate_is_an_error_of_one_kind():
    whole, read = der(pem(cn("gw-1"))), 0
    for at in range(len(whole)):
        for value in (0, 0x80, 0x84, 0xFF, whole[at] ^ 1):
            damaged = whole[:at] + bytes([value]) + whole[at + 1 :]
            try:
                Certificate.read(ssl.DER_cert_to_PEM_cert(damaged))
            except ValueError:
                continue
            read += 1
    assert 0 < read < 5 * len(whole)  # damage behind the validity and the subject changes neither
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"."):
            Certificate.read(ssl.DER_cert_to_PEM_cert(whole[:length]))


def test_an_id_that_differs_from_the_cn_is_refused_by_both_names(with_certificate, capsys, tmp_path, home):
    assert resolve(with_certificate(pem(cn("gw-7")), gateway="gw-7")).gateway_origin == "configured"
    with pytest.raises(SettingsError, match=r"^gateway: gw-8 is configured, but the CN of .*gw\.crt is gw-7: "):
        resolve(with_certificate(pem(cn("gw-7")), gateway="gw-8"))
    file = tmp_path / "agent.yaml"
    tls = f"tls: true, cert_file: {tmp_path / 'gw.crt'}, key_file: {tmp_path / 'gw.key'}"
    file.write_text(f"gateway: gw-8\nbroker: {{{tls}}}\n")
    words = ["--config", str(file), "--bundle", str(home.bundle), "--interface", "lo"]
    assert main(["run", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("botwatch agent: gateway: gw-8 is configured, but the CN of broker.cert_file ")


# --- the machine ---


def test_the_serial_number_of_the_board_is_the_same_from_either_file(machine):
    (machine / "proc/cpuinfo").write_text("processor\t: 0\n\nRevision\t: c03114\nSerial\t\t: 10000000ABCDEF01\n")
    add(machine, "eth0", "platform/soc/1f00.ethernet")
    assert of(machine, {"eth0": 1}) == ("gw-10000000abcdef01", "serial number of the board, /proc/cpuinfo")
    tree = machine / "sys/firmware/devicetree/base"
    tree.mkdir(parents=True)
    (tree / "serial-number").write_bytes(b"10000000abcdef01\0")
    source = "serial number of the board, /sys/firmware/devicetree/base/serial-number"
    assert of(machine, {"eth0": 1}) == ("gw-10000000abcdef01", source)


@pytest.mark.parametrize(
    "serial",
    [
        *("", "\0", "0", "00", "0000000000000000", "ffffffff", "0123456789", "1234567890", "123456789abcdef0"),
        *(
            "To be filled by O.E.M.",
            "Default string",
            "System Serial Number",
            "Not Specified",
            "unknown",
            "N/A",
            "None",
        ),
    ],
)
def test_a_text_that_many_boards_have_in_place_of_a_serial_number_is_none(machine, serial):
    tree = machine / "sys/firmware/devicetree/base"
    tree.mkdir(parents=True)
    (tree / "serial-number").write_text(serial)
    (machine / "proc/cpuinfo").write_text(f"Serial\t\t: {serial}\n")
    add(machine, "eth0", "pci0000:00/0000:00:03.0")
    assert of(machine, {"eth0": 0x525400123456}) == ("gw-525400123456", "permanent MAC of eth0")


@pytest.mark.parametrize(
    ("serial", "id"),
    [
        ("ABC-123_x", "gw-abc-123-x"),
        ("/C123456/", "gw-c123456"),
        ("\xff\xfeSN77", "gw-sn77"),
        ("a1" * 60, "gw-" + "a1" * 30),
    ],
)
def test_any_serial_number_becomes_an_id_that_topics_may_have(machine, serial, id):
    tree = machine / "sys/firmware/devicetree/base"
    tree.mkdir(parents=True)
    (tree / "serial-number").write_bytes(serial.encode("latin-1") + b"\0")
    assert of(machine)[0] == id
    AgentConfig(gateway=id)


def test_the_first_physical_interface_is_the_same_at_every_boot(machine):
    """Names change and virtual interfaces come and go; a stick on USB and Wi-Fi come after what is built in."""
    for virtual in ("br0", "docker0", "veth1a2b", "tun0", "bond0"):
        add(machine, virtual)
    add(machine, "wwan0", "pci0000:00/0000:00:01.0/wwan", kind="65534")
    add(machine, "usb0", "platform/gadget.0/gadget")
    macs = {name: n for n, name in enumerate(("br0", "docker0", "veth1a2b", "tun0", "bond0", "wwan0", "usb0"), 1)}
    with pytest.raises(SettingsError, match="set gateway to an id of its own"):
        of(machine, macs)
    expected = [
        ("enx1", "pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0", 0xA0, False),
        ("wlan0", "pci0000:00/0000:02:00.0", 0xB0, True),
        ("eth7", "pci0000:00/0000:04:00.0", 0xC0, False),
        ("eth9", "pci0000:00/0000:03:00.0", 0xD0, False),
    ]
    for name, place, mac, wireless in expected:
        add(machine, name, place, wireless=wireless)
        macs[name] = mac
        assert of(machine, macs) == (f"gw-{mac:012x}", f"permanent MAC of {name}")


def test_at_a_boot_the_id_waits_until_all_cards_are_found(machine):
    add(machine, "wlan0", "pci0000:00/0000:02:00.0", wireless=True)
    queue = machine / "run/udev/queue"
    queue.parent.mkdir(parents=True)
    queue.touch()

    def find() -> None:
        add(machine, "eth0", "pci0000:00/0000:03:00.0")
        queue.unlink()

    later = threading.Timer(0.3, find)
    later.start()
    assert of(machine, {"eth0": 0xE0, "wlan0": 0xF0}) == ("gw-0000000000e0", "permanent MAC of eth0")
    later.join()


def test_an_interface_with_a_random_mac_does_not_name_the_gateway(machine):
    add(machine, "eth0", "pci0000:00/0000:03:00.0")
    add(machine, "eth1", "pci0000:00/0000:04:00.0")
    assert of(machine, {"eth0": 0, "eth1": 0x020000000001}) == ("gw-020000000001", "permanent MAC of eth1")


def test_the_permanent_mac_of_a_card_outlasts_another_one_and_a_virtual_interface_has_none(wire):
    assert permanent_mac("nosuch0") == permanent_mac("lo") == 0
    cards = [name for _, name in socket.if_nameindex() if Path("/sys/class/net", name, "device").exists()]
    for name in cards:
        folder = Path("/sys/class/net", name)
        if (folder / "addr_assign_type").read_text().strip() == "0":
            assert permanent_mac(name) == int((folder / "address").read_text().replace(":", ""), 16)
    ip("-n", wire.gateway, "link", "set", "lan0", "address", "02:00:00:00:00:09")
    script = "from edge_agent.system import permanent_mac; print(permanent_mac('lan0'))"
    process = wire.on_gateway(sys.executable, "-c", script, stdout=subprocess.PIPE)
    assert process.communicate()[0] == "0\n"


# --- the commands ---


def test_no_file_can_set_the_source_of_the_id_and_it_does_not_count_as_a_change():
    with pytest.raises(SettingsError, match="unknown key 'gateway_origin'"):
        settings.loads(AgentConfig, "gateway_origin: x", "agent.yaml")
    config = AgentConfig(gateway="gw-1")
    assert changed(config, replace(config, gateway_origin="configured")) == []
    assert replace(config, gateway_origin="configured") == config


def test_a_replay_is_the_same_on_every_machine_unless_it_is_asked_for_this_one(tmp_path):
    assert for_replay(AgentConfig(), None).gateway == "gw-001"
    assert for_replay(AgentConfig(gateway="gw-5"), None).gateway == "gw-5"
    file = tmp_path / "gw.crt"
    file.write_text(pem(cn("gw-7")))
    broker = BrokerConfig(tls=True, cert_file=file, key_file=tmp_path / "gw.key")
    assert for_replay(AgentConfig(broker=broker), None).gateway == "gw-001"
    assert for_replay(AgentConfig(broker=broker), "auto").gateway == "gw-7"


def test_check_says_which_id_it_is_and_from_where_and_goes_on_without_one(with_certificate, tmp_path):
    def lines(config: AgentConfig) -> dict[str, str]:
        there = replace(config, outbox=OutboxConfig(path=tmp_path / "box.sqlite"))
        return {finding.what: finding.lines()[0] for finding in findings(there, "no bundle")}

    known = lines(with_certificate(pem(cn("gw-7"))))
    assert known["gateway"] == f"ok     gateway: gw-7 (CN of {tmp_path / 'gw.crt'})"
    broken = lines(with_certificate("nothing"))
    assert broken["gateway"].startswith("WRONG  gateway: broker.cert_file ")
    assert broken["cert_file"].startswith("WRONG  cert_file: ")
    assert broken["broker localhost:1883"].startswith("WRONG  ")
    assert {"clock", "disk"} <= set(broken)


@needs_mosquitto
def test_check_tries_the_broker_of_a_gateway_without_an_id(wire, tmp_path):
    """In a namespace without a physical interface."""
    with broker(wire, tmp_path) as (config, _):
        file = tmp_path / "agent.yaml"
        file.write_text(config)
        command = [sys.executable, "-m", "edge_agent.command", "agent", "check", "--config", str(file)]
        process = wire.on_gateway(*command, stdout=subprocess.PIPE, cwd=ROOT)
        lines = process.communicate(timeout=60)[0].splitlines()
    assert any(line.startswith("WRONG  gateway: auto finds no certificate") for line in lines)
    [line] = [line for line in lines if "broker 127.0.0.1" in line]
    assert line.endswith(": answers, MQTT 5, without TLS; it was not asked as this gateway, which has no id")


def test_status_says_which_id_it_is_and_from_where(tmp_path, capsys, with_certificate):
    config = with_certificate(pem(cn("gw-7")))
    file = tmp_path / "agent.yaml"
    tls = f"tls: true, cert_file: {config.broker.cert_file}, key_file: {config.broker.key_file}"
    file.write_text(f"broker: {{{tls}}}\noutbox: {{path: {tmp_path / 'box.sqlite'}}}\n")
    State(tmp_path / "box.sqlite").close()
    assert main(["status", "--config", str(file)]) == 3
    assert capsys.readouterr().out.startswith(f"gateway gw-7 (CN of {config.broker.cert_file}): no agent is running")
    assert main(["status", "--json", "--config", str(file)]) == 3
    assert json.loads(capsys.readouterr().out)["gateway"] == "gw-7"
    (tmp_path / "gw.crt").unlink()
    assert main(["status", "--config", str(file)]) == 3  # which gateway it is may be what is wrong
