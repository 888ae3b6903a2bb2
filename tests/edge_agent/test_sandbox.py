"""`botwatch agent check` as root sees files as the installed service does, tried with real files, users and modes.

Each case installs the service by the installer, in namespaces of its own with a copy of /etc, /home, /root, /srv, /usr
and /var that is thrown away.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent import check
from edge_agent.config import AgentConfig
from edge_agent.contract.broker import BrokerConfig
from edge_agent.sandbox import UNIT, installed
from tests.broker import free_port
from tests.conftest import Home
from tests.edge_agent.test_check import certificate
from tests.test_systemd import UNITS

ROOT = Path(__file__).parents[2]

PRIVATE = """
set -eu
mount -t tmpfs tmpfs {scratch}
for folder in etc home root srv usr var; do
    mkdir -p {scratch}/$folder/new {scratch}/$folder/work
    mount -t overlay overlay -o lowerdir=/$folder,upperdir={scratch}/$folder/new,workdir={scratch}/$folder/work /$folder
done
ip link set lo up
install -D -m 755 /dev/null /usr/lib/botwatch/bin/botwatch
sh {units}/install.sh --root / --gateway gw-7 --bundle {bundle} --broker 127.0.0.1:1 --interface lo > /dev/null
cd /
set_key() {{
    SECTION=$1 KEY=$2 VALUE=$3 awk -f {units}/set-key.awk /etc/botwatch/agent.yaml > /etc/new
    cp /etc/new /etc/botwatch/agent.yaml
}}
{setup}
cd {root}
exec {python} -m edge_agent check --config {config}
"""


def private_mounts() -> bool:
    """Return True if this machine lets tests have a copy of its folders."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        return False
    script = """
    mount -t tmpfs tmpfs /mnt && mkdir /mnt/new /mnt/work &&
    mount -t overlay overlay -o lowerdir=/srv,upperdir=/mnt/new,workdir=/mnt/work /srv
    """
    return subprocess.run(["unshare", "-mn", "sh", "-c", script], capture_output=True, check=False).returncode == 0


needs_mounts = pytest.mark.skipif(not private_mounts(), reason="needs root, and overlays in a mount namespace")


def checked(
    folder: Path, home: Home, setup: str = "", config: str = "/etc/botwatch/agent.yaml"
) -> dict[str, tuple[str, str]]:
    """Return what `check` says after ``setup``: the last result and text of each thing that it looks at."""
    scratch = folder / "scratch"
    scratch.mkdir()
    script = PRIVATE.format(
        scratch=scratch,
        units=UNITS,
        bundle=home.bundle,
        setup=setup.replace("BUNDLE", str(home.bundle)).replace("FOLDER", str(folder)),
        root=ROOT,
        python=sys.executable,
        config=config,
    )
    done = subprocess.run(
        ["unshare", "-mn", "sh", "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1, done.stderr  # no broker listens
    lines = [line.partition(": ") for line in done.stdout.splitlines()]
    return {before[7:]: (before[:7].strip(), text) for before, _, text in lines}


@needs_mounts
def test_what_the_installer_wrote_is_in_order_for_the_service(tmp_path: Path, home: Home) -> None:
    findings = checked(tmp_path, home)
    whose = f"files are tried as {UNIT} finds them: as a user of its own, which does not see /home, /root, /run/user"
    assert findings["view"] == ("ok", f"{whose}, /tmp, /var/tmp")
    assert findings["bundle"][0] == "ok"
    for what in ("disk", "evidence"):
        assert findings[what][0] == "ok"
        assert "systemd makes /var/lib/botwatch when the service starts" in findings[what][1]
    assert {what for what, (result, _) in findings.items() if result == "WRONG"} <= {"lo", "broker 127.0.0.1:1"}


COPY = "cp -r BUNDLE"


@needs_mounts
@pytest.mark.parametrize(
    ("setup", "text"),
    [
        (f"{COPY} /root/b; set_key '' bundle /root/b", "/root/b: the service does not see /root (ProtectHome= in"),
        (f"mkdir /home/u; {COPY} /home/u/b; set_key '' bundle /home/u/b", "the service does not see /home (Prot"),
        (f"{COPY} /var/tmp/b; set_key '' bundle /var/tmp/b", "the service does not see /var/tmp (PrivateTmp= in"),
        (
            f"rm -r /etc/botwatch/bundle; {COPY} /root/b; ln -s /root/b /etc/botwatch/bundle",
            "/etc/botwatch/bundle: the service does not see /root",
        ),
        (
            f"{COPY} /srv/b; ln -s /srv/b /home/link; ln -s ../home/link /srv/c; set_key '' bundle /srv/c",
            "/srv/c: the service does not see /home",
        ),
        (
            "chmod 700 /etc/botwatch/bundle",
            "/etc/botwatch/bundle: the service's user may not read it, because /etc/botwatch/bundle has mode 0700 and",
        ),
        (
            "chmod 600 /etc/botwatch/bundle/classifier.tflite",
            "because /etc/botwatch/bundle/classifier.tflite has mode 0600 and belongs to uid 0",
        ),
        (
            f"mkdir -m 700 /srv/closed; {COPY} /srv/closed/b; set_key '' bundle /srv/closed/b",
            "/srv/closed/b: the service's user may not read it, because /srv/closed has mode 0700",
        ),
    ],
)
def test_a_bundle_that_root_can_read_and_the_service_cannot_is_wrong(
    tmp_path: Path, home: Home, setup: str, text: str
) -> None:
    result, said = checked(tmp_path, home, setup)["bundle"]
    assert result == "WRONG"
    assert text in said
    assert "copies it to /etc/botwatch/bundle" in said


@needs_mounts
def test_a_bundle_that_another_group_may_read_is_in_order_for_a_service_with_that_group(
    tmp_path: Path, home: Home
) -> None:
    setup = f"""
    {COPY} /srv/b; chgrp -R ssl-cert /srv/b 2>/dev/null || chgrp -R adm /srv/b; chmod 750 /srv/b
    mkdir -p /etc/systemd/system/{UNIT}.d
    printf '[Service]\\nSupplementaryGroups=%s\\n' "$(stat -c %G /srv/b)" > /etc/systemd/system/{UNIT}.d/group.conf
    set_key '' bundle /srv/b
    """
    assert checked(tmp_path, home, setup)["bundle"][0] == "ok"


SECRET = "set_key broker username gw-7; set_key broker password_file"
IN = "/etc/botwatch/credentials"


@needs_mounts
@pytest.mark.parametrize(
    ("setup", "result", "text"),
    [
        (f"install -m 600 /dev/null {IN}/p; {SECRET} credential:p", "ok", "credential:p (0600)"),
        (f"install -m 644 /dev/null {IN}/p; {SECRET} credential:p", "WRONG", f"(0644): `chmod 600 {IN}/p`"),
        (f"{SECRET} credential:p", "WRONG", f"credential:p: there is no file p in {IN}"),
        (
            f"ln -s /etc/hostname {IN}/p; {SECRET} credential:p",
            "WRONG",
            "is not a regular file: systemd loads no links",
        ),
        (
            f"install -m 600 /dev/null /etc/botwatch/p; {SECRET} /etc/botwatch/p",
            "WRONG",
            f"p has mode 0600 and belongs to uid 0; move it to {IN} and write password_file: credential:p",
        ),
        (
            f"install -m 644 /dev/null /etc/botwatch/p; {SECRET} /etc/botwatch/p",
            "WRONG",
            f"can be read or written by others (0644); move it to {IN} and write password_file: credential:p",
        ),
        (f"install -m 600 /dev/null /root/p; {SECRET} /root/p", "WRONG", "the service does not see /root"),
        (
            f"sed -i /Load/d /etc/systemd/system/{UNIT}; install -m 600 /dev/null {IN}/p; {SECRET} credential:p",
            "WRONG",
            f"{UNIT} does not load {IN}: install it again",
        ),
    ],
)
def test_a_secret_is_in_order_only_if_it_reaches_the_service(
    tmp_path: Path, home: Home, setup: str, result: str, text: str
) -> None:
    got, said = checked(tmp_path, home, setup)["password_file"]
    assert got == result
    assert text in said


@needs_mounts
@pytest.mark.parametrize(
    ("setup", "text"),
    [
        (f"rmdir {IN}", f"{IN} does not exist, and {UNIT} does not start without it: `mkdir -m 700 {IN}`"),
        (f"touch {IN}/ca:old.crt", f"{IN}/ca:old.crt: a name that systemd refuses"),
        (f"mkdir {IN}/sub; touch {IN}/sub/schl\u00fcssel", "a name that systemd refuses, so that"),
        (f"truncate -s 600K {IN}/a {IN}/b", "have 1,228,800 bytes, more than the 1,048,576 that systemd loads"),
    ],
)
def test_a_folder_of_credentials_with_which_the_service_would_not_start_is_wrong(
    tmp_path: Path, home: Home, setup: str, text: str
) -> None:
    """systemd ends such a start with 243/CREDENTIALS, before the agent could say anything."""
    result, said = checked(tmp_path, home, setup)["credentials"]
    assert result == "WRONG"
    assert text in said


@needs_mounts
def test_a_certificate_and_its_key_are_tried_in_the_same_way(tmp_path: Path, home: Home) -> None:
    certificate(tmp_path / "gw.crt", 100)
    setup = f"""
    install -m 600 FOLDER/gw.crt FOLDER/gw.key {IN}
    install -m 600 FOLDER/gw.crt /etc/botwatch/ca.crt
    set_key broker tls true
    set_key broker ca_file /etc/botwatch/ca.crt
    set_key broker cert_file credential:gw.crt
    set_key broker key_file credential:gw.key
    """
    findings = checked(tmp_path, home, setup)
    assert findings["cert_file"][1].startswith("credential:gw.crt is valid until")
    assert [findings[key][0] for key in ("cert_file", "key_file", "ca_file")] == ["ok", "ok", "WRONG"]
    assert "write ca_file: credential:ca.crt" in findings["ca_file"][1]


STATE = "/var/lib/private/botwatch"


@needs_mounts
@pytest.mark.parametrize(
    ("setup", "what", "result", "text"),
    [
        ("touch box; chown 61999:61999 box", "disk", "ok", "/var/lib/botwatch, "),
        (
            "touch botwatch-agent.sqlite",
            "disk",
            "WRONG",
            "chown -R --reference=/var/lib/botwatch /var/lib/botwatch/bot",
        ),
        (
            "touch botwatch-agent.sqlite-wal",
            "disk",
            "WRONG",
            "botwatch-agent.sqlite-wal: the service's user may not wr",
        ),
        ("mkdir botwatch-evidence", "evidence", "WRONG", "botwatch-evidence has mode 0755 and belongs to uid 0"),
        (
            "set_key outbox path /srv/box.sqlite",
            "disk",
            "WRONG",
            "can write below /var/lib/botwatch only: name a path in",
        ),
    ],
)
def test_files_that_the_service_cannot_write_are_wrong(
    tmp_path: Path, home: Home, setup: str, what: str, result: str, text: str
) -> None:
    """Its folder is, as systemd makes it, below one that only root may enter; root may have made a file in it."""
    made = (
        f"mkdir -p -m 700 /var/lib/private {STATE}; ln -s private/botwatch /var/lib/botwatch; chown 61999:61999 {STATE}"
    )
    got, said = checked(tmp_path, home, f"{made}; cd {STATE}; {setup}")[what]
    assert got == result, said
    assert text in said


@needs_mounts
@pytest.mark.parametrize(
    ("setup", "text"),
    [
        ("chmod 700 /etc/botwatch", "/etc/botwatch has mode 0700 and belongs to uid 0: `chmod 755 /etc/botwatch"),
        ("chmod 600 /etc/botwatch/agent.yaml", "agent.yaml has mode 0600"),
    ],
)
def test_a_configuration_that_the_service_cannot_read_is_wrong(
    tmp_path: Path, home: Home, setup: str, text: str
) -> None:
    result, said = checked(tmp_path, home, setup)["configuration"]
    assert result == "WRONG"
    assert text in said


@needs_mounts
@pytest.mark.parametrize(
    ("setup", "text"),
    [
        ("rm -r /usr/lib/botwatch", "/usr/lib/botwatch/bin/botwatch does not exist: `install.sh --wheels DIR`"),
        ("chmod 700 /usr/lib/botwatch", "because /usr/lib/botwatch has mode 0700"),
        (
            "install -D -m 600 /dev/null /usr/lib/botwatch/lib/python3.11/site-packages/edge_agent/__init__.py",
            "`chmod -R go+rX /usr/lib/botwatch`",
        ),
    ],
)
def test_a_program_that_the_service_cannot_run_is_wrong(tmp_path: Path, home: Home, setup: str, text: str) -> None:
    result, said = checked(tmp_path, home, setup)["program"]
    assert result == "WRONG"
    assert text in said


@needs_mounts
def test_a_broker_beyond_the_networks_that_the_service_may_reach_is_wrong(tmp_path: Path, home: Home) -> None:
    what, far = "broker 203.0.113.7:1", "set_key broker host 203.0.113.7"
    result, said = checked(tmp_path, home, far)[what]
    assert result == "WRONG"
    assert "203.0.113.7 is in none of the networks that the service may reach (IPAddressAllow=" in said
    (tmp_path / "scratch").rmdir()
    drop_in = f"{far}; mkdir -p /etc/systemd/system/{UNIT}.d; d=/etc/systemd/system/{UNIT}.d"
    opened = f"{drop_in}; printf '[Service]\\nIPAddressAllow=203.0.113.0/24\\n' > $d/broker.conf"
    assert "network is unreachable" in checked(tmp_path, home, opened)[what][1]


@needs_mounts
@pytest.mark.parametrize(
    ("setup", "text"),
    [
        (
            "printf 'nameserver 203.0.113.53\\n' > /etc/resolv.conf",
            "the name server 203.0.113.53 is in none of the netw",
        ),
        (
            "printf 'nameserver %s\\n' 203.0.113.53 1.2.3 127.0.0.53 > /etc/resolv.conf",
            "in name resolution",
        ),
        (
            "printf 'nameserver 203.0.113.53\\n' > /etc/resolv.conf; echo '127.0.0.1 x Broker.test # y' >> /etc/hosts",
            "connection refused",
        ),
    ],
)
def test_a_name_that_only_root_can_look_up_is_wrong(tmp_path: Path, home: Home, setup: str, text: str) -> None:
    named = f"rm -f /etc/resolv.conf; {setup}; set_key broker host broker.test"
    result, said = checked(tmp_path, home, named)["broker broker.test:1"]
    assert result == "WRONG"
    assert text in said


@needs_mounts
def test_it_says_whose_view_it_is_for_another_configuration_than_that_of_the_service(
    tmp_path: Path, home: Home
) -> None:
    text = f"{UNIT} has another configuration, /etc/botwatch/agent.yaml"
    setup = "cp /etc/botwatch/agent.yaml /etc/other.yaml; chmod 700 /etc/botwatch/bundle"
    findings = checked(tmp_path, home, setup, "/etc/other.yaml")
    assert findings["view"] == ("ok", f"files are tried as user root; {text}")
    assert findings["bundle"][0] == "ok"


def view(units: Path) -> str:
    config, source = AgentConfig(broker=BrokerConfig().at(f"127.0.0.1:{free_port()}")), Path("/etc/botwatch/agent.yaml")
    return next(f.text for f in check.findings(config, "none", source, [units]) if f.what == "view")


def test_it_says_whose_view_it_is_for_another_user_and_without_a_service(tmp_path: Path) -> None:
    assert view(tmp_path).endswith(f"; no {UNIT} is installed here")
    shutil.copy(UNITS / UNIT, tmp_path)
    root = os.geteuid() == 0
    try:
        if root:
            tmp_path.chmod(0o755)
            os.setresuid(65_534, 65_534, 0)
        assert view(UNITS).endswith(f"; only root can try them as {UNIT} finds them")
    finally:
        if root:
            os.setresuid(0, 0, 0)


def test_the_unit_is_read_as_systemd_reads_it_with_its_drop_ins(tmp_path: Path) -> None:
    """The last value counts, an empty one discards those before it, and /etc wins over /usr."""
    etc, usr = tmp_path / "etc", tmp_path / "usr"
    for folder in (etc, usr):
        (folder / f"{UNIT}.d").mkdir(parents=True)
    shutil.copy(UNITS / UNIT, usr)
    service = installed([etc, usr])
    assert service
    assert service.config == Path("/etc/botwatch/agent.yaml")
    assert service.program == Path("/usr/lib/botwatch/bin/botwatch")
    assert service.loads == ("botwatch:/etc/botwatch/credentials",)
    for path in ("/tmp/x", "/run/user/0/b", "/home", "/root/b/c"):
        assert service.hides(Path(path)), path
    assert not service.hides(Path("/rooted"))
    assert service.unwritable(Path("/srv/x"))
    (usr / f"{UNIT}.d/a.conf").write_text("[Service]\nProtectHome=no\nReadWritePaths=/srv \\\n  -/mnt\n")
    (etc / f"{UNIT}.d/b.conf").write_text(
        "[Service]\nLoadCredential=\nLoadCredential=p:/x\nIPAddressDeny=\nUser=daemon\n"
    )
    service = installed([etc, usr])
    assert service
    assert (service.user, service.uid) == ("user daemon", 1)
    assert not service.hides(Path("/root/b"))
    assert service.hides(Path("/tmp/x"))
    assert service.loads == ("p:/x",)
    assert service.no_credential("p") == ""
    assert service.writable[1:] == (Path("/srv"), Path("/mnt"))
    assert service.unreachable("203.0.113.7", 1) == ""
    (etc / f"{UNIT}.d/a.conf").write_text("")  # replaces the drop-in of the same name
    service = installed([etc, usr])
    assert service
    assert service.hides(Path("/root/b"))
