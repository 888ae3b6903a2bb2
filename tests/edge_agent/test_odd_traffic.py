"""Clocks that jump, a MAC that two devices share, more devices than any table holds: bounded, counted and judged."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from edge_agent.agent import Agent
from edge_agent.config import AgentConfig, LearningConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract import captures
from edge_agent.detection.detector import MAX_SUBJECTS
from tests.conftest import Home
from tests.streams import context, mac_of, time_ns
from tests.traffic import Frame, S, arp, merged, packet, read, scan, steady

MINUTE, YEARS = 60 * S, 5 * 365 * 86_400 * S
CALM = 15 * MINUTE  # longer than warm-up
SCAN = 400  # SYNs, 20 a second


@dataclass(frozen=True)
class Device:
    mac: int
    ip: str
    life: list[Frame]  # two hours without an attack


@pytest.fixture(scope="module")
def devices(home: Home) -> dict[str, Device]:
    manifest, _, root = captures.load(home.later)
    by_name = {}
    for capture in manifest.captures:
        life, mac = read(root / capture.file), captures.parse_mac(capture.mac or "")
        raw = mac.to_bytes(6, "big")
        sent = (data[26:30] for _, _, data in life if data[6:12] == raw and data[12:14] == b"\x08\x00")
        by_name[capture.device] = Device(mac, ".".join(map(str, next(ip for ip in sent if any(ip)))), life)
    return by_name


class Judged:
    """An agent that is given frames, and its alerts."""

    def __init__(self, home: Home) -> None:
        config = AgentConfig(learning=LearningConfig(enabled=False))
        self.agent, self.alerts, self.fed = Agent(config, bundles.load(home.bundle), seed=0), [], 0

    def take(self, frames: Iterable[Frame], batch: int = 512) -> list[dict[str, Any]]:
        """Judge more frames; return the alerts that they gave."""
        waiting, alerts = list(frames), []
        for at in range(0, len(waiting), batch):
            part = waiting[at : at + batch]
            rows = self.agent.extractor.push_frames(part)
            alerts += [alert.document() for alert in self.agent.judge(rows)]
        self.fed += len(waiting)
        self.alerts += alerts
        return alerts

    def finish(self) -> dict[str, int]:
        """End the capture and return the counters, in which every packet must be counted."""
        self.alerts += [alert.document() for alert in self.agent.finish()]
        counts = self.agent.counts()
        assert counts["frames"] == counts["rows"] == self.fed
        assert counts["scored"] + counts["shed"] == counts["rows"]
        return counts


def until(device: Device, end_ns: int, later_ns: int = 0) -> list[Frame]:
    """Return the first ``end_ns`` of its life, ``later_ns`` later."""
    return [(t + later_ns, *rest) for t, *rest in device.life if t < device.life[0][0] + end_ns]


def scanning(device: Device, at: int) -> list[Frame]:
    return list(steady(scan(SCAN, device.ip, mac=device.mac), at, SCAN // 20))


def states(alerts: list[dict[str, Any]], mac: int) -> list[str]:
    return [context(alert)["state"] for alert in alerts if mac_of(alert) == mac and context(alert)["state"] != "update"]


# -- clocks --


@pytest.mark.parametrize("jump", [YEARS, -YEARS], ids=["forward", "back"])
def test_a_clock_that_jumps_by_years_gives_no_alert_and_an_attack_after_it_is_reported(home, devices, jump):
    plug, judged = devices["plug-1"], Judged(home)
    begin = plug.life[0][0]
    assert judged.take(until(plug, CALM)) == []
    assert judged.take([(t + jump, *rest) for t, *rest in plug.life if begin + CALM <= t < begin + 2 * CALM]) == []
    at = begin + 2 * CALM + jump
    judged.take(scanning(plug, at))
    counts = judged.finish()
    assert states(judged.alerts, plug.mac) == ["new", "end"]
    assert 0 <= time_ns(judged.alerts[0]["timestamp"]) - at < 5 * S
    assert counts["clock_steps"] == (jump < 0)


@pytest.mark.parametrize("jump", [YEARS, -YEARS], ids=["forward", "back"])
def test_a_clock_that_jumps_during_an_attack_neither_loses_nor_multiplies_it(home, devices, jump):
    plug, judged = devices["plug-1"], Judged(home)
    at = plug.life[0][0] + CALM
    judged.take(until(plug, CALM))
    attack = scanning(plug, at)
    judged.take([(t + jump * (i >= SCAN // 2), *rest) for i, (t, *rest) in enumerate(attack)])
    judged.take((t + 10 * MINUTE + jump, *rest) for t, *rest in until(plug, 10 * MINUTE, CALM + MINUTE))
    judged.finish()
    reached = states(judged.alerts, plug.mac)
    assert reached in (["new", "end"], ["new", "end", "new", "end"])  # forward: five years lie between the two halves
    packets = sum(a["flow"]["pkts_toserver"] for a in judged.alerts if context(a)["state"] == "end")
    assert SCAN * 0.9 <= packets <= SCAN * 1.1


def test_time_that_runs_backwards_or_at_random_is_counted_and_an_attack_after_it_is_reported(home, devices):
    plug, judged = devices["plug-1"], Judged(home)
    begin = plug.life[0][0]
    life = [data for _, _, data in until(plug, CALM)]
    judged.take(until(plug, CALM))
    backwards = [(begin + CALM - i * 100 * S, len(data), data) for i, data in enumerate(life)]
    random_times = (begin + np.random.default_rng(4).integers(-YEARS // 5, YEARS // 5, 40)).tolist()
    judged.take(backwards)
    judged.take((t, len(data), data) for t, data in zip(random_times, life, strict=False))
    later = 20 * 365 * 86_400 * S
    before = len(judged.alerts)
    judged.take(until(plug, 2 * CALM, later))
    at = begin + 2 * CALM + later
    judged.take(scanning(plug, at))
    counts = judged.finish()
    assert counts["clock_steps"] > len(backwards) // 2
    assert counts["clock_backward"] > len(backwards) // 2
    new = [a for a in judged.alerts[before:] if context(a)["state"] == "new" and mac_of(a) == plug.mac]
    assert any(0 <= time_ns(a["timestamp"]) - at < 5 * S for a in new)


def test_times_of_a_damaged_file_are_counted_and_crash_nothing(home, devices):
    """Every packet has a random time among those that the kernel accepts."""
    plug, judged = devices["plug-1"], Judged(home)
    life = [data for _, _, data in plug.life[:300]] * 10
    random_times = np.random.default_rng(4).integers(0, 2**62, len(life)).tolist()
    judged.take((t, len(data), data) for t, data in zip(random_times, life, strict=True))
    counts = judged.finish()
    assert counts["clock_steps"] > len(life) // 3
    assert counts["clock_backward"] > len(life) // 3


def test_weights_go_on_decaying_after_a_clock_was_set_back(home, devices):
    """If they did not, they would only grow until the clock was where it had been, and a healthy device would alarm."""
    plug, judged = devices["plug-1"], Judged(home)
    judged.take(until(plug, CALM))
    begin = plug.life[0][0] - YEARS + CALM
    assert judged.take((t - YEARS + CALM, *rest) for t, *rest in plug.life) == []
    judged.finish()
    raw = plug.mac.to_bytes(6, "big")
    last = next(data for _, _, data in plug.life if data[6:12] == raw)
    rows = judged.agent.extractor.push_frames([(begin + 180 * MINUTE, 60, last)])
    assert float(rows.column("device_L0.01_weight")[0]) < 2


# -- MACs --


def test_two_devices_with_one_mac_are_one_and_an_attack_of_either_is_reported(home, devices):
    """With a cloned MAC, both are judged as one device, whose alert names the address that attacks."""
    plug, other = devices["plug-1"], devices["thermostat-1"]
    shift = plug.life[0][0] - other.life[0][0]
    raw, clone = other.mac.to_bytes(6, "big"), plug.mac.to_bytes(6, "big")
    cloned = [(t + shift, n, data.replace(raw, clone)) for t, n, data in other.life]
    for attacker in (plug, other):
        judged = Judged(home)
        end = plug.life[0][0] + 2 * CALM
        frames = merged(plug.life, cloned, scanning(Device(plug.mac, attacker.ip, []), end))
        assert judged.take(f for f in frames if f[0] < end) == []
        judged.take(f for f in frames if end <= f[0] < end + CALM)
        counts = judged.finish()
        assert states(judged.alerts, plug.mac) == ["new", "end"]
        assert judged.alerts[0]["src_ip"] == attacker.ip
        assert counts["macs"] <= len({data[6:12] for _, _, data in frames})


def test_one_device_on_two_interfaces_is_one_episode(home, devices):
    """Both interfaces give its packets in turn, half a second of each, so that time steps back at each turn."""
    plug, judged = devices["plug-1"], Judged(home)
    end = plug.life[0][0] + CALM
    judged.take(until(plug, CALM))
    attack = list(steady(scan(SCAN, plug.ip, mac=plug.mac), end, 40))
    for turn in range(SCAN // 20):
        part = attack[turn * 20 : turn * 20 + 20]
        judged.take(part[::2])
        judged.take(part[1::2])
    judged.take(f for f in plug.life if end + 20 * S <= f[0] < end + CALM)
    counts = judged.finish()
    assert states(judged.alerts, plug.mac) == ["new", "end"]
    assert counts["clock_steps"] == 0
    assert judged.alerts[-1]["flow"]["pkts_toserver"] <= SCAN * 1.1


# -- numbers --


def test_among_ten_thousand_devices_the_one_that_scans_is_reported_and_no_other(home, devices):
    """All tables are full all the time, and the counters show it."""
    plug, judged, many = devices["plug-1"], Judged(home), 10_000
    begin = plug.life[0][0]

    def crowd(start: int, seconds: int) -> Iterable[Frame]:
        """Yield an ARP request and a packet to the cloud of each device, one device after the other."""
        for i in range(many):
            t, mac, ip = start + i * seconds * S // many, 0x02AA_0000_0000 + i, f"10.{i >> 8}.{i & 255}.7"
            request, data = arp(mac, ip, "10.0.0.1"), packet(ip, "203.0.113.9", 40000 + i % 1000, 443, mac=mac)
            yield t, len(request), request
            yield t + 1000, len(data), data

    at = begin + CALM + 20 * S
    judged.take(
        merged(
            until(plug, CALM),
            crowd(begin, 300),
            crowd(begin + 300 * S, 300),
            crowd(begin + CALM, 60),
            scanning(plug, at),
        )
    )
    counts = judged.finish()
    assert states(judged.alerts, plug.mac) == ["new", "end"]
    assert time_ns(judged.alerts[0]["timestamp"]) - at < 5 * S
    assert {mac_of(alert) for alert in judged.alerts} == {plug.mac}
    config = AgentConfig()
    assert counts["devices"] <= config.extractor.max_devices
    assert counts["evicted_devices"] >= many - config.extractor.max_devices
    assert counts["subjects_evicted"] >= many - MAX_SUBJECTS
    assert counts["streams"] <= 3 * config.extractor.max_streams
