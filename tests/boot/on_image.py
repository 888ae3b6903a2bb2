"""An image for arm64, into which the agent was installed on the desktop, replays a capture that reaches a collector.

A part of ``make test-boot``. The image is an unpacked Debian 12 or 13. Its own program is run by qemu, at the place and
by the name at which the service starts it; live capture and systemd are not tried, since qemu has neither.
"""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.arm.root import CPU, pretend
from tests.boot.gateway import Table, typed_on
from tests.boot.root import WORK, copied
from tests.boot.site import Site
from tests.broker import wait_until
from tests.conftest import Home
from tests.streams import context
from tools.debian import BOOKWORM, TRIXIE, Release, Unavailable, unpack

EMULATOR = "qemu-aarch64-static"

BROKER = """
listener 1883 127.0.0.1
allow_anonymous true
"""


class Image:
    """An unpacked root for arm64, and the folder on the desktop from which it was installed."""

    def __init__(self, release: Release, desktop: Path, site: Site) -> None:
        self.desktop, self.site, self.root, self.shown = desktop, site, WORK / f"image-{release.name}", Table()
        copied(unpack(release), self.root)
        pretend(self.root)
        emulator = shutil.which(EMULATOR)
        if emulator is None:
            raise Unavailable(f"not installed: {EMULATOR} (make test-boot installs it where apt and root can)")
        shutil.copy(emulator, self.root / "usr/bin")
        (self.root / "tmp").mkdir(exist_ok=True)

    def run(self, *words: str, timeout_s: float = 300.0) -> "subprocess.CompletedProcess[str]":
        """Run a program of the image on the server's network; what it starts itself would not run."""
        emulated = ["chroot", str(self.root), f"/usr/bin/{EMULATOR}", "-cpu", CPU, *words]
        command = ["ip", "netns", "exec", self.site.server, "timeout", "-k", "2", f"{timeout_s:g}", *emulated]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s + 10)

    def botwatch(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run `botwatch` as a shell in the image would: its first line names the interpreter."""
        program = self.root / "usr/local/bin/botwatch"
        interpreter = (self.root / os.readlink(program)[1:]).read_text().splitlines()[0].removeprefix("#!")
        return self.run(interpreter, "/usr/local/bin/botwatch", *words)


@pytest.fixture(scope="module", params=[BOOKWORM, TRIXIE], ids=lambda release: release.name)
def image(
    request: pytest.FixtureRequest, dist: Path, home: Home, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Image]:
    """The image after the documented step, with ``--root``."""
    name = f"bw{os.getpid()}{request.param.name[0]}i"
    desktop = tmp_path_factory.mktemp(name)
    with Site(desktop / "server", name, "127.0.0.1") as site:
        try:
            image = Image(request.param, desktop, site)
        except Unavailable as reason:
            pytest.fail(str(reason), pytrace=False)
        (desktop / "dist").symlink_to(dist)
        (desktop / "bundles").mkdir()
        (desktop / "bundles/home").symlink_to(home.bundle)
        (desktop / "image").symlink_to(image.root)
        (step,) = [line for line in typed_on("gateway") if "install.sh" in line]
        step = f"{step} --root image"
        done = subprocess.run(["sh", "-c", step], cwd=desktop, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        image.shown.title = f"Debian {request.param.name} for arm64, an image"
        image.shown.add(f"desktop# {step}", done.stdout.splitlines()[0])
        yield image
        print(f"\n{image.shown.text()}")
        shutil.rmtree(image.root)


def test_the_installed_program_is_the_image_s_own(image: Image) -> None:
    told = "import platform, sys, edge_agent; print(platform.machine(), sys.prefix, edge_agent.__file__)"
    done = image.run("/usr/lib/botwatch/bin/python", "-c", told)
    machine, prefix, module = done.stdout.split()
    assert (machine, prefix) == ("aarch64", "/usr/lib/botwatch")
    assert module.startswith("/usr/lib/botwatch/lib/")
    image.shown.add("/usr/lib/botwatch/bin/python", f"{machine}, {module}")


def test_a_replay_in_it_reaches_a_collector(image: Image, home: Home, attack_capture: Path) -> None:
    site = image.site
    site.start_broker(BROKER)
    site.start(
        ["botwatch", "collector", "serve", "--broker", "localhost:1883", "--db", "alerts.sqlite"], "collector.log"
    )
    wait_until(lambda: "subscribed to" in (site.folder / "collector.log").read_text(), 30)
    shutil.copy(attack_capture, image.root / "tmp/attack.pcap")
    words = ["agent", "replay", "/tmp/attack.pcap", "--config", "/etc/botwatch/agent.yaml"]
    words += ["--broker", "127.0.0.1:1883", "--wait", "60", "--outbox", "/tmp/outbox.sqlite"]
    done = image.botwatch(*words)
    assert done.returncode == 0, done.stderr
    here = site.run(f"botwatch agent replay --json {shlex.quote(str(attack_capture))} --bundle {home.bundle}").well()
    expected = [json.loads(line) for line in here.out.splitlines()]
    assert sum(context(alert)["state"] == "new" for alert in expected) == 2
    wait_until(lambda: len(site.alerts()) >= len(expected), 30)
    assert by_number(site.alerts()) == by_number(expected)
    listed = site.run("botwatch collector alerts --db alerts.sqlite").well().out.strip().splitlines()
    image.shown.add(
        f"image# botwatch {shlex.join(words)}", f"{len(expected)} alerts in the collector, those of this machine"
    )
    image.shown.add("server# botwatch collector alerts", next(line for line in listed if "scan" in line))


def by_number(alerts: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Return alerts by what names them everywhere."""
    return {(context(alert)["id"], context(alert)["seq"]): alert for alert in alerts}
