"""A command that root types leaves nothing in a service's folder that the service could not use."""

import os

import pytest

from edge_agent.__main__ import main
from edge_agent.delivery.evidence import EvidenceStore
from edge_agent.ownership import hand_over
from tests.edge_agent.delivery.test_alerts import CAMERA

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")

SERVICE = 61_999


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "botwatch"
    folder.mkdir()
    os.chown(folder, SERVICE, SERVICE)
    return folder


def owners(folder):
    return {path.name: (path.stat().st_uid, path.stat().st_gid) for path in folder.rglob("*")}


def test_a_test_alert_before_the_first_start_leaves_a_state_file_of_the_services_user(folder, capsys):
    (folder.parent / "agent.yaml").write_text(
        f"gateway: gw-001\nbroker: {{host: 127.0.0.1, port: 1}}\noutbox: {{path: {folder}/state.sqlite}}\n"
    )
    assert main(["test-alert", "--config", str(folder.parent / "agent.yaml"), "--wait", "0"]) == 1
    assert "the alert waits in" in capsys.readouterr().err
    assert owners(folder) == {"state.sqlite": (SERVICE, SERVICE)}


def test_evidence_that_root_stores_is_the_services(folder):
    store = EvidenceStore(folder / "evidence", lambda cut: (1, b""), seconds=1.0, most_bytes=1 << 20)
    assert store.begin("01936d2e-7b1c-7c3e-9f10-0c5a7c1e9a44", CAMERA)
    assert len(owners(folder)) == 2
    assert set(owners(folder).values()) == {(SERVICE, SERVICE)}


def test_what_is_anothers_stays_so_though_it_has_a_name_in_the_folder(folder):
    secret = folder.parent / "secret"
    secret.write_text("root's")
    os.link(secret, folder / "file")
    (folder / "link").symlink_to(secret)
    for name in ("file", "link", "absent"):
        hand_over(folder / name)
    assert secret.stat().st_uid == 0
