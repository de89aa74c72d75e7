"""The embedded child as a process: killed, orphaned, stopped, and left by its clients."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread
from twisted.logger import Logger

from foreman.embedded.child import EmbeddedTarget, bind_embedded

LONG_STORY: dict[str, Any] = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Tell a long story about the sea."}],
    "options": {"num_predict": 1500, "temperature": 0},  # a sampled one may be a short one
}
ONE_TOKEN: dict[str, Any] = {
    "model": "smollm2",
    "prompt": "x",
    "raw": True,
    "stream": False,
    "options": {"num_predict": 1},
}

PARENT = """
import sys
from twisted.internet import reactor
from twisted.logger import Logger
from foreman.embedded.child import EmbeddedTarget, bind_embedded
target = EmbeddedTarget(reactor, bind_embedded(), None, Logger("parent"))
target.startService()
print(target.url, target.pid, flush=True)
reactor.run()
"""


def connect(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=50)


def ask(url: str, body: dict[str, Any], path: str = "/api/generate") -> dict[str, Any]:
    """One whole answer; it waits in the backlog for as long as nobody serves."""
    connection = connect(url)
    try:
        connection.request("POST", path, json.dumps(body), {"Connection": "close"})
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()


def begin_story(url: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A stream whose first three words are there."""
    connection = connect(url)
    connection.request("POST", "/api/chat", json.dumps(LONG_STORY))
    response = connection.getresponse()
    for _ in range(3):
        assert json.loads(response.readline())["done"] is False
    return connection, response


def leave(connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
    response.close()
    connection.close()


@pytest_twisted.async_yield_fixture
async def target() -> AsyncIterator[EmbeddedTarget]:
    """A target of the test's own."""
    from twisted.internet import reactor

    target = EmbeddedTarget(reactor, bind_embedded(), None, Logger("foreman.embedded"))
    target.startService()
    yield target
    if target.running:
        await target.stopService()


async def test_a_killed_child_comes_back_on_the_same_port(target: EmbeddedTarget):
    """Who connects while it is down waits in the backlog and is served."""
    first = target.pid
    assert (await deferToThread(ask, target.url, ONE_TOKEN))["done"] is True
    os.kill(first, signal.SIGKILL)
    assert (await deferToThread(ask, target.url, ONE_TOKEN))["done"] is True
    assert target.pid not in (None, first)


async def test_stop_ends_the_child_in_the_middle_of_a_generation(target: EmbeddedTarget):
    """Quickly, although its thread cannot be interrupted; afterwards the port is closed."""
    url, pid = target.url, target.pid
    story = await deferToThread(begin_story, url)
    began = time.monotonic()
    target._stop_seconds = 30
    await target.stopService()
    # SIGTERM was enough: the story takes longer, and SIGKILL comes after 30 s.
    assert time.monotonic() - began < 8
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not await deferToThread(serves, url)
    leave(*story)


async def test_ctrl_c_reaches_the_parent_only(target: EmbeddedTarget):
    """A terminal signals the foreground group: the child has its own, so requests can end in peace."""
    await deferToThread(ask, target.url, ONE_TOKEN)
    assert os.getpgid(target.pid) == target.pid


async def test_a_client_that_leaves_stops_the_generation(base_url: str):
    """The next one-token answer comes as soon as if the long story had never been asked for."""

    def run() -> float:
        ask(base_url, ONE_TOKEN)
        leave(*begin_story(base_url))
        began = time.monotonic()
        assert ask(base_url, ONE_TOKEN)["done"] is True
        return time.monotonic() - began

    # The story would take 1500 tokens, 10 s and more; the answer takes 0.03 s on an idle machine.
    assert await deferToThread(run) < 5


async def test_a_client_that_leaves_while_it_waits_is_not_served(base_url: str):
    """Its model is never loaded."""

    def run() -> list[str]:
        ask(base_url, ONE_TOKEN)
        story = begin_story(base_url)
        waiting = connect(base_url)
        waiting.request("POST", "/api/generate", json.dumps(ONE_TOKEN | {"model": "smollm2-4k"}))
        waiting.close()
        leave(*story)
        ask(base_url, ONE_TOKEN)
        connection = connect(base_url)
        connection.request("GET", "/api/ps")
        loaded = json.loads(connection.getresponse().read())["models"]
        connection.close()
        return [model["name"] for model in loaded]

    assert await deferToThread(run) == ["smollm2:latest"]


@pytest.fixture
def parent() -> Iterator[tuple["subprocess.Popen[str]", str, int]]:
    """Another process that has an embedded target."""
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        match = re.fullmatch(r"(http://\S+) (\d+)\n", process.stdout.readline())
        assert match is not None
        yield process, match[1], int(match[2])
        process.kill()


@pytest.mark.parametrize("busy", [False, True])
def test_the_child_dies_with_a_parent_that_was_killed(parent: tuple[Any, str, int], busy: bool):
    """Even by SIGKILL, and in the middle of a generation: the end of its standard input ends it."""
    process, url, _ = parent
    ask(url, ONE_TOKEN)
    story = begin_story(url) if busy else None
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while serves(url):
        assert time.monotonic() < deadline, "the child outlived its parent by 20 s"
    if story is not None:
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            story[1].read()
        leave(*story)


def serves(url: str) -> bool:
    """Whether anybody holds the port: the socket lives as long as one of the two processes."""
    connection = connect(url)
    try:
        connection.connect()
    except ConnectionRefusedError:
        return False
    except ConnectionResetError:
        return True  # It was closed while we were in its backlog; the next try is refused.
    finally:
        connection.close()
    return True
