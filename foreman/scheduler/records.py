"""What is recorded of the turn: durations, swaps, and whose the resident models are."""

from collections.abc import Sequence

from attrs import define, field

from foreman.scheduler.grant import Grant
from foreman.scheduler.history import History
from foreman.scheduler.residents import Residents
from foreman.scheduler.swaps import Swaps


@define(eq=False)
class Records:
    """Hears of everything once, and tells those who keep it.

    Of a load that began while the target settled nobody knows the seconds.
    """

    history: History
    swaps: Swaps
    residents: Residents
    _load_seconds: float | None = field(default=None, init=False)  # of the load that has just ended

    def loaded(self, grant: Grant, seconds: float) -> None:
        """A load ahead of this grant's request took so long. If it ends a swap, `swapped` comes next."""
        self._load_seconds = None if grant.settling else seconds

    def swapped(self, holders: Sequence[Grant]) -> None:
        """A swap is over, by a load ahead or by a first byte, and these hold the turn."""
        for grant in holders:
            if grant.swap:
                seconds = self._load_seconds if grant.loaded else _until_first_byte(grant, holders)
                self.history.swapped(grant, seconds)
                self.swaps.swapped(grant, seconds)
                return

    def released(self, grant: Grant) -> None:
        """A job gave the turn back."""
        self.history.released(grant)
        self.swaps.released(grant)
        self.residents.released(grant)

    def inventory_read(self, asked_at: float | None) -> None:
        """/api/ps was read, as it was at `asked_at`; None: there was no answer."""
        self.residents.inventory_read(asked_at)
        self.swaps.seen_together(set(self.residents.weights()))


def _until_first_byte(grant: Grant, holders: Sequence[Grant]) -> float | None:
    answered = [each.answered_at for each in holders if each.answered_at is not None]
    return None if grant.settling or not answered else min(answered) - grant.granted_at
