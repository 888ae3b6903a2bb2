"""Each day is left out of one fit and judged once."""

from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.contract import captures
from edge_agent.contract.captures import Capture, CaptureManifest
from trainer.config import DatasetEntry
from trainer.judge import rotation
from trainer.judge.evaluation import Day, Evaluation

MAC = "02:00:00:00:00:01"


def manifest(**days: int) -> CaptureManifest:
    """Return a manifest of devices with so many days each, and an attack."""
    entries = [
        Capture(Path(f"{device}-{i}.pcap"), device, "benign", MAC, "plug")
        for device, n in days.items()
        for i in range(n)
    ]
    return CaptureManifest((*entries, Capture(Path("attack.pcap"), "bot", "mirai.scan", MAC)), generated=True)


@pytest.fixture
def folds(tmp_path: Path) -> list[rotation.Fold]:
    one, other = manifest(cam=3, plug=2), manifest(hub=1)
    for name in {str(c.file) for m in (one, other) for c in m.captures}:
        (tmp_path / name).write_bytes(b"")
    entry = DatasetEntry("captures", tmp_path / "manifest.yaml")
    return rotation.folds([(entry, one, tmp_path), (entry, other, tmp_path)], tmp_path / "days")


def names(manifests: object) -> list[str]:
    return [c.name for m, _ in manifests for c in m.captures]  # type: ignore[attr-defined]


def test_every_day_of_devices_with_several_is_judged_once(folds):
    assert [names(fold.judged) for fold in folds] == [
        ["cam-0.pcap", "plug-0.pcap"],
        ["cam-1.pcap", "plug-1.pcap"],
        ["cam-2.pcap"],
    ]


def test_a_fit_reads_all_other_days_and_the_attacks_from_manifests_of_its_own(folds):
    for fold in folds:
        fitted = [c for entry in fold.data for c in captures.load(entry.path, entry.root)[0].captures]
        judged = set(names(fold.judged))
        assert not judged & {c.name for c in fitted}
        assert {c.name for c in fitted if c.label == "benign"} == set(names(fold.earlier))
        assert len(judged) + len(names(fold.earlier)) == 6
        assert sum(c.label == "mirai.scan" for c in fitted) == 2
        assert all(captures.load(entry.path, entry.root)[0].generated for entry in fold.data)
        assert {c.kind for c in fitted if c.label == "benign"} == {"plug"}


def test_devices_with_one_day_each_cannot_be_rotated(tmp_path):
    source = (DatasetEntry("captures", tmp_path), manifest(cam=1, plug=1), tmp_path)
    with pytest.raises(rotation.RotationError, match="two benign captures"):
        rotation.folds([source], tmp_path)


def test_false_alerts_are_added_up_by_device_with_what_they_prove():
    day = Day(
        capture="a", device="cam", generated=False, days=3.5, packets=1000, flagged=10, alerts=1, early=0, kind="camera"
    )
    one = Evaluation(bundle="0", days=(day, replace(day, device="plug", alerts=0)), alone=(), injected=())
    two = Evaluation(bundle="1", days=(replace(day, alerts=2, alerts_site=1, flagged_site=0.5),), alone=(), injected=())
    sentence, table = rotation.table([one, two])
    assert "3 in 10.50 device-days (1.5 device-weeks)" in sentence
    assert "limits learnt on the other days: 1 in 3.50 device-days" in sentence
    assert table.rows[0] == ("cam", "camera", 2, 7.0, 3, 1, 0.01, 0.5)
    assert table.rows[1][:5] == ("plug", "camera", 1, 3.5, 0)
