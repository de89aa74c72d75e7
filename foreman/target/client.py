"""Ollama's HTTP API as foreman itself uses it: small JSON calls over treq, each with one whole limit.

Beside the relay's route table this is the only module that knows Ollama's paths.
"""

import json
from datetime import datetime
from http.cookiejar import DefaultCookiePolicy
from typing import Annotated, TypeVar

import msgspec
from attrs import define, field, frozen
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet import error as net
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTCP, IReactorTime, IStreamClientEndpoint
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from foreman import runner_options
from foreman.errors import TargetFailed, TargetTimeout, TargetUnreachable
from foreman.target.body import Body
from foreman.target.endpoint import target_endpoint
from foreman.target.reader import Reader

BODY_LIMIT_BYTES = 16 * 1024 * 1024
"""The largest answer that is read. ``/api/tags`` of a thousand models is under 1 MiB."""

AwareDatetime = Annotated[datetime, msgspec.Meta(tz=True)]
Answer = TypeVar("Answer")


@frozen
class TagEntry:
    """One installed model of ``GET /api/tags``. ``digest``: 64 hex digits of its manifest."""

    name: str
    digest: str
    remote_host: str | None = None


@frozen
class Loaded:
    """One model in the target's memory, of ``GET /api/ps``; name and digest are those that loaded it."""

    name: str
    digest: str
    expires_at: AwareDatetime
    context_length: int = 0
    size_vram: int = 0


@frozen
class ShowFacts:
    """What decides about a reload, of ``POST /api/show``.

    :ivar weights: what ``FROM`` and ``ADAPTER`` name.
    :ivar options: the canonical text of the model's own runner options, see :mod:`foreman.runner_options`.
    :ivar capabilities: what it can do, `completion` and others; empty when the target does not say.
    """

    weights: frozenset[str]
    options: str = ""
    capabilities: frozenset[str] = frozenset()


@frozen
class _Version:
    version: str


@frozen
class _Tags:
    models: list[TagEntry] | None


@frozen
class _Ps:
    models: list[Loaded] | None


@frozen
class _Show:
    modelfile: str = ""
    parameters: str = ""
    capabilities: list[str] | None = None


@frozen
class _Embed:
    embeddings: list[list[float]] | None


@frozen
class _Done:
    done: bool


@frozen
class _Error:
    error: str


def make_http(reactor: IReactorTCP, connect_timeout: float) -> HTTPClient:
    """Make the treq client for the target: no cookies, no compression, a fresh connection for each call.

    A kept-alive connection may be stale. A GET on one is retried in silence and a POST fails although
    the target is well, so none is kept; one more connection costs nothing against what is asked.

    :param reactor: the reactor, for its connections and its clock.
    :param connect_timeout: seconds until a connection that does not come about is given up.
    """
    pool = HTTPConnectionPool(reactor, persistent=False)
    endpoints = _Endpoints(reactor, connect_timeout)
    agent = _IdentityAgent(Agent.usingEndpointFactory(reactor, endpoints, pool))
    cookies = IndexableCookieJar(DefaultCookiePolicy(allowed_domains=[]))
    return HTTPClient(agent, cookiejar=cookies, data_to_body_producer=Body)


def unreachable_reason(error: BaseException) -> str | None:
    """Say in a few words why nothing could be sent, or ``None`` when the error came after that."""
    if isinstance(error, net.ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, (net.DNSLookupError, net.UnknownHostError)):
        return "its name does not resolve"
    if isinstance(error, net.TimeoutError):
        return "no connection in time"
    if isinstance(error, net.NoRouteError):
        return "no route to its host"
    if isinstance(error, net.ConnectError) and not isinstance(error, net.ConnectBindError):
        return str(error) or "no connection"
    return None


def without_slash(url: str) -> str:
    return url.rstrip("/")


@define
class OllamaClient:
    """The target's API, one method for each thing that foreman asks of it.

    Every method may raise :class:`TargetUnreachable`, when nothing could be sent (refused, unknown host,
    no connection in time), :class:`TargetTimeout`, when the target was silent, or :class:`TargetFailed`,
    when it answered badly or broke off. Cancelling closes the connection.

    :ivar base_url: ``http(s)://host:port``, with a path prefix or without.
    :ivar token: sent as ``Authorization: Bearer``; empty for none.
    :ivar timeout_seconds: the whole limit of one call: connecting, head and body.
    :ivar load_timeout_seconds: the whole limit of a call that may load a model. A client that leaves
        during a load aborts it, so a short limit would make every later try start from nothing.
    """

    http: HTTPClient
    base_url: str = field(converter=without_slash)
    token: str = field(repr=False)
    clock: IReactorTime
    timeout_seconds: float
    load_timeout_seconds: float = 900.0

    async def version(self) -> str:
        """Return the target's version (``GET /api/version``)."""
        return (await self._call("GET", "/api/version", _Version)).version

    async def tags(self) -> list[TagEntry]:
        """Return the installed models (``GET /api/tags``)."""
        return (await self._call("GET", "/api/tags", _Tags)).models or []

    async def ps(self) -> list[Loaded]:
        """Return the loaded models (``GET /api/ps``); one whose load is not finished is not among them."""
        return (await self._call("GET", "/api/ps", _Ps)).models or []

    async def show(self, name: str) -> ShowFacts:
        """Return the facts of one model (``POST /api/show``)."""
        answer = await self._call("POST", "/api/show", _Show, {"model": name})
        options = runner_options.of_model(answer.parameters)
        return ShowFacts(_weights(answer.modelfile), options, frozenset(answer.capabilities or ()))

    async def pin(self, model: str) -> None:
        """Load an embedding model and keep it for ever (``POST /api/embed`` without input).

        ``keep_alive`` has to be a JSON number: the string ``"-1"`` is refused.
        """
        body = {"model": model, "input": [], "keep_alive": -1}
        await self._call("POST", "/api/embed", _Embed, body, self.load_timeout_seconds)

    async def unload(self, model: str) -> None:
        """Unload a model as soon as nothing uses it (``POST /api/generate`` without a prompt).

        For embedding models too: Ollama looks at ``keep_alive`` before it looks at what the model can do.
        """
        await self._call("POST", "/api/generate", _Done, {"model": model, "keep_alive": 0})

    async def load(self, model: str, options: str, limit_seconds: float) -> None:
        """Load a model, and return when it is resident (``POST /api/generate`` without a prompt).

        The runner options are those of the canonical text: with others the request that follows would load
        it again. There is no ``keep_alive``: that is the following request's to say.
        """
        body = {"model": model, **runner_options.fields(options)}
        await self._call("POST", "/api/generate", _Done, body, limit_seconds)

    async def _call(
        self, method: str, path: str, shape: type[Answer], body: object = None, limit: float | None = None
    ) -> Answer:
        seconds = self.timeout_seconds if limit is None else limit
        exchange = Deferred.fromCoroutine(self._exchange(method, path, body))
        # treq's own time limit ends with the head of the answer.
        limit_call = self.clock.callLater(seconds, exchange.cancel)
        try:
            status, content = await exchange
        except CancelledError as error:
            if limit_call.active():
                raise
            if isinstance(error.__cause__, net.ConnectingCancelledError):
                raise TargetUnreachable(self.base_url, f"no connection within {seconds:g} s") from None
            raise TargetTimeout(f"the target did not answer {method} {path} within {seconds:g} s") from None
        finally:
            if limit_call.active():
                limit_call.cancel()
        if status != 200:
            raise TargetFailed(f"the target answered {method} {path} with {status}: {said(content)}")
        try:
            return msgspec.json.decode(content, type=shape)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise TargetFailed(
                f"the target's answer to {method} {path} is not Ollama's ({error}): {said(content)}"
            ) from error

    async def _exchange(self, method: str, path: str, body: object) -> tuple[int, bytes]:
        headers = Headers({"Accept": ["application/json"]})
        if self.token:
            headers.setRawHeaders("Authorization", [f"Bearer {self.token}"])
        data = None
        if body is not None:
            headers.setRawHeaders("Content-Type", ["application/json"])
            data = json.dumps(body).encode()
        try:
            response = await self.http.request(
                method,
                self.base_url + path,
                headers=headers,
                data=data,
                allow_redirects=False,
                unbuffered=True,
            )
            return response.code, await read_body(response, BODY_LIMIT_BYTES)
        except TargetFailed:
            raise
        except Exception as error:
            if was_cancelled(error):
                raise CancelledError() from error
            reason = unreachable_reason(error)
            if reason is not None:
                raise TargetUnreachable(self.base_url, reason) from error
            raise TargetFailed(f"the target broke off {method} {path}: {cause(error)}") from error


def read_body(response: IResponse, limit_bytes: int) -> Deferred[bytes]:
    """Read a whole response body.

    Cancelling the Deferred closes the connection, which cancelling ``treq.content`` does not.

    :raises TargetFailed: the body is longer than the limit; its connection is closed.
    """
    collector = _Collector(limit_bytes)
    response.deliverBody(collector)
    return collector.finished


class _Collector(Reader[bytes]):
    """Gathers a body up to a limit."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__()
        self.limit_bytes = limit_bytes
        self.pieces: list[bytes] = []
        self.size_bytes = 0

    def take(self, data: bytes) -> None:
        self.size_bytes += len(data)
        if self.size_bytes > self.limit_bytes:
            limit = f"the target's answer is larger than the {self.limit_bytes} bytes that are read"
            raise TargetFailed(limit)
        self.pieces.append(data)

    def result(self) -> bytes:
        return b"".join(self.pieces)


@implementer(IAgentEndpointFactory)
@frozen
class _Endpoints:
    """Connects as the relay does, so that a question that is cut while it connects ends as cancelled."""

    reactor: IReactorTCP
    connect_timeout: float

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        return target_endpoint(self.reactor, uri.toBytes().decode("ascii"), self.connect_timeout)


@implementer(IAgent)
@frozen
class _IdentityAgent:
    """Asks for the plain bytes, whatever treq's own decoder put into ``Accept-Encoding``."""

    agent: Agent

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        plain = Headers() if headers is None else headers.copy()
        plain.setRawHeaders(b"Accept-Encoding", [b"identity"])
        return self.agent.request(method, uri, plain, bodyProducer)


def _weights(modelfile: str) -> frozenset[str]:
    """Return the ``FROM`` and ``ADAPTER`` arguments of a modelfile.

    Ollama writes them before every other command, so reading stops there: a template or a licence may
    hold a line that only looks like a ``FROM``.
    """
    found = set()
    for line in modelfile.splitlines():
        command, _, argument = line.strip().partition(" ")
        if not command or command.startswith("#"):
            continue
        if command not in ("FROM", "ADAPTER"):
            break
        if argument.strip():
            found.add(argument.strip())
    return frozenset(found)


def said(content: bytes) -> str:
    """Return what an answer says: Ollama's error text, or the beginning of anything else."""
    try:
        return msgspec.json.decode(content, type=_Error).error
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return repr(content[:80].decode("utf-8", "replace"))


def _reasons(error: BaseException) -> list[Failure]:
    """Return the failures that twisted.web packs into a ResponseFailed and its like."""
    return list(getattr(error, "reasons", ()))


def was_cancelled(error: BaseException) -> bool:
    # Before the head of the answer a cancelled request ends as ResponseNeverReceived([CancelledError]).
    if isinstance(error, (CancelledError, net.ConnectingCancelledError)):
        return True
    return any(reason.check(CancelledError, net.ConnectingCancelledError) for reason in _reasons(error))


def cause(error: BaseException) -> str:
    reasons = _reasons(error)
    inner = reasons[-1].value if reasons else error
    return str(inner) or type(inner).__name__
