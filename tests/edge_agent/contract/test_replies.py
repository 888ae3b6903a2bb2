"""Replies as people read them: the groups of `status`, tables that fit, and nothing that a terminal would obey."""

import random

import pytest

from edge_agent.contract.cli import cells
from edge_agent.contract.commands import Reply
from edge_agent.contract.replies import lines

MAC = "02:00:5e:10:00:01"
CAMERA = {
    "mac": "02:00:5e:10:00:02",
    "name": "cam-entrance-of-the-north-wing",
    "state": "active",
    "since": "2026-11-28T03:30:03.447814+0000",
    "percent": 100,
    "packets": 1_234_567,
    "score_times": 1.25,
    "counts_times": 3.0,
    "capped": False,
}
BULB = {**CAMERA, "mac": MAC, "name": "bulb", "state": "learning", "percent": 7, "packets": 1280}
HEALTH = {
    "ts": "2026-11-28T03:31:03.447814+0000",
    "pps": 1234.5,
    "drop_pct": 0.25,
    "cpu": 0.12,
    "rss_mb": 78.4,
    "episodes_open": 1,
    "interfaces_down": ["wlan0"],
    "interfaces": [
        {"name": "br0", "captured": True, "since": "2026-11-28T01:30:03.447814+0000"},
        {"name": "wlan0", "captured": False, "since": "2026-11-28T03:30:03.447814+0000", "reason": "it is down"},
    ],
    "outbox_depth": 3,
    "model": "2026.11.23+1",
    "scoring": "shared",
    "counters": {"frames": 1_234_567, "dropped": 12, "shed": 40, "outbox_dropped": 2, "from_2031": 5},
}
RESULT = {
    "gateway": "gw-001",
    "health": HEALTH,
    "devices": [BULB, CAMERA],
    "broker": {"address": "broker.lan:8883", "connected": False, "protocol": "", "trouble": "connection refused"},
    "commands": ["status", "mute"],
    "allowed": [
        {
            "entry": 3,
            "kind": "allow",
            "device": CAMERA["mac"],
            "classes": ["mirai.scan"],
            "port": 22,
            "reason": "backup job",
            "by": "ann",
            "origin": "local",
            "since": "2026-11-28T03:30:03.447000+0000",
            "until": "2026-12-28T03:30:03.447000+0000",
            "hits": 2,
        }
    ],
}


def status(result: dict, **how) -> list[str]:
    return lines(Reply("1", "status", 0, result), **{"utc": True, **how})


def test_the_state_comes_in_groups_of_one_order_with_counters_in_words():
    text = status(RESULT)
    assert text[0] == "gateway gw-001: running at 2026-11-28 03:31:03 UTC"
    groups = [line.split()[0] for line in text[1:] if line and not line.startswith(" ")]
    assert groups == ["traffic", "scoring", "devices", "alerts", "delivery", "broker", "suppressions", "others"]
    assert "traffic       1,234.5 frames a second, 0.25 % dropped now" in text
    assert "              interface br0 has been captured since 2026-11-28 01:30:03 UTC" in text
    assert "              interface wlan0 has not been captured since 2026-11-28 03:30:03 UTC: it is down" in text
    assert "   1,234,567  frames that were judged" in text
    (dropped,) = [line for line in text if "capture buffer was full" in line]
    assert dropped.startswith("          12  frames lost because the capture buffer was full: raise capture.buffer_mb")
    assert "broker        broker.lan:8883: not connected: connection refused" in text
    assert "delivery      3 messages in the outbox, waiting for the broker" in text
    assert "           5  from_2031" in text
    (entry,) = [line for line in text if line.startswith("   3  ")]
    assert entry == (
        "   3  allow cam-entrance-of-the-north-wing (02:00:5e:10:00:02), classes mirai.scan, port 22; until 2026-12-28 "
        "03:30:03 UTC; 2 episodes suppressed; made by ann (local) at 2026-11-28 03:30:03 UTC: backup job"
    )


@pytest.mark.parametrize("width", [40, 60, 80, 132])
def test_it_fits_into_the_terminal_and_the_table_stays_one(width):
    text = status(RESULT, width=width)
    if width >= 60:
        assert max(map(len, text)) <= width
    if width >= 80:
        (head,) = [line for line in text if line.startswith("  MAC")]
        (row,) = [line for line in text if line.startswith(f"  {CAMERA['mac']}")]
        for column in ("state", "score"):
            assert column in head
        assert row.index("active") == head.index("state")
        assert ("…" in row) == (width == 80)


def test_characters_that_take_two_columns_are_counted_as_two():
    camera = {**CAMERA, "name": "カメラ 入口 北ウイングの廊下の奥", "state": "stale", "reason": "門" * 100}
    text = status({**RESULT, "devices": [camera, BULB]}, width=80)
    assert max(map(cells, text)) <= 80
    (head,) = [line for line in text if line.startswith("  MAC")]
    (row,) = [line for line in text if line.startswith(f"  {CAMERA['mac']}")]
    assert cells(row[: row.index("stale")]) == head.index("state")
    assert "".join(line.strip() for line in text).count("門") == 100


def test_what_is_to_be_known_of_a_device_stands_below_it():
    stale = {**CAMERA, "state": "stale", "capped": True, "reason": "in an alarm for long", "alarmed": True}
    ends = "ends when its traffic is within its limits again, or when you let it learn anew"
    stale |= {"ends": ends, "bursts": {"days": 2, "of": 3, "marked": 1}}
    stale |= {"vouched": [{"kind": "flood", "port": 443, "times": 2.5}]}
    text = status({"gateway": "gw-001", "devices": [stale, BULB]})
    (at,) = [i for i, line in enumerate(text) if line.startswith(f"  {CAMERA['mac']}")]
    assert [line[:30] for line in text[at + 1 : at + 9]] == [
        "    under alarm: look at its a",
        "    stale since 2026-11-28 03:",
        "    it has no limits of its ow",
        "    that ends when its traffic",
        "    bursts without signs of an",
        "    1 burst with signs of an a",
        "    bursts that somebody said ",
        "    its limits are the highest",
    ]
    assert text[at + 9].startswith(f"  {MAC}")
    assert text[at + 4] == f"    that {ends}; until then look at its alerts"
    assert "on 2 days; they are learnt when they have recurred on 3" in text[at + 5]
    assert text[at + 7].endswith("flood to port 443, up to 2.5 times the model's limit")
    assert "devices       2 known: 1 stale, 1 learning; 1 under alarm" in text


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({}, "1 episode open"),
        (
            {"home_month": 1.0, "home_devices": 20},
            "the model's limits allow 1 false alert a month in a home of 20 devices",
        ),
        (
            {"home_month": 2.0, "home_devices": 20, "device_days": 85.5, "proven": 21.05},
            "the model's limits allow 2 false alerts a month in a home of 20 devices; the 85.5 benign device-days that "
            "they rest on prove at most 21.05 (95 %)",
        ),
    ],
)
def test_the_budget_of_false_alerts_stands_beside_the_alerts(budget, words):
    text = status(RESULT | {"budget": budget})
    (at,) = [i for i, line in enumerate(text) if line.startswith("alerts")]
    shown = [line for line in text[at : at + 2] if line]
    assert shown[-1].strip().removeprefix("alerts").strip() == words


def test_times_are_local_with_the_zone_or_utc(monkeypatch):
    import time

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert status(RESULT, utc=False)[0] == "gateway gw-001: running at 2026-11-28 04:31:03 CET"
        assert status(RESULT, utc=True)[0] == "gateway gw-001: running at 2026-11-28 03:31:03 UTC"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_nothing_that_a_terminal_would_obey_is_printed():
    hostile = "\x1b[31mcam\x07\r\n\u202eevil"
    result = {
        **RESULT,
        "gateway": hostile,
        "devices": [{**CAMERA, "name": hostile, "mac": hostile, "state": hostile, "percent": hostile}],
        "allowed": [{**RESULT["allowed"][0], "reason": hostile, "device": hostile, hostile: hostile}],
        "commands": [hostile],
        "broker": {**RESULT["broker"], "trouble": hostile},
        "health": {
            **HEALTH,
            **{"model": hostile, "ts": hostile, "counters": {hostile: 3}},
            "interfaces": [{"name": hostile, "captured": False, "since": hostile, "reason": hostile}],
        },
    }
    for width in (80, 200):
        text = status(result, width=width)
        assert all(line.isprintable() for line in text)
        assert max(map(len, text)) <= width
    assert "\\x1b[31mcam" in "".join(text)


def test_a_reply_of_any_shape_is_printed():
    """A gateway says of itself what it likes."""
    rng = random.Random(7)
    values = [None, True, -1, 2.5, "x", [], [1], {}, {"a": [{}]}, [[]], [{}], "2026-11-28T03:31:03.447814+0000"]
    for _ in range(3000):
        health = {key: rng.choice(values) for key in HEALTH if rng.random() < 0.7}
        rows = [{key: rng.choice(values) for key in CAMERA} for _ in range(2)]
        result = {key: rng.choice([*values, health, rows, RESULT[key]]) for key in RESULT if rng.random() < 0.8}
        assert all(line.isprintable() for line in status(result, width=80))


def test_another_reply_is_one_line_and_says_when_it_takes_effect():
    done = {"entry": 3, "device": MAC, "classes": [], "until": "2026-11-28T03:31:03.447814+0000"}
    assert lines(Reply("1", "mute", 0, done), utc=True) == [f"entry 3, device {MAC}, until 2026-11-28 03:31:03 UTC"]
    assert lines(Reply("1", "unmute", 0, {"ended": [3]}), running=False) == [
        "ended: mute 3",
        "no agent is running: this takes effect at its next start",
    ]
    assert lines(Reply("1", "learn", 0, {})) == ["done"]


@pytest.mark.parametrize(
    ("verb", "result", "line"),
    [
        (
            "mute",
            {"entry": 3, "device": MAC, "suppressed": f"everything, cam ({MAC})", "until": HEALTH["ts"]},
            f"suppressed until 2026-11-28 03:31:03 UTC (entry 3): everything, cam ({MAC})",
        ),
        (
            "allow",
            {"entry": 3, "device": MAC, "suppressed": f"scans to port 22, {MAC}", "until": HEALTH["ts"], "note": "so"},
            f"suppressed until 2026-11-28 03:31:03 UTC (entry 3): scans to port 22, {MAC}; so",
        ),
        ("unmute", {"ended": [1, 2]}, "ended: mute 1, 2"),
        ("unallow", {"ended": [4]}, "ended: allow 4"),
        ("learn", {"device": MAC, "state": "learning"}, f"{MAC} is learnt anew"),
        ("replay", {"alerts": 1, "since": HEALTH["ts"]}, "sent again: 1 alert since 2026-11-28 03:31:03 UTC"),
        (
            "test-alert",
            {"id": "01936d2e", "alerts": 2},
            "test alert 01936d2e is made (2 messages); `botwatch collector alerts` lists it",
        ),
        ("mute", {"entry": "\x1b[2J", "from_2031": 5}, "entry \\x1b[2J, from_2031 5"),
        ("learn", {}, "done"),
    ],
)
def test_a_reply_is_a_sentence_and_one_of_another_version_its_keys_and_values(verb, result, line):
    assert lines(Reply("1", verb, 0, result), utc=True) == [line]


def test_a_suppression_is_described_once():
    """What it is about was listed in words, and then again as kinds and ports."""
    entry = {"entry": 3, "kind": "allow", "device": MAC, "about": "scans to port 22", "kinds": ["scan"], "port": 22}
    (line,) = [line for line in status({"allowed": [entry]}) if line.startswith("   3  ")]
    assert line == f"   3  allow {MAC}: scans to port 22; no episode suppressed yet; made by ?"
