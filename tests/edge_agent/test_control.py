"""Commands: what they suppress and what is still reported, what the broker may command, and that each is done once."""

import io
import json
import random
import threading
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace

import pytest
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from collector.__main__ import main as collector_main
from edge_agent.__main__ import main as agent_main
from edge_agent.config import AgentConfig, ControlConfig, OutboxConfig
from edge_agent.contract import alertid, messages
from edge_agent.contract.alert import Activity, ModelInfo
from edge_agent.contract.captures import mac_text
from edge_agent.contract.commands import Command, Reply, parse_duration
from edge_agent.contract.messages import MessageError, topic
from edge_agent.control import RATE, CommandRefused, Control
from edge_agent.delivery.alerts import Alerter
from edge_agent.delivery.link import Incoming, Link
from edge_agent.delivery.outbox import Outbox
from edge_agent.delivery.suppressions import Suppression, SuppressionError, Suppressions
from edge_agent.state import State
from edge_agent.system import own_addresses
from tests.broker import Amqtt, Mosquitto, needs_mosquitto, wait_until
from tests.edge_agent.delivery.test_alerts import CAMERA, S, at
from tests.line import config_of, tls_config

MAC = mac_text(CAMERA.device_mac)
OTHER = replace(CAMERA, device_mac=0xB827EB000001)
NOBODY = "019abf2c-0000-7000-8000-000000000000"


class Line:
    """Takes the place of the link: commands to be taken, and the replies to them."""

    def __init__(self):
        self.waiting, self.replies, self.resent, self.longest = [], [], 0, 0

    def received(self):
        return self.waiting.pop(0) if self.waiting else None

    def reply(self, where, payload, correlation=b""):
        self.replies.append((where, json.loads(payload), correlation))
        self.longest = max(self.longest, len(payload))

    def resend(self):
        self.resent += 1


class Gateway:
    """A control with its alerter, without packets and without a broker."""

    def __init__(self, folder, max_open=256, **changes):
        box = OutboxConfig(path=folder / "state.sqlite")
        self.config = AgentConfig(**{"gateway": "gw-001", "outbox": box, **changes})
        self.state = State(self.config.outbox.path)
        self.line = Line()
        self.outbox = Outbox(self.state)
        self.control = Control(self.config, self.state, self.outbox, self.line)
        self.alerter = Alerter("gw-001", "", ModelInfo("1"), "0.1.0", rng=random.Random(1), max_open=max_open)
        self.alerter.suppressions = self.control.suppressions

    def see(self, *detections):
        """The alerts that these cause: state, class and id of each."""
        alerts = [alert for detection in detections for alert in self.alerter.consider(detection)]
        return [self._note(alert) for alert in alerts]

    def _note(self, alert):
        self.control.remember(alert)
        return alert.state, alert.class_name, alert.id

    def order(self, verb, origin="local", **arguments):
        """The result of a local command; CommandRefused when it is refused."""
        reply = self.control.execute(Command.read(verb, {"id": "x", **arguments}), origin)
        if reply.error:
            raise CommandRefused(reply.error)
        return reply.result

    def settle(self):
        return [self._note(alert)[:2] for alert in self.alerter.reconsider()]

    def broker(self, verb, document, now=0.0, **options):
        """The reply to a message on the command topic, None when there is none."""
        payload = document if isinstance(document, bytes) else json.dumps(document).encode()
        options = {"retained": False, **options}
        self.line.waiting.append(Incoming(f"botwatch/v1/gw/gw-001/cmd/{verb}", payload, **options))
        self.control.poll(now)
        return self.line.replies.pop() if self.line.replies else None


@pytest.fixture
def gateway(tmp_path):
    return Gateway(tmp_path)


# --- what is suppressed ---


def test_an_alert_is_allowed_by_its_id_and_its_episode_ends_at_once(gateway):
    ((state, _, alert),) = gateway.see(CAMERA)
    assert state == "new"
    result = gateway.order("allow", alert=alert, reason="backup job", for_s=7 * 86_400)
    assert (result["device"], result["suppressed"]) == (MAC, f"floods (or slower traffic) to port 80, {MAC}")
    assert gateway.settle() == [("end", "gafgyt.tcp")]
    assert gateway.see(at(30), at(61), at(200), at(300)) == []
    assert gateway.alerter.finish() == []
    (entry,) = gateway.control.suppressions.documents()
    assert (entry["hits"], entry["reason"]) == (3, "backup job")  # the rest of the first episode, and two more
    assert gateway.alerter.counts.suppressed == 3
    assert gateway.alerter.open_episodes == 0


def test_an_allowed_episode_whose_class_changes_is_reported(gateway):
    gateway.order("allow", device=MAC, classes=["gafgyt.scan"], reason="asset scanner")
    scan = {"class_name": "gafgyt.scan", "activities": (Activity("scan", 23),)}
    assert gateway.see(at(0, **scan), at(10, **scan)) == []
    assert [told[:2] for told in gateway.see(at(20))] == [("new", "gafgyt.tcp")]
    assert gateway.alerter.counts.spoke_up == 1
    # One episode now: that it is a scan again for a while neither ends it nor opens another.
    assert [told[:2] for told in gateway.see(at(32, **scan), at(60, **scan), at(93, **scan))] == [
        ("update", "gafgyt.scan"),
        ("update", "gafgyt.scan"),
    ]


@pytest.mark.parametrize(
    ("about", "silent"),
    [
        ({"classes": ["gafgyt.*"]}, True),
        ({"classes": ["gafgyt"]}, False),  # the family when no type was told, and that alone
        ({"classes": ["mirai.*", "gafgyt.tcp"]}, True),
        ({"classes": ["gafgyt.tcp"], "port": 80}, True),
        ({"classes": ["gafgyt.tcp"], "port": 81}, False),
        ({"classes": ["gafgyt.tcp"], "host": "203.0.113.9"}, True),
        ({"classes": ["gafgyt.tcp"], "host": "203.0.113.8"}, False),
    ],
)
def test_an_entry_is_about_classes_and_destination(gateway, about, silent):
    gateway.order("allow", device=MAC, reason="r", **about)
    assert (gateway.see(CAMERA) == []) == silent
    assert [told[0] for told in gateway.see(OTHER)] == ["new"]  # and about one device


def test_a_mute_holds_back_everything_of_a_device_until_it_is_ended(gateway):
    entry = gateway.order("mute", device=MAC)["entry"]
    assert gateway.see(CAMERA, at(1, class_name="mirai.syn", activities=(Activity("scan"),))) == []
    with pytest.raises(CommandRefused, match="no active allow has the number"):
        gateway.order("unallow", entry=entry)
    assert gateway.order("unmute", device=MAC) == {"ended": [entry]}
    ((state, _, alert),) = gateway.see(at(2))
    assert state == "new"
    entry = gateway.order("mute", device=alert)["entry"]  # an alert names its device for both
    assert gateway.order("unmute", device=alertid.short(alert)) == {"ended": [entry]}
    with pytest.raises(CommandRefused, match="is not muted"):
        gateway.order("unmute", device=MAC)


def test_a_second_mute_prolongs_the_first_and_shortens_it_only_when_it_replaces_it(gateway):
    first = gateway.order("mute", device=MAC, for_s=7200, reason="rebuild")
    assert "note" not in first
    second = gateway.order("mute", device=MAC, for_s=60)
    assert (second["entry"], second["until"]) == (first["entry"], first["until"])
    assert "muted for longer already" in second["note"]
    third = gateway.order("mute", device=MAC, for_s=10_800)
    assert third["until"] > first["until"]
    assert "note" not in third
    last = gateway.order("mute", device=MAC, for_s=60, replace=True)
    assert last["until"] < first["until"]
    assert [entry["until"][:19] for entry in gateway.control.suppressions.documents()] == [last["until"][:19]]
    other = gateway.order("mute", device="*", for_s=30)  # covers something else
    assert "note" not in other


def test_a_mute_that_a_clock_makes_look_longer_does_not_shorten_the_next(tmp_path):
    """The wall clock is set back by an hour: by it the first mute has an hour and more left, in truth 50 seconds."""
    mutes = Suppressions(State(tmp_path / "state.sqlite"), 2, 3600.0, 0.0)
    mutes.add(Suppression(verb="mute", device=MAC, created_s=3600.0, expires_s=3660.0), 3600.0, 0.0)
    assert mutes.outlasting(Suppression(verb="mute", device=MAC, created_s=10.0, expires_s=310.0), 10.0, 10.0) is None
    assert (
        mutes.outlasting(Suppression(verb="mute", device=MAC, created_s=10.0, expires_s=40.0), 10.0, 10.0) is not None
    )


def test_replace_is_a_word_without_a_value_on_the_gateway(tmp_path, capsys):
    gateway = Gateway(tmp_path)
    gateway.order("mute", device=MAC, for_s=7200)
    gateway.state.close()
    words = ["mute", MAC, "--for", "1m", "--outbox", str(gateway.config.outbox.path), "--json"]
    assert agent_main(words) == 0
    longer = json.loads(capsys.readouterr().out)
    assert agent_main([*words, "--replace"]) == 0
    shorter = json.loads(capsys.readouterr().out)
    assert shorter["until"] < longer["until"]


def test_all_devices_can_be_muted_on_the_gateway_only(gateway):
    gateway.order("mute", device="*", for_s=60)
    assert gateway.see(CAMERA, OTHER) == []
    with pytest.raises(CommandRefused, match="must name one device"):
        gateway.order("mute", origin="broker", device="*", for_s=60)
    with pytest.raises(CommandRefused, match="one device"):
        gateway.order("allow", device="*", classes=["unknown"], reason="r")


def test_a_victim_is_allowed_by_its_address(gateway):
    victim = replace(CAMERA, role="victim", device_ip="192.168.1.9", class_name="mirai.syn")
    ((_, _, alert),) = gateway.see(victim)
    assert gateway.order("allow", alert=alert, reason="load test")["device"] == "192.168.1.9"
    assert gateway.settle() == [("end", "mirai.syn")]
    assert [told[0] for told in gateway.see(CAMERA)] == ["new"]  # the router that brought it is not covered


def test_suppressed_episodes_are_evicted_first_when_too_many_are_open(tmp_path):
    gateway = Gateway(tmp_path, max_open=2)
    gateway.order("mute", device=MAC)
    assert gateway.see(CAMERA) == []
    devices = [replace(CAMERA, device_mac=i, t_ns=CAMERA.t_ns + i) for i in (1, 2, 3)]
    assert [told[0] for told in gateway.see(*devices)] == ["new", "new", "end", "new"]


def test_a_name_of_the_configuration_stands_for_its_device(tmp_path):
    gateway = Gateway(tmp_path, names={MAC.upper(): "cam", "02:00:00:00:00:01": "twin", "02:00:00:00:00:02": "twin"})
    assert gateway.order("mute", device="cam")["device"] == MAC
    with pytest.raises(CommandRefused, match="give the MAC"):
        gateway.order("mute", device="twin")
    with pytest.raises(CommandRefused, match="neither a MAC, nor an IP address, nor a name"):
        gateway.order("mute", device="camera")


# --- how long, and how many ---


def test_entries_and_hits_survive_a_restart_and_their_time_does_not_begin_again(tmp_path):
    gateway = Gateway(tmp_path)
    gateway.order("allow", device=MAC, classes=["gafgyt.tcp"], reason="r")
    gateway.see(CAMERA)
    gateway.control.close()
    until = gateway.control.suppressions.documents()[0]["until"]
    gateway.state.close()
    again = Gateway(tmp_path)
    assert again.see(CAMERA) == []
    again_entry = again.control.suppressions.documents()[0]
    assert (again_entry["hits"], again_entry["until"]) == (2, until)


def test_an_entry_ends_by_either_clock_and_a_jump_forward_is_forgiven(tmp_path):
    allowed = Suppressions(State(tmp_path / "state.sqlite"), 10, 1000.0, 0.0)
    allowed.add(Suppression(verb="allow", device=MAC, created_s=1000.0, expires_s=1100.0), 1000.0, 0.0)
    year = 365 * 86_400.0
    for now_s, steady_s, covered in (
        (1099.0, 99.0, True),
        (1101.0, 99.0, False),
        (1000.0 + 5 * year, 10.0, False),
        (1050.0, 11.0, True),  # the clock was mended
        (1000.0 - 5 * year, 99.0, True),  # set back: runs on by the steady clock
        (1000.0 - 5 * year, 101.0, False),
    ):
        allowed.tick(now_s, steady_s)
        assert allowed.covers(CAMERA) is covered, (now_s, steady_s)


def test_the_list_is_bounded_and_what_is_over_makes_room_first(tmp_path):
    allowed = Suppressions(State(tmp_path / "state.sqlite"), 2, 0.0, 0.0)
    entries = [
        Suppression(verb="mute", device=f"02:00:00:00:00:0{i}", created_s=0.0, expires_s=10.0 * (i + 1))
        for i in range(3)
    ]
    first = allowed.add(entries[0], 0.0, 0.0)
    allowed.add(entries[1], 0.0, 0.0)
    with pytest.raises(SuppressionError, match=r"full \(2 entries\)"):
        allowed.add(entries[2], 5.0, 5.0)
    again = allowed.add(replace(entries[0], expires_s=15.0), 5.0, 5.0)  # about the same: in its place
    assert again != first
    allowed.tick(16.0, 16.0)
    allowed.add(entries[2], 16.0, 16.0)
    assert {e.device for e in allowed.active().values()} == {entries[1].device, entries[2].device}


# --- an allow that is also learnt ---


class Taught:
    """Takes the place of the devices: what was taught to which, and forgotten."""

    def __init__(self, knows=True):
        self.known, self.knows = [], knows

    def __call__(self, device, activities, raised):
        if raised and not self.knows:
            raise CommandRefused(f"{device}: no burst of this sort is remembered")
        if raised:
            self.known.append((device, activities))
        else:
            self.known.remove((device, activities))


def test_an_allow_raises_the_limits_of_its_device_where_it_says_so_and_its_end_undoes_that(gateway):
    gateway.control.teach_with(taught := Taught())
    ((_, _, alert),) = gateway.see(CAMERA)
    result = gateway.order("allow", alert=alert, reason="video calls", learn=True)
    assert result["learnt"] is True
    assert taught.known == [(MAC, (Activity("flood", 80),))]
    (entry,) = gateway.control.suppressions.documents()
    assert entry["learnt"] is True
    again = Gateway(gateway.config.outbox.path.parent)
    again.control.teach_with(taught)
    assert again.order("unallow", entry=entry["entry"]) == {"ended": [entry["entry"]]}
    assert taught.known == []


def test_an_allow_that_lasts_already_can_be_learnt_too(gateway):
    gateway.control.teach_with(taught := Taught())
    about = {"device": MAC, "kinds": ["flood"], "port": 443, "reason": "r"}
    first = gateway.order("allow", for_s=86_400, **about)
    then = gateway.order("allow", for_s=3600, learn=True, **about)
    assert (first["until"], first.get("learnt")) == (then["until"], None)
    assert then["learnt"] is True
    assert len(taught.known) == 1
    (entry,) = gateway.control.suppressions.documents()
    assert entry["entry"] == then["entry"]


def test_an_allow_is_not_made_where_nothing_can_be_learnt_and_nothing_is_learnt_where_none_is_made(gateway):
    about = {"device": MAC, "kinds": ["flood"], "reason": "r", "learn": True}
    with pytest.raises(CommandRefused, match="to learn needs a running agent"):
        gateway.order("allow", **about)
    gateway.control.teach_with(Taught(knows=False))
    with pytest.raises(CommandRefused, match="no burst of this sort"):
        gateway.order("allow", **about)
    assert gateway.control.suppressions.documents() == []
    gateway.control.teach_with(taught := Taught())
    with pytest.raises(CommandRefused, match="at most 24 h"):
        gateway.order("allow", origin="broker", for_s=2 * 86_400, **about)
    assert taught.known == []


@pytest.mark.parametrize("commands", [("status", "allow"), ("status", "allow", "learn")])
def test_the_broker_may_have_bursts_learnt_only_where_it_may_have_devices_learnt_anew(tmp_path, commands):
    gateway = Gateway(tmp_path, commands=commands)
    gateway.control.teach_with(taught := Taught())
    about = {"device": MAC, "kinds": ["flood"], "reason": "r", "learn": True}
    if "learn" in commands:
        gateway.order("allow", origin="broker", **about)
    else:
        with pytest.raises(CommandRefused, match="does not let the broker change what is learnt"):
            gateway.order("allow", origin="broker", **about)
    assert len(taught.known) == ("learn" in commands)


# --- what the broker may order ---


def test_the_broker_may_allow_one_device_for_a_day(gateway):
    day = 86_400
    with pytest.raises(CommandRefused, match=r"at most 24 h .*remote_hours.*, not 24.0003"):
        gateway.order("mute", origin="broker", device=MAC, for_s=day + 1)
    gateway.order("mute", origin="broker", device=MAC, for_s=day)
    gateway.order("allow", origin="broker", device=MAC, classes=["unknown"], reason="r")  # as long as it may
    ends = [entry.expires_s - entry.created_s for entry in gateway.control.suppressions.active().values()]
    assert ends == pytest.approx([day, day])
    assert {entry["origin"] for entry in gateway.control.suppressions.documents()} == {"broker"}


def test_the_broker_never_covers_the_gateway_itself_or_a_group_address(gateway):
    own = own_addresses()
    assert "127.0.0.1" in own
    for device in own:
        with pytest.raises(CommandRefused, match="the gateway itself"):
            gateway.order("mute", origin="broker", device=device, for_s=60)
    with pytest.raises(CommandRefused, match="group address"):
        gateway.order("mute", origin="broker", device="01:00:5e:00:00:01", for_s=60)
    gateway.order("mute", device="127.0.0.1", for_s=60)  # on the gateway one may


def test_the_broker_can_make_so_many_entries_and_replaces_none_of_the_gateways(tmp_path):
    gateway = Gateway(tmp_path, control=ControlConfig(remote_entries=2))
    for i in (1, 2):
        gateway.order("mute", origin="broker", device=f"02:00:00:00:00:0{i}", for_s=60)
    with pytest.raises(CommandRefused, match=r"bound of 2 entries .* is reached"):
        gateway.order("mute", origin="broker", device="02:00:00:00:00:03", for_s=60)
    gateway.order("mute", origin="broker", device="02:00:00:00:00:01", for_s=90)  # the same again is no other
    gateway.order("mute", device=MAC, for_s=7 * 86_400)
    with pytest.raises(CommandRefused, match="made on the gateway"):
        gateway.order("mute", origin="broker", device=MAC, for_s=60)


def test_a_command_from_the_broker_is_carried_out_once_answered_and_counted(gateway):
    command = {"id": "c-1", "device": MAC, "by": "alice"}
    where, reply, _ = gateway.broker("mute", command)
    assert where == "botwatch/v1/gw/gw-001/reply"
    assert (reply["id"], reply["ok"], reply["result"]["device"]) == ("c-1", True, MAC)
    assert gateway.broker("mute", command)[1] == reply  # QoS 1: delivered again
    assert len(gateway.control.suppressions.active()) == 1
    assert gateway.control.suppressions.documents()[0]["entry"] == reply["result"]["entry"]
    # Another command of the same id, and the same after a restart
    assert "another command" in gateway.broker("status", {"id": "c-1"})[1]["error"]
    assert gateway.control.counts["commands_repeated"] == 1
    assert gateway.control.counts["commands_done"] == 1


def test_a_repeat_is_known_after_a_restart(tmp_path):
    first = Gateway(tmp_path)
    said = first.broker("mute", {"id": "c-1", "device": MAC})[1]
    first.state.close()
    second = Gateway(tmp_path)
    assert second.broker("mute", {"id": "c-1", "device": MAC})[1] == said
    assert second.control.counts["commands_done"] == 0


@pytest.mark.parametrize(
    ("verb", "payload", "words"),
    [
        ("mute", b"", "not JSON"),
        ("mute", b"[]", "not a JSON object"),
        ("mute", b'{"device":"' + MAC.encode() + b'"}', "id:"),
        ("mute", {"id": "a b", "device": MAC}, "id:"),
        ("mute", {"id": "1", "device": MAC, "tau": 99}, "unknown key 'tau'"),
        ("mute", {"id": "1"}, "alert or device is missing"),
        ("mute", {"id": "1", "device": MAC, "alert": NOBODY}, "give alert or device, not both"),
        ("mute", {"id": "1", "alert": NOBODY}, f"alert {NOBODY} is not stored here"),
        ("mute", {"id": "1", "device": 7}, "device: expected"),
        ("mute", {"id": "1", "device": MAC, "for_s": -1}, "for_s: expected"),
        ("mute", {"id": "1", "device": MAC, "for_s": True}, "for_s: expected"),
        ("mute", {"id": "1", "device": MAC, "replace": "maybe"}, "replace: expected true or false"),
        ("allow", {"id": "1", "device": MAC, "classes": ["unknown"]}, "missing key 'reason'"),
        ("allow", {"id": "1", "device": MAC, "reason": "r"}, "name the kind of traffic"),
        (
            "allow",
            {"id": "1", "device": MAC, "reason": "r", "classes": ["kaiten"]},
            "unknown class 'kaiten'; known: anomaly",
        ),
        ("allow", {"id": "1", "device": MAC, "reason": "r\n", "classes": ["unknown"]}, "reason: expected"),
        ("config", {"id": "1"}, "unknown command 'config'"),
        ("mute", {"id": "1", "device": MAC, "reason": "x" * 5000}, "too large"),
        ("mute", {"id": "1", "device": MAC, "ts": "2020-01-01T00:00:00.000000+0000"}, "too late"),
        ("learn", {"id": "1", "device": MAC}, "cannot do that"),
    ],
)
def test_the_reply_says_what_is_wrong_with_a_command(gateway, verb, payload, words):
    _, reply, _ = gateway.broker(verb, payload)
    assert not reply["ok"]
    assert words in reply["error"]
    assert Reply.read(reply).error == reply["error"]
    assert gateway.control.counts["commands_refused"] == 1
    assert gateway.control.suppressions.active() == {}


def test_a_retained_command_is_counted_and_nothing_else(gateway):
    assert gateway.broker("mute", {"id": "1", "device": MAC}, retained=True) is None
    assert gateway.control.counts["commands_retained"] == 1
    assert gateway.control.suppressions.active() == {}


def test_a_flood_of_commands_is_cut_off_and_counted(gateway):
    replies = [gateway.broker("status", {"id": f"s{i}"}, now=1.0) for i in range(50)]
    assert sum(reply is not None for reply in replies) == RATE
    assert gateway.control.counts["commands_dropped"] == 50 - RATE
    assert gateway.broker("status", {"id": "later"}, now=62.0) is not None


def test_which_commands_the_broker_may_give_is_configured(tmp_path):
    (tmp_path / "some").mkdir()
    some = Gateway(tmp_path / "some", commands=("status",))
    assert "it takes status" in some.broker("mute", {"id": "1", "device": MAC})[1]["error"]
    assert some.broker("status", {"id": "2"})[1]["ok"]
    none = Gateway(tmp_path, commands=())
    assert none.broker("status", {"id": "2"}) is None
    assert none.control.counts["commands_dropped"] == 1
    with pytest.raises(ValueError, match="commands: unknown command 'reboot'"):
        AgentConfig(commands=("reboot",))


def test_a_reply_goes_where_the_sender_wants_it_if_that_is_our_reply_topic(gateway):
    mine = "botwatch/v1/gw/gw-001/reply/desk-7"
    where, _, correlation = gateway.broker("status", {"id": "1"}, response_topic=mine, correlation=b"\x00\xff")
    assert (where, correlation) == (mine, b"\x00\xff")
    for other in ("botwatch/v1/gw/gw-001/alert", "botwatch/v1/gw/gw-002/reply", "homeassistant/x", "#"):
        assert gateway.broker("status", {"id": "1" + other[-1:]}, response_topic=other)[0].endswith("/gw-001/reply")


def test_a_reply_that_is_too_long_says_what_it_left_out(gateway):
    gateway.control.describe("devices", lambda: [{"mac": MAC, "state": "learning"} for _ in range(1000)])
    _, reply, _ = gateway.broker("status", {"id": "1"})
    assert messages.MAX_PAYLOAD / 4 < gateway.line.longest <= messages.MAX_PAYLOAD
    result = Reply.read(reply).result
    assert len(result["devices"]) + result["devices_left_out"] == 1000


def test_alerts_the_broker_took_are_handed_over_again(gateway):
    gateway.outbox.put([("t", b"%d" % i, False) for i in range(5)])
    gateway.outbox.drain(lambda *_: True)
    gateway.outbox.done(range(1, 6))
    since = messages.format_time(time.time_ns() - 60 * S)
    reply = gateway.broker("replay", {"id": "1", "since": since})[1]
    assert reply["result"]["alerts"] == 5
    assert (gateway.outbox.depth(), gateway.line.resent) == (5, 1)
    future = messages.format_time(time.time_ns() + 60 * S)
    assert "future" in gateway.broker("replay", {"id": "2", "since": future})[1]["error"]


def test_another_module_registers_what_it_can_do(gateway):
    gateway.control.register("learn", lambda command, origin: {"device": command.arguments["device"], "by": origin})
    assert gateway.broker("learn", {"id": "1", "device": MAC})[1]["result"] == {"device": MAC, "by": "broker"}
    with pytest.raises(ValueError, match="is not a command"):
        gateway.control.register("reboot", lambda *_: {})


def test_a_command_reads_back_as_it_was_written():
    said = Command(
        "allow", "i", {"alert": NOBODY, "reason": "r", "classes": ("unknown", "mirai.*"), "port": 23}, "me", 7000
    )
    assert Command.read("allow", messages.decode(messages.encode(said.document()))) == said
    since = Command("replay", "i", {"since": 1_795_450_930_123_456_000})
    assert Command.read("replay", since.document()) == since
    with pytest.raises(MessageError, match="is not a duration"):
        parse_duration("a week")


@contextmanager
def polling(gateway):
    """The packet loop, as far as commands go."""
    stop = threading.Event()

    def loop():
        while not stop.wait(0.05):
            gateway.control.poll(time.monotonic())

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_state_file_of_the_version_before_is_taken_over(tmp_path):
    """An upgrade: what waits in the outbox is still there, and the allow list is begun."""
    import sqlite3

    from edge_agent import state as states

    path = tmp_path / "state.sqlite"
    old = sqlite3.connect(path)
    old.executescript(f"{states._OUTBOX}PRAGMA user_version=1;")
    old.execute("INSERT INTO outbox (put_s, topic, payload, droppable) VALUES (1.0, 't', x'31', 0)")
    old.commit()
    old.close()
    gateway = Gateway(tmp_path)
    assert gateway.outbox.depth() == 1
    gateway.order("mute", device=MAC)


# --- over a real broker ---


@contextmanager
def connected(folder, config, commands=True):
    """A gateway whose control has a link, in its thread, and whose packet loop goes round."""
    gateway = Gateway(folder, broker=config)
    link = Link(config, gateway.outbox, gateway="gw-001", agent="0.1.0", filters={topic("gw-001", "cmd/+"): commands})
    gateway.control = Control(gateway.config, gateway.state, gateway.outbox, link)
    gateway.alerter.suppressions = gateway.control.suppressions
    gateway.link, stop = link, threading.Event()
    thread = threading.Thread(target=link.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: link.connected)
        with polling(gateway):
            yield gateway
    finally:
        stop.set()
        thread.join(10)


def collector(*words):
    """What the command prints, on stdout or stderr, with its status."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = collector_main(["command", *map(str, words)])
    return status, out.getvalue() + err.getvalue()


@pytest.mark.parametrize("make", [pytest.param(Mosquitto, marks=needs_mosquitto), Amqtt])
@pytest.mark.parametrize("version", ["auto", "3.1.1"])
def test_the_desktop_mutes_a_device_and_gets_a_reply(tmp_path, make, version):
    """MQTT 5 with its response topic, 3.1.1 by the id, and a broker that knows no 5."""
    (tmp_path / "c.yaml").write_text(f"broker: {{version: '{version}', connect_timeout_s: 2.0}}")
    with (
        make(tmp_path / "broker") as broker,
        connected(tmp_path, config_of(broker, connect_timeout_s=2.0)) as gateway,
    ):
        line = ("--broker", broker.address, "--config", tmp_path / "c.yaml")
        status, said = collector("gw-001", "mute", f"device={MAC}", "for=2h", "reason=new firmware", "--json", *line)
        assert status == 0, said
        assert json.loads(said)["device"] == MAC
        assert gateway.see(CAMERA) == []
        (entry,) = gateway.control.suppressions.documents()
        assert (entry["origin"], entry["reason"]) == ("broker", "new firmware")
        assert collector("gw-001", "mute", f"device={MAC}", "for=25h", *line)[1].endswith(
            "at most 24 h (control.remote_hours), not 25\n"
        )
        assert "muted for longer" in collector("gw-001", "mute", f"device={MAC}", "for=1m", *line)[1]
        status, said = collector("gw-001", "status", "--json", *line)
        assert json.loads(said)["allowed"][0]["hits"] == 1


@needs_mosquitto
def test_an_agent_takes_no_commands_where_they_are_switched_off(tmp_path):
    with Mosquitto(tmp_path / "broker", "log_type all") as broker:
        config = config_of(broker)
        with connected(tmp_path, config):  # leaves a session that has subscribed
            pass
        with connected(tmp_path, config, commands=False) as gateway:
            wait_until(lambda: "UNSUBACK" in broker.log())
            status, said = collector("gw-001", "mute", f"device={MAC}", "--broker", broker.address)
            assert (status, "does not take commands" in said) == (1, True)
            assert gateway.link.counts.commands == 0


@needs_mosquitto
def test_a_retained_command_comes_to_nothing_on_every_connection(tmp_path):
    command = json.dumps({"id": "r", "device": MAC}).encode()
    with Mosquitto(tmp_path / "broker") as broker:
        sender = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        sender.connect("127.0.0.1", broker.port)
        sender.loop_start()
        sender.publish("botwatch/v1/gw/gw-001/cmd/mute", command, qos=1, retain=True).wait_for_publish(5)
        with connected(tmp_path, config_of(broker)) as gateway:
            wait_until(lambda: gateway.control.counts["commands_retained"] == 1)
            sender.publish("botwatch/v1/gw/gw-001/cmd/mute", command, qos=1, retain=True).wait_for_publish(5)
            wait_until(lambda: gateway.control.counts["commands_retained"] == 2)
            assert gateway.control.suppressions.active() == {}
        sender.disconnect()
        sender.loop_stop()


@needs_mosquitto
def test_under_the_acl_we_ship_only_the_operator_gives_commands(site, tmp_path):
    def config_file(name):
        where = {"ca_file": "ca.crt", "cert_file": f"{name}.crt", "key_file": f"{name}.key"}
        lines = "".join(f"  {key}: {site.folder / file}\n" for key, file in where.items())
        (tmp_path / f"{name}.yaml").write_text(f"broker:\n  tls: true\n{lines}")
        return tmp_path / f"{name}.yaml"

    with connected(tmp_path, tls_config(site)) as gateway:
        words = ("gw-001", "mute", f"device={MAC}", "--broker", site.address, "--timeout", 5)
        status, said = collector(*words, "--config", config_file("operator"))
        assert status == 0, said
        for stranger in ("viewer", "gw-002"):
            status, said = collector(*words, "--config", config_file(stranger))
            assert (status, "Not authorized" in said) == (1, True), said
        assert gateway.link.counts.commands == 1
