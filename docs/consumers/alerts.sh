#!/bin/sh
# Prints a line for each alert that arrives, and one when a gateway goes offline. Options are mosquitto_sub's:
#   sh alerts.sh -h broker.lan -p 8883 --cafile ca.crt --cert viewer.crt --key viewer.key
# Needs mosquitto_sub (Debian's mosquitto-clients) and jq.
set -eu
echo 'waiting for alerts' >&2

mosquitto_sub "$@" -q 1 -F '%t %p' -t 'botwatch/v1/gw/+/alert' -t 'botwatch/v1/gw/+/status' | jq -Rr --unbuffered '
    index(" ") as $at
    | (.[:$at] | split("/")) as $topic
    | .[$at + 1:]
    | fromjson? // empty
    | if $topic[-1] == "status" then select(.state == "offline") | [.ts[:19] + "Z", $topic[-2], .state]
      else
        .alert.context.botwatch as $ours
        | [.timestamp[:19] + "Z", $topic[-2], if $ours.test then "test" else $ours.state end]
          + [.alert.signature, $ours.device.name, $ours.explanation]
      end
    | map(select(. != null)) | join("  ") | gsub("[\\p{Cc}\\p{Cf}]"; "?")  # a name must not move the cursor' &
trap 'pkill -P $$ mosquitto_sub || :; exit 0' INT TERM
wait "$!"
