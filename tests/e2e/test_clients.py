"""Ollama's own Python client through the daemon, on the real engine: it must not notice foreman."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from attrs import frozen
from ollama import AsyncClient, Client, ResponseError
from twisted.internet.threads import deferToThread

from foreman.embedded.child import EmbeddedTarget

MODEL, OTHER = "smollm2", "smollm2-4k"
ASK: list[dict[str, str]] = [{"role": "user", "content": "Write one short sentence about rain."}]
FEW: dict[str, Any] = {"num_predict": 12, "temperature": 0, "seed": 1}
# The likeliest one goes on for longer than this; of those that are sampled, some end after a few words.
STORY: dict[str, Any] = {"num_predict": 200, "temperature": 0}
START_SECONDS = 20
ANSWER_SECONDS = 50
STOP_SECONDS = 9

T = TypeVar("T")


@frozen
class Daemon:
    """A `twistd foreman` in a process of its own; `target_url` is the embedded target behind it."""

    url: str
    target_url: str
    log: Path

    def turns(self) -> list[str]:
        """The log lines of the turns that are over."""
        return [line for line in self.log.read_text().splitlines() if " waited=" in line]


async def turns_from(daemon: Daemon, before: int, count: int) -> list[str]:
    """The turns after the first so many: `count` at least, as the line of one may come after its answer."""
    until = time.monotonic() + ANSWER_SECONDS
    while len(lines := daemon.turns()[before:]) < count:
        assert time.monotonic() < until, lines
        await deferToThread(time.sleep, 0.02)
    return lines


@pytest.fixture(scope="module")
def daemon(embedded_target: EmbeddedTarget, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for the file."""
    folder = tmp_path_factory.mktemp("daemon")
    log = folder / "foreman.log"
    environment = {name: text for name, text in os.environ.items() if not name.startswith("FOREMAN_")}
    environment |= {
        "FOREMAN_ADDR": "127.0.0.1:0",
        "FOREMAN_OLLAMA_URL": embedded_target.url,
        "FOREMAN_DB_PATH": str(folder / "foreman.db"),
    }
    twistd = str(Path(sys.executable).with_name("twistd"))
    with log.open("wb") as out:
        command = [twistd, "--nodaemon", "--pidfile=", "foreman"]
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=out, stderr=out)
    try:
        found = None
        until = time.monotonic() + START_SECONDS
        while found is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            found = re.search(r"foreman \S+ listens on (\S+),", log.read_text())
            time.sleep(0.02)
        yield Daemon(f"http://{found[1]}", embedded_target.url, log)
        process.terminate()
        # twistd ends by the signal that it was sent, when all is closed.
        assert process.wait(STOP_SECONDS) in (0, -signal.SIGTERM), log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


async def sync(url: str, use: Callable[[Client], T]) -> T:
    """Use the blocking client in a thread: the target's child is watched by this process."""

    def run() -> T:
        with Client(host=url, timeout=ANSWER_SECONDS) as client:
            return use(client)

    return await deferToThread(run)


async def asynchronous(url: str, use: Callable[[AsyncClient], Awaitable[T]]) -> T:
    """Use the asyncio client on a loop of its own, in a thread."""

    async def run() -> T:
        async with AsyncClient(host=url, timeout=ANSWER_SECONDS) as client:
            return await use(client)

    return await deferToThread(lambda: asyncio.run(run()))


def same(through: Any, direct: Any) -> bool:
    """Equal but for the times, which no two runs share."""
    times = {"created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}
    return bool(through.model_dump(exclude=times) == direct.model_dump(exclude=times))


async def test_chat_is_what_the_target_says(daemon: Daemon):
    """Whole and streamed, sync and async: the same text as without foreman, in as many pieces."""
    options = {**FEW, "num_predict": 10}

    def use(client: Client) -> list[Any]:
        return [
            client.chat(MODEL, ASK, options=options),
            *client.chat(MODEL, ASK, options=options, stream=True),
        ]

    async def use_async(client: AsyncClient) -> list[Any]:
        whole = await client.chat(MODEL, ASK, options=options)
        return [whole, *[part async for part in await client.chat(MODEL, ASK, options=options, stream=True)]]

    direct = await sync(daemon.target_url, use)
    assert direct[0].message.content
    assert direct[-1].done
    assert len(direct) > 8
    for through in (await sync(daemon.url, use), await asynchronous(daemon.url, use_async)):
        assert "".join(part.message.content for part in through[1:]) == direct[0].message.content
        assert [same(*pair) for pair in zip(through, direct, strict=True)] == [True] * len(direct)


async def test_generate_is_what_the_target_says(daemon: Daemon):
    """Whole and streamed, sync and async."""

    def use(client: Client) -> list[Any]:
        return [
            client.generate(MODEL, "Once upon a", raw=True, options=FEW),
            *client.generate(MODEL, "Once upon a", raw=True, options=FEW, stream=True),
        ]

    async def use_async(client: AsyncClient) -> list[Any]:
        whole = await client.generate(MODEL, "Once upon a", raw=True, options=FEW)
        stream = await client.generate(MODEL, "Once upon a", raw=True, options=FEW, stream=True)
        return [whole, *[part async for part in stream]]

    direct = await sync(daemon.target_url, use)
    assert direct[0].response
    for through in (await sync(daemon.url, use), await asynchronous(daemon.url, use_async)):
        assert "".join(part.response for part in through[1:]) == direct[0].response
        assert [same(*pair) for pair in zip(through, direct, strict=True)] == [True] * len(direct)


async def test_embed_is_what_the_target_says(daemon: Daemon):
    """One text and several, sync and async, to the last bit."""
    texts = ["A cat sleeps.", "Interest rates rose by two percent."]
    direct = await sync(daemon.target_url, lambda client: client.embed(MODEL, texts))
    through = await sync(daemon.url, lambda client: client.embed(MODEL, texts))
    again = await asynchronous(daemon.url, lambda client: client.embed(MODEL, texts))
    assert [len(vector) for vector in through.embeddings] == [576, 576]
    assert through.embeddings == direct.embeddings == again.embeddings
    one = await sync(daemon.url, lambda client: client.embed(MODEL, texts[0]))
    assert len(one.embeddings) == 1


async def test_reads_are_what_the_target_says(daemon: Daemon):
    """list, show and ps, sync and async."""
    await sync(daemon.url, lambda client: client.generate(OTHER, keep_alive="1h"))

    def use(client: Client) -> list[Any]:
        return [client.list(), client.show(OTHER), client.ps()]

    async def use_async(client: AsyncClient) -> list[Any]:
        return [await client.list(), await client.show(OTHER), await client.ps()]

    direct = await sync(daemon.target_url, use)
    assert {model.model for model in direct[0].models} >= {f"{MODEL}:latest", f"{OTHER}:latest"}
    assert direct[1].parameters.split() == ["num_ctx", "4096"]
    assert [entry.model for entry in direct[2].models] == [f"{OTHER}:latest"]
    assert await sync(daemon.url, use) == direct
    assert await asynchronous(daemon.url, use_async) == direct


async def test_load_and_unload(daemon: Daemon):
    """The load form takes a turn, the unload form none; /api/ps shows both."""
    before = len(daemon.turns())
    loaded = await sync(daemon.url, lambda client: client.generate(MODEL, keep_alive=-1))
    assert (loaded.done, loaded.done_reason) == (True, "load")
    (entry,) = (await sync(daemon.url, lambda client: client.ps())).models
    assert (entry.model, entry.expires_at.year > 2300) == (f"{MODEL}:latest", True)
    unloaded = await asynchronous(daemon.url, lambda client: client.chat(MODEL, [], keep_alive=0))
    assert (unloaded.done, unloaded.done_reason) == (True, "unload")
    until = time.monotonic() + 10
    while (await sync(daemon.url, lambda client: client.ps())).models:
        assert time.monotonic() < until
    assert len(daemon.turns()) == before + 1


async def test_errors_are_ollamas_own(daemon: Daemon):
    """An unknown model is a ResponseError with the target's status and text, sync and async, and no turn."""
    before = len(daemon.turns())
    for ask in (
        lambda client: client.chat("nope", ASK),
        lambda client: list(client.chat("nope", ASK, stream=True)),
        lambda client: client.generate("nope", "x"),
        lambda client: client.show("nope"),
    ):
        with pytest.raises(ResponseError, match="model 'nope' not found") as caught:
            await sync(daemon.url, ask)
        assert caught.value.status_code == 404
    with pytest.raises(ResponseError, match='model "nope" not found, try pulling it first') as caught:
        await sync(daemon.url, lambda client: client.embed("nope", "x"))
    assert caught.value.status_code == 404

    with pytest.raises(ResponseError, match="model 'nope' not found") as caught:
        await asynchronous(daemon.url, lambda client: client.chat("nope", ASK))
    assert caught.value.status_code == 404
    assert len(daemon.turns()) == before


async def test_an_error_of_a_turn_is_the_targets(daemon: Daemon):
    """A prompt longer than the context: the 400 comes before the first word, and the turn is free again."""
    with pytest.raises(ResponseError, match="exceeds the available context size") as caught:
        await sync(daemon.url, lambda client: list(client.generate(MODEL, "word " * 3000, stream=True)))
    assert caught.value.status_code == 400
    assert (await sync(daemon.url, lambda client: client.generate(MODEL, "x", options=FEW))).done


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/a/new/one"),
        ("POST", "/api/pull"),
        ("GET", "/api/unknown"),
        ("PUT", "/api/chat"),
        ("GET", "/v1/models"),
        ("DELETE", "/"),
    ],
)
async def test_what_the_target_does_not_serve_is_its_own_refusal(daemon: Daemon, method: str, path: str):
    """The embedded target has no /v1 and pulls nothing: its answer passes, whatever foreman knows."""
    body = b'{"model": "smollm2", "messages": []}' if method == "POST" else None

    def ask(url: str) -> tuple[int, dict[str, str], bytes]:
        answer = httpx.request(method, url + path, content=body, timeout=ANSWER_SECONDS)
        kept = {
            name.lower(): text
            for name, text in answer.headers.items()
            if not name.lower().startswith(("x-foreman-", "date", "connection", "keep-alive"))
        }
        return answer.status_code, kept, answer.content

    direct = await deferToThread(ask, daemon.target_url)
    assert direct[0] in (404, 405)
    assert await deferToThread(ask, daemon.url) == direct


async def test_waiting_requests_are_drained_by_model(daemon: Daemon):
    """Six requests that alternate the models wait behind a stream: the other model is loaded once."""

    def loads() -> int:
        return int(httpx.get(daemon.target_url + "/api/ps").headers["X-Embedded-Loads"])

    async def six(client: AsyncClient) -> list[Any]:
        story = await client.generate(MODEL, "Tell a story.", options=STORY, stream=True)
        await anext(story)

        async def rest() -> Any:
            return [part async for part in story][-1]

        asks = [client.generate(name, "hi", options={**FEW, "num_predict": 2}) for name in (OTHER, MODEL) * 3]
        return await asyncio.gather(rest(), *asks)

    turns = len(daemon.turns())
    await sync(daemon.url, lambda client: client.generate(MODEL, "x", options={"num_predict": 1}))
    before = await deferToThread(loads)
    answers = await asynchronous(daemon.url, six)
    assert [answer.done for answer in answers] == [True] * 7
    assert await deferToThread(loads) == before + 1  # the first model was resident
    lines = (await turns_from(daemon, turns, 8))[1:]
    assert len(lines) == 7
    assert all("status=200" in line and line.endswith(": ok") for line in lines)
    order = [f"model={MODEL!r} " in line for line in lines]
    assert order == [True] * 4 + [False] * 3


async def test_waiting_requests_are_drained_by_context_length(daemon: Daemon):
    """One model with two values of num_ctx in turn; 2048.0 is 2048, and the model's own needs no load."""

    def loads() -> int:
        return int(httpx.get(daemon.target_url + "/api/ps").headers["X-Embedded-Loads"])

    async def ask(client: AsyncClient, name: str, **options: Any) -> Any:
        return await client.generate(name, "hi", options={**FEW, "num_predict": 2, **options})

    async def nine(client: AsyncClient) -> list[Any]:
        story = await client.generate(OTHER, "Tell a story.", options=STORY, stream=True)
        await anext(story)

        async def rest() -> Any:
            return [part async for part in story][-1]

        small = [{"num_ctx": 1024}, {"num_ctx": 1024.0}] * 2
        own: list[dict[str, Any]] = [{}, {"num_ctx": 4096}] * 2
        asks = [ask(client, OTHER, **options) for pair in zip(small, own, strict=True) for options in pair]
        return await asyncio.gather(rest(), *asks)

    await sync(daemon.url, lambda client: client.generate(OTHER, "x", options={"num_predict": 1}))
    before = await deferToThread(loads)
    answers = await asynchronous(daemon.url, nine)
    assert [answer.done for answer in answers] == [True] * 9
    assert await deferToThread(loads) == before + 1  # the model's own context length was resident


async def test_a_batch_keeps_the_load_of_its_job_that_was_cancelled(daemon: Daemon):
    """The first of two jobs is cancelled while its model loads: the second one takes that load over."""

    def loads() -> int:
        return int(httpx.get(daemon.target_url + "/api/ps").headers["X-Embedded-Loads"])

    def poll(client: httpx.Client, url: str, true: Callable[[Any], object]) -> Any:
        until = time.monotonic() + ANSWER_SECONDS
        while not true(shown := client.get(url).json()):
            assert time.monotonic() < until, shown
        return shown

    def batch() -> tuple[Any, Any]:
        asked = {"model": OTHER, "prompt": "hi", "options": {"num_predict": 2, "num_ctx": 512}}
        # One connection for all: a load takes no longer than some connections of httpx's.
        with httpx.Client(base_url=daemon.url, timeout=ANSWER_SECONDS) as client:
            client.get("/healthz")
            urls = [client.post("/jobs", json=asked).headers["Location"] for _ in range(2)]
            poll(client, urls[0], lambda shown: (shown["progress"] or {}).get("phase") == "loading")
            client.post(f"{urls[0]}/cancel")
            ended = [
                poll(client, url, lambda shown: shown["status"] in ("cancelled", "succeeded")) for url in urls
            ]
        return ended[0], ended[1]

    await sync(daemon.url, lambda client: client.generate(MODEL, "x", options={"num_predict": 1}))
    before = await deferToThread(loads)
    cancelled, kept = await deferToThread(batch)
    assert (cancelled["status"], kept["status"]) == ("cancelled", "succeeded")
    assert cancelled["result"] is None
    assert kept["metrics"]["load_seconds"] > 0
    assert await deferToThread(loads) == before + 1
