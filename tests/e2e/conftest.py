"""The real engine behind an address: tests that take `base_url` do not care who stands in front of it."""

from collections.abc import Iterator

import pytest
import pytest_twisted
from twisted.logger import Logger

from foreman.embedded.child import EmbeddedTarget, bind_embedded


@pytest.fixture(scope="session")
def embedded_target() -> Iterator[EmbeddedTarget]:
    """One embedded target for the whole run: a child process with SmolLM2."""
    from twisted.internet import reactor

    target = EmbeddedTarget(reactor, bind_embedded(), None, Logger("foreman.embedded"))
    target.startService()
    yield target
    pytest_twisted.blockon(target.stopService())


@pytest.fixture
def base_url(embedded_target: EmbeddedTarget) -> str:
    """The address that the clients are given."""
    return embedded_target.url
