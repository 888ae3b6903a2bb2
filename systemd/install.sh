#!/bin/sh
# install.sh installs the agent on this machine, or in an image below --root. Run it as root. It may be run again, with
# other flags, too: what is up to date stays, and it names each file that it writes. Wrong values are refused before
# anything is written. It needs nothing that a minimal Debian lacks but, for --wheels, Python, and runs no program of an
# image, which may be for another processor.
set -eu
umask 022
export LC_ALL=C # a-z are these letters and no others
usage() {
    cat <<'EOF'
usage: install.sh [--wheels DIR] [--gateway ID] [--bundle DIR] [--broker HOST[:PORT]] [--interface NAME]... [--root DIR]

  --wheels DIR       install the program from the wheels in DIR (`make wheel`), without a network or a compiler
  --gateway ID       the gateway's id: a-z, 0-9 and "-", at most 63 characters; or auto
  --bundle DIR       copy this model bundle to /etc/botwatch/bundle; without one the built-in bundle is used
  --broker HOST      the broker's name or address, also with a port: HOST:PORT, [ADDRESS]:PORT
  --interface NAME   capture on this interface; may be repeated
  --root DIR         install in the image that is unpacked in DIR instead of on this machine

Of an existing configuration, only the keys that were given are changed. Without flags, the service and a configuration
are installed.
EOF
}
line() { # on stderr, whatever a value has in it
    printf '%s' "$0: $*" | tr '\000-\037\177' '?' >&2
    echo >&2
}
refuse() {
    line "$@"
    exit 2
}
fail() {
    line "$@"
    exit 1
}

# --- the command line: each value is checked before anything is written ---

root='' gateway='' bundle='' host='' port='' interfaces='' count=0 wheels=''
bad_broker() {
    refuse "--broker $1 is neither HOST nor HOST:PORT; HOST is a name or an address, not a URL"
}
is_host() {
    case $1 in
    '' | *[!A-Za-z0-9._-]* | .* | -* | *..*) return 1 ;;
    *[!0-9.]*) [ ${#1} -le 253 ] ;;
    *) echo "$1" | grep -Eqx '((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(\.|$)){4}' ;;
    esac
}
is_ipv6() {
    address=${1%%%*} # without its zone
    case $1 in
    *% | *%*[!A-Za-z0-9._-]*) return 1 ;;
    esac
    case $address in
    *[!0-9A-Fa-f:.]* | *:::* | *::*::* | :[!:]*) return 1 ;;
    *.*) is_host "${address##*:}" && address=${address%:*}:0:0 ;; # ends in an IPv4 address
    esac || return 1
    ! echo "$address" | grep -Eq '[0-9A-Fa-f]{5}|[^:]:$' || return 1
    colons=$(printf '%s' "$address" | tr -cd ':' | wc -c)
    case $address in
    ::* | *::) [ "$colons" -le 8 ] ;;
    *::*) [ "$colons" -le 7 ] ;;
    *) [ "$colons" -eq 7 ] ;;
    esac
}
broker() {
    case $1 in
    *://* | *@*) refuse "--broker: a URL is not accepted; give HOST or HOST:PORT" ;; # it may hold a password
    \[*\]) host=${1#[} host=${host%]} ;;
    \[*\]:*) host=${1#[} host=${host%]:*} port=${1##*]:} ;;
    *:*:*) host=$1 ;;
    *:*) host=${1%:*} port=${1##*:} ;;
    *) host=$1 ;;
    esac
    case $1 in
    \[* | *:*:*) is_ipv6 "$host" || bad_broker "$1" ;;
    *) is_host "$host" || bad_broker "$1" ;;
    esac
    case $1 in
    *]: | *[!:]:) [ "$host" = "$1" ] || bad_broker "$1" ;;
    esac
    case $port in
    '') ;;
    0* | *[!0-9]* | ??????*) bad_broker "$1" ;;
    *) [ "$port" -le 65535 ] || bad_broker "$1" ;;
    esac
}
interface() {
    case $1 in
    '' | . | .. | *[!A-Za-z0-9._@+-]*) refuse "--interface $1 cannot be the name of an interface" ;;
    esac
    [ ${#1} -le 15 ] || refuse "--interface $1: the name of an interface has at most 15 characters"
    case " $interfaces " in
    *" \"$1\" "* | *" \"$1\", "*) refuse "--interface $1 is given twice" ;;
    esac
    count=$((count + 1))
    [ "$count" -le 16 ] || refuse "--interface: at most 16 interfaces can be captured on"
    interfaces="$interfaces${interfaces:+, }\"$1\""
}
gateway() {
    case $1 in
    '' | *[!a-z0-9-]* | -* | *-) refuse "--gateway $1: an id has only a-z, 0-9 and \"-\", which is neither first nor last" ;;
    esac
    [ ${#1} -le 63 ] || refuse "--gateway $1: an id has at most 63 characters"
    gateway=$1
}
# The files that a manifest names, each as NAME SHA256 on a line.
members() {
    tr -d ' \t\r\n' < "$1/manifest.json" |
        grep -o '"[A-Za-z0-9_-][A-Za-z0-9._-]*":{"bytes":[0-9]*,"sha256":"[0-9a-f]*"}' |
        sed 's/^"\([^"]*\)".*"\([0-9a-f]*\)"}$/\1 \2/'
}
bundle() {
    [ -d "$1" ] || refuse "--bundle $1 is not a folder"
    [ -f "$1/manifest.json" ] || refuse "--bundle $1 is not a model bundle: it has no manifest.json"
    bundle=$(CDPATH='' cd "$1" && pwd -P)
    files=$(members "$bundle")
    [ -n "$files" ] || refuse "--bundle $1 is not a model bundle: its manifest.json names no files"
    # shellcheck disable=SC2086 # names and sums are words
    set -- $files
    while [ $# -gt 0 ]; do
        [ -f "$bundle/$1" ] || refuse "--bundle $bundle is not whole: its manifest names $1, which is not there"
        case $(sha256sum "$bundle/$1") in
        "$2 "*) ;;
        *) refuse "--bundle $bundle is damaged: $1 is not the file that its manifest names; copy it again" ;;
        esac
        shift 2
    done
}
wheels() {
    [ -d "$1" ] || refuse "--wheels $1 is not a folder"
    set -- "$1" "$1"/botwatch-*.whl
    [ -f "$2" ] || refuse "--wheels $1 holds no wheel of botwatch; \`make wheel\` on the desktop makes it, in dist"
    command -v python3 >/dev/null || refuse "--wheels: python3 is not installed: apt-get install python3"
    wheels=$(CDPATH='' cd "$1" && pwd -P)
}
while [ $# -gt 0 ]; do
    case $1 in
    --root | --gateway | --bundle | --broker | --interface | --wheels)
        [ $# -ge 2 ] || refuse "$1 needs a value; --help lists the flags"
        case $1 in
        --root)
            [ -d "$2/" ] || refuse "--root $2 is not a folder"
            root=$(CDPATH='' cd "$2" && pwd -P)
            root=${root%/}
            ;;
        *) "${1#--}" "$2" ;;
        esac
        shift 2
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) refuse "unknown argument $1; --help lists the flags" ;;
    esac
done
here=$(CDPATH='' cd "$(dirname "$0")" && pwd)
etc=$root/etc/botwatch
lib=$root/usr/lib/botwatch
unit=$root/etc/systemd/system/edge-agent.service
config=$etc/agent.yaml
changed=''
# An image may have links that lead to files of this machine.
for folder in "$etc" "$lib" "${unit%/*}" "$root/usr/local/bin" "$root/usr/share"; do
    while [ ! -e "$folder" ] && [ ! -L "$folder" ]; do folder=${folder%/*}; done
    case $(CDPATH='' cd "$folder" 2>/dev/null && pwd -P)/ in
    "$root/"*) ;;
    *) refuse "--root: $folder is a link that leads out of the image" ;;
    esac
done
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# --- writing ---

put() { # SOURCE TARGET: replace the target at once, unless it is the same
    if cmp -s "$1" "$2"; then return; fi
    mkdir -p "${2%/*}"
    cp "$1" "$2.new"
    chmod 644 "$2.new"
    mv "$2.new" "$2"
    echo "wrote $2"
    changed=yes
}

# The program: a virtual environment made of wheels, beside the old one, which it then replaces.
install_wheels() {
    python=$(readlink "$root/usr/bin/python3" || true)
    minor=$(basename "${python:-none}" | sed -n 's/^python3\.\([0-9]*\)$/\1/p')
    [ -n "$minor" ] || fail "$root/usr/bin/python3 does not exist: apt-get install python3"
    case $(od -An -tu1 -j18 -N1 "$root/usr/bin/python3.$minor" | tr -d ' ') in # e_machine in elf(5)
    62) machine=x86_64 ;;
    183) machine=aarch64 ;;
    *) fail "$root/usr/bin/python3.$minor is neither for x86-64 nor for 64-bit ARM, for which there are wheels" ;;
    esac
    stamp=$scratch/wheels.sha256
    (cd "$wheels" && echo "# Python 3.$minor, $machine" && sha256sum ./*.whl) > "$stamp"
    if [ -x "$lib/bin/botwatch" ] && cmp -s "$stamp" "$lib/wheels.sha256"; then return; fi
    host=/usr/bin/python3
    [ -z "$root" ] || host=python3
    rm -rf "$lib.new"
    mkdir -p "$lib.new/bin" "$lib.new/tmp"
    set -- --platform "linux_$machine" --platform "manylinux2014_$machine"
    for libc in 17 24 26 27 28 31 34 35 36; do set -- "$@" --platform "manylinux_2_${libc}_$machine"; done
    [ -z "$root" ] || set -- "$@" --no-compile # by a Python that may be another one
    for pip in "$wheels"/pip-*.whl; do [ ! -f "$pip" ] || export PYTHONPATH="$pip"; done
    if ! TMPDIR=$lib.new/tmp "$host" -m pip --isolated install -q --disable-pip-version-check --no-cache-dir \
        --root-user-action ignore --no-index --find-links "$wheels" --only-binary :all: --python-version "3.$minor" \
        --implementation cp "$@" --target "$lib.new/lib/python3.$minor/site-packages" botwatch 2> "$scratch/pip"; then
        rm -rf "$lib.new"
        fail "the wheels in $wheels do not install for Python 3.$minor on $machine: $(grep -v '^$' "$scratch/pip" | tail -n 1)"
    fi
    unset PYTHONPATH
    rm -rf "$lib.new/tmp" "$lib.new/lib/python3.$minor/site-packages/bin"
    ln -s "/usr/bin/python3.$minor" "$lib.new/bin/python"
    ln -s python "$lib.new/bin/python3"
    cat > "$lib.new/pyvenv.cfg" <<EOF
home = /usr/bin
include-system-site-packages = false
version = 3.$minor
EOF
    cat > "$lib.new/bin/botwatch" <<'EOF'
#!/usr/lib/botwatch/bin/python
import sys

from edge_agent.command import main

sys.exit(main())
EOF
    chmod 755 "$lib.new/bin/botwatch"
    cp "$stamp" "$lib.new/wheels.sha256"
    rm -rf "$lib.old"
    [ ! -e "$lib" ] || mv "$lib" "$lib.old"
    mv "$lib.new" "$lib"
    rm -rf "$lib.old"
    echo "wrote $lib, for Python 3.$minor on $machine"
    changed=yes
}

# The files that the manifest names and no others, readable by the service's user; two renames put them in place.
install_bundle() {
    target=$etc/bundle
    same=yes
    for name in manifest.json $(members "$bundle" | cut -d ' ' -f 1); do
        cmp -s "$bundle/$name" "$target/$name" || same=''
    done
    if [ -n "$same" ]; then
        chmod 755 "$target"
        chmod 644 "$target"/*
        return
    fi
    rm -rf "$target.new"
    mkdir -p "$target.new"
    for name in manifest.json $(members "$bundle" | cut -d ' ' -f 1); do cp "$bundle/$name" "$target.new/$name"; done
    chmod 755 "$target.new"
    chmod 644 "$target.new"/*
    rm -rf "$target.old"
    [ ! -e "$target" ] || mv "$target" "$target.old"
    mv "$target.new" "$target"
    rm -rf "$target.old"
    echo "wrote $target"
    changed=yes
}

# --- the configuration is made first: if it cannot be edited, nothing is written ---

new=$scratch/agent.yaml
set_key() { # SECTION KEY VALUE
    status=0
    SECTION=$1 KEY=$2 VALUE=$3 awk -f "$here/set-key.awk" "$new" > "$new.edited" || status=$?
    case $status in
    0) mv "$new.edited" "$new" ;;
    3) refuse "$config cannot be edited: $(cat "$new.edited")" ;;
    *) fail "awk ended with status $status" ;;
    esac
}
if [ -e "$config" ]; then
    cp "$config" "$new"
else
    # Absolute paths of what the agent stores: a command that is typed in another folder then finds the same files.
    sed 's|^  path: \(botwatch-[a-z.]*\) |  path: /var/lib/botwatch/\1 |' "$here/../configs/agent.yaml" > "$new"
    [ ! -d "$etc/bundle" ] || set_key '' bundle /etc/botwatch/bundle # of an earlier installation
fi
[ -z "$gateway" ] || set_key '' gateway "\"$gateway\""
[ -z "$bundle" ] || set_key '' bundle /etc/botwatch/bundle
[ -z "$interfaces" ] || set_key capture interfaces "[$interfaces]"
[ -z "$host" ] || set_key broker host "\"$host\""
[ -z "$port" ] || set_key broker port "$port"
[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "run this as root"
if [ -L "$config" ] && ! cmp -s "$new" "$config"; then
    refuse "$config is a symbolic link, which stays; write the keys into the file that it names"
fi
for folder in "$lib" "$etc/bundle"; do # left by an installation that was cut short, perhaps between two renames
    if [ ! -e "$folder" ] && [ -e "$folder.old" ]; then mv "$folder.old" "$folder"; fi
    rm -rf "$folder.old" "$folder.new"
done
rm -f "$config.new" "$unit.new" "$unit.d/restart.conf.new"

[ -z "$wheels" ] || install_wheels

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
# The unit loads each file in this folder as a credential, and does not start without the folder.
if [ ! -d "$etc/credentials" ]; then
    mkdir -p "$etc/credentials"
    echo "made $etc/credentials, for files of secrets"
fi
chmod 700 "$etc/credentials"
[ -z "$bundle" ] || install_bundle
put "$new" "$config"

link=$root/usr/local/bin/botwatch
program=/usr/lib/botwatch/bin/botwatch
if [ "$(readlink "$link" || true)" = "$program" ]; then
    :
elif [ -e "$link" ] || [ -L "$link" ]; then
    echo "$0: $link is another file and stays; the command of this installation is $program" >&2
else
    mkdir -p "${link%/*}"
    ln -s "$program" "$link"
    echo "wrote $link"
fi

for file in "$lib"/lib/python3*/site-packages/edge_agent/completion.bash; do
    [ ! -f "$file" ] || put "$file" "$root/usr/share/bash-completion/completions/botwatch"
done

# What the agent needs beside its wheels; a library elsewhere does as well, so that these are no errors.
[ -x "$root$program" ] || echo "$root$program does not exist: install it with --wheels DIR (\`make wheel\` on the desktop makes DIR)" >&2
for file in "$root"/usr/lib/libpcap.so.0.8 "$root"/usr/lib/*/libpcap.so.0.8 "$root"/lib/*/libpcap.so.0.8 ''; do
    [ ! -e "$file" ] || break
done
[ -n "$file" ] || echo "$root/usr/lib has no libpcap.so.0.8, which the agent needs: apt-get install libpcap0.8" >&2
if [ -z "$root" ] && [ -n "$changed" ]; then sync; fi # power may be cut before the card has it
if [ -z "$root" ] && [ -n "$changed" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if systemctl -q is-active edge-agent; then
        echo "next: botwatch agent check --config /etc/botwatch/agent.yaml, then systemctl restart edge-agent"
    else
        echo "next: botwatch agent check --config /etc/botwatch/agent.yaml, then systemctl enable --now edge-agent"
    fi
fi
