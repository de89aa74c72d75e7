"""/healthz on the wire: a target that is absent, vanishes or hangs; and what callers get meanwhile."""

import json
from pathlib import Path
from typing import Any

import pytest
from turn_rig import SOON_SECONDS, chat, listen, reactor, rig, until
from twisted.internet.task import deferLater

from foreman.testing.ollama import FakeOllama

WELL = {"status": "ok", "degraded": False}


async def test_a_target_that_is_absent_at_the_start(tmp_path: Path, port_number: int):
    """foreman serves and says why; callers wait a little, then get a 502; it finds the target by itself."""
    fake = FakeOllama(reactor)
    async with rig(tmp_path, fake, port_number, known=False, target_wait="300ms") as r:
        health = await r.health()
        assert (health["degraded"], health["reasons"]) == (True, ["target_unreachable"])
        assert str(port_number) in health["hints"]["target_unreachable"]
        url = f"http://127.0.0.1:{port_number}"
        words = f"foreman cannot reach the target {url}: connection refused"
        for path in ("/api/chat", "/api/tags"):
            began = reactor.seconds()
            call = await r.ask(path, chat("alpha") if path == "/api/chat" else None)
            assert (call.status, call.json()) == (502, {"error": words})
            assert 0.25 < reactor.seconds() - began < 0.3 + SOON_SECONDS
        call = await r.ask("/v1/chat/completions", chat("alpha"))
        assert (call.status, call.json()["error"]["message"]) == (502, words)
        assert words.endswith((await r.health())["hints"]["target_unreachable"].partition(": ")[2])
        port, _ = await listen(fake, port_number)
        await until(lambda: r.parts.reachability.up and r.parts.inventory.reachable)
        assert await r.health() == WELL
        assert r.parts.inventory.model("alpha") is not None
        assert (await r.ask("/api/chat", chat("alpha"))).status == 200
    await port.stopListening()


async def test_a_target_that_vanishes_and_comes_back(tmp_path: Path, port_number: int):
    """Who waits meanwhile is served when it is back; the one in the middle gets his last words."""
    fake = FakeOllama(reactor, token_interval=60)  # the one that runs stays in its middle
    port, _ = await listen(fake, port_number)
    async with rig(tmp_path, fake, port_number) as r:
        assert await r.health() == WELL
        running = await r.begin("/api/chat", chat("alpha"))
        await running.began
        await until(lambda: b"The" in running.received)
        fake.token_interval = 0.0
        waiting = [await r.begin("/api/chat", chat(name)) for name in ("alpha", "beta")]
        await until(lambda: r.turn.waiting == 2)
        await port.stopListening()
        (exchange,) = fake.seen("/api/chat")
        exchange.break_off()
        await r.wait(running)
        assert (running.status, running.complete) == (200, False)
        last = json.loads(running.body.splitlines()[-1])
        assert last == {"error": "the target closed the connection in the middle of its answer"}
        await until(lambda: not r.parts.reachability.up)
        assert await r.reasons() == ["target_unreachable"]
        port, _ = await listen(fake, port_number)
        for call in waiting:
            assert (await r.wait(call)).status == 200
        assert await r.health() == WELL
    await port.stopListening()


async def test_a_target_that_only_says_500_is_reached(tmp_path: Path):
    """Its own answers are the answers, and what was known of it stays known."""
    fake = FakeOllama(reactor)
    port, _ = await listen(fake)
    async with rig(tmp_path, fake, port.getHost().port) as r:
        for path in ("/api/tags", "/api/ps", "/api/version"):
            fake.fail(path, 500, times=None)
        await r.parts.inventory.refresh()
        assert await r.health() == WELL
        call = await r.ask("/api/tags")
        assert (call.status, call.json()) == (500, {"error": "out of luck"})
        assert (await r.ask("/api/chat", chat("alpha"))).status == 200
        fake.fail("/api/chat", 503, "server busy, please try again.  maximum pending requests exceeded")
        call = await r.ask("/api/chat", chat("alpha"))
        assert (call.status, "busy" in call.json()["error"], r.turn.free) == (503, True, True)
    await port.stopListening()


@pytest.mark.parametrize("asked", [{"stream": True}, {"stream": False}])
async def test_a_generation_that_hangs_is_named(tmp_path: Path, asked: dict[str, Any]):
    """Past half of its limit when it streams, past the first-byte limit when not; it ends with the hang."""
    fake = FakeOllama(reactor)
    port, _ = await listen(fake)
    limit = 2.0
    async with rig(tmp_path, fake, port.getHost().port, first_byte_timeout="2s", run_timeout="30s") as r:
        await r.ask("/api/chat", chat("alpha"))  # it is loaded
        fake.hold("/api/chat")
        seen = len(fake.seen("/api/chat"))
        began = reactor.seconds()
        call = await r.begin("/api/chat", chat("alpha", **asked))
        await until(lambda: len(fake.seen("/api/chat")) > seen)
        arrived = reactor.seconds()
        while not await r.reasons():
            await deferLater(reactor, 0.01)
        stalled_at = reactor.seconds()
        expected = limit / 2 if asked["stream"] else limit
        assert stalled_at - began > expected
        assert stalled_at - arrived < expected + limit / 2
        assert await r.reasons() == ["generation_stalled"]
        if asked["stream"]:
            await r.wait(call)
            assert call.status == 504
            assert "FOREMAN_FIRST_BYTE_TIMEOUT" in call.json()["error"]
            await until(lambda: fake.aborted)
        else:
            fake.release()
            assert (await r.wait(call)).status == 200
        assert await r.health() == WELL
        assert r.turn.free
        fake.release()
        assert (await r.ask("/api/chat", chat("alpha"))).status == 200
    await port.stopListening()
