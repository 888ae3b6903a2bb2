"""The documents hold: their commands run, links lead somewhere, and what they name (keys, ids, files) exists."""

import argparse
import ast
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import yaml

from collector.config import CollectorConfig
from collector.store import AlertStore, Arrival, GatewayDocument
from edge_agent.command import ROLES
from edge_agent.command import main as botwatch
from edge_agent.config import LIVE, AgentConfig
from edge_agent.contract import settings
from edge_agent.contract.alert import CLASSES
from edge_agent.contract.captures import CaptureManifest
from edge_agent.contract.messages import Status
from tests.broker import MOSQUITTO, needs_clients, needs_mosquitto, wait_until
from tests.conftest import Home
from tests.netns import MAC, Wire, laid
from tests.traffic import scan, steady
from trainer.config import Config as TrainerConfig

ROOT = Path(__file__).parents[1]
GUIDES = tuple(sorted((ROOT / "docs").glob("*.md")))
DOCUMENTS = (ROOT / "README.md", *GUIDES)
REASONS = ("hardware", "foreign network", "more than two minutes")
ROLES_READ = {"agent.yaml": AgentConfig, "collector.yaml": CollectorConfig, "trainer.yaml": TrainerConfig}


# --- reading Markdown ---


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: its language, its text, and what a comment above it says.

    That is the reason why its commands are not run, or the machine on which `make test-boot` types them: the desktop,
    the gateway or the server. The commands of a block for `make test-boot` *only* are not run here.
    """

    document: str
    language: str
    text: str
    not_run: str
    typed_on: str
    elsewhere: bool

    def commands(self) -> list[str]:
        """The commands of a shell block, without the comments behind them."""
        lines = [line.partition("  #")[0].strip() for line in self.text.splitlines()]
        return [line for line in lines if line and not line.startswith("#")] if self.language == "sh" else []


FENCE = re.compile(
    r"(?:<!-- (?:not run: (?P<why>[^\n]+?)|(?P<only>only )?make test-boot: on the (?P<machine>\w+)) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


def blocks(document: Path) -> list[Block]:
    return [
        Block(
            document=document.name,
            language=m["language"],
            text=m["text"],
            not_run=m["why"] or "",
            typed_on=m["machine"] or "",
            elsewhere=bool(m["only"]),
        )
        for m in FENCE.finditer(document.read_text())
    ]


def prose(document: Path) -> str:
    """A document without its fenced blocks."""
    return FENCE.sub("", document.read_text())


def spans(document: Path) -> list[str]:
    """The texts in backticks outside of fenced blocks, each on one line."""
    return [" ".join(text.replace("\\|", "|").split()) for text in re.findall(r"`([^`]+)`", prose(document))]


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tables(text: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Each table's rows, the header first, and the text between it and the table or heading above it."""
    above: list[str] = []
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
            continue
        if rows:
            yield "\n".join(above), [row for row in rows if not all(re.fullmatch(":?-+:?", cell) for cell in row)]
            above, rows = [], []
        above = [] if line.startswith("#") else [*above, line]


# --- what the documents name ---


def test_the_readme_is_a_front_door():
    """A reader knows within a page whether botwatch is for them; everything else is in docs/."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_a_heading(document):
    for target in re.findall(r"\[[^\]]+\]\(([^)\s]+)\)", prose(document)):
        assert not target.startswith("http"), "an address that this test cannot look up"
        name, _, anchor = target.partition("#")
        there = (document.parent / name) if name else document
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_of_the_tree_that_is_named_is_there(document):
    tops = ("edge_agent", "trainer", "converter", "collector", "configs", "systemd", "tests", "docs")
    for span in spans(document):
        if re.fullmatch(rf"(?:{'|'.join(tops)})/[\w./-]+", span):
            assert (ROOT / span).exists(), span


def test_the_table_of_modules_names_every_module_there_is_and_no_other():
    (rows,) = [rows for _, rows in tables(prose(ROOT / "docs/architecture.md")) if rows[0][0] == "folder"]
    described = {row[0].strip("`"): row[1].split() for row in rows[1:]}
    names = ("edge_agent", "trainer", "converter", "collector")
    there = {path.parent for name in names for path in (ROOT / name).rglob("*.py")}
    for folder in there:
        modules = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("__"))
        assert described[str(folder.relative_to(ROOT))] == modules


def test_every_guide_is_linked_from_the_readme():
    text = (ROOT / "README.md").read_text()
    for guide in GUIDES:
        assert f"(docs/{guide.name})" in text


SUFFIXES = ("tflite", "sqlite", "yaml")


def keys() -> set[str]:
    """Every section and key of the three configurations, as section.key."""
    known = set()
    for role in ROLES_READ.values():
        for field in fields(role):
            known.add(field.name)
            inner = getattr(field.type, "__dataclass_fields__", None) or {}
            known |= {f"{field.name}.{key}" for key in inner}
    return known


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_configuration_key_that_is_named_exists(document):
    known = keys()
    assert {"capture.interfaces", "decision.method", "retention.days"} <= known
    sections = {key.partition(".")[0] for key in known if "." in key}
    for span in spans(document):
        section, _, key = (name := span.partition(":")[0]).partition(".")
        if section in sections and re.fullmatch("[a-z_]+", key) and key not in SUFFIXES:
            assert name in known, span


def test_the_keys_that_a_reload_takes_up_are_those_of_the_agent():
    (rows,) = [rows for above, rows in tables(prose(ROOT / "docs/gateway.md")) if "Only these keys" in above]
    assert {key for row in rows[1:] for key in re.findall("`([^`]+)`", row[0])} == set(LIVE)


def test_the_table_of_signatures_is_that_of_the_contract():
    (rows,) = [rows for _, rows in tables(prose(ROOT / "docs/alerts.md")) if rows[0][0] == "signature_id"]
    known = [["9001000", "(any, with `test`)", "TEST", "3"]]
    known += [[f"{c.signature_id}", f"`{key}`", c.title, f"{c.severity}"] for key, c in CLASSES.items()]
    assert rows[1:] == sorted(known)


def test_every_field_of_the_record_is_described_and_every_one_described_exists():
    schema = yaml.safe_load((ROOT / "edge_agent/contract/alert.schema.json").read_text())
    ours = set(schema["properties"]["alert"]["properties"]["context"]["properties"]["botwatch"]["properties"])
    described = [rows for _, rows in tables(prose(ROOT / "docs/alerts.md")) if rows[0][0] == "field"]
    eve, own = ({key for row in rows[1:] for key in re.findall("`([^`]+)`", row[0])} for rows in described)
    assert own == ours
    top = {key.partition(".")[0] for key in eve}
    assert set(schema["properties"]) <= top
    assert {f"alert.{key}" for key in schema["properties"]["alert"]["properties"]} - {"alert.context"} <= eve


COMMAND = re.compile(r"(?:BOTWATCH_LONG=1 )?(?:botwatch|make|python -m) ")


def test_every_table_of_figures_names_its_command():
    for document, which in ((ROOT / "docs/measured.md", "above"), (ROOT / "README.md", "beside")):
        for above, rows in tables(prose(document)):
            if which == "above":
                said = [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", above)]
                assert any(COMMAND.match(span) for span in said), rows[0]
            elif rows[0][-1] == "command":
                assert len(rows) == 11
                assert all(COMMAND.match(row[-1].strip("`")) for row in rows[1:])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_of_settings_is_one_that_is_read(document):
    for block in blocks(document):
        assert block.language in ("sh", "yaml", "text"), "a block says what it is"
        if block.language == "yaml":
            tree = yaml.safe_load(block.text)
            kinds = {"captures": CaptureManifest, "data": TrainerConfig, "broker": CollectorConfig}
            settings.build(next(kind for key, kind in kinds.items() if key in tree), tree, document.name)


# --- commands that are named: each is one that would be taken ---


class Taken(Exception):
    """The parser has accepted the arguments."""


@pytest.fixture
def taken(monkeypatch, capsys):
    """A function: the reason why a command line is refused, "" if it is accepted or only lacks required arguments."""
    parse = argparse.ArgumentParser.parse_args

    def stop(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise Taken

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)

    def why(words: list[str]) -> str:
        capsys.readouterr()
        try:
            status = botwatch(words)
        except Taken:
            return ""
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr().err
        return "" if status == 0 or "the following arguments are required" in said else said or f"status {status}"

    return why


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_that_is_named_is_one_there_is(document, taken):
    targets = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    lines = [line for block in blocks(document) for line in block.commands()]
    alerts = tuple(f"botwatch {kind.title}" for kind in CLASSES.values())
    named = [span for span in spans(document) if not span.endswith("…") and not span.startswith(alerts)]
    for span in (*named, *lines):
        words = shlex.split(span.removeprefix("BOTWATCH_LONG=1 "))
        first = Path(words[0]).name
        if first == "botwatch" and words[1:]:
            assert taken([word for word in words[1:] if word != "&"]) == "", span
        elif first in ROLES and words[1:] and re.fullmatch("[a-z-]+", words[1]) and first != "demo":
            assert taken([word for word in words if word != "…"]) == "", span
        elif first == "make" and words[1:]:
            assert set(words[1:]) <= set(targets), span
        elif words[:2] == ["python", "-m"]:
            names_files(words[2:], span)


def names_files(words: list[str], span: str) -> None:
    """The module is one of ours, with these options, or pytest is given files of ours."""
    if words[0] == "pytest":
        assert all((ROOT / word).exists() for word in words[1:] if not word.startswith("-")), span
        return
    path = ROOT / Path(*words[0].split("."))
    module = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    assert module.is_file(), span
    options = {node.value for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Constant)}
    assert {word for word in words[1:] if word.startswith("--")} <= options, span


ROLE_TABLES = {"docs/models.md": "trainer"}


@pytest.mark.parametrize("name", ROLE_TABLES)
def test_every_sub_command_in_a_table_of_them_is_one_there_is(name, taken):
    """The head of such a table is `botwatch ROLE …`, and its first column continues from there."""
    head = f"`botwatch {ROLE_TABLES[name]} …`"
    (rows,) = [rows for _, rows in tables(prose(ROOT / name)) if rows[0][0] == head]
    for row in rows[1:]:
        assert taken([ROLE_TABLES[name], *shlex.split(row[0].strip("`"))]) == "", row[0]


# --- commands that are run ---


def test_commands_that_no_test_runs_are_few_and_have_a_reason():
    run, left = [], []
    for document in DOCUMENTS:
        for block in blocks(document):
            (left if block.not_run else run).extend(block.commands())
            assert not block.not_run or block.not_run.startswith(REASONS), block.not_run
            assert not block.commands() or block.not_run or document.name in (*AT_THE_GATEWAY, "models.md")
    assert len(left) * 6 <= len(left) + len(run), left


AT_THE_GATEWAY = ("gateway.md", "detection.md", "alerts.md", "control.md", "subscribe.md")

MAY_END = {
    "botwatch agent check": (0, 1),  # 1: it has found something, here that the veth pair merges frames
    "botwatch agent rows": (0, 1),  # 1: no device has been learnt yet
    "botwatch trainer evaluate": (0, 1),  # 1: an attack was missed
    "botwatch collector command gw-001,gw-002": (1,),  # one of them is not there
}
"""Exit statuses that the documents describe, by a part of the command; all other commands must end with 0."""

UNTIL_STOPPED = {
    "botwatch collector serve": "subscribed to",
    "--follow": "TEST",
    "alerts.sh": "waiting for alerts",
    "alerts.py": "subscribed: Granted",
    "eve.sh": "appending to",
    "eve.py": "appending to",
    "contain.py": "waiting for alerts",
}
"""Commands that run until they are stopped, and what they have written when they do their work."""


def statuses(line: str) -> tuple[int, ...]:
    return next((may for command, may in MAY_END.items() if command in line), (0,))


AGENT = """
gateway: gw-001
bundle: {home.bundle}
names: {{"02:00:5e:10:00:01": cam-entrance}}
capture: {{interfaces: [{wire.port}]}}
site: plant-a
alerts: {{end_s: 300.0}}
learning: {{export: true}}
outbox: {{path: {folder}/botwatch-agent.sqlite}}
evidence: {{path: {folder}/evidence, seconds: 0.5}}
"""


class Site:
    """A gateway in a namespace of its own: broker and agent run, and a device behind it has scanned."""

    def __init__(self, folder: Path, wire: Wire, home: Home, capture: Path) -> None:
        self.folder, self._wire, self._home, self.alert = folder, wire, home, ""
        for name in ("configs", "systemd", "docs"):
            (folder / name).symlink_to(ROOT / name)
        for name in ("bin", "etc", "etc/credentials", "bundles"):
            (folder / name).mkdir()
        for name in ("mqtt.password", "ca.crt"):
            (folder / name).touch()
        (folder / "bundles/home").symlink_to(home.bundle)
        (folder / "capture.pcap").symlink_to(capture)
        (folder / "etc/agent.yaml").write_text(AGENT.format(home=home, wire=wire, folder=folder))
        (folder / "operator.yaml").write_text("{}\n")
        store = AlertStore(str(folder / "alerts.sqlite"))
        text, now_ns = json.dumps({"site": "plant-a", "counters": {}}), time.time_ns()
        store.save([Arrival(("gw-001", Status("online", "b", "0.1.0", now_ns)), now_ns)])
        store.save([Arrival(GatewayDocument("gw-001", "health", now_ns, json.loads(text)), now_ns, text)])
        store.close()
        (folder / "mosquitto.conf").write_text("listener 1883 127.0.0.1\nallow_anonymous true\n")
        command = folder / "bin/botwatch"
        command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m edge_agent.command "$@"\n')
        command.chmod(0o755)
        (folder / "bin/python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (folder / "bin/python3").chmod(0o755)

    def start(self, line: str, log: str) -> "subprocess.Popen[str]":
        """A command on the gateway, in a session of its own; its output goes into a file."""
        line = line.replace("/etc/botwatch/", "etc/").replace("ALERT-ID", self.alert)
        with (self.folder / log).open("w") as output:
            return self._wire.on_gateway(
                *("sh", "-c", f"PATH={self.folder}/bin:/usr/sbin:$PATH; cd {self.folder}; {line}"),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def attack(self) -> None:
        """A device scans until the agent has alerted."""
        self._wire.send(steady(scan(1500, "192.168.1.57", mac=MAC), 0, 1000), self.folder, 1000)
        log = self.folder / "agent.log"
        wait_until(lambda: re.search(r'"id":"([0-9a-f-]{36})"', log.read_text()), 30)
        self.alert = re.search(r'"id":"([0-9a-f-]{36})"', log.read_text())[1]


@pytest.fixture(scope="module")
def site(home: Home, attack_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with laid() as wire, ExitStack() as stack:
        site = Site(folder, wire, home, attack_capture)
        for line, ready in ((f"{MOSQUITTO} -c mosquitto.conf", "running"), (RUN, "capturing on")):
            name = "agent" if line == RUN else "broker"
            process = site.start(f"exec {line}", f"{name}.log")
            stack.callback(stop, process)
            wait_until(lambda log=folder / f"{name}.log", word=ready: word in log.read_text(), 30)
        site.attack()
        yield site


RUN = "botwatch agent run --config /etc/botwatch/agent.yaml"


def stop(process: "subprocess.Popen[str]") -> int:
    """End a command that runs until it is stopped, with all processes of a pipeline; its exit status."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        return process.wait(20)
    finally:
        process.kill()


@needs_mosquitto
@needs_clients
@pytest.mark.parametrize("name", AT_THE_GATEWAY)
def test_the_commands_of_a_document_for_the_gateway_run_in_its_order(name, site):
    waiting = []
    try:
        commands = [
            line
            for block in blocks(ROOT / "docs" / name)
            if not block.not_run and not block.elsewhere
            for line in block.commands()
        ]
        for number, line in enumerate(commands, 1):
            log = f"{name}.{number}.log"
            if ready := next((ready for word, ready in UNTIL_STOPPED.items() if word in line), None):
                waiting.append((line, site.start(f"exec {line}", log)))
                wait_until(lambda path=site.folder / log, ready=ready: ready in path.read_text(), 30)
                continue
            process = site.start(line, log)
            assert process.wait(60) in statuses(line), f"{line}\n{(site.folder / log).read_text()}"
    finally:
        ends = [(line, stop(process)) for line, process in waiting]
    assert [line for line, status in ends if status and not ("|" in line and status == -signal.SIGINT)] == []


def test_the_commands_for_models_run_in_their_order(tmp_path, monkeypatch, capsys):
    """In this process, since TensorFlow takes its seconds to load."""
    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / "docs/models.md"):
        name = block.text.splitlines()[0].removeprefix("# ")
        if block.language == "yaml" and name.endswith(".yaml"):
            Path(name).write_text(block.text)
        for line in [] if block.not_run else block.commands():
            role, *words = shlex.split(line)[1:]
            module, _, _ = ROLES[role]
            status = importlib.import_module(module).main(words)
            assert status in statuses(line), f"{line}\n{capsys.readouterr().err}"
    shutil.rmtree(tmp_path)
