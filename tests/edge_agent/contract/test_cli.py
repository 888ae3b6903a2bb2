"""What commands print of text that came from elsewhere."""

import io
import json
import sys

import pytest

from edge_agent.contract.cli import end_output, json_text, prepare_output, printable, say


def test_what_a_terminal_would_obey_is_escaped_and_the_rest_stays():
    assert printable("Küche 📷 \\ x") == "Küche 📷 \\ x"
    assert printable("a\x1b[2J\r\n\x9b\u202e\udce9") == r"a\x1b[2J\r\n\x9b\u202e\udce9"


@pytest.mark.parametrize("name", ["Küche 📷", "\x7f\x9b\u202e", "\ud800", "plain"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_on_stdout_can_be_printed_and_read_again(monkeypatch, name, encoding):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    for indent in (None, 1):
        text = json_text({"name": name}, indent)
        text.encode(encoding)
        assert text.replace("\n", "").isprintable()
        assert json.loads(text) == {"name": name}
    assert json_text({"a": [1, 2]}) == '{"a":[1,2]}'


def test_a_line_is_escaped_where_the_encoding_does_not_have_it(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "latin-1"))
    prepare_output()
    say("Küche 📷\x1b")
    assert end_output("botwatch agent", 0) == 0
    assert written.getvalue() == b"K\xfcche \\U0001f4f7\\x1b\n"


def test_a_closed_stdout_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    prepare_output()
    say("nobody reads this")
    assert end_output("botwatch agent", 0) == 0
