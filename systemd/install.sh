#!/bin/sh
# install.sh [--root DIR]: installs the service unit, and a configuration if there is none, on this machine or in an image.
# It may be run again: files that are up to date stay, and a configuration is never changed. It names each file it writes.
set -eu
root=
case "$#,${1-}" in
0,) ;;
2,--root) root=${2%/} ;;
*) echo "usage: $0 [--root DIR]" >&2; exit 2 ;;
esac
[ -d "$root/" ] || { echo "$0: $root is not a folder" >&2; exit 2; }
here=$(CDPATH='' cd "$(dirname "$0")" && pwd)
unit=$root/etc/systemd/system/edge-agent.service
changed=

put() {
    if cmp -s "$1" "$2"; then return; fi
    mkdir -p "${2%/*}"
    cp "$1" "$2.new"
    chmod 644 "$2.new"
    mv "$2.new" "$2"
    echo "wrote $2"
    changed=yes
}

# The version of systemd is read from the name of its library: programs in an image may be for another processor.
version=0
for file in "$root"/usr/lib/systemd/libsystemd-shared-*.so "$root"/usr/lib/*/systemd/libsystemd-shared-*.so; do
    [ -e "$file" ] || continue
    number=$(basename "$file" | sed 's/^libsystemd-shared-\([0-9]*\).*/\1/')
    [ "${number:-0}" -le "$version" ] || version=$number
done

put "$here/edge-agent.service" "$unit"
if [ "$version" -ge 254 ]; then
    put "$here/edge-agent.service.d/restart.conf" "$unit.d/restart.conf"
elif [ -e "$unit.d/restart.conf" ]; then
    rm "$unit.d/restart.conf"
    echo "removed $unit.d/restart.conf, which systemd $version does not know"
    changed=yes
fi
if [ ! -e "$root/etc/botwatch/agent.yaml" ]; then
    # Absolute paths of what the agent stores: a command that is typed in another folder then finds the same files.
    config=$(mktemp)
    trap 'rm -f "$config"' EXIT
    sed 's|^  path: \(botwatch-[a-z.]*\) |  path: /var/lib/botwatch/\1 |' "$here/../configs/agent.yaml" > "$config"
    put "$config" "$root/etc/botwatch/agent.yaml"
fi

program=/usr/lib/botwatch/bin/botwatch
[ -x "$root$program" ] || echo "$root$program does not exist. To install it: python3 -m venv /usr/lib/botwatch && /usr/lib/botwatch/bin/pip install ." >&2
if [ -z "$root" ] && [ -n "$changed" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    echo "next: botwatch agent check --config /etc/botwatch/agent.yaml, then systemctl enable --now edge-agent"
fi
