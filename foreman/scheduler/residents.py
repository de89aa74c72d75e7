"""Who had the target load what is resident: foreman's turn, or somebody else; and what was unloaded since."""

from collections.abc import Callable, Iterator, Sequence

from attrs import define, field
from twisted.internet.interfaces import IReactorTime

from foreman.scheduler.grant import Grant
from foreman.scheduler.keys import Inventory


def _nobody(weights: frozenset[str]) -> None:
    """Nobody asked to be told."""


@define(eq=False)
class Residents:
    """Compares /api/ps with what ran under the turn. `holders` are the grants that hold it now. `unloaded`
    is told of weights that the target unloads now, because foreman passed that wish on: /api/ps is read far
    too seldom to show it before the next job is chosen.

    What was resident at the first reading may be of an earlier life: nobody knows, until it is gone.
    """

    _clock: IReactorTime
    _inventory: Inventory
    _holders: Callable[[], Sequence[Grant]]
    _unloaded: Callable[[frozenset[str]], None] = _nobody
    _ours: dict[frozenset[str], float] = field(factory=dict, init=False)  # weights, and when they last ran
    _found: set[frozenset[str]] | None = field(default=None, init=False)  # at the first reading
    _going: set[frozenset[str]] = field(factory=set, init=False)  # unloaded when nothing runs on them

    def released(self, grant: Grant) -> None:
        """A job gave the turn back. Its model may be resident, whatever came of the job."""
        self._ours[grant.key.weights] = self._clock.seconds()
        # A refusal most often comes before the target has looked at the model.
        if grant.drops and (grant.answered or grant.aborted):
            self._going.add(grant.key.weights)
        self._let_go(grant.key.weights)

    def told(self, name: str) -> None:
        """The target was told to unload a model. It does so at once, or after what runs on it."""
        model = self._inventory.model(name)
        if model is not None:
            self._going.add(model.weights)
            self._let_go(model.weights)

    def inventory_read(self, asked_at: float | None) -> None:
        """/api/ps was read, as it was at `asked_at`; None: there was no answer."""
        if asked_at is None:
            return
        shown = set(self.weights())
        if self._found is None:
            self._found = {weights for weights in shown if not self._is_ours(weights)}
        self._found &= shown
        self._ours = {weights: at for weights, at in self._ours.items() if weights in shown or at >= asked_at}

    def weights(self) -> Iterator[frozenset[str]]:
        """Those of each entry of /api/ps whose model is known."""
        for entry in self._inventory.loaded:
            model = self._inventory.model_by_digest(entry.digest)
            if model is not None:
                yield model.weights

    def by_foreman(self, weights: frozenset[str]) -> bool | None:
        """Whether a job of foreman's had these loaded; None: nobody knows."""
        if self._is_ours(weights):
            return True
        return None if self._found is None or weights in self._found else False

    def _is_ours(self, weights: frozenset[str]) -> bool:
        return weights in self._ours or any(grant.key.weights == weights for grant in self._holders())

    def _let_go(self, weights: frozenset[str]) -> None:
        if weights in self._going and not any(grant.key.weights == weights for grant in self._holders()):
            self._going.remove(weights)
            self._unloaded(weights)
