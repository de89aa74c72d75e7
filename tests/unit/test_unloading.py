"""Unloading: every model is told, and it is over when none is in memory."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from test_embedder import Bench
from twisted.internet.defer import Deferred

from foreman.errors import TargetRefused
from foreman.target.inventory import Inventory
from foreman.target.unloading import Unloader

LIMIT = 10.0


def unloader(bench: Bench, client: Any = None, limit: float = LIMIT) -> Unloader:
    """With an inventory of its own: to that of the bench the embedder listens, which is not paused here."""
    return Unloader(bench.clock, client or bench.client, Inventory(bench.clock, bench.client, 30.0), limit)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def begin(bench: Bench) -> list[bool]:
    results: list[bool] = []
    unloading = Deferred.fromCoroutine(unloader(bench).unload())
    unloading.addCallback(results.append)
    return results


def told(bench: Bench) -> list[str]:
    """The models that were told, in order."""
    bodies: list[Any] = [json.loads(exchange.body) for exchange in bench.fake.seen("/api/generate")]
    assert all(set(body) == {"model", "keep_alive"} for body in bodies)
    return [body["model"] for body in bodies if body["keep_alive"] == 0]


def pass_seconds(bench: Bench, seconds: float) -> None:
    for _ in range(round(seconds / 0.25)):
        bench.clock.advance(0.25)
        bench.stub.flush()


async def test_nothing_to_do(bench: Bench) -> None:
    """It is looked twice, because a load is not in the list before its end."""
    results = begin(bench)
    pass_seconds(bench, 0.5)
    assert (results, told(bench)) == ([True], [])
    assert not bench.clock.getDelayedCalls()


async def test_all_of_them(bench: Bench) -> None:
    """The pinned embedder, too; nobody is told twice in vain."""
    await bench.client.pin("embed")
    await bench.client.pin("alpha")
    results = begin(bench)
    pass_seconds(bench, 1.0)
    assert results == [True]
    assert told(bench) == ["alpha:latest", "embed:latest"]
    assert not bench.fake.gpu.resident()


async def test_one_that_finishes_first(bench: Bench) -> None:
    """A target unloads after what runs there: it is waited for."""
    bench.fake.token_interval = 1.0
    running = Deferred.fromCoroutine(bench.use("alpha", prompt="p", keep_alive=0, stream=False))
    results = begin(bench)
    pass_seconds(bench, 3.0)
    assert results == []
    pass_seconds(bench, 2.5)
    await running
    assert results == [True]


async def test_one_that_was_about_to_be_loaded(bench: Bench) -> None:
    """A model that appears while another goes is told, too."""
    await bench.client.pin("embed")
    bench.fake.gpu.load_seconds = 0.2
    bench.fake.hold("/api/embed")
    loading = Deferred.fromCoroutine(bench.client.pin("alpha"))
    results = begin(bench)
    assert told(bench) == ["embed:latest"]
    pass_seconds(bench, 0.25)
    bench.fake.release()
    bench.stub.flush()
    pass_seconds(bench, 1.5)
    await loading
    assert results == [True]
    assert "alpha:latest" in told(bench)


async def test_an_aborted_load_that_ends_all_the_same(bench: Bench) -> None:
    """Nothing is loaded at the first look, and something is at the next."""
    results = begin(bench)
    await bench.client.pin("alpha")
    pass_seconds(bench, 0.5)
    assert (results, told(bench)) == ([], ["alpha:latest"])
    pass_seconds(bench, 1.0)
    assert results == [True]


async def test_gives_up(bench: Bench) -> None:
    """A target that keeps a model, or is away, is asked up to the limit."""
    bench.refused = True
    results = begin(bench)
    pass_seconds(bench, LIMIT - 1)
    assert results == []
    pass_seconds(bench, 1.0)
    assert results == [False]
    assert not bench.clock.getDelayedCalls()


async def test_one_that_is_refused_keeps_no_other(bench: Bench) -> None:
    """A model that was deleted while it was loaded, say."""
    await bench.client.pin("embed")
    await bench.client.pin("alpha")
    unload, refused = bench.client.unload, []

    async def refusing(name: str) -> None:
        if name.startswith("alpha"):
            refused.append(name)
            raise TargetRefused(404, "model 'alpha' not found")
        await unload(name)

    client = SimpleNamespace(ps=bench.client.ps, unload=refusing)
    results: list[bool] = []
    unloading = Deferred.fromCoroutine(unloader(bench, client, 2.0).unload())
    unloading.addCallback(results.append)
    pass_seconds(bench, 2.5)
    assert results == [False]
    assert refused
    assert [entry.name for entry in await bench.client.ps()] == ["alpha:latest"]


async def test_a_target_that_comes_back(bench: Bench) -> None:
    """What was not answered is asked again."""
    await bench.client.pin("alpha")
    bench.refused = True
    results = begin(bench)
    pass_seconds(bench, 2.0)
    assert results == []
    bench.refused = False
    pass_seconds(bench, 1.5)
    assert results == [True]
    assert told(bench) == ["alpha:latest"]


async def test_cancelled(bench: Bench) -> None:
    """It asks no more."""
    bench.refused = True
    unloading = Deferred.fromCoroutine(unloader(bench).unload())
    unloading.addErrback(lambda failure: failure.value)
    unloading.cancel()
    assert type(await unloading).__name__ == "CancelledError"
    assert not bench.clock.getDelayedCalls()


async def test_what_it_unloads_is_said_and_the_list_is_read_at_the_end(bench: Bench) -> None:
    """Each model that was told, when it was; and nobody hears of the end before the empty list was read."""
    await bench.client.pin("alpha")
    inventory = Inventory(bench.clock, bench.client, 30.0)
    await inventory.refresh()
    heard: list[str] = []
    results: list[bool] = []
    unloading = Unloader(bench.clock, bench.client, inventory, LIMIT, heard.append)
    Deferred.fromCoroutine(unloading.unload()).addCallback(results.append)
    assert heard == ["alpha:latest"]
    bench.fake.hold("/api/tags")
    pass_seconds(bench, 1.0)
    assert (results, len(inventory.loaded)) == ([], 1)
    bench.fake.release()
    bench.stub.flush()
    assert (results, inventory.loaded) == ([True], [])


async def test_what_was_not_told_is_not_said(bench: Bench) -> None:
    """A model that the target will not unload is there still."""
    await bench.client.pin("alpha")
    bench.fake.fail("/api/generate", 404, "model 'alpha' not found", times=None)
    heard: list[str] = []
    unloading = unloader(bench, limit=1.0)
    unloading.on_told = heard.append
    results: list[bool] = []
    Deferred.fromCoroutine(unloading.unload()).addCallback(results.append)
    pass_seconds(bench, 1.5)
    assert (results, heard) == ([False], [])
