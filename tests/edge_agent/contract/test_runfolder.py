"""The run folder's JSON files: written and read back, byte for byte, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.contract import runfolder
from edge_agent.contract.bundle import PacketProfile
from edge_agent.contract.decision import Decision, Tail, Threshold
from edge_agent.contract.runfolder import ModelFile, Provenance, RunFolderError
from edge_agent.contract.scaling import Scaler

TAIL = Tail(level=0.2, scale=0.8, shape=0.0, peaks=400, days=2.5, limit=0.6, bound=0.9)
LIMIT = Threshold(
    limit=1.0, highest=0.5, tau=0.8, quantile=0.9, tail=TAIL, n=3.0, mean=0.5, std=0.1, min=0.1, max=0.9, rows=100
)
MODEL = ModelFile(
    schemas=("nbaiot115-clean-1",),
    columns=("H_L5_mean", "H_L1_mean"),
    classes=("benign", "mirai.scan"),
    signatures={"mirai.scan": PacketProfile((0.5,) * 14, (0.1,) * 14, (0.0,) * 14)},
    scaler=Scaler("log1p", np.array([0.1, 0.2]), np.array([1.0, 2.0]), 10.0).to_json(),
    decision=Decision(LIMIT, LIMIT, {"device_L1_new_peers": 3.0}),
    generated=True,
    normal={"H_L5_mean": (60.0, 1514.0), "H_L1_mean": (60.0, 1514.0)},
    seed=7,
    provenance={"run": "home"},
)


def test_a_model_is_read_as_it_was_written_and_written_again_as_it_was(tmp_path: Path) -> None:
    runfolder.write_model(tmp_path, MODEL)
    content = (tmp_path / runfolder.MODEL).read_bytes()
    model, scaler = runfolder.read_model(tmp_path)
    assert model == MODEL
    assert scaler.mean.tolist() == [0.1, 0.2]
    runfolder.write_model(tmp_path, model)
    assert (tmp_path / runfolder.MODEL).read_bytes() == content


def test_a_run_of_before_packet_profiles_is_read(tmp_path: Path) -> None:
    runfolder.write_model(tmp_path, MODEL)
    data = json.loads((tmp_path / runfolder.MODEL).read_bytes())
    del data["signatures"]
    runfolder.write_json(tmp_path / runfolder.MODEL, data)
    assert runfolder.read_model(tmp_path)[0] == replace(MODEL, signatures={})


def test_provenance_gives_the_date_of_a_run(tmp_path: Path) -> None:
    runfolder.write_provenance(tmp_path, Provenance(created="2026-11-23T12:00:00Z", seed=3))
    read = runfolder.read_provenance(tmp_path)
    assert (read.seed, read.created_at().isoformat()) == (3, "2026-11-23T12:00:00+00:00")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "missing key 'created'"),
        ('{"created": "yesterday"}', "'yesterday' is not an ISO 8601 date"),
        ("[]", "expected keys and values"),
        ("{", "not JSON"),
    ],
)
def test_a_provenance_without_a_date_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / runfolder.PROVENANCE).write_text(content)
    with pytest.raises(RunFolderError, match=reason):
        runfolder.read_provenance(tmp_path)


def test_a_folder_without_a_model_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"not a run folder: model\.json is missing"):
        runfolder.read_model(tmp_path)


def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        runfolder.write_json(tmp_path / runfolder.METRICS, {"loss": float("nan")})
