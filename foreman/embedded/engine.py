"""llama.cpp behind a small typed class: one thread, one model, one piece of work at a time, cancellable.

Only the child process imports this module: it loads the native library.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import xllamacpp
from attrs import Factory, define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

# Tokens of a prompt that llama.cpp handles between two looks at its callback: how long a cancelled prompt
# goes on (2 to 6 s for SmolLM2), and also the longest input that it can embed. 2048 would cost 300 MB more.
BATCH_TOKENS = 512

# llama.cpp's log level that prints errors only.
ERRORS_ONLY = 1

T = TypeVar("T")


class EngineError(Exception):
    """llama.cpp refused or failed; `status` is the HTTP status that fits."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@frozen
class Sampling:
    """How to generate. None leaves llama.cpp's own default."""

    max_tokens: int
    """Tokens at most; -1 goes on until the context is full."""
    temperature: float | None = None
    seed: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    response_format: Mapping[str, Any] | None = None
    """As OpenAI writes it."""

    def as_openai(self) -> dict[str, Any]:
        """The fields of an OpenAI-shaped request."""
        fields = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "stop": list(self.stop) or None,
            "response_format": self.response_format,
        }
        return {name: value for name, value in fields.items() if value is not None}


@frozen
class Finish:
    """How a generation ended, and what it cost."""

    reason: str
    """`stop` or `length`."""
    prompt_tokens: int
    prompt_seconds: float
    tokens: int
    seconds: float


@frozen
class Embeddings:
    """Vectors of length 1, in the order of the inputs."""

    vectors: list[list[float]]
    prompt_tokens: int


@define(eq=False)
class Engine:
    """Runs llama.cpp in one thread of its own.

    Every method returns a Deferred and may be called at any time; work is done in the order of the calls.
    Cancelling a Deferred fails it at once, and stops the work at the next token, or during the prompt at the
    end of the batch (BATCH_TOKENS). What is asked meanwhile waits for that in the thread.

    llama.cpp holds the interpreter while it loads (0.5 s for SmolLM2): the process answers nothing then.
    """

    _reactor: IReactorFromThreads
    _threads: int
    """Threads of llama.cpp's own arithmetic."""
    _pool: ThreadPool = field(init=False, default=Factory(lambda: ThreadPool(1, 1, "llama.cpp")))
    _server: Any = field(init=False, default=None)

    def start(self) -> None:
        """Start the thread."""
        self._pool.start()

    def load(self, weights: Path, num_ctx: int) -> Deferred[None]:
        """Free the present model and load another, with `num_ctx` tokens of context.

        Fails with EngineError.
        """
        return self._run(lambda cancelled: self._load(weights, num_ctx))

    def unload(self) -> Deferred[None]:
        """Free the model, if one is loaded."""
        return self._run(lambda cancelled: self._unload())

    def chat(
        self, messages: Sequence[Mapping[str, str]], sampling: Sampling, on_text: Callable[[str], None]
    ) -> Deferred[Finish]:
        """Answer a conversation through the model's own template. The reactor hands `on_text` each piece."""
        body = {"messages": list(messages), **sampling.as_openai()}
        return self._generate("handle_chat_completions", body, on_text)

    def complete(self, prompt: str, sampling: Sampling, on_text: Callable[[str], None]) -> Deferred[Finish]:
        """Go on with a raw text, without a template. The reactor hands `on_text` each piece."""
        return self._generate("handle_completions", {"prompt": prompt, **sampling.as_openai()}, on_text)

    def embed(self, texts: Sequence[str]) -> Deferred[Embeddings]:
        """Embed each text, at most BATCH_TOKENS tokens long. Fails with EngineError."""
        return self._run(lambda cancelled: self._embed(texts))

    def _run(self, work: Callable[[Event], T]) -> Deferred[T]:
        cancelled = Event()

        def do() -> T:
            if cancelled.is_set():
                raise CancelledError
            return work(cancelled)

        def notice(failure: Failure) -> Failure:
            if failure.check(CancelledError):
                cancelled.set()
            return failure

        # This Deferred has no canceller: cancelled, it fails at once and swallows the later result.
        return deferToThreadPool(self._reactor, self._pool, do).addErrback(notice)

    def _load(self, weights: Path, num_ctx: int) -> None:
        self._unload()
        params = xllamacpp.CommonParams()
        params.verbosity = ERRORS_ONLY
        params.model.path = str(weights)
        params.n_ctx = num_ctx
        params.n_parallel = 1
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.cpuparams.n_threads = self._threads
        params.warmup = False
        params.cache_ram_mib = 0  # Its default keeps up to 8 GiB of old prompts.
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise EngineError(500, f"llama.cpp cannot load {weights}: {error}") from error

    def _unload(self) -> None:
        if self._server is not None:
            self._server = None
            gc.collect()

    def _generate(
        self, method: str, body: Mapping[str, Any], on_text: Callable[[str], None]
    ) -> Deferred[Finish]:
        def work(cancelled: Event) -> Finish:
            last: dict[str, Any] = {}

            def on_chunk(chunk: dict[str, Any]) -> bool:
                # True stops llama.cpp. An exception here would be lost in the native code.
                if cancelled.is_set():
                    return True
                last.clear()
                last.update(chunk)
                if text := _text_of(chunk):
                    self._reactor.callFromThread(deliver, text)
                return False

            def deliver(text: str) -> None:
                if not cancelled.is_set():
                    on_text(text)

            # Progress reports make llama.cpp look at the callback after each batch of the prompt.
            asked = {**body, "stream": True, "return_progress": True}
            self._call(lambda: getattr(self._server, method)(asked, on_chunk))
            _raise_error(last)
            return _finish_of(last)

        return self._run(work)

    def _embed(self, texts: Sequence[str]) -> Embeddings:
        answer = self._call(lambda: self._server.handle_embeddings({"input": list(texts)}))
        _raise_error(answer)
        entries = sorted(answer["data"], key=lambda entry: int(entry["index"]))
        return Embeddings([entry["embedding"] for entry in entries], int(answer["usage"]["prompt_tokens"]))

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except (ValueError, RuntimeError) as error:
            # What its JSON reader and its chat template refuse comes as an exception.
            raise EngineError(400, str(error)) from error


def _text_of(chunk: Mapping[str, Any]) -> str:
    choice: Mapping[str, Any] = (chunk.get("choices") or [{}])[0]
    text = choice.get("text") or choice.get("delta", {}).get("content")
    return str(text or "")


def _finish_of(chunk: Mapping[str, Any]) -> Finish:
    if "timings" not in chunk:
        raise EngineError(500, "an error was encountered while running the model: it ended without a result")
    timings = chunk["timings"]
    return Finish(
        reason=str(chunk["choices"][0]["finish_reason"]),
        # A prefix that the last request left in the cache counts too, as in Ollama.
        prompt_tokens=int(timings["prompt_n"] + timings["cache_n"]),
        prompt_seconds=float(timings["prompt_ms"]) / 1e3,
        tokens=int(timings["predicted_n"]),
        seconds=float(timings["predicted_ms"]) / 1e3,
    )


def _raise_error(answer: Mapping[str, Any]) -> None:
    """llama.cpp answers errors as `{"error": {"code", "message", "type"}}`; raise them as EngineError."""
    if error := answer.get("error"):
        raise EngineError(int(error.get("code", 500)), str(error.get("message", error)))
