"""Completion of botwatch's command lines, asked of a real bash, which gets no other help than the script."""

import shutil
import subprocess
from pathlib import Path

import pytest

from edge_agent.command import ROLES, main
from edge_agent.contract.commands import VERBS
from tests.completion import SCRIPT, script

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="bash is not installed")

ASK = r"""
source "$1"
line=$2
read -ra COMP_WORDS <<< "${line//[:=]/ & }"
[[ $line == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$line COMP_POINT=${#line}
how=$(complete -p botwatch)
[[ $how =~ -F\ ([^ ]+) ]] && "${BASH_REMATCH[1]}" botwatch "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""
"""Takes a line apart as bash does, at spaces, ":" and "=", and calls the function that completes botwatch."""


def completed(line: str, folder: Path = SCRIPT.parent) -> set[str]:
    command = [str(BASH), "--norc", "-c", ASK, "ask", str(SCRIPT), line]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={"PATH": "/nowhere"}, check=True)
    assert done.stderr == ""
    return set(done.stdout.split("\n")) - {""}


def test_the_script_is_made_from_the_parsers_there_are():
    """`python -m tests.completion` makes it anew."""
    assert SCRIPT.read_text() == script()


def test_botwatch_prints_it(capsys):
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == SCRIPT.read_text()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("botwatch ", set(ROLES)),
        ("botwatch c", {"collector", "converter", "completion"}),
        ("botwatch --", {"--help", "--version"}),
        ("botwatch agent st", {"status"}),
        ("botwatch agent un", {"unallow", "unmute"}),
        ("botwatch agent status --j", {"--json"}),
        ("botwatch agent mute cam --re", {"--reason", "--replace"}),
        ("botwatch agent allow --class gafgyt.s", {"gafgyt.scan"}),
        ("botwatch agent allow --kind ch", {"check-in"}),
        ("botwatch agent check --interface lo", {"lo"}),
        ("botwatch agent run --broker localhost:1883 --no", {"--no-broker"}),
        ("botwatch agent run --broker ", set()),
        ("botwatch trainer ev", {"evaluate"}),
        ("botwatch trainer extract x.pcap --schema ", {"clean", "compat"}),
        ("botwatch trainer extract --schema=co", {"compat"}),
        ("botwatch converter --variant fl", {"float32", "float16"}),
        ("botwatch collector command ", set()),
        ("botwatch collector command gw-001 ", set(VERBS)),
        ("botwatch collector command gw-001 un", {"unallow", "unmute"}),
        ("botwatch collector command gw-001 unmute ", {"entry=", "device="}),
        ("botwatch collector command gw-001 mute device=cam f", {"for="}),
        ("botwatch collector command gw-001 mute device=", set()),
        ("botwatch collector command --timeout 3 gw-001 unm", {"unmute"}),
        ("botwatch completion ", {"bash"}),
        ("botwatch nonsense ", set()),
    ],
)
def test_words_are_completed_by_their_place(line, words):
    assert completed(line) == words


def test_files_and_folders_are_completed_where_one_is_wanted(tmp_path):
    (tmp_path / "bundle one").mkdir()
    (tmp_path / "bundle.yaml").write_text("")
    assert completed("botwatch agent check --bundle bun", tmp_path) == {"bundle one"}
    both = {"bundle one", "bundle.yaml"}
    assert completed("botwatch agent check --config bun", tmp_path) == both
    assert completed("botwatch agent check --config=bun", tmp_path) == both
    assert completed("botwatch agent replay bun", tmp_path) == both
    assert completed("botwatch agent replay bundle.yaml bun", tmp_path) == both
    assert completed("botwatch converter bun", tmp_path) == {"bundle one"}
    assert completed("botwatch agent status bun", tmp_path) == set()
