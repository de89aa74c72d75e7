"""Whatever goes wrong, and whenever: the turn is free in the end, and every turn has one log line."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from turn_rig import Call, Rig, chat, listen, reactor, rig, until
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.internet.task import deferLater

from foreman.testing.ollama import FakeOllama
from foreman.testing.scripted import Canned

REQUESTS = 300
AT_ONCE = 12
LONGEST_DELAY_SECONDS = 0.03
PATHS = ("/api/chat", "/api/generate", "/v1/chat/completions")
FAULTS = (
    "none",
    "leaves after a while",
    "leaves at the first byte",
    "target breaks off",
    "target answers 500",
    "target answers no HTTP",
    "target is silent for a while",
    "reads slowly",
    "unknown model",
    "unreadable body",
)


def later(coroutine: Any) -> Deferred[Any]:
    return Deferred.fromCoroutine(coroutine)


async def one(r: Rig, dice: random.Random, fault: str) -> Call:
    """One request with one fault."""
    path, delay = dice.choice(PATHS), dice.uniform(0, LONGEST_DELAY_SECONDS)
    asked: Any = chat(dice.choice(("alpha", "beta")), prompt="x", stream=dice.random() < 0.7)
    if fault == "unknown model":
        asked["model"] = "nope"
    elif fault == "unreadable body":
        asked = b'{"model": "alpha", '
    elif fault == "target breaks off":
        r.fake.die_after = dice.randrange(5)
    elif fault == "target answers 500":
        r.fake.fail(path, 500)
    elif fault == "target answers no HTTP":
        r.fake.answer(path, Canned(200, b"{", cut=True))
    elif fault == "target is silent for a while":
        r.fake.hold(path)
        reactor.callLater(delay, r.fake.release)
    call = await r.begin(path, asked)
    if fault == "leaves after a while":
        await deferLater(reactor, delay)
        call.leave()
    elif fault == "leaves at the first byte":
        await call.began
        call.leave()
    elif fault == "reads slowly" and not call.ended.called:
        call.transport.pauseProducing()
        await deferLater(reactor, delay)
        call.transport.resumeProducing()
    return await r.wait(call)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_nothing_leaks_the_turn(tmp_path: Path, port_number: int, seed: int):
    """Hundreds of requests with random faults, many at once; twice the target vanishes for a moment."""
    dice = random.Random(seed)
    fake = FakeOllama(reactor, slots=1, token_interval=0.001)
    fake.gpu.load_seconds = 0.002
    port, _ = await listen(fake, port_number)
    limits = {"interactive_visit": "20ms", "interactive_max_wait": "50ms", "target_wait": "300ms"}
    async with rig(tmp_path, fake, port_number, **limits) as r:
        places = DeferredSemaphore(AT_ONCE)
        faults = [dice.choice(FAULTS) for _ in range(REQUESTS)]
        work = [
            places.run(lambda fault=fault: later(one(r, random.Random(dice.random()), fault)))
            for fault in faults
        ]
        for answers in (REQUESTS // 3, 2 * REQUESTS // 3):
            await until(lambda answers=answers: sum(call.ended.called for call in r.calls) > answers)
            await port.stopListening()
            for exchange in fake.requests:
                if not exchange.over and exchange.aborted_at is None:
                    exchange.break_off()
            await deferLater(reactor, 0.1)
            port, _ = await listen(fake, port_number)
        await gatherResults(work, consumeErrors=True)
        await until(lambda: r.turn.free, "the turn is free")
        fake.heal()
        fake.die_after = None
        await until(lambda: r.parts.reachability.up)
        for name in ("alpha", "beta"):
            call = await r.ask("/api/chat", chat(name))
            assert (call.status, call.complete) == (200, True)
        assert r.turn.free
        assert await r.reasons() == []

        assert len(r.calls) == REQUESTS + 3
        told = Counter(call.headers.get("x-foreman-job-id") for call in r.calls if call.received)
        del told[None]
        ids = Counter(line.job_id for line in r.turns)
        assert max(ids.values()) == 1
        assert set(told) <= set(ids)
        hows = Counter(line.how.partition(":")[0] for line in r.turns)
        assert hows["ok"] > REQUESTS / 4
        assert hows["client left"] > 10
        assert len(hows) >= 3
    await port.stopListening()
