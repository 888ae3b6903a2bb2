"""The counters of an agent in words: what each counts, and what to do where it is not 0.

`botwatch agent status`, the archive of `botwatch agent support` and docs/counters.md show them in the order that they
have here. `python -m edge_agent.contract.counters` prints the tables of that document. Who counts is no matter here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Counter:
    """A counter: ``words`` continue a sentence that begins with its number and open with what is counted.

    ``remedy`` says what to do where it is not 0; "" for a counter of ordinary work. Most count since the agent's start;
    with ``now`` it is a number of this moment.
    """

    words: str
    remedy: str = ""
    now: bool = False


GROUPS: Mapping[str, str] = {
    "traffic": "Frames and their capture",
    "scoring": "Rows and their scores",
    "devices": "Devices and what is learnt of them",
    "alerts": "Detections, episodes and evidence",
    "delivery": "The outbox and the state file",
    "broker": "The connection, commands and replies",
    "suppressions": "Allows and mutes",
}
"""Every group and its title, in the order in which they are shown."""

_MALFORMED = "it is normal for a few; many point to a faulty device, or to somebody who tries out damaged frames"
_STREAMS = "raise extractor.max_streams if the memory allows it; many in a short time are a sign of a flood or a scan"
_STATE = "look at the log for the file and the reason, and at the card or disk"
_DISK = "make room, and look at the log for the system's reason"

COUNTERS: Mapping[str, Mapping[str, Counter]] = {
    "traffic": {
        "captured": Counter("frames that the interfaces delivered"),
        "frames": Counter("frames that were judged"),
        "dropped": Counter(
            "frames lost because the capture buffer was full",
            "raise capture.buffer_mb, narrow capture.filter, or use a faster machine; what was lost is not judged",
        ),
        "interface_dropped": Counter(
            "frames lost by an interface or its driver", "see `ip -s link`; the interface or its driver is overloaded"
        ),
        "frames_merged": Counter(
            "frames that were merged, so that their sizes and rates are wrong",
            "`botwatch agent check` prints how to switch merging off",
        ),
        "seen_again": Counter("frames left out because another interface, or a bridge's port, had shown them already"),
        "seen_forgotten": Counter(
            "frames that the table of frames seen dropped too early, so that copies may be judged twice",
            "name fewer interfaces that show the same frames, such as a bridge without its ports",
        ),
        "interface_lost": Counter(
            "times that an interface went away, or was not there at the start",
            "look at the log for which and why; it is captured again when it is back",
        ),
        "interface_back": Counter("times that an interface came, or came back, and was captured"),
        "malformed": Counter("frames that were malformed and not judged, of all kinds that follow", _MALFORMED),
        "malformed_short_link": Counter("malformed frames that are shorter than a link-layer header"),
        "malformed_short_tag": Counter("malformed frames that end within a VLAN tag"),
        "malformed_short_arp": Counter("malformed frames that end within an ARP message"),
        "malformed_bad_arp": Counter("malformed frames with an ARP message that contradicts itself"),
        "malformed_short_ip": Counter("malformed frames that end within an IP header"),
        "malformed_bad_ip": Counter("malformed frames with an IP header that contradicts itself"),
        "malformed_long_chain": Counter("malformed frames with more extension headers or tags than anybody sends"),
        "malformed_short_transport": Counter("malformed frames that end within a TCP, UDP or ICMP header"),
        "malformed_short_quote": Counter("malformed frames with an ICMP error that quotes no readable packet"),
        "malformed_bad_time": Counter(
            "malformed frames with an impossible time", "check the clock or the capture file"
        ),
        "clock_backward": Counter(
            "times that a frame was older than one before it", "synchronise the clock; one step at a start is normal"
        ),
        "ring_kept": Counter("frames whose headers were kept for evidence"),
        "ring_left_out": Counter(
            "frames that the memory for evidence had no room for, those of a flood first",
            "nothing, or raise evidence.ring_kb for more complete captures",
        ),
    },
    "scoring": {
        "rows": Counter("rows, one for each judged frame"),
        "scored": Counter("rows that the model scored"),
        "shed": Counter(
            "rows not scored because of the budget of rows a second",
            "in a flood that is meant; without one, raise scoring.max_rows_per_s or capture on fewer interfaces",
        ),
        "flagged": Counter("rows above a limit"),
        "votes": Counter("votes, each of enough flagged rows of one device"),
        "clock_steps": Counter(
            "times that the clock was set by more than a minute", "synchronise the clock; one step at a start is normal"
        ),
        "subjects_evicted": Counter(
            "devices or victims that were dropped from the full table of those judged",
            "many in a short time are a sign of forged addresses; devices return when they send again",
        ),
        "senders_evicted": Counter(
            "senders that were dropped from the full table which shares out the budget of rows",
            "many in a short time are a sign of forged addresses",
        ),
        "hosts": Counter("hosts in the table of streams", now=True),
        "macs": Counter("pairs of MAC and IP address in the table of streams", now=True),
        "pairs": Counter("pairs of hosts in the table of streams", now=True),
        "sockets": Counter("sockets in the table of streams", now=True),
        "streams": Counter("streams in use, of extractor.max_streams", now=True),
        "evicted_hosts": Counter("hosts dropped from the full table of streams", _STREAMS),
        "evicted_macs": Counter("pairs of MAC and IP address dropped from the full table of streams", _STREAMS),
        "evicted_pairs": Counter("pairs of hosts dropped from the full table of streams", _STREAMS),
        "evicted_sockets": Counter("sockets dropped from the full table of streams", _STREAMS),
        "evicted_seen_peers": Counter(
            "peers that a device's memory of its own peers had no more room for",
            "normal for a device with very many peers; they count as new when they return",
        ),
        "evicted_seen_sockets": Counter(
            "sockets that a device's memory of its own sockets had no more room for",
            "normal for a device with very many peers; they count as new when they return",
        ),
        "checkins_newcomers": Counter("remote hosts that a device used for the first time after its own were learnt"),
        "checkins_series": Counter("series of regular contacts that were reported as check-ins"),
        "checkins_succeeded": Counter("new hosts that took the place of one which fell silent, and were not reported"),
        "checkins_rows_skipped": Counter(
            "rows that the search for check-ins left out", "normal in a flood; quiet check-ins may come late meanwhile"
        ),
        "checkins_pairs_skipped": Counter(
            "contacts that the search for check-ins left out",
            "normal in a scan; quiet check-ins may come late meanwhile",
        ),
        "checkins_peers_evicted": Counter(
            "remote hosts dropped from a device's full table of contacts",
            "normal for a device with very many peers; its check-ins may be missed",
        ),
        "checkins_devices_evicted": Counter(
            "devices dropped from the full table of contacts", "many are a sign of forged MACs"
        ),
    },
    "devices": {
        "devices": Counter("senders (MACs) that are followed, of extractor.max_devices", now=True),
        "devices_left_out": Counter(
            "devices that the published document on devices had no room for",
            "nothing: those under alarm and those that are learning are in it, and `status` on the gateway lists more",
            True,
        ),
        "evicted_devices": Counter(
            "senders dropped from the full table of devices",
            "raise extractor.max_devices if there are so many devices; else they are a sign of forged MACs",
        ),
        "devices_forgotten": Counter(
            "devices whose learnt limits were forgotten because too many are known",
            "they learn anew when they send again; many are a sign of forged MACs",
        ),
        "devices_unreadable": Counter("devices whose stored limits could not be read, and that learn anew", _STATE),
        "runs_unreadable": Counter("bursts of stored rows that could not be read and were left out", _STATE),
        "bursts_forgotten": Counter(
            "bursts of devices that were forgotten, or counted with another of their day, because there are so many",
            "normal for a device with very many alarms; look at those",
        ),
        "runs_dropped": Counter(
            "bursts of stored rows dropped to stay within learning.kept_mb", "nothing, or raise learning.kept_mb"
        ),
    },
    "alerts": {
        "alerts_new": Counter("episodes that began with an alert"),
        "alerts_update": Counter("updates of episodes"),
        "alerts_end": Counter("episodes that ended"),
        "episodes_evicted": Counter(
            "episodes ended early because alerts.max_open were open", "look at the alerts; raise alerts.max_open"
        ),
        "episodes_cut_short": Counter(
            "episodes that were open when the agent before this one was killed, and were ended at the start"
        ),
        "foreign_class": Counter(
            "detections of a class that this version does not know, reported as unknown",
            "update the agent, or use a bundle made for it",
        ),
        "test_alerts": Counter("test alerts"),
        "alerts_unprinted": Counter(
            "alerts that stdout did not take", "they are sent all the same; make room where stdout is written to"
        ),
        "log_lines_lost": Counter("lines of the log that stderr did not take", "make room where the log is written to"),
        "evidence_stored": Counter("captures of packets around an alert that were begun"),
        "evidence_finished": Counter("captures of packets around an alert that are complete"),
        "evidence_removed": Counter(
            "oldest captures removed to stay within evidence.max_mb", "nothing, or raise evidence.max_mb"
        ),
        "evidence_failed": Counter("captures that could not be written; their alerts were sent all the same", _DISK),
    },
    "delivery": {
        "outbox_dropped": Counter(
            "alerts lost because the outbox was full",
            "let the broker be reached again; raise outbox.max_rows or max_bytes",
        ),
        "outbox_dropped_updates": Counter(
            "updates of episodes dropped because the outbox was full; the newest ones are there",
            "let the broker be reached again",
        ),
        "outbox_unwritable": Counter("attempts to use the state file that failed; alerts stay in memory then", _DISK),
        "outbox_in_memory": Counter(
            "alerts that are in memory only, because the disk cannot be written",
            "make room before the agent is stopped",
            True,
        ),
        "outbox_set_aside": Counter(
            "messages set aside because each ended the connection; they are sent last and alone, again every hour",
            "raise the broker's limit of size (`max_packet_size`); the log names the messages",
            True,
        ),
        "state_damaged": Counter("damaged files or parts of the state that were set aside or left out", _STATE),
    },
    "broker": {
        "client_id_taken": Counter(
            "times that another client of the same id took the connection over",
            "give each gateway an id of its own (gateway, broker.client_id)",
        ),
        "documents_set_aside": Counter(
            "documents and replies not published because they are too large for the broker",
            "raise the broker's limit of size (`max_packet_size`)",
        ),
        "commands_done": Counter("commands carried out"),
        "commands_refused": Counter("commands refused", "look at the log for who gave them and why they were refused"),
        "commands_repeated": Counter("commands that came again and got the same reply"),
        "commands_retained": Counter(
            "retained commands ignored",
            "somebody publishes commands with the retain flag: find out who, and remove them",
        ),
        "commands_dropped": Counter(
            "commands dropped, because commands are switched off or too many came",
            "find out who sends them, and restrict who may (docs/control.md)",
        ),
        "replies": Counter("replies sent"),
        "replies_lost": Counter(
            "replies lost, because too many waited or the broker refused them",
            "see whether the broker's rules let the agent publish its replies, and its limit of size",
        ),
    },
    "suppressions": {
        "episodes_suppressed": Counter("episodes of which no alert was made, because of an allow or a mute"),
        "episodes_spoke_up": Counter("suppressed episodes that went on with something not covered, and were reported"),
    },
}
"""The words of each counter by group; within a group in the order in which they are shown."""


def grouped(counts: Mapping[str, int]) -> Iterator[tuple[str, list[tuple[str, int, Counter | None]]]]:
    """Yield each group with its counters that are not 0, as (name, value, words).

    A counter without words here, as an agent of another version has it, comes last in the last group, with None.
    """
    for group, known in COUNTERS.items():
        yield group, [(name, counts[name], words) for name, words in known.items() if counts.get(name)]
    known_names = {name for known in COUNTERS.values() for name in known}
    yield "", [(name, value, None) for name, value in counts.items() if value and name not in known_names]


def tables() -> str:
    """Return the tables of docs/counters.md, in Markdown."""
    parts = []
    for group, title in GROUPS.items():
        parts += [f"## {title}", "", "| counter | number of | where it is not 0 |", "|---|---|---|"]
        for name, counter in COUNTERS[group].items():
            words = f"{counter.words} (now)" if counter.now else counter.words
            parts.append(f"| `{name}` | {words} | {counter.remedy} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    print(tables(), end="")
