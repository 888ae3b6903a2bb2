"""Attacks generated into devices' days: the stage they are tried on, the list, the search, and how it reads."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.config import AgentConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract import captures
from tests.conftest import Home
from trainer.data.frames import S
from trainer.judge import evasion_findings, evasions, stage, unseen
from trainer.judge.evasions import Evasion, Evasions, EvasionTrial
from trainer.judge.evasive import Flood, Pace, PortScan
from trainer.judge.evasive_sessions import Contacts
from trainer.judge.stage import Attempt, DeviceDays, Stage
from trainer.judge.unseen import Family, Tried, Unseen

FAST, SLOW = PortScan(pace=Pace(rate=50)), PortScan(pace=Pace(rate=0.002))


@pytest.fixture(scope="module")
def manifests(home: Home) -> list[tuple[captures.CaptureManifest, Path]]:
    manifest, _, root = captures.load(home.later)
    return [(manifest, root)]


@pytest.fixture(scope="module")
def days(manifests) -> DeviceDays:
    found, skipped = stage.device_days(manifests)
    assert skipped == []
    return next(day for day in found if day.device == "plug-1")


@pytest.fixture(scope="module")
def learning(home: Home, days: DeviceDays) -> Stage:
    return Stage(bundles.load(home.bundle), AgentConfig(), days, "learning")


# -- days --


def test_the_days_of_a_device_follow_one_another_and_then_begin_again(days):
    turn = len(days.frames)
    times = [t for t, _, _ in itertools.islice(days.endless(), 2 * turn + 1)]
    assert times == sorted(times)
    assert times[turn] == times[turn - 1] + S
    assert [data for _, _, data in itertools.islice(days.endless(), turn, 2 * turn)] == [f[2] for f in days.frames]


def test_a_devices_surroundings_are_those_of_its_captures(days):
    around = days.around
    assert around.local[0][0] == around.host.router
    assert around.cloud is not None
    sent = [data for _, _, data in days.frames if data[6:12] == around.host.mac]
    assert any(data[30:34] == around.cloud[0] for data in sent)


def test_captures_that_cannot_be_used_are_named(manifests, tmp_path):
    manifest, _ = manifests[0]
    found, skipped = stage.device_days([(manifest, tmp_path)])
    assert found == []
    assert len(skipped) == sum(capture.mac is not None for capture in manifest.captures)
    assert all(str(tmp_path) in reason for reason in skipped)


# -- attempts --


def test_an_attempt_changes_nothing_for_the_next_one(learning):
    first, second = (learning.attempt(FAST, seconds=60, packets=2000) for _ in range(2))
    assert first == second
    assert first.packets is not None
    assert first.seconds == pytest.approx((first.packets - 1) / 50, abs=0.5)
    assert (first.named, first.others) == ("device", ())


def test_what_is_too_slow_is_sent_to_its_end_without_an_alert(learning):
    attempt = learning.attempt(SLOW, seconds=3600, packets=2000)
    assert (attempt.packets, attempt.seconds, attempt.named) == (None, None, "")
    assert attempt.sent == 8
    assert attempt.watched_s == pytest.approx(3500, abs=1)


def test_an_attack_has_no_more_packets_than_are_allowed(learning):
    assert learning.attempt(Flood(pace=Pace(rate=1)), seconds=600, packets=40).sent == 40


def test_forged_addresses_are_told_from_the_devices_own(learning):
    attempt = learning.attempt(replace(FAST, macs="router"), seconds=60, packets=2000)
    assert attempt.named == "router"


def test_an_agent_without_days_meets_the_attack_alone(home, days):
    alone = Stage(bundles.load(home.bundle), AgentConfig(), days, "cold")
    assert not alone.learnt
    attempt = alone.attempt(FAST, seconds=60, packets=2000)
    assert attempt.packets is not None


def test_a_device_has_limits_of_its_own_after_more_than_a_day(home, days):
    known = Stage(bundles.load(home.bundle), AgentConfig(), days, "learnt")
    assert known.learnt
    assert known.at_ns - days.frames[0][0] >= stage.LEARNT_S * S - 3600 * S


# -- the search --

FAMILY = Family(
    what="scan",
    plain=PortScan(pace=Pace(rate=1)),
    rates=(8, 4, 2, 1),
    changes=({"port": 0}, {"shape": "random"}, {"version": 6}),
    forged=({"macs": "router"},),
)


class Watchman:
    """A stage that reports an attack by its rate alone: the stand-in for an agent whose limits are known."""

    def __init__(self, **bounds: float) -> None:
        self.days, self.bounds, self.tried = DayNames(), bounds, 0

    def attempt(self, attack: PortScan, *, seconds: float, packets: int) -> Attempt:
        self.tried += 1
        bound = self.bounds.get("long", 9.0) if packets == unseen.CONFIRMED else 9.0
        bound = min(bound, self.bounds["plain"] + (attack.port == 0) * 2 + (attack.pace.shape == "random"))
        seen = attack.pace.rate >= bound or attack.macs != "own"
        return Attempt(sent=9, watched_s=seconds, length_s=seconds, packets=3 if seen else None)


class DayNames:
    device, kind = "plug-1", "plug"


def searched(watchman: Watchman, monkeypatch) -> Unseen:
    monkeypatch.setattr(unseen, "FAMILIES", (FAMILY,))
    found, left_out = unseen.search(watchman, deadline=float("inf"))  # type: ignore[arg-type]
    assert left_out == []
    return found[0]


def test_the_search_finds_the_highest_unseen_rate_and_what_raises_it(monkeypatch):
    found = searched(Watchman(plain=1.5), monkeypatch)
    assert (found.plain, found.best, found.forged) == (1, 4, None)
    assert found.best_name == "scan 4/s random, port 0"
    assert found.tried[:4] == (
        Tried(changed="plain", rate=1),
        Tried(changed="port 0", rate=2),
        Tried(changed="shape random", rate=2),
        Tried(changed="version 6", rate=1),
    )


def test_a_rate_that_is_reported_later_in_the_day_is_not_unseen(monkeypatch):
    found = searched(Watchman(plain=1.5, long=3.0), monkeypatch)
    assert found.best == 2


def test_a_search_without_success_ends_with_nothing_unseen(monkeypatch):
    found = searched(Watchman(plain=-5), monkeypatch)
    assert (found.plain, found.best, found.best_name) == (None, None, "")


def test_what_there_is_no_time_for_is_said(monkeypatch):
    monkeypatch.setattr(unseen, "FAMILIES", (FAMILY,))
    found, left_out = unseen.search(Watchman(plain=1.5), deadline=0.0)  # type: ignore[arg-type]
    assert found == []
    assert left_out == ["plug-1: the search for unseen scan"]


# -- the whole --


@pytest.fixture(scope="module")
def tried(home: Home, manifests) -> Evasions:
    listed = (
        Evasion(attack=FAST, label="scan", seconds=60),
        Evasion(attack=SLOW, label="scan", seconds=600),
        Evasion(attack=Contacts(pace=Pace(rate=1 / 30)), label="contacts", seconds=600),
    )
    return evasions.evade(home.bundle, manifests, AgentConfig(), evasions=listed, searched=False)


def test_each_attack_is_tried_alone_and_on_every_device_while_it_learns_and_after(tried):
    assert {(trial.state, trial.device) for trial in tried.trials} == {
        ("cold", ""),
        *((state, device) for state in ("learning", "learnt") for device in ("plug-1", "thermostat-1")),
    }
    assert len(tried.trials) == 3 * 5
    assert all(trial.generated and not trial.expected for trial in tried.trials)
    assert all(trial.alerted and trial.named == "device" for trial in tried.trials if trial.capture == FAST.name)
    assert not any(trial.alerted for trial in tried.trials if trial.capture == SLOW.name)
    assert (tried.left_out, tried.unseen) == ((), ())


def test_the_findings_say_what_was_alerted_and_that_it_is_generated(tried):
    (found,) = evasion_findings.report(tried, "command")
    text = "\n".join(found.text())
    assert found.generated
    learnt = [trial.alerted for trial in tried.trials if trial.state == "learnt"]
    assert 0 < sum(learnt) < len(learnt)
    assert f"On a device that has learnt: {sum(learnt)} of {len(learnt)} alerted" in text
    assert [table.title.split(",")[0] for table in found.tables][:3] == ["Seconds to the alert"] * 3


def trial(device: str, ms: float | None, others: tuple[str, ...] = (), kind: str = "plug") -> EvasionTrial:
    return EvasionTrial(
        capture="flood 20/s",
        label="flood",
        generated=True,
        expected=False,
        device=device,
        length_s=600.0,
        packets=None if ms is None else 3,
        ms=ms,
        kind=kind,
        state="learnt",
        sent=12_000,
        others=others,
    )


def test_a_cell_has_the_slowest_device_of_its_kind_and_marks_who_was_blamed_wrongly():
    trials = (
        trial("a", 1500.0),
        trial("b", 9000.0),
        trial("c", None, ("source x",), "camera"),
        trial("d", 2e3, (), "hub"),
    )
    result = Evasions(bundle="0", trials=(*trials, trial("e", None, (), "hub")), unseen=())
    (found,) = evasion_findings.report(result, "command")
    table, wrong = found.tables
    assert table.columns == ("attack", "plug", "camera", "hub")
    assert table.rows == (("flood 20/s", "9", "– ≠", "2 1/2"),)
    assert wrong.rows == (("flood 20/s", "c", "learnt", "nobody", "source x"),)


def unseen_flood(device: str, watched_s: float, *tried: Tried) -> Unseen:
    return Unseen(
        device=device,
        kind="plug",
        what="flood",
        plain=10.0,
        best=20.0,
        best_name="flood 20/s, port 53",
        watched_s=watched_s,
        forged=None,
        most=10_000.0,
        tried=(Tried(changed="plain", rate=10.0), *tried),
    )


def test_the_table_of_the_unseen_has_the_worst_device_of_each_kind():
    item = unseen_flood("a", 7200.0, Tried(changed="port 53", rate=20.0))
    worse = replace(item, device="b", plain=10_000.0, tried=(Tried(changed="plain", rate=10_000.0),))
    contacts = replace(item, what="contacts", plain=96 / 86_400, best=None, best_name="", tried=())
    table = evasion_findings.unseen_table([item, worse, contacts])
    assert table.rows == (
        ("plug", 2, "flood, packets/s", "≥ 10,000", "20", "flood 20/s, port 53", 2.0, "0"),
        ("plug", 1, "contacts, contacts a day", "96", "0", None, None, None),
    )
    _, found = evasion_findings.report(Evasions(bundle="0", trials=(), unseen=(item, worse)), "command")
    assert found.tables[1].rows == (("plain", "≥ 10,000"), ("port 53", "20"))
    assert found.lead == ("Plain flood, by device: unseen up to 10, ≥ 10,000 packets/s.",)
