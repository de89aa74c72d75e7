"""One run of one claimed job: its request at the target, and how it ended."""

from collections.abc import Callable, Sequence

import msgspec
from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from foreman.errors import ForemanError
from foreman.jobs.model import Claimed, Metrics, Transition
from foreman.scheduler.grant import Grant
from foreman.target import routes
from foreman.target.generation import Generator, streamed
from foreman.target.peek import Peek, look
from foreman.target.preload import Preloader
from foreman.target.watch import RunLimits
from foreman.worker.assemble import Assembly, Facts, StreamAssembly
from foreman.worker.composing import ABSENT, is_null
from foreman.worker.embedding import EmbeddingAssembly
from foreman.worker.failures import Verdict, judge
from foreman.worker.outputs import Draft

_EMBEDDINGS = ("/api/embed", "/api/embeddings")


@frozen
class Progress:
    """How far a run is. `tokens` counts the pieces of text that came."""

    phase: str
    tokens: int


@frozen
class End:
    """How a run ended. `drafts` are its outputs, if they are kept; `close` forgets them."""

    claimed: Claimed
    verdict: Verdict
    metrics: Metrics
    drafts: Sequence[Draft]
    close: Callable[[], None]


@frozen
class _Wish:
    """What is read of a job's body: whether it has a format."""

    format: msgspec.Raw = ABSENT


def assembly_of(claimed: Claimed, folder: str) -> Assembly:
    """What puts the answer of this job together; large outputs are kept in `folder` meanwhile."""
    job = claimed.job
    if job.endpoint in _EMBEDDINGS:
        return EmbeddingAssembly()
    try:
        wish = msgspec.json.decode(claimed.body, type=_Wish)
    except (msgspec.MsgspecError, ValueError):  # Ollama reads more than is JSON, and is to say what it thinks
        wish = _Wish()
    formatted = not is_null(wish.format) and bytes(wish.format) != b'""'
    return StreamAssembly(folder, job.endpoint == "/api/chat", formatted, job.transcript)


@define(eq=False)
class Attempt:
    """Runs once. `limits` are the defaults; the job's own `timeout` goes before that of the run."""

    claimed: Claimed
    _generator: Generator
    _preloader: Preloader
    _assembly: Assembly
    _limits: RunLimits
    _clock: IReactorTime
    _grant: Grant | None = None
    _loading: bool = field(default=False, init=False)
    _load_seconds: float | None = field(default=None, init=False)  # of a load ahead of the request
    _given_up: Transition | None = field(default=None, init=False)
    _request: "Deferred[None] | None" = field(default=None, init=False)
    _started_at: float = field(default=0.0, init=False)
    began: bool = field(default=False, init=False)
    error: Exception | None = field(default=None, init=False)  # what went wrong at the target, or here
    _log = Logger()

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return Progress("loading" if self._loading else self._assembly.phase, self._assembly.tokens)

    def give_up(self, transition: Transition) -> None:
        """End it as CANCELLED, INTERRUPTED or PUT_BACK: the target's connection is closed. Twice is once."""
        if self._given_up is None:
            self._given_up = transition
            if self._request is not None:
                self._request.cancel()

    async def run(self) -> End:
        """Run to the end; only what nobody can foresee is raised."""
        self._started_at = self._clock.seconds()
        verdict = Verdict(Transition.SUCCEEDED, None)
        try:
            if self._given_up is None:
                await self._ask()
        except CancelledError:
            if self._given_up is None:
                raise
        except Exception as error:
            self.error = error
            verdict = self._judge(error)
        if self._given_up is not None and not self._assembly.complete:
            verdict = Verdict(self._given_up, None)
        return End(
            self.claimed, verdict, self._metrics(), self._kept(verdict.transition), self._assembly.close
        )

    async def _ask(self) -> None:
        job, body = self.claimed.job, self.claimed.body
        limits = self._limits
        if job.timeout is not None:
            limits = RunLimits(limits.first_byte, limits.silence, job.timeout)
        if job.endpoint not in _EMBEDDINGS:
            body = streamed(body)
        self._request = Deferred.fromCoroutine(self._send(body, limits))
        try:
            await self._request
        finally:
            self._request = None
        self._assembly.end()

    async def _send(self, body: bytes, limits: RunLimits) -> None:
        """Send the request, and before it have the model loaded: what that takes is no part of the run."""
        grant = self._grant
        if grant is not None:
            endpoint = self.claimed.job.endpoint.encode()
            peek = look(self.claimed.body, routes.find(endpoint), b"", b"")
            if self._preloader.concerns(grant):
                self._loading = True
                try:
                    await self._load(grant, peek)
                finally:
                    self._loading = False
                    self._started_at = self._clock.seconds()
            grant.drops = peek.drops
        await self._generator.run(self.claimed.job.endpoint, body, self._receive, limits, grant)

    async def _load(self, grant: Grant, peek: Peek) -> None:
        line = self.claimed.job.line
        self._load_seconds = await self._preloader.ready(
            grant, line.model, line.option_key, loads_itself=peek.loads
        )

    def _receive(self, data: bytes) -> None:
        if not self.began:
            self.began = True
            if self._grant is not None and self._grant.settling:
                self._started_at = self._clock.seconds()
        self._assembly.receive(data)

    def _judge(self, error: Exception) -> Verdict:
        if self._assembly.complete:
            # The last line came: what breaks after it takes nothing away.
            return Verdict(Transition.SUCCEEDED, None)
        job = self.claimed.job
        if isinstance(error, OSError):
            self._log.warn("no room for the outputs of job {id}: {why}", id=job.job_id, why=str(error))
        elif not isinstance(error, ForemanError):
            self._log.failure("the run of job {id} failed inside foreman", id=job.job_id)
        return judge(error, job.attempt, self._clock.seconds())

    def _kept(self, transition: Transition) -> Sequence[Draft]:
        """Outputs are kept only if the job ends with this run."""
        job = self.claimed.job
        last = transition is Transition.RETRIED and job.attempt >= job.max_attempts
        if last or transition in (Transition.SUCCEEDED, Transition.FAILED, Transition.CANCELLED):
            return self._assembly.drafts()
        return ()

    def _metrics(self) -> Metrics:
        job, facts = self.claimed.job, self._assembly.facts
        return Metrics(
            queue_seconds=max(0.0, (job.started_at or job.waiting_since) - job.waiting_since),
            load_seconds=self._load_seconds
            if self._load_seconds is not None
            else _seconds(facts.load_duration),
            run_seconds=self._clock.seconds() - self._started_at,
            prompt_tokens=facts.prompt_eval_count,
            completion_tokens=facts.eval_count,
            tokens_per_second=_rate(facts),
        )


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9


def _rate(facts: Facts) -> float | None:
    if not facts.eval_count or not facts.eval_duration:
        return None
    return round(facts.eval_count / (facts.eval_duration / 1e9), 2)
