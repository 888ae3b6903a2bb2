"""The `botwatch` command: every role answers, shows an example, and loads nothing that it does not need."""

import json
import re
import signal
import subprocess
import sys

import pytest

from edge_agent.command import ROLES, main, usage
from edge_agent.state import State
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
        *(
            "audit",
            "base",
            "baselines",
            "compare",
            "evaluate",
            "explain",
            "extract",
            "fetch",
            "fit",
            "generate",
            "report",
        ),
        *("stream", "study", "sweep"),
    ],
    "converter": [],
    "collector": ["serve", "alerts", "gateways", "command"],
    "completion": [],
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
    assert (bare.stdout, bare.stderr) == ("", usage() + "\n")
    assert unknown.stderr == "botwatch: unknown role 'agnet': did you mean 'agent'?\n"
    assert botwatch("x").stderr == f"botwatch: unknown role 'x'; known: {', '.join(ROLES)}, --help, --version\n"


@pytest.mark.parametrize("role", [role for role, commands in COMMANDS.items() if commands])
def test_a_role_without_a_command_prints_its_help_and_it_is_a_usage_error(role, capsys):
    with pytest.raises(SystemExit) as end:
        main([role, "--help"])
    text = capsys.readouterr().out
    with pytest.raises(SystemExit) as bare:
        main([role])
    assert (end.value.code, bare.value.code) == (0, 2)
    assert capsys.readouterr() == ("", text)


MISSPELT = [
    ("agent statsu", "botwatch agent: unknown command 'statsu': did you mean 'status'?"),
    ("agent status --jsn", "botwatch agent status: unknown option '--jsn': did you mean '--json'?"),
    ("agent rows --uot f", "botwatch agent rows: unknown option '--uot': did you mean '--out'?"),
    ("agent --versoin", "botwatch agent: unknown option '--versoin': did you mean '--version'?"),
    ("agent run --interfaces=lo", "botwatch agent run: unknown option '--interfaces': did you mean '--interface'?"),
    ("agent unmute cam now", "botwatch agent unmute: unexpected argument 'now' (see `botwatch agent unmute --help`)"),
    (
        "agent rows",
        "botwatch agent rows: the following arguments are required: --out (see `botwatch agent rows --help`)",
    ),
    ("trainer evalaute", "botwatch trainer: unknown command 'evalaute': did you mean 'evaluate'?"),
    ("trainer fit x --ouf y", "botwatch trainer fit: unknown option '--ouf': did you mean '--out'?"),
    (
        "trainer extract x --schema cleen --out y",
        "botwatch trainer extract: argument --schema: unknown value 'cleen': did you mean 'clean'?",
    ),
    (
        "converter run --out x --variant int9",
        "botwatch converter: argument --variant: unknown value 'int9': did you mean 'int8'?",
    ),
    ("collector alrets", "botwatch collector: unknown command 'alrets': did you mean 'alerts'?"),
    ("collector command gw-001 mut", "botwatch collector command: unknown verb 'mut': did you mean 'mute'?"),
    (
        "collector command gw-001 mute devcie=x",
        "botwatch collector: mute: unknown key 'devcie': did you mean 'device'?",
    ),
    ("collector alerts --flolow", "botwatch collector alerts: unknown option '--flolow': did you mean '--follow'?"),
    ("completion bsh", "botwatch completion: unknown shell 'bsh': did you mean 'bash'?"),
    ("demo --ot x", "botwatch demo: unknown option '--ot': did you mean '--out'?"),
    ("traner fit", "botwatch: unknown role 'traner': did you mean 'trainer'?"),
    ("--verison", "botwatch: unknown option '--verison': did you mean '--version'?"),
    ("agent \x1b[31m", "botwatch agent: unknown command '\\x1b[31m'; known: "),
]


@pytest.mark.parametrize(("line", "says"), MISSPELT)
def test_a_misspelt_word_is_answered_with_the_nearest_one_in_one_line(line, says, capsys):
    try:
        status = main(line.split(" "))
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(says)
    assert says.endswith("known: ") or err == says + "\n"


@pytest.mark.parametrize("role", ROLES)
def test_every_role_prints_the_version(role, capsys):
    with pytest.raises(SystemExit) as end:
        main([role, "--version"])
    assert end.value.code == 0
    assert re.fullmatch(r"botwatch \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("words", [[role, *sub] for role in COMMANDS for sub in ([], *([c] for c in COMMANDS[role]))])
def test_every_help_fits_into_80_columns_and_the_names_of_values_are_in_capitals(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80, max(text.splitlines(), key=len)
    assert re.findall(r"^  --[a-z-]+ [a-z]\w+", text, re.MULTILINE) == []


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


def test_a_command_prints_what_it_did_once_and_logs_it_not_on_the_same_terminal(tmp_path):
    """Where no agent runs, the command itself is the one that logs commands."""
    State(tmp_path / "box.sqlite").close()
    done = botwatch("agent", "mute", "all", "--outbox", str(tmp_path / "box.sqlite"))
    assert done.returncode == 0
    assert done.stdout.endswith("no agent is running: this takes effect at its next start\n")
    assert done.stderr == ""
