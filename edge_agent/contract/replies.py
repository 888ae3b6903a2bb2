"""Replies to commands as people read them: the state of an agent, and one line for each other reply.

A reply may come from afar, so none of it is taken for granted: a value of another type than expected is printed as it
is, and everything is escaped. What the counters mean is known to `counters`. No clock, no terminal.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from edge_agent.contract import counters
from edge_agent.contract.cli import UNLIMITED, cells, printable, wrapped
from edge_agent.contract.commands import Reply
from edge_agent.contract.localtime import spelt_locally
from edge_agent.contract.show import Terminal, pad

_LABEL, _NUMBER = 14, 12  # characters of a group's name, and of a counter's number and what is before it
_SCORING = {
    "all": "every row is scored",
    "shared": "each device gets its share of the budget of rows",
    "sparse": "fewer than one row in ten is scored",
}
_TIMES = ("since", "until", "last_hit", "ts")
_SHORTEST_NAME = 8


def lines(reply: Reply, running: bool = True, width: int = UNLIMITED, utc: bool = False) -> list[str]:
    """Return a reply as lines of at most ``width`` characters; ``running`` is True if an agent gave it.

    Times are local ones, or with ``utc`` in UTC.
    """
    result = dict(reply.result or {})
    if reply.verb == "status":
        return list(_status(result, running, width, utc))
    after = [] if running else ["no agent is running: this takes effect at its next start"]
    return [line for text in (_sentence(reply.verb, result, utc), *after) for line in wrapped(text, width, "  ")]


def _sentence(verb: str, result: Mapping[str, Any], utc: bool) -> str:
    """Return the result of a command in words; one that this version does not know, as its keys and values."""
    match verb, result:
        case (("allow" | "mute"), {"entry": int(entry), "suppressed": str(about), "until": str(until)}):
            note = f"; {result['note']}" if result.get("note") else ""
            learnt = f"; its limits are raised to it, which `unallow {entry}` undoes" if result.get("learnt") else ""
            return f"suppressed until {spelt_locally(until, utc)} (entry {entry}): {about}{note}{learnt}"
        case (("unallow" | "unmute"), {"ended": [*ended]}):
            return f"ended: {verb.removeprefix('un')} {_spelt('ended', ended, utc)}"
        case "learn", {"device": str(device), "state": "learning"}:
            return f"{device} is learnt anew"
        case "replay", {"alerts": int(count), "since": str(since)}:
            return f"sent again: {_several(count, 'alert')} since {spelt_locally(since, utc)}"
        case "test-alert", {"id": str(id), "alerts": int(count)}:
            return f"test alert {id} is made ({_several(count, 'message')}); `botwatch collector alerts` lists it"
    values = {key: value for key, value in result.items() if value not in ([], "", None)}
    return ", ".join(f"{key} {_spelt(key, value, utc)}" for key, value in values.items()) or "done"


def _spelt(key: str, value: object, utc: bool) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    if isinstance(value, Mapping):
        return json.dumps(value)
    return spelt_locally(value, utc) if key in _TIMES else _number(value) if _is_number(value) else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> str:
    if not _is_number(value):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}".rstrip("0").rstrip(".")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rows(value: object) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def _status(result: Mapping[str, Any], running: bool, width: int, utc: bool) -> Iterator[str]:
    """Yield the state of an agent in groups, always in the same order."""
    health = _mapping(result.get("health"))
    when = f" at {spelt_locally(health['ts'], utc)}" if "ts" in health else ""
    state = f"running{when}" if running else "no agent is running with this state file"
    origin = f" ({result['gateway_origin']})" if result.get("gateway_origin") else ""
    yield from wrapped(f"gateway {result.get('gateway', '?')}{origin}: {state}", width, "  ")
    if refused := health.get("config_refused"):
        yield from wrapped(
            f"the changed configuration was refused, the previous one stays in use: {refused}", width, "  "
        )
    heads = _heads(result, health, utc)
    counts = {str(key): value for key, value in _mapping(health.get("counters")).items() if isinstance(value, int)}
    for group, counted in counters.grouped(counts):
        head = heads.get(group, [])
        if not head and not counted:
            continue
        yield ""
        yield from _group(group or "others", head, width)
        if group == "devices":
            yield from _devices(_rows(result.get("devices")), width, utc)
        if group == "suppressions":
            yield from _suppressions(_rows(result.get("allowed")), _rows(result.get("devices")), width, utc)
        for name, value, words in counted:
            yield from _counter(name, value, words, width)


def _heads(result: Mapping[str, Any], health: Mapping[str, Any], utc: bool) -> dict[str, list[str]]:
    """Return what stands beside the name of each group."""
    heads: dict[str, list[str]] = {}
    if health:
        drop = health.get("drop_pct")
        heads["traffic"] = [f"{_number(health.get('pps', '?'))} frames a second, {_number(drop)} % dropped now"]
        heads["traffic"] += [_interface(one, utc) for one in _rows(health.get("interfaces"))]
        scoring = str(health.get("scoring", "all"))
        heads["scoring"] = [
            f"model {health.get('model', '?')}; {_SCORING.get(scoring, scoring)}",
            f"{health.get('cpu', '?')} processor cores and {_number(health.get('rss_mb', '?'))} MB of memory in use",
        ]
        heads["alerts"] = [_several(health.get("episodes_open", 0), "episode") + " open", *_budget(result)]
        waiting = health.get("outbox_depth", 0)
        heads["delivery"] = [f"{_several(waiting, 'message')} in the outbox, waiting for the broker"]
    if line := _mapping(result.get("broker")):
        connected = bool(line.get("connected"))
        how = f"connected, MQTT {line.get('protocol', '?')}" if connected else "not connected"
        trouble = f": {line['trouble']}" if line.get("trouble") else ""
        heads["broker"] = [f"{line.get('address', '?')}: {how}{trouble}"]
    accepted = result.get("commands")
    heads.setdefault("broker", []).append(f"accepts these commands: {_spelt('', accepted, False) or 'none'}")
    if "devices" in result:
        heads["devices"] = [_of_states(_rows(result["devices"]), result.get("devices_left_out"))]
    if "allowed" in result:
        entries = len(_rows(result["allowed"]))
        heads["suppressions"] = [f"{entries} in force" if entries else "none in force"]
    return heads


def _budget(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the budget of false alerts, and what the days that the model's limits were made from prove of it."""
    budget = _mapping(result.get("budget"))
    if not budget:
        return
    allowed = f"{_several(budget.get('home_month', '?'), 'false alert')} a month in a home of "
    text = f"the model's limits allow {allowed}{_several(budget.get('home_devices', '?'), 'device')}"
    if "proven" in budget:
        days = _number(budget.get("device_days", "?"))
        text += f"; the {days} benign device-days that they rest on prove at most {_number(budget['proven'])} (95 %)"
    yield text


def _interface(one: Mapping[str, Any], utc: bool) -> str:
    captured = "has been captured" if one.get("captured") else "has not been captured"
    reason = f": {one['reason']}" if one.get("reason") else ""
    return f"interface {one.get('name', '?')} {captured} since {spelt_locally(one.get('since', '?'), utc)}{reason}"


def _several(count: object, thing: str) -> str:
    return f"{_number(count)} {thing}{'' if count == 1 else 's'}"


def _of_states(devices: Sequence[Mapping[str, Any]], left_out: object) -> str:
    states = [str(device.get("state", "?")) for device in devices]
    alarmed = sum(device.get("alarmed") is True for device in devices)
    each = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    more = f"; {alarmed} under alarm" if alarmed else ""
    more += f"; {_number(left_out)} more are not listed" if left_out else ""
    return (f"{len(states)} known: {each}" if states else "none known") + more


def _group(name: str, head: Iterable[str], width: int) -> Iterator[str]:
    """Yield the name of a group, and beside it what is said of the whole."""
    label = name.ljust(_LABEL)
    for text in head:
        yield from wrapped(text, width, " " * _LABEL, label)
        label = " " * _LABEL
    if label.strip():
        yield label.rstrip()


def _counter(name: str, value: int, words: counters.Counter | None, width: int) -> Iterator[str]:
    text = name if words is None else words.words + (f": {words.remedy}" if words.remedy else "")
    number = f"{value:,}".rjust(_NUMBER)
    yield from wrapped(text, width, " " * (len(number) + 2), f"{number}  ")


# --- devices and suppressions -------------------------------------------------------------------------------

_COLUMNS = {
    "state": "state",
    "percent": "learnt",
    "packets": "packets",
    "score_times": "score",
    "counts_times": "count",
}
"""Key of a device -> the heading of its column; a MAC and a name stand before them."""


def _devices(devices: Sequence[Mapping[str, Any]], width: int, utc: bool) -> Iterator[str]:
    """Yield a table of devices, with a line below those of which there is more to say."""
    if not devices:
        return
    terminal = Terminal(width)
    table = [["MAC", "name", *_COLUMNS.values()]]
    for device in devices:
        table.append([printable(device.get("mac", "?")), printable(device.get("name", ""))])
        for key in _COLUMNS:
            value = device.get(key, "")
            unit = {"percent": " %", "score_times": "x", "counts_times": "x"}.get(key, "") if value != "" else ""
            table[-1].append(printable(_number(value)) + unit)
    widths = [max(cells(row[i]) for row in table) for i in range(len(table[0]))]
    widths[0], widths[2] = min(widths[0], 39), min(widths[2], 8)  # an IPv6 address, and the longest state
    rest = width - 2 - sum(widths) + widths[1] - 2 * (len(widths) - 1)
    widths[1] = min(widths[1], max(rest, _SHORTEST_NAME))
    for shown, row in zip([None, *devices], table, strict=True):
        left = [pad(terminal.cut(cell, most), most) for cell, most in zip(row[:3], widths, strict=False)]
        right = [cell.rjust(most) for cell, most in zip(row[3:], widths[3:], strict=True)]
        yield terminal.cut("  " + "  ".join(left + right).rstrip(), max(width, 20))
        for note in _notes(shown, utc) if shown else ():
            yield from wrapped(note, width, " " * 6, " " * 4)
    yield from wrapped(
        "score and count: the limits of the device, as multiples of the model's; learnt: progress of learning",
        width,
        " " * 2,
        " " * 2,
    )


def _notes(device: Mapping[str, Any], utc: bool) -> Iterator[str]:
    """Yield what somebody must know of a device beside its row in the table."""
    if device.get("alarmed") is True:
        yield "under alarm: look at its alerts"
    if device.get("state") == "stale":
        yield f"stale since {spelt_locally(device.get('since', '?'), utc)}: its traffic exceeds what it had learnt"
    if device.get("reason"):
        yield f"it has no limits of its own and keeps the model's: {device['reason']}"
    if device.get("ends"):
        yield f"that {device['ends']}; until then look at its alerts"
    yield from _bursts(device)
    if device.get("capped") is True:
        yield "its limits are the highest allowed, so it is hardly protected"


def _bursts(device: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is known of a device's bursts: what recurs and was learnt, what may be, and what was vouched for."""
    bursts = _mapping(device.get("bursts"))
    if device.get("recurring"):
        yield f"bursts that recur are learnt, up to {_number(device['recurring'])} times the model's limit"
    elif bursts.get("days"):
        yield (
            f"bursts without signs of an attack on {_several(bursts['days'], 'day')}; they are learnt when they have "
            f"recurred on {_number(bursts.get('of'))}"
        )
    if bursts.get("marked"):
        yield f"{_several(bursts['marked'], 'burst')} with signs of an attack: not learnt; look at its alerts"
    for one in _rows(device.get("vouched")):
        port = f"port {one['port']}" if one.get("port") else "any port"
        yield (
            f"bursts that somebody said are well are learnt: {one.get('kind', '?')} to {port}, up to "
            f"{_number(one.get('times'))} times the model's limit"
        )


def _suppressions(
    entries: Sequence[Mapping[str, Any]], devices: Sequence[Mapping[str, Any]], width: int, utc: bool
) -> Iterator[str]:
    """Yield a paragraph for each suppression: its number, the device, the extent, the end, and how often it applied."""
    names = {str(device["mac"]): str(device["name"]) for device in devices if "mac" in device and "name" in device}
    for entry in entries:
        rest = dict(entry)
        number, kind = rest.pop("entry", "?"), rest.pop("kind", "?")
        device = str(rest.pop("device", "?"))
        head = f"{kind} {names[device]} ({device})" if device in names else f"{kind} {device}"
        until, hits, last = rest.pop("until", None), rest.pop("hits", 0), rest.pop("last_hit", None)
        reason, by, origin, since = (rest.pop(key, "") for key in ("reason", "by", "origin", "since"))
        if about := rest.pop("about", ""):  # says in words what these say
            rest = {key: value for key, value in rest.items() if key not in ("kinds", "classes", "port", "host")}
            head += f": {about}"
        if rest.pop("learnt", False):
            head += ", to which its limits are raised, too"
        parts = [head + "".join(f", {key} {_spelt(key, value, utc)}" for key, value in rest.items())]
        parts += [f"until {spelt_locally(until, utc)}"] if until else []
        parts.append(
            f"{_several(hits, 'episode')} suppressed" + (f", the last {spelt_locally(last, utc)}" if last else "")
            if hits
            else "no episode suppressed yet"
        )
        maker = " ".join(filter(None, (str(by), f"({origin})" if origin else "")))
        made = f"made by {maker or '?'}" + (f" at {spelt_locally(since, utc)}" if since else "")
        parts.append(f"{made}: {reason}" if reason else made)
        yield from wrapped("; ".join(parts), width, " " * 6, f"{printable(number):>4}  "[: max(width, 20)])
