"""Both ends of a connection through a real broker: an agent's link in a thread, a subscriber, a site's certificates."""

import datetime
import json
import threading
from contextlib import contextmanager

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edge_agent.contract.messages import topic
from edge_agent.delivery.link import BrokerConfig, Link

ALERT, STATUS = topic("gw-001", "alert"), topic("gw-001", "status")


def config_of(broker, **changes):
    return BrokerConfig(**{"retry_min_s": 0.05, "retry_max_s": 0.3, **changes}).at(broker.address)


@contextmanager
def in_thread(run):
    """Run ``run(stop)`` in a thread; the event ``stop`` is set at the end of the block."""
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


@contextmanager
def running(config, outbox):
    """Run a link in a thread; it is stopped cleanly at the end of the block."""
    link = Link(config, outbox, gateway="gw-001", agent="0.1.0")
    with in_thread(link.run):
        yield link


class Listener:
    """A subscriber whose session outlives restarts of the broker; ``got`` are the (topic, payload) of all messages."""

    def __init__(self, broker, filters=("botwatch/#",), tls=None, name="listener"):
        self.got, self.subscribed = [], threading.Event()
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, name, clean_session=False, protocol=MQTTProtocolVersion.MQTTv311
        )
        if tls:
            self.client.tls_set_context(tls)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda c, *_: c.subscribe([(f, 1) for f in filters])
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_message = lambda _c, _d, m: self.got.append((m.topic, m.payload))
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()
        assert self.subscribed.wait(10)

    def payloads(self, where=ALERT):
        return [payload for topic, payload in list(self.got) if topic == where]

    def states(self):
        return [json.loads(payload)["state"] for payload in self.payloads(STATUS)]

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def make_certificates(folder, host="127.0.0.1"):
    """Write a site's authority and certificates, those of a stranger's authority, and some that must be refused.

    ``host`` is the broker's address or name.
    """
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.datetime.now(datetime.UTC)

    def issue(name, issuer=None, authority=False, days=(-1, 30), host=host):
        alternative = x509.IPAddress(ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        signer, signer_name = issuer or (key, subject)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(signer_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=days[0]))
            .not_valid_after(now + datetime.timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            # Python 3.13 verifies strictly: it wants identifiers of both keys, and an authority that may sign
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
            .add_extension(
                x509.KeyUsage(True, False, False, False, False, authority, authority, False, False), critical=True
            )
            .sign(signer, hashes.SHA256())
        )
        (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return key, subject, certificate.serial_number

    def issued(name, **options):
        return issue(name, site[:2], **options)

    site = issue("ca", authority=True)
    issue("stranger", authority=True)
    for name in ("broker", "gw-001", "gw-002", "botwatch-collector", "operator", "viewer", "homeassistant"):
        issued(name)
    issued("expired", days=(-20, -10))
    issued("early", days=(10, 20))
    issued("elsewhere", host="192.0.2.1")
    revoked = issued("revoked")[2]
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(site[1])
        .last_update(now - datetime.timedelta(days=1))
        .next_update(now + datetime.timedelta(days=30))
        .add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(revoked)
            .revocation_date(now - datetime.timedelta(days=1))
            .build()
        )
        .sign(site[0], hashes.SHA256())
    )
    (folder / "crl.pem").write_bytes(crl.public_bytes(serialization.Encoding.PEM))


def tls_config(site, name="gw-001", **changes):
    files = {
        "ca_file": site.folder / "ca.crt",
        "cert_file": site.folder / f"{name}.crt",
        "key_file": site.folder / f"{name}.key",
    }
    return config_of(site, tls=True, **{**files, **changes})
