"""A gateway that systemd has booted, installed by the documented steps, reports a scan to a collector.

``make test-boot`` runs it: Debian 12 and 13 for amd64 in systemd-nspawn, the traffic of a real network stack on a real
interface, mosquitto with TLS and passwords on another machine. It boots or fails and never skips. `make test` does not
run it, since it fetches some 200 MB of Debian and wheels once.
"""

import os
import re
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.gateway import PORT, SERVER, Gateway, steps, typed_on
from tests.broker import wait_until
from tests.conftest import Home
from tests.line import make_certificates
from tests.streams import context
from tools.debian import BOOKWORM, TRIXIE, Unavailable

CREDENTIALS = "/etc/botwatch/credentials"

BROKER = f"""
per_listener_settings true
persistence true
persistence_location {{folder}}/
autosave_interval 1
max_queued_messages 50000

listener 1883 127.0.0.1
allow_anonymous true

listener {{port}} {SERVER}
allow_anonymous false
password_file passwords
cafile ca.crt
certfile broker.crt
keyfile broker.key
"""
"""The broker on the server: the collector is on the same machine, and gateways need TLS and a password."""


@pytest.fixture(scope="module", params=[BOOKWORM, TRIXIE], ids=lambda release: release.name)
def gateway(
    request: pytest.FixtureRequest, dist: Path, home: Home, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """The gateway after the documented steps, switched on; the table of what was seen is printed at the end."""
    name, began = f"bw{os.getpid()}{request.param.name[0]}", time.monotonic()
    try:
        gateway = Gateway(request.param, name, tmp_path_factory.mktemp(name))
    except Unavailable as reason:
        pytest.fail(str(reason), pytrace=False)
    try:
        with gateway.site:
            try:
                gateway.switch_on()
                gateway.shown.title = describe(gateway)
                gateway.shown.add("booted", f"systemd says running, no failed unit; {time.monotonic() - began:.1f} s")
                install(gateway, dist, home)
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                pytest.fail(
                    f"{request.param.name} is not installed, so that nothing can be tried: {error}", pytrace=False
                )
            yield gateway
            gateway.shown.add("shut down", f"{gateway.off():.1f} s; the whole took {time.monotonic() - began:.0f} s")
    finally:
        gateway.machine.throw_away()
        print(f"\n{gateway.shown.text()}")


def describe(gateway: Gateway) -> str:
    """Return the system, the processor and the versions that count, as the machine itself names them."""
    lines = gateway.type(". /etc/os-release; echo $PRETTY_NAME; uname -m; systemctl --version | head -n 1").well()
    return " · ".join(lines.out.splitlines())


def install(gateway: Gateway, dist: Path, home: Home) -> None:
    """Follow the document: what it says in prose (copy, edit) is done here, and its commands are typed as they are."""
    site, root = gateway.site, gateway.machine.root
    # the server is ready, as the document assumes
    user, password = gateway.values.gateway, "correct horse, battery staple"
    make_certificates(site.folder / "broker", gateway.broker_host)
    site.password(user, password)
    (settings,) = [block for block in steps() if block.language == "yaml"]
    site.start_broker(BROKER.format(folder=site.folder / "broker", port=re.search(r"port: (\d+)", settings.text)[1]))
    # "Copy the folder dist, and the bundle, to the gateway", and the secrets that the administrator was given
    shutil.copytree(dist, root / "root" / gateway.values.wheels, copy_function=os.link)  # they only are read
    shutil.copytree(home.bundle, root / "root" / gateway.values.bundle)
    (root / "root/mqtt.password").write_text(f"{password}\n")
    shutil.copy(site.folder / "broker/ca.crt", root / "root/ca.crt")
    for block in steps():
        if block.language == "yaml":
            gateway.edit_as(block)
            gateway.keep_for_status()
        for line in block.commands():
            follow(gateway, block.typed_on, line)


def follow(gateway: Gateway, machine: str, line: str) -> None:
    """Type one command of the document, and note what it printed last."""
    if machine == "server" and "serve" in line:
        gateway.site.start(["sh", "-c", f"exec {line}"], "collector.log")
        wait_until(lambda: "subscribed to" in (gateway.site.folder / "collector.log").read_text(), 30)
        gateway.shown.add(f"server# {line}", (gateway.site.folder / "collector.log").read_text().splitlines()[-1])
    elif machine == "server":
        done = gateway.site.run(line).well()
        gateway.shown.add(f"server# {line}", done.out.strip().rpartition("\n")[2])
    elif machine == "gateway":
        done = gateway.type(line, 120)
        if "agent check" in line and done.status:
            for remedy in re.findall("`(ethtool [^`]+)`", done.out):  # a cable between namespaces merges frames
                gateway.shown.add(f"gateway# {remedy}", "the remedy that check names")
                gateway.type(remedy).well()
            done = gateway.type(line)
        done.well()
        last = (done.out.strip() or done.err.strip() or "(no output)").rpartition("\n")[2]
        gateway.shown.add(f"gateway# {line}", f"{done.seconds:4.1f} s: {last}")


def test_a_scan_of_a_device_is_an_alert_in_the_collector(gateway: Gateway) -> None:
    alert = gateway.wait_for_scan()
    assert (alert["host"], alert["in_iface"]) == (gateway.values.gateway, gateway.values.interface)
    assert context(alert)["state"] == "new"
    listed = gateway.site.run("botwatch collector alerts --db alerts.sqlite").well().out
    lines = [line for line in listed.splitlines() if alert["src_ip"] in line]
    assert lines, listed
    gateway.shown.add("server# botwatch collector alerts --db alerts.sqlite", lines[-1])


def test_nothing_on_it_can_compile_or_fetch(gateway: Gateway) -> None:
    for program in ("cc", "gcc", "g++", "clang", "make", "ld"):
        assert gateway.type(f"command -v {program}").status != 0, program
    assert gateway.type("ip route show default").well().out == ""
    gateway.shown.add("no compiler, no network but its own", "no cc, gcc, g++, clang, make, ld; no default route")


def test_the_command_is_on_the_path_of_root_and_of_every_user(gateway: Gateway) -> None:
    for user in (0, 1000):
        where = gateway.machine.run("command -v botwatch", user=user, folder="/").well().out.strip()
        text = gateway.machine.run("botwatch agent --help", user=user, folder="/").well().out
        assert "usage: botwatch agent" in text
    gateway.shown.add("command -v botwatch, as root and as user 1000", where)


def test_the_service_may_do_what_it_needs_and_nothing_else(gateway: Gateway) -> None:
    status = dict(
        line.split(":", 1) for line in gateway.type(f"cat /proc/{gateway.main_pid()}/status").well().out.splitlines()
    )
    user = int(status["Uid"].split()[0])
    assert 61_184 <= user <= 65_519  # systemd's range for DynamicUser
    assert {int(status[key], 16) for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {1 << 13}
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    limits = gateway.type(f"cat /proc/{gateway.main_pid()}/limits").well().out
    assert re.search(r"^Max open files +256 +256 ", limits, re.MULTILINE), limits
    files = gateway.type(f"ls /proc/{gateway.main_pid()}/fd | wc -l").well().out.strip()
    seen = f"user {user}, CAP_NET_RAW only, no new privileges, {files} of 256 files open"
    gateway.shown.add("the service's process", seen)
    complaints = gateway.type("journalctl -b -p warning -o cat --no-pager -u edge-agent _PID=1").out
    assert complaints == ""
    gateway.shown.add("complaints of systemd about the unit", "none")


PROBE = """
import socket, sys
line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for address in sys.argv[1:]:
    try:
        line.sendto(b"x", (address, 9))
        print(address, "sent")
    except OSError as error:
        print(address, error.strerror)
"""


def test_the_service_cannot_send_to_public_addresses(gateway: Gateway) -> None:
    public = "198.51.100.7"
    gateway.type(f"ip route replace {public}/32 via {SERVER}").well()
    probe = f"exec /usr/bin/python3 -c {shlex.quote(PROBE)} {SERVER} {public}"
    assert gateway.type(probe).well().out == f"{SERVER} sent\n{public} sent\n"
    inside = "echo $$ > /sys/fs/cgroup/system.slice/edge-agent.service/cgroup.procs && "
    done = gateway.type(inside + probe).well()
    assert done.out == f"{SERVER} sent\n{public} Operation not permitted\n"
    gateway.shown.add("a packet from the service's cgroup", done.out.replace("\n", "; ").strip("; "))


def test_secrets_reach_the_service_and_nobody_else(gateway: Gateway) -> None:
    names = gateway.type(f"ls {CREDENTIALS}").well().out.split()
    assert {"mqtt.password", "ca.crt"} <= set(names)
    modes = gateway.type(f"stat -c '%n %a %U' {CREDENTIALS} {CREDENTIALS}/*").well().out
    assert f"{CREDENTIALS} 700 root" in modes
    assert f"{CREDENTIALS}/mqtt.password 600 root" in modes
    password = (gateway.machine.root / CREDENTIALS[1:] / "mqtt.password").read_text().strip()
    copies = gateway.type("find /run/credentials/edge-agent.service -name '*mqtt.password'").well().out.split()
    assert len(copies) == 1
    for path in (f"{CREDENTIALS}/mqtt.password", copies[0]):
        assert gateway.machine.run(f"cat {path}", user=1000, folder="/").status != 0
    for place in ("environ", "cmdline"):
        text = gateway.type(f"tr '\\0' '\\n' < /proc/{gateway.main_pid()}/{place}").well().out
        assert password not in text
    assert password not in gateway.machine.journal()
    log = (gateway.site.folder / "broker.log").read_text()
    assert re.search(f"New client connected from .* as {gateway.values.gateway} .*u'{gateway.values.gateway}'", log), (
        log
    )
    gateway.shown.add("credentials", " · ".join(modes.splitlines()))
    gateway.shown.add("the broker has accepted them", re.findall(r"New client connected.*u'.*", log)[-1])


def test_the_journal_has_the_start_and_no_alert(gateway: Gateway) -> None:
    for pattern in (r"capturing on", rf"connected to broker {gateway.broker_host}"):
        gateway.shown.add("journal", gateway.wait_for_line(pattern))
    assert '"event_type"' not in gateway.machine.journal()


def test_a_reload_takes_up_a_change(gateway: Gateway) -> None:
    with gateway.edited(site="mill lane"):
        journal, process = gateway.journal_since(), gateway.main_pid()
        gateway.type("systemctl reload edge-agent").well()
        line = gateway.wait_for_line("read again.*site", journal)
        gateway.agent("test-alert").well()
        wait_until(lambda: any(context(alert).get("site") == "mill lane" for alert in gateway.site.alerts()), 20)
    gateway.type("systemctl reload edge-agent").well()
    assert gateway.main_pid() == process
    gateway.shown.add("systemctl reload, site changed", line)


@pytest.mark.parametrize(("key", "value"), [("health_s", "soon"), ("capture__snaplen", 128)])
def test_a_reload_refuses_a_bad_configuration_as_a_whole(gateway: Gateway, key: str, value: object) -> None:
    name = key.replace("__", ".")
    with gateway.edited(site="elsewhere", **{key: value}):
        journal, process = gateway.journal_since(), gateway.main_pid()
        gateway.type("systemctl reload edge-agent").well()
        line = gateway.wait_for_line(f"refused.*{name.rpartition('.')[2]}", journal)
        wait_until(lambda: gateway.status()["health"].get("config_refused"), 20)
        assert gateway.status()["health"].get("site", "") != "elsewhere"
    gateway.type("systemctl reload edge-agent").well()
    wait_until(lambda: not gateway.status()["health"].get("config_refused"), 20)
    assert gateway.main_pid() == process
    gateway.shown.add(f"systemctl reload, {name}: {value}", line)


WRONG = {
    "a bundle in /root": ({"bundle": "/root/bundles/home"}, "bundle", "/root/bundles/home"),
    "a bundle of mode 0700": ({"bundle": "/etc/botwatch/private"}, "bundle", "/etc/botwatch/private"),
    "a secret of root by its path": ({"broker__password_file": "/etc/botwatch/secret"}, "password_file", "permission"),
    "a credential that is not there": ({"broker__password_file": "credential:absent"}, "password_file", "absent"),
    "a wrong password": ({"broker__password_file": "credential:guessed"}, "broker", "[Nn]ot authori"),
}
"""Each with the keys that are wrong, the finding of `check`, and what the service says."""


@pytest.fixture
def pitfalls(gateway: Gateway) -> Iterator[None]:
    """Put files on the gateway that root can read and the service cannot; it works as before afterwards."""
    gateway.type("cp -a /etc/botwatch/bundle /etc/botwatch/private; chmod 700 /etc/botwatch/private").well()
    gateway.type("install -m 600 /root/mqtt.password /etc/botwatch/secret").well()
    gateway.type(f"echo guessed > /root/guessed; install -m 600 /root/guessed {CREDENTIALS}").well()
    gateway.type("systemctl stop edge-agent").well()
    yield
    gateway.type(f"rm -r /etc/botwatch/private /etc/botwatch/secret {CREDENTIALS}/guessed").well()
    gateway.type("systemctl stop edge-agent").well()
    gateway.restart()
    assert "WRONG" not in gateway.agent("check").well().out


@pytest.mark.usefixtures("pitfalls")
@pytest.mark.parametrize("case", WRONG)
def test_check_finds_what_keeps_the_service_from_working(gateway: Gateway, case: str) -> None:
    keys, word, reason = WRONG[case]
    with gateway.edited(**keys):
        done = gateway.agent("check")
        wrong = [line for line in done.out.splitlines() if line.startswith("WRONG")]
        assert done.status == 1
        assert [line for line in wrong if word in line], done.out
        journal = gateway.journal_since()
        gateway.type("systemctl restart --no-block edge-agent").well()
        line = gateway.wait_for_line(f"(botwatch agent: |WARNING ).*{reason}", journal)
        assert not gateway.status().get("broker", {}).get("connected")
    gateway.shown.add(f"check: {case}", wrong[0])
    gateway.shown.add("… and the service says", line)


def test_to_install_again_changes_nothing(gateway: Gateway) -> None:
    (line,) = [line for line in typed_on("gateway") if "install.sh" in line]
    before, process = gateway.config, gateway.main_pid()
    done = gateway.type(line, 120).well()
    assert "wrote" not in done.out
    assert (gateway.config, gateway.main_pid()) == (before, process)
    gateway.shown.add("the installer, a second time", "wrote nothing; the service was left alone")


def test_a_killed_agent_is_restarted_and_reports_again(gateway: Gateway) -> None:
    process, began = gateway.main_pid(), time.monotonic()
    gateway.type(f"kill -9 {process}").well()
    wait_until(lambda: gateway.main_pid() not in (0, process) and gateway.active(), 40)
    seconds = time.monotonic() - began
    gateway.wait_until_connected()
    alert = gateway.wait_for_scan()
    assert context(alert)["state"] == "new"
    gateway.shown.add(
        "kill -9", f"restarted after {seconds:.1f} s; the next scan is reported: {alert['alert']['signature']}"
    )


def test_the_service_stops_in_time_under_attack(gateway: Gateway) -> None:
    """Within two seconds as documented, and two more for what the commands around it take on a busy machine."""
    device = gateway.site.new_device()
    scanner = threading.Thread(target=gateway.site.knock, args=(1500,))
    scanner.start()
    try:
        wait_until(lambda: gateway.site.alerts_of(device), 20)
        done = gateway.type("systemctl stop edge-agent").well()
        assert scanner.is_alive()
    finally:
        scanner.join(60)
    assert done.seconds < 4
    assert gateway.type("systemctl show -P Result edge-agent").out.strip() == "success"
    assert [context(alert)["state"] for alert in gateway.site.alerts_of(device)][-1] == "end"
    gateway.type("systemctl start edge-agent").well()
    gateway.wait_until_connected()
    gateway.shown.add(
        "systemctl stop, during a scan", f"{done.seconds:.1f} s; the end of the episode is in the collector"
    )


def test_after_a_power_cut_it_starts_by_itself_and_delivers_what_waited(gateway: Gateway) -> None:
    """The broker is away, an alert waits on disk, the power fails, and at the next boot nobody is there to help."""
    gateway.site.stop_broker()
    device = gateway.site.scan()
    wait_until(lambda: gateway.status()["health"].get("outbox_depth"), 20)
    gateway.machine.cut_power()
    gateway.switch_on()
    wait_until(gateway.active, 30)
    gateway.site.restart_broker()
    gateway.wait_until_connected(90)
    wait_until(lambda: gateway.site.alerts_of(device), 30)
    gateway.shown.add("a power cut while the broker was away", "started by itself, and delivered what had waited")
    alert = gateway.wait_for_scan()
    gateway.shown.add("… and the next scan", alert["alert"]["signature"])


def test_an_interface_that_is_absent_at_boot_is_captured_when_it_appears(gateway: Gateway) -> None:
    lan, late = gateway.values.interface, "late0"
    with gateway.edited(capture__interfaces=[lan, late]):
        gateway.off()
        gateway.switch_on()
        wait_until(gateway.active, 30)
        gateway.shown.add(f"booted without {late}", gateway.wait_for_line(late))
        assert gateway.wait_for_scan()["in_iface"] == lan
        checked = gateway.agent("check")
        assert checked.status == 1
        assert any(line.startswith("WRONG") and late in line for line in checked.out.splitlines())
        journal = gateway.journal_since()
        gateway.site.unplug_device()
        gateway.site.connect_device(gateway.machine, late)
        gateway.type(f"ip link set {late} up").well()
        line = gateway.wait_for_line(late, journal)
        gateway.shown.add(f"… {late} is plugged in", line)
        alert = gateway.wait_for_scan()
        assert alert["in_iface"] == late
        gateway.shown.add("… and a scan on it", alert["alert"]["signature"])
    gateway.site.unplug_device()
    gateway.site.connect_device(gateway.machine, PORT)
    gateway.restart()
