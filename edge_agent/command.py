"""The `botwatch` command: finds the role and hands over. Nothing of a role is imported before it is asked for."""

import importlib
import sys

ROLES = {
    "agent": ("edge_agent.__main__", "", "capture or replay packets, score every device, publish alerts"),
    "trainer": ("trainer.__main__", "trainer", "extract rows, generate labelled traffic, fit models"),
    "converter": ("converter.__main__", "converter", "turn a run into a bundle of quantised models"),
    "collector": ("collector.__main__", "collector", "receive, store and list alerts"),
    "demo": ("trainer.demo", "trainer,converter,collector", "the whole chain on this machine, start to finish"),
}


def usage() -> str:
    """The help text of the bare command."""
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
    """Run one role; 2 on a wrong command line, 130 when interrupted (128 + SIGINT, as shells count)."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"botwatch {version('botwatch')}")
        return 0
    if argv[0] not in ROLES:
        print(f"botwatch: unknown role {argv[0]!r}; known: {', '.join(ROLES)}", file=sys.stderr)
        return 2
    module, extras, _ = ROLES[argv[0]]
    try:
        role = importlib.import_module(module)
        return int(role.main(argv[1:]))
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        if not extras or (error.name or "").split(".")[0] in ("edge_agent", "trainer", "converter", "collector"):
            raise
        print(
            f"botwatch {argv[0]}: {error.name} is not installed; install botwatch[{extras}]",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
