"""``foreman serve``: the daemon in the foreground."""

import argparse
import sys
from typing import Any

from twisted.scripts import twistd


def add_to(commands: Any) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "serve", help="run the daemon in the foreground; settings are FOREMAN_* variables"
    )
    parser.set_defaults(run=run)


def run(_arguments: argparse.Namespace) -> None:
    """The same daemon as ``twistd -n foreman``."""
    # No pidfile: a stale one would block the next start.
    sys.argv = ["twistd", "--nodaemon", "--pidfile=", "--logger=foreman.logs.stderr_observer", "foreman"]
    twistd.run()
