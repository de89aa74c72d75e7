"""``foreman``: its commands, each in a module of its own."""

import argparse
import sys

from foreman import __version__
from foreman.cli import listen, secret, serve, webhook_test

COMMANDS = (serve, secret, listen, webhook_test)


def main() -> None:
    """Entry point of the console script."""
    parser = argparse.ArgumentParser(
        prog="foreman", description="A queue and a relay in front of one Ollama."
    )
    parser.add_argument("--version", action="version", version=f"foreman {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    arguments = parser.parse_args()
    if "run" not in arguments:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    arguments.run(arguments)
