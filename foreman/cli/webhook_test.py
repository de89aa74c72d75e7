"""``foreman webhook-test``: one signed event to a URL, and the whole story of it."""

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, NoReturn
from urllib.parse import urlsplit

from attrs import frozen
from twisted.internet.protocol import Factory
from twisted.internet.task import react
from ulid import ULID

from foreman.cli.receiver import visible
from foreman.settings import Settings, SettingsError, load
from foreman.urls import check_url, place
from foreman.webhooks.body import announcement
from foreman.webhooks.connector import Connector
from foreman.webhooks.guard import Forbidden, Guard
from foreman.webhooks.request import headers
from foreman.webhooks.resolver import Resolver, look_up_threads
from foreman.webhooks.sender import Outcome, Sender
from foreman.webhooks.signature import Signer
from foreman.webhooks.tls import Trust, read_ca

PING = "ping"
_SHOWN_LETTERS = 200


def add_to(commands: Any) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "webhook-test", help="send one event `ping` to a URL, with the daemon's settings, and tell the story"
    )
    parser.add_argument("url", metavar="URL")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Exits with 0 for a 2xx, 1 for anything else, 2 for a URL or settings that cannot be used."""
    try:
        url = check_url(arguments.url)
        settings = load(os.environ)
    except SettingsError as wrong:
        _refuse(*wrong.complaints.values())
    except ValueError as why:
        _refuse(f"the URL cannot be used: {why}")
    try:
        trust = Trust(read_ca(settings.webhook_ca))
    except ValueError as why:
        _refuse(f"FOREMAN_WEBHOOK_CA is {settings.webhook_ca!r}: {why}.")
    Factory.noisy = False
    react(_send, (settings, trust, url))


async def _send(reactor: Any, settings: Settings, trust: Trust, url: str) -> None:
    _say("URL", url)
    resolver = Resolver(look_up_threads(reactor, 1))
    # Of the embedded target nothing is known here: the daemon's child has any port that was free.
    guard = Guard(settings.webhook_allow, place(settings.ollama_url), resolver)
    guard.own = _own(settings.addr[0])
    try:
        guard.check(url)
    except ValueError as why:
        _say("guard", f"refused: {why}")
        raise SystemExit(1) from None
    connector = Connector(reactor, resolver, _Witness(guard), settings.webhook_connect_timeout, trust)
    sender = Sender(reactor, connector, settings.webhook_timeout)
    event_id, now = str(ULID()), time.time()
    body = announcement(event_id, PING, now, {"message": "foreman webhook-test sent this"})
    signer = Signer((settings.webhook_secret, settings.webhook_secret_previous))
    sent = headers(signer, event_id, PING, 1, int(now), body)
    signed = "signed" if settings.webhook_secret else "not signed: FOREMAN_WEBHOOK_SECRET is not set"
    _say("event", f"{PING} {event_id}, {len(body)} bytes, {signed}")
    outcome = await sender.send(url, sent, body)
    await sender.close()
    _tell(url, outcome)
    raise SystemExit(0 if outcome.status is not None and 200 <= outcome.status < 300 else 1)


@frozen
class _Witness:
    """The guard, and a line about what it was asked and what it said."""

    _guard: Guard

    async def judge(self, host: str, port: int, addresses: Sequence[str]) -> None:
        """At connect time, as in the daemon."""
        _say("addresses", f"{', '.join(addresses)}, port {port}")
        try:
            await self._guard.judge(host, port, addresses)
        except Forbidden as why:
            _say("guard", f"refused: {why}")
            raise
        _say("guard", "allowed")


def _tell(url: str, outcome: Outcome) -> None:
    if outcome.address is not None:
        _say("sent to", outcome.address)
        _say("TLS", outcome.tls or ("none" if urlsplit(url).scheme == "http" else "not agreed on"))
    _say("result", f"{outcome.error + ': ' if outcome.error else ''}{outcome.detail}")
    _say("time", f"{outcome.duration_ms} ms")
    first_line = outcome.response.decode("utf-8", "replace").partition("\n")[0].rstrip("\r")
    if first_line:
        _say("it says", first_line[:_SHOWN_LETTERS])


def _own(endpoint: str) -> tuple[str, int] | None:
    """Where the daemon listens; None when its endpoint does not tell, as ``systemd:…``."""
    kind, *parts = re.split(r"(?<!\\):", endpoint)
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    port = named.get("port") or (parts[0] if parts else "")
    host = named.get("interface", "").replace(r"\:", ":") or "0.0.0.0"
    try:
        return (str(ip_address(host)), int(port)) if kind in ("tcp", "tcp6", "ssl") else None
    except ValueError:
        return None


def _say(what: str, text: str) -> None:
    print(f"{what:<10} {visible(text)}", flush=True)


def _refuse(*sentences: str) -> NoReturn:
    for sentence in sentences:
        print(f"foreman webhook-test: {sentence}", file=sys.stderr)
    raise SystemExit(2)
