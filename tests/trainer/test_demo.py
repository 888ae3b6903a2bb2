"""The demo's own rules: which captures are fitted and replayed, whose alerts count, when it must not end with 0."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from edge_agent.contract import captures
from edge_agent.contract.captures import Attack, Capture, CaptureManifest
from edge_agent.contract.messages import check_id, format_time
from tests.reference.frames import pcap
from tests.traffic import packet
from trainer.demo import DemoError, Verdict, _close, _gateways, _judge, _own

CAM, PLUG = "02:00:5e:10:00:01", "02:00:5e:10:00:02"
START = datetime(2026, 1, 5, 10, 20, tzinfo=UTC)
ATTACK = Capture(Path("cam/bad.pcap"), "cam", "mirai.scan", CAM, attack=Attack(START, START + timedelta(seconds=30)))
BENIGN = Capture(Path("cam/day.pcap"), "cam", "benign", CAM)


def test_every_capture_has_a_gateway_of_its_own():
    """Two captures of one name shared an outbox and each other's alerts, and other scripts' names gave no id at all."""
    files = ("mon/cap.pcap", "tue/cap.pcap", "cap-2.pcap", "ночь.pcap", f"{'x' * 90}.pcap", f"{'x' * 90}y.pcap")
    names = _gateways(CaptureManifest(tuple(replace(BENIGN, file=Path(f)) for f in files)))
    assert names[:4] == ["cam-cap", "cam-cap-2", "cam-cap-2-2", "cam"]
    assert len(set(map(check_id, names))) == len(files)
    assert check_id(_gateways(CaptureManifest((replace(BENIGN, device="Камера", file=Path("ночь.pcap")),)))[0])


def write(folder, *entries):
    for entry in entries:
        (folder / entry["file"]).touch()
    (folder / captures.MANIFEST).write_text(yaml.safe_dump({"captures": list(entries)}))


def test_the_last_benign_capture_of_each_device_is_replayed_and_one_of_several_attacks_is_fitted(tmp_path):
    days = [{"file": f"{d}{i}.pcap", "device": d, "label": "benign"} for d in ("cam", "plug") for i in (1, 2, 3)]
    bad = [
        {"file": f"{x}.pcap", "device": "cam", "label": x[:-1]} for x in ("mirai.scan1", "mirai.scan2", "mirai.udp1")
    ]
    (tmp_path / "out").mkdir()
    write(tmp_path, *days, *bad)
    fit, replay, root = _own(tmp_path, None, tmp_path / "out")
    assert root == tmp_path
    held = [{str(c.file) for c in captures.load(path, root)[0].captures} for path in (fit, replay)]
    assert held[0] == {"cam1.pcap", "cam2.pcap", "plug1.pcap", "plug2.pcap", "mirai.scan1.pcap"}
    assert held[1] == {"cam3.pcap", "plug3.pcap", "mirai.scan2.pcap", "mirai.udp1.pcap"}


def test_captures_that_leave_nothing_to_fit_on_are_refused(tmp_path):
    write(tmp_path, {"file": "a.pcap", "device": "cam", "label": "benign"})
    with pytest.raises(DemoError, match="no device has two benign captures"):
        _own(tmp_path, None, tmp_path)


def alert(at_s, *, sender=CAM, role="source", name="mirai.scan", seq=1, episode="e1", gateway="cam-bad"):
    ours = {"id": episode, "seq": seq, "role": role, "class": name}
    when = format_time(int((START + timedelta(seconds=at_s)).timestamp() * 1e9))
    return {
        "timestamp": when,
        "host": gateway,
        "ether": {"src_mac": sender},
        "alert": {"context": {"botwatch": ours}},
    }


@pytest.fixture
def judge(tmp_path):
    """The verdict on `ATTACK`, whose device sends a packet a second from ten seconds before it on."""
    times = [int(START.timestamp()) + i for i in range(-10, 30)]
    frames = [(t * 10**9, 60, packet("192.168.1.5", "203.0.113.9", mac=captures.parse_mac(CAM))) for t in times]
    (tmp_path / "cam").mkdir()
    (tmp_path / ATTACK.file).write_bytes(pcap(frames))

    def verdict(*alerts, capture=ATTACK):
        return _judge(replace(capture, file=ATTACK.file), "cam-bad", tmp_path, list(alerts))

    return verdict


def test_an_attack_is_found_by_the_first_alert_on_its_device_since_it_began(judge):
    found = judge(alert(4.5), alert(9, seq=2, name="mirai.udp"), alert(2, gateway="other"), alert(20, episode="e2"))
    assert (found.ms, found.packets, found.said, found.false_alerts) == (4500.0, 5, "mirai.udp", 0)
    assert not found.missed


@pytest.mark.parametrize("of", [{"at_s": -1}, {"at_s": 5, "sender": PLUG}])
def test_an_alert_before_the_attack_or_on_another_device_is_false(judge, of):
    verdict = judge(alert(**of))
    assert verdict.missed
    assert verdict.false_alerts == 1


def test_a_victim_named_is_an_attack_found(judge):
    assert judge(alert(5, sender=PLUG, role="victim")).ms == 5000.0


def test_any_alert_on_a_benign_capture_is_false(judge):
    assert judge(alert(5), capture=BENIGN).false_alerts == 1
    assert judge(capture=BENIGN) == Verdict(replace(BENIGN, file=ATTACK.file), "cam-bad", None, None, "", 0)


@pytest.mark.parametrize(
    ("verdict", "fails"),
    [
        (Verdict(ATTACK, "g", 5.0, 2, "mirai.scan", 0), False),
        (Verdict(ATTACK, "g", None, None, "", 0), True),
        (Verdict(replace(ATTACK, expected=False), "g", None, None, "", 0), False),
        (Verdict(ATTACK, "g", 5.0, 2, "mirai.scan", 1), True),
        (Verdict(BENIGN, "g", None, None, "", 0), False),
        (Verdict(BENIGN, "g", None, None, "", 1), True),
    ],
)
def test_it_fails_when_an_attack_is_missed_or_a_benign_device_alerted(verdict, fails, capsys):
    assert _close([verdict], generated=True) is fails
    assert "generated traffic" in " ".join(capsys.readouterr().out.split())
