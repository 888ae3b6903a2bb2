"""A device as people and programs are shown it: its state and limits, and what ends a state that should not last.

The rules themselves are the knowledge of `device_limits` beside this module, and of `trust`, `staleness` and `bursts`.
"""

from typing import Any

from edge_agent.contract.captures import mac_text
from edge_agent.contract.decision import Decision
from edge_agent.contract.messages import clean, format_time
from edge_agent.detection.bursts import DAYS, MARK_WORDS, REFUSED_TIMES
from edge_agent.detection.device_limits import SCORE_CAP, DeviceLimits
from edge_agent.detection.trust import ALARM_SHARE, RECENT_MINUTES


def entry(mac: int, limits: DeviceLimits, name: str | None, limit: float) -> dict[str, Any]:
    """Return what the document says of a device; ``limit`` is the model's own limit of the score."""
    score, counts = limits.factors()
    since = limits.stale_ns or limits.learnt_ns or limits.first_ns
    entry: dict[str, Any] = {"mac": mac_text(mac)}
    if name:
        entry["name"] = clean(name, 64)
    entry |= {
        "state": limits.state,
        "since": format_time(since),
        "percent": int(100 * limits.progress),
        "packets": limits.rows,
        "minutes": limits.minutes,
        "limit": float(f"{limit * score:.4g}"),  # of the score
        "score_times": round(score, 2),  # the model's own limit, and its bounds of the counts
        "counts_times": round(counts, 2),
        "peers_times": round(limits.peers_factor, 2),  # of these the slowest of new peers, beside all of them
        "capped": limits.capped,
    }
    if limits.sample:
        entry["kept_runs"] = len(limits.sample.bursts)
    if limits.carried:
        entry["calibrated_from"] = f"{limits.carried} kept rows"
    if limits.left_out:
        entry["minutes_left_out"] = limits.left_out
    if limits.refused:
        entry["reason"] = limits.refused
    bursts = limits.bursts
    if bursts.kept:
        days = len(bursts.unmarked_days())
        entry["bursts"] = {"days": days, "of": DAYS, "marked": sum(bool(burst.marks) for burst in bursts.kept)}
    if bursts.recurring:
        entry["recurring"] = round(bursts.recurring, 2)  # in units of the model's limit, as the next one
    if bursts.vouched:
        entry["vouched"] = [
            {"kind": activity.kind, "port": activity.port, "times": round(level.vote, 2)}
            for activity, level in bursts.vouched.items()
        ]
    if words := _ends(limits, mac_text(mac)):
        entry["ends"] = words
    return entry


def budget(decision: Decision) -> dict[str, Any]:
    """Return the false alerts that a model's limits allow in a month of a home, and what benign days prove of it.

    ``proven`` is the upper 95 % bound of those by the score in the ``device_days`` that the limits were made from; both
    are left out where they are not known.
    """
    basis, said = decision.basis, {"home_month": decision.budget, "home_devices": decision.home_devices}
    if basis and basis.home_month is not None:
        said |= {"device_days": round(basis.device_days, 1), "proven": round(basis.home_month, 2)}
    return said


def _marks(limits: DeviceLimits) -> str:
    """Return why the device's bursts are not all learnt by themselves; "" if none of them looks like an attack."""
    present = limits.bursts.marks()
    return ", ".join(words for mark, words in MARK_WORDS.items() if mark & present)


def _ends(limits: DeviceLimits, mac: str) -> str:
    """Return what ends the state of a device, and with which command; "" for a state that nothing needs to end."""
    order = f"or when you let it learn anew (`botwatch agent learn {mac}`)"
    if limits.state == "stale":
        back = "ends when its traffic is within its limits again for some minutes"
        return f"{back}, {_recurrence(limits)}, {order}"
    if limits.in_alarms_too_often:
        fewer = f"ends when at most {ALARM_SHARE:.0%} of its last {RECENT_MINUTES} minutes with traffic had an alarm"
        if words := _marks(limits):
            return f"{fewer}, {order}; not by itself while alarms go on, since some were {words}"
        alike = f"when {REFUSED_TIMES} bursts of one sort came on two days, none of which looks like an attack"
        return f"{fewer}, {alike}, {order}"
    if limits.refused:
        return f"ends when its traffic no longer exceeds the model's limit, {order}"
    return ""


def _recurrence(limits: DeviceLimits) -> str:
    days = len(limits.bursts.unmarked_days())
    learnt = f"when it has recurred on {DAYS} days without looking like an attack (on {days} so far)"
    if limits.capped:
        return f"by itself no more, since its limit is {SCORE_CAP:g} times the model's already"
    words = _marks(limits)
    return f"{learnt}; some of it was {words}" if words else learnt
