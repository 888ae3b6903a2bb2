#!/usr/bin/env python3
"""Calls `act` once for each alert, also after this program or the broker was away. Needs paho-mqtt 2.

The broker stores alerts for a client whose session it knows, and repeats those that were not acknowledged; alerts are
acknowledged here when `act` has returned. An episode's id and number name an alert: what comes twice is acted on once.
"""

import argparse
import json
import sys
from collections import OrderedDict

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

MOST = 10_000  # alerts that are remembered, to recognise repeats
SESSION_S = 7 * 86_400  # the broker stores alerts for us for so long


def act(alert):
    """Print the alert; put here what is to be done."""
    ours = alert["alert"]["context"]["botwatch"]
    state = "test" if ours.get("test") else ours["state"]
    line = [alert["host"], state, alert["alert"]["signature"], ours.get("explanation", "")]
    print("".join(c if c.isprintable() else "?" for c in "  ".join(line)), flush=True)


def main():
    """Connect, and act on alerts until this is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--id", default="alerts-example", help="name of the session; two clients need two")
    parser.add_argument("--ca", help="the broker's authority; with --cert and --key TLS is used")
    parser.add_argument("--cert")
    parser.add_argument("--key")
    options = parser.parse_args()
    seen = OrderedDict()

    def on_connect(client, _data, _flags, reason, _properties):
        if reason.is_failure:
            sys.exit(f"the broker refuses the connection: {reason}")
        client.subscribe("botwatch/v1/gw/+/alert", qos=1)

    def on_subscribe(_client, _data, _mid, reasons, _properties):
        print(f"subscribed: {reasons[0]}", file=sys.stderr, flush=True)

    def on_message(client, _data, message):
        try:
            alert = json.loads(message.payload)
            ours = alert["alert"]["context"]["botwatch"]
            key = ours["id"], ours["seq"]
            if message.topic.split("/")[-2] == alert["host"] and key not in seen:
                act(alert)
                seen[key] = None
                if len(seen) > MOST:
                    seen.popitem(last=False)
        except (ValueError, KeyError, TypeError) as error:
            print(f"not an alert on {message.topic!r}: {error!r}", file=sys.stderr, flush=True)
        client.ack(message.mid, message.qos)

    properties = mqtt.Properties(mqtt.PacketTypes.CONNECT)
    properties.SessionExpiryInterval = SESSION_S
    client = mqtt.Client(CallbackAPIVersion.VERSION2, options.id, protocol=mqtt.MQTTv5, manual_ack=True)
    client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
    if options.ca:
        client.tls_set(options.ca, options.cert, options.key)
    client.connect(options.host, options.port, clean_start=False, properties=properties)
    try:
        client.loop_forever()
    except KeyboardInterrupt:
        client.disconnect()


if __name__ == "__main__":
    main()
