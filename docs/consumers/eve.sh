#!/bin/sh
# Appends the alerts of a collector's database to a file, and goes on after a restart where it was:
#   sh eve.sh /var/log/botwatch/eve.json --db alerts.sqlite
# The other options are those of `botwatch collector alerts`; eve.py, beside this file, writes FILE and FILE.cursor.
set -eu

file=$1
shift
trap 'exit 0' INT TERM
botwatch collector alerts "$@" --json --follow --after "$(cat "$file.cursor" 2>/dev/null || echo 0)" |
    python3 "$(dirname "$0")/eve.py" "$file"
