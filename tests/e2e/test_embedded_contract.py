"""The embedded target is an Ollama as far as it goes: the contract that every target and fake has to hold."""

from collections.abc import AsyncIterator
from functools import partial

import contract_ollama
import pytest
import pytest_twisted
from contract_ollama import OllamaContract, Target
from treq.client import HTTPClient
from twisted.internet.task import deferLater
from twisted.internet.tcp import Client
from twisted.web.client import Agent, HTTPConnectionPool


@pytest.fixture(autouse=True)
def greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract counts a line for each token; left to chance, a model may stop or say half a letter."""
    options = {"num_predict": 2, "temperature": 0}
    for name in ("chat", "generate"):
        monkeypatch.setattr(contract_ollama, name, partial(getattr(contract_ollama, name), options=options))


@pytest_twisted.async_yield_fixture
async def ollama(base_url: str) -> AsyncIterator[Target]:
    """The real engine, with its two models of one file."""
    from twisted.internet import reactor

    pool = HTTPConnectionPool(reactor, persistent=False)
    yield Target(HTTPClient(Agent(reactor, pool=pool)), base_url, "smollm2", "smollm2-4k")
    # An answer ends before its connection does: let the reactor see that end too.
    while any(isinstance(reader, Client) for reader in (*reactor.getReaders(), *reactor.getWriters())):
        await deferLater(reactor, 0.01)


class TestEmbedded(OllamaContract):
    """All of it."""
