"""
What anything that passes for an Ollama has to answer, taken from recorded exchanges with a real one.

A test module gives the fixture ``ollama`` (:class:`Target`) and subclasses the contracts it holds.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol

JSON = ["application/json; charset=utf-8"]
MESSAGES = [{"role": "user", "content": "Write one short sentence about rain."}]
METRICS = [
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
]


@frozen
class Target:
    """A target under test: a treq client, its base URL, and two installed models of different weights or
    context length, named without their tag ``latest``."""

    http: Any
    base_url: str
    model: str
    other: str


class Answer:
    """
    One whole answer: ``chunks`` as they came, ``headers`` with lower-case names, ``length`` in bytes as
    it was declared (twisted's client takes it out of the headers).
    """

    def __init__(self, status: int, headers: dict[str, list[str]], length: Any, chunks: list[bytes]) -> None:
        self.status = status
        self.headers = headers
        self.length = length
        self.chunks = chunks
        self.body = b"".join(chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        assert self.body.endswith(b"\n")
        return [json.loads(line) for line in self.body.decode().split("\n")[:-1]]

    @property
    def content_type(self) -> list[str] | None:
        return self.headers.get("content-type")


class _Chunks(Protocol):
    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.finished: Deferred[list[bytes]] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.chunks.append(data)

    def connectionLost(self, reason: Any = None) -> None:
        self.finished.callback(self.chunks)


async def ask(target: Target, method: str, path: str, body: Any = None, raw: bytes | None = None) -> Answer:
    """Send one request; ``body`` is written as JSON, ``raw`` as it is."""
    data = raw if body is None else json.dumps(body).encode()
    response = await target.http.request(
        method,
        target.base_url + path,
        data=data,
        headers={"Content-Type": "application/json"},
        allow_redirects=False,
        unbuffered=True,
    )
    headers = {
        name.decode().lower(): [value.decode() for value in values]
        for name, values in response.headers.getAllRawHeaders()
    }
    chunks = _Chunks()
    response.deliverBody(chunks)
    return Answer(response.code, headers, response.length, await chunks.finished)


def chat(target: Target, **more: Any) -> dict[str, Any]:
    return {"model": target.model, "messages": MESSAGES, "options": {"num_predict": 2}} | more


def generate(target: Target, **more: Any) -> dict[str, Any]:
    return {"model": target.model, "prompt": "Once", "options": {"num_predict": 2}} | more


class OllamaContract:
    """The routes that every target has."""

    async def test_root(self, ollama: Target) -> None:
        """The root answers in plain text, and HEAD without the text."""
        answer = await ask(ollama, "GET", "/")
        assert (answer.status, answer.body) == (200, b"Ollama is running")
        assert answer.content_type == ["text/plain; charset=utf-8"]
        head = await ask(ollama, "HEAD", "/")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", ["17"])

    async def test_version(self, ollama: Target) -> None:
        """The version is one string, as JSON with a charset and a length."""
        answer = await ask(ollama, "GET", "/api/version")
        assert answer.content_type == JSON
        assert list(answer.json) == ["version"]
        assert answer.length == len(answer.body)

    async def test_tags(self, ollama: Target) -> None:
        """Every installed model has these keys in this order, and a digest of 64 hex digits."""
        answer = await ask(ollama, "GET", "/api/tags")
        assert (answer.status, answer.content_type, list(answer.json)) == (200, JSON, ["models"])
        entries = answer.json["models"]
        assert {f"{ollama.model}:latest", f"{ollama.other}:latest"} <= {entry["name"] for entry in entries}
        for entry in entries:
            assert list(entry)[:6] == ["name", "model", "modified_at", "size", "digest", "details"]
            assert list(entry["details"])[:6] == [
                "parent_model",
                "format",
                "family",
                "families",
                "parameter_size",
                "quantization_level",
            ]
            assert len(entry["digest"]) == 64
            assert set(entry["digest"]) <= set("0123456789abcdef")

    async def test_num_ctx(self, ollama: Target) -> None:
        """A request's num_ctx is what /api/ps shows; 1024.0 is 1024."""
        for given, shown in ((1024, 1024), (1024.0, 1024), (1024.9, 1024), (512, 512)):
            asked = {"model": ollama.model, "options": {"num_ctx": given}}
            assert (await ask(ollama, "POST", "/api/generate", asked)).status == 200
            (entry,) = (await ask(ollama, "GET", "/api/ps")).json["models"]
            assert entry["context_length"] == shown

    async def test_ps(self, ollama: Target) -> None:
        """What is loaded is listed with its context length and the end of its stay."""
        await ask(ollama, "POST", "/api/generate", {"model": ollama.model})
        answer = await ask(ollama, "GET", "/api/ps")
        assert (answer.status, answer.content_type, list(answer.json)) == (200, JSON, ["models"])
        (entry,) = answer.json["models"]
        assert list(entry) == [
            "name",
            "model",
            "size",
            "digest",
            "details",
            "expires_at",
            "size_vram",
            "context_length",
        ]
        assert entry["name"] == f"{ollama.model}:latest"
        assert entry["context_length"] > 0
        assert datetime.fromisoformat(entry["expires_at"].replace("Z", "+00:00")).tzinfo is not None

    async def test_one_model_is_resident(self, ollama: Target) -> None:
        """Loading a second model takes the place of the first."""
        await ask(ollama, "POST", "/api/generate", {"model": ollama.model})
        await ask(ollama, "POST", "/api/generate", {"model": ollama.other})
        entries = (await ask(ollama, "GET", "/api/ps")).json["models"]
        assert [entry["name"] for entry in entries] == [f"{ollama.other}:latest"]

    async def test_show(self, ollama: Target) -> None:
        """A model shows the file that it is made from, and its facts in this order."""
        answer = await ask(ollama, "POST", "/api/show", {"model": ollama.model})
        assert (answer.status, answer.content_type) == (200, JSON)
        known = ["license", "modelfile", "parameters", "template", "system", "details", "model_info"]
        known += ["tensors", "capabilities", "modified_at"]
        assert [key for key in known if key in answer.json] == list(answer.json)
        assert "\nFROM " in "\n" + answer.json["modelfile"]
        assert {"details", "model_info", "modified_at"} <= set(answer.json)

    async def test_show_refusals(self, ollama: Target) -> None:
        """An unknown model and a missing name have their own words."""
        answer = await ask(ollama, "POST", "/api/show", {"model": "nope"})
        assert (answer.status, answer.body) == (404, b'{"error":"model \'nope\' not found"}')
        answer = await ask(ollama, "POST", "/api/show", {})
        assert (answer.status, answer.body) == (400, b'{"error":"model is required"}')

    async def test_chat_stream(self, ollama: Target) -> None:
        """A chat streams by default: one line is one chunk, and the last one has the figures."""
        answer = await ask(ollama, "POST", "/api/chat", chat(ollama))
        assert (answer.status, answer.content_type) == (200, ["application/x-ndjson"])
        assert all(chunk.endswith(b"\n") and chunk.count(b"\n") == 1 for chunk in answer.chunks)
        *tokens, last = answer.lines
        assert len(tokens) == 2
        for line in tokens:
            assert list(line) == ["model", "created_at", "message", "done"]
            assert list(line["message"]) == ["role", "content"]
            assert line["done"] is False
        assert list(last) == ["model", "created_at", "message", "done", "done_reason", *METRICS]
        assert (last["model"], last["message"]) == (ollama.model, {"role": "assistant", "content": ""})
        assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "length", 2)

    async def test_chat_whole(self, ollama: Target) -> None:
        """Without streaming the same comes as one object."""
        answer = await ask(ollama, "POST", "/api/chat", chat(ollama, stream=False))
        assert (answer.status, answer.content_type) == (200, JSON)
        assert answer.length == len(answer.body)
        assert list(answer.json) == ["model", "created_at", "message", "done", "done_reason", *METRICS]
        assert answer.json["message"]["content"]
        assert answer.json["created_at"].endswith("Z")

    async def test_generate_stream(self, ollama: Target) -> None:
        """A generation streams by default, and its last line has the context too."""
        answer = await ask(ollama, "POST", "/api/generate", generate(ollama))
        assert (answer.status, answer.content_type) == (200, ["application/x-ndjson"])
        *tokens, last = answer.lines
        assert [list(line) for line in tokens] == [["model", "created_at", "response", "done"]] * 2
        assert [key for key in last if key != "context"] == [
            "model",
            "created_at",
            "response",
            "done",
            "done_reason",
            *METRICS,
        ]
        assert (last["response"], last["done_reason"]) == ("", "length")

    async def test_generate_whole(self, ollama: Target) -> None:
        """Without streaming the same comes as one object."""
        answer = await ask(ollama, "POST", "/api/generate", generate(ollama, stream=False))
        assert answer.content_type == JSON
        assert list(answer.json)[:5] == ["model", "created_at", "response", "done", "done_reason"]
        assert answer.json["response"]

    async def test_load_and_unload(self, ollama: Target) -> None:
        """Nothing to say means: load, or with keep_alive 0 unload; one object, streamed or not."""
        for path, key, empty in (
            ("/api/chat", "message", {"role": "assistant", "content": ""}),
            ("/api/generate", "response", ""),
        ):
            for more, reason in (({}, "load"), ({"keep_alive": 0}, "unload")):
                answer = await ask(ollama, "POST", path, {"model": ollama.model} | more)
                assert (answer.status, answer.content_type) == (200, JSON)
                assert list(answer.json) == ["model", "created_at", key, "done", "done_reason"]
                assert (answer.json[key], answer.json["done"]) == (empty, True)
                assert answer.json["done_reason"] == reason
            assert (await ask(ollama, "GET", "/api/ps")).json["models"] == []

    async def test_pin(self, ollama: Target) -> None:
        """An embed without input and with the number -1 loads for ever, and a later request leaves it so."""
        body = {"model": ollama.model, "input": [], "keep_alive": -1}
        answer = await ask(ollama, "POST", "/api/embed", body)
        assert (answer.status, answer.json) == (200, {"model": ollama.model, "embeddings": []})
        await ask(ollama, "POST", "/api/generate", {"model": ollama.model})
        (entry,) = (await ask(ollama, "GET", "/api/ps")).json["models"]
        ends = datetime.fromisoformat(entry["expires_at"].replace("Z", "+00:00"))
        assert ends - datetime.now(UTC) > timedelta(days=36500)
        await ask(ollama, "POST", "/api/generate", {"model": ollama.model, "keep_alive": 0})

    async def test_embed(self, ollama: Target) -> None:
        """A text gives one vector, several give several in their order."""
        answer = await ask(ollama, "POST", "/api/embed", {"model": ollama.model, "input": "hello"})
        assert (answer.status, answer.content_type) == (200, JSON)
        assert list(answer.json) == [
            "model",
            "embeddings",
            "total_duration",
            "load_duration",
            "prompt_eval_count",
        ]
        assert len(answer.json["embeddings"]) == 1
        answer = await ask(ollama, "POST", "/api/embed", {"model": ollama.model, "input": ["a", "b"]})
        assert len(answer.json["embeddings"]) == 2

    async def test_embed_refusals(self, ollama: Target) -> None:
        """Embed has words of its own for an unknown model, and takes texts only."""
        answer = await ask(ollama, "POST", "/api/embed", {"model": "nope", "input": "x"})
        assert answer.status == 404
        assert answer.json == {"error": 'model "nope" not found, try pulling it first'}
        answer = await ask(ollama, "POST", "/api/embed", {"model": ollama.model, "input": 5})
        assert (answer.status, answer.json) == (400, {"error": "invalid input type"})

    async def test_generation_refusals(self, ollama: Target) -> None:
        """Refusals come before a stream begins, with a status, as JSON."""
        for path, body, status, text in (
            ("/api/chat", {"model": "nope", "messages": MESSAGES}, 404, "model 'nope' not found"),
            ("/api/chat", {"messages": MESSAGES}, 400, "model is required"),
            ("/api/generate", {"model": "nope", "prompt": "x"}, 404, "model 'nope' not found"),
            ("/api/generate", {"prompt": "x"}, 404, "model '' not found"),
            (
                "/api/generate",
                {"model": ollama.model, "prompt": "x", "keep_alive": "300"},
                400,
                'time: missing unit in duration "300"',
            ),
        ):
            answer = await ask(ollama, "POST", path, body)
            assert (answer.status, answer.content_type, answer.json) == (status, JSON, {"error": text})

    async def test_unreadable_bodies(self, ollama: Target) -> None:
        """A missing body, half a body and no JSON are told apart."""
        for raw, text in (
            (b"", "missing request body"),
            (b'{"model": "smol", "prompt": ', "unexpected EOF"),
            (b"hello", "invalid character 'h' looking for beginning of value"),
        ):
            answer = await ask(ollama, "POST", "/api/generate", raw=raw)
            assert (answer.status, answer.content_type, answer.json) == (400, JSON, {"error": text})

    async def test_unknown_path(self, ollama: Target) -> None:
        """An unknown path is a 404 in plain text."""
        answer = await ask(ollama, "GET", "/api/nothing")
        assert (answer.status, answer.body) == (404, b"404 page not found")
        assert answer.content_type == ["text/plain"]

    async def test_wrong_method(self, ollama: Target) -> None:
        """A wrong method is a 405 in plain text that says which are right."""
        answer = await ask(ollama, "POST", "/api/tags", raw=b"")
        assert (answer.status, answer.body) == (405, b"405 method not allowed")
        assert (answer.content_type, answer.headers["allow"]) == (["text/plain"], ["HEAD, GET"])


class StoreContract:
    """The routes that change what is installed, and OpenAI's chat."""

    async def test_pull(self, ollama: Target) -> None:
        """A pull streams its steps and ends with success; then the model is there."""
        answer = await ask(ollama, "POST", "/api/pull", {"model": "new"})
        assert (answer.status, answer.content_type) == (200, ["application/x-ndjson"])
        assert answer.lines[0] == {"status": "pulling manifest"}
        assert answer.lines[-1] == {"status": "success"}
        names = [entry["name"] for entry in (await ask(ollama, "GET", "/api/tags")).json["models"]]
        assert "new:latest" in names

    async def test_pull_whole(self, ollama: Target) -> None:
        """Without streaming only the last step is answered."""
        answer = await ask(ollama, "POST", "/api/pull", {"model": "new", "stream": False})
        assert (answer.status, answer.content_type) == (200, ["application/json"])
        assert answer.json == {"status": "success"}

    async def test_copy_and_delete(self, ollama: Target) -> None:
        """Both answer exactly 200 with an empty body and no type; a copy has the digest of its source."""
        copy = {"source": ollama.model, "destination": "copied"}
        for method, path, body in (
            ("POST", "/api/copy", copy),
            ("DELETE", "/api/delete", {"model": "copied"}),
        ):
            answer = await ask(ollama, method, path, body)
            assert (answer.status, answer.body, answer.content_type) == (200, b"", None)
            assert answer.length == 0
            entries = (await ask(ollama, "GET", "/api/tags")).json["models"]
            copies = [entry["digest"] for entry in entries if entry["name"] == "copied:latest"]
            source = [entry["digest"] for entry in entries if entry["name"] == f"{ollama.model}:latest"]
            assert copies == (source if path == "/api/copy" else [])

    async def test_store_refusals(self, ollama: Target) -> None:
        """Copy and delete quote an unknown model differently."""
        answer = await ask(ollama, "POST", "/api/copy", {"source": "nope", "destination": "x"})
        assert (answer.status, answer.json) == (404, {"error": 'model "nope" not found'})
        answer = await ask(ollama, "DELETE", "/api/delete", {"model": "nope"})
        assert (answer.status, answer.json) == (404, {"error": "model 'nope' not found"})

    async def test_openai_stream(self, ollama: Target) -> None:
        """OpenAI's chat streams events, the last ones together with [DONE] in one chunk."""
        body = {"model": ollama.model, "messages": MESSAGES, "max_tokens": 2, "stream": True}
        body["stream_options"] = {"include_usage": True}
        answer = await ask(ollama, "POST", "/v1/chat/completions", body)
        assert (answer.status, answer.content_type) == (200, ["text/event-stream"])
        assert len(answer.chunks) == 3
        *events, done, empty = answer.body.split(b"\n\n")
        assert (done, empty) == (b"data: [DONE]", b"")
        pieces = [json.loads(event.removeprefix(b"data: ")) for event in events]
        keys = ["id", "object", "created", "model", "system_fingerprint", "choices"]
        assert [list(piece) for piece in pieces] == [keys, keys, keys, [*keys, "usage"]]
        assert [piece["choices"][0]["finish_reason"] for piece in pieces[:3]] == [None, None, "length"]

    async def test_openai_whole(self, ollama: Target) -> None:
        """OpenAI's chat does not stream by default; its JSON has no charset and ends with a newline."""
        body = {"model": ollama.model, "messages": MESSAGES, "max_tokens": 2}
        answer = await ask(ollama, "POST", "/v1/chat/completions", body)
        assert (answer.status, answer.content_type) == (200, ["application/json"])
        assert answer.body.endswith(b"}\n")
        assert list(answer.json) == [
            "id",
            "object",
            "created",
            "model",
            "system_fingerprint",
            "choices",
            "usage",
        ]

    async def test_openai_refusal(self, ollama: Target) -> None:
        """An unknown model is refused in OpenAI's form."""
        answer = await ask(ollama, "POST", "/v1/chat/completions", {"model": "nope", "messages": MESSAGES})
        assert (answer.status, answer.content_type) == (404, ["application/json"])
        error = {
            "message": "model 'nope' not found",
            "type": "not_found_error",
            "param": None,
            "code": None,
        }
        assert answer.json == {"error": error}
