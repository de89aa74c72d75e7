"""foreman as it is wired, on a real socket, in front of whatever a test puts behind it."""

import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field
from raw_client import LIMIT_SECONDS, Answer, RawClient, ask, connect
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater

from foreman.daemon import Parts
from foreman.errors import Stopping
from foreman.jobs.database import open_pools
from foreman.listener import Listener, bind
from foreman.service import _wire
from foreman.settings import load
from foreman.testing.replay import Recording, ReplayTarget
from foreman.webhooks.tls import Trust

GOLDEN = Path(__file__).with_name("golden")


@define(eq=False)
class Front:
    """foreman, listening. The inventory does not poll unless a test starts it."""

    reactor: Any
    parts: Parts
    listener: Listener
    port: int
    until: Callable[[Callable[[], object]], Awaitable[None]]

    async def connect(self) -> RawClient:
        """A new connection to foreman."""
        return await connect(self.reactor, self.port)

    async def ask(self, request: bytes) -> Answer:
        """One exchange on a connection of its own."""
        return await ask(self.reactor, self.port, request)

    async def stop(self) -> None:
        """Stop in the service's order, without its grace."""
        parts = self.parts
        await self.listener.close()
        parts.native.stop()
        parts.turn.close(Stopping())
        parts.native.cut_loads()
        parts.relay.cut_all(Stopping())
        await parts.site.abort(0.1)
        await parts.inventory.stop()
        parts.reachability.stop()
        parts.connections.close()
        await self.until(lambda: not parts.connections._open)


@define(eq=False)
class Bench:
    """Makes targets and fronts, and takes them down."""

    reactor: Any
    folder: Path
    ports: list[Any] = field(factory=list)
    fronts: list[Front] = field(factory=list)
    targets: list[ReplayTarget] = field(factory=list)
    reserved: dict[int, socket.socket] = field(factory=dict)

    async def until(self, true: Callable[[], object]) -> None:
        """Let the reactor run until the condition holds."""
        deadline = self.reactor.seconds() + LIMIT_SECONDS
        while not true():
            assert self.reactor.seconds() < deadline, "the condition never held"
            await deferLater(self.reactor, 0.0005)

    def listen(self, factory: Factory[Any], port: int = 0) -> int:
        """Serve `factory` on loopback, on a port that was reserved or on a new one; returns the port."""
        reserved = self.reserved.pop(port) if port else self._bound()
        reserved.listen()
        listening = self.reactor.adoptStreamPort(reserved.fileno(), socket.AF_INET, factory)
        reserved.close()
        self.ports.append(listening)
        return int(listening.getHost().port)

    def reserve(self) -> int:
        """
        A port that refuses until somebody listens on it.

        It is bound: a free one could be taken by another process, or be connected to itself.
        """
        reserved = self._bound()
        port = int(reserved.getsockname()[1])
        self.reserved[port] = reserved
        return port

    def _bound(self) -> socket.socket:
        bound = socket.socket()
        bound.setblocking(False)
        bound.bind(("127.0.0.1", 0))
        return bound

    def replay(self, *recordings: Recording, port: int = 0, **options: Any) -> tuple[ReplayTarget, int]:
        """A replaying target, and its port: one that was reserved, or a new one."""
        options.setdefault("clock", self.reactor)
        target = ReplayTarget(recordings=recordings, **options)
        self.targets.append(target)
        return target, self.listen(target.factory(), port)

    async def front(self, target_port: int, polls: bool = False, **settings: str) -> Front:
        """
        foreman before a target on loopback; `settings` are FOREMAN_* variables in lower case.

        Without `polls` the target is asked nothing but what a test sends, and every model takes a turn.
        """
        environment = {
            "FOREMAN_OLLAMA_URL": f"http://127.0.0.1:{target_port}",
            "FOREMAN_ADDR": "127.0.0.1:0",
            "FOREMAN_DB_PATH": str(self.folder / "foreman.db"),
            **{f"FOREMAN_{name.upper()}": value for name, value in settings.items()},
        }
        loaded = load(environment)
        parts = _wire(
            self.reactor, loaded, loaded.ollama_url, open_pools(":memory:", self.reactor), Trust(())
        )
        listener = bind(self.reactor, loaded.addr, parts.site)
        parts.gate.checks_host = listener.is_loopback
        if polls:
            parts.inventory.start()
            await self.until(lambda: parts.inventory.known)
        else:
            await parts.inventory.stop()
        listener.accept()
        front = Front(self.reactor, parts, listener, int(str(listener).rpartition(":")[2]), self.until)
        self.fronts.append(front)
        return front

    async def stop(self) -> None:
        """Take everything down."""
        for front in self.fronts:
            await front.stop()
        for port in self.ports:
            await port.stopListening()
        for reserved in self.reserved.values():
            reserved.close()
        for target in self.targets:
            target.drop()
        await self.until(lambda: not any(target.open for target in self.targets))


def golden(name: str) -> Recording:
    """A recorded exchange."""
    return Recording.read(GOLDEN, name)


GOLDEN_NAMES: Sequence[str] = sorted(path.stem for path in GOLDEN.glob("*.request"))
