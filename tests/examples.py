"""`python -m tests.examples BUNDLE FOLDER`: makes docs/examples/alerts anew, by replays with a bundle.

FOLDER has the captures of a device that begins to scan and to flood, as `trainer generate --attacks
mirai.scan,gafgyt.tcp` makes them; the others are made here. The section "Examples" of docs/alerts.md is written from
them, too. tests/test_subscribe.py checks both.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edge_agent.contract.alert import ModelInfo
from edge_agent.contract.bundle import load
from edge_agent.delivery.alerts import Alerter
from tests.reference.frames import pcap
from tests.streams import context
from tests.traffic import ROUTER_MAC, S, read, spoofed, steady
from trainer.traffic.captures import generate
from trainer.traffic.plan import Plan

ALERTS = Path(__file__).parents[1] / "docs/examples/alerts"
CONFIG = 'gateway: gw-001\nsite: plant-a\nnames: {{"{mac}": doorbell}}\n'


def replayed(bundle: Path, capture: Path, config: Path) -> list[dict[str, Any]]:
    """Return the alerts of a capture, as the agent prints them."""
    words = ["replay", str(capture), "--bundle", str(bundle), "--config", str(config), "--json"]
    done = subprocess.run([sys.executable, "-m", "edge_agent", *words], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def made(bundle: Path, captures: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Return an alert of each kind by the name of its file."""
    capture = captures / "mirai.scan.pcap"
    life = read(capture)
    start, _, _ = next(frame for frame in life if frame[2][12:14] == b"\x08\x00" and frame[2][6] & 1 == 0)
    scans = [context(alert) for alert in replayed(bundle, capture, folder / "none.yaml")]
    mac = scans[0]["device"]["mac"]
    ip, sender = scans[0]["device"]["ip"], int(mac.replace(":", ""), 16)
    (folder / "agent.yaml").write_text(CONFIG.format(mac=mac))
    config = folder / "agent.yaml"

    scan = {context(alert)["state"]: alert for alert in replayed(bundle, capture, config)}
    flood = steady(spoofed(3000, ip, high=0x64000000, mac=ROUTER_MAC, to_mac=sender), start + 600 * S, 300)
    (folder / "flood.pcap").write_bytes(
        pcap([f for f in life if f[0] < start + 590 * S] + list(flood), nanoseconds=True)
    )
    victims = [a for a in replayed(bundle, folder / "flood.pcap", config) if context(a)["role"] == "victim"]

    plan = Plan(
        devices=("plug",), infected=("plug-1",), days=0, lead_minutes=75, attacks=("checkins.held:rate=0.1",), seed=31
    )
    generate(plan, folder / "quiet")
    quiet = next((folder / "quiet").rglob("*checkins*.pcap"))
    (checkin, *_) = replayed(bundle, quiet, folder / "none.yaml")

    about = load(bundle)
    model = ModelInfo(about.manifest.version, about.sha256, about.manifest.generated)
    test, _ = Alerter("gw-001", "plant-a", model, version("botwatch")).test_alerts(start, "operator, by hand")
    return {
        "new": replayed(bundle, captures / "gafgyt.tcp.pcap", config)[0],
        "unknown": scan["new"],
        "update": scan["update"],
        "end": scan["end"],
        "victim": victims[0],
        "check-in": checkin,
        "test": test.document(),
    }


ABOUT = {
    "new": "a flood of which the class is known at once",
    "unknown": "the first alert of a scan, which has no class yet",
    "update": "the same scan, which has a class by now",
    "end": "the same scan, which has ended",
    "victim": "a flood from outside against a device",
    "check-in": "quiet contacts with a server",
    "test": "sent by hand",
}
"""The files of the examples, in their order in the document."""


def section(alerts: dict[str, dict[str, Any]]) -> str:
    """Return the part of docs/alerts.md that lists the examples: its table."""
    rows = [
        f"| [{name}](examples/alerts/{name}.json) | {about} | {context(alerts[name])['state']} "
        f"| {alerts[name]['alert']['severity']} | {context(alerts[name])['explanation']} |"
        for name, about in ABOUT.items()
    ]
    head = ["| file | about | state | severity | explanation |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def main(bundle: Path, captures: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "none.yaml").write_text("gateway: gw-001\nsite: plant-a\n")
        for name, alert in made(bundle, captures, folder).items():
            ALERTS.mkdir(parents=True, exist_ok=True)
            (ALERTS / f"{name}.json").write_text(json.dumps(alert, indent=1, ensure_ascii=False) + "\n")
    document = ALERTS.parents[1] / "alerts.md"
    before, heading, rest = document.read_text().partition("### Examples\n")
    words, _, _ = rest.partition("| file |")
    _, _, after = rest.partition("\n\nAn episode is ")
    document.write_text(f"{before}{heading}{words}{section(read_all())}\nAn episode is {after}")


def read_all() -> dict[str, dict[str, Any]]:
    """Return the examples, by the names of their files."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(ALERTS.glob("*.json"))}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
