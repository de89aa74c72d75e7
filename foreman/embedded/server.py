"""The HTTP side: a small part of Ollama's routes, answered in Ollama's own words."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from attrs import define, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request as HttpRequest
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from foreman.embedded import facts
from foreman.embedded.asks import Ask, Options, read_chat, read_embed, read_generate, read_options
from foreman.embedded.engine import Engine, EngineError, Finish
from foreman.embedded.models import EmbeddedModel, canonical
from foreman.embedded.slot import Slot
from foreman.embedded.wire import OllamaError, decode, encode, nanoseconds, rfc3339

# The Ollama whose answers were the model for these.
VERSION = "0.24.0"

PLAIN = b"text/plain"
PLAIN_UTF8 = b"text/plain; charset=utf-8"
JSON = b"application/json; charset=utf-8"
NDJSON = b"application/x-ndjson"

# Ollama's own least; with 1 llama.cpp aborts the process.
SMALLEST_NUM_CTX = 4

# How many loads there were since the start, on /api/ps: a test bench counts swaps instead of guessing them.
LOADS_HEADER = b"X-Embedded-Loads"

log = Logger()


@frozen
class Dialect:
    """How one of the two generating routes puts a text."""

    read: Callable[[bytes], Ask]
    text: Callable[[str], dict[str, Any]]


CHAT = Dialect(read_chat, lambda text: {"message": {"role": "assistant", "content": text}})
GENERATE = Dialect(read_generate, lambda text: {"response": text})


@define(eq=False)
class EmbeddedServer:
    """Answers Ollama's routes with the models given, on one engine."""

    _clock: IReactorTime
    _models: Mapping[str, EmbeddedModel]
    _engine: Engine
    _slot: Slot

    def site(self) -> Site:
        """A factory for a listening port. No idle limit, as in Ollama: foreman keeps its connections."""
        site = _QuietSite(_Root(self), timeout=None, parsePOSTFormSubmission=False)
        site.displayTracebacks = False
        return site

    async def alive(self, request: Request) -> None:
        """GET /"""
        _reply(request, 200, PLAIN_UTF8, b"Ollama is running")

    async def version(self, request: Request) -> None:
        """GET /api/version"""
        _reply_json(request, 200, {"version": VERSION})

    async def tags(self, request: Request) -> None:
        """GET /api/tags"""
        _reply_json(request, 200, facts.tags(dict(self._models)))

    async def ps(self, request: Request) -> None:
        """GET /api/ps"""
        request.setHeader(LOADS_HEADER, b"%d" % self._slot.loads)
        _reply_json(request, 200, facts.loaded(self._slot))

    async def show(self, request: Request) -> None:
        """POST /api/show"""
        fields = decode(_body(request))
        name = fields.get("model") or fields.get("name") or ""
        if not isinstance(name, str) or not name:
            raise OllamaError(400, "model is required")
        _reply_json(request, 200, facts.show(self._model(name)))

    async def chat(self, request: Request) -> None:
        """POST /api/chat"""
        ask = read_chat(_body(request))
        if not ask.model:
            raise OllamaError(400, "model is required")
        await self._generate(request, ask, CHAT)

    async def generate(self, request: Request) -> None:
        """POST /api/generate"""
        await self._generate(request, read_generate(_body(request)), GENERATE)

    async def embed(self, request: Request) -> None:
        """POST /api/embed"""
        ask = read_embed(_body(request))
        model = self._models.get(canonical(ask.model))
        if model is None:
            missing = (
                f'model "{ask.model}" not found, try pulling it first' if ask.model else "model '' not found"
            )
            raise OllamaError(404, missing)
        options = read_options(ask)
        answer: dict[str, Any] = {"model": ask.model, "embeddings": []}
        async with self._slot.use(model, _num_ctx(model, options), ask.keep_alive) as began:
            load_seconds = self._clock.seconds() - began
            if ask.inputs:
                embedded = await self._engine.embed(ask.inputs)
                answer |= {
                    "embeddings": embedded.vectors,
                    "total_duration": nanoseconds(self._clock.seconds() - began),
                    "load_duration": nanoseconds(load_seconds),
                    "prompt_eval_count": embedded.prompt_tokens,
                }
        _reply_json(request, 200, answer)

    async def _generate(self, request: Request, ask: Ask, dialect: Dialect) -> None:
        model = self._model(ask.model)
        _check_abilities(ask, model)
        if ask.empty and ask.keep_alive == 0:
            self._slot.expire(model)
            _reply_json(request, 200, self._line(ask, dialect, "", done_reason="unload"))
            return
        options = read_options(ask)
        async with self._slot.use(model, _num_ctx(model, options), ask.keep_alive) as began:
            if ask.empty:
                _reply_json(request, 200, self._line(ask, dialect, "", done_reason="load"))
                return
            load_seconds = self._clock.seconds() - began
            pieces: list[str] = []

            def on_text(text: str) -> None:
                if ask.stream:
                    _stream(request, self._line(ask, dialect, text))
                else:
                    pieces.append(text)

            finish = await self._run(ask, options, on_text)
            last = self._line(ask, dialect, "".join(pieces), done_reason=finish.reason) | {
                "total_duration": nanoseconds(self._clock.seconds() - began),
                "load_duration": nanoseconds(load_seconds),
                "prompt_eval_count": finish.prompt_tokens,
                "prompt_eval_duration": nanoseconds(finish.prompt_seconds),
                "eval_count": finish.tokens,
                "eval_duration": nanoseconds(finish.seconds),
            }
            if ask.stream:
                _stream(request, last)
                request.finish()
            else:
                _reply_json(request, 200, last)

    def _run(self, ask: Ask, options: Options, on_text: Callable[[str], None]) -> Deferred[Finish]:
        if ask.messages is not None:
            return self._engine.chat(ask.messages, options.sampling, on_text)
        return self._engine.complete(ask.prompt or "", options.sampling, on_text)

    def _model(self, name: str) -> EmbeddedModel:
        try:
            return self._models[canonical(name)]
        except KeyError:
            raise OllamaError(404, f"model '{name}' not found") from None

    def _line(self, ask: Ask, dialect: Dialect, text: str, done_reason: str | None = None) -> dict[str, Any]:
        created_at = rfc3339(datetime.fromtimestamp(self._clock.seconds(), UTC))
        line = {
            "model": ask.model,
            "created_at": created_at,
            **dialect.text(text),
            "done": done_reason is not None,
        }
        return line if done_reason is None else line | {"done_reason": done_reason}


Handler = Callable[[EmbeddedServer, Request], Awaitable[None]]

READS = (b"HEAD", b"GET")

ROUTES: dict[bytes, tuple[tuple[bytes, ...], Handler]] = {
    b"/": (READS, EmbeddedServer.alive),
    b"/api/version": (READS, EmbeddedServer.version),
    b"/api/tags": (READS, EmbeddedServer.tags),
    b"/api/ps": ((b"GET",), EmbeddedServer.ps),
    b"/api/show": ((b"POST",), EmbeddedServer.show),
    b"/api/chat": ((b"POST",), EmbeddedServer.chat),
    b"/api/generate": ((b"POST",), EmbeddedServer.generate),
    b"/api/embed": ((b"POST",), EmbeddedServer.embed),
}


class _QuietSite(Site):
    """Leaves the access log to `_note`, whose lines are shorter."""

    noisy = False

    def log(self, request: HttpRequest) -> None:
        """Nothing."""


class _Root(Resource):
    """Finds the route, and ties the work to the client's connection."""

    def __init__(self, server: EmbeddedServer) -> None:
        super().__init__()
        self.isLeaf = True
        self._server = server

    def render(self, request: Request) -> int:
        request.responseHeaders.removeHeader(b"Server")
        methods, handler = ROUTES.get(request.path, ((), None))
        if handler is None:
            _reply(request, 404, PLAIN, b"404 page not found")
        elif request.method not in methods:
            request.setHeader(b"Allow", b", ".join(methods))
            _reply(request, 405, PLAIN, b"405 method not allowed")
        else:
            self._serve(request, handler)
        return NOT_DONE_YET

    def _serve(self, request: Request, handler: Handler) -> None:
        async def answer() -> None:
            await handler(self._server, request)

        working = Deferred.fromCoroutine(answer())
        # The client that leaves takes its work with it: out of the queue, or stopped at the next token.
        request.notifyFinish().addErrback(lambda _: working.cancel())
        working.addErrback(_refuse, request)
        working.addErrback(lambda failure: log.failure("cannot answer {path}", failure, path=request.path))
        working.addCallback(_note, request)


def _refuse(failure: Failure, request: Request) -> None:
    """Answer a failed request; once a stream has begun, the error is its last line."""
    if failure.check(CancelledError):
        return
    error = failure.value
    if isinstance(error, (OllamaError, EngineError)):
        status, message = error.status, getattr(error, "message", str(error))
    else:
        log.failure("{method} {path} failed", failure, method=request.method, path=request.path)
        status, message = 500, f"{type(error).__name__} in the embedded target, see its log"
    if request.startedWriting:
        _stream(request, {"error": message})
        request.finish()
    else:
        _reply_json(request, status, {"error": message})


def _note(_: None, request: Request) -> None:
    """One short line for each request but the reads, which come with every poll."""
    if request.method in READS:
        return
    outcome = request.code if request.finished else "client left"
    log.info(
        "{method} {path} {outcome}",
        method=request.method.decode(),
        path=request.path.decode(),
        outcome=outcome,
    )


def _check_abilities(ask: Ask, model: EmbeddedModel) -> None:
    for ability in ask.wants:
        name = f'"{ask.model}"' if ability == "thinking" else f"registry.ollama.ai/library/{model.name}"
        raise OllamaError(400, f"{name} does not support {ability}")


def _num_ctx(model: EmbeddedModel, options: Options) -> int:
    """The context length to load with: the request's, else the model's own; at most the trained one."""
    wanted = max(SMALLEST_NUM_CTX, options.num_ctx or model.num_ctx)
    return min(wanted, model.header.trained_context or wanted)


def _body(request: Request) -> bytes:
    return b"" if request.content is None else bytes(request.content.read())


def _stream(request: Request, line: Mapping[str, Any]) -> None:
    """Write one line of a stream as one chunk."""
    if not request.startedWriting:
        request.setHeader(b"Content-Type", NDJSON)
    request.write(encode(line) + b"\n")


def _reply_json(request: Request, status: int, value: Mapping[str, Any]) -> None:
    _reply(request, status, JSON, encode(value))


def _reply(request: Request, status: int, content_type: bytes, body: bytes) -> None:
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", content_type)
    request.setHeader(b"Content-Length", b"%d" % len(body))
    request.write(body)
    request.finish()
