"""Make the script by which bash completes botwatch's command lines, from the parsers of all roles.

`python -m tests.completion` writes edge_agent/completion.bash; a test fails while that is out of date.
"""

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path

from edge_agent.command import KNOWN, ROLES
from edge_agent.contract.alert import CLASSES
from edge_agent.contract.alert import KINDS as KIND_WORDS
from edge_agent.contract.cli import prepare_output
from edge_agent.contract.commands import VERBS
from trainer.__main__ import MODULES

SCRIPT = Path(__file__).parents[1] / "edge_agent" / "completion.bash"

KINDS = {
    "DIR": "dir",
    "RUN": "dir",
    "BUNDLE": "dir",
    "KEY=VALUE": "pair",
    "CLASS": " ".join(CLASSES),
    "KIND": " ".join(KIND_WORDS),
}
"""The kind of a value by the metavar of its argument; else it is one by its type, its name or its choices."""

FUNCTIONS = r"""
# Completes as $kind says: nothing, the names of files, folders or interfaces, the keys of the command $verb, or words.
_botwatch_complete() {
    case $kind in
        '') COMPREPLY=() ;;
        file) mapfile -t COMPREPLY < <(compgen -f -- "$cur"); compopt -o filenames 2> /dev/null ;;
        dir) mapfile -t COMPREPLY < <(compgen -d -- "$cur"); compopt -o filenames 2> /dev/null ;;
        interface) mapfile -t COMPREPLY < <(cd /sys/class/net 2> /dev/null && compgen -f -- "$cur") ;;
        pair)
            _botwatch_keys "$verb"
            mapfile -t COMPREPLY < <(compgen -W "$kind" -- "$cur")
            compopt -o nospace 2> /dev/null ;;
        *) mapfile -t COMPREPLY < <(compgen -W "$kind" -- "$cur") ;;
    esac
}

_botwatch() {
    local cur=${COMP_WORDS[COMP_CWORD]} path='' verb='' kind='' words='' option='' word i=0 place=0
    local last=${COMP_WORDS[COMP_CWORD - 1]}
    while ((++i < COMP_CWORD)); do
        word=${COMP_WORDS[i]}
        if [[ $word == [:=] ]]; then  # bash takes a word apart here: what follows belongs to what came before
            ((i + 1 < COMP_CWORD)) && ((++i))
            [[ $word == '=' && $i -lt $COMP_CWORD && ${COMP_WORDS[i]} != '=' ]] && option=''
        elif [[ $option ]]; then
            option=''
        elif [[ $word == -* ]]; then
            _botwatch_option "$path" "$word" && option=$word
        elif _botwatch_node "$path $word"; then
            path="$path $word" place=0
        else
            _botwatch_keys "$word" && verb=$word
            ((++place))
        fi
    done
    if [[ $cur == [:=] ]]; then
        cur=''
    fi
    kind=''
    if [[ $option ]]; then
        _botwatch_option "$path" "$option"
    elif [[ $cur == -* ]]; then
        _botwatch_node "$path"
        kind=$words
    elif [[ ${COMP_WORDS[COMP_CWORD]} != [:=] && $last != [:=] ]]; then
        _botwatch_place "$path" "$place"
    fi
    _botwatch_complete
}

complete -F _botwatch botwatch
"""


def nodes() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield each role and each command of one, as its words with a space before each, and its parser."""
    prepare_output()
    for role, (module, _, _) in ROLES.items():
        made = importlib.import_module(module).parser
        top = made(*MODULES) if role == "trainer" else made()
        yield f" {role}", top
        for action in top._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, command in action.choices.items():
                    yield f" {role} {name}", command


def kind(action: argparse.Action) -> str:
    """Return how a value of an argument is completed."""
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if action.choices is not None:
        return " ".join(str(choice) for choice in action.choices)
    if action.dest == "interface":
        return "interface"
    return KINDS.get(metavar) or ("file" if action.type is Path or metavar in ("FILE", "CONFIG") else "")


def cases(name: str, about: str, lines: list[str]) -> str:
    """Return a bash function that finds its arguments among cases, and fails if they are not there."""
    return "\n".join(
        [f"# {about}", f"{name}() {{", "    case $1${2+ $2} in", *lines, "        *) return 1 ;;", "    esac", "}"]
    )


def script() -> str:
    """Return the script."""
    names, values, places = [f"        '') words='{' '.join(KNOWN[-2:])}' ;;"], [], []
    places.append(f"        ' 0') kind='{' '.join(ROLES)}' ;;")
    for path, parser in nodes():
        options = [action for action in parser._actions if action.option_strings]
        words = sorted(word for action in options for word in action.option_strings if word.startswith("--"))
        names.append(f"        '{path}') words='{' '.join(words)}' ;;")
        for action in options:
            if action.nargs != 0:
                spelt = "|".join(f"'{path} {word}'" for word in action.option_strings)
                values.append(f"        {spelt}) kind='{kind(action)}' ;;")
        for place, action in enumerate(a for a in parser._actions if not a.option_strings):
            more = "*" if action.nargs in ("*", "+") else place
            spelt = f"'{path} '*" if more == "*" else f"'{path} {place}'"
            places.append(f"        {spelt}) kind='{kind(action)}' ;;")
    keys = []
    for verb, grammar in VERBS.items():
        words = [f"{argument.word or key}=" for key, argument in grammar.arguments.items()]
        keys.append(f"        '{verb}') kind='{' '.join(words)}' ;;")
    parts = [
        "# bash completion of botwatch, made by `python -m tests.completion`; `botwatch completion bash` prints it.",
        cases("_botwatch_node", "Sets $words to the options of a command; fails if there is no such command.", names),
        cases("_botwatch_option", "Sets $kind to what the value of an option is; fails if it has none.", values),
        cases("_botwatch_place", "Sets $kind to what an argument without an option is, by its place.", places),
        cases("_botwatch_keys", "Sets $kind to the keys of a command to a gateway; fails if there is none.", keys),
    ]
    return "\n\n".join(parts) + "\n" + FUNCTIONS


if __name__ == "__main__":
    SCRIPT.write_text(script())
