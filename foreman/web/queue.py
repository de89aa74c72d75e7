"""The queue, as ``GET /queue`` shows it: who has the turn, who waits, what is loaded, what swaps cost."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from attrs import asdict, define

from foreman.quantities import format_moment
from foreman.scheduler.advice import advise
from foreman.scheduler.key_texts import shown
from foreman.scheduler.keys import Wanted
from foreman.scheduler.residents import Residents
from foreman.scheduler.swaps import DAY_SECONDS, HOUR_SECONDS, Swaps
from foreman.scheduler.turn import Turn
from foreman.target.embedder import FOREVER
from foreman.web.gate import Answer


class Model(Protocol):
    """An installed model."""

    @property
    def weights(self) -> frozenset[str]: ...

    @property
    def generates(self) -> bool: ...


class Loaded(Protocol):
    """An entry of /api/ps."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def context_length(self) -> int: ...

    @property
    def expires_at(self) -> datetime: ...


class Inventory(Protocol):
    """What the target has."""

    @property
    def loaded(self) -> Sequence[Loaded]: ...

    def model(self, name: str, /) -> Model | None: ...

    def model_by_digest(self, digest: str, /) -> Model | None: ...


class Embedder(Protocol):
    """What keeps the embedding model loaded."""

    @property
    def model(self) -> str: ...

    @property
    def evicted(self) -> bool:
        """foreman's own swaps throw it out again and again."""


@define(eq=False)
class QueueReport:
    """Looks at the turn, the swaps and the residents. The clocks show epoch seconds.

    `paused` gives the lanes that are paused, by name, as they are shown.
    """

    _wall_clock: Callable[[], float]
    _turn: Turn
    _swaps: Swaps
    _inventory: Inventory
    _residents: Residents
    _embedder: Embedder | None
    _paused: Callable[[], Mapping[str, Any]]

    def show(self) -> Answer:
        """``GET /queue``."""
        return Answer.json(200, self.report())

    def report(self) -> dict[str, Any]:
        """All of it."""
        resident = [self._resident(entry) for entry in self._inventory.loaded]
        return {
            "turn": self._holder(),
            "lines": self._lines(),
            "resident": resident,
            "swaps": {
                "last": [
                    {
                        "at": format_moment(swap.at),
                        "model": swap.model,
                        "load_seconds": None if swap.load_seconds is None else round(swap.load_seconds, 3),
                    }
                    for swap in self._swaps.last
                ],
                "hour": asdict(self._swaps.count(HOUR_SECONDS)),
                "day": asdict(self._swaps.count(DAY_SECONDS)),
            },
            "paused": self._paused(),
            "advice": [
                asdict(advice)
                for advice in advise(
                    self._swaps.reloads(DAY_SECONDS),
                    self._swaps.count(DAY_SECONDS).done,
                    [each["name"] for each in resident if each["loaded_by_foreman"] is False],
                    self._embedder is not None and self._embedder.evicted,
                )
            ],
        }

    def _holder(self) -> dict[str, Any] | None:
        """The job that has held the turn for longest."""
        holders, visit = self._turn.holders, self._turn.visit
        if not holders:
            return None
        first = holders[0]
        return {
            "lane": first.lane.value,
            "model": _model(first.wanted),
            "job_id": first.job_id,
            "since": format_moment(first.granted_at),
            "sharing": len(holders),
            "visit": None if visit is None else {"since": format_moment(visit.since)},
        }

    def _lines(self) -> list[dict[str, Any]]:
        now = self._wall_clock()
        return [
            {
                "model": _model(line.wanted[0]),
                "key": shown(line.key),
                "lane": line.lane.value,
                "waiting": line.count,
                "oldest_at": format_moment(line.oldest.waiting_since),
                "overdue_in_seconds": max(0, round(line.overdue_since - now)),
            }
            for line in sorted(self._turn.lines(), key=lambda line: line.overdue_since)
        ]

    def _resident(self, entry: Loaded) -> dict[str, Any]:
        forever = entry.expires_at.timestamp() - self._wall_clock() > FOREVER.total_seconds()
        return {
            "name": entry.name,
            "context_length": entry.context_length,
            "expires_at": None if forever else format_moment(entry.expires_at.timestamp()),
            "loaded_by_foreman": self._by_foreman(entry),
        }

    def _by_foreman(self, entry: Loaded) -> bool | None:
        """None: nobody knows. Embeddings pass the turn by, and load their models without a trace here."""
        model = self._inventory.model_by_digest(entry.digest)
        if model is None:
            return None
        if self._embedder is not None:
            pinned = self._inventory.model(self._embedder.model)
            if pinned is not None and pinned.weights == model.weights:
                return True
        by_foreman = self._residents.by_foreman(model.weights)
        return None if by_foreman is False and not model.generates else by_foreman


def _model(wanted: Wanted | None) -> str | None:
    return None if wanted is None else wanted.model
