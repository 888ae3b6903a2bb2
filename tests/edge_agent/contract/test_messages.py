"""Topics, payloads, ids and times: what is written can be read, and what is not ours is refused by name."""

import json
import random
from contextlib import suppress
from importlib.resources import files

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract import messages
from edge_agent.contract.messages import MAX_PAYLOAD, MessageError, Status

SCHEMA = json.loads(files("edge_agent.contract").joinpath("alert.schema.json").read_text())


@pytest.mark.parametrize("name", ["", "-gw", "gw-", "GW", "gw/1", "gw+", "#", "g" * 64, "gw\n", "gw 1", "gwé"])
def test_gateway_that_could_bend_a_topic_is_refused(name):
    with pytest.raises(MessageError):
        messages.topic(name, "alert")
    with pytest.raises(MessageError):
        messages.parse_topic(f"botwatch/v1/gw/{name}/alert")


def test_topic_reads_back_under_any_base():
    assert messages.parse_topic(messages.topic("gw-7", "model/detail", "site/a"), "site/a") == ("gw-7", "model/detail")
    with pytest.raises(MessageError):
        messages.parse_topic("other/v1/gw/gw-7/alert")
    with pytest.raises(MessageError):
        messages.check_base("site/#")


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"a":NaN}', "not finite"),
        (b'{"a":1e999}', "not finite"),
        (b'{"a":' + b"9" * 400 + b"}", "64 bits"),
        (b'{"a":' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a":"\\ud800"}', "surrogate"),
        (b'{"a\\u0000":1}', "NUL"),
        (b'{"a":' * 20 + b"1" + b"}" * 20, "nested"),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "nested"),
        (b'{"a":"' + b"x" * MAX_PAYLOAD + b'"}', "too large"),
    ],
)
def test_payload_that_could_hurt_later_is_refused(payload, reason):
    with pytest.raises(MessageError, match=reason):
        messages.decode(payload)


@given(st.binary(max_size=200))
def test_no_payload_raises_anything_else(payload):
    with suppress(MessageError):
        messages.decode(payload)


def test_message_beyond_the_bound_is_not_written():
    with pytest.raises(MessageError, match="bound"):
        messages.encode({"a": "x" * MAX_PAYLOAD})
    with pytest.raises(MessageError):
        messages.encode({"a": float("nan")})


@given(st.integers(-(2**70), 2**70))
def test_any_packet_time_can_be_written(t_ns):
    text = messages.format_time(t_ns)
    jsonschema.validate(text, SCHEMA["properties"]["timestamp"])
    if 0 <= t_ns < 253_402_300_800 * 10**9:
        assert messages.parse_time(text) == t_ns // 1000 * 1000


@pytest.mark.parametrize(
    "text", ["", "2026-11-23T16:22:10.123456Z", "2026-13-23T16:22:10.123456+0000", "1960-01-01T00:00:00.000000+0000"]
)
def test_time_in_another_form_is_refused(text):
    with pytest.raises(MessageError):
        messages.parse_time(text)


@given(st.integers(0, 2**62), st.integers(0, 2**62), st.integers())
def test_ids_sort_by_time_and_repeat_with_the_seed(a, b, seed):
    first, second = (messages.uuid7(t, random.Random(seed)) for t in sorted((a, b)))
    assert first[:13] <= second[:13]
    assert first == messages.uuid7(min(a, b), random.Random(seed))


def test_community_id_is_that_of_the_standard_in_both_directions():
    """Test vectors of the Community ID specification (TCP, UDP and IPv6; seed 0)."""
    there = messages.community_id("192.168.1.52", 54585, "8.8.8.8", 53, "UDP")
    back = messages.community_id("8.8.8.8", 53, "192.168.1.52", 54585, "UDP")
    assert there == back == "1:d/FP5EW3wiY1vCndhwleRRKHowQ="
    assert messages.community_id("192.168.1.5", 0, "8.8.8.8", 0, "ICMP") is None
    assert messages.community_id("", 1, "8.8.8.8", 2, "TCP") is None


def test_status_reads_back_and_a_foreign_one_is_refused():
    status = Status("online", "0193", "0.1.0", 1_795_450_930_123_456_000)
    assert Status.read(messages.decode(messages.encode(status.document()))) == status
    for change in ({"state": "sleeping"}, {"boot": 7}, {"agent": "x" * 21}, {"ts": "now"}):
        with pytest.raises(MessageError):
            Status.read({**status.document(), **change})
