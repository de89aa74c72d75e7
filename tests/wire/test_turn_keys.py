"""The whole model key, on the wire: what the target would reload for is a line of its own, nothing else."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_twisted
from turn_rig import Rig, chat, reactor, until

from foreman.testing.gpu import FakeModel
from foreman.testing.ollama import FakeOllama

PARENT = FakeModel.make("parent:latest")
CHILD = FakeModel("child:latest", PARENT.weights, "c" * 64)  # as `create … from` with a system prompt
WIDE = FakeModel.make("wide:latest", PARENT.weights, 8192)


@pytest_twisted.async_yield_fixture
async def fake() -> AsyncIterator[FakeOllama]:
    """An Ollama with room for one model."""
    yield FakeOllama(reactor, models=[PARENT, CHILD, WIDE])


async def drain(r: Rig, fake: FakeOllama, bodies: Sequence[dict[str, Any]]) -> list[int]:
    """Have all of them wait before the first is answered; the order in which they then ran."""
    fake.hold("/api/chat")
    calls = [await r.begin("/api/chat", body) for body in bodies]
    await until(lambda: r.turn.waiting == len(bodies) - 1)
    fake.release()
    for call in calls:
        await r.wait(call)
    assert [call.status for call in calls] == [200] * len(bodies)
    assert all(json.loads(call.body.splitlines()[-1])["done"] for call in calls)
    arrived = [call.headers["x-foreman-job-id"] for call in calls]
    return [arrived.index(line.job_id) for line in r.turns]


async def test_forty_requests_that_alternate_two_context_lengths_are_two_loads(r: Rig, fake: FakeOllama):
    """One model, two values of num_ctx: forty reloads in the order of arrival, two loads by key."""
    bodies = [chat("parent", options={"num_ctx": (2048, 8192)[number % 2]}) for number in range(40)]
    order = await drain(r, fake, bodies)
    assert fake.loads == ["parent:latest"] * 2
    assert order == [*range(0, 40, 2), *range(1, 40, 2)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (chat("parent"), chat("child")),
        (chat("parent"), chat("parent", options={"temperature": 0.5, "num_predict": 2}, shift=True)),
        (chat("parent", options={"num_ctx": 2048}), chat("child", options={"num_ctx": 2048.0})),
        (chat("wide"), chat("parent", options={"num_ctx": 8192})),
        (chat("parent"), chat("child", options={"num_gpu": -1, "num_thread": 0})),
    ],
    ids=["a child", "options of sampling", "2048.0", "a model's own num_ctx", "unset values"],
)
async def test_what_the_target_does_not_reload_for_is_one_line(
    r: Rig, fake: FakeOllama, one: Any, other: Any
):
    """They are served in the order of arrival, with one load."""
    assert await drain(r, fake, [one, other] * 4) == list(range(8))
    assert len(fake.loads) == 1


@pytest.mark.parametrize(
    "other",
    [
        chat("wide"),
        chat("child", shift=False),
        chat("parent", options={"num_gpu": 1}),
        chat("parent", options={"use_mmap": False}),
        chat("child", options={"num_ctx": 4}),
    ],
    ids=["num_ctx of another model", "shift", "num_gpu", "use_mmap", "num_ctx"],
)
async def test_what_the_target_reloads_for_is_a_line_of_its_own(r: Rig, fake: FakeOllama, other: Any):
    """Alternating requests are two loads, not eight."""
    order = await drain(r, fake, [chat("parent"), other] * 4)
    assert order == [0, 2, 4, 6, 1, 3, 5, 7]
    assert len(fake.loads) == 2


async def test_an_explicit_num_ctx_that_is_the_automatic_one_joins_the_line_once_it_was_seen(
    r: Rig, fake: FakeOllama
):
    """The target's own num_ctx is in no answer but /api/ps, after a request without one ran."""
    await r.ask("/api/chat", chat("parent"))
    await r.parts.inventory.refresh()
    r.turns.clear()
    bodies = [chat("parent"), chat("parent", options={"num_ctx": 4096.0})] * 4
    assert await drain(r, fake, bodies) == list(range(8))
    assert fake.loads == ["parent:latest"]


async def test_jobs_with_options_drain_by_key_with_the_callers(r: Rig, fake: FakeOllama):
    """A job and a native request that ask for the same runner are no swap for each other."""
    held = await r.hold("parent")
    wide = {"options": {"num_ctx": 8192.0}}
    for number in range(6):
        submitted = await r.ask("/jobs", chat("parent", **(wide if number % 2 else {})))
        assert submitted.status == 202
    fake.release()
    await r.wait(held)
    await until(lambda: len(fake.seen("/api/chat")) == 7 and r.turn.free)
    assert (await r.ask("/api/chat", chat("wide"))).status == 200
    assert fake.loads == ["parent:latest"] * 2


async def test_a_reading_while_another_context_length_is_loaded_teaches_nothing(r: Rig, fake: FakeOllama):
    """/api/ps shows a runner before the first byte of its answer: 8192 is not the target's own."""
    for _ in range(2):  # the second is no swap, so the inventory is not read after it
        await r.ask("/api/chat", chat("parent"))
        await until(lambda: not r.parts.inventory._polls._busy)
    held = chat("parent", options={"num_ctx": 8192})
    fake.hold("/api/chat")
    call = await r.begin("/api/chat", held)
    await until(lambda: [runner.context_length for runner in fake.gpu.resident()] == [8192])
    await r.parts.inventory.refresh()
    fake.release()
    await r.wait(call)
    r.turns.clear()
    assert await drain(r, fake, [chat("parent"), held] * 3) == [0, 2, 4, 1, 3, 5]
    assert len(fake.loads) == 4
