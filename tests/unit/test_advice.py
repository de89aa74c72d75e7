"""Advice, and what it is made of: keys as texts, and whose the resident models are."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import define, evolve, field
from grants import make_grant
from twisted.internet.task import Clock

from foreman.scheduler.advice import Advice, advise
from foreman.scheduler.grant import Grant
from foreman.scheduler.key_texts import dumped, parsed, shown
from foreman.scheduler.keys import UNKNOWN, ModelKey
from foreman.scheduler.residents import Residents
from foreman.scheduler.swaps import Reload, Swap

NARROW = ModelKey(frozenset({"a"}), num_ctx=4096)
WIDE = evolve(NARROW, num_ctx=8192)
UNSET = evolve(NARROW, num_ctx=None)


def reloads(*keys: ModelKey, times: int, load_seconds: float | None = 13.2) -> list[Reload]:
    """One key after the other, again and again."""
    found = []
    for number in range(times):
        key, before = keys[number % len(keys)], keys[number % len(keys) - 1]
        found.append(Reload(Swap(float(number), "llama3.2", key, load_seconds), before))
    return found


def test_options_that_differ() -> None:
    """From ten reloads on: the model, the option, its values, how often and for how long."""
    assert advise(reloads(NARROW, WIDE, times=9), 9, [], False) == []
    words = "two lines of llama3.2 differ only in num_ctx (4096, 8192): 41 reloads today, 9 minutes"
    text = f"{words}; set one value"
    assert advise(reloads(NARROW, WIDE, times=41), 41, [], False) == [Advice("options_differ", text)]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            [UNSET, WIDE],
            "two lines of llama3.2 differ only in num_ctx (unset, 8192): 10 reloads today, 2 minutes",
        ),
        (
            [UNSET, NARROW, WIDE],
            "three lines of llama3.2 differ only in num_ctx (unset, 4096, 8192): 10 reloads today, 2 minutes",
        ),
        (
            [evolve(UNSET, options=(("num_gpu", 10),)), UNSET],
            "two lines of llama3.2 differ only in num_gpu (unset, 10): 10 reloads today, 2 minutes",
        ),
        (
            [evolve(WIDE, shift=False), NARROW],
            "two lines of llama3.2 differ only in num_ctx (4096, 8192) and shift (true, false): "
            "10 reloads today, 2 minutes",
        ),
    ],
    ids=["unset", "three", "another option", "two options"],
)
def test_words_for_options(keys: list[ModelKey], words: str) -> None:
    """What differs is named, and nothing else."""
    assert [advice.text for advice in advise(reloads(*keys, times=10), 10, [], False)] == [
        f"{words}; set one value"
    ]


def test_short_loads() -> None:
    """In seconds when they are few; a load of unknown length counts for none."""
    (advice,) = advise(reloads(NARROW, WIDE, times=10, load_seconds=0.1), 10, [], False)
    assert "10 reloads today, 1 second;" in advice.text
    (advice,) = advise(reloads(NARROW, WIDE, times=10, load_seconds=None), 10, [], False)
    assert "10 reloads today, 0 seconds;" in advice.text


def test_models_are_counted_apart() -> None:
    """Six reloads of each of two models are nothing to speak of."""
    other = ModelKey(frozenset({"b"}), num_ctx=4096)
    found = reloads(NARROW, WIDE, times=6) + reloads(other, evolve(other, num_ctx=8192), times=6)
    assert advise(found, 12, [], False) == []


def test_strangers_and_the_embedder() -> None:
    """Each stranger is named; the embedder only when swaps throw it out, and there are some."""
    stranger, embedder = advise([], 10, ["qwen3:latest"], True)
    assert stranger == Advice(
        "target_used_directly",
        "a model is resident that foreman did not load: somebody uses the target directly (qwen3:latest)",
    )
    assert embedder.code == "embedder_evicted"
    assert embedder.text.startswith("the embedder is evicted by every swap: OLLAMA_MAX_LOADED_MODELS=2")
    assert advise([], 9, [], True) == []
    assert advise([], 10, [], False) == []


def test_keys_as_texts() -> None:
    """Short ones differ where keys do; whole ones can be read back."""
    keys = [
        NARROW,
        WIDE,
        UNSET,
        evolve(UNSET, shift=False),
        evolve(UNSET, options=(("num_gpu", 10), ("use_mmap", False))),
        ModelKey(frozenset({"b"})),
        ModelKey(frozenset({"a", "b"})),
        ModelKey(frozenset({"name:gone"})),
        UNKNOWN,
    ]
    assert len({shown(key) for key in keys}) == len(keys)
    assert shown(evolve(keys[4], shift=False)).endswith(" num_gpu=10 use_mmap=false shift=false")
    assert shown(WIDE).endswith(" num_ctx=8192")
    assert [shown(key) for key in keys[-2:]] == ["gone", "unknown"]
    assert [parsed(dumped(key)) for key in keys] == keys
    for text in ("", "7", "[]", '[["a"],[],null]', "[1,2,3,4]"):
        with pytest.raises(ValueError, match="is no model key"):
            parsed(text)


@define
class PsInventory:
    """What /api/ps shows: each model's digest is that of its weights."""

    loaded: Sequence[Any] = ()

    def show(self, *names: str) -> None:
        self.loaded = [SimpleNamespace(digest=name, context_length=4096) for name in names]

    def model(self, name: str, /) -> None:
        return None

    def model_by_digest(self, digest: str, /) -> Any:
        return None if digest == "unknown" else SimpleNamespace(weights=frozenset({digest}), options="")


@define
class ResidentsBench:
    """Residents on a clock."""

    clock: Clock = field(factory=Clock)
    inventory: PsInventory = field(factory=PsInventory)
    holders: list[Grant] = field(factory=list)
    residents: Residents = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.residents = Residents(self.clock, self.inventory, lambda: self.holders)

    def read(self, *names: str) -> None:
        """The target shows these, a moment later."""
        self.clock.advance(1)
        self.inventory.show(*names)
        self.residents.inventory_read(self.clock.seconds())

    def of(self, name: str) -> bool | None:
        return self.residents.by_foreman(frozenset({name}))


def test_what_somebody_else_loaded() -> None:
    """What appears without a job of foreman's is a stranger; what runs or ran under the turn is not."""
    bench = ResidentsBench()
    bench.read()
    grant = make_grant(bench.clock, ModelKey(frozenset({"a"})))
    bench.holders = [grant]
    bench.read("a", "b", "unknown")
    assert [bench.of(name) for name in "ab"] == [True, False]
    bench.holders = []
    bench.residents.released(grant)
    bench.read("a", "b")
    assert [bench.of(name) for name in "ab"] == [True, False]


def test_what_was_there_at_the_start() -> None:
    """It may be of foreman's last life: nobody knows, until it is gone and comes again."""
    bench = ResidentsBench()
    assert bench.of("a") is None
    bench.read("a")
    assert bench.of("a") is None
    bench.read()
    bench.read("a")
    assert bench.of("a") is False


def test_what_is_gone_is_nobodys() -> None:
    """A model of foreman's that was unloaded, and is there again without a job, is a stranger's."""
    bench = ResidentsBench()
    bench.read()
    grant = make_grant(bench.clock, ModelKey(frozenset({"a"})))
    asked_at = bench.clock.seconds() - 0.5
    bench.residents.released(grant)
    bench.residents.inventory_read(asked_at)  # what was asked for before it ran says nothing of it
    bench.residents.inventory_read(None)
    bench.read("a")
    assert bench.of("a") is True
    bench.read()
    bench.read("a")
    assert bench.of("a") is False
