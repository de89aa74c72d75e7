"""The store on SQLite holds the contract, in memory and on a file."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from contract_outbox import OutboxContract
from contract_store import Life, StoreContract

from foreman.jobs.database import open_pools, prepare
from foreman.jobs.store import SqliteStore
from foreman.testing.store import OWNER_URL, compose_plainly


@pytest_twisted.async_yield_fixture(params=["memory", "file"])
async def life(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Life]:
    """A store whose next life begins on the same database; the last life's connections are simply left."""
    from twisted.internet import reactor

    opened = []
    path = ":memory:" if request.param == "memory" else str(tmp_path / "foreman.db")
    prepare(path)
    shared = open_pools(path, reactor) if path == ":memory:" else None

    async def begin(life: Life) -> Any:
        store = SqliteStore(
            path,
            shared or open_pools(path, reactor),
            lambda: life.now,
            compose_plainly,
            OWNER_URL,
            max_interruptions=life.max_interruptions,
            queue_limit=life.queue_limit,
        )
        opened.append(store)
        await store.open()
        return store

    life = Life(begin)
    await life.crash()
    yield life
    for store in opened if shared is None else opened[-1:]:
        await store.close()


class TestSqlite(StoreContract):
    """All of it."""


class TestSqliteOutbox(OutboxContract):
    """All of it."""
