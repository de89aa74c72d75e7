"""What the tests on real sockets share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_twisted
from fronts import Bench


@pytest_twisted.async_yield_fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """What a test builds its targets and fronts with."""
    from twisted.internet import reactor  # late: pytest-twisted installs it

    bench = Bench(reactor, tmp_path)
    yield bench
    await bench.stop()
