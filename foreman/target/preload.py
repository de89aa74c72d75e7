"""
Loading on purpose: before a swap foreman has the target load the model, on a connection of its own.

An Ollama throws a load away when the client that caused it leaves [tried]. So that a caller who leaves in
the middle takes it from nobody else, the load is foreman's: it goes on for the next job of the same model
key, and is aborted when there is none. There is one load at a time.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from foreman.errors import ForemanError
from foreman.target.client import OllamaClient
from foreman.target.inventory import Inventory
from foreman.target.names import is_cloud

DROPPED_LIMIT = 2
IDLE_SECONDS = 3600.0
DROPS = (
    "the target had dropped {model} right after it was loaded: it seems to keep no model "
    "(OLLAMA_KEEP_ALIVE=0). So for an hour nothing is loaded ahead, and a load ends with its caller"
)


class Grant(Protocol):
    """The turn in the hands of one job, as far as a load goes."""

    @property
    def job_id(self) -> str: ...

    @property
    def key(self) -> Hashable: ...

    @property
    def needs_load(self) -> bool:
        """Its key was not resident, and nobody has loaded it since."""

    @property
    def settling(self) -> bool:
        """The target may still be busy with a request that was aborted before its first byte."""

    def abort(self) -> None:
        """What was asked for it was given up."""


class Turn(Protocol):
    """The turn, as far as a load goes."""

    @property
    def holders(self) -> Sequence[Grant]: ...

    def others_wait(self, key: Any, besides: str) -> bool: ...

    def loaded(self, key: Any) -> None: ...


def _nobody(grant: Any, seconds: float) -> None:
    """Nobody asked to be told."""


@define(eq=False)
class _Load:
    """A load that was begun, and the jobs that wait for it.

    `settling`: it began while the target settled, so its seconds are not those of a load. `holders` are the
    jobs that held the turn at its end.
    """

    key: Hashable
    model: str
    began_at: float
    settling: bool
    waiters: "list[Deferred[None]]" = field(factory=list, init=False)
    request: "Deferred[None]" = field(init=False)
    ended_at: float = field(default=0.0, init=False)
    holders: Sequence[Grant] = field(default=(), init=False)


@define(eq=False)
class Preloader:
    """
    Loads the model of a grant that is a swap.

    `limit` is how many seconds a load may take. `on_load` is told of each load that has ended well, right
    before the turn is: the grant that holds the turn for it, and the load's seconds from its request to its
    answer. When that grant settles they are not those of a load alone. It must not raise.
    """

    _clock: IReactorTime
    _client: OllamaClient
    _inventory: Inventory
    _turn: Turn
    _limit: float
    on_load: Callable[[Any, float], None] = _nobody
    _load: _Load | None = field(default=None, init=False)
    _last: _Load | None = field(default=None, init=False)  # the last that ended well, until it was seen
    _dropped: int = field(default=0, init=False)  # in a row: loads whose model was gone right after
    _idle_until: float = field(default=0.0, init=False)
    _log = Logger()

    def concerns(self, grant: Grant) -> bool:
        """Whether there is anything to do for this grant: if not, `ready` need not be called."""
        return grant.needs_load or self._load is not None

    async def ready(
        self, grant: Grant, model: str | None, options: str, *, loads_itself: bool = False
    ) -> float | None:
        """
        Return when the request of this grant may be sent: its model is loaded, or could not be.

        `model` is None when nobody knows it, `options` the canonical text of the runner options.
        `loads_itself`: the request is a load form, and causes no load here. What goes wrong is logged, and
        is no answer: the request's own will be one. The seconds that the job waited for a load are returned,
        or None: there was none, or it began while the target settled.

        Cancelled, the job leaves; the load goes on if another job of the same key waits. A load of another
        key that is under way is aborted first.
        """
        load = self._load
        if load is not None and load.key != grant.key:
            self._abort(load)
            load = None
        if load is None:
            if loads_itself or not grant.needs_load or model is None or not self._can_load(model):
                return None
            load = self._begin(grant, model, options)
        since = self._clock.seconds()
        if self._load is load:
            waiter: Deferred[None] = Deferred()
            load.waiters.append(waiter)
            try:
                await waiter
            except BaseException:  # also a closed coroutine
                self._leave(load, waiter, grant)
                raise
        return None if load.settling else self._clock.seconds() - since

    def look(self) -> None:
        """The turn went to somebody or to nobody: a load that no holder of it wants is aborted."""
        load = self._load
        if load is None or load.waiters:
            return
        # A durable job that has the turn is claimed first, and comes for the load then.
        if not any(grant.key == load.key for grant in self._turn.holders):
            self._abort(load)

    def inventory_read(self, asked_at: float | None) -> None:
        """
        /api/ps was read, as it was at `asked_at`.

        A target that keeps no model (`OLLAMA_KEEP_ALIVE=0`) drops what was loaded ahead before the request
        comes, and loads it twice. So it is checked, while the job runs that it was loaded for.
        """
        last = self._last
        if last is None or asked_at is None or asked_at < last.ended_at:
            return
        self._last = None
        model = self._inventory.model(last.model)
        if model is None or not any(grant in last.holders for grant in self._turn.holders):
            return
        shown = [self._inventory.model_by_digest(entry.digest) for entry in self._inventory.loaded]
        if any(each is not None and each.weights == model.weights for each in shown):
            self._dropped = 0
            return
        self._dropped += 1
        if self._dropped >= DROPPED_LIMIT:
            self._dropped = 0
            self._idle_until = self._clock.seconds() + IDLE_SECONDS
            self._log.warn("{sentence}", sentence=DROPS.format(model=last.model))

    def stalled(self) -> bool:
        """Whether a load is past half of its limit, and so seems to be stuck."""
        load = self._load
        return load is not None and self._clock.seconds() - load.began_at > self._limit / 2

    def stop(self) -> None:
        """Abort what is under way; who still waits for it waits no more."""
        if self._load is not None:
            self._abort(self._load)

    def _can_load(self, name: str) -> bool:
        """It generates here, as far as anybody knows: an embedding model and a cloud model do not."""
        if self._clock.seconds() < self._idle_until or is_cloud(name):
            return False
        model = self._inventory.model(name)
        return model is not None and not model.remote and model.generates

    def _begin(self, grant: Grant, model: str, options: str) -> _Load:
        load = self._load = _Load(grant.key, model, self._clock.seconds(), grant.settling)
        self._last = None
        # What an Ollama finishes first, after an abort, has a limit of its own.
        limit = self._limit * 2 if grant.settling else self._limit
        load.request = Deferred.fromCoroutine(self._run(load, options, limit))
        load.request.addErrback(lambda failure: self._log.failure("a load failed inside foreman", failure))
        return load

    async def _run(self, load: _Load, options: str, limit: float) -> None:
        loaded = False
        try:
            await self._client.load(load.model, options, limit)
            loaded = True
        except ForemanError as error:
            self._log.info("{model} was not loaded ahead: {why}", model=load.model, why=str(error))
        except CancelledError:
            return
        finally:
            if self._load is load:  # it was not aborted
                self._end(load, loaded)

    def _end(self, load: _Load, loaded: bool) -> None:
        self._load = None
        try:
            if loaded:
                load.ended_at = self._clock.seconds()
                load.holders = tuple(self._turn.holders)
                self._last = load
                if load.holders:
                    self.on_load(load.holders[0], load.ended_at - load.began_at)
                self._turn.loaded(load.key)
        finally:
            self._let_go(load)

    def _leave(self, load: _Load, waiter: "Deferred[None]", grant: Grant) -> None:
        if self._load is not load:
            return  # it ended in this moment
        load.waiters.remove(waiter)
        shared = load.waiters or any(other is not grant for other in self._turn.holders)
        if not shared and not self._turn.others_wait(grant.key, besides=grant.job_id):
            self._abort(load)
            grant.abort()

    def _abort(self, load: _Load) -> None:
        """Close the connection of a load: an Ollama ends it then."""
        self._load = None
        load.request.cancel()
        self._let_go(load)

    def _let_go(self, load: _Load) -> None:
        waiters, load.waiters = load.waiters, []
        for waiter in waiters:
            waiter.callback(None)
