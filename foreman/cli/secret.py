"""``foreman secret``: a new secret for the signatures of webhooks."""

import argparse
from typing import Any

from foreman.secret import new_secret


def add_to(commands: Any) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser("secret", help="print a new secret for FOREMAN_WEBHOOK_SECRET")
    parser.set_defaults(run=run)


def run(_arguments: argparse.Namespace) -> None:
    """One line, and nothing is kept."""
    print(new_secret())
