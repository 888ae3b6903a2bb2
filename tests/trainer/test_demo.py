"""The demo's own rules: captures to fit and to replay, alerts that count, and the exit status."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from edge_agent.contract import captures
from edge_agent.contract.captures import Attack, Capture, CaptureManifest
from edge_agent.contract.messages import check_id
from tests.reference.frames import pcap
from tests.traffic import packet
from tests.trainer.judge.test_blame import alert as about
from trainer.demo import DemoError, Verdict, gateway_ids, judge, print_verdicts, split_captures

CAM, PLUG = "02:00:5e:10:00:01", "02:00:5e:10:00:02"
START = datetime(2026, 1, 5, 10, 20, tzinfo=UTC)
ATTACK = Capture(Path("cam/bad.pcap"), "cam", "mirai.scan", CAM, attack=Attack(START, START + timedelta(seconds=30)))
BENIGN = Capture(Path("cam/day.pcap"), "cam", "benign", CAM)


def test_every_capture_has_a_gateway_of_itssplit_captures():
    """Two captures of one name shared an outbox and each other's alerts, and other scripts' names gave no id at all."""
    files = ("mon/cap.pcap", "tue/cap.pcap", "cap-2.pcap", "ночь.pcap", f"{'x' * 90}.pcap", f"{'x' * 90}y.pcap")
    names = gateway_ids(CaptureManifest(tuple(replace(BENIGN, file=Path(f)) for f in files)))
    assert names[:4] == ["cam-cap", "cam-cap-2", "cam-cap-2-2", "cam"]
    assert len(set(map(check_id, names))) == len(files)
    assert check_id(gateway_ids(CaptureManifest((replace(BENIGN, device="Камера", file=Path("ночь.pcap")),)))[0])


def detected(capture):
    return Verdict(capture=capture, gateway="g", ms=5.0, packets=2, class_name="mirai.scan")


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
    fit, replay, root = split_captures(tmp_path, None, tmp_path / "out")
    assert root == tmp_path
    held = [{str(c.file) for c in captures.load(path, root)[0].captures} for path in (fit, replay)]
    assert held[0] == {"cam1.pcap", "cam2.pcap", "plug1.pcap", "plug2.pcap", "mirai.scan1.pcap"}
    assert held[1] == {"cam3.pcap", "plug3.pcap", "mirai.scan2.pcap", "mirai.udp1.pcap"}


def test_captures_that_leave_nothing_to_fit_on_are_refused(tmp_path):
    write(tmp_path, {"file": "a.pcap", "device": "cam", "label": "benign"})
    with pytest.raises(DemoError, match="no device has two benign captures"):
        split_captures(tmp_path, None, tmp_path)


def alert(at_s, *, sender=CAM, role="source", ip="", name="mirai.scan", episode="e1", gateway="cam-bad"):
    t_ns = int((START + timedelta(seconds=at_s)).timestamp() * 1e9)
    made = about(sender if role == "source" else "", role=role, ip=ip, t_ns=t_ns)
    return replace(made, id=episode, class_name=name, gateway=gateway)


def written(tmp_path, frames):
    (tmp_path / "cam").mkdir()
    (tmp_path / ATTACK.file).write_bytes(pcap(frames))


SECONDS = [int(START.timestamp()) + i for i in range(-10, 30)]


@pytest.fixture
def verdict(tmp_path):
    """The verdict on `ATTACK`, whose device sends a packet a second from ten seconds before it on."""
    cam = captures.parse_mac(CAM)
    written(tmp_path, [(t * 10**9, 60, packet("192.168.1.5", "203.0.113.9", mac=cam)) for t in SECONDS])

    def of(*alerts, capture=ATTACK):
        return judge(replace(capture, file=ATTACK.file), "cam-bad", tmp_path, list(alerts))

    return of


def test_an_attack_is_found_by_the_first_alert_on_its_device_since_it_began(verdict):
    found = verdict(alert(4.5), alert(9, name="mirai.udp"), alert(2, gateway="other"), alert(20, episode="e2"))
    assert (found.ms, found.packets, found.class_name, found.false_alerts) == (4500.0, 5, "mirai.udp", 0)
    assert not found.missed


@pytest.mark.parametrize(
    "of", [{"at_s": -1}, {"at_s": 5, "sender": PLUG}, {"at_s": 5, "role": "victim", "ip": "192.168.1.9"}]
)
def test_an_alert_before_the_attack_or_about_another_subject_is_false(verdict, of):
    found = verdict(alert(**of))
    assert found.missed
    assert found.false_alerts == 1


def test_who_attacks_may_be_unknown(verdict):
    found = verdict(alert(5, sender=PLUG), capture=replace(ATTACK, mac=None))
    assert (found.ms, found.false_alerts) == (5000.0, 0)


def test_of_an_attack_seen_from_its_victims_side_the_victim_must_be_named(tmp_path):
    """The manifest's MAC is a router's then: many hosts attack one behind it."""
    router, plug = captures.parse_mac(CAM), captures.parse_mac(PLUG)
    flood = [packet(f"203.0.113.{i}", "192.168.1.5", mac=router, to_mac=plug) for i in range(40)]
    written(tmp_path, [(t * 10**9, 60, frame) for t, frame in zip(SECONDS, flood, strict=True)])

    def of(**about):
        return judge(ATTACK, "cam-bad", tmp_path, [alert(5, **about)])

    assert of(role="victim", ip="192.168.1.5").ms == 5000.0
    for wrong in ({"role": "victim", "ip": "192.168.1.6"}, {"sender": CAM}):
        assert (of(**wrong).missed, of(**wrong).false_alerts) == (True, 1)


def test_any_alert_on_a_benign_capture_is_false(verdict):
    assert verdict(alert(5), capture=BENIGN).false_alerts == 1
    assert verdict(capture=BENIGN) == Verdict(capture=replace(BENIGN, file=ATTACK.file), gateway="cam-bad")


@pytest.mark.parametrize(
    ("verdict", "fails"),
    [
        (detected(ATTACK), False),
        (Verdict(capture=ATTACK, gateway="g"), True),
        (Verdict(capture=replace(ATTACK, expected=False), gateway="g"), False),
        (replace(detected(ATTACK), false_alerts=1), True),
        (Verdict(capture=BENIGN, gateway="g"), False),
        (Verdict(capture=BENIGN, gateway="g", false_alerts=1), True),
    ],
)
def test_it_fails_when_an_attack_is_missed_or_a_benign_device_alerted(verdict, fails, capsys):
    assert print_verdicts([verdict], generated=True) is fails
    assert "generated traffic" in " ".join(capsys.readouterr().out.split())
