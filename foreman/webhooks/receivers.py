"""Whose turn it is among the receivers: each has a few places, and the doubtful ones share half of all.

Values only: nothing here waits, and times are what the caller says they are. Every call costs the same with
one receiver or ten thousand, but for the first few that are passed over, and for `waiting_since`.
"""

import enum
import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable

from attrs import define, field

from foreman.jobs.delivery import Due

PLACES = 4
"""How many attempts at once a receiver has that gives HTTP answers; one that does not has one."""

_FEW = 64


class Standing(enum.Enum):
    """What the last attempt at a receiver brought."""

    NEW = "new"
    WELL = "well"  # a 2xx
    ANSWERED = "answered"  # another HTTP answer
    SILENT = "silent"  # none


@define(eq=False)
class Receiver:
    """
    One scheme, host and port. `ready` was read from the outbox; `due_at` is when there will be more.

    `able_since` is the last moment at which it could not take one more attempt, or was not known.
    """

    name: str
    able_since: float
    standing: Standing = Standing.NEW
    sending: int = 0
    recording: int = 0  # attempts of which it is not written yet what came of them
    fetching: bool = False  # what is due for it is being read
    ready: "deque[Due]" = field(factory=deque)
    due_at: float | None = None
    in_line_since: float = 0.0  # only while it is in line, or what is due for it is read

    @property
    def places(self) -> int:
        """How many attempts at once it may have."""
        return PLACES if self.standing in (Standing.WELL, Standing.ANSWERED) else 1

    @property
    def full(self) -> bool:
        """It cannot take one more attempt."""
        return self.sending >= self.places

    @property
    def waits_since(self) -> float | None:
        """Since when the oldest that is due waits, though it could be sent."""
        due_at = self.ready[0].delivery.due_at if self.ready else self.due_at
        return None if due_at is None else max(due_at, self.able_since)

    @property
    def doubtful(self) -> bool:
        """It does not get at the half of all places that is kept for those that are well or new."""
        return self.standing in (Standing.ANSWERED, Standing.SILENT)

    @property
    def forgettable(self) -> bool:
        """Nothing of it is known to be under way or to come."""
        busy = self.sending or self.recording or self.fetching or self.ready
        return not busy and self.due_at is None


@define(eq=False)
class Receivers:
    """All receivers with something under way or to come. `concurrency` is how many places there are."""

    concurrency: int
    _used: int = field(default=0, init=False)  # places
    _all: dict[str, Receiver] = field(factory=dict, init=False)
    _doubtful_sending: int = field(default=0, init=False)
    # Those that could use a place now, in the order in which they came to wait for it.
    _well: "OrderedDict[str, Receiver]" = field(factory=OrderedDict, init=False)
    _doubtful: "OrderedDict[str, Receiver]" = field(factory=OrderedDict, init=False)
    _later: "list[tuple[float, str]]" = field(factory=list, init=False)  # a heap; some are no longer so

    @property
    def free(self) -> bool:
        """A place is free."""
        return self._used < self.concurrency

    def due(self, name: str, moment: float, now: float) -> None:
        """Something for this receiver is due at this moment."""
        receiver = self._all.get(name)
        if receiver is None:
            receiver = self._all[name] = Receiver(name, now)
        if receiver.due_at is None or moment < receiver.due_at:
            receiver.due_at = moment
            self._remember(moment, name)
        self.put(receiver, now)

    def next_moment(self, now: float) -> float | None:
        """Lets those come into line whose moment has come; when the next one comes."""
        while self._later:
            moment, name = self._later[0]
            receiver = self._all.get(name)
            if receiver is not None and receiver.due_at == moment:
                if moment > now:
                    return moment
                self.put(receiver, now)
            heapq.heappop(self._later)
        return None

    def turn(self) -> Receiver | None:
        """The receiver that may use a place now, and has waited longest for one. It leaves the line."""
        if not self.free:
            return None
        half = max(1, self.concurrency // 2)
        heads = [line for line in (self._well, self._doubtful) if line]
        if self._doubtful_sending >= half:
            heads = [line for line in heads if line is self._well]
        if not heads:
            return None
        line = min(heads, key=lambda line: next(iter(line.values())).in_line_since)
        return line.popitem(last=False)[1]

    def fetch(self, receiver: Receiver) -> None:
        """What is due for it is read now. That takes a place: bodies are read for those who can send them."""
        self._used += 1
        receiver.fetching, receiver.due_at = True, None  # what is told from now on is more

    def fetched(
        self, receiver: Receiver, found: Iterable[Due], next_due_at: float | None, now: float
    ) -> None:
        """What was read, and when there will be more."""
        self._used -= 1
        receiver.fetching = False
        receiver.ready.extend(found)
        if next_due_at is not None:
            self.due(receiver.name, next_due_at, now)
        self.put(receiver, now, first=bool(receiver.ready))

    def begin(self, receiver: Receiver, now: float) -> Due:
        """One of what is ready is sent now."""
        self._used += 1
        self._doubtful_sending += receiver.doubtful
        receiver.sending += 1
        due = receiver.ready.popleft()
        self.put(receiver, now)
        return due

    def drop(self, name: str, event_id: str) -> bool:
        """Forget what was read of one event. Whether there was any."""
        receiver = self._all.get(name)
        if receiver is None:
            return False
        before = len(receiver.ready)
        receiver.ready = deque(due for due in receiver.ready if due.delivery.event_id != event_id)
        return len(receiver.ready) < before

    def end(self, receiver: Receiver, standing: Standing | None, now: float) -> None:
        """An attempt has ended; None: foreman cut it, which says nothing about the receiver."""
        self._used -= 1
        if receiver.full:
            receiver.able_since = now
        # Before the standing changes: all its other attempts count as what it is from now on.
        self._doubtful_sending -= receiver.sending if receiver.doubtful else 0
        receiver.sending -= 1
        receiver.recording += 1
        receiver.standing = standing or receiver.standing
        self._doubtful_sending += receiver.sending if receiver.doubtful else 0
        self._leave(receiver)
        self.put(receiver, now)

    def recorded(self, receiver: Receiver, due_at: float | None, now: float) -> None:
        """What came of an attempt is written, and when it is to be made again."""
        receiver.recording -= 1
        if due_at is not None:
            self.due(receiver.name, due_at, now)
        self.put(receiver, now)

    def put(self, receiver: Receiver, now: float, first: bool = False) -> None:
        """
        Into the line, if it could use a place now; out of it, or forgotten, if not.

        It comes last, but for one that has waited before what is due for it was read: else the bodies for
        all who wait would be in memory before the first of them is sent.
        """
        waits = receiver.ready or (
            not receiver.fetching and receiver.due_at is not None and receiver.due_at <= now
        )
        if not waits or receiver.full:
            self._leave(receiver)
            if receiver.forgettable:
                self._all.pop(receiver.name, None)
            return
        line = self._doubtful if receiver.doubtful else self._well
        if receiver.name not in line:
            receiver.in_line_since = receiver.in_line_since if first else now
            line[receiver.name] = receiver
            line.move_to_end(receiver.name, last=not first)

    def waiting_since(self) -> float | None:
        """Since when the oldest that is due waits for a place. Looks at all who wait for one."""
        moments = [
            receiver.waits_since for line in (self._well, self._doubtful) for receiver in line.values()
        ]
        return min((moment for moment in moments if moment is not None), default=None)

    def _remember(self, moment: float, name: str) -> None:
        """Have `next_moment` look at this receiver then."""
        heapq.heappush(self._later, (moment, name))
        # One entry in two is no longer so, at most: else each event would leave one behind.
        if len(self._later) > 2 * len(self._all) + _FEW:
            self._later = [(each.due_at, each.name) for each in self._all.values() if each.due_at is not None]
            heapq.heapify(self._later)

    def _leave(self, receiver: Receiver) -> None:
        self._well.pop(receiver.name, None)
        self._doubtful.pop(receiver.name, None)
