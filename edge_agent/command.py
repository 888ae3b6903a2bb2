"""The `botwatch` command: finds the role and hands over. No module of a role is imported before the role is named."""

import importlib
import sys

from edge_agent.contract.cli import INTERRUPTED, USAGE, note, prepare_output, print_text, refuse, unknown, version_line

ROLES = {
    "agent": ("edge_agent.__main__", "", "capture or replay packets, score every device, publish alerts"),
    "trainer": ("trainer.__main__", "trainer", "extract rows, generate labelled traffic, fit models"),
    "converter": ("converter.__main__", "converter", "turn a run into a bundle of quantised models"),
    "collector": ("collector.__main__", "collector", "receive, store and list alerts"),
    "completion": ("edge_agent.completion", "", "print what lets a shell complete this command"),
    "demo": ("trainer.demo", "trainer,converter,collector", "the whole chain on this machine, start to finish"),
}
KNOWN = (*ROLES, "--help", "--version")


def usage() -> str:
    """Return the help text of the bare command."""
    lines = [f"  {role:<10} {does}" for role, (_, _, does) in ROLES.items()]
    return "\n".join(
        [
            "usage: botwatch ROLE ...",
            "",
            "IoT botnet detection on the gateway.",
            "",
            *lines,
            "",
            "example: botwatch agent replay capture.pcap --bundle bundles/home",
            "`botwatch ROLE --help` shows what a role can do, `botwatch --version` the version.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run one role and return its exit status: 2 on a usage error, 130 when interrupted."""
    prepare_output()
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        if argv:
            return print_text("botwatch", usage())
        note(usage())
        return USAGE
    if argv[0] == "--version":
        return print_text("botwatch", version_line())
    if argv[0] not in ROLES:
        return refuse("botwatch", unknown("option" if argv[0].startswith("-") else "role", argv[0], KNOWN))
    module, extras, _ = ROLES[argv[0]]
    try:
        role = importlib.import_module(module)
        return int(role.main(argv[1:]))
    except KeyboardInterrupt:
        return INTERRUPTED
    except ModuleNotFoundError as error:
        if not extras or (error.name or "").split(".")[0] in ("edge_agent", "trainer", "converter", "collector"):
            raise
        return refuse(f"botwatch {argv[0]}", f"{error.name} is not installed; install botwatch[{extras}]")


if __name__ == "__main__":
    sys.exit(main())
