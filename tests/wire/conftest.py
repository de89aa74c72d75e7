"""What the tests on real sockets share."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_twisted
from fronts import Bench

from foreman.testing.ollama import FakeOllama

if TYPE_CHECKING:
    from turn_rig import Rig


@pytest.fixture
def port_number() -> Iterator[int]:
    """A port of this machine where nobody listens, until the test does."""
    from turn_rig import reserved  # late, as below

    with reserved() as number:
        yield number


@pytest_twisted.async_yield_fixture
async def target_port(fake: FakeOllama) -> AsyncIterator[int]:
    """Where a module's own `fake` listens."""
    from turn_rig import listen  # late: it imports the reactor, which pytest-twisted installs

    port, _ = await listen(fake)
    yield port.getHost().port
    await port.stopListening()


@pytest_twisted.async_yield_fixture
async def r(tmp_path: Path, fake: FakeOllama, target_port: int) -> AsyncIterator["Rig"]:
    """The daemon with its defaults in front of it, its models known."""
    from turn_rig import rig

    async with rig(tmp_path, fake, target_port) as it:
        yield it


@pytest_twisted.async_yield_fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """What a test builds its targets and fronts with."""
    from twisted.internet import reactor  # late: pytest-twisted installs it

    bench = Bench(reactor, tmp_path)
    yield bench
    await bench.stop()
