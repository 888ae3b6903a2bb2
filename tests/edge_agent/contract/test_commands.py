"""Commands: the grammar of each verb, and the words by which people give its arguments."""

import pytest

from edge_agent.contract.commands import ALL_DEVICES, VERBS, Command, Reply, typed
from edge_agent.contract.messages import MessageError, decode, encode

ID = "01a20937-03cb-7c3e-9f10-0c5a7c1e9a44"
NOW_NS = 1_795_450_930_000_000_000


@pytest.mark.parametrize(
    ("verb", "words", "arguments"),
    [
        ("mute", {"device": "cam", "for": "2h"}, {"device": "cam", "for_s": 7200.0}),
        ("mute", {"device": "all", "for_s": "90"}, {"device": ALL_DEVICES, "for_s": 90.0}),
        (
            "allow",
            {"device": "cam", "classes": "mirai.*,unknown", "port": "23", "reason": "x"},
            {"device": "cam", "classes": ("mirai.*", "unknown"), "port": 23, "reason": "x"},
        ),
        ("unmute", {"entry": "3"}, {"entry": 3}),
        ("replay", {"since": "15m"}, {"since": NOW_NS - 900 * 10**9}),
        ("replay", {"since": "2026-11-23T16:22:10.000000+0000"}, {"since": NOW_NS}),
        ("evidence", {"alert": ID}, {"alert": ID}),
    ],
)
def test_what_people_type_becomes_a_command_that_reads_back(verb, words, arguments):
    typed_ = dict(typed(verb, word, text, NOW_NS) for word, text in words.items())
    command = Command.read(verb, {"id": "x", **typed_})
    assert command.arguments == arguments
    assert Command.read(verb, decode(encode(command.document()))) == command


@pytest.mark.parametrize(
    ("verb", "words", "reason"),
    [
        ("mute", {"device": "cam", "for": "soon"}, "'soon' is not a duration"),
        ("mute", {"device": "cam", "until": "noon"}, "unknown key 'until'; known: id, alert, device, for_s, reason"),
        ("unmute", {"entry": "three"}, "entry: expected a whole number"),
        ("allow", {"device": "cam", "classes": "benign", "reason": "x"}, "unknown class 'benign'; known: anomaly"),
        ("evidence", {"alert": "x"}, "alert: 'x' is not the id of an alert"),
        ("mute", {"for": "2h"}, "mute: alert or device is missing"),
        ("unmute", {"entry": "1", "device": "cam"}, "give entry or device, not both"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(verb, words, reason):
    with pytest.raises(MessageError, match=reason):
        Command.read(verb, {"id": "x", **dict(typed(verb, word, text, NOW_NS) for word, text in words.items())})


def test_only_evidence_is_followed_by_parts_and_they_come_under_the_alerts_id():
    leaves = {verb: Command(verb, "x", {"alert": ID}).parts_leaf for verb in VERBS}
    assert {verb: leaf for verb, leaf in leaves.items() if leaf} == {"evidence": f"chunk/{ID}"}


def test_a_reply_has_a_result_or_says_why_not():
    for reply in (Reply("x", "mute", NOW_NS, {"entry": 3}), Reply("x", "mute", NOW_NS, error="no such device")):
        assert Reply.read(decode(encode(reply.document()))) == reply
        with pytest.raises(MessageError, match="reply"):
            Reply.read({**reply.document(), "ok": not reply.document()["ok"]})
