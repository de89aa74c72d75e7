"""What the target has: its models, what is loaded, its version. Polled, and never lost by a bad answer."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from attrs import Factory, define, field, frozen
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from foreman.errors import ForemanError, TargetTimeout, TargetUnreachable
from foreman.target.client import Loaded, OllamaClient, ShowFacts, TagEntry
from foreman.target.names import canonical

Answer = TypeVar("Answer")

# An Ollama that has answered shows an unloaded model for 20 ms more (measured).
_UNLOADED_SECONDS = 0.5
_NO_FACTS = ShowFacts(frozenset())


@frozen
class Model:
    """One installed model.

    :ivar weights: what its ``FROM`` and ``ADAPTER`` name; the digest itself while nobody knows better.
    :ivar options: the canonical text of its own runner options, "" when it has none.
    :ivar capabilities: what it can do; empty while nobody knows.
    :ivar remote: a stub for a model that runs elsewhere.
    """

    name: str
    digest: str
    weights: frozenset[str]
    options: str
    remote: bool
    capabilities: frozenset[str] = frozenset()

    @property
    def generates(self) -> bool:
        """It generates text; others are loaded by requests that take no turn."""
        return "completion" in self.capabilities


@define(eq=False)
class Inventory:
    """Polls ``/api/tags``, ``/api/ps`` and ``/api/version``, and reads ``/api/show`` once for each digest.

    A part that cannot be read keeps its last good answer. After every poll each callback of ``on_read``
    is called with the moment (the clock's seconds) at which ``/api/ps`` was asked, or with ``None`` when
    this poll got no answer to it that holds still.

    An entry of ``/api/ps`` counts until it is gone, whatever its ``expires_at``: that is by the target's
    clock, which may differ, and while a request runs on the model it is what it was before that request.

    :ivar interval: seconds between two polls.
    :ivar loaded: what ``/api/ps`` showed last, without what was unloaded since.
    :ivar version: the target's version; ``None`` until it was read.
    :ivar reachable: whether the last poll got any answer, were it a bad one; false before the first.
    """

    clock: IReactorTime
    client: OllamaClient
    interval: float
    on_read: list[Callable[[float | None], None]] = field(factory=list)
    loaded: Sequence[Loaded] = field(default=(), init=False)
    version: str | None = field(default=None, init=False)
    reachable: bool = field(default=False, init=False)
    _tags: dict[str, TagEntry] = field(factory=dict, init=False)
    _facts: dict[str, ShowFacts] = field(factory=dict, init=False)
    _show_failed: set[str] = field(factory=set, init=False)
    _failing: set[str] = field(factory=set, init=False)
    _answers: int = field(default=0, init=False)
    _tags_asked: int = field(default=0, init=False)
    _tags_kept: int = field(default=0, init=False)
    _tags_read_at: float | None = field(default=None, init=False)
    _polls: "_Coalesced" = field(
        init=False, default=Factory(lambda self: _Coalesced(self._poll), takes_self=True)
    )
    _looks: "_Coalesced" = field(
        init=False, default=Factory(lambda self: _Coalesced(self._read_tags), takes_self=True)
    )
    _loop: LoopingCall | None = field(default=None, init=False)
    _unloadings: int = field(default=0, init=False)
    _look_again: IDelayedCall | None = field(default=None, init=False)
    _log = Logger()

    @property
    def known(self) -> bool:
        """Whether the installed models were read at least once."""
        return self._tags_read_at is not None

    @property
    def age_seconds(self) -> float | None:
        """How old the list of installed models is; ``None`` before the first."""
        return None if self._tags_read_at is None else self.clock.seconds() - self._tags_read_at

    @property
    def models(self) -> list[Model]:
        """Every installed model."""
        return [self._model(entry) for entry in self._tags.values()]

    def model(self, name: str) -> Model | None:
        """Return an installed model by any spelling of its name."""
        entry = self._tags.get(canonical(name))
        return None if entry is None else self._model(entry)

    def model_by_digest(self, digest: str) -> Model | None:
        """Return an installed model that has this digest; copies share theirs."""
        return next((self._model(entry) for entry in self._tags.values() if entry.digest == digest), None)

    def start(self) -> None:
        """Poll now and at every interval from now on."""
        self._polls.stopped = self._looks.stopped = False
        self._loop = LoopingCall(self.refresh)
        self._loop.clock = self.clock
        self._loop.start(self.interval).addErrback(
            lambda failure: self._log.failure("the poll of the target ended", failure)
        )

    async def stop(self) -> None:
        """Stop polling, and cut what is being asked. Later questions are answered from what is known."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        self._loop = None
        if self._look_again is not None and self._look_again.active():
            self._look_again.cancel()
        self._polls.stop()
        self._looks.stop()

    def refresh(self) -> Deferred[None]:
        """Poll at once; the Deferred fires when that poll is over, and never fails.

        While a poll runs, everybody who asks shares one more after it: the running one may have asked
        before the change that they want to see.
        """
        return self._polls.run()

    def unloaded(self, weights: frozenset[str]) -> None:
        """The target unloads these now: they are in its memory no more, and the next poll comes in a moment.

        What a poll under way says of the target's memory may be of before, and is passed over.
        """
        self._unloadings += 1
        shown = ((entry, self.model_by_digest(entry.digest)) for entry in self.loaded)
        self.loaded = [entry for entry, model in shown if model is None or model.weights != weights]
        if self._look_again is not None and self._look_again.active():
            self._look_again.reset(_UNLOADED_SECONDS)
        elif not self._polls.stopped:
            self._look_again = self.clock.callLater(_UNLOADED_SECONDS, self.refresh)

    async def fresh_look(self, name: str) -> Model | None:
        """Look a name up in a list of models that is asked for now; never raises.

        When the target does not answer, what was known is the answer.
        """
        await self._looks.run()
        model = self.model(name)
        if model is not None and model.digest not in self._facts:
            await self._read_show(model.name, model.digest)
        return self.model(name)

    def _model(self, entry: TagEntry) -> Model:
        facts = self._facts.get(entry.digest, _NO_FACTS)
        weights = facts.weights or frozenset({entry.digest})
        return Model(
            entry.name, entry.digest, weights, facts.options, bool(entry.remote_host), facts.capabilities
        )

    async def _poll(self) -> None:
        answers_before = self._answers
        if await self._read_tags():
            await self._read_shows()
        ps_asked_at: float | None = self.clock.seconds()
        unloadings = self._unloadings
        loaded = await self._ask("/api/ps", self.client.ps)
        self.version = await self._ask("/api/version", self.client.version) or self.version
        # Taken over in the instant in which the readers hear of it: in between there may be an unloading.
        if loaded is None or unloadings != self._unloadings:
            ps_asked_at = None
        else:
            self.loaded = loaded
        self.reachable = self._answers > answers_before
        for callback in list(self.on_read):
            try:
                callback(ps_asked_at)
            except Exception:
                self._log.failure("a reader of the inventory failed")

    async def _read_tags(self) -> bool:
        self._tags_asked += 1
        number = self._tags_asked
        entries = await self._ask("/api/tags", self.client.tags)
        # A look and a poll may overlap: the answer that was asked for later stays.
        if entries is None or number < self._tags_kept:
            return False
        self._tags_kept = number
        self._tags_read_at = self.clock.seconds()
        self._tags = {canonical(entry.name): entry for entry in entries}
        digests = {entry.digest for entry in entries}
        self._facts = {digest: facts for digest, facts in self._facts.items() if digest in digests}
        self._show_failed &= digests
        return True

    async def _read_shows(self) -> None:
        """Read what is not known yet: those that failed before come last, and an interval is enough."""
        missing = {
            entry.digest: entry.name for entry in self._tags.values() if entry.digest not in self._facts
        }
        began = self.clock.seconds()
        for digest in sorted(missing, key=lambda digest: digest in self._show_failed):
            # A target that is silent to every one of a hundred questions would stop the polls for long.
            if self.clock.seconds() - began >= self.interval:
                break
            await self._read_show(missing[digest], digest)

    async def _read_show(self, name: str, digest: str) -> None:
        facts = await self._ask(f"/api/show of {name}", lambda: self.client.show(name))
        if facts is None:
            self._show_failed.add(digest)
        else:
            self._show_failed.discard(digest)
            self._facts[digest] = facts

    async def _ask(self, what: str, question: Callable[[], Awaitable[Answer]]) -> Answer | None:
        """Return the answer, or ``None`` when there was no good one. Logs when that changes."""
        try:
            answer = await question()
        except ForemanError as error:
            if not isinstance(error, (TargetUnreachable, TargetTimeout)):
                self._answers += 1
            if what not in self._failing:
                self._log.warn("{what} is not read: {reason}", what=what, reason=str(error))
            self._failing.add(what)
            return None
        self._answers += 1
        if what in self._failing:
            self._failing.remove(what)
            self._log.info("{what} is read again", what=what)
        return answer


@define(eq=False)
class _Coalesced:
    """Runs one coroutine at a time; those who ask while it runs share exactly one further run."""

    work: Callable[[], Awaitable[object]]
    stopped: bool = False
    _busy: bool = False
    _running: Deferred[None] | None = None
    _next: list[Deferred[None]] = field(factory=list)
    _log = Logger()

    def run(self) -> Deferred[None]:
        """Return a Deferred that fires after a run that begins now or later; it never fails."""
        if self.stopped:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._next.append(waiter)
        if not self._busy:
            self._begin()
        return waiter

    def stop(self) -> None:
        """Cut the run and begin no other; everybody who waits is let go."""
        self.stopped = True
        waiters, self._next = self._next, []
        if self._running is not None:
            self._running.cancel()
        for waiter in waiters:
            waiter.callback(None)

    def _begin(self) -> None:
        # Set before the work begins: it may ask for another run before it first waits.
        self._busy = True
        waiters, self._next = self._next, []
        self._running = Deferred.fromCoroutine(self._work())
        self._running.addCallback(self._end, waiters)

    async def _work(self) -> None:
        try:
            await self.work()
        except CancelledError:
            pass
        except Exception:
            self._log.failure("reading the target failed")

    def _end(self, _: None, waiters: list[Deferred[None]]) -> None:
        self._busy = False
        self._running = None
        if self._next:
            self._begin()
        for waiter in waiters:
            waiter.callback(None)
