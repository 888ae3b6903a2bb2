"""Episodes: when an Alerter speaks, how often, and that what it says is right and valid."""

import json
import random
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract import messages
from edge_agent.contract.alert import CLASSES, KINDS, Activity, Alert, Evidence, ModelInfo
from edge_agent.delivery.alerts import Alerter, cut_short
from edge_agent.detection.detection import Detection

SCHEMA = jsonschema.Draft202012Validator(
    json.loads(files("edge_agent.contract").joinpath("alert.schema.json").read_text())
)
S = 1_000_000_000
T0 = 1_795_450_930 * S
CAMERA = Detection(
    t_ns=T0,
    first_ns=T0 - S,
    device_mac=0xB827EB123456,
    device_ip="192.168.1.57",
    role="source",
    method="autoencoder",
    class_name="gafgyt.tcp",
    activities=(Activity("flood", 80),),
    confidence=0.97,
    score=8.41,
    threshold=1.92,
    window_s=0.5,
    count=20,
    packets=100,
    bytes=6000,
    src_ip="192.168.1.57",
    src_port=48101,
    dest_ip="203.0.113.9",
    dest_port=80,
    proto="TCP",
    top_features=(("HH_L1_weight", 31.2),),
    explanation="sends to 120 hosts it never met",
)


def alerter(**options):
    model = ModelInfo("2026.11.23+1", "ab" * 32, generated=True)
    return Alerter("gw-001", "plant-a", model, "0.1.0", rng=random.Random(1), **options)


def at(seconds, detection=CAMERA, first=None, **changes):
    """The detection ``seconds`` after T0; its alarm began ``first`` seconds after T0 or where it did."""
    first_ns = detection.first_ns if first is None else T0 + int(first * S)
    return replace(detection, t_ns=T0 + int(seconds * S), first_ns=first_ns, **changes)


def summary(alerts):
    """(state, seconds after T0, seq) of each alert; all of them valid."""
    for alert in alerts:
        SCHEMA.validate(alert.document())
    return [(a.state, (a.t_ns - T0) / S, a.seq) for a in alerts]


words = st.text(max_size=250)
numbers = st.floats(allow_nan=True, allow_infinity=True)
times = st.integers(-(2**63), 2**63)
detections = st.builds(
    Detection,
    t_ns=times,
    first_ns=times,
    device_mac=st.integers(0, 2**48 - 1),
    device_ip=st.one_of(st.just(""), st.ip_addresses().map(str)),
    role=st.sampled_from(["source", "victim"]),
    method=st.sampled_from(["autoencoder", "counts"]),
    class_name=st.sampled_from([*CLASSES, "a class of tomorrow"]),
    activities=st.lists(
        st.builds(Activity, st.sampled_from(KINDS), st.none() | st.integers(0, 65535)),
        min_size=1,
        max_size=4,
        unique_by=lambda activity: activity.kind,
    ).map(tuple),
    confidence=numbers,
    score=numbers,
    threshold=numbers,
    window_s=numbers,
    count=st.integers(0, 2**40),
    packets=st.integers(0, 2**40),
    bytes=st.integers(0, 2**50),
    src_ip=st.one_of(st.just(""), st.ip_addresses().map(str)),
    src_port=st.integers(0, 65535),
    dest_ip=st.one_of(st.just(""), st.ip_addresses().map(str)),
    dest_port=st.integers(0, 65535),
    proto=st.sampled_from(["TCP", "UDP", "ICMP", "IPV6-ICMP", "ARP", "IP", "a rather long name of one"]),
    top_features=st.lists(st.tuples(words, numbers), max_size=8).map(tuple),
    explanation=words,
)


@given(st.lists(detections, max_size=8), st.lists(times, max_size=3), st.dictionaries(words, words, max_size=3))
def test_whatever_the_detector_reports_the_alerts_are_valid_and_bounded(found, ticks, names):
    it = alerter(max_open=2, names={**names, "00:00:00:00:00:00": "x" * 100})
    alerts = [a for d in found for a in it.consider(d)] + [a for t in ticks for a in it.tick(t)] + it.finish()
    for alert in alerts:
        payload = messages.encode(alert.document())
        SCHEMA.validate(json.loads(payload))
        again = Alert.read(messages.decode(payload)).document()
        assert messages.encode(again) == payload
    assert it.open_episodes == 0
    assert it.counts.new == it.counts.end
    assert len({(alert.id, alert.seq) for alert in alerts}) == len(alerts)


def test_an_hour_of_flood_is_one_new_one_end_and_at_most_one_update_a_minute():
    it = alerter()
    alerts = []
    for second in range(3601):
        changes = {"count": 20 + second, "packets": 100 + 1000 * second, "bytes": 6000 + 60_000 * second}
        alerts += it.consider(at(second, **changes))
    alerts += it.tick(T0 + 3660 * S - 1)
    assert [state for state, _, _ in summary(alerts)] == ["new"] + ["update"] * 60
    alerts += it.tick(T0 + 3700 * S)
    assert summary(alerts)[-1] == ("end", 3660.0, 62)
    updates = [t for state, t, _ in summary(alerts) if state == "update"]
    assert min(b - a for a, b in pairwise(updates)) >= 60
    end = alerts[-1]
    assert (end.count, end.packets, end.bytes) == (3620, 3_600_100, 216_006_000)
    assert (end.duration_s, end.first_ns, end.last_ns) == (3601.0, T0 - S, T0 + 3600 * S)
    assert len({alert.id for alert in alerts}) == 1


def test_end_comes_without_another_packet_of_that_device_and_does_not_wait_for_the_next_one():
    it = alerter()
    it.consider(CAMERA)
    assert it.tick(T0 + 60 * S - 1) == []
    ends = it.tick(T0 + 7200 * S)
    assert summary(ends) == [("end", 60.0, 2)]
    assert it.tick(T0 + 7201 * S) == []


def test_a_second_attack_after_the_end_is_a_new_episode_even_without_a_tick_between():
    it = alerter()
    first = it.consider(CAMERA)
    second = it.consider(at(61, first=60.5))
    assert summary(second) == [("end", 60.0, 2), ("new", 61.0, 1)]
    assert first[0].id == second[0].id != second[1].id


def test_totals_run_on_over_the_alarms_of_one_episode():
    """The detector counts from the start of each alarm; two methods that overlap counted the same packets."""
    it = alerter()
    it.consider(at(0, first=-1, packets=100, bytes=1000, count=20))
    it.consider(at(5, first=-1, packets=600, bytes=6000, count=120))
    it.consider(at(6, first=4, packets=200, bytes=2000, count=50, method="counts"))  # overlaps: nothing new
    it.consider(at(30, first=29, packets=50, bytes=500, count=10))  # the next alarm
    [end] = it.finish()
    assert (end.packets, end.bytes, end.count, end.duration_s) == (650, 6500, 130, 31.0)


def test_a_sharper_class_is_reported_at_once_but_not_more_often_than_updates_may_come():
    it = alerter()
    alerts = it.consider(at(0, class_name="anomaly"))
    alerts += it.consider(at(2, class_name="gafgyt.tcp"))
    alerts += it.consider(at(3, class_name="gafgyt.udp"))
    alerts += it.consider(at(61, class_name="gafgyt.udp"))
    alerts += it.consider(at(62, class_name="gafgyt.udp"))
    alerts += it.finish()
    assert summary(alerts) == [("new", 0.0, 1), ("update", 2.0, 2), ("update", 62.0, 3), ("end", 62.0, 4)]
    assert [alert.class_name for alert in alerts] == ["anomaly", "gafgyt.tcp", "gafgyt.udp", "gafgyt.udp"]


def test_the_text_names_bashlite_the_device_and_the_generated_model():
    [alert] = alerter(names={"b8:27:eb:12:34:56": "cam-entrance"}).consider(CAMERA)
    document = alert.document()
    ours = document["alert"]["context"]["botwatch"]
    assert alert.signature == document["alert"]["signature"] == "botwatch BASHLITE tcp flood from 192.168.1.57"
    assert ours["class"] == "gafgyt.tcp"
    assert ours["device"] == {"mac": "b8:27:eb:12:34:56", "ip": "192.168.1.57", "name": "cam-entrance"}
    assert ours["model"]["generated"] is True
    [unrecognised] = alerter().consider(at(0, class_name="anomaly"))
    assert "mitre_technique_id" not in unrecognised.document()["alert"]["metadata"]


def test_a_scan_inside_the_site_is_discovery_and_one_outside_is_reconnaissance():
    for target, technique in (("192.168.1.9", "T1046"), ("fe80::1", "T1046"), ("203.0.113.9", "T1595.001")):
        [alert] = alerter().consider(at(0, class_name="mirai.scan", dest_ip=target))
        assert alert.document()["alert"]["metadata"]["mitre_technique_id"] == [technique]


def test_a_victim_behind_a_router_is_named_and_the_router_is_not_called_infected():
    it = alerter(names={"b8:27:eb:12:34:56": "router"})
    hit = at(0, role="victim", device_ip="192.168.1.80", src_ip="198.51.100.7", dest_ip="192.168.1.80")
    alerts = it.consider(hit)
    alerts += it.consider(replace(hit, device_mac=1, t_ns=T0 + S))  # through another router: the same victim
    alerts += it.consider(replace(hit, device_ip="192.168.1.81"))
    assert [alert.signature for alert in alerts] == [
        "botwatch BASHLITE tcp flood against 192.168.1.80",
        "botwatch BASHLITE tcp flood against 192.168.1.81",
    ]
    summary(alerts)
    documents = [alert.document() for alert in alerts]
    assert documents[0]["alert"]["context"]["botwatch"]["device"] == {"ip": "192.168.1.80"}
    assert "b8:27:eb:12:34:56" not in json.dumps(documents)


def test_a_clock_set_back_neither_ends_nor_holds_an_episode():
    it = alerter()
    it.consider(CAMERA)
    hour_back = at(-3600, first=-3601)
    assert it.consider(hour_back) == []
    assert it.tick(hour_back.t_ns + 60 * S - 1) == []
    end = it.tick(hour_back.t_ns + 60 * S)
    assert summary(end) == [("end", -3540.0, 2)]
    assert end[0].duration_s == 1.0
    assert it.counts.clock_steps == 1


def test_packets_a_little_out_of_order_change_nothing():
    it = alerter()
    it.consider(at(10))
    assert it.tick(T0 + 9 * S) == []
    assert it.consider(at(9.5)) == []
    [end] = it.tick(T0 + 70 * S)
    assert (end.last_ns, end.duration_s, it.counts.clock_steps) == (T0 + 10 * S, 11.0, 0)


def test_beyond_max_open_the_quietest_episode_is_closed_and_counted():
    it = alerter(max_open=2)
    it.consider(at(0, device_mac=1))
    it.consider(at(1, device_mac=2))
    it.consider(at(2, device_mac=1))
    alerts = it.consider(at(3, device_mac=3))
    assert summary(alerts) == [("end", 3.0, 2), ("new", 3.0, 1)]
    assert alerts[0].device.mac.endswith(":02")
    assert (it.open_episodes, it.counts.evicted) == (2, 1)


def test_the_same_packets_and_seed_give_the_same_alerts():
    def run():
        it = alerter()
        return it.consider(CAMERA) + it.consider(at(1, device_mac=2)) + it.finish()

    assert run() == run()


@pytest.mark.parametrize(
    ("gateway", "site", "version", "agent"),
    [("GW 1", "", "1", "1"), ("gw", "s" * 64, "1", "1"), ("gw", "", "v" * 41, "1"), ("gw", "", "1", "a" * 21)],
)
def test_names_that_would_make_every_alert_invalid_stop_the_start(gateway, site, version, agent):
    with pytest.raises(ValueError, match=r"gateway|site|version"):
        Alerter(gateway, site, ModelInfo(version), agent)


@pytest.mark.parametrize(("restart_s", "ended_s"), [(10.0, 10.0), (3600.0, 65.0), (-3600.0, 5.0)])
def test_the_end_of_what_was_cut_short_is_stamped_as_if_it_had_ended_by_itself_at_most_with_the_restart(
    restart_s, ended_s
):
    one = alerter(update_s=1.0)
    new, last = one.consider(at(0)) + one.consider(at(5))
    assert summary([new, last]) == [("new", 0, 1), ("update", 5, 2)]
    end = cut_short(last, T0 + int(restart_s * S), 60.0)
    assert summary([end]) == [("end", ended_s, 3)]
    assert end.explanation == "the agent was restarted; sends to 120 hosts it never met"
    assert replace(end, seq=2, state="update", t_ns=last.t_ns, explanation=last.explanation) == last


def test_an_alert_says_if_the_clock_that_stamped_it_is_synchronised():
    it = alerter()
    [new] = it.consider(CAMERA)
    it.clock = "unsynced"
    [end] = it.finish()
    assert [alert.document()["alert"]["context"]["botwatch"]["clock"] for alert in (new, end)] == ["synced", "unsynced"]
    assert {alert.clock for alert in it.test_alerts(T0, "somebody")} == {"unsynced"}


def test_an_alert_names_the_interface_by_which_the_alarming_packet_came():
    """Of a capture file there is none, and then the key is absent."""
    it = alerter(update_s=10.0)
    alerts = [*it.consider(at(0, interface="eth0")), *it.consider(at(20, interface="wlan0")), *it.finish()]
    assert [alert.document()["in_iface"] for alert in alerts] == ["eth0", "wlan0", "wlan0"]
    assert summary(alerts)
    assert "in_iface" not in alerter().consider(CAMERA)[0].document()


EVE = {
    *("timestamp", "event_type", "flow_id", "in_iface", "src_ip", "src_port", "dest_ip", "dest_port", "proto", "host"),
    *("community_id", "ether", "alert", "flow"),
}
EVE_ALERT = {"action", "gid", "signature_id", "rev", "signature", "category", "severity", "metadata", "context"}


def test_a_test_alert_and_its_evidence_are_eve_records_with_nothing_of_ours_outside_of_our_context():
    """Suricata's schema lets nobody add keys but in `alert.context`."""
    one = alerter()
    tests = one.test_alerts(T0, "somebody")
    assert not any(vars(one.counts).values())
    [first] = one.consider(CAMERA)
    with_evidence = replace(first, evidence=Evidence("0" * 64, 262_144))
    for document in [alert.document() for alert in (*tests, with_evidence)]:
        SCHEMA.validate(document)
        assert set(document) <= EVE
        assert set(document["alert"]) <= EVE_ALERT
        assert set(document["alert"]["context"]) == {"botwatch"}
        assert Alert.read(document).document() == document
    assert [(alert.seq, alert.state, alert.test) for alert in tests] == [(1, "new", True), (2, "end", True)]
    assert len({alert.id for alert in tests}) == 1
