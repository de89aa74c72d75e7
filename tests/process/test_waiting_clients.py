"""Ollama's own clients while their streams wait: they read on after the head and the spaces."""

import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from ollama import Client, ResponseError
from turn_rig import Rig, listen, reactor, rig, until
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from foreman.target import heartbeat
from foreman.testing.ollama import FakeOllama

CLIENT_SECONDS = 30
NODE = shutil.which("node")
# `make test` puts it there.
PACKAGE = Path(sys.prefix) / "javascript" / "node_modules" / "ollama"
SAID = {"parts": [{"text": text, "done": text == ""} for text in ("The", " rain", " falls", ".", "")]}

Result = dict[str, Any]
Ask = Callable[[str, str, str], Result]


def python_client(url: str, call: str, model: str) -> Result:
    """The parts of a streamed `chat` or `generate`, and the error in which it ended."""
    parts: list[Result] = []
    error = None
    with Client(host=url, timeout=CLIENT_SECONDS) as client:
        try:
            if call == "chat":
                for said in client.chat(model, [{"role": "user", "content": "rain?"}], stream=True):
                    parts.append({"text": said.message.content, "done": said.done})
            else:
                for part in client.generate(model, "rain?", stream=True):
                    parts.append({"text": part.response, "done": part.done})
        except ResponseError as caught:
            error = caught.error
    return {"parts": parts, "error": error}


def javascript_client(url: str, call: str, model: str) -> Result:
    """The same with the client for Node."""
    script = Path(__file__).with_name("waiting_client.mjs")
    assert NODE is not None
    command = [NODE, str(script), str(PACKAGE), url, call, model]
    done = subprocess.run(command, capture_output=True, timeout=CLIENT_SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    result: Result = json.loads(done.stdout)
    return result


CLIENTS = [
    pytest.param(python_client, id="python"),
    pytest.param(
        javascript_client,
        id="javascript",
        marks=[
            pytest.mark.skipif(NODE is None, reason="node is not installed"),
            pytest.mark.skipif(not PACKAGE.is_dir(), reason=f"npm has not installed {PACKAGE}"),
        ],
    ),
]


@pytest_twisted.async_yield_fixture
async def r(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    """The daemon: the head after 100 ms, and a beat every 50 ms in the place of 15 s."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)
    fake = FakeOllama(reactor, slots=2)
    port, _ = await listen(fake)
    async with rig(tmp_path, fake, port.getHost().port, queue_headers_after="100ms", target_wait="1s") as it:
        yield it
        # A swap has the target's state read anew.
        await until(lambda: not it.parts.inventory._polls._busy, "no poll is under way")
    await port.stopListening()


async def begin(r: Rig, ask: Ask, call: str, model: str) -> tuple[Any, "Deferred[Result]"]:
    """Hold the turn, and have a client wait until several beats have gone to it."""
    held = await r.hold("beta", "/api/generate" if call == "chat" else "/api/chat")
    heads: list[Any] = []
    beats: list[Any] = []
    begin, beat = heartbeat.Heartbeat._begin, heartbeat.Heartbeat._beat
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heartbeat.Heartbeat, "_begin", lambda self: (heads.append(self), begin(self)))
        patch.setattr(heartbeat.Heartbeat, "_beat", lambda self: (beats.append(self), beat(self)))
        result = deferToThread(ask, "http://{}:{}".format(*r.address), call, model)
        await until(lambda: len(beats) >= 3, "three beats")
    assert len(heads) == 1
    return held, result


@pytest.mark.parametrize("ask", CLIENTS)
@pytest.mark.parametrize("call", ["chat", "generate"])
async def test_a_client_reads_on_behind_the_beats(r: Rig, ask: Ask, call: str):
    """Every part, and the end."""
    held, result = await begin(r, ask, call, "alpha")
    r.fake.release()
    assert await result == {**SAID, "error": None}
    assert (await r.wait(held)).status == 200


@pytest.mark.parametrize("ask", CLIENTS)
async def test_a_client_raises_the_error_in_the_stream(r: Rig, ask: Ask):
    """The target's own, after the beats."""
    _, result = await begin(r, ask, "chat", "alpha")
    r.fake.fail("/api/chat", 500)
    r.fake.release()
    ended = await result
    assert ended["parts"] == []
    assert ended["error"]


@pytest.mark.parametrize("ask", CLIENTS)
async def test_a_client_raises_the_error_of_a_stop(r: Rig, ask: Ask):
    """foreman's own."""
    _, result = await begin(r, ask, "chat", "alpha")
    stopped = r.foreman.stopService()
    assert await result == {"parts": [], "error": "foreman is stopping; send the request again in a moment"}
    r.fake.release()
    await stopped
