#!/usr/bin/env python3
"""Cuts a device off for a while when its gateway reports it as infected: its MAC goes into a set of nftables.

    mosquitto_sub -h broker.lan -q 1 -t 'botwatch/v1/gw/gw-001/alert' | python3 contain.py gw-001 --never 192.168.1.2

It runs on the gateway that forwards the device's packets and reads alerts on stdin. Without --apply it changes nothing
and prints what it would do. The agent still sees the packets of a device that is cut off. `nft flush set inet botwatch
contained` frees all devices at once, `nft delete table inet botwatch` ends it.

Nothing in an alert is believed but an exact MAC. Never cut off are this machine, its default routers, those named by
--never, and devices beyond --most at a time. Ignored are tests, victims, ends, alerts of another severity than 1, those
of another gateway, and old ones.
"""

import argparse
import ipaddress
import json
import re
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
LONGEST = 16_384  # bytes of a line; no alert has more
OLDEST_S = 600  # an alert that is older waited somewhere; the device may be clean by now

TABLE = """
add table {family} botwatch
add set {family} botwatch contained {{ type ether_addr; flags timeout; size {most}; }}
add chain {family} botwatch forward {{ type filter hook forward priority -10; policy accept; }}
add chain {family} botwatch input {{ type filter hook input priority -10; policy accept; }}
flush chain {family} botwatch forward
flush chain {family} botwatch input
add rule {family} botwatch forward ether saddr @contained counter drop
add rule {family} botwatch input ether saddr @contained counter drop
"""
ELEMENT = """
add element {family} botwatch contained {{ {mac} }}
delete element {family} botwatch contained {{ {mac} }}
add element {family} botwatch contained {{ {mac} timeout {seconds}s }}
"""
"""One transaction: the time begins anew for a MAC that is in the set already."""


class NotContained(Exception):
    """An alert that cuts nobody off, with the reason."""


def run(*command, text=""):
    """Return what a command printed."""
    return subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout


def own_and_routers():
    """Return the MACs of this machine and of its default routers."""
    macs = {file.read_text().strip().lower() for file in Path("/sys/class/net").glob("*/address")}
    routers = [json.loads(run("ip", version, "-json", "route", "show", "default") or "[]") for version in ("-4", "-6")]
    addresses = {route.get("gateway") for route in routers[0] + routers[1]}
    neighbours = json.loads(run("ip", "-json", "neigh", "show") or "[]")
    return macs | {n["lladdr"].lower() for n in neighbours if n.get("dst") in addresses and "lladdr" in n}


def infected(line, gateway, never, now):
    """Return the MAC of the device that an alert says is infected; NotContained for all others."""
    try:
        alert = json.loads(line)
        ours = alert["alert"]["context"]["botwatch"]
        sent = datetime.strptime(alert["timestamp"], "%Y-%m-%dT%H:%M:%S.%f%z").timestamp()
        kind = alert["event_type"], alert["alert"]["gid"], alert["alert"]["severity"]
        device, state, role = ours["device"], ours["state"], ours["role"]
        where = alert["host"], ours["gateway"]
        mac, ip = device.get("mac"), device.get("ip")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotContained("is not an alert") from error
    if where != (gateway, gateway):
        raise NotContained(f"is not from {gateway}")
    if kind != ("alert", 9001, 1) or ours.get("test") or role != "source" or state not in ("new", "update"):
        raise NotContained("is no new or continued attack of severity 1")
    if not isinstance(mac, str) or not MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise NotContained("names no MAC of a device")
    if not -60 <= now - sent <= OLDEST_S:
        raise NotContained(f"was sent {now - sent:.0f} s ago")
    if mac in never or (isinstance(ip, str) and ip in never):
        raise NotContained(f"is about {mac}, which is never cut off")
    return mac


def address(text):
    """Return a MAC or an IP address as alerts spell it."""
    if MAC.fullmatch(text.lower()):
        return text.lower()
    return str(ipaddress.ip_address(text))


def lines():
    """Yield the lines of stdin; of one that is too long only the beginning, which is no alert."""
    while line := sys.stdin.buffer.readline(LONGEST + 1):
        yield line
        while len(line) > LONGEST and not line.endswith(b"\n"):
            line = sys.stdin.buffer.readline(LONGEST + 1)


def main():
    """Act on alerts until there are no more."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gateway", help="act on the alerts of this gateway only")
    parser.add_argument("--apply", action="store_true", help="do it; without this only print what would be done")
    parser.add_argument("--seconds", type=int, default=3600, help="cut a device off for so long (3600)")
    parser.add_argument("--most", type=int, default=16, help="most devices that are cut off at a time (16)")
    parser.add_argument("--never", type=address, action="append", default=[], help="MAC or IP address; may be repeated")
    parser.add_argument("--family", choices=("inet", "bridge"), default="inet", help="bridge: this machine is a bridge")
    options = parser.parse_args()
    if not 1 <= options.seconds <= 86_400 or not 1 <= options.most <= 1024:
        parser.error("--seconds is 1 to 86400, --most 1 to 1024")
    if options.apply:
        run("nft", "-f", "-", text=TABLE.format(family=options.family, most=options.most))
    print(f"waiting for alerts of {options.gateway}", "" if options.apply else "(dry run)", flush=True)
    until = {}
    for line in lines():
        now = time.time()
        until = {mac: end for mac, end in until.items() if end > now}
        try:
            mac = infected(line, options.gateway, options.never, now)
            if mac in own_and_routers():
                raise NotContained(f"is about {mac}, which is this machine or its router")
            if mac not in until and len(until) >= options.most:
                raise NotContained(f"is about {mac}, but {options.most} devices are cut off already (--most)")
            if options.apply:
                run("nft", "-f", "-", text=ELEMENT.format(family=options.family, mac=mac, seconds=options.seconds))
        except NotContained as reason:
            print(f"ignored: the alert {reason}", flush=True)
        except subprocess.CalledProcessError as error:
            print(f"not cut off: {mac}: {error.stderr.splitlines()[0]}", flush=True)
        else:
            until[mac] = now + options.seconds
            print(f"{'cut off' if options.apply else 'would cut off'}: {mac} for {options.seconds} s", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"contain.py: {(getattr(error, 'stderr', '') or str(error)).splitlines()[0]}")
    except KeyboardInterrupt:
        pass
