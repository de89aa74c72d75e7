"""Model keys: what must be equal for two jobs to run without a reload, and which keys are resident.

This is the one place where a model's name becomes a key, and where residency is decided. A name is not a
key: a copy of a model, or a `create` that only adds a system prompt, runs on the same runner without a
reload (measured on Ollama 0.24), while another context length reloads the same weights.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from attrs import define, field, frozen


@frozen
class ModelKey:
    """Equal keys run without a reload: the weights' blobs, and the context length (None: the target's)."""

    weights: frozenset[str]
    num_ctx: int | None = None


UNKNOWN = ModelKey(frozenset())
"""The key of a request body that could not be read: it is never resident, and nobody knows what it loads."""


class Model(Protocol):
    """An installed model, as far as keys go."""

    @property
    def digest(self) -> str: ...

    @property
    def weights(self) -> frozenset[str]: ...

    @property
    def num_ctx(self) -> int | None: ...


class Loaded(Protocol):
    """One entry of /api/ps. It names the model that loaded the runner, which others may share."""

    @property
    def digest(self) -> str: ...

    @property
    def context_length(self) -> int: ...


class Inventory(Protocol):
    """What the target has: the last good answers of /api/tags, /api/show and /api/ps."""

    def model(self, name: str, /) -> Model | None: ...

    def model_by_digest(self, digest: str, /) -> Model | None: ...

    @property
    def loaded(self) -> Sequence[Loaded]: ...


@define(eq=False)
class KeyRegistry:
    """Turns names into keys, and says which keys are resident.

    Residency is read from /api/ps. Between a swap and the next reading foreman knows better: the key that
    it ran last is resident, and of the others nobody knows whether they were evicted, so they count as gone.
    """

    _inventory: Inventory
    _ran: ModelKey | None = field(default=None, init=False)  # the key that ran last, since the last reading
    _ran_at: float = field(default=0.0, init=False)  # when it first did so, in the clock's seconds
    _swapped: bool = field(default=False, init=False)  # running it was a swap: it is all that is known
    # What /api/ps showed when a key last ran: an unset num_ctx becomes the target's default, and Ollama cuts
    # one that is larger than what the model was trained for.
    _contexts: dict[ModelKey, int] = field(factory=dict, init=False)

    def key(self, name: str | None) -> ModelKey:
        """The key of a model's name. A name that is not installed is a key of its own; None is `UNKNOWN`."""
        if name is None:
            return UNKNOWN
        model = self._inventory.model(name)
        if model is None:
            return ModelKey(frozenset({f"name:{name}"}))
        return ModelKey(model.weights, model.num_ctx)

    def resident(self) -> frozenset[ModelKey]:
        """The keys that would run now without a load."""
        ran = frozenset() if self._ran is None else frozenset({self._ran})
        return ran if self._swapped else ran.union(self._agreeing())

    def ran(self, key: ModelKey, now: float) -> None:
        """A job of this key got its first byte at `now`: its model is loaded. Another key may be evicted.

        `UNKNOWN` teaches nothing: most often the target refuses such a body and loads nothing.
        """
        if key == UNKNOWN or key == self._ran:
            return
        self._swapped = key not in self.resident()
        self._ran, self._ran_at = key, now

    def inventory_read(self, asked_at: float | None) -> None:
        """The inventory read an answer of /api/ps that was asked for at `asked_at`: the clock's seconds.

        An answer that was asked for before the last key ran says nothing about that key, and is passed over;
        so is None: there was no answer.
        """
        if self._ran is None or asked_at is None or asked_at < self._ran_at:
            return
        for model, context_length in self._entries():
            if model.weights == self._ran.weights:
                self._contexts[self._ran] = context_length
        self._ran, self._swapped = None, False

    def _entries(self) -> Iterator[tuple[Model, int]]:
        """The model that loaded it, and the context length, of each entry of /api/ps whose model is known."""
        for entry in self._inventory.loaded:
            model = self._inventory.model_by_digest(entry.digest)
            if model is not None:
                yield model, entry.context_length

    def _agreeing(self) -> Iterator[ModelKey]:
        """The keys that agree with an entry of /api/ps."""
        for model, context_length in self._entries():
            yield ModelKey(model.weights, context_length)
            unset = ModelKey(model.weights)
            # Until a key without num_ctx was seen to run, only a model without one can have loaded it so.
            if model.num_ctx is None and unset not in self._contexts:
                yield unset
            for key, seen in self._contexts.items():
                if key.weights == model.weights and seen == context_length:
                    yield key
