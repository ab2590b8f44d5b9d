"""The `headwater` command: runs the service, or one role of it, or talks to one."""

import argparse
import sys
from collections.abc import Callable
from importlib.metadata import version

from deploy.client.commands import add_client_commands
from deploy.maintenance import add_maintenance_commands
from shared import config

_ROLES = {
    config.UP: "origin and edges as one service on this machine",
    config.ORIGIN: "the writer: commits appends, announces them, serves ranges",
    config.EDGE: "a reader side: caches chunks, holds live readers, relays writes",
}


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="headwater",
        description="Durable Streams over HTTP: one durable writer, edges for everyone who reads.",
    )
    parser.add_argument("--version", action="version", version=f"headwater {version('headwater')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in _ROLES.items():
        role = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"Each flag has an environment variable: --data-dir is {config.PREFIX}DATA_DIR.",
        )
        config.add_flags(role, name)
        role.set_defaults(run=_role(name))
    add_client_commands(commands)
    add_maintenance_commands(commands)
    given = parser.parse_args()
    run: Callable[[argparse.Namespace], int] = given.run
    return run(given)


def _role(name: str) -> Callable[[argparse.Namespace], int]:
    # Imported only when run: a role brings half the packages along, a client command none of them.
    def run(given: argparse.Namespace) -> int:
        from shared.process import serve

        match name:
            case config.UP:
                from deploy.standalone import run as role
            case config.ORIGIN:
                from origin.app import run as role
            case _:
                from edge.app import run as role
        return serve(name, vars(given), role)

    return run


if __name__ == "__main__":
    sys.exit(main())
