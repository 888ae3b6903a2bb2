"""Alerts on one line each: what is in it, that it fits, and that no text from elsewhere commands the terminal."""

import json
import os
import pty
import re
import subprocess
import sys
import unicodedata
from copy import deepcopy
from io import StringIO
from pathlib import Path

import pytest

from edge_agent.contract.alert import Alert
from edge_agent.contract.cli import cells
from edge_agent.contract.show import IdColumn, Terminal, alert_line, gateway_cell, gateway_column, reason

ID = IdColumn(6, 3)
ROOT = Path(__file__).parents[3]
EXAMPLE = json.loads((ROOT / "tests" / "data" / "alert.example.json").read_text())
WHY = "opens 160 new connections a second to port 23 (2300 within about 14 s); normal is below 0.2"
HOSTILE = ("\x1b[2J\x1b]0;owned\x07cam", "cam\r\nend", "\u202ecam\u2066", "門" * 64, "e" + "\u0301" * 63, "x" * 64, "")


def alert(device=None, eve=None, **ours):
    document = deepcopy(EXAMPLE) | (eve or {})
    document["alert"]["context"]["botwatch"] |= {"explanation": WHY, **({"device": device} if device else {}), **ours}
    return Alert.read(document)


def test_a_pipe_gets_everything_with_times_in_utc_or_in_the_local_zone():
    assert alert_line(alert(), Terminal(utc=True), ID) == (
        "2026-11-23 16:22:10 UTC  gw-001  new     7c1e9a44  Mirai scan from cam-entrance b8:27:eb:12:34:56 "
        f"192.168.1.57, port 23: {WHY} [3,121 packets in 0.0 s, confidence 0.97, model 2026.11.23+1]"
    )
    program = "from edge_agent.contract.show import Terminal; print(Terminal().time(1_795_450_930_123_456_789))"
    for zone, text in (("Europe/Berlin", "2026-11-23 17:22:10 CET"), ("Asia/Kolkata", "2026-11-23 21:52:10 IST")):
        done = subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "TZ": zone}, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == text


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (80, "11-23 16:22 UTC gw-001 new    7c1e9a44 Mirai scan cam-entrance port 23: opens 1…"),
        (
            120,
            "2026-11-23 16:22:10 UTC  gw-001  new     7c1e9a44  Mirai scan from cam-entrance b8:27:eb:12:34:56, "
            "port 23: opens 160 n…",
        ),
    ],
)
def test_a_terminal_gets_what_fits(width, line):
    assert alert_line(alert(), Terminal(width, utc=True), ID) == line


def test_the_line_in_the_document_is_one_that_is_printed():
    assert alert_line(alert(), Terminal(80, utc=True), ID) in (ROOT / "docs" / "alerts.md").read_text().splitlines()


@pytest.mark.parametrize("width", [20, 40, 80, 100, 132, 250])
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("ip", ["192.168.1.57", "fd00:1234:5678:9abc:def0:1234:5678:9abc"])
@pytest.mark.parametrize("test", [False, True])
def test_no_name_is_wider_than_the_terminal_or_obeyed_by_it(width, name, ip, test):
    gateway = "warehouse-berlin-spandau-hall-7-north-entrance-gateway-number-1"
    shown = alert({"ip": ip, "name": name, "mac": "b8:27:eb:12:34:56"}, {"host": gateway}, gateway=gateway, test=test)
    terminal = Terminal(width, utc=True)
    line = alert_line(shown, terminal, gateway_column([gateway], terminal))
    assert cells(line) <= width
    assert line.isprintable()
    assert not any(unicodedata.bidirectional(character) in ("RLO", "LRI", "RLI") for character in line)


def test_where_there_is_little_room_a_device_without_a_name_is_its_mac_and_a_victim_its_address():
    terminal = Terminal(80, utc=True)
    assert "Mirai scan b8:27:eb:12:34:56 port 23: " in alert_line(
        alert({"mac": "b8:27:eb:12:34:56", "ip": "::1"}), terminal
    )
    victim = alert({"ip": "192.168.1.9"}, role="victim", **{"class": "mirai.udp"})
    assert "Mirai udp flood against 192.168.1.9" in alert_line(victim, terminal)
    assert "Mirai scan an unknown device port 23: " in alert_line(alert({"name": ""}), terminal)


@pytest.mark.parametrize("class_name", ["mirai.scan", "unknown", "anomaly", "gafgyt.tcp_udp"])
@pytest.mark.parametrize("gateway", ["gw-001", "plant-west-hall-02-line-3"])
@pytest.mark.parametrize("name", ["", "cam", "doorbell at the north entrance of hall 0", "門" * 30])
def test_eighty_columns_name_the_port_and_who_it_is(class_name, gateway, name):
    """The reason names the port, too, but was cut before it."""
    device = {"mac": "b8:27:eb:12:34:56", "ip": "192.168.1.57", **({"name": name} if name else {})}
    shown = alert(device, gateway=gateway, kind="scan", **{"class": class_name})
    terminal = Terminal(80, utc=True)
    line = alert_line(shown, terminal, gateway_column(["gw-001", gateway], terminal))
    assert "port 23" in line
    assert cells(line) <= 80
    if not name:
        assert "b8:27:eb:12:34:56" in line


def test_gateways_that_are_cut_can_still_be_told_apart():
    """Sites number their halls in the middle of an id, which is where it is cut."""
    ids = [f"plant-west-hall-{n:02}-line-3" for n in range(50)]
    for width, most in ((80, 10), (100, 10), (132, 20)):
        terminal = Terminal(width)
        column = gateway_column(["gw-001", *ids], terminal)
        assert column.width <= most
        assert len({gateway_cell(id, terminal, column) for id in ids}) == len(ids)
    assert gateway_column(["x" * 63, "x" * 62 + "y"], Terminal(80)).width == 10
    hopeless = [f"{'x' * 30}{n:03}{'y' * 30}" for n in range(1000)]
    assert gateway_column(hopeless, Terminal(80)).width == 26  # no more than a third
    assert gateway_column([], Terminal(80)).width == 0


def test_the_brief_reason_is_the_first_statement_and_a_missing_one_is_the_score():
    assert reason(alert(), brief=True) == "opens 160 new connections/s to port 23"
    assert reason(alert(explanation="")) == "score 8.41; the limit is 1.92"


def test_an_encoding_without_an_ellipsis_has_dots_and_without_a_letter_an_escape():
    terminal = Terminal(80, utc=True, encoding="latin-1")
    line = alert_line(alert({"name": "Küche 📷", "mac": "b8:27:eb:12:34:56"}), terminal)
    assert "Küche \\U0001f4f7" in line
    assert line.endswith("...")
    assert cells(line) <= 80
    line.encode("latin-1")


@pytest.mark.parametrize(
    ("settings", "colour"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)],
)
def test_a_terminal_has_colours_unless_the_environment_says_otherwise(monkeypatch, settings, colour):
    for name, value in ({"TERM": "xterm", "COLUMNS": "90"} | settings).items():
        monkeypatch.setenv(name, value)
    if "NO_COLOR" not in settings:
        monkeypatch.delenv("NO_COLOR", raising=False)
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        terminal = Terminal.of(stream)
    os.close(master)
    assert (terminal.width, terminal.colour) == (90, colour)
    assert ("\x1b[1;31m" in alert_line(alert(), terminal)) is colour
    assert Terminal.of(StringIO()).colour is False


def test_colours_take_no_columns_and_an_end_is_quiet():
    bright, plain = Terminal(80, True, True), Terminal(80, True)
    for state, code in (("new", "1;31"), ("end", "2")):
        line = alert_line(alert(state=state), bright)
        assert f"\x1b[{code}m" in line
        assert re.sub(r"\x1b\[[\d;]*m", "", line) == alert_line(alert(state=state), plain)


def test_what_was_measured_is_named_where_the_class_does_not_say_it_and_a_port_only_where_there_is_one():
    terminal = Terminal(utc=True)
    assert "anomaly (scan) from" in alert_line(alert(kind="scan", **{"class": "anomaly"}), terminal)
    assert "anomaly from" in alert_line(alert(kind="other", **{"class": "anomaly"}), terminal)
    assert "Mirai scan from" in alert_line(alert(kind="scan"), terminal)
    why = "reaches 38 new addresses a second"
    assert "56 192.168.1.57, port 2323: " in alert_line(alert(kind="scan", port=2323, explanation=why), terminal)
    assert "56 192.168.1.57: " in alert_line(alert(kind="scan", explanation=why), terminal)  # many ports
    assert "56 192.168.1.57: " in alert_line(alert(kind="flood", explanation=why), terminal)
    old = "sends 900 packets a second to port 23"  # of an agent that names no port
    assert "56 192.168.1.57, port 23: " in alert_line(alert(kind="flood", explanation=old), terminal)
