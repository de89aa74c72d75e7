"""The guard: which URLs and which addresses a webhook may go to."""

import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from attrs import define, field
from twisted.internet.defer import CancelledError

from foreman.allow import Allow, host_name
from foreman.urls import check_url, place
from foreman.webhooks.addresses import LOCAL, NEVER, Address, Kind, kind, literal, plain


class Forbidden(Exception):
    """No webhook goes there; ``str()`` is the sentence that says why."""


def is_local(address: Address) -> bool:
    """Whether this machine has the address: nothing else can be bound to, and nothing is sent."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


@define(eq=False)
class Guard:
    """
    `target` is the target's host and port, `resolve` gives the addresses of a name. `own` is the address and
    port that foreman listens on, None for a Unix socket; it is known when it is bound.
    """

    _allow: Allow
    _target: tuple[str, int]
    _resolve: Callable[[str], Awaitable[Sequence[str]]]
    _is_local: Callable[[Address], bool] = is_local
    own: tuple[str, int] | None = field(default=None, init=False)
    _target_known: tuple[Address, ...] = field(default=(), init=False)

    def check(self, url: str) -> None:
        """
        At submission: judge the URL and the address that it spells. Names are judged at each attempt.

        Raises ValueError with what is allowed, or why foreman does not send there.
        """
        host, port = place(check_url(url))
        if "[" in urlsplit(url).netloc and ":" not in host:
            raise ValueError(f"{host} is not an address")
        address = literal(host)
        if address is None:
            if (host_name(host), port) == (host_name(self._target[0]), self._target[1]):
                raise ValueError(f"{host}:{port} is the target: foreman never sends webhooks there")
            return
        why = self._why_not(host, address, port)
        target = _literal_or_none(self._target[0])
        if why is None and target is not None and port == self._target[1]:
            why = self._why_not_target(address, [target])
        if why is not None:
            raise ValueError(_sentence(host, "is", address, why))

    async def judge(self, host: str, port: int, addresses: Sequence[str]) -> None:
        """
        At an attempt: judge all addresses that a host resolved to. Raises Forbidden if one of them is.
        """
        if port == 0:
            raise Forbidden(f"{host}: nobody listens on port 0")
        found = [ip_address(address.partition("%")[0]) for address in addresses]
        target: Sequence[Address] = ()
        if port == self._target[1]:
            target = await self._target_addresses()
        for address in found:
            why = self._why_not(host, address, port) or self._why_not_target(address, target)
            if why is not None:
                raise Forbidden(_sentence(host, "resolves to", address, why))

    def _why_not(self, host: str, address: Address, port: int) -> str | None:
        what = kind(address)
        if what in NEVER:
            return f"{what.value}: foreman never sends webhooks there"
        if self._is_own(address, port):
            return f"where foreman itself listens on port {port}: foreman never sends webhooks there"
        if self._is_allowed(host, address, what):
            return None
        return f"{what.value}, which FOREMAN_WEBHOOK_ALLOW does not allow"

    def _is_allowed(self, host: str, address: Address, what: Kind) -> bool:
        allow = self._allow
        if (allow.public and what is Kind.PUBLIC) or (allow.local and what in LOCAL):
            return True
        if host_name(host) in allow.names:
            return True
        # `::/0` in the list must not let in, by another spelling, IPv4 addresses that are not in it.
        one = plain(address)
        return any(one in network for network in allow.networks if one.version == network.version)

    def _is_own(self, address: Address, port: int) -> bool:
        if self.own is None or port != self.own[1]:
            return False
        own = plain(ip_address(self.own[0].partition("%")[0]))
        if own.is_unspecified:
            return self._is_local(plain(address))
        return plain(address) == own

    def _why_not_target(self, address: Address, target: Sequence[Address]) -> str | None:
        """`target` holds the target's addresses when the port is the target's."""
        here = plain(address)
        same = any(plain(one) == here for one in target)
        # An Ollama that is reached over loopback may listen on every address of this machine.
        if same or (any(self._is_local(plain(one)) for one in target) and self._is_local(here)):
            return "where the target listens on this port: foreman never sends webhooks there"
        return None

    async def _target_addresses(self) -> Sequence[Address]:
        host = self._target[0]
        spelled = _literal_or_none(host)
        if spelled is not None:
            return [spelled]
        try:
            found = await self._resolve(host)
        except CancelledError:
            raise
        except Exception:
            found = ()
        # A target that sleeps may have no address now. It must not stop the webhook that says so, and is
        # still where it was last.
        if found:
            self._target_known = tuple(ip_address(address.partition("%")[0]) for address in found)
        return self._target_known


def _sentence(host: str, verb: str, address: Address, why: str) -> str:
    return f"{host} is {why}" if str(address) == host else f"{host} {verb} {address}, {why}"


def _literal_or_none(host: str) -> Address | None:
    try:
        return literal(host)
    except ValueError:
        return None
