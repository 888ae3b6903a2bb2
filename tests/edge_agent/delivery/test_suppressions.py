"""What an allow covers: a device's kinds of traffic and their ports, named by an alert, by kind, or by class."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from edge_agent.__main__ import main
from edge_agent.config import ControlConfig
from edge_agent.contract import alertid
from edge_agent.contract.alert import Activity
from edge_agent.contract.messages import MessageError
from edge_agent.control import CommandRefused
from edge_agent.delivery.evidence import EvidenceError, fetch, stored_id
from tests.edge_agent.delivery.test_alerts import CAMERA, at
from tests.edge_agent.test_control import MAC, NOBODY, OTHER, Gateway

SSH = (Activity("scan", 22),)
SCAN = replace(CAMERA, class_name="gafgyt.scan", activities=SSH, dest_port=22)


def as_(seconds, *activities, name="anomaly", device=SCAN):
    """A later detection that consists of other activities."""
    return at(seconds, device, class_name=name, activities=activities)


@pytest.fixture
def gateway(tmp_path):
    return Gateway(tmp_path, names={MAC: "nas"})


def covered(gateway, *activities, name="anomaly", **changes):
    """Return True if a detection of the device would be suppressed now."""
    detection = replace(SCAN, class_name=name, activities=activities, **changes)
    return gateway.control.suppressions.covers(detection)


# --- kinds and ports ---


def test_what_is_allowed_by_an_alert_stays_quiet_under_the_names_of_another_model(gateway):
    ((_, _, alert),) = gateway.see(SCAN)
    result = gateway.order("allow", alert=alert, reason="backup job", for_s=7 * 86_400)
    assert result["suppressed"] == f"scans to port 22, nas ({MAC})"
    assert gateway.settle() == [("end", "gafgyt.scan")]
    for name in ("anomaly", "unknown", "mirai", "mirai.scan", "mirai.syn"):
        assert covered(gateway, *SSH, name=name), name
    for other in (
        [Activity("scan", 23)],
        [Activity("scan", 2323)],
        [Activity("scan")],
        [Activity("flood", 22)],
        [Activity("check-in", 22)],
        [Activity("other", 22)],
        [Activity("flood", 80), *SSH],
        [*SSH, Activity("check-in", 443)],
    ):
        assert not covered(gateway, *other, name="gafgyt.scan"), other
    assert not covered(gateway, *SSH, device_mac=OTHER.device_mac)
    assert gateway.see(as_(10, *SSH)) == []
    assert [state for state, _, _ in gateway.see(as_(20, Activity("flood", 80), *SSH))] == ["new"]


def test_everything_that_an_episode_reported_is_allowed_by_its_id(gateway):
    ((_, _, alert),) = gateway.see(SCAN)
    both = Activity("flood", 80), Activity("scan", 23)
    assert [state for state, _, _ in gateway.see(as_(50, *SSH), as_(105, *both), as_(111, *both))] == ["update"] * 2
    words = gateway.order("allow", alert=alert, reason="r")["suppressed"]
    assert words.startswith("scans to port 22 and floods (or slower traffic) to port 80 and scans to port 23, ")
    assert covered(gateway, *both)
    assert not covered(gateway, Activity("scan", 80))
    assert not covered(gateway, Activity("flood", 22))


def test_of_traffic_to_many_ports_the_port_does_not_matter(gateway):
    ((_, _, alert),) = gateway.see(replace(SCAN, activities=(Activity("scan", 1),)))
    for port in range(2, 8):
        gateway.see(as_(60 * port - 90, Activity("scan", port)), as_(60 * port - 60, Activity("scan", port)))
    assert gateway.order("allow", alert=alert, reason="r")["suppressed"] == f"scans to any port, nas ({MAC})"
    assert covered(gateway, Activity("scan", 9999))


def test_an_allowed_flood_covers_its_slow_beginning_and_the_reverse_does_not_hold(gateway):
    gateway.order("allow", device="nas", kinds=["flood"], port=554, reason="video")
    assert covered(gateway, Activity("flood", 554))
    assert covered(gateway, Activity("other", 554))
    assert not covered(gateway, Activity("other", 80))
    gateway.order("allow", device="nas", kinds=["other"], port=80, reason="r")
    assert covered(gateway, Activity("other", 80))
    assert not covered(gateway, Activity("flood", 80))


@pytest.mark.parametrize(
    ("words", "covers", "not_covers"),
    [
        ({"kinds": ["scan"]}, [("scan", 22), ("scan", 23)], [("flood", 22)]),
        ({"kinds": ["scan", "check-in"], "port": 22}, [("scan", 22), ("check-in", 22)], [("scan", 23)]),
        ({"classes": ["mirai.scan"]}, [("scan", 23)], [("flood", 23), ("other", 23)]),
        ({"classes": ["mirai.syn"], "port": "any"}, [("flood", 1), ("flood", None)], [("scan", 1)]),
        ({"classes": ["gafgyt.*"]}, [("scan", 1), ("flood", 1)], [("check-in", 1)]),
        ({"classes": ["gafgyt.scan", "unknown"]}, [("scan", 1)], [("flood", 1)]),
    ],
)
def test_a_device_is_allowed_kinds_or_the_kinds_of_classes(gateway, words, covers, not_covers):
    gateway.order("allow", device=MAC, reason="r", **words)
    assert [covered(gateway, Activity(*activity), name="unknown") for activity in covers] == [True] * len(covers)
    assert not any(covered(gateway, Activity(*activity), name="gafgyt.scan") for activity in not_covers)


def test_a_class_without_a_kind_is_allowed_by_its_name_alone(gateway):
    gateway.order("allow", device=MAC, classes=["unknown"], reason="r")
    assert covered(gateway, Activity("flood", 1), name="unknown")
    assert not covered(gateway, Activity("flood", 1), name="gafgyt.tcp")
    (entry,) = gateway.control.suppressions.documents()
    assert (entry["about"], entry["classes"]) == ("alerts of class unknown to any port", ["unknown"])


def test_of_an_alert_a_kind_can_be_chosen_and_the_port_widened(gateway):
    both = Activity("flood", 80), Activity("scan", 23)
    ((_, _, alert),) = gateway.see(replace(SCAN, activities=both))
    gateway.order("allow", alert=alert, kinds=["scan"], reason="r")
    assert (covered(gateway, both[1]), covered(gateway, both[0]), covered(gateway, Activity("scan", 5))) == (
        True,
        False,
        False,
    )
    gateway.order("allow", alert=alert, classes=["mirai.scan"], port="any", reason="r")
    assert covered(gateway, Activity("scan", 5))
    assert not covered(gateway, both[0])
    with pytest.raises(CommandRefused, match="kinds or classes, not both"):
        gateway.order("allow", alert=alert, kinds=["scan"], classes=["mirai.scan"], reason="r")
    for wrong, words in (
        ({"kinds": ["raid"]}, "unknown kind 'raid'; known: flood, scan"),
        ({"port": 70_000}, "port: expected"),
    ):
        with pytest.raises(MessageError, match=words):
            gateway.order("allow", alert=alert, reason="r", **wrong)


def test_two_entries_cover_together_what_neither_covers_alone(gateway):
    gateway.order("allow", device=MAC, kinds=["scan"], port=22, reason="r")
    gateway.order("allow", device=MAC, kinds=["flood"], port=80, reason="r")
    assert covered(gateway, Activity("flood", 80), *SSH)
    gateway.see(replace(SCAN, activities=(Activity("flood", 80), *SSH)))
    assert [entry["hits"] for entry in gateway.control.suppressions.documents()] == [1, 1]


# --- how long, and how many ---


def test_a_second_allow_prolongs_the_first_and_shortens_it_only_when_it_replaces_it(gateway):
    about = {"device": MAC, "kinds": ["scan"], "port": 22, "reason": "r"}
    first = gateway.order("allow", for_s=7200, **about)
    second = gateway.order("allow", for_s=60, **about)
    assert (second["entry"], second["until"]) == (first["entry"], first["until"])
    assert second["note"] == "it was allowed for longer already, which stays so; `replace` shortens it"
    assert gateway.order("allow", for_s=60, replace=True, **about)["until"] < first["until"]
    assert len(gateway.control.suppressions.active()) == 1
    other_port = gateway.order("allow", for_s=30, **about | {"port": 23})
    assert "note" not in other_port
    assert len(gateway.control.suppressions.active()) == 2


def test_a_second_allow_of_the_same_from_the_broker_is_no_other_entry_and_one_of_another_kind_is(tmp_path):
    gateway = Gateway(tmp_path, control=ControlConfig(remote_entries=2))
    about = {"device": MAC, "reason": "r", "origin": "broker"}
    gateway.order("allow", kinds=["scan"], port=22, **about)
    gateway.order("allow", kinds=["scan"], port=23, **about)
    for _ in range(2):  # at the bound, the same again is neither refused nor added
        gateway.order("allow", kinds=["scan"], port=23, for_s=3600, replace=True, **about)
        gateway.order("allow", kinds=["scan"], port=23, for_s=60, **about)
    assert len(gateway.control.suppressions.active()) == 2
    with pytest.raises(CommandRefused, match="bound of 2 entries"):
        gateway.order("allow", kinds=["flood"], port=23, **about)
    gateway.order("allow", device=MAC, kinds=["flood"], reason="r")  # the gateway's own do not count
    with pytest.raises(CommandRefused, match="made on the gateway"):
        gateway.order("allow", kinds=["flood"], **about)


# --- what earlier versions stored ---


def test_allows_mutes_and_episodes_of_an_earlier_version_hold_after_an_upgrade(tmp_path):
    gateway = Gateway(tmp_path)
    gateway.state.close()
    common = {"created_s": 1.79e9, "expires_s": 1.79e9 + 86_400, "host": "", "by": "ann", "origin": "local"}

    def entry(**about):
        return json.dumps({"kind": "allow", "device": MAC, "classes": [], "port": 0, "reason": "r", **common, **about})

    entries = [
        entry(classes=["gafgyt.scan"], port=22),
        entry(classes=["anomaly"]),
        entry(kind="mute", device="192.168.1.9"),
    ]
    with closing(sqlite3.connect(gateway.config.outbox.path)) as db:
        db.executemany("INSERT INTO allow (entry) VALUES (?)", [(text,) for text in entries])
        about = json.dumps({"device": MAC, "classes": ["gafgyt.udp", "unknown"]})
        db.execute("INSERT INTO episode VALUES (?, 1.79e9, ?)", (NOBODY, about))
        db.commit()
    gateway = Gateway(tmp_path)
    suppressions = gateway.control.suppressions
    suppressions.tick(1.79e9 + 60, 0.0)
    assert [s.about for s in suppressions.active().values()] == [
        "scans to port 22",
        "alerts of class anomaly to any port",
        "everything",
    ]
    assert covered(gateway, *SSH, name="mirai.scan")
    assert not covered(gateway, Activity("scan", 23), name="gafgyt.scan")
    assert covered(gateway, Activity("flood", 23), name="anomaly")
    assert not covered(gateway, Activity("flood", 23), name="unknown")
    result = gateway.order("allow", alert=NOBODY, reason="r")
    assert result["suppressed"] == f"floods (or slower traffic) to any port, {MAC}"
    assert gateway.state.damaged == 0


# --- ids ---


def test_an_alert_is_named_by_any_unique_end_of_its_id(gateway):
    ((_, _, alert),) = gateway.see(SCAN)
    digits = alert.replace("-", "")
    for ending in (alertid.short(alert), digits[-6:], digits[-13:], alert[-14:], alert.upper(), digits, digits[-31:]):
        assert gateway.order("allow", alert=ending, reason="r")["device"] == MAC
        assert gateway.order("mute", device=ending)["device"] == MAC
        assert gateway.order("mute", alert=ending)["device"] == MAC


def test_an_ending_of_two_alerts_is_refused_with_the_candidates_and_one_of_none_is_too(gateway):
    gateway.see(SCAN)
    ids = [f"019abf2c-0000-7000-8000-0000{n:02x}c1e9a4" for n in range(7)]
    for id_ in ids:
        gateway.state.episode_put(id_, json.dumps({"device": MAC, "activities": [{"kind": "scan"}]}), 1e9, 100)
    for verb in ("allow", "mute"):
        with pytest.raises(CommandRefused, match="7 alerts have an id that ends with c1e9a4: ") as refused:
            gateway.order(verb, alert="c1e9a4", **{"reason": "r"} if verb == "allow" else {})
        assert ids[0] in str(refused.value)
        assert str(refused.value).endswith(f"{ids[4]} and 2 more; give more digits")
        with pytest.raises(CommandRefused, match="an alert whose id ends with 123456 is not stored here"):
            gateway.order(verb, alert="123456", **{"reason": "r"} if verb == "allow" else {})
        with pytest.raises(
            CommandRefused, match=f"alert {NOBODY} is not stored here .the last 2,000 are.: name the dev"
        ):
            gateway.order(verb, alert=NOBODY, **{"reason": "r"} if verb == "allow" else {})
    with pytest.raises(CommandRefused, match="nor a name in the configuration; an alert whose id ends with 123456 is"):
        gateway.order("mute", device="123456")
    for wrong in ("12345", "c1e9a4g", "", "%" * 6, "-" * 20, 123456):
        with pytest.raises(MessageError, match="is not the id of an alert"):
            gateway.order("mute", alert=wrong)


def test_a_name_that_looks_like_the_end_of_an_id_stays_a_name(tmp_path):
    gateway = Gateway(tmp_path, names={"02:00:00:00:00:01": "cafe01"})
    gateway.state.episode_put(
        f"{NOBODY[:-6]}cafe01", json.dumps({"device": MAC, "activities": [{"kind": "scan"}]}), 1e9, 9
    )
    assert gateway.order("mute", device="cafe01")["device"] == "02:00:00:00:00:01"
    assert gateway.order("mute", alert="cafe01")["device"] == MAC


def test_evidence_is_named_by_any_unique_end_of_its_id(tmp_path):
    ids = [f"019abf2c-0000-7000-8000-0000{n:02x}c1e9a4" for n in range(2)]
    for id_ in ids:
        (tmp_path / f"{id_}.pcap").write_bytes(id_.encode())
    assert fetch(tmp_path, "00-01-C1-E9-A4") == ids[1].encode()
    assert stored_id(tmp_path, ids[0]) == ids[0]
    with pytest.raises(EvidenceError, match=f"2 alerts have an id that ends with c1e9a4: {ids[0]}, {ids[1]}; give"):
        fetch(tmp_path, "c1e9a4")
    with pytest.raises(EvidenceError, match=r"no evidence of 777777 in .* \(captures there: 2\)"):
        fetch(tmp_path, "777777")


def test_the_command_on_the_gateway_takes_endings_kinds_and_any_port(tmp_path, capsys):
    gateway = Gateway(tmp_path)
    ((_, _, alert),) = gateway.see(SCAN)
    gateway.state.close()
    where = ["--outbox", str(gateway.config.outbox.path)]
    assert main(["allow", alertid.short(alert), "--reason", "backup job", "--for", "7d", *where]) == 0
    out = capsys.readouterr().out
    assert out.startswith("suppressed until ")
    assert out.endswith(f" (entry 1): scans to port 22, {MAC}\n") or "no agent is running" in out
    words = ["--kind", "scan", "--kind", "flood", "--port", "any", "--reason", "r", "--json"]
    assert main(["allow", alertid.short(alert), *words, *where]) == 0
    suppressed = json.loads(capsys.readouterr().out)["suppressed"]
    assert suppressed == f"scans and floods (or slower traffic) to any port, {MAC}"
    assert main(["mute", alertid.short(alert), *where]) == 0
    capsys.readouterr()
    assert main(["allow", "123456", "--reason", "r", *where]) == 1
    assert "an alert whose id ends with 123456 is not stored here" in capsys.readouterr().err
