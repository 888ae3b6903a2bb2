"""The line over TLS: what the broker's configuration allows, and errors of certificates and files in one line each."""

import dataclasses
import shutil
import subprocess
from contextlib import contextmanager

import pytest

from collector.config import CollectorConfig
from collector.ingest import Ingest
from collector.store import AlertStore
from edge_agent.check import findings
from edge_agent.config import AgentConfig
from edge_agent.contract.broker import BrokerError
from edge_agent.contract.messages import topic
from edge_agent.delivery.link import BrokerConfig, Link
from tests.broker import Mosquitto, needs_mosquitto, wait_until
from tests.line import ALERT, in_thread, running, tls_config


@needs_mosquitto
def test_the_broker_configuration_we_ship_lets_a_gateway_speak_for_itself_only(site, outbox, listening):
    collector = listening(site, tls=tls_config(site, "botwatch-collector").tls_context())
    outbox.put([(ALERT, b"%d" % i, False) for i in range(300)])
    with running(tls_config(site), outbox) as link:
        assert link.flush(10) == 0
        outbox.put([(topic("gw-002", "alert"), b"not mine", False)])
        wait_until(lambda: link.counts.refused == 1)
        assert "Not authorized" in link.trouble
        outbox.put([(ALERT, b"mine", False)])
        wait_until(lambda: link.counts.acknowledged == 301)
        assert outbox.depth() == 1
        wait_until(lambda: len(set(collector.payloads())) == 301)
        assert collector.payloads(topic("gw-002", "alert")) == []


@contextmanager
def collecting(config, database="sqlite://"):
    """A collector's end of the line in its thread."""
    ingest = Ingest(CollectorConfig(broker=config), AlertStore(str(database)))
    with in_thread(ingest.run):
        yield ingest


@needs_mosquitto
def test_with_the_configuration_we_ship_two_collectors_of_one_certificate_have_one_id_and_name_that(
    site, tmp_path, caplog
):
    """The broker takes the id from the certificate, whatever the database of each has."""
    config = tls_config(site, "botwatch-collector")
    databases = tmp_path / "one.sqlite", tmp_path / "other.sqlite"
    with collecting(config, databases[0]) as one, collecting(config, databases[1]) as other:
        assert one.client_id != other.client_id
        for ingest in (one, other):
            wait_until(lambda ingest=ingest: ingest.counts.client_id_taken, 30)
            assert "another client uses the client id" in ingest.trouble
    assert "the certificate's CN" in caplog.text
    with collecting(config, databases[0]) as alone:
        wait_until(lambda: alone.connected and alone.trouble == "")
        assert alone.counts.failures == 0


STRANGER = {"cert_file": "stranger.crt", "key_file": "stranger.key"}


@needs_mosquitto
@pytest.mark.parametrize(
    ("brokers", "changes", "words"),
    [
        (
            "broker",
            {"ca_file": "stranger.crt"},
            "the broker's certificate is not accepted: self-signed certificate in cert",
        ),
        ("expired", {}, "the broker's certificate is not accepted: certificate has expired; is the clock of this"),
        ("early", {}, "the broker's certificate is not accepted: certificate is not yet valid; is the clock of this"),
        (
            "elsewhere",
            {},
            "the broker's certificate is not accepted: IP address mismatch, certificate is not valid for '127.0",
        ),
        ("broker", {"cert_file": None, "key_file": None}, "TLS: the broker wants a certificate from us"),
        (
            "broker",
            STRANGER,
            "TLS: the broker does not accept our certificate (cert_file): it does not know who signed it",
        ),
        ("broker", "expired", "TLS: the broker does not accept our certificate (cert_file): expired"),
        ("broker", "revoked", "TLS: the broker does not accept our certificate (cert_file): revoked"),
    ],
)
def test_a_certificate_error_is_one_readable_line_at_either_end(
    site, tmp_path, outbox, caplog, brokers, changes, words
):
    """However often it is met, at the agent as at the collector; the alert waits."""
    text = "listener 8883\nrequire_certificate true\n"
    for key, name in {"cafile": "ca.crt", "certfile": f"{brokers}.crt", "keyfile": f"{brokers}.key"}.items():
        text += f"{key} {site.folder / name}\n"
    text += f"crlfile {site.folder / 'crl.pem'}\n"
    if isinstance(changes, str):
        changes = {"cert_file": f"{changes}.crt", "key_file": f"{changes}.key"}
    changes = {key: value and site.folder / value for key, value in changes.items()}
    outbox.put([(ALERT, b"waits", False)])
    with Mosquitto(tmp_path / "broker", config=text) as broker:
        config = dataclasses.replace(tls_config(site, **changes), port=broker.port)
        with running(config, outbox) as link, collecting(config) as ingest:
            wait_until(lambda: link.counts.failures >= 5 and ingest.counts.failures >= 5)
            assert (link.trouble[: len(words)], ingest.trouble[: len(words)]) == (words, words)
        [found] = [f for f in findings(AgentConfig(broker=config), "no bundle") if f.what.startswith("broker")]
        assert found.wrong
        assert found.text.startswith(words)
    lines = [line for line in caplog.messages if str(broker.port) in line]
    assert len(lines) == 2
    assert all(words in line and "\n" not in line and len(line) < 200 for line in lines)
    assert outbox.depth() == 1


@needs_mosquitto
def test_a_user_with_a_password_over_tls_is_let_in_and_a_wrong_one_is_one_line_in_the_log(
    site, tmp_path, outbox, listening, caplog
):
    tool = shutil.which("mosquitto_passwd")
    if not tool:
        pytest.skip("mosquitto_passwd is not installed")
    users = tmp_path / "users"
    subprocess.run([tool, "-b", "-c", str(users), "gw-001", "so secret"], check=True)
    (tmp_path / "right").write_text("so secret\nonly the first line counts\n")
    (tmp_path / "wrong").write_text("guessed\n")
    text = f"listener 8883\ncertfile {site.folder}/broker.crt\nkeyfile {site.folder}/broker.key\n"
    text += f"allow_anonymous false\npassword_file {users}\n"
    outbox.put([(ALERT, b"secret", False)])
    with Mosquitto(tmp_path / "broker", config=text) as broker:
        own = {"username": "gw-001", "password_file": tmp_path / "wrong", "cert_file": None, "key_file": None}
        config = dataclasses.replace(tls_config(site, **own), port=broker.port)
        with running(config, outbox) as link:
            wait_until(lambda: link.counts.failures >= 4)
            assert link.trouble == "refuses the connection: Not authorized"
        assert sum("Not authorized" in line for line in caplog.messages) == 1
        config = dataclasses.replace(config, password_file=tmp_path / "right")
        with running(config, outbox) as link:
            wait_until(lambda: link.counts.unheard >= 1)  # it came through, and nobody listens
            assert link.protocol == "5"


def test_files_that_cannot_be_used_stop_the_start_with_their_name(site, tmp_path, outbox):
    (tmp_path / "junk").write_text("no certificate")
    (tmp_path / "torn.crt").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    (tmp_path / "locked.key").write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n-----END ENCRYPTED PRIVATE KEY-----\n")
    own, key, ours = site.folder / "gw-001.crt", site.folder / "gw-001.key", {"tls": True}
    for changes, words in (
        ({**ours, "ca_file": tmp_path / "none.crt"}, "ca_file .*none.crt: no such file"),
        ({**ours, "ca_file": tmp_path}, "ca_file .*: is a directory"),
        ({**ours, "ca_file": tmp_path / "junk"}, "ca_file .*junk: holds no certificate"),
        ({**ours, "ca_file": tmp_path / "torn.crt"}, "ca_file .*torn.crt: TLS: "),
        ({**ours, "cert_file": tmp_path / "none.crt", "key_file": key}, "cert_file .*none.crt: no such file"),
        ({**ours, "cert_file": own, "key_file": tmp_path / "none.key"}, "^key_file .*none.key: no such file"),
        ({**ours, "cert_file": own, "key_file": own}, "^key_file .*gw-001.crt: holds no private key"),
        ({**ours, "cert_file": key, "key_file": key}, "^cert_file .*gw-001.key: holds no certificate"),
        ({**ours, "cert_file": own, "key_file": tmp_path / "locked.key"}, "^key_file .*: has a passphrase"),
        (
            {**ours, "cert_file": own, "key_file": site.folder / "gw-002.key"},
            "the key does not belong to the certificate",
        ),
        ({"username": "u", "password_file": tmp_path / "none"}, "password_file .*no such file"),
        ({"ca_file": tmp_path / "junk"}, "ca_file: needs tls"),
        ({**ours, "cert_file": own}, "cert_file: needs key_file"),
        ({"port": 0}, "port"),
        ({"base": "a/#"}, "base"),
    ):
        with pytest.raises(ValueError, match=words) as raised:
            Link(BrokerConfig(**changes), outbox, gateway="gw-001", agent="0.1.0")
        assert "\n" not in str(raised.value)
    with pytest.raises(BrokerError, match="HOST"):
        BrokerConfig().at("host:port")
