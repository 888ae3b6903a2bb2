#!/bin/sh
# Installs what no Python package can: a compiler, libpcap's and Python's headers, venv, mosquitto and its clients,
# PostgreSQL, jq, nftables. By apt where root, or sudo without a password, may; else one line names what to install.
# `system.sh arm`: also what runs an arm64 Debian.
set -eu
PYTHON=${PYTHON:-python3}

"$PYTHON" - <<'EOF' || { echo "botwatch needs Python 3.11, 3.12 or 3.13; run make PYTHON=/path/to/python3.11" >&2; exit 1; }
import sys
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
EOF

missing=
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
printf '#include <pcap/pcap.h>\n' | cc -E - >/dev/null 2>&1 || missing="$missing libpcap-dev"
"$PYTHON" -c 'import ensurepip, venv' >/dev/null 2>&1 || missing="$missing python3-venv"
header=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
test -e "$header" || missing="$missing python3-dev"
PATH=$PATH:/usr/sbin command -v mosquitto >/dev/null 2>&1 || missing="$missing mosquitto"
for tool in mosquitto_sub:mosquitto-clients jq:jq nft:nftables; do
	PATH=$PATH:/usr/sbin command -v "${tool%%:*}" >/dev/null 2>&1 || missing="$missing ${tool##*:}"
done
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
if [ "${1:-}" = arm ]; then
	for tool in mmdebstrap:mmdebstrap qemu-aarch64:qemu-user aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu; do
		command -v "${tool%%:*}" >/dev/null 2>&1 || missing="$missing ${tool##*:}"
	done
fi
if [ "${1:-}" = boot ]; then
	for tool in mmdebstrap:mmdebstrap systemd-nspawn:systemd-container ip:iproute2 nsenter:util-linux \
		qemu-aarch64-static:qemu-user-static; do
		PATH=$PATH:/usr/sbin command -v "${tool%%:*}" >/dev/null 2>&1 || missing="$missing ${tool##*:}"
	done
fi
test -n "$missing" || exit 0

as_root=
if [ "$(id -u)" != 0 ]; then
	if sudo -n true 2>/dev/null; then as_root="sudo -n"; else as_root=no; fi
fi
if [ "$as_root" = no ] || ! command -v apt-get >/dev/null 2>&1; then
	echo "please install:$missing (Debian's names), then run make again" >&2
	exit 1
fi
echo "installing$missing"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -q >/dev/null
# These packages start a broker on port 1883 and a database on port 5432, which the tests do not use.
$as_root apt-get install -y -q --no-install-recommends $missing >/dev/null
for service in mosquitto postgresql; do
	case $missing in *$service*) $as_root systemctl disable --now $service >/dev/null 2>&1 || true ;; esac
done
