"""The log of swaps: how many there were, and how many more it would have been in the order of arrival.

First-come-first-served would load a model whenever two jobs that came one after the other want different
ones. So each job that ran is put into the order of arrival, and changes the number of such places by what it
finds before and behind it. This is exact for jobs that all wait at once, and near enough else: jobs that
would have come sooner, had they not waited, are taken as they came. Two models that the target showed loaded
side by side are no swap for either. A reload of the model that ran before (its `keep_alive` was over) is one
for both. After a job with `keep_alive` 0 whatever comes next is one.

Only the last jobs are kept in their order; one that came before all of these is taken as the first of them.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Collection
from itertools import combinations

from attrs import define, field, frozen
from twisted.internet.interfaces import IReactorTime

from foreman.scheduler.grant import Grant
from foreman.scheduler.keys import UNKNOWN, ModelKey

HOUR_SECONDS = 3600.0
DAY_SECONDS = 24 * HOUR_SECONDS
_BUCKET_SECONDS = 60.0
_MOST_SHOWN = 20
_MOST_STARTS = 10_000
_MOST_PAIRS = 1000
_MOST_RELOADS = 5000


@frozen
class Swap:
    """One load: its end in the clock's seconds, and the name of the model as its job wrote it.

    `load_seconds` is None where nobody knows them.
    """

    at: float
    model: str
    key: ModelKey
    load_seconds: float | None


@frozen
class Reload:
    """A swap to weights that had just run with other options, `before`."""

    swap: Swap
    before: ModelKey


@frozen
class Count:
    """Swaps of one span of time. `avoided` is against first-come-first-served; never below 0."""

    done: int
    avoided: int


@define
class _Bucket:
    """One minute."""

    number: int
    done: int = 0
    in_order: int = 0  # what it would have been in the order of arrival


@frozen
class _Start:
    """A job in the order of arrival. `drops`: its model was unloaded after it."""

    key: ModelKey
    drops: bool


@define(eq=False)
class Swaps:
    """Counts from its making on.

    It is told of the end of each swap, and of who gave the turn back.
    """

    _clock: IReactorTime
    _last: "deque[Swap]" = field(factory=lambda: deque(maxlen=_MOST_SHOWN), init=False)
    _reloads: "deque[Reload]" = field(factory=lambda: deque(maxlen=_MOST_RELOADS), init=False)
    _buckets: "deque[_Bucket]" = field(factory=deque, init=False)
    # In the order of arrival, with a number that decides between those of one instant; and who ran last.
    _places: list[tuple[float, int]] = field(factory=list, init=False)
    _starts: list[_Start] = field(factory=list, init=False)
    _count: int = field(default=0, init=False)
    _ran: ModelKey | None = field(default=None, init=False)
    _dropped: bool = field(default=False, init=False)  # it did not keep its model
    _together: set[frozenset[frozenset[str]]] = field(factory=set, init=False)

    def swapped(self, grant: Grant, seconds: float | None) -> None:
        """The swap of this grant is over, and its load took so long, as far as anybody knows."""
        if grant.key == UNKNOWN or grant.wanted is None:
            return
        swap = Swap(self._clock.seconds(), grant.wanted.model, grant.key, seconds)
        self._bucket().done += 1
        self._last.append(swap)
        if self._ran is not None and self._ran != grant.key and self._ran.weights == grant.key.weights:
            self._reloads.append(Reload(swap, self._ran))

    def released(self, grant: Grant) -> None:
        """A job gave the turn back. One without an answer counts for nothing."""
        if grant.key == UNKNOWN or not grant.answered:
            return
        bucket = self._bucket()
        if grant.swap and (self._ran is None or (self._ran == grant.key and not self._dropped)):
            bucket.in_order += 1
        bucket.in_order += self._put(grant.granted_at - grant.queued_seconds, _Start(grant.key, grant.drops))
        self._ran, self._dropped = grant.key, grant.drops

    def seen_together(self, weights: Collection[frozenset[str]]) -> None:
        """The target has all of these loaded."""
        if len(self._together) < _MOST_PAIRS:
            self._together.update(frozenset(pair) for pair in combinations(set(weights), 2))

    @property
    def last(self) -> list[Swap]:
        """The latest ones, newest first."""
        return list(reversed(self._last))

    def reloads(self, seconds: float) -> list[Reload]:
        """Those of so many seconds up to now."""
        since = self._clock.seconds() - seconds
        return [reload for reload in self._reloads if reload.swap.at >= since]

    def count(self, seconds: float) -> Count:
        """Those of so many seconds up to now, to the minute; a day at most."""
        since = (self._clock.seconds() - seconds) // _BUCKET_SECONDS
        done = in_order = 0
        for bucket in reversed(self._buckets):
            if bucket.number <= since:
                break
            done += bucket.done
            in_order += bucket.in_order
        return Count(done, max(0, in_order - done))

    def _put(self, arrived_at: float, start: _Start) -> int:
        """How many more loads the order of arrival has with this job in it."""
        self._count += 1
        place = (arrived_at, self._count)
        at = bisect_left(self._places, place)
        before = self._starts[at - 1] if at else None
        behind = self._starts[at] if at < len(self._starts) else None
        self._places.insert(at, place)
        self._starts.insert(at, start)
        if len(self._places) > _MOST_STARTS:
            del self._places[0], self._starts[0]
        return self._loads(before, start) + self._loads(start, behind) - self._loads(before, behind)

    def _loads(self, one: _Start | None, other: _Start | None) -> bool:
        if one is None or other is None:
            return False
        return one.drops or self._is_swap(one.key, other.key)

    def _is_swap(self, one: ModelKey, other: ModelKey) -> bool:
        if one == other:
            return False
        return frozenset((one.weights, other.weights)) not in self._together

    def _bucket(self) -> _Bucket:
        """That of this minute."""
        number = int(self._clock.seconds() // _BUCKET_SECONDS)
        if not self._buckets or self._buckets[-1].number != number:
            self._buckets.append(_Bucket(number))
            while self._buckets[0].number <= number - DAY_SECONDS // _BUCKET_SECONDS:
                self._buckets.popleft()
        return self._buckets[-1]
