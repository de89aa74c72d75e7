"""The one GPU of the fake Ollama: which models are resident, for how long, and who waits for it."""

import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from attrs import define, field
from twisted.internet.defer import DeferredLock, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

DEFAULT_CONTEXT = 4096
SMALLEST_CONTEXT = 4
UNSET_OPTIONS: Mapping[str, Any] = {
    "num_batch": 512,
    "num_gpu": -1,
    "main_gpu": 0,
    "use_mmap": None,
    "num_thread": 0,
    "draft_num_predict": 0,
}
"""What Ollama has for a runner option that nobody set, beside ``num_ctx``."""
DEFAULT_LIFETIME = timedelta(minutes=5)
FOREVER = timedelta(microseconds=(2**63 - 1) // 1000)
"""What Ollama makes of a negative ``keep_alive``: the longest duration of Go, 292 years."""

_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@define
class FakeModel:
    """An installed model. ``weights``: its blob; models with equal weights share a runner.

    ``parameters``: its own runner options beside ``num_ctx``. ``capabilities``: without ``completion`` it
    does not generate.
    """

    name: str
    weights: str
    digest: str
    num_ctx: int | None = None
    remote_host: str | None = None
    parameters: Mapping[str, int | bool] = field(factory=dict)
    capabilities: tuple[str, ...] = ("completion",)

    @classmethod
    def make(cls, name: str, weights: str | None = None, num_ctx: int | None = None) -> "FakeModel":
        """Make a model whose blob and digest follow from its name, unless they are given."""
        blob = weights or f"/models/blobs/sha256-{sha256(name.encode()).hexdigest()}"
        return cls(name, blob, sha256(f"{name} {blob} {num_ctx}".encode()).hexdigest(), num_ctx)


@define
class Runner:
    """A resident model.

    ``options``: those that it was loaded with, ``shift`` too. ``busy``: how many requests it is answering;
    ``used_at``: the clock's seconds.
    """

    model: FakeModel
    context_length: int
    options: Mapping[str, Any]
    expires_at: datetime
    busy: int = 0
    used_at: float = 0.0

    def serves(self, context_length: int, options: Mapping[str, Any]) -> bool:
        """Whether a request runs on it without a reload. One that leaves ``num_gpu`` open takes any."""
        ours = self.options
        if options["num_gpu"] < 0:
            ours, options = {**ours, "num_gpu": -1}, {**options, "num_gpu": -1}
        return context_length == self.context_length and options == ours


@define(eq=False)
class FakeGpu:
    """Room for ``slots`` models, and so many requests at once; the others wait in line.

    :ivar load_seconds: how long a load takes.
    :ivar loads: the names of the models that were loaded, in order.
    """

    clock: IReactorTime
    slots: int
    load_seconds: float = 0.0
    loads: list[str] = field(factory=list)
    _runners: dict[str, Runner] = field(factory=dict, init=False)
    _places: DeferredSemaphore = field(init=False)
    _loading: DeferredLock = field(factory=DeferredLock, init=False)

    def __attrs_post_init__(self) -> None:
        self._places = DeferredSemaphore(self.slots)

    def now(self) -> datetime:
        """Return the clock's seconds as a date."""
        return datetime.fromtimestamp(self.clock.seconds(), UTC)

    def resident(self) -> list[Runner]:
        """Return what is loaded, the longest remaining first, as ``/api/ps`` does."""
        for weights, runner in list(self._runners.items()):
            if not runner.busy and runner.expires_at <= self.now():
                del self._runners[weights]
        return sorted(self._runners.values(), key=lambda runner: runner.expires_at, reverse=True)

    async def use(
        self,
        model: FakeModel,
        asked: Mapping[str, Any],
        lifetime: timedelta | None,
        work: Callable[[], Awaitable[None]],
    ) -> None:
        """Wait in line, have the model resident, do the work, and keep the model for its lifetime.

        ``asked``: the request's options, and ``shift`` if it says something about that.
        """
        await self._places.acquire()
        try:
            runner = await self._load(model, asked)
            try:
                await work()
            finally:
                runner.busy -= 1
                runner.used_at = self.clock.seconds()
                # A pin outlives later requests that name no keep_alive.
                longer = max(runner.expires_at, self.now() + DEFAULT_LIFETIME)
                runner.expires_at = longer if lifetime is None else self.now() + lifetime
        finally:
            self._places.release()

    def unload(self, model: FakeModel) -> None:
        """Forget a model now, or when what runs on it is finished."""
        runner = self._runners.get(model.weights)
        if runner is not None:
            runner.expires_at = self.now()

    async def _load(self, model: FakeModel, asked: Mapping[str, Any]) -> Runner:
        given = {name: int(value) if isinstance(value, float) else value for name, value in asked.items()}
        context = max(given.get("num_ctx", model.num_ctx or DEFAULT_CONTEXT), SMALLEST_CONTEXT)
        own = {**UNSET_OPTIONS, "shift": True, **model.parameters}
        options = {name: given.get(name, value) for name, value in own.items()}
        await self._loading.acquire()
        try:
            self.resident()
            runner = self._runners.get(model.weights)
            if runner is None or not runner.serves(context, options):
                self._runners.pop(model.weights, None)
                while len(self._runners) >= self.slots:
                    idle = [other for other in self._runners.values() if not other.busy]
                    del self._runners[min(idle, key=lambda other: other.used_at).model.weights]
                # A client that leaves during a load aborts it: then nothing is resident.
                if self.load_seconds:
                    await deferLater(self.clock, self.load_seconds)
                self.loads.append(model.name)
                runner = self._runners[model.weights] = Runner(model, context, options, self.now())
            runner.busy += 1
            return runner
        finally:
            self._loading.release()


def read_lifetime(keep_alive: object) -> timedelta | None:
    """Read a ``keep_alive``: a JSON number is seconds, a string a Go duration, negative is for ever.

    :raises ValueError: it is none of these, in Ollama's words.
    """
    if keep_alive is None:
        return None
    if isinstance(keep_alive, (int, float)) and not isinstance(keep_alive, bool):
        seconds = float(keep_alive)
    elif isinstance(keep_alive, str):
        parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", keep_alive)
        if not parts or "".join(number + unit for number, unit in parts) != keep_alive.removeprefix("-"):
            raise ValueError(f'time: missing unit in duration "{keep_alive}"')
        seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
        if keep_alive.startswith("-"):
            seconds = -seconds
    else:
        raise ValueError(f"Unsupported type: '{type(keep_alive).__name__}'")
    return FOREVER if seconds < 0 else timedelta(seconds=seconds)
