"""``foreman listen``: a receiver of webhooks to try things with."""

import argparse
import os
import sys
import time
from functools import partial
from typing import Any, NoReturn

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.protocol import Factory
from twisted.internet.task import react
from twisted.web.server import Site

from foreman.cli.receiver import Receiver
from foreman.listener import CannotBindError, bind
from foreman.webhooks.signature import Verifier

SECRET_VARIABLE = "FOREMAN_WEBHOOK_SECRET"
_SILENCE_SECONDS = 60


def add_to(commands: Any) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser("listen", help="receive webhooks, verify them, and show what arrives")
    parser.add_argument("--port", type=_port, default=9000, help="default: 9000; 0 is any that is free")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; default: 127.0.0.1")
    parser.add_argument("--secret", help=f"what the webhooks are signed with; default: ${SECRET_VARIABLE}")
    parser.add_argument("--fail", type=_count, default=0, metavar="N", help="answer 500 to the first N")
    parser.add_argument(
        "--slow", type=_seconds, default=0.0, metavar="SECONDS", help="wait before each answer"
    )
    parser.add_argument("--quiet", action="store_true", help="one line for each, without its JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Receive until Ctrl-C. Exits with 2 for a secret that cannot be used, 1 when it cannot listen."""
    secret = os.environ.get(SECRET_VARIABLE, "") if arguments.secret is None else arguments.secret
    try:
        verifier = Verifier((secret,)) if secret else None
    except ValueError as why:
        _refuse(2, f"the secret cannot be used: {why}")
    Factory.noisy = False
    react(_listen, (arguments, verifier))


def _listen(reactor: Any, arguments: argparse.Namespace, verifier: Verifier | None) -> "Deferred[None]":
    say = partial(print, flush=True)
    receiver = Receiver(
        reactor, verifier, time.time, say, arguments.fail, arguments.slow, not arguments.quiet
    )
    site = Site(receiver, timeout=_SILENCE_SECONDS)
    endpoint = f"tcp:{arguments.port}:interface={quoteStringArgument(arguments.host)}"
    try:
        listener = bind(reactor, (endpoint,), site)
    except CannotBindError as why:
        _refuse(1, f"cannot listen on {arguments.host}, port {arguments.port}: {why}")
    listener.accept()
    checked = "checks signatures" if verifier else f"checks no signatures (no --secret, no {SECRET_VARIABLE})"
    say(f"foreman listen: http://{listener}/ takes webhooks, and {checked}; Ctrl-C ends it")
    reactor.addSystemEventTrigger("before", "shutdown", lambda: say(receiver.summary))
    return Deferred()  # it never fires: Ctrl-C stops the reactor


def _port(text: str) -> int:
    port = _count(text)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number from 0 to 65535")
    return port


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number such as 0 or 10")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 to 3600")
    return seconds


def _refuse(status: int, sentence: str) -> NoReturn:
    print(f"foreman listen: {sentence}", file=sys.stderr)
    raise SystemExit(status)
