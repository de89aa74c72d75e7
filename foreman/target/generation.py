"""One long answer of the target, passed on as it comes: a streamed generation, or an embedding.

Each request has a connection of its own (see `make_http`), so that whoever cancels it closes nobody else's.
"""

from collections.abc import Callable

from attrs import define, field
from treq.client import HTTPClient
from twisted.internet import error as net
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from foreman.errors import (
    ExecutionTimeout,
    ForemanError,
    TargetFailed,
    TargetRefused,
    TargetUnreachable,
)
from foreman.target.client import cause, read_body, said, unreachable_reason, was_cancelled, without_slash
from foreman.target.reader import Reader
from foreman.target.task import Grant
from foreman.target.watch import RunLimits, Watch

_REFUSAL_BYTES = 64 * 1024


def _ran_too_long(limit: str) -> ExecutionTimeout:
    return ExecutionTimeout(
        f"the job was cut after {limit}, the limit of its timeout or of FOREMAN_RUN_TIMEOUT"
    )


def streamed(body: bytes) -> bytes:
    """A JSON object with `"stream": true`, its other bytes as they were.

    It goes in as the last key: Go's decoder, Ollama's, matches keys in any case and the last one wins
    [tried], so a `stream` of the body's own counts no more.
    """
    end = body.rindex(b"}")
    comma = b"" if body[:end].rstrip().endswith(b"{") else b","
    return body[:end] + comma + b'"stream":true' + body[end:]


@define(eq=False)
class Generator:
    """Sends requests whose answers may take long.

    :ivar base_url: ``http(s)://host:port``, with a path prefix or without.
    :ivar token: sent as ``Authorization: Bearer``; empty for none.
    """

    http: HTTPClient
    base_url: str = field(converter=without_slash)
    token: str = field(repr=False)
    clock: IReactorTime
    _running: "set[_Run]" = field(factory=set, init=False)

    async def run(
        self,
        path: str,
        body: bytes,
        receive: Callable[[bytes], None],
        limits: RunLimits,
        grant: Grant | None = None,
    ) -> None:
        """Post `body`, and give each piece of a 200's body to `receive` as it comes; return at its end.

        Cancelling closes the target's connection. So does an error that `receive` raises, which is raised.

        :raises TargetUnreachable: nothing could be sent.
        :raises TargetRefused: another status than 200.
        :raises TargetTimeout: a limit passed; :class:`ExecutionTimeout` for that of the whole run.
        :raises TargetFailed: the target broke off.
        """
        run = _Run(self, path, body, receive, limits, grant)
        self._running.add(run)
        try:
            await run.to_its_end()
        finally:
            self._running.discard(run)

    def stalled(self) -> bool:
        """Whether a request is past half of its limit to begin or of silence, and so seems to be stuck."""
        return any(run.watch.stalled() for run in self._running)


@define(eq=False)
class _Run:
    """One request, its limits, and how far it is."""

    generator: Generator
    path: str
    body: bytes
    receive: Callable[[bytes], None]
    limits: RunLimits
    grant: Grant | None
    watch: Watch = field(init=False)
    exchange: "Deferred[None]" = field(init=False)
    passed: ForemanError | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.watch = Watch(self.generator.clock, self.limits, _ran_too_long, self._give_up)

    async def to_its_end(self) -> None:
        # Before the request goes out: some clients answer, or fail, at once.
        self.watch.start(self.grant is not None and self.grant.settling)
        self.exchange = Deferred.fromCoroutine(self._exchange())
        try:
            await self.exchange
        except CancelledError as error:
            connecting = isinstance(error.__cause__, net.ConnectingCancelledError)
            if self.passed is not None and connecting:
                raise TargetUnreachable(self.generator.base_url, "no connection in time") from None
            if self.grant is not None and not connecting:
                self.grant.abort()
            if self.passed is not None:
                raise self.passed from None
            raise
        finally:
            self.watch.stop()

    def _give_up(self, error: ForemanError) -> None:
        self.passed = error
        self.exchange.cancel()

    async def _exchange(self) -> None:
        generator = self.generator
        headers = Headers({"Content-Type": ["application/json"]})
        if generator.token:
            headers.setRawHeaders("Authorization", [f"Bearer {generator.token}"])
        try:
            response = await generator.http.request(
                "POST",
                generator.base_url + self.path,
                headers=headers,
                data=self.body,
                allow_redirects=False,
                unbuffered=True,
            )
            if response.code != 200:
                raise TargetRefused(response.code, said(await self._refusal(response)))
            self._begin()
            await self._deliver(response)
        except ForemanError:
            raise
        except Exception as error:
            if was_cancelled(error):
                raise CancelledError() from error
            reason = unreachable_reason(error)
            if reason is not None:
                raise TargetUnreachable(generator.base_url, reason) from error
            if isinstance(error, _ReceiverError):
                raise error.error from None
            raise TargetFailed(f"the target broke off {self.path}: {cause(error)}") from error

    async def _refusal(self, response: IResponse) -> bytes:
        """What a refusal says. The status decides, so one that is too long or breaks off says nothing."""
        try:
            return await read_body(response, _REFUSAL_BYTES)
        except CancelledError:
            raise
        except Exception:
            return b""

    def _begin(self) -> None:
        """A good answer's head came. A refusal's says nothing about what is loaded."""
        self.watch.begin()
        if self.grant is not None:
            self.grant.first_byte()

    def _deliver(self, response: IResponse) -> "Deferred[None]":
        stream = _Stream(self._received)
        response.deliverBody(stream)
        return stream.finished

    def _received(self, data: bytes) -> None:
        self.watch.active()
        self.receive(data)


class _ReceiverError(Exception):
    """The receiver raised `error`: apart from what the connection raises."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Stream(Reader[None]):
    """Passes a body on as it comes."""

    def __init__(self, receive: Callable[[bytes], None]) -> None:
        super().__init__()
        self.receive = receive

    def take(self, data: bytes) -> None:
        try:
            self.receive(data)
        except Exception as error:
            raise _ReceiverError(error) from None

    def result(self) -> None:
        return None
