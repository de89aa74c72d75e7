"""The listening socket: bound before twistd forks, accepting only when all else is up."""

import errno
import ipaddress
from collections.abc import Sequence
from typing import Any

from attrs import define
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.python.failure import Failure


class CannotBindError(Exception):
    """The address cannot be listened on; the text says why."""


@define
class Listener:
    """A bound port that does not accept yet."""

    _port: Any  # an IListeningPort that is a FileDescriptor too, as all of Twisted's are

    def accept(self) -> None:
        """Begin to accept connections; those that came meanwhile wait in the backlog."""
        self._port.startReading()

    async def close(self) -> None:
        """Accept no more."""
        await self._port.stopListening()

    @property
    def place(self) -> tuple[str, int] | None:
        """The address and port that it is bound to; None for a Unix socket."""
        address = self._port.getHost()
        return (address.host, address.port) if isinstance(address, IPv4Address | IPv6Address) else None

    @property
    def is_loopback(self) -> bool:
        """Only this machine can connect."""
        address = self._port.getHost()
        if isinstance(address, IPv4Address | IPv6Address):
            return ipaddress.ip_address(address.host.partition("%")[0]).is_loopback
        return True  # a Unix socket

    def __str__(self) -> str:
        address = self._port.getHost()
        if isinstance(address, IPv4Address | IPv6Address):
            host = f"[{address.host}]" if ":" in address.host else address.host
            return f"{host}:{address.port}"
        return str(address)


def bind(reactor: Any, endpoints: Sequence[str], factory: IProtocolFactory) -> Listener:
    """
    Listen on the first of `endpoints` (Twisted endpoint strings) that this machine has.

    Raises CannotBindError with a few words for a person.
    """
    for last, endpoint in ((endpoint is endpoints[-1], endpoint) for endpoint in endpoints):
        results: list[IListeningPort | Failure] = []
        try:
            listening: Deferred[IListeningPort] = serverFromString(reactor, endpoint).listen(factory)
        except Exception as why:
            raise CannotBindError(f"it is no endpoint that Twisted knows: {why}") from why
        # Every listen() of Twisted's fires at once; what did not could not be waited for here.
        listening.addBoth(results.append)
        if not results:
            raise CannotBindError("it does not listen at once")
        port = results[0]
        if not isinstance(port, Failure):
            port.stopReading()  # type: ignore[attr-defined]
            return Listener(port)
        number = getattr(getattr(port.value, "socketError", None), "errno", None)
        if last or number not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise CannotBindError(_words(port.value, number))
    raise CannotBindError("no address was given")


def _words(error: BaseException | None, number: int | None) -> str:
    if number == errno.EADDRINUSE:
        return "another program listens there already"
    if number == errno.EACCES:
        return "this user may not listen there (ports below 1024 are the superuser's)"
    if number == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    return str(error.socketError) if isinstance(error, CannotListenError) else str(error)
