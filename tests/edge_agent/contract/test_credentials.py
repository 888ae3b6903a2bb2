"""Secrets that are named as credentials: found where systemd put them, else where root put them, never in a message."""

import dataclasses
import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.__main__ import main
from edge_agent.contract import credentials
from edge_agent.contract.broker import FILES, BrokerConfig, BrokerError
from tests.broker import free_port
from tests.edge_agent.test_check import certificate
from tests.edge_agent.test_sandbox import needs_mounts

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The credentials of a service, as systemd hands them over."""
    made = tmp_path / "credentials"
    made.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(made))
    return made


def with_password(name: str) -> BrokerConfig:
    return BrokerConfig(username="gw-1", password_file=Path(f"credential:{name}"))


@pytest.mark.parametrize("content", [b"correct\n", b"\xef\xbb\xbfcorrect\r\nsecond line"])
def test_a_password_is_read_from_the_credentials_of_the_service(folder: Path, content: bytes) -> None:
    (folder / "botwatch_mqtt.password").write_bytes(content)
    assert with_password("mqtt.password").password() == "correct"


def test_a_credential_of_a_unit_of_ones_own_has_no_prefix(folder: Path) -> None:
    """The collector's, say: LoadCredential=mqtt.password:/etc/collector/password."""
    (folder / "mqtt.password").write_text("own")
    assert with_password("mqtt.password").password() == "own"


def test_each_key_of_tls_may_name_a_credential(folder: Path) -> None:
    certificate(folder / "botwatch_gw.crt", 100)
    (folder / "botwatch_gw.key").chmod(0o400)
    crt, key = Path("credential:gw.crt"), Path("credential:gw.key")
    config = BrokerConfig(tls=True, ca_file=crt, cert_file=crt, key_file=key)
    assert config.tls_context() is not None
    assert config.file("cert_file") == folder / "botwatch_gw.crt"
    for change, line in (
        ({"ca_file": key}, "ca_file credential:gw.key: holds no certificate (PEM)"),
        ({"key_file": crt}, "key_file credential:gw.crt: holds no private key (PEM)"),
    ):
        with pytest.raises(BrokerError) as refused:
            dataclasses.replace(config, **change).tls_context()
        assert str(refused.value) == line


@pytest.mark.parametrize("key", FILES)
def test_a_missing_credential_is_one_line_with_key_name_and_folder(key: str, folder: Path) -> None:
    values = {name: Path(f"credential:{name}") for name in FILES}
    with pytest.raises(BrokerError) as refused:
        BrokerConfig(username="u", tls=True, **values).file(key)
    line = f"{key} credential:{key}: {credentials.FOLDER} had no file {key} when the service was started"
    assert str(refused.value) == line


@pytest.mark.parametrize("name", ["", "../passwd", "a/b", ".hidden", "a b", "a\nb", "a:b", "x" * 200, "\x1b[31m"])
@pytest.mark.parametrize("key", FILES)
def test_a_name_that_no_file_in_the_folder_can_have_is_refused_with_the_configuration(key: str, name: str) -> None:
    others = {other: Path("x") for other in FILES if other != key}
    with pytest.raises(BrokerError, match=f"^{key}: .*credential: is followed by the name of a file in") as refused:
        BrokerConfig(username="u", tls=True, **others, **{key: Path(f"credential:{name}")})
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


def test_a_path_stays_a_path(folder: Path) -> None:
    (folder / "botwatch_secret").write_text("x")
    assert credentials.locate(Path("secret")) == Path("secret")
    assert credentials.name_of(Path("my/credential:x")) is None


def test_the_archive_for_support_has_no_secret_from_a_credential(folder: Path, tmp_path: Path) -> None:
    secret = "a battery and a very long staple"
    (folder / "botwatch_p").write_bytes(b"\xef\xbb\xbf" + secret.encode() + b"\r\n")
    certificate(folder / "botwatch_gw.crt", 100)
    (tmp_path / "agent.yaml").write_text(
        f'site: "{secret}"\noutbox: {{path: {tmp_path}/box.sqlite}}\nbroker: {{host: 127.0.0.1, port: {free_port()}, '
        "username: u, password_file: credential:p, "
        "tls: true, cert_file: credential:gw.crt, key_file: credential:gw.key}\n"
    )
    out = tmp_path / "support.tar.gz"
    assert main(["support", "--config", str(tmp_path / "agent.yaml"), "--out", str(out)]) == 0
    whole = gzip.decompress(out.read_bytes()).decode("utf-8", "replace")
    for line in (secret, *(folder / "botwatch_gw.key").read_text().splitlines()[1:-1]):
        assert line not in whole
    assert "password_file: credential:p\n" in whole


PRINT = """
from pathlib import Path
from edge_agent.contract.broker import BrokerConfig, BrokerError
try:
    print(BrokerConfig(username="u", password_file=Path("credential:mqtt.password")).password())
except BrokerError as error:
    print(error)
"""


def printed(folder: Path, before: str, **environment: str) -> str:
    """Return the password that a program reads, or its error, with a folder for credentials in a copy of /etc."""
    script = f"""
    set -e
    mount -t tmpfs tmpfs {folder}
    mkdir {folder}/new {folder}/work
    mount -t overlay overlay -o lowerdir=/etc,upperdir={folder}/new,workdir={folder}/work /etc
    rm -rf /etc/botwatch
    {before}
    exec {sys.executable} -c '{PRINT}'
    """
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    ).stdout.strip()


@needs_mounts
def test_a_command_that_root_types_reads_the_folder_itself(tmp_path: Path) -> None:
    """Also from a shell that another service with credentials of its own has started."""
    made = "install -d -m 700 /etc/botwatch/credentials; echo root > /etc/botwatch/credentials/mqtt.password"
    assert printed(tmp_path, made) == "root"
    assert printed(tmp_path, made, CREDENTIALS_DIRECTORY=str(tmp_path)) == "root"
    line = "password_file credential:mqtt.password: there is no file mqtt.password in /etc/botwatch/credentials"
    assert printed(tmp_path, "true") == line
