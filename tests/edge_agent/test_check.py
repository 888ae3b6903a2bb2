"""What `botwatch agent check` finds wrong, with its remedy: broker, credentials, certificates, clock, disk."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge_agent import check
from edge_agent.__main__ import main
from edge_agent.config import AgentConfig, EvidenceConfig, OutboxConfig
from edge_agent.contract.alert import ModelInfo
from edge_agent.contract.broker import BrokerConfig
from edge_agent.contract.certificate import Certificate
from edge_agent.contract.messages import topic
from edge_agent.control import CommandRefused
from edge_agent.delivery.link import Link
from edge_agent.delivery.outbox import Outbox
from edge_agent.orders import order
from edge_agent.state import State
from edge_agent.system import synchronised
from edge_agent.testalert import steps
from tests.broker import Amqtt, Broker, Mosquitto, free_port, needs_mosquitto, wait_until
from tests.line import Listener, config_of, in_thread


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    box, kept = OutboxConfig(path=tmp_path / "box.sqlite"), EvidenceConfig(path=tmp_path / "evidence")
    return AgentConfig(gateway="gw-001", outbox=box, evidence=kept)


def found(config: AgentConfig) -> dict[str, check.Finding]:
    return {finding.what: finding for finding in check.findings(config, "no bundle here")}


def of_broker(config: AgentConfig, broker: BrokerConfig) -> check.Finding:
    return found(replace(config, broker=broker))[f"broker {broker.address}"]


@needs_mosquitto
def test_the_broker_is_spoken_to_with_the_agents_own_credentials(config: AgentConfig, tmp_path: Path) -> None:
    made = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(made), "gw-001", "right"], check=True)
    secret = tmp_path / "secret"
    secret.write_text("right\n")
    secret.chmod(0o600)
    broker = Mosquitto(tmp_path / "broker")
    text = f"listener {broker.port} 127.0.0.1\npassword_file {made}\n"
    broker = Mosquitto(tmp_path / "broker", config=text)
    broker.port, broker.address = int(text.split()[1]), f"127.0.0.1:{text.split()[1]}"
    user = BrokerConfig(username="gw-001", password_file=secret).at(broker.address)
    with broker:
        finding = of_broker(config, user)
        assert (finding.wrong, finding.text) == (False, "accepts gw-001, MQTT 5, without TLS")
        secret.write_text("wrong\n")
        finding = of_broker(config, user)
        assert finding.wrong
        assert "refuses the connection: Not authorized (see broker.username, broker.password_file" in finding.text
        assert of_broker(config, replace(user, username=None, password_file=None)).wrong
    finding = of_broker(config, user)
    assert finding.wrong
    assert "connection refused (does it run, and on that port?" in finding.text


def test_a_broker_of_mqtt_3_1_1_is_one_and_a_mute_host_is_none(config: AgentConfig, tmp_path: Path) -> None:
    broker: Broker
    with Amqtt(tmp_path / "broker") as broker:
        finding = of_broker(config, BrokerConfig(connect_timeout_s=2.0).at(broker.address))
        assert "MQTT 3.1.1" in finding.text
        assert not finding.wrong
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(8)
        finding = of_broker(config, BrokerConfig(connect_timeout_s=0.5).at(f"127.0.0.1:{mute.getsockname()[1]}"))
    assert finding.wrong
    assert "no answer from the broker (is it an MQTT broker?" in finding.text


@pytest.mark.parametrize("make", [pytest.param(Mosquitto, marks=needs_mosquitto), Amqtt])
def test_an_agent_with_another_state_file_keeps_its_connection_its_status_and_its_commands(
    config: AgentConfig, tmp_path: Path, make: Callable[[Path], Broker]
) -> None:
    """Neither a check nor a test alert that does not see it takes its place at the broker."""
    with make(tmp_path / "broker") as broker:
        settings = config_of(broker, connect_timeout_s=2.0)
        other, commands = Outbox(State(tmp_path / "other.sqlite")), {topic("gw-001", "cmd/+"): True}
        link = Link(settings, other, gateway="gw-001", agent="0.1.0", filters=commands)
        listener = Listener(broker)
        with in_thread(link.run):
            wait_until(lambda: listener.states() == ["online"])
            assert not of_broker(config, settings).wrong
            lines = list(steps(replace(config, broker=settings), ModelInfo("none"), 10.0))
            assert "no agent is running" in lines[0].text
            wait_until(lambda: len(listener.payloads()) == 2)
            listener.client.publish(topic("gw-001", "cmd/status"), b"{}", qos=1)
            wait_until(lambda: link.counts.commands == 1)
            assert link.counts.connects == 1
            assert listener.states() == ["online"]
        listener.close()


FOUND = [
    check.Finding("configuration", False, "9 monitored networks"),
    check.Finding("key_file", True, "/etc/gw.key can be read or written by others (0644): `chmod 600 /etc/gw.key`"),
    check.Finding("broker broker.lan:8883", False, "accepts gw-001, MQTT 5, with TLS", warn=True),
]


def test_findings_are_wrapped_under_themselves_and_the_last_line_counts_them() -> None:
    assert [line for finding in FOUND for line in finding.lines(60)] == [
        "ok     configuration: 9 monitored networks",
        "WRONG  key_file: /etc/gw.key can be read or written by",
        "         others (0644): `chmod 600 /etc/gw.key`",
        "warn   broker broker.lan:8883: accepts gw-001, MQTT 5, with",
        "         TLS",
    ]
    assert [len(finding.lines()) for finding in FOUND] == [1, 1, 1]
    assert check.summary(FOUND) == "1 wrong, 1 warning, 1 ok"
    assert check.summary([]) == "0 wrong, 0 warnings, 0 ok"


def test_a_finding_prints_nothing_that_a_terminal_would_obey() -> None:
    hostile = check.Finding("\x1b[31m", True, "the broker says \x1b]0;title\x07\u202e")
    assert all(line.isprintable() for line in hostile.lines(80))


def test_the_command_prints_what_it_finds_as_lines_or_as_one_document(
    config: AgentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(f"outbox: {{path: {config.outbox.path}}}\nevidence: {{path: {config.evidence.path}}}\n")
    words = ["check", "--config", str(file), "--broker", f"127.0.0.1:{free_port()}"]
    assert main(words) == 1
    lines = capsys.readouterr().out.splitlines()
    assert main([*words, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    states = [finding["state"] for finding in document["findings"]]
    assert (document["wrong"], document["warnings"]) == (states.count("wrong"), states.count("warning"))
    assert document["wrong"] >= 2  # no interface, no broker
    mark = {"ok": "ok", "wrong": "WRONG", "warning": "warn"}
    assert [line.split()[0] for line in lines[:-1]] == [mark[state] for state in states]
    assert lines[-1].startswith(f"{document['wrong']} wrong, ")


def certificate(path: Path, days: float) -> datetime:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gw-001")])
    until = (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(until - timedelta(days=400))
        .not_valid_after(until)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret = serialization.NoEncryption()
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    path.with_suffix(".key").write_bytes(key.private_bytes(*form, secret))
    return until


@pytest.mark.parametrize(
    ("days", "wrong", "warn", "said"),
    [
        (-2, True, False, "expired on"),
        (10.5, False, True, "expires in 10 days"),
        (100, False, False, "is valid until"),
        (365 * 60, False, False, "is valid until 20"),  # beyond 2050 the date is written in another form
    ],
)
def test_a_certificate_is_warned_of_before_it_expires(
    config: AgentConfig, tmp_path: Path, days: float, wrong: bool, warn: bool, said: str
) -> None:
    until = certificate(tmp_path / "gw.crt", days)
    assert Certificate.read((tmp_path / "gw.crt").read_text()).not_after_s == until.timestamp()
    broker = BrokerConfig(tls=True, cert_file=tmp_path / "gw.crt", key_file=tmp_path / "gw.key")
    (tmp_path / "gw.key").chmod(0o644)
    findings = found(replace(config, broker=broker.at(f"127.0.0.1:{free_port()}")))
    assert (findings["cert_file"].wrong, findings["cert_file"].warn) == (wrong, warn)
    assert said in findings["cert_file"].text
    assert until.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z") in findings["cert_file"].text  # as every time for people
    assert findings["key_file"].wrong
    assert f"`chmod 600 {tmp_path / 'gw.key'}`" in findings["key_file"].text
    (tmp_path / "gw.key").chmod(0o600)
    assert not found(replace(config, broker=broker.at(f"127.0.0.1:{free_port()}")))["key_file"].wrong


@pytest.mark.parametrize("text", ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "junk"])
def test_a_file_without_a_certificate_is_wrong(config: AgentConfig, tmp_path: Path, text: str) -> None:
    (tmp_path / "x.crt").write_text(text)
    for name, problem in (("x.crt", "holds no certificate"), ("absent.crt", "no such file or directory")):
        broker = BrokerConfig(tls=True, cert_file=tmp_path / name, key_file=tmp_path / "gw.key")
        finding = found(replace(config, broker=broker.at(f"127.0.0.1:{free_port()}")))["cert_file"]
        assert finding.wrong
        assert problem in finding.text


def test_a_disk_that_cannot_be_written_or_is_too_small_is_reported_with_the_remedy(
    config: AgentConfig, tmp_path: Path
) -> None:
    assert not found(config)["evidence"].wrong
    kept = EvidenceConfig(path=tmp_path / "evidence", max_mb=1 << 20)
    assert shutil.disk_usage(tmp_path).free < 1 << 40
    finding = found(replace(config, evidence=kept, outbox=OutboxConfig(path=tmp_path / "absent" / "box")))
    assert finding["evidence"].wrong
    assert "make room" in finding["evidence"].text
    assert f"`mkdir -p {tmp_path / 'absent'}`" in finding["disk"].text
    assert "evidence" not in found(replace(config, evidence=EvidenceConfig(path=None)))


def test_to_another_user_the_service_folder_is_closed_and_that_is_said(config: AgentConfig, tmp_path: Path) -> None:
    """DynamicUser= keeps it below /var/lib/private, into which only root may look."""
    private = tmp_path / "private"
    (private / "botwatch").mkdir(parents=True)
    hidden = private / "botwatch" / "box.sqlite"
    State(hidden).close()
    config = replace(config, outbox=OutboxConfig(path=hidden), evidence=EvidenceConfig(path=hidden.parent / "evidence"))
    private.chmod(0)
    root = os.geteuid() == 0
    try:
        if root:
            os.setresuid(65_534, 65_534, 0)
        findings = found(replace(config, broker=BrokerConfig().at(f"127.0.0.1:{free_port()}")))
        with pytest.raises(CommandRefused, match=r"Permission denied \(it may belong to another user"):
            order(config, "status", {})
    finally:
        if root:
            os.setresuid(0, 0, 0)
        private.chmod(0o700)
    for what in ("disk", "evidence"):
        assert "cannot be written by this user: run this as root or as the agent's user" in findings[what].text


def test_the_clock_is_what_the_kernel_says_of_it(config: AgentConfig) -> None:
    clock = found(config)["clock"]
    assert not clock.wrong
    assert clock.text.startswith(time.strftime("%Y-%m-%d", time.gmtime()))
    assert clock.warn == (synchronised() is False)
    assert ("not synchronised" in clock.text) == clock.warn
