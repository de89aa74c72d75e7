"""FOREMAN_EMBED_MODEL on the wire: pinned, verified, pinned again, and given up where it does harm."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_twisted
from turn_rig import Rig, chat, listen, reactor, rig, until

from foreman.target import embedder
from foreman.testing.gpu import FakeModel
from foreman.testing.ollama import FakeOllama

EMBED = "minilm:latest"


@pytest_twisted.async_yield_fixture
async def r(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    """An Ollama with room for one model only."""
    monkeypatch.setattr(embedder, "RETRY_SECONDS", 0.02)
    fake = FakeOllama(reactor, slots=1)
    fake.models.append(FakeModel.make(EMBED))
    port, _ = await listen(fake)
    async with rig(tmp_path, fake, port.getHost().port, embed_model="minilm", poll_interval="30ms") as it:
        yield it
    await port.stopListening()


def pins(fake: FakeOllama) -> list[bytes]:
    return [exchange.body for exchange in fake.seen("/api/embed")]


async def test_it_is_pinned_at_the_start_and_verified(r: Rig):
    """One request with a JSON number -1; healthy when /api/ps shows it without an end."""
    fake = r.fake
    await until(lambda: r.parts.embedder.resident)
    (body,) = pins(fake)
    asked = json.loads(body)
    assert (asked["model"], asked["keep_alive"]) == ("minilm", -1)
    assert not isinstance(asked["keep_alive"], str)
    assert fake.loads == [EMBED]
    assert await r.health() == {"status": "ok", "degraded": False}
    before = len(fake.seen("/api/ps"))
    await until(lambda: len(fake.seen("/api/ps")) > before + 3)
    assert len(pins(fake)) == 1


async def test_it_is_not_pinned_while_the_turn_is_held(r: Rig):
    """Evicted by hand meanwhile, it waits for the end of the turn; that was no fault of foreman's."""
    fake = r.fake
    await until(lambda: r.parts.embedder.resident)
    fake.models.append(FakeModel.make("copy:latest", weights=fake.find("minilm").weights))
    await r.parts.inventory.refresh()
    held = await r.hold("copy")  # on the same runner: no load
    fake.gpu._runners.clear()
    before = len(fake.seen("/api/ps"))
    await until(lambda: len(fake.seen("/api/ps")) > before + 3)
    assert len(pins(fake)) == 1
    assert await r.reasons() == ["embed_model_not_resident"]
    fake.release()
    await r.wait(held)
    await until(lambda: len(pins(fake)) == 2)
    await until(lambda: r.parts.embedder.resident)
    assert await r.reasons() == []


@pytest.mark.parametrize("how", ["evicted", "finite"])
async def test_evictions_by_others_never_end_it(r: Rig, how: str):
    """It is pinned again each time; a pin that got a finite end counts as gone."""
    fake = r.fake
    for number in range(1, 5):
        await until(lambda number=number: r.parts.embedder.resident and len(pins(fake)) == number)
        if how == "evicted":
            fake.gpu._runners.clear()
        else:
            (runner,) = fake.gpu.resident()
            runner.expires_at = fake.gpu.now() + timedelta(minutes=5)
    await until(lambda: r.parts.embedder.resident and len(pins(fake)) == 5)
    assert await r.reasons() == []


async def test_two_evictions_by_foremans_own_swaps_end_it(r: Rig):
    """A card too small for both: pinning would reload everything each time, so it stops and says so."""
    fake = r.fake
    for number in (1, 2):
        await until(lambda number=number: r.parts.embedder.resident and len(pins(fake)) == number)
        assert (await r.ask("/api/chat", chat("alpha"))).status == 200
    await until(lambda: r.parts.embedder.hint is not None)
    before = len(fake.seen("/api/ps"))
    await until(lambda: len(fake.seen("/api/ps")) > before + 5)
    assert len(pins(fake)) == 2
    assert fake.loads == [EMBED, "alpha:latest"] * 2
    health = await r.health()
    assert (health["status"], health["degraded"]) == ("ok", True)
    assert health["reasons"] == ["embed_model_not_resident"]
    assert "OLLAMA_MAX_LOADED_MODELS=2" in health["hints"]["embed_model_not_resident"]
    # Never an obstacle: an embedding still works.
    assert (await r.ask("/api/embed", {"model": "minilm", "input": "x"})).status == 200


async def test_a_model_that_is_not_installed_is_named(r: Rig):
    """It is pinned as soon as it was pulled."""
    fake = r.fake
    await until(lambda: r.parts.embedder.resident)
    fake.models.remove(fake.find(EMBED))
    fake.gpu._runners.clear()
    await until(lambda: "pull it" in (r.parts.embedder.hint or ""))
    assert "pull it" in (await r.health())["hints"]["embed_model_not_resident"]
    assert (await r.ask("/api/pull", {"model": "minilm"})).status == 200
    await until(lambda: r.parts.embedder.resident)
    assert await r.reasons() == []
