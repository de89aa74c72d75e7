"""The grant of the turn to one job, and the source of durable jobs that is told of it."""

from collections.abc import Callable, Iterable
from typing import Protocol

from attrs import define, field

from foreman.scheduler.keys import ModelKey, Wanted
from foreman.scheduler.lines import NamedLine
from foreman.scheduler.policy import Lane, Why


@define(eq=False)
class Grant:
    """The turn, or a share of it, in the hands of one job.

    `swap`: its key was not resident, and no other job was loading it; it passes to another holder when this
    one leaves before its first byte. `settling`: the target may still be busy with a request that was
    aborted before its first byte; time limits then start at the first byte, at most `settle_limit` later.
    """

    job_id: str
    lane: Lane
    key: ModelKey
    why: Why
    swap: bool
    settling: bool
    queued_seconds: float
    granted_at: float
    _on_first_byte: "Callable[[Grant], None]"
    wanted: Wanted | None = None  # what the job asked for; None for a body that nobody can read
    answered_at: float | None = field(default=None, init=False)  # the clock's seconds at the first byte
    loaded: bool = field(default=False, init=False)  # by a request of foreman's own, ahead of the job's
    aborted: bool = field(default=False, init=False)
    drops: bool = field(default=False, init=False)  # what it sent has `keep_alive` 0: its model goes after it

    @property
    def answered(self) -> bool:
        """The first byte of the target's answer came."""
        return self.answered_at is not None

    @property
    def needs_load(self) -> bool:
        """What the holder sends now would be a swap."""
        return self.swap and not self.loaded and self.answered_at is None

    def first_byte(self) -> None:
        """The first byte of the target's answer came: the model is loaded, and nothing settles any more."""
        if self.answered_at is None:
            self._on_first_byte(self)

    def abort(self) -> None:
        """The holder aborted its request at the target. Before its first byte the target may work on:
        an Ollama finishes the prompt first (87 s were measured); during generation it is free within 0.2 s.
        """
        self.aborted = True


class DurableSource(Protocol):
    """Where the durable jobs wait.

    It calls `Turn.durable_changed` after each change of what it offers.
    """

    @property
    def count(self) -> int:
        """How many jobs it offers."""

    @property
    def claiming(self) -> bool:
        """A job that was granted is not off its lines yet, so it cannot say what comes next: nothing is
        granted beside the jobs that run until it is, or the line might seem empty or offer the job again.
        """

    def lines(self) -> Iterable[NamedLine]:
        """Its lines, by what they ask for. The candidates' `waiting_since` are the reactor's seconds."""

    def granted(self, grant: Grant) -> None:
        """One of its jobs got the turn, and is offered no more, `claiming` apart.

        Called within the choice: it must not raise, and must not wait. It calls `Turn.release` when the job
        has ended, or at once when it cannot run after all: then the next choice is made within that call.
        """


class NoDurableJobs:
    """The source of a turn that has none."""

    count = 0
    claiming = False

    def lines(self) -> Iterable[NamedLine]:
        """Nothing."""
        return ()

    def granted(self, grant: Grant) -> None:
        """It offers no job, so none can be chosen."""
        raise AssertionError(f"job {grant.job_id} was never offered and got the turn")
