"""The archive for whoever helps: what is in it, and that no secret is."""

import gzip
import json
import os
import re
import tarfile
from pathlib import Path

import pytest
import yaml

from edge_agent import support
from edge_agent.__main__ import main
from tests.broker import free_port
from tests.edge_agent.test_check import certificate

PASSWORD = "it's a correct horse, a battery and a very long staple"


@pytest.fixture
def archive(tmp_path: Path) -> dict[str, str]:
    """Of a gateway whose password also stands where it does not belong: in a name, and in a path."""
    certificate(tmp_path / "gw.crt", 100)
    (tmp_path / "secret").write_text(PASSWORD + "\n")
    (tmp_path / "agent.yaml").write_text(
        f'gateway: gw-7\nnames: {{"02:00:5e:10:00:01": "{PASSWORD}"}}\nbundle: "{tmp_path}/{PASSWORD}"\n'
        f"outbox: {{path: {tmp_path}/box.sqlite}}\nevidence: {{path: {tmp_path}/evidence}}\n"
        f"broker: {{host: 127.0.0.1, port: {free_port()}, username: gw-7, password_file: {tmp_path}/secret, tls: true, "
        f"cert_file: {tmp_path}/gw.crt, key_file: {tmp_path}/gw.key}}\n"
    )
    out = tmp_path / "support.tar.gz"
    assert main(["support", "--config", str(tmp_path / "agent.yaml"), "--out", str(out)]) == 0
    assert os.stat(out).st_mode & 0o077 == 0
    assert not out.with_name("support.tar.gz.part").exists()
    with tarfile.open(out) as tar:
        return {member.name: tar.extractfile(member).read().decode() for member in tar.getmembers()}  # type: ignore[union-attr]


def test_no_secret_of_the_configuration_is_in_any_member(archive: dict[str, str], tmp_path: Path) -> None:
    whole = gzip.decompress((tmp_path / "support.tar.gz").read_bytes()).decode("utf-8", "replace")
    secrets = [PASSWORD, *(tmp_path / "gw.key").read_text().splitlines()[1:-1]]
    assert len(secrets) > 2
    for secret in secrets:
        assert secret not in whole
    assert "correct horse" not in whole
    assert "PRIVATE KEY" not in whole
    assert "(struck out)" in archive["botwatch-support/config.yaml"]


def test_it_has_what_is_needed_to_help(archive: dict[str, str]) -> None:
    names = ("config.yaml", "check.txt", "versions.txt", "status.json", "machine.txt", "log.txt")
    assert list(archive) == [f"botwatch-support/{name}" for name in names]
    config, checked, versions, status, machine, _ = archive.values()
    assert yaml.safe_load(config)["gateway"] == "gw-7"
    assert "WRONG  bundle: " in checked
    assert re.fullmatch(r"[1-9] wrong, \d warnings?, [1-9] ok", checked.splitlines()[-1])
    assert "connection refused" in checked
    assert "botwatch " in versions
    assert "kernel " in versions
    assert "no agent has run with it" in json.loads(status)["error"]
    assert "MemTotal" in machine
    assert "MB free of" in machine


def test_a_member_is_bounded_and_a_log_keeps_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "journalctl"
    program.write_text("#!/bin/sh\nseq 1 200000\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "agent.yaml").write_text(f"outbox: {{path: {tmp_path}/box.sqlite}}\n")
    out = tmp_path / "s.tar.gz"
    assert main(["support", "--config", str(tmp_path / "agent.yaml"), "--out", str(out)]) == 0
    with tarfile.open(out) as tar:
        log = tar.extractfile("botwatch-support/log.txt").read()  # type: ignore[union-attr]
    assert len(log) == support.MAX_MEMBER
    assert log.endswith(b"\n200000\n")


def test_where_it_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "agent.yaml").write_text(f"outbox: {{path: {tmp_path}/box.sqlite}}\n")
    words = ["support", "--config", str(tmp_path / "agent.yaml"), "--out", str(tmp_path / "absent" / "s.tar.gz")]
    assert main(words) == 1
    assert capsys.readouterr().err.endswith("s.tar.gz: No such file or directory\n")


def test_a_password_behind_a_byte_order_mark_and_one_in_a_url_are_struck_out(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\xef\xbb\xbf" + PASSWORD.encode() + b"\r\n")
    (tmp_path / "agent.yaml").write_text(
        f'site: "{PASSWORD}"\nnames: {{"02:00:5e:10:00:01": "mqtt://joe:Geheim-1@box"}}\n'
        f"outbox: {{path: {tmp_path}/box.sqlite}}\nevidence: {{path: null}}\n"
        f"broker: {{host: '[::1]', port: {free_port()}, username: 'joe:Geheim-1@box', "
        f"password_file: {tmp_path}/secret}}\n"
    )
    out = tmp_path / "support.tar.gz"
    assert main(["support", "--config", str(tmp_path / "agent.yaml"), "--out", str(out)]) == 0
    whole = gzip.decompress(out.read_bytes()).decode("utf-8", "replace")
    assert "correct horse" not in whole
    assert "Geheim" not in whole
    assert "(struck out)@box" in whole
