"""Ollama's own Python client on the real engine: sync and async, streaming and not."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
import pytest
from ollama import AsyncClient, Client, ResponseError
from twisted.internet.threads import deferToThread

MODEL = "smollm2"
LONG = "smollm2-4k"
ASK: list[dict[str, str]] = [{"role": "user", "content": "Write one short sentence about rain."}]
FEW: dict[str, Any] = {"num_predict": 12, "temperature": 0, "seed": 1}

T = TypeVar("T")


async def sync(base_url: str, use: Callable[[Client], T]) -> T:
    """Use the blocking client in a thread: what it talks to may live in this process."""

    def run() -> T:
        client = Client(host=base_url, timeout=50)
        try:
            return use(client)
        finally:
            client.close()

    return await deferToThread(run)


async def asynchronous(base_url: str, use: Callable[[AsyncClient], Awaitable[T]]) -> T:
    """Use the asyncio client on a loop of its own, in a thread."""

    async def run() -> T:
        client = AsyncClient(host=base_url, timeout=50)
        try:
            return await use(client)
        finally:
            await client.close()

    return await deferToThread(lambda: asyncio.run(run()))


def check_last(part: Any, reason: str = "length") -> None:
    """The final object has its counts and durations in nanoseconds."""
    assert (part.done, part.done_reason) == (True, reason)
    assert part.eval_count == FEW["num_predict"]
    assert part.prompt_eval_count > 0
    assert 0 < part.eval_duration < part.total_duration
    assert 0 < part.load_duration < part.total_duration


async def test_chat(base_url: str):
    """Streamed word by word and whole, the text is the same at temperature 0."""
    whole = await sync(base_url, lambda client: client.chat(MODEL, ASK, options=FEW))
    parts = await sync(base_url, lambda client: list(client.chat(MODEL, ASK, options=FEW, stream=True)))
    check_last(whole)
    check_last(parts[-1])
    assert len(parts) > 5
    assert whole.message.content
    assert "".join(part.message.content for part in parts) == whole.message.content


async def test_chat_async(base_url: str):
    """The same with the asyncio client."""

    async def use(client: AsyncClient) -> tuple[Any, list[Any]]:
        whole = await client.chat(MODEL, ASK, options=FEW)
        return whole, [part async for part in await client.chat(MODEL, ASK, options=FEW, stream=True)]

    whole, parts = await asynchronous(base_url, use)
    check_last(whole)
    check_last(parts[-1])
    assert "".join(part.message.content for part in parts) == whole.message.content


async def test_generate(base_url: str):
    """With the template, raw, streamed and whole."""
    whole = await sync(base_url, lambda client: client.generate(MODEL, "Say hello.", options=FEW))
    parts = await sync(
        base_url, lambda client: list(client.generate(MODEL, "Say hello.", options=FEW, stream=True))
    )
    check_last(parts[-1], whole.done_reason)
    assert "".join(part.response for part in parts) == whole.response
    raw = await sync(base_url, lambda client: client.generate(MODEL, "Once upon a", raw=True, options=FEW))
    check_last(raw)


async def test_generate_async(base_url: str):
    """The same with the asyncio client."""

    async def use(client: AsyncClient) -> tuple[Any, list[Any]]:
        whole = await client.generate(MODEL, "Tell me about the sea.", options=FEW)
        stream = await client.generate(MODEL, "Tell me about the sea.", options=FEW, stream=True)
        return whole, [part async for part in stream]

    whole, parts = await asynchronous(base_url, use)
    check_last(whole)
    assert "".join(part.response for part in parts) == whole.response


async def test_embed(base_url: str):
    """Vectors of length 1; near texts are nearer than far ones; also async."""
    texts = ["A cat sleeps.", "A kitten is sleeping.", "Interest rates rose by two percent."]
    got = await sync(base_url, lambda client: client.embed(MODEL, texts))
    cat, kitten, money = got.embeddings
    assert len(cat) == 576
    assert sum(x * x for x in cat) == pytest.approx(1, abs=1e-3)
    assert dot(cat, kitten) > dot(cat, money)
    assert got.prompt_eval_count > 3
    again = await asynchronous(base_url, lambda client: client.embed(MODEL, texts[0]))
    assert dot(again.embeddings[0], cat) == pytest.approx(1, abs=1e-2)


def dot(one: Any, two: Any) -> float:
    return sum(x * y for x, y in zip(one, two, strict=True))


async def test_list_show_ps(base_url: str):
    """Both models are listed and shown; the one that ran last is loaded."""
    names = [model.model for model in (await sync(base_url, lambda client: client.list())).models]
    assert {"smollm2:latest", "smollm2-4k:latest"} <= set(names)
    shown = await sync(base_url, lambda client: client.show(LONG))
    assert shown.parameters.split() == ["num_ctx", "4096"]
    assert (shown.details.family, shown.details.quantization_level) == ("llama", "Q4_1")
    assert shown.capabilities == ["completion"]
    await sync(base_url, lambda client: client.generate(LONG, "hi", options={"num_predict": 1}))
    (entry,) = (await sync(base_url, lambda client: client.ps())).models
    assert (entry.model, entry.context_length) == ("smollm2-4k:latest", 4096)

    async def use(client: AsyncClient) -> tuple[Any, Any, Any]:
        return await client.list(), await client.show(MODEL), await client.ps()

    listed, shown, loaded = await asynchronous(base_url, use)
    assert [model.model for model in listed.models] == names
    assert shown.parameters.split() == ["num_ctx", "2048"]
    assert loaded.models[0].model == "smollm2-4k:latest"


async def test_load_and_unload(base_url: str):
    """An empty prompt loads, `keep_alive` 0 unloads, and /api/ps shows both."""
    loaded = await sync(base_url, lambda client: client.generate(MODEL, keep_alive=-1))
    assert loaded.done_reason == "load"
    (entry,) = (await sync(base_url, lambda client: client.ps())).models
    assert (entry.model, entry.expires_at.year > 2300) == ("smollm2:latest", True)
    unloaded = await sync(base_url, lambda client: client.generate(MODEL, keep_alive=0))
    assert unloaded.done_reason == "unload"
    await until(base_url, lambda client: client.ps().models == [])


async def test_a_model_expires(base_url: str):
    """A short `keep_alive` frees it for real."""
    await sync(base_url, lambda client: client.generate(MODEL, keep_alive="100ms"))
    await until(base_url, lambda client: client.ps().models == [])


async def until(base_url: str, true: Callable[[Client], bool]) -> None:
    """Ask until it holds; the file's time limit is the limit."""
    while not await sync(base_url, true):
        pass


async def test_stop_words_end_a_text(base_url: str):
    """`done_reason` says so."""
    got = await sync(
        base_url,
        lambda client: client.generate(MODEL, "1 2 3 4 5 6 7", raw=True, options={**FEW, "stop": [" 9"]}),
    )
    assert got.done_reason == "stop"
    assert "9" not in got.response


async def test_format(base_url: str):
    """A schema binds what the model may say."""
    schema = {"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"]}
    got = await sync(
        base_url, lambda client: client.chat(MODEL, ASK, format=schema, options={"num_predict": 64})
    )
    assert '"wet"' in got.message.content


async def test_unknown_model(base_url: str):
    """The client raises Ollama's own sentence."""
    for ask in (
        lambda client: client.chat("nope", ASK),
        lambda client: client.generate("nope", "x"),
        lambda client: client.show("nope"),
    ):
        with pytest.raises(ResponseError, match="model 'nope' not found") as caught:
            await sync(base_url, ask)
        assert caught.value.status_code == 404
    with pytest.raises(ResponseError, match='model "nope" not found, try pulling it first'):
        await sync(base_url, lambda client: client.embed("nope", "x"))


async def test_a_prompt_longer_than_the_context_is_an_error(base_url: str):
    """Before the first word, so it has a status; the model stays usable."""
    with pytest.raises(ResponseError, match="exceeds the available context size") as caught:
        await sync(base_url, lambda client: list(client.generate(MODEL, "word " * 3000, stream=True)))
    assert caught.value.status_code == 400


@pytest.fixture
def loads(embedded_target: Any) -> Callable[[], int]:
    """How many loads the engine has done."""
    return lambda: int(httpx.get(embedded_target.url + "/api/ps").headers["X-Embedded-Loads"])


async def test_alternating_models_loads_each_time(embedded_target: Any, loads: Callable[[], int]):
    """What foreman is for: alone, the target thrashes. `load_duration` shows it too."""
    url = embedded_target.url
    await sync(url, lambda client: client.generate(MODEL))
    before = await deferToThread(loads)
    answers = [
        await sync(url, lambda client, name=name: client.generate(name, "hi", options={"num_predict": 1}))
        for name in (LONG, MODEL, MODEL, LONG, LONG, MODEL)
    ]
    assert await deferToThread(loads) == before + 4
    warm = max(answers[2].load_duration, answers[4].load_duration)
    assert warm < min(answers[index].load_duration for index in (0, 1, 3, 5))


async def test_num_ctx_alone_reloads(embedded_target: Any, loads: Callable[[], int]):
    """The same weights with another context length are a swap, whoever asked for it."""
    url = embedded_target.url
    await sync(url, lambda client: client.generate(MODEL))
    before = await deferToThread(loads)
    await sync(url, lambda client: client.generate(MODEL, "hi", options={"num_ctx": 1024, "num_predict": 1}))
    await sync(url, lambda client: client.embed(MODEL, "hi", options={"num_ctx": 1024}))
    await sync(url, lambda client: client.embed(MODEL, "hi"))
    assert await deferToThread(loads) == before + 2
