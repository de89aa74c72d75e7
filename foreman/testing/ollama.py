"""A fake Ollama: its routes, its shapes and its one GPU, scripted by a test.

It serves under ``treq.testing.StubTreq`` (``fake.resource()``) and on a real socket (``fake.site()``).
``tests/contract_ollama.py`` holds it to what a real Ollama was recorded to say.
"""

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, ClassVar

from attrs import define, evolve, field

from foreman.testing.gpu import FakeGpu, FakeModel, read_lifetime
from foreman.testing.scripted import BARE_JSON, NDJSON, SSE, Exchange, Handler, ScriptedServer, dump

Json = dict[str, Any]

MODIFIED_AT = "2026-01-01T00:00:00.1Z"
DETAILS: Json = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "134.52M",
    "quantization_level": "Q4_1",
}


class RefusalError(Exception):
    """An error answer in the words of Ollama."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def two_models() -> list[FakeModel]:
    """Return the models of a fake whose test names none."""
    return [FakeModel.make("alpha:latest"), FakeModel.make("beta:latest", num_ctx=2048)]


@define(eq=False)
class FakeOllama(ScriptedServer):
    """The target, for tests. Everything public may be changed while it runs.

    A generation says ``tokens``, one every ``token_interval`` seconds, after a load of
    ``gpu.load_seconds`` when its model is not resident. It is held (:meth:`hold`) after its load and
    before its first byte. Without seconds to wait for, an answer is there at once.

    :ivar slots: how many models the GPU holds, and how many requests run at once.
    """

    held_late: ClassVar[frozenset[str]] = frozenset(
        {"/api/chat", "/api/generate", "/api/embed", "/v1/chat/completions"}
    )

    models: list[FakeModel] = field(factory=two_models, kw_only=True)
    slots: int = field(default=1, kw_only=True)
    tokens: list[str] = field(factory=lambda: ["The", " rain", " falls", "."], kw_only=True)
    token_interval: float = field(default=0.0, kw_only=True)
    version: str = field(default="0.0.0", kw_only=True)
    gpu: FakeGpu = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.gpu = FakeGpu(self.clock, self.slots)

    @property
    def loads(self) -> list[str]:
        """The names of the models that were loaded, in order."""
        return self.gpu.loads

    def find(self, name: str) -> FakeModel | None:
        """Return the installed model of this name."""
        return next((model for model in self.models if model.name == _full(name)), None)

    def routes(self) -> dict[str, tuple[tuple[str, ...], Handler]]:
        return {
            "/": (("HEAD", "GET"), self._root),
            "/api/version": (("HEAD", "GET"), self._version),
            "/api/tags": (("HEAD", "GET"), self._tags),
            "/api/ps": (("GET",), self._ps),
            "/api/show": (("POST",), self._show),
            "/api/chat": (("POST",), self._chat),
            "/api/generate": (("POST",), self._generate),
            "/api/embed": (("POST",), self._embed),
            "/api/pull": (("POST",), self._pull),
            "/api/copy": (("POST",), self._copy),
            "/api/delete": (("DELETE",), self._delete),
            "/v1/chat/completions": (("POST",), self._v1_chat),
        }

    async def serve(self, exchange: Exchange) -> None:
        try:
            await super().serve(exchange)
        except RefusalError as refusal:
            if exchange.path.startswith("/v1/"):
                kind = {400: "invalid_request_error", 404: "not_found_error"}.get(refusal.status, "api_error")
                error = {"message": str(refusal), "type": kind, "param": None, "code": None}
                exchange.reply(refusal.status, dump({"error": error}) + b"\n", BARE_JSON)
            else:
                exchange.reply(refusal.status, dump({"error": str(refusal)}))

    # What is installed.

    async def _root(self, exchange: Exchange) -> None:
        exchange.reply(200, b"Ollama is running", "text/plain; charset=utf-8")

    async def _version(self, exchange: Exchange) -> None:
        exchange.reply(200, dump({"version": self.version}))

    async def _tags(self, exchange: Exchange) -> None:
        entries = []
        for model in self.models:
            entry: Json = {"name": model.name, "model": model.name}
            if model.remote_host:
                entry["remote_host"] = model.remote_host
            entry |= {
                "modified_at": MODIFIED_AT,
                "size": 98363007,
                "digest": model.digest,
                "details": DETAILS,
            }
            entries.append(entry)
        exchange.reply(200, dump({"models": entries}))

    async def _ps(self, exchange: Exchange) -> None:
        entries = [
            {
                "name": runner.model.name,
                "model": runner.model.name,
                "size": 190948608,
                "digest": runner.model.digest,
                "details": DETAILS,
                "expires_at": _stamp(runner.expires_at),
                "size_vram": 0,
                "context_length": runner.context_length,
            }
            for runner in self.gpu.resident()
        ]
        exchange.reply(200, dump({"models": entries}))

    async def _show(self, exchange: Exchange) -> None:
        body = _read(exchange)
        if not body.get("model"):
            raise RefusalError(400, "model is required")
        model = self._installed(body, "model '{}' not found")
        answer: Json = {
            "modelfile": f'# Modelfile generated by "ollama show"\n\nFROM {model.weights}\nTEMPLATE x\n'
        }
        own: Json = {} if model.num_ctx is None else {"num_ctx": model.num_ctx}
        own |= model.parameters
        if own:
            answer["parameters"] = "\n".join(f"{name:<30} {dump(own[name]).decode()}" for name in sorted(own))
        answer |= {"template": "x", "details": DETAILS, "model_info": {}, "tensors": []}
        answer |= {"capabilities": list(model.capabilities), "modified_at": MODIFIED_AT}
        exchange.reply(200, dump(answer))

    async def _pull(self, exchange: Exchange) -> None:
        body = _read(exchange)
        name = body.get("model") or body.get("name")
        if not name:
            raise RefusalError(400, "invalid model name")
        model = FakeModel.make(_full(name))
        part = {"status": f"pulling {model.digest[:12]}", "digest": f"sha256:{model.digest}", "total": 1000}
        steps: list[Json] = [{"status": "pulling manifest"}]
        steps += [part | {"completed": done} for done in (500, 1000)]
        steps += [{"status": step} for step in ("verifying sha256 digest", "writing manifest", "success")]

        def lines() -> Iterator[bytes]:
            for step in steps:
                if step["status"] == "success" and self.find(model.name) is None:
                    self.models.append(model)
                yield dump(step) + b"\n"

        if body.get("stream", True):
            await self.stream(exchange, NDJSON, lines(), self.token_interval)
        else:
            exchange.reply(200, list(lines())[-1].strip(), BARE_JSON)

    async def _copy(self, exchange: Exchange) -> None:
        body = _read(exchange)
        model = self._installed({"model": body.get("source")}, 'model "{}" not found')
        self.models.append(evolve(model, name=_full(str(body.get("destination")))))
        exchange.reply(200, b"")

    async def _delete(self, exchange: Exchange) -> None:
        self.models.remove(self._installed(_read(exchange), "model '{}' not found"))
        exchange.reply(200, b"")

    def _installed(self, body: Json, missing: str) -> FakeModel:
        name = body.get("model") or body.get("name") or ""
        model = self.find(name)
        if model is None:
            raise RefusalError(404, missing.format(name))
        return model

    # What runs on the GPU.

    async def _chat(self, exchange: Exchange) -> None:
        body = _read(exchange)
        if not body.get("model"):
            raise RefusalError(400, "model is required")
        await self._native(exchange, body, body.get("messages"), _chat_part, {})

    async def _generate(self, exchange: Exchange) -> None:
        body = _read(exchange)
        await self._native(exchange, body, body.get("prompt"), _generate_part, {"context": [1, 2, 3]})

    async def _native(
        self, exchange: Exchange, body: Json, asked: object, part: Callable[[str], Json], extra: Json
    ) -> None:
        model = self._installed(body, "model '{}' not found")
        if "completion" not in model.capabilities:
            raise RefusalError(
                400, f'"{body["model"]}" does not support {exchange.path.removeprefix("/api/")}'
            )
        lifetime = _lifetime(body)

        def line(text: str, rest: Json) -> bytes:
            head = {"model": body["model"], "created_at": _stamp(self.gpu.now())}
            return dump(head | part(text) | rest)

        if not asked and lifetime == timedelta(0):
            # Answered at once, whatever runs.
            self.gpu.unload(model)
            exchange.reply(200, line("", {"done": True, "done_reason": "unload"}))
            return

        async def answer() -> None:
            await self.gate(exchange.path)
            if not asked:
                exchange.reply(200, line("", {"done": True, "done_reason": "load"}))
                return
            tokens, reason = self._say(_options(body).get("num_predict"))
            end = {"done": True, "done_reason": reason} | extra | _metrics(len(tokens))
            if body.get("stream", True):
                lines = chain((line(token, {"done": False}) for token in tokens), [line("", end)])
                await self.stream(exchange, NDJSON, (each + b"\n" for each in lines), self.token_interval)
            else:
                await self.work(self.token_interval * len(tokens))
                exchange.reply(200, line("".join(tokens), end))

        await self.gpu.use(model, _asked(body), lifetime, answer)

    async def _v1_chat(self, exchange: Exchange) -> None:
        body = _read(exchange)
        model = self._installed(body, "model '{}' not found")

        def thing(kind: str, choices: list[Json]) -> Json:
            created = int(self.clock.seconds())
            head = {"id": "chatcmpl-1", "object": kind, "created": created, "model": body["model"]}
            return head | {"system_fingerprint": "fp_ollama", "choices": choices}

        def event(text: str, reason: str | None) -> bytes:
            delta = {"role": "assistant", "content": text}
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            return _event(thing("chat.completion.chunk", [choice]))

        async def answer() -> None:
            await self.gate(exchange.path)
            tokens, reason = self._say(body.get("max_tokens"))
            counts = {"prompt_tokens": 16, "completion_tokens": len(tokens), "total_tokens": 16 + len(tokens)}
            if body.get("stream"):
                # The real one sends the last events as one chunk.
                end = event("", reason)
                if (body.get("stream_options") or {}).get("include_usage"):
                    end += _event(thing("chat.completion.chunk", []) | {"usage": counts})
                chunks = chain((event(token, None) for token in tokens), [end + b"data: [DONE]\n\n"])
                await self.stream(exchange, SSE, chunks, self.token_interval)
            else:
                await self.work(self.token_interval * len(tokens))
                message = {"role": "assistant", "content": "".join(tokens)}
                choice = {"index": 0, "message": message, "finish_reason": reason}
                whole = thing("chat.completion", [choice]) | {"usage": counts}
                exchange.reply(200, dump(whole) + b"\n", BARE_JSON)

        await self.gpu.use(model, {}, None, answer)

    async def _embed(self, exchange: Exchange) -> None:
        body = _read(exchange)
        if not body.get("model"):
            raise RefusalError(404, "model '' not found")
        model = self._installed(body, 'model "{}" not found, try pulling it first')
        wanted = body.get("input") or []
        if not isinstance(wanted, (str, list)):
            raise RefusalError(400, "invalid input type")
        count = 1 if isinstance(wanted, str) else len(wanted)

        async def answer() -> None:
            await self.gate(exchange.path)
            reply: Json = {"model": body["model"], "embeddings": [[0.6, -0.8]] * count}
            if count:
                reply |= {"total_duration": 14143917, "load_duration": 1019500, "prompt_eval_count": count}
            exchange.reply(200, dump(reply))

        await self.gpu.use(model, _options(body), _lifetime(body), answer)

    def _say(self, limit: object) -> tuple[list[str], str]:
        if isinstance(limit, int) and 0 <= limit < len(self.tokens):
            return self.tokens[:limit], "length"
        return list(self.tokens), "stop"


def _full(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


def _chat_part(text: str) -> Json:
    return {"message": {"role": "assistant", "content": text}}


def _generate_part(text: str) -> Json:
    return {"response": text}


def _event(value: Json) -> bytes:
    return b"data: " + dump(value) + b"\n\n"


def _metrics(count: int) -> Json:
    prompt = {"prompt_eval_count": 16, "prompt_eval_duration": 32194164}
    spoken = {"eval_count": count, "eval_duration": 871347771}
    return {"total_duration": 955651905, "load_duration": 39104248} | prompt | spoken


def _stamp(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _options(body: Json) -> Json:
    return {name: value for name, value in (body.get("options") or {}).items() if value is not None}


def _asked(body: Json) -> Json:
    """What of a request decides about a reload, and its other options."""
    return _options(body) | ({} if body.get("shift") is None else {"shift": body["shift"]})


def _lifetime(body: Json) -> timedelta | None:
    try:
        return read_lifetime(body.get("keep_alive"))
    except ValueError as error:
        raise RefusalError(400, str(error)) from error


def _read(exchange: Exchange) -> Json:
    """Read a body as JSON, or refuse it in Go's words."""
    if not exchange.body:
        raise RefusalError(400, "missing request body")
    try:
        body = json.loads(exchange.body.decode("utf-8", "replace"))
    except json.JSONDecodeError as error:
        rest = error.doc[error.pos :].strip(" \t\r\n")
        if not rest:
            raise RefusalError(400, "unexpected EOF") from error
        raise RefusalError(400, f"invalid character '{rest[0]}' looking for beginning of value") from error
    return body if isinstance(body, dict) else {}
