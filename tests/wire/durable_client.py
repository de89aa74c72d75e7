"""A caller of ``POST /jobs`` who polls; and a target that can vanish and come back at its port."""

import json
from collections.abc import Callable
from typing import Any

from attrs import define, field, frozen
from turn_rig import LOOK_SECONDS, PATIENCE_SECONDS, Rig, chat, reactor
from twisted.internet.task import deferLater
from twisted.protocols.policies import WrappingFactory

from foreman.testing.ollama import FakeOllama

ENDED = ("succeeded", "failed", "cancelled", "expired")


@frozen
class Durable:
    """What a caller does with durable jobs."""

    r: Rig

    async def submit(self, asked: Any = None, **job: Any) -> str:
        """Hand in a job, by default a chat with alpha; its id. It was taken, or the test fails."""
        asked = {**(chat("alpha") if asked is None else asked), **({"job": job} if job else {})}
        call = await self.r.ask("/jobs", asked)
        assert call.status == 202, call.received
        return str(call.json()["job_id"])

    async def show(self, job_id: str) -> Any:
        call = await self.r.ask(f"/jobs/{job_id}")
        assert call.status == 200, call.received
        return call.json()

    async def until(self, job_id: str, true: Callable[[Any], object]) -> Any:
        """Poll until it holds of the job; the job as it was then."""
        end = reactor.seconds() + PATIENCE_SECONDS
        while not true(job := await self.show(job_id)):
            assert reactor.seconds() < end, f"it never came true of {job}"
            await deferLater(reactor, LOOK_SECONDS)
        return job

    async def waits_for(self, job_id: str, reason: str) -> Any:
        """Poll until it says that it waits for this; a moment before, it may still run."""
        return await self.until(job_id, lambda job: (job["waiting_for"] or {}).get("reason") == reason)

    async def end(self, job_id: str) -> Any:
        """Poll until it has ended."""
        return await self.until(job_id, lambda job: job["status"] in ENDED)

    async def running(self, job_id: str) -> Any:
        """Poll until the target works on it."""
        return await self.until(job_id, lambda job: job["status"] == "running")

    async def act(self, job_id: str, action: str) -> Any:
        """Cancel or retry it; the whole answer."""
        return await self.r.ask(f"/jobs/{job_id}/{action}", None, "POST")


def asked_of(fake: FakeOllama, path: str = "/api/chat") -> list[str]:
    """What was said in the messages that the target got, in order."""
    return [json.loads(exchange.body)["messages"][-1]["content"] for exchange in fake.seen(path)]


def saying(model: str, text: str) -> dict[str, Any]:
    """A chat that `asked_of` shows as this text."""
    return {"model": model, "messages": [{"role": "user", "content": text}]}


@define(eq=False)
class Place:
    """The port of a target that comes and goes."""

    fake: FakeOllama
    number: int = 0
    _port: Any = field(default=None, init=False)
    _factory: Any = field(default=None, init=False)

    def begin(self) -> None:
        """Listen, at the same port as before."""
        self._factory = WrappingFactory(self.fake.site())
        self._port = reactor.listenTCP(self.number, self._factory, interface="127.0.0.1")
        self.number = self._port.getHost().port

    async def vanish(self) -> None:
        """As an Ollama that was killed: nobody listens, and every connection is gone."""
        if self._port is None:
            return
        port, self._port = self._port, None
        await port.stopListening()
        for protocol in list(self._factory.protocols):
            protocol.transport.abortConnection()
        while self._factory.protocols:
            await deferLater(reactor, LOOK_SECONDS)
