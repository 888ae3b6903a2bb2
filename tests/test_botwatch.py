"""The `botwatch` command: every role answers, shows an example, and loads nothing that it does not need."""

import json
import re
import signal
import subprocess
import sys

import pytest

from edge_agent.command import ROLES, main, usage
from tests.broker import wait_until

COMMANDS = {
    "agent": [
        "run",
        "check",
        "replay",
        "evidence",
        "rows",
        "status",
        "allow",
        "test-alert",
        "support",
        "unallow",
        "mute",
        "unmute",
        "learn",
    ],
    "trainer": [
        *("audit", "baselines", "compare", "evaluate", "explain", "extract", "fetch", "fit", "generate", "report"),
        *("stream", "study", "sweep"),
    ],
    "converter": [],
    "collector": ["serve", "alerts", "command"],
    "demo": [],
}
HEAVY = ("tensorflow", "keras", "polars", "numpy", "ai_edge_litert", "paho", "sqlalchemy", "rich", "scapy")


def botwatch(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edge_agent.command", *words], capture_output=True, text=True)


def test_every_role_is_listed_with_its_description():
    assert set(COMMANDS) == set(ROLES)
    for role, (_, _, description) in ROLES.items():
        assert re.search(rf"^  {role} +{re.escape(description)}$", usage(), re.MULTILINE)


@pytest.mark.parametrize("words", [[role, *sub] for role in COMMANDS for sub in ([], *([c] for c in COMMANDS[role]))])
def test_every_help_has_an_example_of_itself(words, capsys):
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    example = re.search(r"example:\s+(botwatch .*)", text)
    assert example
    assert example[1].split()[: len(words) + 1] == ["botwatch", *words]
    for sub in COMMANDS[words[0]] if len(words) == 1 else []:
        assert re.search(rf"\n    {sub}\s", text)


def test_every_sub_command_is_among_those_tested(capsys):
    for role, commands in COMMANDS.items():
        with pytest.raises(SystemExit):
            main([role, "--help"])
        listed = re.findall(r"^    ([a-z-]+)(?:  |$)", capsys.readouterr().out, re.MULTILINE)
        assert sorted(listed) == sorted(commands), role


@pytest.mark.parametrize("words", [["agent"], ["agent", "replay"], ["--version"]])
def test_the_agents_help_is_quick_since_it_loads_nothing_heavy(words):
    """The bound is 0.3 s of CPU. On a busy machine no clock can test that; that no costly module is imported can be."""
    words = words if words[0].startswith("--") else [*words, "--help"]
    program = f"""
import json, sys
from edge_agent.command import main
try:
    main({words!r})
except SystemExit:
    pass
print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == []


def test_without_a_role_or_with_an_unknown_one_it_lists_the_roles():
    bare, unknown = botwatch(), botwatch("agnet", "replay")
    assert (bare.returncode, unknown.returncode) == (2, 2)
    assert "botwatch ROLE --help" in bare.stdout
    assert unknown.stderr == f"botwatch: unknown role 'agnet'; known: {', '.join(ROLES)}\n"


def test_its_help_for_the_agent_is_that_of_the_package():
    assert botwatch("agent", "--help").stdout == (
        subprocess.run([sys.executable, "-m", "edge_agent", "--help"], capture_output=True, text=True).stdout
    )


def test_the_version_is_that_of_the_distribution():
    assert re.fullmatch(r"botwatch \d+\.\d+\.\d+\n", botwatch("--version").stdout)


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["collector", "alerts", "--db", "x.sqlite"], "sqlalchemy"),
        (["trainer", "extract", "x.pcap", "--out", "x.parquet"], "polars"),
        (["converter", "run", "--out", "bundle"], "polars"),
    ],
)
def test_a_role_that_is_not_installed_names_the_extra_to_install(words, missing, tmp_path):
    """As on a gateway, where only the agent's dependencies are installed."""
    (tmp_path / "run").mkdir()
    program = f"""
import sys
sys.modules[{missing!r}] = None
from edge_agent.command import main
sys.exit(main({words!r}))
"""
    end = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert (end.returncode, end.stdout) == (2, "")
    assert end.stderr.startswith(f"botwatch {words[0]}: {missing} is not installed; install botwatch[")


def test_interrupted_a_role_ends_without_a_traceback(tmp_path):
    words = ["trainer", "generate", "--out", str(tmp_path / "captures"), "--days", "30"]
    with subprocess.Popen([sys.executable, "-m", "edge_agent.command", *words], stderr=subprocess.PIPE) as process:
        wait_until(lambda: any((tmp_path / "captures").rglob("*.pcap*")))
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert b"Traceback" not in errors
