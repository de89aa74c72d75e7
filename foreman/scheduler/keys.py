"""Model keys: what must be equal for two jobs to run without a reload, and which keys are resident.

This is the one place where a model's name and a request's options become a key, and where residency is
decided. A name is not a key: a copy of a model, or a `create` that only adds a system prompt, runs on the
same runner without a reload, while another context length reloads the same weights (measured on Ollama
0.24). Which options do so, and which values are the same, is what Ollama compares before it reloads
(`needsReload` in its `server/sched.go`).
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Protocol

from attrs import define, evolve, field, frozen

from foreman.runner_options import overlaid


@frozen
class Wanted:
    """What a job asks to run on: a model's name, and the canonical text of the runner options of its body.

    `options` is "" when the body says nothing about them; see `foreman.runner_options`.
    """

    model: str
    options: str = ""


@frozen(cache_hash=True)
class ModelKey:
    """Equal keys run without a reload.

    `weights` are the blobs. `options` are the runner options that were set, by the model or by the request,
    sorted, without `num_ctx`, which is None when it is left to the target. `shift`: whether the runner may
    move its context along, which is decided at its load.
    """

    weights: frozenset[str]
    options: tuple[tuple[str, int | bool], ...] = ()
    num_ctx: int | None = None
    shift: bool = True


UNKNOWN = ModelKey(frozenset())
"""The key of a request body that could not be read: it is never resident, and nobody knows what it loads."""


class Model(Protocol):
    """An installed model, as far as keys go. `options`: the canonical text of its own runner options."""

    @property
    def digest(self) -> str: ...

    @property
    def weights(self) -> frozenset[str]: ...

    @property
    def options(self) -> str: ...


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
    """Turns what jobs want into keys, and says which keys are resident.

    Residency is read from /api/ps, which tells the context length of a runner and nothing of its other
    options: for those foreman remembers which key it loaded last on these weights. Between a swap and the
    next reading foreman knows better: the key that it ran last is resident, and of the others nobody knows
    whether they were evicted, so they count as gone.
    """

    _inventory: Inventory
    _ran: ModelKey | None = field(default=None, init=False)  # the key that ran last, since the last reading
    _ran_at: float = field(default=0.0, init=False)  # when it first did so, in the clock's seconds
    _swapped: bool = field(default=False, init=False)  # running it was a swap: it is all that is known
    _undisturbed: bool = field(default=False, init=False)  # no other key was granted since it ran
    # The key that foreman last saw loaded on these weights: a runner keeps the options of its load.
    _runners: dict[frozenset[str], ModelKey] = field(factory=dict, init=False)
    # What /api/ps showed when a key last ran: an unset num_ctx becomes the target's default, and Ollama cuts
    # one that is larger than what the model was trained for.
    _contexts: dict[ModelKey, int] = field(factory=dict, init=False)

    def key(self, wanted: Wanted | None) -> ModelKey:
        """The key of what a job wants. A name that is not installed is a key of its own; None is `UNKNOWN`.

        An explicit num_ctx that is the automatic one is no key of its own: Ollama does not reload for it.
        """
        if wanted is None:
            return UNKNOWN
        model = self._inventory.model(wanted.model)
        if model is None:
            return _effective(frozenset({f"name:{wanted.model}"}), "", wanted.options)
        key = _effective(model.weights, model.options, wanted.options)
        if key.num_ctx is not None:
            automatic = _with_context(key, None)
            if self._contexts.get(automatic) == key.num_ctx:
                return automatic
        return key

    def resident(self) -> frozenset[ModelKey]:
        """The keys that would run now without a load."""
        resident: set[ModelKey] = set()
        if self._ran is not None:
            resident.update((self._ran, *_served_by(self._runners[self._ran.weights])))
        if not self._swapped:
            for model, context_length in self._entries():
                for key in self._agreeing(model, context_length):
                    resident.update(_served_by(key))
        return frozenset(resident)

    def granted(self, key: ModelKey) -> None:
        """A job of this key is about to be sent: from now on /api/ps may show what it loads.

        It does so before the first byte, while the prompt is processed. Without this, the context length
        would be learnt for the key that ran before.
        """
        if key != self._ran:
            self._undisturbed = False

    def ran(self, key: ModelKey, now: float) -> None:
        """A job of this key got its first byte at `now`: its model is loaded. Another key may be evicted.

        `UNKNOWN` teaches nothing: most often the target refuses such a body and loads nothing.
        """
        if key == UNKNOWN or key == self._ran:
            return
        swap = key not in self.resident()
        self._swapped = self._swapped or swap
        self._ran, self._ran_at, self._undisturbed = key, now, True
        runner = self._runners.get(key.weights)
        if swap or runner is None or key not in _served_by(runner):
            self._runners[key.weights] = key

    def unloaded(self, weights: frozenset[str]) -> None:
        """The target has unloaded these, or will have before it hears of the next job. The inventory has
        forgotten them, too; what a swap before this evicted is as unknown as it was.
        """
        if self._ran is not None and self._ran.weights == weights:
            self._ran = None
        self._runners.pop(weights, None)

    def inventory_read(self, asked_at: float | None) -> None:
        """The inventory read an answer of /api/ps that was asked for at `asked_at`: the clock's seconds.

        An answer that was asked for before the last key ran says nothing about that key, and is passed over;
        so is None: there was no answer.
        """
        if asked_at is None or (self._ran is not None and asked_at < self._ran_at):
            return
        shown = {model.weights: context_length for model, context_length in self._entries()}
        if self._ran is not None and self._undisturbed and self._ran.weights in shown:
            self._learn(self._ran, shown[self._ran.weights])
        # What was unloaded is loaded anew by whoever wants it next, with options that foreman does not know.
        self._runners = {weights: key for weights, key in self._runners.items() if weights in shown}
        self._ran, self._swapped = None, False

    def _learn(self, key: ModelKey, context_length: int) -> None:
        self._contexts.pop(key, None)
        if key.num_ctx == context_length:
            return
        self._contexts[key] = context_length
        if len(self._contexts) > _MOST_CONTEXTS:
            del self._contexts[next(iter(self._contexts))]

    def _entries(self) -> Iterator[tuple[Model, int]]:
        """The model that loaded it, and the context length, of each entry of /api/ps whose model is known."""
        for entry in self._inventory.loaded:
            model = self._inventory.model_by_digest(entry.digest)
            if model is not None:
                yield model, entry.context_length

    def _agreeing(self, model: Model, context_length: int) -> Iterator[ModelKey]:
        """The keys that agree with an entry of /api/ps.

        Its options are those of the key that foreman last saw loaded there. If the context length is another
        now, somebody else loaded it: then they are taken to be the loading model's own, as when foreman
        never ran it.
        """
        own = _effective(model.weights, model.options, "")
        runner = self._runners.get(model.weights)
        if runner is None or self._contexts.get(runner, runner.num_ctx) not in (None, context_length):
            runner = own
        yield _with_context(runner, context_length)
        automatic = _with_context(runner, None)
        # Until a key without num_ctx was seen to run, only a model without one can have loaded it so.
        if own.num_ctx is None and runner.num_ctx is None and automatic not in self._contexts:
            yield automatic
        for key, seen in self._contexts.items():
            if seen == context_length and _with_context(key, None) == automatic:
                yield key


# A caller may invent a larger num_ctx for each request; only so many are remembered.
_MOST_CONTEXTS = 200


@lru_cache(maxsize=4096)
def _effective(weights: frozenset[str], own: str, asked: str) -> ModelKey:
    """The key of a model with these weights and own options for a request that asks for others.

    Zero is Ollama's own value for an unset `num_thread` and `main_gpu`, as a negative `num_gpu` is. The
    others have no value that is always the same as none: an unset `num_batch` goes by the free memory.
    """
    options = overlaid(own, asked)
    shift = bool(options.pop("shift", True))
    num_ctx = options.pop("num_ctx", None)
    for name in ("num_thread", "main_gpu"):
        if options.get(name) == 0:
            del options[name]
    if options.get("num_gpu", 0) < 0:
        del options["num_gpu"]
    return ModelKey(weights, tuple(sorted(options.items())), num_ctx, shift)


@lru_cache(maxsize=4096)
def _with_context(key: ModelKey, num_ctx: int | None) -> ModelKey:
    return evolve(key, num_ctx=num_ctx)


@lru_cache(maxsize=4096)
def _served_by(runner: ModelKey) -> frozenset[ModelKey]:
    """The keys that run on the runner that a key loaded: itself, and the one that leaves `num_gpu` open.

    Ollama reuses a runner with any `num_gpu` for a request without one, not the other way round.
    """
    options = tuple(option for option in runner.options if option[0] != "num_gpu")
    return frozenset({runner, evolve(runner, options=options)})
