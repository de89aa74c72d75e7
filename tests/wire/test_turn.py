"""One turn, on the wire: who waits, who passes, in which order, and what the caller and the log are told."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import evolve
from turn_rig import SOON_SECONDS, Rig, chat, reactor, rig, until
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from foreman.testing.gpu import FakeModel
from foreman.testing.ollama import FakeOllama


def later(coroutine: Any) -> Deferred[Any]:
    return Deferred.fromCoroutine(coroutine)


@pytest_twisted.async_yield_fixture
async def fake() -> AsyncIterator[FakeOllama]:
    """An Ollama with room for two models, so that the turn is the only thing to wait for."""
    fake = FakeOllama(reactor, slots=2)
    yield fake


async def test_forty_waiting_requests_are_two_loads(tmp_path: Path, fake: FakeOllama, target_port: int):
    """They alternate two models, all wait, and the queue drains by model: 2 loads, the first included."""
    fake.slots = fake.gpu.slots = 1
    fake.gpu.load_seconds = 0.05
    async with rig(tmp_path, fake, target_port) as r:
        fake.hold("/api/chat")
        calls = [await r.begin("/api/chat", chat(("alpha", "beta")[number % 2])) for number in range(40)]
        await until(lambda: r.turn.waiting == 39)
        fake.release()
        for call in calls:
            await r.wait(call)
        assert fake.loads == ["alpha:latest", "beta:latest"]
        assert [call.status for call in calls] == [200] * 40
        assert all(call.complete and json.loads(call.body.splitlines()[-1])["done"] for call in calls)
        models = [line.model for line in r.turns]
        assert models == ["alpha"] * 20 + ["beta"] * 20
        # Within a line, first come first served.
        arrived = [call.headers["x-foreman-job-id"] for call in calls]
        assert [line.job_id for line in r.turns] == arrived[::2] + arrived[1::2]
        assert r.turn.free


async def test_a_steady_stream_yields_to_another_model(tmp_path: Path, fake: FakeOllama, target_port: int):
    """
    Callers keep one model's line full; one request for another model starts within the bound of its line:
    its own maximal wait, then the running job and the rest of the visit. Not before either.
    """
    fake.token_interval = 0.01
    run_seconds, max_wait, visit = 0.03, 0.3, 0.2
    limits = {"interactive_max_wait": "300ms", "interactive_visit": "200ms"}
    async with rig(tmp_path, fake, target_port, **limits) as r:
        go_on = True

        async def caller() -> None:
            while go_on:
                assert (await r.ask("/api/chat", chat("alpha"))).status == 200

        callers = [later(caller()) for _ in range(4)]
        await until(lambda: len(r.turns) >= 4)
        call = await r.ask("/api/chat", chat("beta"))
        after = len(r.turns)
        await until(lambda: len(r.turns) >= after + 4)
        go_on = False
        await gatherResults(callers)
        waited = int(call.headers["x-foreman-queue-ms"]) / 1000
        # The running times above are the fake's own: whatever a busy machine adds to one run, all runs show.
        slack = 0.25 + 2 * max(line.run_seconds - run_seconds for line in r.turns)
        assert max_wait <= waited <= max_wait + run_seconds + visit + slack
        order = [line.model for line in r.turns]
        assert order.count("beta") == 1
        assert "alpha" in order[order.index("beta") + 1 :]
        assert fake.loads == ["alpha:latest", "beta:latest"]


async def test_a_resident_line_goes_before_an_older_one_that_needs_a_load(r: Rig, fake: FakeOllama):
    """The visit goes on while nobody is overdue: the later request for the running model is first."""
    held = await r.hold("alpha")
    beta = await r.begin("/api/chat", chat("beta"))
    await until(lambda: r.turn.waiting == 1)
    alpha = await r.begin("/api/chat", chat("alpha"))
    await until(lambda: r.turn.waiting == 2)
    fake.release()
    for call in (held, beta, alpha):
        await r.wait(call)
    assert [line.model for line in r.turns] == ["alpha", "alpha", "beta"]


@pytest.mark.parametrize(
    ("method", "path", "asked", "status"),
    [
        ("GET", "/", None, 200),
        ("HEAD", "/", None, 200),
        ("GET", "/api/version", None, 200),
        ("GET", "/api/tags", None, 200),
        ("GET", "/api/ps", None, 200),
        ("POST", "/api/show", {"model": "beta"}, 200),
        ("POST", "/api/embed", {"model": "alpha", "input": "x"}, 200),
        ("POST", "/api/copy", {"source": "beta", "destination": "copy"}, 200),
        ("DELETE", "/api/delete", {"model": "beta"}, 200),
        ("GET", "/api/chat", None, 405),
        ("POST", "/api/chat", {"model": "alpha", "keep_alive": 0}, 200),
        ("POST", "/api/generate", {"model": "beta", "keep_alive": "0s"}, 200),
        ("POST", "/api/chat", {"messages": []}, 400),
        ("GET", "/healthz", None, 200),
    ],
)
async def test_what_needs_no_turn_passes_while_it_is_held(
    r: Rig, fake: FakeOllama, method: str, path: str, asked: Any, status: int
):
    """Reads, embeddings, the store, the unload form, what cannot generate: answered at once, with no id."""
    held = await r.hold()
    call = await r.ask(path, asked, method)
    assert (call.status, "x-foreman-job-id" in call.headers) == (status, False)
    assert r.turn.holder is not None
    assert not held.received
    fake.release()
    assert (await r.wait(held)).status == 200


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/api/generate", {"model": "beta", "prompt": "x"}),
        ("/api/generate", {"model": "beta"}),
        ("/api/chat", {"MODEL": "alpha", "messages": [{}]}),
        ("/v1/chat/completions", {"model": "beta", "messages": []}),
        ("/v1/completions", {"model": "beta", "prompt": "x"}),
        ("/v1/responses", {"model": "beta", "input": "x"}),
        ("/v1/messages", {"model": "beta", "messages": []}),
        ("/v1/something/new", {"model": "beta"}),
        ("/v1/something/new", b"no model"),
        ("/api/%63hat", chat("beta")),
    ],
)
async def test_what_generates_waits_for_the_turn(r: Rig, fake: FakeOllama, path: str, asked: Any):
    """Also the load form, and what foreman does not know below /v1: the target does not see it before."""
    held = await r.hold()
    call = await r.begin(path, asked)
    await until(lambda: r.turn.waiting == 1)
    before = len(fake.requests)
    # Whatever was sent to the target would have come before the answer to this.
    await r.ask("/api/version")
    assert [exchange.path for exchange in fake.requests[before:]] == ["/api/version"]
    assert not call.received
    fake.release()
    await r.wait(held)
    assert "x-foreman-job-id" in (await r.wait(call)).headers
    assert [exchange.path for exchange in fake.requests].count(path) >= 1


async def test_an_unknown_model_is_refused_at_once_by_the_target(r: Rig, fake: FakeOllama):
    """While the turn is held, after exactly one fresh look at the list of models; in the path's dialect."""
    held = await r.hold()
    for path, error in (
        ("/api/chat", "model 'nope' not found"),
        ("/v1/chat/completions", {"message": "model 'nope' not found", "type": "not_found_error"}),
    ):
        before = len(fake.requests)
        call = await r.ask(path, chat("nope"))
        got = call.json()["error"]
        assert call.status == 404
        assert got == error if isinstance(error, str) else got.items() >= error.items()
        assert "x-foreman-job-id" not in call.headers
        assert [exchange.path for exchange in fake.requests[before:]] == ["/api/tags", path]
    assert r.turns == []
    fake.release()
    await r.wait(held)


async def test_a_cloud_model_passes_without_a_look(r: Rig, fake: FakeOllama):
    """It does not use the GPU: by its name, or by what the target says of it."""
    fake.models.append(evolve(FakeModel.make("far:latest"), remote_host="https://ollama.example"))
    await r.parts.inventory.refresh()
    fake.models.append(FakeModel.make("big:120b-cloud"))
    held = await r.hold()
    for name in ("big:120b-cloud", "far"):
        before = len(fake.requests)
        call = await r.ask("/api/generate", {"model": name, "prompt": "x"})
        assert (call.status, "x-foreman-job-id" in call.headers) == (200, False)
        assert [exchange.path for exchange in fake.requests[before:]] == ["/api/generate"]
    fake.release()
    await r.wait(held)


async def test_a_model_that_was_pulled_is_known_at_once(r: Rig, fake: FakeOllama):
    """Pulled through foreman: the list is read again by itself. Pulled elsewhere: when it is asked for."""
    assert (await r.ask("/api/pull", {"model": "gamma"})).status == 200
    await until(lambda: r.parts.inventory.model("gamma") is not None)
    held = await r.hold()
    fake.models.append(FakeModel.make("delta:latest"))
    before = len(fake.seen("/api/tags"))
    calls = [await r.begin("/api/chat", chat(name)) for name in ("gamma", "delta")]
    await until(lambda: r.turn.waiting == 2)
    assert len(fake.seen("/api/tags")) == before + 1
    fake.release()
    for call in (held, *calls):
        assert (await r.wait(call)).status == 200
    assert "x-foreman-job-id" in calls[0].headers


@pytest.mark.parametrize("body", [b"{nonsense", b"", b"[1]", b"\x1f\x8b\x08gzip?"])
async def test_a_body_that_nobody_can_read_takes_a_turn(r: Rig, fake: FakeOllama, body: bytes):
    """It might generate: it waits, and the target's own answer is the answer."""
    held = await r.hold()
    call = await r.begin("/api/generate", body)
    await until(lambda: r.turn.waiting == 1)
    fake.release()
    await r.wait(held)
    assert (await r.wait(call)).status in (400, 404)
    # The first is of foreman itself, which loaded the model of the request that holds the turn.
    assert [exchange.body for exchange in fake.seen("/api/generate")] == [b'{"model": "alpha"}', body]
    assert call.json() == {"error": call.json()["error"]}
    (line,) = [line for line in r.turns if line.model is None]
    assert line.job_id == call.headers["x-foreman-job-id"]


async def test_the_caller_and_the_log_are_told_who_waited_how_long(r: Rig, fake: FakeOllama):
    """`X-Foreman-Queue-Ms` is the wait; one log line has id, model, caller, waited, run, status, bytes."""
    held = await r.hold()
    call = await r.begin("/api/chat", chat("alpha", options={"num_predict": 2}))
    await until(lambda: r.turn.waiting == 1)
    waiting_since = reactor.seconds()
    await deferLater(reactor, 0.2)
    fake.token_interval = 0.05
    fake.release()
    released_at = reactor.seconds()
    await r.wait(held)
    await r.wait(call)
    ended_at = reactor.seconds()
    first, second = r.turns
    assert first.waited_seconds == pytest.approx(0, abs=0.05)
    assert first.run_seconds >= released_at - waiting_since
    queued = int(call.headers["x-foreman-queue-ms"]) / 1000
    # The held request runs on for four pauses between its tokens and its end, the other one for two.
    rounding = 0.002
    assert queued > released_at - waiting_since + 4 * 0.05 - rounding
    assert second.waited_seconds == pytest.approx(queued, abs=rounding)
    assert second.run_seconds > 2 * 0.05 - rounding
    assert second.waited_seconds + second.run_seconds < ended_at - call.sent_at + rounding
    assert second.job_id == call.headers["x-foreman-job-id"]
    assert (second.model, second.caller, second.status) == ("alpha", "127.0.0.1", 200)
    assert second.sent_bytes == len(call.body)
    assert second.how == "ok"
    assert int(held.headers["x-foreman-queue-ms"]) < 50


async def test_callers_who_leave_are_logged_so(r: Rig, fake: FakeOllama):
    """One who waited never reaches the target; one who ran frees the turn."""
    held = await r.hold()
    waiting = await r.begin("/api/chat", chat("beta"))
    await until(lambda: r.turn.waiting == 1)
    waiting.leave()
    await until(lambda: r.turn.waiting == 0)
    held.leave()
    await until(lambda: r.turn.free)
    fake.release()
    assert [(line.model, line.how) for line in r.turns] == [
        ("beta", "client left"),
        ("alpha", "client left"),
    ]
    assert len(fake.seen("/api/chat")) == 1
    assert (await r.ask("/api/chat", chat("beta"))).status == 200


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_a_caller_who_leaves_in_the_middle_frees_the_turn(
    r: Rig, fake: FakeOllama, path: str, stream: bool
):
    """The target's request is aborted, and the next one starts."""
    fake.token_interval = 60
    call = await r.begin(path, chat("alpha", stream=stream))
    if stream:
        await until(lambda: b"The" in call.received)
    else:
        await until(lambda: fake.seen(path))
    call.leave()
    left_at = reactor.seconds()
    await until(lambda: r.turn.free)
    await until(lambda: fake.aborted)
    assert fake.aborted[0].aborted_at - left_at < SOON_SECONDS
    fake.token_interval = 0.0
    assert (await r.ask("/api/chat", chat("beta"))).status == 200
    assert [line.how for line in r.turns] == ["client left", "ok"]


async def test_a_stop_answers_who_waits_and_lets_finish_who_runs(r: Rig, fake: FakeOllama):
    """503 in the path's dialect for the one; the whole answer, within the grace, for the other."""
    held = await r.hold()
    waiting = [await r.begin(path, chat("beta")) for path in ("/api/chat", "/v1/chat/completions")]
    await until(lambda: r.turn.waiting == 2)
    stopped = r.foreman.stopService()
    for call in waiting:
        assert (await r.wait(call)).status == 503
    assert "stopping" in waiting[0].json()["error"]
    assert "stopping" in waiting[1].json()["error"]["message"]
    fake.release()
    assert (await r.wait(held)).complete
    await stopped
