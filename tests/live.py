"""A live agent and its broker on the gateway of a `Wire`, for tests: processes as on a small site."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.broker import Mosquitto, wait_until
from tests.conftest import Home
from tests.netns import ROOT, Wire
from tests.streams import context

LISTEN = """
import sys
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
out = None
def write(c, d, m):
    out.write(m.topic.rsplit("/", 1)[1] + " " + m.payload.decode() + "\\n"); out.flush()
def subscribed(*_):
    global out
    out = open(sys.argv[2], "w")
client = mqtt.Client(CallbackAPIVersion.VERSION2)
client.on_connect = lambda c, *_: c.subscribe("botwatch/#", 1)
client.on_subscribe, client.on_message = subscribed, write
client.reconnect_delay_set(0.1, 0.1)
client.connect_async("127.0.0.1", int(sys.argv[1]))
client.loop_forever(retry_first_connection=True)
"""
"""A program that writes each message of the broker on a port to a file: the topic's last word and the payload.

The file is there as soon as the program has subscribed, and begins anew when it subscribes again.
"""


@contextmanager
def agent(
    wire: Wire,
    home: Home,
    folder: Path,
    *words: str,
    config: str = "",
    ready: Callable[[], bool] | None = None,
    under: Sequence[str] = (),
) -> Iterator["subprocess.Popen[str]"]:
    """`botwatch agent run` on the gateway's port, capturing; SIGTERM ends it, which must succeed soon.

    ``ready`` tells that it has started where its log cannot be read. It may run ``under`` another program that becomes
    it.
    """
    file = folder / "agent.yaml"
    text = (
        f"gateway: gw-001\ncapture: {{interfaces: [{wire.port}]}}\nevidence: {{path: {folder / 'evidence'}}}\n{config}"
    )
    file.write_text(text)
    command = [*under, sys.executable, "-m", "edge_agent.command", "agent", "run", "--config", str(file)]
    out, err = (folder / "out").open("w"), (folder / "err").open("w")
    with out, err:
        process = wire.on_gateway(*command, "--bundle", str(home.bundle), *words, stdout=out, stderr=err)
    try:
        # Its packet sockets are open when it prints this: whatever is sent from now on waits for it.
        ready = ready or (lambda: "capturing on" in (folder / "err").read_text())
        wait_until(lambda: ready() or process.poll() is not None, 60)
        assert process.poll() is None, (folder / "err").read_text()
        yield process
        process.send_signal(signal.SIGTERM)
        stopped_at = time.monotonic()
        assert process.wait(10) == 0, (folder / "err").read_text()
        assert time.monotonic() - stopped_at < 4  # two seconds on a machine that does nothing else
    finally:
        process.kill()
        process.wait()


def alerts(folder: Path) -> list[dict[str, Any]]:
    """Return the alerts that the `agent` in ``folder`` has printed."""
    return [json.loads(line) for line in (folder / "out").read_text().splitlines(keepends=True) if line[-1] == "\n"]


def state(alert: dict[str, Any]) -> str:
    """Return new, update or end."""
    return str(context(alert)["state"])


def status(folder: Path) -> dict[str, Any]:
    """Return what `botwatch agent status` prints about the `agent` in ``folder``, which must have an outbox."""
    command = [sys.executable, "-m", "edge_agent.command", "agent", "status", "--json"]
    config = ["--config", str(folder / "agent.yaml")]
    done = subprocess.run([*command, *config], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


class GatewayMosquitto(Mosquitto):
    """mosquitto in a network namespace."""

    def __init__(self, folder: Path, space: str) -> None:
        super().__init__(folder)
        self._space = space

    def command(self) -> list[str]:
        return ["ip", "netns", "exec", self._space, *super().command()]

    def listens(self, pid: int) -> bool:
        return f"0100007F:{self.port:04X} 00000000:0000 0A" in Path(f"/proc/{pid}/net/tcp").read_text()


class Heard:
    """The messages that somebody who runs `LISTEN` has written to a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, leaf: str) -> list[dict[str, Any]]:
        """Return the messages so far on the topics that end in ``leaf``."""
        lines = (line.split(" ", 1) for line in self.file.read_text().splitlines(keepends=True) if line[-1] == "\n")
        return [json.loads(payload) for name, payload in lines if name == leaf]


@contextmanager
def listening(wire: Wire, port: int, file: Path) -> Iterator[Heard]:
    """A subscriber on the gateway that writes all messages to ``file``; it has subscribed when the block begins.

    It subscribes again when the broker was restarted; the messages before are forgotten then.
    """
    process = wire.on_gateway(sys.executable, "-c", LISTEN, str(port), str(file), cwd=ROOT)
    try:
        wait_until(file.exists, 30)
        yield Heard(file)
    finally:
        process.kill()
        process.wait(10)


@contextmanager
def broker(wire: Wire, folder: Path) -> Iterator[tuple[str, Callable[[str], list[dict[str, Any]]]]]:
    """A broker on the gateway; yields an agent's configuration for it, and a function: leaf -> messages so far."""
    with (
        GatewayMosquitto(folder / "broker", wire.gateway) as made,
        listening(wire, made.port, folder / "heard") as heard,
    ):
        outbox = f"outbox: {{path: {folder / 'box.sqlite'}}}\n"
        yield f"{outbox}broker: {{host: 127.0.0.1, port: {made.port}}}\n", heard
