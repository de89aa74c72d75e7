"""``foreman``: the daemon in the foreground, and its version."""

import argparse
import sys

from twisted.scripts import twistd

from foreman import __version__


def main() -> None:
    """Entry point of the console script."""
    parser = argparse.ArgumentParser(
        prog="foreman", description="A queue and a relay in front of one Ollama."
    )
    parser.add_argument("--version", action="version", version=f"foreman {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="run the daemon in the foreground; settings are FOREMAN_* variables")
    if parser.parse_args().command is None:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    # The same daemon as `twistd -n foreman`. No pidfile: a stale one would block the next start.
    sys.argv = ["twistd", "--nodaemon", "--pidfile=", "--logger=foreman.logs.stderr_observer", "foreman"]
    twistd.run()
