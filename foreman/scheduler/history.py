"""What was measured of the jobs and loads of each key, and what is therefore expected of the next ones.

The first measurements of a subject count evenly; later the older ones fade. A subject that was never measured
takes the average of all keys, and a constant when there is none.
"""

import enum
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator

from attrs import define, field, frozen
from twisted.internet.interfaces import IReactorTime

from foreman.scheduler.grant import Grant
from foreman.scheduler.keys import UNKNOWN, ModelKey
from foreman.scheduler.policy import Lane

# What is expected while nothing at all was measured.
RUN_SECONDS = 10.0
LOAD_SECONDS = 5.0
# The newest measurement's part of an average that many have made.
_FADING = 0.1
# The interactive share is one of the last ten minutes or so in which durable jobs had work.
_SHARE_MEMORY_SECONDS = 600.0
# A caller may invent a larger num_ctx for each request.
_MOST_SUBJECTS = 2000
# An answer that ends this soon after its first byte, which ended a load, tells nothing of a run: it came in
# one piece.
_ONE_PIECE_SECONDS = 0.05
_SHORTEST_SECONDS = 0.001


class Measure(enum.Enum):
    """What is measured. A run begins when the model is loaded, and ends with the job."""

    LOAD_SECONDS = "load_seconds"
    RUN_SECONDS = "run_seconds"
    TOKEN_SECONDS = "token_seconds"  # a run, divided by its output tokens
    TOKENS = "tokens"  # the output tokens of a job
    INTERACTIVE_SHARE = "interactive_share"


@frozen
class Subject:
    """What an average is of: a measure, in one lane or both, of one key or all of them."""

    measure: Measure
    lane: Lane | None = None
    key: ModelKey | None = None


@define
class Average:
    """`count` measurements made it."""

    value: float = 0.0
    count: int = 0

    def add(self, measured: float) -> None:
        """One more."""
        self.count += 1
        self.value += (measured - self.value) * max(1 / self.count, _FADING)


@define(eq=False)
class History:
    """Expects of jobs and loads what the earlier ones took; see `foreman.scheduler.forecast.Estimates`.

    It is told of the end of each swap, of the tokens that a job brought, and of who gave the turn
    back. `durable_waits`: whether a durable job waits. `on_change` is called when an average has changed.
    """

    _clock: IReactorTime
    _durable_waits: Callable[[], bool]
    on_change: Callable[[], None] = lambda: None
    _averages: "OrderedDict[Subject, Average]" = field(factory=OrderedDict, init=False)
    _changed: set[Subject] = field(factory=set, init=False)
    _tokens: dict[str, int] = field(factory=dict, init=False)  # by the ids of jobs that hold the turn
    _loaded_at: float = field(default=-math.inf, init=False)
    _chat_before: bool = field(default=False, init=False)

    # What is expected.

    def run_seconds(self, lane: Lane, key: ModelKey) -> float:
        """A job of this line: as its earlier ones; else as many tokens as others bring, at the key's pace;
        else as jobs of other keys in the lane; else as those of the other lane.
        """
        measured = self._of(Subject(Measure.RUN_SECONDS, lane, key))
        if measured is None:
            token_seconds = self._of(Subject(Measure.TOKEN_SECONDS, None, key))
            tokens = self._of(Subject(Measure.TOKENS, lane))
            if token_seconds is not None and tokens is not None:
                measured = token_seconds * tokens
        for of_all in (lane, lane.other):
            if measured is None:
                measured = self._of(Subject(Measure.RUN_SECONDS, of_all))
        return RUN_SECONDS if measured is None else max(measured, _SHORTEST_SECONDS)

    def load_seconds(self, key: ModelKey) -> float:
        """A load of this key: as its earlier ones, else as all."""
        for subject in (Subject(Measure.LOAD_SECONDS, None, key), Subject(Measure.LOAD_SECONDS)):
            measured = self._of(subject)
            if measured is not None:
                return measured
        return LOAD_SECONDS

    @property
    def interactive_share(self) -> float:
        """The part of the time that chats took from durable jobs, while those had work. Loads included: also
        the one that brings a batch's model back after them.
        """
        return self._of(Subject(Measure.INTERACTIVE_SHARE)) or 0.0

    # What is measured.

    def swapped(self, grant: Grant, seconds: float | None) -> None:
        """The swap of this grant is over, and its load took so long, as far as anybody knows."""
        self._loaded_at = self._clock.seconds()
        if seconds is not None and grant.key != UNKNOWN:
            self._add(Measure.LOAD_SECONDS, None, grant.key, seconds)
            self.on_change()

    def produced(self, grant: Grant, tokens: int) -> None:
        """The job that holds the turn brought so many output tokens."""
        self._tokens[grant.job_id] = tokens

    def released(self, grant: Grant) -> None:
        """A job gave the turn back."""
        now = self._clock.seconds()
        tokens = self._tokens.pop(grant.job_id, 0)
        self._share(grant, now)
        if grant.answered_at is None or grant.aborted or grant.key == UNKNOWN:
            return
        swapped = self._loaded_at >= grant.granted_at
        began = grant.answered_at if grant.settling else self._loaded_at if swapped else grant.granted_at
        seconds = now - began
        if grant.loaded or not swapped or seconds >= _ONE_PIECE_SECONDS:
            self._add(Measure.RUN_SECONDS, grant.lane, grant.key, seconds)
            if tokens:
                self._add(Measure.TOKEN_SECONDS, None, grant.key, seconds / tokens)
                self._add(Measure.TOKENS, grant.lane, grant.key, tokens)
        self.on_change()

    def _share(self, grant: Grant, now: float) -> None:
        """Durable jobs had work for the time of this grant: the part of it that chats cost them."""
        chat = grant.lane is Lane.INTERACTIVE
        seconds = now - grant.granted_at
        if seconds > 0 and (not chat or self._durable_waits()):
            lost = seconds
            if not chat:
                back = self._chat_before and self._loaded_at >= grant.granted_at
                lost = self._loaded_at - grant.granted_at if back else 0.0
            average = self._average(Subject(Measure.INTERACTIVE_SHARE))
            average.count += 1
            weight = 1 - math.exp(-seconds / _SHARE_MEMORY_SECONDS)
            average.value += weight * (lost / seconds - average.value)
        self._chat_before = chat

    # What is kept over restarts.

    def remember(self, subject: Subject, value: float, count: int) -> None:
        """What was measured in an earlier life."""
        self._averages[subject] = Average(value, count)

    def take_changes(self) -> Iterator[tuple[Subject, Average]]:
        """The averages that changed since the last call."""
        changed, self._changed = self._changed, set()
        for subject in changed:
            if subject in self._averages:
                yield subject, self._averages[subject]

    def _of(self, subject: Subject) -> float | None:
        average = self._averages.get(subject)
        return average.value if average is not None else None

    def _add(self, measure: Measure, lane: Lane | None, key: ModelKey, measured: float) -> None:
        """For the key, and for all of them."""
        self._average(Subject(measure, lane, key)).add(measured)
        self._average(Subject(measure, lane)).add(measured)

    def _average(self, subject: Subject) -> Average:
        """One that is about to change."""
        average = self._averages.get(subject)
        if average is None:
            average = self._averages[subject] = Average()
        self._averages.move_to_end(subject)
        self._changed.add(subject)
        if len(self._averages) > _MOST_SUBJECTS:
            self._averages.popitem(last=False)
        return average
