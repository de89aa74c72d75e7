"""The embedded target's HTTP side on a real socket, with a scripted engine."""

import json
import re
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_twisted
from attrs import define
from embedded_fakes import ScriptedEngine, made_up_model
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from foreman.embedded.engine import EngineError
from foreman.embedded.server import EmbeddedServer
from foreman.embedded.slot import Slot

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"
TIMES = {"total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}


@define
class Answer:
    status: int
    headers: dict[str, str]
    chunks: list[bytes]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)
        return value


@define
class Bench:
    port: int
    engine: ScriptedEngine
    slot: Slot

    async def ask(self, method: str, path: str, body: object = None) -> Answer:
        """One whole exchange on a connection of its own."""
        return await deferToThread(self._exchange, method, path, body)

    def open(self, method: str, path: str, body: object = None) -> socket.socket:
        """A connection with a request on it. The socket's own buffers take it, so nothing blocks."""
        payload = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(payload)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + payload)
        return connection

    def _exchange(self, method: str, path: str, body: object) -> Answer:
        with self.open(method, path, body) as connection:
            return read_answer(connection)

    async def until(self, true: Any) -> None:
        """Let the reactor run until the condition holds."""
        from twisted.internet import reactor

        for _ in range(500):
            if true():
                return
            await deferLater(reactor, 0.01)
        pytest.fail("the condition never held")


def read_answer(connection: socket.socket) -> Answer:
    """Read to the end, and take the framing apart: the chunks are what the server wrote at once."""
    with connection.makefile("rb") as file:
        head, _, rest = file.read().partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    if headers.get("Transfer-Encoding") != "chunked":
        return Answer(int(status_line.split()[1]), headers, [rest])
    chunks = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunk, rest = rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        chunks.append(chunk)
    assert chunks.pop() == b""
    return Answer(int(status_line.split()[1]), headers, chunks)


@pytest_twisted.async_yield_fixture
async def bench() -> AsyncIterator[Bench]:
    from twisted.internet import reactor

    engine = ScriptedEngine()
    slot = Slot(reactor, engine)
    models = {
        model.name: model
        for model in (made_up_model("a:latest", "wa"), made_up_model("b:latest", "wb", num_ctx=4096))
    }
    port = reactor.listenTCP(0, EmbeddedServer(reactor, models, engine, slot).site(), interface="127.0.0.1")
    bench = Bench(port.getHost().port, engine, slot)
    yield bench
    slot._stop_timer()
    await port.stopListening()
    await bench.until(lambda: not any(type(reader).__name__ == "Server" for reader in reactor.getReaders()))


FULL_NAME = "registry.ollama.ai/library/a:latest"
MESSAGES = [{"role": "user", "content": "hi"}]


async def test_root_says_that_ollama_is_running(bench: Bench):
    """Clients probe these very words; HEAD has the same head and no body; nothing names the server."""
    got = await bench.ask("GET", "/")
    assert (got.status, got.body) == (200, b"Ollama is running")
    assert got.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert "Server" not in got.headers
    head = await bench.ask("HEAD", "/")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", "17")


async def test_unknown_paths_and_methods(bench: Bench):
    """404 and 405 are Ollama's plain texts, and 405 says what is allowed."""
    got = await bench.ask("GET", "/api/nothing")
    assert (got.status, got.headers["Content-Type"], got.body) == (404, "text/plain", b"404 page not found")
    got = await bench.ask("DELETE", "/api/tags")
    assert (got.status, got.headers["Allow"], got.body) == (405, "HEAD, GET", b"405 method not allowed")
    got = await bench.ask("GET", "/api/chat")
    assert (got.status, got.headers["Allow"]) == (405, "POST")


async def test_tags_show_and_version(bench: Bench):
    """The facts that foreman's inventory reads."""
    got = await bench.ask("GET", "/api/tags")
    assert got.headers["Content-Type"] == "application/json; charset=utf-8"
    entry = got.json["models"][0]
    assert list(entry) == ["name", "model", "modified_at", "size", "digest", "details"]
    assert (entry["name"], len(entry["digest"])) == ("a:latest", 64)
    shown = (await bench.ask("POST", "/api/show", {"model": "a"})).json
    assert list(shown) == ["modelfile", "parameters", "details", "model_info", "capabilities", "modified_at"]
    assert "\nFROM /models/wa\n" in shown["modelfile"]
    assert re.fullmatch(r"num_ctx {24}2048", shown["parameters"])
    assert shown["model_info"]["general.parameter_count"] == 134515008
    assert re.fullmatch(r"\d+\.\d+\.\d+", (await bench.ask("GET", "/api/version")).json["version"])


async def test_ps_lists_what_is_loaded(bench: Bench):
    """Nothing at first; then the one model, with its own context length or the request's."""
    assert (await bench.ask("GET", "/api/ps")).body == b'{"models":[]}'
    await bench.ask("POST", "/api/generate", {"model": "a"})
    got = await bench.ask("GET", "/api/ps")
    (entry,) = got.json["models"]
    keys = ["name", "model", "size", "digest", "details", "expires_at", "size_vram", "context_length"]
    assert list(entry) == keys
    assert (entry["name"], entry["context_length"]) == ("a:latest", 2048)
    assert re.fullmatch(TIME, entry["expires_at"])
    assert got.headers["X-Embedded-Loads"] == "1"
    await bench.ask("POST", "/api/generate", {"model": "a", "options": {"num_ctx": 512}})
    got = await bench.ask("GET", "/api/ps")
    assert (got.json["models"][0]["context_length"], got.headers["X-Embedded-Loads"]) == (512, "2")


async def test_forever_is_a_date_far_away(bench: Bench):
    """What a pin looks like to foreman."""
    await bench.ask("POST", "/api/embed", {"model": "a", "input": [], "keep_alive": -1})
    (entry,) = (await bench.ask("GET", "/api/ps")).json["models"]
    assert int(entry["expires_at"][:4]) > 2300


@pytest.mark.parametrize(
    ("path", "work", "texts"),
    [
        (
            "/api/chat",
            {"messages": MESSAGES},
            lambda text: {"message": {"role": "assistant", "content": text}},
        ),
        ("/api/generate", {"prompt": "hi"}, lambda text: {"response": text}),
        ("/api/generate", {"prompt": "hi", "raw": True}, lambda text: {"response": text}),
    ],
)
async def test_a_stream_is_one_line_in_one_chunk(bench: Bench, path: str, work: Any, texts: Any):
    """As Ollama flushes: clients that parse chunk by chunk depend on it. The keys have Ollama's order."""
    got = await bench.ask("POST", path, {"model": "a", **work})
    assert (got.status, got.headers["Content-Type"]) == (200, "application/x-ndjson")
    assert all(chunk.endswith(b"\n") and chunk.count(b"\n") == 1 for chunk in got.chunks)
    *lines, last = [json.loads(chunk) for chunk in got.chunks]
    first_keys = ["model", "created_at", *texts("x"), "done"]
    assert [list(line) for line in lines] == [first_keys] * 2
    assert [line | {"created_at": ""} for line in lines] == [
        {"model": "a", "created_at": "", **texts(text), "done": False} for text in ("Hel", "lo")
    ]
    assert re.fullmatch(TIME, last["created_at"])
    assert list(last) == [
        *first_keys, "done_reason", "total_duration", "load_duration", "prompt_eval_count",
        "prompt_eval_duration", "eval_count", "eval_duration",
    ]  # fmt: skip
    assert (last["done"], last["done_reason"], last["eval_count"], last["prompt_eval_count"]) == (
        True,
        "stop",
        2,
        7,
    )
    assert {key: last[key] for key in texts("")} == texts("")
    assert all(isinstance(last[key], int) and last[key] > 0 for key in TIMES)
    assert last["eval_duration"] == 250_000_000


async def test_without_a_stream_the_text_comes_whole(bench: Bench):
    """One object with the keys of the last line, and a length."""
    got = await bench.ask("POST", "/api/chat", {"model": "a", "messages": MESSAGES, "stream": False})
    assert got.headers["Content-Type"] == "application/json; charset=utf-8"
    assert got.headers["Content-Length"] == str(len(got.body))
    assert got.json["message"] == {"role": "assistant", "content": "Hello"}
    assert (got.json["done"], got.json["done_reason"]) == (True, "stop")


@pytest.mark.parametrize(
    ("path", "text"),
    [("/api/chat", {"message": {"role": "assistant", "content": ""}}), ("/api/generate", {"response": ""})],
)
async def test_load_and_unload_forms(bench: Bench, path: str, text: dict[str, Any]):
    """One plain object each, whatever `stream` says; the unload form answers also for what is not loaded."""
    expected = {"model": "a", "created_at": "", **text, "done": True}
    unload = await bench.ask("POST", path, {"model": "a", "keep_alive": 0})
    assert unload.json | {"created_at": ""} == expected | {"done_reason": "unload"}
    assert bench.engine.log == []
    load = await bench.ask("POST", path, {"model": "a"})
    assert load.headers["Content-Type"] == "application/json; charset=utf-8"
    assert load.json | {"created_at": ""} == expected | {"done_reason": "load"}
    await bench.ask("POST", path, {"model": "a", "keep_alive": 0})
    await bench.until(lambda: bench.engine.log == ["load wa 2048", "unload"])


async def test_embed(bench: Bench):
    """A vector for each text; nothing to embed only loads."""
    got = await bench.ask("POST", "/api/embed", {"model": "a", "input": ["x", "y"]})
    assert list(got.json) == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]
    assert got.json["embeddings"] == [[0.6, 0.8], [0.6, 0.8]]
    got = await bench.ask("POST", "/api/embed", {"model": "b", "input": []})
    assert got.body == b'{"model":"b","embeddings":[]}'
    assert bench.engine.log == ["load wa 2048", "embed", "load wb 4096"]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/chat", {"messages": MESSAGES}, 400, "model is required"),
        ("/api/chat", {"model": "nope", "messages": MESSAGES}, 404, "model 'nope' not found"),
        ("/api/generate", {"prompt": "x"}, 404, "model '' not found"),
        ("/api/generate", {"model": "nope", "keep_alive": 0}, 404, "model 'nope' not found"),
        ("/api/generate", b"", 400, "missing request body"),
        ("/api/generate", b"hello", 400, "invalid character 'h' looking for beginning of value"),
        ("/api/chat", {"model": "a", "options": {"seed": "x"}}, 500, 'option "seed" must be of type integer'),
        ("/api/generate", {"model": "a", "suffix": "y"}, 400, f"{FULL_NAME} does not support insert"),
        ("/api/chat", {"model": "a", "tools": [{}]}, 400, f"{FULL_NAME} does not support tools"),
        ("/api/chat", {"model": "a", "think": True}, 400, '"a" does not support thinking'),
        ("/api/embed", {"model": "nope", "input": "x"}, 404, 'model "nope" not found, try pulling it first'),
        ("/api/embed", {"input": "x"}, 404, "model '' not found"),
        ("/api/embed", {"model": "a", "input": 5}, 400, "invalid input type"),
        ("/api/show", {}, 400, "model is required"),
        ("/api/show", {"model": "nope"}, 404, "model 'nope' not found"),
    ],
)  # fmt: skip
async def test_refusals(bench: Bench, path: str, body: object, status: int, message: str):
    """Status and words are Ollama's, also for a stream that has not begun; nothing is loaded for them."""
    got = await bench.ask("POST", path, body)
    assert (got.status, got.json) == (status, {"error": message})
    assert got.headers["Content-Type"] == "application/json; charset=utf-8"
    assert bench.engine.log == []


async def test_an_engine_that_fails_before_the_first_word_gives_a_status(bench: Bench):
    """The stream has not begun, so the status still can say it."""
    bench.engine.words = ()
    got = await failing(bench)
    assert (got.status, got.json) == (500, {"error": "it broke"})


async def test_an_engine_that_fails_later_ends_the_stream_with_an_error_line(bench: Bench):
    """As Ollama does: the status stays 200, and there is no `done`."""
    got = await failing(bench)
    assert got.status == 200
    assert got.chunks[-1] == b'{"error":"it broke"}\n'
    assert b'"done":true' not in got.body


async def failing(bench: Bench) -> Answer:
    await bench.ask("POST", "/api/generate", {"model": "a"})
    bench.engine.held = True
    asked = Deferred.fromCoroutine(bench.ask("POST", "/api/generate", {"model": "a", "prompt": "x"}))
    await bench.until(lambda: bench.engine.pending)
    bench.engine.pending.pop().errback(EngineError(500, "it broke"))
    return await asked


@pytest.fixture
def connections() -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    yield opened
    for connection in opened:
        connection.close()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_its_work(
    bench: Bench, connections: list[socket.socket], stream: bool
):
    """And the next request starts."""
    await bench.ask("POST", "/api/generate", {"model": "a"})
    bench.engine.held = True
    leaving = bench.open("POST", "/api/generate", {"model": "a", "prompt": "x", "stream": stream})
    connections.append(leaving)
    await bench.until(lambda: bench.engine.pending)
    bench.engine.held = False
    leaving.close()
    await bench.until(lambda: bench.engine.cancelled == 1)
    got = await bench.ask("POST", "/api/generate", {"model": "a", "prompt": "x", "stream": False})
    assert got.json["response"] == "Hello"


async def test_a_client_that_leaves_while_it_waits_never_runs(bench: Bench, connections: list[socket.socket]):
    """Its model is not loaded."""
    await bench.ask("POST", "/api/generate", {"model": "a"})
    bench.engine.held = True
    running = bench.open("POST", "/api/generate", {"model": "a", "prompt": "x"})
    await bench.until(lambda: bench.engine.pending)
    waiting = bench.open("POST", "/api/generate", {"model": "b", "prompt": "x"})
    connections += [running, waiting]
    await bench.until(lambda: bench.slot._lock.waiting)
    waiting.close()
    await bench.until(lambda: not bench.slot._lock.waiting)
    bench.engine.held = False
    running.close()
    got = await bench.ask("POST", "/api/generate", {"model": "a", "prompt": "x", "stream": False})
    assert got.status == 200
    assert bench.engine.log == ["load wa 2048", "chat", "chat"]
