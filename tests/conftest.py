"""What every test gets: nothing may be left behind."""

import gc
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, settings
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, LogLevel, globalLogPublisher

# A shell ignores SIGINT for what it runs in the background, and whoever is started there inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine that is busy for a moment is no fault of what is tested: an example may take longer than 200 ms.
settings.register_profile(
    "foreman", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("foreman")

# So long the kernel of a busy machine may take to tell one end of a connection that the other one is closed.
CLOSING_SECONDS = 1.0


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """
    Fail a test that leaves a delayed call, an open socket or a logged error behind.

    pytest-twisted has none of trial's nets: an unhandled failure in a Deferred passes unseen.
    """
    from twisted.internet import reactor  # late: pytest-twisted installs it

    errors: list[str] = []

    def watch(event: LogEvent) -> None:
        if event.get("log_level") in (LogLevel.error, LogLevel.critical):
            failure = event.get("log_failure")
            errors.append(failure.getTraceback() if failure else str(event.get("log_format")))

    before = {*reactor.getReaders(), *reactor.getWriters()}
    globalLogPublisher.addObserver(watch)
    # Only what this test made is looked through below: 0.8 s a test otherwise, four minutes in all.
    gc.freeze()
    yield
    gc.collect()
    if reactor.getDelayedCalls():
        # What is due is none that was left: of an aborted connection its protocol hears in the next turn.
        pytest_twisted.blockon(deferLater(reactor, 0))
    calls = [call for call in reactor.getDelayedCalls() if call.active()]

    def sockets() -> set[Any]:
        return {*reactor.getReaders(), *reactor.getWriters()} - before - set(reactor._internalReaders)

    async def closed() -> None:
        end = reactor.seconds() + CLOSING_SECONDS
        while sockets() and reactor.seconds() < end:
            await deferLater(reactor, 0.01)

    if sockets():
        pytest_twisted.blockon(Deferred.fromCoroutine(closed()))
    left = sockets()
    globalLogPublisher.removeObserver(watch)
    names = [(call.func, call.getTime() - reactor.seconds()) for call in calls if call.active()]
    for call in calls:
        if call.active():
            call.cancel()
    if calls or left:
        pytest.fail(f"reactor unclean: {names!r} {left!r}")
    if errors:
        pytest.fail("errors were logged:\n" + "\n".join(errors))
