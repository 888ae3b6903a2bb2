"""The `botwatch` command: finds the role and hands over. No module of a role is imported before the role is named."""

import importlib
import sys

from edge_agent.contract.cli import INTERRUPTED, OK, USAGE, prepare_output, refuse

ROLES = {
    "agent": ("edge_agent.__main__", "", "capture or replay packets, score every device, publish alerts"),
    "trainer": ("trainer.__main__", "trainer", "extract rows, generate labelled traffic, fit models"),
    "converter": ("converter.__main__", "converter", "turn a run into a bundle of quantised models"),
    "collector": ("collector.__main__", "collector", "receive, store and list alerts"),
    "demo": ("trainer.demo", "trainer,converter,collector", "the whole chain on this machine, start to finish"),
}


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
            "`botwatch ROLE --help` says what a role can do.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run one role and return its exit status: 2 on a usage error, 130 when interrupted."""
    prepare_output()
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return OK if argv else USAGE
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"botwatch {version('botwatch')}")
        return OK
    if argv[0] not in ROLES:
        return refuse("botwatch", f"unknown role {argv[0]!r}; known: {', '.join(ROLES)}")
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
