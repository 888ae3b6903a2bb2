"""Generated check-ins: their packets, the unchanged rest of the traffic, and their part in another device's day."""

import hashlib
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from edge_agent.contract import captures
from edge_agent.contract.bundle import BENIGN
from edge_agent.contract.columns import CLEAN, SCHEMAS
from trainer.config import DatasetEntry
from trainer.data import dataset
from trainer.data.row_table import Limits
from trainer.judge import inject
from trainer.traffic.captures import generate
from trainer.traffic.plan import CHECKINS, Plan, PlanError

PLAN = Plan(seed=7, days=0, devices=("plug",), lead_minutes=1, tail_minutes=0.5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkins")
    generate(replace(PLAN, attacks=tuple(f"{label}:rate=0.1:seconds=900" for label in CHECKINS)), out)
    return out


def test_earlier_attacks_are_byte_for_byte_the_same(tmp_path):
    """Figures belong to one version of the traffic: a small plan is byte for byte as before there were check-ins."""
    generate(Plan(seed=7, days=1, hours=0.2, lead_minutes=1, attack_seconds=6, max_attack_packets=1500), tmp_path)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    assert digest == "128f9a3f00c9ce3c5a9ecc29e52951e63c5d7e01dcb12b9c81b7f390918a8098"


def test_check_ins_are_few_small_and_go_to_one_host(made):
    manifest, _, root = captures.load(made)
    assert [c.label for c in manifest.captures] == list(CHECKINS)
    for capture in manifest.captures:
        assert capture.attack is not None
        attack = inject.attack(inject.read(root / capture.file), capture)
        sent = [attack.frames[i] for i in attack.sent()]
        assert 80 <= len(sent) <= 700  # of 90 check-ins
        assert max(length for _, length, _ in attack.frames) < 100
        assert {data[30:34] for _, _, data in sent} == {IPv4Address(attack.server).packed}
        assert (sent[-1][0] - sent[0][0]) / 1e9 == pytest.approx(900, abs=15)


@pytest.mark.parametrize(("label", "syn_acks"), [("held", 1), ("anew", 90), ("unanswered", 0), ("refused", 0)])
def test_servers_answer_as_they_should(made, label, syn_acks):
    manifest, _, root = captures.load(made)
    capture = next(c for c in manifest.captures if c.label == f"checkins.{label}")
    frames = inject.attack(inject.read(root / capture.file), capture).frames
    assert sum(data[47] & 18 == 18 for _, _, data in frames) == pytest.approx(syn_acks, abs=0.15 * syn_acks)
    resets = sum(data[47] & 4 > 0 for _, _, data in frames)
    assert resets > 70 if label == "refused" else resets == 0


def test_only_packets_to_the_server_are_rows_of_the_attack(made):
    """In an hour of check-ins a device sends much else, and a classifier must not learn that."""
    columns = SCHEMAS[CLEAN][:5]
    table = dataset.load([DatasetEntry("captures", made)], columns, CLEAN, Limits())
    manifest, _, root = captures.load(made)
    for capture in manifest.captures:
        sent = len(inject.attack(inject.read(root / capture.file), capture).sent())
        assert int((table.label == table.labels.index(capture.label)).sum()) == sent
    assert BENIGN not in table.labels or not (table.label == table.labels.index(BENIGN)).any()


def test_an_unrealistic_rate_is_refused():
    with pytest.raises(PlanError, match="rate is 50"):
        replace(PLAN, attacks=("checkins.held:rate=50",)).check()
