"""How the target is connected to."""

from typing import Any
from urllib.parse import urlsplit

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS
from zope.interface import implementer


def target_endpoint(reactor: Any, url: str, connect_timeout: float) -> IStreamClientEndpoint:
    """
    Where `url` (http or https) is; a connection may take `connect_timeout` seconds.
    """
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host = parts.hostname or ""
    endpoint = HostnameEndpoint(reactor, host, parts.port or (443 if secure else 80), timeout=connect_timeout)
    return _Cancellable(wrapClientTLS(optionsForClientTLS(host), endpoint) if secure else endpoint)


@implementer(IStreamClientEndpoint)
@frozen
class _Cancellable:
    """
    An endpoint whose connecting, when it is cancelled, ends as cancelled.

    A HostnameEndpoint ends with DNSLookupError while it resolves, and with ConnectingCancelledError later
    [tried]: a client that leaves in this moment would look like a target that cannot be found.
    """

    _endpoint: IStreamClientEndpoint

    def connect(self, factory: IProtocolFactory) -> "Deferred[Any]":
        """As the endpoint itself."""

        def cancel(outcome: "Deferred[Any]") -> None:
            outcome.errback(CancelledError())
            connecting.cancel()

        outcome: Deferred[Any] = Deferred(cancel)
        connecting = self._endpoint.connect(factory)
        connecting.addBoth(lambda result: None if outcome.called else outcome.callback(result))
        return outcome
