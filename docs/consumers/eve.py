#!/usr/bin/env python3
"""Appends alerts to eve.json, which Wazuh, Filebeat, Splunk or EveBox read as Suricata's. Reads alerts on stdin.

    mosquitto_sub -h broker.lan -c -i siem -q 1 -t 'botwatch/v1/gw/+/alert' | python3 eve.py /var/log/botwatch/eve.json

Each line is one EVE record and is on the disk before the next is read. An alert that the end of the file has already is
not written again. A file that was moved away (logrotate) is made anew. From a collector (eve.sh) alerts come with a
cursor; that of the last one is in the file with .cursor behind its name.
"""

import json
import os
import sys
from collections import OrderedDict
from pathlib import Path

MOST = 10_000  # alerts that are remembered, to recognise repeats
LONGEST = 16_384  # bytes of a line; no alert has more
TAIL = 16 * 1024 * 1024  # bytes at the end of the file that are read at the start


def cursor_of(record):
    """Return the cursor with which a collector's feed goes on behind this record; None for one from the broker."""
    try:
        return int(record["alert"]["context"]["collector"]["cursor"])
    except (ValueError, KeyError, TypeError):
        return None


def key_of(line):
    """Return the id and the number of the alert in a line; None if it holds no alert."""
    try:
        record = json.loads(line)
        ours = record["alert"]["context"]["botwatch"]
        return (str(ours["id"]), int(ours["seq"])) if record["event_type"] == "alert" else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


class EveFile:
    """The file, opened anew when another one or none has its name."""

    def __init__(self, path):
        self.path, self.file, self.seen = Path(path), None, OrderedDict()
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(max(0, self.path.stat().st_size - TAIL))
                for line in file:
                    self.remember(key_of(line))

    def remember(self, key):
        """Note that the file has this alert."""
        self.seen[key] = None
        if len(self.seen) > MOST:
            self.seen.popitem(last=False)

    def write(self, line):
        """Return when the line is on the disk."""
        if self.file is None or not self.path.exists() or not os.path.samestat(self.path.stat(), os.fstat(self.file)):
            if self.file is not None:
                os.close(self.file)
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
            size = os.fstat(self.file).st_size
            if size and os.pread(self.file, 1, size - 1) != b"\n":  # power was lost within a line
                os.write(self.file, b"\n")
        os.write(self.file, line)
        os.fsync(self.file)

    def note(self, cursor):
        """Replace the file with the cursor."""
        new, name = Path(f"{self.path}.cursor.new"), Path(f"{self.path}.cursor")
        new.write_text(f"{cursor}\n")
        new.replace(name)


def lines():
    """Yield the lines of stdin; of one that is too long only the beginning, which is no alert."""
    while line := sys.stdin.buffer.readline(LONGEST + 1):
        yield line
        while len(line) > LONGEST and not line.endswith(b"\n"):
            line = sys.stdin.buffer.readline(LONGEST + 1)


def main(path):
    """Append what comes on stdin until that ends."""
    eve, refused = EveFile(path), 0
    print(f"eve.py: appending to {path}", file=sys.stderr, flush=True)
    for line in lines():
        key = key_of(line)
        if key is None:
            refused += 1
            print(f"eve.py: not an alert, {refused} so far: {line[:60]!r}", file=sys.stderr, flush=True)
            continue
        record = json.loads(line)
        if key not in eve.seen:
            eve.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
            eve.remember(key)
        if (cursor := cursor_of(record)) is not None:
            eve.note(cursor)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: eve.py FILE < alerts, one a line")
    try:
        main(sys.argv[1])
    except OSError as error:
        sys.exit(f"eve.py: {error}")
    except KeyboardInterrupt:
        pass
